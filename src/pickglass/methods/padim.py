"""PaDiM: every cell of the image has its own Gaussian of good features; a cell is as anomalous as it is far from it.

Defard, Setkov, Loesch, Audigier: "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization", ICPR 2020 workshops (arXiv 2011.08785). Equation numbers are the paper's. Levels 1-3 are brought to the
finest grid and a random subset of their channels is taken; each cell gets mu and Sigma = C + eps I, C with N - 1
(eq. 1); the distance M(x) = sqrt((x - mu)^T Sigma^-1 (x - mu)) (eq. 2), smoothed, is the map, its maximum the score.
``reduce="orthogonal"`` projects instead: Kim, Kim, Yi, Lee: "Semi-orthogonal Embedding for Efficient Unsupervised
Anomaly Segmentation", 2021 (arXiv 2105.14737).

Where we depart, and why
- Images pass once. Sums stand for C, so memory does not grow with N; the paper's code holds all features.
- Deeper levels are enlarged to nearest, as in the paper's code. That lets cells under one coarse cell share the rows
  of L^-1 that belong to it (``pickglass.nn.gaussian.cells``): the same distances from about a fifth of the memory.
- Fewer images than channels: a low-rank form with the same distances, where it is the smaller one.
- The map is smoothed on its own grid, before it is enlarged; see PatchCore.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's maximum is
  ``top_share=0``.
- Each level gives its share of the subset, rounded; the paper draws from all levels at once, so that its shares
  vary around these. Models of one setting then have one size, whatever the seed. Position p draws with seed + p.
- A projection that mixes levels has a whole matrix per cell.

Letters: B images, P positions, C channels of all levels, D of them kept, h x w cells of the first level, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext, Form
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.gaussian.cells import CellGaussians
from pickglass.nn.gaussian.learners import FewSamples, RunningSums
from pickglass.nn.maps import cells_of, exact_float32, highest, kept_cells
from pickglass.runtime.compute import Shape

__all__ = ["PaDiM"]

Reduce = Literal["subset", "orthogonal"]


class PaDiM(Detector):
    """PaDiM (Defard et al. 2020).

    Args:
        backbone, layers, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
            The first layer sets the grid.
            Smoothing is 4 pixels as in the paper.
        dims: channels kept (paper: 100 of ResNet-18's 448, 550 of WideResNet-50's 1792); as many as there are or
            more: all of them, untouched.
        reduce: how channels become ``dims``: ``"subset"`` draws some, ``"orthogonal"`` projects all on a random
            semi-orthogonal basis. Both are drawn from the fit's seed and kept in the model.
        eps: variance added to every channel, in squared units of the features, above 0 (paper: 0.01).
        max_statistics_mb: a fit that would need a larger model, backbone not counted, is refused before it starts.

    Cells outside the region of interest enter no statistics. A cell that fewer than two good images cover has
    covariance eps I: anything there is far from good.

    Example:
        >>> import numpy as np
        >>> from pickglass.methods.padim import PaDiM
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = PaDiM(size=64, dims=20).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (16, 16)
    """

    method = "padim"
    strides = (4, 8, 16)
    fewest_images = 2  # a covariance
    leaves_out_known = True
    presets: ClassVar = {
        "paper": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer1", "layer2", "layer3"),
            "size": 224,
            "dims": 550,
            "top_share": 0.0,
        },
        "quick": {"dims": 50},
    }

    def __init__(
        self,
        *,
        backbone: str | nn.Module = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:256",
        smoothing: float | None = 4.0,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        dims: int = 100,
        reduce: Reduce = "subset",
        eps: float = 0.01,
        max_statistics_mb: float = 2000.0,
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
        self.dims = dims
        self.reduce = reduce
        self.eps = eps
        self.max_statistics_mb = max_statistics_mb
        self.register_buffer("channels", None)  # (P, D) indices into all C, rising
        self.register_buffer("projection", None)  # (P, C, D)
        self.register_buffer("counts", None)  # (P, h, w) images in which each cell counts
        self.channels: Tensor | None
        self.projection: Tensor | None
        self.counts: Tensor | None
        self.gaussians: CellGaussians | None = None
        self._learner: RunningSums | FewSamples | None = None

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Draw the channels or the projection, and lay out the Gaussians."""
        self._check()
        sizes = [c for c, _, _ in shapes]
        seeds = range(seed, seed + positions)
        self.channels = self.projection = self.counts = None
        if self._projects(shapes, self.dims):
            self.projection = torch.stack([_semi_orthogonal(sum(sizes), self.dims, s) for s in seeds])
        else:
            self.channels = torch.stack([_subset(sizes, _shares(sizes, self.dims), s) for s in seeds])
        self.gaussians = self._laid_out(shapes, positions, self.dims)

    def learned_forms(self, shapes: list[Shape], positions: int) -> dict[str, Form]:
        """Return the forms of the counts, and of the Gaussians in both ways in which they are learned."""
        sizes = self._gaussians().sizes()
        rows = {f"gaussians.stages.{i}.rows": Form((positions, u, d, c + d)) for i, (u, d, c) in enumerate(sizes)}
        factor = {"gaussians.factor": Form((positions, sizes[-1][0], None, sum(d for _, d, _ in sizes)))}
        return {"counts": Form((positions, *shapes[0][1:])), **rows, **factor}

    def check_learned(self, shapes: list[Shape]) -> None:
        """Check that the channels are some of the levels."""
        every = sum(c for c, _, _ in shapes)
        if self.channels is not None and not (0 <= int(self.channels.min()) <= int(self.channels.max()) < every):
            raise InputError(f"its channels are not all between 0 and {every - 1}")

    def _projects(self, shapes: list[Shape], dims: int) -> bool:
        return self.reduce == "orthogonal" and dims < sum(c for c, _, _ in shapes)

    def _laid_out(self, shapes: list[Shape], positions: int, dims: int) -> CellGaussians:
        """Lay out empty Gaussians for so many channels."""
        grids = [(h, w) for _, h, w in shapes]
        if self._projects(shapes, dims):
            return CellGaussians(grids[:1], grids[0], [dims], positions, self.eps)
        return CellGaussians(grids, grids[0], _shares([c for c, _, _ in shapes], dims), positions, self.eps)

    def _check(self) -> None:
        if self.dims < 1:
            raise InputError(f"dims={self.dims!r}: expected at least 1 channel, e.g. 100")
        if self.reduce not in get_args(Reduce):
            raise InputError(f"reduce={self.reduce!r}: expected one of {', '.join(get_args(Reduce))}")
        if not self.eps > 0:
            raise InputError(f"eps={self.eps!r}: expected a variance above 0, e.g. 0.01")
        if not self.max_statistics_mb > 0:
            raise InputError(f"max_statistics_mb={self.max_statistics_mb!r}: expected megabytes above 0, e.g. 2000")

    def begin_fit(self, context: FitContext) -> None:
        """Choose the smaller form, predict what it takes, and set up the sums."""
        gaussians, images = self._gaussians(), context.n_images
        self._check_memory(context, images)
        few = _few(gaussians, images)
        self._learner = FewSamples(gaussians) if few else RunningSums(gaussians, gaussians.cell.device)
        self._images = 0
        self.counts = torch.zeros(gaussians.positions, *gaussians.grid, device=gaussians.cell.device)

    def begin_update(self, context: FitContext) -> None:
        """Go back from the whitening of each cell to its sums; the outcome is that of a fit on all images.

        It is in the form of many images, whatever that of the fit was.

        Raises:
            InputError: images had regions of their own, so the cells counted in different ones, or the model does not
                tell in how many.
        """
        counts = self.counts
        if counts is None:
            raise InputError(
                "this PaDiM model, of an older pickglass, does not tell how many images each cell counted in, so it "
                "cannot be updated: fit it anew on the old and the new images"
            )
        most = counts.amax((1, 2), keepdim=True)  # (P, 1, 1); heads that tiles share may have seen different numbers
        if bool(((counts != 0) & (counts != most)).any()):
            raise InputError(
                "this PaDiM model was fitted on images with regions of interest of their own, so what each cell has "
                "learned is of other images than its neighbour's, and it cannot be updated: fit it anew on the old and "
                "the new images"
            )
        self._check_memory(context, None)
        self._learner = RunningSums.going_on(self._gaussians(), counts)
        self._gaussians().factor = None
        self._images = 0

    def _check_memory(self, context: FitContext, images: int | None) -> None:
        """Raise where the statistics of so many images, or in the form of many (None), would take too much."""
        gaussians, limit = self._gaussians(), self.max_statistics_mb
        size = context.groups * _megabytes(gaussians, images)  # the model holds those of all groups
        if size > limit:
            raise InputError(
                f"the statistics would take {size:,.0f} MB ({sum(gaussians.channels)} channels in each of "
                f"{gaussians.grid[0]}x{gaussians.grid[1]} cells), more than max_statistics_mb={limit:g}: "
                f"{self._remedy(context, lambda g: context.groups * _megabytes(g, images) <= limit)}, "
                "or raise max_statistics_mb"
            )
        working = _working_gb(gaussians, images)
        if working > context.memory_gb:
            remedy = self._remedy(context, lambda g: _working_gb(g, images) <= context.memory_gb)
            raise InputError(
                f"learning the statistics would take {working:.2g} GB, more than memory_gb={context.memory_gb:g}: "
                f"{remedy}, or raise memory_gb"
            )

    def predicted_mb(self, context: FitContext) -> float:
        """Predict the megabytes of the statistics."""
        return _megabytes(self._laid_out(context.shapes, context.positions, self.dims), context.n_images)

    def _remedy(self, context: FitContext, fits: Callable[[CellGaussians], bool]) -> str:
        """Name the largest ``dims`` that fits; more channels always take more."""
        low, high = 0, sum(self._gaussians().channels)
        while high - low > 1:
            middle = (low + high) // 2
            if fits(self._laid_out(context.shapes, context.positions, middle)):
                low = middle
            else:
                high = middle
        return f"lower dims to {low}" if low else "lower size, or choose a coarser first layer"

    def observe(self, batch: Batch) -> None:
        """Add a batch to the sums of the cells that it covers."""
        if self._learner is None or self.counts is None:
            raise self.unfitted()
        keep = kept_cells(batch.keep, self._gaussians().grid)  # (B, P, h, w)
        self._learner.add(self._reduced(batch.levels), keep)
        self._images += len(batch.levels[0])
        self.counts += len(batch.levels[0]) if keep is None else keep.sum(0)

    def end_fit(self) -> dict[str, Any]:
        """Turn the sums into the whitening of each cell (eq. 1)."""
        if self._learner is None:
            raise self.unfitted()
        self._learner.finish()
        gaussians, self._learner = self._gaussians(), None
        numbers = sum(t.numel() for t in gaussians.state_dict().values())
        return {
            "images": self._images,
            "channels": sum(gaussians.channels),
            "cells": gaussians.grid[0] * gaussians.grid[1],
            "form": "factor" if gaussians.factor is None else "low rank",
            "statistics_mb": numbers * 4 / 1e6,
        }

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by the maximum of the smoothed map: scores (B, P), that map (B, P, h, w)."""
        return self._scored(batch, self._distance(batch))

    def _distance(self, batch: Batch) -> Tensor:
        gaussians = self._gaussians()
        if not gaussians.learned:
            raise self.unfitted()
        with exact_float32():
            return gaussians.distance(self._reduced(batch.levels))  # (B, P, h, w)

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Split the squared Mahalanobis distance among the levels, see :meth:`CellGaussians.by_level`.

        None where a projection mixes their channels.
        """
        if self.projection is not None:
            return {}
        with exact_float32():
            parts = self._gaussians().by_level(self._reduced(batch.levels))  # each (B, P, h, w)
        return dict(zip(self.level_names(), parts, strict=True))

    def _scored(self, batch: Batch, distance: Tensor) -> tuple[Tensor, Tensor]:
        keep = kept_cells(batch.keep, self._gaussians().grid)
        maps = self.smoothed(distance, keep)
        return highest(maps, keep), maps

    def leaves_out(self, units: Sequence[int]) -> bool:
        """Say yes where each image shows a part of its own, and they outnumber the channels by two or more.

        With fewer images eps alone keeps the covariances from being singular: the distance without an image is then a
        small difference of large numbers.
        """
        return len(units) == len(set(units)) and len(units) > self.dims + 1

    def score_left_out(self, batch: Batch, units: Tensor) -> tuple[Tensor, Tensor]:
        """Score by the distance from the Gaussians without the image itself.

        Of n images, leaving x out moves the mean by (x - mu) / (n - 1) and takes n / (n - 1) (x - mu) (x - mu)^T from
        the scatter. By the formula of Sherman and Morrison the distance then follows from M(x) alone. The only
        departure from a fit without x: eps counts (n - 1) / (n - 2) times.
        """
        if self.counts is None:
            raise self.unfitted()
        n = self.counts.double().clamp(min=3)  # (P, h, w); with fewer, x is all there is
        share = n / (n - 1)
        squared = self._distance(batch).double().square() / (n - 1)  # (B, P, h, w), (x - mu)^T scatter^-1 (x - mu)
        left = share.square() * (n - 2) * squared / (1 - share * squared).clamp(min=1e-6)
        return self._scored(batch, left.sqrt().float())

    def _reduced(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Pick the channels that are modelled, before anything is enlarged: per level (B, P, d, h_l, w_l)."""
        if self.projection is not None:
            return [_projected(levels, self.projection)]
        if self.channels is None:
            raise self.unfitted()
        reduced, taken, offset = [], 0, 0
        positions = torch.arange(len(self.channels), device=self.channels.device)[:, None]
        for level, d in zip(levels, self._gaussians().channels, strict=True):
            c = level.shape[2]
            drawn = self.channels[:, taken : taken + d] - offset  # (P, d)
            flat = level.flatten(1, 2).index_select(1, (drawn + positions * c).flatten())  # (B, P d, h_l, w_l)
            reduced.append(flat.unflatten(1, (len(drawn), d)))
            taken, offset = taken + d, offset + c
        return reduced

    def _gaussians(self) -> CellGaussians:
        if self.gaussians is None:
            raise self.unfitted()
        return self.gaussians


def _shares(sizes: Sequence[int], dims: int) -> list[int]:
    """Return how many channels of each level a subset of ``dims`` takes.

    The shares are in proportion to the levels' channels (Sainte-Lague), and never smaller for larger ``dims``.
    """
    shares = [0] * len(sizes)
    for _ in range(min(dims, sum(sizes))):
        shares[max(range(len(sizes)), key=lambda i: sizes[i] / (2 * shares[i] + 1))] += 1
    return shares


def _subset(sizes: Sequence[int], shares: Sequence[int], seed: int) -> Tensor:
    """Draw channels of each level; return their indices into all channels, rising: (D,)."""
    generator = torch.Generator().manual_seed(seed)
    offsets = accumulate(sizes, initial=0)
    drawn = [
        o + torch.randperm(size, generator=generator)[:d] for o, size, d in zip(offsets, sizes, shares, strict=False)
    ]
    return torch.cat(drawn).sort().values


def _semi_orthogonal(total: int, dims: int, seed: int) -> Tensor:
    """Draw uniformly among matrices (total, dims) with orthonormal columns: QR of a Gaussian one, its signs undone."""
    drawn = torch.randn(total, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    signed: Tensor = q * r.diagonal().sign()
    return signed.float()


def _projected(levels: Sequence[Tensor], projection: Tensor) -> Tensor:
    """Project levels (B, P, c, h_l, w_l) by (P, C, D), then enlarge them to nearest: (B, P, D, h, w).

    Enlarging first would give the same from larger products.
    """
    b, p, (h, w) = levels[0].shape[0], int(levels[0].shape[1]), cells_of(levels[0])
    total: Tensor | None = None
    parts = projection.split([level.shape[2] for level in levels], dim=1)
    for level, part in zip(levels, parts, strict=True):
        low = part.transpose(1, 2) @ level.flatten(3)  # (P, D, c) (B, P, c, h_l w_l) -> (B, P, D, h_l w_l)
        grid = low.view(b * p, -1, *cells_of(level))  # (B P, D, h_l, w_l)
        if cells_of(grid) != (h, w):
            grid = torch.nn.functional.interpolate(grid, size=(h, w), mode="nearest")
        total = grid if total is None else total + grid
    if total is None:
        raise InputError("there is no level to project: expected at least one layer")
    return total.view(b, p, -1, h, w)


def _few(gaussians: CellGaussians, images: int | None) -> bool:
    """Whether the low-rank form is the smaller one, and its eigenvalues the quicker ones; None: many images."""
    return (
        images is not None and 2 * images <= sum(gaussians.channels) and gaussians.floats(images) < gaussians.floats()
    )


def _megabytes(gaussians: CellGaussians, images: int | None) -> float:
    return gaussians.floats(images if _few(gaussians, images) else None) * 4 / 1e6


def _working_gb(gaussians: CellGaussians, images: int | None) -> float:
    few = images is not None and _few(gaussians, images)
    return (FewSamples.bytes(gaussians, images or 0) if few else RunningSums.bytes(gaussians)) / 1e9
