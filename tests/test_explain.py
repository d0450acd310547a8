"""Explanations: a place is compared with the patch that it is, wherever that lies; missed parts, files, page, CLI."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.app.explain import explained
from pickglass.app.pages.explain import share_of_good
from pickglass.app.results import ExplainResult
from pickglass.cli.main import main
from pickglass.data import paint
from pickglass.errors import DataError, InputError
from pickglass.methods import METHODS
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures
from test_conformance import shortest

SIDE = 64
TORCH: dict[str, Any] = {"engine": "torch"}
IN_TORCH = ComputeOptions(engine="torch")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/good`` with 12 textures of 96 x 96 pixels, and ``bad.png`` with a hole, ``hole.png`` its mask."""
    root = tmp_path_factory.mktemp("parts")
    (root / "train" / "good").mkdir(parents=True)
    for i, image in enumerate(textures(12, 96)):
        Image.fromarray(image).save(root / "train" / "good" / f"{i:02d}.png")
    painted = paint(textures(1, 96, seed=1)[0], "hole", 20, np.random.default_rng(2), contrast=2.0)
    Image.fromarray(painted.image).save(root / "bad.png")
    Image.fromarray(painted.mask.astype(np.uint8) * 255).save(root / "hole.png")
    return root


@pytest.fixture(scope="module")
def fitted(parts: Path) -> pg.PatchCore:
    detector = pg.PatchCore(size=SIDE, ratio=0.2)
    return detector.fit(parts / "train", observers=[pg.DriftSample()], **TORCH)


def told(detector: Any, image: Any, **more: Any) -> ExplainResult:
    return explained(detector, image, compute=more.pop("compute", IN_TORCH), **more).result


# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_bad_part_is_explained_where_its_defect_is(parts: Path, fitted: pg.PatchCore) -> None:
    result = told(fitted, parts / "bad.png")
    found = fitted.predict(parts / "bad.png", **TORCH)
    assert result["verdict"] == found.verdict(0) == "bad"
    assert result["score"] == pytest.approx(float(found.scores[0]))
    calibration = fitted.calibration
    assert calibration is not None
    assert result["threshold"] == calibration.image_threshold
    assert result["ratio"] == pytest.approx(result["score"] / calibration.image_threshold)  # type: ignore[operator]
    spread = np.std(calibration.scores, ddof=1)
    assert result["spreads"] == pytest.approx((result["score"] - calibration.image_threshold) / spread)  # type: ignore[operator]
    assert result["sentence"].startswith(f"bad: the score {result['score']:.4g} lies above the threshold")
    place, *_ = result["places"]
    mask = np.asarray(Image.open(parts / "hole.png")) > 0
    assert mask[max(0, place["y"] - 8) : place["y"] + 8, max(0, place["x"] - 8) : place["x"] + 8].any()
    assert place["box"] == found.defects(0)[0].box
    assert place["area_px"] == found.defects(0)[0].area
    assert place["value"] == pytest.approx(found.defects(0)[0].peak)
    assert place["over"] == pytest.approx(place["value"] / calibration.pixel_threshold)  # type: ignore[operator]
    assert sum(part["share"] for part in place["shares"]) == pytest.approx(1)
    assert [part["name"] for part in place["shares"]] == ["stage3", "stage5"]
    assert [layer["layer"] for layer in place["layers"]] == ["stage3", "stage5"]
    assert [near["found"] for near in place["nearest"]] == [True] * 3
    assert result["notes"] == []
    assert result["similar"] is None
    json.dumps(result)


def test_a_missed_part_is_explained_at_the_defect_that_is_named(parts: Path, fitted: pg.PatchCore) -> None:
    lenient = pg.load(fitted.save(parts / "lenient.safetensors"))
    lenient.set_thresholds(image=1e3, pixel=1e3)
    plain = told(lenient, parts / "bad.png")
    assert plain["verdict"] == "good"
    (place,) = plain["places"]
    assert place["box"] is None
    assert place["over"] < 1  # type: ignore[operator]
    assert "so it is not marked" in place["sentence"]
    by_mask = told(lenient, parts / "bad.png", mask=parts / "hole.png")
    named, *others = by_mask["places"]
    assert named["named"]
    assert not others
    mask = np.asarray(Image.open(parts / "hole.png")) > 0
    assert mask[named["y"], named["x"]]
    assert named["area_px"] == mask.sum()
    assert named["value"] == pytest.approx(float(lenient.predict(parts / "bad.png", **TORCH).map(0)[mask].max()))
    x, y, width, height = named["box"]  # type: ignore[misc]
    assert told(lenient, parts / "bad.png", box=[x, y, width, height])["places"][0]["box"] == named["box"]
    # beside the named one, what lies above the threshold is told as well
    both = told(fitted, parts / "bad.png", box=[0, 0, 5, 5])["places"]
    assert [place["named"] for place in both][:2] == [True, False]


def test_the_number_of_places_is_a_bound_and_they_lie_apart(parts: Path, fitted: pg.PatchCore) -> None:
    strict = pg.load(fitted.save(parts / "strict.safetensors"))
    calibration = strict.current_calibration()
    assert calibration is not None
    strict.set_thresholds(pixel=0.5 * calibration.pixel_threshold)  # type: ignore[operator]
    for n in (1, 2, 5):
        places = told(strict, parts / "bad.png", places=n)["places"]
        assert 1 <= len(places) <= n
        values = [place["value"] for place in places]
        assert values == sorted(values, reverse=True)
        at = [(place["x"], place["y"]) for place in places]
        assert len(set(at)) == len(at)


# -- the patch that a place is compared with ---------------------------------------------------------------------------


def modes() -> dict[str, pg.PatchCore]:
    every: dict[str, Any] = {"ratio": 1.0, "top_share": 0.0, "smoothing": 0.0}
    return {
        "plain": pg.PatchCore(size=SIDE, **every),
        "letterbox": pg.PatchCore(size=f"letterbox:{SIDE}", **every),
        "place and standardised": pg.PatchCore(size=SIDE, position_weight=0.5, standardise=True, **every),
        "tiles": pg.PatchCore(**every).tiled(size=(SIDE, 2 * SIDE), tile=SIDE, stride=SIDE),
        "shared": pg.PatchCore(**every).tiled(size=(SIDE, 3 * SIDE), tile=SIDE, stride=SIDE, heads=2),
    }


@pytest.mark.parametrize("mode", modes())
def test_a_place_of_a_learned_image_is_its_own_nearest_patch(mode: str, tmp_path: Path) -> None:
    images = textures(6, 80)
    wide = np.concatenate([images, images[:, ::-1], images[:, :, ::-1]], axis=2)[:, :, :200]
    for i, image in enumerate(wide):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    detector = modes()[mode].fit(sorted(tmp_path.glob("*.png")), calibrate=0, **TORCH)
    for i, box in ((1, (20, 12, 4, 4)), (4, (120, 60, 4, 4)), (5, (190, 40, 3, 3))):
        near = told(detector, tmp_path / f"{i}.png", box=box)["places"][0]["nearest"][0]
        assert near["image"] is not None
        assert near["image"].endswith(f"{i}.png")
        assert near["distance"] == pytest.approx(0, abs=1e-3)
        # the middle of the cell in which the place lies: a cell is 8 px of the canvas, at most 25 of the image
        assert abs(near["x"] - box[0] - 1) <= 25  # type: ignore[operator]
        assert abs(near["y"] - box[1] - 1) <= 13  # type: ignore[operator]


def test_a_patch_that_was_learned_turned_is_shown_where_it_lies_in_the_image(tmp_path: Path) -> None:
    images = textures(3, SIDE)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    detector = pg.PatchCore(size=SIDE, ratio=1.0, rotations=4, smoothing=0.0).fit(
        sorted(tmp_path.glob("*.png")), calibrate=0, **TORCH
    )
    for quarters in (1, 2, 3):
        turned = np.ascontiguousarray(np.rot90(images[1], quarters))
        near = told(detector, turned, box=[20, 36, 1, 1], good=tmp_path)["places"][0]["nearest"][0]
        assert near["distance"] == pytest.approx(0, abs=1e-2)
        assert near["turned"] == 90 * quarters
        marked = np.zeros((SIDE, SIDE), np.bool_)
        marked[near["y"], near["x"]] = True
        y, x = np.argwhere(np.rot90(marked, quarters))[0]
        assert abs(int(x) - 20) <= 8
        assert abs(int(y) - 36) <= 8


def test_images_of_an_update_are_named_like_those_of_the_fit(tmp_path: Path) -> None:
    for i, image in enumerate(textures(9, SIDE)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.glob("*.png"))
    detector = pg.PatchCore(size=SIDE, ratio=1.0, smoothing=0.0).fit(paths[:5], **TORCH)
    detector.update(paths[5:], **TORCH)
    loaded = pg.load(detector.save(tmp_path / "m.safetensors"))
    for i in (1, 7):
        near = told(loaded, paths[i], box=[30, 20, 2, 2])["places"][0]["nearest"][0]
        assert near["image"] is not None
        assert near["image"].endswith(f"{i}.png")
        assert near["distance"] == pytest.approx(0, abs=1e-3)
        assert near["found"]


# -- files of training images ------------------------------------------------------------------------------------------


def test_files_are_found_where_they_were_or_where_the_user_says_and_never_mistaken(
    tmp_path: Path, parts: Path, fitted: pg.PatchCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.dumps(pg.load(fitted.save(tmp_path / "m.safetensors")).provenance.to_json())
    assert str(parts) not in header  # nobody is told where they lay
    assert '"train/good/00.png"' in header
    bad = tmp_path / "else" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes((parts / "bad.png").read_bytes())
    monkeypatch.chdir(bad.parent)
    lost = told(fitted, bad)
    assert not any(near["found"] for place in lost["places"] for near in place["nearest"])
    assert "cannot be shown" in lost["notes"][-1]
    assert told(fitted, bad, good=parts / "train")["places"][0]["nearest"][0]["found"]
    near = lost["places"][0]["nearest"][0]
    assert near["image"] is not None
    other = bad.parent / near["image"]  # of the same name, but another image
    other.parent.mkdir(parents=True)
    Image.fromarray(textures(1, 96, seed=9)[0]).save(other)
    assert not told(fitted, bad)["places"][0]["nearest"][0]["found"]
    other.write_bytes((parts / near["image"]).read_bytes())
    again = told(fitted, bad)["places"][0]["nearest"][0]
    assert again["found"]
    assert (again["canvas_x"], again["canvas_y"]) == (near["canvas_x"], near["canvas_y"])


def test_an_older_file_says_what_it_cannot_tell(parts: Path, fitted: pg.PatchCore) -> None:
    older = pg.load(fitted.save(parts / "older.safetensors"))
    assert isinstance(older, pg.PatchCore)
    older.origins, older.provenance = None, replace(older.provenance, image_names=None)
    result = told(older, parts / "bad.png")
    near = result["places"][0]["nearest"]
    assert [patch["image"] for patch in near] == [None] * 3
    assert near[0]["distance"] == pytest.approx(told(fitted, parts / "bad.png")["places"][0]["nearest"][0]["distance"])
    assert any("fit it anew" in note for note in result["notes"])
    assert result["similar"] is not None  # of which the sample for drift has the names


# -- other methods, exported models ------------------------------------------------------------------------------------


def test_the_most_similar_good_image_is_the_image_itself_where_it_is_one(parts: Path) -> None:
    detector = pg.PaDiM(size=SIDE, dims=10).fit(parts / "train", observers=[pg.DriftSample()], calibrate=0.4, **TORCH)
    names = [str(name) for name in detector.reference.names]  # type: ignore[union-attr]
    assert all(name.startswith("train/good/") for name in names)
    whole = explained(detector, parts / names[2], compute=IN_TORCH)
    similar = whole.result["similar"]
    assert similar is not None
    assert (similar["image"], similar["found"]) == (names[2], True)
    assert similar["distance"] == pytest.approx(0, abs=1e-3)
    np.testing.assert_array_equal(whole.similar, np.asarray(Image.open(parts / names[2])))
    detector.reference = None
    without = told(detector, parts / "bad.png")
    assert without["similar"] is None
    assert any("keeps none" in note for note in without["notes"])
    other = told(detector, parts / "train" / "good" / "05.png", good=parts / "train")["similar"]
    assert other is not None
    assert other["image"].endswith("05.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",  # a difference of networks, a likelihood and several methods soon; test_conformance has the maps of all
    [
        method if method in ("stfpm", "fastflow", "combined") else pytest.param(method, marks=pytest.mark.long)
        for method in sorted(set(METHODS) - {"patchcore", "padim"})
    ],
)
def test_every_method_says_what_its_value_is_made_of(method: str, parts: Path) -> None:
    detector = shortest(method).fit(parts / "train", **TORCH)
    result = told(detector, parts / "bad.png", good=parts / "train")
    place = result["places"][0]
    assert sum(part["share"] for part in place["shares"]) == pytest.approx(1)
    assert all(0 <= part["share"] <= 1 for part in place["shares"])
    assert [layer["layer"] for layer in place["layers"]] == detector.level_names()
    assert place["nearest"] == []
    assert result["similar"] is not None


@pytest.mark.slow
def test_an_exported_model_explains_what_needs_no_torch(parts: Path, fitted: pg.PatchCore) -> None:
    fitted.export(parts / "model.onnx", parts / "train")
    exported = told(pg.load(parts / "model.onnx"), parts / "bad.png", compute=ComputeOptions(engine="onnxruntime"))
    lab = told(fitted, parts / "bad.png")
    assert exported["model_id"] == lab["model_id"]
    for mine, own in zip(exported["places"], lab["places"], strict=True):
        assert (mine["x"], mine["y"], mine["box"]) == (own["x"], own["y"], own["box"])
        assert mine["value"] == pytest.approx(own["value"], rel=1e-4)
        assert (mine["shares"], mine["nearest"], mine["layers"]) == ([], [], [])
    assert exported["similar"] is not None
    assert exported["similar"]["found"]
    assert "needs no" not in exported["notes"][0]
    assert "pickglass[train]" in exported["notes"][0]


# -- input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "more", "error", "message"),
    [
        ("train", {}, InputError, "12 images: expected one"),
        ("bad.png", {"places": 0}, InputError, "places=0: expected at least 1"),
        ("bad.png", {"box": [90, 90, 10, 10]}, InputError, "inside the image, which is 96 pixels wide"),
        ("bad.png", {"box": [1, 1, 2, 2], "mask": "hole.png"}, InputError, "give one of them"),
        ("broken.png", {}, DataError, "the image cannot be judged"),
    ],
)
def test_bad_input_is_refused(
    parts: Path, fitted: pg.PatchCore, image: str, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    (parts / "broken.png").write_bytes(b"\x89PNG no image")
    with pytest.raises(error, match=message):
        told(fitted, parts / image, **more)


def test_a_model_without_thresholds_still_says_where(parts: Path, fitted: pg.PatchCore) -> None:
    detector = pg.load(fitted.save(parts / "no-threshold.safetensors"))
    detector.calibration = None
    result = told(detector, parts / "bad.png")
    assert result["verdict"] is None
    assert result["sentence"].startswith("no verdict: ")
    assert result["places"][0]["over"] is None
    assert "sets one" in result["notes"][0]


def test_shares_of_good_parts_in_words() -> None:
    assert share_of_good(1.0) == "100 %"
    assert share_of_good(0.0099) == "1 in 100"
    assert share_of_good(2e-6) == "1 in 500,000"


# -- page and command --------------------------------------------------------------------------------------------------


def test_the_command_prints_one_object_and_writes_the_page(
    parts: Path, fitted: pg.PatchCore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fitted.save(parts / "model.safetensors")
    page = parts / "why.html"
    arguments = ["explain", str(model), str(parts / "bad.png"), "-o", str(page), "--engine", "torch"]
    for extra in (["--json"], []):
        monkeypatch.setattr(sys, "argv", ["pickglass", *arguments, *extra])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in (0, None)
        out = capsys.readouterr().out
        if extra:
            result = json.loads(out)
            assert result["page"] == str(page)
            assert set(result) == set(ExplainResult.__annotations__)
        else:
            assert out.startswith("bad: the score")
            assert "nearest good patch" in out
    text = page.read_text()
    assert text.count("<img loading") >= 6  # image, map, the place and its patches
    assert "what it comes from" in text
