"""The page of a robustness test: a chart for each metric, a table, and what the disturbances look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pickglass.app.pages.build import write_page
from pickglass.app.pages.charts import Axis, Chart, Key, Line, line_chart
from pickglass.app.pages.images import Array, Picture, display, jpeg, thumbnail, value_range
from pickglass.app.results import Disturbed, RobustnessResult
from pickglass.calibration import Calibration
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS
from pickglass.metrics.catalogue import Metric, shown

__all__ = ["Samples", "draw_samples", "write_robustness"]

Samples = Mapping[tuple[str, float], Picture]
"""(kind, strength) -> picture."""

COLUMNS = (
    "image_auroc",
    "aupro_30",
    "aupro_05",
    "false_alarm_rate",
    "miss_rate",
    "unsure_good_rate",
    "unsure_defective_rate",
)
CROP = 256  # original px, side of what a sample shows
SIDE = 128  # px, side of a sample
FULL = 0.3  # loss from which a cell of the table has its full colour
SHADES = 10  # of that colour


class _Step(NamedTuple):
    """One strength of a kind: its values, and the class of each metric's cell."""

    values: Disturbed
    worse: Mapping[str, str]


class _Kind(NamedTuple):
    """One kind of disturbance with its strengths and what they look like."""

    name: str
    unit: str
    steps: Sequence[_Step]
    samples: Sequence[Picture]


def draw_samples(image: Callable[[str, float], Array]) -> dict[tuple[str, float], Picture]:
    """Draw the middle of an image, as it is and under every disturbance.

    Args:
        image: returns it for a kind, ``"none"`` for as it is, and a strength.
    """
    plain = image("none", 0.0)
    span = value_range(plain)  # deep images are stretched, all samples alike
    samples = {("none", 0.0): _sample(plain, span, "as it is")}
    for kind, strengths in DISTURBANCES.items():
        for strength in strengths:
            samples[kind, strength] = _sample(image(kind, strength), span, f"{strength:g}")
    return samples


def write_robustness(
    target: Path, title: str, result: RobustnessResult, calibration: Calibration | None, samples: Samples
) -> Path:
    """Write the page and return its path.

    Args:
        target: HTML file, written whole or not at all.
        title: heading of the page.
        result: what was measured.
        calibration: the thresholds of the model, None if it has none.
        samples: what the disturbances look like.
    """
    undisturbed = result["undisturbed"]
    columns = shown(COLUMNS, [undisturbed, *result["disturbed"]])
    by_kind = {kind: [one for one in result["disturbed"] if one["kind"] == kind] for kind in DISTURBANCES}
    kinds = [
        _Kind(
            kind,
            UNITS[kind],
            [_Step(one, {metric.key: _shade(metric, one, undisturbed) for metric in columns}) for one in steps],
            [samples["none", 0.0], *(samples[kind, strength] for strength in DISTURBANCES[kind])],
        )
        for kind, steps in by_kind.items()
    ]
    values = {
        "title": title,
        "n": result["n"],
        "seed": result["seed"],
        "threshold": None if calibration is None else calibration.image_threshold,
        "unsure": None if calibration is None else calibration.unsure_threshold,
        "failed": [(item["path"], item["error"]) for item in result["failed"]],
        "charts": [_chart(metric, undisturbed, by_kind) for metric in columns],
        "columns": columns,
        "undisturbed": undisturbed,
        "kinds": kinds,
        "full": FULL,
        "crop": CROP,
    }
    return write_page(target, "robustness.html.j2", values)


def _chart(metric: Metric, undisturbed: Disturbed, by_kind: Mapping[str, Sequence[Disturbed]]) -> Chart:
    """Chart a metric over the steps of strength, a line a kind; step 0 is the images as they are."""
    start = _value(undisturbed, metric)
    lines, keys, values = [], [], [start]
    for i, (kind, steps) in enumerate(by_kind.items()):
        y = np.array([start, *(_value(one, metric) for one in steps)])  # (1 + steps,)
        if np.isfinite(y).any():
            lines.append(Line(np.arange(len(y), dtype=float), y, f"line series{i}"))
            keys.append(Key(f"line series{i}", kind, "line"))
            values += y.tolist()
    if not lines:
        return Chart(metric.label, "", "", note=f"no curve: {metric.missing}")
    x_axis = Axis("step of strength, see the table", 0, max(len(steps) for steps in by_kind.values()))
    if metric.higher_is_better:
        y_axis = Axis(metric.label, min(math.floor(10 * np.nanmin(values)) / 10, 0.9), 1)
    else:
        y_axis = Axis(metric.label, 0, max(math.ceil(10 * np.nanmax(values)) / 10, 0.1))
    return line_chart(metric.label, x_axis, y_axis, lines, keys)


def _shade(metric: Metric, one: Disturbed, undisturbed: Disturbed) -> str:
    """Return the class of a cell: the more colour, the worse than undisturbed; empty where nothing was lost."""
    loss = (_value(undisturbed, metric) - _value(one, metric)) * (1 if metric.higher_is_better else -1)
    share = 0.0 if math.isnan(loss) else min(max(loss / FULL, 0.0), 1.0)
    return f"worse{math.ceil(SHADES * share)}" if share >= 0.01 else ""


def _value(one: Disturbed, metric: Metric) -> float:
    value: Any = dict(one)[metric.key]
    return math.nan if value is None else float(value)


def _sample(image: Array, span: tuple[float, float], caption: str) -> Picture:
    height, width = image.shape[:2]
    side = min(height, width, CROP)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side]
    return jpeg("", caption, thumbnail(display(crop, span), (SIDE, SIDE)))
