"""The overlap of sPRO saturates, for defects without a sharp outline such as a missing part (MVTec LOCO AD).

Bergmann et al., "Beyond Dents and Scratches", IJCV 2022, section 5.2. Each defect has a saturation area s of at most
its own area: its overlap is min(TP / s, 1), as a missing screw is found once enough pixels of where it might lie are
marked. sPRO is the mean overlap of all defects at a threshold; FPR is the share at or above it of all pixels that lie
in no defect, those of good images included. AU-sPRO is the area under sPRO over FPR up to a limit, divided by it. With
s = area everywhere it is AUPRO, except that here a defect is what the data set says it is, not a connected component.

The s highest pixels of a defect settle its overlap at every threshold, so only these are kept, with a share of 1 / s
each, and everything else is as for AUPRO: exact, one image at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.polylines import RegionPixels, check_keep, check_map
from pickglass.metrics.regions import PixelCurves

__all__ = ["SaturatedCurves", "SaturatedRegion", "SaturatedResult", "saturation_area"]

_Array = np.ndarray[Any, np.dtype[Any]]
_Float64 = npt.NDArray[np.float64]


class SaturatedRegion(NamedTuple):
    """A defect has a mask, (H, W) bool, and a number of pixels that suffice; more than its area means all of it."""

    mask: npt.NDArray[np.bool_]
    saturation: int


class SaturatedResult(NamedTuple):
    """The defects of a test have these metrics.

    Attributes:
        au_spro: limit -> AU-sPRO at this FPR limit, 0 to 1.
        fpr: (P,) the sPRO curve for plotting, at most 501 points, each within 1/250 of the exact curve ...
        spro: (P,) ... rising from (0, 0) to (1, 1).
        n_regions: defects that were averaged.
        n_ok_pixels: pixels in no defect.

    Without a defect, or without an ok pixel, the areas are nan and the curve has no point.
    """

    au_spro: dict[float, float]
    fpr: _Float64
    spro: _Float64
    n_regions: int
    n_ok_pixels: int


class SaturatedCurves:
    """It computes the sPRO curve exactly; maps are added one by one and not kept.

    Args:
        beside: AUPRO's curves of the same images under the same tags, if both are wanted: the ok pixels are the same,
            and are kept there alone. What is ok in images that only ``beside`` is given counts too.

    Example:
        >>> curves = SaturatedCurves()
        >>> screw = SaturatedRegion(np.array([[True, True, False, False]]), saturation=1)
        >>> curves.update(np.array([[0.9, 0.1, 0.2, 0.3]]), [screw], tag="logical")
        >>> curves.compute(limits=[0.5]).au_spro  # one pixel above every ok pixel suffices
        {0.5: 1.0}
    """

    def __init__(self, beside: PixelCurves | None = None) -> None:
        self._pixels = RegionPixels(None if beside is None else beside.pixels)

    def update(
        self,
        map: npt.ArrayLike,
        regions: Sequence[SaturatedRegion] = (),
        tag: str = "good",
        keep: npt.ArrayLike | None = None,
    ) -> None:
        """Add one image.

        Args:
            map: (H, W) finite scores, higher = more anomalous. Kept as float32: scores that differ only beyond
                float32 become ties.
            regions: its defects; they may overlap. None of them for a good image.
            tag: group, e.g. "structural" or "logical"; "good" for good images; :meth:`compute` selects by it.
            keep: (H, W) bool, the region of interest: pixels outside are neither good nor defect. None: all count.

        Raises:
            InputError: shapes differ, the map is empty or not finite, a mask is not bool or has no pixel, a
                saturation area is not a whole number of at least 1, or nothing is kept.
        """
        scores, _ = check_map(map, None)
        counted, _ = check_keep(scores, None, keep)
        tops, ok = [np.empty(0, np.float32)], counted.copy()
        for i, (mask, saturation) in enumerate(regions):
            _, defect = check_map(scores, mask)
            if defect is None:
                raise InputError(f"region {i} of {len(regions)} has no pixel: leave it out")
            if not isinstance(saturation, (int, np.integer)) or saturation < 1:
                raise InputError(
                    f"region {i}: saturation={saturation!r}: expected a whole number of pixels, at least 1; "
                    "saturation_area() computes it"
                )
            ok &= ~defect
            inside = scores[defect & counted]
            if len(inside):
                rest = len(inside) - min(int(saturation), len(inside))
                tops.append(np.partition(inside, rest)[rest:])  # (at most saturation,)
        index = np.repeat(np.arange(len(tops) - 1), [len(top) for top in tops[1:]])
        self._pixels.add(tag, scores[ok], np.concatenate(tops), index)

    def compute(self, limits: Sequence[float] = (0.05,), tags: Collection[str] | None = None) -> SaturatedResult:
        """Compute the curve of all images added so far; more may be added afterwards.

        Args:
            limits: FPR limits, each above 0 and at most 1. MVTec LOCO AD uses 0.05.
            tags: only images with these tags, e.g. ``{"logical", "good"}``; None: all. "good" may be absent.

        Returns:
            Areas and curve; areas are nan if there is no defect or no ok pixel. Numbers of several groups are
            means over all their defects; LOCO's tables give instead the mean of the two groups' numbers.

        Raises:
            InputError: a limit is out of range, or a tag was never added.
        """
        traced = self._pixels.trace(limits, tags)
        return SaturatedResult(traced.area, traced.fpr, traced.overlap, traced.n_regions, traced.n_ok_pixels)


def saturation_area(area: int, threshold: float, relative: bool) -> int:
    """Compute a defect's saturation area from its type's entry in MVTec LOCO AD's ``defects_config.json``.

    Args:
        area: pixels of the defect, at least 1.
        threshold: ``saturation_threshold``: pixels, or a share of the area if relative.
        relative: ``relative_saturation``.

    Returns:
        1 to ``area`` pixels; a share is rounded down.

    Raises:
        InputError: the area is below 1, the threshold not above 0, or a share above 1.

    Example:
        >>> saturation_area(1000, 250, relative=False), saturation_area(1000, 0.9, relative=True)
        (250, 900)
    """
    if area < 1:
        raise InputError(f"area={area!r}: expected a defect of at least 1 pixel")
    if not threshold > 0 or (relative and threshold > 1):
        expected = "a share above 0 and at most 1" if relative else "pixels, above 0"
        raise InputError(f"threshold={threshold!r}: expected {expected}")
    return max(int(threshold * area) if relative else min(int(threshold), area), 1)
