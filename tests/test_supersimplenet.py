"""SuperSimpleNet against its formulas written out, what known defects teach it, its presets, and golden scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pickglass as pg
from pickglass.data import Row, Table, paint
from pickglass.detectors.loading import silent
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.methods.supersimplenet import SuperSimpleNet, perlin_noise
from pickglass.nn.maps import kept_cells
from pickglass.testing import textures

SHAPES = [(4, 6, 5), (6, 3, 3)]
TINY: dict[str, Any] = {"size": 64, "epochs": 4, "batch": 4, "classes": 4}


def a_batch(batch: int, positions: int = 1, seed: int = 0, keep: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(2 * torch.randn(batch, positions, *shape, generator=generator) + 1 for shape in SHAPES)
    kept = torch.rand(batch, positions, 12, 10, generator=generator) < 0.6 if keep else None
    return Batch(levels, keep=kept)


def built(positions: int = 1, n_defects: int = 0, **settings: Any) -> SuperSimpleNet:
    detector = SuperSimpleNet(**{"size": 12, "smoothing": 0.0, "layers": ("a", "b"), "classes": 3, **settings})
    detector.build(list(SHAPES), positions, 0)
    detector.begin_fit(FitContext(4, list(SHAPES), positions, 0, 1.0, silent, n_defects=n_defects))
    return detector


def focal(p: torch.Tensor) -> torch.Tensor:
    return -((1 - p) ** 4) * p.log()


@pytest.mark.parametrize("keep", [False, True])
def test_the_loss_is_the_papers(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = built(), a_batch(2, keep=keep)
    places = torch.zeros(12, 10, dtype=torch.bool)
    places[2:5, 3:7] = True
    drawn = iter([places, torch.zeros_like(places), torch.zeros_like(places), places])
    monkeypatch.setattr(detector, "_places", lambda grid: next(drawn))
    monkeypatch.setattr(
        torch, "randn", lambda *size, generator, **kind: torch.ones(*size, **kind)
    )  # the noise is where, and as large as, it is said to be
    assert detector.heads is not None
    detector.heads.train()
    found = float(detector.loss(batch)[0].detach())

    noisy = torch.stack([places, torch.zeros_like(places), torch.zeros_like(places), places])
    inside = torch.ones(2, 12, 10, dtype=torch.bool) if not keep else kept_cells(batch.keep, (12, 10))[:, 0]  # type: ignore[index]
    inside = torch.cat([inside, inside])
    target = noisy & inside
    levels = [torch.cat([x[:, 0], x[:, 0]]) for x in batch.levels]
    x = torch.cat([F.interpolate(level, (12, 10), mode="bilinear") for level in levels], dim=1)
    tree = {n: t[0] for n, t in (*detector.heads.tree.named_parameters(), *detector.heads.tree.named_buffers())}
    x = F.conv2d(F.avg_pool2d(x, 3, 1, 1), tree["adaptor.weight"], tree["adaptor.bias"]) + 0.4 * target[:, None]
    y = F.conv2d(x, tree["segment.0.weight"], tree["segment.0.bias"])
    m = F.conv2d(F.leaky_relu(F.batch_norm(y, None, None, training=True), 0.2), tree["segment.3.weight"])[:, 0]
    c = F.conv2d(torch.cat([x, m[:, None]], 1), tree["classify.0.weight"], tree["classify.0.bias"], padding=2)
    c = F.relu(F.batch_norm(c, None, None, training=True))
    scores = []
    for i in range(4):
        cells = inside[i]
        own, features = m[i][cells], c[i][:, cells]
        pooled = torch.cat([features.mean(1), features.amax(1), own.mean()[None], own.max()[None]])
        scores.append(pooled @ tree["decide.weight"][0] + tree["decide.bias"][0])
    good, bad = m[inside & ~target], m[inside & target]
    expected = (good + 0.5).clamp(min=0).mean() + (0.5 - bad).clamp(min=0).mean()
    expected += torch.cat([focal(torch.sigmoid(-good)), focal(torch.sigmoid(bad))]).mean()
    labels = target.flatten(1).any(1)
    expected += torch.stack([focal(torch.sigmoid(s if b else -s)) for s, b in zip(scores, labels, strict=True)]).mean()
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_perlin_noise_is_smooth_and_of_the_published_range() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [perlin_noise((32, 48), generator) for _ in range(40)]
    assert all(noise.shape == (32, 48) and float(noise.abs().max()) <= 1 for noise in drawn)
    shares = np.array([[float((noise > t).float().mean()) for t in (0.2, 0.6)] for noise in drawn])
    assert 0.1 < shares[:, 0].mean() < 0.4
    assert shares[:, 1].mean() < shares[:, 0].mean() / 2  # a higher threshold: smaller places
    assert np.std([float(noise.diff(dim=1).abs().mean()) for noise in drawn]) > 0.01  # lattices of many sizes


@pytest.mark.parametrize("known", [False, True])
def test_the_gradient_of_the_image_score_reaches_the_map_with_labels_alone(known: bool) -> None:
    detector = built(n_defects=2 if known else 0)
    if known:
        detector.observe_defects(a_batch(2, seed=1), None)
    heads = detector.heads
    assert heads is not None
    _, scores = heads(a_batch(4).levels, None, None, detector._known is None)
    scores.sum().backward()
    gradient = heads.tree.segment[0].weight.grad  # type: ignore[index, union-attr]
    assert (gradient is not None and bool(gradient.abs().sum() > 0)) == known  # type: ignore[union-attr, operator]


def test_noise_stays_away_from_real_defects_and_their_masks_are_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = built(n_defects=3, known_share=1.0)
    truth = torch.zeros(2, 1, 12, 10, dtype=torch.bool)
    truth[:, :, :6] = True
    detector.observe_defects(a_batch(2, seed=1), truth)
    detector.observe_defects(a_batch(1, seed=2), None)
    monkeypatch.setattr(detector, "_places", lambda grid: torch.ones(grid, dtype=torch.bool))
    asked: list[Any] = []
    heads = detector.heads
    assert heads is not None
    real = heads.forward
    monkeypatch.setattr(heads, "forward", lambda *inputs: asked.append(inputs) or real(*inputs))  # type: ignore[func-returns-value]
    losses = detector.loss(a_batch(6))
    levels, (noisy, _), keep, stop = asked[0]
    assert levels[0].shape[0] == 12  # six good and six known
    assert keep is None
    assert not stop
    assert noisy.shape[0] == 24  # each of them twice
    of_known = noisy[6:12, 0]
    shares = of_known.float().mean((1, 2)).tolist()
    assert set(shares) == {0.0, 0.5}  # without a mask: nowhere; with one: but for the defect
    assert not bool(of_known[:, :6].any())
    assert bool(torch.isfinite(losses).all())


def test_standardised_channels_have_mean_0_and_deviation_1() -> None:
    detector, batch = built(), a_batch(16)
    detector.observe(batch)
    (phase,) = detector.phases()
    mean, std = phase.module.tree.mean[0], phase.module.tree.std[0]  # type: ignore[index, union-attr]
    torch.testing.assert_close(mean[:4], batch.levels[0].mean((0, 1, 3, 4)))
    torch.testing.assert_close(std[4:], batch.levels[1].std((0, 1, 3, 4), correction=0))


# -- known defects -----------------------------------------------------------------------------------------------------


def some_defects(n: int, masks: bool = True, seed: int = 7) -> Table:
    rows = []
    for i, image in enumerate(textures(n, 64, seed)):
        painted = paint(image, "hole", 20, np.random.default_rng(i), contrast=2.0)
        mask = (painted.mask * np.uint8(255)) if masks else None
        rows.append(Row(f"bad:{i}", "test", 1, "hole", mask=mask, pixels=painted.image))
    return Table(rows)


@pytest.mark.slow
def test_known_defects_are_learned_told_and_not_held_back_for_the_threshold() -> None:
    good = textures(12, 64)
    plain = SuperSimpleNet(**TINY).fit(good, engine="torch")
    taught = SuperSimpleNet(**TINY).fit(good, defects=some_defects(4), engine="torch")
    unmarked = SuperSimpleNet(**TINY).fit(good, defects=some_defects(4, masks=False), engine="torch")
    judged = some_defects(6, seed=8)
    gap = {}
    for name, detector in {"plain": plain, "taught": taught, "unmarked": unmarked}.items():
        detector.top_share = 0.0  # the classification head, which learns from both
        found = detector.predict(judged, engine="torch").scores
        gap[name] = float(found.mean() - detector.predict(textures(6, 64, 9), engine="torch").scores.mean())
    assert gap["taught"] > gap["plain"]
    assert gap["unmarked"] > gap["plain"]
    known = taught.provenance.known_defects
    assert known is not None
    assert [d["use"] for d in known] == ["learned"] * 4
    assert taught.calibration is not None
    assert taught.calibration.n == plain.calibration.n  # type: ignore[union-attr]
    assert taught.calibration.unsure_threshold is None
    assert plain.provenance.known_defects is None


def test_tiles_want_masks() -> None:
    detector = SuperSimpleNet(**TINY).tiled(size=128, tile=64, stride=64)
    with pytest.raises(InputError, match=r"4 known defects have no mask, e\.g\. 'bad:0'.*which of the tiles"):
        detector.fit(textures(8, 128), defects=some_defects(4, masks=False), engine="torch")


@pytest.mark.slow
def test_tiles_learn_from_masks() -> None:
    defects = some_defects(3)
    for heads in (2, None):
        more = {} if heads is None else {"heads": heads}
        detector = SuperSimpleNet(**{**TINY, "epochs": 1}).tiled(size=(64, 160), tile=64, stride=48, **more)
        detector.fit(textures(6, 64), defects=defects, engine="torch")
        assert np.isfinite(detector.predict(defects, engine="torch").scores).all()


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_paper_preset_has_the_papers_heads() -> None:
    detector = SuperSimpleNet.from_preset("paper")
    with torch.device("meta"):
        net = detector._network([(512, 32, 32), (1024, 16, 16)])
    assert net.grid == (64, 64)  # layer2 twice as fine, layer3 four times
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes["adaptor.weight"] == (1536, 1536, 1, 1)
    assert shapes["segment.0.weight"] == (1024, 1536, 1, 1)
    assert shapes["classify.0.weight"] == (128, 1537, 5, 5)
    assert shapes["decide.weight"] == (1, 258)
    (plan,) = [phase.plan for phase in _phases(detector)]
    assert (plan.epochs, plan.batch, plan.lr, plan.optimiser) == (300, 32, 2e-4, "adamw")
    rates = [plan.rate(step, 100) for step in (0, 79, 80, 89, 90, 99)]
    assert rates == pytest.approx([2e-4, 2e-4, 8e-5, 8e-5, 3.2e-5, 3.2e-5])
    assert (detector.noise, detector.standardise, detector.scored_share) == (0.015, False, 0)


def _phases(detector: SuperSimpleNet) -> Any:
    detector.build([(4, 2, 2), (4, 1, 1)], 1, 0)
    return detector.phases()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upscale": 0}, "upscale=0: expected at least 1"),
        ({"patch": 2}, "patch=2: expected an odd number"),
        ({"noise": 0.0}, r"noise=0\.0: expected a number above 0"),
        ({"known_share": 0}, "known_share=0: expected a number above 0"),
        ({"perlin_threshold": 1.5}, r"perlin_threshold=1\.5: expected a number above -1 and below 1"),
        ({"hidden": 0}, "hidden=0: expected a number of channels"),
    ],
)
def test_bad_settings_name_the_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SuperSimpleNet(size=64, **settings).build(SHAPES, 1, 0)


@pytest.mark.golden
def test_golden_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    monkeypatch.setattr("pickglass.nn.training.loop._fast_bfloat16", lambda device: False)  # not every machine has it
    detector = pg.SuperSimpleNet(**TINY, top_share=0.0)
    detector.fit(textures(12, 64), calibrate=0, engine="torch")
    found = detector.predict(textures(3, 64, seed=1), engine="torch")
    np.testing.assert_allclose(found.scores, GOLDEN, atol=5e-3)


GOLDEN = [-0.543923, 1.006217, 0.683022]
