"""What is in a model file or a folder of images: the first thing people type."""

from __future__ import annotations

from pathlib import Path

from pickglass.app.results import InfoResult
from pickglass.data import describe, load_dataset
from pickglass.methods.modelfile import read_header

__all__ = ["info"]


def info(path: str | Path, layout: str | None = None) -> InfoResult:
    """The header of a model file, or layout, counts and sizes of a data set; nothing is trained or decoded."""
    if Path(path).suffix == ".safetensors":
        return {"kind": "model", "path": str(path), "about": read_header(path)}
    return {"kind": "data", "path": str(path), "about": describe(load_dataset(path, layout))}
