"""AUPRO: time, memory and value, ours and anomalib's, on the same maps.

    python -m bench run aupro [--peer-python PEER/bin/python] [--maps 100x256 48x1024] [--repeats 3]

PEER is an environment with ``pip install "anomalib==2.7.0"``. The maps are smoothed noise, raised inside the blobs
of the masks on half of the images. Both sides read one npz file, in processes of their own, and get the maps one by
one. Bytes a pixel: growth of the resident set at its peak over that before the first map was added; the maps
themselves, which both sides find in memory, do not count. The time is the best of the repeats; memory is the first's.
Ours includes the pixel AUROC and two limits, the peer's one limit. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Case, Record, Suite, add_peer, apart, markdown

Measured = dict[str, Any]


def synthetic(n: int, size: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Maps (n, size, size) float32 and bool masks, with blobs on every second image."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    maps, masks = np.empty((n, size, size), np.float32), np.zeros((n, size, size), bool)
    for i in range(n):
        noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), size / 64)
        if i % 2:
            blobs = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), size / 24)
            masks[i] = blobs > 1.8 * blobs.std()
        maps[i] = noise / noise.std() + 2 * gaussian_filter(masks[i].astype(np.float32), size / 64)
    return maps, masks


def ours(maps: np.ndarray[Any, Any], masks: np.ndarray[Any, Any]) -> float:
    from pickglass.metrics import PixelCurves

    curves = PixelCurves()
    for scores, mask in zip(maps, masks, strict=True):
        curves.update(scores, mask)
    return curves.compute().aupro[0.3]


def peer(maps: np.ndarray[Any, Any], masks: np.ndarray[Any, Any]) -> float:
    import torch
    from anomalib.metrics.aupro import _AUPRO  # the public class takes anomalib's batches only

    metric = _AUPRO(fpr_limit=0.3)
    for scores, mask in zip(maps, masks, strict=True):
        metric.update(torch.from_numpy(scores)[None], torch.from_numpy(mask)[None].int())  # (1, H, W)
    return float(metric.compute())


SIDES: dict[str, Callable[..., Any]] = {"ours": ours, "peer": peer}


def resident(field: str) -> int:
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def measure(side: str, file: str, repeats: int) -> Measured:
    metric = SIDES[side]
    with np.load(file) as data:
        maps, masks = data["maps"], data["masks"]
    metric(maps[:2, :64, :64].copy(), np.eye(64, dtype=bool)[None].repeat(2, 0))  # imports and first-call costs
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    seconds, value = [], float("nan")
    for i in range(repeats):
        start = time.perf_counter()
        value = metric(maps, masks)
        seconds.append(time.perf_counter() - start)
        if i == 0:
            growth = resident("VmHWM") - before
    return {
        "seconds": round(min(seconds), 4),
        "bytes_per_pixel": round(growth / maps.size, 2),
        "megabytes": round(growth / 2**20, 1),
        "aupro_30": value,
    }


def compare(n: int, size: int, peer_python: Path | None, repeats: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        maps, masks = synthetic(n, size, seed=0)
        file = f"{folder}/maps.npz"
        np.savez(file, maps=maps, masks=masks)
        result: Measured = {"defect_share": round(float(masks.mean()), 4)}
        del maps, masks
        result["ours"] = apart(measure, "ours", file, repeats)
        if peer_python is None:
            return result
        result["peer"] = apart(measure, "peer", file, repeats, python=peer_python)
        result["times_faster"] = round(result["peer"]["seconds"] / result["ours"]["seconds"], 1)
        result["difference"] = result["ours"]["aupro_30"] - result["peer"]["aupro_30"]
        return result


def arguments(parser: argparse.ArgumentParser) -> None:
    add_peer(parser)
    parser.add_argument("--maps", nargs="+", default=["100x256", "48x1024"], help="NUMBERxSIZE of the maps")
    parser.add_argument("--repeats", type=int, default=3)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for n, size in (map(int, text.split("x")) for text in given.maps):
        yield Case({"maps": n, "size": size}, partial(compare, n, size, given.peer_python, given.repeats))


def table(rows: list[Record]) -> str:
    def cells(row: Record, side: str) -> list[str]:
        own = row.get(side)
        return ["–"] * 2 if own is None else [f"{own['seconds']:.2f}", f"{own['bytes_per_pixel']:.1f}"]

    heads = ["maps", "peer, s", "bytes a pixel", "pickglass, s", "bytes a pixel", "times faster", "difference"]
    lines = []
    for row in rows:
        faster = [f"{row['times_faster']:.1f}", f"{row['difference']:.1e}"] if "peer" in row else ["–"] * 2
        sides = [*cells(row, "peer"), *cells(row, "ours")]
        lines.append([f"{row['maps']} of {row['size']} x {row['size']}", *sides, *faster])
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table}, weights=())
