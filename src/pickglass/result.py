"""A prediction holds scores and maps. Of both, **higher is more anomalous**."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from pickglass.calibration import Calibration, Verdict
from pickglass.data.annotations.coco import counts_of_places
from pickglass.data.annotations.shapes import DEFECT
from pickglass.data.files import output_path, written_whole
from pickglass.data.images.drawing import (
    colour_range,
    display,
    draw_contours,
    heat,
    picture_size,
    shrink_max,
    thumbnail,
)
from pickglass.data.images.geometry import resize_map
from pickglass.data.images.masks import read_marks
from pickglass.data.tables.cells import Cell
from pickglass.data.tables.memory import as_numpy
from pickglass.data.tables.rows import Row
from pickglass.errors import Failure, ImageError, InputError, MissingExtra
from pickglass.metrics.labelling import connected_runs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["UNKNOWN", "Defect", "Found", "Named", "Prediction", "find_defects", "record", "without_number"]

_SHOWN = 20  # images of a prediction in a notebook
_SMALL = 120  # px, their longest side

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

    def _repr_png_(self) -> bytes:
        """Show the image beside its heat map in a notebook, or above it if wide; an unreadable image leaves the map."""
        size = picture_size(*self.size)
        pictures = [_overlaid(self, size, None)]
        if (image := _image_of(self, size)) is not None:
            pictures.insert(0, image)
        return _encoded(np.concatenate(pictures, axis=0 if size[1] > 2 * size[0] else 1))


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

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with one row an image, those that failed last, as ``predict -o`` writes ``results.csv``.

        Its columns are ``path``, ``score``, ``threshold``, ``unsure_threshold``, ``verdict``, ``p_value``, ``type`` and
        ``error``; what is absent is None or NaN.

        Raises:
            MissingExtra: pandas is not installed.

        Example:
            ``detector.predict(bottle.test).to_pandas().query("verdict == 'bad'").to_excel("bad.xlsx")``
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise MissingExtra.needed(
                "Prediction.to_pandas", error, ", or write results.csv with 'pickglass predict -o'"
            ) from error
        items: list[Found | Failure] = [*self.found, *self.failed]
        records = [record(item, self.calibration) for item in items]
        columns = {name: [row[name] for row in records] for name in record(Failure("", ""), None)}
        numbers = ("score", "threshold", "unsure_threshold", "p_value")
        return pd.DataFrame(
            {name: pd.Series(values, dtype=float if name in numbers else object) for name, values in columns.items()}
        )

    def to_coco(self, path: str | Path, threshold: float | None = None) -> Path:
        """Write the defects of all images as a COCO file, which annotation tools, FiftyOne and pickglass read.

        Each image has its ``score``. Each defect is an annotation with a box in pixels of the original image, its area,
        its outline as run lengths, and the highest map value inside as its ``score``. A category is ``defect``, or the
        type that the model names. Images that could not be read are listed under ``info``.

        Args:
            path: file to write, ends in .json; it is written whole or not at all.
            threshold: map values above it are a defect; None: the model's pixel threshold.

        Raises:
            InputError: no threshold, another ending, or the file cannot be written.
        """
        target, limit = output_path(path, ".json"), self._pixel_threshold(threshold)
        types = {found.named.type for found in self.found if found.named is not None}
        numbers = {name: i for i, name in enumerate([DEFECT, *sorted(types - {DEFECT})], start=1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, found in enumerate(self.found, start=1):
            height, width = found.size
            images.append({"id": i, "file_name": found.row.path, "width": width, "height": height})
            images[-1]["score"] = found.score
            for place, (defect, counts) in enumerate(_with_runs(found.full_map(), limit)):
                # what a model is taught names the region of the highest peak, which comes first
                name = found.named.type if found.named is not None and place == 0 else DEFECT
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": numbers[name],
                        "bbox": defect.box,
                        "area": defect.area,
                        "segmentation": {"size": [height, width], "counts": counts},
                        "iscrowd": 0,
                        "score": defect.peak,
                    }
                )
        document = {
            "info": {
                "description": f"defects that pickglass found, maps above {limit:g}",
                "failed": [failure._asdict() for failure in self.failed],
            },
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in numbers.items()],
        }
        with written_whole(target) as temporary:
            temporary.write_text(json.dumps(document), encoding="ascii")
        return target

    def _repr_html_(self) -> str:
        """Show the first images with outlines, scores and verdicts as a table in a notebook."""
        limit = self.calibration.pixel_threshold if self.calibration else None
        rows = [_line(self._thumbnail(found, limit), record(found, self.calibration)) for found in self.found[:_SHOWN]]
        rows += [_line("", record(failure, None)) for failure in self.failed[: _SHOWN - len(rows)]]
        verdicts = [self.verdict(i) for i in range(len(self))]
        counts = [f"{verdicts.count(word)} {word}" for word in ("bad", "unsure", "good") if word in verdicts]
        counts += [f"{len(self.failed)} could not be read"] if self.failed else []
        total = len(self.found) + len(self.failed)
        title = f"{total} image{'' if total == 1 else 's'}" + (f": {', '.join(counts)}" if counts else "")
        title += f"; these are {len(rows)} of them, to_pandas() has all" if len(rows) < total else ""
        head = Markup("").join(Markup("<th>{}</th>").format(name) for name in _HEADS)
        table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>")
        page = str(Markup("<p>{}</p>").format(title) + table.format(head, Markup("").join(rows)))
        return page.encode("utf-8", "backslashreplace").decode()  # names of files that are no text, on Linux

    def _thumbnail(self, found: Found, limit: float | None) -> Markup:
        pixels = _overlaid(found, picture_size(*found.size, _SMALL), limit)
        content = base64.b64encode(_encoded(pixels)).decode("ascii")
        return Markup('<img alt="" src="data:image/png;base64,{}">').format(content)

    def _pixel_threshold(self, threshold: float | None) -> float:
        of_model = self.calibration.pixel_threshold if self.calibration else None
        if threshold is None and of_model is None:
            raise InputError(
                "the model has no pixel threshold, for it was fitted without calibration images: name one "
                "(threshold=...) or fit with calibrate=0.1"
            )
        return of_model if threshold is None else threshold  # type: ignore[return-value]


_HEADS = ("image", "path", "score", "verdict", "p-value", "type", "error")


def record(item: Found | Failure, calibration: Calibration | None) -> dict[str, Cell]:
    """Return what tables say of an image, by column; a column without a value is None.

    Args:
        item: what the model found, or why the image could not be read.
        calibration: the model's thresholds; None: no verdict and no p-value.
    """
    found = item if isinstance(item, Found) else None
    judged = calibration if found is not None else None
    rarity = judged.p_value(found.score) if judged is not None and found is not None else None
    return {
        "path": item.path if found is None else found.row.path,  # type: ignore[union-attr]
        "score": None if found is None else found.score,
        "threshold": calibration.image_threshold if calibration else None,
        "unsure_threshold": calibration.unsure_threshold if calibration else None,
        "verdict": judged.verdict(found.score) if judged is not None and found is not None else None,
        "p_value": None if rarity is None else rarity.p,
        "type": None if found is None or found.named is None else found.named.type,
        "error": None if found is not None else item.error,  # type: ignore[union-attr]
    }


def _line(picture: str, record: dict[str, Cell]) -> Markup:
    numbers = ["" if (value := record[name]) is None else f"{value:.4g}" for name in ("score", "p_value")]
    cells = [picture, record["path"], numbers[0], record["verdict"], numbers[1], record["type"], record["error"]]
    shown = ("" if value is None else value for value in cells)
    return Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(value) for value in shown))


def _image_of(found: Found, size: tuple[int, int]) -> npt.NDArray[Any] | None:
    """Return the image at size (h, w), uint8 (h, w, 3); None where there is none to read."""
    try:
        return thumbnail(display(found.row.image()), size)
    except ImageError:
        return None


def _overlaid(found: Found, size: tuple[int, int], limit: float | None) -> npt.NDArray[Any]:
    """Lay the heat map of size (h, w) over the image and outline what is above the limit, uint8 (h, w, 3)."""
    image = _image_of(found, size)
    if image is None:
        image = np.zeros((*size, 3), np.uint8)
    values = shrink_max(found.full_map(), size)
    drawn = heat(image, values, colour_range(limit, [found.map]))
    return drawn if limit is None else draw_contours(drawn, predicted=values > limit)


def _encoded(pixels: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


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


def _with_runs(full_map: FloatArray, threshold: float) -> list[tuple[Defect, list[int]]]:
    """Find the defects as :func:`find_defects` does, each with its run lengths down the columns, as COCO counts."""
    mask = full_map > threshold
    runs = connected_runs(mask)
    rows, columns = np.nonzero(mask)
    region, places = runs.per_pixel(), columns * mask.shape[0] + rows
    order = np.lexsort((places, region))
    each = np.split(places[order], np.cumsum(runs.areas())[:-1])
    peaks = runs.highest(full_map[mask])
    by_peak = np.argsort(-peaks, kind="stable").tolist()
    counts = [counts_of_places(each[i], mask.size) for i in by_peak]
    return list(zip(find_defects(full_map, threshold), counts, strict=True))
