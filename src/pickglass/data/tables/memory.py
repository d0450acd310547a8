"""Images in memory come as arrays, tensors, PIL images, bytes, open files, and in pairs with labels.

One that is broken becomes the :class:`ImageError` that says why, in its place, so that it loses no other. What is
wrong as a whole, a batch with its channels first or a table of pandas, is an :class:`InputError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Number
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from pickglass.data.images.decoder import Array, Pixels, read_bytes
from pickglass.errors import ImageError, InputError, shortened

__all__ = ["Channels", "as_numpy", "check_channels", "image_and_label", "images_in", "parts_of"]

Channels: TypeAlias = Literal["rgb", "bgr"]

_COLOURS = (1, 3, 4)  # channels that an image may have
_BANDS = 16  # a last axis shorter than this, and than both others, holds channels and no columns
_EXPECTED = "expected a data set, rows, paths, arrays, tensors, PIL images, encoded bytes, or an iterable of these"


def as_numpy(values: Any) -> np.ndarray[Any, Any]:
    """Make a numpy array of an array, a list, or a PyTorch tensor on any device; torch is not imported.

    >>> as_numpy([1, 2]).tolist()
    [1, 2]
    """
    if _is_tensor(values):
        values = values.detach().cpu()
        if values.dtype.itemsize == 2 and values.dtype.is_floating_point:  # numpy has no bfloat16
            values = values.float()
    return np.asarray(values)


def check_channels(channels: str) -> None:
    """Raise an InputError unless this is an order of channels."""
    if channels not in get_args(Channels):
        raise InputError(f"channels={shortened(channels)}: expected 'rgb', or 'bgr' for arrays as OpenCV gives them")


def images_in(data: Any, channels: Channels, alone: bool) -> list[Pixels] | None:
    """Return the images that one object in memory holds; None: it is no such object.

    Args:
        data: an array, tensor, PIL image, encoded bytes, an open file, or None in a list of such.
        channels: the order of colours in arrays and tensors.
        alone: whether it is all that the user gave; an array in a list is one image that may be broken.

    Raises:
        InputError: an array alone that has no shape of images.
    """
    if isinstance(data, Image.Image):
        return [data]
    if isinstance(data, (bytes, bytearray, memoryview)):
        return [bytes(data)]
    if data is None and not alone:
        return [ImageError("<None>", "None, expected an image: cv2.imread gives None for a file that it cannot read")]
    if hasattr(data, "read"):
        try:
            return [read_bytes(data)]
        except ImageError as error:
            return [error]
    if not _is_array(data):
        return None
    array = data if isinstance(data, np.ndarray) else as_numpy(data)
    if array.dtype.kind in "OUS" and array.ndim:  # an array of paths, or of arrays
        return None
    split = _of_tensor(array) if _is_tensor(data) else _of_array(array, alone)
    if split is None and alone:
        raise InputError(
            f"an array of shape {array.shape}, expected (H, W), (H, W, C), (N, H, W) or (N, H, W, C) with C 1, 3 or 4"
        )
    return [_as_rgb(image, channels) for image in (split or [array])]


def _is_tensor(data: Any) -> bool:
    return hasattr(data, "detach") and hasattr(data, "dtype")  # an open file can be detached, too


def _is_array(data: Any) -> bool:
    if isinstance(data, np.ndarray) or _is_tensor(data):
        return True
    return hasattr(data, "__array__") and getattr(data, "ndim", 0) >= 2 and not hasattr(data, "iloc")


def _of_tensor(array: Array) -> list[Array] | None:
    """Split a tensor into images with their channels last: they come first wherever they can, as torchvision has it."""
    shape = array.shape
    if array.ndim == 2:
        return [array]
    if array.ndim == 3 and shape[0] in _COLOURS:
        return [array.transpose(1, 2, 0)]  # (C, H, W) -> (H, W, C)
    if array.ndim == 4 and shape[1] in _COLOURS:
        return list(array.transpose(0, 2, 3, 1))  # (N, C, H, W) -> (N, H, W, C)
    return _of_array(array, alone=False)


def _of_array(array: Array, alone: bool) -> list[Array] | None:
    """Split an array into images; None: it has no shape of images. What may be wrong in a list is left to the reader.

    Raises:
        InputError: the channels come first.
    """
    shape = array.shape
    if array.ndim not in (2, 3, 4):
        return None
    if array.ndim == 2 or (array.ndim == 3 and (shape[2] in _COLOURS or shape[2] < min(_BANDS, *shape[:2]))):
        return [array]
    if shape[-1] not in _COLOURS and shape[-3] in (3, 4):
        if alone:
            last = "(1, 2, 0)" if array.ndim == 3 else "(0, 2, 3, 1)"
            grey = f", or list(images) if these are {shape[0]} grey images" if array.ndim == 3 else ""
            raise InputError(
                f"an array of shape {shape} seems to have its channels first, expected them last: pass "
                f"images.transpose{last}{grey}"
            )
        return [array] if array.ndim == 3 else list(array)
    return list(array)


def _as_rgb(image: Array, channels: Channels) -> Pixels:
    if channels == "rgb":
        return image
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        return ImageError(
            "<array>", f"channels='bgr' and an image of shape {image.shape}, expected (H, W, 3) or (H, W, 4)"
        )
    return image[..., 2::-1]  # blue, green, red, perhaps alpha -> red, green, blue


def parts_of(data: Any) -> Iterable[Any]:
    """Return what to iterate over for the images of a list, a generator, a DataLoader, a data set of torch ...

    Raises:
        InputError: it holds no images in any way that is known.
    """
    kind = type(data).__name__
    if isinstance(data, type):
        raise InputError(f"the class {data.__name__}, {_EXPECTED}")
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        raise InputError(f"a {kind}, {_EXPECTED}: pass its column of paths, e.g. data['path']")
    if hasattr(data, "keys"):
        raise InputError(f"a {kind} with {shortened(list(data.keys()))}, {_EXPECTED}: pass the images alone")
    if isinstance(data, Number):
        raise InputError(f"a number, {shortened(data)}, {_EXPECTED}: make nested lists of numbers a numpy array")
    if isinstance(data, Iterable):
        return data
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # a data set of torch has no other way
        return (data[i] for i in range(len(data)))
    raise InputError(f"cannot take images from {shortened(data)} ({kind}): {_EXPECTED}")


def image_and_label(data: Any) -> tuple[Any, Iterator[float]]:
    """Return an image, or a batch of them, without its labels, where it comes in a pair as torchvision gives it.

    Raises:
        InputError: more than a pair, of which only some are images.
    """
    if not isinstance(data, (tuple, list)) or not any(_is_label(part, data[0]) for part in data[1:]):
        return data, iter(())
    if len(data) != 2 or isinstance(data[0], Number):
        raise InputError(
            f"{shortened(data)}: a {type(data).__name__} of {len(data)} with numbers in it, expected an image, or a "
            "pair (image, label): pass the images alone, e.g. (item[0] for item in data)"
        )
    return data[0], iter(np.unique(as_numpy(data[1])).tolist())


def _is_label(part: Any, image: Any) -> bool:
    """Say whether a part beside an image is its label, or one beside a batch holds a label for each of its images."""
    if isinstance(part, (Number, np.bool_)):
        return True
    if not _is_array(part) or part.ndim > 1 or as_numpy(part).dtype.kind not in "buif":
        return False
    return part.ndim == 0 or (_is_array(image) and image.ndim > 2 and len(image) == len(part))
