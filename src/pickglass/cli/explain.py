"""``pickglass explain``: why an image was judged good or bad."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import AnyModelFile, Compute, Json, Roi, check_order
from pickglass.cli.types import box as read_box

if TYPE_CHECKING:
    from pickglass.app.results import ExplainResult

__all__ = ["explain"]


def explain(
    model: AnyModelFile,
    image: Annotated[Path, typer.Argument(help="Image file.")],
    page: Annotated[Path | None, typer.Option("-o", "--output", help="Write this HTML page.")] = None,
    good: Annotated[
        Path | None,
        typer.Option(
            help="Folder of good images: training images are shown from there, and layers compare with them instead of "
            "what surrounds the place."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image with values above 0 where a defect is that was missed, or may have been.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="That defect in pixels of the image, in place of a mask.")
    ] = None,
    places: Annotated[int, typer.Option(min=1, help="Explain at most so many places above the pixel threshold.")] = 3,
    roi: Roi = None,
    *,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Say why an image was judged so: hottest places, nearest good patches, and which layers show it."""
    check_order("explain", [model], [image])
    defect = read_box(box)
    from pickglass.app.explain import explain as use_case

    run(
        lambda progress: use_case(
            model,
            image,
            page,
            good=good,
            mask=mask,
            box=defect,
            places=places,
            roi=roi,
            compute=compute.options(),
            progress=progress,
        ),
        _show,
        as_json,
        notes=lambda result: result["notes"],
    )


def _show(result: ExplainResult) -> None:
    say(result["sentence"])
    for number, place in enumerate(result["places"], start=1):
        say(f"{number}. {place['sentence']}")
        rows = [
            [
                near["image"] or "not known",
                "–" if near["x"] is None else f"{near['x']} {near['y']}",
                f"{near['distance']:.4g}",
            ]
            for near in place["nearest"]
        ]
        if rows:
            print_table(["nearest good patch", "x y", "distance"], rows, text=("nearest good patch",))
        if place["shares"]:
            say("share: " + ", ".join(f"{part['name']} {100 * part['share']:.0f} %" for part in place["shares"]))
    similar = result["similar"]
    if similar is not None:
        usual = "" if similar["usual"] is None else f"; usual among good images: {similar['usual']:.2g}"
        say(f"most similar good image: {similar['image']} ({similar['distance']:.2g} standard deviations{usual})")
    if result["page"]:
        say(f"page: {result['page']}")
