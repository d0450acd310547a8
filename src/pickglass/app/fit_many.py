"""Fit many categories into one model file each; a failed one does not stop the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pickglass.app.checkpoints import checkpoints_of
from pickglass.app.fit import FitRequest, fit_dataset
from pickglass.app.jobs.executors import Where
from pickglass.app.results import FitManyResult, FitResult, FittedCategory
from pickglass.data import DataSource
from pickglass.errors import InputError, PickglassError
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["Category", "fit_category", "fit_many", "is_root"]


@dataclass(frozen=True)
class Category:
    """One category to fit, as :func:`fit_category` takes it, also in another process.

    Attributes:
        source: root of the data sets; see :func:`pickglass.load_datasets`.
        name: name of the data set in it.
        model: file to write, absolute: another process may work in another folder.
        request: which detector.
        compute: where to compute.
        threads: how many torch uses; None: its own choice.
    """

    source: DataSource
    name: str
    model: str
    request: FitRequest
    compute: ComputeOptions
    threads: int | None = None


def is_root(source: DataSource) -> bool:
    """Tell whether a folder holds several data sets."""
    return len(source.load_all(warn=False)) > 1


def fit_many(
    root: DataSource | str | Path,
    folder: str | Path,
    request: FitRequest | None = None,
    *,
    again: bool = False,
    where: Where | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> FitManyResult:
    """Fit each category of a root, e.g. of MVTec AD, into ``FOLDER/CATEGORY.safetensors``.

    A category whose file exists is skipped, so that a call that was killed goes on where it was. One whose worker died,
    or whose machine was lost, is fitted once more.

    Args:
        root: folder that :func:`pickglass.load_datasets` knows, or how to read it.
        folder: for the models; made if needed.
        request: which detector; its ``memory_gb`` is the budget of each fit.
        again: fit also the categories whose file exists, and replace it.
        where: on this machine or on a cluster, and how many at once.
        compute: where each fit computes.
        progress: called with (stage, done, total) after each category.

    Raises:
        InputError: the folder is a file, or known defects were given, which are those of one category.
        DataError: no data set.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: a root of many categories needs a folder for their models, -o FOLDER")
    source, wish, at = DataSource.of(root), request or FitRequest(), where or Where()
    if wish.defects is not None:
        raise InputError(
            f"defects={str(wish.defects)!r}: known defects are those of one category, and {source.path} holds many: "
            "fit that category by itself"
        )
    names = list(source.load_all())
    target.mkdir(parents=True, exist_ok=True)
    run = compute or ComputeOptions()
    files = {name: target / f"{name.replace('/', '_')}.safetensors" for name in names}
    rows = {name: _row(name, "skipped", file) for name, file in files.items() if file.is_file() and not again}
    for name in rows:
        _tidy(files[name])
    waiting = [
        Category(source.absolute(), name, os.path.abspath(files[name]), wish, run, at.threads)
        for name in names
        if name not in rows
    ]
    died: set[str] = set()
    executor = replace(at, memory_gb=wish.memory_gb).make()
    for event in executor.run(fit_category, lambda: waiting.pop(0) if waiting else None):
        name = event.task.name
        if name in rows:
            continue  # its end, after its result
        if event.result is not None:
            fitted = event.result["fit"]
            fit: FitResult | None = None if fitted is None else {**fitted, "model": str(files[name])}
            rows[name] = {**event.result, "model": str(files[name]), "fit": fit}
        elif event.died and name not in died:
            died.add(name)
            waiting.insert(0, event.task)
            continue
        else:
            rows[name] = _row(name, "failed", files[name], error=event.error)
        if progress is not None:
            progress("fitting categories", len(rows), len(names))
    ended = [rows[name] for name in names]
    counts = {state: sum(row["state"] == state for row in ended) for state in ("done", "skipped", "failed")}
    return {"folder": str(target), **counts, "categories": ended}  # type: ignore[typeddict-item]


def _tidy(model: Path) -> None:
    """Delete the checkpoints of a fit that was killed after it had written its model."""
    for checkpoint in checkpoints_of(model):
        if checkpoint.stat().st_mtime_ns <= model.stat().st_mtime_ns:
            checkpoint.unlink(missing_ok=True)


def fit_category(task: Category) -> Iterator[FittedCategory]:
    """Fit one category; an error is its outcome."""
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)
    try:
        dataset = task.source.load_all(warn=False)[task.name]
        fitted = fit_dataset(dataset, task.model, task.request, source=task.source, compute=task.compute)
    except PickglassError as error:
        yield _row(task.name, "failed", Path(task.model), error=str(error))
    except Exception as error:  # whatever a library throws: the others go on
        yield _row(task.name, "failed", Path(task.model), error=f"{type(error).__name__}: {error}")
    else:
        yield _row(task.name, "done", Path(task.model), fitted)


def _row(
    name: str,
    state: Literal["done", "skipped", "failed"],
    model: Path,
    fit: FitResult | None = None,
    error: str | None = None,
) -> FittedCategory:
    return {"category": name, "state": state, "model": str(model), "fit": fit, "error": error}
