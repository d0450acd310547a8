"""What a search of a memory bank costs beside its bare products, on sparse and dense banks, in one run.

    OMP_NUM_THREADS=1 python -m bench.search [--queries 4096] [--points 2500 20000] [--channels 152] [--repeat 9]

Banks are drawn points. The queries of ``sparse`` are drawn as they are, those of ``dense`` are bank points with a
distance of a thousandth of the points' length, where |x|^2 + |y|^2 - 2 x.y cancels, and those of ``members`` are bank
points themselves. ``times_product`` is the time of the search divided by that of the products alone, block by block
into one buffer, in turn; medians of processor time, which other load on the machine changes little. ``error`` is the
largest difference from the distance in float64, divided by the mean length of the points. Prints a JSON line for each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pickglass.nn.search.neighbours import BankIndex

_BLOCK = (2048, 1024)  # bank points times queries of one product


def products(queries: Tensor, bank: Tensor) -> None:
    buffer = torch.empty(_BLOCK)
    for x in queries.split(_BLOCK[1]):
        for y in bank.split(_BLOCK[0]):
            torch.mm(y, x.T, out=buffer[: len(y), : len(x)])


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """Measure by definition in float64: (N,)."""
    found = [torch.cdist(x.double(), bank.double()).topk(4, largest=False).indices for x in queries.split(256)]
    close = torch.cat(found)  # (N, 4), of which the expanded square of float64 leaves no doubt
    distances: Tensor = (queries.double()[:, None] - bank.double()[close]).norm(dim=2).amin(1)
    return distances


def measured(kind: str, points: int, given: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(20, given.channels, generator=generator)

    def drawn(n: int) -> Tensor:
        noise = torch.randn(n, given.channels, generator=generator)
        return torch.randn(n, 20, generator=generator) @ mix + 0.3 * noise

    bank, queries = drawn(points), drawn(given.queries)
    if kind != "sparse":
        queries = bank[torch.randint(points, (given.queries,), generator=generator)]
    if kind == "dense":
        step = torch.randn(queries.shape, generator=generator)
        queries = queries + step / step.norm(dim=1, keepdim=True) * queries.norm(dim=1).mean() / 1000
    index = BankIndex(bank)
    times: list[tuple[float, float]] = []
    for _ in range(given.repeat + 1):
        times.append((seconds(lambda: index.distances(queries)), seconds(lambda: products(queries, bank))))
    search_s, product_s = np.median(times[1:], axis=0)
    error = (index.distances(queries).double() - nearest(queries, bank)).abs().max() / bank.norm(dim=1).mean()
    return {
        "queries": kind,
        "points": points,
        "channels": given.channels,
        "us_per_query": round(1e6 * search_s / given.queries, 2),
        "times_product": round(float(np.median([a / b for a, b in times[1:]])), 2),
        "product_us": round(1e6 * product_s / given.queries, 2),
        "error": float(error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--points", type=int, nargs="+", default=[2500, 20_000])
    parser.add_argument("--channels", type=int, default=152)
    parser.add_argument("--repeat", type=int, default=9)
    given = parser.parse_args()
    for points in given.points:
        for kind in ("sparse", "dense", "members"):
            print(json.dumps(measured(kind, points, given)), flush=True)


if __name__ == "__main__":
    main()
