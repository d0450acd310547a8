"""``pickglass reproduce``: the protocols of papers on a benchmark, our figures beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import as_latex, as_markdown, print_table, say
from pickglass.cli.options import Download, Json, Machine, let_download
from pickglass.cli.types import names, settings_by_method

if TYPE_CHECKING:
    from pickglass.app.results import ReproduceResult, ReproduceRow

__all__ = ["compared", "reproduce"]


def reproduce(
    benchmark: Annotated[
        Literal["mvtec", "visa", "loco", "mvtec_ad_2"],
        typer.Argument(metavar="BENCHMARK", help="mvtec, visa, loco or mvtec_ad_2."),
    ],
    root: Annotated[
        list[Path],
        typer.Option(help="Folder of the benchmark, or of one category of it; may be given several times."),
    ],
    file: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File of the results; by default reproduce-BENCHMARK.sqlite."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, e.g. patchcore,fastflow; by default all with published figures.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Read this backbone instead of each paper's, e.g. efficientnet_lite0, whose weights are here. "
            "The table says so."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Depart from the paper, e.g. fastflow.epochs=20."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fit each detector with so many seeds, from 0 on.")] = 1,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the table as LaTeX.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Run so many processes at once.")] = 1,
    memory_gb: Annotated[float, typer.Option(help="Gigabytes that each process may hold.")] = 4.0,
    download: Download = False,
    *,
    machine: Machine,
    as_json: Json = False,
) -> None:
    """Fit the methods as their papers do on a benchmark, and print our figures beside the published ones.

    A call that was killed goes on when it is given again.
    """
    from pickglass.app.jobs.executors import Where
    from pickglass.app.reproduce import ReproduceRequest
    from pickglass.app.reproduce import reproduce as use_case

    let_download(download)
    changed = settings_by_method(settings or [])
    request = ReproduceRequest(benchmark, names(methods), backbone, changed, seeds)
    target = file or Path(f"reproduce-{benchmark}.sqlite")

    def show(result: ReproduceResult) -> None:
        if markdown or latex:
            text = as_markdown if markdown else as_latex
            typer.echo(text(*_table(result)))
        else:
            _show(result)

    run(
        lambda progress: use_case(
            root,
            target,
            request,
            where=Where("local", workers, memory_gb=memory_gb),
            compute=machine.options(),
            progress=progress,
        ),
        show,
        as_json,
        wanting=lambda result: result["missing"] > 0 or result["failed"] > 0,
        notes=_notes if markdown or latex else None,
    )


def _table(result: ReproduceResult) -> tuple[list[str], list[list[str]]]:
    from pickglass.metrics.catalogue import METRICS

    metrics = [METRICS[name] for name in result["metrics"]]
    heads = ["method", "backbone", "categories"]
    for metric in metrics:
        heads += [metric.short, "published", "difference"]
    rows = []
    for row in result["rows"]:
        cells = [row["method"], row["backbone"], f"{row['categories']} of {row['of_categories']}"]
        for metric in metrics:
            cells += compared(row, metric.key)
        rows.append(cells)
    return heads, rows


def compared(row: ReproduceRow, name: str) -> list[str]:
    """Write ours, theirs and, where they are of the same images, the difference in per cent, as papers print them."""
    ours, theirs = row["ours"].get(name), row["published"].get(name)
    texts = ["–" if value is None else f"{100 * value:.1f}" for value in (ours, theirs)]
    if ours is None or theirs is None or not row["comparable"]:
        return [*texts, "–"]
    return [*texts, f"{100 * (ours - theirs):+.1f}"]


def _show(result: ReproduceResult) -> None:
    heads, rows = _table(result)
    title = f"{result['title']}, means over categories, in per cent"
    print_table(heads, rows, text=["backbone", "categories"], title=title)
    for note in _notes(result):
        say(note)
    states = ", ".join(f"{result[name]} {name}" for name in ("done", "failed", "missing", "waiting"))
    say(f"{result['n']} cells: {states}; kept in {result['file']}")


def _notes(result: ReproduceResult) -> list[str]:
    notes = list(result["notes"])
    for row in result["rows"]:
        notes.append(f"{row['method']}: published in {row['source']}")
        notes += [f"{row['method']}: {note}" for note in row["notes"]]
    return notes
