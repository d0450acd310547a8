"""Threads decode images ahead of whatever reads them, so that the network does not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from pickglass.data.images.decoder import MAX_PIXELS, Array
from pickglass.data.tables.rows import Row, Table
from pickglass.errors import DataError, Failure, ImageError

__all__ = ["Decoded", "decode", "decode_all"]

T = TypeVar("T")


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """A decoded row has ``value`` as ``prepare`` returned it and the original ``size`` (H, W), or ``error``.

    An image that could not be read has ``value`` None, ``size`` (0, 0), and the reason in one line as ``error``.
    """

    row: Row
    value: T | None
    size: tuple[int, int]
    error: str | None = None


def decode(
    rows: Iterable[Row],
    prepare: Callable[[Array, Row], T],
    workers: int = 2,
    ahead: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Decoded[T]]:
    """Read and prepare images in threads ahead of the consumer, in the order of ``rows``.

    Args:
        rows: what to read; taken as needed, so it may be endless.
        prepare: runs in the threads on each image and its row.
        workers: number of threads.
        ahead: most images taken from ``rows`` and not yet handed over.
        max_pixels: as in :func:`~pickglass.data.read_image`.

    Yields:
        One :class:`Decoded` a row. A broken image never raises; an error of ``prepare`` other than ImageError does.
        Closing the iterator early ends the threads.
    """
    waiting: deque[Future[Decoded[T]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="pickglass-decode") as pool:
        try:
            for row in rows:
                waiting.append(pool.submit(_decode_row, row, prepare, max_pixels))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode_row(row: Row, prepare: Callable[[Array, Row], T], max_pixels: int) -> Decoded[T]:
    try:
        image = row.image(max_pixels)
        return Decoded(row, prepare(image, row), (image.shape[0], image.shape[1]))
    except ImageError as error:
        return Decoded(row, None, (0, 0), error.reason)


def decode_all(
    table: Table,
    prepare: Callable[[Array, Row], T],
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    *,
    what: str = "images",
    progress: Callable[[str, int, int], object] | None = None,
    stage: str = "reading images",
) -> Iterator[tuple[Row, T]]:
    """Decode a table of which every image is needed, and give each row with what ``prepare`` made of its image.

    Args:
        table: what to read.
        prepare, workers, max_pixels: as in :func:`decode`.
        what: the images' name in the error, e.g. ``"photographs"``.
        progress: called with (stage, images done, all images) before each image is handed over.
        stage: what the progress is called.

    Raises:
        DataError: images that cannot be read, all of them named; raised after the last image, so that one run names
            every broken file.

    >>> import numpy as np
    >>> table = Table([Row("array:0", pixels=np.zeros((2, 3), np.uint8))])
    >>> [(row.path, shape) for row, shape in decode_all(table, lambda image, row: image.shape)]
    [('array:0', (2, 3))]
    """
    broken: list[Failure] = []
    for done, item in enumerate(decode(table, prepare, workers, max_pixels=max_pixels), start=1):
        if progress is not None:
            progress(stage, done, len(table))
        if item.error is not None:
            broken.append(Failure(item.row.path, item.error))
        else:
            yield item.row, item.value  # type: ignore[misc]  # without an error it is what prepare returned
    if broken:
        raise DataError(f"{len(broken)} of {len(table)} {what} cannot be read:", broken)
