"""The header of a model file says what the model is; it is read without torch and without the model's tensors.

A safetensors file begins with eight bytes (the length of a JSON text, little-endian) and that JSON text. Its entry
``__metadata__`` maps names to texts; under the name ``pickglass`` stands the model's header, again as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pickglass.calibration import Calibration, Change
from pickglass.data.files import missing
from pickglass.data.images.geometry import Preprocess
from pickglass.errors import InputError, ModelFileError, UnknownName, WeightsMissing, shortened
from pickglass.runtime.provenance import Provenance

__all__ = [
    "FORMAT",
    "changed",
    "check_header",
    "check_model_file",
    "history_of",
    "parse_header",
    "read_model_header",
    "reading",
]

FORMAT = 2
"""Version of the model file's layout; files of another version are refused."""

_KEYS = {"format", "method", "configuration", "preprocess", "calibration", "provenance"}
_LONGEST = 100_000_000  # bytes of JSON; safetensors itself refuses more


def check_model_file(path: str | Path) -> None:
    """Check that a model file is there.

    Raises:
        ModelFileError: nothing is there, or a folder.
    """
    if not os.path.exists(path):
        raise ModelFileError(f"{path}: {missing(path)}. Expected a model that 'pickglass fit' wrote")
    if not os.path.isfile(path):
        raise ModelFileError(f"{path} is a folder; expected a model file that 'pickglass fit' wrote")


def read_model_header(path: str | Path) -> dict[str, Any]:
    """Read the header of a model file, without reading its tensors.

    Returns:
        ``format``, ``method``, ``configuration``, ``preprocess``, ``calibration``, ``provenance``; ``naming`` where
        the model names defects; ``id``, ``version`` and ``history`` where this version of pickglass wrote the file.

    Raises:
        ModelFileError: missing, not a pickglass model, of another format version, or damaged.
    """
    check_model_file(path)
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST:
                raise ValueError(f"it claims a header of {length} bytes")
            text = file.read(length)
            if len(text) < length or length == 0:
                raise ValueError(f"its header has {len(text)} bytes, not {length}")
        metadata = json.loads(text).get("__metadata__", {})
    except (OSError, ValueError, AttributeError) as error:  # JSON and Unicode errors are ValueErrors
        raise ModelFileError(
            f"{path}: not a readable model file, or cut short ({error}): copy it again, or fit the model anew"
        ) from error
    return parse_header(metadata, path)


def parse_header(metadata: Mapping[str, str], path: str | Path) -> dict[str, Any]:
    """Check the header in the metadata of a safetensors file; ``path`` is for messages.

    Raises:
        ModelFileError: not a pickglass model, of another format version, or damaged.
    """
    text = metadata.get("pickglass")
    if text is None:
        raise ModelFileError(f"{path}: a safetensors file, but not a pickglass model (it has no pickglass header)")
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{path}: its pickglass header is damaged ({error}): fit the model anew") from error
    version = header.get("format") if isinstance(header, dict) else None
    if version != FORMAT:
        remedy = "upgrade pickglass" if isinstance(version, int) and version > FORMAT else "fit the model anew"
        raise ModelFileError(
            f"{path}: model format {shortened(version)}, this pickglass reads format {FORMAT}: {remedy}"
        )
    if not set(header) >= _KEYS:
        raise ModelFileError(f"{path}: its header lacks {sorted(_KEYS - set(header))}: fit the model anew")
    check_header(header, path, "fit the model anew")
    return dict(header)


def check_header(header: Mapping[str, Any], path: str | Path, remedy: str) -> None:
    """Check that the parts of a header that all model files have can be read, whatever will be asked of them.

    Raises:
        ModelFileError: one of them is of another kind.
    """
    with reading(path, remedy):
        if not isinstance(header["method"], str) or not isinstance(header["configuration"], Mapping):
            raise InputError(f"method={shortened(header['method'])} with settings of another kind")
        Preprocess.from_json(header["preprocess"])
        Provenance.from_json(header["provenance"])
        if header["calibration"] is not None:
            Calibration.from_json(header["calibration"])
        for change in header.get("history", ()):
            Change.from_json(change)
        if not isinstance(header.get("id", ""), str) or type(header.get("version", 1)) is not int:
            raise InputError(f"id={shortened(header.get('id'))}, version={shortened(header.get('version'))}")


@contextmanager
def reading(path: str | Path, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong while a header is read into one error that names the file and what to do.

    Raises:
        ModelFileError: a part of the header is of another kind.
    """
    try:
        yield
    except (ModelFileError, UnknownName, WeightsMissing):
        raise  # they say it better
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise ModelFileError(f"{path}: its header is damaged ({' '.join(why.split())[:200]}): {remedy}") from error


def history_of(history: Sequence[Change]) -> dict[str, Any]:
    """Return the entries of a header that tell a model's version and its history."""
    return {"version": Change.version(history), "history": [asdict(change) for change in history]}


def changed(header: Mapping[str, Any], command: str, calibration: Calibration) -> dict[str, Any]:
    """Return the header of a model with other thresholds, and with the change in its history.

    Args:
        header: what a model file or an exported one says of itself.
        command: what changes the thresholds.
        calibration: the new thresholds.
    """
    before = None if header["calibration"] is None else Calibration.from_json(header["calibration"])
    history = [
        *(Change.from_json(change) for change in header.get("history", ())),
        Change.between(command, before, calibration),
    ]
    return {**header, "calibration": calibration.to_json(), **history_of(history)}
