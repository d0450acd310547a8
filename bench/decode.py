"""Decode throughput, images/s: the decoder with 1, 2 and 4 threads against plain Pillow, for 256 and 1024 px squares.

Both sides end with contiguous float32 (3, 256, 256), which nobody keeps; Pillow in one thread by open, convert, resize,
divide. The photograph comes with pickglass, is cut and enlarged; the files are in the page cache. Best of three rounds
in turn. Where imagecodecs is installed (extra fast), PNG is read once more with it.

    python -m bench run decode
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from bench.harness import Case, Record, Suite, best, markdown
from pickglass.data import Preprocess, Row
from pickglass.data.images import formats
from pickglass.data.images.decoder import decode_pictures
from pickglass.data.painting.natural import photograph

COUNTS = {256: 400, 1024: 40}
THREADS = (1, 2, 4)


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
    for item in decode_pictures([Row(str(path)) for path in paths], lambda image, row: prepare(image), workers):
        if item.error:
            raise SystemExit("an image could not be decoded")
    return len(paths)


def measured(side: int, suffix: str, fast: bool) -> dict[str, float]:
    decoder = formats._png_decoder() if fast else None
    with tempfile.TemporaryDirectory() as folder, patch.object(formats, "_png_decoder", lambda: decoder):
        paths = write(Path(folder), side, suffix)
        ways = {"pillow": partial(pillow, paths), **{f"{n} threads": partial(ours, paths, n) for n in THREADS}}
        return {name: round(len(paths) / least, 1) for name, least in best(ways, 3, warm_up=0).items()}


def cases(_: argparse.Namespace) -> Iterator[Case]:
    for side in COUNTS:
        for suffix in (".png", ".jpg"):
            for fast in (False, True) if suffix == ".png" and formats._png_decoder() else (False,):
                yield Case({"side": side, "suffix": suffix, "fast": fast}, partial(measured, side, suffix, fast))


def table(rows: list[Record]) -> str:
    ways = ["pillow", *(f"{n} threads" for n in THREADS)]
    heads = ["images/s", "Pillow, one thread", *(f"ours, {n} thread{'s' * (n > 1)}" for n in THREADS)]
    lines = [[_name(row), *(f"{row[way]:,.0f}" for way in ways)] for row in rows]
    return markdown(heads, lines)


def _name(row: Record) -> str:
    return f"{row['side']} px {row['suffix'][1:].upper()}{', imagecodecs' * row['fast']}"


SUITE = Suite(cases, tables={"": table}, weights=())
