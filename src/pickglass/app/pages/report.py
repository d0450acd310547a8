"""The report of a test: one page with figures, charts and every image, written as a stream.

Each image becomes a card of small pictures that goes to a temporary file at once; memory holds one short record an
image, for sorting and the histogram. ``finish`` writes the page to a temporary name and renames it, so the target is
either the old file or the whole new one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

import numpy as np

from pickglass.app.pages.build import PAGE_ERRORS, render, rendered, write_page
from pickglass.app.pages.charts import Curves, histogram, pro_chart, roc_chart, spro_chart
from pickglass.app.pages.images import (
    PREDICTED,
    TRUTH,
    Array,
    Picture,
    close_up,
    display,
    draw_boxes,
    draw_contours,
    heat,
    jpeg,
    mark_peak,
    own_range,
    picture_size,
    ramp,
    shape_of,
    shrink_max,
    thumbnail,
    tint,
    value_range,
)
from pickglass.data.files import writing_to
from pickglass.errors import Failure, InputError
from pickglass.metrics.catalogue import METRICS, WITHOUT_THRESHOLD, shown

__all__ = ["Marking", "ReportImage", "ReportWriter", "TiledImage", "draw_panels"]

CLOSE_UP = 192  # original px, side of a close-up


@dataclass(frozen=True)
class ReportImage:
    """One tested image with everything that the report shows of it.

    Attributes:
        path: file or made-up name; shown as it is.
        defect: name of the defect type, None for good or unknown.
        label: 0 good, 1 defective, None unknown.
        score: raw image score, higher = more anomalous.
        verdict: ``"good"``, ``"unsure"``, ``"bad"``, or None without a threshold.
        image: ``(H, W)`` or ``(H, W, 3)``, uint8, uint16, or float32 in 0..1, the original pixels.
        map: ``(H, W)`` anomaly map at the original size.
        mask: ``(H, W)`` ground truth, above 0 is defect; None where there is none.
        predicted: ``(H, W)`` bool; None when the model has no pixel threshold.
        boxes: ``[x, y, w, h]`` in original pixels.
        parts: what the map is made of, by name, likewise at the original size.
        digest: SHA-256 of the file, by which marks know the image; None: the reader cannot mark it.
    """

    path: str
    defect: str | None
    label: int | None
    score: float
    verdict: str | None
    image: Array
    map: Array
    mask: Array | None
    predicted: Array | None
    boxes: list[list[int]]
    parts: Mapping[str, Array] = field(default_factory=dict)
    digest: str | None = None

    @property
    def kind(self) -> str:
        """The defect type, or ``good``, ``bad`` or ``unlabelled`` where there is none."""
        return self.defect or {0: "good", 1: "bad", None: "unlabelled"}[self.label]

    @property
    def outcome(self) -> str:
        """Whether the verdict is right: ``right``, ``missed``, ``false alarm``, or empty where nobody knows.

        ``unsure`` is neither right nor wrong, and stays ``unsure``.
        """
        if self.verdict == "unsure":
            return "unsure"
        if self.label is None or self.verdict is None:
            return ""
        if (self.verdict == "bad") == (self.label == 1):
            return "right"
        return "missed" if self.label else "false alarm"

    def check(self) -> None:
        """Raise an InputError that names the image if its arrays do not fit together."""
        size = self.image.shape[:2]
        colour = self.image.ndim == 2 or (self.image.ndim == 3 and self.image.shape[2] == 3)
        if not colour or 0 in size or self.image.dtype not in (np.uint8, np.uint16, np.float32):
            raise InputError(
                f"{self.path}: image of shape {self.image.shape} and type {self.image.dtype}: expected (H, W) or "
                "(H, W, 3), uint8, uint16 or float32; convert it first"
            )
        for name, array in (
            *(("map", self.map), ("mask", self.mask), ("predicted", self.predicted)),
            *self.parts.items(),
        ):
            if array is not None and array.shape != size:
                raise InputError(
                    f"{self.path}: {name} of shape {array.shape} on an image of {size}: resize it to the image first"
                )
        if not (math.isfinite(self.score) and np.isfinite(self.map).all()):
            raise InputError(f"{self.path}: score {self.score!r} or its map is not finite: fix the detector's output")


class TiledImage(NamedTuple):
    """One image of a tiled model: a heading, and pictures of how its map was put together."""

    heading: str
    shape: str
    pictures: Sequence[Picture]


class Marking(NamedTuple):
    """A reader can mark the images of a report, and save the marks as a table.

    Attributes:
        model_id, model_version: the model that judged the images.
        columns: the table has these, in order.
    """

    model_id: str
    model_version: int
    columns: Sequence[str]


class _Record(NamedTuple):
    start: int  # of the card in the temporary file, bytes
    length: int
    score: float
    label: int | None
    kind: str
    outcome: str


class _TypeRow(NamedTuple):
    """A row of the table by defect type: of ``n`` images ``missed`` were missed, ``unsure`` unsure, if ``judged``."""

    name: str
    n: int
    judged: bool
    missed: int
    unsure: int
    values: Mapping[str, Any]


class ReportWriter:
    """Writes the report of a test, image by image.

    Use it as a context manager: without ``finish`` nothing is left behind, and an older report stays as it was.

    Args:
        target: the HTML file to write; its folder must exist.
        title: heading of the page.
        scale: ``(low, high)``, the anomaly values at the two ends of the heat map's colours, the same for all images.
            Values beyond are drawn like the ends; scores stay raw.

    Raises:
        InputError: the folder does not exist, the target is a folder, or the scale is not two finite numbers in order.

    Example:
        >>> import tempfile, numpy as np
        >>> grey, heat, none = np.full((64, 64), 128, np.uint8), np.zeros((64, 64), np.float32), np.empty(0)
        >>> with tempfile.TemporaryDirectory() as folder, ReportWriter(f"{folder}/r.html", "tile", (0, 1)) as report:
        ...     report.add(ReportImage("a.png", None, 0, 0.2, "good", grey, heat, None, None, []))
        ...     path = report.finish(metrics={"n": 1}, by_type={}, curves=Curves(none, none, none, none, 0.3),
        ...                          configuration={}, provenance={}, failed=[], threshold=0.5)
        ...     path.name, "a.png" in path.read_text(encoding="utf-8")
        ('r.html', True)
    """

    def __init__(self, target: str | Path, title: str, scale: tuple[float, float]) -> None:
        self.target, self.title, self.scale = Path(target), title, scale
        if self.target.is_dir() or not self.target.parent.is_dir():
            raise InputError(
                f"cannot write the report to {str(target)!r}: expected the name of a file in a folder that exists; "
                f"create {str(self.target.parent)!r} or name another file, e.g. report.html"
            )
        if not (np.isfinite(scale).all() and scale[0] <= scale[1]):
            raise InputError(f"scale={scale!r}: expected two finite numbers (low, high), e.g. (0.0, 1.0)")
        self._records: list[_Record] = []
        self._digests: list[str] = []  # of images that can be marked
        self._has_masks = self._has_predictions = False
        # Beside the target, for a temporary folder may live in memory. __exit__ and finish close it.
        with writing_to(self.target):
            self._cards: IO[bytes] = tempfile.TemporaryFile(dir=self.target.parent)  # noqa: SIM115

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a full disk, which was said already
            self._cards.close()

    def add(self, item: ReportImage) -> None:
        """Draw one image and put its card aside. The arrays are neither kept nor changed.

        Raises:
            InputError: the arrays do not fit together, or a value is not finite.
        """
        item.check()
        values = {
            "path": item.path,
            "name": PurePath(item.path).name or item.path,
            "kind": item.kind,
            "score": float(item.score),
            "verdict": item.verdict,
            "outcome": item.outcome,
            "digest": item.digest,
            "shape": shape_of(*item.image.shape[:2]),
            "pictures": draw_panels(item, self.scale),
        }
        card = render("card.html.j2", values).encode("utf-8", PAGE_ERRORS)
        with writing_to(self.target):
            start = self._cards.seek(0, os.SEEK_END)
            self._cards.write(card)
            self._cards.flush()
        self._records.append(_Record(start, len(card), item.score, item.label, item.kind, item.outcome))
        if item.digest is not None:
            self._digests.append(item.digest)
        self._has_masks |= item.mask is not None
        self._has_predictions |= item.predicted is not None or bool(item.boxes)

    def finish(
        self,
        *,
        verdict: str = "",
        facts: Sequence[tuple[str, str]] = (),
        steps: Sequence[tuple[str, str | None]] = (),
        metrics: Mapping[str, Any],
        by_type: Mapping[str, Mapping[str, Any]],
        curves: Curves,
        configuration: Mapping[str, Any],
        provenance: Mapping[str, Any],
        failed: Sequence[Failure],
        threshold: float | None,
        unsure: float | None = None,
        notes: Sequence[str] = (),
        tiles: Sequence[TiledImage] = (),
        marking: Marking | None = None,
    ) -> Path:
        """Write the page and return its path.

        Args:
            verdict: one plain sentence that says it all.
            facts: when which model judged which images, by name.
            steps: what to try next, and the command for it.
            metrics: values by the keys of :data:`pickglass.metrics.catalogue.METRICS`; missing, None or NaN are shown
                as absent, with the reason.
            by_type: the same for each defect type, and its ``n``.
            curves: ROC, PRO and, if there is one, sPRO.
            configuration: how the detector was made; nested mappings are flattened.
            provenance: where data, weights and versions came from, likewise.
            failed: images that could not be tested.
            threshold: image score above which the verdict is bad; None without verdicts.
            unsure: image score above which it is unsure; None where no image is.
            notes: sentences for the reader, e.g. warnings.
            tiles: how the maps of some images were put together, for a tiled model.
            marking: what marks of the images say of the report; None: the reader cannot mark them.
        """
        records = self._records
        labels = Counter(record.label for record in records)
        scores = np.array([record.score for record in records])
        labelled = [record.label for record in records]
        charts = [histogram(scores, labelled, threshold, unsure), roc_chart(curves), pro_chart(curves)]
        saturated = spro_chart(curves)
        tiled_metrics = [*shown(WITHOUT_THRESHOLD, [metrics]), METRICS["images_per_s"]]
        write_page(
            self.target,
            "report.html.j2",
            {
                "title": self.title,
                "verdict": verdict,
                "facts": facts,
                "steps": steps,
                "n_good": labels[0],
                "tiles": [(metric, metrics.get(metric.key)) for metric in tiled_metrics],
                "threshold": threshold,
                "unsure": unsure,
                "notes": notes,
                "failed": failed,
                "columns": shown(WITHOUT_THRESHOLD, by_type.values()),
                "types": [self._type_row(kind, values) for kind, values in by_type.items()],
                "charts": charts if saturated is None else [*charts, saturated],
                "tiled": tiles,
                "configuration": list(_flat(configuration, "")),
                "provenance": list(_flat(provenance, "")),
                "scale": self.scale,
                "ramp": ramp(),
                "kinds": sorted({record.kind for record in records}),
                "defects": sorted({record.kind for record in records if record.label == 1} - {"bad"}),
                "marking": None if marking is None or not self._digests else self._about(marking),
                "has_masks": self._has_masks,
                "has_predictions": self._has_predictions,
                "cards": self._sorted_cards(threshold),
            },
        )
        self._cards.close()
        return self.target

    def _about(self, marking: Marking) -> dict[str, object]:
        """Name the report beside what marks say of it: reports of one model on the same images share their marks."""
        told = " ".join((marking.model_id, str(marking.model_version), *sorted(self._digests)))
        return {**marking._asdict(), "report": hashlib.sha256(told.encode()).hexdigest()[:16]}

    def _type_row(self, kind: str, values: Mapping[str, Any]) -> _TypeRow:
        own = [record.outcome for record in self._records if record.kind == kind]
        return _TypeRow(kind, len(own), any(own), own.count("missed"), own.count("unsure"), values)

    def _sorted_cards(self, threshold: float | None) -> Iterator[str]:
        """Read the cards back one by one, so that the page is written without ever being held as a whole."""
        for record in _worst_first(self._records, threshold):
            self._cards.seek(record.start)
            yield rendered(self._cards.read(record.length).decode("utf-8"))


def draw_panels(item: ReportImage, scale: tuple[float, float]) -> list[Picture]:
    """Draw the pictures of one image.

    Args:
        item: the image; its arrays are not changed.
        scale: ``(low, high)`` anomaly values at the two ends of the colours.

    Returns:
        Original, heat map, what it is made of, prediction and ground truth, then close-ups at original resolution when
        the pictures show less than half of it.
    """
    size = picture_size(*item.image.shape[:2])
    span = value_range(item.image)
    base = display(item.image, span)  # (H, W, 3)
    small = thumbnail(base, size)  # (h, w, 3)
    truth = None if item.mask is None else shrink_max(item.mask > 0, size)  # (h, w)
    predicted = None if item.predicted is None else shrink_max(item.predicted > 0, size)  # (h, w)
    stretched = f", {8 * item.image.itemsize} bit stretched: black is {span[0]:.4g}, white {span[1]:.4g}"
    stretched = "" if item.image.dtype == np.uint8 else stretched
    panels = [jpeg("original", f"original{stretched}", small)]
    for kind, caption, values in (
        ("heat", "heat map", item.map),
        *(("part", f"{name} map", part) for name, part in item.parts.items()),
    ):
        panels.append(_heat_map(kind, caption, small, shrink_max(values, size), scale, truth))
    if item.boxes or (predicted is not None and predicted.any()):
        drawn = draw_contours(tint(small, predicted, PREDICTED), truth=truth, predicted=predicted)
        ratio = (size[0] / item.image.shape[0], size[1] / item.image.shape[1])
        panels.append(jpeg("predicted", "prediction", draw_boxes(drawn, item.boxes, ratio)))
    else:
        text = "no pixel threshold" if predicted is None else "prediction: nothing found"
        panels.append(Picture("predicted", text, None, size))
    if truth is not None and truth.any():
        panels.append(jpeg("truth", "ground truth", draw_contours(tint(small, truth, TRUTH), truth=truth)))
    else:
        text = "ground truth: good" if item.label == 0 else "no ground truth mask"
        panels.append(Picture("truth", text, None, size))
    return panels + (_close_ups(item, base) if 2 * size[1] < item.image.shape[1] else [])


def _heat_map(
    kind: str, caption: str, small: Array, values: Array, scale: tuple[float, float], truth: Array | None
) -> Picture:
    """Draw a map ``(h, w)`` on the scale of all images, and once more on its own; its peak is marked on both."""
    both = [
        jpeg(kind, caption, mark_peak(draw_contours(heat(small, values, ends), truth=truth), values))
        for ends in (scale, own_range(values))
    ]
    return replace(both[0], own=both[1].source)


def _close_ups(item: ReportImage, base: Array) -> list[Picture]:
    """Draw close-ups at original resolution: at the map's peak, and at a defect if none is in sight there."""
    row, column = np.unravel_index(int(item.map.argmax()), item.map.shape)
    windows = [("close-up: highest value", close_up((int(row), int(column)), CLOSE_UP, item.map.shape))]
    if item.mask is not None and item.mask.any() and not item.mask[windows[0][1]].any():
        rows, columns = np.nonzero(item.mask)
        middle = len(rows) // 2  # a pixel of the defect itself, which the middle of its box need not be
        place = (int(rows[middle]), int(columns[middle]))
        windows.append(("close-up: ground truth", close_up(place, CLOSE_UP, item.map.shape)))
    panels = []
    for caption, window in windows:
        truth = None if item.mask is None else item.mask[window] > 0
        predicted = None if item.predicted is None else item.predicted[window] > 0
        panels.append(jpeg("closeup", caption, draw_contours(base[window], truth, predicted)))
    return panels


def _worst_first(records: Sequence[_Record], threshold: float | None) -> list[_Record]:
    """Sort wrong verdicts first, the farthest from the threshold leading; then unsure ones, then the others.

    Unlabelled ones come last, by score.
    """
    good, bad = ([r.score for r in records if r.label == label] for label in (0, 1))
    if threshold is None:  # for the order only: the middle between the two kinds stands in for it
        threshold = float(np.median(good) + np.median(bad)) / 2 if good and bad else 0.0

    def key(record: _Record) -> tuple[int, float]:
        if record.label is None:
            return 3, -record.score
        margin = (record.score - threshold) * (-1 if record.label == 0 else 1)
        return {"missed": 0, "false alarm": 0, "unsure": 1}.get(record.outcome, 2), margin

    return sorted(records, key=key)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str, ensure_ascii=False)
