"""``pickglass threshold``: which images it uses, what it writes into the model, and when it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.app import fit as fitting
from pickglass.app import threshold as use_case
from pickglass.app.fit import FitRequest
from pickglass.app.threshold import ThresholdRequest
from pickglass.calibration import Calibration
from pickglass.calibration.promises import set_by_hand
from pickglass.cli.main import main
from pickglass.data import Dataset, DataSource, Row, Table, image_digest, load_dataset, paint, read_image
from pickglass.detectors.modelfile import read_model, write_model
from pickglass.errors import DataError, InputError, PromiseUnreachable
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.model_header import read_model_header
from pickglass.testing import textures

QUICK: dict[str, Any] = {"size": 64, "ratio": 0.05}
fit = partial(fitting.fit, compute=ComputeOptions(engine="torch"))  # starts sooner than the others
threshold = partial(use_case.threshold, compute=ComputeOptions(engine="torch"))


@pytest.fixture(scope="module")
def fitted(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("threshold") / "m.safetensors"
    fit(small_dataset, target, FitRequest(settings=QUICK, calibrate=0.25))  # 12 fitted, 4 held back
    return target


@pytest.fixture
def model(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fitted, tmp_path / "m.safetensors"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of 12 good images that no model has seen."""
    folder = tmp_path_factory.mktemp("fresh")
    for i, image in enumerate(textures(12, 96, seed=9)[:, :80]):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def scores(model: Path, folder: Path) -> list[float]:
    return sorted(pg.load(model).predict(folder, engine="torch").scores.tolist())


def test_the_same_folder_uses_the_scores_in_the_model(model: Path, small_dataset: Path) -> None:
    before, tensors = read_model(model)
    result = threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6, shift=100))
    assert list(result) == [
        "promise", "image_threshold", "unsure_threshold", "pixel_threshold",
        "image_threshold_before", "unsure_threshold_before", "pixel_threshold_before",
        "false_alarm_bound", "unsure_bound", "confidence", "n_calibrate", "left_out", "sentence", "sentence_before",
        "model_id", "model_version",
    ]  # fmt: skip
    kept = before["calibration"]["scores"]
    assert (result["promise"], result["n_calibrate"], result["confidence"]) == ("tolerance", 4, 0.95)
    assert result["image_threshold"] == max(kept)
    assert result["false_alarm_bound"] == pytest.approx(1 - 0.05**0.25)
    assert (
        "from 4 calibration images held back at the fit, if coming parts are like these; in a shift"
        in (result["sentence"])
    )
    after, same = read_model(model)
    assert after["calibration"]["scores"] == kept
    assert after["calibration"]["sentence"] == result["sentence"]
    changed = ("calibration", "version", "history")
    assert {k: v for k, v in after.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}
    assert all((same[name] == tensor).all() for name, tensor in tensors.items())
    loaded = pg.load(model).calibration
    assert loaded is not None
    assert loaded.image_threshold == result["image_threshold"]


@pytest.mark.slow
def test_other_images_are_judged_and_the_condition_is_told(model: Path, fresh: Path) -> None:
    header, tensors = read_model(model)
    known = {key: value for key, value in header["provenance"].items() if key != "fitted_images"}
    write_model(model, {**header, "provenance": known}, tensors)
    judged = scores(model, fresh)
    result = threshold(model, fresh, ThresholdRequest(false_alarm=0.4, confidence=0.9, pixel="any"))
    r = 2  # P(Binomial(12, 0.4) <= 2) = 0.083 > 0.05; 1: 0.020
    assert result["image_threshold"] == pytest.approx(judged[-r], rel=1e-6)
    assert "and none of them was fitted, which the model does not tell" in result["sentence"]
    peaks = sorted(float(m.max()) for m in pg.load(model).predict(fresh, engine="torch").maps)
    assert result["pixel_threshold"] == pytest.approx(peaks[-r], rel=1e-6)
    header = read_model_header(model)
    assert (header["calibration"]["source"], header["calibration"]["pixel_promise"]) == ("given", "any")


@pytest.mark.slow
def test_scores_of_other_images_do_not_pass_for_those_held_back(model: Path, small_dataset: Path, fresh: Path) -> None:
    own = read_model_header(model)["calibration"]["scores"]
    threshold(model, fresh, ThresholdRequest(false_alarm=0.5))
    assert threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6))["image_threshold"] == pytest.approx(
        max(own), rel=1e-6
    )


def test_stale_scores_are_not_used(model: Path, small_dataset: Path) -> None:
    header, tensors = read_model(model)
    write_model(
        model, {**header, "calibration": {**header["calibration"], "stale": True, "scores": [1e9] * 4}}, tensors
    )
    assert threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6))["image_threshold"] < 1e9
    assert read_model_header(model)["calibration"]["stale"] is False


def test_fitted_images_and_their_groups_are_left_out(model: Path, fresh: Path) -> None:
    rows = [replace(row, group=f"part{i // 2}") for i, row in enumerate(load_dataset(fresh).table)]
    header, tensors = read_model(model)
    known = {**header["provenance"], "fitted_images": [image_digest(rows[i])[:16] for i in (0, 5)]}
    write_model(model, {**header, "provenance": known}, tensors)
    mixed = Dataset("mixed", "", "rows", Table(rows))
    result = threshold(model, mixed, ThresholdRequest(false_alarm=0.6))
    assert result["n_calibrate"] == 4  # of six parts
    assert "from 4 groups of 8 calibration images" in result["sentence"]
    assert "not tell" not in result["sentence"]
    with pytest.raises(DataError, match="no good image is left"):
        threshold(model, Dataset("used", "", "rows", Table(rows[:2])), ThresholdRequest(false_alarm=0.6))


def test_rows_of_the_role_calibrate_come_first(model: Path, fresh: Path) -> None:
    rows = [replace(row, role="calibrate" if i < 7 else "train") for i, row in enumerate(load_dataset(fresh).table)]
    result = threshold(model, Dataset("roles", "", "rows", Table(rows)), ThresholdRequest(false_alarm=0.5))
    assert result["n_calibrate"] == 7


@pytest.mark.slow
def test_estimate_judges_by_refits_and_promises_nothing(model: Path, small_dataset: Path) -> None:
    result = threshold(model, small_dataset, ThresholdRequest(false_alarm=0.2, promise="estimate", folds=2))
    train = load_dataset(small_dataset).train
    assert result["n_calibrate"] == len(train)
    assert result["false_alarm_bound"] is None
    assert "an estimate and no promise" in result["sentence"]
    kept = read_model_header(model)["calibration"]["scores"]
    assert sorted(kept)[-3] == result["image_threshold"]  # (r + 1) / 17 <= 0.2: r = 2
    assert min(kept) > min(scores(model, small_dataset / "train"))  # judged by itself, an image looks better


@pytest.fixture
def masks(small_dataset: Path, tmp_path: Path) -> Path:
    """A folder with a mask an image: its left three quarters."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for row in load_dataset(small_dataset).train:
        mask = np.zeros(read_image(row.path).shape[:2], np.uint8)
        mask[:, : mask.shape[1] * 3 // 4] = 255
        Image.fromarray(mask).save(folder / f"{Path(row.path).stem}.png")
    return folder


@pytest.mark.slow
def test_a_model_with_a_region_of_interest_knows_the_images_it_was_fitted_on(
    small_dataset: Path, masks: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m.safetensors"
    fit(DataSource(small_dataset, roi=masks), model, FitRequest(settings=QUICK, calibrate=0.25))
    held = read_model_header(model)["calibration"]["scores"]
    result = threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6))
    assert (result["n_calibrate"], result["image_threshold"]) == (4, sorted(held)[-1])
    assert "held back" in result["sentence"]
    threshold(model, DataSource(small_dataset, roi=masks), ThresholdRequest(false_alarm=0.6))
    assert read_model_header(model)["calibration"]["scores"] == held
    whole_image = tmp_path / "whole.png"
    Image.fromarray(np.full((80, 96), 255, np.uint8)).save(whole_image)
    threshold(model, DataSource(small_dataset, roi=whole_image), ThresholdRequest(false_alarm=0.6))
    seen = np.array(read_model_header(model)["calibration"]["scores"])
    assert len(seen) == len(held)  # judged anew, on more of each image
    assert not np.allclose(seen, held, rtol=1e-4)  # what is outside was never learned
    threshold(model, DataSource(small_dataset, roi=masks), ThresholdRequest(false_alarm=0.6))
    assert read_model_header(model)["calibration"]["scores"] == pytest.approx(held, rel=1e-5)
    with pytest.raises(InputError, match=r"within a region of interest.*name the mask or the folder of masks"):
        threshold(model, small_dataset, ThresholdRequest(false_alarm=0.5, promise="estimate", folds=2))
    threshold(
        model, DataSource(small_dataset, roi=masks), ThresholdRequest(false_alarm=0.5, promise="estimate", folds=2)
    )
    inside = read_model_header(model)["calibration"]["scores"]
    whole = tmp_path / "whole.safetensors"
    fit(small_dataset, whole, FitRequest(settings=QUICK, calibrate=0.25))
    threshold(whole, small_dataset, ThresholdRequest(false_alarm=0.5, promise="estimate", folds=2))
    assert inside != read_model_header(whole)["calibration"]["scores"]


@pytest.mark.slow
def test_images_without_the_masks_that_a_model_was_fitted_with_are_named(
    small_dataset: Path, fresh: Path, masks: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m.safetensors"
    fit(DataSource(small_dataset, roi=masks), model, FitRequest(settings=QUICK, calibrate=0))
    with pytest.warns(UserWarning, match="12 of 12 images have no region of interest"):
        pg.load(model).predict(fresh, engine="torch")
    pg.load(model).predict(pg.data.with_roi(load_dataset(small_dataset).train, masks), engine="torch")  # no warning


def test_area_reads_the_maps(model: Path, fresh: Path) -> None:
    result = threshold(model, fresh, ThresholdRequest(false_alarm=0.3, promise="marginal", pixel="area"))
    found = pg.load(model).predict(fresh, engine="torch")
    maps = [found.map(i) for i in range(12)]
    shares = [(m > result["pixel_threshold"]).mean() for m in maps]
    assert (sum(shares) + 1) / 13 <= 0.15
    assert sum(shares) > 0.5  # of the 0.95 that are allowed
    assert "on average at most 15 % of their pixels" in result["sentence"]


@pytest.mark.slow
def test_best_f1_needs_labelled_validation_images(model: Path, fresh: Path) -> None:
    rng = np.random.default_rng(0)
    good = list(load_dataset(fresh).table)
    bad = [
        Row(f"array:{i}", "validate", 1, "hole", pixels=paint(image, "hole", 24, rng, contrast=2.0).image)
        for i, image in enumerate(textures(4, 96, seed=10)[:, :80].copy())
    ]
    rows = [*[replace(row, role="validate") for row in good], *bad]
    result = threshold(model, Dataset("v", "", "rows", Table(rows)), ThresholdRequest(promise="f1"))
    assert (result["n_calibrate"], result["false_alarm_bound"]) == (12, None)
    assert max(scores(model, fresh)) < result["image_threshold"]
    assert "F1 is highest, 1.000" in result["sentence"]
    as_test = [replace(row, role="test") for row in bad]
    with pytest.raises(DataError, match=r"found 12 good and 0 defective ones.*test images never"):
        threshold(model, Dataset("v", "", "rows", Table([*rows[:12], *as_test])), ThresholdRequest(promise="f1"))


def test_a_broken_image_is_no_calibration_image(model: Path, fresh: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fresh, tmp_path / "broken")
    (folder / "03.png").write_bytes(b"no image")
    before = model.read_bytes()
    with pytest.raises(DataError, match="1 of 12 images for the threshold cannot be read"):
        threshold(model, folder, ThresholdRequest(false_alarm=0.5))
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"promise": "fixed"}, "value=None"),
        ({"value": 3.0}, "promise='tolerance' with value=3.0"),
        ({"promise": "fixed", "value": float("nan")}, "value=nan"),
        ({"promise": "f1", "pixel": "any"}, "promises no false-alarm rate"),
        ({"promise": "f1", "unsure": 0.1}, r"promises no false-alarm rate.*unsure_value sets"),
        ({"promise": "fixed", "value": 3.0, "unsure": 0.1}, "promises no false-alarm rate"),
        ({"unsure": 0.1, "unsure_value": 3.0}, "unsure_value=3.0 with unsure=0.1"),
        ({"unsure_value": float("inf")}, "unsure_value=inf"),
        ({"unsure": 0.0}, "unsure=0.0"),
        ({"promise": "fixed", "value": 3.0, "unsure_value": 3.0}, "expected unsure below image"),
        ({"false_alarm": 2.0}, "false_alarm=2.0"),
        ({"promise": "estimate", "folds": 1}, "folds=1"),
    ],
)
def test_arguments_that_make_no_sense(model: Path, small_dataset: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        threshold(model, small_dataset, ThresholdRequest(**wrong))


# -- as a user types it ----------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command(
    model: Path, small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "threshold", model, small_dataset, "--false-alarm", 0.6, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["false_alarm_bound"] <= 0.6
    before = model.read_bytes()
    assert run(monkeypatch, "threshold", model, small_dataset) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "takes 299 calibration images, there are 4: 295 are missing" in shown.err
    assert model.read_bytes() == before
    assert run(monkeypatch, "threshold", model, small_dataset, "--promise", "fixed", "--value", 7.5) == 0
    shown = capsys.readouterr()
    assert "bad above 7.5" in shown.out
    assert "no false-alarm rate is promised" in shown.out
    assert run(monkeypatch, "threshold", model, small_dataset, "--false-alarm", 1.5) == 2


def test_a_band_of_unsure_is_set_told_kept_and_removed(
    model: Path, small_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = sorted(read_model_header(model)["calibration"]["scores"], reverse=True)
    words = ["threshold", model, small_dataset, "--false-alarm", 0.6, "--unsure", 0.2]
    assert run(monkeypatch, *words, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["image_threshold"], result["unsure_threshold"]) == (falling[0], falling[1])
    assert (result["unsure_threshold_before"], result["n_calibrate"]) == (None, 4)
    assert result["false_alarm_bound"] <= 0.6 < result["unsure_bound"] <= 0.8
    assert pg.load(model).calibration.verdict(falling[0]) == "unsure"  # type: ignore[union-attr]
    assert run(monkeypatch, *words[:-1], 0.3) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"bad above {falling[0]:.6g}, unsure above {falling[1]:.6g}, pixels above" in told
    assert "flagged or unsure: at most 75.2 %, with 95 % confidence of its own" in told
    # numbers by hand leave the band; another promise without --unsure does not, and says so
    by_hand = threshold(model, None, ThresholdRequest(pixel_value=3.0))
    assert by_hand["unsure_threshold"] == falling[1]
    assert "flagged or unsure: at most" in by_hand["sentence"]
    assert run(monkeypatch, *words[:-2]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"none unsure (was above {falling[1]:.6g}; --unsure keeps a band)" in told
    assert "flagged or unsure" not in told.split("until now:")[0]
    assert read_model_header(model)["calibration"]["unsure_threshold"] is None
    assert run(monkeypatch, "threshold", model, "--unsure-value", falling[2]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"unsure above {falling[2]:.6g}, pixels above" in told
    assert "flagged or unsure: 2 of 4 good images, by a fixed value that promises nothing" in told
    assert run(monkeypatch, "info", model) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"bad above a score of {falling[0]:.6g}, unsure above {falling[2]:.6g} and up to it, and a pixel" in told
    assert f"unsure threshold none -> {falling[1]:.6g}" in told
    assert f"unsure threshold {falling[1]:.6g} -> none" in told
    assert f"unsure threshold none -> {falling[2]:.6g}" in told


def test_a_band_that_the_images_cannot_carry_is_refused(
    model: Path, small_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.read_bytes()
    assert run(monkeypatch, "threshold", model, small_dataset, "--false-alarm", 0.6, "--unsure", 0.05) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "and 5 % more for unsure, takes 10 calibration images, there are 4: 6 are missing" in shown.err
    assert "these 4 allow 15.2 % for unsure (--unsure 0.152)" in shown.err
    assert model.read_bytes() == before
    assert run(monkeypatch, "threshold", model, small_dataset, "--false-alarm", 0.6, "--unsure", 0.152) == 0


def test_a_file_from_before_there_was_a_band_reads_as_before(model: Path, small_dataset: Path) -> None:
    header, tensors = read_model(model)
    old = {k: v for k, v in header["calibration"].items() if not k.startswith("unsure")}
    history = [{k: v for k, v in change.items() if not k.startswith("unsure")} for change in header["history"]]
    known = {k: v for k, v in header.items() if k != "format"}
    write_model(model, {**known, "calibration": old, "history": history}, tensors)
    assert pg.load(model).calibration == Calibration.from_json(header["calibration"])
    result = threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6, unsure=0.2))
    assert result["unsure_threshold"] is not None
    assert [change.unsure_threshold for change in pg.load(model).history] == [None, result["unsure_threshold"]]


def test_thresholds_by_hand_keep_their_order(model: Path) -> None:
    detector = pg.load(model)
    calibration = detector.calibration
    assert calibration is not None
    assert calibration.image_threshold is not None
    limit = calibration.image_threshold
    assert detector.set_thresholds(unsure=limit - 1).verdict(limit) == "unsure"
    assert detector.history[-1].unsure_threshold == limit - 1
    assert detector.set_thresholds(image=limit + 1).unsure_threshold == limit - 1  # None: as it is
    for wrong in ({"unsure": limit + 1}, {"image": limit - 1}, {"image": 1.0, "unsure": 1.0}):
        with pytest.raises(InputError, match=r"expected unsure below image"):
            detector.set_thresholds(**wrong)
    with pytest.raises(InputError, match="expected a finite number"):
        detector.set_thresholds(unsure=float("nan"))
    assert len(detector.history) == 3
    bare = replace(calibration, image_threshold=None, scores=(), peaks=())
    with pytest.raises(InputError, match=r"image=None, unsure=1\.0: expected unsure below image"):
        set_by_hand(bare, unsure=1.0)


@pytest.mark.slow
def test_fifteen_strips_are_too_few(real_data: Path, tmp_path: Path) -> None:
    strips = real_data / "aitex_fabric04"
    target = tmp_path / "f04.safetensors"
    fit(strips, target, FitRequest(settings={"size": (32, 512), "ratio": 0.02}))
    with pytest.raises(PromiseUnreachable) as error:
        threshold(target, strips)
    assert (error.value.needed, error.value.missing) == (299, 299)  # none was held back


# -- what was and what is ----------------------------------------------------------------------------------------------


def test_a_new_threshold_is_in_the_history_and_the_model_keeps_its_id(
    model: Path, small_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_model_header(model)
    (fitted,) = header["history"]
    assert (fitted["command"], header["version"]) == ("fit", 1)
    assert fitted["image_threshold"] == header["calibration"]["image_threshold"]
    assert header["id"] == pg.load(model).model_id()
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, ("threshold", model, "--value", 9))])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert f"bad above 9 (was {fitted['image_threshold']:.6g}), pixels above" in printed
    assert f"model {header['id']}, now version 2" in printed
    assert f"until now: {header['calibration']['sentence']}" in " ".join(printed.split())
    result = threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6))
    assert (result["image_threshold_before"], result["model_id"], result["model_version"]) == (9.0, header["id"], 3)
    after = read_model_header(model)
    assert [change["command"] for change in after["history"]] == ["fit", "threshold", "threshold"]
    assert [change["promise"] for change in after["history"]] == ["marginal", "fixed", "tolerance"]
    assert (after["id"], after["version"], pg.load(model).model_version) == (header["id"], 3, 3)
    monkeypatch.setattr(sys, "argv", ["pickglass", "info", str(model)])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    assert f"Its id is {header['id']}, version 3:" in told
    assert "UTC: threshold, image threshold 9 -> " in " ".join(told.split())


def test_a_file_without_id_or_history_loads_and_gets_them_with_its_next_threshold(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    header, tensors = read_model(model)
    write_model(model, {k: v for k, v in header.items() if k not in ("id", "version", "history", "format")}, tensors)
    old = pg.load(model)
    assert (old.model_id(), old.model_version, old.history) == (header["id"], 1, ())
    monkeypatch.setattr(sys, "argv", ["pickglass", "info", str(model)])
    with pytest.raises(SystemExit):
        main()
    assert "no id and no history" in capsys.readouterr().out
    result = threshold(model, None, ThresholdRequest("fixed", value=3.0))
    assert (result["model_id"], result["model_version"]) == (header["id"], 2)
    assert len(read_model_header(model)["history"]) == 1


def test_the_id_follows_what_was_learned_and_the_settings(model: Path) -> None:
    first, again = pg.load(model), pg.load(model)
    first.set_thresholds(image=5.0)
    assert first.model_id() == again.model_id()
    again.smoothing = 2.5
    assert again.model_id() != first.model_id()
    other = pg.PatchCore(size=64, ratio=0.05).fit(textures(8, 64, seed=5), engine="torch")
    assert other.model_id() != first.model_id()


def test_thresholds_set_by_hand_say_how_many_good_images_exceed_them(model: Path) -> None:
    before = read_model_header(model)["calibration"]
    limit = sorted(before["peaks"])[1]
    result = threshold(model, None, ThresholdRequest(pixel_value=limit))
    assert (result["image_threshold"], result["pixel_threshold"]) == (before["image_threshold"], limit)
    assert result["promise"] == before["promise"]
    assert result["false_alarm_bound"] == before["false_alarm_bound"]
    assert result["sentence"].startswith(before["sentence"])
    assert "promises nothing: 2 of 4 good images have a pixel above it" in result["sentence"]
    detector = pg.load(model)
    assert detector.calibration is not None
    assert detector.calibration.pixel_promise == "fixed"
    calibration = detector.set_thresholds(pixel=max(before["peaks"]))
    assert calibration.sentence.count("the pixel threshold, a fixed value") == 1
    assert "0 of 4 good images have a pixel above it" in calibration.sentence
    assert [change.command for change in detector.history] == ["fit", "threshold", "set_thresholds"]
    assert detector.history[-1].pixel_threshold_before == limit
    both = detector.set_thresholds(image=min(before["scores"]), pixel=limit)
    assert both.sentence.startswith("a fixed value; 3 of 4 good images exceed it, and no false-alarm rate is promised;")
    assert both.false_alarm_bound is None


@pytest.mark.slow
def test_a_pixel_threshold_by_hand_stands_beside_a_promise(model: Path, small_dataset: Path) -> None:
    result = threshold(model, small_dataset, ThresholdRequest(false_alarm=0.6, pixel_value=7.5))
    assert (result["promise"], result["pixel_threshold"]) == ("tolerance", 7.5)
    assert result["false_alarm_bound"] == pytest.approx(1 - 0.05**0.25)


def test_numbers_by_hand_that_cannot_be_are_refused(model: Path) -> None:
    for request in (ThresholdRequest(pixel_value=float("nan")), ThresholdRequest(pixel_value=1.0, pixel="any")):
        with pytest.raises(InputError, match="pixel_value="):
            threshold(model, None, request)
    with pytest.raises(InputError, match="no images and no numbers"):
        threshold(model, None)
    for request in (ThresholdRequest("marginal", pixel_value=1.0), ThresholdRequest(false_alarm=0.2, pixel_value=1.0)):
        with pytest.raises(InputError, match="a promise rests on good images"):
            threshold(model, None, request)
    detector = pg.load(model)
    with pytest.raises(InputError, match="expected a finite number"):
        detector.set_thresholds()
    detector.smoothing = 2.5
    with pytest.raises(InputError, match="settings were changed"):
        detector.set_thresholds(pixel=1.0)
    assert read_model_header(model)["version"] == 1


@pytest.mark.parametrize("words", ["--promise tolerance", "--roi mask.png", "--group-by a", "--good fine", "--shift 9"])
def test_options_that_need_images_are_not_dropped(
    model: Path, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pickglass", "threshold", str(model), "--pixel-value", "3", *words.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "(DATA)" in (err := capsys.readouterr().err) or "no DATA" in err
    assert read_model_header(model)["version"] == 1
