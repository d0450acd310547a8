// Teach: what people have marked, an update of the model by it, before and after, and the log.

import {api, attempt, byId, element, model, number, onModel, say, start} from "./common.js";
import {keepUserName, loadMarks, markImage, tickButtons, userName} from "./marks.js";

start();

const PAGE = 120; // marks that are drawn at once
const WAIT = 700; // milliseconds between two looks at an update

const verdict = word => (word ? element("span", {className: `verdict ${word}`}, word) : "–");
const images = n => (n === 1 ? "1 image" : `${n} images`);

let marks = [];
let drawn = 0;
let current = null; // the job that is shown
let timer = null;

// ---- the marks ----

const fits = mark => {
  const word = byId("word").value;
  const name = byId("name").value.toLowerCase();
  return (!word || mark.counts_as === word) && mark.name.toLowerCase().includes(name);
};

const describe = mark => {
  const who = mark.user ? ` by ${mark.user}` : "";
  const score = mark.score === null ? "" : `, score ${number(mark.score)}`;
  return `${new Date(mark.time).toLocaleString()}${who}${score}`;
};

const change = (mark, word, more = {}) =>
  attempt(async () => {
    const seen = mark.latest;
    await markImage(mark, word, {type: mark.type, note: mark.note, seen, keepMask: true, ...more});
    await refresh();
  });

const card = mark => {
  const known = mark.place !== null;
  const picture = known
    ? element("img", {loading: "lazy", alt: mark.name, src: `/api/marks/${mark.sha256}/picture?side=280`})
    : element("div", {className: "absent"}, "The image is not here");
  if (known) picture.onerror = () => picture.replaceWith(element("div", {className: "absent"}, "The image is not here any more"));
  const isDefect = mark.counts_as !== "good" && !mark.disputed;
  const type = element("input", {value: mark.type || "", maxLength: 60, placeholder: "type of defect", "aria-label": `type of the defect of ${mark.name}`, list: "types"});
  type.onchange = () => change(mark, mark.mark, {type: type.value.trim() || null});
  const draw = element("button", {type: "button", onclick: () => attempt(() => outline(mark))}, mark.mask ? "Outlined: draw again" : "Outline the defect");
  return element(
    "li",
    {data: {sha256: mark.sha256, mark: mark.counts_as}},
    picture,
    element("h3", {title: mark.name}, mark.name.split("/").slice(mark.place === "kept" ? -1 : -2).join("/")),
    mark.disputed ? element("small", {}, verdict("unsure"), ": people disagree, say which it is") : verdict(mark.counts_as),
    known ? tickButtons(element, mark.name, mark.disputed ? null : mark.mark, word => change(mark, word)) : null,
    known && isDefect ? type : null,
    known && isDefect ? draw : null,
    element("small", {}, describe(mark)),
  );
};

const drawMarks = (least = PAGE) => {
  const shown = marks.filter(fits);
  drawn = Math.min(Math.max(least, PAGE), shown.length);
  byId("marks").replaceChildren(...shown.slice(0, drawn).map(card));
  byId("more").hidden = drawn === shown.length;
  byId("empty").hidden = marks.length > 0;
  byId("count").textContent = marks.length ? `${shown.length} of ${images(marks.length)}` : "";
};

byId("word").onchange = byId("name").oninput = () => drawMarks();
byId("more").onclick = () => drawMarks(drawn + PAGE);

byId("table").onchange = event =>
  attempt(async () => {
    const [file] = event.target.files;
    if (!file) return;
    event.target.value = "";
    const body = new Blob([file], {type: "text/csv"});
    const {added, known, disputed} = await api("/api/marks/table", {method: "POST", body});
    say(`${added} new marks read${known ? `, ${known} were there already` : ""}.`);
    if (disputed.length) say(`Here, these were marked otherwise: ${disputed.slice(0, 5).join(", ")}. Say which they are.`, "error");
    await refresh();
  });

// ---- the outline of a defect ----

const outline = async mark => {
  const dialog = byId("outline");
  const {Viewer} = await import("./viewer.js");
  byId("outline-title").textContent = mark.name;
  dialog.showModal();
  const viewer = new Viewer(dialog.querySelector(".place"));
  const close = () => {
    viewer.close();
    dialog.close();
  };
  const button = value => dialog.querySelector(`button[value=${value}]`);
  dialog.oncancel = () => viewer.close();
  button("close").onclick = close;
  button("save").onclick = async () => {
    const {shapes} = viewer;
    close();
    if (shapes.length) await change(mark, mark.mark, {shapes, keepMask: true});
  };
  try {
    const address = `/api/marks/${mark.sha256}`;
    const {height, width} = await api(`${address}/size`);
    await viewer.show({name: mark.name, image: `${address}/picture?side=2048`, mask: mark.mask ? `${address}/mask` : null, size: [height, width]});
    viewer.draw(true);
  } catch (error) {
    close();
    throw error;
  }
};

// ---- the update ----

const list = (sentence, names) => [
  element("p", {}, sentence),
  element("ul", {}, ...names.slice(0, 10).map(name => element("li", {}, name)), names.length > 10 ? element("li", {}, `and ${names.length - 10} more`) : null),
];

const look = async () => {
  const usable = await api(`/api/teach/marks?model=${encodeURIComponent(model())}`);
  const {good, bad, unsure, disputed, missing, problem} = usable;
  const running = current?.state === "running";
  byId("usable").textContent = problem || `${images(good)} marked good to learn, ${bad} bad to watch over it, ${unsure} unsure and left alone.`;
  byId("begin").textContent = `Update ${usable.model} with ${images(good)}`;
  byId("begin").disabled = Boolean(problem) || good === 0 || running || (missing.length > 0 && !byId("leave-out")?.checked);
  const about = byId("disputed");
  about.hidden = !disputed.length;
  about.replaceChildren(...(disputed.length ? list("People have marked these images differently. They are left alone until somebody marks them again, below:", disputed.map(mark => mark.name)) : []));
  const absent = byId("missing");
  const wanted = JSON.stringify(missing);
  absent.hidden = !missing.length;
  if (absent.dataset.missing !== wanted) {
    absent.dataset.missing = wanted;
    absent.replaceChildren(
      ...(missing.length ? list("These images are not there as they were marked:", missing.map(one => `${one.name}: ${one.error}`)) : []),
      missing.length ? element("label", {}, element("input", {type: "checkbox", id: "leave-out", onchange: () => attempt(look)}), " go on without them") : null,
    );
  }
  byId("begin").onclick = () =>
    attempt(async () => {
      byId("begin").disabled = true;
      const leaveOut = missing.map(one => one.sha256);
      show(await api("/api/teach", {method: "POST", json: {model: model(), user: userName(), leave_out: leaveOut}}));
    });
};

// A score of an image that was learned flatters, so it says how each came about.
const JUDGED = {learned: "learned", "left out": "as if not learned", "held back": "not learned", known: "known before", bad: "not learned", unsure: "not learned"};

const table = outcome => {
  const rows = outcome.images.map(one =>
    element(
      "tr",
      {className: one.verdict === one.verdict_before ? "" : "changed"},
      element("th", {scope: "row"}, one.name),
      element("td", {}, verdict(one.mark)),
      element("td", {className: "number"}, number(one.score_before)),
      element("td", {}, verdict(one.verdict_before)),
      element("td", {className: "number"}, number(one.score)),
      element("td", {}, verdict(one.verdict)),
      element("td", {}, JUDGED[one.judged]),
    ),
  );
  const heads = ["image", "marked", "score before", "verdict before", "score after", "verdict after", "how judged"];
  return element(
    "div",
    {className: "scroll", tabIndex: 0, role: "region", "aria-label": "Each marked image before and after"},
    element("table", {}, element("thead", {}, element("tr", {}, ...heads.map(head => element("th", {scope: "col"}, head)))), element("tbody", {}, ...rows)),
  );
};

const figure = (what, before, after, n) => (after === null ? null : element("span", {}, `${what}: `, element("b", {}, `${before ?? "–"} → ${after}`), ` of ${n}`));

const drawOutcome = outcome => {
  const {before, after} = outcome;
  const count = word => outcome.images.filter(one => one.mark === word && !(word === "good" && one.judged === "known")).length;
  byId("outcome").replaceChildren(
    ...[
      element(
        "p",
        {className: "figures"},
        figure("good images called bad", outcome.false_alarms_before, outcome.false_alarms, count("good")),
        figure("bad images found", outcome.bad_found_before, outcome.bad_found, count("bad")),
        element("span", {}, "bad above: ", element("b", {}, `${number(before.image_threshold)} → ${number(after.image_threshold)}`)),
        before.unsure_threshold === after.unsure_threshold ? null : element("span", {}, "unsure above: ", element("b", {}, `${number(before.unsure_threshold)} → ${number(after.unsure_threshold)}`)),
        element("span", {}, `version ${before.version} → ${after.version}`),
      ),
      outcome.lost.length ? element("p", {className: "note"}, `These bad images are found now and would be missed: ${outcome.lost.join(", ")}`) : null,
      outcome.learned_bad.length ? element("p", {className: "note"}, `Marked bad, but learned as good when the model was fitted: ${outcome.learned_bad.join(", ")}. No update takes that back: fit anew without them.`) : null,
      outcome.suspicious.length ? element("p", {className: "note"}, `These look like none of the other new images; look whether they are good: ${outcome.suspicious.join(", ")}`) : null,
      element("p", {}, outcome.sentence),
      ...outcome.notes.map(note => element("p", {}, note)),
      table(outcome),
    ].filter(Boolean),
  );
};

const SAID = {
  running: () => "The model is being updated. It judges on meanwhile, and this page may be closed.",
  ready: () => "The update is ready. Compare, and decide.",
  failed: job => `The update failed: ${job.error}`,
  ended: job => `The update was ended: ${job.error}`,
  taking: () => "The update is being taken.",
  taken: job => `The update was taken${by(job.decided)}. The model judges with it.`,
  left: job => `The model was left as it was${by(job.decided)}.`,
};
const by = ({user, time}) => `${user ? ` by ${user}` : ""} (${new Date(time).toLocaleString()})`;

const show = job => {
  clearTimeout(timer);
  current = job;
  byId("job").hidden = !job;
  if (!job) return;
  byId("job-state").textContent = SAID[job.state](job);
  const isRunning = job.state === "running";
  const progress = byId("job-progress");
  progress.hidden = !isRunning;
  if (isRunning) {
    const bar = progress.querySelector("progress");
    if (job.total) Object.assign(bar, {max: job.total, value: job.done});
    else bar.removeAttribute("value");
    progress.querySelector("span").textContent = job.stage ? `${job.stage} ${job.done} of ${job.total}` : "starting";
    timer = setTimeout(() => attempt(async () => show(await api(`/api/teach/${job.id}`))), WAIT);
  } else {
    attempt(look);
  }
  byId("outcome").hidden = !job.outcome;
  if (job.outcome) drawOutcome(job.outcome);
  byId("decide").hidden = job.state !== "ready";
  byId("take").textContent = job.outcome?.lost.length ? "Take the update all the same" : "Take the update";
};

const decide = what =>
  attempt(async () => {
    const lost = current.outcome.lost.length;
    if (what === "take" && lost && !confirm(`${images(lost)} marked bad would be missed from now on. Take the update all the same?`)) return;
    show(await api(`/api/teach/${current.id}/${what}`, {method: "POST", json: {user: userName(), lost_is_known: lost > 0}}));
    await Promise.all([drawLog(), look()]);
  });

byId("take").onclick = () => decide("take");
byId("leave").onclick = () => decide("leave");
byId("stop").onclick = () => attempt(async () => show(await api(`/api/teach/${current.id}/stop`, {method: "POST"})));

// ---- the log ----

const thresholds = then => {
  if (!then) return "–";
  const {version, image_threshold: bad, unsure_threshold: unsure} = then;
  const parts = [version === undefined ? null : `version ${version}`, bad === undefined ? null : `bad above ${number(bad)}`, unsure ? `unsure above ${number(unsure)}` : null];
  return parts.filter(Boolean).join(", ") || JSON.stringify(then);
};

const drawLog = async () => {
  const {entries} = await api("/api/audit");
  const heads = ["when", "what", "model", "by", "before", "after", "note"];
  const rows = entries.map(one =>
    element("tr", {}, ...[new Date(one.time).toLocaleString(), one.what, one.model, one.user || "–", thresholds(one.before), thresholds(one.after), one.note || ""].map(text => element("td", {className: "text"}, text))),
  );
  byId("log").querySelector(".scroll").replaceChildren(
    entries.length
      ? element("table", {}, element("thead", {}, element("tr", {}, ...heads.map(head => element("th", {scope: "col", className: "text"}, head)))), element("tbody", {}, ...rows))
      : element("p", {}, "Nothing yet."),
  );
};

// ---- start ----

const refresh = async () => {
  const found = await loadMarks();
  marks = found.marks;
  byId("types").replaceChildren(...found.types.map(type => element("option", {value: type})));
  drawMarks(drawn);
  await look();
};

byId("user").value = userName() || "";
byId("user").onchange = event => keepUserName(event.target.value);

onModel(() =>
  attempt(async () => {
    const {jobs} = await api(`/api/teach?model=${encodeURIComponent(model())}`);
    show(jobs[0] || null);
    await Promise.all([refresh(), drawLog()]);
  }),
);

// Marks of other people and other tabs come when one looks at the page again.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) attempt(refresh);
});
