"""What each command prints with ``--json``: one TypedDict a command. Metrics in 0..1, boxes [x, y, w, h] in pixels of
the original image, absent = null."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

__all__ = [
    "DemoResult",
    "DemoWithCloth",
    "Failed",
    "FitResult",
    "ImageResult",
    "InfoResult",
    "Metrics",
    "PredictResult",
    "TestResult",
]


class Failed(TypedDict):
    """One image that could not be read."""

    path: str
    error: str


class FitResult(TypedDict):
    """``pickglass fit``."""

    model: str
    method: str
    n_fit: int
    n_validate: int
    n_calibrate: int
    fit_s: float
    details: dict[str, Any]


class Metrics(TypedDict):
    """The metrics of a set of images; null where they are undefined, e.g. without defective images or masks.

    ``f1``, ``false_alarm_rate``, ``miss_rate`` and ``pixel_f1`` are those at the model's own thresholds, null without
    a calibration. ``aupimo`` is the mean over the defective images. ``intervals``: metric -> [low, high], the 95 %
    bootstrap interval; null if none were asked for.
    """

    n: int
    image_auroc: float | None
    average_precision: float | None
    f1_max: float | None
    pixel_auroc: float | None
    aupro_30: float | None
    aupro_05: float | None
    aupimo: float | None
    f1: float | None
    false_alarm_rate: float | None
    miss_rate: float | None
    pixel_f1: float | None
    intervals: dict[str, list[float]] | None


class TestResult(Metrics):
    """``pickglass test``. ``by_type``: each defect type with all good images."""

    images_per_s: float
    report: str | None
    by_type: dict[str, Metrics]
    failed: list[Failed]


class ImageResult(TypedDict):
    """One image of ``pickglass predict``."""

    path: str
    score: float
    verdict: Literal["good", "bad"] | None
    boxes: list[list[int]]
    p_value: float | None
    p_value_log10: float | None
    p_value_extrapolated: bool | None


class PredictResult(TypedDict):
    """``pickglass predict``."""

    results: list[ImageResult]
    failed: list[Failed]
    stale: bool


class InfoResult(TypedDict):
    """``pickglass info``: ``kind`` says whether ``about`` describes a model (its header) or a data set."""

    kind: Literal["model", "data"]
    path: str
    about: dict[str, Any]


class DemoResult(TypedDict):
    """``pickglass demo``."""

    folder: str
    model: str
    fit: FitResult
    test: TestResult


class DemoWithCloth(DemoResult):
    """``pickglass demo``: the photographs, and the same four for the cloth."""

    cloth: DemoResult
