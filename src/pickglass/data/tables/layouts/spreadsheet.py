"""CSV and Parquet files are read as people export them from spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pickglass.data.tables.cells import text_of
from pickglass.errors import DataError, MissingExtra

__all__ = ["read_lines"]

_SEPARATORS = ",;\t"


def read_lines(file: str, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read the lines of a table as dicts of text, absent values empty; names of columns are in lower case.

    Args:
        file: ``.parquet``, or a CSV file in UTF-8 with or without a byte order mark, or in UTF-16 with one, whose
            values are separated by commas, semicolons or tabs; what :func:`pickglass.data.tables.cells.cell` put in
            front of a text is taken off again.
        columns: columns that must be there.

    Raises:
        DataError: not such a file, or a column is missing.
        MissingExtra: a Parquet file without pyarrow.
    """
    lines, names = _parquet(file) if file.lower().endswith(".parquet") else _csv(file)
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError(f"{file} has the columns {names}, expected {' and '.join(columns)}")
    return lines


def _csv(file: str) -> tuple[list[dict[str, str]], list[str]]:
    text = _text_of(file)
    head = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=head.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
        names = [name.strip().lower() for name in next(reader, [])]
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:
            raise DataError(f"{file} has the column {twice[0]!r} twice: expected each once")
        lines = []
        for values in reader:
            if len(values) > len(names):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(values)} values for {len(names)} columns: put a value that "
                    f"holds {separator!r} in quotes"
                )
            if any(value.strip() for value in values):
                absent = [""] * (len(names) - len(values))
                texts = [text_of(value.strip()) for value in values]
                lines.append(dict(zip(names, [*texts, *absent], strict=True)))
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}") from error
    return lines, names


def _text_of(file: str) -> str:
    data = Path(file).read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not a text file in UTF-8 ({error}): save it anew as 'CSV UTF-8', or in Python with "
            "encoding='utf-8'"
        ) from error


def _parquet(file: str) -> tuple[list[dict[str, str]], list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra.needed(f"{file}: a Parquet file", error, ", or save the table as CSV") from error
    try:
        table = parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file: {error}") from error
    names = [str(name).strip().lower() for name in table.column_names]
    lines = [{str(name).strip().lower(): _text(value) for name, value in line.items()} for line in table.to_pylist()]
    return lines, names


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN: an absent value among floats
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
