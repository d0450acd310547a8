"""From a folder of good images to a model file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pickglass.app.results import FitResult
from pickglass.data import MAX_PIXELS, load_dataset
from pickglass.data.files import output_path
from pickglass.errors import UnknownName
from pickglass.features.engine import EngineName
from pickglass.methods import Detector, find_method
from pickglass.methods.running import Progress

__all__ = ["build", "fit"]


def build(method: str = "patchcore", preset: str | None = None, settings: Mapping[str, Any] | None = None) -> Detector:
    """An unfitted detector by the method's name, from a preset or the defaults, with changed settings."""
    cls = find_method(method)
    changes = dict(settings or {})
    if preset is None:
        return cls.configured(changes)
    if preset not in cls.presets:
        raise UnknownName(f"preset of {method}", preset, cls.presets)
    return cls.configured({**cls.presets[preset], **changes})


def fit(
    data: str | Path,
    model: str | Path,
    *,
    method: str = "patchcore",
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    layout: str | None = None,
    group_by: str | None = None,
    validate: float | None = None,
    calibrate: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    engine: EngineName = "auto",
    workers: int = 2,
    memory_gb: float = 4.0,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a detector on the good training images of a folder and write the model file.

    Args:
        data: folder, in any layout that :func:`pickglass.load_dataset` knows; its test images are not touched.
        model: file to write, ``.safetensors``.
        method: name of the method.
        preset: ``"paper"``, ``"quick"`` or None for the defaults.
        settings: of the method's constructor, e.g. ``{"size": 320}``; they win over the preset.
        layout: how to read the folder; None: recognised.
        group_by: regular expression on file names; images with the same match stay together in every split.

    The others as in :meth:`pickglass.Detector.fit`.
    """
    target = output_path(model, ".safetensors")
    detector = build(method, preset, settings)
    dataset = load_dataset(data, layout, group_by)
    detector.fit(
        dataset,
        validate=validate,
        calibrate=calibrate,
        seed=seed,
        device=device,
        engine=engine,
        workers=workers,
        memory_gb=memory_gb,
        max_pixels=max_pixels,
        progress=progress,
    )
    detector.provenance["data"] = dataset.name
    written = detector.save(target)
    known = detector.provenance
    return {
        "model": str(written),
        "method": detector.method,
        "n_fit": known["n_fit"],
        "n_validate": known["n_validate"],
        "n_calibrate": known["n_calibrate"],
        "fit_s": known["fit_s"],
        "details": known["details"],
    }
