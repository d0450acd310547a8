"""The foreground that was found on good images, as the region of interest of a fit and of the advisor's images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pickglass.app.advise.painted import Judged, PaintedSet
from pickglass.data import Preprocess, Table
from pickglass.errors import InputError
from pickglass.features.engine import device_name
from pickglass.features.foreground import Foreground, find_foreground
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["judged_within", "look_for_part", "trusted_mask"]


def look_for_part(table: Table, seed: int, compute: ComputeOptions, progress: Progress | None = None) -> Foreground:
    """Find the foreground on the good images of a table; see :func:`pickglass.features.foreground.find_foreground`."""
    good = table.where(lambda row: row.role != "test" and row.label != 1)
    return find_foreground(
        good,
        device=device_name(compute.device),
        engine=compute.engine,
        workers=compute.workers,
        max_pixels=compute.max_pixels,
        seed=seed,
        progress=progress,
    )


def trusted_mask(found: Foreground) -> NDArray[np.bool_]:
    """Return the mask of a foreground as region of interest, (H, W) bool.

    Raises:
        InputError: the foreground did not pass its self-check.
    """
    if found.mask is None:
        raise InputError(
            f"roi='auto': no foreground to be trusted was found on {found.n_images} good images: {found.why_not}. "
            "Give the file of a mask, or leave the region of interest out"
        )
    return found.mask


def judged_within(data: PaintedSet, mask: NDArray[np.bool_]) -> tuple[PaintedSet, PaintedSet]:
    """Leave out the images whose defect lies mostly outside a mask; return the others without, and with the mask.

    Pixels outside the mask count in both.

    Args:
        data: images of the mask's size, good and painted, without regions of interest.
        mask: (H, W) bool, in pixels of the original images.
    """
    kept = [i for i, one in enumerate(data.judged) if _shows(one, mask)]
    test = {size: Table([rows[i] for i in kept]) for size, rows in data.test.items()}
    without = replace(data, judged=tuple(data.judged[i] for i in kept), test=test)
    size = mask.shape[0], mask.shape[1]
    inside = {canvas: Preprocess(canvas).kept(size, mask) for canvas in data.fit}
    fit, test = (
        {canvas: Table([replace(row, roi=inside[canvas]) for row in rows]) for canvas, rows in part.items()}
        for part in (without.fit, without.test)
    )
    return without, replace(without, fit=fit, test=test)


def _shows(one: Judged, mask: NDArray[np.bool_]) -> bool:
    """Tell whether an image is good, or at least half of its defect lies on the foreground."""
    top, left, height, width = one.window
    inside = mask[top : top + height, left : left + width]
    return one.mask is None or bool(inside[one.mask].mean() >= 0.5)
