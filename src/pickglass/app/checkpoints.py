"""A fit that trains leaves its state in files beside its model."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["checkpoint_of", "checkpoints_of"]


def checkpoint_of(model: Path) -> Path:
    """Name the file in which a fit that trains leaves its state."""
    return model.with_name(f"{model.stem}.checkpoint.safetensors")


def checkpoints_of(model: Path) -> list[Path]:
    """List the files in which a fit that trains has left its state: one, or one for each group of positions."""
    name = re.compile(rf"{re.escape(checkpoint_of(model).stem)}(-\d+)?\.safetensors")
    folder = model.absolute().parent
    return [path for path in folder.iterdir() if name.fullmatch(path.name)] if folder.is_dir() else []
