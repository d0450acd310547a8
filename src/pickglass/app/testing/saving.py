"""What a test found and what is true, as arrays in one file, for figures and comparisons of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pickglass.app.testing.evaluate import Evaluation
from pickglass.data.files import written_whole
from pickglass.result import Found, Prediction

__all__ = ["saved_arrays", "write_arrays"]


def saved_arrays(prediction: Prediction, evaluation: Evaluation) -> dict[str, npt.ArrayLike]:
    """Return all arrays of a test of N images.

    Returns:
        ``scores (N,)`` and ``maps (N, h, w)`` float32, on the model's grid; ``paths (N,)``; ``labels (N,)``: 0 good, 1
        defective, -1 unknown; ``types (N,)`` and ``groups (N,)``, empty where there is none; ``sizes (N, 2)``: height
        and width of each image; ``windows (N, 4)``: top, left, bottom, right of the image on the map, as shares of it;
        ``thresholds (3,)``: of bad, unsure and a pixel, nan where the model has none; ``masks/I (H, W)`` bool for each
        image I that has a mask, at its original size, read when it is asked for; ``curves/roc_fpr``,
        ``curves/roc_tpr``, ``curves/pro_fpr`` and ``curves/pro``, and with saturation areas ``curves/spro_fpr`` and
        ``curves/spro``, where they are defined.
    """
    calibration = prediction.calibration
    limits = (
        (None, None, None)
        if calibration is None
        else (calibration.image_threshold, calibration.unsure_threshold, calibration.pixel_threshold)
    )
    rows = prediction.rows
    arrays: dict[str, npt.ArrayLike] = {
        "scores": prediction.scores,
        "maps": np.stack(prediction.maps),
        "paths": np.array([row.path for row in rows]),
        "labels": np.array([-1 if row.label is None else row.label for row in rows]),
        "types": np.array([row.defect or "" for row in rows]),
        "groups": np.array([row.group or "" for row in rows]),
        "sizes": np.array(prediction.sizes),
        "windows": np.array([found.window for found in prediction]),
        "thresholds": np.array([np.nan if limit is None else limit for limit in limits]),
    }
    for i, found in enumerate(prediction):
        if found.row.has_mask:
            arrays[f"masks/{i}"] = _Mask(found)
    for names, curve in (
        (("roc_fpr", "roc_tpr"), None if evaluation.roc is None else (evaluation.roc.fpr, evaluation.roc.tpr)),
        (("pro_fpr", "pro"), None if evaluation.pixels is None else (evaluation.pixels.fpr, evaluation.pixels.pro)),
        (
            ("spro_fpr", "spro"),
            None if evaluation.saturated is None else (evaluation.saturated.fpr, evaluation.saturated.spro),
        ),
    ):
        if curve is not None:
            arrays |= {f"curves/{name}": values for name, values in zip(names, curve, strict=True)}
    return arrays


class _Mask:
    """The mask of an image is read when numpy writes it: one at a time is held, however many images there are."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self._found.row.truth(self._found.size), dtype)


def write_arrays(target: Path, models: Mapping[str, Mapping[str, npt.ArrayLike]]) -> None:
    """Write arrays as ``.npz``, whole or not at all.

    Args:
        target: the file.
        models: name of each model -> its arrays, which stand under ``NAME/``; under no name where that is empty.
    """
    arrays: dict[str, Any] = {
        f"{model}/{name}" if model else name: values for model, own in models.items() for name, values in own.items()
    }
    with written_whole(target) as temporary:
        np.savez_compressed(temporary, **arrays)
