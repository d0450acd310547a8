"""The command line: arguments in, one use case called, its result shown. Exit code 0 / 1 / 2: done / found wanting
or partly failed / bad input."""

from __future__ import annotations

import io
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pickglass.cli.drift import drift as drift_command
from pickglass.cli.label import label as label_command
from pickglass.cli.layers import layers as layers_command
from pickglass.cli.look import look as look_command
from pickglass.cli.options import (
    MAX_PIXELS,
    Adapt,
    Device,
    DropSuspicious,
    EngineName,
    EngineOption,
    GroupBy,
    Json,
    Layout,
    MaxPixels,
    PixelMm,
    Roi,
    Workers,
    finish,
    print_json,
    running,
)
from pickglass.cli.study import study as study_command
from pickglass.cli.test import test as test_command
from pickglass.errors import InputError, PickglassError, PromiseUnreachable

app = typer.Typer(
    name="pickglass",
    help="Visual anomaly detection for industry: learns from good images only, then finds and outlines defects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class PromiseOption(str, Enum):
    """What a threshold is to promise."""

    tolerance = "tolerance"
    marginal = "marginal"
    estimate = "estimate"
    f1 = "f1"
    fixed = "fixed"


class PixelOption(str, Enum):
    """What a pixel threshold is to promise."""

    any = "any"
    area = "area"


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Folder with good images.")],
    model: Annotated[Path, typer.Option("-o", "--output", help="Model file to write, .safetensors.")],
    method: Annotated[str, typer.Option(help="Method, e.g. patchcore.")] = "patchcore",
    backbone: Annotated[str | None, typer.Option(help="Backbone, e.g. efficientnet_lite0.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, finest first, e.g. stage3+stage5.")] = None,
    weights: Annotated[str | None, typer.Option(help="default, random, or a file.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Input in pixels: 256 or HxW (squeezed), letterbox:256, shorter:256, or native."),
    ] = None,
    tile: Annotated[str | None, typer.Option(help="Tiles of 256 or HxW pixels, each with its own head.")] = None,
    stride: Annotated[str | None, typer.Option(help="From one tile to the next; half a tile unless told.")] = None,
    fuse: Annotated[str | None, typer.Option(help="Fuse the layers: concat, pyramid, bilinear or attention.")] = None,
    adapt: Adapt = None,
    preset: Annotated[str | None, typer.Option(help="paper or quick.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, any setting of the method; tiling.heads=1, fusion.normalise=whiten."),
    ] = None,
    validate: Annotated[float | None, typer.Option(help="Share of train for validation; by default the method's.")] = (
        None
    ),
    calibrate: Annotated[float, typer.Option(help="Share of train for the thresholds; 0: none.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the split and of everything drawn at random.")] = 0,
    layout: Layout = None,
    group_by: GroupBy = None,
    roi: Roi = None,
    pixel_mm: PixelMm = None,
    drop_suspicious: DropSuspicious = False,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    memory_gb: Annotated[float, typer.Option(help="Budget for what the method holds.")] = 4.0,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Learn from good images and write a model file."""
    from pickglass.app import fit as use_case
    from pickglass.cli.show import progress_bar, show_fit

    changes, parts = _chosen(
        backbone, layers, weights, size, settings or [], {"tile": tile, "stride": stride}, fuse, adapt
    )
    with progress_bar() as progress:
        result = use_case.fit(
            data,
            model,
            method=method,
            preset=preset,
            settings=changes,
            **parts,
            layout=layout,
            group_by=group_by,
            roi=roi,
            pixel_mm=pixel_mm,
            drop_suspicious=drop_suspicious,
            validate=validate,
            calibrate=calibrate,
            seed=seed,
            memory_gb=memory_gb,
            progress=progress,
            **running(device, engine, workers, max_pixels),
        )
    print_json(result) if as_json else show_fit(result)


app.command("test")(test_command)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Model file.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for heat maps, masks and a CSV.")] = None,
    roi: Roi = None,
    pixel_mm: PixelMm = None,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Score, verdict and boxes of images. Nothing is written without -o."""
    from pickglass.app import predict as use_case
    from pickglass.cli.show import progress_bar, show_predict

    with progress_bar() as progress:
        result = use_case.predict(
            model,
            images,
            out,
            roi=roi,
            pixel_mm=pixel_mm,
            device=device,
            engine=engine.value,
            workers=workers,
            max_pixels=max_pixels,
            progress=progress,
        )
    print_json(result) if as_json else show_predict(result)
    if result["stale"]:
        typer.echo(
            "the settings were changed after the threshold was set: run 'pickglass threshold MODEL DATA' again",
            err=True,
        )
    finish(result["failed"])


@app.command()
def threshold(
    model: Annotated[Path, typer.Argument(help="Model file; the threshold is written into it.")],
    data: Annotated[Path, typer.Argument(help="Folder with good images, e.g. the one the model was fitted on.")],
    false_alarm: Annotated[float, typer.Option(help="Share of good parts that may be flagged.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="That these images keep the promise.")] = 0.95,
    promise: Annotated[
        PromiseOption,
        typer.Option(
            help="tolerance: with confidence; marginal: on average; estimate: from refits, no guarantee; f1: the best "
            "on labelled validation images; fixed: --value."
        ),
    ] = PromiseOption.tolerance,
    shift: Annotated[int | None, typer.Option(help="Good parts in a shift: how many will be flagged at most?")] = None,
    pixel: Annotated[
        PixelOption | None,
        typer.Option(help="Promise pixels too. any: parts with any pixel above; area: share of a part's pixels."),
    ] = None,
    value: Annotated[float | None, typer.Option(help="The threshold, with --promise fixed.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of --promise estimate.")] = 5,
    layout: Layout = None,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Set the threshold for a stated false-alarm rate, from good images only."""
    from pickglass.app import threshold as use_case
    from pickglass.cli.show import progress_bar, show_threshold

    try:
        with progress_bar() as progress:
            result = use_case.threshold(
                model,
                data,
                false_alarm=false_alarm,
                confidence=confidence,
                promise=promise.value,
                shift=shift,
                pixel=None if pixel is None else pixel.value,
                value=value,
                folds=folds,
                layout=layout,
                device=device,
                engine=engine.value,
                workers=workers,
                max_pixels=max_pixels,
                progress=progress,
            )
    except PromiseUnreachable as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    print_json(result) if as_json else show_threshold(result)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Model file or folder of images.")],
    layout: Layout = None,
    group_by: GroupBy = None,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """What is in a model file or a folder of images."""
    from pickglass.app import info as use_case
    from pickglass.cli.show import show_info

    result = use_case.info(path, layout, group_by=group_by, workers=workers, max_pixels=max_pixels)
    print_json(result) if as_json else show_info(result)


app.command("label")(label_command)
app.command("layers")(layers_command)
app.command("look")(look_command)
app.command("study")(study_command)
app.command("drift")(drift_command)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write images, model and report.")] = Path("pickglass-demo"),
    seed: Annotated[int, typer.Option(help="Of the cloth and the painted defects.")] = 0,
    as_json: Json = False,
) -> None:
    """Real textures and woven cloth, painted defects: fit, test and report in under two minutes."""
    from pickglass.app import demo as use_case
    from pickglass.cli.show import progress_bar, show_demo

    with progress_bar() as progress:
        result = use_case.demo(folder, seed=seed, progress=progress)
    print_json(result) if as_json else show_demo(result)


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


def main() -> NoReturn:
    """Entry point of the command ``pickglass``."""
    # a file name need not be UTF-8, and printing one must not end the command
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except PickglassError as error:
        typer.echo(f"error: {error}", err=True)
    sys.exit(2)
