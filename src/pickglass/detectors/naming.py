"""A small classifier names the defect by the features of the detected region, from a few labelled examples.

The features are the detector's own levels, so that naming costs no second pass through the backbone. Each level is
pooled over the region, by averages or in pairs of channels (:mod:`pickglass.nn.pooling`), and a multinomial logistic
regression tells the types apart. scikit-learn fits it; what is stored are plain tensors, and naming needs torch only.

"unknown" is the answer by either of two rules, both drawn from the examples:

- The probability is below a threshold: the least from which, in cross-validation by group, at least the wished share
  of names was right.
- The region is further from every example than examples are from those of other groups. The limit is the 0.95 quantile
  of these distances, or the largest of them where there are fewer than 39, so that about one part in twenty (or in
  n + 1) of a known type is unknown by this rule: as in conformal prediction, but only about, for the distances depend
  on each other.

An example is learned from twice, on its mask and on the region that the detector finds: on magnetic tiles with 15
examples a type, 0.69 of the types were then right, and 0.61 when learning from the masks alone (``bench/label.py``).
Held-out examples are judged on the region that the detector finds, as at prediction. The threshold is chosen on them,
so that its share is an estimate, no promise: there, with 0.8 asked for, 0.71, 0.73 and 0.86 of the names were right
with 5, 10 and 15 examples.

Letters: B images, T tiles, C channels, h x w cells of a level, H x W pixels of the canvas, n examples, K types,
D dimensions of the pooled features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pickglass.detectors.naming_fit import cross_validated, probability_threshold, regression
from pickglass.detectors.tiling import Tiles
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.pooling import (
    Pooling,
    cell_shares,
    peak_region,
    random_signs,
    region_pairs,
    region_sum,
    signed_root,
)
from pickglass.result import UNKNOWN, Named

__all__ = [
    "Namer",
    "OnTiles",
    "Settings",
    "fit_namer",
    "found_regions",
    "on_tiles",
    "pooled",
    "projections",
]

_Float = npt.NDArray[np.float64]

_PAIRS = 2048  # dimensions of a level's pairs; those of more channels are projected
_FAR = 0.05
MIN_EXAMPLES = 5


@dataclass(frozen=True)
class Settings:
    """The settings of a namer.

    Attributes:
        types: their names, K of them.
        layers: the layers read ...
        levels: ... and their places among the detector's.
        pooling: ``"average"`` or ``"bilinear"``.
        threshold: least probability of a name.
        distance: largest distance to the nearest example.
        strength: C of the regression.
        about: what is worth knowing: number of examples and groups, the cross-validation.
    """

    types: tuple[str, ...]
    layers: tuple[str, ...]
    levels: tuple[int, ...]
    pooling: Pooling
    threshold: float
    distance: float
    strength: float
    about: dict[str, Any]


# -- features of a region ----------------------------------------------------------------------------------------------


def found_regions(maps: npt.NDArray[np.float32], threshold: float | None, canvas: tuple[int, int]) -> Tensor:
    """Return where a detector sees the defect: maps (B, h, w) -> regions (B, H, W) of the canvas, uint8, 0 or 1."""
    regions = np.stack([peak_region(map_, threshold) for map_ in maps]).astype(np.uint8)
    return F.interpolate(torch.from_numpy(regions)[:, None], size=canvas, mode="nearest-exact")[:, 0]


OnTiles = tuple[Sequence[Tensor], Tensor]
"""Levels (B, T, C, h, w) of the tiles of images, and the shares of a region on them, (B, T, H', W')."""


def on_tiles(batch: Batch, tiles: Tiles | None, images: Sequence[int], shares: Tensor) -> OnTiles:
    """Return the levels of some images of a batch tile by tile, and the shares of their regions on the tiles.

    Args:
        batch: B images.
        tiles: those of the canvas; None: it is the one tile.
        images: which b of the images are wanted.
        shares: (b, H, W) of the canvas.
    """
    wanted = list(images)
    own = [(level if tiles is None else tiles.unfold(level))[wanted] for level in batch.levels]
    if tiles is None:
        return own, shares[:, None]
    cut = tiles.cut(shares[:, None])[:, :, 0]  # (b, T, H', W')
    cut[:, tiles.tiling.n :] = 0  # the thumbnail sees at another scale
    return own, cut


def pooled(parts: Iterable[OnTiles], pooling: Pooling, signs: Sequence[Tensor | None]) -> Tensor:
    """Pool the features of a region, one level after the other.

    Args:
        parts: all tiles, or some after the others.
        pooling: ``"average"``, or ``"bilinear"`` with signed square root and L2 norm a level.
        signs: per level (2, C, D) for the projection of its pairs; None: all pairs.

    Returns:
        (B, D) float32 on the CPU.

    Raises:
        ValueError: a region is empty.
    """
    sums: list[tuple[Tensor, Tensor]] = []  # per level (B, D) and how much the cells weigh, (B,)
    for levels, shares in parts:
        own = [_summed(level, shares, pooling, s) for level, s in zip(levels, signs, strict=True)]
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, own, strict=True)] if sums else own
    if not sums or not all(bool((weight > 0).all()) for _, weight in sums):
        raise ValueError("an empty region has no features")
    found = [summed / weight[:, None] for summed, weight in sums]
    return torch.cat(found if pooling == "average" else [signed_root(own) for own in found], dim=1).float().cpu()


def _summed(level: Tensor, shares: Tensor, pooling: Pooling, signs: Tensor | None) -> tuple[Tensor, Tensor]:
    weights = cell_shares(shares.to(level), (level.shape[3], level.shape[4]))  # (B, T, h, w)
    summed = region_sum(level, weights) if pooling == "average" else region_pairs(level, weights, signs)
    return summed, weights.flatten(1).sum(1)


def projections(channels: Sequence[int], pooling: Pooling, seed: int) -> list[Tensor | None]:
    """Draw the signs that project the pairs of each level; None where there are few enough pairs."""
    return [
        random_signs(c, _PAIRS, seed + i) if pooling == "bilinear" and c * (c + 1) // 2 > _PAIRS else None
        for i, c in enumerate(channels)
    ]


# -- the namer ---------------------------------------------------------------------------------------------------------


class Namer:
    """A namer names regions; :func:`fit_namer` makes it, or :meth:`from_file` from a model file.

    Args:
        settings: types, levels, pooling and the two limits.
        tensors: ``weight`` (K, D), ``bias`` (K,), ``mean`` (D,), ``scale`` (D,) or (1,), ``examples`` (2 n, D)
            as standardised, and ``signs.I`` (2, C, D') of each level I whose pairs are projected.
    """

    def __init__(self, settings: Settings, tensors: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.tensors = dict(tensors)

    def names(self, parts: Iterable[OnTiles]) -> list[Named]:
        """Name one region an image, by all levels of the detector: all tiles, or some after the others."""
        wanted = self.settings.levels
        signs = [self.tensors.get(f"signs.{i}") for i in range(len(wanted))]
        read = (([levels[i] for i in wanted], shares) for levels, shares in parts)
        return self.named(pooled(read, self.settings.pooling, signs))

    def named(self, features: Tensor) -> list[Named]:
        """Name regions by their pooled features (B, D)."""
        probabilities, distances = self.judged(features)
        found = []
        for row, distance in zip(probabilities.tolist(), distances.tolist(), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            sure = row[best] >= self.settings.threshold and distance <= self.settings.distance
            found.append(Named(self.settings.types[best] if sure else UNKNOWN, row[best]))
        return found

    def judged(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, K) and distances (B,) to the nearest example, for pooled features (B, D)."""
        known = self.tensors
        standard = (features.double() - known["mean"].double()) / known["scale"].double()  # (B, D)
        logits = standard @ known["weight"].double().T + known["bias"].double()  # (B, K)
        # one row at a time by sums: a product would round differently with the size of the batch
        distances = torch.stack([(known["examples"].double() - one).norm(dim=1).min() for one in standard])
        return logits.softmax(1), distances

    def to_json(self) -> dict[str, Any]:
        """Return what the header of the model file holds."""
        return asdict(self.settings)

    @classmethod
    def from_file(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Namer:
        """Make the namer that :meth:`to_json` and the tensors ``naming.*`` describe."""
        lists = {key: tuple(data[key]) for key in ("types", "layers", "levels")}
        return cls(Settings(**{**data, **lists}), tensors)


# -- learning ----------------------------------------------------------------------------------------------------------


def fit_namer(
    marked: Tensor,
    seen: Tensor,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    layers: Sequence[str],
    levels: Sequence[int],
    pooling: Pooling,
    signs: Sequence[Tensor | None],
    sure: float = 0.8,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Namer:
    """Learn to name from pooled features.

    Args:
        marked: (n, D), features of the regions that are marked: learned from, as are ...
        seen: (n, D), ... those that the detector finds in the same images. These are judged in the cross-validation.
        labels: n names of types.
        groups: n names of parts; examples of one group are never on both sides of the cross-validation.
        layers: that were read.
        levels: their places among the detector's.
        pooling: how.
        signs: the signs of the projections, one tensor for each level.
        sure: share of the names that should be right, above 0 to 1.
        seed: seeds the folds.
        about: more to keep.

    Raises:
        InputError: too few examples, groups or types, or no probability from which enough names were right.
        MissingExtra: scikit-learn is not installed.
    """
    if not 0 < sure <= 1:
        raise InputError(f"sure={sure!r}: expected a share above 0 and up to 1, e.g. 0.8")
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling={pooling!r}: expected one of {', '.join(get_args(Pooling))}")
    types = _checked(labels, groups)
    y = np.array([types.index(label) for label in labels])
    x, judged = marked.double().numpy(), seen.double().numpy()
    crossed = cross_validated(x, judged, y, groups, pooling, seed)
    best = crossed.probabilities.argmax(axis=1)
    threshold = probability_threshold(crossed.probabilities.max(axis=1), best == y, sure)
    both = np.concatenate([x, judged])
    (fitted,) = regression(both, np.tile(y, 2), len(types), [crossed.strength], pooling)
    distance = _distance_limit(fitted.standard(both), fitted.standard(judged), groups)
    named = crossed.probabilities.max(axis=1) >= threshold
    confusion = {
        kind: {other: int(((y == i) & (best == j)).sum()) for j, other in enumerate(types)}
        for i, kind in enumerate(types)
    }
    settings = Settings(
        types=tuple(types),
        layers=tuple(layers),
        levels=tuple(levels),
        pooling=pooling,
        threshold=threshold,
        distance=distance,
        strength=crossed.strength,
        about={
            **(about or {}),
            "examples": {kind: int((y == i).sum()) for i, kind in enumerate(types)},
            "groups": len(set(groups)),
            "folds": crossed.folds,
            "sure": sure,
            "accuracy": float(np.mean([(best == y)[y == i].mean() for i in range(len(types))])),
            "named": float(named.mean()),
            "right": float((best == y)[named].mean()),
            "confusion": confusion,
        },
    )
    single = {key: torch.from_numpy(value).float() for key, value in fitted._asdict().items()}
    single["examples"] = torch.from_numpy(fitted.standard(both)).float()
    return Namer(settings, single | {f"signs.{i}": s for i, s in enumerate(signs) if s is not None})


def _checked(labels: Sequence[str], groups: Sequence[str]) -> list[str]:
    types = sorted(set(labels))
    if len(types) < 2:
        raise InputError(f"the examples are of {len(types)} type(s), {types}: expected at least two to tell apart")
    if UNKNOWN in types:
        raise InputError(f"a type is called {UNKNOWN!r}, which is the answer where no type fits: call it otherwise")
    for kind in types:
        own = [group for label, group in zip(labels, groups, strict=True) if label == kind]
        if len(own) < MIN_EXAMPLES:
            raise InputError(f"type {kind!r} has {len(own)} examples, expected at least {MIN_EXAMPLES}: add some")
        if len(set(own)) < 2:
            raise InputError(
                f"all {len(own)} examples of type {kind!r} are of one group, {own[0]!r}: nothing would be left to try "
                "the names on. Add examples from other parts."
            )
    return types


def _distance_limit(examples: _Float, seen: _Float, groups: Sequence[str]) -> float:
    """Return how far an example may be from all others: see the head of the file."""
    other = np.array(groups)[:, None] != np.tile(groups, 2)[None]  # (n, 2 n)
    apart = np.stack([np.linalg.norm(examples - one, axis=1) for one in seen])  # (n, 2 n)
    nearest = np.sort(np.where(other, apart, np.inf).min(axis=1))[::-1]
    return float(nearest[max(1, math.floor(_FAR * (len(nearest) + 1))) - 1])
