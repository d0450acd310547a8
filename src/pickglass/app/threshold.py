"""Set a model's threshold from good images that it was not fitted on, with a promise, and write it into the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pickglass.app.models import AnyModel
from pickglass.app.results import ThresholdResult
from pickglass.calibration import (
    Calibration,
    Evidence,
    PixelPromise,
    Wish,
    flagged_curve,
    promised,
)
from pickglass.calibration.promises import Source, best_f1, fixed_value, set_by_hand, without_unsure
from pickglass.data import (
    MARGINS,
    Dataset,
    DataSource,
    Role,
    Table,
    fingerprint,
    split_roles,
)
from pickglass.data.files import alone, output_path
from pickglass.errors import DataError, Failure, InputError
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.export_file import read_export, replace_header
from pickglass.runtime.exported import ExportedModel
from pickglass.runtime.model_header import changed, check_model_file
from pickglass.runtime.provenance import Provenance, Regions

__all__ = [
    "JudgedGood",
    "ThresholdPromise",
    "ThresholdRequest",
    "change_by_hand",
    "good_evidence",
    "split_as_fitted",
    "threshold",
    "write_thresholds",
]

ThresholdPromise = Literal["tolerance", "marginal", "estimate", "f1", "fixed"]


@dataclass(frozen=True)
class ThresholdRequest:
    """The promise that a threshold is to keep.

    Attributes:
        promise: ``tolerance``, with that confidence; ``marginal``, on average over calibration sets; ``estimate``,
            from training images judged as if they had been left out, by refitted models where the model has no such
            scores, no promise; ``f1``, the best F1 on labelled
            rows of the role ``validate``; ``fixed``, ``value``.
        false_alarm: share of good parts that may be flagged, in (0, 1).
        confidence: that this set of images keeps the promise, in (0, 1).
        shift: how many good parts a shift sees, to tell how many are flagged at most.
        pixel: also promise the share of good parts with ``any`` pixel above the pixel threshold, or the flagged
            ``area`` of a good part; the error is then split. None: the highest map value, without a promise.
        value: the threshold for ``fixed``.
        pixel_value: the pixel threshold, set by hand beside any promise for images; not with ``pixel``.
        folds: refits for ``estimate``, at least 2.
        unsure: share of good parts that may be unsure beside those that may be flagged, in (0, 1); None: no image is
            unsure, also where one was until now.
        unsure_value: the threshold of unsure, set by hand, below that of bad; not with ``unsure``.
    """

    promise: ThresholdPromise = "tolerance"
    false_alarm: float = 0.01
    confidence: float = 0.95
    shift: int | None = None
    pixel: PixelPromise | None = None
    value: float | None = None
    folds: int = 5
    pixel_value: float | None = None
    unsure: float | None = None
    unsure_value: float | None = None

    def wish(self) -> Wish | None:
        """Return what is promised; None for the thresholds that promise nothing.

        Raises:
            InputError: parts of the request contradict one another.
        """
        if (self.promise == "fixed") != (self.value is not None) or (
            self.value is not None and not np.isfinite(self.value)
        ):
            raise InputError(
                f"promise={self.promise!r} with value={self.value!r}: 'fixed' takes a finite value, e.g. value=12.5; "
                "others take none"
            )
        if self.pixel_value is not None and (self.pixel is not None or not np.isfinite(self.pixel_value)):
            raise InputError(
                f"pixel_value={self.pixel_value!r} with pixel={self.pixel!r}: expected a finite number, and no promise "
                "about pixels, which a number set by hand would not keep"
            )
        if self.unsure_value is not None and (self.unsure is not None or not np.isfinite(self.unsure_value)):
            raise InputError(
                f"unsure_value={self.unsure_value!r} with unsure={self.unsure!r}: expected a finite number, or a share "
                "of good parts, not both"
            )
        if self.promise == "f1" or self.promise == "fixed":
            if self.pixel is not None or self.shift is not None or self.unsure is not None:
                raise InputError(
                    f"promise={self.promise!r} promises no false-alarm rate: leave out pixel, shift and unsure "
                    "(unsure_value sets that threshold), or ask for 'tolerance'"
                )
            return None
        return Wish(self.promise, self.false_alarm, self.confidence, self.pixel, self.shift, self.unsure)


def threshold(
    model: str | Path,
    data: DataSource | Dataset | str | Path | None,
    request: ThresholdRequest | None = None,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> ThresholdResult:
    """Find the threshold that keeps a promise about false alarms, and write it into the model file.

    Where ``data`` is what the model was fitted on (its fingerprint tells), the scores of the images that were held
    back are used as they stand in the model. Of other data the rows of the role ``calibrate`` are judged, or, without
    any, all good training rows; images that the model was fitted on, and those of their groups, are left out where
    the model lists them. Otherwise the sentence makes it a condition that none was fitted. Images that the fit left out
    as suspicious stay out. Test images are not read.

    Args:
        model: model file or exported file; replaced, whole or not at all.
        data: folder of good images in any layout that :func:`pickglass.load_dataset` knows, how to read it, or a data
            set. A region of interest that it gives stands in place of the model's. None: only ``value``,
            ``pixel_value`` and ``unsure_value`` are set, beside the good images that the model keeps, the other
            thresholds stay, and no image is judged.
        request: which promise; None: at most 1 % false alarms with 95 % confidence.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        PromiseUnreachable: there are too few images; the model stays as it was.
        DataError: a broken image, or no image to use.
        InputError: ``estimate`` of a model that was fitted within regions of interest, and ``data`` does not name them.
    """
    asked, run = request or ThresholdRequest(), compute or ComputeOptions()
    wish = asked.wish()
    check_model_file(model)
    with alone(Path(model)):
        stored = _Stored.read(Path(model))
        if data is None:
            return _written(stored, _by_hand(stored, asked), 0)
        given = data.train if isinstance(data, Dataset) else _good_rows(DataSource.of(data))
        table = stored.provenance.without_left_out(given)
        judge = _Judge(stored, run, progress, curves=asked.pixel == "area")
        if wish is None and asked.value is None:
            calibration = _f1(table, judge)
        elif wish is None:
            calibration = fixed_value(_calibrating(table, judge), float(asked.value))  # type: ignore[arg-type]
        elif wish.promise == "estimate":
            kept = None if judge.curves else _kept_scores(table, stored)
            left_out = kept is not None and kept.source == "left out"
            calibration = promised(kept if kept and left_out else _out_of_fold(table, judge, asked.folds), wish)
        else:
            calibration = promised(_calibrating(table, judge), wish)
        if asked.pixel_value is not None or asked.unsure_value is not None:
            calibration = set_by_hand(calibration, pixel=asked.pixel_value, unsure=asked.unsure_value)
        return _written(stored, calibration, len(given) - len(table))


class JudgedGood(NamedTuple):
    """Good images were judged.

    Attributes:
        scores: (N,) image scores.
        peaks: (N,) highest map value of each image.
    """

    scores: Sequence[float]
    peaks: Sequence[float]


def good_evidence(model: str | Path, data: Table, judged: Callable[[Table], JudgedGood]) -> Evidence:
    """Return the good images that a promise about a model may rest on, as :func:`threshold` chooses them.

    Where the data has none of them, these are the good images whose scores the model keeps.

    Args:
        model: model file or exported file; it is only read.
        data: the rows of a data set but for the test, whose images never set a threshold.
        judged: gives the scores of rows, in their order.

    Raises:
        DataError: there is no such image.
    """
    stored = _Stored.read(Path(model))
    table = stored.provenance.without_left_out(data)
    kept = _kept_scores(table, stored)
    if kept is not None:
        return kept
    try:
        rows, source, proviso = _calibrating_rows(table, stored)
    except DataError:
        known = stored.calibration
        if known is None or not known.scores or known.against(stored.settings).stale:
            raise
        return Evidence(known.scores, known.peaks, known.groups, known.source, None, stored.settings)
    good = judged(rows)
    return Evidence(good.scores, good.peaks, [row.group for row in rows], source, None, stored.settings, proviso)


def change_by_hand(model: str | Path, image: float, unsure: float | None) -> Calibration:
    """Return the thresholds of a model with two numbers that somebody chose; the file stays as it is.

    Args:
        model: model file or exported file.
        image: an image is bad above it; a promise stays where the number does.
        unsure: an image is unsure above it; None: no image is.

    Raises:
        InputError: the numbers are not finite or not in this order, or settings were changed after the thresholds were
            set.
    """
    stored = _Stored.read(Path(model))
    now = stored.calibration or Calibration("fixed", None, None, settings=stored.settings)
    _check_fresh(now, stored)
    same, same_unsure = image == now.image_threshold, unsure == now.unsure_threshold
    if same and same_unsure:
        return now
    if unsure is None:
        now = without_unsure(now)
        return now if same else set_by_hand(now, image)
    # both at once: one after the other may come in the wrong order
    return set_by_hand(now, None if same else image, None, None if same_unsure else unsure)


def write_thresholds(model: str | Path, calibration: Calibration) -> ThresholdResult:
    """Write thresholds into a model file, whole or not at all, with the change in its history."""
    return _written(_Stored.read(Path(model)), calibration, 0)


def _check_fresh(now: Calibration, stored: _Stored) -> None:
    if now.against(stored.settings).stale:
        raise InputError("settings were changed after the threshold was set, which counts no more: name good images")


def _by_hand(stored: _Stored, asked: ThresholdRequest) -> Calibration:
    """Set the thresholds that are numbers, beside what the model knows of good images."""
    numbers = (asked.value, asked.pixel_value, asked.unsure_value)
    if all(number is None for number in numbers):
        raise InputError("no images and no numbers: name good images (DATA), or give the thresholds by hand")
    kind: ThresholdPromise = "tolerance" if asked.value is None else "fixed"
    by_hand = ThresholdRequest(kind, value=numbers[0], pixel_value=numbers[1], unsure_value=numbers[2])
    if asked != by_hand:
        raise InputError("a promise rests on good images: name them (DATA), or give nothing but numbers for thresholds")
    now = stored.calibration or Calibration("fixed", None, None, settings=stored.settings)
    _check_fresh(now, stored)
    return set_by_hand(now, *numbers)


def _written(stored: _Stored, calibration: Calibration, left_out: int) -> ThresholdResult:
    """Write the model with its new thresholds, and say what they are and were."""
    header = stored.header
    if "id" not in header:  # an older pickglass wrote the file
        header = {**header, "id": stored.restored().model_id()}
    said = (header["calibration"] or {}).get("sentence") or None
    header = changed(header, "threshold", calibration)
    stored.write(header)
    change = header["history"][-1]
    return {
        "promise": calibration.promise,
        "image_threshold": calibration.image_threshold,
        "unsure_threshold": calibration.unsure_threshold,
        "pixel_threshold": calibration.pixel_threshold,
        "image_threshold_before": change["image_threshold_before"],
        "unsure_threshold_before": change["unsure_threshold_before"],
        "pixel_threshold_before": change["pixel_threshold_before"],
        "false_alarm_bound": calibration.false_alarm_bound,
        "unsure_bound": calibration.unsure_bound,
        "confidence": calibration.confidence,
        "n_calibrate": calibration.n,
        "left_out": left_out,
        "sentence": calibration.sentence,
        "sentence_before": said,
        "model_id": header["id"],
        "model_version": header["version"],
    }


def _good_rows(source: DataSource) -> Table:
    return source.placed(source.load().train)


@dataclass(frozen=True)
class _Stored:
    """The content of a model's file; ``tensors`` is None where it is an exported one."""

    path: Path
    header: Mapping[str, Any]
    tensors: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> _Stored:
        if path.suffix == ".onnx":
            return cls(output_path(path, ".onnx"), read_export(path)[0], None)
        from pickglass.detectors.modelfile import read_model

        return cls(output_path(path, ".safetensors"), *read_model(path))

    @property
    def settings(self) -> str:
        """The digest of the settings of the model."""
        if self.tensors is None:
            return str(self.header["settings"])
        from pickglass.detectors.settings import settings_digest

        return settings_digest(self.header["configuration"])

    @property
    def calibration(self) -> Calibration | None:
        known = self.header["calibration"]
        return None if known is None else Calibration.from_json(known)

    @property
    def provenance(self) -> Provenance:
        return Provenance.from_json(self.header["provenance"])

    def restored(self) -> AnyModel:
        if self.tensors is None:
            return ExportedModel(self.path)
        from pickglass.detectors.modelfile import restore
        from pickglass.methods import find_method

        return restore(find_method(self.header["method"]), self.header, self.tensors, str(self.path))

    def refitted(self, table: Table, compute: ComputeOptions) -> AnyModel:
        """Fit a model with the same settings on other images."""
        if self.tensors is None:
            raise InputError(
                f"{self.path} is an exported model, which cannot be fitted again, and it keeps no scores of these "
                "images as if left out: make another promise than 'estimate', or set the threshold of the model file "
                "that it was exported from and export again"
            )
        from pickglass.methods import find_method

        detector = find_method(self.header["method"]).configured(self.header["configuration"])
        return detector.fit(table, calibrate=0, seed=self.provenance.seed, **compute.arguments())

    def write(self, header: Mapping[str, Any]) -> None:
        """Write the file anew with another header."""
        if self.tensors is None:
            replace_header(self.path, header)
            return
        from pickglass.detectors.modelfile import write_model

        write_model(self.path, header, self.tensors)


@dataclass(frozen=True)
class _Judge:
    """What judges images for a threshold."""

    stored: _Stored
    compute: ComputeOptions
    progress: Progress | None
    curves: bool

    def refitted(self, table: Table) -> AnyModel:
        if self.stored.provenance.regions.regions in ("one", "each") and any(row.roi is None for row in table):
            raise InputError(
                f"{self.stored.path} was fitted within a region of interest, and models refitted without it would "
                "judge otherwise: name the mask or the folder of masks (roi), or make another promise than 'estimate'"
            )
        return self.stored.refitted(table, self.compute)

    def evidence(self, detector: AnyModel, table: Table, source: Source, proviso: str = "") -> Evidence:
        """Judge images; return their scores, peaks and, if wanted, curves. All of them have to be sound."""
        scores: list[float] = []
        peaks: list[float] = []
        curves: list[Any] = []
        failed: list[Failure] = []
        for item in detector.stream(table, progress=self.progress, **self.compute.arguments()):
            if not isinstance(item, Found):
                failed.append(item)
                continue
            scores.append(item.score)
            peaks.append(float(item.map.max()))
            if self.curves:
                inside = item.inside()
                curves.append(flagged_curve(item.full_map() if inside is None else item.full_map()[inside][None]))
        if failed:  # leaving them out might leave out the difficult ones
            raise DataError(f"{len(failed)} of {len(table)} images for the threshold cannot be read:", failed)
        return Evidence(
            scores,
            peaks,
            [row.group for row in table],
            source,
            np.array(curves) if self.curves else None,
            self.stored.settings,
            proviso,
        )


def _kept_scores(table: Table, stored: _Stored) -> Evidence | None:
    """Return the scores of the fit that stand in the model, if these are its images and nothing has changed since."""
    provenance, known = stored.provenance, stored.calibration
    fitted = split_as_fitted(table, provenance)
    if fitted is None or known is None or not _same_regions(fitted, provenance):
        return None
    kept = known.against(stored.settings)
    if kept.stale or kept.source not in ("held back", "left out"):
        return None
    groups = [row.group for row in fitted.role("calibrate")] if kept.source == "held back" else kept.groups
    return Evidence(kept.scores, kept.peaks, groups, kept.source, None, stored.settings)


def _same_regions(fitted: Table, provenance: Provenance) -> bool:
    """Whether the regions of interest that are named now, if any, are those of the fit."""
    named = any(row.roi_name not in (None, MARGINS) for row in fitted)
    return not named or Regions.of(fitted).regions_sha256 == provenance.regions.regions_sha256


class _Calibrating(NamedTuple):
    """These good images set a threshold; ``source`` and ``proviso`` are those of their :class:`Evidence`."""

    rows: Table
    source: Source
    proviso: str = ""


def _calibrating(table: Table, judge: _Judge) -> Evidence:
    """Judge the good images that set the threshold, or take their scores from the model."""
    kept = None if judge.curves else _kept_scores(table, judge.stored)
    if kept is not None:
        return kept
    return judge.evidence(judge.stored.restored(), *_calibrating_rows(table, judge.stored))


def _calibrating_rows(table: Table, stored: _Stored) -> _Calibrating:
    """Choose the good images that set the threshold.

    Raises:
        DataError: there are none.
    """
    provenance = stored.provenance
    fitted = split_as_fitted(table, provenance)
    if fitted is not None and fitted.role("calibrate"):
        # scores of other regions must not pass for those of the fit when this is asked again
        return _Calibrating(fitted.role("calibrate"), "held back" if _same_regions(fitted, provenance) else "given")
    good = (table.role("calibrate") or table.role("train")).where(lambda row: row.label == 0)
    proviso = "none of them was fitted, which the model does not tell"
    if provenance.fitted_images is not None:
        unseen = set(provenance.unseen(table))
        good = good.where(lambda row: row in unseen)
        proviso = ""
    if not good:
        raise DataError(
            "no good image is left for the threshold: expected good ones that the model was not fitted on; "
            "--promise estimate judges the training images as if left out"
        )
    return _Calibrating(good, "given", proviso)


def split_as_fitted(table: Table, provenance: Provenance) -> Table | None:
    """Return the rows with the roles that they had in a model's fit; None if the model was fitted on other rows.

    Args:
        table: the data set's rows but for the test.
        provenance: the model's.
    """
    total = len(table.role("train"))
    held: dict[Role, int] = {"validate": provenance.n_validate, "calibrate": provenance.n_calibrate}
    # The counts that came of the shares give the same split again as the shares did.
    validate, calibrate = (0.0 if total == 0 or table.role(role) else n / total for role, n in held.items())
    if validate + calibrate >= 1:
        return None
    split = split_roles(table, validate, calibrate, provenance.seed)
    return split if fingerprint(split) == provenance.data_sha256 else None


def _out_of_fold(table: Table, judge: _Judge, folds: int) -> Evidence:
    """Judge every good training image by a model that was refitted without its fold; groups never part."""
    good = Table([replace(row, role="train") for row in table.where(lambda row: row.label == 0)])
    members: dict[str, list[int]] = {}
    for i, row in enumerate(good):
        members.setdefault(row.unit, []).append(i)
    if folds < 2 or len(members) < 2:
        raise InputError(f"folds={folds!r} of {len(members)} images or groups: expected at least two of each")
    keys = list(members)
    np.random.default_rng(judge.stored.provenance.seed).shuffle(keys)
    parts: list[Evidence] = []
    for k in range(min(folds, len(keys))):
        left_out = {i for key in keys[k::folds] for i in members[key]}
        rest = Table([row for i, row in enumerate(good) if i not in left_out])
        fold = Table([row for i, row in enumerate(good) if i in left_out])
        parts.append(judge.evidence(judge.refitted(rest), fold, "folds"))
        if judge.progress is not None:
            judge.progress("refitting", k + 1, min(folds, len(keys)))
    curves = [part.curves for part in parts if part.curves is not None]
    return Evidence(
        [score for part in parts for score in part.scores],
        [peak for part in parts for peak in part.peaks],
        [group for part in parts for group in part.groups],
        "folds",
        np.concatenate(curves) if curves else None,
        judge.stored.settings,
    )


def _f1(table: Table, judge: _Judge) -> Calibration:
    rows = table.role("validate").where(lambda row: row.label is not None)
    labels = [int(row.label or 0) for row in rows]
    if len(set(labels)) < 2:
        raise DataError(
            f"the best F1 needs good and defective images of the role 'validate', found {labels.count(0)} good and "
            f"{labels.count(1)} defective ones: name them in the data set; test images never set a threshold"
        )
    judged = judge.evidence(judge.stored.restored(), rows, "given")
    good = [i for i, label in enumerate(labels) if label == 0]
    evidence = replace(
        judged,
        scores=[judged.scores[i] for i in good],
        peaks=[judged.peaks[i] for i in good],
        groups=[judged.groups[i] for i in good],
    )
    return best_f1(evidence, labels, judged.scores)
