"""One scorer for all tools: the same masks, the same grid, paired bootstraps by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pickglass.data import read_mask, resize_map
from pickglass.metrics import OK_LEVELS, CountTables, PixelCurves, auroc, bootstrap, resampled

SIZE = (256, 256)
THIN = ("blowhole", "break", "crack")  # of magnetic_tile: without the types whose masks are huge
Figures = dict[tuple[str, str], float]
Weight = np.ndarray[Any, Any]


class Tool(NamedTuple):
    """One tool's scores (N,) and counts, and what they are judged by: labels (N,), defect types (N,)."""

    scores: np.ndarray[Any, Any]
    tables: CountTables
    labels: np.ndarray[Any, Any]
    types: np.ndarray[Any, Any]

    def judge(self, weight: Weight) -> dict[str, float]:
        """Return image AUROC and AUPRO if image i counted ``weight[i]`` times."""
        return {
            "image_auroc": resampled(auroc, self.labels, self.scores)(weight),
            "aupro_30": self.tables.aupro(weight, 0.3),
            "aupro_05": self.tables.aupro(weight, 0.05),
        }

    def figures(self, weight: Weight) -> Figures:
        """Return all numbers, overall, per type and as means of types: (type, metric) -> value."""
        kinds = sorted(set(self.types) - {"good"})
        result = {"all": self.judge(weight)}
        for kind in kinds:
            result[kind] = self.judge(weight * ((self.types == kind) | (self.labels == 0)))
        for name, group in (("mean of types", kinds), ("mean of three", [k for k in THIN if k in kinds])):
            if group:
                result[name] = {m: float(np.mean([result[k][m] for k in group])) for m in result["all"]}
        return {(k, m): value for k, found in result.items() for m, value in found.items()}


def read_tool(file: Path, rows: list[Any], smallest: int = 1, size: tuple[int, int] | None = SIZE) -> Tool:
    """Read scores (N,), maps (N, h, w) and paths (N,) of an .npz file, in the order of the rows.

    Args:
        file: as the peer's script and the suites write it.
        rows: test images of a data set that has the size of the maps (bench/tools/squeeze.py).
        smallest: regions below so many pixels are left out.
        size: to which maps and masks are brought; None: that of each image.
    """
    with np.load(file, allow_pickle=False) as stored:
        saved = dict(stored)
    place = {Path(p).parts[-2:]: i for i, p in enumerate(saved["paths"].tolist())}
    order = [place[Path(row.path).parts[-2:]] for row in rows]
    maps = saved["maps"]

    def pairs() -> Iterator[tuple[Any, Any]]:
        for i, row in zip(order, rows, strict=True):
            wanted = row.image().shape[:2] if size is None else size
            yield resize_map(maps[i], wanted), None if row.mask is None else read_mask(row.mask, wanted)

    curves = PixelCurves()
    for scores, mask in pairs():
        curves.update(scores, mask)
    tables = CountTables(curves.ok_quantiles(OK_LEVELS), smallest=smallest)
    for scores, mask in pairs():
        tables.update(scores, mask)
    labels = np.array([row.label for row in rows])
    return Tool(saved["scores"][order], tables, labels, np.array([row.defect or "good" for row in rows]))


def paired(
    ours: Callable[[Weight], Sequence[float]],
    theirs: Callable[[Weight], Sequence[float]],
    groups: Sequence[str | None],
    repeats: int,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """Return each figure's difference ours - theirs with its 95 % interval; groups are drawn, for both at once."""

    def difference(weight: Weight) -> list[float]:
        return [a - b for a, b in zip(ours(weight), theirs(weight), strict=True)]

    found = bootstrap(difference, groups, repeats=repeats, seed=seed)
    return [(float(v), float(a), float(b)) for v, a, b in zip(found.value, found.low, found.high, strict=True)]


def paired_figures(
    ours: Callable[[Weight], Figures], theirs: Callable[[Weight], Figures], groups: Sequence[str | None], repeats: int
) -> dict[str, dict[str, Any]]:
    """Return type -> metric -> [difference, low, high] of two tools; see :func:`paired`."""

    def values(of: Callable[[Weight], Figures]) -> Callable[[Weight], Sequence[float]]:
        return lambda weight: list(of(weight).values())

    names = ours(np.ones(len(groups), int))
    return nested(dict(zip(names, paired(values(ours), values(theirs), groups, repeats), strict=True)))


def nested(figures: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """Return type -> metric -> rounded value."""
    result: dict[str, dict[str, Any]] = {}
    for (kind, metric), value in figures.items():
        result.setdefault(kind, {})[metric] = np.round(value, 4).tolist()
    return result
