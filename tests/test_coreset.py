"""The blocked greedy against the greedy done literally, one point and one pass at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from pickglass.errors import InputError
from pickglass.nn.maps import exact_float32, rounding_bound
from pickglass.nn.search.coreset import greedy_coreset, random_projection


def plain_greedy(points: np.ndarray, size: int, first: int) -> list[int]:
    """Algorithm 1 of the PatchCore paper in float64: the farthest point, again and again; ties to the lowest index."""
    x = points.astype(np.float64)
    chosen = [first]
    distance = ((x - x[first]) ** 2).sum(1)
    distance[first] = -np.inf
    while len(chosen) < size and distance.max() > 0:
        best = int(distance.argmax())
        chosen.append(best)
        distance = np.minimum(distance, ((x - x[best]) ** 2).sum(1))
        distance[chosen] = -np.inf
    return chosen


@pytest.mark.parametrize("candidates", [1, 3, 16, 64, 500])
@given(seed=integers(0, 2**32 - 1))
@settings(max_examples=8)
@pytest.mark.slow
def test_equal_to_the_plain_greedy_on_integers_full_of_ties(candidates: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 4, (300, int(rng.integers(2, 7)))).astype(np.float32)
    coreset = greedy_coreset(torch.from_numpy(points), 60, first=5, candidates=candidates)
    assert coreset.indices.tolist() == plain_greedy(points, 60, 5)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_plain_greedy_in_float64(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(2000, 24))
    coreset = greedy_coreset(torch.from_numpy(points), 300, first=0, candidates=128)
    assert coreset.indices.tolist() == plain_greedy(points, 300, 0)
    assert coreset.close_calls == 0


def test_in_float32_equal_up_to_the_first_close_call() -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(4000, 8)) @ rng.normal(size=(8, 64)) + 100).astype(np.float32)  # far from the origin
    coreset = greedy_coreset(torch.from_numpy(points), 400, first=0)
    same = 0
    for ours, theirs in zip(coreset.indices.tolist(), plain_greedy(points, 400, 0), strict=True):
        if ours != theirs:
            break
        same += 1
    assert same == 400 or coreset.close_calls > 0
    assert same > 200


def test_all_points_when_all_are_asked_for() -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    coreset = greedy_coreset(points, 50, candidates=7)
    assert sorted(coreset.indices.tolist()) == list(range(50))
    assert coreset.radius == 0


def test_ends_early_where_only_duplicates_are_left() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 1.0], [0.0, 0.0], [3.0, 1.0], [5.0, 5.0]])
    coreset = greedy_coreset(points, 5)
    assert len(coreset.indices) == 3
    assert {tuple(points[i].tolist()) for i in coreset.indices} == {(0, 0), (3, 1), (5, 5)}


def test_starts_at_the_point_farthest_from_the_most_central_one() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    assert greedy_coreset(points, 2).indices.tolist() == [3, 0]


def test_radius_covers_every_point() -> None:
    points = torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    coreset = greedy_coreset(points, 40)
    nearest = torch.cdist(points.double(), points[coreset.indices].double()).min(1).values
    assert coreset.radius == pytest.approx(float(nearest.max()), rel=1e-5)


def test_input_is_untouched_and_progress_rises() -> None:
    points = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    before = points.clone()
    steps: list[tuple[int, int]] = []
    greedy_coreset(points, 100, candidates=20, progress=lambda done, total: steps.append((done, total)))
    assert torch.equal(points, before)
    assert steps[-1] == (100, 100)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_few_passes() -> None:
    points = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(3))
    assert greedy_coreset(points, 1000).passes < 40  # one by one it is 1,000


@pytest.mark.parametrize(
    ("points", "size", "message"),
    [
        (torch.zeros(3, 2), 0, "coreset size 0: expected 1 to 3"),
        (torch.zeros(3, 2), 4, "coreset size 4: expected 1 to 3"),
        (torch.zeros(3, 2, dtype=torch.int64), 1, "expected a floating"),
        (torch.zeros(3), 1, "expected a floating"),
        (torch.tensor([[0.0], [float("nan")]]), 1, "not finite"),
    ],
)
def test_bad_input(points: torch.Tensor, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        greedy_coreset(points, size)


def test_projection_keeps_distances_in_expectation_and_is_seeded() -> None:
    points = torch.randn(200, 512, generator=torch.Generator().manual_seed(4))
    low = random_projection(points, 128, seed=0)
    assert low.shape == (200, 128)
    ratio = torch.pdist(low) / torch.pdist(points)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(low, random_projection(points, 128, seed=0))
    assert not torch.equal(low, random_projection(points, 128, seed=1))
    assert random_projection(points, 257, seed=0) is points


def test_exact_float32_restores_the_callers_setting() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rounding_bound_holds_for_real_dot_products() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000, 152)).astype(np.float32)
    error = np.abs((x * y).sum(1, dtype=np.float32) - (x.astype(np.float64) * y).sum(1))
    assert (error <= rounding_bound(152) * np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)).all()
