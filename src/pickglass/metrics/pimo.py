"""AUPIMO is how much of each defective image is found while almost no pixel of good images is marked.

Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance", BMVC 2024.
At a threshold, FPR is the share at or above it of the pixels of a *good* image, averaged over the good images, and
each defective image has its recall: the share of its defect pixels at or above it. AUPIMO is the mean recall of an
image over log FPR from 1e-5 to 1e-4: one score an image, so that scores can be plotted and two tools compared image
by image. Pixels around the defects of a defective image play no part.

Departures: the paper samples 300,000 thresholds; here every distinct score is one. Where defect and good pixels tie,
recall rises in a straight line over FPR, as in AUPRO, and is integrated as such. With less than 1e5 good pixels the
left end of the range lies below one pixel: there the recall at no false positive stands.

Memory: 4 bytes a defect pixel, and 4.5 bytes a good pixel; if the number of good images is known beforehand, only
about 1e-4 of the good pixels (and four million of one map) instead, for no more of them can matter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.polylines import Pool, check_keep, check_map, count_ok

__all__ = ["PimoCurves", "PimoResult"]

_Array = np.ndarray[Any, np.dtype[Any]]
_Float32 = npt.NDArray[np.float32]
_Float64 = npt.NDArray[np.float64]

_PIECE = 1 << 22  # pixels of a map that are looked at together
_PRUNE = 1 << 18  # kept good pixels from which, and from twice what is left, the superfluous are dropped


class PimoResult(NamedTuple):
    """Each defective image has a score of its own.

    Attributes:
        scores: (N,) AUPIMO of each image in the order of adding, 0 to 1; nan for good images, and for all where
            there is no good image.
        mean: mean over the defective images; nan without one or without a good image.
        n_good: good images that FPR was measured on.
        finest: smallest FPR step, 1 / (good images * pixels of the largest); above the lower bound the left end of
            the range is not resolved.
    """

    scores: _Float64
    mean: float
    n_good: int
    finest: float


class PimoCurves:
    """It computes AUPIMO exactly; maps are added one by one and not kept.

    Args:
        bounds: FPR range (lower, upper), 0 < lower < upper <= 1.
        n_good: at most this many good images will be added, which bounds the memory; None: any number.

    Example:
        >>> curves = PimoCurves(bounds=(0.01, 0.1))
        >>> curves.update(np.arange(100.0).reshape(10, 10), None)
        >>> curves.update(np.array([[99.5, 0.0]]), np.array([[True, True]]))  # one pixel above all good ones, one below
        >>> curves.compute().scores.tolist()
        [nan, 0.5]
    """

    def __init__(self, bounds: tuple[float, float] = (1e-5, 1e-4), n_good: int | None = None) -> None:
        if not 0 < bounds[0] < bounds[1] <= 1:
            raise InputError(f"bounds={bounds!r}: expected an FPR range, 0 < lower < upper <= 1, e.g. (1e-5, 1e-4)")
        if n_good is not None and n_good < 0:
            raise InputError(f"n_good={n_good!r}: expected a number of images, or None")
        self._bounds = bounds
        self._n_expected = n_good
        self._good: dict[int, Pool] = {}  # by pixels of the image: equal sizes have equal weight
        self._defects: list[_Float32 | None] = []  # per image its defect pixels, rising
        self._n_good = 0
        self._prune_at = _PRUNE
        self._lowest = np.float32(-np.inf)  # good pixels below it cannot matter any more

    def update(self, map: npt.ArrayLike, mask: npt.ArrayLike | None, keep: npt.ArrayLike | None = None) -> None:
        """Add one image.

        Args:
            map: (H, W) finite scores, higher = more anomalous, kept as float32.
            mask: (H, W) bool, True on defects; None, or without a True, for a good image.
            keep: (H, W) bool, the region of interest: pixels outside do not count. None: all count. A defective image
                whose defects all lie outside has no score.

        Raises:
            InputError: shapes differ, the map is empty or not finite, the mask is not bool, nothing is kept, or more
                good images came than were announced.
        """
        scores, defect = check_map(map, mask)
        if keep is not None:
            good = defect is None
            inside, defect = check_keep(scores, defect, keep)
            if not good and defect is None:
                self._defects.append(None)
                return
            scores = scores if defect is not None else scores[inside]
        if defect is not None:
            self._defects.append(np.sort(scores[defect]))
            return
        if self._n_good == self._n_expected:
            raise InputError(f"more than n_good={self._n_expected} good images: announce as many as will come")
        self._defects.append(None)
        self._n_good += 1
        flat = scores.reshape(-1)
        self._good.setdefault(flat.size, Pool(np.float32))
        for start in range(0, flat.size, _PIECE):  # so that of a large map, too, little is held at once
            piece = flat[start : start + _PIECE]
            self._good[flat.size].add(piece[piece >= self._lowest])
            if self._n_expected is not None and sum(map_.n for map_ in self._good.values()) > self._prune_at:
                self._prune(self._n_expected)

    def compute(self) -> PimoResult:
        """Compute the scores of all images added so far; more may be added afterwards."""
        scores = np.full(len(self._defects), np.nan)  # (N,)
        if self._n_good == 0:
            return PimoResult(scores, float("nan"), 0, float("nan"))
        for i, pixels in enumerate(self._defects):
            if pixels is not None:
                scores[i] = self._area(pixels)
        defined = scores[~np.isnan(scores)]
        mean = float(defined.mean()) if len(defined) else float("nan")
        return PimoResult(scores, mean, self._n_good, 1 / (self._n_good * max(self._good)))

    def _area(self, pixels: _Float32) -> float:
        """Average the polyline of recall over log FPR."""
        lower, upper = self._bounds
        values, counts = np.unique(pixels, return_counts=True)
        values, reached = values[::-1], np.cumsum(counts[::-1]) / len(pixels)  # (K,) falling scores, recall there
        above, at_least = np.zeros(len(values)), np.zeros(len(values))
        for size, pool in self._good.items():
            if pool.n == 0:  # all of it was superfluous
                continue
            below, up_to = count_ok([pool.sorted()], values)
            above += (pool.n - up_to) / (size * self._n_good)
            at_least += (pool.n - below) / (size * self._n_good)
        # From score to score the curve runs flat to ``above`` and rises in a straight line to ``at_least``.
        fpr = np.append(np.stack([above, at_least], axis=1), 1.0)  # (2K + 1,)
        recall = np.append(np.repeat(np.append(0.0, reached), 2)[1:-1], 1.0)  # (2K + 1,)
        fpr, recall = np.append(0.0, fpr), np.append(0.0, recall)
        return _mean_over_log(fpr, recall, lower, upper)

    def _prune(self, n_good: int) -> None:
        """Drop what lies below the score whose FPR reaches the upper bound even if no further image adds to it."""
        pools = [(size, pool.sorted()) for size, pool in self._good.items()]
        scores = np.concatenate([values for _, values in pools])
        weight = np.concatenate([np.full(len(values), 1 / (size * n_good)) for size, values in pools])
        order = np.argsort(scores)[::-1]
        enough = np.flatnonzero(np.cumsum(weight[order]) > self._bounds[1])
        if len(enough):
            self._lowest = scores[order[enough[0]]]
            for size, values in pools:
                pruned = Pool(np.float32)
                pruned.add(values[np.searchsorted(values, self._lowest) :])
                self._good[size] = pruned
        self._prune_at = max(_PRUNE, 2 * sum(pool.n for pool in self._good.values()))


def _mean_over_log(x: _Float64, y: _Float64, lower: float, upper: float) -> float:
    """Average the polyline y(x) over log x, from lower to upper; x rises from 0 to 1."""
    start, end = np.clip(x[:-1], lower, upper), np.clip(x[1:], lower, upper)
    inside = end > start
    start, end, left, right = start[inside], end[inside], x[:-1][inside], x[1:][inside]
    y_left, y_right = y[:-1][inside], y[1:][inside]
    slope = (y_right - y_left) / (right - left)
    # a straight line a + b x has the integral a log x + b x over log x
    area = (y_left - slope * left) * np.log(end / start) + slope * (end - start)
    return float(area.sum() / np.log(upper / lower))
