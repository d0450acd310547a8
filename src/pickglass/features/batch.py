"""A batch is what a method gets to read of a few images."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pickglass.features.engine import BackboneEngine

__all__ = ["Batch"]


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
