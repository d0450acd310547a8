"""One Gaussian per cell of a grid, learned from a stream, over levels of which the coarse ones are enlarged to nearest.

With nearest enlargement all cells under a coarse cell share its features. Order the channels coarsest level first:
then those cells share the leading block of their covariance, and because a Cholesky factor L grows from its leading
block, they share the first rows of L^-1 too. So sums and rows of L^-1 are kept once per *unit*, a cell of the level
that they belong to: for channels spread over strides 4, 8 and 16 about a fifth of a whole matrix per cell, and the
same distances. Levels whose grids do not divide one another only have more units.

Sums are float64 around the mean of the first images, so memory does not grow with the images. An image in which a
unit is left out enters none of its sums. Where siblings were seen in different images, each keeps the variances of
its own images, and their covariance with a coarser level is scaled by sqrt((n - 1) / (n' - 1)), n of n' images: what
keeps a covariance positive when it is put together from parts. Where all saw the same images it is the plain one.

Letters: B images, P positions, N images learned from, h x w cells of the grid, U units of a level, V units of the
level before it (coarser), d channels of a level, c channels of all coarser ones, D channels of all levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pickglass.errors import InputError

__all__ = ["CellGaussians", "FewSamples", "RunningSums"]

_AT_ONCE = 32  # images of one update: enough to be worth a pass over the sums
_BLOCK = 1 << 22  # doubles of one block while factors are computed: about 150 MB with the copies

Grid = tuple[int, int]


class _Level(nn.Module):
    """One level: where its units read, which unit of the level before each lies under, and what was learned."""

    def __init__(self, source: Tensor, parent: Tensor) -> None:
        super().__init__()
        self.source: Tensor  # (U,) cell of the level's own grid
        self.parent: Tensor  # (U,) rising
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("parent", parent, persistent=False)
        under = torch.bincount(parent)
        self.siblings = int(under[0]) if bool((under == under[0]).all()) else 0  # under each parent; 0: it varies
        self.mean: Tensor  # (P, U, d)
        self.rows: Tensor  # (P, U, d, c + d) of L^-1
        self.register_buffer("mean", None)
        self.register_buffer("rows", None)

    def columns(self, features: Tensor) -> Tensor:
        """Features (B, P, d, h, w) of the level's own grid, an image a column: (P, U, d, B)."""
        return features.flatten(3).permute(1, 3, 2, 0)[:, self.source]


class CellGaussians(nn.Module):
    """Gaussians over the cells of a grid; empty until :class:`RunningSums` or :class:`FewSamples` fill them.

    Args:
        grids: (h, w) of each level.
        grid: (h, w) of the cells.
        channels: of each level; 0 is allowed.
        positions: P.
        eps: variance added to every channel (PaDiM, eq. 1: 0.01); above 0.

    A unit that fewer than two images were seen of has covariance ``eps`` I, and mean 0 if it was none: whatever it
    then shows is far from good.
    """

    def __init__(self, grids: Sequence[Grid], grid: Grid, channels: Sequence[int], positions: int, eps: float) -> None:
        super().__init__()
        self.grid = grid
        self.positions = positions
        self.eps = eps
        self.order = sorted(range(len(grids)), key=lambda i: grids[i][0] * grids[i][1])  # coarsest first
        self.stages = nn.ModuleList()
        units = torch.zeros(grid[0] * grid[1], dtype=torch.int64)  # of the level before, under each cell
        for i in self.order:
            h, w = grids[i]
            down = torch.arange(grid[0]) * h // grid[0]
            right = torch.arange(grid[1]) * w // grid[1]
            own = (down[:, None] * w + right[None]).flatten()  # (h w,) nearest cell of the level
            keys, units = torch.unique(units * (h * w) + own, return_inverse=True)
            level = _Level(keys % (h * w), keys // (h * w))
            level.mean = torch.zeros(positions, len(keys), channels[i])
            self.stages.append(level)
        self.cell: Tensor  # (h w,) unit of the finest level under each cell
        self.register_buffer("cell", units, persistent=False)
        self.factor: Tensor | None  # (P, U, N, D), the low-rank form, U of the finest level
        self.register_buffer("factor", None)

    @property
    def levels(self) -> list[_Level]:
        """The levels, coarsest first."""
        return [stage for stage in self.stages if isinstance(stage, _Level)]

    @property
    def channels(self) -> list[int]:
        """Channels of each level, in the caller's order."""
        found = dict(zip(self.order, (level.mean.shape[2] for level in self.levels), strict=True))
        return [found[i] for i in range(len(found))]

    @property
    def learned(self) -> bool:
        """Whether there is anything to measure a distance to."""
        return self.factor is not None or self.levels[0].rows is not None

    def sizes(self) -> list[tuple[int, int, int]]:
        """(U, d, c) of each level, coarsest first."""
        wide = [level.mean.shape[2] for level in self.levels]
        units = [len(level.source) for level in self.levels]
        return list(zip(units, wide, itertools.accumulate(wide, initial=0), strict=False))

    def floats(self, images: int | None = None) -> int:
        """Numbers that the form in rows of L^-1 holds, or the low-rank form for that many images."""
        sizes = self.sizes()
        means = sum(u * d for u, d, _ in sizes)
        if images is not None:
            return self.positions * (means + sizes[-1][0] * images * sum(self.channels))
        return self.positions * (means + sum(u * d * (c + d) for u, d, c in sizes))

    def distance(self, features: Sequence[Tensor]) -> Tensor:
        """M(x) = sqrt((x - mu)^T Sigma^-1 (x - mu)), PaDiM eq. 2.

        Args:
            features: of each level (B, P, d, h_l, w_l), in the caller's order.

        Returns:
            (B, P, h, w), at least 0.
        """
        b = len(features[0])
        squared = features[0].new_zeros(self.positions, 1, b)  # (P, V, B)
        coarser = features[0].new_zeros(self.positions, 1, 0, b)  # (P, V, c, B), deviations of all coarser levels
        levels = self.levels
        for level, i in zip(levels, self.order, strict=True):
            own = level.columns(features[i]) - level.mean[..., None]  # (P, U, d, B)
            if self.factor is None:
                c = level.rows.shape[3] - level.rows.shape[2]
                white = level.rows[..., c:] @ own  # (P, U, d, B)
                if c:
                    white = white + _under(level.rows[..., :c], coarser, level.parent, level.siblings)
                squared = squared[:, level.parent] + white.square().sum(2)  # (P, U, B)
            if self.factor is not None or level is not levels[-1]:
                coarser = _below(coarser, own, level.parent)
        if self.factor is not None:
            # sqrt(eps) Sigma^-1/2 = I - F^T F, applied as it stands: no difference of squares
            white = coarser - self.factor.transpose(2, 3) @ (self.factor @ coarser)  # (P, U, D, B)
            squared = white.square().sum(2) / self.eps
        maps = squared[:, self.cell].sqrt().permute(2, 0, 1)  # (B, P, h w)
        return maps.reshape(b, self.positions, *self.grid)


class _Learner:
    """What both ways of learning share: batches held until there are enough, and which units count in them."""

    def __init__(self, gaussians: CellGaussians) -> None:
        self.gaussians = gaussians
        self._held: list[tuple[list[Tensor], Tensor | None]] = []

    def add(self, features: Sequence[Tensor], keep: Tensor | None = None) -> None:
        """Take in good images.

        Args:
            features: of each level (B, P, d, h_l, w_l), in the caller's order; they are held for a while.
            keep: (B, P, h, w) bool, which cells of which image count; None: all.
        """
        self._held.append((list(features), keep))

    def _columns(self, own: slice) -> tuple[list[Tensor], list[Tensor] | None]:
        """Of some positions: columns (P, U, d, B) of each level, coarsest first, and which count, (P, U, 1, B) bool."""
        model, held = self.gaussians, self._held
        columns = [
            level.columns(torch.cat([features[i][:, own] for features, _ in held]))
            for level, i in zip(model.levels, model.order, strict=True)
        ]
        if all(keep is None for _, keep in held):
            return columns, None
        masks = [
            features[0].new_ones(*features[0][:, own].shape[:2], *model.grid) if keep is None else keep[:, own].float()
            for features, keep in held
        ]
        counts, index, kept = torch.cat(masks).flatten(2), model.cell, []  # (B, P, h w)
        for level in reversed(model.levels):
            under = counts.new_zeros(*counts.shape[:2], len(level.source)).index_add_(2, index, counts)
            counts = (under > 0).float()  # (B, P, U), a unit counts where any cell under it does
            kept.append((under > 0).permute(1, 2, 0)[:, :, None])  # (P, U, 1, B)
            index = level.parent
        return columns, kept[::-1]


class RunningSums(_Learner):
    """Sums of x and x x^T per unit on ``device``, in memory that does not depend on the number of images."""

    def __init__(self, gaussians: CellGaussians, device: torch.device | str = "cpu") -> None:
        super().__init__(gaussians)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(gaussians.positions, *shape, dtype=torch.float64, device=device)

        sizes = gaussians.sizes()
        self._shift = [zeros(u, d) for u, d, _ in sizes]
        # with a 1 below x, one product gives the sums of x x^T, of x and of 1
        self._own = [zeros(u, d + 1, d + 1) for u, d, _ in sizes]
        self._cross = [zeros(u, d + 1, c) for u, d, c in sizes]

    @staticmethod
    def bytes(gaussians: CellGaussians) -> int:
        """What the sums take while they are filled and turned into rows of L^-1, at most."""
        sums = sum(u * (d + 1) * (c + d + 1) for u, d, c in gaussians.sizes())
        held = _AT_ONCE * sum(u * d for u, d, _ in gaussians.sizes())
        one = _AT_ONCE * sum(u * (c + 4 * (d + 1)) for u, d, c in gaussians.sizes())  # position while it is added
        return gaussians.positions * (8 * sums + 4 * held) + 8 * one + 4 * gaussians.floats()

    def add(self, features: Sequence[Tensor], keep: Tensor | None = None) -> None:  # noqa: D102
        super().add(features, keep)
        if sum(len(held[0]) for held, _ in self._held) >= _AT_ONCE:
            self._absorb()

    def _absorb(self) -> None:
        for p in range(self.gaussians.positions):
            self._absorb_position(p)
        self._held = []

    def _absorb_position(self, p: int) -> None:
        """One alone: its deviations are small enough to stay in memory that the process has already."""
        columns, kept = self._columns(slice(p, p + 1))
        levels = self.gaussians.levels
        coarser = self._shift[0].new_zeros(1, 0, columns[0].shape[3])  # (V, c, B)
        for k, (level, (x,)) in enumerate(zip(levels, columns, strict=True)):
            mask = None if kept is None else kept[k][0]  # (U, 1, B)
            own, shift = self._own[k][p], self._shift[k][p]
            _choose_shift(shift, own[:, -1, -1] == 0, x, mask)
            z1 = torch.ones(x.shape[0], x.shape[1] + 1, x.shape[2], dtype=torch.float64, device=x.device)
            z = torch.sub(x, shift[..., None], out=z1[:, :-1])  # (U, d, B)
            if mask is not None:
                z1.masked_fill_(~mask, 0.0)  # what does not count need not be finite
            own.baddbmm_(z1, z1.transpose(1, 2))
            if k > 0:
                self._absorb_cross(level, self._cross[k][p], z1, coarser)
            if level is not levels[-1]:
                coarser = _below(coarser, z, level.parent)

    def _absorb_cross(self, level: _Level, cross: Tensor, z1: Tensor, coarser: Tensor) -> None:
        """Add to the sums with the coarser levels (U, d + 1, c)."""
        if not level.siblings:
            cross.baddbmm_(z1, coarser[level.parent].transpose(1, 2))
            return
        u, wide, c = cross.shape
        v, m = u // level.siblings, wide * level.siblings
        # all units under a parent in one product, (V, m, B) (V, B, c): nothing is copied out
        cross.view(v, m, c).baddbmm_(z1.view(v, m, -1), coarser.transpose(1, 2))

    def finish(self) -> None:
        """Fill the Gaussians; InputError if eps is too small for their rounding, or features are not finite."""
        if self._held:
            self._absorb()
        positions, levels = self.gaussians.positions, self.gaussians.levels
        doubles = 0
        for level, (u, d, c) in zip(levels, self.gaussians.sizes(), strict=True):
            level.mean = torch.zeros(positions, u, d, device=self._shift[0].device)
            level.rows = torch.zeros(positions, u, d, c + d, device=self._shift[0].device)
            doubles += positions * u * (c + d) * (d if level is levels[-1] else c + d)
        self.gaussians.factor = None
        roots = len(levels[0].source)
        step = max(1, _BLOCK * roots // max(1, doubles))
        for lo in range(0, roots, step):
            self._factorise(lo, min(lo + step, roots))
        self._shift, self._own, self._cross = [], [], []

    def _factorise(self, lo: int, hi: int) -> None:
        """Rows of L^-1 of the units lo..hi of the coarsest level and of all that lie under them."""
        levels, before = self.gaussians.levels, 0
        whole = self._shift[0].new_zeros(self.gaussians.positions, 1, 0, 0)  # (P, V, c, c), L^-1 of all coarser levels
        dof = whole.sum(3)  # (P, V, c), n - 1 of each of their channels
        for k, level in enumerate(levels):
            if k > 0:  # from units of the level before to those under them
                ends = torch.tensor([lo, hi], device=level.parent.device)
                before, (lo, hi) = lo, torch.searchsorted(level.parent, ends).tolist()
            parent = level.parent[lo:hi] - before
            siblings = level.siblings if k > 0 else 0
            mean, covariance, own_dof = self._moments(k, lo, hi)
            joint = self._joint(k, lo, hi) / (own_dof[..., None, None] * dof[:, parent, None]).sqrt()
            lower = _under(joint, whole.transpose(2, 3), parent, siblings)  # rows of L, (P, U, d, c)
            inverse = _inverse_factor(covariance - lower @ lower.transpose(2, 3), self.gaussians.eps)  # (P, U, d, d)
            left = -(inverse @ _under(lower, whole, parent, siblings))  # (P, U, d, c)
            rows = torch.cat([left, inverse], dim=3)  # (P, U, d, c + d)
            level.mean[:, lo:hi] = mean
            level.rows[:, lo:hi] = rows
            if level is not levels[-1]:
                top = nn.functional.pad(whole[:, parent], (0, mean.shape[2]))  # (P, U, c, c + d)
                whole = torch.cat([top, rows], dim=2)
                dof = torch.cat([dof[:, parent], own_dof[..., None].expand(mean.shape)], dim=2)

    def _moments(self, k: int, lo: int, hi: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (P, U, d), covariance with n - 1 (P, U, d, d), and n - 1, at least 1, (P, U)."""
        own = self._own[k][:, lo:hi]
        n = own[..., -1, -1]  # (P, U)
        dof = (n - 1).clamp(min=1)
        total = own[..., :-1, -1]  # (P, U, d), of x - shift
        mean = total / n.clamp(min=1)[..., None]
        scatter = own[..., :-1, :-1] - mean[..., None] * total[..., None, :]
        return self._shift[k][:, lo:hi] + mean, scatter / dof[..., None, None], dof

    def _joint(self, k: int, lo: int, hi: int) -> Tensor:
        """Sums of (x - mean) y^T over a unit's own images, y of all coarser levels: (P, U, d, c)."""
        cross, own = self._cross[k][:, lo:hi], self._own[k][:, lo:hi]
        mean = own[..., :-1, -1] / own[..., -1, -1].clamp(min=1)[..., None]  # (P, U, d)
        return cross[..., :-1, :] - mean[..., None] * cross[..., -1:, :]


class FewSamples(_Learner):
    """The low-rank form, for fewer images than channels: the same Gaussians from the samples themselves.

    With Z the N deviations over sqrt(n - 1), Sigma = Z^T Z + eps I. From Z Z^T = U diag(lambda) U^T, a small matrix,
    sqrt(eps) Sigma^-1/2 = I - F^T F with F = (lambda + eps + sqrt(eps (lambda + eps)))^-1/2 U^T Z: no division by an
    eigenvalue that may be 0, and N x D numbers per cell.
    """

    @staticmethod
    def bytes(gaussians: CellGaussians, images: int) -> int:
        """What the samples take while they are held and turned into factors, at most."""
        samples = gaussians.positions * images * sum(u * d for u, d, _ in gaussians.sizes())
        return 4 * gaussians.floats(images) + (4 + 4 + 3 * 8) * samples

    def finish(self) -> None:
        """Fill the Gaussians; InputError if features are not finite."""
        model, levels = self.gaussians, self.gaussians.levels
        columns, kept = self._columns(slice(None))
        self._held = []
        samples = []  # Z of each level, (P, U, d, N)
        for k, (level, x) in enumerate(zip(levels, columns, strict=True)):
            mask = torch.ones_like(x[:, :, :1], dtype=torch.bool) if kept is None else kept[k]  # (P, U, 1, N)
            n = mask.sum(3)  # (P, U, 1)
            mean = torch.where(mask, x, 0.0).double().sum(3) / n.clamp(min=1)  # (P, U, d)
            if not bool(torch.isfinite(mean).all()):
                raise InputError("the features are not finite: look for NaN or infinity in them")
            level.mean = mean.float()
            samples.append(torch.where(mask, x - mean[..., None], 0.0) / (n - 1).clamp(min=1).sqrt()[..., None])
        units, wide, images = len(levels[-1].source), sum(model.channels), columns[0].shape[3]
        factor = columns[0].new_empty(model.positions, units, images, wide)
        step = max(1, _BLOCK // (model.positions * images * (2 * wide + images)))
        for lo in range(0, units, step):
            index = torch.arange(lo, min(lo + step, units), device=factor.device)
            parts: list[Tensor] = []
            for level, z in zip(reversed(levels), reversed(samples), strict=True):
                parts.insert(0, z[:, index])
                index = level.parent[index]
            factor[:, lo : lo + step] = self._factor(torch.cat(parts, dim=2).transpose(2, 3))
        model.factor = factor

    def _factor(self, z: Tensor) -> Tensor:
        """F from Z, both (P, U, N, D)."""
        eps = self.gaussians.eps
        eigenvalues, vectors = torch.linalg.eigh(z @ z.transpose(2, 3))
        raised = eigenvalues.clamp(min=0) + eps  # (P, U, N)
        scale = (raised + (eps * raised).sqrt()).rsqrt()
        factor: Tensor = scale[..., None] * (vectors.transpose(2, 3) @ z)
        return factor


def _under(rows: Tensor, coarser: Tensor, parent: Tensor, siblings: int) -> Tensor:
    """rows (P, U, m, c) times what their units lie under, (P, V, c, q): (P, U, m, q)."""
    if not siblings:
        return rows @ coarser[:, parent]
    p, u, m, c = rows.shape
    # all units under a parent in one product: nothing is copied out
    product = rows.reshape(p, u // siblings, siblings * m, c) @ coarser
    spread: Tensor = product.view(p, u, m, coarser.shape[3])
    return spread


def _below(coarser: Tensor, own: Tensor, parent: Tensor) -> Tensor:
    """Channels of all coarser levels (..., V, c, B), then a level's own (..., U, d, B): (..., U, c + d, B)."""
    return torch.cat([coarser.index_select(-3, parent), own], dim=-2) if coarser.shape[-2] else own


def _choose_shift(shift: Tensor, unseen: Tensor, x: Tensor, mask: Tensor | None) -> None:
    """The mean of a unit's first images: any shift is right, one close to the mean loses no digits.

    Written to ``shift`` (U, d) where ``unseen`` (U,), from x (U, d, B) where ``mask`` (U, 1, B) is; None: everywhere.
    """
    if bool(unseen.any()):
        first = x.mean(2) if mask is None else torch.where(mask, x, 0.0).sum(2) / mask.sum(2).clamp(min=1)  # (U, d)
        shift.copy_(torch.where(unseen[:, None], first.double(), shift))


def _inverse_factor(covariance: Tensor, eps: float) -> Tensor:
    """L^-1 of covariance + eps I = L L^T, (..., d, d)."""
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    factor, info = torch.linalg.cholesky_ex(covariance + eps * identity)
    if bool((info != 0).any()) or not bool(torch.isfinite(factor).all()):
        raise InputError(
            f"a covariance is not positive definite with eps={eps:g}: raise eps to 0.01; if it is as high already, "
            "the features are not finite: look for NaN or infinity in them"
        )
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse
