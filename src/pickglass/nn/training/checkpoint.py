"""The file from which a killed training goes on: safetensors with a JSON header, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pickglass.data.files import output_path, written_whole
from pickglass.errors import InputError

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training leaves its state, and how often.

    Args:
        path: name of a .safetensors file in an existing folder.
        fingerprint: of all that the training depends on.
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
        own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        text = json.dumps({"fingerprint": self.fingerprint, **header})
        with written_whole(output_path(self.path, ".safetensors")) as temporary:
            try:
                save_file(own, temporary, metadata={"pickglass_training": text})
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{self.path}: the checkpoint cannot be written ({error}): free some of the disk and start again, "
                    "the training goes on from the checkpoint before"
                ) from error

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Header and tensors of an earlier run; None if there is none.

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
