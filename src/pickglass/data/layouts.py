"""From a folder to a :class:`Dataset`: which images are good, which are not, where the masks lie.

A reader takes the root and returns its table, or None where the root is not of its kind. A new layout is one reader
and one line in :data:`LAYOUTS`. Folder names for good parts are ``good``, ``ok`` or ``normal`` in any case; hidden
files and files that are no images are passed over.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from pickglass.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Array,
    Header,
    check_mask_size,
    decode,
    read_header,
    read_image,
)
from pickglass.data.tables import Dataset, Role, Row, Table, split_roles
from pickglass.errors import DataError, Failure, ImageError, InputError, UnknownName

__all__ = ["LAYOUTS", "DataLike", "Layout", "as_table", "check_images", "describe", "load_dataset"]

DataLike: TypeAlias = (
    "Dataset | Table | Row | str | os.PathLike[str] | np.ndarray[Any, Any] | Image.Image | Iterable[Any]"
)

_GOOD = frozenset({"good", "ok", "normal"})
_MASK_FOLDERS = ("ground_truth", "masks")
_HELD_OUT = 0.2  # share of the good images that a plain folder without a test split keeps for the test
_SHOWN = 5  # how many names a message lists


class Layout(NamedTuple):
    """How a kind of data set lies on disk: its tree in one line, and its reader."""

    tree: str
    read: Callable[[Path], Table | None]


def load_dataset(root: str | os.PathLike[str], layout: str | None = None) -> Dataset:
    """Read the table of a data set; the images are not opened.

    - ``mvtec``: ``train/good``, ``test/TYPE``, and ``ground_truth/TYPE/STEM_mask.png`` or ``STEM.png``. A defective
      image without a mask is allowed.
    - ``folder``: only images, all good and all for training. Or ``good`` beside folders of bad ones, whose masks may
      lie in ``ground_truth/TYPE`` or ``masks/TYPE``: all bad images are test, and so is a fixed share of the good
      ones (20 %, by group, seed 0), as nothing else says how good images score; the rest is for training.

    A ``groups.csv`` in the root, with the columns ``path`` (relative to it) and ``group``, says which images show the
    same part or come from the same roll; other columns are not read.

    Args:
        root: folder of one data set.
        layout: a name in :data:`LAYOUTS`; recognised if None.

    Raises:
        UnknownName: no such layout.
        DataError: not a folder, no data set, several of them, no good image for training, or ``groups.csv`` names
            unknown images.
    """
    path = Path(root)
    if layout is not None and layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    if not path.is_dir():
        raise DataError(f"{path} {'is a file' if path.exists() else 'does not exist'}, {_expected(LAYOUTS)}")
    for name in LAYOUTS if layout is None else [layout]:
        table = LAYOUTS[name].read(path)
        if table is not None:
            if not any(row.role != "test" for row in table):
                raise DataError(f"{path} has no good image for training, {_expected([name])}\n{_found(path)}")
            return Dataset(path.resolve().name, str(path), name, table)
    several = [folder.name for folder in _folders(path) if _looks_like_mvtec(folder)]
    if several:
        raise DataError(
            f"{path} holds {len(several)} data sets, expected one: name one of them, e.g. {path / several[0]}. "
            f"Found: {', '.join(several)}"
        )
    raise DataError(f"{path} is not a data set, {_expected(LAYOUTS if layout is None else [layout])}\n{_found(path)}")


def _expected(names: Iterable[str]) -> str:
    return "expected" + "".join(f"\n  {name + ':':8}{LAYOUTS[name].tree}" for name in names)


def _found(root: Path) -> str:
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in sorted(root.iterdir())]
    if not names:
        return "found an empty folder"
    return f"found {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


# -- readers ----------------------------------------------------------------------------------------------------------


def _looks_like_mvtec(root: Path) -> bool:
    return (root / "train").is_dir()


def _read_mvtec(root: Path) -> Table | None:
    if not _looks_like_mvtec(root):
        return None
    bad = [f.name for f in _folders(root / "train") if not _is_good(f) and _images(f)]
    if bad:
        raise DataError(f"{root / 'train'} holds {bad}: only good images can teach; move these folders to test/")
    rows = [row for folder in _folders(root / "train") for row in _class_rows(root, folder, "train")]
    rows += [row for folder in _folders(root / "test") for row in _class_rows(root, folder, "test")]
    return _grouped(root, rows)


def _read_folder(root: Path) -> Table | None:
    folders = [folder for folder in _folders(root) if folder.name not in _MASK_FOLDERS and _images(folder)]
    loose = _images(root, deep=False)
    if not any(_is_good(folder) for folder in folders):
        if not loose or folders:
            return None
        return _grouped(root, [Row(str(path), "train", 0) for path in loose])
    if loose:
        raise DataError(f"{root} holds {loose[0].name} beside its folders: move it to the folder it belongs to")
    rows = [row for f in folders for row in _class_rows(root, f, "train" if _is_good(f) else "test")]
    table = _grouped(root, rows)
    if all(row.label == 0 for row in table):
        return table
    roles: dict[Role, Role] = {"calibrate": "test", "test": "test", "fit": "train"}
    held = split_roles(table, validate=0, calibrate=_HELD_OUT, seed=0)
    return Table([replace(row, role=roles[row.role]) for row in held])


LAYOUTS: dict[str, Layout] = {
    "mvtec": Layout("train/good/*.png  test/good/*.png  test/TYPE/*.png  ground_truth/TYPE/STEM_mask.png", _read_mvtec),
    "folder": Layout("*.png (all good)  or  good/*.png  TYPE/*.png  masks/TYPE/STEM.png (masks if any)", _read_folder),
}


def _class_rows(root: Path, folder: Path, role: Role) -> list[Row]:
    """The rows of one folder of good images or of one defect type."""
    if _is_good(folder):
        return [Row(str(path), role, 0) for path in _images(folder)]
    images = _images(folder)
    nested = [path for path in images if any(_is_good(above) for above in path.relative_to(folder).parents)]
    if nested:
        raise DataError(f"{folder} counts as a defect type but holds good images: {nested[0]}; move them out of it")
    masks: dict[Path, Path] = {}
    for place in _MASK_FOLDERS:
        beside = root / place / folder.name
        masks.update({path.relative_to(beside).with_suffix(""): path for path in _images(beside)})
    rows = []
    for path in images:
        stem = path.relative_to(folder).with_suffix("")
        mask = masks.get(stem.with_name(f"{stem.name}_mask")) or masks.get(stem)
        rows.append(Row(str(path), role, 1, folder.name, None if mask is None else str(mask)))
    return rows


def _is_good(folder: Path) -> bool:
    return folder.name.lower() in _GOOD


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []


def _images(folder: Path, deep: bool = True) -> list[Path]:
    """Image files by extension, sorted; with ``deep`` those of sub-folders too, links to folders not followed."""
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        found += [Path(at, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    return sorted(found)


def _grouped(root: Path, rows: list[Row]) -> Table:
    """The rows with their groups from ``groups.csv``, where there is one."""
    file = root / "groups.csv"
    if not file.is_file():
        return Table(rows)
    groups: dict[str, str] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not {"path", "group"} <= set(reader.fieldnames or ()):
                raise DataError(f"{file} has the columns {reader.fieldnames}, expected path and group")
            for line in reader:
                path = PurePosixPath((line["path"] or "").replace("\\", "/")).as_posix()
                if groups.setdefault(path, line["group"]) != line["group"]:
                    raise DataError(f"{file}: {path} is in two groups, {groups[path]!r} and {line['group']!r}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8: {error}") from error
    names = [Path(row.path).relative_to(root).as_posix() for row in rows]
    unknown = sorted(set(groups) - set(names))
    if unknown:
        raise DataError(
            f"{file} names {len(unknown)} images that are not in the data set, e.g. {', '.join(unknown[:_SHOWN])}: "
            f"expected paths relative to {root}"
        )
    return Table([replace(row, group=groups.get(name) or None) for row, name in zip(rows, names, strict=True)])


# -- whatever the user has --------------------------------------------------------------------------------------------


def as_table(data: DataLike, role: Role = "test") -> Table:
    """Rows from whatever the user has.

    Args:
        data: a Dataset, Table or Row (taken as they are); the path of an image or of a folder, which is searched with
            its sub-folders, but for ``ground_truth`` and ``masks``; an array: (H, W) grey, (H, W, C) with C 1, 3 or 4,
            any other (N, H, W) a stack of grey images, (N, H, W, C); a PIL image; or an iterable of these.
        role: of the rows that are made here. All but ``test`` rows count as good, those as unknown.

    Returns:
        One row an image. Images in memory are named ``array:0``, ``array:1`` ... in their order. A file that does not
        exist or cannot be read becomes a row too, so that reading it is reported and loses nothing else.

    Raises:
        DataError: a folder without images, or for another role than ``test`` a data set that holds test images.
        InputError: something that is none of these.

    >>> [row.path for row in as_table(np.zeros((2, 8, 8, 3), np.uint8))]
    ['array:0', 'array:1']
    """
    label = None if role == "test" else 0
    rows: list[Row] = []
    in_memory = 0
    for item in _items(data, role):
        if isinstance(item, Row):
            rows.append(item)
        elif isinstance(item, Path):
            rows.append(Row(str(item), role, label))
        else:
            rows.append(Row(f"array:{in_memory}", role, label, pixels=item))
            in_memory += 1
    return Table(rows)


def _items(data: Any, role: Role) -> list[Row | Path | Array]:
    if isinstance(data, Dataset):
        return list(data.table)
    if isinstance(data, Row):
        return [data]
    if isinstance(data, (str, os.PathLike)):
        return list(_images_at(Path(data), role))
    if isinstance(data, Image.Image):
        return [read_image(data)]
    if isinstance(data, np.ndarray):
        if data.ndim not in (2, 3, 4):
            raise InputError(f"an array of shape {data.shape}, expected (H, W), (H, W, C), (N, H, W) or (N, H, W, C)")
        one = data.ndim == 2 or (data.ndim == 3 and data.shape[2] in (1, 3, 4))
        return [data] if one else list(data)
    if isinstance(data, Iterable) and not isinstance(data, (bytes, dict)):
        return [item for part in data for item in _items(part, role)]
    raise InputError(f"cannot take images from {data!r}: expected a data set, rows, paths, arrays or PIL images")


def _images_at(path: Path, role: Role) -> list[Path]:
    if not path.is_dir():
        return [path]
    if role != "test":  # a data set's root would teach its defects as good
        tables = [layout.read(path) for layout in LAYOUTS.values()]
        if any(table is not None and len(table.role("test")) for table in tables):
            raise DataError(f"{path} is a data set with test images: pass load_dataset({str(path)!r}).train instead")
    images = [image for image in _images(path) if not set(image.relative_to(path).parts) & set(_MASK_FOLDERS)]
    if not images:
        raise DataError(f"{path} holds no image, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


# -- looking at the images -------------------------------------------------------------------------------------------


def check_images(table: Iterable[Row], max_pixels: int = MAX_PIXELS, workers: int = 2) -> tuple[Failure, ...]:
    """Decode every image and mask once and return all that cannot be used, masks of another size included."""
    failures: list[Failure] = []
    masks: list[Row] = []
    sizes: list[tuple[int, int]] = []
    for item in decode(table, _nothing, workers, max_pixels=max_pixels):
        if item.error is not None:
            failures.append(Failure(item.row.path, item.error))
        elif item.row.mask is not None:
            masks.append(Row(item.row.mask))
            sizes.append(item.size)
    for item, size in zip(decode(masks, _nothing, workers, max_pixels=max_pixels), sizes, strict=True):
        try:
            if item.error is not None:
                raise ImageError(item.row.path, item.error)
            check_mask_size(item.row.path, item.size, size)
        except ImageError as error:
            failures.append(Failure(error.path, error.reason))
    return tuple(failures)


def _nothing(image: object) -> None:
    return None


def describe(dataset: Dataset) -> dict[str, Any]:
    """What is known of a data set without decoding a pixel: a plain dict, ready for JSON.

    Returns:
        ``name``, ``root``, ``layout``, ``images``; ``roles`` and ``types`` (defect type, ``good`` or ``unknown``), each
        name to count; ``masks``; ``groups``; ``sizes``: ``smallest`` and ``largest`` ([height, width], by area) and the
        five ``commonest`` as ``"HxW"`` to count; ``modes``: e.g. ``"8-bit grey"`` to count; ``failed``: headers that
        cannot be read, each a dict of path and error.
    """
    table = dataset.table
    headers: list[Header] = []
    failed: list[Failure] = []
    for row in table:
        try:
            headers.append(_row_header(row))
        except ImageError as error:
            failed.append(Failure(error.path, error.reason))
    sizes = sorted(((h.height, h.width) for h in headers), key=lambda size: size[0] * size[1])
    return {
        "name": dataset.name,
        "root": dataset.root,
        "layout": dataset.layout,
        "images": len(table),
        "roles": dict(Counter(row.role for row in table)),
        "types": dict(Counter(_type(row) for row in table)),
        "masks": sum(row.mask is not None for row in table),
        "groups": len({row.group for row in table if row.group is not None}),
        "sizes": {
            "smallest": list(sizes[0]) if sizes else None,
            "largest": list(sizes[-1]) if sizes else None,
            "commonest": {f"{h}x{w}": n for (h, w), n in Counter(sizes).most_common(_SHOWN)},
        },
        "modes": dict(Counter(f"{h.bits}-bit {'grey' if h.channels == 1 else 'colour'}" for h in headers)),
        "failed": [failure._asdict() for failure in failed],
    }


def _row_header(row: Row) -> Header:
    if row.pixels is None:
        return read_header(row.path)
    image = read_image(row.pixels)
    return Header(image.shape[0], image.shape[1], 8 * image.dtype.itemsize, 1 if image.ndim == 2 else 3)


def _type(row: Row) -> str:
    if row.label is None:
        return "unknown"
    return "good" if row.label == 0 else row.defect or "bad"
