"""An update after the lamp was changed: false alarms and known bad images before and after it.

    python -m bench run update DATA [--methods patchcore padim fastflow] [--factor 1.3]

DATA is a folder in MVTec AD layout. Its good training images are divided at random into a third to fit on, a sixth to
update with and the rest, coming parts. The update learns images that were made ``--factor`` times as bright. Rows: the
model as it was fitted, updated, updated with the images of the fit at hand (``earlier``), and a new model fitted on
both. Counted are coming good images and at most eight defective test images of each type, as they are and bright, that
lie above the threshold. Groups are left aside, so images of one part are on several sides, which flatters all rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import pickglass as pg
from bench.harness import Case, Record, Suite, markdown, only_set
from pickglass.data import Row, Table, load_dataset
from pickglass.methods import find_method, load

SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": {"size": 192},
    "padim": {"size": 192, "dims": 40},
    "fastflow": {"size": 160, "layers": ("stage3", "stage5"), "epochs": 40, "batch": 4},
}


def brighter(table: Table, factor: float) -> Table:
    """Multiply all pixels by a factor, up to white."""

    def bright(row: Row) -> Row:
        pixels = (row.image().astype(np.float32) * factor).clip(0, 255).astype(np.uint8)
        return replace(row, path=f"bright {row.path}", pixels=pixels)

    return Table([bright(row) for row in table])


def divided(table: Table, seed: int = 0) -> tuple[Table, Table, Table]:
    """Divide the rows into a third, a sixth and the rest."""
    order = np.random.default_rng(seed).permutation(len(table))
    rows = [replace(table[i], group=None) for i in order]
    first, second = len(rows) // 3, len(rows) // 2
    return Table(rows[:first]), Table(rows[first:second]), Table(rows[second:])


def flagged(detector: pg.Detector, table: Table) -> str:
    """Say how many images lie above the threshold."""
    calibration = detector.calibration
    if calibration is None or calibration.image_threshold is None:
        raise RuntimeError("the model has no threshold")
    scores = detector.predict(table).scores
    return f"{int((scores > calibration.image_threshold).sum())}/{len(scores)}"


def measured(method: str, given: argparse.Namespace) -> dict[str, Any]:
    """The four models of one method: what each flags, and how long it took to make."""
    dataset = load_dataset(given.data)
    old, new, coming = divided(dataset.train)
    kinds = sorted({row.defect or "" for row in dataset.test if row.label == 1})
    bad = Table([row for kind in kinds for row in [r for r in dataset.test if r.defect == kind][:8]])
    new = brighter(new, given.factor)
    judged = {"good": coming, "bad": bad}
    judged |= {f"{name}_bright": brighter(table, given.factor) for name, table in judged.items()}
    cls, models = find_method(method), {}

    def show(what: str, make: Callable[[], pg.Detector]) -> pg.Detector:
        began = time.perf_counter()
        detector = make()
        seconds = round(time.perf_counter() - began, 1)
        models[what] = {name: flagged(detector, rows) for name, rows in judged.items()} | {"seconds": seconds}
        return detector

    with tempfile.TemporaryDirectory() as folder:
        file = show("as fitted", lambda: cls(**SETTINGS[method]).fit(old)).save(Path(folder) / "model.safetensors")
        show("updated", lambda: load(file).update(new))
        show("updated, with the old images", lambda: load(file).update(new, earlier=old))
    show("fitted on both", lambda: cls(**SETTINGS[method]).fit(old + new))
    return {"models": models}


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS))
    parser.add_argument("--factor", type=float, default=1.3)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for method in given.methods:
        key = {"data": given.data.name, "method": method, "factor": given.factor}
        yield Case(key, partial(measured, method, given))


def table(rows: list[Record]) -> str:
    heads = ["method", "model", "good", "bad", "good, bright", "bad, bright", "seconds"]
    keys = ("good", "bad", "good_bright", "bad_bright", "seconds")
    models = [(row["method"], what, own) for row in rows for what, own in row["models"].items()]
    return markdown(heads, [[method, what, *(own[key] for key in keys)] for method, what, own in models])


SUITE = Suite(cases, arguments, {"": table})
