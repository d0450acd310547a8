"""A backbone of four small convolutions, for tests in which nothing hangs on what the features are."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

import pickglass as pg

__all__ = ["LEAST_LAYERS", "least_backbone"]

LEAST_LAYERS = ("1", "2")
"""The layers at strides 4 and 8. To name them saves that the network is built and asked for its strides."""


class Least(nn.Sequential):
    """Grids at strides 2, 4, 8 and 16, of 8 to 32 channels."""

    def __init__(self) -> None:
        channels = (3, 8, 16, 24, 32)
        super().__init__(
            *(
                nn.Sequential(nn.Conv2d(into, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU())
                for into, out in pairwise(channels)
            )
        )


def least_backbone() -> pg.OwnBackbone:
    """Make the network, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pg.OwnBackbone(Least())
