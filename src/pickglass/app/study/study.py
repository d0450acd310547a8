"""Every method on every backbone, layer, size and weights: which features can see the defects of these data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Unpack

from pickglass.app.jobs.executors import Executor, make_executor
from pickglass.app.study.cells import EACH, Cell, Grid, Plan, make_plan, weights_name
from pickglass.app.study.heckler2023 import HECKLER2023
from pickglass.app.study.report import write_report
from pickglass.app.study.results import StudyCell, StudyResult
from pickglass.app.study.run import GroupTask, run_group
from pickglass.app.study.store import Outcome, StudyStore
from pickglass.app.study.time import estimate
from pickglass.data.files import output_path
from pickglass.detectors.compute import ComputeArguments, Progress
from pickglass.errors import InputError, UnknownName

__all__ = ["STUDY_PRESETS", "study"]

STUDY_PRESETS: dict[str, Sequence[Grid]] = {"heckler2023": HECKLER2023}
"""Studies with a name: their grids."""


def study(
    data: Sequence[str | Path],
    file: str | Path,
    *,
    methods: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    sizes: Sequence[int | str] | None = None,
    weights: Sequence[str] | None = None,
    seeds: int = 1,
    preset: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    layout: str | None = None,
    group_by: str | None = None,
    dry_run: bool = False,
    csv: str | Path | None = None,
    report: str | Path | None = None,
    images: int = 10,
    executor: Literal["local", "ray"] = "local",
    parallel: int = 1,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    memory_gb: float = 4.0,
    progress: Progress | None = None,
    **running: Unpack[ComputeArguments],
) -> StudyResult:
    """Fit and test all combinations, each once: what the file holds already is not done again.

    A call that was killed goes on where it was; several calls may share one file, on one machine. Cells that failed,
    or lacked their weights, are tried again by the next call. Metrics are those of :func:`pickglass.evaluate`; all
    good images teach, apart from those on which a method picks its epoch.

    Args:
        data: folders or tables; a root with several categories stands for all of them.
        file: SQLite file of the results; made if it is not there.
        methods: names; None: patchcore.
        backbones: names; None: efficientnet_lite0.
        layers: ``"each"`` named layer of the backbone on its own (None), or layers of one detector joined by ``+``.
        sizes: of the network's input, as the methods take it; None: 256.
        weights: as :mod:`pickglass.features.backbones.weights` describes; also ``"supervised"``; None: that.
        seeds: how many, from 0 on.
        preset: a name in :data:`STUDY_PRESETS`, whose combinations are taken instead; what is given of the five
            above then only selects among them.
        settings: method -> settings of its constructor.
        layout, group_by: as in :func:`pickglass.load_dataset`.
        dry_run: only list the cells, with an estimate of their time; nothing is written.
        csv: file to export the cells to, ``.csv``.
        report: page to write, ``.html``.
        images: how many images of each data set the page shows.
        executor: ``"local"``, or ``"ray"`` (extra ``pickglass[cluster]``).
        parallel: groups of cells at once, local. Cells of one data set, backbone, weights and size are one group.
        address: of the Ray cluster; see :class:`pickglass.app.jobs.executors.RayExecutor`.
        cpus, gpus: of a Ray task.
        memory_gb: budget of each group at once.
        progress: called with (stage, done, total).
        running: as in :meth:`pickglass.Detector.fit`.

    Raises:
        InputError, DataError: nothing to do, a name that does not exist, or a file that cannot be used.
        MissingExtra: Ray is not installed.
    """
    table = None if csv is None else output_path(csv, ".csv")
    page = None if report is None else output_path(report, ".html")
    grids = _grids(preset, methods, backbones, layers, sizes, weights)
    plan = make_plan(data, grids, seeds=seeds, settings=settings, layout=layout, group_by=group_by)
    if dry_run:
        return _listed(plan, file)
    chosen = make_executor(executor, workers=parallel, address=address, cpus=cpus, gpus=gpus, memory_gb=memory_gb)
    threads = None if parallel == 1 or executor != "local" else max(1, (os.cpu_count() or 1) // parallel)
    with StudyStore(file) as store:
        store.enter(plan)
        _work(store, plan, chosen, lambda cells: GroupTask(cells, running, memory_gb, images, threads), progress)
        keys = {cell.key for cell in plan.cells}
        if table is not None:
            store.export(table, keys)
        if page is not None:
            write_report(page, store, keys, plan, preset, running.get("max_pixels"))
        return _result(plan, file, store.rows(keys), {}, table, page)


def _grids(
    preset: str | None,
    methods: Sequence[str] | None,
    backbones: Sequence[str] | None,
    layers: Sequence[str] | None,
    sizes: Sequence[int | str] | None,
    weights: Sequence[str] | None,
) -> list[Grid]:
    """One grid of what was given; of a preset, its grids as far as they were asked for."""
    if preset is None:
        return [
            Grid(
                methods or ["patchcore"],
                backbones or ["efficientnet_lite0"],
                layers or [EACH],
                weights or ["default"],
                sizes or [256],
            )
        ]
    if preset not in STUDY_PRESETS:
        raise UnknownName("study", preset, STUDY_PRESETS)
    if layers is not None:
        raise InputError(f"the study {preset!r} names its layers itself: leave layers out")

    def asked(own: Sequence[Any], given: Sequence[Any] | None) -> list[Any]:
        return [value for value in own if given is None or value in given]

    named = None if weights is None else list(map(weights_name, weights))
    return [
        Grid(
            asked(grid.methods, methods),
            asked(grid.backbones, backbones),
            grid.layers,
            asked(grid.weights, named),
            asked(grid.sizes, sizes),
        )
        for grid in STUDY_PRESETS[preset]
    ]


def _work(
    store: StudyStore,
    plan: Plan,
    executor: Executor,
    task: Callable[[tuple[Cell, ...]], GroupTask],
    progress: Progress | None,
) -> None:
    """Do all cells of the plan that wait, group by group."""
    keys = {cell.key for cell in plan.cells}
    left: dict[str, list[str]] = {}  # group -> keys of its cells without an outcome, in the order they are done
    done = sum(row["state"] == "done" for row in store.rows(keys))

    def take() -> GroupTask | None:
        cells = store.claim(keys)
        if not cells:
            return None
        left[cells[0].group] = [cell.key for cell in cells]
        return task(cells)

    with store.alive():
        for event in executor.run(run_group, take):
            group = event.task.cells[0].group
            if event.result is not None:
                left[group].remove(event.result.key)
                store.write(event.result)
                done += event.result.state == "done"
                if progress is not None:
                    progress("cells", done, len(keys))
            if event.ended:
                open_cells = left.pop(group)
                if open_cells and event.error is not None:  # the worker died in the first of them
                    store.write(Outcome(open_cells[0], "failed", {"error": event.error}))
                store.release(open_cells)


def _listed(plan: Plan, file: str | Path) -> StudyResult:
    rows: list[dict[str, Any]] = []
    if Path(file).is_file():
        with StudyStore(file, create=False) as store:
            rows = store.rows()
    return _result(plan, file, rows, estimate(plan, rows), None, None)


def _result(
    plan: Plan,
    file: str | Path,
    rows: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    table: Path | None,
    page: Path | None,
) -> StudyResult:
    known = {row["key"]: row for row in rows}
    cells: list[StudyCell] = []
    for cell in plan.cells:
        row = known.get(cell.key, {})
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
        "cells": cells,
        "csv": None if table is None else str(table),
        "report": None if page is None else str(page),
    }
