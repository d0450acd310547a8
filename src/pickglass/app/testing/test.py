"""Judge a fitted detector on the test images of a folder: metrics, a report page, and the raw maps on request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePath

from pickglass.app.known_defects import about_defects, defects_told
from pickglass.app.marking.table import COLUMNS
from pickglass.app.models import AnyModel, as_model
from pickglass.app.pages.images import colour_range, shape_of
from pickglass.app.pages.report import Marking, ReportImage, ReportWriter, TiledImage
from pickglass.app.pages.tiles import TileMaps, draw_tiles
from pickglass.app.results import Metrics, TestResult
from pickglass.app.testing.evaluate import Evaluation, evaluate
from pickglass.app.testing.robustness import robustness as judge_robustness
from pickglass.app.testing.saving import saved_arrays, write_arrays
from pickglass.app.testing.selection import select, sentences
from pickglass.app.testing.telling import next_steps, verdict_of
from pickglass.data import DataSource, Table, image_digest
from pickglass.data.files import output_path
from pickglass.errors import DataError, Failure, ImageError
from pickglass.metrics import SaturatedResult
from pickglass.result import Prediction, find_defects
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.exported import ExportedModel

__all__ = ["test", "write_report"]

_NO_METRICS = ("verdict", "next", "by_type", "left_out", "notes", "failed", "report", "robustness")
_LISTED = ("fitted_images", "image_names")  # of the provenance: an entry an image, too long for a page


def test(
    model: str | Path | AnyModel,
    data: DataSource | str | Path,
    report: str | Path | None = None,
    *,
    save: str | Path | None = None,
    intervals: int = 0,
    robustness: str | Path | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> TestResult:
    """Judge the images of a folder that the model was not fitted on, and compute the metrics.

    Where the data set has a test part, that is judged, and needs no training images beside it.

    Args:
        model: model file, or a fitted detector.
        data: folder in any layout that :func:`pickglass.load_dataset` knows, or how to read it; a region of interest
            and a size of a pixel that it gives stand in place of the model's own.
        report: HTML file to write.
        save: ``.npz`` to write, with the arrays of :func:`pickglass.app.testing.saving.saved_arrays`.
        intervals: bootstrap replicates by group for 95 % intervals, e.g. 1000; 0: no intervals.
        robustness: HTML file to write about the metrics under light, blur, noise, JPEG, shift and rotation; takes 33
            times as long. None: not judged.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        DataError: there is no test image, or none can be read.
    """
    page = None if report is None else output_path(report, ".html")
    robustness_page = None if robustness is None else output_path(robustness, ".html")
    archive = None if save is None else output_path(save, ".npz")
    detector = as_model(model)
    source, run = DataSource.of(data), compute or ComputeOptions()
    dataset = source.load(training=False)
    chosen = select(dataset, [detector.provenance])
    if not chosen.table:
        why = " ".join(sentences(chosen.left_out))
        raise DataError(
            f"{source.path} has no image to judge the model by: expected a folder 'test', or good and bad images. {why}"
        )
    dataset = replace(dataset, table=source.placed(chosen.table))
    detector.predict(dataset.test[:1], **run.arguments())  # sets the engine up, which images_per_s does not count
    began = time.perf_counter()
    prediction = detector.predict(dataset.test, progress=progress, **run.arguments())
    seconds = time.perf_counter() - began
    if not len(prediction):
        raise DataError(f"{source.path}: none of the test images can be read:", prediction.failed)
    evaluation = evaluate(prediction, repeats=intervals)
    result: TestResult = {
        **evaluation.overall,
        "verdict": verdict_of(evaluation.overall, prediction.calibration),
        "next": next_steps(
            prediction,
            evaluation.overall,
            detector.provenance.suspicious if detector.provenance.left_out is None else (),
            model=str(model) if isinstance(model, (str, Path)) else "MODEL",
            data=str(source.path),
        ),
        "images_per_s": len(prediction) / seconds,
        "report": None if page is None else str(page),
        "by_type": evaluation.by_type,
        "left_out": chosen.left_out,
        "notes": list(evaluation.notes),
        "failed": [{"path": path, "error": error} for path, error in prediction.failed],
        "robustness": None,
    }
    if archive is not None:
        write_arrays(archive, {"": saved_arrays(prediction, evaluation)})
    if page is not None:
        named = Path(model).name if isinstance(model, (str, Path)) else None
        write_report(page, detector, prediction, evaluation, result, dataset.name, progress, file=named)
    if robustness_page is not None:
        result["robustness"] = judge_robustness(detector, dataset, robustness_page, compute=run, progress=progress)
    return result


def write_report(
    target: Path,
    detector: AnyModel,
    prediction: Prediction,
    evaluation: Evaluation,
    result: TestResult,
    name: str,
    progress: Progress | None = None,
    names: Mapping[str, str] | None = None,
    file: str | None = None,
) -> Path:
    """Write the HTML page of a test; images are read again one by one.

    Args:
        target: HTML file.
        detector: the model that judged.
        prediction: what it found.
        evaluation: the metrics of that.
        result: what the test says.
        name: what the images are called together.
        progress: called with (stage, done, total).
        names: what to call an image, by its path, where the reader is not to know of paths; None: by its path.
        file: name of the model's file; None: it has none.
    """
    named = names or {}
    hidden = _LISTED if names is None else (*_LISTED, "suspicious", "known_defects")
    threshold = prediction.calibration.pixel_threshold if prediction.calibration else None
    scale = colour_range(threshold, prediction.maps)
    with ReportWriter(target, f"{name}: {detector.title}", scale) as writer:
        lost: list[Failure] = []
        for i, found in enumerate(prediction):
            row = found.row
            full = found.full_map()
            try:
                item = ReportImage(
                    path=named.get(row.path, row.path),
                    defect=row.defect,
                    label=row.label,
                    score=found.score,
                    verdict=prediction.verdict(i),
                    image=row.image(),
                    map=full,
                    mask=row.truth(found.size),
                    predicted=None if threshold is None else full > threshold,
                    boxes=[] if threshold is None else [d.box for d in find_defects(full, threshold)],
                    parts=detector.parts_of(found),
                    digest=image_digest(row) if row.pixels is None else None,
                )
            except ImageError as error:  # it was there when it was judged
                lost.append(Failure(named.get(row.path, row.path), error.reason))
                continue
            writer.add(item)
            if progress is not None:
                progress("writing the report", i + 1, len(prediction))
        return writer.finish(
            verdict=result["verdict"],
            facts=_facts(detector, prediction, result, name, file),
            steps=[(step["text"], step["command"]) for step in result["next"]],
            metrics={key: value for key, value in result.items() if key not in _NO_METRICS},
            by_type=evaluation.by_type,
            curves=evaluation.curves(),
            configuration=detector.configuration(),
            provenance={k: v for k, v in detector.provenance.to_json().items() if k not in hidden},
            failed=[Failure(named.get(path, path), error) for path, error in prediction.failed] + lost,
            threshold=prediction.calibration.image_threshold if prediction.calibration else None,
            unsure=prediction.calibration.unsure_threshold if prediction.calibration else None,
            notes=(
                *_shown(detector),
                *evaluation.notes,
                *_notes(evaluation),
            ),
            tiles=_tiles(detector, prediction, scale),
            marking=Marking(detector.model_id(), detector.model_version, COLUMNS),
        )


def _facts(
    detector: AnyModel, prediction: Prediction, result: TestResult, name: str, file: str | None
) -> list[tuple[str, str]]:
    """Say when which model judged which images."""
    provenance, calibration = detector.provenance, prediction.calibration
    unknown = result["n"] - result["n_good"] - result["n_defective"] if not result["n_good"] else 0
    images = f"{name}: {result['n_good']} good and {result['n_defective']} defective images"
    if not result["n_good"] + result["n_defective"]:
        images = f"{name}: {unknown} images, of which nobody knows whether they are good"
    failed = f", {len(prediction.failed)} could not be read" if prediction.failed else ""
    fitted = f", fitted {_day(provenance.fitted)} UTC" if provenance.fitted else ""
    left_out = sentences(result["left_out"])
    facts = [
        ("Judged", _minute(datetime.now().astimezone())),
        ("Images", " ".join([f"{images}{failed}.", *left_out])),
        (
            "Model",
            f"{detector.title}{'' if file is None else f', {file}'}, id {detector.model_id()}, version "
            f"{detector.model_version}{fitted} on {provenance.n_fit:,} good images",
        ),
    ]
    if calibration is not None and calibration.image_threshold is not None:
        lower = calibration.unsure_threshold
        between = "" if lower is None else f", unsure above {lower:.4g}"
        rule = calibration.sentence or (
            f"the highest score of {len(calibration.scores)} good images held back from training, "
            "with no stated false-alarm rate"
        )
        facts.append(("Threshold", f"bad above {calibration.image_threshold:.4g}{between}: {rule.rstrip('.')}"))
    return facts


def _minute(time: datetime) -> str:
    """Write a time with its distance from UTC.

    >>> [_minute(datetime.fromisoformat(f"2026-11-27T11:23:59{zone}")) for zone in ("+00:00", "+01:00")]
    ['2026-11-27 11:23 UTC', '2026-11-27 11:23 UTC+01:00']
    """
    zone = "UTC" if not time.utcoffset() else f"UTC{time.isoformat()[-6:]}"
    return f"{time:%Y-%m-%d %H:%M} {zone}"


def _day(stamp: str) -> str:
    return stamp[:16].replace("T", " ")


def _shown(detector: AnyModel) -> list[str]:
    """Say which known defects the fit was shown."""
    known, calibration = detector.provenance.known_defects, detector.calibration
    if not known:
        return []
    unsure = None if calibration is None else calibration.unsure_threshold
    return [f"Known defects: {defects_told(about_defects(known), unsure)}."]


def _tiles(detector: AnyModel, prediction: Prediction, scale: tuple[float, float]) -> list[TiledImage]:
    """Draw how the maps of a few images were put together: the highest scores, and the defect seen the least."""
    if isinstance(detector, ExportedModel):  # its graph gives the joined map alone
        return []
    tiles = detector.tiles
    if tiles is None or tiles.n == 1:
        return []
    rising = sorted(prediction, key=lambda found: found.score)
    good, bad = ([f for f in rising if f.row.label == label] for label in (0, 1))
    chosen = [*(bad[::-1] or rising[::-1])[:2], *bad[:1], *good[-1:]]
    shown = []
    for found in {id(f): f for f in chosen}.values():
        for canvas, parts in detector.tile_parts(Table([found.row])):
            mask = found.row.truth(found.size)
            placed = None if mask is None else detector.preprocess.kept(found.size, mask)
            heading = f"{PurePath(found.row.path).name}: {found.row.defect or 'good'}, score {found.score:.4g}"
            maps = TileMaps(
                scores=parts.scores[0].cpu().numpy(),
                maps=parts.maps[0].cpu().numpy(),
                averaged=parts.averaged[0].cpu().numpy(),
                joined=parts.joined[0].cpu().numpy(),
                tiling=tiles.tiling,
                join=tiles.settings.join,
            )
            shown.append(TiledImage(heading, shape_of(*canvas.shape[1:]), draw_tiles(canvas, maps, scale, placed)))
    return shown


def _notes(evaluation: Evaluation) -> list[str]:
    notes = []
    if evaluation.pixels is not None:
        notes.append(
            f"Pixel metrics: {evaluation.pixels.n_regions} regions of 8-connected defect pixels, "
            f"{evaluation.pixels.n_ok_pixels:,} good pixels of all images (good images count), original resolution, "
            "AUPRO as MVTec AD defines it. AUPIMO: mean over defective images of the recall at a false-positive rate "
            "of good images alone between 1e-5 and 1e-4."
        )
    if evaluation.saturated is not None:
        notes.append(_about_spro(evaluation.saturated, evaluation.by_type))
    return notes


def _about_spro(saturated: SaturatedResult, by_type: Mapping[str, Metrics]) -> str:
    each = {kind: metrics["au_spro_05"] for kind, metrics in by_type.items() if metrics["au_spro_05"] is not None}
    mean = (
        f" The mean of its figures for {' and '.join(each)}, as MVTec LOCO's tables give it, is "
        f"{sum(each.values()) / len(each):.3f}."
        if len(each) > 1
        else ""
    )
    return (
        f"AU-sPRO@0.05 as MVTec LOCO AD defines it: {saturated.n_regions} defects as the data set tells them apart; a "
        "defect is found as far as its saturation area is covered; the mean over all defects up to a false-positive "
        f"rate of 0.05, divided by it.{mean}"
    )
