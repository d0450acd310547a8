"""DAGM 2007 has ten classes, each with ``Train`` and ``Test``, and masks of the defective images in ``Label``.

Published for the competition of the German Association for Pattern Recognition 2007 (Wieler and Hahn, "Weakly
Supervised Learning for Industrial Optical Inspection"), now at zenodo.org/records/8086136. The masks are coarse
ellipses around the defects, not their outlines.
"""

from __future__ import annotations

from pathlib import Path

from pickglass.data.tables.layouts.classes import one_or_all
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.kolektor2 import DEFECTIVE_TRAINING
from pickglass.data.tables.layouts.names import split_of
from pickglass.data.tables.layouts.pairing import pair, sort_images
from pickglass.data.tables.layouts.tables import grouped
from pickglass.data.tables.layouts.tree import Folder, key
from pickglass.data.tables.rows import Role, Row
from pickglass.errors import DataError

__all__ = ["read"]

_LIST = "Labels.txt"
_UNKNOWN = f"training images of which neither {_LIST} nor the masks say that they are good"


def read(root: Folder, ask: Ask) -> Found | None:
    """Read one class: ``Label/Labels.txt`` says which images are defective, or, without it, their masks do.

    Where a mask belongs to no image, those without one are of unknown label. Defective training images are not used.
    """
    parts = [(role, folder) for name, folder in root.folders.items() if (role := split_of(name)) and folder.images]
    labels = [folder.find("label") for _, folder in parts]
    if not any(label is not None and (label.images or label.file(_LIST)) for label in labels):
        return None
    found, rows = Found(), list[Row]()
    for role, folder in parts:
        rows += _rows(role, folder, found)
    found.tables = {root.name: grouped(root, rows, ask, found)}
    return found


def _rows(role: Role, folder: Folder, found: Found) -> list[Row]:
    labels = folder.find("label")
    files = sort_images(folder, deep=False)
    masks = [] if labels is None else [(name, labels.at(name)) for name in labels.images]
    pairs, doubtful = pair(files.images, masks)
    found.unused.update(doubtful)
    listed = _listed(labels, found)
    # a mask of no image leaves an image whose mask it is, and which then must not pass for a good one
    whole = {mask for paired in pairs.values() for mask in paired} == {path for _, path in masks}
    rows = []
    for image in files.images:
        path, mask = folder.at(image), one_or_all(pairs.get(image, ()))
        label: int | None = None
        if listed is None and masks:
            label = 1 if mask is not None else 0 if whole else None
        if listed is not None:
            label = listed.get(key(image))
            if label == 0 and mask is not None:
                raise DataError(f"{path} has a mask, {mask}, but {_LIST} says that it is good: correct one of them")
        if role == "test" or label == 0:
            rows.append(Row(path, role if label == 0 else "test", label, "defect" if label else None, mask))
        else:
            found.unused[path] = DEFECTIVE_TRAINING if label else _UNKNOWN
            found.used.update(dict.fromkeys(pairs.get(image, ()), "masks of unused training images"))
    return rows


def _listed(labels: Folder | None, found: Found) -> dict[str, int] | None:
    """Read which images are defective; None where there is no list.

    A line is number, 1 for defective, the image's name, and the names of masks; the first line is a number by itself.
    """
    file = None if labels is None else labels.file(_LIST)
    if file is None:
        return None
    found.used[file] = "lists of labels"
    listed: dict[str, int] = {}
    for number, line in enumerate(Path(file).read_text("utf-8-sig", "replace").splitlines(), start=1):
        values = line.split()
        if len(values) < 3:
            continue
        if values[1] not in ("0", "1"):
            raise DataError(f"{file}, line {number}: {line[:80]!r}, expected a number, 0 or 1, and an image's name")
        listed[key(values[2])] = int(values[1])
    return listed
