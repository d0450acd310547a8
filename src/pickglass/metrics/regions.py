"""Pixel AUROC and AUPRO, exact, from maps that come one by one.

The definition is that of MVTec AD (Bergmann et al., IJCV 2021, section 5.2). A region is a connected component of
a ground truth mask. For every threshold the PRO value is the share of each region at or above it, averaged over all
regions of all images; FPR is the share at or above it of all pixels that lie in no region, those of good images
included. AUPRO is the area under PRO over FPR from 0 to a limit, divided by the limit; the curve is piecewise linear
with one point per distinct score, starts at (0, 0) and is interpolated at the limit.

Why no sort of everything is needed: defect pixels are few, and PRO changes at their scores only. So the curve is
known from two counts per distinct defect score s, the ok pixels above s and those at or above s: between defect
scores the curve runs flat, and where ok pixels tie with s it rises in a straight line between the two counts. The
counts are binary searches in sorted ok pixels. These are kept sorted per tag, for counts of several tags add up:
the numbers of each defect type need no further sort.

Memory: 4.5 bytes an ok pixel, 9 bytes a defect pixel, and a few megabytes that do not grow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError, UnknownName

__all__ = ["PixelCurves", "PixelResult", "aupro", "pixel_auroc"]

_Array = np.ndarray[Any, np.dtype[Any]]
_Float32 = npt.NDArray[np.float32]
_Float64 = npt.NDArray[np.float64]
_Uint64 = npt.NDArray[np.uint64]

_BLOCK = 1 << 15  # defect pixels evaluated at once: bounds temporary memory to about 3 MB
_CELLS = 250  # steps of the plotted curve along each axis: at most 2 * 250 + 1 points
_HALF = np.uint64(32)


class PixelResult(NamedTuple):
    """What :meth:`PixelCurves.compute` found.

    Attributes:
        pixel_auroc: area under the ROC curve over all pixels, 0 to 1.
        aupro: limit -> AUPRO at this FPR limit, 0 to 1.
        fpr: (P,) the PRO curve for plotting, at most 501 points, each within 1/250 of the exact curve ...
        pro: (P,) ... rising from (0, 0) to (1, 1).
        n_regions: defect regions that were averaged.
        n_ok_pixels: pixels in no region.

    Without a region, or without an ok pixel, the areas are nan and the curve has no point.
    """

    pixel_auroc: float
    aupro: dict[float, float]
    fpr: _Float64
    pro: _Float64
    n_regions: int
    n_ok_pixels: int


class PixelCurves:
    """Exact pixel AUROC and PRO curve; maps are added one by one and not kept.

    Args:
        connectivity: 8 (MVTec's definition): pixels that touch at a corner are one region; 4: at an edge only.

    Example:
        >>> curves = PixelCurves()
        >>> curves.update(np.array([[0.1, 0.2], [0.3, 0.9]]), np.array([[0, 0], [0, 1]]) > 0, tag="crack")
        >>> curves.update(np.array([[0.1, 0.2], [0.3, 0.4]]), None)
        >>> curves.compute(limits=[0.3]).aupro
        {0.3: 1.0}
    """

    def __init__(self, connectivity: Literal[4, 8] = 8) -> None:
        if connectivity not in (4, 8):
            raise InputError(f"connectivity={connectivity!r}: expected 8 (MVTec's definition) or 4")
        self._connectivity = connectivity
        self._ok: dict[str, _Pool] = {}
        self._defects = _Pool(np.uint64)
        self._region_size: list[int] = []
        self._region_tag: list[str] = []

    def update(self, map: npt.ArrayLike, mask: npt.ArrayLike | None, tag: str = "good") -> None:
        """Add one image.

        Args:
            map: (H, W) finite scores, higher = more anomalous. Kept as float32: scores that differ only beyond
                float32 become ties.
            mask: (H, W) bool, True on defects; None where there is no defect.
            tag: defect type, "good" for good images; :meth:`compute` selects by it.

        Raises:
            InputError: shapes differ, the map is empty or not finite, the mask is not bool.
        """
        scores, defect = _validate(map, mask)
        pool = self._ok.setdefault(tag, _Pool(np.float32))
        if defect is None:
            pool.add(scores.ravel())
            return
        pool.add(scores[~defect])
        rows, columns = (np.flatnonzero(defect.any(axis=axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside = defect[box]
        label = cc3d.connected_components(np.ascontiguousarray(inside), connectivity=self._connectivity)[inside]
        self._defects.add(_join(scores[box][inside], label.astype(np.uint64) - 1 + len(self._region_size)))
        sizes = np.bincount(label)[1:].tolist()
        self._region_size += sizes
        self._region_tag += [tag] * len(sizes)

    def compute(self, limits: Sequence[float] = (0.3, 0.05), tags: Collection[str] | None = None) -> PixelResult:
        """The curve of all images added so far; more may be added afterwards.

        Args:
            limits: FPR limits, each above 0 and at most 1. MVTec AD uses 0.3, MVTec AD 2 uses 0.05.
            tags: only images with these tags, e.g. ``{"crack", "good"}``; None: all. "good" may be absent.

        Returns:
            Areas and curve; areas are nan if there is no region or no ok pixel.

        Raises:
            InputError: a limit is out of range, or a tag was never added.
        """
        for limit in limits:
            if not 0 < limit <= 1:
                raise InputError(f"FPR limit {limit!r}: expected above 0 and at most 1, e.g. 0.3")
        ok, chosen = self._choose(tags)
        sizes = np.asarray(self._region_size, dtype=np.float64)  # (R,)
        n_regions, n_ok = int(chosen.sum()), sum(map(len, ok))
        if n_regions == 0 or n_ok == 0:
            nan, empty = float("nan"), np.empty(0)
            return PixelResult(nan, dict.fromkeys(limits, nan), empty, empty, n_regions, n_ok)
        share = np.stack([1 / (sizes * n_regions), np.full_like(sizes, 1 / sizes[chosen].sum())])  # (2, R)
        area, roc_area = dict.fromkeys(limits, 0.0), 0.0
        points = [np.zeros((2, 1))]
        for fpr, pro, tpr in _polylines(self._defects.sorted(), ok, chosen, share):
            roc_area += _area(fpr, tpr, 1.0)
            for limit in area:
                area[limit] += _area(fpr, pro, limit)
            # A rising curve enters at most 2 * _CELLS new cells: its first point in each is enough to draw it.
            cell = np.floor(fpr * _CELLS) + np.floor(pro * _CELLS)
            points.append(np.stack([fpr, pro])[:, 1:][:, np.diff(cell) > 0])
        curve = np.concatenate(points, axis=1)  # (2, P)
        return PixelResult(roc_area, {k: v / k for k, v in area.items()}, curve[0], curve[1], n_regions, n_ok)

    def _choose(self, tags: Collection[str] | None) -> tuple[list[_Float32], npt.NDArray[np.bool_]]:
        """The sorted ok pixels of each chosen tag that has any, and for each region whether it is chosen."""
        wanted = set(self._ok if tags is None else tags)
        for tag in wanted - {"good", *self._ok}:
            raise UnknownName("tag", tag, {"good", *self._ok})
        ok = [pool.sorted() for tag, pool in self._ok.items() if tag in wanted]
        chosen = np.array([tag in wanted for tag in self._region_tag], dtype=bool)  # (R,)
        return [values for values in ok if len(values)], chosen


def pixel_auroc(maps: Iterable[npt.ArrayLike], masks: Iterable[npt.ArrayLike | None]) -> float:
    """Area under the ROC curve over all pixels of all images.

    Args:
        maps: (H, W) finite scores each, higher = more anomalous; read one by one.
        masks: as many, (H, W) bool, True on defects; None where there is no defect.

    Returns:
        0 to 1; nan without a defect pixel or without an ok pixel.

    Raises:
        InputError: as :meth:`PixelCurves.update`, or not as many masks as maps.

    Example:
        >>> maps, masks = [[[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]]], [[[False, True, False], [True, False, False]]]
        >>> pixel_auroc(maps, masks)
        0.5
    """
    return _gather(maps, masks).compute(limits=()).pixel_auroc


def aupro(maps: Iterable[npt.ArrayLike], masks: Iterable[npt.ArrayLike | None], limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to an FPR limit, divided by the limit (MVTec AD's definition).

    Args:
        maps: (H, W) finite scores each, higher = more anomalous; read one by one.
        masks: as many, (H, W) bool, True on defects, at the original size; None where there is no defect.
        limit: FPR limit, above 0 and at most 1.

    Returns:
        0 to 1; nan without a region or without an ok pixel.

    Raises:
        InputError: as :meth:`PixelCurves.update`, or not as many masks as maps, or the limit is out of range.

    Example:
        >>> maps, masks = [[[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]]], [[[False, True, False], [True, False, False]]]
        >>> aupro(maps, masks, limit=0.5)
        0.25
    """
    return _gather(maps, masks).compute(limits=(limit,)).aupro[limit]


class _Pool:
    """Values added piece by piece to one array that grows in place, so that they never exist twice."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._array: _Array = np.empty(0, dtype)
        self._n = 0
        self._in_order = True

    def add(self, values: _Array) -> None:
        end = self._n + values.size
        if end > self._array.size:
            # resize is realloc, which moves large arrays by remapping pages; 1/8 of slack keeps the moves few.
            self._array.resize(end + end // 8, refcheck=False)
        self._array[self._n : end] = values
        self._n, self._in_order = end, False

    def sorted(self) -> _Array:
        """All values in rising order, as a view that is valid until the next ``add``."""
        values = self._array[: self._n]
        if not self._in_order:
            values.sort()
            self._in_order = True
        return values


def _validate(map: npt.ArrayLike, mask: npt.ArrayLike | None) -> tuple[_Float32, npt.NDArray[np.bool_] | None]:
    """The map as float32 and the mask, None if no pixel is set."""
    given: _Array = np.asarray(map)
    if given.ndim != 2 or given.size == 0 or given.dtype.kind not in "iuf":
        raise InputError(f"map of shape {given.shape} and type {given.dtype}: expected numbers of shape (H, W)")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        scores = given.astype(np.float32, copy=False)
    low, high = scores.min(), scores.max()  # nan and infinities reach at least one of them
    if not np.isfinite((low, high)).all():
        raise InputError(
            f"map of shape {scores.shape} ranges from {low} to {high}: expected finite float32 scores; leave out "
            "failed images, or correct what produced the map"
        )
    if mask is None:
        return scores, None
    defect: _Array = np.asarray(mask)
    if defect.shape != scores.shape:
        raise InputError(
            f"mask of shape {defect.shape} and map of shape {scores.shape}: expected the same (H, W); resize the map "
            "to the mask"
        )
    if defect.dtype != np.bool_:
        raise InputError(f"mask of type {defect.dtype}: expected bool; pass `mask > 0` if any value above 0 is defect")
    return scores, defect if defect.any() else None


def _gather(maps: Iterable[npt.ArrayLike], masks: Iterable[npt.ArrayLike | None]) -> PixelCurves:
    curves, missing = PixelCurves(), object()
    for i, (scores, mask) in enumerate(zip_longest(maps, masks, fillvalue=missing)):
        if scores is missing or mask is missing:
            shorter = "maps" if scores is missing else "masks"
            raise InputError(f"the {shorter} end after {i}: expected one mask per map (None where there is no defect)")
        curves.update(scores, mask)  # type: ignore[arg-type]  # neither is the sentinel
    return curves


def _join(scores: _Float32, region: _Uint64) -> _Uint64:
    """Score and region in one key that sorts by score: a plain in-place sort then carries the regions along."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0: they tie
    rising = np.where(bits >> 31, ~bits, bits | 0x80000000)  # IEEE 754 bits in the order of the numbers
    keys: _Uint64 = (rising.astype(np.uint64) << _HALF) | region
    return keys


def _split(keys: _Uint64) -> tuple[_Float32, npt.NDArray[np.uint32]]:
    rising = (keys >> _HALF).astype(np.uint32)
    bits = np.where(rising >> 31, rising & 0x7FFFFFFF, ~rising)
    return bits.view(np.float32), keys.astype(np.uint32)


def _blocks(keys: _Uint64) -> Iterator[_Uint64]:
    """Sorted keys from the highest down, in blocks that never part equal scores."""
    end = len(keys)
    while end:
        start = keys[max(end - _BLOCK, 0)]
        first = int(np.searchsorted(keys, (start >> _HALF) << _HALF))
        yield keys[first:end][::-1]
        end = first


def _polylines(
    keys: _Uint64, ok: Sequence[_Float32], chosen: npt.NDArray[np.bool_], share: _Float64
) -> Iterator[tuple[_Float64, _Float64, _Float64]]:
    """FPR, PRO and TPR along the whole curve, piece by piece, each piece from the last point of the one before.

    Args:
        keys: (D,) defect pixels as :func:`_join` made them, sorted.
        ok: sorted scores of the ok pixels, in any number of arrays, none empty.
        chosen: (R,) which regions take part.
        share: (2, R) what one pixel of a region adds to PRO and to TPR.
    """
    n_ok = sum(map(len, ok))
    x, y = 0.0, np.zeros((2, 1))
    for block in _blocks(keys):
        score, region = _split(block)
        if not chosen.all():
            score, region = score[chosen[region]], region[chosen[region]]
        if len(score) == 0:
            continue
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # (K,)
        below, up_to = _count(ok, score[last])
        reached = np.minimum(y + np.cumsum(share[:, region], axis=1)[:, last], 1)  # (2, K)
        fpr = np.append(x, np.stack([n_ok - up_to, n_ok - below], axis=1) / n_ok)  # (1 + 2K,)
        pro, tpr = np.repeat(np.concatenate([y, reached], axis=1), 2, axis=1)[:, :-1]  # (1 + 2K,) each
        yield fpr, pro, tpr
        x, y = float(fpr[-1]), reached[:, -1:]
    end = np.array([x, 1.0])
    yield end, np.append(y[0], 1.0), np.append(y[1], 1.0)


def _count(ok: Sequence[_Float32], scores: _Float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many ok pixels are below, and how many are not above, each of (K,) falling scores."""
    below = np.zeros(len(scores), dtype=np.int64)
    up_to = below.copy()
    for values in ok:
        # Searching only the stretch between the block's extremes stays within the cache.
        first, end = np.searchsorted(values, scores[-1]), np.searchsorted(values, scores[0], "right")
        left = first + np.searchsorted(values[first:end], scores)
        right = left.copy()
        tied = np.flatnonzero(values.take(left, mode="clip") == scores)
        right[tied] = first + np.searchsorted(values[first:end], scores[tied], "right")
        below += left
        up_to += right
    return below, up_to


def _area(x: _Float64, y: _Float64, limit: float) -> float:
    """Area under the polyline over [x[0], x[-1]] as far as it is not beyond the limit."""
    if x[-1] > limit:
        i = int(np.searchsorted(x, limit, "right"))  # the first point beyond
        if i == 0:
            return 0.0
        at_limit = y[i - 1] + (y[i] - y[i - 1]) * (limit - x[i - 1]) / (x[i] - x[i - 1])
        x, y = np.append(x[:i], limit), np.append(y[:i], at_limit)
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)
