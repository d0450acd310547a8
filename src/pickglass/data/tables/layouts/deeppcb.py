"""DeepPCB has pairs of a bare board and its template, and boxes of the defects in a text file for each pair.

Published at github.com/tangsanli5201/DeepPCB, and described by Tang et al., "Online PCB Defect Detector On A New PCB
Defect Dataset", 2019. Templates are good images; a pair is one group. There are boxes only, which are no truth of
pixels.
"""

from __future__ import annotations

import os
from pathlib import Path

from pickglass.data.annotations import Annotation, Box
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.tables import grouped, held_out
from pickglass.data.tables.layouts.tree import Folder, is_image
from pickglass.data.tables.rows import Row
from pickglass.errors import DataError

__all__ = ["read"]

_TYPES = {"1": "open", "2": "short", "3": "mousebite", "4": "spur", "5": "copper", "6": "pin-hole"}
_TEMPLATE, _TEST = "_temp", "_test"


def read(root: Folder, ask: Ask) -> Found | None:
    """Read ``group00041/00041/N_temp.jpg`` as good images, ``N_test.jpg`` as defective, boxes ``00041_not/N.txt``."""
    names = [name for name in root.all_files() if is_image(name)]
    stems = {os.path.splitext(name)[0] for name in names}
    pairs = [stem.removesuffix(_TEMPLATE) for stem in stems if stem.endswith(_TEMPLATE)]
    if not any(f"{stem}{_TEST}" in stems for stem in pairs):
        return None
    found, rows = Found(), list[Row]()
    texts = {name for name in root.all_files() if name.endswith(".txt")}
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem.endswith(_TEMPLATE):
            rows.append(Row(root.at(name), "train", 0, group=stem.removesuffix(_TEMPLATE)))
        elif stem.endswith(_TEST):
            rows.append(_row(root, name, stem.removesuffix(_TEST), texts, found))
    for name in ("trainval.txt", "test.txt"):
        if (file := root.file(name)) is not None:
            found.passed[file] = "splits for methods that learn from defects"
    found.tables = {root.name: held_out(grouped(root, rows, ask, found), found)}
    return found


def _row(root: Folder, name: str, stem: str, texts: set[str], found: Found) -> Row:
    above, number = os.path.split(stem)
    text = os.path.join(f"{above}_not", f"{number}.txt")
    if text not in texts:
        return Row(root.at(name), "test", None, group=stem)
    found.used[root.at(text)] = "files of annotations"
    boxes = []
    for line in Path(root.at(text)).read_text("utf-8-sig", "replace").splitlines():
        values = line.replace(",", " ").split()
        if values:
            boxes.append(_box(values, f"{root.at(text)}: {line[:60]!r}"))
    types = tuple(dict.fromkeys(box.type for box in boxes))
    if not boxes:  # every board has defects
        return Row(root.at(name), "test", None, group=stem)
    said = Annotation("defective", types, tuple(boxes), None, root.at(text))
    return Row(root.at(name), "test", 1, ", ".join(types), group=stem, annotation=said)


def _box(values: list[str], place: str) -> Box:
    try:
        left, top, right, bottom = map(int, values[:4])
        return Box(_TYPES[values[4]], left, top, right - left, bottom - top)
    except (ValueError, KeyError, IndexError) as error:
        if isinstance(error, DataError):
            raise DataError(f"{place}: {error}") from error
        raise DataError(f"{place}, expected x1, y1, x2, y2 and the number of a type, 1 to 6") from error
