"""``pickglass demo``: tiny defects missed, explained and found, on cloth that is woven on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import duration, print_table, say
from pickglass.cli.options import Json, Seed

if TYPE_CHECKING:
    from pickglass.app.results import DemoResult, LookLayer

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Argument(help="Write pieces, models and pages to this folder.")] = Path(
        "pickglass-demo"
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show on woven cloth how tiny defects are missed, why, and how they are found, in a few minutes."""
    from pickglass.app.demo import demo as use_case

    run(lambda progress: use_case(folder, seed=seed, progress=progress), _show, as_json)


def _show(result: DemoResult) -> None:
    from pickglass.app.pages.demo import own_folder, reads, summary, title_of

    rows = [
        [
            title_of(model),
            reads(model),
            f"{model['missed']} of {model['n_defective']}",
            f"{model['flagged']} of {model['n_good']}",
        ]
        for model in result["models"]
    ]
    print_table(["model", "reads", "defects missed", "good pieces flagged"], rows, text=["reads"], bold=[len(rows) - 1])
    say()
    for sentence in summary(result):
        say(sentence)
    say(f"Why: one defect of {result['defect_px']:g} px, layer by layer")
    for name, layers in result["layers"].items():
        say(f"  {name}: {', '.join(_in_layer(layer) for layer in layers)}")
    say(f"The advisor: {result['advice']['why']}")
    say()
    say(f"All of it on one page: {result['page']} ({duration(result['seconds'])})")
    say()
    say("With your own folder of good photographs:")
    for command, does in own_folder():
        say(f"  {command}   # {does}")


def _in_layer(layer: LookLayer) -> str:
    return f"{layer['layer']} {layer['verdict']}"
