"""What a reader is asked, and what it found in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pickglass.data.tables.layouts.names import means_good
from pickglass.data.tables.rows import Table

__all__ = ["Ask", "Found"]


class Ask(NamedTuple):
    """A user asks for a data set to be read in this way.

    Attributes:
        group_by: regular expression that finds the group in each file name; None: groups from elsewhere, if any.
        good: names of folders and labels that mean good, beside those that are known.
    """

    group_by: str | None = None
    good: tuple[str, ...] = ()

    def is_good(self, name: str) -> bool:
        """Tell whether a folder's name says that it holds good parts."""
        return means_good(name, self.good)


@dataclass
class Found:
    """A reader found these data sets in a folder, and knows this of files that are no image of any.

    Attributes:
        tables: rows of each data set by its name.
        used: file -> what it was read for, e.g. ``"split"``.
        unused: image, mask or annotation -> why it is not used; `fit` and `test` warn of these.
        passed: file -> why it is not used, where nobody would expect it to be; nobody is warned.
        private: images whose truth is not published: they are only to be judged.
        drawn: no part of the data is for the test by itself, so that good images for it were drawn.
    """

    tables: dict[str, Table] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    private: Table = field(default_factory=Table)
    drawn: bool = False

    def leave(self, paths: Iterable[str], why: str) -> None:
        """Note that files are not used, and why."""
        self.unused.update(dict.fromkeys(paths, why))
