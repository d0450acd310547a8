"""What a lower precision of an exported file saves and costs: size, time and accuracy, for four methods.

    python -m bench run precision DATA OUT [--methods patchcore,padim,...] [--precisions float32,float16,int8]
        [--calls 30]

Fits each method with its quick preset on the training images (EfficientAD with few steps) and saves
OUT/METHOD.safetensors; what is there already is left alone. Exports each in each precision, with its certificate,
compares torch and the file on the test images, and times both runtimes with one thread and with all.

A file takes one image a call; of the calls the median counts. AUROC and AUPRO are those of the worse runtime; ``torch``
is the model itself. A file that the certificate refuses is listed with the reason.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import Case, Record, Suite, markdown, middle, only_set, turns
from pickglass.app.fit import build
from pickglass.data import Dataset, load_dataset
from pickglass.detectors.certificate import inputs_of
from pickglass.detectors.detector import Detector
from pickglass.detectors.onnx_graph import needs_keep
from pickglass.detectors.precision import Inputs, Precision
from pickglass.errors import InputError
from pickglass.methods import METHODS, load

FEW: dict[str, dict[str, Any]] = {"efficientad": {"steps": 60}}
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
HEADS = "method | precision | MB | onnxruntime, 1 thread | all | OpenVINO, 1 thread | all | image AUROC | AUPRO | flips"

Figures = dict[str, Any]


def fitted(method: str, dataset: Dataset, out: Path) -> Detector:
    path = out / f"{method}.safetensors"
    if not path.exists():
        preset = "quick" if "quick" in METHODS[method].presets else None
        build(method, preset, FEW.get(method, {})).fit(dataset.train, seed=0).save(path)
    return load(path)


def median_ms(run: Callable[[], Any], calls: int) -> float:
    return round(1000 * middle(turns({"": run}, calls, warm_up=3)[""]), 2)


def times(path: Path, inputs: Inputs, calls: int) -> Figures:
    import onnxruntime
    import openvino

    found: Figures = {}
    for label, threads in (("1", 1), ("all", os.cpu_count() or 1)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found[f"onnxruntime {label}"] = median_ms(lambda s=session: s.run(None, inputs), calls)  # type: ignore[misc]
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        found[f"openvino {label}"] = median_ms(lambda c=compiled: c(inputs), calls)  # type: ignore[misc]
    return found


def measured(method: str, precision: Precision, dataset: Dataset, out: Path, calls: int) -> Figures:
    detector, path = fitted(method, dataset, out), out / f"{method}-{precision}.onnx"
    result: Figures = {"canvas": list(detector.input_size)}
    try:
        certificate = detector.export(path, dataset.train, precision=precision, test=dataset.test, max_loss=1.0)
    except InputError as error:
        return {**result, "refused": str(error)}
    _, inputs = next(inputs_of(detector, dataset.test[:1], 1, "float32", needs_keep(detector)))
    return {**result, "mb": path.stat().st_size / 1e6, "ms": times(path, inputs, calls), "certificate": certificate}


def worse(accuracy: Figures, key: str) -> float:
    return min(float(accuracy[name][key]) for name in ("onnxruntime", "openvino"))


def cells_of(figures: Record) -> list[str]:
    names = [figures["method"], figures["precision"]]
    if "refused" in figures:
        return [*names, figures["refused"], *[""] * (HEADS.count("|") - 2)]
    certificate, ms = figures["certificate"], figures["ms"]
    flips = max(own["flips"] for own in certificate["runtimes"].values())
    cells = [f"{figures['mb']:.1f}"]
    cells += [f"{ms[key]:.1f}" for key in ("onnxruntime 1", "onnxruntime all", "openvino 1", "openvino all")]
    cells += [f"{worse(certificate['accuracy'], key):.3f}" for key in ("image_auroc", "aupro_30")]
    return [*names, *cells, f"{flips} of {certificate['good'] + certificate['painted']}"]


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default="patchcore,padim,efficientad,fastflow")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--calls", type=int, default=30)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    given.out.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(given.data)
    for method in given.methods.split(","):
        for precision in (p for p in PRECISIONS if p in given.precisions.split(",")):
            key = {"data": given.data.name, "method": method, "precision": precision}
            yield Case(key, partial(measured, method, precision, dataset, given.out, given.calls))


def table(rows: list[Record]) -> str:
    return markdown(HEADS.split(" | "), map(cells_of, rows))


def table_of_answers(rows: list[Record]) -> str:
    """How far each file is from torch, by the worse runtime, and what that costs."""
    lines = []
    for row in rows:
        if "refused" in row:
            lines.append([row["method"], row["precision"], *[""] * 4, f"refused: {_why(row['refused'])}"])
            continue
        certificate = row["certificate"]
        runtimes, accuracy = certificate["runtimes"].values(), certificate["accuracy"]
        off = [f"{max(own[key] for own in runtimes):.1%}" for key in ("score_difference", "map_difference")]
        lost = [f"{accuracy['torch'][k]:.3f} -> {worse(accuracy, k):.3f}" for k in ("image_auroc", "aupro_30")]
        flips = max(own["flips"] for own in runtimes)
        verdicts = f"{flips} of {certificate['good'] + certificate['painted']}"
        lines.append([row["method"], row["precision"], *off, *lost, verdicts])
    heads = ["scores off by up to", "maps off by up to", "image AUROC", "AUPRO@0.3", "verdicts flipped"]
    return markdown(["method", "precision", *heads], lines)


def _why(refusal: str) -> str:
    """The figures of a refusal."""
    _, _, figures = refusal.partition("differently from torch: ")
    return figures.partition(". ")[0] or refusal


SUITE = Suite(cases, arguments, {"": table, "answers": table_of_answers})
