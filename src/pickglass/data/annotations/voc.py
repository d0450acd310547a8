"""A Pascal VOC file lies beside its image and has the image's size and an ``object`` for each defect.

A ``bndbox`` is a box, also a ``robndbox`` (turned by radians, as roLabelImg writes it); a ``polygon`` with x1, y1, x2,
y2 ... is an outline and goes before a box. A file without objects says that the image has nothing and is good. Edges
are taken as pixels from the corner of the image; tools that count pixels from 1 are less than a pixel off.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from pickglass.data.annotations.annotation import Annotation, annotated, check_size
from pickglass.data.annotations.documents import as_size, parse_number, parse_xml, show
from pickglass.data.annotations.shapes import DEFECT, Box, Polygon, Shape
from pickglass.errors import DataError

__all__ = ["read"]


def read(path: str, data: bytes, image_size: tuple[int, int] | None, good: Collection[str]) -> Annotation:
    """Read the annotation of the one image from the content of its file.

    Raises:
        DataError: anything in it that cannot be used.
    """
    root = parse_xml(data)
    size = _size(root)
    check_size(size, image_size)
    objects = root.findall("object")
    _check_all_found(root, objects)
    shapes = []
    for i, item in enumerate(objects):
        try:
            shapes.append(_shape(item))
        except DataError as error:
            raise DataError(f"object {i + 1}: {error}") from error
    return annotated(path, [], shapes, size or image_size, good)


def _check_all_found(root: Element, objects: list[Element]) -> None:
    """Refuse a file with shapes elsewhere than VOC has them: it would count as good."""
    marks = [_mark(item) for item in root.iter()]
    known = [_mark(item) for entry in objects for item in entry.iter()]
    for mark in ("object", "bndbox", "robndbox", "polygon"):
        if marks.count(mark) != known.count(mark):
            raise DataError(f"has a {mark!r} elsewhere than in 'annotation/object', or in a namespace: not Pascal VOC")


def _mark(item: Element) -> str:
    return str(item.tag).rpartition("}")[2].lower()


def _size(root: Element) -> tuple[int, int] | None:
    stated = root.find("size")
    if stated is None:
        return None
    height, width = _number(stated, "height"), _number(stated, "width")
    return None if height == width == 0 else as_size(height, width)  # tools write 0 where they did not look


def _shape(item: Element) -> Shape:
    name = (item.findtext("name") or "").strip() or DEFECT
    polygon, turned, box = item.find("polygon"), item.find("robndbox"), item.find("bndbox")
    if polygon is not None:
        return Polygon(name, (_corners(polygon),))
    if turned is not None:
        x, y, width, height, angle = (_number(turned, key) for key in ("cx", "cy", "w", "h", "angle"))
        return Box(name, x - width / 2, y - height / 2, width, height, math.degrees(angle))
    if box is None:
        raise DataError(f"{show(name)} has no bndbox, robndbox or polygon: draw it again or delete it")
    x0, y0, x1, y1 = (_number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    return Box(name, x0, y0, x1 - x0, y1 - y0)


def _corners(polygon: Element) -> NDArray[np.float64]:
    count = len(polygon) // 2
    expected = {f"{axis}{i + 1}" for axis in "xy" for i in range(count)}
    if len(polygon) % 2 or {corner.tag for corner in polygon} != expected:
        tags = ", ".join(str(corner.tag) for corner in polygon)
        raise DataError(f"a polygon of {tags[:60] or 'nothing'}: expected x1, y1, x2, y2 and so on")
    numbers = {corner.tag: parse_number(corner.text, f"polygon {corner.tag}") for corner in polygon}
    return np.array([[numbers[f"x{i + 1}"], numbers[f"y{i + 1}"]] for i in range(count)]).reshape(-1, 2)


def _number(item: Element, key: str) -> float:
    return parse_number(item.findtext(key), f"{item.tag} {key}")
