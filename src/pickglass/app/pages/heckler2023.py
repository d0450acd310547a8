"""Figures 2 to 5 of the study of Heckler, König and Bergmann, drawn from the rows of a study's file.

A figure's value is the mean over data sets of the mean over seeds. :mod:`pickglass.app.study.heckler2023` has the
combinations, and says where they depart from the paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from pickglass.app.pages.charts import Axis, Chart, Line, bar_chart, line_chart
from pickglass.metrics.catalogue import METRICS

__all__ = ["Figure", "Panel", "PanelRow", "best_layers", "draw_figures", "mean_values"]

AST, FLOW, CORE = "asymmetric_student_teacher", "fastflow", "patchcore"
BACKBONES = ("resnet50", "wide_resnet50_2", "densenet201", "efficientnet_b5")
SIZES = (128, 256, 512)
WEIGHTS = ("mocov2", "swav", "selav2", "simclr", "v2", "random")

_SHOWN = ("image_auroc", "aupro_30")
_NAMES = {
    AST: "AsymST",
    FLOW: "FastFlow",
    CORE: "PatchCore",
    "mocov2": "MoCo v2",
    "swav": "SwAV",
    "selav2": "SeLa v2",
    "simclr": "SimCLR",
    "v2": "supervised",
}

Rows = Sequence[Mapping[str, Any]]
Fields = Mapping[str, int]
"""Layer -> receptive field in pixels, the smallest first."""


class PanelRow(NamedTuple):
    """A row of the table below a chart: the class of its line, its name, and its values, None where not done."""

    style: str
    name: str
    texts: Sequence[str | None]


class Panel(NamedTuple):
    """One chart of a figure, and the same numbers as a table where it has lines."""

    chart: Chart
    heads: Sequence[str] = ()
    rows: Sequence[PanelRow] = ()


class Figure(NamedTuple):
    """A figure of the paper: its heading, a sentence about it, and its charts."""

    title: str
    text: str
    panels: Sequence[Panel]


def mean_values(rows: Rows, metric: str, **wanted: Any) -> dict[str, float]:
    """Return data set -> mean over the seeds of a metric, over the finished cells that have these fields.

    Args:
        rows: the rows of the study's file.
        metric: its column.
        wanted: other columns and their values, e.g. ``method="fastflow"``.
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["state"] == "done" and row[metric] is not None and _fits(row, wanted):
            cell = json.loads(row["cell"])
            found.setdefault(f"{cell['root']} {cell['dataset']}", []).append(row[metric])
    return {name: fmean(values) for name, values in found.items()}


def best_layers(rows: Rows, metric: str, layers: Iterable[str], **wanted: Any) -> tuple[dict[str, float], int]:
    """Count for how many data sets each layer is the best; layers that tie share the data set.

    Args:
        rows: the rows of the study's file.
        metric: its column; higher is better.
        layers: to compare; data sets for which one of them is not done are left out.
        wanted: other columns and their values, e.g. ``method="fastflow"``.

    Returns:
        Layer -> count, and how many data sets were counted.
    """
    values = {layer: mean_values(rows, metric, layers=layer, **wanted) for layer in layers}
    names = set.intersection(*(set(own) for own in values.values())) if values else set()
    counts = dict.fromkeys(values, 0.0)
    for name in names:
        top = max(own[name] for own in values.values())
        winners = [layer for layer, own in values.items() if top - own[name] < 1e-9]
        for layer in winners:
            counts[layer] += 1 / len(winners)
    return counts, len(names)


def draw_figures(rows: Rows, fields: Mapping[str, Fields]) -> list[Figure]:
    """Draw figures 2 to 5; what is not done stays empty.

    Args:
        rows: the rows of the study's file.
        fields: backbone -> receptive fields of its layers.
    """
    figures = [
        Figure(
            "Figure 2: the best layer of each object",
            "How many objects a layer is best for; ties are shared. Layers by their receptive field, from small to "
            "large.",
            [Panel(_figure2(rows, method, metric, fields)) for method in (AST, FLOW) for metric in _SHOWN],
        ),
        Figure(
            "Figure 3: the image size",
            "",
            [
                _figure3(rows, method, backbone, metric, fields.get(backbone, {}))
                for method, backbone in ((FLOW, "wide_resnet50_2"), (CORE, "densenet201"))
                for metric in _SHOWN
            ],
        ),
    ]
    for number, method in ((4, AST), (5, CORE)):
        title = f"Figure {number}: pretraining of ResNet-50, {_NAMES[method]}"
        panels = [_figure4(rows, method, metric, fields.get("resnet50", {})) for metric in _SHOWN]
        figures.append(Figure(title, "", panels))
    return figures


def _fits(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(str(row[name]) == str(value) for name, value in wanted.items())


def _figure2(rows: Rows, method: str, metric: str, fields: Mapping[str, Fields]) -> Chart:
    groups: list[tuple[str, list[float]]] = []
    objects = []
    for backbone in BACKBONES:
        own = {"method": method, "backbone": backbone, "weights": "default", "size": 256}
        counts, n = best_layers(rows, metric, fields.get(backbone, ()), **own)
        groups.append((backbone, list(counts.values())))
        objects.append(f"{backbone} {n}")
    layers = [f"layer {i + 1}" for i in range(max(len(values) for _, values in groups))]
    title = f"{_NAMES[method]}, {METRICS[metric].label}"
    return bar_chart(title, "objects", groups, layers, f"objects counted: {', '.join(objects)}")


def _figure3(rows: Rows, method: str, backbone: str, metric: str, fields: Fields) -> Panel:
    def value(layer: str, size: int) -> float | None:
        own = {"method": method, "backbone": backbone, "weights": "default", "layers": layer, "size": size}
        return _mean(rows, metric, own)

    names = {layer: f"{layer} (field {field} px)" for layer, field in fields.items()}
    title = f"{_NAMES[method]}, {backbone}, {METRICS[metric].label}"
    return _lines(title, "image size in px", metric, SIZES, [f"{size} px" for size in SIZES], names, value)


def _figure4(rows: Rows, method: str, metric: str, fields: Fields) -> Panel:
    layers = list(fields)

    def value(weights: str, place: int) -> float | None:
        own = {"method": method, "backbone": "resnet50", "weights": weights, "layers": layers[place - 1], "size": 256}
        return _mean(rows, metric, own)

    names = {weights: _NAMES.get(weights, weights) for weights in WEIGHTS}
    title = f"{_NAMES[method]}, {METRICS[metric].label}"
    return _lines(title, "layer, by its receptive field", metric, range(1, len(layers) + 1), layers, names, value)


def _mean(rows: Rows, metric: str, wanted: Mapping[str, Any]) -> float | None:
    """Return the mean over the data sets; None while one of them has a cell that is not done."""
    if any(row["state"] != "done" for row in rows if _fits(row, wanted)):
        return None
    values = mean_values(rows, metric, **wanted)
    return fmean(values.values()) if values else None


def _lines(
    title: str,
    below: str,
    metric: str,
    places: Sequence[int],
    heads: Sequence[str],
    names: Mapping[str, str],
    value: Callable[[str, int], float | None],
) -> Panel:
    """Chart a line a name over the places, and give the same numbers as a table."""
    found = {name: [value(name, place) for place in places] for name in names}
    rows = [
        PanelRow(f"series{i}", names[name], [None if v is None else f"{v:.3f}" for v in own])
        for i, (name, own) in enumerate(found.items())
    ]
    known = [v for own in found.values() for v in own if v is not None]
    if not known:
        return Panel(Chart(title, "", "", note="not done"), heads, rows)
    lines = [
        Line(np.array(places, float), np.array(own, float), f"line series{i}", marked=True)
        for i, own in enumerate(found.values())
    ]
    margin = (places[-1] - places[0]) * 0.05
    x_axis = Axis(below, places[0] - margin, places[-1] + margin)
    y_axis = Axis(METRICS[metric].label, min([0.5, *known]) - 0.02, 1.0)
    return Panel(line_chart(title, x_axis, y_axis, lines), heads, rows)
