"""Marks as a CSV file: what the page and the ticks of a report save, and what ``update`` and the page read back.

One row an image, with a head, in UTF-8; texts that a spreadsheet would take for formulas begin with an apostrophe, see
:func:`pickglass.app.judgements.cell`. A mask is a PNG file beside the table, in a folder of the table's name. A
spreadsheet may have saved the table meanwhile, with semicolons for commas.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, cast

from pickglass.app.marking.mask import png_of
from pickglass.app.marking.store import Mark, MarkStore, checked
from pickglass.data.files import missing, written_whole
from pickglass.data.images.decoder import read_header
from pickglass.data.images.masks import read_mask
from pickglass.data.tables.cells import cell
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.errors import DataError, Failure, InputError, shortened

__all__ = ["COLUMNS", "TableRow", "csv_of", "read_marks", "read_table", "write_table"]

COLUMNS = (
    "path",
    "sha256",
    "mark",
    "type",
    "mask",
    "user",
    "time",
    "model_id",
    "model_version",
    "score",
    "note",
)
"""The columns of a table of marks; ``sha256`` is the digest of the image's file."""

_NEEDED = ("path", "sha256", "mark")


class TableRow(NamedTuple):
    """A row of a table: the mark, and its mask's PNG file if it has one."""

    mark: Mark
    png: bytes | None


def csv_of(marks: Iterable[Mark], masks: Mapping[str, str] | None = None) -> str:
    """Return marks as the text of a table; a disputed image is ``unsure``.

    Args:
        marks: one an image.
        masks: where the mask's file is, by the mask's digest; None: the column stays empty.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for mark in marks:
        place = None if masks is None or mark.mask is None else masks[mark.mask]
        values = (mark.path, mark.digest, mark.counts_as, mark.type, place, mark.user, mark.time)
        writer.writerow([cell(value) for value in (*values, mark.model_id, mark.model_version, mark.score, mark.note)])
    return text.getvalue()


def write_table(store: MarkStore, target: Path) -> list[Mark]:
    """Write the marks that count as a table, whole or not at all, and their masks beside it; return these marks.

    The masks lie in a folder ``NAME_masks`` beside ``NAME.csv`` and are named by their digests.

    Raises:
        InputError: the place cannot be written.
    """
    marks = store.current()
    folder = target.parent / f"{target.stem}_masks"
    places = {mark.mask: f"{folder.name}/{mark.mask[:32]}.png" for mark in marks if mark.mask is not None}
    try:
        if places:
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}): name a file in a folder of yours") from error
    for digest, place in places.items():
        with written_whole(target.parent / place) as temporary:
            temporary.write_bytes(store.mask(digest))
    # names of files that are no text, on Linux, are escaped as in the report, so that the table can be read back
    with (
        written_whole(target) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.write(csv_of(marks, places))
    return marks


def read_table(file: str | os.PathLike[str], masks: bool = True) -> list[TableRow]:
    """Read a table of marks.

    Args:
        file: CSV file with the columns of :data:`COLUMNS`; only path, sha256 and mark are needed. A mark without a time
            was made when the file was saved.
        masks: read the files of masks too, whose paths are relative to the table's folder; otherwise a row that names
            one is refused.

    Raises:
        DataError: no such table, or rows that are wrong, all of them listed.
    """
    if not os.path.isfile(file):
        why = "is a folder" if os.path.isdir(file) else missing(file)
        raise DataError(f"{file}: {why}. Expected a table of marks (CSV), as a report or the page saves it")
    lines = read_lines(os.fspath(file), _NEEDED)
    unknown = sorted(set(lines[0]) - set(COLUMNS) - {""}) if lines else []
    if unknown:
        raise DataError(f"{file} has the column {unknown[0]!r}: expected {', '.join(COLUMNS)}")
    saved = datetime.fromtimestamp(os.stat(file).st_mtime, timezone.utc).isoformat()  # when no row says when
    rows, failures = [], []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line, saved, Path(file).parent if masks else None))
        except InputError as error:
            failures.append(Failure(f"row {number}, {shortened(line['path'])}", str(error)))
    if failures:
        raise DataError(f"{file}: {len(failures)} of {len(lines)} rows cannot be read as marks:", failures)
    return rows


def _row(texts: Mapping[str, str], time: str, folder: Path | None) -> TableRow:
    def number(name: str, kind: type[int] | type[float]) -> Any:
        text = texts.get(name, "")
        try:
            return kind(text) if text else None
        except ValueError as error:
            raise InputError(f"{name} {shortened(text)}: expected a number, or nothing") from error

    if not texts["mark"]:
        raise InputError("mark '': expected good, bad or unsure")
    mark = Mark(
        texts["path"],
        texts["sha256"].lower(),
        cast("Any", texts["mark"].lower()),
        texts.get("type") or None,
        None,
        texts.get("user") or None,
        texts.get("time") or time,
        texts.get("model_id") or None,
        number("model_version", int),
        number("score", float),
        texts.get("note") or None,
    )
    place = texts.get("mask", "")
    if not place:
        return TableRow(checked(mark), None)
    if folder is None:
        raise InputError(f"mask {shortened(place)}: files of masks cannot be read from here")
    file = os.path.join(folder, place)
    png = png_of(read_mask(file, read_header(file)[:2]))
    if mark.mark == "good":
        raise InputError("it is marked good and has a mask of a defect: mark it bad or unsure, or leave that out")
    return TableRow(checked(mark), png)


def read_marks(file: str | os.PathLike[str]) -> MarkStore:
    """Read marks from a table, or open the file of marks that the page keeps; the caller closes the store.

    Raises:
        DataError, InputError: neither of both, or a row of the table is wrong.
    """
    if Path(file).suffix.lower() in (".sqlite", ".db"):
        return MarkStore(file, create=False)
    rows = read_table(file)
    store = MarkStore(":memory:")
    try:
        store.bring(rows)
    except BaseException:
        store.close()
        raise
    return store
