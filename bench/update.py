"""An update after the lamp was changed: false alarms and known bad images before and after it, one JSON line a row.

    python -m bench.update DATA [--methods patchcore padim fastflow] [--factor 1.3]

DATA is a folder in MVTec AD layout. Its good training images are divided at random into a third to fit on, a sixth to
update with and the rest, coming parts. The update learns images that were made ``--factor`` times as bright. Rows: the
model as it was fitted, updated, updated with the images of the fit at hand (``earlier``), and a new model fitted on
both. Counted are coming good images and at most eight defective test images of each type, as they are and bright, that
lie above the threshold. Groups are left aside, so images of one part are on several sides, which flatters all rows.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import pickglass as pg
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS))
    parser.add_argument("--factor", type=float, default=1.3)
    given = parser.parse_args()
    dataset = load_dataset(given.data)
    old, new, coming = divided(dataset.train)
    kinds = sorted({row.defect or "" for row in dataset.test if row.label == 1})
    bad = Table([row for kind in kinds for row in [r for r in dataset.test if r.defect == kind][:8]])
    new = brighter(new, given.factor)
    judged = {"good": coming, "bad": bad}
    judged |= {f"{name}_bright": brighter(table, given.factor) for name, table in judged.items()}
    for method in given.methods:
        cls = find_method(method)

        def show(what: str, detector: pg.Detector, began: float, method: str = method) -> None:
            seconds = round(time.perf_counter() - began, 1)
            counts = {name: flagged(detector, table) for name, table in judged.items()}
            print(json.dumps({"method": method, "model": what, **counts, "seconds": seconds}), flush=True)

        began = time.perf_counter()
        fitted = cls(**SETTINGS[method]).fit(old)
        file = fitted.save(Path(f"{method}.bench.safetensors"))
        show("as fitted", fitted, began)
        for what, earlier in (("updated", None), ("updated, with the old images", old)):
            detector = load(file)
            began = time.perf_counter()
            show(what, detector.update(new, earlier=earlier), began)
        file.unlink()
        began = time.perf_counter()
        show("fitted on both", cls(**SETTINGS[method]).fit(old + new), began)


if __name__ == "__main__":
    main()
