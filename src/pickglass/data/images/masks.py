"""Masks come as people save them: here they become the pixels that are marked, and softness is told, not hidden.

What marks a pixel is its *level*: its grey value, or its brightest channel. In a palette it is the colour, or the
index where the colours tell nothing apart; alpha counts where it varies. Where a mask has several colours and none is
black, nothing says what is not marked, and it is refused. A level is compared with the highest one:

- Levels above 0 are marked where there are no others than 0 and the highest, whatever these are: 1, 255, 65535, red.
- Levels up to :data:`LABELS` are numbers of regions or types. All above 0 are marked.
- Otherwise pale levels, above 0 and up to half of the highest, are *soft edges* if more than half of their pixels touch
  a brighter one, as antialiasing, resizing and blur make them; if the file is lossy (JPEG); or if it was: nearly all
  levels between lie close to 0 and close to the highest, several at either end. The mask is then cut at half of its
  highest level. Pale levels that stand apart are regions of their own, and are marked.
- A lossy mask that nowhere reaches half of white holds nothing but noise, and marks nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.data.images.decoder import MAX_PIXELS
from pickglass.data.images.formats import Array, decode_file, one_error, open_file, opened, picture_of_image
from pickglass.data.images.geometry import array_of
from pickglass.errors import ImageError, shortened

__all__ = ["LABELS", "Marks", "MaskSource", "Size", "check_mask_size", "marks_of", "read_marks", "read_mask"]

Size: TypeAlias = "tuple[int, int]"
MaskSource: TypeAlias = "str | os.PathLike[str] | Array | Sequence[str | os.PathLike[str] | Array]"

LABELS = 32
"""Levels up to this one are numbers of regions or types in a mask of whole numbers: no shade of white is so dark."""


class Marks(NamedTuple):
    """A mask marks these pixels, bool ``(H, W)``.

    Attributes:
        pixels: True where something is marked.
        soft: whether it had soft edges, which were cut at half.
        no_background: whether it marks every pixel though their levels differ, so that none says what is not marked.
    """

    pixels: NDArray[np.bool_]
    soft: bool
    no_background: bool = False


def read_mask(mask: MaskSource, size: Size, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Read which pixels a mask marks, bool ``(H, W)``, in any of several files; soft edges are cut at half.

    Args:
        mask: a file, an array ``(H, W)`` or ``(H, W, C)`` of whole numbers, bools or floats, or several of them.
        size: (H, W) of the image that the mask belongs to.
        max_pixels: as in :func:`pickglass.data.read_image`.

    Raises:
        ImageError: the mask cannot be read, or is of another size than its image.

    >>> read_mask(np.array([[0, 1, 2]]), (1, 3)).tolist()
    [[False, True, True]]
    """
    return read_marks(mask, size, max_pixels).pixels


def read_marks(mask: MaskSource, size: Size, max_pixels: int = MAX_PIXELS) -> Marks:
    """Read a mask as :func:`read_mask` does, and say whether any of its files has soft edges."""
    union, soft, no_background = np.zeros(size, np.bool_), False, False
    for source in mask if isinstance(mask, (tuple, list)) else (mask,):
        if not isinstance(source, (str, os.PathLike, np.ndarray)):
            raise ImageError(shortened(source), "no mask, expected a path, an array, or several of them")
        name = "<mask>" if isinstance(source, np.ndarray) else os.fspath(source)
        marks = _marks_in(source, name, max(max_pixels, size[0] * size[1]))  # as large as its image it may be
        check_mask_size(name, (marks.pixels.shape[0], marks.pixels.shape[1]), size)
        union |= marks.pixels
        soft |= marks.soft
        no_background |= marks.no_background
    return Marks(union, soft, no_background)


def _marks_in(source: str | os.PathLike[str] | Array, name: str, max_pixels: int) -> Marks:
    if isinstance(source, np.ndarray):
        return marks_of(_levels_of_array(source, name))
    with open_file(name) as file:
        values = array_of(decode_file(file, name, max_pixels, _values))
        with one_error(name):
            return marks_of(_levels(values, name), _is_lossy(file, name))


def _levels_of_array(array: Array, name: str) -> Array:
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(name, f"the mask has the shape {array.shape}, expected (H, W), (H, W, 1) or (H, W, 3)")
    if array.dtype.kind not in "buif":
        raise ImageError(name, f"the mask has the dtype {array.dtype}, expected bool, whole numbers or floats")
    return _levels(array, name)


def _values(image: Image.Image, name: str) -> Array:
    """Return the values of a decoded mask, from which :func:`_levels` makes one level a pixel."""
    mode = image.mode
    if mode in ("I", "F"):
        return np.array(image)
    if mode in ("LA", "RGBA", "La", "RGBa"):
        return np.array(image.convert("RGBA" if mode.startswith("R") else "LA").convert("RGBA"))
    if mode not in ("P", "PA"):
        return array_of(picture_of_image(image, name))
    rgba = np.array(image.convert("RGBA"))
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if mode == "P" and alpha.min() == alpha.max() and (not colours.any() or colours.any(axis=2).all()):
        indices = np.array(image)  # no colour is the background, but the first index
        return indices > (indices.min() if indices.min() < indices.max() else 0)
    if not (colours == colours[..., :1]).all():  # colours name types and are no shades
        rgba[..., :3] = 255 * colours.any(axis=2, keepdims=True)
    return rgba


def _levels(values: Array, name: str) -> Array:
    """Return the levels ``(H, W)``, 0 and above, of a mask ``(H, W)`` or ``(H, W, C)`` with C 1, 3, or 4 with alpha."""
    levels = values
    if values.ndim == 3:
        levels, colours = values[..., 0], values[..., :3]
        for channel in range(1, colours.shape[2]):
            levels = np.maximum(levels, values[..., channel])
        alpha = values[..., 3] if values.shape[2] == 4 else None
        if alpha is not None and alpha.min() < alpha.max():  # alpha that is the same everywhere says nothing
            levels = np.minimum(levels, alpha) if levels.any() else alpha
        elif (levels > 0).all() and (colours != colours[..., :1]).any() and (colours != colours[0, 0]).any():
            raise ImageError(name, "the mask has several colours and none is black: make black what is not marked")
    low = levels.min() if levels.dtype.kind in "if" else 0
    if not low >= 0 or (levels.dtype.kind == "f" and not levels.max() < np.inf):  # so written that NaN fails too
        raise ImageError(name, "the mask holds negative, infinite or NaN values, expected 0 for what is not marked")
    return levels


def _is_lossy(file: IO[bytes], name: str) -> bool:
    """Say whether the pixels of a mask were changed to save space, so that they have values that nobody drew."""
    image = opened(file, name)
    if image.format == "WEBP":
        file.seek(0)
        return b"VP8 " in file.read()  # the chunk of lossy pixels; lossless ones are in VP8L
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def marks_of(levels: Array, lossy: bool = False) -> Marks:
    """Decide which pixels are marked by levels ``(H, W)``, not negative; ``lossy``: as JPEG left them."""
    if levels.dtype == np.bool_:
        return Marks(levels, False)
    highest = levels.max()
    if levels.dtype.kind == "f" and highest > 1 and (levels == np.floor(levels)).all():  # whole numbers all the same
        levels, highest = levels.astype(np.int64), np.int64(highest)
    half = highest // 2 if levels.dtype.kind in "ui" else highest / 2
    marked: NDArray[np.bool_] = levels > 0
    if lossy and highest <= np.iinfo(levels.dtype).max // 2:
        return Marks(np.zeros(levels.shape, np.bool_), bool(highest > 0))
    pale = marked & (levels <= half)
    no_background = bool(marked.all()) and bool(levels.min() < highest)
    if not pale.any():
        return Marks(marked, False, no_background)
    labels = levels.dtype.kind in "ui" and highest <= LABELS
    if lossy or (not labels and (_are_edges(levels, pale) or _are_noise(levels, marked))):
        return Marks(levels > half, True)
    return Marks(marked, False, no_background)


def _are_edges(levels: Array, pale: NDArray[np.bool_]) -> bool:
    """Say whether more than half of the pale pixels, those at the rim of the image apart, touch a brighter pixel."""
    rows, columns = np.nonzero(pale[1:-1, 1:-1])  # (n,) each, of the pixel above and to the left
    centre = levels[rows + 1, columns + 1]
    touches = np.zeros(len(rows), np.bool_)
    for down in range(3):
        for right in range(3):
            touches |= levels[rows + down, columns + right] > centre
    return bool(2 * np.count_nonzero(touches) > len(rows))


def _are_noise(levels: Array, marked: NDArray[np.bool_]) -> bool:
    """Say whether 19 of 20 pixels between 0 and the highest lie within an eighth of either, at two levels or more."""
    highest = levels.max()
    between = levels[marked & (levels < highest)]
    dark, bright = between[between < highest / 8], between[between > highest * (7 / 8)]
    if 20 * (dark.size + bright.size) < 19 * between.size:
        return False
    return len(np.unique(dark)) > 1 and len(np.unique(bright)) > 1


def check_mask_size(path: str, mask: Size, image: Size) -> None:
    """Raise an ImageError unless a mask has the size (H, W) of its image."""
    if mask != image:
        raise ImageError(
            path,
            f"the mask is {mask[0]}x{mask[1]} (height x width) but its image is {image[0]}x{image[1]}: "
            "make the mask as large as the image",
        )
