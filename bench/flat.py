"""Memory of a process that judges many images with an exported model, and its time from a cold start.

``python -m bench run flat MODEL.onnx``: resident memory (MB) after 100 images and then after every
tenth of them, threads and open files at both ends, and the seconds of ``pickglass predict`` on one image in a new
process. The images are generated, of the size of the canvas, a new one each time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import pickglass as pg
from bench.harness import Case, Suite, middle, seconds
from pickglass.runtime.compute import EngineName
from pickglass.runtime.exported import ExportedModel


def resident_mb() -> float:
    """Return the memory of this process that is held in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(model: ExportedModel, images: int, engine: EngineName) -> dict[str, object]:
    """Judge so many images, one after the other, and watch the memory."""
    rng = np.random.default_rng(0)

    def drawn() -> Iterator[np.ndarray]:
        for _ in range(images):
            yield rng.integers(0, 256, (*model.canvas, 3), np.uint8)

    marks: list[float] = []
    at = {100, *(images * k // 10 for k in range(1, 11))}
    began = ends = 0
    start = time.perf_counter()
    for i, _ in enumerate(model.stream(drawn(), engine=engine), start=1):
        if i in at:
            marks.append(round(resident_mb(), 1))
            ends = len(os.listdir("/proc/self/fd"))
            began = began or ends
    took = time.perf_counter() - start
    files = {"first": began, "last": ends}
    return {
        "resident_mb": marks,
        "open_files": files,
        "threads": threading.active_count(),
        "s": round(took, 1),
    }


def cold_start(model: str, canvas: tuple[int, int], repeats: int) -> float:
    """Return the median seconds of ``pickglass predict`` on one image, each in a new process."""
    pixels = np.random.default_rng(0).integers(0, 256, (*canvas, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "part.png"
        Image.fromarray(pixels).save(image)
        command = [sys.executable, "-m", "pickglass", "predict", model, str(image)]
        starts = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(repeats)]
    return middle(starts)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--engine", choices=["onnxruntime", "openvino"], default="onnxruntime")


def measured(path: Path, images: int, engine: EngineName) -> dict[str, object]:
    model = pg.load(path)
    if not isinstance(model, ExportedModel):
        raise SystemExit(f"{path}: expected an exported model, .onnx")
    return {"cold_s": round(cold_start(str(path), model.canvas, 5), 2), **soak(model, images, engine)}


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case(
        {"model": given.model.name, "engine": given.engine, "images": given.images},
        lambda: measured(given.model, given.images, given.engine),
    )


SUITE = Suite(cases, arguments, weights=())  # they are in the model
