"""VisA is published as one root with many objects and the split of its one-class protocol in ``split_csv/1cls.csv``."""

from __future__ import annotations

from pathlib import Path

from pickglass.data.tables.layouts.tree import grouped, read_csv
from pickglass.data.tables.rows import Role, Row, Table
from pickglass.errors import DataError

__all__ = ["read"]

_ROLES: dict[str, Role] = {"train": "train", "test": "test"}
_LABELS = {"normal": 0, "anomaly": 1}


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """Read every object whose folder is there, or one of them, where ``root`` is its folder."""
    for base in (root, root.absolute().parent):
        file = base / "split_csv" / "1cls.csv"
        if not file.is_file():
            continue
        rows: dict[str, list[Row]] = {}
        for number, line in enumerate(read_csv(file, ("object", "split", "label", "image", "mask")), start=2):
            rows.setdefault(line["object"], []).append(_row(base, line, f"{file}, line {number}"))
        names = [name for name in rows if (base / name).is_dir() and (base == root or base / name == root.absolute())]
        return {name: grouped(base, rows[name], pattern) for name in names} or None
    return None


def _row(base: Path, line: dict[str, str], place: str) -> Row:
    role, label = _ROLES.get(line["split"]), _LABELS.get(line["label"])
    if role is None or label is None or not line["image"]:
        raise DataError(
            f"{place}: split {line['split']!r}, label {line['label']!r}, image {line['image']!r}, expected train or "
            "test, normal or anomaly, and a path"
        )
    if role == "train" and label == 1:
        raise DataError(f"{place}: {line['image']} is an anomaly in train; only good images can teach")
    mask = str(base / line["mask"]) if label and line["mask"] else None
    return Row(str(base / line["image"]), role, label, "anomaly" if label else None, mask)
