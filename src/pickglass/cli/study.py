"""``pickglass study``: methods x backbones x layers x sizes x weights, into one file that a later call goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import as_latex, as_markdown, duration, print_table, say
from pickglass.cli.options import Cluster, Folder, Json, Machine
from pickglass.cli.types import input_size, layer_sets, names, settings_by_method

if TYPE_CHECKING:
    from pickglass.app.results import StudyCell, StudyResult
    from pickglass.metrics.catalogue import Metric

__all__ = ["study"]


def study(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA...", help="Folders; a root with many categories stands for all of them."),
    ],
    file: Annotated[
        Path, typer.Option("-o", "--output", help="File of the results; cells that it holds are not done again.")
    ] = Path("study.sqlite"),
    methods: Annotated[str | None, typer.Option(help="Methods, e.g. patchcore,fastflow.")] = None,
    backbones: Annotated[str | None, typer.Option(help="Backbones, e.g. resnet50,densenet201.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of each detector, e.g. layer2,layer3,layer2+layer3; each: every named layer on its own."
        ),
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Inputs of the network in pixels, e.g. 128,256,512.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of the backbones, e.g. supervised,random,moco_v2.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fit each detector with so many seeds, from 0 on.")] = 1,
    preset: Annotated[
        str | None, typer.Option(help="Study by name: heckler2023; the options above then select among its cells.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a setting, e.g. fastflow.epochs=20."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells with an estimate of their time.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Export the cells to this .csv file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write this HTML page.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Show so many images of each data set on the page.")] = 10,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table a data set as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print a table a data set as LaTeX.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Run so many tasks at once; by default one, on Ray as many as there is room for."),
    ] = None,
    memory_gb: Annotated[float, typer.Option(help="Gigabytes that each process or Ray task may hold.")] = 4.0,
    *,
    folder: Folder,
    cluster: Cluster,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Fit and test every combination of methods, backbones, layers and sizes once; a later call goes on."""
    from pickglass.app.study.study import StudyFiles, StudyRequest, list_cells
    from pickglass.app.study.study import study as use_case

    request = StudyRequest(
        methods=names(methods),
        backbones=names(backbones),
        layers=layer_sets(layers),
        sizes=None if sizes is None else [input_size(size) for size in names(sizes) or []],
        weights=names(weights),
        seeds=seeds,
        preset=preset,
        settings=settings_by_method(settings or []),
    )
    sources = [folder.source(path) for path in data]
    if dry_run:
        run(lambda progress: list_cells(sources, file, request), _show_cells, as_json)
        return
    run(
        lambda progress: use_case(
            sources,
            file,
            request,
            files=StudyFiles(csv, report, images),
            where=cluster.where(workers, memory_gb),
            compute=machine.options(),
            progress=progress,
        ),
        _show if not (markdown or latex) else lambda result: _write(result, latex),
        as_json,
        wanting=lambda result: result["missing"] > 0,
        notes=(lambda result: result["notes"]) if markdown or latex else None,
    )


def _show_cells(result: StudyResult) -> None:
    _table(
        result,
        {"estimate": [_known_time(cell["estimate_s"]) for cell in result["cells"]]},
    )
    _summary(result)


def _show(result: StudyResult) -> None:
    from pickglass.metrics.catalogue import METRICS

    cells, auroc, aupro = result["cells"], METRICS["image_auroc"], METRICS["aupro_30"]
    _table(
        result,
        {
            auroc.short: [auroc.text(cell["image_auroc"]) or "–" for cell in cells],
            aupro.short: [aupro.text(cell["aupro_30"]) or "–" for cell in cells],
            "time": [_known_time(cell["total_s"]) for cell in cells],
        },
    )
    _summary(result)


def _known_time(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _table(result: StudyResult, columns: dict[str, list[str]]) -> None:
    cells = result["cells"]
    heads = [*_NAMES, "seed", "state", *columns]
    for data, name in dict.fromkeys((cell["data"], cell["dataset"]) for cell in cells):
        rows = [
            [*_names(cell), str(cell["seed"]), cell["state"], *(column[i] for column in columns.values())]
            for i, cell in enumerate(cells)
            if (cell["data"], cell["dataset"]) == (data, name)
        ]
        print_table(heads, rows, text=[*_NAMES[:4], "state"], title=name)


_NAMES = ("method", "backbone", "layers", "weights", "size")


def _names(cell: StudyCell) -> tuple[str, ...]:
    return cell["method"], cell["backbone"], "+".join(cell["layers"]), cell["weights"], str(cell["size"])


def _write(result: StudyResult, latex: bool) -> None:
    """Print a table for each data set, a row for each combination: means over the seeds, and their deviation."""
    from pickglass.metrics.catalogue import METRICS

    keys: tuple[Literal["image_auroc", "aupro_30"], ...] = ("image_auroc", "aupro_30")
    sets: dict[tuple[str, str], dict[tuple[str, ...], list[StudyCell]]] = {}
    for cell in result["cells"]:
        kinds = sets.setdefault((cell["data"], cell["dataset"]), {})
        kinds.setdefault(_names(cell), []).append(cell)
    for (_, name), kinds in sets.items():
        rows = [
            [*kind, *(_over_seeds(METRICS[key], [cell[key] for cell in cells]) for key in keys)]
            for kind, cells in kinds.items()
        ]
        heads = [*_NAMES, *(METRICS[key].label for key in keys)]
        typer.echo(f"% {name}\n{as_latex(heads, rows)}\n" if latex else f"### {name}\n\n{as_markdown(heads, rows)}\n")


def _over_seeds(metric: Metric, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    text = metric.text(fmean(known)) or "–"
    return text if len(known) == 1 else f"{text} ± {stdev(known):.{metric.digits}f}"


def _summary(result: StudyResult) -> None:
    for note in result["notes"]:
        say(note)
    for line in result["left_out"]:
        say(f"left out: {line}")
    causes = {cell["error"]: cell for cell in reversed(result["cells"]) if cell["error"]}
    for error, cell in causes.items():
        say(f"{cell['state']}: {str(error).strip()}\n  then: {cell['command']}")
    states = ", ".join(f"{result[name]} {name}" for name in ("done", "failed", "missing", "waiting"))
    say(f"{result['n']} cells: {states}")
    if result["estimate_s"] is not None:
        say(f"about {duration(result['estimate_s'])}, one after the other; a guess until cells like these are done")
    for path in (result["csv"], result["report"]):
        if path:
            say(f"written: {path}")
