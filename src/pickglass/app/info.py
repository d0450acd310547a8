"""Describe a model file, an exported one, or a folder of images and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pickglass.app.results import InfoResult
from pickglass.data import MAX_PIXELS, Dataset, DataSource, describe, find_problems
from pickglass.errors import DataError, Failure
from pickglass.runtime.export_file import read_export_header
from pickglass.runtime.model_header import read_model_header

__all__ = ["info"]


def info(data: DataSource | str | Path, *, workers: int = 2, max_pixels: int = MAX_PIXELS) -> InfoResult:
    """Read the header of a model file or of an exported one, or layout, counts, sizes and problems of a data set.

    Nothing is trained. Every image is decoded once, so that damaged and equal ones are found.

    Args:
        data: model file, exported file, folder of a data set or of several, or how to read it.
        workers: threads that decode images.
        max_pixels: an image with more pixels counts as unreadable.

    Returns:
        ``about`` is the header of a model; the description of a data set with its ``problems``, see
        :func:`pickglass.data.describe` and :func:`pickglass.data.find_problems`; or name -> description where the
        folder holds several data sets.

    Raises:
        ModelFileError: the model file is missing or damaged.
        MissingExtra: an exported file is read with onnx, which is not installed.
        DataError: the folder holds no data set, or no image of it can be read.
    """
    source = DataSource.of(data)
    path = source.path
    if Path(path).suffix == ".safetensors":
        return {"kind": "model", "path": str(path), "about": read_model_header(Path(path)), "beside": None}
    if Path(path).suffix == ".onnx":
        return {"kind": "export", "path": str(path), "about": read_export_header(Path(path)), "beside": None}
    sets = source.load_all(warn=False)
    about = {name: _about(dataset, workers, max_pixels) for name, dataset in sets.items()}
    if not any(described["images"] > len(described["failed"]) for described in about.values()):
        failures = [Failure(**failed) for described in about.values() for failed in described["failed"]]
        raise DataError(f"{path} holds no image that can be used{':' if failures else ''}", failures)
    if len(about) == 1:
        return {"kind": "data", "path": str(path), "about": next(iter(about.values())), "beside": None}
    return {"kind": "data", "path": str(path), "about": about, "beside": sets.beside.to_json()}


def _about(dataset: Dataset, workers: int, max_pixels: int) -> dict[str, Any]:
    return {**describe(dataset), "problems": find_problems(dataset, max_pixels, workers)}
