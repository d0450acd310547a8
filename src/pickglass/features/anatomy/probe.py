"""Labelled images show what each layer of a backbone tells.

A layer is said to be abstract or generic, fit for fine distinctions or not. Three numbers say how far that holds here:

- **types**: how well a linear classifier tells defect types apart by the features of the defect, averaged over its
  mask: balanced accuracy, chance 1 / K.
- **defect**: how well it tells defects from good surface, averaged over the same masks laid on good images, so that
  neither size nor place gives the answer away: AUROC, chance 0.5.
- **dimension**: the intrinsic dimension of single cells of good images (Facco, d'Errico, Rodriguez, Laio, "Estimating
  the intrinsic dimension of datasets by a minimal neighborhood information", Scientific Reports 2017): how many
  directions good surface really takes up of the layer's channels. Cells of one image, or of one part under several
  exposures, are not independent, least of all in coarse layers, and lower it.

The classifier is ridge regression on standardised features; every image is judged by the one fitted without its group.

Letters: B images, N of all batches, C channels, h x w cells, H x W pixels of the network's input, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pickglass.features.extractor import FeatureExtractor
from pickglass.metrics import auroc
from pickglass.metrics.intervals import bootstrap, resampled
from pickglass.nn.pooling import cell_weights, region_sum

__all__ = ["Labelled", "Probed", "balanced_accuracy", "held_out_scores", "intrinsic_dimension", "probe_layers"]

_Float = npt.NDArray[np.float64]
_Int = npt.NDArray[np.int64]

_CELLS = 2000  # that the dimension is taken from
_FOLDS = 5
_RIDGE = 0.1  # a channel: a share of the mean squared norm of an image's standardised features
_DRAWS = 500  # of the bootstrap


class Labelled(NamedTuple):
    """A batch of labelled images, with the region of each that counts.

    Attributes:
        images: (B, 3, H, W) RGB in [0, 1].
        shares: (B, H, W), where the defect is, and on good images where one of another image would be; 0..1.
        types: the defect type of each image, None for good.
        groups: the part that each image shows.
    """

    images: Tensor
    shares: Tensor
    types: Sequence[str | None]
    groups: Sequence[str]


class Probed(NamedTuple):
    """A layer was probed with these numbers; nan where fewer than two types, no good image, or no two groups of each.

    ``types`` and ``defect`` are (value, low, high), the ends of the 95 % bootstrap interval over groups.
    """

    types: tuple[float, float, float]
    defect: tuple[float, float, float]
    dimension: float


@torch.no_grad()
def probe_layers(extractor: FeatureExtractor, batches: Iterable[Labelled], n_good: int, seed: int = 0) -> list[Probed]:
    """Measure each layer of an extractor.

    Args:
        extractor: the network with its layers.
        batches: all images.
        n_good: how many of them are good, so that cells can be drawn from all of them.
        seed: decides folds, cells and bootstrap.

    Returns:
        The numbers of each layer, in the order of the extractor's.
    """
    generator = torch.Generator().manual_seed(seed)
    pooled: list[list[Tensor]] = [[] for _ in extractor.layers]
    cells: list[list[Tensor]] = [[] for _ in extractor.layers]
    types: list[str | None] = []
    groups: list[str] = []
    each = -(-_CELLS // max(1, n_good))
    for batch in batches:
        good = torch.tensor([kind is None for kind in batch.types])
        for level, means, drawn in zip(extractor(batch.images), pooled, cells, strict=True):
            means.append(region_sum(level[:, None], cell_weights(batch.shares[:, None], _grid(level))))
            flat = level[good].flatten(2).transpose(1, 2)  # (B, h w, C)
            chosen = torch.randint(flat.shape[1], (len(flat), min(each, flat.shape[1])), generator=generator)
            drawn.append(torch.gather(flat, 1, chosen[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1))
        types += batch.types
        groups += batch.groups
    return [
        _probed(torch.cat(means).double().numpy(), torch.cat(drawn), types, groups, seed)
        for means, drawn in zip(pooled, cells, strict=True)
    ]


def _grid(level: Tensor) -> tuple[int, int]:
    return level.shape[2], level.shape[3]


def _probed(features: _Float, cells: Tensor, types: Sequence[str | None], groups: Sequence[str], seed: int) -> Probed:
    bad = np.array([kind is not None for kind in types])
    names = sorted({kind for kind in types if kind is not None})
    defects = np.flatnonzero(bad)
    y = np.array([names.index(kind) for kind in types if kind is not None], np.int64)
    groups_of_defects = [groups[i] for i in defects.tolist()]
    told_apart = undefined = (float("nan"),) * 3
    scores = held_out_scores(features[defects], y, groups_of_defects, seed) if len(names) > 1 else None
    if scores is not None:
        right = scores.argmax(axis=1) == y
        told_apart = _interval(lambda weight: balanced_accuracy(right, y, weight), groups_of_defects, seed)
    labels = bad.astype(np.int64)
    both = held_out_scores(features, labels, groups, seed) if 0 < labels.sum() < len(labels) else None
    defect = undefined if both is None else _interval(resampled(auroc, labels, both[:, 1] - both[:, 0]), groups, seed)
    return Probed(told_apart, defect, intrinsic_dimension(cells))


def _interval(metric: Any, groups: Sequence[str], seed: int) -> tuple[float, float, float]:
    result = bootstrap(metric, groups, repeats=_DRAWS, seed=seed)
    return float(result.value[0]), float(result.low[0]), float(result.high[0])


def balanced_accuracy(right: npt.NDArray[np.bool_], y: _Int, weight: _Int | None = None) -> float:
    """Average the share that is right over the classes that occur; image i counts ``weight[i]`` times."""
    counts = np.ones(len(y)) if weight is None else weight.astype(np.float64)
    total = np.bincount(y, counts)
    good = np.bincount(y, counts * right, minlength=len(total))
    return float((good[total > 0] / total[total > 0]).mean())


def held_out_scores(features: _Float, y: _Int, groups: Sequence[str], seed: int = 0) -> _Float | None:
    """Score each image for each class by a ridge classifier that was fitted without the image's group.

    Features are standardised on what is fitted; classes weigh the same.

    Args:
        features: (N, C).
        y: (N,) classes, 0 to K - 1.
        groups: the part that each image shows.
        seed: decides the folds, at most five.

    Returns:
        Scores (N, K), the higher the likelier; None where a class has fewer than two groups, so that nothing would be
        left to learn it from.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = int(y.max()) + 1
    parts = [len({group for group, kind in zip(groups, y.tolist(), strict=True) if kind == k}) for k in range(kinds)]
    folds = min(_FOLDS, *parts)
    if folds < 2:
        return None
    scores = np.full((len(y), kinds), -1.0)  # of a class that the other folds lack
    for train, test in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, y, groups):
        if len(set(y[train].tolist())) < 2:
            continue
        classifier = RidgeClassifier(_RIDGE * features.shape[1], class_weight="balanced")
        pipeline = make_pipeline(StandardScaler(), classifier).fit(features[train], y[train])
        decision = pipeline.decision_function(features[test])  # (n,) for two classes, else (n, K)
        columns = np.stack([-decision, decision], axis=1) if decision.ndim == 1 else decision
        scores[np.ix_(test, classifier.classes_)] = columns
    return scores


def intrinsic_dimension(points: Tensor) -> float:
    """Estimate the intrinsic dimension of points (N, C) by their two nearest neighbours (Facco et al. 2017).

    It is the slope of -log(1 - F) over the log of the ratio of both distances, through the origin; the tenth with the
    largest ratios is left out. Points that occur twice count once. nan for fewer than ten.
    """
    points = torch.unique(points.double(), dim=0)
    if len(points) < 10:
        return float("nan")
    nearest = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").topk(3, largest=False).values
    ratio = (nearest[:, 2] / nearest[:, 1]).log().sort().values  # (N,)
    n = len(ratio)
    used = int(0.9 * n)
    x, y = ratio[:used], -(1 - torch.arange(1, used + 1) / n).log()
    return float((x * y).sum() / (x * x).sum())
