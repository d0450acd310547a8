"""A data set's account says what became of every file in its folder: used as what, or not used and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Account", "Unused"]

_EXAMPLES = 3


class Unused(NamedTuple):
    """A file is not used.

    Attributes:
        path: the file, relative to the data set's folder.
        reason: why it is not used.
        warn: it looks like an image, a mask or an annotation, and nobody would expect it to be left out.
    """

    path: str
    reason: str
    warn: bool


@dataclass(frozen=True)
class Account:
    """An account of the files of a folder; the counts of ``used`` and the ``unused`` files add up to ``files``.

    Attributes:
        files: number of files, without hidden ones.
        used: what files are used as, e.g. ``"good images for training"``, and how many are.
        unused: the other files.
        hidden: number of hidden files and folders, which are not looked at.
        outside: files outside of the folder that were read too, e.g. the list of a split, relative to it.
    """

    files: int = 0
    used: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[Unused, ...] = ()
    hidden: int = 0
    outside: tuple[str, ...] = ()

    def groups(self) -> list[tuple[str, bool, list[str]]]:
        """Return the unused files by reason, those that need a look first: reason, warn, and the files."""
        found: dict[tuple[str, bool], list[str]] = {}
        for path, reason, warn in sorted(self.unused, key=lambda unused: not unused.warn):
            found.setdefault((reason, warn), []).append(path)
        return [(reason, warn, paths) for (reason, warn), paths in found.items()]

    def sentences(self) -> Iterator[str]:
        """Say in sentences what became of the files."""
        used = ", ".join(_number(n, use) for use, n in self.used.items())
        if not self.unused:
            yield f"All {self.files} files are used: {used}."
        else:
            n = self.files - len(self.unused)
            yield f"{n} of {self.files} files are used{': ' if used else ''}{used}. Not used:"
        for reason, _, paths in self.groups():
            yield f"  {len(paths)}, e.g. {_some(paths)}: {reason}" if len(paths) > 1 else f"  {paths[0]}: {reason}"
        if self.outside:
            yield f"Read from outside of the folder, too: {_some(list(self.outside))}."
        if self.hidden:
            yield f"{self.hidden} hidden files or folders are not looked at."

    def warning(self, root: str) -> str | None:
        """Say in one line that files which look like images, masks or annotations are not used; None if none is.

        Args:
            root: the data set, as the user named it.
        """
        strange = [unused for unused in self.unused if unused.warn]
        if not strange:
            return None
        first = strange[0]
        files = f"{len(strange)} files of {root} look" if len(strange) > 1 else f"a file of {root} looks"
        return (
            f"{files} like data and {'are' if len(strange) > 1 else 'is'} not used, e.g. {first.path} "
            f"({first.reason}); 'pickglass info' lists all"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the account as plain values, with the names of all unused files."""
        unused = [{"reason": reason, "warn": warn, "files": paths} for reason, warn, paths in self.groups()]
        return {
            "files": self.files,
            "used": dict(self.used),
            "unused": unused,
            "hidden": self.hidden,
            "outside": list(self.outside),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Account:
        """Read what :meth:`to_json` returned."""
        unused = [Unused(path, group["reason"], group["warn"]) for group in stored["unused"] for path in group["files"]]
        return cls(stored["files"], stored["used"], tuple(unused), stored["hidden"], tuple(stored["outside"]))


_FIRST_PLURAL = re.compile(r"\b(image|mask|list|file|table|region)s\b")


def _number(n: int, what: str) -> str:
    one = _FIRST_PLURAL.sub(lambda match: match[1], what, count=1)
    return f"{n} {one if n == 1 else what}"


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else ""
    return ", ".join(paths[:_EXAMPLES]) + more
