"""Judge two tools by one scorer: the same masks, the same grid, paired bootstrap by group.

python -m bench.judge DATA OURS.npz PEER.npz [--repeats 1000] prints one JSON line: per tool the image AUROC and AUPRO
at 0.3 and 0.05, overall and per defect type, the means over types, and the difference with its 95 % interval.

DATA is a data set whose images already have the size of the peer's maps (bench/squeeze.py). The npz files hold
scores (N,), maps (N, h, w), paths (N,).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pickglass.data import load_dataset, read_mask, resize_map
from pickglass.metrics import OK_LEVELS, CountTables, PixelCurves, auroc, bootstrap, resampled

SIZE = (256, 256)
THIN = ("blowhole", "break", "crack")  # of magnetic_tile: without the types whose masks are huge
Figures = dict[tuple[str, str], float]


class Tool(NamedTuple):
    """One tool's scores (N,) and counts, and what they are judged by: labels (N,), defect types (N,)."""

    scores: np.ndarray[Any, Any]
    tables: CountTables
    labels: np.ndarray[Any, Any]
    types: np.ndarray[Any, Any]

    def judge(self, weight: np.ndarray[Any, Any]) -> dict[str, float]:
        return {
            "image_auroc": resampled(auroc, self.labels, self.scores)(weight),
            "aupro_30": self.tables.aupro(weight, 0.3),
            "aupro_05": self.tables.aupro(weight, 0.05),
        }

    def figures(self, weight: np.ndarray[Any, Any]) -> Figures:
        """All numbers if image i counted ``weight[i]`` times."""
        kinds = sorted(set(self.types) - {"good"})
        result = {"all": self.judge(weight)}
        for kind in kinds:
            result[kind] = self.judge(weight * ((self.types == kind) | (self.labels == 0)))
        for name, group in (("mean of types", kinds), ("mean of three", [k for k in THIN if k in kinds])):
            if group:
                result[name] = {m: float(np.mean([result[k][m] for k in group])) for m in result["all"]}
        return {(k, m): value for k, found in result.items() for m, value in found.items()}


def read(file: Path, rows: list[Any], smallest: int) -> Tool:
    with np.load(file, allow_pickle=False) as stored:
        saved = dict(stored)
    place = {Path(p).parts[-2:]: i for i, p in enumerate(saved["paths"].tolist())}
    order = [place[Path(row.path).parts[-2:]] for row in rows]
    maps = saved["maps"]

    def pairs() -> Iterator[tuple[Any, Any]]:
        for i, row in zip(order, rows, strict=True):
            yield resize_map(maps[i], SIZE), None if row.mask is None else read_mask(row.mask, SIZE)

    curves = PixelCurves()
    for scores, mask in pairs():
        curves.update(scores, mask)
    tables = CountTables(curves.ok_quantiles(OK_LEVELS), smallest=smallest)
    for scores, mask in pairs():
        tables.update(scores, mask)
    labels = np.array([row.label for row in rows])
    return Tool(saved["scores"][order], tables, labels, np.array([row.defect or "good" for row in rows]))


def nested(figures: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for (kind, metric), value in figures.items():
        result.setdefault(kind, {})[metric] = np.round(value, 4).tolist()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--smallest", type=int, default=1, help="leave out regions below this many pixels")
    given = parser.parse_args()
    rows = list(load_dataset(given.data).test)
    tools = {name: read(getattr(given, name), rows, given.smallest) for name in ("ours", "peer")}
    once = np.ones(len(rows), int)
    point = {name: tool.figures(once) for name, tool in tools.items()}

    def difference(weight: np.ndarray[Any, Any]) -> list[float]:
        ours, theirs = (tool.figures(weight).values() for tool in tools.values())
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    found = bootstrap(difference, [row.group for row in rows], repeats=given.repeats)
    triples = zip(found.value, found.low, found.high, strict=True)
    result: dict[str, Any] = {name: nested(figures) for name, figures in point.items()}
    result["ours - peer [difference, low, high]"] = nested(dict(zip(point["ours"], triples, strict=True)))
    print(json.dumps({**result, "repeats": int(found.used.min())}))


if __name__ == "__main__":
    main()
