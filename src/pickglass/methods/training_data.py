"""What a fit may learn from: sound, good images, their sizes, and the region of interest that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pickglass.data import MARGINS, Dataset, Preprocess, Row, Table, as_table, decode, read_roi
from pickglass.data.images import Array
from pickglass.errors import DataError, Failure
from pickglass.methods.running import Running

__all__ = ["common_pitch", "common_roi", "training_table"]

Size = tuple[int, int]


def training_table(data: Any, running: Running) -> tuple[Table, dict[str, Size]]:
    """The rows that a fit may use, and the size (H, W) of each image by its path.

    Raises:
        DataError: broken images (all are listed), a defective image among them, or none at all.
    """
    table = data.train if isinstance(data, Dataset) else as_table(data, role="train")
    table = table.where(lambda row: row.role != "test")
    # a validation split may hold labelled defects, for thresholds that need them; nothing is fitted on those
    table = table.where(lambda row: row.label != 1 or row.role != "validate")
    defective = [Failure(row.path, f"defective ({row.defect})") for row in table if row.label == 1]
    if defective:
        raise DataError(f"{len(defective)} training images are marked defective; fit takes good ones:", defective)
    if not table:
        raise DataError("there is no good image to learn from: expected rows of another role than 'test'")
    sizes: dict[str, Size] = {}
    failures: list[Failure] = []
    for item in decode(table, _region_is_sound, running.workers, max_pixels=running.max_pixels):
        sizes[item.row.path] = item.size
        if item.error is not None:
            failures.append(Failure(item.row.path, item.error))
    if failures:
        raise DataError(f"{len(failures)} of {len(table)} training images cannot be read:", failures)
    return table, sizes


def _region_is_sound(image: Array, row: Row) -> None:
    read_roi(row, image)


def common_roi(table: Table, sizes: Mapping[str, Size], preprocess: Preprocess) -> npt.NDArray[np.bool_] | None:
    """The region of interest (H, W) bool on the canvas that a model keeps for images without one of their own.

    There is one only if all training images share one file and one size: a fixed camera.
    """
    files, shapes = {row.roi for row in table}, set(sizes.values())
    if len(files) != 1 or len(shapes) != 1 or files & {None, MARGINS}:
        return None
    (size,) = shapes
    region = read_roi(table[0], np.zeros(size, np.uint8))
    return None if region is None else preprocess.kept(size, region)


def common_pitch(table: Table) -> float | None:
    """The millimetres a pixel that all images share; None where they do not."""
    pitches = {row.pixel_mm for row in table}
    return pitches.pop() if len(pitches) == 1 else None
