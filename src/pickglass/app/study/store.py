"""A study has one SQLite file with a row for each cell; several processes may work from it at once.

A process claims the waiting cells of one group in one transaction and renews its claim while it lives. A claim is
void when its process is gone (same machine) or was not renewed for two minutes (any machine); whoever comes next
takes the cells over. A result is written only by the holder of the claim, so a process that was thought dead does no
harm.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from pickglass.app.database import transaction
from pickglass.app.study.cells import Cell, Plan
from pickglass.data.files import written_whole
from pickglass.data.tables.cells import cell
from pickglass.errors import InputError, PickglassError
from pickglass.metrics.catalogue import WITHOUT_THRESHOLD

__all__ = ["Outcome", "Picture", "State", "StudyStore"]

State = Literal["waiting", "claimed", "done", "failed", "missing"]
"""``missing``: the weights were not found."""

_VERSION = 1  # of the tables
_STALE = 120.0  # seconds without a sign of life
_BEAT = 15.0

_TABLES = f"""
CREATE TABLE cells (
  key TEXT PRIMARY KEY, place INTEGER, state TEXT NOT NULL, owner TEXT, beat REAL,
  dataset TEXT, method TEXT, backbone TEXT, layers TEXT, weights TEXT, size TEXT, seed INTEGER,
  cell TEXT NOT NULL, work TEXT NOT NULL,
  n INTEGER, n_unread INTEGER, {", ".join(f"{name} REAL" for name in WITHOUT_THRESHOLD)},
  fit_s REAL, predict_s REAL, backbone_s REAL, total_s REAL, peak_mb REAL, finished TEXT, versions TEXT,
  provenance TEXT, error TEXT
);
CREATE INDEX by_state ON cells (state, place);
CREATE TABLE pictures (
  key TEXT NOT NULL, path TEXT NOT NULL, about TEXT NOT NULL, map BLOB NOT NULL, PRIMARY KEY (key, path)
);
CREATE TABLE fields (backbone TEXT NOT NULL, layer TEXT NOT NULL, field INTEGER NOT NULL, weights TEXT NOT NULL,
  PRIMARY KEY (backbone, layer));
PRAGMA user_version = {_VERSION};
"""
_RESULTS = (
    "n",
    "n_unread",
    *WITHOUT_THRESHOLD,
    "fit_s",
    "predict_s",
    "backbone_s",
    "total_s",
    "peak_mb",
    "finished",
    "versions",
)
_COLUMNS = ("dataset", "method", "backbone", "layers", "weights", "size", "seed", "state", *_RESULTS, "error")


class Picture(NamedTuple):
    """One test image as a cell judged it.

    Attributes:
        path: the image's path.
        about: JSON of label, defect, masks, original size, window on the canvas, score, the cell's F1-max threshold
            and its range of colours.
        map: float16 (h, w) on the model's grid, compressed.
    """

    path: str
    about: str
    map: bytes


class Outcome(NamedTuple):
    """The outcome of a cell; ``values`` are columns of the file."""

    key: str
    state: State
    values: dict[str, Any]
    pictures: tuple[Picture, ...] = ()


Call = TypeVar("Call", bound=Callable[..., Any])


def _readable(method: Call) -> Call:
    """Turn what comes of a damaged file, a full disk or a lock into one error that names the file."""

    @wraps(method)
    def run(self: StudyStore, *args: Any, **named: Any) -> Any:
        try:
            return method(self, *args, **named)
        except (sqlite3.Error, LookupError, TypeError, ValueError) as error:  # also of what stands in its columns
            if isinstance(error, PickglassError):
                raise
            raise _unusable(self.path, error) from error

    return cast("Call", run)


class StudyStore:
    """The file of a study.

    Args:
        path: made if it is not there, unless ``create`` is false.

    Raises:
        InputError: a file of another kind or version, or a place that cannot be written.
    """

    def __init__(self, path: str | Path, create: bool = True) -> None:
        self.path = Path(path)
        self.owner = f"{socket.gethostname()}|{os.getpid()}|{secrets.token_hex(6)}"
        if not create and not self.path.is_file():
            raise InputError(f"{self.path}: no such file of a study")
        try:
            # isolation_level None: transactions are begun here, and nowhere else
            self.connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error
        try:
            self._open_tables()
        except BaseException:
            self.connection.close()  # nobody else can: the caller gets no store
            raise

    def _open_tables(self) -> None:
        """Make the tables of a new file, and refuse a file that holds others."""
        self.connection.row_factory = sqlite3.Row
        try:
            with transaction(self.connection):
                version = self.connection.execute("PRAGMA user_version").fetchone()[0]
                tables = self.connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if not tables:
                    for statement in _TABLES.split(";"):
                        self.connection.execute(statement)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _unusable(self.path, error) from error
        if tables and version != _VERSION:
            raise InputError(f"{self.path}: tables of version {version}, expected {_VERSION}: name another file")

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    # -- work ----------------------------------------------------------------------------------------------------------

    @_readable
    def enter(self, plan: Plan) -> None:
        """Make rows for the cells of a plan that have none, and let those wait again that failed or lacked weights."""
        with transaction(self.connection):
            place = self.connection.execute("SELECT COALESCE(MAX(place), -1) + 1 FROM cells").fetchone()[0]
            names = ("dataset", "method", "backbone", "weights", "seed")
            self.connection.executemany(
                f"INSERT OR IGNORE INTO cells (key, place, state, layers, size, cell, work, {', '.join(names)}) "
                "VALUES (?, ?, 'waiting', ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        cell.key,
                        place + i,
                        "+".join(cell.layers),
                        str(cell.size),
                        json.dumps(cell.to_json()),
                        cell.group,
                        *(getattr(cell, name) for name in names),
                    )
                    for i, cell in enumerate(plan.cells)
                ],
            )
            for cell in plan.cells:
                state = "missing" if cell.key in plan.missing else "waiting"
                self.connection.execute(
                    "UPDATE cells SET state = ?, error = ?, owner = NULL "
                    "WHERE key = ? AND state IN ('failed', 'missing', 'waiting')",
                    (state, plan.missing.get(cell.key), cell.key),
                )

    @_readable
    def claim(self, keys: Collection[str]) -> tuple[Cell, ...]:
        """Claim the waiting cells of the first group that has any among ``keys``, and return them; () if none waits."""
        wanted = set(keys)
        with transaction(self.connection):
            self._take_over()
            # only as far as the first that is wanted: each group asks anew, and a study may have thousands
            rows = self.connection.execute("SELECT key, work FROM cells WHERE state = 'waiting' ORDER BY place")
            work = next((row["work"] for row in rows if row["key"] in wanted), None)
            rows = self.connection.execute(
                "SELECT key, cell FROM cells WHERE state = 'waiting' AND work = ? ORDER BY place", (work,)
            )
            mine = [row for row in rows if row["key"] in wanted]
            self.connection.executemany(
                "UPDATE cells SET state = 'claimed', owner = ?, beat = ? WHERE key = ?",
                [(self.owner, time.time(), row["key"]) for row in mine],
            )
        return tuple(Cell.from_json(json.loads(row["cell"])) for row in mine)

    def _take_over(self) -> None:
        owners = self.connection.execute(
            "SELECT owner, MAX(beat) FROM cells WHERE state = 'claimed' GROUP BY owner"
        ).fetchall()
        for owner, beat in owners:
            if owner != self.owner and (time.time() - beat > _STALE or _gone(owner)):
                self.connection.execute(
                    "UPDATE cells SET state = 'waiting', owner = NULL WHERE state = 'claimed' AND owner = ?", (owner,)
                )

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Renew the claims of this process meanwhile; at the end give back the cells that were not done."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.release()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(_BEAT):
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as connection:
                connection.execute(
                    "UPDATE cells SET beat = ? WHERE owner = ? AND state = 'claimed'", (time.time(), self.owner)
                )

    @_readable
    def release(self, keys: Sequence[str] | None = None) -> None:
        """Let cells that this process has claimed wait again; None: all of them."""
        with transaction(self.connection):
            rows = self.connection.execute("SELECT key FROM cells WHERE state = 'claimed' AND owner = ?", (self.owner,))
            held = {row["key"] for row in rows}
            self.connection.executemany(
                "UPDATE cells SET state = 'waiting', owner = NULL WHERE key = ?",
                [(key,) for key in (held if keys is None else held & set(keys))],
            )

    @_readable
    def write(self, outcome: Outcome) -> bool:
        """Write the outcome of a cell; return False if another process has taken the cell over."""
        values = {**dict.fromkeys((*_RESULTS, "provenance", "error")), **outcome.values}
        names = list(values)
        with transaction(self.connection):
            changed = self.connection.execute(
                f"UPDATE cells SET state = ?, owner = NULL, {', '.join(f'{name} = ?' for name in names)} "
                "WHERE key = ? AND state = 'claimed' AND owner = ?",
                (outcome.state, *(values[name] for name in names), outcome.key, self.owner),
            ).rowcount
            if changed:
                self.connection.execute("DELETE FROM pictures WHERE key = ?", (outcome.key,))
                self.connection.executemany(
                    "INSERT INTO pictures (key, path, about, map) VALUES (?, ?, ?, ?)",
                    [(outcome.key, *picture) for picture in outcome.pictures],
                )
        return bool(changed)

    # -- reading -------------------------------------------------------------------------------------------------------

    @_readable
    def rows(self, keys: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return all columns of some cells in their order; None: of all cells of the file."""
        wanted = None if keys is None else set(keys)
        rows = self.connection.execute("SELECT * FROM cells ORDER BY place")
        return [dict(row) for row in rows if wanted is None or row["key"] in wanted]

    @_readable
    def pictures(self, key: str) -> list[Picture]:
        """Return the images of a cell, in the order in which they were written."""
        rows = self.connection.execute("SELECT path, about, map FROM pictures WHERE key = ? ORDER BY rowid", (key,))
        return [Picture(*row) for row in rows]

    @_readable
    def fields(self, backbone: str) -> dict[str, int]:
        """Return layer -> receptive field in pixels, as :meth:`keep_fields` wrote them; empty if it did not."""
        rows = self.connection.execute("SELECT layer, field FROM fields WHERE backbone = ?", (backbone,))
        return {row["layer"]: row["field"] for row in rows}

    @_readable
    def keep_fields(self, backbone: str, weights: str, fields: dict[str, int]) -> None:
        """Write the receptive fields by layer in pixels, measured with these weights."""
        with transaction(self.connection):
            self.connection.executemany(
                "INSERT OR REPLACE INTO fields (backbone, layer, field, weights) VALUES (?, ?, ?, ?)",
                [(backbone, layer, size, weights) for layer, size in fields.items()],
            )

    @_readable
    def export(self, target: Path, keys: Collection[str] | None = None) -> None:
        """Write the cells as CSV, whole or not at all."""
        with (
            written_whole(target) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            names = ["key", "data", *_COLUMNS, "settings", "command"]
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for row in self.rows(keys):
                done = Cell.from_json(json.loads(row["cell"]))
                values = {
                    **row,
                    "data": done.root,
                    "settings": done.settings,
                    "command": done.command(self.path),
                }
                writer.writerow({name: cell(values[name]) for name in names})


def _unusable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be used as a study's file ({' '.join(str(error).split())}): name another one")


def _gone(owner: str) -> bool:
    """Tell whether the process of a claim ran on this machine and runs no longer."""
    host, pid, _ = owner.split("|")
    if host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, but running
        return False
    return False
