"""Pixel AUROC and AUPRO are computed exactly from maps that come one by one.

The definition is that of MVTec AD (Bergmann et al., IJCV 2021, section 5.2). A region is a connected component of
a ground truth mask. For every threshold the PRO value is the share of each region at or above it, averaged over all
regions of all images; FPR is the share at or above it of all pixels that lie in no region, those of good images
included. AUPRO is the area under PRO over FPR from 0 to a limit, divided by the limit; the curve is piecewise linear
with one point per distinct score, starts at (0, 0) and is interpolated at the limit.

No sort of everything is needed: ``polylines.py`` says why.

Memory: 4.5 bytes an ok pixel, 9 bytes a defect pixel, and a few megabytes that do not grow. Where
:meth:`PixelCurves.expect` is shown the images with defects beforehand, 75 bytes a defect pixel, and 200 MB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.polylines import RegionPixels, check_keep, check_map, label_regions

__all__ = ["PixelCurves", "PixelResult", "aupro", "pixel_auroc"]

_Float64 = npt.NDArray[np.float64]


class PixelResult(NamedTuple):
    """The pixels of a test have these metrics.

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
    """It computes pixel AUROC and the PRO curve exactly; maps are added one by one and not kept.

    Args:
        connectivity: 8 (MVTec's definition): pixels that touch at a corner are one region; 4: at an edge only.

    Attributes:
        pixels: what was added, sorted; :class:`~pickglass.metrics.SaturatedCurves` may share its ok pixels.

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
        self.pixels = RegionPixels()

    def expect(
        self, map: npt.ArrayLike, mask: npt.ArrayLike | None, tag: str = "good", keep: npt.ArrayLike | None = None
    ) -> None:
        """Look at an image that is added later, so that the ok pixels of all images need not be kept.

        All images with a defect have to be shown before the first is added. The curves are the same; :meth:`compute`
        then takes all tags, or "good" and one other, and there are no :meth:`ok_quantiles`.

        Args:
            map, mask, tag, keep: as :meth:`update` will be given them.

        Raises:
            InputError: as :meth:`update`, or an image was added already.
        """
        scores, defect = check_map(map, mask)
        if keep is not None:
            _, defect = check_keep(scores, defect, keep)
        if defect is not None:
            self.pixels.ok.expect(tag, scores[defect])

    def update(
        self, map: npt.ArrayLike, mask: npt.ArrayLike | None, tag: str = "good", keep: npt.ArrayLike | None = None
    ) -> None:
        """Add one image.

        Args:
            map: (H, W) finite scores, higher = more anomalous. Kept as float32: scores that differ only beyond
                float32 become ties.
            mask: (H, W) bool, True on defects; None where there is no defect.
            tag: defect type, "good" for good images; :meth:`compute` selects by it.
            keep: (H, W) bool, the region of interest: pixels outside are neither good nor defect. None: all count.

        Raises:
            InputError: shapes differ, the map is empty or not finite, the mask is not bool, nothing is kept.
        """
        scores, defect = check_map(map, mask)
        if keep is not None:
            counted, defect = check_keep(scores, defect, keep)
            ok = scores[counted if defect is None else counted & ~defect]
        else:
            ok = scores.ravel() if defect is None else scores[~defect]
        if defect is None:
            self.pixels.add(tag, ok, np.empty(0, np.float32), np.empty(0, np.int64))
            return
        box, inside, region = label_regions(defect, self._connectivity)
        self.pixels.add(tag, ok, scores[box][inside], region)

    def compute(self, limits: Sequence[float] = (0.3, 0.05), tags: Collection[str] | None = None) -> PixelResult:
        """Compute the curve of all images added so far; more may be added afterwards.

        Args:
            limits: FPR limits, each above 0 and at most 1. MVTec AD uses 0.3, MVTec AD 2 uses 0.05.
            tags: only images with these tags, e.g. ``{"crack", "good"}``; None: all. "good" may be absent.

        Returns:
            Areas and curve; areas are nan if there is no region or no ok pixel.

        Raises:
            InputError: a limit is out of range, or a tag was never added.
        """
        return PixelResult(*self.pixels.trace(limits, tags))

    def ok_quantiles(self, levels: npt.ArrayLike) -> _Float64:
        """Find the scores that about these shares of all ok pixels exceed.

        Args:
            levels: (L,) shares, 0 to 1.

        Returns:
            (L,) scores, exact up to a million pixels, within 2e-6 of the share beyond; nan without an ok pixel.
        """
        return self.pixels.ok.quantiles(levels)


def pixel_auroc(maps: Iterable[npt.ArrayLike], masks: Iterable[npt.ArrayLike | None]) -> float:
    """Compute the area under the ROC curve over all pixels of all images.

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
    """Compute the area under the per-region overlap curve up to an FPR limit, over the limit (MVTec AD's definition).

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


def _gather(maps: Iterable[npt.ArrayLike], masks: Iterable[npt.ArrayLike | None]) -> PixelCurves:
    curves, missing = PixelCurves(), object()
    for i, (scores, mask) in enumerate(zip_longest(maps, masks, fillvalue=missing)):
        if scores is missing or mask is missing:
            shorter = "maps" if scores is missing else "masks"
            raise InputError(f"the {shorter} end after {i}: expected one mask per map (None where there is no defect)")
        curves.update(scores, mask)  # type: ignore[arg-type]  # neither is the sentinel
    return curves
