"""``pickglass look``: what each layer shows of an image, and whether a defect can still be seen there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.options import MAX_PIXELS, Json, MaxPixels, print_json
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import LookResult

__all__ = ["look"]


def look(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    backbone: Annotated[str, typer.Option(help="Backbone, e.g. wide_resnet50_2.")] = "efficientnet_lite0",
    layers: Annotated[str | None, typer.Option(help="Layers, e.g. stage2,stage5; by default those worth naming.")] = (
        None
    ),
    weights: Annotated[str, typer.Option(help="default, random, the name of a pretraining, or a file.")] = "default",
    size: Annotated[
        str | None,
        typer.Option(help="Input in pixels: 256 or HxW (squeezed), letterbox:256, shorter:256, or native."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Image with values above 0 where the defect is.")] = None,
    box: Annotated[str | None, typer.Option(help="The defect in pixels of the image: x,y,width,height.")] = None,
    good: Annotated[
        Path | None, typer.Option(help="Good images to compare the defect with, in place of what surrounds it.")
    ] = None,
    page: Annotated[Path | None, typer.Option("-o", "--output", help="HTML page to write.")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """What each layer shows of an image; with a mask or box, whether the defect is visible, faint or lost there."""
    from pickglass.app.see import look as use_case
    from pickglass.cli.show import progress_bar

    with progress_bar() as progress:
        result = use_case.look(
            image,
            page,
            backbone=backbone,
            layers=[name for name in (layers or "").split(",") if name],
            weights=weights,
            size=None if size is None else int(size) if size.isdecimal() else size,
            mask=mask,
            box=None if box is None else _box(box),
            good=good,
            seed=seed,
            max_pixels=max_pixels,
            progress=progress,
        )
    print_json(result) if as_json else _show(result)


def _box(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--box {text!r}: expected x,y,width,height in pixels, e.g. 120,64,12,8")
    return [int(part) for part in parts]


def _show(result: LookResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=120)
    height, width = result["size"]
    console.print(f"{result['backbone']}, weights: {result['weights']}, input {height}x{width} px", markup=False)
    table = Table("layer")
    for name in ("grid", "stride", "channels", *(["the defect is"] if result["layers"][0]["verdict"] else [])):
        table.add_column(name, justify="right")
    for layer in result["layers"]:
        cells = [f"{layer['grid'][0]}x{layer['grid'][1]}", str(layer["stride"]), str(layer["channels"])]
        if layer["verdict"]:
            value = "" if layer["contrast_sd"] is None else f" ({round(layer['contrast_sd'], 1) + 0.0:.1f} sd)"
            cells.append(f"{layer['verdict']}{value}")
        table.add_row(layer["layer"], *cells)
    console.print(table, markup=False)
    if result["page"]:
        console.print(f"page: {result['page']}", markup=False)
