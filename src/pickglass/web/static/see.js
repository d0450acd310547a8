// What a model sees: why an image was judged so, and its layers, with what the cell under the pointer sees.

import {api, attempt, byId, element, model, onModel, start} from "./common.js";
import {bytesOf, explainInto, layerBadge} from "./why.js";

const SVG = "http://www.w3.org/2000/svg";
const FIELDS = ["theoretical", "effective", "cell"]; // drawn in this order
const STEPS = 64; // arrow keys move by a 64th of the longer side
const LEAST = 3; // pixels of the screen: a shorter drag is a click

let image = null; // {blob, name}
let box = null; // the defect that was marked, [x, y, width, height]
let open = null; // what POST /api/see answered
let pointed = null; // [x, y]
let asking = false;
let stopped = new AbortController();

const svg = (name, attributes = {}) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// ---- an image comes in ----

const take = (blob, name) => {
  image = {blob, name};
  box = null;
  look();
};

const look = async (place = null) => {
  if (!image) return;
  stopped.abort();
  stopped = new AbortController();
  const {signal} = stopped;
  byId("see").hidden = false;
  byId("name").textContent = image.name;
  await attempt(async () => {
    const query = new URLSearchParams({model: model(), name: image.name});
    if (box) query.set("box", box.join(","));
    const at = place ?? (box ? [box[0] + Math.floor(box[2] / 2), box[1] + Math.floor(box[3] / 2)] : null);
    if (at) {
      query.set("x", at[0]);
      query.set("y", at[1]);
    }
    const told = await api(`/api/see?${query}`, {method: "POST", body: bytesOf(image.blob), signal});
    open = told.result === null ? null : told; // an exported model still explains
    byId("layers").hidden = open === null;
    byId("layers-note").hidden = told.note === null;
    byId("layers-note").textContent = told.note ?? "";
    if (open) show();
  });
  if (!signal.aborted && place === null) await attempt(() => explainInto(byId("why"), image.blob, {name: image.name, model: model(), box, signal}));
};

// ---- the picture and its layers ----

const show = () => {
  const {result} = open;
  const [height, width] = result.size;
  const stage = byId("stage");
  stage.setAttribute("viewBox", `0 0 ${width} ${height}`);
  byId("base").setAttribute("href", open.image);
  for (const [name, value] of [["width", width], ["height", height]]) byId("base").setAttribute(name, value);
  const [left, top, across, down] = result.frame;
  for (const [name, value] of [["x", left], ["y", top], ["width", across], ["height", down]]) byId("layer").setAttribute(name, value);
  const kept = byId("which").value;
  byId("which").replaceChildren(...result.layers.map(({layer}) => element("option", {}, layer)));
  if (result.layers.some(({layer}) => layer === kept)) byId("which").value = kept;
  byId("rows").replaceChildren(...result.layers.map(row));
  drawBox("marked", box);
  for (const kind of FIELDS) drawBox(kind, null);
  pointed = null;
  byId("fields").textContent = "";
  choose();
};

const row = layer => {
  const field = layer.rf_theoretical === null ? "?" : layer.rf_theoretical === "global" ? "all of it" : `${layer.rf_theoretical} px`;
  return element("tr", {},
    element("th", {scope: "row"}, layer.layer),
    element("td", {}, layer.grid.join(" × ")),
    element("td", {}, `${layer.stride} px`),
    element("td", {}, `${layer.channels}`),
    element("td", {}, field),
    element("td", {className: "text"}, layer.verdict === null ? "–" : layerBadge(layer)));
};

const choose = () => {
  if (!open) return;
  const kind = byId("kind").value;
  const pictures = open.layers.find(({layer}) => layer === byId("which").value);
  byId("layer").toggleAttribute("hidden", kind === "none");
  if (kind !== "none") byId("layer").setAttribute("href", pictures[kind]);
  byId("layer").setAttribute("opacity", byId("opacity").value / 100);
  drawFields();
};

const drawBox = (id, place) => {
  const rect = byId(id);
  rect.toggleAttribute("hidden", place === null);
  if (place) ["x", "y", "width", "height"].forEach((name, at) => rect.setAttribute(name, place[at]));
};

// ---- what the cell under the pointer sees ----

let answers = null;

const drawFields = () => {
  const own = answers?.find(({layer}) => layer === byId("which").value);
  for (const kind of FIELDS) drawBox(kind, own?.[kind] ?? null);
  if (!own || !pointed) return;
  const size = place => (place === null ? "unknown" : `${place[2]} × ${place[3]} px`);
  byId("fields").textContent = `x ${pointed[0]}, y ${pointed[1]}, ${own.layer}: the cell is ${size(own.cell)}; it sees mainly ${size(own.effective)} of this image, at most ${size(own.theoretical)}.`;
};

// One question at a time; the newest place wins.
const point = async place => {
  pointed = place;
  if (asking || !open) return;
  asking = true;
  try {
    while (pointed) {
      const [x, y] = pointed;
      const {id} = open;
      const inside = within(open.result.seen, x, y);
      const told = inside ? await api(`/api/see/${id}/fields?x=${x}&y=${y}`) : null;
      if (!open || open.id !== id) break;
      answers = told;
      if (told) drawFields();
      if (pointed[0] === x && pointed[1] === y) break;
    }
  } catch (error) {
    if (error.status === 404) await look(pointed); // the server has put it away
    else throw error;
  } finally {
    asking = false;
  }
};

const within = ([left, top, width, height], x, y) => x >= left && x < left + width && y >= top && y < top + height;

const pixelAt = event => {
  const stage = byId("stage");
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
  const [height, width] = open.result.size;
  return [Math.max(0, Math.min(width - 1, Math.floor(at.x))), Math.max(0, Math.min(height - 1, Math.floor(at.y)))];
};

// ---- a defect is marked: drag, or four numbers ----

let from = null;

const between = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.abs(x - u) + 1, Math.abs(y - v) + 1];

const onStage = () => {
  const stage = byId("stage");
  stage.onpointerdown = event => {
    if (!open || event.button !== 0) return;
    from = {pixel: pixelAt(event), x: event.clientX, y: event.clientY};
    stage.setPointerCapture(event.pointerId);
  };
  stage.onpointermove = event => {
    if (!open) return;
    if (from && Math.hypot(event.clientX - from.x, event.clientY - from.y) > LEAST) drawBox("marked", between(from.pixel, pixelAt(event)));
    else if (!from) attempt(() => point(pixelAt(event)));
  };
  stage.onpointerup = event => {
    if (!from) return;
    const dragged = Math.hypot(event.clientX - from.x, event.clientY - from.y) > LEAST;
    const marked = between(from.pixel, pixelAt(event));
    from = null;
    if (dragged) mark(marked);
    else if (within(open.result.seen, ...pixelAt(event))) attempt(() => point(pixelAt(event)));
    else look(pixelAt(event)); // another tile
  };
  stage.onpointercancel = () => {
    from = null;
    drawBox("marked", box);
  };
  stage.onkeydown = event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step || !open) return;
    event.preventDefault();
    const [height, width] = open.result.size;
    const [left, top, across, down] = open.result.seen;
    const far = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / STEPS));
    const [x, y] = pointed ?? [left + Math.floor(across / 2), top + Math.floor(down / 2)];
    const next = [Math.max(0, Math.min(width - 1, x + far * step[0])), Math.max(0, Math.min(height - 1, y + far * step[1]))];
    if (within(open.result.seen, ...next)) attempt(() => point(next));
    else look(next);
  };
};

const mark = place => {
  box = place;
  ["box-x", "box-y", "box-w", "box-h"].forEach((id, at) => (byId(id).value = place ? place[at] : ""));
  look();
};

// ---- the page ----

start();
onStage();
byId("choose").onclick = () => byId("file").click();
byId("file").onchange = () => {
  const [file] = byId("file").files;
  if (file) take(file, file.name);
  byId("file").value = "";
};
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) take(file, file.name);
});
document.addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(one => one.type.startsWith("image/"));
  if (file) take(file, file.name || "pasted.png");
});
for (const id of ["which", "kind", "opacity"]) byId(id).oninput = choose;
byId("mark").onsubmit = event => {
  event.preventDefault();
  mark(["box-x", "box-y", "box-w", "box-h"].map(id => Number(byId(id).value)));
};
byId("unmark").onclick = () => mark(null);
onModel(() => look());
