"""A test has image metrics for all images and for each defect type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError
from pickglass.metrics.ranking import auroc, average_precision, f1_max

__all__ = ["by_type", "image_summary"]


def image_summary(labels: npt.ArrayLike, scores: npt.ArrayLike) -> dict[str, float]:
    """Compute image AUROC, average precision and F1-max.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.

    Returns:
        ``image_auroc``, ``average_precision``, ``f1_max``, each 0 to 1; nan unless both classes are present.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> image_summary([0, 0, 1], [0.1, 0.2, 0.9])
        {'image_auroc': 1.0, 'average_precision': 1.0, 'f1_max': 1.0}
    """
    return {
        "image_auroc": auroc(labels, scores),
        "average_precision": average_precision(labels, scores),
        "f1_max": f1_max(labels, scores).f1,
    }


def by_type(labels: npt.ArrayLike, scores: npt.ArrayLike, defects: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """Compute the image metrics of each defect type, judged against all good images.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.
        defects: N names of defect types. Those of good images do not matter; a defective image without a name
            (None) belongs to no type.

    Returns:
        Type -> what :func:`image_summary` gives for its images and all good ones, types in alphabetical order.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> by_type([0, 1, 1], [0.1, 0.9, 0.0], [None, "crack", "stain"])["stain"]["image_auroc"]
        0.0
    """
    truth, values = np.asarray(labels), np.asarray(scores)
    if truth.shape != (len(defects),) or values.shape != truth.shape:
        raise InputError(
            f"labels of shape {truth.shape}, scores of shape {values.shape} and {len(defects)} defect types: expected "
            "one of each per image"
        )
    types = sorted({defect for defect, label in zip(defects, truth, strict=True) if label == 1 and defect is not None})
    results = {}
    for name in types:
        rows = (truth == 0) | np.array([defect == name for defect in defects])  # (N,)
        results[name] = image_summary(truth[rows], values[rows])
    return results
