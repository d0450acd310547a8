"""The one decoder, the one resize, and threads that decode ahead of the network. Needs numpy and Pillow only.

An image is an array ``(H, W)`` or ``(H, W, 3)`` of uint8, uint16, or float32 in 0..1, and keeps its bit depth until
:class:`Preprocess` turns it into what a network reads. What cannot be kept exactly is an :class:`ImageError`.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.data.formats import Array, Header, decode_file, decode_pil, open_file, parse_header, unit_floats
from pickglass.data.tables import Row
from pickglass.errors import ImageError, InputError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Array",
    "Decoded",
    "Header",
    "Preprocess",
    "check_mask_size",
    "decode",
    "image_size",
    "read_header",
    "read_image",
    "read_mask",
    "resize_map",
]

Source: TypeAlias = "str | os.PathLike[str] | Array | Image.Image | BinaryIO"
T = TypeVar("T")

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 250_000_000  # a file that claims more is more likely damaged than sound

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_image(source: Source, max_pixels: int = MAX_PIXELS) -> Array:
    """Read one image, upright, without alpha, at its full bit depth.

    Args:
        source: path, open binary file, PIL image, or array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)``, ``(H, W, 4)`` of
            bool, uint8, uint16, or floats in 0..1. PNG, JPEG, TIFF, BMP and WebP files are read.
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
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return decode_pil(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        with open_file(path) as file:
            return decode_file(file, path, max_pixels)
    return decode_file(io.BytesIO(source.read()), str(getattr(source, "name", "<file object>")), max_pixels)


def read_mask(
    path: str | os.PathLike[str] | tuple[str, ...],
    size: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.bool_]:
    """Read a ground-truth mask, bool ``(H, W)``: any value above 0 in any channel is defect; of several files, in any.

    Raises:
        ImageError: unreadable, or its size is not ``size`` (H, W), that of the image.
    """
    union = np.zeros(size, np.bool_)
    for file in path if isinstance(path, tuple) else (path,):
        image = read_image(file, max_pixels)
        check_mask_size(os.fspath(file), (image.shape[0], image.shape[1]), size)
        defect: NDArray[np.bool_] = image > 0
        union |= defect if defect.ndim == 2 else np.logical_or.reduce(defect, axis=2)  # (H, W)
    return union


def check_mask_size(path: str, mask: tuple[int, int], image: tuple[int, int]) -> None:
    """Raise an ImageError unless a mask has the size (H, W) of its image."""
    if mask != image:
        raise ImageError(
            path,
            f"the mask is {mask[0]}x{mask[1]} (height x width) but its image is {image[0]}x{image[1]}: "
            "make the mask as large as the image",
        )


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size, bit depth and channels of an image file, without decoding its pixels.

    Raises:
        ImageError: missing, empty, or not an image.
    """
    with open_file(os.fspath(path)) as file:
        return parse_header(file, os.fspath(path))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image file as :func:`read_image` returns it, without decoding its pixels."""
    return read_header(path)[:2]


def _from_array(array: Array) -> Array:
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        turn = ": put the channels last, .transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise ImageError("<array>", f"shape {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){turn}")
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


# -- to the network and back ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocess:
    """From an image to float32 ``(3, H, W)`` in 0..1, always by the same arithmetic: squeezed, grey as three channels.

    8-bit images are resized in 8 bits, as Pillow does and as published weights were trained; deeper ones as floats.
    Resizing is antialiased. Mean and standard deviation belong to the network and are not applied here.

    Args:
        size: height and width of the result in pixels.
        interpolation: ``bilinear`` or ``bicubic``.

    >>> prepare = Preprocess((2, 2))
    >>> prepare(np.array([[0, 51], [102, 255]], np.uint8))[0].round(3).tolist()
    [[0.0, 0.20000000298023224], [0.4000000059604645, 1.0]]
    >>> Preprocess.from_json(prepare.to_json()) == prepare
    True
    """

    size: tuple[int, int]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(n, int) and n > 0 for n in self.size):
            raise InputError(f"size={self.size!r}: expected (height, width) in pixels, e.g. (256, 256)")
        if self.interpolation not in _RESAMPLING:
            raise InputError(f"interpolation={self.interpolation!r}: expected one of {', '.join(_RESAMPLING)}")

    def __call__(self, image: Array) -> NDArray[np.float32]:
        """Prepare an image as :func:`read_image` returns it: float32 ``(3, H, W)``, contiguous, the input untouched."""
        if image.dtype == np.uint8:
            resized, white = self._resized(image), 255
        else:
            unit = image if image.dtype == np.float32 else np.divide(image, np.float32(65535), dtype=np.float32)
            planes = [unit] if unit.ndim == 2 else list(unit.transpose(2, 0, 1))
            resized = np.stack([self._resized(plane) for plane in planes], axis=2).clip(0, 1)  # bicubic overshoots
            white = 1
        channels_last = resized if resized.ndim == 3 else resized[..., None]  # (H, W, 1 or 3)
        out = np.empty((3, *self.size), np.float32)
        np.divide(channels_last.transpose(2, 0, 1), np.float32(white), out=out, dtype=np.float32)  # (3, H, W)
        return out

    def _resized(self, image: Array) -> Array:
        if image.shape[:2] == self.size:
            return image
        height, width = self.size
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), _RESAMPLING[self.interpolation])
        return np.asarray(resized)

    def to_json(self) -> dict[str, Any]:
        """A plain dict from which :meth:`from_json` makes an equal Preprocess."""
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """The Preprocess that :meth:`to_json` described; InputError for anything else."""
        if set(data) != {"size", "interpolation"} or not isinstance(data["size"], (list, tuple)):
            raise InputError(f"{data!r} does not describe a Preprocess: expected size [H, W] and interpolation")
        return cls(tuple(data["size"]), data["interpolation"])


def resize_map(
    map: NDArray[np.float32],
    size: tuple[int, int],
    shift: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.float32]:
    """Bring an anomaly map ``(h, w)`` to the pixels of the image, float32 ``(H, W)``.

    Bilinear, half-pixel centres, edge replicated, no antialiasing: in both directions the values of torch's
    ``interpolate(mode="bilinear", align_corners=False)``.

    Args:
        map: ``(h, w)`` float32.
        size: height and width of the result.
        shift: how far down and right of the middle of its square the centre of a cell lies, in cells.

    >>> resize_map(np.array([[0.0, 1.0]], np.float32), (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    # Across first and on the transpose: the second, larger step then copies whole rows.
    across = _interpolate_rows(np.asarray(map, np.float32).T, size[1], shift[1])  # (W, h)
    return _interpolate_rows(np.ascontiguousarray(across.T), size[0], shift[0])  # (H, W)


def _interpolate_rows(rows: NDArray[np.float32], n: int, shift: float) -> NDArray[np.float32]:
    last = len(rows) - 1
    at = np.clip((np.arange(n) + 0.5) * (len(rows) / n) - 0.5 - shift, 0, last)
    above = at.astype(np.intp)
    weight = (at - above).astype(np.float32)[:, None]
    low: NDArray[np.float32] = rows[above]  # (n, ...)
    out: NDArray[np.float32] = rows[np.minimum(above + 1, last)]  # (n, ...)
    out -= low
    out *= weight
    out += low
    return out


# -- threads ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """One row decoded: ``value`` as ``prepare`` returned it and the original ``size`` (H, W), or ``error``.

    An image that could not be read has ``value`` None, ``size`` (0, 0), and the reason in one line as ``error``.
    """

    row: Row
    value: T | None
    size: tuple[int, int]
    error: str | None = None


def decode(
    rows: Iterable[Row],
    prepare: Callable[[Array], T],
    workers: int = 2,
    ahead: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Decoded[T]]:
    """Read and prepare images in threads ahead of the consumer, in the order of ``rows``.

    Args:
        rows: what to read; taken as needed, so it may be endless.
        prepare: runs in the threads on each image, e.g. a :class:`Preprocess`.
        workers: number of threads.
        ahead: most images taken from ``rows`` and not yet handed over.
        max_pixels: as in :func:`read_image`.

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


def _decode_row(row: Row, prepare: Callable[[Array], T], max_pixels: int) -> Decoded[T]:
    try:
        image = read_image(row.path if row.pixels is None else row.pixels, max_pixels)
        return Decoded(row, prepare(image), (image.shape[0], image.shape[1]))
    except ImageError as error:
        return Decoded(row, None, (0, 0), error.reason)
