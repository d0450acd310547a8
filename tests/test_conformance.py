"""Every method of the registry through every mode of the conformance suite: a new method gets all of it by its line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

import pickglass as pg
from least_training import LEAST, few_methods
from pickglass.errors import DataError, InputError, UnknownName
from pickglass.features.batch import Batch
from pickglass.methods import METHODS
from pickglass.testing import CHECKS, MODES, check_detector, textures

SIDE, CELLS, N = 64, 64, 8


def quick(method: str) -> pg.Detector:
    """A small detector with the method's own quick settings."""
    cls = METHODS[method]
    return cls.configured({"size": SIDE, **cls.quick_settings(N, CELLS)})


def shortest(method: str) -> pg.Detector:
    """The same with as little training as there can be, for modes in which nothing hangs on how much was learned."""
    settings = quick(method).configuration()
    least = {name: value for name, value in LEAST.items() if name in settings}
    if "steps" in settings and "epochs" not in "".join(least):
        least["steps"] = 1
    return METHODS[method].configured({**settings, **least})


LEARNED = ["plain", "tiled"]  # painted defects are to stand out in these

# A bank, its like with places, a flow, a student, what is discriminative and what is projected; the others are students
# as well, and a combination is made of such as these.
SOON = ("patchcore", "padim", "fastflow", "reverse_distillation", "supersimplenet", "subspace")


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods(*SOON))
def test_conformance(method: str) -> None:
    passed = check_detector(quick(method), modes=["plain"], n_images=N)
    assert passed == [f"plain: {name}" for name in CHECKS["plain"]]


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods())
def test_conformance_in_tiles_that_learn(method: str) -> None:
    passed = check_detector(quick(method), modes=["tiled"], n_images=N)
    assert passed == [f"tiled: {name}" for name in CHECKS["tiled"]]


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods())
def test_conformance_in_the_other_modes(method: str) -> None:
    others = [mode for mode in MODES if mode not in LEARNED]
    passed = check_detector(shortest(method), modes=others, n_images=N)
    assert passed == [f"{mode}: {name}" for mode in others for name in CHECKS[mode]]


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
    """Its maps are those of the batch before."""

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores, maps = super().score(batch)
        before, self.__dict__["before"] = self.__dict__.get("before", maps), maps
        return scores, before[:1].expand_as(maps)


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
@pytest.mark.slow
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
    assert units["patchcore"] == units["padim"] == units["subspace"] == 0
    assert units["stfpm"] == 300 * pg.STFPM().batch
    assert pg.STFPM(epochs=7).work_units(10) == 70
    assert units["asymmetric_student_teacher"] == 10 * 2 * pg.AsymmetricStudentTeacher().teacher_epochs
    assert units["efficientad"] == pg.EfficientAD().steps
    assert np.isfinite(list(units.values())).all()


# -- images from which nothing can be learned --------------------------------------------------------------------------


def grey(*values: int) -> np.ndarray:
    return np.stack([np.full((SIDE, SIDE, 3), value, np.uint8) for value in values])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_images_that_show_nothing_are_refused(method: str) -> None:
    blank = "good images are blank: within each of the 8 all pixels have one value.*give images that show the part"
    for images in (grey(*[0] * 8), grey(*[77] * 8), grey(*range(100, 108))):
        with pytest.raises(DataError, match=blank):
            quick(method).fit(images, engine="torch")
    copies = np.repeat(textures(1, SIDE), 8, axis=0)
    with pytest.raises(DataError, match=r"the 8 good images are one and the same picture.*give images of different"):
        quick(method).fit(copies, engine="torch")


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods("patchcore", "padim", "fastflow"))
def test_one_to_three_images_make_a_sound_fit_or_one_clear_error(method: str) -> None:
    images = textures(3, SIDE)
    needed = {"patchcore": 1, "subspace": 1}.get(method, 3)
    for n in (1, 2, 3):
        detector = shortest(method)
        if n < needed:
            with pytest.raises(DataError, match=f"needs at least 3 good images .* but the number given is {n} "):
                detector.fit(images[:n], engine="torch")
            continue
        scores = detector.fit(images[:n], engine="torch").predict(images, engine="torch").scores
        assert np.isfinite(scores).all()
        assert detector.calibration is not None
        assert (detector.calibration.image_threshold is None) == (n == 1)


def test_two_images_that_differ_in_one_pixel_are_two() -> None:
    images = np.repeat(textures(1, SIDE), 4, axis=0)
    images[3, 0, 0] += 1
    assert np.isfinite(pg.PatchCore(size=SIDE).fit(images, engine="torch").predict(images, engine="torch").scores).all()


def test_a_bank_of_all_patches_is_a_fit_though_its_own_images_have_distance_zero() -> None:
    images = textures(4, SIDE)
    detector = pg.PatchCore(size=SIDE, ratio=1.0).fit(images, calibrate=0, engine="torch")
    assert float(detector.predict(images, engine="torch").scores.max()) == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_the_bank_of_few_images_has_a_floor() -> None:
    for n, kept in ((1, 7), (5, 7), (10, 7), (20, 13)):  # 64 patches an image; 1 % of 10 images are 6.4
        detector = pg.PatchCore(size=SIDE, layers=["stage3"]).fit(textures(n, SIDE), calibrate=0, engine="torch")
        assert detector.bank is not None
        assert detector.bank.shape[1] == kept
