"""Distillation: what the teacher is taught, where it looks, that it goes on bit-equal, and its card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from pickglass.app.distill import distill
from pickglass.cli.main import app
from pickglass.data.painting.natural import natural_images
from pickglass.errors import DataError, InputError
from pickglass.features.distillation import BackboneTeacher, DistillSettings, eight_bit_rgb, new_pdn, pixel_offset
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.teacher_file import read_card
from pickglass.nn.networks.pdn import CHANNELS, PDN
from pickglass.nn.training.plan import Draws, Plan
from pickglass.runtime.compute import ComputeOptions

RESNET = {"backbone": "resnet18", "layers": ["layer2", "layer3"], "weights": "random"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(natural_images(10, (96, 120))):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def run(photos: Path, out: Path, **settings: object) -> dict[str, object]:
    """Four steps, unless said otherwise; settings of the training and of the use case alike."""
    others = {name: settings.pop(name) for name in ("limit", "licences", "progress") if name in settings}
    learning = DistillSettings(**{**RESNET, "model": "tiny", "steps": 4, "batch": 2, "crop": 64, **settings})  # type: ignore[arg-type]
    return distill(photos, out, learning, compute=ComputeOptions(engine="torch"), **others)  # type: ignore[arg-type, return-value]


@pytest.mark.slow
def test_a_teacher_is_written_in_half_precision_with_its_card(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    result = run(photos, out, licences=("BSD-3", "research only"))
    card = read_card(out)
    assert (card["photos_licence"], card["backbone_licence"], card["step"]) == ("research only", "BSD-3", 4)
    assert (card["photos"], card["held_out"], card["model"]) == (10, 1, "tiny")
    assert card["explained_variance"] == result["explained_variance"]
    with safe_open(str(out), framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert not list(tmp_path.glob("*.training.safetensors"))
    extractor = FeatureExtractor("pdn_tiny", ["teacher"], str(out))
    assert extractor.shapes((64, 64)) == [(CHANNELS, 16, 16)]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_equal(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickglass.nn.training.checkpoint.Checkpoint.__init__", _every_step)
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    run(photos, whole)

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, killed, progress=stop)
    assert killed.with_suffix(".training.safetensors").exists()
    steps: list[int] = []
    run(photos, killed, progress=lambda stage, done, _: steps.append(done) if stage.startswith("training") else None)
    assert steps[0] > 1
    with safe_open(str(whole), "pt") as a, safe_open(str(killed), "pt") as b:
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118


def _every_step(self: object, path: Path, fingerprint: str, every_s: float) -> None:
    for name, value in (("path", path), ("fingerprint", fingerprint), ("every_s", 0.0)):
        object.__setattr__(self, name, value)


@pytest.mark.slow
def test_training_explains_more_of_the_variance(photos: Path, tmp_path: Path) -> None:
    shares = [
        run(photos, tmp_path / "t.safetensors", steps=n, layers=["layer2"], lr=2e-3)["explained_variance"]["median"]  # type: ignore[index]
        for n in (1, 40)
    ]
    assert shares[1] > shares[0] + 0.02


def test_targets_have_mean_0_and_deviation_1(photos: Path) -> None:
    pictures = [np.array(Image.open(p)) for p in sorted(photos.glob("*.png"))]
    source = BackboneTeacher(FeatureExtractor("resnet18", ["layer2"], "random"), "cpu", "torch", 64)
    source.learn_statistics(pictures, 0)
    crops = source.random_crops(pictures, Draws(0))  # the same again
    z = (source.features(crops) - source.mean) / source.std
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(CHANNELS), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "layer", "low", "high"), [("resnet18", "layer2", -1, 1), ("efficientnet_lite0", "stage3", 2, 8)]
)
def test_where_a_layer_looks_is_measured(backbone: str, layer: str, low: float, high: float) -> None:
    """Symmetric padding looks at the first pixel of the cell, padding on one side to the right of it."""
    extractor = FeatureExtractor(backbone, [layer], "random")
    assert low < pixel_offset(extractor, 256, 8) < high


def test_the_pair_lies_on_the_same_place() -> None:
    """A bright spot answers in the same cell of the target and of the PDN."""
    source = BackboneTeacher(FeatureExtractor("resnet18", ["layer2"], "random"), "cpu", "torch", 64)
    crops = torch.zeros(1, 3, 128, 128)
    crops[:, :, 64:68, 72:76] = 1.0  # pixels 32, 36 of the PDN's crop: cell 8, 9
    seen, wanted = source.pair(crops)
    strange = (wanted - wanted[:, :, :1, :1]).square().sum(1)[0]
    place = divmod(int(strange.argmax()), strange.shape[1])
    cells = (8 - source.first, 9 - source.first)
    assert max(abs(a - b) for a, b in zip(place, cells, strict=True)) <= 1
    assert seen.shape[2] == 33 + 4 * (source.cells - 1)
    spot = (seen - seen[:, :, :1, :1]).abs().sum(1)[0]
    rows, columns = spot.nonzero().T
    assert (int(rows.min()), int(columns.min())) == (32 - source.start, 36 - source.start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 100}, "multiple of 32"),
        ({"layers": ["conv1"]}, "multiple of 4"),
        ({"limit": 1}, "at least two"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises((InputError, DataError), match=message):
        run(photos, tmp_path / "t.safetensors", **settings)


def test_broken_photographs_are_listed(tmp_path: Path) -> None:
    Image.fromarray(natural_images(1, (80, 80))[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.png"):
        run(tmp_path, tmp_path / "t.safetensors")


def test_grey_and_deep_images_become_eight_bit_colour() -> None:
    assert eight_bit_rgb(np.array([[0, 65535]], np.uint16)).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert eight_bit_rgb(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[[1, 2, 3]]]


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    plan = Plan(steps=100, lr=1.0, cosine=True)
    rates = [plan.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    with pytest.raises(InputError, match="one of the two"):
        Plan(steps=1, cosine=True, milestone=0.5)


def test_a_narrower_teacher_is_widened_without_changing_its_answers(tmp_path: Path) -> None:
    tiny = PDN("tiny")
    file = tmp_path / "tiny.pth"
    torch.save(tiny.state_dict(), file)
    small = new_pdn("small", 0, file)
    images = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small(images), tiny(images))
    assert bool((small.get_parameter("conv2.weight")[128:] != 0).any())  # the new channels are there
    with pytest.raises(InputError, match="as wide or narrower"):
        new_pdn("medium", 0, file)


@pytest.mark.slow
def test_the_command(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    words = ["distill", str(photos), "-o", str(out), "--backbone", "resnet18", "--layers", "layer2+layer3"]
    words += ["--weights", "random", "--model", "tiny", "--steps", "1", "--batch", "2", "--crop", "64", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["teacher"], result["step"], result["layers"]) == (str(out), 1, ["layer2", "layer3"])
