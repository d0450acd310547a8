"""The HTML report of a test: one file that needs nothing else, written as a stream.

Each image becomes a card of small pictures that goes to a temporary file at once; memory holds one short record an
image, for sorting and the histogram. ``finish`` writes the page to a temporary name and renames it, so the target is
either the old file or the whole new one.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

from pickglass.app import charts, pictures
from pickglass.app.charts import NEEDS_LABELS, NEEDS_MASKS, Curves
from pickglass.app.page import TAIL, as_text, head
from pickglass.app.pictures import Panel, ReportImage
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
    "aupimo": ("AUPIMO", "", NEEDS_MASKS),
    "au_spro_05": ("AU-sPRO@0.05", "", "needs saturation areas, as MVTec LOCO has them"),
}
RARE = {"au_spro_05"}  # not mentioned where they are missing
CHARTS = (charts.draw_roc, charts.draw_pro, charts.draw_spro)


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
        tiles: Sequence[tuple[str, Sequence[Panel]]] = (),
    ) -> Path:
        """Write the page and return its path.

        Args:
            metrics: ``image_auroc``, ``average_precision``, ``f1_max``, ``pixel_auroc``, ``aupro_30``, ``aupro_05``,
                ``aupimo``, 0 to 1, and ``images_per_s``; missing, None or NaN are shown as absent, with the reason.
                ``au_spro_05`` is shown where it is there.
            by_type: the same for each defect type, and its ``n``.
            curves: ROC, PRO and, if there is one, sPRO.
            configuration: how the detector was made; nested mappings are flattened.
            provenance: where data, weights and versions came from, likewise.
            failed: images that could not be tested.
            threshold: image score from which the verdict is bad; None without verdicts.
            notes: sentences for the reader, e.g. warnings.
            tiles: of a tiled model, for some images a heading and how their maps were put together.
        """
        scores = np.array([record.score for record in self._records])
        histogram = charts.draw_histogram(scores, [record.label for record in self._records], threshold)
        top = [
            head(self.title),
            _tiles(metrics),
            _sentence(self._records, threshold),
            *(f'<p class="note">{as_text(note)}</p>' for note in notes),
            _details(f"Failed images: {len(failed)}", failed, ' class="failed" open') if failed else "",
            _type_table(by_type, self._records) if by_type else "",
            f'<div class="charts">{histogram}{"".join(draw(curves) for draw in CHARTS)}</div>',
            _tile_section(tiles) if tiles else "",
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


def _number(value: object, digits: int) -> str | None:
    """A metric with ``digits`` decimals, None when absent; what is not perfect is never rounded to 1."""
    if value is None or not np.isfinite(number := float(str(value))):
        return None
    text = f"{number:.{digits}f}"
    return f">{1 - 10**-digits:.{digits}f}" if float(text) == 1 and number < 1 else text


def _shown(metrics: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str, str]]:
    """METRICS, of the rare ones those that one of the sets has."""
    known = {key for values in metrics for key in METRICS if _number(values.get(key), 3)}
    return {key: texts for key, texts in METRICS.items() if key not in RARE or key in known}


def _tiles(metrics: Mapping[str, Any]) -> str:
    tiles = ""
    for key, (name, remark, reason) in (_shown([metrics]) | {"images_per_s": ("images/s", "", "not measured")}).items():
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
    rows, shown = "", _shown(by_type.values())
    for kind, values in by_type.items():
        outcomes = [record.outcome for record in records if record.kind == kind and record.outcome]
        missed = f"<td>{outcomes.count('missed')}</td>" if outcomes else '<td title="no verdicts">–</td>'
        rows += f'<tr><th scope="row">{as_text(kind)}</th><td>{as_text(values.get("n", "–"))}</td>{missed}'
        for key, (_, _, reason) in shown.items():
            number = _number(values.get(key), 3)
            rows += f"<td>{number}</td>" if number else f'<td title="{reason}" aria-label="{reason}">–</td>'
        rows += "</tr>"
    names = ["type", "n", "missed", *(name for name, _, _ in shown.values())]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<section class="scroll"><h2>By defect type</h2><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        f"</table><small>Each type against all good images. F1-max is {OPTIMISTIC}.</small></section>"
    )


def _details(title: str, rows: Sequence[tuple[str, str]], attributes: str = "") -> str:
    lines = "".join(f'<tr><th scope="row">{as_text(key)}</th><td>{as_text(value)}</td></tr>' for key, value in rows)
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
    name, kind, outcome = as_text(PurePath(item.path).name or item.path), as_text(_kind(item)), _outcome(item)
    height, width = item.image.shape[:2]
    shape = "wide" if width > pictures.ELONGATED * height else "tall" if height > pictures.ELONGATED * width else ""
    figures = _figures(panels, name)
    verdict = f"<span>verdict <b>{as_text(item.verdict)}</b></span>" if item.verdict else ""
    if outcome:
        right = outcome == "right"
        verdict += f'<span class="badge {"right" if right else "wrong"}">{"✓" if right else "✗"} {outcome}</span>'
    return (
        f'<article class="{shape}" data-name="{as_text(item.path)}" data-score="{float(item.score)}" '
        f'data-type="{kind}" data-outcome="{outcome}">'
        f'<header class="row"><h3 title="{as_text(item.path)}"><bdi>{name}</bdi></h3>'
        f"<span>{kind}</span><span>score <b>{item.score:.4g}</b></span>{verdict}</header>"
        f'<div class="pics">{figures}</div></article>\n'
    )


def _figures(panels: Sequence[Panel], name: str) -> str:
    figures = ""
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
        figures += f'<figure class="{panel.kind}">{inner}</figure>'
    return figures


def _tile_section(tiles: Sequence[tuple[str, Sequence[Panel]]]) -> str:
    """Some images with their grid, the maps of their tiles and the joined map; the colours are those of the gallery."""
    shown = ""
    for heading, panels in tiles:
        height, width = panels[0].size
        shape = ' class="wide"' if width > pictures.ELONGATED * height else ""
        name = as_text(heading)
        shown += f'<article{shape}><h3>{name}</h3><div class="pics">{_figures(panels, name)}</div></article>'
    text = "How the map of an image is put together from those of its tiles; colours as in the gallery below."
    return f'<section class="made"><h2>Tiles</h2><small>{text}</small>{shown}</section>'


def _gallery_head(records: Sequence[_Record], scale: tuple[float, float]) -> str:
    kinds = "".join(f"<option>{as_text(kind)}" for kind in sorted({record.kind for record in records}))
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
