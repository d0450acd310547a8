"""Kaputt has photographs of goods in trays, its labels in Parquet files, and a mask of each item but none of defects.

Published at kaputt-dataset.com, and described by Hoefer et al., "Kaputt: A Large-Scale Dataset for Visual Defect
Detection", ICCV 2025. An item's mask is its region of interest, and its images are one group.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.kolektor2 import DEFECTIVE_TRAINING
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder, is_image
from pickglass.data.tables.rows import Role, Row
from pickglass.errors import DataError

__all__ = ["read"]

_ROLES: dict[str, Role] = {"train": "train", "validation": "validate", "test": "test"}
_COLUMNS = ("defect", "query_image", "query_mask", "item_identifier", "defect_types")
_ANSWERS = {"true": 1, "1": 1, "false": 0, "0": 0}


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``query-{train,validation,test}.parquet``, in the root or in ``datasets``, and the images that they name.

    Defective images of training and validation are not used, nor are the crops, and the reference images, which show
    the same items and are mostly but not surely good.
    """
    place = next((p for p in (root, root.find("datasets")) if p is not None and p.file("query-test.parquet")), None)
    if place is None:
        return None
    found, rows = Found(), list[Row]()
    paths = {name.replace(os.sep, "/") for name in root.all_files()}
    for name, role in _ROLES.items():
        file = place.file(f"query-{name}.parquet")
        if file is not None:
            found.used[file] = "lists of labels"
            for number, line in enumerate(read_lines(file, _COLUMNS), start=1):
                row = _row(root, line, role, paths, f"{file}, row {number}")
                if row.label == 1 and role != "test":
                    found.unused[row.path] = DEFECTIVE_TRAINING
                    found.used.update({row.roi: "masks of unused items"} if isinstance(row.roi, str) else {})
                else:
                    rows.append(row)
    for name in root.all_files():
        file = root.at(name)
        if "reference-" in name:
            found.passed[file] = "of reference images, which are mostly but not surely good"
        elif is_image(name) and "crop" in name:
            found.passed[file] = "crops of the images"
    found.tables = {root.name: grouped(root, rows, ask, found)}
    return found


def _row(root: Folder, line: Mapping[str, str], role: Role, paths: set[str], place: str) -> Row:
    label = _ANSWERS.get(line["defect"].lower())
    if label is None or not line["query_image"]:
        raise DataError(
            f"{place}: defect {line['defect']!r}, query_image {line['query_image']!r}, expected true or "
            "false, and a path"
        )
    path, mask = _place(root, line["query_image"], "query-image", paths), None
    if line["query_mask"]:
        mask = _place(root, line["query_mask"], "query-mask", paths)
    role = "test" if label == 1 else role
    return Row(
        path,
        role,
        label,
        (line["defect_types"] or "defect") if label else None,
        None,
        line["item_identifier"] or None,
        roi=mask,
    )


def _place(root: Folder, name: str, archive: str, paths: set[str]) -> str:
    """Find a file where it lies: under the root, or under the folder of the archive that it came in."""
    archived = f"{archive}/{name}"
    return root.at(os.path.normpath(archived if archived in paths and name not in paths else name))
