"""AUPRO: time, memory and value, ours and anomalib's, on the same maps.

    python -m bench.aupro [--peer-python PEER/bin/python] [--cases 100x256 48x1024] [--repeats 3]

PEER is an environment with ``pip install "anomalib==2.7.0"``. The maps are smoothed noise, raised inside the blobs
of the masks on half of the images. Both sides read one npz file, in processes of their own, and get the maps one by
one. Bytes a pixel: growth of the resident set at its peak over that before the first map was added; the maps
themselves, which both sides find in memory, do not count. The time is the best of the repeats; memory is the first's.
Ours includes the pixel AUROC and two limits, the peer's one limit. Needs Linux (/proc). Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Measured = dict[str, Any]
SOURCE = Path(__file__).resolve().parents[1] / "src"


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


def measure(metric: Callable[..., Any], file: Path, repeats: int) -> Measured:
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


def in_process(python: str, side: str, file: Path, repeats: int) -> Measured:
    command = [python, __file__, "--side", side, "--file", str(file), "--repeats", str(repeats)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)} if side != "peer" else None
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: Measured = json.loads(run.stdout.splitlines()[-1])
    return result


def compare(case: str, peer_python: str | None, repeats: int, folder: Path) -> dict[str, Any]:
    n, size = map(int, case.split("x"))
    maps, masks = synthetic(n, size, seed=0)
    file = folder / "maps.npz"
    np.savez(file, maps=maps, masks=masks)
    result: dict[str, Any] = {"maps": n, "size": size, "defect_share": round(float(masks.mean()), 4)}
    del maps, masks
    result["ours"] = in_process(sys.executable, "ours", file, repeats)
    if peer_python:
        result["peer"] = in_process(peer_python, "peer", file, repeats)
        result["times_faster"] = round(result["peer"]["seconds"] / result["ours"]["seconds"], 1)
        result["difference"] = result["ours"]["aupro_30"] - result["peer"]["aupro_30"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="python of an environment with anomalib 2.7")
    parser.add_argument("--cases", nargs="+", default=["100x256", "48x1024"], help="NUMBERxSIZE of the maps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(SIDES[args.side], args.file, args.repeats)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(case, args.peer_python, args.repeats, Path(folder)) for case in args.cases]
    print(json.dumps({"cpus": os.cpu_count(), "cases": results}))


if __name__ == "__main__":
    main()
