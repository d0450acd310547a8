"""PatchCore against the peer, in one run on one machine: coreset, fit, predict.

    python -m bench run patchcore DATA --peer-python PY [--ratio 0.1]

Both tools get the same folder (the training images stand in its test folder too, so that prediction is timed on more
than a few), the same weights and 256 px; imports are not counted, the peer's coreset is timed inside its fit. Ours runs
twice: the second fit finds the libraries loaded, as the peer's timer does. Where the CPU has bfloat16, ours is measured
with the backbone in that precision, too. Without a peer only our figures are measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pickglass as pg
from bench.harness import (
    Case,
    Record,
    Suite,
    add_peer,
    engines,
    in_precision,
    markdown,
    only_set,
    rate,
    run_peer,
    seconds,
    shared_folder,
)
from pickglass.nn.search.coreset import Coreset, greedy_coreset
from pickglass.runtime.compute import EngineName


def ours(folder: Path, ratio: float, engine: EngineName) -> dict[str, float]:
    data = pg.load_dataset(folder)
    coreset_s: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Coreset:
        start = time.perf_counter()
        result = greedy_coreset(*args, **kwargs)
        coreset_s.append(time.perf_counter() - start)
        return result

    detector = pg.PatchCore(ratio=ratio, size=256)
    with patch("pickglass.methods.patchcore.greedy_coreset", timed):  # the peer's coreset is timed inside its fit, too
        for _ in range(2):
            fit_s = seconds(lambda: detector.fit(data, calibrate=0, engine=engine))
    bank = detector.provenance.details["bank"]
    speed = rate(len(data.test), lambda: detector.predict(data.test, batch=16, engine=engine))
    return {"coreset_s": coreset_s[-1], "fit_s": fit_s, "images_per_s": speed, "bank": bank}


def measured(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = shared_folder(given.data, Path(scratch) / given.data.name)
        result: dict[str, Any] = {"images": len(pg.load_dataset(folder).train)}
        result["ours"] = {engine: ours(folder, given.ratio, engine) for engine in engines()}
        if given.peer_python:
            peer = result["peer"] = run_peer(given.peer_python, folder, "--ratio", given.ratio)
            result["times_faster"] = {
                engine: {
                    "coreset": peer["coreset_s"] / own["coreset_s"],
                    "fit": peer["fit_s"] / own["fit_s"],
                    "predict": own["images_per_s"] / peer["images_per_s"],
                }
                for engine, own in result["ours"].items()
            }
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--ratio", type=float, default=0.1)
    add_peer(parser)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"data": given.data.name, "ratio": given.ratio}, lambda: measured(given))


def table(rows: list[Record]) -> str:
    """Both sides where the peer was there."""
    lines = []
    for row in (row for row in rows if "peer" in row):
        for engine, own in row["ours"].items():
            name = f"{row['images']} images of {row['data']}, a bank of {own['bank']:,}{in_precision(engine)}"
            for what, key, unit in (
                ("greedy coreset", "coreset", "s"),
                ("PatchCore fit", "fit", "s"),
                ("PatchCore predict", "predict", "images/s"),
            ):
                both = [side["images_per_s" if key == "predict" else f"{key}_s"] for side in (row["peer"], own)]
                times = f"{row['times_faster'][engine][key]:.1f}"
                lines.append([f"{what}, {name}", *(f"{v:.2f} {unit}" for v in both), times])
    return markdown(["what", "peer", "pickglass", "times faster"], lines)


SUITE = Suite(cases, arguments, {"": table})
