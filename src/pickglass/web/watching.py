"""Images that arrive in the folder of ``--watch`` are judged by the first model, and the newest are kept in memory.

Nothing is written: ``pickglass watch`` is what keeps a journal, sorts files and tells others. Images that are in the
folder when the server starts are left alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from fastapi import HTTPException
from typing_extensions import TypedDict

from pickglass.app.pages.images import display, jpeg, picture_size, thumbnail
from pickglass.app.watch.arrivals import Arrival, Arrivals
from pickglass.app.watch.model import LoadedModel
from pickglass.app.watch.sorting import identity_at
from pickglass.data import Row, read_image
from pickglass.data.files import missing
from pickglass.data.images.decoder import Array
from pickglass.errors import Failure, ImageError, InputError
from pickglass.result import Found
from pickglass.web.answers import Inspected, inspected, plain_name, png_of
from pickglass.web.judging import Line
from pickglass.web.models import ServedModel
from pickglass.web.settings import ServeSettings

__all__ = ["Arrived", "Folder", "News"]

_LOG = logging.getLogger("pickglass.web")
_KEPT = 100  # images
_SETTLE = 0.5  # seconds for which a file must stay as it is
_GIVE_UP = 10.0  # seconds after which a file that cannot be read counts as broken
_PAUSE = 0.25  # seconds between two looks


class Arrived(TypedDict):
    """An image arrived: ``result`` without its map, or ``error``; ``thumbnail`` is a ``data:`` address."""

    number: int
    name: str
    time: str
    result: Inspected | None
    error: str | None
    thumbnail: str | None


class News(TypedDict):
    """What arrived after an image, oldest first.

    ``last``: the number to ask with the next time; ``dropped``: how many there were that are not kept any more;
    ``error``: why the folder cannot be looked at, null where it can.
    """

    last: int
    dropped: int
    images: list[Arrived]
    error: str | None


class _Kept(NamedTuple):
    arrived: Arrived
    arrival: Arrival
    judged: tuple[LoadedModel, Found] | None


class Folder(threading.Thread):
    """A thread looks at the folder, and has what arrives judged.

    Args:
        folder: its own files are looked at, not those of its sub-folders.
        served: the model that judges.
        line: where images wait for it.
        settings: the limits of images.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: Path, served: ServedModel, line: Line, settings: ServeSettings) -> None:
        super().__init__(name="pickglass-folder", daemon=True)
        if not folder.is_dir():
            raise InputError(f"FOLDER {str(folder)!r} of --watch: {missing(folder)}")
        self._folder, self._served, self._line, self._settings = folder, served, line, settings
        there = {identity_at(folder, name) for name in os.listdir(folder)}
        self._arrivals = Arrivals(folder, there.__contains__, _SETTLE, _GIVE_UP)
        self._kept: deque[_Kept] = deque(maxlen=_KEPT)
        self._last = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look until stopped."""
        while not self._stopped.wait(_PAUSE):
            try:
                self._arrivals.scan()
                while not self._stopped.is_set() and (arrival := self._arrivals.take()) is not None:
                    self._judge(arrival)
            except Exception:  # a thread that ends would say nothing
                _LOG.exception("an image of the watched folder could not be judged")

    def close(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def news(self, after: int) -> News:
        """Return what arrived after the image of a number."""
        with self._lock:
            kept, last = list(self._kept), self._last
        images = [one.arrived for one in kept if one.arrived["number"] > after]
        dropped = max(0, last - after) - len(images)
        return {"last": last, "dropped": dropped, "images": images, "error": self._arrivals.error}

    def inspected(self, number: int) -> Inspected:
        """Return what the model that judged says of an image, with its map."""
        kept = self._find(number)
        if kept.judged is None:
            raise InputError(f"image {number} could not be judged: {kept.arrived['error']}")
        loaded, found = kept.judged
        return inspected(loaded, found, served=self._served, name=kept.arrived["name"], picture=True)

    def picture(self, number: int) -> bytes:
        """Return the pixels of an image as PNG."""
        return png_of(display(self._read(self._find(number).arrival)))

    def _find(self, number: int) -> _Kept:
        with self._lock:
            found = next((kept for kept in self._kept if kept.arrived["number"] == number), None)
        if found is None:
            raise HTTPException(404, f"image {number} is not kept: the newest {_KEPT} are")
        return found

    def _read(self, arrival: Arrival) -> Array:
        """Read the pixels of a file.

        Raises:
            ImageError: it cannot be read.
            HTTPException: 404, it is gone or another one.
        """
        name, path = plain_name(arrival.file.name), self._folder / arrival.file.name
        if arrival.file.size > self._settings.max_bytes:
            raise ImageError(name, f"is longer than {self._settings.max_bytes / 2**20:g} MB: raise --max-mb")
        pixels, error = None, None
        try:
            pixels = read_image(path, self._settings.compute.max_pixels)
        except ImageError as problem:
            error = ImageError(name, problem.reason)
        if identity_at(self._folder, arrival.file.name) != arrival.file:
            raise HTTPException(404, f"{name} is gone, or another image by now")
        if pixels is None:
            raise error or ImageError(name, "cannot be read")
        return pixels

    def _judge(self, arrival: Arrival) -> None:
        name = plain_name(arrival.file.name)
        try:
            pixels = self._read(arrival)
        except HTTPException:
            self._arrivals.changed(arrival)
            return
        except ImageError as problem:
            if self._arrivals.unreadable(arrival):
                self._keep(arrival, None, None, problem.reason, None)
            return

        def finish(loaded: LoadedModel, item: Found | Failure) -> tuple[LoadedModel, Found, Inspected] | str:
            if isinstance(item, Failure):
                return item.error
            judged = inspected(loaded, item, served=self._served, name=name, picture=False)
            return loaded, item._replace(row=Row(name)), judged  # without the pixels

        small = jpeg("thumbnail", name, thumbnail(display(pixels), picture_size(*pixels.shape[:2])))
        try:
            answer = self._line.judge(self._served, Row("", pixels=pixels), finish).result()
        except Exception as problem:  # the model broke at it; the next image comes all the same
            _LOG.exception("%r of the watched folder could not be judged", name)
            answer = f"the model raised {type(problem).__name__}"
        if isinstance(answer, str):
            self._keep(arrival, None, None, answer, small.source)
        else:
            self._keep(arrival, answer[:2], answer[2], None, small.source)

    def _keep(
        self,
        arrival: Arrival,
        judged: tuple[LoadedModel, Found] | None,
        result: Inspected | None,
        error: str | None,
        small: str | None,
    ) -> None:
        self._arrivals.done(arrival)
        with self._lock:
            self._last += 1
            arrived: Arrived = {
                "number": self._last,
                "name": plain_name(arrival.file.name),
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "result": result,
                "error": error,
                "thumbnail": small,
            }
            self._kept.append(_Kept(arrived, arrival, judged))
