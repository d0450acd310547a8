"""The model of a line: when its file is replaced, the new one is made ready beside it, then takes over."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pickglass.app.models import AnyModel, load
from pickglass.calibration import Calibration
from pickglass.data import Row
from pickglass.errors import Failure, InputError
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.exported import ExportedModel

__all__ = ["LoadedModel", "WatchedModel"]

_LOOK = 0.5  # seconds between two looks at the file; it must be the same at both


class LoadedModel(NamedTuple):
    """A model is ready to judge."""

    detector: AnyModel
    calibration: Calibration | None
    id: str
    version: int

    def judge(self, rows: list[Row], compute: ComputeOptions) -> list[Found | Failure]:
        """Judge images: one result for each, in order."""
        return list(self.detector.stream(rows, **compute.arguments()))

    @property
    def threshold(self) -> float | None:
        """The score above which an image is bad; None: the model has none."""
        return self.calibration.image_threshold if self.calibration else None


class WatchedModel:
    """A watched model is the newest sound model that its file has held.

    Args:
        path: model file.
        compute: where to compute.
        needs_verdicts: a model without a threshold is refused.

    Raises:
        ModelFileError: not a model, at the start; later the model before goes on.
        InputError: it has no threshold, though verdicts are needed.

    Attributes:
        now: the model that judges.
        error: why the file that is there now cannot be used; None: it is the one that judges.
    """

    def __init__(self, path: Path, compute: ComputeOptions, needs_verdicts: bool) -> None:
        self.path = path
        self.error: str | None = None
        self._compute, self._needs_verdicts = compute, needs_verdicts
        self._tried = self._stamp()
        self.now = self._made_ready()
        self._seen: tuple[int, ...] | None = None
        self._next_look = time.monotonic() + _LOOK
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="pickglass-model")
        self._loading: Future[LoadedModel] | None = None

    def renew(self) -> str | None:
        """Look at the file, if it is time, and take over a new model that is ready; return what to say of it."""
        if self._loading is not None:
            return self._take_over(self._loading) if self._loading.done() else None
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + _LOOK
        stamp = self._stamp()
        if stamp is None or stamp == self._tried or stamp != self._seen:
            self._seen = stamp
            return None
        self._tried = stamp
        self._loading = self._loader.submit(self._made_ready)
        return None

    def _take_over(self, loading: Future[LoadedModel]) -> str | None:
        self._loading = None
        problem = loading.exception()
        if self._stamp() not in (None, self._tried):  # it was replaced once more meanwhile
            return None
        if problem is not None:
            self.error = (
                f"{self.path} was replaced by a file that cannot be used, and the model before goes on: "
                f"{str(problem).partition(chr(10))[0]}"
            )
            return None
        self.now, self.error = loading.result(), None
        return f"{self.path} was replaced: model {self.now.id}, version {self.now.version}, judges from now on"

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _made_ready(self) -> LoadedModel:
        """Load the file and judge a black image with it, so that its networks are compiled and known to run."""
        detector = load(self.path)
        if isinstance(detector, ExportedModel):
            detector.warm_up(**self._compute.arguments())  # and take the faster runtime
        model = LoadedModel(detector, detector.calibration, detector.model_id(), detector.model_version)
        if self._needs_verdicts and model.threshold is None:
            raise InputError(
                f"{self.path} has no threshold, so images cannot be sorted: 'pickglass threshold MODEL DATA' sets one"
            )
        model.judge([Row("black", pixels=np.zeros((256, 256, 3), np.uint8))], self._compute)
        return model

    def close(self) -> None:
        """Wait for nothing more."""
        self._loader.shutdown(wait=False, cancel_futures=True)
