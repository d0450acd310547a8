"""Pictures of how a tiled model put a map together: the grid, the map of each tile, and the joined map.

Letters: H x W pixels of the canvas, T tiles, h x w cells of a tile's map, h' x w' of the joined one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pickglass.app.pages.images import (
    PREDICTED,
    Array,
    Picture,
    draw_contours,
    heat,
    jpeg,
    picture_size,
    rgb,
    shrink_max,
    thumbnail,
)
from pickglass.data import resize_map
from pickglass.data.images.tiles import Tiling

__all__ = ["TileMaps", "draw_tiles"]

SIDE = 480  # px, longest side of a picture
GAP = 3  # px between the maps of two tiles
EDGE = "#ffffff"
JOINS = {
    "cosine": "joined: overlaps blended by raised cosines",
    "average": "joined: mean of the overlaps",
    "seams": "joined: mean of the overlaps, seams smoothed",
}


@dataclass(frozen=True)
class TileMaps:
    """The maps of one image's tiles, and the map they were joined to.

    Attributes:
        scores: ``(T,)`` of the tiles, and of the thumbnail behind them where there is one.
        maps: ``(T, h, w)`` likewise.
        averaged: ``(h', w')`` the mean where tiles overlap, before any blending or smoothing of seams.
        joined: ``(h', w')`` as the model joins them.
        tiling: where the tiles lie.
        join: how the model joins overlapping tiles.
    """

    scores: Array
    maps: Array
    averaged: Array
    joined: Array
    tiling: Tiling
    join: str


def draw_tiles(canvas: Array, parts: TileMaps, scale: tuple[float, float], mask: Array | None) -> list[Picture]:
    """Draw the pictures of one image.

    Args:
        canvas: ``(3, H, W)`` in 0..1, what the network saw.
        parts: the maps.
        scale: ``(low, high)`` anomaly values at the two ends of the colours.
        mask: ``(H, W)`` bool on the canvas, the ground truth; None where there is none.

    Returns:
        Grid, maps of the tiles in their order with gaps, the thumbnail's map where there is one, the joined map before
        and after blending or smoothing.
    """
    tiling, best = parts.tiling, int(np.argmax(parts.scores))
    picture = np.ascontiguousarray((255 * canvas.transpose(1, 2, 0)).round().astype(np.uint8))  # (H, W, 3)
    size = picture_size(picture.shape[0], picture.shape[1], SIDE)
    small = thumbnail(picture, size)  # (h, w, 3)
    truth = None if mask is None else shrink_max(mask, size)
    grid = _grid(draw_contours(small, truth=truth), tiling, best, picture.shape[:2])
    highest = f"highest: tile {best + 1} of {len(parts.scores)}, {parts.scores[best]:.4g}"
    panels = [
        jpeg("parts", f"{tiling.n} tiles of {tiling.tile[0]} x {tiling.tile[1]} px; {highest}", grid),
        jpeg("parts", "map of each tile", _mosaic(picture, parts.maps, tiling, best, scale)),
    ]
    joined = [("mean of the overlaps", parts.averaged), (JOINS[parts.join], parts.joined)]
    if len(parts.maps) > tiling.n:
        joined.insert(0, (f"map of the thumbnail, {parts.scores[-1]:.4g}", parts.maps[-1]))
    for caption, values in joined:
        coloured = heat(small, resize_map(values, size), scale)
        panels.append(jpeg("parts", caption, draw_contours(coloured, truth=truth)))
    return panels


def _grid(picture: Array, tiling: Tiling, best: int, canvas: Sequence[int]) -> Array:
    """Outline every tile, that of the highest score thickly; the inner edges of overlapping ones cross."""
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    down, across = image.height / canvas[0], image.width / canvas[1]
    boxes = tiling.boxes
    order = [i for i in range(len(boxes)) if i != best] + [best] * (best < len(boxes))
    for i in order:
        x, y, w, h = boxes[i]
        corners = (
            round(x * across),
            round(y * down),
            min(image.width, round((x + w) * across)) - 1,
            min(image.height, round((y + h) * down)) - 1,
        )
        pen.rectangle(corners, outline="black", width=5 if i == best else 3)
        inner = (corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1)
        pen.rectangle(inner, outline=PREDICTED if i == best else EDGE, width=3 if i == best else 1)
    return np.asarray(image)


def _mosaic(picture: Array, maps: Array, tiling: Tiling, best: int, scale: tuple[float, float]) -> Array:
    """Lay the maps of the tiles over what each of them saw, in rows and columns."""
    rows, columns = len(tiling.tops), len(tiling.lefts)
    limit = picture_size(rows * tiling.tile[0], columns * tiling.tile[1], SIDE)
    h = max(8, limit[0] // rows)
    w = max(8, limit[1] // columns)
    below, right = (e - c for e, c in zip(tiling.extent, picture.shape[:2], strict=True))
    seen = np.pad(picture, ((0, below), (0, right), (0, 0)), mode="edge")
    out = np.zeros((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), np.uint8)
    for i, (x, y, width, height) in enumerate(tiling.boxes):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        if i == best:
            out[top - GAP : top + h + GAP, left - GAP : left + w + GAP] = rgb(PREDICTED)
        tile = thumbnail(seen[y : y + height, x : x + width], (h, w))
        out[top : top + h, left : left + w] = heat(tile, resize_map(maps[i], (h, w)), scale)
    return out
