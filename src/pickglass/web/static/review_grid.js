// Thousands of cards of which only those in sight exist: a list that is scrolled, and walked through by keys.
//
//   const grid = new Grid(place, {draw: (card, item) => ..., onopen: item => ..., onchoose: item => ...});
//   grid.show([4, 8, 15]);      // the numbers of the items, in their order; with `true`, the place in the list is kept
//   grid.redraw();              // the cards in sight, after something about them has changed
//
// `draw` fills an empty card, or one that shows another item by now, or the same with something changed.

import {element} from "./common.js";

const CARD = {width: 156, height: 206, gap: 8};
const BEYOND = 2; // rows above and below that are drawn as well

export class Grid {
  constructor(place, {draw, onopen, onchoose = () => {}}) {
    this.draw = draw;
    this.onopen = onopen;
    this.onchoose = onchoose;
    this.items = [];
    this.chosen = 0; // place in `items`
    this.touched = false; // somebody chose it
    this.columns = 1;
    this.cards = new Map(); // place -> card
    this.inner = element("div", {className: "inner", role: "presentation"});
    this.place = place;
    place.append(this.inner);
    place.addEventListener("scroll", () => this.#fill());
    place.addEventListener("keydown", event => this.#key(event));
    place.addEventListener("click", event => {
      const card = event.target.closest("[role=option]");
      if (!card) return;
      this.choose(Number(card.dataset.place));
      this.onopen(this.item);
    });
    new ResizeObserver(() => this.#lay()).observe(place);
  }

  get item() {
    return this.items[this.chosen];
  }

  show(items, stay = false) {
    const before = this.item;
    this.items = items;
    const at = this.touched ? items.indexOf(before) : 0;
    this.chosen = at >= 0 ? at : stay ? Math.max(Math.min(this.chosen, items.length - 1), 0) : 0;
    if (at < 0 && !stay) this.place.scrollTop = 0;
    this.#lay();
    this.redraw();
  }

  redraw() {
    for (const [place, card] of this.cards) {
      card.setAttribute("aria-setsize", this.items.length);
      this.draw(card, this.items[place]);
    }
  }

  // Choose the card at a place, and bring it into sight.
  choose(place) {
    if (!this.items.length) return;
    this.touched = true;
    this.cards.get(this.chosen)?.setAttribute("aria-selected", "false");
    this.chosen = Math.min(Math.max(place, 0), this.items.length - 1);
    const step = CARD.height + CARD.gap;
    const top = Math.floor(this.chosen / this.columns) * step;
    const {scrollTop, clientHeight} = this.place;
    if (top < scrollTop) this.place.scrollTop = top;
    else if (top + step > scrollTop + clientHeight) this.place.scrollTop = top + step - clientHeight;
    this.#fill();
    this.onchoose(this.item);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.items.length) return;
    const page = this.columns * Math.max(Math.floor(this.place.clientHeight / (CARD.height + CARD.gap)), 1);
    const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page};
    if (event.key in steps) this.choose(this.chosen + steps[event.key]);
    else if (event.key === "Home") this.choose(0);
    else if (event.key === "End") this.choose(this.items.length - 1);
    else if (event.key === "Enter" || event.key === " ") this.onopen(this.item);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #forget() {
    for (const card of this.cards.values()) card.remove();
    this.cards.clear();
  }

  #lay() {
    const columns = Math.max(Math.floor((this.place.clientWidth + CARD.gap) / (CARD.width + CARD.gap)), 1);
    if (columns !== this.columns) this.#forget();
    this.columns = columns;
    const rows = Math.ceil(this.items.length / columns);
    this.inner.style.setProperty("height", `${Math.max(rows * (CARD.height + CARD.gap) - CARD.gap, 0)}px`);
    this.#fill();
  }

  #fill() {
    const step = CARD.height + CARD.gap;
    const {scrollTop, clientHeight, clientWidth} = this.place;
    const first = Math.max((Math.floor(scrollTop / step) - BEYOND) * this.columns, 0);
    const last = Math.min((Math.ceil((scrollTop + clientHeight) / step) + BEYOND) * this.columns, this.items.length);
    for (const [place, card] of this.cards) {
      if (place >= first && place < last) continue;
      card.remove();
      this.cards.delete(place);
    }
    const width = (clientWidth - CARD.gap * (this.columns - 1)) / this.columns;
    for (let place = first; place < last; place++) {
      let card = this.cards.get(place);
      if (!card) {
        card = element("div", {role: "option", className: "image-card", id: `card-${place}`, data: {place}});
        card.setAttribute("aria-setsize", this.items.length);
        card.setAttribute("aria-posinset", place + 1);
        this.draw(card, this.items[place]);
        this.inner.append(card);
        this.cards.set(place, card);
      }
      card.setAttribute("aria-selected", String(place === this.chosen));
      if (card.width === width) continue;
      card.width = width;
      card.style.setProperty("width", `${width}px`);
      card.style.setProperty("left", `${(place % this.columns) * (width + CARD.gap)}px`);
      card.style.setProperty("top", `${Math.floor(place / this.columns) * step}px`);
    }
    if (this.cards.has(this.chosen)) this.place.setAttribute("aria-activedescendant", `card-${this.chosen}`);
    else this.place.removeAttribute("aria-activedescendant");
  }
}
