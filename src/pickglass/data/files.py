"""Every file is written whole or not at all, and a path that does not exist is answered with what is there."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pickglass.errors import DataError, Failure, InputError

__all__ = ["check_exist", "missing", "output_path", "written_whole"]

_LISTED = 6  # names of what is there


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a temporary file beside ``target`` to write to; it takes the target's name only if no error comes.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:80]}-", suffix=target.suffix)
    except OSError as error:
        raise InputError(f"{target}: cannot write there ({error.strerror}): name an existing folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
