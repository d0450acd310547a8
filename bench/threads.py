"""One detector called by several threads, as by one camera each: images/s, and how the scores agree.

    python -m bench run threads [--threads 1 2 4] [--images 48] [--size 256] [--engine auto]

The rounds take turns, so that a machine that is busy with other things slows all of them alike; the figure to read is
``ratio``, the speed of each number of threads over that of one thread in the same round, its median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import pickglass as pg
from bench.harness import Case, Suite
from pickglass.testing import textures


def judged(detector: pg.Detector, images: np.ndarray, threads: int, engine: str) -> tuple[float, np.ndarray]:
    """Seconds to judge each image in a call of its own, and the scores."""

    def one(image: np.ndarray) -> float:
        return float(detector.predict(image, engine=engine, batch=1, workers=1).scores[0])  # type: ignore[arg-type]

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        scores = np.array(list(pool.map(one, images)))
        return time.perf_counter() - start, scores


def measured(given: argparse.Namespace) -> dict[str, object]:
    detector = pg.PatchCore(size=given.size).fit(textures(24, given.size), engine=given.engine)
    images = textures(given.images, given.size, seed=1)
    _, expected = judged(detector, images, 1, given.engine)
    counts = [1, *(n for n in given.threads if n != 1)]
    seconds: dict[int, list[float]] = {n: [] for n in counts}
    worst = 0.0
    for _ in range(given.rounds):
        for n in counts:
            took, scores = judged(detector, images, n, given.engine)
            seconds[n].append(took)
            worst = max(worst, float(np.abs(scores / expected - 1).max()))
    ratios = {n: [one / many for one, many in zip(seconds[1], took, strict=True)] for n, took in seconds.items()}
    return {
        "images_per_s": {n: round(given.images / min(took), 1) for n, took in seconds.items()},
        "ratio": {n: round(statistics.median(values), 2) for n, values in ratios.items()},
        "largest_relative_difference": worst,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rounds", type=int, default=5)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    key = {name: getattr(given, name) for name in ("threads", "images", "size", "engine", "rounds")}
    yield Case(key, lambda: measured(given))


SUITE = Suite(cases, arguments)
