"""A folder or a table becomes a :class:`Dataset`: which images are good, which are not, where the masks lie.

``tree`` walks a folder once. A reader takes what the walk found, and what the user asked; it returns the tables of the
data sets in it by their names, or None where the folder is not of its kind. A new layout is one short file and one
line in :data:`LAYOUTS`. ``names`` says what names mean, ``pairing`` tells images from masks, ``classes`` reads folders
of good and defective parts, ``accounting`` says of every file what became of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pickglass.data.files import missing
from pickglass.data.tables.account import Account
from pickglass.data.tables.layouts import (
    ad2,
    aitex,
    annotated,
    dagm,
    dagm_ellipses,
    deeppcb,
    folder,
    kaputt,
    kolektor,
    kolektor2,
    loco,
    mvtec,
    mvtec3d,
    realiad,
    severstal,
    table,
    vad,
    visa,
)
from pickglass.data.tables.layouts.accounting import account, unclaimed
from pickglass.data.tables.layouts.found import Ask, Found
from pickglass.data.tables.layouts.names import GOOD, IMAGE_FOLDERS, MASK_FOLDERS, means_bad, means_good, split_of
from pickglass.data.tables.layouts.sidecars import annotate
from pickglass.data.tables.layouts.tree import Folder, key, some, walk
from pickglass.data.tables.layouts.unknown import draw_tree, nearest
from pickglass.data.tables.rows import Dataset
from pickglass.errors import DataError, UnknownName

__all__ = ["LAYOUTS", "Datasets", "Layout", "find_datasets", "load_dataset", "load_datasets"]


class Layout(NamedTuple):
    """A layout says how a kind of data set lies on disk: its tree in one line, its reader, and who uses it."""

    tree: str
    read: Callable[[Folder, Ask], Found | None]
    sets: str


LAYOUTS: dict[str, Layout] = {  # in the order in which they are tried
    "table": Layout(
        "FILE.csv or FILE.parquet with columns path, label, defect, mask, role, group", table.read, "your own tables"
    ),
    "visa": Layout("split_csv/1cls.csv  OBJECT/Data/Images/...  OBJECT/Data/Masks/...", visa.read, "VisA as published"),
    "realiad": Layout(
        "OK/S0001/*.jpg  NG/TYPE/S0001/*.jpg, *.png or *_mask.png  CATEGORY.json beside", realiad.read, "Real-IAD"
    ),
    "kaputt": Layout("query-{train,validation,test}.parquet  query-image/...  query-mask/...", kaputt.read, "Kaputt"),
    "severstal": Layout("train.csv  train_images/*.jpg  test_images/*.jpg", severstal.read, "Severstal"),
    "deeppcb": Layout("groupN/N/*_temp.jpg, *_test.jpg  groupN/N_not/*.txt", deeppcb.read, "DeepPCB"),
    "aitex": Layout("NODefect_images/FOLDER/*.png  Defect_images/*.png  Mask_images/*_mask*.png", aitex.read, "AITEX"),
    "mvtec_ad_2": Layout(
        "train/good/*.png  validation/good/*.png  test_public/{good,bad}/*.png  "
        "test_public/ground_truth/bad/STEM_mask.png  test_private/*.png  test_private_mixed/*.png",
        ad2.read,
        "MVTec AD 2",
    ),
    "mvtec_3d": Layout(
        "train/good/rgb/*.png  validation/good/rgb/*.png  test/TYPE/rgb/*.png  test/TYPE/gt/*.png  .../xyz/*.tiff",
        mvtec3d.read,
        "MVTec 3D-AD, its images",
    ),
    "loco": Layout(
        "train/good/*.png  validation/good/*.png  test/{good,logical_anomalies,structural_anomalies}/*.png  "
        "ground_truth/TYPE/STEM/*.png  defects_config.json",
        loco.read,
        "MVTec LOCO AD",
    ),
    "vad": Layout("train/{good,bad}/*.png  test/{good,bad}/*.png", vad.read, "VAD"),
    "dagm": Layout(
        "Train/*.PNG  Train/Label/*_label.PNG, Labels.txt  Test/*.PNG  Test/Label/...", dagm.read, "DAGM 2007"
    ),
    "dagm_ellipses": Layout(
        "Class1/*.png  Class1_def/*.png, labels.txt", dagm_ellipses.read, "DAGM 2007 in its older form"
    ),
    "kolektor2": Layout(
        "train/N.png, N_GT.png  test/N.png, N_GT.png  or  images/*.png  masks/*.png",
        kolektor2.read,
        "KolektorSDD2, sets for segmentation",
    ),
    "mvtec": Layout(
        "train/good/*.png  validation/good/*.png (if any)  test/good/*.png  test/TYPE/*.png  "
        "ground_truth/TYPE/STEM_mask.png or STEM/*.png (if any)",
        mvtec.read,
        "MVTec AD, BTAD, MPDD, 3CAD, AutoVI, BMAD, VisA after its usual conversion",
    ),
    "annotated": Layout(
        "*.jpg  with *.json, *.xml or labels/*.txt of the same stem, or annotations/*.json of many",
        annotated.read,
        "labelme, COCO, YOLO, Pascal VOC, CVAT, Datumaro, VIA; NEU-DET",
    ),
    "kolektor": Layout("PART/IMAGE.jpg  PART/IMAGE_label.bmp", kolektor.read, "KolektorSDD"),
    "folder": Layout(
        "*.png (all good)  or  good/*.png  TYPE/*.png  masks/TYPE/STEM.png (if any)", folder.read, "your own folders"
    ),
}


class Datasets(dict[str, Dataset]):
    """Data sets by their names; ``beside`` is the account of the files of their folder that belong to none of them."""

    beside: Account = Account()


def load_dataset(
    root: str | os.PathLike[str],
    layout: str | None = None,
    group_by: str | None = None,
    good: Sequence[str] = (),
    *,
    training: bool = True,
) -> Dataset:
    """Read the table of a data set; the images are not opened, unless only their masks say which are good.

    - ``mvtec``: ``train/good``, ``test/TYPE``, and ``ground_truth/TYPE/STEM_mask.png``, ``STEM.png`` or ``STEM/*.png``.
      A defective image without a mask is allowed. Many published sets are laid out so.
    - ``loco``, ``mvtec_ad_2``, ``mvtec_3d``: its siblings; their validation split has the role ``validate``.
    - ``visa``: one object of VisA as published. ``aitex``: one fabric of AITEX. Both lie in a root with many.
    - ``realiad``: one category of Real-IAD; the views of a part are its group.
    - ``kolektor``, ``kolektor2``, ``dagm``: an image is defective where its mask marks something.
    - ``table``: a CSV or Parquet file; paths are relative to its folder.
    - ``folder``: only images, all good and all for training. Or ``good`` beside folders of bad ones, whose masks may
      lie in ``ground_truth/TYPE`` or ``masks/TYPE``.

    ``pickglass info --layouts`` lists all of them. Masks may be named ``STEM_mask``, ``STEM_gt``, ``mask_STEM`` and so
    on, and their folders ``masks``, ``gt``, ``GroundTruth`` and so on, at the root, in the split or in the class. What
    became of each file of the folder says ``account`` of the data set.

    Where nothing says which good images are for the test (``aitex``, ``kolektor``, ``folder``, a table without roles),
    all bad images are test, and so is a fixed share of the good ones (20 %, by group, seed 0); the rest teaches.

    A ``groups.csv`` in the root, with the columns ``path`` (relative to it) and ``group``, says which images show the
    same part or come from the same roll; other columns are not read.

    Args:
        root: folder of one data set, or the file of a table.
        layout: a name in :data:`LAYOUTS`; recognised if None.
        group_by: regular expression that finds the group in each file name, see :func:`pickglass.data.group_by`; goes
            before groups from anywhere else.
        good: names of folders, or labels of a table, that mean good, beside ``good``, ``ok``, ``normal``, ``pass`` ...
        training: whether a good image for training has to be there.

    Raises:
        UnknownName: no such layout.
        DataError: no data set, several of them, no good image for training, a folder that cannot be read,
            ``groups.csv`` names unknown images, or file names without a group.
        MissingExtra: a Parquet file without pyarrow.
    """
    path = os.fspath(root)
    ask = Ask(group_by, _names(good))
    with _unreadable(path):
        listing = _listing(path)
        sets = _recognised(listing, layout, ask)
        if sets is None:
            several = _below(listing, layout, ask)
            if several:
                raise _one_below(path, several) if len(several) == 1 else _several(path, several)
            raise _nothing(listing, layout, ask)
        if len(sets) > 1:
            raise _several(path, sets)
        (dataset,) = sets.values()
        if training and not any(row.role in ("train", "fit") for row in dataset.table):
            found = f"\nFound:\n{draw_tree(listing)}" if os.path.isdir(path) else ""
            unknown = sum(row.label is None for row in dataset.table)
            hint = (
                f" ({unknown} images have no label, and nothing says that they are good: annotate them as having "
                "nothing, or move them to a folder good)"
            )
            raise DataError(
                f"{path} has no good image for training{hint if unknown else ''}, {_expected([dataset.layout])}{found}"
            )
        return dataset


def load_datasets(
    root: str | os.PathLike[str], layout: str | None = None, group_by: str | None = None, good: Sequence[str] = ()
) -> Datasets:
    """Load all data sets of a root by their names: its categories where it is a data set, else those of its folders.

    Args:
        root: e.g. the folder of MVTec AD, VisA or AITEX, or a folder with one data set.
        layout: as in :func:`load_dataset`; the same for all.
        group_by, good: likewise.

    Returns:
        At least one. A category without a good image for training is among them; it cannot be fitted.

    Raises:
        UnknownName, MissingExtra: as in :func:`load_dataset`.
        DataError: nothing was found, or one of them is at fault.
    """
    path = os.fspath(root)
    ask = Ask(group_by, _names(good))
    with _unreadable(path):
        listing = _listing(path)
        sets = find_datasets(listing, layout, ask)
        if not sets:
            raise _nothing(listing, layout, ask)
        return sets


def find_datasets(root: Folder, layout: str | None = None, ask: Ask | None = None) -> Datasets:
    """Find the data sets of a folder; none where it is in no known layout.

    Raises:
        DataError: one of them is at fault.
    """
    wish = ask or Ask()
    sets = _recognised(root, layout, wish)
    return _below(root, layout, wish) if sets is None else sets


def _names(good: Sequence[str]) -> tuple[str, ...]:
    return (good,) if isinstance(good, str) else tuple(good)


def _listing(path: str) -> Folder:
    """Walk a folder; a file, or what does not exist, is a folder without anything in it."""
    return walk(path) if os.path.isdir(path) else Folder(path)


def _recognised(root: Folder, layout: str | None, ask: Ask) -> Datasets | None:
    if layout is not None and layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    for name in LAYOUTS if layout is None else [layout]:
        found = LAYOUTS[name].read(root, ask) if os.path.exists(root.path) else None
        if found is not None:
            annotate(root, found, ask)
            return Datasets(
                (
                    own,
                    Dataset(own, root.path, name, rows, account(root, found, own), found.private, found.drawn),
                )
                for own, rows in found.tables.items()
            )
    return None


_PARTS = frozenset(map(key, (*MASK_FOLDERS, *IMAGE_FOLDERS)))


def _below(root: Folder, layout: str | None, ask: Ask) -> Datasets:
    """Find the data sets in a root's folders; none where these are parts of one, e.g. splits or types of defects."""
    below = Datasets()
    if any(split_of(name) or means_good(name) or means_bad(name) or key(name) in _PARTS for name in root.folders):
        return below
    sets_of: dict[str, Datasets] = {}
    for name, place in root.folders.items():
        sets = _recognised(place, layout, ask)
        if sets:
            sets_of[name] = sets
            below.update({name if len(sets) == 1 else f"{name}/{own}": dataset for own, dataset in sets.items()})
    if not any(d.layout != "folder" or len(d.test) for d in below.values()):
        return Datasets()
    below.beside = unclaimed(root, sets_of)
    return below


def _one_below(path: str, found: Datasets) -> DataError:
    (dataset,) = found.values()
    return DataError(f"{path} is not a data set itself but holds one, {dataset.root}: name that folder")


def _several(path: str, found: Iterable[str]) -> DataError:
    names = list(found)
    return DataError(
        f"{path} holds {len(names)} data sets, expected one: name the folder of one of them, or take all of them with "
        f"load_datasets({path!r}), e.g. [{names[0]!r}]. Found: {', '.join(names)}"
    )


def _nothing(root: Folder, layout: str | None, ask: Ask) -> DataError:
    path = root.path
    if not os.path.exists(path):
        return DataError(f"{path}: {missing(Path(path))}")
    trees = {name: known.tree for name, known in LAYOUTS.items()}
    if not os.path.isdir(path):
        hint = "; save it as CSV in UTF-8" if path.lower().endswith((".xls", ".xlsx", ".ods")) else ""
        return DataError(f"{path} is a file{hint}, {_expected(['table'])}")
    if not root.folders and not root.files:
        return DataError(f"{path} is an empty folder, {_expected([layout] if layout else ['mvtec', 'folder'])}")
    hint = ""
    named = [name for name, below in root.folders.items() if below.holds_images()]
    if named and not any(ask.is_good(name) or split_of(name) or key(name) in _PARTS for name in named):
        hint = (
            f" None of its folders, {some(named)}, has a name that means good ({', '.join(GOOD)}): name the one that "
            "does with --good NAME (good=['NAME'])."
        )
    tables = [name for name in root.files if name.lower().endswith((".csv", ".tsv", ".parquet"))]
    if tables:
        hint += f" If {some(tables)} lists the images, name the table in place of the folder."
    likely = [layout] if layout else nearest(root, {name: tree for name, tree in trees.items() if name != "table"})
    return DataError(
        f"{path} is not a data set in a known layout.{hint} It holds:\n{draw_tree(root)}\nThe nearest layouts, "
        f"{_expected(likely)}\n'pickglass info --layouts' lists all {len(LAYOUTS)} of them"
    )


def _expected(names: Iterable[str]) -> str:
    return "expected" + "".join(f"\n  {name + ':':9} {LAYOUTS[name].tree}" for name in names)


@contextmanager
def _unreadable(path: str) -> Iterator[None]:
    """Turn the failure to read a folder or table into a DataError with its path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({error.strerror}): check its permissions") from error
