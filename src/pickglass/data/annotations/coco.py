"""A COCO file is JSON and has lists of images, categories and annotations.

An annotation with a segmentation (polygons, whose union it is, or run lengths, compressed or not) is an outline; one
with a box alone is a box; one with neither labels its whole image. A crowd (``iscrowd``) is an outline of several
defects at once. Images without annotations were annotated as having nothing and are good, unless the file has neither
categories nor annotations and is but a list of images: then they are unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.data.annotations.annotation import Annotation
from pickglass.data.annotations.documents import (
    as_label,
    as_list,
    as_numbers,
    as_object,
    as_size,
    as_text,
    as_whole,
    parse_json,
    show,
)
from pickglass.data.annotations.listed import Listed
from pickglass.data.annotations.shapes import DEFECT, Box, Polygon, RunLengths, Shape
from pickglass.errors import DataError

__all__ = ["counts_of_places", "counts_of_text", "read", "runs_of", "size_of"]

_SIX_BITS = bytes(range(48, 112))


class _Image(NamedTuple):
    """An image of the list, and what has been found of it so far."""

    name: str
    size: tuple[int, int] | None
    labels: list[str]
    shapes: list[Shape]


def read(path: str, data: bytes, good: Collection[str]) -> dict[str, Annotation]:
    """Read the annotations of all images by their ``file_name`` from the content of the file.

    Raises:
        DataError: anything in it that cannot be used, with one Failure for each entry at fault.
    """
    document = parse_json(data)
    listed = Listed(path, good)
    names = _categories(document)
    images = _images(document, listed)
    annotations = as_list(document.get("annotations"), "'annotations'")
    for i, item in enumerate(annotations):
        where = f"annotation {i + 1}"
        with listed.failing(where):
            entry = as_object(item, "it")
            key = entry.get("image_id")
            image = images.get(key) if isinstance(key, (int, str)) else None
            if image is None:
                raise DataError(f"image_id {show(key)} is the id of no image in 'images'")
            with listed.failing(image.name, where):
                _add(entry, image, names)
    for image in images.values():
        with listed.failing(image.name):
            listed.add(image.name, image.labels, image.shapes, size_of(image.size, image.shapes))
    found = listed.finished()
    if not annotations and not names:  # COCO's image_info files list images that nobody annotated
        return {name: replace(entry, status="unknown") for name, entry in found.items()}
    return found


def _categories(document: dict[str, object]) -> dict[object, str]:
    names: dict[object, str] = {}
    for item in as_list(document.get("categories", []), "'categories'"):
        category = as_object(item, "a category")
        key, name = category.get("id"), as_label(category.get("name"), "a category's name", DEFECT)
        if not isinstance(key, (int, str)) or names.setdefault(key, name) != name:
            raise DataError(f"the category {show(name)} has the id {show(key)}: expected a number that no other has")
    return names


def _images(document: dict[str, object], listed: Listed) -> dict[object, _Image]:
    images: dict[object, _Image] = {}
    for i, item in enumerate(as_list(document.get("images"), "'images'")):
        with listed.failing(f"image {i + 1}"):
            entry = as_object(item, "it")
            key, name = entry.get("id"), as_text(entry.get("file_name"), "its file_name")
            if not isinstance(key, (int, str)) or key in images:
                raise DataError(f"{show(name)} has the id {show(key)}: expected a number that no other image has")
            images[key] = _Image(name, as_size(entry.get("height"), entry.get("width")), [], [])
    return images


def _add(entry: dict[str, object], image: _Image, names: dict[object, str]) -> None:
    if "segments_info" in entry or "caption" in entry:
        raise DataError("an annotation of a panoptic or caption file: export instances")
    key = entry.get("category_id")
    if key is None and not names:
        name = DEFECT
    elif isinstance(key, (int, str)) and key in names:
        name = names[key]
    else:
        raise DataError(f"category_id {show(key)} is the id of no category: expected one of {show(list(names))}")
    if entry.get("ignore"):
        raise DataError("a region is to be ignored, which pickglass cannot do: delete it, or name it a defect or good")
    outline, box = entry.get("segmentation"), entry.get("bbox")
    if isinstance(outline, dict):
        image.shapes.append(runs_of(outline, name))
    elif outline not in (None, []):
        image.shapes.append(Polygon(name, tuple(_ring(ring) for ring in as_list(outline, "its segmentation"))))
    elif box not in (None, []):
        image.shapes.append(Box(name, *as_numbers(box, "its bbox [x, y, width, height]", 4)))
    else:
        image.labels.append(name)


def _ring(values: object) -> NDArray[np.float64]:
    numbers = as_list(values, "a polygon of its segmentation")
    ring = _array(numbers)
    if ring.ndim != 1 or ring.dtype.kind not in "iuf" or len(ring) % 2:
        raise DataError(f"a polygon of its segmentation is {show(numbers)}, expected numbers [x, y, x, y, ...]")
    return ring.reshape(-1, 2).astype(np.float64)


def _array(values: list[object]) -> NDArray[Any]:
    try:
        return np.array(values)
    except ValueError:  # lists in it, of several lengths
        return np.array(None)


def runs_of(outline: dict[str, object], name: str) -> RunLengths:
    """Read run lengths as COCO writes them: ``size`` [height, width], and ``counts`` as a list or compressed.

    Raises:
        DataError: anything in it that cannot be used.
    """
    height, width = (as_whole(side, "'size'") for side in as_numbers(outline.get("size"), "'size' [height, width]", 2))
    counts = outline.get("counts")
    if isinstance(counts, str):
        return RunLengths(name, counts_of_text(counts), (height, width))
    lengths = _array(as_list(counts, "'counts'"))
    if lengths.ndim != 1 or lengths.dtype.kind != "i":
        raise DataError(f"'counts' is {show(counts)}, expected whole numbers or a text")
    return RunLengths(name, lengths.astype(np.int64), (height, width))


def size_of(stated: tuple[int, int] | None, shapes: Sequence[Shape]) -> tuple[int, int] | None:
    """Return the size (H, W) of an image: as it is stated, or as its run lengths have it.

    Raises:
        DataError: they differ.
    """
    for window in {shape.window for shape in shapes if isinstance(shape, RunLengths)}:
        if stated is not None and window != stated:
            raise DataError(
                f"run lengths of an image of {window[0]}x{window[1]} (height x width), which elsewhere in the file is "
                f"{stated[0]}x{stated[1]}: export it again"
            )
        stated = window
    return stated


def counts_of_text(text: str) -> NDArray[np.int64]:
    """Read COCO's compressed run lengths: characters from ``"0"`` on, each with six bits of a number.

    The lower five are its bits, the lowest first, and the sixth says that more follow; the highest of the last five is
    the sign. From the fourth number on it is the difference to the length before the last.

    Raises:
        DataError: other characters, or the last number is cut short.

    >>> counts_of_text("52203").tolist()
    [5, 2, 2, 2, 5]
    """
    data = text.encode("utf-8", "replace")
    if not data or data.translate(None, _SIX_BITS) or (data[-1] - 48) & 32:
        raise DataError(f"compressed run lengths {text[:40]!r}: they are damaged or cut short, export the mask again")
    codes = np.frombuffer(data, np.uint8) - np.uint8(48)  # (n,)
    ends = np.flatnonzero(codes < 32)  # the last character of each number
    first = np.empty_like(ends)
    first[0], first[1:] = 0, ends[:-1] + 1
    lengths = ends - first + 1
    if lengths.max() > 6:  # 30 bits: more pixels than an image may have
        raise DataError(f"compressed run lengths {text[:40]!r}: a number of more than six characters, export it again")
    place = np.arange(len(codes)) - first.repeat(lengths)
    values = np.add.reduceat((codes & 31).astype(np.int64) << (5 * place), first)
    values -= (codes[ends] & 16).astype(np.int64) << (5 * lengths - 4)  # the sign: twice the highest bit
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def counts_of_places(places: NDArray[np.int64], pixels: int) -> list[int]:
    """Write which pixels are marked as COCO's run lengths: so many not marked, so many marked, and so on.

    Args:
        places: (n,) numbers of the marked pixels down the columns, rising, at least one.
        pixels: how many the image has.

    >>> counts_of_places(np.array([5, 6, 9]), 16)
    [5, 2, 2, 1, 6]
    """
    gaps = np.flatnonzero(np.diff(places) > 1)
    starts, ends = places[np.append(0, gaps + 1)], places[np.append(gaps, len(places) - 1)] + 1
    bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [pixels]])
    counts: list[int] = np.diff(bounds).tolist()
    return counts if counts[-1] else counts[:-1]
