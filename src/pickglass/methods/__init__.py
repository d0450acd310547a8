"""The methods. A new one takes its file, a line in METHODS, and its test file with golden scores."""

from pathlib import Path

from pickglass.detectors.detector import Detector
from pickglass.detectors.modelfile import read_model, restore
from pickglass.errors import UnknownName
from pickglass.methods.asymmetric_student_teacher import AsymmetricStudentTeacher
from pickglass.methods.efficientad import EfficientAD
from pickglass.methods.fastflow import FastFlow
from pickglass.methods.padim import PaDiM
from pickglass.methods.patchcore import PatchCore
from pickglass.methods.reverse_distillation import ReverseDistillation
from pickglass.methods.stfpm import STFPM

__all__ = [
    "METHODS",
    "STFPM",
    "AsymmetricStudentTeacher",
    "Detector",
    "EfficientAD",
    "FastFlow",
    "PaDiM",
    "PatchCore",
    "ReverseDistillation",
    "find_method",
    "load",
]

METHODS: dict[str, type[Detector]] = {
    "patchcore": PatchCore,
    "padim": PaDiM,
    "stfpm": STFPM,
    "reverse_distillation": ReverseDistillation,
    "fastflow": FastFlow,
    "asymmetric_student_teacher": AsymmetricStudentTeacher,
    "efficientad": EfficientAD,
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
    return restore(find_method(header["method"]), header, tensors, str(path))
