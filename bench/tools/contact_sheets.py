"""Contact sheets show every weave and every kind of painted defect, to be looked at.

    python -m bench.tools.contact_sheets FOLDER [--seed 0]

Defects are of 4, 8, 16 and 32 pixels, at 1:1 and enlarged four times.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind, paint
from pickglass.data.painting.trays import PartName, Tray, fill

SIZES = (4, 8, 16, 32)
CELL = 64  # px of the image around a defect
Image8 = npt.NDArray[np.uint8]

CLOTHS = {
    "plain, 4 x 5 px": Cloth("plain"),
    "twill, 4 x 5 px": Cloth("twill"),
    "satin, 4 x 5 px": Cloth("satin"),
    "twill, 2.1 x 6.6 px": Cloth("twill", warp_px=2.13, weft_px=6.56, warp=220, weft=125, blur=1.0),
    "plain, 8 x 9 px, two colours": Cloth(
        "plain", warp_px=8.4, weft_px=9.2, warp=(60, 110, 210), weft=(235, 230, 215), hairiness=0.5
    ),
    "satin, 6 x 6 px, colour": Cloth("satin", warp_px=6, weft_px=6, warp=(200, 60, 60), weft=(90, 20, 30)),
}


def write_sheets(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _cloth_sheet(seed).save(folder / "cloth.png")
    weaves = [Cloth("twill"), Cloth("plain", warp=(90, 130, 200), weft=(60, 90, 160))]
    for kind in get_args(Kind):
        rng = np.random.default_rng(seed)
        rows = []
        for i in range(3):
            cells = []
            for size in SIZES:
                if kind.endswith("_part"):
                    part = get_args(PartName)[rng.integers(4)]
                    tray = Tray(
                        part,
                        part_px=20 if size == 4 else max(4, size * (0.65 if kind == "misplaced_part" else 1) - 6),
                        pitch_px=max(34 if size < 5 else 17, 1.25 * size),
                    )
                    base = fill(tray, (192, 192), seed + i) if i < 2 else weave(weaves[0], (192, 192), seed)
                else:
                    base = weave(weaves[i], (192, 192), seed) if i < 2 else _metal(rng)
                cells.append(_around(base, kind, size, rng))
            rows.append(cells)
        _sheet(rows).save(folder / f"{kind}.png")


def _metal(rng: np.random.Generator) -> Image8:
    lines = rng.normal(150, 4, (192, 1)) + rng.normal(0, 2, (192, 192))
    metal: Image8 = lines.round().clip(0, 255).astype(np.uint8)
    return metal


def _around(base: Image8, kind: Kind, size: int, rng: np.random.Generator) -> Image8:
    """The defect in the middle of a cell, in colour."""
    painted = paint(base, kind, size, rng)
    x, y, width, height = painted.box
    left = min(max(0, x + width // 2 - CELL // 2), base.shape[1] - CELL)
    top = min(max(0, y + height // 2 - CELL // 2), base.shape[0] - CELL)
    cell = painted.image[top : top + CELL, left : left + CELL]
    return np.repeat(cell[..., None], 3, axis=2) if cell.ndim == 2 else cell


def _sheet(rows: list[list[Image8]]) -> Image.Image:
    """1:1 on top, enlarged below; sizes grow to the right."""
    joined = np.concatenate([np.concatenate(cells, axis=1) for cells in rows])
    small = np.concatenate([np.concatenate(cells, axis=1) for cells in rows], axis=1)
    sheet = Image.new("RGB", (4 * joined.shape[1], CELL + 20 + 4 * joined.shape[0]), "white")
    sheet.paste(Image.fromarray(small), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, size in enumerate(SIZES):
        draw.text((4 * CELL * i + 4, CELL + 4), f"{size} px, 4x", fill="black")
    sheet.paste(Image.fromarray(joined).resize((4 * joined.shape[1], 4 * joined.shape[0]), 0), (0, CELL + 20))
    return sheet


def _cloth_sheet(seed: int) -> Image.Image:
    """Two pieces of each roll at 1:1, and a corner of the first enlarged."""
    sheet = Image.new("RGB", (920, 180 * len(CLOTHS)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, cloth) in enumerate(CLOTHS.items()):
        first, second = (Image.fromarray(weave(cloth, (160, 240), seed + s)).convert("RGB") for s in (0, 1))
        draw.text((4, 180 * i + 2), name, fill="black")
        sheet.paste(first, (0, 180 * i + 16))
        sheet.paste(second, (244, 180 * i + 16))
        sheet.paste(first.crop((0, 0, 108, 40)).resize((432, 160), 0), (488, 180 * i + 16))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_sheets(given.folder, given.seed)


if __name__ == "__main__":
    main()
