"""VisA is published as one root with many objects and the split of its one-class protocol in ``split_csv/1cls.csv``.

Published at github.com/amazon-science/spot-diff, and described by Zou et al., "SPot-the-Difference Self-supervised
Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
"""

from __future__ import annotations

import os

from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder
from pickglass.data.tables.rows import Role, Row
from pickglass.errors import DataError

__all__ = ["read"]

_ROLES: dict[str, Role] = {"train": "train", "test": "test"}
_LABELS = {"normal": 0, "anomaly": 1}


def read(root: Folder, ask: Ask) -> Found | None:
    """Read every object whose folder is there, or one of them, where ``root`` is its folder."""
    above = os.path.dirname(os.path.abspath(root.path))
    for base in (root.path, above):
        file = os.path.join(base, "split_csv", "1cls.csv")
        if not os.path.isfile(file):
            continue
        found = Found(used={file: "lists of the split"})
        rows: dict[str, list[Row]] = {}
        for number, line in enumerate(read_lines(file, ("object", "split", "label", "image", "mask")), start=2):
            rows.setdefault(line["object"], []).append(_row(base, line, f"{file}, line {number}"))
        one = base == above
        names = [name for name in rows if (name == root.name if one else name in root.folders)]
        found.tables = {name: grouped(Folder(base) if one else root, rows[name], ask, found) for name in names}
        for name in names:
            folder = root if one else root.folders[name]
            if listing := folder.file("image_anno.csv"):
                found.passed[listing] = "the names of the defects, beside the labels of the split"
        for name in root.folders.get("split_csv", Folder("")).files:
            if name != "1cls.csv":
                found.passed[os.path.join(base, "split_csv", name)] = "splits of other protocols"
        return found if names else None
    return None


def _row(base: str, line: dict[str, str], place: str) -> Row:
    role, label = _ROLES.get(line["split"]), _LABELS.get(line["label"])
    if role is None or label is None or not line["image"]:
        raise DataError(
            f"{place}: split {line['split']!r}, label {line['label']!r}, image {line['image']!r}, expected train or "
            "test, normal or anomaly, and a path"
        )
    if role == "train" and label == 1:
        raise DataError(f"{place}: {line['image']} is an anomaly in train; only good images can teach")
    mask = os.path.join(base, line["mask"]) if label and line["mask"] else None
    return Row(os.path.join(base, line["image"]), role, label, "anomaly" if label else None, mask)
