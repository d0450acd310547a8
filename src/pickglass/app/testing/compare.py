"""Compare several models on the same test images: their metrics, and the same images side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pickglass.app.models import AnyModel, load
from pickglass.app.pages.compare import write_compare
from pickglass.app.results import CompareResult, ModelMetrics
from pickglass.app.testing.evaluate import evaluate
from pickglass.app.testing.sampling import choose_images
from pickglass.app.testing.saving import saved_arrays, write_arrays
from pickglass.app.testing.selection import select, sentences
from pickglass.data import DataSource, Table
from pickglass.data.files import output_path
from pickglass.errors import DataError, Failure, InputError
from pickglass.result import Prediction
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.model_header import read_model_header
from pickglass.runtime.provenance import Provenance

__all__ = ["compare"]


def compare(
    models: Sequence[str | Path],
    data: DataSource | str | Path,
    report: str | Path | None = None,
    *,
    save: str | Path | None = None,
    images: int = 10,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> CompareResult:
    """Judge several models on the test images of one folder.

    Args:
        models: model files, in the order of the columns.
        data: folder in any layout that :func:`pickglass.load_dataset` knows, or how to read it.
        report: HTML file to write: a table of metrics, and the same images side by side.
        save: ``.npz`` to write: the arrays of :func:`pickglass.app.testing.saving.saved_arrays` of each model, under
            its name and a slash, e.g. ``patchcore/scores``.
        images: how many images the page shows; see
            :func:`pickglass.app.testing.sampling.choose_images`.
        compute: where to compute.
        progress: called with (stage, done, total).

    An image that one model cannot take is left out for all.

    Raises:
        InputError: a model is named twice.
        DataError: no test image that all models can take.
    """
    paths = [Path(model) for model in models]
    if len(set(paths)) < len(paths):
        raise InputError(f"models {[str(path) for path in paths]} name one twice: name each once")
    page = None if report is None else output_path(report, ".html")
    archive = None if save is None else output_path(save, ".npz")
    source, run = DataSource.of(data), compute or ComputeOptions()
    dataset = source.load(training=False)
    chosen = select(dataset, [Provenance.from_json(read_model_header(path)["provenance"]) for path in paths])
    if not chosen.table:
        raise DataError(f"{source.path} has no image to judge the models by. {' '.join(sentences(chosen.left_out))}")
    test = source.placed(chosen.table)
    predictions: list[Prediction] = []
    names: list[str] = []
    speeds: list[float] = []
    for path in paths:
        detector = load(path)
        names.append(_name(detector, path, names))
        detector.predict(test[:1], **run.arguments())  # sets the engine up, which images_per_s does not count
        began = time.perf_counter()
        predictions.append(detector.predict(test, progress=progress, **run.arguments()))
        speeds.append(len(predictions[-1]) / (time.perf_counter() - began))
    failures = {f.path: f for prediction in predictions for f in prediction.failed}
    predictions = [_without(prediction, failures) for prediction in predictions]
    if not len(predictions[0]):
        raise DataError(f"{source.path}: there is no test image that all models can take:", list(failures.values()))
    evaluations = [evaluate(prediction) for prediction in predictions]
    judged: list[ModelMetrics] = [
        {"model": str(path), "name": name, "images_per_s": speed, **evaluation.overall}
        for path, name, speed, evaluation in zip(paths, names, speeds, evaluations, strict=True)
    ]
    if archive is not None:
        arrays = map(saved_arrays, predictions, evaluations)
        write_arrays(archive, dict(zip(names, arrays, strict=True)))
    result: CompareResult = {
        "models": judged,
        "report": None if page is None else str(page),
        "left_out": chosen.left_out,
        "failed": [{"path": f.path, "error": f.error} for f in failures.values()],
    }
    if page is not None:
        shown = choose_images(Table(predictions[0].rows), images)
        title = f"{dataset.name}: {len(paths)} models"
        notes = sentences(result["left_out"])
        write_compare(page, title, judged, predictions, shown, result["failed"], notes, run.max_pixels)
    return result


def _name(detector: AnyModel, path: Path, taken: Sequence[str]) -> str:
    name = detector.method
    wished = [name, f"{name} ({path.stem})", *(f"{name} ({path.stem}, {i})" for i in range(2, len(taken) + 2))]
    return next(one for one in wished if one not in taken)


def _without(prediction: Prediction, failures: dict[str, Failure]) -> Prediction:
    found = tuple(f for f in prediction.found if f.row.path not in failures)
    return Prediction(found, prediction.failed, prediction.calibration)
