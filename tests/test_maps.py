"""Arithmetic on maps against torch, scipy and literal loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from pickglass.nn.maps import (
    adaptive_windows,
    batch_mean,
    discrete_gaussian,
    hardest_mean,
    kept_mean,
    neighbourhood_mean,
    patch_vectors,
    pool_channels,
    smooth,
    to_grid,
)


@pytest.fixture
def levels() -> torch.Tensor:
    return torch.randn(2, 7, 6, 5, generator=torch.Generator().manual_seed(0))


def test_neighbourhood_mean_is_the_mean_with_zeros_beyond_the_border(levels: torch.Tensor) -> None:
    mean = neighbourhood_mean(levels, 3)
    padded = np.pad(levels.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for y in range(6):
        for x in range(5):
            literal = padded[:, :, y : y + 3, x : x + 3].sum((2, 3)) / 9
            np.testing.assert_allclose(mean[:, :, y, x], literal, atol=1e-6)
    assert neighbourhood_mean(levels, 1) is levels


def test_patch_vectors_hold_the_neighbourhood_channel_by_channel(levels: torch.Tensor) -> None:
    vectors = patch_vectors(levels, 3)
    assert vectors.shape == (2, 63, 6, 5)
    np.testing.assert_array_equal(vectors[1, 9:18, 2, 3], levels[1, 1, 1:4, 2:5].flatten())
    torch.testing.assert_close(vectors.view(2, 7, 9, 6, 5).mean(2), neighbourhood_mean(levels, 3))


@pytest.mark.parametrize(("length", "dims"), [(63, 10), (4608, 1024), (10, 10), (8, 3), (5, 9)])
def test_pooling_channels_is_torchs_adaptive_average(length: int, dims: int) -> None:
    x = torch.randn(2, length, 2, 3, generator=torch.Generator().manual_seed(1))
    flat = x.permute(0, 2, 3, 1).reshape(12, 1, length)
    expected = F.adaptive_avg_pool1d(flat, dims).view(2, 2, 3, dims).permute(0, 3, 1, 2)
    torch.testing.assert_close(pool_channels(x, dims), expected, rtol=1e-5, atol=1e-6)
    _, weight = adaptive_windows(length, dims)
    torch.testing.assert_close(weight.sum(1), torch.ones(dims))


def test_to_grid_is_bilinear_with_half_pixel_centres() -> None:
    row = torch.tensor([[[[0.0, 1.0]]]])
    assert to_grid(row, (1, 4))[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]
    assert to_grid(row, (1, 2)) is row


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 3.0])
def test_discrete_gaussian_has_the_stated_variance(sigma: float) -> None:
    kernel = discrete_gaussian(sigma).double()
    at = torch.arange(len(kernel)) - len(kernel) // 2
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float((kernel * at**2).sum()) == pytest.approx(sigma**2, rel=2e-3)


def test_smoothing_is_scipys_for_a_sigma_of_several_cells() -> None:
    noise = np.random.default_rng(2).normal(size=(2, 40, 30))
    maps = torch.from_numpy(gaussian_filter(noise, (0, 2, 2)).astype(np.float32))
    got = smooth(maps, (3.0, 2.0))
    expected = np.stack([gaussian_filter(m.numpy(), (3.0, 2.0), mode="nearest", truncate=6) for m in maps])
    assert np.abs(got.numpy() - expected).max() < 0.03 * np.abs(expected).max()


def test_smoothing_on_the_grid_is_smoothing_of_the_enlarged_map() -> None:
    """The departure that patchcore.py states: same blur to within the interpolation."""
    rng = np.random.default_rng(0)
    maps = gaussian_filter(rng.normal(size=(32, 32)), 1).astype(np.float32)
    ours = to_grid(smooth(torch.from_numpy(maps)[None], (0.5, 0.5))[:, None], (256, 256))[0, 0].numpy()
    theirs = gaussian_filter(to_grid(torch.from_numpy(maps)[None, None], (256, 256))[0, 0].numpy(), 4)
    assert np.abs(ours - theirs).max() < 0.05 * np.ptp(theirs)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_no_smoothing_and_one_cell() -> None:
    one = torch.ones(3, 1, 1)
    assert torch.equal(smooth(one, (0.0, 0.0)), one)
    torch.testing.assert_close(smooth(one, (2.0, 2.0)), one)
    constant = torch.full((1, 5, 9), 2.5)
    torch.testing.assert_close(smooth(constant, (0.5, 4.0)), constant)


# -- means over what counts --------------------------------------------------------------------------------------------


def some_keep() -> torch.Tensor:
    """(3, 2, 4, 5) bool, the first image kept nowhere at position 0, no image kept anywhere at position 1 but one."""
    keep = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[:, :, 0, 0] = True
    keep[0, 0] = False
    keep[1:, 1] = False
    return keep


def test_means_over_what_counts_done_literally() -> None:
    values = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keep = some_keep()
    means = kept_mean(values, keep)
    for p in range(2):
        counting = []
        for b in range(3):
            cells = [float(values[b, p, y, x]) for y in range(4) for x in range(5) if keep[b, p, y, x]]
            if cells:
                counting.append(sum(cells) / len(cells))
                assert float(means[b, p]) == pytest.approx(counting[-1], rel=1e-12)
            else:
                assert float(means[b, p]) == 0
        assert float(batch_mean(means, keep)[p]) == pytest.approx(sum(counting) / len(counting), rel=1e-12)
    torch.testing.assert_close(batch_mean(kept_mean(values, None), None), values.mean((0, 2, 3)))


@pytest.mark.parametrize("mean", [kept_mean, lambda v, k: hardest_mean(v[:, :, None], 0.5, k)], ids=["mean", "hardest"])
def test_an_image_of_which_nothing_counts_gives_no_gradient(mean: object) -> None:
    values = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    keep = some_keep()
    loss = batch_mean(mean(values, keep), keep)  # type: ignore[operator]
    loss.sum().backward()
    assert values.grad is not None
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(values.grad).all())
    assert bool((values.grad[~keep] == 0).all())
    assert bool((values.grad[keep] != 0).any())


def test_where_nothing_counts_at_all_the_means_are_zero() -> None:
    values, nowhere = torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    assert batch_mean(kept_mean(values, nowhere), nowhere).tolist() == [0.0]
    assert batch_mean(hardest_mean(values[:, :, None], 0.9, nowhere), nowhere).tolist() == [0.0]


def test_the_hardest_mean_done_literally() -> None:
    """As the definition: sort, interpolate the quantile, average what is not below it."""
    distance = torch.randn(3, 2, 5, 7, 6, generator=torch.Generator().manual_seed(3)).square()
    means = hardest_mean(distance, 0.9)
    for b in range(3):
        for p in range(2):
            values = sorted(distance[b, p].flatten().tolist())
            place = 0.9 * (len(values) - 1)
            low = values[math.floor(place)]
            quantile = low + (place - math.floor(place)) * (values[math.ceil(place)] - low)
            above = [v for v in values if v >= quantile]
            assert float(means[b, p]) == pytest.approx(sum(above) / len(above), rel=1e-5)


def test_the_hardest_mean_looks_at_cells_that_count() -> None:
    distance = torch.randn(2, 1, 5, 4, 4, generator=torch.Generator().manual_seed(4)).square()
    keep = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    keep[0, 0, 2:] = False
    means = hardest_mean(distance, 0.9, keep)
    torch.testing.assert_close(means[0], hardest_mean(distance[:1, :, :, :2], 0.9)[0])
    torch.testing.assert_close(means[1], hardest_mean(distance[1:], 0.9)[0])
