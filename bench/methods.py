"""All methods on one data set by one scorer, per defect type, with paired bootstraps by group.

python -m bench.methods fit DATA OUT [--methods patchcore,padim,...] [--seeds 0 1 2] [--preset quick] [--set key=value]
    fits each method on all training images (``calibrate=0``) for each seed and saves OUT/METHOD-SEED.npz: scores (N,),
    maps (N, h, w), paths (N,), fit_s, images_per_s. What is there already is left alone, so a killed run goes on.
python -m bench.methods table DATA OUT... [--against patchcore] [--repeats 1000]
    prints a Markdown table of what was saved, and JSON: figures per type, the mean of the types and of the three thin
    ones, averaged over seeds, and each method's difference to another with its 95 % interval.

DATA is a data set whose images already have the size of the maps to be judged (bench/squeeze.py). Statistical methods
without random numbers are fitted once.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import judge
from pickglass.app.fit import build
from pickglass.data import load_dataset
from pickglass.data.files import written_whole
from pickglass.methods import METHODS
from pickglass.metrics import bootstrap

SHOWN = ("all", "mean of types", "mean of three")


def fit(given: argparse.Namespace) -> None:
    dataset = load_dataset(given.data)
    given.out[0].mkdir(parents=True, exist_ok=True)
    settings = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    for method in given.methods.split(","):
        for seed in given.seeds:
            target = given.out[0] / f"{method}-{seed}.npz"
            if target.exists():
                continue
            preset = given.preset if given.preset in METHODS[method].presets else None
            detector = build(method, preset, settings)
            began = time.perf_counter()
            detector.fit(dataset.train, calibrate=0, seed=seed)
            fit_s = time.perf_counter() - began
            detector.predict(dataset.test[:1])
            began = time.perf_counter()
            found = detector.predict(dataset.test)
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
            print(
                json.dumps({"method": method, "seed": seed, "fit_s": fit_s, "images_per_s": images_per_s}), flush=True
            )


def mean_times(files: list[Path]) -> dict[str, float]:
    """Mean seconds of a fit and images a second over a method's files; a peer's files state none."""
    found: dict[str, list[float]] = {}
    for file in files:
        with np.load(file) as stored:
            for key in ("fit_s", "images_per_s"):
                if key in stored:
                    found.setdefault(key, []).append(float(stored[key]))
    return {key: float(np.mean(values)) for key, values in found.items()}


def table(given: argparse.Namespace) -> None:
    rows = list(load_dataset(given.data).test)
    files: dict[str, list[Path]] = {}
    for folder in given.out:
        for file in sorted(folder.glob("*-*.npz")):
            files.setdefault(file.stem.rsplit("-", 1)[0], []).append(file)
    tools = {name: [judge.read(file, rows, given.smallest) for file in own] for name, own in files.items()}

    def figures(name: str, weight: np.ndarray[Any, Any]) -> dict[tuple[str, str], float]:
        runs = [tool.figures(weight) for tool in tools[name]]
        return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}

    once = np.ones(len(rows), int)
    point = {name: figures(name, once) for name in tools}
    groups = [row.group for row in rows]
    differences: dict[str, Any] = {}
    for name in tools:
        if name == given.against or given.against not in tools:
            continue

        def difference(weight: np.ndarray[Any, Any], name: str = name) -> list[float]:
            pair = zip(figures(name, weight).values(), figures(given.against, weight).values(), strict=True)
            return [a - b for a, b in pair]

        found = bootstrap(difference, groups, repeats=given.repeats)
        triples = zip(found.value, found.low, found.high, strict=True)
        differences[name] = judge.nested(dict(zip(point[name], triples, strict=True)))
    kinds = sorted({row.defect or "" for row in rows if row.label == 1})
    heads = [*SHOWN, *kinds]
    for metric in ("image_auroc", "aupro_30", "aupro_05"):
        print(f"\n{metric}\n| method | seeds | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 2)}")
        for name, own in point.items():
            cells = [f"{own[kind, metric]:.3f}" if (kind, metric) in own else "-" for kind in heads]
            spread = np.std([tool.figures(once)["mean of types", metric] for tool in tools[name]])
            print(f"| {name} | {len(tools[name])} (sd {spread:.3f}) | {' | '.join(cells)} |")
    times = {name: mean_times(own) for name, own in files.items()}
    result = {name: judge.nested(own) for name, own in point.items()}
    print(json.dumps({"figures": result, f"minus {given.against}": differences, "times": times}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit", "table"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--against", default="patchcore")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--smallest", type=int, default=1, help="leave out regions below this many pixels")
    given = parser.parse_args()
    {"fit": fit, "table": table}[given.what](given)


if __name__ == "__main__":
    main()
