"""Sorted pixels give exact polylines of overlap over false-positive rate.

Defect pixels are few, and overlap changes at their scores only. So a curve is known from two counts per distinct
defect score s, the ok pixels above s and those at or above s: between defect scores the curve runs flat, and where ok
pixels tie with s it rises in a straight line between the two counts. The counts are binary searches in sorted ok
pixels. These are kept sorted per tag, for counts of several tags add up: the numbers of each defect type need no
further sort.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError, UnknownName
from pickglass.metrics.labelling import connected_runs

__all__ = [
    "Counted",
    "OkPixels",
    "Pool",
    "RegionPixels",
    "Traced",
    "area_under",
    "check_keep",
    "check_map",
    "count_ok",
    "label_regions",
    "rising_bits",
]

_Array = np.ndarray[Any, np.dtype[Any]]
_Float32 = npt.NDArray[np.float32]
_Float64 = npt.NDArray[np.float64]
_Uint32 = npt.NDArray[np.uint32]
_Uint64 = npt.NDArray[np.uint64]

_BLOCK = 1 << 15  # defect pixels evaluated at once: bounds temporary memory to about 3 MB
_CELLS = 250  # steps of the plotted curve along each axis: at most 2 * 250 + 1 points
_HALF = np.uint64(32)
_STRETCH = 1 << 24  # ok pixels that are sorted and counted together where they are not kept: 64 MB


class Traced(NamedTuple):
    """A traced curve has these areas and points.

    Attributes:
        tpr_area: area under the share of region pixels reached over FPR, 0 to 1.
        area: limit -> area under the mean overlap of the regions over FPR up to the limit, divided by the limit.
        fpr: (P,) the curve for plotting, at most 501 points, each within 1/250 of the exact curve ...
        overlap: (P,) ... rising from (0, 0) to (1, 1).
        n_regions: regions that were averaged.
        n_ok_pixels: pixels in no region.

    Without a region, or without an ok pixel, the areas are nan and the curve has no point.
    """

    tpr_area: float
    area: dict[float, float]
    fpr: _Float64
    overlap: _Float64
    n_regions: int
    n_ok_pixels: int


class RegionPixels:
    """It holds the scores of all ok pixels, by tag, and of the pixels of each region.

    Args:
        beside: pixels of the same images, whose ok pixels are used and not kept twice; None: they are kept here.
    """

    def __init__(self, beside: RegionPixels | None = None) -> None:
        self._shared = beside is not None
        self.ok: OkPixels = OkPixels() if beside is None else beside.ok
        self._defects = Pool(np.uint64)
        self._size: list[int] = []
        self._tag: list[str] = []

    def add(self, tag: str, ok: _Float32, scores: _Float32, region: npt.NDArray[np.integer[Any]]) -> None:
        """Add one image.

        Args:
            tag: by which :meth:`trace` selects.
            ok: scores of the pixels in no region; passed over where they are kept ``beside``.
            scores: (K,) scores of region pixels.
            region: (K,) which region each belongs to, 0, 1, ... without a gap.
        """
        if not self._shared:
            self.ok.add(tag, ok)
        if len(scores) == 0:
            return
        self._defects.add(_join(scores, region.astype(np.uint64) + np.uint64(len(self._size))))
        sizes = np.bincount(region).tolist()
        self._size += sizes
        self._tag += [tag] * len(sizes)

    def trace(self, limits: Sequence[float], tags: Collection[str] | None) -> Traced:
        """Compute areas and curve of the images with these tags; None: all. "good" may be absent.

        Raises:
            InputError: a limit is not above 0 and at most 1, or a tag was never added.
        """
        for limit in limits:
            if not 0 < limit <= 1:
                raise InputError(f"FPR limit {limit!r}: expected above 0 and at most 1, e.g. 0.3")
        ok = self.ok.chosen(tags)
        chosen = np.array([tags is None or tag in tags for tag in self._tag], dtype=bool)  # (R,)
        sizes = np.asarray(self._size, dtype=np.float64)  # (R,)
        n_regions, n_ok = int(chosen.sum()), sum(pixels.n for pixels in ok)
        if n_regions == 0 or n_ok == 0:
            nan, empty = float("nan"), np.empty(0)
            return Traced(nan, dict.fromkeys(limits, nan), empty, empty, n_regions, n_ok)
        share = np.stack([1 / (sizes * n_regions), np.full_like(sizes, 1 / sizes[chosen].sum())])  # (2, R)
        area, tpr_area = dict.fromkeys(limits, 0.0), 0.0
        points = [np.zeros((2, 1))]
        for fpr, overlap, tpr in _polylines(self._defects.sorted(), ok, chosen, share):
            tpr_area += area_under(fpr, tpr, 1.0)
            for limit in area:
                area[limit] += area_under(fpr, overlap, limit)
            # A rising curve enters at most 2 * _CELLS new cells: its first point in each is enough to draw it.
            cell = np.floor(fpr * _CELLS) + np.floor(overlap * _CELLS)
            points.append(np.stack([fpr, overlap])[:, 1:][:, np.diff(cell) > 0])
        curve = np.concatenate(points, axis=1)  # (2, P)
        return Traced(tpr_area, {k: v / k for k, v in area.items()}, curve[0], curve[1], n_regions, n_ok)


class OkPixels:
    """It holds the scores of ok pixels by tag, or, once it knows which scores count, how many lie on either side."""

    def __init__(self) -> None:
        self._by_tag: dict[str, Pool | Counted] = {}
        self._expected: dict[str, Pool] = {}  # scores of region pixels
        self._defective: Counted | None = None  # ok pixels of all images with another tag than "good"

    def expect(self, tag: str, scores: _Float32) -> None:
        """Say what scores the region pixels of an image have that is added later.

        Once an image was added, only scores that were expected may be asked for, and tags only one by one.
        """
        if self._by_tag:
            raise InputError("expect() after the first image was added: expected it for all images before")
        self._expected.setdefault(tag, Pool(np.float32)).add(scores)

    def add(self, tag: str, ok: _Float32) -> None:
        """Add the ok pixels of one image."""
        if tag not in self._by_tag:
            self._by_tag[tag] = self._new(tag)
        self._by_tag[tag].add(ok)
        if self._expected and tag != "good":
            if self._defective is None:
                self._defective = Counted(self._scores(None))
            self._defective.add(ok)

    def _new(self, tag: str) -> Pool | Counted:
        if not self._expected:
            return Pool(np.float32)
        return Counted(self._scores(None if tag == "good" else tag))  # good pixels count beside those of every tag

    def _scores(self, tag: str | None) -> _Float32:
        """Return the scores that were expected of this tag, or of all, rising and each once."""
        pools = [pool.sorted() for name, pool in self._expected.items() if tag in (None, name)]
        scores: _Float32 = np.unique(np.concatenate([np.empty(0, np.float32), *pools]))
        return scores

    def chosen(self, tags: Collection[str] | None) -> list[Pool | Counted]:
        """Select what is held of the wanted tags, None: of all; what is empty is left out.

        Raises:
            InputError: a tag was never added, or several are wanted where pixels are only counted.
        """
        wanted = set(self._by_tag if tags is None else tags)
        for tag in wanted - {"good", *self._by_tag}:
            raise UnknownName("tag", tag, {"good", *self._by_tag})
        kinds, found = wanted - {"good"}, self._by_tag
        if self._defective is not None and len(kinds) > 1:
            if kinds != set(self._by_tag) - {"good"}:
                raise InputError(
                    f"tags {sorted(wanted)}: expected all, or one beside 'good', where pixels are not kept"
                )
            found = {tag: pixels for tag, pixels in self._by_tag.items() if tag == "good"} | {"": self._defective}
            wanted.add("")
        return [pixels for tag, pixels in found.items() if tag in wanted and pixels.n]

    def quantiles(self, levels: npt.ArrayLike) -> _Float64:
        """Find the (L,) scores that about these shares of all ok pixels exceed, within 2e-6; nan without any.

        Raises:
            InputError: pixels are only counted.
        """
        kept = [pixels for pixels in self._by_tag.values() if isinstance(pixels, Pool)]
        if self._expected:
            raise InputError("quantiles of pixels that are not kept: leave expect() out where they are wanted")
        pools = [pool.sorted() for pool in kept]
        step = max(sum(map(len, pools)) >> 20, 1)  # a sorted pool needs only every step-th value
        thinned = np.concatenate([np.empty(0, np.float32), *(pool[::-step] for pool in pools)])
        shares = np.asarray(levels, dtype=np.float64)
        return np.quantile(thinned, 1 - shares).astype(np.float64) if len(thinned) else np.full_like(shares, np.nan)


class Pool:
    """A pool takes values piece by piece into one array that grows in place, so that they never exist twice."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._array: _Array = np.empty(0, dtype)
        self._n = 0
        self._in_order = True

    def add(self, values: _Array) -> None:
        """Add values of any shape, copied."""
        end = self._n + values.size
        if end > self._array.size:
            # resize is realloc, which moves large arrays by remapping pages; 1/8 of slack keeps the moves few.
            self._array.resize(end + end // 8, refcheck=False)
        self._array[self._n : end] = values
        self._n, self._in_order = end, False

    @property
    def n(self) -> int:
        """The pool holds this many values."""
        return self._n

    def sorted(self) -> _Array:
        """Return all values in rising order, as a view that is valid until the next ``add``."""
        values = self._array[: self._n]
        if not self._in_order:
            values.sort()
            self._in_order = True
        return values

    def counts(self, scores: _Float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count how many values are below, and how many are not above, each of (K,) falling scores."""
        return count_ok([self.sorted()], scores)


class Counted:
    """It counts values below and at given scores, a stretch of them at a time, and keeps none of them.

    Args:
        scores: (K,) float32, rising, each once.
    """

    def __init__(self, scores: _Float32) -> None:
        self._scores = scores
        self._below = np.zeros(len(scores), np.int64)
        self._up_to = np.zeros(len(scores), np.int64)
        self._waiting = Pool(np.float32)
        self.n = 0

    def add(self, values: _Float32) -> None:
        """Count values of any shape."""
        flat = values.reshape(-1)
        for start in range(0, len(flat), _STRETCH):
            self._waiting.add(flat[start : start + _STRETCH])
            if self._waiting.n >= _STRETCH:
                self._count()
        self.n += len(flat)

    def counts(self, scores: _Float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count how many values are below, and how many are not above, each of (L,) scores.

        Raises:
            InputError: a score is none of those given.
        """
        self._count()
        places = np.searchsorted(self._scores, scores)
        if not np.array_equal(self._scores.take(places, mode="clip"), scores):
            raise InputError("a region pixel has a score that was not expected: give expect() every image that has one")
        return self._below[places], self._up_to[places]

    def _count(self) -> None:
        values, self._waiting = self._waiting.sorted(), Pool(np.float32)
        if not len(values):
            return
        for end in range(len(self._scores), 0, -_BLOCK):
            block = slice(max(0, end - _BLOCK), end)
            below, up_to = count_ok([values], self._scores[block][::-1])
            self._below[block] += below[::-1]
            self._up_to[block] += up_to[::-1]


def check_keep(
    scores: _Float32, defect: npt.NDArray[np.bool_] | None, keep: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_] | None]:
    """Check the pixels that count, (H, W) bool, and return the defect pixels among them, None if there is none.

    Raises:
        InputError: ``keep`` is not bool, of another shape than the map, or without a True.
    """
    if keep is None:
        return np.ones(scores.shape, np.bool_), defect
    inside: _Array = np.asarray(keep)
    if inside.shape != scores.shape or inside.dtype != np.bool_ or not inside.any():
        raise InputError(
            f"keep of shape {inside.shape} and type {inside.dtype}: expected bool of shape {scores.shape}, True inside "
            "the region of interest, and at least one True"
        )
    if defect is None or not (defect & inside).any():
        return inside, None
    return inside, defect & inside


def check_map(map: npt.ArrayLike, mask: npt.ArrayLike | None) -> tuple[_Float32, npt.NDArray[np.bool_] | None]:
    """Check a map and its mask; return the map as float32 and the mask, None if no pixel is set.

    Raises:
        InputError: shapes differ, the map is empty or not finite, the mask is not bool.
    """
    values: _Array = np.asarray(map)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iuf":
        raise InputError(f"map of shape {values.shape} and type {values.dtype}: expected numbers of shape (H, W)")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        scores = values.astype(np.float32, copy=False)
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


def label_regions(
    defect: npt.NDArray[np.bool_], connectivity: Literal[4, 8]
) -> tuple[tuple[slice, slice], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Label the connected regions of a mask that is not empty.

    Returns:
        The bounding box of all of them, the mask inside it, and the region, 0, 1, ..., of each True pixel there.
    """
    rows, columns = (np.flatnonzero(defect.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = defect[box]
    return box, inside, connected_runs(inside, connectivity).per_pixel()


def rising_bits(scores: _Float32) -> _Uint32:
    """Return IEEE 754 bits in the order of the numbers."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 turns -0.0 into 0.0: they tie
    rising: _Uint32 = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return rising


def _join(scores: _Float32, region: _Uint64) -> _Uint64:
    """Join score and region in one key that sorts by score: a plain in-place sort then carries the regions along."""
    keys: _Uint64 = (rising_bits(scores).astype(np.uint64) << _HALF) | region
    return keys


def _split(keys: _Uint64) -> tuple[_Float32, _Uint32]:
    rising = (keys >> _HALF).astype(np.uint32)
    bits = np.where(rising >> 31, rising & 0x7FFFFFFF, ~rising)
    return bits.view(np.float32), keys.astype(np.uint32)


def _blocks(keys: _Uint64) -> Iterator[_Uint64]:
    """Give sorted keys from the highest down, in blocks that never part equal scores."""
    end = len(keys)
    while end:
        start = keys[max(end - _BLOCK, 0)]
        first = int(np.searchsorted(keys, (start >> _HALF) << _HALF))
        yield keys[first:end][::-1]
        end = first


def _polylines(
    keys: _Uint64, ok: Sequence[Pool | Counted], chosen: npt.NDArray[np.bool_], share: _Float64
) -> Iterator[tuple[_Float64, _Float64, _Float64]]:
    """Give FPR, PRO and TPR along the whole curve, piece by piece, each from the last point of the piece before.

    Args:
        keys: (D,) defect pixels as :func:`_join` made them, sorted.
        ok: the ok pixels, in any number of parts, none empty.
        chosen: (R,) which regions take part.
        share: (2, R) what one pixel of a region adds to PRO and to TPR.
    """
    n_ok = sum(pixels.n for pixels in ok)
    x, y = 0.0, np.zeros((2, 1))
    for block in _blocks(keys):
        score, region = _split(block)
        if not chosen.all():
            score, region = score[chosen[region]], region[chosen[region]]
        if len(score) == 0:
            continue
        last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # (K,)
        below, up_to = (sum(counts) for counts in zip(*(pixels.counts(score[last]) for pixels in ok), strict=True))
        reached = np.minimum(y + np.cumsum(share[:, region], axis=1)[:, last], 1)  # (2, K)
        fpr = np.append(x, np.stack([n_ok - up_to, n_ok - below], axis=1) / n_ok)  # (1 + 2K,)
        pro, tpr = np.repeat(np.concatenate([y, reached], axis=1), 2, axis=1)[:, :-1]  # (1 + 2K,) each
        yield fpr, pro, tpr
        x, y = float(fpr[-1]), reached[:, -1:]
    end = np.array([x, 1.0])
    yield end, np.append(y[0], 1.0), np.append(y[1], 1.0)


def count_ok(ok: Sequence[_Float32], scores: _Float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count how many ok pixels are below, and how many are not above, each of (K,) falling scores."""
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


def area_under(x: _Float64, y: _Float64, limit: float) -> float:
    """Compute the area under the polyline over [x[0], x[-1]] as far as it is not beyond the limit."""
    if x[-1] > limit:
        i = int(np.searchsorted(x, limit, "right"))  # the first point beyond
        if i == 0:
            return 0.0
        at_limit = y[i - 1] + (y[i] - y[i - 1]) * (limit - x[i - 1]) / (x[i] - x[i - 1])
        x, y = np.append(x[:i], limit), np.append(y[:i], at_limit)
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)
