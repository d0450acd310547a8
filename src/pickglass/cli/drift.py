"""``pickglass drift``: have the images changed since calibration?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import AnyModelFile, Compute, Json, Seed, check_order

if TYPE_CHECKING:
    from pickglass.app.results import DriftChange, DriftResult

__all__ = ["drift"]


def drift(
    model: AnyModelFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="New images, or folders of them.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Compare with these good images or folders, in place of those that the model keeps."),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Chance of a false alarm where nothing has changed, 0.001 to 0.5.")
    ] = 0.05,
    group_by: Annotated[
        str | None,
        typer.Option(help="Regular expression that finds the part or roll in each file name; one image a part counts."),
    ] = None,
    seed: Seed = 0,
    *,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Test whether the images have changed since calibration, and say what moved. Exit code 1: they have."""
    check_order("drift", [model], images)
    from pickglass.app.drift import drift as use_case

    run(
        lambda progress: use_case(
            model,
            images,
            against=against or None,
            level=level,
            group_pattern=group_by,
            seed=seed,
            compute=compute.options(),
            progress=progress,
        ),
        _show,
        as_json,
        wanting=lambda result: result["drift"],
    )


def _show(result: DriftResult) -> None:
    changes = result["changes"]
    print_table(
        ["what", "reference", "now", "sd", "delta", "p", "moved"],
        [_cells(change) for change in changes],
        text=("moved",),
        bold=[i for i, change in enumerate(changes) if change["moved"]],
    )
    say(
        "sd: change in standard deviations of the reference; delta: Cliff's delta, -1 to 1; "
        f"p: adjusted for {len(changes)} questions, drift from {result['level']:g} down"
    )
    say(result["sentence"])
    if result["left_out"]:
        say(f"left out: {result['left_out']} images that the model was fitted on or is compared with")


def _cells(change: DriftChange) -> list[str]:
    sd = "–" if change["difference"] is None else f"{change['difference']:+.1f}"
    numbers = [f"{change['before']:.3g}", f"{change['now']:.3g}", sd, f"{change['delta']:+.2f}", f"{change['p']:.3g}"]
    return [change["what"], *numbers, change["how"] if change["moved"] else ""]
