"""The backbone, layers and weights that are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BackboneRequest"]


@dataclass(frozen=True)
class BackboneRequest:
    """A backbone, some of its layers, and the size of its input.

    Attributes:
        backbone: name; see :func:`pickglass.backbone_names`.
        layers: names of layers; None: those that are named for this backbone, or the last node of each grid.
        weights: as in :mod:`pickglass.features.backbones.weights`; None: the published ones.
        size: size of the network's input in pixels; None: 256, or the nearest multiple of a transformer's patches.
        seed: decides random weights, and whatever else is drawn at random.
    """

    backbone: str = "efficientnet_lite0"
    layers: Sequence[str] | None = None
    weights: str | None = None
    size: int | str | tuple[int, int] | None = None
    seed: int = 0
