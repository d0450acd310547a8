"""The page of a bench: how long an image takes in each runtime, where the time goes, and what the answers are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pickglass.app.pages.build import write_page
from pickglass.app.pages.charts import Axis, Chart, Key, Line, line_chart
from pickglass.app.results import BENCH_STAGES, BenchResult, BenchRun
from pickglass.metrics.catalogue import METRICS

__all__ = ["FIGURES", "name_of", "runtime_of", "write_bench"]

_CURVES = 8  # runs on one chart: as many as there are styles
_POINTS = 400  # of a curve
_SHOWN = 98.0  # percentile of the slowest run, where a chart ends

FIGURES = ("image_auroc", "aupro_30")
"""What the page and the terminal say of accuracy, as in :data:`pickglass.metrics.catalogue.METRICS`."""


class _Cell(NamedTuple):
    text: str
    style: str = ""


class _Row(NamedTuple):
    name: str
    texts: list[str]
    cells: list[_Cell]
    latency: list[str]
    rates: list[str]


def write_bench(target: Path, result: BenchResult) -> Path:
    """Write the page and return its path.

    Args:
        target: HTML file.
        result: what was measured.
    """
    runs = result["runs"]
    stages = [name for name in BENCH_STAGES if any(name in run["stages"] for run in runs)]
    fastest = min((run["latency"]["median_ms"] for run in runs), default=None)
    most = max((run["images_per_s"] for run in runs), default=None)
    machine = result["machine"]
    values = {
        "title": "Speed of models on this machine",
        "result": result,
        "stages": stages,
        "metrics": [METRICS[key] for key in FIGURES],
        "rows": [_row(run, stages, fastest, most) for run in runs],
        "charts": _charts(runs),
        "failed": [(item["path"], item["error"]) for item in result["failed"]],
        "machine": [
            *((name, str(value)) for name, value in machine.items() if name != "versions" and value is not None),
            *machine["versions"].items(),
        ],
    }
    return write_page(target, "bench.html.j2", values)


def name_of(run: BenchRun) -> str:
    """Name a run by file, runtime and precision."""
    return f"{run['name']}, {runtime_of(run)} {run['precision']}"


def runtime_of(run: BenchRun) -> str:
    """Name the runtime, and the device where that is not the CPU."""
    return run["runtime"] if run["device"] == "cpu" else f"{run['runtime']} on {run['device']}"


def _row(run: BenchRun, stages: Sequence[str], fastest: float | None, most: float | None) -> _Row:
    latency = run["latency"]
    cells = [
        _Cell(_ms(latency["median_ms"]), "best" if latency["median_ms"] == fastest else ""),
        *(_Cell(_ms(latency[key])) for key in ("mean_ms", "p95_ms", "p99_ms")),
        _Cell(f"{run['images_per_s']:.1f}", "best" if run["images_per_s"] == most else ""),
        _Cell("–" if run["gflop"] is None else f"{run['gflop']:.2f}"),
        _Cell("–" if run["peak_share"] is None else f"{100 * run['peak_share']:.0f} %"),
        _Cell(f"{run['file_mb']:.1f}"),
        _Cell("–" if run["peak_mb"] is None else f"{run['peak_mb']:.0f}"),
        _Cell(f"{run['first_s']:.2f}"),
        *(_Cell(METRICS[key].text(run[key]) or "–") for key in FIGURES),  # type: ignore[literal-required]
    ]
    times = [_ms(run["stages"][name]["median_ms"]) if name in run["stages"] else "–" for name in stages]
    rates = run["stage_images_per_s"]
    each = [f"{rates[name]:.1f}" if name in rates else "–" for name in stages]
    return _Row(run["name"], [runtime_of(run), run["precision"]], cells, times, each)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _charts(runs: Sequence[BenchRun]) -> list[Chart]:
    """Chart all runs together, or each method by itself where they are many."""
    if len(runs) <= _CURVES:
        return [_chart("Judged within", runs)] if runs else []
    charts = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        charts += [_chart(f"{method}: judged within", own[i : i + _CURVES]) for i in range(0, len(own), _CURVES)]
    return charts


def _chart(title: str, runs: Sequence[BenchRun]) -> Chart:
    """Chart for each run the share of images that were judged within a time."""
    high = max(float(np.percentile(run["times_ms"], _SHOWN)) for run in runs) * 1.1
    lines, keys, slower = [], [], 0
    for i, run in enumerate(runs):
        times = np.sort(np.array(run["times_ms"]))  # (N,)
        slower += int((times > high).sum())
        share = 100 * np.arange(1, len(times) + 1) / len(times)
        thinned = np.unique(np.linspace(0, len(times) - 1, _POINTS).astype(int))
        x, y = times[thinned], share[thinned]
        inside = x <= high
        style = f"line series{i}"
        lines.append(Line(np.concatenate([x[:1], x[inside]]), np.concatenate([[0.0], y[inside]]), style))
        keys.append(Key(style, f"{name_of(run)}: median {run['latency']['median_ms']:.2f} ms", "line"))
    note = f"{slower} slower images lie beyond the right edge" if slower else ""
    x_axis = Axis("milliseconds from beginning to end, one image at a time", 0.0, high)
    return line_chart(title, x_axis, Axis("% of the images", 0.0, 100.0), lines, keys, note)
