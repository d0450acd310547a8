// The one script of all pages: the theme, printing, enlarged pictures, and the gallery's sorting and filters.
"use strict";

const byId = id => document.getElementById(id);

// ---- theme and printing ----

byId("theme").hidden = false;
byId("theme").onclick = () => {
  const root = document.documentElement;
  root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
};

window.onbeforeprint = () => {
  for (const details of document.querySelectorAll("details:not(.aside)")) details.open = true;
};

// ---- enlarged pictures: click or Enter opens, arrows walk, Esc closes ----

const zoom = byId("zoom");
const large = zoom.querySelector("img");
let current = null;

const show = image => {
  if (!image) return;
  current = image;
  large.src = image.src;
  large.alt = image.alt;
  large.className = ["cells", "ink"].filter(name => image.closest(`.pics.${name}`)).join(" ");
  zoom.querySelector("p").textContent = `${image.alt}. Arrow keys: other pictures and images. Esc: close.`;
  if (!zoom.open) zoom.showModal();
};

document.body.onclick = event => {
  const button = event.target.closest(".pics button");
  if (button) show(button.querySelector("img"));
};

zoom.onclick = () => zoom.close();

zoom.onkeydown = event => {
  const across = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const down = {ArrowUp: -1, ArrowDown: 1}[event.key];
  if (!across && !down) return;
  event.preventDefault();
  const card = current.closest("article");
  const own = [...card.querySelectorAll(".pics img")];
  if (across) {
    show(own[own.indexOf(current) + across]);
    return;
  }
  const cards = [...card.parentElement.children].filter(other => other.matches("article:not([hidden])"));
  const next = cards[cards.indexOf(card) + down];
  if (!next) return;
  const kind = current.closest("figure").className;
  const alike = kind ? next.querySelector(`.pics .${kind} img`) : next.querySelectorAll(".pics img")[own.indexOf(current)];
  show(alike || next.querySelector(".pics img"));
};

// ---- the gallery of a report ----

const startGallery = gallery => {
  const cards = [...gallery.children]; // in the order of the page: worst mistakes first
  const orders = {
    high: (a, b) => b.dataset.score - a.dataset.score,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true}),
  };
  byId("sort").onchange = event => {
    const order = orders[event.target.value];
    gallery.append(...(order ? [...cards].sort(order) : cards));
  };
  const filter = () => {
    const type = byId("type").value;
    const outcome = byId("outcome").value;
    const name = byId("name").value.toLowerCase();
    const isWrong = card => ["missed", "false alarm"].includes(card.dataset.outcome);
    for (const card of cards) {
      const judged = outcome === "wrong" ? isWrong(card) : !outcome || card.dataset.outcome === outcome;
      const fits = judged && (!type || card.dataset.type === type);
      card.hidden = !(fits && card.dataset.name.toLowerCase().includes(name));
    }
    const visible = cards.filter(card => !card.hidden).length;
    byId("count").textContent = `${visible} of ${cards.length} images shown`;
  };
  for (const id of ["type", "outcome", "name"]) byId(id).oninput = filter;
  byId("size").oninput = event => gallery.style.setProperty("--cell", `${event.target.value}px`);
  byId("controls").hidden = false;
  filter();
};

if (byId("gallery")) startGallery(byId("gallery"));
