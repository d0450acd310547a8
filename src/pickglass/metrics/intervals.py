"""A bootstrap over groups says how sure a metric is, and whether two tools differ by more than chance.

Images of one group (the same part, the same roll) resemble each other, so groups are what is drawn: as many as there
are, with replacement. A replicate is a weight per image, how often it was drawn; a metric is anything that turns
weights into numbers. Two tools judged by the same weights are paired: the interval of their difference is that of a
metric that subtracts.

Pixel metrics would need all pixels sorted again for each replicate. :class:`CountTables` holds instead, for each image
and each region, how many of its pixels reach each threshold of a grid: a replicate is then a weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.polylines import area_under, check_keep, check_map, label_regions

__all__ = ["OK_LEVELS", "CountTables", "Intervals", "bootstrap", "group_weights", "resampled"]

_Array = np.ndarray[Any, np.dtype[Any]]
_Float64 = npt.NDArray[np.float64]
_Int64 = npt.NDArray[np.int64]

OK_LEVELS = np.concatenate([np.linspace(0, 0.06, 700), np.linspace(0.06, 0.35, 500)[1:], np.linspace(0.35, 1, 200)[1:]])
"""(T,) false-positive rates at which to lay a grid of thresholds: dense where AUPRO is integrated."""


class Intervals(NamedTuple):
    """Each of the K numbers of a metric has an interval.

    Attributes:
        value: (K,) on the images as they are.
        low: (K,) lower end of the percentile interval ...
        high: (K,) ... and the upper; both nan where no replicate defines the number.
        used: (K,) replicates that define it: a draw without a good image, say, has no AUROC.
    """

    value: _Float64
    low: _Float64
    high: _Float64
    used: _Int64


def group_weights(groups: Sequence[Hashable | None], repeats: int, seed: int) -> _Int64:
    """Draw groups with replacement, and count how often each image is drawn, (repeats, N).

    Args:
        groups: N names; None: a group of its own.
        repeats: replicates, at least 1.
        seed: seeds the draws.

    Raises:
        InputError: there is no image or no replicate.

    Example:
        >>> group_weights(["a", "a", None], repeats=3, seed=0).tolist()
        [[0, 0, 2], [1, 1, 1], [2, 2, 0]]
    """
    if len(groups) == 0 or repeats < 1:
        raise InputError(f"{len(groups)} images and repeats={repeats!r}: expected at least one of each")
    number: dict[Any, int] = {}
    place = [number.setdefault(("own", i) if g is None else ("named", g), len(number)) for i, g in enumerate(groups)]
    n = len(number)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(repeats)])  # (repeats, groups)
    return drawn[:, place].astype(np.int64)


def bootstrap(
    metric: Callable[[_Int64], npt.ArrayLike],
    groups: Sequence[Hashable | None],
    *,
    repeats: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Compute percentile intervals of a metric, or of the difference of two.

    Args:
        metric: takes (N,) how often each image counts, gives a number or (K,) numbers; nan where undefined.
        groups: N names; images of one group are drawn together; None: a group of its own.
        repeats: replicates. The ends of an interval are themselves uncertain with few: 1000 is usual.
        confidence: how sure each interval is, above 0 and below 1. With few groups (under about 20) they cover less.
        seed: the same seed gives the same intervals.

    Raises:
        InputError: no image, no replicate, or the confidence is out of range.

    Example:
        >>> from pickglass.metrics import auroc
        >>> labels, ours, theirs = [0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.1, 0.9, 0.8, 0.2]
        >>> a, b = resampled(auroc, labels, ours), resampled(auroc, labels, theirs)
        >>> found = bootstrap(lambda weight: a(weight) - b(weight), [None] * 4, repeats=200)
        >>> float(found.value[0]), float(found.low[0]), float(found.high[0])
        (0.5, 0.0, 1.0)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence!r}: expected above 0 and below 1, e.g. 0.95")
    weights = group_weights(groups, repeats, seed)
    value = np.atleast_1d(np.asarray(metric(np.ones(len(groups), dtype=np.int64)), dtype=np.float64))  # (K,)
    drawn = np.stack([np.atleast_1d(np.asarray(metric(weight), dtype=np.float64)) for weight in weights])
    defined = ~np.isnan(drawn)  # (repeats, K)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    ends = [np.quantile(d[k], tails) if k.any() else (np.nan, np.nan) for d, k in zip(drawn.T, defined.T, strict=True)]
    low, high = np.array(ends).T
    return Intervals(value, low, high, defined.sum(axis=0))


def resampled(
    metric: Callable[[Any, Any], float], labels: npt.ArrayLike, scores: npt.ArrayLike
) -> Callable[[_Int64], float]:
    """Turn an image metric of labels and scores, both (N,), into the function of weights for :func:`bootstrap`."""
    truth, values = np.asarray(labels), np.asarray(scores)
    index = np.arange(len(truth))

    def of_weights(weight: _Int64) -> float:
        drawn = np.repeat(index, weight)
        return metric(truth[drawn], values[drawn])

    return of_weights


class CountTables:
    """Counts over a grid of thresholds give pixel AUROC and AUPRO of reweighted images.

    The curve is exact at the thresholds and straight between them. On :data:`OK_LEVELS` AUPRO is within about 1e-3
    of the exact one; for the value itself take :class:`~pickglass.metrics.PixelCurves`, and this for its interval.

    Args:
        thresholds: (T,) falling, e.g. ``curves.ok_quantiles(OK_LEVELS)``.
        connectivity: 8 (MVTec's definition): pixels that touch at a corner are one region; 4: at an edge only.
        smallest: regions below this many pixels are left out; their pixels count as nothing.

    Example:
        >>> tables = CountTables([0.5, 0.0])
        >>> tables.update(np.array([[0.1, 0.9]]), np.array([[False, True]]))
        >>> tables.update(np.array([[0.2, 0.6]]), None)
        >>> round(tables.aupro(np.array([1, 1]), limit=0.3), 6)  # a straight line from (0, 0) to (1/3, 1)
        0.45
    """

    def __init__(self, thresholds: npt.ArrayLike, connectivity: Literal[4, 8] = 8, smallest: int = 1) -> None:
        if connectivity not in (4, 8):
            raise InputError(f"connectivity={connectivity!r}: expected 8 (MVTec's definition) or 4")
        grid = np.asarray(thresholds, dtype=np.float64)
        if grid.ndim != 1 or len(grid) == 0 or not (np.diff(grid) <= 0).all():
            raise InputError(f"thresholds of shape {grid.shape}: expected (T,) falling scores, T at least 1")
        self._rising = grid[::-1].astype(np.float32)
        self._connectivity, self._smallest = connectivity, smallest
        self._ok: list[_Int64] = []  # (T,) each
        self._n_ok: list[int] = []
        self._regions: list[_Int64] = []
        self._region_size: list[int] = []
        self._region_image: list[int] = []
        self._stacked: tuple[_Float64, _Float64, _Float64, _Float64, _Int64] | None = None

    def update(self, map: npt.ArrayLike, mask: npt.ArrayLike | None, keep: npt.ArrayLike | None = None) -> None:
        """Add one image: (H, W) scores, (H, W) bool or None, and what counts, as for :meth:`PixelCurves.update`."""
        scores, defect = check_map(map, mask)
        inside_roi, defect = check_keep(scores, defect, keep)
        ok = scores[inside_roi] if defect is None else scores[inside_roi & ~defect]
        image = len(self._ok)
        self._stacked = None
        self._ok.append(self._counts(ok))
        self._n_ok.append(len(ok))
        if defect is None:
            return
        box, inside, region = label_regions(defect, self._connectivity)
        values, order = scores[box][inside], np.argsort(region, kind="stable")
        for pixels in np.split(values[order], np.cumsum(np.bincount(region))[:-1]):
            if len(pixels) >= self._smallest:
                self._regions.append(self._counts(pixels))
                self._region_size.append(len(pixels))
                self._region_image.append(image)

    def aupro(self, weight: _Int64, limit: float = 0.3) -> float:
        """Compute AUPRO if image i counted ``weight[i]`` times, (N,); nan without a region or an ok pixel."""
        _, _, _, size, image = self._tables()
        drawn = weight[image]  # (R,)
        return self._area(weight, drawn / size, float(drawn.sum()), limit)

    def pixel_auroc(self, weight: _Int64) -> float:
        """Compute pixel AUROC if image i counted ``weight[i]`` times, (N,); nan without a region or an ok pixel."""
        _, _, _, size, image = self._tables()
        drawn = weight[image].astype(np.float64)  # (R,)
        return self._area(weight, drawn, float(drawn @ size), 1.0)

    def _area(self, weight: _Int64, per_pixel: _Float64, total: float, limit: float) -> float:
        """Compute the area under the curve to which a pixel of region r adds ``per_pixel[r] / total``."""
        ok, regions, n_ok, _, _ = self._tables()
        all_ok = float(weight @ n_ok)
        if total == 0 or all_ok == 0:
            return float("nan")
        x = np.concatenate([[0.0], weight @ ok / all_ok, [1.0]])  # (T + 2,)
        y = np.concatenate([[0.0], per_pixel @ regions / total, [1.0]])
        return area_under(x, y, limit) / limit

    def _tables(self) -> tuple[_Float64, _Float64, _Float64, _Float64, _Int64]:
        """Stack ok counts (N, T), region counts (R, T), ok pixels (N,), region sizes (R,), images of regions (R,)."""
        if self._stacked is None:  # float64, for integer matrix products are slow
            empty = np.zeros((0, len(self._rising)))
            self._stacked = (
                np.concatenate([empty, *(row[None] for row in self._ok)]),
                np.concatenate([empty, *(row[None] for row in self._regions)]),
                np.array(self._n_ok, dtype=np.float64),
                np.array(self._region_size, dtype=np.float64),
                np.array(self._region_image, dtype=np.int64),
            )
        return self._stacked

    def _counts(self, values: npt.NDArray[np.float32]) -> _Int64:
        """Count how many of the values reach each threshold, from the highest down, (T,)."""
        return (len(values) - np.searchsorted(np.sort(values), self._rising))[::-1].astype(np.int64)
