"""Weave a data set in MVTec AD layout of 1024 x 1024 px, with painted defects of four sizes.

    python -m bench.tools.cloth FOLDER

24 good pieces to learn from, 8 good ones to judge, and for each size of 4, 8, 16 and 32 px of longest extent seven with
a painted defect, one of each kind. The size is the defect type, so that figures by type say from which size on a way of
looking sees a defect.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness.pieces import ON_CLOTH
from pickglass.data import paint
from pickglass.data.files import written_whole
from pickglass.data.painting.cloth import Cloth, weave

SIZES = (4, 8, 16, 32)  # px
PIECE = 1024  # px


def cloth(folder: Path) -> None:
    """The folder in MVTec AD layout."""
    own, rng = Cloth("twill"), np.random.default_rng(0)

    def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            Image.fromarray(pixels).save(temporary)

    for i in range(24):
        write(folder / "train" / "good" / f"{i:02d}.png", weave(own, (PIECE, PIECE), i))
    for i in range(8):
        write(folder / "test" / "good" / f"{i:02d}.png", weave(own, (PIECE, PIECE), 100 + i))
    for n, (size, kind) in enumerate(itertools.product(SIZES, ON_CLOTH)):
        painted = paint(weave(own, (PIECE, PIECE), 200 + n), kind, size, rng)
        marked = np.where(painted.mask, np.uint8(255), np.uint8(0))
        write(folder / "test" / f"{size:02d}px" / f"{kind}.png", painted.image)
        write(folder / "ground_truth" / f"{size:02d}px" / f"{kind}_mask.png", marked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    cloth(parser.parse_args().folder)


if __name__ == "__main__":
    main()
