"""The line in which images wait for a model: it is bounded, and what gathers while a model works is judged together.

A thread that becomes free takes the image that has waited longest, and with it, up to a batch, those that wait for the
same model (a micro-batch): nobody waits for others to come, and under load images share a run. Two threads take turns,
so that images are decoded while others are judged.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import HTTPException

from pickglass.app.watch.model import LoadedModel
from pickglass.data import Row
from pickglass.errors import Failure
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions
from pickglass.web.metrics import Metrics
from pickglass.web.models import ServedModel

__all__ = ["Line", "Place"]

T = TypeVar("T")

_THREADS = 2
_LARGE = 16  # requests of the greatest length that may be held at once
_LONGEST_PAUSE = 60  # seconds after which a refused client is told to come back at the latest


@dataclass
class _Job:
    served: ServedModel
    row: Row
    finish: Callable[[LoadedModel, Found | Failure], Any]
    future: Future[Any] = field(default_factory=Future)


class Place:
    """A request has a place in the line from its first byte to its answer, and is charged for what it sends."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.bytes = 0

    def grow(self, more: int) -> None:
        """Charge the place for more bytes.

        Raises:
            HTTPException: 503, the requests that wait are too large together.
        """
        self._line.charge(self, more)


class Line:
    """Requests wait here for a model.

    Args:
        most: places.
        max_bytes: longest request; sixteen of them may be held at once.
        compute: where to compute, and images at once.
        metrics: counts images and places.

    Attributes:
        waiting: places that are taken.
    """

    def __init__(self, most: int, max_bytes: int, compute: ComputeOptions, metrics: Metrics) -> None:
        self._most, self._most_bytes = most, _LARGE * max_bytes
        self._compute, self._metrics = compute, metrics
        self._jobs: deque[_Job] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._bytes = 0
        self._number = 0
        self._seconds_each = 0.1
        self.waiting = 0
        names = [f"pickglass-judge-{n}" for n in range(_THREADS)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take a place until the block is left.

        Raises:
            HTTPException: 503 with Retry-After, all places are taken.
        """
        with self._ready:
            if self.waiting >= self._most or self._closed:
                raise self._full()
            self.waiting += 1
            self._metrics.waiting.set(self.waiting)
        taken = Place(self)
        try:
            yield taken
        finally:
            with self._ready:
                self.waiting -= 1
                self._metrics.waiting.set(self.waiting)
                self._bytes -= taken.bytes

    def charge(self, place: Place, more: int) -> None:
        """See :meth:`Place.grow`."""
        with self._ready:
            if self._bytes + more > self._most_bytes:
                raise self._full()
            self._bytes += more
            place.bytes += more

    def judge(self, served: ServedModel, row: Row, finish: Callable[[LoadedModel, Found | Failure], T]) -> Future[T]:
        """Have an image judged.

        Args:
            served: the model; what it is when the image's turn comes judges.
            row: the image. Its path is replaced by a number, so that two images of one name are two.
            finish: makes the answer of the model and its result, in the thread that judged.
        """
        with self._ready:
            self._number += 1
            job = _Job(served, replace(row, path=f"image:{self._number}"), finish)
            if self._closed:
                raise self._full()
            self._jobs.append(job)
            self._ready.notify()
        return job.future

    @property
    def alive(self) -> bool:
        """Whether images are judged."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Judge what waits, and end the threads."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    def _full(self) -> HTTPException:
        self._metrics.refused.inc()
        seconds = math.ceil(len(self._jobs) * self._seconds_each)
        return HTTPException(
            503,
            f"{self.waiting} images are waiting already: try again later",
            {"Retry-After": str(min(max(seconds, 1), _LONGEST_PAUSE))},
        )

    def _work(self) -> None:
        while jobs := self._next():
            began = time.monotonic()
            self._judge([job for job in jobs if job.future.set_running_or_notify_cancel()])
            self._seconds_each += 0.2 * ((time.monotonic() - began) / len(jobs) / _THREADS - self._seconds_each)

    def _next(self) -> list[_Job]:
        """Wait for images, and take those of one model; none: the line is closed and empty."""
        with self._ready:
            self._ready.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return []
            served = self._jobs[0].served
            taken: list[_Job] = []
            left: deque[_Job] = deque()
            for job in self._jobs:
                (taken if job.served is served and len(taken) < self._compute.batch else left).append(job)
            self._jobs = left
            return taken

    def _judge(self, jobs: list[_Job]) -> None:
        """Judge a batch; an image at which the model breaks leaves the others alone, which are judged once more."""
        if not jobs:
            return
        loaded = jobs[0].served.now
        try:
            found = loaded.detector.stream([job.row for job in jobs], **self._compute.arguments())
            for job, item in zip(jobs, found, strict=True):
                self._metrics.images.labels(job.served.name, _counted(loaded, item)).inc()
                job.future.set_result(job.finish(loaded, item))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                if not job.future.done():
                    self._judge([job])


def _counted(loaded: LoadedModel, item: Found | Failure) -> str:
    if isinstance(item, Failure):
        return "failed"
    return (loaded.calibration and loaded.calibration.verdict(item.score)) or "none"
