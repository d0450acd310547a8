"""An image passes these stages from its file to its defects; each can be timed by itself.

Letters: B images, H x W pixels of the canvas, h x w cells of the map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.app.models import AnyModel
from pickglass.calibration import Calibration
from pickglass.data import Prepared, Preprocess, Row, read_image
from pickglass.data.images.decoder import Array
from pickglass.result import BoolArray, FloatArray, Found, find_defects
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.exported import ExportedModel

if TYPE_CHECKING:
    from pickglass.detectors.detector import Detector
    from pickglass.features.batch import Batch

__all__ = ["FORWARD", "Pass", "Stage", "finish", "stages_of", "timed"]

FORWARD = ("backbone", "method", "graph")
"""The stages that are the network and what was learned: from canvases to scores and maps."""


@dataclass
class Pass:
    """A few images on their way, with what the stages have made of them so far."""

    rows: Sequence[Row]
    images: Sequence[Array] = ()
    values: Sequence[Prepared] = ()
    batch: Batch | None = None
    scores: Sequence[float] = ()
    maps: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    found: Sequence[Found] = ()


class Stage(NamedTuple):
    """One stage: its name in :data:`pickglass.app.results.BENCH_STAGES`, and what it does to the images of a pass."""

    name: str
    run: Callable[[Pass], None]


def timed(stages: Sequence[Stage], images: Pass) -> NDArray[np.float64]:
    """Run the stages one after the other, and return the seconds of each, (S,)."""
    times = [time.perf_counter()]
    for stage in stages:
        stage.run(images)
        times.append(time.perf_counter())
    return np.diff(times)


def stages_of(model: AnyModel, compute: ComputeOptions, *, half: bool = False) -> list[Stage]:
    """Return the stages of a model in one runtime.

    Args:
        model: a detector or an exported model.
        compute: its runtime (``engine``), its device, and the largest image.
        half: torch computes in float16 where that keeps its meaning, on a GPU.

    Raises:
        InputError: the runtime or the device cannot be used here.
        MissingExtra: the runtime is not installed.
    """
    forward, roi = _exported(model, compute) if isinstance(model, ExportedModel) else _fitted(model, compute, half)
    preprocess, calibration = model.preprocess, model.current_calibration()

    def decode(images: Pass) -> None:
        images.images = [read_image(row.path, compute.max_pixels) for row in images.rows]

    def prepare(images: Pass) -> None:
        pairs = zip(images.images, images.rows, strict=True)
        images.values = [preprocess.prepared(image, row, roi) for image, row in pairs]

    def map_(images: Pass) -> None:
        images.found = [
            _found(row, score, map_, (image.shape[0], image.shape[1]), preprocess, roi)
            for row, score, map_, image in zip(images.rows, images.scores, images.maps, images.images, strict=True)
        ]
        for found in images.found:
            finish(found, calibration)

    return [Stage("decode", decode), Stage("prepare", prepare), *forward, Stage("map", map_)]


def finish(found: Found, calibration: Calibration | None) -> None:
    """Do what ``predict`` does with a judged image: enlarge its map, and find the defects if there is a threshold."""
    full = found.full_map()
    if calibration is not None:
        calibration.verdict(found.score)
        if calibration.pixel_threshold is not None:
            find_defects(full, calibration.pixel_threshold)


def _found(
    row: Row, score: float, map_: FloatArray, size: tuple[int, int], preprocess: Preprocess, roi: BoolArray | None
) -> Found:
    return Found(row, float(score), np.ascontiguousarray(map_, np.float32), size, preprocess.window(size), roi)


def _exported(model: ExportedModel, compute: ComputeOptions) -> tuple[list[Stage], BoolArray | None]:
    """Return the one stage that is timed of an exported graph, and the region of interest on the canvas."""
    session = model.session(compute, None)

    def graph(images: Pass) -> None:
        answer, n = session.run(model.inputs(images.values)), len(images.values)
        images.scores, images.maps = answer.score[:n].tolist(), answer.map[:n]

    return [Stage("graph", graph)], model.roi


def _fitted(model: Detector, compute: ComputeOptions, half: bool) -> tuple[list[Stage], BoolArray | None]:
    """Return the stages of a detector's graph, and the region of interest on the canvas."""
    import torch

    loader = model.loader(compute)
    on_gpu = loader.engine.device != "cpu"

    def precision() -> Any:
        return torch.autocast("cuda", torch.float16) if half else nullcontext()

    def backbone(images: Pass) -> None:
        with precision():
            images.batch = loader.batch_of(images.values)
        if on_gpu:
            torch.cuda.synchronize()  # its work goes on while Python does, and would count as the method's

    def method(images: Pass) -> None:
        with precision():
            batch = loader.batch_of(images.values) if images.batch is None else images.batch
            scores, maps = model.judge(batch)
        images.scores, images.maps = scores.tolist(), maps.float().cpu().numpy()
        images.batch = None

    if "features" not in model.reads:
        return [Stage("method", method)], loader.roi
    return [Stage("backbone", backbone), Stage("method", method)], loader.roi
