"""Known defects: bad parts that a fit is shown beside the good ones, from a folder, a table, or images in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pickglass.data.images.decoder import MAX_PIXELS, Array, decode
from pickglass.data.tables.layouts import load_dataset
from pickglass.data.tables.layouts.classes import Class, class_rows, classes
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import MASK_FOLDERS
from pickglass.data.tables.layouts.tree import Folder, walk
from pickglass.data.tables.rows import Dataset, Row, Table, group_by, image_digest
from pickglass.data.tables.sources import as_table
from pickglass.errors import DataError, Failure, ImageError, InputError

__all__ = ["as_defects", "check_defects", "defects_at"]


def as_defects(data: Any) -> Table:
    """Make rows of bad parts, with the role ``validate``, of whatever the user has.

    Args:
        data: rows or a table whose labels are 1 or unknown, a data set (its bad parts), the path of a folder (see
            :func:`defects_at`) or of an image, or what :func:`pickglass.data.as_table` takes.

    Raises:
        InputError: a row is labelled good.
        DataError: there is no image.
    """
    if isinstance(data, Dataset):
        table = data.table.where(lambda row: row.label == 1)
    elif isinstance(data, (str, os.PathLike)) and os.path.isdir(data):
        return defects_at(data)
    else:
        table = as_table(data)
    good = [row.path for row in table if row.label == 0]
    if good:
        raise InputError(
            f"{len(good)} of {len(table)} known defects are labelled good, e.g. {good[0]!r}: expected bad parts alone; "
            "good ones teach as the others do"
        )
    if not table:
        raise DataError("there are no known defects: expected images of bad parts, or leave defects out")
    return Table([replace(row, role="validate", label=1) for row in table])


def defects_at(path: str | os.PathLike[str], pattern: str | None = None, good: Sequence[str] = ()) -> Table:
    """Read the bad parts of a folder, or of the file of a table.

    A data set in a known layout gives its defective images, of whatever split. Any other folder is taken to hold
    nothing but bad parts: its folders are types of defects, images that lie in none of them have no type, and masks
    lie beside the images or in ``masks/TYPE`` or ``ground_truth/TYPE``.

    Args:
        path: folder or table.
        pattern: regular expression that finds the part or roll in each file name; None: groups from elsewhere, if any.
        good: names of folders that mean good, beside those that are known.

    Raises:
        DataError: it does not exist, holds no bad part, or file names give no group.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise DataError(f"{name}: there is no such folder of known defects")
    why: DataError | None = None
    rows: Iterable[Row] = ()
    try:
        rows = load_dataset(name, None, pattern, good, training=False).table.where(lambda row: row.label == 1)
    except DataError as error:
        why = error
    if not rows and os.path.isdir(name):
        rows = _bad_ones(walk(name), Ask(pattern, tuple(good)))
    if not rows:
        reason = f" ({str(why).splitlines()[0]})" if why is not None else ""
        raise DataError(f"{name} holds no image of a bad part, expected images, or folders TYPE of them{reason}")
    return Table([replace(row, role="validate") for row in rows])


def _bad_ones(root: Folder, ask: Ask) -> list[Row]:
    """Make rows of a folder that holds nothing but bad parts."""
    parts = classes(root, ask)
    good = [part.name for part in parts if part.good]
    if good:
        raise DataError(
            f"{root.path} holds no defective image, and a folder {good[0]!r} of good ones: name the folder of bad parts"
        )
    found = Found()
    places = root.find_all(*MASK_FOLDERS)
    rows: list[Row] = []
    for part in parts:
        rows += class_rows(part, "validate", [below for place in places for below in place.find_all(part.name)], found)
    loose = Folder(root.path, root.files)
    masks = [Folder(place.path, place.files) for place in places]
    alone = class_rows(Class(loose, root.name, False), "validate", masks, found)
    table = Table([*rows, *(replace(row, defect=None) for row in alone)])
    return list(table if ask.group_by is None else group_by(table, ask.group_by))


def check_defects(defects: Table, good: Table, workers: int = 2, max_pixels: int = MAX_PIXELS) -> None:
    """Read each known defect and its mask once, before anything is learned.

    Raises:
        DataError: images or masks that cannot be used (all are listed), or images that are among the good ones.
    """

    def look(image: Array, row: Row) -> None:
        mask = row.truth((image.shape[0], image.shape[1]), max_pixels)
        if mask is not None and not mask.any():
            raise ImageError(
                row.path, "its mask marks nothing: mark the defect with any value above 0, or leave it out"
            )

    failures = [
        Failure(item.row.path, item.error)
        for item in decode(defects, look, workers, max_pixels=max_pixels)
        if item.error is not None
    ]
    if failures:
        raise DataError(f"{len(failures)} of {len(defects)} known defects cannot be used:", failures)
    known = {image_digest(row) for row in good}
    both = [Failure(row.path, "is one of the good images, too") for row in defects if image_digest(row) in known]
    if both:
        raise DataError(f"{len(both)} known defects are among the good images, which cannot be:", both)
