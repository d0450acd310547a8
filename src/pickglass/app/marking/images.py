"""The files of marked images are looked for where they were, and in folders to which they may have been moved.

A file is the image that was marked only if its SHA-256 is; so no mark is ever taken for one of another image.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from pickglass.app.marking.store import Mark
from pickglass.app.marking.table import read_marks
from pickglass.data import IMAGE_SUFFIXES, DataSource, Role, Row, Table, group_by
from pickglass.errors import DataError, Failure

__all__ = ["Located", "MarkedImages", "MarkedTables", "digest_of", "locate"]


class Located(NamedTuple):
    """Marked images were looked for.

    Attributes:
        paths: where each image is, by its digest.
        moved: those that are not where they were marked: path then, path now.
        failed: those that are not there, or are others than they were, with the reason.
    """

    paths: dict[str, str]
    moved: list[tuple[str, str]]
    failed: list[Failure]


class MarkedTables(NamedTuple):
    """Rows of marked images, as an update reads them, and what else the marks say.

    Attributes:
        good: rows to learn.
        bad: rows of known bad images.
        unsure: rows that are neither, of disputed images, too.
        disputed: paths of images that people have marked differently.
        moved: images that are not where they were marked: path then, path now.
        words: what each image counts as, by its digest.
    """

    good: Table
    bad: Table
    unsure: Table
    disputed: list[str]
    moved: list[tuple[str, str]]
    words: dict[str, str]


@dataclass(frozen=True)
class MarkedImages:
    """Images that were marked, in a report or in the page, and where to find them.

    Attributes:
        source: path of a table of marks or of the file that the page keeps, and what holds for all images: how parts
            are told by file names, region of interest, size of a pixel.
        roots: folders in which images are looked for that are elsewhere now.
    """

    source: DataSource
    roots: tuple[str | Path, ...] = ()

    def load(self) -> MarkedTables:
        """Read the marks and find all images.

        Raises:
            DataError: an image is not there any more, or is another one than it was; all of them are named.
            InputError: the file holds no marks.
        """
        with read_marks(self.source.path) as store:
            marks = store.current()
        located = locate(marks, os.path.dirname(self.source.path), self.roots)
        if located.failed:
            raise DataError(
                f"{len(located.failed)} of {len(marks)} marked images are not there as they were marked: bring them "
                "back, name the folder to which they were moved with --root, or take their rows out of the table:",
                located.failed,
            )
        tables: dict[str | None, Table] = {}
        kinds: tuple[tuple[str, Role, int | None], ...] = (
            ("good", "train", 0),
            ("bad", "test", 1),
            ("unsure", "test", None),
        )
        for word, role, label in kinds:
            those = [mark for mark in marks if mark.counts_as == word]
            rows = [Row(located.paths[m.digest], role, label, m.type if label else None) for m in those]
            table = Table(rows) if self.source.group_by is None else group_by(Table(rows), self.source.group_by)
            tables[word] = self.source.placed(table) if rows else table
        disputed = [mark.path for mark in marks if mark.disputed]
        words = {mark.digest: str(mark.counts_as) for mark in marks}
        return MarkedTables(tables["good"], tables["bad"], tables["unsure"], disputed, located.moved, words)


def digest_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of an image's file, by which its marks are known.

    Raises:
        OSError: the file cannot be read.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def locate(
    marks: Sequence[Mark],
    beside: str | Path | None = None,
    roots: Sequence[str | Path] = (),
    allowed: Callable[[str], bool] = lambda _: True,
    renamed: bool = True,
    digest: Callable[[str], str] = digest_of,
) -> Located:
    """Find the files of marked images.

    Args:
        marks: one an image.
        beside: folder to which paths may be relative, too, beside the current one: that of the table of marks.
        roots: folders in which images are looked for that are elsewhere now.
        renamed: look for them under whatever name, which takes reading all images there; otherwise under their own.
        allowed: whether a file may be looked at that a mark names.
        digest: how the digest of a file is had.
    """
    paths: dict[str, str] = {}
    changed: dict[str, str] = {}
    for mark in marks:
        for path in dict.fromkeys((mark.path, os.path.join(beside or "", mark.path))):
            if allowed(path) and os.path.isfile(path):
                try:
                    found = digest(path)
                except OSError as error:
                    changed[mark.digest] = f"cannot be read ({error.strerror})"
                    continue
                if found == mark.digest:
                    paths[mark.digest] = path
                    break
                changed[mark.digest] = "its content is another than when it was marked: mark it again"
    moved: list[tuple[str, str]] = []
    wanted = {mark.digest: mark for mark in marks if mark.digest not in paths}
    for known, path in _search(wanted.values(), roots, renamed, digest):
        paths[known] = path
        moved.append((wanted[known].path, path))
    looked = f" and in {', '.join(map(str, roots))}" if roots else ""
    gone = f"there is no such file any more; looked for there{looked}"
    failed = [Failure(mark.path, changed.get(mark.digest, gone)) for mark in marks if mark.digest not in paths]
    return Located(paths, moved, failed)


def _search(
    marks: Iterable[Mark], roots: Sequence[str | Path], renamed: bool, digest: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Yield digest and path of each marked image that lies in a folder; files of the same name are looked at first."""
    wanted = {mark.digest for mark in marks}
    if not wanted or not roots:
        return
    names: defaultdict[bool, list[str]] = defaultdict(list)
    known = {PurePath(mark.path.replace("\\", "/")).name for mark in marks}  # also of a table from Windows
    for root in roots:
        for folder, _, files in os.walk(root):
            for name in sorted(files):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    names[name in known].append(os.path.join(folder, name))
    for path in (*names[True], *(names[False] if renamed else ())):
        if not wanted:
            return
        try:
            found = digest(path)
        except OSError:  # it may be any file; what is missing is named by its mark
            continue
        if found in wanted:
            wanted.remove(found)
            yield found, path
