"""The study of Heckler, König and Bergmann, with the figures of its supplementary material.

"Exploring the Importance of Pretrained Feature Extractors for Unsupervised Anomaly Detection and Localization", CVPR
workshops 2023: four backbones, each of table 2's layers on its own, six initialisations of a ResNet-50 (table 1).

What the supplementary material leaves open, and what is done here: the input of figures 2, 4 and 5 has 256 pixels a
side, that of figure 3 also 128 and 512. Supervised weights are torchvision's IMAGENET1K_V1, in figures 4 and 5 the
IMAGENET1K_V2 that table 1 names. A figure's value is the mean over data sets of the mean over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from pickglass.app.charts import Axis, Line, draw_chart
from pickglass.app.page import as_text
from pickglass.app.see.layers import layers as measure_layers
from pickglass.app.see.request import BackboneRequest
from pickglass.app.study.cells import Grid
from pickglass.app.study.store import StudyStore
from pickglass.features.backbones.registry import find_backbone

__all__ = ["HECKLER2023", "STYLE", "best_layers", "draw_figures", "layers_by_field", "mean_values"]

_AST, _FLOW, _CORE = "asymmetric_student_teacher", "fastflow", "patchcore"
_BACKBONES = ("resnet50", "wide_resnet50_2", "densenet201", "efficientnet_b5")
_SIZES = (128, 256, 512)
_WEIGHTS = ("mocov2", "swav", "selav2", "simclr", "v2", "random")

HECKLER2023 = (
    Grid((_AST, _FLOW), _BACKBONES),  # figure 2
    Grid((_FLOW,), ("wide_resnet50_2",), sizes=_SIZES),  # figure 3
    Grid((_CORE,), ("densenet201",), sizes=_SIZES),
    Grid((_AST, _CORE), ("resnet50",), weights=_WEIGHTS),  # figures 4 and 5
)

_METRICS = {"image_auroc": "image AUROC", "aupro_30": "AUPRO@0.30"}
_NAMES = {
    _AST: "AsymST",
    _FLOW: "FastFlow",
    _CORE: "PatchCore",
    "mocov2": "MoCo v2",
    "swav": "SwAV",
    "selav2": "SeLa v2",
    "simclr": "SimCLR",
    "v2": "supervised",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0408f", "#b08a00", "#6a737d")
STYLE = (
    "".join(
        f".s{i}{{stroke:{c};stroke-width:2}}i.s{i}{{--kind:{c}}}.b{i}{{fill:{c}!important}}"
        for i, c in enumerate(_COLOURS)
    )
    + "h2.figure{margin-top:28px}td.empty{color:var(--soft)}"
    + ".two{grid-template-columns:repeat(auto-fit,minmax(min(100%,540px),1fr))}"
)

Rows = Sequence[Mapping[str, Any]]


def layers_by_field(store: StudyStore, backbone: str) -> dict[str, int]:
    """The named layers of a backbone and their receptive fields by gradient in pixels, the smallest first.

    Measured once and kept in the file; without the published weights on random ones.
    """
    names = [level.name for level in find_backbone(backbone).levels]
    known = store.fields(backbone)
    if not set(names) <= set(known):
        found = measure_layers(BackboneRequest(backbone, names))
        known = {node["name"]: node["rf_gradient"] for node in found["nodes"]}
        store.keep_fields(backbone, found["weights"], known)
    return {name: known[name] for name in sorted(names, key=lambda name: (known[name], names.index(name)))}


def mean_values(rows: Rows, metric: str, **wanted: Any) -> dict[str, float]:
    """Data set -> mean over the seeds of a metric over the cells that are done, with these fields."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["state"] == "done" and row[metric] is not None and _fits(row, wanted):
            cell = json.loads(row["cell"])
            found.setdefault(f"{cell['root']} {cell['dataset']}", []).append(row[metric])
    return {name: fmean(values) for name, values in found.items()}


def best_layers(rows: Rows, metric: str, layers: Iterable[str], **wanted: Any) -> tuple[dict[str, float], int]:
    """For how many data sets each layer is the best; layers that tie share the data set.

    Args:
        rows: the rows of the study's file.
        metric: column, higher is better.
        layers: to compare; data sets for which one of them is not done are left out.
        wanted: other fields, e.g. ``method="fastflow"``.

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


def draw_figures(store: StudyStore, rows: Rows) -> str:
    """Figures 2 to 5 as HTML; what is not done stays empty."""
    used = {row["backbone"] for row in rows}
    fields = {backbone: layers_by_field(store, backbone) for backbone in _BACKBONES if backbone in used}
    parts = [
        "<h2 class='figure'>Figure 2: the best layer of each object</h2><p>How many objects a layer is best for; ",
        "ties are shared. Layers by their receptive field, from small to large.</p><div class='charts two'>",
    ]
    parts += [_figure2(rows, method, metric, fields) for method in (_AST, _FLOW) for metric in _METRICS]
    parts.append("</div><h2 class='figure'>Figure 3: the image size</h2><div class='charts two'>")
    for method, backbone in ((_FLOW, "wide_resnet50_2"), (_CORE, "densenet201")):
        parts += [_figure3(rows, method, backbone, metric, fields.get(backbone, {})) for metric in _METRICS]
    parts.append("</div>")
    for number, method in ((4, _AST), (5, _CORE)):
        title = f"Figure {number}: pretraining of ResNet-50, {_NAMES[method]}"
        parts.append(f"<h2 class='figure'>{title}</h2><div class='charts two'>")
        parts += [_figure4(rows, method, metric, fields.get("resnet50", {})) for metric in _METRICS]
        parts.append("</div>")
    return "".join(parts)


def _fits(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(str(row[name]) == str(value) for name, value in wanted.items())


def _figure2(rows: Rows, method: str, metric: str, fields: Mapping[str, Mapping[str, int]]) -> str:
    bars: list[tuple[str, list[float]]] = []
    objects = []
    for backbone in _BACKBONES:
        own = {"method": method, "backbone": backbone, "weights": "default", "size": 256}
        counts, n = best_layers(rows, metric, fields.get(backbone, ()), **own)
        bars.append((backbone, list(counts.values())))
        objects.append(f"{backbone} {n}")
    title = f"{_NAMES[method]}, {_METRICS[metric]}"
    return _bars(title, f"objects counted: {', '.join(objects)}", bars)


def _bars(title: str, below: str, groups: Sequence[tuple[str, Sequence[float]]]) -> str:
    width, height, left, bottom, top = 440, 240, 40, 30, 10
    high = max([1.0, *(value for _, values in groups for value in values)])
    step = max(1, round(high / 5))
    parts = []
    for tick in range(0, int(high) + 1, step):
        y = height - bottom - tick / high * (height - bottom - top)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    room = (width - left) / max(1, len(groups))
    for g, (name, values) in enumerate(groups):
        x = left + g * room
        each = 0.8 * room / max(1, len(values))
        for i, value in enumerate(values):
            tall = value / high * (height - bottom - top)
            place = f'x="{x + 0.1 * room + i * each:.1f}" y="{height - bottom - tall:.1f}"'
            parts.append(f'<rect class="b{i}" {place} width="{0.9 * each:.1f}" height="{tall:.1f}"/>')
        parts.append(f'<text x="{x + room / 2:.1f}" y="{height - 10}" text-anchor="middle">{as_text(name)}</text>')
        if not any(values):
            middle = f'x="{x + room / 2:.1f}" y="{height / 2}"'
            parts.append(f'<text {middle} text-anchor="middle">not done</text>')
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    keys = "".join(f'<i class="s{i}"></i>layer {i + 1}' for i in range(max((len(v) for _, v in groups), default=0)))
    return f"<figure><h2>{title}</h2>{svg}<figcaption>{keys}<br>{as_text(below)}</figcaption></figure>"


def _figure3(rows: Rows, method: str, backbone: str, metric: str, fields: Mapping[str, int]) -> str:
    def value(layer: str, size: Any) -> float | None:
        own = {"method": method, "backbone": backbone, "weights": "default", "layers": layer, "size": size}
        return _mean(rows, metric, own)

    names = {layer: f"{layer} (field {field} px)" for layer, field in fields.items()}
    heads = [f"{size} px" for size in _SIZES]
    title = f"{_NAMES[method]}, {backbone}, {_METRICS[metric]}"
    return _lines(title, "image size in px", metric, list(_SIZES), heads, names, value)


def _figure4(rows: Rows, method: str, metric: str, fields: Mapping[str, int]) -> str:
    layers = list(fields)

    def value(weights: str, place: Any) -> float | None:
        own = {"method": method, "backbone": "resnet50", "weights": weights, "layers": layers[place - 1], "size": 256}
        return _mean(rows, metric, own)

    names = {weights: _NAMES.get(weights, weights) for weights in _WEIGHTS}
    places = list(range(1, len(layers) + 1))
    below = "layer, by its receptive field"
    return _lines(f"{_NAMES[method]}, {_METRICS[metric]}", below, metric, places, layers, names, value)


def _mean(rows: Rows, metric: str, wanted: Mapping[str, Any]) -> float | None:
    """Mean over the data sets; None while one of them has a cell that is not done."""
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
    value: Callable[[str, Any], float | None],
) -> str:
    """A chart with a line a name, and the same numbers as a table."""
    found = {name: [value(name, place) for place in places] for name in names}
    values = [v for own in found.values() for v in own if v is not None]
    low = min([0.5, *values]) - 0.02
    mark = (places[-1] - places[0]) / 80 if places else 0
    lines = []
    table = ""
    for i, (name, own) in enumerate(found.items()):
        known = [(place, v) for place, v in zip(places, own, strict=True) if v is not None]
        for (a, at_a), (b, at_b) in pairwise(zip(places, own, strict=True)):
            if at_a is not None and at_b is not None:
                lines.append(Line(np.array([a, b], float), np.array([at_a, at_b]), f"s{i}"))
        lines += [Line(np.array([x - mark, x + mark]), np.array([v, v]), f"s{i}") for x, v in known]
        cells = "".join("<td class=empty>–</td>" if v is None else f"<td>{v:.3f}</td>" for v in own)
        table += f'<tr><th scope="row"><i class="s{i}"></i>{as_text(names[name])}</th>{cells}</tr>'
    chart = f"<figure><h2>{title}</h2><figcaption>not done</figcaption></figure>"
    if lines:
        margin = (places[-1] - places[0]) * 0.05
        x_axis = Axis(below, places[0] - margin, places[-1] + margin)
        chart = draw_chart(title, "", x_axis, Axis(_METRICS[metric], low, 1.0), lines)
    top = "".join(f'<th scope="col">{as_text(head)}</th>' for head in heads)
    return f'<div>{chart}<div class="scroll"><table><thead><tr><th></th>{top}</tr></thead>{table}</table></div></div>'
