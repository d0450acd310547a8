"""What is answered of an image and of a model: the shapes that the pages and the API share, and how they are made."""

from __future__ import annotations

import base64
import io
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
from PIL import Image
from typing_extensions import TypedDict

from pickglass.app.pages.images import colour_range, shrink_max
from pickglass.app.predict import judged_image
from pickglass.app.results import ImageResult
from pickglass.app.watch.model import LoadedModel
from pickglass.calibration import Calibration
from pickglass.data.images.decoder import Array
from pickglass.result import FloatArray, Found
from pickglass.runtime.exported import ExportedModel
from pickglass.web.models import ServedModel

__all__ = [
    "LONGEST_NAME",
    "Histogram",
    "Inspected",
    "MapPicture",
    "ModelAbout",
    "about_model",
    "histogram",
    "inspected",
    "map_picture",
    "plain_name",
    "png_of",
]

LONGEST_NAME = 255  # characters of an image's name, as many as file systems allow
_SIDE = 2048  # px, longest side of a map's picture
_BARS = 40  # of a histogram at most


class MapPicture(TypedDict):
    """The heat map as a grey picture: the larger the value, the more anomalous.

    ``png``: in base64, 8 bits, with the aspect of the image, at its size or at most 2048 px. ``low`` and ``high``: the
    map's values at 0 and at 255; what lies beyond is cut off. ``threshold``: where the pixel threshold lies between 0
    and 255, null without one.
    """

    png: str
    low: float
    high: float
    threshold: float | None


class Inspected(ImageResult):
    """What a model says of an image; ``size`` is [H, W] in pixels, ``map`` is null unless it was asked for."""

    name: str
    model: str
    model_id: str
    model_version: int
    threshold: float | None
    unsure_threshold: float | None
    pixel_threshold: float | None
    stale: bool
    size: list[int]
    map: MapPicture | None


class Histogram(TypedDict):
    """How many scores lie between two edges, of which there is one more than there are counts."""

    edges: list[float]
    counts: list[int]


class ModelAbout(TypedDict):
    """A served model.

    ``kind``: an exported file, or one of the lab. ``promise``: in words, what its threshold is worth. ``calibration``:
    the scores of the good images that the threshold rests on, a group once. ``created``: when it was fitted, UTC.
    ``data``: name of the data set that it was fitted on; ``images``: how many it learned. ``canvas``: [H, W] at which
    it reads images. ``pixel_mm``: side of a pixel on the part. ``error``: why the file that has replaced this model's
    cannot be used, so that this one goes on.
    """

    name: str
    kind: Literal["exported", "lab"]
    method: str
    title: str
    id: str
    version: int
    threshold: float | None
    unsure_threshold: float | None
    pixel_threshold: float | None
    stale: bool
    promise: str | None
    calibration: Histogram | None
    certificate: bool
    created: str | None
    data: str | None
    images: int
    canvas: list[int]
    pixel_mm: float | None
    error: str | None


def inspected(loaded: LoadedModel, item: Found, *, served: ServedModel, name: str, picture: bool) -> Inspected:
    """Return what is answered of an image that was judged."""
    full = item.full_map()
    calibration = loaded.calibration
    judged = judged_image(item, full, calibration, datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    limit = calibration.pixel_threshold if calibration else None
    judged["path"] = name
    return {
        **judged,
        "name": name,
        "model": served.name,
        "model_id": loaded.id,
        "model_version": loaded.version,
        "threshold": loaded.threshold,
        "unsure_threshold": calibration.unsure_threshold if calibration else None,
        "pixel_threshold": limit,
        "stale": bool(calibration and calibration.stale),
        "size": list(item.size),
        "map": map_picture(full, limit) if picture else None,
    }


def map_picture(full: FloatArray, threshold: float | None, side: int = _SIDE) -> MapPicture:
    """Return a map (H, W) as a picture of at most ``side`` px; what is small survives, see ``shrink_max``."""
    factor = min(1.0, side / max(full.shape))
    size = max(1, round(full.shape[0] * factor)), max(1, round(full.shape[1] * factor))
    small = full if size == full.shape else shrink_max(full, size)
    low, high = colour_range(threshold, [small])

    def level(value: Any) -> Any:
        return np.clip((value - low) * (255 / (high - low)), 0, 255)

    return {
        "png": base64.b64encode(png_of(np.rint(level(small)).astype(np.uint8))).decode(),
        "low": low,
        "high": high,
        "threshold": None if threshold is None else float(level(threshold)),
    }


def histogram(calibration: Calibration | None) -> Histogram | None:
    """Return how the scores of the calibration images lie; None without any."""
    if calibration is None or not calibration.scores:
        return None
    scores = calibration.unit_scores
    counts, edges = np.histogram(scores, bins=min(_BARS, 5 + len(scores) // 5))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def about_model(served: ServedModel) -> ModelAbout:
    """Describe a served model as it is now."""
    loaded = served.now
    model, calibration, origin = loaded.detector, loaded.calibration, loaded.detector.provenance
    exported = isinstance(model, ExportedModel)
    return {
        "name": served.name,
        "kind": "exported" if exported else "lab",
        "method": model.method,
        "title": model.title,
        "id": loaded.id,
        "version": loaded.version,
        "threshold": loaded.threshold,
        "unsure_threshold": calibration.unsure_threshold if calibration else None,
        "pixel_threshold": calibration.pixel_threshold if calibration else None,
        "stale": bool(calibration and calibration.stale),
        "promise": (calibration.sentence or None) if calibration else None,
        "calibration": histogram(calibration),
        "certificate": exported,
        "created": origin.fitted or None,
        "data": origin.data,
        "images": origin.n_fit,
        "canvas": list(model.preprocess.size),
        "pixel_mm": origin.pixel_mm,
        "error": served.error,
    }


def png_of(pixels: Array) -> bytes:
    """Encode pixels of uint8 as PNG, quickly."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def plain_name(name: str) -> str:
    """Return the last part of an image's name, without what cannot be printed or sent."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:LONGEST_NAME] or "image"
