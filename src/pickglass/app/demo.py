"""The demo goes the whole way in two minutes: it fits, tests and reports on photographs and on woven cloth.

The defects are painted on pieces that were held out. On the cloth, whose smallest defects are 8 pixels, the default
misses what it cannot see; the advisor, which looks at good pieces alone, says which layers see it, and the model that
it advises is judged beside the default.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pickglass.app.advise.advise import advise
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.fit import FitRequest, fit
from pickglass.app.results import AdviseResult, DemoResult, DemoWithCloth
from pickglass.app.testing.compare import compare
from pickglass.app.testing.test import test
from pickglass.data import paint
from pickglass.data.files import written_whole
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.natural import photograph
from pickglass.errors import InputError
from pickglass.runtime.compute import Progress

__all__ = ["demo", "write_cloth", "write_textures"]

BACKBONE = "efficientnet_lite0"
PIECE = 96  # px
BAND = 384  # rows above teach, rows below test: no pixel is on both sides
SIZES = (8, 16, 32)  # px, longest extent of a painted defect
TEXTURES = ("brick", "gravel", "grass")
ON_TEXTURES: tuple[Kind, ...] = ("scratch", "hole", "stain", "crack", "dent")
CLOTH = Cloth("twill")
ON_CLOTH: tuple[Kind, ...] = ("broken_pick", "missing_end", "slub", "knot", "foreign_fibre", "hole", "stain")


def demo(folder: str | Path = "pickglass-demo", *, seed: int = 0, progress: Progress | None = None) -> DemoWithCloth:
    """Write two small data sets in MVTec AD layout, fit PatchCore on each, test it and write the report.

    Args:
        folder: made if needed; ``textures/``, ``model.safetensors`` and ``report.html`` in it are replaced, and so are
            ``cloth/``, ``cloth.safetensors``, ``cloth.html``, ``advice.html``, ``advised.safetensors``,
            ``advised.html`` and ``compared.html``.
        seed: decides the cloth, the painted defects and the split.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: name a folder to write the demo to")
    textures = _run(root, write_textures(root / "textures", seed), "model", "report", FitRequest(seed=seed), progress)
    data = write_cloth(root / "cloth", seed)
    cloth = _run(root, data, "cloth", "cloth", FitRequest(seed=seed), progress)
    asked = AdviseRequest(min(SIZES), backbones=(BACKBONE,), seed=seed)
    advice = advise(data, asked, root / "advice.html", progress=progress)
    advised = _run(root, data, "advised", "advised", _advised(advice, seed), progress)
    page = root / "compared.html"
    compare([cloth["model"], advised["model"]], data, page, progress=progress)
    return {**textures, "cloth": cloth, "advice": advice, "advised": advised, "compared": str(page)}


def _advised(advice: AdviseResult, seed: int) -> FitRequest:
    """Return the request to fit that the advice's command makes; the default where nothing was found."""
    for one in advice["ranking"]:
        if one["command"] == advice["command"]:
            settings = {"backbone": one["backbone"], "layers": tuple(one["layers"]), "size": tuple(one["size"])}
            tile = one["tile"]
            tiling = None if tile is None else {"tile": tuple(tile), "stride": tuple(tile)}
            return FitRequest(method=one["method"], settings=settings, tiling=tiling, seed=seed)
    return FitRequest(seed=seed)


def _run(root: Path, data: Path, model: str, report: str, request: FitRequest, progress: Progress | None) -> DemoResult:
    written = root / f"{model}.safetensors"
    fitted = fit(data, written, request, progress=progress)
    tested = test(written, data, root / f"{report}.html", progress=progress)
    return {"folder": str(root), "model": str(written), "fit": fitted, "test": tested}


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
    with written_whole(path) as temporary:
        Image.fromarray(pixels).save(temporary)
