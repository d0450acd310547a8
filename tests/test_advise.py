"""The advisor: geometry rules out what cannot see the defect, painted defects rank the rest; auto; many categories."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import pickglass as pg
from pickglass.app.advise import auto
from pickglass.app.advise.advise import advise, usable_backbones
from pickglass.app.advise.candidates import TOGETHER, Candidate, Options, candidates, input_sizes, usual_input
from pickglass.app.advise.choice import Advice, Baseline, Rated, limits_of, surest
from pickglass.app.advise.painted import Brush, choose_rows, paint_set
from pickglass.app.advise.request import KINDS_PAINTED, AdviseRequest, parse_extent
from pickglass.app.advise.scoring import PLAIN, Score, averaged, detector_of, difference, judge, scored, window_map
from pickglass.app.advise.sight import sight
from pickglass.app.advise.transfer import MEASURED, agreement, spread, widened
from pickglass.app.advise.visibility import Place, first_seen
from pickglass.app.fit import FitRequest, build, fit
from pickglass.app.fit_many import fit_many
from pickglass.app.jobs.executors import Where
from pickglass.data import DataSource, Preprocess, Row, Table, load_dataset, usual_size
from pickglass.errors import DataError, InputError, WeightsMissing
from pickglass.features.shared import SharedFeatures
from pickglass.methods import find_method, method_names
from pickglass.runtime.compute import ComputeOptions

LITE = "efficientnet_lite0"
QUICK = ComputeOptions(engine="torch")
TORCH = QUICK.arguments()


# -- geometry ----------------------------------------------------------------------------------------------------------


def test_small_and_large_defects_leave_different_layers() -> None:
    left = {}
    for defect in (4, 64):
        options = candidates(LITE, [((128, 128), 0.5), ((256, 256), 1.0), ((512, 512), 2.0)], defect)
        left[defect] = {(one.layers, one.size) for one in options.kept}
        assert all(why for _, _, why in options.ruled_out)
        assert not left[defect] & {(tuple(name.split()[1].split("+")), size) for name, size, _ in options.ruled_out}
    assert (("stage1",), (256, 256)) in left[4]
    assert (("stage5",), (256, 256)) not in left[4]
    assert (("stage5",), (512, 512)) in left[64]
    assert not any("stage1" in layers for layers, size in left[64] if size[0] >= 128)
    assert (("stage5", "stage7"), (512, 512)) in left[64]


def test_the_reason_names_stride_field_or_grid() -> None:
    options = candidates(LITE, [((256, 256), 1.0)], 6)
    why = {name.split()[1]: text for name, _, text in options.ruled_out}
    assert why["stage5"].startswith("stride: a cell of stage5 is 16 px wide, the defect 6.0 px: it fills 14 %")
    assert "drowns what stage4 sees" in why["stage4+stage6"] or why["stage4+stage6"].startswith("stride")
    small = {name.split()[1]: text for name, _, text in candidates(LITE, [((96, 96), 0.4)], 64).ruled_out}
    assert small["stage7"].startswith("grid: stage7 has 3x3 cells")
    blind = {name.split()[1]: text for name, _, text in candidates(LITE, [((96, 96), 1.0)], 30).ruled_out}
    assert blind["stage1"].startswith("field: a cell of stage1 sees 7 px")
    fine = {name.split()[1]: text for name, _, text in candidates(LITE, [((512, 512), 2.0)], 8).ruled_out}
    assert fine["stage1"].startswith("grid: the defect spans 8 cells of stage1 there, on a map of 256x256")


def test_sizes_keep_the_aspect_and_lie_about_the_usual_one() -> None:
    strip = usual_input([(256, 4096)])
    sizes, out = input_sizes((256, 4096), 8, strip)
    assert (strip, 1.0) in sizes
    assert all(w / h == pytest.approx(16, rel=0.35) for (h, w), _ in sizes)
    sizes, out = input_sizes((120, 120), 8, usual_input([(120, 120)]))
    assert max(size for size, _ in sizes) == (256, 256)
    assert any("beyond twice" in why for _, why in out)
    assert input_sizes((20, 20), 8, usual_input([(20, 20)]))[0]  # tiny images have a size all the same
    large = usual_input([(1200, 1200)])
    for defect, beyond in ((60, False), (8, True)):  # more than twice the usual pixels are for what is tiny there
        sizes, out = input_sizes((1200, 1200), defect, large)
        assert any(h * w > 2.1 * large[0] * large[1] for (h, w), _ in sizes) == beyond
        assert all(h * w >= large[0] * large[1] / 4 for (h, w), _ in sizes)


def test_a_transformer_is_tried_at_whole_patches_with_several_levels() -> None:
    kept = candidates("vit_small_patch14_dinov2", [((512, 512), 1.0)], 48).kept
    assert {one.size for one in kept} == {(518, 518)}
    assert ("block3", "block6", "block9") in {one.layers for one in kept}
    assert kept[0].defect == pytest.approx(48 * 518 / 512)


def test_a_size_is_a_length_or_a_length_and_a_width() -> None:
    assert parse_extent("8") == (8.0, None)
    assert parse_extent("150X6.5") == (150.0, 6.5)
    for wrong in ("", "x", "8x", "6x150", "1x2x3", "-8", "nan", "8px"):
        with pytest.raises(InputError, match="length x width"):
            parse_extent(wrong)


# -- painted images ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(small_dataset: Path) -> Table:
    return load_dataset(small_dataset).train


def test_groups_do_not_part_and_nothing_of_the_test_is_read(good: Table) -> None:
    rows = Table(
        [*(Row(row.path, "train", 0, group=f"g{i // 4}") for i, row in enumerate(good)), Row("no.png", "test")]
    )
    taught, held = choose_rows(rows, 0)
    assert not {row.group for row in taught} & {row.group for row in held}
    assert len(taught) + len(held) == 16
    with pytest.raises(DataError, match="at least 4"):
        choose_rows(rows[:2], 0)


EACH = dict.fromkeys(KINDS_PAINTED, 0.6)


def brush(size: float, **others: Any) -> Brush:
    return Brush(
        **{"size_px": size, "width_px": None, "spread_px": 0.0, "measured": True, "part": None, "seed": 0} | others
    )


@pytest.fixture(scope="module")
def painted(good: Table) -> Any:
    return paint_set(choose_rows(good, 0), brush(24), [Preprocess((96, 96), "bicubic")], EACH, painted=14)


def test_painted_images_differ_from_their_good_ones_just_there(painted: Any, good: Table) -> None:
    bad = [one for one in painted.judged if one.mask is not None]
    assert len(bad) == 14
    assert len({(one.kind, one.factor) for one in bad}) == 14  # no kind always has the same contrast
    for one in bad:
        original = np.asarray(Image.open(one.path))
        top, left, h, w = one.window
        changed = one.pixels != original[top : top + h, left : left + w]
        assert ((changed.any(axis=2) if changed.ndim == 3 else changed) == one.mask).all()
        assert one.keep[one.mask].all()
    assert {row.pixels.shape for row in painted.test[96, 96]} == {(96, 96, 3)}


def test_regions_of_interest_hold_the_defects(good: Table, tmp_path: Path) -> None:
    mask = np.zeros(usual_size(good), np.uint8)
    mask[:, :50] = 255
    Image.fromarray(mask).save(tmp_path / "roi.png")
    rows = pg.data.with_roi(good, tmp_path / "roi.png")
    made = paint_set(choose_rows(rows, 0), brush(16), [Preprocess((64, 64), "bicubic")], EACH, painted=10)
    for one in made.judged:
        assert not one.keep[:, 50:].any()
        if one.mask is not None:
            assert one.mask[:, :50].sum() >= 9 * one.mask[:, 50:].sum()
    roi = np.asarray(made.test[64, 64][0].roi)
    assert roi[:, :30].all()
    assert not roi[:, 36:].any()


def test_defects_lie_on_the_part_where_it_was_found(good: Table) -> None:
    part = np.zeros(usual_size(good), np.bool_)
    part[30:, 20:] = True
    made = paint_set(choose_rows(good, 0), brush(12, part=part), [Preprocess((64, 64), "bicubic")], EACH, painted=10)
    for one in made.judged:
        assert one.keep[:30].any()  # but all of the image is judged, as fit does
        if one.mask is not None:
            assert part[one.mask].mean() >= 0.9


def test_the_skirt_of_a_soft_defect_counts_as_nothing(good: Table) -> None:
    soft = brush(24, spread_px=2.0)
    made = paint_set(choose_rows(good, 0), soft, [Preprocess((64, 64), "bicubic")], EACH, painted=7)
    for one in made.judged:
        if one.mask is not None:
            top, left, h, w = one.window
            changed = one.pixels != np.asarray(Image.open(one.path))[top : top + h, left : left + w]
            skirt = (changed.any(axis=2) if changed.ndim == 3 else changed) & ~one.mask
            assert skirt.any()
            assert not one.keep[skirt].any()


def test_a_search_by_halves_finds_where_seeing_begins() -> None:
    true = {0.05: 0, 0.2: 1, 0.9: 2, 3.0: 3}
    places = [Place(0, turn, "hole") for turn in true.values()]
    asked: list[tuple[int, float]] = []

    def seen(pairs: Any) -> list[bool]:
        asked.extend((place.turn, contrast) for place, contrast in pairs)
        return [contrast >= list(true)[place.turn] for place, contrast in pairs]

    found = first_seen(places, seen)
    assert found == [
        pytest.approx(0.0442, abs=1e-3),
        pytest.approx(0.177, abs=1e-3),
        pytest.approx(0.707, abs=1e-3),
        None,
    ]
    assert len(asked) == len(set(asked)) <= 3 * len(places)


def test_a_score_is_that_of_the_whole_evaluation(painted: Any) -> None:
    """Where every pixel counts, the windows give what AUPRO of whole maps gives."""
    from pickglass.metrics import PixelCurves

    candidate = candidates(LITE, [((96, 96), 1.0)], 24).kept[0]
    taught = painted.fit[96, 96]
    detector = detector_of(candidate, len(taught)).fit(taught, calibrate=0.0, **TORCH)
    prediction = detector.predict(painted.test[96, 96], **TORCH)
    score = scored(prediction, painted)
    curves = PixelCurves()
    for values, one in zip(prediction.maps, painted.judged, strict=True):
        assert one.keep.all() or one.mask is not None
        curves.update(window_map(values, one), one.mask)
    assert score.aupro[0] == pytest.approx(curves.compute(limits=[0.05]).aupro[0.05], abs=5e-3)
    assert score.aupro[1] <= score.aupro[0] <= score.aupro[2]
    assert difference(score, score, painted)["aupro"] == (0.0, 0.0, 0.0)


def test_images_that_count_several_times_count_as_often_in_the_image_score(painted: Any) -> None:
    from pickglass.metrics import auroc

    rng = np.random.default_rng(0)
    labels = np.array([int(one.mask is not None) for one in painted.judged])
    tables = SimpleNamespace(aupro=lambda *_: 0.5)
    for scores in (rng.normal(size=len(labels)), rng.integers(0, 3, len(labels)).astype(float)):  # also with ties
        score = Score((0.0,) * 3, (0.0,) * 3, cast(Any, tables), labels, scores.astype(np.float32), ())
        for _ in range(20):
            weight = rng.integers(0, 4, len(labels))
            index = np.repeat(np.arange(len(labels)), weight)
            assert score.of_weights(weight)[1] == pytest.approx(auroc(labels[index], scores[index]), nan_ok=True)
    assert np.isnan(score.of_weights(labels)[1])


@pytest.mark.slow
def test_shared_features_change_nothing(painted: Any) -> None:
    candidate = next(one for one in candidates(LITE, [((96, 96), 1.0)], 24).kept if one.layers == ("stage3",))
    alone = judge(candidate, painted, None, QUICK)
    with SharedFeatures(LITE, "default", 0, ["stage2", "stage3"], 50, 1.0) as shared:
        together = judge(candidate, painted, shared, QUICK)
    assert together.aupro[0] == pytest.approx(alone.aupro[0], abs=1e-3)


# -- several methods together ------------------------------------------------------------------------------------------


FUSED = Candidate(LITE, ("stage2", "stage3"), (96, 96), 24.0, 4, 1.0)


@pytest.fixture(scope="module")
def parts(painted: Any) -> dict[str, Score]:
    """What PatchCore, PaDiM and the average of both say of the painted images."""
    with SharedFeatures(LITE, "default", 0, FUSED.layers, 50, 1.0) as shared:
        return {
            method: judge(replace(FUSED, method=method), painted, shared, QUICK, changes=PLAIN)
            for method in ("patchcore", "padim", TOGETHER)
        }


@pytest.mark.slow
def test_methods_are_averaged_as_one_model_of_both_averages_them(painted: Any, parts: dict[str, Score]) -> None:
    good = [row for row, one in zip(painted.test[96, 96], painted.judged, strict=True) if one.mask is None]
    taught = painted.fit[96, 96]
    detector = detector_of(replace(FUSED, method=TOGETHER), len(taught), PLAIN)
    detector.fit(taught + Table([replace(row, role="validate") for row in good]), calibrate=0.0, **TORCH)
    fitted = scored(detector.predict(painted.test[96, 96], **TORCH), painted)
    ours = parts[TOGETHER]
    for mine, its, *alone in zip(ours.maps, fitted.maps, parts["patchcore"].maps, parts["padim"].maps, strict=True):
        assert mine.shape == its.shape
        alike = np.corrcoef(mine.ravel(), its.ravel())[0, 1]
        assert alike > 0.95
        assert alike > min(np.corrcoef(one.ravel(), its.ravel())[0, 1] for one in alone)
    assert ours.aupro[0] == pytest.approx(fitted.aupro[0], abs=0.1)
    assert np.corrcoef(ours.scores, fitted.scores)[0, 1] > 0.95


@pytest.mark.slow
def test_an_average_does_not_depend_on_the_units_of_its_parts(painted: Any, parts: dict[str, Score]) -> None:
    one, other = parts["patchcore"], parts["padim"]
    longer = replace(
        other, maps=tuple(64 * values + 1 for values in other.maps), scores=(64 * other.scores + 1).astype(np.float32)
    )
    plain, scaled = averaged([one, other], painted), averaged([one, longer], painted)
    assert scaled.aupro[0] == pytest.approx(plain.aupro[0], abs=0.01)
    np.testing.assert_allclose(scaled.scores, plain.scores, rtol=1e-2, atol=1e-2)
    alone = averaged([one, one], painted)
    assert alone.aupro[0] == pytest.approx(one.aupro[0], abs=0.01)
    flat = replace(other, maps=tuple(np.ones_like(values) for values in other.maps))
    with pytest.raises(InputError, match="brought to a scale"):
        averaged([one, flat], painted)


@pytest.mark.parametrize("method", ["patchcore", "padim", "subspace", TOGETHER])
def test_a_candidate_of_any_method_becomes_its_detector(method: str) -> None:
    candidate = Candidate(LITE, ("stage2", "stage3"), (96, 128), 8.0, 4, 1.0, method)
    detector = detector_of(candidate, 20, PLAIN)
    assert sorted(part.method for part in detector.components.values()) == sorted(method.split("+"))
    assert detector.read_layers == candidate.layers
    assert detector.configuration()["size"] == (96, 128)
    tiled = detector_of(replace(candidate, tile=(48, 64)), 20)
    assert tiled.tiling is not None
    assert tiled.tiling.tile == (48, 64)


def test_a_view_of_shared_features_is_an_extractor_of_its_layers() -> None:
    image = torch.rand(1, 3, 64, 64)
    with SharedFeatures(LITE, "random", 0, ["stage2", "stage3", "stage4"], 2, 1.0) as shared:
        for layers in (["stage3"], ["stage4", "stage2"], ["stage2", "stage3", "stage4"]):
            view, own = shared.view_of(layers), shared.extractor_of(layers)
            assert view.layers == own.layers == tuple(layers)
            assert view.shapes((64, 64)) == own.shapes((64, 64))
            assert view.is_still(LITE, layers, "random", 0, (1.0,), (4, 8, 16))
            assert not view.is_still(LITE, ["stage5"], "random", 0, (1.0,), (4, 8, 16))
            for mine, its in zip(view(image), own(image), strict=True):
                torch.testing.assert_close(mine, its)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def few_candidates() -> Iterator[None]:
    """Two sets of layers at one size: what is tested does not need more."""

    def few(backbone: str, sizes: Any, defect_px: float) -> Options:
        options = candidates(backbone, sizes[:1], defect_px)
        kept = [one for one in options.kept if one.layers in (("stage2",), ("stage2", "stage3"))]
        return Options(tuple(kept), options.ruled_out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pickglass.app.advise.advise.candidates", few)
        patch.setattr("pickglass.app.advise.scoring._REPEATS", 50)
        patch.setattr("pickglass.app.advise.advise.paint_set", partial(paint_set, painted=14))  # two of each kind
        yield


@pytest.fixture(scope="module")
def advised(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    page = tmp_path_factory.mktemp("advice") / "advice.html"
    return advise(DataSource(small_dataset, pixel_mm=0.05), AdviseRequest(16, backbones=[LITE]), page, compute=QUICK)


@pytest.mark.slow
def test_the_answer_is_complete_and_sorted(advised: Any) -> None:
    assert {"command", "ranking", "ruled_out", "limits"} <= set(advised)
    values = [one["aupro_05"] for one in advised["ranking"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.1  # a map of noise has 0.025
    (chosen,) = (one for one in advised["ranking"] if one["command"] == advised["command"])
    lows = [one["gain_interval"][0] for one in advised["ranking"] if one["gain"] is not None]
    assert chosen["gain_interval"][0] > 0 if "surest" in advised["why"] else max(lows, default=0) <= 0
    assert chosen["measured"]
    assert {one["method"] for one in advised["ranking"]} == {"patchcore", "padim", "subspace", TOGETHER}
    assert {one["method"] for one in advised["ranking"] if one["measured"]} >= {"patchcore", "padim", TOGETHER}
    (untried,) = (limit for limit in advised["limits"] if limit.startswith("Not tried"))
    trained = {name for name in method_names() if find_method(name).trains} - {"combined"}
    assert trained
    assert all(name in untried for name in trained)
    assert all(one["model_mb"] > 0.05 for one in advised["ranking"] if one["measured"])  # with its backbone
    assert set(advised["half_contrast"]) <= set(KINDS_PAINTED)
    assert all(one["latency_ms"] > 0 for one in advised["ranking"])
    assert advised["defect_mm"] == pytest.approx(0.8)
    assert "painted" in advised["limits"][0] + advised["limits"][-1] + "".join(advised["limits"])
    json.dumps(advised, allow_nan=False)


def _rated(layer: str, aupro: float, gain: tuple[float, float, float] | None = None, ms: float = 1.0) -> Rated:
    nothing = np.zeros(0)
    score = Score((aupro, 0.0, 1.0), (0.5, 0.0, 1.0), cast(Any, None), nothing, nothing, ())
    return Rated(Candidate(LITE, (layer,), (256, 256), 8.0, 8, 1.0), score, ms, gain=gain)


def test_the_surest_gain_is_chosen_not_the_luckiest() -> None:
    usual = _rated("usual", 0.3)

    def chosen(*others: Rated, within_ms: float | None = None) -> tuple[str, str]:
        baseline = Baseline(usual.candidate, usual.score)
        advice = Advice((usual, *others), (), cast(Any, None), (256, 256), AdviseRequest(8.0, within_ms), baseline, {})
        assert advice.choice is not None
        return advice.choice.candidate.layers[0], advice.why

    lucky, sure = _rated("lucky", 0.5, (0.2, -0.1, 0.4)), _rated("sure", 0.4, (0.1, 0.05, 0.15), ms=9.0)
    layer, why = chosen(lucky, sure)
    assert layer == "sure"
    assert "+0.10, 95 % +0.05 to +0.15" in why
    assert chosen(lucky) == ("usual", f"nothing finds more than the default of fit ({usual.candidate.name}, "
                             "AUPRO@0.05 0.30) beyond doubt")  # fmt: skip
    assert chosen(lucky, sure, within_ms=5.0)[0] == "usual"


def test_a_sure_choice_below_the_best_does_not_hide_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickglass.app.advise.choice.difference", lambda *_: {"aupro": (0.0, 0.0, 0.0)})
    data: Any = SimpleNamespace(judged=(), groups=tuple(map(str, range(30))), brush=None)
    usual, sure = _rated("usual", 0.1), _rated("sure", 0.2, (0.1, 0.05, 0.15))
    for first, said in ((0.25, True), (0.6, False)):
        lucky = _rated("lucky", first, (0.2, -0.1, 0.4))
        advice = Advice(
            (usual, sure, lucky), (), data, (256, 256), AdviseRequest(8.0), Baseline(usual.candidate, usual.score), {}
        )
        assert advice.choice is sure
        assert any(f"best AUPRO@0.05 {first:.2f}" in limit for limit in limits_of(advice)) == said


def test_fused_levels_go_before_a_single_one_unless_they_are_worse() -> None:
    assert surest([0.0, -0.1], [True, False], lambda *_: False) is None
    lows, fused = [0.05, 0.03, 0.02], [False, True, True]
    assert surest(lows, fused, lambda *_: False) == 1
    assert surest(lows, fused, lambda *_: True) == 0
    assert surest([0.03, 0.05], [False, True], lambda *_: True) == 1
    assert surest([0.05, -0.1], [False, True], lambda *_: False) == 0


def test_a_gain_must_win_against_what_painted_and_real_have_differed_by() -> None:
    assert widened((0.2, 0.1, 0.4), 0.0) == pytest.approx((0.2, 0.1, 0.4))
    value, low, high = widened((0.2, 0.1, 0.4), 0.1)
    assert value == 0.2
    assert low == pytest.approx(0.2 - np.hypot(0.1, 0.196))
    assert high == pytest.approx(0.2 + np.hypot(0.2, 0.196))
    assert spread(MEASURED[0].name) != spread()
    assert all(one.name in agreement() for one in MEASURED)


def test_kinds_that_disagree_make_a_gain_unsure(painted: Any) -> None:
    """Much better on one kind and a little worse on all others: another draw of kinds may have had none of it."""

    def found(gains: dict[str, float]) -> Any:
        values = np.array([gains.get(kind or "", 0.0) for kind in painted.kinds])
        return SimpleNamespace(of_weights=lambda weight: np.full(2, float(values @ weight) / weight.sum()))

    nothing = found({})
    even = difference(found(dict.fromkeys(KINDS_PAINTED, 0.1)), nothing, painted)["aupro"]
    one_kind = difference(found({"hole": 0.7}), nothing, painted)["aupro"]
    assert even[0] == pytest.approx(one_kind[0])
    assert even[1] > 0 >= one_kind[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, TOGETHER])
def test_the_command_runs_as_it_stands(
    advised: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str | None
) -> None:
    from typer.testing import CliRunner

    from pickglass.cli.main import app

    monkeypatch.chdir(tmp_path)
    first = next(one for one in advised["ranking"] if one["method"] == method or method is None)
    words = shlex.split(advised["command"] if method is None else first["command"])
    assert words[0] == "pickglass"
    done = CliRunner().invoke(app, [*words[1:], "--engine", "torch", "--json"])
    assert done.exit_code == 0, done.output
    model = pg.load(tmp_path / "model.safetensors")
    assert "+".join(model.components) == words[words.index("--method") + 1]
    assert words[words.index("--layers") + 1] == "+".join(model.configuration()["layers"])


@pytest.mark.slow
def test_the_page_shows_what_was_painted_and_found(advised: Any) -> None:
    page = Path(advised["report"]).read_text()
    assert page.count("<img") >= 20
    assert "Ruled out by geometry" in page
    assert "shlex" not in page
    assert advised["ruled_out"][-1]["why"].split(":")[0] in page


@pytest.mark.slow
@pytest.mark.long
def test_what_is_too_slow_is_not_chosen(small_dataset: Path) -> None:
    result = advise(small_dataset, AdviseRequest(16, latency_ms=1e-3, backbones=[LITE]), compute=QUICK)
    assert result["command"] is None
    assert all(one["too_slow"] for one in result["ranking"])
    assert "Nothing here judges an image within" in result["limits"][0]


@pytest.mark.slow
@pytest.mark.long
def test_what_takes_too_much_memory_is_ruled_out(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = judge

    def tight(candidate: Candidate, *given: Any, **options: Any) -> Any:
        memory = 1e-4 if candidate.method == "padim" else 2.0
        return real(candidate, *given, **{**options, "memory_gb": memory})

    monkeypatch.setattr("pickglass.app.advise.advise.judge", tight)
    result = advise(small_dataset, AdviseRequest(16, backbones=[LITE]), compute=QUICK)
    assert result["command"] is not None
    assert {one["method"] for one in result["ranking"]} == {"patchcore", "subspace"}
    refused = {str(out["layers"]).split(",")[0]: out["why"] for out in result["ruled_out"]}
    assert "memory_gb" in refused["padim"]
    assert refused[TOGETHER].startswith("padim, ")  # and so what it is a part of
    assert "could not be judged" in refused[TOGETHER]


@pytest.fixture(scope="module")
def model(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sight") / "m.safetensors"
    pg.PatchCore(size=64, ratio=0.2).fit(load_dataset(small_dataset), **TORCH).save(path)
    return path


@pytest.mark.slow
def test_a_model_sees_from_a_size_and_contrast_on(small_dataset: Path, model: Path, tmp_path: Path) -> None:
    source = DataSource(small_dataset, pixel_mm=0.5)
    asked = AdviseRequest(0, kinds=("hole", "crack"))
    told = sight(model, source, asked, tmp_path / "sight.html", compute=QUICK)
    assert [one["size_px"] for one in told["sizes"]] == [4, 8, 16, 32]
    assert [one["size_mm"] for one in told["sizes"]] == [2, 4, 8, 16]
    large = told["sizes"][-1]
    assert large["seen"] >= 0.5
    assert large["contrast"] is not None
    assert large["contrast"] < 1
    assert told["smallest_px"] is not None
    assert told["smallest_mm"] == told["smallest_px"] * 0.5
    assert told["sizes"][0]["seen"] <= large["seen"]
    page = (tmp_path / "sight.html").read_text()
    assert "Seen from this contrast on" in page
    assert "seen" in page
    assert "missed" in page
    json.dumps(told, allow_nan=False)
    slim = sight(model, source, AdviseRequest(40, kinds=("crack",), width_px=3), compute=QUICK)
    assert [(one["size_px"], one["width_px"]) for one in slim["sizes"]] == [(40, 3)]


def test_a_model_without_a_threshold_sees_nothing(small_dataset: Path, good: Table) -> None:
    blind = pg.PatchCore(size=32, ratio=0.2).fit(good[:4], calibrate=0.0, **TORCH)
    with pytest.raises(InputError, match="pickglass threshold"):
        sight(blind, small_dataset, compute=QUICK)


def test_wrong_requests_are_named(small_dataset: Path) -> None:
    with pytest.raises(InputError, match="expected 1 to 40"):
        advise(small_dataset, AdviseRequest(40, width_px=0.5))
    with pytest.raises(InputError, match="a width of their own"):
        advise(small_dataset, AdviseRequest(40, width_px=5, kinds=("slub",)))
    with pytest.raises(InputError, match="expected 4 to 78"):
        advise(small_dataset, AdviseRequest(200))
    with pytest.raises(WeightsMissing):
        usable_backbones(["wide_resnet50_2"])
    assert usable_backbones(None)[0] == LITE


# -- PatchCore's settings that auto tries ------------------------------------------------------------------------------


def _images(n: int, seed: int = 0) -> np.ndarray:
    from pickglass.testing import textures

    return textures(n, 64, seed=seed)


@pytest.mark.slow
def test_rotated_copies_make_turned_images_good() -> None:
    images = _images(6)
    ramp = np.linspace(0.3, 1, 64)[:, None]
    images = (images * (ramp if images.ndim == 3 else ramp[..., None])).astype(np.uint8)  # up and down now differ
    turned = np.ascontiguousarray(np.rot90(images, 2, (1, 2)))
    plain, both = (
        pg.PatchCore(size=64, weights="random", ratio=0.2, rotations=n).fit(images, calibrate=0.0, **TORCH)
        for n in (1, 2)
    )
    assert both.provenance.details["patches"] == 2 * plain.provenance.details["patches"]
    assert both.predict(turned, **TORCH).scores.mean() < 0.8 * plain.predict(turned, **TORCH).scores.mean()
    with pytest.raises(InputError, match="square"):
        pg.PatchCore(size=(64, 96), weights="random", rotations=4).fit(images, calibrate=0.0, **TORCH)
    with pytest.raises(InputError, match="rotations=3"):
        pg.PatchCore(size=64, weights="random", rotations=3).fit(images, calibrate=0.0, **TORCH)


@pytest.mark.slow
def test_position_tells_good_texture_in_the_wrong_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = np.full((8, 64, 64), 60, np.uint8)
    images[:, :, 32:] = 200
    images = np.clip(images + rng.normal(0, 4, images.shape), 0, 255).astype(np.uint8)
    wrong = np.ascontiguousarray(images[:1, :, ::-1])  # all of it good ground, on the other side
    plain, placed = (
        pg.PatchCore(size=64, layers=["stage2"], ratio=0.2, position_weight=w).fit(images, calibrate=0.0, **TORCH)
        for w in (0.0, 2.0)
    )

    def excess(detector: Any) -> float:
        found = detector.predict(np.concatenate([images, wrong]), **TORCH)
        return float(found.maps[-1][:, 2:5].mean() / found.maps[0][:, 2:5].mean())  # away from rim and middle

    assert excess(placed) > 1.5 * excess(plain)
    path = placed.save(tmp_path / "m.safetensors")
    again = pg.load(path).predict(wrong, **TORCH).scores
    assert np.array_equal(again, placed.predict(wrong, **TORCH).scores)
    with pytest.raises(InputError, match="position_weight=-1"):
        pg.PatchCore(size=64, weights="random", position_weight=-1).fit(images, calibrate=0.0, **TORCH)


def test_a_sample_is_chosen_from_no_more_than_it_says() -> None:
    detector = pg.PatchCore(size=64, weights="random", sample=10, ratio=0.5)
    detector.fit(_images(6), calibrate=0.0, **TORCH)
    assert detector.provenance.details["patches"] == 60
    assert detector.bank is not None
    assert detector.bank.shape[1] == 30
    torch.testing.assert_close(
        detector.bank,
        pg.PatchCore(size=64, weights="random", sample=10, ratio=0.5).fit(_images(6), calibrate=0.0, **TORCH).bank,
    )


# -- auto --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_auto_keeps_a_row_a_part_in_the_model(small_dataset: Path, tmp_path: Path) -> None:
    from pickglass.app.info import info

    result = fit(small_dataset, tmp_path / "m.safetensors", FitRequest(preset="auto", defect_px=16), compute=QUICK)
    about = info(tmp_path / "m.safetensors")["about"]
    rows = about["provenance"]["auto"]["ablation"]
    assert result["auto"]["ablation"] == rows
    assert list(rows) == [
        *("features", "resolution", "foreground mask", "second method", "scaling", "smoothing"),
        *("rotated copies", "position", "image score"),
    ]
    for row in rows.values():
        if row["why"] == "better on painted defects":
            assert row["taken"]
            assert row["interval"][0] > 0
        if row["why"] == "no gain beyond its interval":
            assert not row["taken"]
            assert row["interval"][0] <= 0
    assert result["n_calibrate"] == 2


@pytest.mark.parametrize(
    ("aupro", "auroc", "taken"),
    [
        ((0.1, 0.05, 0.2), (0.0, -0.1, 0.1), True),
        ((0.1, -0.01, 0.2), (0.1, 0.05, 0.2), False),  # no sure gain
        ((0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), False),  # a sure gain of the map, at the cost of the image score
    ],
)
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_auto_takes_a_second_method_where_it_helps_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, method: str, aupro: Any, auroc: Any, taken: bool
) -> None:
    chosen = _rated("stage2", 0.5)
    chosen = replace(chosen, candidate=replace(chosen.candidate, method=method))
    size = chosen.candidate.size
    data: Any = SimpleNamespace(judged=(), groups=(), brush=None, fit={size: []}, test={size: []})
    baseline = Baseline(chosen.candidate, chosen.score)
    advice = Advice((chosen,), (), data, (256, 256), AdviseRequest(8.0), baseline, {})
    judged: list[str] = []

    def found(candidate: Candidate, *_: Any, **__: Any) -> Candidate:
        judged.append(candidate.method)
        return candidate

    def gained(new: Any, old: Any, *_: Any) -> dict[str, Any]:
        both = isinstance(new, Candidate) and TOGETHER == new.method != old.method
        return {"aupro": aupro, "auroc": auroc} if both else {"aupro": (0.0,) * 3, "auroc": (0.0,) * 3}

    monkeypatch.setattr(auto, "find_advice", lambda *_, **__: advice)
    monkeypatch.setattr(auto, "judge", found)
    monkeypatch.setattr(auto, "difference", gained)
    choice = auto.auto_choice(Table([Row("0.png", roi="own.png")]), AdviseRequest(8), compute=QUICK)
    (row,) = (row for row in choice.ablation if row["part"] == "second method")
    assert row["taken"] == taken
    assert choice.method == (TOGETHER if taken else method)
    assert set(judged[judged.index(TOGETHER) + 1 :]) == {choice.method}  # what follows is tried on what was taken
    why = {row["part"]: row["why"] for row in choice.ablation}
    assert ("not a setting" in why["position"]) == (choice.method != "patchcore")
    build(choice.method, None, choice.settings, choice.tiling, choice.fusion)


def test_auto_reads_no_image_for_thresholds(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Table] = []

    class Stop(Exception):
        pass

    def spy(table: Table, *args: Any, **kwargs: Any) -> None:
        seen.append(table)
        raise Stop

    monkeypatch.setattr("pickglass.app.fit.auto_choice", spy)
    with pytest.raises(Stop):
        fit(small_dataset, tmp_path / "m.safetensors", FitRequest(preset="auto", calibrate=0.25))
    assert len(seen[0]) == 12
    assert {row.role for row in seen[0]} == {"fit"}


def test_auto_chooses_alone(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chooses method"):
        fit(small_dataset, tmp_path / "m.safetensors", FitRequest(preset="auto", settings={"size": 64}))
    with pytest.raises(InputError, match="belongs to preset 'auto'"):
        fit(small_dataset, tmp_path / "m.safetensors", FitRequest(defect_px=8))


# -- many categories ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_categories_one_fails_and_a_second_call_goes_on(small_dataset: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pickglass.cli.main import app

    root, models = tmp_path / "root", tmp_path / "models"
    for name in ("a", "b", "c"):
        shutil.copytree(small_dataset, root / name)
    broken = root / "b" / "train" / "good" / "00.png"
    broken.write_bytes(b"no image")
    words = ["fit", str(root), "-o", str(models), "--size", "64", "--engine", "torch", "--workers", "1", "--json"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 1, first.output
    told = json.loads(first.stdout)
    assert {row["category"]: row["state"] for row in told["categories"]} == {"a": "done", "b": "failed", "c": "done"}
    assert "00.png" in told["categories"][1]["error"]
    stamp = (models / "a.safetensors").stat().st_mtime_ns
    shutil.copy(root / "a" / "train" / "good" / "00.png", broken)
    second = fit_many(root, models, FitRequest(settings={"size": 64}), compute=QUICK)
    assert [row["state"] for row in second["categories"]] == ["skipped", "done", "skipped"]
    assert (models / "a.safetensors").stat().st_mtime_ns == stamp
    assert pg.load(models / "b.safetensors").configuration()["size"] == 64


@pytest.mark.slow
@pytest.mark.long
def test_many_categories_in_processes(small_dataset: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(small_dataset, tmp_path / "root" / name)
    result = fit_many(
        tmp_path / "root",
        tmp_path / "models",
        FitRequest(settings={"size": 64}),
        where=Where(parallel=2),
        compute=QUICK,
    )
    assert (result["done"], result["failed"]) == (2, 0)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["a.safetensors", "b.safetensors"]
