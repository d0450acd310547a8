"""Mean, covariance and variance per cell of the levels of good images, from a stream.

Letters: N images, C channels, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pickglass.errors import InputError

__all__ = ["ChannelMoments", "GridMoments", "GridSums"]

_AT_ONCE = 8  # images whose features are held as doubles at once


@dataclass(frozen=True)
class GridMoments:
    """What is known of one level, in double precision; variances with n - 1.

    Attributes:
        mean: (C,) over cells and images.
        covariance: (C, C) over cells and images.
        within: (C, C) at a cell over the images, pooled over the cells; NaN if no cell was seen twice.
        spread: (C, h, w) variance at each cell over the images; NaN at cells seen fewer than twice.
    """

    mean: Tensor
    covariance: Tensor
    within: Tensor
    spread: Tensor


class GridSums:
    """Sums over the cells that count, in double precision around the mean of the first images: no digits are lost.

    Args:
        shape: (C, h, w) of the level.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._shift: Tensor | None = None  # (C,)

    def add(self, level: Tensor, keep: Tensor | None) -> None:
        """(N, C, h, w) with (N, h, w) bool, which cells count; None: all."""
        if keep is None:
            keep = torch.ones_like(level[:, 0], dtype=torch.bool)
        for part, own in zip(level.split(_AT_ONCE), keep.split(_AT_ONCE), strict=True):
            self._add(part.double(), own[:, None])

    def _add(self, x: Tensor, keep: Tensor) -> None:
        if self._shift is None:
            if not bool(keep.any()):
                return
            c, h, w = self.shape
            self._shift = torch.where(keep, x, 0.0).sum((0, 2, 3)) / keep.sum()
            self._n = x.new_zeros(h, w)
            self._total = x.new_zeros(c, h, w)
            self._square = x.new_zeros(c, h, w)
            self._products = x.new_zeros(c, c)
        z = torch.where(keep, x - self._shift[:, None, None], 0.0)  # (N, C, h, w)
        flat = z.transpose(0, 1).flatten(1)  # (C, N h w)
        self._n += keep[:, 0].sum(0)
        self._total += z.sum(0)
        self._square += z.square().sum(0)
        self._products += flat @ flat.T

    def moments(self) -> GridMoments:
        """Of everything added.

        Raises:
            InputError: no cell counted, or the features are not finite.
        """
        if self._shift is None:
            raise InputError("no cell of the training images counts: look at the region of interest")
        if not bool(torch.isfinite(self._products).all()):
            raise InputError("the features are not finite: look for NaN or infinity in them")
        n, cells = self._n.sum(), (self._n > 0).sum()
        mean = self._total.sum((1, 2)) / n  # (C,), of x - shift
        scatter = self._products - n * torch.outer(mean, mean)
        at_cell = (self._total / self._n.clamp(min=1).sqrt()).flatten(1)  # (C, h w)
        within = (self._products - at_cell @ at_cell.T) / (n - cells).clamp(min=1)
        spread = (self._square - self._total.square() / self._n.clamp(min=1)) / (self._n - 1).clamp(min=1)
        return GridMoments(
            self._shift + mean,
            scatter / (n - 1).clamp(min=1),
            within.masked_fill(n == cells, torch.nan),
            spread.clamp(min=0).masked_fill(self._n < 2, torch.nan),
        )


class ChannelMoments:
    """Mean and standard deviation of each channel over all cells, as they come, each position by itself.

    Two passes within a batch, batches merged exactly (Chan, Golub, LeVeque 1983): nothing cancels, as it does in the
    mean of squares minus the square of the mean.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def add(self, level: Tensor, keep: Tensor | None = None) -> None:
        """(B, P, C, h, w) and which cells count, (B, P, h, w) bool."""
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
        """(P, C) each, float64; the deviation of a channel that never changes is 1."""
        std = (self.squares / self.count.clamp(min=1)).sqrt()
        return self.mean, torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, 1.0)
