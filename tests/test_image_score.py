"""The image score: the mean of the highest share of the joined map, the same on every grid, or the method's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.data import Row, Table
from pickglass.errors import InputError
from pickglass.methods import METHODS
from pickglass.nn.maps import mean_of_highest
from pickglass.testing import textures


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_it_is_the_mean_of_the_sorted_values() -> None:
    maps = drawn(3, 8, 10)
    by_hand = maps.flatten(1).sort(descending=True).values
    torch.testing.assert_close(mean_of_highest(maps, 0.05), by_hand[:, :4].mean(1))
    torch.testing.assert_close(mean_of_highest(maps, 1.0), maps.mean((1, 2)))
    # 2.4 cells: the third counts with 0.4
    parts = (by_hand[:, 0] + by_hand[:, 1] + 0.4 * by_hand[:, 2]) / 2.4
    torch.testing.assert_close(mean_of_highest(maps, 0.03), parts)
    torch.testing.assert_close(mean_of_highest(maps, 1e-4), maps.amax((1, 2)))  # at least one cell


def test_a_finer_grid_gives_the_same_score() -> None:
    maps = drawn(2, 12, 9)
    finer = maps.repeat_interleave(3, 1).repeat_interleave(3, 2)
    for share in (0.02, 0.05, 0.3):
        torch.testing.assert_close(mean_of_highest(finer, share), mean_of_highest(maps, share))


def test_only_what_counts_counts() -> None:
    maps = drawn(2, 6, 6)
    keep = torch.ones(2, 6, 6, dtype=torch.bool)
    keep[0, 3:] = False
    maps[0, 3:] += 10
    found = mean_of_highest(maps, 0.1, keep)
    torch.testing.assert_close(found[:1], mean_of_highest(maps[:1, :3], 0.1))
    torch.testing.assert_close(found[1:], mean_of_highest(maps[1:], 0.1))
    assert mean_of_highest(maps, 0.1, torch.zeros_like(keep)).tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("tiled", [False, True])
def test_a_detector_scores_its_joined_map_within_the_region_of_interest(tiled: bool, tmp_path: Path) -> None:
    images = np.concatenate([textures(8, 96), textures(8, 96, seed=1)], axis=2)
    roi = np.zeros(images.shape[1:3], bool)
    roi[:, :120] = True
    table = Table([Row(f"array:{i}", "train", 0, pixels=image, roi=roi) for i, image in enumerate(images)])
    detector: pg.Detector = pg.PatchCore(size=(64, 128), top_share=0.05)
    if tiled:
        detector = detector.tiled(tile=64, stride=32)
    found = detector.fit(table, engine="torch").predict(table, engine="torch")
    h, w = found.maps[0].shape
    inside = torch.zeros(len(found), h, w, dtype=torch.bool)
    inside[:, :, : w * 120 // 192] = True
    expected = mean_of_highest(torch.from_numpy(np.stack(found.maps)), 0.05, inside)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    loaded = pg.load(detector.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(loaded.predict(table, engine="torch").scores, found.scores)


@pytest.mark.parametrize(
    ("settings", "share"),
    [({}, 0.002), ({"top_share": 0.01}, 0.01), ({"top_share": 0.0}, 0.0), ({"top_k": 3}, 0.0), ({"reweight": 3}, 0.0)],
)
def test_a_setting_that_asks_for_another_score_is_obeyed(settings: dict[str, Any], share: float) -> None:
    assert pg.PatchCore(**settings).scored_share == share


def test_two_settings_that_ask_for_two_scores_are_refused() -> None:
    good = textures(6, 64)
    for detector in (
        pg.PatchCore(size=64, top_k=3, top_share=0.01),
        pg.AsymmetricStudentTeacher(size=64, image_score="mean", top_share=0.01),
        pg.PatchCore(size=64, top_share=0.01).tiled(tile=32, image_score="mean"),
    ):
        with pytest.raises(InputError, match=r"top_share=0\.01 and another setting .*leave top_share out"):
            detector.fit(good)
    with pytest.raises(InputError, match=r"top_share=2: expected a share of the map"):
        pg.PatchCore(size=64, top_share=2).fit(good)


@pytest.mark.parametrize("method", [name for name, cls in METHODS.items() if "paper" in cls.presets])
def test_papers_have_their_own_score(method: str) -> None:
    assert METHODS[method].from_preset("paper").scored_share == 0
    assert METHODS[method]().scored_share > 0


def test_a_file_from_before_keeps_its_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thresholds are of the maximum; the file does not say so, for there was no other."""
    good = textures(8, 64)
    detector = pg.PatchCore(size=64, top_share=0.0).fit(good, engine="torch")
    scores = detector.predict(good, engine="torch").scores
    settings = detector.configuration()
    del settings["top_share"]
    monkeypatch.setattr(detector, "configuration", lambda: settings)
    loaded = pg.load(detector.save(tmp_path / "m.safetensors"))
    assert loaded.scored_share == 0
    np.testing.assert_array_equal(loaded.predict(good, engine="torch").scores, scores)
