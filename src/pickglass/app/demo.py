"""The whole way in a minute: real textures, painted defects on pieces that were held out, fit, test, report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from pickglass.app.fit import fit
from pickglass.app.results import DemoResult
from pickglass.app.test import test
from pickglass.data import paint
from pickglass.data.defects import Kind
from pickglass.data.files import written_whole
from pickglass.errors import InputError
from pickglass.methods.running import Progress

__all__ = ["demo", "write_textures"]

PIECE = 96  # px
BAND = 384  # rows above teach, rows below test: no pixel is on both sides
SIZES = (8, 16, 32)  # px, longest extent of a painted defect
TEXTURES = ("brick", "gravel", "grass")


def demo(folder: str | Path = "pickglass-demo", *, seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Write a small data set in MVTec AD layout, fit PatchCore on it, test it and write the report.

    Args:
        folder: made if needed; ``textures/``, ``model.safetensors`` and ``report.html`` in it are replaced.
        seed: of the painted defects and the split.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: name a folder to write the demo to")
    write_textures(root / "textures", seed)
    model = root / "model.safetensors"
    fitted = fit(root / "textures", model, settings={"size": 2 * PIECE}, seed=seed, progress=progress)
    tested = test(model, root / "textures", root / "report.html", progress=progress)
    return {"folder": str(root), "model": str(model), "fit": fitted, "test": tested}


def write_textures(root: Path, seed: int = 0) -> Path:
    """Cut scikit-image's photographs of brick, gravel and grass into pieces: good ones and some with defects.

    Args:
        root: folder to write, in MVTec AD layout; images of an earlier run have the same names.
        seed: of the painted defects.
    """
    from skimage import data

    rng = np.random.default_rng(seed)
    for name in TEXTURES:
        photo: npt.NDArray[np.uint8] = getattr(data, name)()  # (512, 512)
        for place, piece in _pieces(photo[:BAND], PIECE):
            _write(root / "train" / "good" / f"{name}_{place}.png", piece)
        for place, piece in _pieces(photo[BAND + 16 : BAND + 16 + PIECE], PIECE):
            _write(root / "test" / "good" / f"{name}_{place}.png", piece)
        held_out = list(_pieces(photo[BAND:], PIECE // 3))
        for kind in get_args(Kind):
            for size in SIZES:
                place, piece = held_out[rng.integers(len(held_out))]
                painted = paint(piece, kind, size, rng)
                stem = f"{name}_{place}_{size}px"
                _write(root / "test" / kind / f"{stem}.png", painted.image)
                _write(root / "ground_truth" / kind / f"{stem}_mask.png", painted.mask.astype(np.uint8) * 255)
    return root


def _pieces(photo: npt.NDArray[np.uint8], step: int) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Square pieces of a photograph in reading order, with their place as text."""
    height, width = photo.shape
    for y in range(0, height - PIECE + 1, step):
        for x in range(0, width - PIECE + 1, step):
            yield f"y{y:03d}_x{x:03d}", photo[y : y + PIECE, x : x + PIECE]


def _write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        Image.fromarray(pixels).save(temporary)
