"""The loop of a line: new images of a folder are judged once, in order, and outputs are told of each.

One thread does all that has an order: it lists the folder, judges, writes the journal, moves files and tells files.
Other threads read images ahead, send to servers, take frames from a camera and load a new model. What is promised, and
what a kill at each moment leaves, is told in :mod:`pickglass.app.watch.journal`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from pickglass.app.predict import judged_image
from pickglass.app.results import ImageResult, WatchHeartbeat, WatchResult
from pickglass.app.watch.arrivals import Arrival, Arrivals
from pickglass.app.watch.camera import Camera
from pickglass.app.watch.journal import Entry, Journal, Place
from pickglass.app.watch.model import WatchedModel
from pickglass.app.watch.outputs import Output, OutputFile, Outputs, OutputStream
from pickglass.app.watch.senders import Mqtt, Post, Sender, Webhook
from pickglass.app.watch.sorting import identity_at, move, moved_before
from pickglass.data import Row, read_image
from pickglass.data.files import missing, sync_folder, written_whole
from pickglass.data.images.decoder import Array
from pickglass.errors import ImageError, InputError
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions

__all__ = ["WatchRequest", "watch"]

_FOLDERS = ("good", "bad", "unsure", "failed", "skipped")
_GROUP_S = 0.25  # seconds of judging between two commits
_GROUP_MOST = 64  # images between two commits
_READ_AHEAD = 512 * 2**20  # bytes of decoded images
_RETRY_MOVES = 30.0  # seconds
_CRASHES = 3  # images in a row for which the model raised what it never should
_PATIENCE = 5.0  # seconds at the end, in which a server takes a message or is left behind
_REPEAT = 60.0  # seconds until an error that was over is said again


@dataclass(frozen=True)
class WatchRequest:
    """What to watch, and who is told.

    Attributes:
        model: model file; it is loaded again when it is replaced.
        folder: images that arrive here are judged; its sub-folders are not looked at.
        journal: SQLite file; None: ``FOLDER.watch.sqlite`` beside the folder.
        sort: folder in which each verdict has a folder to which judged files are moved (``good``, ``bad``, ``unsure``,
            ``failed``, ``skipped``); None: files stay where they are.
        jsonl: file that gets a JSON line for each image.
        csv: file that gets a row for each image, with the columns of ``results.csv``.
        webhook: http or https address that gets each image as a POST of JSON.
        mqtt: ``host:port/topic`` of a broker that gets each image.
        heartbeat: seconds between two heartbeats, which are written to a file beside the journal and sent to the
            webhook and the broker; None: none.
        when_late: ``"wait"``: every image is judged, however late; ``"skip"``: of more than ``queue`` images that wait
            the oldest are skipped, and written down as skipped.
        queue: number of images that may wait.
        settle: seconds for which size and time of a file must stay as they are before it is read; None: 0.5, or 0 with
            a camera, whose frames arrive whole.
        give_up: seconds after its last change at which a file that still cannot be read counts as failed.
        camera: number of a camera, or its address, whose frames are stored in the folder; None: no camera.
        every: seconds between two frames at least.
        once: end when no new image is left, instead of waiting for more.
        compute: where to compute.
    """

    model: Path
    folder: Path
    journal: Path | None = None
    sort: Path | None = None
    jsonl: Path | None = None
    csv: Path | None = None
    webhook: str | None = None
    mqtt: str | None = None
    heartbeat: float | None = None
    when_late: Literal["wait", "skip"] = "wait"
    queue: int = 1000
    settle: float | None = None
    give_up: float = 10.0
    camera: str | None = None
    every: float = 0.0
    once: bool = False
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    def checked(self) -> WatchRequest:
        """Return the request itself, if it can be carried out.

        Raises:
            InputError: saying what is wrong with it.
        """
        if not self.folder.is_dir():
            raise InputError(f"FOLDER {str(self.folder)!r}: {missing(self.folder)}")
        if self.queue < 1:
            raise InputError(f"queue={self.queue!r}: expected a number of images from 1 on")
        for name in ("settle", "give_up", "every", "heartbeat"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{name}={value!r}: expected seconds from 0 on")
        if self.jsonl is not None and self.csv is not None and self.jsonl.resolve() == self.csv.resolve():
            raise InputError(f"jsonl and csv are the same file, {str(self.csv)!r}: name two")
        if self.heartbeat == 0:
            raise InputError("heartbeat=0: expected seconds above 0 between two heartbeats")
        if self.once and self.camera is not None and not Path(self.camera).is_file():
            raise InputError("--once ends when no image is left, and a camera always has one: leave one of both out")
        if self.sort is not None:
            if self.folder.resolve() in [self.sort.resolve() / name for name in _FOLDERS]:
                raise InputError(
                    f"--sort {str(self.sort)!r} would move files into the folder that is watched: name another folder"
                )
            try:
                self.sort.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"--sort {str(self.sort)!r}: cannot be made into a folder ({error.strerror})"
                ) from error
        return self


class _Judged(NamedTuple):
    """An image that was read is pixels, or the reason why there are none."""

    arrival: Arrival
    pixels: Array | None
    error: str | None


def watch(
    request: WatchRequest,
    *,
    stop: threading.Event | None = None,
    lines: BinaryIO | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> WatchResult:
    """Judge the images of a folder as they arrive, until stopped.

    Args:
        request: what to watch.
        stop: once it is set, the loop ends after the images at hand.
        lines: open binary stream that gets a JSON line for each image, told at least once.
        show: called with each image once it is in the journal, for people to see.
        say: called with sentences about the line: errors, a replaced model.

    Raises:
        InputError: something in the request cannot be used, or the journal can no longer be written.
        ModelFileError: not a model.
    """
    line = _Line(request.checked(), stop or threading.Event(), lines, show, say or (lambda sentence: None))
    try:
        return line.run()
    except BrokenPipeError as error:
        raise InputError(
            "whoever read the results from stdout is gone: the journal has them, and the next start goes on from there"
        ) from error
    finally:
        line.close()


class _Line:
    def __init__(
        self,
        request: WatchRequest,
        stop: threading.Event,
        lines: BinaryIO | None,
        show: Callable[[dict[str, Any]], None] | None,
        say: Callable[[str], None],
    ) -> None:
        self.request, self.stop, self.show, self.say = request, stop, show, say
        self.began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.last_image: str | None = None
        self.last_error: str | None = None
        self.said: dict[str, float] = {}  # errors, and when they were there last
        self.move_error: str | None = None
        self.judged_at = self.began  # the last group
        self.next_moves = self.began
        self.crashes = 0
        self.seconds_each = _GROUP_S  # of judging; the first group is a single image
        self.largest = 0  # bytes of a decoded image
        self.camera: Camera | None = None
        self.senders: list[Sender] = []
        folder = request.folder
        posts: list[Post] = []  # an address that cannot be used is said before anything is made
        if request.webhook is not None:
            posts.append(Webhook(request.webhook))
        if request.mqtt is not None:
            posts.append(Mqtt(request.mqtt))
        path = request.journal or folder.resolve().parent / f"{folder.resolve().name}.watch.sqlite"
        self.journal = Journal(path, folder)
        self.reader = ThreadPoolExecutor(request.compute.workers, thread_name_prefix="pickglass-read")
        self.reading: deque[tuple[Arrival, Future[_Judged | None]]] = deque()
        try:
            if request.camera is not None:
                self.camera = Camera(request.camera, folder, self.has_room, request.every)
            files = {"jsonl": request.jsonl, "csv": request.csv}
            outputs: list[Output] = [
                OutputFile(file, kind, self.journal, say) for kind, file in files.items() if file is not None
            ]
            if lines is not None:
                outputs.append(OutputStream(lines))
            self.model = WatchedModel(request.model, request.compute, request.sort is not None)
            self.outputs = Outputs(self.journal, outputs)
            self.senders = [Sender(self.journal, post) for post in posts]
            settle = request.settle if request.settle is not None else 0.0 if request.camera is not None else 0.5
            self.arrivals = Arrivals(folder, self.journal.knows, settle, request.give_up)
        except BaseException:
            self.journal.close()
            raise
        self.beat_file = path.with_name(f"{path.name.removesuffix('.sqlite')}.heartbeat.json")
        self.next_beat = self.began
        self.beaten = 0  # images up to the last heartbeat
        self.beaten_at = self.began

    def close(self) -> None:
        """Stop all threads and give the journal back."""
        if self.camera is not None and self.camera.is_alive():
            self.camera.stop()
        for sender in self.senders:
            if sender.is_alive():
                sender.finish(0.0, self.stop)
        self.reader.shutdown(wait=False, cancel_futures=True)
        self.model.close()
        self.journal.close()

    def run(self) -> WatchResult:
        """Take up what the last process left, then judge until stopped."""
        calibration = self.model.now.calibration
        if calibration is not None and calibration.stale:
            self.say(
                "the settings were changed after the threshold was set: run 'pickglass threshold MODEL DATA' again"
            )
        self.sort(resumed=True)
        self.outputs.check()
        for sender in self.senders:
            sender.start()
        if self.camera is not None:
            self.camera.start()
        self.tell()
        while not self.stop.is_set():
            self.arrivals.scan()
            news = self.model.renew()
            if news is not None:
                self.say(news)
            if self.request.when_late == "skip":
                self.skip()
            self.read_ahead()
            judged = self.judge(self.next_group())
            if time.monotonic() >= self.next_moves:
                self.retry_moves()
            self.note_errors()
            if self.request.heartbeat is not None and time.monotonic() >= self.next_beat:
                self.beat()
            if not judged:
                if self.is_done():
                    break
                self.outputs.tell()  # those that could not be told before
                self.stop.wait(0.0 if self.reading else min(0.05, self.arrivals.wait or 0.05))
        return self.end()

    def end(self) -> WatchResult:
        """End the threads, and return the counts."""
        if self.camera is not None:
            self.camera.stop()
        for sender in self.senders:
            sender.finish(_PATIENCE, self.stop)
        self.outputs.tell()
        self.note_errors()
        if self.request.heartbeat is not None:
            self.beat()
        return {
            "kind": "end",
            "journal": str(self.journal.path),
            "judged": self.counts["judged"],
            "verdicts": dict(self.verdicts),
            "failed": self.counts["failed"],
            "skipped": self.counts["skipped"],
            "last": self.journal.last(),
            "seconds": time.monotonic() - self.began,
            "behind": self.behind(),
            "refused": self.refused(),
            "errors": self.errors(),
        }

    def is_done(self) -> bool:
        """Say whether nothing more will come: with ``once`` the folder has no new image, or a video file is over."""
        over = self.began if self.request.once else None
        if self.camera is not None:
            over = self.camera.ended
        if over is None:
            return False
        if self.arrivals.error is not None:
            raise InputError(self.arrivals.error)
        return self.arrivals.is_empty(max(over, self.judged_at))

    # -- reading and judging -------------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Say whether the camera may take a frame; it is asked from the camera's thread."""
        return self.request.when_late == "skip" or len(self.arrivals) + len(self.reading) < self.request.queue

    def group_size(self) -> int:
        """Return how many images are judged between two commits: about a quarter of a second's."""
        return max(1, min(_GROUP_MOST, round(_GROUP_S / self.seconds_each)))

    def read_ahead(self) -> None:
        """Have images read while others are judged."""
        most = 2 * self.group_size() + self.request.compute.workers
        most = min(most, max(1, _READ_AHEAD // max(1, self.largest)))
        while len(self.reading) < most:
            arrival = self.arrivals.take()
            if arrival is None:
                return
            self.reading.append((arrival, self.reader.submit(self.read, arrival)))

    def read(self, arrival: Arrival) -> _Judged | None:
        """Read an image to its end; None: the file is another one than it was, or gone."""
        path = self.request.folder / arrival.file.name
        pixels, error = None, None
        try:
            pixels = read_image(path, self.request.compute.max_pixels)
        except ImageError as problem:
            error = problem.reason
        try:
            if identity_at(self.request.folder, arrival.file.name) != arrival.file:
                return None
        except OSError as problem:
            pixels, error = None, f"cannot be looked at ({problem.strerror or problem})"
        return _Judged(arrival, pixels, error)

    def next_group(self) -> list[_Judged]:
        """Return the next images that were read, in order; none, where the first of them still is being read."""
        group: list[_Judged] = []
        while self.reading and len(group) < self.group_size():
            arrival, future = self.reading[0]
            if not future.done():
                if group:
                    break
                wait([future], timeout=0.2)
                if not future.done():
                    break
            self.reading.popleft()
            read = future.result()
            if read is None:
                self.arrivals.changed(arrival)
                if not self.arrivals.has(arrival.file.name):
                    self.say(f"{self.path(arrival)} went away before it was judged")
            elif read.pixels is not None or self.arrivals.unreadable(arrival):
                group.append(read)
                self.largest = max(self.largest, 0 if read.pixels is None else read.pixels.nbytes)
        return group

    def judge(self, group: Sequence[_Judged]) -> bool:
        """Judge some images, and do everything that follows for them; False: there are none."""
        if not group:
            return False
        began = time.monotonic()
        sound = [read for read in group if read.pixels is not None]
        results = iter(self.results([Row(self.path(read.arrival), pixels=read.pixels) for read in sound]))
        entries = []
        for read in group:
            result = self.failure(read.arrival, str(read.error)) if read.pixels is None else next(results)
            entries.append(self.entry(read.arrival, result))
        self.seconds_each = max(1e-6, (time.monotonic() - began) / len(group))
        self.enter(entries, [read.arrival for read in group])
        self.judged_at = time.monotonic()
        return True

    def results(self, rows: list[Row]) -> list[dict[str, Any]]:
        """Judge rows; an image at which the model itself breaks becomes a failure, and leaves the others alone."""
        model, compute = self.model.now, self.request.compute
        if not rows:
            return []
        try:
            found = model.judge(rows, compute)
        except Exception as error:
            if len(rows) > 1:
                return [result for row in rows for result in self.results([row])]
            self.crashes += 1
            if self.crashes >= _CRASHES:  # it is not the images
                raise
            return [self.missed("failed", rows[0].path, f"the model raised {type(error).__name__}: {error}")]
        self.crashes = 0
        calibration, about = model.calibration, self.about()
        results = []
        for row, item in zip(rows, found, strict=True):
            if isinstance(item, Found):
                judged = judged_image(item, item.full_map(), calibration, _now())
                results.append({"state": "judged", **judged, "error": None, **about})
            else:
                results.append(self.missed("failed", row.path, item.error))
        return results

    def failure(self, arrival: Arrival, error: str) -> dict[str, Any]:
        """Return the result of an image that could not be read for too long."""
        return self.missed("failed", self.path(arrival), f"{error} (waited for {self.request.give_up:g} s)")

    def missed(self, state: str, path: str, error: str) -> dict[str, Any]:
        """Return the result of an image without a verdict."""
        return {
            **dict.fromkeys(ImageResult.__annotations__),
            "state": state,
            "path": path,
            "defects": [],
            "time": _now(),
            "error": " ".join(error.split()),
            **self.about(),
        }

    def about(self) -> dict[str, Any]:
        """Return which model judges, and by which threshold."""
        model = self.model.now
        unsure = None if model.calibration is None else model.calibration.unsure_threshold
        about = {"threshold": model.threshold, "unsure_threshold": unsure}
        return {**about, "model_id": model.id, "model_version": model.version}

    def skip(self) -> None:
        """Skip the oldest of the images that wait, where they are too many."""
        late = len(self.arrivals) - self.request.queue
        if late <= 0:
            return
        arrivals = [arrival for arrival in (self.arrivals.take() for _ in range(late)) if arrival is not None]
        why = f"skipped: more than {self.request.queue} newer images were waiting (--queue)"
        entries = [self.entry(one, self.missed("skipped", self.path(one), why)) for one in arrivals]
        self.enter(entries, arrivals)

    def path(self, arrival: Arrival) -> str:
        """Return where an image arrived."""
        return str(self.request.folder / arrival.file.name)

    def entry(self, arrival: Arrival, result: dict[str, Any]) -> Entry:
        """Return what the journal gets of an image, with the folder to which its file goes."""
        folder = None
        if self.request.sort is not None:
            folder = str(result["verdict"] if result["state"] == "judged" else result["state"])
        return Entry(arrival.file, result, folder)

    # -- journal, files, outputs: in this order ------------------------------------------------------------------------

    def enter(self, entries: Sequence[Entry], arrivals: Sequence[Arrival]) -> None:
        """Write results into the journal, move the files, and tell the outputs."""
        self.journal.record(entries)
        for arrival, entry in zip(arrivals, entries, strict=True):
            self.arrivals.done(arrival)
            self.counts[entry.result["state"]] += 1
            if entry.result["verdict"] is not None:
                self.verdicts[entry.result["verdict"]] += 1
            self.last_image = entry.result["time"]
            if self.show is not None:
                self.show(dict(entry.result))
        self.sort()
        self.tell()

    def sort(self, place: Literal["to sort", "stuck"] = "to sort", *, resumed: bool = False) -> None:
        """Move files to the folders of their verdicts, and write where they are.

        Args:
            place: those that were judged just now, or those that could not be moved before.
            resumed: whether another process may have moved them already, and was killed before it wrote so.
        """
        if self.request.sort is None and not resumed:
            return
        resumed = resumed or place == "stuck"
        while items := self.journal.unsorted(place):
            folders = dict.fromkeys(Path(self.request.sort or "") / item.folder for item in items)
            outcomes: dict[int, tuple[Place, str | None]] = {}
            for item in items:
                if self.request.sort is None:
                    outcomes[item.number] = ("here", None)
                    continue
                source, folder = self.request.folder / item.file.name, self.request.sort / item.folder
                try:
                    target = moved_before(source, item, folder) if resumed else None
                    if target is None:
                        target = move(source, item, folder)
                    elif identity_at(source.parent, source.name) == item.file:
                        source.unlink()
                    outcomes[item.number] = ("sorted", str(target))
                except FileNotFoundError:
                    outcomes[item.number] = ("gone", None)
                    self.say(f"{source} was judged, and went away before it could be moved to {folder}")
                    continue
                except OSError as error:
                    outcomes[item.number] = ("stuck", None)
                    self.move_error = f"{source} cannot be moved to {folder} ({error.strerror or error})"
                    continue
                self.arrivals.sorted_away(item.file.name)
            if self.request.sort is not None:
                for folder in (*folders, self.request.folder):
                    try:
                        sync_folder(folder)
                    except OSError as error:
                        self.move_error = f"{folder}: {error.strerror or error}"
            self.journal.moved(outcomes)
            if place == "stuck":
                return

    def retry_moves(self) -> None:
        """Try again to move files that could not be moved."""
        self.next_moves = time.monotonic() + _RETRY_MOVES
        self.move_error = None
        self.sort("stuck")

    def tell(self) -> None:
        """Tell files now, and wake the senders."""
        self.outputs.tell()
        for sender in self.senders:
            sender.tell()

    # -- errors and heartbeats -----------------------------------------------------------------------------------------

    def errors(self) -> list[str]:
        """List what is wrong now."""
        found = [self.arrivals.error, self.model.error, self.move_error, *self.outputs.errors.values()]
        found += [sender.error for sender in self.senders]
        found += [self.camera.error] if self.camera is not None else []
        return [error for error in found if error is not None]

    def note_errors(self) -> None:
        """Say each error once, and again if it comes back after a while."""
        now = time.monotonic()
        for error in self.errors():
            if error not in self.said:
                self.last_error = f"{_now()} {error}"
                self.say(error)
            self.said[error] = now
        self.said = {error: last for error, last in self.said.items() if now - last < _REPEAT}

    def behind(self) -> dict[str, int]:
        """Count, for each output, the images that it is still to be told of."""
        return {**self.outputs.behind(), **{sender.post.name: sender.behind() for sender in self.senders}}

    def refused(self) -> dict[str, int]:
        """Count, for each server, the messages that it did not take."""
        return {sender.post.name: self.journal.refusals(sender.post.name) for sender in self.senders}

    def beat(self) -> None:
        """Write and send a heartbeat. The loop itself does, so that none comes where the loop stands."""
        now, done = time.monotonic(), self.counts.total()
        queue = len(self.arrivals) + len(self.reading)
        heartbeat: WatchHeartbeat = {
            "kind": "heartbeat",
            "time": _now(),
            "uptime_s": now - self.began,
            "judged": self.counts["judged"],
            "verdicts": dict(self.verdicts),
            "failed": self.counts["failed"],
            "skipped": self.counts["skipped"],
            "queue": queue,
            "waited_for": self.arrivals.waited_for,
            "ignored": self.arrivals.ignored,
            "late": queue > self.request.queue,
            "images_per_s": (done - self.beaten) / max(1e-9, now - self.beaten_at),
            "last_image": self.last_image,
            "errors": self.errors(),
            "last_error": self.last_error,
            "model_id": self.model.now.id,
            "model_version": self.model.now.version,
            "behind": self.behind(),
            "refused": self.refused(),
        }
        self.beaten, self.beaten_at = done, now
        self.next_beat = now + (self.request.heartbeat or 0.0)
        for sender in self.senders:
            sender.beat(heartbeat)
        try:
            with written_whole(self.beat_file) as temporary:
                temporary.write_text(json.dumps(heartbeat))
        except (OSError, InputError) as error:
            self.say(f"the heartbeat cannot be written: {error}")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
