"""A fit judges each image as if it had been left out, sets its thresholds by that, and learns what is usual at a place.

The reference is always a fit without the image.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pickglass as pg
from pickglass.app.fit import FitRequest, fit
from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.data import Row, Table
from pickglass.detectors import fitting, loading
from pickglass.errors import InputError, PromiseUnreachable
from pickglass.features.batch import Batch
from pickglass.features.engine import BackboneEngine
from pickglass.nn.maps import LevelLine, PlaceSums, explained_by_place, level_lines, quiet_level
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

TORCH: dict[str, Any] = {"engine": "torch", "workers": 1}


def rows(n: int = 12, side: int = 64, group: int = 1) -> Table:
    """Good images; so many in a row show one part."""
    pictures = textures(n, side)
    return Table(
        [
            Row(f"{i}.png", "train", 0, group=f"part {i // group}" if group > 1 else None, pixels=picture)
            for i, picture in enumerate(pictures)
        ]
    )


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits keep what they need to leave images out."""
    for method in (pg.PatchCore, pg.PaDiM):
        monkeypatch.setattr(method, "forget_images", lambda self: None)


def left_out(detector: pg.Detector, table: Table) -> dict[str, np.ndarray[Any, Any]]:
    """The joined map of each image that was learned, by name, as if its unit had been left out."""
    units: dict[str, int] = {}
    numbers = [units.setdefault(row.unit, len(units)) for row in table]
    found: dict[str, np.ndarray[Any, Any]] = {}
    with torch.no_grad():
        for loaded in detector.loader(ComputeOptions(**TORCH)).batches(table.rows):
            assert loaded.batch is not None
            own = torch.tensor(numbers[len(found) : len(found) + len(loaded.items)])
            _, maps, _ = detector._joined(
                *detector.score_left_out(loaded.batch, own), loaded.batch.keep, compared=False
            )
            found.update({item.row.path: map_.numpy() for item, map_ in zip(loaded.items, maps, strict=True)})
    return found


def refitted(detector: pg.Detector, table: Table, path: str) -> np.ndarray[Any, Any]:
    """The map of an image by a fit without its unit."""
    (row,) = [row for row in table if row.path == path]
    others = table.where(lambda other: other.unit != row.unit)
    fresh = type(detector).configured({**detector.configuration(), "place_scale": False})
    return fresh.fit(others, calibrate=0, **TORCH).predict(Table([row]), **TORCH).maps[0]


@pytest.mark.parametrize(
    ("group", "tiled"),
    [
        pytest.param(1, False, id="alone-plain"),
        pytest.param(3, True, id="groups-tiled"),
        pytest.param(3, False, id="groups-plain", marks=pytest.mark.long),
        pytest.param(1, True, id="alone-tiled", marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("keeping")
def test_a_bank_of_all_patches_answers_as_without_the_image(group: int, tiled: bool) -> None:
    table = rows(9, group=group)
    detector: pg.Detector = pg.PatchCore(size=64, ratio=1, place_scale=False)
    if tiled:
        detector = pg.PatchCore(size=96, ratio=1, place_scale=False).tiled(tile=64, stride=32)
    detector.fit(table, **TORCH)
    maps = left_out(detector, table)
    for path in ("0.png", "4.png"):
        np.testing.assert_allclose(maps[path], refitted(detector, table, path), rtol=2e-3, atol=1e-3)
    assert detector.falls_with_images


@pytest.mark.usefixtures("keeping")
def test_turned_copies_are_left_out_too() -> None:
    table = rows(6)
    detector = pg.PatchCore(size=64, ratio=1, rotations=4, place_scale=False).fit(table, **TORCH)
    np.testing.assert_allclose(
        left_out(detector, table)["2.png"], refitted(detector, table, "2.png"), rtol=2e-3, atol=1e-3
    )


@pytest.mark.usefixtures("keeping")
def test_regions_of_interest_keep_patches_and_owners_together() -> None:
    masks = [np.zeros((64, 64), np.uint8) for _ in range(6)]
    for i, mask in enumerate(masks):
        mask[8 * (i % 3) :, :] = 255  # differing numbers of patches
    table = Table([replace(row, roi=mask) for row, mask in zip(rows(6), masks, strict=True)])
    detector = pg.PatchCore(size=64, ratio=1, place_scale=False).fit(table, **TORCH)
    np.testing.assert_allclose(
        left_out(detector, table)["2.png"], refitted(detector, table, "2.png"), rtol=2e-3, atol=1e-3
    )


@pytest.mark.usefixtures("keeping")
def test_a_coreset_without_an_image_is_never_nearer_than_the_whole_one() -> None:
    """So the threshold errs on the side of fewer false alarms."""
    table = rows()
    detector = pg.PatchCore(size=64, ratio=0.1, place_scale=False).fit(table, **TORCH)
    maps, whole = left_out(detector, table), detector.predict(table, **TORCH)
    for row, map_ in zip(whole.rows, whole.maps, strict=True):
        assert (maps[row.path] >= map_ - 1e-3 * map_.max()).all()
    assert not detector.falls_with_images  # another coreset might have been nearer


@pytest.mark.usefixtures("keeping")
def test_a_gaussian_without_an_image_follows_from_that_with_it() -> None:
    table = rows(30)
    detector = pg.PaDiM(size=64, dims=12, place_scale=False).fit(table, **TORCH)
    maps = left_out(detector, table)
    for path in ("0.png", "17.png"):
        np.testing.assert_allclose(maps[path], refitted(detector, table, path), rtol=0.02)


def test_gaussians_leave_out_single_images_that_outnumber_the_channels() -> None:
    detector = pg.PaDiM(dims=10)
    assert detector.leaves_out(range(12))
    assert not detector.leaves_out(range(11))
    assert not detector.leaves_out([0, 0, *range(1, 20)])
    assert not pg.FastFlow().leaves_out(range(100))


def test_images_for_validation_do_not_count_among_those_that_outnumber_the_channels() -> None:
    detector = pg.PaDiM(size=64, dims=12).fit(rows(16), validate=0.25, **TORCH)  # 12 would be left to fit
    assert detector.calibration is not None
    assert detector.calibration.source == "held back"


def test_by_default_no_image_is_held_back() -> None:
    clean, drift = pg.CleanCheck(), pg.DriftSample()
    detector = pg.PatchCore(size=64).fit(rows(), observers=[clean, drift], **TORCH)
    calibration = detector.calibration
    assert calibration is not None
    assert (detector.provenance.n_fit, detector.provenance.n_calibrate) == (12, 0)
    assert (calibration.source, len(calibration.scores), calibration.promise) == ("left out", 12, "estimate")
    assert clean.cleanliness is not None
    assert len(clean.cleanliness.scores) == 12  # each image once
    assert detector.reference is not None
    assert len(detector.reference) == 12
    assert not any("owners" in name for name in detector.state_dict())
    assert (detector.predict(rows(), **TORCH).scores <= max(calibration.scores)).all()


def test_whatever_else_learns_from_the_images_holds_some_back() -> None:
    fused = pg.PatchCore(size=64).fused("concat", normalise="whiten").fit(rows(), **TORCH)
    shared = pg.PatchCore(size=96).tiled(tile=64, stride=32, heads=1).fit(rows(), **TORCH)
    for detector in (fused, shared):
        assert detector.calibration is not None
        assert (detector.calibration.source, detector.provenance.n_calibrate) == ("held back", 1)


def test_one_image_sets_no_threshold_and_two_set_one() -> None:
    one = pg.PatchCore(size=64).fit(rows(1), **TORCH).calibration
    two = pg.PatchCore(size=64).fit(rows(2), **TORCH).calibration
    assert one is not None
    assert one.image_threshold is None
    assert two is not None
    assert "2 images say little" in two.sentence


def test_another_rate_is_estimated_without_a_refit(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.safetensors"
    fit(small_dataset, model, FitRequest(settings={"size": 64}), compute=ComputeOptions(engine="torch"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing needs to be fitted again")

    monkeypatch.setattr(pg.Detector, "fit", refuse)
    found = threshold(model, small_dataset, ThresholdRequest("estimate", false_alarm=0.2))
    assert "from 16 training images each judged as if left out" in found["sentence"]
    with pytest.raises(PromiseUnreachable, match="there are 0"):  # they were learned
        threshold(model, small_dataset, ThresholdRequest("marginal", false_alarm=0.2))


# -- places ------------------------------------------------------------------------------------------------------------


def parts(n: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Parts that always lie alike: the left half is even, the right half carries marks that differ on each."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        part = np.full((128, 128), 120.0)
        part[:, 64:] = np.kron(rng.integers(60, 180, (16, 8)), np.ones((8, 8)))
        made.append((part + rng.normal(0, 2, part.shape)).clip(0, 255).astype(np.uint8))
    return made


def test_places_are_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(5, 1, (40, 12, 10)))
    inside, units = torch.ones(noise.shape, dtype=torch.bool), torch.arange(40)
    assert abs(explained_by_place(noise, inside, units)) < 0.1
    slope = torch.linspace(0, 8, 10)
    assert explained_by_place(noise + slope, inside, units) > 0.7
    # two shots of one part predict each other, but no other part
    twins = torch.from_numpy(rng.normal(5, 1, (20, 12, 10))).repeat_interleave(2, dim=0)
    assert abs(explained_by_place(twins, inside, units // 2)) < 0.2


def test_each_place_is_standardised_and_the_whole_keeps_its_unit() -> None:
    rng = np.random.default_rng(0)
    loud = np.r_[np.ones(12), np.full(12, 4.0)]  # of each column
    maps = torch.from_numpy(rng.normal(10 + 3 * loud, loud, (200, 16, 24)))
    inside = torch.ones(maps.shape, dtype=torch.bool)
    gain, shift = PlaceSums.of(maps, inside).scale()
    placed = maps * gain + shift
    quiet, noisy = (placed[:, :, part].flatten() for part in (slice(0, 8), slice(16, 24)))
    assert abs(float(quiet.mean() - noisy.mean())) < 3  # they differed by 9
    assert 0.7 < float(quiet.std() / noisy.std()) < 1.4  # by a factor of 4
    assert abs(float(placed.mean() - maps.mean())) < 0.5
    some = PlaceSums.of(maps[3:], inside[3:])
    for a, b in zip(
        PlaceSums.of(maps, inside).without(PlaceSums.of(maps[:3], inside[:3])).scale(), some.scale(), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_places_outside_the_region_of_interest_say_nothing() -> None:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.normal(5, 1, (40, 8, 8)))
    inside = torch.ones(maps.shape, dtype=torch.bool)
    inside[:, :, 4:] = False
    wild = torch.where(inside, maps, 1e6)
    for a, b in zip(PlaceSums.of(maps, inside).scale(), PlaceSums.of(wild, inside).scale(), strict=True):
        torch.testing.assert_close(a, b)
    gain, shift = PlaceSums.of(wild, inside).scale()
    assert bool(torch.isfinite(gain).all() and torch.isfinite(shift).all())


def test_parts_that_always_lie_alike_are_judged_place_by_place(tmp_path: Path) -> None:
    good, fresh = parts(24), parts(3, seed=1)
    aware = pg.PatchCore(size=128).fit(good, **TORCH)
    plain = pg.PatchCore(size=128, place_scale=False).fit(good, **TORCH)
    told = aware.provenance.details["places"]
    assert told["used"]
    assert told["explained"] > 0.3
    assert plain.place_gain is None
    assert aware.place_gain is not None
    assert aware.place_shift is not None
    gain, shift = aware.place_gain.numpy(), aware.place_shift.numpy()
    for by_place, by_all in zip(aware.predict(fresh, **TORCH).maps, plain.predict(fresh, **TORCH).maps, strict=True):
        np.testing.assert_allclose(by_place, by_all * gain + shift, rtol=1e-4, atol=1e-4)
        # the marks raise the right half of every map, good or not
        apart = [abs(map_[:, :6].mean() - map_[:, -6:].mean()) for map_ in (by_place, by_all)]
        assert apart[0] < 0.6 * apart[1]
    loaded = pg.load(aware.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(loaded.predict(fresh, **TORCH).scores, aware.predict(fresh, **TORCH).scores)


def test_the_threshold_of_a_left_out_image_knows_no_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of places that an image's score is taken by comes from the others alone."""
    good = [Row(f"{i}.png", "train", 0, pixels=part) for i, part in enumerate(parts(14))]
    whole = pg.PatchCore(size=128, ratio=1, place_scale=True).fit(Table(good), **TORCH)
    without = pg.PatchCore(size=128, ratio=1, place_scale=True).fit(Table(good[1:]), **TORCH)
    assert whole.calibration is not None
    # the maps of the others are judged with one image more or less, hence not to the last digit
    assert whole.calibration.scores[0] == pytest.approx(without.predict(Table(good[:1]), **TORCH).scores[0], rel=0.05)
    assert not whole.falls_with_images or whole.calibration.promise == "estimate"


def test_textures_have_no_places_and_own_scores_know_none() -> None:
    detector = pg.PatchCore(size=64).fit(rows(16), **TORCH)
    assert detector.provenance.details["places"]["used"] is False
    assert detector.place_gain is None
    assert pg.PatchCore(top_share=0).places_matter is False
    with pytest.raises(InputError, match="place_scale=True"):
        pg.PatchCore(place_scale=True, top_k=3).places_matter  # noqa: B018


# -- the level of the whole map ----------------------------------------------------------------------------------------


def test_the_level_is_that_of_the_quietest_tenth_within_what_counts() -> None:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.normal(20, 1, (3, 48, 32)))
    maps[1] += 5
    maps[2, :40] += 30  # a defect that covers five sixths of it
    levels = quiet_level(maps)
    assert float(levels[1] - levels[0]) == pytest.approx(5, abs=0.3)
    assert float(levels[2] - levels[0]) == pytest.approx(0, abs=0.6)
    finer = maps.repeat_interleave(2, 1).repeat_interleave(2, 2)  # blocks, not cells: whatever the grid
    torch.testing.assert_close(quiet_level(finer), levels)
    keep = torch.zeros(maps.shape, dtype=torch.bool)
    keep[:, 8:] = True
    wild = torch.where(keep, maps, -1e6)
    torch.testing.assert_close(quiet_level(wild, keep), quiet_level(torch.where(keep, maps, 1e6), keep))
    assert float(quiet_level(wild, keep)[0]) == pytest.approx(float(levels[0]), abs=0.3)
    assert quiet_level(torch.tensor([[[3.0]]])).tolist() == [3.0]  # a map of one cell


def shown(seed: int = 0, slope: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, levels and units of 20 parts in 6 lights: parts of high scores have low levels."""
    rng = np.random.default_rng(seed)
    parts = np.repeat(np.arange(20), 6)
    light = rng.normal(0, 0.5, 120)
    level_of, score_of = rng.normal(20, 1, 20), rng.normal(0, 1, 20)
    levels = level_of[parts] + light
    scores = 30 + slope * light + (score_of - 3 * (level_of - 20))[parts] + rng.normal(0, 0.3, 120)
    return torch.from_numpy(scores), torch.from_numpy(levels), torch.from_numpy(parts)


def test_what_parts_differ_by_is_not_laid_to_their_light() -> None:
    scores, levels, units = shown()
    assert np.polyfit(levels.numpy(), scores.numpy(), 1)[0] < -1
    line, lines, explained = level_lines(scores, levels, units)
    assert line.slope == pytest.approx(2, abs=0.1)
    assert explained > 0.8
    assert (line.lowest, line.highest) == pytest.approx(tuple(np.quantile(levels.numpy(), [0.05, 0.95])))
    without, _, _ = level_lines(scores[6:], levels[6:], units[6:])
    assert set(lines) == set(range(20))
    assert lines[0] == pytest.approx(without, rel=0.01)
    # a part of one image more or less says nothing of the slope
    more = torch.tensor([99.0, 1.0]).double(), torch.tensor([99.0, 1.0]).double(), torch.tensor([20, 21])
    given = [torch.cat(pair) for pair in zip((scores, levels, units), more, strict=True)]
    assert level_lines(*given)[0].slope == pytest.approx(line.slope, rel=0.01)
    shift = line.shift(torch.tensor([line.usual, line.highest, 1e6, -1e6])).tolist()
    assert shift[0] == pytest.approx(0, abs=1e-4)
    assert shift[1] == pytest.approx(shift[2], abs=1e-4)  # a defect that covers all is not explained away
    assert shift[3] == pytest.approx(line.slope * (line.lowest - line.usual), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_level_that_says_nothing_of_the_score_is_left_in(seed: int) -> None:
    scores, levels, units = shown(seed, slope=0)
    line, _, explained = level_lines(scores, levels, units)
    assert explained < 0.05
    assert 0 <= line.slope < 0.2
    falling, _, explained = level_lines(*shown(seed, slope=-2))
    assert explained > 0.5
    assert falling.slope == 0  # scores that rise where the map is quiet are another matter
    even, _, explained = level_lines(scores, torch.full_like(levels, 7.1), units)
    assert (even.slope, even.lowest, even.highest) == (0, 7.1, 7.1)
    assert explained == 0
    assert level_lines(torch.full_like(scores, 7.1), levels, units)[0].slope == pytest.approx(0, abs=1e-9)
    alone, _, explained = level_lines(scores, levels, torch.arange(120))  # nobody is shown twice
    assert (alone.slope, explained) == (0, 0)


def lit(n: int) -> Table:
    """Parts, each under two lights: with more light each cell differs more from the bank."""
    pictures = textures(n, 64)
    both = np.concatenate([pictures // 2, pictures])
    return Table([Row(f"{i}.png", "train", 0, group=str(i % n), pixels=picture) for i, picture in enumerate(both)])


def test_the_level_is_taken_out_of_scores_and_thresholds(tmp_path: Path) -> None:
    table, fresh = lit(10), textures(3, 64, seed=1)
    drift = pg.DriftSample()
    network: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "weights": "random", "size": 64}
    aware = pg.PatchCore(**network, level_shift=True).fit(table, observers=[drift], **TORCH)
    plain = pg.PatchCore(**network, level_shift=False).fit(table, **TORCH)
    told = aware.provenance.details["level"]
    assert told["used"]
    assert plain.level_line is None
    assert aware.level_line is not None
    slope, usual, lowest, highest = aware.level_line.tolist()
    assert slope == pytest.approx(told["slope"], rel=1e-5)
    found, before = aware.predict(fresh, **TORCH), plain.predict(fresh, **TORCH)
    maps = torch.from_numpy(np.stack(found.maps))
    np.testing.assert_array_equal(maps, np.stack(before.maps))  # the map stays
    shift = LevelLine(slope, usual, lowest, highest).shift(quiet_level(maps)).numpy()
    np.testing.assert_allclose(found.scores, before.scores - shift, rtol=1e-4)
    assert aware.calibration is not None
    assert plain.calibration is not None
    assert aware.calibration.scores != plain.calibration.scores
    assert aware.calibration.pixel_threshold == plain.calibration.pixel_threshold
    assert aware.calibration.promise == "estimate"
    # drift compares with the scores that new images are given
    assert aware.reference is not None
    np.testing.assert_allclose(sorted(aware.reference.scores), sorted(aware.calibration.scores), rtol=1e-4)
    loaded = pg.load(aware.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(loaded.predict(fresh, **TORCH).scores, found.scores)
    aware.level_shift = None
    assert aware.fit(table[:10], **TORCH).level_line is None  # of another fit, in which nobody is shown twice


def test_an_image_is_judged_by_the_line_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """So its threshold knows nothing of it: here the lines without a part say nothing, and that of all a lot."""

    def lines(scores: torch.Tensor, levels: torch.Tensor, units: torch.Tensor) -> Any:
        assert units.tolist() == [*range(10), *range(10)]
        return LevelLine(5, 0, 0, 1e9), dict.fromkeys(units.tolist(), LevelLine(0, 0, 0, 0)), explained

    table, explained = lit(10), 0.05
    plain = pg.PatchCore(size=64, level_shift=False).fit(table, **TORCH)
    monkeypatch.setattr(fitting, "level_lines", lines)
    aware = pg.PatchCore(size=64).fit(table, **TORCH)
    assert plain.calibration is not None
    assert aware.calibration is not None
    assert len(aware.calibration.scores) == 20
    assert aware.calibration.scores == plain.calibration.scores
    assert (aware.predict(table[:2], **TORCH).scores < plain.predict(table[:2], **TORCH).scores - 1).all()
    explained = 0.049
    assert pg.PatchCore(size=64).fit(table, **TORCH).level_line is None


def test_what_is_usual_takes_enough_good_images_and_a_score_from_the_map() -> None:
    cases = (
        ("place_scale", rows(9), "images to fit, but there are 9"),
        ("level_shift", lit(9), "parts .* there are 9"),
    )
    for name, table, words in cases:
        asked: dict[str, Any] = {"size": 64, name: True}
        with pytest.raises(InputError, match=rf"{name}=True .* at least 10 {words}: give more, or leave {name} out"):
            pg.PatchCore(**asked).fit(table, **TORCH)
        with pytest.raises(InputError, match=rf"{name}=True .*to validate \(validate\), but there are"):
            pg.FastFlow(**asked, epochs=1).fit(table, validate=0.2, **TORCH)
        with pytest.raises(InputError, match=f"{name}=True .*leave {name} out"):
            pg.PatchCore(**asked, top_share=0).fit(table, **TORCH)
    with pytest.raises(InputError, match=r"level_shift=True .*several images .*there are 0"):
        pg.PatchCore(size=64, level_shift=True).fit(rows(12), **TORCH)
    assert pg.PatchCore(top_share=0).level_matters is False
    assert pg.PatchCore.from_preset("paper").level_matters is False


def test_an_image_that_a_fit_left_out_sets_no_threshold_later(tmp_path: Path) -> None:
    """It looked like none of the others; afterwards it must not pass for a fresh good one."""
    pictures = textures(16, 64)
    pictures[5] = pg.data.paint(pictures[5], "hole", 30, np.random.default_rng(0), contrast=2.0).image
    (tmp_path / "good").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "good" / f"{i:02}.png")
    model = tmp_path / "m.safetensors"
    for calibrate in (None, 0.25):
        wish = FitRequest(settings={"size": 64}, calibrate=calibrate, drop_suspicious=True)
        assert any(odd["path"].endswith("05.png") for odd in fit(tmp_path / "good", model, wish)["suspicious"])
        found = threshold(model, tmp_path / "good", ThresholdRequest("fixed", value=1e9))
        assert found["left_out"] >= 1
        kept = pg.load(model).calibration
        assert kept is not None
        assert max(kept.scores) < pg.load(model).predict(tmp_path / "good" / "05.png").scores[0]


@pytest.mark.parametrize("settings", [{}, {"reweight": 3}, {"calibrate": 0.25}])
def test_a_model_keeps_nothing_that_only_judging_left_out_images_needs(settings: dict[str, Any]) -> None:
    calibrate = settings.get("calibrate")
    reweight = {name: value for name, value in settings.items() if name != "calibrate"}
    detector = pg.PatchCore(
        backbone="resnet18", layers=["layer1"], weights="random", size=64, ratio=0.05, **reweight
    ).fit(textures(8, 64), calibrate=calibrate, **TORCH)
    assert not {"owners", "stand_ins", "stand_in_for"} & set(detector.head_state())


@pytest.mark.parametrize("room", [True, False], ids=["kept", "no room"])
@pytest.mark.parametrize(
    "method", [pg.PatchCore(size=64, ratio=0.1), pg.PaDiM(size=64, dims=4)], ids=["bank", "gaussian"]
)
def test_features_are_computed_once_where_there_is_room(
    method: pg.Detector, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = method.clone().fit(rows(14), **TORCH)
    computed: list[int] = []
    call = BackboneEngine.__call__

    def spied(self: BackboneEngine, images: torch.Tensor) -> Any:
        computed.append(len(images))
        return call(self, images)

    monkeypatch.setattr(BackboneEngine, "__call__", spied)
    if not room:
        monkeypatch.setattr(loading, "_bytes_of", lambda batch: 10**15)
    detector = method.clone().fit(rows(14), batch=4, **TORCH)
    assert sum(computed) == (14 if room else 28)
    assert detector.calibration is not None
    assert whole.calibration is not None
    np.testing.assert_allclose(detector.calibration.scores, whole.calibration.scores, rtol=1e-3)


def test_joined_images_are_the_batch() -> None:
    levels, keep = torch.rand(3, 1, 2, 4, 4), torch.rand(3, 1, 8, 8) > 0.5
    batch = Batch((levels, levels[..., :2, :2]), torch.rand(3, 1, 3, 8, 8), keep)
    parts = [loading._part_of(batch, i) for i in range(3)]
    again = loading._joined(parts)
    assert all(torch.equal(a, b) for a, b in zip(loading._tensors_of(again), loading._tensors_of(batch), strict=True))
    assert again.keep is not None
    assert torch.equal(again.keep, keep)
    assert loading._bytes_of(batch) == sum(map(loading._bytes_of, parts)) == 3 * (4 * (2 * 16 + 2 * 4 + 3 * 64) + 64)
    mixed = loading._joined([parts[0]._replace(keep=None), parts[1]])
    assert mixed.keep is not None
    assert bool(mixed.keep[0].all())
    assert torch.equal(mixed.keep[1:], keep[1:2])
