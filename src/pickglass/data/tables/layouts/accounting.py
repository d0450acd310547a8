"""The account is computed from the walk and the rows, whatever reader found them, so that no file can be forgotten."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from pickglass.data.tables.account import Account, Unused
from pickglass.data.tables.layouts.found import Found
from pickglass.data.tables.layouts.names import MASK_FOLDERS, means_mask
from pickglass.data.tables.layouts.tree import Folder, is_image, key
from pickglass.data.tables.rows import Row

__all__ = ["account", "unclaimed"]

_MASKS = frozenset(map(key, MASK_FOLDERS))
_OTHER_IMAGES = frozenset(
    {
        *(".gif", ".jp2", ".j2k", ".jpx", ".npy", ".npz", ".heic", ".heif", ".avif", ".jxl", ".pgm", ".ppm", ".pbm"),
        *(".pnm", ".raw", ".dng", ".cr2", ".nef", ".exr", ".hdr", ".dcm", ".nii", ".tga", ".svg", ".mp4", ".avi"),
    }
)
_ANNOTATIONS = frozenset({".json", ".xml", ".yaml", ".yml"})
_TABLES = frozenset({".csv", ".tsv", ".parquet", ".xlsx", ".xls"})
_TEXTS = ("readme", "license", "licence", "copying", "changelog", "notice", "citation")
_PRIVATE = "private test images, whose truth is not published, to be judged with 'pickglass predict'"

_ROLES = {
    "train": "training",
    "fit": "training",
    "validate": "validation",
    "calibrate": "calibration",
    "test": "the test",
}
_LABELS = {0: "good", 1: "defective", None: "unlabelled"}


def account(root: Folder, found: Found, name: str) -> Account:
    """Say what became of every file of a folder, for one of the data sets that were found in it."""
    uses: dict[str, str] = {}
    for other, table in found.tables.items():
        for row in table:
            for path, use in _uses(row):
                uses[path] = use if other == name else "of another data set of the folder"
    uses.update((row.path, _PRIVATE) for row in found.private)
    for path, use in found.used.items():
        uses.setdefault(path, use)
    if not os.path.isdir(root.path):  # a table, whose folder may hold anything
        return Account(len(uses), _counted(uses.values()))
    used: list[str] = []
    unused: list[Unused] = []
    files = hidden = 0
    for below, folder in root.walk():
        hidden += folder.hidden
        files += len(folder.files)
        for file in folder.files:
            path = folder.at(file)
            if path in uses:
                used.append(uses[path])
            else:
                unused.append(_unused(os.path.join(below, file), path, found))
        files += len(folder.skipped)
        unused += [Unused(os.path.join(below, link), why, False) for link, why in folder.skipped.items()]
    inside = os.path.join(root.path, "")
    outside = sorted(
        os.path.relpath(path, root.path) for path in uses if not path.startswith(inside) and os.path.exists(path)
    )
    return Account(files, _counted(used), tuple(unused), hidden, tuple(outside))


def unclaimed(root: Folder, but: Iterable[str]) -> Account:
    """Say what became of the files of a folder of data sets that belong to none of them.

    Args:
        root: the folder.
        but: names of its sub-folders that are data sets, and have accounts of their own.
    """
    rest = Folder(root.path, root.files, hidden=root.hidden, skipped=root.skipped)
    rest.folders = {name: folder for name, folder in root.folders.items() if name not in set(but)}
    return account(rest, Found(), "")


def _counted(uses: Iterable[str]) -> dict[str, int]:
    """Count the uses: images for training first, what is not an image last."""
    order = [f"{label} images for {role}" for role in dict.fromkeys(_ROLES.values()) for label in _LABELS.values()]
    counts = Counter(uses)
    return {use: counts[use] for use in sorted(counts, key=lambda use: order.index(use) if use in order else 99)}


def _uses(row: Row) -> Iterable[tuple[str, str]]:
    yield row.path, f"{_LABELS[row.label]} images for {_ROLES[row.role]}"
    yield from ((mask, "masks") for mask in row.masks)
    if isinstance(row.roi, str):
        yield row.roi, "regions of interest"


def _unused(name: str, path: str, found: Found) -> Unused:
    if path in found.unused:
        return Unused(name, found.unused[path], True)
    if path in found.passed:
        return Unused(name, found.passed[path], False)
    above = {key(part) for part in os.path.dirname(name).split(os.sep)}
    base, suffix = os.path.splitext(key(os.path.basename(name)))
    if is_image(name):
        if means_mask(name) or above & _MASKS:
            return Unused(name, "masks that belong to no image; expected STEM_mask.png for STEM.png", True)
        return Unused(name, "images outside of the folders of the layout", True)
    if suffix in _OTHER_IMAGES:
        return Unused(name, f"files of a format that is not read, {suffix}: save them as PNG or TIFF", True)
    if base.startswith(_TEXTS) and suffix not in _TABLES:
        return Unused(name, "texts about the data", False)
    if suffix in _TABLES:
        return Unused(name, "tables: name the table in place of the folder to read it", True)
    if suffix in _ANNOTATIONS or (suffix == ".txt" and above & _MASKS):
        return Unused(name, "annotations that the layout does not read", True)
    return Unused(name, "files of other kinds", False)
