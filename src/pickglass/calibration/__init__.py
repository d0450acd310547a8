"""Thresholds with a stated false-alarm rate."""

from pickglass.calibration.promises import Calibration, Verdict, highest_score

__all__ = ["Calibration", "Verdict", "highest_score"]
