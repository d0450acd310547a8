"""Outputs are told of every image in the order of the numbers, from the journal.

Files (JSON lines, CSV) are told exactly once: the journal has the length that a file has when all was told, and what a
killed process wrote beyond it is cut off before it is written again. Only what would be written next is ever cut off; a
file that somebody else changed is left alone. A stream (stdout) is told at least once.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pickglass.app.judgements import IMAGES
from pickglass.app.watch.journal import Journal, Told
from pickglass.data.files import sync_folder
from pickglass.data.tables.cells import cell
from pickglass.errors import InputError

__all__ = ["Output", "OutputFile", "OutputStream", "Outputs", "begin", "csv_lines", "json_lines"]

_AT_ONCE = 500  # messages


class Output(Protocol):
    """An output is told of images; ``name`` is its name in the journal."""

    name: str

    def tell(self, told: Sequence[Told], position: tuple[int, int]) -> tuple[int, int]:
        """Tell of some images; return the new position, the last number and bytes written.

        Raises:
            OSError, InputError: it cannot be told now.
        """


def json_lines(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Write messages as JSON, one a line, ASCII."""
    return "".join(f"{json.dumps(message)}\n" for message in messages).encode()


def csv_lines(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Write messages as rows with the columns of ``results.csv``, see :mod:`pickglass.app.judgements`."""
    return _csv([cell(message[column]) for column in IMAGES] for message in messages)


def _csv(rows: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogateescape")


class OutputFile:
    """A file gets a line for each image.

    Args:
        path: the file; it is made where it does not exist.
        kind: ``"jsonl"`` or ``"csv"``.
        journal: knows how much of the file is its own.
        say: called with a sentence where something about the file is to be known.

    Raises:
        InputError: the file holds what this journal did not write, or cannot be written.
    """

    def __init__(self, path: Path, kind: str, journal: Journal, say: Callable[[str], None]) -> None:
        self.path = path
        self.name = f"{kind}:{path.absolute()}"
        self._lines = {"jsonl": json_lines, "csv": csv_lines}[kind]
        self._head = _csv([IMAGES]) if kind == "csv" else b""
        self._journal, self._say = journal, say
        try:
            if journal.output(self.name) is None and path.exists() and path.stat().st_size:
                raise InputError(
                    f"{path} exists already, and journal {str(journal.path)!r} has not written it: name another file, "
                    "or move that one away"
                )
            with path.open("ab"):
                pass
            sync_folder(path.absolute().parent)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}): name a file in a folder of yours"
            ) from error

    def tell(self, told: Sequence[Told], position: tuple[int, int]) -> tuple[int, int]:
        """Append lines; what a killed process appended is cut off first."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            number, end = position[0], self._own_end(file, position)
            data = self._lines([item.message for item in told])
            if not end:
                data = self._head + data
            if told:
                number = told[-1].number
                file.seek(end)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                end += len(data)
        return number, end

    def _own_end(self, file: BinaryIO, position: tuple[int, int]) -> int:
        """Return where to go on; whatever lies beyond is cut off if it is ours."""
        number, end = position
        size = file.seek(0, os.SEEK_END)
        if size < end:
            self._say(f"{self.path} is shorter than it was when it was last written: it is gone on with as it is")
            return size
        if size > end:
            file.seek(end)
            rest = file.read()
            if not self._would_write(number, end, len(rest)).startswith(rest):
                raise InputError(
                    f"{self.path} was changed by somebody else: its last {len(rest)} bytes are not of this journal. "
                    "Take them away, or name another file"
                )
            file.truncate(end)
        return end

    def _would_write(self, number: int, end: int, size: int) -> bytes:
        data = b"" if end else self._head
        while len(data) < size:
            told = self._journal.after(number, _AT_ONCE)
            if not told:
                break
            data += self._lines([item.message for item in told])
            number = told[-1].number
        return data


class OutputStream:
    """A stream, such as stdout, gets a JSON line for each image.

    Args:
        stream: binary, and open.
        name: its name in the journal.
    """

    def __init__(self, stream: BinaryIO, name: str = "stdout") -> None:
        self.name = name
        self._stream = stream

    def tell(self, told: Sequence[Told], position: tuple[int, int]) -> tuple[int, int]:
        """Write lines to the stream."""
        self._stream.write(json_lines([item.message for item in told]))
        self._stream.flush()
        return (told[-1].number if told else position[0]), 0


class Outputs:
    """The outputs that the loop tells itself, files and streams, each from where it was told last.

    Args:
        journal: what to tell of.
        outputs: each with a name of its own.

    Attributes:
        errors: output -> why it could not be told the last time.
    """

    def __init__(self, journal: Journal, outputs: Sequence[Output]) -> None:
        self._journal = journal
        self._outputs = outputs
        self._positions = {output.name: begin(journal, output.name) for output in outputs}
        self.errors: dict[str, str] = {}

    def tell(self) -> None:
        """Tell each output of all that is ready. An output that cannot be told is tried again the next time."""
        told_all = False
        while not told_all:
            told_all = True
            new = {}
            for output in self._outputs:
                position = self._positions[output.name]
                told = self._journal.after(position[0], _AT_ONCE)
                if not told:
                    continue
                try:
                    new[output.name] = output.tell(told, position)
                    self.errors.pop(output.name, None)
                except BrokenPipeError:  # nobody reads the stream any more
                    raise
                except (OSError, InputError) as error:
                    self.errors[output.name] = f"{output.name}: {error}"
                    continue
                told_all = told_all and len(told) < _AT_ONCE
            if new:
                self._journal.told(new)
                self._positions.update(new)

    def check(self) -> None:
        """Look at each output before the first image, and cut off what a killed process wrote beyond the journal.

        Raises:
            InputError: a file was changed by somebody else, or cannot be written.
        """
        for output in self._outputs:
            try:
                self._positions[output.name] = output.tell([], self._positions[output.name])
            except OSError as error:
                raise InputError(f"{output.name}: {error}") from error
        self._journal.told(self._positions)

    def behind(self) -> dict[str, int]:
        """Count the images that each output is still to be told of."""
        last = self._journal.last()
        return {name: last - position[0] for name, position in self._positions.items()}


def begin(journal: Journal, name: str) -> tuple[int, int]:
    """Return how far an output was told; one that the journal does not know begins with the images to come."""
    known = journal.output(name)
    if known is None:
        known = (journal.last(), 0)
        journal.told({name: known})
    return known
