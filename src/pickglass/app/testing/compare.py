"""Several models on the same test images: their metrics in one table, and the same images side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Unpack

from pickglass.app.pages.compare import write_compare
from pickglass.app.results import CompareResult, ModelMetrics
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import MAX_PIXELS, Table, load_dataset, with_roi
from pickglass.data.files import output_path
from pickglass.detectors.compute import ComputeArguments, Progress
from pickglass.errors import DataError, Failure, InputError
from pickglass.methods import Detector, load
from pickglass.result import Prediction

__all__ = ["choose_images", "compare"]


def compare(
    models: Sequence[str | Path],
    data: str | Path,
    report: str | Path | None = None,
    *,
    images: int = 10,
    layout: str | None = None,
    group_by: str | None = None,
    roi: str | Path | None = None,
    progress: Progress | None = None,
    **running: Unpack[ComputeArguments],
) -> CompareResult:
    """Judge several models on the test images of one folder.

    Args:
        models: model files, in the order of the columns.
        data: folder in any layout that :func:`pickglass.load_dataset` knows.
        report: HTML file to write: a table of metrics, and the same images side by side.
        images: how many images the page shows; see :func:`choose_images`.

    The others as in :func:`pickglass.app.testing.test.test`. An image that one model cannot take is left out for all.

    Raises:
        InputError: a model is named twice.
        DataError: no test image that all models can take.
    """
    paths = [Path(model) for model in models]
    if len(set(paths)) < len(paths):
        raise InputError(f"models {[str(path) for path in paths]} name one twice: name each once")
    page = None if report is None else output_path(report, ".html")
    dataset = load_dataset(data, layout, group_by)
    test = with_roi(dataset.test, roi)
    predictions: list[Prediction] = []
    names: list[str] = []
    speeds: list[float] = []
    for path in paths:
        detector = load(path)
        names.append(_name(detector, path, names))
        detector.predict(test[:1], **running)  # sets the engine up, which images_per_s does not count
        began = time.perf_counter()
        predictions.append(detector.predict(test, progress=progress, **running))
        speeds.append(len(predictions[-1]) / (time.perf_counter() - began))
    failures = {f.path: f for prediction in predictions for f in prediction.failed}
    predictions = [_without(prediction, failures) for prediction in predictions]
    if not len(predictions[0]):
        raise DataError(f"{data}: there is no test image that all models can take:", list(failures.values()))
    judged: list[ModelMetrics] = [
        {"model": str(path), "name": name, "images_per_s": speed, **evaluate(prediction).overall}
        for path, name, speed, prediction in zip(paths, names, speeds, predictions, strict=True)
    ]
    result: CompareResult = {
        "models": judged,
        "report": None if page is None else str(page),
        "failed": [{"path": f.path, "error": f.error} for f in failures.values()],
    }
    if page is not None:
        chosen = choose_images(Table(predictions[0].rows), images)
        title, limit = f"{dataset.name}: {len(paths)} models", running.get("max_pixels", MAX_PIXELS)
        write_compare(page, title, judged, predictions, chosen, result["failed"], limit)
    return result


def choose_images(table: Table, n: int) -> list[int]:
    """Which images to look at: the types of defects in turn, and every fifth one a good image; in a fixed order."""
    kinds: dict[tuple[int | None, str | None], list[int]] = {}
    for i, row in enumerate(table):
        kinds.setdefault((row.label, row.defect), []).append(i)
    good = kinds.pop((0, None), [])
    turns = [[own[round(k * (len(own) - 1) / max(1, n))] for own in kinds.values()] for k in range(n)]
    seen = dict.fromkeys(i for turn in turns for i in turn)
    rest = dict.fromkeys(i for own in kinds.values() for i in own)
    defective = [*seen, *(i for i in rest if i not in seen)]
    n_good = min(len(good), max(n // 5, n - len(defective)))
    step = max(1, len(good) // max(1, n_good))
    return [*defective[: n - n_good], *good[::step][:n_good]]


def _name(detector: Detector, path: Path, taken: Sequence[str]) -> str:
    name = detector.method
    return name if name not in taken else f"{name} ({path.stem})"


def _without(prediction: Prediction, failures: dict[str, Failure]) -> Prediction:
    found = tuple(f for f in prediction.found if f.row.path not in failures)
    return Prediction(found, prediction.failed, prediction.calibration)
