"""Marks are counted, brought together, and written as a table or as a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pickglass.app.marking.layout import write_layout
from pickglass.app.marking.store import MarkStore
from pickglass.app.marking.table import read_marks, read_table, write_table
from pickglass.app.results import MarksResult
from pickglass.data.files import output_path
from pickglass.errors import InputError

__all__ = ["marks"]


def marks(
    source: str | Path,
    *,
    into: str | Path | None = None,
    table: str | Path | None = None,
    data_set: str | Path | None = None,
    link: bool = False,
    roots: Sequence[str | Path] = (),
) -> MarksResult:
    """Say what was marked, and write it elsewhere on request.

    Args:
        source: table of marks that a report or the page saved, or the page's own file.
        into: the page's own file (``.sqlite``), to which the marks of a table are added; made where there is none.
        table: CSV file to write, with the masks beside it.
        data_set: new folder to write the images to, in the layout of MVTec AD.
        link: give the images a second name there instead of copying them.
        roots: folders in which images are looked for that are elsewhere now.

    Raises:
        DataError, InputError: no such marks, or a place that cannot be written.
    """
    target = None if table is None else output_path(table, ".csv")
    if target is not None and os.path.realpath(target) == os.path.realpath(source):
        raise InputError(f"{target} is the table that is read: name another file")
    with ExitStack() as open_files:
        store = open_files.enter_context(read_marks(source))
        brought = None
        if into is not None:
            if Path(source).suffix.lower() != ".csv" or Path(into).suffix != ".sqlite":
                raise InputError(f"{into}: marks are added from a table (.csv) to the page's own file (.sqlite)")
            page = open_files.enter_context(MarkStore(into))
            brought = page.bring(read_table(source))
        found = store.current()
        counts = Counter(mark.counts_as for mark in found)
        written = None if target is None else write_table(store, target)
        layout = None
        if data_set is not None:
            layout = write_layout(store, data_set, link=link, beside=os.path.dirname(source), roots=roots)
        return {
            "good": counts["good"],
            "bad": counts["bad"],
            "unsure": counts["unsure"],
            "types": dict(Counter(mark.type for mark in found if mark.counts_as == "bad" and mark.type is not None)),
            "masks": sum(mark.mask is not None for mark in found),
            "disputed": [mark.path for mark in found if mark.disputed] if brought is None else brought.disputed,
            "into": None if into is None else str(into),
            "added": None if brought is None else brought.added,
            "known": None if brought is None else brought.known,
            "table": None if written is None else str(target),
            "data_set": layout,
            "failed": [] if layout is None else layout["failed"],
        }
