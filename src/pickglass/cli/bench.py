"""``pickglass bench``: how fast, how large and how good models are on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import percent, print_table, say
from pickglass.cli.options import Compute, Folder, Json

if TYPE_CHECKING:
    from pickglass.app.results import BenchResult, BenchRun

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Model files and exported files; none: PatchCore, PaDiM and EfficientAD are fitted on generated "
            "pictures and measured, in two minutes.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Read the images of this folder; with good and bad test images it also tells how good each model is. "
            "By default pictures are generated."
        ),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            help="Write a page with curves (.html), a row a run (.csv), or a line of JSON a run (.jsonl); may be given "
            "several times.",
        ),
    ] = None,
    protocol: Annotated[
        Literal["files", "efficientad"],
        typer.Option(
            help="Time from the file to the defects, or as the EfficientAD paper does, the network alone: 1000 passes "
            "after 1000."
        ),
    ] = "files",
    repeat: Annotated[int | None, typer.Option(min=1, help="Time so many passes; 200, or 1000 by the paper.")] = None,
    warm_up: Annotated[
        int | None, typer.Option(min=1, help="Run so many passes before; 20, or 1000 by the paper.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images at once, for images/s; 8, or 16 with --protocol efficientad.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Compute with so many threads; by default as OMP_NUM_THREADS says, or all cores."),
    ] = None,
    *,
    folder: Folder,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Measure models on this machine: time of each stage, images/s, memory and accuracy, in every runtime."""
    from pickglass.app.bench.bench import BenchRequest
    from pickglass.app.bench.bench import bench as use_case

    request = BenchRequest(protocol, warm_up, repeat, batch, threads)
    run(
        lambda progress: use_case(
            models or [],
            None if data is None else folder.source(data),
            request,
            output or [],
            compute=compute.options(),
            progress=progress,
        ),
        _show,
        as_json,
    )


def _show(result: BenchResult) -> None:
    machine, runs = result["machine"], result["runs"]
    threads = "threads as each runtime likes" if machine["threads"] is None else f"{machine['threads']} threads"
    say(
        f"{machine['cpu']}, {machine['cores']} cores, {threads}; float32 matrix peak {machine['peak_gflops']:.0f} "
        f"GFLOP/s in {machine['peak_library']}"
    )
    say(f"images: {result['images']}")
    if runs:
        _show_runs(result)
        _show_stages("stages, ms at one image a time (median)", runs, [_times(run) for run in runs])
        each = [dict(run["stage_images_per_s"]) for run in runs]
        _show_stages(f"stages, images/s at {result['batch']} images at once, each alone", runs, each)
        timed = sorted({run["latency"]["n"] for run in runs})
        passes = f"{timed[0]}" if len(timed) == 1 else f"{timed[0]} to {timed[-1]}"
        say(
            f"{passes} passes after {result['warm_up']}; p95 and p99 are times that were measured. peak MB: of the "
            "process. first: from loading the file to the first verdict, libraries included"
        )
    for note in result["notes"]:
        say(note)
    for path in result["written"]:
        say(f"written: {path}")


def _show_runs(result: BenchResult) -> None:
    from pickglass.metrics.catalogue import METRICS

    keys = [key for key in ("image_auroc", "aupro_30") if any(run[key] is not None for run in result["runs"])]
    heads = ["model", "runtime", "precision", "median ms", "mean ms", "p95 ms", "p99 ms", "images/s", "of peak"]
    heads += ["file MB", "peak MB", "first s", *(METRICS[key].short for key in keys)]
    rows = []
    for run_ in result["runs"]:
        latency = run_["latency"]
        rows.append(
            [
                run_["name"],
                _runtime(run_),
                run_["precision"],
                *(_number(latency[key]) for key in ("median_ms", "mean_ms", "p95_ms", "p99_ms")),
                f"{run_['images_per_s']:.1f}",
                "–" if run_["peak_share"] is None else percent(round(run_["peak_share"], 3)),
                f"{run_['file_mb']:.1f}",
                "–" if run_["peak_mb"] is None else f"{run_['peak_mb']:.0f}",
                f"{run_['first_s']:.2f}",
                *(METRICS[key].text(run_[key]) or "–" for key in keys),  # type: ignore[literal-required]
            ]
        )
    print_table(heads, rows, text=("runtime", "precision"))


def _times(run_: BenchRun) -> dict[str, float]:
    return {name: times["median_ms"] for name, times in run_["stages"].items()}


def _show_stages(title: str, runs: Sequence[BenchRun], values: Sequence[dict[str, float]]) -> None:
    from pickglass.app.results import BENCH_STAGES

    stages = [name for name in BENCH_STAGES if any(name in figures for figures in values)]
    rows = [
        [run_["name"], _runtime(run_), run_["precision"], *(_number(figures.get(name)) for name in stages)]
        for run_, figures in zip(runs, values, strict=True)
    ]
    print_table(["model", "runtime", "precision", *stages], rows, text=("runtime", "precision"), title=title)


def _runtime(run_: BenchRun) -> str:
    return run_["runtime"] if run_["device"] == "cpu" else f"{run_['runtime']} on {run_['device']}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
