"""Naming defects: pooling, the classifier, the two rules of "unknown", the model file, and the commands."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import pickglass as pg
from pickglass.app.label import LabelRequest, label, labelled
from pickglass.app.predict import predict
from pickglass.cli.main import main
from pickglass.data import DataSource, Preprocess, Row, Table, paint
from pickglass.detectors.naming import Namer, fit_namer, found_regions, on_tiles, pooled, projections
from pickglass.detectors.naming_fit import cross_validated, probability_threshold, regression
from pickglass.detectors.tiling import Tiles, TileSettings
from pickglass.errors import DataError, InputError, MissingExtra, UnknownName
from pickglass.features.batch import Batch
from pickglass.nn.pooling import (
    Pooling,
    canvas_shares,
    cell_weights,
    peak_region,
    random_signs,
    region_pairs,
    region_sum,
    signed_root,
)
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

# -- pooling ----------------------------------------------------------------------------------------------------------

TORCH = ComputeOptions(engine="torch")


def test_pooling_agrees_with_literal_loops() -> None:
    rng = np.random.default_rng(0)
    level, shares = rng.normal(size=(2, 3, 4, 2, 3)), rng.random((2, 3, 4, 6))
    shares[1, 2] = 0
    weights = cell_weights(torch.from_numpy(shares), (2, 3)).numpy()
    for b in range(2):
        total, mean, pairs = 0.0, np.zeros(4), np.zeros((4, 4))
        for t in range(3):
            for i in range(2):
                for j in range(3):
                    share = shares[b, t, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
                    x = level[b, t, :, i, j]
                    total += share
                    mean += share * x
                    pairs += share * np.outer(x, x)
        found = region_sum(torch.from_numpy(level), torch.from_numpy(weights))[b].numpy()
        assert found == pytest.approx(mean / total)
        upper = [pairs[i, j] * (1 if i == j else 2**0.5) / total for i in range(4) for j in range(i, 4)]
        assert region_pairs(torch.from_numpy(level), torch.from_numpy(weights))[b].numpy() == pytest.approx(upper)


def test_projected_pairs_keep_the_products_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    level = torch.randn(2, 1, 12, 4, 4, generator=generator) + 0.5
    weights = torch.full((2, 1, 4, 4), 1 / 16)
    whole = region_pairs(level, weights)
    few = region_pairs(level, weights, random_signs(12, 40_000, seed=0))
    assert (few @ few.T).numpy() == pytest.approx((whole @ whole.T).numpy(), rel=0.05)


def test_signed_root_by_hand() -> None:
    assert signed_root(torch.tensor([[4.0, -9.0, 0.0]]))[0].tolist() == pytest.approx([2 / 13**0.5, -3 / 13**0.5, 0])


def test_a_defect_of_one_pixel_does_not_vanish_from_the_canvas() -> None:
    mask = np.zeros((100, 50), bool)
    mask[70, 20] = True
    shares = canvas_shares(mask, Preprocess((20, 20), geometry="letterbox"))
    assert shares.sum() * 25 == pytest.approx(1)  # a pixel of the canvas is 5 x 5 of the image
    assert np.argwhere(shares > 0).tolist() == [[14, 5 + 4]]


def test_the_region_of_the_highest_peak() -> None:
    map_ = np.array([[5, 5, 0, 9], [5, 0, 0, 6], [0, 0, 0, 0]], np.float32)
    right = [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert peak_region(map_, 1.0).astype(int).tolist() == right
    assert peak_region(map_, 8.0).sum() == 1
    assert peak_region(map_, 20.0).astype(int).tolist() == right  # nothing above: above half the peak
    assert peak_region(map_, None).astype(int).tolist() == right
    assert peak_region(np.ones((2, 2), np.float32), None).sum() >= 1
    canvas = found_regions(map_[None], 8.0, (6, 8))
    assert canvas.shape == (1, 6, 8)
    assert np.argwhere(canvas[0].numpy()).tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]


def test_tiles_give_the_region_the_features_that_the_whole_image_gives() -> None:
    tiles = Tiles(TileSettings((8, 8), (8, 8)), (16, 16))
    canvas = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    shares = torch.zeros(2, 16, 16)
    shares[0, 5:12, 6:9], shares[1, 0, 15] = 1, 0.25
    whole, cut = Batch((canvas[:, None],)), Batch((tiles.cut(canvas),))
    both = range(2)
    expected = pooled([on_tiles(whole, None, both, shares)], "average", [None])
    found = pooled([on_tiles(cut, tiles, both, shares)], "average", [None])
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    assert expected[1].numpy() == pytest.approx(canvas[1, :, 0, 15].numpy())
    second = pooled([on_tiles(cut, tiles, [1], shares[1:])], "average", [None])
    assert second[0].numpy() == pytest.approx(expected[1].numpy(), abs=1e-6)


@pytest.mark.parametrize("pooling", ["average", "bilinear"])
def test_tiles_one_after_the_other_are_pooled_as_all_at_once(pooling: Pooling) -> None:
    rng = torch.Generator().manual_seed(0)
    level, shares = torch.randn(1, 5, 3, 4, 4, generator=rng), torch.rand(1, 5, 8, 8, generator=rng)
    at_once = pooled([([level], shares)], pooling, [None])
    parts = [([level[:, i : i + 2]], shares[:, i : i + 2]) for i in range(0, 5, 2)]
    assert pooled(parts, pooling, [None]).numpy() == pytest.approx(at_once.numpy(), abs=1e-6)
    for nothing in ([], [([level], torch.zeros_like(shares))]):
        with pytest.raises(ValueError, match="an empty region has no features"):
            pooled(nothing, pooling, [None])


# -- the classifier ---------------------------------------------------------------------------------------------------


def clouds(n: int, dims: int, apart: float, seed: int = 0, kinds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(kinds), n)
    x = rng.normal(size=(kinds * n, dims))
    x[np.arange(len(y)), y] += apart
    return x, y


def test_the_regression_is_scikit_learns_in_all_dimensions() -> None:
    from sklearn.linear_model import LogisticRegression

    for kinds in (2, 3):
        x, y = clouds(8, 40, 3.0, kinds=kinds)
        (fitted,) = regression(x, y, kinds, [10.0], "average")
        standard = fitted.standard(x)
        assert np.square(standard).sum(1).mean() == pytest.approx(1)
        literal = LogisticRegression(C=10.0, max_iter=2000, tol=1e-8).fit(standard, y)
        assert fitted.probabilities(x) == pytest.approx(literal.predict_proba(standard), abs=1e-3)


def test_nobody_is_judged_by_a_regression_that_saw_the_part() -> None:
    # within a part all is alike; across parts the types are noise: only a leak could tell them
    rng = np.random.default_rng(3)
    parts = np.repeat(np.arange(24), 3)
    y = np.repeat(np.arange(24) % 2, 3)
    x = rng.normal(size=(24, 30))[parts] + 0.01 * rng.normal(size=(72, 30))
    names = [f"part{p}" for p in parts]
    held_out = cross_validated(x, x, y, names, "average", 0).probabilities.argmax(1) == y
    leaking = cross_validated(x, x, y, [str(i) for i in range(72)], "average", 0).probabilities.argmax(1) == y
    assert held_out.mean() < 0.75
    assert leaking.mean() > 0.9


def test_the_threshold_is_the_least_with_enough_names_right() -> None:
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.4])
    right = np.array([1, 1, 1, 0, 1, 1, 0], bool)
    assert probability_threshold(p, right, 0.8) == 0.5  # 5 of 6
    assert probability_threshold(p, right, 0.7) == 0.4  # 5 of 7
    with pytest.raises(InputError, match="do not tell the types apart"):
        probability_threshold(p, right, 0.9)  # 0.7 has 3 of 3 right, but three names are too few


def named_by(x: np.ndarray, y: np.ndarray, **changes: Any) -> Namer:
    features = torch.from_numpy(x).float()
    given = {"layers": ["a"], "levels": [0], "pooling": "average", "signs": [None], **changes}
    groups = given.pop("groups", [str(i) for i in range(len(y))])
    return fit_namer(features, features, [f"type{k}" for k in y], groups, **given)


def test_names_and_both_ways_to_be_unknown() -> None:
    x, y = clouds(12, 10, 8.0)
    namer = named_by(x, y)
    assert namer.settings.about["accuracy"] > 0.9
    fresh, truth = clouds(60, 10, 8.0, seed=1)
    found = namer.named(torch.from_numpy(fresh).float())
    names = [one.type for one in found]
    assert np.mean([name == f"type{k}" for name, k in zip(names, truth, strict=True)]) > 0.85
    assert names.count("unknown") < 25  # about one in twenty by distance, and the unsure ones
    # between two types: unsure, though near
    middle = torch.from_numpy((x[y == 0].mean(0) + x[y == 1].mean(0))[None] / 2).float()
    probabilities, distance = namer.judged(middle)
    assert float(distance) < namer.settings.distance
    assert float(probabilities.max()) < namer.settings.threshold or namer.settings.threshold < 0.6
    # far beyond a type: sure, but like no example
    beyond = torch.from_numpy(x[y == 0].mean(0)[None] * 10).float()
    assert float(namer.judged(beyond)[0].max()) > namer.settings.threshold
    assert namer.named(beyond)[0].type == "unknown"


def test_a_batch_is_named_as_each_alone() -> None:
    x, y = clouds(10, 50, 2.0)
    namer = named_by(x, y, sure=0.4)
    fresh = torch.from_numpy(clouds(5, 50, 2.0, seed=4)[0]).float()
    alone = [namer.named(one[None])[0] for one in fresh]
    for one, other in zip(namer.named(fresh), alone, strict=True):
        assert one.type == other.type
        assert one.probability == pytest.approx(other.probability, rel=1e-9)


def test_what_cannot_be_learned_from_is_refused() -> None:
    x, y = clouds(6, 5, 3.0)
    for change, message in (
        ({"groups": ["one"] * 6 + [str(i) for i in range(12)]}, "of one group, 'one'"),
        ({"sure": 0.0}, "expected a share above 0"),
        ({"pooling": "max"}, "expected one of average, bilinear"),
    ):
        with pytest.raises(InputError, match=message):
            named_by(x, y, **change)
    with pytest.raises(InputError, match="'type0' has 4 examples, expected at least 5"):
        named_by(x[2:], y[2:])
    with pytest.raises(InputError, match="expected at least two"):
        named_by(x[:6], y[:6])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name, name=name)
        return real(name, *rest)

    x, y = clouds(6, 5, 3.0)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install \"pickglass\[train\]\""):
        named_by(x, y)


# -- a model ----------------------------------------------------------------------------------------------------------


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two types with masks, seven images each of 96 x 96 pixels, and four that nothing learns from under ``new``."""
    root = tmp_path_factory.mktemp("label")
    rng = np.random.default_rng(0)
    for i, image in enumerate(textures(18, 96, seed=5)):
        kind = "hole" if i % 2 else "scratch"
        painted = paint(np.ascontiguousarray(image), kind, 28, rng, contrast=2.5)
        folder = root / ("known" if i < 14 else "new")
        write(folder / kind / f"part{i:02d}_a.png", painted.image)
        write(folder / "masks" / kind / f"part{i:02d}_a.png", painted.mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return pg.PatchCore(size=96).fit(textures(16, 96), engine="torch").save(path)


@pytest.mark.parametrize("pooling", ["average", "bilinear"])
@pytest.mark.slow
def test_a_model_learns_to_name_and_stays_the_detector_it_was(
    examples: Path, model: Path, tmp_path: Path, pooling: Any
) -> None:
    out = tmp_path / "named.safetensors"
    result = label(model, examples / "known", out, LabelRequest(pooling), compute=TORCH)
    assert result["types"] == {"hole": 7, "scratch": 7}
    assert result["layers"] == ["stage3", "stage5"]
    assert result["groups"] == 14
    assert result["found"] >= 13
    assert result["accuracy"] > 0.8
    assert result["right"] >= 0.8
    before = predict(model, [examples / "new"], compute=TORCH)["results"]
    after = predict(out, [examples / "new"], compute=TORCH)["results"]
    first, then = pg.load(model), pg.load(out)
    assert (then.model_id(), then.model_version) == (first.model_id(), first.model_version + 1)
    assert then.history[-1].command == "label"
    assert [item["defects"][0]["type"] for item in after] == [item["type"] for item in after]
    assert [item["type"] for item in before] == [None] * 4
    own = ("type", "type_probability", "time")
    for item in (*before, *after):
        for defect in item["defects"]:
            defect["type"] = None
    plain = [[{k: v for k, v in item.items() if k not in own} for item in found] for found in (before, after)]
    assert plain[0] == plain[1]
    bad = [item for item in after if item["verdict"] == "bad"]
    assert len(bad) >= 3
    for item in bad:
        assert item["type"] in (Path(item["path"]).parent.name, "unknown")
        assert 0.5 <= (item["type_probability"] or 0) <= 1
    assert sum(item["type"] != "unknown" for item in bad) >= 2
    with safe_open(out, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("naming.")]  # noqa: SIM118 (not a dict)
    signs = ["naming.signs.1"] if pooling == "bilinear" else []  # 112 channels of stage5 are 6,328 pairs
    assert sorted(names) == [f"naming.{n}" for n in ("bias", "examples", "mean", "scale")] + signs + ["naming.weight"]
    # saved again, it names alike, and scikit-learn was not asked
    again = pg.load(out)
    copy = pg.load(again.save(tmp_path / "copy.safetensors"))
    found = [[one.named for one in d.predict([examples / "new"], engine="torch")] for d in (again, copy)]
    assert found[0] == found[1]


@pytest.mark.slow
def test_good_parts_get_no_name_and_a_new_fit_forgets(examples: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "named.safetensors"
    label(model, examples / "known", out, compute=TORCH)
    detector = pg.load(out)
    good = detector.predict(np.concatenate([textures(4, 96, seed=9), textures(4, 96)]), engine="torch")
    for i, one in enumerate(good):
        assert (one.named is None) == (good.verdict(i) == "good")
    assert "good" in [good.verdict(i) for i in range(4, 8)]  # it was fitted on these
    assert detector.fit(textures(8, 96), engine="torch").namer is None


def test_rows_of_any_role_with_a_type_are_examples(examples: Path, tmp_path: Path) -> None:
    rows = [Row("a", "test", 1, "hole"), Row("b", "train", 0), Row("c", "validate", 1, "dent"), Row("d", "test", 1)]
    assert [row.path for row in labelled(Table(rows))] == ["a", "c"]
    with pytest.raises(DataError, match="none of the 1 images is an example"):
        labelled(Table(rows[1:2]))
    table = labelled(DataSource(examples / "known", group_by="(part[0-9]+)_"))
    assert len(table) == 14
    assert table[0].group == "part01"
    assert str(table[0].mask).endswith("masks/hole/part01_a.png")
    lines = "".join(f"{row.path},{row.defect}\n" for row in table)
    (tmp_path / "list.csv").write_text(f"path,defect\n{lines}")
    assert [row.defect for row in labelled(tmp_path / "list.csv")] == [row.defect for row in table]
    with pytest.raises(DataError):
        labelled(tmp_path / "nowhere")


@pytest.mark.slow
def test_broken_examples_are_all_named_and_the_model_stays(examples: Path, model: Path, tmp_path: Path) -> None:
    table = labelled(examples / "known")
    write(tmp_path / "empty.png", np.zeros((96, 96), np.uint8))
    wrong = [Row("no-such.png", "test", 1, "hole"), Row(table[0].path, "test", 1, "hole", str(tmp_path / "empty.png"))]
    before = model.read_bytes()
    with pytest.raises(DataError, match="2 of 16 examples cannot be used") as caught:
        label(model, Table([*table, *wrong]), compute=TORCH)
    assert "marks nothing" in str(caught.value)
    with pytest.raises(UnknownName, match="layer of the model 'stage4'"):
        label(model, table, request=LabelRequest(layers=["stage4"]), compute=TORCH)
    assert model.read_bytes() == before


@pytest.mark.slow
def test_the_command(
    examples: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    out = tmp_path / "named.safetensors"
    words = ("label", model, examples / "known", "-o", out, "--layers", "stage5", "--engine", "torch")
    code, text, _ = run(*words, "--json")
    result = json.loads(text)
    assert code == 0
    assert result["layers"] == ["stage5"]
    assert sum(result["confusion"]["hole"].values()) == 7
    code, text, err = run(*words)
    assert (code, text) == (2, "")
    assert "--force" in err
    code, text, _ = run(*words, "--force")
    assert "as scratch" in text
    assert "must not judge the names" in " ".join(text.split())
    code, text, _ = run("predict", out, examples / "new", "--engine", "torch")
    assert code == 0
    assert "hole (" in text or "scratch (" in text
    code, text, err = run("label", model, tmp_path)
    assert (code, text) == (2, "")
    assert "error:" in err


def test_projections_only_where_there_are_too_many_pairs() -> None:
    assert projections([40, 112], "average", 0) == [None, None]
    none, signs = projections([40, 112], "bilinear", 0)
    assert none is None
    assert signs is not None
    assert tuple(signs.shape) == (2, 112, 2048)
    assert set(signs.unique().tolist()) == {-1, 1}
