"""Marks are what people say of images, good, bad or unsure; one SQLite file keeps everything that was ever said.

An image is known by the SHA-256 of its file, so one that was moved or renamed keeps its marks, and one that was written
anew has none. Nothing is overwritten: a further mark of an image is a further row, with the next version, and the last
one counts. Whoever marks an image says which version they have seen. If somebody else has marked it otherwise
meanwhile, both marks are kept and the image is *disputed*: it counts as unsure until a person who has seen both marks
it again.

Beside the marks stands the log of what was done to models: thresholds that were set, updates that were taken or left.

SQLite keeps a log beside the file (WAL) and waits for the disk at each commit, so nothing that was answered is lost by
a kill, and several processes may work with the file at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Literal, NamedTuple, cast, get_args

from pickglass.app.database import transaction
from pickglass.errors import InputError, shortened

__all__ = ["AuditEntry", "Brought", "Mark", "MarkStore", "Word", "checked", "now"]

Word = Literal["good", "bad", "unsure"]

_APPLICATION = 0x7067_6D6B  # by which a store of marks is told from other SQLite files
_VERSION = 1  # of the tables
_TABLES = f"""
CREATE TABLE images (
  digest TEXT PRIMARY KEY, version INTEGER NOT NULL, counts INTEGER NOT NULL, disputed INTEGER NOT NULL
);
CREATE TABLE marks (
  number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL, version INTEGER NOT NULL, path BLOB NOT NULL,
  mark TEXT, type TEXT, mask TEXT, user TEXT, time TEXT NOT NULL, model_id TEXT, model_version INTEGER, score REAL,
  note TEXT, UNIQUE (digest, version)
);
CREATE TABLE masks (digest TEXT PRIMARY KEY, png BLOB NOT NULL);
CREATE TABLE audit (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, what TEXT NOT NULL, model TEXT NOT NULL, user TEXT,
  before TEXT, after TEXT, note TEXT, job TEXT UNIQUE
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_COLUMNS = "path, mark, type, mask, user, time, model_id, model_version, score, note"
_BUSY = 20.0  # seconds that a process waits for another one that is writing
_LONGEST = {"type": 60, "user": 100, "note": 2000, "model_id": 100, "path": 4096}  # characters
_HEX = frozenset("0123456789abcdef")
_NOT_IN_TYPES = frozenset('/\\:*?"<>|')  # a type is the name of a folder in the MVTec layout
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10))}  # of Windows


@dataclass(frozen=True)
class Mark:
    """A person has looked at an image and says what it is.

    Attributes:
        path: the image's file, as it was given where it was marked.
        digest: SHA-256 of the file, 64 hexadecimal digits; by it the image is known.
        mark: ``good``, ``bad`` or ``unsure``; None: an earlier mark is taken back.
        type: type of the defect; None for a good image, or where nobody said.
        mask: SHA-256 of the PNG file that marks the defect, see :meth:`MarkStore.mask`; None without one.
        user: who says so, None where nobody was named.
        time: when, UTC in ISO 8601.
        model_id, model_version: the model whose judgement was looked at, None without one.
        score: what it gave the image.
        note: anything else, in words.
        version: 1 for the first mark of the image, 2 for the next; 0 before it is stored.
        latest: number of marks that the image has.
        disputed: somebody marked it otherwise without having seen this mark.
    """

    path: str
    digest: str
    mark: Word | None
    type: str | None = None
    mask: str | None = None
    user: str | None = None
    time: str = ""
    model_id: str | None = None
    model_version: int | None = None
    score: float | None = None
    note: str | None = None
    version: int = 0
    latest: int = 0
    disputed: bool = False

    @property
    def counts_as(self) -> Word | None:
        """What the image counts as: its mark, or ``unsure`` where people disagree."""
        return "unsure" if self.disputed else self.mark


class Brought(NamedTuple):
    """Marks were brought from elsewhere.

    Attributes:
        added: how many were new.
        known: how many the store had already.
        disputed: paths of images that somebody has marked otherwise, and later, in the store.
    """

    added: int
    known: int
    disputed: list[str]


class AuditEntry(NamedTuple):
    """Something was done to a model.

    Attributes:
        number: place in the log, from 1 on.
        time: UTC in ISO 8601.
        what: ``thresholds``, ``update``, ``take``, ``leave`` or another word.
        model: name of the model's file.
        user: who did it, None where nobody was named.
        before, after: what is to be compared, such as id, version and thresholds; None where there is nothing.
        note: anything else, in words.
        job: the update that was decided on, None for anything else.
    """

    number: int
    time: str
    what: str
    model: str
    user: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    note: str | None
    job: str | None = None


def now() -> str:
    """Return the time as marks have it: UTC in ISO 8601, with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def checked(mark: Mark) -> Mark:
    """Return a mark as it may be stored: texts without blanks around them, the time in UTC.

    Raises:
        InputError: it contradicts itself, or a value is no such thing.
    """
    texts = {name: (getattr(mark, name) or "").strip() or None for name in ("type", "user", "note", "model_id")}
    mark = replace(mark, **cast("Any", texts), time=_utc(mark.time) if mark.time else now())
    where = shortened(mark.path)
    if mark.mark is not None and mark.mark not in get_args(Word):
        raise InputError(f"mark {shortened(mark.mark)} of {where}: expected good, bad or unsure")
    if len(mark.digest) != 64 or not set(mark.digest) <= _HEX:
        raise InputError(
            f"sha256 {shortened(mark.digest)} of {where}: expected the SHA-256 of the image's file, 64 digits 0-9a-f"
        )
    if not mark.path:
        raise InputError("a mark without a path: expected the file of the image that was marked")
    for name, most in _LONGEST.items():
        if len(getattr(mark, name) or "") > most:
            raise InputError(f"the {name} of a mark of {where} has more than {most} characters: shorten it")
    if mark.mark in ("good", None) and (mark.type is not None or mark.mask is not None):
        what = f"the type {mark.type!r}" if mark.type is not None else "a mask"
        raise InputError(
            f"{where} is marked {mark.mark or 'as nothing'} and has {what} of a defect: mark it bad or unsure, or "
            "leave that out"
        )
    if mark.type is not None:
        _check_type(mark.type, where)
    if mark.mask is not None and (len(mark.mask) != 64 or not set(mark.mask) <= _HEX):
        raise InputError(f"mask {shortened(mark.mask)} of {where}: expected the SHA-256 of a stored mask")
    if mark.score is not None and not math.isfinite(mark.score):
        raise InputError(f"score {mark.score!r} of {where}: expected a finite number, or nothing")
    if mark.model_version is not None and not 0 < mark.model_version < 2**31:
        raise InputError(f"model_version {mark.model_version!r} of {where}: expected a whole number from 1 on")
    return mark


def _check_type(name: str, where: str) -> None:
    odd = sorted({c for c in name if c in _NOT_IN_TYPES or not c.isprintable()})
    if odd or name.startswith(".") or name.endswith(".") or name.split(".")[0].lower() in _DEVICES:
        raise InputError(
            f"type of defect {shortened(name)} of {where}: expected words such as scratch, without /, \\ and other "
            "signs that no folder may have, for each type becomes a folder"
        )
    if name.lower() == "good":
        raise InputError(f"type of defect {name!r} of {where}: good is no type of defect: mark the image good")


def _utc(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        moment = moment.replace(tzinfo=moment.tzinfo or timezone.utc)
        return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError) as error:
        raise InputError(f"time {shortened(text)}: expected a time such as {now()}") from error


class MarkStore:
    """A file of marks; its methods may be called from any thread, and several processes may have it open.

    Args:
        path: SQLite file, made where it does not exist, unless ``create`` is false. ``":memory:"``: no file.

    Raises:
        InputError: another kind of file or version, or one that cannot be written. All methods raise it where the disk
            is full or the file is locked for too long.

    Example:
        >>> store = MarkStore(":memory:")
        >>> first = store.add(Mark("a.png", "0" * 64, "good", user="Ann"), seen=0)
        >>> second = store.add(Mark("a.png", "0" * 64, "bad", user="Bob"), seen=0)
        >>> second.disputed, [mark.user for mark in store.history("0" * 64)]
        (True, ['Ann', 'Bob'])
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = True) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not create and not os.path.isfile(path):
            raise InputError(f"{path}: no such file of marks")
        with self._readable():
            self._connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        with self._transaction():  # two processes may make the file at once
            if not self._is_ours():
                for statement in _TABLES.split(";"):
                    self._connection.execute(statement)
        self._connection.execute("PRAGMA synchronous = FULL")
        until = time.monotonic() + _BUSY
        while True:  # SQLite does not wait for others here by itself
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def _is_ours(self) -> bool:
        """Say whether the tables are there; False: the file is new.

        Raises:
            InputError: the file holds something else.
        """
        one = [self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if not self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            return False
        if one != [_APPLICATION, _VERSION]:
            raise InputError(f"{self.path}: no file of marks of this version of pickglass: name another file")
        return True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> MarkStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- marks ---------------------------------------------------------------------------------------------------------

    def add(self, mark: Mark, seen: int | None = None, png: bytes | None = None) -> Mark:
        """Store a mark, which counts from now on, and return it as it was stored.

        Args:
            mark: ``version`` and ``disputed`` are not read; without a time it is now.
            seen: number of marks of this image that the person has seen; None: all of them. If another mark has come
                since that says otherwise, both are kept and the image is disputed.
            png: the mask's PNG file, see :mod:`pickglass.app.marking.mask`; None: ``mark.mask``, if any, is stored.

        Raises:
            InputError: the mark contradicts itself, or its mask is not stored.
        """
        mark = checked(mark if png is None else replace(mark, mask=hashlib.sha256(png).hexdigest()))
        with self._transaction():
            before = self._latest(mark.digest)
            if seen is not None and not 0 <= seen <= before:
                raise InputError(
                    f"seen={seen!r}: {shortened(mark.path)} has {before} marks, expected a number up to it"
                )
            missed = [one.mark for one in self.history(mark.digest) if seen is not None and one.version > seen]
            while None in missed:  # what was taken back says nothing any more
                del missed[: missed.index(None) + 1]
            return self._write(mark, png, True, any(word != mark.mark for word in missed))

    def bring(self, marks: Iterable[tuple[Mark, bytes | None]]) -> Brought:
        """Store marks that were made elsewhere, each with its mask's PNG file if any; all of them or none.

        Marks that the store has already are left out. Where an image was marked later in the store, that later mark
        still counts. Where it says otherwise, or another person does, the image is disputed.

        Raises:
            InputError: a mark contradicts itself.
        """
        added = known = 0
        disputed: dict[str, str] = {}
        with self._transaction():
            for given, png in marks:
                mark = checked(given if png is None else replace(given, mask=hashlib.sha256(png).hexdigest()))
                if any(_same(one, mark) for one in self.history(mark.digest)):
                    known += 1
                    continue
                there = self.get(mark.digest)
                is_later = there is not None and there.time > mark.time
                others = there is not None and None not in (there.user, mark.user) and there.user != mark.user
                differs = there is not None and there.mark != mark.mark and (is_later or others)
                self._write(mark, png, not is_later, differs or (there is not None and there.disputed))
                added += 1
                if differs:
                    disputed[mark.digest] = mark.path
        return Brought(added, known, list(disputed.values()))

    def _write(self, mark: Mark, png: bytes | None, counts: bool, disputed: bool) -> Mark:
        run = self._connection.execute
        if png is not None:
            run("INSERT OR IGNORE INTO masks VALUES (?, ?)", (mark.mask, png))
        elif mark.mask is not None and not run("SELECT 1 FROM masks WHERE digest = ?", (mark.mask,)).fetchone():
            raise InputError(f"the mask {mark.mask[:16]} of {shortened(mark.path)} is not stored: give its PNG file")
        version = self._latest(mark.digest) + 1
        run(
            f"INSERT INTO marks (digest, version, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                mark.digest,
                version,
                os.fsencode(mark.path),
                *(getattr(mark, name) for name in _COLUMNS.split(", ")[1:]),
            ),
        )
        run(
            "INSERT INTO images VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET version = excluded.version, "
            f"disputed = excluded.disputed{', counts = excluded.counts' if counts else ''}",
            (mark.digest, version, version, disputed),
        )
        return replace(mark, version=version, latest=version, disputed=disputed)

    def _latest(self, digest: str) -> int:
        found = self._connection.execute("SELECT version FROM images WHERE digest = ?", (digest,)).fetchone()
        return 0 if found is None else int(found[0])

    def current(self, digests: Sequence[str] | None = None) -> list[Mark]:
        """Return the mark that counts of each image, in the order in which these marks came.

        Args:
            digests: names the images; None: all. Images without a mark, and those whose mark was taken back, are not
                among them, but for disputed ones.
        """
        marks = [mark for mark in self._marks("m.version = i.counts") if mark.counts_as is not None]
        if digests is None:
            return marks
        wanted = set(digests)
        return [mark for mark in marks if mark.digest in wanted]

    def get(self, digest: str) -> Mark | None:
        """Return the mark of an image that counts, also one that takes the earlier ones back; None: it has none."""
        found = self._marks("m.version = i.counts AND m.digest = ?", (digest,))
        return found[0] if found else None

    def history(self, digest: str) -> list[Mark]:
        """Return all marks of an image in the order of their versions."""
        return self._marks("m.digest = ?", (digest,))

    def everything(self) -> list[Mark]:
        """Return all marks of all images in the order in which they came."""
        return self._marks("1")

    def _marks(self, condition: str, values: Sequence[Any] = ()) -> list[Mark]:
        with self._readable():
            rows = self._connection.execute(
                f"SELECT {', '.join(f'm.{name}' for name in _COLUMNS.split(', '))}, m.digest, m.version, i.version, "
                "i.disputed FROM marks m JOIN images i ON m.digest = i.digest "
                f"WHERE {condition} ORDER BY m.number",
                values,
            ).fetchall()
        names = (*_COLUMNS.split(", "), "digest", "version", "latest", "disputed")
        found = (dict(zip(names, row, strict=True)) for row in rows)
        return [Mark(**{**one, "path": os.fsdecode(one["path"]), "disputed": bool(one["disputed"])}) for one in found]

    def mask(self, digest: str) -> bytes:
        """Return the PNG file of a mask: 0 or 255, as large as the image.

        Raises:
            InputError: there is none with this digest.
        """
        with self._readable():
            found = self._connection.execute("SELECT png FROM masks WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            raise InputError(f"mask {shortened(digest)}: expected the digest of a mask that is stored")
        return bytes(found[0])

    # -- the log -------------------------------------------------------------------------------------------------------

    def log(
        self,
        what: str,
        model: str,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        user: str | None = None,
        note: str | None = None,
        job: str | None = None,
    ) -> AuditEntry:
        """Write what was done to a model, see :class:`AuditEntry`, and return the entry.

        Raises:
            InputError: somebody has decided on this job already.
        """
        texts = [None if value is None else json.dumps(dict(value)) for value in (before, after)]
        with self._transaction():
            decided = self.audit(job) if job is not None else []
            if decided:
                by = f" by {decided[0].user}" if decided[0].user else ""
                raise InputError(
                    f"job {job}: somebody has decided on it already: {decided[0].what}{by}, {decided[0].time}"
                )
            cursor = self._connection.execute(
                "INSERT INTO audit (time, what, model, user, before, after, note, job) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (now(), what, model, user, *texts, note, job),
            )
            return self._entries("number = ?", cursor.lastrowid)[0]

    def audit(self, job: str | None = None) -> list[AuditEntry]:
        """Return the log, first things first; of one job alone, if it is given."""
        return self._entries("1") if job is None else self._entries("job = ?", job)

    def _entries(self, condition: str, *values: Any) -> list[AuditEntry]:
        with self._readable():
            rows = self._connection.execute(
                "SELECT number, time, what, model, user, before, after, note, job FROM audit "
                f"WHERE {condition} ORDER BY number",
                values,
            ).fetchall()
        entries = [AuditEntry(*row) for row in rows]
        return [
            entry._replace(
                before=None if entry.before is None else json.loads(str(entry.before)),
                after=None if entry.after is None else json.loads(str(entry.after)),
            )
            for entry in entries
        ]

    # -- SQLite --------------------------------------------------------------------------------------------------------

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
                why = (
                    f"another process has written to it for more than {_BUSY:.0f} s: try again"
                    if "locked" in str(error)
                    else f"{error}: look for space on the disk and for permissions, or name another file"
                )
                raise InputError(f"marks {self.path}: {why}") from error


def _same(one: Mark, other: Mark) -> bool:
    names = ("mark", "type", "mask", "user", "time", "note")
    return all(getattr(one, name) == getattr(other, name) for name in names)
