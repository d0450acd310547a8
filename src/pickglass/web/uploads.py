"""The image that a request brings: read once for all pages, within its length, its time, and the line's limits."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from fastapi import HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from pickglass.errors import InputError, shortened
from pickglass.web.answers import LONGEST_NAME, plain_name
from pickglass.web.judging import Place

__all__ = ["BODY", "Upload", "UploadName", "upload_of"]

_TYPES = ("png", "jpeg", "bmp", "x-ms-bmp", "tiff", "webp")
_ANY = "application/octet-stream"
_FIELDS = 16  # of a form, beside the image

UploadName = Annotated[str, Query(max_length=LONGEST_NAME, description="What the answer calls the image.")]

BODY: dict[str, Any] = {
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
"""What the description of a request that brings an image says of its body."""


class Upload(NamedTuple):
    """An image as it came, and a name to call it by."""

    name: str
    content: bytes


async def upload_of(request: Request, place: Place, name: str) -> Upload:
    """Read the image that a request brings.

    Raises:
        HTTPException: 415, 503, or 408 and 413 from the guard.
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
    content = await _body(request, place)
    if form:
        upload = await run_in_threadpool(_image_of_form, content, options.get(b"boundary", b""), name)
    else:
        upload = Upload(plain_name(name), content)
    if not upload.content:
        raise InputError("the request brings no bytes, expected an image")
    return upload


async def _body(request: Request, place: Place) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        place.grow(len(chunk))
        content += chunk
    return bytes(content)


def _image_of_form(content: bytes, boundary: bytes, name: str) -> Upload:
    """Find the one image in a form, all in memory."""
    images: list[Upload] = []
    others: list[Any] = []

    def file(part: Any) -> None:
        part.file_object.seek(0)
        if part.field_name != b"image" or images:
            raise InputError("expected one file in the form, named 'image': send several images one after the other")
        sent = (part.file_name or b"").decode("utf-8", "replace")
        images.append(Upload(plain_name(sent or name), part.file_object.read()))

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
