"""Readers share these: folders and images in order, rows of a class folder, groups, CSV files, the held-out share."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from pickglass.data.images.decoder import IMAGE_SUFFIXES
from pickglass.data.tables.rows import Role, Row, Table, group_by, split_roles
from pickglass.errors import DataError

__all__ = [
    "MASK_FOLDERS",
    "SHOWN",
    "class_rows",
    "folders",
    "grouped",
    "held_out",
    "images",
    "is_good",
    "one_or_all",
    "read_csv",
]

MASK_FOLDERS = ("ground_truth", "masks")
SHOWN = 5  # how many names a message lists

_GOOD = frozenset({"good", "ok", "normal"})
_HELD_OUT = 0.2  # share of the good images kept for the test where a layout has no split of its own


def is_good(folder: Path) -> bool:
    """Say whether a folder's name tells that it holds good parts."""
    return folder.name.lower() in _GOOD


def folders(root: Path) -> list[Path]:
    """List sub-folders, sorted, without hidden ones; there are none where there is no such folder."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []


def images(folder: Path, deep: bool = True) -> list[Path]:
    """List image files by extension, sorted, with ``deep`` those of sub-folders too; links to folders are not followed.

    Raises:
        OSError: a folder that cannot be listed; its images would be missing unseen.
    """
    files_found = []
    for place, below, files in os.walk(folder, onerror=_raise if folder.is_dir() else None):
        below[:] = [name for name in below if deep and not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        files_found += [Path(place, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    return sorted(files_found)


def _raise(error: OSError) -> NoReturn:
    raise error


def class_rows(root: Path, folder: Path, role: Role) -> list[Row]:
    """Make the rows of one folder of good images or of one defect type; masks lie in ``root/ground_truth/TYPE``."""
    if is_good(folder):
        return [Row(str(path), role, 0) for path in images(folder)]
    files = images(folder)
    nested = [path for path in files if any(is_good(above) for above in path.relative_to(folder).parents)]
    if nested:
        raise DataError(f"{folder} counts as a defect type but holds good images: {nested[0]}; move them out of it")
    masks: dict[Path, Path] = {}
    for place in MASK_FOLDERS:
        beside = root / place / folder.name
        masks.update({path.relative_to(beside).with_suffix(""): path for path in images(beside)})
    rows = []
    for path in files:
        stem = path.relative_to(folder).with_suffix("")
        mask = masks.get(stem.with_name(f"{stem.name}_mask")) or masks.get(stem)
        rows.append(Row(str(path), role, 1, folder.name, None if mask is None else str(mask)))
    return rows


def one_or_all(files: Iterable[Path]) -> str | tuple[str, ...] | None:
    """Return what a row has as its mask: nothing, one file, or several whose union it is."""
    names = tuple(str(file) for file in files)
    return names if len(names) > 1 else names[0] if names else None


def grouped(root: Path, rows: list[Row], pattern: str | None) -> Table:
    """Give rows their groups: from the file names where there is a pattern, else from ``groups.csv`` if any."""
    if pattern is not None:
        return group_by(Table(rows), pattern)
    file = root / "groups.csv"
    if not file.is_file():
        return Table(rows)
    groups: dict[str, str] = {}
    for line in read_csv(file, ("path", "group")):
        path = PurePosixPath(line["path"].replace("\\", "/")).as_posix()
        if groups.setdefault(path, line["group"]) != line["group"]:
            raise DataError(f"{file}: {path} is in two groups, {groups[path]!r} and {line['group']!r}")
    names = [Path(row.path).relative_to(root).as_posix() for row in rows]
    unknown = sorted(set(groups) - set(names))
    if unknown:
        raise DataError(
            f"{file} names {len(unknown)} images that are not in the data set, e.g. {', '.join(unknown[:SHOWN])}: "
            f"expected paths relative to {root}"
        )
    return Table([replace(row, group=groups.get(name) or row.group) for row, name in zip(rows, names, strict=True)])


def held_out(table: Table) -> Table:
    """Keep 20 % of the good images for the test, whole groups, seed 0, if there are defective ones to compare with."""
    if all(row.label == 0 for row in table):
        return table
    roles: dict[Role, Role] = {"calibrate": "test", "test": "test", "fit": "train"}
    divided = split_roles(table, validate=0, calibrate=_HELD_OUT, seed=0)
    return Table([replace(row, role=roles[row.role]) for row in divided])


def read_csv(file: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Read the lines of a CSV file as dicts of text, absent values empty.

    Raises:
        DataError: not a CSV file in UTF-8, or one of ``columns`` is missing.
    """
    wanted = tuple(columns)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not set(wanted) <= set(reader.fieldnames or ()):
                raise DataError(f"{file} has the columns {reader.fieldnames}, expected {' and '.join(wanted)}")
            return [{key: value or "" for key, value in line.items() if isinstance(key, str)} for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8: {error}") from error
