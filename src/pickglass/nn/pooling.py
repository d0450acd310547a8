"""A region of a feature map, or all of it, becomes one vector, by averages or by pairs of channels (bilinear pooling).

Bilinear pooling: Lin, RoyChowdhury, Maji, "Bilinear CNN Models for Fine-Grained Visual Recognition", ICCV 2015: the sum
of outer products x x^T, then signed square root, then L2 norm. Its projection to fewer dimensions: Gao, Beijbom, Zhang,
Darrell, "Compact Bilinear Pooling", CVPR 2016, algorithm 1 (random Maclaurin), after Kar and Karnick 2012.

Letters: B images, T tiles of an image (1 where it is read whole), C channels, h x w cells of a level, H x W pixels,
D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pickglass.data.images.geometry import Preprocess
from pickglass.metrics.labelling import connected_regions
from pickglass.nn.maps import cells_of, kept_cells

__all__ = [
    "ChannelAverages",
    "Pooling",
    "canvas_shares",
    "cell_shares",
    "cell_weights",
    "channel_means",
    "peak_region",
    "random_signs",
    "region_pairs",
    "region_sum",
    "signed_root",
]

Pooling = Literal["average", "bilinear"]
"""A region becomes one vector in one of these ways."""


def canvas_shares(mask: npt.NDArray[np.bool_], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Compute how much of each pixel of the canvas a mask (H0, W0) of the image covers: (H, W) in 0..1.

    Shares rather than yes or no, so that a defect of one pixel does not vanish from a small canvas.
    """
    place = preprocess.placement((mask.shape[0], mask.shape[1]))
    shares = np.zeros(preprocess.size, np.float32)
    resized = Image.fromarray(mask.astype(np.float32)).resize((place.width, place.height), Image.Resampling.BOX)
    shares[place.top : place.top + place.height, place.left : place.left + place.width] = np.asarray(resized)
    return shares


def peak_region(map_: npt.NDArray[np.float32], threshold: float | None) -> npt.NDArray[np.bool_]:
    """Cut out the region (8 neighbours) of an anomaly map (h, w) that holds its highest cell, bool (h, w).

    It is what lies above the threshold; where nothing does, or there is none, what lies above the middle between the
    map's median and its peak.
    """
    peak = float(map_.max())
    if threshold is None or peak <= threshold:
        threshold = (float(np.median(map_)) + peak) / 2
    above = map_ > threshold
    highest = np.unravel_index(int(map_.argmax()), map_.shape)
    above[highest] = True  # a flat map has nothing above its middle
    labels, _ = connected_regions(above)
    region: npt.NDArray[np.bool_] = labels == labels[highest]
    return region


def cell_weights(shares: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring the shares (B, T, H, W) of a region to the cells of a level, (B, T, h, w), with sum 1 an image.

    Raises:
        ValueError: a region is empty.
    """
    weights = cell_shares(shares, grid)
    total = weights.flatten(1).sum(1)  # (B,)
    if not bool((total > 0).all()):
        raise ValueError("an empty region has no features")
    return weights / total[:, None, None, None]


def cell_shares(shares: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average the shares (B, T, H, W) of a region over the cells of a level, (B, T, h, w)."""
    return F.adaptive_avg_pool2d(shares, grid)


def region_sum(level: Tensor, weights: Tensor) -> Tensor:
    """Sum a level (B, T, C, h, w) under weights (B, T, h, w), which add up to 1 for an average: (B, C)."""
    summed: Tensor = torch.einsum("btchw,bthw->bc", level, weights)
    return summed


def region_pairs(level: Tensor, weights: Tensor, signs: Tensor | None = None) -> Tensor:
    """Sum x x^T over a region, weighted (Lin et al. 2015, eq. 1-2).

    Args:
        level: (B, T, C, h, w).
        weights: (B, T, h, w).
        signs: (2, C, D) of :func:`random_signs`, for the projection to D dimensions; None: all pairs.

    Returns:
        (B, C (C + 1) / 2), pairs of different channels times sqrt 2 so that products of vectors are those of the
        whole matrix; or (B, D).
    """
    vectors = []
    for image, weight in zip(level.permute(0, 1, 3, 4, 2).flatten(1, 3), weights.flatten(1), strict=True):
        cells, share = image[weight > 0], weight[weight > 0, None]  # (N, C), (N, 1)
        if signs is None:
            row, column = torch.triu_indices(level.shape[2], level.shape[2])
            outer = cells.T @ (cells * share)  # (C, C)
            vectors.append(outer[row, column] * torch.where(row == column, 1.0, 2**0.5).to(outer))
        else:
            first, second = (cells @ s.to(cells) for s in signs)  # (N, D)
            vectors.append((first * second * share).sum(0) / signs.shape[2] ** 0.5)
    return torch.stack(vectors)


def random_signs(channels: int, dims: int, seed: int) -> Tensor:
    """Draw two matrices of random signs, (2, C, D) int8: the mean of (s1 x)(s2 x)(s1 y)(s2 y) is (x y)^2."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(2, (2, channels, dims), generator=generator) * 2 - 1).to(torch.int8)


def signed_root(vectors: Tensor) -> Tensor:
    """Take sign(x) sqrt|x| of vectors (B, D), then bring them to L2 norm 1 (Lin et al. 2015, section 3)."""
    return F.normalize(vectors.sign() * vectors.abs().sqrt(), dim=1)


def channel_means(levels: Sequence[Tensor], keep: Tensor | None, n: int) -> Tensor:
    """Average each channel over the cells that count, all tiles alike: levels (B, P, C, h, w) -> (n, d).

    Tiles that share a head follow each other in its batch: B = n times as many as share one.
    """
    parts = [summed / cells.clamp(min=1) for summed, cells in _channel_sums(levels, keep, n)]
    return torch.cat(parts, dim=1) if parts else torch.zeros(n, 0)


class ChannelAverages:
    """The mean of each channel over the cells of one image, whose tiles are seen a few at a time."""

    def __init__(self) -> None:
        self._sums: list[tuple[Tensor, Tensor]] = []  # (1, C) and how many cells, (1, 1), per level

    def add(self, levels: Sequence[Tensor], keep: Tensor | None) -> None:
        """Take in some of the tiles; the arguments are those of :func:`channel_means`."""
        own = _channel_sums(levels, keep, 1)
        before = self._sums or [(0 * summed, 0 * cells) for summed, cells in own]
        self._sums = [(a + c, b + d) for (a, b), (c, d) in zip(before, own, strict=True)]

    def means(self) -> Tensor:
        """Return the means, (1, d)."""
        parts = [summed / cells.clamp(min=1) for summed, cells in self._sums]
        return torch.cat(parts, dim=1) if parts else torch.zeros(1, 0)


def _channel_sums(levels: Sequence[Tensor], keep: Tensor | None, n: int) -> list[tuple[Tensor, Tensor]]:
    """Add up each channel over the cells that count, (n, C) per level, and count the cells, (n, 1)."""
    sums = []
    for level in levels:
        cells = kept_cells(keep, cells_of(level))  # (B, P, h, w)
        weights = torch.ones_like(level[:, :, 0]) if cells is None else cells.to(level.dtype)
        summed = (level * weights[:, :, None]).sum(dim=(3, 4)).reshape(n, -1, int(level.shape[2])).sum(dim=1)  # (n, C)
        sums.append((summed, weights.reshape(n, -1).sum(dim=1)[:, None]))
    return sums
