"""Images are judged: ``POST /inspect``; which models there are: ``GET /models``; and pictures that a browser can show.

What comes in
    ``POST /inspect?model=NAME&map=png&name=part.png``: the bytes of an image as the body, with its type (or
    application/octet-stream) as Content-Type, or a form of ``multipart/form-data`` with one file named ``image``, whose
    file name is then the image's name. PNG, JPEG, BMP, TIFF and WebP, of 8 or 16 bits. Without ``model`` the first one
    judges. ``POST /api/picture`` takes the same, and returns the image as a PNG of 8 bits.

What comes out
    :class:`Inspected` is what ``pickglass predict --json`` says of an image, with ``path`` the image's name, and beside
    it the model that judged, its thresholds, and the size of the image. With ``map=png`` there is a :class:`MapPicture`.
    :class:`ModelAbout` describes a served model; ``GET /models`` is a list of them. What is absent is null.

What goes wrong
    is ``{"error": SENTENCE}``: 400 no image, or one that cannot be read; 404 no such model; 408 the body took too long;
    413 too long; 415 another type; 422 an argument; 503 too many images wait: come back after Retry-After seconds.
"""

from __future__ import annotations

import asyncio
import base64
import io
from datetime import datetime, timezone
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from typing_extensions import TypedDict

from pickglass.app.pages.images import colour_range, display, shrink_max
from pickglass.app.predict import judged_image
from pickglass.app.results import ImageResult
from pickglass.app.watch.model import LoadedModel
from pickglass.calibration import Calibration
from pickglass.calibration.promises import group_maxima
from pickglass.data import Row, read_image
from pickglass.data.images.decoder import Array
from pickglass.errors import Failure, ImageError, InputError, shortened
from pickglass.result import FloatArray, Found
from pickglass.runtime.exported import ExportedModel
from pickglass.web.judging import Place
from pickglass.web.models import ServedModel
from pickglass.web.state import TheState

__all__ = ["Histogram", "Inspected", "MapPicture", "ModelAbout", "about_model", "histogram", "inspected", "map_picture"]

router = APIRouter(tags=["inspect"])

_TYPES = ("png", "jpeg", "bmp", "x-ms-bmp", "tiff", "webp")
_ANY = "application/octet-stream"
_SECONDS = 60.0  # in which a body must have come
_SIDE = 2048  # px, longest side of a map's picture
_BARS = 40  # of a histogram at most
_NAME = 200  # characters of an image's name
_FIELDS = 16  # of a form, beside the image


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


class _Upload(NamedTuple):
    name: str
    content: bytes


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in _TYPES},
            _ANY: {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
ImageName = Annotated[str, Query(max_length=_NAME, description="What the answer calls the image.")]


@router.post("/inspect", openapi_extra=_BODY)
async def inspect(
    request: Request,
    state: TheState,
    model: Annotated[str | None, Query(description="Which model judges; by default the first.")] = None,
    map: Annotated[Literal["png"] | None, Query(description="png: the answer holds the heat map.")] = None,
    name: ImageName = "image",
) -> Inspected:
    """Judge an image: score, verdict, defects, and the heat map where it is asked for."""
    served = state.models.get(model)
    with state.line.place() as place:
        upload = await _upload(request, place, name)
        finish = partial(_answer, served=served, name=upload.name, picture=map == "png")
        return await asyncio.wrap_future(state.line.judge(served, Row("", pixels=upload.content), finish))


@router.post(
    "/api/picture",
    openapi_extra=_BODY,
    response_class=Response,
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def picture(request: Request, state: TheState, name: ImageName = "image") -> Response:
    """Return an image as a PNG that browsers show: upright, in 8 bits, at its full size."""
    with state.line.place() as place:
        upload = await _upload(request, place, name)
        return Response(
            await run_in_threadpool(_shown, upload, state.settings.compute.max_pixels), media_type="image/png"
        )


@router.get("/models")
def models(state: TheState) -> list[ModelAbout]:
    """Describe the served models; the first is the one that judges where none is named."""
    return [about_model(served) for served in state.models]


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
        "png": base64.b64encode(_png(np.rint(level(small)).astype(np.uint8))).decode(),
        "low": low,
        "high": high,
        "threshold": None if threshold is None else float(level(threshold)),
    }


def histogram(calibration: Calibration | None) -> Histogram | None:
    """Return how the scores of the calibration images lie; None without any."""
    if calibration is None or not calibration.scores:
        return None
    scores = group_maxima(calibration.scores, calibration.groups)
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


def _answer(loaded: LoadedModel, item: Found | Failure, *, served: ServedModel, name: str, picture: bool) -> Inspected:
    if isinstance(item, Failure):
        raise ImageError(name, item.error)
    return inspected(loaded, item, served=served, name=name, picture=picture)


# -- what comes in -----------------------------------------------------------------------------------------------------


async def _upload(request: Request, place: Place, name: str) -> _Upload:
    """Read the image that a request brings.

    Raises:
        HTTPException: 408, 415, 503, or 413 from the guard.
        InputError: no image, or a form that is not one with an image.
    """
    given = request.headers.get("content-type", "")
    kind, options = parse_options_header(given)
    form = kind == b"multipart/form-data"
    if not form and kind.decode("latin-1") not in (_ANY, *(f"image/{known}" for known in _TYPES)):
        raise HTTPException(
            415,
            f"Content-Type {shortened(given)}: expected an image (PNG, JPEG, BMP, TIFF, WebP) as image/TYPE or {_ANY}, "
            "or multipart/form-data with one file named 'image'",
        )
    try:
        content = await asyncio.wait_for(_body(request, place), _SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the image did not come within {_SECONDS:g} seconds") from None
    if form:
        upload = await run_in_threadpool(_image_of_form, content, options.get(b"boundary", b""), name)
    else:
        upload = _Upload(_plain(name), content)
    if not upload.content:
        raise InputError("the request brings no bytes, expected an image")
    return upload


async def _body(request: Request, place: Place) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        place.grow(len(chunk))
        content += chunk
    return bytes(content)


def _image_of_form(content: bytes, boundary: bytes, name: str) -> _Upload:
    """Find the one image in a form, all in memory."""
    images: list[_Upload] = []
    others: list[Any] = []

    def file(part: Any) -> None:
        part.file_object.seek(0)
        if part.field_name != b"image" or images:
            raise InputError("expected one file in the form, named 'image': send several images one after the other")
        sent = (part.file_name or b"").decode("utf-8", "replace")
        images.append(_Upload(_plain(sent or name), part.file_object.read()))

    def other(part: Any) -> None:
        others.append(part)
        if len(others) > _FIELDS:
            raise InputError(f"a form of more than {_FIELDS} fields: expected one file, named 'image'")

    # nothing is spooled to a disk: the body was read whole, within its limit
    settings = {"MAX_MEMORY_FILE_SIZE": len(content) + 1}
    try:
        parser = FormParser("multipart/form-data", other, file, boundary=boundary, config=settings)
        parser.write(content)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the form cannot be read ({shortened(str(error))}): expected multipart/form-data") from error
    if not images:
        raise InputError("the form holds no file named 'image'")
    return images[0]


def _plain(name: str) -> str:
    """Return the last part of a name, without what could not be printed."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:_NAME] or "image"


def _shown(upload: _Upload, max_pixels: int) -> bytes:
    try:
        return _png(display(read_image(upload.content, max_pixels)))
    except ImageError as error:
        raise ImageError(upload.name, error.reason) from error


def _png(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
