"""Does the check of the training images name the defective ones, and what do they cost the model where it does not?

    python -m bench run contamination DATA [--seeds 5] [--rates 0.05 0.1] [--methods patchcore padim]
    python -m bench run contamination --painted [DATA...] [--seeds 3]
    python -m bench run contamination --compare DATA [--seeds 5] [--rates 0.05]

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

--compare: by what each cell is judged. Of its least distances to the other groups: the mean of the three nearest, as
the check has it; MuSc's mean over the lowest 30 % (and over the lowest 10 %), mean over cells averaged over 1, 3 and 5
(Li et al., ICLR 2024); MeDS's mean over memories of a random tenth of the groups (ICML 2026), as its expectation. By
the largest cell, as the papers have it, and by the check's spots. Counts the defective images of all draws that are
found where 1, 2 and 5 % of the good ones are suspected.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
from pickglass.nn.outliers import principal, standing_out
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
    if losses:
        parts.append(markdown(["method", "mixed in", "learned from", "image AUROC", "AUPRO@0.3", "AUPRO@0.05"], losses))
    return "\n\n".join(parts)


# -- by what a cell is judged ------------------------------------------------------------------------------------------

SIZES, PARTS_OF_GROUPS, FALSE = (1, 3, 5), {"MuSc, lowest 30 %": 0.3, "lowest 10 %": 0.1}, (0.01, 0.02, 0.05)
REFERENCES = 64  # cells of each image


def compared(data: Path, rates: Sequence[float], seeds: int) -> Iterator[Case]:
    dataset, loader = load_dataset(data), a_reader()
    clean = dataset.train

    @cache
    def levels() -> dict[Row, list[Tensor]]:
        return {row: batch for rows in (clean, dataset.test) for row, batch in levels_of(loader, rows)}

    def draw(rate: float, seed: int) -> Figures:
        wrong = drawn(dataset.test, round(rate * len(clean) / (1 - rate)), np.random.default_rng(seed))
        rows = [*clean, *wrong]
        bad = np.array([row.label == 1 for row in rows])
        number: dict[str, int] = {}
        groups = torch.tensor([number.setdefault(row.unit, len(number)) for row in rows])
        found = []
        for name, distances in cell_distances([levels()[row] for row in rows], groups):
            for by, scores in (("largest cell", distances.amax(1)), ("spot", standing_out(distances)[0])):
                values = scores.numpy()
                limits = np.quantile(values[~bad], [1 - share for share in FALSE])
                found.append([name, by, *(values[bad][:, None] > limits).sum(0).tolist()])
        return {"n_wrong": int(bad.sum()), "found": found}

    for rate, seed in itertools.product(rates, range(seeds)):
        yield Case({"part": "compared", "set": data.name, "rate": rate, "seed": seed}, partial(draw, rate, seed))


def table_of_compared(records: list[Record]) -> str:
    """How many images are found in all draws, where so many good ones are suspected."""
    parts = []
    results = [r for r in records if r["part"] == "compared"]
    for rate in sorted({r["rate"] for r in results}):
        part = [r for r in results if r["rate"] == rate]
        total = sum(r["n_wrong"] for r in part)
        heads = [f"{rate:.0%} mixed in, found of {total}", "by", *(f"{share:.0%} of good" for share in FALSE)]
        lines = []
        for k, (name, by, *_) in enumerate(part[0]["found"]):
            lines.append([name, by, *(str(sum(r["found"][k][2 + i] for r in part)) for i in range(len(FALSE)))])
        parts.append(markdown(heads, lines))
    return "\n\n".join(parts)


def levels_of(loader: FeatureLoader, rows: Table) -> Iterator[tuple[Row, list[Tensor]]]:
    for loaded in loader.batches(rows):
        if loaded.batch is None:
            raise SystemExit(f"cannot be read: {loaded.failures}")
        pooled = [F.adaptive_avg_pool2d(level[:, 0], (16, 16)) for level in loaded.batch.levels]
        for i, item in enumerate(loaded.items):
            yield item.row, [level[i] for level in pooled]


def cell_distances(images: list[list[Tensor]], groups: Tensor) -> Iterator[tuple[str, Tensor]]:
    """How strange each cell of the images is, (N, S), by each of the ways."""
    nearest = [to_groups(images, groups, size) for size in SIZES]
    yield "three nearest", nearest[0][..., :3].mean(2)
    for name, share in PARTS_OF_GROUPS.items():
        some = max(1, int(share * nearest[0].shape[2]))
        yield name, torch.stack([of_size[..., :some].mean(2) for of_size in nearest]).mean(0)
    n = nearest[0].shape[2]
    tenth = max(1, round(0.1 * n))
    # the chance that of a random tenth of the groups the k-th nearest is the nearest
    chance = [math.comb(n - 1 - k, tenth - 1) / math.comb(n, tenth) for k in range(n)]
    yield "MeDS", (nearest[0] * torch.tensor(chance)).sum(2)


def to_groups(images: list[list[Tensor]], groups: Tensor, size: int) -> Tensor:
    """The least distance of each cell to each other group, the nearest first: (N, S, G - 1)."""
    parts = []
    for level in zip(*images, strict=True):
        x = F.avg_pool2d(torch.stack(level), size, 1, size // 2, count_include_pad=False)  # (N, C, 16, 16)
        cells = x.flatten(2).transpose(1, 2)
        parts.append(cells / cells.flatten(0, 1).var(0, correction=0).sum().sqrt())
    cells = principal(torch.cat(parts, dim=2), 64, seed=0)
    n, s, _ = cells.shape
    drawn_cells = torch.rand(n, s, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :REFERENCES]
    references = cells.gather(1, drawn_cells[..., None].expand(-1, -1, cells.shape[2]))  # (N, R, C)
    number = int(groups.max()) + 1
    found = torch.empty(n, s, number - 1)
    for i in range(n):
        to_images = torch.cdist(cells[i], references.flatten(0, 1)).view(s, n, REFERENCES).amin(2)  # (S, N)
        closest = torch.full((s, number), torch.inf)
        closest.scatter_reduce_(1, groups.expand(s, -1), to_images, "amin")
        closest[:, groups[i]] = torch.inf
        found[i] = closest.sort(1).values[:, :-1]
    return found


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
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--methods", nargs="*", default=["patchcore", "padim"])
    parser.add_argument("--seeds", type=int, default=5)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    if given.painted:
        yield from painted(given.data, given.rates, given.seeds)
    elif given.compare and len(given.data) == 1:
        yield from compared(given.data[0], given.rates, given.seeds)
    elif len(given.data) == 1:
        yield from mixed_in(given.data[0], given.rates, given.methods, given.seeds)
    else:
        raise SystemExit("name one data set")


SUITE = Suite(cases, arguments, {"real": table_of_real, "painted": table_of_painted, "compared": table_of_compared})
