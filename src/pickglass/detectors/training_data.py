"""What a fit may learn from: sound, good images, their sizes, and the size of their pixels."""

from __future__ import annotations

import math
from typing import Any

from pickglass.data import (
    Dataset,
    Decoded,
    Preprocess,
    Row,
    Table,
    as_table,
    decode,
    parse_size,
)
from pickglass.data.images.decoder import Array
from pickglass.detectors.compute import ComputeOptions
from pickglass.detectors.loading import Prepared
from pickglass.errors import DataError, Failure
from pickglass.features.backbones.registry import find_backbone

__all__ = ["common_pitch", "known_preprocess", "training_table"]

Size = tuple[int, int]


def training_table(
    data: Any, running: ComputeOptions, preprocess: Preprocess | None, memory_gb: float
) -> tuple[Table, dict[str, Size], dict[str, Decoded[Prepared]]]:
    """The rows that a fit may use, each image read once to see that it is sound.

    Args:
        data: as for :meth:`pickglass.Detector.fit`.
        running: how much at once.
        preprocess: where it is known before the sizes of the images are.
        memory_gb: for images that are kept prepared, so that the fit need not read them again.

    Returns:
        The rows; the size (H, W) of each image by its path; and by its path what fits into the memory.

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
    room = 0 if preprocess is None else int(memory_gb * 1e9 / (12 * math.prod(preprocess.size)))  # images

    def checked(image: Array, row: Row) -> Prepared | None:
        region = row.region(image)
        size = (image.shape[0], image.shape[1])
        return None if preprocess is None else Prepared(preprocess(image), preprocess.kept(size, region))

    sizes: dict[str, Size] = {}
    ready: dict[str, Decoded[Prepared]] = {}
    failures: list[Failure] = []
    for item in decode(table, checked, running.workers, max_pixels=running.max_pixels):
        sizes[item.row.path] = item.size
        if item.error is not None:
            failures.append(Failure(item.row.path, item.error))
        elif item.value is not None and len(ready) < room:
            ready[item.row.path] = Decoded(item.row, item.value, item.size)
    if failures:
        raise DataError(f"{len(failures)} of {len(table)} training images cannot be read:", failures)
    return table, sizes, ready


def known_preprocess(size: int | str | tuple[int, int], backbone: str) -> Preprocess | None:
    """How images will be prepared; None where their sizes have a say in it."""
    if parse_size(size).size is None:
        return None
    return Preprocess.for_images(size, find_backbone(backbone).interpolation, [])


def common_pitch(table: Table) -> float | None:
    """The millimetres a pixel that all images share; None where they do not."""
    pitches = {row.pixel_mm for row in table}
    return pitches.pop() if len(pitches) == 1 else None
