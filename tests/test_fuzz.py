"""Damaged files by the thousand, seeded: an image, or one ImageError with the path; no hang, nothing else lost."""

from __future__ import annotations

import gc
import io
import os
import shutil
import stat
import struct
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pickglass.data import (
    as_table,
    decode,
    find_problems,
    load_dataset,
    load_datasets,
    read_header,
    read_mask,
)
from pickglass.data import read_image as read
from pickglass.data.tables.rows import Row
from pickglass.errors import DataError, ImageError

MAX_PIXELS = 1_000_000  # keeps a flipped bit in a header from asking for a gigabyte
SECONDS = 30.0  # for a file of a few kilobytes, on a busy machine; what hangs takes longer


def sample(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)


def encoded(image: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def samples() -> dict[str, bytes]:
    grey, colour = sample(24, 20), sample(24, 20, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_itxt("comment", "a woven cloth", zip=True)
    palette = io.BytesIO()
    Image.fromarray(colour).quantize(16).save(palette, "PNG", transparency=3)
    return {
        "grey.png": encoded(grey, "PNG", exif=exif, pnginfo=text),
        "grey16.png": encoded(grey.astype(np.uint16) * 257, "PNG"),
        "rgba.png": encoded(sample(24, 20, 4), "PNG"),
        "palette.png": palette.getvalue(),
        "colour.jpg": encoded(colour, "JPEG", exif=exif),
        "progressive.jpg": encoded(grey, "JPEG", progressive=True),
        "colour.bmp": encoded(colour, "BMP"),
        "lossy.webp": encoded(colour, "WEBP"),
        "lossless.webp": encoded(colour, "WEBP", lossless=True, exif=exif),
        "raw.tif": encoded(colour, "TIFF", exif=exif),
        "deflate.tif": encoded(grey, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": encoded(grey.astype(np.uint16) * 257, "TIFF", compression="tiff_lzw"),
        "float.tif": encoded(grey.astype(np.float32) / 255, "TIFF", compression="tiff_adobe_deflate"),
    }


SAMPLES = samples()


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """80 cut short, 150 with 1 to 8 flipped bits, 40 with a stretch replaced, left out or doubled, 1 with a tail."""
    for at in np.linspace(0, len(data) - 1, 80).astype(int):
        yield data[:at]
    for _ in range(150):
        bits = np.frombuffer(data, np.uint8).copy()
        # half of the flips hit the first bytes, where the structure lies
        reach = len(bits) if rng.random() < 0.5 else min(len(bits), 128)
        for at in rng.integers(0, reach, rng.integers(1, 9)):
            bits[at] ^= 1 << rng.integers(8)
        yield bits.tobytes()
    for i in range(40):
        a, b = sorted(rng.integers(0, len(data), 2))
        middle = (rng.bytes(b - a), b"", data[a:b] * 2, b"\0" * (b - a))[i % 4]
        yield data[:a] + middle + data[b:]
    yield data + rng.bytes(1000)


def outcome(data: bytes, path: Path) -> str:
    """Read a file in both ways: "image" or "error"; anything else fails the test."""
    path.write_bytes(data)
    began = time.perf_counter()
    for reader in (read_header, lambda p: read(p, MAX_PIXELS)):
        try:
            found = reader(path)
            caught = None
        except ImageError as error:
            caught = error
    assert caught is None or (caught.path == str(path) and caught.reason and "\n" not in caught.reason), data
    assert time.perf_counter() - began < SECONDS
    if caught is not None:
        return "error"
    assert found.dtype in (np.uint8, np.uint16, np.float32)
    assert found.ndim == 2 or found.shape[2] == 3
    return "image"


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    assert outcome(SAMPLES[name], tmp_path / name) == "image"
    rng = np.random.default_rng(list(name.encode()))
    results = [outcome(data, tmp_path / name) for data in damaged(SAMPLES[name], rng)]
    assert len(results) == 271
    errors = results.count("error")
    assert errors >= 60, errors  # cut short at the least; a flipped bit in raw pixels is seen by nobody


@pytest.mark.parametrize("name", ["palette.png", "rgba.png", "colour.jpg", "lossy.webp", "float.tif"])
def test_damaged_masks_and_images_in_memory(tmp_path: Path, name: str) -> None:
    """A mask, or one ImageError; of images in memory each broken one is named and the rest are kept."""
    path, data = tmp_path / name, list(damaged(SAMPLES[name], np.random.default_rng(3)))[::2]
    errors = []
    for content in data:
        path.write_bytes(content)
        try:
            size = read(path, MAX_PIXELS).shape[:2]
            assert read_mask(path, (size[0], size[1]), MAX_PIXELS).shape == size
        except ImageError as error:
            errors.append(error.path)
    items: list[object] = [kind(content) for content in data for kind in (bytes, io.BytesIO)]
    for content in data:
        with suppress(Exception):  # Pillow opens what has a header, and finds out later
            items.append(Image.open(io.BytesIO(content)))
    found = list(decode(as_table(items), lambda image, _: image.shape, max_pixels=MAX_PIXELS))
    assert len(found) == len(items) > 2 * len(data)
    assert sum(item.error is not None for item in found[: 2 * len(data)]) >= 2 * 30
    assert len(errors) >= 30
    assert set(errors) == {str(path)}
    assert all("\n" not in str(item.error) for item in found)


@pytest.mark.parametrize("start", [b"", *(data[:4] for data in SAMPLES.values())])
def test_noise_is_no_image(tmp_path: Path, start: bytes) -> None:
    rng = np.random.default_rng(7)
    for length in rng.integers(0, 400, 60):
        assert outcome(start + rng.bytes(int(length)), tmp_path / "noise.png") == "error"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_content_counts_not_the_extension(tmp_path: Path, name: str) -> None:
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
        (tmp_path / f"x{suffix}").write_bytes(SAMPLES[name])
        np.testing.assert_array_equal(read(tmp_path / f"x{suffix}"), read(io.BytesIO(SAMPLES[name])))


# -- bombs ------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ZEROS = zlib.compress(bytes(200_000_000), 9)  # 200 MB in 200 kB


def png_with(extra: bytes, header: tuple[int, int] = (8, 8), pixels: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", *header, 8, 0, 0, 0, 0)
    rows = pixels or zlib.compress(bytes(9) * 8)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMBS = {
    "zTXt": png_with(chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "iTXt": png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + ZEROS)),
    "iCCP": png_with(chunk(b"iCCP", b"a\0\0" + ZEROS)),
    "many texts": png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9)) * 150),
    "pixels": png_with(b"", pixels=ZEROS),
    "size": png_with(b"", (2**31 - 1, 2**31 - 1)),
    "width": png_with(b"", (250_000_001, 1)),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "tiff": b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(
        struct.pack("<HHII", tag, 4, 1, 2**31) for tag in (256, 257)
    ) + bytes(4),
    "tiff of itself": b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 9)
    + struct.pack("<I", 8),
    "tiff of many tags": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 256, 4, 2**30, 8) * 900,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_need_neither_memory_nor_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    began = time.perf_counter()
    try:
        if name == "pixels":  # what is too much is never unpacked
            assert read(path).shape == (8, 8)
        else:
            with pytest.raises(ImageError, match=r"bomb\.png: ."):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < SECONDS


# -- trees ------------------------------------------------------------------------------------------------------------


@contextmanager
def without_privileges() -> Iterator[Path]:
    """A folder of a user who is not root, whom the permissions of files would not stop."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        if user == 0:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(user)
        for at, folders, _ in os.walk(folder):
            for name in folders:
                Path(at, name).chmod(0o700)
        shutil.rmtree(folder)


def test_unreadable_permissions() -> None:
    with without_privileges() as root:
        for name in ("train/good/a.png", "train/good/b.png", "train/good/deep/c.png", "test/bad/d.png"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(SAMPLES["grey.png"])
        (root / "train/good/a.png").chmod(0)
        (failure,) = find_problems(load_dataset(root))["unreadable"]
        assert failure.startswith(f"{root / 'train/good/a.png'}: ")
        assert "Permission denied" in failure
        for folder in ("train/good/deep", "test", "train/good"):
            mode = stat.S_IMODE((root / folder).stat().st_mode)
            (root / folder).chmod(0)
            for load in (load_dataset, load_datasets, as_table):
                with pytest.raises(DataError, match=f"{folder}.* cannot be read .Permission denied"):
                    load(root)
            (root / folder).chmod(mode)
        (root / "groups.csv").write_text("path,group\n")
        (root / "groups.csv").chmod(0)
        with pytest.raises(DataError, match=r"groups\.csv cannot be read"):
            load_dataset(root)


def test_links_that_loop(tmp_path: Path) -> None:
    good = tmp_path / "train/good"
    good.mkdir(parents=True)
    (good / "a.png").write_bytes(SAMPLES["grey.png"])
    (good / "up").symlink_to("..")
    (good / "self.png").symlink_to("self.png")
    (good / "b.png").symlink_to("a.png")
    (good / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "test").symlink_to("test")
    dataset = load_dataset(tmp_path)
    assert [Path(row.path).name for row in dataset.table] == ["a.png", "b.png", "gone.png", "self.png"]
    failures = dict(failure.split(": ", 1) for failure in find_problems(dataset)["unreadable"])
    assert {Path(path).name: why for path, why in failures.items()} == {
        "gone.png": "no such file",
        "self.png": "cannot be opened: Too many levels of symbolic links",
    }
    with pytest.raises(DataError, match="test"):
        load_dataset(tmp_path / "test")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"train/good")
    os.makedirs(folder)
    for name, data in [(b"\xff\xfe.png", SAMPLES["grey.png"]), (b"\xe9.png", b"")]:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    dataset = load_dataset(tmp_path)
    assert len(dataset.table) == 2
    (failure,) = find_problems(dataset)["unreadable"]
    assert os.fsencode(failure.partition(": ")[0]).endswith(b"\xe9.png")
    assert "0 bytes" in failure


def test_whatever_is_called_png(tmp_path: Path) -> None:
    good = tmp_path / "good"
    (good / "folder.png").mkdir(parents=True)
    (good / "a.png").write_bytes(SAMPLES["grey.png"])
    os.mkfifo(good / "pipe.png")
    began = time.perf_counter()
    (failure,) = find_problems(load_dataset(tmp_path))["unreadable"]
    assert Path(failure.partition(": ")[0]).name == "pipe.png"
    assert "not a regular file" in failure
    assert time.perf_counter() - began < SECONDS


@pytest.mark.slow
@pytest.mark.long
def test_1000_files_leak_nothing_and_lose_nothing(tmp_path: Path) -> None:
    rows = []
    for i in range(1000):
        name, data = list(SAMPLES.items())[i % len(SAMPLES)]
        path = tmp_path / f"{i:04}_{name}"
        path.write_bytes(data[: len(data) // 2] if i % 10 == 0 else data)
        rows.append(Row(str(path)))

    def errors() -> list[int]:
        return [i for i, item in enumerate(decode(rows, lambda image, row: image.sum())) if item.error is not None]

    first = errors()
    assert set(first) <= set(range(0, 1000, 10))
    assert len(first) >= 90
    open_files = len(os.listdir("/proc/self/fd"))
    grown = []
    tracemalloc.start()
    for _ in range(4):
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        assert errors() == first
        gc.collect()
        grown.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    assert min(grown) < 200_000  # a leak grows each time, the interpreter's own caches do not
    assert len(os.listdir("/proc/self/fd")) == open_files
