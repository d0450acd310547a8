"""The study: what the shared backbone pass saves, and that Ray gives the numbers that one machine gives.

    python -m bench run study shared DATA [--methods patchcore,padim] [--sizes 256] [--threads N]
    python -m bench run study ray DATA    [--workers 2]       needs pickglass[cluster]

``shared`` fits and tests every named layer of EfficientNet-Lite0 with each method: once as one study, whose cells read
one backbone pass, and once as one study a cell, in the same process, so that only the passes differ. It wants a quiet
machine. ``ray`` runs the same cells with both executors. Figures are the ratio or the largest difference of any metric.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.harness import Case, Suite, only_set
from pickglass.app.jobs.executors import Where
from pickglass.app.study.study import StudyRequest, study
from pickglass.features.backbones.registry import find_backbone

BACKBONE = "efficientnet_lite0"
METRICS = ("image_auroc", "aupro_30")


def cells(
    data: Path,
    file: Path,
    methods: list[str],
    layers: list[str],
    sizes: list[int],
    where: Where | None = None,
) -> dict[str, Any]:
    """Run them; (method, layers) -> metrics, and the seconds."""
    began = time.perf_counter()
    settings = {name: {"ratio": 0.003} for name in methods if name == "patchcore"}
    request = StudyRequest(methods, [BACKBONE], layers, sizes, settings=settings)
    found = study([data], file, request, where=where)
    rows = found["cells"]
    failed = [row["error"] for row in rows if row["state"] != "done"]
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {failed[0]}")
    metrics = {
        f"{row['method']} {'+'.join(row['layers'])} {row['size']}": {
            "image_auroc": row["image_auroc"],
            "aupro_30": row["aupro_30"],
        }
        for row in rows
    }
    return {"seconds": time.perf_counter() - began, "metrics": metrics}


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    if a.keys() != b.keys():
        raise SystemExit(f"the two runs hold different cells: {sorted(a.keys() ^ b.keys())}")
    return max(abs(float(a[cell][name]) - float(b[cell][name])) for cell, name in itertools.product(a, METRICS))


def shared(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    methods, layers = given.methods.split(","), [level.name for level in find_backbone(BACKBONE).levels]
    cells(given.data, folder / "warm.sqlite", methods[:1], layers[:1], given.sizes)  # whatever is set up once
    together = cells(given.data, folder / "together.sqlite", methods, layers, given.sizes)
    apart: dict[str, Any] = {"seconds": 0.0, "metrics": {}}
    for n, (method, layer) in enumerate(itertools.product(methods, layers)):
        one = cells(given.data, folder / f"{n}.sqlite", [method], [layer], given.sizes)
        apart["seconds"] += one["seconds"]
        apart["metrics"] |= one["metrics"]
    return {
        "cells": len(together["metrics"]),
        "together_s": round(together["seconds"], 1),
        "cell_by_cell_s": round(apart["seconds"], 1),
        "times_faster": round(apart["seconds"] / together["seconds"], 2),
        "largest_difference": difference(together["metrics"], apart["metrics"]),
    }


def ray(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    methods, layers = given.methods.split(","), [level.name for level in find_backbone(BACKBONE).levels]
    local = cells(given.data, folder / "local.sqlite", methods, layers, given.sizes)
    there = cells(given.data, folder / "ray.sqlite", methods, layers, given.sizes, Where("ray", given.workers))
    return {
        "cells": len(local["metrics"]),
        "local_s": round(local["seconds"], 1),
        "ray_s": round(there["seconds"], 1),
        "largest_difference": difference(local["metrics"], there["metrics"]),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["shared", "ray"])
    only_set(parser)
    parser.add_argument("--methods", default="patchcore,padim")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, default=2)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="pickglass-bench-") as folder:
        return {"shared": shared, "ray": ray}[given.what](given, Path(folder))


def study_cases(given: argparse.Namespace) -> Iterator[Case]:
    key = {"part": given.what, "data": given.data.name, "methods": given.methods, "sizes": given.sizes}
    yield Case(key, lambda: measured(given))


SUITE = Suite(study_cases, arguments)
