"""Backbones, weights, extractor and engine: declared facts against real outputs, and every way to go wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import pickglass as pg
from pickglass.cli.main import main
from pickglass.data.painting.natural import photograph
from pickglass.errors import InputError, UnknownName, WeightsMissing
from pickglass.features import (
    FeatureExtractor,
    backbone_names,
    find_backbone,
    layer_names,
)
from pickglass.features import engine as engine_module
from pickglass.features import extractor as extractor_module
from pickglass.features.backbones.weights import find_weights, weights_for
from pickglass.features.engine import BackboneEngine
from pickglass.nn import maps
from pickglass.testing import textures

pytestmark = pytest.mark.fresh

LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


def whole_network(name: str) -> torch.nn.Module:
    """The network with its published weights, classifier included."""
    spec = find_backbone(name)
    network = spec.build()
    network.load_state_dict(weights_for(spec, "default", 0, network)[0])
    return network


def classify(name: str, shown: str) -> torch.Tensor:
    """Class probabilities of a photograph: shorter side 224 px, bicubic, centre crop."""
    image = Image.fromarray(photograph(shown))
    scale = 224 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.array(image.crop((left, top, left + 224, top + 224)))
    network = whole_network(name)
    with torch.no_grad():
        return network((torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127) / 128).softmax(1)[0]


@pytest.mark.parametrize("name", LITES)
def test_lite_knows_coffee_and_cats(name: str) -> None:
    espresso, cats = 967, range(281, 286)
    assert float(classify(name, "coffee")[espresso]) > 0.9
    assert int(classify(name, "chelsea").argmax()) in cats


def test_lite_says_what_the_graph_with_its_normalisation_says() -> None:
    """Mean and deviation of the table are those of (x - 127) / 128 on 0..255."""
    spec = find_backbone("efficientnet_lite0")
    x = np.arange(256) / 255
    np.testing.assert_allclose((x - spec.mean[0]) / spec.std[0], (np.arange(256) - 127) / 128, atol=1e-12)


@pytest.mark.parametrize(("size", "grid"), [((256, 256), (32, 32)), ((224, 160), (28, 20)), ((250, 131), (32, 17))])
def test_stages_have_the_stated_strides_and_channels_at_every_size(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    stages = [f"stage{i}" for i in range(1, 8)]
    extractor = FeatureExtractor("efficientnet_lite0", stages, "random")
    shapes = extractor.shapes(size)
    assert [c for c, _, _ in shapes] == [16, 24, 40, 80, 112, 192, 320]
    for (_, h, w), stride in zip(shapes, (2, 4, 8, 16, 16, 32, 32), strict=True):
        assert (h, w) == (-(-size[0] // stride), -(-size[1] // stride))  # SAME padding rounds up
    assert shapes[2][1:] == grid


def test_forward_stops_after_the_deepest_layer() -> None:
    whole = sum(p.numel() for p in whole_network("efficientnet_lite0").parameters())
    cut = FeatureExtractor("efficientnet_lite0", ["stage3", "stage5"])
    assert sum(p.numel() for p in cut.parameters()) < 0.2 * whole
    assert not any("blocks.5" in name for name, _ in cut.named_parameters())


def test_features_are_those_of_hooks_on_the_whole_network() -> None:
    network = whole_network("efficientnet_lite0")
    seen = {}
    network.blocks[2].register_forward_hook(lambda _m, _i, out: seen.__setitem__("stage3", out))
    network.blocks[4].register_forward_hook(lambda _m, _i, out: seen.__setitem__("stage5", out))
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network((images * 255 - 127) / 128)
        got = FeatureExtractor("efficientnet_lite0", ["stage5", "stage3"])(images)  # the order asked for
    torch.testing.assert_close(got[0], seen["stage5"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], seen["stage3"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "shapes"),
    [
        ("resnet18", ["layer2", "layer3.1.relu_1"], [(128, 8, 8), (256, 4, 4)]),
        pytest.param("wide_resnet50_2", ["layer2.3.relu_2"], [(512, 8, 8)], marks=pytest.mark.long),
        ("densenet121", ["features.denseblock1.cat"], [(256, 16, 16)]),
        ("timm/resnet18.tv_in1k", ["layer2"], [(128, 8, 8)]),
    ],
)
def test_any_model_and_node(name: str, layers: list[str], shapes: list[tuple[int, int, int]]) -> None:
    assert FeatureExtractor(name, layers, "random").shapes((64, 64)) == shapes


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown backbone 'resnet19'.*resnet18"):
        find_backbone("resnet19")
    with pytest.raises(UnknownName, match="unknown backbone 'torchvision/nonsense'"):
        find_backbone("torchvision/nonsense")
    with pytest.raises(UnknownName, match=r"unknown layer of resnet18 'layr2'.*layer2"):
        FeatureExtractor("resnet18", ["layr2"], "random")
    with pytest.raises(InputError, match="no layer was named"):
        FeatureExtractor("resnet18", [], "random")
    with pytest.raises(UnknownName, match="unknown weights tag"):
        find_backbone("timm/resnet18.no_such_tag")
    assert {"efficientnet_lite0", "resnet18", "convnext_tiny"} <= set(backbone_names())
    assert layer_names("efficientnet_lite0")[:7] == [f"stage{i}" for i in range(1, 8)]


def test_a_layer_that_is_no_map_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer 'flatten' of resnet18 gives \(1, 512\), expected maps"):
        FeatureExtractor("resnet18", ["flatten"], "random").shapes((64, 64))


def test_missing_weights_name_the_file_and_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PICKGLASS_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsMissing) as caught:
        FeatureExtractor("resnet18", ["layer2"])
    for part in ("resnet18-f37072fd.pth", str(tmp_path), "--weights FILE", "PICKGLASS_WEIGHTS"):
        assert part in str(caught.value)
    with pytest.raises(WeightsMissing, match="no such file"):
        FeatureExtractor("resnet18", ["layer2"], weights=str(tmp_path / "absent.pth"))


def test_weights_are_found_in_the_folder_the_cache_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = find_backbone("resnet18").build().state_dict()
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(state, cache / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("PICKGLASS_WEIGHTS", raising=False)
    assert find_weights(find_backbone("resnet18")) == cache / "resnet18-f37072fd.pth"
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(state, folder / "resnet18.safetensors")
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(folder))
    assert find_weights(find_backbone("resnet18")) == folder / "resnet18.safetensors"
    extractor = FeatureExtractor("resnet18", ["layer1"])
    assert extractor.weights is not None
    assert extractor.weights.name == "resnet18.safetensors"
    assert len(extractor.weights.sha256 or "") == 64
    assert torch.equal(extractor.state_dict()["body.conv1.weight"], state["conv1.weight"])


@pytest.mark.slow
def test_weights_that_do_not_fit_are_listed_never_ignored(tmp_path: Path) -> None:
    state = find_backbone("resnet18").build().state_dict()

    def file(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, tmp_path / "w.safetensors")
        return str(tmp_path / "w.safetensors")

    short = {k: v for k, v in state.items() if k != "conv1.weight"}
    with pytest.raises(InputError, match=r"1 tensors are missing, e.g. \['conv1.weight'\]"):
        FeatureExtractor("resnet18", ["layer1"], file(short))
    with pytest.raises(InputError, match=r"1 have no place, e.g. \['extra'\]"):
        FeatureExtractor("resnet18", ["layer1"], file({**state, "extra": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"another shape, e\.g\. conv1\.weight"):
        FeatureExtractor("resnet18", ["layer1"], file({**state, "conv1.weight": torch.zeros(1)}))
    without_head = {k: v for k, v in state.items() if not k.startswith("fc.")}
    FeatureExtractor("resnet18", ["layer1"], file(without_head))  # what is cut off is not needed


def test_checkpoints_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save(find_backbone("resnet18").build(), tmp_path / "whole.pth")
    with pytest.raises(InputError, match="cannot be read"):
        FeatureExtractor("resnet18", ["layer1"], str(tmp_path / "whole.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match="cannot be read"):
        FeatureExtractor("resnet18", ["layer1"], str(tmp_path / "text.pth"))


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, two, other = (FeatureExtractor("resnet18", ["layer1"], "random", seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one["body.conv1.weight"], two["body.conv1.weight"])
    assert not torch.equal(one["body.conv1.weight"], other["body.conv1.weight"])


def test_training_mode_never_reaches_the_backbone() -> None:
    extractor = FeatureExtractor("resnet18", ["layer1"], "random").train()
    assert not any(module.training for module in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())


# -- engine ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
@pytest.mark.slow
def test_openvino_answers_as_torch_does(name: str) -> None:
    layers = ["stage2", "stage5"] if name != "resnet18" else ["layer1", "layer3"]
    extractor = FeatureExtractor(name, layers, "random")
    images = torch.rand(5, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    engine = BackboneEngine(extractor, "cpu", "openvino")
    for got, expected in zip(engine(images), BackboneEngine(extractor, "cpu", "torch")(images), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert engine.name == "openvino"
    assert engine(images[:1, :, :32, :32])[0].shape[0] == 1  # another size is compiled when it comes


def test_an_answer_of_the_engine_is_no_view_of_its_memory() -> None:
    engine = BackboneEngine(FeatureExtractor("resnet18", ["layer1"], "random"), "cpu", "openvino")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (first,) = engine(images)
    before = first.clone()
    engine(1 - images)
    assert torch.equal(first, before)


def test_an_engine_follows_weights_that_are_loaded_after_it_was_compiled() -> None:
    extractor, other = (FeatureExtractor("resnet18", ["layer1"], "random", seed=seed) for seed in (0, 1))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    engine = BackboneEngine(extractor, "cpu", "openvino")
    (before,) = engine(images)
    extractor.load_state_dict(other.state_dict())
    (after,) = engine(images)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, other(images)[0], rtol=1e-3, atol=1e-4 * float(after.abs().max()))


bfloat16 = pytest.mark.skipif(not engine_module.has_bfloat16(), reason="this CPU has no bfloat16")


@bfloat16
def test_bfloat16_is_close_and_only_on_request() -> None:
    extractor = FeatureExtractor("resnet18", ["layer1", "layer3"], "random")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    engine, exact = BackboneEngine(extractor, "cpu", "bfloat16"), extractor(images)
    got = engine(images)
    assert engine.name == "bfloat16"
    for g, e in zip(got, exact, strict=True):
        worst = float((g - e).abs().max() / e.abs().max())
        assert 1e-5 < worst < 2e-2  # rounded, so not float32 under another name
    assert BackboneEngine(extractor, "cpu").name == "openvino"


@bfloat16
def test_bfloat16_may_round_features_of_depthwise_convolutions_more() -> None:
    extractor = FeatureExtractor("efficientnet_lite0", ["stage2", "stage5"])
    image = torch.from_numpy(np.ascontiguousarray(photograph("astronaut")[:128, :128].transpose(2, 0, 1)))[None] / 255
    for got, exact in zip(BackboneEngine(extractor, "cpu", "bfloat16")(image), extractor(image), strict=True):
        assert 1e-3 < float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.2


@bfloat16
def test_a_network_that_bfloat16_harms_is_refused_it() -> None:
    class Cancelling(torch.nn.Module):
        """What is left of a large sum is lost in bfloat16."""

        def __init__(self) -> None:
            super().__init__()
            self.twice = torch.nn.Conv2d(3, 8, 1, bias=False)
            self.back = torch.nn.Conv2d(8, 8, 1, bias=False)
            torch.nn.init.constant_(self.back.weight, 1.0)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            raised = self.twice(x) + 100
            return (self.back(raised) - 800,)

    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = Cancelling().eval()
    with pytest.raises(InputError, match=r"OpenVINO answers differently .* Use engine='auto'"), torch.no_grad():
        engine_module.CompiledNetwork(network, "it", "cpu", "bfloat16")(image)
    falling = engine_module.CompiledNetwork(network, "it", "cpu", "bfloat16", falls_back=True)
    with pytest.warns(RuntimeWarning, match="answers differently .*: it; running in float32"):
        (got,) = falling(image)
    assert falling.name == "openvino"
    torch.testing.assert_close(got, network(image)[0].detach(), rtol=0, atol=0.01)


@bfloat16
def test_features_far_from_torchs_are_refused_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = FeatureExtractor("resnet18", ["layer1"], "random")
    real = engine_module._Graph.run
    monkeypatch.setattr(engine_module._Graph, "run", lambda *given: [1.3 * output for output in real(*given)])
    with pytest.raises(InputError, match=r"differently from torch \(by [23]\.\d.* root mean square, allowed 2e-01\)"):
        BackboneEngine(extractor, "cpu", "bfloat16")(torch.rand(2, 3, 32, 32))


@bfloat16
@pytest.mark.slow
def test_a_model_fitted_in_bfloat16_judges_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = textures(8, 64)
    detector = pg.PatchCore(backbone="resnet18", layers=["layer1", "layer2"], weights="random", size=64)
    detector.fit(good, engine="bfloat16", calibrate=0)
    assert detector.provenance.engine == "bfloat16"
    unasked, asked, exact = (detector.predict(good[:2], engine=e).scores for e in ("auto", "bfloat16", "openvino"))
    assert np.array_equal(unasked, asked)
    assert not np.array_equal(unasked, exact)
    path = str(detector.save(tmp_path / "model.safetensors"))
    monkeypatch.setattr("sys.argv", ["pickglass", "info", path])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "Its networks were computed in bfloat16" in capsys.readouterr().out
    assert detector.fit(good, calibrate=0).provenance.engine == "openvino"  # a new fit begins anew


def test_torch_rounds_to_bfloat16_where_openvino_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which this asks of the CPU."""
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda device="cpu": True)
    monkeypatch.setattr(engine_module.CompiledNetwork, "_compiles", False)
    extractor = FeatureExtractor("resnet18", ["layer1", "layer3"], "random")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    engine, exact = BackboneEngine(extractor, "cpu", "bfloat16"), extractor(images)
    for got, one in zip(engine(images), exact, strict=True):
        assert got.dtype == torch.float32
        assert 1e-5 < float((got - one).abs().max() / one.abs().max()) < 5e-2
    rounded = engine_module.CompiledNetwork._rounded
    monkeypatch.setattr(
        engine_module.CompiledNetwork, "_rounded", lambda *given: tuple(1.5 * one for one in rounded(*given))
    )
    with pytest.raises(InputError, match=r"in bfloat16 torch answers differently .* Use engine='auto'"):
        BackboneEngine(extractor, "cpu", "bfloat16")(images)


def test_bfloat16_without_such_a_cpu_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda device="cpu": False)
    with pytest.raises(InputError, match="does not compute in bfloat16: leave the engine on 'auto'"):
        BackboneEngine(FeatureExtractor("resnet18", ["layer1"], "random"), "cpu", "bfloat16")


@pytest.mark.parametrize(("limit", "allowed"), [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_AMX", True)])
def test_bfloat16_that_the_environment_forbids_is_refused(
    limit: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO would crash the process."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert maps.may_use_bfloat16() is allowed
    if not allowed:
        assert not engine_module.has_bfloat16()
        assert not maps.has_fast_bfloat16()
        with pytest.raises(InputError, match="ONEDNN_MAX_CPU_ISA keeps this CPU from computing in bfloat16: leave"):
            BackboneEngine(FeatureExtractor("resnet18", ["layer1"], "random"), "cpu", "bfloat16")


def test_an_engine_that_answers_differently_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = FeatureExtractor("resnet18", ["layer1"], "random")
    images = torch.rand(2, 3, 32, 32)
    real = engine_module._Graph.run
    monkeypatch.setattr(engine_module._Graph, "run", lambda *given: [1.01 * output for output in real(*given)])
    engine = BackboneEngine(extractor, "cpu")
    with pytest.warns(RuntimeWarning, match="answers differently from torch"):
        got = engine(images)
    assert engine.name == "torch"
    assert torch.equal(got[0], extractor(images)[0])
    with pytest.raises(InputError, match="Use engine='torch'"):
        BackboneEngine(extractor, "cpu", "openvino")(images)


def test_an_engine_that_cannot_convert_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("unsupported operation\nand a long trace")

    monkeypatch.setattr(engine_module, "_compile", broken)
    monkeypatch.setattr(engine_module, "_kept", engine_module._Kept())
    with pytest.warns(RuntimeWarning, match=r"cannot convert it \(RuntimeError: unsupported operation\)"):
        BackboneEngine(FeatureExtractor("resnet18", ["layer1"], "random"), "cpu")(torch.rand(1, 3, 32, 32))


def test_engine_names_are_checked() -> None:
    extractor = FeatureExtractor("resnet18", ["layer1"], "random")
    with pytest.raises(InputError, match="engine='tensorrt'"):
        BackboneEngine(extractor, "cpu", "tensorrt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="runs on the CPU"):
        BackboneEngine(extractor, "cuda", "openvino")


def test_building_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureExtractor("efficientnet_lite0", ["stage1"], "random")


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "mobilenet_v3_small", pytest.param("densenet121", marks=pytest.mark.long)]
)
def test_nodes_and_values_are_those_of_torchvisions_extractor(name: str) -> None:
    """Two ways to cut a network: ours draws its graph once, torchvision's for training and eval mode each."""
    spec = find_backbone(name)
    network = spec.build()
    kept = extractor_module._kept_whole()
    nodes = list(extractor_module._traced(network)[1])
    assert nodes == get_graph_node_names(network, tracer_kwargs=kept, suppress_diff_warning=True)[1][1:]
    chosen = [nodes[len(nodes) // 4], nodes[len(nodes) // 2]]
    other = create_feature_extractor(network, chosen, tracer_kwargs=kept, suppress_diff_warning=True).eval()
    cut, wanted = extractor_module._Drawn(spec, network).cut(tuple(chosen))
    images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = cut.eval()(images), other(images)
    assert wanted == chosen
    assert set(cut.state_dict()) == set(other.state_dict())
    for node in chosen:
        assert torch.equal(ours[node], theirs[node])


def test_what_was_compiled_is_used_again_for_the_same_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = engine_module._compile
    monkeypatch.setattr(engine_module, "_compile", lambda *given: (calls.append(1), real(*given))[1])
    monkeypatch.setattr(engine_module, "_kept", engine_module._Kept())
    monkeypatch.setattr(engine_module, "_KEPT", 4)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def levels(seed: int = 0, layers: tuple[str, ...] = ("layer1",), side: int = 64) -> torch.Tensor:
        extractor = FeatureExtractor("resnet18", layers, "random", seed)
        return BackboneEngine(extractor, "cpu", "openvino")(images[..., :side, :side])[0]

    first = levels()
    assert torch.equal(levels(), first)
    assert len(calls) == 1
    assert not torch.equal(levels(seed=1), first)
    levels(layers=("layer2",))
    levels(side=32)
    assert len(calls) == 4
    for seed in (2, 3):
        levels(seed)
    assert len(calls) == 6
    assert len(engine_module._kept._models) == 4
