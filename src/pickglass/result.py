"""A prediction holds scores and maps. Of both, **higher is more anomalous**."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.calibration import Calibration, Verdict
from pickglass.data.images.geometry import resize_map
from pickglass.data.images.masks import read_marks
from pickglass.data.tables.memory import as_numpy
from pickglass.data.tables.rows import Row
from pickglass.errors import Failure, InputError
from pickglass.metrics.labelling import connected_runs

__all__ = ["UNKNOWN", "Defect", "Found", "Named", "Prediction", "find_defects", "without_number"]

UNKNOWN = "unknown"
"""The type of a defect that is like none of the examples, or like several."""

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


class Defect(NamedTuple):
    """A defect is one connected region of the predicted mask.

    Attributes:
        box: [x, y, w, h] in pixels of the original image.
        area: pixels.
        peak: highest map value inside.
    """

    box: list[int]
    area: int
    peak: float


class Named(NamedTuple):
    """A defect has a type, where the model was shown examples.

    Attributes:
        type: one of the types of the examples, or :data:`UNKNOWN`.
        probability: how likely the most likely type is, also where that is not sure enough to be named.
    """

    type: str
    probability: float


class Found(NamedTuple):
    """One image has a score, a map, and what belongs to them.

    Attributes:
        row: the image.
        score: raw image score.
        map: (h, w) float32 over the canvas, on the model's grid. Cells outside the region of interest have the lowest
            value inside.
        size: original size (H, W).
        window: top, left, bottom, right of the image on the canvas, as shares of it.
        roi: the model's own region of interest on its canvas, bool, where the row has none; None: all of the image.
        pixel_mm: side of a pixel on the part in millimetres, None if unknown.
        named: the type of the defect; None without examples (see ``pickglass label``) and of parts judged good.
    """

    row: Row
    score: float
    map: FloatArray
    size: tuple[int, int]
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    roi: BoolArray | None = None
    pixel_mm: float | None = None
    named: Named | None = None

    def full_map(self) -> FloatArray:
        """Enlarge the map to the original size and aspect, (H, W) float32, bilinearly."""
        return resize_map(self.map, self.size, self.window)

    def inside(self) -> BoolArray | None:
        """Return the region of interest at the original size, (H, W) bool; None: all of the image.

        Raises:
            ImageError: the file of the region cannot be read.
        """
        if self.row.roi is not None:
            return self.row.region(self.row.image())
        if self.roi is None:
            return None
        return resize_map(self.roi.astype(np.float32), self.size, self.window) >= 0.5


@dataclass(frozen=True)
class Prediction:
    """A prediction holds the results of many images in their order; images that cannot be read are named apart.

    Attributes:
        found: one result an image.
        failed: images that could not be read, with the reason.
        calibration: thresholds of the model at the time, None if it had none.

    Example:
        ``for found in prediction: print(found.row.path, found.score, found.full_map().shape)``
    """

    found: tuple[Found, ...]
    failed: tuple[Failure, ...] = ()
    calibration: Calibration | None = None

    @classmethod
    def from_arrays(
        cls,
        scores: Any,
        maps: Any = None,
        labels: Any = None,
        masks: Any = None,
        *,
        defects: Any = None,
        groups: Any = None,
        paths: Any = None,
    ) -> Prediction:
        """Make a prediction of scores and maps that were saved, or that another tool made, e.g. to evaluate them.

        Args:
            scores: (N,) image scores, higher = more anomalous.
            maps: N anomaly maps, each (H, W) at the size of its image and mask, or smaller where there is a mask: they
                are enlarged to it; None: no maps, and no pixel metrics.
            labels: (N,) 0 good, 1 defective; None: unknown.
            masks: N masks, each (H, W), above 0 on defects (soft edges are cut at half, see
                :func:`pickglass.data.read_mask`), or None for an image without a mask; None: no masks.
            defects: N names of defect types, None or empty for good images.
            groups: N names; images of one group show the same part or roll.
            paths: N names of the images; None: ``array:0``, ``array:1`` ...

        All may be numpy arrays, lists or PyTorch tensors.

        Raises:
            InputError: lengths differ, a map or mask is not two-dimensional, or there are masks without maps.

        Example:
            >>> found = Prediction.from_arrays([0.1, 0.9], labels=[0, 1])
            >>> [row.label for row in found.rows]
            [0, 1]
            >>> found = Prediction.from_arrays(**np.load("saved.npz"))  # doctest: +SKIP
        """
        values = as_numpy(scores).astype(np.float32)
        if values.ndim != 1:
            raise InputError(f"scores of shape {values.shape}: expected (N,), one score an image")
        if masks is not None and maps is None:
            raise InputError("masks without maps: expected an anomaly map for each mask, or neither")
        listed: dict[str, list[Any]] = {}
        columns = {"maps": maps, "labels": labels, "masks": masks, "defects": defects, "groups": groups, "paths": paths}
        for name, column in columns.items():
            listed[name] = [None] * len(values) if column is None else list(column)
            if len(listed[name]) != len(values):
                raise InputError(f"{len(listed[name])} {name} for {len(values)} scores: expected one an image")
        images = []
        for i, score in enumerate(values.tolist()):
            of_image = {name: column[i] for name, column in listed.items()}
            map = _plane("map", i, [[score]] if of_image["maps"] is None else of_image["maps"]).astype(np.float32)
            mask = None if of_image["masks"] is None else _plane("mask", i, of_image["masks"])
            if mask is not None and not (marks := read_marks(mask, mask.shape)).soft:
                mask = marks.pixels  # a soft one stays as it is, for the evaluation to say so
            row = Row(
                f"array:{i}" if of_image["paths"] is None else str(of_image["paths"]),
                label=None if of_image["labels"] is None else int(of_image["labels"]),
                defect=str(of_image["defects"]) if of_image["defects"] else None,
                mask=mask,
                group=None if of_image["groups"] is None else str(of_image["groups"]),
            )
            height, width = map.shape if mask is None else mask.shape
            images.append(Found(row, score, map, (height, width)))
        return cls(tuple(images))

    @property
    def rows(self) -> tuple[Row, ...]:
        """There is one row an image, as given."""
        return tuple(f.row for f in self.found)

    @property
    def scores(self) -> FloatArray:
        """The images have these raw scores, (N,) float32."""
        return np.array([f.score for f in self.found], dtype=np.float32)

    @property
    def maps(self) -> tuple[FloatArray, ...]:
        """Each image has one (h, w) float32 map, over the canvas, on the model's grid."""
        return tuple(f.map for f in self.found)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Each image has this original size (H, W)."""
        return tuple(f.size for f in self.found)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.found)

    def map(self, index: int) -> FloatArray:
        """Enlarge the map of image ``index`` to its original size, (H, W) float32."""
        return self.found[index].full_map()

    def verdict(self, index: int) -> Verdict | None:
        """Return ``good`` or ``bad`` by the model's image threshold, or ``unsure`` between two; None if it has none."""
        return self.calibration.verdict(self.found[index].score) if self.calibration else None

    def mask(self, index: int, threshold: float | None = None) -> BoolArray:
        """Return the mask (H, W) of where the map exceeds the threshold, by default the model's pixel threshold."""
        return self.map(index) > self._pixel_threshold(threshold)

    def defects(self, index: int, threshold: float | None = None) -> list[Defect]:
        """Find the connected regions of :meth:`mask`, the highest peak first."""
        return find_defects(self.map(index), self._pixel_threshold(threshold))

    def _pixel_threshold(self, threshold: float | None) -> float:
        of_model = self.calibration.pixel_threshold if self.calibration else None
        if threshold is None and of_model is None:
            raise InputError(
                "the model has no pixel threshold, for it was fitted without calibration images: name one "
                "(threshold=...) or fit with calibrate=0.1"
            )
        return of_model if threshold is None else threshold  # type: ignore[return-value]


def _plane(name: str, index: int, values: Any) -> npt.NDArray[Any]:
    plane = as_numpy(values)
    if plane.ndim != 2 or plane.size == 0:
        raise InputError(f"{name} {index} has the shape {plane.shape}: expected (H, W)")
    return plane


def without_number(path: str, score: float) -> Failure:
    """Name an image whose score is NaN or infinite: it counts as failed, and is never taken for a good one."""
    return Failure(
        path,
        f"its score is {score:g}, no number, so nothing is known of the part: look whether the image shows it within "
        "the region of interest; if all images are refused, fit the model anew",
    )


def find_defects(full_map: FloatArray, threshold: float) -> list[Defect]:
    """Find the connected regions (8 neighbours) of a (H, W) map above the threshold, the highest peak first."""
    mask = full_map > threshold
    runs = connected_runs(mask)
    regions = zip(runs.boxes().tolist(), runs.areas().tolist(), runs.highest(full_map[mask]).tolist(), strict=True)
    return sorted((Defect(box, area, peak) for box, area, peak in regions), key=lambda d: -d.peak)
