"""Layers come with the network; transformers run in the engine at any size; a module of the user's is a backbone."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import pickglass as pg
from pickglass.errors import InputError, UnknownName
from pickglass.features import FeatureExtractor, find_backbone
from pickglass.features.backbones.layers import PRESETS, preset_names
from pickglass.features.backbones.per_size import WindowMask
from pickglass.features.backbones.registry import Cells, OwnBackbone
from pickglass.features.engine import BackboneEngine
from pickglass.features.extractor import layer_names, shown_layers, untrained, usual_layers
from pickglass.features.folding import has_tables
from pickglass.testing import textures

pytestmark = pytest.mark.fresh

# -- which layers are read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_each_backbone_of_the_table_states_what_is_read_of_it(name: str) -> None:
    spec = find_backbone(name)
    levels = {level.name: level for level in spec.levels}
    usual, finer, one = spec.usual(), spec.usual((4, 8, 16)), spec.usual((16,))
    if len({level.stride for level in spec.levels}) > 1:
        assert [levels[layer].stride for layer in usual] == [8, 16]
        assert [levels[layer].stride for layer in finer] == [4, 8, 16]
        assert [levels[layer].stride for layer in one] == [16]
    elif len(levels) > 1:  # blocks
        depth = int(next(reversed(levels)).removeprefix("block"))
        assert usual == finer == tuple(f"block{depth * i // 4}" for i in (1, 2, 3))
        assert one == usual[-1:]
    else:
        assert usual == one == ("teacher",)


@pytest.mark.slow
@pytest.mark.long
def test_the_table_says_of_timms_networks_what_timm_says() -> None:
    for key, levels in PRESETS.items():
        library, _, name = key.partition("/")
        if library != "timm" or "lite" in name or name.startswith("hrnet"):
            continue
        try:
            with torch.device("meta"):
                network = timm.create_model(name, pretrained=False)
        except (NotImplementedError, RuntimeError):  # of timm that reads numbers of it
            pytest.skip(f"timm {timm.__version__} builds no network without its data")
        known = {info["module"]: info for info in getattr(network.feature_info, "info", network.feature_info)}
        for level in levels:
            info = known[level.node]
            assert (level.channels, level.stride) == (info["num_chs"], info["reduction"]), (name, level)
        if levels[0].name.startswith("block"):
            assert levels[-1].name == f"block{len(network.blocks)}"  # type: ignore[arg-type]
            assert Cells.of(network).patch == levels[0].stride


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mobilenet_v3_small", ("features.3", "features.8")),
        pytest.param("timm/efficientnet_b0", ("blocks.2", "blocks.4"), marks=pytest.mark.long),
        pytest.param("regnet_y_400mf", ("trunk_output.block2", "trunk_output.block3"), marks=pytest.mark.long),
        ("squeezenet1_1", ("features.7", "features.12")),  # without padding: 31 cells of 256 pixels
        ("vit_small_patch16_dinov3_qkvb", ("block3", "block6", "block9")),
    ],
)
def test_a_backbone_that_is_not_in_the_table_is_read_at_its_strides(name: str, layers: tuple[str, ...]) -> None:
    assert not find_backbone(name).levels
    assert usual_layers(name) == FeatureExtractor(name, None, None).layers == layers


def test_a_stride_that_no_layer_has_is_named() -> None:
    with pytest.raises(InputError, match=r"squeezenet1_1 is not in the table .* stride of 64 pixels: name its layers"):
        usual_layers("squeezenet1_1", (8, 64))


def test_layers_of_a_preset_belong_to_its_backbone() -> None:
    assert pg.PatchCore.from_preset("paper").layers == ("layer2", "layer3")
    assert pg.PatchCore.from_preset("paper", backbone="densenet121").layers is None
    assert pg.PatchCore.from_preset("paper", backbone="densenet121", layers="block1").layers == "block1"
    assert pg.FastFlow.from_preset("quick", backbone="resnet18").read_layers == ("layer1", "layer2", "layer3")


@pytest.mark.slow
def test_a_backbone_alone_fits_and_its_layers_are_stated_ever_after(tmp_path: Path) -> None:
    good = textures(6, 64)
    detector = pg.PatchCore(backbone="resnet18", weights="random", size=64).fit(good, calibrate=0)
    assert detector.layers is None
    assert detector.configuration()["layers"] == detector.read_layers == ("layer2", "layer3")
    calibrated = detector.fit(good)
    assert calibrated.current_calibration() is not None
    assert not calibrated.current_calibration().stale  # type: ignore[union-attr]
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert loaded.layers == ["layer2", "layer3"]  # type: ignore[union-attr]  # also where a later table says otherwise
    assert np.array_equal(loaded.predict(good).scores, detector.predict(good).scores)
    assert not loaded.current_calibration().stale  # type: ignore[union-attr]
    assert loaded.model_id() == detector.model_id()
    detector.layers = "layer1"
    assert detector.current_calibration().stale  # type: ignore[union-attr]
    assert detector.fit(good, calibrate=0).network.layers == ("layer1",)


# -- transformers ------------------------------------------------------------------------------------------------------

# family: a small network of it, and layers after few of its blocks, so that there is little to compile
FAMILIES = {
    "ViT": ("vit_tiny_patch16_224", ["block1", "block2.norm"]),
    "DeiT with two tokens": ("deit_tiny_distilled_patch16_224", ["block1"]),
    "DINOv2": ("vit_small_patch14_dinov2", ["block1.norm"]),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", ["block1"]),
    "DINOv3": ("vit_small_patch16_dinov3", ["block1", "block2.norm"]),
    "DINOv3 with SwiGLU": ("vit_small_plus_patch16_dinov3", ["block1"]),
    "Swin": ("swin_tiny_patch4_window7_224", ["stage1", "stage2"]),
    "Swin of torchvision": ("swin_t", ["features.1"]),
    "ConvNeXt": ("timm/convnext_atto", ["stages.1"]),
    "HRNet": ("hrnet_w18_small", ["stage2"]),
}


# one of each kind of positions: learned, none, turned, relative within windows; the others share their code with these
SOON = ("ViT", "DINOv3 with SwiGLU", "Swin", "ConvNeXt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
)
def test_the_engine_answers_as_torch_does_at_any_size_and_number(family: str) -> None:
    name, layers = FAMILIES[family]
    extractor = FeatureExtractor(name, layers, "random")
    size = extractor.fitting((112, 70))  # not square, not the size it was trained at, no multiple of its windows
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = BackboneEngine(extractor, "cpu", "openvino")
        found = engine(images)
    expected = extractor(images)
    assert engine.name == "openvino"
    for level, wanted, (channels, h, w) in zip(found, expected, extractor.shapes(size), strict=True):
        assert level.shape == (3, channels, h, w)
        torch.testing.assert_close(level, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    for level, wanted in zip(extractor.for_size(size)(images), expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-5)


def test_what_follows_from_the_size_is_a_constant_of_the_graph() -> None:
    extractor = FeatureExtractor("vit_small_patch16_dinov3_qkvb", ["block1"], "random")
    settled = extractor.for_size((64, 32))
    (graph,) = settled.body.graphs.values()  # type: ignore[union-attr, operator]
    assert has_tables(extractor.body)  # type: ignore[arg-type]
    assert not has_tables(graph)  # type: ignore[arg-type]
    images = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(settled(images)[0], extractor(images)[0])
    assert settled.state_dict().keys() == {k.replace("body.", "body.graphs.64x32.") for k in extractor.state_dict()}
    shared = {parameter.data_ptr() for parameter in settled.parameters()}
    assert shared == {parameter.data_ptr() for parameter in extractor.parameters()}
    plain = FeatureExtractor("resnet18", ["layer1"], "random")
    assert plain.for_size((64, 64)) is plain


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3_qkvb"])
def test_blocks_with_and_without_the_final_norm_are_timms(name: str) -> None:
    extractor = FeatureExtractor(name, ["block2", "block1.norm"], "random")
    network = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    state = {key.removeprefix("body."): value for key, value in extractor.state_dict().items()}
    missing, foreign = network.load_state_dict(state, strict=False)
    assert not foreign
    assert not [key for key in missing if key.startswith(("blocks.0.", "blocks.1.", "norm.", "patch_embed."))]
    images = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        read = network.forward_intermediates
        plain = read((images - extractor.mean) / extractor.std, indices=[1], norm=False, intermediates_only=True)
        normed = read((images - extractor.mean) / extractor.std, indices=[0], norm=True, intermediates_only=True)
    for got, expected in zip(extractor(images), (plain[0], normed[0]), strict=True):
        assert got.shape == (2, extractor.shapes((48, 80))[0][0], 3, 5)
        torch.testing.assert_close(got, expected)


@pytest.mark.slow
def test_short_names_reach_every_block_and_nothing_else() -> None:
    names = layer_names("vit_tiny_patch16_224")
    assert {"block3", "block1", "block12", "block12.norm"} <= set(names)
    assert shown_layers("vit_small_patch16_dinov3_qkvb") == ["block3", "block6", "block9", "block12"]
    for layer in ("block0", "block13", "block13.norm"):
        with pytest.raises(UnknownName, match=r"unknown layer .*block1"):
            FeatureExtractor("vit_tiny_patch16_224", [layer], None)
    with pytest.raises(InputError, match=r"no final norm behind its blocks: read 'block3'"):
        untrained("vit_tiny_patch16_224", ["block3.norm"])


def test_masks_of_shifted_windows_are_those_that_timm_draws() -> None:
    network = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=112)
    block = network.get_submodule("layers.0.blocks.1")
    mask = WindowMask((7, 7), (3, 3))
    assert torch.equal(mask(28, 28), block.attn_mask)  # type: ignore[arg-type]
    one_way = WindowMask((7, 7), (0, 3))(14, 14)
    assert torch.equal(one_way[:2], one_way[2:])


@pytest.mark.slow
def test_swin_is_timms_at_the_size_it_was_made_for() -> None:
    extractor = FeatureExtractor("swin_tiny_patch4_window7_224", ["stage1", "stage2", "stage3"], "random")
    network = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False).eval()
    network.load_state_dict({k.removeprefix("body."): v for k, v in extractor.state_dict().items()}, strict=False)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normalised = (images - extractor.mean) / extractor.std
        expected = network.forward_intermediates(normalised, indices=[0, 1, 2], intermediates_only=True)
    for got, level in zip(extractor(images), expected, strict=True):
        torch.testing.assert_close(got, level, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_constants_of_a_graph_are_no_weights_also_not_of_a_copy() -> None:
    extractor = FeatureExtractor("vit_tiny_patch16_224", ["block1"], "random")
    swin = FeatureExtractor("swin_t", ["features.1"], None)
    whole = find_backbone("swin_t").build().state_dict()
    for one in (extractor, swin):
        names = set(one.state_dict())
        for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert set(copied.state_dict()) == names
    assert {name.removeprefix("body.") for name in swin.state_dict()} <= set(whole)


@pytest.mark.slow
def test_the_nearest_size_that_fits_is_taken_and_said() -> None:
    good = textures(4, 64)
    detector = pg.PatchCore(backbone="vit_small_patch14_dinov2", layers="block1", weights="random", size=64)
    with pytest.warns(UserWarning, match="patches of 14 pixels: they are read at 70x70 instead of 64x64 pixels"):
        detector.fit(good, calibrate=0, engine="torch")
    assert (detector.size, detector.input_size) == (64, (70, 70))
    assert len(detector.predict(good, engine="torch")) == 4
    for size in ("native", "area:64"):  # whose canvas is chosen anyway
        detector.size = size
        detector.fit(good, calibrate=0, engine="torch")
        assert all(side % 14 == 0 and side >= 56 for side in detector.input_size)
    assert detector.network.fitting((64, 90), up=True) == (70, 98)


@pytest.mark.slow
@pytest.mark.long
def test_a_vision_transformer_is_saved_exported_and_judges_as_before(tmp_path: Path) -> None:
    good = textures(6, 64)
    detector = pg.PatchCore(backbone="vit_small_patch16_dinov3", layers="block1+block2.norm", weights="random", size=64)
    detector.fit(good, calibrate=0)
    assert detector.provenance.engine == "openvino"
    scores = detector.predict(good).scores
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert np.array_equal(loaded.predict(good).scores, scores)
    detector.export(tmp_path / "model.onnx", good)
    np.testing.assert_allclose(pg.load(tmp_path / "model.onnx").predict(good).scores, scores, rtol=1e-3)


# -- a module of the user's --------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.coarse = nn.Conv2d(8, 12, 3, 2, 1)
        self.unread = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unread(self.coarse(self.fine(x)).mean((2, 3)))


def test_a_module_of_ones_own_is_a_backbone(tmp_path: Path) -> None:
    good, module = textures(6, 64), Small()
    before = copy.deepcopy(module.state_dict())
    detector = pg.PatchCore(backbone=module, size=64).fit(good, calibrate=0)
    assert module.training  # a copy is read
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert detector.read_layers == ("fine", "coarse")
    scores = detector.predict(good).scores
    assert np.array_equal(detector.tiled(tile=64, size=64).fit(good, calibrate=0).predict(good).scores, scores)
    assert np.array_equal(pickle.loads(pickle.dumps(detector)).predict(good).scores, scores)
    file = detector.save(tmp_path / "own.safetensors")
    with pytest.raises(InputError, match=r"Small, whose weights are in the file and whose code is not: hand it over"):
        pg.load(file)
    with pytest.raises(InputError, match=r"of the class Small, but backbone='own:Conv2d' was given"):
        pg.load(file, backbone=nn.Conv2d(3, 8, 3))
    loaded = pg.load(file, backbone=Small(seed=1))  # the weights are those of the file
    assert np.array_equal(loaded.predict(good).scores, scores)
    assert loaded.model_id() == detector.model_id()
    from pickglass.app.info import info

    about = info(file)["about"]
    assert about["configuration"]["backbone"] == "own:Small"
    assert "handed over" in about["provenance"]["backbone_weights"]["name"]


def test_a_module_brings_its_normalisation_and_is_no_other(tmp_path: Path) -> None:
    own = OwnBackbone(Small(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), interpolation="bicubic")
    assert json.dumps({"backbone": own}) == '{"backbone": "own:Small"}'
    extractor = FeatureExtractor(own, ["fine"])
    assert extractor.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert (extractor.std.flatten().tolist(), extractor.interpolation) == (pytest.approx([0.2, 0.2, 0.1]), "bicubic")
    good = textures(6, 64)
    one = pg.PatchCore(backbone=own, layers="fine", size=64).fit(good, calibrate=0)
    one.backbone = OwnBackbone(Small(seed=1), own.mean, own.std, own.interpolation)  # of one name, not of one content
    first = one.network.state_dict()["body.fine.0.weight"]
    assert not torch.equal(one.fit(good, calibrate=0).network.state_dict()["body.fine.0.weight"], first)
    resnet = pg.PatchCore(backbone="resnet18", weights="random", layers="layer1", size=64).fit(good, calibrate=0)
    file = resnet.save(tmp_path / "resnet.safetensors")
    with pytest.raises(InputError, match="fitted on resnet18, which the file has inside: load it without backbone"):
        pg.load(file, backbone=Small())


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(InputError, match=r"backbone=3: expected a name .* torch module, or pg\.OwnBackbone"):
        pg.PatchCore(backbone=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"std=\(1, 0, 1\): expected three numbers"):
        OwnBackbone(Small(), std=(1, 0, 1))
    with pytest.raises(InputError, match=r"'own:Small' is a module of the user's, .* hand it over"):
        find_backbone("own:Small")
