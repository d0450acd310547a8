"""Painted defects: the mask is exact, the size is kept, the texture decides the strength."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from skimage import data

from pickglass.data.defects import KINDS, Kind, paint
from pickglass.errors import InputError, UnknownName

BASES = {
    "flat": np.full((160, 170), 128, np.uint8),
    "black": np.zeros((160, 160, 3), np.uint8),
    "white": np.full((160, 160, 3), 255, np.uint8),
    "brick": data.brick()[:160, :200],
    "grass": data.grass()[:160, :160],
    "coffee": data.coffee()[:160, :160],
}


def longest_extent(mask: np.ndarray) -> float:
    """Largest distance between two pixels, brute force, from outer edge to outer edge."""
    points = np.argwhere(mask & ~(np.roll(mask, 1, 1) & np.roll(mask, -1, 1))).astype(float)
    return float(np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1).max())) + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASES)
def test_mask_box_and_size_are_exact(name: str, kind: Any) -> None:
    image = BASES[name].copy()
    for size in (4, 8, 16, 40):
        for contrast in (0.3, 1.0):
            painted = paint(image, kind, size, np.random.default_rng(size), contrast)
            np.testing.assert_array_equal(image, BASES[name])
            differs = (painted.image != image).reshape(*image.shape[:2], -1).any(axis=2)
            np.testing.assert_array_equal(painted.mask, differs)
            assert painted.image.dtype == np.uint8
            assert abs(longest_extent(painted.mask) - size) <= 1.5, (size, contrast)
            ys, xs = np.nonzero(differs)
            x, y, width, height = painted.box
            assert (x, y, x + width - 1, y + height - 1) == (xs.min(), ys.min(), xs.max(), ys.max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides(kind: Any) -> None:
    first, second, third = (paint(BASES["brick"], kind, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, second.image)
    assert (first.image != third.image).any()


@pytest.mark.parametrize("kind", KINDS)
def test_strength_follows_contrast_and_texture(kind: Any) -> None:
    def change(image: np.ndarray, contrast: float = 1.0) -> float:
        found = [paint(image, kind, 24, np.random.default_rng(seed), contrast) for seed in range(5)]
        return float(np.mean([abs(p.image.astype(int) - image)[p.mask].mean() for p in found]))

    rough = np.clip(np.random.default_rng(0).normal(128, 30, (160, 170)), 0, 255).astype(np.uint8)
    assert change(BASES["flat"], 0.3) < 0.5 * change(BASES["flat"])
    assert change(rough) > 1.3 * change(BASES["flat"])


def test_texture_shows_through_a_stain_but_not_in_a_hole() -> None:
    brick = BASES["brick"]
    stain = paint(brick, "stain", 60, np.random.default_rng(3))
    hole = paint(brick, "hole", 60, np.random.default_rng(3))
    assert np.corrcoef(stain.image[stain.mask], brick[stain.mask])[0, 1] > 0.6
    assert abs(np.corrcoef(hole.image[hole.mask], brick[hole.mask])[0, 1]) < 0.4
    assert hole.image[hole.mask].mean() < stain.image[stain.mask].mean() < brick.mean()


def test_lines_are_thin_and_blobs_are_not() -> None:
    for seed in range(5):
        area = {kind: paint(BASES["flat"], kind, 60, np.random.default_rng(seed)).mask.sum() for kind in get_args(Kind)}
        assert area["scratch"] < 60 * 8
        assert area["crack"] < 60 * 14
        assert area["hole"] > 60 * 60 * 0.35
        assert area["stain"] > 60 * 60 * 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_as_large_as_the_image_allows(kind: Any) -> None:
    strip = np.full((32, 400), 90, np.uint8)
    assert abs(longest_extent(paint(strip, kind, 30, np.random.default_rng(0)).mask) - 30) <= 1.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": np.zeros((50, 50), np.float32)}, "float32.*uint8"),
        ({"image": np.zeros((50, 50, 4), np.uint8)}, "expected uint8"),
        ({"size_px": 3}, "size_px=3: expected 4 to 48"),
        ({"size_px": 49}, "size_px=49: expected 4 to 48"),
        ({"size_px": float("nan")}, "size_px=nan"),
        ({"contrast": 0}, "contrast=0: expected a number above 0"),
        ({"contrast": 1e-6}, "changes no pixel"),
    ],
)
def test_bad_arguments(change: dict[str, Any], words: str) -> None:
    image, rng = np.full((50, 50), 9, np.uint8), np.random.default_rng(0)
    arguments = {"image": image, "kind": "hole", "size_px": 10, "rng": rng}
    with pytest.raises(InputError, match=words):
        paint(**{**arguments, **change})
    with pytest.raises(UnknownName, match=r"'holes'.*hole"):
        paint(**{**arguments, "kind": "holes"})
