"""What happens to a model's metrics as light, focus, noise, compression and the place of the part change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import Unpack

from pickglass.app.pages.robustness import draw_samples, write_robustness
from pickglass.app.results import Disturbed, RobustnessResult
from pickglass.app.testing.truth import LIMITS, read_truth
from pickglass.data import MAX_PIXELS, Dataset, Row, Table, decode, load_dataset, read_image
from pickglass.data.files import output_path
from pickglass.data.images.decoder import Array
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS, disturb, disturb_mask
from pickglass.detectors.compute import ComputeArguments, Progress
from pickglass.detectors.detector import Detector
from pickglass.errors import DataError, Failure
from pickglass.methods import load
from pickglass.metrics import PixelCurves, image_summary, rates_at
from pickglass.result import Found

__all__ = ["robustness"]

_BATCH = 8  # disturbed images held at once


def robustness(
    model: str | Path | Detector,
    data: str | Path | Dataset,
    page: str | Path | None = None,
    *,
    seed: int = 0,
    layout: str | None = None,
    group_by: str | None = None,
    progress: Progress | None = None,
    **running: Unpack[ComputeArguments],
) -> RobustnessResult:
    """Judge a model on test images that are disturbed ever more strongly, with the threshold it has.

    Each kind of :data:`~pickglass.data.painting.disturbances.DISTURBANCES` is applied at each of its strengths to all
    labelled test images, at their original size and bit depth; the ground truth moves with shifted and turned images.
    An image is shifted or turned in the same direction at every strength. Memory holds a few images and, of one kind,
    the maps on the model's grid.

    Args:
        model: model file, or a fitted detector.
        data: folder in any layout that :func:`pickglass.load_dataset` knows, or a data set.
        page: HTML file to write: a plot for each metric, a table, and what the disturbances look like.
        seed: of the noise and of the directions.

    The others as in :meth:`pickglass.Detector.predict`.

    Returns:
        Image AUROC, AUPRO, false-alarm and miss rate for each kind and strength; images that could not be read or
        judged are named and left out of the conditions in which they failed.

    Raises:
        DataError: there is no labelled test image, or none can be read.
    """
    target = None if page is None else output_path(page, ".html")
    detector = model if isinstance(model, Detector) else load(model)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, layout, group_by)
    rows = dataset.test.where(lambda row: row.label is not None)
    if not rows:
        raise DataError(f"{dataset.root}: no test image is known to be good or defective, which the metrics need")
    options: ComputeArguments = {"workers": 2, "max_pixels": MAX_PIXELS, **running, "batch": _BATCH}
    run = _Run(detector, rows, seed, options, {}, progress)
    calibration = detector.current_calibration()
    threshold = None if calibration is None else calibration.image_threshold
    undisturbed = run.judged("none", (0.0,), threshold)[0]
    disturbed = [one for kind, strengths in DISTURBANCES.items() for one in run.judged(kind, strengths, threshold)]
    result: RobustnessResult = {
        "page": None if target is None else str(target),
        "n": len(rows),
        "seed": seed,
        "undisturbed": undisturbed,
        "disturbed": disturbed,
        "failed": [{"path": path, "error": error} for path, error in run.failed.items()],
    }
    if target is not None:
        place = next(i for i, row in enumerate(rows) if row.path not in run.failed)
        pixels = rows[place].pixels
        shown = read_image(rows[place].path if pixels is None else pixels, options["max_pixels"])
        pictures = draw_samples(lambda kind, strength: run.image(shown, place, kind, strength))
        title = f"{dataset.name}: {type(detector).__name__} under disturbances"
        write_robustness(target, title, result, threshold, pictures)
    return result


class _One(NamedTuple):
    """A disturbed image on its way: its place among the rows, which strength, and the row with its pixels."""

    place: int
    step: int
    row: Row


class _Run(NamedTuple):
    """What is disturbed, and by what it is judged. ``failed``: path -> reason, filled on the way."""

    detector: Detector
    rows: Table
    seed: int
    options: ComputeArguments
    failed: dict[str, str]
    progress: Progress | None

    def rng(self, place: int, kind: str) -> np.random.Generator:
        """The same for all strengths of a kind, so that an image goes ever farther in one direction."""
        return np.random.default_rng([self.seed, place, *kind.encode()])

    def image(self, image: Array, place: int, kind: str, strength: float) -> Array:
        """An image as it is (``"none"``) or disturbed."""
        return image if kind == "none" else disturb(image, kind, strength, self.rng(place, kind))

    def judged(self, kind: str, strengths: Sequence[float], threshold: float | None) -> list[Disturbed]:
        """The metrics of all images at each strength of one kind; each image is read once."""
        found: list[list[tuple[int, Found]]] = [[] for _ in strengths]
        source = self._disturbed(kind, strengths)
        while batch := list(islice(source, _BATCH)):
            judged = self.detector.stream(Table([one.row for one in batch]), **self.options)
            for one, item in zip(batch, judged, strict=True):
                if isinstance(item, Failure):
                    self.failed[item.path] = item.error
                else:  # without its pixels
                    found[one.step].append((one.place, item._replace(row=self.rows[one.place])))
        if not any(found):
            raise DataError("none of the test images can be judged:", [Failure(*item) for item in self.failed.items()])
        return [self._metrics(kind, *item, threshold) for item in zip(strengths, found, strict=True)]

    def _disturbed(self, kind: str, strengths: Sequence[float]) -> Iterator[_One]:
        workers, max_pixels = self.options["workers"], self.options["max_pixels"]
        images = decode(self.rows, _as_it_is, workers, ahead=workers + 1, max_pixels=max_pixels)
        for place, item in enumerate(images):
            if item.value is None:
                self.failed[item.row.path] = str(item.error)
            else:
                for step, strength in enumerate(strengths):
                    yield _One(place, step, replace(item.row, pixels=self.image(item.value, place, kind, strength)))
            if self.progress is not None:
                self.progress(f"disturbing: {kind}", place + 1, len(self.rows))

    def _metrics(
        self, kind: str, strength: float, found: Sequence[tuple[int, Found]], threshold: float | None
    ) -> Disturbed:
        labels = np.array([item.row.label for _, item in found])
        scores = np.array([item.score for _, item in found])
        figures = image_summary(labels, scores)
        if threshold is not None:
            figures |= rates_at(labels, scores, threshold)._asdict()
        curves, masks = PixelCurves(), 0
        for place, item in found:
            mask = read_truth(item.row, item.size).mask
            if item.row.label == 1 and mask is None:
                continue
            if mask is not None and kind != "none":
                mask = disturb_mask(mask, kind, strength, self.rng(place, kind))
            masks += mask is not None
            curves.update(item.full_map(), mask, keep=item.inside())
        if masks:
            aupro = curves.compute(LIMITS).aupro
            figures |= {"aupro_30": aupro[0.3], "aupro_05": aupro[0.05]}

        def known(name: str) -> float | None:
            value = figures.get(name, math.nan)
            return None if math.isnan(value) else float(value)

        return {
            "kind": kind,
            "strength": strength,
            "unit": UNITS.get(kind, ""),
            "image_auroc": known("image_auroc"),
            "aupro_30": known("aupro_30"),
            "aupro_05": known("aupro_05"),
            "false_alarm_rate": known("false_alarm_rate"),
            "miss_rate": known("miss_rate"),
        }


def _as_it_is(image: Array, row: Row) -> Array:
    return image
