"""The page of what a model sees: the curve of size and contrast, its table, and defects at the edge of what is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pickglass.app.pages.advise import around
from pickglass.app.pages.build import write_page
from pickglass.app.pages.charts import Axis, Chart, Key, Line, line_chart
from pickglass.app.pages.images import Array, Picture, display, draw_contours, enlarged, jpeg
from pickglass.app.results import SightResult

__all__ = ["SeenDefect", "write_sight"]

_STYLES = 8
_BEYOND = 2.0  # contrast at which the chart draws what is seen at no contrast up to 1


@dataclass(frozen=True)
class SeenDefect:
    """One painted defect at one place, as the model missed it and as it saw it.

    Attributes:
        kind, size_px: of the defect.
        mask: ``(H, W)`` bool, the defect.
        tries: ``(H, W)`` or ``(H, W, 3)`` uint8 with its contrast, and whether the model saw it.
    """

    kind: str
    size_px: float
    mask: Array
    tries: Sequence[tuple[Array, float, bool]]


class _Drawn(NamedTuple):
    name: str
    pictures: Sequence[Picture]


def write_sight(path: Path, name: str, result: SightResult, shown: Sequence[SeenDefect]) -> Path:
    """Write the page, whole or not at all, and return its path.

    Args:
        path: HTML file.
        name: name of the data set.
        result: what the model sees.
        shown: defects at the edge of what it sees.
    """
    values = {
        "title": f"{name}: what does {Path(result['model']).name} see?",
        "result": result,
        "chart": _chart(result) if len(result["sizes"]) > 1 else None,
        "drawn": [_drawn(one) for one in shown],
    }
    return write_page(path, "sight.html.j2", values)


def _chart(result: SightResult) -> Chart:
    """Chart the contrast at which half of the defects are seen over their size, all kinds together and each by itself.

    Both axes double from step to step.
    """
    sizes = [one["size_px"] for one in result["sizes"]]
    x = np.log2(np.array(sizes))
    every = _line([one["contrast"] for one in result["sizes"]])
    lines, keys = [Line(x, every, "line curve", marked=True)], [Key("line curve", "all kinds", "line")]
    for i, kind in enumerate(result["kinds"][:_STYLES]):
        lines.append(Line(x, _line([one["by_kind"].get(kind) for one in result["sizes"]]), f"line series{i}"))
        keys.append(Key(f"line series{i}", kind, "line"))
    contrasts = {-4.0: "1/16", -3.0: "1/8", -2.0: "1/4", -1.0: "1/2", 0.0: "1"}
    return line_chart(
        "Seen from this contrast on",
        Axis("size of the defect, px", float(x[0]), float(x[-1])),
        Axis("contrast; 1 is clearly visible", math.log2(0.04), math.log2(_BEYOND)),
        lines,
        keys,
        "Half of the painted defects are seen from the line up. At the top: not even at contrast 1.",
        {float(at): f"{size:g}" for at, size in zip(x, sizes, strict=True)},
        {**contrasts, math.log2(_BEYOND): "not at 1"},
    )


def _line(values: Sequence[float | None]) -> Array:
    return np.array([math.log2(_BEYOND if value is None else value) for value in values])


def _drawn(one: SeenDefect) -> _Drawn:
    part, times = around(one.mask)
    outline = enlarged(one.mask[part], times)
    pictures = []
    for pixels, contrast, seen in one.tries:
        base = display(enlarged(pixels[part], times))
        pictures.append(jpeg("", f"contrast {contrast:.2g}: {'seen' if seen else 'missed'}", base))
    pictures.append(jpeg("", "the defect", draw_contours(base, truth=outline)))
    return _Drawn(f"{one.kind} of {one.size_px:g} px", pictures)
