"""Several methods in one pass: each part is what it is alone, and their average is the formula done literally."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.app.fit import build
from pickglass.app.testing.test import test as run_test
from pickglass.data import Table, as_table
from pickglass.detectors.method import Judged
from pickglass.detectors.modelfile import read_model, restore
from pickglass.errors import DataError, InputError, ModelFileError, UnknownName
from pickglass.features.engine import BackboneEngine
from pickglass.features.extractor import FeatureExtractor
from pickglass.methods.combined import _scale
from pickglass.nn.maps import to_grid
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

SIDE = 64
PLAIN: dict[str, Any] = {"size": SIDE, "place_scale": False, "level_shift": False}
GOOD, TEST = textures(16, SIDE), textures(3, SIDE, seed=1)
TORCH: dict[str, Any] = {"engine": "torch", "workers": 1}


@pytest.fixture(scope="module")
def fitted() -> pg.Combined:
    parts: list[Any] = [{"method": "padim", "dims": 8}, {"method": "patchcore", "ratio": 0.1}]
    return pg.Combined(parts, **PLAIN).fit(GOOD, **TORCH)


@pytest.fixture(scope="module")
def singles() -> list[pg.Detector]:
    both: list[pg.Detector] = [pg.PaDiM(dims=8, **PLAIN), pg.PatchCore(ratio=0.1, **PLAIN)]
    return [single.fit(GOOD, **TORCH) for single in both]


def literal(
    detector: pg.Combined, singles: list[pg.Detector], grid: tuple[int, int] = (16, 16)
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (K, N) and maps (K, N, h, w) of the single methods, on the common scale and grid."""
    assert detector.scale is not None
    scores, maps = [], []
    for single, (usual, tail) in zip(singles, detector.scale.tolist(), strict=True):
        found = single.predict(TEST, **TORCH)
        scores.append((found.scores - usual) / tail)
        enlarged = to_grid(torch.from_numpy(np.stack(found.maps))[:, None], grid)[:, 0].numpy()
        maps.append((enlarged - usual) / tail)
    return np.stack(scores), np.stack(maps)


# -- what the parts are ------------------------------------------------------------------------------------------------


def test_the_average_is_that_of_the_methods_alone(fitted: pg.Combined, singles: list[pg.Detector]) -> None:
    scores, maps = literal(fitted, singles)
    found = fitted.predict(TEST, **TORCH)
    np.testing.assert_allclose(found.scores, scores.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.stack(found.maps), maps.mean(0), rtol=1e-4, atol=1e-4)


def test_maps_and_scores_have_weights_of_their_own(fitted: pg.Combined, singles: list[pg.Detector]) -> None:
    scores, maps = literal(fitted, singles)
    detector = copy.copy(fitted)
    detector.map_weights, detector.score_weights = (3, 1), (0, 2)
    found = detector.predict(TEST, **TORCH)
    np.testing.assert_allclose(found.scores, scores[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.stack(found.maps), 0.75 * maps[0] + 0.25 * maps[1], rtol=1e-4, atol=1e-4)
    assert found.calibration is not None
    assert found.calibration.stale  # thresholds are of the weights of the fit


def test_a_part_that_trains_learns_what_it_learns_alone() -> None:
    flow: dict[str, Any] = {"steps": 2, "epochs": 2, "batch": 4, "layers": ["stage3"]}
    detector = pg.Combined([{"method": "fastflow", **flow}, "patchcore"], size=SIDE).fit(GOOD, seed=3, **TORCH)
    alone = pg.FastFlow(size=SIDE, **flow).fit(GOOD, seed=3, **TORCH)
    part = detector.components["fastflow"]
    learned, expected = part.head_state(), alone.head_state()
    assert learned.keys() == expected.keys()
    for name, tensor in learned.items():
        assert torch.equal(tensor, expected[name]), name
    assert detector.read_layers == ("stage3", "stage5")
    assert [phase["phase"] for phase in detector.provenance.details["training"]] == ["flow of fastflow"]


def test_one_backbone_pass_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = BackboneEngine.__call__

    def counted(self: BackboneEngine, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(inputs[0]))
        return original(self, *inputs)

    monkeypatch.setattr(BackboneEngine, "__call__", counted)
    counts = {}
    for detector in (
        pg.Combined([{"method": "padim", "dims": 8}, "patchcore", "patchcore"], size=SIDE),
        pg.PatchCore(size=SIDE),
    ):
        detector.fit(GOOD, **TORCH)
        fit, seen[:] = sum(seen), []
        detector.predict(TEST, **TORCH)
        counts[type(detector).__name__], seen[:] = (fit, sum(seen)), []
    assert counts["Combined"] == counts["PatchCore"]


@pytest.fixture(scope="module")
def scaled() -> pg.Combined:
    parts: list[Any] = [{"method": "patchcore", "ratio": 0.1}, {"method": "padim", "dims": 8, "scale": 0.5}]
    return pg.Combined(parts, size=2 * SIDE).fit(GOOD, **TORCH)


def test_a_part_reads_the_image_at_a_scale_of_its_own(scaled: pg.Combined) -> None:
    assert scaled.scales == (1.0, 0.5)
    bank, gaussians = scaled.components.values()
    assert gaussians.level_names() == ["stage2 at 0.5", "stage3 at 0.5", "stage5 at 0.5"]
    loaded = next(iter(scaled.loader(ComputeOptions(engine="torch")).batches(as_table(TEST))))
    assert loaded.batch is not None
    images = torch.from_numpy(np.stack([value.unit for value in loaded.values]))
    for part, scale in ((bank, 1.0), (gaussians, 0.5)):
        expected = FeatureExtractor(scaled.backbone, part.read_layers, scales=(scale,))(images)
        levels = part.own(loaded.batch).levels
        assert [level.shape[2:] for level in levels] == [level.shape[1:] for level in expected]
        for level, one in zip(levels, expected, strict=True):
            torch.testing.assert_close(level[:, 0], one, rtol=1e-4, atol=1e-4)
    alone = pg.PaDiM(size=SIDE, dims=8).fit(GOOD, **TORCH)  # resized by Pillow, not by the network
    maps = gaussians.score(gaussians.own(loaded.batch))[1][:, 0]
    assert np.corrcoef(maps.flatten(), np.stack(alone.predict(TEST, **TORCH).maps).ravel())[0, 1] > 0.7


def test_smoothing_counts_pixels_of_the_image_as_the_part_reads_it(scaled: pg.Combined) -> None:
    point = torch.zeros(1, 1, 16, 16)
    point[..., 8, 8] = 1
    part = copy.copy(scaled.components["padim"])
    alone = pg.PaDiM(size=SIDE, dims=8).fit(GOOD, **TORCH)
    torch.testing.assert_close(part.smoothed(point), alone.smoothed(point))


def test_what_is_usual_for_a_part_comes_back_from_a_file(fitted: pg.Combined, tmp_path: Path) -> None:
    detector = copy.copy(fitted)
    part = detector.components["padim"]
    part.place_gain, part.place_shift = torch.full((16, 16), 0.5), torch.ones(16, 16)
    part.level_line = torch.tensor([0.5, 1.0, 0.0, 2.0])
    assert not np.array_equal(detector.predict(TEST, **TORCH).scores, fitted.predict(TEST, **TORCH).scores)
    expected = detector.predict(TEST, **TORCH)
    header, tensors = read_model(detector.save(tmp_path / "m.safetensors"))
    found = pg.load(tmp_path / "m.safetensors").predict(TEST, **TORCH)
    assert np.array_equal(found.scores, expected.scores)
    for name in ("head.heads.0.level_line", "head.heads.0.place_gain"):
        with pytest.raises(ModelFileError, match=f"tensor '{name}' has the shape"):
            restore(pg.Combined, header, {**tensors, name: tensors[name][None]}, "m.safetensors")


def test_scales_come_back_from_a_file(scaled: pg.Combined, tmp_path: Path) -> None:
    scaled.save(tmp_path / "m.safetensors")
    loaded = pg.load(tmp_path / "m.safetensors")
    assert np.array_equal(loaded.predict(TEST, **TORCH).scores, scaled.predict(TEST, **TORCH).scores)


@pytest.mark.slow
@pytest.mark.long
def test_scales_are_exported(scaled: pg.Combined, tmp_path: Path) -> None:
    expected = scaled.predict(TEST, **TORCH)
    scaled.export(tmp_path / "m.onnx")
    exported = pg.load(tmp_path / "m.onnx").predict(TEST)
    np.testing.assert_allclose(exported.scores, expected.scores, rtol=1e-3, atol=1e-3)


def test_images_are_left_out_where_every_part_can(fitted: pg.Combined) -> None:
    assert fitted.calibration is not None
    assert (fitted.calibration.source, len(fitted.calibration.scores)) == ("left out", 16)
    assert fitted.provenance.n_fit == 16
    few = pg.Combined("padim+patchcore", size=SIDE).fit(GOOD, **TORCH)  # fewer images than PaDiM's channels
    assert few.calibration is not None
    assert few.calibration.source == "held back"


@pytest.mark.slow
def test_parts_are_compared_with_what_is_usual_for_them() -> None:
    detector = pg.Combined([{"method": "padim", "dims": 8}, "patchcore"], size=SIDE, place_scale=True)
    detector.fit(GOOD, **TORCH)
    assert detector.place_gain is None
    assert all(part.place_gain is not None for part in detector.components.values())
    alone = pg.PatchCore(size=SIDE, place_scale=True).fit(GOOD, **TORCH)
    gain = detector.components["patchcore"].place_gain
    assert gain is not None
    assert alone.place_gain is not None
    torch.testing.assert_close(gain, alone.place_gain)
    told = detector.provenance.details["components"]
    assert {name: of["places"]["used"] for name, of in told.items()} == {"padim": True, "patchcore": True}
    detector.fit(GOOD[:, ::-1].copy(), **TORCH)  # a second fit forgets the first
    again = pg.PatchCore(size=SIDE, place_scale=True).fit(GOOD[:, ::-1].copy(), **TORCH)
    assert again.place_gain is not None
    torch.testing.assert_close(detector.components["patchcore"].place_gain, again.place_gain)


def in_two_lights(n: int) -> Table:
    pictures = np.concatenate([GOOD[:n] // 2, GOOD[:n]])
    return Table([pg.Row(f"{i}.png", "train", 0, group=str(i % n), pixels=x) for i, x in enumerate(pictures)])


@pytest.mark.slow
def test_a_part_that_can_leaves_images_out_beside_one_that_holds_them_back() -> None:
    parts: list[Any] = [{"method": "patchcore", "level_shift": True}, {"method": "fastflow", "steps": 2, "epochs": 1}]
    detector = pg.Combined(parts, size=SIDE).fit(in_two_lights(14), **TORCH)
    assert detector.calibration is not None
    assert detector.calibration.source == "held back"
    assert detector.components["fastflow"].level_line is None
    # the bank learns what is held back for the training, and judges all as if it had not: as it would alone
    names = detector.provenance.image_names
    assert names is not None
    assert len(names) == detector.provenance.n_fit + detector.provenance.n_validate
    rows = {row.path: row for row in in_two_lights(14)}
    learned = Table([rows[str(name)] for name in names])
    alone = pg.PatchCore(size=SIDE, level_shift=True).fit(learned, **TORCH)
    bank = detector.components["patchcore"]
    assert alone.bank is not None
    # the images come in other batches, which another processor may round otherwise
    torch.testing.assert_close(bank.bank, alone.bank, rtol=1e-3, atol=1e-4)
    for usual in ("place_gain", "place_shift", "level_line"):
        one, other = getattr(alone, usual), getattr(bank, usual)
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    told = detector.provenance.details["components"]["patchcore"]
    assert told["level"] == pytest.approx(alone.provenance.details["level"], rel=1e-3, abs=1e-3)
    with pytest.raises(InputError, match=r"level_shift=True .* at least 10 parts .* to fit, but there are 4"):
        pg.Combined(parts, size=SIDE).fit(in_two_lights(6), **TORCH)


# -- one scale ---------------------------------------------------------------------------------------------------------


def judged(maps: torch.Tensor) -> Judged:
    inside = torch.ones_like(maps, dtype=torch.bool)
    inside[:, 0] = False
    return Judged(Table([]), torch.arange(len(maps)), maps.flatten(1).max(1).values, maps, inside)


def test_good_maps_of_any_unit_come_to_one_scale() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).gamma(2, size=(8, 40, 40)))
    maps[:, 0] = 1e6  # does not count
    for gain, shift in ((1.0, 0.0), (250.0, -3.0)):
        usual, tail = _scale("patchcore", judged(gain * maps + shift))
        scaled = (gain * maps[:, 1:] + shift - usual) / tail
        assert float((scaled > 0).double().mean()) == pytest.approx(0.5, abs=1e-3)
        assert float((scaled > 1).double().mean()) == pytest.approx(0.002, abs=2e-4)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_maps_that_say_nothing_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="the maps of padim on 3 good images cannot be brought to a scale"):
        _scale("padim", judged(torch.full((3, 4, 4), value)))


# -- where it is used --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_maps_of_the_parts_are_shown(fitted: pg.Combined, small_dataset: Path, tmp_path: Path) -> None:
    found = fitted.predict(TEST, **TORCH).found[0]
    parts = fitted.parts_of(found)
    assert list(parts) == ["padim", "patchcore"]
    np.testing.assert_allclose(sum(parts.values()) / 2, found.full_map(), atol=1e-3)
    run_test(fitted.save(tmp_path / "m.safetensors"), small_dataset, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "padim map" in page
    assert "patchcore map" in page
    assert "PaDiM + PatchCore" in page


def test_a_copy_learns_nothing_that_the_first_would_see(fitted: pg.Combined) -> None:
    before = fitted.predict(TEST, **TORCH).scores
    new = textures(6, SIDE, seed=9)
    updated = copy.copy(fitted).update(new, **TORCH)
    assert (updated.predict(TEST, **TORCH).scores != before).any()
    assert (fitted.predict(TEST, **TORCH).scores == before).all()
    assert updated.scale is not None
    assert torch.equal(updated.scale, fitted.scale)  # type: ignore[arg-type]


def test_by_name_with_a_preset_and_settings_of_a_part() -> None:
    detector = build("PatchCore+PaDiM", "quick", {"padim.dims": 7, "layers": "stage3"})
    assert isinstance(detector, pg.Combined)
    assert detector.size == "area:256"
    assert {name: part.layers for name, part in detector.components.items()} == {
        "patchcore": "stage3",
        "padim": "stage3",
    }
    assert detector.components["padim"].dims == 7  # type: ignore[attr-defined]
    paper = build("stfpm+padim", "paper")
    assert (paper.backbone, paper.read_layers) == (
        pg.STFPM.presets["paper"]["backbone"],
        ("layer1", "layer2", "layer3"),
    )
    with pytest.raises(UnknownName, match=r"unknown setting of PaDiM 'dim'\. The nearest are: dims"):
        build("patchcore+padim", None, {"padim.dim": 7})
    with pytest.raises(UnknownName, match=r"unknown method 'padin'\. The nearest are: padim"):
        build("patchcore+padin")
    with pytest.raises(UnknownName, match="unknown preset of padim 'slow'"):
        build("padim+patchcore", "slow")


# -- each level by itself ----------------------------------------------------------------------------------------------


def test_separate_levels_are_judged_by_methods_that_read_one_each() -> None:
    detector = build("patchcore", None, {**PLAIN, "ratio": 0.1}, fusion={"kind": "separate"}).fit(GOOD, **TORCH)
    assert isinstance(detector, pg.Combined)
    alone = [pg.PatchCore(layers=[name], ratio=0.1, **PLAIN).fit(GOOD, **TORCH) for name in ("stage3", "stage5")]
    scores, maps = literal(detector, alone, (8, 8))
    found = detector.predict(TEST, **TORCH)
    np.testing.assert_allclose(found.scores, scores.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.stack(found.maps), maps.mean(0), rtol=1e-4, atol=1e-4)
    assert list(detector.components) == ["patchcore", "patchcore 2"]


def test_separate_levels_keep_the_tiles() -> None:
    tiled = pg.PatchCore(size=128, ratio=0.1).tiled(tile=64, stride=64)
    detector = pg.Combined.of_levels(tiled)
    assert detector.tiling == tiled.tiling
    assert [(part.read_layers, part.ratio) for part in detector.components.values()] == [  # type: ignore[attr-defined]
        (("stage3",), 0.1),
        (("stage5",), 0.1),
    ]


@pytest.mark.parametrize(
    ("method", "settings", "fusion", "message"),
    [
        ("patchcore", {"layers": ["stage3"]}, {}, "PatchCore reads one layer, stage3: name two or more"),
        ("patchcore+padim", {}, {}, "PatchCore . PaDiM cannot be separated into layers: expected one method"),
        ("efficientad", {}, {}, "EfficientAD reads one layer, teacher: name two or more"),
        ("patchcore", {}, {"dims": 8}, r"fusion 'separate' leaves layers as they are, and has no \['dims'\]"),
    ],
)
def test_what_cannot_be_separated(method: str, settings: dict[str, Any], fusion: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(method, None, settings, fusion={"kind": "separate", **fusion})


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (3, "parts=3: expected names of methods"),
        ("patchcore", "parts='patchcore': expected two methods or more"),
        ([], r"parts=\[\]: expected two methods or more"),
        ([{"dims": 3}], r"parts=\[\{'dims': 3\}\]: expected names of methods"),
        (["patchcore", 7], "expected names of methods"),
        ("patchcore+", "unknown method ''"),
        ("patchcore+combined", "'combined'.* is a combination itself"),
        ([{"method": "padim", "size": 64}, "patchcore"], "padim has size=64 of its own, but all parts share one"),
        ([{"method": "padim", "tiling": {}}, "patchcore"], "padim has tiling=.* of its own"),
        ([{"method": "padim", "scale": 0}, "patchcore"], "scale=0 of padim: expected a number from 1/16 to 4"),
        ([{"method": "padim", "scale": True}, "patchcore"], "scale=True of padim"),
        ([{"method": "padim", "scale": "half"}, "patchcore"], "scale='half' of padim"),
        ([{"method": "stfpm", "scale": 0.5}, "patchcore"], "stfpm reads the image itself"),
    ],
)
def test_parts_that_cannot_be(parts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pg.Combined(parts)


HALF = {"method": "patchcore", "scale": 0.5}
ROTATED = [{"method": "patchcore", "rotations": 2}, "padim"]


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (pg.Combined("patchcore+padim", size=SIDE, map_weights=(1,)), r"map_weights=\(1,\): expected 2 numbers.*padim"),
        (pg.Combined("patchcore+padim", size=SIDE, score_weights=(1, -1)), "score_weights=.*none below 0"),
        (pg.Combined("patchcore+padim", size=SIDE, score_weights=(0, 0)), "score_weights=.*not all 0"),
        (pg.Combined("patchcore+padim", size=SIDE, map_weights=("a", 1)), "map_weights=.*expected 2 numbers"),  # type: ignore[arg-type]
        (pg.Combined("patchcore+padim", size=SIDE, map_weights=3), "map_weights=3: expected 2 numbers"),  # type: ignore[arg-type]
        (pg.Combined(ROTATED, size=SIDE), r"in the turns \[\(0,\), \(0, 2\)\]: give all parts the same"),
        (pg.Combined("patchcore+padim", size=SIDE).fused("concat"), "give those that all of them read"),
        (pg.Combined([HALF, "padim"], size=SIDE, layers=["stage3"]).fused("concat"), "give the scales to the fusion"),
        (
            pg.Combined("patchcore+padim", size=2 * SIDE).tiled(tile=SIDE, normalise="position"),
            "normalise='position' divides all parts by one number",
        ),
    ],
)
def test_settings_that_contradict_each_other(detector: pg.Combined, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector.fit(GOOD, **TORCH)


def test_the_quick_preset_reads_the_image_at_two_scales() -> None:
    detector = build("combined", "quick", {"size": 128})
    assert detector.scales == (1.0, 0.5)
    assert build("combined", "quick").size == "area:512"


def test_a_part_that_has_seen_all_good_images_has_no_scale() -> None:
    few = pg.Combined([{"method": "padim", "dims": 20}, "patchcore"], size=SIDE)
    with pytest.raises(DataError, match=r"PaDiM learned all good images.*let calibrate or validate hold some back"):
        few.fit(GOOD, calibrate=0, **TORCH)  # as many images as leave PaDiM none to leave out
    assert few.fit(GOOD, calibrate=0.25, **TORCH).scale is not None


def test_parts_that_train_and_parts_that_count_are_not_updated_together() -> None:
    parts: list[Any] = ["patchcore", {"method": "fastflow", "steps": 2, "epochs": 1}]
    detector = pg.Combined(parts, size=SIDE).fit(GOOD, **TORCH)
    before = detector.predict(TEST, **TORCH).scores
    with pytest.raises(InputError, match=r"patchcore and fastflow cannot be updated together.*Fit anew"):
        detector.update(textures(6, SIDE, seed=9), **TORCH)
    assert (detector.predict(TEST, **TORCH).scores == before).all()


# -- golden ------------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_golden_scores(fitted: pg.Combined) -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    np.testing.assert_allclose(fitted.predict(TEST, **TORCH).scores, GOLDEN, rtol=1e-3)


GOLDEN = [0.59446, 0.515471, 0.639384]
