"""Do memory, open files and threads stay flat over many fits, predictions and requests in one process?

    python -m bench run soak [--fits 200] [--predictions 10000] [--requests 1000] [-o bench/results/soak.jsonl]

Fits are of PatchCore, PaDiM and FastFlow in turn, on 8 images of 48 x 48 pixels, each saved, loaded and asked once.
Predictions are of one model, of images in memory, eight at a time; requests go to the application of ``serve`` by its
test client, with an exported model. ``mb``, ``files`` and ``threads`` are those of the process after each tenth; what
counts is the growth after the first half: by then caches are full. ``flat``: in the second half memory grows by no more
than 2 % or 15 MB, and files and threads by none.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import pickglass as pg
from bench import harness
from bench.harness import Record, markdown
from pickglass.testing import textures

__all__ = ["Course", "course", "fits", "predictions", "requests"]

MB_MORE, SHARE_MORE = 15.0, 0.02


class Course(NamedTuple):
    """What the process held after each tenth of the work."""

    mb: list[float]
    files: list[int]
    threads: list[int]

    @property
    def flat(self) -> bool:
        """Whether nothing grew in the second half."""
        half = len(self.mb) // 2
        more = self.mb[-1] - self.mb[half]
        within = more <= max(MB_MORE, SHARE_MORE * self.mb[half])
        return within and self.files[-1] <= self.files[half] and self.threads[-1] <= self.threads[half]


def course(work: Callable[[int], object], n: int) -> Course:
    """Do some work n times, and look at the process after each tenth."""
    seen: list[tuple[float, int, int]] = []
    for i in range(n):
        work(i)
        if (i + 1) % max(1, n // 10) == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            mb = round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
            seen.append((mb, len(os.listdir("/proc/self/fd")), threading.active_count()))
    return Course(*(list(values) for values in zip(*seen, strict=True)))


def fits(n: int, folder: Path) -> Course:
    """Fit, save, load and ask small detectors."""
    images = textures(8, 48)
    made = (
        lambda: pg.PatchCore(layers=["stage2"], size=48),
        lambda: pg.PaDiM(layers=["stage2"], size=48, dims=6),
        lambda: pg.FastFlow(size=64, steps=2, epochs=1),
    )

    def work(i: int) -> None:
        detector = made[i % 3]().fit(images, engine="torch")
        file = detector.save(folder / f"{i % 3}.safetensors")
        pg.load(file).predict(images[:2], engine="torch")

    return course(work, n)


def predictions(n: int) -> Course:
    """Judge n images in memory, eight at a time."""
    images = textures(8, 48)
    detector = pg.PatchCore(layers=["stage2"], size=48).fit(images, engine="torch")
    return course(lambda i: detector.predict(images, engine="torch"), max(10, n // 8))


def requests(n: int, folder: Path) -> Course:
    """Send n images to the application of ``serve``."""
    from fastapi.testclient import TestClient

    from pickglass.runtime.compute import ComputeOptions
    from pickglass.web.server import create_app
    from pickglass.web.settings import ServeSettings

    images = textures(8, 48)
    model = folder / "m.onnx"
    pg.PatchCore(layers=["stage2"], size=48).fit(images, engine="torch").export(model, images)
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, "PNG")
    settings = ServeSettings(models=(model,), folder=folder / "state", compute=ComputeOptions(engine="onnxruntime"))
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:

        def work(_: int) -> None:
            answer = client.post("/inspect", content=buffer.getvalue(), headers={"content-type": "image/png"})
            if answer.status_code != 200:
                raise SystemExit(f"answered {answer.status_code}: {answer.text[:300]}")

        return course(work, n)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--fits", type=int, default=200)


def told(work: Callable[[], Course]) -> dict[str, Any]:
    """Do a work, and tell its course."""
    found = work()
    return {**found._asdict(), "flat": found.flat}


def cases(asked: argparse.Namespace) -> Iterator[harness.Case]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        works: dict[str, Callable[[], Course]] = {
            "predictions": lambda: predictions(asked.predictions),
            "requests": lambda: requests(asked.requests, folder),
            "fits": lambda: fits(asked.fits, folder),
        }
        for name, work in works.items():
            if n := getattr(asked, name):
                yield harness.Case({"work": name, "n": n}, partial(told, work))


def table(rows: list[Record]) -> str:
    """Write a line for each work: what the process held after the first tenth, the fifth and the last."""
    heads = ["work", "MB after a tenth, half and all of it", "open files", "threads", "flat"]
    cells = [
        [
            f"{row['n']:,} {row['work']}",
            *(
                ", ".join(f"{values[i]:,}" for i in (0, len(values) // 2, -1))
                for values in (row["mb"], row["files"], row["threads"])
            ),
            "yes" if row["flat"] else "**no**",
        ]
        for row in rows
    ]
    return markdown(heads, cells)


SUITE = harness.Suite(cases, arguments, {"": table})
