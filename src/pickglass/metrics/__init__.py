"""Metrics as pure functions over arrays; higher scores are more anomalous everywhere."""

from pickglass.metrics.ranking import F1Max, Roc, auroc, average_precision, f1_max, roc_curve
from pickglass.metrics.regions import PixelCurves, PixelResult, aupro, pixel_auroc
from pickglass.metrics.summary import by_type, image_summary

__all__ = [
    "F1Max",
    "PixelCurves",
    "PixelResult",
    "Roc",
    "aupro",
    "auroc",
    "average_precision",
    "by_type",
    "f1_max",
    "image_summary",
    "pixel_auroc",
    "roc_curve",
]
