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
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from pickglass.app.pages.images import display
from pickglass.app.watch.model import LoadedModel
from pickglass.data import Row, read_image
from pickglass.errors import Failure, ImageError
from pickglass.result import Found
from pickglass.web.answers import Inspected, ModelAbout, about_model, inspected, png_of
from pickglass.web.models import ServedModel
from pickglass.web.state import State, TheState
from pickglass.web.uploads import BODY, Upload, UploadName, upload_of
from pickglass.web.watching import Folder, News

__all__ = ["Inspected", "inspected"]

router = APIRouter(tags=["inspect"])

_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.post("/inspect", openapi_extra=BODY)
async def inspect(
    request: Request,
    state: TheState,
    model: Annotated[str | None, Query(description="Which model judges; by default the first.")] = None,
    map: Annotated[Literal["png"] | None, Query(description="png: the answer holds the heat map.")] = None,
    name: UploadName = "image",
) -> Inspected:
    """Judge an image: score, verdict, defects, and the heat map where it is asked for."""
    served = state.models.get(model)
    with state.line.place() as place:
        upload = await upload_of(request, place, name)
        finish = partial(_answer, served=served, name=upload.name, picture=map == "png")
        return await asyncio.wrap_future(state.line.judge(served, Row("", pixels=upload.content), finish))


@router.post("/api/picture", openapi_extra=BODY, response_class=Response, responses=_PICTURE)
async def picture(request: Request, state: TheState, name: UploadName = "image") -> Response:
    """Return an image as a PNG that browsers show: upright, in 8 bits, at its full size."""
    with state.line.place() as place:
        upload = await upload_of(request, place, name)
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


# -- what comes out ----------------------------------------------------------------------------------------------------


def _answer(loaded: LoadedModel, item: Found | Failure, *, served: ServedModel, name: str, picture: bool) -> Inspected:
    if isinstance(item, Failure):
        raise ImageError(name, item.error)
    return inspected(loaded, item, served=served, name=name, picture=picture)


def _shown(upload: Upload, max_pixels: int) -> bytes:
    try:
        return png_of(display(read_image(upload.content, max_pixels)))
    except ImageError as error:
        raise ImageError(upload.name, error.reason) from error
