"""STFPM and Reverse Distillation on one data set, without and with cells weighed by length.

    python -m bench run students DATA OUT [--methods stfpm,...] [--seeds 0 1 2] [--preset quick] [--set key=value ...]
        [--repeats 1000]

Fits each method once for each seed on all training images (``calibrate=0``) and judges the test images twice by the
same weights, as the paper does and as we do by default: OUT/METHOD_plain-SEED.npz and OUT/METHOD-SEED.npz, in the form
of ``bench.methods``. What is there already is left alone, so a killed run goes on. Then a record each, as
``bench.methods`` makes it, with what the second gains over the first by a paired bootstrap by group.

DATA is a data set whose images already have the size of the maps to be judged (bench/tools/squeeze.py).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench import methods
from bench.harness import Case, Suite
from pickglass.app.fit import build
from pickglass.data import load_dataset
from pickglass.data.files import written_whole
from pickglass.methods import METHODS, Detector
from pickglass.result import Prediction

MENDED = {"stfpm": "usual", "reverse_distillation": "usual"}  # the buffer without which a map is the paper's


def judged(detector: Detector, target: Path, test: object, fit_s: float) -> None:
    """Judge the test images, and save scores and maps."""
    began = time.perf_counter()
    found: Prediction = detector.predict(test)
    images_per_s = len(found) / (time.perf_counter() - began)
    with written_whole(target) as temporary:
        np.savez_compressed(
            temporary,
            scores=found.scores,
            maps=np.stack(found.maps),
            paths=np.array([row.path for row in found.rows]),
            fit_s=fit_s,
            images_per_s=images_per_s,
        )


def fit(given: argparse.Namespace) -> None:
    """Fit each method once for each seed, and judge with it in both forms."""
    dataset = load_dataset(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    for method in given.methods.split(","):
        for seed in given.seeds:
            ours, plain = (given.out / f"{method}{form}-{seed}.npz" for form in ("", "_plain"))
            if ours.exists() and plain.exists():
                continue
            detector = build(method, given.preset if given.preset in METHODS[method].presets else None, settings)
            began = time.perf_counter()
            detector.fit(dataset.train, calibrate=0, seed=seed)
            fit_s = time.perf_counter() - began
            judged(detector, ours, dataset.test, fit_s)
            setattr(detector, MENDED[method], None)
            judged(detector, plain, dataset.test, fit_s)


def arguments(parser: argparse.ArgumentParser) -> None:
    methods.arguments(parser)
    parser.set_defaults(methods=",".join(MENDED), against=None, seeds=[0, 1, 2])


def cases(given: argparse.Namespace) -> Iterator[Case]:
    fit(given)
    key = {"data": given.data.name, "repeats": given.repeats, "smallest": given.smallest}
    for name in methods.files_of(given.out):
        own = argparse.Namespace(**{**vars(given), "against": f"{name.removesuffix('_plain')}_plain"})
        yield Case({**key, "method": name}, partial(methods.figures, name, own))


SUITE = Suite(cases, arguments, methods.SUITE.tables)
