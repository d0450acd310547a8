"""The pieces that the figures of ``bench.defaults`` are about: photographs and a twill with painted defects."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pickglass.data import paint
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.natural import photograph

PIECE = 96  # px
BAND = 384  # rows above teach, rows below test: no pixel is on both sides
SIZES = (8, 16, 32)  # px, longest extent of a painted defect
TEXTURES = ("brick", "gravel", "grass")
ON_TEXTURES: tuple[Kind, ...] = ("scratch", "hole", "stain", "crack", "dent")
CLOTH = Cloth("twill")
ON_CLOTH: tuple[Kind, ...] = ("broken_pick", "missing_end", "slub", "knot", "foreign_fibre", "hole", "stain")


def write_textures(root: Path, seed: int = 0) -> Path:
    """Cut photographs of brick, gravel and grass into pieces: good ones and some with defects.

    Args:
        root: folder to write, in MVTec AD layout; images of an earlier run have the same names.
        seed: decides the painted defects.
    """
    rng = np.random.default_rng(seed)
    for name in TEXTURES:
        _write_surface(root, name, photograph(name), ON_TEXTURES, 1, rng)
    return root


def write_cloth(root: Path, seed: int = 0) -> Path:
    """Weave a twill and cut it into pieces: good ones and some with the defects of a loom.

    Args:
        root: folder to write, in MVTec AD layout; images of an earlier run have the same names.
        seed: decides the cloth and the painted defects.
    """
    piece = weave(CLOTH, (800, 1024), seed)
    _write_surface(root, CLOTH.weave, piece, ON_CLOTH, 3, np.random.default_rng(seed))
    return root


def _write_surface(
    root: Path,
    name: str,
    picture: npt.NDArray[np.uint8],
    kinds: tuple[Kind, ...],
    n_each: int,
    rng: np.random.Generator,
) -> None:
    """Write train and test images of one surface; ``n_each`` defects of each kind and size."""
    for place, piece in _pieces(picture[:BAND], PIECE):
        _write(root / "train" / "good" / f"{name}_{place}.png", piece)
    for place, piece in _pieces(picture[BAND + 16 :], PIECE):
        _write(root / "test" / "good" / f"{name}_{place}.png", piece)
    held_out = [piece for _, piece in _pieces(picture[BAND:], PIECE // 3)]
    for kind, size, n in itertools.product(kinds, SIZES, range(n_each)):
        painted = paint(held_out[rng.integers(len(held_out))], kind, size, rng)
        stem = f"{name}_{n}_{size}px"  # the same for every seed, so that no other run's images stay behind
        _write(root / "test" / kind / f"{stem}.png", painted.image)
        _write(root / "ground_truth" / kind / f"{stem}_mask.png", painted.mask.astype(np.uint8) * 255)


def _pieces(photo: npt.NDArray[np.uint8], step: int) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Cut square pieces out of a photograph in reading order, with their place as text."""
    height, width = photo.shape
    for y in range(0, height - PIECE + 1, step):
        for x in range(0, width - PIECE + 1, step):
            yield f"y{y:03d}_x{x:03d}", photo[y : y + PIECE, x : x + PIECE]


def _write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
