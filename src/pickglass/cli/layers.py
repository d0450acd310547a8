"""``pickglass layers``: what each layer of a backbone sees and costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import Json, Seed
from pickglass.cli.types import each_layer, pixel_size
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import LayerResult, LayersListing, LayersResult

__all__ = ["layers"]


def layers(
    backbone: Annotated[str | None, typer.Argument(help="Backbone, e.g. wide_resnet50_2.")] = None,
    names: Annotated[
        str | None, typer.Option("--layers", help="Measure these layers, e.g. layer2,layer3.0.relu.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the backbones with their named layers, or all layers of BACKBONE.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone: default, v1, v2, random, mocov2, swav, selav2, simclr, dino, dinov2, "
            "dinov3, or a file."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Input of the network for grid, cost and RRF, in pixels: 256 or HxW.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Measure effective fields on this image or folder of your own.")
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(help="Labelled data set: say how well each layer tells its defect types apart, and from good."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a page (.html) or a picture (.png) of the fields.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure grid, stride, channels, receptive field and cost of each layer; the weights are not needed."""
    canvas = pixel_size("--size", size)
    if not listing and backbone is None:
        raise InputError("name a backbone, e.g. 'pickglass layers wide_resnet50_2', or give --list")
    from pickglass.app.see.layers import layers as use_case
    from pickglass.app.see.layers import list_layers
    from pickglass.app.see.request import BackboneRequest

    if listing or backbone is None:
        run(lambda progress: list_layers(backbone), _show_listing, as_json)
        return
    request = BackboneRequest(backbone, each_layer(names), weights, canvas, seed)
    run(
        lambda progress: use_case(request, images=image or [], probe_data=probe, output=output, progress=progress),
        _show,
        as_json,
    )


def _show(result: LayersResult) -> None:
    info = result["weights_info"]
    height, width = result["size"]
    how = f" ({info['strategy']})" if info["strategy"] not in (None, "random") else ""
    say(f"{result['backbone']}, weights: {result['weights']}{how}, input {height}x{width} px")
    aliased = any(node["name"] != node["node"] for node in result["nodes"])
    heads = ["grid", "stride", "channels", "RF gradient", "RF theoretical", "RF effective", "RRF", "GMAC"]
    print_table(
        ["layer", *(["node"] if aliased else []), *heads],
        [[node["name"], *([node["node"]] if aliased else []), *_cells(node)] for node in result["nodes"]],
        text=("node",),
    )
    say("RF: receptive field in pixels; RRF: its share of the input; GMAC: billions of multiply-adds up to the layer")
    if all(node["rf_effective"] is None for node in result["nodes"]):
        say("RF effective is measured on images of your own: --image FOLDER")
    if "noise" in {node["rf_image"] for node in result["nodes"]}:
        say(
            "RF gradient: on a seeded noise image, for on an empty one the gradient of these weights vanishes. "
            "In deep layers, random weights show less than trained ones."
        )
    if result["probed"]:
        _show_probe(result)
    if result["output"]:
        say(f"drawn: {result['output']}")


def _show_probe(result: LayersResult) -> None:
    images = result["probed"] or {}
    types = ", ".join(f"{n} {kind}" for kind, n in images["types"].items())
    rows = []
    for node in result["nodes"]:
        probe = node["probe"]
        if probe is not None:
            dimension = "–" if probe["dimension"] is None else f"{probe['dimension']:.1f} of {node['channels']}"
            cells = [_with_interval(probe[key], probe[f"{key}_interval"]) for key in ("types", "defect")]  # type: ignore[literal-required]
            rows.append([node["name"], *cells, dimension])
    heads = ["layer", "types apart (balanced accuracy)", "defect from good (AUROC)", "intrinsic dimension of good"]
    print_table(heads, rows, title=f"probed on {images['good']} good images and {types}")
    say(
        f"Chance: {1 / len(images['types']):.2f} and 0.50. Judged by group; in brackets 95 % intervals. "
        "Layers chosen by this must not be judged on these images."
    )


def _with_interval(value: float | None, ends: list[float] | None) -> str:
    if value is None or ends is None:
        return "–"
    return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _cells(node: LayerResult) -> list[str]:
    return [
        f"{node['grid'][0]}x{node['grid'][1]}",
        str(node["stride"]),
        str(node["channels"]),
        f"{'>=' if node['rf_at_least'] else ''}{node['rf_gradient']}",
        "?" if node["rf_theoretical"] is None else str(node["rf_theoretical"]),
        "–" if node["rf_effective"] is None else str(node["rf_effective"]),
        f"{node['rrf']:.3f}",
        f"{node['macs'] / 1e9:.3f}",
    ]


def _show_listing(listing: LayersListing) -> None:
    for backbone, names in listing["backbones"].items():
        if len(listing["backbones"]) == 1:
            typer.echo("\n".join(names))
        else:
            typer.echo(f"{backbone}: {', '.join(names)}")
    if len(listing["backbones"]) > 1:
        typer.echo("Any other torchvision or timm model works too: 'pickglass layers --list NAME' shows its nodes.")
