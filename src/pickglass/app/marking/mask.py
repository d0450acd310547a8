"""A rough mask is drawn by hand, as polygons and strokes of a brush; here it becomes a PNG file as large as the image.

Coordinates are pixels of the image from its top left corner, x to the right and y down; what lies inside is decided as
in :mod:`pickglass.data.annotations.raster`. Shapes are drawn in their order, and one may erase what others marked.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.data.annotations.raster import fill_ellipse, fill_ring
from pickglass.data.images.masks import Size, check_mask_size
from pickglass.errors import InputError, shortened

__all__ = ["draw_shapes", "mask_of", "png_of", "size_of"]

_MOST_POINTS = 50_000  # of all shapes: hours of drawing
_MOST_WORK = 4e8  # pixels looked at, of all shapes: about a second


def png_of(mask: NDArray[np.bool_]) -> bytes:
    """Write a mask (H, W) as a PNG file: 255 where something is marked, 0 elsewhere.

    Raises:
        InputError: it marks nothing.
    """
    if not mask.any():
        raise InputError("the mask marks no pixel of the image: draw over the defect, or leave the mask out")
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(png: bytes) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a PNG file that :func:`png_of` wrote."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image) > 0


def size_of(png: bytes) -> Size:
    """Return the size (H, W) of a PNG file that :func:`png_of` wrote."""
    with Image.open(io.BytesIO(png)) as image:
        return image.height, image.width


def draw_shapes(
    shapes: Sequence[Mapping[str, Any]], size: Size, start: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return which pixels shapes mark, bool (H, W).

    Args:
        shapes: each ``{"kind": "polygon", "points": [[x, y], ...]}``, or ``"stroke"`` with a ``"radius"`` in pixels;
            ``"erase": true`` takes away instead.
        size: (H, W) of the image.
        start: what is marked already, of the same size; None: nothing.

    Raises:
        InputError: a shape is no such thing, or lies outside the image altogether.

    Example:
        >>> stroke = {"kind": "stroke", "points": [[1, 1.5], [3, 1.5]], "radius": 0.6}
        >>> draw_shapes([stroke], (3, 4)).astype(int).tolist()
        [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    """
    mask = np.zeros(size, np.bool_) if start is None else start.copy()
    check_mask_size("the mask until now", (mask.shape[0], mask.shape[1]), size)
    points = work = 0.0
    for number, shape in enumerate(shapes, start=1):
        outline, radius, erase = _read(shape, f"shape {number} of the mask")
        points += len(outline)
        low = np.maximum(np.floor(outline.min(0) - radius), 0).astype(int)  # (2,) x and y
        high = np.minimum(np.ceil(outline.max(0) + radius), (size[1], size[0])).astype(int)
        if (low >= high).any():
            raise InputError(
                f"shape {number} of the mask lies outside the image of {size[1]} x {size[0]} pixels: expected "
                "coordinates in pixels of the image"
            )
        # with a rim that is cut off again: shapes that hold no centre of a pixel are drawn there if they lie outside
        part = np.zeros((high[1] - low[1] + 2, high[0] - low[0] + 2), np.bool_)
        work += part.size + len(outline) * (2 * radius + 1) ** 2
        if points > _MOST_POINTS or work > _MOST_WORK:
            raise InputError(
                f"the mask has more than {_MOST_POINTS:,} points, or strokes too long for their width: draw it with "
                "fewer strokes"
            )
        if radius:
            _brush(part, outline - low + 1, radius)
        else:
            fill_ring(part, outline - low + 1)
        here = mask[low[1] : high[1], low[0] : high[0]]
        if erase:
            here &= ~part[1:-1, 1:-1]
        else:
            here |= part[1:-1, 1:-1]
    return mask


def _read(shape: Mapping[str, Any], name: str) -> tuple[NDArray[np.float64], float, bool]:
    """Return points (n, 2), radius (0 for a polygon), and whether it erases."""
    kind = shape.get("kind") if isinstance(shape, Mapping) else None
    if kind not in ("polygon", "stroke"):
        raise InputError(f"{name}: {shortened(shape)}, expected a polygon or a stroke with points [[x, y], ...]")
    try:
        outline = np.array(shape.get("points"), np.float64)
    except (TypeError, ValueError):
        outline = np.empty(0)
    least = 3 if kind == "polygon" else 1
    if outline.ndim != 2 or outline.shape[1] != 2 or len(outline) < least or not (np.abs(outline) < 1e6).all():
        raise InputError(
            f"{name}: points {shortened(shape.get('points'))}, expected at least {least} pairs of numbers, [[x, y] ...]"
        )
    radius = shape.get("radius") if kind == "stroke" else 0
    if not isinstance(radius, (int, float)) or not math.isfinite(radius) or (kind == "stroke" and not radius > 0):
        raise InputError(f"{name}: radius {shortened(radius)}, expected pixels above 0")
    erase = shape.get("erase", False)
    if not isinstance(erase, bool):
        raise InputError(f"{name}: erase {shortened(erase)}, expected true or false")
    return outline, float(radius), erase


def _brush(mask: NDArray[np.bool_], points: NDArray[np.float64], radius: float) -> None:
    """Mark what a round brush touches on its way along the points (n, 2); what lies outside the mask is left out."""
    size = np.array(mask.shape[::-1])
    for point in points:
        if (point + radius > 0).all() and (point - radius < size).all():
            fill_ellipse(mask, (point[0], point[1]), (radius, radius), 0)
    for start, end in pairwise(points):
        along = end - start
        length = float(np.hypot(*along))
        if length and (np.maximum(start, end) + radius > 0).all() and (np.minimum(start, end) - radius < size).all():
            aside = radius * np.array([-along[1], along[0]]) / length
            fill_ring(mask, np.stack([start + aside, end + aside, end - aside, start - aside]))
