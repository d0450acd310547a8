"""Judge the images of a large folder in several processes or on a cluster, with the answers that one process gives.

The images are divided into chunks of whole batches, so that each network call sees the same images as it would here.
The asking process receives scores and maps, in any order, and hands them on in the order of the images; it alone
writes files. A chunk whose worker died is judged again, once as it was, then in smaller parts; an image that is alone
in its part when the worker dies once more is reported as failed, and the others are kept.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pickglass.app.jobs.executors import Where
from pickglass.app.models import AnyModel, load
from pickglass.data import Row, Table
from pickglass.errors import Failure, PickglassError
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.exported import ExportedModel

__all__ = ["Chunk", "judge_apart", "judge_chunk", "usual_engine"]

_BATCHES = 8  # in a chunk: loading a model must be a small part of its work
_HELD = 1 << 30  # bytes of maps that wait for their turn


@dataclass(frozen=True)
class Chunk:
    """Images that are judged together.

    Attributes:
        model: the model, or its file, absolute.
        call: a name of the call, so that a process that outlives it reads the file anew for the next.
        first: place of the first image in the table.
        rows: images, their paths absolute.
        compute: where to compute.
        threads: how many torch uses; None: its own choice.
        again: whether a worker has died of it.
    """

    model: str | AnyModel
    call: str
    first: int
    rows: tuple[Row, ...]
    compute: ComputeOptions
    threads: int | None = None
    again: bool = False

    def part(self, begin: int, end: int) -> Chunk:
        """Return some of the images, by their places in this chunk, as those that a worker has died of."""
        return replace(self, first=self.first + begin, rows=self.rows[begin:end], again=True)


def judge_apart(
    detector: AnyModel,
    model: str | Path | AnyModel,
    table: Table,
    where: Where,
    compute: ComputeOptions,
    progress: Progress | None = None,
) -> Iterator[Found | Failure]:
    """Judge images elsewhere, and yield what is found in the order of the images; see the module.

    Args:
        detector: the model, loaded.
        model: what the workers take: its file, or the model itself.
        table: the images.
        where: how many processes, or which cluster.
        compute: where each of them computes. An exported model runs in onnxruntime where the engine is ``"auto"``: each
            machine would otherwise choose for itself, and they would differ by rounding.
        progress: called with (stage, done, total).

    Raises:
        InputError: no machine has what ``where`` asks for.
        PickglassError: the model cannot be loaded there, or what else its images are not to blame for.
    """
    rows = tuple(detector.provenance.rows_to_judge(table))
    sent = tuple(map(_absolute, rows))
    own = os.path.abspath(model) if isinstance(model, (str, Path)) else model
    whole = Chunk(own, secrets.token_hex(8), 0, sent, usual_engine(detector, compute), where.threads)
    size = _BATCHES * compute.batch
    waiting = [replace(whole, first=i, rows=sent[i : i + size]) for i in range(0, len(sent), size)]
    held: dict[int, Found | Failure] = {}  # by place in the table
    done = 0  # images that were handed on

    def take() -> Chunk | None:
        if not waiting or (waiting[0].first > done and sum(_size(item) for item in held.values()) > _HELD):
            return None  # those before it come first; one of them is being judged
        return waiting.pop(0)

    for event in where.make().run(judge_chunk, take):
        chunk = event.task
        if event.result is not None:
            place, item = event.result
            if place >= done:  # a chunk that is judged again begins at its begin
                held[place] = item
        if event.died:
            waiting[:0] = _what_is_left(chunk, held, done, str(event.error))
        elif event.error is not None:
            raise PickglassError(event.error)
        while done in held:
            item = _named_as(held.pop(done), rows[done])
            done += 1
            if progress is not None:
                progress("judging images", done, len(rows))
            yield item


def judge_chunk(chunk: Chunk) -> Iterator[tuple[int, Found | Failure]]:
    """Yield the place in the table of each image of a chunk and what is found on it."""
    if chunk.threads is not None and not isinstance(chunk.model, ExportedModel):
        import torch

        torch.set_num_threads(chunk.threads)
    model = _loaded(chunk.model, chunk.call) if isinstance(chunk.model, str) else chunk.model
    yield from enumerate(model.stream(Table(list(chunk.rows)), **chunk.compute.arguments()), chunk.first)


def usual_engine(detector: AnyModel, compute: ComputeOptions) -> ComputeOptions:
    """Return the options with one engine for all machines; see :func:`judge_apart`."""
    choose = isinstance(detector, ExportedModel) and compute.engine == "auto"
    return replace(compute, engine="onnxruntime") if choose else compute


@lru_cache(maxsize=1)
def _loaded(path: str, call: str) -> AnyModel:
    """Load a model once for all chunks that a process judges in one call."""
    return load(path)


def _what_is_left(chunk: Chunk, held: dict[int, Found | Failure], done: int, error: str) -> list[Chunk]:
    """Return what is to be judged again of a chunk whose worker died; an image that was alone is held as failed."""
    if not chunk.again:
        return [chunk.part(0, len(chunk.rows))]  # the same batches, so the same numbers
    left = [i for i in range(len(chunk.rows)) if chunk.first + i >= done and chunk.first + i not in held]
    if not left:
        return []
    begin, end = left[0], left[-1] + 1
    if end - begin == 1:
        held[chunk.first + begin] = Failure(chunk.rows[begin].path, f"its worker died three times or more: {error}")
        return []
    middle = (begin + end) // 2
    return [chunk.part(begin, middle), chunk.part(middle, end)]


def _absolute(row: Row) -> Row:
    """Return the row with absolute paths of the files that judging reads; images in memory keep their name."""
    path = row.path if row.pixels is not None else os.path.abspath(row.path)
    roi = os.path.abspath(row.roi) if isinstance(row.roi, str) and os.path.exists(row.roi) else row.roi
    return replace(row, path=path, roi=roi)


def _named_as(item: Found | Failure, row: Row) -> Found | Failure:
    """Return what was found under the name by which the image was given."""
    return item._replace(path=row.path) if isinstance(item, Failure) else item._replace(row=row)


def _size(item: Found | Failure) -> int:
    return item.map.nbytes if isinstance(item, Found) else 0
