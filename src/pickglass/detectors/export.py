"""A fitted detector becomes one ONNX file, which is kept only if it answers as torch does."""

from __future__ import annotations

import base64
import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pickglass.data import as_table
from pickglass.data.files import output_path
from pickglass.detectors.certificate import certify
from pickglass.detectors.compute import Progress
from pickglass.detectors.export_file import write_export
from pickglass.detectors.loading import silent
from pickglass.detectors.method import Method
from pickglass.detectors.onnx_graph import OPSET, InputForm, MapForm, needs_keep, onnx_graph
from pickglass.errors import InputError

__all__ = ["export"]

_MOST_REFERENCE = 8_000_000  # bytes of the arrays that drift compares with


def export(
    detector: Method,
    path: str | Path,
    data: Any = None,
    *,
    batch: int | None = None,
    input_form: InputForm = "float32",
    map_form: MapForm = "grid",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a detector as one ONNX file and return its certificate; see :meth:`pickglass.Detector.export`."""
    target = output_path(path, ".onnx")
    for name, value, known in (("input", input_form, ("float32", "uint8")), ("map", map_form, ("grid", "full"))):
        if value not in known:
            raise InputError(f"{name}={value!r}: expected one of {', '.join(known)}")
    table = None if data is None else detector.provenance.within_regions(as_table(data, role="test"))
    own = copy.deepcopy(detector).to("cpu").eval()
    model = onnx_graph(own, batch, input_form, map_form)
    content = model.SerializeToString()
    certificate = certify(own, content, table, batch, input_form, map_form, progress or silent)
    certificate.check()
    calibration = detector.calibration
    if calibration is not None:
        calibration = calibration.against(detector.settings_digest())
    write_export(
        target,
        model,
        {
            "pickglass": version("pickglass"),
            "method": detector.method,
            "configuration": detector.configuration(),
            "preprocess": detector.preprocess.to_json(),
            "canvas": list(detector.input_size),
            "calibration": None if calibration is None else calibration.to_json(),
            "provenance": detector.provenance.to_json(),
            "drift_reference": _reference(detector),
            "opset": OPSET,
            "batch": batch,
            "input": input_form,
            "map": map_form,
            "keep": needs_keep(detector),
            "certificate": certificate.to_json(),
        },
    )
    return certificate.to_json()


def _reference(detector: Method) -> dict[str, Any] | None:
    """Return the arrays that drift compares with, little-endian in base64; None where there are none or too many."""
    if detector.reference is None:
        return None
    arrays = detector.reference.tensors()
    if sum(array.nbytes for array in arrays.values()) > _MOST_REFERENCE:
        return None
    return {
        name: {
            "dtype": array.dtype.newbyteorder("<").str,
            "shape": list(array.shape),
            "base64": base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode(),
        }
        for name, array in arrays.items()
    }
