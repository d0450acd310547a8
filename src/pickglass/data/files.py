"""Every file is written whole or not at all, and a path that does not exist is answered with what is there."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pickglass.errors import DataError, Failure, InputError

try:
    import fcntl
except ImportError:  # Windows, where what a killed process leaves is not told from what a living one uses
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "alone",
    "check_exist",
    "disk_is_full",
    "missing",
    "output_path",
    "put_in_place",
    "remove_leftovers",
    "replace_folder",
    "scratch_folder",
    "sync_folder",
    "writing_to",
    "written_whole",
]

_LISTED = 6  # names of what is there
_OURS = ".pickglass-tmp-"  # what a process hides beside its files while it works, and nothing else, is named so
_REPLACED = "replaced"  # in such a folder: what is to be taken back if its place is empty
_LOOK = 0.05  # seconds between two looks whether a lock is free
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # these come of writing alone
_swept: set[tuple[int, str]] = set()  # process and folder


# -- whole or not at all -----------------------------------------------------------------------------------------------


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a name in a hidden folder beside ``target`` to write to; it takes the target's place only if no error comes.

    What is written is on the disk before it takes that place, so that a power cut leaves the old file or the new one.

    Raises:
        InputError: the folder does not exist or cannot be written, or the disk is full.
    """
    folder: Path | None = None
    try:
        with scratch_folder(target.parent) as folder:
            temporary = folder / target.name
            yield temporary
            temporary.chmod(0o644)  # an output is for everybody to read, whatever the library that wrote it thinks
            put_in_place(temporary, target)
    except OSError as error:
        if not _is_of_writing(error, target, folder):
            raise
        if folder is None:
            raise InputError(f"{target}: cannot write there ({error.strerror}): name an existing folder") from error
        raise _not_written(target, error) from error


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turn any error of the disk into one that names what cannot be written.

    Raises:
        InputError: an error of the disk came.
    """
    try:
        yield
    except OSError as error:
        raise _not_written(target, error) from error


def _not_written(target: Path, error: OSError) -> InputError:
    return InputError(
        f"{target}: cannot be written ({error.strerror}): free some of the disk, or name another place. What was there "
        "before is there still"
    )


def _is_of_writing(error: OSError, target: Path, folder: Path | None) -> bool:
    """Say whether an error comes of the place that is written, not of a source that was read meanwhile."""
    if folder is None or (error.filename is None and error.errno in _FULL):
        return True
    return isinstance(error.filename, str) and (
        Path(error.filename).is_relative_to(folder) or error.filename == str(target)
    )


def disk_is_full(error: Exception) -> bool:
    """Say whether nothing more can be written, whatever it is."""
    return isinstance(error, OSError) and error.errno in _FULL


def put_in_place(temporary: Path, target: Path) -> None:
    """Let a complete file take the target's name, once its content is on the disk.

    Raises:
        OSError: it cannot; ``target`` is what it was.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    if os.name == "nt":
        return
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that may be written and not read
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that have no such thing
            raise
    finally:
        os.close(number)


# -- what is hidden meanwhile ------------------------------------------------------------------------------------------


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give an empty hidden folder that is gone afterwards; one that a killed process left is removed by the next.

    A process holds a lock on its folder while it lives. The first that a process hides in a place removes what is
    hidden there and has a free lock.

    Args:
        parent: where to make it; None: the system's place for temporary files.

    Raises:
        OSError: the place does not exist or cannot be written.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    _sweep_once(place)
    while True:
        folder = Path(tempfile.mkdtemp(dir=place, prefix=_OURS))
        held = _hold(folder)
        if held is None or folder.is_dir():
            break
        os.close(held)  # another process took it for a leftover, before it was locked
    try:
        yield folder
    finally:
        _take_back(folder, place)
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _sweep_once(place: Path) -> None:
    known = (os.getpid(), os.path.realpath(place))
    if known not in _swept:
        _swept.add(known)
        remove_leftovers(place)


def remove_leftovers(place: Path) -> None:
    """Remove the hidden folders and locks of processes that were killed; what a living one uses stays."""
    try:
        names = [entry.path for entry in os.scandir(place) if entry.name.startswith(_OURS)]
    except OSError:  # whoever writes there is told what is wrong
        return
    for name in names:
        path = Path(name)
        with suppress(OSError):  # somebody else's, or another process removes it just now
            held = _hold(path)
            if held is None:
                continue
            try:
                if stat.S_ISDIR(os.fstat(held).st_mode):
                    _take_back(path, place)
                    shutil.rmtree(path, ignore_errors=True)
                elif _is_at(held, path):
                    path.unlink()
            finally:
                os.close(held)


def replace_folder(folder: Path, target: Path, scratch: Path) -> None:
    """Let a complete folder take the place of another; a kill between the two steps is mended by the next process.

    Args:
        folder: in ``scratch``.
        target: where it is to be; what is there is deleted with ``scratch``.
        scratch: folder of :func:`scratch_folder` beside ``target``.
    """
    if target.exists():
        (scratch / _REPLACED).mkdir()
        target.rename(scratch / _REPLACED / target.name)
    folder.rename(target)
    sync_folder(target.parent)


def _take_back(scratch: Path, place: Path) -> None:
    """Bring back what was to be replaced and was not."""
    with suppress(OSError):
        for entry in os.scandir(scratch / _REPLACED):
            if not os.path.lexists(place / entry.name):
                os.rename(entry.path, place / entry.name)


def _hold(path: Path) -> int | None:
    """Lock a file or folder, and return what holds the lock until it is closed; None: another process holds it.

    Also None where there are no locks: then nothing is ever taken for a leftover.
    """
    if fcntl is None:
        return None
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number


def _is_at(number: int, path: Path) -> bool:
    """Say whether an open file still has this name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.fstat(number).st_ino == there.st_ino


# -- one after the other -----------------------------------------------------------------------------------------------


@contextmanager
def alone(target: Path, patience: float = 5.0) -> Iterator[None]:
    """Keep other processes from making or changing the same file meanwhile.

    Where a file system has no locks, as on Windows, nothing is kept.

    Args:
        target: need not exist.
        patience: seconds to wait for another process.

    Raises:
        InputError: another process is at it for longer than that, or the folder cannot be written.
    """
    if fcntl is None:
        yield
        return
    _sweep_once(target.parent)
    path = target.with_name(f"{_OURS}{target.name[:200]}.lock")
    until = time.monotonic() + patience
    held: int | None = None
    while held is None:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise InputError(f"{target}: cannot write there ({error.strerror}): name another folder") from error
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(number, 20, 0).decode("ascii", "replace") or "unknown"
            os.close(number)
            if time.monotonic() >= until:
                raise InputError(
                    f"{target}: another process (id {who}) is writing it: wait until it has ended, or name another file"
                ) from None
            time.sleep(_LOOK)
        except OSError:  # no locks here
            os.close(number)
            path.unlink(missing_ok=True)
            yield
            return
        else:
            if _is_at(number, path):
                held = number
            else:
                os.close(number)  # it was removed by the process that had it
    try:
        with suppress(OSError):  # on a full disk the number is missing in the message, and nothing else
            os.pwrite(held, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


# -- names -------------------------------------------------------------------------------------------------------------


def output_path(path: str | Path, suffix: str) -> Path:
    """Check the name of a file that a long computation will write, before it starts.

    Raises:
        InputError: another suffix, or a folder that does not exist.
    """
    target = Path(path)
    if target.suffix != suffix or not target.parent.is_dir():
        raise InputError(f"output file {str(path)!r}: expected a name that ends in {suffix}, in an existing folder")
    return target


def missing(path: str | os.PathLike[str]) -> str:
    """Say that a path does not exist, which part of it does, what is there, and what may have been meant.

    >>> missing("/nowhere/images").startswith("no such file or folder: nowhere in '/'")
    True
    """
    wanted = Path(path)
    there = wanted.parent
    name = wanted.name
    while not os.path.isdir(there) and there != there.parent:
        there, name = there.parent, there.name
    try:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in there.iterdir())
    except OSError:
        return f"no such file or folder: {name} in {str(there)!r}, which cannot be read"
    names = [entry for entry in names if not entry.startswith(".")]
    near = difflib.get_close_matches(name, [entry.rstrip("/") for entry in names], n=1, cutoff=0.6)
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    where = f"'{there}'" if str(there) != "." else "the current folder"
    meant = f"; did you mean '{there / near[0]}'?" if near else ""
    return f"no such file or folder: {name} in {where}, which holds {listed or 'nothing'}{meant}"


def check_exist(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Check that all paths that a user named exist.

    Raises:
        DataError: naming each that does not.
    """
    absent = [Failure(str(path), missing(path)) for path in paths if not os.path.exists(path)]
    if len(absent) == 1:
        raise DataError(f"{absent[0].path}: {absent[0].error}")
    if absent:
        raise DataError(f"{len(absent)} of the paths do not exist:", absent)
