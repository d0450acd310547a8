"""Data sets, rows, paths, arrays, tensors, PIL images and open files all become rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pickglass.data.images.decoder import IMAGE_SUFFIXES, Array, read_image
from pickglass.data.tables.layouts import LAYOUTS, load_dataset, load_datasets
from pickglass.data.tables.layouts.tree import MASK_FOLDERS, images
from pickglass.data.tables.roi import with_pixel_mm, with_roi
from pickglass.data.tables.rows import Dataset, Role, Row, Table
from pickglass.errors import DataError, InputError

__all__ = ["DataLike", "DataSource", "as_numpy", "as_table"]

DataLike: TypeAlias = (
    "Dataset | Table | Row | str | os.PathLike[str] | np.ndarray[Any, Any] | Image.Image | Iterable[Any]"
)


@dataclass(frozen=True)
class DataSource:
    """A folder or table of images, how it is read, and what is known of all its images.

    Attributes:
        path: folder of a data set or of several, or the file of a table.
        layout: a name in :data:`pickglass.data.LAYOUTS`; None: recognised.
        group_by: regular expression that finds the part or roll in each file name, see
            :func:`pickglass.data.group_by`; images of one group stay together in every split.
        roi: region of interest, a mask for all images or a folder with a mask for each, see
            :func:`pickglass.data.with_roi`; None: all of each image.
        pixel_mm: side of a pixel on the part in millimetres; None: unknown.

    >>> DataSource.of("datasets/bottle")
    DataSource(path='datasets/bottle', layout=None, group_by=None, roi=None, pixel_mm=None)
    """

    path: str | os.PathLike[str]
    layout: str | None = None
    group_by: str | None = None
    roi: str | os.PathLike[str] | None = None
    pixel_mm: float | None = None

    @classmethod
    def of(cls, data: DataSource | str | os.PathLike[str]) -> DataSource:
        """Return the source itself, or a source with this path."""
        return data if isinstance(data, DataSource) else cls(data)

    def load(self) -> Dataset:
        """Read the table of the one data set; see :func:`pickglass.load_dataset` for the errors."""
        return load_dataset(self.path, self.layout, self.group_by)

    def load_all(self) -> dict[str, Dataset]:
        """Read the tables of all data sets of a root; see :func:`pickglass.load_datasets` for the errors."""
        return load_datasets(self.path, self.layout, self.group_by)

    def placed(self, table: Table) -> Table:
        """Return the rows with the region of interest and the size of a pixel that all images have.

        Raises:
            InputError, DataError: as :func:`pickglass.data.with_roi`.
        """
        return with_pixel_mm(with_roi(table, self.roi), self.pixel_mm)


def as_table(data: DataLike, role: Role = "test") -> Table:
    """Make rows from whatever the user has.

    Args:
        data: a Dataset, Table or Row (taken as they are); the path of an image or of a folder, which is searched with
            its sub-folders, but for ``ground_truth`` and ``masks``; an array: (H, W) grey, (H, W, C) with C 1, 3 or 4,
            any other (N, H, W) a stack of grey images, (N, H, W, C); a PyTorch tensor of such a shape; a PIL image; an
            open binary file; or an iterable of these.
        role: the role of the rows that are made here. All but ``test`` rows count as good, those as unknown.

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
    files = [image for image in images(path) if not set(image.relative_to(path).parts) & set(MASK_FOLDERS)]
    if not files:
        raise DataError(f"{path} holds no image, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files
