"""A detector has false alarms, misses and an F1 at the threshold that it is deployed with.

As in a verdict, what *exceeds* the threshold is flagged: the threshold itself is still good.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.metrics.polylines import check_keep, check_map
from pickglass.metrics.ranking import check_scores

__all__ = ["PixelCounts", "Rates", "f1_score", "pixel_counts", "rates_at"]


class Rates(NamedTuple):
    """A threshold has these rates on a test, each 0 to 1.

    Attributes:
        f1: harmonic mean of precision and recall; nan without a defective image.
        false_alarm_rate: share of the good images that are flagged; nan without one.
        miss_rate: share of the defective images that are not; nan without one.
    """

    f1: float
    false_alarm_rate: float
    miss_rate: float


class PixelCounts(NamedTuple):
    """An image has this many pixels that are defective and flagged, good and flagged, defective and not flagged."""

    true: int
    false: int
    missed: int


def rates_at(labels: npt.ArrayLike, scores: npt.ArrayLike, threshold: float) -> Rates:
    """Compute F1, false-alarm rate and miss rate of the images at a threshold that was set without them.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.
        threshold: an image is flagged if its score exceeds it.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> rates_at([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8], threshold=0.5)
        Rates(f1=0.6666666666666666, false_alarm_rate=0.0, miss_rate=0.5)
    """
    truth, values = check_scores(labels, scores)
    flagged = values > threshold
    true, false = int((flagged & truth).sum()), int((flagged & ~truth).sum())
    defective = int(truth.sum())
    good = len(truth) - defective
    nan = float("nan")
    return Rates(
        f1_score(true, false, defective - true),
        false / good if good else nan,
        (defective - true) / defective if defective else nan,
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
