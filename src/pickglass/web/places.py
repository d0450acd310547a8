"""Which files of images the page may open for marks: those of the data set, of the watched folder, and kept uploads.

A browser names an image by its place and its name there, and never by a path. A mark that was brought from a table
names a path of another time or machine: it is opened only where it lies in one of these places and is what was marked.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Literal, NamedTuple

from pickglass.app.marking.images import digest_of, locate
from pickglass.app.marking.store import Mark
from pickglass.data.files import put_in_place, remove_leftovers, scratch_folder
from pickglass.data.images.formats import parse_header
from pickglass.errors import ImageError, InputError, UnknownName
from pickglass.web.settings import ServeSettings

__all__ = ["Place", "Places", "Shown"]

Place = Literal["data", "watch", "kept"]
"""``data``: the data set. ``watch``: the watched folder. ``kept``: uploads that were marked."""

_LONGEST = 120  # characters of a name
_KEPT = re.compile(r"[0-9a-f]{64}/[^/\\]+")


class Shown(NamedTuple):
    """What a browser may know of where an image is; ``place`` is None where the page does not know the image."""

    place: Place | None
    name: str


class Places:
    """The images that a server may open.

    Args:
        settings: data set and watched folder.
        folder: where uploads are kept; made with the first one.
    """

    def __init__(self, settings: ServeSettings, folder: Path) -> None:
        self._settings = settings
        self._kept = folder
        remove_leftovers(folder)
        self._lock = threading.Lock()
        self._data: tuple[str, dict[str, str]] | None = None
        self._digests: dict[tuple[str, int, int], str] = {}

    def find(self, place: Place, name: str) -> Path:
        """Return the file of an image.

        Raises:
            UnknownName: no image of this name is there.
            InputError: the server has no such place.
        """
        if place == "data":
            _, names = self._data_set()
            if name not in names:
                raise UnknownName("image", name, names)
            return Path(names[name])
        folder = self._kept if place == "kept" else self._settings.watch
        if folder is None:
            raise InputError("no folder is watched: start the server with --watch FOLDER")
        is_plain = _KEPT.fullmatch(name) if place == "kept" else PurePath(name).name == name and "\\" not in name
        if not is_plain or "\0" in name or PurePath(name).name.startswith(".") or not (folder / name).is_file():
            raise UnknownName("image", name, [])
        return folder / name

    def keep(self, content: bytes, name: str) -> str:
        """Keep an image that came from a browser, and return its name here.

        Raises:
            ImageError: it is no image, or too large.
        """
        clean = re.sub(r"[^\w. -]+", "_", PurePath(name.replace("\\", "/")).name).strip(". ")[-_LONGEST:] or "image"
        header = parse_header(io.BytesIO(content), clean)
        if header.height * header.width > self._settings.compute.max_pixels:
            raise ImageError(clean, f"has {header.height} x {header.width} pixels, more than this server takes")
        digest = hashlib.sha256(content).hexdigest()
        folder = self._kept / digest
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"images cannot be kept here ({error.strerror}): look for space on the disk") from error
        there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if there:
            return f"{digest}/{there[0]}"
        try:
            with scratch_folder(self._kept) as scratch:  # not in the image's own folder, where nobody would look for it
                (scratch / clean).write_bytes(content)
                put_in_place(scratch / clean, folder / clean)
        except OSError as error:
            raise InputError(f"images cannot be kept here ({error.strerror}): look for space on the disk") from error
        return f"{digest}/{clean}"

    def shown(self, path: str) -> Shown:
        """Say where the image of a mark is, as a browser may know it."""
        data = None if self._settings.data is None else Path(self._data_set()[0])
        places: tuple[tuple[Place, Path | None], ...] = (
            ("kept", self._kept),
            ("watch", self._settings.watch),
            ("data", data),
        )
        for place, folder in places:
            if folder is not None and _is_in(path, folder):
                return Shown(place, Path(os.path.relpath(path, folder)).as_posix())
        return Shown(None, PurePath(path.replace("\\", "/")).name if os.path.isabs(path) else path)

    def located(self, marks: Sequence[Mark]) -> tuple[list[Mark], list[tuple[Mark, str]]]:
        """Find the files of marked images.

        Returns:
            The marks whose images are there, with the path of each now, and the others with the reason.
        """
        roots = self._roots()
        beside = None if self._settings.data is None else self._data_set()[0]
        found = locate(
            marks,
            beside,
            roots,
            allowed=lambda path: any(_is_in(path, root) for root in roots),
            renamed=False,
            digest=self._digest,
        )
        there = [replace(mark, path=found.paths[mark.digest]) for mark in marks if mark.digest in found.paths]
        absent = [mark for mark in marks if mark.digest not in found.paths]
        return there, [(mark, self.public(failed.error)) for mark, failed in zip(absent, found.failed, strict=True)]

    def path_of(self, mark: Mark) -> Path:
        """Return the file of a marked image.

        Raises:
            UnknownName: it is not there as it was marked.
        """
        there, _ = self.located([mark])
        if not there:
            raise UnknownName("image", self.shown(mark.path).name, [])
        return Path(there[0].path)

    def public(self, text: str) -> str:
        """Return a text without the folders of this machine."""
        folders = [*self._roots(), self._kept.parent, *(path.parent for path in self._settings.models)]
        known = {str(path) for folder in folders for path in (folder, folder.absolute(), folder.resolve())}
        for folder in sorted(known - {".", "/"}, key=len, reverse=True):
            text = text.replace(folder + os.sep, "").replace(folder, PurePath(folder).name)
        return text

    def _digest(self, path: str) -> str:
        """Return the digest of a file, which is read again when its size or time of change is another."""
        status = os.stat(path)
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = digest_of(path)
        return self._digests[key]

    def _roots(self) -> list[Path]:
        settings = self._settings
        data = [] if settings.data is None else [Path(settings.data.path), *map(Path, settings.data.more)]
        watch = [] if settings.watch is None else [settings.watch]
        return [*(root if root.is_dir() else root.parent for root in data), *watch, self._kept]

    def _data_set(self) -> tuple[str, dict[str, str]]:
        """Return the folder of the data set, and the files of its images by name; read once."""
        source = self._settings.data
        if source is None:
            raise InputError("there is no data set: start the server with --data DATA")
        with self._lock:
            if self._data is None:
                dataset = source.load(training=False)
                paths = [row.path for row in dataset.table + dataset.private if row.pixels is None]
                names = {Path(os.path.relpath(path, dataset.root)).as_posix(): path for path in paths}
                self._data = (dataset.root, names)
            return self._data


def _is_in(path: str, folder: Path) -> bool:
    return os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)
