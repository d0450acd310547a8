"""EfficientNet-Lites, which are ours, against timm's, which they stand for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.extractor import layer_names
from pickglass.testing import textures

pytestmark = pytest.mark.fresh


@pytest.mark.slow
@pytest.mark.parametrize("digit", [0, 1, 2])
def test_names_weights_and_answers_are_timms(digit: int) -> None:
    import timm

    name = f"efficientnet_lite{digit}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ours = find_backbone(name).build()
        torch.manual_seed(3)
        theirs = timm.create_model(f"tf_{name}", pretrained=False).eval()
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():  # a seed gives the same weights
        assert torch.equal(value, state[key]), key
    short = [level for level in layer_names(name) if level.startswith("stage")]
    assert layer_names(name)[len(short) :] == layer_names(f"timm/tf_{name}")[len(short) :]
    for size in ((64, 64), (65, 42)):  # where padding is even, and where it is not
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(digit))
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_they_train_as_timms_do() -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ours, theirs = find_backbone("efficientnet_lite0").build(), timm.create_model("tf_efficientnet_lite0")
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    for network in (ours, theirs):
        network.train()(images).square().mean().backward()
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    for (name, own), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_prediction_loads_no_library_of_networks(tmp_path: Path) -> None:
    model, image = tmp_path / "m.safetensors", tmp_path / "image.npy"
    good = textures(10, 64)
    pg.PatchCore(size=64, weights="random").fit(good, engine="torch").save(model)
    np.save(image, good[0])
    code = (
        "import sys, numpy, pickglass as pg\n"
        f"pg.load({str(model)!r}).predict(numpy.load({str(image)!r}))\n"
        "heavy = {'timm', 'torchvision', 'scipy', 'torch._dynamo', 'sympy', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
