"""STFPM and Reverse Distillation on one data set, without and with cells weighed by length.

python -m bench.students fit DATA OUT [--methods stfpm,...] [--seeds 0 1 2] [--preset quick] [--set key=value]
    fits each method once for each seed on all training images (``calibrate=0``) and judges the test images twice by
    the same weights, as the paper does and as we do by default: OUT/METHOD_plain-SEED.npz and OUT/METHOD-SEED.npz,
    in the form of ``bench.methods``, and one JSON line a fit with the image AUROC of both. What is there already is
    left alone, so a killed run goes on.
python -m bench.methods table DATA OUT --against stfpm_plain
    prints the figures, and what each gains over another by a paired bootstrap by group.

DATA is a data set whose images already have the size of the maps to be judged (bench/squeeze.py).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from pickglass.app.fit import build
from pickglass.data import load_dataset
from pickglass.data.files import written_whole
from pickglass.methods import METHODS, Detector
from pickglass.metrics import auroc
from pickglass.result import Prediction

MENDED = {"stfpm": "usual", "reverse_distillation": "usual"}  # the buffer without which a map is the paper's


def judged(detector: Detector, target: Path, test: object, fit_s: float) -> float:
    """Judge the test images, save scores and maps, and return the image AUROC."""
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
    return float(auroc(np.array([row.label for row in found.rows]), found.scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default=",".join(MENDED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", nargs="*", default=[])
    given = parser.parse_args()
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
            line: dict[str, object] = {"method": method, "seed": seed, "fit_s": round(fit_s, 1)}
            line["image AUROC"] = round(judged(detector, ours, dataset.test, fit_s), 4)
            setattr(detector, MENDED[method], None)
            line["image AUROC, plain"] = round(judged(detector, plain, dataset.test, fit_s), 4)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
