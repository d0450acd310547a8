"""A backbone is adapted by a task: painted cells are to lie farther from good cells than good ones do.

The formulas and their sources are in :mod:`pickglass.features.research.adaptation`.

Letters: N images, H x W pixels of the network's input, D channels of all levels, h x w cells of the finest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.features.extractor import FeatureExtractor
from pickglass.features.research.adaptation_painting import (
    TRAINED_ON,
    Good,
    PaintedImages,
    paint_image,
    stack_images,
)
from pickglass.metrics import auroc
from pickglass.nn.maps import kept_cells, neighbourhood_mean, to_grid
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.search.neighbours import BankIndex
from pickglass.nn.training.loop import Draws

__all__ = ["AdaptationTask", "log_distances", "painted_and_good_cells"]

BATCH = 8  # images
_CELLS = 1024  # of a batch, good and painted ones each: more of them cost memory and say little
_BANK_IMAGES, _BANK = 16, 2048  # good images, and cells of them, that distances are measured to when judging
_EPS = 1e-6


class _CellFeatures(nn.Module):
    """An extractor gives one vector per cell of the finest level: (N, 3, H, W) -> (N, D, h, w)."""

    def __init__(self, extractor: FeatureExtractor, scales: Sequence[float]) -> None:
        super().__init__()
        self.extractor = extractor
        self.scales = scales

    def forward(self, images: Tensor) -> Tensor:
        levels = self.extractor(images.contiguous(memory_format=torch.channels_last))
        grid = max(((level.shape[2], level.shape[3]) for level in levels), key=lambda grid: grid[0] * grid[1])
        parts = [
            to_grid(neighbourhood_mean(level, 3) * scale, grid)
            for level, scale in zip(levels, self.scales, strict=True)
        ]
        return torch.cat(parts, dim=1)


class AdaptationTask:
    """A task has the loss that is trained, and the measure by which the best epoch is chosen.

    Args:
        extractor: the network as it is, on its device.
        names: parameters that are trained.
        pull: weight of the penalty for moving away from the network as it is.
        fit: good images to train on.
        seed: draws the painted defects and the bank's cells.

    Attributes:
        stack: the network that is trained, P = 1.
        frozen: the network as it was.
    """

    def __init__(self, extractor: FeatureExtractor, names: Sequence[str], pull: float, fit: Good, seed: int) -> None:
        self.pull = pull
        self.fit = fit
        self.seed = seed
        self.draws = Draws(seed)  # of the cells that a loss compares
        self.visits = [0] * len(fit.images)
        self.bank = Good(fit.images[:_BANK_IMAGES], None if fit.keep is None else fit.keep[:_BANK_IMAGES])
        with torch.no_grad():
            levels = extractor(self.bank.images.to(extractor.mean.device))
            scales = [1 / max(float(level.var((0, 2, 3)).sum()) ** 0.5, _EPS) for level in levels]
        self.frozen = _CellFeatures(extractor, scales)

        trained = copy.deepcopy(extractor).eval()  # a copied graph is back in training mode
        for name, parameter in trained.body.named_parameters():
            parameter.requires_grad_(name in names)
        self.stack = Stacked(lambda: _CellFeatures(trained, scales), positions=1, seed=seed)

    def painted(self, indices: Sequence[int]) -> PaintedImages:
        """Paint training images, each time with another defect."""
        painted = []
        for i in indices:
            rng = np.random.default_rng((self.seed, 0, i, self.visits[i]))
            self.visits[i] += 1
            kind = TRAINED_ON[int(rng.integers(len(TRAINED_ON)))]
            painted.append(paint_image(self.fit, i, kind, rng))
        return stack_images(painted)

    def loss(self, batch: PaintedImages) -> Tensor:
        """Compute the mean over pairs of softplus(log d_g - log d_p), plus the pull: (1,)."""
        now = self.stack(batch.images[:, None])[:, 0]  # (N, D, h, w)
        with torch.no_grad():
            before = self.frozen(batch.images)
        bad, good = painted_and_good_cells(batch, (now.shape[2], now.shape[3]))
        moved = (now - before).square().sum(1)[good].mean() / len(self.frozen.scales)

        vectors = now.permute(0, 2, 3, 1)  # (N, h, w, D)
        log_p, log_g = (
            log_distances(vectors, _drawn(cells, self.draws), _drawn(good, self.draws)) for cells in (bad, good)
        )  # (n,), (m,), the good cells drawn anew
        ranked = F.softplus(log_g[:, None] - log_p).mean() if len(log_p) else moved * 0
        total: Tensor = ranked + self.pull * moved
        return total.reshape(1)

    def misses(self, batch: PaintedImages) -> Tensor:
        """Compute 1 - the mean over the defects of the cell AUROC: (1,)."""
        index = self._bank_index(batch.images.device)
        of_defects, of_good = [], []  # distances
        for lo in range(0, len(batch.images), BATCH):
            part = PaintedImages(*(None if t is None else t[lo : lo + BATCH] for t in batch))  # type: ignore[arg-type]
            vectors = _vectors(self.stack, part.images)
            distances = index.distances(vectors.flatten(0, 2)).view(vectors.shape[:3])  # (N, h, w)
            bad, good = painted_and_good_cells(part, (vectors.shape[1], vectors.shape[2]))
            of_defects += [d[b].cpu().numpy() for d, b in zip(distances, bad, strict=True) if bool(b.any())]
            of_good.append(distances[good].cpu().numpy())
        good_cells = np.concatenate(of_good)
        each = [
            auroc(np.repeat([1, 0], [len(cells), len(good_cells)]), np.concatenate([cells, good_cells]))
            for cells in of_defects
        ]
        return torch.tensor([1 - float(np.mean(each))], dtype=torch.float64)

    def _bank_index(self, device: torch.device) -> BankIndex:
        """Index good cells of the training images, as the network that is trained sees them now."""
        vectors = _vectors(self.stack, self.bank.images.to(device))  # (N, h, w, D)
        keep = kept_cells(self.bank.keep, (vectors.shape[1], vectors.shape[2]))
        cells = vectors.flatten(0, 2) if keep is None else vectors[keep.to(device)]
        drawn = torch.randperm(len(cells), generator=torch.Generator().manual_seed(self.seed))[:_BANK]
        return BankIndex(cells[drawn.to(device)])


def _vectors(stack: Stacked, images: Tensor) -> Tensor:
    """Describe the cells of images (N, 3, H, W) by vectors (N, h, w, D), a few images at once."""
    parts = [stack(images[lo : lo + BATCH, None])[:, 0] for lo in range(0, len(images), BATCH)]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def painted_and_good_cells(batch: PaintedImages, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mark painted and good cells, both (N, h, w) bool; those beside a painted one are neither."""
    bad = F.adaptive_max_pool2d(batch.painted[:, None].float(), grid)  # (N, 1, h, w)
    good = F.max_pool2d(bad, 3, stride=1, padding=1)[:, 0] == 0
    keep = kept_cells(batch.keep, grid)
    return (bad[:, 0] > 0, good) if keep is None else ((bad[:, 0] > 0) & keep, good & keep)


def _drawn(cells: Tensor, draws: Draws) -> Tensor:
    """Draw at most 1,024 cells: (n, 3) image, row and column."""
    places = cells.nonzero()
    return places[torch.randperm(len(places), generator=draws.on("cpu"))[:_CELLS].to(places.device)]


def log_distances(vectors: Tensor, queries: Tensor, bank: Tensor) -> Tensor:
    """Take the log of the distance (n,) of cells (n, 3) to the nearest of the cells (m, 3) of other images."""
    x, y = (vectors[at[:, 0], at[:, 1], at[:, 2]] for at in (queries, bank))  # (n, D), (m, D)
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T  # (n, m)
    nearest = squared.masked_fill(queries[:, :1] == bank[:, 0], torch.inf).amin(1) if len(x) and len(y) else x.sum(1)
    nearest = nearest[torch.isfinite(nearest)]
    return nearest.clamp(min=_EPS).log() / 2
