"""Connected regions: times of ours over SciPy's, on masks from sparse defects to the worst that there is.

    python -m bench.labelling [--sides 256 1024 3464] [--repeats 5]

For each mask and connectivity: labels and areas by ``connected_regions`` against ``scipy.ndimage.label`` and a count of
its labels, and boxes, areas and peaks as ``find_defects`` has them against ``label``, ``find_objects`` and a maximum in
each box. Best of the repeats, which alternate; both sides must agree in every number. 3464 x 3464 px are 12 megapixels.
A line for each mask, then one JSON line: the largest ratio of the masks that look like defects, and of all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter, generate_binary_structure, label

from pickglass.metrics.labelling import connected_regions
from pickglass.result import Defect, find_defects

Mask = NDArray[np.bool_]
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
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        results = []
        for side, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            results.append(call())
            best[side] = min(best[side], time.perf_counter() - start)
        for one, other in zip(*results, strict=True):
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024, 3464])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    worst: dict[str, dict[str, float]] = {}
    print(f"{'mask':<14}{'side':>6}  {'what':<10}{'ours ms':>10}{'SciPy ms':>10}{'ratio':>8}")
    for side in args.sides:
        values = np.random.default_rng(1).random((side, side), dtype=np.float32)
        for name, mask in masks(side):
            full_map = values + mask  # above 1 inside only
            pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                "labels 8": (lambda m=mask: connected_regions(m, 8), lambda m=mask: labels_by_scipy(m, 8)),  # type: ignore[misc]
                "labels 4": (lambda m=mask: connected_regions(m, 4), lambda m=mask: labels_by_scipy(m, 4)),  # type: ignore[misc]
                "defects": (lambda f=full_map: find_defects(f, 1.0), lambda f=full_map: defects_by_scipy(f, 1.0)),  # type: ignore[misc]
            }
            for what, (ours, theirs) in pairs.items():
                mine, other = timed(ours, theirs, args.repeats)
                print(f"{name:<14}{side:>6}  {what:<10}{1e3 * mine:>10.2f}{1e3 * other:>10.2f}{mine / other:>8.2f}")
                group = "like defects" if name in LIKE_DEFECTS else "others"
                so_far = worst.setdefault(group, {})
                so_far[what] = max(so_far.get(what, 0.0), round(mine / other, 2))
    print(json.dumps({"largest_ratio": worst}))


if __name__ == "__main__":
    main()
