"""A CSV or Parquet table names the images, as people write it or export it from pandas and spreadsheets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import SPLITS, means_bad, means_good
from pickglass.data.tables.layouts.spreadsheet import read_lines
from pickglass.data.tables.layouts.tables import held_out
from pickglass.data.tables.layouts.tree import Folder, key, some
from pickglass.data.tables.rows import Role, Row, Table, group_by
from pickglass.errors import DataError

__all__ = ["COLUMNS", "read"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "image", "image_path", "img", "img_path"),
        *("file", "filename", "file_name", "filepath", "file_path"),
    ),
    "label": ("label", "class", "anomaly", "is_anomaly", "target", "label_index"),
    "defect": ("defect", "defect_type", "anomaly_class"),
    "role": ("role", "split", "set", "subset", "partition"),
    "mask": ("mask", "mask_path", "ground_truth", "gt"),
    "group": ("group", "part", "roll"),
    "roi": ("roi",),
    "pixel_mm": ("pixel_mm",),
}
"""What a row tells -> the names that its column may have, in any case; only the first is needed."""

_ROLES: dict[str, Role] = {**SPLITS, "fit": "fit", "validate": "validate", "calibrate": "calibrate"}
_FALSE, _TRUE = frozenset({"0", "0.0", "false", "f", "no", "n"}), frozenset({"1", "1.0", "true", "t", "yes", "y"})
_DEFECTIVE_IF = frozenset({"anomaly", "is_anomaly"})  # columns whose yes means defective


def read(root: Folder, ask: Ask) -> Found | None:
    """Read rows from a file; paths in it are relative to its folder, several masks are separated by ``;``.

    Only a path is needed. A label is 0 or good, 1 or bad, the name of a defect type, or empty for unknown. Without
    roles the good images train and a fixed share of them is kept for the test, as in plain folders.
    """
    file = root.path
    if not file.lower().endswith((".csv", ".tsv", ".parquet")) or not os.path.isfile(file):
        return None
    lines = read_lines(file)
    columns = _columns(file, list(lines[0]) if lines else [])
    words = _label_words(file, columns, lines, ask) if "label" in columns else {}
    reading = _Reading(os.path.dirname(file), columns, words)
    rows = [reading.row(line, f"{file}, row {number}") for number, line in enumerate(lines, start=1)]
    paths: set[str] = set()
    twice = [row.path for row in rows if row.path in paths or paths.add(row.path)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"{file} names {len(twice)} images twice, e.g. {twice[0]}: expected one row an image")
    table = Table(rows) if ask.group_by is None else group_by(Table(rows), ask.group_by)
    divided = "role" in columns and any(line[columns["role"]] for line in lines)
    found = Found(used={file: "tables"})
    name = os.path.splitext(os.path.basename(file))[0]
    found.tables = {name: table if divided else held_out(table, found)}
    return found


def _columns(file: str, names: Sequence[str]) -> dict[str, str]:
    """Find the column of the file that tells each thing."""
    found: dict[str, str] = {}
    for what, known in COLUMNS.items():
        there = [name for name in known if name in names]
        if len(there) > 1 and there[0] != what:
            raise DataError(f"{file} has the columns {' and '.join(there)}: rename the right one to {what}")
        if there:
            found[what] = there[0]
    if "path" not in found and names:
        raise DataError(
            f"{file} has the columns {list(names)}, expected path, or one of {', '.join(COLUMNS['path'][1:])}"
        )
    return found


class _Label(NamedTuple):
    label: int | None
    defect: str | None = None


def _label_words(
    file: str, columns: Mapping[str, str], lines: Sequence[Mapping[str, str]], ask: Ask
) -> dict[str, _Label]:
    """Say what each label of the file means, and refuse labels of which that cannot be said.

    False and true, or no and yes, mean good and defective only where the column is named for the defect; a column
    ``label`` of them could mean either.
    """
    column = columns["label"]
    texts = dict.fromkeys(line[column] for line in lines)
    words: dict[str, _Label] = {}
    for text in texts:
        word = key(text)
        if not text:
            words[text] = _Label(None)
        elif word in ("0", "0.0") or means_good(text, ask.good):
            words[text] = _Label(0)
        elif word in ("1", "1.0") or means_bad(text):
            words[text] = _Label(1)
        elif word in _FALSE | _TRUE:
            if column not in _DEFECTIVE_IF:
                raise DataError(
                    f"{file}: the column {column} holds {some(list(texts))}, which may mean good or defective: write "
                    "0 for good and 1 for defective, or name the column anomaly where yes means defective"
                )
            words[text] = _Label(int(word in _TRUE))
        elif _is_number(text):
            raise DataError(f"{file}: the column {column} holds {text!r}, expected 0 for good and 1 for defective")
        else:
            words[text] = _Label(1, text)
    types = [text for text, meaning in words.items() if meaning.defect]
    if types and not ask.good and not any(meaning.label == 0 for meaning in words.values()):
        raise DataError(
            f"{file}: the column {column} holds {some(list(texts))}, and none of them means good (good, ok, 0, ...): "
            "name the one that does with --good NAME (good=['NAME'])"
        )
    return words


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Reading:
    """Lines of a table become rows."""

    folder: str
    columns: Mapping[str, str]
    words: Mapping[str, _Label]

    def row(self, line: Mapping[str, str], place: str) -> Row:
        path = self._value(line, "path")
        if not path:
            raise DataError(f"{place}: the column {self.columns['path']} is empty")
        label, defect = self._label(line, place)
        role = self._role(line, place, label)
        if role != "test" and label == 1:
            raise DataError(
                f"{place}: {path} is defective but its role is {self._value(line, 'role')}; only good images can teach"
            )
        masks = tuple(self._path(mask.strip()) for mask in self._value(line, "mask").split(";") if mask.strip())
        roi, pitch = self._value(line, "roi"), self._value(line, "pixel_mm")
        try:
            pixel_mm = float(pitch) if pitch else None
        except ValueError as error:
            raise DataError(f"{place}: pixel_mm {pitch!r}, expected millimetres a pixel, e.g. 0.05") from error
        return Row(
            self._path(path),
            role,
            label,
            defect,
            masks if len(masks) > 1 else (masks or (None,))[0],
            self._value(line, "group") or None,
            roi=self._path(roi) if roi else None,
            pixel_mm=pixel_mm,
        )

    def _label(self, line: Mapping[str, str], place: str) -> _Label:
        text, defect = self._value(line, "label"), self._value(line, "defect") or None
        label, word = self.words.get(text, _Label(None))
        if defect is None:
            return _Label(label, word)
        none = means_good(defect) or key(defect) in _FALSE | {"none", "nan", "-"}
        if label == (1 if none else 0):
            raise DataError(f"{place}: label {text!r} but defect {defect!r}: correct one of them")
        return _Label(0) if none else _Label(1, word if key(defect) in _TRUE else defect)

    def _role(self, line: Mapping[str, str], place: str, label: int | None) -> Role:
        word = self._value(line, "role") or ("train" if label == 0 else "test")
        role = _ROLES.get(key(word))
        if role is None:
            raise DataError(f"{place}: role {word!r}, expected one of {', '.join(_ROLES)}")
        return role

    def _value(self, line: Mapping[str, str], what: str) -> str:
        return line[self.columns[what]] if what in self.columns else ""

    def _path(self, name: str) -> str:
        """Return the path of a file as this system writes it, also where the table was written on Windows."""
        path = os.path.join(self.folder, name)
        other = os.path.join(self.folder, name.replace("\\", "/"))
        return other if "\\" in name and os.sep == "/" and not os.path.exists(path) else path
