"""Painted defects: the mask is exact, the size is kept, the texture decides the strength."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from scipy import ndimage

from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import KINDS, WITH_WIDTH, Kind, paint
from pickglass.data.painting.natural import photograph
from pickglass.data.painting.part_defects import find_parts
from pickglass.data.painting.softness import edge_spread
from pickglass.data.painting.trays import Tray, fill
from pickglass.errors import InputError, UnknownName

BASES = {
    "flat": np.full((160, 170), 128, np.uint8),
    "black": np.zeros((160, 160, 3), np.uint8),
    "white": np.full((160, 160, 3), 255, np.uint8),
    "brick": photograph("brick")[:160, :200],
    "grass": photograph("grass")[:160, :160],
    "coffee": photograph("coffee")[:160, :160],
    "twill": weave(Cloth("twill"), (160, 160), seed=1),
    "dark cloth": weave(Cloth("plain", warp=(60, 40, 30), weft=(40, 30, 30)), (160, 160), seed=1),
    "tray": fill(Tray("bolt", part_px=26, pitch_px=44), (160, 160), seed=1),
}


def longest_extent(mask: np.ndarray) -> float:
    """Largest distance between two pixels, brute force, from outer edge to outer edge."""
    points = np.argwhere(mask & ~(np.roll(mask, 1, 1) & np.roll(mask, -1, 1))).astype(float)
    return float(np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1).max())) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_mask_box_and_size_are_exact(kind: Any) -> None:
    """Every kind on every base, with two of the sizes in turn, weak where the size is 8."""
    for i, (name, base) in enumerate(BASES.items()):
        image = base.copy()
        for size in ((4, 32), (8, 16))[(i + list(KINDS).index(kind)) % 2]:
            case = f"{size} px on {name}"
            painted = paint(image, kind, size, np.random.default_rng(size), contrast=0.3 if size == 8 else 1.0)
            np.testing.assert_array_equal(image, base, err_msg=case)
            differs = (painted.image != image).reshape(*image.shape[:2], -1).any(axis=2)
            np.testing.assert_array_equal(painted.mask, differs, err_msg=case)
            assert painted.image.dtype == np.uint8
            assert abs(longest_extent(painted.mask) - size) <= (2 if kind.endswith("_part") else 1.5), case
            ys, xs = np.nonzero(differs)
            x, y, width, height = painted.box
            assert (x, y, x + width - 1, y + height - 1) == (xs.min(), ys.min(), xs.max(), ys.max()), case


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


@pytest.mark.parametrize("kind", WITH_WIDTH)
def test_a_defect_is_as_long_and_as_wide_as_asked(kind: Any) -> None:
    flat = BASES["flat"]
    for length, width in ((100, 6), (60, 20)):
        found = [paint(flat, kind, length, np.random.default_rng(seed), width_px=width) for seed in range(4)]
        assert all(abs(longest_extent(one.mask) - length) <= 1.5 for one in found)
        across = np.median([one.mask.sum() / length for one in found])
        assert 0.4 * width < across < 1.9 * width + 3, (length, width)


def test_soft_images_get_soft_defects() -> None:
    """The steepest step of what is painted is as steep as the images' own edges."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:192, :192]
    for spread in (1.0, 1.6):
        images = []
        for _ in range(4):
            image = np.full((192, 192), 90.0)
            for cy, cx, r in rng.uniform((20, 20, 10), (172, 172, 40), (6, 3)):
                image[(y - cy) ** 2 + (x - cx) ** 2 < r**2] += 50
            images.append(
                (ndimage.gaussian_filter(image, spread) + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8)
            )
        measured = edge_spread(images)
        assert measured is not None
        assert measured == pytest.approx(spread, rel=0.2)
        for kind in ("hole", "crack"):
            sharp, soft = (
                paint(BASES["flat"], kind, 40, np.random.default_rng(1), spread_px=s).image.astype(float)
                for s in (0.0, measured)
            )
            steepest = [np.abs(np.diff(image, axis=1)).max() for image in (sharp, soft)]
            assert steepest[1] < 0.7 * steepest[0]


def test_images_without_an_edge_say_nothing_of_softness() -> None:
    noise = np.random.default_rng(0).normal(128, 8, (128, 128)).clip(0, 255).astype(np.uint8)
    assert edge_spread([noise, BASES["flat"]]) is None
    assert edge_spread([]) is None


def test_a_shade_has_no_edge() -> None:
    for kind in ("shade", "streak"):
        image = paint(BASES["flat"], kind, 60, np.random.default_rng(0), width_px=40).image.astype(float)
        assert np.abs(np.diff(image, axis=0)).max() <= 4  # grey levels from pixel to pixel, of about 20 in all
        assert np.abs(image - 128).max() >= 12


def test_kinds_are_named_once() -> None:
    assert get_args(Kind) == tuple(KINDS)


def raggedness(painted: Any, ground: float) -> float:
    """Length of the outline of what is dark over that of a disc of the same area."""
    grey = painted.image.reshape(*painted.image.shape[:2], -1).mean(axis=2)
    dark = painted.mask & (grey < (ground + grey[painted.mask].min()) / 2)
    outline = sum(int((dark != np.roll(dark, 1, axis)).sum()) for axis in (0, 1)) * np.pi / 4
    return float(outline / np.sqrt(4 * np.pi * dark.sum()))


CLOTHS = {
    "twill": Cloth("twill"),
    "two colours": Cloth("plain", warp_px=8.4, weft_px=9.2, warp=(60, 110, 210), weft=(235, 230, 215)),
    "satin": Cloth("satin", warp_px=6, weft_px=6, warp=(200, 60, 60), weft=(150, 30, 30)),
}


@pytest.mark.parametrize("name", CLOTHS)
def test_a_hole_in_cloth_is_frayed_and_one_in_a_plate_is_not(name: str) -> None:
    cloth = weave(CLOTHS[name], (160, 160), seed=4)
    torn = [raggedness(paint(cloth, "hole", 32, np.random.default_rng(s)), cloth.mean()) for s in range(8)]
    pits = [raggedness(paint(BASES["flat"], "hole", 32, np.random.default_rng(s)), 128) for s in range(8)]
    assert np.mean(torn) > 1.3 * np.mean(pits)
    size = 2 * round(CLOTHS[name].warp_px)  # two threads across: 8 px in twill
    small = [raggedness(paint(cloth, "hole", size, np.random.default_rng(s)), cloth.mean()) for s in range(8)]
    assert np.mean(small) > 1.03 * np.mean(pits)


def test_yarn_reaches_into_a_hole() -> None:
    """Within the outline of what is dark there are threads as bright as the cloth."""
    cloth = BASES["twill"]
    for seed in range(4):
        painted = paint(cloth, "hole", 32, np.random.default_rng(seed))
        assert (painted.image[painted.mask] > cloth.mean()).sum() >= 5
        assert (painted.image[painted.mask] < 0.6 * cloth.mean()).mean() > 0.4


def span(mask: np.ndarray) -> tuple[int, int]:
    ys, xs = np.nonzero(mask)
    return int(np.ptp(ys)) + 1, int(np.ptp(xs)) + 1


def test_threads_break_along_their_own_direction() -> None:
    for base in (BASES["twill"], BASES["dark cloth"], BASES["flat"]):
        for seed in range(3):
            pick = span(paint(base, "broken_pick", 32, np.random.default_rng(seed)).mask)
            end = span(paint(base, "missing_end", 32, np.random.default_rng(seed)).mask)
            assert pick[1] > 24 > pick[0]
            assert end[0] > 24 > end[1]


def test_a_gap_is_as_wide_as_the_cloth_s_thread() -> None:
    height = {}
    for pitch in (4.0, 8.0):
        cloth = weave(Cloth("plain", warp_px=pitch, weft_px=pitch), (160, 160), seed=2)
        found = [span(paint(cloth, "broken_pick", 48, np.random.default_rng(seed)).mask)[0] for seed in range(4)]
        height[pitch] = np.mean(found)
    assert 1.4 < height[8.0] / height[4.0] < 2.6


def test_the_weave_closes_over_a_missing_pick() -> None:
    """The line is not just drawn on top: beside it, threads lie where they did not."""
    rows = 128 + 60 * np.cos(np.arange(160) * 2 * np.pi / 8)
    threads = np.repeat(rows[:, None], 160, axis=1).round().astype(np.uint8)
    painted = paint(threads, "broken_pick", 64, np.random.default_rng(0))
    x, y, width, height = painted.box
    middle = y + height // 2
    change = np.abs(painted.image.astype(int) - threads)[:, x + width // 4 : x + 3 * width // 4].mean(axis=1)
    assert change[[middle - 9, middle + 9]].min() > 5  # more than a thread away, where the line itself has ended
    assert change[[middle - 20, middle + 20]].max() == 0


@pytest.mark.parametrize("part", ["pin", "washer", "nut", "bolt"])
def test_a_missing_part_leaves_bare_ground(part: Any) -> None:
    image = fill(Tray(part, part_px=26, pitch_px=48), (192, 192), seed=3)
    sizes = [p.extent for p in find_parts(image).found]
    painted = paint(image, "missing_part", float(np.median(sizes)), np.random.default_rng(0))
    assert len(find_parts(painted.image).found) == len(sizes) - 1
    assert painted.image[painted.mask].max() < 110 < image[painted.mask].max()  # ground is 70, metal 155 and more
    assert painted.image[painted.mask].std() > 2  # with the ground's own grain


def test_a_surplus_part_is_one_more() -> None:
    image = fill(Tray("washer", part_px=24, pitch_px=60), (240, 240), seed=3)
    known = find_parts(image).found
    painted = paint(image, "surplus_part", known[0].extent, np.random.default_rng(0))
    assert len(find_parts(painted.image).found) == len(known) + 1


def test_a_misplaced_part_lies_elsewhere() -> None:
    image = fill(Tray("bolt", part_px=24, pitch_px=60), (240, 240), seed=3)
    known = find_parts(image).found
    painted = paint(image, "misplaced_part", 36, np.random.default_rng(0))
    found = find_parts(painted.image).found
    assert len(found) == len(known)
    moved = {p.middle for p in known} ^ {p.middle for p in found}
    assert len(moved) == 2


@pytest.mark.parametrize("part", ["washer", "nut"])
@pytest.mark.parametrize("size", [8, 12, 16, 32])
def test_a_misplaced_round_part_can_be_seen(part: Any, size: int) -> None:
    for share in (0.55, 0.8):
        image = fill(Tray(part, part_px=max(4, share * size - 2), pitch_px=1.7 * size), (192, 192), seed=2)
        for seed in range(4):
            painted = paint(image, "misplaced_part", size, np.random.default_rng(seed))
            change = np.sort(np.abs(painted.image.astype(int) - image)[painted.mask])
            assert change[-len(change) // 5 :].mean() > 15, (share, seed)  # the tray's noise is 2


def test_a_round_part_leaves_an_empty_seat() -> None:
    image = fill(Tray("washer", part_px=16, pitch_px=54), (192, 192), seed=3)
    known = find_parts(image).found
    assert not any(p.slim for p in known)
    for seed in range(4):
        painted = paint(image, "misplaced_part", 32, np.random.default_rng(seed))
        bare = painted.mask & (painted.image < np.median(image) - 8) & (image > np.median(image) + 8)
        assert bare.sum() > 20  # metal before, darker than the ground now


def test_a_fibre_is_thin_and_a_knot_is_not() -> None:
    for seed in range(4):
        area = {
            kind: paint(BASES["flat"], kind, 48, np.random.default_rng(seed)).mask.sum()
            for kind in ("foreign_fibre", "knot", "slub", "dent")
        }
        assert area["foreign_fibre"] < 48 * 14
        assert area["knot"] > 200
        assert area["slub"] < area["dent"]


def test_yarn_keeps_its_colour_and_a_highlight_is_white() -> None:
    blue = np.full((96, 96, 3), (40, 70, 140), np.uint8)
    slub = paint(blue, "slub", 40, np.random.default_rng(0))
    added = slub.image[slub.mask].astype(float) - blue[slub.mask]
    bright = added[added.sum(axis=1) > 60].mean(axis=0)
    assert bright[2] > 1.5 * bright[0]


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
        ({"width_px": 0.5}, "width_px=0.5: expected 1 to 10"),
        ({"width_px": 11}, "expected 1 to 10, the length"),
        ({"width_px": 3, "kind": "slub"}, "slub has a width of its own"),
        ({"spread_px": -1}, "spread_px=-1"),
        ({"spread_px": float("nan")}, "spread_px=nan"),
    ],
)
def test_bad_arguments(change: dict[str, Any], words: str) -> None:
    image, rng = np.full((50, 50), 9, np.uint8), np.random.default_rng(0)
    arguments = {"image": image, "kind": "hole", "size_px": 10, "rng": rng}
    with pytest.raises(InputError, match=words):
        paint(**{**arguments, **change})
    with pytest.raises(UnknownName, match=r"'holes'.*hole"):
        paint(**{**arguments, "kind": "holes"})
