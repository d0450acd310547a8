"""A CSV or Parquet table names the images.

Its columns are path, role or split, label, defect, mask, group, roi and pixel_mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pickglass.data.tables.layouts.tree import held_out, read_csv
from pickglass.data.tables.rows import Role, Row, Table, group_by
from pickglass.errors import DataError, MissingExtra

__all__ = ["read"]

_ROLES: dict[str, Role] = {
    "train": "train",
    "fit": "fit",
    "validate": "validate",
    "validation": "validate",
    "val": "validate",
    "calibrate": "calibrate",
    "test": "test",
}
_GOOD = frozenset({"0", "good", "ok", "normal"})
_BAD = frozenset({"1", "bad", "ko", "defect", "defective", "anomaly", "anomalous"})


def read(root: Path, pattern: str | None = None) -> dict[str, Table] | None:
    """Read rows from a file; paths in it are relative to its folder, several masks are separated by ``;``.

    Only ``path`` is needed. ``label`` is 0 or good, 1 or bad, the name of a defect type, or empty for unknown. Without
    ``role`` (or ``split``) the good images train and a fixed share of them is kept for the test, as in plain folders.
    """
    if not root.is_file() or root.suffix.lower() not in (".csv", ".parquet"):
        return None
    lines = read_csv(root, ["path"]) if root.suffix.lower() == ".csv" else _read_parquet(root)
    rows = [_row(root.parent, line, f"{root}, row {number}") for number, line in enumerate(lines, start=1)]
    paths: set[str] = set()
    twice = [row.path for row in rows if row.path in paths or paths.add(row.path)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"{root} names {len(twice)} images twice, e.g. {twice[0]}: expected one row an image")
    table = Table(rows) if pattern is None else group_by(Table(rows), pattern)
    divided = any(line.get("role") or line.get("split") for line in lines)
    return {root.stem: table if divided else held_out(table)}


def _row(folder: Path, line: Mapping[str, str], place: str) -> Row:
    if not line["path"]:
        raise DataError(f"{place}: the column path is empty")
    text = line.get("label", "").strip()
    defect = line.get("defect", "").strip() or None
    label = 0 if text.lower() in _GOOD else 1 if text or defect else None
    if label == 1 and text.lower() not in _BAD:
        defect = defect or text
    if label == 0 and defect and defect.lower() not in _GOOD:
        raise DataError(f"{place}: label {text!r} but defect {defect!r}: correct one of them")
    if label == 0:
        defect = None
    word = (line.get("role") or line.get("split") or ("train" if label == 0 else "test")).strip().lower()
    if word not in _ROLES:
        raise DataError(f"{place}: role {word!r}, expected one of {', '.join(_ROLES)}")
    role = _ROLES[word]
    if role != "test" and label == 1:
        raise DataError(f"{place}: {line['path']} is defective but its role is {word}; only good images can teach")
    masks = tuple(str(folder / mask.strip()) for mask in line.get("mask", "").split(";") if mask.strip())
    roi, pitch = line.get("roi", "").strip(), line.get("pixel_mm", "").strip()
    try:
        pixel_mm = float(pitch) if pitch else None
    except ValueError as error:
        raise DataError(f"{place}: pixel_mm {pitch!r}, expected millimetres a pixel, e.g. 0.05") from error
    return Row(
        str(folder / line["path"]),
        role,
        label,
        defect,
        masks if len(masks) > 1 else (masks or (None,))[0],
        line.get("group") or None,
        roi=str(folder / roi) if roi else None,
        pixel_mm=pixel_mm,
    )


def _read_parquet(file: Path) -> list[dict[str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra.needed(f"{file}: a Parquet file", error, ", or save the table as CSV") from error
    try:
        table = parquet.ParquetFile(file).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file: {error}") from error
    if "path" not in table.column_names:
        raise DataError(f"{file} has the columns {table.column_names}, expected path")
    return [{str(key): _text(value) for key, value in line.items()} for line in table.to_pylist()]


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN: an absent value among floats
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)
