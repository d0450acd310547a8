"""Every method of the registry through every mode of the conformance suite: a new method gets all of it by its line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

import pickglass as pg
from pickglass.errors import InputError, UnknownName
from pickglass.features.batch import Batch
from pickglass.methods import METHODS
from pickglass.testing import CHECKS, MODES, check_detector

SIDE, CELLS, N = 64, 64, 8


def quick(method: str) -> pg.Detector:
    """A small detector with the method's own quick settings."""
    cls = METHODS[method]
    return cls.configured({"size": SIDE, **cls.quick_settings(N, CELLS)})


@pytest.mark.parametrize("method", METHODS)
def test_conformance(method: str) -> None:
    passed = check_detector(quick(method), n_images=N)
    assert passed == [f"{mode}: {name}" for mode in MODES for name in CHECKS[mode]]


def test_every_mode_has_checks() -> None:
    assert list(CHECKS) == list(MODES)
    assert all(CHECKS.values())


def test_modes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown mode of check_detector 'shared'\. The nearest are: shared heads"):
        check_detector(pg.PatchCore(size=SIDE), modes=["shared"])
    tiled = pg.PatchCore(size=2 * SIDE).tiled(tile=SIDE)
    with pytest.raises(InputError, match="'tiled' would tile it: leave it out"):
        check_detector(tiled, modes=["plain", "tiled"])


class _Forgets(pg.PatchCore):
    """Its scores are those of the batch before."""

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores, maps = super().score(batch)
        before, self.__dict__["before"] = self.__dict__.get("before", scores), scores
        return before[: len(scores)].expand(len(scores), -1), maps


class _Raises(pg.PatchCore):
    """It cannot judge tiles."""

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.levels[0].shape[1] > 1:
            raise RuntimeError("one position only")
        return super().score(batch)


class _Idle(pg.PatchCore):
    """It says that it trains."""

    def work_units(self, n_images: int) -> float:
        return float(n_images)


@pytest.mark.parametrize(
    ("cls", "modes", "message"),
    [
        (_Forgets, ["plain"], "^plain: .*differ"),
        (_Raises, ["tiled"], "^tiled: tiles see defects: RuntimeError: one position only"),
        (_Idle, ["plain"], "^plain: answers what others ask: work_units"),
    ],
)
def test_a_detector_that_is_wrong_is_named_with_mode_and_check(
    cls: type[pg.PatchCore], modes: list[str], message: str
) -> None:
    settings: dict[str, Any] = {"size": SIDE, **cls.quick_settings(8, CELLS)}
    with pytest.raises(AssertionError, match=message):
        check_detector(cls(**settings), modes=modes, n_images=8)


def test_quick_settings_and_work_units_are_the_methods_own() -> None:
    assert pg.PatchCore.quick_settings(100, 1024) == {"sample": 200, "ratio": 400 / 20_000}
    assert pg.PatchCore.quick_settings(4, 64) == {"sample": 64, "ratio": 1.0}
    units = {name: cls().work_units(10) for name, cls in METHODS.items()}  # type: ignore[call-arg]
    assert units["patchcore"] == units["padim"] == 0
    assert units["stfpm"] == 10 * pg.STFPM().epochs
    assert units["asymmetric_student_teacher"] == 10 * 2 * pg.AsymmetricStudentTeacher().teacher_epochs
    assert units["efficientad"] == pg.EfficientAD().steps
    assert np.isfinite(list(units.values())).all()
