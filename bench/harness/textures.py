"""Good pieces of eight textures, and the same with painted defects of several sizes: what bench/vanishing.py judges."""

from __future__ import annotations

import csv
import itertools
import zlib
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from bench.harness.pieces import ON_CLOTH, ON_TEXTURES
from pickglass.data import paint, read_image
from pickglass.data.painting.cloth import Cloth, Weave, weave
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.natural import photograph

PIECE = 128  # px
SMALLEST = 4  # px that paint takes
DEFECTS = (2, 4, 8, 16, 32, 64)  # px
CONTRASTS = (1.0, 0.6, 0.3)
PHOTOS = ("brick", "gravel", "grass")
FILES = ("magnetic_tile", "aitex_fabric04")
TEXTURES = (*get_args(Weave), *PHOTOS, *FILES)
Image8 = npt.NDArray[np.uint8]


class Piece(NamedTuple):
    image: Image8  # (128, 128[, 3])
    group: str


class Judged(NamedTuple):
    """An image to be judged: good (size 0), or with a defect."""

    image: Image8
    mask: npt.NDArray[np.bool_] | None
    size: int  # px
    group: str


def pieces(texture: str, data: Path | None, n: int) -> tuple[list[Piece], list[Piece]]:
    """Cut ``n`` good pieces to learn from, and as many of other places or parts to judge."""
    if texture in get_args(Weave):
        cut = [Piece(weave(Cloth(texture), (PIECE, PIECE), seed), str(seed)) for seed in range(2 * n)]  # type: ignore[arg-type]
        return cut[:n], cut[n:]
    if texture in PHOTOS:
        photo = photograph(texture)  # (512, 512); the halves do not touch
        return _windows(photo, (0, 120), n), _windows(photo, (264, 384), n)
    if data is None:
        raise SystemExit(f"{texture} needs --data, the folder that holds {texture}/train/good")
    folder, rng = data / texture, _rng(texture)
    return (
        _crops(sorted((folder / "train" / "good").iterdir()), {}, n, rng),
        _crops(sorted((folder / "test" / "good").iterdir()), _groups(folder), n, rng),
    )


def _windows(photo: Image8, rows: tuple[int, int], n: int) -> list[Piece]:
    """Evenly over two rows; windows that share much of their place are of one group."""
    columns = np.linspace(0, photo.shape[1] - PIECE, n // 2).astype(int)
    return [
        Piece(photo[y : y + PIECE, x : x + PIECE], f"{y}-{(x + PIECE // 2) // PIECE}")
        for x, y in itertools.product(columns, rows)
    ]


def _groups(folder: Path) -> dict[str, str]:
    file = folder / "groups.csv"
    if not file.exists():
        return {}
    with file.open(newline="") as rows:
        return {Path(row["path"]).name: row["group"] for row in csv.DictReader(rows)}


def _crops(files: list[Path], groups: dict[str, str], n: int, rng: np.random.Generator) -> list[Piece]:
    """Random crops, one file after the other, without dark margins."""
    found: list[Piece] = []
    for file in itertools.islice(itertools.cycle(files), 50 * n):
        image = read_image(file)
        room = [side - PIECE for side in image.shape[:2]]
        if min(room) < 0:
            continue
        y, x = (int(rng.integers(r + 1)) for r in room)
        crop = image[y : y + PIECE, x : x + PIECE]
        sides = [crop.mean(axis=tuple({0, 1, crop.ndim - 1} - {axis})) for axis in (0, 1)]
        if min(side.min() for side in sides) > 0.4 * crop.mean():
            found.append(Piece(crop, groups.get(file.name, file.stem)))
        if len(found) == n:
            return found
    raise SystemExit(f"{files[0].parent}: {len(found)} pieces of {PIECE} px found, {n} are needed")


def judged(texture: str, held_out: list[Piece]) -> list[Judged]:
    """Each piece as it is, and with a defect of every size: a defect that nobody sees ties with its own piece."""
    kinds = ON_CLOTH if texture in get_args(Weave) or texture.startswith("aitex") else ON_TEXTURES
    out = [Judged(piece.image, None, 0, piece.group) for piece in held_out]
    for size in DEFECTS:
        rng = _rng(f"{texture} {size}")
        for i, piece in enumerate(held_out):
            contrast = CONTRASTS[i // len(kinds) % len(CONTRASTS)]
            image, mask = _painted(piece.image, kinds[i % len(kinds)], size, contrast, rng)
            out.append(Judged(image, mask, size, piece.group))
    return out


def _painted(
    image: Image8, kind: Kind, size: int, contrast: float, rng: np.random.Generator
) -> tuple[Image8, npt.NDArray[np.bool_]]:
    if size >= SMALLEST:
        painted = paint(image, kind, size, rng, contrast)
        return painted.image, painted.mask
    times = SMALLEST // size
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    for _ in range(20):  # a weak one may not outlive the reduction
        painted = paint(large, kind, SMALLEST, rng, contrast)
        blocks = painted.image.reshape(PIECE, times, PIECE, times, -1).mean(axis=(1, 3))
        small = blocks.round().astype(np.uint8).reshape(image.shape)
        mask = (small != image).reshape(PIECE, PIECE, -1).any(axis=2)
        if mask.any():
            return small, mask
    raise SystemExit(f"no {kind} of {size} px at contrast {contrast} changes a pixel")


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
