// An image to look at closely: heat and outlines over it, pan and zoom at full resolution, and a brush for rough masks.
//
//   const viewer = new Viewer(byId("place"));
//   await viewer.show({name, image, map, boxes, mask});   // of another image: call it again, the last call wins
//   viewer.jump(2);                                       // to the third box
//   viewer.draw(true); ... viewer.shapes; viewer.clear(); // what was drawn, as the server reads masks
//   viewer.close();
//
// show() takes
//   name   what the image is called, for those who do not see it
//   image  address or Blob of a picture that browsers show; the promise fails if it is none
//   map    null, or {png, low, high, threshold} as POST /inspect?map=png gives it; png is base64
//   boxes  [[x, y, w, h], ...] in pixels of the image; numbered from 1 on
//   mask   null, or address or Blob of a mask (white where a defect is), which is outlined in blue
//   size   null, or [H, W] of the image where the picture is a smaller one of it; boxes and shapes keep the image's pixels
// and gives {width, height} of the picture. Options of the constructor, each may be left out:
//   onbox(index)      somebody chose a box in the image
//   onshapes(shapes)  somebody drew, erased, took back or cleared
//   hint              what is said while there is no image
//
// Keys, while the image has the focus: arrows move it when it is larger than its place, + and - zoom, 0 fits, 1 shows
// each pixel as one. With the brush out, arrows move a cross (with Shift by a pixel) and the space bar paints there.

import {element} from "./common.js";

const SVG = "http://www.w3.org/2000/svg";
const CLOSEST = 48; // CSS pixels that a pixel of the image may take
const LEAST_BOX = 16; // CSS pixels; smaller boxes are drawn larger, or nobody would see them
const MOST_BOXES = 200; // are drawn; the ones with the highest peaks come first
const SIDE = 2048; // of the canvas on which strokes are drawn
const STEP = 60; // CSS pixels by which an arrow key moves the image

const svg = (name, attributes, ...children) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), {width, height});

const pictureOf = async address => {
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  return picture;
};

const pixelsOf = picture => {
  const canvas = canvasOf(picture.naturalWidth, picture.naturalHeight);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(picture, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
};

// The first channel of a picture: grey values, row by row.
const greyOf = ({data, width, height}) => {
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i];
  return {grey, width, height};
};

// The colours of heat maps, 256 times RGBA; the server draws reports with the same.
let colours = null;
const heatColours = () => (colours ??= pictureOf("/static/heat.png").then(picture => pixelsOf(picture).data));

// Along the edges of all pixels above a limit: a path for SVG in pixels of the map, one stroke a run of edges.
export const outlineOf = ({grey, width, height}, limit) => {
  const parts = [];
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && grey[y * width + x] > limit;
  for (let y = 0; y <= height; y++) {
    for (let x = 0, from = -1; x <= width; x++) {
      const edge = x < width && inside(x, y) !== inside(x, y - 1);
      if (edge && from < 0) from = x;
      if (!edge && from >= 0) {
        parts.push(`M${from} ${y}H${x}`);
        from = -1;
      }
    }
  }
  for (let x = 0; x <= width; x++) {
    for (let y = 0, from = -1; y <= height; y++) {
      const edge = y < height && inside(x, y) !== inside(x - 1, y);
      if (edge && from < 0) from = y;
      if (!edge && from >= 0) {
        parts.push(`M${x} ${from}V${y}`);
        from = -1;
      }
    }
  }
  return parts.join("");
};

export class Viewer {
  // What the reader chose holds for all images, and for the next page.
  static heat = Number(localStorage.getItem("pickglass.heat") ?? 85);
  static outlines = localStorage.getItem("pickglass.outlines") !== "no";

  constructor(place, {onbox = () => {}, onshapes = () => {}, hint = ""} = {}) {
    this.onbox = onbox;
    this.onshapes = onshapes;
    this.shapes = [];
    this.boxes = [];
    this.chosen = -1;
    this.drawing = false;
    this.turn = 0;
    this.addresses = [];
    this.pointers = new Map();
    this.size = {width: 1, height: 1};
    this.at = {x: 0, y: 0, scale: 1};
    this.cross = null;
    this.fitted = true;
    this.#build(place, hint);
    this.#listen();
  }

  // ---- what is shown ----

  async show({name = "", image, map = null, boxes = [], mask = null, size = null}) {
    const turn = ++this.turn;
    const addresses = [];
    const address = source => {
      if (!(source instanceof Blob)) return source;
      addresses.push(URL.createObjectURL(source));
      return addresses.at(-1);
    };
    let picture, grey, covered;
    try {
      [picture, grey, covered] = await Promise.all([
        pictureOf(address(image)),
        map && pictureOf(`data:image/png;base64,${map.png}`).then(pixelsOf).then(greyOf),
        mask && pictureOf(address(mask)).then(pixelsOf).then(greyOf),
      ]);
    } catch (error) {
      addresses.forEach(URL.revokeObjectURL);
      throw error;
    }
    const ramp = grey && (await heatColours());
    if (turn !== this.turn) { // another image was asked for meanwhile
      addresses.forEach(URL.revokeObjectURL);
      return {width: picture.naturalWidth, height: picture.naturalHeight};
    }
    this.addresses.forEach(URL.revokeObjectURL);
    this.addresses = addresses;
    this.size = size ? {width: size[1], height: size[0]} : {width: picture.naturalWidth, height: picture.naturalHeight};
    this.map = map && {...map, ...grey};
    this.boxes = boxes.slice(0, MOST_BOXES);
    this.chosen = -1;
    this.shapes = [];
    this.cross = null;
    picture.alt = name;
    picture.draggable = false;
    this.picture.replaceWith(picture);
    this.picture = picture;
    this.#paintHeat(ramp);
    this.#setOutline(this.found, map && map.threshold !== null ? this.map : null, map?.threshold);
    this.#setOutline(this.marked, covered, 127);
    this.#setSize();
    this.#paintShapes();
    this.#drawBoxes();
    this.root.classList.toggle("empty", false);
    this.root.classList.toggle("unheated", !map);
    this.viewport.setAttribute("aria-label", `${name || "Image"}: arrow keys move it, plus and minus zoom, 0 fits it in`);
    this.fit();
    return {width: picture.naturalWidth, height: picture.naturalHeight};
  }

  // Nothing is shown any more.
  hide() {
    this.turn++;
    this.root.classList.add("empty");
  }

  close() {
    this.turn++;
    this.observer.disconnect();
    this.addresses.forEach(URL.revokeObjectURL);
    this.root.remove();
  }

  // ---- pan and zoom ----

  get fitScale() {
    const {clientWidth, clientHeight} = this.viewport;
    return Math.max(Math.min(clientWidth / this.size.width, clientHeight / this.size.height), 1e-4);
  }

  fit() {
    this.#go({scale: this.fitScale, x: 0, y: 0});
  }

  // Each pixel of the image as one pixel of the screen.
  natural() {
    this.zoomTo(1 / devicePixelRatio);
  }

  // A point of the viewport stays where it is; by default its middle.
  zoomTo(scale, x = this.viewport.clientWidth / 2, y = this.viewport.clientHeight / 2) {
    const next = clamp(scale, Math.min(this.fitScale, 1), Math.max(CLOSEST, this.fitScale));
    const factor = next / this.at.scale;
    this.#go({scale: next, x: x - (x - this.at.x) * factor, y: y - (y - this.at.y) * factor});
  }

  zoomBy(factor, x, y) {
    this.zoomTo(this.at.scale * factor, x, y);
  }

  pan(x, y) {
    this.#go({...this.at, x: this.at.x + x, y: this.at.y + y});
  }

  // Choose a box and go to it; null: none is chosen.
  jump(index) {
    const box = index === null ? undefined : this.boxes[index];
    this.chosen = box ? index : -1;
    if (box) this.jumpTo(box);
    this.#drawBoxes();
  }

  // Bring a place, [x, y, w, h], to the middle, about a third of the view large.
  jumpTo([x, y, width, height]) {
    const {clientWidth, clientHeight} = this.viewport;
    const scale = clamp(Math.min(clientWidth / width, clientHeight / height) / 3, this.fitScale, Math.max(8, this.fitScale));
    this.#go({scale, x: clientWidth / 2 - (x + width / 2) * scale, y: clientHeight / 2 - (y + height / 2) * scale});
  }

  setHeat(percent) {
    Viewer.heat = percent;
    localStorage.setItem("pickglass.heat", percent);
    this.#look();
  }

  toggleHeat() {
    this.setHeat(Viewer.heat > 0 ? 0 : 85);
  }

  setOutlines(shown) {
    Viewer.outlines = shown;
    localStorage.setItem("pickglass.outlines", shown ? "yes" : "no");
    this.#look();
  }

  // ---- a rough mask ----

  // Take the brush out or put it away; what was drawn stays in `shapes`.
  draw(on) {
    this.drawing = on;
    this.tools.hidden = !on;
    this.root.classList.toggle("drawing", on);
    this.cross = on ? this.cross : null;
    this.#place();
  }

  undo() {
    this.shapes.pop();
    this.#drawn();
  }

  clear() {
    this.shapes = [];
    this.#drawn();
  }

  // ---- inside ----

  #build(place, hint) {
    this.picture = element("img", {alt: ""});
    this.heatCanvas = element("canvas", {className: "heat", "aria-hidden": "true"});
    this.brushCanvas = element("canvas", {className: "brushed", "aria-hidden": "true"});
    this.stage = element("div", {className: "stage"}, this.picture, this.heatCanvas, this.brushCanvas);
    this.found = svg("g", {class: "found"}, svg("path", {class: "under"}), svg("path", {}));
    this.marked = svg("g", {class: "marked"}, svg("path", {class: "under"}), svg("path", {}));
    this.scaled = svg("g", {}, this.found, this.marked);
    this.boxLayer = svg("g", {class: "boxes"});
    this.crossMark = svg("g", {class: "cross"}, svg("circle", {}), svg("path", {d: "M-9 0H9M0-9V9"}));
    const over = svg("svg", {"aria-hidden": "true"}, this.scaled, this.boxLayer, this.crossMark);
    this.viewport = element("div", {className: "viewport", tabIndex: 0, role: "application", "aria-label": "No image"}, this.stage);
    this.valueText = element("span", {className: "value", "aria-hidden": "true"}); // over the image: a bar would grow with it
    this.viewport.append(over, this.valueText, element("p", {className: "hint"}, hint));

    const button = (text, label, action) => element("button", {type: "button", title: label, "aria-label": label, onclick: action}, text);
    this.heatSlider = element("input", {type: "range", min: 0, max: 100, step: 5, oninput: () => this.setHeat(Number(this.heatSlider.value))});
    this.outlineBox = element("input", {type: "checkbox", onchange: () => this.setOutlines(this.outlineBox.checked)});
    this.zoomText = element("span", {className: "zoom"});
    const bar = element(
      "div",
      {className: "viewer-bar", role: "group", "aria-label": "How the image is shown"},
      element("label", {className: "of-heat"}, "Heat ", this.heatSlider),
      element("label", {className: "of-heat"}, this.outlineBox, " Outlines"),
      element(
        "span",
        {className: "zooms"},
        button("−", "Zoom out", () => this.zoomBy(1 / 1.5)),
        button("+", "Zoom in", () => this.zoomBy(1.5)),
        button("Fit", "Fit the image in", () => this.fit()),
        button("1:1", "Show each pixel as one", () => this.natural()),
        this.zoomText,
      ),
    );
    const tool = (value, text) =>
      element("label", {}, element("input", {type: "radio", name: `tool-${Viewer.#made}`, value, checked: value === "stroke"}), ` ${text}`);
    Viewer.#made++;
    this.brushSlider = element("input", {type: "range", min: 2, max: 60, value: 14, oninput: () => this.#place()});
    this.tools = element(
      "div",
      {className: "viewer-bar tools", role: "group", "aria-label": "Draw a rough mask", hidden: true},
      tool("stroke", "Brush"),
      tool("polygon", "Outline"),
      tool("erase", "Rub out"),
      element("label", {}, "Size ", this.brushSlider),
      button("Undo", "Take back the last stroke", () => this.undo()),
      button("Clear", "Clear the drawing", () => this.clear()),
    );
    this.root = element("div", {className: "viewer empty unheated"}, bar, this.tools, this.viewport);
    place.append(this.root);
    this.#look();
  }

  static #made = 0;

  #listen() {
    this.observer = new ResizeObserver(() => (this.fitted ? this.fit() : this.#go(this.at)));
    this.observer.observe(this.viewport);
    this.viewport.addEventListener("wheel", event => {
      event.preventDefault();
      const {x, y} = this.#inside(event);
      this.zoomBy(1.0015 ** -clamp(event.deltaY * (event.deltaMode === 1 ? 30 : 1), -400, 400), x, y);
    }, {passive: false});
    this.viewport.addEventListener("pointerdown", event => this.#down(event));
    this.viewport.addEventListener("pointermove", event => this.#move(event));
    this.viewport.addEventListener("pointerup", event => this.#up(event));
    this.viewport.addEventListener("pointercancel", event => this.#up(event));
    this.viewport.addEventListener("pointerleave", () => (this.valueText.textContent = ""));
    this.viewport.addEventListener("dblclick", event => {
      if (this.drawing) return;
      const {x, y} = this.#inside(event);
      if (this.fitted) this.zoomTo(Math.max(1 / devicePixelRatio, 2.5 * this.fitScale), x, y);
      else this.fit();
    });
    this.viewport.addEventListener("keydown", event => this.#key(event));
  }

  // Where an event happened, in CSS pixels of the viewport, and in pixels of the image.
  #inside(event) {
    const place = this.viewport.getBoundingClientRect();
    const x = event.clientX - place.left - this.viewport.clientLeft;
    const y = event.clientY - place.top - this.viewport.clientTop;
    return {x, y, column: (x - this.at.x) / this.at.scale, row: (y - this.at.y) / this.at.scale};
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || this.root.classList.contains("empty")) return;
    const steps = {ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
    const step = steps[event.key];
    const actions = {"+": () => this.zoomBy(1.5), "=": () => this.zoomBy(1.5), "-": () => this.zoomBy(1 / 1.5), 0: () => this.fit(), 1: () => this.natural()};
    if (this.drawing && step) {
      const by = event.shiftKey ? 1 : Math.max(1, 10 / this.at.scale);
      const cross = this.cross ?? this.#middle();
      this.cross = {column: clamp(cross.column - step[0] * by, 0, this.size.width), row: clamp(cross.row - step[1] * by, 0, this.size.height)};
      this.#place();
    } else if (this.drawing && event.key === " ") {
      this.cross ??= this.#middle();
      this.#add({kind: "stroke", points: [[this.cross.column, this.cross.row]], radius: this.#radius(), erase: this.#tool() === "erase"});
    } else if (step && !this.fitted) this.pan(STEP * step[0], STEP * step[1]);
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #middle() {
    return {
      column: clamp((this.viewport.clientWidth / 2 - this.at.x) / this.at.scale, 0, this.size.width),
      row: clamp((this.viewport.clientHeight / 2 - this.at.y) / this.at.scale, 0, this.size.height),
    };
  }

  #down(event) {
    if (event.button !== 0 && event.button !== 1) return;
    this.viewport.setPointerCapture(event.pointerId);
    const place = this.#inside(event);
    this.pointers.set(event.pointerId, place);
    this.moved = 0;
    if (this.drawing && event.button === 0 && this.pointers.size === 1) {
      const tool = this.#tool();
      const kind = tool === "polygon" ? "polygon" : "stroke";
      this.stroke = {kind, points: [[place.column, place.row]], radius: this.#radius(), erase: tool === "erase"};
      this.#paintShapes();
    } else this.stroke = null; // a second finger: pinch instead
  }

  #move(event) {
    const place = this.#inside(event);
    this.#tell(place);
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    if (this.stroke) {
      const last = this.stroke.points.at(-1);
      if (Math.hypot(place.column - last[0], place.row - last[1]) * this.at.scale >= 2) {
        this.stroke.points.push([place.column, place.row]);
        this.#paintShapes();
      }
      return;
    }
    this.pointers.set(event.pointerId, place);
    this.moved += Math.hypot(place.x - before.x, place.y - before.y);
    if (this.pointers.size === 1) {
      this.pan(place.x - before.x, place.y - before.y);
      return;
    }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = from => Math.max(Math.hypot(from.x - other.x, from.y - other.y), 1);
    this.zoomBy(apart(place) / apart(before), (place.x + other.x) / 2, (place.y + other.y) / 2);
  }

  #up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.stroke) {
      const stroke = this.stroke;
      this.stroke = null;
      if (event.type === "pointerup" && (stroke.kind === "stroke" || stroke.points.length > 2)) this.#add(stroke);
      else this.#paintShapes();
    } else if (event.type === "pointerup" && this.moved < 4 && !this.drawing) {
      const {column, row} = this.#inside(event);
      const room = LEAST_BOX / 2 / this.at.scale;
      const hit = this.boxes.findIndex(([x, y, w, h]) => column > x - room && row > y - room && column < x + w + room && row < y + h + room);
      if (hit >= 0 && Viewer.outlines) this.onbox(hit);
    }
  }

  #tool() {
    return this.tools.querySelector("input:checked").value;
  }

  // Of the brush, in pixels of the image: it keeps its size on the screen.
  #radius() {
    return Math.max(Number(this.brushSlider.value) / this.at.scale, 0.5);
  }

  #add({kind, points, radius, erase}) {
    // What lies beside the image marks nothing of it, nor does an outline without an area.
    const [columns, rows] = [0, 1].map(axis => points.map(point => point[axis]));
    const wide = kind === "stroke" ? radius : -0.5;
    const beside = (values, end) => Math.max(...values) + wide <= Math.max(0, Math.min(...values)) || Math.min(...values) - wide >= end;
    if (beside(columns, this.size.width) || beside(rows, this.size.height)) {
      this.#paintShapes();
      return;
    }
    const short = points.map(([x, y]) => [Math.round(10 * x) / 10, Math.round(10 * y) / 10]);
    const shape = {kind, points: short};
    if (kind === "stroke") shape.radius = Math.round(10 * radius) / 10;
    if (erase) shape.erase = true;
    this.shapes.push(shape);
    this.#drawn();
  }

  #drawn() {
    this.#paintShapes();
    this.onshapes(this.shapes);
  }

  #paintShapes() {
    const shrink = Math.min(1, SIDE / Math.max(this.size.width, this.size.height));
    const width = Math.max(Math.round(this.size.width * shrink), 1);
    const height = Math.max(Math.round(this.size.height * shrink), 1);
    const canvas = this.brushCanvas;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    context.scale(width / this.size.width, height / this.size.height);
    context.lineCap = context.lineJoin = "round";
    context.fillStyle = context.strokeStyle = "#33bbee";
    for (const {kind, points, radius, erase} of this.stroke ? [...this.shapes, this.stroke] : this.shapes) {
      context.globalCompositeOperation = erase ? "destination-out" : "source-over";
      context.beginPath();
      context.moveTo(...points[0]);
      for (const [x, y] of points) context.lineTo(x + 1e-3, y); // a single point is a dot, not nothing
      if (kind === "polygon") context.fill();
      else {
        context.lineWidth = 2 * radius;
        context.stroke();
      }
    }
  }

  #paintHeat(ramp) {
    const canvas = this.heatCanvas;
    if (!this.map) {
      Object.assign(canvas, {width: 1, height: 1});
      return;
    }
    const {grey, width, height} = this.map;
    Object.assign(canvas, {width, height});
    const painted = new ImageData(width, height);
    const table = new Uint32Array(256);
    const bytes = new Uint8Array(table.buffer);
    for (let value = 0; value < 256; value++) {
      bytes.set(ramp.subarray(4 * value, 4 * value + 3), 4 * value);
      bytes[4 * value + 3] = value; // the hotter, the less of the image shows through
    }
    const out = new Uint32Array(painted.data.buffer);
    for (let i = 0; i < grey.length; i++) out[i] = table[grey[i]];
    canvas.getContext("2d").putImageData(painted, 0, 0);
  }

  #setOutline(group, grey, limit) {
    const path = grey ? outlineOf(grey, limit) : "";
    for (const line of group.children) line.setAttribute("d", path);
    if (grey) group.setAttribute("transform", `scale(${this.size.width / grey.width} ${this.size.height / grey.height})`);
  }

  #setSize() {
    this.stage.style.setProperty("width", `${this.size.width}px`);
    this.stage.style.setProperty("height", `${this.size.height}px`);
  }

  #drawBoxes() {
    this.boxLayer.replaceChildren(...this.boxes.map((_, index) => svg(
      "g", {class: index === this.chosen ? "chosen" : ""}, svg("rect", {class: "under"}), svg("rect", {}), svg("text", {}, String(index + 1)),
    )));
    this.#place();
  }

  // Go somewhere, but never so far that the image is lost.
  #go({scale, x, y}) {
    const {clientWidth, clientHeight} = this.viewport;
    const kept = (offset, image, view) => (image <= view ? (view - image) / 2 : clamp(offset, view - image, 0));
    this.at = {
      scale,
      x: kept(x, this.size.width * scale, clientWidth),
      y: kept(y, this.size.height * scale, clientHeight),
    };
    this.fitted = scale <= this.fitScale * 1.001;
    this.#place();
  }

  #place() {
    const {x, y, scale} = this.at;
    this.stage.style.setProperty("transform", `translate(${x}px, ${y}px) scale(${scale})`);
    this.stage.classList.toggle("close", scale * devicePixelRatio >= 3); // pixels become squares
    this.root.classList.toggle("fitted", this.fitted);
    this.scaled.setAttribute("transform", `translate(${x} ${y}) scale(${scale})`);
    this.zoomText.textContent = `${Math.round(100 * scale * devicePixelRatio)} %`;
    this.boxes.forEach((box, index) => {
      const width = Math.max(box[2] * scale, LEAST_BOX);
      const height = Math.max(box[3] * scale, LEAST_BOX);
      const left = x + (box[0] + box[2] / 2) * scale - width / 2;
      const top = y + (box[1] + box[3] / 2) * scale - height / 2;
      const [under, over, text] = this.boxLayer.children[index]?.children ?? [];
      if (!text) return;
      for (const rect of [under, over]) {
        for (const [key, value] of Object.entries({x: left, y: top, width, height})) rect.setAttribute(key, value);
      }
      text.setAttribute("x", left + 2);
      text.setAttribute("y", top > 16 ? top - 4 : top + height + 14);
    });
    this.crossMark.classList.toggle("shown", this.cross !== null);
    if (this.cross) {
      this.crossMark.setAttribute("transform", `translate(${x + this.cross.column * scale} ${y + this.cross.row * scale})`);
      this.crossMark.firstChild.setAttribute("r", this.brushSlider.value);
    }
  }

  #look() {
    this.heatSlider.value = Viewer.heat;
    this.outlineBox.checked = Viewer.outlines;
    this.heatCanvas.style.setProperty("opacity", Viewer.heat / 100);
    this.root.classList.toggle("cold", Viewer.heat === 0);
    this.root.classList.toggle("unlined", !Viewer.outlines);
  }

  // The place under the pointer, and the map's value there.
  #tell({column, row}) {
    const x = Math.floor(column);
    const y = Math.floor(row);
    if (x < 0 || y < 0 || x >= this.size.width || y >= this.size.height) {
      this.valueText.textContent = "";
      return;
    }
    let value = "";
    if (this.map) {
      const {grey, width, height, low, high} = this.map;
      const here = grey[Math.floor(((y + 0.5) * height) / this.size.height) * width + Math.floor(((x + 0.5) * width) / this.size.width)];
      value = ` · anomaly ${here === 0 ? "≤ " : here === 255 ? "≥ " : ""}${(low + (here / 255) * (high - low)).toPrecision(3)}`;
    }
    this.valueText.textContent = `x ${x}, y ${y}${value}`;
  }
}
