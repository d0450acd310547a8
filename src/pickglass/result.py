"""What a detector found. The one sign rule: **higher = more anomalous**, for scores and for maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from pickglass.calibration import Calibration, Verdict
from pickglass.data.images import resize_map
from pickglass.data.tables import Row
from pickglass.errors import Failure, InputError
from pickglass.metrics.labelling import connected_regions

__all__ = ["Defect", "Found", "Prediction", "find_defects"]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Defect(NamedTuple):
    """One connected region of the predicted mask.

    Attributes:
        box: [x, y, w, h] in pixels of the original image.
        area: pixels.
        peak: highest map value inside.
    """

    box: list[int]
    area: int
    peak: float


class Found(NamedTuple):
    """One image's result: row, raw score, map (h, w) on the model's grid, original size (H, W)."""

    row: Row
    score: float
    map: FloatArray
    size: tuple[int, int]

    def full_map(self) -> FloatArray:
        """The map at the original size and aspect, (H, W) float32, bilinear."""
        return resize_map(self.map, self.size)


@dataclass(frozen=True)
class Prediction:
    """Results of many images, in the order they were given; failed images are left out and named.

    Attributes:
        rows: one row an image, as given.
        scores: (N,) float32, raw image scores.
        maps: one (h, w) float32 map an image, on the model's grid.
        sizes: original size (H, W) of each image.
        failed: images that could not be read, with the reason.
        calibration: thresholds of the model at the time, None if it had none.

    Example:
        ``for found in prediction: print(found.row.path, found.score, found.full_map().shape)``
    """

    rows: tuple[Row, ...]
    scores: FloatArray
    maps: tuple[FloatArray, ...]
    sizes: tuple[tuple[int, int], ...]
    failed: tuple[Failure, ...] = ()
    calibration: Calibration | None = None

    @classmethod
    def collect(
        cls, found: Sequence[Found], failed: Sequence[Failure] = (), calibration: Calibration | None = None
    ) -> Prediction:
        """From single results."""
        return cls(
            rows=tuple(f.row for f in found),
            scores=np.array([f.score for f in found], dtype=np.float32),
            maps=tuple(f.map for f in found),
            sizes=tuple(f.size for f in found),
            failed=tuple(failed),
            calibration=calibration,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Found]:
        return (Found(*item) for item in zip(self.rows, self.scores.tolist(), self.maps, self.sizes, strict=True))

    def map(self, index: int) -> FloatArray:
        """The map of image ``index`` at its original size, (H, W) float32."""
        return resize_map(self.maps[index], self.sizes[index])

    def verdict(self, index: int) -> Verdict | None:
        """``good`` or ``bad`` by the model's image threshold; None if it has none."""
        return self.calibration.verdict(float(self.scores[index])) if self.calibration else None

    def mask(self, index: int, threshold: float | None = None) -> BoolArray:
        """Predicted mask (H, W): where the map exceeds the threshold, by default the model's pixel threshold."""
        return self.map(index) > self._pixel_threshold(threshold)

    def defects(self, index: int, threshold: float | None = None) -> list[Defect]:
        """The regions of :meth:`mask`, the highest peak first."""
        return find_defects(self.map(index), self._pixel_threshold(threshold))

    def _pixel_threshold(self, threshold: float | None) -> float:
        own = self.calibration.pixel_threshold if self.calibration else None
        if threshold is None and own is None:
            raise InputError(
                "the model has no pixel threshold, for it was fitted without calibration images: name one "
                "(threshold=...) or fit with calibrate=0.1"
            )
        return own if threshold is None else threshold  # type: ignore[return-value]


def find_defects(full_map: FloatArray, threshold: float) -> list[Defect]:
    """Connected regions (8 neighbours) of a (H, W) map above the threshold, the highest peak first."""
    labels, areas = connected_regions(full_map > threshold)
    defects = []
    for label, (box, area) in enumerate(zip(find_objects(labels), areas.tolist(), strict=True), start=1):
        y, x = box
        peak = float(full_map[box][labels[box] == label].max())
        defects.append(Defect([int(x.start), int(y.start), int(x.stop - x.start), int(y.stop - y.start)], area, peak))
    return sorted(defects, key=lambda d: -d.peak)
