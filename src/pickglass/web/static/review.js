// The review page: a data set with its scores, two thresholds to drag, what they do, and the images.

import {api, attempt, byId, element, keys, model, number, onModel, percent, say, start} from "./common.js";
import {keepUserName, loadMarks, markImage, tickButtons, userName, WORDS} from "./marks.js";
import {auroc, confusion, nearest, outcomeOf, OUTCOMES, ratesOf, sortedBy, VERDICTS, verdictOf} from "./review_figures.js";
import {ScoreGraph} from "./review_graph.js";
import {Grid} from "./review_grid.js";
import {Viewer} from "./viewer.js";

const OFTEN = 500; // ms between two looks for new scores
const SETTLED = 60; // ms that a card must show the same image: what only flies past is not fetched
const SELDOM = 4000; // once all images are judged: somebody else may set thresholds
const KNOWN = ["good", "bad", "not known"];
const MOST = 500; // images of a report, see reports.py

start();
if (byId("grid")) review();

function review() {
  // One entry an image, see review_figures.js; `fair`: 1 where the image judges the model.
  const images = {key: null, names: [], scores: new Float64Array(), truths: new Int8Array(), types: [], times: [], fair: new Uint8Array()};
  let errors = new Map();
  let marks = new Map(); // what people said of images, by name
  let shown = []; // numbers of the images in the grid
  let saved = null; // the model as the server has it: thresholds, version
  let now = {bad: null, unsure: null}; // the thresholds on this page
  let wish = null; // the promise that they keep, as it is saved; null: chosen by hand
  let promise = null; // the same in words
  let next = 0;
  let stage = "";
  let turn = 0; // another one whenever everything is asked for anew
  const other = {name: "", scores: new Float64Array(), thresholds: {bad: null, unsure: null}, next: 0, version: 0};
  let crossed = null; // the chosen cell of two models: [verdict of this one, verdict of the other]

  const graph = new ScoreGraph(byId("graph"), {onmove: thresholds => move(thresholds)});
  const grid = new Grid(byId("grid"), {draw, onopen: open});

  // ---- thresholds ----

  function move(thresholds, kept = null, sentence = null) {
    now = thresholds;
    wish = kept;
    promise = sentence;
    byId("worth").textContent = told(sentence ?? (same(now, saved) ? saved.sentence : "chosen by hand: no rate of false alarms is promised"));
    graph.set(now);
    follow();
  }

  const told = words => (words ? `${words[0].toUpperCase()}${words.slice(1).replace(/\.$/, "")}.` : "");
  const same = (thresholds, file) => file && thresholds.bad === file.threshold && thresholds.unsure === file.unsure_threshold;

  // Whether there is something to save: other numbers, or the same ones with another promise.
  const isChanged = () => !same(now, saved) || (wish !== null && promise !== saved.sentence);

  // Everything that hangs on thresholds.
  function follow() {
    showThresholds();
    showCounts();
    if (hangsOnThresholds()) choose();
    else grid.redraw();
  }

  function showThresholds() {
    const {bad, unsure} = now;
    const write = (field, value) => {
      if (document.activeElement !== field) field.value = value === null ? "" : Number(value.toPrecision(7));
    };
    write(byId("bad"), bad);
    write(byId("unsure"), unsure);
    byId("has-unsure").checked = unsure !== null;
    byId("unsure").disabled = unsure === null;
    const changed = saved && isChanged();
    byId("save").disabled = !changed || bad === null;
    byId("back").disabled = !changed;
    byId("version").textContent = saved ? `${saved.name}, version ${saved.version}${changed ? ", not saved" : ""}` : "";
  }

  byId("bad").onchange = () => {
    const bad = byId("bad").valueAsNumber;
    if (Number.isNaN(bad)) return showThresholds();
    move({bad, unsure: now.unsure === null ? null : Math.min(now.unsure, bad)});
    graph.show(columns());
  };
  byId("unsure").onchange = () => {
    const unsure = byId("unsure").valueAsNumber;
    if (Number.isNaN(unsure) || now.bad === null) return showThresholds();
    move({bad: now.bad, unsure: Math.min(unsure, now.bad)});
    graph.show(columns());
  };
  byId("has-unsure").onchange = () => {
    if (now.bad === null) return showThresholds();
    move({bad: now.bad, unsure: byId("has-unsure").checked ? below(now.bad) : null});
  };

  // A first threshold of unsure: a twentieth of the images lies between it and that of bad.
  function below(bad) {
    const scores = images.scores.filter(score => score < bad).sort();
    return scores.length ? scores[Math.floor(0.95 * (scores.length - 1))] : bad;
  }

  byId("promise").onsubmit = event => {
    event.preventDefault();
    attempt(async () => {
      const asked = {promise: byId("promise-kind").value, false_alarm: byId("alarms").valueAsNumber / 100};
      if (byId("unsure-share").value) asked.unsure = byId("unsure-share").valueAsNumber / 100;
      const found = await api(`/api/review/promise?model=${encodeURIComponent(model())}`, {method: "POST", json: asked});
      if (found.reachable) {
        move({bad: found.threshold, unsure: found.unsure_threshold}, asked, found.sentence);
        graph.show(columns());
        return;
      }
      byId("worth").textContent = found.sentence;
      if (found.possible !== null) {
        const share = Number((100 * found.possible).toPrecision(3));
        byId("worth").append(" ", element("button", {type: "button", onclick: () => {
          byId("alarms").value = share;
          byId("promise").requestSubmit();
        }}, `Take ${share} %`));
      }
    });
  };

  byId("save").onclick = () => attempt(async () => {
    const json = {version: saved.version};
    if (wish) json.promise = wish;
    else json.by_hand = {threshold: now.bad, unsure_threshold: now.unsure};
    json.user = userName();
    try {
      take(await api(`/api/review/thresholds?model=${encodeURIComponent(model())}`, {method: "POST", json}));
      say(`Saved into ${saved.name}, which is version ${saved.version} now.`);
    } catch (error) {
      if (error.status === 409) await poll(turn);
      throw error;
    }
  });
  byId("back").onclick = () => take(saved);
  byId("take-theirs").onclick = () => take(theirs);
  byId("keep-mine").onclick = () => {
    saved = theirs;
    byId("theirs").hidden = true;
    showThresholds();
  };

  // The thresholds of the file are those of the page from now on.
  function take(file) {
    saved = file;
    byId("theirs").hidden = true;
    move({bad: file.threshold, unsure: file.unsure_threshold});
    graph.show(columns());
  }

  let theirs = null;
  function learn(file) {
    if (saved === null || saved.name !== file.name || saved.id !== file.id) return take(file);
    if (file.version === saved.version) return undefined;
    if (!isChanged()) {
      take(file);
      say(`Somebody has set other thresholds: ${file.name} is version ${file.version} now.`);
      return undefined;
    }
    theirs = file;
    const unsure = file.unsure_threshold === null ? "" : `, unsure above ${number(file.unsure_threshold)}`;
    byId("theirs").hidden = false;
    byId("theirs").firstElementChild.textContent =
      `Somebody else has saved other thresholds meanwhile (version ${file.version}): bad above ${number(file.threshold)}${unsure}. Yours are not saved.`;
    return undefined;
  }

  // ---- counts ----

  const columns = () => ({scores: images.scores, truths: images.truths, counts: counts()});

  // Which images count: those that judge the model, or all.
  let all = new Uint8Array(0);
  function counts() {
    if (byId("scope").value === "fair") return images.fair;
    if (all.length !== images.scores.length) all = new Uint8Array(images.scores.length).fill(1);
    return all;
  }

  const cells = [...Array(9).keys()].map(place => {
    const button = element("button", {type: "button", "aria-pressed": "false", onclick: () => cell(place)}, "0");
    return button;
  });
  byId("matrix").append(...KNOWN.map((known, row) => element(
    "tr",
    {},
    element("th", {scope: "row"}, known),
    ...VERDICTS.map((verdict, column) => element(
      "td",
      {className: verdict === "unsure" ? "unsure" : row < 2 && verdict !== KNOWN[row] ? "wrong" : ""},
      cells[3 * row + column],
    )),
  )));

  function fill(button, n, meaning) {
    const label = `${n} images, ${meaning}`;
    if (button.getAttribute("aria-label") === label) return;
    button.textContent = n;
    button.classList.toggle("zero", n === 0);
    button.setAttribute("aria-label", label);
  }

  // A cell is a filter: by what is known and by verdict. The same cell again: all images.
  function cell(place) {
    const [truth, verdict] = [["0", "1", "-1"][Math.floor(place / 3)], VERDICTS[place % 3]];
    const pressed = cells[place].getAttribute("aria-pressed") === "true";
    crossed = null;
    byId("truth").value = pressed ? "" : truth;
    byId("verdict").value = pressed ? "" : verdict;
    choose();
  }

  const figure = (name, part, whole, of) => element(
    "dl",
    {},
    element("dt", {}, name),
    element("dd", {}, whole ? percent(part / whole) : "–"),
    element("dd", {className: "sub"}, whole ? `${part} of ${whole} ${of}` : `no ${of}`),
  );

  function showCounts() {
    const matrix = confusion(images, now, counts());
    matrix.forEach((n, place) => {
      fill(cells[place], n, `known as ${KNOWN[Math.floor(place / 3)]}, judged ${VERDICTS[place % 3]}`);
    });
    const rates = ratesOf(matrix);
    byId("rates").replaceChildren(
      figure("False alarms", rates.alarms, rates.good, "good images"),
      figure("Missed", rates.missed, rates.bad, "bad images"),
      figure("Unsure", rates.unsure, rates.all, "images"),
    );
    if (other.name) showBoth(matrix);
  }

  function pressCells() {
    const [truth, verdict] = [byId("truth").value, byId("verdict").value];
    cells.forEach((button, place) => {
      const pressed = !crossed && truth === ["0", "1", "-1"][Math.floor(place / 3)] && verdict === VERDICTS[place % 3];
      button.setAttribute("aria-pressed", String(pressed));
    });
    crosses.forEach((button, place) => {
      const pressed = crossed !== null && crossed[0] === Math.floor(place / 3) && crossed[1] === place % 3;
      button.setAttribute("aria-pressed", String(pressed));
    });
  }

  // ---- two models ----

  const crosses = [...Array(9).keys()].map(place => element("button", {type: "button", "aria-pressed": "false", onclick: () => {
    const [mine, its] = [Math.floor(place / 3), place % 3];
    crossed = crossed && crossed[0] === mine && crossed[1] === its ? null : [mine, its];
    byId("verdict").value = "";
    choose();
  }}, "0"));

  byId("other").onchange = () => attempt(async () => {
    other.name = byId("other").value;
    other.next = 0;
    other.scores = new Float64Array(images.scores.length).fill(NaN);
    crossed = null;
    byId("compared").hidden = !other.name;
    byId("sort").querySelector("[value=apart]").hidden = !other.name;
    if (!other.name && byId("sort").value === "apart") byId("sort").value = "high";
    if (other.name) await pollOther(turn);
    scored++;
    follow();
    choose();
  });

  let areas = {}; // what does not hang on thresholds
  function showBoth(matrix) {
    const counted = counts();
    const row = (name, area, rates) => {
      const share = (part, whole) => (whole ? `${percent(part / whole)} (${part})` : "–");
      return element(
        "tr",
        {},
        element("th", {scope: "row"}, name),
        element("td", {}, area === null ? "–" : area.toFixed(3)),
        element("td", {}, share(rates.alarms, rates.good)),
        element("td", {}, share(rates.missed, rates.bad)),
        element("td", {}, share(rates.unsure, rates.all)),
      );
    };
    const its = {scores: other.scores, truths: images.truths};
    if (areas.turn !== scored || areas.counted !== counted || areas.name !== other.name) {
      areas = {turn: scored, counted, name: other.name, mine: auroc(images, counted), its: auroc(its, counted)};
    }
    byId("both").replaceChildren(
      row(model(), areas.mine, ratesOf(matrix)),
      row(other.name, areas.its, ratesOf(confusion(its, other.thresholds, counted))),
    );
    const pairs = new Array(9).fill(0);
    for (let i = 0; i < images.scores.length; i++) {
      if (!counted[i]) continue;
      const [mine, theirs_] = [verdictOf(images.scores[i], now), verdictOf(other.scores[i], other.thresholds)];
      if (mine >= 0 && theirs_ >= 0) pairs[3 * mine + theirs_]++;
    }
    byId("corner").textContent = `${model()} ↓ ${other.name} →`;
    if (!byId("cross").children.length) {
      byId("cross").append(...VERDICTS.map((verdict, mine) => element(
        "tr", {}, element("th", {scope: "row"}, verdict), ...VERDICTS.map((_, its_) => element("td", {className: mine === its_ ? "" : "wrong"}, crosses[3 * mine + its_])),
      )));
    }
    pairs.forEach((n, place) => {
      fill(crosses[place], n, `${VERDICTS[Math.floor(place / 3)]} by ${model()}, ${VERDICTS[place % 3]} by ${other.name}`);
    });
  }

  // ---- which images are shown ----

  const hangsOnThresholds = () => byId("verdict").value || byId("outcome").value || crossed || byId("sort").value === "near";

  function choose(stay = false) {
    const text = byId("text").value.trim().toLowerCase();
    const [verdict, truth, type, outcome, marked] = ["verdict", "truth", "type", "outcome", "marked"].map(name => byId(name).value);
    const day = (name, end) => (byId(name).value ? new Date(`${byId(name).value}T${end}`).getTime() / 1000 : null);
    const [since, until] = [day("since", "00:00:00"), day("until", "23:59:59.999")];
    const counted = counts();
    const chosen = [];
    for (const i of ordered()) {
      if (!counted[i]) continue;
      const judged = verdictOf(images.scores[i], now);
      if (verdict && VERDICTS[judged] !== verdict) continue;
      if (truth && images.truths[i] !== Number(truth)) continue;
      if (type && images.types[i] !== type) continue;
      if (outcome && OUTCOMES[outcomeOf(judged, images.truths[i])] !== outcome) continue;
      if (marked && (marks.get(images.names[i])?.counts_as ?? "not") !== marked) continue;
      if (crossed && (judged !== crossed[0] || verdictOf(other.scores[i], other.thresholds) !== crossed[1])) continue;
      if (since !== null && !(images.times[i] >= since)) continue;
      if (until !== null && !(images.times[i] <= until)) continue;
      if (text && !images.names[i].toLowerCase().includes(text)) continue;
      chosen.push(i);
    }
    shown = chosen;
    grid.show(shown, stay);
    pressCells();
    const words = [
      verdict && `judged ${verdict}`,
      truth && `known as ${KNOWN[truth === "-1" ? 2 : Number(truth)]}`,
      type, outcome,
      marked && (marked === "not" ? "not marked" : `marked ${marked}`),
      crossed && `${VERDICTS[crossed[0]]} by ${model()} and ${VERDICTS[crossed[1]]} by ${other.name}`,
      (since ?? until) !== null && "of this time",
      text && `named ${text}`,
      counted !== all && images.fair.includes(0) && "not learned by the model",
    ].filter(Boolean);
    byId("shown").textContent = `${shown.length} of ${images.scores.length} images${words.length ? `: ${words.join(", ")}` : ""}`;
    byId("report").disabled = !shown.length || shown.length > MOST;
    byId("report").title = shown.length > MOST ? `A report holds ${MOST} images at most: choose fewer` : "";
  }

  // All images in the chosen order; what has no score comes last. Most orders do not hang on thresholds, and are kept.
  let kept = {by: "", turn: -1, order: new Uint32Array()};
  let rising = {turn: -1, order: new Uint32Array()};
  let scored = 0; // another one whenever scores have come
  function ordered() {
    const by = byId("sort").value;
    if (by === "near" && now.bad !== null) return nearest(images.scores, lowest(), now.unsure === null ? [now.bad] : [now.unsure, now.bad]);
    if (kept.by === by && kept.turn === scored) return kept.order;
    kept = {by, turn: scored, order: lowest()};
    if (by === "name") {
      const collator = new Intl.Collator("en", {numeric: true});
      kept.order = Uint32Array.from(images.names.keys()).sort((i, j) => collator.compare(images.names[i], images.names[j]));
    } else if (by === "high") kept.order = sortedBy(images.scores.map(score => -score));
    else if (by === "apart") kept.order = sortedBy(apart());
    return kept.order;
  }

  function lowest() {
    if (rising.turn !== scored) rising = {turn: scored, order: sortedBy(images.scores)};
    return rising.order;
  }

  // Two models have scores of their own, so what is compared are the places in their orders.
  function apart() {
    const places = scores => {
      const place = new Float64Array(scores.length);
      sortedBy(scores).forEach((i, at) => (place[i] = at));
      return place;
    };
    const [mine, its] = [places(images.scores), places(other.scores)];
    return images.scores.map((score, i) => (Number.isNaN(score) || Number.isNaN(other.scores[i]) ? NaN : -Math.abs(mine[i] - its[i])));
  }

  let waiting = 0;
  byId("filters").oninput = event => {
    if (event.target.id === "heat") return grid.redraw();
    if (event.target.id === "scope") {
      graph.show(columns());
      showCounts();
    }
    if (event.target.id === "verdict") crossed = null;
    clearTimeout(waiting);
    if (event.target.id === "use-marks") return useMarks();
    waiting = setTimeout(() => choose(), event.target.id === "text" ? 120 : 0);
    return undefined;
  };
  byId("filters").onsubmit = event => event.preventDefault();
  byId("all").onclick = () => {
    byId("filters").reset();
    byId("scope").value = "";
    crossed = null;
    useMarks();
  };

  // ---- marks ----

  byId("user").value = userName() ?? "";
  byId("user").onchange = () => keepUserName(byId("user").value);

  async function pollMarks(mine) {
    const found = await loadMarks();
    if (mine !== turn) return;
    const ours = found.marks.filter(mark => mark.place === "data");
    const same = ours.length === marks.size && ours.every(mark => marks.get(mark.name)?.latest === mark.latest);
    if (same) return;
    marks = new Map(ours.map(mark => [mark.name, mark]));
    useMarks();
  }

  // What is known of an image is what people said of it last; where they are unsure, or disagree, nothing is known.
  function useMarks(stay = false) {
    const words = {good: 0, bad: 1, unsure: -1};
    const used = byId("use-marks").checked;
    images.names.forEach((name, i) => {
      const word = used ? marks.get(name)?.counts_as : null;
      images.truths[i] = word ? words[word] : images.labels[i] ?? -1;
    });
    scored++;
    graph.show(columns());
    showCounts();
    choose(stay);
  }

  // One after the other: each word is said by somebody who has seen the answer to the one before.
  let marking = Promise.resolve();
  function mark(i, word) {
    const name = images.names[i];
    marking = marking.then(() => attempt(async () => {
      const before = marks.get(name);
      const score = Number.isNaN(images.scores[i]) ? null : images.scores[i];
      const again = before?.mark === word && !before.disputed; // the same word: the mark is taken back
      const said = await markImage({place: "data", name}, again ? null : word, {
        type: before?.type, seen: before?.latest ?? 0, model: model(), score, keepMask: true,
      });
      if (said.counts_as === null) marks.delete(name);
      else marks.set(name, said);
      useMarks(true);
      if (opened === i) showMark(i);
    }));
  }

  const markKey = word => () => {
    if (opened >= 0) mark(opened, word);
    else if (document.activeElement === byId("grid") && grid.item !== undefined) {
      mark(grid.item, word);
      grid.choose(grid.chosen + 1);
    }
  };
  keys(Object.fromEntries(Object.entries(WORDS).map(([key, word]) => [key, markKey(word)])));

  // ---- cards ----

  const heated = byId("heat");
  const pictureOf = i => {
    const heat = heated.checked && !Number.isNaN(images.scores[i]) ? `&heat=${encodeURIComponent(model())}&id=${saved.id}` : "";
    return `/api/review/images/${i}/thumbnail?key=${images.key}${heat}`;
  };

  const verdictMark = place => element("span", {className: `verdict ${VERDICTS[place] ?? ""}`}, VERDICTS[place] ?? "no verdict");
  const knownAs = i => {
    const [truth, said] = [images.truths[i], marks.get(images.names[i])];
    return (truth === 1 && (said?.type ?? images.types[i])) || KNOWN[truth < 0 ? 2 : truth];
  };
  const markOf = i => {
    const said = marks.get(images.names[i]);
    return said?.counts_as ? element("span", {className: `marked ${said.counts_as}`, title: `marked ${said.counts_as}${said.user ? ` by ${said.user}` : ""}`}, said.disputed ? "disputed" : `✎ ${said.counts_as}`) : "";
  };

  function draw(card, i) {
    const score = images.scores[i];
    const verdict = verdictOf(score, now);
    const outcome = outcomeOf(verdict, images.truths[i]);
    const its = other.name && !Number.isNaN(other.scores[i]) ? verdictOf(other.scores[i], other.thresholds) : null;
    const source = pictureOf(i);
    const drawn = [i, verdict, score, outcome, its, source, images.truths[i], marks.get(images.names[i])?.latest].join();
    if (card.drawn === drawn) return; // most cards stay as they are while a threshold moves
    card.drawn = drawn;
    card.classList.toggle("wrong", outcome === 1 || outcome === 2);
    card.title = images.names[i];
    const picture = card.querySelector("img") ?? element("img", {alt: "", decoding: "async"});
    if (card.source !== source) {
      card.source = source;
      picture.removeAttribute("src");
      clearTimeout(card.loading);
      card.loading = setTimeout(() => (picture.src = source), SETTLED);
    }
    const judged = errors.has(i)
      ? [element("span", {className: "verdict"}, "cannot be read")]
      : Number.isNaN(score)
        ? [element("span", {className: "sub"}, "not judged yet")]
        : [verdictMark(verdict), element("span", {}, number(score))];
    card.replaceChildren(
      picture,
      element("div", {className: "line"}, ...judged),
      its === null ? "" : element("div", {className: "line"}, verdictMark(its), element("span", {}, number(other.scores[i]))),
      element("div", {className: "line"}, element("span", {className: "sub"}, knownAs(i)), markOf(i)),
      element("span", {className: "name"}, element("bdi", {}, images.names[i])),
    );
  }

  // ---- one image ----

  let viewer = null;
  let opened = -1;
  function open(i) {
    const dialog = byId("looked");
    viewer ??= new Viewer(byId("viewer"), {onbox: index => viewer.jump(index)});
    opened = i;
    if (!dialog.open) dialog.showModal();
    byId("looked-name").textContent = images.names[i];
    byId("looked-verdict").replaceChildren(verdictMark(verdictOf(images.scores[i], now)));
    const score = Number.isNaN(images.scores[i]) ? errors.get(i) ?? "not judged yet" : `score ${number(images.scores[i])}`;
    byId("looked-about").textContent = `${score} · known as ${knownAs(i)} · ${grid.chosen + 1} of ${shown.length}`;
    showMark(i);
    byId("defects").replaceChildren();
    viewer.hide();
    attempt(async () => {
      const judged = errors.has(i) ? null : await api(`/api/review/images/${i}/judged?model=${encodeURIComponent(model())}`);
      if (opened !== i) return;
      const boxes = judged ? judged.defects.map(defect => defect.box) : [];
      await viewer.show({name: images.names[i], image: `/api/review/images/${i}/picture?key=${images.key}`, map: judged?.map ?? null, boxes, size: judged?.size ?? null});
      if (opened !== i) return;
      byId("defects").replaceChildren(...(judged?.defects ?? []).map((defect, index) => {
        const area = `${defect.area_px} px${defect.area_mm2 === null ? "" : `, ${number(defect.area_mm2, 3)} mm²`}`;
        return element("li", {}, element("button", {type: "button", onclick: () => viewer.jump(index)}, area));
      }));
      if (judged && !judged.defects.length) byId("defects").append(element("li", {className: "sub none-found"}, "nothing above the pixel threshold"));
    });
  }

  function showMark(i) {
    byId("looked-mark").replaceChildren(tickButtons(element, images.names[i], marks.get(images.names[i])?.counts_as, word => mark(i, word ?? marks.get(images.names[i])?.mark)));
  }

  const step = by => {
    grid.choose(grid.chosen + by);
    open(grid.item);
  };
  byId("before").onclick = () => step(-1);
  byId("next").onclick = () => step(1);
  byId("close").onclick = () => byId("looked").close();
  byId("looked").onclose = () => {
    opened = -1;
    byId("grid").focus();
  };
  byId("looked").addEventListener("keydown", event => {
    if (event.target.closest("input") || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "ArrowRight" || event.key === "n") step(1);
    else if (event.key === "ArrowLeft" || event.key === "p") step(-1);
    else return;
    event.preventDefault();
  });

  // ---- reports ----

  byId("report").onclick = () => attempt(async () => {
    const button = byId("report");
    button.disabled = true;
    try {
      const path = "/api/review/reports";
      let report = await api(`${path}?model=${encodeURIComponent(model())}`, {method: "POST", json: {key: images.key, images: shown}});
      while (!report.ready && !report.error) {
        byId("reporting").textContent = `${report.stage}: ${report.done} of ${report.total}`;
        await new Promise(done => setTimeout(done, OFTEN));
        report = await api(`${path}/${report.key}`);
      }
      byId("reporting").textContent = "";
      if (report.error) throw new Error(report.error);
      const file = await api(`${path}/${report.key}/file`, {as: "blob"});
      const address = URL.createObjectURL(file);
      element("a", {href: address, download: report.name}).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
      say(`${report.name} is written, with the thresholds that are saved.`);
    } finally {
      byId("reporting").textContent = "";
      button.disabled = !shown.length;
    }
  });

  byId("reload").onclick = () => attempt(async () => {
    await api("/api/review/reload", {method: "POST"});
    begin();
  });

  // ---- what the server says ----

  const since = (name, after) => api(`/api/review/scores?model=${encodeURIComponent(name)}&after=${after}`);

  async function poll(mine) {
    const found = await since(model(), next);
    if (mine !== turn) return;
    if (found.key === null) {
      byId("about").textContent = found.error ?? "The data set is being read …";
      stage = found.stage;
      return;
    }
    if (found.key !== images.key) {
      await readImages(mine);
      if (mine !== turn) return;
    }
    if (saved && saved.id !== found.model.id) { // an update was taken: other scores
      begin();
      return;
    }
    found.images.forEach((i, place) => {
      images.scores[i] = found.scores[place] ?? NaN;
      if (i in found.errors) errors.set(i, found.errors[i]);
    });
    const fresh = found.images.length > 0;
    const before = stage;
    next = found.next;
    stage = found.stage;
    if (found.outside && images.fairOf !== found.model.id) {
      images.fairOf = found.model.id;
      images.fair = new Uint8Array(images.scores.length).fill(1);
      for (const i of found.outside) images.fair[i] = 0;
      if (!images.fair.includes(1)) byId("scope").value = "";
    }
    showAbout(found);
    learn(found.model);
    if (stage === "done" && !fresh) await pollMarks(mine);
    const more = other.name && (await pollOther(mine));
    if (fresh || more || before !== stage) {
      scored++;
      graph.show(columns());
      showCounts();
      choose();
    }
  }

  async function pollOther(mine) {
    const found = await since(other.name, other.next);
    if (mine !== turn || found.model.name !== other.name) return false;
    const before = other.stage;
    found.images.forEach((i, place) => (other.scores[i] = found.scores[place] ?? NaN));
    other.next = found.next;
    other.thresholds = {bad: found.model.threshold, unsure: found.model.unsure_threshold};
    other.stage = found.stage;
    byId("other-stage").textContent = found.stage === "done" ? "" : found.error ?? `${found.done} of ${found.total} judged`;
    return found.images.length > 0 || before !== found.stage;
  }

  function showAbout(found) {
    const lacking = errors.size ? `, ${errors.size} cannot be read` : "";
    const words = {waiting: "waiting to be judged", judging: `${found.done} of ${found.total} judged`, done: "all are judged", failed: found.error};
    byId("about").textContent = `${images.name}: ${found.total} images, ${words[found.stage] ?? found.stage}${lacking}.`;
    const bar = byId("progress");
    bar.hidden = found.stage !== "judging";
    bar.max = found.total;
    bar.value = found.done;
    byId("fair").textContent = found.left_out.join(" ");
    byId("setting").hidden = byId("looking").hidden = false;
  }

  async function readImages(mine) {
    const found = await api("/api/review/images");
    if (mine !== turn) return;
    const n = found.names.length;
    Object.assign(images, found, {
      truths: Int8Array.from(found.labels, label => label ?? -1),
      scores: new Float64Array(n).fill(NaN),
      fair: new Uint8Array(n).fill(1),
      fairOf: null,
    });
    errors = new Map();
    other.scores = new Float64Array(n).fill(NaN);
    other.next = 0;
    const types = [...new Set(found.types.filter(type => type !== null))].sort();
    await pollMarks(mine);
    byId("type").replaceChildren(element("option", {value: ""}, "all"), ...types.map(type => element("option", {}, type)));
    byId("notes").replaceChildren(...found.notes.map(note => element("p", {className: "note"}, note)));
    choose();
  }

  // Ask for everything anew: another model was chosen, or the data set was read again.
  async function begin() {
    const mine = ++turn;
    next = 0;
    saved = null;
    stage = "";
    images.key = null;
    byId("theirs").hidden = true;
    const names = [...byId("model").options].map(option => option.value).filter(name => name !== model());
    byId("other").replaceChildren(element("option", {value: ""}, "no other model"), ...names.map(name => element("option", {}, name)));
    byId("other").value = names.includes(other.name) ? other.name : "";
    other.name = byId("other").value;
    byId("compared").hidden = !other.name;
    let silent = true; // what fails again and again is said once
    while (mine === turn) {
      try {
        await poll(mine);
        silent = true;
      } catch (error) {
        if (silent && mine === turn) say(error.message, "error");
        silent = false;
      }
      const settled = (stage === "done" || stage === "failed") && (!other.name || other.stage === "done");
      await new Promise(done => setTimeout(done, settled ? SELDOM : OFTEN));
    }
  }

  keys({"/": () => byId("text").focus()});
  onModel(begin);
}
