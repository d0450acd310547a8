"""A fitted model answers as scikit-learn's outlier detectors do, whose signs are the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from pickglass.data import Channels
from pickglass.errors import DataError, InputError
from pickglass.result import Prediction
from pickglass.runtime.compute import ComputeArguments, Progress

__all__ = ["OutlierScores"]

FloatArray = npt.NDArray[np.float64]


class OutlierScores:
    """A model with ``predict`` gets scikit-learn's ``score_samples`` and ``decision_function``."""

    def predict(
        self,
        data: Any,
        *,
        channels: Channels = "rgb",
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Prediction:
        """Judge images."""
        raise NotImplementedError

    def score_samples(self, data: Any, **compute: Unpack[ComputeArguments]) -> FloatArray:
        """Return how normal images are, as scikit-learn counts: the score times -1, **higher = more normal**.

        Args:
            data: images, as for ``predict``.
            compute: as in ``predict``.

        Returns:
            (N,) float64, one for each image, in order.

        Raises:
            DataError: images that cannot be read; all are listed. ``predict`` keeps the rest.

        Example:
            ``sklearn.metrics.roc_auc_score(labels, -detector.score_samples(images))``
        """
        return -_scores(self.predict(data, **compute))

    def decision_function(self, data: Any, **compute: Unpack[ComputeArguments]) -> FloatArray:
        """Return the image threshold minus the score, as scikit-learn counts: **negative where the verdict is bad**.

        Args:
            data: images, as for ``predict``.
            compute: as in ``predict``.

        Returns:
            (N,) float64, one for each image, in order; 0 at the threshold, which is still good.

        Raises:
            DataError: images that cannot be read; all are listed. ``predict`` keeps the rest.
            InputError: the model has no threshold.
        """
        found = self.predict(data, **compute)
        if found.calibration is None or found.calibration.image_threshold is None:
            raise InputError(
                "the model has no threshold, so no image is an outlier: fit with calibrate=0.1, set one with "
                "set_thresholds(image=...), or use score_samples"
            )
        return found.calibration.image_threshold - _scores(found)


def _scores(found: Prediction) -> FloatArray:
    if found.failed:  # an array has no place for them, and NaN would compare as no outlier
        raise DataError(f"{len(found.failed)} images cannot be read: use predict, which keeps the rest", found.failed)
    return np.array([item.score for item in found], np.float64)
