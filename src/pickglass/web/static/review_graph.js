// The scores of good, bad and unlabelled images side by side, with two thresholds that are dragged, or moved by keys.
//
//   const graph = new ScoreGraph(place, {onmove: ({bad, unsure}) => ...});
//   graph.show({scores, truths, counts});
//   graph.set({bad, unsure});
//
// Arrow keys move a threshold by a hundredth of what is shown, with Shift by a tenth of that; Page Up and Page Down by
// a tenth, Home and End to the ends.

import {element, number} from "./common.js";

const SVG = "http://www.w3.org/2000/svg";
const KINDS = ["good", "bad", "unlabelled"];
const BARS = 64;
const FEW = 30; // images of a kind
const HEIGHT = 170; // CSS pixels of the bars
const WIDE = 30; // the highest score by the lowest, above which the axis is logarithmic

const svg = (name, attributes, ...children) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class ScoreGraph {
  constructor(place, {onmove}) {
    this.onmove = onmove;
    this.thresholds = {bad: null, unsure: null};
    this.low = 0;
    this.high = 1;
    this.logarithmic = false;
    this.columns = null;
    const zone = name => element("div", {className: `zone ${name}`, "aria-hidden": "true"}, element("span", {}, name));
    this.zones = {good: zone("good"), unsure: zone("unsure"), bad: zone("bad")};
    this.drawing = svg("svg", {"aria-hidden": "true"});
    this.handles = {unsure: this.#handle("unsure", "Threshold of unsure"), bad: this.#handle("bad", "Threshold of bad")};
    this.plot = element(
      "div",
      {className: "plot"},
      this.zones.good, this.zones.unsure, this.zones.bad, this.drawing, this.handles.unsure, this.handles.bad,
    );
    this.axis = element("div", {className: "axis", "aria-hidden": "true"});
    this.keys = element("p", {className: "keys"});
    place.append(this.plot, this.axis, this.keys);
    new ResizeObserver(() => this.#draw()).observe(this.plot);
  }

  // `columns`: {scores, truths, counts}, see review_figures.js.
  show(columns) {
    this.columns = columns;
    const known = columns.scores.filter((score, i) => columns.counts[i] && !Number.isNaN(score));
    let low = Infinity;
    let high = -Infinity;
    for (const score of known) {
      low = Math.min(low, score);
      high = Math.max(high, score);
    }
    for (const value of [this.thresholds.bad, this.thresholds.unsure]) {
      if (value === null || !known.length) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (!known.length) [low, high] = [0, 1];
    if (high === low) high = low + Math.max(Math.abs(low) / 10, 1e-9);
    this.logarithmic = low > 0 && high / low > WIDE;
    const [from, to] = this.logarithmic ? [Math.log(low), Math.log(high)] : [low, high];
    const room = (to - from) / 40; // thresholds can go beyond the last image
    [this.low, this.high] = [from - room, to + room];
    this.#draw();
  }

  set(thresholds) {
    this.thresholds = thresholds;
    this.#place();
  }

  // From a score to a share of the width, and back.
  #share(score) {
    const value = this.logarithmic ? (score > 0 ? Math.log(score) : -Infinity) : score;
    return clamp((value - this.low) / (this.high - this.low), 0, 1);
  }

  #score(share) {
    const value = this.low + clamp(share, 0, 1) * (this.high - this.low);
    return this.logarithmic ? Math.exp(value) : value;
  }

  #handle(name, label) {
    const handle = element(
      "div",
      {className: `handle ${name}`, role: "slider", tabIndex: 0, "aria-label": label, "aria-orientation": "horizontal"},
      element("span", {className: "knob"}),
    );
    handle.addEventListener("pointerdown", event => {
      if (event.button !== 0) return;
      event.preventDefault();
      handle.focus();
      handle.setPointerCapture(event.pointerId);
      const {left, width} = this.plot.getBoundingClientRect();
      const offset = event.clientX - left - this.#share(this.thresholds[name]) * width;
      const move = moved => this.#move(name, this.#score((moved.clientX - offset - left) / width));
      handle.addEventListener("pointermove", move);
      const end = () => handle.removeEventListener("pointermove", move);
      handle.addEventListener("pointerup", end, {once: true});
      handle.addEventListener("pointercancel", end, {once: true});
    });
    handle.addEventListener("keydown", event => {
      const fine = event.shiftKey ? 0.1 : 1;
      const steps = {ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1, Home: -2, End: 2};
      const step = steps[event.key];
      if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.#move(name, this.#score(this.#share(this.thresholds[name]) + fine * step));
    });
    return handle;
  }

  // The thresholds never pass each other.
  #move(name, score) {
    const {bad, unsure} = this.thresholds;
    const next = name === "bad" ? {bad: unsure === null ? score : Math.max(score, unsure), unsure} : {bad, unsure: Math.min(score, bad)};
    if (next.bad === bad && next.unsure === unsure) return;
    this.set(next);
    this.onmove(next);
  }

  #place() {
    const {bad, unsure} = this.thresholds;
    for (const [name, handle] of Object.entries(this.handles)) {
      const value = this.thresholds[name];
      handle.hidden = value === null;
      if (value === null) continue;
      handle.style.setProperty("left", `${100 * this.#share(value)}%`);
      handle.setAttribute("aria-valuemin", number(this.#score(0)));
      handle.setAttribute("aria-valuemax", number(this.#score(1)));
      handle.setAttribute("aria-valuenow", number(value));
    }
    const top = bad === null ? 1 : this.#share(bad);
    const middle = unsure === null ? top : this.#share(unsure);
    const edges = {good: [0, middle], unsure: [middle, top], bad: [top, 1]};
    for (const [name, zone] of Object.entries(this.zones)) {
      zone.hidden = bad === null;
      zone.style.setProperty("left", `${100 * edges[name][0]}%`);
      zone.style.setProperty("width", `${100 * (edges[name][1] - edges[name][0])}%`);
    }
  }

  #draw() {
    this.#place();
    const width = this.plot.clientWidth;
    if (!width || !this.columns) return;
    const {scores, truths, counts} = this.columns;
    const bars = KINDS.map(() => new Float64Array(BARS));
    const totals = [0, 0, 0];
    for (let i = 0; i < scores.length; i++) {
      if (!counts[i] || Number.isNaN(scores[i])) continue;
      const kind = truths[i] < 0 ? 2 : truths[i];
      bars[kind][Math.min(Math.floor(this.#share(scores[i]) * BARS), BARS - 1)]++;
      totals[kind]++;
    }
    // Each kind as shares of its own: few bad images stay visible beside thousands of good ones; very few stay low.
    const shares = bars.map((bar, kind) => bar.map(n => n / Math.max(totals[kind], FEW)));
    const top = Math.max(...shares.map(bar => Math.max(...bar)), 1e-9);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.replaceChildren(...KINDS.flatMap((kind, k) => {
      if (!totals[k]) return [];
      let path = `M0 ${HEIGHT}`;
      shares[k].forEach((share, b) => {
        const y = HEIGHT - (share / top) * (HEIGHT - 22);
        path += `L${(b / BARS) * width} ${y}L${((b + 1) / BARS) * width} ${y}`;
      });
      return [svg("path", {class: `area ${kind}`, d: `${path}L${width} ${HEIGHT}Z`})];
    }));
    this.axis.replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map(share => element("span", {}, number(this.#score(share), 3))));
    this.keys.replaceChildren(
      ...KINDS.flatMap((kind, k) => (totals[k] ? [element("span", {}, element("i", {className: `sample ${kind}`}), `${kind} (${totals[k]})`)] : [])),
      element("span", {className: "sub"}, `score${this.logarithmic ? ", logarithmic" : ""}; each kind as shares of its own`),
    );
  }
}
