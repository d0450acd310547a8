"""The methods. A new one takes its file, a line in METHODS, and its golden file."""

from pathlib import Path

from pickglass.errors import UnknownName
from pickglass.methods.base import Detector
from pickglass.methods.modelfile import read_model
from pickglass.methods.patchcore import PatchCore

__all__ = ["METHODS", "Detector", "PatchCore", "find_method", "load"]

METHODS: dict[str, type[Detector]] = {
    "patchcore": PatchCore,
}


def find_method(name: str) -> type[Detector]:
    """The class of a method by its name, e.g. ``"patchcore"``."""
    if name not in METHODS:
        raise UnknownName("method", name, METHODS)
    return METHODS[name]


def load(path: str | Path) -> Detector:
    """Load a fitted detector from the file that :meth:`Detector.save` wrote; it answers bit for bit as before.

    Raises:
        ModelFileError: not a pickglass model, one of another format version, or a damaged one.
    """
    header, tensors = read_model(path)
    return find_method(header["method"]).restored(header, tensors, str(path))
