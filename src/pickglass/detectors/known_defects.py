"""What a fit does with known defects once the threshold is set by good images: it says how it sees them.

The threshold is never theirs: it promises something of good parts. Where a method learned from them, their scores say
nothing of the next defect, and nothing is set by them. Where it did not, those that the threshold would miss are to be
looked at by a person: the threshold of ``unsure`` comes to lie between the lowest of them and the next good image
below, but never so low that more than a tenth of the good parts lie above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pickglass.calibration import Calibration
from pickglass.calibration.promises import set_by_hand
from pickglass.data import image_digest, known_names
from pickglass.detectors.fitting import FitPlan, Judge
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.method import Method

__all__ = ["MOST_UNSURE", "settled", "unsure_below"]

MOST_UNSURE = 0.1
"""The share of good parts that may lie above the threshold of ``unsure`` for the sake of known defects."""


@torch.no_grad()
def settled(
    method: Method, loader: FeatureLoader, plan: FitPlan
) -> tuple[Calibration | None, tuple[dict[str, Any], ...]]:
    """Judge the known defects of a fit, and set the threshold of ``unsure`` by those that were not learned.

    Args:
        method: its thresholds are set by good images; it is not changed.
        loader: reads the rows.
        plan: has the known defects.

    Returns:
        The thresholds, and what the provenance keeps of each known defect.
    """
    learned = method.learns_defects
    scores = Judge(loader, plan)([method], plan.defects)[method].scores.tolist()
    calibration = method.calibration
    if not learned and calibration is not None and calibration.image_threshold is not None:
        good = calibration.unit_scores.tolist()
        unsure = unsure_below(scores, good, calibration.image_threshold)
        calibration = calibration if unsure is None else set_by_hand(calibration, unsure=unsure)
    names = known_names([row.path for row in plan.defects])
    told = tuple(
        {
            "name": name,
            "defect": row.defect,
            "digest": image_digest(row)[:16],
            "use": "learned" if learned else "unsure",
            "score": score if math.isfinite(score) else None,
        }
        for name, row, score in zip(names, plan.defects, scores, strict=True)
    )
    return calibration, told


def unsure_below(defects: Sequence[float], good: Sequence[float], threshold: float) -> float | None:
    """Choose the threshold of ``unsure`` for known defects; None: no known defect gains by one.

    Args:
        defects: scores of known defects.
        good: the highest score of each good part.
        threshold: the image threshold.

    >>> unsure_below([9.0, 4.0], (1.0, 2.0, 3.0, 5.0), 5.0) is None  # a tenth of four images is none
    True
    >>> unsure_below([19.0, 18.5, 3.0], tuple(range(20)), 19.0)
    18.25
    """
    missed = [score for score in defects if score <= threshold]
    if not missed or not good:
        return None
    ranked = sorted(good, reverse=True)
    floor = ranked[min(len(ranked) - 1, math.floor(MOST_UNSURE * len(ranked)))]
    caught = [score for score in missed if score > floor]
    if not caught:
        return None
    lowest = min(caught)
    beneath = max(score for score in (*good, floor) if score < lowest)
    return (beneath + lowest) / 2
