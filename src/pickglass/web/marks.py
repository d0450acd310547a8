"""People mark images good, bad or unsure, and take the marks with them.

``GET /api/marks`` lists the mark that counts of each image; ``POST /api/marks`` marks one. Who marks says how many
marks of the image they have seen (``seen``, the ``latest`` of the last answer). If somebody else has marked it
otherwise meanwhile, both marks are kept, ``disputed`` is true, and the image counts as unsure until somebody marks it
again.

An image is named by its place and its name there, see :mod:`pickglass.web.places`. One that a browser holds is sent to
``/api/marks/images`` first, which keeps it.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from pickglass.app.marking.images import digest_of
from pickglass.app.marking.layout import write_layout
from pickglass.app.marking.mask import draw_shapes, mask_of, png_of
from pickglass.app.marking.store import Mark, MarkStore
from pickglass.app.marking.table import csv_of, read_table
from pickglass.app.pages.images import QUALITY, display, picture_size, thumbnail
from pickglass.data.files import scratch_folder
from pickglass.data.images.decoder import read_header, read_image
from pickglass.errors import DataError, ImageError, UnknownName
from pickglass.web.places import Place
from pickglass.web.state import State, TheState
from pickglass.web.uploads import BODY, UploadName, upload_of

__all__ = [
    "BroughtMarks",
    "ImageName",
    "ImageSize",
    "KeptImage",
    "MarkAbout",
    "MarkHistory",
    "MarkList",
    "NewMark",
    "Shape",
    "about_mark",
]

router = APIRouter(prefix="/api/marks", tags=["marks"])

Word = Literal["good", "bad", "unsure"]
Digest = Annotated[str, PathParameter(pattern="^[0-9a-f]{64}$", description="SHA-256 of the image's file.")]
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("text/csv", "application/zip")
        }
    }
}


class MarkAbout(TypedDict):
    """A mark of an image.

    ``name``: of the image in its ``place``, which is null where the server does not know the image. ``counts_as``: what
    the image counts as; ``unsure`` where it is ``disputed``. ``mark``: null where an earlier mark was taken back.
    ``mask``: whether the defect is outlined. ``version``: 1 for the image's first mark; ``latest``: number of its
    marks, to give as ``seen`` with the next one.
    """

    sha256: str
    place: Place | None
    name: str
    mark: Word | None
    counts_as: Word | None
    type: str | None
    mask: bool
    user: str | None
    time: str
    model_id: str | None
    model_version: int | None
    score: float | None
    note: str | None
    version: int
    latest: int
    disputed: bool


class MarkList(TypedDict):
    """The marks that count, last ones first, how many images count as what, and the types of defects so far."""

    marks: list[MarkAbout]
    good: int
    bad: int
    unsure: int
    types: list[str]


class MarkHistory(TypedDict):
    """All marks of an image, first things first."""

    marks: list[MarkAbout]


class KeptImage(TypedDict):
    """An image is kept under this name."""

    place: Place
    name: str
    sha256: str


class ImageSize(TypedDict):
    """The size of an image in pixels."""

    height: int
    width: int


class BroughtMarks(TypedDict):
    """A table was read: marks that are new, that were there, and images of which the table says something else."""

    added: int
    known: int
    disputed: list[str]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageName(_Body):
    """An image by its place and its name there."""

    place: Place
    name: str = Field(max_length=4096)


class Shape(_Body):
    """A polygon, or a stroke of a brush, in pixels of the image."""

    kind: Literal["polygon", "stroke"]
    points: list[tuple[float, float]] = Field(max_length=50_000)
    radius: float | None = None
    erase: bool = False


class NewMark(_Body):
    """What somebody says of an image; ``mark`` null takes earlier marks back.

    ``seen``: number of marks of the image that they have seen; null: all. ``model``: the served model whose ``score``
    they looked at. ``shapes``: outline of the defect, drawn on top of the last mark's if ``keep_mask``.
    """

    image: ImageName
    mark: Word | None
    type: str | None = Field(None, max_length=200)
    note: str | None = Field(None, max_length=4000)
    user: str | None = Field(None, max_length=200)
    seen: int | None = Field(None, ge=0, lt=2**31)
    model: str | None = Field(None, max_length=500)
    score: float | None = None
    shapes: list[Shape] = Field(default_factory=list, max_length=10_000)
    keep_mask: bool = False


@router.get("")
def marks(state: TheState) -> MarkList:
    """List the mark that counts of each image."""
    found = state.marks.current()
    counts = {word: sum(mark.counts_as == word for mark in found) for word in ("good", "bad", "unsure")}
    return {
        "marks": [about_mark(state, mark) for mark in reversed(found)],
        "good": counts["good"],
        "bad": counts["bad"],
        "unsure": counts["unsure"],
        "types": sorted({mark.type for mark in found if mark.type is not None}),
    }


@router.post("")
def mark(new: NewMark, state: TheState) -> MarkAbout:
    """Mark an image; the answer says whether somebody else has marked it otherwise meanwhile."""
    path = state.places.find(new.image.place, new.image.name)
    try:
        digest = digest_of(path)
    except OSError as error:
        raise ImageError(new.image.name, f"cannot be read ({error.strerror})") from error
    model = None if new.model is None else state.models.get(new.model).model
    before = state.marks.get(digest)
    kept = before.mask if new.keep_mask and before is not None else None
    said = Mark(
        os.path.abspath(path),
        digest,
        new.mark,
        new.type,
        kept,
        new.user,
        model_id=None if model is None else model.model_id(),
        model_version=None if model is None else model.model_version,
        score=new.score,
        note=new.note,
    )
    png = None
    if new.shapes:
        size = read_header(path)[:2]
        start = None if kept is None else mask_of(state.marks.mask(kept))
        drawn = draw_shapes([shape.model_dump() for shape in new.shapes], size, start)
        png = png_of(drawn) if drawn.any() else None
        said = replace(said, mask=None)
    return about_mark(state, state.marks.add(said, new.seen, png))


@router.post("/images", openapi_extra=BODY)
async def keep_image(request: Request, state: TheState, name: UploadName = "image") -> KeptImage:
    """Keep an image that a browser holds, so that it can be marked and learned."""
    with state.line.place() as taken:
        upload = await upload_of(request, taken, name)
        kept = await run_in_threadpool(state.places.keep, upload.content, upload.name)
    return {"place": "kept", "name": kept, "sha256": kept.partition("/")[0]}


async def _sent(request: Request) -> bytes:
    """Return what was sent, whatever kind the sender calls it; older versions of FastAPI take no kind for JSON."""
    return await request.body()


@router.post("/table", openapi_extra={"requestBody": {"required": True, "content": {"text/csv": {}}}})
def bring(state: TheState, content: Annotated[bytes, Depends(_sent)]) -> BroughtMarks:
    """Read a table of marks, as a report or another page saved it; all of it or nothing."""
    with scratch_folder(state.folder) as folder:
        path = folder / "table.csv"
        path.write_bytes(content)
        try:
            brought = state.marks.bring(read_table(path, masks=False))
        except DataError as error:
            raise DataError(str(error).replace(str(path), "the table")) from error
    names = [state.places.shown(path).name for path in brought.disputed]
    return {"added": brought.added, "known": brought.known, "disputed": names}


@router.get("/table.csv", response_class=Response, responses=_FILE)
def table(state: TheState) -> Response:
    """Return the marks that count as a table; masks are in the data set alone."""
    marks = [replace(mark, path=state.places.shown(mark.path).name, mask=None) for mark in state.marks.current()]
    content = csv_of(marks).encode("utf-8", "backslashreplace")
    return Response(content, media_type="text/csv; charset=utf-8", headers=_named("marks.csv"))


@router.get("/dataset.zip", response_class=StreamingResponse, responses=_FILE)
def dataset(state: TheState) -> StreamingResponse:
    """Return the marked images as a data set in the layout of MVTec AD; ``about.json`` in it names what is missing."""
    there, absent = state.places.located([one for one in state.marks.current() if one.counts_as != "unsure"])
    with scratch_folder(state.folder) as folder, MarkStore(":memory:") as store:
        store.bring(
            (replace(one, mask=None), None if one.mask is None else state.marks.mask(one.mask)) for one in there
        )
        result = write_layout(store, folder / "set")
        failed = [{"path": one.path, "error": error} for one, error in absent]
        about: Any = {**result, "folder": "", "failed": [*result["failed"], *failed]}
        shown = [(one.path, state.places.shown(one.path).name) for one in (*there, *(one for one, _ in absent))]
        names = dict(shown)
        for entry in (*about["failed"], *about["renamed"]):
            entry["path"] = names.get(entry["path"], entry["path"])
        target = _zipped(folder / "set", about, state.folder)

    def parts() -> Iterator[bytes]:
        with target:
            while part := target.read(1 << 20):
                yield part

    return StreamingResponse(parts(), media_type="application/zip", headers=_named("marked.zip"))


@router.get("/{sha256}")
def history(sha256: Digest, state: TheState) -> MarkHistory:
    """Return all that was said of an image."""
    _known(state, sha256)
    return {"marks": [about_mark(state, mark) for mark in state.marks.history(sha256)]}


@router.get("/{sha256}/picture", response_class=Response, responses=_PICTURE)
def picture(
    sha256: Digest,
    state: TheState,
    side: Annotated[int, Query(ge=16, le=4096, description="Longest side in pixels.")] = 320,
) -> Response:
    """Return a picture of a marked image, as JPEG."""
    path = state.places.path_of(_known(state, sha256))
    pixels = display(read_image(path, state.settings.compute.max_pixels))
    return Response(
        _jpeg(thumbnail(pixels, picture_size(pixels.shape[0], pixels.shape[1], side))), media_type="image/jpeg"
    )


@router.get("/{sha256}/size")
def size(sha256: Digest, state: TheState) -> ImageSize:
    """Return the size of a marked image, upright."""
    header = read_header(state.places.path_of(_known(state, sha256)))
    return {"height": header.height, "width": header.width}


@router.get("/{sha256}/mask", response_class=Response, responses=_PICTURE)
def mask(sha256: Digest, state: TheState) -> Response:
    """Return the outline of the defect as PNG, as large as the image: 255 inside, 0 outside."""
    marked = _known(state, sha256)
    if marked.mask is None:
        raise UnknownName("mask", state.places.shown(marked.path).name, [])
    return Response(state.marks.mask(marked.mask), media_type="image/png")


def about_mark(state: State, mark: Mark) -> MarkAbout:
    """Return a mark as browsers get it."""
    shown = state.places.shown(mark.path)
    return {
        "sha256": mark.digest,
        "place": shown.place,
        "name": shown.name,
        "mark": mark.mark,
        "counts_as": mark.counts_as,
        "type": mark.type,
        "mask": mark.mask is not None,
        "user": mark.user,
        "time": mark.time,
        "model_id": mark.model_id,
        "model_version": mark.model_version,
        "score": mark.score,
        "note": mark.note,
        "version": mark.version,
        "latest": mark.latest,
        "disputed": mark.disputed,
    }


def _known(state: State, digest: str) -> Mark:
    found = state.marks.get(digest)
    if found is None:
        raise UnknownName("mark", digest[:16], [])
    return found


def _zipped(folder: Path, about: Any, beside: Path) -> IO[bytes]:
    """Put the files of a folder into an archive, which is gone when it is closed."""
    target = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder).as_posix())
            archive.writestr("about.json", json.dumps(about, indent=1))
        target.seek(0)
    except BaseException:
        target.close()
        raise
    return target


def _jpeg(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _named(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
