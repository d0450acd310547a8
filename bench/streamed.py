"""PatchCore's fit under a memory budget: how far patches are from its bank, against the greedy on all, and the peak.

    python -m bench run streamed [--images 100 400] [--cells 32] [--memory-gb 0.1] [--exact-up-to 400]

The features are made up, 40 and 112 channels as EfficientNet-Lite0 gives them, with an offset for each image and
heavy tails, and made anew from their seed whenever they are read, so that nothing holds them all. Each fit runs in a
process of its own: ``peak_mb`` is its peak resident set less that before the fit. ``radius`` is the distance of the
farthest of all patches from the bank, measured in a second pass; ``ratio`` divides it by that of the exact greedy on
all patches at once, and is left out where the images are more than ``--exact-up-to``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pickglass as pg
from bench.harness import Case, Suite, apart, peak_mb
from pickglass.detectors.method import FitContext
from pickglass.features.batch import Batch
from pickglass.nn.search.neighbours import BankIndex

_CHANNELS = (40, 112)
_FACTORS = 64  # directions in which patches differ most, ...
_DECAY = (
    0.4  # ... each less than the one before; the farthest is 1.22 times as far as the median, on magnetic_tile 1.20
)
_AT_ONCE = 8


def features(images: int, cells: int) -> Iterator[Batch]:
    """Make the batches of a data set: levels (8, 1, 40, cells, cells) and (8, 1, 112, cells / 2, cells / 2)."""
    generator = torch.Generator().manual_seed(0)
    bases = [torch.randn(c, _FACTORS, generator=generator) for c in _CHANNELS]
    for begin in range(0, images, _AT_ONCE):
        n = min(_AT_ONCE, images - begin)
        generator.manual_seed(1 + begin)
        offset = 0.5 * torch.randn(n, _FACTORS, 1, 1, generator=generator)
        factors = torch.randn(n, _FACTORS, cells, cells, generator=generator)
        factors = (factors + offset) * torch.arange(1.0, _FACTORS + 1)[:, None, None] ** -_DECAY
        rare = torch.rand(n, 1, cells, cells, generator=generator).clamp(min=1e-6) ** -0.1  # heavy tails
        levels = []
        for basis in bases:
            c = len(basis)
            noise = rare * torch.randn(n, c, cells, cells, generator=generator)
            levels.append(torch.einsum("cf,nfhw->nchw", basis, factors) + noise)
        levels[1] = F.avg_pool2d(levels[1], 2)
        yield Batch(tuple(level[:, None] for level in levels))


def one_fit(images: int, cells: int, memory_gb: float) -> dict[str, Any]:
    """Fit, then measure how far the farthest patch lies."""
    detector = pg.PatchCore(size=8 * cells)
    shapes = [(_CHANNELS[0], cells, cells), (_CHANNELS[1], cells // 2, cells // 2)]
    for _ in features(_AT_ONCE, cells):
        before = peak_mb()
    began = time.perf_counter()
    detector.begin_fit(FitContext(images, shapes, 1, 0, memory_gb, lambda *_: None, units=tuple(range(images))))
    for batch in features(images, cells):
        detector.observe(batch)
    details = detector.end_fit()
    seconds, peak = time.perf_counter() - began, peak_mb() - before
    if detector.bank is None:
        raise RuntimeError("the fit left no bank")
    index = BankIndex(detector.bank[0])
    radius = 0.0
    for batch in features(images, cells):
        queries: Tensor = detector._patch_features(batch.levels).permute(1, 0, 3, 4, 2).flatten(1, 3)[0]  # (n, C)
        radius = max(radius, float(index.distances(queries).max()))
    return {
        "patches": details["patches"],
        "bank": details["bank"],
        "reductions": details["reductions"],
        "radius": radius,
        "promised_radius": details["radius"],
        "peak_mb": round(peak),
        "seconds": round(seconds, 1),
    }


def measured(images: int, cells: int, memory_gb: float, exact: bool) -> dict[str, Any]:
    streamed: dict[str, Any] = apart(one_fit, images, cells, memory_gb)
    if exact:
        whole = apart(one_fit, images, cells, 1e3)
        streamed["ratio"] = round(streamed["radius"] / whole["radius"], 3)
        streamed |= {f"exact_{name}": whole[name] for name in ("radius", "peak_mb", "seconds")}
    return streamed


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--cells", type=int, default=32)
    parser.add_argument("--memory-gb", type=float, default=0.1)
    parser.add_argument("--exact-up-to", type=int, default=400)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for n in given.images:
        key = {"images": n, "cells": given.cells, "memory_gb": given.memory_gb}
        yield Case(key, partial(measured, n, given.cells, given.memory_gb, n <= given.exact_up_to))


SUITE = Suite(cases, arguments, weights=())
