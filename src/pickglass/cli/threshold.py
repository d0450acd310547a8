"""``pickglass threshold``: set a model's threshold with a promise about false alarms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.options import AnyModelFile, Compute, Folder, Json, Roi, check_order
from pickglass.errors import InputError, PromiseUnreachable

if TYPE_CHECKING:
    from pickglass.app.results import ThresholdResult

__all__ = ["threshold"]


def threshold(
    model: AnyModelFile,
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DATA...]",
            help="Folders with good images, e.g. those that the model was fitted on. Without any, only --value, "
            "--unsure-value and --pixel-value are set.",
        ),
    ] = None,
    false_alarm: Annotated[float, typer.Option(help="Share of good parts that may be flagged, e.g. 0.01.")] = 0.01,
    unsure: Annotated[
        float | None,
        typer.Option(
            help="Share of good parts that may be unsure beside these, for a person to look at, e.g. 0.05; without it "
            "no part is unsure."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Keep the promise with this confidence, e.g. 0.95.")] = 0.95,
    promise: Annotated[
        Literal["tolerance", "marginal", "estimate", "f1", "fixed"] | None,
        typer.Option(
            help="tolerance, the default: with the confidence above; marginal: on average over sets of images; "
            "estimate: from training images judged as if left out, no guarantee; f1: the best F1 on labelled images; "
            "fixed: the number of --value, the default with it."
        ),
    ] = None,
    shift: Annotated[
        int | None, typer.Option(help="Say how many of so many good parts, e.g. of a shift, are flagged at most.")
    ] = None,
    pixel: Annotated[
        Literal["any", "area"] | None,
        typer.Option(
            help="Promise pixels too. any: share of good parts with any pixel above the pixel threshold; area: share "
            "of a good part's pixels."
        ),
    ] = None,
    value: Annotated[float | None, typer.Option(help="Set this number as threshold; it promises nothing.")] = None,
    unsure_value: Annotated[
        float | None, typer.Option(help="Set this number, below the threshold of bad, as threshold of unsure.")
    ] = None,
    pixel_value: Annotated[
        float | None, typer.Option(help="Set this number as pixel threshold, beside any promise for images.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Refit so many times for --promise estimate.")] = 5,
    *,
    folder: Folder,
    roi: Roi = None,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Set the threshold for a stated false-alarm rate from good images, and write it into the model file."""
    check_order("threshold", [model], data or [])
    from pickglass.app.threshold import ThresholdRequest
    from pickglass.app.threshold import threshold as use_case

    source = folder.source(data[0], roi, more=data[1:]) if data else None
    if not data and (promise not in (None, "fixed") or roi is not None or folder != Folder()):
        raise InputError(
            "no DATA: without good images only --value, --unsure-value and --pixel-value are set; name a folder, or "
            "leave out --promise, --roi, --layout, --group-by and --good"
        )
    kind = promise or ("tolerance" if value is None else "fixed")
    request = ThresholdRequest(
        kind, false_alarm, confidence, shift, pixel, value, folds, pixel_value, unsure, unsure_value
    )
    try:
        run(
            lambda progress: use_case(model, source, request, compute=compute.options(), progress=progress),
            _show,
            as_json,
        )
    except PromiseUnreachable as error:  # a finding about the images, no mistake in the command
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _show(result: ThresholdResult) -> None:
    image = _changed(result["image_threshold"], result["image_threshold_before"])
    pixel = _changed(result["pixel_threshold"], result["pixel_threshold_before"])
    say(f"bad above {image}, {_unsure(result)}pixels above {pixel} ({result['promise']})")
    say(result["sentence"])
    if result["sentence_before"] not in (None, result["sentence"]):
        say(f"until now: {result['sentence_before']}")
    if result["left_out"]:
        say(f"not counted: {result['left_out']} images that the fit left out, for they look like none of the others")
    say(f"model {result['model_id']}, now version {result['model_version']}; 'pickglass info' shows its history")


def _unsure(result: ThresholdResult) -> str:
    now, before = result["unsure_threshold"], result["unsure_threshold_before"]
    if now is None:
        return "" if before is None else f"none unsure (was above {before:.6g}; --unsure keeps a band), "
    return f"unsure above {_changed(now, before)}, "


def _changed(now: float | None, before: float | None) -> str:
    """Write a threshold, and what it was if that was something else."""
    new, old = (f"{value:.6g}" if value is not None else "nothing" for value in (now, before))
    return new if now == before else f"{new} (was {old})" if before is not None else new
