"""sPRO against the definition written out literally, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers

from pickglass.errors import InputError, UnknownName
from pickglass.metrics import SaturatedCurves, SaturatedRegion, aupro, saturation_area

LIMITS = (0.05, 0.3, 1.0)
Image = tuple[np.ndarray, list[SaturatedRegion], str]


def literal_au_spro(images: list[Image], limit: float) -> float:
    """Threshold by threshold, mask by mask."""
    scores = np.unique(np.concatenate([scores.ravel() for scores, _, _ in images]))[::-1]
    fpr, spro = [0.0], [0.0]
    for threshold in scores:
        false = total = 0
        overlaps = []
        for values, regions, _ in images:
            found = values >= threshold
            ok = np.ones(values.shape, bool)
            for mask, saturation in regions:
                overlaps.append(min((found & mask).sum() / min(saturation, mask.sum()), 1.0))
                ok &= ~mask
            false += (found & ok).sum()
            total += ok.sum()
        fpr.append(false / total)
        spro.append(float(np.mean(overlaps)))
    area = 0.0
    for x0, x1, y0, y1 in zip(fpr[:-1], fpr[1:], spro[:-1], spro[1:], strict=True):
        if x1 > limit:
            y_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            return (area + (limit - x0) * (y0 + y_limit) / 2) / limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def random_images(seed: int) -> list[Image]:
    """Small images with overlapping defects of any shape; few score levels, so that ties abound."""
    rng = np.random.default_rng(seed)
    levels = [1, 2, 5, 10**6][seed % 4]
    images: list[Image] = []
    for i in range(int(rng.integers(3, 7))):
        shape = tuple(rng.integers(2, 12, 2))
        regions = []
        for _ in range(rng.integers(0, 4) if i else 1):
            mask = rng.random(shape) < 0.3
            mask[tuple(rng.integers(0, shape))] = True
            regions.append(SaturatedRegion(mask, int(rng.integers(1, mask.sum() + 3))))
        tag = ("structural", "logical")[i % 2] if regions else "good"
        images.append((rng.integers(0, levels, shape).astype(np.float32) / levels - 0.5, regions, tag))
    images.append((rng.integers(0, levels, (3, 4)).astype(np.float32) / levels - 0.5, [], "good"))
    return images


def added(images: list[Image]) -> SaturatedCurves:
    curves = SaturatedCurves()
    for image in images:
        curves.update(*image)
    return curves


@given(seed=integers(0, 2**32 - 1))
def test_equals_the_definition_for_all_and_for_each_group(seed: int) -> None:
    images = random_images(seed)
    curves = added(images)
    for tags in (None, {"structural", "good"}, {"logical", "good"}):
        chosen = [image for image in images if tags is None or image[2] in tags]
        if not any(regions for _, regions, _ in chosen):
            continue
        result = curves.compute(LIMITS, tags=tags and tags & {image[2] for image in images})
        for limit in LIMITS:
            assert result.au_spro[limit] == pytest.approx(literal_au_spro(chosen, limit), abs=1e-9)
        assert result.n_regions == sum(len(regions) for _, regions, _ in chosen)


def test_hand_worked_case() -> None:
    # Defect image 6 5 4 / 3 2 1, good image 5 0. Defect A = {6, 4, 2}, saturation 2; B = {4, 1}, saturation 1.
    # Both hold the 4. Four ok pixels: 5 3 and 5 0. One step per distinct score:
    #   6: A 1/2                    -> FPR 0,   sPRO 1/4
    #   5: two ok pixels            -> FPR 2/4, sPRO 1/4
    #   4: A 2/2, B 1/1             -> FPR 2/4, sPRO 1
    #   3: an ok pixel              -> FPR 3/4, sPRO 1;  2 and 1 add nothing: both are saturated;  0 -> FPR 1
    # Area to 1: 1/2 * 1/4 + 1/2 = 0.625. To 0.5: 1/4. To 0.75: (1/8 + 1/4) / 0.75 = 0.5.
    defect_a = np.array([[1, 0, 1], [0, 1, 0]]) > 0
    defect_b = np.array([[0, 0, 1], [0, 0, 1]]) > 0
    curves = SaturatedCurves()
    curves.update([[6, 5, 4], [3, 2, 1]], [SaturatedRegion(defect_a, 2), SaturatedRegion(defect_b, 1)], "logical")
    curves.update([[5, 0]])
    result = curves.compute(limits=[1.0, 0.5, 0.75])
    assert result.au_spro == {1.0: pytest.approx(0.625), 0.5: pytest.approx(0.25), 0.75: pytest.approx(0.5)}
    assert (result.n_regions, result.n_ok_pixels) == (2, 4)
    assert (result.fpr[-1], result.spro[-1]) == (1, 1)


def test_saturation_at_the_area_is_aupro() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((4, 20, 20)), np.zeros((4, 20, 20), bool)
    masks[:2, 3:9, 4:8] = True
    curves = SaturatedCurves()
    for scores, mask in zip(maps, masks, strict=True):
        curves.update(scores, [SaturatedRegion(mask, 24)] if mask.any() else [])
    assert curves.compute([0.3]).au_spro[0.3] == aupro(maps, masks, 0.3)


def test_what_is_not_kept_does_not_count() -> None:
    rng = np.random.default_rng(0)
    curves, cropped, keep = SaturatedCurves(), SaturatedCurves(), np.zeros((12, 10), bool)
    keep[2:9, 1:8] = True
    left, out, inside = (np.zeros((12, 10), bool) for _ in range(3))
    left[4:7, :4] = True  # reaches beyond
    out[10:] = True  # lies beyond: no defect
    inside[3:5, 5:7] = True
    for regions in ([left, out, inside], [out], []):
        scores = rng.random((12, 10))
        curves.update(scores, [SaturatedRegion(mask, 5) for mask in regions], "logical", keep)
        seen = [mask[2:9, 1:8] for mask in regions if (mask & keep).any()]
        cropped.update(scores[2:9, 1:8], [SaturatedRegion(mask, 5) for mask in seen], "logical")
    assert curves.compute([0.3]).au_spro == cropped.compute([0.3]).au_spro
    assert curves.compute().n_regions == 2
    assert curves.compute().n_ok_pixels == cropped.compute().n_ok_pixels
    with pytest.raises(InputError, match="at least one True"):
        curves.update(scores, [], "logical", np.zeros((12, 10), bool))


def test_saturation_areas_of_the_data_set() -> None:
    assert saturation_area(1000, 250, relative=False) == 250
    assert saturation_area(100, 250, relative=False) == 100
    assert saturation_area(99, 0.5, relative=True) == 49  # rounded down
    assert saturation_area(1, 0.5, relative=True) == 1
    for area, threshold, relative in ((0, 5, False), (5, 0, False), (5, 1.5, True), (5, float("nan"), True)):
        with pytest.raises(InputError, match="expected"):
            saturation_area(area, threshold, relative)


def test_without_a_defect_or_an_ok_pixel_there_is_no_number() -> None:
    everything = SaturatedRegion(np.ones((2, 2), bool), 1)
    for regions in ([], [everything]):
        curves = SaturatedCurves()
        curves.update(np.zeros((2, 2)), regions)
        assert np.isnan(curves.compute().au_spro[0.05])


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (SaturatedRegion(np.zeros((1, 2), bool), 1), "region 0 of 1 has no pixel"),
        (SaturatedRegion(np.ones((1, 2), bool), 0), "saturation=0"),
        (SaturatedRegion(np.ones((1, 2), bool), 0.5), "saturation=0.5"),
        (SaturatedRegion(np.ones((2, 2), bool), 1), r"mask of shape \(2, 2\) and map of shape \(1, 2\)"),
        (SaturatedRegion(np.ones((1, 2)), 1), "mask > 0"),
    ],
)
def test_bad_regions_are_refused_and_leave_no_trace(region: SaturatedRegion, message: str) -> None:
    curves = SaturatedCurves()
    with pytest.raises(InputError, match=message):
        curves.update(np.zeros((1, 2)), [region])
    assert curves.compute().n_ok_pixels == 0
    with pytest.raises(UnknownName, match="unknown tag 'logicl'"):
        curves.compute(tags={"logicl"})
    with pytest.raises(InputError, match="FPR limit 0"):
        curves.compute([0])
