"""STFPM and Reverse Distillation on one data set, their maps as in the papers and as we weigh cells and levels.

    python -m bench run students DATA OUT [--methods stfpm,...] [--seeds 0 1 2] [--preset quick] [--set key=value ...]
        [--repeats 1000]

Fits each method once for each seed on all training images (``calibrate=0``) and judges the test images by the same
weights in each form of the map: OUT/METHOD-SEED.npz as we do by default, OUT/METHOD_plain-SEED.npz as the paper does,
and for STFPM OUT/stfpm_lengths-SEED.npz with cells weighed by length, but levels all alike. The files are in the form
of ``bench.methods``. What is there already is left alone, so a killed run goes on. Then a record each, as
``bench.methods`` makes it, with what it gains over the paper's form by a paired bootstrap by group; also of other .npz
files in OUT, such as the peer's, OUT/METHOD_peer-SEED.npz (``--methods ""`` fits nothing).

DATA is a data set whose images already have the size of the maps to be judged (bench/tools/squeeze.py).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import methods
from bench.harness import Case, Record, Suite, markdown
from pickglass.app.fit import build
from pickglass.data import load_dataset
from pickglass.data.files import written_whole
from pickglass.methods import METHODS, Detector
from pickglass.result import Prediction

# a method's forms, from ours to the paper's: what is changed of the one before
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "stfpm": {"": {}, "_lengths": {"stride_powers": False}, "_plain": {"usual": None}},
    "reverse_distillation": {"": {}, "_plain": {"usual": None}},
}
NAMES = {"": "ours", "_lengths": "cells by length", "_plain": "the paper's", "_peer": "anomalib 2.7"}


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
    """Fit each method once for each seed, and judge with it in each form."""
    dataset = load_dataset(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    for method in filter(None, given.methods.split(",")):
        for seed in given.seeds:
            targets = {form: given.out / f"{method}{form}-{seed}.npz" for form in FORMS[method]}
            if all(target.exists() for target in targets.values()):
                continue
            detector = build(method, given.preset if given.preset in METHODS[method].presets else None, settings)
            began = time.perf_counter()
            detector.fit(dataset.train, calibrate=0, seed=seed)
            fit_s = time.perf_counter() - began
            for form, changed in FORMS[method].items():
                for name, value in changed.items():
                    setattr(detector, name, value)
                judged(detector, targets[form], dataset.test, fit_s)


def arguments(parser: argparse.ArgumentParser) -> None:
    methods.arguments(parser)
    parser.set_defaults(methods=",".join(FORMS), against=None, seeds=[0, 1, 2])


def cases(given: argparse.Namespace) -> Iterator[Case]:
    fit(given)
    key = {"data": given.data.name, "repeats": given.repeats, "smallest": given.smallest}
    for name in methods.files_of(given.out):
        method, form = parted(name)
        trained = {} if form == "_peer" else {"preset": given.preset, "set": given.set}
        yield Case({**key, **trained, "method": name}, partial(methods.figures, name, f"{method}_plain", given))


def parted(name: str) -> tuple[str, str]:
    """Part a file's name into method and form."""
    form = next((form for form in NAMES if form and name.endswith(form)), "")
    return name.removesuffix(form), form


def forms(rows: list[Record]) -> str:
    """Image scores and outlines of each form over all test images, and image AUROC per type of defect."""
    kinds = [kind for kind in rows[0]["figures"] if kind != "all" and not kind.startswith("mean of ")]
    lines = []
    for row in rows:
        method, form = parted(row["method"])
        given = row["measured"]["arguments"]
        fitted = "" if form == "_peer" else " ".join([given["preset"], *given["set"], "of", row["measured"]["commit"]])
        figures = [f"{row['figures']['all'][m]:.3f}" for m in ("image_auroc", "aupro_30", "aupro_05")]
        types = [f"{row['figures'][kind]['image_auroc']:.2f}" for kind in kinds]
        lines.append([METHODS[method].__name__, NAMES[form], fitted, row["seeds"], *figures, *types])
    return markdown(["method", "map", "preset", "seeds", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", *kinds], lines)


SUITE = Suite(cases, arguments, {**methods.SUITE.tables, "forms": forms})
