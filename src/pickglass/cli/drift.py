"""``pickglass drift``: have the images changed since calibration?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.options import (
    MAX_PIXELS,
    Device,
    EngineName,
    EngineOption,
    GroupBy,
    Json,
    MaxPixels,
    Workers,
    finish,
    print_json,
)

if TYPE_CHECKING:
    from pickglass.app.results import DriftChange, DriftResult

__all__ = ["drift"]


def drift(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    images: Annotated[list[Path], typer.Argument(help="New images, or folders of them.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Good images to compare with, or folders of them, in place of those in the model."),
    ] = None,
    level: Annotated[float, typer.Option(help="Chance of an alarm where nothing has changed.")] = 0.05,
    group_by: GroupBy = None,
    seed: Annotated[int, typer.Option(help="Of the permutations, and of which image speaks for its group.")] = 0,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Have the images changed since calibration? A test with a stated level, and what moved. Exit code 1: they have."""
    from pickglass.app import drift as use_case
    from pickglass.cli.show import progress_bar

    with progress_bar() as progress:
        result = use_case.drift(
            model,
            images,
            against=against or None,
            level=level,
            group_pattern=group_by,
            seed=seed,
            device=device,
            engine=engine.value,
            workers=workers,
            max_pixels=max_pixels,
            progress=progress,
        )
    print_json(result) if as_json else _show(result)
    finish(result["failed"])
    if result["drift"]:
        raise typer.Exit(1)


def _show(result: DriftResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    table = Table(
        "what",
        caption=f"sd: change in standard deviations of the reference; delta: Cliff's delta, -1 to 1; p: adjusted for "
        f"{len(result['changes'])} questions, drift from {result['level']:g} down",
        caption_justify="left",
    )
    for name in ("reference", "now", "sd", "delta", "p"):
        table.add_column(name, justify="right")
    table.add_column("moved")
    for change in result["changes"]:
        table.add_row(*_row(change), style="bold" if change["moved"] else None)
    console.print(table)
    console.print(result["sentence"], markup=False, soft_wrap=True)
    if result["left_out"]:
        console.print(f"left out: {result['left_out']} images that were fitted or are compared with", soft_wrap=True)


def _row(change: DriftChange) -> list[str]:
    sd = "–" if change["difference"] is None else f"{change['difference']:+.1f}"
    numbers = [f"{change['before']:.3g}", f"{change['now']:.3g}", sd, f"{change['delta']:+.2f}", f"{change['p']:.3g}"]
    return [change["what"], *numbers, change["how"] if change["moved"] else ""]
