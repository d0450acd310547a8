"""A detector has false alarms, misses and an F1 at the threshold that it is deployed with.

As in a verdict, what *exceeds* the threshold is flagged: the threshold itself is still good. Where a second, lower
threshold makes images unsure, these count neither as flagged nor as missed, and have a share of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.polylines import check_keep, check_map
from pickglass.metrics.ranking import check_scores

__all__ = ["PixelCounts", "Rates", "f1_score", "pixel_counts", "rates_at"]


class Rates(NamedTuple):
    """A threshold has these rates on a test, each 0 to 1.

    Attributes:
        f1: harmonic mean of precision and recall of what is flagged; nan without a defective image.
        false_alarm_rate: share of the good images that are flagged; nan without one.
        miss_rate: share of the defective images that are called good; nan without one.
        unsure_good_rate: share of the good images that are unsure; nan without one, or without a threshold of unsure.
        unsure_defective_rate: the same of the defective images.
    """

    f1: float
    false_alarm_rate: float
    miss_rate: float
    unsure_good_rate: float = float("nan")
    unsure_defective_rate: float = float("nan")


class PixelCounts(NamedTuple):
    """An image has this many pixels that are defective and flagged, good and flagged, defective and not flagged."""

    true: int
    false: int
    missed: int


def rates_at(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float, unsure: float | None = None) -> Rates:
    """Compute F1, false-alarm rate and miss rate of the images at thresholds that were set without them.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.
        threshold: an image is flagged if its score exceeds it.
        unsure: an image is unsure if its score exceeds this and not ``threshold``; None: no image is.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, a score is not finite, or ``unsure`` is not below
            ``threshold``.

    Example:
        >>> rates_at([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8], threshold=0.5)[:3]
        (0.6666666666666666, 0.0, 0.5)
        >>> rates_at([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8], threshold=0.5, unsure=0.2)[2:]
        (0.0, 0.5, 0.5)
    """
    truth, values = check_scores(labels, scores)
    if unsure is not None and not unsure < threshold:
        raise InputError(f"unsure={unsure!r} with threshold={threshold!r}: expected a number below the threshold")
    flagged = values > threshold
    between = np.zeros_like(flagged) if unsure is None else (values > unsure) & ~flagged
    true, false = int((flagged & truth).sum()), int((flagged & ~truth).sum())
    defective = int(truth.sum())

    def share(of: npt.NDArray[np.bool_], kind: npt.NDArray[np.bool_]) -> float:
        return int((of & kind).sum()) / int(kind.sum()) if kind.any() else float("nan")

    return Rates(
        f1_score(true, false, defective - true),
        share(flagged, ~truth),
        share(~flagged & ~between, truth),
        *(() if unsure is None else (share(between, ~truth), share(between, truth))),
    )


def pixel_counts(
    map: npt.ArrayLike, mask: npt.ArrayLike | None, threshold: float, keep: npt.ArrayLike | None = None
) -> PixelCounts:
    """Count the pixels of one image at a threshold; add counts up over images and pass them to :func:`f1_score`.

    Args:
        map: (H, W) finite scores, higher = more anomalous.
        mask: (H, W) bool, True on defects; None where there is no defect.
        threshold: a pixel is flagged if its value exceeds it.
        keep: (H, W) bool, the region of interest: pixels outside do not count. None: all count.

    Raises:
        InputError: shapes differ, the map is empty or not finite, the mask is not bool, nothing is kept.

    Example:
        >>> f1_score(*pixel_counts([[0.2, 0.6], [0.7, 0.1]], np.array([[False, False], [True, True]]), 0.5))
        0.5
    """
    scores, defect = check_map(map, mask)
    flagged = scores > threshold
    if keep is not None:
        inside, defect = check_keep(scores, defect, keep)
        flagged &= inside
    n_flagged = int(np.count_nonzero(flagged))
    if defect is None:
        return PixelCounts(0, n_flagged, 0)
    true = int(np.count_nonzero(flagged & defect))
    return PixelCounts(true, n_flagged - true, int(np.count_nonzero(defect)) - true)


def f1_score(true: float, false: float, missed: float) -> float:
    """Compute F1 from counts of true positives, false positives and false negatives; nan if nothing is defective."""
    return 2 * true / (2 * true + false + missed) if true + missed else float("nan")
