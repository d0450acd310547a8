"""List the methods and their settings, with the meanings that the docstrings of their classes give."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from pickglass.app.results import MethodListing, MethodsResult, SettingListing
from pickglass.errors import InputError
from pickglass.methods import Detector, find_method, method_names

__all__ = ["list_methods", "method_name"]


def method_name(text: str) -> str:
    """Return the name of the method that a user means: in any case, with ``-``, ``_`` or spaces, or its class's name.

    >>> method_name("PatchCore"), method_name("reverse distillation"), method_name("AsymmetricStudentTeacher")
    ('patchcore', 'reverse_distillation', 'asymmetric_student_teacher')

    A text that means no method stays as it is, for :func:`pickglass.methods.find_method` to answer.
    """
    plain = _letters(text)
    return next((name for name in method_names() if plain == _letters(name)), text)


def _letters(text: str) -> str:
    return re.sub(r"[-_\s]", "", text.lower())


def list_methods(name: str | None = None) -> MethodsResult:
    """List all methods, or one method with its settings.

    Args:
        name: name of a method, in any case, with ``-``, ``_`` or spaces; None: all methods, without settings.

    Raises:
        UnknownName: no method has this name.
    """
    if name is None:
        return {"methods": [_in_short(known) for known in method_names()]}
    cls = find_method(method_name(name))
    return {"methods": [_about(cls, _meanings(cls))]}


def _in_short(name: str) -> MethodListing:
    """A method without its settings; of a package that is broken, what is wrong with it."""
    try:
        return _about(find_method(name), {})
    except InputError as error:
        problem = f"cannot be used: {error}"
        return {"method": name, "class": "", "paper": "", "idea": problem, "presets": {}, "settings": []}


def _about(cls: type[Detector], meanings: Mapping[str, str]) -> MethodListing:
    paper, _, idea = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0].partition(": ")
    parameters = inspect.signature(cls.__init__).parameters
    settings: list[SettingListing] = [
        {
            "name": setting,
            "type": str(parameters[setting].annotation),
            "default": _json(parameters[setting].default),
            "meaning": meaning,
        }
        for setting, meaning in meanings.items()
    ]
    return {
        "method": cls.method,
        "class": cls.__name__,
        "paper": (inspect.getdoc(cls) or paper).partition("\n")[0].rstrip("."),
        "idea": idea,
        "presets": {
            preset: {key: _json(value) for key, value in values.items()} for preset, values in cls.presets.items()
        },
        "settings": settings,
    }


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _meanings(cls: type[Detector]) -> dict[str, str]:
    """Return setting -> meaning in the order of the constructor; a class may leave a meaning to its bases."""
    names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    described = [_arguments(base) for base in cls.__mro__ if base.__doc__ and "Args:" in base.__doc__]
    meanings: dict[str, str] = {}
    for name in names:
        texts = [arguments[name] for arguments in described if name in arguments]
        own, inherited = (texts or [""])[0], texts[1:]
        text = re.sub(r"(see :class:`pickglass\.Detector`|as there)[.;]?\s*", "", own)
        if text != own and inherited:
            text = f"{inherited[0]} {text[:1].upper()}{text[1:]}".strip()
        meanings[name] = _readable(text)
    return meanings


def _arguments(cls: type) -> dict[str, str]:
    """Return the entries of the section ``Args`` of a docstring; an entry ``a, b: text`` counts for both names."""
    section = (inspect.getdoc(cls) or "").partition("Args:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.split(r"\n(?=    \S)", f"\n{section}")
    found: dict[str, str] = {}
    for entry in entries:
        names, _, text = entry.strip().partition(": ")
        group = names.split(", ")
        text = " ".join(text.split())
        reference, _, remark = text.partition(". ")
        for name in group:  # of several settings together, the remark is about their layers
            alone = len(group) == 1 or name == "layers"
            found[name] = text if alone or not remark else f"{reference}."
    return found


def _readable(text: str) -> str:
    """Return a docstring's text without its markup, as a sentence."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("``", "")
    return f"{text[:1].upper()}{text[1:]}"
