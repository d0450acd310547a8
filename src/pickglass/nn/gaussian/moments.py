"""Mean, covariance and variance of features are computed from a stream of good images.

Letters: N images, C channels, h x w cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pickglass.errors import InputError

__all__ = ["GridMoments", "GridSums"]

_AT_ONCE = 8  # images whose features are held as doubles at once


@dataclass(frozen=True)
class GridMoments:
    """The moments of one level are in double precision; variances are divided by n - 1.

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
    """Sums over the cells that count are kept as doubles around the mean of the first images: no digits are lost.

    Args:
        shape: (C, h, w) of the level.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._shift: Tensor | None = None  # (C,)

    def add(self, level: Tensor, keep: Tensor | None) -> None:
        """Add images to the sums.

        Args:
            level: (N, C, h, w).
            keep: (N, h, w) bool, which cells count; None: all.
        """
        if keep is None:
            keep = torch.ones_like(level[:, 0], dtype=torch.bool)
        for images, counted in zip(level.split(_AT_ONCE), keep.split(_AT_ONCE), strict=True):
            self._add(images.double(), counted[:, None])

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
        """Compute the moments of all images added.

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
