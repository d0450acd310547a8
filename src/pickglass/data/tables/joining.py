"""Several folders become one table; nothing is counted twice, and parts of two folders are never taken for one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pickglass.data.tables.account import Account, Unused
from pickglass.data.tables.rows import Dataset, Table
from pickglass.errors import InputError

__all__ = ["join_datasets", "join_tables"]


def join_tables(parts: Sequence[tuple[str, Table]]) -> Table:
    """Return the rows of several places in their order.

    Args:
        parts: what the user named, with the images there.

    Raises:
        InputError: two of them are one place, or hold the same file, also through a link to its folder.
    """
    if len(parts) == 1:
        return parts[0][1]
    first: dict[str, tuple[str, str]] = {}  # real place of an image -> what was named, and its path from there
    folders: dict[str, str] = {}
    twice: list[tuple[tuple[str, str], tuple[str, str]]] = []
    for named, table in parts:
        here: dict[str, tuple[str, str]] = {}
        for row in table:
            if row.pixels is None:
                place = _real(row.path, folders)
                if place in first:
                    twice.append((first[place], (named, row.path)))
                here[place] = (named, row.path)
        first.update(here)
    if twice:
        (a, path), (b, again) = twice[0]
        shown = path if path == again else f"{path}, the same file as {again}"
        images = "1 image is" if len(twice) == 1 else f"{len(twice)} images are"
        raise InputError(f"{images} named twice, by {a!r} and by {b!r}, e.g. {shown}: name each folder and image once")
    return Table([row for _, table in parts for row in table])


def _real(path: str, folders: dict[str, str]) -> str:
    """Return the path with the links in its folder followed; ``folders`` holds those that were looked up before."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def join_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Make one data set of several, in the order of their places, so that the order of naming changes nothing.

    Roles and labels stay. Groups stay apart: a part called ``7`` in two folders is two parts.

    Raises:
        InputError: as :func:`join_tables`.
    """
    join_tables([(dataset.root, dataset.table + dataset.private) for dataset in datasets])
    ordered = sorted(datasets, key=lambda dataset: os.path.realpath(dataset.root))
    layouts = dict.fromkeys(dataset.layout for dataset in ordered)
    return Dataset(
        " + ".join(dataset.name for dataset in ordered),
        " + ".join(dataset.root for dataset in ordered),
        " + ".join(layouts),
        Table([row for dataset in ordered for row in _apart(dataset.table, dataset.root)]),
        _joined_account(ordered),
        Table([row for dataset in ordered for row in _apart(dataset.private, dataset.root)]),
        any(dataset.drawn for dataset in ordered),
    )


def _apart(table: Table, root: str) -> Table:
    return Table([row if row.group is None else replace(row, group=f"{root}: {row.group}") for row in table])


def _joined_account(datasets: Sequence[Dataset]) -> Account:
    used: Counter[str] = Counter()
    unused: list[Unused] = []
    outside: list[str] = []
    for dataset in datasets:
        account = dataset.account
        used.update(account.used)
        unused += [file._replace(path=os.path.join(dataset.root, file.path)) for file in account.unused]
        outside += [os.path.join(dataset.root, path) for path in account.outside]
    files, hidden = (sum(getattr(d.account, name) for d in datasets) for name in ("files", "hidden"))
    return Account(files, used, tuple(unused), hidden, tuple(outside))
