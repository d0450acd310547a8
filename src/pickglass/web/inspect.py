"""Images are judged: ``POST /inspect``; which models there are: ``GET /models``; and pictures that a browser can show.

What comes in
    ``POST /inspect?model=NAME&map=png&name=part.png``: the bytes of an image as the body, with its type (or
    application/octet-stream) as Content-Type, or a form of ``multipart/form-data`` with one file named ``image``, whose
    file name is then the image's name. PNG, JPEG, BMP, TIFF and WebP, of 8 or 16 bits. Without ``model`` the first one
    judges. ``POST /api/picture`` takes the same, and returns the image as a PNG of 8 bits.

What comes out
    :class:`Inspected` is what ``pickglass predict --json`` says of an image, with ``path`` the image's name, and beside
    it the model that judged, its thresholds, and the size of the image; with ``map=png`` also a :class:`MapPicture`.
    :class:`ModelAbout` describes a served model; ``GET /models`` is a list of them. What is absent is null.
    ``web/answers.py`` has these shapes.

The watched folder (``--watch``)
    ``GET /api/watch?after=N``: :class:`~pickglass.web.watching.News` since the image of number N, oldest first, with
    thumbnails. ``GET /api/watch/N``: that image as ``POST /inspect?map=png`` answers. ``GET /api/watch/N/image``: its
    pixels, as a PNG of 8 bits.

What goes wrong
    is ``{"error": SENTENCE}``: 400 no image, or one that cannot be read; 404 no such model; 408 the body took too long;
    413 too long; 415 another type; 422 an argument; 503 too many images wait: come back after Retry-After seconds.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from pickglass.app.pages.images import display
from pickglass.app.watch.model import LoadedModel
from pickglass.data import Row, read_image
from pickglass.errors import Failure, ImageError, InputError, shortened
from pickglass.result import Found
from pickglass.web.answers import LONGEST_NAME, Inspected, ModelAbout, about_model, inspected, plain_name, png_of
from pickglass.web.judging import Place
from pickglass.web.models import ServedModel
from pickglass.web.state import State, TheState
from pickglass.web.watching import Folder, News

__all__ = ["Inspected", "inspected"]

router = APIRouter(tags=["inspect"])

_TYPES = ("png", "jpeg", "bmp", "x-ms-bmp", "tiff", "webp")
_ANY = "application/octet-stream"
_SECONDS = 60.0  # in which a body must have come
_FIELDS = 16  # of a form, beside the image


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
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
ImageName = Annotated[str, Query(max_length=LONGEST_NAME, description="What the answer calls the image.")]


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


@router.post("/api/picture", openapi_extra=_BODY, response_class=Response, responses=_PICTURE)
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


# -- the watched folder ------------------------------------------------------------------------------------------------


@router.get("/api/watch")
def news(state: TheState, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> News:
    """Return what arrived in the watched folder after the image of a number; ask about once a second."""
    return _watched(state).news(after)


@router.get("/api/watch/{number}")
def arrived(state: TheState, number: Annotated[int, Path(ge=0, le=2**53)]) -> Inspected:
    """Return what the model says of an image that arrived, with its heat map."""
    return _watched(state).inspected(number)


@router.get("/api/watch/{number}/image", response_class=Response, responses=_PICTURE)
def arrived_picture(state: TheState, number: Annotated[int, Path(ge=0, le=2**53)]) -> Response:
    """Return the pixels of an image that arrived."""
    return Response(_watched(state).picture(number), media_type="image/png")


def _watched(state: State) -> Folder:
    if state.watched is None:
        raise HTTPException(404, "no folder is watched: start the server with --watch FOLDER")
    return state.watched


# -- what comes in -----------------------------------------------------------------------------------------------------


def _answer(loaded: LoadedModel, item: Found | Failure, *, served: ServedModel, name: str, picture: bool) -> Inspected:
    if isinstance(item, Failure):
        raise ImageError(name, item.error)
    return inspected(loaded, item, served=served, name=name, picture=picture)


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
        upload = _Upload(plain_name(name), content)
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
        images.append(_Upload(plain_name(sent or name), part.file_object.read()))

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


def _shown(upload: _Upload, max_pixels: int) -> bytes:
    try:
        return png_of(display(read_image(upload.content, max_pixels)))
    except ImageError as error:
        raise ImageError(upload.name, error.reason) from error
