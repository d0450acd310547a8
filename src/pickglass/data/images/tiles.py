"""Tiles cover a canvas, and the maps of the tiles are joined to one map: index arithmetic in numpy.

Tiles form a grid of rows and columns, so everything about them splits into one problem down and one across. Letters:
H x W pixels of the canvas, n tiles along an axis of ``length`` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pickglass.errors import InputError

__all__ = ["Blend", "Tiling", "joining_matrix", "seams"]

Blend = Literal["cosine", "average"]


@dataclass(frozen=True)
class Tiling:
    """A grid of equal tiles that covers a canvas, in reading order.

    Args:
        canvas: (H, W) pixels.
        tile: (height, width) of a tile.
        tops: first row of each row of tiles, rising.
        lefts: first column of each column of tiles, rising.

    Tiles may reach beyond the canvas (``edges="pad"``): it is then extended to :attr:`extent`.

    >>> Tiling.over((512, 512), (256, 256), (128, 128)).n
    9
    >>> [Tiling.over((300, 256), (256, 256), (128, 128), edges).tops for edges in ("shift", "pad")]
    [(0, 44), (0, 128)]
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def over(
        cls,
        canvas: tuple[int, int],
        tile: tuple[int, int],
        stride: tuple[int, int],
        edges: Literal["shift", "pad"] = "shift",
    ) -> Tiling:
        """Make the fewest tiles that cover a canvas.

        Args:
            canvas: (H, W) pixels.
            tile: (height, width) of a tile; no larger than the canvas.
            stride: pixels from one tile to the next, down and across; at most the tile, or parts would be left out.
            edges: where the stride does not come out even, the last tile is shifted back onto the canvas, or left in
                step and the canvas padded.

        Raises:
            InputError: a tile larger than the canvas, or a stride that is not between 1 and the tile.
        """
        if edges not in ("shift", "pad"):
            raise InputError(f"edges={edges!r}: expected 'shift' or 'pad'")
        starts = [_starts(*axis, edges) for axis in zip(canvas, tile, stride, strict=True)]
        return cls(canvas, tile, starts[0], starts[1])

    @property
    def n(self) -> int:
        """The grid has this many tiles."""
        return len(self.tops) * len(self.lefts)

    @property
    def extent(self) -> tuple[int, int]:
        """The tiles reach to this (H, W): the canvas, or more where it has to be padded."""
        return max(self.canvas[0], self.tops[-1] + self.tile[0]), max(self.canvas[1], self.lefts[-1] + self.tile[1])

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The tiles lie at these [x, y, w, h], in reading order."""
        return [(x, y, self.tile[1], self.tile[0]) for y in self.tops for x in self.lefts]


def _starts(length: int, tile: int, stride: int, edges: str) -> tuple[int, ...]:
    if not 1 <= tile <= length:
        raise InputError(
            f"tile of {tile} pixels on a canvas of {length}: expected 1 to {length}; lower tile or raise size"
        )
    if not 1 <= stride <= tile:
        raise InputError(f"stride of {stride} pixels for tiles of {tile}: expected 1 to {tile}, or parts are left out")
    starts = list(range(0, length - tile + 1, stride))
    if starts[-1] + tile < length:
        starts.append(length - tile if edges == "shift" else starts[-1] + stride)
    return tuple(starts)


def joining_matrix(starts: tuple[int, ...], tile: int, length: int, cells: int, blend: Blend) -> NDArray[np.float32]:
    """Give the share that each cell of a joined map takes of each tile's cells, on one axis: ``(n * cells, joined)``.

    A joined map has cells of the tiles' own size; where these lie between the cells of a shifted tile, it interpolates
    linearly. What several tiles cover is blended by their windows, what one covers is copied. Columns add up to 1, so
    equal maps join without a seam.

    Args:
        starts: first pixel of each tile.
        tile: pixels of a tile.
        length: pixels of the axis, all of them covered.
        cells: how many cells a tile has along the axis.
        blend: ``"cosine"``: a raised cosine that falls only on sides where another tile goes on; ``"average"``.

    >>> joining_matrix((0, 2), 4, 6, 4, "average").sum(axis=0).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    size = tile / cells  # of a cell in pixels
    joined = max(1, round(length / size))
    centre: NDArray[Any] = (np.arange(joined) + 0.5) * (length / joined)  # (joined,) pixels
    weights = np.stack([_window(starts, i, tile, centre, blend) for i in range(len(starts))])  # (n, joined)
    weights /= weights.sum(axis=0)
    matrix = np.zeros((len(starts), cells, joined), np.float64)
    for i, start in enumerate(starts):
        position = np.clip((centre - start) / size - 0.5, 0, cells - 1)
        low = np.minimum(position.astype(np.intp), max(cells - 2, 0))
        share = position - low
        columns = np.arange(joined)
        matrix[i, low, columns] += weights[i] * (1 - share)
        matrix[i, np.minimum(low + 1, cells - 1), columns] += weights[i] * share
    return matrix.reshape(len(starts) * cells, joined).astype(np.float32)


def _window(starts: tuple[int, ...], i: int, tile: int, pixels: NDArray[Any], blend: Blend) -> NDArray[Any]:
    """Return the weight of tile i at these pixels: above 0 inside, 0 outside."""
    first, end = starts[i], starts[i] + tile
    inside = ((pixels >= first) & (pixels < end)).astype(np.float64)
    if blend == "average":
        return inside
    before = starts[i - 1] + tile - first if i else 0  # pixels shared with the neighbours
    after = end - starts[i + 1] if i + 1 < len(starts) else 0
    weight = inside
    for overlap, depth in ((before, pixels - first), (after, end - pixels)):
        if overlap > 0:
            ramp = np.clip(depth / overlap, 0, 1)
            weight = weight * np.maximum(0.5 - 0.5 * np.cos(np.pi * ramp), 1e-6)  # never 0: what one tile covers counts
    return weight


def seams(starts: tuple[int, ...], tile: int, length: int, joined: int, width: float) -> NDArray[np.bool_]:
    """Mark the cells of a joined map within ``width`` pixels of a tile's edge inside the axis: (joined,) bool."""
    centre: NDArray[Any] = (np.arange(joined) + 0.5) * (length / joined)
    edges = [edge for start in starts for edge in (start, start + tile) if 0 < edge < length]
    near = [np.abs(centre - edge) <= width for edge in edges]
    return np.logical_or.reduce(near) if near else np.zeros(joined, np.bool_)
