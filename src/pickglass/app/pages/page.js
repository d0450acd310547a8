// The one script of all pages: the theme, printing, enlarged pictures, and the gallery's sorting, filters and marks.
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

// ---- heat maps on the scale of all images, or each on its own: button or the key o ----

const swapScales = () => {
  const shown = document.querySelectorAll("img[data-own]");
  if (!shown.length) return;
  const own = document.body.classList.toggle("owned");
  for (const image of shown) [image.src, image.dataset.own] = [image.dataset.own, image.src];
  if (byId("own")) byId("own").setAttribute("aria-pressed", String(own));
  if (byId("common")) byId("common").hidden = own;
  if (byId("owned")) byId("owned").hidden = !own;
  if (zoom.open) show(current);
};

if (byId("own") && document.querySelector("img[data-own]")) {
  byId("own").hidden = false;
  byId("own").onclick = swapScales;
}

document.addEventListener("keydown", event => {
  if (event.key !== "o" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  swapScales();
});

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
  const mark = image.closest("article")?.dataset.mark;
  const marked = mark ? ` Marked ${mark}.` : "";
  const scaled = !image.dataset.own ? "" : document.body.classList.contains("owned") ? " Own scale (o: that of all images)." : " Scale of all images (o: its own).";
  zoom.querySelector("p").textContent = `${image.alt}.${scaled}${marked} Arrow keys: other pictures and images. Esc: close.`;
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
    const marked = byId("marked")?.value;
    const isWrong = card => ["missed", "false alarm"].includes(card.dataset.outcome);
    for (const card of cards) {
      const judged = outcome === "wrong" ? isWrong(card) : !outcome || card.dataset.outcome === outcome;
      const said = !marked || (card.dataset.mark || "none") === marked;
      const fits = judged && said && (!type || card.dataset.type === type);
      card.hidden = !(fits && card.dataset.name.toLowerCase().includes(name));
    }
    const visible = cards.filter(card => !card.hidden).length;
    byId("count").textContent = `${visible} of ${cards.length} images shown`;
  };
  for (const id of ["type", "outcome", "name", "marked"]) {
    if (byId(id)) byId(id).oninput = filter;
  }
  byId("size").oninput = event => gallery.style.setProperty("--cell", `${event.target.value}px`);
  byId("controls").hidden = false;
  filter();
};

// ---- marks: what the reader says of the images; the browser keeps them, and a table takes them elsewhere ----

const startMarks = (gallery, panel) => {
  const cards = [...gallery.querySelectorAll("article[data-sha256]")];
  const place = `pickglass-marks-${panel.dataset.report}`;
  let marks = {}; // by path: mark, type and time
  let keeps = true;
  let unsaved = false;
  let active = null;

  const read = name => {
    try {
      return localStorage.getItem(name);
    } catch {
      keeps = false;
      return null;
    }
  };
  const write = (name, value) => {
    try {
      localStorage.setItem(name, value);
    } catch { // no storage, or it is full
      keeps = false;
      byId("kept").textContent = "This browser keeps no marks: save them before you close the page";
    }
  };
  const load = () => {
    if (!keeps) return;
    try {
      marks = JSON.parse(read(place)) || {};
    } catch { // not what this page wrote
      marks = {};
    }
  };

  const draw = card => {
    const {mark = "", type = ""} = marks[card.dataset.name] || {};
    const ticks = card.querySelector(".ticks");
    card.dataset.mark = mark;
    for (const button of ticks.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.word === mark));
    }
    ticks.querySelector("label").hidden = !["bad", "unsure"].includes(mark);
    const input = ticks.querySelector("input");
    if (input !== document.activeElement) input.value = type;
  };
  const count = () => {
    const words = cards.map(card => card.dataset.mark).filter(Boolean);
    const of = word => words.filter(other => other === word).length;
    byId("said").textContent = `${words.length} of ${cards.length} images marked: ${of("good")} good, ${of("bad")} bad, ${of("unsure")} unsure`;
    byId("save").disabled = !words.length;
  };
  const say = (card, mark, type = "") => {
    load(); // another tab may have marked other images meanwhile
    const path = card.dataset.name;
    if (mark) marks[path] = {mark, type: mark === "good" ? "" : type, time: new Date().toISOString().replace("Z", "+00:00")};
    else delete marks[path];
    write(place, JSON.stringify(marks));
    unsaved = true;
    draw(card);
    count();
  };

  const choose = card => {
    if (active === card) return;
    active?.classList.remove("active");
    active = card;
    active?.classList.add("active");
  };

  const template = byId("ticks").content.firstElementChild;
  load();
  for (const card of cards) {
    const ticks = template.cloneNode(true);
    ticks.setAttribute("aria-label", `mark ${card.querySelector("h3").textContent}`);
    card.querySelector("header").after(ticks);
    card.tabIndex = -1;
    draw(card);
  }
  count();

  gallery.addEventListener("click", event => {
    const button = event.target.closest(".ticks button");
    if (!button) return;
    const card = button.closest("article");
    const type = card.querySelector(".ticks input").value.trim();
    say(card, button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.word, type); // a second time takes it back
  });
  gallery.addEventListener("change", event => {
    const input = event.target;
    const card = input.matches(".ticks input") && input.closest("article");
    if (!card) return;
    input.value = input.value.replace(/[/\\:*?"<>|\s\p{C}]+/gu, " ").replace(/^[ .]+|[ .]+$/g, ""); // it becomes a folder's name
    say(card, card.dataset.mark, input.value);
  });
  gallery.addEventListener("focusin", event => choose(event.target.closest("article[data-sha256]")));
  let at = "";
  gallery.addEventListener("pointermove", event => {
    const here = `${event.screenX} ${event.screenY}`;
    if (here !== at) choose(event.target.closest("article[data-sha256]")); // not where the page moves under the pointer
    at = here;
  });
  document.addEventListener("keydown", event => {
    const word = {g: "good", b: "bad", u: "unsure"}[event.key];
    if (!word || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    const card = zoom.open ? current.closest("article[data-sha256]") : active;
    if (!card || card.hidden) return;
    event.preventDefault();
    say(card, word, card.querySelector(".ticks input").value.trim());
    if (zoom.open) {
      show(current);
      return;
    }
    let next = card.nextElementSibling;
    while (next && (next.hidden || !next.dataset.sha256)) next = next.nextElementSibling;
    if (next) {
      next.focus({preventScroll: true});
      next.scrollIntoView({block: "nearest"});
    }
  });
  window.addEventListener("storage", event => {
    if (event.key !== place) return;
    load();
    for (const card of cards) draw(card);
    count();
  });
  window.addEventListener("beforeunload", event => {
    if (unsaved && !keeps) event.preventDefault();
  });

  byId("user").value = read("pickglass-user") || "";
  byId("user").onchange = () => write("pickglass-user", byId("user").value.trim());

  // A spreadsheet may run a text that begins like a formula; pickglass takes the apostrophes off again.
  const text = value => value.replace(
    /^(?=['=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])|(?<=[;\t])(?='*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])/g, "'");
  const quoted = value => (/[",;\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  byId("save").onclick = () => {
    load();
    const columns = panel.dataset.columns.split(",");
    const lines = cards.filter(card => marks[card.dataset.name]).map(card => {
      const {mark, type, time} = marks[card.dataset.name];
      const values = {
        path: text(card.dataset.name),
        sha256: card.dataset.sha256,
        mark,
        type: text(type),
        user: text(byId("user").value.trim()),
        time,
        model_id: text(panel.dataset.modelId),
        model_version: panel.dataset.modelVersion,
        score: card.dataset.score,
      };
      return columns.map(name => quoted(values[name] || "")).join(",");
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([[columns.join(","), ...lines, ""].join("\r\n")], {type: "text/csv"}));
    link.download = `marks-${document.title.replace(/[^\p{L}\p{N}._-]+/gu, "-")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    unsaved = false;
    byId("said").textContent = `saved ${lines.length} marks as ${link.download}`;
  };
  panel.hidden = false;
};

if (byId("gallery")) startGallery(byId("gallery"));
if (byId("marking")) startMarks(byId("gallery"), byId("marking"));
