"""Arithmetic on feature grids and anomaly maps: grids, smoothing, means over what counts, statistics, precision.

What a method's ``score`` needs is in operations that every exporter knows.

Letters: B images, P positions, C channels, h x w cells.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "ChannelMoments",
    "Conv2dSame",
    "DrawnFrom",
    "LevelLine",
    "LightMode",
    "NormAct2d",
    "PlaceSums",
    "ProcessLock",
    "Residual",
    "RingQuantiles",
    "UsualLengths",
    "adaptive_windows",
    "area_means",
    "batch_mean",
    "cells_of",
    "discrete_gaussian",
    "exact_float32",
    "explained_by_place",
    "hardest_mean",
    "has_amx",
    "has_fast_bfloat16",
    "highest",
    "kept_cells",
    "kept_mean",
    "length_weights",
    "level_lines",
    "may_use_bfloat16",
    "mean_of_highest",
    "neighbourhood_mean",
    "patch_vectors",
    "pool_channels",
    "quiet_level",
    "resampled_to",
    "rings",
    "rounding_bound",
    "smooth",
    "to_grid",
]


def cells_of(maps: Tensor) -> tuple[int, int]:
    """Return the grid (h, w) of maps (..., h, w) as numbers: while a graph is traced, sizes are tensors."""
    return int(maps.shape[-2]), int(maps.shape[-1])


class Conv2dSame(nn.Conv2d):
    """A convolution pads as TensorFlow does: ceil(n / stride) cells come of n, and an odd zero goes right or below."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad (B, C, h, w) and convolve."""
        pads: list[int] = []  # of the last axis first
        for side, kernel, stride in zip(cells_of(input)[::-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormAct2d(nn.BatchNorm2d):
    """A batch normalisation of (B, C, h, w) with the activation that follows it, as one step."""

    def __init__(self, channels: int, act: nn.Module, eps: float) -> None:
        super().__init__(channels, eps=eps)
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, then activate."""
        activated: Tensor = self.act(super().forward(input))
        return activated


class Residual(nn.Sequential):
    """A sequence of steps adds its input to what comes of it."""

    def forward(self, input: Tensor) -> Tensor:
        """Take the steps and add."""
        change: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return change + input


def neighbourhood_mean(levels: Tensor, patch: int) -> Tensor:
    """Average over patch x patch cells around each cell, zeros beyond the border (Roth et al. 2022, eq. 1-2)."""
    return F.avg_pool2d(levels, patch, stride=1, padding=patch // 2) if patch > 1 else levels


def patch_vectors(levels: Tensor, patch: int) -> Tensor:
    """Gather all features of the p x p cells around each cell: (N, C, h, w) -> (N, C p p, h, w)."""
    n, _, h, w = levels.shape
    return F.unfold(levels, patch, padding=patch // 2).view(n, -1, h, w)


def to_grid(level: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring (N, C, h, w) to another grid, bilinear with half-pixel centres; the same grid comes back untouched."""
    if cells_of(level) == grid:
        return level
    return F.interpolate(level, size=grid, mode="bilinear", align_corners=False)


def resampled_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring (..., H, W) to another size, bilinear and without aliasing; the same size comes back untouched.

    Two matrix products: exporters do not know the resampling of torch that filters before it leaves pixels out.
    """
    if cells_of(images) == size:
        return images
    down, across = (
        torch.from_numpy(_triangles(n, m)).to(images) for n, m in zip(cells_of(images), size, strict=True)
    )  # (h, H), (w, W)
    return down @ images @ across.T  # (..., h, w)


@cache
def _triangles(n: int, m: int) -> np.ndarray:
    """Return the weights (m, n) by which n pixels become m: triangles around half-pixel centres."""
    width = max(1.0, n / m)
    centres = (np.arange(m)[:, None] + 0.5) * n / m - 0.5
    weights = np.maximum(0.0, 1 - np.abs(np.arange(n) - centres) / width)
    normalised: np.ndarray = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised


def area_means(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Average (B, C, H, W) over the pixels that each cell of another grid covers: (B, C, *size).

    This is torch's adaptive pooling as two matrix products, for exporters know it only where the grid comes out even.
    Sums of zeros and ones are exact.
    """
    down, across = (torch.from_numpy(_covered(n, m)).to(images) for n, m in zip(cells_of(images), size, strict=True))
    return down @ images @ across.T / down.sum(1, keepdim=True) / across.sum(1)


@cache
def _covered(n: int, m: int) -> np.ndarray:
    """Return which of n pixels each of m cells covers, (m, n): the windows of adaptive pooling."""
    first, end = (np.arange(m)[:, None] * n) // m, -(-(np.arange(1, m + 1)[:, None] * n) // m)
    covered: np.ndarray = ((np.arange(n) >= first) & (np.arange(n) < end)).astype(np.float32)
    return covered


def adaptive_windows(length: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return the windows of adaptive average pooling as indices and weights, both (dims, k)."""
    bounds = [(i * length // dims, -(-(i + 1) * length // dims)) for i in range(dims)]
    k = max(hi - lo for lo, hi in bounds)
    index = torch.tensor([[min(lo + j, length - 1) for j in range(k)] for lo, _ in bounds])
    weight = torch.tensor([[1 / (hi - lo) if j < hi - lo else 0.0 for j in range(k)] for lo, hi in bounds])
    return index, weight


def pool_channels(level: Tensor, dims: int) -> Tensor:
    """Average-pool the channels adaptively: (N, C, h, w) -> (N, dims, h, w)."""
    if level.shape[1] == dims:
        return level
    index, weight = adaptive_windows(int(level.shape[1]), dims)  # a number: while traced, sizes count step by step
    picked = level[:, index.to(level.device)]  # (N, dims, k, h, w)
    return (picked * weight.to(level)[None, :, :, None, None]).sum(2)  # (N, dims, h, w)


def discrete_gaussian(sigma: float) -> Tensor:
    """Return the kernel (2 r + 1,) of the discrete Gaussian e^-t I_n(t), t = sigma^2 (Lindeberg 1990).

    Unlike a sampled Gaussian its variance is exactly sigma^2, also below one cell, where most maps here live.
    """
    radius = math.ceil(6 * sigma) + 1  # its tails are heavier than a sampled Gaussian's
    n = 4 * radius + 64  # of which the farthest ones are nil
    # the numbers whose Fourier series is e^(t (cos a - 1)); SciPy, which has them, takes as long to load as a search
    series = np.exp(sigma**2 * (np.cos(2 * np.pi / n * np.arange(n // 2 + 1)) - 1))
    weights: np.ndarray = np.fft.irfft(series, n)[np.abs(np.arange(-radius, radius + 1))].clip(min=0)
    return torch.from_numpy(weights / weights.sum()).float()


def smooth(maps: Tensor, sigma: Sequence[float], keep: Tensor | None = None) -> Tensor:
    """Smooth maps by a Gaussian with sigma = (down, right) in cells, edges replicated.

    Args:
        maps: (..., h, w).
        sigma: standard deviations in cells; 0 leaves an axis alone.
        keep: (..., h, w) bool. Where False a cell lends nothing to its neighbours, and the result is meaningless.
    """
    flat = maps.reshape(-1, *cells_of(maps))  # (B, h, w)
    if keep is None:
        return _blurred(flat, sigma).view(maps.shape)
    weight = keep.reshape(flat.shape).to(flat)
    blurred = _blurred(flat * weight, sigma) / _blurred(weight, sigma).clamp(min=1e-6)
    return blurred.view(maps.shape)


def _blurred(maps: Tensor, sigma: Sequence[float]) -> Tensor:
    for axis, s in enumerate(sigma):
        if s <= 0:
            continue
        kernel = discrete_gaussian(s).to(maps)
        radius = len(kernel) // 2
        down = axis == 0
        padding = (0, 0, radius, radius) if down else (radius, radius, 0, 0)
        padded = F.pad(maps[:, None], padding, mode="replicate")  # (B, 1, h + 2 r, w) or (B, 1, h, w + 2 r)
        maps = F.conv2d(padded, kernel.view((1, 1, -1, 1) if down else (1, 1, 1, -1)))[:, 0]  # (B, h, w)
    return maps


def kept_cells(keep: Tensor | None, grid: tuple[int, int]) -> Tensor | None:
    """Return which cells of a grid count, (..., h, w) bool: those at least half inside ``keep``.

    ``keep`` is (..., H, W) bool; None: all cells count, which is returned as None. If no cell of an image is half
    inside, its fullest cells count, so that whatever lies inside gives it a score.
    """
    if keep is None:
        return None
    leading = [keep.shape[i] for i in range(keep.dim() - 2)]
    flat = keep.reshape(-1, *cells_of(keep))
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined, no-untyped-call]
        return _mostly_kept(flat, grid).view(*leading, *grid)
    cells = torch.ones(len(flat), *grid, dtype=torch.bool, device=keep.device)
    partly = ~flat.flatten(1).all(1)  # most tiles of a large image count as a whole
    if bool(partly.any()):
        cells[partly] = _mostly_kept(flat[partly], grid)
    return cells.view(*leading, *grid)


def _mostly_kept(keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which cells are at least half inside (B, H, W), or the fullest ones: (B, h, w)."""
    share = area_means(keep[:, None].float(), grid)[:, 0]
    fullest = share.flatten(1).max(1).values.clamp(max=0.5)[:, None, None]
    return (share >= fullest) & (share > 0)


def highest(maps: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the largest value of each map (B, P, h, w) over the cells that count: (B, P)."""
    if keep is not None:
        maps = maps.masked_fill(~keep, -torch.inf)
    return maps.flatten(2).max(2).values


def mean_of_highest(maps: Tensor, share: float, keep: Tensor | None = None) -> Tensor:
    """Return the mean of the highest ``share`` of each map (B, h, w), at least of one cell: (B,).

    A share is as many pixels of the image on a coarse grid as on a fine one: where it ends within a cell, that cell
    counts in part.

    Args:
        maps: (B, h, w).
        share: above 0, at most 1.
        keep: (B, h, w) bool, the cells that count; an image without any gets -inf. None: all count.
    """
    cells = maps.flatten(1)  # (B, h w)
    n = math.prod(cells_of(maps))
    most = max(1, math.ceil(share * n))
    if keep is None:
        counting = torch.full((1, 1), n).to(cells)
    else:
        cells = cells.masked_fill(~keep.flatten(1), -torch.inf)
        counting = keep.flatten(1).sum(1, keepdim=True).to(cells)  # (B, 1)
    top = cells.topk(most, dim=1).values  # (B, k)
    weight = ((share * counting).clamp(min=1) - torch.arange(most).to(cells)).clamp(0, 1)  # (B, k)
    return (top.masked_fill(weight == 0, 0) * weight).sum(1) / weight.sum(1)


class ChannelMoments:
    """The mean and standard deviation of each channel over all cells, each position by itself, from a stream.

    Two passes within a batch, batches merged exactly (Chan, Golub, LeVeque 1983): nothing cancels, as it does in the
    mean of squares minus the square of the mean.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def add(self, level: Tensor, keep: Tensor | None = None) -> None:
        """Add a batch (B, P, C, h, w); the cells that count are (B, P, h, w) bool."""
        values = level.cpu().double().permute(1, 2, 0, 3, 4).flatten(2)  # (P, C, N)
        weight = torch.ones(values.shape[0], 1, values.shape[2], dtype=torch.float64)
        if keep is not None:
            weight = keep.cpu().double().transpose(0, 1).flatten(1)[:, None]  # (P, 1, N)
        n = weight.sum(2)  # (P, 1)
        mean = (values * weight).sum(2) / n.clamp(min=1)  # (P, C)
        squares = ((values - mean[..., None]).square() * weight).sum(2)
        total, apart = (self.count + n).clamp(min=1), mean - self.mean
        self.squares = self.squares + squares + apart.square() * self.count * n / total
        self.mean = self.mean + apart * n / total
        self.count = self.count + n

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return both, (P, C) each, float64; the deviation of a channel that never changes is 1."""
        std = (self.squares / self.count.clamp(min=1)).sqrt()
        return self.mean, torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, 1.0)


class UsualLengths:
    """The root mean square length of the features of each level over all cells, each position by itself."""

    def __init__(self) -> None:
        self.sums = self.counts = torch.zeros((), dtype=torch.float64)

    def add(self, levels: Sequence[Tensor], keep: Tensor | None) -> None:
        """Add a batch of levels (B, P, C, h, w); the pixels that count are (B, P, H, W) bool, None: all."""
        sums, counts = [], []
        for level in levels:
            squares = level.cpu().double().square().sum(2)  # (B, P, h, w)
            inside = kept_cells(None if keep is None else keep.cpu(), cells_of(squares))
            counting = torch.ones_like(squares) if inside is None else inside.double()
            sums.append((squares * counting).sum((0, 2, 3)))
            counts.append(counting.sum((0, 2, 3)))
        self.sums = self.sums + torch.stack(sums, 1)  # (P, K)
        self.counts = self.counts + torch.stack(counts, 1)

    def lengths(self) -> Tensor:
        """Return them, (P, K) float64; 0 where no cell counted."""
        return (self.sums / self.counts.clamp(min=1)).sqrt()


def length_weights(level: Tensor, usual: Tensor) -> Tensor:
    """Return how far the direction of each feature can be trusted, |f|^2 / (|f|^2 + usual^2): (B, P, h, w), 0 to 1.

    What no network can predict of a feature is about as large everywhere, so it turns a short feature further than a
    long one. This is the gain of a Wiener filter, noise as large as the usual feature: half for a usual one.

    Args:
        level: features (B, P, C, h, w).
        usual: their usual length (P,), see :class:`UsualLengths`.
    """
    squares = level.float().square().sum(2)  # (B, P, h, w)
    return squares / (squares + usual.float().square()[:, None, None]).clamp(min=torch.finfo(torch.float32).tiny)


# -- means over what counts --------------------------------------------------------------------------------------------
#
# A tile outside the region of interest, and the tiles that fill up heads which have fewer tiles than others, have no
# cell that counts. Every method takes its means by these functions, so that all treat such images alike: they are left
# out of the mean over the batch and give no gradient.


def kept_mean(values: Tensor, keep: Tensor | None) -> Tensor:
    """Average each map (B, P, h, w) over the cells that count: (B, P).

    ``keep`` is (B, P, h, w) bool; None: all cells count. A map of which no cell counts has mean 0 and gets gradient 0;
    :func:`batch_mean` leaves it out.
    """
    if keep is None:
        return values.mean((2, 3))
    return torch.where(keep, values, 0).sum((2, 3)) / keep.sum((2, 3)).clamp(min=1)


def hardest_mean(values: Tensor, order: float, keep: Tensor | None = None) -> Tensor:
    """Average the elements at or above their quantile, each image and position by itself: (B, P).

    Args:
        values: (B, P, C, h, w).
        order: order of the quantile, e.g. 0.999: of N elements the N - ceil(order (N - 1)) largest are taken.
        keep: (B, P, h, w) bool, the cells that count; None: all. Where none counts the mean is 0, with gradient 0.
    """
    c = values.shape[2]
    if keep is None:
        n = values[0, 0].numel()
        return values.flatten(2).topk(n - math.ceil(order * (n - 1)), dim=2, sorted=False).values.mean(2)
    counts = c * keep.sum((2, 3))  # (B, P)
    hardest = counts - (order * (counts - 1)).ceil().long()
    flat = values.masked_fill(~keep[:, :, None], -torch.inf).flatten(2)  # (B, P, N)
    largest = flat.topk(max(1, int(hardest.max())), dim=2).values
    taken = torch.arange(largest.shape[2], device=values.device) < hardest[..., None]
    taken &= counts[..., None] > 0
    return torch.where(taken, largest, 0).sum(2) / taken.sum(2).clamp(min=1)


def batch_mean(values: Tensor, keep: Tensor | None) -> Tensor:
    """Average over the images of which any cell counts: (B, P) -> (P,).

    ``keep`` is (B, P, h, w) bool, on any grid; None: all images count. A position where no image counts gets 0, with
    gradient 0.
    """
    if keep is None:
        return values.mean(0)
    counting = keep.flatten(2).any(2)  # (B, P)
    return torch.where(counting, values, 0).sum(0) / counting.sum(0).clamp(min=1)


# -- places ------------------------------------------------------------------------------------------------------------

_AROUND = 2.0  # cells, sigma of the Gaussian over which neighbours share what is usual
_SHRINK = 20.0  # images that what is usual everywhere counts as


class PlaceSums(NamedTuple):
    """The sums over good maps say what is usual at each place.

    Attributes:
        counts, total, squares: (h, w) float64 each, over the images of which the cell counts.
    """

    counts: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, maps: Tensor, inside: Tensor) -> PlaceSums:
        """Add up maps (N, h, w) over the cells that count, (N, h, w) bool."""
        values = torch.where(inside, maps.double(), 0.0)
        return cls(inside.double().sum(0), values.sum(0), values.square().sum(0))

    def without(self, other: PlaceSums) -> PlaceSums:
        """Take the maps of others out again."""
        return PlaceSums(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def scale(self) -> tuple[Tensor, Tensor]:
        """Return the gain and the shift of each cell, (h, w) float32 each: map * gain + shift is standardised.

        Each cell is compared with its own mean and standard deviation, shared with its neighbours and shrunk towards
        those of all cells; mean and deviation of all cells stay what they are, so that scores keep their unit.
        """
        mean = self.total.sum() / self.counts.sum().clamp(min=1)
        own = self._near(self.total) / self._near(self.counts).clamp(min=1e-6)  # (h, w)
        apart = (self.squares - 2 * own * self.total + own.square() * self.counts).clamp(min=0)
        usual = apart.sum() / self.counts.sum().clamp(min=1)
        variance = self._near(apart) / self._near(self.counts).clamp(min=1e-6)
        weight = self.counts / (self.counts + _SHRINK)
        own = weight * own + (1 - weight) * mean
        variance = weight * variance + (1 - weight) * usual
        gain = torch.where(variance > 0, (usual / variance.clamp(min=1e-300)).sqrt(), 1.0)
        return gain.float(), (mean - own * gain).float()

    @staticmethod
    def _near(values: Tensor) -> Tensor:
        return smooth(values[None], (_AROUND, _AROUND))[0]


def explained_by_place(maps: Tensor, inside: Tensor, units: Tensor) -> float:
    """Return the share of the variance of good maps that the place explains, below 0 where it explains nothing.

    Each image is predicted by the mean of the other units at the same cell, and compared with their mean over all
    cells.

    Args:
        maps: (N, h, w).
        inside: (N, h, w) bool, the cells that count.
        units: (N,) what must not predict itself: the images of one part.
    """
    values, counting = torch.where(inside, maps.double(), 0.0), inside.double()
    total, count = values.sum(0), counting.sum(0)  # (h, w)
    by_place = by_all = 0.0
    for unit in units.unique():
        own = units == unit
        others, n = total - values[own].sum(0), count - counting[own].sum(0)
        seen = (n > 0) & inside[own]  # (n, h, w)
        by_place += float((maps[own].double() - others / n.clamp(min=1))[seen].square().sum())
        by_all += float((maps[own].double() - others.sum() / n.sum().clamp(min=1))[seen].square().sum())
    return 1 - by_place / by_all if by_all > 0 else 0.0


# -- the level of a whole map ------------------------------------------------------------------------------------------

_BLOCKS = (
    16  # a side, at most: the level is the same whatever the grid, and few numbers are ranked in an exported graph
)
_QUIET = 0.1  # of the blocks: the level of the ground, unless a defect covers nine tenths of it
_RARE = 0.05  # of good levels at either end: the line says nothing of them, nor one odd image of how far it goes


def quiet_level(maps: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the level that each map (B, h, w) has where it is quiet: the mean of the lowest tenth of its blocks, (B,).

    Blocks are means over the cells that count, at most 16 x 16 of them.

    Args:
        maps: (B, h, w).
        keep: (B, h, w) bool, the cells that count. None: all count.
    """
    h, w = cells_of(maps)
    size = (min(h, _BLOCKS), min(w, _BLOCKS))
    if keep is None:
        return -mean_of_highest(-area_means(maps[:, None], size)[:, 0], _QUIET)
    share = area_means(keep[:, None].to(maps), size)  # (B, 1, *size)
    blocks = area_means(torch.where(keep, maps, 0)[:, None], size) / share.clamp(min=1e-6)
    return -mean_of_highest(-blocks[:, 0], _QUIET, kept_cells(keep, size))


class LevelLine(NamedTuple):
    """A straight line says how far the image score goes along with the level of the map where only the light differs.

    Attributes:
        slope: what the score rises by when the level rises by 1.
        usual: the mean level, each unit of which counts once.
        lowest, highest: the range of usual levels, outside which nothing is known of the line.
    """

    slope: float
    usual: float
    lowest: float
    highest: float

    def shift(self, levels: Tensor) -> Tensor:
        """Return what the level of a map adds to its score, (N,): 0 at the usual level, bounded by the range."""
        return self.slope * (levels.clamp(self.lowest, self.highest) - self.usual)


def level_lines(scores: Tensor, levels: Tensor, units: Tensor) -> tuple[LevelLine, dict[int, LevelLine], float]:
    """Fit the line of scores over levels, all (N,), and for each of at least two units the line without it.

    The slope is that within units, as in an analysis of covariance (Fisher 1932): images of one unit show one part, so
    that what differs among them is the light, and what the parts differ by is not laid to it. It is shrunk by how
    unsure it is, by its variance over the lines without a unit (the jackknife): one no larger than its standard error,
    or below 0, is 0.

    Returns:
        The line of all, the lines without each unit, by its number, and the share of the variance of the scores within
        units that the level explains, where each unit is predicted by the line without it; below 0 where it explains
        nothing.
    """
    names, number, members = units.unique(return_inverse=True, return_counts=True)
    scores, levels, members = scores.double(), levels.double(), members.double()

    def means(values: Tensor) -> Tensor:
        averaged: Tensor = torch.zeros(len(names), dtype=torch.float64).index_add(0, number, values) / members  # (U,)
        return averaged

    usual = means(levels)
    y, x = scores - means(scores)[number], levels - usual[number]
    least = 1e-12 * float(levels.square().sum())  # what rounding leaves of levels that are all alike

    def slope_of(some: Tensor) -> float:
        spread = float(x[some].square().sum())
        return float(x[some] @ y[some]) / spread if spread > least else 0.0

    slope = slope_of(number >= 0)
    slopes = [slope_of(number != unit) for unit in range(len(names))]
    sure = max(0.0, 1 - (len(slopes) - 1) * float(np.var(slopes)) / slope**2) if slope > 0 else 0.0

    def line(slope: float, some: Tensor, usual: Tensor) -> LevelLine:
        lowest, highest = np.quantile(levels[some].numpy(), [_RARE, 1 - _RARE])
        return LevelLine(sure * max(0.0, slope), float(usual), float(lowest), float(highest))

    lines = {
        int(name): line(slopes[i], number != i, (usual.sum() - usual[i]) / (len(usual) - 1))
        for i, name in enumerate(names.tolist())
    }
    predicted = torch.tensor(slopes, dtype=torch.float64)[number] * x
    whole = float(y.square().sum())
    explained = 1 - float((y - predicted).square().sum()) / whole if whole > 0 else 0.0
    return line(slope, number >= 0, usual.mean()), lines, explained


# -- rings of cells ----------------------------------------------------------------------------------------------------


def rings(maps: Tensor, most: int) -> Tensor:
    """Return how many cells lie between each cell and the border, below ``most``: (..., h, w) -> (h, w)."""
    down, right = ((n - 1 - (2 * torch.arange(n, device=maps.device) - n + 1).abs()) // 2 for n in cells_of(maps))
    return torch.minimum(down[:, None], right).clamp(max=most - 1)


class RingQuantiles:
    """The quantiles of several maps of each position, ring by ring, from a stream of images.

    A cell near the border may see something else than the others do, such as mirrored pixels; so each ring of cells at
    one distance from the border can be scaled on its own.

    Args:
        positions: P.
        rings: R, how many rings are told apart; the last one has all cells further inside.
        fewest: cells that a ring needs for quantiles of its own; with fewer it gets those of all cells.
    """

    def __init__(self, positions: int, rings: int, fewest: int) -> None:
        self.rings = rings
        self.fewest = fewest
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(positions)]  # maps (K, N), rings (N,)

    def add(self, maps: Tensor, keep: Tensor | None) -> None:
        """Add K maps of a batch, (K, B, P, h, w); the cells that count are (B, P, h, w) bool, None: all."""
        places = rings(maps, self.rings).expand(maps.shape[1], -1, -1)  # (B, h, w)
        for p, seen in enumerate(self._seen):
            counting = places >= 0 if keep is None else keep[:, p]  # (B, h, w)
            seen.append((maps[:, :, p][:, counting].cpu(), places[counting].cpu()))

    def fill(self, quantiles: Tensor, orders: Sequence[float]) -> None:
        """Write the quantiles of these orders in place, (P, K, R, orders); a position without cells is left alone."""
        for p, seen in enumerate(self._seen):
            values = torch.cat([maps for maps, _ in seen], dim=1).double().numpy()  # (K, N)
            places = torch.cat([place for _, place in seen]).numpy()  # (N,)
            for ring in range(self.rings):
                inside = places == ring
                chosen = values[:, inside] if np.count_nonzero(inside) >= self.fewest else values
                if chosen.size:
                    quantiles[p, :, ring] = torch.from_numpy(
                        np.quantile(chosen, orders, axis=1).T
                    ).float()  # (K, orders)


# -- threads and precision ---------------------------------------------------------------------------------------------


_NAMED = {"default": "generator", "low": "low_generator"}  # without a generator -> the same with one


class LightMode(TorchDispatchMode):
    """A block in which each operation of torch passes through one method; torch's compiler stays unloaded."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes a second and a hundred megabytes


class DrawnFrom(LightMode):
    """What torch draws inside of this block, in this thread, comes from a generator with this seed.

    torch's default generator, from which layers draw their first weights, is one for all threads: others that draw or
    seed it would change the weights. The numbers are those of the default generator with the same seed.

    Example:
        >>> with DrawnFrom(0):
        ...     one = torch.nn.Linear(3, 2).weight
        >>> with DrawnFrom(0):
        ...     bool((torch.nn.Linear(3, 2).weight == one).all())
        True
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch, with our generator where it takes one and is given none."""
        named = dict(kwargs or {})
        if func._overloadname in _NAMED and hasattr(func.overloadpacket, _NAMED[func._overloadname]):
            func = getattr(func.overloadpacket, _NAMED[func._overloadname])
        if any(argument.name == "generator" for argument in func._schema.arguments) and named.get("generator") is None:
            named["generator"] = self.generator
        return func(*args, **named)


class ProcessLock:
    """A lock lets one thread of a process at a time go on; in a forked child it is free, whoever held it before.

    Entering returns True where the process is another than the one that last entered it, for whatever was compiled
    there cannot be used here.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()

    def __enter__(self) -> bool:
        process = os.getpid()
        forked = process != self._process
        if forked:
            self._lock, self._process = threading.RLock(), process
        self._lock.acquire()
        return forked

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[ProcessLock], tuple[()]]:
        """Copies and pickles are locks of their own."""
        return ProcessLock, ()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute matrix products inside in full float32; the caller's setting comes back afterwards."""
    with _Precision.lock:  # the setting is one for all threads: the first changes it, the last brings it back
        if not _Precision.inside:
            _Precision.before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
        _Precision.inside += 1
    try:
        yield
    finally:
        with _Precision.lock:
            _Precision.inside -= 1
            if not _Precision.inside:
                torch.set_float32_matmul_precision(_Precision.before)


class _Precision:
    """How many threads are inside :func:`exact_float32`, and the setting that they found."""

    lock = ProcessLock()
    inside = 0
    before = "highest"


def rounding_bound(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Bound the relative error of a sum of so many products in any order of summation.

    gamma_n = n u / (1 - n u), u half the machine epsilon (Higham 2002, section 3.1), with three roundings to spare
    for what surrounds the sum.
    """
    u = torch.finfo(dtype).eps / 2
    n = terms + 3
    return n * u / (1 - n * u)


# What ONEDNN_MAX_CPU_ISA can limit oneDNN to that has no bfloat16. OpenVINO, told to use it all the same, crashes.
_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


def may_use_bfloat16() -> bool:
    """Whether the environment leaves the CPU's bfloat16 to torch and OpenVINO, whose oneDNN it may limit."""
    limits = (os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))
    return not any(limit.upper() in _WITHOUT_BFLOAT16 for limit in limits)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); without it the detour costs time."""
    return may_use_bfloat16() and bool({"avx512_bf16", "amx_bf16"} & _flags())


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 in tiles (AMX), several times as fast as AVX512-BF16 does."""
    return may_use_bfloat16() and "amx_bf16" in _flags()


def _flags() -> set[str]:
    """Return what Linux says that this CPU can do; elsewhere nothing."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
