"""Layers and what they see: declared facts against the real graphs, fields against literal searches."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, fx, nn
from torch.nn import functional as F

from page_reader import PageReader
from pickglass.cli.main import main
from pickglass.data.painting.natural import photograph
from pickglass.errors import InputError, UnknownName
from pickglass.features import FeatureExtractor, find_backbone
from pickglass.features.anatomy import gradient_field as receptive_field_module
from pickglass.features.anatomy.facts import _Record, layer_facts
from pickglass.features.anatomy.gradient_field import (
    centred_box,
    effective_fields,
    gradient_fields,
    relative_field,
)
from pickglass.features.anatomy.theoretical_field import theoretical_field
from pickglass.features.backbones.layers import PRESETS, preset_names
from pickglass.features.extractor import shown_layers

pytestmark = pytest.mark.fresh


def bare(name: str, layers: list[str]) -> FeatureExtractor:
    """Without weights: only shapes are asked for."""
    with torch.device("meta"):  # nothing is drawn for them
        extractor = FeatureExtractor(name, layers, weights=None)
    extractor = extractor.to_empty(device="cpu")
    for tensor in (*extractor.parameters(), *extractor.buffers()):
        tensor.zero_()
    return extractor


# -- presets -----------------------------------------------------------------------------------------------------------

THEORETICAL: dict[str, list[Any]] = {
    "wide_resnet50_2": [35, 91, 267, 427],
    "densenet201": [59, 255, 1799, 3863],
    "efficientnet_b5": ["global"] * 4,  # squeeze-excitation
    "resnet18": [43, 99, 211, 435],
    # patches of 4, then 7x7 windows: 3 at stride 4, 3 at 8, 9 at 16, 3 at 32, and 2x2 between the stages
    "convnext_tiny": [4 + 72, 76 + 4 + 144, 224 + 8 + 864, 1096 + 16 + 576],
    "vit_small_patch16_224.dino": ["global"] * 4,
}


TRACED = [*THEORETICAL, "resnet50", "efficientnet_lite0", "hrnet_w18", "pdn_small"]
# residual, depthwise, tokens, inverted residuals, no padding; the others are larger, and of such blocks
SOON = ("resnet18", "convnext_tiny", "vit_small_patch16_224.dino", "efficientnet_lite0", "pdn_small")


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in TRACED]
)
@pytest.mark.slow
def test_presets_have_the_channels_strides_and_theoretical_fields_of_the_graphs(name: str) -> None:
    levels = preset_names()[name]
    assert find_backbone(name).levels == levels
    side = 112 if "patch14" in name else 128
    facts = layer_facts(bare(name, [level.name for level in levels]), (side, side))
    assert [(f.layer, f.node, f.channels, f.stride) for f in facts] == [
        (level.name, level.node, level.channels, (level.stride, level.stride)) for level in levels
    ]
    assert [f.theoretical for f in facts] == THEORETICAL.get(name, [f.theoretical for f in facts])


def test_presets_name_the_nodes_of_table_2() -> None:
    residual = ["layer1.2.relu_2", "layer2.3.relu_2", "layer3.5.relu_2", "layer4.2.relu_2"]
    nodes = {key: [level.name for level in levels] for key, levels in PRESETS.items()}
    assert nodes["torchvision/resnet50"] == nodes["torchvision/wide_resnet50_2"] == residual
    assert nodes["torchvision/densenet201"] == [f"features.denseblock{i}.cat" for i in (1, 2, 3, 4)]
    assert nodes["torchvision/efficientnet_b5"] == [
        "features.2.4.add", "features.3.4.add", "features.5.6.add", "features.6.8.add"
    ]  # fmt: skip
    assert all(level.name == level.node for level in find_backbone("resnet50").levels)


@pytest.mark.slow
def test_a_backbone_without_a_preset_gets_the_last_node_of_each_grid() -> None:
    names = shown_layers("mnasnet0_5", 64)
    facts = layer_facts(bare("mnasnet0_5", names), (64, 64))
    assert [f.grid[0] for f in facts] == [32, 16, 8, 4, 2]
    assert names[-1] == "layers.16"


# -- tokens as maps ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tokens_become_the_maps_that_timm_makes_of_them() -> None:
    extractor = FeatureExtractor("vit_small_patch16_224.dino", ["block3", "block6"], "random")
    images = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))  # neither square nor 224
    network = find_backbone("vit_small_patch16_224.dino").build()
    missing = network.load_state_dict(
        {k.removeprefix("body."): v for k, v in extractor.state_dict().items()}, strict=False
    )[0]
    assert all(k.startswith(("norm", *(f"blocks.{i}." for i in range(6, 12)))) for k in missing)
    with torch.no_grad():
        expected = network.forward_intermediates(
            (images - extractor.mean) / extractor.std, indices=[2, 5], norm=False, intermediates_only=True
        )
        found = extractor(images)
    assert found[0].shape == (2, 384, 3, 5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_registers_are_no_part_of_the_map_and_sizes_between_patches_name_the_nearest() -> None:
    extractor = FeatureExtractor("vit_small_patch14_reg4_dinov2", ["block3"], weights=None)  # timm reads numbers of it
    assert extractor.shapes((56, 84)) == [(384, 4, 6)]
    with pytest.raises(InputError, match=r"patches of 14 pixels, and 256x250 .* nearest size that fits is 252x252"):
        extractor.shapes((256, 250))


# -- theoretical -------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Each kind of step once, odd sizes and asymmetric padding among them."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        self.first = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.second = nn.Conv2d(2, 2, (3, 1), dilation=2, padding=(2, 0))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.back = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1)
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.which == "branches":
            a, b = x.chunk(2, dim=1)
            x = torch.cat([self.second(x), F.max_pool2d(x, 3, 1, 1), a, b], 1)[:, :2] + x
        if self.which == "nearest":
            x = self.second(self.up(F.avg_pool2d(F.pad(x, (0, 1, 2, 3)), 2)))
        if self.which == "bilinear":
            x = F.interpolate(F.max_pool2d(x, 4), scale_factor=4, mode="bilinear") + x
        if self.which == "corners":
            x = F.interpolate(F.max_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=True)
        if self.which == "transposed":
            x = self.back(self.second(x))
        if self.which == "last":
            x = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = x.reshape(1, 1, 2, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)
        if self.which == "slices":
            x = x[:, :, ::2, 1::2] + x[..., 1::2, ::2]
        return x


def literal_field(network: nn.Module, side: int) -> int:
    """Which rows and columns change the centre cell when they are raised?"""
    image = torch.rand(1, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def centre(x: Tensor) -> Tensor:
        out = network(x)
        return out[0, :, out.shape[2] // 2, out.shape[3] // 2].clone()

    before, spans = centre(image), []
    for axis in (2, 3):
        changing = []
        for i in range(side):
            raised = image.clone()
            raised.select(axis, i).add_(1000)
            if not torch.equal(before, centre(raised)):
                changing.append(i)
        spans.append(max(changing) - min(changing) + 1)
    return max(spans)


@pytest.mark.parametrize("which", ["branches", "nearest", "bilinear", "corners", "transposed", "last", "slices"])
def test_theoretical_is_what_raising_rows_and_columns_finds(which: str) -> None:
    network = Everything(which).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.1)  # nothing cancels, nothing is zero
        graph = fx.symbolic_trace(network)
        record = _Record(graph)
        record.run(torch.rand(1, 1, 64, 64, dtype=torch.float64))
        (output,) = (n for n in graph.graph.nodes if n.op == "output")
        assert theoretical_field(graph, record.shapes, output.args[0]) == literal_field(network, 64)


class Odd(nn.Module):
    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (nn.GroupNorm(1, 2), "global"),
        (nn.InstanceNorm2d(2), "global"),
        (nn.AdaptiveAvgPool2d(1), "global"),
        (nn.LayerNorm([2, 32, 32]), "global"),
        (nn.Linear(32, 4), "global"),  # over a row
        (nn.AdaptiveAvgPool2d(8), 4),
        (nn.PixelShuffle(1), None),  # no rule, and so no claim
    ],
)
def test_what_reads_the_whole_map_is_global_and_what_is_not_understood_is_unknown(step: nn.Module, field: Any) -> None:
    graph = fx.symbolic_trace(Odd(step.eval()))
    record = _Record(graph)
    with torch.no_grad():
        record.run(torch.rand(1, 2, 32, 32))
    (output,) = (n for n in graph.graph.nodes if n.op == "output")
    assert theoretical_field(graph, record.shapes, output.args[0]) == field


def test_multiply_adds_by_hand() -> None:
    facts = layer_facts(bare("resnet18", ["conv1", "layer1.0.conv1"]), (64, 96))
    first = 64 * 3 * 7 * 7 * 32 * 48
    assert [f.macs for f in facts] == [first, first + 64 * 64 * 3 * 3 * 16 * 24]
    assert facts[1].stride == (4, 4)


# -- by gradient -------------------------------------------------------------------------------------------------------


def test_gradient_fields_of_trained_weights_lie_within_the_theoretical() -> None:
    extractor = FeatureExtractor("efficientnet_lite0", ["stage1", "stage2", "stage3"])
    fields = gradient_fields(extractor, 256)
    assert [f.size for f in fields] == [7, 19, 53]
    assert all(f.image == "zero" and not f.at_least for f in fields)
    assert [f.size <= t.theoretical for f, t in zip(fields, layer_facts(extractor, (64, 64)), strict=True)] == [
        True
    ] * 3
    assert all(float(f.gradient.max()) == 1 for f in fields)
    x, y, width, height = fields[1].box
    inside = fields[1].gradient[y : y + height, x : x + width]
    assert int((fields[1].gradient > 0).sum()) == int((inside > 0).sum())


@pytest.mark.slow
def test_the_middle_of_the_image_says_as_much_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = FeatureExtractor("resnet18", ["layer1", "layer2"], "random")
    middle = gradient_fields(extractor, 384)
    monkeypatch.setattr(receptive_field_module, "_window", lambda _, side: side)
    whole = gradient_fields(extractor, 384)
    for a, b in zip(middle, whole, strict=True):
        assert (a.size, a.box, a.image) == (b.size, b.box, "noise")  # random weights: nothing passes an empty image
        torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-4, atol=1e-6)


def test_a_field_that_reaches_the_border_is_a_lower_bound() -> None:
    (field,) = gradient_fields(FeatureExtractor("efficientnet_lite0", ["stage5"]), 128)
    assert field.at_least
    assert field.size == 128 - 2 * 16
    with pytest.raises(InputError, match="more than 64 pixels"):
        gradient_fields(FeatureExtractor("efficientnet_lite0", ["stage1"]), 64)


def test_threshold_border_and_box_by_hand() -> None:
    norm = torch.zeros(100, 100)
    norm[40, 30], norm[45, 52], norm[70, 40] = 2.0, 0.021, 0.019  # the last is under a hundredth
    norm[10, 50] = 1.0  # on the border
    field = receptive_field_module._field(norm, "zero")
    assert (field.box, field.size, field.at_least) == ((30, 40, 23, 6), 23, False)
    norm[16, 50] = 1.0  # beside the border
    assert receptive_field_module._field(norm, "zero").at_least


# -- effective ---------------------------------------------------------------------------------------------------------


def test_the_centred_box_is_the_smallest_that_holds_the_share() -> None:
    energy = torch.rand(21, 30, generator=torch.Generator().manual_seed(0))
    for centre in ((10.0, 14.0), (9.5, 14.5)):
        for share in (0.3, 0.95):
            side = 1 if centre[0] == 10 else 2
            while True:
                half = (side - 1) / 2
                top, bottom = int(max(centre[0] - half, 0)), int(min(centre[0] + half, 20))
                left, right = int(max(centre[1] - half, 0)), int(min(centre[1] + half, 29))
                if energy[top : bottom + 1, left : right + 1].sum() >= share * energy.sum():
                    break
                side += 2
            assert centred_box(energy, centre, share) == side


def test_the_effective_field_is_on_the_image_what_the_gradient_says_there() -> None:
    extractor = FeatureExtractor("efficientnet_lite0", ["stage2", "stage4"])
    pixels = np.array(Image.fromarray(photograph("chelsea")).resize((128, 128)))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    shallow, deep = effective_fields(extractor, [image])
    wanted = image.clone().requires_grad_()
    level = extractor(wanted)[0]
    level[0, :, 16, 16].mean().backward()
    assert wanted.grad is not None
    energy = wanted.grad[0].square().sum(0)
    assert shallow == centred_box(energy, (16.5 * 4 - 0.5, 16.5 * 4 - 0.5), 0.95)
    assert shallow < deep <= 128
    assert effective_fields(extractor, [image, image]) == [shallow, deep]
    with pytest.raises(InputError, match="no image was given"):
        effective_fields(extractor, [])


def test_relative_field() -> None:
    assert relative_field(128, (256, 512)) == 0.25


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickglass(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("PICKGLASS_WEIGHTS", raising=False)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pickglass", "layers", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def test_layers_prints_one_object_without_any_weights(pickglass: Any) -> None:
    code, out, _ = pickglass("resnet18", "--layers", "layer1,layer2.0.relu", "--size", "128x256", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["backbone"], result["weights"], result["size"]) == ("resnet18", "random, seed 0", [128, 256])
    first = result["nodes"][0]
    assert set(first) >= {"node", "grid", "stride", "channels", "rf_gradient", "rf_theoretical", "rrf", "macs"}
    assert (first["node"], first["grid"], first["stride"], first["channels"]) == ("layer1", [32, 64], 4, 64)
    assert (first["rf_theoretical"], first["rf_image"], first["rf_effective"]) == (43, "noise", None)
    assert first["rrf"] == first["rf_gradient"] / 256
    code, out, _ = pickglass("resnet18", "--layers", "layer1", "--size", "64")
    assert "random, seed 0" in out
    assert "seeded noise image" in out


@pytest.mark.slow
def test_layers_names_what_it_used_and_draws(pickglass: Any, tmp_path: Path) -> None:
    Image.fromarray(photograph("chelsea")).resize((90, 60)).save(tmp_path / "cat.png")
    page, picture = tmp_path / "fields.html", tmp_path / "fields.png"
    arguments = ("efficientnet_lite0", "--layers", "stage1,stage3", "--size", "64", "--image", tmp_path / "cat.png")
    code, out, _ = pickglass(*arguments, "-o", page, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["weights"] == "efficientnet-lite0-57934424.pth"
    assert result["weights_info"]["strategy"] == "supervised"
    assert [n["rf_gradient"] for n in result["nodes"]] == [7, 53]
    assert 0 < result["nodes"][0]["rf_effective"] < result["nodes"][1]["rf_effective"] <= 64
    text = page.read_text()
    assert len(PageReader(text).pictures()) == 3
    assert "stage3: 53 px" in text
    code, out, _ = pickglass(*arguments, "-o", picture)
    assert code == 0
    with Image.open(picture) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape[1] >= 960
    assert (sheet[:300, :640] < 60).all(axis=2).any()  # black, at the middle of a field


def test_layers_lists_and_refuses(pickglass: Any, tmp_path: Path) -> None:
    code, out, _ = pickglass("--list", "--json")
    assert code == 0
    assert json.loads(out)["backbones"]["densenet121"] == ["block1", "block2", "block3", "block4"]
    code, out, _ = pickglass("--list", "resnet18")
    assert out.splitlines()[:3] == ["conv1", "bn1", "relu"]
    for words, message in (
        ((), "name a backbone"),
        (("resnet19",), "unknown backbone 'resnet19'"),
        (("resnet18", "--layers", "layr2"), "unknown layer of resnet18 'layr2'"),
        (("resnet18", "--weights", "default"), "resnet18-f37072fd.pth"),
        (("resnet18", "--size", "big"), "--size 'big'"),
        (("resnet18", "-o", tmp_path / "x.jpg"), "ends in .html or .png"),
    ):
        code, out, err = pickglass(*words)
        assert (code, out) == (2, "")
        assert message in err


def test_unknown_names_come_before_any_work() -> None:
    with pytest.raises(UnknownName):
        bare("resnet18", ["stage9"])
