"""Every image and mask that pickglass reads goes through this decoder. It needs numpy and Pillow only.

An image is an array ``(H, W)`` or ``(H, W, 3)`` of uint8, uint16, or float32 in 0..1, and keeps its bit depth until
:class:`pickglass.data.Preprocess` turns it into what a network reads. What cannot be kept exactly is an
:class:`ImageError`.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from pickglass.data.images.formats import (
    Array,
    Header,
    Picture,
    decode_file,
    open_file,
    parse_header,
    unit_floats,
)
from pickglass.data.images.geometry import array_of, size_of
from pickglass.data.images.pil import decode_pil
from pickglass.errors import DataError, Failure, ImageError, shortened

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Array",
    "Decoded",
    "Header",
    "ImageRow",
    "Picture",
    "Pixels",
    "array_of",
    "decode",
    "decode_all",
    "decode_pictures",
    "name_of",
    "read_bytes",
    "read_header",
    "read_image",
    "read_picture",
]

T = TypeVar("T")
Pixels: TypeAlias = "Array | Image.Image | bytes | ImageError"
Source: TypeAlias = "str | os.PathLike[str] | Pixels | bytearray | memoryview | BinaryIO"

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 250_000_000  # a file that claims more is more likely damaged than sound


def read_image(source: Source, max_pixels: int = MAX_PIXELS) -> Array:
    """Read one image, upright, without alpha, at its full bit depth.

    Colour is given as RGB (CMYK, YCbCr, LAB and palettes are converted); colour profiles (ICC) are not applied, and
    what lies under transparent pixels is shown. Of a photograph with previews (MPO) the first frame is read.

    Args:
        source: path, open binary file, encoded bytes, PIL image, or array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)``,
            ``(H, W, 4)`` of bool, uint8, uint16, or floats in 0..1. PNG, JPEG, TIFF, BMP and WebP files are read. An
            ImageError, in place of an image that is known to be broken, is raised.
        max_pixels: height x width above which a file is refused before it is decoded.

    Returns:
        ``(H, W)`` or ``(H, W, 3)``: uint8; uint16 where the source has 16 bits; float32 where it has floats. An array
        that is already so is returned as it is, not copied.

    Raises:
        ImageError: missing, empty, cut short, damaged, not an image, several frames, too many pixels, or of a kind
            that cannot be kept exactly.

    >>> read_image(np.array([[[255, 0, 0, 128]]], np.uint8)).tolist()
    [[[255, 0, 0]]]
    """
    return array_of(read_picture(source, max_pixels))


def read_picture(source: Source, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read one image as :func:`read_image` does, and leave 8 bits in Pillow, which resizes them.

    What is returned is not to be changed: it may be the image of the caller.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return decode_pil(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        with open_file(path) as file:
            return decode_file(file, path, max_pixels)
    if isinstance(source, ImageError):
        raise ImageError(source.path, source.reason)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_file(io.BytesIO(source), "<bytes>", max_pixels)
    if not hasattr(source, "read"):
        raise ImageError(
            shortened(source), "no image, expected a path, an array, a PIL image, encoded bytes or an open binary file"
        )
    return decode_file(io.BytesIO(read_bytes(source)), name_of(source), max_pixels)


def read_bytes(file: BinaryIO) -> bytes:
    """Read an open file to its end; one that is closed, broken or of text is an ImageError."""
    try:
        content: object = file.read()
    except Exception as error:  # whatever a file of a network or an archive raises
        raise ImageError(name_of(file), f"the open file cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, bytes):
        raise ImageError(name_of(file), "is open as text, expected a binary file: open(path, 'rb')")
    return content


def name_of(file: BinaryIO) -> str:
    """Name an open file for messages."""
    return str(getattr(file, "name", "<file object>"))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the size, bit depth and channels of an image file, without decoding its pixels.

    Raises:
        ImageError: missing, empty, or not an image.
    """
    with open_file(os.fspath(path)) as file:
        return parse_header(file, os.fspath(path))


def _from_array(array: Array) -> Array:
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        turn = ": put the channels last, .transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise ImageError("<array>", f"shape {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){turn}")
    if isinstance(array, np.ma.MaskedArray):
        raise ImageError("<array>", "a masked array, expected a plain one: fill it, e.g. image.filled(0)")
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]  # (H, W) or (H, W, 3)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        return unit_floats(array, "<array>")
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    raise ImageError(
        "<array>",
        f"dtype {array.dtype}, expected uint8, uint16, bool, or floats in 0..1: convert it, e.g. .astype(np.uint8) "
        "where the values are 0 to 255",
    )


# -- threads decode ahead of whatever reads, so that the network does not wait for the disk ---------------------------


class ImageRow(Protocol):
    """A row of a table as the decoder sees it: an image file, or pixels that did not come from a file."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def pixels(self) -> Pixels | None:
        """The image itself, or why there is none; None: it is in the file."""


RowT = TypeVar("RowT", bound=ImageRow)


@dataclass(frozen=True)
class Decoded(Generic[RowT, T]):
    """A decoded row has ``value`` as ``prepare`` returned it and the original ``size`` (H, W), or ``error``.

    An image that could not be read has ``value`` None, ``size`` (0, 0), and the reason in one line as ``error``.
    """

    row: RowT
    value: T | None
    size: tuple[int, int]
    error: str | None = None


def decode(
    rows: Iterable[RowT],
    prepare: Callable[[Array, RowT], T],
    workers: int = 2,
    ahead: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Decoded[RowT, T]]:
    """Read and prepare images in threads ahead of the consumer, in the order of ``rows``.

    Args:
        rows: what to read; taken as needed, so it may be endless.
        prepare: runs in the threads on each image, as :func:`~pickglass.data.read_image` returns it, and its row.
        workers: number of threads.
        ahead: most images taken from ``rows`` and not yet handed over.
        max_pixels: as in :func:`~pickglass.data.read_image`.

    Yields:
        One :class:`Decoded` a row. A broken image never raises; an error of ``prepare`` other than ImageError does.
        Closing the iterator early ends the threads.
    """
    return decode_pictures(rows, lambda picture, row: prepare(array_of(picture), row), workers, ahead, max_pixels)


def decode_pictures(
    rows: Iterable[RowT],
    prepare: Callable[[Picture, RowT], T],
    workers: int = 2,
    ahead: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Decoded[RowT, T]]:
    """Read and prepare images as :func:`decode` does, where ``prepare`` takes pictures of Pillow as well as arrays."""
    waiting: deque[Future[Decoded[RowT, T]]] = deque()
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


def _decode_row(row: RowT, prepare: Callable[[Picture, RowT], T], max_pixels: int) -> Decoded[RowT, T]:
    try:
        picture = read_picture(row.path if row.pixels is None else row.pixels, max_pixels)
        return Decoded(row, prepare(picture, row), size_of(picture))
    except ImageError as error:
        return Decoded(row, None, (0, 0), error.reason)


def decode_all(
    table: Sequence[RowT],
    prepare: Callable[[Array, RowT], T],
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    *,
    what: str = "images",
    progress: Callable[[str, int, int], object] | None = None,
    stage: str = "reading images",
) -> Iterator[tuple[RowT, T]]:
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

    >>> import numpy as np, pickglass as pg
    >>> table = pg.Table([pg.Row("array:0", pixels=np.zeros((2, 3), np.uint8))])
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
