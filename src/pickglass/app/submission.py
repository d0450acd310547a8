"""Maps and masks of MVTec AD 2's private images, as the data set's evaluation server wants them.

``anomaly_images/CATEGORY/PART/STEM.tiff`` holds a map of the image's size in float16, and
``anomaly_images_thresholded/CATEGORY/PART/STEM.png`` the pixels that count as defective, 0 or 255. The server is at
benchmark.mvtec.com; its tool checks the folder and packs it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from pickglass.data import Dataset, DataSource, Row
from pickglass.data.files import written_whole
from pickglass.errors import DataError, InputError
from pickglass.result import FloatArray

__all__ = ["Submission", "float16_tiff", "private_images"]


def private_images(data: str | Path) -> Dataset:
    """Read a category of MVTec AD 2 whose private images are there.

    Raises:
        DataError: not such a folder.
    """
    dataset = DataSource.of(data).load(training=False)
    if dataset.layout != "mvtec_ad_2" or not dataset.private:
        raise DataError(
            f"{data} is in the layout {dataset.layout} and has {len(dataset.private)} private images: expected a "
            "category of MVTec AD 2 with test_private and test_private_mixed"
        )
    return dataset


class Submission:
    """A folder for the evaluation server; all categories go into one.

    Args:
        folder: is made if needed; other categories in it stay.
        category: name of the category.
        threshold: pixels of the map above it are defective; None: no masks are written, only maps.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, category: str, threshold: float | None) -> None:
        self.folder, self.category, self.threshold = Path(folder), category, threshold
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made into a folder ({error.strerror}): name another one") from error

    def write(self, row: Row, full: FloatArray) -> None:
        """Write the map (H, W) of an image, in units of the threshold if there is one, and its mask.

        Raises:
            DataError: the map's values do not fit into float16.
        """
        above, name = os.path.split(row.path)
        place = Path(self.category, os.path.basename(above), os.path.splitext(name)[0])
        scale = self.threshold if self.threshold else 1.0
        with np.errstate(over="ignore"):
            half = (full / scale).astype(np.float16)
        if not np.isfinite(half).all():
            raise DataError(
                f"{row.path}: the map reaches {full.max():g}, more than float16 holds: set a pixel threshold"
            )
        target = self._target("anomaly_images", place, ".tiff")
        with written_whole(target) as temporary:
            temporary.write_bytes(float16_tiff(half))
        if self.threshold is not None:
            target = self._target("anomaly_images_thresholded", place, ".png")
            with written_whole(target) as temporary:
                Image.fromarray((full > self.threshold).astype(np.uint8) * 255).save(temporary)

    def _target(self, kind: str, place: Path, suffix: str) -> Path:
        target = self.folder / kind / place
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f"{target.name}{suffix}")


def float16_tiff(values: np.ndarray[tuple[int, int], np.dtype[np.float16]]) -> bytes:
    """Return a TIFF file of one float16 channel (H, W), uncompressed, which Pillow cannot write.

    >>> float16_tiff(np.zeros((2, 3), np.float16))[:4]
    b'II*\\x00'
    """
    height, width = values.shape
    data = np.ascontiguousarray(values).astype("<f2").tobytes()
    entries = (  # tag, type (3: 16 bits, 4: 32 bits), value; TIFF 6.0, sections 3 and 19
        *((256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, 1)),
        *((273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, 3)),
    )
    padding = b"\0" * (len(data) % 2)  # directories begin at even places
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack(
            "<I" if kind == 4 else "<HH", *_padded(kind, value)
        )
    at = 8 + len(data) + len(padding)
    return b"II*\0" + struct.pack("<I", at) + data + padding + directory + struct.pack("<I", 0)


def _padded(kind: int, value: int) -> tuple[int, ...]:
    return (value,) if kind == 4 else (value, 0)
