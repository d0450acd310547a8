"""AUROC, average precision and F1-max say how well scores rank defective images above good ones.

N is the number of images. All of it follows from one table: at each distinct score, taken from the highest
down, how many defective and how many good images score at least that much. Images of equal score enter
together, so their order never matters. The values equal scikit-learn's, against which they are tested (its
``roc_curve`` gives these points with ``drop_intermediate=False``); the core does without scikit-learn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError

__all__ = ["F1Max", "Roc", "auroc", "average_precision", "check_scores", "f1_max", "roc_curve"]

_Array = np.ndarray[Any, np.dtype[Any]]


class Roc(NamedTuple):
    """A ROC curve has one point per distinct score after the start (0, 0).

    Attributes:
        fpr: (K + 1,) share of the good images that score at least the threshold, rising from 0 to 1.
        tpr: (K + 1,) share of the defective images that do.
        thresholds: (K + 1,) falling, the first infinite.
    """

    fpr: npt.NDArray[np.float64]
    tpr: npt.NDArray[np.float64]
    thresholds: npt.NDArray[np.float64]


class F1Max(NamedTuple):
    """The best F1 comes with the highest threshold that reaches it (flag if score >= threshold)."""

    f1: float
    threshold: float


class _Counts(NamedTuple):
    """Counts at each distinct score from the highest down, each (K,), give every curve."""

    true: npt.NDArray[np.int64]
    false: npt.NDArray[np.int64]
    thresholds: npt.NDArray[np.float64]

    @property
    def one_class(self) -> bool:
        return len(self.true) == 0 or self.true[-1] == 0 or self.false[-1] == 0


def check_scores(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Check labels and scores, and return them as (N,) bool and (N,) float64.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    truth: _Array = np.asarray(labels)
    raw: _Array = np.asarray(scores)
    if truth.ndim != 1 or truth.shape != raw.shape:
        raise InputError(
            f"labels of shape {truth.shape} and scores of shape {raw.shape}: expected one label and one score per "
            "image, both of shape (N,)"
        )
    wrong = truth[~np.isin(truth, (0, 1))] if truth.dtype.kind in "biuf" else truth[:1]
    if len(wrong):
        raise InputError(f"label {wrong[0]!r}: expected 0 (good) or 1 (defective); leave out images of unknown label")
    if len(raw) and raw.dtype.kind not in "iuf":
        raise InputError(f"scores of type {raw.dtype}: expected numbers")
    values = raw.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"score {values[bad[0]]} at index {bad[0]} ({len(bad)} of {len(values)} are not finite): leave out failed "
            "images, or correct what produced the score"
        )
    return truth.astype(bool), values


def _count(labels: npt.ArrayLike, scores: npt.ArrayLike) -> _Counts:
    truth, values = check_scores(labels, scores)
    order = np.argsort(-values, kind="stable")
    truth, values = truth[order], values[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if len(values) else order  # (K,)
    true = np.cumsum(truth, dtype=np.int64)[last]
    return _Counts(true, last + 1 - true, values[last])


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Roc:
    """Compute the ROC curve of the images.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.

    Returns:
        The points; the rate of a class that has no image is nan throughout.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> roc_curve([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]).tpr.tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    true, false, thresholds = _count(labels, scores)
    rates = []
    for counts in (false, true):
        total = counts[-1] if len(counts) else 0
        start_and_counts = np.append(0.0, counts)  # (K + 1,)
        rates.append(start_and_counts / total if total else np.full_like(start_and_counts, np.nan))
    return Roc(rates[0], rates[1], np.append(np.inf, thresholds))


def auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Compute the area under the ROC curve: the chance that a defective image outranks a good one, ties one half.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.

    Returns:
        0 to 1; nan unless both classes are present.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> auroc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
    """
    fpr, tpr, _ = roc_curve(labels, scores)
    if len(fpr) == 1:  # no image: an area of 0 would be a claim
        return float("nan")
    return float((np.diff(fpr) * (tpr[1:] + tpr[:-1])).sum() / 2)


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Compute average precision: the precision at each distinct score, weighted by the recall gained there.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.

    Returns:
        0 to 1; nan unless both classes are present.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> round(average_precision([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]), 4)
        0.8333
    """
    counts = _count(labels, scores)
    if counts.one_class:
        return float("nan")
    gained = np.diff(counts.true, prepend=0) / counts.true[-1]
    return float((gained * (counts.true / (counts.true + counts.false))).sum())


def f1_max(labels: npt.ArrayLike, scores: npt.ArrayLike) -> F1Max:
    """Find the best F1 over all thresholds. It is chosen on the very labels it is judged by, so it is optimistic.

    Args:
        labels: (N,) 0 good, 1 defective.
        scores: (N,) finite, higher = more anomalous.

    Returns:
        F1 in 0 to 1 and its threshold; both nan unless both classes are present.

    Raises:
        InputError: lengths differ, a label is neither 0 nor 1, or a score is not finite.

    Example:
        >>> f1_max([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        F1Max(f1=0.8, threshold=0.4)
    """
    counts = _count(labels, scores)
    if counts.one_class:
        return F1Max(float("nan"), float("nan"))
    f1 = 2 * counts.true / (counts.true + counts.false + counts.true[-1])  # 2 TP / (flagged + defective)
    best = int(np.argmax(f1))
    return F1Max(float(f1[best]), float(counts.thresholds[best]))
