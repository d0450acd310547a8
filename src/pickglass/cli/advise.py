"""``pickglass advise``: which features, size, tiling and method can see a defect of a stated size, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import Compute, Folder, Json, Place, Seed
from pickglass.cli.types import names

if TYPE_CHECKING:
    from pickglass.app.results import Advised, AdviseResult, SightResult

__all__ = ["advise"]

_SHOWN = 12  # of the ranking


def advise(
    data: Annotated[Path, typer.Argument(help="Folder with good images; defective ones are not read.")],
    defect_px: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH[xWIDTH]",
            help="Longest extent of the smallest defect, in pixels of your images, at least 4; 150x6 if it is slim.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Say from which size and contrast on this model sees defects; other options do not apply."),
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds that one image may take on this machine; by default any.")
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(help="Try these, e.g. resnet18,efficientnet_lite0; by default the EfficientNet-Lites found here."),
    ] = None,
    kinds: Annotated[str | None, typer.Option(help="Paint these kinds of defects, e.g. slub,knot,broken_pick.")] = None,
    report: Annotated[Path | None, typer.Option("-o", "--output", help="Write this HTML page.")] = None,
    seed: Seed = 0,
    *,
    folder: Folder,
    place: Place,
    compute: Compute,
    as_json: Json = False,
) -> None:
    """Find out from good images alone which backbone, layers, size, tiling and method see such a defect, and why."""
    from pickglass.app.advise.request import KINDS_PAINTED, AdviseRequest, parse_extent
    from pickglass.errors import InputError

    painted = KINDS_PAINTED if kinds is None else _kinds(kinds)
    if model is not None:
        from pickglass.app.advise.sight import sight

        if latency_ms is not None or backbones is not None:
            raise InputError("--model asks what that model sees: leave out --latency-ms and --backbones")
        length, width = (None, None) if defect_px is None else parse_extent(defect_px)
        asked = AdviseRequest(length or 0, None, None, painted, seed, width)
        run(
            lambda progress: sight(
                model,
                place.source(data, folder),
                asked,
                report,
                compute=compute.options(),
                progress=progress,
            ),
            _show_sight,
            as_json,
            wanting=lambda result: result["smallest_px"] is None,
        )
        return
    if defect_px is None:
        raise InputError(
            "--defect-px is missing: the longest extent of the smallest defect in pixels of your images, e.g. 8 or "
            "150x6; or --model MODEL, to ask what a model sees"
        )
    from pickglass.app.advise.advise import advise as use_case

    length_px, width_px = parse_extent(defect_px)
    request = AdviseRequest(length_px, latency_ms, names(backbones), painted, seed, width_px)
    run(
        lambda progress: use_case(
            place.source(data, folder), request, report, compute=compute.options(), progress=progress
        ),
        _show,
        as_json,
        wanting=lambda result: result["command"] is None,
    )


def _kinds(text: str) -> list[Any]:
    from pickglass.data import KINDS
    from pickglass.errors import UnknownName

    kinds = names(text) or []
    for name in kinds:
        if name not in KINDS:
            raise UnknownName("kind of defect", name, KINDS)
    return kinds


def _show(result: AdviseResult) -> None:
    from pickglass.metrics.catalogue import METRICS

    ranking = result["ranking"]
    chosen = [option for option in ranking[_SHOWN:] if option["command"] == result["command"]]
    scores = [METRICS["aupro_05"].short, "95 %", METRICS["image_auroc"].short]
    if ranking:
        print_table(
            ["method", "backbone", "layers", "input", *scores, "ms an image", "model MB"],
            [_cells(option, option["command"] == result["command"]) for option in (*ranking[:_SHOWN], *chosen)],
            text=("backbone", "layers"),
        )
    if len(ranking) > _SHOWN:
        say(f"and {len(ranking) - _SHOWN} more, see --json or -o REPORT.html")
    reasons = {out["why"]: out for out in result["ruled_out"]}
    say(f"ruled out by geometry: {len(result['ruled_out'])}" + (", for instance" if reasons else ""))
    for out in list(reasons.values())[:4]:
        say(f"  {out['layers'] or 'all layers'} at {'x'.join(map(str, out['size']))}: {out['why']}")
    for limit in result["limits"]:
        say(f"note: {limit}")
    if result["report"] is not None:
        say(f"report: {result['report']}")
    if result["command"] is not None:
        say(f"\n{result['why']}:\n{result['command']}")


def _cells(option: Advised, chosen: bool) -> list[str]:
    tiles = "" if option["tile"] is None else f" in tiles of {'x'.join(map(str, option['tile']))}"
    low, high = option["aupro_05_interval"]
    return [
        ("→ " if chosen else "  ") + option["method"],
        option["backbone"],
        "+".join(option["layers"]),
        "x".join(map(str, option["size"])) + tiles,
        f"{option['aupro_05']:.3f}",
        f"{low:.2f} to {high:.2f}",
        f"{option['image_auroc']:.3f}",
        f"{'' if option['measured'] else '~'}{option['latency_ms']:.1f}{' too slow' if option['too_slow'] else ''}",
        "–" if option["model_mb"] is None else _megabytes(option["model_mb"]),
    ]


def _megabytes(value: float) -> str:
    """Write a size in two digits, so that a small model does not read as none."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _show_sight(result: SightResult) -> None:
    def contrast(value: float | None) -> str:
        return "–" if value is None else f"{value:.2g}"

    print_table(
        ["size px", "mm", "seen at 1", "all kinds", *result["kinds"]],
        [
            [
                f"{one['size_px']:g}" + ("" if one["width_px"] is None else f"x{one['width_px']:g}"),
                "–" if one["size_mm"] is None else f"{one['size_mm']:.3g}",
                f"{one['seen']:.0%}",
                contrast(one["contrast"]),
                *(contrast(one["by_kind"].get(kind)) for kind in result["kinds"]),
            ]
            for one in result["sizes"]
        ],
    )
    say("the contrast from which on half of the painted defects are flagged; 1 is clearly visible, – : not even there")
    for limit in result["limits"]:
        say(f"note: {limit}")
    if result["report"] is not None:
        say(f"report: {result['report']}")
    smallest, millimetres = result["smallest_px"], result["smallest_mm"]
    if smallest is None:
        say("\nit does not see half of the clearly visible defects at the largest size tried")
    else:
        say(f"\nit sees defects from {smallest:g} px on" + ("" if millimetres is None else f" ({millimetres:.3g} mm)"))
