"""New images of a folder, in order: files that are complete, and that the journal does not know.

The folder is listed again and again, which works on network shares too. A file counts as written once its size and
time of change stayed as they are for a while (``settle``); whether it can be read to its end is seen when it is read,
and until it can, it is waited for. Among the files that are ready, the one that was written first comes first; of
equal times, the name decides.

Listing costs. A name that was judged is not looked at again but for a few thousand each time, in turn, to notice names
that are used again; and the folder is left alone for ten times as long as the last listing took.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pickglass.app.watch.journal import Identity
from pickglass.app.watch.sorting import identity_at
from pickglass.data import IMAGE_SUFFIXES

__all__ = ["Arrival", "Arrivals"]

_LOOKED_AT = 2000  # judged files that a listing looks at again
_SHARE = 0.1  # of the time is spent on listing at most
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0  # seconds until a file that cannot be read is tried again


@dataclass
class Arrival:
    """One file has come.

    Attributes:
        file: what it was when it was last looked at.
        since: when it was first seen so, seconds of the monotonic clock.
        tries: how often it could not be read so.
        again: not to be tried before this time.
    """

    file: Identity
    since: float
    tries: int = 0
    again: float = 0.0


class Arrivals:
    """The arrivals of a folder: :meth:`scan` looks for them, :meth:`take` hands the next one over.

    Args:
        folder: its own files are listed, not those of its sub-folders.
        knows: whether a file was judged, from the journal.
        settle: seconds for which a file must stay as it is.
        give_up: seconds after which a file that cannot be read, and did not change, counts as broken.
        clock: seconds of a monotonic clock.

    Attributes:
        ignored: number of files that were seen at the last listing and are no images by their names.
        error: why the folder, or a file of it, could not be looked at the last time; None: all could.
    """

    def __init__(
        self,
        folder: Path,
        knows: Callable[[Identity], bool],
        settle: float,
        give_up: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.ignored = 0
        self.error: str | None = None
        self._knows, self._settle, self._give_up, self._clock = knows, settle, give_up, clock
        self._poll = min(max(settle / 2, 0.02), 0.25)
        self._next_scan = self._listed = float("-inf")  # when the last listing began that went well
        self._judged: dict[str, Identity] = {}  # files that are in the folder and done with
        self._round: Iterator[str] = iter(())  # those that are yet to be looked at again in this round
        self._waiting: dict[str, Arrival] = {}
        self._ready: list[tuple[int, str]] = []  # a heap
        self._taken: dict[str, Arrival] = {}  # ready or handed over

    def __len__(self) -> int:
        """The number of files that are ready to be judged."""
        return len(self._ready)

    @property
    def waited_for(self) -> int:
        """The number of files that are still being written, or cannot be read yet."""
        return len(self._waiting)

    def has(self, name: str) -> bool:
        """Say whether the folder has a file of this name now, or cannot say."""
        try:
            return identity_at(self.folder, name) is not None
        except OSError:
            return True

    def is_empty(self, since: float) -> bool:
        """Say whether the folder was listed after a time and has no file that is not judged."""
        return not self._taken and not self._waiting and self._listed >= since

    @property
    def wait(self) -> float:
        """Seconds until the folder may be listed again."""
        return max(0.0, self._next_scan - self._clock())

    def scan(self) -> None:
        """List the folder, if it is time."""
        began = self._clock()
        if began < self._next_scan:
            return
        self.error = None
        try:
            self._list()
            self._listed = began
        except OSError as error:  # a share that is gone for a while; what is known is kept
            self.error = f"{self.folder} cannot be listed ({error.strerror or error})"
        ended = self._clock()
        self._next_scan = ended + max(self._poll, (ended - began) / _SHARE)

    def take(self) -> Arrival | None:
        """Hand over the next file; None: none is ready."""
        return self._taken[heapq.heappop(self._ready)[1]] if self._ready else None

    def done(self, arrival: Arrival) -> None:
        """Note that a file is in the journal, whether it stays in the folder or not."""
        del self._taken[arrival.file.name]
        self._judged[arrival.file.name] = arrival.file

    def sorted_away(self, name: str) -> None:
        """Note that a file left the folder: the next one of this name is a new one."""
        self._judged.pop(name, None)

    def unreadable(self, arrival: Arrival) -> bool:
        """Say whether a file that could not be read is broken; otherwise it waits, and will be ready again."""
        now = self._clock()
        arrival.tries += 1
        if now - arrival.since >= self._give_up:
            return True
        arrival.again = now + min(_FIRST_WAIT * 2 ** (arrival.tries - 1), _LONGEST_WAIT)
        arrival.again = min(arrival.again, arrival.since + self._give_up)
        self._waiting[arrival.file.name] = self._taken.pop(arrival.file.name)
        return False

    def changed(self, arrival: Arrival) -> None:
        """Note that a file is another one than when it was handed over, or gone: it is waited for anew."""
        del self._taken[arrival.file.name]

    # -- listing -------------------------------------------------------------------------------------------------------

    def _list(self) -> None:
        now = self._clock()
        names, ignored = set(), 0
        judged, taken = self._judged, self._taken
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name = entry.name
                if name in judged or name in taken:
                    names.add(name)
                elif _is_image_name(name):
                    if self._is_file(entry):
                        names.add(name)
                        self._look_at(name, now)
                elif not name.startswith(".") and self._is_file(entry):
                    ignored += 1
        self.ignored = ignored
        for name in [name for name in judged if name not in names]:
            del judged[name]
        for name in [name for name in self._waiting if name not in names]:
            del self._waiting[name]
        self._look_again(now)

    def _is_file(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_file()
        except OSError as error:  # such as a link to itself
            self.error = f"{entry.path} cannot be looked at ({error.strerror or error})"
            return False

    def _look_at(self, name: str, now: float, judged: Identity | None = None) -> None:
        """Look at a file: it was judged, this time or as the journal knows, waits, or is ready."""
        try:
            file = identity_at(self.folder, name)
        except OSError as error:  # of this file alone; it is looked at again with the next listing
            self.error = f"{self.folder / name} cannot be looked at ({error.strerror or error})"
            return
        if file is None:
            return
        arrival = self._waiting.get(name)
        if arrival is None or arrival.file != file:
            if file == judged or self._knows(file):
                self._judged[name] = file
                self._waiting.pop(name, None)
                return
            arrival = self._waiting[name] = Arrival(file, now)
        if now - arrival.since >= self._settle and now >= arrival.again:
            self._taken[name] = self._waiting.pop(name)
            heapq.heappush(self._ready, (file.mtime_ns, name))

    def _look_again(self, now: float) -> None:
        """Look at some of the judged files in turn: a name may be used again."""
        part = list(islice(self._round, _LOOKED_AT))
        if not part:
            self._round = iter(list(self._judged))
            part = list(islice(self._round, _LOOKED_AT))
        for name in part:
            known = self._judged.pop(name, None)
            if known is not None:
                self._look_at(name, now, known)


def _is_image_name(name: str) -> bool:
    """Say whether a file of this name is an image of the line: hidden files are not, which writers use meanwhile."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
