"""Seconds and memory to list a data set of many files, and for all of ``pickglass info``, on a tree of tiny files.

The tree is MVTec AD's with the files spread over eight types of defects, each with its mask; files are hard links to a
few images of 24 x 32 pixels, so that the disk holds few bytes. Memory is the peak of the process.

    python -m bench run listing [--files 100000]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import Case, Suite, apart, seconds
from bench.harness.processes import peak_mb
from bench.layouts import image, mask, save
from pickglass.data import load_dataset

_LINKS = 20_000  # files between new images: file systems allow so many names of one file


def draw(root: Path, files: int) -> None:
    """Make a tree of so many files: half of them good training images, a quarter defective ones, a quarter masks."""
    saved: list[Path] = []
    for i in range(files):
        part, number = i % 4, i // 4
        kind = f"type{number % 8}"
        defective = [f"test/{kind}/{number:06}.png", f"ground_truth/{kind}/{number:06}_mask.png"]
        path = root / [*[f"train/good/{i:06}.png"] * 2, *defective][part]
        if i % _LINKS == 0:
            sources = [image(i + k, k == 2) if k < 3 else mask(i) for k in range(4)]
            saved = [save(root.parent / f"{k}-{i // _LINKS}.png", pixels) for k, pixels in enumerate(sources)]
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(saved[part], path)


def listed(root: str, files: int) -> dict[str, float]:
    times = [seconds(lambda: load_dataset(root)) for _ in range(3)]
    dataset = load_dataset(root)
    assert dataset.account.files == files
    assert not dataset.account.unused
    return {"images": len(dataset.table), "listing_s": round(min(times), 2), "listing_peak_mb": peak_mb()}


def measured(files: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "many"
        draw(root, files)
        result: dict[str, Any] = apart(listed, root, files)
        began = time.perf_counter()
        command = [sys.executable, "-m", "pickglass", "info", str(root), "--json"]
        subprocess.run(command, check=True, capture_output=True)
        result["info_s"] = round(time.perf_counter() - began, 1)
        result["info_peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=100_000)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"files": given.files}, lambda: measured(given.files))


SUITE = Suite(cases, arguments, weights=())
