"""Woven cloth has the stated pitch and weave, is another piece with another seed, and trays hold their parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from pickglass.data.painting.cloth import WEAVES, Cloth, Weave, weave
from pickglass.data.painting.part_defects import find_parts
from pickglass.data.painting.shapes import Scene
from pickglass.data.painting.thread_defects import thread_pitch
from pickglass.data.painting.trays import PARTS, PartName, Tray, fill
from pickglass.errors import InputError, UnknownName

EVEN = Cloth(irregularity=0.03, tension=0, lighting=0, noise=0, hairiness=0)


def correlation(image: np.ndarray, down: int, right: int) -> float:
    """Of the image with itself, moved."""
    grey = image.astype(float)
    height, width = grey.shape
    here = grey[: height - down, max(0, -right) : width - max(0, right)]
    there = grey[down:, max(0, right) : width + min(0, right)]
    return float(np.corrcoef(here.ravel(), there.ravel())[0, 1])


def period(image: np.ndarray, axis: int) -> float:
    """The strongest period of the means along the other axis, from a spectrum finer than a hundredth of a pixel."""
    profile = image.mean(axis=1 - axis) - image.mean()
    power = np.abs(np.fft.rfft(profile * np.hanning(len(profile)), 1 << 16))
    power[: (1 << 16) // 12] = 0
    return (1 << 16) / int(power.argmax())


def test_names_match() -> None:
    assert get_args(Weave) == tuple(WEAVES)
    assert get_args(PartName) == tuple(PARTS)


@pytest.mark.parametrize("name", WEAVES)
@pytest.mark.parametrize("pitch", [(4.0, 5.0), (2.6, 6.37), (7.3, 3.45)])
def test_the_threads_have_the_stated_pitch(name: Any, pitch: tuple[float, float]) -> None:
    warp_px, weft_px = pitch
    image = weave(replace(EVEN, weave=name, warp_px=warp_px, weft_px=weft_px), (320, 320), seed=3)
    assert period(image, axis=1) == pytest.approx(warp_px, rel=0.01)
    assert period(image, axis=0) == pytest.approx(weft_px, rel=0.01)


def test_each_weave_repeats_as_it_should() -> None:
    images = {name: weave(replace(EVEN, weave=name, warp_px=5, weft_px=5), (200, 200)) for name in get_args(Weave)}
    after = {name: [correlation(image, 0, 5 * n) for n in range(1, 6)] for name, image in images.items()}
    assert [int(np.argmax(values)) + 1 for values in after.values()] in ([2, 3, 5], [4, 3, 5])
    # A twill's line runs one pick down for one end to the right; mirrored it does not repeat, a plain weave does.
    assert correlation(images["twill"], 5, 5) > 0.5 > correlation(images["twill"], 5, -5) + 0.3
    # A satin's next binding point lies two picks away, so that no line shows.
    assert correlation(images["satin"], 10, 5) > correlation(images["satin"], 5, 5) + 0.3
    assert correlation(images["plain"], 5, 5) == pytest.approx(correlation(images["plain"], 5, -5), abs=0.1)


def test_the_share_of_warp_that_shows_is_the_weave_s() -> None:
    cloth = replace(EVEN, warp=(250, 0, 0), weft=(0, 250, 0), warp_px=6, weft_px=6, irregularity=0)
    share = {}
    for name in get_args(Weave):
        image = weave(replace(cloth, weave=name), (180, 180)).astype(float)
        share[name] = float((image[..., 0] > image[..., 1]).mean())
    assert share["plain"] == pytest.approx(1 / 2, abs=0.12)
    assert share["twill"] == pytest.approx(2 / 3, abs=0.08)
    assert share["satin"] == pytest.approx(4 / 5, abs=0.06)


def test_seeds_are_pieces_of_one_roll() -> None:
    first, again, other = (weave(Cloth(), (128, 512), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.5
    assert abs(first.mean() - other.mean()) < 4
    assert abs(first.std() / other.std() - 1) < 0.1


def test_each_setting_does_what_it_says() -> None:
    size = (160, 240)
    plain = weave(EVEN, size).astype(float)
    assert weave(replace(EVEN, noise=6), size).astype(float).std() > plain.std() + 0.3
    assert (np.abs(weave(replace(EVEN, noise=6), size) - plain).std()) == pytest.approx(6 * 0.6, rel=0.15)
    dim = weave(replace(EVEN, lighting=0.4), size).mean(axis=0)
    assert dim[:30].mean() < 0.75 * dim.reshape(-1, 30).mean(axis=1).max()
    uneven, hairy = weave(replace(EVEN, irregularity=0.3), size), weave(replace(EVEN, hairiness=1), size)
    blocks = [image.reshape(8, 20, 12, 20).mean(axis=(1, 3)).std() for image in (plain, uneven)]
    assert blocks[1] > 2 * blocks[0]
    assert hairy.mean() > plain.mean() + 1
    straight = [weave(replace(EVEN, tension=t, weave="plain"), size) for t in (0.0, 3.0)]
    assert correlation(straight[1], 50, 40) < correlation(straight[0], 50, 40) - 0.2
    assert weave(replace(EVEN, blur=2), size).std() < 0.6 * plain.std()


def test_colour_follows_the_yarn() -> None:
    image = weave(Cloth(warp=(200, 40, 40), weft=(200, 40, 40)), (64, 64))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert image[..., 0].mean() > 3 * image[..., 1].mean()
    assert weave(Cloth(warp=200, weft=(0, 0, 200)), (5, 7)).shape == (5, 7, 3)
    assert weave(Cloth(), (1, 1)).shape == (1, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weave": "tweed"}, "unknown weave 'tweed'"),
        ({"warp_px": 1.5}, "warp_px=1.5: expected at least 2"),
        ({"weft_px": float("inf")}, "weft_px=inf"),
        ({"warp": (1, 2)}, r"warp=\(1, 2\): expected a level"),
        ({"weft": 256}, "weft=256"),
        ({"noise": -1}, "noise=-1: expected a number of at least 0"),
        ({"tension": float("nan")}, "tension=nan"),
    ],
)
def test_bad_cloth(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        weave(replace(Cloth(), **change), (16, 16))
    with pytest.raises(InputError, match=r"size=\(0, 16\)"):
        weave(Cloth(), (0, 16))


@pytest.mark.parametrize("name", WEAVES)
def test_defects_find_the_pitch_of_ordinary_cloth(name: Any) -> None:
    for pitch in ((4.0, 5.0), (5.5, 6.5), (8.0, 7.0)):
        image = weave(Cloth(name, warp_px=pitch[0], weft_px=pitch[1]), (192, 192), seed=5)
        found = thread_pitch(Scene(image, 16, (90, 100)), 1), thread_pitch(Scene(image, 16, (90, 100)), 0)
        assert found == pytest.approx(pitch, rel=0.1)


def test_without_threads_the_pitch_follows_the_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    for image in (np.full((128, 128), 7, np.uint8), noise, noise[:16]):
        assert thread_pitch(Scene(image, 64, (8, 60)), 0) == 4.0


@pytest.mark.parametrize("part", PARTS)
def test_a_tray_is_full_and_each_part_is_found(part: Any) -> None:
    tray = Tray(part, part_px=28, pitch_px=44)
    image = fill(tray, (160, 200), seed=1)
    np.testing.assert_array_equal(image, fill(tray, (160, 200), seed=1))
    assert (image != fill(tray, (160, 200), seed=2)).any()
    found = find_parts(image).found
    assert len(found) == 3 * 4
    assert all(28 <= p.extent <= 28 + 7 for p in found)
    assert all(p.slim == (part in ("pin", "bolt")) for p in found)
    assert fill(replace(tray, metal=(220, 180, 90)), (60, 60)).shape == (60, 60, 3)


def test_textures_have_no_parts() -> None:
    for image in (weave(Cloth(), (128, 128)), np.full((64, 64, 3), 9, np.uint8)):
        assert find_parts(image).found == []


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        ({"part": "spoon"}, (99, 99), "unknown part 'spoon'"),
        ({"part_px": 3}, (99, 99), "part_px=3: expected at least 4"),
        ({"pitch_px": 33}, (99, 99), "pitch_px=33: expected more than 38.4"),
        ({"ground": -1}, (99, 99), "ground=-1"),
        ({"noise": -1}, (99, 99), "noise=-1"),
        ({}, (51, 99), r"size=\(51, 99\)"),
    ],
)
def test_bad_trays(change: dict[str, Any], size: tuple[int, int], words: str) -> None:
    for kind in (InputError, UnknownName) if "part" in change else (InputError,):
        with pytest.raises(kind, match=words):
            fill(replace(Tray(), **change), size)
