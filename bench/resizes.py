"""How far scores move if the canvas is made in another way than pickglass makes it.

    python -m bench run resizes DATA [--images 60]

The table of examples/README.md: the relative change of the score, and the verdicts that flip, over test images of
a data set, with PatchCore at 256 x 256.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import pickglass as pg
from bench.harness import Case, Record, Suite, markdown, only_set
from pickglass.data import read_image

SIDE = 256
Array = np.ndarray
Way = Callable[[Array], Array]  # an image (h, w, 3) to a canvas (H, W, 3), both uint8


def pillow(resampling: Image.Resampling) -> Way:
    def resized(image: Array) -> Array:
        across = Image.fromarray(image).resize((SIDE, image.shape[0]), resampling)
        return np.asarray(across.resize((SIDE, SIDE), resampling))

    return resized


def columns_first(image: Array) -> Array:
    """Pillow 13 does this by itself where the height shrinks more."""
    down = Image.fromarray(image).resize((image.shape[1], SIDE), Image.Resampling.BICUBIC)
    return np.asarray(down.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def plain(mode: str) -> Way:
    """Without antialiasing, as OpenCV's INTER_LINEAR and INTER_CUBIC."""

    def resized(image: Array) -> Array:
        planes = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        out = F.interpolate(planes, size=(SIDE, SIDE), mode=mode, align_corners=False)
        return np.asarray(out[0].round().clamp(0, 255).byte().numpy().transpose(1, 2, 0))

    return resized


WAYS: dict[str, Way] = {
    "as pickglass: bicubic, antialiased": pillow(Image.Resampling.BICUBIC),
    "the same, columns before rows": columns_first,
    "Lanczos, antialiased": pillow(Image.Resampling.LANCZOS),
    "bilinear, antialiased": pillow(Image.Resampling.BILINEAR),
    "area": pillow(Image.Resampling.BOX),
    "bicubic, not antialiased": plain("bicubic"),
    "bilinear, not antialiased": plain("bilinear"),
}


def measured(folder: Path, images_at_most: int) -> dict[str, Any]:
    dataset = pg.load_dataset(folder)
    detector = pg.PatchCore(size=SIDE).fit(dataset)
    calibration = detector.current_calibration()
    assert calibration is not None
    assert calibration.image_threshold is not None
    paths = [row.path for row in dataset.test][:: max(1, len(dataset.test) // images_at_most)]
    images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, 2) for image in map(read_image, paths)]
    expected = detector.predict(paths, engine="torch").scores
    ways = {}
    for name, way in WAYS.items():
        found = detector.predict([np.ascontiguousarray(way(image)) for image in images], engine="torch").scores
        change = np.abs(found / expected - 1)
        flips = np.sum((found > calibration.image_threshold) != (expected > calibration.image_threshold))
        ways[name] = {"median": float(np.median(change)), "largest": float(change.max()), "flips": int(flips)}
    return {"n": len(images), "ways": ways}


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--images", type=int, default=60, help="about so many of the test images, evenly")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"data": given.data.name, "images": given.images}, lambda: measured(given.data, given.images))


def table(rows: list[Record]) -> str:
    lines = []
    for name, own in ((name, own) for row in rows for name, own in row["ways"].items()):
        moved = [f"{100 * own[which]:.2g} %" for which in ("median", "largest")]
        lines.append([name, *moved, own["flips"]])
    return markdown(["resized", "score moves by, median", "at most", "verdicts that flip"], lines)


SUITE = Suite(cases, arguments, {"": table})
