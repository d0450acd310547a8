"""Thresholds have a stated false-alarm rate, and scores a scale that people can read."""

from pickglass.calibration.promises import (
    Calibration,
    Change,
    Evidence,
    Verdict,
    flagged_curve,
    usual_threshold,
)
from pickglass.calibration.scale import PValue
from pickglass.calibration.statements import PixelPromise, Promise, Wish, promised

__all__ = [
    "Calibration",
    "Change",
    "Evidence",
    "PValue",
    "PixelPromise",
    "Promise",
    "Verdict",
    "Wish",
    "flagged_curve",
    "promised",
    "usual_threshold",
]
