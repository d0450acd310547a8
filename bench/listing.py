"""Seconds and memory to list a data set of many files, and for all of ``pickglass info``, on a tree of tiny files.

The tree is MVTec AD's with the files spread over eight types of defects, each with its mask; files are hard links to a
few images of 24 x 32 pixels, so that the disk holds few bytes. Memory is the peak of the process. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.layouts import image, mask, save
from pickglass.data import load_dataset

__all__ = ["draw", "main"]

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


def main() -> None:
    """Draw the tree, list it three times, and print the best time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "many"
        draw(root, arguments.files)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            dataset = load_dataset(root)
            seconds.append(time.perf_counter() - began)
        listed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert dataset.account.files == arguments.files
        assert not dataset.account.unused
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pickglass", "info", str(root), "--json"], check=True, capture_output=True
        )
        whole = time.perf_counter() - began
        inspected = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    result = {
        "files": arguments.files,
        "images": len(dataset.table),
        "listing_s": round(min(seconds), 2),
        "listing_peak_mb": round(listed / 1024),
        "info_s": round(whole, 1),
        "info_peak_mb": round(inspected / 1024),
        "python": platform.python_version(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
