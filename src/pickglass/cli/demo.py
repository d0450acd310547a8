"""``pickglass demo``: fit, test and report on small data sets that are made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pickglass.cli.command import run
from pickglass.cli.console import say
from pickglass.cli.fit import show_fit
from pickglass.cli.options import Json, Seed
from pickglass.cli.test import show_test

if TYPE_CHECKING:
    from pickglass.app.results import DemoWithCloth

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Argument(help="Write images, models and reports to this folder.")] = Path(
        "pickglass-demo"
    ),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit, test and report on real textures and woven cloth with painted defects, in under two minutes."""
    from pickglass.app.demo import demo as use_case

    run(lambda progress: use_case(folder, seed=seed, progress=progress), _show, as_json)


def _show(result: DemoWithCloth) -> None:
    for title, part in (("photographs of brick, gravel and grass", result), ("woven cloth", result["cloth"])):
        say(f"-- {title} --")
        show_fit(part["fit"])
        show_test(part["test"])
