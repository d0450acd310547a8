"""Judge a prediction: join it to the truth by row, and compute every metric at the original resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pickglass.app.results import Metrics
from pickglass.data import Table, as_table, read_mask
from pickglass.errors import ImageError, InputError
from pickglass.metrics import PixelCurves, PixelResult, Roc, by_type, image_summary, roc_curve
from pickglass.result import Prediction

__all__ = ["LIMITS", "Evaluation", "evaluate"]

LIMITS = (0.3, 0.05)
"""FPR limits of AUPRO: MVTec AD's and MVTec AD 2's."""


@dataclass(frozen=True)
class Evaluation(Mapping[str, Any]):
    """The metrics of a prediction; reads like a dict of the overall ones.

    Attributes:
        overall: metrics over all labelled images.
        by_type: per defect type, that type and all good images.
        roc: image ROC curve, None unless both classes are present.
        pixels: PRO curve and counts, None without masks.
        notes: what a reader of the numbers has to know.
    """

    overall: Metrics
    by_type: dict[str, Metrics]
    roc: Roc | None
    pixels: PixelResult | None
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return cast("dict[str, Any]", self.overall)[name]

    def __iter__(self) -> Any:
        return iter(self.overall)

    def __len__(self) -> int:
        return len(self.overall)


def evaluate(prediction: Prediction, truth: Any = None) -> Evaluation:
    """Image AUROC, average precision, F1-max, pixel AUROC and AUPRO at FPR limits 0.3 and 0.05.

    Pixel metrics follow MVTec AD's definition: regions of 8-connected defect pixels, the false-positive rate over all
    good pixels of all images (good images count), masks and maps at the original size, linear interpolation at the
    limit. Maps are enlarged one at a time.

    Args:
        prediction: what ``detector.predict`` returned.
        truth: rows with labels and masks (a data set, a table), joined by path; None: the prediction's own rows.

    Returns:
        The :class:`Evaluation`; images without a label are left out, and so are defective images without a mask from
        the pixel metrics (a note says how many).

    Raises:
        InputError: a path of the prediction is not in ``truth``, or no image has a label.

    Example:
        ``evaluate(detector.predict(bottle.test))["image_auroc"]``
    """
    rows = prediction.rows if truth is None else _joined(prediction, as_table(truth))
    labelled = [i for i, row in enumerate(rows) if row.label is not None]
    if not labelled:
        raise InputError(
            f"none of the {len(rows)} images has a label: expected test rows that are known to be good or defective"
        )
    labels = np.array([rows[i].label for i in labelled])
    scores = prediction.scores[labelled]
    types = [rows[i].defect for i in labelled]
    curves, notes = PixelCurves(), []
    without = []
    masks = 0
    for i in labelled:
        row = rows[i]
        if row.label == 1 and row.mask is None:
            without.append(row.path)
            continue
        mask = None if row.mask is None else read_mask(row.mask, prediction.sizes[i])
        if mask is not None and row.label == 0 and mask.any():
            raise ImageError(str(row.mask), f"marks defects in {row.path}, which is labelled good: correct one of them")
        masks += mask is not None
        curves.update(prediction.map(i), mask, tag=_tag(row.defect) if row.label == 1 else "good")
    if without:
        notes.append(f"{len(without)} defective images have no mask and are left out of the pixel metrics.")
    if len(labelled) < len(rows):
        notes.append(f"{len(rows) - len(labelled)} images have no label and are left out of all metrics.")
    pixels = curves.compute(LIMITS) if masks else None
    per_type: dict[str, Metrics] = {}
    for name, summary in by_type(labels, scores, types).items():
        own = curves.compute(LIMITS, {_tag(name), "good"}) if masks else None
        n = sum(bool(label == 0 or t == name) for label, t in zip(labels, types, strict=True))
        per_type[name] = _metrics(n, summary, own)
    both = 0 < labels.sum() < len(labels)
    return Evaluation(
        overall=_metrics(len(labelled), image_summary(labels, scores), pixels),
        by_type=per_type,
        roc=roc_curve(labels, scores) if both else None,
        pixels=pixels,
        notes=tuple(notes),
    )


def _tag(defect: str | None) -> str:
    """A type may be called anything, also "good"."""
    return f"type:{defect}"


def _joined(prediction: Prediction, truth: Table) -> Table:
    by_path = {row.path: row for row in truth}
    unknown = [row.path for row in prediction.rows if row.path not in by_path]
    if unknown:
        raise InputError(f"{len(unknown)} predicted images are not in the truth, e.g. {unknown[0]!r}: paths must agree")
    return Table([by_path[row.path] for row in prediction.rows])


def _metrics(n: int, image: Mapping[str, float], pixels: PixelResult | None) -> Metrics:
    return {
        "n": n,
        "image_auroc": _known(image["image_auroc"]),
        "average_precision": _known(image["average_precision"]),
        "f1_max": _known(image["f1_max"]),
        "pixel_auroc": _known(pixels.pixel_auroc) if pixels else None,
        "aupro_30": _known(pixels.aupro[0.3]) if pixels else None,
        "aupro_05": _known(pixels.aupro[0.05]) if pixels else None,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
