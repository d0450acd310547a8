"""Images and scores at the edge of what numbers hold: each gives the right value or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pickglass as pg
from pickglass.calibration import Calibration
from pickglass.data import Row, Table
from pickglass.errors import PickglassError
from pickglass.methods import find_method
from pickglass.metrics import aupro, auroc
from pickglass.testing import textures

GOOD = textures(6, 48)
METHODS: dict[str, dict[str, Any]] = {
    "patchcore": {"layers": ["stage2"], "size": 48},
    "padim": {"layers": ["stage2"], "size": 48, "dims": 6},
}


def fitted(images: Any = GOOD, method: str = "patchcore", **more: Any) -> pg.Detector:
    return find_method(method).configured({**METHODS[method], **more}).fit(images, engine="torch")


@pytest.fixture(scope="module")
def detector() -> pg.Detector:
    return fitted()


def of(value: float, kind: Any = np.uint8, shape: tuple[int, ...] = (48, 48)) -> np.ndarray:
    return np.full(shape, value, kind)


def with_one(value: float) -> np.ndarray:
    image = (GOOD[0] / 255).astype(np.float32)
    image[3, 4] = value
    return image


JUDGED: dict[str, np.ndarray | Callable[[], np.ndarray]] = {
    "black": of(0),
    "white": of(255),
    "constant": of(93),
    "saturated": np.clip(GOOD[0].astype(int) * 8, 0, 255).astype(np.uint8),
    "black, 16 bit": of(0, np.uint16),
    "white, 16 bit": of(65535, np.uint16),
    "black, float": of(0.0, np.float32),
    "1 x 20,000 px": of(93, shape=(1, 20_000)),
    "20,000 x 1 px": of(93, shape=(20_000, 1)),
    "1 x 1 px": of(93, shape=(1, 1)),
}
REFUSED = {"NaN": np.nan, "infinite": np.inf, "minus infinite": -np.inf, "beyond float16": 1e9}


@pytest.mark.parametrize("name", JUDGED)
def test_an_odd_image_has_a_finite_score_and_map(detector: pg.Detector, name: str) -> None:
    image = JUDGED[name]
    found = detector.predict([image, GOOD[0]], engine="torch")
    assert not found.failed
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.maps[0]).all()
    alone = detector.predict([GOOD[0]], engine="torch").scores[0]
    assert found.scores[1] == pytest.approx(alone, rel=1e-5)  # the other image of its batch


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_holds_no_numbers_fails_alone(detector: pg.Detector, name: str) -> None:
    found = detector.predict([with_one(REFUSED[name]), GOOD[0]], engine="torch")
    assert len(found) == len(found.failed) == 1
    assert "\n" not in found.failed[0].error


LEARNED: dict[str, tuple[np.ndarray, dict[str, str | None]]] = {
    "one": (GOOD[:1], {"patchcore": None, "padim": "needs at least 3 good images"}),
    "identical": (np.repeat(GOOD[:1], 6, axis=0), dict.fromkeys(METHODS, "are one and the same picture")),
    "constant": (np.stack([of(7)] * 6), dict.fromkeys(METHODS, "are blank: within each of the 6")),
    "black": (np.stack([of(0)] * 6), dict.fromkeys(METHODS, "are blank: within each of the 6")),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LEARNED)
def test_images_that_say_little_are_learned_or_refused(method: str, name: str) -> None:
    images, refused = LEARNED[name]
    if refused[method] is None:
        found = fitted(images, method).predict([*images[:1], of(255)], engine="torch")
        assert np.isfinite(found.scores).all()
        assert found.scores[1] > found.scores[0]
        return
    with pytest.raises(PickglassError, match=str(refused[method])) as caught:
        fitted(images, method)
    assert len(str(caught.value)) < 500


def test_a_single_cell(detector: pg.Detector) -> None:
    model = fitted(textures(6, 4), size=4)
    found = model.predict([textures(1, 4)[0], of(255, shape=(4, 4))], engine="torch")
    assert found.maps[0].size == 1
    assert np.isfinite(found.scores).all()


def test_a_score_at_a_threshold_is_good() -> None:
    one = Calibration("fixed", 1.0, 1.0, unsure_threshold=0.5)
    above = np.nextafter(1.0, 2.0), np.nextafter(0.5, 1.0)
    assert [one.verdict(score) for score in (0.5, above[1], 1.0, above[0])] == ["good", "unsure", "unsure", "bad"]


TIES: list[tuple[list[int], list[float], float]] = [
    ([0, 0, 1, 1], [1.0, 1.0, 1.0, 1.0], 0.5),
    ([0, 0, 1, 1], [0.0, 1.0, 1.0, 2.0], 0.875),
    ([0, 1], [np.float32(1e-45), 0.0], 0.0),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("labels", "scores", "expected"), TIES)
def test_ties_count_half_in_auroc(labels: list[int], scores: list[float], expected: float) -> None:
    found = auroc(np.array(labels), np.array(scores))
    assert found == pytest.approx(expected, abs=1e-12)


def test_ties_and_empty_masks_in_aupro() -> None:
    mask = np.zeros((4, 10, 10), bool)
    mask[0, 2:5, 2:5] = True
    same = np.ones((4, 10, 10), np.float32)
    # all cells alike: the curve is one line from (0, 0) to (1, 1), so up to a limit its mean height is half of that
    assert aupro(same, mask, limit=0.3) == pytest.approx(0.15, abs=1e-9)
    assert aupro(mask.astype(np.float32), mask, limit=0.3) == pytest.approx(1.0, abs=1e-9)
    assert np.isnan(aupro(same, np.zeros_like(mask), limit=0.3))


def test_metrics_of_a_test_whose_masks_are_all_empty(detector: pg.Detector) -> None:
    rows = [Row(f"{i}.png", label=int(i > 2), mask=None, pixels=image, role="test") for i, image in enumerate(GOOD)]
    metrics = pg.evaluate(detector.predict(Table(rows), engine="torch"))
    assert metrics["aupro_30"] is None or np.isnan(metrics["aupro_30"])
    assert 0 <= metrics["image_auroc"] <= 1


def test_scores_beyond_float16_stay_what_they_are() -> None:
    """What is kept in half the bytes, as the galleries of studies are, is shares of a range, never a raw score."""
    huge = np.array([[1e5, 7e4], [0.0, 1.0]], np.float32)
    found = pg.Prediction.from_arrays(scores=np.array([1e5, 2e30], np.float32), maps=np.stack([huge, huge * 1e20]))
    assert found.scores.tolist() == [1e5, float(np.float32(2e30))]
    assert np.isfinite(found.maps).all()
