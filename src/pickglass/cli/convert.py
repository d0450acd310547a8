"""``pickglass convert``: write a data set in any layout as one in MVTec AD's, or as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.options import Folder, Json

if TYPE_CHECKING:
    from pickglass.app.results import ConvertResult

__all__ = ["convert"]


def convert(
    data: Annotated[Path, typer.Argument(help="Folder or table in any known layout; see 'pickglass info --layouts'.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Write this folder.")],
    form: Annotated[
        Literal["mvtec", "table"],
        typer.Option("--as", help="Write MVTec AD's layout, or the files and a table.csv that names them."),
    ] = "mvtec",
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that 'convert' wrote before.")] = False,
    *,
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Write a data set in any layout as one in MVTec AD's, or as a table, by links where the disk allows it."""
    from pickglass.app.convert import convert as use_case

    source = folder.source(data)
    run(lambda progress: use_case(source, output, form, force=force, progress=progress), _show, as_json)


def _show(result: ConvertResult) -> None:
    from pickglass.data import Account

    for one in result["sets"]:
        links = ", ".join(f"{n} {way}" for way, n in one["links"].items())
        say(f"{one['name']}: {one['images']} images and {one['masks']} masks in the layout {one['layout']} ({links}).")
        for what, n in one["lost"].items():
            say(f"  {n} {what}.")
        for sentence in Account.from_json(one["account"]).sentences():
            say(sentence)
        say(f"written: {one['path']}")
