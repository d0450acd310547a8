"""Disturbances against literal references: the bit depth stays, masks follow, the same seed gives the same image."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from pickglass.data.painting import disturbances
from pickglass.data.painting.disturbances import DISTURBANCES, UNITS, disturb, disturb_mask
from pickglass.errors import InputError, UnknownName

KINDS = tuple(DISTURBANCES)
DTYPES = (np.uint8, np.uint16, np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(dtype: type = np.uint8, colour: bool = True) -> np.ndarray:
    """100 x 120, within the middle of its range: coarse and smooth."""
    grey = gaussian_filter(rng(9).random((100, 120)), 6, mode="wrap")
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    unit = 0.2 + 0.6 * (np.stack([grey, grey**2, 1 - grey], axis=2) if colour else grey)
    return unit.astype(dtype) if dtype == np.float32 else np.rint(unit * np.iinfo(dtype).max).astype(dtype)


def unit(image: np.ndarray) -> np.ndarray:
    return image / (1 if image.dtype == np.float32 else np.iinfo(image.dtype).max)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_and_depth_stay_and_the_input_is_untouched(kind: str) -> None:
    for dtype, colour in product(DTYPES, (True, False)):
        check_disturbed(picture(dtype, colour), kind)


def check_disturbed(image: np.ndarray, kind: str) -> None:
    dtype = image.dtype
    before = image.copy()
    image.setflags(write=False)
    for strength in DISTURBANCES[kind]:
        found = disturb(image, kind, strength, rng())
        assert (found.shape, found.dtype) == (image.shape, image.dtype)
        assert not np.shares_memory(found, image)
        assert (found == disturb(image, kind, strength, rng())).all()
        assert (found != image).any()
        assert 0 <= unit(found).min() <= unit(found).max() <= 1
        # the same disturbance whatever the depth, as far as 8 bits can tell
        if dtype != np.uint8:
            shallow = disturb(np.rint(unit(image) * 255).astype(np.uint8), kind, strength, rng())
            assert np.abs(unit(found) - unit(shallow)).max() < 2.5 / 255
    assert (image == before).all()
    same = disturb(image, kind, 0, rng())
    assert (same == image).all()
    assert not np.shares_memory(same, image)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stronger_changes_more(kind: str) -> None:
    assert set(UNITS) == set(DISTURBANCES)
    assert len(DISTURBANCES[kind]) == 4
    image = picture(np.float32)
    changes = [float(np.abs(disturb(image, kind, s, rng()) - image).mean()) for s in (0, *DISTURBANCES[kind])]
    assert changes == sorted(changes)
    assert len(set(changes)) == 5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jpeg"])
def test_sixteen_bits_are_used(kind: str) -> None:
    image = picture(np.uint16)
    found = disturb(image, kind, DISTURBANCES[kind][1], rng())
    assert len(np.unique(found)) > 1000  # 8 bits have 256 levels


def test_light_and_contrast_by_hand() -> None:
    image = np.array([[0, 100], [200, 255]], np.uint8)
    assert disturb(image, "brightness", 0.1, rng()).tolist() == [[0, 90], [180, 230]]  # 229.5 rounds to even
    assert disturb(image, "overexposure", 0.1, rng()).tolist() == [[0, 110], [220, 255]]  # white stays white
    # the mean of a channel is 50 or 200, and every value goes half of the way to it
    image = np.array([[[0, 190], [100, 210]]], np.uint16)
    assert disturb(image, "contrast", 0.5, rng()).tolist() == [[[25, 195], [75, 205]]]


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    image = picture(np.float32)
    expected = gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="reflect", truncate=4)
    assert np.abs(disturb(image, "blur", sigma, rng()) - expected).max() < 2e-6


def test_noise_has_its_deviation_and_is_independent_in_each_channel() -> None:
    image = np.full((200, 200, 3), 0.5, np.float32)
    noise = (disturb(image, "noise", 0.05, rng()) - 0.5).reshape(-1, 3)
    assert noise.std(axis=0) == pytest.approx([0.05] * 3, rel=0.02)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02
    assert (disturb(image, "noise", 0.05, rng(1)) != disturb(image, "noise", 0.05, rng())).mean() > 0.9


def test_jpeg_is_what_a_jpeg_file_gives_back() -> None:
    image, file = picture(), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40)
    assert (disturb(image, "jpeg", 60, rng()) == np.asarray(Image.open(file))).all()


def test_shift_is_by_whole_pixels_and_mirrored_at_the_border() -> None:
    image = picture()
    found = disturb(image, "shift", 0.05, rng(4))  # 5 px of 100
    wide = np.pad(image, ((8, 8), (8, 8), (0, 0)), mode="symmetric")
    places = [(y, x) for y in range(17) for x in range(17) if (wide[y : y + 100, x : x + 120] == found).all()]
    assert len(places) == 1
    assert np.hypot(places[0][0] - 8, places[0][1] - 8) == pytest.approx(5, abs=0.71)


def test_rotation_is_bilinear_about_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(np.float32, colour=False)
    y, x = np.mgrid[:100, :120].astype(float)
    y, x = y - 49.5, x - 59.5
    turned = []
    for sign in (1, -1):
        c, s = np.cos(np.radians(10)), sign * np.sin(np.radians(10))
        places = [c * y - s * x + 49.5, s * y + c * x + 59.5]
        turned.append(map_coordinates(image.astype(np.float64), places, order=1, mode="reflect"))
    seen = set()
    for seed in range(8):
        found = disturb(image, "rotation", 10, rng(seed))
        errors = [np.abs(found - expected).max() for expected in turned]
        assert min(errors) < 1e-5
        seen.add(int(np.argmin(errors)))
    assert seen == {0, 1}
    monkeypatch.setattr(disturbances, "_ROWS", 7)  # large images are turned in parts
    assert (disturb(image, "rotation", 10, rng(7)) == found).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_follow(kind: str) -> None:
    mask = np.zeros((100, 120), bool)
    mask[5:20, 30:50] = True
    mask[80:, :10] = True  # at the border, where it is mirrored as the image is
    for strength in DISTURBANCES[kind]:
        found = disturb_mask(mask, kind, strength, rng(2))
        assert found.dtype == np.bool_
        assert not np.shares_memory(found, mask)
        if kind == "shift":
            assert (found == (disturb(mask.astype(np.float32), kind, strength, rng(2)) > 0.5)).all()
            assert (found != mask).any()
        elif kind == "rotation":
            image = disturb(mask.astype(np.float32), kind, strength, rng(2))
            assert (found == (image > 0.5))[(image < 0.2) | (image > 0.8)].all()  # away from its edge
            assert (found != mask).any()
        else:
            assert (found == mask).all()
    assert (disturb_mask(mask, kind, 0, rng()) == mask).all()


@pytest.mark.parametrize(
    ("kind", "strength", "message"),
    [
        ("brightness", 1.1, r"brightness: strength=1.1: expected a number from 0 to 1 \(share of the light lost\)"),
        ("blur", -1, "strength=-1: expected a number of at least 0"),
        ("noise", float("nan"), "strength=nan"),
        ("jpeg", 100, "from 0 to 99"),
    ],
)
def test_strengths_out_of_range(kind: str, strength: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        disturb(picture(), kind, strength, rng())
    with pytest.raises(InputError, match=message):
        disturb_mask(np.zeros((4, 4), bool), kind, strength, rng())


def test_unknown_kinds_name_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown disturbance 'blurr'. The nearest are: blur"):
        disturb(picture(), "blurr", 1, rng())


def test_tiny_images() -> None:
    for kind, strengths in DISTURBANCES.items():
        for size in ((1, 1), (1, 5), (3, 2, 3)):
            assert disturb(np.full(size, 9, np.uint8), kind, strengths[-1], rng()).shape == size
