"""How far scores move if the canvas is made in another way than pickglass makes it: ``python -m bench.resizes FOLDER``.

Prints a table for examples/README.md: the relative change of the score, and the verdicts that flip, over test images of
a data set, with PatchCore at 256 x 256.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import pickglass as pg
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=60, help="about so many of the test images, evenly")
    options = parser.parse_args()
    dataset = pg.load_dataset(options.folder)
    detector = pg.PatchCore(size=SIDE).fit(dataset)
    calibration = detector.current_calibration()
    assert calibration is not None
    assert calibration.image_threshold is not None
    paths = [row.path for row in dataset.test][:: max(1, len(dataset.test) // options.images)]
    images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, 2) for image in map(read_image, paths)]
    expected = detector.predict(paths, engine="torch").scores
    print(f"{len(images)} images\n\n| resized | median | largest | verdicts that flip |\n|---|---|---|---|")
    for name, way in WAYS.items():
        found = detector.predict([np.ascontiguousarray(way(image)) for image in images], engine="torch").scores
        change = np.abs(found / expected - 1)
        flips = np.sum((found > calibration.image_threshold) != (expected > calibration.image_threshold))
        print(f"| {name} | {np.median(change):.0e} | {change.max():.0e} | {flips} |")


if __name__ == "__main__":
    main()
