"""AUPRO of any number of images in constant memory, as an interval that is guaranteed to contain the exact value.

A float32 has an order-preserving integer key; its highest bits are the bin of a pixel. Two totals per bin are kept:
its ok pixels, and the shares of regions it holds. So the PRO curve is known exactly at each bin's lower edge, and as
it never falls, between two known points it lies in the rectangle that they span: the lower and the upper edges of
these rectangles bound the area, whatever the scores inside a bin are. The bins do not depend on the data, and the
totals are integers: one pass, and sketches of parts add up to the sketch of the whole, bit for bit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.polylines import check_map, label_regions, rising_bits

__all__ = ["AuproInterval", "AuproSketch"]

_Float32 = npt.NDArray[np.float32]
_Uint64 = npt.NDArray[np.uint64]

_ONE = 1 << 32  # a whole region in fixed point, so that sums do not depend on their order
_BLOCK = 1 << 18  # pixels binned at once, so that large maps take no more memory than small ones
_ROUNDING = 1e-9  # above what the fixed point (2^-32) and the sums of float64 can be off


class AuproInterval(NamedTuple):
    """Bounds of AUPRO, 0 to 1; both nan without a region or an ok pixel."""

    low: float
    high: float


class AuproSketch:
    """Bounds of AUPRO; maps are added one by one and not kept.

    Args:
        bits: of a score that choose its bin, 10 to 24. The default, 20, parts each octave of scores into 2048 bins
            and takes 16 MB, beside the temporaries of one map; each further bit doubles both. The interval is narrow
            if scores spread over a good part of an octave, as distances do; scores that crowd far from zero (1000.0
            to 1000.1) share few bins, and the interval says so: subtract a constant first.
        connectivity: 8 (MVTec's definition): pixels that touch at a corner are one region; 4: at an edge only.

    Example:
        >>> first, second = AuproSketch(), AuproSketch()
        >>> first.update(np.array([[0.1, 0.2], [0.3, 0.9]]), np.array([[0, 0], [0, 1]]) > 0)
        >>> second.update(np.array([[0.1, 0.2], [0.3, 0.4]]), None)
        >>> first.merge(second)
        >>> low, high = first.interval(limit=0.3)
        >>> low <= 1.0 <= high and high - low < 1e-8
        True
    """

    def __init__(self, bits: int = 20, connectivity: Literal[4, 8] = 8) -> None:
        if not 10 <= bits <= 24:
            raise InputError(f"bits={bits!r}: expected 10 to 24")
        if connectivity not in (4, 8):
            raise InputError(f"connectivity={connectivity!r}: expected 8 (MVTec's definition) or 4")
        self._bits, self._connectivity = bits, connectivity
        self._ok: _Uint64 = np.zeros(1 << bits, np.uint64)  # pixels
        self._regions: _Uint64 = np.zeros(1 << bits, np.uint64)  # shares of regions, in units of 1 / _ONE
        self._n_regions = 0

    def update(self, map: npt.ArrayLike, mask: npt.ArrayLike | None) -> None:
        """Add one image.

        Args:
            map: (H, W) finite scores, higher = more anomalous, taken as float32.
            mask: (H, W) bool, True on defects; None where there is no defect.

        Raises:
            InputError: shapes differ, the map is empty or not finite, the mask is not bool.
        """
        scores, defect = check_map(map, mask)
        ok = scores.ravel() if defect is None else scores[~defect]
        for start in range(0, len(ok), _BLOCK):
            bins = self._bins(ok[start : start + _BLOCK])
            first = int(bins.min())
            counts = np.bincount(bins - first).astype(np.uint64)
            self._ok[first : first + len(counts)] += counts
        if defect is None:
            return
        box, inside, region = label_regions(defect, self._connectivity)
        bins = self._bins(scores[box][inside])
        n_regions = int(region.max()) + 1
        if self._n_regions + n_regions >= _ONE:  # 2^32 whole regions fill 64 bits
            raise InputError(f"{self._n_regions} regions are the most that one sketch holds: begin another one")
        order = np.lexsort((-bins, region))  # region by region, from the highest bin down
        bins, region = bins[order], region[order]
        last = np.append((bins[1:] != bins[:-1]) | (region[1:] != region[:-1]), True)
        bins, region, reached = bins[last], region[last], np.flatnonzero(last) + 1
        size = np.bincount(region, weights=np.diff(reached, prepend=0)).astype(np.int64)  # (n_regions,)
        reached -= np.repeat(np.cumsum(size) - size, np.bincount(region))  # pixels of its region at or above each bin
        # Rounding what is reached, not the steps: no threshold is off by more than one unit, and the end is exact.
        share = reached.astype(np.uint64) * np.uint64(_ONE) // size[region].astype(np.uint64)
        first_of_region = np.append(True, region[1:] != region[:-1])
        step = share - np.where(first_of_region, np.uint64(0), np.roll(share, 1))
        np.add.at(self._regions, bins, step)
        self._n_regions += n_regions

    def merge(self, other: AuproSketch) -> None:
        """Add all images of another sketch.

        Raises:
            InputError: it has other bins or another connectivity.
        """
        if (self._bits, self._connectivity) != (other._bits, other._connectivity):
            raise InputError(
                f"sketches of {self._bits} and {other._bits} bits, connectivity {self._connectivity} and "
                f"{other._connectivity}: only like sketches add up"
            )
        self._ok += other._ok
        self._regions += other._regions
        self._n_regions += other._n_regions

    def interval(self, limit: float = 0.3) -> AuproInterval:
        """The bounds of AUPRO at an FPR limit for all images added so far.

        Args:
            limit: FPR limit, above 0 and at most 1.

        Returns:
            ``low <= exact <= high``; nan without a region or without an ok pixel.

        Raises:
            InputError: the limit is out of range.
        """
        if not 0 < limit <= 1:
            raise InputError(f"FPR limit {limit!r}: expected above 0 and at most 1, e.g. 0.3")
        used = np.flatnonzero(self._ok | self._regions)[::-1]
        ok = np.append(0, np.cumsum(self._ok[used]))
        if self._n_regions == 0 or ok[-1] == 0:
            return AuproInterval(float("nan"), float("nan"))
        fpr = np.minimum(ok / ok[-1], limit)  # (K + 1,) at the lower edges of the used bins
        pro = np.append(0, np.cumsum(self._regions[used])) / (_ONE * self._n_regions)
        width = np.diff(fpr) / limit
        low, high = float((width * pro[:-1]).sum()), float((width * pro[1:]).sum())
        return AuproInterval(max(low - _ROUNDING, 0.0), min(high + _ROUNDING, 1.0))

    def _bins(self, scores: _Float32) -> npt.NDArray[np.int64]:
        bins: npt.NDArray[np.int64] = (rising_bits(scores) >> np.uint32(32 - self._bits)).astype(np.int64)
        return bins
