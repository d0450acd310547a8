"""Each member of PatchCore's bank knows the training image and the place that it was cut from, in every kind of fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pickglass as pg
from pickglass.detectors.method import FitContext
from pickglass.features.batch import Batch
from pickglass.nn.search.neighbours import nearest_plain
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

TORCH: dict[str, Any] = {"engine": "torch"}
CHANNELS, H, W = 4, 3, 5


def told(n: int, first: int = 0, positions: int = 1) -> tuple[Tensor, ...]:
    """Features of n images, each of whose patches says which image, position and cell it is."""
    image = torch.arange(first, first + n).view(n, 1, 1, 1).expand(n, positions, H, W)
    position = torch.arange(positions).view(1, positions, 1, 1).expand_as(image)
    row = torch.arange(H).view(1, 1, H, 1).expand_as(image)
    column = torch.arange(W).view(1, 1, 1, W).expand_as(image)
    return (torch.stack([image, position, row, column], dim=2).float(),)  # (n, P, 4, h, w)


def context(n: int, positions: int = 1, **more: Any) -> FitContext:
    return FitContext(n, [(CHANNELS, H, W)], positions, 0, more.pop("memory_gb", 1.0), lambda *_: None, **more)


def learned(detector: pg.PatchCore, *batches: Batch) -> pg.PatchCore:
    for batch in batches:
        detector.observe(batch)
    detector.end_fit()
    return detector


def bank_of(**settings: Any) -> pg.PatchCore:
    return pg.PatchCore(**{"size": 64, "patch": 1, "ratio": 0.4, **settings})


def check(detector: pg.PatchCore) -> None:
    """The origins say of each member what the member says of itself."""
    bank, origins = detector.bank, detector.origins
    assert bank is not None
    assert origins is not None
    assert origins.shape == (*bank.shape[:2], 2)
    assert origins.dtype == torch.int32
    assert torch.equal(origins[..., 0], bank[..., 0].int())
    assert torch.equal(origins[..., 1], (bank[..., 2] * W + bank[..., 3]).int())


def test_members_know_their_image_and_cell() -> None:
    detector = bank_of()
    detector.begin_fit(context(5, positions=2, units=(0, 1, 2, 3, 4)))
    check(learned(detector, Batch(told(3, 0, 2)), Batch(told(2, 3, 2))))


def test_a_sample_and_a_region_of_interest_leave_no_doubt() -> None:
    detector = bank_of(sample=4)
    detector.begin_fit(context(4, positions=2, units=(0, 1, 2, 3)))
    keep = torch.rand(4, 2, H, W, generator=torch.Generator().manual_seed(0)) > 0.3
    keep[:, 1, 1:] = False  # another number of cells at each position
    check(learned(detector, Batch(told(4, 0, 2), keep=keep)))


@pytest.mark.parametrize("blocks", [1, 3])
def test_reduced_blocks_carry_origins_along(blocks: int) -> None:
    detector = bank_of(ratio=0.02)
    detector.begin_fit(context(40, units=tuple(range(40))))
    detector._room = 40 * H * W // (2 * blocks)
    learned(detector, *(Batch(told(4, i)) for i in range(0, 40, 4)))
    assert detector._reductions >= blocks
    check(detector)


def test_an_update_numbers_its_images_after_those_of_the_fit() -> None:
    detector = bank_of()
    detector.begin_fit(context(3, units=(0, 1, 2)))
    learned(detector, Batch(told(3)))
    detector.begin_update(context(2, units=(0, 1), before=3))
    check(learned(detector, Batch(told(2, 3))))
    assert detector.origins is not None
    assert int(detector.origins[..., 0].max()) >= 3
    assert detector.owners is not None
    new = detector.origins[..., 0] >= 3
    assert torch.equal(detector.owners, torch.where(new, detector.origins[..., 0] - 3, -1))


def test_members_of_an_older_file_are_of_unknown_origin_and_new_ones_are_not() -> None:
    detector = bank_of()
    detector.begin_fit(context(3, units=(0, 1, 2)))
    learned(detector, Batch(told(3)))
    detector.origins = None
    detector.begin_update(context(2, units=(0, 1), before=3))
    learned(detector, Batch(told(2, 3)))
    assert detector.origins is not None
    assert detector.bank is not None
    old = detector.bank[..., 0] < 3
    assert bool(old.any())
    assert not bool(old.all())
    assert bool((detector.origins[old] == -1).all())
    assert torch.equal(detector.origins[~old][:, 0], detector.bank[~old][:, 0].int())


def test_turns_and_tiles_that_share_a_head_are_told_apart() -> None:
    """Two images of three tiles each in two turns; each row of a batch is a tile of its own."""
    detector = bank_of(ratio=1.0, rotations=2)
    detector.begin_fit(context(2 * 2 * 3, per_image=3))
    rows = [told(6, 6 * turn) for turn in range(2)]
    learned(detector, *map(Batch, rows))
    assert detector.bank is not None
    assert detector.origins is not None
    row = detector.bank[0, :, 0].int()  # 0 to 11: turn, image, tile
    turn, image, tile = row // 6, row % 6 // 3, row % 3
    cell = (detector.bank[0, :, 2] * W + detector.bank[0, :, 3]).int()
    assert torch.equal(detector.origins[0, :, 0], image)
    assert torch.equal(detector.origins[0, :, 1], (turn * 3 + tile) * H * W + cell)


def test_levels_split_the_squared_distance_and_neighbours_have_it() -> None:
    generator = torch.Generator().manual_seed(0)
    detector = pg.PatchCore(size=64, ratio=1.0, smoothing=0.0, standardise=True, position_weight=0.5)
    detector.begin_fit(FitContext(3, [(4, 6, 5), (3, 3, 3)], 1, 0, 1.0, lambda *_: None, units=(0, 1, 2)))
    shapes = [(1, 4, 6, 5), (1, 3, 3, 3)]
    batches = [tuple(torch.randn(n, *s, generator=generator) for s in shapes) for n in (3, 2)]
    learned(detector, Batch(batches[0]))
    _, maps = detector.score(Batch(batches[1]))
    parts = detector.level_maps(Batch(batches[1]))
    assert list(parts) == ["stage3", "stage5", "place"]
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), maps.square(), rtol=1e-4, atol=1e-5)
    for place in ((0, 0, 2, 3), (1, 0, 5, 0)):
        near = detector.neighbours(Batch(batches[1]), place, 5)
        assert [n.image for n in near] == sorted({0, 1, 2}, key=lambda i: [n.image for n in near].index(i))
        assert len(near) == 3  # one of each image
        assert near[0].distance == pytest.approx(float(maps[place]), rel=1e-4)
        assert near == sorted(near, key=lambda n: n.distance)


def test_a_tiled_fit_that_is_saved_keeps_them(tmp_path: Path) -> None:
    images = textures(5, 64)
    wide = np.concatenate([images, images[:, ::-1]], axis=2)
    for heads in ("position", 1):
        detector = pg.PatchCore(size=64).tiled(size=(64, 128), tile=64, stride=64, heads=heads)
        detector.fit(wide, calibrate=0, **TORCH)
        loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
        assert isinstance(loaded, pg.PatchCore)
        assert loaded.origins is not None
        assert torch.equal(loaded.origins, detector.origins)
        assert loaded.provenance.image_names == tuple(f"array:{i}" for i in range(5))
        # the patch that an origin names is the member itself
        found = list(loaded.loader(ComputeOptions(engine="torch")).batches(list(loaded._rows(wide))))
        features = torch.cat([loaded._patch_features(item.batch.levels) for item in found if item.batch is not None])
        m = loaded.tiles.per_head if loaded.tiles is not None else 1
        for p in range(features.shape[1]):
            image, spot = loaded.origins[p].T.long()
            patches = features[:, p].flatten(2)  # (B m, C, h w)
            cells = patches.shape[2]
            cut = patches[image * m + spot // cells, :, spot % cells]
            assert loaded.bank is not None
            torch.testing.assert_close(cut, loaded.bank[p], rtol=1e-4, atol=1e-4)


def test_padim_splits_the_squared_distance_in_either_form() -> None:
    images = textures(8, 64)
    for dims, form in ((6, "factor"), (80, "low rank")):
        detector = pg.PaDiM(size=64, dims=dims, smoothing=0.0).fit(images, calibrate=0, **TORCH)
        assert detector.provenance.details["form"] == form
        (loaded,) = detector.loader(ComputeOptions(engine="torch")).batches(
            list(detector._rows(textures(2, 64, seed=1)))
        )
        assert loaded.batch is not None
        parts = detector.level_maps(loaded.batch)
        assert list(parts) == list(detector.read_layers)
        assert all(bool((part >= 0).all()) for part in parts.values())
        total = torch.stack(list(parts.values())).sum(0).sqrt()
        torch.testing.assert_close(total, detector.score(loaded.batch)[1], rtol=2e-3, atol=1e-3)


def test_nearest_plain_agrees_with_neighbours() -> None:
    detector = bank_of(ratio=1.0)
    detector.begin_fit(context(3, units=(0, 1, 2)))
    learned(detector, Batch(told(3)))
    query = (torch.tensor([1.2, 0.0, 2.0, 3.4]).view(1, 1, 4, 1, 1).expand(1, 1, 4, H, W),)
    nearest = detector.neighbours(Batch(query), (0, 0, 0, 0), 1)[0]
    assert (nearest.image, nearest.spot) == (1, 2 * W + 3)
    assert detector.bank is not None
    distance = nearest_plain(torch.tensor([[1.2, 0.0, 2.0, 3.4]]), detector.bank[0])[0]
    assert nearest.distance == pytest.approx(float(distance), rel=1e-5)
