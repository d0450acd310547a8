// Images come in, by drop, paste, choice, camera or the watched folder; each is judged, and one is looked at.

import {api, attempt, byId, element, keys, model, number, onModel, percent, say, start} from "./common.js";
import {keepImage, loadMarks, markImage, tickButtons} from "./marks.js";
import {scoreChart} from "./scores.js";
import {Viewer} from "./viewer.js";
import {bytesOf, explanation} from "./why.js";

const WATCHED = 100; // arrivals in the list; the server keeps as many
const AT_ONCE = 3; // requests that wait for the server
const KEPT = 24; // images whose maps and pictures stay in memory; of others they are asked for again
const WITH_MAP = 6; // of so few images the maps are asked for at once
const THUMB = 56; // CSS pixels
const ENDINGS = /\.(png|jpe?g|bmp|tiff?|webp|gif|avif|heic)$/i;
const WORDS = ["bad", "unsure", "good", "no verdict", "not judged"];

let entries = []; // in the order in which they came
let chosen = null;
let shown = null; // the filter: one of WORDS, or null for all
let running = 0;
let models = new Map(); // by name, as GET /models describes them
let marks = []; // as GET /api/marks lists them

const viewer = new Viewer(byId("viewer"), {hint: "Drop images anywhere on this page", onbox: index => chooseDefect(index)});

// ---- judging ----

class Entry {
  constructor(name, file) {
    this.name = name;
    this.file = file;
    this.state = "waiting";
    this.result = null;
    this.error = null;
    this.map = null;
    this.picture = null; // what the browser shows, where that is not the file itself
    this.mark = null; // what people say of it, as the server answers
    this.place = null; // by which the server knows it, once it is marked
    this.why = null; // the explanation, once somebody asked
    this.button = element("button", {type: "button", onclick: () => choose(this)});
    this.item = element("li", {}, this.button);
    this.canvas = element("canvas", {width: THUMB * 2, height: THUMB * 2, "aria-hidden": "true"});
    this.write();
  }

  get word() {
    if (this.state === "failed") return "not judged";
    return this.state === "done" ? (this.result.verdict ?? "no verdict") : null;
  }

  async judge(withMap) {
    const query = new URLSearchParams({model: model(), name: this.name});
    if (withMap) query.set("map", "png");
    return patiently(() => api(`/inspect?${query}`, {method: "POST", body: bytesOf(this.file)}));
  }

  async convert() {
    return patiently(() => api("/api/picture", {method: "POST", body: bytesOf(this.file), as: "blob"}));
  }

  // Where the server has the image; what came from this browser is kept there with its first mark.
  async kept() {
    this.place ??= await keepImage(this.file, this.name);
    return this.place;
  }

  // The mark that the image has from before, here or by somebody else.
  async findMark() {
    const digest = await digestOf(this.file);
    this.mark ??= marks.find(mark => mark.sha256 === digest) ?? null;
  }

  // The picture as the model reads it. Browsers show no TIFF, and of 16 bits only the upper ones, so the server helps.
  async visible() {
    if (this.picture) return this.picture;
    let bitmap = null;
    if (!(await isDeepPng(this.file))) bitmap = await createImageBitmap(this.file).catch(() => null);
    const size = this.result?.size;
    const fits = bitmap && (!size || (bitmap.height === size[0] && bitmap.width === size[1]));
    const picture = fits ? this.file : await this.convert();
    if (!fits) bitmap = await createImageBitmap(picture);
    this.thumbnail(bitmap);
    bitmap.close();
    this.picture = picture;
    return picture;
  }

  thumbnail(bitmap) {
    const side = this.canvas.width;
    const scale = Math.max(side / bitmap.width, side / bitmap.height);
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, (side - bitmap.width * scale) / 2, (side - bitmap.height * scale) / 2, bitmap.width * scale, bitmap.height * scale);
  }

  write() {
    const word = this.word;
    const texts = [element("span", {className: "name"}, this.name)];
    if (word === null) texts.push(element("span", {className: "sub"}, this.state === "judging" ? "being judged …" : "waits"));
    else if (word === "not judged") texts.push(element("span", {className: "sub wrong"}, word));
    else {
      texts.push(element("span", {}, element("span", {className: `verdict ${word}`}, word), element("span", {className: "sub"}, ` ${number(this.result.score)}`)));
      if (this.mark?.mark) texts.push(element("span", {className: "sub"}, `marked ${this.mark.disputed ? "differently" : this.mark.mark}`));
    }
    this.button.replaceChildren(this.canvas, element("span", {className: "texts"}, ...texts));
    this.item.hidden = shown !== null && shown !== word;
    if (this === chosen) this.button.setAttribute("aria-current", "true");
    else this.button.removeAttribute("aria-current");
  }
}

// An image of the watched folder: the server has judged it already, and keeps the newest.
class Arrived extends Entry {
  constructor({number: place, name, result, error, thumbnail}) {
    super(name, null);
    this.number = place;
    this.state = result ? "done" : "failed";
    this.result = result;
    this.error = error;
    if (thumbnail) this.showThumbnail(thumbnail);
    this.write();
  }

  async showThumbnail(address) {
    const picture = new Image();
    picture.src = address;
    await picture.decode();
    this.thumbnail(picture);
  }

  async judge() {
    return api(`/api/watch/${this.number}`);
  }

  async kept() {
    return {place: "watch", name: this.name};
  }

  async findMark() {
    this.mark ??= marks.find(mark => mark.place === "watch" && mark.name === this.name) ?? null;
  }

  async visible() {
    this.picture ??= await api(`/api/watch/${this.number}/image`, {as: "blob"});
    return this.picture;
  }
}

// As the server names files; browsers compute it on this machine and over https only.
const digestOf = async file => {
  if (!crypto.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return [...digest].map(byte => byte.toString(16).padStart(2, "0")).join("");
};

const isDeepPng = async file => {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  return head[0] === 0x89 && head[1] === 0x50 && head[24] === 16;
};

const wait = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));

// Where the server is full, wait as long as it says and ask again, so that no image is lost.
const patiently = async ask => {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 503 || !error.retryAfter) throw error;
      await wait(error.retryAfter);
    }
  }
};

// Judge what waits, the chosen one first.
const pump = async () => {
  while (running < AT_ONCE) {
    const entry = chosen?.state === "waiting" ? chosen : entries.find(one => one.state === "waiting");
    if (!entry) break;
    running++;
    entry.state = "judging";
    entry.write();
    judge(entry).finally(() => {
      running--;
      pump();
    });
  }
  tally();
};

const judge = async entry => {
  const by = model();
  try {
    const result = await entry.judge(entry === chosen || entries.length <= WITH_MAP);
    if (by !== model()) { // another model was chosen meanwhile
      entry.state = "waiting";
      return;
    }
    entry.map = result.map;
    entry.result = {...result, map: null};
    entry.state = "done";
    if (isNews(result)) await describeModels();
    await entry.visible().catch(error => (entry.error = error.message));
  } catch (error) {
    entry.state = "failed";
    entry.error = error.message;
  }
  entry.write();
  if (entry === chosen) await attempt(() => look(entry));
  forget();
};

// Maps and pictures of images that nobody has looked at for long are let go.
let lookedAt = [];
const forget = () => {
  const kept = new Set(lookedAt.slice(-KEPT));
  for (const entry of entries) {
    if (kept.has(entry) || entry === chosen || entries.length <= KEPT) continue;
    entry.map = null;
    entry.picture = null;
    entry.why = null;
  }
};

// Whether the model's file was replaced since it was described.
const isNews = result => {
  const about = models.get(result.model);
  return about?.version !== result.model_version || about.id !== result.model_id;
};

const describeModels = async () => {
  models = new Map((await api("/models")).map(about => [about.name, about]));
};

// ---- the list ----

const add = added => {
  if (added.length === 0) return;
  entries.push(...added);
  byId("list").append(...added.map(entry => entry.item));
  if (chosen === null) choose(added[0]);
  pump();
};

const tally = () => {
  const words = entries.map(entry => entry.word);
  const open = words.filter(word => word === null).length;
  byId("progress").hidden = open === 0 || entries.length === 1;
  byId("done").max = entries.length || 1;
  byId("done").value = entries.length - open;
  byId("progress-text").textContent = `${entries.length - open} of ${entries.length} judged`;
  byId("clear").hidden = entries.length === 0;
  byId("filters").hidden = entries.length < 2;
  const button = (word, text) => element("button", {type: "button", "aria-pressed": String(shown === word), onclick: () => filter(word)}, text);
  const had = document.activeElement?.closest("#filters") ? document.activeElement.textContent.replace(/\d+/, "") : null;
  byId("filters").replaceChildren(
    button(null, `all ${entries.length}`),
    ...WORDS.map(word => [word, words.filter(one => one === word).length])
      .filter(([word, n]) => n > 0 || word === shown)
      .map(([word, n]) => button(word, `${word} ${n}`)),
  );
  if (had !== null) [...byId("filters").children].find(one => one.textContent.replace(/\d+/, "") === had)?.focus();
};

const filter = word => {
  shown = word;
  entries.forEach(entry => entry.write());
  tally();
};

const choose = async entry => {
  const before = chosen;
  if (viewer.drawing && !(await putAwayBrush())) return;
  chosen = entry;
  before?.write();
  entry?.write();
  if (!entry) {
    viewer.hide();
    tell(null);
    return;
  }
  lookedAt = [...lookedAt.filter(one => one !== entry), entry].slice(-KEPT);
  entry.item.scrollIntoView({block: "nearest"});
  await attempt(() => look(entry));
};

const step = by => {
  const visible = entries.filter(entry => !entry.item.hidden);
  const at = visible.indexOf(chosen);
  const next = at < 0 ? visible[0] : visible[at + by];
  if (!next) return;
  const focused = document.activeElement?.closest("#list");
  choose(next);
  if (focused) next.button.focus();
};

// ---- looking at one ----

const look = async entry => {
  if (viewer.drawing && !(await putAwayBrush())) return;
  tell(entry);
  explain();
  if (entry.state === "failed") {
    viewer.hide();
    return;
  }
  if (entry.state !== "done") return;
  const draw = async () => {
    const picture = await entry.visible();
    if (entry !== chosen) return;
    const {defects, size} = entry.result;
    const mask = entry.mark?.mask ? `/api/marks/${entry.mark.sha256}/mask?version=${entry.mark.version}` : null;
    await viewer.show({name: entry.name, image: picture, map: entry.map, boxes: defects.map(defect => defect.box), mask, size});
  };
  await entry.findMark();
  if (entry === chosen) tellMark(entry);
  await draw();
  if (entry.map || entry !== chosen) return;
  const {map} = await entry.judge(true);
  entry.map = map;
  if (entry === chosen && !viewer.drawing) await draw();
};

const tell = entry => {
  const verdict = byId("verdict");
  byId("facts").hidden = entry?.state !== "done";
  byId("mark").hidden = entry?.state !== "done";
  if (!entry) {
    verdict.replaceChildren(element("p", {className: "sub"}, "No image yet. The verdict will be shown here."));
    return;
  }
  const name = element("p", {className: "name"}, entry.name);
  if (entry.state === "failed") {
    const again = () => {
      entry.state = "waiting";
      entry.write();
      tell(entry);
      pump();
    };
    const button = entry.file && element("button", {type: "button", onclick: again}, "Try again");
    verdict.replaceChildren(name, element("p", {className: "large"}, "not judged"), element("p", {}, sentence(entry.error)), button ?? "");
    return;
  }
  if (entry.state !== "done") {
    verdict.replaceChildren(name, element("p", {className: "sub"}, entry.state === "judging" ? "is being judged …" : "waits to be judged"));
    return;
  }
  const result = entry.result;
  const lines = [name, element("p", {className: `large verdict ${result.verdict ?? ""}`}, result.verdict ?? "no verdict")];
  if (result.type) {
    const sure = result.type_probability === null ? "" : ` (${percent(result.type_probability)})`;
    lines.push(element("p", {}, `looks like: ${result.type}${sure}`));
  }
  lines.push(element("p", {}, distanceOf(result)));
  if (result.model !== model()) lines.push(element("p", {className: "sub"}, `Judged by ${result.model}: the first model judges what arrives in the folder.`));
  if (result.stale) lines.push(element("p", {className: "note"}, "The settings were changed after the threshold was set: it may not fit any more."));
  verdict.replaceChildren(...lines);
  tellMark(entry);
  tellScores(result);
  tellDefects(result);
};

const distanceOf = ({score, threshold, unsure_threshold: unsure, ...rarity}) => {
  if (threshold === null) return `Score ${number(score)}. This model has no threshold; set one under Review.`;
  const limit = `the threshold ${number(threshold)}`;
  let words = `Score ${number(score)}, `;
  if (threshold > 0 && score > 0) words += `${number(score / threshold, 3)} times ${limit}`;
  else words += `${score > threshold ? "above" : "below"} ${limit}`;
  if (unsure !== null && score <= threshold && score > unsure) words += `, above that of unsure, ${number(unsure)}`;
  return `${words}.${rarityOf(rarity)}`;
};

const rarityOf = ({p_value: p, p_value_log10: log10, p_value_extrapolated: extrapolated}) => {
  if (p === null) return "";
  const beyond = extrapolated ? ", as far as the tail of good scores tells" : "";
  if (log10 > 6) return ` Fewer than one good part in a million scores as high${beyond}.`;
  if (p < 0.01) return ` About one good part in ${Number((1 / p).toPrecision(2)).toLocaleString("en")} scores as high${beyond}.`;
  return ` Of good parts, ${Number((100 * p).toPrecision(2))} % score as high${beyond}.`;
};

const sentence = words => `${words[0].toUpperCase()}${words.slice(1)}${words.endsWith(".") ? "" : "."}`;

const tellScores = result => {
  const about = models.get(result.model);
  byId("scores").hidden = !about?.calibration;
  if (!about?.calibration) return;
  const chart = scoreChart(about.calibration, {score: result.score, verdict: result.verdict, threshold: result.threshold, unsure: result.unsure_threshold});
  byId("scores").replaceChildren(
    element("h2", {}, "Score among good images"),
    chart,
    element("figcaption", {}, about.promise ? sentence(about.promise) : "No promise was made for the threshold."),
  );
};

// ---- defects ----

let defect = -1;

const square = (px, mm2) => (mm2 === null ? `${px.toLocaleString("en")} px` : `${px.toLocaleString("en")} px, ${Number(mm2.toPrecision(3)).toLocaleString("en")} mm²`);

const tellDefects = ({defects, pixel_threshold: limit}) => {
  defect = -1;
  if (limit === null) {
    byId("defects").replaceChildren(element("h2", {}, "Defects"), element("p", {className: "sub"}, "This model has no pixel threshold, so no places are outlined."));
    return;
  }
  if (defects.length === 0) {
    byId("defects").replaceChildren(element("h2", {}, "Defects"), element("p", {className: "sub"}, "No place lies above the pixel threshold."));
    return;
  }
  const sum = key => defects.reduce((total, one) => (total === null || one[key] === null ? null : total + one[key]), 0);
  const rows = defects.map((one, index) => {
    const [x, y, width, height] = one.box;
    const mm = one.area_mm2 === null ? null : Math.sqrt(one.area_mm2 / one.area_px);
    const extent = mm === null ? "" : `, ${number(width * mm, 2)} × ${number(height * mm, 2)} mm`;
    const times = limit > 0 ? `${number(one.peak / limit, 3)} ×` : number(one.peak);
    return element(
      "li",
      {},
      element(
        "button",
        {type: "button", onclick: () => chooseDefect(index)},
        element("span", {className: "number"}, String(index + 1)),
        element(
          "span",
          {className: "texts"},
          element("span", {}, `${square(one.area_px, one.area_mm2)}`, one.type ? ` · ${one.type}` : ""),
          element("span", {className: "sub"}, `${width} × ${height} px${extent} at x ${x}, y ${y}`),
        ),
        element("span", {className: "peak", title: "Its highest value, in pixel thresholds"}, times),
      ),
    );
  });
  byId("defects").replaceChildren(
    element("h2", {}, `Defects: ${defects.length}`),
    element("p", {className: "sub"}, `${square(sum("area_px"), sum("area_mm2"))} in all. The hottest come first; choose one to go there.`),
    element("ol", {className: "defects"}, ...rows),
  );
};

const chooseDefect = index => {
  defect = index;
  viewer.jump(index);
  [...byId("defects").querySelectorAll("button")].forEach((button, at) => {
    if (at === index) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  byId("defects").querySelector("[aria-current]")?.scrollIntoView({block: "nearest"});
};

const stepDefect = by => {
  const n = chosen?.result?.defects.length ?? 0;
  if (n > 0) chooseDefect((defect + by + n + (defect < 0 && by < 0 ? 1 : 0)) % n);
};

// ---- what people say of it ----

const tellMark = entry => {
  const {mark} = entry;
  const word = mark?.disputed ? null : (mark?.mark ?? null);
  const had = document.activeElement?.closest("#mark")?.querySelector(":focus")?.dataset.word;
  byId("ticks").replaceChildren(tickButtons(element, entry.name, word, markChosen));
  if (had) byId("ticks").querySelector(`[data-word=${had}]`)?.focus();
  byId("brush").hidden = word !== "bad" && word !== "unsure";
  byId("brush").textContent = viewer.drawing ? "Save the outline" : mark?.mask ? "Draw more of the outline" : "Outline the defect";
  byId("brush").setAttribute("aria-pressed", String(viewer.drawing));
  byId("marked").textContent = mark?.disputed ? "People have marked it differently: say which it is." : "";
};

// True once the server has it.
const markChosen = (word, shapes = []) => attempt(async () => {
  const entry = chosen;
  if (entry?.state !== "done") return false;
  if (word !== "bad" && word !== "unsure") viewer.draw(false);
  const {model: by, score} = entry.result;
  const seen = entry.mark?.latest ?? null;
  const place = await entry.kept();
  entry.mark = await markImage(place, word, {type: entry.mark?.type ?? null, note: entry.mark?.note ?? null, model: by, score, seen, shapes, keepMask: true});
  marks = [entry.mark, ...marks.filter(mark => mark.sha256 !== entry.mark.sha256)];
  entry.write();
  if (entry === chosen) tellMark(entry);
  return true;
});

const tick = word => markChosen(chosen?.mark?.mark === word && !chosen.mark.disputed ? null : word);

// Nothing that was drawn is lost: it is saved when the brush is put away, and when another image is chosen. Where that
// fails the brush stays out, and so does the image.
const putAwayBrush = async () => {
  const {shapes} = viewer;
  if (shapes.length > 0 && !(await markChosen(chosen.mark.mark, shapes))) return false;
  viewer.draw(false);
  tellMark(chosen);
  return true;
};

const brush = async () => {
  if (!viewer.drawing) {
    viewer.draw(true);
    tellMark(chosen);
    return;
  }
  if (await putAwayBrush()) await look(chosen);
};

// ---- why ----

const WHY = "pickglass.why";
let asking = null;

// While the part is open, each image that is looked at is explained; it takes a second, so only what stays is asked for.
const explain = async () => {
  asking?.abort();
  const entry = chosen;
  const place = byId("because");
  if (!entry?.why) place.replaceChildren(); // no reasons of another image
  if (!byId("why").open || entry?.state !== "done") return;
  if (!entry.why) {
    place.replaceChildren(element("p", {className: "sub"}, "Looking for the reasons …"));
    asking = new AbortController();
    const {signal} = asking;
    await wait(0.4);
    if (signal.aborted) return;
    const query = new URLSearchParams({model: entry.result.model, name: entry.name});
    try {
      entry.why = await api(`/api/explain?${query}`, {method: "POST", body: bytesOf(entry.file ?? (await entry.visible())), signal});
    } catch (error) {
      if (error.name !== "AbortError" && entry === chosen) place.replaceChildren(element("p", {className: "wrong"}, sentence(error.message)));
      return;
    }
  }
  if (entry !== chosen) return;
  place.replaceChildren(...explanation(entry.why));
  const places = place.querySelectorAll("article");
  entry.why.result.places.forEach(({x, y, box}, at) => {
    places[at].querySelector("h3").append(" ", element("button", {type: "button", "aria-label": `Go to place ${at + 1}`, onclick: () => viewer.jumpTo(box ?? [x, y, 1, 1])}, "Go there"));
  });
};

// ---- ways in ----

const stamp = () => new Date().toTimeString().slice(0, 8).replaceAll(":", "-");

const take = files => {
  const images = files.filter(file => file.type.startsWith("image/") || ENDINGS.test(file.name));
  const others = files.filter(file => !images.includes(file));
  if (others.length > 0) {
    const names = others.slice(0, 3).map(file => file.name).join(", ");
    say(`Left out, for ${others.length === 1 ? "it is no image" : `${others.length} files are no images`}: ${names}${others.length > 3 ? " …" : ""}`, "error");
  }
  add(images.map(file => new Entry(file.within ?? file.name, file)));
};

// All files of what was dropped, folders included.
const dropped = async items => {
  const files = [];
  const walk = async entry => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      files.push(Object.assign(file, {within: entry.fullPath.replace(/^\//, "")}));
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (some.length === 0) return;
      for (const one of some.sort((a, b) => a.name.localeCompare(b.name))) await walk(one);
    }
  };
  const found = [...items].filter(item => item.kind === "file").map(item => item.webkitGetAsEntry?.() ?? item.getAsFile());
  for (const one of found) {
    if (one instanceof File) files.push(one);
    else if (one) await walk(one);
  }
  return files;
};

const listenToDrops = () => {
  let inside = 0;
  const mark = () => byId("drop").classList.toggle("over", inside > 0);
  const withFiles = event => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", event => {
    if (withFiles(event)) inside++;
    mark();
  });
  document.addEventListener("dragleave", event => {
    if (withFiles(event)) inside--;
    mark();
  });
  document.addEventListener("dragover", event => withFiles(event) && event.preventDefault());
  document.addEventListener("drop", event => {
    if (!withFiles(event)) return;
    event.preventDefault();
    inside = 0;
    mark();
    attempt(async () => take(await dropped(event.dataTransfer.items)));
  });
  document.addEventListener("paste", event => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    // what is copied out of a program has no name of its own
    take(files.map(file => (file.name === "image.png" ? new File([file], `pasted ${stamp()}.png`, {type: file.type}) : file)));
  });
};

// ---- the watched folder ----

let last = 0;

const watch = async () => {
  const status = byId("watch-status");
  let told = "";
  try {
    const news = await api(`/api/watch?after=${last}`);
    last = news.last; // smaller than before where the server was started anew
    if (news.error) told = `The folder cannot be looked at: ${news.error}`;
    if (news.dropped > 0) say(`${news.dropped} images came too fast to be shown here; all were judged.`);
    const arrived = news.images.map(one => new Arrived(one));
    if (arrived.some(({result}) => result && isNews(result))) await describeModels();
    const before = chosen;
    add(arrived);
    const old = entries.filter(entry => entry instanceof Arrived).slice(0, -WATCHED).filter(entry => entry !== chosen);
    old.forEach(entry => entry.item.remove());
    if (old.length > 0) entries = entries.filter(entry => !old.includes(entry));
    if (arrived.length > 0 && before !== null && byId("follow").checked) await choose(arrived.at(-1));
  } catch (error) {
    told = error.message;
  }
  if (status.textContent !== told) status.textContent = told;
  setTimeout(watch, 1000);
};

// ---- camera ----

let stream = null;

const stopCamera = () => {
  stream?.getTracks().forEach(track => track.stop());
  stream = null;
  byId("video").srcObject = null;
  byId("camera-panel").hidden = true;
  byId("camera").setAttribute("aria-expanded", "false");
};

const startCamera = async device => {
  if (!navigator.mediaDevices) throw new Error("Browsers allow the camera only on this machine or over https. Choose images instead: phones offer their camera there.");
  stream?.getTracks().forEach(track => track.stop());
  try {
    const wish = {width: {ideal: 4096}, height: {ideal: 4096}, ...(device ? {deviceId: {exact: device}} : {facingMode: "environment"})};
    stream = await navigator.mediaDevices.getUserMedia({video: wish, audio: false});
  } catch (error) {
    stopCamera();
    const why = {NotAllowedError: "the browser was not allowed to use it", NotFoundError: "there is none", NotReadableError: "another program has it"};
    throw new Error(`No picture from the camera: ${why[error.name] ?? error.message}.`);
  }
  byId("camera-panel").hidden = false;
  byId("camera").setAttribute("aria-expanded", "true");
  byId("video").srcObject = stream;
  byId("take").disabled = true; // until there is a picture
  await byId("video").play();
  byId("take").disabled = false;
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(one => one.kind === "videoinput");
  const used = stream.getVideoTracks()[0].getSettings().deviceId;
  byId("camera-choice").hidden = cameras.length < 2;
  byId("cameras").replaceChildren(...cameras.map((one, at) => element("option", {value: one.deviceId, selected: one.deviceId === used}, one.label || `Camera ${at + 1}`)));
};

const takePicture = async () => {
  const video = byId("video");
  const canvas = element("canvas", {width: video.videoWidth, height: video.videoHeight});
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise(resolve => canvas.toBlob(resolve, "image/png")); // no traces of JPEG for the model
  const entry = new Entry(`camera ${stamp()}.png`, new File([blob], "camera.png", {type: "image/png"}));
  add([entry]);
  choose(entry);
};

// ---- the page ----

start();
tell(null);
listenToDrops();
byId("choose").onclick = () => byId("files").click();
byId("files").onchange = () => {
  take([...byId("files").files]);
  byId("files").value = "";
};
byId("camera").onclick = () => (stream ? stopCamera() : attempt(startCamera));
byId("cameras").onchange = () => attempt(() => startCamera(byId("cameras").value));
byId("camera-stop").onclick = () => {
  stopCamera();
  byId("camera").focus();
};
byId("take").onclick = () => attempt(takePicture);
byId("stop").onclick = () => {
  const waiting = entries.filter(entry => entry.state === "waiting");
  waiting.forEach(entry => entry.item.remove());
  entries = entries.filter(entry => entry.state !== "waiting");
  say(`${waiting.length} images were not judged, and left the list.`);
  if (!entries.includes(chosen)) choose(entries[0] ?? null);
  tally();
};
byId("clear").onclick = () => {
  entries = [];
  lookedAt = [];
  shown = null;
  byId("list").replaceChildren();
  choose(null);
  tally();
};
byId("brush").onclick = () => attempt(brush);
byId("why").open = localStorage.getItem(WHY) === "open";
byId("why").ontoggle = () => {
  localStorage.setItem(WHY, byId("why").open ? "open" : "closed");
  explain();
};
attempt(async () => (marks = (await loadMarks()).marks));
keys({
  g: () => tick("good"),
  b: () => tick("bad"),
  u: () => tick("unsure"),
  n: () => step(1),
  p: () => step(-1),
  ArrowRight: () => step(1),
  ArrowLeft: () => step(-1),
  d: () => stepDefect(1),
  D: () => stepDefect(-1),
  h: () => viewer.toggleHeat(),
  o: () => viewer.setOutlines(!Viewer.outlines),
  "+": () => viewer.zoomBy(1.5),
  "-": () => viewer.zoomBy(1 / 1.5),
  0: () => viewer.fit(),
  1: () => viewer.natural(),
});
addEventListener("pagehide", stopCamera);
if (byId("inspect").dataset.watch) watch();
// Another model judges everything anew.
onModel(() => attempt(async () => {
  await describeModels();
  for (const entry of entries) {
    if (entry instanceof Arrived) continue; // the server judges them, by its first model
    if (entry.state === "done" || entry.state === "failed") entry.state = "waiting";
    entry.map = null;
    entry.why = null;
    entry.write();
  }
  pump();
  if (chosen) await look(chosen);
}));
