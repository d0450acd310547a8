"""A file of VIA (VGG Image Annotator 1 or 2) is JSON and has the regions of each image, exported or as a project.

Polygons, circles and ellipses are outlines, rectangles are boxes; polylines and points mark no area and are refused. A
region's type is its one attribute, or where it has several the one called ``label``, ``class``, ``type``, ``defect``,
``category``, ``name``, ``quality`` or ``status``; attributes of the file with these names label the whole image. VIA
states no image size, and lists every image of a project: one without regions counts as annotated as having nothing,
unless it has attributes of other names, which may say anything: then it is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from pickglass.data.annotations.annotation import Annotation
from pickglass.data.annotations.documents import as_label, as_list, as_number, as_object, as_text, parse_json, show
from pickglass.data.annotations.listed import Listed
from pickglass.data.annotations.shapes import DEFECT, Box, Ellipse, Polygon, Shape
from pickglass.errors import DataError

__all__ = ["read"]

_TYPE = ("label", "class", "type", "defect", "category", "name", "quality", "status")
_PUBLISHED = ("caption", "public_domain", "image_url")  # attributes that every project of VIA has


def read(path: str, data: bytes, good: Collection[str]) -> dict[str, Annotation]:
    """Read the annotations of all images by their ``filename`` from the content of the file.

    Raises:
        DataError: anything in it that cannot be used, with one Failure for each entry at fault.
    """
    document = parse_json(data)
    listed = Listed(path, good)
    unknown = set[str]()
    for key, item in as_object(document.get("_via_img_metadata", document), "'_via_img_metadata'").items():
        with listed.failing(key):
            entry = as_object(item, "the entry")
            name = as_text(entry.get("filename"), "its filename")
            regions = entry.get("regions")
            found = list(regions.values()) if isinstance(regions, dict) else as_list(regions, "'regions'")
            attributes = as_object(entry.get("file_attributes", {}), "'file_attributes'")
            labels = [label for key in attributes if key.lower() in _TYPE for label in _words(attributes[key])]
            listed.add(name, labels, [_shape(as_object(region, "a region")) for region in found], None)
            if not found and not labels and any(_words(attributes[key]) for key in attributes if key not in _PUBLISHED):
                unknown.add(name)
    entries = listed.finished()
    return {name: replace(entry, status="unknown") if name in unknown else entry for name, entry in entries.items()}


def _type(attributes: dict[str, object]) -> str:
    named = {key: value for key, value in attributes.items() if key.lower() in _TYPE}
    chosen = list((attributes if len(attributes) == 1 else named).values())
    words = [word for value in chosen for word in _words(value)]
    if len(words) > 1 or (attributes and not chosen):
        raise DataError(
            f"the attributes of a region {show(attributes)} name no single type: call the attribute that does 'type'"
        )
    return words[0] if words else DEFECT


def _words(value: object) -> list[str]:
    """List what an attribute says: a text, or the names of the boxes that are ticked."""
    if isinstance(value, dict):
        return [as_text(name, "an attribute") for name, ticked in value.items() if ticked]
    word = as_label(value, "an attribute", "")
    return [word] if word and word != "undefined" else []


def _shape(region: dict[str, object]) -> Shape:
    shape = as_object(region.get("shape_attributes"), "'shape_attributes'")
    name = _type(as_object(region.get("region_attributes") or {}, "'region_attributes'"))
    kind = shape.get("name")
    if kind == "polygon":
        xs, ys = (
            [as_number(value, "a point") for value in as_list(shape.get(f"all_points_{axis}"), f"'all_points_{axis}'")]
            for axis in "xy"
        )
        if len(xs) != len(ys):
            raise DataError(f"a polygon has {len(xs)} values of x and {len(ys)} of y, expected as many")
        return Polygon(name, (np.array([xs, ys], np.float64).T.reshape(-1, 2),))
    if kind == "rect":
        return Box(name, *(as_number(shape.get(key), f"rect {key}") for key in ("x", "y", "width", "height")))
    if kind == "circle":
        x, y, radius = (as_number(shape.get(key), f"circle {key}") for key in ("cx", "cy", "r"))
        return Ellipse(name, x, y, radius, radius)
    if kind == "ellipse":
        x, y, semi_x, semi_y = (as_number(shape.get(key), f"ellipse {key}") for key in ("cx", "cy", "rx", "ry"))
        return Ellipse(name, x, y, semi_x, semi_y, math.degrees(as_number(shape.get("theta", 0), "ellipse theta")))
    raise DataError(f"{show(kind)} is neither an outline nor a box: draw a polygon around the defect")
