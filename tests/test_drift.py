"""Drift: exact p-values, a kept level, what moved; the model's reference; and the command."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import pickglass as pg
from pickglass.app.drift import drift
from pickglass.calibration import drift as module
from pickglass.calibration.drift import Sample, already_known, find_drift, image_facts, units
from pickglass.calibration.permutations import (
    Statistic,
    cliffs_delta,
    cramer_von_mises,
    energy,
    holm,
    permutation_p_values,
    smallest_p_value,
    whitened,
)
from pickglass.cli.main import main
from pickglass.data import Row, Table
from pickglass.data.painting.disturbances import disturb
from pickglass.detectors.drift_sample import describe
from pickglass.errors import DataError, InputError, ModelFileError, PromiseUnreachable
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

# -- the permutation test ---------------------------------------------------------------------------------------------


def slow_energy(points: np.ndarray, new: tuple[int, ...]) -> float:
    old = [i for i in range(len(points)) if i not in new]

    def mean(a: Any, b: Any) -> float:
        return float(np.mean([np.linalg.norm(points[i] - points[j]) for i in a for j in b]))

    return 2 * mean(old, new) - mean(old, old) - mean(new, new)


def slow_cramer_von_mises(values: np.ndarray, new: tuple[int, ...]) -> float:
    old = [i for i in range(len(values)) if i not in new]
    return float(
        sum(((values[list(new)] <= x).mean() - (values[old] <= x).mean()) ** 2 for x in values)
    )  # ties: each of them


def test_all_labellings_agree_with_the_literal_count() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(8, 3)) + np.r_[np.zeros(5), np.ones(3)][:, None]
    values = rng.integers(0, 4, 8).astype(float)  # full of ties
    came = (5, 6, 7)
    expected = []
    for slow, data in ((slow_energy, points), (slow_cramer_von_mises, values)):
        found = [slow(data, new) for new in itertools.combinations(range(8), 3)]
        expected.append(np.mean([f >= slow(data, came) - 1e-9 for f in found]))
    fast = permutation_p_values([energy(points), cramer_von_mises(values)], 5, 3, 10_000, rng)
    assert fast == pytest.approx(expected)


def test_cramer_von_mises_is_scipys() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=7), rng.normal(size=9) + 1.5
    p = permutation_p_values([cramer_von_mises(np.r_[x, y])], 7, 9, 20_000, rng)[0]
    assert p == pytest.approx(stats.cramervonmises_2samp(x, y, method="exact").pvalue)


def test_all_labellings_give_scipys_permutation_test() -> None:
    points = np.random.default_rng(3).normal(size=(9, 2)) + np.r_[np.zeros(5), np.ones(4)][:, None]
    statistics = [energy(points), cramer_von_mises(points[:, 0])]

    def of_indices(statistic: Statistic) -> Callable[..., float]:
        def by_scipy(reference: np.ndarray, new: np.ndarray) -> float:
            labels = np.zeros((1, 9))
            labels[0, new] = 1
            return float(statistic(labels)[0])

        return by_scipy

    expected = [
        stats.permutation_test(
            (np.arange(5), np.arange(5, 9)),
            of_indices(statistic),
            vectorized=False,
            n_resamples=10_000,
            alternative="greater",
        ).pvalue
        for statistic in statistics
    ]
    assert permutation_p_values(statistics, 5, 4, 10_000, np.random.default_rng(0)) == pytest.approx(expected)


def test_random_labellings_approach_all_of_them_and_never_reach_zero() -> None:
    rng = np.random.default_rng(2)
    values = [cramer_von_mises(np.r_[rng.normal(size=8), rng.normal(size=8) + 0.7])]
    exact = permutation_p_values(values, 8, 8, 20_000, rng)[0]
    assert permutation_p_values(values, 8, 8, 4000, rng)[0] == pytest.approx(exact, abs=4 * np.sqrt(exact / 4000))
    apart = [cramer_von_mises(np.r_[rng.random(20), rng.random(20) + 5])]
    assert permutation_p_values(apart, 20, 20, 1000, rng) == [1 / 1000]


def test_equal_values_are_no_evidence() -> None:
    same = [cramer_von_mises(np.ones(20)), energy(whitened(np.ones((20, 4)), 16))]
    assert permutation_p_values(same, 10, 10, 500, np.random.default_rng(0)) == [1.0, 1.0]


def test_a_change_of_spread_is_seen() -> None:
    rng = np.random.default_rng(3)
    values = np.r_[rng.normal(size=60), 4 * rng.normal(size=60)]
    assert permutation_p_values([cramer_von_mises(values)], 60, 60, 2000, rng)[0] < 0.01


@pytest.mark.parametrize(("n", "m"), [(3, 4), (4, 4), (2, 9)])
def test_the_smallest_p_value_is_reached_and_not_passed(n: int, m: int) -> None:
    apart = cramer_von_mises(np.arange(n + m, dtype=float))
    assert permutation_p_values([apart], n, m, 10_000, np.random.default_rng(0))[0] == pytest.approx(
        smallest_p_value(n, m)
    )


def test_holm_by_hand() -> None:
    # 0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06 too; 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_whitened_ignores_labels_scales_and_dead_channels() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 10))
    found = whitened(x, 16)
    assert found.shape == (40, 10)
    assert found.std(axis=0) == pytest.approx(np.ones(10))
    order = rng.permutation(40)
    assert np.abs(whitened(x[order], 16)) == pytest.approx(np.abs(found[order]))
    dead = np.c_[x, 5 + 1e-9 * rng.normal(size=(40, 3))]  # rounding in a channel that is off
    distances = [np.linalg.norm(p[0] - p, axis=1) for p in (whitened(dead * 3, 10), found)]
    assert distances[0] == pytest.approx(distances[1], rel=0.02)
    assert whitened(x[:6], 16).shape == (6, 3)


def test_cliffs_delta_counts_pairs() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 5, 11).astype(float), rng.integers(1, 6, 7).astype(float)
    assert cliffs_delta(a, b) == pytest.approx(np.mean([np.sign(y - x) for x in a for y in b]))


# -- what is measured of an image -------------------------------------------------------------------------------------


def unit(image: np.ndarray) -> np.ndarray:
    grey = image if image.ndim == 2 else image[..., 0]
    return np.repeat((grey / np.float32(255))[None].astype(np.float32), 3, axis=0)


def test_facts_by_hand() -> None:
    board = np.indices((32, 32)).sum(axis=0) % 2  # Laplacian 4 everywhere, deviation 0.5
    facts = image_facts(unit(board * 255)).facts
    assert facts == pytest.approx([0.5, 0.5, 8.0])
    halves = np.zeros((32, 48), np.uint8)
    halves[:, 24:] = 255
    layout = image_facts(unit(halves)).layout.reshape(16, 16)
    assert layout[:, :8] == pytest.approx(np.full((16, 8), -1 / 16))
    assert layout[:, 8:] == pytest.approx(np.full((16, 8), 1 / 16))


def test_each_fact_follows_its_disturbance_and_no_other() -> None:
    image = textures(1, 96)[0]
    before = image_facts(unit(image))
    rng = np.random.default_rng(0)
    darker = image_facts(unit(image.astype(float) * 0.8 + 0.0)).facts
    assert darker / before.facts == pytest.approx([0.8, 0.8, 1.0], rel=1e-6)
    flatter = image_facts(unit(disturb(image, "contrast", 0.3, rng))).facts
    assert flatter / before.facts == pytest.approx([1.0, 0.7, 1.0], rel=0.02)
    blurred = image_facts(unit(disturb(image, "blur", 1.0, rng))).facts
    assert blurred[0] == pytest.approx(before.facts[0], rel=0.01)
    assert blurred[2] < 0.7 * before.facts[2]
    assert image_facts(unit(image * 0.5)).layout == pytest.approx(before.layout, abs=1e-6)


@pytest.mark.parametrize("strip", [1, 96 * 7, 96 * 95])
def test_facts_of_strips_are_those_of_the_image(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = textures(1, 96)[0].transpose(2, 0, 1)
    keep = np.ones((96, 96), bool)
    keep[20:50, 30:60] = False
    whole = [image_facts(image), image_facts(image, keep)]
    monkeypatch.setattr("pickglass.calibration.drift._STRIP", strip)
    for one, other in zip(whole, [image_facts(image), image_facts(image, keep)], strict=True):
        assert other.facts == pytest.approx(one.facts, rel=1e-12)
        assert other.layout == pytest.approx(one.layout, abs=1e-6)


def test_eight_bits_have_the_facts_of_their_floats() -> None:
    image = textures(1, 96)[0].transpose(2, 0, 1)
    floats = image_facts(image / np.float32(255))
    assert (image_facts(image).facts == floats.facts).all()
    assert (image_facts(image).layout == floats.layout).all()


def test_what_is_not_kept_does_not_count() -> None:
    image = unit(textures(1, 96)[0])
    keep = np.ones((96, 96), bool)
    keep[:, 64:] = False
    other = image.copy()
    other[:, :, 64:] = 1.0
    one, two = image_facts(image, keep), image_facts(other, keep)
    assert (one.facts == two.facts).all()
    assert (one.layout == two.layout).all()
    assert one.facts == pytest.approx(image_facts(image[:, :, :64]).facts)
    flat = image_facts(np.full((3, 20, 20), 0.3, np.float32))
    assert flat.facts == pytest.approx([0.3, 0, 0])
    assert not flat.layout.any()


# -- find_drift -------------------------------------------------------------------------------------------------------


def sample(rng: np.random.Generator, n: int, groups: Any = None, d: int = 12) -> Sample:
    layouts = rng.normal(size=(n, 256))
    return Sample(
        rng.normal(size=n),
        rng.normal(size=(n, 3)),
        (layouts / np.linalg.norm(layouts, axis=1, keepdims=True)).astype(np.float32),
        rng.normal(size=(n, d)).astype(np.float32),
        np.zeros(n, np.int64) if groups is None else np.asarray(groups, np.int64),
        np.full(n, ""),
    )


def test_the_level_is_kept_where_nothing_changed() -> None:
    rng = np.random.default_rng(6)
    alarms = [find_drift(sample(rng, 9), sample(rng, 12), level=0.2, seed=k, labellings=600).found for k in range(100)]
    assert np.mean(alarms) <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / 100)
    assert np.mean(alarms) >= 0.05  # and it is not deaf


@pytest.mark.parametrize(("n", "m"), [(6, 9), (20, 20)])
def test_a_detectable_change_is_found_four_times_in_five(n: int, m: int) -> None:
    rng = np.random.default_rng(7)
    change = module._detectable(n, m, 0.05 / 6)
    hits = []
    for _ in range(250):
        values = np.r_[rng.normal(size=n), rng.normal(size=m) + change]
        hits.append(6 * permutation_p_values([cramer_von_mises(values)], n, m, 999, rng)[0] <= 0.05)
    assert np.mean(hits) == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 250) + 0.02)


def test_groups_count_once() -> None:
    rng = np.random.default_rng(8)
    grouped = sample(rng, 30, np.repeat(np.arange(1, 11), 3))
    kept = units(grouped, rng)
    assert sorted(kept.groups) == list(range(1, 11))
    assert set(kept.scores) <= set(grouped.scores)
    assert len(units(sample(rng, 30), rng)) == 30
    found = find_drift(grouped, sample(rng, 12))
    assert (found.n_reference, found.n_new) == (10, 12)
    assert len(units(sample(rng, 400), rng)) == 300


def test_images_of_one_part_shown_often_are_no_drift() -> None:
    rng = np.random.default_rng(9)

    def exposures(parts: int, first: int) -> Sample:  # five nearly equal images a part
        of = np.repeat(np.arange(parts), 5)
        noise = sample(rng, 5 * parts, of + first)
        return replace(noise, scores=rng.normal(size=parts)[of] + 0.01 * noise.scores)

    pairs = [(exposures(8, 1), exposures(8, 100)) for _ in range(30)]
    found = np.mean([find_drift(a, b, 0.2, labellings=600).found for a, b in pairs])
    alone = [(replace(a, groups=0 * a.groups), replace(b, groups=0 * b.groups)) for a, b in pairs]
    assert found <= 0.2 + 3 * np.sqrt(0.2 * 0.8 / 30)
    assert (
        np.mean([find_drift(a, b, 0.2, labellings=600).found for a, b in alone]) > found + 0.2
    )  # what not knowing them costs


def test_too_few_images_are_refused_and_counted() -> None:
    rng = np.random.default_rng(10)
    with pytest.raises(PromiseUnreachable, match=r"takes 10 new images .*there are 3: 7 are missing") as error:
        find_drift(sample(rng, 3), sample(rng, 3))
    assert (error.value.needed, error.value.missing) == (10, 7)
    assert find_drift(sample(rng, 3), sample(rng, 10)).smallest_p <= 0.05
    with pytest.raises(PromiseUnreachable):
        find_drift(sample(rng, 3), sample(rng, 9))
    with pytest.raises(PromiseUnreachable, match="takes 2 reference images"):
        find_drift(sample(rng, 1), sample(rng, 500))


def test_arguments_that_make_no_sense() -> None:
    rng = np.random.default_rng(11)
    with pytest.raises(InputError, match=r"level=5: expected the chance .* e\.g\. 0\.05"):
        find_drift(sample(rng, 9), sample(rng, 9), level=5)
    with pytest.raises(InputError, match=r"unequal length, \(12,\) and \(7,\)"):
        find_drift(sample(rng, 9), sample(rng, 9, d=7))


def test_without_features_there_are_five_questions() -> None:
    rng = np.random.default_rng(12)
    found = find_drift(sample(rng, 9, d=0), sample(rng, 9, d=0))
    assert [c.what for c in found.changes] == ["score", "brightness", "contrast", "sharpness", "position"]


def test_an_object_that_moved_is_found_and_measured() -> None:
    rng = np.random.default_rng(13)
    yy, xx = np.indices((64, 64))

    def objects(n: int, down: float, right: float) -> Sample:
        images = []
        for _ in range(n):
            y, x = 30 + down * 64 + rng.normal(), 33 + right * 64 + rng.normal()
            blob = 40 + 170 * ((yy - y) ** 2 / 200 + (xx - x) ** 2 / 120 < 1) + 3 * rng.normal(size=(64, 64))
            images.append(image_facts(unit(blob)))
        return Sample.of(images, rng.normal(size=n).tolist(), np.zeros((n, 0)), [None] * n)

    found = find_drift(objects(12, 0, 0), objects(12, 0.08, -0.04))
    moved = {c.what: c for c in found.changes if c.moved}
    assert set(moved) == {"position"}
    assert moved["position"].delta < -0.9
    assert found.displacement == pytest.approx((0.08, -0.04), abs=0.015)
    assert find_drift(objects(12, 0, 0), objects(12, 0, 0), level=0.001).displacement is None


def test_known_images_and_their_groups_are_recognised() -> None:
    rng = np.random.default_rng(14)
    reference = sample(rng, 4, [0, 0, 7, 8])
    new = sample(rng, 5, [0, 7, 9, 0, 0])
    new.facts[3] = reference.facts[2]
    assert already_known(reference, new).tolist() == [False, True, False, True, False]


def test_a_sample_survives_the_file_and_damage_is_told() -> None:
    rng = np.random.default_rng(15)
    images = [image_facts(unit(image)) for image in textures(3, 48)]
    one = Sample.of(images, [1.0, 2.0, 3.0], rng.normal(size=(3, 5)), ["a", None, "b"], "digest")
    tensors = one.tensors()
    back = Sample.from_tensors(tensors)
    assert back.settings == "digest"
    assert all((value == tensors[name]).all() for name, value in back.tensors().items())
    assert one.groups[1] == 0
    assert len(set(one.groups)) == 3
    with pytest.raises(ModelFileError, match=r"damaged.*fit the model anew"):
        Sample.from_tensors({"scores": tensors["scores"]})
    with pytest.raises(ModelFileError, match="unequal length"):
        Sample.from_tensors({**tensors, "scores": tensors["scores"][:2]})
    assert len(Sample.of([], [], np.zeros((0, 5)), [])) == 0


# -- with a model -----------------------------------------------------------------------------------------------------

OTHER = ComputeOptions(engine="torch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``train``, ``reference``, ``same`` and ``blurred`` of textures, and ``m.safetensors`` fitted on train."""
    root = tmp_path_factory.mktemp("drift")
    images = textures(32, 80, seed=20)
    rng = np.random.default_rng(0)
    parts = {"train": images[:8], "reference": images[8:20], "same": images[20:], "blurred": images[20:]}
    for name, some in parts.items():
        (root / name).mkdir()
        for i, image in enumerate(some):
            pixels = disturb(image, "blur", 1.5, rng) if name == "blurred" else image
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    detector = pg.PatchCore(size=64, ratio=0.05).fit(root / "train", calibrate=0, engine="torch")
    detector.save(root / "m.safetensors")
    return root


@pytest.mark.slow
def test_the_same_is_no_drift_and_blur_is_named(folders: Path) -> None:
    model = pg.load(folders / "m.safetensors")
    same = drift(model, [folders / "same"], against=[folders / "reference"], compute=OTHER)
    assert (same["drift"], same["most"], same["n_reference"], same["n_new"]) == (False, None, 12, 12)
    assert "no drift found (12 new against 12 reference images, level 5 %)" in same["sentence"]
    assert "found four times in five" in same["sentence"]
    blurred = drift(model, [folders / "blurred"], against=[folders / "reference"], compute=OTHER)
    assert (blurred["drift"], blurred["most"]) == (True, "sharpness")
    sharpness = next(c for c in blurred["changes"] if c["what"] == "sharpness")
    assert (sharpness["how"], sharpness["delta"]) == ("lower", -1)
    assert "sharpness, lower (" in blurred["sentence"]
    again = drift(model, [folders / "blurred"], against=[folders / "reference"], compute=OTHER)
    assert again == blurred


def test_images_that_the_model_knows_are_left_out(folders: Path) -> None:
    model = pg.load(folders / "m.safetensors")
    every = [folders / name for name in ("same", "train", "reference")]
    result = drift(model, every, against=[folders / "reference", folders / "train"], compute=OTHER)
    assert (result["n_images"], result["left_out"], result["n_reference"], result["n_new"]) == (32, 20, 12, 12)
    with pytest.raises(DataError, match="no new image is left: 8 of 8 were fitted"):
        drift(model, [folders / "train"], against=[folders / "reference"], compute=OTHER)
    with pytest.raises(DataError, match="fitted on all images to compare with"):
        drift(model, [folders / "same"], against=[folders / "train"], compute=OTHER)


def test_broken_images_are_named_or_refused(folders: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    model = pg.load(folders / "m.safetensors")
    result = drift(model, [folders / "same", broken], against=[folders / "reference"], compute=OTHER)
    assert [item["path"] for item in result["failed"]] == [str(broken)]
    assert result["n_new"] == 12
    with pytest.raises(DataError, match="1 of 13 images to compare with cannot be read"):
        drift(model, [folders / "same"], against=[folders / "reference", broken], compute=OTHER)


def test_the_reference_in_the_model_is_used_and_goes_stale(folders: Path) -> None:
    model = pg.load(folders / "m.safetensors")
    table = Table([Row(str(path)) for path in sorted((folders / "reference").iterdir())])
    model.reference = describe(model, table, engine="torch")[0]
    found = drift(model, [folders / "blurred"], compute=OTHER)
    assert found == drift(model, [folders / "blurred"], against=table, compute=OTHER)
    model.smoothing = 3.0
    with pytest.raises(InputError, match=r"settings of the model were changed after the fit.*--against"):
        drift(model, [folders / "blurred"], compute=OTHER)


@pytest.mark.slow
def test_tiles_count_alike(folders: Path) -> None:
    table = Table([Row(str(path)) for path in sorted((folders / "same").iterdir())][:3])
    samples = []
    for sharing in ({}, {"heads": 2}):
        model = pg.PatchCore(ratio=0.05).tiled(size=64, tile=32, stride=32, **sharing)
        model.fit(folders / "train", calibrate=0, engine="torch")
        samples.append(describe(model, table, engine="torch", batch=2)[0])
    one, shared = samples
    assert one.features.shape == shared.features.shape
    assert one.features == pytest.approx(shared.features, rel=1e-4, abs=1e-5)
    assert (one.facts == shared.facts).all()


def test_describe_does_not_depend_on_batches(folders: Path) -> None:
    model = pg.load(folders / "m.safetensors")
    table = Table([Row(str(path)) for path in sorted((folders / "same").iterdir())])
    one, _ = describe(model, table, engine="torch", batch=1)
    all_, _ = describe(model, table, engine="torch", batch=12)
    assert (one.facts == all_.facts).all()
    assert one.features == pytest.approx(all_.features, rel=1e-4, abs=1e-5)
    assert one.scores == pytest.approx(all_.scores, rel=1e-4)
    assert one.scores == pytest.approx(model.predict(table, engine="torch").scores)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words), "--engine", "torch"])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_the_command(folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, against = folders / "m.safetensors", ("--against", folders / "reference")
    assert run(monkeypatch, "drift", model, folders / "same", *against, "--json") == 0
    assert json.loads(capsys.readouterr().out)["drift"] is False
    assert run(monkeypatch, "drift", model, folders / "blurred", *against) == 1
    shown = capsys.readouterr().out
    assert "sharpness" in shown
    assert "moved most" in shown
    assert run(monkeypatch, "drift", model, folders / "same") == 2
    assert "has no images to compare with" in capsys.readouterr().err
    one = folders / "same" / "00.png"
    assert run(monkeypatch, "drift", model, one, *against) == 2
    assert "new images (of each group one counts), there are 1" in capsys.readouterr().err
