"""PaDiM against its formulas done literally, its settings, and the conformance suite."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pickglass import methods
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError, NotFitted
from pickglass.features.batch import Batch
from pickglass.methods.padim import PaDiM
from pickglass.testing import textures

SHAPES = [(4, 6, 4), (3, 3, 2), (5, 3, 2)]


def test_the_low_rank_form_and_its_projection_survive_the_file(tmp_path: Path) -> None:
    detector = PaDiM(size=64, dims=60, reduce="orthogonal").fit(textures(20, 64), engine="torch")
    assert detector.provenance.details["form"] == "low rank"
    loaded = methods.load(detector.save(tmp_path / "model.safetensors"))
    test = textures(3, 64, seed=1)
    first, second = (d.predict(test, engine="torch") for d in (detector, loaded))
    assert (first.scores == second.scores).all()
    assert all((a == b).all() for a, b in zip(first.maps, second.maps, strict=True))


def run(
    n: int = 30, positions: int = 1, shapes: list[tuple[int, int, int]] = SHAPES, memory_gb: float = 4.0
) -> FitContext:
    return FitContext(n, shapes, positions, 3, memory_gb, lambda *_: None)


def levels(batch: int, positions: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, positions, *shape, generator=generator) + 5 for shape in SHAPES)


def fitted(n: int = 30, positions: int = 1, keep: torch.Tensor | None = None, **settings: object) -> PaDiM:
    detector = PaDiM(**{"size": (24, 16), "dims": 7, "smoothing": 0.0, **settings})  # type: ignore[arg-type]
    detector.build(SHAPES, positions, 3)
    detector.begin_fit(run(n, positions))
    for i in range(0, n, 8):
        part = tuple(level[i : i + 8] for level in levels(n, positions))
        detector.observe(Batch(part, keep=None if keep is None else keep[i : i + 8]))
    detector.end_fit()
    return detector


def enlarged(features: tuple[torch.Tensor, ...]) -> np.ndarray:
    """All levels at the first one's grid, twice as fine, by repeating cells: (B, C, 6, 4) float64 of position 0."""
    first, *rest = (f[:, 0].double().numpy() for f in features)
    return np.concatenate([first, *(f.repeat(2, axis=2).repeat(2, axis=3) for f in rest)], axis=1)


def literal(good: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Eq. 1 and 2, cell by cell: (B, h, w)."""
    found = np.zeros((len(test), *test.shape[2:]))
    for i, j in np.ndindex(found.shape[1:]):
        x, y = good[:, :, i, j], test[:, :, i, j]
        mu = x.mean(0)
        sigma = (x - mu).T @ (x - mu) / (len(x) - 1) + 0.01 * np.eye(x.shape[1])
        for b, deviation in enumerate(y - mu):
            found[b, i, j] = np.sqrt(deviation @ np.linalg.inv(sigma) @ deviation)
    return found


@pytest.mark.parametrize("n", [30, 5], ids=["factor", "few images"])
@pytest.mark.parametrize("dims", [3, 7, 12, 100])
def test_subset_is_the_paper_done_literally(dims: int, n: int) -> None:
    detector = fitted(n, dims=dims)
    assert detector.channels is not None
    chosen = detector.channels[0].numpy()
    assert len(set(chosen)) == min(dims, 12)
    assert (np.diff(chosen) > 0).all()
    scores, maps = detector.score(Batch(levels(3, seed=1)))
    expected = literal(enlarged(levels(n))[:, chosen], enlarged(levels(3, seed=1))[:, chosen])
    np.testing.assert_allclose(maps[:, 0].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(scores[:, 0].numpy(), expected.max((1, 2)), rtol=1e-4)


@pytest.mark.parametrize("n", [30, 3], ids=["factor", "few images"])
def test_orthogonal_is_the_projection_done_literally(n: int) -> None:
    detector = fitted(n, reduce="orthogonal")
    assert detector.channels is None
    assert detector.projection is not None
    basis = detector.projection[0].double().numpy()  # (C, D)
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-6)
    assert (detector._gaussians().factor is not None) == (n == 3)
    _, maps = detector.score(Batch(levels(3, seed=1)))
    low = [np.einsum("bchw,cd->bdhw", enlarged(x), basis) for x in (levels(n), levels(3, seed=1))]
    np.testing.assert_allclose(maps[:, 0].numpy(), literal(*low), rtol=1e-4)


def test_orthogonal_with_all_channels_leaves_them_alone() -> None:
    detector = fitted(reduce="orthogonal", dims=12)
    assert detector.projection is None
    test = Batch(levels(2, seed=1))
    torch.testing.assert_close(detector.score(test), fitted(dims=12).score(test))


def test_few_images_switch_the_form_where_it_is_smaller_and_never_the_distances() -> None:
    shapes = [(200, 4, 4)]
    detector = PaDiM(dims=200, size=16, smoothing=0.0)
    generator = torch.Generator().manual_seed(0)
    good, test = (torch.randn(n, 1, 200, 4, 4, generator=generator) for n in (12, 3))
    maps = []
    for n in (12, 500):  # the second is told of more images than come
        detector.build(shapes, 1, 0)
        detector.begin_fit(run(n, shapes=shapes))
        detector.observe(Batch((good,)))
        detail = detector.end_fit()
        assert detail["form"] == ("low rank" if n == 12 else "factor")
        assert detail["images"] == 12
        maps.append(detector.score(Batch((test,)))[1])
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("reduce", "name"), [("subset", "channels"), ("orthogonal", "projection")])
def test_each_position_draws_with_a_seed_of_its_own(reduce: str, name: str) -> None:
    def drawn(seed: int, positions: int) -> torch.Tensor:
        detector = PaDiM(dims=50, reduce=reduce)  # type: ignore[arg-type]
        detector.build([(24, 4, 4), (152, 2, 2)], positions, seed)
        found: torch.Tensor = getattr(detector, name)
        return found

    three = drawn(5, 3)
    assert three.shape == ((3, 50) if reduce == "subset" else (3, 176, 50))
    for p in range(3):
        assert torch.equal(three[p : p + 1], drawn(5 + p, 1))
        assert not torch.equal(three[p], three[p - 1])


def test_levels_give_their_share_of_the_subset() -> None:
    detector = PaDiM()
    detector.build([(24, 64, 64), (40, 32, 32), (112, 16, 16)], 1, 0)
    assert detector._gaussians().channels == [14, 23, 63]  # 13.6, 22.7 and 63.6 in proportion
    before = [0, 0, 0]
    for dims in range(1, 177):
        shares = PaDiM()._laid_out([(24, 4, 4), (40, 2, 2), (112, 1, 1)], 1, dims).channels
        assert sum(shares) == dims
        assert all(now >= then for now, then in zip(shares, before, strict=True))
        before = shares
    assert before == [24, 40, 112]


@pytest.mark.parametrize("settings", [{}, {"reduce": "orthogonal"}], ids=["subset", "orthogonal"])
@pytest.mark.parametrize("n", [30, 3])
def test_positions_are_independent(n: int, settings: dict[str, object]) -> None:
    """P heads at once are P heads one by one, position p with seed + p."""
    both = fitted(n, 2, **settings)
    test = levels(2, 2, seed=1)
    scores, maps = both.score(Batch(test))
    parts = []
    for p in range(2):
        alone = PaDiM(size=(24, 16), dims=7, smoothing=0.0, **settings)  # type: ignore[arg-type]
        alone.build(SHAPES, 1, 3 + p)
        alone.begin_fit(run(n))
        alone.observe(Batch(tuple(level[:, p : p + 1] for level in levels(n, 2))))
        alone.end_fit()
        own_scores, own_maps = alone.score(Batch(tuple(level[:, p : p + 1] for level in test)))
        torch.testing.assert_close(scores[:, p : p + 1], own_scores, rtol=1e-5, atol=0)
        torch.testing.assert_close(maps[:, p : p + 1], own_maps, rtol=1e-5, atol=0)
        parts.append(alone.head_state())
    joined = PaDiM(size=(24, 16), dims=7, smoothing=0.0, **settings)  # type: ignore[arg-type]
    joined.build(SHAPES, 2, 3)
    joined.load_head_state({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    torch.testing.assert_close(joined.score(Batch(test))[1], maps, rtol=1e-5, atol=0)


def test_the_score_is_the_maximum_of_the_smoothed_map() -> None:
    test = Batch(levels(2, seed=1))
    detector, plain = fitted(smoothing=4.0), fitted()
    scores, maps = detector.score(test)
    torch.testing.assert_close(scores, maps.flatten(2).max(2).values, rtol=0, atol=0)
    assert bool((scores < plain.score(test)[0]).all())
    torch.testing.assert_close(maps, detector.smoothed(plain.score(test)[1]))


@pytest.mark.parametrize("n", [30, 5])
def test_what_is_not_kept_is_neither_learned_nor_judged(n: int) -> None:
    region = torch.zeros(24, 16, dtype=torch.bool)
    region[:14, :8] = True  # cells of 4 pixels: the fourth row is half inside
    keep = region.expand(n, 1, -1, -1)
    poisoned = [level.clone() for level in levels(n)]
    poisoned[0][:, :, :, 4:] = poisoned[0][:, :, :, :, 2:] = torch.nan
    detector = PaDiM(size=(24, 16), dims=7, smoothing=0.0)
    detector.build(SHAPES, 1, 3)
    detector.begin_fit(run(n))
    detector.observe(Batch(tuple(poisoned), keep=keep))
    detector.end_fit()
    test = levels(2, seed=1)
    test[0][:, :, :, 4:] += 1e6
    test[0][:, :, :, 3, 1] += 50  # beside the border, which smoothing would spread beyond it
    _, maps = detector.score(Batch(test, keep=keep[:2]))
    whole = fitted(n).score(Batch(test))[1]
    torch.testing.assert_close(maps[..., :4, :2], whole[..., :4, :2], rtol=1e-5, atol=0)
    detector.smoothing = 4.0
    scores, maps = detector.score(Batch(test, keep=keep[:2]))
    torch.testing.assert_close(scores, maps[..., :4, :2].flatten(2).max(2).values, rtol=0, atol=0)
    assert bool((maps.flatten(2).max(2).values > scores).all())


def test_held_memory_is_the_same_for_50_and_245_images() -> None:
    held = []
    for n in (50, 245):
        detector = PaDiM(size=(24, 16), dims=7)
        detector.build(SHAPES, 1, 3)
        detector.begin_fit(run(n))
        most = 0
        for i in range(0, n, 8):
            detector.observe(Batch(tuple(level[i : i + 8].clone() for level in levels(n))))
            assert detector._learner is not None
            sums = [t for part in vars(detector._learner).values() if isinstance(part, list) for t in part]
            waiting = [t for features, _ in detector._learner._batches for t in features]
            tensors = [*(t for t in sums if isinstance(t, torch.Tensor)), *waiting]
            most = max(most, sum(t.numel() * t.element_size() for t in tensors))
        held.append(most)
    assert held[0] == held[1]


WIDE_RESNET_512 = [(256, 128, 128), (512, 64, 64), (1024, 32, 32)]


def remedy(error: InputError) -> int:
    found = re.search(r"lower dims to (\d+)", str(error))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_statistics_mb": 50.0}, r"statistics would take [\d,]+ MB .*128x128 cells.*raise max_statistics_mb"),
        ({"memory_gb": 0.2}, r"would take [\d.]+ GB, more than memory_gb=0.2.*raise memory_gb"),
    ],
)
@pytest.mark.parametrize("n", [300, 20])
def test_what_would_be_too_large_is_refused_with_the_dims_that_fit(
    limits: dict[str, float], message: str, n: int
) -> None:
    memory_gb, largest = limits.get("memory_gb", 4.0), limits.get("max_statistics_mb", 1e5)

    def start(dims: int) -> None:
        detector = PaDiM(backbone="wide_resnet50_2", dims=dims, max_statistics_mb=largest)
        detector.build(WIDE_RESNET_512, 1, 3)
        detector.begin_fit(run(n, shapes=WIDE_RESNET_512, memory_gb=memory_gb))

    with pytest.raises(InputError, match=message) as refused:
        start(550)
    fits = remedy(refused.value)
    start(fits)
    with pytest.raises(InputError):
        start(fits + 1)


def test_where_not_even_one_channel_fits_the_grid_is_to_be_coarser() -> None:
    detector = PaDiM(max_statistics_mb=1e-5)
    detector.build(SHAPES, 1, 3)
    with pytest.raises(InputError, match="lower size, or choose a coarser first layer"):
        detector.begin_fit(run())


def test_the_papers_statistics_take_a_quarter_of_the_papers_memory() -> None:
    detector = PaDiM.from_preset("paper")
    detector.build([(256, 56, 56), (512, 28, 28), (1024, 14, 14)], 1, 0)
    assert detector._gaussians().floats() < 550 * 550 * 56 * 56 / 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": 0}, "dims=0: expected at least 1"),
        ({"reduce": "pca"}, "reduce='pca': expected one of subset, orthogonal"),
        ({"eps": 0.0}, "eps=0.0: expected a variance above 0"),
        ({"max_statistics_mb": 0}, "max_statistics_mb=0: expected megabytes"),
    ],
)
def test_bad_settings_name_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PaDiM(**{"size": 64, **settings}).fit(textures(4, 64))  # type: ignore[arg-type]


def test_half_fitted_is_unfitted() -> None:
    detector = PaDiM(dims=7)
    with pytest.raises(NotFitted):
        detector.score(Batch(levels(1)))
    with pytest.raises(NotFitted):
        detector.observe(Batch(levels(1)))
    with pytest.raises(NotFitted):
        detector.end_fit()
    detector.build(SHAPES, 1, 3)
    detector.begin_fit(run())
    with pytest.raises(NotFitted):
        detector.score(Batch(levels(1)))


@pytest.mark.slow
def test_the_paper_preset_runs_on_random_weights() -> None:
    detector = PaDiM.from_preset("paper", weights="random", size=64)
    assert (detector.smoothing, detector.dims, detector.eps) == (4.0, 550, 0.01)
    detector.fit(textures(3, 64), calibrate=0, engine="torch")
    assert detector.channels is not None
    assert detector.channels.shape == (1, 550)
    assert int(detector.channels.max()) < 1792
    assert detector.provenance.details["cells"] == 16 * 16
    assert bool(np.isfinite(detector.predict(textures(2, 64, seed=1), engine="torch").scores).all())


@pytest.mark.golden
def test_golden_scores() -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    detector = PaDiM(size=64, dims=20).fit(textures(40, 64), calibrate=0, engine="torch")
    found = detector.predict(textures(3, 64, seed=1), engine="torch")
    np.testing.assert_allclose(found.scores, GOLDEN, rtol=2e-4)


GOLDEN = [10.131776, 10.581166, 8.672411]
