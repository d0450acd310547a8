"""A model learns from marks in a process of its own, and people decide afterwards whether to take what came of it.

Each update is a *job* with a folder: what was asked (``request.json``), the marks as they were (``marks.csv``), how far
it is (``progress.jsonl``), what came of it (``result.json``) and the *candidate*, a model file. The model itself is
touched by :meth:`Teaching.take` alone, which replaces it whole or not at all.

What survives a kill at any moment follows from the order of the steps. The process of a job holds a lock on a file of
its folder, so that everybody sees when it is gone; without a result it has changed nothing. A decision is one row of
the log, written once the new file lies complete beside the model and before it takes the model's name; a start that
finds the decision and the candidate goes on from there.

An exported model cannot learn: its graph is fixed. The model file that it was exported of has to lie beside it, under
the same name. It learns, what came of it is exported as the served file was, and both are replaced.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pickglass.app.marking.images import locate
from pickglass.app.marking.store import Mark, MarkStore
from pickglass.app.marking.table import csv_of
from pickglass.data.files import alone, remove_leftovers, written_whole
from pickglass.errors import DataError, InputError, MissingExtra, UnknownName
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.export_file import read_export_header
from pickglass.runtime.model_header import read_model_header

__all__ = ["Job", "JobState", "Teaching", "lab_model_of", "locked"]

JobState = Literal["running", "ready", "failed", "ended", "taking", "taken", "left"]
"""``ready``: it waits for a decision. ``ended``: its process was killed. ``taking``: decided, and not yet complete."""

_AT_ONCE = 1 << 22  # bytes
_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Job:
    """An update of a model by marks.

    Attributes:
        id: its name, which begins with the time.
        state: see :data:`JobState`.
        model: the served model's file.
        user: who asked for it.
        started: when, UTC in ISO 8601.
        stage, done, total: how far it is.
        error: why it failed; None otherwise.
        result: what came of it: ``update`` as ``pickglass update --json`` prints it, ``images`` with the judgement of
            each marked image before and after, ``before`` and ``after`` with id, version and thresholds; None until
            then.
        decided: who took or left it, and when; None until then.
    """

    id: str
    state: JobState
    model: str
    user: str | None
    started: str
    stage: str | None = None
    done: int = 0
    total: int = 0
    error: str | None = None
    result: dict[str, Any] | None = None
    decided: dict[str, Any] | None = None


def lab_model_of(served: Path) -> Path:
    """Return the model file that learns where a served model is to be taught.

    Raises:
        InputError: an exported model without the model file that it was exported of, or one in int8.
        ModelFileError: one of both cannot be read.
    """
    if served.suffix != ".onnx":
        read_model_header(served)
        return served
    header = read_export_header(served)
    lab = served.with_suffix(".safetensors")
    how = f"'pickglass update {lab.name} --marks FILE.csv' where that is, and 'pickglass export' again"
    if header.get("precision") == "int8":
        raise InputError(
            f"{served.name} is exported in int8, which takes the ranges of its numbers from good images of the fit, "
            f"and these are not here: {how}"
        )
    if not lab.is_file():
        raise InputError(
            f"{served.name} is an exported model, which cannot learn: put the model file that it was exported of "
            f"beside it, as {lab.name}, or run {how}"
        )
    known = read_model_header(lab).get("id")
    if known != header["id"]:
        raise InputError(
            f"{lab.name} is not the model file that {served.name} was exported of (id {known}, not {header['id']}): "
            f"put that one beside it, or export {lab.name} again"
        )
    return lab


class Teaching:
    """The updates of a server's models.

    Args:
        folder: where jobs are kept; made where it does not exist.
        store: marks, and the log.
        compute: where to compute.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, store: MarkStore, compute: ComputeOptions | None = None) -> None:
        self.folder, self.store = folder, store
        self._compute = compute or ComputeOptions()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made into a folder ({error.strerror}): name another one") from error
        for job in self.jobs():
            if job.state == "taking":
                self._go_on(job.id)
            elif job.state == "ended":
                _tidy(folder / job.id)

    # -- asking --------------------------------------------------------------------------------------------------------

    def start(
        self,
        served: Path,
        user: str | None = None,
        leave_out: Sequence[str] = (),
        marks: Sequence[Mark] | None = None,
    ) -> Job:
        """Begin to update a model with the marked images, and return at once.

        Args:
            served: model file, or an exported one beside the model file that it was exported of.
            user: who asks for it.
            leave_out: digests of marked images that are not used.
            marks: with paths at which the images are now; None: those of the store, at the places where they were
                marked.

        Raises:
            InputError: another update of this model is running, no image is marked good, or the model cannot learn.
            DataError: images are not there any more, or others than they were; all of them are named.
            MissingExtra: the lab is not installed.
        """
        if importlib.util.find_spec("torch") is None:
            raise MissingExtra(
                'Teaching a model needs torch, which is not installed: pip install "pickglass[train]", or save the '
                "marks and run 'pickglass update MODEL --marks FILE.csv' where it is"
            )
        lab = lab_model_of(served)
        used = [mark for mark in (self._found(leave_out) if marks is None else marks) if mark.digest not in leave_out]
        if not any(mark.counts_as == "good" for mark in used):
            raise InputError(
                f"none of {len(used)} marked images is marked good: an update learns good images, so mark some first"
            )
        with self._lock:
            if busy := [job.id for job in self.jobs(served) if job.state == "running"]:
                raise InputError(f"{served.name} is being updated already (job {busy[0]}): wait for it, or stop it")
            time = datetime.now(timezone.utc)
            name = f"{time:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
            folder = self.folder / name
            folder.mkdir()
            request = {
                "served": str(served.absolute()),
                "lab": str(lab.absolute()),
                "sha256": {str(path.absolute()): _sha256(path) for path in {served, lab}},
                "user": user,
                "time": time.isoformat(timespec="milliseconds"),
                "compute": asdict(self._compute),
            }
            table = csv_of([replace(mark, mask=None) for mark in used])
            _write(folder / "marks.csv", table.encode("utf-8", "backslashreplace"))
            _write(folder / "request.json", json.dumps(request).encode())
            with (folder / "progress.jsonl").open("wb") as out, (folder / "errors.txt").open("wb") as errors:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "pickglass.app.marking.worker", str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=errors,
                    start_new_session=True,  # Ctrl+C in the terminal is for the server, which ends it
                )
            return self.get(name)

    def _found(self, leave_out: Sequence[str]) -> list[Mark]:
        marks = [mark for mark in self.store.current() if mark.digest not in leave_out]
        located = locate(marks)
        if located.failed:
            raise DataError(f"{len(located.failed)} of {len(marks)} marked images are not there:", located.failed)
        return [replace(mark, path=os.path.abspath(located.paths[mark.digest])) for mark in marks]

    # -- looking -------------------------------------------------------------------------------------------------------

    def jobs(self, served: Path | None = None) -> Iterator[Job]:
        """Yield all jobs, or those of a model, the last one first."""
        names = sorted((path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
        for name in names:
            if (self.folder / name / "request.json").is_file():
                job = self.get(name)
                if served is None or job.model == str(served.absolute()):
                    yield job

    def get(self, name: str) -> Job:
        """Return a job as it is now.

        Raises:
            UnknownName: there is none of this name.
        """
        folder = self.folder / name
        if not _NAME.fullmatch(name) or not (folder / "request.json").is_file():
            known = [path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
            raise UnknownName("job", name, known)
        is_alive = self._is_alive(name)  # before the result is looked for, which it writes at its end
        request = json.loads((folder / "request.json").read_text())
        outcome = _read(folder / "result.json")
        progress = _last_line(folder / "progress.jsonl")
        decided = self.store.audit(name)
        error = None if outcome is None else outcome.get("error")
        state: JobState
        if decided:
            state = "left" if decided[0].what == "leave" else "taking" if _candidates(folder) else "taken"
        elif outcome is not None:
            state = "failed" if error else "ready"
        else:
            state = "running" if is_alive else "ended"
        if state == "ended":
            error = "the update was ended before it was done; the model is as it was"
        return Job(
            name,
            state,
            request["served"],
            request["user"],
            request["time"],
            progress.get("stage"),
            progress.get("done", 0),
            progress.get("total", 0),
            error,
            outcome if outcome is not None and not error else None,
            {"what": decided[0].what, "user": decided[0].user, "time": decided[0].time} if decided else None,
        )

    def _is_alive(self, name: str) -> bool:
        process = self._processes.get(name)
        if process is not None:
            if process.poll() is None:
                return True
            del self._processes[name]
        return locked(self.folder / name / "alive")

    # -- deciding ------------------------------------------------------------------------------------------------------

    def take(self, name: str, user: str | None = None, lost_is_known: bool = False) -> Job:
        """Replace a model by what an update made of it, whole or not at all, and write it into the log.

        Args:
            name: the job.
            user: who decides.
            lost_is_known: the user has seen that known bad images are missed from now on.

        Raises:
            InputError: the job is not ready or decided on, the model has changed since it began, known bad images are
                lost and nobody has looked at them, or the model cannot be written.
        """
        with self._lock:
            job = self._ready(name)
            result: Any = job.result
            lost = result["update"]["bad_lost"]
            if lost and not lost_is_known:
                raise InputError(
                    f"{len(lost)} known bad images that the model finds now would be missed: look at them first, and "
                    "take the update all the same only if they may be missed"
                )
            request = json.loads((self.folder / name / "request.json").read_text())
            with ExitStack() as places:
                for path, digest in request["sha256"].items():
                    places.enter_context(alone(Path(path)))
                    if not os.path.isfile(path) or _sha256(Path(path)) != digest:
                        raise InputError(
                            f"{Path(path).name} was changed after the update began, such as by another threshold: "
                            "start the update again, so that nothing gets lost"
                        )
                for candidate, target in self._pairs(name, request):
                    shutil.copyfile(candidate, places.enter_context(written_whole(target)))
                file_name = Path(request["served"]).name
                self.store.log("take", file_name, result["before"], result["after"], user, _note(result), name)
            _tidy(self.folder / name)
            return self.get(name)

    def leave(self, name: str, user: str | None = None) -> Job:
        """Leave a model as it is, and write that into the log; the candidate is deleted.

        Raises:
            InputError: the job is not ready, or decided on.
        """
        with self._lock:
            job = self._ready(name)
            result: Any = job.result
            self.store.log("leave", Path(job.model).name, result["before"], result["after"], user, _note(result), name)
            _tidy(self.folder / name)
            return self.get(name)

    def stop(self, name: str) -> Job:
        """End a running job of this server; the model stays as it is."""
        with self._lock:
            process = self._processes.get(name)
            if process is None:
                job = self.get(name)
                if job.state == "running":
                    raise InputError(f"job {name} was started by another server, which has to stop it")
                return job
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            job = self.get(name)
            if job.state == "ended":
                _tidy(self.folder / name)
            return job

    def close(self) -> None:
        """End the jobs that run."""
        for name in list(self._processes):
            self.stop(name)

    def _ready(self, name: str) -> Job:
        job = self.get(name)
        if job.state == "taking":
            self._go_on(name)
            job = self.get(name)
        if job.state != "ready":
            what = {"running": "is still running", "taken": "was taken already", "left": "was left already"}
            raise InputError(f"job {name} {what.get(job.state, 'has no result')}: there is nothing to decide on")
        return job

    def _go_on(self, name: str) -> None:
        """Finish a decision on which a process was killed: a file that is still the one from before is replaced."""
        request = json.loads((self.folder / name / "request.json").read_text())
        for candidate, target in self._pairs(name, request):
            if os.path.isfile(target) and _sha256(target) == request["sha256"][str(target)]:
                with written_whole(target) as temporary:
                    shutil.copyfile(candidate, temporary)
        _tidy(self.folder / name)

    def _pairs(self, name: str, request: dict[str, Any]) -> list[tuple[Path, Path]]:
        targets = {Path(request[which]).suffix: Path(request[which]) for which in ("lab", "served")}
        return [(candidate, targets[candidate.suffix]) for candidate in _candidates(self.folder / name)]


def locked(path: Path) -> bool:
    """Say whether a process that lives holds the lock of a job; a kill gives it back.

    The lock is SQLite's, for it works alike on all systems.
    """
    if not path.exists():
        return False
    # others who look hold it for a moment, too
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
    return False


def _candidates(folder: Path) -> list[Path]:
    return [path for path in (folder / "candidate.safetensors", folder / "candidate.onnx") if path.exists()]


def _tidy(folder: Path) -> None:
    """Delete what an update made and nobody needs any more: the candidate, and what a killed process had begun."""
    for path in (*folder.glob("candidate.*"), *folder.glob("base.safetensors")):
        path.unlink()
    remove_leftovers(folder)


def _note(result: dict[str, Any]) -> str:
    update = result["update"]
    lost = f", {len(update['bad_lost'])} known bad ones lost" if update["bad_lost"] else ""
    return f"{update['learned']} images learned{lost}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _write(target: Path, content: bytes) -> None:
    with written_whole(target) as temporary:
        temporary.write_bytes(content)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def _last_line(path: Path) -> dict[str, Any]:
    """Return the last complete line of a file of JSON lines; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().rpartition(b"\n")[0].splitlines()
    except FileNotFoundError:
        return {}
    try:
        return dict(json.loads(lines[-1])) if lines else {}
    except ValueError:  # something else was printed
        return {}
