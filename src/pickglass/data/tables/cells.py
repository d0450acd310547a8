"""Cells of CSV files: text that a spreadsheet would run as a formula is written so that it does not, and read back."""

from __future__ import annotations

import re
from typing import TypeAlias

__all__ = ["Cell", "cell", "text_of"]

Cell: TypeAlias = str | float | int | None

_FORMULA = r"=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20"  # the first four also in full width
# a spreadsheet that takes the semicolon or the tab for its separator begins another cell after it
_WRITTEN = re.compile(rf"^(?=[{_FORMULA}'])|(?<=[;\t])(?='*[{_FORMULA}])")
_READ = re.compile(rf"^'(?=[{_FORMULA}'])|(?<=[;\t])'(?='*[{_FORMULA}])")


def cell(value: Cell) -> str:
    """Return a value as it stands in a file.

    A spreadsheet may run a cell that begins with ``=``, ``+``, ``-``, ``@`` (also in full width), a tab or a line
    break, and file names and types of defects come from outside. Such text gets an apostrophe in front, and so does
    text that begins with one, so that :func:`text_of` gives it back; likewise after a semicolon or tab inside of it,
    where other spreadsheets begin a cell. Numbers stay.

    >>> [cell(value) for value in ("=1+1.png", "'a.png", "a.png", "a;=1+1", -0.5, None)]
    ["'=1+1.png", "''a.png", 'a.png', "a;'=1+1", '-0.5', '']
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return _WRITTEN.sub("'", value)
    return repr(float(value)) if isinstance(value, float) else str(value)  # numpy writes its own name into repr


def text_of(cell: str) -> str:
    """Return the text that :func:`cell` made a cell of.

    >>> [text_of(cell(text)) for text in ("=1+1.png", "'a.png", "a;=1+1")]
    ['=1+1.png', "'a.png", 'a;=1+1']
    """
    return _READ.sub("", cell)
