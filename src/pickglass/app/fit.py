"""From a folder of good images to a model file."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from pickglass.app.advise.auto import auto_choice, usual_defect
from pickglass.app.advise.painted import usual_size
from pickglass.app.advise.within_foreground import look_for_part, save_mask
from pickglass.app.results import FitResult
from pickglass.data import Dataset, load_dataset, split_roles, with_pixel_mm, with_roi
from pickglass.data.files import output_path
from pickglass.detectors.compute import ComputeArguments, Progress
from pickglass.detectors.contamination import CleanCheck
from pickglass.detectors.drift_sample import DriftSample
from pickglass.detectors.tiling import TileOptions
from pickglass.errors import InputError, UnknownName
from pickglass.methods import Detector, find_method

__all__ = ["FitArguments", "build", "fit", "fit_dataset"]


def build(
    method: str = "patchcore",
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tiling: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    adaptation: Mapping[str, Any] | None = None,
) -> Detector:
    """An unfitted detector by the method's name, from a preset or the defaults, with changed settings.

    ``tiling`` are arguments of :meth:`pickglass.Detector.tiled`, ``fusion`` of :meth:`pickglass.Detector.fused`,
    ``adaptation`` of :meth:`pickglass.Detector.adapted`; None: not tiled, not fused, not adapted.
    """
    cls = find_method(method)
    if preset is not None and preset not in cls.presets:
        raise UnknownName(f"preset of {method}", preset, cls.presets)
    detector = cls.configured({**(cls.presets[preset] if preset else {}), **(settings or {})})
    if fusion is not None:
        from pickglass.features.research.fusion import FusionOptions

        detector = detector.fused(**_known("fusion", fusion, Detector.fused, FusionOptions))
    if adaptation is not None:
        from pickglass.features.research.adaptation import AdaptationOptions

        detector = detector.adapted(**_known("adaptation", adaptation, Detector.adapted, AdaptationOptions))
    if tiling is not None:
        detector = detector.tiled(**_known("tiling", tiling, Detector.tiled, TileOptions))
    return detector


def _known(what: str, given: Mapping[str, Any], call: Callable[..., Any], options: type) -> Mapping[str, Any]:
    """The arguments, once all of them are known to the call or to its options."""
    known = list(inspect.signature(call).parameters)[1:-1] + list(options.__annotations__)
    for name in given:
        if name not in known:
            raise UnknownName(f"setting of {what}", name, known)
    return given


def fit(
    data: str | Path,
    model: str | Path,
    *,
    layout: str | None = None,
    group_by: str | None = None,
    **arguments: Unpack[FitArguments],
) -> FitResult:
    """Fit a detector on the good training images of a folder and write the model file.

    Args:
        data: folder, in any layout that :func:`pickglass.load_dataset` knows; its test images are not touched.
        model: file to write, ``.safetensors``.
        layout: how to read the folder; None: recognised.
        group_by: regular expression on file names; images with the same match stay together in every split.
        arguments: see :class:`FitArguments`.

    A method that trains writes its checkpoint beside the model, as ``MODEL.checkpoint.safetensors``; the same call goes
    on from it after an interruption.
    """
    output_path(model, ".safetensors")  # what is wrong with it is said before anything is read
    return fit_dataset(load_dataset(data, layout, group_by), model, **arguments)


class FitArguments(ComputeArguments, total=False):
    """How to fit; also how to run, and as in :meth:`pickglass.Detector.fit` ``validate``, ``calibrate``, ``seed``,
    ``memory_gb`` and ``drop_suspicious``.

    Attributes:
        method: name of the method; None: patchcore, or what ``preset="auto"`` chooses.
        preset: ``"paper"``, ``"quick"``, ``"auto"`` (see :mod:`pickglass.app.advise.auto`) or None for the defaults.
        defect_px: for ``"auto"``: longest extent of the smallest defect in pixels of the images; None: a thirty-second
            of their shorter side.
        settings: of the method's constructor, e.g. ``{"size": 320}``; they win over the preset.
        tiling: arguments of :meth:`pickglass.Detector.tiled`, e.g. ``{"tile": 256}``; None: not tiled.
        fusion: arguments of :meth:`pickglass.Detector.fused`, e.g. ``{"kind": "pyramid"}``; None: not fused.
        adaptation: arguments of :meth:`pickglass.Detector.adapted`, e.g. ``{"stages": "stage3"}``; None: not adapted.
        roi: region of interest: a mask for all images, or a folder with one an image, see
            :func:`pickglass.data.with_roi`; or the text ``"auto"``: where the part is, found on the good images, see
            :mod:`pickglass.features.foreground` (``Path("auto")`` is a folder of that name). What lies outside is not
            looked at, a part out of its place neither.
        pixel_mm: side of a pixel on the part in millimetres.
        progress: called with (stage, done, total).
    """

    method: str | None
    preset: str | None
    defect_px: float | None
    settings: Mapping[str, Any] | None
    tiling: Mapping[str, Any] | None
    fusion: Mapping[str, Any] | None
    adaptation: Mapping[str, Any] | None
    roi: str | Path | None
    pixel_mm: float | None
    validate: float | None
    calibrate: float
    seed: int
    memory_gb: float
    drop_suspicious: bool
    progress: Progress | None


def fit_dataset(
    dataset: Dataset,
    model: str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    defect_px: float | None = None,
    settings: Mapping[str, Any] | None = None,
    tiling: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    adaptation: Mapping[str, Any] | None = None,
    roi: str | Path | None = None,
    pixel_mm: float | None = None,
    validate: float | None = None,
    calibrate: float = 0.1,
    seed: int = 0,
    memory_gb: float = 4.0,
    drop_suspicious: bool = False,
    progress: Progress | None = None,
    **running: Unpack[ComputeArguments],
) -> FitResult:
    """As :func:`fit`, of a data set that was read already."""
    target = output_path(model, ".safetensors")
    checkpoint = target.with_name(f"{target.stem}.checkpoint.safetensors")
    if preset != "auto" and defect_px is not None:
        raise InputError(f"defect_px={defect_px!r} belongs to preset 'auto': set that, or ask 'pickglass advise'")
    if preset == "auto" and (method is not None or tiling is not None or fusion is not None or settings):
        raise InputError("preset 'auto' chooses method, features, size, tiling and fusion itself: leave them out")
    train = with_pixel_mm(dataset.train if roi == "auto" else with_roi(dataset.train, roi), pixel_mm)
    # what fit will hold back for the thresholds, which are drawn first, chooses nothing
    usable = split_roles(train, 0.0, calibrate, seed).where(lambda row: row.role != "calibrate")
    told: dict[str, Any] = {"data": dataset.name}
    with tempfile.TemporaryDirectory(prefix="pickglass-") as folder:
        file, found = Path(folder, "foreground.png"), None
        if roi == "auto":
            found = look_for_part(usable, seed, running, progress)
            mask = save_mask(found, file)
            usable, train = with_roi(usable, mask), with_roi(train, mask)
        if preset == "auto":
            extent = usual_defect(usual_size(usable)) if defect_px is None else defect_px
            chosen = auto_choice(usable, extent, seed=seed, progress=progress, running=running)
            detector = build(chosen.method, None, chosen.settings, chosen.tiling, chosen.fusion, adaptation)
            told["auto"] = chosen.to_json()
            if chosen.foreground is not None:
                found = chosen.foreground
                train = with_roi(train, save_mask(found, file))
        else:
            detector = build(method or "patchcore", preset, settings, tiling, fusion, adaptation)
        if found is not None:
            told["foreground"] = found.to_json()
        detector.fit(
            train,
            validate=validate,
            calibrate=calibrate,
            seed=seed,
            memory_gb=memory_gb,
            checkpoint=checkpoint,
            observers=[CleanCheck(drop=drop_suspicious), DriftSample()],
            progress=progress,
            **running,
        )
    detector.provenance = replace(detector.provenance, **told)
    written = detector.save(target)
    checkpoint.unlink(missing_ok=True)
    return _result(detector, written, drop_suspicious)


def _result(detector: Detector, written: Path, dropped: bool) -> FitResult:
    provenance = detector.provenance
    return {
        "model": str(written),
        "method": detector.method,
        "n_fit": provenance.n_fit,
        "n_validate": provenance.n_validate,
        "n_calibrate": provenance.n_calibrate,
        "fit_s": provenance.fit_s,
        "details": provenance.details,
        "adaptation": provenance.adaptation,
        "suspicious": [{"path": s["path"], "score": s["score"], "whole": s["whole"]} for s in provenance.suspicious],
        "dropped": dropped,
        "auto": provenance.auto,
        "foreground": provenance.foreground,
    }
