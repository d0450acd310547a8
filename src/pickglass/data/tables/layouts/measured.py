"""Some data sets have a mask for each image and nothing else that says which are good: a mask is read to see."""

from __future__ import annotations

from collections.abc import Iterable

from pickglass.data.images.decoder import read_header
from pickglass.data.tables.rows import Role, Row
from pickglass.errors import ImageError

__all__ = ["marks_something", "row_by_mask"]


def row_by_mask(path: str, mask: str | tuple[str, ...] | None, role: Role, group: str | None = None) -> Row:
    """Make the row of an image that is defective where its mask marks something.

    Args:
        path: the image.
        mask: its mask or masks.
        role: its role if it is good, ``"test"`` otherwise.
        group: the part or roll that it shows.

    An image without a mask, or with one that cannot be read, is a test image of unknown label. The row keeps its mask,
    so that checks name the broken file.
    """
    marked = marks_something((mask,) if isinstance(mask, str) else mask or ())
    label = None if marked is None else int(marked)
    if label == 0:
        return Row(path, role, 0, group=group)
    return Row(path, "test", label, "defect" if label else None, mask, group)


def marks_something(masks: Iterable[str]) -> bool | None:
    """Tell whether one of some masks marks a defect; None where there is none, or one that cannot be read."""
    marked = None
    for mask in masks:
        try:
            header = read_header(mask)
            truth = Row(mask, mask=mask).truth((header.height, header.width))
        except ImageError:
            return None  # named where it is read
        marked = bool(marked) or (truth is not None and bool(truth.any()))
    return marked
