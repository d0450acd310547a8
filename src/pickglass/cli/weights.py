"""``pickglass weights``: what weights of backbones are here, fetched, or carried to a machine without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pickglass.cli.command import run
from pickglass.cli.console import print_table, say
from pickglass.cli.options import Json
from pickglass.errors import InputError

if TYPE_CHECKING:
    from pickglass.app.results import WeightsResult, WeightsRow

__all__ = ["weights"]


def weights(
    action: Annotated[
        Literal["list", "get", "pack", "import"],
        typer.Argument(help="list: what is here and what can be fetched. get, pack, import: fetch and carry files."),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", help="BACKBONE or BACKBONE:WEIGHTS, e.g. resnet18 resnet50:swav; of import, the folder."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Pack into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """List weights of backbones with licence, size and place; get NAME..., pack -o FOLDER NAME..., import FOLDER."""
    given = list(names or [])
    folder = output
    if action == "import":
        if not given or output is not None:
            raise InputError("name the folder that was packed: pickglass weights import FOLDER")
        folder, given = Path(given[0]), given[1:]
    elif (output is None) == (action == "pack"):
        raise InputError("-o names the folder of pack: pickglass weights pack -o FOLDER NAME...")
    from pickglass.app.weights import weights as use_case

    run(lambda progress: use_case(action, given, folder=folder, progress=progress), _show, as_json)


def _show(result: WeightsResult) -> None:
    if result["action"] == "list":
        rows = [
            [row["name"], _place(row), _size(row), row["digest"] or "none known", row["licence"] or "?", row["source"]]
            for row in result["weights"]
        ]
        heads = ["weights", "place", "MB", "digest", "licence", "source"]
        print_table(heads, rows, text=("place", "digest", "licence", "source"))
        say("fetch: pickglass weights get NAME..., also of any other backbone of torchvision and timm")
        say("where no digest is known, the first fetch pins what came, and a later one has to give the same")
        return
    for row in result["weights"]:
        sure = "as published" if row["verified"] else "nobody states a digest of it: pinned as it is now"
        say(f"{row['name']}: {row['path']}, {_size(row)} MB, licence {row['licence'] or 'not stated'}")
        say(f"  SHA-256 {row['sha256']}, {sure}")


def _place(row: WeightsRow) -> str:
    if row["path"] is not None:
        return row["path"]
    return "fetchable" if row["fetchable"] else "by hand"


def _size(row: WeightsRow) -> str:
    return "?" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
