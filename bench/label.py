"""Which layers carry the fine-grained signal? Naming defect types from a few examples, by layer and pooling.

    python -m bench run label DATA [--cache FOLDER] [--examples 5 10 15] [--repeats 10]
        [--backbone efficientnet_lite0] [--layers stage1 stage2 ...] [--size 256]

PatchCore with its defaults is fitted on the good training images of DATA and says where each defect is. Then, for each
draw, examples of each type are taken from random groups (parts) and the namer of ``pickglass label`` learns from them.
It names the images of all groups that no example came from, on the region that PatchCore finds (``found``) and on the
mask (``marked``: what a perfect detector would allow). Draws are the same for all layers and poolings.

Every defective image of DATA is at times an example and at times judged, never both in one draw. A figure is the mean
over types of the share named rightly, were all named (chance 1 / number of types): each image's share over the draws in
which it was judged. Intervals: 95 %, bootstrap over groups; they say how far other parts might move a figure, and
differences are paired. ``masks_only``: PatchCore's own layers, learning from the masks alone. ``unknown``: with
PatchCore's own layers, how many names the two rules let through and how many of these are right, and how often a type
is called unknown of which there was no example.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.harness import Case, Suite, only_set
from pickglass.data import Table, load_dataset, read_mask
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.naming import fit_namer, pooled, projections
from pickglass.detectors.naming_fit import cross_validated, regression
from pickglass.errors import InputError
from pickglass.features import FeatureExtractor
from pickglass.features.anatomy.probe import balanced_accuracy
from pickglass.features.engine import BackboneEngine
from pickglass.methods import PatchCore
from pickglass.metrics.intervals import bootstrap
from pickglass.nn.pooling import Pooling, canvas_shares
from pickglass.result import UNKNOWN
from pickglass.runtime.compute import ComputeOptions

OWN = "stage3+stage5"  # the layers of the default detector
POOLINGS: tuple[Pooling, ...] = ("average", "bilinear")


Draw = tuple[np.ndarray, np.ndarray]  # places of examples and of judged images


class Region(NamedTuple):
    """Features (N, D) of the marked and of the found regions."""

    marked: torch.Tensor
    found: torch.Tensor


def read(given: argparse.Namespace, rows: Table, train: Table) -> dict[str, Any]:
    """Pooled features of all layers and poolings: {"layer pooling": Region}, and how many regions were found."""
    detector = PatchCore(size=given.size).fit(train, seed=given.seed)
    predicted = detector.predict(rows)
    regions = detector.regions(np.stack(predicted.maps))
    marked = torch.stack(
        [
            torch.from_numpy(canvas_shares(read_mask(row.masks, found.size), detector.preprocess))
            for row, found in zip(rows, predicted, strict=True)
        ]
    )
    extractor = FeatureExtractor(given.backbone, given.layers, seed=given.seed)
    loader = FeatureLoader(BackboneEngine(extractor, "cpu"), detector.preprocess, ("features",), None, ComputeOptions())
    channels = [shape[0] for shape in extractor.shapes(detector.preprocess.size)]
    signs = {pooling: projections(channels, pooling, given.seed) for pooling in POOLINGS}
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    at = 0
    for loaded in loader.batches(rows):
        n = len(loaded.items)
        if loaded.batch is None or len(loaded.sound) < n:
            raise SystemExit(f"{given.data}: some images cannot be read")
        levels = loaded.batch.levels
        for i, layer in enumerate(given.layers):
            for pooling, own in signs.items():
                on_marked, on_found = (
                    pooled([([levels[i]], shares[at : at + n, None])], pooling, [own[i]])
                    for shares in (marked, regions)
                )
                parts.setdefault(f"{layer} {pooling}", []).append((on_marked, on_found))
        at += n
    features = {key: Region(*(torch.cat(side) for side in zip(*pairs, strict=True))) for key, pairs in parts.items()}
    hit = int((marked * regions).flatten(1).any(1).sum())
    return {"features": {key: tuple(value) for key, value in features.items()}, "hit": hit}


def draw(y: np.ndarray, groups: list[str], n: int, rng: np.random.Generator) -> Draw:
    """Places of the examples, n a type, and of the images whose group gave none."""
    order = list(dict.fromkeys(groups))
    rng.shuffle(order)
    rank = {group: i for i, group in enumerate(order)}
    turn = np.argsort([rank[group] for group in groups], kind="stable")
    train = np.concatenate([[i for i in turn if y[i] == kind][:n] for kind in np.unique(y)])
    used = {groups[i] for i in train}
    return train, np.array([i for i in range(len(y)) if groups[i] not in used])


def shares(
    region: Region, y: np.ndarray, groups: list[str], draws: list[Draw], pooling: Pooling, masks_only: bool = False
) -> dict[str, np.ndarray]:
    """Per image the share of draws in which it was named rightly, on found and on marked regions; nan: never judged."""
    right = {"found": np.zeros(len(y)), "marked": np.zeros(len(y))}
    judged = np.zeros(len(y))
    for train, test in draws:
        x, seen = (side[train].double().numpy() for side in region)
        learned = (x, y[train]) if masks_only else (np.concatenate([x, seen]), np.tile(y[train], 2))
        own = [groups[i] for i in train]
        strength = cross_validated(x, seen, y[train], own, pooling, 0).strength
        (fitted,) = regression(*learned, int(y.max()) + 1, [strength], pooling)
        judged[test] += 1
        for kind, side in (("found", region.found), ("marked", region.marked)):
            right[kind][test] += fitted.probabilities(side[test].double().numpy()).argmax(axis=1) == y[test]
    with np.errstate(invalid="ignore"):
        return {kind: count / judged for kind, count in right.items()}


def figure(share: np.ndarray, y: np.ndarray, groups: list[str], minus: np.ndarray | None = None) -> list[float]:
    """Value, low and high of a mean over types, or of the paired difference of two."""
    there = ~np.isnan(share)

    def metric(weight: np.ndarray) -> float:
        kept = weight * there
        value = balanced_accuracy(np.nan_to_num(share), y, kept)
        return value if minus is None else value - balanced_accuracy(np.nan_to_num(minus), y, kept)

    found = bootstrap(metric, groups, repeats=1000)
    return [round(float(v[0]), 3) for v in (found.value, found.low, found.high)]


def unknowns(region: Region, y: np.ndarray, groups: list[str], draws: list[Draw], sure: float) -> dict[str, Any]:
    """The two rules at work: names given and right, and what becomes of a type without examples."""
    types = [f"type{k}" for k in range(int(y.max()) + 1)]
    given, right, total, refused, strange, spotted, far = 0, 0, 0, 0, 0, 0, 0
    for turn, (train, test) in enumerate(draws):
        for left_out in (None, turn % len(types)):
            kept = train if left_out is None else train[y[train] != left_out]
            names = [types[k] for k in y[kept]]
            own = [groups[i] for i in kept]
            settings: dict[str, Any] = {"layers": ["own"], "levels": [0], "pooling": "average", "signs": [None]}
            try:
                namer = fit_namer(region.marked[kept], region.found[kept], names, own, sure=sure, **settings)
            except InputError:
                refused += 1
                continue
            if left_out is None:
                named = [one.type for one in namer.named(region.found[test])]
                far += int((namer.judged(region.found[test])[1] > namer.settings.distance).sum())
                total += len(test)
                given += sum(name != UNKNOWN for name in named)
                right += sum(name == types[k] for name, k in zip(named, y[test], strict=True))
            else:
                new = test[y[test] == left_out]
                strange += len(new)
                spotted += sum(one.type == UNKNOWN for one in namer.named(region.found[new]))
    return {
        "named": round(given / max(1, total), 3),
        "right_of_named": round(right / max(1, given), 3),
        "too_far": round(far / max(1, total), 3),
        "new_type_unknown": round(spotted / max(1, strange), 3),
        "refused": refused,
    }


def joined(features: dict[str, Region], layers: list[str], pooling: str) -> Region:
    parts = [features[f"{layer} {pooling}"] for layer in layers]
    return Region(*(torch.cat([part[side] for part in parts], dim=1) for side in range(2)))


def markdown(result: dict[str, Any]) -> str:
    def cell(values: list[float]) -> str:
        return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"

    sizes = result["examples"]
    lines = [
        "| layers | pooling | " + " | ".join(f"{n} examples" for n in sizes) + f" | {sizes[-1]}, on the masks |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for row in result["rows"]:
        cells = [cell(row["found"][str(n)]) for n in sizes]
        cells.append(cell(row["marked"][str(sizes[-1])]))
        lines.append(f"| {row['layers']} | {row['pooling']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured(given: argparse.Namespace) -> dict[str, Any]:
    dataset = load_dataset(given.data)
    rows = dataset.table.where(lambda row: row.label == 1 and row.defect is not None and row.mask is not None)
    kinds = sorted({str(row.defect) for row in rows})
    y = np.array([kinds.index(str(row.defect)) for row in rows])
    groups = [row.unit for row in rows]
    store = None if given.cache is None else given.cache / "label-features.pt"
    if store is not None and store.is_file():
        cached = torch.load(store, weights_only=True)
    else:
        cached = read(given, rows, dataset.train)
        if store is not None:
            torch.save(cached, store)
    features = {key: Region(*value) for key, value in cached["features"].items()}
    chosen = [[layer] for layer in given.layers]
    chosen += [names for names in (OWN.split("+"), given.layers) if set(names) <= set(given.layers)]
    result: dict[str, Any] = {
        "types": kinds, "images": len(y), "groups": len(set(groups)), "examples": given.examples,
        "regions_found": cached["hit"], "rows": [], "bilinear_minus_average": {}, "minus_own": {},
    }  # fmt: skip
    draws = {
        n: [draw(y, groups, n, np.random.default_rng([given.seed, n, k])) for k in range(given.repeats)]
        for n in given.examples
    }
    result["judged"] = {str(n): int(np.mean([len(test) for _, test in each])) for n, each in draws.items()}
    known: dict[tuple[str, str, int], dict[str, np.ndarray]] = {}
    for layers in chosen:
        name = "all" if layers == given.layers else "+".join(layers)
        for pooling in POOLINGS:
            region = joined(features, layers, pooling)
            row: dict[str, Any] = {"layers": name, "pooling": pooling, "dims": region.marked.shape[1]}
            for n in given.examples:
                known[name, pooling, n] = shares(region, y, groups, draws[n], pooling)
            for kind in ("found", "marked"):
                row[kind] = {str(n): figure(known[name, pooling, n][kind], y, groups) for n in given.examples}
            result["rows"].append(row)
    last = given.examples[-1]
    for name in dict.fromkeys(row["layers"] for row in result["rows"]):
        average, bilinear = (known[name, pooling, last]["found"] for pooling in ("average", "bilinear"))
        result["bilinear_minus_average"][name] = figure(bilinear, y, groups, average)
        if (OWN, "average", last) in known:
            result["minus_own"][name] = figure(average, y, groups, known[OWN, "average", last]["found"])
    if (OWN, "average", last) in known:
        own = joined(features, OWN.split("+"), "average")
        result["unknown"] = {str(n): unknowns(own, y, groups, draws[n], given.sure) for n in given.examples}
        share = known[OWN, "average", last]["found"]
        masks = shares(own, y, groups, draws[last], "average", masks_only=True)["found"]
        result["masks_only"] = figure(masks, y, groups)
        result["masks_only_minus_own"] = figure(masks, y, groups, share)
        result["by_type"] = {kind: round(float(np.nanmean(share[y == k])), 3) for k, kind in enumerate(kinds)}
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--cache", type=Path, help="Folder for the features; read where they are there already.")
    parser.add_argument("--examples", type=int, nargs="+", default=[5, 10, 15])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--layers", nargs="+", default=[f"stage{i}" for i in range(1, 8)])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sure", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    key = {"data": given.data.name, "backbone": given.backbone, "size": given.size, "seed": given.seed}
    yield Case({**key, "repeats": given.repeats}, lambda: measured(given))


SUITE = Suite(cases, arguments, {"": lambda rows: "\n\n".join(markdown(row) for row in rows)})
