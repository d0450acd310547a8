"""One pass over maps and masks, at the original resolution, gathers all that the pixel metrics need."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.data import Row, read_marks, read_regions
from pickglass.errors import ImageError
from pickglass.metrics import (
    PimoCurves,
    PixelCurves,
    PixelResult,
    SaturatedCurves,
    SaturatedRegion,
    SaturatedResult,
    f1_score,
    pixel_counts,
    saturation_area,
)
from pickglass.result import Prediction

__all__ = ["LIMITS", "LOCO_LIMIT", "Pixels", "Truth", "read_pixels", "read_truth"]

LIMITS = (0.3, 0.05)
"""FPR limits of AUPRO: MVTec AD's and MVTec AD 2's."""
LOCO_LIMIT = 0.05
"""FPR limit of AU-sPRO, MVTec LOCO AD's."""

_KEPT = 1 << 28  # pixels of all images, up to which their scores are kept: 1.2 GB


class Truth(NamedTuple):
    """The ground truth of the pixels of an image; None where it has no mask.

    Attributes:
        mask: (H, W) bool, True on defects.
        regions: its defects with their saturation areas; None where the data set does not give them.
        soft: whether the mask had soft edges, which were cut at half.
    """

    mask: npt.NDArray[np.bool_] | None
    regions: list[SaturatedRegion] | None
    soft: bool = False


def read_truth(row: Row, size: tuple[int, int]) -> Truth:
    """Read the mask of an image of ``size`` (H, W), each of its files once.

    Raises:
        ImageError: a mask cannot be read or does not fit, or that of a good image marks defects.
    """
    if not row.has_mask:
        return Truth(None, None)
    if not row.saturation:
        if row.mask is None:  # outlines
            truth = Truth(row.truth(size), None)
        else:
            marks = read_marks(row.mask, size)
            truth = Truth(marks.pixels, None, marks.soft)
    else:
        mask, regions = np.zeros(size, np.bool_), []
        for region, kind in read_regions(row, size):
            mask |= region
            area = saturation_area(int(region.sum()), kind.threshold, kind.relative)
            regions.append(SaturatedRegion(region, area))
        truth = Truth(mask, regions)
    if row.label == 0 and truth.mask is not None and truth.mask.any():
        files = ", ".join(row.masks) or "the mask in memory"
        raise ImageError(files, f"marks defects in {row.path}, which is labelled good: correct one of them")
    return truth


class Pixels(NamedTuple):
    """The counts that one pass over the maps leaves, for the M images of N labelled ones that take part."""

    curves: PixelCurves
    saturated: SaturatedCurves
    place: npt.NDArray[np.int64]  # (M,)
    source: npt.NDArray[np.int64]  # (M,) the same images' places in the prediction
    counts: npt.NDArray[np.int64] | None  # (M, 3) pixel counts at the pixel threshold
    aupimo: npt.NDArray[np.float64]  # (N,) nan for good images and for those without a mask
    finest: float  # step of AUPIMO's false-positive rate
    kinds: frozenset[str | None]  # types of which at least one image has a mask
    with_areas: frozenset[str | None]  # types of which at least one image has saturation areas

    def trace(self, kind: str | None) -> PixelResult | None:
        """Compute the curve of all images (None), or of one type and the good ones; None if that type has no mask."""
        if kind is None:
            return self.curves.compute(LIMITS)
        return self.curves.compute(LIMITS, {_tag(kind), "good"}) if kind in self.kinds else None

    def trace_saturated(self, kind: str | None) -> SaturatedResult | None:
        """Compute the same curve for sPRO; None without saturation areas."""
        if kind is None:
            return self.saturated.compute((LOCO_LIMIT,)) if self.with_areas else None
        return self.saturated.compute((LOCO_LIMIT,), {_tag(kind), "good"}) if kind in self.with_areas else None

    def f1(self, weight: npt.NDArray[np.int64]) -> float:
        """Compute the F1 of the pixels as if labelled image i counted ``weight[i]`` times, (N,)."""
        return float("nan") if self.counts is None else f1_score(*(weight[self.place] @ self.counts).tolist())


def read_pixels(
    prediction: Prediction, rows: Sequence[Row], labelled: Sequence[int], quantiles: bool = False
) -> tuple[Pixels | None, list[str]]:
    """Read all maps and masks once; return the counts, None without a mask, and notes for the reader.

    Where there are so many pixels that they should not be kept, those of defects are read once more, beforehand. Warns
    of masks with soft edges.

    Args:
        prediction: N images.
        rows: their truth, in the same order.
        labelled: places in the prediction of the images to read.
        quantiles: whether the quantiles of the good pixels are wanted, for which all have to be kept.
    """
    curves, pimo = PixelCurves(), PimoCurves(n_good=sum(rows[i].label == 0 for i in labelled))
    saturated = SaturatedCurves(beside=curves)
    threshold = None if prediction.calibration is None else prediction.calibration.pixel_threshold
    place: list[int] = []
    in_pimo: list[int] = []
    counts: list[Any] = []
    with_areas: set[str | None] = set()
    without = boxed = masks = soft = 0
    if not quantiles and sum(math.prod(prediction.found[i].size) for i in labelled) > _KEPT:
        for i in labelled:
            if rows[i].label == 1 and rows[i].has_mask:
                found = prediction.found[i]
                truth = read_truth(rows[i], found.size)
                curves.expect(found.full_map(), truth.mask, _tag(rows[i].defect), found.inside())
    for n, i in enumerate(labelled):
        row = rows[i]
        if row.label == 1 and not row.has_mask:
            without += 1
            boxed += bool(row.boxes)
            continue
        mask, regions, is_soft = read_truth(row, prediction.found[i].size)
        masks += mask is not None
        soft += is_soft
        full, keep = prediction.map(i), prediction.found[i].inside()
        tag = _tag(row.defect) if row.label == 1 else "good"
        curves.update(full, mask, tag, keep)
        if regions is not None:
            saturated.update(full, regions, tag, keep)
            with_areas.add(row.defect)
        if row.label == 0 or (mask is not None and mask.any()):  # a defective image with an empty mask is no good one
            pimo.update(full, mask, keep)
            in_pimo.append(n)
        if threshold is not None:
            counts.append(pixel_counts(full, mask, threshold, keep))
        place.append(n)
    notes = [f"{without} defective images have no mask and are left out of the pixel metrics."] if without else []
    if boxed:
        notes.append(f"{boxed} of them have boxes, which say where a defect is and not which pixels it has.")
    if soft:
        notes.append(f"Masks with soft edges or the noise of JPEG ({soft}) are cut at half of their highest value.")
        warnings.warn(notes[-1], UserWarning, stacklevel=3)
    if masks == 0:
        return None, notes
    by_image, aupimo = pimo.compute(), np.full(len(labelled), np.nan)
    aupimo[in_pimo] = by_image.scores
    source = np.array(labelled)[place]
    kinds = frozenset(rows[i].defect for i in source if rows[i].label == 1)
    pixels = Pixels(
        curves=curves,
        saturated=saturated,
        place=np.array(place),
        source=source,
        counts=np.array(counts) if counts else None,
        aupimo=aupimo,
        finest=by_image.finest,
        kinds=kinds,
        with_areas=frozenset(with_areas),
    )
    return pixels, notes


def _tag(defect: str | None) -> str:
    """Name a type for the curves, apart from "good", which a type may be called too."""
    return f"type:{defect}"
