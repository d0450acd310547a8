"""Draw trays of bolts and nuts with painted defects, logical ones and structural ones: 256 x 256 px.

python -m bench.tools.trays FOLDER [--layout mvtec_ad | mvtec_loco] [--train 60] [--test 20]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pickglass.data import paint
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.trays import Tray, fill
from pickglass.errors import InputError

LOCO = ("structural_anomalies", "logical_anomalies")
Defect = Kind | Literal["swapped_part"]
DEFECTS: tuple[Defect, ...] = ("missing_part", "surplus_part", "misplaced_part", "swapped_part", "scratch", "hole")
PART, PITCH = 40.0, 60.0  # px


def trays(given: argparse.Namespace) -> None:
    """Full trays to learn from, and painted ones: logical defects and, to compare, structural ones."""
    loco, root = given.layout == "mvtec_loco", given.folder

    def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(given.train):
        write(root / "train" / "good" / f"{i:03d}.png", full(i))
    for i in range(given.test):
        write(root / "test" / "good" / f"{i:03d}.png", full(10_000 + i))
        for k, kind in enumerate(DEFECTS):
            rng = np.random.default_rng([i, k])
            image = full(20_000 + len(DEFECTS) * i + k)
            try:
                pixels, mask = damaged(image, kind, rng)
            except InputError as error:  # no room for it on this tray
                print(f"{kind} {i}: {error}")
                continue
            if loco:
                group, name = LOCO[kind.endswith("part")], f"{kind}_{i:03d}"
                write(root / "test" / group / f"{name}.png", pixels)
                write(root / "ground_truth" / group / name / "000.png", mask.astype(np.uint8) * (1 + k))
            else:
                write(root / "test" / kind / f"{i:03d}.png", pixels)
                write(root / "ground_truth" / kind / f"{i:03d}_mask.png", mask.astype(np.uint8) * 255)
    if loco:
        # whole regions count: where a part is missing or too much, its place is known
        config = [
            {"defect_name": kind, "pixel_value": 1 + k, "saturation_threshold": 1.0, "relative_saturation": True}
            for k, kind in enumerate(DEFECTS)
        ]
        (root / "defects_config.json").write_text(json.dumps(config))


def full(seed: int) -> np.ndarray[Any, Any]:
    """A tray, bolts on its left and nuts on its right: (256, 256) uint8."""
    bolts, nuts = Tray("bolt", part_px=PART, pitch_px=PITCH), Tray("nut", part_px=PART, pitch_px=PITCH)
    return np.hstack([fill(tray, (256, 128), seed) for tray in (bolts, nuts)])


def damaged(
    image: np.ndarray[Any, Any], kind: Defect, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The image with a defect of the kind, and its mask."""
    if kind == "swapped_part":
        return swapped(image, rng)
    painted = paint(image, kind, PART if kind.endswith("part") else 16.0, rng)
    return painted.image, painted.mask


def swapped(image: np.ndarray[Any, Any], rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A bolt where a nut belongs, or the other way round: each part for itself is good."""
    other = full(int(rng.integers(30_000, 40_000)))
    side, row, column = (int(rng.integers(n)) for n in (2, 4, 2))
    top, left, own = round(8 + PITCH * row), round(4 + PITCH * column), round(PITCH)  # 4 x 2 places, centred
    here, there = left + 128 * side, left + 128 * (1 - side)
    image, mask = image.copy(), np.zeros(image.shape, np.bool_)
    image[top : top + own, here : here + own] = other[top : top + own, there : there + own]
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    mask |= (y - top - own / 2) ** 2 + (x - here - own / 2) ** 2 <= (PART / 2) ** 2
    return image, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=["mvtec_ad", "mvtec_loco"], default="mvtec_ad")
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test", type=int, default=20)
    trays(parser.parse_args())


if __name__ == "__main__":
    main()
