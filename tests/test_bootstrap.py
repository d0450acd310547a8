"""Intervals cover what is true, groups count, and count tables agree with the exact metrics."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import confusion_matrix
from sklearn.metrics import f1_score as sk_f1

import pickglass.metrics as pm
from pickglass.errors import InputError

# ---- the bootstrap ------------------------------------------------------------------------------------------------


def test_weights_draw_whole_groups_and_as_many_as_there_are() -> None:
    groups = ["a", "b", "a", None, None, "b", "a"]
    weights = pm.group_weights(groups, 400, seed=3)
    assert weights.shape == (400, 7)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 6]).all()
    assert (weights[:, 1] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3, 4]].sum(axis=1) == 4).all()  # four groups: a, b and two of their own
    assert abs(weights.mean() - 1) < 0.05
    assert (weights[:, 3] != weights[:, 4]).any()
    np.testing.assert_array_equal(weights, pm.group_weights(groups, 400, seed=3))
    assert (weights != pm.group_weights(groups, 400, seed=4)).any()


def simulated(rng: np.random.Generator, n_groups: int, size: int, spread: float) -> tuple[np.ndarray, np.ndarray, list]:
    """Good and defective groups whose scores share a part: the AUROC of two independent images is known."""
    labels = np.repeat(np.arange(n_groups) % 2, size)
    shared = np.repeat(rng.normal(size=n_groups), size)
    scores = labels + spread * shared + np.sqrt(1 - spread**2) * rng.normal(size=n_groups * size)
    return labels, scores, np.repeat(np.arange(n_groups), size).tolist()


def weighted_auroc(labels: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], float]:
    """The share of pairs in the right order: a second way to the number, and a fast one."""
    good, bad = labels == 0, labels == 1
    right = (scores[bad][:, None] > scores[good]).astype(float)
    return lambda w: w[bad] @ right @ w[good] / (w[bad].sum() * w[good].sum())


def covered(size: int, spread: float, by_group: bool, trials: int = 150) -> float:
    truth = NormalDist().cdf(1 / np.sqrt(2))
    hits = 0
    for trial in range(trials):
        labels, scores, groups = simulated(np.random.default_rng(trial), 60, size, spread)
        found = pm.bootstrap(
            weighted_auroc(labels, scores), groups if by_group else [None] * len(labels), repeats=150, seed=trial
        )
        hits += found.low[0] <= truth <= found.high[0]
    return hits / trials


def test_intervals_of_95_percent_cover_the_truth_as_often() -> None:
    # 150 trials: standard error 1.8 points. Percentile intervals of 30 + 30 images cover a point or two less than 95.
    assert 0.89 <= covered(size=1, spread=0, by_group=True) <= 0.99


@pytest.mark.slow
def test_groups_that_share_a_part_are_covered_only_if_they_are_drawn_whole() -> None:
    assert 0.87 <= covered(size=5, spread=0.9, by_group=True, trials=100) <= 0.99
    assert covered(size=5, spread=0.9, by_group=False, trials=100) < 0.75


def test_weights_and_repeated_images_give_the_same() -> None:
    labels, scores, groups = simulated(np.random.default_rng(5), 20, 2, 0.5)
    both = weighted_auroc(labels, scores), pm.resampled(pm.auroc, labels, scores)
    found = [pm.bootstrap(metric, groups, repeats=50) for metric in both]
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)


def test_a_paired_difference_is_far_narrower_than_two_intervals() -> None:
    labels, scores, groups = simulated(np.random.default_rng(0), 80, 1, 0.0)
    better = scores + 0.15 * labels
    ours, theirs = pm.resampled(pm.auroc, labels, better), pm.resampled(pm.auroc, labels, scores)
    found = pm.bootstrap(lambda w: [ours(w) - theirs(w), ours(w), theirs(w)], groups, repeats=300)
    assert found.value[0] == pytest.approx(pm.auroc(labels, better) - pm.auroc(labels, scores))
    width = found.high - found.low
    assert width[0] < 0.4 * min(width[1:])
    assert found.low[0] > 0
    assert found.low[1] < found.high[2]  # the two intervals overlap: unpaired, nothing could be said


def test_replicates_without_a_class_are_left_out_and_counted() -> None:
    found = pm.bootstrap(pm.resampled(pm.auroc, [0, 0, 1], [0.1, 0.2, 0.3]), [None] * 3, repeats=200)
    weights = pm.group_weights([None] * 3, 200, seed=0)
    assert found.used[0] == ((weights[:, 2] > 0) & (weights[:, :2].sum(axis=1) > 0)).sum() < 200
    assert (found.low[0], found.high[0]) == (1, 1)
    never = pm.bootstrap(pm.resampled(pm.auroc, [0, 0], [0.1, 0.2]), [None] * 2, repeats=10)
    assert never.used[0] == 0
    assert np.isnan([never.value[0], never.low[0], never.high[0]]).all()


def test_confidence_is_that_of_the_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=40)
    metric = lambda w: w @ values / w.sum()  # noqa: E731
    means = [metric(w) for w in pm.group_weights([None] * 40, 500, seed=7)]
    found = pm.bootstrap(metric, [None] * 40, repeats=500, confidence=0.8, seed=7)
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))


def test_bad_settings_are_refused() -> None:
    for confidence in (0, 1, 95):
        with pytest.raises(InputError, match="confidence="):
            pm.bootstrap(lambda w: 0.0, [None], confidence=confidence)
    with pytest.raises(InputError, match="0 images"):
        pm.group_weights([], 10, 0)
    with pytest.raises(InputError, match="repeats=0"):
        pm.group_weights([None], 0, 0)


# ---- count tables -------------------------------------------------------------------------------------------------


def images(n: int = 8, size: int = 48) -> list[tuple[np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(1)
    result = []
    for i in range(n):
        scores = ndimage.gaussian_filter(rng.normal(size=(size, size)), 2)
        mask = ndimage.gaussian_filter(rng.normal(size=(size, size)), 3) > 0.15 if i % 2 else None
        result.append(((scores / scores.std() + (0 if mask is None else 1.5 * mask)).astype(np.float32), mask))
    return result


def tables_of(pairs: list, smallest: int = 1) -> pm.CountTables:
    curves = pm.PixelCurves()
    for pair in pairs:
        curves.update(*pair)
    tables = pm.CountTables(curves.ok_quantiles(pm.OK_LEVELS), smallest=smallest)
    for pair in pairs:
        tables.update(*pair)
    return tables


def test_weights_stand_for_repeated_images() -> None:
    pairs = images()
    tables = tables_of(pairs)
    for weight in np.vstack([np.ones((1, 8), int), pm.group_weights([None] * 8, 10, 0)]):
        if weight[1::2].sum() == 0:
            continue
        maps, masks = zip(*(pair for pair, w in zip(pairs, weight, strict=True) for _ in range(w)), strict=True)
        for limit in (0.05, 0.3):
            assert tables.aupro(weight, limit) == pytest.approx(pm.aupro(maps, masks, limit), abs=1e-3)
        assert tables.pixel_auroc(weight) == pytest.approx(pm.pixel_auroc(maps, masks), abs=1e-3)


def test_a_grid_of_every_score_is_exact() -> None:
    pairs = images(4, 16)
    maps, masks = zip(*pairs, strict=True)
    tables = pm.CountTables(np.unique(np.stack(maps))[::-1])
    for pair in pairs:
        tables.update(*pair)
    once = np.ones(4, int)
    for limit in (0.05, 0.3, 1.0):
        assert tables.aupro(once, limit) == pytest.approx(pm.aupro(maps, masks, limit), abs=1e-9)
    assert tables.pixel_auroc(once) == pytest.approx(pm.pixel_auroc(maps, masks), abs=1e-9)


def test_small_regions_can_be_left_out() -> None:
    mask = np.zeros((30, 30), bool)
    mask[0, 0] = mask[3:5, 3:5] = True
    scores = np.where(mask, 2.0, np.arange(900).reshape(30, 30) / 900)
    scores[0, 0] = -1  # the small one is missed
    assert tables_of([(scores, mask)]).aupro(np.array([1])) == pytest.approx(0.5, abs=0.01)
    assert tables_of([(scores, mask)], smallest=2).aupro(np.array([1])) == pytest.approx(1, abs=0.01)


def test_what_is_undefined_is_nan() -> None:
    tables = tables_of(images(2))
    assert np.isnan([tables.aupro(np.array([1, 0])), tables.pixel_auroc(np.array([0, 0]))]).all()
    assert np.isnan(pm.PixelCurves().ok_quantiles([0.1])).all()
    with pytest.raises(InputError, match="falling scores"):
        pm.CountTables([0.0, 1.0])
    with pytest.raises(InputError, match="connectivity=6"):
        pm.CountTables([0.0], connectivity=6)
    with pytest.raises(InputError, match="expected finite"):
        tables.update([[np.nan]], None)
    assert tables.aupro(np.ones(2, int)) > 0  # a refused map leaves no trace


# ---- at the deployed threshold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_rates_are_those_of_the_confusion_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, 30), rng.integers(0, 5, 30) / 4
    labels[:2] = 0, 1
    for threshold in (-1, 0, 0.5, 0.6, 1, 2):
        flagged = scores > threshold
        (good, false), (missed, true) = confusion_matrix(labels, flagged, labels=[0, 1])
        found = pm.rates_at(labels, scores, threshold)
        assert found.f1 == pytest.approx(sk_f1(labels, flagged, zero_division=0))
        assert found.false_alarm_rate == pytest.approx(false / (good + false))
        assert found.miss_rate == pytest.approx(missed / (missed + true))
        counts = pm.pixel_counts(scores.reshape(5, 6), labels.reshape(5, 6) > 0, threshold)
        assert counts == (true, false, missed)
        assert pm.pixel_counts(scores.reshape(5, 6), None, threshold) == (0, flagged.sum(), 0)


def test_rates_of_one_class_are_nan_where_undefined() -> None:
    good = pm.rates_at([0, 0], [0.1, 0.9], 0.5)
    assert np.isnan([good.f1, good.miss_rate]).all()
    assert good.false_alarm_rate == 0.5
    for wrong in (0.5, 0.6, float("nan")):
        with pytest.raises(InputError, match=r"unsure=.*expected a number below the threshold"):
            pm.rates_at([0, 1], [0.1, 0.9], 0.5, unsure=wrong)
    bad = pm.rates_at([1, 1], [0.1, 0.9], 0.5)
    assert np.isnan(bad.false_alarm_rate)
    assert (bad.f1, bad.miss_rate) == (pytest.approx(2 / 3), 0.5)
