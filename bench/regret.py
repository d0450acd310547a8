"""Painted against real: the advisor's choice, made without a real defect, against the default and against an oracle.

    python -m bench run regret --data DATA [--sets magnetic_tile ...] [--defect-px 20]

DATA holds data sets with real defects and masks. For each the advisor chooses from the good training images alone; all
it is told is how large defects are, here the median longest extent of the real regions unless --defect-px says
otherwise. Then every candidate that the advisor ranked, and the default of ``fit``, is fitted on the same images and
judged on the real test images by AUPRO@0.05. The oracle chooses by the real defects on half of the test groups;
all three are judged on the other half, 200 random halves.
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

from bench.harness import Case, Suite, add_sets
from pickglass.app.advise.advise import find_advice
from pickglass.app.advise.candidates import Candidate
from pickglass.app.advise.choice import Advice
from pickglass.app.advise.painted import Judged, PaintedSet, as_input, choose_rows
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import LIMIT, Score, judge
from pickglass.data import Preprocess, Row, Table, load_dataset, read_image, read_mask, usual_size
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.shared import SharedFeatures
from pickglass.metrics.labelling import connected_regions
from pickglass.runtime.compute import ComputeOptions

SETS = ("mvtec_hazelnut_reduced", "mvtec_transistor_reduced", "aitex_fabric04", "magnetic_tile")
BACKBONE = "efficientnet_lite0"
REPEATS = 200


def compare(root: Path, name: str, defect_px: float | None, seed: int) -> dict[str, Any]:
    """One data set."""
    began = time.perf_counter()
    dataset = load_dataset(root)
    image = usual_size(dataset.train)
    extent = real_extent(dataset.test) if defect_px is None else defect_px
    extent = float(np.clip(extent, 4, min(image) / 2))
    advice = find_advice(dataset.train, AdviseRequest(extent, backbones=[BACKBONE], seed=seed))
    if advice.choice is None:
        raise SystemExit(f"{name}: geometry rules out everything for {extent} px")
    chosen = advice.choice.candidate
    usual = Candidate(BACKBONE, ("stage3", "stage5"), (256, 256), 0.0, 8, 1.0)
    plain = [one.candidate for one in advice.ranking if one.candidate.tile is None]
    wanted = [chosen, usual, *(one for one in plain if one.name not in (chosen.name, usual.name))]
    painted = painted_scores(advice, usual)
    data = real_set(dataset.train, dataset.test, {one.size for one in wanted}, seed)
    scores = judged(wanted, data, seed)
    each = {one.name: (painted[one.name], scores[one].aupro[0]) for one in wanted}
    return {
        "set": name,
        "defect_px": extent,
        "chosen": chosen.name,
        "candidates": len(each),
        "groups": len(set(data.groups)),
        "regions": sum(one.mask is not None for one in data.judged),
        **regret([scores[one] for one in wanted], data, seed),
        "best_on_all": max(wanted, key=lambda one: scores[one].aupro[0]).name,
        "rank_correlation": float(spearmanr(*zip(*each.values(), strict=True)).statistic),
        "painted_and_real": each,
        "seconds": time.perf_counter() - began,
    }


def painted_scores(advice: Advice, usual: Candidate) -> dict[str, float]:
    """AUPRO@0.05 of each candidate on the painted defects; the default's at the size nearest to 256 x 256 there."""
    scores = {one.candidate.name: one.score.aupro[0] for one in advice.ranking}
    if advice.baseline is not None:
        scores.setdefault(usual.name, advice.baseline.score.aupro[0])
    return scores


def real_extent(test: Table) -> float:
    """Median longest side of the boxes of the real regions, in pixels: what a user is taken to know."""
    sides = []
    for row in test:
        if row.mask is not None:
            size = read_image(row.path).shape[:2]
            labels, areas = connected_regions(read_mask(row.mask, (size[0], size[1])))
            for label in range(1, len(areas) + 1):
                ys, xs = np.nonzero(labels == label)
                sides.append(max(int(np.ptp(ys)), int(np.ptp(xs))) + 1)
    return float(np.median(sides))


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
                scores[one] = judge(one, data, None if one.tile else shared, ComputeOptions(), seed=seed)[0]
    return scores


def regret(scores: Sequence[Score], data: PaintedSet, seed: int) -> dict[str, Any]:
    """AUPRO@0.05 of the advisor's (first), the default (second) and the oracle on halves it did not choose by."""
    groups = sorted(set(data.groups))
    found = []
    for repeat in range(REPEATS):
        drawn = np.random.default_rng([seed, repeat]).permutation(len(groups))
        first = {groups[i] for i in drawn[: len(groups) // 2]}
        here = np.array([int(group in first) for group in data.groups])
        by = [score.tables.aupro(here, LIMIT) for score in scores]
        if np.isnan(by).any():
            continue
        oracle = scores[int(np.argmax(by))]
        values = [score.tables.aupro(1 - here, LIMIT) for score in (scores[0], scores[1], oracle)]
        if not np.isnan(values).any():
            found.append(values)
    advised, usual, oracle_ = np.array(found).T
    return {
        "halves": len(found),
        **spread("advised", advised),
        **spread("default", usual),
        **spread("oracle", oracle_),
        **spread("gain", advised - usual),
        **spread("regret", oracle_ - advised),
        "each_half": {"gain": (advised - usual).tolist(), "regret": (oracle_ - advised).tolist()},
    }


def spread(name: str, values: np.ndarray) -> dict[str, Any]:
    return {name: float(values.mean()), f"{name}_95": np.quantile(values, (0.025, 0.975)).tolist()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = "| set | defect | chosen | advised | default | oracle | gain over default | regret | painted against real |"
    lines = [head, "|---" * 9 + "|"]
    for row in rows:
        cells = [str(row["set"]), f"{row['defect_px']:g} px", str(row["chosen"])]
        for name in ("advised", "default", "oracle", "gain", "regret"):
            low, high = row[f"{name}_95"]
            cells.append(f"{row[name]:.3f} ({low:.3f} to {high:.3f})")
        cells.append(f"{row['rank_correlation']:.2f} of {row['candidates']}")
        lines.append(f"| {' | '.join(cells)} |")
    if len(rows) > 1:
        least = min(row["halves"] for row in rows)
        cells = [f"{np.mean([row[name] for row in rows]):.3f}" for name in ("advised", "default", "oracle")]
        for name in ("gain", "regret"):
            drawn = np.array([row["each_half"][name][:least] for row in rows]).mean(0)
            cells.append("{:.3f} ({:.3f} to {:.3f})".format(drawn.mean(), *np.quantile(drawn, (0.025, 0.975))))
        lines.append(f"| mean | | | {' | '.join(cells)} | |")
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    add_sets(parser, SETS)
    parser.add_argument("--defect-px", type=float)
    parser.add_argument("--seed", type=int, default=0)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for name in given.sets:
        yield Case({"set": name}, partial(compare, Path(given.data) / name, name, given.defect_px, given.seed))


SUITE = Suite(cases, arguments, {"": table})
