"""Decode throughput, images/s: the decoder with 1, 2 and 4 threads against plain Pillow, for 256 and 1024 px squares.

Both sides end with contiguous float32 (3, 256, 256); Pillow in one thread by open, convert, resize, divide. The
photograph comes with pickglass, is cut and enlarged; the files are in the page cache. Best of three rounds. One JSON
line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pickglass.data import Preprocess, Row, decode
from pickglass.data.painting.natural import photograph

COUNTS = {256: 400, 1024: 60}


def write(folder: Path, side: int, suffix: str) -> list[Path]:
    photo = Image.fromarray(photograph("astronaut"))
    rng = np.random.default_rng(0)
    paths = []
    for i in range(COUNTS[side]):
        x, y = rng.integers(0, 256, 2)
        part = photo.crop((x, y, x + 256, y + 256)).resize((side, side), Image.Resampling.BICUBIC)
        paths.append(folder / f"{side}_{i:03}{suffix}")
        part.save(paths[-1])
    return paths


def pillow(paths: list[Path]) -> int:
    for path in paths:
        image = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
        np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1) / np.float32(255))
    return len(paths)


def ours(paths: list[Path], workers: int) -> int:
    prepare = Preprocess((256, 256))
    items = list(decode([Row(str(path)) for path in paths], lambda image, row: prepare(image), workers))
    if any(item.error for item in items):
        raise SystemExit("an image could not be decoded")
    return len(items)


def rate(run: Callable[[], int]) -> float:
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        count = run()
        best = max(best, count / (time.perf_counter() - began))
    return round(best, 1)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in COUNTS:
            for suffix in (".png", ".jpg"):
                paths = write(Path(folder), side, suffix)
                name = f"{side}{suffix}"
                result[f"{name} pillow"] = rate(partial(pillow, paths))
                for workers in (1, 2, 4):
                    result[f"{name} ours {workers}"] = rate(partial(ours, paths, workers))
    json.dump({"bench": "decode", "images_per_s": result}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
