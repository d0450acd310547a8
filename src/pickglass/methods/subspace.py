"""SubspaceAD: good patches lie near a flat of few dimensions; a patch is as anomalous as it lies beside it.

Lendering, Akdag, Bondarev: "SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling", CVPR 2026
(arXiv 2602.23013). The principal axes of good patch features that hold 0.99 of their variance span the subspace; what
a patch leaves of itself beside it, r(x) = |(I - C C^T)(x - mu)|, is the map, and its highest hundredth the image score.
There is no bank: what is learned is one mean and one covariance, whatever the number of images.

Where we depart, and why
- The paper averages middle blocks of DINOv2, which have the same channels. Levels of any backbone have different ones:
  they stand side by side, brought to the first one's grid.
- The map is r, not its square, so that it is a distance like those of the other methods; images rank nearly alike.
- The map is smoothed on its own grid, before it is enlarged; see PatchCore.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's is ``top_share=0``.
- No turned copies: the paper adds them to one to four images, ``pickglass`` reads as many as there are.
- Images pass once. Sums stand for the covariance, so a model learns further images as if it had seen all at once.
- Thresholds come from images that are judged as if left out: by the subspace of the others or, of more than 20 units,
  of all but a twentieth of them. So the sums that this takes do not grow with the images either.

Letters: B images, P positions, C channels of all levels, K axes of the subspace, T = C - K beside it, h x w cells of
the first level, F folds of the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext, Form
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.maps import cells_of, exact_float32, kept_cells, mean_of_highest, neighbourhood_mean, to_grid
from pickglass.runtime.compute import Shape

__all__ = ["Subspace"]

_TAIL = 0.01  # of the map: the paper's image score
_FOLDS = 20  # of the units, each of which can be left out


class Subspace(Detector):
    """SubspaceAD (Lendering et al. 2026).

    Args:
        backbone, layers, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
            The first layer sets the grid.
        variance: share of the variance of good features that the subspace holds, above 0 and below 1 (paper: 0.99).
        patch: side of the neighbourhood that is averaged first, in cells, odd; 1 is none, the paper's.

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.Subspace(size=64).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (8, 8)
    """

    method = "subspace"
    presets: ClassVar = {"quick": {"size": "area:256"}}

    def __init__(
        self,
        *,
        backbone: str | nn.Module = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:256",
        smoothing: float | None = None,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        variance: float = 0.99,
        patch: int = 1,
    ) -> None:
        super().__init__(
            backbone=backbone,
            layers=layers,
            weights=weights,
            size=size,
            smoothing=smoothing,
            top_share=top_share,
            place_scale=place_scale,
            level_shift=level_shift,
        )
        self.variance = variance
        self.patch = patch
        self.register_buffer("mean", None)  # (P, C)
        self.register_buffer("inside", None)  # (P, C, K) axes of the subspace, as long as the deviation along them
        self.register_buffer("outside", None)  # (P, C, T) axes beside it, of length 1
        self.register_buffer("rest", None)  # (P, T) variances along these
        self.register_buffer("counts", None)  # (P,) patches
        # during the fit, to leave images out:
        self.register_buffer("around", None)  # (P, C) the point that the sums are around, so that little cancels
        self.register_buffer("sums", None)  # (P, C + 1, C + 1) see _sums_of
        self.register_buffer("fold_sums", None)  # (P, F, C + 1, C + 1)
        self.mean: Tensor | None
        self.inside: Tensor | None
        self.outside: Tensor | None
        self.rest: Tensor | None
        self.counts: Tensor | None
        self.around: Tensor | None
        self.sums: Tensor | None
        self.fold_sums: Tensor | None

    @classmethod
    def tunable(cls) -> Mapping[str, Sequence[Any]]:
        """Offer a smaller subspace, and the neighbourhood of PatchCore."""
        return {"variance": (0.95,), "patch": (3,)}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Forget an earlier subspace; the dimensions of the next one are known when all images were seen."""
        self.mean = self.inside = self.outside = self.rest = self.counts = None
        self.forget_images()

    def learned_forms(self, shapes: list[Shape], positions: int) -> dict[str, Form]:
        """Return the forms of mean and axes."""
        p, c = positions, _width(shapes)
        axes = {"mean": Form((p, c)), "inside": Form((p, c, None)), "outside": Form((p, c, None))}
        return {**axes, "rest": Form((p, None)), "counts": Form((p,))}

    def begin_fit(self, context: FitContext) -> None:
        """Check the settings, and set up the sums."""
        if not 0 < self.variance < 1:
            raise InputError(f"variance={self.variance!r}: expected a share above 0 and below 1, e.g. 0.99")
        if self.patch < 1 or self.patch % 2 == 0:
            raise InputError(f"patch={self.patch!r}: expected an odd number of cells, e.g. 3")
        wide = _width(context.shapes) + 1
        needed = context.positions * wide**2 * 8 * (4 + _FOLDS) / 1e9  # sums, covariance and axes in float64
        if needed > context.memory_gb:
            raise InputError(
                f"learning the subspace would take {needed:.2g} GB ({wide - 1} channels, {context.positions} "
                f"positions), more than memory_gb={context.memory_gb:g}: raise memory_gb, or read fewer layers"
            )
        self.forget_images()
        self._folds = torch.tensor(context.units, dtype=torch.long) % _FOLDS  # of each image
        self._seen = 0

    def begin_update(self, context: FitContext) -> None:
        """Go back from the axes to the sums; the outcome is that of a fit on all images, to rounding."""
        mean, inside, outside, rest, counts = self._learned()
        self.begin_fit(context)
        n, axes = counts.double()[:, None, None], outside.double()
        covariance = inside.double() @ inside.double().transpose(1, 2)
        covariance += (axes * rest.double()[:, None]) @ axes.transpose(1, 2)  # (P, C, C)
        sums = nn.functional.pad(covariance, (0, 1, 0, 1))
        sums[:, -1, -1] = 1
        self._start(mean, sums * n)

    def predicted_mb(self, context: FitContext) -> float:
        """Predict the megabytes of mean and axes."""
        wide = _width(context.shapes)
        return context.positions * wide * (wide + 2) * 4 / 1e6

    def _start(self, around: Tensor, sums: Tensor) -> None:
        """Begin with sums (P, C + 1, C + 1) around a point (P, C)."""
        folds = min(_FOLDS, int(self._folds.max()) + 1) if len(self._folds) else 0
        self.around, self.sums = around, sums
        self.fold_sums = sums.new_zeros(len(sums), folds, *sums.shape[1:])

    def observe(self, batch: Batch) -> None:
        """Add the patches of a batch to the sums."""
        features = self._patch_features(batch.levels)  # (B, P, C, h, w)
        keep = kept_cells(batch.keep, cells_of(features))
        if self.around is None:
            weight = torch.ones_like(features[:, :, :1]) if keep is None else keep[:, :, None].to(features)
            around = (features * weight).sum((0, 3, 4)) / weight.sum((0, 3, 4)).clamp(min=1)  # (P, C)
            wide = around.shape[1] + 1
            self._start(around, torch.zeros(len(around), wide, wide, dtype=torch.float64, device=around.device))
        around, sums, folds = self._gathered()
        own = _sums_of(features, around, keep).double()  # (B, P, C + 1, C + 1)
        sums += own.sum(0)
        if len(self._folds):
            numbers = self._folds[self._seen : self._seen + len(own)].to(own.device)
            folds.index_add_(1, numbers, own.transpose(0, 1))
        self._seen += len(own)

    def end_fit(self) -> dict[str, Any]:
        """Find the axes of the covariance, and divide them into those of the subspace and those beside it."""
        around, sums, _ = self._gathered()
        parts = [_subspace(one, point, self.variance) for one, point in zip(sums, around, strict=True)]
        for name, tensors in zip(("mean", "inside", "outside", "rest"), zip(*parts, strict=True), strict=True):
            setattr(self, name, self.stacked(name, [tensor[None] for tensor in tensors]))
        self.counts = torch.stack([one[-1, -1] for one in sums]).float()
        dims = [part[1].shape[1] for part in parts]
        return {"patches": round(float(self.counts.sum())), "channels": around.shape[1], "dimensions": dims}

    def stacked(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """Join subspaces of different dimensions, too: an axis of length 0 changes nothing."""
        if name not in ("inside", "outside", "rest"):
            return super().stacked(name, parts)
        most = max(part.shape[-1] for part in parts)
        return torch.cat([nn.functional.pad(part, (0, most - part.shape[-1])) for part in parts])

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by the distance from the subspace: the mean of its highest hundredth (B, P), and the map (B, P, h, w).

        The distance has the length of x - mu along the axes beside the subspace, which is that of the paper's residual.
        """
        mean, _, outside, _, _ = self._learned()
        with exact_float32():
            beside = self._beside(self._patch_features(batch.levels), mean, outside)  # (B, P, h w, T)
        return self._scored(batch, beside)

    def leaves_out(self, units: Sequence[int]) -> bool:
        """Say yes where there are two units or more."""
        return len(set(units)) > 1

    def score_left_out(self, batch: Batch, units: Tensor) -> tuple[Tensor, Tensor]:
        """Score by the distance from the subspace of all patches but those of the fold that the image's unit is in."""
        around, sums, folds = self._gathered()
        features = self._patch_features(batch.levels)  # (B, P, C, h, w)
        b, p, c = (int(features.shape[i]) for i in range(3))
        beside = features.new_zeros(b, p, features.shape[3] * features.shape[4], c)  # (B, P, h w, C)
        numbers = units.to(features.device) % _FOLDS
        for fold in numbers.unique().tolist():
            images = numbers == fold
            for i in range(p):
                mean, _, outside, _ = _subspace(sums[i] - folds[i, fold], around[i], self.variance)
                with exact_float32():
                    found = self._beside(features[images, i : i + 1], mean[None], outside[None])
                beside[images, i, :, : outside.shape[1]] = found[:, 0]
        return self._scored(batch, beside)

    def forget_images(self) -> None:
        """Drop the sums, which only leaving images out needs."""
        self.around = self.sums = self.fold_sums = None

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Split the squared distance among the levels, whose channels stand side by side in the residual."""
        mean, _, outside, _, _ = self._learned()
        features = self._patch_features(batch.levels)  # (B, P, C, h, w)
        with exact_float32():
            residual = self._beside(features, mean, outside) @ outside.transpose(1, 2)  # (B, P, h w, C)
        squared = residual.square().unflatten(2, cells_of(features))  # (B, P, h, w, C)
        parts = squared.split([level.shape[2] for level in batch.levels], dim=4)
        return {name: part.sum(4) for name, part in zip(self.level_names(), parts, strict=True)}

    def _patch_features(self, levels: Sequence[Tensor]) -> Tensor:
        """Put the levels side by side on the first one's grid: (B, P, C, h, w)."""
        p, grid = int(levels[0].shape[1]), cells_of(levels[0])
        parts = [to_grid(neighbourhood_mean(level.flatten(0, 1), self.patch), grid) for level in levels]
        unfolded: Tensor = torch.cat(parts, dim=1).unflatten(0, (-1, p))
        return unfolded

    @staticmethod
    def _beside(features: Tensor, mean: Tensor, outside: Tensor) -> Tensor:
        """Return how far (B, P, C, h, w) lie from the mean (P, C) along axes (P, C, T): (B, P, h w, T)."""
        return (features.flatten(3).transpose(2, 3) - mean[:, None]) @ outside

    def _scored(self, batch: Batch, beside: Tensor) -> tuple[Tensor, Tensor]:
        grid = cells_of(batch.levels[0])
        keep = kept_cells(batch.keep, grid)
        maps = self.smoothed(beside.square().sum(3).sqrt().unflatten(2, grid), keep)  # (B, P, h, w)
        p = int(maps.shape[1])
        flat = mean_of_highest(maps.flatten(0, 1), _TAIL, None if keep is None else keep.flatten(0, 1))  # (B P,)
        return flat.unflatten(0, (-1, p)), maps

    def _learned(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        mean, inside, outside, rest, counts = self.mean, self.inside, self.outside, self.rest, self.counts
        if mean is None or inside is None or outside is None or rest is None or counts is None:
            raise self.unfitted()
        return mean, inside, outside, rest, counts

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        around, sums, folds = self.around, self.sums, self.fold_sums
        if around is None or sums is None or folds is None:
            raise self.unfitted()
        return around, sums, folds


def _width(shapes: Sequence[Shape]) -> int:
    return sum(c for c, _, _ in shapes)


def _sums_of(features: Tensor, around: Tensor, keep: Tensor | None) -> Tensor:
    """Sum z z^T over the patches of each image, where z is x less a point, and a 1 below it.

    So the sums of the products, of the patches and of 1 stand in one matrix.

    Args:
        features: (B, P, C, h, w).
        around: (P, C) the point.
        keep: (B, P, h, w) bool, the cells that count; None: all.

    Returns:
        (B, P, C + 1, C + 1).
    """
    x = features.flatten(3) - around[..., None]  # (B, P, C, h w)
    z = nn.functional.pad(x, (0, 0, 0, 1), value=1.0)  # (B, P, C + 1, h w)
    if keep is not None:
        z = torch.where(keep.flatten(2)[:, :, None], z, 0.0)  # what does not count need not be finite
    with exact_float32():
        return z @ z.transpose(2, 3)


def _subspace(sums: Tensor, around: Tensor, variance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the principal axes of patches by their sums (C + 1, C + 1) around a point (C,).

    Returns:
        The mean (C,), the axes of the subspace that holds the share ``variance``, as long as the deviation along them,
        (C, K), the axes beside it (C, T), and the variances along those (T,). At least one axis stays beside it.
    """
    n = sums[-1, -1].clamp(min=1)
    shift = sums[:-1, -1] / n
    covariance = sums[:-1, :-1] / n - torch.outer(shift, shift)
    variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)  # falling
    held = variances.cumsum(0) / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    k = min(int((held < variance).sum()) + 1, len(variances) - 1)
    inside = axes[:, :k] * variances[:k].sqrt()
    mean = around.double() + shift
    return mean.float(), inside.float(), axes[:, k:].float(), variances[k:].float()
