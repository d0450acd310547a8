"""The files that MVTec AD 2's evaluation server wants: float16 TIFF maps and thresholded PNG of the private images."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.layouts import TREES

from pickglass.app.submission import Submission, float16_tiff, private_images
from pickglass.data import Row
from pickglass.errors import DataError, InputError


def read_tiff(data: bytes) -> np.ndarray:
    """Read the one strip of a TIFF of floats, by its directory."""
    assert data[:4] == b"II*\0"
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    tags = {}
    for i in range(count):
        tag, kind, n = struct.unpack_from("<HHI", data, at + 2 + 12 * i)
        assert n == 1
        tags[tag] = struct.unpack_from("<H" if kind == 3 else "<I", data, at + 10 + 12 * i)[0]
    assert list(tags) == sorted(tags)
    assert (tags[258], tags[339], tags[277], tags[259]) == (16, 3, 1, 1)  # 16 bits, float, one channel, not compressed
    assert tags[279] == 2 * tags[256] * tags[257]
    values = np.frombuffer(data, "<f2", tags[256] * tags[257], tags[273])
    return values.reshape(tags[257], tags[256])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (24, 32)])
def test_the_tiff_holds_the_map(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    np.testing.assert_array_equal(read_tiff(float16_tiff(values)), values)


def test_maps_and_masks_lie_where_the_server_looks(tmp_path: Path) -> None:
    full = np.linspace(0, 4, 12, dtype=np.float32).reshape(3, 4)
    row = Row(str(tmp_path / "can/test_private_mixed/007_mixed.png"))
    Submission(tmp_path / "out", "can", 2.0).write(row, full)
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [
        "anomaly_images/can/test_private_mixed/007_mixed.tiff",
        "anomaly_images_thresholded/can/test_private_mixed/007_mixed.png",
    ]
    values = read_tiff((tmp_path / "out" / found[0]).read_bytes())
    np.testing.assert_array_equal(values, (full / 2).astype(np.float16))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / found[1])), np.where(full > 2, 255, 0))
    Submission(tmp_path / "maps", "can", None).write(row, full)
    assert not (tmp_path / "maps/anomaly_images_thresholded").exists()
    with pytest.raises(DataError, match="more than float16 holds"):
        Submission(tmp_path / "maps", "can", None).write(row, full * 1e6)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made into a folder"):
        Submission(tmp_path / "file", "can", None)


def test_private_images_of_a_category(tmp_path: Path) -> None:
    category = private_images(TREES["MVTec AD 2"](tmp_path))
    assert (category.name, len(category.private)) == ("can", 8)
    assert {row.label for row in category.private} == {None}
    with pytest.raises(DataError, match=r"layout mvtec and has 0 private images: expected a category of MVTec AD 2"):
        private_images(TREES["MVTec AD"](tmp_path / "other"))
