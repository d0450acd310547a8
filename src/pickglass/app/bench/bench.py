"""Compare models, runtimes and precisions on this machine, each in a process of its own, one after the other."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from pickglass.app.bench.images import BenchImages, BenchModel, images_for, model_at
from pickglass.app.bench.machine import describe_machine
from pickglass.app.bench.measure import Job, Protocol, measured
from pickglass.app.bench.outputs import writer
from pickglass.app.bench.stages import FORWARD
from pickglass.app.jobs.executors import Event, LocalExecutor
from pickglass.app.results import BenchMachine, BenchResult, BenchRun
from pickglass.data import DataSource
from pickglass.data.files import scratch_folder
from pickglass.errors import InputError
from pickglass.runtime.compute import ComputeOptions, EngineName, Progress

__all__ = ["BenchRequest", "bench"]

_BUSY = 0.5  # processes that want a core, for each core


class _Numbers(NamedTuple):
    """Passes that are not timed, passes that are, images at once, and seconds after which a measurement ends."""

    warm_up: int
    repeat: int
    batch: int
    longest_s: float


_DEFAULTS: dict[Protocol, _Numbers] = {
    "files": _Numbers(20, 200, 8, 30.0),
    "efficientad": _Numbers(1000, 1000, 16, math.inf),
}
_SUITE = _Numbers(10, 100, 4, 2.0)  # by "files", where no model is given: it ends within two minutes


@dataclass(frozen=True)
class BenchRequest:
    """What to measure, and how.

    Attributes:
        protocol: ``"files"`` times all stages from file to defects. ``"efficientad"`` times as the EfficientAD paper
            does (Batzner et al., WACV 2024): from a canvas in memory to its map, a thousand passes after a thousand.
        warm_up: passes that are not timed; None: 20, or 1000 by EfficientAD's protocol; 10 where no model is given.
        repeat: passes that are timed; None: 200, or 1000, or 100 likewise. A measurement by ``"files"`` ends after half
            a minute (two seconds where no model is given); how many passes it made is in the result.
        batch: images at once for throughput; None: 8, or 16, or 4 likewise.
        threads: that compute at once; None: as ``OMP_NUM_THREADS`` says, or as each runtime likes.

    Raises:
        InputError: a number below 1, or an unknown protocol.
    """

    protocol: Protocol = "files"
    warm_up: int | None = None
    repeat: int | None = None
    batch: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in _DEFAULTS:
            raise InputError(f"protocol={self.protocol!r}: expected one of {', '.join(_DEFAULTS)}")
        for name in ("warm_up", "repeat", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value!r}: expected at least 1")

    def numbers(self, suite: bool) -> _Numbers:
        """Return the numbers of passes and of images at once; ``suite``: no model is given."""
        usual = _SUITE if suite and self.protocol == "files" else _DEFAULTS[self.protocol]
        given = {name: getattr(self, name) for name in ("warm_up", "repeat", "batch")}
        return usual._replace(**{name: value for name, value in given.items() if value is not None})


def bench(
    models: Sequence[str | Path] = (),
    data: DataSource | str | Path | None = None,
    request: BenchRequest | None = None,
    output: Sequence[str | Path] = (),
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure models in each runtime that can run them.

    A model file runs in torch, OpenVINO and, where the CPU has it, OpenVINO in bfloat16; an exported file in
    onnxruntime and OpenVINO. Each combination has a process of its own, so that memory and start are its own, and they
    take turns on the machine one after the other.

    Args:
        models: model files and exported files; none: PatchCore, PaDiM and EfficientAD are fitted on generated pictures
            in a temporary folder and measured, which takes two minutes and needs ``pickglass[train]``.
        data: folder of a data set whose images are read; where it has good and defective test images they also tell
            how good each model is. None: generated pictures of each model's canvas, as PNG files in a temporary folder.
        request: what to measure.
        output: files to write, by their suffix: ``.html`` a page with curves, ``.csv`` a row a run, ``.jsonl`` a line
            of JSON a run.
        compute: ``engine`` chooses one runtime, ``"auto"`` takes all; ``device``, decoding threads (``workers``) and
            ``max_pixels`` as everywhere. Its ``batch`` is not read.
        progress: called with (stage, done, total).

    Returns:
        A run each; one that a runtime refuses is named under ``failed``.

    Raises:
        ModelFileError: a file is missing or damaged.
        InputError: two paths lead to one file, or an output of another suffix.
        DataError: no image can be read.
        MissingExtra: no model is given, and torch is not installed.
    """
    asked, options = request or BenchRequest(), compute or ComputeOptions()
    writers = [writer(path) for path in output]
    named = [model_at(path) for path in models]
    numbers = asked.numbers(suite=not named)
    if len({model.path.resolve() for model in named}) < len(named):
        raise InputError("a model file is named twice: name each once")
    with scratch_folder() as folder, _threads(asked.threads):
        if not named:
            from pickglass.app.bench.suite import write_suite

            named = [model_at(path) for path in write_suite(folder, progress)]
        images = images_for(named, data, folder, options)
        jobs, notes = _jobs(named, images, asked.protocol, numbers, options, suite=not models)
        machine = _one(describe_machine, options.device)
        runs: list[BenchRun] = []
        failed = [*images.failed]
        for event in _measured(jobs, progress):
            engine = event.task.compute.engine
            what = f"{event.task.model} in {engine}"
            if event.result is not None:
                runs.append(_with_share(event.result, machine))
                failed += [item for item in event.result["failed"] if item not in failed]
            elif event.error is not None and engine == "bfloat16" != options.engine:
                notes.append(f"{what} is not measured: {event.error}")  # nobody asked for it, and it may be refused
            elif event.error is not None:
                failed.append({"path": what, "error": event.error})
    result: BenchResult = {
        "protocol": asked.protocol,
        "warm_up": numbers.warm_up,
        "repeat": numbers.repeat,
        "batch": numbers.batch,
        "workers": options.workers,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "images": images.about,
        "machine": machine,
        "runs": runs,
        "notes": [*images.notes, *notes, *_notes(asked.protocol, numbers, machine, runs, named)],
        "failed": failed,
        "written": [str(path) for path in output],
    }
    for write in writers:
        write(result)
    return result


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Let the processes that are started meanwhile compute with so many threads; None: as the environment says."""
    before = os.environ.get("OMP_NUM_THREADS")
    if n is not None:
        os.environ["OMP_NUM_THREADS"] = str(n)
    try:
        yield
    finally:
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
        elif n is not None:
            del os.environ["OMP_NUM_THREADS"]


# -- runs --------------------------------------------------------------------------------------------------------------


def _jobs(
    models: Sequence[BenchModel],
    images: BenchImages,
    protocol: Protocol,
    numbers: _Numbers,
    options: ComputeOptions,
    *,
    suite: bool,
) -> tuple[list[Job], list[str]]:
    """List what is to be measured, and say what is left out."""
    warm_up, repeat, batch, longest_s = numbers
    notes: list[str] = []
    jobs = []
    for model in models:
        for engine in _engines(model, options, suite, notes):
            own = replace(options, engine=engine, batch=batch)
            rows = images.rows[model.canvas]
            jobs.append(Job(str(model.path), own, rows, images.judged, protocol, warm_up, repeat, longest_s))
    return jobs, list(dict.fromkeys(notes))


def _engines(model: BenchModel, options: ComputeOptions, suite: bool, notes: list[str]) -> list[EngineName]:
    """Return the runtimes of a model; of the suite's model files only the one that ``predict`` takes by itself."""
    if options.engine != "auto":
        return [options.engine]
    if model.exported:
        if options.device not in ("auto", "cpu"):
            return ["onnxruntime"]
        if importlib.util.find_spec("openvino") is None:
            notes.append("OpenVINO is not installed, and not measured")
            return ["onnxruntime"]
        return ["onnxruntime", "openvino"]
    from pickglass.features.engine import device_name, has_bfloat16

    if device_name(options.device) != "cpu":
        return ["torch"]
    if suite:
        notes.append("model files are measured in OpenVINO alone: name models for the other runtimes")
        return ["openvino"]
    if not has_bfloat16():
        notes.append("this CPU does not compute in bfloat16, which is not measured")
        return ["torch", "openvino"]
    return ["torch", "openvino", "bfloat16"]


def _one(function: Callable[[str], Iterator[BenchMachine]], device: str) -> BenchMachine:
    """Describe the machine in a process of its own, so that no library's threads or memory stay with this one."""
    waiting = [device]
    for event in LocalExecutor(apart=True).run(function, lambda: waiting.pop() if waiting else None):
        if event.result is not None:
            return event.result
        if event.error is not None:
            raise InputError(f"the machine cannot be measured: {event.error}")
    raise AssertionError("describe_machine yields once")


def _measured(jobs: Sequence[Job], progress: Progress | None) -> Iterator[Event[Job, BenchRun]]:
    waiting, done = list(jobs)[::-1], 0
    for event in LocalExecutor(apart=True).run(measured, lambda: waiting.pop() if waiting else None):
        yield event
        done += event.ended
        if progress is not None:
            progress("measuring", done, len(jobs))


def _with_share(run: BenchRun, machine: BenchMachine) -> BenchRun:
    """Add how much of the machine's matrix peak the network reaches at the batch of the throughput."""
    seconds = sum(1 / rate for name, rate in run["stage_images_per_s"].items() if name in FORWARD)
    peak = machine["peak_gflops"] if run["device"] == "cpu" else machine["gpu_peak_gflops"]
    if run["gflop"] is not None and peak is not None and seconds:
        run["peak_share"] = run["gflop"] / seconds / peak
    return run


def _notes(
    protocol: Protocol,
    numbers: _Numbers,
    machine: BenchMachine,
    runs: Sequence[BenchRun],
    models: Sequence[BenchModel],
) -> list[str]:
    notes = []
    load, cores = machine["load"], machine["cores"]
    if load is not None and load > _BUSY * cores:
        notes.append(
            f"the machine was busy (load {load:.1f} on {cores} cores): on an idle one the times and the peak are others"
        )
    judged = sorted({run["n_judged"] for run in runs} - {0})
    if judged:
        notes.append(f"accuracy is that of {' or '.join(map(str, judged))} labelled test images")
    if protocol == "efficientad":
        notes += _departures(numbers, machine)
    fixed = {model.path.name: model.batch for model in models if model.batch not in (None, 1)}
    notes += [f"{name} takes {n} images at once: its latency is that of {n}" for name, n in fixed.items()]
    uncounted = sorted({run["name"] for run in runs if run["gflop"] is None})
    if uncounted:
        notes.append(f"no operations are counted and so no share of the peak, without onnx: {', '.join(uncounted)}")
    if any(run["precision"] != "float32" for run in runs) and any(run["peak_share"] for run in runs):
        notes.append("the share is that of the float32 peak also where a run computes in another precision")
    return notes


def _departures(numbers: _Numbers, machine: BenchMachine) -> list[str]:
    """Say where this differs from the protocol of the EfficientAD paper."""
    departs = [f"{numbers.batch} images at once for throughput are our choice"]
    if numbers[:2] != _DEFAULTS["efficientad"][:2]:
        departs.append(f"{numbers.warm_up} passes to warm up and {numbers.repeat} timed ones, not 1000 each")
    gpu = machine["gpu"] is not None
    where = f"on {machine['gpu']}, torch in float16 by autocast" if gpu else "on a CPU in each model's precision"
    departs.append(f"{where}, not in float16 on an NVIDIA RTX A6000")
    cited = (
        "EfficientAD's protocol (Batzner et al., WACV 2024): a canvas in memory to its map in memory, one image a pass"
    )
    return [f"{cited}; the mean is the paper's figure", f"departures from it: {'; '.join(departs)}"]
