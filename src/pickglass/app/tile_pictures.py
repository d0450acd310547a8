"""How a tiled model put its maps together, as pictures: the grid, the map of each tile, and the joined map.

Letters: H x W pixels of the canvas, T tiles, h x w cells of a tile's map, h' x w' of the joined one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from pickglass.app.pictures import (
    ELONGATED,
    LONG_SIDE,
    PREDICTED,
    Array,
    Panel,
    draw_contours,
    encoded,
    heat,
    shrink_max,
)
from pickglass.data import resize_map
from pickglass.data.images.tiles import Tiling
from pickglass.detectors.tiling import TileParts

__all__ = ["tile_panels"]

SIDE = 480  # px, longest side of a picture
GAP = 3  # px between the maps of two tiles
EDGE = "#ffffff"
JOINS = {
    "cosine": "joined: overlaps blended by raised cosines",
    "average": "joined: mean of the overlaps",
    "seams": "joined: mean of the overlaps, seams smoothed",
}


def tile_panels(
    canvas: Array, parts: TileParts, tiling: Tiling, join: str, scale: tuple[float, float], mask: Array | None
) -> list[Panel]:
    """The pictures of one image.

    Args:
        canvas: ``(3, H, W)`` in 0..1, what the network saw.
        parts: of the image, B = 1.
        tiling: where the tiles lie.
        join: how they were joined, for the caption.
        scale: ``(low, high)`` anomaly values at the two ends of the colours.
        mask: ``(H, W)`` bool on the canvas, the ground truth; None where there is none.

    Returns:
        Grid, maps of the tiles in their order with gaps, the thumbnail's map where there is one, the joined map before
        and after blending or smoothing.
    """
    scores, maps = parts.scores[0].tolist(), parts.maps[0].cpu().numpy()  # (T,), (T, h, w)
    best = int(np.argmax(scores))
    picture = np.ascontiguousarray((255 * canvas.transpose(1, 2, 0)).round().astype(np.uint8))  # (H, W, 3)
    size = _picture_size(*picture.shape[:2])
    small = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))  # (h, w, 3)
    truth = None if mask is None else shrink_max(mask, size)
    grid = _grid(draw_contours(small, truth=truth), tiling, best, picture.shape[:2])
    highest = f"highest: tile {best + 1} of {len(scores)}, {scores[best]:.4g}"
    panels = [
        encoded("parts", f"{tiling.n} tiles of {tiling.tile[0]} x {tiling.tile[1]} px; {highest}", grid),
        encoded("parts", "map of each tile", _mosaic(picture, maps, tiling, best, scale)),
    ]
    if len(maps) > tiling.n:
        shown = heat(small, resize_map(maps[-1], size), scale)
        panels.append(encoded("parts", f"map of the thumbnail, {scores[-1]:.4g}", draw_contours(shown, truth=truth)))
    for text, joined in (("mean of the overlaps", parts.averaged), (JOINS[join], parts.joined)):
        values = resize_map(joined[0].cpu().numpy(), size)
        panels.append(encoded("parts", text, draw_contours(heat(small, values, scale), truth=truth)))
    return panels


def _picture_size(height: int, width: int) -> tuple[int, int]:
    long, short = max(height, width), min(height, width)
    factor = min(1.0, (LONG_SIDE if long > ELONGATED * short else SIDE) / long)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _grid(picture: Array, tiling: Tiling, best: int, canvas: Sequence[int]) -> Array:
    """The outline of every tile, that of the highest score thick; the inner edges of overlapping ones cross."""
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
    """The maps of the tiles over what each of them saw, in rows and columns."""
    rows, columns = len(tiling.tops), len(tiling.lefts)
    limit = _picture_size(rows * tiling.tile[0], columns * tiling.tile[1])
    h = max(8, limit[0] // rows)
    w = max(8, limit[1] // columns)
    below, right = (e - c for e, c in zip(tiling.extent, picture.shape[:2], strict=True))
    seen = np.pad(picture, ((0, below), (0, right), (0, 0)), mode="edge")
    out = np.zeros((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), np.uint8)
    for i, (x, y, width, height) in enumerate(tiling.boxes):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        if i == best:
            out[top - GAP : top + h + GAP, left - GAP : left + w + GAP] = (0xFF, 0xB0, 0)
        tile = Image.fromarray(seen[y : y + height, x : x + width]).resize((w, h), Image.Resampling.LANCZOS)
        out[top : top + h, left : left + w] = heat(np.asarray(tile), resize_map(maps[i], (h, w)), scale)
    return out
