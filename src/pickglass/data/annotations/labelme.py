"""A file of labelme, or of a tool that writes like it, lies beside its image and has shapes, flags and a size.

Polygons, circles and masks are outlines; rectangles and turned rectangles are boxes. Lines and points mark no area and
are refused. Flags of the image that are set are its labels. A file without shapes and set flags says that the image
has nothing and is good, unless it offers a flag that means good and that is not set: then the image is unknown.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection

import numpy as np

from pickglass.data.annotations.annotation import Annotation, annotated, check_size, means_good
from pickglass.data.annotations.documents import (
    as_label,
    as_list,
    as_numbers,
    as_object,
    as_size,
    as_text,
    parse_json,
    show,
)
from pickglass.data.annotations.shapes import DEFECT, Box, Ellipse, Polygon, RunLengths, Shape
from pickglass.data.images.decoder import MAX_PIXELS, read_image
from pickglass.errors import DataError, ImageError

__all__ = ["read"]


def read(path: str, data: bytes, image_size: tuple[int, int] | None, good: Collection[str]) -> Annotation:
    """Read the annotation of the one image from the content of its file.

    Raises:
        DataError: anything in it that cannot be used.
    """
    document = parse_json(data)
    size = as_size(document.get("imageHeight"), document.get("imageWidth"))
    check_size(size, image_size)
    shapes = []
    for i, item in enumerate(as_list(document.get("shapes"), "'shapes'")):
        try:
            shapes.append(_shape(as_object(item, "it")))
        except DataError as error:
            raise DataError(f"shape {i + 1}: {error}") from error
    flags = as_object(document.get("flags") or {}, "'flags'")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise DataError(f"flag {show(name)} is {show(value)}, expected true or false")
    labels = [as_text(name, "a flag's name") for name, value in flags.items() if value]
    found = annotated(path, labels, shapes, size or image_size, good)
    if not labels and not shapes and any(means_good(name, good) for name in flags):
        return Annotation("unknown", size=found.size, source=path)
    return found


def _shape(item: dict[str, object]) -> Shape:
    kind = item.get("shape_type") or "polygon"
    name = as_label(item.get("label"), "its label", DEFECT)
    points = np.array(
        [as_numbers(point, "a point", 2) for point in as_list(item.get("points"), "'points'")], np.float64
    ).reshape(-1, 2)
    if kind == "polygon":
        return Polygon(name, (points,))
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        return Box(name, x0, y0, x1 - x0, y1 - y0)
    if kind in ("rectangle", "rotation", "oriented_rectangle") and len(points) == 4:
        return Box.from_corners(name, points)
    if kind == "circle" and len(points) == 2:  # the centre, and a point of the edge
        radius = math.dist(points[0], points[1])
        return Ellipse(name, float(points[0, 0]), float(points[0, 1]), radius, radius)
    if kind == "mask" and len(points) == 2:
        return _mask(name, points.tolist(), as_text(item.get("mask"), "'mask'"))
    if kind in ("line", "linestrip", "point", "points"):
        raise DataError(f"{kind!r} is neither an outline nor a box: draw a polygon around the defect")
    raise DataError(
        f"shape_type {str(kind)[:40]!r} of {len(points)} points: expected a polygon, a mask, or a rectangle or "
        "circle of 2 points"
    )


def _mask(name: str, points: list[list[float]], text: str) -> RunLengths:
    try:
        pixels = read_image(io.BytesIO(base64.b64decode(text, validate=True)), MAX_PIXELS)
    except ImageError as error:
        raise DataError(f"'mask' is not an image: {error.reason}") from error
    except ValueError as error:
        raise DataError(f"'mask' is not base64: {error}") from error
    (x0, y0), (x1, y1) = points
    height, width = y1 - y0 + 1, x1 - x0 + 1  # the last pixel included; corners may be fractions, which are rounded
    if pixels.ndim != 2 or abs(pixels.shape[0] - height) > 1 or abs(pixels.shape[1] - width) > 1:
        raise DataError(
            f"'mask' is an image of shape {pixels.shape}, but its corners are ({x0:g}, {y0:g}) and ({x1:g}, {y1:g}), "
            "the last pixel included: save the file again"
        )
    return RunLengths.from_mask(pixels > 0, name, round(x0), round(y0))
