"""Let a model learn further good images, and say what that changed for images whose kind is known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor

from pickglass.app.marking.images import MarkedImages, MarkedTables
from pickglass.app.results import Failed, MarksUsed, UpdatedImage, UpdateResult
from pickglass.calibration import Calibration
from pickglass.data import Dataset, DataSource, Table, as_table, group_by, image_digest, load_dataset, with_roi
from pickglass.data.files import alone, check_exist, output_path
from pickglass.data.tables.joining import join_tables
from pickglass.detectors.contamination import CleanCheck
from pickglass.detectors.detector import Detector
from pickglass.detectors.drift_sample import DriftSample
from pickglass.detectors.fitting import FitObserver
from pickglass.detectors.loading import LoadedBatch
from pickglass.errors import DataError, InputError
from pickglass.methods import load
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["UpdateRequest", "update"]

Images: TypeAlias = DataSource | Dataset | Table | str | Path


@dataclass(frozen=True)
class UpdateRequest:
    """The way in which a model is to learn further images.

    Attributes:
        calibrate: share of the new images that is held back for the thresholds; None: none, where the method can judge
            each as if it had been left out, otherwise 0.25.
        seed: decides the split and everything else that is drawn at random.
        memory_gb: budget in gigabytes for what the method holds.
        drop_suspicious: leave out new images that look like none of the other new ones.
    """

    calibrate: float | None = None
    seed: int = 0
    memory_gb: float = 4.0
    drop_suspicious: bool = False


def update(
    model: str | Path,
    images: Images | None,
    output: str | Path | None = None,
    request: UpdateRequest | None = None,
    *,
    earlier: Images | None = None,
    bad: Sequence[str | Path] = (),
    marks: MarkedImages | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> UpdateResult:
    """Learn further good images, set the thresholds anew, and write the model.

    Args:
        model: model file.
        images: new good images: files and folders, how to read them, a data set, or rows; test images are not read.
            None: those that are marked good.
        output: file to write; None: the model's own, replaced whole or not at all.
        request: how; None: as it comes.
        earlier: good images from before, likewise; see :meth:`pickglass.Detector.update`.
        bad: files and folders of known bad images; of a data set its defective ones. They are only judged, before and
            after: nothing is learned from them, and no threshold hangs on them. Where one that was found before is
            found no more, the model is not replaced; another output is written all the same.
        marks: images that were marked: good ones to learn beside ``images``, bad ones that are known as ``bad`` is.
            Of ``images``, those that are marked bad or unsure are not learned.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        InputError: the model cannot be updated, or a path cannot be used; the model stays as it was.
        DataError: no new image, too few, or broken ones, all listed; the model stays as it was.
    """
    target = output_path(output or model, ".safetensors")
    with alone(target):
        wish, run = request or UpdateRequest(), compute or ComputeOptions()
        detector = load(model)
        marked = None if marks is None else marks.load()
        new, kept_out = _new(images, marked)
        old = None if earlier is None else _good(earlier)
        known_bad = _bad(bad, images.roi if isinstance(images, DataSource) else None)
        if marked is not None:
            known_bad = _with_marked_bad(known_bad, marked)
        until_now = _Verdicts(detector, new, run, progress)
        bad_until_now = _Verdicts(detector, known_bad, run, progress)
        seen = _Seen()
        detector.update(
            new,
            earlier=old,
            calibrate=wish.calibrate,
            seed=wish.seed,
            memory_gb=wish.memory_gb,
            observers=[CleanCheck(drop=wish.drop_suspicious), DriftSample(), seen],
            progress=progress,
            **run.arguments(),
        )
        known = set(until_now.fitted)
        fitted = set(detector.provenance.fitted_images or ()) - known
        digests = {row.path: image_digest(row)[:16] for row in new if row.path in until_now.scores}
        learned = new.where(lambda row: digests.get(row.path) in fitted and row.path not in seen.scores)
        now = _Verdicts(detector, learned, run, progress)
        judged = "left out" if _told(detector)["left_out_judged"] else "held back"
        kinds = {**dict.fromkeys(now.scores, "learned"), **dict.fromkeys(seen.scores, judged)}
        of_new = [
            until_now.beside({**now.scores, **seen.scores}, detector.calibration, row.path, kinds[row.path])
            for row in new
            if row.path in kinds and row.path in until_now.scores
        ]
        bad_now = _Verdicts(detector, known_bad, run, progress)
        of_bad = [
            bad_until_now.beside(bad_now.scores, detector.calibration, path, "bad")
            for path in bad_until_now.scores
            if path in bad_now.scores
        ]
        lost = [image["path"] for image in of_bad if image["verdict_before"] == "bad" and image["verdict"] != "bad"]
        replaces = os.path.realpath(target) == os.path.realpath(model)
        written = None if lost and replaces else str(detector.save(target))
        paths = {row.path for row in new}
        result = _result(
            detector,
            until_now.calibration,
            paths,
            wish.drop_suspicious,
            of_new,
            of_bad,
            lost,
            written,
            bad_until_now.failed,
        )
        result["marks"] = None if marked is None else _used(marked, known, kept_out)
        return result


# -- which images ------------------------------------------------------------------------------------------------------


def _good(images: Images) -> Table:
    """Return the rows of good images; single files are good, and of a data set those that are not for the test."""
    if isinstance(images, Dataset):
        return images.train
    if isinstance(images, Table):
        return images
    source = DataSource.of(images)
    places = (source.path, *source.more)
    check_exist([Path(place) for place in places])
    files = [os.fspath(place) for place in places if os.path.isfile(place) and not _is_table(place)]
    folders = [place for place in places if os.fspath(place) not in files]
    parts = [(file, as_table(file, "train")) for file in files]
    if source.group_by is not None:
        parts = [(file, group_by(table, source.group_by)) for file, table in parts]
    if folders:
        dataset = replace(source, path=folders[0], more=tuple(folders[1:])).load()
        parts.append((dataset.root, dataset.train))
    return source.placed(join_tables(parts))


def _new(images: Images | None, marked: MarkedTables | None) -> tuple[Table, list[str]]:
    """Return the rows of all new good images, and the paths of those that are given but marked bad or unsure."""
    if images is None and marked is None:
        raise InputError("no new image: expected files or folders of good images, or marks (--marks)")
    given = Table([]) if images is None else _good(images)
    if marked is None:
        return given, []
    words = {row: marked.words.get(image_digest(row)) for row in given}
    new = join_tables([("the marks", marked.good), ("the images", given.where(lambda row: words[row] is None))])
    if not new:
        raise DataError(
            f"no image is marked good: {len(marked.bad)} are bad and {len(marked.unsure)} unsure. An update learns "
            "good images: mark some, or name some"
        )
    return new, [row.path for row in given if words[row] in ("bad", "unsure")]


def _with_marked_bad(known_bad: Table, marked: MarkedTables) -> Table:
    """Return known bad images and those that are marked bad, each once."""
    words = {row: marked.words.get(image_digest(row)) for row in known_bad}
    wrong = [row.path for row in known_bad if words[row] == "good"]
    if wrong:
        raise DataError(
            f"{len(wrong)} known bad images are marked good, e.g. {wrong[0]}: mark them again, or take them from --bad"
        )
    return join_tables([("the marks", marked.bad), ("--bad", known_bad.where(lambda row: words[row] != "bad"))])


def _used(marked: MarkedTables, fitted: set[str], kept_out: list[str]) -> MarksUsed:
    """Say what was taken from the marks; ``fitted``: what the model had learned before."""
    return {
        "good": len(marked.good),
        "bad": len(marked.bad),
        "unsure": len(marked.unsure),
        "disputed": marked.disputed,
        "moved": [{"path": path, "now": now} for path, now in marked.moved],
        "kept_out": kept_out,
        "learned_bad": [row.path for row in marked.bad if image_digest(row)[:16] in fitted],
    }


def _is_table(place: str | os.PathLike[str]) -> bool:
    return Path(place).suffix in (".csv", ".parquet")


def _bad(places: Sequence[str | Path], roi: str | os.PathLike[str] | None) -> Table:
    """Return the rows of bad images: where some of a place are known to be defective, these, otherwise all of it."""
    check_exist([Path(place) for place in places])
    parts = []
    for place in places:
        table = as_table(place, "test")
        if os.path.isdir(place):
            try:
                defective = load_dataset(place, training=False).table.where(lambda row: row.label == 1)
            except DataError:  # a plain folder, in no layout
                defective = Table([])
            table = defective or table
        parts.append((str(place), Table([replace(row, role="test", label=1) for row in table])))
    return with_roi(join_tables(parts), roi) if parts else Table([])


# -- before and after --------------------------------------------------------------------------------------------------


class _Seen(FitObserver):
    """The scores of images that an update judges without learning them, or as if it had not, by path."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}

    def judged(self, loaded: LoadedBatch, scores: Tensor) -> None:
        """Keep the scores of a batch."""
        self.scores.update(zip((item.row.path for item in loaded.sound), scores.tolist(), strict=True))


class _Verdicts:
    """What a model says of some images as it is now.

    Args:
        detector: fitted.
        table: images; none are judged where it is empty.
        run, progress: where to compute, and whom to tell.

    Attributes:
        scores: by path, of those that can be judged.
        failed: the others.
        calibration: the model's thresholds at the time.
        fitted: digests of the images that it has learned.
    """

    def __init__(self, detector: Detector, table: Table, run: ComputeOptions, progress: Progress | None) -> None:
        items = list(detector.stream(table, progress=progress, **run.arguments())) if table else []
        self.scores = {item.row.path: item.score for item in items if isinstance(item, Found)}
        self.failed: list[Failed] = [
            {"path": item.path, "error": item.error} for item in items if not isinstance(item, Found)
        ]
        self.calibration = detector.calibration
        self.fitted = detector.provenance.fitted_images or ()

    def beside(
        self, scores: Mapping[str, float], calibration: Calibration | None, path: str, judged: str
    ) -> UpdatedImage:
        """Put what was said of an image beside what is said now."""
        return {
            "path": path,
            "score_before": self.scores[path],
            "verdict_before": None if self.calibration is None else self.calibration.verdict(self.scores[path]),
            "score": scores[path],
            "verdict": None if calibration is None else calibration.verdict(scores[path]),
            "judged": judged,
        }


def _told(detector: Detector) -> dict[str, Any]:
    updates = detector.provenance.updates
    if not updates:
        raise RuntimeError("the update left no trace in the provenance")
    return updates[-1]


def _result(
    detector: Detector,
    before: Calibration | None,
    new: set[str],
    dropped: bool,
    images: list[UpdatedImage],
    bad: list[UpdatedImage],
    lost: list[str],
    written: str | None,
    failed: list[Failed],
) -> UpdateResult:
    told, calibration, change = _told(detector), detector.calibration, detector.history[-1]
    if calibration is None:
        raise RuntimeError("an update sets thresholds")
    unlearned = [image for image in images if image["judged"] != "learned"]
    return {
        "model": written,
        "model_id": detector.model_id(),
        "model_version": detector.model_version,
        "method": detector.method,
        "learned": told["learned"],
        "validated": told["validated"],
        "held_back": told["held_back"],
        "known": told["known"],
        "left_out": told["left_out"],
        "suspicious": [
            {"path": odd["path"], "score": odd["score"], "whole": odd["whole"]}
            for odd in detector.provenance.suspicious
            if odd["path"] in new
        ],
        "dropped": dropped,
        "trained_again": told["trained_again"],
        "earlier_judged": told["earlier_judged"],
        "earlier_unused": told["earlier_unused"],
        "promise": calibration.promise,
        "image_threshold": change.image_threshold,
        "image_threshold_before": change.image_threshold_before,
        "pixel_threshold": change.pixel_threshold,
        "pixel_threshold_before": change.pixel_threshold_before,
        "false_alarm_bound": calibration.false_alarm_bound,
        "sentence": calibration.sentence,
        "sentence_before": None if before is None else before.sentence or None,
        "false_alarms_before": _count(images, "verdict_before"),
        "false_alarms": _count(images, "verdict"),
        "unlearned": len(unlearned),
        "unlearned_false_alarms": _count(unlearned, "verdict"),
        "images": images,
        "bad_found_before": _count(bad, "verdict_before"),
        "bad_found": _count(bad, "verdict"),
        "bad": bad,
        "bad_lost": lost,
        "marks": None,
        "drift_reference": 0 if detector.reference is None else len(detector.reference),
        "details": told["details"],
        "failed": failed,
    }


def _count(images: Sequence[UpdatedImage], verdict: Literal["verdict", "verdict_before"]) -> int | None:
    """Count the images that are called bad; None where there are none, or no threshold."""
    verdicts = [image[verdict] for image in images]
    return None if None in verdicts or not verdicts else verdicts.count("bad")
