"""Gaussians are learned from running sums, or from few samples held in memory.

Sums are float64 around the mean of the first images, so memory does not grow with the images. An image in which a
unit is left out enters none of its sums. Where siblings counted in different images, each keeps the variances of its
own images, and their covariance with a coarser level is scaled by sqrt((n - 1) / (n' - 1)), n of n' images: this keeps
a covariance positive when it is put together from parts. Where all counted in the same images it is the plain one.

Letters: B images, P positions, N images learned from, h x w cells of the grid, U units of a level, V units of the
level before it (coarser), d channels of a level, c channels of all coarser ones, D channels of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pickglass.errors import InputError
from pickglass.nn.gaussian.algebra import inverse_factor, stack_channels, times_parent
from pickglass.nn.gaussian.cells import CellGaussians, Level

__all__ = ["FewSamples", "RunningSums"]

_AT_ONCE = 32  # images of one update: enough to be worth a pass over the sums
_BLOCK = 1 << 22  # doubles of one block while factors are computed: about 150 MB with the copies


class _Learner:
    """Both ways of learning hold batches until there are enough, and know which units count in them."""

    def __init__(self, gaussians: CellGaussians) -> None:
        self.gaussians = gaussians
        self._batches: list[tuple[list[Tensor], Tensor | None]] = []

    def add(self, features: Sequence[Tensor], keep: Tensor | None = None) -> None:
        """Learn from further good images.

        Args:
            features: (B, P, d, h_l, w_l) of each level, in the caller's order; they are held for a while.
            keep: (B, P, h, w) bool, which cells of which image count; None: all.
        """
        self._batches.append((list(features), keep))

    def _columns(self, positions: slice) -> tuple[list[Tensor], list[Tensor] | None]:
        """Arrange the held images of some positions, one column per image.

        Returns:
            Columns (P, U, d, B) of each level, coarsest first, and which of them count, (P, U, 1, B) bool; None: all.
        """
        model, batches = self.gaussians, self._batches
        columns = [
            level.columns(torch.cat([features[i][:, positions] for features, _ in batches]))
            for level, i in zip(model.levels, model.order, strict=True)
        ]
        if all(keep is None for _, keep in batches):
            return columns, None
        masks = [
            features[0].new_ones(*features[0][:, positions].shape[:2], *model.grid)
            if keep is None
            else keep[:, positions].float()
            for features, keep in batches
        ]

        counts = torch.cat(masks).flatten(2)  # (B, P, h w)
        index, counted = model.cell, []
        for level in reversed(model.levels):
            under = counts.new_zeros(*counts.shape[:2], len(level.source)).index_add_(2, index, counts)
            counts = (under > 0).float()  # (B, P, U), a unit counts where any cell under it does
            counted.append((under > 0).permute(1, 2, 0)[:, :, None])  # (P, U, 1, B)
            index = level.parent
        return columns, counted[::-1]


class RunningSums(_Learner):
    """Running sums of x and x x^T per unit take memory that does not depend on the number of images.

    Args:
        gaussians: to be filled.
        device: where the sums are kept.
    """

    def __init__(self, gaussians: CellGaussians, device: torch.device | str = "cpu") -> None:
        super().__init__(gaussians)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(gaussians.positions, *shape, dtype=torch.float64, device=device)

        sizes = gaussians.sizes()
        self._shift = [zeros(u, d) for u, d, _ in sizes]
        # with a 1 below x, one product gives the sums of x x^T, of x and of 1
        self._sums = [zeros(u, d + 1, d + 1) for u, d, _ in sizes]
        self._cross = [zeros(u, d + 1, c) for u, d, c in sizes]

    @classmethod
    def going_on(cls, gaussians: CellGaussians, counts: Tensor) -> RunningSums:
        """Return the sums of the images that the Gaussians were learned from, to which others can be added.

        The covariance follows from the factor, C = L L^T - eps I, so sums and Gaussians agree to the rounding of the
        file's single precision.

        Args:
            gaussians: learned, in either form.
            counts: (P, h, w) images in which each cell counted: one number, or 0, for otherwise the sums of channels
                of two levels would be over different images, and cannot be told from their covariance.
        """
        learner = cls(gaussians, gaussians.cell.device)
        images = _unit_counts(gaussians, counts.double())
        roots = len(gaussians.levels[0].source)
        doubles = sum(u * (c + d) ** 2 for u, d, c in gaussians.sizes())
        step = max(1, _BLOCK * roots // max(1, gaussians.positions * doubles))
        for k, level in enumerate(gaussians.levels):
            learner._shift[k].copy_(level.mean)
            learner._sums[k][..., -1, -1] = images[k]
        if gaussians.factor is not None:
            learner._recall_low_rank(images)
        else:
            for lo in range(0, roots, step):
                learner._recall(lo, min(lo + step, roots), images)
        return learner

    def _recall(self, lo: int, hi: int, images: Sequence[Tensor]) -> None:
        """Put back the sums of the units lo..hi of the coarsest level and of all that lie under them.

        With L = [[A, 0], [B, D]] of the coarser channels and the level's own, L^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]].
        """
        levels, before = self.gaussians.levels, 0
        whole = self._shift[0].new_zeros(self.gaussians.positions, 1, 0, 0)  # (P, V, c, c), L of all coarser levels
        for k, level in enumerate(levels):
            if k > 0:
                ends = torch.tensor([lo, hi], device=level.parent.device)
                before, (lo, hi) = lo, torch.searchsorted(level.parent, ends).tolist()
            parent, c = level.parent[lo:hi] - before, whole.shape[3]
            rows = level.rows[:, lo:hi].double()  # (P, U, d, c + d)
            identity = torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
            own = torch.linalg.solve_triangular(rows[..., c:], identity, upper=False)  # D, (P, U, d, d)
            above = whole[:, parent]  # A, (P, U, c, c)
            lower = -(own @ rows[..., :c] @ above)  # B, (P, U, d, c)
            covariance = lower @ lower.transpose(2, 3) + own @ own.transpose(2, 3) - self.gaussians.eps * identity
            self._put(k, slice(lo, hi), covariance, lower @ above.transpose(2, 3), images[k][:, lo:hi])
            top = nn.functional.pad(above, (0, rows.shape[2]))  # (P, U, c, c + d)
            whole = torch.cat([top, torch.cat([lower, own], dim=3)], dim=2)

    def _recall_low_rank(self, images: Sequence[Tensor]) -> None:
        """Put back the sums from the low-rank form: with r = 1 - |F_i|^2 the eigenvalue is eps / r^2 - eps."""
        model, levels = self.gaussians, self.gaussians.levels
        if model.factor is None:
            raise RuntimeError("there is no low-rank form to go on from")
        factor = model.factor.double()  # (P, U, N, D)
        r = (1 - factor.square().sum(3)).clamp(min=1e-12)  # (P, U, N)
        weighted = factor * (model.eps * (1 + r) / r.square())[..., None]
        under = torch.arange(factor.shape[1], device=factor.device)  # a finest unit under each unit of the level
        wide = sum(model.channels)
        for k in range(len(levels) - 1, -1, -1):
            d = levels[k].mean.shape[2]
            wide -= d
            products = weighted[:, under, :, wide : wide + d].transpose(2, 3) @ factor[:, under, :, : wide + d]
            self._put(k, slice(None), products[..., wide:], products[..., :wide], images[k])
            first = torch.full((int(levels[k].parent.max()) + 1,), len(under), device=under.device)
            first.scatter_reduce_(0, levels[k].parent, torch.arange(len(under), device=under.device), "amin")
            under = under[first]

    def _put(self, k: int, units: slice, covariance: Tensor, joint: Tensor, n: Tensor) -> None:
        """Set the sums of a level's units: covariance (P, U, d, d), joint (P, U, d, c), n (P, U) images."""
        dof = (n - 1).clamp(min=0)[..., None, None]
        self._sums[k][:, units, :-1, :-1] = dof * covariance
        self._cross[k][:, units, :-1] = dof * joint

    @staticmethod
    def bytes(gaussians: CellGaussians) -> int:
        """Estimate the most bytes that the sums take while they are filled and turned into rows of L^-1."""
        sums = sum(u * (d + 1) * (c + d + 1) for u, d, c in gaussians.sizes())
        waiting = _AT_ONCE * sum(u * d for u, d, _ in gaussians.sizes())
        in_work = _AT_ONCE * sum(u * (c + 4 * (d + 1)) for u, d, c in gaussians.sizes())  # of the position being added
        return gaussians.positions * (8 * sums + 4 * waiting) + 8 * in_work + 4 * gaussians.floats()

    def add(self, features: Sequence[Tensor], keep: Tensor | None = None) -> None:  # noqa: D102
        super().add(features, keep)
        if sum(len(features[0]) for features, _ in self._batches) >= _AT_ONCE:
            self._absorb()

    def _absorb(self) -> None:
        for p in range(self.gaussians.positions):
            self._absorb_position(p)
        self._batches = []

    def _absorb_position(self, p: int) -> None:
        """Add one position alone: its deviations are small enough to stay in memory that the process has already."""
        columns, counted = self._columns(slice(p, p + 1))
        levels = self.gaussians.levels
        coarser = self._shift[0].new_zeros(1, 0, columns[0].shape[3])  # (V, c, B)
        for k, (level, (x,)) in enumerate(zip(levels, columns, strict=True)):
            mask = None if counted is None else counted[k][0]  # (U, 1, B)
            sums, shift = self._sums[k][p], self._shift[k][p]
            _choose_shift(shift, sums[:, -1, -1] == 0, x, mask)

            z1 = torch.ones(x.shape[0], x.shape[1] + 1, x.shape[2], dtype=torch.float64, device=x.device)
            z = torch.sub(x, shift[..., None], out=z1[:, :-1])  # (U, d, B)
            if mask is not None:
                z1.masked_fill_(~mask, 0.0)  # what does not count need not be finite

            sums.baddbmm_(z1, z1.transpose(1, 2))
            if k > 0:
                self._absorb_cross(level, self._cross[k][p], z1, coarser)
            if level is not levels[-1]:
                coarser = stack_channels(coarser, z, level.parent)

    def _absorb_cross(self, level: Level, cross: Tensor, z1: Tensor, coarser: Tensor) -> None:
        """Add the products with all coarser levels to their sums (U, d + 1, c)."""
        if not level.siblings:
            cross.baddbmm_(z1, coarser[level.parent].transpose(1, 2))
            return
        u, wide, c = cross.shape
        v, m = u // level.siblings, wide * level.siblings
        # all units under a parent in one product, (V, m, B) (V, B, c): nothing is copied out
        cross.view(v, m, c).baddbmm_(z1.view(v, m, -1), coarser.transpose(1, 2))

    def finish(self) -> None:
        """Fill the Gaussians with what was learned.

        Raises:
            InputError: eps is too small for the rounding of the covariances, or the features are not finite.
        """
        if self._batches:
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
        self._shift, self._sums, self._cross = [], [], []

    def _factorise(self, lo: int, hi: int) -> None:
        """Compute the rows of L^-1 for the units lo..hi of the coarsest level and all that lie under them."""
        levels, before = self.gaussians.levels, 0
        whole = self._shift[0].new_zeros(self.gaussians.positions, 1, 0, 0)  # (P, V, c, c), L^-1 of all coarser levels
        dof = whole.sum(3)  # (P, V, c), n - 1 of each of their channels
        for k, level in enumerate(levels):
            if k > 0:  # from units of the level before to those under them
                ends = torch.tensor([lo, hi], device=level.parent.device)
                before, (lo, hi) = lo, torch.searchsorted(level.parent, ends).tolist()

            parent = level.parent[lo:hi] - before
            siblings = level.siblings if k > 0 else 0
            mean, covariance, level_dof = self._moments(k, lo, hi)
            joint = self._joint(k, lo, hi) / (level_dof[..., None, None] * dof[:, parent, None]).sqrt()
            lower = times_parent(joint, whole.transpose(2, 3), parent, siblings)  # rows of L, (P, U, d, c)
            inverse = inverse_factor(covariance - lower @ lower.transpose(2, 3), self.gaussians.eps)  # (P, U, d, d)
            left = -(inverse @ times_parent(lower, whole, parent, siblings))  # (P, U, d, c)
            rows = torch.cat([left, inverse], dim=3)  # (P, U, d, c + d)

            level.mean[:, lo:hi] = mean
            level.rows[:, lo:hi] = rows
            if level is not levels[-1]:
                top = nn.functional.pad(whole[:, parent], (0, mean.shape[2]))  # (P, U, c, c + d)
                whole = torch.cat([top, rows], dim=2)
                dof = torch.cat([dof[:, parent], level_dof[..., None].expand(mean.shape)], dim=2)

    def _moments(self, k: int, lo: int, hi: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean (P, U, d), covariance with n - 1 (P, U, d, d), and n - 1, at least 1, (P, U), from the sums."""
        sums = self._sums[k][:, lo:hi]
        n = sums[..., -1, -1]  # (P, U)
        dof = (n - 1).clamp(min=1)
        total = sums[..., :-1, -1]  # (P, U, d), of x - shift
        mean = total / n.clamp(min=1)[..., None]
        scatter = sums[..., :-1, :-1] - mean[..., None] * total[..., None, :]
        return self._shift[k][:, lo:hi] + mean, scatter / dof[..., None, None], dof

    def _joint(self, k: int, lo: int, hi: int) -> Tensor:
        """Sum (x - mean) y^T over the images in which a unit counts, y of all coarser levels: (P, U, d, c)."""
        cross, sums = self._cross[k][:, lo:hi], self._sums[k][:, lo:hi]
        mean = sums[..., :-1, -1] / sums[..., -1, -1].clamp(min=1)[..., None]  # (P, U, d)
        return cross[..., :-1, :] - mean[..., None] * cross[..., -1:, :]


class FewSamples(_Learner):
    """With fewer images than channels, the same Gaussians are kept in a low-rank form, made of the samples themselves.

    With Z the N deviations over sqrt(n - 1), Sigma = Z^T Z + eps I. From Z Z^T = U diag(lambda) U^T, a small matrix,
    sqrt(eps) Sigma^-1/2 = I - F^T F with F = (lambda + eps + sqrt(eps (lambda + eps)))^-1/2 U^T Z: no division by an
    eigenvalue that may be 0, and N x D numbers per cell.
    """

    @staticmethod
    def bytes(gaussians: CellGaussians, images: int) -> int:
        """Estimate the most bytes that the samples take while they are held and turned into factors."""
        samples = gaussians.positions * images * sum(u * d for u, d, _ in gaussians.sizes())
        return 4 * gaussians.floats(images) + (4 + 4 + 3 * 8) * samples

    def finish(self) -> None:
        """Fill the Gaussians with what was learned.

        Raises:
            InputError: the features are not finite.
        """
        model, levels = self.gaussians, self.gaussians.levels
        columns, counted = self._columns(slice(None))
        self._batches = []

        samples = []  # Z of each level, (P, U, d, N)
        for k, (level, x) in enumerate(zip(levels, columns, strict=True)):
            mask = torch.ones_like(x[:, :, :1], dtype=torch.bool) if counted is None else counted[k]  # (P, U, 1, N)
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
        """Compute the factor F from the deviations Z, both (P, U, N, D)."""
        eps = self.gaussians.eps
        eigenvalues, vectors = torch.linalg.eigh(z @ z.transpose(2, 3))
        raised = eigenvalues.clamp(min=0) + eps  # (P, U, N)
        scale = (raised + (eps * raised).sqrt()).rsqrt()
        factor: Tensor = scale[..., None] * (vectors.transpose(2, 3) @ z)
        return factor


def _unit_counts(gaussians: CellGaussians, counts: Tensor) -> list[Tensor]:
    """Return in how many images each unit of each level counted, (P, U), coarsest first: as any cell under it did."""
    index, values, found = gaussians.cell, counts.flatten(1), []
    for level in reversed(gaussians.levels):
        most = values.new_zeros(len(values), len(level.source))
        values = most.scatter_reduce(1, index.expand_as(values), values, "amax")  # (P, U)
        found.append(values)
        index = level.parent
    return found[::-1]


def _choose_shift(shift: Tensor, unseen: Tensor, x: Tensor, mask: Tensor | None) -> None:
    """Shift each unit by the mean of its first images; any shift is right, one close to the mean loses no digits.

    Args:
        shift: (U, d), written to where ``unseen`` (U,) is.
        unseen: (U,) bool.
        x: (U, d, B).
        mask: (U, 1, B) bool, which images count; None: all.
    """
    if bool(unseen.any()):
        first = x.mean(2) if mask is None else torch.where(mask, x, 0.0).sum(2) / mask.sum(2).clamp(min=1)  # (U, d)
        shift.copy_(torch.where(unseen[:, None], first.double(), shift))
