"""Metrics against scikit-learn, against the definition written out literally, and by hand."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from scipy import ndimage
from sklearn import metrics as sk

import pickglass.metrics as pm
from pickglass.errors import InputError, UnknownName
from pickglass.metrics import (
    PixelCurves,
    aupro,
    deployed,
    intervals,
    pimo,
    pixel_auroc,
    polylines,
    ranking,
    regions,
    saturated,
    summary,
)

LIMITS = (0.3, 0.05, 1.0)


# ---- image scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])  # few levels, many ties
@given(seed=integers(0, 2**32 - 1), n=sampled_from([2, 3, 10, 57, 400]))
@settings(max_examples=10)
@pytest.mark.slow
def test_ranking_equals_scikit_learn(levels, seed, n):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = rng.integers(0, levels, n) / 7 - 1
    assert pm.auroc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert pm.average_precision(labels, scores) == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    for ours, theirs in zip(
        pm.roc_curve(labels, scores), sk.roc_curve(labels, scores, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    f1, threshold = pm.f1_max(labels, scores)
    by_threshold = {t: sk.f1_score(labels, scores >= t) for t in np.unique(scores)}
    assert f1 == pytest.approx(max(by_threshold.values()), abs=1e-12)
    assert f1 == pytest.approx(by_threshold[threshold], abs=1e-12)


def test_f1_max_takes_the_highest_of_equal_thresholds():
    # 3.0: TP 1, FP 0, FN 1 -> 2/3. 2.0: TP 1, FP 1, FN 1 -> 1/2. 1.0: TP 2, FP 2, FN 0 -> 4/6 = 2/3 again.
    assert pm.f1_max([1, 0, 1, 0], [3.0, 2.0, 1.0, 1.0]) == (pytest.approx(2 / 3), 3.0)


@pytest.mark.parametrize(("labels", "undefined"), [([0, 0], "tpr"), ([1, 1], "fpr")])
def test_one_class_gives_nan(labels, undefined):
    scores = [0.3, 0.1]
    assert np.isnan([pm.auroc(labels, scores), pm.average_precision(labels, scores), *pm.f1_max(labels, scores)]).all()
    roc = pm.roc_curve(labels, scores)._asdict()
    assert np.isnan(roc.pop(undefined)).all()
    assert not any(np.isnan(values).any() for values in roc.values())


def test_no_image_gives_nan():
    assert np.isnan(list(pm.image_summary([], []).values())).all()


METRICS = (pm.auroc, pm.average_precision, pm.f1_max, pm.roc_curve)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1], r"labels of shape \(2,\) and scores of shape \(1,\)"),
        ([[0, 1]], [[0.1, 0.2]], r"shape \(N,\)"),
        ([0, 1], [0.1, np.nan], "score nan at index 1 .1 of 2"),
        ([0, 1], [-np.inf, 0.1], "score -inf at index 0"),
        ([0, 2], [0.1, 0.2], "label .*2.*expected 0 .good. or 1"),
        ([0, None], [0.1, 0.2], "leave out images of unknown label"),
        ([0, 1], ["a", "b"], "expected numbers"),
    ],
)
def test_bad_image_scores_are_refused(labels, scores, message):
    for metric in METRICS:
        with pytest.raises(InputError, match=message):
            metric(labels, scores)


def test_by_type_judges_each_type_against_all_good():
    labels = [0, 0, 1, 1, 1, 1]
    scores = [0.1, 0.5, 0.9, 0.8, 0.3, 0.0]
    results = pm.by_type(labels, scores, ["good", None, "crack", "crack", "stain", None])
    assert list(results) == ["crack", "stain"]
    assert results["crack"] == {"image_auroc": 1.0, "average_precision": 1.0, "f1_max": 1.0}
    assert results["stain"] == pm.image_summary([0, 0, 1], [0.1, 0.5, 0.3])
    assert results["stain"]["image_auroc"] == 0.5
    with pytest.raises(InputError, match="3 defect types"):
        pm.by_type(labels, scores, ["crack"] * 3)


# ---- pixel scores -------------------------------------------------------------------------------------------------


def literal_curve(maps, masks):
    """MVTec AD's definition, step by step: (fpr, pro), both float64."""
    scores, fp_change, pro_change, n_regions = [], [], [], 0
    for scores_2d, mask in zip(maps, masks, strict=True):
        labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
        n_regions += n
        change = np.zeros(mask.shape)
        for region in range(1, n + 1):
            change[labels == region] = 1 / (labels == region).sum()
        scores.append(scores_2d.ravel())
        fp_change.append((labels == 0).ravel())
        pro_change.append(change.ravel())
    scores, fp_change, pro_change = (np.concatenate(parts) for parts in (scores, fp_change, pro_change))
    order = np.argsort(scores)[::-1]
    fpr = np.cumsum(fp_change[order], dtype=np.float64) / fp_change.sum()
    pro = np.cumsum(pro_change[order], dtype=np.float64) / n_regions
    last_of_equal = np.append(np.diff(scores[order]) != 0, True)
    fpr, pro = np.clip(fpr[last_of_equal], 0, 1), np.clip(pro[last_of_equal], 0, 1)
    return np.concatenate([[0], fpr, [1]]), np.concatenate([[0], pro, [1]])


def literal_area(x, y, limit):
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        else:
            y_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y_limit) / 2) / limit
    return area / limit


def random_set(seed):
    """A few small images of different shapes: noise masks whose regions touch at corners, some of them empty."""
    rng = np.random.default_rng(seed)
    levels = [1, 2, 4, 30, 10**6][seed % 5]
    maps, masks = [], []
    for i in range(rng.integers(2, 6)):
        shape = tuple(rng.integers(1, 12, 2))
        mask = rng.random(shape) < [0.3, 0.05, 0.6][seed % 3]
        mask &= rng.random() < 0.7
        mask[0, 0] |= i == 0
        scores = rng.integers(0, levels, shape) / levels - 0.5 + (mask * rng.random() if seed % 2 else 0)
        maps.append(scores.astype(np.float32))
        masks.append(mask)
    if all(mask.all() for mask in masks):
        masks[-1][...] = False
    return maps, masks


@pytest.mark.parametrize("block", [1, 7, 1 << 15])
@given(seed=integers(0, 2**32 - 1))
def test_pixel_curves_equal_the_definition(block, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polylines, "_BLOCK", block)
        check_against_the_definition(*random_set(seed))


def check_against_the_definition(maps, masks):
    fpr, pro = literal_curve(maps, masks)
    curves = PixelCurves()
    for scores, mask in zip(maps, masks, strict=True):
        curves.update(scores, mask)
    result = curves.compute(LIMITS)
    for limit in LIMITS:
        assert result.aupro[limit] == pytest.approx(literal_area(fpr, pro, limit), abs=1e-9)
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (masks, maps)]
    assert result.pixel_auroc == pytest.approx(sk.roc_auc_score(*flat), abs=1e-9)
    assert result.n_ok_pixels == (~flat[0]).sum()
    assert aupro(iter(maps), iter(masks), 0.05) == result.aupro[0.05]
    assert pixel_auroc(iter(maps), iter(masks)) == result.pixel_auroc


def test_hand_worked_case():
    # Defect image 4 5 5 / 1 3 2 with regions A = {4, 1} (left column) and B = {2} (bottom right); good image 3 0.
    # Five ok pixels: 5 5 3 3 0. One step per distinct score:
    #   5: two ok pixels            -> FPR 2/5, PRO 0
    #   4: half of A                -> FPR 2/5, PRO 1/4
    #   3: two ok pixels            -> FPR 4/5, PRO 1/4
    #   2: B                        -> FPR 4/5, PRO 3/4
    #   1: the other half of A      -> FPR 4/5, PRO 1
    #   0: one ok pixel             -> FPR 1,   PRO 1
    # Area to FPR 1: 2/5 * 1/4 + 1/5 * 1 = 0.3. To 0.5: 1/10 * 1/4 = 0.025, divided by 0.5: 0.05. To 0.4: 0.
    # ROC, pairs ok < defect of 5 * 3: for 4: 3 (3 3 0), for 1: 1, for 2: 1 -> 5/15.
    curves = PixelCurves()
    curves.update(np.array([[4, 5, 5], [1, 3, 2]]), np.array([[1, 0, 0], [1, 0, 1]]) > 0, tag="crack")
    curves.update(np.array([[3, 0]]), None)
    result = curves.compute(limits=[1.0, 0.5, 0.4])
    assert result.aupro == {1.0: pytest.approx(0.3), 0.5: pytest.approx(0.05), 0.4: pytest.approx(0, abs=1e-15)}
    assert result.pixel_auroc == pytest.approx(1 / 3)
    assert (result.n_regions, result.n_ok_pixels) == (2, 5)
    np.testing.assert_allclose(
        np.stack([result.fpr, result.pro], axis=1),
        [(0, 0), (0.4, 0), (0.4, 0.25), (0.8, 0.25), (0.8, 0.75), (0.8, 1), (1, 1)],
    )


def test_a_tie_of_ok_and_defect_pixels_rises_in_a_straight_line():
    # All equal: the curve is the diagonal, its area up to L is L^2 / 2, divided by L: L / 2.
    constant, mask = np.full((4, 4), 0.7), np.eye(4, dtype=bool)
    assert aupro([constant], [mask], limit=0.3) == pytest.approx(0.15)
    assert pixel_auroc([constant], [mask]) == 0.5


def test_zero_and_minus_zero_tie(monkeypatch):
    monkeypatch.setattr(polylines, "_BLOCK", 1)
    scores, mask = np.array([[0.0, 0.0, -0.0]]), np.array([[True, False, True]])
    assert aupro([scores], [mask], limit=0.3) == pytest.approx(0.15)


@pytest.mark.parametrize(("connectivity", "n_regions"), [(8, 2), (4, 4)])
def test_connectivity(connectivity, n_regions):
    mask = np.zeros((5, 5), dtype=bool)
    mask[[0, 1, 2, 4], [0, 1, 2, 4]] = True
    curves = PixelCurves(connectivity)
    curves.update(np.zeros((5, 5)), mask)
    assert curves.compute().n_regions == n_regions


def smooth_set(n, size, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        scores = ndimage.gaussian_filter(rng.random((size, size)), 4)
        mask = np.zeros((size, size), dtype=bool)
        if i % 2:
            for top, left in rng.integers(0, size - 20, (3, 2)):
                mask[top : top + rng.integers(5, 20), left : left + rng.integers(5, 20)] = True
        yield (scores + 0.02 * mask).astype(np.float32), mask


def test_plotted_curve_is_short_and_close():
    maps, masks = (list(arrays) for arrays in zip(*smooth_set(6, 64), strict=True))
    curves = PixelCurves()
    for scores, mask in zip(maps, masks, strict=True):
        curves.update(scores, mask)
    result = curves.compute()
    fpr, pro = literal_curve(maps, masks)
    assert len(fpr) > 5000
    assert 400 < len(result.fpr) <= 501
    assert (np.diff(result.fpr) >= 0).all()
    assert (np.diff(result.pro) >= 0).all()
    assert (result.fpr[0], result.pro[0], result.fpr[-1], result.pro[-1]) == (0, 0, 1, 1)
    # On each antidiagonal x + y = const the two curves lie at most 1/250 apart along either axis.
    plotted = np.interp(fpr + pro, result.fpr + result.pro, result.fpr)
    assert np.abs(plotted - fpr).max() <= 1 / 250


def test_tags_select_images():
    curves = PixelCurves()
    images = [(s, m, ["good", "crack", "good", "stain"][i % 4]) for i, (s, m) in enumerate(smooth_set(8, 32))]
    for image in images:
        curves.update(*image)
    for tags in ({"crack", "good"}, {"stain", "good"}, {"crack"}, {"crack", "stain", "good"}):
        chosen = [(scores, mask) for scores, mask, tag in images if tag in tags]
        maps, masks = zip(*chosen, strict=True)
        result = curves.compute(LIMITS, tags=tags)
        for limit in LIMITS:
            assert result.aupro[limit] == pytest.approx(literal_area(*literal_curve(maps, masks), limit), abs=1e-9)
        flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (masks, maps)]
        assert result.pixel_auroc == pytest.approx(sk.roc_auc_score(*flat), abs=1e-9)
    everything = curves.compute(LIMITS)
    assert everything.n_regions > curves.compute(LIMITS, tags={"crack", "good"}).n_regions
    assert everything.aupro == curves.compute(LIMITS, tags={"crack", "stain", "good"}).aupro


def test_an_absent_good_tag_is_allowed_and_a_misspelt_one_is_not():
    curves = PixelCurves()
    curves.update(np.array([[0.1, 0.9]]), np.array([[False, True]]), tag="crack")
    assert curves.compute(tags={"crack", "good"}).aupro == {0.3: 1.0, 0.05: 1.0}
    with pytest.raises(UnknownName, match=r"unknown tag 'crak'.*crack"):
        curves.compute(tags={"crak", "good"})


def test_more_maps_after_compute():
    images = list(smooth_set(6, 32))
    curves = PixelCurves()
    for i, (scores, mask) in enumerate(images):
        curves.update(scores, mask)
        maps, masks = zip(*images[: i + 1], strict=True)
        if i:
            assert curves.compute().aupro[0.3] == aupro(maps, masks)


def test_the_map_is_neither_kept_nor_changed():
    (good, _), (bad, mask) = smooth_set(2, 32)
    curves = PixelCurves()
    curves.update(good, None)
    curves.update(bad, mask)
    before = good.copy(), bad.copy()
    first = curves.compute()
    np.testing.assert_array_equal(before, (good, bad))
    good[...] = bad[...] = 0
    assert curves.compute().aupro == first.aupro


def test_about_eight_bytes_a_pixel():
    images = list(smooth_set(40, 256))
    tracemalloc.start()
    try:
        curves = PixelCurves()
        for scores, mask in images:
            curves.update(scores, mask)
        curves.compute()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / (40 * 256 * 256) < 10  # a copy of the scores more would be 12, and numpy's own needs are some tenths


@pytest.mark.parametrize("mask", [None, np.zeros((2, 3), dtype=bool), np.ones((2, 3), dtype=bool)])
def test_no_region_or_no_ok_pixel_gives_nan(mask):
    curves = PixelCurves()
    curves.update(np.zeros((2, 3)), mask)
    result = curves.compute()
    assert np.isnan([result.pixel_auroc, *result.aupro.values()]).all()
    assert len(result.fpr) == len(result.pro) == 0


def test_no_map_gives_nan():
    assert np.isnan(aupro([], []))


@pytest.mark.parametrize(
    ("scores", "mask", "message"),
    [
        (np.array([[0.0, np.nan]]), None, "expected finite"),
        (np.array([[0.0, -np.inf]]), None, "ranges from -inf to 0.0"),
        (np.array([[0.0, 1e300]]), None, "expected finite float32"),
        (np.zeros((2, 3)), np.zeros((3, 2), dtype=bool), r"mask of shape \(3, 2\) and map of shape \(2, 3\)"),
        (np.zeros((2, 3)), np.zeros((2, 3), dtype=np.uint8), "mask > 0"),
        (np.zeros((1, 2, 3)), None, r"shape \(1, 2, 3\)"),
        (np.zeros((0, 3)), None, r"shape \(0, 3\)"),
        (np.array([["a"]]), None, "expected numbers"),
    ],
)
def test_bad_maps_are_refused(scores, mask, message):
    curves = PixelCurves()
    curves.update(np.array([[0.0, 1.0]]), np.array([[False, True]]))
    with pytest.raises(InputError, match=message):
        curves.update(scores, mask)
    assert curves.compute().n_ok_pixels == 1  # a refused map leaves no trace


def test_bad_settings_are_refused():
    for limit in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="FPR limit"):
            aupro([np.zeros((2, 2))], [None], limit=limit)
    with pytest.raises(InputError, match="connectivity=6"):
        PixelCurves(6)
    with pytest.raises(InputError, match="the masks end after 1"):
        aupro([np.zeros((2, 2))] * 2, [None])
    with pytest.raises(InputError, match="the maps end after 1"):
        pixel_auroc([np.zeros((2, 2))], [None] * 2)


def test_public_names():
    modules = [deployed, intervals, pimo, ranking, regions, saturated, summary]
    names = [name for module in modules for name in module.__all__ if name != "check_scores"]  # shared by two of them
    assert sorted(names) == sorted(pm.__all__)
    assert all(hasattr(pm, name) for name in pm.__all__)
