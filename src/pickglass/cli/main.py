"""The command line: arguments in, one use case called, its result shown. Exit code 0 / 1 / 2: done / found wanting
or partly failed / bad input."""

from __future__ import annotations

import io
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pickglass.cli.advise import advise as advise_command
from pickglass.cli.distill import distill as distill_command
from pickglass.cli.drift import drift as drift_command
from pickglass.cli.fit import fit as fit_command
from pickglass.cli.label import label as label_command
from pickglass.cli.layers import layers as layers_command
from pickglass.cli.look import look as look_command
from pickglass.cli.options import (
    MAX_PIXELS,
    Device,
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
)
from pickglass.cli.study import study as study_command
from pickglass.cli.test import test as test_command
from pickglass.errors import MissingExtra, PickglassError, PromiseUnreachable

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


app.command("fit")(fit_command)
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
    roi: Roi = None,
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
                roi=roi,
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
app.command("distill")(distill_command)
app.command("layers")(layers_command)
app.command("look")(look_command)
app.command("advise")(advise_command)
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
    except ModuleNotFoundError as error:
        typer.echo(f"error: {MissingExtra.needed('this command', error)}", err=True)
    sys.exit(2)
