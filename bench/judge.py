"""Judge two tools by one scorer: the same masks, the same grid, paired bootstrap by group.

python bench/judge.py DATA OURS.npz PEER.npz [--repeats 1000] prints one JSON line: per tool the image AUROC and AUPRO
at 0.3 and 0.05, overall and per defect type, the means over types, and the difference with its 95 % interval.

DATA is a data set whose images already have the size of the peer's maps (bench/squeeze.py). The npz files hold
scores (N,), maps (N, h, w), paths (N,).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cc3d
import numpy as np

from pickglass.data import load_dataset, read_mask, resize_map
from pickglass.metrics import auroc

LIMITS = (0.3, 0.05)
THIN = ("blowhole", "break", "crack")  # of magnetic_tile: without the types whose masks are huge


class Tables:
    """Counts per image and region over a grid of thresholds: a bootstrap replicate is then a weighted sum."""

    def __init__(self, rows: list, scores: np.ndarray, maps: list[np.ndarray], smallest: int) -> None:
        self.labels = np.array([row.label for row in rows])
        self.types = np.array([row.defect or "good" for row in rows])
        self.scores = scores
        masks = [
            np.zeros(m.shape, bool) if r.mask is None else read_mask(r.mask, m.shape)
            for r, m in zip(rows, maps, strict=True)
        ]
        ok = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
        levels = 1 - np.concatenate([np.linspace(0, 0.06, 700), np.linspace(0.06, 0.35, 500)[1:]])
        self.thresholds = np.quantile(ok, levels)  # falling
        self.ok = np.stack([self.counts(m[~mask]) for m, mask in zip(maps, masks, strict=True)])  # (N, T)
        self.n_ok = np.array([(~mask).sum() for mask in masks])
        regions = []
        for i, (m, mask) in enumerate(zip(maps, masks, strict=True)):
            labelled = cc3d.connected_components(mask, connectivity=8)
            for label in range(1, labelled.max() + 1):
                inside = m[labelled == label]
                if len(inside) >= smallest:
                    regions.append((i, self.counts(inside) / len(inside)))
        self.region_image = np.array([i for i, _ in regions])
        self.region_share = np.stack([share for _, share in regions])  # (R, T)

    def counts(self, values: np.ndarray) -> np.ndarray:
        return len(values) - np.searchsorted(np.sort(values), self.thresholds, side="left")

    def judge(self, weight: np.ndarray) -> dict[str, float]:
        """Metrics with image weights (how often each was drawn)."""
        drawn = np.repeat(np.arange(len(weight)), weight)
        fpr = weight @ self.ok / (weight @ self.n_ok)
        region = weight[self.region_image]
        pro = region @ self.region_share / max(region.sum(), 1)
        result = {"image_auroc": auroc(self.labels[drawn], self.scores[drawn])}
        for limit in LIMITS:
            x = np.concatenate([[0], fpr[fpr < limit], [limit]])
            y = np.concatenate([[0], pro[fpr < limit], [np.interp(limit, fpr, pro)]])
            result[f"aupro_{int(100 * limit):02d}"] = float(np.trapezoid(y, x) / limit)
        return result


def all_figures(tables: Tables, weight: np.ndarray) -> dict[str, dict[str, float]]:
    kinds = sorted(set(tables.types) - {"good"})
    result = {"all": tables.judge(weight)}
    for kind in kinds:
        result[kind] = tables.judge(weight * ((tables.types == kind) | (tables.labels == 0)))
    for name, group in (("mean of types", kinds), ("mean of three", [k for k in THIN if k in kinds])):
        if group:
            result[name] = {m: float(np.mean([result[k][m] for k in group])) for m in result["all"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--smallest", type=int, default=1, help="leave out regions below this many pixels")
    given = parser.parse_args()
    rows = list(load_dataset(given.data).test)
    both = {}
    for name, path in (("ours", given.ours), ("peer", given.peer)):
        saved = np.load(path, allow_pickle=False)
        place = {Path(p).parts[-2:]: i for i, p in enumerate(saved["paths"].tolist())}
        order = [place[Path(row.path).parts[-2:]] for row in rows]
        maps = [resize_map(saved["maps"][i], (256, 256)) for i in order]
        both[name] = Tables(rows, saved["scores"][order], maps, given.smallest)
    groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.group or row.path, []).append(i)
    members = list(groups.values())
    once = np.ones(len(rows), int)
    point = {name: all_figures(tables, once) for name, tables in both.items()}
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(given.repeats):
        weight = np.zeros(len(rows), int)
        for g in rng.integers(len(members), size=len(members)):
            weight[members[g]] += 1
        try:
            drawn = {name: all_figures(tables, weight) for name, tables in both.items()}
        except (ZeroDivisionError, ValueError):
            continue
        draws.append([drawn["ours"][k][m] - drawn["peer"][k][m] for k in point["ours"] for m in point["ours"][k]])
    low, high = np.nanquantile(np.array(draws), [0.025, 0.975], axis=0)
    keys = [(k, m) for k in point["ours"] for m in point["ours"][k]]
    difference = {
        k: {
            m: [round(point["ours"][k][m] - point["peer"][k][m], 4), round(float(low[i]), 4), round(float(high[i]), 4)]
            for i, (kk, m) in enumerate(keys)
            if kk == k
        }
        for k in point["ours"]
    }
    rounded = {n: {k: {m: round(v, 4) for m, v in d.items()} for k, d in p.items()} for n, p in point.items()}
    print(json.dumps({**rounded, "ours - peer [difference, low, high]": difference, "repeats": len(draws)}))


if __name__ == "__main__":
    main()
