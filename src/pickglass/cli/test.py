"""``pickglass test``: metrics and a report of one model, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    PixelMm,
    Roi,
    Workers,
    finish,
    print_json,
)
from pickglass.errors import InputError

__all__ = ["test"]


def test(
    models: Annotated[list[Path], typer.Argument(help="Model file, or several to compare.")],
    data: Annotated[Path, typer.Argument(help="Folder with test images.")],
    report: Annotated[Path | None, typer.Option("-o", "--output", help="HTML report to write.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write scores, maps and paths to this .npz file.")] = None,
    intervals: Annotated[int, typer.Option(min=0, help="Bootstrap replicates for 95 % intervals, e.g. 1000.")] = 0,
    robustness: Annotated[
        Path | None, typer.Option(help="HTML page to write on the metrics under light, blur, noise, JPEG, shift, turn.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images on the page that compares several models.")] = 10,
    layout: Layout = None,
    group_by: GroupBy = None,
    roi: Roi = None,
    pixel_mm: PixelMm = None,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """Judge a model on test images: metrics and a report. Several models: the same images side by side."""
    from pickglass.app.testing import compare, test
    from pickglass.cli.show import progress_bar, show_compare, show_test
    from pickglass.detectors.compute import ComputeArguments

    running: ComputeArguments = {
        "device": device,
        "engine": engine.value,
        "workers": workers,
        "max_pixels": max_pixels,
    }
    if len(models) > 1:
        if save is not None or intervals or robustness is not None:
            raise InputError("--save, --intervals and --robustness judge one model: leave them out, or name one model")
        with progress_bar() as progress:
            compared = compare.compare(
                models,
                data,
                report,
                images=images,
                layout=layout,
                group_by=group_by,
                roi=roi,
                progress=progress,
                **running,
            )
        print_json(compared) if as_json else show_compare(compared)
        finish(compared["failed"])
        return
    with progress_bar() as progress:
        result = test.test(
            models[0],
            data,
            report,
            save=save,
            intervals=intervals,
            robustness=robustness,
            layout=layout,
            group_by=group_by,
            roi=roi,
            pixel_mm=pixel_mm,
            progress=progress,
            **running,
        )
    print_json(result) if as_json else show_test(result)
    finish(result["failed"])
