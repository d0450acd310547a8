"""What is in a model file, or in a folder of images and what is wrong with it: the first thing people type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pickglass.app.results import InfoResult
from pickglass.data import MAX_PIXELS, Dataset, describe, find_problems, load_datasets
from pickglass.detectors.model_header import read_model_header

__all__ = ["info"]


def info(
    path: str | Path,
    layout: str | None = None,
    *,
    group_by: str | None = None,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> InfoResult:
    """The header of a model file; or layout, counts, sizes and problems of a data set. Nothing is trained.

    Every image is decoded once, so that damaged and equal ones are found. Of a root with several data sets, ``about``
    has an entry a data set. Arguments as in :func:`pickglass.load_dataset` and :func:`pickglass.data.find_problems`.
    """
    if Path(path).suffix == ".safetensors":
        return {"kind": "model", "path": str(path), "about": read_model_header(path)}
    sets = load_datasets(path, layout, group_by)
    about = {name: _about(dataset, workers, max_pixels) for name, dataset in sets.items()}
    return {"kind": "data", "path": str(path), "about": about if len(about) > 1 else next(iter(about.values()))}


def _about(dataset: Dataset, workers: int, max_pixels: int) -> dict[str, Any]:
    return {**describe(dataset), "problems": find_problems(dataset, max_pixels, workers)}
