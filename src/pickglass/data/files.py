"""Every file that pickglass writes is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pickglass.errors import InputError

__all__ = ["output_path", "written_whole"]


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
