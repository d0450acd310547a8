"""Trees of classes: a split such as ``test`` holds a folder of good parts and one for each type of defect.

Masks are sought wherever they are put: beside the images, in a folder of masks inside the class or the split, or in
one at the root, with or without folders of the types and splits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.measured import marks_something
from pickglass.data.tables.layouts.names import GOOD, IMAGE_FOLDERS, MASK_FOLDERS, means_bad, split_of
from pickglass.data.tables.layouts.pairing import pair, refuse_unnamed_masks, sort_images
from pickglass.data.tables.layouts.tree import Folder, is_image, key, some
from pickglass.data.tables.rows import Role, Row
from pickglass.errors import DataError

__all__ = ["Class", "Split", "class_rows", "classes", "one_or_all", "split_rows", "splits"]

_TRANSPARENT = frozenset(map(key, (*MASK_FOLDERS, *IMAGE_FOLDERS)))


class Class(NamedTuple):
    """A folder of a split holds good parts, or those of one type of defect."""

    folder: Folder
    name: str
    good: bool


class Split(NamedTuple):
    """A folder gives its images a role."""

    folder: Folder
    name: str
    role: Role
    classes: list[Class]


def classes(folder: Folder, ask: Ask, but: Iterable[str] = ()) -> list[Class]:
    """List the classes of a folder: its sub-folders with images, but for those of masks and for ``but``."""
    other = {*_TRANSPARENT, *map(key, but)}
    return [
        Class(below, name, ask.is_good(name))
        for name, below in folder.folders.items()
        if key(name) not in other and below.holds_images()
    ]


def splits(root: Folder, ask: Ask) -> list[Split]:
    """List the splits of a data set, in the order train, validation, test."""
    order: tuple[Role, ...] = ("train", "validate", "test")
    found = [(split_of(name), name, folder) for name, folder in root.folders.items()]
    return [
        Split(folder, name, role, classes(folder, ask))
        for wanted in order
        for role, name, folder in found
        if role is not None and role == wanted
    ]


def split_rows(
    root: Folder, parts: list[Split], ask: Ask, found: Found, beside: Mapping[str, str] | None = None
) -> list[Row]:
    """Make the rows of a data set that comes in splits, and note what is not used.

    Args:
        root: the data set; its folders of masks may hold the masks of a split.
        parts: the splits.
        ask: names that mean good.
        found: notes of what is not used are added here.
        beside: names of folders that hold neither images nor masks, and what they hold.

    Raises:
        DataError: defective images for training, or a split in which no folder's name means good.
    """
    rows: list[Row] = []
    for split in parts:
        _check(root, split, ask)
        rows += _loose(split, found, beside)
        for one in split.classes:
            if split.role == "validate" and not one.good:
                found.leave(
                    [one.folder.at(name) for name in one.folder.all_files() if is_image(name)],
                    "defective validation images and their masks: only good images validate a fit",
                )
                continue
            rows += class_rows(one, split.role, _mask_folders(root, split, one.name), found, beside)
    refuse_unnamed_masks(root, rows)
    return _with_flat_masks(root, parts, rows, found)


def _check(root: Folder, split: Split, ask: Ask) -> None:
    """Refuse defective images for training, and classes of which no name says that they are good or all defective."""
    named = [one.name for one in split.classes]
    good = [one for one in split.classes if one.good]
    bad = [one.name for one in split.classes if not one.good]
    known = ", ".join([*GOOD, *ask.good])
    if split.role == "train" and bad and good:
        raise DataError(
            f"{split.folder.path} holds {bad}: only good images can teach; move these folders to test/, or say with "
            "--good NAME which of them holds good parts"
        )
    all_bad = bool(ask.good) or all(means_bad(name) or _mask_folders(root, split, name) for name in named)
    if named and not good and not (split.role != "train" and all_bad):
        but = "" if split.role == "train" else ", or --good good if all of them are defective"
        raise DataError(
            f"{split.folder.path} holds the folders {some(named)}, and no name says which of them holds good parts "
            f"({known}, in any case): rename it, or name it with --good NAME (good=['NAME']){but}"
        )


def _loose(split: Split, found: Found, beside: Mapping[str, str] | None) -> list[Row]:
    """Make rows of images that lie in a split without a class: good ones for training, unknown ones for the test."""
    own = Folder(split.folder.path, split.folder.files)
    own.folders = {name: below for name, below in split.folder.folders.items() if key(name) in _TRANSPARENT}
    files = sort_images(own, beside)
    images = [split.folder.at(name) for name in files.images]
    if not images:
        return []
    if split.role == "test":
        return [Row(path, "test") for path in images]
    if split.classes:
        raise DataError(
            f"{split.folder.path} holds {os.path.basename(images[0])} beside its folders: move it to the folder it "
            "belongs to"
        )
    if files.masks:
        raise DataError(
            f"{split.folder.path} holds images and masks, so not all of its images are good: move the good ones to "
            f"{split.folder.at('good')}"
        )
    return [Row(path, split.role, 0) for path in images]


def class_rows(
    one: Class,
    role: Role,
    mask_folders: Iterable[Folder],
    found: Found,
    beside: Mapping[str, str] | None = None,
) -> list[Row]:
    """Make the rows of one folder of good images or of one type of defect.

    Args:
        one: the folder.
        role: the role of its images.
        mask_folders: folders of masks of its images.
        found: notes of masks that cannot be given to an image are added here.
        beside: names of folders that hold neither images nor masks, and what they hold.

    Raises:
        DataError: a folder of good images inside one of defective ones, or a good image for training whose mask marks
            a defect.
    """
    files = sort_images(one.folder, beside)
    found.passed.update({one.folder.at(name): why for name, why in files.beside.items()})
    if not one.good:
        nested = [name for name in files.images if any(Ask().is_good(part) for part in name.split(os.sep)[:-1])]
        if nested:
            raise DataError(
                f"{one.folder.path} counts as a defect type but holds good images: {one.folder.at(nested[0])}; move "
                "them out of it"
            )
    masks = [(name, one.folder.at(name)) for name in files.masks]
    for folder in mask_folders:
        masks += [(name, folder.at(name)) for name in folder.all_files() if is_image(name)]
    pairs, doubtful = pair(files.images, masks)
    found.unused.update(doubtful)
    for image, paths in pairs.items() if one.good and role != "test" else ():
        if marks_something(paths):
            raise DataError(
                f"{one.folder.at(image)} lies among the good images, but its mask {paths[0]} marks a defect: correct "
                "one of them"
            )
    label, defect = (0, None) if one.good else (1, one.name)
    return [Row(one.folder.at(name), role, label, defect, one_or_all(pairs.get(name, ()))) for name in files.images]


def _mask_folders(root: Folder, split: Split, name: str) -> list[Folder]:
    """List the folders that hold masks of a class, outside of the class's own folder.

    A folder of masks at the root is that of the test, unless it has folders of the splits.
    """
    places = split.folder.find_all(*MASK_FOLDERS)
    for folder in root.find_all(*MASK_FOLDERS):
        places += folder.find_all(split.name)
        places += [folder] if split.role == "test" else []
    return [below for folder in places for below in folder.find_all(name)]


def _with_flat_masks(root: Folder, parts: list[Split], rows: list[Row], found: Found) -> list[Row]:
    """Give masks that lie in no folder of a class to the defective images that have none yet, then to good ones."""
    for split in parts:
        if split.role != "test":
            continue
        places = [*split.folder.find_all(*MASK_FOLDERS), *root.find_all(*MASK_FOLDERS)]
        places += [below for place in root.find_all(*MASK_FOLDERS) for below in place.find_all(split.name)]
        masks = [(name, place.at(name)) for place in places for name in place.images]
        for label in (1, 0, None):
            below = {
                row.path: i
                for i, row in enumerate(rows)
                if row.role == "test" and row.label == label and row.mask is None
            }
            if masks and below:
                rows, masks = _paired_flat(rows, below, masks, found)
    return rows


def _paired_flat(
    rows: list[Row], below: Mapping[str, int], masks: list[tuple[str, str]], found: Found
) -> tuple[list[Row], list[tuple[str, str]]]:
    # a flat mask names only the file, so images of one name in several folders are told apart by nothing
    stems: dict[str, list[str]] = {}
    for path in below:
        stems.setdefault(os.path.basename(path), []).append(path)
    alone = {name: paths[0] for name, paths in stems.items() if len(paths) == 1}
    several, _ = pair([name for name in stems if name not in alone], masks)
    taken = {mask for claimed in several.values() for mask in claimed}
    found.leave(taken, "masks that may belong to images of one name in several folders: put them in folders so named")
    pairs, doubtful = pair(alone, [mask for mask in masks if mask[1] not in taken])
    found.unused.update(doubtful)
    taken.update(doubtful)
    for name, paths in pairs.items():
        i = below[alone[name]]
        rows[i] = replace(rows[i], mask=one_or_all(paths))
        taken.update(paths)
    return rows, [mask for mask in masks if mask[1] not in taken]


def one_or_all(files: Iterable[str]) -> str | tuple[str, ...] | None:
    """Return what a row has as its mask: nothing, one file, or several whose union it is."""
    names = tuple(files)
    return names if len(names) > 1 else names[0] if names else None
