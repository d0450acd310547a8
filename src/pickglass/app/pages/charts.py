"""Charts as numbers: where lines, bars and ticks lie. ``templates/charts.html.j2`` writes them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal, NamedTuple

import numpy as np

from pickglass.data.files import written_whole
from pickglass.errors import InputError, MissingExtra
from pickglass.metrics.catalogue import METRICS

__all__ = [
    "Axis",
    "Bar",
    "Chart",
    "Curves",
    "Key",
    "Line",
    "Path",
    "Tick",
    "bar_chart",
    "histogram",
    "line_chart",
    "pro_chart",
    "roc_chart",
    "spro_chart",
]

WIDTH, HEIGHT = 440, 300  # units of the SVG, and the margins inside
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 46

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

    def plot(self, path: str | FilePath) -> FilePath:
        """Draw the curves that there are side by side as a figure for a paper, SVG, PDF or PNG by the file's ending.

        Args:
            path: file to write, whole or not at all.

        Raises:
            InputError: no curve, another ending, or the file cannot be written.
            MissingExtra: matplotlib is not installed.

        Example:
            ``pg.evaluate(detector.predict(bottle.test)).curves().plot("bottle.pdf")``
        """
        target = FilePath(path)
        if target.suffix not in (".svg", ".pdf", ".png"):
            raise InputError(f"figure {str(path)!r}: expected a name that ends in .svg, .pdf or .png")
        pixels = "false positive rate of the pixels"
        curves = [
            ("ROC of the images", "false positive rate", "true positive rate", 1.0, self.roc_fpr, self.roc_tpr),
            ("PRO of the regions", pixels, "mean overlap with regions", self.pro_limit, self.pro_fpr, self.pro),
            ("sPRO of the defects", pixels, "mean saturated overlap", self.spro_limit, self.spro_fpr, self.spro),
        ]
        drawn = [curve for curve in curves if len(curve[-1])]
        if not drawn:
            roc, pro = METRICS["image_auroc"].missing, METRICS["aupro_30"].missing
            raise InputError(f"no curve to draw: ROC {roc}, PRO {pro}")
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise MissingExtra.needed("Curves.plot", error) from error
        figure = Figure(figsize=(3.5 * len(drawn), 3.2), layout="constrained")
        places = figure.subplots(1, len(drawn), squeeze=False)[0]
        for place, (title, x_name, y_name, limit, x, y) in zip(places, drawn, strict=True):
            line = _up_to(limit, x, y) if limit < 1 else Line(x, y, "curve")
            place.plot(line.x, line.y)
            place.set(title=title, xlabel=x_name, ylabel=y_name, xlim=(0, limit), ylim=(0, 1.01))
            place.grid(alpha=0.3)
        with written_whole(target) as temporary:
            figure.savefig(temporary, format=target.suffix[1:], dpi=200)
        return target


class Axis(NamedTuple):
    """One axis of a chart: its name and the range that it shows."""

    name: str
    low: float
    high: float


class Line(NamedTuple):
    """One line of a chart in the units of its axes.

    Attributes:
        x: ``(K,)`` places along the x axis.
        y: ``(K,)`` values; the line is interrupted where one is NaN.
        style: classes of the page's style sheet.
        marked: whether each point is marked.
    """

    x: Array
    y: Array
    style: str
    marked: bool = False


class Key(NamedTuple):
    """One entry of a legend: a sample in the same style as what it names, and the name."""

    style: str
    text: str
    shape: Literal["line", "area"]


class Tick(NamedTuple):
    """A text beside an axis, and where it stands in units of the SVG."""

    text: str
    at: float


class Path(NamedTuple):
    """A drawn line: its classes, the ``d`` of its SVG path, and the places (x, y) of its marks."""

    style: str
    d: str
    marks: Sequence[tuple[float, float]] = ()


class Bar(NamedTuple):
    """A drawn bar in units of the SVG."""

    style: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A chart as its template draws it; all places are in units of the SVG.

    Attributes:
        title: heading.
        x_name: name of the x axis.
        y_name: name of the y axis.
        x_ticks: texts below the x axis.
        y_ticks: texts beside the y axis.
        paths: lines.
        bars: bars.
        keys: the legend.
        note: text below the chart.
        vertical_grid: whether the x ticks have grid lines.
    """

    title: str
    x_name: str
    y_name: str
    x_ticks: Sequence[Tick] = ()
    y_ticks: Sequence[Tick] = ()
    paths: Sequence[Path] = ()
    bars: Sequence[Bar] = ()
    keys: Sequence[Key] = ()
    note: str = ""
    vertical_grid: bool = True

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw; otherwise only title and note are shown."""
        return bool(self.paths or self.bars)


def line_chart(
    title: str,
    x_axis: Axis,
    y_axis: Axis,
    lines: Sequence[Line],
    keys: Sequence[Key] = (),
    note: str = "",
    x_names: Mapping[float, str] | None = None,
    y_names: Mapping[float, str] | None = None,
) -> Chart:
    """Place lines over two axes.

    Points that fall on the same half unit are joined, so a curve over millions of pixels stays small. An axis has round
    numbers beside it, or the names given for values on it, e.g. where these are logarithms.
    """
    return Chart(
        title,
        x_axis.name,
        y_axis.name,
        _beside(x_axis, x_names, LEFT, WIDTH - RIGHT),
        _beside(y_axis, y_names, HEIGHT - BOTTOM, TOP),
        [_path(line, x_axis, y_axis) for line in lines],
        keys=keys,
        note=note,
    )


def bar_chart(
    title: str, y_name: str, groups: Sequence[tuple[str, Sequence[float]]], series: Sequence[str], note: str = ""
) -> Chart:
    """Place groups of bars side by side over counts.

    Args:
        title: heading.
        y_name: name of the y axis.
        groups: name of a group, and the height of each of its bars; a group without any says so.
        series: name of the first, second, ... bar of each group.
        note: text below the chart.
    """
    high = max([1.0, *(value for _, values in groups for value in values)])
    y_axis = Axis(y_name, 0, high)
    room = (WIDTH - RIGHT - LEFT) / max(1, len(groups))
    ticks, bars = [], []
    for g, (name, values) in enumerate(groups):
        start, each = LEFT + g * room, 0.8 * room / max(1, len(values))
        ticks.append(Tick(name if any(values) else f"{name}: not done", start + room / 2))
        for i, (value, top) in enumerate(
            zip(values, _place(np.array(values), y_axis, HEIGHT - BOTTOM, TOP), strict=True)
        ):
            if value:
                bars.append(
                    Bar(f"bar series{i}", start + 0.1 * room + i * each, top, 0.9 * each, HEIGHT - BOTTOM - top)
                )
    return Chart(
        title,
        "",
        y_name,
        ticks,
        [Tick(f"{tick:g}", at) for tick, at in _ticks(y_axis, HEIGHT - BOTTOM, TOP) if tick == round(tick)],
        bars=bars,
        keys=[Key(f"bar series{i}", name, "area") for i, name in enumerate(series)],
        note=note,
        vertical_grid=False,
    )


def histogram(
    scores: Array,
    labels: Sequence[int | None],
    threshold: float | None,
    unsure: float | None = None,
    image: float | None = None,
) -> Chart:
    """Chart the scores ``(N,)`` of good, bad and unlabelled images over one another, each kind in percent.

    ``image``: the score of one image that is pointed out among them; None: none is.
    """
    lower, upper = ("unsure above", "limit lower", unsure), ("bad above", "limit", threshold)
    limits = [
        (text if unsure is not None else "threshold", style, value)
        for text, style, value in (lower, upper)
        if value is not None and math.isfinite(value)
    ]
    if image is not None:
        limits.append(("this image", "line series1", image))
    limit = [value for _, _, value in limits]
    if not len(scores):
        return Chart("Scores", "", "", note="no images")
    low, high = float(min([*scores, *limit])), float(max([*scores, *limit]))
    margin = 0.02 * (high - low) or max(abs(low), 1.0) / 2
    edges = np.linspace(low - margin, high + margin, 33)
    lines, keys, top = [], [], 0.0
    for label, name in ((0, "good"), (1, "bad"), (None, "unlabelled")):
        own = scores[[own_label == label for own_label in labels]]
        if len(own):
            share = 100 * np.histogram(own, edges)[0] / len(own)
            top = max(top, float(share.max()))
            lines.append(Line(np.repeat(edges, 2), np.pad(np.repeat(share, 2), 1), f"area {name}"))
            keys.append(Key(f"area {name}", f"{name} ({len(own)})", "area"))
    y_axis = Axis("% of the images of a kind", 0.0, 1.05 * top)
    for text, style, value in limits:
        lines.append(Line(np.full(2, value), np.array([0.0, y_axis.high]), style))
        keys.append(Key(style, f"{text} {value:.4g}", "line"))
    return line_chart("Scores", Axis("image score", edges[0], edges[-1]), y_axis, lines, keys)


def roc_chart(curves: Curves) -> Chart:
    """Chart the ROC curve."""
    title = "ROC of the images"
    if not len(curves.roc_fpr):
        return Chart(title, "", "", note=f"no curve: {METRICS['image_auroc'].missing}")
    chance = Line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "dashed")
    return line_chart(
        title,
        Axis("false positive rate", 0, 1),
        Axis("true positive rate", 0, 1),
        [chance, Line(curves.roc_fpr, curves.roc_tpr, "curve")],
        [Key("dashed", "chance", "line")],
    )


def pro_chart(curves: Curves) -> Chart:
    """Chart the PRO curve up to its limit."""
    title, limit = "PRO of the regions", curves.pro_limit
    if not len(curves.pro_fpr):
        return Chart(title, "", "", note=f"no curve: {METRICS['aupro_30'].missing}")
    inner = Line(np.full(2, min(0.05, limit)), np.array([0.0, 1.0]), "dashed")
    return line_chart(
        title,
        Axis("false positive rate of the pixels", 0, limit),
        Axis("mean overlap with regions", 0, 1),
        [inner, _up_to(limit, curves.pro_fpr, curves.pro)],
        [Key("dashed", f"limit of {METRICS['aupro_05'].label}", "line")],
    )


def spro_chart(curves: Curves) -> Chart | None:
    """Chart the sPRO curve up to its limit; None where there is no curve, as few data sets have one."""
    if not len(curves.spro_fpr):
        return None
    return line_chart(
        "sPRO of the defects",
        Axis("false positive rate of the pixels", 0, curves.spro_limit),
        Axis("mean saturated overlap with defects", 0, 1),
        [_up_to(curves.spro_limit, curves.spro_fpr, curves.spro)],
        note="up to the limit of AU-sPRO",
    )


def _up_to(limit: float, fpr: Array, overlap: Array) -> Line:
    inside = fpr < limit
    x = np.append(fpr[inside], limit)
    return Line(x, np.append(overlap[inside], np.interp(limit, fpr, overlap)), "curve")


def _path(line: Line, x_axis: Axis, y_axis: Axis) -> Path:
    x, y = _place(line.x, x_axis, LEFT, WIDTH - RIGHT), _place(line.y, y_axis, HEIGHT - BOTTOM, TOP)
    points = np.round(2 * np.stack([x, y], axis=1)) / 2  # (K, 2)
    points = points[np.append(True, np.any(np.diff(points, axis=0) != 0, axis=1))]
    parts = ["M" + " ".join(f"{x:g},{y:g}" for x, y in run) for run in _runs(points)]
    marks = [(float(x), float(y)) for x, y in points if np.isfinite(y)] if line.marked else []
    return Path(line.style, "".join(parts), marks)


def _runs(points: Array) -> Iterator[Array]:
    """Split points (K, 2) where a value is missing."""
    known = np.asarray(np.isfinite(points).all(axis=1))  # (K,)
    starts = np.flatnonzero(np.diff(np.append(False, known).astype(int)) == 1)
    for start in starts:
        end = start + np.argmin(np.append(known[start:], False))
        yield points[start:end]


def _place(values: Array, axis: Axis, start: float, end: float) -> Array:
    return np.asarray(start + (values - axis.low) / (axis.high - axis.low) * (end - start))


def _beside(axis: Axis, names: Mapping[float, str] | None, start: float, end: float) -> list[Tick]:
    """Write round numbers beside an axis, or the names given."""
    if names is None:
        return [Tick(f"{tick:g}", at) for tick, at in _ticks(axis, start, end)]
    places = _place(np.array(list(names)), axis, start, end)
    return [Tick(name, float(at)) for name, at in zip(names.values(), places, strict=True)]


def _ticks(axis: Axis, start: float, end: float) -> list[tuple[float, float]]:
    """Return about five round numbers inside the range, and where they stand on the chart."""
    width = axis.high - axis.low
    power = 10.0 ** math.floor(math.log10(width / 5))
    step = next(f * power for f in (1, 2, 5, 10) if width / (f * power) <= 6)
    ticks = np.arange(math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9) + 1) * step
    return list(zip(ticks.round(12).tolist(), _place(ticks, axis, start, end).tolist(), strict=True))
