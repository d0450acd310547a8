"""Measure one model in one runtime: latency, throughput, memory, and what its answers are worth.

Letters: N passes, S stages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.app.bench.flops import gflop_of
from pickglass.app.bench.stages import FORWARD, Pass, Stage, finish, stages_of, timed
from pickglass.app.jobs.peak import peak_mb
from pickglass.app.models import AnyModel, load
from pickglass.app.results import BenchRun, BenchTimes
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import Row, Table
from pickglass.errors import DataError, Failure, ImageError
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.exported import ExportedModel

__all__ = ["Job", "Protocol", "measured", "times_of"]

Protocol = Literal["files", "efficientad"]
"""``"files"``: from each file to its defects, as ``predict`` goes. ``"efficientad"``: from canvas to map."""

_FEWEST = 3  # passes, however long they take
_WARM_BATCHES = 2  # passes of several images, after those of one
_FOR_P95, _FOR_P99 = 20, 100  # passes, below which nothing is known of the tail


@dataclass(frozen=True)
class Job:
    """What is to be measured, in a process of its own.

    Attributes:
        model: model file or exported file.
        compute: the runtime (``engine``), the device, images at once, decoding threads, the largest image.
        rows: images to time, at least one; they come again and again.
        judged: labelled images that tell how good the model is; empty: nothing tells.
        protocol: what is timed.
        warm_up, repeat: passes that are not timed, and passes that are.
        longest_s: seconds after which a measurement ends with fewer passes; infinite: never.
    """

    model: str
    compute: ComputeOptions
    rows: tuple[Row, ...]
    judged: tuple[Row, ...] = ()
    protocol: Protocol = "files"
    warm_up: int = 20
    repeat: int = 200
    longest_s: float = 30.0


def measured(job: Job) -> Iterator[BenchRun]:
    """Yield what was measured, once.

    Raises:
        PickglassError: the model, the runtime or an image cannot be used.
    """
    began = time.perf_counter()
    model = load(job.model)
    _first_verdict(model, job)
    first_s = time.perf_counter() - began
    device = _device(model, job)
    # torch computes there in half precision, as in the paper
    half = job.protocol == "efficientad" and device != "cpu" and not isinstance(model, ExportedModel)
    stages = stages_of(model, job.compute, half=half)
    rows, failed = _fitting(stages, list(model.provenance.rows_to_judge(Table(job.rows))))
    at_once = _at_once(model, job)
    singles, several = [Pass((row,)) for row in rows], Pass(tuple(islice(cycle(rows), at_once)))
    if job.protocol == "efficientad":
        singles = singles[:1]
        for images in (*singles, several):
            timed(stages, images)  # what is timed begins with their canvases
        stages = [stage for stage in stages if stage.name in FORWARD]
    latency = _passes(stages, singles, job)
    fewer = replace(job, warm_up=_WARM_BATCHES, repeat=max(_FEWEST, job.repeat // at_once))
    batches = _passes(stages, [several], fewer)
    if job.protocol == "efficientad":
        rate = at_once * len(batches) / float(batches.sum())
    else:
        rate = _streamed(model, rows, job, at_once)
    peak = peak_mb()
    accuracy = _accuracy(model, job)
    total_ms = 1000 * latency.sum(1)
    yield {
        "model": job.model,
        "name": Path(job.model).name,
        "method": model.method,
        "runtime": "openvino" if job.compute.engine == "bfloat16" else job.compute.engine,
        "device": device,
        "precision": "float16" if half else _precision(model, job),
        "canvas": list(model.preprocess.size),
        "first_s": first_s,
        "latency": times_of(total_ms),
        "stages": {stage.name: times_of(1000 * latency[:, i]) for i, stage in enumerate(stages)},
        "times_ms": total_ms.round(4).tolist(),
        "batch": at_once,
        "images_per_s": rate,
        "stage_images_per_s": {stage.name: float(at_once / np.median(batches[:, i])) for i, stage in enumerate(stages)},
        "file_mb": Path(job.model).stat().st_size / 1e6,
        "peak_mb": peak,
        "gflop": gflop_of(model),
        "peak_share": None,
        "n_judged": accuracy.n,
        "image_auroc": accuracy.image_auroc,
        "aupro_30": accuracy.aupro_30,
        "failed": [{"path": path, "error": error} for path, error in dict.fromkeys((*failed, *accuracy.failed))],
    }


def _first_verdict(model: AnyModel, job: Job) -> None:
    """Judge one image as ``predict`` does, which also opens the runtime; where that fails, the next one."""
    failed: list[Failure] = []
    for row in job.rows:
        prediction = model.predict(Table([row]), **replace(job.compute, batch=1).arguments())
        if prediction.found:
            finish(prediction.found[0], prediction.calibration)
            return
        failed += prediction.failed
    raise DataError(f"{job.model} can judge none of {len(job.rows)} images:", failed)


def _fitting(stages: Sequence[Stage], rows: Sequence[Row]) -> tuple[list[Row], list[Failure]]:
    """Return the images that can be brought to the model's canvas, and the others with the reason."""
    fitting: list[Row] = []
    failed: list[Failure] = []
    for row in rows:
        try:
            timed([stage for stage in stages if stage.name in ("decode", "prepare")], Pass((row,)))
        except ImageError as error:
            failed.append(Failure(row.path, error.reason))
        else:
            fitting.append(row)
    return fitting, failed


def _device(model: AnyModel, job: Job) -> str:
    """Return the device that the model runs on."""
    if isinstance(model, ExportedModel):
        return "cpu" if job.compute.device == "auto" else job.compute.device
    return model.loader(job.compute).engine.device


def _precision(model: AnyModel, job: Job) -> str:
    if isinstance(model, ExportedModel):
        return str(model.header.get("precision", "float32"))
    return "bfloat16" if job.compute.engine == "bfloat16" else "float32"


def _at_once(model: AnyModel, job: Job) -> int:
    """Return how many images the model takes at once."""
    if isinstance(model, ExportedModel):
        return model.batch or job.compute.batch
    return model.loader(job.compute).batch  # fewer where each image has many tiles


def _passes(stages: Sequence[Stage], passes: Sequence[Pass], job: Job) -> NDArray[np.float64]:
    """Warm up, then run passes in turn; return the seconds of each stage, (N, S)."""
    _run(stages, passes, job.warm_up, job.longest_s)
    return np.stack(_run(stages, passes, job.repeat, job.longest_s))


def _run(stages: Sequence[Stage], passes: Sequence[Pass], n: int, longest_s: float) -> list[NDArray[np.float64]]:
    began = time.perf_counter()
    seconds: list[NDArray[np.float64]] = []
    for images in islice(cycle(passes), n):
        if len(seconds) >= _FEWEST and time.perf_counter() - began > longest_s:
            break
        seconds.append(timed(stages, images))
    return seconds


def _streamed(model: AnyModel, rows: Sequence[Row], job: Job, at_once: int) -> float:
    """Return images a second from the files to the defects, as ``predict`` reads them: decoded ahead in threads."""
    calibration = model.current_calibration()
    batches = max(-(-job.repeat // at_once), _FEWEST)
    table, done = Table(list(islice(cycle(rows), batches * at_once))), 0
    if isinstance(model, ExportedModel):
        model.session(job.compute, len(table))  # opened once, however many images follow
    began = time.perf_counter()
    for found in model.stream(table, **job.compute.arguments()):
        if isinstance(found, Failure):
            raise DataError(f"{job.model} cannot judge an image:", [found])
        finish(found, calibration)
        done += 1
        late = done >= _FEWEST * at_once and time.perf_counter() - began > job.longest_s
        if late and done % at_once == 0:  # not within a batch, whose other images were judged already
            break
    return done / (time.perf_counter() - began)


def times_of(ms: NDArray[np.float64]) -> BenchTimes:
    """Sum up the milliseconds (N,) of N passes; a percentile is a time that was measured, at or above that share.

    >>> times_of(np.arange(1.0, 101.0))
    {'n': 100, 'mean_ms': 50.5, 'median_ms': 50.5, 'p95_ms': 96.0, 'p99_ms': 100.0}
    """
    n = len(ms)
    return {
        "n": n,
        "mean_ms": float(ms.mean()),
        "median_ms": float(np.median(ms)),
        "p95_ms": float(np.percentile(ms, 95, method="higher")) if n >= _FOR_P95 else None,
        "p99_ms": float(np.percentile(ms, 99, method="higher")) if n >= _FOR_P99 else None,
    }


class _Accuracy(NamedTuple):
    """What a model's answers are worth on n images; None where that is not known."""

    n: int = 0
    image_auroc: float | None = None
    aupro_30: float | None = None
    failed: tuple[Failure, ...] = ()


def _accuracy(model: AnyModel, job: Job) -> _Accuracy:
    """Judge the labelled images."""
    if not job.judged:
        return _Accuracy()
    prediction = model.predict(Table(job.judged), **job.compute.arguments())
    if not prediction.found:
        return _Accuracy(failed=prediction.failed)
    found = evaluate(prediction)
    return _Accuracy(len(prediction), found["image_auroc"], found["aupro_30"], prediction.failed)
