"""Connected regions: times of ours over SciPy's, on masks from sparse defects to the worst that there is.

    python -m bench run labelling [--sides 256 1024 3464] [--repeats 5]

For each mask and connectivity: labels and areas by ``connected_regions`` against ``scipy.ndimage.label`` and a count of
its labels, and boxes, areas and peaks as ``find_defects`` has them against ``label``, ``find_objects`` and a maximum in
each box. Best of the repeats, which alternate; both sides must agree in every number. 3464 x 3464 px are 12 megapixels.
The table shows the largest ratio of the masks that look like defects, and of the others.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter, generate_binary_structure, label

from bench.harness import Case, Record, Suite, best, markdown
from pickglass.metrics.labelling import connected_regions
from pickglass.result import Defect, find_defects

Mask = NDArray[np.bool_]
WHAT = ("labels 8", "labels 4", "defects")
LIKE_DEFECTS = ("none", "blobs", "specks", "dust", "half", "all")


def spiral(side: int) -> Mask:
    """One line, a pixel wide, that winds to the middle: what propagates from pixel to pixel takes longest here."""
    mask = np.zeros((side, side), np.bool_)
    for ring in range(0, (side + 1) // 2, 2):
        low, high = ring, side - 1 - ring
        mask[low, max(low - 1, 0) : high + 1] = mask[low : high + 1, high] = mask[high, low : high + 1] = True
        mask[low + 2 : high + 1, low] = True
    return mask


def masks(side: int) -> Iterator[tuple[str, Mask]]:
    rng = np.random.default_rng(0)

    def smooth(sigma: float) -> NDArray[Any]:
        field = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), sigma)
        return np.asarray(field / field.std())

    yield "none", np.zeros((side, side), np.bool_)
    yield "blobs", smooth(side / 24) > 1.8  # 4 % of the image
    yield "specks", smooth(2) > 2.5
    yield "dust", rng.random((side, side)) < 0.001
    yield "half", smooth(side / 24) > 0
    yield "all", np.ones((side, side), np.bool_)
    yield "fine half", smooth(2) > 0
    for share in (0.1, 0.3, 0.5, 0.6, 0.9):
        yield f"noise {share}", rng.random((side, side)) < share
    yield "spiral", spiral(side)
    rows, columns = np.indices((side, side))
    yield "chequers", (rows + columns) % 2 == 0
    yield "stripes", columns % 2 == 0
    yield "comb", (columns % 2 == 0) | (rows == side - 1)


def labels_by_scipy(mask: Mask, connectivity: Literal[4, 8]) -> tuple[NDArray[Any], NDArray[Any]]:
    labels, n = label(mask, generate_binary_structure(2, 2 if connectivity == 8 else 1))
    return labels, np.bincount(labels.ravel(), minlength=n + 1)[1:]


def defects_by_scipy(full_map: NDArray[np.float32], threshold: float) -> list[Defect]:
    labels, areas = labels_by_scipy(full_map > threshold, 8)
    found = []
    for i, (box, area) in enumerate(zip(find_objects(labels), areas.tolist(), strict=True), start=1):
        (y, x), peak = box, float(full_map[box][labels[box] == i].max())
        found.append(Defect([x.start, y.start, x.stop - x.start, y.stop - y.start], area, peak))
    return sorted(found, key=lambda d: -d.peak)


def timed(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the best seconds of both, which must give the same."""
    for one, other in zip(ours(), theirs(), strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    least = best({"ours": ours, "theirs": theirs}, repeats)
    return least["ours"], least["theirs"]


def measured(side: int, mask: Mask, repeats: int) -> dict[str, Any]:
    values = np.random.default_rng(1).random((side, side), dtype=np.float32)
    full_map = values + mask  # above 1 inside only
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "labels 8": (lambda: connected_regions(mask, 8), lambda: labels_by_scipy(mask, 8)),
        "labels 4": (lambda: connected_regions(mask, 4), lambda: labels_by_scipy(mask, 4)),
        "defects": (lambda: find_defects(full_map, 1.0), lambda: defects_by_scipy(full_map, 1.0)),
    }
    times = {what: timed(*pair, repeats) for what, pair in pairs.items()}
    return {what: {"ours_ms": 1e3 * one, "scipy_ms": 1e3 * other} for what, (one, other) in times.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024, 3464])
    parser.add_argument("--repeats", type=int, default=5)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for side in given.sides:
        for name, mask in masks(side):
            yield Case({"side": side, "mask": name}, partial(measured, side, mask, given.repeats))


def table(rows: list[Record]) -> str:
    """The largest ratio of ours over SciPy's, for masks that look like defects and for others."""
    lines = []
    for side, group in itertools.product(dict.fromkeys(row["side"] for row in rows), ("like defects", "others")):
        own = [row for row in rows if row["side"] == side and (row["mask"] in LIKE_DEFECTS) == (group != "others")]
        worst = [max(row[what]["ours_ms"] / row[what]["scipy_ms"] for row in own) for what in WHAT]
        lines.append([f"{side} px", group, *(f"{ratio:.2f}" for ratio in worst)])
    return markdown(["masks", "", "labels, 8 neighbours", "labels, 4", "boxes, areas, peaks"], lines)


SUITE = Suite(cases, arguments, {"": table}, weights=())
