"""A model is read from its file, be it a model file of the lab or an exported one; torch is imported for the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from pickglass.errors import InputError, shortened
from pickglass.runtime.exported import ExportedModel

if TYPE_CHECKING:
    from pickglass.detectors.detector import Detector

__all__ = ["AnyModel", "as_model", "load"]

AnyModel: TypeAlias = Union["Detector", ExportedModel]
"""What judges images: a detector, or an exported model."""


def load(path: str | Path, *, backbone: Any = None) -> AnyModel:
    """Load a model that was saved (``.safetensors``) or exported (``.onnx``); it answers as it did.

    Args:
        path: the file.
        backbone: the torch module that the model was fitted on, where that was one of your own: the file of a saved
            model has its weights and no code. An exported model needs none.

    Returns:
        A :class:`pickglass.Detector`, or a :class:`pickglass.ExportedModel`, which needs no torch.

    Raises:
        InputError: the model needs its backbone handed over, another one, or none.
        ModelFileError: not a pickglass model, one of another format version, or a damaged one.
        UnknownName: the model is of a method whose package is not installed.
        MissingExtra: a model file of the lab, and torch is not installed.
    """
    if Path(path).suffix == ".onnx":
        if backbone is not None:
            raise InputError(
                f"backbone={shortened(backbone)}: {path} is an exported model, which has its network inside"
            )
        return ExportedModel(path)
    from pickglass.methods import load as load_detector

    return load_detector(path, backbone)


def as_model(model: str | Path | AnyModel) -> AnyModel:
    """Return the model, read from its file where a path is given; errors as :func:`load`."""
    return load(model) if isinstance(model, (str, Path)) else model
