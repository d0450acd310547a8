"""Pictures for the pages: thumbnails, close-ups, overlays, the colours of heat maps, and how pictures are embedded.

Letters: H, W the original image; h, w the picture, which is rarely larger. Whatever is small must survive the
shrinking, so heat maps and masks are reduced by the maximum under each pixel of the picture, never averaged.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pickglass.data.images.drawing import (
    ELONGATED,
    HEAT_COLOURS,
    PREDICTED,
    TRUTH,
    Array,
    colour_range,
    display,
    draw_contours,
    grow,
    heat,
    picture_size,
    rgb,
    shrink_max,
    thumbnail,
    value_range,
)

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

PEAK = (6, 11)  # px in the picture, where the strokes around a peak begin and end
BOX = 14  # px in the picture, smallest side of a drawn box
QUALITY = 80  # of the JPEGs, 1 to 95


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


def tint(image: Array, mask: Array | None, colour: str) -> Array:
    """Colour the pixels of ``mask (h, w)`` without hiding them."""
    if mask is None:
        return image
    return np.where(mask[..., None], 0.7 * image + 0.3 * np.array(rgb(colour)), image).astype(np.uint8)


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


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def data_address(kind: str, content: bytes) -> str:
    """Return bytes of this media type as an address that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
