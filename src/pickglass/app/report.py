"""The HTML report of a test: one file that needs nothing else, written as a stream.

Each image becomes a card of small pictures that goes to a temporary file at once; memory holds one short record an
image, for sorting and the histogram. ``finish`` writes the page to a temporary name and renames it, so the target is
either the old file or the whole new one.
"""

from __future__ import annotations

import base64
import html
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

from pickglass.app import pictures
from pickglass.app.pictures import NEEDS_LABELS, NEEDS_MASKS, Curves, Panel, ReportImage
from pickglass.errors import Failure, InputError

__all__ = ["Curves", "ReportImage", "ReportWriter"]

OPTIMISTIC = "optimistic: threshold chosen on test labels"
# key in ``metrics``: name, remark, why it can be missing
METRICS = {
    "image_auroc": ("image AUROC", "", NEEDS_LABELS),
    "average_precision": ("average precision", "", NEEDS_LABELS),
    "f1_max": ("F1-max", OPTIMISTIC, NEEDS_LABELS),
    "pixel_auroc": ("pixel AUROC", "", NEEDS_MASKS),
    "aupro_30": ("AUPRO@0.30", "", NEEDS_MASKS),
    "aupro_05": ("AUPRO@0.05", "", NEEDS_MASKS),
}


@dataclass(frozen=True)
class _Record:
    start: int  # of the card in the temporary file, bytes
    length: int
    score: float
    label: int | None
    kind: str
    outcome: str


class ReportWriter:
    """Writes the report of a test, image by image.

    Use it as a context manager: without ``finish`` nothing is left behind, and an older report stays as it was.

    Args:
        target: the HTML file to write; its folder must exist.
        title: heading of the page.
        scale: ``(low, high)``, the anomaly values at the two ends of the heat map's colours, the same for all images.
            Values beyond are drawn like the ends; scores stay raw.

    Raises:
        InputError: the folder does not exist, the target is a folder, or the scale is not two finite numbers in order.

    Example:
        >>> import tempfile, numpy as np
        >>> grey, heat, none = np.full((64, 64), 128, np.uint8), np.zeros((64, 64), np.float32), np.empty(0)
        >>> with tempfile.TemporaryDirectory() as folder, ReportWriter(f"{folder}/r.html", "tile", (0, 1)) as report:
        ...     report.add(ReportImage("a.png", None, 0, 0.2, "good", grey, heat, None, None, []))
        ...     path = report.finish(metrics={"n": 1}, by_type={}, curves=Curves(none, none, none, none, 0.3),
        ...                          configuration={}, provenance={}, failed=[], threshold=0.5)
        ...     path.name, "a.png" in path.read_text(encoding="utf-8")
        ('r.html', True)
    """

    def __init__(self, target: str | Path, title: str, scale: tuple[float, float]) -> None:
        self.target, self.title, self.scale = Path(target), title, scale
        if self.target.is_dir() or not self.target.parent.is_dir():
            raise InputError(
                f"cannot write the report to {str(target)!r}: expected the name of a file in a folder that exists; "
                f"create {str(self.target.parent)!r} or name another file, e.g. report.html"
            )
        if not (np.isfinite(scale).all() and scale[0] <= scale[1]):
            raise InputError(f"scale={scale!r}: expected two finite numbers (low, high), e.g. (0.0, 1.0)")
        self._records: list[_Record] = []
        self._has_masks = self._has_predictions = False
        # Beside the target, for a temporary folder may live in memory. __exit__ and finish close it.
        self._cards: IO[bytes] = tempfile.TemporaryFile(dir=self.target.parent)  # noqa: SIM115

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._cards.close()

    def add(self, item: ReportImage) -> None:
        """Draw one image and put its card aside. The arrays are neither kept nor changed.

        Raises:
            InputError: the arrays do not fit together, or a value is not finite.
        """
        item.check()
        card = _card(item, pictures.draw_panels(item, self.scale)).encode("utf-8")
        start = self._cards.seek(0, os.SEEK_END)
        self._cards.write(card)
        self._records.append(_Record(start, len(card), item.score, item.label, _kind(item), _outcome(item)))
        self._has_masks |= item.mask is not None
        self._has_predictions |= item.predicted is not None or bool(item.boxes)

    def finish(
        self,
        *,
        metrics: Mapping[str, Any],
        by_type: Mapping[str, Mapping[str, Any]],
        curves: Curves,
        configuration: Mapping[str, Any],
        provenance: Mapping[str, Any],
        failed: Sequence[Failure],
        threshold: float | None,
        notes: Sequence[str] = (),
    ) -> Path:
        """Write the page and return its path.

        Args:
            metrics: ``image_auroc``, ``average_precision``, ``f1_max``, ``pixel_auroc``, ``aupro_30``, ``aupro_05``,
                0 to 1, and ``images_per_s``; missing, None or NaN are shown as absent, with the reason.
            by_type: the same for each defect type, and its ``n``.
            curves: ROC and PRO.
            configuration: how the detector was made; nested mappings are flattened.
            provenance: where data, weights and versions came from, likewise.
            failed: images that could not be tested.
            threshold: image score from which the verdict is bad; None without verdicts.
            notes: sentences for the reader, e.g. warnings.
        """
        scores = np.array([record.score for record in self._records])
        histogram = pictures.draw_histogram(scores, [record.label for record in self._records], threshold)
        top = [
            _head(self.title),
            _tiles(metrics),
            _sentence(self._records, threshold),
            *(f'<p class="note">{_text(note)}</p>' for note in notes),
            _details(f"Failed images: {len(failed)}", failed, ' class="failed" open') if failed else "",
            _type_table(by_type, self._records) if by_type else "",
            f'<div class="charts">{histogram}{pictures.draw_roc(curves)}{pictures.draw_pro(curves)}</div>',
            _details("Configuration", list(_flat(configuration, ""))),
            _details("Provenance", list(_flat(provenance, ""))),
            _gallery_head(self._records, self.scale),
            f'<div id="gallery" class="{"" if self._has_masks else "unmasked"} '
            f'{"" if self._has_predictions else "unpredicted"}">',
        ]
        part = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as page:
                page.write("\n".join(top).encode("utf-8"))
                for record in _worst_first(self._records, threshold):
                    self._cards.seek(record.start)
                    page.write(self._cards.read(record.length))
                page.write(TAIL.encode("utf-8"))
            os.replace(part, self.target)
        finally:
            part.unlink(missing_ok=True)
        self._cards.close()
        return self.target


def _kind(item: ReportImage) -> str:
    return item.defect or {0: "good", 1: "bad", None: "unlabelled"}[item.label]


def _outcome(item: ReportImage) -> str:
    if item.label is None or item.verdict is None:
        return ""
    if (item.verdict == "bad") == (item.label == 1):
        return "right"
    return "missed" if item.label else "false alarm"


def _worst_first(records: Sequence[_Record], threshold: float | None) -> list[_Record]:
    """Wrong verdicts first, the farthest from the threshold leading; then the others; unlabelled ones by score."""
    good, bad = ([r.score for r in records if r.label == label] for label in (0, 1))
    if threshold is None:  # for the order only: the middle between the two kinds stands in for it
        threshold = float(np.median(good) + np.median(bad)) / 2 if good and bad else 0.0

    def key(record: _Record) -> tuple[int, float]:
        if record.label is None:
            return 2, -record.score
        margin = (record.score - threshold) * (-1 if record.label == 0 else 1)
        return int(record.outcome not in ("missed", "false alarm")), margin

    return sorted(records, key=key)


def _text(value: object) -> str:
    """Anything from outside as HTML; bytes of a file name that are no UTF-8 appear as escapes."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def _number(value: object, digits: int) -> str | None:
    """A metric with ``digits`` decimals, None when absent; what is not perfect is never rounded to 1."""
    if value is None or not np.isfinite(number := float(str(value))):
        return None
    text = f"{number:.{digits}f}"
    return f">{1 - 10**-digits:.{digits}f}" if float(text) == 1 and number < 1 else text


def _tiles(metrics: Mapping[str, Any]) -> str:
    tiles = ""
    for key, (name, remark, reason) in (METRICS | {"images_per_s": ("images/s", "", "not measured")}).items():
        number = _number(metrics.get(key), 1 if key == "images_per_s" else 3)
        value = f"<dd>{number}</dd>" if number else f'<dd title="{reason}">–</dd>'
        tiles += f'<div><dt>{name}</dt>{value}<dd class="sub">{remark if number else reason}</dd></div>'
    return f'<dl class="tiles">{tiles}</dl>'


def _sentence(records: Sequence[_Record], threshold: float | None) -> str:
    good, bad, unknown = (sum(r.label == label for r in records) for label in (0, 1, None))
    text = f"{good} good, {bad} bad" + (f", {unknown} without a label" if unknown else "")
    if threshold is None:
        return f"<p>{text}. No threshold, so no verdicts.</p>"
    missed, alarms = (sum(r.outcome == outcome for r in records) for outcome in ("missed", "false alarm"))
    text += f". At the threshold {threshold:.4g}: <b>{missed} of {bad} bad missed</b>"
    return f"<p>{text}, <b>{alarms} of {good} good called bad</b>.</p>"


def _type_table(by_type: Mapping[str, Mapping[str, Any]], records: Sequence[_Record]) -> str:
    rows = ""
    for kind, values in by_type.items():
        outcomes = [record.outcome for record in records if record.kind == kind and record.outcome]
        missed = f"<td>{outcomes.count('missed')}</td>" if outcomes else '<td title="no verdicts">–</td>'
        rows += f'<tr><th scope="row">{_text(kind)}</th><td>{_text(values.get("n", "–"))}</td>{missed}'
        for key, (_, _, reason) in METRICS.items():
            number = _number(values.get(key), 3)
            rows += f"<td>{number}</td>" if number else f'<td title="{reason}" aria-label="{reason}">–</td>'
        rows += "</tr>"
    names = ["type", "n", "missed", *(name for name, _, _ in METRICS.values())]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<section class="scroll"><h2>By defect type</h2><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        f"</table><small>Each type against all good images. F1-max is {OPTIMISTIC}.</small></section>"
    )


def _details(title: str, rows: Sequence[tuple[str, str]], attributes: str = "") -> str:
    lines = "".join(f'<tr><th scope="row">{_text(key)}</th><td>{_text(value)}</td></tr>' for key, value in rows)
    return f"<details{attributes}><summary>{title}</summary><table>{lines}</table></details>"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False),
            )


def _card(item: ReportImage, panels: Sequence[Panel]) -> str:
    name, kind, outcome = _text(PurePath(item.path).name or item.path), _text(_kind(item)), _outcome(item)
    height, width = item.image.shape[:2]
    shape = "wide" if width > pictures.ELONGATED * height else "tall" if height > pictures.ELONGATED * width else ""
    figures = []
    for panel in panels:
        if panel.jpeg is None:
            inner = f'<div class="none" style="aspect-ratio:{panel.size[1]}/{panel.size[0]}">{panel.caption}</div>'
        else:
            data = base64.b64encode(panel.jpeg).decode("ascii")
            inner = (
                f'<button type="button" title="enlarge"><img loading="lazy" decoding="async" width="{panel.size[1]}" '
                f'height="{panel.size[0]}" alt="{panel.caption} of {name}" src="data:image/jpeg;base64,{data}">'
                f"</button><figcaption>{panel.caption}</figcaption>"
            )
        figures.append(f'<figure class="{panel.kind}">{inner}</figure>')
    verdict = f"<span>verdict <b>{_text(item.verdict)}</b></span>" if item.verdict else ""
    if outcome:
        right = outcome == "right"
        verdict += f'<span class="badge {"right" if right else "wrong"}">{"✓" if right else "✗"} {outcome}</span>'
    return (
        f'<article class="{shape}" data-name="{_text(item.path)}" data-score="{float(item.score)}" data-type="{kind}" '
        f'data-outcome="{outcome}"><header class="row"><h3 title="{_text(item.path)}"><bdi>{name}</bdi></h3>'
        f"<span>{kind}</span><span>score <b>{item.score:.4g}</b></span>{verdict}</header>"
        f'<div class="pics">{"".join(figures)}</div></article>\n'
    )


def _gallery_head(records: Sequence[_Record], scale: tuple[float, float]) -> str:
    kinds = "".join(f"<option>{_text(kind)}" for kind in sorted({record.kind for record in records}))
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in pictures.heat_colours()[::15])
    return f"""<section><h2>Images</h2><p class="row"><span>heat map, the same for all images: {scale[0]:.4g}
<i class="bar" style="background:linear-gradient(90deg,{stops})"></i>{scale[1]:.4g}</span>
<span><i style="background:{pictures.PREDICTED}"></i>prediction, boxes</span>
<span><i style="background:{pictures.TRUTH}"></i>ground truth</span></p></section>
<div id="controls" class="row" hidden><label>sort <select id="sort"><option value="worst">worst mistakes first
<option value="high">highest score first<option value="name">name</select></label>
<label>type <select id="type"><option value="">all{kinds}</select></label>
<label>verdict <select id="outcome"><option value="">all<option value="wrong">wrong only<option value="missed">missed
<option value="false alarm">false alarm<option value="right">right</select></label>
<label>size <input id="size" type="range" min="90" max="320" value="150"></label>
<label>name <input id="name" type="search" size="12"></label><output id="count" aria-live="polite"></output></div>"""


def _head(title: str) -> str:
    style = f":root{{{LIGHT}}}" + STYLE.replace("DARK", DARK)
    # The policy lets the browser itself refuse any request to the outside.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<title>{_text(title)}</title><style>{style}</style></head><body>
<header class="top"><h1>{_text(title)}</h1><button id="theme" type="button" hidden>light / dark</button></header>"""


LIGHT = """color-scheme:light;--page:#fff;--card:#f4f5f7;--ink:#1b1f24;--soft:#57606a;--edge:#d0d5db;--accent:#0b5cad;
--good:#0072b2;--bad:#c44a00;--right:#0b5a3c;--wrong:#a1261b"""
DARK = """color-scheme:dark;--page:#14171a;--card:#1e2226;--ink:#e8eaed;--soft:#a3abb4;--edge:#3a4149;--accent:#7fb8f0;
--good:#56b4e9;--bad:#ff9a4d;--right:#9fe3c2;--wrong:#ffb0a6"""
STYLE = """
@media screen{:root[data-theme=dark]{DARK}}
@media screen and (prefers-color-scheme:dark){:root:not([data-theme=light]){DARK}}
*{box-sizing:border-box;print-color-adjust:exact}[hidden]{display:none!important}figure{margin:0;min-width:0}
body{margin:auto;padding:16px 24px;max-width:1800px;background:var(--page);color:var(--ink);font:15px/1.4 sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.05rem;margin:0 0 6px}h3{font-size:1em;margin:0;overflow-wrap:anywhere}
small,.sub,figcaption,label,thead{color:var(--soft);font-size:.85rem}section,details,.charts{margin:20px 0}
button,select,input{font:inherit;color:var(--ink)}:focus-visible,.pics :focus-visible{outline:2px solid var(--accent)}
.top,.row{display:flex;flex-wrap:wrap;gap:4px 16px;align-items:center}.top{justify-content:space-between}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px}dt{color:var(--soft)}
.tiles div,.note,.failed,article{background:var(--card);border-radius:8px;padding:10px 12px;min-width:0}
dd{margin:0;font-size:1.7rem;line-height:1.2}dd.sub{font-size:.75rem}.note,.failed{border-left:3px solid var(--bad)}
table{border-collapse:collapse}table,dd{font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}
th,td{padding:4px 12px;text-align:right;border-bottom:1px solid var(--edge)}thead th{white-space:nowrap}
th:first-child,details td{text-align:left}details table{overflow-wrap:anywhere}summary{cursor:pointer;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:20px}
svg{width:100%;max-width:560px;display:block}svg text{fill:var(--soft);font-size:12px}svg path{fill:none}
.grid{stroke:var(--edge);stroke-width:.7}.curve{stroke:var(--accent);stroke-width:2}
.dashed{stroke:var(--soft);stroke-dasharray:4 4}.limit{stroke:var(--ink);stroke-dasharray:6 3}
svg .area{stroke:var(--kind);fill:var(--kind);fill-opacity:.25;stroke-width:1.5}i.limit{--kind:var(--ink);height:2px}
.good{--kind:var(--good)}.bad{--kind:var(--bad);stroke-dasharray:3 1.5}.unlabelled{--kind:var(--soft)}
i{display:inline-block;width:22px;height:10px;margin:0 6px 0 12px;background:var(--kind);vertical-align:middle}
i.bar{width:120px}#controls{position:sticky;top:0;background:var(--page);padding:8px 0;z-index:1}
#gallery{grid-template-columns:repeat(auto-fill,minmax(min(100%,calc(4*var(--cell,150px) + 42px)),1fr))}
#gallery,.pics{display:grid;gap:12px}.pics{grid:auto/auto-flow minmax(0,1fr);gap:6px;margin-top:6px;align-items:start}
.pics button{all:unset;cursor:zoom-in;display:block;width:100%}.pics img{display:block;width:100%;height:auto}
.badge{border:1px solid;border-radius:9px;padding:0 9px;color:var(--right)}.badge.wrong{color:var(--wrong)}
.none{display:grid;place-items:center;text-align:center;border:1px dashed var(--edge);color:var(--soft);font-size:.8rem}
.unmasked .truth,.unpredicted .predicted{display:none}.pics .closeup img{max-width:288px}
.wide{grid-column:1/-1}.wide .pics{grid:auto-flow/repeat(auto-fill,minmax(200px,1fr))}
.wide figure:not(.closeup){grid-column:1/-1}.wide .none{aspect-ratio:auto!important}
.tall img,.tall .none{width:auto!important;max-width:100%;max-height:75vh}dialog::backdrop{background:#000c}
dialog{border:0;border-radius:8px;padding:10px;background:#111;color:#eee;max-width:98vw;max-height:98vh}
dialog p{margin:0 0 6px}dialog img{width:94vw;height:84vh;object-fit:contain}
@media print{body{padding:0;font-size:11px}#controls,#theme{display:none}article,figure,tr{break-inside:avoid}
#gallery{--cell:72px}.scroll{overflow:visible}.scroll :is(th,td){padding:2px 5px;white-space:normal}}
"""
TAIL = """</div><dialog id="zoom" aria-label="enlarged picture"><p></p><img alt=""></dialog><script>
const one = id => document.getElementById(id), gallery = one("gallery"), worst = [...gallery.children];
const orders = {
  high: (a, b) => b.dataset.score - a.dataset.score,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true}),
};
one("sort").onchange = e => {
  const order = orders[e.target.value];
  for (const card of order ? [...worst].sort(order) : worst) gallery.append(card);
};
const filter = () => {
  const type = one("type").value, outcome = one("outcome").value, name = one("name").value.toLowerCase();
  for (const card of worst) {
    const {type: t, outcome: o, name: n} = card.dataset;
    const fits = outcome === "wrong" ? o === "missed" || o === "false alarm" : !outcome || o === outcome;
    card.hidden = !(fits && (!type || t === type) && n.toLowerCase().includes(name));
  }
  one("count").textContent = `${worst.filter(card => !card.hidden).length} of ${worst.length} images shown`;
};
one("type").oninput = one("outcome").oninput = one("name").oninput = filter;
one("size").oninput = e => gallery.style.setProperty("--cell", e.target.value + "px");
const zoom = one("zoom"), large = zoom.querySelector("img"); let picture;
const show = image => {
  if (!image) return;
  [picture, large.src, large.alt] = [image, image.src, image.alt];
  zoom.querySelector("p").textContent = `${image.alt}. Arrow keys: other pictures and images. Esc: close.`;
  if (!zoom.open) zoom.showModal();
};
gallery.onclick = e => show(e.target.closest("button")?.querySelector("img"));
zoom.onclick = () => zoom.close();
zoom.onkeydown = e => {
  const across = {ArrowLeft: -1, ArrowRight: 1}[e.key], down = {ArrowUp: -1, ArrowDown: 1}[e.key];
  if (across || down) e.preventDefault(); else return;
  const card = picture.closest("article"), own = [...card.querySelectorAll("img")];
  if (across) return show(own[own.indexOf(picture) + across]);
  const cards = [...gallery.children].filter(c => !c.hidden), next = cards[cards.indexOf(card) + down];
  show(next?.querySelector(`.${picture.closest("figure").className} img`) || next?.querySelector("img"));
};
one("theme").onclick = () => {
  const root = document.documentElement;
  root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
};
window.onbeforeprint = () => document.querySelectorAll("details").forEach(d => d.open = true);
one("controls").hidden = one("theme").hidden = false;
filter();
</script></body></html>
"""
