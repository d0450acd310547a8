"""One Gaussian per cell of a grid, over levels of which the coarse ones are enlarged to the grid by nearest cells.

With nearest enlargement all cells under a coarse cell share its features. Order the channels coarsest level first:
then those cells share the leading block of their covariance, and because a Cholesky factor L grows from its leading
block, they share the first rows of L^-1 too. So means and rows of L^-1 are kept once per *unit*, a cell of the level
that they belong to: for channels spread over strides 4, 8 and 16 about a fifth of a whole matrix per cell, and the
same distances. Levels whose grids do not divide one another only have more units.

How a Gaussian is learned is in :mod:`pickglass.nn.gaussian.learners`.

Letters: B images, P positions, N images learned from, h x w cells of the grid, U units of a level, V units of the
level before it (coarser), d channels of a level, c channels of all coarser ones, D channels of all levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pickglass.nn.gaussian.algebra import stack_channels, times_parent

__all__ = ["CellGaussians", "Level"]

Grid = tuple[int, int]


class Level(nn.Module):
    """A level of a network's features has units, each with its place and its Gaussian.

    Args:
        source: (U,) cell of the level's own grid that each unit reads.
        parent: (U,) unit of the level before (coarser) that each unit lies under, rising.

    Attributes:
        siblings: number of units under each parent, where that is the same for all; 0 where it varies.
        mean: (P, U, d), mean of each unit.
        rows: (P, U, d, c + d), a unit's rows of L^-1; None until they are learned.
    """

    def __init__(self, source: Tensor, parent: Tensor) -> None:
        super().__init__()
        self.source: Tensor
        self.parent: Tensor
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("parent", parent, persistent=False)
        children = torch.bincount(parent)
        self.siblings = int(children[0]) if bool((children == children[0]).all()) else 0

        self.mean: Tensor
        self.rows: Tensor
        self.register_buffer("mean", None)
        self.register_buffer("rows", None)

    def columns(self, features: Tensor) -> Tensor:
        """Arrange features (B, P, d, h, w) on the level's own grid as one column per image: (P, U, d, B)."""
        return features.flatten(3).permute(1, 3, 2, 0)[:, self.source]


class CellGaussians(nn.Module):
    """The Gaussians of all cells of a grid say how far the features of an image are from those of good ones.

    They are empty until :class:`~pickglass.nn.gaussian.learners.RunningSums` or
    :class:`~pickglass.nn.gaussian.learners.FewSamples` fills them.

    Args:
        grids: (h, w) of each level.
        grid: (h, w) of the cells.
        channels: number of channels of each level; 0 is allowed.
        positions: P.
        eps: variance added to every channel (PaDiM, eq. 1: 0.01); above 0.

    A unit that counted in fewer than two images has covariance ``eps`` I, and mean 0 if it counted in none: whatever
    an image then shows there is far from good.
    """

    def __init__(self, grids: Sequence[Grid], grid: Grid, channels: Sequence[int], positions: int, eps: float) -> None:
        super().__init__()
        self.grid = grid
        self.positions = positions
        self.eps = eps
        self.order = sorted(range(len(grids)), key=lambda i: grids[i][0] * grids[i][1])  # coarsest first
        self.stages = nn.ModuleList()

        units = torch.zeros(grid[0] * grid[1], dtype=torch.int64)  # (h w,) unit of the level before, under each cell
        for i in self.order:
            h, w = grids[i]
            down = torch.arange(grid[0]) * h // grid[0]
            right = torch.arange(grid[1]) * w // grid[1]
            nearest = (down[:, None] * w + right[None]).flatten()  # (h w,) nearest cell of the level
            keys, units = torch.unique(units * (h * w) + nearest, return_inverse=True)
            level = Level(keys % (h * w), keys // (h * w))
            level.mean = torch.zeros(positions, len(keys), channels[i])
            self.stages.append(level)

        self.cell: Tensor  # (h w,) unit of the finest level under each cell
        self.register_buffer("cell", units, persistent=False)
        self.factor: Tensor | None  # (P, U, N, D), the low-rank form, U of the finest level
        self.register_buffer("factor", None)

    @property
    def levels(self) -> list[Level]:
        """Return the levels, coarsest first."""
        return [stage for stage in self.stages if isinstance(stage, Level)]

    @property
    def channels(self) -> list[int]:
        """Return the number of channels of each level, in the caller's order."""
        width = dict(zip(self.order, (level.mean.shape[2] for level in self.levels), strict=True))
        return [width[i] for i in range(len(width))]

    @property
    def learned(self) -> bool:
        """The Gaussians are learned once a learner has filled them; only then is there a distance."""
        return self.factor is not None or self.levels[0].rows is not None

    def sizes(self) -> list[tuple[int, int, int]]:
        """Return the sizes (U, d, c) of each level, coarsest first."""
        wide = [level.mean.shape[2] for level in self.levels]
        units = [len(level.source) for level in self.levels]
        return list(zip(units, wide, itertools.accumulate(wide, initial=0), strict=False))

    def floats(self, images: int | None = None) -> int:
        """Count the numbers that the Gaussians hold: in rows of L^-1, or in the low-rank form of that many images."""
        sizes = self.sizes()
        means = sum(u * d for u, d, _ in sizes)
        if images is not None:
            return self.positions * (means + sizes[-1][0] * images * sum(self.channels))
        return self.positions * (means + sum(u * d * (c + d) for u, d, c in sizes))

    def distance(self, features: Sequence[Tensor]) -> Tensor:
        """Measure the Mahalanobis distance of each cell, M(x) = sqrt((x - mu)^T Sigma^-1 (x - mu)) (PaDiM eq. 2).

        Args:
            features: (B, P, d, h_l, w_l) of each level, in the caller's order.

        Returns:
            (B, P, h, w), at least 0.
        """
        b = features[0].shape[0]  # len() would be a constant of the exported graph
        squared = features[0].new_zeros(self.positions, 1, b)  # (P, V, B)
        coarser = features[0].new_zeros(self.positions, 1, 0, b)  # (P, V, c, B), deviations of all coarser levels
        levels = self.levels
        for level, i in zip(levels, self.order, strict=True):
            deviation = level.columns(features[i]) - level.mean[..., None]  # (P, U, d, B)
            if self.factor is None:
                c = level.rows.shape[3] - level.rows.shape[2]
                white = level.rows[..., c:] @ deviation  # (P, U, d, B)
                if c:
                    white = white + times_parent(level.rows[..., :c], coarser, level.parent, level.siblings)
                squared = squared[:, level.parent] + white.square().sum(2)  # (P, U, B)
            if self.factor is not None or level is not levels[-1]:
                coarser = stack_channels(coarser, deviation, level.parent)
        if self.factor is not None:
            # sqrt(eps) Sigma^-1/2 = I - F^T F, applied as it stands: no difference of squares
            white = coarser - self.factor.transpose(2, 3) @ (self.factor @ coarser)  # (P, U, D, B)
            squared = white.square().sum(2) / self.eps
        maps = squared[:, self.cell].sqrt().permute(2, 0, 1)  # (B, P, h w)
        return maps.reshape(b, self.positions, *self.grid)

    def by_level(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Split the squared distance of each cell among the levels: their whitened deviations, squared and summed.

        They are at least 0 and add up to M(x)^2. Whitened by L^-1, the coarsest level has its own distance, and each
        finer one what it adds to those before it; in the low-rank form the whitening is Sigma^-1/2, which favours none.

        Args:
            features: as in :meth:`distance`.

        Returns:
            (B, P, h, w) of each level, in the caller's order.
        """
        b = len(features[0])
        parts: dict[int, Tensor] = {}  # (P, U, B) each
        coarser = features[0].new_zeros(self.positions, 1, 0, b)  # (P, V, c, B)
        for level, i in zip(self.levels, self.order, strict=True):
            deviation = level.columns(features[i]) - level.mean[..., None]  # (P, U, d, B)
            parts = {done: part[:, level.parent] for done, part in parts.items()}
            parts[i] = deviation.new_zeros(deviation.shape[0], deviation.shape[1], b)
            if self.factor is None:
                c = level.rows.shape[3] - level.rows.shape[2]
                white = level.rows[..., c:] @ deviation  # (P, U, d, B)
                if c:
                    white = white + times_parent(level.rows[..., :c], coarser, level.parent, level.siblings)
                parts[i] = white.square().sum(2)
            coarser = stack_channels(coarser, deviation, level.parent)
        if self.factor is not None:
            white = coarser - self.factor.transpose(2, 3) @ (self.factor @ coarser)  # (P, U, D, B)
            widths = [level.mean.shape[2] for level in self.levels]
            split = (white.square() / self.eps).split(widths, dim=2)
            parts = {i: part.sum(2) for i, part in zip(self.order, split, strict=True)}
        maps = [parts[i][:, self.cell].permute(2, 0, 1) for i in range(len(features))]  # (B, P, h w)
        return [part.reshape(b, self.positions, *self.grid) for part in maps]
