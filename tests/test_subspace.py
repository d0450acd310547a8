"""SubspaceAD against its formulas done literally, what it leaves out and learns on, and golden scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError, NotFitted
from pickglass.features.batch import Batch
from pickglass.methods.subspace import Subspace
from pickglass.testing import textures

SHAPES = [(4, 6, 4), (3, 3, 2)]
TORCH: dict[str, Any] = {"engine": "torch", "workers": 1}


def levels(batch: int, positions: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Channels that differ in variance and go along with each other, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = [
        torch.randn(c, c, generator=torch.Generator().manual_seed(c)) * torch.arange(1, c + 1) for c, _, _ in SHAPES
    ]
    drawn = [torch.randn(batch, positions, *shape, generator=generator) for shape in SHAPES]
    return tuple(torch.einsum("bpchw,dc->bpdhw", x, m) + 50 for x, m in zip(drawn, mixing, strict=True))


def learned(
    n: int = 20, positions: int = 1, keep: torch.Tensor | None = None, units: tuple[int, ...] = (), **settings: Any
) -> Subspace:
    detector = Subspace(**{"size": (24, 16), "smoothing": 0.0, "variance": 0.9, **settings})
    detector.build(SHAPES, positions, 0)
    detector.begin_fit(FitContext(n, SHAPES, positions, 0, 4.0, lambda *_: None, units=units))
    for i in range(0, n, 8):
        part = tuple(level[i : i + 8] for level in levels(n, positions))
        detector.observe(Batch(part, keep=None if keep is None else keep[i : i + 8]))
    detector.end_fit()
    return detector


def side_by_side(detector: Subspace, features: tuple[torch.Tensor, ...], position: int = 0) -> np.ndarray:
    """The patches of one position, (B, h w, C) float64."""
    found = detector._patch_features(features)[:, position].flatten(2).transpose(1, 2)
    patches: np.ndarray = found.double().numpy()
    return patches


def literal(good: np.ndarray, test: np.ndarray, variance: float) -> np.ndarray:
    """|(I - C C^T)(x - mu)| by a singular value decomposition of all good patches (N, C)."""
    mu = good.mean(0)
    _, s, axes = np.linalg.svd(good - mu, full_matrices=False)
    held = np.cumsum(s**2) / np.sum(s**2)
    k = int(np.argmax(held >= variance)) + 1
    x = test - mu
    residual = x - x @ axes[:k].T @ axes[:k]
    distance: np.ndarray = np.linalg.norm(residual, axis=-1)
    return distance


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_the_map_is_the_residual_of_the_paper_done_literally(variance: float) -> None:
    detector = learned(positions=2, variance=variance)
    test = levels(3, 2, seed=1)
    scores, maps = detector.score(Batch(test))
    for p in range(2):
        good = side_by_side(detector, levels(20, 2), p).reshape(-1, 7)
        expected = literal(good, side_by_side(detector, test, p), variance)  # (B, h w)
        np.testing.assert_allclose(maps[:, p].flatten(1).numpy(), expected, rtol=1e-3)
        np.testing.assert_allclose(scores[:, p].numpy(), expected.max(1), rtol=1e-3)  # a hundredth of 24 cells is one
    parts = detector.level_maps(Batch(test))
    np.testing.assert_allclose(sum(parts.values()).sqrt().numpy(), maps.numpy(), rtol=1e-3)  # type: ignore[union-attr]


def test_what_is_outside_the_region_of_interest_is_not_learned() -> None:
    keep = torch.zeros(20, 1, 24, 16, dtype=torch.bool)
    keep[:, :, :, :8] = True
    wild = learned(keep=keep)
    good = side_by_side(wild, levels(20)).reshape(20, 6, 4, 7)[:, :, :2].reshape(-1, 7)
    test = levels(2, seed=1)
    expected = literal(good, side_by_side(wild, test), 0.9)
    np.testing.assert_allclose(wild.score(Batch(test))[1].flatten(2)[:, 0].numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("n", [12, 50], ids=["each by itself", "in folds"])
def test_an_image_is_judged_by_the_subspace_of_the_others(n: int) -> None:
    units = tuple(i // 2 for i in range(n))  # two images of each part
    detector = learned(n, units=units)
    good = levels(n)
    _, maps = detector.score_left_out(Batch(tuple(level[:6] for level in good)), torch.tensor(units[:6]))
    patches = side_by_side(detector, good)
    for i in (0, 5):
        others = [j for j in range(n) if units[j] % 20 != units[i] % 20]
        expected = literal(patches[others].reshape(-1, 7), patches[i], 0.9)
        np.testing.assert_allclose(maps[i, 0].flatten().numpy(), expected, rtol=1e-3)
    assert detector.leaves_out(units)
    assert not detector.leaves_out([0, 0])
    detector.forget_images()
    assert not any("sums" in name for name in detector.state_dict())
    with pytest.raises(NotFitted):
        detector.score_left_out(Batch(good), torch.tensor(units))


def test_an_update_is_a_fit_on_all_images(tmp_path: Path) -> None:
    old, new, test = textures(12, 64), textures(8, 64, seed=3), textures(3, 64, seed=1)
    both = pg.Subspace(size=64).fit(np.concatenate([old, new]), **TORCH)
    first = pg.Subspace(size=64).fit(old, **TORCH)
    loaded = pg.load(first.save(tmp_path / "old.safetensors"))
    np.testing.assert_array_equal(loaded.predict(test, **TORCH).scores, first.predict(test, **TORCH).scores)
    loaded.update(new, **TORCH)
    np.testing.assert_allclose(loaded.predict(test, **TORCH).scores, both.predict(test, **TORCH).scores, rtol=1e-4)
    assert not np.allclose(first.predict(test, **TORCH).scores, both.predict(test, **TORCH).scores, rtol=1e-2)


def test_positions_may_have_subspaces_of_different_dimensions() -> None:
    images = textures(8, 96)
    images[:, :, :64] = images[:, :1, :1]  # nothing varies within the first tile but its shade
    images[:, :, :64] += np.arange(8, dtype=np.uint8)[:, None, None, None]
    whole = pg.Subspace(size=(64, 128)).tiled(tile=64, stride=64).fit(images, **TORCH)
    one, other = whole.provenance.details["dimensions"]
    assert one < other
    groups = whole.configured({**whole.configuration(), "tiling": {**whole.configuration()["tiling"], "at_once": 1}})
    groups.fit(images, **TORCH)
    np.testing.assert_allclose(groups.predict(images, **TORCH).scores, whole.predict(images, **TORCH).scores, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variance": 1.0}, r"variance=1\.0: expected a share above 0 and below 1, e\.g\. 0\.99"),
        ({"variance": 0}, "variance=0: expected a share"),
        ({"patch": 2}, "patch=2: expected an odd number of cells"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        learned(**settings)


def test_too_many_channels_for_the_memory_are_refused_before_anything_is_learned() -> None:
    with pytest.raises(InputError, match=r"would take .* GB \(152 channels, 1 positions\), more than memory_gb=0\.001"):
        pg.Subspace(size=64).fit(textures(4, 64), memory_gb=0.001, **TORCH)


@pytest.mark.golden
def test_golden_scores() -> None:
    detector = pg.Subspace(size=64).fit(textures(12, 64), **TORCH)
    np.testing.assert_allclose(detector.predict(textures(3, 64, seed=1), **TORCH).scores, GOLDEN, rtol=1e-3)


GOLDEN = [12.658422, 11.849734, 13.165618]
