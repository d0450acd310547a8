"""A fitted detector becomes one ONNX file, which is kept only if it answers as torch does."""

from __future__ import annotations

import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pickglass.data import as_table
from pickglass.data.files import output_path
from pickglass.detectors.certificate import certify
from pickglass.detectors.loading import silent
from pickglass.detectors.method import Method
from pickglass.detectors.modelfile import model_id
from pickglass.detectors.onnx_graph import OPSET, InputForm, MapForm, onnx_graph
from pickglass.errors import InputError
from pickglass.runtime.compute import Progress
from pickglass.runtime.export_file import write_export
from pickglass.runtime.exported import array_to_json
from pickglass.runtime.model_header import history_of

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
    keep: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a detector as one ONNX file and return its certificate; see :meth:`pickglass.Detector.export`."""
    target = output_path(path, ".onnx")
    for name, value, known in (("input", input_form, ("float32", "uint8")), ("map", map_form, ("grid", "full"))):
        if value not in known:
            raise InputError(f"{name}={value!r}: expected one of {', '.join(known)}")
    table = None if data is None else detector.provenance.within_regions(as_table(data, role="test"))
    own = copy.deepcopy(detector).to("cpu").eval()
    if _too_large(own):  # drift is left out as a whole
        own.reference = None
    model = onnx_graph(own, batch, input_form, map_form, keep)
    content = model.SerializeToString()
    takes_keep = "keep" in [node.name for node in model.graph.input]
    certificate = certify(own, content, table, batch, input_form, map_form, takes_keep, progress or silent)
    certificate.check()
    calibration = detector.calibration
    if calibration is not None:
        calibration = calibration.against(detector.settings_digest())
    write_export(
        target,
        content,
        {
            "id": model_id(detector),
            **history_of(detector.history),
            "pickglass": version("pickglass"),
            "method": detector.method,
            "title": type(detector).__name__,
            "configuration": detector.configuration(),
            "settings": detector.settings_digest(),
            "preprocess": detector.preprocess.to_json(),
            "canvas": list(detector.input_size),
            "calibration": None if calibration is None else calibration.to_json(),
            "provenance": detector.provenance.to_json(),
            "roi": None if own.roi is None else array_to_json(own.roi.numpy()),
            "drift_reference": None
            if own.reference is None
            else {name: array_to_json(array) for name, array in own.reference.tensors().items()},
            "opset": OPSET,
            "batch": batch,
            "input": input_form,
            "map": map_form,
            "keep": takes_keep,
            "outputs": [node.name for node in model.graph.output],
            "certificate": certificate.to_json(),
        },
    )
    return certificate.to_json()


def _too_large(detector: Method) -> bool:
    """Say whether the arrays that drift compares with would make the header too large."""
    arrays = {} if detector.reference is None else detector.reference.tensors()
    return sum(array.nbytes for array in arrays.values()) > _MOST_REFERENCE
