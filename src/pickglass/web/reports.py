"""Reports of selected images are written one after the other in the background; the newest are kept for download."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException

from pickglass.app.models import AnyModel
from pickglass.app.review.report import write_selection
from pickglass.data import Row
from pickglass.errors import InputError, PickglassError, UnknownName
from pickglass.runtime.compute import ComputeOptions

__all__ = ["MOST", "Report", "Reports"]

MOST = 500
"""A report holds so many images at most: it carries all of its pictures in one file."""

_KEPT = 8  # reports
_WAITING = 4

_LOG = logging.getLogger("pickglass.web")


@dataclass
class Report:
    """A report is being written, or was.

    Attributes:
        key: by which it is asked for.
        name: name of the file that is downloaded.
        stage, done, total: how far the work is.
        ready: the file is there.
        error: why there is none.
    """

    key: str
    name: str
    stage: str = "waiting"
    done: int = 0
    total: int = 0
    ready: bool = False
    error: str | None = None


class _Closed(Exception):
    """The server ends."""


class Reports:
    """The reports of one server.

    Args:
        folder: where they are kept; made when the first one is written.
        compute: where to compute.
    """

    def __init__(self, folder: Path, compute: ComputeOptions) -> None:
        self._folder = folder
        self._compute = compute
        self._reports: dict[str, Report] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pickglass-report")

    def write(self, model: AnyModel, rows: Sequence[Row], names: Mapping[str, str], title: str) -> Report:
        """Have the report of images written.

        Raises:
            InputError: no image, or too many.
            HTTPException: 503, others are waiting.
        """
        if not 0 < len(rows) <= MOST:
            raise InputError(f"a report of {len(rows)} images: expected 1 to {MOST}; choose fewer with the filters")
        with self._lock:
            if sum(not (one.ready or one.error) for one in self._reports.values()) >= _WAITING:
                raise HTTPException(503, "other reports are being written: try again later", {"Retry-After": "20"})
            report = Report(secrets.token_hex(8), f"{_plain(title)}-report.html", total=len(rows))
            self._reports[report.key] = report
        self._pool.submit(self._write, report, model, list(rows), dict(names), title)
        return report

    def get(self, key: str) -> Report:
        """Return a report.

        Raises:
            UnknownName: there is none with this key, or no more.
        """
        report = self._reports.get(key)
        if report is None:
            raise UnknownName("report", key, [], "ask for it again")
        return report

    def file(self, key: str) -> Path:
        """Return the file of a report that is ready.

        Raises:
            UnknownName: as :meth:`get`.
            InputError: it is not ready.
        """
        report = self.get(key)
        if not report.ready:
            raise InputError(report.error or "the report is still being written: try again in a moment")
        return self._path(report)

    def close(self) -> None:
        """End the work, and remove the files."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)
        for report in self._reports.values():
            self._path(report).unlink(missing_ok=True)

    def _path(self, report: Report) -> Path:
        return self._folder / f"{report.key}.html"

    def _write(
        self, report: Report, model: AnyModel, rows: Sequence[Row], names: Mapping[str, str], title: str
    ) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            if self._closed:
                raise _Closed
            report.stage, report.done, report.total = stage, done, total

        try:
            self._folder.mkdir(exist_ok=True)
            write_selection(self._path(report), model, rows, names, title, self._compute, progress)
            report.ready = True
        except _Closed:
            report.error = "the server ends"
        except PickglassError as error:
            report.error = str(error)
        except Exception:
            _LOG.exception("a report cannot be written")
            report.error = "the report cannot be written; the server's log says why"
        self._forget()

    def _forget(self) -> None:
        """Keep the newest reports."""
        with self._lock:
            done = [one for one in self._reports.values() if one.ready or one.error]
            for report in done[:-_KEPT]:
                self._path(report).unlink(missing_ok=True)
                del self._reports[report.key]


def _plain(title: str) -> str:
    """Return a title as part of a file name."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in title)
    return kept.strip("-.")[:80] or "images"
