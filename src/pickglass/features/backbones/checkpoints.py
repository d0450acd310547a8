"""Published checkpoints of self-supervised pretraining have file names, tensor names and images of their own.

The strategies are those of table 1 of Heckler, König and Bergmann (CVPR workshops 2023, supplementary material), and
DINO and DINOv2. Each format names its tensors after the training that wrote them; here they get the backbone's own
names back. What belongs to the training alone is dropped and counted; any other tensor keeps its name, so that
loading, which is strict, reports it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pickglass.errors import InputError

__all__ = ["RECIPES", "Recipe", "recognise", "renamed"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """A recipe describes one published format of checkpoints.

    Attributes:
        source: where its authors publish it.
        licence: under which its authors publish it.
        files: architecture -> name of the published file; ``timm/`` leads where only timm's network takes it.
        pattern: matches the names of its published files, for those whose tensors' names say nothing.
        prefixes: removed from the names, the first that fits.
        training: starts of the names that belong to the training alone: heads, queues, the other encoder.
        mean, std: normalisation of RGB in [0, 1].
        interpolation: how images are resized in its authors' evaluation.
        url: where each file can be fetched, with ``{file}``, ``{folder}`` (its name up to the first dot) and
            ``{family}`` (its first two words); None: its authors publish no address that anyone may use.
        digests: file -> what its authors or git say it must hash to, as in
            :class:`pickglass.features.backbones.registry.Published`.
    """

    source: str
    licence: str
    files: Mapping[str, str]
    pattern: str
    prefixes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    mean: tuple[float, ...] = field(default=_IMAGENET_MEAN)
    std: tuple[float, ...] = field(default=_IMAGENET_STD)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    url: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


_META = "https://dl.fbaipublicfiles.com"
_SWAV_STD = (0.228, 0.224, 0.225)  # so in its code: 0.228, not 0.229
_SWAV_HEADS = ("module.projection_head.", "module.prototypes.")

RECIPES: dict[str, Recipe] = {
    "mocov2": Recipe(
        "github.com/facebookresearch/moco",
        "cc-by-nc-4.0",
        {"resnet50": "moco_v2_800ep_pretrain.pth.tar"},
        r"moco_v2_.*",
        prefixes=("module.encoder_q.",),
        training=("module.encoder_q.fc.", "module.encoder_k.", "module.queue"),
        url=f"{_META}/moco/moco_checkpoints/moco_v2_800ep/{{file}}",
        digests={"moco_v2_800ep_pretrain.pth.tar": "md5:a04e12f8"},
    ),
    "swav": Recipe(
        "github.com/facebookresearch/swav",
        "cc-by-nc-4.0",
        {"resnet50": "swav_800ep_pretrain.pth.tar"},
        r"swav_.*",
        prefixes=("module.",),
        training=_SWAV_HEADS,
        std=_SWAV_STD,
        url=f"{_META}/deepcluster/{{file}}",
    ),
    "selav2": Recipe(
        "github.com/facebookresearch/swav",
        "cc-by-nc-4.0",
        {"resnet50": "selav2_400ep_pretrain.pth.tar"},
        r"selav2_.*",
        prefixes=("module.",),
        training=_SWAV_HEADS,
        std=_SWAV_STD,
        url=f"{_META}/deepcluster/{{file}}",
    ),
    "simclr": Recipe(  # trained on [0, 1] as it is
        "github.com/google-research/simclr, converted by github.com/tonylins/simclr-converter",
        "apache-2.0",
        {"resnet50": "resnet50-1x.pth"},
        r"resnet50-[124]x\.pth",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    "dino": Recipe(
        "github.com/facebookresearch/dino",
        "apache-2.0",
        {
            "resnet50": "dino_resnet50_pretrain.pth",
            "vit_small_patch16_224": "dino_deitsmall16_pretrain.pth",
            "vit_small_patch8_224": "dino_deitsmall8_pretrain.pth",
            "vit_base_patch16_224": "dino_vitbase16_pretrain.pth",
            "vit_base_patch8_224": "dino_vitbase8_pretrain.pth",
        },
        r"dino_.*",
        prefixes=("module.backbone.", "backbone."),
        training=("module.head.", "head."),
        interpolation="bicubic",
        url=f"{_META}/dino/{{folder}}/{{file}}",
    ),
    "dinov2": Recipe(
        "github.com/facebookresearch/dinov2",
        "apache-2.0",
        {
            f"vit_{size}_patch14_{registers}dinov2": f"dinov2_vit{size[0]}14_{registers}pretrain.pth"
            for size in ("small", "base", "large")
            for registers in ("", "reg4_")
        },
        r"dinov2_.*",
        training=("mask_token",),
        interpolation="bicubic",
        url=f"{_META}/dinov2/{{family}}/{{file}}",
    ),
    "dinov3": Recipe(  # behind a form in which the licence is accepted: its addresses are for one reader each
        "ai.meta.com/resources/models-and-libraries/dinov3-downloads",
        "dinov3-license",
        {
            "vit_small_patch16_dinov3": "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
            "vit_small_plus_patch16_dinov3": "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
            "vit_base_patch16_dinov3": "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
            "vit_large_patch16_dinov3": "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
            "timm/convnext_tiny": "dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth",
            "timm/convnext_small": "dinov3_convnext_small_pretrain_lvd1689m-296db49d.pth",
            "timm/convnext_base": "dinov3_convnext_base_pretrain_lvd1689m-801f2ba9.pth",
            "timm/convnext_large": "dinov3_convnext_large_pretrain_lvd1689m-61fa432d.pth",
        },
        r"dinov3_.*",
        training=("mask_token", "rope_embed.", "norms.", "local_cls_norm."),
        interpolation="bicubic",
    ),
    "efficientad": Recipe(  # its teachers; the layers are numbered
        "github.com/nelson1425/EfficientAD",
        "apache-2.0",
        {"pdn_small": "teacher_small.pth", "pdn_medium": "teacher_medium.pth"},
        r"teacher_(small|medium)\.pth",
        url="https://raw.githubusercontent.com/nelson1425/EfficientAD/fcab5146f84ae17597044ad5ddf1656ccf805401/models/"
        "{file}",
        digests={
            "teacher_small.pth": "git:631c66c9efa7f1c0629bba344e8583fed9380bf0",
            "teacher_medium.pth": "git:29db5c54b462ef32eec8ac1046b4a9770ac1dcb5",
        },
    ),
}


def recognise(file: str, names: Collection[str]) -> str | None:
    """Recognise the strategy of a checkpoint by its tensors' names or, where these say nothing, by its file's name.

    None: nothing says that it is one of :data:`RECIPES`, so it is read as the backbone's own weights.
    """
    if any(name.startswith("module.encoder_q.") for name in names):
        return "mocov2"
    if any(name.startswith(_SWAV_HEADS) for name in names):
        several = any(name.startswith("module.prototypes.prototypes") for name in names)
        return "selav2" if several or file.startswith("selav2_") else "swav"
    if "storage_tokens" in names or any(name.startswith("downsample_layers.") for name in names):
        return "dinov3" if file.startswith("dinov3_") or "storage_tokens" in names else None
    if "mask_token" in names:
        return "dinov2"
    if any(name.removeprefix("module.").startswith("backbone.") for name in names):
        return "dino"
    return next((strategy for strategy, recipe in RECIPES.items() if re.fullmatch(recipe.pattern, file)), None)


def renamed(
    state: Mapping[str, Tensor], strategy: str, known: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Give the backbone's tensors its own names back; also count the tensors that were dropped, by their start.

    Args:
        state: the checkpoint.
        strategy: a key of :data:`RECIPES`.
        known: names of the network's tensors.

    Raises:
        InputError: the checkpoint has another form than this strategy's.
    """
    recipe = RECIPES[strategy]
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, int] = {}
    for name, tensor in state.items():
        start = next((t for t in recipe.training if name.startswith(t)), None)
        if start is not None:
            dropped[start] = dropped.get(start, 0) + 1
        else:
            prefix = next((p for p in recipe.prefixes if name.startswith(p)), "")
            tensors[name.removeprefix(prefix)] = tensor
    if not tensors:
        raise InputError(f"this is no checkpoint of {strategy}: none of its {len(state)} tensors is the backbone's")
    if strategy == "dinov3":
        return _of_dinov3(tensors, known), dropped
    return (_with_registers(tensors) if "register_tokens" in tensors else tensors), dropped


def _with_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 with registers: its table of positions leads with the class token's, which timm keeps in that token."""
    positions = state.pop("pos_embed")  # (1, 1 + N, C)
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + positions[:, :1]  # (1, 1, C)
    state["pos_embed"] = positions[:, 1:]  # (1, N, C)
    return state


_DINOV3 = (  # as its authors name the parts -> as timm does
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    # its ConvNeXt, which has the names of the first ConvNeXt's authors
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
)


def _of_dinov3(state: dict[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """DINOv3's names become timm's, whose networks of the plain names have no biases in their attention.

    Raises:
        InputError: the biases are not zero, and the network has none.
    """
    convolutional = any(name.startswith("downsample_layers.") for name in state)
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".attn.qkv.bias_mask"):
            continue
        if name.endswith(".attn.qkv.bias"):
            queries, _, values = tensor.chunk(3)  # the keys' are masked, and have no effect
            start = name.removesuffix("qkv.bias")
            if f"{start}q_bias" in known:
                named |= {f"{start}q_bias": queries, f"{start}v_bias": values}
            else:
                _check_no_bias(name, torch.cat([queries, values]))
            continue
        for pattern, timms in _DINOV3 if convolutional else _DINOV3[:5]:
            name = re.sub(pattern, timms, name)
        named[name] = tensor
    return named


def _check_no_bias(name: str, bias: Tensor) -> None:
    largest = float(bias.abs().max())
    if largest > 1e-6:
        raise InputError(
            f"this checkpoint of dinov3 has biases in its attention ({name}, up to {largest:.1e}), which the network "
            "has not: use timm's network of the same name with _qkvb, e.g. vit_small_patch16_dinov3_qkvb"
        )
