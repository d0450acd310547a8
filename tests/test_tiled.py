"""Tiled detectors: the conformance suite, positions, shared heads, joining, groups, regions of interest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pickglass as pg
from pickglass.app.testing.test import test as judge
from pickglass.data import Row, Table
from pickglass.detectors.tiling import Tiles, TileSettings
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.testing import check_detector, textures

RESNET = {"backbone": "resnet18", "layers": ("layer1",), "weights": "random", "ratio": 0.05}


def tiles(canvas: tuple[int, int] = (16, 24), **settings: object) -> Tiles:
    return Tiles(TileSettings((8, 8), (4, 8), **settings), canvas)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.long),  # test_conformance.py has it for other methods
        pytest.param({"heads": 1, "image_score": "top_k"}, marks=pytest.mark.long),
        {"heads": 2, "join": "seams", "edges": "pad", "stride": 40},
        {"normalise": "position", "thumbnail": True, "image_score": "mean", "at_once": 2},
    ],
    ids=["plain", "one head", "two heads, padded", "thumbnail, scaled, in groups"],
)
def test_conformance(settings: dict[str, object]) -> None:
    detector = pg.PatchCore(**RESNET).tiled(size=96, tile=64, **{"stride": 32, **settings})  # type: ignore[arg-type]
    assert check_detector(detector, modes=["plain", "batch of one"], n_images=10)


@pytest.mark.slow
def test_one_tile_is_the_plain_method() -> None:
    good, test = textures(10, 64), textures(3, 64, seed=1)
    plain = pg.PatchCore(size=64, **RESNET).fit(good, engine="torch").predict(test, engine="torch")  # type: ignore[arg-type]
    tiled = pg.PatchCore(size=64, **RESNET).tiled(tile=64).fit(good, engine="torch").predict(test, engine="torch")  # type: ignore[arg-type]
    assert (plain.scores == tiled.scores).all()
    assert all((a == b).all() for a, b in zip(plain.maps, tiled.maps, strict=True))


@pytest.mark.slow
def test_each_position_is_a_detector_of_its_own_tile() -> None:
    good, test = textures(10, 96), textures(2, 96, seed=1)
    tiled = (
        pg.PatchCore(size=96, top_share=0.0, **RESNET).tiled(tile=64, stride=32).fit(good, calibrate=0, engine="torch")
    )  # type: ignore[arg-type]
    assert tiled.tiles is not None
    scores = []
    for x, y, w, h in tiled.tiles.tiling.boxes:
        own = pg.PatchCore(size=64, top_share=0.0, **RESNET).fit(
            good[:, y : y + h, x : x + w], calibrate=0, engine="torch"
        )  # type: ignore[arg-type]
        scores.append(own.predict(test[:, y : y + h, x : x + w], engine="torch").scores)
    np.testing.assert_allclose(tiled.predict(test, engine="torch").scores, np.max(scores, axis=0), rtol=1e-4)


@pytest.mark.slow
def test_groups_of_positions_learn_what_all_at_once_do() -> None:
    good, test = textures(10, 96), textures(2, 96, seed=1)
    found = [
        pg.PatchCore(size=96, **RESNET)
        .tiled(tile=64, stride=32, at_once=n)
        .fit(good, engine="torch")
        .predict(test, engine="torch")  # type: ignore[arg-type]
        for n in (None, 1, 3)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.scores, found[0].scores, rtol=1e-5)


def test_cutting_and_joining_constant_maps() -> None:
    for join in ("cosine", "average", "seams"):
        t = tiles(join=join)
        assert t.n == 9
        scores, whole, _ = t.joined(torch.ones(2, 9), torch.full((2, 9, 4, 4), 3.0), None)
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
    folded = t.fold(Batch((levels,)))
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
    detector = pg.PatchCore(size=128, **RESNET).tiled(tile=64, stride=64).fit(good, engine="torch")  # type: ignore[arg-type]
    found = detector.predict(bad, engine="torch")
    assert (found.scores > detector.predict(textures(4, 128, seed=4), engine="torch").scores.max()).all()
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
    score, whole, inside = t.joined(scores, maps, t.cut_keep(keep, 1, keep.device))
    assert float(score) == 1
    assert float(whole.max()) == 1
    assert inside is not None
    assert bool(inside[0, :4, :4].all())
    assert int(inside.sum()) == 16


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


@pytest.mark.slow
def test_native_strips_are_tiled_without_resizing() -> None:
    strips = [np.tile(image, (1, 3, 1))[:64, :160] for image in textures(10, 64)]
    detector = pg.PatchCore(**RESNET).tiled(size="native", tile=64, stride=32, heads=1).fit(strips, engine="torch")  # type: ignore[arg-type]
    assert detector.tiles is not None
    assert detector.tiles.tiling.lefts == (0, 32, 64, 96)
    found = detector.predict(Table([Row("array:0", pixels=strips[0])]), engine="torch")
    assert found.map(0).shape == (64, 160)
    assert found.maps[0].shape == (16, 40)


def test_padding_moves_nothing() -> None:
    """What lies beyond the canvas is left out; what is on it stays in its place, also where cells do not line up."""
    t = Tiles(TileSettings((16, 16), (16, 16), edges="pad"), (16, 38))
    assert t.tiling.extent == (16, 48)
    places = torch.arange(4) * 4 + 2.0  # (w,) pixels of the cells' middles within a tile
    maps = torch.stack([(start + places).expand(4, 4) for start in t.tiling.lefts])[None]  # (1, T, 4, 4)
    _, whole, _ = t.joined(torch.zeros(1, 3), maps, None)
    assert whole.shape == (1, 4, 10)
    inside = [1, 2, 5, 6, 9]  # cells whose middles lie between those of one tile
    torch.testing.assert_close(whole[0, 0, inside], (torch.tensor(inside) + 0.5) * 3.8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "detector",
    [
        pg.PaDiM(size=64, dims=20),
        pg.STFPM(backbone="resnet18", layers=("layer1",), weights="random", size=64, epochs=1, batch=4),
    ],
    ids=lambda detector: detector.method,
)
def test_one_tile_is_the_plain_method_bit_for_bit(detector: pg.Detector) -> None:
    good, test = textures(8, 64), textures(2, 64, seed=1)
    plain = detector.fit(good, engine="torch").predict(test, engine="torch")
    tiled = detector.tiled(tile=64).fit(good, engine="torch").predict(test, engine="torch")
    assert (plain.scores == tiled.scores).all()
    assert all((a == b).all() for a, b in zip(plain.maps, tiled.maps, strict=True))


@pytest.mark.slow
def test_a_file_that_would_be_too_large_is_refused_before_it_is_learned() -> None:
    student = {"backbone": "resnet18", "layers": ("layer1",), "weights": "random", "size": 96, "epochs": 1}
    fitted = pg.STFPM(**student).tiled(tile=64, stride=32, heads=1).fit(textures(8, 96), engine="torch")  # type: ignore[arg-type]
    own = sum(tensor.nbytes for tensor in fitted.head_state().values()) / 1e6  # MB a head
    backbone = sum(tensor.nbytes for tensor in fitted.extractor.state_dict().values()) / 1e6  # type: ignore[union-attr]
    tiled = pg.STFPM(**student).tiled(tile=64, stride=32, max_file_mb=backbone + 3.5 * own)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share heads among the tiles, heads=3, or raise max_file_mb"):
        tiled.fit(textures(8, 96), engine="torch")
    # sharing takes nothing off a bank, whose size is a share of all patches
    bank = pg.PatchCore(**RESNET).tiled(size=96, tile=64, max_file_mb=backbone + 0.03)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="let the method keep less"):
        bank.fit(textures(8, 96), engine="torch")
    apart = pg.PatchCore(**RESNET, max_bank_mb=0.05).tiled(size=96, tile=64, at_once=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the bank would take"):  # of all groups together, not of each
        apart.fit(textures(8, 96), engine="torch")
    plain = {name: RESNET[name] for name in ("backbone", "layers", "weights")}
    gaussians = pg.PaDiM(**plain, dims=8, max_statistics_mb=0.2).tiled(size=96, tile=64, at_once=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the statistics would take"):  # 0.1 MB a position
        gaussians.fit(textures(8, 96), engine="torch")
    few = pg.PaDiM(**plain, dims=8).tiled(size=96, tile=64, stride=32, max_file_mb=backbone + 0.2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"share heads among the tiles, heads=\d"):
        few.fit(textures(8, 96), engine="torch")


@pytest.mark.slow
def test_positions_are_learned_together_while_the_memory_lasts() -> None:
    settings = {"backbone": "resnet18", "layers": ("layer1",), "weights": "random", "size": 96, "epochs": 1}
    groups = []
    for memory_gb in (0.05, 4.0):
        detector = (
            pg.STFPM(**settings)
            .tiled(tile=64, stride=32)
            .fit(textures(4, 96), calibrate=0, memory_gb=memory_gb, engine="torch")
        )  # type: ignore[arg-type]
        groups.append(len(detector.provenance.details.get("groups", [None])))
    assert groups[0] > 1
    assert groups[1] == 1


@pytest.mark.slow
def test_the_parts_of_a_map() -> None:
    good, bad = textures(10, 96), textures(3, 96, seed=1)
    bad[:, 20:28, 70:78] = 255
    detector = (
        pg.PatchCore(**RESNET, top_share=0.0)
        .tiled(size=96, tile=64, stride=32, normalise="position")
        .fit(good, engine="torch")
    )  # type: ignore[arg-type]
    found = detector.predict(bad, engine="torch")
    for i, (canvas, parts) in enumerate(detector.tile_parts(bad, engine="torch")):
        assert canvas.shape == (3, 96, 96)
        assert (parts.joined[0].numpy() == found.maps[i]).all()
        assert float(parts.scores.max()) == found.scores[i]
        assert int(parts.scores.argmax()) in (1, 2)  # the two tiles at the top that see the spot
        assert parts.maps.shape == (1, 4, 16, 16)
        assert parts.averaged.shape == parts.joined.shape
        assert not torch.equal(parts.averaged, parts.joined)
    with pytest.raises(InputError, match="is not tiled"):
        next(iter(pg.PatchCore(size=64, **RESNET).fit(good, engine="torch").tile_parts(bad)))  # type: ignore[arg-type]


def test_on_scales_of_their_own_every_position_has_its_own_threshold() -> None:
    """One threshold on scaled scores is a threshold of its own for each position, in the units of its raw scores."""
    t = tiles(normalise="position")
    t.scale = torch.tensor([1.0, 10, 1, 1, 1, 1, 1, 1, 1])
    quiet = torch.tensor([[1.0, 10, 1, 1, 1, 1, 1, 1, 1], [2.5, 10, 1, 1, 1, 1, 1, 1, 1], [1, 25, 1, 1, 1, 1, 1, 1, 1]])
    scores, _, _ = t.joined(quiet, torch.zeros(3, 9, 4, 4), None)
    assert scores.tolist() == [1.0, 2.5, 2.5]


@pytest.mark.slow
def test_the_report_shows_the_tiles(small_dataset: Path, tmp_path: Path) -> None:
    dataset = pg.load_dataset(small_dataset)
    detector = pg.PatchCore(**RESNET).tiled(size=96, tile=64, stride=32).fit(dataset.train, engine="torch")  # type: ignore[arg-type]
    judge(detector, small_dataset, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("4 tiles of 64 x 64 px; highest: tile ") == 4 * 2  # caption and alternative text
    assert page.count("overlaps blended by raised cosines") == 4 * 2
    plain = pg.PatchCore(size=64, **RESNET).fit(dataset.train, engine="torch")  # type: ignore[arg-type]
    judge(plain, small_dataset, tmp_path / "plain.html")
    assert "<h2>Tiles</h2>" not in (tmp_path / "plain.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_groups_whose_banks_differ_in_length(tmp_path: Path) -> None:
    """At some positions fewer patches count, so that their groups choose smaller banks."""
    region = np.zeros((96, 96), np.uint8)
    region[:72, :72] = 255
    Image.fromarray(region).save(tmp_path / "roi.png")
    good, found = textures(10, 96), []
    rows = Table(
        [Row(f"array:{i}", role="train", pixels=image, roi=str(tmp_path / "roi.png")) for i, image in enumerate(good)]
    )
    for at_once in (None, 1):
        detector = pg.PatchCore(**RESNET).tiled(size=96, tile=64, stride=32, at_once=at_once)  # type: ignore[arg-type]
        found.append(detector.fit(rows, calibrate=0, engine="torch"))
    together, apart = (detector.bank for detector in found)
    assert together.shape == apart.shape  # type: ignore[union-attr]
    lengths = [len(bank.unique(dim=0)) for bank in apart]  # type: ignore[union-attr]
    assert lengths[3] < lengths[0]
    assert np.isfinite(found[1].predict(rows, engine="torch").scores).all()
