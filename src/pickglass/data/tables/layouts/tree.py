"""A folder is walked once; every reader works on the names that were found.

The walk takes ``os.scandir`` and no ``stat`` a file, so that 100,000 files take seconds. Names are compared as people
mean them, see :func:`key`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from pickglass.data.images.decoder import IMAGE_SUFFIXES
from pickglass.errors import DataError

__all__ = ["SHOWN", "Folder", "composed", "is_image", "key", "some", "walk"]

SHOWN = 5  # how many names a message lists


def key(name: str) -> str:
    """Return a name as it is compared: in any case, and with its letters composed.

    >>> key("GroundTruth") == key("groundtruth")
    True
    """
    return name.lower() if name.isascii() else composed(name).casefold()


def composed(name: str) -> str:
    """Return a name with its letters composed: macOS writes ``ö`` as two characters where others write one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_image(name: str) -> bool:
    """Tell whether a file's suffix is that of an image format that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def some(names: list[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@dataclass(eq=False)
class Folder:
    """A folder holds files and folders, sorted by name, without hidden ones.

    Attributes:
        path: the folder as it can be opened.
        files: names of its files.
        folders: its sub-folders by name.
        hidden: number of its hidden files and folders, whose names begin with a dot, and of what thumbnailers write.
        skipped: names of links to folders that are not followed, and why.
    """

    path: str
    files: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    hidden: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    _by_key: dict[str, list[str]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The folder has this name, also where it was named as ``.`` or ``..``."""
        return os.path.basename(os.path.realpath(self.path))

    @property
    def images(self) -> list[str]:
        """The names of the files in the folder itself that have the suffix of an image."""
        return [name for name in self.files if is_image(name)]

    def at(self, name: str) -> str:
        """Return the path of a file or folder inside."""
        return os.path.join(self.path, name)

    def find(self, *names: str) -> Folder | None:
        """Return the sub-folder with one of some names, in any case; None where there is none.

        Raises:
            DataError: two sub-folders have such a name.
        """
        found = self.find_all(*names)
        if len(found) > 1:
            raise DataError(
                f"{self.path} holds {some([os.path.basename(f.path) for f in found])}, expected one of them: "
                "join them into one folder"
            )
        return found[0] if found else None

    def find_all(self, *names: str) -> list[Folder]:
        """Return the sub-folders with one of some names, in any case."""
        if self._by_key is None:
            self._by_key = {}
            for name in self.folders:
                self._by_key.setdefault(key(name), []).append(name)
        wanted = dict.fromkeys(key(name) for name in names)
        return [self.folders[name] for word in wanted for name in self._by_key.get(word, [])]

    def file(self, name: str) -> str | None:
        """Return the path of a file of the folder itself, in any case; None where there is no such file."""
        wanted = key(name)
        return next((self.at(own) for own in self.files if key(own) == wanted), None)

    def walk(self, below: str = "") -> Iterator[tuple[str, Folder]]:
        """Yield the folder and all folders below with their names relative to it, sorted; ``""`` is the folder."""
        yield below, self
        for name, folder in self.folders.items():
            yield from folder.walk(os.path.join(below, name))

    def all_files(self) -> Iterator[str]:
        """Yield all files of the folder and of those below, relative to it, sorted folder by folder."""
        for below, folder in self.walk():
            for name in folder.files:
                yield os.path.join(below, name)

    def holds_images(self) -> bool:
        """Tell whether an image lies in the folder or below."""
        return any(folder.images for _, folder in self.walk())


_THUMBNAILS = frozenset({"thumbs.db", "desktop.ini", "@eadir", "__macosx"})


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _THUMBNAILS


def walk(path: str | os.PathLike[str]) -> Folder:
    """List a folder with all folders below, once.

    A link to a folder is followed unless it leads to a folder above or to one that is listed already: it is then named
    in ``skipped``.

    Raises:
        OSError: a folder cannot be listed; its images would be missing unseen.
    """
    root = Folder(os.fspath(path))
    seen: set[tuple[int, int]] = set()
    real = os.path.realpath(root.path)
    links: list[tuple[Folder, str]] = []
    _list(root, seen, links)
    for folder, name in links:  # grows: a folder that is linked may hold links itself
        target = os.path.realpath(folder.at(name))
        status = os.stat(target)
        if (status.st_dev, status.st_ino) in seen:
            folder.skipped[name] = f"a link to {target}, which is listed already"
        elif os.path.commonpath([real, target]) == target:
            folder.skipped[name] = f"a link to {target}, a folder above"
        else:
            child = Folder(folder.at(name))
            _list(child, seen, links)
            folder.folders[name] = child
            folder.folders = dict(sorted(folder.folders.items()))
    return root


def _list(root: Folder, seen: set[tuple[int, int]], links: list[tuple[Folder, str]]) -> None:
    """Fill a folder and those below; links to folders are noted for later, when all true folders are known."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder.path)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            folder.skipped["."] = "listed already in another place"
            continue
        seen.add(identity)
        below, linked = [], []
        with os.scandir(folder.path) as entries:
            for entry in entries:
                name = entry.name
                if _is_hidden(name):
                    folder.hidden += 1
                elif not _is_folder(entry):
                    folder.files.append(name)
                elif entry.is_symlink():
                    linked.append(name)
                else:
                    below.append(name)
        folder.files.sort()
        links.extend((folder, name) for name in sorted(linked))
        for name in sorted(below):
            folder.folders[name] = Folder(folder.at(name))
            waiting.append(folder.folders[name])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: it cannot be opened, which is said where it is read
        return False
