"""Data sets, rows, paths, arrays, tensors, PIL images and open files all become rows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from pickglass.data.files import check_exist
from pickglass.data.images.decoder import IMAGE_SUFFIXES, Pixels
from pickglass.data.tables.account import Account
from pickglass.data.tables.joining import join_datasets, join_tables
from pickglass.data.tables.layouts import Datasets, find_datasets, load_dataset, load_datasets
from pickglass.data.tables.layouts.pairing import in_mask_folder, sort_images
from pickglass.data.tables.layouts.tree import some, walk
from pickglass.data.tables.memory import Channels, check_channels, image_and_label, images_in, parts_of
from pickglass.data.tables.roi import with_pixel_mm, with_roi
from pickglass.data.tables.rows import Dataset, Role, Row, Table
from pickglass.errors import DataError, ImageError, InputError, shortened

__all__ = ["DataLike", "DataSource", "as_rows", "as_table", "tables_at"]

DataLike: TypeAlias = (
    "Dataset | Table | Row | str | os.PathLike[str] | np.ndarray[Any, Any] | Image.Image | bytes | Iterable[Any]"
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
        good: names of folders, or labels of a table, that mean good, beside those that are known.
        more: further folders or tables that are read likewise, each in its own layout, and make one data set with
            ``path``; see :func:`pickglass.data.tables.joining.join_datasets`.

    >>> DataSource.of("datasets/bottle")
    DataSource(path='datasets/bottle', layout=None, group_by=None, roi=None, pixel_mm=None, good=(), more=())
    """

    path: str | os.PathLike[str]
    layout: str | None = None
    group_by: str | None = None
    roi: str | os.PathLike[str] | None = None
    pixel_mm: float | None = None
    good: tuple[str, ...] = ()
    more: tuple[str | os.PathLike[str], ...] = ()

    @classmethod
    def of(cls, data: DataSource | str | os.PathLike[str]) -> DataSource:
        """Return the source itself, or a source with this path."""
        return data if isinstance(data, DataSource) else cls(data)

    def absolute(self) -> DataSource:
        """Return the source with absolute paths, as a process that works in another folder needs them."""
        roi = self.roi if self.roi is None or self.roi == "auto" else os.path.abspath(self.roi)
        more = tuple(map(os.path.abspath, self.more))
        return replace(self, path=os.path.abspath(self.path), roi=roi, more=more)

    def load(self, *, training: bool = True) -> Dataset:
        """Read the table of the one data set, and warn in a line of files that look like images and are not used.

        Args:
            training: whether a good image for training has to be there.

        Raises:
            DataError, UnknownName, MissingExtra: as in :func:`pickglass.load_dataset`.
            InputError: two of several folders hold the same image.
        """
        paths = (self.path, *self.more)
        sets = [load_dataset(path, self.layout, self.group_by, self.good, training=training) for path in paths]
        _warn_of_unused({os.fspath(path): found.account for path, found in zip(paths, sets, strict=True)})
        return join_datasets(sets) if self.more else sets[0]

    def load_all(self, *, warn: bool = True) -> Datasets:
        """Read the tables of all data sets of a root; see :func:`pickglass.load_datasets` for the errors.

        Args:
            warn: warn, in a line for each data set, of files that look like images and are not used.

        Raises:
            InputError: there are several roots.
        """
        if self.more:
            raise InputError(f"{1 + len(self.more)} folders, from {str(self.path)!r} on: expected a single one here")
        sets = load_datasets(self.path, self.layout, self.group_by, self.good)
        if warn:
            roots = {dataset.root: dataset.account for dataset in sets.values()}
            _warn_of_unused({os.fspath(self.path): sets.beside, **roots})
        return sets

    def placed(self, table: Table) -> Table:
        """Return the rows with the region of interest and the size of a pixel that all images have.

        Raises:
            InputError, DataError: as :func:`pickglass.data.with_roi`.
        """
        return with_pixel_mm(with_roi(table, self.roi), self.pixel_mm)


def _warn_of_unused(accounts: Mapping[str, Account]) -> None:
    for root, account in accounts.items():
        warning = account.warning(root)
        if warning is not None:
            warnings.warn(warning, UserWarning, stacklevel=3)


def as_table(data: DataLike, role: Role = "test", channels: Channels = "rgb") -> Table:
    """Make rows from whatever the user has.

    Args:
        data: a Dataset, Table or Row (taken as they are); the path of an image or of a folder, which is searched with
            its sub-folders, but for masks and their folders; an array: (H, W) grey, (H, W, C) with C 1, 3 or 4,
            any other (N, H, W) a stack of grey images, (N, H, W, C); a PyTorch tensor: the same, but (C, H, W) and
            (N, C, H, W) wherever the axis C has 1, 3 or 4, as torchvision gives it; a PIL image; the bytes of an image
            file; an open binary file, which is read to its end; or an iterable of these, e.g. a generator or a
            DataLoader. Of pairs (image, label) the label is left aside.
        role: the role of the rows that are made here. All but ``test`` rows count as good, those as unknown.
        channels: order of the colours in arrays and tensors: ``"rgb"``, or ``"bgr"`` as OpenCV gives them. Files, bytes
            and PIL images know theirs.

    Returns:
        One row an image. Images in memory are named ``array:0``, ``array:1`` ... in their order. A file that does not
        exist, and whatever else cannot be read, becomes a row too, so that reading it is reported and loses nothing
        else. PIL images and bytes are decoded when they are read.

    Raises:
        DataError: a folder without images, or for another role than ``test`` a data set that holds test images.
        InputError: something that is none of these; an array with its channels first; or, for another role than
            ``test``, images with more than one label.

    >>> [row.path for row in as_table(np.zeros((2, 8, 8, 3), np.uint8))]
    ['array:0', 'array:1']
    """
    return Table(list(as_rows(data, role, channels)))


def tables_at(paths: Sequence[str | os.PathLike[str]]) -> Table:
    """Make rows to judge of the images at several paths, files or folders, in their order.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
        InputError: no path is given, or two of them lead to the same image.
    """
    check_exist(paths)
    table = join_tables([(os.fspath(path), as_table(path)) for path in paths])
    if not table:
        raise InputError("no image was named: expected files or folders of images")
    return table


def as_rows(data: DataLike, role: Role = "test", channels: Channels = "rgb") -> Iterator[Row]:
    """Make rows as :func:`as_table` does, one after the other: of a generator, no more is taken than is asked for."""
    check_channels(channels)
    label = None if role == "test" else 0
    in_memory = 0
    labels: set[float] = set()
    for item in _items(data, role, channels, labels):
        if len(labels) > 1 and role != "test":
            raise InputError(
                f"the images come with the labels {shortened(sorted(labels))}, and which of them means good is not "
                "known: pass the good images alone"
            )
        if isinstance(item, Row):
            yield item
        elif isinstance(item, Path):
            yield Row(str(item), role, label)
        else:
            yield Row(f"array:{in_memory}", role, label, pixels=item)
            in_memory += 1


def _items(
    data: Any, role: Role, channels: Channels, labels: set[float], alone: bool = True
) -> Iterator[Row | Path | Pixels]:
    data, found = image_and_label(data)
    labels.update(found)
    if isinstance(data, Dataset):
        yield from data.table
    elif isinstance(data, Row):
        yield data
    elif isinstance(data, str) and not data:  # it would be the current folder
        yield ImageError("''", "an empty path, expected an image file or a folder")
    elif isinstance(data, (str, os.PathLike)):
        yield from _images_at(Path(data), role)
    elif (held := images_in(data, channels, alone)) is not None:
        yield from held
    else:
        for part in parts_of(data):
            yield from _items(part, role, channels, labels, alone=False)


def _images_at(path: Path, role: Role) -> list[Path]:
    if not os.path.isdir(path):  # Path.is_dir raises where a name is too long
        return [path]
    try:
        return _images_in(path, role)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}): check its permissions") from error


def _images_in(path: Path, role: Role) -> list[Path]:
    root = walk(path)
    # a data set's root would teach its defects as good
    if role != "test" and any(len(dataset.test) for dataset in find_datasets(root).values()):
        raise DataError(f"{path} is a data set with test images: pass load_dataset({str(path)!r}).train instead")
    files = sort_images(root)
    if not files.images:
        raise DataError(f"{path} holds no image, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    among = [name for name in files.masks if not in_mask_folder(name)]
    if among:
        warnings.warn(
            f"{len(among)} files of {path} are not taken for images, because their names or values are those of masks: "
            f"{some(among)}",
            UserWarning,
            stacklevel=2,
        )
    return sorted(path / name for name in files.images)
