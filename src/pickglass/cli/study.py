"""``pickglass study``: methods x backbones x layers x sizes x weights, into one file that a later call goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pickglass.cli.options import (
    MAX_PIXELS,
    Device,
    EngineName,
    EngineOption,
    ExecutorOption,
    GroupBy,
    Json,
    Layout,
    MaxPixels,
    print_json,
)
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import StudyResult

__all__ = ["study"]


File = Annotated[Path, typer.Option("-o", "--output", help="File of the results; an old one is gone on with.")]
Preset = Annotated[str | None, typer.Option(help="heckler2023; what else is given selects among its cells.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="method.key=value, e.g. fastflow.epochs=20.")]
Where = Annotated[ExecutorOption, typer.Option(help="local, or ray (pickglass[cluster]).")]


def study(
    data: Annotated[list[Path], typer.Argument(help="Folders; a root with many categories stands for all of them.")],
    file: File = Path("study.sqlite"),
    methods: Annotated[str | None, typer.Option(help="E.g. patchcore,fastflow.")] = None,
    backbones: Annotated[str | None, typer.Option(help="E.g. resnet50,densenet201.")] = None,
    layers: Annotated[str | None, typer.Option(help="each, or e.g. layer2,layer3,layer2+layer3.")] = None,
    sizes: Annotated[str | None, typer.Option(help="E.g. 128,256,512.")] = None,
    weights: Annotated[str | None, typer.Option(help="E.g. supervised,random,moco_v2.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    preset: Preset = None,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells with an estimate of their time.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Export the cells to this .csv file.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each data set on the page.")] = 10,
    executor: Where = ExecutorOption.local,
    workers: Annotated[int, typer.Option(min=1, help="Processes, local.")] = 1,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, e.g. auto.")] = None,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs of a Ray task.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a Ray task.")] = 0.0,
    memory_gb: Annotated[float, typer.Option(help="Memory of each process or Ray task.")] = 4.0,
    layout: Layout = None,
    group_by: GroupBy = None,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Which method, backbone, layer and size see the defects: every combination once, resumable."""
    from pickglass.app.study import study as use_case
    from pickglass.cli.show import progress_bar

    with progress_bar() as progress:
        result = use_case.study(
            data,
            file,
            methods=_listed(methods),
            backbones=_listed(backbones),
            layers=_listed(layers),
            sizes=None if sizes is None else [int(s) if s.isdecimal() else s for s in _listed(sizes) or []],
            weights=_listed(weights),
            seeds=seeds,
            preset=preset,
            settings=_settings(settings or []),
            dry_run=dry_run,
            csv=csv,
            report=report,
            images=images,
            executor=executor.value,
            parallel=workers,
            address=address,
            cpus=cpus,
            gpus=gpus,
            memory_gb=memory_gb,
            layout=layout,
            group_by=group_by,
            device=device,
            engine=engine.value,
            max_pixels=max_pixels,
            progress=progress,
        )
    print_json(result) if as_json else _show(result, dry_run)
    if not dry_run and (result["failed"] or result["missing"]):
        raise typer.Exit(1)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def _settings(texts: list[str]) -> dict[str, dict[str, Any]]:
    """method.key=value; the value is JSON where it can be read as such, else text."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        method, dot, key = name.partition(".")
        if not equals or not dot or not key:
            raise InputError(f"--set {text!r}: expected method.key=value, e.g. --set fastflow.epochs=20")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        found.setdefault(method, {})[key.replace("-", "_")] = parsed
    return found


def _show(result: StudyResult, dry_run: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=200)
    columns = ["data set", "method", "backbone", "layers", "weights", "size", "seed", "state"]
    table = Table(*columns)
    for name in ["estimate"] if dry_run else ["image AUROC", "AUPRO@0.30", "seconds"]:
        table.add_column(name, justify="right")
    for cell in result["cells"]:
        values = [cell["estimate_s"]] if dry_run else [cell["image_auroc"], cell["aupro_30"], cell["total_s"]]
        shown = [("–" if value is None else f"{value:.3f}") for value in values]
        if dry_run or cell["total_s"] is not None:
            shown[-1] = "–" if values[-1] is None else _time(values[-1])
        names = [cell["dataset"], cell["method"], cell["backbone"], "+".join(cell["layers"]), cell["weights"]]
        table.add_row(*names, str(cell["size"]), str(cell["seed"]), cell["state"], *shown)
    console.print(table, markup=False)
    for line in result["left_out"]:
        console.print(f"left out: {line}", markup=False)
    causes = {cell["error"]: cell for cell in reversed(result["cells"]) if cell["error"]}
    for error, cell in causes.items():
        console.print(f"{cell['state']}: {str(error).strip()}\n  then: {cell['command']}", markup=False, soft_wrap=True)
    states = ", ".join(f"{result[name]} {name}" for name in ("done", "failed", "missing", "waiting"))
    console.print(f"{result['n']} cells: {states}", markup=False)
    if result["estimate_s"] is not None:
        console.print(
            f"about {_time(result['estimate_s'])}, one after the other; a guess until cells like these are done"
        )
    for path in (result["csv"], result["report"]):
        if path:
            console.print(f"written: {path}", markup=False)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
