"""Regions of interest: what lies outside them is neither learned nor scored nor counted by any metric."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pickglass.data.images.decoder import IMAGE_SUFFIXES, check_mask_size, read_image
from pickglass.data.images.formats import Array
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import DataError, ImageError, InputError

__all__ = ["MARGINS", "read_roi", "with_pixel_mm", "with_roi"]

MARGINS = "<margins>"
"""As ``Row.roi``: all but the blank white bands at the left and right end, as AITEX strips have them."""

_WHITE = 0.98  # of the full scale: what JPEG and scanners leave of pure white


def read_roi(row: Row, image: Array) -> NDArray[np.bool_] | None:
    """The region of interest of an image, bool (H, W), True inside; None: all of it.

    Args:
        row: its ``roi`` is a file (any value above 0 is inside), :data:`MARGINS` or None.
        image: its pixels, as the decoder returns them.

    Raises:
        ImageError: the file cannot be read, has another size than the image, or nothing lies inside.
    """
    if row.roi is None:
        return None
    if row.roi == MARGINS:
        return _inside_margins(image)
    mask = read_image(row.roi)
    check_mask_size(row.roi, (mask.shape[0], mask.shape[1]), (image.shape[0], image.shape[1]))
    inside: NDArray[np.bool_] = np.logical_or.reduce(mask > 0, axis=2) if mask.ndim == 3 else mask > 0
    if not inside.any():
        raise ImageError(row.roi, "the region of interest is empty: mark the part with any value above 0")
    return inside


def _inside_margins(image: Array) -> NDArray[np.bool_] | None:
    white = _WHITE * (1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    bright = (image >= white).reshape(image.shape[0], image.shape[1], -1)  # (H, W, 1 or 3)
    blank: NDArray[np.bool_] = np.logical_and.reduce(bright, axis=(0, 2))  # (W,)
    used = np.flatnonzero(~blank)
    if not len(used) or (used[0] == 0 and used[-1] == len(blank) - 1):
        return None
    inside = np.zeros(image.shape[:2], np.bool_)
    inside[:, used[0] : used[-1] + 1] = True
    return inside


def with_roi(table: Table, roi: str | os.PathLike[str] | None) -> Table:
    """The rows with a region of interest: one file for all of them, or a folder with one mask an image.

    Args:
        table: rows; those in memory take a file only.
        roi: an image file whose values above 0 are inside; or a folder whose files are named as the images are, with
            any image suffix; None changes nothing.

    Raises:
        InputError: no such file or folder.
        DataError: the folder lacks the mask of an image, or two of its files or images share a name.
    """
    if roi is None:
        return table
    path = Path(roi)
    if path.is_file():
        return Table([replace(row, roi=str(path)) for row in table])
    if not path.is_dir():
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
    """The rows with the side of a pixel on the part, in millimetres; None changes nothing."""
    return table if pixel_mm is None else Table([replace(row, pixel_mm=pixel_mm) for row in table])
