"""Many categories, one model file each: a failed one does not stop the rest, and what is there is not done again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from pickglass.app.fit import fit_dataset
from pickglass.app.jobs.executors import make_executor
from pickglass.app.results import FitResult
from pickglass.data import load_datasets
from pickglass.detectors.compute import Progress
from pickglass.errors import InputError, PickglassError

__all__ = ["Category", "FitManyResult", "FittedCategory", "fit_category", "fit_many", "is_root"]


class FittedCategory(TypedDict):
    """One category of ``pickglass fit ROOT``: ``state`` is done, skipped (its file was there) or failed."""

    category: str
    state: Literal["done", "skipped", "failed"]
    model: str
    fit: FitResult | None
    error: str | None


class FitManyResult(TypedDict):
    """``pickglass fit ROOT -o FOLDER``, and how many categories ended how."""

    folder: str
    done: int
    skipped: int
    failed: int
    categories: list[FittedCategory]


@dataclass(frozen=True)
class Category:
    """One fit: what :func:`fit_category` needs, importable anywhere.

    Attributes:
        root, name: of the data set; see :func:`pickglass.data.load_datasets`.
        model: file to write.
        arguments: of :func:`pickglass.app.fit.fit`.
        threads: of torch; None: its own choice.
    """

    root: str
    name: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


def is_root(root: str | Path, layout: str | None = None, group_by: str | None = None) -> bool:
    """Whether a folder holds several data sets."""
    return len(load_datasets(root, layout, group_by)) > 1


def fit_many(
    root: str | Path,
    folder: str | Path,
    *,
    executor: Literal["local", "ray"] = "local",
    parallel: int = 1,
    address: str | None = None,
    layout: str | None = None,
    group_by: str | None = None,
    memory_gb: float = 4.0,
    progress: Progress | None = None,
    **arguments: Any,
) -> FitManyResult:
    """Fit each category of a root, e.g. of MVTec AD, into ``FOLDER/CATEGORY.safetensors``.

    A category whose file exists is skipped, so that a call that was killed goes on where it was; delete a file to have
    it fitted again.

    Args:
        root: folder that :func:`pickglass.data.load_datasets` knows.
        folder: for the models; made if needed.
        executor: ``"local"``, or ``"ray"`` (extra ``pickglass[cluster]``).
        parallel: categories at once, local.
        address: of the Ray cluster.
        layout, group_by: as in :func:`pickglass.load_dataset`.
        memory_gb: budget of each fit.
        progress: called with (stage, done, total) after each category.
        arguments: of :func:`pickglass.app.fit.fit`.

    Raises:
        InputError: the folder is a file.
        DataError: no data set.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file: a root of many categories needs a folder for their models, -o FOLDER")
    names = list(load_datasets(root, layout, group_by))
    target.mkdir(parents=True, exist_ok=True)
    threads = None if parallel == 1 or executor != "local" else max(1, (os.cpu_count() or 1) // parallel)
    own = {**arguments, "layout": layout, "group_by": group_by, "memory_gb": memory_gb}
    rows: dict[str, FittedCategory] = {}
    waiting: list[Category] = []
    for name in names:
        model = target / f"{name.replace('/', '_')}.safetensors"
        if model.is_file():
            rows[name] = _row(name, "skipped", model)
        else:
            waiting.append(Category(str(root), name, str(model), own, threads))
    chosen = make_executor(executor, workers=parallel, address=address, memory_gb=memory_gb)
    for event in chosen.run(fit_category, lambda: waiting.pop(0) if waiting else None):
        name = event.task.name
        if event.result is not None:
            rows[name] = event.result
        elif event.ended and name not in rows:
            rows[name] = _row(name, "failed", Path(event.task.model), error=event.error)
        if event.ended and progress is not None:
            progress("fitting categories", len(rows), len(names))
    ended = [rows[name] for name in names]
    counts = {state: sum(row["state"] == state for row in ended) for state in ("done", "skipped", "failed")}
    return {"folder": str(target), **counts, "categories": ended}  # type: ignore[typeddict-item]


def fit_category(task: Category) -> Iterator[FittedCategory]:
    """Fit one; an error is its outcome."""
    if task.threads is not None:
        import torch

        torch.set_num_threads(task.threads)
    own = dict(task.arguments)
    try:
        dataset = load_datasets(task.root, own.pop("layout"), own.pop("group_by"))[task.name]
        fitted = fit_dataset(dataset, task.model, **own)
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
