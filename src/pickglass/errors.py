"""All errors that pickglass raises on purpose are in this tree.

::

    PickglassError
    ├── InputError (also ValueError)        an argument, a name or a file cannot be used
    │   ├── UnknownName                     a method, backbone, layer, preset or layout that does not exist
    │   ├── ImageError                      one image or mask cannot be read; has .path
    │   ├── DataError                       a data set cannot be used; has .failures, one Failure per broken file
    │   ├── WeightsMissing                  the file of a backbone's weights was not found
    │   └── ModelFileError                  not a pickglass model, another version, or damaged
    ├── NotFitted (also RuntimeError)       a detector was used before fit
    ├── TrainingError (also RuntimeError)   a training ran away: its loss or its weights are not finite
    ├── PromiseUnreachable                  too few good images for the wished promise; has .needed and .missing
    └── MissingExtra (also ImportError)     an optional package is not installed; names the install line

A message says what came, what was expected, and what to do about it. The command line prints it without a
traceback and exits with 2, or with 1 where a promise cannot be kept.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = [
    "DataError",
    "Failure",
    "ImageError",
    "InputError",
    "MissingExtra",
    "ModelFileError",
    "NotFitted",
    "PickglassError",
    "PromiseUnreachable",
    "TrainingError",
    "UnknownName",
    "WeightsMissing",
    "shortened",
]

_LONGEST = 100  # characters of a value in a message
_LONGEST_WORD = 300
_ENDLESS = re.compile(r"\S{301,}")


def shortened(value: object, longest: int = _LONGEST) -> str:
    """Return the ``repr`` of a value for a message, in one line and never long; of arrays and bytes only their size.

    >>> shortened("a" * 1000, 20)
    "'aaaaaaa...aaaaaaaa'"
    >>> shortened(b"a" * 1000)
    '1000 bytes'
    """
    short = _Short()
    short.maxlevel, short.maxlist, short.maxtuple, short.maxdict, short.maxset = 2, 4, 4, 4, 4
    short.maxstring = short.maxother = longest
    return _cut(" ".join(short.repr(value).split()), longest)


class _Short(reprlib.Repr):
    def repr1(self, value: Any, level: int) -> str:
        """Name arrays and tensors by their shape and bytes by their number, also inside lists."""
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and shape:
            return f"{type(value).__name__} of shape {tuple(shape)}"
        if isinstance(value, (bytes, bytearray, memoryview)):
            return f"{len(value)} bytes"
        return super().repr1(value, level)


def _shown(path: str) -> str:
    return _cut(path.replace("\n", "\\n"), _LONGEST_WORD)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2 - 3]}...{text[-(longest - longest // 2) :]}"


class Failure(NamedTuple):
    """An image could not be used: its path and the reason, in one line."""

    path: str
    error: str


class PickglassError(Exception):
    """All errors that pickglass raises on purpose are of this class; a word in a message is never endless."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_ENDLESS.sub(lambda word: _cut(word[0], _LONGEST_WORD), str(arg)) for arg in args))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, pickles and other processes get the error as it is, without the arguments that it was made of."""
        return _remade, (type(self), str(self), dict(self.__dict__))


def _remade(kind: type[PickglassError], message: str, attributes: dict[str, Any]) -> PickglassError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class InputError(PickglassError, ValueError):
    """An argument, a name or a file cannot be used."""


class UnknownName(InputError):
    """A name is not in the registry in which it was looked up.

    Args:
        kind: what the name should be, e.g. ``"backbone"``.
        name: what came.
        known: all names that exist.
        listing: how the user can list all of them, e.g. a command.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], listing: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(str(name), names, n=5, cutoff=0.3) or names[:5]
        more = f" All of them: {listing}." if listing else ""
        super().__init__(f"unknown {kind} {shortened(name)}. The nearest are: {', '.join(near) or '(none)'}.{more}")


class ImageError(InputError):
    """One image or mask cannot be read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{_shown(path)}: {reason}")
        self.path = path
        self.reason = reason


class DataError(InputError):
    """A data set cannot be used; ``failures`` names each broken file."""

    def __init__(self, message: str, failures: Sequence[Failure] = ()) -> None:
        lines = "".join(f"\n  {_shown(path)}: {error}" for path, error in failures)
        super().__init__(message + lines)
        self.failures = tuple(failures)


class WeightsMissing(InputError):
    """The file of a backbone's weights was not found."""


class ModelFileError(InputError):
    """The file is not a pickglass model, is one of another version, or is damaged."""


class NotFitted(PickglassError, RuntimeError):
    """A detector was used before ``fit``."""


class TrainingError(PickglassError, RuntimeError):
    """A training ran away: its loss or its weights are not finite."""


class PromiseUnreachable(PickglassError):
    """There are too few good images for the wished promise; the command line exits with 1.

    Args:
        asked: what was to be promised.
        what: what is counted, e.g. ``"calibration images"``.
        needed: how many of them it takes.
        have: how many there are.
        remedy: what to do.
    """

    def __init__(self, asked: str, what: str, needed: int, have: int, remedy: str) -> None:
        self.needed = needed
        self.missing = needed - have
        super().__init__(
            f"{asked} takes {needed} {what}, there are {have}: {self.missing} are missing. To do: {remedy}"
        )


_EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "huggingface_hub": "train",
    "safetensors": "train",
    "scipy": "train",
    "openvino": "openvino",
    "onnx": "train",
    "sklearn": "train",
    "ray": "cluster",
    "fsspec": "cloud",
    "pyarrow": "parquet",
    "pandas": "pandas",
    "matplotlib": "plot",
    "paho": "line",
    "fastapi": "web",
    "starlette": "web",
    "pydantic": "web",
    "uvicorn": "web",
    "python_multipart": "web",
    "prometheus_client": "web",
}
"""Extra of pickglass that brings each optional module, by the name that is imported."""


class MissingExtra(PickglassError, ImportError):
    """An optional package is not installed; the message names the line that installs it."""

    @classmethod
    def needed(cls, what: str, error: ImportError, otherwise: str = "") -> MissingExtra:
        """Make the error to raise where an import failed because an extra of pickglass is not installed.

        Args:
            what: what needs the module, e.g. ``"pickglass.PatchCore"``; the sentence begins with it.
            error: the error of the import. It is raised again if no extra of pickglass brings the module that it names.
            otherwise: what else the user can do, e.g. ``", or save the table as CSV"``.

        Example:
            >>> try:
            ...     raise ModuleNotFoundError("No module named 'torch'", name="torch")
            ... except ImportError as error:
            ...     print(MissingExtra.needed("pickglass.PatchCore", error))
            pickglass.PatchCore needs torch, which is not installed: pip install "pickglass[train]"
        """
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise error
        install = f'pip install "pickglass[{_EXTRAS[module]}]"'
        return cls(f"{what} needs {module}, which is not installed: {install}{otherwise}")
