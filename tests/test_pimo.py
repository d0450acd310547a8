"""AUPIMO by hand, against numerical integration, under rescaling, and in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers

import pickglass.metrics.pimo as pimo
from pickglass.errors import InputError
from pickglass.metrics import PimoCurves


def literal_scores(maps: list, masks: list, bounds: tuple[float, float]) -> list[float]:
    """Curve by curve over every distinct score, integrated on a fine logarithmic grid."""
    good = [m.ravel() for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    thresholds = np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]
    fpr = np.append(0, np.mean([[(g >= t).mean() for t in thresholds] for g in good], axis=0))
    grid = np.geomspace(*bounds, 20001)
    middle = np.sqrt(grid[1:] * grid[:-1])
    scores = []
    for scores_2d, mask in zip(maps, masks, strict=True):
        if not mask.any():
            scores.append(float("nan"))
            continue
        recall = np.append(0, [(scores_2d[mask] >= t).mean() for t in thresholds])
        # at each FPR of the grid, the straight line between the last point before and the first point at or after it
        right = np.searchsorted(fpr, middle, "left")
        left = right - 1
        part = (middle - fpr[left]) / (fpr[right] - fpr[left])
        scores.append(float(np.mean(recall[left] + part * (recall[right] - recall[left]))))
    return scores


def random_images(seed: int, sizes: tuple = ((12, 15), (9, 8))) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    levels = [3, 40, 10**6][seed % 3]
    maps, masks = [], []
    for i in range(7):
        shape = sizes[int(rng.integers(len(sizes)))]
        mask = (rng.random(shape) < 0.2) & (i % 2 == 1)
        mask[0, 0] |= i % 2 == 1
        maps.append(
            (rng.integers(0, levels, shape) / levels + (0.3 * mask * rng.random() if seed % 2 else 0)).astype(
                np.float32
            )
        )
        masks.append(mask)
    return maps, masks


def added(maps: list, masks: list, bounds: tuple[float, float], n_good: int | None = None) -> PimoCurves:
    curves = PimoCurves(bounds, n_good)
    for scores, mask in zip(maps, masks, strict=True):
        curves.update(scores, mask)
    return curves


@pytest.mark.parametrize("bounds", [(0.01, 0.2), (0.001, 0.05), (0.1, 1.0)])
@given(seed=integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_equals_the_definition(seed: int, bounds: tuple[float, float]) -> None:
    maps, masks = random_images(seed)
    found = added(maps, masks, bounds).compute()
    np.testing.assert_allclose(found.scores, literal_scores(maps, masks, bounds), atol=2e-4)
    assert found.mean == pytest.approx(np.nanmean(found.scores))


SCORES = np.repeat([7, 6, 5, 4, 3], [1, 9, 90, 900, 9000])  # pixels of the good image: 1, 10, 100, ... reach 7, 6, 5


def decades() -> np.ndarray:
    return SCORES.reshape(100, 100).astype(np.float32)


@pytest.mark.parametrize("factor", [1, 10, 1e-3])
def test_hand_worked_case(factor: float) -> None:
    # One good image of 10,000 pixels; a threshold lets through:
    #     at least     7      6      5      4      3
    #     pixels       1     10    100   1000  10000
    #     FPR       1e-4   1e-3   1e-2   1e-1      1
    # The defect image has four defect pixels: 6.5, 5.5, 5.5, 3.5. The first is found beyond 1e-4, the next two beyond
    # 1e-3, the last beyond 1e-1. Recall by decade of FPR:
    #     1e-5 to 1e-4: 0    1e-4 to 1e-3: 1/4    1e-3 to 1e-2: 3/4    1e-2 to 1e-1: 3/4    1e-1 to 1: 1
    # so that AUPIMO is the mean of the decades it covers: a decade is one unit of the logarithm.
    defect, mask = np.array([[6.5, 5.5, 9.0], [5.5, 3.5, 9.0]]), np.array([[1, 1, 0], [1, 1, 0]]) > 0
    for bounds, expected in {
        (1e-4, 1e-3): 1 / 4,
        (1e-3, 1e-2): 3 / 4,
        (1e-4, 1e-2): 1 / 2,
        (1e-5, 1e-4): 0,
        (1e-4, 1): (1 / 4 + 3 / 4 + 3 / 4 + 1) / 4,
    }.items():
        found = added([factor * decades(), factor * defect], [np.zeros((100, 100), bool), mask], bounds).compute()
        assert found.scores.tolist() == [pytest.approx(np.nan, nan_ok=True), pytest.approx(expected, abs=1e-12)]
    assert found.finest == pytest.approx(1e-4)
    assert found.n_good == 1


def test_a_tie_of_good_and_defect_pixels_rises_in_a_straight_line() -> None:
    # All 100 good pixels and both defect pixels tie: recall = FPR, whose mean over log FPR is (U - L) / log(U / L).
    tied = [np.full((10, 10), 0.5), np.full((1, 2), 0.5)]
    found = added(tied, [np.zeros((10, 10), bool), np.ones((1, 2), bool)], (0.01, 0.1)).compute()
    assert found.scores[1] == pytest.approx(0.09 / np.log(10))


def test_images_of_different_size_weigh_the_same() -> None:
    # Good images of 10 and 1000 pixels; 5 and 50 of their pixels reach 2: FPR (5/10 + 50/1000) / 2 = 0.275.
    small, large = np.ones((1, 10)), np.ones((10, 100))
    small[0, :5] = large[0, :50] = 2
    for value, recall in ((1.5, 0.0), (2.5, 1.0)):
        found = added(
            [small, large, np.full((1, 1), value)], [small < 0, large < 0, np.ones((1, 1), bool)], (0.1, 0.27)
        )
        assert found.compute().scores[2] == recall


def test_strictly_rising_transforms_change_nothing() -> None:
    maps, masks = random_images(4)
    expected = added(maps, masks, (0.01, 0.2)).compute().scores
    for change in (np.exp, lambda m: 5 * m - 3, np.arctan):
        changed = [change(m.astype(np.float64)).astype(np.float32) for m in maps]
        np.testing.assert_allclose(added(changed, masks, (0.01, 0.2)).compute().scores, expected, atol=1e-12)


def test_known_number_of_good_images_bounds_the_memory_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pimo, "_PRUNE", 64)
    for seed in range(6):
        maps, masks = random_images(seed)
        n_good = sum(not mask.any() for mask in masks)
        for bounds in ((0.01, 0.05), (0.1, 0.5)):
            expected = added(maps, masks, bounds).compute().scores
            for announced in (n_good, n_good + 3):
                bounded = added(maps, masks, bounds, n_good=announced)
                np.testing.assert_array_equal(bounded.compute().scores, expected)
    with pytest.raises(InputError, match="more than n_good=4"):
        added([decades()] * 5, [np.zeros((100, 100), bool)] * 5, (0.01, 0.1), n_good=4)


def test_memory_is_a_trickle_of_the_good_pixels() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((40, 256, 256), dtype=np.float32)
    tracemalloc.start()
    try:
        curves = PimoCurves(n_good=40)
        for scores in maps:
            curves.update(scores, None)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 0.6 * maps.nbytes  # the pool that is not yet pruned holds at most 2^18 pixels and a map
    assert sum(pool.n for pool in curves._good.values()) <= (1 << 18) + 256 * 256


def test_no_good_or_no_defective_image_gives_nan() -> None:
    maps, masks = random_images(1)
    bad = [(m, k) for m, k in zip(maps, masks, strict=True) if k.any()]
    result = added(*map(list, zip(*bad, strict=True)), (0.01, 0.1)).compute()
    assert np.isnan(result.scores).all()
    assert np.isnan([result.mean, result.finest]).all()
    assert np.isnan(added(maps[:1], masks[:1], (0.01, 0.1)).compute().mean)
    assert len(PimoCurves().compute().scores) == 0


def test_bad_settings_are_refused() -> None:
    for bounds in ((0, 0.1), (0.2, 0.1), (0.1, 1.5), (float("nan"), 1)):
        with pytest.raises(InputError, match="bounds="):
            PimoCurves(bounds)
    with pytest.raises(InputError, match="n_good=-1"):
        PimoCurves(n_good=-1)
    curves = PimoCurves()
    with pytest.raises(InputError, match="expected finite"):
        curves.update([[np.nan]], None)
    assert len(curves.compute().scores) == 0
