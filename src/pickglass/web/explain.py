"""Why an image was judged so, and what the layers of a model show of it.

What comes in
    ``POST /api/explain?model=NAME&name=part.png&box=X,Y,W,H``: an image, as ``POST /inspect`` takes it. ``box``: a
    defect that was missed, or may have been. ``POST /api/see`` takes the same, and ``x`` and ``y``: of a tiled model
    the tile around that pixel is shown. ``GET /api/see/ID/fields?x=X&y=Y`` asks further about an image that was
    opened so.

What comes out
    :class:`Explanation`: what ``pickglass explain --json`` says, and its pictures. :class:`Layers`: what the layers
    are, their pictures, and the ID. A list of :class:`~pickglass.app.results.ExploredField`. Pictures are ``data:``
    addresses.

What goes wrong
    is ``{"error": SENTENCE}``: 400 no image, or one that cannot be read, or a box outside of it; 404 no such model, or
    the image was put away; 408 the body took too long; 415 another type; 503 too many wait.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from typing_extensions import TypedDict

from pickglass.app.explain import explained
from pickglass.app.models import AnyModel
from pickglass.app.pages.explain import explanation_values
from pickglass.app.pages.images import Picture, data_address, display, jpeg, picture_size, thumbnail
from pickglass.app.results import ExplainResult, ExploredField, ExploreResult
from pickglass.data import Row
from pickglass.errors import InputError
from pickglass.runtime.exported import ExportedModel
from pickglass.web.state import State, TheState
from pickglass.web.uploads import BODY, UploadName, upload_of

__all__ = ["Explanation", "LayerPictures", "Layers", "PlaceInPictures", "router"]

router = APIRouter(tags=["explain"])

_SIDE = 1280  # px, longest side of the picture that layers are laid over
_FAR = 2**31

ModelName = Annotated[str | None, Query(description="Which model; by default the first.")]
Box = Annotated[
    str | None, Query(pattern=r"^\d{1,6}(,\d{1,6}){3}$", description="x,y,width,height of a defect, in pixels.")
]
Pixel = Annotated[int | None, Query(ge=0, le=_FAR)]


class PlaceInPictures(TypedDict):
    """The pictures of one place: its own, and one of each nearest good patch, null where no file was found."""

    own: str
    nearest: list[str | None]


class Explanation(TypedDict):
    """An explanation with its pictures: the image with the places numbered, its heat map, the places."""

    result: ExplainResult
    image: str
    heat: str
    places: list[PlaceInPictures]
    similar: str | None


class LayerPictures(TypedDict):
    """The pictures of a layer, one pixel a cell, over the ``frame`` of the result."""

    layer: str
    colours: str
    map: str


class Layers(TypedDict):
    """An image that was opened: its ID, what the layers say, a picture of the image, and those of the layers.

    An exported model hides its layers: then ``note`` says so, and there are neither ID nor result.
    """

    id: str | None
    result: ExploreResult | None
    image: str
    layers: list[LayerPictures]
    note: str | None


@router.post("/api/explain", openapi_extra=BODY)
async def explain(
    request: Request, state: TheState, model: ModelName = None, name: UploadName = "image", box: Box = None
) -> Explanation:
    """Say why an image was judged so: how far from the threshold, where, near which good patches, in which layers."""
    served = state.models.get(model)
    with state.line.place() as taken:
        upload = await upload_of(request, taken, name)
        row = Row(upload.name, pixels=upload.content)
        return await run_in_threadpool(_explained, state, served.model, row, _numbers(box))


@router.post("/api/see", openapi_extra=BODY)
async def see(
    request: Request,
    state: TheState,
    model: ModelName = None,
    name: UploadName = "image",
    box: Box = None,
    x: Pixel = None,
    y: Pixel = None,
) -> Layers:
    """Open an image in the layers that a model reads; with a box, say in which of them the defect is visible."""
    served = state.models.get(model)
    if (x is None) != (y is None):
        raise InputError("a place has both x and y: one of them is missing")
    place = None if x is None or y is None else (x, y)
    with state.line.place() as taken:
        upload = await upload_of(request, taken, name)
        row = Row(upload.name, pixels=upload.content)
        return await run_in_threadpool(_opened, state, served.model, row, _numbers(box), place)


@router.get("/api/see/{id}/fields")
def fields(
    state: TheState,
    id: Annotated[str, Path(max_length=64)],
    x: Annotated[int, Query(ge=0, le=_FAR)],
    y: Annotated[int, Query(ge=0, le=_FAR)],
) -> list[ExploredField]:
    """Say what the cell over a pixel sees, in each layer of an image that was opened."""
    explorer = state.explorers.get(id)
    with state.explorers.turn():
        return explorer.fields(x, y)


def _explained(state: State, model: AnyModel, row: Row, box: Sequence[int] | None) -> Explanation:
    data = state.settings.data
    folders = [] if data is None else [os.fspath(place) for place in (data.path, *data.more)]
    with state.explorers.turn():
        whole = explained(model, row, box=box, folders=folders, compute=state.settings.compute)
    values = explanation_values(whole)
    image, heat = (_address(picture) for picture in values["pictures"])
    return {
        "result": whole.result,
        "image": image,
        "heat": heat,
        "places": [
            {
                "own": _address(place.pictures[0]),
                "nearest": [picture.source for picture in place.pictures[1:]],
            }
            for place in values["places"]
        ],
        "similar": values["similar"][0].source if values["similar"] else None,
    }


def _opened(
    state: State, model: AnyModel, row: Row, box: Sequence[int] | None, place: tuple[int, int] | None
) -> Layers:
    most = state.settings.compute.max_pixels
    if isinstance(model, ExportedModel):
        note = (
            "an exported model hides its layers: serve the model file (.safetensors) that it was exported from, which "
            "takes pickglass[train]"
        )
        with state.explorers.turn():
            return {"id": None, "result": None, "image": _shown(row, most), "layers": [], "note": note}
    from pickglass.app.see.explorer import LayerExplorer

    with state.explorers.turn():
        explorer = LayerExplorer(model, row, place=place, max_pixels=most)
        result = explorer.explore(box=box)
        pictures: list[LayerPictures] = [
            {
                "layer": layer["layer"],
                "colours": data_address("image/png", explorer.picture(layer["layer"], "colours")),
                "map": data_address("image/png", explorer.picture(layer["layer"], "map")),
            }
            for layer in result["layers"]
        ]
        image = _shown(row, most)
    return {"id": state.explorers.keep(explorer), "result": result, "image": image, "layers": pictures, "note": None}


def _shown(row: Row, max_pixels: int) -> str:
    pixels = display(row.image(max_pixels))
    size = picture_size(pixels.shape[0], pixels.shape[1], _SIDE)
    return _address(jpeg("", "the image", thumbnail(pixels, size)))


def _address(picture: Picture) -> str:
    return picture.source or ""


def _numbers(box: str | None) -> list[int] | None:
    return None if box is None else [int(part) for part in box.split(",")]
