"""What is measured and on which images: model files with what their headers say, files of a data set or pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pickglass.app.results import Failed
from pickglass.app.testing.selection import select, sentences
from pickglass.data import DataSource, Preprocess, Row, decode
from pickglass.data.painting.natural import natural_images
from pickglass.errors import DataError, Failure, InputError
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.export_file import read_export_header
from pickglass.runtime.model_header import read_model_header
from pickglass.runtime.provenance import Provenance

__all__ = ["BenchImages", "BenchModel", "images_for", "model_at"]

_IMAGES = 32  # timed in turn, so that no cache holds all that a decoder needs


class BenchModel(NamedTuple):
    """A model file, and what its header says."""

    path: Path
    canvas: tuple[int, int]
    provenance: Provenance
    batch: int | None

    @property
    def exported(self) -> bool:
        """Whether it is an exported file."""
        return self.path.suffix == ".onnx"


class BenchImages(NamedTuple):
    """What is timed, by canvas, and what is judged."""

    about: str
    rows: dict[tuple[int, int], tuple[Row, ...]]
    judged: tuple[Row, ...]
    notes: list[str]
    failed: list[Failed]


def model_at(path: str | Path) -> BenchModel:
    """Read what has to be known of a model before it is loaded.

    Raises:
        ModelFileError: missing or damaged.
        InputError: the name is that of no model.
    """
    file = Path(path)
    if file.suffix not in (".onnx", ".safetensors"):
        kind = "a folder; its images come with --data" if file.is_dir() else "not named like a model"
        raise InputError(f"{path} is {kind}: expected model files that end in .safetensors or .onnx")
    header = read_export_header(file) if file.suffix == ".onnx" else read_model_header(file)
    canvas = Preprocess.from_json(header["preprocess"]).size
    return BenchModel(file, canvas, Provenance.from_json(header["provenance"]), header.get("batch"))


def images_for(
    models: Sequence[BenchModel],
    data: DataSource | str | Path | None,
    folder: Path,
    options: ComputeOptions,
) -> BenchImages:
    """Choose the images to time and to judge, and read each once, which also brings it into the system's cache.

    Args:
        models: the models; test images that one of them was fitted on are left out.
        data: folder of a data set, or how to read it; None: pictures are written to ``folder``.
        folder: to write to.
        options: the largest image, and decoding threads.

    Raises:
        DataError: no image can be read.
    """
    if data is None:
        rows = {canvas: _generated(folder, canvas) for canvas in {model.canvas for model in models}}
        about = f"{_IMAGES} generated pictures of each model's canvas, PNG in a temporary folder: nothing to resize"
        return BenchImages(about, rows, (), [], [])
    source = DataSource.of(data)
    dataset = source.load(training=False)
    chosen = select(dataset, [model.provenance for model in models])
    table = source.placed(chosen.table or dataset.table)
    several = [table[i * len(table) // min(_IMAGES, len(table))] for i in range(min(_IMAGES, len(table)))]
    decoded = list(decode(several, lambda image, row: None, options.workers, max_pixels=options.max_pixels))
    sound = tuple(item.row for item in decoded if item.error is None)
    failures = [Failure(item.row.path, item.error) for item in decoded if item.error is not None]
    if not sound:
        raise DataError(f"{source.path}: no image can be read:", failures)
    labels = {row.label for row in chosen.table}
    broken = {failure.path for failure in failures}
    judged = tuple(row for row in source.placed(chosen.table) if row.label is not None and row.path not in broken)
    tells = {0, 1} <= labels
    notes = sentences(chosen.left_out) if tells else [f"{source.path} has no good and bad images: no accuracy"]
    sizes = sorted({item.size for item in decoded if item.error is None})
    shown = f"{sizes[0][0]} x {sizes[0][1]}" + ("" if len(sizes) == 1 else f" to {sizes[-1][0]} x {sizes[-1][1]}")
    return BenchImages(
        f"{len(sound)} images of {dataset.name}, {shown} pixels (height x width), read again and again",
        {model.canvas: sound for model in models},
        judged if tells else (),
        notes,
        [{"path": path, "error": error} for path, error in failures],
    )


def _generated(folder: Path, canvas: tuple[int, int]) -> tuple[Row, ...]:
    """Write pictures as PNG files."""
    rows = []
    for i, picture in enumerate(natural_images(_IMAGES, canvas)):
        path = folder / f"{canvas[0]}x{canvas[1]}-{i:02d}.png"
        Image.fromarray(picture).save(path)
        rows.append(Row(str(path)))
    return tuple(rows)
