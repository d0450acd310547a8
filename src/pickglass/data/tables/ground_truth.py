"""Masks hold regions as sPRO counts them: every file and every pixel value in it is one region (MVTec LOCO)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.data.images.decoder import MAX_PIXELS, read_image
from pickglass.data.images.masks import check_mask_size
from pickglass.data.tables.rows import Row, Saturation
from pickglass.errors import ImageError

__all__ = ["Region", "read_regions"]


class Region(NamedTuple):
    """An annotated defect has a mask, bool ``(H, W)``, a type, and a share of it that sPRO asks for."""

    mask: NDArray[np.bool_]
    saturation: Saturation


def read_regions(row: Row, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> list[Region]:
    """Read the regions of an image of ``size`` (H, W), in the order of its mask files and of their pixel values.

    What to make of them says :func:`pickglass.metrics.saturated.saturation_area`. No mask, no region. Regions of
    different files may overlap.

    Raises:
        ImageError: a mask cannot be read, is of another size or in colour, or holds a value that the row's
            ``saturation`` does not name.
    """
    meaning = {entry.value: entry for entry in row.saturation}
    regions = []
    for source in (row.mask,) if isinstance(row.mask, np.ndarray) else row.masks:
        image = read_image(source, max_pixels)
        file = source if isinstance(source, str) else f"mask of {row.path}"
        check_mask_size(file, (image.shape[0], image.shape[1]), size)
        if image.ndim == 3 and (image == image[..., :1]).all():  # grey in three channels
            image = image[..., 0]
        if image.ndim != 2 or image.dtype.kind != "u":
            raise ImageError(file, f"the mask is {image.dtype} {image.shape}, expected grey with 8 or 16 bits")
        for value in np.unique(image[image > 0]).tolist():
            if value not in meaning:
                named = ", ".join(map(str, sorted(meaning))) or "(none)"
                raise ImageError(file, f"holds the value {value}, but defects_config.json names only {named}")
            regions.append(Region(image == value, meaning[value]))
    return regions
