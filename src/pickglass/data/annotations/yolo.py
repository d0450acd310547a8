"""A YOLO file of an image has a line for each defect: the number of its class, and shares of the image's size.

Four shares are a box (x and y of its centre, width, height), six and more are the corners of a polygon; four corners
of a rectangle are a turned box, because YOLO writes those so. An empty file says that the image has nothing and is
good. Names of classes come from ``classes.txt``, ``obj.names`` or ``data.yaml`` in the file's folder or up to three
above it; without them a class is called by its number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np

from pickglass.data.annotations.annotation import Annotation, annotated
from pickglass.data.annotations.documents import decode, parse_number, read_bytes
from pickglass.data.annotations.shapes import Box, Polygon, Shape, is_rectangle
from pickglass.errors import DataError

__all__ = ["CLASS_FILES", "class_names", "read"]

CLASS_FILES = ("classes.txt", "obj.names", "data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_ABOVE = 3  # folders above labels/train/IMAGE.txt where the root may be


def read(path: str, data: bytes, image_size: tuple[int, int] | None, good: Collection[str]) -> Annotation:
    """Read the annotation of the one image from the content of its file.

    Raises:
        DataError: anything in it that cannot be used, or shapes while the image's size is not known.
    """
    lines = [line.split() for line in decode(data).splitlines()]
    used = [(i + 1, words) for i, words in enumerate(lines) if words]
    if used and image_size is None:
        raise DataError("YOLO gives shares of the image's size, which is not known: pass image_size (H, W)")
    names = class_names(os.path.dirname(path)) if used else None
    shapes = []
    for number, words in used:
        try:
            shapes.append(_shape(words, names, image_size or (1, 1)))
        except DataError as error:
            raise DataError(f"line {number}: {error}") from error
    return annotated(path, [], shapes, image_size, good)


def _shape(words: list[str], names: dict[int, str] | None, size: tuple[int, int]) -> Shape:
    if len(words) < 5 or len(words) % 2 == 0:
        hint = " (six are a prediction with its confidence, no annotation)" if len(words) == 6 else ""
        raise DataError(
            f"{' '.join(words)[:60]!r} has {len(words)} values{hint}: expected a class and 4 numbers of a box, or the "
            "x and y of each corner"
        )
    if not (words[0].isascii() and words[0].isdigit()):
        raise DataError(f"the class {words[0][:40]!r}: expected its number, 0 or more")
    key = int(words[0][:9])
    if names is not None and key not in names:
        raise DataError(f"class {key} has no name: the classes are {', '.join(names.values())[:120]}")
    name = f"class {key}" if names is None else names[key]
    shares = np.array([parse_number(word, "a coordinate") for word in words[1:]], np.float64).reshape(-1, 2)
    if shares.min() < -0.5 or shares.max() > 1.5:
        raise DataError(f"{' '.join(words)[:60]!r}: expected shares of the image's size, 0 to 1, no pixels")
    pixels = shares * (size[1], size[0])  # (2 or more, 2)
    if len(pixels) == 2:
        (x, y), (width, height) = pixels.tolist()
        return Box(name, x - width / 2, y - height / 2, width, height)
    return Box.from_corners(name, pixels) if is_rectangle(pixels) else Polygon(name, (pixels,))


# -- names of classes -------------------------------------------------------------------------------------------------


def class_names(folder: str) -> dict[int, str] | None:
    """Find the names of the classes by their numbers, in a folder or the nearest above it that has them.

    Raises:
        DataError: a file of names that cannot be read, or two in one folder that differ.
    """
    place = os.path.abspath(folder)
    for _ in range(_ABOVE + 1):
        found = {}
        for name in CLASS_FILES:
            file = os.path.join(place, name)
            try:
                status = os.stat(file)
            except OSError:
                continue
            names = _names_in(file, status.st_mtime_ns, status.st_size)
            if names is not None:
                found[file] = names
        if found:
            first, *others = found
            for other in others:
                if found[other] != found[first]:
                    raise DataError(f"{first} and {other} name the classes differently: delete one of them")
            return found[first]
        place = os.path.dirname(place)
    return None


@lru_cache(maxsize=64)
def _names_in(file: str, changed: int, size: int) -> dict[int, str] | None:
    """Read the names in a file; when it was changed and its size are given so that a changed file is read again."""
    try:
        text = decode(read_bytes(file))
        if Path(file).suffix in (".yaml", ".yml"):
            return _yaml_names(text)
        return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


_SCALAR = r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^,\[\]{}#'"\n]+"""
_ENTRY = re.compile(rf"\s*(?:(\d+)\s*:\s+)?({_SCALAR})\s*")


def _yaml_names(text: str) -> dict[int, str] | None:
    """Read ``names`` of a YAML file: a list or numbered names, in brackets or one a line. No more of YAML is read."""
    start = re.search(r"^names[ \t]*:", text, re.M)
    if start is None:
        return None  # a YAML file of something else
    if re.search(r"^kpt_shape\s*:", text, re.M):
        raise DataError("has kpt_shape: key points mark no area, expected boxes or polygons")
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text[start.end() :].splitlines()]
    head, *rest = lines or [""]
    if head.strip()[:1] in ("[", "{"):
        body = " ".join(line.strip() for line in lines)
        closed = re.match(r"\s*[\[{](.*?)[\]}]", body)
        if closed is None:
            raise DataError("the brackets of 'names:' are not closed")
        entries = re.findall(rf"(?:{_SCALAR}|[^,])+", closed[1])
    elif head.strip():
        raise DataError(f"names: {head.strip()[:60]!r}, expected a list of the classes")
    else:
        entries = []
        for line in rest:
            if line and not line.startswith((" ", "\t", "-")):
                break  # the next key
            if line.strip():
                entries.append(re.sub(r"^\s*-\s+", "", line))
    return _numbered([entry for entry in entries if entry.strip()])


def _numbered(entries: list[str]) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        parts = _ENTRY.fullmatch(entry)
        if parts is None:
            raise DataError(f"names: {entry.strip()[:60]!r} is no name of a class that can be read")
        key, name = int(parts[1][:9]) if parts[1] else i, parts[2].strip()
        if name[0] in "'\"":
            name = name[1:-1].replace("''", "'") if name[0] == "'" else re.sub(r"\\(.)", r"\1", name[1:-1])
        if key in names:
            raise DataError(f"names: class {key} is named twice")
        names[key] = name
    if not names:
        raise DataError("names: is empty")
    return names
