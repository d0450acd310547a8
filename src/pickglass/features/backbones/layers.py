"""A table of the layers of each backbone that are worth reading, with their short names, channels and strides.

The first four backbones carry exactly the nodes of table 2 of Heckler, König and Bergmann, "Exploring the Importance of
Pretrained Feature Extractors for Unsupervised Anomaly Detection and Localization" (CVPR workshops 2023),
supplementary material. A test holds the declared channels and strides against the real graphs.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PRESETS", "Level", "preset_names"]


class Level(NamedTuple):
    """A layer of a backbone, with what is known of it before the network is built.

    Attributes:
        name: as the user writes it.
        node: node of the graph; the name itself where that is one.
        channels: number of channels of its maps.
        stride: pixels of the input a cell, in both directions.
    """

    name: str
    node: str
    channels: int
    stride: int


def preset_names() -> dict[str, tuple[Level, ...]]:
    """List the backbones of the table under the names that users write; transformers with DINO's weights."""
    names = {}
    for key, levels in PRESETS.items():
        name = key.partition("/")[2].replace("tf_efficientnet_lite", "efficientnet_lite")
        tag = "" if not name.startswith("vit_") else ".lvd142m" if name.endswith("dinov2") else ".dino"
        names[name + tag] = levels
    return names


def _levels(nodes: dict[str, str], channels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Level, ...]:
    return tuple(Level(name, node, c, s) for (name, node), c, s in zip(nodes.items(), channels, strides, strict=True))


def _same(*nodes: str) -> dict[str, str]:
    return {node: node for node in nodes}


_FOUR = (4, 8, 16, 32)
_RESNET = _same("layer1.2.relu_2", "layer2.3.relu_2", "layer3.5.relu_2", "layer4.2.relu_2")
_BASIC = _same("layer1", "layer2", "layer3", "layer4")
_DENSE = tuple(f"features.denseblock{i}.cat" for i in range(1, 5))
_VIT = {f"block{i}": f"blocks.{i - 1}" for i in (3, 6, 9, 12)}

PRESETS: dict[str, tuple[Level, ...]] = {
    # table 2
    "torchvision/resnet50": _levels(_RESNET, (256, 512, 1024, 2048), _FOUR),
    "torchvision/wide_resnet50_2": _levels(_RESNET, (256, 512, 1024, 2048), _FOUR),
    "torchvision/densenet201": _levels(_same(*_DENSE), (256, 512, 1792, 1920), _FOUR),
    "torchvision/efficientnet_b5": _levels(
        _same("features.2.4.add", "features.3.4.add", "features.5.6.add", "features.6.8.add"), (40, 64, 176, 304), _FOUR
    ),
    # smaller ones of the same families
    "torchvision/resnet18": _levels(_BASIC, (64, 128, 256, 512), _FOUR),
    "torchvision/resnet34": _levels(_BASIC, (64, 128, 256, 512), _FOUR),
    "torchvision/densenet121": _levels(
        {f"block{i}": node for i, node in enumerate(_DENSE, start=1)}, (256, 512, 1024, 1024), _FOUR
    ),
    **{
        f"timm/tf_efficientnet_lite{digit}": _levels(
            {f"stage{i + 1}": f"blocks.{i}" for i in range(7)}, channels, (2, 4, 8, 16, 16, 32, 32)
        )
        for digit, channels in (
            (0, (16, 24, 40, 80, 112, 192, 320)),
            (1, (16, 24, 40, 80, 112, 192, 320)),
            (2, (16, 24, 48, 88, 120, 208, 352)),
        )
    },
    # high resolution throughout: the finest branch after each exchange between the branches
    "timm/hrnet_w18": _levels(
        {
            "layer1": "layer1",
            "stage2": "stage2.0.fuse_act",
            "stage3": "stage3.3.fuse_act",
            "stage4": "stage4.2.fuse_act",
        },
        (256, 18, 18, 18),
        (4, 4, 4, 4),
    ),
    "torchvision/convnext_tiny": _levels(
        {f"stage{i + 1}": f"features.{2 * i + 1}" for i in range(4)}, (96, 192, 384, 768), _FOUR
    ),
    # teachers of EfficientAD: one output
    **{
        f"pickglass/pdn_{name}": _levels({"teacher": f"conv{last}"}, (384,), (4,))
        for name, last in (("tiny", 4), ("small", 4), ("medium", 6))
    },
    # tokens as maps; blocks are counted from 1
    **{
        f"timm/{name}": _levels(_VIT, (384,) * 4, (patch,) * 4)
        for name, patch in (
            ("vit_small_patch16_224", 16),
            ("vit_small_patch8_224", 8),
            ("vit_small_patch14_dinov2", 14),
            ("vit_small_patch14_reg4_dinov2", 14),
        )
    },
}
