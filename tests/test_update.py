"""A model learns further images: what is exact, what is bounded, what becomes of the thresholds, and what stays."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pickglass as pg
from least_training import few_methods
from pickglass.app import update as use_case
from pickglass.app.fit import FitRequest, fit
from pickglass.app.update import UpdateRequest, update
from pickglass.calibration import Evidence, usual_threshold
from pickglass.calibration.drift import Sample, find_drift
from pickglass.calibration.promises import set_by_hand
from pickglass.calibration.renewal import renewed
from pickglass.cli.main import main
from pickglass.data import Row, Table, image_digest, paint
from pickglass.detectors.method import FitContext
from pickglass.errors import DataError, InputError, NotFitted
from pickglass.features.batch import Batch
from pickglass.methods import METHODS
from pickglass.nn.search.coreset import greedy_coreset
from pickglass.nn.training.plan import Plan
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.model_header import read_model_header
from pickglass.testing import textures

SIDE = 64
TORCH: dict[str, Any] = {"engine": "torch", "workers": 1}
LEAST: dict[str, Any] = {
    "epochs": 1,
    "teacher_epochs": 1,
    "student_epochs": 1,
    "natural": "none",
    "parts": ("patchcore", "padim"),  # test_combined has those that cannot be updated
}


def shortest(method: str) -> pg.Detector:
    """A small detector that trains as little as there can be."""
    cls = METHODS[method]
    settings = cls.configured({"size": SIDE, **cls.quick_settings(8, 64)}).configuration()
    least = {name: value for name, value in LEAST.items() if name in settings}
    return cls.configured({**settings, **least})


def bright(n: int, seed: int = 5) -> np.ndarray:
    """Good images of a new look."""
    images = textures(n, SIDE, seed=seed).astype(int)
    images[:, : SIDE // 2] += 60
    return images.clip(0, 255).astype(np.uint8)


def rows(images: np.ndarray, name: str = "new", **more: Any) -> Table:
    return Table([Row(f"{name}{i}", "train", 0, pixels=image, **more) for i, image in enumerate(images)])


# -- every method ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods("patchcore", "padim", "fastflow"))
def test_every_method_learns_on(method: str, tmp_path: Path) -> None:
    detector = shortest(method).fit(textures(12, SIDE), observers=[pg.DriftSample()], **TORCH)
    old_id, calibration, reference = detector.model_id(), detector.calibration, detector.reference
    assert calibration is not None
    assert reference is not None
    coming = bright(3, seed=9)
    loaded = pg.load(detector.save(tmp_path / "old.safetensors"))  # a file's networks can be trained on, too
    known = loaded.provenance.fitted_images
    assert known is not None
    loaded.update(bright(6), earlier=textures(12, SIDE), observers=[pg.DriftSample()], **TORCH)
    now, provenance = loaded.calibration, loaded.provenance
    assert now is not None
    assert provenance.updates is not None
    told = provenance.updates[0]
    assert told["learned"] + told["validated"] + told["held_back"] == 6
    assert provenance.fitted_images is not None
    assert provenance.fitted_images[: len(known)] == known
    assert len(provenance.fitted_images) == len(known) + told["learned"] + told["validated"]
    assert loaded.model_id() != old_id
    assert [change.command for change in loaded.history] == ["fit", "update"]
    assert (loaded.model_version, loaded.history[-1].learned) == (2, told["learned"])
    assert now.image_threshold is not None
    assert np.isfinite(now.image_threshold)
    assert "good parts like the new ones will be flagged" in now.sentence
    assert loaded.reference is not None
    assert len(loaded.reference) > len(reference)
    scores = loaded.predict(coming, **TORCH).scores
    assert np.isfinite(scores).all()
    if not loaded.trains:
        assert scores.mean() < detector.predict(coming, **TORCH).scores.mean()
    again = pg.load(loaded.save(tmp_path / "new.safetensors"))
    np.testing.assert_array_equal(again.predict(coming, **TORCH).scores, scores)
    assert again.provenance == loaded.provenance
    assert again.history == loaded.history


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "heads"),
    [
        ("patchcore", 2),
        ("fastflow", None),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("patchcore", None), ("padim", None), ("padim", 2), ("fastflow", 2))
        ),
    ],
)
def test_tiles_keep_their_heads(method: str, heads: int | None) -> None:
    tiling = {} if heads is None else {"heads": heads}
    detector = shortest(method).tiled(size=(SIDE, 3 * SIDE), tile=SIDE, stride=SIDE, **tiling)
    wide = np.concatenate([textures(8, SIDE, seed=i) for i in range(3)], axis=2)
    detector.fit(wide, **TORCH)
    assert detector.tiles is not None
    assigned = detector.tiles.assignment.clone() if hasattr(detector.tiles, "assignment") else None
    detector.update(np.concatenate([bright(5, seed=i) for i in range(3)], axis=2), **TORCH)
    if assigned is not None:
        assert torch.equal(detector.tiles.assignment, assigned)
    assert np.isfinite(detector.predict(wide[:2], **TORCH).scores).all()


def test_positions_learned_in_groups_go_on_in_groups() -> None:
    wide = np.concatenate([textures(8, SIDE, seed=i) for i in range(2)], axis=2)
    new = np.concatenate([bright(4, seed=i) for i in range(2)], axis=2)
    scores = []
    for at_once in (None, 1):
        detector = pg.PatchCore(ratio=1.0).tiled(size=(SIDE, 2 * SIDE), tile=SIDE, stride=SIDE, at_once=at_once)
        scores.append(detector.fit(wide, **TORCH).update(new, **TORCH).predict(new[:2], **TORCH).scores)
        assert ("groups" in (detector.provenance.updates or ({},))[0]["details"]) == (at_once is not None)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


class Fixed(pg.PatchCore):
    """A method that does not say how it learns on."""

    method = "fixed"
    begin_update = pg.Detector.begin_update


def test_a_method_that_cannot_says_so() -> None:
    detector = Fixed(size=SIDE).fit(textures(6, SIDE), **TORCH)
    with pytest.raises(InputError, match=r"Fixed cannot be updated: fit a new model on the old and the new images"):
        detector.update(bright(3), **TORCH)
    with pytest.raises(NotFitted, match=r"call \.fit"):
        pg.PatchCore(size=SIDE).update(bright(3), **TORCH)


def test_a_training_goes_on_for_a_quarter_and_its_first_weights_compete() -> None:
    plan = Plan(epochs=25, lr=0.5, pick="best").further()
    assert (plan.epochs, plan.steps, plan.lr, plan.start) == (7, None, 0.05, True)
    plan = Plan(steps=5000, lr=0.5).further()
    assert (plan.epochs, plan.steps, plan.start) == (None, 1250, False)


# -- PaDiM: exact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 40])  # few images are kept in another form
@pytest.mark.parametrize("reduce", ["subset", "orthogonal"])
@pytest.mark.parametrize("region", [False, True])
def test_padim_updated_is_padim_fitted_on_both(n: int, reduce: Any, region: bool) -> None:
    shapes = [(10, 8, 8), (14, 4, 4)]

    def batch(images: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(images, 2, 1, 4, 4, generator=generator)
        fine = torch.randn(images, 2, 10, 8, 8, generator=generator) + shared.repeat(1, 1, 1, 2, 2)
        coarse = 2 * torch.randn(images, 2, 14, 4, 4, generator=generator) + shared + seed
        keep = torch.ones(images, 2, 64, 64, dtype=torch.bool)
        keep[..., 40:] = not region
        return Batch((fine, coarse), None, keep if region else None)

    def context(images: int, before: int = 0) -> FitContext:
        units = tuple(range(images))
        return FitContext(images, shapes, 2, 0, 1.0, lambda *_: None, units=units, before=before)

    old, new, coming = batch(n, 1), batch(9, 2), batch(3, 3)
    both = tuple(torch.cat(pair) for pair in zip(old.levels, new.levels, strict=True))
    keep = torch.cat([old.keep, new.keep]) if old.keep is not None and new.keep is not None else None
    maps = []
    for parts, whole in (((old, new), False), ((Batch(both, None, keep),), True)):
        detector = pg.PaDiM(size=64, dims=16, smoothing=0.0, reduce=reduce)
        detector.build(shapes, 2, 0)
        detector.begin_fit(context(n + 9 if whole else n))
        detector.observe(parts[0])
        detector.end_fit()
        if not whole:
            detector.begin_update(context(9, n))
            detector.observe(parts[1])
            detector.end_fit()
        assert detector.counts is not None
        assert float(detector.counts.max()) == n + 9
        maps.append(detector.score(coming)[1])
    torch.testing.assert_close(maps[0], maps[1], rtol=5e-3 if n == 6 else 1e-4, atol=1e-4)


def test_padim_left_out_scores_are_those_of_a_fit_on_both() -> None:
    old, new = textures(30, SIDE), bright(12)
    whole = pg.PaDiM(size=SIDE, dims=12, place_scale=False).fit(np.concatenate([old, new]), **TORCH)
    updated = pg.PaDiM(size=SIDE, dims=12, place_scale=False).fit(old, **TORCH).update(new, earlier=old, **TORCH)
    assert whole.calibration is not None
    assert updated.calibration is not None
    expected = [*whole.calibration.scores[30:], *whole.calibration.scores[:30]]
    np.testing.assert_allclose(updated.calibration.scores, expected, rtol=1e-3)
    assert updated.provenance.updates is not None
    assert (updated.provenance.updates[0]["earlier_judged"], updated.provenance.updates[0]["earlier_unused"]) == (30, 0)


def test_padim_with_regions_of_each_image_or_of_an_older_pickglass_says_why_not() -> None:
    masks = [np.zeros((SIDE, SIDE), np.uint8) for _ in range(8)]
    for i, mask in enumerate(masks):
        mask[8 * (i % 3) :] = 255
    images = rows(textures(8, SIDE))
    table = Table([replace(row, roi=mask) for row, mask in zip(images, masks, strict=True)])
    detector = pg.PaDiM(size=SIDE, dims=5).fit(table, calibrate=0.25, **TORCH)
    given = Table([replace(row, roi=mask) for row, mask in zip(rows(bright(6)), masks, strict=False)])
    with pytest.raises(InputError, match=r"regions of interest of their own.*fit it anew"):
        detector.update(given, **TORCH)
    older = pg.PaDiM(size=SIDE, dims=5).fit(images, **TORCH)
    older.counts = None
    with pytest.raises(InputError, match=r"of an older pickglass.*fit it anew"):
        older.update(bright(6), **TORCH)


# -- PatchCore: bounded, and covering ----------------------------------------------------------------------------------


def cloud(n: int, seed: int) -> torch.Tensor:
    """Points (n, 24) that vary in sixteen directions most: as features of patches do."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(16, 24, generator=torch.Generator().manual_seed(7))
    return torch.randn(n, 16, generator=generator) @ basis + torch.randn(n, 24, generator=generator)


def bank_of(points: torch.Tensor, images: int, memory_gb: float, ratio: float) -> tuple[pg.PatchCore, dict[str, Any]]:
    """A bank of points (n, C), given as images of equally many cells."""
    each = len(points) // images
    detector = pg.PatchCore(size=64, ratio=ratio, patch=1)
    shapes = [(points.shape[1], 1, each)]
    context = FitContext(images, shapes, 1, 0, memory_gb, lambda *_: None, units=tuple(range(images)))
    detector.begin_fit(context)
    for part in points.split(each):
        detector.observe(Batch((part.T[None, None, :, None],)))
    return detector, detector.end_fit()


def radius(points: torch.Tensor, bank: torch.Tensor) -> float:
    return float(torch.cdist(points, bank).min(1).values.max())


def test_a_streamed_bank_covers_as_the_greedy_on_all_to_a_tenth() -> None:
    points = cloud(24_000, 0)
    budget = 8000 * 4 * 3 * 24 / 1e9  # a third of the patches
    streamed, details = bank_of(points, 48, budget, 0.01)
    assert details["reductions"] >= 3
    assert streamed.bank is not None
    assert streamed.bank.shape[1] == 240
    exact = points[greedy_coreset(points, 240).indices]
    assert radius(points, streamed.bank[0]) <= 1.1 * radius(points, exact)
    assert radius(points, streamed.bank[0]) <= details["radius"] * (1 + 1e-5)


def test_a_streamed_fit_still_leaves_images_out() -> None:
    points = cloud(12_000, 0)
    scores = []
    for budget in (1.0, 5000 * 4 * 3 * 24 / 1e9):
        detector, details = bank_of(points, 24, budget, 0.02)
        assert (details["reductions"] > 0) == (budget < 1)
        with torch.no_grad():
            per_image = points.view(24, 500, 24).permute(0, 2, 1)[:, None, :, None]  # (24, 1, 24, 1, 500)
            maps = detector.score_left_out(Batch((per_image,)), torch.arange(24))[1]
        scores.append(maps.flatten(1).max(1).values.numpy())
    assert np.median(scores[1] / scores[0]) == pytest.approx(1, abs=0.15)


def test_the_bank_stays_bounded_and_never_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickglass.methods.patchcore._MOST", 20)
    detector = pg.PatchCore(size=SIDE).fit(textures(12, SIDE), **TORCH)
    sizes = [detector.bank.shape[1] for _ in [0] if detector.bank is not None]
    for seed in range(5, 8):
        detector.update(bright(12, seed), **TORCH)
        assert detector.bank is not None
        sizes.append(detector.bank.shape[1])
    assert sizes == [8, 16, 20, 20]


def test_a_bank_of_all_patches_updated_is_one_fitted_on_both() -> None:
    old, new, coming = textures(8, SIDE), bright(5), bright(3, seed=9)
    settings: dict[str, Any] = {"size": SIDE, "ratio": 1.0, "place_scale": False, "standardise": False}
    updated = pg.PatchCore(**settings).fit(old, **TORCH).update(new, **TORCH)
    whole = pg.PatchCore(**settings).fit(np.concatenate([old, new]), **TORCH)
    np.testing.assert_allclose(
        updated.predict(coming, **TORCH).scores, whole.predict(coming, **TORCH).scores, rtol=1e-4
    )
    assert updated.calibration is not None
    assert whole.calibration is not None
    np.testing.assert_allclose(updated.calibration.scores[:5], whole.calibration.scores[8:], rtol=1e-3)


def test_scales_of_channels_stay_those_of_the_fit() -> None:
    detector = pg.PatchCore(size=SIDE, standardise=True, position_weight=0.5).fit(textures(8, SIDE), **TORCH)
    assert detector.scale is not None
    scale = detector.scale.clone()
    detector.update(bright(4), **TORCH)
    assert torch.equal(detector.scale, scale)
    assert float(detector.predict(bright(4), **TORCH).scores.max()) < 5


# -- thresholds --------------------------------------------------------------------------------------------------------


def test_new_images_and_those_before_each_keep_their_promise() -> None:
    before = usual_threshold(list(np.arange(1.0, 101)), list(np.arange(1.0, 101)))
    assert before.image_threshold == 96
    new = Evidence([*[50.0] * 18, 200.0, 210.0], [50.0] * 20, source="given")
    both = renewed(before, new, None, comparable=True)
    assert both.image_threshold == 210  # pooled it would be 98, and a tenth of the new parts flagged
    assert (both.promise, both.false_alarm_bound, both.source) == ("estimate", None, "updated")
    assert len(both.scores) == 120
    low = renewed(before, Evidence([5.0] * 20, [5.0] * 20, source="given"), None, comparable=True)
    assert (low.image_threshold, low.r) == (96, 4)
    assert "the threshold is not below the 96 of then" in low.sentence


def test_where_scores_changed_the_old_threshold_is_void() -> None:
    before = usual_threshold([100.0, 200.0], [1.0, 2.0])
    new = Evidence([3.0, 4.0], [3.0, 4.0], source="given")
    found = renewed(before, new, None, comparable=False, names=["a", "b"])
    assert (found.image_threshold, found.promise) == (4, "marginal")
    assert found.false_alarm_bound == pytest.approx(1 / 3)
    assert "nothing is known of parts as they were" in found.sentence
    assert "b sets it" in found.sentence
    held = renewed(before, new, Evidence([7.0], [7.0], source="given"), comparable=False)
    assert (held.image_threshold, held.false_alarm_bound) == (7, 0.5)
    assert "nothing is known" not in held.sentence


def test_a_band_of_unsure_images_ends_and_that_is_said() -> None:
    before = set_by_hand(usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), unsure=2.0)
    found = renewed(before, Evidence([5.0], [5.0]), None, comparable=True)
    assert found.unsure_threshold is None
    assert "no image is unsure any more, until 'pickglass threshold' sets a band again (--unsure)" in found.sentence


def test_a_stricter_threshold_stays_as_strict() -> None:
    """Whoever was promised 1 % is not given 5 % by an update that has the images for 1 %."""
    before = replace(usual_threshold([0.0] * 10, [0.0] * 10), promise="tolerance", false_alarm_bound=0.01)
    values = list(np.arange(300.0))
    assert renewed(before, Evidence(values, values), None, comparable=True).image_threshold == 297
    assert renewed(None, Evidence(values, values), None, comparable=True).image_threshold == 285


def test_groups_count_once() -> None:
    new = Evidence([1.0, 9.0, 2.0, 3.0], [1.0] * 4, ["a", "a", None, "b"], "given")
    found = renewed(None, new, None, comparable=True)
    assert (found.n, found.image_threshold) == (3, 9)
    assert "from 3 groups of images" in found.sentence


def test_a_bank_of_all_patches_keeps_a_bound() -> None:
    before = usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    new = Evidence(list(np.arange(30.0)), list(np.arange(30.0)), source="left out")
    assert renewed(before, new, None, comparable=True, monotone=True).false_alarm_bound == 0.25
    assert renewed(before, new, None, comparable=True).false_alarm_bound is None


# -- which images ------------------------------------------------------------------------------------------------------


def test_images_that_are_known_are_not_learned_twice() -> None:
    old, new = rows(textures(8, SIDE), "old"), rows(bright(4))
    detector = pg.PatchCore(size=SIDE).fit(old, **TORCH)
    detector.update(old + new, **TORCH)
    assert detector.provenance.updates is not None
    assert (detector.provenance.updates[0]["known"], detector.provenance.n_fit) == (8, 12)
    with pytest.raises(DataError, match="there is no new image: 4 of 4 were learned before"):
        detector.update(new, **TORCH)
    assert not detector.provenance.unseen(old + new)


def test_old_images_that_a_bank_knows_are_of_no_use_and_unlearned_ones_set_the_threshold() -> None:
    old, kept, new = rows(textures(8, SIDE), "old"), rows(textures(3, SIDE, seed=3), "kept"), rows(bright(4))
    detector = pg.PatchCore(size=SIDE).fit(old, **TORCH).update(new, earlier=old + kept + new[:1], **TORCH)
    assert detector.provenance.updates is not None
    told = detector.provenance.updates[0]
    assert (told["trained_again"], told["earlier_judged"], told["earlier_unused"]) == (0, 3, 9)
    assert detector.calibration is not None
    assert (
        "good parts like the earlier ones will be flagged, from 3 images that it did not"
        in detector.calibration.sentence
    )
    assert len(detector.calibration.scores) == 7


def test_a_photo_that_was_left_out_stays_out() -> None:
    old, new = rows(textures(8, SIDE), "old"), rows(bright(4))
    detector = pg.PatchCore(size=SIDE).fit(old, **TORCH)
    left_out = (image_digest(new[1])[:16],)
    detector.provenance = replace(detector.provenance, left_out=left_out)
    detector.update(new, **TORCH)
    assert detector.provenance.updates is not None
    assert (detector.provenance.updates[0]["left_out"], detector.provenance.updates[0]["learned"]) == (1, 3)
    assert detector.provenance.left_out == left_out


def test_images_of_a_part_that_is_known_set_no_threshold() -> None:
    old = rows(textures(8, SIDE), "old", group="roll 1")
    detector = pg.PatchCore(size=SIDE).fit(old, **TORCH)
    same, other = rows(bright(2), "same", group="roll 1"), rows(bright(3, seed=6), "other")
    detector.update(old + same + other, calibrate=0.4, **TORCH)
    assert detector.provenance.updates is not None
    told = detector.provenance.updates[0]
    assert (told["learned"], told["held_back"]) == (4, 1)
    with pytest.raises(DataError, match="0 of parts that it does not know"):
        pg.PatchCore(size=SIDE).fit(old, **TORCH).update(old[:1] + same, **TORCH)


def test_an_update_that_fails_leaves_the_detector_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("patchcore", "fastflow"):
        detector = shortest(method).fit(textures(10, SIDE), **TORCH)
        before = detector.predict(bright(2), **TORCH).scores
        state = (detector.model_id(), detector.calibration, detector.provenance, detector.history)
        with pytest.raises(DataError, match=r"new images are too few to update|no new image"):
            detector.update(textures(10, SIDE)[:1], **TORCH)
        with monkeypatch.context() as patch:
            patch.setattr("pickglass.detectors.updating.check_meaning", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                detector.update(bright(6), **TORCH)
        assert (detector.model_id(), detector.calibration, detector.provenance, detector.history) == state
        np.testing.assert_array_equal(detector.predict(bright(2), **TORCH).scores, before)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"calibrate": 0.0}, "calibrate=0.0: expected a share of the new images above 0"),
        ({"calibrate": 1.0}, "calibrate=1.0"),
        ({"memory_gb": 1e-6}, "raise memory_gb to"),
    ],
)
def test_bad_wishes_name_the_remedy(wish: dict[str, Any], message: str) -> None:
    detector = pg.PatchCore(size=SIDE).fit(textures(6, SIDE), **TORCH)
    with pytest.raises(InputError, match=message):
        detector.update(bright(4), **wish, **TORCH)


def test_changed_settings_defective_and_broken_images_are_refused() -> None:
    detector = pg.PatchCore(size=SIDE).fit(textures(6, SIDE), **TORCH)
    with pytest.raises(DataError, match="marked defective"):
        detector.update(Table([replace(row, label=1, defect="hole") for row in rows(bright(2))]), **TORCH)
    with pytest.raises(DataError, match="1 of 4 training images cannot be read") as broken:
        detector.update(rows(bright(3)) + Table([Row("no-such.png", "train", 0)]), **TORCH)
    assert "no-such.png" in str(broken.value)
    detector.patch = 5
    with pytest.raises(InputError, match="settings were changed after the fit"):
        detector.update(bright(4), **TORCH)


def test_drift_compares_with_old_and_new_images_and_asks_no_old_score() -> None:
    detector = pg.PatchCore(size=SIDE).fit(textures(10, SIDE), observers=[pg.DriftSample()], **TORCH)
    detector.update(bright(6), observers=[pg.DriftSample()], **TORCH)
    reference = detector.reference
    assert reference is not None
    assert np.isnan(reference.scores).tolist() == [True] * 10 + [False] * 6
    found = find_drift(reference, reference.take(np.arange(5, 16)), level=0.2)
    assert [change.what for change in found.changes] == ["brightness", "contrast", "sharpness", "position", "features"]
    kept = Sample.from_tensors(reference.tensors())
    assert len(kept) == 16
    unwatched = pg.PatchCore(size=SIDE).fit(textures(10, SIDE), observers=[pg.DriftSample()], **TORCH)
    unwatched.update(bright(6), **TORCH)
    assert unwatched.reference is not None
    assert np.isnan(unwatched.reference.scores).all()


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, new good images, bad ones, and one that is broken."""
    root = tmp_path_factory.mktemp("update")
    fit(
        small_dataset,
        root / "m.safetensors",
        FitRequest(settings={"size": SIDE}),
        compute=ComputeOptions(engine="torch"),
    )
    rng = np.random.default_rng(0)
    for i, image in enumerate(bright(8)):
        (root / "new").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / "new" / f"{i}.png")
        if i < 3:
            (root / "bad").mkdir(exist_ok=True)
            Image.fromarray(paint(image, "hole", 40, rng, contrast=3.0).image).save(root / "bad" / f"{i}.png")
    (root / "bad" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def model(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(folders / "m.safetensors", tmp_path / "m.safetensors"))


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, Any]:
    monkeypatch.setattr(sys, "argv", ["pickglass", "update", *map(str, arguments), "--engine", "torch", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr().out
    return int(stop.value.code or 0), json.loads(out) if out else None


def test_the_command_says_what_changed(
    folders: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_model_header(model)
    new = sorted((folders / "new").iterdir())
    code, result = command(capsys, monkeypatch, model, new[0], *new[1:], "--bad", folders / "bad")
    assert code == 1  # the broken image
    assert [failed["path"][-10:] for failed in result["failed"]] == ["broken.png"]
    assert result["false_alarms_before"] == 8
    assert result["unlearned"] == 8
    assert result["false_alarms"] == result["unlearned_false_alarms"] == 0
    assert {image["judged"] for image in result["images"]} == {"left out"}
    assert (result["bad_found_before"], result["bad_found"], result["bad_lost"]) == (3, 3, [])
    assert result["image_threshold_before"] == before["calibration"]["image_threshold"]
    after = read_model_header(model)
    assert after["version"] == 2
    assert after["calibration"]["image_threshold"] == result["image_threshold"]
    assert after["calibration"]["sentence"] == result["sentence"]
    digests = [image_digest(Row(str(path)))[:16] for path in sorted((folders / "bad").iterdir())]
    assert not set(digests) & set(after["provenance"]["fitted_images"])


def test_nothing_of_the_bad_images_enters(folders: Path, model: Path, tmp_path: Path) -> None:
    torch_alone = ComputeOptions(engine="torch")
    places = [tmp_path / "with.safetensors", tmp_path / "without.safetensors"]
    update(model, folders / "new", places[0], bad=[folders / "bad"], compute=torch_alone)
    update(model, folders / "new", places[1], compute=torch_alone)
    with_bad, without = (pg.load(place) for place in places)
    assert with_bad.model_id() == without.model_id()
    assert with_bad.calibration == without.calibration


def test_a_model_that_would_miss_a_known_defect_is_not_replaced(
    folders: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defect is among the new 'good' images: what was found is learned as good."""
    content = model.read_bytes()
    code, result = command(capsys, monkeypatch, model, folders / "new", "--bad", folders / "new")
    assert (code, result["model"], len(result["bad_lost"])) == (1, None, 8)
    assert model.read_bytes() == content
    other = model.with_name("other.safetensors")
    code, result = command(capsys, monkeypatch, model, folders / "new", "--bad", folders / "new", "-o", other)
    assert (code, result["model"]) == (1, str(other))
    assert other.is_file()


def test_an_interrupted_writing_leaves_the_old_model(
    folders: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = model.read_bytes()
    monkeypatch.setattr("pickglass.nn.tensor_file.save_file", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        update(model, folders / "new", compute=ComputeOptions(engine="torch"))
    assert model.read_bytes() == content
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_a_threshold_set_later_judges_anew(folders: Path, model: Path, small_dataset: Path) -> None:
    """The scores that the fit left are of another bank: they must not pass for those of the updated one."""
    from pickglass.app.threshold import ThresholdRequest, threshold
    from pickglass.errors import PromiseUnreachable

    update(model, folders / "new", compute=ComputeOptions(engine="torch"))
    with pytest.raises((PromiseUnreachable, DataError)):  # all images of the fit were learned
        threshold(model, small_dataset, ThresholdRequest("marginal", false_alarm=0.2))


def test_the_screen_shows_it(
    folders: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["pickglass", "update", str(model), str(folders / "new"), "--calibrate", "0.25", "--engine", "torch"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    out = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code
    assert "updated patchcore with 6 new good images, 2 held back for the threshold" in out
    assert "8 of 8 new images were false alarms before" in out
    assert "of the 2 that it did not learn (held back)" in out
    assert "version 2" in out


def test_the_use_case_takes_rows(model: Path) -> None:
    result = update(model, rows(bright(5)), request=UpdateRequest(seed=3), compute=ComputeOptions(engine="torch"))
    assert result["learned"] == 5
    assert use_case.update is update
