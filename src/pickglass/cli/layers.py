"""``pickglass layers``: what each layer of a backbone sees and costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from pickglass.app.results import LayerResult, LayersListing, LayersResult

__all__ = ["layers"]


def layers(
    backbone: Annotated[str | None, typer.Argument(help="Backbone, e.g. wide_resnet50_2.")] = None,
    names: Annotated[str | None, typer.Option("--layers", help="Nodes, e.g. layer2,layer3.0.relu.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the named layers, or all of the backbone.")] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="default, v1, v2, random, mocov2, swav, selav2, simclr, dino, dinov2, or a file."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Input in pixels: 256 or HxW; for grid, cost and RRF.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Own image or folder: effective fields are measured on it.")
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(help="Labelled data set: how well does each layer tell its defect types apart, and from good?"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Page (.html) or picture (.png).")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and of the noise image.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")] = False,
) -> None:
    """Grid, stride, channels, receptive field and cost of each layer; the weights are not needed."""
    from pickglass.app.see import layers as use_case
    from pickglass.cli.show import progress_bar

    if listing:
        found = use_case.list_layers(backbone)
        typer.echo(json.dumps(found)) if as_json else _show_listing(found)
        return
    if backbone is None:
        raise InputError("name a backbone, e.g. 'pickglass layers wide_resnet50_2', or give --list")
    with progress_bar() as progress:
        result = use_case.layers(
            backbone,
            [name for name in (names or "").split(",") if name],
            weights=weights,
            size=_size(size),
            images=image or [],
            probe_data=probe,
            output=output,
            seed=seed,
            progress=progress,
        )
    typer.echo(json.dumps(result)) if as_json else _show(result)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--size {text!r}: expected pixels such as 256, or height x width such as 256x512")
    return int(parts[0]), int(parts[-1])


def _show(result: LayersResult) -> None:
    from rich.console import Console
    from rich.table import Table

    info = result["weights_info"]
    console = Console(highlight=False, width=160)
    height, width = result["size"]
    how = f" ({info['strategy']})" if info["strategy"] not in (None, "random") else ""
    console.print(f"{result['backbone']}, weights: {result['weights']}{how}, input {height}x{width} px", markup=False)
    table = Table("layer", *(["node"] if _aliased(result) else []))
    heads = ["grid", "stride", "channels", "RF gradient", "RF theoretical", "RF effective", "RRF", "multiply-adds"]
    for head in heads:
        table.add_column(head, justify="right")
    for node in result["nodes"]:
        table.add_row(node["name"], *([node["node"]] if _aliased(result) else []), *_cells(node))
    console.print(table, markup=False)
    kinds = {node["rf_image"] for node in result["nodes"]}
    if "noise" in kinds:
        console.print(
            "RF gradient: on a seeded noise image, for on an empty one the gradient of these weights vanishes. "
            "In deep layers, random weights show less than trained ones."
        )
    if result["probed"]:
        _show_probe(result, console)
    if result["output"]:
        console.print(f"drawn: {result['output']}", markup=False)


def _show_probe(result: LayersResult, console: Console) -> None:
    from rich.table import Table

    images = result["probed"] or {}
    types = ", ".join(f"{n} {kind}" for kind, n in images["types"].items())
    table = Table("layer", title=f"probed on {images['good']} good images and {types}", title_justify="left")
    for head in ("types apart (balanced accuracy)", "defect from good (AUROC)", "intrinsic dimension of good"):
        table.add_column(head, justify="right")
    for node in result["nodes"]:
        found = node["probe"]
        if found is not None:
            dimension = "–" if found["dimension"] is None else f"{found['dimension']:.1f} of {node['channels']}"
            cells = [_with_interval(found[key], found[f"{key}_interval"]) for key in ("types", "defect")]  # type: ignore[literal-required]
            table.add_row(node["name"], *cells, dimension)
    console.print(table, markup=False)
    console.print(
        f"Chance: {1 / len(images['types']):.2f} and 0.50. Judged by group; in brackets 95 % intervals. "
        "Layers chosen by this must not be judged on these images."
    )


def _with_interval(value: float | None, ends: list[float] | None) -> str:
    if value is None or ends is None:
        return "–"
    return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _aliased(result: LayersResult) -> bool:
    return any(node["name"] != node["node"] for node in result["nodes"])


def _cells(node: LayerResult) -> list[str]:
    return [
        f"{node['grid'][0]}x{node['grid'][1]}",
        str(node["stride"]),
        str(node["channels"]),
        f"{'>=' if node['rf_at_least'] else ''}{node['rf_gradient']}",
        "?" if node["rf_theoretical"] is None else str(node["rf_theoretical"]),
        "–" if node["rf_effective"] is None else str(node["rf_effective"]),
        f"{node['rrf']:.3f}",
        f"{node['macs'] / 1e9:.3f} G",
    ]


def _show_listing(listing: LayersListing) -> None:
    for backbone, names in listing["backbones"].items():
        if len(listing["backbones"]) == 1:
            typer.echo("\n".join(names))
        else:
            typer.echo(f"{backbone}: {', '.join(names)}")
    if len(listing["backbones"]) > 1:
        typer.echo("Any other torchvision or timm model works too: 'pickglass layers --list NAME' shows its nodes.")
