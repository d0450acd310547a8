"""Judge images: score, verdict and boxes; with a folder also pictures, masks and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from PIL import Image

from pickglass.app.jobs.executors import Where
from pickglass.app.judgements import IMAGES, write_tables
from pickglass.app.models import AnyModel, as_model
from pickglass.app.pages.images import colour_range, display, heat
from pickglass.app.results import DefectResult, ImageResult, PredictResult
from pickglass.app.spread import judge_apart, usual_engine
from pickglass.app.submission import Submission, private_images
from pickglass.calibration import Calibration
from pickglass.data import tables_at, with_pixel_mm, with_roi
from pickglass.data.files import written_whole
from pickglass.data.tables.cells import Cell
from pickglass.errors import InputError
from pickglass.result import FloatArray, Found, find_defects, record
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.exported import ExportedModel

__all__ = ["judged_image", "predict"]


def predict(
    model: str | Path | AnyModel,
    images: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    submission: str | Path | None = None,
    roi: str | Path | None = None,
    pixel_mm: float | None = None,
    where: Where | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Judge images, files or folders of them.

    Args:
        model: model file, or a fitted detector.
        images: files and folders.
        out: folder for ``NAME.heat.png``, the map of each part of it where it has several (``NAME.patchcore.png``),
            ``NAME.mask.png``, ``results.csv`` (one row an image, also of those that
            failed) and ``defects.csv`` (one row a defect), see :mod:`pickglass.app.judgements`; None: nothing is
            written. Images of 16 bits or floats are drawn as reports draw them, from the darkest to the brightest value
            of each image.
        submission: folder for the evaluation server of MVTec AD 2: ``images`` is then the folder of one category, whose
            private images are judged; see :mod:`pickglass.app.submission`.
        roi: region of interest, a mask or a folder of masks; None: the model's.
        pixel_mm: side of a pixel on the part in millimetres; None: the model's.
        where: in other processes of this machine or on a cluster, see :mod:`pickglass.app.spread`; None: here.
        compute: where to compute.
        progress: called with (stage, done, total).

    Returns:
        One entry an image; a broken image is named under ``failed``, and the rest are kept.

    Raises:
        InputError: no image, one that is named twice, a path that does not exist, a folder that cannot be made, or
            no machine that has what ``where`` asks for.
        DataError: ``submission`` of another data set.
    """
    run = compute or ComputeOptions()
    detector = as_model(model)
    calibration = detector.current_calibration()
    limit = calibration.pixel_threshold if calibration else None
    if submission is None:
        table, writer = tables_at(images), None
    elif len(images) != 1:
        raise InputError(f"{len(images)} folders for a submission: expected that of one category of MVTec AD 2")
    else:
        category = private_images(images[0])
        table, writer = category.private, Submission(submission, category.name, limit)
    table = with_pixel_mm(with_roi(table, roi), pixel_mm)
    folder = None if out is None else _folder(out)
    results: list[ImageResult] = []
    result: PredictResult = {
        "model_id": detector.model_id(),
        "model_version": detector.model_version,
        "threshold": calibration.image_threshold if calibration else None,
        "unsure_threshold": calibration.unsure_threshold if calibration else None,
        "results": results,
        "failed": [],
        "stale": bool(calibration and calibration.stale),
        "runtime": None,
    }
    rows: list[list[Cell]] = []
    about: dict[str, Cell] = {"model_id": result["model_id"], "model_version": result["model_version"]}
    if where is None:
        judged_images = detector.stream(table, progress=progress, **run.arguments())
    else:
        judged_images = judge_apart(detector, model, table, where, run, progress)
    for item in judged_images:
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        columns = record(item, calibration) | about | {"time": time}
        rows.append([columns[name] for name in IMAGES])
        if not isinstance(item, Found):
            result["failed"].append({"path": item.path, "error": item.error})
            continue
        full = item.full_map()
        if writer is not None:
            writer.write(item.row, full)
        judged = judged_image(item, full, calibration, time)
        results.append(judged)
        if folder is not None:
            name = f"{len(results):04d}-{Path(item.row.path).stem}"
            _pictures(folder, name, item, {"heat": full, **detector.parts_of(item)}, limit, run.max_pixels)
    if isinstance(detector, ExportedModel):
        result["runtime"] = detector.runtime if where is None else usual_engine(detector, run).engine
    if folder is not None:
        write_tables(folder, rows, [line for judged in results for line in _defect_lines(judged)])
    return result


def judged_image(item: Found, full: FloatArray, calibration: Calibration | None, time: str) -> ImageResult:
    """Return what is reported of an image: verdict, defects, p-value, type.

    Args:
        item: what the model found.
        full: its map at the original size, (H, W).
        calibration: the model's thresholds; None: no verdict.
        time: when it was judged, UTC.
    """
    limit = calibration.pixel_threshold if calibration else None
    rarity = calibration.p_value(item.score) if calibration else None
    named = item.named
    defects: list[DefectResult] = [
        {
            "box": found.box,
            "area_px": found.area,
            "area_mm2": None if item.pixel_mm is None else found.area * item.pixel_mm**2,
            "peak": found.peak,
            # what a model is taught names the region of the highest peak, which comes first
            "type": named.type if named and place == 0 else None,
        }
        for place, found in enumerate(find_defects(full, limit) if limit is not None else [])
    ]
    return {
        "path": item.row.path,
        "score": item.score,
        "verdict": calibration.verdict(item.score) if calibration else None,
        "defects": defects,
        "p_value": rarity.p if rarity else None,
        "p_value_log10": rarity.log10 if rarity else None,
        "p_value_extrapolated": rarity.extrapolated if rarity else None,
        "type": named.type if named else None,
        "type_probability": named.probability if named else None,
        "time": time,
    }


def _defect_lines(judged: ImageResult) -> list[list[Cell]]:
    image = (judged["path"], judged["verdict"])
    return [
        [*image, number, *defect["box"], defect["area_px"], defect["area_mm2"], defect["peak"], defect["type"]]
        for number, defect in enumerate(judged["defects"], start=1)
    ]


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made into a folder ({error.strerror}): name another one") from error
    return folder


def _pictures(
    folder: Path, name: str, item: Found, maps: Mapping[str, FloatArray], threshold: float | None, max_pixels: int
) -> None:
    """Write maps over the image in one scale of colours and, with a threshold, the predicted mask, at original size."""
    image = display(item.row.image(max_pixels))
    scale = colour_range(threshold, [] if threshold else [item.map])
    pictures = {kind: heat(image, map_, scale) for kind, map_ in maps.items()}
    if threshold is not None:
        pictures["mask"] = (maps["heat"] > threshold).astype(np.uint8) * 255
    for kind, pixels in pictures.items():
        with written_whole(folder / f"{name}.{kind}.png") as temporary:
            Image.fromarray(pixels).save(temporary)
