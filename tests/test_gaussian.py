"""Gaussians per cell against numpy in float64, one cell at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pickglass.errors import InputError
from pickglass.nn.gaussian.cells import CellGaussians
from pickglass.nn.gaussian.learners import FewSamples, RunningSums

EPS = 0.01
NESTED = [(8, 4), (4, 2), (2, 1)]
ODD = [(7, 5), (3, 4), (5, 3)]  # no grid divides another
WIDE = [3, 2, 4]

Learner = type[RunningSums] | type[FewSamples]


def levels(grids: list[tuple[int, int]], images: int, *, positions: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """Correlated channels, means and scales of their own in every cell."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for (h, w), d in zip(grids, WIDE, strict=False):
        mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99))
        x = torch.randn(images, positions, d, h, w, generator=generator)
        made.append(torch.einsum("bpdhw,de->bpehw", x, mix) + 0.3 * torch.arange(h * w).view(h, w))
    return made


def learned(
    features: list[torch.Tensor],
    keep: torch.Tensor | None = None,
    *,
    learner: Learner = RunningSums,
    batch: int = 5,
    eps: float = EPS,
) -> CellGaussians:
    grids = [(f.shape[3], f.shape[4]) for f in features]
    channels = [f.shape[2] for f in features]
    gaussians = CellGaussians(grids, grids[0], channels, features[0].shape[1], eps)
    sums = learner(gaussians)
    for i in range(0, len(features[0]), batch):
        part = None if keep is None else keep[i : i + batch]
        sums.add([f[i : i + batch] for f in features], part)
    sums.finish()
    return gaussians


def enlarged(features: list[torch.Tensor]) -> np.ndarray:
    """Every level at its nearest cell, float64: (B, P, D, h, w)."""
    h, w = features[0].shape[3:]
    parts = []
    for f in features:
        rows = [y * f.shape[3] // h for y in range(h)]
        columns = [x * f.shape[4] // w for x in range(w)]
        parts.append(f.double().numpy()[:, :, :, rows][..., columns])
    return np.concatenate(parts, axis=2)


def literal(good: list[torch.Tensor], test: list[torch.Tensor], keep: np.ndarray | None = None) -> np.ndarray:
    """Eq. 1 and 2 of the paper, cell by cell."""
    x, y = enlarged(good), enlarged(test)
    distance = np.zeros((y.shape[0], y.shape[1], *y.shape[3:]))
    for p, i, j in np.ndindex(distance.shape[1:]):
        own = x[:, p, :, i, j]
        if keep is not None:
            own = own[keep[:, p, i, j]]
        covariance = np.cov(own.T) + EPS * np.eye(x.shape[2])
        deviation = y[:, p, :, i, j] - own.mean(0)
        distance[:, p, i, j] = np.sqrt(np.einsum("bd,de,be->b", deviation, np.linalg.inv(covariance), deviation))
    return distance


@pytest.mark.parametrize("learner", [RunningSums, FewSamples])
@pytest.mark.parametrize(
    "grids",
    [NESTED, ODD, NESTED[:1], [(4, 4), (8, 8), (2, 2)], [(4, 4), (4, 4)], [(6, 6), (4, 4), (2, 2)]],
    ids=["nested", "odd", "one level", "first not finest", "equal", "irregular"],
)
@pytest.mark.parametrize("images", [40, 6])
def test_distance_is_the_papers_done_literally(grids: list[tuple[int, int]], learner: Learner, images: int) -> None:
    good, test = levels(grids, images, positions=2), levels(grids, 3, positions=2, seed=1)
    distance = learned(good, learner=learner).distance(test)
    assert distance.dtype == torch.float32
    np.testing.assert_allclose(distance.numpy(), literal(good, test), rtol=2e-5)


def covariance(gaussians: CellGaussians) -> np.ndarray:
    """Sigma - eps I from the rows of L^-1 of a single level: (P, U, d, d)."""
    rows = gaussians.levels[0].rows.double().numpy()
    factor = np.linalg.inv(rows)
    return factor @ factor.swapaxes(2, 3) - gaussians.eps * np.eye(rows.shape[2])


@pytest.mark.parametrize("drift", [0.0, 30.0], ids=["steady", "first images differ"])
@pytest.mark.parametrize("offset", [2000.0, 2.0**23], ids=["far", "as far as float32 goes"])
def test_streaming_keeps_its_digits_where_the_mean_is_far_above_the_spread(offset: float, drift: float) -> None:
    (x,) = levels([(3, 2)], 245)
    x = 4 * x + offset
    x[:32] += drift
    gaussians = learned([x], batch=8)
    expected = np.stack([np.cov(cell.T) for cell in x[:, 0].flatten(2).permute(2, 0, 1).double().numpy()])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(covariance(gaussians)[0], expected, atol=2e-6 * scale)
    mean = x.double().mean(0).flatten(2).transpose(1, 2).numpy()
    np.testing.assert_allclose(gaussians.levels[0].mean.numpy(), mean, rtol=1e-7)


def test_a_null_space_beside_large_variances_keeps_its_eps() -> None:
    """Variances of 1e6 and fewer images than channels: in float32 sums, rounding would outweigh eps."""
    generator = torch.Generator().manual_seed(0)
    x = 1000 * torch.randn(10, 1, 20, 2, 2, generator=generator)
    good, test = [x], [x[:3] + torch.randn(3, 1, 20, 2, 2, generator=generator)]
    for learner in (RunningSums, FewSamples):
        np.testing.assert_allclose(
            learned(good, learner=learner).distance(test).numpy(), literal(good, test), rtol=1e-3
        )


def test_how_images_are_batched_does_not_matter() -> None:
    good, test = levels(NESTED, 70), levels(NESTED, 2, seed=1)
    whole = learned(good, batch=70).distance(test)
    for batch in (1, 9, 33):
        torch.testing.assert_close(learned(good, batch=batch).distance(test), whole, rtol=1e-5, atol=0)


def test_a_batch_of_images_is_each_by_itself() -> None:
    good, test = levels(NESTED, 40), levels(NESTED, 5, seed=1)
    for learner in (RunningSums, FewSamples):
        gaussians = learned(good, learner=learner)
        single = torch.cat([gaussians.distance([t[i : i + 1] for t in test]) for i in range(5)])
        torch.testing.assert_close(gaussians.distance(test), single, rtol=1e-5, atol=0)


@pytest.mark.parametrize("learner", [RunningSums, FewSamples])
@pytest.mark.parametrize("grids", [NESTED, ODD], ids=["nested", "odd"])
def test_cells_outside_a_fixed_region_enter_nothing(grids: list[tuple[int, int]], learner: Learner) -> None:
    good, test = levels(grids, 40), levels(grids, 2, seed=1)
    h, w = grids[0]
    region = torch.zeros(h, w, dtype=torch.bool)
    region[: h // 2, : w - 1] = True
    keep = region.expand(40, 1, h, w)
    poisoned = [f.clone() for f in good]
    poisoned[0][:, :, :, ~region] = torch.nan
    distance = learned(poisoned, keep, learner=learner).distance(test)
    expected = literal(good, test)
    np.testing.assert_allclose(distance[:, :, region].numpy(), expected[:, :, region.numpy()], rtol=2e-5)


def test_a_cell_learns_from_the_images_that_cover_it() -> None:
    """One level: each cell's Gaussian is exactly that of its own images, whenever they came."""
    (good,), (test,) = levels([(6, 4)], 90), levels([(6, 4)], 2, seed=1)
    keep = torch.rand(90, 1, 6, 4, generator=torch.Generator().manual_seed(2)) > 0.4
    keep[:40, :, 0] = False  # first seen after the first sums were made
    poisoned = [good.masked_fill(~keep[:, :, None], torch.inf)]
    for learner in (RunningSums, FewSamples):
        distance = learned(poisoned, keep, learner=learner).distance([test])
        np.testing.assert_allclose(distance.numpy(), literal([good], [test], keep.numpy()), rtol=2e-5)


def test_siblings_seen_in_different_images_keep_a_positive_covariance() -> None:
    """Own variances, and products with a coarser level scaled: the definition, with every deviation over sqrt(n-1)."""
    grids = [(2, 1), (1, 1)]
    good, test = levels(grids, 12), levels(grids, 3, seed=1)
    keep = torch.ones(12, 1, 2, 1, dtype=torch.bool)
    keep[:9, :, 1] = False  # the lower cell was seen in the last three images only
    x, y = enlarged(good)[:, 0, :, :, 0], enlarged(test)[:, 0, :, :, 0]
    expected = np.zeros((3, 2))
    for cell, own in ((0, slice(None)), (1, slice(9, None))):
        fine, coarse = x[own, :3, cell], x[:, 3:, cell]
        z = np.zeros((12, 5))
        z[own, :3] = (fine - fine.mean(0)) / np.sqrt(len(fine) - 1)
        z[:, 3:] = (coarse - coarse.mean(0)) / np.sqrt(11)
        sigma = z.T @ z + EPS * np.eye(5)
        deviation = y[:, :, cell] - np.concatenate([fine.mean(0), coarse.mean(0)])
        expected[:, cell] = np.sqrt(np.einsum("bd,de,be->b", deviation, np.linalg.inv(sigma), deviation))
    for learner in (RunningSums, FewSamples):
        distance = learned(good, keep, learner=learner).distance(test)[:, 0, :, 0]
        np.testing.assert_allclose(distance.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize("learner", [RunningSums, FewSamples])
def test_batches_with_and_without_a_mask_mix(learner: Learner) -> None:
    good, test = levels(NESTED, 40), levels(NESTED, 2, seed=1)
    gaussians = CellGaussians(NESTED, NESTED[0], WIDE, 1, EPS)
    sums = learner(gaussians)
    sums.add([f[:20] for f in good])
    sums.add([f[20:] for f in good], torch.ones(20, 1, *NESTED[0], dtype=torch.bool))
    sums.finish()
    np.testing.assert_allclose(gaussians.distance(test).numpy(), literal(good, test), rtol=2e-5)


@pytest.mark.parametrize("learner", [RunningSums, FewSamples])
def test_a_cell_never_seen_has_mean_zero_and_covariance_eps(learner: Learner) -> None:
    (good,), (test,) = levels([(3, 2)], 10), levels([(3, 2)], 2, seed=1)
    keep = torch.ones(10, 1, 3, 2, dtype=torch.bool)
    keep[:, :, 0] = False
    distance = learned([good], keep, learner=learner).distance([test])
    torch.testing.assert_close(distance[:, :, 0], test[:, :, :, 0].norm(dim=2) / EPS**0.5)


def test_one_image_is_enough_for_a_mean() -> None:
    (good,) = levels([(3, 2)], 1)
    for learner in (RunningSums, FewSamples):
        distance = learned([good], learner=learner).distance([good + 0.1])
        torch.testing.assert_close(distance, torch.full((1, 1, 3, 2), (3 * 0.01 / EPS) ** 0.5), rtol=1e-4, atol=0)


def test_a_level_without_channels_changes_nothing() -> None:
    good, test = levels(NESTED, 40), levels(NESTED, 2, seed=1)
    for i in range(3):
        less, lesser = list(good), list(test)
        less[i], lesser[i] = good[i][:, :, :0], test[i][:, :, :0]
        for learner in (RunningSums, FewSamples):
            found = learned(less, learner=learner).distance(lesser)
            np.testing.assert_allclose(found.numpy(), literal(less, lesser), rtol=2e-5)


def held_bytes(sums: RunningSums) -> int:
    tensors = [*sums._shift, *sums._sums, *sums._cross, *(f for features, _ in sums._batches for f in features)]
    return sum(t.numel() * t.element_size() for t in tensors)


def test_memory_does_not_grow_with_the_images() -> None:
    most = []
    for images in (50, 245):
        gaussians = CellGaussians(NESTED, NESTED[0], WIDE, 1, EPS)
        sums = RunningSums(gaussians)
        features = levels(NESTED, images)
        peak = 0
        for i in range(0, images, 8):
            sums.add([f[i : i + 8] for f in features])
            peak = max(peak, held_bytes(sums))
        most.append(peak)
        assert peak <= RunningSums.bytes(gaussians)
    assert most[0] == most[1]


def test_units_that_share_rows_save_most_of_the_matrices() -> None:
    """EfficientNet-Lite0 at 256 pixels, its subset of 100 channels: 34 MB where a matrix per cell takes 164 MB."""
    gaussians = CellGaussians([(64, 64), (32, 32), (16, 16)], (64, 64), [14, 23, 63], 1, EPS)
    assert gaussians.floats() < 0.22 * 64 * 64 * 100 * 100
    assert gaussians.floats(images=10) < gaussians.floats()
    assert [len(level.source) for level in gaussians.levels] == [256, 1024, 4096]
    assert [level.siblings for level in gaussians.levels] == [256, 4, 4]


@pytest.mark.parametrize("learner", [RunningSums, FewSamples])
def test_predicted_size_is_the_size(learner: Learner) -> None:
    good = levels(NESTED, 7, positions=2)
    gaussians = learned(good, learner=learner)
    predicted = gaussians.floats(7 if learner is FewSamples else None)
    assert sum(t.numel() for t in gaussians.state_dict().values()) == predicted


def test_bad_features_or_too_small_an_eps_are_named() -> None:
    (good,) = levels([(3, 2)], 2)
    with pytest.raises(InputError, match="raise eps"):
        learned([good.repeat(1, 1, 20, 1, 1)], eps=1e-30)
    good[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite: look for NaN"):
        learned([good])
    with pytest.raises(InputError, match="not finite: look for NaN"):
        learned([good], learner=FewSamples)
