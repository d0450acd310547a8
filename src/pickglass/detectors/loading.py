"""Running a detector over images: where, by what, how much at once; and what a head reads of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pickglass.data import Decoded, Preprocess, Row, Table, decode
from pickglass.data.images.decoder import Array
from pickglass.detectors.compute import ComputeOptions
from pickglass.detectors.tiling import Tiles
from pickglass.features.batch import Batch
from pickglass.features.engine import BackboneEngine
from pickglass.features.research.fusion import Fusion

__all__ = [
    "FeatureLoader",
    "LoadedBatch",
    "Prepared",
    "read",
]

_TILES_AT_ONCE = 64  # of all images of a batch together: their features are held at once


class Prepared(NamedTuple):
    """An image ready for the network: (3, H, W) in [0, 1], and what of it counts, (H, W) bool or None for all."""

    image: Array
    keep: np.ndarray | None


class LoadedBatch(NamedTuple):
    """Some rows, broken images among them, and what a head reads of the sound ones; None if there is none."""

    items: list[Decoded[Prepared]]
    batch: Batch | None

    @property
    def sound(self) -> list[Decoded[Prepared]]:
        """The items that the reading holds, in its order."""
        return [item for item in self.items if item.error is None]


class FeatureLoader:
    """From rows to what a head reads: decoded ahead in threads, prepared, frozen features by the engine.

    Args:
        engine: runs the backbone, and what a head runs by it while it judges.
        preprocess: fits images on the canvas.
        reads: what of a :class:`Batch` is wanted, ``"features"``, ``"images"``.
        roi: region of interest of rows that have none of their own, bool (H, W) of the canvas; None: everything.
        running: how much at once.
        tiles: of the canvas; None: it is read whole, P = 1.
        positions: of the tiles; None: all of them.
        fusion: of the levels; None: they are read as they are.
        ready: images that were prepared before, by path; they are not decoded again.
        turn: quarter turns by which images are turned on the canvas.

    Attributes:
        batch: images at once.
    """

    def __init__(
        self,
        engine: BackboneEngine,
        preprocess: Preprocess,
        reads: Sequence[str],
        roi: np.ndarray | None,
        running: ComputeOptions,
        tiles: Tiles | None = None,
        positions: range | None = None,
        fusion: Fusion | None = None,
        ready: Mapping[str, Decoded[Prepared]] | None = None,
        turn: int = 0,
    ) -> None:
        self.engine = engine
        self.preprocess = preprocess
        self.reads = reads
        self.roi = roi
        self.running = running
        self.tiles = tiles
        self.positions = positions
        self.fusion = fusion
        self.ready = ready or {}
        self.turn = turn
        many = 1 if tiles is None else len(positions or range(tiles.n))
        self.batch = max(1, min(running.batch, _TILES_AT_ONCE // many))

    def only(self, positions: range) -> FeatureLoader:
        """The same for these positions alone."""
        return self._changed(positions, self.turn)

    def turned(self, turn: int) -> FeatureLoader:
        """The same, with images turned by so many quarters."""
        return self._changed(self.positions, turn)

    def _changed(self, positions: range | None, turn: int) -> FeatureLoader:
        return FeatureLoader(
            self.engine,
            self.preprocess,
            self.reads,
            self.roi,
            self.running,
            self.tiles,
            positions,
            self.fusion,
            self.ready,
            turn,
        )

    def plain(self) -> FeatureLoader:
        """One that reads images alone, of each tile, and runs no backbone."""
        every = None if self.tiles is None else range(self.tiles.n)
        return FeatureLoader(
            self.engine, self.preprocess, ("images",), self.roi, self.running, self.tiles, every, ready=self.ready
        )

    def batches(self, table: Table) -> Iterator[LoadedBatch]:
        """The rows in batches, in order."""
        waiting: list[Decoded[Prepared]] = []
        run = self.running
        ahead = max(2 * self.batch, run.workers)
        unknown = (row for row in table if row.path not in self.ready)
        decoded = decode(unknown, self._prepare, run.workers, ahead, run.max_pixels)
        for n, row in enumerate(table, start=1):
            known = self.ready.get(row.path)
            waiting.append(next(decoded) if known is None else replace(known, row=row))
            if len(waiting) == self.batch or n == len(table):
                values = [d.value for d in waiting if d.value is not None]
                yield LoadedBatch(waiting, self._read(values) if values else None)
                waiting = []

    def _prepare(self, image: Array, row: Row) -> Prepared:
        size = (image.shape[0], image.shape[1])
        own = row.region(image)
        keep = self.preprocess.kept(size, own)
        if own is None and self.roi is not None:
            keep = self.roi if keep is None else keep & self.roi
        return Prepared(self.preprocess(image), keep)

    def _read(self, values: Sequence[Prepared]) -> Batch:
        images = torch.from_numpy(np.stack([v.image for v in values]))  # (B, 3, H, W)
        keep = None
        if any(v.keep is not None for v in values):
            whole = np.ones(self.preprocess.size, np.bool_)
            keep = torch.from_numpy(np.stack([whole if v.keep is None else v.keep for v in values]))  # (B, H, W)
        if self.turn:
            images = images.rot90(self.turn, (2, 3)).contiguous()
            keep = None if keep is None else keep.rot90(self.turn, (1, 2))
        batch = read(images, keep, self.engine, self.reads, self.tiles, self.positions, self.fusion)
        return batch.to(self.engine.device)._replace(engine=self.engine)


def read(
    images: Tensor,
    keep: Tensor | None,
    features: Callable[[Tensor], tuple[Tensor, ...]],
    reads: Sequence[str],
    tiles: Tiles | None,
    positions: range | None = None,
    fusion: Fusion | None = None,
) -> Batch:
    """What a head reads of canvases.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].
        keep: (B, H, W) bool, what counts; None: everything.
        features: (B, 3, H, W) -> per layer (B, C, h, w).
        reads: what is wanted, ``"features"``, ``"images"``.
        tiles: of the canvas; None: it is the one position.
        positions: of the tiles; None: all, and positions that share a head are given to it together.
        fusion: of the levels; None: they are read as they are.
    """
    if tiles is None:
        cut, kept = images[:, None], None if keep is None else keep[:, None]
    else:
        cut = tiles.cut(images, positions)  # (B, T, 3, h, w)
        kept = tiles.cut_keep(keep, len(images), images.device, positions)
    levels: tuple[Tensor, ...] = ()
    if "features" in reads:
        found = features(cut.flatten(0, 1).contiguous())  # per layer (B T, C, h, w)
        found = found if fusion is None else fusion(found)
        levels = tuple(level.unflatten(0, (len(images), -1)) for level in found)  # (B, T, C, h, w)
    batch = Batch(levels, cut if "images" in reads else None, kept)
    return batch if tiles is None or positions is not None else tiles.fold(batch)
