"""Which number of a map tells good images from bad ones: methods x image scores, on real sets.

    python -m bench.image_scores DATA [--sets magnetic_tile aitex_fabric04] [--methods patchcore padim fastflow:quick]

A quarter of the good training images, by group, is held back; the method learns from the others. What a score needs to
know of good maps (a limit for pixels, means and deviations of descriptors) comes from the held-back ones. The scores of
a joined, smoothed map: ``own``, the method's; ``max`` and ``mean``; ``top S``, the mean of its highest share S;
``mass``, the largest sum of what lies above the 99.5 % quantile of good cells, within one 8-connected region;
``structure``, the Mahalanobis distance (diagonal) of the descriptors of StructCore (arXiv 2602.17048): highest value,
standard deviation, total variation, and the mean of the highest 1 %. One line each: image AUROC, the 95 % interval of
its difference from ``top 0.002`` by a paired bootstrap over groups, good and bad ones apart.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pickglass.data import Table, load_dataset, split_roles
from pickglass.methods import find_method
from pickglass.metrics import auroc
from pickglass.nn.maps import mean_of_highest
from pickglass.result import Prediction

SHARES = (0.0005, 0.002, 0.01, 0.05)
USUAL = "top 0.002"
Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=["magnetic_tile", "aitex_fabric04"])
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim", "fastflow:quick", "stfpm:quick"])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.sets:
        dataset = load_dataset(args.data / name)
        divided = split_roles(dataset.train, 0.0, 0.25, args.seed)
        for method in args.methods:
            kind, _, preset = method.partition(":")
            cls = find_method(kind)
            detector = cls.configured({**cls.presets.get(preset, {}), "top_share": 0.0})
            taught = divided.where(lambda row: row.role == "fit")
            held = divided.where(lambda row: row.role == "calibrate")
            detector.fit(Table([replace(row, role="train") for row in taught]), calibrate=0, seed=args.seed)
            good, found = detector.predict(held), detector.predict(dataset.test)
            result = compare(found, candidates(good, found), args.repeats, args.seed)
            print(json.dumps({"set": name, "method": method, "seed": args.seed, **result}), flush=True)


def candidates(good: Prediction, found: Prediction) -> dict[str, Floats]:
    """Each score, (N,)."""
    maps = np.stack(found.maps).astype(np.float64)  # (N, h, w)
    known = np.stack(good.maps).astype(np.float64)
    limit = float(np.quantile(known, 0.995))
    usual = described(known)
    apart = (described(maps) - usual.mean(0)) / usual.std(0)
    scores = {"own": np.asarray(found.scores, np.float64), "max": maps.max((1, 2)), "mean": maps.mean((1, 2))}
    scores |= {f"top {share:g}": mean_of_highest(torch.from_numpy(maps), share).numpy() for share in SHARES}
    return scores | {
        "mass": np.array([mass(map_, limit) for map_ in maps]),
        "structure": np.sqrt((apart**2).sum(1)),
    }


def described(maps: Floats) -> Floats:
    """The descriptors of StructCore: (N, h, w) -> (N, 4)."""
    across, down = (np.abs(np.diff(maps, axis=axis)).mean((1, 2)) for axis in (1, 2))
    top = mean_of_highest(torch.from_numpy(maps), 0.01).numpy()
    return np.stack([maps.max((1, 2)), maps.std((1, 2)), across + down, top], axis=1)


def mass(map_: Floats, limit: float) -> float:
    """The largest sum above the limit within one region; below it, how near the highest value comes."""
    labels, n = ndimage.label(map_ > limit, np.ones((3, 3)))
    if n == 0:
        return float(map_.max() - limit)
    return float(ndimage.sum(map_ - limit, labels, range(1, n + 1)).max())


def compare(found: Prediction, scores: dict[str, Floats], repeats: int, seed: int) -> dict[str, Any]:
    labels = np.array([int(row.label or 0) for row in found.rows])
    units = np.array([row.unit for row in found.rows])
    members = {unit: np.flatnonzero(units == unit) for unit in dict.fromkeys(units.tolist())}
    kinds = [[u for u, rows in members.items() if labels[rows[0]] == label] for label in (0, 1)]
    rng = np.random.default_rng(seed)
    differences: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(repeats):
        drawn = [u for kind in kinds for u in rng.choice(kind, len(kind))]
        rows = np.concatenate([members[u] for u in drawn])
        usual = auroc(labels[rows], scores[USUAL][rows])
        for name, values in scores.items():
            differences[name].append(auroc(labels[rows], values[rows]) - usual)
    return {
        name: [round(auroc(labels, values), 3), *np.quantile(differences[name], [0.025, 0.975]).round(3).tolist()]
        for name, values in scores.items()
    }


if __name__ == "__main__":
    main()
