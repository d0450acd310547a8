"""Metrics are pure functions over arrays; higher scores are more anomalous everywhere."""

from pickglass.metrics.deployed import PixelCounts, Rates, f1_score, pixel_counts, rates_at
from pickglass.metrics.intervals import (
    OK_LEVELS,
    CountTables,
    Intervals,
    bootstrap,
    group_weights,
    resampled,
)
from pickglass.metrics.pimo import PimoCurves, PimoResult
from pickglass.metrics.ranking import F1Max, Roc, auroc, average_precision, f1_max, roc_curve
from pickglass.metrics.regions import PixelCurves, PixelResult, aupro, pixel_auroc
from pickglass.metrics.saturated import (
    SaturatedCurves,
    SaturatedRegion,
    SaturatedResult,
    saturation_area,
)
from pickglass.metrics.summary import by_type, image_summary

__all__ = [
    "OK_LEVELS",
    "CountTables",
    "F1Max",
    "Intervals",
    "PimoCurves",
    "PimoResult",
    "PixelCounts",
    "PixelCurves",
    "PixelResult",
    "Rates",
    "Roc",
    "SaturatedCurves",
    "SaturatedRegion",
    "SaturatedResult",
    "aupro",
    "auroc",
    "average_precision",
    "bootstrap",
    "by_type",
    "f1_max",
    "f1_score",
    "group_weights",
    "image_summary",
    "pixel_auroc",
    "pixel_counts",
    "rates_at",
    "resampled",
    "roc_curve",
    "saturation_area",
]
