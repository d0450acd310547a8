"""A folder or a table becomes a :class:`Dataset`: which images are good, which are not, where the masks lie.

A reader takes a path and a pattern for groups, and returns the tables of the categories that it found by their names,
or None where the path is not of its kind. A new layout is one short file and one line in :data:`LAYOUTS`. Good
parts lie in folders called ``good``, ``ok`` or ``normal`` in any case; hidden files and files that are no images are
passed over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pickglass.data.files import missing
from pickglass.data.tables.layouts import aitex, folder, kolektor, listing, loco, mvtec, visa
from pickglass.data.tables.layouts.tree import SHOWN, folders
from pickglass.data.tables.rows import Dataset, Table
from pickglass.errors import DataError, UnknownName

__all__ = ["LAYOUTS", "Layout", "load_dataset", "load_datasets"]


class Layout(NamedTuple):
    """A layout says how a kind of data set lies on disk: its tree in one line, and its reader."""

    tree: str
    read: Callable[[Path, str | None], dict[str, Table] | None]


LAYOUTS: dict[str, Layout] = {  # in the order in which they are tried
    "table": Layout("FILE.csv or FILE.parquet with columns path, role, label, defect, mask, group", listing.read),
    "visa": Layout("split_csv/1cls.csv  OBJECT/Data/Images/...", visa.read),
    "loco": Layout(
        "train/good/*.png  validation/good/*.png  test/{good,logical_anomalies,structural_anomalies}/*.png  "
        "ground_truth/TYPE/STEM/*.png  defects_config.json",
        loco.read,
    ),
    "aitex": Layout("NODefect_images/FOLDER/*.png  Defect_images/*.png  Mask_images/*_mask*.png", aitex.read),
    "kolektor": Layout("PART/IMAGE.jpg  PART/IMAGE_label.bmp", kolektor.read),
    "mvtec": Layout("train/good/*.png  test/good/*.png  test/TYPE/*.png  ground_truth/TYPE/STEM_mask.png", mvtec.read),
    "folder": Layout("*.png (all good)  or  good/*.png  TYPE/*.png  masks/TYPE/STEM.png (masks if any)", folder.read),
}


def load_dataset(root: str | os.PathLike[str], layout: str | None = None, group_by: str | None = None) -> Dataset:
    """Read the table of a data set; the images are not opened (``kolektor``: the labels are).

    - ``mvtec``: ``train/good``, ``test/TYPE``, and ``ground_truth/TYPE/STEM_mask.png`` or ``STEM.png``. A defective
      image without a mask is allowed. BTAD, MPDD and the usual conversion of VisA are laid out so.
    - ``loco``: MVTec LOCO; several masks an image, and its validation split has the role ``validate``.
    - ``visa``: one object of VisA as published. ``aitex``: one fabric of AITEX. Both lie in a root with many.
    - ``kolektor``: KolektorSDD; an image is defective where its label marks something, a part's folder is its group.
    - ``table``: a CSV or Parquet file; paths are relative to its folder.
    - ``folder``: only images, all good and all for training. Or ``good`` beside folders of bad ones, whose masks may
      lie in ``ground_truth/TYPE`` or ``masks/TYPE``.

    Where nothing says which good images are for the test (``aitex``, ``kolektor``, ``folder``, a table without roles),
    all bad images are test, and so is a fixed share of the good ones (20 %, by group, seed 0); the rest teaches.

    A ``groups.csv`` in the root, with the columns ``path`` (relative to it) and ``group``, says which images show the
    same part or come from the same roll; other columns are not read.

    Args:
        root: folder of one data set, or the file of a table.
        layout: a name in :data:`LAYOUTS`; recognised if None.
        group_by: regular expression that finds the group in each file name, see :func:`pickglass.data.group_by`; goes
            before groups from anywhere else.

    Raises:
        UnknownName: no such layout.
        DataError: no data set, several of them, no good image for training, a folder that cannot be read,
            ``groups.csv`` names unknown images, or file names without a group.
        MissingExtra: a Parquet file without pyarrow.
    """
    path = Path(root)
    with _unreadable(path):
        sets = _recognised(path, layout, group_by)
        if sets is None:
            several = _below(path, layout, group_by)
            if several:
                raise _several(path, several)
            raise _nothing(path, layout)
        if len(sets) > 1:
            raise _several(path, sets)
        (dataset,) = sets.values()
        if not any(row.role in ("train", "fit") for row in dataset.table):
            found = f"\n{_found(path)}" if path.is_dir() else ""
            raise DataError(f"{path} has no good image for training, {_expected([dataset.layout])}{found}")
        return dataset


def load_datasets(
    root: str | os.PathLike[str], layout: str | None = None, group_by: str | None = None
) -> dict[str, Dataset]:
    """Load all data sets of a root by their names: its categories where it is a data set, else those of its folders.

    Args:
        root: e.g. the folder of MVTec AD, VisA or AITEX, or a folder with one data set.
        layout: as in :func:`load_dataset`; the same for all.
        group_by: likewise.

    Returns:
        At least one. A category without a good image for training is among them; it cannot be fitted.

    Raises:
        UnknownName, MissingExtra: as in :func:`load_dataset`.
        DataError: nothing was found, or one of them is at fault.
    """
    path = Path(root)
    with _unreadable(path):
        sets = _recognised(path, layout, group_by) or _below(path, layout, group_by)
        if not sets:
            raise _nothing(path, layout)
        return sets


def _recognised(path: Path, layout: str | None, group_by: str | None) -> dict[str, Dataset] | None:
    if layout is not None and layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    for name in LAYOUTS if layout is None else [layout]:
        tables = LAYOUTS[name].read(path, group_by) if path.exists() else None
        if tables is not None:
            return {key: Dataset(key, str(path), name, table) for key, table in tables.items()}
    return None


def _below(path: Path, layout: str | None, group_by: str | None) -> dict[str, Dataset]:
    """Find the data sets in a root's folders; none where these hold nothing but loose images, e.g. types of defects."""
    below: dict[str, Dataset] = {}
    for place in folders(path):
        sets = _recognised(place, layout, group_by) or {}
        below.update(
            {place.name if len(sets) == 1 else f"{place.name}/{key}": dataset for key, dataset in sets.items()}
        )
    return below if any(d.layout != "folder" or len(d.test) for d in below.values()) else {}


def _several(path: Path, found: Iterable[str]) -> DataError:
    names = list(found)
    return DataError(
        f"{path} holds {len(names)} data sets, expected one: name the folder of one of them, or take all of them with "
        f"load_datasets({str(path)!r}), e.g. [{names[0]!r}]. Found: {', '.join(names)}"
    )


def _nothing(path: Path, layout: str | None) -> DataError:
    expected = _expected(LAYOUTS if layout is None else [layout])
    if not path.exists():
        return DataError(f"{path}: {missing(path)}")
    if not path.is_dir():
        return DataError(f"{path} is a file, {expected}")
    return DataError(f"{path} is not a data set, {expected}\n{_found(path)}")


def _expected(names: Iterable[str]) -> str:
    return "expected" + "".join(f"\n  {name + ':':9} {LAYOUTS[name].tree}" for name in names)


def _found(root: Path) -> str:
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in sorted(root.iterdir())]
    if not names:
        return "found an empty folder"
    return f"found {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Turn the failure to read a folder or table into a DataError with its path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}): check its permissions") from error
