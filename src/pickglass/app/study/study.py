"""A study runs every method on every backbone, layer, size and weights of some lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pickglass.app.jobs.executors import Executor, Where
from pickglass.app.pages.study import undrawn
from pickglass.app.results import StudyCell, StudyResult
from pickglass.app.study.cells import EACH, Cell, Grid, Plan, make_plan, weights_name
from pickglass.app.study.heckler2023 import HECKLER2023
from pickglass.app.study.report import write_report
from pickglass.app.study.run import GroupTask, run_group
from pickglass.app.study.store import Outcome, StudyStore
from pickglass.app.study.time import estimate
from pickglass.data import DataSource
from pickglass.data.files import output_path
from pickglass.errors import InputError, UnknownName
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["STUDY_PRESETS", "StudyFiles", "StudyRequest", "list_cells", "study"]

STUDY_PRESETS: dict[str, Sequence[Grid]] = {"heckler2023": HECKLER2023}
"""Name of a study -> its grids."""


@dataclass(frozen=True)
class StudyRequest:
    """The detectors that a study combines.

    Attributes:
        methods: names; None: patchcore.
        backbones: names; None: efficientnet_lite0.
        layers: ``"each"`` named layer of the backbone on its own (None), or layers of one detector joined by ``+``.
        sizes: sizes of the network's input, as the methods take them; None: 256.
        weights: names as in :mod:`pickglass.features.backbones.weights`; also ``"supervised"``; None: that.
        seeds: how many, from 0 on.
        preset: a name in :data:`STUDY_PRESETS`, whose combinations are taken instead; the lists above then only select
            among them.
        grids: the combinations themselves, instead of those of the lists and the preset.
        settings: method -> settings of its constructor.
    """

    methods: Sequence[str] | None = None
    backbones: Sequence[str] | None = None
    layers: Sequence[str] | None = None
    sizes: Sequence[int | str] | None = None
    weights: Sequence[str] | None = None
    seeds: int = 1
    preset: str | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    grids: Sequence[Grid] | None = None

    def plan(self, data: Sequence[DataSource | str | Path]) -> Plan:
        """List the cells over these data sets; see :func:`pickglass.app.study.cells.make_plan` for the errors."""
        return make_plan(data, self._grids(), seeds=self.seeds, settings=self.settings)

    def _grids(self) -> list[Grid]:
        """Make one grid of the lists; with a preset, select from its grids."""
        if self.grids is not None:
            return list(self.grids)
        if self.preset is None:
            return [
                Grid(
                    self.methods or ["patchcore"],
                    self.backbones or ["efficientnet_lite0"],
                    self.layers or [EACH],
                    self.weights or ["default"],
                    self.sizes or [256],
                )
            ]
        if self.preset not in STUDY_PRESETS:
            raise UnknownName("study", self.preset, STUDY_PRESETS)
        if self.layers is not None:
            raise InputError(f"the study {self.preset!r} names its layers itself: leave layers out")

        def selected(values: Sequence[Any], wanted: Sequence[Any] | None) -> list[Any]:
            return [value for value in values if wanted is None or value in wanted]

        weights = None if self.weights is None else list(map(weights_name, self.weights))
        return [
            Grid(
                selected(grid.methods, self.methods),
                selected(grid.backbones, self.backbones),
                grid.layers,
                selected(grid.weights, weights),
                selected(grid.sizes, self.sizes),
            )
            for grid in STUDY_PRESETS[self.preset]
        ]


@dataclass(frozen=True)
class StudyFiles:
    """The files that a study writes beside its results.

    Attributes:
        csv: file to export the cells to, ``.csv``; None: none.
        report: page to write, ``.html``; None: none.
        images: how many images of each data set the page shows.
    """

    csv: str | Path | None = None
    report: str | Path | None = None
    images: int = 10


def study(
    data: Sequence[DataSource | str | Path],
    file: str | Path,
    request: StudyRequest | None = None,
    *,
    files: StudyFiles | None = None,
    where: Where | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Fit and test all combinations, each once: what the file holds already is not done again.

    A call that was killed goes on where it was; several calls may share one file, on one machine. Cells that failed,
    or lacked their weights, are tried again by the next call; a cell whose worker died, or whose machine was lost, is
    tried once more by this one. Metrics are those of :func:`pickglass.evaluate`; all
    good images teach, apart from those on which a method picks its epoch.

    Args:
        data: folders or tables, or how to read them; a root with several categories stands for all of them.
        file: SQLite file of the results; made if it is not there.
        request: which detectors.
        files: what else to write.
        where: on this machine or on a cluster. Cells of one data set, backbone, weights and size are one task.
        compute: where each cell computes.
        progress: called with (stage, done, total).

    Raises:
        InputError, DataError: nothing to do, a name that does not exist, or a file that cannot be used.
        MissingExtra: Ray is not installed.
    """
    asked, out, at, run = (
        request or StudyRequest(),
        files or StudyFiles(),
        where or Where(),
        compute or ComputeOptions(),
    )
    table = None if out.csv is None else output_path(out.csv, ".csv")
    page = None if out.report is None else output_path(out.report, ".html")
    plan = asked.plan(data)
    executor = at.make()
    with StudyStore(file) as store:
        store.enter(plan)
        _work(
            store,
            plan,
            executor,
            lambda cells: GroupTask(cells, run, at.memory_gb, out.images, at.threads),
            progress,
        )
        keys = {cell.key for cell in plan.cells}
        if table is not None:
            store.export(table, keys)
        if page is not None:
            write_report(page, store, keys, plan, asked.preset, run.max_pixels)
        return _result(plan, file, store.rows(keys), {}, table, page)


def list_cells(
    data: Sequence[DataSource | str | Path], file: str | Path, request: StudyRequest | None = None
) -> StudyResult:
    """List the cells of a study with an estimate of their time; nothing is computed or written.

    Args:
        data, file, request: as in :func:`study`; cells that the file holds make the estimate better.
    """
    plan = (request or StudyRequest()).plan(data)
    rows: list[dict[str, Any]] = []
    if Path(file).is_file():
        with StudyStore(file, create=False) as store:
            rows = store.rows()
    return _result(plan, file, rows, estimate(plan, rows), None, None)


def _work(
    store: StudyStore,
    plan: Plan,
    executor: Executor,
    task: Callable[[tuple[Cell, ...]], GroupTask],
    progress: Progress | None,
) -> None:
    """Do all cells of the plan that wait, group by group."""
    keys = {cell.key for cell in plan.cells}
    # cells of a task -> keys of those without an outcome, in the order they are done. Not by group: cells of one that
    # runs may wait again, when another process begins the same study
    left: dict[tuple[Cell, ...], list[str]] = {}
    died: set[str] = set()  # keys of cells whose worker was lost once
    done = sum(row["state"] == "done" for row in store.rows(keys))

    def take() -> GroupTask | None:
        cells = store.claim(keys)
        if not cells:
            return None
        left[cells] = [cell.key for cell in cells]
        return task(cells)

    with store.alive():
        for event in executor.run(run_group, take):
            open_cells = left[event.task.cells]
            if event.result is not None:
                open_cells.remove(event.result.key)
                store.write(event.result)
                done += event.result.state == "done"
                if progress is not None:
                    progress("cells", done, len(keys))
            if event.ended:
                del left[event.task.cells]
                if open_cells and event.error is not None:  # in the first of them
                    if event.died and open_cells[0] not in died:
                        died.add(open_cells[0])  # it waits again, and is taken next
                    else:
                        store.write(Outcome(open_cells[0], "failed", {"error": event.error}))
                store.release(open_cells)


def _result(
    plan: Plan,
    file: str | Path,
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    table: Path | None,
    page: Path | None,
) -> StudyResult:
    row_of = {row["key"]: row for row in rows}
    cells: list[StudyCell] = []
    for cell in plan.cells:
        row = row_of.get(cell.key, {})
        state = row.get("state", "waiting")
        if cell.key in plan.missing and state != "done":
            state = "missing"
        cells.append(
            {
                "key": cell.key,
                "data": cell.root,
                "dataset": cell.dataset,
                "method": cell.method,
                "backbone": cell.backbone,
                "layers": list(cell.layers),
                "weights": cell.weights,
                "size": cell.size,
                "seed": cell.seed,
                "state": state,
                "estimate_s": seconds.get(cell.key),
                "total_s": row.get("total_s"),
                "image_auroc": row.get("image_auroc"),
                "aupro_30": row.get("aupro_30"),
                "error": plan.missing.get(cell.key, row.get("error")) if state in ("failed", "missing") else None,
                "command": cell.command(file) if state in ("failed", "missing") else None,
            }
        )
    counts = {state: sum(cell["state"] == state for cell in cells) for state in ("done", "failed", "missing")}
    return {
        "file": str(file),
        "n": len(cells),
        **counts,  # type: ignore[typeddict-item]
        "waiting": len(cells) - sum(counts.values()),
        "estimate_s": sum(seconds.values()) if seconds else None,
        "left_out": list(plan.left_out),
        "notes": undrawn([row_of[cell.key] for cell in plan.cells if cell.key in row_of]),
        "cells": cells,
        "csv": None if table is None else str(table),
        "report": None if page is None else str(page),
    }
