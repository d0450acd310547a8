"""The demo goes the whole way in minutes, on cloth with defects so small that they vanish where it is squeezed.

Three models learn the same good pieces and are judged on the same others: one that squeezes every piece to 256 x 256
pixels, as is usual, the default of ``fit``, and the one that the advisor finds on good pieces alone. All three make the
same promise about good pieces, which fresh ones check. The cloth and its defects were chosen on pieces of other seeds.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pickglass.app.advise.advise import advise
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.fit import FitRequest, fit
from pickglass.app.models import load
from pickglass.app.pages.demo import write_demo
from pickglass.app.results import AdviseResult, DemoModel, DemoResult
from pickglass.app.see.look import look_through
from pickglass.app.see.request import BackboneRequest
from pickglass.app.testing.evaluate import evaluate
from pickglass.app.testing.sampling import choose_images
from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.data import MAX_PIXELS, Row, Table, load_dataset, paint
from pickglass.data.files import written_whole
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind
from pickglass.errors import InputError
from pickglass.result import Prediction
from pickglass.runtime.compute import Progress

__all__ = ["demo", "write_pieces"]

BACKBONE = "efficientnet_lite0"
CLOTH = Cloth("twill", 6.7, 6.7, irregularity=0.03, hairiness=0.0, tension=0.4, lighting=0.05)  # a filter of filaments
PIECE = 320  # px, side of a piece
SQUEEZED = 256  # px, to which most libraries squeeze every image
SIZES = (8, 10)  # px, longest extent of a defect
KINDS: tuple[Kind, ...] = ("broken_pick", "missing_end", "slub", "knot", "foreign_fibre", "hole", "stain")
EACH = 2  # defects of a kind and size
TAUGHT, PROMISED, FRESH = 24, 60, 40  # good pieces: to learn, for the promise, to check it
FALSE_ALARM, CONFIDENCE = 0.05, 0.95  # the promise, which takes 59 good pieces
SHOWN = 12  # pieces on the page


def demo(folder: str | Path = "pickglass-demo", *, seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Weave cloth with tiny defects, ask the advisor, fit three models, and put them side by side on one page.

    Args:
        folder: made if needed; ``pieces/``, ``more_good_pieces/``, ``squeezed.safetensors``, ``default.safetensors``,
            ``advised.safetensors``, ``advice.html`` and ``demo.html`` in it are replaced.
        seed: decides the cloth, the painted defects and the split.
    """
    began = time.perf_counter()
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: name a folder to write the demo to")
    data, more = write_pieces(root, seed, progress=progress)
    advice = advise(
        data, AdviseRequest(min(SIZES), backbones=(BACKBONE,), seed=seed), root / "advice.html", progress=progress
    )
    requests = {
        "squeezed": FitRequest(settings={"size": SQUEEZED}, seed=seed),
        "default": FitRequest(seed=seed),
        "advised": _advised(advice, seed),
    }
    test = load_dataset(data).test
    models, predictions = [], []
    for name, request in requests.items():
        model, prediction = _judged(root / f"{name}.safetensors", data, more, test, request, progress)
        models.append(model)
        predictions.append(prediction)
    found = [[prediction.verdict(i) == "bad" for i in range(len(test))] for prediction in predictions]
    piece = _telling(test, found[0], found[-1])
    looks = [
        look_through(
            piece.path,
            BackboneRequest(BACKBONE, size=_pair(model["fit"]["canvas"])),
            mask=_mask(data, Path(piece.path)),
        )
        for model in (models[0], models[-1])
    ]
    result: DemoResult = {
        "folder": str(root),
        "data": str(data),
        "defect_px": float(min(SIZES)),
        "piece_px": PIECE,
        "models": models,
        "advice": advice,
        "layers": {"squeezed": looks[0].result["layers"], "advised": looks[1].result["layers"]},
        "page": str(root / "demo.html"),
        "seconds": 0.0,
    }
    shown = choose_images(Table(predictions[0].rows), SHOWN)
    result["seconds"] = time.perf_counter() - began
    seen = [(look.scene, look.views) for look in looks]
    write_demo(root / "demo.html", result, seen, predictions, shown, MAX_PIXELS)
    return result


def _advised(advice: AdviseResult, seed: int) -> FitRequest:
    """Return the request to fit that the advice's command makes; the default where nothing was found."""
    for one in advice["ranking"]:
        if one["command"] == advice["command"]:
            settings = {"backbone": one["backbone"], "layers": tuple(one["layers"]), "size": tuple(one["size"])}
            tile = one["tile"]
            tiling = None if tile is None else {"tile": tuple(tile), "stride": tuple(tile)}
            return FitRequest(one["method"], settings=settings, tiling=tiling, seed=seed)
    return FitRequest(seed=seed)


def _judged(
    path: Path, data: Path, more: Path, test: Table, request: FitRequest, progress: Progress | None
) -> tuple[DemoModel, Prediction]:
    """Fit a model, set its threshold with the promise, and judge the pieces that it was not fitted on."""
    fitted = fit(data, path, request, progress=progress)
    promise = threshold(path, more, ThresholdRequest("tolerance", FALSE_ALARM, CONFIDENCE), progress=progress)
    prediction = load(path).predict(test, progress=progress)
    verdicts = [(row.label, prediction.verdict(i)) for i, row in enumerate(prediction.rows)]
    good = [verdict for label, verdict in verdicts if label == 0]
    defective = [verdict for label, verdict in verdicts if label == 1]
    model: DemoModel = {
        "name": path.stem,
        "model": str(path),
        "fit": fitted,
        "threshold": promise,
        "missed": sum(verdict != "bad" for verdict in defective),
        "n_defective": len(defective),
        "flagged": sum(verdict == "bad" for verdict in good),
        "n_good": len(good),
        "metrics": evaluate(prediction).overall,
    }
    return model, prediction


def _telling(test: Table, squeezed: Sequence[bool], advised: Sequence[bool]) -> Row:
    """Choose the piece whose layers are shown: the first that only the advised model finds, or any with a defect."""
    defective = [i for i, row in enumerate(test) if row.label == 1]
    gained = [i for i in defective if advised[i] and not squeezed[i]]
    return test[(gained or defective)[0]]


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return size[0], size[1]


def write_pieces(root: Path, seed: int = 0, *, progress: Progress | None = None) -> tuple[Path, Path]:
    """Weave pieces of cloth, each a picture of its own, and write them; return the two folders.

    ``pieces/`` is a data set in MVTec AD layout: good pieces to learn from; good ones, and some with a defect of a loom
    and its mask, to judge. ``more_good_pieces/`` sets thresholds.

    Args:
        root: folder to write to; images of an earlier run have the same names.
        seed: decides the cloth and the painted defects.
        progress: called with (stage, done, total).
    """
    data, more = root / "pieces", root / "more_good_pieces"
    train, fresh = data / "train" / "good", data / "test" / "good"
    wanted: list[tuple[Path, Kind | None, float]] = []
    for folder, n in ((train, TAUGHT), (more, PROMISED), (fresh, FRESH)):
        wanted += [(folder / f"{i:03d}.png", None, 0.0) for i in range(n)]
    for kind, size, i in itertools.product(KINDS, SIZES, range(EACH)):
        wanted.append((data / "test" / kind / f"{i}_{size}px.png", kind, size))

    def write(job: tuple[int, tuple[Path, Kind | None, float]]) -> None:
        number, (path, kind, size) = job
        pixels = weave(CLOTH, (PIECE, PIECE), number)
        if kind is not None:
            painted = paint(pixels, kind, size, np.random.default_rng(number))
            pixels = painted.image
            _write(_mask(data, path), painted.mask.astype(np.uint8) * 255)
        _write(path, pixels)

    with ThreadPoolExecutor(2) as pool:
        for done, _ in enumerate(pool.map(write, enumerate(wanted, start=10_000 * (seed + 1))), start=1):
            if progress is not None:
                progress("weaving", done, len(wanted))
    return data, more


def _mask(root: Path, piece: Path) -> Path:
    return root / "ground_truth" / piece.parent.name / f"{piece.stem}_mask.png"


def _write(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=1)
