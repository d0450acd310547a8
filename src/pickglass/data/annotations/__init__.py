"""Annotation files of the usual tools become :class:`Annotation`: is the image good, which defects, where.

A *sidecar* lies beside one image and has its stem: labelme's JSON, Pascal VOC's XML, YOLO's TXT. A *collection* lists
many images in one file: COCO, CVAT for images, Datumaro, VIA. Each format is a file here and a line in ``formats``.
``shapes`` has what is annotated, ``raster`` draws it, ``annotation`` has the rules of what is good, ``documents``
reads files safely.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from pickglass.data.annotations.annotation import GOOD_NAMES, Annotation, Status, means_good, plain_label
from pickglass.data.annotations.documents import read_bytes, read_ends
from pickglass.data.annotations.formats import COLLECTIONS, ENDS, FORMATS, Collected, Sidecar, format_of
from pickglass.data.annotations.names import pair_names
from pickglass.data.annotations.shapes import Box, Ellipse, Polygon, RunLengths, Shape
from pickglass.errors import DataError, ImageError

__all__ = [
    "GOOD_NAMES",
    "Annotation",
    "Box",
    "Ellipse",
    "Polygon",
    "RunLengths",
    "Shape",
    "Status",
    "find_collections",
    "means_good",
    "pair_names",
    "read_collection",
    "read_sidecar",
    "sniff",
]

_NAMES = re.compile(r"(.*[._])?(coco|cvat|datumaro)\.(json|xml)|annotations\.xml|instances_.*\.json|via_.*\.json", re.I)


def read_sidecar(path: str, image_size: tuple[int, int] | None, good: Collection[str] = GOOD_NAMES) -> Annotation:
    """Read the annotation file that lies beside one image.

    The image's name in the file is not compared: files are paired by their stems, and images are renamed more often
    than their annotations are edited. A collection that lists one image will do, too.

    Args:
        path: labelme's ``.json``, Pascal VOC's ``.xml``, YOLO's ``.txt``.
        image_size: (H, W) of the image; None: not known. Then a size that the file states is not compared, and YOLO
            files with shapes are refused, because their coordinates are shares of the image.
        good: names of labels that mean a good part, instead of :data:`GOOD_NAMES`.

    Raises:
        ImageError: the file cannot be read, is of no known format, is for an image of another size, contradicts
            itself, or has a shape that cannot be used.
    """
    try:
        data = read_bytes(path)
        entry, names = _entry(path, data), frozenset(map(plain_label, good))
        if isinstance(entry, Sidecar):
            return entry.read(path, data, image_size, names)
        found = list(entry.read(path, data, names).values())
        if len(found) != 1:
            raise DataError(f"a file with {len(found)} images has the stem of one image: give it another name")
        found[0].check_size(image_size)
        return found[0]
    except DataError as error:
        raise ImageError(path, str(error)) from error


def read_collection(path: str, good: Collection[str] = GOOD_NAMES) -> dict[str, Annotation]:
    """Read a file that lists the annotations of many images.

    Args:
        path: COCO's ``.json``, CVAT for images' ``.xml``, Datumaro's or VIA's ``.json``.
        good: names of labels that mean a good part, instead of :data:`GOOD_NAMES`.

    Returns:
        The annotation of each image that the file lists, by its name as the file gives it. An image that the file does
        not list was not annotated.

    Raises:
        DataError: the file cannot be read or is of no known format; or images of it cannot be used, with one Failure
            each in ``failures``.
    """
    try:
        data = read_bytes(path)
        entry, names = _entry(path, data), frozenset(map(plain_label, good))
        if isinstance(entry, Collected):
            return entry.read(path, data, names)
        raise DataError(f"an annotation of one image ({entry.what}), expected a file that lists many")
    except DataError as error:
        located = DataError(f"{path}: {error}")
        located.failures = error.failures
        raise located from error


def find_collections(names: Sequence[str]) -> list[str]:
    """Return those of the files, given by their paths, that list the annotations of many images.

    A file is told by its first and last 64 KiB, or by a name that the tools give, so that a damaged one is not passed
    over but refused when it is read.

    Raises:
        DataError: a file that cannot be opened.
    """
    found = [name for name in names if name.lower().endswith((".json", ".xml"))]
    return [name for name in found if sniff(name) in COLLECTIONS or _NAMES.fullmatch(os.path.basename(name))]


def sniff(path: str) -> str | None:
    """Tell the format of an annotation file by its first and last 64 KiB, None where it is none.

    Returns:
        ``"labelme"``, ``"voc"``, ``"yolo"``, ``"coco"``, ``"cvat"``, ``"datumaro"``, ``"via"``, or None.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        return format_of(path, read_ends(path, ENDS))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _entry(path: str, data: bytes) -> Sidecar | Collected:
    name = format_of(path, data[:ENDS] + data[-ENDS:])
    if name is None and path.lower().endswith(".txt"):
        name = "yolo"  # whose reader says which line it cannot read
    if name is None:
        known = "".join(f"\n  {entry.what}" for entry in FORMATS.values())
        raise DataError(f"begins with {data[:40]!r}, which is no annotation that pickglass knows:{known}")
    return FORMATS[name]
