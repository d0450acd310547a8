"""Fit a detector on a folder of good images and write the model file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pickglass.app.advise.auto import auto_choice, usual_defect
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.within_foreground import look_for_part, trusted_mask
from pickglass.app.checkpoints import checkpoint_of, checkpoints_of
from pickglass.app.known_defects import about_defects
from pickglass.app.methods import method_name
from pickglass.app.results import FitResult
from pickglass.data import Dataset, DataSource, Table, defects_at, split_roles, usual_size, with_pixel_mm, with_roi
from pickglass.data.files import alone, output_path
from pickglass.detectors.contamination import CleanCheck
from pickglass.detectors.drift_sample import DriftSample
from pickglass.detectors.tiling import TileOptions
from pickglass.errors import InputError, UnknownName
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.foreground import Foreground
from pickglass.methods import Combined, Detector, find_method
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["FitRequest", "build", "fit", "fit_dataset"]

_HELD_BACK = 0.1  # of the images, for the thresholds, where the others choose something


@dataclass(frozen=True)
class FitRequest:
    """The detector to fit, and the shares of the images.

    Attributes:
        method: name of the method, or several that judge together, ``"patchcore+padim"``; None: patchcore, or the
            choice of ``preset="auto"``.
        preset: ``"paper"``, ``"quick"``, ``"auto"`` (see :mod:`pickglass.app.advise.auto`) or None for the defaults.
        defect_px: for ``"auto"``: longest extent of the smallest defect in pixels of the images; None: a thirty-second
            of their shorter side.
        defect_width_px: for ``"auto"``: width of that defect, where it is slim; None: each kind has its own.
        settings: arguments of the method's constructor, e.g. ``{"size": 320}``; they win over the preset. Those of one
            of several methods: ``{"padim.dims": 50}``.
        tiling: arguments of :meth:`pickglass.Detector.tiled`, e.g. ``{"tile": 256}``; None: not tiled.
        fusion: arguments of :meth:`pickglass.Detector.fused`, e.g. ``{"kind": "pyramid"}``; None: not fused.
        adaptation: arguments of :meth:`pickglass.Detector.adapted`, e.g. ``{"stages": "stage3"}``; None: not adapted.
        validate: share of the images for validation, from 0 to below 1; None: the share that the method wants.
        calibrate: share of the images that is held back for the thresholds, from 0 to below 1; 0: the model has no
            verdicts. None: all images are fitted and each is judged as if left out, where the method can do that and
            nothing else is chosen by these images (no ``"auto"``, no foreground); otherwise 0.1.
        seed: decides the split and everything else that is drawn at random.
        memory_gb: budget in gigabytes for what the method holds.
        drop_suspicious: leave out training images that look like none of the others.
        defects: folder or table of known defects, see :func:`pickglass.data.defects_at`; None: there are none, but for
            the defective rows of a table with the role ``validate``.
    """

    method: str | None = None
    preset: str | None = None
    defect_px: float | None = None
    defect_width_px: float | None = None
    settings: Mapping[str, Any] | None = None
    tiling: Mapping[str, Any] | None = None
    fusion: Mapping[str, Any] | None = None
    adaptation: Mapping[str, Any] | None = None
    validate: float | None = None
    calibrate: float | None = None
    seed: int = 0
    memory_gb: float = 4.0
    drop_suspicious: bool = False
    defects: str | Path | None = None

    def __post_init__(self) -> None:
        if self.defect_width_px is not None and self.defect_px is None:
            raise InputError(f"defect_width_px={self.defect_width_px!r} without defect_px, the length: give both")
        if self.preset != "auto" and self.defect_px is not None:
            raise InputError(
                f"defect_px={self.defect_px!r} belongs to preset 'auto': set that, or ask 'pickglass advise'"
            )
        if self.preset == "auto" and (self.method is not None or self.settings or self.tiling or self.fusion):
            raise InputError("preset 'auto' chooses method, features, size, tiling and fusion itself: leave them out")


def build(
    method: str = "patchcore",
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tiling: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    adaptation: Mapping[str, Any] | None = None,
) -> Detector:
    """Make an unfitted detector by the method's name, from a preset or the defaults, with changed settings.

    Args:
        method, preset, settings, tiling, fusion, adaptation: as in :class:`FitRequest`.

    Raises:
        UnknownName: a method, preset or setting that does not exist.
    """
    names = [method_name(name) for name in method.split("+")]
    cls = find_method(names[0])
    if preset is not None and preset not in cls.presets:
        raise UnknownName(f"preset of {names[0]}", preset, cls.presets)
    if len(names) > 1:
        detector: Detector = Combined.of(names, preset, settings)
    else:
        detector = cls.configured(cls.preset_with(preset, settings or {}) if preset else settings or {})
    if fusion is not None and fusion.get("kind") == "separate":
        if len(fusion) > 1:
            raise InputError(
                f"fusion 'separate' leaves layers as they are, and has no {sorted(set(fusion) - {'kind'})}"
            )
        detector = Combined.of_levels(detector)
    elif fusion is not None:
        from pickglass.features.research.fusion import FusionOptions

        detector = detector.fused(**_checked("fusion", fusion, Detector.fused, FusionOptions))
    if adaptation is not None:
        from pickglass.features.research.adaptation import AdaptationOptions

        detector = detector.adapted(**_checked("adaptation", adaptation, Detector.adapted, AdaptationOptions))
    if tiling is not None:
        detector = detector.tiled(**_checked("tiling", tiling, Detector.tiled, TileOptions))
    return detector


def _checked(what: str, given: Mapping[str, Any], call: Callable[..., Any], options: type) -> Mapping[str, Any]:
    """Return the arguments, once all of them are known to the call or to its options."""
    allowed = list(inspect.signature(call).parameters)[1:-1] + list(options.__annotations__)
    for name in given:
        if name not in allowed:
            raise UnknownName(f"setting of {what}", name, allowed)
    return given


def fit(
    data: DataSource | str | Path,
    model: str | Path,
    request: FitRequest | None = None,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a detector on the good training images of a folder and write the model file.

    A method that trains writes its checkpoint beside the model, as ``MODEL.checkpoint.safetensors``; the same call goes
    on from it after an interruption.

    Args:
        data: folder in any layout that :func:`pickglass.load_dataset` knows, or how to read it; its test images are
            not touched. The region of interest may also be the text ``"auto"``: the place of the part, found on the
            good images, see :mod:`pickglass.features.foreground` (``Path("auto")`` is a folder of that name).
        model: file to write, ``.safetensors``; an existing one is replaced.
        request: which detector; None: PatchCore as it is.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        InputError: a setting or a name that cannot be used, or no foreground to be trusted.
        DataError: the folder is no data set, or images are broken or defective.
    """
    output_path(model, ".safetensors")  # what is wrong with it is said before anything is read
    source = DataSource.of(data)
    return fit_dataset(source.load(), model, request, source=source, compute=compute, progress=progress)


def fit_dataset(
    dataset: Dataset,
    model: str | Path,
    request: FitRequest | None = None,
    *,
    source: DataSource | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a detector on a data set that was read already; see :func:`fit`.

    Args:
        dataset: its rows of all roles but ``test``.
        model, request, compute, progress: as in :func:`fit`.
        source: gives the region of interest and the size of a pixel; None: those of the rows.
    """
    wish, run = request or FitRequest(), compute or ComputeOptions()
    target = output_path(model, ".safetensors")
    checkpoint = checkpoint_of(target)
    with alone(target):
        place = source or DataSource(dataset.root)
        seek_part = place.roi == "auto"
        train = (replace(place, roi=None) if seek_part else place).placed(dataset.train)
        known: Table | None = None
        if wish.defects is not None:
            known = with_pixel_mm(defects_at(wish.defects, place.group_by, place.good), place.pixel_mm)
        # images that fit will hold back for the thresholds, which are drawn first, choose nothing
        chooses = seek_part or wish.preset == "auto"
        calibrate = _HELD_BACK if wish.calibrate is None and chooses else wish.calibrate
        usable = split_roles(train, 0.0, calibrate or 0.0, wish.seed).where(lambda row: row.role != "calibrate")
        provenance: dict[str, Any] = {"data": dataset.name}
        foreground: Foreground | None = None
        if seek_part:
            foreground = look_for_part(usable, wish.seed, run, progress)
            mask = trusted_mask(foreground)
            usable, train = with_roi(usable, mask), with_roi(train, mask)
        if wish.preset == "auto":
            extent = usual_defect(usual_size(usable)) if wish.defect_px is None else wish.defect_px
            asked = AdviseRequest(extent, seed=wish.seed, width_px=wish.defect_width_px)
            choice = auto_choice(usable, asked, compute=run, progress=progress)
            detector = build(choice.method, None, choice.settings, choice.tiling, choice.fusion, wish.adaptation)
            provenance["auto"] = choice.to_json()
            if choice.foreground is not None:
                foreground = choice.foreground
                train = with_roi(train, trusted_mask(foreground))
        else:
            detector = build(
                wish.method or "patchcore", wish.preset, wish.settings, wish.tiling, wish.fusion, wish.adaptation
            )
        if foreground is not None:
            provenance["foreground"] = foreground.to_json()
        detector.fit(
            train,
            validate=wish.validate,
            calibrate=calibrate,
            seed=wish.seed,
            memory_gb=wish.memory_gb,
            checkpoint=checkpoint,
            defects=known,
            observers=[CleanCheck(drop=wish.drop_suspicious), DriftSample()],
            progress=progress,
            **run.arguments(),
        )
        detector.provenance = replace(detector.provenance, **provenance)
        written = detector.save(target)
        for left in checkpoints_of(target):
            left.unlink(missing_ok=True)
        return _result(detector, written, wish.drop_suspicious)


def _result(detector: Detector, written: Path, dropped: bool) -> FitResult:
    provenance, calibration = detector.provenance, detector.calibration
    return {
        "model": str(written),
        "model_id": detector.model_id(),
        "method": detector.method,
        "n_fit": provenance.n_fit,
        "n_validate": provenance.n_validate,
        "n_calibrate": provenance.n_calibrate,
        "fit_s": provenance.fit_s,
        "image_threshold": None if calibration is None else calibration.image_threshold,
        "unsure_threshold": None if calibration is None else calibration.unsure_threshold,
        "threshold_sentence": None if calibration is None or not calibration.scores else calibration.sentence,
        "backbone": detector.backbone,
        "layers": list(detector.read_layers),
        "layers_chosen": "user"
        if detector.layers is not None
        else "table"
        if find_backbone(detector.backbone).levels
        else "strides",
        "size": detector.size,
        "canvas": list(detector.input_size),
        "details": provenance.details,
        "adaptation": provenance.adaptation,
        "suspicious": [{"path": s["path"], "score": s["score"], "whole": s["whole"]} for s in provenance.suspicious],
        "dropped": dropped,
        "known_defects": None if provenance.known_defects is None else about_defects(provenance.known_defects),
        "auto": provenance.auto,
        "foreground": provenance.foreground,
    }
