"""A Datumaro file is JSON and has the names of labels and a list of ``items``, each with its annotations.

Polygons, masks (COCO's run lengths) and ellipses are outlines, boxes are boxes, labels mark the whole image. Captions
say nothing of defects and are passed over; polylines, points and other shapes mark no area and are refused. An item
is named by its image's path, or by its id where that is not stated; one without annotations is good.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pickglass.data.annotations.annotation import Annotation
from pickglass.data.annotations.coco import runs_of, size_of
from pickglass.data.annotations.documents import (
    as_label,
    as_list,
    as_number,
    as_numbers,
    as_object,
    as_size,
    as_text,
    parse_json,
    show,
)
from pickglass.data.annotations.listed import Listed
from pickglass.data.annotations.shapes import DEFECT, Box, Ellipse, Polygon, Shape
from pickglass.errors import DataError

__all__ = ["read"]


def read(path: str, data: bytes, good: Collection[str]) -> dict[str, Annotation]:
    """Read the annotations of all items by their image's path or id from the content of the file.

    Raises:
        DataError: anything in it that cannot be used, with one Failure for each entry at fault.
    """
    document = parse_json(data)
    names = _names(document)
    listed = Listed(path, good)
    for i, item in enumerate(as_list(document.get("items"), "'items'")):
        with listed.failing(f"item {i + 1}"):
            entry = as_object(item, "it")
            image = as_object(entry.get("image") or entry.get("media") or {}, "its image")
            name = as_text(image.get("path") or entry.get("id"), "its image's path or its id")
            with listed.failing(name):
                labels, shapes = [], []
                for annotation in as_list(entry.get("annotations"), "'annotations'"):
                    found = _shape(as_object(annotation, "an annotation"), names)
                    if isinstance(found, str):
                        labels.append(found)
                    elif found is not None:
                        shapes.append(found)
                listed.add(name, labels, shapes, size_of(_size(image), shapes))
    return listed.finished()


def _names(document: dict[str, object]) -> list[str]:
    categories = as_object(document.get("categories") or {}, "'categories'")
    labels = as_list(as_object(categories.get("label") or {}, "'label'").get("labels", []), "'labels'")
    return [as_label(as_object(label, "a label").get("name"), "a label's name", DEFECT) for label in labels]


def _size(image: dict[str, object]) -> tuple[int, int] | None:
    if image.get("size") is None:
        return None
    height, width = as_numbers(image["size"], "the image's size [height, width]", 2)
    return as_size(height, width)


def _shape(entry: dict[str, object], names: list[str]) -> Shape | str | None:
    kind = entry.get("type")
    if kind == "caption":
        return None
    key = entry.get("label_id")
    if key is None and not names:
        name = DEFECT
    elif isinstance(key, int) and 0 <= key < len(names):
        name = names[key]
    else:
        raise DataError(f"label_id {show(key)} is the number of no label: there are {len(names)}, counted from 0")
    if kind == "label":
        return name
    degrees = as_number(as_object(entry.get("attributes") or {}, "'attributes'").get("rotation", 0), "rotation")
    if kind == "bbox":
        x, y, width, height = as_numbers(entry.get("bbox"), "bbox [x, y, width, height]", 4)
        return Box(name, x, y, width, height, degrees)
    if kind == "polygon":
        points = [as_number(number, "a point") for number in as_list(entry.get("points"), "'points'")]
        if len(points) % 2:
            raise DataError(f"a polygon of {len(points)} numbers, expected x, y, x, y, ...")
        return Polygon(name, (np.array(points, np.float64).reshape(-1, 2),))
    if kind == "ellipse":  # the corners of the box around it
        x0, y0, x1, y1 = as_numbers(entry.get("points"), "the points of an ellipse [x, y, x, y]", 4)
        return Ellipse(name, (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2, degrees)
    if kind == "mask":
        return runs_of(as_object(entry.get("rle"), "'rle'"), name)
    raise DataError(f"{show(kind)} is neither an outline nor a box: draw a polygon around the defect")
