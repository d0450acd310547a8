"""Options that several commands share, and how their results leave them."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pickglass.detectors.compute import ComputeArguments

__all__ = [
    "MAX_PIXELS",
    "Adapt",
    "Device",
    "DropSuspicious",
    "EngineName",
    "EngineOption",
    "ExecutorOption",
    "GroupBy",
    "Json",
    "Layout",
    "MaxPixels",
    "PixelMm",
    "Roi",
    "Workers",
    "finish",
    "print_json",
    "running",
]


class EngineOption(str, Enum):
    """What runs the frozen networks."""

    auto = "auto"
    openvino = "openvino"
    bfloat16 = "bfloat16"
    torch = "torch"


class ExecutorOption(str, Enum):
    """Where independent tasks run."""

    local = "local"
    ray = "ray"


Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
EngineName = Annotated[
    EngineOption,
    typer.Option("--engine", help="What runs the networks; bfloat16 is faster where the CPU has it, and less exact."),
]
Workers = Annotated[int, typer.Option(min=1, help="Threads that decode images.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse images with more pixels.")]
Layout = Annotated[str | None, typer.Option(help="Layout of the folder; by default recognised.")]
GroupBy = Annotated[
    str | None, typer.Option("--group-by", help="Regular expression that finds the part or roll in each file name.")
]

Adapt = Annotated[str | None, typer.Option(help="First fine-tune these stages on painted defects, e.g. stage3,stage4.")]
DropSuspicious = Annotated[
    bool, typer.Option("--drop-suspicious", help="Leave out images that look like none of the others.")
]
Roi = Annotated[Path | None, typer.Option(help="Region of interest: a mask for all images, or a folder with one each.")]
PixelMm = Annotated[float | None, typer.Option("--pixel-mm", help="Side of a pixel on the part in millimetres.")]

MAX_PIXELS = 250_000_000


def running(device: str, engine: EngineOption, workers: int, max_pixels: int) -> ComputeArguments:
    """The options of a use case that say how to run."""
    return {"device": device, "engine": engine.value, "workers": workers, "max_pixels": max_pixels}


def print_json(result: Any) -> None:
    """Exactly one object on stdout."""
    typer.echo(json.dumps(result))


def finish(failed: list[Any]) -> None:
    """Name the images that could not be read; exit code 1 if there are any."""
    for item in failed:
        typer.echo(f"failed: {item['path']}: {item['error']}", err=True)
    if failed:
        raise typer.Exit(1)
