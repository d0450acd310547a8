"""Adapted middle layers: which weights they are, that they learn, that they stop, and that models carry them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pickglass as pg
from pickglass.cli.main import app
from pickglass.errors import InputError, UnknownName
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.research import adaptation_painting, adaptation_task
from pickglass.features.research.adaptation import AdaptationSettings, Good, adapt, stage_weights
from pickglass.features.research.adaptation_painting import PaintedImages, judged_images
from pickglass.features.research.adaptation_task import AdaptationTask, log_distances, painted_and_good_cells
from pickglass.metrics import auroc
from pickglass.testing import textures

RESNET = {"backbone": "resnet18", "layers": "layer1+layer2", "weights": "random", "size": 64}


def good(n: int, seed: int = 0) -> Good:
    images = torch.from_numpy(textures(n, 64, seed)).permute(0, 3, 1, 2).float() / 255
    return Good(images, None)


def extractor() -> FeatureExtractor:
    return FeatureExtractor("resnet18", ["layer1", "layer2"], "random")


def state(of: FeatureExtractor) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.body.state_dict().items()}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation_painting, "_JUDGED", 5)
    monkeypatch.setattr(adaptation_task, "_BANK_IMAGES", 4)


@pytest.mark.slow
def test_a_stage_is_what_lies_behind_the_layer_before() -> None:
    assert {name.split(".")[0] for name in stage_weights(extractor(), ["layer2"])} == {"layer2"}
    assert {name.split(".")[0] for name in stage_weights(extractor(), ["layer1"])} == {"conv1", "bn1", "layer1"}
    own = set(stage_weights(extractor(), ["layer2"]))
    assert own == {name for name, _ in extractor().body.named_parameters() if name.startswith("layer2.")}
    with pytest.raises(InputError, match="lies behind all layers that are read"):
        stage_weights(extractor(), ["layer3"])
    with pytest.raises(UnknownName, match="layer2"):
        stage_weights(extractor(), ["layr2"])


@pytest.mark.slow
def test_names_with_short_forms_and_branches() -> None:
    lite = FeatureExtractor("efficientnet_lite0", ["stage3"], "random")
    assert {".".join(name.split(".")[:2]) for name in stage_weights(lite, ["stage3"])} == {"blocks.2"}
    dense = FeatureExtractor("densenet121", ["block2"], "random")
    found = {".".join(name.split(".")[:2]) for name in stage_weights(dense, ["block2"])}
    assert found == {"features.transition1", "features.denseblock2"}


def says(monkeypatch: pytest.MonkeyPatch, *misses: float) -> None:
    """Let the judge say this, one after the other."""
    left = list(misses)
    monkeypatch.setattr(AdaptationTask, "misses", lambda task, batch: torch.tensor([left.pop(0)]))


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_only_the_chosen_stage_moves_and_statistics_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    network = extractor()
    before = state(network)
    says(monkeypatch, 0.5, 0.3, 0.4)
    record = adapt(network, AdaptationSettings(("layer2",), epochs=2, lr=1e-3), good(8), good(3, 1), seed=0)
    after = state(network)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert record["kept"] == 1
    assert record["auroc"] == [0.5, 0.7, 0.6]
    assert moved == set(stage_weights(network, ["layer2"]))
    assert record["weights"] == sum(before[name].numel() for name in moved)
    assert not set(record["trained_on"]) & set(record["judged_by"])
    assert network.weights is not None
    assert network.weights.adapted is not None
    assert len(network.weights.adapted) == 64


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_it_stops_when_it_hurts_and_ties_go_to_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    network = extractor()
    before = state(network)
    says(monkeypatch, 0.4, 0.5, 0.4)
    record = adapt(network, AdaptationSettings(("layer2",), epochs=2, lr=1e-3), good(8), good(3, 1), seed=0)
    assert record["kept"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in state(network).items())
    assert network.weights is not None
    assert network.weights.adapted is None


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_training_lowers_the_loss_and_the_pull_keeps_features_near() -> None:
    """On one fixed batch, each step with the same cells: gradient descent on one function, on every machine alike."""
    change = []
    for pull in (0.0, 30.0):
        task = AdaptationTask(extractor(), list(stage_weights(extractor(), ["layer2"])), pull, good(8), seed=0)
        batch = task.painted(range(8))
        optimiser = torch.optim.Adam([p for p in task.stack.parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(8):
            task.draws.start(0)  # the same cells
            loss = task.loss(batch).sum()
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            moved = task.stack(batch.images[:, None])[:, 0] - task.frozen(batch.images)
        change.append(float(moved.square().mean()))
        if pull == 0:
            assert losses[-1] < 0.9 * losses[0]
    assert change[0] > 0
    assert change[1] < 0.7 * change[0]


@pytest.mark.usefixtures("quick")
def test_the_judge_is_the_mean_cell_auroc_of_the_defects() -> None:
    network, images = extractor(), good(8)
    task = AdaptationTask(network, ["layer2.0.conv1.weight"], 1.0, images, seed=0)
    judged = judged_images(good(3, 1), seed=0)
    with torch.no_grad():
        found = float(task.misses(judged))
        bank = task.frozen(images.images[:4]).permute(0, 2, 3, 1).flatten(0, 2)  # all 4 x 16 x 16 cells
        vectors = task.frozen(judged.images).permute(0, 2, 3, 1)  # (5, 16, 16, D)
    distances = torch.cdist(vectors.flatten(0, 2), bank).amin(1).view(5, 16, 16).numpy()
    bad, ok = (cells.numpy() for cells in painted_and_good_cells(judged, (16, 16)))
    each = [
        auroc(np.r_[np.ones(b.sum(), int), np.zeros(ok.sum(), int)], np.r_[d[b], distances[ok]])
        for d, b in zip(distances, bad, strict=True)
    ]
    assert 1 - found == pytest.approx(np.mean(each), abs=1e-3)


def test_distances_leave_out_the_own_image() -> None:
    vectors = torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([[0, 0, 1], [2, 1, 1]])
    bank = torch.tensor([[i, y, x] for i in range(3) for y in range(2) for x in range(2)])
    found = log_distances(vectors, queries, bank)
    for at, log in zip(queries, found, strict=True):
        others = torch.cat([vectors[i].flatten(0, 1) for i in range(3) if i != at[0]])
        expected = (others - vectors[tuple(at)]).norm(dim=1).min().log()
        torch.testing.assert_close(log, expected, rtol=1e-4, atol=1e-5)


def test_cells_beside_a_painted_one_count_as_neither() -> None:
    painted = torch.zeros(1, 32, 32, dtype=torch.bool)
    painted[0, 9, 9] = True
    keep = torch.ones(1, 32, 32, dtype=torch.bool)
    keep[:, 24:] = False
    bad, ok = painted_and_good_cells(PaintedImages(torch.zeros(1, 3, 32, 32), painted, keep), (8, 8))
    assert bad.nonzero().tolist() == [[0, 2, 2]]
    expected = torch.ones(8, 8, dtype=torch.bool)
    expected[1:4, 1:4] = False
    expected[6:] = False
    assert torch.equal(ok[0], expected)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("tiled", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.slow
def test_a_model_carries_its_adapted_weights(tiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, 0.5, 0.4, 0.5, 0.4)
    images = textures(10, 96)
    detector = pg.PatchCore(**RESNET, ratio=0.05).adapted("layer2", epochs=1, lr=1e-3, images=12)  # type: ignore[arg-type]
    detector = (detector.tiled(tile=48, stride=16, heads=2) if tiled else detector).fit(images, validate=0.2)
    record = detector.provenance.adaptation
    assert record["images"] <= 12
    assert detector.provenance.n_validate == 2
    adapted = detector.provenance.backbone_weights["adapted"]
    assert record["kept"] == 1
    assert adapted is not None
    scores = detector.predict(images).scores
    assert np.isfinite(scores).all()
    again = pg.PatchCore.configured(detector.configuration()).fit(images, validate=0.2)
    assert again.provenance.backbone_weights["adapted"] == adapted
    assert (again.predict(images).scores == scores).all()
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert (loaded.predict(images).scores == scores).all()
    assert loaded.configuration() == detector.configuration()
    assert loaded.extractor is not None
    assert loaded.extractor.weights == detector.extractor.weights  # type: ignore[union-attr]


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_the_engine_runs_the_adapted_network(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, 0.5, 0.4)
    images = textures(10, 64)
    detector = pg.PatchCore(**RESNET, ratio=0.05).adapted("layer2", epochs=1, lr=1e-3)  # type: ignore[arg-type]
    detector.fit(images, validate=0.2)
    assert detector.provenance.adaptation["kept"] == 1
    both = [detector.predict(images, engine=engine).scores for engine in ("auto", "torch")]  # type: ignore[arg-type]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-3)


def test_settings_that_make_no_sense() -> None:
    for settings in ({"epochs": 0}, {"lr": 0.0}, {"pull": -1.0}, {"images": 1}):
        with pytest.raises(InputError, match="of adaptation"):
            pg.PatchCore().adapted("stage3", **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected names of layers"):
        pg.PatchCore().adapted("")
    with pytest.raises(InputError, match="a share for validation"):
        pg.PatchCore(**RESNET).adapted("layer2").fit(textures(4, 64), validate=0, calibrate=0)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_the_command_line_adapts(small_dataset: Path, tmp_path: Path) -> None:
    model = str(tmp_path / "model.safetensors")
    fixed = ["--backbone", "resnet18", "--weights", "random", "--layers", "layer1", "--size", "64", "--json"]
    run = CliRunner().invoke(
        app, ["fit", str(small_dataset), "-o", model, *fixed, "--adapt", "layer1", "--set", "adaptation.epochs=1"]
    )
    assert run.exit_code == 0, run.output
    record = json.loads(run.stdout)["adaptation"]
    assert record["stages"] == ["layer1"]
    assert len(record["auroc"]) == 2
    assert pg.load(model).configuration()["adaptation"]["epochs"] == 1
