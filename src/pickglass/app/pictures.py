"""The pictures of a report: small JPEGs of image, heat map, prediction and ground truth.

Letters: H, W the original image; h, w the picture, which is never larger. Whatever is small must survive the
shrinking, so heat maps and masks are reduced by the maximum under each pixel of the picture, never averaged.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pickglass.errors import InputError

__all__ = [
    "Panel",
    "ReportImage",
    "colour_range",
    "display",
    "draw_boxes",
    "draw_contours",
    "draw_panels",
    "encoded",
    "grow",
    "heat",
    "heat_colours",
    "picture_size",
    "shrink_max",
    "tint",
]

SIDE = 320  # px, longest side of a picture
LONG_SIDE = 1280  # px, longest side of an elongated picture: 1280 x 80 has the area of 320 x 320
ELONGATED = 3.0  # aspect ratio above which a picture counts as elongated
CLOSE_UP = 192  # original px, side of a close-up
BOX = 14  # px in the picture, smallest side of a drawn box
QUALITY = 80  # of the JPEGs, 1 to 95
OPACITY = 0.85  # of the heat at the upper end of the scale; at the lower end it is 0

# A blue and a yellow stay apart for every kind of colour vision; both are edged in black on the pictures.
TRUTH = "#33bbee"
PREDICTED = "#ffb000"


Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReportImage:
    """One tested image with everything that the report shows of it.

    Attributes:
        path: file or made-up name; shown as it is.
        defect: name of the defect type, None for good or unknown.
        label: 0 good, 1 defective, None unknown.
        score: raw image score, higher = more anomalous.
        verdict: ``"good"``, ``"bad"``, or None without a threshold.
        image: ``(H, W)`` or ``(H, W, 3)``, uint8 or uint16, the original pixels.
        map: ``(H, W)`` anomaly map at the original size.
        mask: ``(H, W)`` ground truth, above 0 is defect; None where there is none.
        predicted: ``(H, W)`` bool; None when the model has no pixel threshold.
        boxes: ``[x, y, w, h]`` in original pixels.
        parts: what the map is made of, by name, likewise at the original size.
    """

    path: str
    defect: str | None
    label: int | None
    score: float
    verdict: str | None
    image: Array
    map: Array
    mask: Array | None
    predicted: Array | None
    boxes: list[list[int]]
    parts: Mapping[str, Array] = field(default_factory=dict)

    def check(self) -> None:
        """Raise an InputError that names the image if its arrays do not fit together."""
        size = self.image.shape[:2]
        colour = self.image.ndim == 2 or (self.image.ndim == 3 and self.image.shape[2] == 3)
        if not colour or 0 in size or self.image.dtype not in (np.uint8, np.uint16):
            raise InputError(
                f"{self.path}: image of shape {self.image.shape} and type {self.image.dtype}: expected (H, W) or "
                "(H, W, 3), uint8 or uint16; convert it first"
            )
        for name, array in (
            *(("map", self.map), ("mask", self.mask), ("predicted", self.predicted)),
            *self.parts.items(),
        ):
            if array is not None and array.shape != size:
                raise InputError(
                    f"{self.path}: {name} of shape {array.shape} on an image of {size}: resize it to the image first"
                )
        if not (math.isfinite(self.score) and np.isfinite(self.map).all()):
            raise InputError(f"{self.path}: score {self.score!r} or its map is not finite: fix the detector's output")


@dataclass(frozen=True)
class Panel:
    """One picture of a card, or a line of text where there is nothing to draw.

    Attributes:
        kind: ``original``, ``heat``, ``part``, ``predicted``, ``truth``, ``closeup`` or ``parts`` (of tiles).
        caption: what the picture shows, for people.
        jpeg: the encoded picture, None when ``caption`` says all.
        size: ``(h, w)`` of the picture in px.
    """

    kind: str
    caption: str
    jpeg: bytes | None
    size: tuple[int, int]


def draw_panels(item: ReportImage, scale: tuple[float, float]) -> list[Panel]:
    """Draw the pictures of one image.

    Args:
        item: the image; its arrays are not changed.
        scale: ``(low, high)`` anomaly values at the two ends of the colours.

    Returns:
        Original, heat map, what it is made of, prediction and ground truth, then close-ups at original resolution when
        the pictures show less than half of it.
    """
    size = picture_size(*item.image.shape[:2])
    base = display(item.image)  # (H, W, 3)
    small = np.asarray(Image.fromarray(base).resize(size[::-1], Image.Resampling.LANCZOS))  # (h, w, 3)
    truth = None if item.mask is None else shrink_max(item.mask > 0, size)  # (h, w)
    found = None if item.predicted is None else shrink_max(item.predicted > 0, size)  # (h, w)
    panels = [
        encoded("original", "original, 16 bit stretched" if item.image.dtype == np.uint16 else "original", small),
        encoded("heat", "heat map", draw_contours(heat(small, shrink_max(item.map, size), scale), truth=truth)),
    ]
    for name, part in item.parts.items():
        drawn = draw_contours(heat(small, shrink_max(part, size), scale), truth=truth)
        panels.append(encoded("part", f"{name} map", drawn))
    if item.boxes or (found is not None and found.any()):
        drawn = draw_contours(tint(small, found, PREDICTED), truth=truth, found=found)
        ratio = (size[0] / item.image.shape[0], size[1] / item.image.shape[1])
        panels.append(encoded("predicted", "prediction", draw_boxes(drawn, item.boxes, ratio)))
    else:
        text = "no pixel threshold" if found is None else "prediction: nothing found"
        panels.append(Panel("predicted", text, None, size))
    if truth is not None and truth.any():
        panels.append(encoded("truth", "ground truth", draw_contours(tint(small, truth, TRUTH), truth=truth)))
    else:
        text = "ground truth: good" if item.label == 0 else "no ground truth mask"
        panels.append(Panel("truth", text, None, size))
    return panels + (_close_ups(item, base) if 2 * size[1] < item.image.shape[1] else [])


def picture_size(height: int, width: int) -> tuple[int, int]:
    """Size ``(h, w)`` of the picture of an image: its aspect, no larger than it, one byte budget for all."""
    long, short = max(height, width), min(height, width)
    side = SIDE if long <= ELONGATED * short else min(LONG_SIDE, SIDE * math.sqrt(long / short))
    factor = min(1.0, side / long)
    return max(1, round(height * factor)), max(1, round(width * factor))


def display(image: Array) -> Array:
    """Pixels ``(H, W, 3)`` uint8 to look at. 16-bit images are stretched from their own dark to bright end."""
    if image.dtype == np.uint16:
        step = max(1, max(image.shape[:2]) // 1000)  # a sample of the pixels is enough for two percentiles
        low, high = np.percentile(image[::step, ::step], (0.1, 99.9))
        image = np.clip((image.astype(np.float32) - low) * (255 / max(high - low, 1.0)), 0, 255).astype(np.uint8)
    return np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))  # (H, W, 3)


def shrink_max(values: Array, size: tuple[int, int]) -> Array:
    """Reduce ``(H, W)`` to ``size = (h, w)``, at most as large, by the maximum under each new pixel."""
    rows = np.arange(size[0]) * values.shape[0] // size[0]
    columns = np.arange(size[1]) * values.shape[1] // size[1]
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1))  # (h, w)


@lru_cache(maxsize=1)
def heat_colours() -> Array:
    """The colour map ``(256, 3)`` uint8: matplotlib's inferno, in which equal steps look equally far apart."""
    from matplotlib import colormaps  # here, since only a report needs it

    return np.asarray(colormaps["inferno"](np.arange(256), bytes=True))[:, :3]  # (256, 3)


def colour_range(threshold: float | None, maps: Sequence[Array]) -> tuple[float, float]:
    """Anomaly values at the two ends of the colours: three quarters of the pixel threshold, and the highest value.

    The upper end is at least 1.25 times the threshold, lest good images glow, and at most twice it, lest one glaring
    defect leave the others pale; without maps 1.5 times it. Without a threshold, the tenth and the highest of the
    values shown. Colours only; no score depends on them.
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
    colours = heat_colours()[np.round(255 * share).astype(np.uint8)]  # (h, w, 3)
    # Grey underneath: the colours of the part itself would read as heat.
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    opacity = OPACITY * share[..., None]
    return np.asarray((grey[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8))


def tint(image: Array, mask: Array | None, colour: str) -> Array:
    """Colour the pixels of ``mask (h, w)`` without hiding them."""
    if mask is None:
        return image
    return np.where(mask[..., None], 0.7 * image + 0.3 * np.array(_rgb(colour)), image).astype(np.uint8)


def draw_contours(image: Array, truth: Array | None = None, found: Array | None = None) -> Array:
    """Outline masks ``(h, w)`` on ``image (h, w, 3)``: ground truth and prediction, each with a dark edge.

    The line runs just outside the mask, for an inner line would hide defects of a few pixels.
    """
    out = np.array(image)
    for mask, colour in ((found, PREDICTED), (truth, TRUTH)):
        if mask is not None:
            line = grow(mask)
            out[grow(line) & ~line] //= 3
            out[line & ~mask] = _rgb(colour)
    return np.asarray(out)


def grow(mask: Array) -> Array:
    """Dilate a bool mask ``(h, w)`` by one pixel in all eight directions."""
    wide = np.pad(mask, 1)
    wide = wide[:-2] | wide[1:-1] | wide[2:]  # (h, w + 2)
    return np.asarray(wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:])  # (h, w)


def draw_boxes(image: Array, boxes: Iterable[Sequence[int]], ratio: tuple[float, float]) -> Array:
    """Draw boxes ``[x, y, w, h]``, given in original pixels and shrunk by ``ratio (rows, columns)``, with a dark edge.

    A box is drawn a little outside what it surrounds and never smaller than ``BOX`` px.
    """
    canvas = Image.fromarray(image)
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


def _close_ups(item: ReportImage, base: Array) -> list[Panel]:
    """Close-ups at original resolution: at the map's peak, and at a defect if none is in sight there."""
    peak = np.unravel_index(int(item.map.argmax()), item.map.shape)
    windows = [("close-up: highest value", _window(int(peak[0]), int(peak[1]), item.map.shape))]
    if item.mask is not None and item.mask.any() and not item.mask[windows[0][1]].any():
        rows, columns = np.nonzero(item.mask)
        middle = len(rows) // 2  # a pixel of the defect itself, which the middle of its box need not be
        windows.append(("close-up: ground truth", _window(int(rows[middle]), int(columns[middle]), item.map.shape)))
    panels = []
    for caption, window in windows:
        truth = None if item.mask is None else item.mask[window] > 0
        found = None if item.predicted is None else item.predicted[window] > 0
        panels.append(encoded("closeup", caption, draw_contours(base[window], truth, found)))
    return panels


def _window(row: int, column: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A square of CLOSE_UP px around a pixel, moved inside the image."""
    top = max(0, min(row - CLOSE_UP // 2, shape[0] - CLOSE_UP))
    left = max(0, min(column - CLOSE_UP // 2, shape[1] - CLOSE_UP))
    return slice(top, top + CLOSE_UP), slice(left, left + CLOSE_UP)


def encoded(kind: str, caption: str, pixels: Array) -> Panel:
    """The panel of a picture ``(h, w, 3)`` uint8."""
    buffer = io.BytesIO()
    # Full colour resolution: contours are one pixel wide and would wash out in 4:2:0, and so in WebP. Not optimised:
    # Pillow's buffer for that is too small for a noisy picture, which would raise.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return Panel(kind, caption, buffer.getvalue(), (pixels.shape[0], pixels.shape[1]))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
