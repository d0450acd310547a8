"""The page of an advice: the answer, what was painted and what was found, the ranking, and what was ruled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pickglass.app.pages.build import write_page
from pickglass.app.pages.images import Array, Picture, close_up, display, draw_contours, enlarged, heat, jpeg
from pickglass.app.results import Advised, AdviseResult
from pickglass.metrics.catalogue import METRICS

__all__ = ["PaintedImage", "ShownModel", "around", "heat_range", "write_advice"]

ROWS = 25  # of the ranking
SIDE = 96  # px, least side of a close-up
PICTURE = 190  # px, about the side of its picture


@dataclass(frozen=True)
class ShownModel:
    """A candidate whose maps are shown: its name, and the values at the two ends of its colours."""

    name: str
    scale: tuple[float, float]


@dataclass(frozen=True)
class PaintedImage:
    """A window of an image that a defect was painted on.

    Attributes:
        kind: kind of the defect.
        contrast: contrast of the defect.
        pixels: ``(h, w)`` or ``(h, w, 3)`` uint8.
        mask: ``(h, w)`` bool, the defect.
        maps: ``(h, w)`` in the window, one for each shown model.
    """

    kind: str
    contrast: float
    pixels: Array
    mask: Array
    maps: Sequence[Array]


class _Row(NamedTuple):
    """A row of the ranking: its class, the candidate, and what it costs in words."""

    style: str
    values: Advised
    latency: str
    memory: str


class _Drawn(NamedTuple):
    """A painted image as the page shows it."""

    name: str
    pictures: Sequence[Picture]


def heat_range(good_ground: Array) -> tuple[float, float]:
    """Return the map values at the two ends of the colours: what hardly exceeds good ground hardly glows."""
    return float(np.quantile(good_ground, 0.8)), 1.5 * float(np.quantile(good_ground, 0.999))


def write_advice(
    path: Path, name: str, result: AdviseResult, models: Sequence[ShownModel], painted: Sequence[PaintedImage]
) -> Path:
    """Write the page, whole or not at all, and return its path.

    Args:
        path: HTML file.
        name: name of the data set.
        result: the advice.
        models: the candidates whose maps are shown.
        painted: images with defects, to show; none where there is no candidate.
    """
    width = "" if result["width_px"] is None else f" x {result['width_px']:g}"
    millimetres = "" if result["defect_mm"] is None else f" ({result['defect_mm']:.3g} mm)"
    extent = f"{result['defect_px']:g}{width} px{millimetres}"
    ranking = result["ranking"]
    values = {
        "title": f"{name}: what sees a defect of {extent}?",
        "result": result,
        "ranking": [_row(one, result["command"]) for one in ranking[:ROWS]],
        "more": len(ranking) - ROWS,
        "contrasts": list(ranking[0]["by_contrast"]) if ranking else [],
        "aupro": METRICS["aupro_05"],
        "auroc": METRICS["image_auroc"],
        "painted": [_drawn(image, models) for image in painted],
    }
    return write_page(path, "advise.html.j2", values)


def _row(one: Advised, command: str | None) -> _Row:
    styles = [name for name, holds in (("chosen", one["command"] == command), ("slow", one["too_slow"])) if holds]
    latency = f"{'' if one['measured'] else 'about '}{one['latency_ms']:.1f}{', too slow' if one['too_slow'] else ''}"
    return _Row(" ".join(styles), one, latency, _megabytes(one["model_mb"]))


def _megabytes(value: float | None) -> str:
    """Return a size in two digits, so that a small model does not read as none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.095 else "<0.1"


def around(mask: Array) -> tuple[tuple[slice, slice], int]:
    """Return the part of an image around a painted defect, (H, W) bool, and by how much to enlarge it."""
    rows, columns = np.nonzero(mask)
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    side = max(SIDE, 3 * extent)
    middle = (int(rows.min()) + int(rows.max())) // 2, (int(columns.min()) + int(columns.max())) // 2
    return close_up(middle, side, mask.shape), max(1, round(PICTURE / side))


def _drawn(image: PaintedImage, models: Sequence[ShownModel]) -> _Drawn:
    """Draw a painted defect close up, and over it what each model finds."""
    part, times = around(image.mask)
    base, mask = display(enlarged(image.pixels[part], times)), enlarged(image.mask[part], times)
    pictures = [jpeg("", "as painted", base), jpeg("", "the defect", draw_contours(base, truth=mask))]
    for model, values in zip(models, image.maps, strict=True):
        coloured = heat(base, enlarged(values[part], times), model.scale)
        pictures.append(jpeg("", model.name, draw_contours(coloured, truth=mask)))
    return _Drawn(f"{image.kind}, contrast {image.contrast:.2g}", pictures)
