"""A killed training goes on from a file: safetensors with a JSON header, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pickglass.data.files import output_path
from pickglass.errors import InputError
from pickglass.nn.networks.stacked import named_tensors
from pickglass.nn.tensor_file import write_tensors
from pickglass.nn.training.plan import Phase

__all__ = ["Checkpoint", "training_fingerprint", "under_prefix"]


@dataclass(frozen=True)
class Checkpoint:
    """A training leaves its state in this place, this often.

    Args:
        path: name of a .safetensors file in an existing folder.
        fingerprint: hash of all that the training depends on.
        every_s: seconds between two writings.
    """

    path: str | Path
    fingerprint: str
    every_s: float

    def save(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the state; until that is done the one before stays.

        Raises:
            InputError: the name does not end in .safetensors, or the place cannot be written or is full.
        """
        # copies: the format refuses tensors that share memory, as modules that appear in two phases do
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        text = json.dumps({"fingerprint": self.fingerprint, **header})
        write_tensors(output_path(self.path, ".safetensors"), copies, {"pickglass_training": text})

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Read the header and tensors of an earlier run; None if there is none.

        Raises:
            InputError: the file belongs to another fit, is no checkpoint, or is damaged; or the place cannot be used.
        """
        path = output_path(self.path, ".safetensors")
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                text = (file.metadata() or {}).get("pickglass_training")
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable checkpoint ({error}): delete it, or name another file") from error
        if text is None:
            raise InputError(f"{path}: exists and is not a checkpoint of a training: name another file")
        header: dict[str, Any] = json.loads(text)
        if header["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{path}: a checkpoint of another fit (other images, settings, seed or machine): "
                "delete it to train anew, or name another file"
            )
        return header, tensors


def training_fingerprint(phases: Sequence[Phase[Any]], *others: object) -> str:
    """Hash all that a training depends on: phases, their tensors' shapes, and the others."""
    plans = [
        (phase.name, asdict(phase.plan), [(name, list(t.shape)) for name, t in named_tensors(phase.module).items()])
        for phase in phases
    ]
    return hashlib.sha256(json.dumps([*others, plans]).encode()).hexdigest()


def under_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Pick the tensors whose names begin with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
