// What follows from scores and two thresholds: verdicts, outcomes, counts, rates. No elements here, only numbers.
//
// A set of images is held in columns, one entry an image:
//   scores  Float64Array, NaN where there is none
//   truths  Int8Array: 0 good, 1 bad, -1 not known
// and thresholds are {bad, unsure}: an image is bad above `bad`, unsure above `unsure` (null: no image is unsure).

export const VERDICTS = ["good", "unsure", "bad"]; // a verdict is a place in this list, -1 where there is none
export const OUTCOMES = ["right", "missed", "false alarm", "unsure"];

// As the server's: a score that equals a threshold does not exceed it.
export const verdictOf = (score, {bad, unsure}) => {
  if (Number.isNaN(score) || bad === null) return -1;
  if (score > bad) return 2;
  return unsure !== null && score > unsure ? 1 : 0;
};

// The place in OUTCOMES, -1 where nobody knows.
export const outcomeOf = (verdict, truth) => {
  if (verdict === 1) return 3;
  if (verdict === -1 || truth === -1) return -1;
  if ((verdict === 2) === (truth === 1)) return 0;
  return truth === 1 ? 1 : 2;
};

// 9 counts: 3 x truth (good, bad, not known) + verdict, over the images that `counts` (Uint8Array) has as 1.
export const confusion = ({scores, truths}, thresholds, counts) => {
  const matrix = new Array(9).fill(0);
  for (let i = 0; i < scores.length; i++) {
    if (!counts[i]) continue;
    const verdict = verdictOf(scores[i], thresholds);
    if (verdict >= 0) matrix[3 * (truths[i] < 0 ? 2 : truths[i]) + verdict]++;
  }
  return matrix;
};

// {alarms, good, missed, bad, unsure, known} as counts.
export const ratesOf = matrix => ({
  alarms: matrix[2],
  good: matrix[0] + matrix[1] + matrix[2],
  missed: matrix[3],
  bad: matrix[3] + matrix[4] + matrix[5],
  unsure: matrix[1] + matrix[4] + matrix[7],
  all: matrix.reduce((sum, n) => sum + n, 0),
});

// The share of pairs of a bad and a good image in which the bad one has the higher score (ties count half); null
// where one of the two kinds is missing.
export const auroc = ({scores, truths}, counts) => {
  const used = [];
  for (let i = 0; i < scores.length; i++) if (counts[i] && truths[i] >= 0 && !Number.isNaN(scores[i])) used.push(i);
  used.sort((a, b) => scores[a] - scores[b]);
  let ranks = 0;
  let bad = 0;
  for (let from = 0; from < used.length;) {
    let to = from;
    while (to < used.length && scores[used[to]] === scores[used[from]]) to++;
    const rank = (from + to + 1) / 2; // the mean of the places from + 1 to `to`
    for (let k = from; k < to; k++) {
      if (truths[used[k]] !== 1) continue;
      ranks += rank;
      bad++;
    }
    from = to;
  }
  const good = used.length - bad;
  return good && bad ? (ranks - (bad * (bad + 1)) / 2) / (good * bad) : null;
};

// The numbers of all images by rising value, equal ones in their order, NaN last.
export const sortedBy = values => {
  const keyed = values.map(value => (Number.isNaN(value) ? Infinity : value));
  return Uint32Array.from(keyed.keys()).sort((i, j) => (keyed[i] === keyed[j] ? i - j : keyed[i] - keyed[j]));
};

// The numbers of all images, those nearest to one of the thresholds (rising) first; `rising` is sortedBy(scores). Around
// the thresholds the distances rise in runs, which are merged: no sorting while a threshold is dragged.
export const nearest = (scores, rising, thresholds) => {
  const [first, last] = [thresholds[0], thresholds.at(-1)];
  const distance = i => Math.min(Math.abs(scores[i] - first), Math.abs(scores[i] - last));
  const edges = [-Infinity, ...thresholds.flatMap((limit, k) => (k ? [(thresholds[k - 1] + limit) / 2, limit] : [limit])), Infinity];
  const heads = [];
  let from = 0;
  for (let k = 1; k < edges.length; k++) {
    let to = from;
    while (to < rising.length && (scores[rising[to]] <= edges[k] || (k === edges.length - 1 && !Number.isNaN(scores[rising[to]])))) to++;
    const run = rising.subarray(from, to);
    if (run.length) heads.push(k % 2 ? {run: run.slice().reverse(), at: 0} : {run, at: 0}); // towards a threshold: from its end
    from = to;
  }
  heads.forEach(head => (head.value = distance(head.run[0])));
  const order = new Uint32Array(rising.length);
  let n = 0;
  while (heads.length) {
    let least = 0;
    for (let k = 1; k < heads.length; k++) if (heads[k].value < heads[least].value) least = k;
    const head = heads[least];
    order[n++] = head.run[head.at++];
    if (head.at < head.run.length) head.value = distance(head.run[head.at]);
    else heads.splice(least, 1);
  }
  order.set(rising.subarray(from), n); // without a score
  return order;
};
