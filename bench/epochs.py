"""Seconds that an epoch of STFPM and FastFlow takes, beside the peer's.

Ours trains on cached features, the peer runs its frozen backbone again in every epoch.

    python -m bench run epochs DATA --peer-python PY [--methods stfpm fastflow] [--epochs 1 3]

DATA is a folder in MVTec AD layout. Both sides get the same images at 256 px, 16 at once, and no validation. An epoch
is the difference of two fits of so many epochs, shared out: what is done once (reading, the features, compiling) drops
out, and is printed apart. STFPM: EfficientNet-Lite0 with its weights, the same three layers. FastFlow: ResNet-18 with
random weights on both sides, 3x3 kernels, layers 1 to 3, for the peer takes no Lite0. Without a peer only our figures
are measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pickglass as pg
from bench.harness import Case, Record, Suite, add_peer, markdown, only_set, run_peer
from pickglass.methods import METHODS

LAYERS = {"stage2": "blocks.1", "stage3": "blocks.2", "stage5": "blocks.4"}  # ours: the peer's
BATCH, SIZE = 16, 256
RESNET: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "layers": ["layer1", "layer2", "layer3"]}
OURS: dict[str, Any] = {
    "stfpm": lambda epochs: pg.STFPM(layers=list(LAYERS), size=SIZE, epochs=epochs, batch=BATCH, pick="last"),
    "fastflow": lambda epochs: pg.FastFlow(**RESNET, size=SIZE, epochs=epochs, batch=BATCH, pick="last", kernels="3x3"),
}


def ours(data: Path, method: str, epochs: int) -> float:
    detector = OURS[method](epochs)
    began = time.perf_counter()
    detector.fit(pg.load_dataset(data), validate=0, calibrate=0, batch=BATCH)
    return time.perf_counter() - began


def peer(data: Path, method: str, epochs: int, python: Path) -> float:
    arguments = ["--method", method, "--epochs", epochs, "--size", SIZE, "--batch", BATCH, "--layers", *LAYERS.values()]
    return float(run_peer(python, data.resolve(), *arguments)["fit_s"])


def measured(method: str, given: argparse.Namespace) -> dict[str, Any]:
    few, many = given.epochs
    ours(given.data, method, 1)  # libraries are loaded, as the peer's timer finds them
    sides = {"ours": [ours(given.data, method, n) for n in (few, many)]}
    if given.peer_python:
        sides["peer"] = [peer(given.data, method, n, given.peer_python) for n in (few, many)]
    epoch = {side: (seconds[1] - seconds[0]) / (many - few) for side, seconds in sides.items()}
    once = {side: seconds[0] - few * epoch[side] for side, seconds in sides.items()}
    result: dict[str, Any] = {"epoch_s": epoch, "once_s": once}
    if "peer" in epoch:
        result["times_faster"] = epoch["peer"] / epoch["ours"]
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--methods", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 3])
    add_peer(parser)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for method in given.methods:
        yield Case(
            {"data": given.data.name, "method": method, "epochs": given.epochs}, partial(measured, method, given)
        )


def table(rows: list[Record]) -> str:
    """Seconds of an epoch of both sides, where the peer was there."""
    lines = []
    for row in (row for row in rows if "times_faster" in row):
        own = [f"{row['epoch_s'][side]:.1f} s" for side in ("peer", "ours")]
        lines.append(
            [f"{METHODS[row['method']].__name__}, an epoch of {row['data']}", *own, f"{row['times_faster']:.1f}"]
        )
    return markdown(["what", "peer", "pickglass", "times faster"], lines)


SUITE = Suite(cases, arguments, {"": table})
