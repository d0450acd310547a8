"""Do the cells of one group of a study: each is a fit and a test, all on one backbone pass."""

from __future__ import annotations

import json
import platform
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from pickglass.app.fit import build
from pickglass.app.jobs.peak import peak_mb, reset_peak
from pickglass.app.pages.images import colour_range
from pickglass.app.pages.study import JudgedImage
from pickglass.app.study.cells import Cell
from pickglass.app.study.store import Outcome, Picture
from pickglass.app.testing.evaluate import Evaluation, evaluate
from pickglass.app.testing.sampling import choose_images
from pickglass.data import Dataset, Row, load_datasets
from pickglass.errors import DataError, PickglassError, WeightsMissing
from pickglass.features.shared import SharedFeatures
from pickglass.metrics import f1_max
from pickglass.metrics.catalogue import WITHOUT_THRESHOLD
from pickglass.result import Found, Prediction
from pickglass.runtime.compute import ComputeOptions

__all__ = ["GroupTask", "run_group", "stored_image"]


@dataclass(frozen=True)
class GroupTask:
    """Cells of one group, and how they are done.

    Attributes:
        cells: cells of one group; see :attr:`pickglass.app.study.cells.Cell.group`.
        compute: where to compute.
        memory_gb: budget; half of it for the shared features, half for what a method holds.
        images: how many test images are kept for the gallery.
        threads: how many torch uses; None: its own choice.
    """

    cells: tuple[Cell, ...]
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    memory_gb: float = 4.0
    images: int = 10
    threads: int | None = None


def run_group(task: GroupTask) -> Iterator[Outcome]:
    """Yield the outcome of each cell, in order, as soon as it is done; an error ends its own cell alone."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    with ExitStack() as stack:
        common: _Common | None = None
        for cell in task.cells:
            began = time.perf_counter()
            reset_peak()
            try:
                if common is None:
                    common = stack.enter_context(_Common(task))
                values, pictures = _run(cell, task, common)
                outcome = Outcome(cell.key, "done", values, pictures)
            except WeightsMissing as error:
                outcome = Outcome(cell.key, "missing", {"error": str(error)})
            except PickglassError as error:
                outcome = Outcome(cell.key, "failed", {"error": f"{type(error).__name__}: {error}"})
            except Exception:  # whatever a method, a library or a full machine throws: the others go on
                outcome = Outcome(cell.key, "failed", {"error": traceback.format_exc()})
            outcome.values.update(
                total_s=time.perf_counter() - began,
                peak_mb=peak_mb(),
                finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                versions=json.dumps(_versions()),
            )
            yield outcome


class _Common:
    """The data set and its features, which the cells of a group share."""

    def __init__(self, task: GroupTask) -> None:
        first = task.cells[0]
        sets = load_datasets(first.root, first.layout, first.group_by)
        if first.dataset not in sets:
            raise DataError(f"{first.root} no longer holds the data set {first.dataset!r}, but {', '.join(sets)}")
        self.dataset: Dataset = sets[first.dataset]
        if not self.dataset.test:
            raise DataError(f"{first.root}, {first.dataset}: the data set has no test images to judge by")
        layers = [layer for cell in task.cells for layer in cell.layers]
        seed, n = first.seed, len(self.dataset.table)
        self.features = SharedFeatures(first.backbone, first.weights, seed, layers, n, task.memory_gb / 2)

    def __enter__(self) -> _Common:
        return self

    def __exit__(self, *_: object) -> None:
        self.features.close()


def _run(cell: Cell, task: GroupTask, common: _Common) -> tuple[dict[str, Any], tuple[Picture, ...]]:
    own = {"backbone": cell.backbone, "layers": cell.layers, "weights": cell.weights, "size": cell.size}
    detector = build(cell.method, settings={**json.loads(cell.settings), **own})
    detector.shared_features = common.features
    detector.extractor = common.features.extractor_of(detector.read_layers)
    run = task.compute.arguments()
    spent, began = common.features.seconds, time.perf_counter()
    # thresholds play no part in the metrics of a study, so every good image may teach
    detector.fit(common.dataset.train, calibrate=0.0, seed=cell.seed, memory_gb=task.memory_gb / 2, **run)
    fitted = time.perf_counter()
    prediction = detector.predict(common.dataset.test, **run)
    judged = time.perf_counter()
    if not len(prediction):
        raise DataError(f"{cell.dataset}: none of the test images can be read:", prediction.failed)
    evaluation = evaluate(prediction)
    known = ("n_fit", "n_validate", "data_sha256", "backbone_weights", "device", "engine", "details")
    by_type = {
        kind: {name: value for name, value in own.items() if name in WITHOUT_THRESHOLD}
        for kind, own in evaluation.by_type.items()
    }
    values = {
        "n": evaluation["n"],
        "n_unread": len(prediction.failed),
        **{name: evaluation[name] for name in WITHOUT_THRESHOLD},
        "fit_s": fitted - began,
        "predict_s": judged - fitted,
        "backbone_s": common.features.seconds - spent,
        "provenance": json.dumps({name: getattr(detector.provenance, name) for name in known} | {"by_type": by_type}),
    }
    return values, _pictures(prediction, evaluation, common.dataset, task.images)


def _pictures(prediction: Prediction, evaluation: Evaluation, dataset: Dataset, images: int) -> tuple[Picture, ...]:
    """Keep the images of the gallery, the same ones whatever the detector."""
    chosen = {dataset.test[i].path for i in choose_images(dataset.test, images)}
    low, high = colour_range(None, prediction.maps)
    labels = np.array([-1 if row.label is None else row.label for row in prediction.rows])
    known = labels >= 0
    best = f1_max(labels[known], prediction.scores[known]).threshold
    return tuple(
        Picture(
            found.row.path,
            json.dumps(
                {
                    "label": found.row.label,
                    "defect": found.row.defect,
                    "masks": list(found.row.masks),
                    "size": found.size,
                    "window": found.window,
                    "score": found.score,
                    "threshold": None if np.isnan(best) else best,
                    "low": low,
                    "high": high,
                    "shape": found.map.shape,
                }
            ),
            # float16 ends at 65,504; colours need no more than three digits
            zlib.compress(((found.map - low) / (high - low)).astype(np.float16).tobytes()),
        )
        for found in prediction
        if found.row.path in chosen and found.row.pixels is None
    )


def stored_image(picture: Picture) -> JudgedImage:
    """Return an image as a cell judged it, its map as shares of the cell's range of colours."""
    about = json.loads(picture.about)
    values = np.frombuffer(zlib.decompress(picture.map), np.float16).reshape(about["shape"]).astype(np.float32)
    row = Row(picture.path, label=about["label"], defect=about["defect"], mask=tuple(about["masks"]) or None)
    found = Found(row, about["score"], values, tuple(about["size"]), tuple(about["window"]))
    return JudgedImage(found, about["threshold"])


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("pickglass", "torch", "torchvision", "timm", "openvino", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
