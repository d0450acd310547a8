"""Painted against real: the advisor's choice, made without a real defect, against the default and against an oracle.

    python -m bench run regret -o FILE --data DATA [--sets magnetic_tile ...] [--defect-px 20] [--most 40] [--best 8]

DATA holds data sets with real defects and masks. For each the advisor judges its candidates by painted defects from the
good training images alone; all it is told is how large defects are, here the median longest extent of the real regions
(and their width, where they are slim) unless --defect-px says otherwise. Then the default of ``fit`` and the --best
candidates by painted defects learn from the same images and are judged on real test images, at most --most of them
drawn by group, by AUPRO@0.05.

The table leaves one set out: it chooses on each set as the advisor does, but with the spread between painted and real
gains of the other sets. The oracle chooses by the real defects on half of the test groups; all are judged on the other
half, over random halves. ``regret:transfer`` prints the rows of ``app/advise/transfer.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bench.harness import Case, Suite, add_sets, markdown
from pickglass.app.advise.advise import find_advice
from pickglass.app.advise.candidates import Candidate
from pickglass.app.advise.choice import surest
from pickglass.app.advise.painted import Judged, PaintedSet, as_input, choose_rows
from pickglass.app.advise.request import AdviseRequest, parse_extent
from pickglass.app.advise.scoring import LIMIT, PLAIN, Score, difference, judge
from pickglass.app.advise.transfer import widened
from pickglass.data import Preprocess, Row, Table, load_dataset, read_image, read_mask, usual_size
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.shared import SharedFeatures
from pickglass.metrics.labelling import connected_regions
from pickglass.runtime.compute import ComputeOptions

SETS = {
    "mvtec_hazelnut_reduced": "hazelnut",
    "mvtec_transistor_reduced": "transistor",
    "magnetic_tile": "magnetic tiles",
    "aitex_fabric04": "AITEX fabric 04",
}
"""Folder of each data set -> what the tables and ``app/advise/transfer.py`` call it."""
BACKBONE = "efficientnet_lite0"
REPEATS = 200


def compare(root: Path, name: str, defect_px: str | None, most: int, best: int, seed: int) -> dict[str, Any]:
    """One data set."""
    began = time.process_time()
    dataset = load_dataset(root)
    image = usual_size(dataset.train)
    length, width = real_extent(dataset.test) if defect_px is None else parse_extent(defect_px)
    length = float(np.clip(length, 4, min(image) / 2))
    request = AdviseRequest(length, backbones=[BACKBONE], seed=seed, width_px=width)
    advice = find_advice(dataset.train, request, costs=False)
    advised_s = time.process_time() - began
    plain = [one for one in advice.ranking if one.candidate.tile is None]
    usual = advice.baseline.candidate
    wanted = [one for i, one in enumerate(plain) if i < best or one.candidate == usual]
    data = real_set(dataset.train, drawn(dataset.test, most, seed), {one.candidate.size for one in wanted}, seed)
    scores = judged([one.candidate for one in wanted], data, seed)
    halves = over_halves([scores[one.candidate] for one in wanted], data, seed)
    singles = [one for one in wanted if len(one.candidate.layers) == 1 and one.gain]
    fused = [one for one in wanted if len(one.candidate.layers) > 1 and one.gain]
    return {
        "set": name,
        "defect": request.defect,
        "half_contrast": dict(advice.half),
        "groups": len(set(data.groups)),
        "regions": sum(one.mask is not None for one in data.judged),
        "default": advice.baseline.candidate.name,
        "candidates": {
            one.candidate.name: {
                "fused": len(one.candidate.layers) > 1,
                "painted": one.score.aupro[0],
                "gain": difference(one.score, advice.baseline.score, advice.data, seed)["aupro"],
                "real": scores[one.candidate].aupro[0],
                "real_auroc": scores[one.candidate].auroc[0],
                "chosen_by": halves[0][i],
                "judged_by": halves[1][i],
            }
            for i, one in enumerate(wanted)
        },
        "worse": [
            [b.candidate.name, a.candidate.name]
            for a in singles
            for b in fused
            if difference(b.score, a.score, advice.data, seed)["aupro"][2] < 0
        ],
        "advised_cpu_s": advised_s,
        "cpu_s": time.process_time() - began,
    }


def drawn(test: Table, most: int, seed: int) -> Table:
    """At most so many test images, whole groups, good and defective in turn."""
    if len(test) <= most:
        return test
    rng = np.random.default_rng(seed)
    kept: list[Row] = []
    for label in (0, 1):
        groups: dict[str, list[Row]] = {}
        for row in test:
            if row.label == label:
                groups.setdefault(row.unit, []).append(row)
        names = list(groups)
        part: list[Row] = []
        for i in rng.permutation(len(names)):
            if len(part) + len(groups[names[i]]) <= most // 2:
                part += groups[names[i]]
        kept += part
    return Table(kept)


def real_extent(test: Table) -> tuple[float, float | None]:
    """Median longest side of the boxes of the real regions, in pixels: what a user is taken to know.

    And their median width, area over length, where that is under a quarter of the length.
    """
    sides: list[int] = []
    widths: list[float] = []
    for row in test:
        if row.mask is not None:
            size = read_image(row.path).shape[:2]
            labels, areas = connected_regions(read_mask(row.mask, (size[0], size[1])))
            for label in range(1, len(areas) + 1):
                ys, xs = np.nonzero(labels == label)
                sides.append(max(int(np.ptp(ys)), int(np.ptp(xs))) + 1)
                widths.append(len(ys) / sides[-1])
    length, width = float(np.median(sides)), float(np.median(widths))
    return length, max(1.0, round(width, 1)) if width < length / 4 else None


def real_set(train: Table, test: Table, sizes: set[tuple[int, int]], seed: int) -> PaintedSet:
    """The images that taught the advisor, and the real test images in place of the painted ones."""
    interpolation = find_backbone(BACKBONE).interpolation
    prepares = [Preprocess(size, interpolation) for size in sorted(sizes)]
    taught, _ = choose_rows(train, seed)
    fit: dict[tuple[int, int], list[Row]] = {prepare.size: [] for prepare in prepares}
    tested: dict[tuple[int, int], list[Row]] = {prepare.size: [] for prepare in prepares}
    for row in taught:
        pixels = row.image()
        for prepare in prepares:
            fit[prepare.size].append(as_input(prepare, row, pixels, "fit"))
    rng = np.random.default_rng(seed)
    images = []
    for row in test:
        pixels = row.image()
        size = (pixels.shape[0], pixels.shape[1])
        mask = None if row.label == 0 else read_mask(row.masks, size)
        keep = rng.random(size) < 16_000 / (size[0] * size[1])
        images.append(
            Judged(row.path, row.unit, size, (0, 0, *size), mask, keep if mask is None else keep | mask, pixels)
        )
        for prepare in prepares:
            tested[prepare.size].append(as_input(prepare, replace(row, mask=None), pixels, "test"))
    return PaintedSet(
        tuple(images), {s: Table(part) for s, part in fit.items()}, {s: Table(part) for s, part in tested.items()}
    )


def judged(wanted: Sequence[Candidate], data: PaintedSet, seed: int) -> dict[Candidate, Score]:
    """Each candidate on the real images."""
    scores = {}
    for size in {one.size for one in wanted}:
        own = [one for one in wanted if one.size == size]
        layers = [layer for one in own for layer in one.layers]
        n = len(data.fit[size]) + len(data.test[size])
        with SharedFeatures(BACKBONE, "default", seed, layers, n, 2.0) as shared:
            for one in own:
                scores[one] = judge(one, data, shared, ComputeOptions(), changes=PLAIN, seed=seed)
    return scores


def over_halves(scores: Sequence[Score], data: PaintedSet, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    """AUPRO@0.05 of each candidate on one half of the groups, and on the other, for random halves."""
    groups = sorted(set(data.groups))
    first: list[list[float]] = [[] for _ in scores]
    second: list[list[float]] = [[] for _ in scores]
    for repeat in range(REPEATS):
        mixed = np.random.default_rng([seed, repeat]).permutation(len(groups))
        part = {groups[i] for i in mixed[: len(groups) // 2]}
        here = np.array([int(group in part) for group in data.groups])
        values = [(score.tables.aupro(here, LIMIT), score.tables.aupro(1 - here, LIMIT)) for score in scores]
        if not np.isnan(values).any():
            for i, (by, on) in enumerate(values):
                first[i].append(round(by, 4))
                second[i].append(round(on, 4))
    return first, second


# -- what came out -----------------------------------------------------------------------------------------------------


def apart(row: dict[str, Any]) -> float:
    """Root mean square of the difference between painted and real gain over the default, over the other candidates."""
    usual = row["candidates"][row["default"]]
    others = [one for name, one in row["candidates"].items() if name != row["default"]]
    gaps = [one["real"] - usual["real"] - one["gain"][0] for one in others]
    return float(np.sqrt(np.mean(np.square(gaps))))


def ranks(row: dict[str, Any]) -> float:
    """Rank correlation of painted and real AUPRO@0.05 over the candidates."""
    both = [(one["painted"], one["real"]) for one in row["candidates"].values()]
    return float(spearmanr(*zip(*both, strict=True)).statistic)


def choice(row: dict[str, Any], spread: float) -> str:
    """What the advisor takes, if real gains differ from painted ones by so much."""
    names = list(row["candidates"])
    values = [row["candidates"][name] for name in names]
    worse = {tuple(pair) for pair in row["worse"]}
    lows = [widened(tuple(one["gain"]), spread)[1] for one in values]
    best = surest(lows, [one["fused"] for one in values], lambda a, b: (names[a], names[b]) in worse)
    return str(row["default"]) if best is None else names[best]


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = "| set | defect | chosen | advised | default | oracle | gain over default | regret | painted against real |"
    lines = [head, "|---" * 9 + "|"]
    means: dict[str, list[np.ndarray]] = {}
    for row in rows:
        others = [apart(other) for other in rows if other is not row]
        name = choice(row, float(np.sqrt(np.mean(np.square(others)))) if others else 0.0)
        by = np.array([one["chosen_by"] for one in row["candidates"].values()])  # (candidates, halves)
        on = np.array([one["judged_by"] for one in row["candidates"].values()])
        at = list(row["candidates"])
        oracle = on[by.argmax(0), np.arange(by.shape[1])]
        advised, usual = on[at.index(name)], on[at.index(row["default"])]
        found = {"advised": advised, "default": usual, "oracle": oracle}
        found |= {"gain": advised - usual, "regret": oracle - advised}
        for key, values in found.items():
            means.setdefault(key, []).append(values)
        cells = [_span(found[key]) for key in ("advised", "default", "oracle", "gain", "regret")]
        kind = "the default" if name == row["default"] else name
        lines.append(f"| {_called(row)} | {row['defect']} | {kind} | {' | '.join(cells)} | {ranks(row):.2f} |")
    if len(rows) > 1:
        least = min(len(values) for values in means["gain"])
        cells = [_span(np.mean([values[:least] for values in part], axis=0)) for part in means.values()]
        lines.append(f"| mean | | | {' | '.join(cells)} | |")
    return "\n".join(lines)


def best_of(rows: Sequence[dict[str, Any]]) -> str:
    """What was best on painted defects and what on real ones, and what each gained over the default on both."""
    cells = []
    for row in rows:
        usual = row["candidates"][row["default"]]["real"]
        for key in ("painted", "real"):
            name, one = max(row["candidates"].items(), key=lambda item: item[1][key])
            gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*one["gain"])
            cells.append([_called(row), key, name, gain, f"{one['real'] - usual:+.3f}"])
    return markdown(["set", "best on", "candidate", "painted gain", "real gain"], cells)


def agreements(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of ``app/advise/transfer.py``."""
    return "\n".join(
        f'Agreement("{_called(row)}", {len(row["candidates"])}, {ranks(row):.2f}, {apart(row):.3f}),' for row in rows
    )


def _called(row: dict[str, Any]) -> str:
    return str(SETS.get(row["set"], row["set"]))


def _span(values: np.ndarray) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(values.mean(), *np.quantile(values, (0.025, 0.975)))


def arguments(parser: argparse.ArgumentParser) -> None:
    add_sets(parser, tuple(SETS))
    parser.add_argument("--defect-px")
    parser.add_argument("--most", type=int, default=40)
    parser.add_argument("--best", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for name in given.sets:
        found = partial(compare, Path(given.data) / name, name, given.defect_px, given.most, given.best, given.seed)
        yield Case({"set": name}, found)


SUITE = Suite(cases, arguments, {"": table, "best": best_of, "transfer": agreements}, weights=(BACKBONE,))
