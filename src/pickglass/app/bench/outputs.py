"""The files of a bench: a page with curves, a table, or lines of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pickglass.app.results import BENCH_STAGES, BenchResult, BenchRun
from pickglass.data.files import output_path, written_whole
from pickglass.data.tables.cells import cell
from pickglass.errors import InputError

__all__ = ["writer"]

_SUFFIXES = (".html", ".csv", ".jsonl")


def writer(path: str | Path) -> Callable[[BenchResult], object]:
    """Return what writes the result to a file, by its suffix, before the long computation starts.

    Raises:
        InputError: another suffix, or a folder that does not exist.
        ModuleNotFoundError: a page, whose templates need what is not installed.
    """
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise InputError(f"output file {str(path)!r}: expected a name that ends in {', '.join(_SUFFIXES)}")
    target = output_path(path, suffix)
    if suffix == ".html":
        from pickglass.app.pages.bench import write_bench

        return lambda result: write_bench(target, result)
    write = _write_csv if suffix == ".csv" else _write_lines
    return lambda result: write(target, result)


def _write_csv(target: Path, result: BenchResult) -> None:
    rows = [_flat(run) for run in result["runs"]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with written_whole(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


def _flat(run: BenchRun) -> dict[str, Any]:
    """Return a run as a row of a table: the stages become columns, single times are left out."""
    height, width = run["canvas"]
    row: dict[str, Any] = {"model": run["model"], "method": run["method"], "runtime": run["runtime"]}
    row["device"] = run["device"]
    row |= {"precision": run["precision"], "canvas": f"{height}x{width}", **run["latency"]}
    row |= {f"{name}_median_ms": run["stages"][name]["median_ms"] for name in BENCH_STAGES if name in run["stages"]}
    row |= {"batch": run["batch"], "images_per_s": run["images_per_s"]}
    rates = run["stage_images_per_s"]
    row |= {f"{name}_images_per_s": rates[name] for name in BENCH_STAGES if name in rates}
    last = ("file_mb", "peak_mb", "first_s", "gflop", "peak_share", "n_judged", "image_auroc", "aupro_30")
    return {**row, **{name: run[name] for name in last}}  # type: ignore[literal-required]


def _write_lines(target: Path, result: BenchResult) -> None:
    about = {name: value for name, value in result.items() if name not in ("runs", "failed", "written")}
    with written_whole(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for run in result["runs"]:
            file.write(json.dumps({**run, **about}) + "\n")
