"""What a test says in plain words follows from its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pickglass as pg
from pickglass.app.testing.telling import next_steps, verdict_of
from pickglass.calibration import Calibration

ESTIMATE = Calibration(
    "estimate", 1.0, 1.0, r=1, n=400, sentence="about 5 % of good parts will be flagged, an estimate without a promise"
)
HELD = replace(ESTIMATE, promise="tolerance", false_alarm_bound=0.01, confidence=0.95)


def judged(good: list[float], bad: list[float], calibration: Calibration | None, side: int = 0) -> pg.Prediction:
    """Make a prediction; with ``side``, bad images have a square defect so large, and a cell covers 8 pixels."""
    scores = [*good, *bad]
    labels = [0] * len(good) + [1] * len(bad)
    masks = None
    if side:
        masks = np.zeros((len(scores), 64, 64), bool)
        masks[len(good) :, 10 : 10 + side, 20 : 20 + side] = True
    maps = np.array(scores, np.float32)[:, None, None] * np.ones((8, 8), np.float32)
    found = pg.Prediction.from_arrays(scores, maps, labels, masks)
    return replace(found, calibration=calibration)


def steps_of(prediction: pg.Prediction, **more: object) -> str:
    steps = next_steps(prediction, pg.evaluate(prediction).overall, **more)  # type: ignore[arg-type]
    return "\n".join(f"{step['text']} {step['command'] or ''}" for step in steps)


@pytest.mark.parametrize(
    ("calibration", "promise"),
    [
        (ESTIMATE, "expected, not promised: about 5 % of good parts will be flagged."),
        (HELD, "promised: at most 1 % of good parts flagged, with 95 % confidence."),
        (replace(HELD, promise="marginal", confidence=None), "promised: on average at most 1 % of good parts flagged."),
        (Calibration("fixed", 1.0, None), "the threshold promises no rate of false alarms."),
    ],
)
def test_the_verdict_counts_mistakes_and_names_the_promise(calibration: Calibration, promise: str) -> None:
    metrics = pg.evaluate(judged([0.1, 0.2, 1.5], [0.3, 2.0], calibration)).overall
    assert verdict_of(metrics, calibration) == f"Missed 1 of 2 defective images, flagged 1 of 3 good images; {promise}"


def test_the_verdict_without_threshold_kind_or_labels() -> None:
    only_good = pg.evaluate(judged([0.1, 1.5], [], HELD)).overall
    assert verdict_of(only_good, HELD).startswith("No defective image to judge, flagged 1 of 2 good images; promised")
    bare = pg.evaluate(judged([0.1], [1.5], None)).overall
    assert verdict_of(bare, None) == "No verdicts on 1 good and 1 defective images: the model has no threshold."
    lower = replace(HELD, unsure_threshold=0.5)
    unsure = pg.evaluate(judged([0.1], [0.7, 2.0], lower)).overall
    assert "left 1 of 2 defective images and 0 of 1 good image for a person to look at; " in verdict_of(unsure, lower)
    nobody = {**bare, "n_good": 0, "n_defective": 0}
    assert verdict_of(nobody, HELD).startswith("Nobody knows")  # type: ignore[arg-type]


def test_missed_defects_of_few_cells_are_named_and_large_ones_are_not() -> None:
    good = list(np.linspace(0.1, 0.6, 40))
    said = steps_of(judged(good, [0.3, 0.4, 2.0], HELD, side=8), data="my data")
    assert "2 of 2 missed defects with a mask are about 8 px long and cover about 1 value of the map" in said
    assert "pickglass advise 'my data' --defect-px 8" in said
    assert "advise" not in steps_of(judged(good, [0.3, 0.4, 2.0], HELD, side=30))
    assert "advise" not in steps_of(judged(good, [2.0, 2.0, 2.0], HELD, side=8))  # tiny, but found


def test_each_step_has_its_reason_and_is_silent_without_it() -> None:
    good, bad = list(np.linspace(0.1, 0.9, 40)), list(np.linspace(2.0, 3.0, 40))
    fine = steps_of(judged(good, bad, HELD))
    assert fine == "Nothing stands out here. Judge parts of another day or lot before you rely on it. "
    assert "pickglass drift" in steps_of(judged([*good, 1.5, 1.6, 1.7], bad, HELD))
    assert "A threshold of 0.9 would have missed 0 and flagged 0" in steps_of(judged(good, [*bad, 0.95], HELD))
    overlap = steps_of(judged(good, good, HELD))
    assert "overlap (image AUROC 0.50)" in overlap
    assert "pickglass explain MODEL" in overlap
    assert "takes 59 that were not learned, at most 1 % takes 299" in steps_of(judged(good, bad, replace(HELD, n=50)))
    assert "no threshold" in steps_of(judged(good, bad, None))
    few = steps_of(judged(good, bad[:8], HELD))
    assert "0 of 8 defective images missed can mean anything from 0 to 37 %" in few
    names = [{"path": str(Path("a") / f"{i}.png")} for i in range(5)]
    contaminated = steps_of(judged(good, bad, HELD), suspicious=names)
    assert "0.png, 1.png, 2.png and 2 more looked like none of the other images" in contaminated
    assert "--drop-suspicious" in contaminated
