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

from torch import Tensor

from pickglass.errors import InputError

__all__ = ["RECIPES", "Recipe", "recognise", "renamed"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """A recipe describes one published format of checkpoints.

    Attributes:
        source: where its authors publish it.
        files: architecture -> name of the published file.
        pattern: matches the names of its published files, for those whose tensors' names say nothing.
        prefixes: removed from the names, the first that fits.
        training: starts of the names that belong to the training alone: heads, queues, the other encoder.
        mean, std: normalisation of RGB in [0, 1].
        interpolation: how images are resized in its authors' evaluation.
    """

    source: str
    files: Mapping[str, str]
    pattern: str
    prefixes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    mean: tuple[float, ...] = field(default=_IMAGENET_MEAN)
    std: tuple[float, ...] = field(default=_IMAGENET_STD)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


_SWAV_STD = (0.228, 0.224, 0.225)  # so in its code: 0.228, not 0.229
_SWAV_HEADS = ("module.projection_head.", "module.prototypes.")

RECIPES: dict[str, Recipe] = {
    "mocov2": Recipe(
        "github.com/facebookresearch/moco",
        {"resnet50": "moco_v2_800ep_pretrain.pth.tar"},
        r"moco_v2_.*",
        prefixes=("module.encoder_q.",),
        training=("module.encoder_q.fc.", "module.encoder_k.", "module.queue"),
    ),
    "swav": Recipe(
        "github.com/facebookresearch/swav",
        {"resnet50": "swav_800ep_pretrain.pth.tar"},
        r"swav_.*",
        prefixes=("module.",),
        training=_SWAV_HEADS,
        std=_SWAV_STD,
    ),
    "selav2": Recipe(
        "github.com/facebookresearch/swav",
        {"resnet50": "selav2_400ep_pretrain.pth.tar"},
        r"selav2_.*",
        prefixes=("module.",),
        training=_SWAV_HEADS,
        std=_SWAV_STD,
    ),
    "simclr": Recipe(  # trained on [0, 1] as it is
        "github.com/google-research/simclr, converted by github.com/tonylins/simclr-converter",
        {"resnet50": "resnet50-1x.pth"},
        r"resnet50-[124]x\.pth",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    "dino": Recipe(
        "github.com/facebookresearch/dino",
        {
            "resnet50": "dino_resnet50_pretrain.pth",
            "vit_small_patch16_224": "dino_deitsmall16_pretrain.pth",
            "vit_small_patch8_224": "dino_deitsmall8_pretrain.pth",
        },
        r"dino_.*",
        prefixes=("module.backbone.", "backbone."),
        training=("module.head.", "head."),
        interpolation="bicubic",
    ),
    "dinov2": Recipe(
        "github.com/facebookresearch/dinov2",
        {
            "vit_small_patch14_dinov2": "dinov2_vits14_pretrain.pth",
            "vit_small_patch14_reg4_dinov2": "dinov2_vits14_reg4_pretrain.pth",
        },
        r"dinov2_.*",
        training=("mask_token",),
        interpolation="bicubic",
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
    if "mask_token" in names:
        return "dinov2"
    if any(name.removeprefix("module.").startswith("backbone.") for name in names):
        return "dino"
    return next((strategy for strategy, recipe in RECIPES.items() if re.fullmatch(recipe.pattern, file)), None)


def renamed(state: Mapping[str, Tensor], strategy: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Give the backbone's tensors its own names back; also count the tensors that were dropped, by their start.

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
    return (_with_registers(tensors) if "register_tokens" in tensors else tensors), dropped


def _with_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 with registers: its table of positions leads with the class token's, which timm keeps in that token."""
    positions = state.pop("pos_embed")  # (1, 1 + N, C)
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + positions[:, :1]  # (1, 1, C)
    state["pos_embed"] = positions[:, 1:]  # (1, N, C)
    return state
