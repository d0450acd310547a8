"""Judged files move to a folder for each verdict; no file is ever overwritten, and a kill in between loses none.

A name that is taken gets the image's number in the journal: ``a.png``, ``a-17.png``, ``a-17-2.png`` ...
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from pickglass.app.watch.journal import Identity, Unsorted
from pickglass.data.files import put_in_place, scratch_folder

__all__ = ["identity_at", "move", "moved_before"]

# what is answered where a file system has no hard links, or source and target lie on two
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EINVAL}


def identity_at(folder: Path, name: str) -> Identity | None:
    """Return what the file of this name is now; None where there is none."""
    try:
        status = os.stat(folder / name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(name, status.st_size, status.st_mtime_ns)


def move(source: Path, item: Unsorted, folder: Path) -> Path:
    """Move a file into a folder, which is made where it does not exist, under a name that is free.

    Within a file system the file gets a second name before it loses the first, so that it has one at every moment. To
    another file system it is copied, under a hidden name until the copy is complete; so is what a link leads to. Where
    there are no hard links, an empty file holds the new name for the moment of the move.

    Returns:
        Where the file is now.

    Raises:
        FileNotFoundError: the file is gone, or another one has its name.
        OSError: it cannot be moved, and is where it was.
    """
    if identity_at(source.parent, source.name) != item.file:
        raise FileNotFoundError(errno.ENOENT, "the file that was judged is gone")
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.samefile(source.parent, folder):
        raise OSError(errno.EINVAL, "it lies in the folder to which it is to be sorted")
    for target in _names(folder, item):
        if not _linked(source, target) and not _placed(source, target):
            continue
        try:
            if os.stat(target).st_size != item.file.size:  # it was overwritten just now
                raise FileNotFoundError(errno.ENOENT, "the file that was judged is gone")
            source.unlink(missing_ok=True)
        except OSError:
            if source.exists():
                target.unlink()
            raise
        return target
    raise AssertionError("names do not end")


def moved_before(source: Path, item: Unsorted, folder: Path) -> Path | None:
    """Find a file that a process had moved, or copied, before it was killed; None where it is not in the folder.

    Of names that could be it the last is taken: it was tried after the others.
    """
    still = identity_at(source.parent, source.name) == item.file
    found = None
    for target in _names(folder, item):
        there = identity_at(folder, target.name)
        if there is None:
            return found
        if there[1:] == item.file[1:] and (not still or _is_copy(source, target)):
            found = target
    return found


def _is_copy(source: Path, target: Path) -> bool:
    if os.stat(source).st_dev == os.stat(target).st_dev:
        return os.path.samefile(source, target)
    return filecmp.cmp(source, target, shallow=False)


def _names(folder: Path, item: Unsorted) -> Iterator[Path]:
    name = Path(item.file.name)
    yield folder / name
    yield folder / f"{name.stem}-{item.number}{name.suffix}"
    for again in count(2):
        yield folder / f"{name.stem}-{item.number}-{again}{name.suffix}"


def _linked(source: Path, target: Path) -> bool:
    """Give a file a second name; False if the name is taken or there are no links from one to the other."""
    if source.is_symlink():  # what it leads to would get another name, or none
        return False
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _placed(source: Path, target: Path) -> bool:
    """Bring a file to a name without a link; False if the name is taken."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # from here on the name is ours
    except FileExistsError:
        return False
    try:
        if os.stat(source).st_dev == os.stat(target).st_dev and not source.is_symlink():
            os.replace(source, target)
        else:
            _copied(source, target)
    except BaseException:
        os.unlink(target)
        raise
    return True


def _copied(source: Path, target: Path) -> None:
    with scratch_folder(target.parent) as folder:
        copy = folder / target.name
        shutil.copy2(source, copy)
        put_in_place(copy, target)
