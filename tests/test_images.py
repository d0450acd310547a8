"""The decoder: bit depths kept exactly, one clear error for every broken file, order kept by the threads."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import warnings
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pickglass.data.images import formats
from pickglass.data.images.decoder import decode, decode_pictures, read_header, read_image
from pickglass.data.images.geometry import Preprocess, size_of
from pickglass.data.tables.rows import Row
from pickglass.errors import ImageError

COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> PNG colour type
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def random_image(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """The same for the same arguments, whichever tests ran before."""
    return np.random.default_rng((*shape, seed)).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# -- a small PNG writer, independent of the reader --------------------------------------------------------------------


def paeth(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))


def filtered(rows: np.ndarray, step: int, kind: int | None) -> bytes:
    """PNG-filter rows of bytes; kind None takes the five filters in turn."""
    out = []
    above = np.zeros(rows.shape[1], int)
    for i, line in enumerate(rows.astype(int)):
        left, above_left = (np.concatenate([np.zeros(step, int), line_[:-step]]) for line_ in (line, above))
        k = i % 5 if kind is None else kind
        guess = [0, left, above, (left + above) // 2, paeth(left, above, above_left)][k]
        out.append(bytes([k]) + ((line - guess) % 256).astype(np.uint8).tobytes())
        above = line
    return b"".join(out)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    image: np.ndarray, kind: int | None = None, interlaced: bool = False, before: bytes = b"", after: bytes = b""
) -> bytes:
    image = image if image.ndim == 3 else image[..., None]
    height, width, channels = image.shape
    depth = image.dtype.itemsize
    passes = [image[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [image]
    data = b""
    for part in passes:
        if part.size:
            rows = np.frombuffer(part.astype(part.dtype.newbyteorder(">")).tobytes(), np.uint8)
            data += filtered(rows.reshape(len(part), -1), channels * depth, kind)
    head = struct.pack(">IIBBBBB", width, height, 8 * depth, COLOUR_TYPE[channels], 0, 0, interlaced)
    body = zlib.compress(data)
    half = len(body) // 2  # two IDAT chunks, as real writers make
    parts = [chunk(b"IDAT", body[:half]), chunk(b"IDAT", body[half:])]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + b"".join(parts) + after + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


# -- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_exact(tmp_path: Path, channels: int) -> None:
    image = random_image(13, 11, channels, dtype=np.uint16)
    for kind, interlaced in product((0, 1, 2, 3, 4, None), (False, True)):
        (tmp_path / "a.png").write_bytes(png(image, kind, interlaced))
        found = read_image(tmp_path / "a.png")
        assert found.dtype == np.uint16, (kind, interlaced)
        expected = image[..., 0] if channels < 3 else image[..., :3]
        np.testing.assert_array_equal(found, expected, err_msg=f"filter {kind}, interlaced {interlaced}")
        assert read_header(tmp_path / "a.png") == (13, 11, 16, 1 if channels < 3 else 3), (kind, interlaced)


def test_16_bit_png_larger_than_a_decoder_block() -> None:
    image = random_image(300, 500, 3, dtype=np.uint16)  # 900 kB: read in many blocks
    np.testing.assert_array_equal(read_image(io.BytesIO(png(image, 4))), image)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 3}])
def test_16_bit_tiff_is_exact(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile")
    for channels, order in product((1, 3, 4), "<>"):
        image = random_image(20, 35, channels, dtype=np.uint16)
        photometric = "minisblack" if channels == 1 else "rgb"
        data = image[..., 0] if channels == 1 else image
        tifffile.imwrite(tmp_path / "a.tif", data, byteorder=order, photometric=photometric, **options)
        expected = data[..., :3] if channels > 1 else data
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected, err_msg=f"{channels} {order}")
        assert read_header(tmp_path / "a.tif") == (20, 35, 16, 1 if channels == 1 else 3), (channels, order)


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "separate", "photometric": "rgb"},
        {"planarconfig": "separate", "photometric": "rgb", "compression": "zlib"},
        {"photometric": "miniswhite", "shape": (8, 8)},
        {"photometric": "minisblack", "shape": (8, 8), "dtype": np.uint32},
        {"photometric": "minisblack", "shape": (8, 8), "dtype": np.int16},
        {"photometric": "separated", "shape": (8, 8, 4)},
        {"photometric": "minisblack", "shape": (8, 8), "dtype": np.float32},  # values above 1
    ],
)
def test_tiff_that_cannot_be_kept_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile")
    shape, dtype = options.pop("shape", (3, 8, 8)), options.pop("dtype", np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", (random_image(*shape, dtype=np.uint16) // 2 + 2).astype(dtype), **options)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a.tif")
    assert "save" in str(caught.value) or "divide" in str(caught.value), caught.value


def test_modes_are_expanded(tmp_path: Path) -> None:
    grey, colour = random_image(7, 9), random_image(7, 9, 3)
    rgba = np.dstack([colour, random_image(7, 9)])
    bits = grey > 127
    palette = Image.fromarray(grey // 64 * 64).convert("P")
    palette.info["transparency"] = bytes([0, 128])
    cases = {
        "grey.png": (Image.fromarray(grey), grey),
        "colour.bmp": (Image.fromarray(colour), colour),
        "alpha.png": (Image.fromarray(rgba), colour),
        "greyalpha.png": (Image.merge("LA", [Image.fromarray(grey)] * 2), grey),
        "bits.png": (Image.fromarray(bits), bits * np.uint8(255)),
        "palette.png": (palette, np.dstack([grey // 64 * 64] * 3)),
        "deep.tif": (Image.fromarray(grey.astype(np.uint16) * 257), grey.astype(np.uint16) * 257),
        "float.tif": (Image.fromarray(grey.astype(np.float32) / 255), grey.astype(np.float32) / 255),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        for source in (tmp_path / name, str(tmp_path / name), image):
            found = read_image(source)
            assert found.dtype == expected.dtype, name
            np.testing.assert_array_equal(found, expected, err_msg=name)
            assert found.flags.writeable
        assert read_header(tmp_path / name)[:2] == (7, 9)
    Image.fromarray(colour).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp"), colour)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    found = read_image(tmp_path / "a.jpg")
    assert found.shape == (3, 4, 3)
    assert found[0, 0, 0] > 240
    assert found[0, 0, 1:].max() < 15


def test_a_phone_photograph_with_a_preview_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 4), value) for value in (200, 10)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.jpg").mean() == pytest.approx(200, abs=2)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.kron(random_image(2, 3, 3), np.ones((8, 8, 1), np.uint8)))
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}{suffix}"
        if suffix == ".tif":
            image.save(path, tiffinfo={0x0112: orientation})
        else:
            image.save(path, exif=exif(orientation), quality=90)
        with Image.open(path) as opened:
            ways = [read_image(opened), read_image(opened.copy()), read_image(opened)]  # not loaded, copied, loaded
            expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
            for found in ways:
                np.testing.assert_array_equal(found, expected, err_msg=path.name)
        np.testing.assert_array_equal(read_image(path), expected, err_msg=path.name)
        assert read_header(path)[:2] == expected.shape[:2] == ((16, 24) if orientation < 5 else (24, 16)), path.name


@pytest.mark.parametrize("place", ["before", "after"])
def test_exif_rotation_of_16_bit_png(tmp_path: Path, place: str) -> None:
    image = random_image(4, 6, 3, dtype=np.uint16)
    tag = chunk(b"eXIf", exif(6)[6:])
    (tmp_path / "a.png").write_bytes(png(image, **{place: tag}))  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(image, -1))
    assert read_header(tmp_path / "a.png")[:2] == (6, 4)


def test_arrays_and_file_objects(tmp_path: Path) -> None:
    grey = random_image(5, 6)
    assert read_image(grey) is not None
    assert np.shares_memory(read_image(grey), grey)
    np.testing.assert_array_equal(read_image(grey[..., None]), grey)
    np.testing.assert_array_equal(read_image(np.dstack([grey] * 4)), np.dstack([grey] * 3))
    np.testing.assert_array_equal(read_image(grey > 9), (grey > 9) * np.uint8(255))
    assert read_image(grey / 255).dtype == np.float32
    swapped = grey.astype(np.dtype(np.uint16).newbyteorder())
    assert read_image(swapped).dtype == np.uint16
    np.testing.assert_array_equal(read_image(swapped), grey)
    np.testing.assert_array_equal(read_image(io.BytesIO(png(grey))), grey)
    (tmp_path / "a.png").write_bytes(png(grey)[:-20])
    with (tmp_path / "a.png").open("rb") as file, pytest.raises(ImageError, match=r"a\.png"):
        read_image(file)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 5, 5), np.uint8), "channels last"),
        (np.zeros((5, 5, 2), np.uint8), "shape"),
        (np.zeros(5, np.uint8), "shape"),
        (np.zeros((0, 5), np.uint8), "shape"),
        (np.zeros((5, 5), np.int64), "int64.*astype"),
        (np.full((5, 5), 2.0), "0..1"),
        (np.full((5, 5), np.nan), "0..1"),
        (np.zeros((5, 5), complex), "complex"),
    ],
)
def test_unsupported_arrays(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_image(array)


def test_broken_files(tmp_path: Path) -> None:
    frames = [Image.fromarray(random_image(4, 4, seed=i)) for i in range(3)]
    for name in ("frames.tif", "frames.gif", "frames.png", "frames.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "header.png").write_bytes(png(frames_array := random_image(4, 4))[:20])
    broken = bytearray(png(frames_array))
    broken[60] ^= 1
    (tmp_path / "flipped.png").write_bytes(broken)
    expected = {
        "frames.tif": "3 frames.*save each frame",
        "frames.gif": "GIF.*save it as PNG",
        "frames.png": "3 frames",
        "frames.webp": "3 frames",
        "empty.png": "0 bytes",
        "text.png": "not an image",
        "folder.png": "folder",
        "loop.png": "cannot be opened",
        "pipe.png": "not a regular file",
        "missing.png": "no such file",
        "nul\0.png": "cannot be opened",
        "header.png": "cut short",
        "flipped.png": "check sum",
    }
    for name, words in expected.items():
        with pytest.raises(ImageError, match=words) as caught:
            read_image(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
        assert "\n" not in str(caught.value)
        if not name.startswith("f") or name == "folder.png":
            with pytest.raises(ImageError):
                read_header(tmp_path / name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PNG16"])
def test_a_truncated_file_is_an_error_or_complete(kind: str) -> None:
    """Cut anywhere: an error, or, when only trailing bytes behind the last pixel are missing, the whole image."""
    image = random_image(40, 30, 3)
    if kind == "PNG16":
        whole = png(image.astype(np.uint16) * 200)
    else:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind)
        whole = buffer.getvalue()
    expected, complete = read_image(io.BytesIO(whole)), []
    for end in range(0, len(whole), 7 if len(whole) > 2000 else 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of TIFF tags that are cut off
            try:
                found = read_image(io.BytesIO(whole[:end]))
            except ImageError:
                continue
        np.testing.assert_array_equal(found, expected)
        complete.append(end)
    assert all(end > 0.8 * len(whole) for end in complete)
    assert kind not in ("PNG", "PNG16") or not complete


def test_flipped_bits_give_an_image_or_an_image_error() -> None:
    wholes, reasons = [png(random_image(6, 6, 3, dtype=np.uint16))], []
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        Image.fromarray(random_image(12, 10, 3)).save(buffer := io.BytesIO(), kind)
        wholes.append(buffer.getvalue())
    rng = np.random.default_rng(0)
    for whole in wholes:
        for _ in range(60):
            broken = bytearray(whole)
            for at in rng.integers(0, len(whole), 3):
                broken[at] ^= 1 << int(rng.integers(8))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    read_image(io.BytesIO(bytes(broken)), max_pixels=100_000)
                except ImageError as error:
                    reasons.append(error.reason)
    assert len(reasons) > 60
    assert not any("\n" in reason for reason in reasons)


TIFFS: dict[str, tuple[dict[str, Any], str]] = {
    "colour of floats": ({"dtype": np.float32, "photometric": "rgb"}, "3 channels of 32-bit floats, expected 8 or 16"),
    "colour of 64-bit floats": ({"dtype": np.float64, "photometric": "rgb"}, "3 channels of 64-bit floats"),
    "colour of floats, large": ({"dtype": np.float32, "photometric": "rgb", "bigtiff": True}, "3 channels of 32-bit"),
    "grey of 64-bit floats": ({"dtype": np.float64}, "1 channel of 64-bit floats, .*save it as 16-bit PNG, or pass"),
    "grey of 16-bit floats": ({"dtype": np.float16}, "1 channel of 16-bit floats"),
    "8 bits with a sign": ({"dtype": np.int8}, "8-bit TIFF with a sign"),
    "16 bits with a sign": ({"dtype": np.int16}, "32-bit or signed integer pixels"),
    "32 bits": ({"dtype": np.uint32}, "32-bit or signed integer pixels"),
    "five channels": ({"dtype": np.uint8, "photometric": "rgb", "channels": 5}, "5 channels, expected grey or colour"),
    "NaN": ({"dtype": np.float32, "value": np.nan}, "64 of its 64 float values are NaN or infinite"),
    "infinity": ({"dtype": np.float32, "value": np.inf}, "64 of its 64 float values are NaN or infinite"),
    "floats up to 255": ({"dtype": np.float32, "value": 255}, "divide by the value of white: 255"),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiff_that_is_not_read_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    options, words = TIFFS[name]
    options = {"photometric": "minisblack", **options}
    channels = options.pop("channels", 3 if options["photometric"] == "rgb" else 1)
    image = np.full((8, 8, channels), options.pop("value", 1), options.pop("dtype"))
    tifffile.imwrite(tmp_path / "a.tif", image[..., 0] if channels == 1 else image, **options)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC, AVIF or video file, expected PNG, JPEG, TIFF, BMP or WebP: save it as PNG"),
        (b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"<svg>", "an SVG file"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS and no image: .*git lfs pull"),
        (b"<!DOCTYPE html>", "not an image"),
    ],
)
def test_what_is_no_image_is_named_where_it_is_known(start: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_image(start + b"\0" * 64)


def test_colours_of_other_kinds(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(random_image(3, 4, 3)).resize((64, 48), Image.Resampling.BICUBIC))
    rgb = Image.fromarray(smooth)
    for kind, name, options in (
        ("CMYK", "cmyk.jpg", {"quality": 95}),  # with its values inverted, as Adobe has them
        ("CMYK", "cmyk.tif", {}),
        ("YCbCr", "ycc.jpg", {"quality": 95, "subsampling": 0}),
        ("LAB", "lab.tif", {}),
    ):
        image = rgb.convert(kind) if kind != "LAB" else lab_of(rgb)
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            for source in (tmp_path / name, opened):
                assert np.abs(read_image(source).astype(int) - smooth).mean() < 3, name
        assert read_header(tmp_path / name) == (48, 64, 8, 3), name


def lab_of(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")  # type: ignore[return-value]


def test_frames_that_pillow_has_opened() -> None:
    for kind in ("MPO", "TIFF", "GIF", "PNG", "WEBP"):
        frames = [Image.new("L", (6, 4), value) for value in (200, 10)]
        frames[0].save(buffer := io.BytesIO(), format=kind, save_all=True, append_images=frames[1:])
        image = Image.open(buffer)
        if kind == "MPO":  # a photograph and its preview
            assert read_image(image).mean() == pytest.approx(200, abs=2)
        else:
            with pytest.raises(ImageError, match=r"holds 2 frames, expected one: pass copies of the frames.*copy\(\)"):
                read_image(image)
            assert read_image(image.copy()).mean() == pytest.approx(200, abs=2)


@pytest.mark.parametrize("side", [10_000, 60_000])  # above Pillow's warning and above its error
def test_too_many_pixels(tmp_path: Path, side: int) -> None:
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(side + 1) * 2)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(ImageError, match=rf"{side**2:,} pixels.*50,000,000.*max_pixels.*--max-pixels"):
        read_image(tmp_path / "bomb.png", max_pixels=50_000_000)
    assert read_header(tmp_path / "bomb.png")[:2] == (side, side)


@pytest.mark.slow
def test_a_large_image_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (15_000, 12_000)).save(tmp_path / "large.png")  # 180 megapixels, above Pillow's error
    assert read_image(tmp_path / "large.png").shape == (12_000, 15_000)


def test_16_bit_colour_opened_by_pillow_is_exact_and_refused_once_it_is_loaded(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    deep = random_image(4, 4, 3, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png(deep))
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    for name in ("a.png", "a.tif"):
        with Image.open(tmp_path / name) as image:
            for _ in range(2):
                np.testing.assert_array_equal(read_image(image), deep)
            image.load()  # Pillow keeps 8 of the 16 bits
            with pytest.raises(ImageError, match="pass the path, or open it anew"):
                read_image(image)


@pytest.mark.parametrize(("bits", "values"), [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, [0, 17, 34, 255])])
def test_png_of_few_bits_is_stretched_to_8(bits: int, values: list[int]) -> None:
    codes = [round(value * (2**bits - 1) / 255) for value in values]
    packed = 0
    for code in codes:
        packed = packed << bits | code
    width = len(codes)
    row = (packed << (-width * bits % 8)).to_bytes((width * bits + 7) // 8, "big")
    head = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    assert read_image(io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)).tolist() == [values]


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".png"])
def test_several_frames_are_refused_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(random_image(8, 8, 3, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="holds 3 frames, expected one: save each frame as a file of its own"):
        read_image(tmp_path / f"a{suffix}")


# -- threads ----------------------------------------------------------------------------------------------------------


def rows_of(folder: Path, count: int) -> list[Row]:
    for i in range(count):
        (folder / f"{i:03}.png").write_bytes(png(np.full((4, 5 + i), i, np.uint8)))
    return [Row(str(folder / f"{i:03}.png")) for i in range(count)]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (4, 100)])
def test_decode_keeps_order_and_isolates_errors(tmp_path: Path, workers: int, ahead: int) -> None:
    rows = rows_of(tmp_path, 20)
    Path(rows[3].path).write_bytes(b"")
    Path(rows[11].path).unlink()
    rows.append(Row("array:0", pixels=np.full((2, 2), 20, np.uint8)))
    rows.append(Row("array:1", pixels=np.zeros((2, 2, 7), np.uint8)))
    found = list(decode(rows, lambda image, row: int(image[0, 0]), workers, ahead))
    assert [item.row for item in found] == rows
    assert [item.value for item in found] == [None if i in (3, 11, 21) else i for i in range(22)]
    assert found[2].size == (4, 7)
    assert found[2].error is None
    assert found[3].size == (0, 0)
    assert "0 bytes" in str(found[3].error)
    assert "no such file" in str(found[11].error)
    assert "shape" in str(found[21].error)


def test_decode_looks_ahead_within_bounds_and_ends_its_threads(tmp_path: Path) -> None:
    rows, taken = rows_of(tmp_path, 30), []

    def source() -> Any:
        for row in rows:
            taken.append(row)
            yield row

    stream = decode(source(), lambda image, row: image, workers=2, ahead=5)
    assert next(stream).row == rows[0]
    assert len(taken) == 5
    next(stream)
    assert len(taken) == 6
    assert any("pickglass-decode" in thread.name for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    assert not any("pickglass-decode" in thread.name for thread in threading.enumerate())


def test_decode_closed_early_reads_no_more(tmp_path: Path) -> None:
    read: list[int] = []

    def slow(image: np.ndarray, row: Row) -> None:
        read.append(int(image[0, 0]))
        time.sleep(0.05)

    stream = decode(rows_of(tmp_path, 30), slow, workers=1, ahead=20)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(read) < 5


def test_decode_does_not_hide_a_bug_in_prepare(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        list(decode(rows_of(tmp_path, 2), lambda image, row: 1 // int(image[0, 0])))


def test_decode_refuses_images_above_the_limit(tmp_path: Path) -> None:
    found = list(decode(rows_of(tmp_path, 3), lambda image, row: image, max_pixels=24))
    assert [item.error is None for item in found] == [True, True, False]


def test_many_files_leak_no_descriptor(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 50)
    for row in rows[::2]:
        Path(row.path).write_bytes(Path(row.path).read_bytes()[:-5])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(10):
        assert sum(item.error is None for item in decode(rows, lambda image, row: None)) == 25
    assert (len(os.listdir("/proc/self/fd")) if before else 0) <= before


# -- pixels that stay in Pillow, and PNG by imagecodecs ---------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PICTURES = {
    "colour": lambda: saved(Image.fromarray(random_image(21, 34, 3)), "PNG"),
    "grey": lambda: saved(Image.fromarray(random_image(21, 34)), "PNG"),
    "JPEG": lambda: saved(Image.fromarray(random_image(21, 34, 3)), "JPEG"),
    "turned JPEG": lambda: saved(Image.fromarray(random_image(21, 34, 3)), "JPEG", exif=exif(6)),
    "CMYK": lambda: saved(Image.fromarray(random_image(21, 34, 4), "CMYK"), "JPEG"),
    "alpha": lambda: saved(Image.fromarray(random_image(21, 34, 4)), "WEBP", lossless=True),
    "grey and alpha": lambda: png(random_image(21, 34, 2)),
    "palette": lambda: saved(Image.fromarray(random_image(21, 34, 3)).quantize(16), "PNG"),
    "one bit": lambda: saved(Image.fromarray(random_image(21, 34)).convert("1"), "TIFF"),
    "16 bits": lambda: png(random_image(21, 34, 3, dtype=np.uint16)),
    "grey of 16 bits": lambda: png(random_image(21, 34, dtype=np.uint16)),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")  # of some versions of Pillow
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    "prepare",
    [
        Preprocess((16, 24)),
        Preprocess((21, 34), "bicubic"),
        Preprocess((30, 16), "bicubic", "letterbox"),
        Preprocess((64, 64), geometry="native"),
    ],
    ids=str,
)
def test_a_picture_is_prepared_as_its_array_is(name: str, prepare: Preprocess) -> None:
    """By the arithmetic that older models were fitted with: channels last, padded, then divided."""
    data = PICTURES[name]()
    image = read_image(data)
    place = prepare.placement(size_of(image))
    planes = [image.astype(np.float32) / np.float32(65535)] if image.dtype == np.uint16 else [image]
    if image.dtype == np.uint16 and image.ndim == 3:
        planes = list(planes[0].transpose(2, 0, 1))
    resampling = Image.Resampling[prepare.interpolation.upper()]
    for i, plane in enumerate(planes):
        if plane.shape[:2] != place[2:]:
            across = Image.fromarray(np.ascontiguousarray(plane)).resize((place.width, len(plane)), resampling)
            planes[i] = np.asarray(across.resize((place.width, place.height), resampling))
    fitted = np.stack(planes, 2).clip(0, 1) if image.dtype == np.uint16 else planes[0]
    fitted = fitted.reshape(place.height, place.width, -1)
    down = (place.top, prepare.size[0] - place.top - place.height)
    along = (place.left, prepare.size[1] - place.left - place.width)
    white = np.float32(1 if image.dtype == np.uint16 else 255)
    expected = np.pad(fitted, (down, along, (0, 0)), mode="edge").transpose(2, 0, 1).astype(np.float32) / white
    expected = np.broadcast_to(expected, (3, *prepare.size))
    (item,) = decode_pictures([Row("bytes", pixels=data)], lambda picture, _: prepare(picture))
    assert item.size == image.shape[:2]
    assert item.value is not None
    assert np.array_equal(item.value, expected)
    assert np.array_equal(prepare(image), expected)


def test_an_array_of_a_picture_belongs_to_its_reader() -> None:
    image = read_image(PICTURES["colour"]())
    image[0, 0] = 7  # it can be written to, as a mask or a defect is painted


def plain_pngs() -> dict[str, bytes]:
    shapes = product([(), (3,)], [(1, 1), (13, 11), (5, 200)], (0, 1, 2, 3, 4, None), (False, True))
    return {
        f"{channels or 'grey'} {size} filter {kind} {'interlaced' if interlaced else ''}": png(
            random_image(*size, *channels), kind, interlaced
        )
        for channels, size, kind, interlaced in shapes
    }


def test_png_by_imagecodecs_is_bit_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecodecs", reason='needs imagecodecs (pip install "pickglass[fast]")')
    decoder, seen = formats._png_decoder(), []
    assert decoder is not None
    counted = lambda *args: seen.append(1) or decoder(*args)  # noqa: E731
    images = plain_pngs()
    images |= {f"turned {turn}": png(random_image(9, 7, 3), before=chunk(b"eXIf", exif(turn))) for turn in range(1, 9)}
    for data in images.values():
        monkeypatch.setattr(formats, "_png_decoder", lambda: counted)
        fast = read_image(data)
        monkeypatch.setattr(formats, "_png_decoder", lambda: None)
        assert np.array_equal(fast, read_image(data))
        assert fast.flags.writeable
    assert len(seen) == len(images)


@pytest.mark.parametrize("name", ["transparency", "late text", "late turn", "16 bits", "palette", "alpha"])
def test_png_that_is_not_plain_is_left_to_pillow(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = random_image(6, 4, 3)
    data = {
        "transparency": lambda: png(image, before=chunk(b"tRNS", bytes(6))),
        "late text": lambda: png(image, after=chunk(b"tEXt", b"Comment\0late")),
        "late turn": lambda: png(image, after=chunk(b"eXIf", exif(6))),
        "16 bits": lambda: png(random_image(6, 4, 1, dtype=np.uint16)),
        "palette": PICTURES["palette"],
        "alpha": lambda: png(random_image(6, 4, 4)),
    }[name]()
    monkeypatch.setattr(formats, "_png_decoder", lambda: None)
    expected = read_image(data)
    monkeypatch.setattr(formats, "_png_decoder", lambda: lambda *_: pytest.fail("it was not left to Pillow"))
    assert np.array_equal(read_image(data), expected)


def test_a_chunk_that_changes_no_pixel_is_not_complained_of(capfd: pytest.CaptureFixture[str]) -> None:
    image = random_image(6, 4, 3)
    odd = chunk(b"sRGB", b"\x09") + chunk(b"tIME", bytes(7)) + chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(200)))
    assert np.array_equal(read_image(png(image, before=odd)), image)
    assert capfd.readouterr() == ("", "")


def test_pixels_of_another_shape_than_the_header_says_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(6, 4, 3)
    for wrong in (image[:5], image[..., 0], image.astype(np.uint16)):
        monkeypatch.setattr(formats, "_png_decoder", lambda wrong=wrong: lambda _: wrong)
        assert np.array_equal(read_image(png(image)), image)


def test_what_imagecodecs_refuses_is_read_by_pillow_or_named_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> np.ndarray:
        raise RuntimeError("no such filter")

    image = random_image(6, 4, 3)
    monkeypatch.setattr(formats, "_png_decoder", lambda: refuses)
    assert np.array_equal(read_image(png(image)), image)
    body = zlib.compress(bytes(10))  # fewer rows than the header says
    short = png(image)[:33] + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="damaged or cut short"):
        read_image(short)
