"""What grows with the number of images grows with it alone, and what need not grow does not."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pickglass.app.testing import truth
from pickglass.app.testing.evaluate import evaluate
from pickglass.app.testing.saving import saved_arrays, write_arrays
from pickglass.data import Preprocess, Row
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.tiling import Tiles, TileSettings
from pickglass.errors import InputError
from pickglass.metrics import PimoCurves, PixelCurves, SaturatedCurves, SaturatedRegion, polylines
from pickglass.result import Found, Prediction
from pickglass.runtime.compute import ComputeOptions


def judged(n: int, side: int, levels: int, seed: int = 0) -> Prediction:
    """Maps of few levels, so that scores tie; every third image has a defect, of three types."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        mask = np.zeros((side, side), np.bool_)
        y, x = rng.integers(0, side - 3, 2)
        mask[y : y + 3, x : x + 2 + i % 3] = True
        kind = [None, None, f"type{i % 9 % 4}"][i % 3]
        row = Row(f"array:{i}", label=int(kind is not None), defect=kind, mask=None if kind is None else mask)
        scores = (rng.integers(0, levels, (side, side)) - 1).astype(np.float32)
        found.append(Found(row, float(scores.max()), scores + mask, (side, side)))
    return Prediction(tuple(found))


@pytest.mark.parametrize("levels", [3, 100_000])
@pytest.mark.parametrize("stretch", [7, 1 << 24])
def test_metrics_are_the_same_where_pixels_are_only_counted(
    monkeypatch: pytest.MonkeyPatch, levels: int, stretch: int
) -> None:
    prediction = judged(12, 9, levels)
    monkeypatch.setattr(polylines, "_BLOCK", 5)
    kept = evaluate(prediction)
    monkeypatch.setattr(truth, "_KEPT", 0)
    monkeypatch.setattr(polylines, "_STRETCH", stretch)
    counted = evaluate(prediction)
    assert counted.overall == kept.overall
    assert counted.by_type == kept.by_type
    assert len(kept.by_type) > 2
    assert np.array_equal(counted.curves().pro, kept.curves().pro)
    # intervals need quantiles of all pixels, so these are kept then
    assert evaluate(prediction, repeats=20)["intervals"]["aupro_30"] is not None


def test_memory_does_not_grow_with_good_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polylines, "_STRETCH", 1 << 12)

    def peak(n: int, expected: bool) -> int:
        rng = np.random.default_rng(0)
        defective, mask = rng.random((64, 64), np.float32), np.eye(64, dtype=np.bool_)
        tracemalloc.start()
        curves = PixelCurves()
        if expected:
            curves.expect(defective, mask, "scratch")
        curves.update(defective, mask, "scratch")
        for _ in range(n):
            curves.update(rng.random((64, 64), np.float32), None)
        curves.compute()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    grown = 300 * 64 * 64 * 4  # bytes of the scores of the images between
    assert peak(310, expected=False) - peak(10, expected=False) > grown
    assert peak(310, expected=True) - peak(10, expected=True) < grown / 20


def test_a_large_good_map_is_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickglass.metrics.pimo._PRUNE", 64)
    rng = np.random.default_rng(0)
    good, bad, mask = rng.random((200, 300), np.float32), rng.random((20, 30), np.float32), np.zeros((20, 30), np.bool_)
    mask[3:9, 4:7] = True
    found = []
    for piece in (1 << 22, 1000):
        monkeypatch.setattr("pickglass.metrics.pimo._PIECE", piece)
        curves = PimoCurves(n_good=1)
        curves.update(good, None)
        curves.update(bad + mask, mask)
        found.append(curves.compute())
        assert sum(pool.n for pool in curves._good.values()) < 1000
    assert found[0].scores[1] == found[1].scores[1] > 0


def test_what_was_not_expected_is_refused() -> None:
    one, mask = np.array([[0.5, 0.1]]), np.array([[True, False]])
    curves = PixelCurves()
    curves.expect(one, mask, "crack")
    curves.expect(one, mask, "dent")
    curves.update(one, mask, "crack")
    curves.update(one, mask, "dent")
    with pytest.raises(InputError, match="before"):
        curves.expect(one, mask, "crack")
    with pytest.raises(InputError, match="not kept"):
        curves.ok_quantiles([0.5])
    assert curves.compute(tags={"crack", "good"}).n_regions == 1
    assert curves.compute(tags={"crack", "dent", "good"}).n_ok_pixels == 2  # these are all
    curves.update(one + 1, mask, "stain")
    with pytest.raises(InputError, match="beside 'good'"):
        curves.compute(tags={"crack", "dent"})
    with pytest.raises(InputError, match="not expected"):
        curves.compute()


def test_saturated_curves_count_beside_the_others() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((4, 8, 8), np.float32)
    mask = np.zeros((8, 8), np.bool_)
    mask[2:5, 2:6] = True
    found = []
    for expected in (False, True):
        curves = PixelCurves()
        if expected:
            for i in (0, 1):
                curves.expect(maps[i], mask, f"type{i}")
        saturated = SaturatedCurves(beside=curves)
        for i, scores in enumerate(maps):
            bad = i < 2
            curves.update(scores, mask if bad else None, f"type{i}" if bad else "good")
            saturated.update(scores, [SaturatedRegion(mask, 5)] if bad else [], f"type{i}" if bad else "good")
        found.append([saturated.compute((0.05, 0.3), tags) for tags in (None, {"type1", "good"})])
    for kept, counted in zip(*found, strict=True):
        assert kept.au_spro == counted.au_spro
        assert np.array_equal(kept.spro, counted.spro)


def test_sizes_are_not_gathered_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuple of all sizes for each of N images is N * N sizes."""
    asked = []
    monkeypatch.setattr(
        Prediction, "sizes", property(lambda self: asked.append(1) or tuple(f.size for f in self.found))
    )
    evaluate(judged(12, 9, 5), repeats=5)
    assert len(asked) <= 1


def test_p_values_sort_the_calibration_scores_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pickglass.calibration import promises, usual_threshold

    calibration = usual_threshold([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "c"])
    calls, maxima = [], promises.group_maxima
    monkeypatch.setattr(promises, "group_maxima", lambda *given: calls.append(1) or maxima(*given))
    found = [calibration.p_value(score) for score in (0.5, 2.0, 3.5, 9.0)]
    assert [found[i].p > found[i + 1].p for i in range(3)] == [True, True, True]  # type: ignore[union-attr]
    assert len(calls) == 1


def test_a_study_reads_its_file_once_for_each_group() -> None:
    from pickglass.app.study.store import StudyStore

    asked = []

    class Keys(tuple):  # counts how often a set is made of it
        def __iter__(self):  # type: ignore[no-untyped-def]
            asked.append(1)
            return super().__iter__()

    rows = [{"key": str(i)} for i in range(50)]
    store = SimpleNamespace(connection=SimpleNamespace(execute=lambda _: rows), path="study.db")
    assert len(StudyStore.rows(store, Keys(str(i) for i in range(0, 50, 2)))) == 25  # type: ignore[arg-type]
    assert len(asked) == 1


def test_masks_are_saved_one_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prediction = judged(12, 9, 5)
    held: list[weakref.ref[np.ndarray]] = []
    most, truth_of = [0], Row.truth

    def read(row: Row, size: tuple[int, int]) -> np.ndarray | None:
        mask = truth_of(row, size)
        gc.collect()
        most[0] = max(most[0], sum(one() is not None for one in held))
        held.append(weakref.ref(mask))  # type: ignore[arg-type]
        return mask

    found = evaluate(prediction)
    monkeypatch.setattr(Row, "truth", read)
    write_arrays(tmp_path / "all.npz", {"": saved_arrays(prediction, found)})
    assert len(held) == 4
    assert most[0] <= 1  # the one before
    with np.load(tmp_path / "all.npz") as saved:
        assert np.array_equal(saved["masks/2"], prediction.found[2].row.mask)


def test_few_large_images_are_computed_at_once() -> None:
    def images(side: int, **options: int) -> int:
        preprocess = Preprocess((side, side))
        return FeatureLoader(None, preprocess, ("features",), None, ComputeOptions(**options)).batch  # type: ignore[arg-type]

    assert [images(side) for side in (256, 512, 1024, 2048, 8192)] == [8, 8, 4, 1, 1]
    assert images(1024, batch=2) == 2
    tiles = Tiles(TileSettings((1024, 1024), (1024, 1024)), (2048, 2048))
    whole = FeatureLoader(None, Preprocess((2048, 2048)), ("features",), None, ComputeOptions(), tiles)  # type: ignore[arg-type]
    assert (whole.batch, whole.only(range(1)).batch) == (1, 4)


def test_exponents_of_the_bench() -> None:
    from bench.scaling import COURSES, curves, growth, short, square, surface, table

    steps = [10, 100, 1000, 10_000]
    assert growth(steps, [3 * n**1.5 for n in steps]) == (1.5, 0.0, 1.5)
    rough = growth(steps, [1, 12, 80, 2000])
    assert rough.power - rough.half < 1.07 < rough.power + rough.half
    assert rough.last == pytest.approx(np.log10(25), abs=1e-6)
    assert (short(4_194_304), short(1500), short(0.1234)) == ("4.19 M", "1,500", "0.123")
    assert [square(pixels) for pixels in (256**2, 108_000_000)] == [(256, 256), (9000, 12_000)]
    image, mask = surface(7, (60, 700), bad=True)
    assert image.shape == (60, 700, 3)
    assert mask.any()
    assert np.array_equal(image, surface(7, (60, 700), bad=True)[0])

    def took(course: str, step: int, part: str, **more: object) -> dict[str, object]:
        figures = {"cpu_s": step / 10, "peak_mb": 700, "base_mb": 600, **more}
        return {"course": course, "method": "PatchCore", "step": step, "parts": {part: figures}}

    rows = [took("images", 500, "fit"), took("images", 50, "fit"), took("images", 50, "predict")]
    refused = {**took("images", 5000, "fit"), "parts": {"fit": {"error": "no memory"}}}
    (curve,) = curves([*rows, refused])
    assert (curve.part, curve.steps, curve.figures["cpu_s"]) == ("fit", [50, 500], [5, 50])
    assert f"| {COURSES['images'].axis} | PatchCore | fit | 50 | 500 | 5 → 50 | 1.00 | 1.00 | 700 → 700 |" in table(
        rows
    )
