"""What goes on inside a detector at a place of an image: what it compared it with, in which levels, and what they show.

Letters: B images, P heads, T tiles, C channels, h x w cells of a level or map, H x W pixels of the canvas or of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pickglass.data import Row
from pickglass.detectors.detector import Detector
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.method import Neighbour
from pickglass.errors import DataError
from pickglass.features.anatomy.visibility import Seen, Verdict, contrast, touched_cells
from pickglass.features.batch import Batch
from pickglass.nn.maps import cells_of, kept_cells
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions

__all__ = ["Asked", "Inside", "LayerSeen", "Near", "TileAt", "look_inside", "tile_at"]

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class Asked:
    """A place of the image that is asked about.

    Attributes:
        x, y: its pixel in the image.
        mask: (H, W) bool, the pixels of the image that make the defect.
    """

    x: int
    y: int
    mask: NDArray[np.bool_]


class Near(NamedTuple):
    """A good patch near a place: its distance, its training image by number (None: unknown), and where it was cut.

    ``canvas`` is x, y of its middle in pixels of the network's input, None where unknown; ``turned`` is in degrees.
    """

    distance: float
    image: int | None
    canvas: tuple[int, int] | None
    turned: int


class LayerSeen(NamedTuple):
    """How much a place stands out in a layer."""

    layer: str
    sd: float | None
    verdict: Verdict


class Inside(NamedTuple):
    """What a detector has at a place.

    Attributes:
        shares: how much of the value each level makes, adding up to 1; empty where the method cannot tell them apart.
        near: the nearest good patches; empty where the method remembers none.
        layers: what each layer shows of it.
        patch: height and width in pixels of the canvas that one cell of the map stands for.
    """

    shares: dict[str, float]
    near: list[Near]
    layers: list[LayerSeen]
    patch: tuple[float, float]


@torch.no_grad()
def look_inside(
    detector: Detector, found: Found, places: Sequence[Asked], good: Sequence[Row], compute: ComputeOptions, n_near: int
) -> list[Inside]:
    """Ask a fitted detector about places of an image that it has judged.

    Args:
        detector: fitted.
        found: what it found on the image.
        places: in the image.
        good: good images, with which layers compare a place in place of its surroundings; none or at least two.
        compute: how the backbone is run.
        n_near: how many patches at most.

    Raises:
        DataError: an image can no longer be read.
    """
    loader = detector.loader(compute)
    batch = _read(loader, found.row)
    parts = {name: _by_tile(detector, map_)[0] for name, map_ in detector.level_maps(batch).items()}  # (T, h, w)
    references = [_levels(detector, _read(loader, row)) for row in good]
    grid = cells_of(batch.levels[0]) if batch.levels else (found.map.shape[0], found.map.shape[1])
    answers = []
    for place in places:
        tile = tile_at(detector, found.size, found.window, (place.y, place.x))
        image, head = (0, 0) if detector.tiles is None else detector.tiles.seat_of(tile.number)
        neighbours = detector.neighbours(batch, (image, head, *tile.cell(grid)), n_near)
        near = [_near(detector, head, grid, neighbour) for neighbour in neighbours]
        answers.append(
            Inside(
                _shares({name: map_[tile.number] for name, map_ in parts.items()}, tile),
                near,
                _seen(detector, _levels(detector, batch), tile, place, references),
                (tile.height / grid[0], tile.width / grid[1]),
            )
        )
    return answers


class TileAt(NamedTuple):
    """The tile of the canvas in which a place lies, the whole canvas without tiles.

    Attributes:
        number: among the tiles.
        top, left, height, width: in pixels of the canvas.
        y, x: the place in it, as shares.
        window: the image in it, as shares; it may reach beyond.
    """

    number: int
    top: float
    left: float
    height: float
    width: float
    y: float
    x: float
    window: Window

    def cell(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return row and column of the place on a grid (h, w) over the tile."""
        return min(grid[0] - 1, int(self.y * grid[0])), min(grid[1] - 1, int(self.x * grid[1]))


def _read(loader: FeatureLoader, row: Row) -> Batch:
    (loaded,) = loader.batches([row])
    if loaded.batch is None:
        raise DataError("the image can no longer be read:", loaded.failures)
    return loaded.batch


def _by_tile(detector: Detector, values: Tensor) -> Tensor:
    """Bring what heads have of one image, (m, P, ...), to its tiles: (1, T, ...)."""
    return values if detector.tiles is None else detector.tiles.unfold(values)


def _levels(detector: Detector, batch: Batch) -> list[tuple[Tensor, Tensor | None]]:
    """Return each level (T, C, h, w) of one image, with the cells (T, h, w) that count."""
    keep = None if batch.keep is None else _by_tile(detector, batch.keep)  # (1, T, H, W)
    levels = []
    for level in batch.levels:
        own = _by_tile(detector, level)  # (1, T, C, h, w)
        cells = kept_cells(keep, cells_of(own))
        levels.append((own[0].float().cpu(), None if cells is None else cells[0].cpu()))
    return levels


def tile_at(detector: Detector, size: tuple[int, int], window: Window, place: tuple[int, int]) -> TileAt:
    """Find the tile whose middle is nearest to a place, in heights and widths of a tile.

    Args:
        detector: fitted.
        size: (H, W) of the image.
        window: the image on the canvas, as shares of it.
        place: y, x in pixels of the image.
    """
    height, width = detector.input_size
    top, left, bottom, right = window
    y = height * (top + (place[0] + 0.5) / size[0] * (bottom - top))
    x = width * (left + (place[1] + 0.5) / size[1] * (right - left))
    boxes = [(0, 0, width, height)] if detector.tiles is None else detector.tiles.tiling.boxes
    number, box = min(
        enumerate(boxes),
        key=lambda one: max(
            abs(y - one[1][1] - one[1][3] / 2) / one[1][3], abs(x - one[1][0] - one[1][2] / 2) / one[1][2]
        ),
    )
    within = (
        (top * height - box[1]) / box[3],
        (left * width - box[0]) / box[2],
        (bottom * height - box[1]) / box[3],
        (right * width - box[0]) / box[2],
    )
    return TileAt(number, box[1], box[0], box[3], box[2], (y - box[1]) / box[3], (x - box[0]) / box[2], within)


def _shares(parts: dict[str, Tensor], tile: TileAt) -> dict[str, float]:
    """Return the share of each part (h, w) in the value at the place; below 0 nothing is added."""
    values = {name: max(0.0, float(part[tile.cell(cells_of(part))])) for name, part in parts.items()}
    total = sum(values.values())
    return {name: value / total for name, value in values.items()} if total > 0 else {}


def _near(detector: Detector, head: int, grid: tuple[int, int], neighbour: Neighbour) -> Near:
    """Say where on the canvas a neighbour was cut, as the image was before it was turned."""
    if neighbour.image < 0:
        return Near(neighbour.distance, None, None, 0)
    (h, w), tiles = grid, detector.tiles
    (height, width), turns = detector.input_size, detector.quarter_turns
    view, cell = divmod(neighbour.spot, h * w)
    turn, member = divmod(view, 1 if tiles is None else tiles.per_head)
    box = (0, 0, width, height)
    if tiles is not None:
        number = tiles.tile_of(head, member)
        # beyond the tiles lies the thumbnail, of all the canvas
        box = tiles.tiling.boxes[number] if number < len(tiles.tiling.boxes) else box
    y = box[1] + (cell // w + 0.5) * box[3] / h
    x = box[0] + (cell % w + 0.5) * box[2] / w
    quarters = turns[turn] if turn < len(turns) else 0
    if quarters == 1:
        y, x = x, width - y
    elif quarters == 2:
        y, x = height - y, width - x
    elif quarters == 3:
        y, x = height - x, y
    return Near(neighbour.distance, neighbour.image, (int(x), int(y)), 90 * quarters)


def _seen(
    detector: Detector,
    levels: Sequence[tuple[Tensor, Tensor | None]],
    tile: TileAt,
    place: Asked,
    references: Sequence[Sequence[tuple[Tensor, Tensor | None]]],
) -> list[LayerSeen]:
    """Measure how much the place stands out in each level of its tile."""
    seen = []
    for i, (name, level) in enumerate(zip(detector.level_names(), levels, strict=False)):
        image, *others = (_of_tile(one, tile.number) for one in (level, *(r[i] for r in references)))
        cells = touched_cells(place.mask, cells_of(image.features), tile.window)
        if not bool(cells.any()):  # of the image, but beyond this tile
            cells[tile.cell(cells_of(image.features))] = True
        measured = contrast(image, cells, others)
        seen.append(LayerSeen(name, measured.sd, measured.verdict))
    return seen


def _of_tile(level: tuple[Tensor, Tensor | None], number: int) -> Seen:
    features, keep = level
    return Seen(features[number], None if keep is None else keep[number])
