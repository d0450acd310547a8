"""Images as people look at them: shrunk, with the colours of a heat map over them, and with outlines of defects.

Letters: H, W the original image; h, w the picture, which is rarely larger. Whatever is small must survive the
shrinking, so heat maps and masks are reduced by the maximum under each pixel of the picture, never averaged.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "ELONGATED",
    "HEAT_COLOURS",
    "PREDICTED",
    "TRUTH",
    "Array",
    "colour_range",
    "display",
    "draw_contours",
    "grow",
    "heat",
    "picture_size",
    "rgb",
    "shrink_max",
    "strips",
    "thumbnail",
    "value_range",
]

Array = np.ndarray[Any, Any]

SIDE = 320  # px, longest side of a picture
LONG_SIDE = 1280  # px, longest side of an elongated picture: 1280 x 80 has the area of 320 x 320
ELONGATED = 3.0  # aspect ratio above which a picture counts as elongated
OPACITY = 0.85  # of the heat at the upper end of the scale; at the lower end it is 0

# A blue and a yellow stay apart for every kind of colour vision; both are edged in black on the pictures.
TRUTH = "#33bbee"
PREDICTED = "#ffb000"

# "inferno" by Nathaniel Smith and Stefan van der Walt (CC0), in which equal steps look equally far apart.
_INFERNO = """
AAADAAAEAAAGAQAHAQEJAQELAgEOAgIQAwISBAMUBAMWBQQYBgQbBwUdCAYfCQYhCgcjCwcmDQgoDggqDwktEAkvEgoyEwo0FAs2Fgs5Fws7GQs+
GgtAHAxDHQxFHwxHIAxKIgtMJAtOJgtQJwtSKQtUKwpWLQpYLgpaMApcMgldNAlfNQlgNwlhOQliOwlkPAllPglmQAlmQQlnQwpoRQppRgppSAtq
SgtqSwxrTQxrTw1sUA1sUg5sUw5tVQ9tVw9tWBBtWhFtWxFuXRJuXxJuYBNuYhRuYxRuZRVuZhVuaBZuahduaxdubRhubhhucBluchltcxptdRtt
dhtteBxtehxtex1sfR1sfh5sgB9rgR9rgyBrhSBqhiFqiCFqiSJpiyJpjSNpjiRokCRokSVnkyVnlSZmliZmmCdlmShkmyhknCljniljoCpioSth
oythpCxgpixfpy1fqS5eqy5drC9crjBbrzFbsTFasjJZtDNYtTNXtzRWuDVWujZVuzdUvTdTvjhSvzlRwTpQwjtPxDxOxT1Nxz5MyD5LyT9Ky0BJ
zEFIzUJHz0RG0EVE0UZD0kdC1EhB1UlA1ko/10s+2U092k4720863FA53VI43lM331Q24FY04lcz41gy5Fox5Vsw5lwu5l4t518s6GEr6WIq6mQo
62Un7Gcm7Wgl7Woj7mwi720h8G8f8HAe8XId8nQc8nUa83cZ83kY9HoW9XwV9X4U9oAS9oER94MQ94UO+IcN+IgM+IoL+YwJ+Y4I+ZAI+pEH+pMG
+pUG+pcG+5kG+5sG+50G+54H+6AH+6II+6QK+6YL+6gN+6oO+6wQ+64S+7AU+7EW+7MY+7Ua+7cc+7ke+rsh+r0j+r8l+sEo+cMq+cUs+ccv+Mkx
+Ms0+M03988699E89tM/9tVC9ddF9dlI9NtL9NxP895S8+BW8+JZ8uRd8uZg8ehk8elo8ets8e1w8e508fB58fJ98vOB8vSF8/aJ9PeN9fiR9vqV
9/uZ+fyd+v2g/P6k
"""
HEAT_COLOURS: Array = np.frombuffer(base64.b64decode(_INFERNO), np.uint8).reshape(256, 3)
"""The colours of heat maps, ``(256, 3)`` uint8, from the lowest to the highest value."""


def picture_size(height: int, width: int, side: int = SIDE) -> tuple[int, int]:
    """Return the size ``(h, w)`` of an image's picture: the same aspect, no larger, one byte budget for all.

    Args:
        height: height of the image in px.
        width: width of the image in px.
        side: the picture's longest side in px; more for an elongated image, which would otherwise be a thin line.
    """
    long, short = max(height, width), min(height, width)
    longest = side if long <= ELONGATED * short else min(LONG_SIDE, side * math.sqrt(long / short))
    factor = min(1.0, longest / long)
    return max(1, round(height * factor)), max(1, round(width * factor))


def thumbnail(image: Array, size: tuple[int, int]) -> Array:
    """Resize pixels ``(H, W, 3)`` uint8 to a picture of ``size = (h, w)``."""
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.LANCZOS)
    )  # (h, w, 3)


def value_range(image: Array) -> tuple[float, float]:
    """Return the values to show as black and as white.

    They are 0 and 255 for an 8-bit image. Deeper images rarely fill their range, so theirs are the values below and
    above which one pixel in a thousand lies; an image of one grey level is shown between 0 and the white of its type.
    """
    if image.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, max(image.shape[:2]) // 1000)  # a sample of the pixels is enough for two percentiles
    low, high = np.percentile(image[::step, ::step], (0.1, 99.9))
    deep = image.dtype == np.uint16
    if high - low < (1.0 if deep else 1e-6):
        return 0.0, 65535.0 if deep else 1.0
    return float(low), float(high)


def display(image: Array, span: tuple[float, float] | None = None) -> Array:
    """Return the pixels of an image as ``(H, W, 3)`` uint8 to look at.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)``, uint8, uint16, or floats.
        span: the values to show as black and as white; None: those of :func:`value_range`.
    """
    low, high = span or value_range(image)
    if image.dtype != np.uint8:
        deep, image = image, np.empty(image.shape, np.uint8)
        for rows in strips(deep.shape):
            image[rows] = np.clip((deep[rows].astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    return np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))  # (H, W, 3)


def shrink_max(values: Array, size: tuple[int, int]) -> Array:
    """Reduce ``(H, W)`` to ``size = (h, w)``, at most as large, by the maximum under each new pixel."""
    rows = np.arange(size[0]) * values.shape[0] // size[0]
    columns = np.arange(size[1]) * values.shape[1] // size[1]
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1))  # (h, w)


def colour_range(threshold: float | None, maps: Sequence[Array]) -> tuple[float, float]:
    """Return the anomaly values at the two ends of the colours. No score depends on them.

    With a pixel threshold they are three quarters of it and the highest value of the maps. The upper end is at least
    1.25 times the threshold, lest good images glow, and at most twice it, lest one glaring defect leave the others
    pale; without maps it is 1.5 times the threshold. Without a threshold they are the tenth percentile and the highest
    of the values.
    """
    if threshold is not None and threshold > 0:
        high = max((float(m.max()) for m in maps), default=1.5 * threshold)
        return 0.75 * threshold, min(max(high, 1.25 * threshold), 2 * threshold)
    low = min(float(np.percentile(m, 10)) for m in maps)
    high = max(float(m.max()) for m in maps)
    return low, max(high, low + 1e-6)


def heat(image: Array, values: Array, scale: tuple[float, float]) -> Array:
    """Lay the colours of ``values (h, w)`` over a grey ``image (h, w, 3)``, the more opaque the higher the value."""
    out = np.empty((*values.shape, 3), np.uint8)
    for rows in strips(values.shape):  # as floats all of a large image would take 50 bytes a pixel
        out[rows] = _heated(image[rows], values[rows], scale)
    return out


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut an image of ``shape (H, W, ...)`` into rows of about a million pixels together."""
    step = max(1, (1 << 20) // max(1, shape[1]))
    for top in range(0, shape[0], step):
        yield slice(top, top + step)


def _heated(image: Array, values: Array, scale: tuple[float, float]) -> Array:
    low, high = scale
    share = np.clip((values.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    colours = HEAT_COLOURS[np.round(255 * share).astype(np.uint8)]  # (h, w, 3)
    # Grey underneath: the colours of the part itself would read as heat.
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    opacity = OPACITY * share[..., None]
    return np.asarray((grey[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8))


def draw_contours(image: Array, truth: Array | None = None, predicted: Array | None = None) -> Array:
    """Outline masks ``(h, w)`` on ``image (h, w, 3)``: ground truth and prediction, each with a dark edge.

    The line runs just outside the mask, because an inner line would hide defects of a few pixels.
    """
    out = np.array(image)
    for mask, colour in ((predicted, PREDICTED), (truth, TRUTH)):
        if mask is not None:
            line = grow(mask)
            out[grow(line) & ~line] //= 3
            out[line & ~mask] = rgb(colour)
    return np.asarray(out)


def grow(mask: Array) -> Array:
    """Dilate a bool mask ``(h, w)`` by one pixel in all eight directions."""
    wide = np.pad(mask, 1)
    wide = wide[:-2] | wide[1:-1] | wide[2:]  # (h, w + 2)
    return np.asarray(wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:])  # (h, w)


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour such as ``#ffb000``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
