"""The images of a line that keeps running change in light, focus, noise, compression and the place of the parts.

Each kind has one strength in a stated unit, and 0 leaves the image as it is. Images are as
:func:`pickglass.data.read_image` returns them and keep their size and bit depth.

============  =========================================================================================
kind          strength
============  =========================================================================================
brightness    share of the light lost: every value times 1 - strength
overexposure  share of light added: every value times 1 + strength, and what exceeds white is white
contrast      share of the contrast lost: every value moves that far towards the mean of its channel
blur          standard deviation of a Gaussian, in pixels of the image
noise         standard deviation of Gaussian noise, own to each pixel and channel, as a share of white
jpeg          100 - quality, as 8-bit JPEG (4:2:0); a deeper image is rounded to 8 bits on the way
shift         how far the image moves, in some direction, as a share of its shorter side; whole pixels
rotation      how far it turns about its middle, one way or the other, in degrees; bilinear
============  =========================================================================================

What moves in from beyond the border is the image mirrored at it, and the mask is mirrored alike.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.data.images.formats import Array
from pickglass.errors import InputError, UnknownName

__all__ = ["DISTURBANCES", "UNITS", "disturb", "disturb_mask"]

DISTURBANCES: dict[str, tuple[float, ...]] = {
    "brightness": (0.05, 0.1, 0.2, 0.4),
    "overexposure": (0.05, 0.1, 0.2, 0.4),
    "contrast": (0.05, 0.1, 0.2, 0.4),
    "blur": (0.5, 1.0, 2.0, 4.0),
    "noise": (0.01, 0.02, 0.05, 0.1),
    "jpeg": (10, 30, 60, 90),
    "shift": (0.01, 0.02, 0.05, 0.1),
    "rotation": (1, 2, 5, 10),
}
"""Kind -> four rising strengths, from what a line sees on a normal day to what a person would notice at once."""

UNITS: dict[str, str] = {
    "brightness": "share of the light lost",
    "overexposure": "share of light added",
    "contrast": "share of the contrast lost",
    "blur": "sigma of a Gaussian, in pixels",
    "noise": "sigma as a share of white",
    "jpeg": "100 - quality",
    "shift": "share of the shorter side",
    "rotation": "degrees",
}
"""Kind -> what its strength counts, in words."""

_Floats = np.ndarray[Any, np.dtype[np.float32]]

_MOST = {"brightness": 1.0, "contrast": 1.0, "jpeg": 99.0}
_ROWS = 256  # turned at a time, for large images


def disturb(image: Array, kind: str, strength: float, rng: np.random.Generator) -> Array:
    """Disturb a copy of an image.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``, uint8, uint16, or float32 in 0..1.
        kind: a name in :data:`DISTURBANCES`.
        strength: in the unit of the kind, from 0, the image itself; at most 1 for brightness and contrast, 99 for
            jpeg.
        rng: draws the noise and the direction; the same state gives the same result.

    Returns:
        A new array of the same shape and dtype; values beyond black and white are clipped.

    Raises:
        UnknownName: there is no such kind.
        InputError: the strength is out of range.

    >>> disturb(np.array([[0, 100, 200]], np.uint8), "brightness", 0.5, np.random.default_rng(0)).tolist()
    [[0, 50, 100]]
    """
    _check(kind, strength)
    if strength == 0:
        return np.array(image)
    if kind in _MOVES:
        source = _MOVES[kind](image.shape[:2], strength, rng)
        return _moved(image, source)
    if kind == "jpeg":
        return _jpeg(image, round(100 - strength))
    white = _white(image)
    unit = np.divide(image, white, dtype=np.float32)
    return _rounded(_VALUES[kind](unit, strength, rng) * white, image)


def disturb_mask(mask: NDArray[np.bool_], kind: str, strength: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Disturb a mask as its image: it follows shift and rotation (nearest pixel) and otherwise stays as it is.

    Args:
        mask: bool ``(H, W)``.
        kind: as in :func:`disturb`.
        strength: as in :func:`disturb`.
        rng: in the state it had when the image was disturbed.

    Raises:
        UnknownName: there is no such kind.
        InputError: the strength is out of range.

    >>> mask = np.eye(20, dtype=bool)
    >>> moved = disturb_mask(mask, "shift", 0.1, np.random.default_rng(3))
    >>> moved.shape, bool((moved == mask).all())
    ((20, 20), False)
    """
    _check(kind, strength)
    if strength == 0 or kind not in _MOVES:
        return np.array(mask)
    source = _MOVES[kind]((mask.shape[0], mask.shape[1]), strength, rng)
    return _moved(mask, source)


def _check(kind: str, strength: float) -> None:
    if kind not in DISTURBANCES:
        raise UnknownName("disturbance", kind, DISTURBANCES)
    most = _MOST.get(kind, math.inf)
    if not (math.isfinite(strength) and 0 <= strength <= most):
        span = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise InputError(f"{kind}: strength={strength!r}: expected a number {span} ({UNITS[kind]})")


# -- values: float32 images of their own, white = 1 -------------------------------------------------------------------


def _brightness(image: _Floats, strength: float, rng: np.random.Generator) -> _Floats:
    image *= np.float32(1 - strength)
    return image


def _overexposure(image: _Floats, strength: float, rng: np.random.Generator) -> _Floats:
    image *= np.float32(1 + strength)
    return image


def _contrast(image: _Floats, strength: float, rng: np.random.Generator) -> _Floats:
    mean = image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    image += (mean - image) * np.float32(strength)
    return image


def _blur(image: _Floats, strength: float, rng: np.random.Generator) -> _Floats:
    reach = math.ceil(4 * strength)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / strength) ** 2)
    weights = weights / weights.sum()
    for axis in (0, 1):
        n = image.shape[axis]
        wide = image.take(_mirrored(np.arange(-reach, n + reach), n), axis)  # longer by 2 reach along the axis
        image[:] = 0
        for offset, weight in enumerate(weights.astype(np.float32)):
            image += weight * (wide[offset : offset + n] if axis == 0 else wide[:, offset : offset + n])
    return image


def _noise(image: _Floats, strength: float, rng: np.random.Generator) -> _Floats:
    image += rng.standard_normal(image.shape, np.float32) * np.float32(strength)
    return image


_VALUES: dict[str, Callable[[_Floats, float, np.random.Generator], _Floats]] = {
    "brightness": _brightness,
    "overexposure": _overexposure,
    "contrast": _contrast,
    "blur": _blur,
    "noise": _noise,
}


def _white(image: Array) -> float:
    return 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)


def _rounded(values: NDArray[Any], like: Array) -> Array:
    """Clip values to the range of ``like`` and bring them to its dtype."""
    values = values.clip(0, _white(like))
    return values.astype(like.dtype) if like.dtype.kind == "f" else np.rint(values).astype(like.dtype)


def _jpeg(image: Array, quality: int) -> Array:
    white = _white(image)
    shallow = image if image.dtype == np.uint8 else np.rint(image * np.float32(255 / white)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shallow)).save(file, "JPEG", quality=quality)
    with Image.open(file) as opened:
        back = np.array(opened)
    return back if image.dtype == np.uint8 else _rounded(back * np.float32(white / 255), image)


# -- places -----------------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Pixel (y, x) of the result lies at ``start + y * down + x * right`` of the original, each (row, column)."""

    start: tuple[float, float]
    down: tuple[float, float]
    right: tuple[float, float]


def _shift(size: tuple[int, ...], strength: float, rng: np.random.Generator) -> _Source:
    angle, far = rng.uniform(0, 2 * math.pi), strength * min(size)
    return _Source((-round(far * math.sin(angle)), -round(far * math.cos(angle))), (1, 0), (0, 1))


def _rotation(size: tuple[int, ...], strength: float, rng: np.random.Generator) -> _Source:
    angle = math.radians(strength) * (1 if rng.random() < 0.5 else -1)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = (size[0] - 1) / 2, (size[1] - 1) / 2
    return _Source((y - cos * y - sin * x, x + sin * y - cos * x), (cos, -sin), (sin, cos))


_MOVES: dict[str, Callable[[tuple[int, ...], float, np.random.Generator], _Source]] = {
    "shift": _shift,
    "rotation": _rotation,
}


def _moved(image: NDArray[Any], source: _Source) -> NDArray[Any]:
    """Move an image bilinearly, a mask by the nearest pixel; both are mirrored at the border."""
    height, width = image.shape[:2]
    (y0, x0), (y_down, x_down), (y_right, x_right) = source
    if (source.down, source.right) == ((1, 0), (0, 1)):
        rows, columns = np.arange(height) + int(y0), np.arange(width) + int(x0)
        return image[_mirrored(rows, height)][:, _mirrored(columns, width)]
    out, across = np.empty_like(image), np.arange(width)
    for top in range(0, height, _ROWS):
        along = np.arange(top, min(top + _ROWS, height))[:, None]
        y, x = y0 + along * y_down + across * y_right, x0 + along * x_down + across * x_right  # (rows, W)
        if image.dtype == np.bool_:
            out[top : top + _ROWS] = image[_mirrored(np.rint(y), height), _mirrored(np.rint(x), width)]
        else:
            out[top : top + _ROWS] = _rounded(_between(image, y, x), image)
    return out


def _between(image: Array, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[Any]:
    """Return bilinear values at ``y``, ``x``, each (rows, W)."""
    height, width = image.shape[:2]
    above, left = np.floor(y), np.floor(x)
    low, across = (y - above).astype(np.float32), (x - left).astype(np.float32)
    if image.ndim == 3:
        low, across = low[..., None], across[..., None]  # (rows, W, 1)
    rows = _mirrored(above, height), _mirrored(above + 1, height)
    columns = _mirrored(left, width), _mirrored(left + 1, width)
    upper, lower = (image[row, columns[0]] * (1 - across) + image[row, columns[1]] * across for row in rows)
    mixed: NDArray[Any] = upper * (1 - low) + lower * low
    return mixed


def _mirrored(places: NDArray[Any], n: int) -> NDArray[np.intp]:
    """Map whole numbers to places in 0..n - 1, as if the image and its mirror images by turns filled the plane."""
    place = places.astype(np.intp) % (2 * n)
    return np.minimum(place, 2 * n - 1 - place)
