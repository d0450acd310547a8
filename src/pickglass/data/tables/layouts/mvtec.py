"""MVTec AD, BTAD (``ok``, ``ko``), MPDD, and VisA after its usual conversion are laid out alike."""

from __future__ import annotations

from pathlib import Path

from pickglass.data.tables.layouts.tree import class_rows, folders, grouped, images, is_good
from pickglass.data.tables.rows import Table
from pickglass.errors import DataError

__all__ = ["read"]


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """Read ``train/good``, ``test/TYPE`` and masks, ``ground_truth/TYPE/STEM_mask.png`` or ``STEM.png``, if any."""
    if not (root / "train").is_dir():
        return None
    bad = [folder.name for folder in folders(root / "train") if not is_good(folder) and images(folder)]
    if bad:
        raise DataError(f"{root / 'train'} holds {bad}: only good images can teach; move these folders to test/")
    rows = [row for folder in folders(root / "train") for row in class_rows(root, folder, "train")]
    rows += [row for folder in folders(root / "test") for row in class_rows(root, folder, "test")]
    return {root.resolve().name: grouped(root, rows, pattern)}
