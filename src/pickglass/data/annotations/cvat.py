"""A file of "CVAT for images 1.1" is XML and has an ``image`` with shapes and tags for each image of a task.

Polygons, ellipses and masks are outlines, boxes are boxes, tags label the whole image. Polylines, points, cuboids and
skeletons mark no area and are refused; so are tracks, which the export for video has. CVAT lists every image of a
task: one without shapes and tags counts as annotated as having nothing, so export no task that is half done.
"""

from __future__ import annotations

from collections.abc import Collection
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from pickglass.data.annotations.annotation import Annotation
from pickglass.data.annotations.documents import as_size, as_text, parse_number, parse_xml, show
from pickglass.data.annotations.listed import Listed
from pickglass.data.annotations.shapes import DEFECT, Box, Ellipse, Polygon, RunLengths, Shape
from pickglass.errors import DataError

__all__ = ["read"]


def read(path: str, data: bytes, good: Collection[str]) -> dict[str, Annotation]:
    """Read the annotations of all images by their ``name`` from the content of the file.

    Raises:
        DataError: anything in it that cannot be used, with one Failure for each entry at fault.
    """
    root = parse_xml(data)
    unknown = {str(item.tag) for item in root} - {"version", "meta", "image"}
    if unknown:
        raise DataError(f"holds {', '.join(sorted(unknown))[:60]}: export the task as 'CVAT for images 1.1'")
    listed = Listed(path, good)
    for i, image in enumerate(root.iterfind("image")):
        with listed.failing(image.get("name") or f"image {i + 1}"):
            name = as_text(image.get("name"), "the image's name")
            size = as_size(_number(image, "height"), _number(image, "width"))
            labels = [_label(item) for item in image if item.tag == "tag"]
            shapes = [_shape(item) for item in image if item.tag != "tag"]
            listed.add(name, labels, shapes, size)
    return listed.finished()


def _label(item: Element) -> str:
    return (item.get("label") or "").strip() or DEFECT


def _shape(item: Element) -> Shape:
    name = _label(item)
    if item.tag == "polygon":
        return Polygon(name, (_points(item.get("points")),))
    if item.tag == "box":
        x0, y0, x1, y1 = (_number(item, key) for key in ("xtl", "ytl", "xbr", "ybr"))
        return Box(name, x0, y0, x1 - x0, y1 - y0, _degrees(item))
    if item.tag == "ellipse":
        x, y, semi_x, semi_y = (_number(item, key) for key in ("cx", "cy", "rx", "ry"))
        return Ellipse(name, x, y, semi_x, semi_y, _degrees(item))
    if item.tag == "mask":
        left, top, width, height = (_whole(item.get(key), f"mask {key}") for key in ("left", "top", "width", "height"))
        return RunLengths(name, _lengths(item.get("rle") or ""), (height, width), False, left, top)
    raise DataError(f"{show(item.tag)} is neither an outline nor a box: draw a polygon around the defect")


def _points(text: str | None) -> NDArray[np.float64]:
    pairs = [pair.split(",") for pair in (text or "").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"the points {show(text)}: expected 'x,y;x,y;...'")
    return np.array([[parse_number(value, "a point") for value in pair] for pair in pairs], np.float64)


def _lengths(text: str) -> NDArray[np.int64]:
    try:
        return np.array(text.split(",")).astype(np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"mask rle is {show(text)}, expected whole numbers with commas between them") from None


def _degrees(item: Element) -> float:
    return parse_number(item.get("rotation", "0"), f"{item.tag} rotation")


def _number(item: Element, key: str) -> float:
    return parse_number(item.get(key), f"{item.tag} {key}")


def _whole(text: str | None, what: str) -> int:
    number = parse_number(text, what)
    if not number.is_integer():
        raise DataError(f"{what} is {show(text)}, expected whole numbers")
    return int(number)
