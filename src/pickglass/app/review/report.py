"""Some images of a review make a report to hand on, the same page that ``pickglass test`` writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pickglass.app.models import AnyModel
from pickglass.app.results import Metrics, TestResult
from pickglass.app.testing.evaluate import Evaluation, evaluate
from pickglass.app.testing.telling import verdict_of
from pickglass.app.testing.test import write_report
from pickglass.data import Row, Table
from pickglass.errors import DataError
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["write_selection"]


def write_selection(
    target: Path,
    model: AnyModel,
    rows: Sequence[Row],
    names: Mapping[str, str],
    title: str,
    compute: ComputeOptions,
    progress: Progress | None = None,
) -> Path:
    """Judge images and write their report, whole or not at all.

    Args:
        target: HTML file.
        model: judges them.
        rows: the images; without a label among them the report has no metrics.
        names: what the report calls an image, by its path.
        title: what the report calls the images.
        compute: where to compute.
        progress: called with (stage, done, total); an error that it raises ends the work.

    Raises:
        DataError: none of the images can be read.
    """
    began = time.perf_counter()
    prediction = model.predict(Table(rows), progress=progress, **compute.arguments())
    seconds = time.perf_counter() - began
    failed = [(names.get(path, path), error) for path, error in prediction.failed]
    if not len(prediction):
        raise DataError(f"none of the {len(rows)} images can be read, e.g. {failed[0][0]}: {failed[0][1]}")
    known = any(row.label is not None for row in prediction.rows)
    evaluation = evaluate(prediction) if known else _without_labels(len(prediction))
    result: TestResult = {
        **evaluation.overall,
        "verdict": verdict_of(evaluation.overall, prediction.calibration),
        "next": [],
        "images_per_s": len(prediction) / seconds,
        "report": str(target),
        "by_type": evaluation.by_type,
        "left_out": {},
        "notes": list(evaluation.notes),
        "failed": [{"path": path, "error": error} for path, error in failed],
        "robustness": None,
    }
    return write_report(target, model, prediction, evaluation, result, title, progress, names)


def _without_labels(n: int) -> Evaluation:
    """Return an evaluation of images of which nobody knows whether they are good."""
    none = cast("Metrics", {**dict.fromkeys(Metrics.__annotations__), "n": n, "n_good": 0, "n_defective": 0})
    note = "It is not known which of these images are good, so there are no metrics."
    return Evaluation(none, {}, None, None, None, {}, (note,))
