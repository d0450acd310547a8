"""Does the check of the training images name the defective ones, and what do they cost the model where it does not?

    python -m bench run contamination DATA [--seeds 5] [--rates 0.05 0.1] [--methods patchcore padim]
    python -m bench run contamination --painted [DATA...] [--seeds 3]

DATA is a data set with labelled test defects, e.g. magnetic_tile squeezed to 256 px (bench/tools/squeeze.py). Defects
drawn evenly from all types are mixed into the good training images as if they were good, until they make up 5 and 10
% of them; a group moves as a whole, all its defective images leave the test set, and every model of a draw is judged
on what is left. Per draw: precision and recall of the images that the check names, the rate of named good images, the
share of the defective images that somebody finds who looks at the tenth with the highest scores, and the metrics of a
model fitted on the clean images, on the contaminated ones, on those without the named images, and on clean images
without the named ones of these (what the check costs where nothing is wrong). Differences are to the clean model on
the same test images, with the standard error over the draws. Without --methods values only the check is judged.

--painted: the sets on which the check's settings were chosen: the good training images of the folders, three cloths
and four kinds of trays, with painted defects in 0, 5 and 10 % of them; no real defect is looked at. ``mixed`` draws
the kind of each defect, ``one`` has the same kind everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

import pickglass as pg
from bench.harness import Case, Record, Suite, markdown
from pickglass.data import Preprocess, Row, Table, load_dataset, paint, read_image
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.trays import PartName, Tray, fill
from pickglass.detectors.contamination import Cleanliness, find_suspicious
from pickglass.detectors.loading import FeatureLoader
from pickglass.features.engine import BackboneEngine
from pickglass.features.extractor import FeatureExtractor
from pickglass.methods import find_method
from pickglass.metrics import average_precision
from pickglass.result import Prediction
from pickglass.runtime.compute import ComputeOptions

METRICS = ("image_auroc", "aupro_30", "aupro_05")
SURFACE: tuple[Kind, ...] = ("scratch", "hole", "stain", "crack", "dent")
THREADS: tuple[Kind, ...] = ("broken_pick", "missing_end", "slub", "knot", "foreign_fibre", "stain", "hole")
PARTS: tuple[Kind, ...] = ("missing_part", "surplus_part", "misplaced_part", "scratch", "stain")
SIDES = (0.04, 0.3)  # of the shorter side of the image ...
PART_SIDES = (0.12, 0.3)  # ... where a part is missing, surplus or misplaced
Figures = dict[str, Any]
SUMMED = {
    "precision": "precision",
    "recall": "recall",
    "good images named": "good_named",
    "average precision": "average_precision",
    "in the first tenth": "in_first_tenth",
}


def a_reader(size: int = 256) -> FeatureLoader:
    extractor = FeatureExtractor("efficientnet_lite0", ("stage3", "stage5"))
    preprocess = Preprocess((size, size), extractor.interpolation)
    return FeatureLoader(BackboneEngine(extractor, "cpu"), preprocess, ("features",), None, ComputeOptions())


def judged(check: Cleanliness, wrong: set[str], rows: Sequence[Row]) -> Figures:
    """How the named images compare with the truth; precision is None where none was named."""
    named = {s.path for s in check.suspicious}
    hits = len(named & wrong)
    truth = np.array([int(row.path in wrong) for row in rows])
    first = np.argsort(check.scores)[::-1][: len(rows) // 10]
    return {
        "named": len(named),
        "precision": hits / len(named) if named else None,
        "recall": hits / len(wrong) if wrong else None,
        "good_named": len(named - wrong) / (len(rows) - len(wrong)),
        "average_precision": average_precision(truth, np.array(check.scores)) if wrong else None,
        "in_first_tenth": truth[first].sum() / len(wrong) if wrong else None,
    }


# -- real defects ------------------------------------------------------------------------------------------------------


def drawn(test: Table, n: int, rng: np.random.Generator) -> Table:
    """At least n defective rows, whole groups, as many of each type as possible."""
    members: dict[str, list[Row]] = {}
    for row in test:
        if row.label == 1:
            members.setdefault(row.group or row.path, []).append(row)
    groups = list(members.values())
    rng.shuffle(groups)
    taken: list[Row] = []
    while len(taken) < n and groups:
        counts = Counter(row.defect for row in taken)
        best = min(groups, key=lambda group: sum(counts[row.defect] for row in group) / len(group))
        groups.remove(best)
        taken += best
    return Table(taken)


def predicted(method: str, train: Table, test: Table) -> Prediction:
    detector = find_method(method).configured({}).fit(train, calibrate=0)
    return detector.predict(test)


def metrics_of(prediction: Prediction, test: Table) -> Figures:
    """The metrics on some of the images that were predicted."""
    paths = {row.path for row in test}
    found = pg.evaluate(Prediction(tuple(f for f in prediction.found if f.row.path in paths)))
    return {name: found[name] for name in METRICS}


def mixed_in(data: Path, rates: list[float], methods: list[str], seeds: int) -> Iterator[Case]:
    dataset, loader = load_dataset(data), a_reader()
    clean = dataset.train
    whole: dict[str, dict[str, Prediction]] = {}

    @cache
    def unprovoked() -> Cleanliness:
        return find_suspicious(clean, loader)

    def draw(rate: float, seed: int) -> Figures:
        for method in methods:
            if method not in whole:
                whole[method] = {
                    "clean": predicted(method, clean, dataset.test),
                    "clean, dropped": predicted(method, unprovoked().without(clean), dataset.test),
                }
        wrong = drawn(dataset.test, round(rate * len(clean) / (1 - rate)), np.random.default_rng(seed))
        paths, groups = {row.path for row in wrong}, {row.group for row in wrong if row.group is not None}
        test = Table([row for row in dataset.test if row.path not in paths and row.group not in groups])
        train = clean + Table([replace(row, role="train", label=0, defect=None, mask=None) for row in wrong])
        check = find_suspicious(train, loader)
        named = {s.path for s in check.suspicious}
        told: Figures = {"n_wrong": len(wrong), "n_test": len(test)}
        told |= judged(check, paths, train)
        told["by_type"] = {
            kind: [sum(r.path in named for r in wrong if r.defect == kind), sum(r.defect == kind for r in wrong)]
            for kind in sorted({row.defect or "" for row in wrong})
        }
        told["metrics"] = {}
        for method in methods:
            models = whole[method] | {
                "contaminated": predicted(method, train, test),
                "contaminated, dropped": predicted(method, check.without(train), test),
            }
            told["metrics"][method] = {name: metrics_of(found, test) for name, found in models.items()}
        return told

    key = {"part": "real", "set": data.name}
    yield Case({**key, "rate": 0.0, "seed": 0}, lambda: judged(unprovoked(), set(), clean))
    for rate, seed in itertools.product(rates, range(seeds)):
        yield Case({**key, "rate": rate, "seed": seed}, partial(draw, rate, seed))


def table_of_real(records: list[Record]) -> str:
    """The check in a row a rate, the types that it found, and what the defects cost each method."""
    results = [r for r in records if r["part"] == "real"]
    checks, found_kinds, losses = [], [], []
    for rate in sorted({r["rate"] for r in results}):
        part = [r for r in results if r["rate"] == rate]
        checks.append([f"{rate:.0%} mixed in, {len(part)} draws", *summary(part)])
        if not rate:
            continue
        kinds = Counter[str]()
        totals = Counter[str]()
        for r in part:
            kinds.update({kind: pair[0] for kind, pair in r["by_type"].items()})
            totals.update({kind: pair[1] for kind, pair in r["by_type"].items()})
        named = ", ".join(f"{kind} {kinds[kind]} of {totals[kind]}" for kind in sorted(totals))
        found_kinds.append(f"Named where {rate:.0%} are mixed in: {named}.")
        for method, found in part[0]["metrics"].items():
            for name in found:
                cells = [method, f"{rate:.0%}", name]
                for metric in METRICS:
                    values = [100 * r["metrics"][method][name][metric] for r in part]
                    loss = [v - 100 * r["metrics"][method]["clean"][metric] for v, r in zip(values, part, strict=True)]
                    error = statistics.stdev(loss) / len(loss) ** 0.5 if len(loss) > 1 else 0.0
                    cells.append(f"{statistics.mean(values):.1f} ({statistics.mean(loss):+.1f} ± {error:.1f})")
                losses.append(cells)
    parts = [markdown(["real defects", *SUMMED], checks), "\n".join(found_kinds)]
    parts.append(markdown(["method", "mixed in", "learned from", "image AUROC", "AUPRO@0.3", "AUPRO@0.05"], losses))
    return "\n\n".join(parts)


# -- painted defects ---------------------------------------------------------------------------------------------------


def good_sets(folders: list[Path]) -> dict[str, tuple[list[Row], tuple[Kind, ...]]]:
    """Good images by name, with the kinds of defects that suit them."""
    sets: dict[str, tuple[list[Row], tuple[Kind, ...]]] = {}
    for folder in folders:
        rows = []
        for row in load_dataset(folder).train:
            image = read_image(row.path)
            high, wide = image.shape[:2]
            if wide < 4 * high:
                rows.append(replace(row, role="train", pixels=image))
                continue
            for i in range(wide // high):  # a strip of cloth: squares, one group
                part = np.ascontiguousarray(image[:, i * high : (i + 1) * high])
                rows.append(Row(f"{row.path} {i}", "train", 0, group=row.group or row.path, pixels=part))
        sets[folder.name] = (rows, SURFACE)
    for cloth in ("plain", "twill", "satin"):
        pieces = [weave(Cloth(cloth), (256, 256), seed) for seed in range(100)]
        sets[f"cloth {cloth}"] = ([Row(f"{i}", "train", 0, pixels=p) for i, p in enumerate(pieces)], THREADS)
    for name in get_args(PartName):
        trays = [fill(Tray(name), (256, 256), seed) for seed in range(100)]
        sets[f"tray {name}"] = ([Row(f"{i}", "train", 0, pixels=t) for i, t in enumerate(trays)], PARTS)
    return sets


def spoiled(row: Row, kind: Kind, rng: np.random.Generator) -> Row:
    """The row with a painted defect, anything from faint to clear."""
    if row.pixels is None:
        raise ValueError(f"{row.path} has no pixels")
    low, high = np.log(PART_SIDES if kind.endswith("_part") else SIDES)
    image = row.image()
    side = min(image.shape[:2]) * float(np.exp(rng.uniform(low, high)))
    painted = paint(image, kind, max(side, 5.0), rng, contrast=float(rng.uniform(0.5, 1.5)))
    return replace(row, pixels=painted.image)


def painted(folders: list[Path], rates: list[float], seeds: int) -> Iterator[Case]:
    loader = a_reader()
    for name, (rows, kinds) in good_sets(folders).items():
        for rate, spread in [(0.0, "mixed"), *((r, s) for r in rates for s in ("mixed", "one"))]:
            for seed in range(seeds if rate else 1):
                key = {"part": "painted", "set": name, "rate": rate, "spread": spread, "seed": seed}
                yield Case(key, partial(painted_on, rows, kinds, rate, spread == "one", seed, loader))


def painted_on(
    rows: list[Row], kinds: tuple[Kind, ...], rate: float, alike: bool, seed: int, loader: FeatureLoader
) -> Figures:
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(rows))[: round(rate * len(rows))].tolist()
    same = kinds[int(rng.integers(len(kinds)))]
    made = list(rows)
    for i in picked:
        made[i] = spoiled(rows[i], same if alike else kinds[int(rng.integers(len(kinds)))], rng)
    check = find_suspicious(Table(made), loader)
    return {"n": len(rows), **judged(check, {rows[i].path for i in picked}, made)}


def table_of_painted(records: list[Record]) -> str:
    results = [r for r in records if r["part"] == "painted"]
    keys = sorted({(r["rate"], r["spread"]) for r in results})
    lines = [
        [f"{rate:.0%}, {s}", *summary([r for r in results if (r["rate"], r["spread"]) == (rate, s)])]
        for rate, s in keys
    ]
    names = dict.fromkeys(r["set"] for r in results)
    lines += [[name, *summary([r for r in results if r["set"] == name and r["rate"]])] for name in names]
    return markdown(["painted", *SUMMED], lines)


def summary(part: list[Figures]) -> list[str]:
    means = []
    for key in SUMMED.values():
        values = [r[key] for r in part if r[key] is not None]
        means.append(f"{statistics.mean(values):.3f}" if values else "–")
    return means


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--painted", action="store_true")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--methods", nargs="*", default=["patchcore", "padim"])
    parser.add_argument("--seeds", type=int, default=5)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    if given.painted:
        yield from painted(given.data, given.rates, given.seeds)
    elif len(given.data) == 1:
        yield from mixed_in(given.data[0], given.rates, given.methods, given.seeds)
    else:
        raise SystemExit("name one data set")


SUITE = Suite(cases, arguments, {"real": table_of_real, "painted": table_of_painted})
