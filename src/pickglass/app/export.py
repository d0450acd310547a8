"""Export a model as one ONNX file, with a certificate of how far it answers differently from torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pickglass.app.results import ExportResult
from pickglass.app.testing.selection import select, sentences
from pickglass.data import Dataset, DataSource, Table
from pickglass.data.files import alone, output_path
from pickglass.detectors.detector import Detector
from pickglass.detectors.onnx_graph import InputForm, MapForm
from pickglass.detectors.precision import Precision
from pickglass.errors import DataError
from pickglass.methods import load
from pickglass.runtime.compute import Progress
from pickglass.runtime.export_file import read_export_header

__all__ = ["export"]


def export(
    model: str | Path,
    output: str | Path,
    data: DataSource | Dataset | str | Path | None = None,
    *,
    batch: int | None = None,
    input_form: InputForm = "float32",
    map_form: MapForm = "grid",
    keep: bool = False,
    precision: Precision = "float32",
    test: DataSource | Dataset | str | Path | None = None,
    max_loss: float = 0.01,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a model file as ONNX, and keep it only if onnxruntime and OpenVINO answer with it as torch does.

    Args:
        model: model file.
        output: file to write, whole or not at all; ends in .onnx.
        data: good images for the certificate; of what the model was fitted on, those that set its threshold come
            first. None: pictures that come with pickglass.
        batch: images that the file takes at once; None: any number.
        input_form, map_form, keep, precision, max_loss: see :meth:`pickglass.Detector.export`.
        test: folder with labelled images, of which those are compared that the model was not fitted on; None: none are.
        progress: called with (stage, done, total).

    Raises:
        InputError, DataError, MissingExtra: as :meth:`pickglass.Detector.export`.
    """
    target = output_path(output, ".onnx")
    with alone(target):
        detector = load(model)
        rows = None if data is None else _good(data, detector)
        labelled = None if test is None else _labelled(test, detector)
        detector.export(
            target,
            rows,
            batch=batch,
            input=input_form,
            map=map_form,
            keep=keep,
            precision=precision,
            test=labelled,
            max_loss=max_loss,
            progress=progress,
        )
        header = read_export_header(target)
        certificate = header["certificate"]
        return {
            "path": str(target),
            "method": detector.method,
            "megabytes": target.stat().st_size / 1e6,
            "opset": header["opset"],
            "batch": header["batch"],
            "input": input_form,
            "map": map_form,
            "precision": precision,
            "keep": header["keep"],
            "canvas": header["canvas"],
            "certificate": certificate,
            "sentence": (header["calibration"] or {}).get("sentence") or None,
            "missing": _missing(detector, header),
        }


def _good(data: DataSource | Dataset | str | Path, detector: Detector) -> Table:
    """Return good images, without those that the fit did not trust; test images are not read."""
    if isinstance(data, Dataset):
        given = data.train
    else:
        source = DataSource.of(data)
        given = source.placed(source.load().train)
    return detector.provenance.without_left_out(given)


def _labelled(test: DataSource | Dataset | str | Path, detector: Detector) -> Table:
    """Return the labelled images that the model was not fitted on."""
    if isinstance(test, Dataset):
        dataset = test
    else:
        source = DataSource.of(test)
        dataset = source.load(training=False)
    chosen = select(dataset, [detector.provenance])
    table = chosen.table.where(lambda row: row.label is not None)
    if not table:
        why = " ".join(sentences(chosen.left_out))
        raise DataError(f"{dataset.root} has no labelled image to compare on: expected a folder 'test'. {why}")
    return table


def _missing(detector: Detector, header: Mapping[str, Any]) -> list[str]:
    """Say what the model has and the file does not."""
    missing = []
    if detector.namer is not None:
        missing.append("the names of types of defects")
    if detector.reference is not None and header["drift_reference"] is None:
        why = "is of features in float32" if header["precision"] == "int8" else "is larger than 8 MB"
        missing.append(f"the sample that drift compares with, which {why}")
    if header["int8_search"] is False:
        missing.append("the search of its bank in int8, with which it answers too differently: it searches in float32")
    return missing
