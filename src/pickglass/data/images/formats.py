"""The bytes of an image file become its exact pixels, or one ImageError. It needs numpy and Pillow only.

Pillow decodes; what is added here is what it lets pass: it keeps 8 of the 16 bits of colour, tests no check sum of a
PNG's pixels, warns of large images by a global of the process, and raises a dozen kinds of error on damaged files.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import IO, Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from pickglass.errors import ImageError

__all__ = [
    "Header",
    "decode_file",
    "decode_levels",
    "decode_pil",
    "level_of",
    "open_file",
    "parse_header",
    "unit_floats",
]

Array: TypeAlias = NDArray[Any]

_ORIENTATION = 0x0112  # the tag of EXIF and TIFF
_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}

# The formats known to be decoded exactly. Opened by signature and not by Image.open, whose limit on pixels is a global
# that warns instead of raising, and whose other formats run programs or narrow silently.
_OPENERS: dict[bytes, Callable[[IO[bytes], str], ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"\xff\xd8\xff": JpegImagePlugin.jpeg_factory,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
}
_FOREIGN = {
    b"GIF8": "a GIF file",
    b"ftyp": "a HEIC, AVIF or video file",
    b"jP  ": "a JPEG 2000 file",
    b"%PDF": "a PDF file",
    b"<svg": "an SVG file",
}
_LFS = b"version https://"  # with which a pointer of Git LFS begins
_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF")  # what they make of a file, in Pillow's words
_LOCKS: dict[int, Lock] = {}  # by process: one that was forked must not wait for a thread that is not there


class Header(NamedTuple):
    """An image file states its upright size in pixels, the bits of a channel (8, 16 or 32), and channels (1 or 3)."""

    height: int
    width: int
    bits: int
    channels: int


def open_file(path: str) -> IO[bytes]:
    """Open a regular file for reading; anything else is an ImageError, without waiting on a pipe."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(path, f"cannot be opened: {_reason(error)}") from error
    raise ImageError(path, f"is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}, expected an image file")


def decode_file(file: IO[bytes], name: str, max_pixels: int) -> Array:
    """Decode a seekable file as :func:`pickglass.data.images.decoder.read_image` promises; ``name`` is for messages."""
    return _decoded(file, name, max_pixels, _array)


def decode_levels(file: IO[bytes], name: str, max_pixels: int) -> tuple[Array, bool]:
    """Decode a seekable file of a mask: its levels ``(H, W)``, see :mod:`pickglass.data.images.masks`, and if lossy."""
    array = _decoded(file, name, max_pixels, _levels)
    with _one_error(name):
        return level_of(array, name), _is_lossy(file, name)


def _decoded(file: IO[bytes], name: str, max_pixels: int, array_of: Callable[[Image.Image, str], Array]) -> Array:
    with _one_error(name):
        image = _opened(file, name)
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise ImageError(
                name,
                f"{image.width}x{image.height} is {pixels:,} pixels, more than the limit of {max_pixels:,}: "
                "if the file is sound, raise max_pixels (--max-pixels)",
            )
        if (frames := _frames(image)) > 1:
            raise ImageError(name, f"holds {frames} frames, expected one: save each frame as a file of its own")
        if image.format == "PNG":
            _walk_png(file, name, check=True)
        raw = _raw_mode(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image, raw, name)
        if _is_deep_colour(raw, image):
            array, image = _deep_colour(file, name, raw)
        else:
            image.load()
            array = array_of(image, name)
        # Pillow has turned a TIFF already.
        return array if image.format == "TIFF" else _upright(array, image)


def decode_pil(image: Image.Image, max_pixels: int) -> Array:
    """Return the array of an image of Pillow; one that was opened and not yet loaded is read here and stays so.

    Its file is read again from the start, so that a list of opened files is never decoded all at once, and 16-bit
    colour is exact. One that was loaded before is taken as it is.
    """
    name = str(getattr(image, "filename", "") or "<PIL image>")
    # Of the threads that decode, two may meet in one image or in one open file.
    lock = _LOCKS.setdefault(os.getpid(), Lock())
    with _one_error(name):
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
        return _upright(_array(image, name), image)


def _frames_open(image: Image.Image, name: str) -> int:
    """Count the frames of an image of Pillow; one whose file was closed before it was decoded is an ImageError."""
    file = getattr(image, "fp", None)
    try:
        if not getattr(image, "tile", None) or (file is not None and not file.closed):
            return _frames(image)
    except ValueError:  # raised by what Pillow puts in the place of a closed file of frames
        pass
    raise ImageError(name, "was closed before it was read: pass a copy made before, image.copy(), or the path")


def _undecoded(image: Image.Image) -> bytes | None:
    """Return the bytes of the file of an image that Pillow has opened and not decoded; None: it has."""
    file = getattr(image, "fp", None)
    shrunk = getattr(image, "decoderconfig", ())  # by Image.draft, which its owner asked for
    if not getattr(image, "tile", None) or shrunk or image.format not in _FORMATS or file is None or file.closed:
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


def _frames(image: Image.Image) -> int:
    # An MPO file is a photograph whose further frames are previews of the first; elsewhere frames are equals.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def parse_header(file: IO[bytes], name: str) -> Header:
    """Read the size, depth and channels of an open file without decoding its pixels."""
    with _one_error(name):
        image = _opened(file, name)
        raw = _raw_mode(image)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # of some versions, size is turned already, of some not
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
            orientation = image.tag_v2.get(_ORIENTATION, 1)
        elif image.format == "PNG" and not _walk_png(file, name, check=False):
            orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)  # PngImageFile's own decodes first
        else:
            orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation in (5, 6, 7, 8):
            height, width = width, height
        deep = _is_deep(raw) or image.mode.startswith("I;16")
        bits = 16 if deep else 32 if image.mode in ("F", "I") else 8
        grey = raw.startswith("LA;") or image.mode.split(";")[0] in ("1", "L", "LA", "I", "F")
        return Header(height, width, bits, 1 if grey else 3)


def unit_floats(array: Array, name: str) -> Array:
    """Return floats in 0..1 as float32; other values are an ImageError."""
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:  # so written that NaN is not taken
        return array.astype(np.float32, copy=False)
    broken = array.size - int(np.count_nonzero(np.isfinite(array)))
    if broken:
        raise ImageError(
            name,
            f"{broken:,} of its {array.size:,} float values are NaN or infinite, expected 0..1: replace them, e.g. "
            "numpy.nan_to_num(image, nan=0, posinf=0, neginf=0)",
        )
    remedy = "divide by the value of white"
    if low < 0:
        remedy = "leave out what normalises the images (mean and standard deviation), or shift and divide"
    elif high <= 255:
        remedy = "divide by the value of white: 255 where it comes from 8 bits"
    elif high <= 65535:
        remedy = "divide by the value of white: 65535 where it comes from 16 bits"
    raise ImageError(name, f"float pixels from {low:.7g} to {high:.7g}, expected 0..1: {remedy}")


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged file into one ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, KeyError, zlib.error ... have no common base
        raise ImageError(name, f"the file is damaged or cut short: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _opened(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    file.seek(0)
    start = file.read(16)
    if not start:
        raise ImageError(name, "the file is empty (0 bytes)")
    opener = next((opener for signature, opener in _OPENERS.items() if start.startswith(signature)), None)
    if opener is None:
        if start == _LFS:
            raise ImageError(name, "is a pointer of Git LFS and no image: get the image itself with 'git lfs pull'")
        unknown = f"not an image (it starts with {start[:8]!r})"
        what = next((kind for mark, kind in _FOREIGN.items() if mark in start), unknown)
        raise ImageError(name, f"is {what}, expected PNG, JPEG, TIFF, BMP or WebP: save it as PNG")
    file.seek(0)
    try:
        return opener(file, name)
    except SyntaxError as error:
        if opener is TiffImagePlugin.TiffImageFile:
            raise _unknown_tiff(file, name) from error
        raise


def _upright(array: Array, image: Image.Image) -> Array:
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return array if turn is None else np.ascontiguousarray(turn(array))  # 5 to 8: (H, W[, 3]) -> (W, H[, 3])


def _array(image: Image.Image, name: str) -> Array:
    """Return the array of a decoded PIL image: palette expanded, alpha dropped, colour as RGB."""
    mode = image.mode
    if mode in ("L", "RGB"):
        return np.array(image)
    if mode in ("1", "LA"):
        return np.array(image.convert("L"))
    if mode == "La":  # alpha is multiplied in
        return np.array(image.convert("LA").convert("L"))
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):  # older Pillow: 16-bit grey PNG as I
        return np.array(image).astype(np.uint16, copy=False)  # in native byte order
    if mode == "F":
        return unit_floats(np.array(image), name)
    if mode == "I":
        raise ImageError(name, "has 32-bit or signed integer pixels, whose white is not known: save 8 or 16 bits")
    if mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("RGBA")  # from P straight to RGB, Pillow warns of transparency
    return np.array(image.convert("RGB"))


# -- masks ------------------------------------------------------------------------------------------------------------


def _levels(image: Image.Image, name: str) -> Array:
    """Return the values of a decoded mask, from which :func:`level_of` makes one level a pixel."""
    mode = image.mode
    if mode in ("I", "F"):
        return np.array(image)
    if mode in ("LA", "RGBA", "La", "RGBa"):
        return np.array(image.convert("RGBA" if mode.startswith("R") else "LA").convert("RGBA"))
    if mode not in ("P", "PA"):
        return _array(image, name)
    rgba = np.array(image.convert("RGBA"))
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if mode == "P" and alpha.min() == alpha.max() and (not colours.any() or colours.any(axis=2).all()):
        indices = np.array(image)  # no colour is the background, but the first index
        return indices > (indices.min() if indices.min() < indices.max() else 0)
    if not (colours == colours[..., :1]).all():  # colours name types and are no shades
        rgba[..., :3] = 255 * colours.any(axis=2, keepdims=True)
    return rgba


def level_of(values: Array, name: str) -> Array:
    """Return the levels ``(H, W)``, 0 and above, of a mask ``(H, W)`` or ``(H, W, C)`` with C 1, 3, or 4 with alpha."""
    levels = values
    if values.ndim == 3:
        levels, colours = values[..., 0], values[..., :3]
        for channel in range(1, colours.shape[2]):
            levels = np.maximum(levels, values[..., channel])
        alpha = values[..., 3] if values.shape[2] == 4 else None
        if alpha is not None and alpha.min() < alpha.max():  # alpha that is the same everywhere says nothing
            levels = np.minimum(levels, alpha) if levels.any() else alpha
        elif (levels > 0).all() and (colours != colours[..., :1]).any() and (colours != colours[0, 0]).any():
            raise ImageError(name, "the mask has several colours and none is black: make black what is not marked")
    low = levels.min() if levels.dtype.kind in "if" else 0
    if not low >= 0 or (levels.dtype.kind == "f" and not levels.max() < np.inf):  # so written that NaN fails too
        raise ImageError(name, "the mask holds negative, infinite or NaN values, expected 0 for what is not marked")
    return levels


def _is_lossy(file: IO[bytes], name: str) -> bool:
    """Say whether the pixels of a mask were changed to save space, so that they have values that nobody drew."""
    image = _opened(file, name)
    if image.format == "WEBP":
        file.seek(0)
        return b"VP8 " in file.read()  # the chunk of lossy pixels; lossless ones are in VP8L
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


# -- 16-bit colour ----------------------------------------------------------------------------------------------------


def _raw_mode(image: Image.Image) -> str:
    """Say how the pixels lie in the file, in Pillow's words, e.g. ``RGB;16B``; empty once they are decoded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0].args
    return str((args[0] if args else "") if isinstance(args, tuple) else args or "")


def _is_deep(raw: str) -> bool:
    return raw[-4:-1] == ";16" and raw[-1] in "BLN"  # and not BGR;16, which is 5 + 6 + 5 bits


def _is_deep_colour(raw: str, image: Image.Image) -> bool:
    return _is_deep(raw) and len(image.getbands()) > 1


def _deep_colour(file: IO[bytes], name: str, raw: str) -> tuple[Array, ImageFile.ImageFile]:
    """Get exact 16-bit colour from a decoder that keeps the high byte: decode again, telling it the other byte order.

    It then takes the low byte for the high one, so that high * 256 + low is the value in the file. Grey with alpha
    has four bytes, which are one 8-bit RGBA pixel to the decoder: one pass gives both.
    """
    if raw == "LA;16B":
        image = _loaded_as(file, name, "RGBA")
        both = np.asarray(image).astype(np.uint16)
        return both[..., 0] << 8 | both[..., 1], image  # (H, W)
    kind, order = raw.split(";16")
    if kind not in ("RGB", "RGBA", "RGBX"):
        raise _inexact(name, f"16-bit colour of the kind {kind}")
    little = order == "L" or (order == "N" and sys.byteorder == "little")
    image = _loaded_as(file, name, raw)
    high = np.asarray(image)[..., :3].astype(np.uint16)
    low = np.asarray(_loaded_as(file, name, f"{kind};16{'B' if little else 'L'}"))[..., :3]
    return high << 8 | low, image  # (H, W, 3)


def _loaded_as(file: IO[bytes], name: str, raw: str) -> ImageFile.ImageFile:
    image = _opened(file, name)
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
    image.load()
    return image


def _check_tiff(image: TiffImagePlugin.TiffImageFile, raw: str, name: str) -> None:
    """Refuse what Pillow would narrow, invert, wrap or scramble silently."""
    bits = max(cast("tuple[int, ...]", image.tag_v2.get(258, (1,))))
    if bits == 8 and 2 in cast("tuple[int, ...]", image.tag_v2.get(339, (1,))):
        raise _inexact(name, "8-bit TIFF with a sign")
    samples, colours = image.tag_v2.get(277, 1), {2: 3, 5: 4, 6: 3, 8: 3}.get(image.tag_v2.get(262, 1), 1)
    if samples > colours + 1:  # one more is alpha
        raise ImageError(name, f"TIFF with {samples} channels, expected grey or colour: save the channels to judge")
    if bits > 8 and image.tag_v2.get(277, 1) > 1 and (not _is_deep(raw) or image.tag_v2.get(284, 1) != 1):
        raise _inexact(name, f"{bits}-bit TIFF colour with separate planes or packed bits")
    if bits > 8 and image.tag_v2.get(262) == 0:
        raise _inexact(name, f"{bits}-bit TIFF whose 0 is white")


def _unknown_tiff(file: IO[bytes], name: str) -> ImageError:
    """Make the error for a TIFF whose kind of pixels Pillow does not know: it says what they are."""
    file.seek(0)
    head = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" else head)
    file.seek(tags.next)
    tags.load(file)
    bits, channels = max(tags.get(258, (1,))), tags.get(277, 1)
    kind = {2: "integers with a sign", 3: "floats"}.get(max(tags.get(339, (1,))), "integers")
    return ImageError(
        name,
        f"TIFF with {channels} channel{'s' if channels > 1 else ''} of {bits}-bit {kind}, expected 8 or 16 bits "
        "without a sign, or one channel of 32-bit floats: save it as 16-bit PNG, or pass it as an array",
    )


def _inexact(name: str, what: str) -> ImageError:
    return ImageError(name, f"{what} cannot be read exactly: save it as 16-bit PNG, or pass it as a uint16 array")


def _walk_png(file: IO[bytes], name: str, check: bool) -> bool:
    """Walk the chunks of a PNG, with ``check`` their check sums too, and say whether metadata follows the pixels.

    Pillow stops at the last row and checks no sum over the pixels: a flipped bit would pass unseen.
    """
    file.seek(8)
    pixels_seen = late_metadata = False
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ImageError(name, "the file is cut short: a PNG ends with IEND")
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if check and not kind[0] & 32:  # upper case: a chunk that decides the picture
            crc = zlib.crc32(kind)
            while length and (piece := file.read(min(length, 1 << 20))):
                crc, length = zlib.crc32(piece, crc), length - len(piece)
            if file.read(4) != crc.to_bytes(4, "big"):
                raise ImageError(name, f"the file is damaged or cut short: wrong check sum of {kind!r}")
        else:
            file.seek(length + 4, io.SEEK_CUR)
        pixels_seen |= kind == b"IDAT"
        late_metadata |= pixels_seen and kind in (b"eXIf", b"iTXt")
        if kind == b"IEND":
            return late_metadata
