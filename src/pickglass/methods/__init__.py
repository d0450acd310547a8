"""This package has the methods, one file each, and METHODS, the registry of all of them.

A new method of ours takes its file, its line in :data:`METHODS`, and a test file with golden scores. A method of
another package is registered by :func:`register_method`, or found by its entry point; see
:data:`pickglass.detectors.plugins.GROUP`.
"""

from pathlib import Path
from typing import TypeVar

from torch import nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.modelfile import read_model, restore
from pickglass.detectors.plugins import checked_method, import_plugin, plugin_names
from pickglass.errors import InputError, UnknownName
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
    "method_names",
    "register_method",
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
"""The methods of this package by their names; :func:`register_method` adds others."""

AnyMethod = TypeVar("AnyMethod", bound=type[Detector])


def register_method(method: AnyMethod) -> AnyMethod:
    """Make a method of yours known by its name, to ``--method``, ``study``, :func:`load` and all else.

    Other processes, such as the workers of a study, only know methods that an installed package offers as an entry
    point ``pickglass.methods``.

    Args:
        method: a class derived from :class:`pickglass.Detector`, its name in the class attribute ``method``.

    Returns:
        The class itself, so that this is also a decorator.

    Raises:
        InputError: it is no such class, or another method has that name.

    Example:
        ``@pg.register_method`` above ``class MyMethod(pg.Detector)``
    """
    name = checked_method(method).method
    registered = METHODS.setdefault(name, method)
    if registered is not method:
        raise InputError(
            f"the name {name!r} is taken by {registered.__module__}.{registered.__qualname__}: "
            f"give {method.__module__}.{method.__qualname__} another name"
        )
    return method


def find_method(name: str) -> type[Detector]:
    """Return the class of a method by its name, e.g. ``"patchcore"``; another package's is imported now.

    Raises:
        UnknownName: no method has that name; the nearest are named.
        InputError: the package that offers the method cannot be imported, or the name is taken by another method.
    """
    plugin = import_plugin(name)
    if plugin is not None:
        return register_method(plugin)
    if name not in METHODS:
        raise UnknownName("method", name, method_names())
    return METHODS[name]


def method_names() -> list[str]:
    """Return the names of all methods: of this package, registered, or offered by installed packages."""
    return [*METHODS, *(name for name in plugin_names() if name not in METHODS)]


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
