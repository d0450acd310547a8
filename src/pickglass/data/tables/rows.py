"""A data set is a table of rows, and a row is an image: path, role, label, defect, mask, group.

Four roles keep evaluation honest. ``fit`` trains, ``validate`` picks epochs and scales, ``calibrate`` sets
thresholds and is read last, ``test`` feeds nothing. A layout gives ``train`` (not yet divided) and ``test``;
:func:`split_roles` divides ``train``. Rows of one ``group`` (the same part, the same roll) never part.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.data.annotations import Annotation
from pickglass.data.images.decoder import MAX_PIXELS, Array, Pixels, read_image
from pickglass.data.images.masks import read_mask
from pickglass.data.tables.account import Account
from pickglass.errors import DataError, ImageError, InputError

__all__ = [
    "MARGINS",
    "Dataset",
    "Role",
    "Row",
    "Saturation",
    "Table",
    "fingerprint",
    "group_by",
    "image_digest",
    "known_names",
    "short_names",
    "split_roles",
]

Role = Literal["train", "fit", "validate", "calibrate", "test"]

MARGINS = "<margins>"
"""As ``Row.roi``: all but the blank white bands at the left and right end, as AITEX strips have them."""

_WHITE = 0.98  # of the full scale: what JPEG and scanners leave of pure white
_DIGITS = 16  # hexadecimal digits of an image's sha256 by which a model remembers what it was fitted on
_NAMED = 3  # parts of its path by which a model knows an image, at least


class Saturation(NamedTuple):
    """A region counts as found in sPRO once this much of it is (MVTec LOCO, ``defects_config.json``).

    ``value`` is the pixel value that stands for ``defect`` in the masks; ``threshold`` is a share of the region's area
    where ``relative``, else a number of pixels.
    """

    value: int
    defect: str
    threshold: float
    relative: bool


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A row is one image and what is known of it.

    Rows are equal if all but their pixels is equal; a mask or region in memory equals itself only.

    Attributes:
        path: file, or a made-up name such as ``array:3`` when ``pixels`` is given.
        role: ``train`` (not yet divided), ``fit``, ``validate``, ``calibrate`` or ``test``.
        label: 0 good, 1 defective, None unknown.
        defect: name of the defect type, None for good or unknown.
        mask: the ground-truth mask, any value above 0 is defect: a file, a tuple of files whose union it is, an array
            (H, W), or None where there is none.
        group: rows of one group are the same part or roll and stay together; None: a group of its own.
        pixels: the image itself where it did not come from a file: an array as the decoder returns it, a PIL image or
            encoded bytes, which are decoded when they are read, or the ImageError that says why there is none.
        saturation: what each pixel value of the masks means to sPRO, for :func:`pickglass.data.read_regions`.
        roi: the region of interest, any value above 0 is inside: a file, an array (H, W),
            :data:`pickglass.data.MARGINS`, or None: all of the image.
        pixel_mm: side of a pixel on the part in millimetres, None if unknown.
        annotation: where the defects are as shapes, in place of a mask; None where there is none.
    """

    path: str
    role: Role = "test"
    label: int | None = None
    defect: str | None = None
    mask: str | tuple[str, ...] | NDArray[Any] | None = None
    group: str | None = None
    pixels: Pixels | None = field(default=None, repr=False, compare=False)
    saturation: tuple[Saturation, ...] = field(default=(), repr=False)
    roi: str | NDArray[Any] | None = None
    pixel_mm: float | None = None
    annotation: Annotation | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InputError(f"{self.path}: role {self.role!r} is none of {', '.join(get_args(Role))}")
        if self.label not in (0, 1, None):
            raise InputError(f"{self.path}: label {self.label!r} is none of 0 (good), 1 (defective), None (unknown)")
        if self.pixel_mm is not None and not 0 < self.pixel_mm < float("inf"):
            raise InputError(f"{self.path}: pixel_mm {self.pixel_mm!r}: expected millimetres a pixel, e.g. 0.05")

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Row) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        values = (getattr(self, known.name) for known in fields(self) if known.compare)
        return tuple(id(value) if isinstance(value, np.ndarray) else value for value in values)

    @property
    def masks(self) -> tuple[str, ...]:
        """The mask is in these files: none to several, none for a mask in memory."""
        if self.mask is None or isinstance(self.mask, np.ndarray):
            return ()
        return (self.mask,) if isinstance(self.mask, str) else self.mask

    @property
    def has_mask(self) -> bool:
        """It is known which pixels are defect: from a mask or from outlines, not from boxes alone."""
        return self.mask is not None or (self.annotation is not None and self.annotation.has_mask)

    @property
    def boxes(self) -> tuple[tuple[float, ...], ...]:
        """The boxes ``(x, y, width, height)`` around annotated shapes, in pixels; empty without an annotation."""
        return () if self.annotation is None else tuple(tuple(box) for box in self.annotation.boxes)

    @property
    def unit(self) -> str:
        """The image shows a part or roll with this key: its group, or the image itself where it has none."""
        return self.path if self.group is None else f"group:{self.group}"

    @property
    def roi_name(self) -> str | None:
        """Regions of interest are told apart by this name: the file, or the array in this process; None without one."""
        return f"<array {id(self.roi)}>" if isinstance(self.roi, np.ndarray) else self.roi

    def image(self, max_pixels: int = MAX_PIXELS) -> Array:
        """Read the image's pixels, as :func:`~pickglass.data.read_image` returns them.

        Raises:
            ImageError: the file cannot be read, or has more than ``max_pixels`` pixels.
        """
        return read_image(self.path if self.pixels is None else self.pixels, max_pixels)

    def truth(self, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_] | None:
        """Read the ground-truth mask, bool (H, W), True on defects; None where the row has none, or only boxes.

        Args:
            size: (H, W) of the image.
            max_pixels: as in :meth:`image`.

        Raises:
            ImageError: the mask cannot be read, or its size is not that of the image.
        """
        if self.mask is not None:
            return read_mask(self.mask, size, max_pixels)
        return None if self.annotation is None else self.annotation.mask(size)

    def region(self, image: Array) -> NDArray[np.bool_] | None:
        """Read the region of interest, bool (H, W), True inside; None: all of the image.

        Args:
            image: the row's pixels, as :meth:`image` returns them.

        Raises:
            ImageError: the region cannot be read, has another size than the image, or nothing lies inside.
        """
        if self.roi is None:
            return None
        if self.roi_name == MARGINS:
            return _inside_margins(image)
        inside = read_mask(self.roi, (image.shape[0], image.shape[1]))
        if not inside.any():
            name = self.roi if isinstance(self.roi, str) else f"region of {self.path}"
            raise ImageError(name, "the region of interest is empty: mark the part with any value above 0")
        return inside


def _inside_margins(image: Array) -> NDArray[np.bool_] | None:
    white = _WHITE * (1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)
    bright = (image >= white).reshape(image.shape[0], image.shape[1], -1)  # (H, W, 1 or 3)
    blank: NDArray[np.bool_] = np.logical_and.reduce(bright, axis=(0, 2))  # (W,)
    used = np.flatnonzero(~blank)
    if not len(used) or (used[0] == 0 and used[-1] == len(blank) - 1):
        return None
    inside = np.zeros(image.shape[:2], np.bool_)
    inside[:, used[0] : used[-1] + 1] = True
    return inside


class Table(Sequence[Row]):
    """A table is an immutable sequence of rows that can be filtered."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Row | Table:
        return Table(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __add__(self, other: Table) -> Table:
        return Table(self.rows + other.rows)

    def __repr__(self) -> str:
        return f"Table({len(self)} rows)"

    def where(self, keep: Callable[[Row], bool]) -> Table:
        """Return the rows for which ``keep`` is true, in order."""
        return Table([row for row in self.rows if keep(row)])

    def role(self, *roles: Role) -> Table:
        """Return the rows of these roles, in order."""
        return self.where(lambda row: row.role in roles)

    def unseen_by(self, fitted_images: Iterable[str]) -> Table:
        """Return the rows that a model was not fitted on, and whose groups hold no image that it was fitted on.

        Args:
            fitted_images: the provenance's ``fitted_images``, the first 16 digits of each :func:`image_digest`.

        Rows whose file does not exist, or whose image is broken, stay, so that reading them reports it.
        """
        fitted = set(fitted_images)
        readable = [row for row in self.rows if row.pixels is not None or os.path.isfile(row.path)]
        seen = {row.path for row in readable if _is_among(fitted, row)}
        groups = {row.group for row in self.rows if row.path in seen and row.group is not None}
        return self.where(lambda row: row.path not in seen and row.group not in groups)


@dataclass(frozen=True)
class Dataset:
    """A data set is a table with a name, the folder it came from and the layout that was recognised.

    Attributes:
        name: its name.
        root: the folder or file it came from.
        layout: a name in :data:`pickglass.data.LAYOUTS`.
        table: its images.
        account: what became of every file of the folder.
        private: images of a test whose truth is not published (MVTec AD 2): they are only to be judged.
        drawn: its good images for the test were drawn, because nothing in the folder says which these are.
    """

    name: str
    root: str
    layout: str
    table: Table
    account: Account = field(default_factory=Account, repr=False)
    private: Table = field(default_factory=Table, repr=False)
    drawn: bool = False

    @property
    def train(self) -> Table:
        """These rows may teach or calibrate: all but those of the role ``test``."""
        return self.table.where(lambda row: row.role != "test")

    @property
    def test(self) -> Table:
        """These rows feed nothing and are only judged."""
        return self.table.role("test")


def split_roles(table: Table, validate: float, calibrate: float, seed: int) -> Table:
    """Divide the ``train`` rows into fit, validate and calibrate, by group; rows with another role stay as they are.

    Args:
        table: rows; only those whose role is ``train`` are divided.
        validate: share of the train rows for ``validate``, 0 to below 1; ignored where validate rows exist already.
        calibrate: share for ``calibrate``, likewise.
        seed: seeds the shuffle of the groups.

    Returns:
        The rows in their old order with their new roles. A share above 0 yields at least one group as long as
        one is left to fit.

    Raises:
        InputError: a share outside [0, 1), or both together reach 1.
    """
    for name, share in (("validate", validate), ("calibrate", calibrate)):
        if not 0 <= share < 1:
            raise InputError(f"{name}={share!r}: expected a share from 0 to below 1, e.g. 0.1")
    if validate + calibrate >= 1:
        raise InputError(f"validate={validate} and calibrate={calibrate} leave nothing to fit: lower one of them")
    members: dict[str, list[int]] = {}
    for i, row in enumerate(table):
        if row.role == "train":
            members.setdefault(row.unit, []).append(i)
    keys = list(members)
    np.random.default_rng(seed).shuffle(keys)
    total = sum(len(v) for v in members.values())
    roles: dict[int, Role] = {}
    wanted: list[tuple[Role, float]] = [("calibrate", calibrate), ("validate", validate)]
    for role, share in wanted:
        if share == 0 or table.role(role):
            continue
        taken = 0
        while len(keys) > 1 and taken < max(1, round(share * total)):
            group = members[keys.pop()]
            taken += len(group)
            roles.update(dict.fromkeys(group, role))
    for key in keys:
        roles.update(dict.fromkeys(members[key], "fit"))
    return Table([replace(row, role=roles[i]) if i in roles else row for i, row in enumerate(table)])


def group_by(table: Table, pattern: str) -> Table:
    """Read the rows' groups from their file names, so that the images of one part or roll stay together.

    Args:
        table: rows; groups that they have already are replaced.
        pattern: regular expression, searched for in the file name without its folders. The group is what the first
            parenthesis matches, or the whole match where there is none.

    Raises:
        InputError: not a regular expression.
        DataError: names that do not match.

    >>> [row.group for row in group_by(Table([Row("a/roll7_01.png"), Row("b/roll7_02.png")]), "^([^_]+)_")]
    ['roll7', 'roll7']
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from error
    matches = [search(Path(row.path).name) for row in table]
    groups = [None if match is None else match[1 if match.re.groups else 0] for match in matches]
    missing = [Path(row.path).name for row, group in zip(table, groups, strict=True) if not group]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(table)} file names give no group by {pattern!r}, e.g. {', '.join(missing[:5])}: "
            "expected a pattern that finds the part or roll in every name"
        )
    return Table([replace(row, group=group) for row, group in zip(table, groups, strict=True)])


def _is_among(digests: set[str], row: Row) -> bool:
    try:
        return image_digest(row)[:_DIGITS] in digests
    except ImageError:
        return False


def fingerprint(table: Table, digests: Sequence[str] | None = None) -> str:
    """Return the sha256 over the contents of a table's images, their roles and their order.

    Args:
        table: the images.
        digests: what :func:`image_digest` gave of each; None: they are read here.
    """
    whole = hashlib.sha256()
    for row, digest in zip(table, map(image_digest, table) if digests is None else digests, strict=True):
        parts = (row.role, row.group, digest)
        whole.update(f"{' '.join(map(str, parts))}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def image_digest(row: Row) -> str:
    """Return the sha256 of an image's file or pixels: it tells images apart whatever their role, group and name.

    Raises:
        ImageError: a PIL image is broken, or a file cannot be read.
    """
    pixels = row.image() if isinstance(row.pixels, (Image.Image, ImageError)) else row.pixels
    if isinstance(pixels, bytes):
        return hashlib.sha256(pixels).hexdigest()
    try:
        content = Path(row.path).read_bytes() if pixels is None else np.ascontiguousarray(pixels).tobytes()
    except OSError as error:  # it was there when the data were read
        raise ImageError(row.path, f"cannot be read ({error.strerror})") from error
    return hashlib.sha256(content).hexdigest()


def short_names(paths: Sequence[str], least: int = 1) -> list[str]:
    """Return the name of each file, with as many folders in front as tell it from the others.

    Args:
        paths: files, or other names of images.
        least: parts that a name has at least, where its path has so many.

    >>> short_names(["line/monday/7.png", "line/tuesday/7.png", "line/tuesday/8.png"])
    ['monday/7.png', 'tuesday/7.png', '8.png']
    """
    parts = [PurePath(path).parts[PurePath(path).is_absolute() :] for path in paths]  # without "/" or "C:\\"
    depth = [least] * len(paths)
    while True:
        names = [str(PurePath(*part[-n:])) for part, n in zip(parts, depth, strict=True)]
        count = Counter(names)
        unclear = [i for i, name in enumerate(names) if count[name] > 1 and depth[i] < len(parts[i])]
        if not unclear:
            return names
        for i in unclear:
            depth[i] += 1


def known_names(paths: Sequence[str]) -> list[str]:
    """Return the names by which a model knows images: file and two folders, more where others have the same.

    >>> known_names(["/data/parts/bottle/train/good/7.png"])
    ['train/good/7.png']
    """
    return short_names(paths, _NAMED)
