"""The regions of interest of a fit: what the model keeps of them, and what it expects of images to judge."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pickglass.data import MARGINS, Preprocess, Table

__all__ = ["as_taught", "common_roi", "regions_of"]

Size = tuple[int, int]


def regions_of(table: Table) -> dict[str, Any]:
    """What a model's provenance keeps of the regions of interest that it was fitted within.

    ``margins``: all images inside their margins; ``regions``: of the others ``"one"`` file for all, ``"each"`` image a
    file, ``"some"`` images or ``"none"``; ``regions_sha256``: over the contents of all, in the order of the rows.
    """
    kinds = {row.roi for row in table} - {MARGINS}
    files = {file for file in kinds if file is not None}
    regions = "none" if not files else "some" if None in kinds else "one" if len(files) == 1 else "each"
    contents = {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    listed = json.dumps([contents.get(row.roi or "", row.roi) for row in table])
    return {
        "margins": all(row.roi == MARGINS for row in table),
        "regions": regions,
        "regions_sha256": hashlib.sha256(listed.encode()).hexdigest(),
    }


def as_taught(table: Table, provenance: Mapping[str, Any]) -> Table:
    """The rows as a model of this provenance was taught to look at them: inside their margins, if so.

    Warns of rows without a region of interest where each image that was fitted had one of its own.
    """
    if provenance.get("margins"):
        return Table([replace(row, roi=row.roi or MARGINS) for row in table])
    lacking = sum(row.roi is None for row in table)
    if lacking and provenance.get("regions") == "each":
        warnings.warn(
            f"{lacking} of {len(table)} images have no region of interest, and the model was fitted within one an "
            "image: it never learned what lies outside, which may raise alarms. Name the folder of masks (roi)",
            UserWarning,
            stacklevel=3,
        )
    return table


def common_roi(table: Table, sizes: Mapping[str, Size], preprocess: Preprocess) -> npt.NDArray[np.bool_] | None:
    """The region of interest (H, W) bool on the canvas that a model keeps for images without one of their own.

    There is one only if all training images share one file and one size: a fixed camera.
    """
    files, shapes = {row.roi for row in table}, set(sizes.values())
    if len(files) != 1 or len(shapes) != 1 or files & {None, MARGINS}:
        return None
    (size,) = shapes
    region = table[0].region(np.zeros(size, np.uint8))
    return None if region is None else preprocess.kept(size, region)
