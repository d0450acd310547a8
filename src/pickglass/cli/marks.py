"""``pickglass marks``: count what people have marked, bring tables together, write a table or a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.options import Force, Json, check_new

if TYPE_CHECKING:
    from pickglass.app.results import MarksResult

__all__ = ["marks"]

_NAMED = 5  # images that the screen names


def marks(
    source: Annotated[
        Path,
        typer.Argument(metavar="MARKS", help="Table (CSV) that a report or the page saved, or the page's own file."),
    ],
    into: Annotated[
        Path | None, typer.Option(metavar="FILE.sqlite", help="Add the marks of the table to the page's own file.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE.csv", help="Write the marks as a table, with masks beside it.")
    ] = None,
    data_set: Annotated[
        Path | None, typer.Option("--mvtec", metavar="FOLDER", help="Write the images in the layout of MVTec AD.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Link the images to that folder instead of copying them.")
    ] = False,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Look here, too, for marked images that were moved. May be given several times."
        ),
    ] = None,
    force: Force = False,
    *,
    as_json: Json = False,
) -> None:
    """Say what people have marked, and write it as a table or as a data set."""
    if table is not None:
        check_new(table, force)
    from pickglass.app.marking.marks import marks as use_case

    run(
        lambda _: use_case(source, into=into, table=table, data_set=data_set, link=link, roots=root or ()),
        _show,
        as_json,
    )


def _show(result: MarksResult) -> None:
    types = ", ".join(f"{n} {name}" for name, n in sorted(result["types"].items()))
    say(f"{result['good']} good, {result['bad']} bad{f' ({types})' if types else ''}, {result['unsure']} unsure")
    if result["masks"]:
        say(f"{result['masks']} defects are outlined")
    if result["into"] is not None:
        say(f"added to {result['into']}: {result['added']} marks; {result['known']} were there already")
    if result["disputed"]:
        more = len(result["disputed"]) - _NAMED
        named = ", ".join(result["disputed"][:_NAMED]) + (f" and {more} more" if more > 0 else "")
        say(f"warning: unsure, for people have marked them differently: {named}")
    if result["table"] is not None:
        say(f"table: {result['table']}")
    layout = result["data_set"]
    if layout is not None:
        say(f"data set: {layout['folder']}, {layout['good']} good, {layout['bad']} bad, {layout['masks']} masks")
        for one in layout["renamed"][:_NAMED]:
            say(f"  {one['path']} is {one['name']} there, for its name was taken or means something else")
        if len(layout["renamed"]) > _NAMED:
            say(f"  and {len(layout['renamed']) - _NAMED} more have other names; --json lists them")
