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
from functools import lru_cache
from typing import IO, Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from pickglass.errors import ImageError

__all__ = [
    "FORMATS",
    "Header",
    "Picture",
    "decode_file",
    "frames_in",
    "one_error",
    "open_file",
    "opened",
    "parse_header",
    "picture_of_image",
    "unit_floats",
    "upright",
]

Array: TypeAlias = NDArray[Any]
Picture: TypeAlias = "Array | Image.Image"
"""An image as :func:`pickglass.data.read_image` returns it, or 8 bits as Pillow decoded them, of mode L or RGB.
An array of these takes as long to make as resizing them, so it is made where one is needed (``geometry.array_of``)."""

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
_PLAIN_PIXELS = ("L", "RGB")  # of a PNG, in Pillow's words
_PLAIN = frozenset(  # chunks of a PNG that change no pixel
    (
        b"IHDR",
        b"PLTE",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"iCCP",
        b"sBIT",
        b"pHYs",
        b"tIME",
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"eXIf",
    )
)
_LFS = b"version https://"  # with which a pointer of Git LFS begins
Chunks: TypeAlias = "tuple[set[bytes], set[bytes]]"  # kinds before and after the pixels
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF")
"""The formats that are decoded exactly, in Pillow's words."""


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


def decode_file(
    file: IO[bytes], name: str, max_pixels: int, picture_of: Callable[[Image.Image, str], Picture] | None = None
) -> Picture:
    """Decode a seekable file as :func:`pickglass.data.images.decoder.read_image` promises.

    Args:
        file: is read from its start.
        name: for messages.
        max_pixels: height x width above which it is refused.
        picture_of: makes the pixels of the decoded image; None: :func:`picture_of_image`.
    """
    with one_error(name):
        image = opened(file, name)
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise ImageError(
                name,
                f"{image.width}x{image.height} is {pixels:,} pixels, more than the limit of {max_pixels:,}: "
                "if the file is sound, raise max_pixels (--max-pixels)",
            )
        if (frames := frames_in(image)) > 1:
            raise ImageError(name, f"holds {frames} frames, expected one: save each frame as a file of its own")
        chunks = _walk_png(file, name, check=True) if image.format == "PNG" else None
        raw = _raw_mode(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _check_tiff(image, raw, name)
        if _is_deep_colour(raw, image):
            picture: Picture
            picture, image = _deep_colour(file, name, raw)
        elif chunks is not None and picture_of is None and (array := _fast_png(file, image, raw, chunks)) is not None:
            turn = Image.Image.getexif(image).get(_ORIENTATION, 1)  # PngImageFile's own decodes first
            return _turned(array, turn)
        else:
            image.load()
            picture = (picture_of or picture_of_image)(image, name)
        # Pillow has turned a TIFF already.
        return picture if image.format == "TIFF" else upright(picture, image)


def frames_in(image: Image.Image) -> int:
    """Count the frames of an image."""
    # An MPO file is a photograph whose further frames are previews of the first; elsewhere frames are equals.
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def parse_header(file: IO[bytes], name: str) -> Header:
    """Read the size, depth and channels of an open file without decoding its pixels."""
    with one_error(name):
        image = opened(file, name)
        raw = _raw_mode(image)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # of some versions, size is turned already, of some not
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
            orientation = image.tag_v2.get(_ORIENTATION, 1)
        elif image.format == "PNG" and not _walk_png(file, name, check=False)[1] & {b"eXIf", b"iTXt"}:
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
def one_error(name: str) -> Iterator[None]:
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


def opened(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    """Open a seekable file by its signature; what is no image is named for what it is."""
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


def upright(picture: Picture, image: Image.Image) -> Picture:
    """Turn the pixels of an image as its metadata say."""
    return _turned(picture, image.getexif().get(_ORIENTATION, 1))


def _turned(picture: Picture, orientation: int) -> Picture:
    turn = _UPRIGHT.get(orientation)
    # 5 to 8: (H, W[, 3]) -> (W, H[, 3])
    return picture if turn is None else np.ascontiguousarray(turn(np.array(picture)))


def picture_of_image(image: Image.Image, name: str) -> Picture:
    """Return the pixels of a decoded PIL image: palette expanded, alpha dropped, colour as RGB."""
    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode in ("1", "LA"):
        return image.convert("L")
    if mode == "La":  # alpha is multiplied in
        return image.convert("LA").convert("L")
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):  # older Pillow: 16-bit grey PNG as I
        return np.array(image).astype(np.uint16, copy=False)  # in native byte order
    if mode == "F":
        return unit_floats(np.array(image), name)
    if mode == "I":
        raise ImageError(name, "has 32-bit or signed integer pixels, whose white is not known: save 8 or 16 bits")
    if mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("RGBA")  # from P straight to RGB, Pillow warns of transparency
    return image.convert("RGB")


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
    image = opened(file, name)
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


def _walk_png(file: IO[bytes], name: str, check: bool) -> Chunks:
    """Walk the chunks of a PNG, with ``check`` their check sums too, and return the kinds before and after the pixels.

    Pillow stops at the last row and checks no sum over the pixels: a flipped bit would pass unseen.
    """
    file.seek(8)
    before: set[bytes] = set()
    after: set[bytes] = set()
    kinds = before
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
        if kind == b"IEND":
            return before, after
        if kind == b"IDAT":
            kinds = after
        else:
            kinds.add(kind)


def _fast_png(file: IO[bytes], image: Image.Image, raw: str, chunks: Chunks) -> Array | None:
    """Decode a PNG of 8 bits faster than Pillow does; None where Pillow is to do it, and to say what is wrong.

    Both give the same pixels. A file with what tells a decoder to change them (transparency), or with chunks
    after the pixels, which Pillow checks, is left to Pillow.
    """
    before, after = chunks
    if raw not in _PLAIN_PIXELS or raw != image.mode or after or not before <= _PLAIN:
        return None
    decode = _png_decoder()
    if decode is None:
        return None
    file.seek(0)
    try:
        array: Array = decode(_bare(file.read()) if before > {b"IHDR"} else file.read())
    except Exception:
        return None
    expected = (image.height, image.width, 3)[: 2 if raw == "L" else 3]
    return array if array.shape == expected and array.dtype == np.uint8 else None


def _bare(png: bytes) -> bytes:
    """Return a PNG without the chunks that change no pixel: libpng would complain of some of them aloud."""
    parts, at = [png[:8]], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(png[at:end])
        at = end
    return b"".join(parts)


@lru_cache(maxsize=1)
def _png_decoder() -> Callable[[bytes], Array] | None:
    """Return the decoder of imagecodecs, of the extra ``fast``; None: it is not installed."""
    try:
        from imagecodecs import png_decode
    except ImportError:
        return None
    return cast("Callable[[bytes], Array]", png_decode)
