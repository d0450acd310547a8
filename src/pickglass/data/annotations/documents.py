"""JSON, XML and text files are read whole and safely, and their values are checked before they are used.

Whatever is wrong with a file or value is a DataError whose message says what came and what was expected; the reader of
the format adds the file's name.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn
from xml.etree import ElementTree

from pickglass.errors import DataError

__all__ = [
    "MAX_BYTES",
    "as_label",
    "as_list",
    "as_number",
    "as_numbers",
    "as_object",
    "as_size",
    "as_text",
    "as_whole",
    "decode",
    "parse_json",
    "parse_number",
    "parse_xml",
    "read_bytes",
    "read_ends",
    "show",
]

MAX_BYTES = 1 << 30  # a JSON file takes about ten times its size in memory
_MAX_SIDE = 1_000_000  # pixels


def read_bytes(path: str) -> bytes:
    """Read a regular file of at most :data:`MAX_BYTES`."""
    with _opened(path) as (file, size):
        if size > MAX_BYTES:
            raise DataError(f"{size:,} bytes, more than {MAX_BYTES:,}: split the file, e.g. by folder")
        return file.read()


def read_ends(path: str, count: int) -> bytes:
    """Read the first and the last ``count`` bytes of a regular file, all of it where it is shorter."""
    with _opened(path) as (file, size):
        start = file.read(count)
        file.seek(max(count, size - count))
        return start + file.read(count)


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, int]]:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
        with open(path, "rb") as file:
            yield file, status.st_size
    except FileNotFoundError:
        raise DataError("no such file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot be read: {error}") from error


def decode(data: bytes) -> str:
    """Decode a text in UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not a text in UTF-8: {error}") from error


def parse_json(data: bytes) -> dict[str, object]:
    """Parse a JSON object, in which no object has a key twice and there is no NaN."""
    try:
        parsed: object = json.loads(data, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise DataError("not JSON that can be read: too deeply nested") from error
    except ValueError as error:  # UnicodeDecodeError, a number of thousands of digits
        if isinstance(error, DataError):
            raise
        raise DataError(f"not JSON: {str(error)[:200]}") from error
    return as_object(parsed, "the file")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"a JSON object has the key {twice[:60]!r} twice: which one is meant?")
    return found


def _constant(name: str) -> NoReturn:
    raise DataError(f"{name} in JSON, expected finite numbers: correct the coordinate")


class _PlainTree(ElementTree.TreeBuilder):
    """Builds the tree of a file that declares no document type, and so no entities that expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError("the XML declares a document type (DOCTYPE), which no annotation needs: delete that line")


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse XML without a document type."""
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_PlainTree()))
    except ElementTree.ParseError as error:
        raise DataError(f"not XML: {error}") from error
    except (ValueError, LookupError) as error:  # an encoding that is unknown or damaged
        if isinstance(error, DataError):
            raise
        raise DataError(f"not XML: {str(error)[:200]}") from error


def show(value: object) -> str:
    """Show a value in a message, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_object(value: object, what: str) -> dict[str, object]:
    """Return a JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{what} is {show(value)}, expected an object {{...}}")
    return value


def as_list(value: object, what: str) -> list[object]:
    """Return a JSON list."""
    if not isinstance(value, list):
        raise DataError(f"{what} is {show(value)}, expected a list [...]")
    return value


def as_text(value: object, what: str) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is {show(value)}, expected a text")
    return value


def as_label(value: object, what: str, unnamed: str) -> str:
    """Return the name of a type, ``unnamed`` where there is none; a whole number is a name, too."""
    if value is None or value == "":
        return unnamed
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return as_text(value, what).strip()


def as_number(value: object, what: str) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{what} is {show(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{what} is {show(value)}, expected a finite number")
    return number


def as_numbers(value: object, what: str, count: int) -> list[float]:
    """Return a list of ``count`` finite numbers."""
    numbers = [as_number(item, what) for item in as_list(value, what)]
    if len(numbers) != count:
        raise DataError(f"{what} has {len(numbers)} numbers, expected {count}")
    return numbers


def as_whole(value: object, what: str) -> int:
    """Return a whole number."""
    number = as_number(value, what)
    if not number.is_integer():
        raise DataError(f"{what} is {show(value)}, expected a whole number")
    return int(number)


def as_size(height: object, width: object) -> tuple[int, int] | None:
    """Return a stated size (H, W), None where neither side is stated."""
    if height is None and width is None:
        return None
    sides = as_whole(height, "the image's height"), as_whole(width, "the image's width")
    if not all(0 < side <= _MAX_SIDE for side in sides):
        raise DataError(f"an image of {sides[0]}x{sides[1]} (height x width): expected sides of 1 to {_MAX_SIDE:,}")
    return sides


def parse_number(text: str | None, what: str) -> float:
    """Parse a finite number."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{what} is {show(text)}, expected a number")
    return number
