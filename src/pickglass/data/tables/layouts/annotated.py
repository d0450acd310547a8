"""Images annotated with the tools of object detection: labelme, COCO, YOLO, Pascal VOC, CVAT, Datumaro, VIA.

An image that was annotated as having nothing is good; one that no annotation names is unknown, and teaches nothing.
NEU-DET is laid out so, with boxes in ``ANNOTATIONS/*.xml``; all its images are defective (Song and Yan, "A noise robust
method based on completed local binary patterns for hot-rolled steel strip surface defects", 2013).
"""

from __future__ import annotations

import os

from pickglass.data.tables.layouts.classes import classes
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import split_of
from pickglass.data.tables.layouts.pairing import sort_images
from pickglass.data.tables.layouts.sidecars import annotated, find_annotations, read_annotations
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder
from pickglass.data.tables.rows import Role, Row

__all__ = ["read"]


def read(root: Folder, ask: Ask) -> Found | None:
    """Read images anywhere in the folder, with a file for each beside it or in ``labels``, or one list of many.

    Good images have the role of the split whose folder they lie in, or are divided where there is none. Defective
    ones are all for the test: the splits of such sets are made for methods that learn from defects.
    """
    if any(one.good for place in (root, *root.folders.values()) for one in classes(place, ask)):
        return None  # folders say what is good; annotations are read beside
    files = sort_images(root)
    images = [root.at(name) for name in files.images]
    annotations = find_annotations(root, images)
    if not images or not annotations:
        return None
    said = read_annotations(annotations, images, ask)
    found = Found()
    found.used.update(dict.fromkeys((*annotations.sidecars.values(), *annotations.collections), "files of annotations"))
    found.passed.update(dict.fromkeys(annotations.others, "names of classes"))
    found.leave([root.at(name) for name in files.masks], "masks beside annotations, which are read in their place")
    rows, roles = list[Row](), set[Role | None]()
    for name, path in zip(files.images, images, strict=True):
        role = next((role for part in name.split(os.sep)[:-1] if (role := split_of(part))), None)
        roles.add(role)
        one = said.get(path)
        row = Row(path, "test")
        if one is not None:
            row = annotated(row, one)
        rows.append(Row(path, role or "train", 0) if row.label == 0 else row)
    table = grouped(root, rows, ask, found)
    found.tables = {root.name: table if roles - {None} else held_out(table, found)}
    return found
