"""Data sets, rows, paths, arrays, tensors, PIL images and open files all become rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pickglass.data.images.decoder import IMAGE_SUFFIXES, Array, read_image
from pickglass.data.tables.layouts import LAYOUTS
from pickglass.data.tables.layouts.tree import MASK_FOLDERS, images
from pickglass.data.tables.rows import Dataset, Role, Row, Table
from pickglass.errors import DataError, InputError

__all__ = ["DataLike", "as_numpy", "as_table"]

DataLike: TypeAlias = (
    "Dataset | Table | Row | str | os.PathLike[str] | np.ndarray[Any, Any] | Image.Image | Iterable[Any]"
)


def as_table(data: DataLike, role: Role = "test") -> Table:
    """Make rows from whatever the user has.

    Args:
        data: a Dataset, Table or Row (taken as they are); the path of an image or of a folder, which is searched with
            its sub-folders, but for ``ground_truth`` and ``masks``; an array: (H, W) grey, (H, W, C) with C 1, 3 or 4,
            any other (N, H, W) a stack of grey images, (N, H, W, C); a PyTorch tensor of such a shape; a PIL image; an
            open binary file; or an iterable of these.
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


def as_numpy(values: Any) -> np.ndarray[Any, Any]:
    """Make a numpy array of an array, a list, or a PyTorch tensor on any device; torch is not imported.

    >>> as_numpy([1, 2]).tolist()
    [1, 2]
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.dtype.itemsize == 2 and values.dtype.is_floating_point:  # numpy has no bfloat16
            values = values.float()
    return np.asarray(values)


def _items(data: Any, role: Role) -> list[Row | Path | Array]:
    if isinstance(data, Dataset):
        return list(data.table)
    if isinstance(data, Row):
        return [data]
    if isinstance(data, (str, os.PathLike)):
        return list(_images_at(Path(data), role))
    if isinstance(data, Image.Image) or hasattr(data, "read"):
        return [read_image(data)]
    if hasattr(data, "detach"):
        data = as_numpy(data)
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
    try:
        return _images_in(path, role)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}): check its permissions") from error


def _images_in(path: Path, role: Role) -> list[Path]:
    if role != "test":  # a data set's root would teach its defects as good
        tables = [table for layout in LAYOUTS.values() for table in (layout.read(path, None) or {}).values()]
        if any(len(table.role("test")) for table in tables):
            raise DataError(f"{path} is a data set with test images: pass load_dataset({str(path)!r}).train instead")
    found = [image for image in images(path) if not set(image.relative_to(path).parts) & set(MASK_FOLDERS)]
    if not found:
        raise DataError(f"{path} holds no image, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found
