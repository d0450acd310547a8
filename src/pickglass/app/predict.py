"""Score, verdict and boxes of images; with a folder also pictures, masks and a table."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pickglass.app.pictures import colour_range, display, heat
from pickglass.app.results import ImageResult, PredictResult
from pickglass.data import MAX_PIXELS, as_table, read_image
from pickglass.errors import InputError
from pickglass.features.engine import EngineName
from pickglass.methods import load
from pickglass.methods.base import Detector, Progress
from pickglass.result import Found, find_defects

__all__ = ["predict"]


def predict(
    model: str | Path | Detector,
    images: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    engine: EngineName = "auto",
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> PredictResult:
    """Judge images, files or folders of them.

    Args:
        model: model file, or a fitted detector.
        images: files and folders.
        out: folder for ``NAME.heat.png``, ``NAME.mask.png`` and ``results.csv``; None: nothing is written.

    The others as in :meth:`pickglass.Detector.predict`. A broken image is named under ``failed``, the rest are kept.
    """
    detector = model if isinstance(model, Detector) else load(model)
    table = as_table([Path(p) for p in images])
    if not table:
        raise InputError("no image was named: expected files or folders of images")
    folder = None if out is None else _folder(out)
    results: list[ImageResult] = []
    result: PredictResult = {"results": results, "failed": []}
    for item in detector.stream(
        table, device=device, engine=engine, workers=workers, max_pixels=max_pixels, progress=progress
    ):
        if not isinstance(item, Found):
            result["failed"].append({"path": item.path, "error": item.error})
            continue
        calibration = detector.calibration
        full = item.full_map()
        limit = calibration.pixel_threshold if calibration else None
        defects = find_defects(full, limit) if limit is not None else []
        results.append(
            {
                "path": item.row.path,
                "score": item.score,
                "verdict": calibration.verdict(item.score) if calibration else None,
                "boxes": [d.box for d in defects],
            }
        )
        if folder is not None:
            _pictures(folder, f"{len(results):04d}-{Path(item.row.path).stem}", item, full, limit, max_pixels)
    if folder is not None:
        _table(folder / "results.csv", results)
    return result


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made into a folder ({error.strerror}): name another one") from error
    return folder


def _pictures(
    folder: Path, name: str, item: Found, full: np.ndarray, threshold: float | None, max_pixels: int
) -> None:
    """Heat map over the image and, with a threshold, the predicted mask, both at the original size."""
    image = display(read_image(item.row.path if item.row.pixels is None else item.row.pixels, max_pixels))
    _write(folder / f"{name}.heat.png", _png(heat(image, full, colour_range(threshold, [item.map]))))
    if threshold is not None:
        _write(folder / f"{name}.mask.png", _png((full > threshold).astype(np.uint8) * 255))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _table(path: Path, results: Sequence[ImageResult]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", "score", "verdict", "boxes"])
    for r in results:
        boxes = ";".join(" ".join(map(str, box)) for box in r["boxes"])
        writer.writerow([r["path"], repr(r["score"]), r["verdict"] or "", boxes])
    _write(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
