"""PatchCore against its formulas done literally, its settings, and the conformance suite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError, UnknownName
from pickglass.features.batch import Batch
from pickglass.testing import check_detector, textures

FAST = {"size": 64, "ratio": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"standardise": True, "reweight": 5},
        {"dims": 48, "patch": 5, "top_k": 4, "smoothing": 0.0},
        {"backbone": "resnet18", "layers": ("layer1", "layer2"), "weights": "random", "size": (64, 80)},
    ],
    ids=["standardised-reweighted", "pooled", "resnet18"],
)
@pytest.mark.long
def test_conformance(settings: dict[str, object]) -> None:
    detector = pg.PatchCore(**{**FAST, **settings})  # type: ignore[arg-type]
    assert check_detector(detector, modes=["plain"], n_images=12)


def run(positions: int = 1, n: int = 3, memory_gb: float = 1.0) -> FitContext:
    return FitContext(n, [(4, 6, 5), (3, 3, 3)], positions, 0, memory_gb, lambda *_: None)


def levels(batch: int, positions: int = 1, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, positions, 4, 6, 5, generator=generator),
        torch.randn(batch, positions, 3, 3, 3, generator=generator),
    )


def fitted(positions: int = 1, **settings: object) -> pg.PatchCore:
    detector = pg.PatchCore(**{"size": 256, "ratio": 1.0, "smoothing": 0.0, **settings})  # type: ignore[arg-type]
    detector.begin_fit(run(positions))
    detector.observe(Batch(levels(3, positions)))
    detector.end_fit()
    return detector


def literal_features(image_levels: list[np.ndarray]) -> np.ndarray:
    """Eq. 1-3: the 3x3 mean with zeros beyond the border, levels enlarged bilinearly to the first grid: (h w, C)."""
    parts = []
    h, w = image_levels[0].shape[1:]
    for level in image_levels:
        padded = np.pad(level, ((0, 0), (1, 1), (1, 1)))
        mean = np.zeros_like(level)
        for y in range(level.shape[1]):
            for x in range(level.shape[2]):
                mean[:, y, x] = padded[:, y : y + 3, x : x + 3].sum((1, 2)) / 9
        ys = np.clip((np.arange(h) + 0.5) * level.shape[1] / h - 0.5, 0, level.shape[1] - 1)
        xs = np.clip((np.arange(w) + 0.5) * level.shape[2] / w - 0.5, 0, level.shape[2] - 1)
        y0, x0 = ys.astype(int), xs.astype(int)
        y1, x1 = np.minimum(y0 + 1, level.shape[1] - 1), np.minimum(x0 + 1, level.shape[2] - 1)
        fy, fx = (ys - y0)[:, None], (xs - x0)[None]
        top = mean[:, y0][:, :, x0] * (1 - fx) + mean[:, y0][:, :, x1] * fx
        low = mean[:, y1][:, :, x0] * (1 - fx) + mean[:, y1][:, :, x1] * fx
        parts.append(top * (1 - fy) + low * fy)
    return np.concatenate(parts).reshape(-1, h * w).T


def test_bank_and_distances_are_those_of_the_paper_done_literally() -> None:
    detector = fitted()
    train, test = levels(3), levels(2, seed=1)
    bank = np.concatenate([literal_features([level[i, 0].numpy() for level in train]) for i in range(3)])
    assert detector.bank is not None
    assert detector.bank.shape == (1, 90, 7)
    assert {tuple(np.round(v, 4)) for v in detector.bank[0].numpy()} == {
        tuple(np.round(v, 4)) for v in bank.astype("f4")
    }
    scores, maps = detector.score(Batch(test))
    assert maps.shape == (2, 1, 6, 5)
    for i in range(2):
        own = literal_features([level[i, 0].numpy() for level in test])
        distance = np.sqrt(((own[:, None] - bank[None]) ** 2).sum(2)).min(1)  # eq. 6
        np.testing.assert_allclose(maps[i, 0].numpy().ravel(), distance, rtol=1e-4)
        assert float(scores[i, 0]) == pytest.approx(distance.max(), rel=1e-4)


def test_reweighting_is_equation_7() -> None:
    detector = fitted(reweight=4)
    scores, maps = detector.score(Batch(levels(2, seed=1)))
    assert detector.bank is not None
    bank = detector.bank[0].double().numpy()
    for i in range(2):
        own = literal_features([level[i, 0].double().numpy() for level in levels(2, seed=1)])
        distance = np.sqrt(((own[:, None] - bank[None]) ** 2).sum(2))
        m_test = own[distance.min(1).argmax()]
        s_star, m_star = distance.min(1).max(), bank[distance[distance.min(1).argmax()].argmin()]
        n_b = bank[np.argsort(((bank - m_star) ** 2).sum(1))[:4]]
        around = np.sqrt(((m_test - n_b) ** 2).sum(1))
        expected = (1 - np.exp(s_star) / np.exp(around).sum()) * s_star
        assert float(scores[i, 0]) == pytest.approx(expected, rel=1e-4)
        assert float(maps[i].max()) == pytest.approx(s_star, rel=1e-4)


def test_reweighting_survives_distances_beyond_the_range_of_exp() -> None:
    detector = fitted(reweight=4)
    scores, _ = detector.score(Batch(tuple(1000 * level for level in levels(2, seed=1))))
    assert bool(torch.isfinite(scores).all())


def test_top_k_is_the_mean_of_the_largest() -> None:
    scores, maps = fitted(top_k=3).score(Batch(levels(2, seed=1)))
    expected = maps.flatten(2).sort(2, descending=True).values[..., :3].mean(2)
    torch.testing.assert_close(scores, expected)


def test_pooling_to_a_dimension_is_the_authors_two_steps() -> None:
    detector = fitted(dims=5)
    features = detector._patch_features(levels(1, seed=1))
    unfolded = torch.nn.functional.unfold(levels(1, seed=1)[0][:, 0], 3, padding=1)  # (1, 36, 30)
    first = torch.nn.functional.adaptive_avg_pool1d(unfolded.transpose(1, 2), 5)  # (1, 30, 5)
    low = torch.nn.functional.unfold(levels(1, seed=1)[1][:, 0], 3, padding=1)
    second = torch.nn.functional.adaptive_avg_pool1d(low.transpose(1, 2), 5).transpose(1, 2).view(1, 5, 3, 3)
    second = torch.nn.functional.interpolate(second, (6, 5), mode="bilinear").flatten(2).transpose(1, 2)
    both = torch.nn.functional.adaptive_avg_pool1d(torch.cat([first, second], 2), 5)  # (1, 30, 5)
    torch.testing.assert_close(features[0, 0].flatten(1).T, both[0], rtol=1e-5, atol=1e-6)


def test_standardised_levels_have_unit_variance_in_all() -> None:
    detector = fitted(standardise=True)
    assert detector.bank is not None
    assert detector.scale is not None
    for part in detector.bank[0].split([4, 3], dim=1):
        assert float(part.var(0, unbiased=False).sum()) == pytest.approx(1, rel=1e-3)


def test_positions_are_independent() -> None:
    """P heads at once are P heads one by one."""
    both = fitted(positions=2)
    test = levels(2, 2, seed=1)
    scores, maps = both.score(Batch(test))
    for p in range(2):
        alone = pg.PatchCore(size=256, ratio=1.0, smoothing=0.0)
        alone.begin_fit(run())
        alone.observe(Batch(tuple(level[:, p : p + 1] for level in levels(3, 2))))
        alone.end_fit()
        own_scores, own_maps = alone.score(Batch(tuple(level[:, p : p + 1] for level in test)))
        torch.testing.assert_close(scores[:, p : p + 1], own_scores)
        torch.testing.assert_close(maps[:, p : p + 1], own_maps)


def test_what_is_not_kept_is_neither_in_the_bank_nor_in_a_score() -> None:
    detector = fitted()
    keep = torch.ones(2, 1, 12, 10, dtype=torch.bool)
    keep[:, :, 6:] = False  # the lower three of six rows of cells
    detector.begin_fit(run())
    detector.observe(Batch(levels(3), keep=keep[:1].expand(3, -1, -1, -1)))
    detector.end_fit()
    assert detector.bank is not None
    assert detector.bank.shape == (1, 3 * 3 * 5, 7)
    test = levels(2, seed=1)
    test[0][:, :, :, 4] += 10  # far from all, but outside
    scores, maps = detector.score(Batch(test, keep=keep))
    assert torch.equal(scores, maps[:, :, :3].amax((2, 3)))
    assert bool((detector.score(Batch(test))[0] > scores).all())
    assert torch.equal(detector.judge(Batch(test, keep=keep))[1][:, 3:].amax((1, 2)), maps[:, 0, :3].amin((1, 2)))


@pytest.mark.slow
def test_a_small_memory_keeps_a_coreset_of_what_is_held() -> None:
    good = textures(30, 64)
    whole = pg.PatchCore(size=64, ratio=0.05).fit(good, calibrate=0, engine="torch")
    details = whole.provenance.details
    assert details["reductions"] == 0
    n = details["patches"]
    budget = 0.4 * n * 4 * 3 * 152 / 1e9
    tight = pg.PatchCore(size=64, ratio=0.05).fit(good, calibrate=0, memory_gb=budget, batch=4, engine="torch")
    assert tight.provenance.details["reductions"] > 0
    assert tight.provenance.details["bank"] == math.ceil(0.05 * n)
    assert tight.provenance.details["radius"] < 2 * details["radius"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, "ratio=0.0: expected a share above 0"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"patch": 2}, "patch=2: expected an odd number"),
        ({"reweight": -1}, "reweight=-1"),
        ({"reweight": 3, "top_k": 2}, "set top_k=1 or reweight=0"),
        ({"standardise": True, "dims": 8}, "set one of them"),
        ({"top_k": 0}, "top_k=0"),
        ({"ratio": 1.0, "max_bank_mb": 0.1}, "lower ratio to"),
        ({"size": "big"}, "size='big'"),
        ({"size": (64, 0)}, "size="),
    ],
)
def test_bad_settings_name_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pg.PatchCore(**{"size": 64, **settings}).fit(textures(4, 64), engine="torch")  # type: ignore[arg-type]


def test_a_budget_below_the_bank_is_refused() -> None:
    with pytest.raises(InputError, match="raise memory_gb to"):
        pg.PatchCore(size=64, ratio=0.9).fit(textures(4, 64), memory_gb=1e-5, engine="torch")


def test_presets_and_settings() -> None:
    paper = pg.PatchCore.from_preset("paper", size=320)
    assert paper.configuration()["backbone"] == "wide_resnet50_2"
    assert (paper.size, paper.smoothing, paper.dims) == (320, 4.0, 1024)
    with pytest.raises(UnknownName, match="unknown preset of PatchCore 'papr'"):
        pg.PatchCore.from_preset("papr")
    with pytest.raises(UnknownName, match=r"unknown setting of PatchCore 'ration'.*ratio"):
        pg.PatchCore.configured({"ration": 0.1})


@pytest.mark.slow
@pytest.mark.long
def test_the_paper_preset_runs_on_random_weights() -> None:
    detector = pg.PatchCore.from_preset("paper", weights="random", size=64).fit(
        textures(3, 64), calibrate=0, engine="torch"
    )
    assert detector.bank is not None
    assert detector.bank.shape == (1, math.ceil(0.1 * 3 * 64), 1024)


@pytest.mark.slow
def test_the_default_bank_is_bounded_and_a_ratio_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickglass.methods.patchcore._MOST", 20)
    good = textures(10, 64)  # 640 patches
    for ratio, kept in ((None, 7), (0.1, 64)):
        assert (
            pg.PatchCore(size=64, ratio=ratio).fit(good, calibrate=0, engine="torch").provenance.details["bank"] == kept
        )
    many = np.concatenate([good] * 4, axis=2)  # 2,560 patches
    for ratio, kept in ((None, 20), (0.01, 26)):
        detector = pg.PatchCore(size=(64, 256), ratio=ratio).fit(many, calibrate=0, engine="torch")
        assert detector.provenance.details["bank"] == kept


def test_brighter_copies_are_learned_as_images_of_their_own(tmp_path: Path) -> None:
    good = textures(4, 64) // 2  # nothing becomes whiter than white
    settings: dict[str, Any] = {"size": 64, "ratio": 1.0, "place_scale": False}
    detector = pg.PatchCore(**settings, brightness=(0.5, 1.5), rotations=2).fit(good, engine="torch")
    assert detector.provenance.details["patches"] == 6 * 4 * 64
    assert detector.calibration is not None
    assert detector.calibration.source == "left out"
    for factor in (1, 0.5, 1.5):
        asked = good.astype(np.float32) / 255 * factor
        assert float(detector.predict(asked, engine="torch").scores.max()) < 0.05
    assert float(detector.predict(good.astype(np.float32) / 255 * 0.75, engine="torch").scores.min()) > 0.1
    assert detector.origins is not None
    assert set(detector.origins[0, :, 0].tolist()) == {0, 1, 2, 3}
    assert set((detector.origins[0, :, 1] // 64).tolist()) == {0, 1}  # the turn, whatever the brightness
    assert pg.load(detector.save(tmp_path / "model.safetensors")).brightness == (0.5, 1.5)  # type: ignore[attr-defined]
    detector.update(textures(2, 64, seed=3), engine="torch")
    assert set(detector.origins[0, :, 0].tolist()) == set(range(6))


@pytest.mark.parametrize("brightness", [0.5, (0,), ("a",), (0.5, None)])
def test_factors_of_brightness_are_checked(brightness: Any) -> None:
    with pytest.raises(InputError, match=r"brightness=.*: expected factors from 0\.1 to 10, e\.g\. \(0\.7, 1\.3\)"):
        pg.PatchCore(size=64, brightness=brightness).fit(textures(4, 64), engine="torch")


@pytest.mark.golden
def test_golden_scores() -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    detector = pg.PatchCore(size=64, ratio=0.1, top_share=0.0).fit(textures(10, 64), calibrate=0, engine="torch")
    found = detector.predict(textures(3, 64, seed=1), engine="torch")
    np.testing.assert_allclose(found.scores, GOLDEN, rtol=2e-4)


GOLDEN = [18.805943, 19.474672, 20.598951]
