"""``pickglass look``: what each layer shows of an image, and whether a defect can still be seen there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import Json, MaxPixels, Seed
from pickglass.cli.types import box as read_box
from pickglass.cli.types import each_layer, input_size

if TYPE_CHECKING:
    from pickglass.app.results import LookResult

__all__ = ["look"]


def look(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    backbone: Annotated[
        str, typer.Option(help="Backbone, e.g. wide_resnet50_2; 'pickglass layers --list' lists them.")
    ] = "efficientnet_lite0",
    layers: Annotated[
        str | None, typer.Option(help="Look at these layers, e.g. stage2,stage5; by default those with a name.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Weights of the backbone: default, random, a pretraining, or a file.")
    ] = "default",
    size: Annotated[
        str | None,
        typer.Option(help="Input of the network in pixels: 256 or HxW (squeezed), letterbox:256, shorter:256, native."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Image with values above 0 where the defect is.")] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="The defect in pixels of the image, in place of a mask.")
    ] = None,
    good: Annotated[
        Path | None, typer.Option(help="Compare the defect with these good images, in place of what surrounds it.")
    ] = None,
    page: Annotated[Path | None, typer.Option("-o", "--output", help="Write this HTML page.")] = None,
    seed: Seed = 0,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Show an image through the layers of a backbone; with a mask or box, say where the defect is still visible."""
    defect = read_box(box)
    from pickglass.app.see.look import look as use_case
    from pickglass.app.see.request import BackboneRequest
    from pickglass.data import MAX_PIXELS

    wanted_size = None if size is None else input_size(size)
    request = BackboneRequest(backbone, each_layer(layers), weights, wanted_size, seed)
    run(
        lambda progress: use_case(
            image,
            page,
            request,
            mask=mask,
            box=defect,
            good=good,
            max_pixels=max_pixels or MAX_PIXELS,
            progress=progress,
        ),
        _show,
        as_json,
    )


def _show(result: LookResult) -> None:
    height, width = result["size"]
    say(f"{result['backbone']}, weights: {result['weights']}, input {height}x{width} px")
    judged = bool(result["layers"][0]["verdict"])
    rows = []
    for layer in result["layers"]:
        cells = [layer["layer"], f"{layer['grid'][0]}x{layer['grid'][1]}", str(layer["stride"]), str(layer["channels"])]
        if judged:
            contrast = layer["contrast_sd"]
            value = "" if contrast is None else f" ({round(contrast, 1) + 0.0:.1f} sd)"
            cells.append(f"{layer['verdict']}{value}")
        rows.append(cells)
    print_table(["layer", "grid", "stride", "channels", *(["the defect is"] if judged else [])], rows)
    if result["page"]:
        say(f"page: {result['page']}")
