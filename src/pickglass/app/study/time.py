"""Estimate how long the cells of a study will take, by the cells that are done or by rule of thumb."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pickglass.app.study.cells import Cell, Plan
from pickglass.data import parse_size
from pickglass.methods import find_method

__all__ = ["estimate"]

# seconds a megapixel of the network's input, of a small backbone on one core; a large one takes up to ten times that
_ONCE = 1.0  # reading and judging an image
_STEP = 0.4  # training on it once


def estimate(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Estimate the seconds of each cell that is not done and has its weights.

    Cells that are done tell the time a unit of work of their method on their backbone, else of their method; a unit is
    a megapixel read, weighed with the passes over it.

    Args:
        plan: the cells.
        rows: rows of the study's file; see :meth:`pickglass.app.study.store.StudyStore.rows`.
    """
    done = {row["key"] for row in rows if row["state"] == "done"}
    rates: dict[tuple[str, str | None], list[float]] = {}
    for row in rows:
        cell = Cell.from_json(json.loads(row["cell"]))
        if row["state"] == "done" and row["total_s"] and (cell.root, cell.dataset) in plan.images:
            rate = row["total_s"] / _work(cell, plan)
            rates.setdefault((cell.method, cell.backbone), []).append(rate)
            rates.setdefault((cell.method, None), []).append(rate)
    seconds = {}
    for cell in plan.cells:
        if cell.key not in done and cell.key not in plan.missing:
            measured = rates.get((cell.method, cell.backbone)) or rates.get((cell.method, None))
            seconds[cell.key] = _work(cell, plan) * (median(measured) if measured else 1.0)
    return seconds


def _work(cell: Cell, plan: Plan) -> float:
    """Return the seconds of a cell by rule of thumb."""
    detector = find_method(cell.method).configured({**json.loads(cell.settings), "size": cell.size})
    _, size, side = parse_size(cell.size)
    height, width = size or (side or 1024,) * 2
    train, test = plan.images[cell.root, cell.dataset]
    return height * width / 1e6 * ((train + test) * _ONCE + detector.work_units(train) * _STEP)
