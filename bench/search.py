"""What a search of a memory bank costs beside its bare products, on sparse and dense banks, and what bfloat16 saves.

    OMP_NUM_THREADS=1 python -m bench run search [--queries 4096] [--points 2500 20000] [--channels 152] [--repeat 9]

Banks are drawn points. The queries of ``sparse`` are drawn as they are, those of ``dense`` are bank points with a
distance of a thousandth of the points' length, where |x|^2 + |y|^2 - 2 x.y cancels, and those of ``members`` are bank
points themselves. ``times_product`` is the time of the search divided by that of the products alone, block by block
into one buffer, in turn; medians of processor time, which other load on the machine changes little. ``error`` is the
largest difference from the distance in float64, divided by the mean length of the points. Where the CPU has bfloat16,
``scan_us`` is the same search by a scan in bfloat16 and a look in float32, ``times_faster`` that ratio, in turn, and
``differing`` counts the queries whose distance is not the same bit by bit.

``exported`` is the search of exported files, one image of 1,024 queries at a time, in each runtime with one thread:
``ms`` by groups, as files have it, and ``ms_argmin`` by the place of the minimum at once, as they had it, in turn;
``difference`` is the largest difference of their distances.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.harness import Case, Record, Suite, markdown, turns
from pickglass.detectors.onnx_graph import OPSET
from pickglass.features.engine import to_onnx
from pickglass.nn.maps import has_fast_bfloat16
from pickglass.nn.search.neighbours import BankIndex, nearest_plain

KINDS = ("sparse", "dense", "members", "exported")
_BLOCK = (2048, 1024)  # bank points times queries of one product


def products(queries: Tensor, bank: Tensor) -> None:
    buffer = torch.empty(_BLOCK)
    for x in queries.split(_BLOCK[1]):
        for y in bank.split(_BLOCK[0]):
            torch.mm(y, x.T, out=buffer[: len(y), : len(x)])


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
    index = BankIndex(bank, bfloat16=False)
    calls: dict[str, Callable[[], object]] = {
        "search": lambda: index.distances(queries),
        "products": lambda: products(queries, bank),
    }
    scan = BankIndex(bank, bfloat16=True) if has_fast_bfloat16() else None
    if scan is not None:
        calls["scan"] = partial(scan.distances, queries)
    times = {name: np.array(own) for name, own in turns(calls, given.repeat, clock=time.process_time).items()}
    us = {name: round(1e6 * float(np.median(own)) / given.queries, 2) for name, own in times.items()}
    found = index.distances(queries)
    error = (found.double() - nearest(queries, bank)).abs().max() / bank.norm(dim=1).mean()
    result = {
        "us_per_query": us["search"],
        "times_product": round(float(np.median(times["search"] / times["products"])), 2),
        "product_us": us["products"],
        "error": float(error),
    }
    if scan is not None:
        result["scan_us"] = us["scan"]
        result["times_faster"] = round(float(np.median(times["search"] / times["scan"])), 2)
        result["differing"] = int((scan.distances(queries) != found).sum())
    return result


class Exported(nn.Module):
    """A search as it stands in a graph: by groups, or by the place of the minimum at once."""

    def __init__(self, bank: Tensor, grouped: bool) -> None:
        super().__init__()
        self.register_buffer("bank", bank)
        self.bank: Tensor
        self.grouped = grouped

    def forward(self, queries: Tensor) -> Tensor:
        if self.grouped:
            return nearest_plain(queries, self.bank)[0]
        middle = self.bank.mean(0)
        points, x = self.bank - middle, queries - middle
        index = (points.square().sum(1) - 2 * x @ points.T).argmin(1)
        return (x - points[index]).square().sum(1).sqrt()


def in_runtimes(content: bytes) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    import onnxruntime
    import openvino

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()

    def by_openvino(queries: np.ndarray) -> np.ndarray:
        request.infer({"queries": queries})
        return np.array(request.get_output_tensor(0).data)

    return {
        "onnxruntime": lambda queries: np.asarray(session.run(None, {"queries": queries})[0]),
        "openvino": by_openvino,
    }


def exported(points: int, given: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(points, given.channels, generator=generator)
    queries = torch.randn(1024, given.channels, generator=generator)
    graphs = [
        in_runtimes(to_onnx(Exported(bank, grouped).eval(), [queries], ["queries"], opset_version=OPSET))
        for grouped in (True, False)
    ]
    asked: np.ndarray = queries.numpy()
    found = {}
    for name, run in graphs[0].items():
        other = graphs[1][name]
        difference = np.abs(run(asked) - other(asked)).max()
        calls = {"grouped": partial(run, asked), "at once": partial(other, asked)}
        times = list(turns(calls, 3 * given.repeat, warm_up=0, clock=time.process_time).values())
        grouped, at_once = 1000 * np.median(times, axis=1)
        found[name] = {"ms": round(grouped, 2), "ms_argmin": round(at_once, 2), "difference": float(difference)}
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--points", type=int, nargs="+", default=[2500, 20_000])
    parser.add_argument("--channels", type=int, default=152)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--repeat", type=int, default=9)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for points in given.points:
        key = {"points": points, "channels": given.channels}
        for kind in given.kinds:
            case = partial(exported, points, given) if kind == "exported" else partial(measured, kind, points, given)
            yield Case({**key, "queries": kind}, case)


def table(rows: list[Record]) -> str:
    heads = ["queries", "bank points", "channels", "us a query", "times the products", "error"]
    heads += ["us by a scan in bfloat16", "times faster", "other distances"]
    lines = []
    for row in (row for row in rows if row["queries"] != "exported"):
        own = [row["queries"], f"{row['points']:,}", row["channels"], row["us_per_query"], row["times_product"]]
        scanned = [row.get(name, "") for name in ("scan_us", "times_faster", "differing")]
        lines.append([*own, f"{row['error']:.0e}", *scanned])
    return markdown(heads, lines)


def table_of_exported(rows: list[Record]) -> str:
    heads = ["runtime", "bank points", "ms", "ms by the place of the minimum", "difference"]
    lines = []
    for row in (row for row in rows if row["queries"] == "exported"):
        for name in ("onnxruntime", "openvino"):
            own = row[name]
            lines.append([name, f"{row['points']:,}", own["ms"], own["ms_argmin"], f"{own['difference']:.0e}"])
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table, "exported": table_of_exported}, weights=())
