"""This package has the methods, one file each, and METHODS, the registry of all of them.

A new method of ours takes its file, its line in :data:`METHODS`, and a test file with golden scores. A method of
another package is registered by :func:`register_method`, or found by its entry point; see
:data:`pickglass.detectors.plugins.GROUP`.
"""

from pathlib import Path

from torch import nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.modelfile import read_model, restore
from pickglass.detectors.plugins import METHODS, find_method, method_names, register_method
from pickglass.methods.asymmetric_student_teacher import AsymmetricStudentTeacher
from pickglass.methods.combined import Combined
from pickglass.methods.efficientad import EfficientAD
from pickglass.methods.fastflow import FastFlow
from pickglass.methods.padim import PaDiM
from pickglass.methods.patchcore import PatchCore
from pickglass.methods.reverse_distillation import ReverseDistillation
from pickglass.methods.stfpm import STFPM
from pickglass.methods.subspace import Subspace
from pickglass.methods.supersimplenet import SuperSimpleNet

__all__ = [
    "METHODS",
    "STFPM",
    "AsymmetricStudentTeacher",
    "Combined",
    "Detector",
    "EfficientAD",
    "FastFlow",
    "PaDiM",
    "PatchCore",
    "ReverseDistillation",
    "Subspace",
    "SuperSimpleNet",
    "find_method",
    "load",
    "method_names",
    "register_method",
]

METHODS.update(
    {
        "patchcore": PatchCore,
        "padim": PaDiM,
        "stfpm": STFPM,
        "reverse_distillation": ReverseDistillation,
        "fastflow": FastFlow,
        "asymmetric_student_teacher": AsymmetricStudentTeacher,
        "efficientad": EfficientAD,
        "subspace": Subspace,
        "supersimplenet": SuperSimpleNet,
        "combined": Combined,
    }
)


def load(path: str | Path, backbone: nn.Module | str | None = None) -> Detector:
    """Load a fitted detector from the file that :meth:`Detector.save` wrote; it answers bit for bit as before.

    Args:
        path: the file.
        backbone: the module that it was fitted on, where that was one of the user's.

    Raises:
        InputError: the model needs its backbone handed over, another one, or none.
        ModelFileError: not a pickglass model, one of another format version, or a damaged one.
        UnknownName: the model is of a method whose package is not installed.
    """
    header, tensors = read_model(path)
    return restore(find_method(header["method"]), header, tensors, str(path), backbone)
