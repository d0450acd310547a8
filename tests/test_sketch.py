"""The sketch's interval contains the exact AUPRO, its memory does not grow, and sketches add up."""

from __future__ import annotations

import doctest
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage

from pickglass.errors import InputError
from pickglass.metrics import AuproSketch, aupro, sketch

LIMITS = (0.05, 0.3, 1.0)
Images = list[tuple[np.ndarray, np.ndarray | None]]


def sketched(images: Images, bits: int = 20) -> AuproSketch:
    result = AuproSketch(bits)
    for image in images:
        result.update(*image)
    return result


def random_images(seed: int) -> Images:
    """Scores of all kinds: tied, negative, crowded far from zero, spread over many octaves, around a bin's edge."""
    rng = np.random.default_rng(seed)
    kinds = [
        lambda s: rng.integers(0, 4, s) / 4,
        lambda s: np.zeros(s),
        lambda s: 1000 + rng.random(s) / 100,
        lambda s: -np.exp(20 * rng.normal(size=s)),
        lambda s: rng.normal(size=s) * 1e-30,
        lambda s: np.float32(1) + rng.integers(-3, 4, s) * np.float32(2**-23),
    ]
    images: Images = []
    for i in range(int(rng.integers(2, 6))):
        shape = tuple(rng.integers(2, 15, 2))
        mask = rng.random(shape) < [0.3, 0.05, 0.7][seed % 3]
        mask[0, 0], mask[-1, -1] = i == 0, False
        images.append(
            (kinds[seed % len(kinds)](shape).astype(np.float32), mask if rng.random() < 0.8 or i == 0 else None)
        )
    return images


def smooth_images(n: int, size: int = 96) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(0)
    for i in range(n):
        scores = ndimage.gaussian_filter(rng.normal(size=(size, size)), 3)
        mask = ndimage.gaussian_filter(rng.normal(size=(size, size)), 4) > 0.12 if i % 2 else None
        raised = scores / scores.std() + 6 + (0 if mask is None else mask)
        yield raised.astype(np.float32), mask


@pytest.mark.parametrize("bits", [10, 14, 20])
@pytest.mark.parametrize("seed", range(60))
def test_interval_contains_the_exact_value(seed: int, bits: int) -> None:
    images = random_images(seed)
    found = sketched(images, bits)
    for limit in LIMITS:
        low, high = found.interval(limit)
        assert 0 <= low <= aupro(*zip(*images, strict=True), limit) <= high <= 1


def test_all_scores_tied_is_the_widest_interval() -> None:
    # One bin holds everything: the curve may be anything between (0, 0) and (1, 1).
    low, high = sketched([(np.full((4, 4), 0.7), np.eye(4, dtype=bool))]).interval(0.3)
    assert (low, high) == (0, 1)


def test_interval_narrows_with_bits_and_is_narrow_by_default() -> None:
    images = list(smooth_images(12))
    exact = aupro(*zip(*images, strict=True), 0.3)
    widths = []
    for bits in (12, 16, 20):
        low, high = sketched(images, bits).interval(0.3)
        assert low <= exact <= high
        widths.append(high - low)
    assert widths[0] > 8 * widths[1] > 64 * widths[2]
    assert widths[2] < 1e-3


def test_bounds_are_those_worked_out_by_hand() -> None:
    # Bins of 10 bits part an octave into two: 1.0 and 1.2 share one, 1.5 and 1.7 share the next.
    # Highest bin: ok 1.5, 1 of 2 defect pixels (1.7). Lower bin: ok 1.0, 1.2, the other defect pixel (1.1).
    # Known points of (FPR, PRO): (0, 0), (1/3, 1/2), (1, 1). To FPR 1: low 0 + 2/3 * 1/2, high 1/3 * 1/2 + 2/3.
    scores, mask = np.array([[1.7, 1.1, 1.5], [1.0, 1.2, 0.0]]), np.array([[1, 1, 0], [0, 0, 0]]) > 0
    scores[1, 2] = 1.2
    # ... with the second 1.2: four ok pixels, points (1/4, 1/2) and (1, 1): low 3/8, high 1/8 + 3/4 = 7/8.
    low, high = sketched([(scores, mask)], bits=10).interval(1.0)
    assert (low, high) == (pytest.approx(3 / 8, abs=1e-8), pytest.approx(7 / 8, abs=1e-8))


def test_parts_add_up_to_the_whole_bit_for_bit_in_any_order() -> None:
    images = [image for seed in range(12) for image in random_images(seed)]
    whole = sketched(images)
    left, right = sketched(images[1::2]), sketched(images[::2])
    right.merge(left)
    np.testing.assert_array_equal(right._ok, whole._ok)
    np.testing.assert_array_equal(right._regions, whole._regions)
    assert right.interval() == whole.interval() == sketched(images[::-1]).interval()
    assert int(whole._regions.sum()) == whole._n_regions << 32  # every region arrives whole


def test_memory_does_not_grow() -> None:
    tracemalloc.start()
    try:
        found = AuproSketch(16)
        images = smooth_images(60)
        peaks = []
        for count in (5, 50):
            for _ in range(count):
                found.update(*next(images))
            peaks.append(tracemalloc.get_traced_memory()[0])
            found.interval()
    finally:
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 20_000
    assert peaks[1] < 4 * 2**20


def test_without_a_region_or_an_ok_pixel_there_is_no_number() -> None:
    for image in ((np.zeros((2, 2)), None), (np.zeros((2, 2)), np.ones((2, 2), bool))):
        assert np.isnan(sketched([image]).interval()).all()
    assert np.isnan(AuproSketch().interval()).all()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="bits=30"):
        AuproSketch(30)
    with pytest.raises(InputError, match="connectivity=6"):
        AuproSketch(connectivity=6)
    with pytest.raises(InputError, match="20 and 16 bits"):
        AuproSketch().merge(AuproSketch(16))
    with pytest.raises(InputError, match="FPR limit 0"):
        AuproSketch().interval(0)
    with pytest.raises(InputError, match="expected finite"):
        AuproSketch().update([[np.inf]], None)


def test_examples_run() -> None:
    outcome = doctest.testmod(sketch)
    assert outcome.attempted > 0
    assert outcome.failed == 0
