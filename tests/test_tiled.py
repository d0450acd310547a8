"""Tiled detectors: the conformance suite, positions, shared heads, joining, groups, regions of interest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.data import Row, Table
from pickglass.errors import InputError
from pickglass.features.reading import Reading
from pickglass.methods.tiling import Tiles, TileSettings
from pickglass.testing import check_detector, textures

RESNET = {"backbone": "resnet18", "layers": ("layer1",), "weights": "random", "ratio": 0.05}


def tiles(canvas: tuple[int, int] = (16, 24), **settings: object) -> Tiles:
    return Tiles(TileSettings((8, 8), (4, 8), **settings), canvas)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"heads": 1, "image_score": "top_k"},
        {"heads": 2, "join": "seams", "edges": "pad", "stride": 40},
        {"normalise": "position", "thumbnail": True, "image_score": "mean", "at_once": 2},
    ],
    ids=["plain", "one head", "two heads, padded", "thumbnail, scaled, in groups"],
)
def test_conformance(settings: dict[str, object]) -> None:
    detector = pg.PatchCore(**RESNET).tiled(size=96, tile=64, **{"stride": 32, **settings})  # type: ignore[arg-type]
    assert len(check_detector(detector, n_images=16)) == 12


def test_one_tile_is_the_plain_method() -> None:
    good, test = textures(10, 64), textures(3, 64, seed=1)
    plain = pg.PatchCore(size=64, **RESNET).fit(good).predict(test)  # type: ignore[arg-type]
    tiled = pg.PatchCore(size=64, **RESNET).tiled(tile=64).fit(good).predict(test)  # type: ignore[arg-type]
    assert (plain.scores == tiled.scores).all()
    assert all((a == b).all() for a, b in zip(plain.maps, tiled.maps, strict=True))


def test_each_position_is_a_detector_of_its_own_tile() -> None:
    good, test = textures(10, 96), textures(2, 96, seed=1)
    tiled = pg.PatchCore(size=96, **RESNET).tiled(tile=64, stride=32).fit(good, calibrate=0)  # type: ignore[arg-type]
    assert tiled.tiles is not None
    scores = []
    for x, y, w, h in tiled.tiles.tiling.boxes:
        own = pg.PatchCore(size=64, **RESNET).fit(good[:, y : y + h, x : x + w], calibrate=0)  # type: ignore[arg-type]
        scores.append(own.predict(test[:, y : y + h, x : x + w]).scores)
    np.testing.assert_allclose(tiled.predict(test).scores, np.max(scores, axis=0), rtol=1e-4)


def test_groups_of_positions_learn_what_all_at_once_do() -> None:
    good, test = textures(10, 96), textures(2, 96, seed=1)
    found = [
        pg.PatchCore(size=96, **RESNET).tiled(tile=64, stride=32, at_once=n).fit(good).predict(test)  # type: ignore[arg-type]
        for n in (None, 1, 3)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.scores, found[0].scores, rtol=1e-5)


def test_cutting_and_joining_constant_maps() -> None:
    for join in ("cosine", "average", "seams"):
        t = tiles(join=join)
        assert t.n == 9
        scores, whole = t.joined(torch.ones(2, 9), torch.full((2, 9, 4, 4), 3.0), None)
        torch.testing.assert_close(whole, torch.full((2, 8, 12), 3.0))
        assert scores.tolist() == [1, 1]
    image = torch.rand(1, 3, 16, 24)
    cut = tiles().cut(image)
    for p, (x, y, w, h) in enumerate(tiles().tiling.boxes):
        assert torch.equal(cut[:, p], image[:, :, y : y + h, x : x + w])


def test_image_scores_are_named_apart() -> None:
    scores, maps = torch.tensor([[1.0, 5, 2, 0, 0, 0, 0, 0, 1]]), torch.zeros(1, 9, 4, 4)
    found = {
        name: float(tiles(image_score=name, top_k=2).joined(scores, maps, None)[0]) for name in ("max", "top_k", "mean")
    }
    assert found == {"max": 5.0, "top_k": 3.5, "mean": 1.0}


def test_folding_by_heads_comes_undone() -> None:
    t = tiles(heads=2)
    t.head_of = torch.tensor([0, 1, 1, 0, 0, 0, 1, 0, 1])  # five and four positions
    values = torch.arange(2 * 9).view(2, 9).float()
    levels = values[:, :, None, None, None].expand(-1, -1, 3, 4, 4)
    folded = t.fold(Reading((levels,)))
    assert folded.levels[0].shape == (10, 2, 3, 4, 4)
    assert folded.keep is not None
    assert folded.keep[:, 1].flatten(1).any(1).sum() == 8  # the fifth of head 1 is filling, in both images
    assert torch.equal(t.unfold(folded.levels[0][:, :, 0, 0, 0]), values)


def test_similar_positions_share_a_head() -> None:
    t = tiles(heads=2)
    look = np.zeros((9, 3))
    look[4:] = 1
    t.assign(look, seed=0)
    assert len(set(t.head_of[:4].tolist())) == len(set(t.head_of[4:].tolist())) == 1


def test_a_defect_in_one_tile_is_not_thinned_out() -> None:
    good = textures(12, 128)
    bad = textures(2, 128, seed=3)
    bad[:, 100:112, 100:112] = 255
    detector = pg.PatchCore(size=128, **RESNET).tiled(tile=64, stride=64).fit(good)  # type: ignore[arg-type]
    found = detector.predict(bad)
    assert (found.scores > detector.predict(textures(4, 128, seed=4)).scores.max()).all()
    y, x = np.unravel_index(found.map(0).argmax(), (128, 128))
    assert 90 < y < 120
    assert 90 < x < 120


def test_tiles_outside_the_region_of_interest_say_nothing() -> None:
    keep = torch.zeros(1, 16, 24, dtype=torch.bool)
    keep[:, :8, :8] = True
    t = Tiles(TileSettings((8, 8), (8, 8)), (16, 24))
    scores = torch.tensor([[1.0, 9, 9, 9, 9, 9]])
    maps = torch.ones(1, 6, 4, 4)
    maps[:, 1:] = 9
    score, whole = t.joined(scores, maps, t.cut_keep(keep, 1, keep.device))
    assert float(score) == 1
    assert float(whole.max()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 0}, "heads=0"),
        ({"join": "glue"}, "cosine"),
        ({"thumbnail": True}, "normalise='position'"),
        ({"thumbnail": True, "normalise": "position", "heads": 1}, "a head of its own"),
        ({"top_k": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pg.PatchCore().tiled(tile=64, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="for 9 tiles"):
        tiles(heads=10)


def test_native_strips_are_tiled_without_resizing() -> None:
    strips = [np.tile(image, (1, 3, 1))[:64, :160] for image in textures(10, 64)]
    detector = pg.PatchCore(**RESNET).tiled(size="native", tile=64, stride=32, heads=1).fit(strips)  # type: ignore[arg-type]
    assert detector.tiles is not None
    assert detector.tiles.tiling.lefts == (0, 32, 64, 96)
    found = detector.predict(Table([Row("array:0", pixels=strips[0])]))
    assert found.map(0).shape == (64, 160)
    assert found.maps[0].shape == (16, 40)
