"""What layers tell: held-out classifier, intrinsic dimension, and ``layers --probe``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pickglass.app.see.probe import probe, summary
from pickglass.cli.main import main
from pickglass.data import Preprocess, Row, Table, load_dataset
from pickglass.errors import DataError
from pickglass.features import FeatureExtractor
from pickglass.features.anatomy.probe import balanced_accuracy, held_out_scores, intrinsic_dimension


def test_the_dimension_is_that_of_the_surface_and_not_of_the_space() -> None:
    rng = np.random.default_rng(0)
    for dims in (1, 2, 4):
        flat = rng.random((1500, dims)) @ rng.normal(size=(dims, 20))
        assert intrinsic_dimension(torch.from_numpy(flat)) == pytest.approx(dims, rel=0.12)
    twice = torch.from_numpy(np.repeat(rng.random((500, 2)), 2, axis=0))
    assert intrinsic_dimension(twice) == pytest.approx(2, rel=0.15)
    assert np.isnan(intrinsic_dimension(torch.zeros(50, 3)))


def test_scores_are_those_of_literal_ridge_regression_without_the_group() -> None:
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1], [6, 12])
    x = rng.normal(size=(18, 4)) + y[:, None]
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 6 + ["d"] * 6
    found = held_out_scores(x, y, groups)
    assert found is not None
    fold = {g: {i for i in range(18) if groups[i] == g} for g in "abcd"}
    for first, second in (("ac", "bd"), ("ad", "bc")):  # two folds of one group a class: one of the two ways
        expected = np.zeros((18, 2))
        for inside, outside in ((first, second), (second, first)):
            test, train = (sorted(fold[part[0]] | fold[part[1]]) for part in (inside, outside))
            mean, std = x[train].mean(0), x[train].std(0)
            z, new = ((x[rows] - mean) / std for rows in (train, test))
            z, new = (np.c_[v, np.ones(len(v))] for v in (z, new))
            weight = np.diag(len(train) / 2 / np.bincount(y[train])[y[train]])  # classes weigh the same
            penalty = 0.1 * 4 * np.diag([1, 1, 1, 1, 0])  # the intercept is free
            decision = new @ np.linalg.inv(z.T @ weight @ z + penalty) @ z.T @ weight @ (2 * y[train] - 1)
            expected[test] = np.c_[-decision, decision]
        if np.allclose(expected, found):
            return
    raise AssertionError("neither way of dividing the groups gives these scores")


def test_a_part_does_not_vouch_for_itself() -> None:
    rng = np.random.default_rng(2)
    parts = np.repeat(np.arange(40), 3)
    y = np.repeat(np.arange(40) % 2, 3)
    x = rng.normal(size=(40, 60))[parts] + 0.01 * rng.normal(size=(120, 60))
    held = held_out_scores(x, y, [str(p) for p in parts])
    leak = held_out_scores(x, y, [str(i) for i in range(120)])
    assert held is not None
    assert leak is not None
    assert balanced_accuracy(held.argmax(1) == y, y) < 0.7
    assert balanced_accuracy(leak.argmax(1) == y, y) > 0.9
    assert held_out_scores(x, y, ["one" if k == 0 else str(i) for i, k in enumerate(y)]) is None


def test_balanced_accuracy_by_hand() -> None:
    right, y = np.array([1, 0, 1, 1], bool), np.array([0, 0, 0, 1])
    assert balanced_accuracy(right, y) == pytest.approx((2 / 3 + 1) / 2)
    assert balanced_accuracy(right, y, np.array([1, 3, 0, 2])) == pytest.approx((1 / 4 + 1) / 2)
    assert balanced_accuracy(right, y, np.array([0, 0, 0, 2])) == 1  # a class that was not drawn


def test_painted_defects_are_told_from_good(small_dataset: Path) -> None:
    table = load_dataset(small_dataset).table
    extractor = FeatureExtractor("efficientnet_lite0", ["stage1", "stage3"])
    found = probe(extractor, table, Preprocess((96, 96)))
    assert summary(table) == {"good": 20, "types": {"hole": 2, "scratch": 2}}
    for one in found:
        assert one["defect"] is not None
        low, high = one["defect_interval"] or [2, 2]
        assert low <= one["defect"] <= high
        assert one["types"] is not None  # two of each: no more than that it is defined
        assert 1 < (one["dimension"] or 0) < 40
    assert (found[1]["defect"] or 0) > 0.9  # in stage1, with 4 defects, a handful of pairs moves it by a tenth
    with pytest.raises(DataError, match="no image is a defect"):
        probe(extractor, Table([Row("a.png", "train", 0)]), Preprocess((96, 96)))
    with pytest.raises(DataError, match="1 of 25 images"):
        probe(extractor, table + Table([Row("gone.png", "test", 1, "hole")]), Preprocess((96, 96)))


@pytest.mark.slow
def test_layers_probe(small_dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["pickglass", "layers", "efficientnet_lite0", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capsys.readouterr().out

    words = ("--layers", "stage1", "--size", "96", "--probe", small_dataset)
    result = json.loads(run(*words, "--json"))
    assert result["probed"] == {"good": 20, "types": {"hole": 2, "scratch": 2}}
    assert set(result["nodes"][0]["probe"]) == {
        "types", "types_interval", "defect", "defect_interval", "dimension",
    }  # fmt: skip
    text = run(*words)
    assert "types apart" in text
    assert "must not be judged on these images" in " ".join(text.split())
    plain = json.loads(run("--layers", "stage1", "--size", "96", "--json"))
    assert plain["probed"] is None
    assert plain["nodes"][0]["probe"] is None


def test_a_class_that_the_other_folds_lack_is_the_unlikeliest() -> None:
    """Both parts of class 2 may fall into one fold, where parts hold several classes."""
    rng = np.random.default_rng(0)
    y = np.array([0] * 9 + [1] * 9 + [2] * 2)
    groups = [f"{i % 3}" for i in range(18)] + ["p", "q"]
    scores = held_out_scores(rng.normal(size=(20, 5)), y, groups)
    assert scores is not None
    assert scores.shape == (20, 3)
    assert np.isfinite(scores).all()
