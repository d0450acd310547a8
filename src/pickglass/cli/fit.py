"""``pickglass fit``: from good images to a model file, or from a root of many categories to a folder of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pickglass.cli.options import (
    MAX_PIXELS,
    Adapt,
    Device,
    DropSuspicious,
    EngineName,
    EngineOption,
    ExecutorOption,
    GroupBy,
    Json,
    Layout,
    MaxPixels,
    PixelMm,
    print_json,
    running,
)
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import FitManyResult

__all__ = ["fit"]

Model = Annotated[
    Path, typer.Option("-o", "--output", help="Model file to write, .safetensors; of a root, a folder for them.")
]
Size = Annotated[
    str | None, typer.Option(help="Input in pixels: 256 or HxW (squeezed), letterbox:256, shorter:256, or native.")
]
DefectPx = Annotated[
    float | None,
    typer.Option("--defect-px", help="With --preset auto: extent of the smallest defect in pixels of your images."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, any setting of the method; tiling.heads=1, fusion.normalise=whiten."),
]
Validate = Annotated[float | None, typer.Option(help="Share of train for validation; by default the method's.")]
Region = Annotated[
    str | None,
    typer.Option(
        help="Region of interest: a mask, a folder with one each, or auto: where parts lie on the good images."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Threads that decode images; of a root, categories at once.")]
Where = Annotated[ExecutorOption, typer.Option(help="Of a root: local, or ray (pickglass[cluster]).")]


def fit(
    data: Annotated[Path, typer.Argument(help="Folder with good images, or a root of many categories.")],
    model: Model,
    method: Annotated[str | None, typer.Option(help="Method; patchcore unless told.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone, e.g. efficientnet_lite0.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, finest first, e.g. stage3+stage5.")] = None,
    weights: Annotated[str | None, typer.Option(help="default, random, or a file.")] = None,
    size: Size = None,
    tile: Annotated[str | None, typer.Option(help="Tiles of 256 or HxW pixels, each with its own head.")] = None,
    stride: Annotated[str | None, typer.Option(help="From one tile to the next; half a tile unless told.")] = None,
    fuse: Annotated[str | None, typer.Option(help="Fuse the layers: concat, pyramid, bilinear or attention.")] = None,
    adapt: Adapt = None,
    preset: Annotated[str | None, typer.Option(help="paper, quick, or auto: chosen on painted defects.")] = None,
    defect_px: DefectPx = None,
    settings: Settings = None,
    validate: Validate = None,
    calibrate: Annotated[float, typer.Option(help="Share of train for the thresholds; 0: none.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the split and of everything drawn at random.")] = 0,
    layout: Layout = None,
    group_by: GroupBy = None,
    roi: Region = None,
    pixel_mm: PixelMm = None,
    drop_suspicious: DropSuspicious = False,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    executor: Where = ExecutorOption.local,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, e.g. auto.")] = None,
    memory_gb: Annotated[float, typer.Option(help="Budget for what the method holds.")] = 4.0,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Learn from good images and write a model file, or of a root of many categories a folder of them."""
    changes, parts = _chosen(
        backbone, layers, weights, size, settings or [], {"tile": tile, "stride": stride}, fuse, adapt
    )
    arguments: dict[str, Any] = {
        "method": method,
        "preset": preset,
        "defect_px": defect_px,
        "settings": changes,
        **parts,
        "layout": layout,
        "group_by": group_by,
        "roi": roi,
        "pixel_mm": pixel_mm,
        "drop_suspicious": drop_suspicious,
        "validate": validate,
        "calibrate": calibrate,
        "seed": seed,
        "memory_gb": memory_gb,
        **running(device, engine, workers, max_pixels),
    }
    if model.suffix == ".safetensors":
        _fit_one(data, model, arguments, as_json)
    else:
        _fit_root(data, model, executor, address, arguments, as_json)


def _fit_one(data: Path, model: Path, arguments: dict[str, Any], as_json: bool) -> None:
    from pickglass.app import fit as use_case
    from pickglass.cli.show import progress_bar, show_fit

    with progress_bar() as progress:
        result = use_case.fit(data, model, progress=progress, **arguments)
    print_json(result) if as_json else show_fit(result)


def _fit_root(
    data: Path,
    folder: Path,
    executor: ExecutorOption,
    address: str | None,
    arguments: dict[str, Any],
    as_json: bool,
) -> None:
    from pickglass.app import fit_many as use_case
    from pickglass.cli.show import progress_bar

    if not use_case.is_root(data, arguments["layout"], arguments["group_by"]):
        _fit_one(data, folder, arguments, as_json)  # one data set: says what is wrong with the name of the file
        return
    workers = arguments.pop("workers")
    where = {"executor": executor.value, "parallel": workers, "address": address}
    with progress_bar() as progress:
        result = use_case.fit_many(data, folder, progress=progress, **where, **arguments)
    print_json(result) if as_json else _show_many(result)
    if result["failed"]:
        raise typer.Exit(1)


def _show_many(result: FitManyResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=160)
    table = Table("category", "state")
    for name in ("images", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("model, or what went wrong")
    for row in result["categories"]:
        fit = row["fit"]
        numbers = ["–", "–"] if fit is None else [str(fit["n_fit"]), f"{fit['fit_s']:.1f}"]
        table.add_row(row["category"], row["state"], *numbers, row["error"] or row["model"])
    console.print(table, markup=False)
    states = ", ".join(f"{result[name]} {name}" for name in ("done", "skipped", "failed"))
    console.print(f"{len(result['categories'])} categories: {states}", markup=False)


def _chosen(
    backbone: str | None,
    layers: str | None,
    weights: str | None,
    size: str | None,
    settings: list[str],
    tiles: dict[str, str | None],
    fuse: str | None,
    adapt: str | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the method that were given, and those of its parts, None where there are none."""
    given: dict[str, Any] = {
        "backbone": backbone,
        "layers": None if layers is None else _names(layers),
        "weights": weights,
        "size": None if size is None else int(size) if size.isdecimal() else size,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    changes.update(_setting(text) for text in settings)
    tiling = {name[7:]: changes.pop(name) for name in list(changes) if name.startswith("tiling.")}
    tiling |= {key: _sides(key, text) for key, text in tiles.items() if text is not None}
    fusion = {name[7:]: changes.pop(name) for name in list(changes) if name.startswith("fusion.")}
    if fusion and fuse is None:
        raise InputError(f"--set fusion.{next(iter(fusion))} belongs to --fuse: give that too, e.g. --fuse concat")
    adaptation = {name[11:]: changes.pop(name) for name in list(changes) if name.startswith("adaptation.")}
    if adaptation and adapt is None:
        raise InputError(f"--set adaptation.{next(iter(adaptation))} belongs to --adapt: give that too, e.g. stage3")
    return changes, {
        "tiling": tiling or None,
        "fusion": None if fuse is None else {"kind": fuse, **fusion},
        "adaptation": None if adapt is None else {"stages": _names(adapt), **adaptation},
    }


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace("+", ",").split(",") if name)


def _sides(name: str, text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--{name} {text!r}: expected pixels such as 256, or height x width such as 256x512")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _setting(text: str) -> tuple[str, Any]:
    """key=value; the value is JSON where it can be read as such, else text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r}: expected key=value, e.g. --set ratio=0.1")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return key.replace("-", "_"), tuple(parsed) if isinstance(parsed, list) else parsed
