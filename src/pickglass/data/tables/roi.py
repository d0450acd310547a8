"""A region of interest limits what counts: outside it nothing is learned, scored, or counted by any metric."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pickglass.data.images.decoder import IMAGE_SUFFIXES
from pickglass.data.tables.rows import Table
from pickglass.errors import DataError, InputError

__all__ = ["with_pixel_mm", "with_roi"]


def with_roi(table: Table, roi: str | os.PathLike[str] | NDArray[Any] | None) -> Table:
    """Give rows a region of interest: one mask for all of them, or a folder with one mask an image.

    Args:
        table: rows; those in memory take a file or an array.
        roi: an image file or an array (H, W) whose values above 0 are inside, for all rows; a folder whose files are
            named as the images are, with any image suffix; None changes nothing.

    Raises:
        InputError: no such file or folder.
        DataError: the folder lacks the mask of an image, or two of its files or images share a name.
    """
    if roi is None:
        return table
    if isinstance(roi, np.ndarray):
        return Table([replace(row, roi=roi) for row in table])
    path = Path(roi)
    if os.path.isfile(path):
        return Table([replace(row, roi=str(path)) for row in table])
    if not os.path.isdir(path):
        raise InputError(f"roi={str(roi)!r}: no such file or folder; expected a mask, or a folder of masks")
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES]
    for what, names in (("masks", [f.stem for f in files]), ("images", [Path(row.path).stem for row in table])):
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            raise DataError(
                f"{len(twice)} {what} share a name, e.g. {twice[0]!r}, so {path} cannot say which mask is whose: "
                "name the masks in the column roi of a table"
            )
    masks = {file.stem: str(file) for file in files}
    missing = [row.path for row in table if Path(row.path).stem not in masks]
    if missing:
        raise DataError(
            f"{path} has no mask for {len(missing)} of {len(table)} images, e.g. {missing[0]}: expected "
            f"{Path(missing[0]).stem}.png"
        )
    return Table([replace(row, roi=masks[Path(row.path).stem]) for row in table])


def with_pixel_mm(table: Table, pixel_mm: float | None) -> Table:
    """Give rows the side of a pixel on the part, in millimetres; None changes nothing."""
    return table if pixel_mm is None else Table([replace(row, pixel_mm=pixel_mm) for row in table])
