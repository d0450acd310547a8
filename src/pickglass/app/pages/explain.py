"""The page of ``pickglass explain``: the verdict in words, the hottest places, and the good patches they are unlike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pickglass.app.pages.build import write_page
from pickglass.app.pages.charts import histogram
from pickglass.app.pages.images import (
    PREDICTED,
    Array,
    Badge,
    Picture,
    colour_range,
    display,
    draw_boxes,
    draw_contours,
    enlarged,
    heat,
    jpeg,
    picture_size,
    ramp,
    shape_of,
    shrink_max,
    thumbnail,
)
from pickglass.app.results import ExplainedLayer, ExplainedPlace, ExplainResult, NearestPatch

__all__ = [
    "Crop",
    "Explained",
    "PlacePictures",
    "explanation_values",
    "marked_image",
    "share_of_good",
    "write_explanation",
]

SIDE = 640  # px, longest side of the image and of its heat map
PART = 176  # px that a crop is enlarged to, about


class Crop(NamedTuple):
    """A part of an image: pixels (h, w, 3) uint8, and in it the box [x, y, w, h] of a patch or defect."""

    pixels: Array
    box: tuple[int, int, int, int]


class PlacePictures(NamedTuple):
    """A place as it is in the image, and beside it the nearest good patches, None where a file was not found."""

    own: Crop
    nearest: list[Crop | None]


@dataclass(frozen=True)
class Explained:
    """An explanation, with what a page shows of it.

    Attributes:
        result: the explanation in words and numbers.
        pixels: the image, (H, W) or (H, W, 3).
        map: (H, W), the anomaly map at its size.
        named: (H, W) bool, the defect that the user named; None without one.
        places: pictures of each place of the result.
        similar: the most similar good image; None where it was not found, or not looked for.
        scores: (n,) those of the good images that the thresholds rest on.
    """

    result: ExplainResult
    pixels: Array
    map: Array
    named: Array | None
    places: list[PlacePictures]
    similar: Array | None
    scores: tuple[float, ...]


class _Place(NamedTuple):
    """A place as the page shows it."""

    number: int
    facts: ExplainedPlace
    pictures: Sequence[Picture]
    shares: Sequence[tuple[str, str, int]]
    layers: Sequence[tuple[str, Badge]]


def write_explanation(path: Path, explained: Explained) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_page(path, "explain.html.j2", explanation_values(explained))


def explanation_values(explained: Explained) -> dict[str, Any]:
    """Return what the template asks for."""
    result = explained.result
    limit = result["pixel_threshold"]
    scale = colour_range(limit, [explained.map])
    name = PurePath(result["path"]).name or result["path"]
    base = display(explained.pixels)
    size = picture_size(base.shape[0], base.shape[1], SIDE)
    warm = heat(thumbnail(base, size), shrink_max(explained.map, size), scale)
    similar = []
    if explained.similar is not None and result["similar"] is not None:
        other = display(explained.similar)
        similar = [jpeg("", result["similar"]["image"], thumbnail(other, picture_size(*other.shape[:2])))]
    return {
        "title": f"{name}: {result['verdict'] or 'no verdict'}",
        "name": name,
        "result": result,
        "sentence": result["sentence"],
        "tiles": _tiles(result),
        "shape": shape_of(*base.shape[:2]),
        "pictures": [
            jpeg("", "the image; numbered: the places below", marked_image(explained)),
            jpeg("heat", "its map", warm),
        ],
        "scale": scale,
        "ramp": ramp(),
        "chart": _chart(explained),
        "places": [
            _place(i, place, pictures)
            for i, (place, pictures) in enumerate(zip(result["places"], explained.places, strict=True), start=1)
        ],
        "similar": similar,
    }


def marked_image(explained: Explained, side: int = SIDE) -> Array:
    """Draw the image with its places numbered, (h, w, 3) uint8; the named defect is outlined."""
    base = display(explained.pixels)
    size = picture_size(base.shape[0], base.shape[1], side)
    picture = thumbnail(base, size)
    if explained.named is not None:
        picture = draw_contours(picture, truth=shrink_max(explained.named, size))
    ratio = size[0] / base.shape[0], size[1] / base.shape[1]
    places = explained.result["places"]
    boxes = [
        place["box"] if place["box"] and not place["named"] else [place["x"], place["y"], 1, 1] for place in places
    ]
    canvas = Image.fromarray(np.ascontiguousarray(draw_boxes(picture, boxes, ratio)))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for number, place in enumerate(places, start=1):
        box = place["box"] or [place["x"], place["y"], 1, 1]
        x, y = box[0] * ratio[1] - 8, box[1] * ratio[0] - 24
        at = (min(max(2.0, x), size[1] - 14.0), min(max(1.0, y), size[0] - 18.0))
        left, top, right, bottom = pen.textbbox(at, str(number), font)
        pen.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill="black")
        pen.text(at, str(number), PREDICTED, font)
    return np.asarray(canvas)


def _tiles(result: ExplainResult) -> list[tuple[str, str, str]]:
    """Return name, value and remark of the figures at the top."""
    spreads = result["spreads"]
    rarity = result["p_value"]
    return [
        ("score", f"{result['score']:.4g}", ""),
        ("threshold", _number(result["threshold"], "{:.4g}"), "above it: bad"),
        ("score over threshold", _number(result["ratio"], "{:.2f}"), ""),
        ("from the threshold", _number(spreads, "{:+.1f}"), "standard deviations of good scores"),
        (
            "good parts with such a score",
            "–" if rarity is None else share_of_good(rarity),
            "beyond the good images: extrapolated" if result["p_value_extrapolated"] else "",
        ),
    ]


def share_of_good(p: float) -> str:
    """Write how many good parts score as high, from their share.

    >>> share_of_good(0.25), share_of_good(0.0004), share_of_good(1e-9)
    ('25 %', '1 in 2,500', 'fewer than 1 in a million')
    """
    if p < 1e-6:
        return "fewer than 1 in a million"
    return f"1 in {float(f'{1 / p:.2g}'):,.0f}" if p < 0.01 else f"{float(f'{100 * p:.2g}'):g} %"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _chart(explained: Explained) -> Any:
    scores = np.array(explained.scores)
    if not len(scores):
        return None
    result = explained.result
    return histogram(scores, [0] * len(scores), result["threshold"], result["unsure_threshold"], result["score"])


def _place(number: int, place: ExplainedPlace, pictures: PlacePictures) -> _Place:
    shown = [_cut("this image", pictures.own)]
    if place["nearest"]:
        shown += [_patch(near, crop) for near, crop in zip(place["nearest"], pictures.nearest, strict=True)]
    shares = [
        (part["name"], f"{100 * part['share']:.0f} %", max(1, round(10 * part["share"]))) for part in place["shares"]
    ]
    return _Place(number, place, shown, shares, [(layer["layer"], _badge(layer)) for layer in place["layers"]])


def _patch(near: NearestPatch, crop: Crop | None) -> Picture:
    name = near["image"]
    turned = f", turned by {near['turned']} degrees" if near["turned"] else ""
    where = "a good patch" if name is None else f"{PurePath(name).name}{turned}"
    caption = f"{where}: distance {near['distance']:.4g}"
    return (
        Picture("", f"{caption}; its file was not found", None, (PART, PART)) if crop is None else _cut(caption, crop)
    )


def _cut(caption: str, crop: Crop) -> Picture:
    """Draw a crop, enlarged by whole pixels, with its box."""
    times = max(1, round(PART / max(crop.pixels.shape[:2])))
    pixels = enlarged(crop.pixels, times)
    if max(pixels.shape[:2]) > 2 * PART:
        size = picture_size(pixels.shape[0], pixels.shape[1], PART)
        ratio = size[0] / crop.pixels.shape[0], size[1] / crop.pixels.shape[1]
        return jpeg("", caption, draw_boxes(thumbnail(crop.pixels, size), [crop.box], ratio))
    return jpeg("", caption, draw_boxes(pixels, [crop.box], (times, times)))


def _badge(layer: ExplainedLayer) -> Badge:
    verdict = layer["verdict"]
    value = "" if layer["contrast_sd"] is None else f" ({round(layer['contrast_sd'], 1) + 0.0:.1f} sd)"
    return Badge("right" if verdict == "visible" else "wrong" if verdict == "lost" else "faint", f"{verdict}{value}")
