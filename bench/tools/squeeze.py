"""Copy a data set with every image and mask squeezed to one size, so that two tools judge the same pixels.

    python -m bench.tools.squeeze DATA OUT [--size 256]

DATA is a folder in MVTec AD layout.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image

from pickglass.data import load_dataset


def squeeze(data: Path, out: Path, size: int) -> None:
    dataset = load_dataset(data)
    for row in dataset.table:
        _copy(Path(row.path), out / Path(row.path).relative_to(data), size, Image.Resampling.BILINEAR)
        for mask in row.masks:
            _copy(Path(mask), out / Path(mask).relative_to(data), size, Image.Resampling.NEAREST)
    if (data / "groups.csv").is_file():
        text = (data / "groups.csv").read_text().replace(".jpg,", ".png,")
        (out / "groups.csv").write_text(text)
    if (data / "license.txt").is_file():
        shutil.copy(data / "license.txt", out)


def _copy(source: Path, target: Path, size: int, method: Image.Resampling) -> None:
    target = target.with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        image.resize((size, size), method).save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    squeeze(given.data, given.out, given.size)


if __name__ == "__main__":
    main()
