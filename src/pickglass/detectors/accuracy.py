"""Labelled images tell what a file in a lower precision loses: image AUROC and AUPRO, torch against the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pickglass.data import Row
from pickglass.data.images.geometry import Preprocess
from pickglass.errors import DataError
from pickglass.metrics import PixelCurves, auroc
from pickglass.result import Found

__all__ = ["Comparison"]

_LIMIT = 0.3  # of AUPRO, MVTec AD's


class Comparison:
    """It gathers what torch and each runtime answer of labelled images, of which maps are not kept.

    Args:
        preprocess: how images come onto the canvas, by which maps go back to the original size.
        roi: (H, W) bool on the canvas, where to look on rows without a region of their own; None: everywhere.
    """

    def __init__(self, preprocess: Preprocess, roi: NDArray[np.bool_] | None) -> None:
        self._preprocess, self._roi = preprocess, roi
        self._labels: list[int] = []
        self._scores: dict[str, list[float]] = {}
        self._curves: dict[str, PixelCurves] = {}
        self._masks = 0

    def add(
        self,
        rows: Sequence[Row],
        sizes: Sequence[tuple[int, int]],
        answers: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    ) -> None:
        """Add images with the scores (B,) and maps (B, h, w) that each side, by its name, gave them.

        Raises:
            ImageError: a mask cannot be read.
            InputError: a map is not finite.
        """
        for i, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            if row.label is None:
                continue
            self._labels.append(row.label)
            mask = row.truth(size) if row.label == 1 and row.has_mask else None
            self._masks += mask is not None
            for name, (scores, maps) in answers.items():
                found = Found(row, float(scores[i]), maps[i], size, self._preprocess.window(size), self._roi)
                self._scores.setdefault(name, []).append(found.score)
                curves = self._curves.setdefault(name, PixelCurves())
                if row.label == 0 or mask is not None:
                    curves.update(found.full_map(), mask, keep=found.inside())

    def figures(self, max_loss: float) -> dict[str, Any]:
        """Return the metrics of each side by its name, and the loss: torch less the worse runtime, by metric.

        Raises:
            DataError: the labels allow no metric.
        """
        labels = np.array(self._labels)
        sides: dict[str, dict[str, float]] = {name: {} for name in self._scores}
        for name, own in sides.items():
            if 0 < labels.sum() < len(labels):
                own["image_auroc"] = auroc(labels, np.array(self._scores[name]))
            if self._masks:
                own["aupro_30"] = self._curves[name].compute([_LIMIT]).aupro[_LIMIT]
        expected = sides.get("torch", {})
        if not expected:
            raise DataError(
                f"the test has {int((labels == 0).sum())} good and {int(labels.sum())} defective images and "
                f"{self._masks} masks: expected good and defective ones, or masks, to say what the file loses"
            )
        others = [own for name, own in sides.items() if name != "torch"]
        loss = {key: value - min(own[key] for own in others) for key, value in expected.items()}
        return {"images": len(labels), **sides, "loss": loss, "max_loss": max_loss}
