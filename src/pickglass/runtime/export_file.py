"""An exported file is ONNX; what else is known of the model stands in its metadata, as JSON under ``pickglass``.

The header has ``format`` (version of this layout), ``id``, ``version``, ``history``, ``pickglass``, ``method``,
``title``, ``configuration``, ``settings`` (their digest), ``preprocess``, ``canvas``, ``roi``, ``calibration``,
``provenance``, ``drift_reference``, ``opset``, ``batch``, ``input``, ``map``, ``keep``, ``outputs``, ``certificate``
and ``sha256`` (of all of the file but this header).

It is read and replaced without onnx and without torch: a file of ONNX is a message of protobuf, a sequence of fields,
and the header is one of them (https://protobuf.dev/programming-guides/encoding; ``metadata_props`` of ``ModelProto`` in
onnx.proto).
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pickglass.data.files import written_whole
from pickglass.errors import InputError, ModelFileError, shortened
from pickglass.runtime.model_header import check_header, check_model_file

__all__ = [
    "EXPORT_FORMAT",
    "Field",
    "fields_of",
    "header_of_export",
    "read_export",
    "read_export_header",
    "replace_header",
    "write_export",
]

EXPORT_FORMAT = 1
"""Version of the header's layout; files of another version are refused."""

_KEY = "pickglass"
_KEYS = {
    *("format", "id", "version", "history", "method", "configuration", "settings", "preprocess", "calibration"),
    *("provenance", "certificate", "sha256"),
}
_PROPERTIES = 14  # number of the field metadata_props; its entries are messages of two texts
_NAME, _VALUE = 1, 2
_MOST_BYTES = 2**31 - 1  # protobuf, and so a file of ONNX, holds no more
_MOST_FIELDS = 10_000  # of a whole file; one that we write has a dozen
_LONGEST = 100_000_000  # bytes of the header


def write_export(target: Path, graph: bytes, header: Mapping[str, Any]) -> None:
    """Write a graph with its header, whole or not at all.

    Args:
        target: ends in .onnx.
        graph: a serialised ``ModelProto``; a header that it has already is replaced.
        header: all but ``format`` and ``sha256``.

    Raises:
        InputError: the place cannot be written, or the file would be too large for ONNX.
    """
    parts = [part for part, header_of_ours in _parts(memoryview(graph)) if not header_of_ours]
    digest = _digest(parts)
    text = json.dumps({"format": EXPORT_FORMAT, **header, "sha256": digest}).encode()
    entry = _field(_NAME, _KEY.encode()) + _field(_VALUE, text)
    last = memoryview(_field(_PROPERTIES, entry))
    size = sum(map(len, parts)) + len(last)
    if size > _MOST_BYTES:
        raise InputError(f"the file would have {size / 1e9:.1f} GB, and ONNX holds 2 GB: fit a smaller model")
    with written_whole(target) as temporary, temporary.open("wb") as file:
        for part in (*parts, last):
            file.write(part)


def replace_header(path: Path, header: Mapping[str, Any]) -> None:
    """Write an exported file anew with another header, whole or not at all; the graph stays as it is.

    Raises:
        ModelFileError: as :func:`read_export`.
        InputError: the place cannot be written.
    """
    _, content = read_export(path)
    write_export(path, content, {name: value for name, value in header.items() if name not in ("format", "sha256")})


def read_export_header(path: str | Path) -> dict[str, Any]:
    """Read the header of an exported file, and nothing else of it.

    Raises:
        ModelFileError: missing, damaged, no export of pickglass, or one of another format version.
    """
    check_model_file(path)
    with Path(path).open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file
            raise _unreadable(path, "it is empty") from error
        return header_of_export(memoryview(content), path)  # views of it may live on in an error: it closes itself


def read_export(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """Read the header and all bytes of an exported file, and check that they are those that were written.

    Raises:
        ModelFileError: as :func:`read_export_header`; or the file was changed or damaged.
    """
    check_model_file(path)
    content = Path(path).read_bytes()
    header = header_of_export(memoryview(content), path)
    if _digest([part for part, ours in _parts(memoryview(content)) if not ours]) != header["sha256"]:
        raise ModelFileError(
            f"{path}: its content is not what 'pickglass export' wrote (the checksum differs): copy it again, or "
            "export the model anew"
        )
    return header, content


def header_of_export(content: memoryview, path: str | Path) -> dict[str, Any]:
    """Return the header in the bytes of an exported file; ``path`` is for messages.

    Raises:
        ModelFileError: as :func:`read_export_header`.
    """
    if not len(content):
        raise _unreadable(path, "it is empty")
    text: bytes | None = None
    try:
        for part, ours in _parts(content):
            if ours:
                entry = next(field.value for field in fields_of(part))
                text = next(bytes(field.value) for field in fields_of(entry) if field.number == _VALUE)
                if len(text) > _LONGEST:
                    raise ValueError(f"it has a header of {len(text)} bytes")
    except (ValueError, StopIteration) as error:
        raise _unreadable(path, str(error) or "an entry without content") from error
    if text is None:
        raise ModelFileError(f"{path}: an ONNX file, but 'pickglass export' did not write it (it has no header of it)")
    try:
        header = json.loads(text)
    except ValueError as error:  # of JSON, or of the encoding
        raise ModelFileError(f"{path}: its header is damaged ({error}): export the model anew") from error
    version = header.get("format") if isinstance(header, dict) else None
    if version != EXPORT_FORMAT:
        remedy = (
            "upgrade pickglass" if isinstance(version, int) and version > EXPORT_FORMAT else "export the model anew"
        )
        raise ModelFileError(
            f"{path}: exported in format {shortened(version)}, this pickglass reads format {EXPORT_FORMAT}: {remedy}"
        )
    if not set(header) >= _KEYS:
        raise ModelFileError(f"{path}: its header lacks {sorted(_KEYS - set(header))}: export the model anew")
    check_header(header, path, "export the model anew")
    return dict(header)


def _unreadable(path: str | Path, why: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: not a readable ONNX file, or cut short ({why}): copy it again, or export the model anew"
    )


def _digest(parts: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


# -- fields of protobuf ------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A field: its number, the bytes of what it holds, and all of its bytes."""

    number: int
    value: memoryview
    whole: memoryview


def _parts(content: memoryview) -> Iterator[tuple[memoryview, bool]]:
    """Yield the bytes of each field of a ``ModelProto``, and whether it is the header of pickglass."""
    for field in fields_of(content):
        ours = field.number == _PROPERTIES and any(
            inner.number == _NAME and inner.value == _KEY.encode() for inner in fields_of(field.value)
        )
        yield field.whole, ours


def fields_of(content: memoryview, most: int = _MOST_FIELDS) -> Iterator[Field]:
    """Yield the fields of a message of protobuf, of which it may have so many.

    Raises:
        ValueError: it is no message, or cut short.
    """
    at = count = 0
    while at < len(content):
        count += 1
        if count > most:
            raise ValueError(f"it has more than {most} fields")
        start = at
        key, at = _number(content, at)
        kind, begin = key & 7, at
        if kind == 0:
            _, at = _number(content, at)
        elif kind == 2:
            length, begin = _number(content, at)
            at = begin + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(content):
            raise ValueError(f"{len(content)} bytes, but a field that ends at {at}")
        yield Field(key >> 3, content[begin:at], content[start:at])


def _number(content: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError(f"{len(content)} bytes, in the middle of a number")
        byte, at = content[at], at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("a number of more than 64 bits")


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
