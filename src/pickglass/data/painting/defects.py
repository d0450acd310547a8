"""Defects are painted on images with exact masks, from the statistics of the image that they lie on.

A kind draws its shape once, in units of its own size, and can then be rendered at any scale. A rendered defect is
a few fields over the pixels: where the surface comes from (``source``: threads pushed aside, a part that was moved),
how far it is replaced (``cover``), by which level (``tone``), and how much light is added to or taken from what shows
through (``light``). Levels are in units of a strength that follows the local contrast, so that a defect is as strong
on quiet metal as it is on rough cloth. A new kind is one function, a line in :data:`KINDS` and its name in
:data:`Kind`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.data.painting.part_defects import misplaced_part, missing_part, surplus_part
from pickglass.data.painting.shapes import Drawn, Floats, Grid, Scene, Source, ndimage
from pickglass.data.painting.surface_defects import crack, dent, hole, scratch, shade, stain, streak
from pickglass.data.painting.thread_defects import broken_pick, foreign_fibre, knot, missing_end, slub
from pickglass.errors import InputError, UnknownName

__all__ = ["KINDS", "WITH_WIDTH", "Kind", "Painted", "paint"]

Kind = Literal[
    "scratch",
    "hole",
    "stain",
    "crack",
    "dent",
    "shade",
    "streak",
    "broken_pick",
    "missing_end",
    "slub",
    "knot",
    "foreign_fibre",
    "missing_part",
    "surplus_part",
    "misplaced_part",
]


@dataclass(frozen=True)
class Painted:
    """An image shows a painted defect, and its mask says where.

    Attributes:
        image: a copy, ``(H, W)`` or ``(H, W, 3)`` uint8.
        mask: bool ``(H, W)``: exactly the pixels that differ from the original by a grey level or more in any channel;
            of a soft defect those that differ by at least a quarter of what the most changed pixel does.
        box: x, y, width, height of the mask in pixels.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]


KINDS: dict[str, Callable[[np.random.Generator, Scene], Drawn]] = {
    "scratch": scratch,
    "hole": hole,
    "stain": stain,
    "crack": crack,
    "dent": dent,
    "shade": shade,
    "streak": streak,
    "broken_pick": broken_pick,
    "missing_end": missing_end,
    "slub": slub,
    "knot": knot,
    "foreign_fibre": foreign_fibre,
    "missing_part": missing_part,
    "surplus_part": surplus_part,
    "misplaced_part": misplaced_part,
}

WITH_WIDTH = ("scratch", "hole", "stain", "crack", "dent", "shade", "streak")
"""The kinds that can be painted at a width of their own; threads and parts are as wide as the image has them."""

_OWN_SPREAD = 0.43  # px: how soft edges are painted anyway, a ramp of a pixel and a half
_VISIBLE = 0.25  # of the greatest change: what is less of a soft defect is its skirt


def paint(
    image: NDArray[np.uint8],
    kind: Kind,
    size_px: float,
    rng: np.random.Generator,
    contrast: float = 1.0,
    *,
    width_px: float | None = None,
    spread_px: float = 0.0,
) -> Painted:
    """Paint one defect at a random place.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)`` uint8; not changed.
        kind: a name in :data:`KINDS`.
        size_px: longest extent of the defect in pixels, at least 4, reached within a pixel or two.
        rng: decides place and shape.
        contrast: 1 is clearly visible against the texture around; 0.3 is hard to see.
        width_px: width of a scratch or crack, or how wide a blob is across, at least 1 and at most ``size_px``; None:
            as the kind has it. Kinds in :data:`WITH_WIDTH` only.
        spread_px: standard deviation of the point that the camera makes of a point, see
            :func:`pickglass.data.painting.softness.edge_spread`; 0: edges as sharp as pixels.

    Raises:
        UnknownName: no such kind.
        InputError: another dtype or shape, a size that does not fit into the image, a contrast not above 0, a width
            for a kind that has its own, a spread below 0, or no change of a grey level because the contrast is too low.
        MissingExtra: SciPy is not installed.

    >>> plate = np.full((64, 64), 128, np.uint8)
    >>> painted = paint(plate, "hole", 12, np.random.default_rng(0))
    >>> bool((painted.mask == (painted.image != plate)).all())
    True
    """
    _check(image, kind, size_px, contrast)
    _check_shape(kind, size_px, width_px, spread_px)
    height, width = image.shape[:2]
    reach = size_px / 2 + 1
    best: _Fitted | None = None
    for _ in range(4):  # a place may not have it: a part too thin, ground as dark as the shadow
        anywhere = (rng.uniform(reach, height - reach), rng.uniform(reach, width - reach))
        drawn = KINDS[kind](rng, Scene(image, size_px, anywhere, width_px))
        fitted = _fitted(image, drawn, size_px, contrast, spread_px)
        if best is None or fitted.miss < best.miss:
            best = fitted
        if best.miss <= 1:
            break
    if best is None or not best.differs.any():
        raise InputError(f"contrast={contrast!r} changes no pixel by a grey level: raise it")
    return _pasted(image, best)


class _Fitted(NamedTuple):
    """A part of the image shows the defect at one scale."""

    changed: NDArray[np.uint8]  # (h, w[, 3])
    differs: NDArray[np.bool_]  # (h, w)
    corner: tuple[int, int]
    miss: float  # px


def _fitted(image: NDArray[np.uint8], drawn: Drawn, size_px: float, contrast: float, spread_px: float) -> _Fitted:
    """Render the defect at the scale at which its mask is as long as asked."""
    scale, tried = float(size_px), []
    for _ in range(6):  # how far a soft edge reaches depends on the texture: render, measure, rescale
        changed, corner = _rendered(image, drawn, scale, size_px, contrast, spread_px)
        rows, columns = changed.shape[:2]
        part = image[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        differs = _shown(changed, part, soft=spread_px > 0)  # (h, w)
        extent = _extent(differs)
        tried.append(_Fitted(changed, differs, corner, abs(extent - size_px)))
        if tried[-1].miss <= 0.5:
            break
        scale *= min(max(size_px / max(extent, 1.0), 0.5), 2.0)
    return min(tried, key=lambda fitted: fitted.miss)


def _check(image: NDArray[Any], kind: str, size_px: float, contrast: float) -> None:
    if kind not in KINDS:
        raise UnknownName("kind of defect", kind, KINDS)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"image of {image.dtype} {image.shape}, expected uint8 (H, W) or (H, W, 3)")
    limit = min(image.shape[:2]) - 2
    if not 4 <= size_px <= limit:
        raise InputError(f"size_px={size_px!r}: expected 4 to {limit}, the shorter side of the image less 2")
    if not 0 < contrast < math.inf:
        raise InputError(f"contrast={contrast!r}: expected a number above 0, e.g. 1.0")


def _check_shape(kind: str, size_px: float, width_px: float | None, spread_px: float) -> None:
    if width_px is not None and kind not in WITH_WIDTH:
        raise InputError(
            f"width_px={width_px!r}: {kind} has a width of its own; a width can be given to {', '.join(WITH_WIDTH)}"
        )
    if width_px is not None and not 1 <= width_px <= size_px:
        raise InputError(f"width_px={width_px!r}: expected 1 to {size_px:g}, the length")
    if not 0 <= spread_px < math.inf:
        raise InputError(f"spread_px={spread_px!r}: expected pixels of the image, 0 or more, e.g. 1.2")


def _rendered(
    image: NDArray[np.uint8],
    drawn: Drawn,
    scale: float,
    size_px: float,
    contrast: float,
    spread_px: float,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Render the defect on the part of the image around it, and say where that part's first pixel lies."""
    (height, width), (middle, render) = image.shape[:2], drawn
    reach = 0.75 * max(size_px, scale) + 4 + 4 * spread_px
    top, left = max(0, int(middle[0] - reach)), max(0, int(middle[1] - reach))
    part = image[top : min(height, int(middle[0] + reach) + 1), left : min(width, int(middle[1] + reach) + 1)]
    rows, columns = part.shape[:2]
    y = (np.arange(rows) + top + 0.5 - middle[0]) / scale
    x = (np.arange(columns) + left + 0.5 - middle[1]) / scale
    across, down = np.meshgrid(x, y)  # (h, w) each
    fields = render(Grid(down, across, 1 / scale))
    cover, tone, light = fields.cover[..., None], fields.tone[..., None], fields.light[..., None]  # (h, w, 1) each
    before = surface = part.reshape(rows, columns, -1).astype(float)  # (h, w, 1 or 3)
    mean = surface.mean(axis=(0, 1))  # (1 or 3,)
    spread = surface.mean(axis=2).std()
    strength = contrast * min(max(3.0 * spread, 40.0), 110.0)
    dark_room, bright_room = mean.mean(), 255 - mean.mean()
    room, other = (bright_room, dark_room) if (cover * tone + light).sum() > 0 else (dark_room, bright_room)
    if room < min(0.6 * strength, other):  # too dark to darken or too bright to brighten: the other way round
        tone, light = -tone, -light
    # Dark keeps the hue of the surface; a highlight is white.
    tint = (mean + 8) / (mean.mean() + 8)  # black has no hue
    tone = np.where((tone < 0) | fields.hued, tone * tint, tone) * strength
    light = np.where(light < 0, light * tint, light) * strength
    if fields.source is not None:
        weight = min(contrast, 1.0) * fields.source.weight[..., None]
        surface = (1 - weight) * surface + weight * _taken(image, (top, left), fields.source)
    out = cover * (mean + tone) + (1 - cover) * surface + light
    blur = math.sqrt(max(spread_px**2 - _OWN_SPREAD**2, 0))
    if blur > 0:  # the camera softens what was done to the surface; the surface itself it has softened already
        out = before + ndimage().gaussian_filter(out - before, (blur, blur, 0), mode="nearest")
    return out.round().clip(0, 255).astype(np.uint8).reshape(part.shape), (top, left)


def _shown(changed: NDArray[np.uint8], part: NDArray[np.uint8], soft: bool) -> NDArray[np.bool_]:
    """Say which pixels show the defect, (h, w): all that differ, or, of a soft one, without its skirt."""
    change = np.abs(changed.astype(np.int16) - part).reshape(*part.shape[:2], -1).max(axis=2)  # (h, w)
    shown: NDArray[np.bool_] = change >= max(1.0, _VISIBLE * float(change.max())) if soft else change > 0
    return shown


def _taken(image: NDArray[np.uint8], corner: tuple[int, int], source: Source) -> Floats:
    """Read the image at the places that the source names, between pixels if need be, (h, w, 1 or 3)."""
    map_coordinates = ndimage().map_coordinates
    rows, columns = np.indices(source.weight.shape)
    places = (rows + corner[0] + source.down, columns + corner[1] + source.right)
    channels = image.reshape(*image.shape[:2], -1)
    low = [max(0, int(np.floor(p.min())) - 1) for p in places]  # only what is needed of a large image
    high = [int(np.ceil(p.max())) + 2 for p in places]
    near = channels[low[0] : high[0], low[1] : high[1]].astype(float)
    at = [p - offset for p, offset in zip(places, low, strict=True)]
    return np.stack([map_coordinates(near[..., c], at, order=1, mode="nearest") for c in range(near.shape[2])], axis=2)


def _pasted(image: NDArray[np.uint8], fitted: _Fitted) -> Painted:
    rows, columns = fitted.differs.shape
    at = (slice(fitted.corner[0], fitted.corner[0] + rows), slice(fitted.corner[1], fitted.corner[1] + columns))
    out, mask = image.copy(), np.zeros(image.shape[:2], np.bool_)
    out[at], mask[at] = fitted.changed, fitted.differs
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
    return Painted(out, mask, box)


def _extent(mask: NDArray[np.bool_]) -> float:
    """Measure the largest distance across the mask in any of 32 directions, between the outer edges of its pixels."""
    points = np.argwhere(mask)  # (n, 2)
    if not len(points):
        return 0.0
    angles = np.arange(32) * math.pi / 32
    along = points @ np.stack([np.sin(angles), np.cos(angles)])  # (n, 32)
    return float(np.ptp(along, axis=0).max()) + 1.0
