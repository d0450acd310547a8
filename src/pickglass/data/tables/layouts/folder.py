"""A plain folder holds good images only, or ``good`` beside folders of defective ones."""

from __future__ import annotations

import os
import re

from pickglass.data.tables.layouts.classes import class_rows, classes
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import MASK_FOLDERS, means_bad, split_of
from pickglass.data.tables.layouts.pairing import refuse_unnamed_masks, sort_images
from pickglass.data.tables.layouts.tables import GROUPS, grouped, held_out
from pickglass.data.tables.layouts.tree import Folder, key, some, walk
from pickglass.data.tables.rows import Row
from pickglass.errors import DataError

__all__ = ["read"]

_TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".xls")
_LISTS = (".txt", ".json", ".xml", ".yaml", ".yml")
_LABELS = re.compile(r"label|annot|defect|anomal|truth")


def read(root: Folder, ask: Ask) -> Found | None:
    """Read loose images, which are all good; or ``good`` and folders beside it, which are types of defects.

    Where the folder is a split, ``test`` of MVTec AD by itself, the masks are sought beside it too.
    """
    found = Found()
    parts = [one for one in classes(root, ask) if split_of(one.name) is None]
    loose = sort_images(root, deep=False)
    if not any(part.good for part in parts):
        if not loose.images or loose.masks or any(folder.holds_images() for folder in root.folders.values()):
            return None
        _check_all_good(root)
        rows = [Row(root.at(name), "train", 0) for name in loose.images]
        found.drawn = True
        found.tables = {root.name: grouped(root, rows, ask, found)}
        return found
    if loose.images:
        raise DataError(f"{root.path} holds {loose.images[0]} beside its folders: move it to the folder it belongs to")
    places = root.find_all(*MASK_FOLDERS) + _beside(root)
    rows = []
    for part in parts:
        masks = [below for place in places for below in place.find_all(part.name)]
        rows += class_rows(part, "train" if part.good else "test", masks, found)
    refuse_unnamed_masks(root, rows)
    found.tables = {root.name: held_out(grouped(root, rows, ask, found), found)}
    return found


def _check_all_good(root: Folder) -> None:
    """Refuse loose images where something in the folder may say that not all of them are good."""
    lists = [name for name in root.files if key(name) != GROUPS and _may_say_what_is_good(name)]
    if lists:
        raise DataError(
            f"{root.path} holds images beside {some(lists)}, which may say which of them are good: name the table in "
            "place of the folder, sort the images into good and other folders, or move the file away if all are good"
        )
    if means_bad(root.name):
        raise DataError(
            f"{root.path} has a name that means defective parts, so its images cannot teach: name a folder of good ones"
        )


def _may_say_what_is_good(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _TABLES or (suffix in _LISTS and _LABELS.search(key(name)) is not None)


def _beside(root: Folder) -> list[Folder]:
    """List the folders of masks beside a split that was named by itself."""
    if split_of(root.name) is None:
        return []
    above = os.path.dirname(os.path.realpath(root.path))
    named = [name for name in MASK_FOLDERS if os.path.isdir(os.path.join(above, name))]
    return [walk(os.path.join(above, name)) for name in named]
