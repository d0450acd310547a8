"""Rows of a reader become a table: with their groups, and with a share for the test where no split has one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.data.tables.layouts.tree import Folder, composed, some
from pickglass.data.tables.rows import Role, Row, Table, group_by, split_roles
from pickglass.errors import DataError

__all__ = ["GROUPS", "grouped", "held_out"]

GROUPS = "groups.csv"
"""The file in a data set's folder that says which images show the same part or come from the same roll."""

_HELD_OUT = 0.2  # share of the good images kept for the test where a layout has no split of its own


def grouped(root: Folder, rows: Sequence[Row], ask: Ask, found: Found) -> Table:
    """Give rows their groups: from the file names where there is a pattern, else from ``groups.csv`` if any.

    Raises:
        DataError: file names without a group, or ``groups.csv`` is wrong.
    """
    file = root.file(GROUPS)
    if ask.group_by is not None:
        if file is not None:
            found.passed[file] = "groups come from the file names"
        return group_by(Table(rows), ask.group_by)
    if file is None:
        return Table(rows)
    found.used[file] = "lists of groups"
    groups: dict[str, str] = {}
    for line in read_lines(file, ("path", "group")):
        path = composed(os.path.normpath(line["path"].replace("\\", os.sep)))
        if groups.setdefault(path, line["group"]) != line["group"]:
            raise DataError(f"{file}: {line['path']} is in two groups, {groups[path]!r} and {line['group']!r}")
    names = [composed(os.path.relpath(row.path, root.path)) for row in rows]
    unknown = sorted(set(groups) - set(names))
    if unknown:
        raise DataError(
            f"{file} names {len(unknown)} images that are not in the data set, e.g. {some(unknown)}: "
            f"expected paths relative to {root.path}"
        )
    return Table([replace(row, group=groups.get(name) or row.group) for row, name in zip(rows, names, strict=True)])


def held_out(table: Table, found: Found) -> Table:
    """Keep 20 % of the good images for the test, whole groups, seed 0, if there are defective ones to compare with."""
    found.drawn = True
    if all(row.label == 0 for row in table):
        return table
    roles: dict[Role, Role] = {"calibrate": "test", "test": "test", "fit": "train"}
    divided = split_roles(table, validate=0, calibrate=_HELD_OUT, seed=0)
    return Table([replace(row, role=roles[row.role]) for row in divided])
