"""The searches against brute force in float64."""

from __future__ import annotations

import pytest
import torch

from pickglass.nn import maps
from pickglass.nn.search import neighbours
from pickglass.nn.search.neighbours import BankIndex, nearest_of_each, nearest_plain


def clouds(n: int = 300, m: int = 2300, c: int = 37, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(9, c, generator=generator)
    points = torch.randn(n + m, 9, generator=generator) @ mix + 0.2 * torch.randn(n + m, c, generator=generator) + 5
    return points[:n], points[n:]


def truth(queries: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    distance = (queries[:, None].double() - bank.double()).square().sum(2).sqrt()
    best = distance.min(1)
    return best.values, best.indices


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.slow
def test_search_is_exact(bfloat16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "has_amx", lambda: amx)
    queries, bank = clouds()
    found = BankIndex(bank, bfloat16=bfloat16)
    assert (found.scan is not None) is bfloat16
    assert found.scan is None or (found.scan.directions is None) is amx
    result = found.search(queries)
    distance, index = truth(queries, bank)
    assert torch.equal(result.indices, index)
    torch.testing.assert_close(result.distances.double(), distance, rtol=1e-6, atol=1e-6)
    assert result.fallbacks == 0


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.slow
def test_distances_agree_with_search_also_for_members_of_the_bank(bfloat16: bool) -> None:
    queries, bank = clouds()
    queries = torch.cat([queries, bank[:200], bank[:50] + 1e-4])
    got = BankIndex(bank, bfloat16=bfloat16).distances(queries)
    torch.testing.assert_close(got.double(), truth(queries, bank)[0], rtol=1e-5, atol=1e-6)
    assert bool((got[300:500] == 0).all())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_ties_go_to_the_lowest_index(bfloat16: bool) -> None:
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    bank = torch.cat([corners, corners])  # its mean is 0, so nothing is rounded
    queries = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert BankIndex(bank, bfloat16=bfloat16).search(queries).indices.tolist() == [0, 2, 0]


def test_queries_with_too_many_possible_neighbours_fall_back_and_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    close = torch.randn(2000, 37, generator=torch.Generator().manual_seed(1))
    close[0] += 1000  # far out: the bound has to allow for it, and then every point is possible
    queries = close[1:65] + 0.1
    index = BankIndex(close, bfloat16=True)
    result = index.search(queries)
    assert result.fallbacks == 64
    assert torch.equal(result.indices, truth(queries, close)[1])
    monkeypatch.setattr(neighbours, "_PATIENCE", 10)
    index.search(queries)
    assert index.scan is None  # given up for float32


@pytest.mark.parametrize("far", [1.0, 1000.0])  # lengths of which bfloat16 loses much
def test_a_scan_along_few_directions_never_says_that_a_point_is_farther_than_it_is(
    far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "has_amx", lambda: False)
    queries, bank = clouds(50, 700, 60)
    bank[13], queries[7] = far * bank[13], far * queries[7]
    index = BankIndex(bank, bfloat16=True)
    assert index.scan is not None
    assert index.scan.directions is not None
    assert index.scan.channels < 60
    x = queries - index.middle
    scanned = index.scan.lows(x, index.scan.room(50))
    nearest = truth(queries, bank)[0].float()
    possible = scanned.lows <= index.scan.limits(scanned, nearest * (1 + 1e-6))  # (G, n)
    group_of = index.order.view(-1, 32)  # (G, g)
    for query, best in enumerate(truth(queries, bank)[1].tolist()):
        assert bool(possible[(group_of == best).any(1), query].all())
    if far == 1:
        assert possible.float().mean() < 0.5  # and it rules most of the others out


@pytest.mark.parametrize("m", [1, 5, 32, 33, 64, 1000])
def test_points_are_ordered_once_each_and_groups_lie_close_together(m: int) -> None:
    points = torch.randn(m, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([20.0, 1.0, 0.1])
    order = neighbours._close_together(points)
    assert order.sort().values.tolist() == list(range(m))
    groups = order.split(32)
    assert all(bool((own.diff() > 0).all()) for own in groups)
    if m == 1000:
        within = torch.stack([points[own].std(0)[0] for own in groups]).mean()
        assert within < points.std(0)[0] / 5


def test_equal_points_are_put_into_groups_too() -> None:
    bank = torch.ones(2000, 7)
    assert BankIndex(bank, bfloat16=True).distances(torch.zeros(3, 7)).tolist() == pytest.approx([7**0.5] * 3)


def test_the_scan_finds_the_nearest_of_points_that_bfloat16_cannot_tell_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    centres = 10 * torch.randn(100, 19, generator=generator)
    bank = (centres.repeat_interleave(20, 0) + 1e-3 * torch.randn(2000, 19, generator=generator))[:1987]
    queries = torch.cat([centres + 1e-2 * torch.randn(100, 19, generator=generator), bank[-5:], 1e4 * centres[:3]])
    index = BankIndex(bank, bfloat16=True)
    assert index.scan is not None
    scanned, multiplied = index.search(queries), BankIndex(bank, bfloat16=False).search(queries)
    assert bool((scanned.distances <= multiplied.distances).all())
    # within a group, expanded squares in float32 decide, so of equals up to their rounding any may win
    away = queries.sub(bank.mean(0)).norm(dim=1) + bank.sub(bank.mean(0)).norm(dim=1).max()
    allowed = 2 * maps.rounding_bound(20) * away.double().square()
    assert bool((scanned.distances.double().square() <= truth(queries, bank)[0].square() + allowed).all())
    assert bool((scanned.indices < len(bank)).all())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_query_without_numbers_leaves_the_others_alone(bfloat16: bool) -> None:
    queries, bank = clouds(40, 100, 5)
    index = BankIndex(bank, bfloat16=bfloat16)
    expected = index.distances(queries)
    queries[3], queries[7, 0] = torch.nan, torch.inf
    got = index.distances(queries)
    assert not got[[3, 7]].isfinite().any()
    others = [i for i in range(40) if i not in (3, 7)]
    assert torch.equal(got[others], expected[others])


def test_blocks_of_queries_and_of_points_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = clouds(150, 333, 8)
    expected = BankIndex(bank, bfloat16=False).search(queries)
    for name, value in (("_QUERIES", 64), ("_POINTS", 64), ("_LOWS", 11 * 70), ("_FETCHED", 500)):
        monkeypatch.setattr(neighbours, name, value)
    for bfloat16 in (False, True):
        got = BankIndex(bank, bfloat16=bfloat16).search(queries)
        assert torch.equal(got.indices, expected.indices)
        assert torch.equal(got.distances, expected.distances)


@pytest.mark.parametrize("m", [1, 64, 197])
def test_plain_search_is_the_definition_for_members_of_the_bank_too(m: int) -> None:
    queries, bank = clouds(60, 2 * m)
    banks = torch.stack([bank[:m], bank[m:]])  # (2, m, C)
    asked = torch.stack([torch.cat([queries, own, own[-1:], own[:1] + 1e-3]) for own in banks])
    distance, index = nearest_plain(asked, banks)
    for p, own in enumerate(banks):
        expected = truth(asked[p], own)
        assert torch.equal(index[p], expected[1])  # the last point, which fills the last group, has its own index
        torch.testing.assert_close(distance[p].double(), expected[0], rtol=1e-6, atol=1e-6)
        assert bool((distance[p, 60:-1] == 0).all())


def test_plain_search_counts_the_first_of_equals() -> None:
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    queries = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert nearest_plain(queries, corners.repeat(50, 1))[1].tolist() == [0, 2, 0]


def test_norms_are_kept_in_parts_that_few_bits_hold() -> None:
    norms = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 300
    parts = neighbours._parts(norms)
    assert torch.equal(parts[0] + parts[1] + parts[2], norms)
    for part in parts:
        assert torch.equal(part.bfloat16().float(), part)


def test_all_banks_at_once_are_each_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = clouds(300, 700)
    both = torch.stack([queries[:150], queries[150:]]), torch.stack([bank[:350], bank[350:]])
    monkeypatch.setattr(neighbours, "_PRODUCTS", 2 * 350 * 64)  # several blocks
    got = nearest_of_each(*both)
    for own, q, b in zip(got, *both, strict=True):
        torch.testing.assert_close(own.double(), truth(q, b)[0], rtol=1e-6, atol=1e-6)
    assert bool((nearest_of_each(both[1], both[1]) == 0).all())


def test_bank_of_one_point() -> None:
    distances = BankIndex(torch.ones(1, 4)).distances(torch.zeros(3, 4))
    assert distances.tolist() == [2.0, 2.0, 2.0]


def test_detection_of_bfloat16_reads_the_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    class Flags:
        text = ""

        def __init__(self, _: str) -> None: ...
        def is_file(self) -> bool:
            return True

        def read_text(self) -> str:
            return f"processor: 0\nflags\t\t: fpu {self.text}\n"

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(maps, "Path", Flags)
    for text, expected in (("avx512f", False), ("avx512_bf16", True), ("amx_bf16 amx_tile", True)):
        monkeypatch.setattr(Flags, "text", text)
        assert maps.has_fast_bfloat16() is expected
