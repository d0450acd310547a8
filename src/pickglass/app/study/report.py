"""What the page of a study shows, gathered from the study's file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pickglass.app.pages.heckler2023 import BACKBONES, Figure, draw_figures
from pickglass.app.pages.study import JudgedImage, OpenWork, StudyPage, write_study
from pickglass.app.study.cells import Cell, Plan, command_of
from pickglass.app.study.heckler2023 import layers_by_field
from pickglass.app.study.run import stored_image
from pickglass.app.study.store import StudyStore

__all__ = ["write_report"]

_OPEN = {"missing": "Weights that were not found", "failed": "Cells that failed"}

Rows = Sequence[Mapping[str, Any]]


def write_report(
    target: Path, store: StudyStore, keys: Collection[str], plan: Plan, preset: str | None, max_pixels: int
) -> None:
    """Write the page of these cells, whole or not at all.

    Args:
        target: HTML file.
        store: the study's file.
        keys: the keys of the cells.
        plan: what was to be done.
        preset: name of the study, for its figures; None: no figures.
        max_pixels: images with more are not shown.
    """
    rows = store.rows(keys)
    done = {row["key"] for row in rows if row["state"] == "done"}

    def images(key: str) -> list[JudgedImage]:
        return [stored_image(picture) for picture in store.pictures(key)] if key in done else []

    page = StudyPage(
        rows=rows,
        images=images,
        open=_open(rows, store.path),
        left_out=plan.left_out,
        figures=_figures(store, rows) if preset == "heckler2023" else [],
        max_pixels=max_pixels,
    )
    write_study(target, page)


def _figures(store: StudyStore, rows: Rows) -> list[Figure]:
    used = {row["backbone"] for row in rows}
    return draw_figures(
        rows, {backbone: layers_by_field(store, backbone) for backbone in BACKBONES if backbone in used}
    )


def _open(rows: Rows, file: Path) -> dict[str, list[OpenWork]]:
    """Gather what failed and what lacks its weights by its cause, with the command that does it."""
    found = {}
    for state, title in _OPEN.items():
        causes: dict[tuple[str, str, str], list[Cell]] = {}
        for row in rows:
            if row["state"] == state:
                cause = (str(row["error"]), row["backbone"], row["weights"])
                causes.setdefault(cause, []).append(Cell.from_json(json.loads(row["cell"])))
        if causes:
            found[title] = [_work(why.strip(), cells, file) for (why, _, _), cells in causes.items()]
    return found


def _work(why: str, cells: Sequence[Cell], file: Path) -> OpenWork:
    methods = ", ".join(dict.fromkeys(cell.method for cell in cells))
    which = f"{len(cells)} cells of {cells[0].backbone}, {cells[0].weights}: {methods}"
    return OpenWork(which, why, command_of(cells, file))
