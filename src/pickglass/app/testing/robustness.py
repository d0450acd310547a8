"""Test how a model's metrics change with light, focus, noise, compression and the place of the part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pickglass.app.models import AnyModel, as_model
from pickglass.app.pages.robustness import draw_samples, write_robustness
from pickglass.app.results import Disturbed, RobustnessResult
from pickglass.app.testing.evaluate import counts_of, rates_of
from pickglass.app.testing.truth import LIMITS, read_truth
from pickglass.calibration import Calibration
from pickglass.data import Dataset, DataSource, Row, Table, decode
from pickglass.data.files import output_path
from pickglass.data.images.decoder import Array
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS, disturb, disturb_mask
from pickglass.errors import DataError, Failure
from pickglass.metrics import PixelCurves, image_summary
from pickglass.result import Found
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["robustness"]

_BATCH = 8  # disturbed images held at once


def robustness(
    model: str | Path | AnyModel,
    data: DataSource | Dataset | str | Path,
    page: str | Path | None = None,
    *,
    seed: int = 0,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> RobustnessResult:
    """Judge a model on test images that are disturbed ever more strongly, with the threshold it has.

    Each kind of :data:`~pickglass.data.painting.disturbances.DISTURBANCES` is applied at each of its strengths to all
    labelled test images, at their original size and bit depth; the ground truth moves with shifted and turned images.
    An image is shifted or turned in the same direction at every strength. Memory holds a few images and, of one kind,
    the maps on the model's grid.

    Args:
        model: model file, or a fitted detector.
        data: folder in any layout that :func:`pickglass.load_dataset` knows, how to read it, or a data set.
        page: HTML file to write: a plot for each metric, a table, and what the disturbances look like.
        seed: decides the noise and the directions of shifts and turns.
        compute: where to compute; ``batch`` has no effect.
        progress: called with (stage, done, total).

    Returns:
        Image AUROC, AUPRO, false-alarm and miss rate for each kind and strength; images that could not be read or
        judged are named and left out of the conditions in which they failed.

    Raises:
        DataError: there is no labelled test image, or none can be read.
    """
    target = None if page is None else output_path(page, ".html")
    detector = as_model(model)
    dataset = data if isinstance(data, Dataset) else DataSource.of(data).load()
    rows = dataset.test.where(lambda row: row.label is not None)
    if not rows:
        raise DataError(f"{dataset.root}: no test image is known to be good or defective, which the metrics need")
    options = replace(compute or ComputeOptions(), batch=_BATCH)
    run = _Disturber(detector, rows, seed, options, {}, progress)
    calibration = detector.current_calibration()
    undisturbed = run.judged("none", (0.0,), calibration)[0]
    disturbed = [one for kind, strengths in DISTURBANCES.items() for one in run.judged(kind, strengths, calibration)]
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
        shown = rows[place].image(options.max_pixels)
        pictures = draw_samples(lambda kind, strength: run.image(shown, place, kind, strength))
        title = f"{dataset.name}: {type(detector).__name__} under disturbances"
        write_robustness(target, title, result, calibration, pictures)
    return result


class _Disturbed(NamedTuple):
    """A disturbed image: its place among the rows, the number of its strength, and the row with its pixels."""

    place: int
    step: int
    row: Row


class _Disturber(NamedTuple):
    """Disturbs the test images and judges them. ``failed`` holds path -> reason of what could not be judged."""

    detector: AnyModel
    rows: Table
    seed: int
    options: ComputeOptions
    failed: dict[str, str]
    progress: Progress | None

    def rng(self, place: int, kind: str) -> np.random.Generator:
        """Return a generator that is the same for all strengths of a kind, so that an image keeps its direction."""
        return np.random.default_rng([self.seed, place, *kind.encode()])

    def image(self, image: Array, place: int, kind: str, strength: float) -> Array:
        """Return an image as it is (``"none"``) or disturbed."""
        return image if kind == "none" else disturb(image, kind, strength, self.rng(place, kind))

    def judged(self, kind: str, strengths: Sequence[float], calibration: Calibration | None) -> list[Disturbed]:
        """Compute the metrics of all images at each strength of one kind; each image is read once."""
        found: list[list[tuple[int, Found]]] = [[] for _ in strengths]
        source = self._disturbed(kind, strengths)
        while batch := list(islice(source, _BATCH)):
            judged = self.detector.stream(Table([one.row for one in batch]), **self.options.arguments())
            for one, item in zip(batch, judged, strict=True):
                if isinstance(item, Failure):
                    self.failed[item.path] = item.error
                else:  # without its pixels
                    found[one.step].append((one.place, item._replace(row=self.rows[one.place])))
        if not any(found):
            raise DataError("none of the test images can be judged:", [Failure(*item) for item in self.failed.items()])
        return [self._metrics(kind, *item, calibration) for item in zip(strengths, found, strict=True)]

    def _disturbed(self, kind: str, strengths: Sequence[float]) -> Iterator[_Disturbed]:
        workers, limit = self.options.workers, self.options.max_pixels
        images = decode(self.rows, _as_it_is, workers, ahead=workers + 1, max_pixels=limit)
        for place, item in enumerate(images):
            if item.value is None:
                self.failed[item.row.path] = str(item.error)
            else:
                for step, strength in enumerate(strengths):
                    yield _Disturbed(
                        place, step, replace(item.row, pixels=self.image(item.value, place, kind, strength))
                    )
            if self.progress is not None:
                self.progress(f"disturbing: {kind}", place + 1, len(self.rows))

    def _metrics(
        self, kind: str, strength: float, found: Sequence[tuple[int, Found]], calibration: Calibration | None
    ) -> Disturbed:
        labels = np.array([item.row.label for _, item in found])
        scores = np.array([item.score for _, item in found])
        figures = image_summary(labels, scores) | rates_of(calibration, labels, scores)
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
            **counts_of(labels, figures),
            "kind": kind,
            "strength": strength,
            "unit": UNITS.get(kind, ""),
            "image_auroc": known("image_auroc"),
            "aupro_30": known("aupro_30"),
            "aupro_05": known("aupro_05"),
            "false_alarm_rate": known("false_alarm_rate"),
            "miss_rate": known("miss_rate"),
            "unsure_good_rate": known("unsure_good_rate"),
            "unsure_defective_rate": known("unsure_defective_rate"),
        }


def _as_it_is(image: Array, row: Row) -> Array:
    return image
