"""Memory of a process that judges many images with an exported model, and its time from a cold start.

``python -m bench.flat MODEL.onnx`` prints one JSON line: resident memory (MB) after 100 images and then after every
tenth of them, threads and open files at both ends, and the seconds of ``pickglass predict`` on one image in a new
process. The images are generated, of the size of the canvas, a new one each time.
"""

from __future__ import annotations

import argparse
import json
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
from pickglass.runtime.compute import EngineName
from pickglass.runtime.exported import ExportedModel

__all__ = ["cold_start", "main", "soak"]


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
    seconds = time.perf_counter() - start
    files = {"first": began, "last": ends}
    return {
        "images": images,
        "resident_mb": marks,
        "open_files": files,
        "threads": threading.active_count(),
        "s": round(seconds, 1),
    }


def cold_start(model: str, canvas: tuple[int, int], repeats: int) -> float:
    """Return the median seconds of ``pickglass predict`` on one image, each in a new process."""
    pixels = np.random.default_rng(0).integers(0, 256, (*canvas, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "part.png"
        Image.fromarray(pixels).save(image)
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "pickglass", "predict", model, str(image)], check=True, capture_output=True
            )
            seconds.append(time.perf_counter() - began)
    return sorted(seconds)[repeats // 2]


def main() -> None:
    """Soak the model, and start it cold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--engine", choices=["onnxruntime", "openvino"], default="onnxruntime")
    arguments = parser.parse_args()
    model = pg.load(arguments.model)
    if not isinstance(model, ExportedModel):
        parser.error(f"{arguments.model}: expected an exported model, .onnx")
    result = {
        "engine": arguments.engine,
        "cold_s": round(cold_start(arguments.model, model.canvas, 5), 2),
        **soak(model, arguments.images, arguments.engine),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
