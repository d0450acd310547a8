"""The protocols of papers: every method with its published settings on a benchmark, our figures beside the published.

A reproduction is a study (:mod:`pickglass.app.study`) whose cells are the categories of the benchmark and the preset
``paper`` of each method; it goes on where a killed call stopped. The published figures and their sources are in
``published.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

from pickglass.app.jobs.executors import Where
from pickglass.app.methods import method_name
from pickglass.app.results import ReproduceResult, ReproduceRow, StudyCell
from pickglass.app.study.cells import Grid
from pickglass.app.study.store import StudyStore
from pickglass.app.study.study import StudyRequest, study
from pickglass.data import DataSource
from pickglass.errors import InputError, UnknownName
from pickglass.methods import find_method
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["ReproduceRequest", "benchmarks", "reproduce"]

# what the papers chose for their backbones: another backbone gets the method's own choice
_OF_BACKBONE = ("backbone", "layers", "dims", "width", "block", "blocks")
_CELL = ("backbone", "layers", "weights", "size")  # what a cell of a study names apart from other settings


@dataclass(frozen=True)
class ReproduceRequest:
    """What is reproduced.

    Attributes:
        benchmark: a name in :func:`benchmarks`.
        methods: names; None: all methods with published figures for the benchmark.
        backbone: whose features are read instead of each paper's, e.g. ``"efficientnet_lite0"``, whose weights come
            with pickglass. A method that brings a network of its own, such as EfficientAD, keeps it.
        settings: method -> settings that are to differ from the paper's; each is named in the result.
        seeds: how many, from 0 on.
    """

    benchmark: str
    methods: Sequence[str] | None = None
    backbone: str | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None
    seeds: int = 1

    def study(self) -> StudyRequest:
        """Return the study that does it.

        Raises:
            UnknownName: a benchmark, method or setting that does not exist.
            InputError: a method without published figures for the benchmark.
        """
        changed = {method_name(name): dict(own) for name, own in (self.settings or {}).items()}
        for name in changed:
            if name not in self.chosen():
                raise UnknownName("method of a setting", name, self.chosen())
        grids, settings = [], {}
        for name in self.chosen():
            wanted = self.settings_of(name) | changed.get(name, {})
            layers = find_method(name).configured(wanted).read_layers
            weights = wanted.get("weights", "default")
            grids.append(Grid((name,), (wanted["backbone"],), ("+".join(layers),), (weights,), (wanted["size"],)))
            settings[name] = {key: value for key, value in wanted.items() if key not in _CELL}
        return StudyRequest(grids=grids, settings=settings, seeds=self.seeds)

    def published(self) -> Mapping[str, Any]:
        """Return the entry of the benchmark in ``published.json``."""
        if self.benchmark not in benchmarks():
            raise UnknownName("benchmark", self.benchmark, benchmarks())
        found: Mapping[str, Any] = benchmarks()[self.benchmark]
        return found

    def chosen(self) -> list[str]:
        """List the methods that are fitted."""
        known = list(self.published()["methods"])
        if self.methods is None:
            return known
        names = [method_name(name) for name in self.methods]
        for name in names:
            if name not in known:
                raise InputError(f"no figures of {name} on {self.benchmark} are known here; known: {', '.join(known)}")
        return list(dict.fromkeys(names))

    def settings_of(self, method: str) -> dict[str, Any]:
        """Return the settings of the paper, or, on another backbone, those that do not hang on the backbone."""
        paper = dict(find_method(method).presets["paper"])
        if self.backbone is None or "own_weights" in self.published()["methods"][method]:
            return paper
        return {name: value for name, value in paper.items() if name not in _OF_BACKBONE} | {"backbone": self.backbone}


@cache
def benchmarks() -> Mapping[str, Any]:
    """Read ``published.json``: benchmark -> its title, layout, metrics, and the published figures of each method."""
    found: dict[str, Any] = json.loads(files("pickglass.app").joinpath("published.json").read_text("utf-8"))
    return found


def reproduce(
    roots: Sequence[str | Path],
    file: str | Path,
    request: ReproduceRequest,
    *,
    where: Where | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> ReproduceResult:
    """Fit and test each method on each category, each once, and set the means beside the published figures.

    Args:
        roots: folders of the benchmark, or of single categories of it.
        file: SQLite file of the results, as a study's; a later call goes on with it.
        request: which benchmark, methods and settings.
        where: on this machine or on a cluster.
        compute: where each cell computes.
        progress: called with (stage, done, total).

    Raises:
        InputError, DataError: nothing to do, or a name, folder or file that cannot be used.
    """
    published = request.published()
    sources = [DataSource(root, published["layout"]) for root in roots]
    result = study(sources, file, request.study(), where=where, compute=compute, progress=progress)
    with StudyStore(file, create=False) as store:
        stored = {row["key"]: row for row in store.rows([cell["key"] for cell in result["cells"]])}
    rows = [
        _row(name, request, [c for c in result["cells"] if c["method"] == name], stored) for name in request.chosen()
    ]
    return {
        "benchmark": request.benchmark,
        "title": published["title"],
        "metrics": list(published["metrics"]),
        "notes": list(published["notes"]),
        "rows": rows,
        "file": str(file),
        "n": result["n"],
        "done": result["done"],
        "failed": result["failed"],
        "missing": result["missing"],
        "waiting": result["waiting"],
        "cells": [
            {**cell, "figures": _figures(stored[cell["key"]], published) if cell["state"] == "done" else {}}
            for cell in result["cells"]
        ],
    }


def _row(
    method: str, request: ReproduceRequest, cells: Sequence[StudyCell], stored: Mapping[str, Mapping[str, Any]]
) -> ReproduceRow:
    """Average the categories of a method, and say what keeps the mean from being the paper's."""
    published = request.published()
    paper = published["methods"][method]
    done = [cell for cell in cells if cell["state"] == "done"]
    figures = [_figures(stored[cell["key"]], published) for cell in done]
    categories = len({(cell["data"], cell["dataset"]) for cell in done})
    ours = {}
    for name in published["metrics"]:
        values = [value for own in figures if (value := own[name]) is not None]
        ours[name] = mean(values) if values else None
    notes = []
    if 0 < categories < published["categories"]:
        notes.append(f"{categories} of {published['categories']} categories: a mean of others than the published one")
    if request.backbone is not None and "own_weights" not in paper:
        free = [name for name in _OF_BACKBONE[1:] if name in find_method(method).presets["paper"]]
        used = f"{cells[0]['backbone']} instead of {paper['backbone']}"
        notes.append(f"{used}, and the method's defaults for {', '.join(free)}")
    if "own_weights" in paper:
        notes.append(f"weights: {paper['own_weights']}")
    changed = (request.settings or {}).get(method, {})
    if changed:
        notes.append("not as in the paper: " + ", ".join(f"{name}={value}" for name, value in changed.items()))
    if request.backbone is None and any(cell["state"] == "missing" for cell in cells):
        notes.append("without the paper's weights, --backbone efficientnet_lite0 shows what those at hand bring")
    states = [cell for cell in cells if cell["state"] in ("failed", "missing")]
    notes += list(dict.fromkeys(f"{cell['state']}: {str(cell['error']).strip()}" for cell in states))
    digests = sorted(
        {json.loads(stored[cell["key"]]["provenance"])["backbone_weights"]["sha256"] or "" for cell in done}
    )
    return {
        "method": method,
        "backbone": cells[0]["backbone"],
        "weights_sha256": digests,
        "categories": categories,
        "of_categories": published["categories"],
        "seeds": request.seeds,
        "ours": ours,
        "published": {name: value / 100 for name, value in paper["figures"].items()},
        "comparable": categories == published["categories"] and not published.get("other_images", False),
        "source": paper["source"],
        "notes": notes + list(paper.get("notes", [])),
    }


def _figures(row: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the metrics of a cell; where the benchmark's are means over the types of defects, these means."""
    by_type = json.loads(row["provenance"]).get("by_type", {})
    found: dict[str, float | None] = {}
    for name in published["metrics"]:
        found[name] = row[name]
        if name in published.get("mean_of_types", ()):
            values = [own[name] for own in by_type.values() if own[name] is not None]
            found[name] = mean(values) if values else None
    return found
