"""A score that is no number is never good, and a fit that learned nothing says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pickglass as pg
from pickglass.calibration import usual_threshold
from pickglass.detectors.method import FitContext
from pickglass.errors import DataError
from pickglass.features.batch import Batch
from pickglass.testing import textures

QUICK: dict[str, Any] = {"device": "cpu", "engine": "torch"}
BLACK = [np.zeros((64, 64, 3), np.uint8)] * 8


class Contrast(pg.Detector):
    """Scores an image by its mean over its deviation, which is no number where it is black."""

    method = "contrast"
    reads = ("images",)

    def __init__(self, *, size: int = 64) -> None:
        super().__init__(backbone="resnet18", layers=["layer1"], weights="random", size=size, smoothing=0.0)

    def begin_fit(self, context: FitContext) -> None:
        """Nothing is learned."""

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, P) and (B, P, h, w)."""
        assert batch.images is not None
        maps = batch.images.mean(2)  # (B, P, H, W)
        return maps.mean((2, 3)) / maps.flatten(2).std(2), maps


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_never_good(score: float) -> None:
    calibration = usual_threshold([1.0, 2.0], [1.0, 2.0])
    assert calibration.verdict(2.0) == "good"
    assert calibration.verdict(score) == "bad"
    assert replace(calibration, image_threshold=score).verdict(1.0) == ("good" if score > 1 else "bad")
    assert replace(calibration, image_threshold=None).verdict(score) is None


def test_an_image_without_a_score_has_failed() -> None:
    good = textures(8, 64)
    prediction = Contrast().fit(good, **QUICK).predict([good[0], BLACK[0], good[1]], **QUICK)
    assert [row.path for row in prediction.rows] == ["array:0", "array:2"]
    ((path, reason),) = prediction.failed
    assert path == "array:1"
    assert reason.startswith("its score is nan, no number, so nothing is known of the part")


class Same(Contrast):
    """Gives every image the same score and map."""

    value = 0.0

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, P) and (B, P, h, w)."""
        scores, maps = super().score(batch)
        return torch.full_like(scores, self.value), torch.full_like(maps, self.value)


@pytest.mark.parametrize("calibrate", [0.1, 0.0])
def test_a_fit_whose_own_images_get_no_score_fails(calibrate: float) -> None:
    detector = Same()
    detector.value = float("nan")
    with pytest.raises(DataError, match=r"Same gives .* scores that are no numbers \(nan.*look at the images"):
        detector.fit(textures(8, 64), calibrate=calibrate, **QUICK)


def test_a_fit_that_learned_one_value_for_everything_fails() -> None:
    with pytest.raises(DataError, match=r"one and the same value, 0.*learned nothing"):
        Same().fit(textures(8, 64), **QUICK)
    Same().fit(textures(8, 64), calibrate=0, **QUICK)  # images that were fitted may well have one score


def test_a_fit_on_black_images_fails() -> None:
    with pytest.raises(DataError, match="blank"):
        pg.PatchCore(size=64, backbone="resnet18", layers=["layer1"], weights="random").fit(BLACK, **QUICK)


def test_a_fit_of_ordinary_images_goes_on() -> None:
    fitted = Contrast().fit(textures(8, 64), calibrate=0, **QUICK)
    assert fitted.calibration is not None
    assert fitted.calibration.image_threshold is None
    assert torch.isfinite(torch.tensor(fitted.predict(textures(2, 64), **QUICK).scores)).all()
