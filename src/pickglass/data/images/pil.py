"""Images that the user has opened with Pillow: exact where they are still in their file, one at a time in memory."""

from __future__ import annotations

import io
import os
from threading import Lock
from typing import cast

from PIL import Image, ImageFile, TiffImagePlugin

from pickglass.data.images.formats import (
    FORMATS,
    Picture,
    decode_file,
    frames_in,
    one_error,
    picture_of_image,
    upright,
)
from pickglass.data.images.geometry import array_of
from pickglass.errors import ImageError

__all__ = ["decode_pil"]

_LOCKS: dict[int, Lock] = {}  # by process: one that was forked must not wait for a thread that is not there


def decode_pil(image: Image.Image, max_pixels: int) -> Picture:
    """Return the pixels of an image of Pillow; one that was opened and not yet loaded is read here and stays so.

    Its file is read again from the start, so that a list of opened files is never decoded all at once, and 16-bit
    colour is exact. One that was loaded before is taken as it is.
    """
    name = str(getattr(image, "filename", "") or "<PIL image>")
    # Of the threads that decode, two may meet in one image or in one open file.
    lock = _LOCKS.setdefault(os.getpid(), Lock())
    with one_error(name):
        with lock:
            if (frames := _frames_open(image, name)) > 1:
                raise ImageError(
                    name,
                    f"holds {frames} frames, expected one: pass copies of the frames, e.g. "
                    "[frame.copy() for frame in PIL.ImageSequence.Iterator(image)]",
                )
            data = _undecoded(image)
            if data is None:
                image.load()
        if data is not None:
            return decode_file(io.BytesIO(data), name, max_pixels)
        if isinstance(image, ImageFile.ImageFile) and image.mode.startswith("RGB") and _was_deep(image):
            raise ImageError(name, "16-bit colour of which Pillow has kept 8 bits: pass the path, or open it anew")
        return upright(array_of(picture_of_image(image, name)), image)


def _frames_open(image: Image.Image, name: str) -> int:
    """Count the frames of an image of Pillow; one whose file was closed before it was decoded is an ImageError."""
    file = getattr(image, "fp", None)
    try:
        if not getattr(image, "tile", None) or (file is not None and not file.closed):
            return frames_in(image)
    except ValueError:  # raised by what Pillow puts in the place of a closed file of frames
        pass
    raise ImageError(name, "was closed before it was read: pass a copy made before, image.copy(), or the path")


def _undecoded(image: Image.Image) -> bytes | None:
    """Return the bytes of the file of an image that Pillow has opened and not decoded; None: it has."""
    file = getattr(image, "fp", None)
    shrunk = getattr(image, "decoderconfig", ())  # by Image.draft, which its owner asked for
    if not getattr(image, "tile", None) or shrunk or image.format not in FORMATS or file is None or file.closed:
        return None
    at = file.tell()
    file.seek(0)
    try:
        return bytes(file.read())
    finally:
        file.seek(at)


def _was_deep(image: ImageFile.ImageFile) -> bool:
    """Say whether a decoded image of Pillow had more than 8 bits a channel in its file."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(cast("tuple[int, ...]", image.tag_v2.get(258, (1,)))) > 8
    if image.format != "PNG" or not os.path.isfile(image.filename):
        return False
    with open(image.filename, "rb") as file:
        return file.read(25)[24:] == b"\x10"  # bits a channel, of the chunk IHDR
