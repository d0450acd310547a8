"""Judge two tools by one scorer: the same masks, the same grid, paired bootstrap by group.

    python -m bench run judge DATA OURS.npz PEER.npz [--repeats 1000] [--smallest 1]

Per tool the image AUROC and AUPRO at 0.3 and 0.05, overall and per defect type, the means over types, and the
difference with its 95 % interval. DATA is a data set whose images already have the size of the peer's maps
(bench/tools/squeeze.py). The npz files hold scores (N,), maps (N, h, w), paths (N,): the peer's side writes one with
``--save``, ours bench/methods.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Case, Record, Suite, interval, markdown, only_set
from bench.harness.scorer import nested, paired_figures, read_tool
from pickglass.data import load_dataset

DIFFERENCE = "ours - peer [difference, low, high]"
METRICS = {"image_auroc": "image AUROC", "aupro_30": "AUPRO@0.3", "aupro_05": "AUPRO@0.05"}


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("ours", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--smallest", type=int, default=1, help="leave out regions below this many pixels")


def judged(given: argparse.Namespace) -> dict[str, Any]:
    rows = list(load_dataset(given.data).test)
    tools = {name: read_tool(getattr(given, name), rows, given.smallest) for name in ("ours", "peer")}
    once = np.ones(len(rows), int)
    result: dict[str, Any] = {name: nested(tool.figures(once)) for name, tool in tools.items()}
    groups = [row.group for row in rows]
    ours, theirs = (tool.figures for tool in tools.values())
    return {**result, DIFFERENCE: paired_figures(ours, theirs, groups, given.repeats)}


def cases(given: argparse.Namespace) -> Iterator[Case]:
    key = {"data": given.data.name, "ours_file": given.ours.name, "peer_file": given.peer.name}
    yield Case({**key, "smallest": given.smallest, "repeats": given.repeats}, lambda: judged(given))


def table(rows: list[Record]) -> str:
    heads = ["", *(f"{metric} ours / peer" for metric in METRICS.values()), "difference in AUPRO@0.3, 95 % interval"]
    lines = []
    for row in rows:
        size = f", without regions under {row['smallest']} pixels" if row["smallest"] > 1 else ""
        for kind, ours in row["ours"].items():
            cells = [f"{ours[m]:.3f} / {row['peer'][kind][m]:.3f}" for m in METRICS]
            lines.append([kind + size, *cells, interval(*row[DIFFERENCE][kind]["aupro_30"])])
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table}, weights=())
