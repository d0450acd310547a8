"""The journal is the memory of a line: one SQLite file that says which images were judged, and who was told.

An image file is the same as one before if its name, size and time of change (nanoseconds) are; a name that is used
again is a new image. A file that was sorted away is forgotten: what comes back under its name is judged anew.

What survives a kill at any moment follows from the order of four steps. (1) The results of a few images are written in
one transaction, together with the folder to which each file goes. (2) The files are moved, and where they went is
written. (3) The outputs read what is to be told from here, in the order of the numbers. (4) How far an output was told
is written after it was. A start takes up each step where the last process left it.

SQLite keeps a log beside the file (WAL) and waits for the disk at each commit. One process has the file to itself, so
that a second one on the same folder is refused; nothing has to be cleaned up after a kill.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pickglass.app.database import transaction
from pickglass.errors import InputError

__all__ = ["Entry", "Identity", "Journal", "Told", "Unsorted"]

_APPLICATION = 0x7067_6A6C  # by which a journal is told from other SQLite files
_VERSION = 1  # of the tables
_TABLES = f"""
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE images (
  number INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  result TEXT NOT NULL, folder TEXT, place TEXT NOT NULL, sorted_to BLOB
);
CREATE UNIQUE INDEX once ON images (name, size, mtime_ns) WHERE place <> 'sorted';
CREATE INDEX unsorted ON images (number) WHERE place = 'to sort';
CREATE INDEX stuck ON images (number) WHERE place = 'stuck';
CREATE TABLE outputs (name TEXT PRIMARY KEY, told INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE refused (output TEXT NOT NULL, number INTEGER NOT NULL, error TEXT NOT NULL,
  PRIMARY KEY (output, number));
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""

Place = Literal["here", "to sort", "stuck", "sorted", "gone"]
"""``here``: it stays. ``stuck``: it could not be moved, and is tried again. ``gone``: somebody took it, or the share it
was on; should it come back, it is still the file that was judged."""


class Identity(NamedTuple):
    """An image file is known by these three.

    Attributes:
        name: its name in the folder.
        size: bytes.
        mtime_ns: when it was last written, nanoseconds.
    """

    name: str
    size: int
    mtime_ns: int


class Entry(NamedTuple):
    """One image enters the journal with its result.

    Attributes:
        file: the image.
        result: what outputs are told, without number and destination; JSON.
        folder: name of the folder to which the file is sorted; None: it stays.
    """

    file: Identity
    result: Mapping[str, Any]
    folder: str | None


class Unsorted(NamedTuple):
    """One file waits to be moved: its number in the journal, which file it is, and the folder's name."""

    number: int
    file: Identity
    folder: str


class Told(NamedTuple):
    """One image as outputs are told of it: its number, and the message."""

    number: int
    message: dict[str, Any]


class Journal:
    """A journal is opened by one process for one folder; its methods may be called from any thread.

    Args:
        path: SQLite file, which is made where it does not exist.
        folder: the folder that is watched; the journal belongs to it.

    Raises:
        InputError: no such journal, one of another folder, one that another process has, or one that cannot be
            written. All methods raise it where the disk is full or the file cannot be written.

    Attributes:
        id: made once for each journal; messages carry it, so that numbers of two journals are never taken for one.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._readable():
            self._connection = sqlite3.connect(path, timeout=2, isolation_level=None, check_same_thread=False)
            try:
                self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                self.id = self._prepared(folder)
            except BaseException:
                self._connection.close()
                raise

    def _prepared(self, folder: Path) -> str:
        known = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        is_new = not self._one("SELECT COUNT(*) FROM sqlite_master")
        if not is_new and known != (_APPLICATION, _VERSION):
            raise InputError(f"{self.path}: no journal of this version of pickglass: name another file with --journal")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if is_new:
            about = {"id": uuid.uuid4().hex[:12], "folder": str(folder.resolve())}
            with self._transaction() as run:  # a kill leaves a whole journal or an empty file
                for statement in _TABLES.split(";"):
                    run.execute(statement)
                run.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        belongs = str(self._one("SELECT value FROM about WHERE key = 'folder'"))
        if belongs != str(folder.resolve()):
            raise InputError(
                f"{self.path}: the journal of {belongs!r}, not of {str(folder)!r}: name another file with --journal"
            )
        with self._transaction() as run:  # it takes the lock, which the process keeps
            run.execute("UPDATE about SET value = value WHERE key = 'id'")
        return str(self._one("SELECT value FROM about WHERE key = 'id'"))

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._connection.close()

    # -- images --------------------------------------------------------------------------------------------------------

    def knows(self, file: Identity) -> bool:
        """Say whether this very file was judged, and was not sorted away."""
        with self._readable():
            found = self._connection.execute(
                "SELECT 1 FROM images WHERE name = ? AND size = ? AND mtime_ns = ? AND place <> 'sorted'",
                _key(file),
            )
            return found.fetchone() is not None

    def record(self, entries: Sequence[Entry]) -> None:
        """Write results in one transaction: all of them or none. The images are numbered in their order."""
        rows = [
            (
                *_key(entry.file),
                json.dumps(entry.result),
                entry.folder,
                "here" if entry.folder is None else "to sort",
            )
            for entry in entries
        ]
        with self._transaction() as run:
            run.executemany(
                "INSERT INTO images (name, size, mtime_ns, result, folder, place) VALUES (?, ?, ?, ?, ?, ?)", rows
            )

    def unsorted(self, place: Literal["to sort", "stuck"], most: int = 1000) -> list[Unsorted]:
        """List files that wait to be moved, in order."""
        with self._readable():
            rows = self._connection.execute(
                "SELECT number, name, size, mtime_ns, folder FROM images "
                f"WHERE place = '{place}' ORDER BY number LIMIT ?",  # as text, so that the index is used
                (most,),
            ).fetchall()
            return [Unsorted(row[0], Identity(os.fsdecode(row[1]), row[2], row[3]), row[4]) for row in rows]

    def moved(self, outcomes: Mapping[int, tuple[Place, str | None]]) -> None:
        """Write what became of files that were to be moved: number -> place and path, in one transaction.

        A file that was told of before it could be moved keeps what was told.
        """
        rows = [
            (None if path is None else os.fsencode(path), place, number) for number, (place, path) in outcomes.items()
        ]
        with self._transaction() as run:
            run.executemany(
                "UPDATE images SET sorted_to = CASE place WHEN 'stuck' THEN NULL ELSE ? END, place = ? "
                "WHERE number = ?",
                rows,
            )

    def last(self) -> int:
        """Return the number of the last image, 0 if there is none."""
        return int(self._one("SELECT COALESCE(MAX(number), 0) FROM images"))

    def ready(self) -> int:
        """Return the number up to which images may be told of: none of them waits for its first move."""
        first = self._one("SELECT MIN(number) FROM images WHERE place = 'to sort'")
        return self.last() if first is None else int(first) - 1

    # -- outputs -------------------------------------------------------------------------------------------------------

    def output(self, name: str) -> tuple[int, int] | None:
        """Return how far an output was told, the last number and bytes written; None for one that is new."""
        with self._readable():
            found = self._connection.execute("SELECT told, bytes FROM outputs WHERE name = ?", (name,)).fetchone()
        return None if found is None else (int(found[0]), int(found[1]))

    def told(self, positions: Mapping[str, tuple[int, int]]) -> None:
        """Write how far outputs were told, in one transaction."""
        rows = [(name, number, size) for name, (number, size) in positions.items()]
        with self._transaction() as run:
            run.executemany("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)", rows)

    def after(self, number: int, most: int) -> list[Told]:
        """List the next images to tell of, in order."""
        with self._readable():
            rows = self._connection.execute(
                "SELECT number, result, sorted_to FROM images WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
                (number, self.ready(), most),
            ).fetchall()
        return [
            Told(
                row[0],
                {
                    "kind": "image",
                    "id": f"{self.id}-{row[0]}",
                    "number": row[0],
                    **json.loads(row[1]),
                    "sorted_to": None if row[2] is None else os.fsdecode(row[2]),
                },
            )
            for row in rows
        ]

    def refuse(self, output: str, number: int, error: str) -> None:
        """Write that an output does not take a message and was not told of the image."""
        with self._transaction() as run:
            run.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?)", (output, number, error))

    def refusals(self, output: str) -> int:
        """Count the messages that an output did not take."""
        with self._readable():
            found = self._connection.execute("SELECT COUNT(*) FROM refused WHERE output = ?", (output,)).fetchone()
        return int(found[0])

    # -- SQLite --------------------------------------------------------------------------------------------------------

    def _one(self, query: str) -> Any:
        with self._readable():
            row = self._connection.execute(query).fetchone()
        if row is None:
            raise InputError(f"journal {self.path}: it is damaged (nothing for {query!r}): name another file")
        return row[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._readable(), transaction(self._connection) as connection:
            yield connection

    @contextmanager
    def _readable(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, UnicodeDecodeError, TypeError) as error:  # also of what stands in its columns
                if "locked" in str(error):
                    why = "another 'pickglass watch' has it: end that one, or name another file with --journal"
                else:
                    said = " ".join(str(error).split())
                    why = f"{said}: look for space on the disk and for permissions, or name another file with --journal"
                raise InputError(f"journal {self.path}: {why}") from error


def _key(file: Identity) -> tuple[bytes, int, int]:
    """Return a file as the tables have it; names on Linux need not be text."""
    return os.fsencode(file.name), file.size, file.mtime_ns
