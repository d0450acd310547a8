"""The charts of a report as SVG, drawn from arrays: score histogram, ROC, PRO and sPRO curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Axis", "Curves", "Line", "draw_chart", "draw_histogram", "draw_pro", "draw_roc", "draw_spro"]

CHART_W, CHART_H = 440, 300  # units of the charts' SVG, and the margins inside
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 46
NEEDS_LABELS = "needs good and bad images with labels"
NEEDS_MASKS = "needs ground truth masks"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Curves:
    """Points of the curves, each in rising order of its false positive rate; empty arrays where there is none.

    Attributes:
        roc_fpr: ``(R,)`` false positive rates of the images, 0 to 1.
        roc_tpr: ``(R,)`` true positive rates of the images.
        pro_fpr: ``(K,)`` false positive rates of the pixels.
        pro: ``(K,)`` mean overlap with the ground truth regions.
        pro_limit: false positive rate at which the PRO curve is cut, above 0 to 1.
        spro_fpr: ``(L,)`` false positive rates of the pixels.
        spro: ``(L,)`` mean saturated overlap with the defects.
        spro_limit: as ``pro_limit``.
    """

    roc_fpr: Array
    roc_tpr: Array
    pro_fpr: Array
    pro: Array
    pro_limit: float
    spro_fpr: Array = field(default_factory=lambda: np.empty(0))
    spro: Array = field(default_factory=lambda: np.empty(0))
    spro_limit: float = 0.05


class Axis(NamedTuple):
    """One axis of a chart: its name and the range that it shows."""

    name: str
    low: float
    high: float


class Line(NamedTuple):
    """One line of a chart in the units of its axes; ``style`` is a class of the page's CSS."""

    x: Array
    y: Array
    style: str


def draw_histogram(scores: Array, labels: Sequence[int | None], threshold: float | None) -> str:
    """Chart of the scores ``(N,)`` of good, bad and unlabelled images over one another, each kind in percent."""
    limit = [] if threshold is None or not math.isfinite(threshold) else [threshold]
    if not len(scores):
        return draw_chart("Scores", "no images", Axis("", 0, 1), Axis("", 0, 1), [])
    low, high = float(min([*scores, *limit])), float(max([*scores, *limit]))
    margin = 0.02 * (high - low) or max(abs(low), 1.0) / 2
    edges = np.linspace(low - margin, high + margin, 33)
    lines, keys, top = [], "", 0.0
    for label, name in ((0, "good"), (1, "bad"), (None, "unlabelled")):
        own = scores[[own_label == label for own_label in labels]]
        if len(own):
            share = 100 * np.histogram(own, edges)[0] / len(own)
            top = max(top, float(share.max()))
            lines.append(Line(np.repeat(edges, 2), np.pad(np.repeat(share, 2), 1), f"area {name}"))
            keys += f'<i class="{name}"></i>{name} ({len(own)}) '
    y_axis = Axis("% of the images of a kind", 0.0, 1.05 * top)
    for value in limit:
        lines.append(Line(np.full(2, value), np.array([0.0, y_axis.high]), "limit"))
        keys += f'<i class="limit"></i>threshold {value:.4g}'
    return draw_chart("Scores", keys, Axis("image score", edges[0], edges[-1]), y_axis, lines)


def draw_roc(curves: Curves) -> str:
    """Chart of the ROC curve."""
    lines = [Line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "dashed"), Line(curves.roc_fpr, curves.roc_tpr, "curve")]
    if not len(curves.roc_fpr):
        lines = []
    below = "dashed: chance" if lines else f"no curve: {NEEDS_LABELS}"
    return draw_chart(
        "ROC of the images", below, Axis("false positive rate", 0, 1), Axis("true positive rate", 0, 1), lines
    )


def draw_pro(curves: Curves) -> str:
    """Chart of the PRO curve up to its limit."""
    limit, lines = curves.pro_limit, []
    if len(curves.pro_fpr):
        dashed = Line(np.full(2, min(0.05, limit)), np.array([0.0, 1.0]), "dashed")
        lines = [dashed, _up_to(limit, curves.pro_fpr, curves.pro)]
    below = "dashed: limit of AUPRO@0.05" if lines else f"no curve: {NEEDS_MASKS}"
    x_axis, y_axis = Axis("false positive rate of the pixels", 0, limit), Axis("mean overlap with regions", 0, 1)
    return draw_chart("PRO of the regions", below, x_axis, y_axis, lines)


def draw_spro(curves: Curves) -> str:
    """Chart of the sPRO curve up to its limit; nothing where there is no curve, as few data sets have one."""
    if not len(curves.spro_fpr):
        return ""
    x_axis = Axis("false positive rate of the pixels", 0, curves.spro_limit)
    y_axis = Axis("mean saturated overlap with defects", 0, 1)
    line = _up_to(curves.spro_limit, curves.spro_fpr, curves.spro)
    return draw_chart("sPRO of the defects", "up to the limit of AU-sPRO", x_axis, y_axis, [line])


def _up_to(limit: float, fpr: Array, overlap: Array) -> Line:
    inside = fpr < limit
    x = np.append(fpr[inside], limit)
    return Line(x, np.append(overlap[inside], np.interp(limit, fpr, overlap)), "curve")


def draw_chart(title: str, below: str, x_axis: Axis, y_axis: Axis, lines: Sequence[Line]) -> str:
    """A figure with lines over two axes as an inline SVG whose colours come from the page; without lines only text.

    Points that fall on the same half unit are joined, so a curve over millions of pixels stays small.
    """
    parts = []
    for tick, at in _ticks(x_axis, LEFT, CHART_W - RIGHT):
        parts.append(f'<path class="grid" d="M{at:g} {TOP}V{CHART_H - BOTTOM}"/>')
        parts.append(f'<text x="{at:g}" y="{CHART_H - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for tick, at in _ticks(y_axis, CHART_H - BOTTOM, TOP):
        parts.append(f'<path class="grid" d="M{LEFT} {at:g}H{CHART_W - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:g}" text-anchor="end">{tick:g}</text>')
    for line in lines:
        x, y = _place(line.x, x_axis, LEFT, CHART_W - RIGHT), _place(line.y, y_axis, CHART_H - BOTTOM, TOP)
        points = np.round(2 * np.stack([x, y], axis=1)) / 2  # (K, 2)
        points = points[np.append(True, np.any(np.diff(points, axis=0) != 0, axis=1))]
        parts.append(f'<path class="{line.style}" d="M{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>')
    parts.append(f'<text x="{CHART_W / 2}" y="{CHART_H - 8}" text-anchor="middle">{x_axis.name}</text>')
    parts.append(f'<text transform="translate(14 {CHART_H / 2}) rotate(-90)" text-anchor="middle">{y_axis.name}</text>')
    svg = f'<svg viewBox="0 0 {CHART_W} {CHART_H}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    return f"<figure><h2>{title}</h2>{svg if lines else ''}<figcaption>{below}</figcaption></figure>"


def _place(values: Array, axis: Axis, start: float, end: float) -> Array:
    return np.asarray(start + (values - axis.low) / (axis.high - axis.low) * (end - start))


def _ticks(axis: Axis, start: float, end: float) -> list[tuple[float, float]]:
    """About five round numbers inside the range, and where they stand on the chart."""
    width = axis.high - axis.low
    power = 10.0 ** math.floor(math.log10(width / 5))
    step = next(f * power for f in (1, 2, 5, 10) if width / (f * power) <= 6)
    ticks = np.arange(math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9) + 1) * step
    return list(zip(ticks.round(12).tolist(), _place(ticks, axis, start, end).tolist(), strict=True))
