"""Evaluation joined to the truth, and what a prediction offers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import auc, average_precision_score, f1_score, roc_auc_score

import pickglass as pg
from pickglass.app.results import Counts
from pickglass.app.testing.saving import saved_arrays, write_arrays
from pickglass.calibration import usual_threshold
from pickglass.data import as_table
from pickglass.errors import ImageError, InputError
from pickglass.metrics import PimoCurves, aupro, group_weights
from pickglass.result import Found, Prediction, find_defects


@pytest.fixture
def prediction(tmp_path: Path) -> Prediction:
    """Three good and three defective 16 x 20 images with made-up maps on a 4 x 5 grid."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(6):
        mask = None
        map_ = rng.random((4, 5)).astype(np.float32)
        if i >= 3:
            pixels = np.zeros((16, 20), np.uint8)
            pixels[4:9, 3 * i - 6 : 3 * i] = 255
            mask = str(tmp_path / f"{i}_mask.png")
            Image.fromarray(pixels).save(mask)
            map_[1, 1:3] += 1
        row = pg.Row(f"{i}.png", label=int(i >= 3), defect=None if i < 3 else ("cut", "hole")[i % 2], mask=mask)
        found.append(Found(row, float(np.float32(map_.max() + rng.random())), map_, (16, 20)))
    return Prediction(tuple(found), calibration=usual_threshold([1.5], [1.2]))


def with_rows(prediction: Prediction, rows: tuple[pg.Row, ...]) -> Prediction:
    return replace(prediction, found=tuple(f._replace(row=row) for f, row in zip(prediction, rows, strict=True)))


def masks_of(prediction: Prediction) -> list[np.ndarray | None]:
    return [None if row.mask is None else np.asarray(Image.open(row.mask)) > 0 for row in prediction.rows]


def test_numbers_are_those_of_outside_references(prediction: Prediction) -> None:
    found = pg.evaluate(prediction)
    labels = [row.label for row in prediction.rows]
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, prediction.scores))
    assert found["average_precision"] == pytest.approx(average_precision_score(labels, prediction.scores))
    maps = [prediction.map(i) for i in range(6)]
    masks = masks_of(prediction)
    truth = np.concatenate([np.zeros(320) if m is None else m.ravel() for m in masks])
    assert found["pixel_auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([m.ravel() for m in maps])))
    assert found["aupro_30"] == pytest.approx(aupro(maps, masks, 0.3))
    assert found["aupro_05"] == pytest.approx(aupro(maps, masks, 0.05))
    assert found["n"] == 6
    assert set(found.by_type) == {"cut", "hole"}
    keep = [i for i in range(6) if prediction.rows[i].defect in (None, "cut")]
    assert found.by_type["cut"]["aupro_30"] == pytest.approx(aupro([maps[i] for i in keep], [masks[i] for i in keep]))


def test_truth_is_joined_by_path_not_by_order(prediction: Prediction) -> None:
    bare = with_rows(prediction, tuple(pg.Row(row.path) for row in prediction.rows))
    with pytest.raises(InputError, match="none of the 6 images has a label"):
        pg.evaluate(bare)
    joined = pg.evaluate(bare, pg.Table(prediction.rows[::-1]))
    assert dict(joined) == dict(pg.evaluate(prediction))
    with pytest.raises(InputError, match=r"not in the truth, e.g. '0.png'"):
        pg.evaluate(bare, pg.Table(prediction.rows[1:]))


def test_saved_arrays_hold_the_truth_and_give_the_same_figures(prediction: Prediction, tmp_path: Path) -> None:
    found = pg.evaluate(prediction)
    arrays = saved_arrays(prediction, found)
    write_arrays(tmp_path / "two.npz", {"a": arrays, "b": {"scores": arrays["scores"]}})
    with np.load(tmp_path / "two.npz") as saved:  # without pickled objects
        assert sorted(name for name in saved if name.startswith("b/")) == ["b/scores"]
        back = {name.removeprefix("a/"): saved[name] for name in saved if name.startswith("a/")}
    assert back.keys() == arrays.keys()
    assert back["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert set(back["types"]) == {"", "cut", "hole"}
    assert roc_auc_score(back["labels"], back["scores"]) == pytest.approx(found["image_auroc"])
    assert auc(back["curves/roc_fpr"], back["curves/roc_tpr"]) == pytest.approx(found["image_auroc"])
    assert back["curves/pro"].shape == back["curves/pro_fpr"].shape
    for i, mask in enumerate(masks_of(prediction)):
        assert (f"masks/{i}" in back) == (mask is not None)
        if mask is not None:
            np.testing.assert_array_equal(back[f"masks/{i}"], mask)
    assert back["thresholds"][0] == pytest.approx(prediction.calibration.image_threshold)  # type: ignore[union-attr]
    assert np.isnan(back["thresholds"][1])
    assert back["sizes"].tolist() == [[16, 20]] * 6


def test_rates_at_the_deployed_thresholds(prediction: Prediction) -> None:
    found = pg.evaluate(prediction)
    flagged = [prediction.verdict(i) == "bad" for i in range(6)]
    assert found["false_alarm_rate"] == pytest.approx(sum(flagged[:3]) / 3)
    assert found["miss_rate"] == pytest.approx(1 - sum(flagged[3:]) / 3)
    assert found["f1"] == pytest.approx(f1_score([0, 0, 0, 1, 1, 1], flagged))
    predicted = np.concatenate([prediction.mask(i).ravel() for i in range(6)])
    truth = np.concatenate([np.zeros(320) if m is None else m.ravel() for m in masks_of(prediction)])
    assert found["pixel_f1"] == pytest.approx(f1_score(truth, predicted))
    cut = [i for i in range(3, 6) if prediction.rows[i].defect == "cut"]
    assert (found["n_good"], found["n_defective"], found["missed"]) == (3, 3, 3 - sum(flagged[3:]))
    assert found["false_alarms"] == sum(flagged[:3])
    assert [found.by_type["cut"][name] for name in ("n_defective", "missed")] == [
        len(cut), len(cut) - sum(flagged[i] for i in cut)]  # fmt: skip
    assert found.by_type["cut"]["miss_rate"] == pytest.approx(1 - sum(flagged[i] for i in cut) / len(cut))
    assert found.by_type["cut"]["false_alarm_rate"] == found["false_alarm_rate"]
    bare = pg.evaluate(replace(prediction, calibration=None))
    assert [bare[name] for name in ("f1", "false_alarm_rate", "miss_rate", "pixel_f1")] == [None] * 4
    assert bare["aupro_30"] == found["aupro_30"]


def test_unsure_images_are_neither_false_alarms_nor_missed(prediction: Prediction) -> None:
    rising = np.sort(prediction.scores).tolist()
    good, bad = prediction.scores[:3], prediction.scores[3:]
    assert prediction.calibration is not None
    unsure = pg.evaluate(prediction)
    assert (unsure["unsure_good_rate"], unsure["unsure_defective_rate"]) == (None, None)
    for low in range(6):
        for high in range(low + 1, 6):
            both = replace(prediction.calibration, image_threshold=rising[high], unsure_threshold=rising[low])
            judged = replace(prediction, calibration=both)
            found = pg.evaluate(judged)
            verdicts = [judged.verdict(i) for i in range(6)]
            assert verdicts.count("unsure") == high - low
            assert found["false_alarm_rate"] == (good > rising[high]).mean() == verdicts[:3].count("bad") / 3
            assert found["miss_rate"] == (bad <= rising[low]).mean() == verdicts[3:].count("good") / 3
            assert found["unsure_good_rate"] == verdicts[:3].count("unsure") / 3
            assert found["unsure_defective_rate"] == verdicts[3:].count("unsure") / 3
            assert found["f1"] == pytest.approx(f1_score([0, 0, 0, 1, 1, 1], [v == "bad" for v in verdicts]))
            assert any("neither a false alarm nor missed" in note for note in found.notes)
    assert {"unsure_good_rate", "unsure_defective_rate"} <= set(pg.evaluate(judged, repeats=20)["intervals"])


def test_aupimo_is_per_image_and_its_mean(prediction: Prediction) -> None:
    found = pg.evaluate(prediction)
    curves = PimoCurves()
    for i, mask in enumerate(masks_of(prediction)):
        curves.update(prediction.map(i), mask)
    expected = curves.compute().scores[3:]
    assert list(found.aupimo) == ["3.png", "4.png", "5.png"]
    assert list(found.aupimo.values()) == pytest.approx(expected)
    assert found["aupimo"] == pytest.approx(expected.mean())
    assert found.by_type["hole"]["aupimo"] == pytest.approx(expected[[0, 2]].mean())
    assert any("960 pixels of good images cannot resolve" in note for note in found.notes)


def test_intervals_come_with_repeats_and_hold_the_value(prediction: Prediction) -> None:
    rows = tuple(replace(row, group=f"part {i % 4}") for i, row in enumerate(prediction.rows))
    grouped = with_rows(prediction, rows)
    plain, found = pg.evaluate(grouped), pg.evaluate(grouped, repeats=60)
    assert plain["intervals"] is None
    assert {**found, "intervals": None} == dict(plain)
    unsure = {"unsure_good_rate", "unsure_defective_rate"}
    counts = {"n", *Counts.__annotations__}
    assert set(found["intervals"]) == set(found) - {"aupimo", "au_spro_05", "intervals"} - unsure - counts
    for name, (low, high) in found["intervals"].items():
        assert 0 <= low <= high <= 1
        assert low - 0.01 <= found[name] <= high + 0.01
    low, high = found["intervals"]["false_alarm_rate"]
    rates = []  # parts 0 and 1 hold a good and a bad image each, 2 a good one, 3 a bad one
    flagged = [prediction.verdict(i) == "bad" for i in range(3)]
    for weight in group_weights([row.group for row in rows], 60, seed=0):
        if weight[:3].sum():
            rates.append(weight[:3] @ flagged / weight[:3].sum())
    assert (low, high) == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])))
    assert found.by_type["cut"]["intervals"] is not None
    assert any("60 draws of 4 groups of images. Under 20 groups" in note for note in found.notes)
    assert pg.evaluate(grouped, repeats=60)["intervals"] == found["intervals"]
    assert pg.evaluate(grouped, repeats=60, seed=1)["intervals"] != found["intervals"]


def test_a_type_without_masks_has_image_metrics_only(prediction: Prediction) -> None:
    rows = tuple(replace(row, mask=None) if row.defect == "cut" else row for row in prediction.rows)
    found = pg.evaluate(with_rows(prediction, rows), repeats=20)
    assert found.by_type["cut"]["image_auroc"] is not None
    assert found.by_type["cut"]["aupro_30"] is None
    assert found.by_type["cut"]["pixel_f1"] is None
    assert "aupro_30" not in found.by_type["cut"]["intervals"]
    assert found.by_type["hole"]["aupro_30"] is not None


def test_what_is_undefined_is_none(prediction: Prediction) -> None:
    good = Prediction(tuple(prediction)[:3])
    assert pg.evaluate(good)["image_auroc"] is None
    assert pg.evaluate(good)["aupro_30"] is None
    without = with_rows(prediction, tuple(replace(row, mask=None) for row in prediction.rows))
    found = pg.evaluate(without)
    assert found["pixel_auroc"] is None
    assert found["image_auroc"] is not None
    assert "3 defective images have no mask" in found.notes[0]


def test_a_mask_that_contradicts_its_label_is_named(prediction: Prediction) -> None:
    rows = tuple(replace(row, label=0, defect=None) for row in prediction.rows)
    with pytest.raises(ImageError, match="labelled good: correct one of them"):
        pg.evaluate(with_rows(prediction, rows))


def test_unlabelled_images_are_left_out_and_counted(prediction: Prediction) -> None:
    rows = (pg.Row("0.png"), *prediction.rows[1:])
    found = pg.evaluate(with_rows(prediction, rows))
    assert found["n"] == 5
    assert "1 images have no label" in found.notes[0]


def test_prediction_offers_maps_masks_verdicts_and_defects(prediction: Prediction) -> None:
    assert prediction.map(0).shape == (16, 20)
    assert prediction.mask(4).dtype == bool
    assert prediction.verdict(0) in ("good", "bad")
    assert prediction.verdict(5) == ("bad" if prediction.scores[5] > 1.5 else "good")
    defects = prediction.defects(4)
    assert defects[0].peak == pytest.approx(prediction.map(4).max())
    without = replace(prediction, calibration=None)
    assert without.verdict(0) is None
    with pytest.raises(InputError, match="no pixel threshold"):
        without.mask(0)
    assert without.mask(0, threshold=0.5).any()
    assert [found.row.path for found in prediction] == [f"{i}.png" for i in range(6)]


def test_defects_are_boxes_of_connected_pixels() -> None:
    full = np.zeros((6, 8), np.float32)
    full[1, 2] = 3
    full[2, 3] = 2  # touches at the corner: one region
    full[4:6, 6:8] = 5
    found = find_defects(full, 1.0)
    assert [(d.box, d.area, d.peak) for d in found] == [([6, 4, 2, 2], 4, 5.0), ([2, 1, 2, 2], 2, 3.0)]
    assert find_defects(full, 5.0) == []


def test_the_threshold_itself_is_still_good() -> None:
    calibration = usual_threshold([1.0, 3.0, 2.0], [0.5, 0.7, 0.6])
    assert calibration.image_threshold == 3.0
    assert calibration.pixel_threshold == 0.7
    assert [calibration.verdict(s) for s in (2.9, 3.0, 3.1)] == ["good", "good", "bad"]
    assert usual_threshold([], []).verdict(9.0) is None
    assert type(calibration).from_json(calibration.to_json()) == calibration


def test_the_image_that_sets_the_threshold_is_named() -> None:
    """One reject among the good images sets a threshold under which every reject passes."""
    named = usual_threshold([1.0, 30.0, 2.5], [1.0, 3.0, 2.0], names=["a.png", "reject.png", "c.png"])
    assert named.image_threshold == 30
    assert "; reject.png sets it (without it: 2.5)" in named.sentence
    assert "3 images say little" in named.sentence
    alone = usual_threshold([1.0], [1.0], names=["a.png"])  # there is none without it
    assert "sets it" not in alone.sentence


def test_with_many_images_a_share_of_them_lies_above_and_is_named() -> None:
    scores = [float(i) for i in range(60)]
    found = usual_threshold(scores, scores, names=[f"{i}.png" for i in range(60)])
    assert found.r == 2  # 3 / 61 is below 5 %, 4 / 61 above
    assert (found.image_threshold, found.pixel_threshold) == (57.0, 57.0)
    assert found.false_alarm_bound == pytest.approx(3 / 61)
    assert "57.png sets it (without it: 56); above it lie 59.png, 58.png" in found.sentence


def test_scores_as_if_left_out_are_an_estimate_unless_more_images_never_raise_a_score() -> None:
    scores = [float(i) for i in range(60)]
    estimate = usual_threshold(scores, scores, source="left out")
    assert (estimate.promise, estimate.false_alarm_bound) == ("estimate", None)
    assert "an estimate without a promise" in estimate.sentence
    proven = usual_threshold(scores, scores, source="left out", monotone=True)
    assert (proven.promise, proven.false_alarm_bound) == ("marginal", pytest.approx(5 / 61))


def test_what_lies_outside_the_region_of_interest_does_not_count(prediction: Prediction, tmp_path: Path) -> None:
    roi = np.zeros((16, 20), np.uint8)
    roi[2:14, 1:10] = 255  # parts one defect, leaves one out, holds one whole
    Image.fromarray(roi).save(tmp_path / "roi.png")
    rows = []
    for row in prediction.rows:
        Image.new("L", (20, 16)).save(tmp_path / row.path)
        rows.append(replace(row, path=str(tmp_path / row.path), roi=str(tmp_path / "roi.png")))
    found = pg.evaluate(with_rows(prediction, tuple(rows)), repeats=20)
    inside = slice(2, 14), slice(1, 10)
    maps = [prediction.map(i)[inside] for i in range(6)]
    masks = [None if mask is None else mask[inside] for mask in masks_of(prediction)]
    for limit, name in ((0.3, "aupro_30"), (0.05, "aupro_05")):
        assert found[name] == pytest.approx(aupro(maps, masks, limit))
        low, high = found["intervals"][name]
        assert low - 0.01 <= found[name] <= high + 0.01
    curves = PimoCurves()
    for map_, mask in zip(maps, masks, strict=True):
        curves.update(map_, mask)
    expected = curves.compute().scores
    assert found["aupimo"] == pytest.approx(expected[~np.isnan(expected)].mean())
    truth = np.concatenate([np.zeros(108) if mask is None else mask.ravel() for mask in masks])
    predicted = np.concatenate([prediction.mask(i)[inside].ravel() for i in range(6)])
    assert found["pixel_f1"] == pytest.approx(f1_score(truth, predicted))
    assert found["aupro_30"] != pytest.approx(pg.evaluate(prediction)["aupro_30"])


def saved(**changes: object) -> dict[str, object]:
    """Scores and maps of four images as a tool may have saved them; the last image has a defect of two pixels."""
    masks = np.zeros((4, 4, 6), np.uint8)
    masks[3, 1, 2:4] = 255
    maps = np.arange(96, dtype=np.float32).reshape(4, 4, 6) / 96
    maps[3, 1, 2:4] = 2
    return {"scores": maps.max((1, 2)), "maps": maps, "labels": [0, 0, 0, 1], "masks": masks, **changes}


def test_saved_arrays_are_evaluated_like_a_detectors_prediction() -> None:
    prediction = Prediction.from_arrays(**saved(groups=["a", "a", "b", "b"], defects=["", "", "", "hole"]))  # type: ignore[arg-type]
    assert [row.group for row in prediction.rows] == ["a", "a", "b", "b"]
    assert pg.evaluate(prediction).by_type["hole"]["aupro_30"] == 1
    figures = pg.evaluate(prediction)
    assert (figures["image_auroc"], figures["pixel_auroc"], figures["aupro_30"], figures["n"]) == (1, 1, 1, 4)
    small = Prediction.from_arrays(**saved(maps=np.zeros((4, 2, 3), np.float32)))  # type: ignore[arg-type]
    assert small.map(0).shape == (4, 6)
    without = Prediction.from_arrays([0.2, 0.9], labels=[0, 1], paths=["a.png", "b.png"])
    assert [row.path for row in without.rows] == ["a.png", "b.png"]
    assert (pg.evaluate(without)["image_auroc"], pg.evaluate(without)["pixel_auroc"]) == (1, None)


def test_tensors_are_taken_as_they_are() -> None:
    arrays = {name: torch.as_tensor(np.asarray(values)) for name, values in saved().items()}
    arrays["scores"] = arrays["scores"].to(torch.bfloat16).requires_grad_()
    prediction = Prediction.from_arrays(**arrays)
    expected = Prediction.from_arrays(**saved())  # type: ignore[arg-type]
    assert prediction.scores == pytest.approx(expected.scores, rel=1e-2)
    assert np.array_equal(prediction.maps, expected.maps)
    assert dict(pg.evaluate(prediction)) == dict(pg.evaluate(expected))
    images = as_table(torch.zeros((2, 5, 7, 3), dtype=torch.uint8))
    assert [row.image().shape for row in images] == [(5, 7, 3)] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((4, 1))}, r"scores of shape \(4, 1\): expected \(N,\)"),
        ({"labels": [0, 1]}, "2 labels for 4 scores"),
        ({"maps": None}, "masks without maps"),
        ({"maps": np.zeros((4, 5))}, r"map 0 has the shape \(5,\): expected \(H, W\)"),
    ],
)
def test_arrays_that_do_not_belong_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prediction.from_arrays(**saved(**changes))  # type: ignore[arg-type]
