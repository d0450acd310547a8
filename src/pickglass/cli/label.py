"""``pickglass label``: teach a model to name defects."""

from __future__ import annotations

from enum import Enum
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
    Layout,
    MaxPixels,
    Workers,
    print_json,
)

if TYPE_CHECKING:
    from pickglass.app.results import LabelResult

__all__ = ["label"]


class PoolingOption(str, Enum):
    """How a region becomes one vector."""

    average = "average"
    bilinear = "bilinear"


def label(
    model: Annotated[Path, typer.Argument(help="Model file; the types are written into it.")],
    data: Annotated[Path, typer.Argument(help="Examples: a folder with one folder a type, or any known layout.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write this model file instead.")] = None,
    pooling: Annotated[PoolingOption, typer.Option(help="Of the features of a region.")] = PoolingOption.average,
    layers: Annotated[str | None, typer.Option(help="Some of the model's layers, e.g. stage3; by default all.")] = None,
    sure: Annotated[float, typer.Option(help="Share of names that should be right; the others are unknown.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the folds of the cross-validation.")] = 0,
    layout: Layout = None,
    group_by: GroupBy = None,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Learn to name defects from 5 to 20 examples a type; images used here must not judge the names."""
    from pickglass.app import label as use_case
    from pickglass.cli.show import progress_bar

    with progress_bar() as progress:
        result = use_case.label(
            model,
            data,
            output,
            pooling=pooling.value,
            layers=None if layers is None else [name for name in layers.split(",") if name],
            sure=sure,
            layout=layout,
            group_pattern=group_by,
            seed=seed,
            progress=progress,
            device=device,
            engine=engine.value,
            workers=workers,
            max_pixels=max_pixels,
        )
    print_json(result) if as_json else _show(result)


def _show(result: LabelResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=160)
    table = Table("type", "examples", *(f"as {kind}" for kind in result["types"]), title="cross-validation by group")
    for kind, n in result["types"].items():
        table.add_row(kind, str(n), *(str(count) for count in result["confusion"][kind].values()))
    console.print(table, markup=False)
    console.print(f"named rightly, mean over types, if all were named: {result['accuracy']:.0%}")
    console.print(result["sentence"], markup=False)
    console.print(f"model: {result['model']}", markup=False)
