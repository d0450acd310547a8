"""Exported PatchCore and PaDiM against the peer, in one run on one machine: images/s, and p99 beside the median.

    python -m bench run runtime DATA --peer-python PY

DATA is a folder in MVTec AD layout, for the figures in the docs magnetic_tile. Both tools read the same files with
EfficientNet-Lite0, the same weights and layers, 256 px and 16 images at once; PatchCore has a bank of 1 % of the
patches, PaDiM 100 channels of three layers. Ours are exported and measured by ``pickglass bench``, each runtime in a
process of its own without torch in use: ``images_per_s`` is from the files to the maps, as the peer's predict is;
``p99_over_median`` that of one image at a time. The peer's bank is drawn at random, which changes nothing but the
minutes that its coreset takes. ``--precision int8`` quantises the convolutions and the search of ours by the good
images; its accuracy stands beside. ``times_faster`` is the faster runtime's images/s divided by the peer's. Aims: at
least 10 for both, and a p99 within twice the median. Without a peer only our figures are measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pickglass as pg
from bench.harness import Case, Record, Suite, add_peer, markdown, only_set, run_peer
from bench.padim import DIMS, LAYERS
from pickglass.app.bench.bench import BenchRequest, bench
from pickglass.app.results import BenchResult, BenchRun
from pickglass.detectors.precision import Precision

BATCH = 16
CERTIFIED = 4  # images of the certificate, which is not what is measured

Figures = dict[str, Any]


def write_models(data: pg.Dataset, folder: Path, size: int, ratio: float, precision: Precision) -> list[Path]:
    """Fit both detectors on the good images, and export them."""
    written = []
    detectors = (pg.PatchCore(size=size, ratio=ratio), pg.PaDiM(layers=list(LAYERS), dims=DIMS, size=size))
    for detector in detectors:
        detector.fit(data, calibrate=0, batch=BATCH)
        written.append(folder / f"{detector.method}.onnx")
        if precision == "int8":  # its ranges are those of all good images
            at_once = BATCH if detector.method == "padim" else None  # its Gaussians are read once for all of them
            detector.export(written[-1], data.train, batch=at_once, precision=precision)
        else:
            detector.export(written[-1], data.train[:CERTIFIED], precision=precision)
    return written


def ours(models: list[Path], folder: Path, repeat: int) -> BenchResult:
    result = bench(models, folder, BenchRequest(repeat=repeat, batch=BATCH))
    if result["failed"]:
        raise SystemExit(f"not all could be measured: {result['failed']}")
    return result


def of_run(run: BenchRun) -> Figures:
    latency = run["latency"]
    p99 = latency["p99_ms"]
    return {
        "images_per_s": run["images_per_s"],
        "median_ms": latency["median_ms"],
        "p99_ms": p99,
        "p99_over_median": None if p99 is None else p99 / latency["median_ms"],
        "peak_mb": run["peak_mb"],
        "image_auroc": run["image_auroc"],
        "aupro_30": run["aupro_30"],
    }


def peer(method: str, folder: Path, size: int, ratio: float, python: Path) -> Figures:
    """Let the peer fit and predict."""
    own: list[object] = ["--random-bank", "--ratio", ratio]
    if method == "padim":
        own = ["--n-features", DIMS, "--layers", *LAYERS.values()]
    return run_peer(python, folder, "--method", method, "--size", size, "--batch", BATCH, *own)


def compare(given: argparse.Namespace) -> Figures:
    data = pg.load_dataset(given.data)
    with tempfile.TemporaryDirectory() as scratch:
        models = write_models(data, Path(scratch), given.size, given.ratio, given.precision)
        measured = ours(models, given.data, given.repeat)
    result: Figures = {"n_fit": len(data.train), "notes": measured["notes"]}
    result["peak_gflops"] = measured["machine"]["peak_gflops"]
    for method in ("patchcore", "padim"):
        found: Figures = {run["runtime"]: of_run(run) for run in measured["runs"] if run["method"] == method}
        result[method] = {"ours": found}
        if given.peer_python:
            theirs = peer(method, given.data.resolve(), given.size, given.ratio, given.peer_python)
            best = max(figures["images_per_s"] for figures in found.values())
            result[method] |= {"peer": theirs, "times_faster": best / theirs["images_per_s"]}
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ratio", type=float, default=0.01, help="share of the patches in PatchCore's bank")
    parser.add_argument("--repeat", type=int, default=400, help="passes of one image, and images of the throughput")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    add_peer(parser)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    key = {"data": given.data.name, "precision": given.precision, "size": given.size, "ratio": given.ratio}
    yield Case(key, lambda: compare(given))


def table(rows: list[Record]) -> str:
    heads = ["method", "precision", "runtime", "images/s", "median ms", "p99 ms", "peer, images/s", "times faster"]
    lines = []
    for row in rows:
        for method in ("patchcore", "padim"):
            own = row[method]
            faster = (
                [f"{own['peer']['images_per_s']:.1f}", f"{own['times_faster']:.1f}"] if "peer" in own else ["–"] * 2
            )
            for runtime, run in own["ours"].items():
                p99 = "–" if run["p99_ms"] is None else f"{run['p99_ms']:.1f}"
                cells = [
                    method,
                    row["precision"],
                    runtime,
                    f"{run['images_per_s']:.0f}",
                    f"{run['median_ms']:.1f}",
                    p99,
                ]
                lines.append([*cells, *faster])
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table})
