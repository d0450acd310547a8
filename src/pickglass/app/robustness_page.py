"""The HTML page of a robustness test: a plot for each metric, a table, and what the disturbances look like."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pickglass.app.charts import NEEDS_LABELS, NEEDS_MASKS, Axis, Line, draw_chart
from pickglass.app.page import PLAIN_TAIL, as_text, head
from pickglass.app.results import Disturbed, RobustnessResult
from pickglass.data.files import written_whole
from pickglass.data.images.decoder import Array
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS

__all__ = ["Samples", "draw_samples", "write_page"]

Samples = Mapping[tuple[str, float], bytes]
"""(kind, strength) -> JPEG."""


class _Metric(NamedTuple):
    name: str
    falls: bool  # as images get worse
    missing: str  # why it can be


_METRICS = {
    "image_auroc": _Metric("image AUROC", True, NEEDS_LABELS),
    "aupro_30": _Metric("AUPRO@0.30", True, NEEDS_MASKS),
    "aupro_05": _Metric("AUPRO@0.05", True, NEEDS_MASKS),
    "false_alarm_rate": _Metric("false alarms", False, "needs a threshold and good images"),
    "miss_rate": _Metric("missed", False, "needs a threshold and bad images"),
}
_CROP = 256  # original px, side of what a sample shows
_SIDE = 128  # px, side of a sample
_FULL = 0.3  # loss from which a cell of the table has its full colour
_WORSE = "224,96,16"  # an orange that shows on white and on black
# Okabe and Ito's colours, told apart by every kind of colour vision; the dashes help on paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a6761d", "#56b4e9", "var(--ink)")
_DASHES = ("none", "7 3", "2 2", "9 2 2 2", "5 5", "12 3", "1 3")
_STYLE = """
.kind small,.samples th small{font-weight:400}
td.kind,th.kind{text-align:left}
tbody.kind tr:first-child>*{border-top:2px solid var(--edge)}.samples td{padding:3px;text-align:center;border:0}
.samples img{display:block;width:128px;height:auto;border-radius:3px}.samples th{text-align:left;border:0}
figcaption i{height:3px;margin-left:8px}
""" + "".join(
    f".line{i}{{--kind:{colour};stroke:{colour};stroke-width:2;stroke-dasharray:{dash}}}"
    for i, (colour, dash) in enumerate(zip(_COLOURS, _DASHES, strict=True))
)


def draw_samples(image: Callable[[str, float], Array]) -> dict[tuple[str, float], bytes]:
    """Small pictures of the middle of an image, as it is and under every disturbance.

    Args:
        image: gives it for a kind, ``"none"`` for as it is, and a strength.
    """
    plain = image("none", 0.0)
    low, high = _range(plain)
    samples = {("none", 0.0): _jpeg(plain, low, high)}
    for kind, strengths in DISTURBANCES.items():
        samples |= {(kind, strength): _jpeg(image(kind, strength), low, high) for strength in strengths}
    return samples


def write_page(target: Path, title: str, result: RobustnessResult, threshold: float | None, samples: Samples) -> Path:
    """Write the page and return its path.

    Args:
        target: HTML file, written whole or not at all.
        title: heading of the page.
        result: what was measured.
        threshold: the image threshold of the model, None if it has none.
        samples: what the disturbances look like.
    """
    by_kind = {kind: [one for one in result["disturbed"] if one["kind"] == kind] for kind in DISTURBANCES}
    failed = "".join(
        f'<tr><th scope="row">{as_text(item["path"])}</th><td>{as_text(item["error"])}</td></tr>'
        for item in result["failed"]
    )
    rule = (
        "The model has no threshold, so no false alarms and misses."
        if threshold is None
        else (f"Verdicts are those of the model's own threshold, {threshold:.4g}, which was not set anew.")
    )
    parts = [
        head(title, _STYLE),
        f"<p>{result['n']} test images, each disturbed at its original size and bit depth; the ground truth moves with "
        f"shifted and turned images. {rule} Seed {result['seed']}.</p>",
        f'<details class="failed" open><summary>Failed images: {len(result["failed"])}</summary><table>{failed}</table>'
        "</details>"
        if failed
        else "",
        f'<div class="charts">{"".join(_chart(key, result["undisturbed"], by_kind) for key in _METRICS)}</div>',
        _table(result["undisturbed"], by_kind),
        _sample_table(samples),
        PLAIN_TAIL,
    ]
    with written_whole(target) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    return target


def _chart(key: str, undisturbed: Disturbed, by_kind: Mapping[str, Sequence[Disturbed]]) -> str:
    """A line a kind over the steps of strength, 0 being the images as they are."""
    metric, start = _METRICS[key], _value(undisturbed, key)
    lines, keys, values = [], "", [start]
    for i, (kind, steps) in enumerate(by_kind.items()):
        y = np.array([start, *(_value(one, key) for one in steps)])  # (1 + steps,)
        known = np.isfinite(y)
        if known.any():
            lines.append(Line(np.arange(len(y), dtype=float)[known], y[known], f"line{i}"))
            keys += f'<i class="line{i}"></i>{kind} '
            values += y[known].tolist()
    x_axis = Axis("step of strength, see the table", 0, max(len(steps) for steps in by_kind.values()))
    y_axis = Axis(metric.name, 0, 1)
    if lines and metric.falls:
        y_axis = y_axis._replace(low=min(np.floor(10 * np.nanmin(values)) / 10, 0.9))
    elif lines:
        y_axis = y_axis._replace(high=max(np.ceil(10 * np.nanmax(values)) / 10, 0.1))
    return draw_chart(metric.name, keys or f"no curve: {metric.missing}", x_axis, y_axis, lines)


def _table(undisturbed: Disturbed, by_kind: Mapping[str, Sequence[Disturbed]]) -> str:
    heads = "".join(f'<th scope="col">{metric.name}</th>' for metric in _METRICS.values())
    body = (
        f'<tbody><tr><th scope="row" class="kind" colspan="2">as they are</th>{_cells(undisturbed, undisturbed)}</tr>'
        "</tbody>"
    )
    for kind, steps in by_kind.items():
        body += '<tbody class="kind">'
        for i, one in enumerate(steps):
            first = f'<th scope="rowgroup" class="kind" rowspan="{len(steps)}">{_name(kind)}</th>' if i == 0 else ""
            body += f"<tr>{first}<td>{one['strength']:g}</td>{_cells(one, undisturbed)}</tr>"
        body += "</tbody>"
    return (
        '<section class="scroll"><h2>Every kind and strength</h2><table><thead><tr><th scope="col" class="kind">'
        f'disturbance</th><th scope="col">strength</th>{heads}</tr></thead>{body}</table>'
        f"<small>The more colour, the worse than as they are; full at a loss of {_FULL:g}.</small></section>"
    )


def _cells(one: Disturbed, undisturbed: Disturbed) -> str:
    cells = ""
    for key, metric in _METRICS.items():
        value, start = _value(one, key), _value(undisturbed, key)
        if np.isnan(value):
            cells += f'<td title="{metric.missing}">–</td>'
            continue
        loss = (start - value) * (1 if metric.falls else -1)
        share = 0.0 if np.isnan(loss) else float(np.clip(loss / _FULL, 0, 1))
        colour = f' style="background:rgba({_WORSE},{0.7 * share:.2f})"' if share >= 0.01 else ""
        cells += f"<td{colour}>{value:.3f}</td>"
    return cells


def _sample_table(samples: Samples) -> str:
    def cell(kind: str, strength: float, note: str) -> str:
        data = base64.b64encode(samples[kind, strength]).decode("ascii")
        picture = f'<img alt="{kind} {note}" loading="lazy" src="data:image/jpeg;base64,{data}">'
        return f"<td>{picture}<small>{note}</small></td>"

    rows = "".join(
        f'<tr><th scope="row">{_name(kind)}</th>{cell("none", 0.0, "as it is")}'
        f"{''.join(cell(kind, strength, f'{strength:g}') for strength in strengths)}</tr>"
        for kind, strengths in DISTURBANCES.items()
    )
    return (
        f'<section class="scroll samples"><h2>What it looks like</h2><p>The middle of one test image, at most '
        f"{_CROP} of its pixels wide.</p><table><tbody>{rows}</tbody></table></section>"
    )


def _name(kind: str) -> str:
    return f"{kind}<br><small>{UNITS[kind]}</small>"


def _value(one: Disturbed, key: str) -> float:
    value: Any = dict(one)[key]
    return float("nan") if value is None else float(value)


def _range(image: Array) -> tuple[float, float]:
    """What is shown as black and as white: deep images are stretched, all samples alike."""
    if image.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.percentile(image, (0.1, 99.9))
    return float(low), max(float(high), float(low) + 1e-6)


def _jpeg(image: Array, low: float, high: float) -> bytes:
    height, width = image.shape[:2]
    side = min(height, width, _CROP)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side].astype(np.float32)
    shown = np.rint(np.clip((crop - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
