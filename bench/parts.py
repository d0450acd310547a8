"""What the leading entries build on frozen features, each against what is there: figures, paired intervals by group.

    python -m bench run parts OUT --data DATA [--cases magnetic_tile aitex_fabric04] [--models NAME ...]
        [--repeats 500]

Learns each model that OUT/CASE/ does not have yet, and keeps what it says of the test images. At PatchCore's
default size, all good images learned:

- ``patchcore``: the default. ``one cell``: without the mean over 3 x 3 cells.
- ``separate``: a bank for each level, whose maps are brought to one scale and averaged (SuperAD, Zhang et al. 2025,
  arXiv 2505.19750), which is a combination of two PatchCores; ``separate, one cell`` likewise.
- ``subspace``: SubspaceAD at its default, ``subspace 512`` at PatchCore's size, ``subspace, 3 cells`` with the
  neighbourhood of PatchCore there, and ``patchcore+subspace``.

At 256 x 256 px or the same area, without what is usual at a place or a level:

- ``256``: the bank of all images. ``retrieved``: no bank; each cell is compared with cells of the 15 training images
  that are most alike as a whole, at most 2 cells away (RAD, Zhang et al. 2026, arXiv 2601.22763).
- ``few``: 16 images, each of another part; ``few, turned`` adds seven copies turned by multiples of 45 degrees
  (AnomalyDINO, Damm et al. 2025, arXiv 2405.14529), ``few, quarters`` three by quarters; ``few, brighter`` adds copies
  of 0.7, 0.85, 1.15 and 1.3 times the brightness (SuperADD, 2026, arXiv 2605.14808). Two draws, and banks of 2,000
  patches each.

Figures are image AUROC, AUPRO@0.3 and @0.05, the mean over draws, the difference to the model that each is
compared with, and CPU seconds of the fit.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

import pickglass as pg
from bench.combined import METRICS, Said
from bench.defaults import as_train
from bench.harness import Case, Record, Suite, differences, markdown
from bench.harness.scorer import Tool, paired
from pickglass.data import Row, Table, load_dataset
from pickglass.data.files import written_whole
from pickglass.nn.maps import mean_of_highest
from pickglass.runtime.compute import ComputeOptions

CASES = ("magnetic_tile", "aitex_fabric04")
FEW, DRAWS, BANK = 16, 2, 2000
EIGHTHS, QUARTERS = tuple(range(45, 360, 45)), (90, 180, 270)
BRIGHTNESS = (0.7, 0.85, 1.15, 1.3)
ALIKE, RADIUS = 15, 2
EDGE = 6  # pixels inside a turned copy's edge that are left out: the resampling blurs them
PLAIN: dict[str, Any] = {"size": "area:256", "place_scale": False, "level_shift": False}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Model:
    """A way to judge the test images.

    Attributes:
        said: learns from good images and says scores (N,) and maps (N, h, w) of others.
        against: the model that it is compared with.
        draws: how often, with other images.
    """

    said: Callable[[Table, Table], tuple[Array, Array, float]]
    against: str
    draws: int = 1


def fitted(detector: pg.Detector) -> Callable[[Table, Table], tuple[Array, Array, float]]:
    """Fit a copy of the detector and let it judge."""

    def said(good: Table, test: Table) -> tuple[Array, Array, float]:
        own = type(detector).configured(detector.configuration())
        began = time.process_time()
        own.fit(good, memory_gb=2.0)
        cpu = time.process_time() - began
        found = own.predict(test)
        return found.scores, np.stack(found.maps), cpu

    return said


def separate(**settings: Any) -> pg.Detector:
    parts = [{"method": "patchcore", "layers": [layer], **settings} for layer in ("stage3", "stage5")]
    return pg.Combined(parts, size="area:512")


def from_copies(turns: Sequence[int], factors: Sequence[float]) -> Callable[[Table, Table], tuple[Array, Array, float]]:
    """Learn images and their copies, a bank of as many patches whatever the copies."""

    def said(good: Table, test: Table) -> tuple[Array, Array, float]:
        rows = Table([copy for row in good for copy in copies(row, turns, factors)])
        began = time.process_time()
        counted = pg.PatchCore(**PLAIN, ratio=1.0)
        counted.fit(good[:1], calibrate=0)
        cells = 0 if counted.bank is None else counted.bank.shape[1]
        detector = pg.PatchCore(**PLAIN, ratio=min(1.0, BANK / (cells * len(rows))))
        detector.fit(rows, calibrate=0, memory_gb=2.0)
        cpu = time.process_time() - began
        found = detector.predict(test)
        return found.scores, np.stack(found.maps), cpu

    return said


def copies(row: Row, turns: Sequence[int], factors: Sequence[float]) -> list[Row]:
    """The image, and copies that are turned (what comes from outside does not count) or of another brightness."""
    image = row.image()
    made = [replace(row, pixels=image)]
    for angle in turns:
        inside = Image.fromarray(np.full(image.shape[:2], 255, np.uint8))
        turned = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC))
        mask = np.pad(np.asarray(inside.rotate(angle)), 1) > 0
        for _ in range(EDGE):  # erosion by a diamond
            mask[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        roi = None if angle % 90 == 0 and image.shape[0] == image.shape[1] else mask[1:-1, 1:-1].astype(np.uint8) * 255
        made.append(replace(row, path=f"{row.path} turned {angle}", pixels=turned, roi=roi))
    for factor in factors:
        brighter = (image.astype(np.float32) * factor).clip(0, 255).astype(np.uint8)
        made.append(replace(row, path=f"{row.path} times {factor}", pixels=brighter))
    return made


@torch.no_grad()
def retrieved(good: Table, test: Table) -> tuple[Array, Array, float]:
    """RAD: the least distance to the cells near the same place in the images that are most alike."""
    detector = pg.PatchCore(**PLAIN)
    detector.fit(good, calibrate=0, memory_gb=2.0)  # for its canvas and its patch features

    def features(rows: Table) -> torch.Tensor:
        read = detector.loader(ComputeOptions()).batches(rows)
        return torch.cat([detector._patch_features(loaded.batch.levels)[:, 0] for loaded in read if loaded.batch])

    began = time.process_time()
    known, asked = features(good), features(test)  # (N, C, h, w)
    cpu = time.process_time() - began
    whole, others = (F.normalize(f.mean((2, 3)), dim=1) for f in (asked, known))
    order = torch.cdist(whole, others).argsort(1)[:, :ALIKE]
    h, w = known.shape[2:]
    maps = torch.full((len(asked), h, w), torch.inf)
    for i, x in enumerate(asked):
        around = F.pad(known[order[i]], (RADIUS,) * 4, value=1e4)  # (k, C, h + 2 r, w + 2 r)
        for y0 in range(2 * RADIUS + 1):
            for x0 in range(2 * RADIUS + 1):
                squared = (around[:, :, y0 : y0 + h, x0 : x0 + w] - x).square().sum(1).amin(0)
                maps[i] = torch.minimum(maps[i], squared)
    smoothed = detector.smoothed(maps.sqrt()[:, None])[:, 0]
    return mean_of_highest(smoothed, 0.002).numpy(), smoothed.numpy(), cpu


MODELS: dict[str, Model] = {
    "patchcore": Model(fitted(pg.PatchCore()), "patchcore"),
    "one cell": Model(fitted(pg.PatchCore(patch=1)), "patchcore"),
    "separate": Model(fitted(separate()), "patchcore"),
    "separate, one cell": Model(fitted(separate(patch=1)), "one cell"),
    "subspace": Model(fitted(pg.Subspace()), "patchcore"),
    "subspace 512": Model(fitted(pg.Subspace(size="area:512")), "patchcore"),
    "subspace, 3 cells": Model(fitted(pg.Subspace(size="area:512", patch=3)), "patchcore"),
    "patchcore+subspace": Model(fitted(pg.Combined("patchcore+subspace", size="area:512")), "patchcore"),
    "256": Model(fitted(pg.PatchCore(**PLAIN)), "256"),
    "retrieved": Model(retrieved, "256"),
    "few": Model(from_copies((), ()), "few", DRAWS),
    "few, quarters": Model(from_copies(QUARTERS, ()), "few", DRAWS),
    "few, turned": Model(from_copies(EIGHTHS, ()), "few", DRAWS),
    "few, brighter": Model(from_copies((), BRIGHTNESS), "few", DRAWS),
}


def some(good: Table, n: int, seed: int) -> Table:
    """At most n images, each of another unit."""
    by_unit: dict[str, Row] = {}
    for row in good:
        by_unit.setdefault(row.unit, row)
    rows = list(by_unit.values())
    return Table([rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:n]])


def measured(case: str, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of a model, the mean over its draws, and the difference to the one that it is compared with."""
    test = load_dataset(given.data / case).test
    groups = [row.group for row in test]
    own, cpu = tools_of(case, name, given)
    result: dict[str, Any] = {"figures": list(mean(own, np.ones(len(groups), np.int64))), "cpu_s": cpu}
    against = MODELS[name].against
    if name != against:
        other, _ = tools_of(case, against, given)
        result |= {"against": against, "minus": paired(partial(mean, own), partial(mean, other), groups, given.repeats)}
    return result


def tools_of(case: str, name: str, given: argparse.Namespace) -> tuple[list[Tool], float]:
    """Fit what is not there yet, and return what each draw says with the mean CPU seconds."""
    dataset = load_dataset(given.data / case)
    good, test = as_train(dataset.train), dataset.test
    tools, seconds = [], []
    for draw in range(MODELS[name].draws):
        target = given.out / case / f"{name}-{draw}.npz"
        if not target.exists():
            learned = some(good, FEW, draw) if name.startswith("few") else good
            scores, maps, cpu = MODELS[name].said(learned, test)
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as temporary:
                np.savez_compressed(temporary, test_scores=scores[None], test_maps=maps[None], cpu_s=np.array(cpu))
        with np.load(target, allow_pickle=False) as stored:
            arrays = dict(stored)
        tools.append(Said(arrays, "test", test)(1))
        seconds.append(float(arrays["cpu_s"]))
    return tools, float(np.mean(seconds))


def mean(tools: list[Tool], weight: npt.NDArray[np.int64]) -> list[float]:
    judged = [tool.judge(weight) for tool in tools]
    return [float(np.mean([one[m] for one in judged])) for m in METRICS]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[m for m in MODELS if m != "all patches"])
    parser.add_argument("--repeats", type=int, default=500)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for case, name in itertools.product(given.cases, given.models):
        yield Case({"case": case, "model": name, "repeats": given.repeats}, partial(measured, case, name, given))


def table(rows: list[Record]) -> str:
    lines = []
    for row in rows:
        cells = [row["case"], row["model"], *(f"{value:.3f}" for value in row["figures"])]
        lines.append([*cells, differences(row.get("minus", [])), row.get("against"), f"{row['cpu_s']:.0f}"])
    return markdown(["set", "model", *METRICS, "difference", "against", "fit, CPU s"], lines)


SUITE = Suite(cases, arguments, {"": table})
