"""Does the drift test keep its level, and what does it find?

    python -m bench run drift DATA [--repeats 400] [--detections 60] [--reference 20] [--new 20] [--level 0.05]

PatchCore is fitted on a third of the good images of DATA (by group where there are groups); the others are described
once as they are and once for each disturbance and strength. Shift and rotation go each image's own way, and, as
``... (all alike)``, one way for all, as of a camera that was knocked. Turning interpolates and so blurs, which a real
turn does not: turned images are compared with a reference that was turned too, by 1 degree one way or the other.

``false_alarms``: undisturbed images, split at random into reference and new ones ``--repeats`` times; a split is a
labelling, so the rate's expectation is at most the level whatever the images are, and its standard error is binomial.
``found``: the share of ``--detections`` splits with any alarm where the new images are disturbed, and which property
was named as the one that moved most. ``train_against_test``: the held-back images against the good test images, once.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.harness import Case, Suite, only_set
from pickglass.app.drift import main_change
from pickglass.calibration.drift import Drift, Sample, find_drift, units
from pickglass.data import Row, Table, load_dataset, read_image, split_roles
from pickglass.data.painting.disturbances import DISTURBANCES, disturb
from pickglass.detectors.drift_sample import describe
from pickglass.methods import PatchCore

LABELLINGS = 1000  # a test; fewer than by default, which costs a little power


def disturbed(rows: Table, kind: str, strength: float, alike: bool) -> Table:
    images = []
    for i, row in enumerate(rows):
        rng = np.random.default_rng([0 if alike else i, *kind.encode()])
        pixels = disturb(read_image(row.path), kind, strength, rng)
        images.append(Row(f"{row.path}#{kind}", "test", 0, group=row.group, pixels=pixels))
    return Table(images)


def conditions() -> list[tuple[str, str, bool]]:
    kinds = [(kind, kind, False) for kind in DISTURBANCES]
    return kinds + [(f"{kind} (all alike)", kind, True) for kind in ("shift", "rotation")]


class Splits:
    """Random splits of one pool, of which the new images may come from another version of it."""

    def __init__(self, pool: Sample, n: int, m: int, level: float, seed: int) -> None:
        self.pool, self.n, self.m, self.level, self.seed = pool, n, m, level, seed

    def tested(self, repeat: int, new: Sample, reference: Sample | None = None) -> Drift:
        order = np.random.default_rng([self.seed, repeat]).permutation(len(self.pool))
        there = new.take(order[self.n : self.n + self.m])
        here = (self.pool if reference is None else reference).take(order[: self.n])
        return find_drift(here, there, self.level, repeat, LABELLINGS)


def rate(found: list[bool]) -> dict[str, float]:
    share = float(np.mean(found))
    return {"rate": round(share, 4), "standard_error": round(math.sqrt(share * (1 - share) / len(found)), 4)}


def measured(given: argparse.Namespace) -> dict[str, Any]:
    dataset = load_dataset(given.data)
    good = Table([row for row in dataset.table if row.label == 0])
    train = split_roles(Table([row for row in good if row.role == "train"]), 0, 0.6, given.seed)
    detector = PatchCore(size=given.size).fit(train.role("fit"), calibrate=0)
    rows = train.role("calibrate")
    rng = np.random.default_rng(given.seed)
    held = describe(detector, rows)[0]
    # the same image speaks for a part in every version of the pool
    chosen = units(held, rng)
    at = np.array([int(np.flatnonzero((held.facts == facts).all(axis=1))[0]) for facts in chosen.facts])
    rows, pool = Table([rows[i] for i in at]), held.take(at)
    splits = Splits(pool, given.reference, min(given.new, len(pool) - given.reference), given.level, given.seed)
    result: dict[str, Any] = {"pool": len(pool), "reference": splits.n, "new": splits.m, "level": given.level}
    result["false_alarms"] = rate([splits.tested(k, pool).found for k in range(given.repeats)])
    test = describe(detector, good.role("test"))[0]
    if len(test) > 2:
        last = find_drift(pool, test, given.level)
        result["train_against_test"] = {change.what: round(change.p, 4) for change in last.changes}
    result["found"] = {}
    turned = describe(detector, disturbed(rows, "rotation", 1, False))[0]
    for name, kind, alike in conditions():
        for strength in DISTURBANCES[kind]:
            version = describe(detector, disturbed(rows, kind, strength, alike))[0]
            against = turned if kind == "rotation" else None
            tests = [splits.tested(k, version, against) for k in range(given.detections)]
            most = Counter(change.what for change in map(main_change, tests) if change is not None)
            result["found"][f"{name} {strength:g}"] = {
                **rate([one.found for one in tests]), "most": dict(most.most_common(2)),
            }  # fmt: skip
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--detections", type=int, default=60)
    parser.add_argument("--reference", type=int, default=20)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--level", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    yield Case({"data": given.data.name, "seed": given.seed, "repeats": given.repeats}, lambda: measured(given))


SUITE = Suite(cases, arguments)
