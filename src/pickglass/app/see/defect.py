"""Where a defect is, as the user names it: a mask file, or a box in pixels of the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pickglass.data import read_mask
from pickglass.errors import InputError

__all__ = ["named_defect"]


def named_defect(
    size: tuple[int, int], mask: str | Path | None, box: Sequence[int] | None, max_pixels: int
) -> NDArray[np.bool_] | None:
    """Return the pixels (H, W) of the defect that the user names; None if neither a mask nor a box was given.

    Args:
        size: height and width of the image.
        mask: image file, above 0 where the defect is.
        box: x, y, width, height in pixels of the image.
        max_pixels: masks with more are refused.

    Raises:
        InputError: a mask and a box, an empty mask, or a box outside the image.
        DataError: the mask cannot be read, or is of another size.
    """
    if mask is not None and box is not None:
        raise InputError("a mask and a box were given: give one of them")
    if mask is not None:
        found = read_mask(str(mask), size, max_pixels)
        if not found.any():
            raise InputError(f"{mask}: the mask is empty, expected pixels above 0 where the defect is")
        return found
    if box is None:
        return None
    height, width = size
    if len(box) != 4 or min(box) < 0 or min(box[2:]) < 1 or box[0] + box[2] > width or box[1] + box[3] > height:
        raise InputError(
            f"box {list(box)}: expected x, y, width, height of a box inside the image, which is {width} pixels wide "
            f"and {height} high"
        )
    found = np.zeros(size, np.bool_)
    found[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return found
