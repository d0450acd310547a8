"""The protocols of papers, on miniature trees: published settings, figures side by side, and a killed call goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.layouts import TREES
from typer.testing import CliRunner

from pickglass.app.reproduce import ReproduceRequest, benchmarks, reproduce
from pickglass.app.study.store import StudyStore
from pickglass.cli.main import app
from pickglass.cli.reproduce import compared
from pickglass.data import load_dataset
from pickglass.data.tables.layouts import LAYOUTS
from pickglass.errors import InputError, UnknownName
from pickglass.methods import METHODS
from pickglass.metrics.catalogue import WITHOUT_THRESHOLD
from pickglass.runtime.compute import ComputeOptions

LITE = "efficientnet_lite0"
SMALL = {"patchcore": {"size": 64, "ratio": 0.02}}
TORCH = ComputeOptions(engine="torch")


def test_what_is_published_names_what_there_is() -> None:
    for name, published in benchmarks().items():
        assert published["layout"] in LAYOUTS, name
        assert set(published["metrics"]) <= set(WITHOUT_THRESHOLD)
        for method, paper in published["methods"].items():
            assert "paper" in METHODS[method].presets
            assert paper["source"]
            assert set(paper["figures"]) <= set(published["metrics"])
            assert all(1 < value < 100 for value in paper["figures"].values())  # per cent, as papers have it


def test_the_settings_are_those_of_the_paper() -> None:
    (grid,) = ReproduceRequest("mvtec", ["padim"]).study().grids or ()
    assert (grid.backbones, grid.layers, grid.sizes) == (("wide_resnet50_2",), ("layer1+layer2+layer3",), (224,))
    assert ReproduceRequest("mvtec", ["padim"]).study().settings == {"padim": {"dims": 550, "top_share": 0.0}}
    # another backbone has neither these layers nor so many channels
    (grid,) = ReproduceRequest("mvtec", ["padim"], LITE).study().grids or ()
    assert (grid.backbones, grid.layers, grid.sizes) == ((LITE,), ("stage2+stage3+stage5",), (224,))
    assert ReproduceRequest("mvtec", ["padim"], LITE).study().settings == {"padim": {"top_share": 0.0}}
    (grid,) = ReproduceRequest("mvtec", ["efficientad"], LITE).study().grids or ()
    assert grid.backbones == ("pdn_small",)  # its own network


def test_bad_names() -> None:
    with pytest.raises(UnknownName, match="benchmark"):
        ReproduceRequest("mvtek").study()
    with pytest.raises(InputError, match="no figures of padim on visa"):
        ReproduceRequest("visa", ["padim"]).study()
    with pytest.raises(UnknownName, match="method of a setting"):
        ReproduceRequest("mvtec", ["padim"], settings=SMALL).study()


def test_it_stands_beside_the_published_figures_and_is_done_once(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, request = tmp_path / "r.sqlite", ReproduceRequest("mvtec", ["patchcore"], LITE, SMALL)
    found = reproduce([small_dataset], file, request, compute=TORCH)
    (row,), (cell,) = found["rows"], found["cells"]
    assert cell["state"] == "done"
    assert row["ours"] == {name: cell["figures"][name] for name in found["metrics"]}
    assert 0 <= (row["ours"]["aupro_30"] or -1) <= 1
    assert not row["comparable"]  # one category
    assert row["published"] == pytest.approx({"image_auroc": 0.99, "pixel_auroc": 0.981, "aupro_30": 0.935})
    assert [len(digest) for digest in row["weights_sha256"]] == [64]
    notes = " | ".join(row["notes"])
    assert f"{LITE} instead of WideResNet-50-2" in notes
    assert "1 of 15 categories" in notes
    assert "not as in the paper: size=64, ratio=0.02" in notes

    monkeypatch.setattr("pickglass.app.study.run.build", None)  # nothing is fitted again
    assert reproduce([small_dataset], file, request, compute=TORCH) == found

    words = ["reproduce", "mvtec", "--root", str(small_dataset), "-o", str(file), "--methods", "patchcore"]
    words += ["--backbone", LITE, "--set", "patchcore.size=64", "--set", "patchcore.ratio=0.02"]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(shown.stdout)["rows"] == found["rows"]
    ours = f"{100 * (row['ours']['image_auroc'] or 0):.1f}"
    text = CliRunner().invoke(app, [*words, "--markdown"])
    assert text.stdout.splitlines()[2].startswith(f"| patchcore | {LITE} | 1 of 15 | {ours} | 99.0 | – |")
    assert "published in Roth et al." in text.output
    assert rf"1 of 15 & {ours} & 99.0 &" in CliRunner().invoke(app, [*words, "--latex"]).stdout


def test_missing_weights_are_told_and_replaced_by_nothing(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = reproduce([small_dataset], tmp_path / "r.sqlite", ReproduceRequest("mvtec", ["stfpm"]))
    assert (found["n"], found["missing"]) == (1, 1)
    (row,) = found["rows"]
    assert set(row["ours"].values()) == {None}
    assert any("pickglass weights get resnet18" in note for note in row["notes"])
    words = ["reproduce", "mvtec", "--root", str(small_dataset), "-o", str(tmp_path / "r.sqlite")]
    assert CliRunner().invoke(app, [*words, "--methods", "stfpm"]).exit_code == 1


def test_on_loco_the_two_kinds_of_anomalies_count_alike(tmp_path: Path) -> None:
    root = TREES["MVTec LOCO AD"](tmp_path / "loco")
    file = tmp_path / "r.sqlite"
    found = reproduce([root], file, ReproduceRequest("loco", ["patchcore"], LITE, SMALL), compute=TORCH)
    assert found["done"] == found["n"] > 0, found["rows"][0]["notes"]
    cell = found["cells"][0]
    with StudyStore(file, create=False) as store:
        by_type = json.loads(store.rows([cell["key"]])[0]["provenance"])["by_type"]
    assert set(by_type) == {"logical_anomalies", "structural_anomalies"}
    kinds = [own["image_auroc"] for own in by_type.values()]
    assert cell["figures"]["image_auroc"] == pytest.approx(sum(kinds) / 2)
    assert {row.defect for row in load_dataset(root).test} >= set(by_type)


def test_a_difference_is_shown_where_the_images_are_the_same() -> None:
    row: Any = {"ours": {"aupro_30": 0.5, "aupro_05": None}, "published": {"aupro_30": 0.45, "aupro_05": 0.4}}
    assert compared({**row, "comparable": True}, "aupro_30") == ["50.0", "45.0", "+5.0"]
    assert compared({**row, "comparable": True}, "aupro_05") == ["–", "40.0", "–"]
    assert compared({**row, "comparable": False}, "aupro_30") == ["50.0", "45.0", "–"]
    assert compared({**row, "comparable": True}, "pixel_auroc") == ["–", "–", "–"]
