"""Annotation files decide what their images are: beside the images, in a folder of annotations, or in one list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pickglass.data.annotations import (
    GOOD_NAMES,
    Annotation,
    find_collections,
    pair_names,
    read_collection,
    read_sidecar,
)
from pickglass.data.annotations.annotation import plain_label
from pickglass.data.annotations.yolo import CLASS_FILES
from pickglass.data.images.decoder import read_header
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import IMAGE_FOLDERS, MASK_FOLDERS
from pickglass.data.tables.layouts.tree import Folder, key, some
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import DataError, Failure, ImageError

__all__ = ["Annotations", "annotate", "annotated", "find_annotations", "read_annotations"]

_SIDECARS = (".json", ".xml", ".txt")
_CLASSES = frozenset({*CLASS_FILES, "notes.json"})
_SILENT = frozenset(map(key, (*IMAGE_FOLDERS, *MASK_FOLDERS, "json", "xml", "txt", "jpegimages")))
_STATUS: dict[str, int | None] = {"good": 0, "defective": 1, "unknown": None}
_NAMED = 5  # failures that a message names


@dataclass(frozen=True)
class Annotations:
    """These annotation files belong to the images of a folder.

    Attributes:
        sidecars: image -> the file that annotates it alone.
        collections: files that annotate many images.
        others: files that only name the classes.
    """

    sidecars: Mapping[str, str]
    collections: tuple[str, ...]
    others: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.sidecars or self.collections)


def find_annotations(root: Folder, images: Iterable[str], claimed: Iterable[str] = ()) -> Annotations:
    """Find the annotation files of images; none of them is read but the ends of those that may be lists.

    A file of the image's stem beside it is its sidecar, or one in a folder such as ``labels`` in place of ``images``,
    or one in such a folder whose stem no other image has.

    Args:
        root: the folder that holds images and annotations.
        images: paths of the images, below ``root``.
        claimed: files that are known to be something else.

    Raises:
        DataError: an image has two sidecars, or a file cannot be opened.
    """
    known = set(claimed)
    files = [
        os.path.join(below, name)
        for below, folder in root.walk()
        for name in folder.files
        if name.lower().endswith(_SIDECARS) and folder.at(name) not in known
    ]
    others = tuple(folder.at(name) for _, folder in root.walk() for name in folder.files if key(name) in _CLASSES)
    files = [name for name in files if root.at(name) not in set(others)]
    if not files:
        return Annotations({}, (), others)
    by_place: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for image in images:
        place = _place(os.path.relpath(image, root.path))
        by_place.setdefault(place, []).append(image)
        by_stem.setdefault(place.rpartition("/")[2], []).append(image)
    sidecars: dict[str, list[str]] = {}
    rest: list[str] = []
    for name in files:
        place, path = _place(name), root.at(name)
        meant = by_place.get(place, [])
        if not meant and any(key(part) in _SILENT for part in name.split(os.sep)[:-1]):
            alone = by_stem.get(place.rpartition("/")[2], [])
            meant = alone if len(alone) == 1 else []
        for image in meant:
            sidecars.setdefault(image, []).append(path)
        if not meant:
            rest.append(path)
    for image, paths in sidecars.items():
        if len(paths) > 1:
            raise DataError(
                f"{image} has {len(paths)} annotation files, {some([os.path.basename(path) for path in paths])}: keep "
                "one of them"
            )
    collections = tuple(find_collections([path for path in rest if not path.lower().endswith(".txt")]))
    return Annotations({image: paths[0] for image, paths in sidecars.items()}, collections, others)


def _place(name: str) -> str:
    """Return a name without its suffix and without folders that say nothing, to compare images and annotations."""
    *above, last = os.path.splitext(key(name))[0].split(os.sep)
    return "/".join([part for part in above if part not in _SILENT] + [last])


def read_annotations(files: Annotations, images: Iterable[str], ask: Ask) -> dict[str, Annotation]:
    """Read what annotation files say of images; images that no file names are left out.

    Raises:
        DataError: annotations that cannot be read, or two that name one image; all of them are listed.
    """
    good = {*GOOD_NAMES, *map(plain_label, ask.good)}
    found: dict[str, Annotation] = {}
    failures: list[Failure] = []
    listed = list(images)
    for path in files.collections:
        annotations = read_collection(path, good)
        for image, name in pair_names(annotations, listed).items():
            if image in found:
                raise DataError(f"{image} is named in {path} and in {found[image].source}: keep one of them")
            found[image] = annotations[name]
    for image, path in files.sidecars.items():
        try:
            size = None
            if path.lower().endswith(".txt"):  # shares of the image's size
                header = read_header(image)
                size = (header.height, header.width)
        except ImageError:
            continue  # the image is named where it is read
        try:
            one = read_sidecar(path, size, good)
        except ImageError as broken:
            failures.append(Failure(broken.path, broken.reason))
            continue
        if image in found:
            raise DataError(f"{image} is annotated in {path} and in {found[image].source}: keep one of them")
        found[image] = one
    if failures:
        error = DataError(
            f"annotations cannot be read, {len(failures)} of {len(files.sidecars)}: correct or remove them:",
            failures[:_NAMED],
        )
        error.failures = tuple(failures)
        raise error
    return found


def annotate(root: Folder, found: Found, ask: Ask) -> None:
    """Let annotation files that no reader has claimed decide what the rows are; what contradicts them is an error.

    Raises:
        DataError: annotations cannot be read, or call an image defective that lies among the good ones or the reverse.
    """
    claimed = {*found.used, *found.unused, *found.passed}
    images = [row.path for table in found.tables.values() for row in table if row.pixels is None]
    files = find_annotations(root, images, claimed)
    found.passed.update(dict.fromkeys(files.others, "names of classes"))
    if not files:
        return
    annotations = read_annotations(files, images, ask)
    found.used.update(dict.fromkeys((*files.sidecars.values(), *files.collections), "files of annotations"))
    wrong = []
    for name, table in found.tables.items():
        rows = []
        for row in table:
            said = annotations.get(row.path)
            label = None if said is None else _STATUS[said.status]
            if said is None or label is None:
                rows.append(row)
            elif row.label is not None and row.label != label:
                wrong.append(
                    Failure(
                        row.path,
                        f"lies among the {_words(row.label)} images, but {said.source} says that it is {_words(label)}",
                    )
                )
            else:
                rows.append(annotated(row, said))
        found.tables[name] = Table(rows)
    if wrong:
        error = DataError(
            f"images contradict their annotations, {len(wrong)} of {len(images)}: move or correct them:", wrong[:_NAMED]
        )
        error.failures = tuple(wrong)
        raise error


def annotated(row: Row, said: Annotation) -> Row:
    """Return a row with what an annotation says of its image; a mask that it has already stays."""
    if said.status != "defective":
        return replace(row, label=0) if said.status == "good" else row
    return replace(row, role="test", label=1, defect=row.defect or ", ".join(said.types) or "defect", annotation=said)


def _words(label: int | None) -> str:
    return "good" if label == 0 else "defective"
