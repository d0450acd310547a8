"""``pickglass advise``: which features, size, tiling and method can see a defect of a stated size, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    print_json,
    running,
)

if TYPE_CHECKING:
    from pickglass.app.results import AdviseResult

__all__ = ["advise"]


def advise(
    data: Annotated[Path, typer.Argument(help="Folder with good images; defective ones are not read.")],
    defect_px: Annotated[
        float, typer.Option("--defect-px", help="Longest extent of the smallest defect, in pixels of your images.")
    ],
    latency_ms: Annotated[float | None, typer.Option(help="What one image may take on this machine.")] = None,
    backbones: Annotated[
        str | None, typer.Option(help="E.g. resnet18,efficientnet_lite0; by default the Lites that are here.")
    ] = None,
    kinds: Annotated[str | None, typer.Option(help="Kinds of painted defects, e.g. slub,knot,broken_pick.")] = None,
    report: Annotated[Path | None, typer.Option("-o", "--output", help="HTML page to write.")] = None,
    layout: Layout = None,
    group_by: GroupBy = None,
    roi: Roi = None,
    pixel_mm: PixelMm = None,
    seed: Annotated[int, typer.Option(help="Of the split and the painted defects.")] = 0,
    device: Device = "auto",
    engine: EngineName = EngineOption.auto,
    workers: Workers = 2,
    max_pixels: MaxPixels = MAX_PIXELS,
    as_json: Json = False,
) -> None:
    """From good images alone: which backbone, layers, size, tiling and method see such a defect, and why."""
    from pickglass.app.advise import advise as use_case
    from pickglass.app.advise.painted import KINDS_PAINTED
    from pickglass.cli.show import progress_bar

    with progress_bar() as progress:
        result = use_case.advise(
            data,
            defect_px,
            latency_ms=latency_ms,
            backbones=None if backbones is None else [name for name in backbones.split(",") if name],
            kinds=KINDS_PAINTED if kinds is None else _kinds(kinds),
            report=report,
            layout=layout,
            group_by=group_by,
            roi=roi,
            pixel_mm=pixel_mm,
            seed=seed,
            progress=progress,
            **running(device, engine, workers, max_pixels),
        )
    print_json(result) if as_json else _show(result)
    if result["command"] is None:
        raise typer.Exit(1)


def _kinds(text: str) -> list[Any]:
    from pickglass.data import KINDS
    from pickglass.errors import UnknownName

    named = [name for name in text.split(",") if name]
    for name in named:
        if name not in KINDS:
            raise UnknownName("kind of defect", name, KINDS)
    return named


def _show(result: AdviseResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=160)
    table = Table("method", "backbone", "layers")
    for name in ("input", "AUPRO@0.05", "95 %", "image AUROC", "ms an image", "model MB"):
        table.add_column(name, justify="right")
    first = result["ranking"][:12]
    for one in first + [one for one in result["ranking"][12:] if one["command"] == result["command"]]:
        tiles = "" if one["tile"] is None else f" in tiles of {'x'.join(map(str, one['tile']))}"
        low, high = one["aupro_05_interval"]
        table.add_row(
            ("→ " if one["command"] == result["command"] else "  ") + one["method"],
            one["backbone"],
            "+".join(one["layers"]),
            "x".join(map(str, one["size"])) + tiles,
            f"{one['aupro_05']:.3f}",
            f"{low:.2f} to {high:.2f}",
            f"{one['image_auroc']:.3f}",
            f"{'' if one['measured'] else '~'}{one['latency_ms']:.1f}{' too slow' if one['too_slow'] else ''}",
            "–" if one["model_mb"] is None else f"{one['model_mb']:.0f}",
        )
    console.print(table, markup=False)
    more = len(result["ranking"]) - 12
    if more > 0:
        console.print(f"and {more} more, see --json or -o REPORT.html")
    why = {out["why"]: out for out in result["ruled_out"]}
    console.print(f"ruled out by geometry: {len(result['ruled_out'])}, for instance", markup=False)
    for out in list(why.values())[:4]:
        where = f"{out['layers'] or 'all layers'} at {'x'.join(map(str, out['size']))}"
        console.print(f"  {where}: {out['why']}", markup=False, soft_wrap=True)
    for limit in result["limits"]:
        console.print(f"note: {limit}", markup=False, soft_wrap=True)
    if result["report"] is not None:
        console.print(f"report: {result['report']}", markup=False, soft_wrap=True)
    if result["command"] is not None:
        console.print(f"\n{result['why']}:\n{result['command']}", markup=False, soft_wrap=True)
