"""A table of the layers of each backbone that are worth reading, with their short names, channels and strides.

The first four backbones carry exactly the nodes of table 2 of Heckler, König and Bergmann, "Exploring the Importance of
Pretrained Feature Extractors for Unsupervised Anomaly Detection and Localization" (CVPR workshops 2023),
supplementary material. A test holds the declared channels and strides against the real graphs. What is read of each
where nobody names a layer follows from it: see ``Backbone.usual``.
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
        plain = key.partition("/")[2]
        name = key if key.startswith("timm/") and f"torchvision/{plain}" in PRESETS else plain
        name = name.replace("tf_efficientnet_lite", "efficientnet_lite")
        tag = ".lvd142m" if name.endswith("_dinov2") else ".dino" if plain in _BY_DINO else ""
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


def _blocks(width: int, depth: int, patch: int) -> tuple[Level, ...]:
    """Name the blocks of a vision transformer at a quarter, half and three quarters of its depth, and the last."""
    numbers = [depth * i // 4 for i in (1, 2, 3, 4)]
    return _levels({f"block{i}": f"blocks.{i - 1}" for i in numbers}, (width,) * 4, (patch,) * 4)


_WIDTHS = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24)}  # channels, blocks
_BY_DINO = tuple(f"vit_{size}_patch{patch}_224" for size in ("small", "base") for patch in (8, 16))

_VITS: dict[str, tuple[int, int, int]] = {
    # channels, blocks, pixels of a patch
    **{
        f"vit_{size}_patch{patch}_{side}": (*_WIDTHS[size], patch)
        for size, patch, side in (
            *((size, 16, side) for size in _WIDTHS for side in (224, 384)),
            ("small", 8, 224),
            ("base", 8, 224),
        )
    },
    **{f"deit_{size}_patch16_224": (*_WIDTHS[size], 16) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_distilled_patch16_224": (*_WIDTHS[size], 16) for size in ("tiny", "small", "base")},
    **{f"deit3_{size}_patch16_224": (*_WIDTHS[size], 16) for size in ("small", "base", "large")},
    **{
        f"vit_{size}_patch14_{registers}dinov2": (*_WIDTHS[size], 14)
        for size in ("small", "base", "large")
        for registers in ("", "reg4_")
    },
    **{f"vit_{size}_patch16_dinov3": (*_WIDTHS[size], 16) for size in ("small", "base", "large")},
    "vit_small_plus_patch16_dinov3": (384, 12, 16),
}

PRESETS: dict[str, tuple[Level, ...]] = {
    # table 2
    "torchvision/resnet50": _levels(_RESNET, (256, 512, 1024, 2048), _FOUR),
    "torchvision/wide_resnet50_2": _levels(_RESNET, (256, 512, 1024, 2048), _FOUR),
    "torchvision/densenet201": _levels(_same(*_DENSE), (256, 512, 1792, 1920), _FOUR),
    "torchvision/efficientnet_b5": _levels(
        _same("features.2.4.add", "features.3.4.add", "features.5.6.add", "features.6.8.add"), (40, 64, 176, 304), _FOUR
    ),
    # others of the same families
    **{
        f"torchvision/{name}": _levels(_BASIC, channels, _FOUR)
        for names, channels in (
            (("resnet18", "resnet34"), (64, 128, 256, 512)),
            (("resnet101", "resnet152", "wide_resnet101_2", "resnext50_32x4d"), (256, 512, 1024, 2048)),
        )
        for name in names
    },
    **{
        f"torchvision/{name}": _levels(
            {f"block{i}": node for i, node in enumerate(_DENSE, start=1)}, (256, 512, *deep), _FOUR
        )
        for name, deep in (("densenet121", (1024, 1024)), ("densenet169", (1280, 1664)))
    },
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
    # high resolution throughout: the finest branch after each exchange between the branches, and two that are coarser
    **{
        f"timm/hrnet_w{width}": _levels(
            {
                "layer1": "layer1",
                "stage2": "stage2.0.fuse_act",
                "stage3": "stage3.3.fuse_act",
                "stage4": "stage4.2.fuse_act",
                "stage3_8": "stage3.3.fuse_act_1",
                "stage3_16": "stage3.3.fuse_act_2",
            },
            (256, width, width, width, 2 * width, 4 * width),
            (4, 4, 4, 4, 8, 16),
        )
        for width in (18, 30, 32, 40, 44, 48, 64)
    },
    **{
        f"{library}/convnext_{size}": _levels(
            {f"stage{i + 1}": f"features.{2 * i + 1}" if library == "torchvision" else f"stages.{i}" for i in range(4)},
            tuple(width * 2**i for i in range(4)),
            _FOUR,
        )
        for library in ("torchvision", "timm")
        for size, width in (("tiny", 96), ("small", 96), ("base", 128), ("large", 192))
    },
    **{
        f"timm/swin_{name}": _levels(
            {f"stage{i + 1}": f"layers.{i}" for i in range(4)}, tuple(width * 2**i for i in range(4)), _FOUR
        )
        for name, width in (
            ("tiny_patch4_window7_224", 96),
            ("small_patch4_window7_224", 96),
            ("base_patch4_window7_224", 128),
            ("large_patch4_window7_224", 192),
        )
    },
    # teachers of EfficientAD: one output
    **{
        f"pickglass/pdn_{name}": _levels({"teacher": f"conv{last}"}, (384,), (4,))
        for name, last in (("tiny", 4), ("small", 4), ("medium", 6))
    },
    # tokens as maps; blocks are counted from 1
    **{f"timm/{name}": _blocks(*of) for name, of in _VITS.items()},
}
