"""Backbones of several families on one data set: images/s in torch and in the engine, parity, and how fast `layers` is.

    python -m bench run backbones DATA [--images 16] [--backbones resnet18 ...] [--layers]

For each backbone PatchCore is fitted with random weights on the good images, at its usual layers and 256 x 256 px or
the nearest size that fits, and judges the test images in torch and in the engine. Then the backbone reads the same
images in both, turn by turn in one process; the best round of each counts, by the clock and by the time of all cores
that it took, which a busy machine changes less. Parity is the largest difference of a score or of a map's value, as a
share of the largest one. With random weights the scores mean nothing; the speed and the parity do. --layers times
`pickglass layers NAME` as a process of its own, start included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

import pickglass as pg
from bench.harness import Case, Record, Suite, markdown, only_set, turns
from pickglass.data import read_image
from pickglass.features.engine import BackboneEngine
from pickglass.runtime.compute import EngineName

BACKBONES = (
    "resnet18",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "hrnet_w18",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
)
ENGINES: tuple[EngineName, ...] = ("torch", "openvino")


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Fit, judge the test images in both engines, and time both."""
    dataset, rounds = pg.load_dataset(given.data), given.rounds
    good = [read_image(row.path) for row in dataset.train[: given.images]]
    test = [read_image(row.path) for row in dataset.test[: given.images]]
    detector = pg.PatchCore(backbone=name, weights="random", size=256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the size that fits: the table has it
        warnings.simplefilter("error", RuntimeWarning)  # an engine that falls back is no engine
        detector.fit(good, calibrate=0, device="cpu", engine="openvino")
        found = {engine: detector.predict(test, device="cpu", engine=engine) for engine in ENGINES}
        batch = torch.stack([torch.from_numpy(detector.preprocess(image)) for image in test])
        runs = {engine: BackboneEngine(detector.network, "cpu", engine) for engine in ENGINES}
        calls: dict[str, Callable[[], Any]] = {engine: partial(run, batch) for engine, run in runs.items()}
        clock = turns(calls, rounds)  # the first round, which compiles, does not count
        cores = turns(calls, rounds, warm_up=0, clock=time.process_time)
    best = {engine: min(clock[engine]) / len(test) for engine in ENGINES}
    least = {engine: min(cores[engine]) / len(test) for engine in ENGINES}
    scores = [found[engine].scores for engine in ENGINES]
    maps = [np.stack([one.map for one in found[engine]]) for engine in ENGINES]
    return {
        "layers": "+".join(detector.read_layers),
        "size": list(detector.input_size),
        "torch images/s": round(1 / best["torch"], 1),
        "engine images/s": round(1 / best["openvino"], 1),
        "torch core ms": round(1000 * least["torch"], 1),
        "engine core ms": round(1000 * least["openvino"], 1),
        "core ratio": round(least["torch"] / least["openvino"], 2),
        "scores apart": float(f"{apart(*scores):.1e}"),
        "maps apart": float(f"{apart(*maps):.1e}"),
        **(seconds_of_layers(name) if given.layers else {}),
    }


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(one).max())


def seconds_of_layers(name: str) -> dict[str, float]:
    """Return the seconds by the clock, and those of all cores."""
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "pickglass", "layers", name, "--weights", "random", "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"layers s": round(time.perf_counter() - start, 1), "layers core s": round(used, 1)}


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--layers", action="store_true")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for name in given.backbones:
        yield Case({"backbone": name, "data": given.data.name}, partial(measured, name, given))


def table(rows: list[Record]) -> str:
    heads = [name for name in rows[0] if name not in ("suite", "data", "measured")]
    return markdown(heads, [[row.get(name) for name in heads] for row in rows])


SUITE = Suite(cases, arguments, {"": table}, weights=())  # they are random
