"""Judgements as CSV files, for a line's computer (MES) or a table: one row an image, and one row a defect.

Both are UTF-8 with a comma, a point and a head, in the order of the images, and are written whole or not at all.
Numbers have all their digits, a cell without a value is empty. Text that a spreadsheet would take for a formula begins
with an apostrophe, see :func:`pickglass.data.tables.cells.cell`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pickglass.data.files import written_whole
from pickglass.data.tables.cells import Cell, cell

__all__ = ["DEFECTS", "IMAGES", "write_tables"]

IMAGES = (
    "path",
    "score",
    "threshold",
    "unsure_threshold",
    "verdict",
    "p_value",
    "type",
    "model_id",
    "model_version",
    "time",
    "error",
)
"""The columns of ``results.csv``, one row an image."""

DEFECTS = ("path", "verdict", "defect", "x", "y", "width", "height", "area_px", "area_mm2", "peak", "type")
"""The columns of ``defects.csv``, one row a defect; ``verdict`` is that on its image."""


def write_tables(folder: Path, images: Iterable[Sequence[Cell]], defects: Iterable[Sequence[Cell]]) -> None:
    """Write ``results.csv`` and ``defects.csv`` into a folder; where one cannot be written, the old ones stay.

    Args:
        folder: exists.
        images: rows with the columns of :data:`IMAGES`.
        defects: rows with the columns of :data:`DEFECTS`.

    Raises:
        InputError: the folder cannot be written.
    """
    with ExitStack() as both:
        for name, head, rows in (("results.csv", IMAGES, images), ("defects.csv", DEFECTS, defects)):
            temporary = both.enter_context(written_whole(folder / name))
            # names of files that are no text, on Linux, are written byte by byte as they are
            with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file)
                writer.writerow(head)
                writer.writerows([cell(value) for value in row] for row in rows)
