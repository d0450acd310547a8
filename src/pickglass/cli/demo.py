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
    parts = (
        ("photographs of brick, gravel and grass, by default", result),
        ("woven cloth, by default", result["cloth"]),
    )
    for title, part in parts:
        say(f"-- {title} --")
        show_fit(part["fit"])
        show_test(part["test"])
    advice, advised, before = result["advice"], result["advised"], result["cloth"]["test"]
    say(f"-- the same cloth, as 'pickglass advise' says for defects of {advice['defect_px']:g} px --")
    say(f"why: {advice['why']}")
    say(f"the layers, on good pieces: {advice['report']}")
    show_fit(advised["fit"])
    show_test(advised["test"])
    after = advised["test"]
    say(
        f"missed {_share(before['miss_rate'])} by default, {_share(after['miss_rate'])} as advised; fresh good pieces "
        f"flagged {_share(before['false_alarm_rate'])} and {_share(after['false_alarm_rate'])}; both side by side: "
        f"{result['compared']}"
    )
    say("your own: pickglass advise FOLDER --defect-px 8, then the line that it prints, then pickglass test")


def _share(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.0%}"
