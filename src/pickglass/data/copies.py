"""Addresses of object stores, such as ``s3://bucket/parts``, are worked on in copies on this machine.

Before the work a copy is made like the store: files of another size, ETag or time of change are fetched, files that are
gone there go. After it, what was written is sent, and what was deleted is deleted. Everything else in pickglass reads
and writes files alone. Where the store changed meanwhile, nothing of it is overwritten: the copy stays, and is named.
Copies lie in ``$PICKGLASS_COPIES``, or ``pickglass/copies`` in the user's cache, and are used again.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pickglass.data.files import alone, scratch_folder, written_whole
from pickglass.errors import DataError, InputError, MissingExtra, PickglassError

__all__ = ["address_of", "callers_copies", "local_copies"]

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # one letter is a drive of Windows
_LOCAL = ("file", "local")
_VERSION = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified", "updated", "created")
_STATE = "state.json"  # beside each copy: what was fetched or sent, file by file
_HIDDEN = ".pickglass-tmp-"
_ASKED = "PICKGLASS_COPIED"  # the addresses of the command, for its workers on other machines
_PATIENCE = 3600.0  # seconds for another process that fetches the same


def address_of(place: str | os.PathLike[str]) -> str | None:
    """Return the address of an object store, also where a path has swallowed a slash; None: a place on this machine.

    >>> address_of("s3:/bucket/parts"), address_of("parts/s3"), address_of("C:/parts")
    ('s3://bucket/parts', None, None)
    """
    found = _ADDRESS.fullmatch(os.fspath(place))
    if found is None or os.path.lexists(place):
        return None
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    return f"{scheme}://{'/' if scheme in _LOCAL else ''}{rest}"


@contextmanager
def local_copies(places: Sequence[str | os.PathLike[str]], *, for_tasks: bool = False) -> Iterator[list[Path]]:
    """Give paths on this machine for places, of which some are addresses; what is written there is sent at the end.

    Args:
        places: addresses, as fsspec takes them (``s3://``, ``gs://``, ``az://``, ``memory://`` ...), files and folders.
            An address may be of something that does not exist yet.
        for_tasks: these are tasks of a command that runs elsewhere. It writes the files that are named; its tasks write
            into folders, which are made, and whatever they write there is sent.

    Raises:
        MissingExtra: an address, and fsspec is not installed.
        InputError: nothing reads such addresses, two commands wrote the same, or a name would lie outside.
        DataError: a store cannot be read or written.

    Example:
        >>> with local_copies(["memory://parts/note.txt"]) as (note,):
        ...     _ = note.write_text("good")
        >>> with local_copies(["memory://parts"]) as (parts,):
        ...     [path.name for path in parts.iterdir()]
        ['note.txt']
    """
    copies = [None if (address := address_of(place)) is None else _Copy(address) for place in places]
    for copy in copies:
        if copy is not None:
            copy.fetch(make_folder=for_tasks)
    with _told_to_tasks([copy.address for copy in copies if copy is not None]):
        yield [Path(place) if copy is None else copy.path for place, copy in zip(places, copies, strict=True)]
    for copy in copies:
        if copy is not None and (not for_tasks or copy.path.is_dir()):
            copy.send()


@contextmanager
def _told_to_tasks(addresses: list[str]) -> Iterator[None]:
    """Let tasks that run on other machines meanwhile know the addresses."""
    before = os.environ.get(_ASKED)
    os.environ[_ASKED] = json.dumps(json.loads(before or "[]") + addresses)
    try:
        yield
    finally:
        os.environ.pop(_ASKED)
        if before is not None:
            os.environ[_ASKED] = before


@contextmanager
def callers_copies() -> Iterator[None]:
    """Have copies, on this machine, of what the command that this task belongs to works with."""
    addresses = json.loads(os.environ.pop(_ASKED, "[]"))
    with local_copies(addresses, for_tasks=True):
        yield


class _Copy:
    """The copy of an address: a file or a folder, with the state of each file when it was last alike."""

    def __init__(self, address: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise MissingExtra.needed(f"the address {address}", error) from error
        try:
            self.store, self.root = url_to_fs(address)
        except (ImportError, ValueError) as error:  # s3fs is missing, or no such kind of address
            raise InputError(
                f"{address}: nothing reads such an address ({_line(error)}): install the package of fsspec for it, "
                "e.g. s3fs, gcsfs or adlfs"
            ) from error
        self.address = address
        self.root = self.root.rstrip("/")
        name = PurePosixPath(self.root).name
        if name in ("", ".", ".."):
            raise InputError(f"{address}: expected a file or a folder in the store, e.g. {address.rstrip('/')}/parts")
        folder = _copies() / hashlib.sha256(address.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.state_file = folder / name, folder / _STATE

    def fetch(self, make_folder: bool = False) -> None:
        """Make the copy like the store; what a killed command has written and not sent stays."""
        with alone(self.state_file, _PATIENCE), self._errors("read"):
            known, there = self._known(), self._there()
            changed = [name for name, version in there.items() if not self._is_as(name, known.get(name), version)]
            edited = self._edited(known)
            for name in sorted(edited & set(changed)):
                if not self._is_sent(name):  # by a command that was killed before it remembered
                    raise self._conflict(name)
                known[name] = [there[name], _stat(self._local(name))]
                changed.remove(name)
            for name in set(known) - set(there) - edited:
                self._local(name).unlink(missing_ok=True)
            known = {name: state for name, state in known.items() if name in there}
            for name in changed:
                target = self._local(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(target) as temporary:
                    self.store.get_file(self._remote(name), str(temporary))
                known[name] = [there[name], _stat(target)]
            self._remember(known)
            if make_folder and not self.path.exists() and not self.path.suffix:
                self.path.mkdir()

    def send(self) -> None:
        """Write to the store what was written to the copy, and delete there what was deleted here.

        Raises:
            InputError: another has changed one of these files in the store since it was fetched.
        """
        with alone(self.state_file, _PATIENCE), self._errors("written"):
            known, there = self._known(), self._there()
            gone = {name for name in known if not self._local(name).exists()}
            changed = sorted(self._edited(known) | gone)
            for name in changed:
                version = there.get(name)
                if version is not None and version != known.get(name, [None])[0]:
                    raise self._conflict(name)
            for name in changed:
                if name in gone:
                    if name in there:
                        self.store.rm_file(self._remote(name))
                    del known[name]
                else:
                    folder = self._remote(name).rpartition("/")[0]
                    if folder:
                        self.store.makedirs(folder, exist_ok=True)
                    self.store.put_file(str(self._local(name)), self._remote(name))
                    known[name] = [_version(self.store.info(self._remote(name))), _stat(self._local(name))]
                self._remember(known)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _there(self) -> dict[str, str]:
        """List the files of the store, by their names below the address, ``""`` for the address itself."""
        self.store.invalidate_cache()
        if not self.store.exists(self.root):
            return {}
        if self.store.isfile(self.root):
            return {"": _version(self.store.info(self.root))}
        found: dict[str, Any] = self.store.find(self.root, detail=True)
        names = {path[len(self.root) :].lstrip("/"): info for path, info in found.items()}
        # some stores mark a folder by an empty file whose name ends in a slash
        names = {name: info for name, info in names.items() if name.strip("/") and name[-1] != "/"}
        names = {name: info for name, info in names.items() if _HIDDEN not in name}
        for name in names:
            parts = PurePosixPath(name).parts
            if ".." in parts or "\\" in name or "\0" in name:
                raise InputError(f"{self.address}: the name {name!r} cannot be that of a file here: rename it")
        return {name: _version(info) for name, info in names.items()}

    def _edited(self, known: Mapping[str, Any]) -> set[str]:
        """List files that were written here since they were last alike."""
        if self.path.is_file():
            here = [""]
        else:
            here = [
                path.relative_to(self.path).as_posix()
                for path in sorted(self.path.rglob("*"))
                if path.is_file() and not path.is_symlink() and _HIDDEN not in path.as_posix()
            ]
        return {name for name in here if name not in known or known[name][1] != _stat(self._local(name))}

    def _is_as(self, name: str, known: Any, version: str) -> bool:
        """Say whether the file of the store is the one that was fetched or sent, and is here."""
        return known is not None and known[0] == version and self._local(name).exists()

    def _is_sent(self, name: str) -> bool:
        """Compare a file of the store with what was written here."""
        with scratch_folder(self.state_file.parent) as scratch:
            self.store.get_file(self._remote(name), str(scratch / "there"))
            return filecmp.cmp(scratch / "there", self._local(name), shallow=False)

    def _local(self, name: str) -> Path:
        return self.path / name if name else self.path

    def _remote(self, name: str) -> str:
        return f"{self.root}/{name}" if name else str(self.root)

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self.state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, known: Mapping[str, Any]) -> None:
        with written_whole(self.state_file) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")

    # -- errors --------------------------------------------------------------------------------------------------------

    def _conflict(self, name: str) -> InputError:
        return InputError(
            f"{self._remote(name)} was changed in the store by another, and here, in {self._local(name)}, which was "
            "not sent: keep one of the two, delete the other, and give the same command again"
        )

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except PickglassError:
            raise
        except Exception as error:  # each store has errors of its own
            raise DataError(
                f"{self.address}: cannot be {what} ({_line(error)}): look at the address, the network and the rights"
            ) from error


def _copies() -> Path:
    given = os.environ.get("PICKGLASS_COPIES")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pickglass" / "copies"


def _version(info: Mapping[str, Any]) -> str:
    """Tell a file of a store from what it was before: by its size, and its ETag or the time of its change."""
    kinds = (info[name] for name in _VERSION if info.get(name) is not None)
    kind = next(kinds, "")
    return f"{info.get('size')} {kind.timestamp() if isinstance(kind, datetime) else kind}"


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
