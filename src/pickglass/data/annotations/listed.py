"""A file that lists many images is read to its end, so that one run names every image at fault."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from pickglass.data.annotations.annotation import Annotation, annotated
from pickglass.data.annotations.names import plain_name
from pickglass.data.annotations.shapes import Shape
from pickglass.errors import DataError, Failure

__all__ = ["Listed"]

_NAMED = 20  # failures that a message names


class _Failing(AbstractContextManager[None]):
    """A class, because files have a hundred thousand entries and a generator for each takes a second."""

    __slots__ = ("failures", "name", "where")

    def __init__(self, failures: list[Failure], name: str, where: str) -> None:
        self.failures, self.name, self.where = failures, name, where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, DataError):
            self.failures.append(Failure(self.name, f"{self.where}: {error}" if self.where else str(error)))
            return True
        return False


class Listed:
    """Collects the annotations of a file that lists many images, and what is wrong with it."""

    def __init__(self, path: str, good: Collection[str]) -> None:
        self.path = path
        self.good = good
        self._found: dict[str, Annotation] = {}
        self._names: dict[str, str] = {}
        self._failures: list[Failure] = []

    def failing(self, name: str, where: str = "") -> AbstractContextManager[None]:
        """Keep a DataError of what is done inside as the failure of ``name``, an image or a place in the file."""
        return _Failing(self._failures, name, where)

    def add(self, name: str, labels: Sequence[str], shapes: Sequence[Shape], size: tuple[int, int] | None) -> None:
        """Keep what the file says of an image; see :func:`pickglass.data.annotations.annotation.annotated`."""
        with self.failing(name):
            other = self._names.setdefault(plain_name(name), name)
            if name in self._found or other != name:
                raise DataError(f"the file lists the image twice (also as {other!r}): delete or join the entries")
            self._found[name] = annotated(self.path, labels, shapes, size, self.good)

    def finished(self) -> dict[str, Annotation]:
        """Return the annotations by the images' names in the file.

        Raises:
            DataError: with all failures; the message names the first of them.
        """
        if self._failures:
            shown = self._failures[:_NAMED]
            more = f" The first {_NAMED}:" if len(self._failures) > _NAMED else ""
            count = len(self._failures)
            error = DataError(f"{count} {'entries' if count > 1 else 'entry'} cannot be used:{more}", shown)
            error.failures = tuple(self._failures)
            raise error
        return self._found
