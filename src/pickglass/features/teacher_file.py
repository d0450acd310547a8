"""A teacher's file holds a PDN in half precision and, in its header, a card that says how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pickglass.nn.networks.pdn import PDN
from pickglass.nn.tensor_file import write_tensors

__all__ = ["read_card", "write_teacher"]

_KEY = "pickglass_teacher"


def write_teacher(path: Path, pdn: PDN, card: Mapping[str, Any]) -> None:
    """Write the teacher and its card, whole or not at all; the card gets the time of writing as ``made``."""
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in pdn.state_dict().items()}
    dated = {**card, "made": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    write_tensors(path, tensors, {_KEY: json.dumps(dated)})


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of a teacher, as ``pickglass distill`` wrote it; docs/teachers.md describes its fields.

    Raises:
        KeyError: the file is no teacher of ours.
    """
    with safe_open(str(path), framework="pt") as file:
        card: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
    return card
