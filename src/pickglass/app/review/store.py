"""What models gave images is kept in one SQLite file, so that a review goes on after a restart where it stopped.

Scores are kept under the model's id and the image's digest: an image that was moved keeps its score, one that was
written anew is judged anew, and thresholds may change without judging anything again. Beside each score stands a small
copy of the map, for thumbnails. All of it can be computed again, so a file of another version is emptied, and what is
old is dropped: the file does not grow for ever.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.app.database import transaction
from pickglass.app.pages.images import picture_size, shrink_max
from pickglass.data.images.geometry import resize_map
from pickglass.errors import InputError
from pickglass.result import Found

__all__ = ["Judged", "JudgedStore", "SmallMap", "small_map"]

_VERSION = 1
_TABLES = """
CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL, digest TEXT NOT NULL);
CREATE TABLE models (model TEXT PRIMARY KEY, used INTEGER NOT NULL);
CREATE TABLE judged (
  model TEXT NOT NULL, image TEXT NOT NULL, score REAL NOT NULL, peak REAL NOT NULL,
  low REAL NOT NULL, high REAL NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL, map BLOB NOT NULL,
  PRIMARY KEY (model, image)
);
CREATE TABLE thumbnails (image TEXT PRIMARY KEY, used INTEGER NOT NULL, size INTEGER NOT NULL, jpeg BLOB NOT NULL);
CREATE INDEX thumbnails_used ON thumbnails (used);
"""
_MODELS = 8  # whose scores are kept, those used last
_SIDE = 64  # cells, the longest side of a small map
_BUSY = 20.0  # seconds that a process waits for another one that is writing

THUMBNAILS = 256 * 2**20
"""Thumbnails take this many bytes at most; those used longest ago go first."""


class SmallMap(NamedTuple):
    """A small copy of an anomaly map over the image.

    Attributes:
        cells: (h, w) uint8, from ``low`` at 0 to ``high`` at 255.
        low, high: lowest and highest value.
    """

    cells: npt.NDArray[np.uint8]
    low: float
    high: float

    def values(self) -> npt.NDArray[np.float32]:
        """Return the map's values, (h, w) float32."""
        return (self.low + (self.high - self.low) / 255 * self.cells).astype(np.float32)


class Judged(NamedTuple):
    """A model gave an image this score.

    Attributes:
        score: raw score.
        peak: highest value of the map.
        map: None where it was not asked for.
    """

    score: float
    peak: float
    map: SmallMap | None = None


def small_map(found: Found) -> SmallMap:
    """Shrink the map of a judged image, so that the highest value in each place stays."""
    size = picture_size(*found.size, side=_SIDE)  # (h, w)
    fine = (max(size[0], found.map.shape[0]), max(size[1], found.map.shape[1]))
    values = shrink_max(resize_map(found.map, fine, found.window), size)
    low, high = float(values.min()), float(values.max())
    cells = np.rint((values - low) * (255 / max(high - low, np.finfo(np.float32).tiny)))
    return SmallMap(np.clip(cells, 0, 255).astype(np.uint8), low, high)


class JudgedStore:
    """A file of scores, small maps and thumbnails; its methods may be called from any thread.

    Args:
        path: SQLite file, made where it does not exist.
        thumbnails: how many bytes of thumbnails are kept at most.

    Raises:
        InputError: the file cannot be opened or written; all methods raise it.

    Example:
        >>> import tempfile
        >>> cells = SmallMap(np.zeros((2, 2), np.uint8), 0.0, 1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = JudgedStore(Path(folder) / "judged.sqlite")
        ...     store.keep("model", {"image": Judged(0.5, 0.75, cells)})
        ...     found, map = store.scores("model"), store.judged("model", "image").map
        ...     store.close()
        >>> found, map.values().tolist()
        ({'image': Judged(score=0.5, peak=0.75, map=None)}, [[0.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self, path: Path, thumbnails: int = THUMBNAILS) -> None:
        self.path = path
        self._most = thumbnails
        self._lock = threading.RLock()
        with self._readable():
            self._connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        self._clock = 1 + self._number("SELECT MAX(used) FROM thumbnails")
        self._taken = self._number("SELECT SUM(size) FROM thumbnails")

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        with self._transaction():
            if run("PRAGMA user_version").fetchone()[0] != _VERSION:
                there = run("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
                for (name,) in there.fetchall():
                    run(f'DROP TABLE "{name}"')
                for statement in _TABLES.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    # -- images --------------------------------------------------------------------------------------------------------

    def digests(self) -> dict[str, tuple[int, int, str]]:
        """Return what is known of files: size, time of the last change in ns, and digest by path."""
        rows = self._rows("SELECT path, size, changed, digest FROM files")
        return {os.fsdecode(path): (size, changed, digest) for path, size, changed, digest in rows}

    def keep_digests(self, known: Iterable[tuple[str, int, int, str]]) -> None:
        """Keep path, size, time of the last change in ns and digest of files."""
        rows = [(os.fsencode(path), *more) for path, *more in known]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    # -- scores --------------------------------------------------------------------------------------------------------

    def begin(self, model: str) -> None:
        """Say that a model is used now; of the models that were used before it, all but a few are forgotten."""
        with self._transaction():
            run = self._connection.execute
            run("INSERT OR REPLACE INTO models SELECT ?, 1 + COALESCE(MAX(used), 0) FROM models", (model,))
            old = run("SELECT model FROM models ORDER BY used DESC LIMIT -1 OFFSET ?", (_MODELS,)).fetchall()
            for (name,) in old:
                run("DELETE FROM judged WHERE model = ?", (name,))
                run("DELETE FROM models WHERE model = ?", (name,))

    def scores(self, model: str) -> dict[str, Judged]:
        """Return what a model gave images, by the image's digest, without the maps."""
        rows = self._rows("SELECT image, score, peak FROM judged WHERE model = ?", (model,))
        return {image: Judged(score, peak) for image, score, peak in rows}

    def judged(self, model: str, image: str) -> Judged | None:
        """Return what a model gave an image, with the map; None: it was not judged."""
        rows = self._rows(
            "SELECT score, peak, low, high, height, width, map FROM judged WHERE model = ? AND image = ?",
            (model, image),
        )
        if not rows:
            return None
        score, peak, low, high, height, width, content = rows[0]
        cells = np.frombuffer(zlib.decompress(content), np.uint8).reshape(height, width)
        return Judged(score, peak, SmallMap(cells, low, high))

    def keep(self, model: str, judged: dict[str, Judged]) -> None:
        """Keep what a model gave images, by the image's digest, each with its map."""
        rows = [
            (model, image, one.score, one.peak, map.low, map.high, *map.cells.shape, zlib.compress(map.cells.tobytes()))
            for image, one in judged.items()
            if (map := one.map) is not None
        ]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO judged VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    # -- thumbnails ----------------------------------------------------------------------------------------------------

    def thumbnail(self, image: str) -> bytes | None:
        """Return the JPEG file of an image's thumbnail; None: it has none."""
        rows = self._rows("SELECT jpeg, used FROM thumbnails WHERE image = ?", (image,))
        if not rows:
            return None
        if self._clock - rows[0][1] > 1000:  # not at each look: that would write for every picture that is shown
            with self._transaction():
                self._connection.execute("UPDATE thumbnails SET used = ? WHERE image = ?", (self._tick(), image))
        return bytes(rows[0][0])

    def keep_thumbnail(self, image: str, jpeg: bytes) -> None:
        """Keep a thumbnail; those used longest ago make room for it."""
        with self._transaction():
            run = self._connection.execute
            known = run("SELECT size FROM thumbnails WHERE image = ?", (image,)).fetchone()
            run("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?, ?)", (image, self._tick(), len(jpeg), jpeg))
            self._taken += len(jpeg) - (known[0] if known else 0)
            if self._taken > self._most:
                for name, size in run("SELECT image, size FROM thumbnails ORDER BY used").fetchall():
                    run("DELETE FROM thumbnails WHERE image = ?", (name,))
                    self._taken -= size
                    if self._taken <= 0.9 * self._most:
                        break

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    # -- SQLite --------------------------------------------------------------------------------------------------------

    def _rows(self, query: str, values: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
        with self._readable():
            return self._connection.execute(query, values).fetchall()

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0][0] or 0)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._readable(), transaction(self._connection):
            yield

    @contextmanager
    def _readable(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise InputError(
                    f"scores of the review, {self.path.name}: {error}; look for space and permissions of the page's "
                    "folder, or delete that file: it holds nothing that cannot be computed again"
                ) from error
