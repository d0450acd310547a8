"""``pickglass label``: teach a model to name defects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import Compute, Folder, Force, Json, ModelFile, Seed, check_new, check_order
from pickglass.cli.types import joined_layers

if TYPE_CHECKING:
    from pickglass.app.results import LabelResult

__all__ = ["label"]


def label(
    model: ModelFile,
    data: Annotated[Path, typer.Argument(help="Examples: a folder with one folder a type, or any known layout.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write this model file; by default the names go into MODEL itself."),
    ] = None,
    pooling: Annotated[
        Literal["average", "bilinear"],
        typer.Option(help="Describe a defect by the average of its features, or by the products of pairs of them."),
    ] = "average",
    layers: Annotated[
        str | None, typer.Option(help="Use some of the model's layers, e.g. stage3+stage5; by default all.")
    ] = None,
    sure: Annotated[
        float, typer.Option(help="Share of the names that should be right; less sure defects are called unknown.")
    ] = 0.8,
    seed: Seed = 0,
    force: Force = False,
    *,
    folder: Folder,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Teach a model to name defects from 5 to 20 examples a type; these images must not judge the names."""
    check_order("label", [model], [data])
    if output is not None and output != model:
        check_new(output, force)
    from pickglass.app.label import LabelRequest
    from pickglass.app.label import label as use_case

    request = LabelRequest(pooling, None if layers is None else joined_layers(layers), sure, seed)
    source = folder.source(data)
    run(
        lambda progress: use_case(model, source, output, request, compute=compute.options(), progress=progress),
        _show,
        as_json,
    )


def _show(result: LabelResult) -> None:
    heads = ["type", "examples", *(f"as {kind}" for kind in result["types"])]
    rows = [
        [kind, str(n), *(str(count) for count in result["confusion"][kind].values())]
        for kind, n in result["types"].items()
    ]
    print_table(heads, rows, title="cross-validation by group")
    say(f"named rightly, mean over types, if all were named: {result['accuracy']:.0%}")
    say(result["sentence"])
    say(f"model: {result['model']}")
