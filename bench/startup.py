"""What a command costs from a cold start: seconds, seconds of processor time, and peak memory, each in a new process.

``python -m bench run startup``: ``--help``, and ``predict`` of one image: by a model of the lab and by its exported
file, in each engine, where graphs that OpenVINO compiled are kept on the disk (the second start and later ones) and
where they are not. Beside them what importing numpy and torch alone costs. The model is a PatchCore on
EfficientNet-Lite0, fitted on generated images of 256 px. Medians of five starts in turn; files are in the page cache.
The processor's time hardly hangs on what else runs, the seconds do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import pickglass as pg
from bench.harness import Case, Record, Suite, markdown, middle
from pickglass.runtime.compiled import VARIABLE
from pickglass.testing import textures

PICKGLASS = (sys.executable, "-m", "pickglass")
SIDE = 256

# A process begins with the peak of the one that started it, so a small one stands between.
_WATCHED = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
took = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def start(command: list[str], kept: Path | None) -> dict[str, float]:
    """Run a command in a new process, and return what it cost."""
    environment = {**os.environ, VARIABLE: "off" if kept is None else str(kept)}
    watched = [sys.executable, "-S", "-c", _WATCHED, *command]
    done = subprocess.run(watched, env=environment, stdout=subprocess.PIPE, check=True)
    s, cpu_s, peak_mb = map(float, done.stdout.split())
    return {"s": s, "cpu_s": cpu_s, "peak_mb": peak_mb}


def commands(folder: Path) -> dict[str, tuple[list[str], bool]]:
    """Make the models, and return the commands by name, with whether compiled graphs are kept."""
    image = str(folder / "part.png")
    if not (folder / "model.onnx").exists():
        Image.fromarray(textures(1, SIDE, seed=1)[0]).save(image)
        model = pg.PatchCore(size=SIDE).fit(textures(12, SIDE))
        model.save(folder / "model.safetensors")
        model.export(folder / "model.onnx")
    lab = [*PICKGLASS, "predict", str(folder / "model.safetensors"), image]
    line = [*PICKGLASS, "predict", str(folder / "model.onnx"), image]
    return {
        "import numpy": ([sys.executable, "-c", "import numpy"], False),
        "import torch": ([sys.executable, "-c", "import torch"], False),
        "--help": ([*PICKGLASS, "--help"], False),
        "lab": (lab, False),
        "lab, kept": (lab, True),
        "exported, onnxruntime": ([*line, "--engine", "onnxruntime"], False),
        "exported, OpenVINO": ([*line, "--engine", "openvino"], False),
        "exported, OpenVINO, kept": ([*line, "--engine", "openvino"], True),
    }


def measured(rounds: int, models: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = models or Path(name)
        asked = commands(folder)
        starts: dict[str, list[dict[str, float]]] = {what: [] for what in asked}
        for turn in range(rounds + 1):
            for what, (command, keeps) in asked.items():
                cost = start(command, folder / "kept" if keeps else None)
                if turn:  # the first start reads the disk, and fills what is kept
                    starts[what].append(cost)
    keys = ("s", "cpu_s", "peak_mb")
    return {what: {key: round(middle([c[key] for c in costs]), 2) for key in keys} for what, costs in starts.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, help="folder in which the models stay for another run; it exists")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"side": SIDE}, partial(measured, given.rounds, given.models))


def table(rows: list[Record]) -> str:
    costs = {what: cost for what, cost in rows[-1].items() if isinstance(cost, dict) and "cpu_s" in cost}
    lines = [[what, f"{c['s']:.2f}", f"{c['cpu_s']:.2f}", f"{c['peak_mb']:.0f}"] for what, c in costs.items()]
    return markdown(["a new process", "s", "processor s", "peak MB"], lines)


SUITE = Suite(cases, arguments, {"": table}, weights=("efficientnet_lite0",))
