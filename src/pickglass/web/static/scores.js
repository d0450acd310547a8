// A small chart: how the scores of good images lie, where the thresholds are, and where one image is.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320;
const HEIGHT = 120;
const FLOOR = 92; // where the bars stand; the numbers are below
const FAR = 2.5; // times the span of what is usual; a score beyond that is drawn at the edge, with an arrow

const svg = (name, attributes, ...children) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// histogram: {edges, counts} as GET /models gives it; marks: {score, verdict, threshold, unsure}, null where there is none.
export const scoreChart = ({edges, counts}, {score, verdict, threshold, unsure}) => {
  const usual = [...edges, threshold, unsure].filter(value => value !== null);
  const low = Math.min(...usual);
  const span = Math.max(...usual) - low || 1;
  const [least, most] = [Math.min(low, Math.max(score, low - span * (FAR - 1))), Math.max(low + span, Math.min(score, low + span * FAR))];
  const room = 0.04 * (most - least);
  const x = value => ((value - least + room) / (most - least + 2 * room)) * WIDTH;
  const top = Math.max(...counts);
  const bars = counts.map((count, at) => {
    const height = count === 0 ? 0 : Math.max((count / top) * (FLOOR - 24), 2);
    const left = x(edges[at]);
    return svg("rect", {class: "bar", x: left, y: FLOOR - height, width: Math.max(x(edges[at + 1]) - left - 0.6, 0.6), height});
  });
  const line = (value, kind, name) => {
    if (value === null) return [];
    const end = x(value) > WIDTH - 70;
    return [
      svg("path", {class: kind, d: `M${x(value)} 16V${FLOOR}`}),
      svg("text", {x: x(value) + (end ? -3 : 3), y: kind === "limit" ? 12 : 24, "text-anchor": end ? "end" : "start"}, name),
    ];
  };
  const beyond = score > most ? 1 : score < least ? -1 : 0;
  const at = x(Math.min(Math.max(score, least), most));
  const here = svg(
    "g",
    {class: `here ${verdict ?? ""}`},
    svg("path", {d: `M${at} 30V${FLOOR}`}),
    svg("path", {class: "tip", d: beyond ? `M${at} ${FLOOR - 8}l${6 * beyond} 4l${-6 * beyond} 4z` : `M${at} ${FLOOR}l-5 8h10z`}),
    svg("text", {x: Math.min(Math.max(at, 20), WIDTH - 20), y: FLOOR + 22, "text-anchor": "middle"}, Number(score).toPrecision(4)),
  );
  const many = counts.reduce((total, count) => total + count, 0);
  const words = [
    `The scores of ${many} good images lie between ${edges[0].toPrecision(3)} and ${edges.at(-1).toPrecision(3)}`,
    threshold === null ? null : `bad begins above ${threshold.toPrecision(3)}`,
    unsure === null ? null : `unsure above ${unsure.toPrecision(3)}`,
    `this image has ${Number(score).toPrecision(3)}`,
  ].filter(word => word !== null);
  return svg(
    "svg",
    {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${words.join("; ")}.`, class: "score-chart"},
    svg("path", {class: "floor", d: `M0 ${FLOOR}H${WIDTH}`}),
    ...bars,
    ...line(unsure, "limit lower", "unsure"),
    ...line(threshold, "limit", "bad"),
    here,
  );
};
