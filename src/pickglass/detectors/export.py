"""A fitted detector becomes one ONNX file, which is kept only if it answers as torch does."""

from __future__ import annotations

import copy
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pickglass.calibration import Calibration
from pickglass.data import Row, Table, as_table
from pickglass.data.files import output_path
from pickglass.detectors.certificate import Certificate, Claim, certify, evenly, inputs_of
from pickglass.detectors.loading import silent
from pickglass.detectors.method import Method
from pickglass.detectors.modelfile import model_id
from pickglass.detectors.onnx_graph import OPSET, InputForm, MapForm, onnx_graph
from pickglass.detectors.precision import Precision, check_precision, halve, quantised
from pickglass.errors import DataError, InputError
from pickglass.runtime.compute import Progress
from pickglass.runtime.export_file import write_export
from pickglass.runtime.exported import array_to_json
from pickglass.runtime.model_header import history_of

__all__ = ["export"]

_RANGES = 100  # good images that say which ranges the numbers of an int8 file have, as they are and with a defect
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
    precision: Precision = "float32",
    test: Any = None,
    max_loss: float = 0.01,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a detector as one ONNX file and return its certificate; see :meth:`pickglass.Detector.export`."""
    target = output_path(path, ".onnx")
    for name, value, known in (("input", input_form, ("float32", "uint8")), ("map", map_form, ("grid", "full"))):
        if value not in known:
            raise InputError(f"{name}={value!r}: expected one of {', '.join(known)}")
    check_precision(precision)
    if not (math.isfinite(max_loss) and max_loss >= 0):
        raise InputError(f"max_loss={max_loss!r}: expected a number from 0 on, e.g. 0.01 for one point of AUROC")
    if precision == "int8" and data is None:
        raise InputError(
            "precision='int8' takes the ranges of its numbers from good images: name some (data, --data), at best "
            "those that the model was fitted on. Test images are no substitute"
        )
    if precision == "int8" and batch is None:
        batch = 1  # with an open number of images OpenVINO 2026.4 answers wrong in int8
    regions = detector.provenance.within_regions
    table = None if data is None else regions(as_table(data, role="test"))
    labelled = None if test is None else regions(as_table(test, role="test"))
    own = copy.deepcopy(detector).to("cpu").eval()
    if _too_large(own) or precision == "int8":  # features in int8 are no longer those that drift compares with
        own.reference = None
    plain = onnx_graph(own, batch, input_form, map_form, keep)
    takes_keep = "keep" in [node.name for node in plain.graph.input]
    fresh, learned = _divided(detector, table)
    ranges: list[Row] = []
    if precision == "int8":
        ranges, fresh = (learned, fresh) if learned else (fresh, [])
        if not ranges:
            raise DataError("no good image for precision='int8': name a folder with good images, at best a hundred")
        ranges = evenly(ranges, _RANGES)
    claim = Claim(precision, tuple(fresh), labelled, max_loss)

    def made(search: bool) -> tuple[bytes, bool]:
        model, searched = plain, False
        if precision == "int8":
            model = copy.deepcopy(plain)  # it may be quantised twice
            # defects reach values that no good image has; what lies beyond a range is cut off, and scores with it
            shown = (inputs for _, inputs in inputs_of(own, ranges, batch, input_form, takes_keep, True, seed=1))
            model, searched = quantised(model, shown, search)
        if precision != "float32":
            halve(model)
        return model.SerializeToString(), searched

    def certified(content: bytes) -> tuple[Certificate, Calibration | None]:
        return certify(own, content, table, batch, input_form, map_form, takes_keep, claim, progress or silent)

    content, may_search = made(search=True)
    certificate, calibration = certified(content)
    searched = may_search and certificate.refusal() is None
    if searched != may_search:  # the convolutions alone may be within the tolerance
        content, _ = made(search=False)
        certificate, calibration = certified(content)
    certificate.check()
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
            "title": detector.title,
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
            "precision": precision,
            "int8_search": searched if may_search else None,
            "keep": takes_keep,
            "outputs": [node.name for node in plain.graph.output],
            "certificate": certificate.to_json(),
        },
    )
    return certificate.to_json()


def _divided(detector: Method, table: Table | None) -> tuple[list[Row], list[Row]]:
    """Divide good images into those that the model was not fitted on and the others; where it does not tell, no one."""
    good = [] if table is None else [row for row in table if row.label != 1]
    fresh = set() if detector.provenance.fitted_images is None else set(detector.provenance.unseen(Table(good)))
    return [row for row in good if row in fresh], [row for row in good if row not in fresh]


def _too_large(detector: Method) -> bool:
    """Say whether the arrays that drift compares with would make the header too large."""
    arrays = {} if detector.reference is None else detector.reference.tensors()
    return sum(array.nbytes for array in arrays.values()) > _MOST_REFERENCE
