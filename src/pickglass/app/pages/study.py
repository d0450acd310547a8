"""The page of a study: all combinations in a table, what is missing and how to get it, the same images side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pickglass.app.pages.build import write_page
from pickglass.app.pages.heckler2023 import Figure
from pickglass.app.pages.side_by_side import SameImage, Seen, draw_same, kind_of, unreadable, wrong_verdict
from pickglass.errors import PickglassError
from pickglass.metrics.catalogue import METRICS, Metric
from pickglass.result import Found

__all__ = ["Course", "JudgedImage", "OpenWork", "StudyPage", "best_of", "courses_of", "undrawn", "write_study"]

QUALITY = ("image_auroc", "aupro_30", "aupro_05", "pixel_auroc", "aupimo")
COLUMNS = (*QUALITY, "fit_s", "predict_s", "peak_mb")
BY_LAYER = "aupro_05"
CHOSEN_BY = "aupro_30"  # the cell of a method whose maps are shown
NAMES = ("method", "backbone", "weights", "size", "layers")
FEW_LAYERS = 3  # from which on a table by layer says something
FEW_METHODS = 2  # whose pictures leave room for two images beside one another
SHADES = 10

Row = Mapping[str, Any]
Mean = tuple[float, float | None]
"""A mean, and its standard deviation over the seeds."""


class JudgedImage(NamedTuple):
    """One image as a cell judged it.

    Attributes:
        found: the image with its score, and its map as shares of the cell's range of colours.
        threshold: the threshold of the cell's best F1 on these images; None where it is undefined.
    """

    found: Found
    threshold: float | None


class OpenWork(NamedTuple):
    """Cells that were not done for one reason: which, why, and the command that does them."""

    cells: str
    why: str
    command: str


@dataclass(frozen=True)
class StudyPage:
    """What the page shows.

    Attributes:
        rows: columns of the study's file, one row a cell.
        images: returns the images that were kept of a cell, by its key; none of a cell that is not done.
        open: heading -> cells that failed or lack their weights.
        left_out: combinations that nobody published weights for, one line each.
        figures: the figures of a named study.
        max_pixels: images with more are not shown.
    """

    rows: Sequence[Row]
    images: Callable[[str], Sequence[JudgedImage]]
    open: Mapping[str, Sequence[OpenWork]]
    left_out: Sequence[str]
    figures: Sequence[Figure]
    max_pixels: int


class _Cell(NamedTuple):
    """A cell of a table: its class and its text."""

    style: str
    text: str


class _Line(NamedTuple):
    """A row of a table by layer."""

    name: str
    cells: Sequence[_Cell]
    best: str


class Course(NamedTuple):
    """How well defects are seen from layer to layer, on one data set with one backbone."""

    dataset: str
    backbone: str
    layers: Sequence[str]
    lines: Sequence[_Line]


class _Combination(NamedTuple):
    """A row of the table of all combinations."""

    names: Sequence[str]
    cells: Sequence[_Cell]
    done: str
    state: str


class _Table(NamedTuple):
    """All combinations on one data set; ``best`` has a sentence for the best of them."""

    name: str
    best: Sequence[str]
    combinations: Sequence[_Combination]


class _Gallery(NamedTuple):
    """The images of one data set; ``methods`` says which cell of each method is shown."""

    name: str
    methods: Sequence[tuple[str, str]]
    images: Sequence[SameImage]
    many: bool


def write_study(target: Path, study: StudyPage) -> Path:
    """Write the page, whole or not at all, and return its path."""
    rows = study.rows
    sets = sorted({row["dataset"] for row in rows})
    values = {
        "title": f"Study of {sets[0] if len(sets) == 1 else f'{len(sets)} data sets'}",
        "n": len(rows),
        "n_done": sum(row["state"] == "done" for row in rows),
        "sets": sets,
        "by_layer": METRICS[BY_LAYER],
        "courses": courses_of(rows),
        "names": NAMES,
        "columns": [METRICS[key] for key in COLUMNS],
        "tables": _tables(rows),
        "undrawn": undrawn(rows),
        "figures": study.figures,
        "open": list(study.open.items()),
        "left_out": study.left_out,
        "chosen_by": METRICS[CHOSEN_BY].label,
        "galleries": _galleries(study),
    }
    return write_page(target, "study.html.j2", values)


# -- tables ------------------------------------------------------------------------------------------------------------


def courses_of(rows: Sequence[Row]) -> list[Course]:
    """Return, for each data set and backbone, how well defects are seen from layer to layer."""
    blocks: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["place"])):
        blocks.setdefault((row["dataset"], row["backbone"]), []).append(row)
    courses = []
    for (dataset, backbone), own in blocks.items():
        layers = list(dict.fromkeys(row["layers"] for row in own))
        if len(layers) >= FEW_LAYERS:
            courses.append(Course(dataset, backbone, layers, _lines(own, layers)))
    return courses


def _lines(rows: Sequence[Row], layers: Sequence[str]) -> list[_Line]:
    detectors: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        by_layer = detectors.setdefault((row["method"], row["weights"], row["size"]), {})
        by_layer.setdefault(row["layers"], []).append(row)
    lines = []
    for (method, weights, size), by_layer in detectors.items():
        means = {layer: _mean(by_layer.get(layer, []), BY_LAYER) for layer in layers}
        known = {layer: mean[0] for layer, mean in means.items() if mean is not None}
        name = f"{method}, {size}" + ("" if weights == "default" else f", {weights}")
        lines.append(
            _Line(name, [_shaded(mean) for mean in means.values()], max(known, key=known.__getitem__, default="–"))
        )
    return lines


def _shaded(mean: Mean | None) -> _Cell:
    if mean is None:
        return _Cell("", "–")
    shade = round(SHADES * min(max(mean[0], 0.0), 1.0))
    return _Cell(f"share{shade}" if shade else "", f"{mean[0]:.2f}")


def _tables(rows: Sequence[Row]) -> list[_Table]:
    """Return a table for each data set: a mean over several says nothing about any of them."""
    sets: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        sets.setdefault((json.loads(row["cell"])["root"], row["dataset"]), []).append(row)
    return [_Table(name, best_of(own), _combinations(own)) for (_, name), own in sets.items()]


def best_of(rows: Sequence[Row]) -> list[str]:
    """Name the combination that outlines best and the one that ranks images best, in a sentence each."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(str(row[name]) for name in NAMES), []).append(row)
    found = []
    for key in (CHOSEN_BY, "image_auroc"):
        means = {kind: mean for kind, own in kinds.items() if (mean := _mean(own, key)) is not None}
        best = METRICS[key].better(mean[0] for mean in means.values())
        if best is not None and len(kinds) > 1:
            method, backbone, weights, size, layers = next(kind for kind, mean in means.items() if mean[0] == best)
            name = f"{backbone}, {layers}, {size} px" + ("" if weights == "default" else f", weights {weights}")
            found.append(f"Best {METRICS[key].label}: {METRICS[key].text(best)}, {method} on {name}.")
    return found


def undrawn(rows: Sequence[Row]) -> list[str]:
    """Name the methods whose seeds all gave the same figures, in a sentence each: they draw nothing at random."""
    by_method: dict[str, dict[tuple[str, ...], list[tuple[object, ...]]]] = {}
    for row in rows:
        if row["state"] == "done":
            kind = (str(row["dataset"]), *(str(row[name]) for name in NAMES))
            figures = tuple(row[key] for key in QUALITY)
            by_method.setdefault(row["method"], {}).setdefault(kind, []).append(figures)
    found = []
    for method, kinds in by_method.items():
        seeds = max(map(len, kinds.values()))
        if seeds > 1 and all(len(set(own)) == 1 for own in kinds.values()):
            found.append(
                f"{method} draws nothing at random here: each of its {seeds} seeds gave the same figures, so one "
                "is enough."
            )
    return found


def _combinations(rows: Sequence[Row]) -> list[_Combination]:
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["method"], row["backbone"], row["weights"], int(row["place"]))):
        kinds.setdefault(tuple(str(row[name]) for name in NAMES), []).append(row)
    means = {kind: {key: _mean(own, key) for key in COLUMNS} for kind, own in kinds.items()}
    best = {key: METRICS[key].better(m[key][0] for m in means.values() if m[key] is not None) for key in QUALITY}  # type: ignore[index]
    found = []
    for kind, own in kinds.items():
        states = [row["state"] for row in own]
        note = ", ".join(f"{states.count(s)} {s}" for s in ("failed", "missing", "waiting", "claimed") if s in states)
        done = f"{states.count('done')} of {len(states)}{': ' + note if note else ''}"
        cells = [_shown(METRICS[key], means[kind][key], best.get(key)) for key in COLUMNS]
        found.append(_Combination(kind, cells, done, next((s for s in ("failed", "missing") if s in states), "")))
    return found


def _mean(rows: Sequence[Row], name: str) -> Mean | None:
    """Return the mean over the seeds of one combination on one data set, and their standard deviation."""
    values = [row[name] for row in rows if row["state"] == "done" and row[name] is not None]
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None


def _shown(metric: Metric, mean: Mean | None, best: float | None) -> _Cell:
    if mean is None:
        return _Cell("", "–")
    value, spread = mean
    text = metric.text(value) or "–"
    if spread is not None and metric.share:
        text += f" ± {spread:.{metric.digits}f}"
    return _Cell("best" if value == best else "", text)


# -- the gallery -------------------------------------------------------------------------------------------------------


def _galleries(study: StudyPage) -> list[_Gallery]:
    sets: dict[tuple[str, str], list[Row]] = {}
    for row in study.rows:
        cell = json.loads(row["cell"])
        sets.setdefault((cell["root"], cell["dataset"]), []).append(row)
    return [_gallery(study, name, own) for (_, name), own in sets.items()]


def _gallery(study: StudyPage, name: str, rows: Sequence[Row]) -> _Gallery:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    chosen = {method: _best([row for row in rows if row["method"] == method]) for method in methods}
    kept = {
        method: {image.found.row.path: image for image in study.images(row["key"])} for method, row in chosen.items()
    }
    paths = list(dict.fromkeys(path for images in kept.values() for path in images))
    images = []
    for path in paths:
        judged = {method: by_path.get(path) for method, by_path in kept.items()}
        images.append(_same(path, judged, study.max_pixels))
    named = [(method, _how(row)) for method, row in chosen.items()]
    return _Gallery(name, named, images, len(methods) > FEW_METHODS)


def _best(rows: Sequence[Row]) -> Row:
    """Return the cell of a method to look at: the best that is done, otherwise any."""

    def worth(row: Row) -> tuple[bool, float, float]:
        return row["state"] == "done", row[CHOSEN_BY] or 0.0, row["image_auroc"] or 0.0

    return max(rows, key=worth)


def _how(row: Row) -> str:
    if row["state"] != "done":
        why = {"missing": "weights missing", "failed": str(row["error"]).strip().splitlines()[-1]}
        return why.get(row["state"], str(row["state"]))
    return f"{row['backbone']}, {row['layers']}, {row['weights']}, {row['size']} px, seed {row['seed']}"


def _same(path: str, judged: Mapping[str, JudgedImage | None], max_pixels: int) -> SameImage:
    first = next(image.found for image in judged.values() if image is not None)
    kind = kind_of(first.row.label, first.row.defect)
    try:
        image, truth = first.row.image(max_pixels), first.row.truth(first.size)
    except PickglassError as error:  # moved since the study; the rest of the page is worth having
        return unreadable(path, kind, str(error))
    return draw_same(path, kind, image, truth, [_seen(method, one) for method, one in judged.items()])


def _seen(method: str, image: JudgedImage | None) -> Seen:
    if image is None:
        return Seen(f"{method}: nothing to show", None)
    found = image.found
    bad = None if image.threshold is None else found.score >= image.threshold
    return Seen(f"{method}: {found.score:.4g}", found.full_map(), (0.0, 1.0), wrong_verdict(found.row.label, bad))
