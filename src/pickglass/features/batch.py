"""A batch is what a method gets to read of a few images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pickglass.features.engine import BackboneEngine

__all__ = ["Batch", "bytes_of", "joined", "part_of", "tensors_of"]


class Batch(NamedTuple):
    """A batch of images as a method reads it; a method uses only what its ``reads`` names.

    Letters: B images, P positions, C channels, h x w cells of a layer, H x W pixels of the network's input.

    Attributes:
        levels: per layer (B, P, C, h, w), in the order of the detector's ``layers``; empty unless
            ``"features"`` is read.
        images: (B, P, 3, H, W) RGB in [0, 1]; None unless ``"images"`` is read.
        keep: (B, P, H, W) bool, False where nothing is judged or learned (padding, outside the region of interest);
            None where everything counts. :func:`pickglass.nn.maps.kept_cells` brings it to a grid.
        engine: runs what a method has learned while it judges; None: torch does, as in training and in the exported
            graph.
    """

    levels: tuple[Tensor, ...]
    images: Tensor | None = None
    keep: Tensor | None = None
    engine: BackboneEngine | None = None


def part_of(batch: Batch, i: int) -> Batch:
    """Copy one image out of a batch of whole images."""
    return Batch(
        tuple(level[i : i + 1].clone() for level in batch.levels),
        None if batch.images is None else batch.images[i : i + 1].clone(),
        None if batch.keep is None else batch.keep[i : i + 1].clone(),
        batch.engine,
    )


def joined(batches: Sequence[Batch]) -> Batch:
    """Join batches to one; where what counts is said of some, all counts of the others."""
    first = batches[0]
    keep = None
    if any(batch.keep is not None for batch in batches):
        (shape,) = {batch.keep.shape[1:] for batch in batches if batch.keep is not None}
        device = next(batch.keep.device for batch in batches if batch.keep is not None)
        parts = [
            torch.ones(len(tensors_of(batch)[0]), *shape, dtype=torch.bool, device=device)
            if batch.keep is None
            else batch.keep
            for batch in batches
        ]
        keep = torch.cat(parts)
    images = [batch.images for batch in batches if batch.images is not None]
    levels = tuple(torch.cat(level) for level in zip(*(batch.levels for batch in batches), strict=True))
    return Batch(levels, torch.cat(images) if images else None, keep, first.engine)


def bytes_of(batch: Batch) -> int:
    """Count the bytes that a batch takes."""
    return sum(
        x.numel() * x.element_size() for x in (*tensors_of(batch), *(() if batch.keep is None else (batch.keep,)))
    )


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return levels and images of a batch, all of which lead with B."""
    return [*batch.levels, *(() if batch.images is None else (batch.images,))]
