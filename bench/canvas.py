"""Which canvas pays, and which image score: painted defects choose, real ones are reported.

    python -m bench.canvas FILE.jsonl --data DATA [--sets ...] [--methods patchcore ...] [--sizes 256 area:384 ...]
    python -m bench.canvas FILE.jsonl --table

A third of the good training images is held back, by group. On 16 of them defects of each of ``--defects`` pixels are
painted; the method learns from the others. For each size of the canvas one line: seconds to fit and to judge an image,
AUPRO on the real test images at their original size, and for each image score the AUROC against good images, of the
real defects and of each size of the painted ones. ``own`` is the method's own score, ``0`` the highest value of the
smoothed map, a number the mean over that share of the map.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pickglass as pg
from pickglass.app.advise.painted import CONTRASTS, choose_rows
from pickglass.app.advise.request import KINDS_PAINTED
from pickglass.data import Table, load_dataset, paint
from pickglass.errors import InputError
from pickglass.methods import find_method
from pickglass.metrics import auroc
from pickglass.nn.maps import mean_of_highest

SETS = ("magnetic_tile", "aitex_fabric04", "mvtec_hazelnut_reduced", "mvtec_transistor_reduced")
SIZES = ("256", "area:256", "area:384", "area:512")
DEFECTS = (4, 8, 16, 32, 64)
SHARES = (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--methods", nargs="+", default=["patchcore"])
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--settings", type=json.loads, default={}, help="further settings of the method, as JSON")
    parser.add_argument("--preset", help="a preset of the method")
    parser.add_argument("--defects", nargs="+", type=int, default=DEFECTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.file.read_text().splitlines()] if args.file.exists() else []
    if args.table:
        print(table(rows))
        return
    for name in args.sets:
        dataset = load_dataset(args.data / name)
        taught, held = choose_rows(dataset.train, args.seed, fit=10**6)
        taught = Table([replace(row, role="train") for row in taught])  # for the method to hold back what it wants
        painted = painted_rows(held, args.defects, args.seed)
        for method in args.methods:
            for size in args.sizes:
                key = {"set": name, "method": method, "preset": args.preset, "size": size}
                key |= {"settings": args.settings, "seed": args.seed}
                if any(all(row.get(k) == v for k, v in key.items()) for row in rows):
                    continue
                cls = find_method(method)
                preset = cls.presets[args.preset] if args.preset else {}
                wanted = {**preset, "size": int(size) if size.isdecimal() else size, "top_share": 0.0}
                wanted |= args.settings
                row = key | measure(cls.configured(wanted), taught, dataset.test, painted, args.seed)
                with args.file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(table([row]), flush=True)


def painted_rows(held: Table, defects: list[int], seed: int) -> dict[str, Table]:
    """The held-back images as they are ("good"), and with a defect of each size: two images of each."""
    made: dict[str, list[pg.Row]] = defaultdict(list)
    for i, row in enumerate(held):
        pixels = row.image()
        made["good"].append(replace(row, role="test", pixels=pixels))
        for extent in defects:
            for n in range(2):
                turn = 2 * i + n
                rng = np.random.default_rng([seed, i, extent, n])
                kind, contrast = KINDS_PAINTED[turn % len(KINDS_PAINTED)], CONTRASTS[turn % len(CONTRASTS)]
                try:
                    image = paint(pixels, kind, extent, rng, contrast).image
                except InputError:  # no room for it
                    continue
                path = f"{row.path}#{extent}.{n}"
                made[str(extent)].append(replace(row, path=path, role="test", label=1, pixels=image))
    return {name: Table(rows) for name, rows in made.items()}


def measure(detector: pg.Detector, taught: Table, test: Table, painted: dict[str, Table], seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    detector.fit(taught, calibrate=0, seed=seed)
    fitted = time.perf_counter()
    found = detector.predict(test)
    judged = time.perf_counter()
    metrics = pg.evaluate(found)
    labels = np.array([row.label for row in found.rows])
    real = image_scores(found)
    good = image_scores(detector.predict(painted["good"]))
    result: dict[str, Any] = {
        "canvas": list(detector.input_size),
        "fit_s": fitted - began,
        "image_s": (judged - fitted) / len(found),
        "bank": detector.provenance.details.get("bank"),
        "metrics": {k: v for k, v in metrics.items() if isinstance(v, (int, float))},
        "real": {name: auroc(labels, values) for name, values in real.items()},
        "painted": {},
    }
    for extent, rows in painted.items():
        if extent != "good":
            bad = image_scores(detector.predict(rows))
            told = np.r_[np.zeros(len(painted["good"])), np.ones(len(rows))]
            result["painted"][extent] = {name: auroc(told, np.r_[good[name], bad[name]]) for name in good}
    return result


def image_scores(found: pg.Prediction) -> dict[str, np.ndarray]:
    """The candidates, (N,) each."""
    scores: dict[str, Any] = {"own": found.scores}
    maps = torch.from_numpy(np.stack(found.maps))  # (N, h, w)
    for share in SHARES:
        scores[f"{share:g}"] = mean_of_highest(maps, share).numpy()
    return scores


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append(
            f"\n{row['set']} {row['method']} {row['size']} {row['settings']} canvas {row['canvas']} "
            f"fit {row['fit_s']:.1f} s, {1000 * row['image_s']:.0f} ms an image, bank {row['bank']}; "
            + ", ".join(f"{k} {v:.3f}" for k, v in row["metrics"].items() if isinstance(v, float))
        )
        names = list(row["real"])
        lines.append("| defects | " + " | ".join(names) + " |")
        lines.append("|---" * (len(names) + 1) + "|")
        for label, values in {"real": row["real"], **row["painted"]}.items():
            lines.append(f"| {label} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
