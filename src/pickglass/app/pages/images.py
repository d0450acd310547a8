"""Pictures for the pages: thumbnails, close-ups, overlays, the colours of heat maps, and how pictures are embedded.

Letters: H, W the original image; h, w the picture, which is rarely larger. Whatever is small must survive the
shrinking, so heat maps and masks are reduced by the maximum under each pixel of the picture, never averaged.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "ELONGATED",
    "HEAT_COLOURS",
    "PREDICTED",
    "TRUTH",
    "Array",
    "Badge",
    "Picture",
    "close_up",
    "colour_range",
    "data_address",
    "display",
    "draw_boxes",
    "draw_contours",
    "enlarged",
    "grow",
    "heat",
    "jpeg",
    "mark_peak",
    "nearest",
    "own_range",
    "picture_size",
    "png",
    "ramp",
    "rgb",
    "shape_of",
    "shrink_max",
    "thumbnail",
    "tint",
    "value_range",
]

Array = np.ndarray[Any, Any]

SIDE = 320  # px, longest side of a picture
LONG_SIDE = 1280  # px, longest side of an elongated picture: 1280 x 80 has the area of 320 x 320
ELONGATED = 3.0  # aspect ratio above which a picture counts as elongated
PEAK = (6, 11)  # px in the picture, where the strokes around a peak begin and end
BOX = 14  # px in the picture, smallest side of a drawn box
QUALITY = 80  # of the JPEGs, 1 to 95
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


class Badge(NamedTuple):
    """A verdict in a word or two: how it looks on the page, and its text."""

    style: Literal["right", "wrong", "faint"]
    text: str


@dataclass(frozen=True)
class Picture:
    """One picture of a page, or a line of text where there is nothing to draw.

    Attributes:
        kind: class of the figure on the page, e.g. ``heat``.
        caption: what the picture shows, for people.
        source: the encoded picture as a ``data:`` address, None when the caption says all.
        size: ``(h, w)`` of the picture in px.
        badge: a verdict to show behind the caption.
        own: the same picture in colours that span its own values, likewise encoded; None: there is none.
    """

    kind: str
    caption: str
    source: str | None
    size: tuple[int, int]
    badge: Badge | None = None
    own: str | None = None


def jpeg(kind: str, caption: str, pixels: Array, badge: Badge | None = None) -> Picture:
    """Encode a picture ``(h, w, 3)`` uint8 as JPEG, which suits photographs."""
    buffer = io.BytesIO()
    # Full colour resolution: contours are one pixel wide and would wash out in 4:2:0, and so in WebP. Not optimised:
    # Pillow's buffer for that is too small for a noisy picture, which would raise.
    _image(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return Picture(kind, caption, data_address("image/jpeg", buffer.getvalue()), pixels.shape[:2], badge)


def png(kind: str, caption: str, pixels: Array, badge: Badge | None = None) -> Picture:
    """Encode a picture ``(h, w)``, ``(h, w, 3)`` or ``(h, w, 4)`` uint8 as PNG, which keeps every value."""
    buffer = io.BytesIO()
    _image(pixels).save(buffer, "PNG")
    return Picture(kind, caption, data_address("image/png", buffer.getvalue()), pixels.shape[:2], badge)


def ramp(caption: str = "the colours from the lowest to the highest value") -> Picture:
    """Draw the colours of heat maps side by side, the lowest value on the left."""
    return png("ramp", caption, HEAT_COLOURS[None])


def shape_of(height: int, width: int) -> Literal["", "wide", "tall"]:
    """Return how a page lays an image of this size out: elongated ones get a row or a column of their own."""
    return "wide" if width > ELONGATED * height else "tall" if height > ELONGATED * width else ""


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
    return np.asarray(_image(image).resize(size[::-1], Image.Resampling.LANCZOS))  # (h, w, 3)


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
        image = np.clip((image.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    return np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))  # (H, W, 3)


def shrink_max(values: Array, size: tuple[int, int]) -> Array:
    """Reduce ``(H, W)`` to ``size = (h, w)``, at most as large, by the maximum under each new pixel."""
    rows = np.arange(size[0]) * values.shape[0] // size[0]
    columns = np.arange(size[1]) * values.shape[1] // size[1]
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1))  # (h, w)


def nearest(cells: Array, size: tuple[int, int]) -> Array:
    """Resize ``(H, W)`` or ``(H, W, 3)`` to ``size = (h, w)`` by the nearest cell, so that cells become squares."""
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return np.asarray(cells[rows][:, columns])


def enlarged(values: Array, times: int) -> Array:
    """Repeat each pixel of ``(H, W)`` or ``(H, W, 3)`` so many times down and across."""
    return np.asarray(values.repeat(times, axis=0).repeat(times, axis=1))


def close_up(middle: tuple[int, int], side: int, shape: Sequence[int]) -> tuple[slice, slice]:
    """Return the rows and columns of a square of ``side`` px around a pixel, moved inside an image of this shape."""
    tops = [max(0, min(at - side // 2, n - side)) for at, n in zip(middle, shape, strict=False)]
    return slice(tops[0], tops[0] + side), slice(tops[1], tops[1] + side)


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
    low, high = scale
    share = np.clip((values.astype(np.float32) - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    colours = HEAT_COLOURS[np.round(255 * share).astype(np.uint8)]  # (h, w, 3)
    # Grey underneath: the colours of the part itself would read as heat.
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    opacity = OPACITY * share[..., None]
    return np.asarray((grey[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8))


def tint(image: Array, mask: Array | None, colour: str) -> Array:
    """Colour the pixels of ``mask (h, w)`` without hiding them."""
    if mask is None:
        return image
    return np.where(mask[..., None], 0.7 * image + 0.3 * np.array(rgb(colour)), image).astype(np.uint8)


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


def mark_peak(image: Array, values: Array) -> Array:
    """Mark the highest of ``values (h, w)`` on ``image (h, w, 3)`` by four strokes around it, which leave it free.

    It stands out whatever the colours are: a peak that is too low for the scale would otherwise not be seen at all.
    The strokes slant, for threads and scratches mostly run along the picture.
    """
    canvas = _image(image)
    pen = ImageDraw.Draw(canvas)
    highest = np.argwhere(values == values.max())  # several where the map is flat there: the one in their middle
    y, x = highest[np.abs(highest - highest.mean(axis=0)).sum(axis=1).argmin()].tolist()
    gap, end = PEAK
    for width, colour in ((3, "black"), (1, "white")):
        for across, down in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            pen.line((x + gap * across, y + gap * down, x + end * across, y + end * down), fill=colour, width=width)
    return np.asarray(canvas)


def own_range(values: Array) -> tuple[float, float]:
    """Return the values at the two ends of the colours of one map: its lower half stays dark, and its peak is bright.

    >>> own_range(np.array([[0.0, 1.0], [2.0, 5.0]]))
    (1.5, 5.0)
    """
    low, high = float(np.median(values)), float(values.max())
    return low, max(high, low + 1e-6)


def draw_boxes(image: Array, boxes: Iterable[Sequence[int]], ratio: tuple[float, float]) -> Array:
    """Draw boxes ``[x, y, w, h]``, given in original pixels and shrunk by ``ratio (rows, columns)``, with a dark edge.

    A box is drawn a little outside what it surrounds and never smaller than ``BOX`` px.
    """
    canvas = _image(image)
    pen = ImageDraw.Draw(canvas)
    for x, y, width, height in boxes:
        half_w = max(width * ratio[1] / 2 + 3, BOX / 2)
        half_h = max(height * ratio[0] / 2 + 3, BOX / 2)
        middle_x, middle_y = (x + width / 2) * ratio[1], (y + height / 2) * ratio[0]
        # Kept inside the picture, so that a defect at the rim has four visible sides.
        left, right = max(1.0, middle_x - half_w), min(canvas.width - 2.0, middle_x + half_w)
        top, bottom = max(1.0, middle_y - half_h), min(canvas.height - 2.0, middle_y + half_h)
        if right - left < 4 or bottom - top < 4:
            continue  # the picture itself is smaller than any box
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=4)
        pen.rectangle((left, top, right, bottom), outline=PREDICTED, width=2)
    return np.asarray(canvas)


def rgb(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour such as ``#ffb000``."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def data_address(kind: str, content: bytes) -> str:
    """Return bytes of this media type as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
