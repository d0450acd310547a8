"""The mask of the foreground holds every place where good parts lie, or is not given; fit and preset auto use it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pickglass as pg
from pickglass.app.advise import auto
from pickglass.app.advise.auto import AutoChoice
from pickglass.app.advise.candidates import Candidate
from pickglass.app.advise.choice import Advice, Baseline, Rated
from pickglass.app.advise.painted import Judged, PaintedSet
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import Score
from pickglass.app.advise.within_foreground import judged_within, trusted_mask
from pickglass.app.fit import FitRequest, fit
from pickglass.data import DataSource, Row, Table, load_dataset
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.trays import Tray, fill
from pickglass.errors import InputError
from pickglass.features.foreground import Check, Foreground, find_foreground, foreground_of
from pickglass.runtime.compute import ComputeOptions

QUICK = ComputeOptions(engine="torch", workers=1)
TORCH = QUICK.arguments()
TRAY = Tray("pin", part_px=40, pitch_px=90)  # two by two of them on 192 x 256, their right third empty


def cells(places: list[tuple[int, int]], side: int = 8, seed: int = 0) -> np.ndarray:
    """Features (N, 6, 32, 32) are noise; a part, eight standard deviations off, has its corner at the places."""
    features = np.random.default_rng(seed).normal(size=(len(places), 6, 32, 32)).astype(np.float32)
    for image, (top, left) in zip(features, places, strict=True):
        image[:3, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] += 8
    return features


def foreground_in(features: np.ndarray, groups: list[str] | None = None) -> Foreground:
    return foreground_of(features, groups or [str(i) for i in range(len(features))], (64, 96))


def names_failed(foreground: Foreground) -> list[str]:
    return [check.name for check in foreground.checks if not check.passed]


# -- the mask ----------------------------------------------------------------------------------------------------------


def test_the_mask_holds_every_place_and_a_margin() -> None:
    places = [(10 + i % 4, 11 + i // 4) for i in range(16)]
    foreground = foreground_in(cells(places))
    assert foreground.mask is not None, foreground.why_not
    assert foreground.mask.shape == (64, 96)
    grid = foreground.mask[::2, ::3]  # a cell is 2 x 3 pixels
    expected = np.zeros((32, 32), bool)
    expected[10 - 3 : 13 + 8 + 3, 11 - 3 : 14 + 8 + 3] = True
    assert grid[expected].all()
    assert (grid & ~expected).mean() < 0.02
    assert foreground.share == grid.mean()
    assert foreground.why_not == ""


def test_one_unusual_part_is_not_hidden() -> None:
    foreground = foreground_in(cells([(12, 12)] * 20 + [(12, 13)]))
    assert foreground.mask is not None, foreground.why_not
    assert foreground.mask[24:40, 3 * (13 + 8 + 2)].all()  # the last column of its margin


def test_a_part_whose_middle_looks_like_the_ground_is_whole() -> None:
    ring = np.zeros((32, 32), bool)
    ring[6:26, 6:26] = True
    ring[10:22, 10:22] = False
    features = np.random.default_rng(0).normal(size=(12, 6, 32, 32)).astype(np.float32)
    features[:, :, ring] += 8
    foreground = foreground_in(features)
    assert foreground.mask is not None, foreground.why_not
    assert foreground.mask[12:52, 18:78].all()


# -- the self-check ----------------------------------------------------------------------------------------------------


def test_a_texture_has_no_foreground() -> None:
    foreground = foreground_in(np.random.default_rng(0).normal(size=(12, 6, 32, 32)).astype(np.float32))
    assert foreground.mask is None
    assert "nothing stands out" in foreground.why_not or "not well apart" in foreground.why_not


def test_a_part_that_reaches_the_border_is_refused() -> None:
    for places in ([(12, -3)] * 12, [(12, 12)] * 8 + [(12, -4)] * 2 + [(26, 12)] * 2):
        foreground = foreground_in(cells(places))
        assert foreground.mask is None
        assert "spread of the border" in names_failed(foreground)
        assert "expected at most 2.5" in foreground.why_not


def test_a_part_near_the_ground_is_refused() -> None:
    features = np.random.default_rng(0).normal(size=(12, 6, 32, 32)).astype(np.float32)
    features[:, :, 10:20, 10:20] += 1.5
    foreground = foreground_in(features)
    assert foreground.mask is None
    assert "separation" in names_failed(foreground)


def test_parts_that_wander_fill_the_mask_and_are_refused() -> None:
    foreground = foreground_in(cells([(top, left) for top in (2, 9, 16, 22) for left in (2, 9, 16, 22)] * 4))
    assert foreground.mask is None
    assert names_failed(foreground) == ["share"]
    assert f"covers {foreground.share:.0%} of the image" in foreground.why_not


def test_halves_that_disagree_are_refused() -> None:
    groups = [str(i) for i in range(16)]
    second = np.random.default_rng(0).permutation(16) % 2 == 1
    foreground = foreground_in(cells([(10, 5 if own else 18) for own in second]), groups)
    assert foreground.mask is None
    assert names_failed(foreground) == ["agreement of halves", "outside the other half"]
    near = foreground_in(cells([(10, 10 if own else 12) for own in second]), groups)
    assert names_failed(near) == ["agreement of halves"]  # two cells off: inside the margin


def test_few_images_or_groups_are_refused() -> None:
    assert names_failed(foreground_in(cells([(12, 12)] * 7))) == ["images"]
    assert names_failed(foreground_in(cells([(12, 12)] * 12), ["one part"] * 12)) == ["images"]
    assert foreground_in(cells([(12, 12)] * 8)).mask is not None


def test_images_of_several_sizes_are_refused() -> None:
    rows = [Row(f"{n}", pixels=np.full((n, 64), 90, np.uint8)) for n in (64, 64, 72)]
    foreground = find_foreground(Table(rows), engine="torch", workers=1)
    assert foreground.mask is None
    assert "2 sizes, e.g. 64x64 and 72x64" in foreground.why_not


# -- images ------------------------------------------------------------------------------------------------------------


def rows_of(images: list[np.ndarray]) -> Table:
    return Table([Row(f"{i}.png", "train", 0, pixels=image) for i, image in enumerate(images)])


@pytest.mark.slow
def test_trays_have_a_foreground_and_cloth_has_none() -> None:
    foreground = find_foreground(rows_of([fill(TRAY, (192, 256), seed) for seed in range(10)]), engine="torch")
    assert foreground.mask is not None, foreground.why_not
    for seed in range(100, 120):
        assert foreground.mask[fill(TRAY, (192, 256), seed) > 110].all()  # trays that it has not seen
    assert not foreground.mask[:, 200:].any()
    cloth = find_foreground(rows_of([weave(Cloth(), (192, 256), seed) for seed in range(10)]), engine="torch")
    assert cloth.mask is None
    assert "separation" in names_failed(cloth)


@pytest.mark.slow
@pytest.mark.long
def test_real_sets(real_data: Path) -> None:
    expected = {"mvtec_hazelnut_reduced": True, "mvtec_transistor_reduced": False, "aitex_fabric04": False}
    for name, trusted in expected.items():
        foreground = find_foreground(load_dataset(real_data / name).train[:16])
        assert (foreground.mask is not None) == trusted, (name, foreground)
        if foreground.mask is not None:
            assert foreground.mask[60:196, 60:196].all()
            assert foreground.mask.mean() < 0.85


# -- fit ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trays")
    (root / "train" / "good").mkdir(parents=True)
    for seed in range(11):
        Image.fromarray(fill(TRAY, (192, 256), seed)).save(root / "train" / "good" / f"{seed:02}.png")
    return root


@pytest.mark.slow
def test_fit_finds_its_region_and_says_so(trays: Path, tmp_path: Path) -> None:
    result = fit(
        DataSource(trays, roi="auto"),
        tmp_path / "m.safetensors",
        FitRequest(settings={"size": 64}),
        compute=QUICK,
    )
    detector = pg.load(tmp_path / "m.safetensors")
    assert detector.roi is not None
    assert result["foreground"] == detector.provenance.foreground
    assert result["foreground"] is not None
    assert result["foreground"]["n_images"] == 10  # one is held back for the threshold and chooses nothing
    assert float(detector.roi.float().mean()) == pytest.approx(result["foreground"]["share"], abs=0.03)
    heat = detector.predict(load_dataset(trays).train[:1], **TORCH).map(0)
    assert (heat[:, 220:] == heat.min()).all()  # no part ever lies there
    assert heat[:, :160].min() < heat[:, :160].max()


def test_fit_refuses_with_reason_and_remedy(trays: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pickglass.cli.main import app

    good = tmp_path / "cloth" / "train" / "good"
    good.mkdir(parents=True)
    for seed in range(4):
        Image.fromarray(weave(Cloth(), (64, 64), seed)).save(good / f"{seed}.png")
    words = ["fit", str(tmp_path / "cloth"), "-o", str(tmp_path / "m.safetensors"), "--engine", "torch", "--roi"]
    refused = CliRunner().invoke(app, [*words, "auto"])
    assert isinstance(refused.exception, InputError)
    assert "each half has at least 1: expected 4 or more" in str(refused.exception)
    assert "Give the file of a mask, or leave the region of interest out" in str(refused.exception)
    assert not (tmp_path / "m.safetensors").exists()
    folder = CliRunner().invoke(app, [*words, "./auto"])
    assert "roi='./auto': no such file or folder" in str(folder.exception)
    with pytest.raises(InputError, match="no such file or folder"):
        fit(DataSource(trays, roi=Path("auto")), tmp_path / "m.safetensors", compute=QUICK)


# -- preset auto -------------------------------------------------------------------------------------------------------


def painted(mask: np.ndarray) -> PaintedSet:
    """A good image, a defect inside the mask, one across its edge that is mostly outside, and one outside."""
    judged, rows = [], []
    for i, columns in enumerate([None, slice(10, 20), slice(26, 40), slice(50, 60)]):
        defect = None if columns is None else np.zeros((40, 60), bool)
        if defect is not None:
            defect[10:20, columns] = True
        # the window begins at (0, 4) of the image
        keep = np.ones((40, 60), bool)
        judged.append(Judged(f"{i}", f"{i}", mask.shape, (0, 4, 40, 60), defect, keep, np.zeros((40, 60), np.uint8)))
        rows.append(Row(f"{i}", "test", int(i > 0), pixels=np.zeros((32, 32, 3), np.uint8)))
    fit_rows = Table([Row("f", "fit", 0, pixels=np.zeros((32, 32, 3), np.uint8))])
    return PaintedSet(tuple(judged), {(32, 32): fit_rows}, {(32, 32): Table(rows)})


MASK = np.zeros((40, 64), bool)
MASK[:, :32] = True


def foreground(mask: np.ndarray | None, why: str = "") -> Foreground:
    return Foreground(mask, 0.5, 20, (Check("images", 20.0, mask is not None, why),))


def test_defects_on_the_background_are_left_out_of_both_sides() -> None:
    without, within = judged_within(painted(MASK), MASK)
    for data in (without, within):
        assert [one.path for one in data.judged] == ["0", "1"] == [row.path for row in data.test[32, 32]]
        assert data.judged[0].keep.all()  # good pixels of the background count
        assert data.groups == ("0", "1")
    assert all(row.roi is None for row in without.test[32, 32])
    for row in (*within.fit[32, 32], *within.test[32, 32]):
        assert row.pixels is not None
        region = row.region(row.pixels)
        assert region is not None
        assert region[:, :16].all()
        assert not region[:, 16:].any()


def test_the_mask_is_taken_only_with_an_interval_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    data = painted(MASK)
    for low, wanted in ((0.01, True), (-0.01, False)):
        seen: list[PaintedSet] = []
        gain = {"aupro": (0.1, low, 0.2), "auroc": (0.0, 0.0, 0.0)}
        monkeypatch.setattr(auto, "difference", lambda *_, gain=gain: gain)
        row, within = auto._foreground(foreground(MASK), data, lambda on, seen=seen: seen.append(on), 0)
        assert row["taken"] == wanted == (within is not None)
        assert (row["best"], row["interval"]) == ("50% of the image", [low, 0.2])
        assert [len(on.judged) for on in seen] == [2, 2]
        assert [on.fit[32, 32][0].roi is None for on in seen] == [False, True]


def test_the_mask_is_not_tried_without_trust_or_need() -> None:
    def never(on: PaintedSet) -> Any:
        raise AssertionError("judged")

    outside = replace(painted(MASK), judged=painted(MASK).judged[3:])
    outside.test[32, 32] = outside.test[32, 32][3:]
    for result, data, why in (
        (None, painted(MASK), "a region of interest is given"),
        (foreground(None, "only 20 images"), painted(MASK), "self-check: only 20 images"),
        (foreground(MASK), outside, "no painted defect lies on the foreground"),
    ):
        row, within = auto._foreground(result, data, never, 0)
        assert within is None
        assert (row["taken"], row["gain"], row["why"]) == (False, None, why)


@pytest.mark.parametrize("taken", [True, False])
def test_auto_judges_later_parts_with_the_mask(monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    """And hands it on, if it is taken."""
    chosen = Candidate("efficientnet_lite0", ("stage1",), (32, 32), 8.0, 2, 0.1)
    score = Score((0.5, 0.4, 0.6), (0.5, 0.4, 0.6), None, np.zeros(0), np.zeros(0), ())  # type: ignore[arg-type]
    rated, baseline = (Rated(chosen, score, 1.0),), Baseline(chosen, score)
    advice = Advice(rated, (), painted(MASK), MASK.shape, AdviseRequest(8.0), baseline, {})
    judged: list[PaintedSet] = []

    def judge(candidate: Candidate, data: PaintedSet, *_: Any, **__: Any) -> object:
        judged.append(data)
        return object()

    gain = {"aupro": (0.1, 0.05 if taken else -0.05, 0.2), "auroc": (0.0, 0.0, 0.0)}
    monkeypatch.setattr(auto, "find_advice", lambda *_, **__: advice)
    monkeypatch.setattr(auto, "look_for_part", lambda *_: foreground(MASK))
    monkeypatch.setattr(auto, "judge", judge)
    monkeypatch.setattr(auto, "difference", lambda *_: gain)
    choice = auto.auto_choice(Table([Row("0.png")]), AdviseRequest(8), compute=QUICK)
    assert [row["part"] for row in choice.ablation][:3] == ["features", "resolution", "foreground mask"]
    assert (choice.foreground is not None) == taken
    smoothed = judged[-1]
    assert (smoothed.fit[32, 32][0].roi is not None) == taken
    assert len(smoothed.judged) == (2 if taken else 4)
    given = auto.auto_choice(Table([Row("0.png", roi="own.png")]), AdviseRequest(8), compute=QUICK)
    assert given.foreground is None
    assert given.ablation[2]["why"] == "a region of interest is given"


@pytest.mark.slow
def test_fit_uses_the_mask_that_auto_took(trays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((192, 256), bool)
    mask[:, 64:192] = True
    choice = AutoChoice("patchcore", {"size": 64}, None, None, (), 8.0, foreground(mask))
    monkeypatch.setattr("pickglass.app.fit.auto_choice", lambda *_, **__: choice)
    result = fit(trays, tmp_path / "m.safetensors", FitRequest(preset="auto"), compute=QUICK)
    kept = pg.load(tmp_path / "m.safetensors").roi
    assert kept is not None
    assert torch.equal(kept.any(0), torch.arange(64).sub(31.5).abs() < 16)
    assert result["foreground"] is not None
    assert result["foreground"]["share"] == 0.5


def test_a_mask_that_is_not_trusted_is_not_used() -> None:
    with pytest.raises(InputError, match="only 3 images"):
        trusted_mask(foreground(None, "only 3 images"))
