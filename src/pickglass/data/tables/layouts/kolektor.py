"""KolektorSDD has ``PART/IMAGE.jpg`` with ``PART/IMAGE_label.bmp`` beside it; only the label says if it is good."""

from __future__ import annotations

from pathlib import Path

from pickglass.data.images.decoder import read_image
from pickglass.data.tables.layouts.tree import folders, grouped, held_out, images
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import ImageError

__all__ = ["read"]

_SUFFIX = "_label"


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """An image is defective where its label has a pixel above 0; the folder of a part is its group.

    Labels have to be decoded for that. An image without a label, or with one that cannot be read, is a test image of
    unknown label.
    """
    parts = {folder: images(folder, deep=False) for folder in folders(root)}
    if not any(path.stem.endswith(_SUFFIX) for paths in parts.values() for path in paths):
        return None
    rows = []
    for folder, paths in parts.items():
        labels = {path.stem.removesuffix(_SUFFIX): path for path in paths if path.stem.endswith(_SUFFIX)}
        for path in (path for path in paths if path not in set(labels.values())):
            rows.append(_row(path, labels.get(path.stem), folder.name))
    return {root.resolve().name: held_out(grouped(root, rows, pattern))}


def _row(path: Path, label: Path | None, group: str) -> Row:
    try:
        defective = None if label is None else bool(read_image(label).any())
    except ImageError:
        defective = None  # the row keeps its mask, so that checks name the broken file
    if defective is False:
        return Row(str(path), "train", 0, group=group)
    mask = None if label is None else str(label)
    return Row(str(path), "test", defective and 1, "defect" if defective else None, mask, group)
