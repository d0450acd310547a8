"""pickglass detects visual anomalies in industry; it learns from good images only.

Example:
    ``import pickglass as pg``, then ``pg.PatchCore().fit(pg.load_dataset("bottle").train)``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pickglass.errors import MissingExtra

if TYPE_CHECKING:
    from pickglass.app.explain import explain
    from pickglass.app.models import load
    from pickglass.app.testing.evaluate import Evaluation, evaluate
    from pickglass.calibration import Calibration
    from pickglass.data import Dataset, Row, Table, load_dataset, load_datasets
    from pickglass.detectors.contamination import CleanCheck
    from pickglass.detectors.drift_sample import DriftSample
    from pickglass.errors import PickglassError
    from pickglass.features import FeatureExtractor, OwnBackbone, backbone_names, layer_names
    from pickglass.methods import (
        STFPM,
        AsymmetricStudentTeacher,
        Combined,
        Detector,
        EfficientAD,
        FastFlow,
        PaDiM,
        PatchCore,
        ReverseDistillation,
        Subspace,
        SuperSimpleNet,
        register_method,
    )
    from pickglass.result import Prediction
    from pickglass.runtime.exported import ExportedModel

__all__ = [
    "STFPM",
    "AsymmetricStudentTeacher",
    "Calibration",
    "CleanCheck",
    "Combined",
    "Dataset",
    "Detector",
    "DriftSample",
    "EfficientAD",
    "Evaluation",
    "ExportedModel",
    "FastFlow",
    "FeatureExtractor",
    "OwnBackbone",
    "PaDiM",
    "PatchCore",
    "PickglassError",
    "Prediction",
    "ReverseDistillation",
    "Row",
    "Subspace",
    "SuperSimpleNet",
    "Table",
    "backbone_names",
    "evaluate",
    "explain",
    "layer_names",
    "load",
    "load_dataset",
    "load_datasets",
    "register_method",
]

# Loaded when first used: importing pickglass, and with it --help, costs no torch.
_HOMES = {
    "AsymmetricStudentTeacher": "methods",
    "Calibration": "calibration",
    "CleanCheck": "detectors.contamination",
    "Dataset": "data",
    "Detector": "methods",
    "DriftSample": "detectors.drift_sample",
    "Evaluation": "app.testing.evaluate",
    "ExportedModel": "runtime.exported",
    "EfficientAD": "methods",
    "FastFlow": "methods",
    "FeatureExtractor": "features",
    "Combined": "methods",
    "OwnBackbone": "features",
    "PaDiM": "methods",
    "PatchCore": "methods",
    "PickglassError": "errors",
    "Prediction": "result",
    "ReverseDistillation": "methods",
    "Row": "data",
    "STFPM": "methods",
    "Subspace": "methods",
    "SuperSimpleNet": "methods",
    "Table": "data",
    "backbone_names": "features",
    "evaluate": "app.testing.evaluate",
    "explain": "app.explain",
    "layer_names": "features",
    "load": "app.models",
    "load_dataset": "data",
    "load_datasets": "data",
    "register_method": "methods",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pickglass' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"pickglass.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        raise MissingExtra.needed(f"pickglass.{name}", error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
