"""A plain folder holds good images only, or ``good`` beside folders of bad ones."""

from __future__ import annotations

from pathlib import Path

from pickglass.data.tables.layouts.tree import (
    MASK_FOLDERS,
    class_rows,
    folders,
    grouped,
    held_out,
    images,
    is_good,
)
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import DataError

__all__ = ["read"]


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """Read loose images, which are all good; or ``good`` and folders beside it, which are defect types for the test."""
    name = root.resolve().name
    classes = [folder for folder in folders(root) if folder.name not in MASK_FOLDERS and images(folder)]
    loose = images(root, deep=False)
    if not any(is_good(folder) for folder in classes):
        if not loose or classes:
            return None
        return {name: grouped(root, [Row(str(path), "train", 0) for path in loose], pattern)}
    if loose:
        raise DataError(f"{root} holds {loose[0].name} beside its folders: move it to the folder it belongs to")
    rows = [row for f in classes for row in class_rows(root, f, "train" if is_good(f) else "test")]
    return {name: held_out(grouped(root, rows, pattern))}
