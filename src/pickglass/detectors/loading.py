"""The loader turns rows of a table into what a method reads: it decodes images and computes their features.

Letters: B images, P positions, T tiles, C channels, h x w cells of a level, H x W pixels of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import tee
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pickglass.data import Decoded, Prepared, Preprocess, Row
from pickglass.data.images.decoder import Picture, decode_pictures
from pickglass.data.images.geometry import stacked
from pickglass.detectors.tiling import Tiles
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.batch import Batch
from pickglass.features.engine import BackboneEngine
from pickglass.runtime.compute import PIXELS_AT_ONCE, ComputeOptions, Progress

if TYPE_CHECKING:
    from pickglass.features.research.fusion import Fusion

__all__ = ["FeatureLoader", "LoadedBatch", "canvas_batch", "on_device", "silent"]

_TILES_AT_ONCE = 64  # of all images of a batch together: their features are held at once


class LoadedBatch(NamedTuple):
    """A few rows, broken images among them, with the batch that a method reads of the sound ones.

    Attributes:
        items: one a row, in order; a broken one has an ``error``.
        batch: the sound images, in their order; None where all are broken, or they are read in parts.
        means: where they were read in parts, the mean of each channel, (B, d).
    """

    items: list[Decoded[Row, Prepared]]
    batch: Batch | None
    means: Tensor | None = None

    @property
    def sound(self) -> list[Decoded[Row, Prepared]]:
        """The items that are in the batch, in its order."""
        return [item for item in self.items if item.error is None]

    @property
    def values(self) -> list[Prepared]:
        """The sound images as they were prepared."""
        return [item.value for item in self.items if item.value is not None]

    @property
    def failures(self) -> list[Failure]:
        """The items that could not be read, with the reason."""
        return [Failure(item.row.path, item.error) for item in self.items if item.error is not None]


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


class FeatureLoader:
    """A loader turns rows into batches: images are decoded ahead in threads, and the backbone runs in its engine.

    Args:
        engine: runs the backbone, and for some methods what they have learned.
        preprocess: fits images on the canvas.
        reads: what a method wants of a :class:`Batch`: ``"features"``, ``"images"``.
        roi: (H, W) bool on the canvas, region of interest of rows that have none of their own; None: everything.
        compute: how much at once.
        tiles: the tiles of the canvas; None: it is read whole, P = 1.
        fusion: fuses the levels; None: they are read as they are.

    Attributes:
        batch: images at once; fewer than asked for where each has many tiles or pixels.
        ready: images that were prepared before, by path; they are not decoded again.
        positions: the tiles that are read; None: all of them.
        turn: quarter turns by which images are turned on the canvas.
        brightness: factor by which their values are multiplied, to white at most.
        wanted: paths of images that are read twice: what is read of them is kept, as long as there is room.
        room: bytes that are left for it.

    Raises:
        InputError: ``batch``, ``workers`` or ``max_pixels`` is below 1.
    """

    def __init__(
        self,
        engine: BackboneEngine,
        preprocess: Preprocess,
        reads: Sequence[str],
        roi: np.ndarray | None,
        compute: ComputeOptions,
        tiles: Tiles | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        for name in ("batch", "workers", "max_pixels"):
            if getattr(compute, name) < 1:
                raise InputError(f"{name}={getattr(compute, name)!r}: expected at least 1")
        self.engine = engine
        self.preprocess = preprocess
        self.reads = reads
        self.roi = roi
        self.compute = compute
        self.tiles = tiles
        self.fusion = fusion
        self.ready: Mapping[str, Decoded[Row, Prepared]] = {}
        self.positions: range | None = None
        self.turn = 0
        self.brightness = 1.0
        self.wanted: frozenset[str] = frozenset()
        self.room = 0.0
        self._kept: dict[str, Batch] = {}  # of one image each

    @property
    def batch(self) -> int:
        """The number of images at once."""
        many = 1 if self.tiles is None else len(self.positions or range(self.tiles.n))
        height, width = self.preprocess.size if self.tiles is None else self.tiles.tiling.tile
        return max(1, min(self.compute.batch, PIXELS_AT_ONCE // (many * height * width), _TILES_AT_ONCE // many))

    def only(self, positions: range) -> FeatureLoader:
        """Return a loader that reads these positions alone."""
        changed = copy(self)
        changed.positions = positions
        return changed

    def changed(self, turn: int, brightness: float) -> FeatureLoader:
        """Return a loader that turns images by so many quarters, and multiplies their values by a factor."""
        changed = copy(self)
        changed.turn, changed.brightness = turn, brightness
        return changed

    def plain(self) -> FeatureLoader:
        """Return a loader that reads images alone, of each tile, and runs no backbone."""
        changed = copy(self)
        changed.reads, changed.fusion, changed.turn, changed.brightness = ("images",), None, 0, 1.0
        changed.positions = None if self.tiles is None else range(self.tiles.n)
        changed.wanted, changed._kept = frozenset(), {}
        return changed

    @property
    def in_parts(self) -> bool:
        """Whether an image has so many tiles under one head that they are better read a few at a time."""
        return self.tiles is not None and self.tiles.heads == 1 and self.tiles.n > _TILES_AT_ONCE

    def batches(self, rows: Iterable[Row], features: bool = True) -> Iterator[LoadedBatch]:
        """Read the rows in batches, in order, taking them as needed; a broken image is named and leaves the others.

        Args:
            rows: what to read.
            features: compute what a method reads; False leaves it to :meth:`parts_of`.
        """
        compute, size = self.compute, self.batch
        waiting: list[Decoded[Row, Prepared]] = []
        rows, to_decode = tee(rows)
        unknown = (row for row in to_decode if row.path not in self.ready)
        ahead = max(2 * size, compute.workers)
        decoded = decode_pictures(unknown, self._prepare, compute.workers, ahead, compute.max_pixels)
        for row in rows:
            ready = self.ready.get(row.path)
            waiting.append(next(decoded) if ready is None else replace(ready, row=row))
            if len(waiting) == size:
                yield self._loaded(waiting, features)
                waiting = []
        if waiting:
            yield self._loaded(waiting, features)

    def _loaded(self, items: list[Decoded[Row, Prepared]], features: bool) -> LoadedBatch:
        loaded = LoadedBatch(items, None)
        if not features or not loaded.values:
            return loaded
        if not self.wanted or self.positions is not None or (self.turn, self.brightness) != (0, 1.0):
            return loaded._replace(batch=self.batch_of(loaded.values))
        paths = [item.row.path for item in loaded.sound]
        known = [self._kept[path] for path in paths if path in self._kept]
        batch = _joined(known) if len(known) == len(paths) else self.batch_of(loaded.values)
        for i, path in enumerate(paths):
            if path in self.wanted and path not in self._kept:
                one = _part_of(batch, i)
                if (size := _bytes_of(one)) <= self.room:
                    self.room -= size
                    self._kept[path] = one
        return loaded._replace(batch=batch)

    def sound_batches(self, rows: Sequence[Row], progress: Progress, features: bool = True) -> Iterator[LoadedBatch]:
        """Read the rows of a training in batches, in order; ``features`` as in :meth:`batches`.

        Raises:
            DataError: an image can no longer be read.
        """
        done = 0
        for loaded in self.batches(rows, features):
            if loaded.failures:
                raise DataError(f"{len(loaded.failures)} training images can no longer be read:", loaded.failures)
            done += len(loaded.items)
            progress("reading features", done, len(rows))
            yield loaded

    def _prepare(self, image: Picture, row: Row) -> Prepared:
        return self.preprocess.prepared(image, row, self.roi)

    def batch_of(self, values: Sequence[Prepared]) -> Batch:
        """Return the batch that a method reads of prepared images."""
        images, keep = self._canvases(values)
        images = self._lit(images)
        batch = canvas_batch(images, keep, self.engine, self.reads, self.tiles, self.positions, self.fusion)
        return on_device(batch, self.engine.device, self.engine)

    def parts_of(self, value: Prepared) -> Iterator[Batch]:
        """Yield the tiles of a prepared image, 64 at a time, as the one head of all reads them: (T', 1, ...).

        So memory holds the pixels of the image, as many bytes as the file has, and the features of 64 tiles.
        """
        for part in self._parts(value, range(self._tiles.n)):
            own = Batch(
                tuple(level.transpose(0, 1) for level in part.levels),
                None if part.images is None else part.images.transpose(0, 1),
                None if part.keep is None else part.keep.transpose(0, 1),
            )
            yield on_device(own, self.engine.device, self.engine)

    def region_parts(self, value: Prepared, shares: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield the tiles of a prepared image that a region touches, 64 at a time, and its shares on them.

        Args:
            value: the image.
            shares: (H, W) of the canvas, 0 outside the region.

        Yields:
            Per level (1, T', C, h, w), and (1, T', H', W').
        """
        boxes = self._tiles.tiling.boxes
        touched = [p for p, (x, y, w, h) in enumerate(boxes) if bool(shares[y : y + h, x : x + w].any())]
        for first, part in enumerate(self._parts(value, touched)):
            own = touched[first * _TILES_AT_ONCE :][:_TILES_AT_ONCE]
            yield part.levels, self._tiles.cut(shares[None, None], own)[:, :, 0]

    @property
    def _tiles(self) -> Tiles:
        if self.tiles is None:
            raise RuntimeError("an image without tiles has no parts")
        return self.tiles

    def _parts(self, value: Prepared, positions: Sequence[int]) -> Iterator[Batch]:
        """Yield some tiles of a prepared image, 64 at a time, (1, T', ...)."""
        images, keep = self._canvases([value])
        for first in range(0, len(positions), _TILES_AT_ONCE):
            cut, kept = _cut(images, keep, self._tiles, positions[first : first + _TILES_AT_ONCE])
            yield _batch_of_tiles(self._lit(cut), kept, self.engine, self.reads, self.fusion)

    def _canvases(self, values: Sequence[Prepared]) -> tuple[Tensor, Tensor | None]:
        """Put prepared images side by side, turned as they are to be read: (B, 3, H, W), and what counts, (B, H, W)."""
        images = torch.from_numpy(stacked(values))  # (B, 3, H, W) uint8 or float32
        keep = None
        if any(value.keep is not None for value in values):
            whole = np.ones(self.preprocess.size, np.bool_)
            keep = torch.from_numpy(np.stack([whole if value.keep is None else value.keep for value in values]))
        if self.turn:
            images = images.rot90(self.turn, (2, 3)).contiguous()
            keep = None if keep is None else keep.rot90(self.turn, (1, 2))  # (B, H, W)
        return images, keep

    def _lit(self, images: Tensor) -> Tensor:
        """Bring images (..., 3, H, W) of 8 bits to [0, 1], and all to the brightness in which they are to be read."""
        unit = images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images
        return unit if self.brightness == 1 else (unit * self.brightness).clamp(max=1)


def canvas_batch(
    images: Tensor,
    keep: Tensor | None,
    features: Callable[[Tensor], tuple[Tensor, ...]],
    reads: Sequence[str],
    tiles: Tiles | None,
    positions: range | None = None,
    fusion: Fusion | None = None,
) -> Batch:
    """Turn canvases into the batch that a method reads.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].
        keep: (B, H, W) bool, what counts; None: everything.
        features: the backbone, (B, 3, H, W) -> per layer (B, C, h, w).
        reads: what is wanted, ``"features"``, ``"images"``.
        tiles: the tiles of the canvas; None: it is the one position.
        positions: the tiles to read; None: all, and positions that share a head are given to it together.
        fusion: fuses the levels; None: they are read as they are.
    """
    cut, kept = _cut(images, keep, tiles, positions)
    batch = _batch_of_tiles(cut, kept, features, reads, fusion)
    return batch if tiles is None or positions is not None else tiles.fold(batch)


def _cut(
    images: Tensor, keep: Tensor | None, tiles: Tiles | None, positions: Sequence[int] | None
) -> tuple[Tensor, Tensor | None]:
    """Cut canvases (B, 3, H, W) into the tiles of some positions, (B, T, 3, h, w), and what counts, (B, T, h, w)."""
    if tiles is None:
        return images[:, None], None if keep is None else keep[:, None]
    return tiles.cut(images, positions), tiles.cut_keep(keep, images.shape[0], images.device, positions)


def _batch_of_tiles(
    cut: Tensor,
    kept: Tensor | None,
    features: Callable[[Tensor], tuple[Tensor, ...]],
    reads: Sequence[str],
    fusion: Fusion | None,
) -> Batch:
    """Read the features of tiles (B, T, 3, h, w); the other arguments are those of :func:`canvas_batch`."""
    levels: tuple[Tensor, ...] = ()
    if "features" in reads:
        maps = features(cut.flatten(0, 1).contiguous())  # per layer (B T, C, h, w)
        maps = maps if fusion is None else fusion(maps)
        levels = tuple(level.unflatten(0, (-1, int(cut.shape[1]))) for level in maps)  # (B, T, C, h, w)
    return Batch(levels, cut if "images" in reads else None, kept)


def on_device(batch: Batch, device: str, engine: BackboneEngine | None = None) -> Batch:
    """Bring a batch to a device; ``engine`` runs what a method has learned, None: torch does, as in training."""
    return Batch(
        tuple(level.to(device) for level in batch.levels),
        None if batch.images is None else batch.images.to(device),
        None if batch.keep is None else batch.keep.to(device),
        engine,
    )


# -- batches that are kept -------------------------------------------------------------------------------------------


def _part_of(batch: Batch, i: int) -> Batch:
    """Copy one image out of a batch of whole images."""
    return Batch(
        tuple(level[i : i + 1].clone() for level in batch.levels),
        None if batch.images is None else batch.images[i : i + 1].clone(),
        None if batch.keep is None else batch.keep[i : i + 1].clone(),
        batch.engine,
    )


def _joined(batches: Sequence[Batch]) -> Batch:
    """Join batches to one; where what counts is said of some, all counts of the others."""
    first = batches[0]
    keep = None
    if any(batch.keep is not None for batch in batches):
        (shape,) = {batch.keep.shape[1:] for batch in batches if batch.keep is not None}
        device = next(batch.keep.device for batch in batches if batch.keep is not None)
        parts = [
            torch.ones(len(_tensors_of(batch)[0]), *shape, dtype=torch.bool, device=device)
            if batch.keep is None
            else batch.keep
            for batch in batches
        ]
        keep = torch.cat(parts)
    images = [batch.images for batch in batches if batch.images is not None]
    levels = tuple(torch.cat(level) for level in zip(*(batch.levels for batch in batches), strict=True))
    return Batch(levels, torch.cat(images) if images else None, keep, first.engine)


def _bytes_of(batch: Batch) -> int:
    """Count the bytes that a batch takes."""
    return sum(
        x.numel() * x.element_size() for x in (*_tensors_of(batch), *(() if batch.keep is None else (batch.keep,)))
    )


def _tensors_of(batch: Batch) -> list[Tensor]:
    """Return levels and images of a batch, all of which lead with B."""
    return [*batch.levels, *(() if batch.images is None else (batch.images,))]
