"""The tiled ensemble: against the peer's pipeline, and against single models.

python bench/tiled_ensemble.py peer DATA --peer-python PYTHON
    fit and evaluate a PaDiM ensemble (ResNet-18 with random weights, 512/256/128, nine heads) and, in the same run, the
    peer's (bench/peer_tiled.py): seconds, ratios, peak memory. Evaluating is predicting, joining and the metrics.
python bench/tiled_ensemble.py compare DATA... [--methods patchcore,padim] [--ways ...]
    image AUROC, AUPRO, hits, fit time, images/s and peak memory of single 256, single 512, ensemble 512/256/128, one
    shared head and native tiling, each in a process of its own; a JSON line each and a Markdown table. A hit is a
    defect region in which the map exceeds every value of the good test images.
python bench/tiled_ensemble.py source --mvtec ROOT --visa ROOT
    the source's protocol (Rolih et al. 2024: ResNet-18, batch 32, seed 42) for whoever has data and weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pickglass.app.evaluate import evaluate
from pickglass.app.fit import build
from pickglass.data import load_dataset, load_datasets, read_mask
from pickglass.metrics.labelling import connected_regions

RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ("layer1", "layer2", "layer3"), "weights": "random"}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "single 256": ({"size": 256}, None),
    "single 512": ({"size": 512}, None),
    "ensemble 512/256/128": ({}, {"size": 512, "tile": 256, "stride": 128}),
    "ensemble 512/256/128, one head": ({}, {"size": 512, "tile": 256, "stride": 128, "heads": 1}),
    "native 256/256, one head": ({}, {"size": "native", "tile": 256, "stride": 256, "heads": 1}),
}


def run(data: Path, method: str, settings: dict[str, Any], tiling: dict[str, Any] | None) -> dict[str, Any]:
    dataset = load_dataset(data)
    detector = build(method, None, settings, tiling)
    began = time.perf_counter()
    detector.fit(dataset.train, calibrate=0)
    fit_s = time.perf_counter() - began
    detector.predict(dataset.test[:1])
    began = time.perf_counter()
    found = detector.predict(dataset.test)
    predict_s = time.perf_counter() - began
    began = time.perf_counter()
    metrics = evaluate(found)
    evaluate_s = predict_s + time.perf_counter() - began
    highest = max((float(f.map.max()) for f in found if f.row.label == 0), default=float("inf"))
    regions = hits = 0
    for one in found:
        if one.row.mask is None:
            continue
        labels, areas = connected_regions(read_mask(one.row.mask, one.size))
        peaks = [float(one.full_map()[labels == i + 1].max()) for i in range(len(areas))]
        regions += len(peaks)
        hits += sum(peak > highest for peak in peaks)
    return {
        "fit_s": fit_s,
        "images_per_s": len(found) / predict_s,
        "evaluate_s": evaluate_s,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "image_auroc": metrics["image_auroc"],
        "aupro_30": metrics["aupro_30"],
        "aupro_05": metrics["aupro_05"],
        "hits": hits,
        "regions": regions,
        "good": sorted(round(f.score, 3) for f in found if f.row.label == 0)[-5:],
        "bad": sorted(round(f.score, 3) for f in found if f.row.label == 1)[:10],
    }


def apart(data: Path, method: str, settings: dict[str, Any], tiling: dict[str, Any] | None) -> dict[str, Any]:
    """The same in a process of its own, for its peak memory."""
    job = json.dumps([str(data), method, settings, tiling])
    out = subprocess.run([sys.executable, __file__, "one", job], capture_output=True, text=True)
    if out.returncode:
        return {"error": out.stderr.strip().splitlines()[-1]}
    result: dict[str, Any] = json.loads(out.stdout.strip().splitlines()[-1])
    return result


def peer(given: argparse.Namespace) -> None:
    ours = apart(given.data[0], "padim", RESNET, {"size": 512, "tile": 256, "stride": 128, "join": "seams"})
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("peer_tiled.py")
        out = subprocess.run(
            [given.peer_python, script, given.data[0], folder], capture_output=True, text=True, check=True
        )
    theirs = json.loads(out.stdout.strip().splitlines()[-1])
    ratios = {key: theirs[key] / ours[key] for key in ("fit_s", "evaluate_s")}
    print(json.dumps({"ours": ours, "peer": theirs, "times faster": ratios}))


def compare(given: argparse.Namespace) -> None:
    rows = []
    for data in given.data:
        for method in given.methods.split(","):
            for way in given.ways or WAYS:
                result = apart(data, method, *WAYS[way])
                print(json.dumps({"data": data.name, "method": method, "way": way, **result}), flush=True)
                rows.append((data.name, method, way, result))
    keys = ("image_auroc", "aupro_30", "aupro_05", "hits", "fit_s", "images_per_s", "peak_rss_mb")
    print(f"\n| data | method | way | {' | '.join(keys)} |\n|{'---|' * (3 + len(keys))}")
    for *names, result in rows:
        cells = [f"{result[k]:.3f}" if isinstance(result.get(k), float) else str(result.get(k, "-")) for k in keys]
        print(f"| {' | '.join([*names, *cells])} |")


def source(given: argparse.Namespace) -> None:
    for root in (given.mvtec, given.visa):
        if root is None:
            continue
        for name, dataset in load_datasets(root).items():
            for method in given.methods.split(","):
                for way in ("single 256", "ensemble 512/256/128"):
                    settings, tiling = WAYS[way]
                    detector = build(method, None, {**RESNET, "weights": "default", **settings}, tiling)
                    found = detector.fit(dataset.train, calibrate=0, seed=42, batch=32).predict(dataset.test)
                    figures = {key: evaluate(found)[key] for key in ("image_auroc", "aupro_30", "aupro_05")}
                    print(json.dumps({"data": name, "method": method, "way": way, **figures}), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        data, method, settings, tiling = json.loads(sys.argv[2])
        print(json.dumps(run(Path(data), method, settings, tiling), default=np.ndarray.tolist))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peer", "compare", "source"])
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--methods", default="patchcore,padim")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS))
    parser.add_argument("--peer-python")
    parser.add_argument("--mvtec", type=Path)
    parser.add_argument("--visa", type=Path)
    given = parser.parse_args()
    {"peer": peer, "compare": compare, "source": source}[given.what](given)


if __name__ == "__main__":
    main()
