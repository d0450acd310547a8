"""The tiled ensemble: against the peer's pipeline, what a fit holds in memory, and the source's protocol.

bench/tiled_table.py compares it with single models.

python -m bench.tiled_ensemble peer DATA --peer-python PYTHON
    fit and evaluate a PaDiM ensemble (ResNet-18 with random weights, 512/256/128, nine heads) and, in the same run, the
    peer's (bench/peer_tiled.py): seconds, ratios, peak memory. Evaluating is predicting, joining and the metrics.
python -m bench.tiled_ensemble profile DATA
    the same ensemble alone under cProfile: where the time of fit and evaluation goes, in percent.
python -m bench.tiled_ensemble memory DATA [--methods stfpm,fastflow,...]
    peak memory of one epoch of a single 256 px model and, in groups of one position, of nine tiles of 256 px on a
    canvas of 512 px, each in a process of its own, and their ratio (goal: at most 1.3).
python -m bench.tiled_ensemble native [--methods patchcore,padim]
    woven pieces of 4000 x 3000 px, 12 megapixels, unscaled, one head for tiles of 256 px side by side: 6 good ones
    to learn from, 4 of other seeds to judge, two of them with a defect of 24 px. Seconds, peak memory, and whether the
    highest value of the map lies on the defect.
python -m bench.tiled_ensemble [source] --mvtec ROOT --visa ROOT [--methods padim,...] [--out FILE.jsonl]
    the source's protocol (Rolih et al. 2024) for whoever has data and weights: single 256, single 512 and the ensemble
    512/256/128; ResNet-18, batches of 32, seed 42, five methods; scores averaged over the tiles, seams smoothed. One
    JSON line a cell and, last, the mean of each method and way over the categories. With FILE a killed run goes on.
"""

from __future__ import annotations

import argparse
import cProfile
import inspect
import itertools
import json
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pickglass.app.fit import build
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import load_dataset, load_datasets, paint, read_mask
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.engine import has_bfloat16
from pickglass.methods import METHODS
from pickglass.runtime.compute import EngineName

ON_STRIP: tuple[Kind, Kind] = ("slub", "hole")
TILES: dict[str, Any] = {"size": 512, "tile": 256, "stride": 128}
RESNET: dict[str, Any] = {"backbone": "resnet18", "layers": ("layer1", "layer2", "layer3"), "weights": "random"}
TRAINED = "stfpm,reverse_distillation,fastflow,asymmetric_student_teacher"
SOURCE: dict[str, dict[str, Any]] = {  # as the peer's defaults have them with ResNet-18
    "padim": {"dims": 100},
    "patchcore": {"layers": ("layer2", "layer3"), "ratio": 0.1, "reweight": 9},
    "fastflow": {},
    "reverse_distillation": {"width": None},
    "stfpm": {},
}
WAYS: dict[str, tuple[int, dict[str, Any] | None]] = {
    "single 256": (256, None),
    "single 512": (512, None),
    "ensemble 512/256/128": (512, {**TILES, "join": "seams", "image_score": "mean"}),
}


# -- fit and evaluate, in a process of their own -----------------------------------------------------------------------


def timed(data: str, engine: EngineName) -> dict[str, Any]:
    """The PaDiM ensemble of the comparison with the peer."""
    dataset = load_dataset(data)
    detector = build("padim", None, RESNET, {**TILES, "join": "seams"})
    find_backbone("resnet18")  # imports torchvision, as the peer does before its time begins
    began = time.perf_counter()
    detector.fit(dataset.train, calibrate=0, engine=engine)
    fit_s = time.perf_counter() - began
    detector.predict(dataset.test[:1], engine=engine)
    began = time.perf_counter()
    metrics = evaluate(detector.predict(dataset.test, engine=engine))
    evaluate_s = time.perf_counter() - began
    return {"fit_s": fit_s, "evaluate_s": evaluate_s, "peak_rss_mb": _peak_mb(), "image_auroc": metrics["image_auroc"]}


def trained(data: str, method: str, tiling: dict[str, Any] | None) -> dict[str, Any]:
    """One epoch of a method at 256 px, or tiled."""
    epochs = {name: 1 for name in inspect.signature(METHODS[method].__init__).parameters if name.endswith("epochs")}
    detector = build(method, "quick", {**epochs, "size": 256}, tiling)
    detector.fit(load_dataset(data).train, calibrate=0)
    return {"peak_rss_mb": _peak_mb()}


def twelve_megapixels(folder: str, method: str) -> dict[str, Any]:
    """Images far larger than any network's input."""
    dataset = load_dataset(folder)
    detector = build(method, None, {}, {"size": "native", "tile": 256, "stride": 256, "heads": 1})
    began = time.perf_counter()
    detector.fit(dataset.train, calibrate=0)
    fit_s = time.perf_counter() - began
    began = time.perf_counter()
    found = list(detector.predict(dataset.test))
    predict_s = time.perf_counter() - began
    on_defect = []
    for one in found:
        full = one.full_map()
        if one.row.mask is not None:
            on_defect.append(bool(read_mask(one.row.mask, one.size)[np.unravel_index(int(full.argmax()), full.shape)]))
    return {
        "method": method,
        "fit_s_per_image": fit_s / len(dataset.train),
        "predict_s_per_image": predict_s / len(found),
        "peak_rss_mb": _peak_mb(),
        "scores": {one.row.defect or f"good {i}": one.score for i, one in enumerate(found)},
        "highest_on_defect": on_defect,
    }


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def apart(what: str, *arguments: Any) -> dict[str, Any]:
    """The same in a process of its own, for its peak memory."""
    command = [sys.executable, __file__, "one", json.dumps([what, *arguments])]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(out.stdout.strip().splitlines()[-1])
    return result


# -- commands ----------------------------------------------------------------------------------------------------------


def peer(given: argparse.Namespace) -> None:
    engines: list[EngineName] = ["openvino", "bfloat16"] if has_bfloat16() else ["openvino"]
    ours = {engine: apart("timed", str(given.data[0]), engine) for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).resolve().with_name("peer_tiled.py")
        command = [given.peer_python, script, given.data[0].resolve(), folder]
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)  # it leaves logs there
    theirs = json.loads(out.stdout.strip().splitlines()[-1])
    ratios = {e: {key: theirs[key] / own[key] for key in ("fit_s", "evaluate_s")} for e, own in ours.items()}
    print(json.dumps({"ours": ours, "peer": theirs, "times faster": ratios}))


def profile(given: argparse.Namespace) -> None:
    dataset = load_dataset(given.data[0])
    detector = build("padim", None, RESNET, {**TILES, "join": "seams"})
    find_backbone("resnet18")

    def fit() -> None:
        detector.fit(dataset.train, calibrate=0)

    def judge() -> None:
        evaluate(detector.predict(dataset.test))

    for name, work in (("fit", fit), ("evaluate", judge)):
        _shares(name, work)


def _shares(name: str, work: Callable[[], None]) -> None:
    """Prints the functions in which at least a hundredth of the time goes, callers before what they call."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats = pstats.Stats(profiler)
    total = stats.total_tt  # type: ignore[attr-defined]
    print(f"{name}: {total:.1f} s; cumulative %, own %, function")
    for where, (_, _, own, cumulative, _) in sorted(stats.stats.items(), key=lambda item: -item[1][3]):  # type: ignore[attr-defined]
        if cumulative >= 0.01 * total:
            place = f"{Path(where[0]).name}:{where[1]} {where[2]}"
            print(f"{100 * cumulative / total:6.1f} {100 * own / total:6.1f}  {place}")


def memory(given: argparse.Namespace) -> None:
    for method in (given.methods or TRAINED).split(","):
        single = apart("trained", str(given.data[0]), method, None)
        tiled = apart("trained", str(given.data[0]), method, {**TILES, "at_once": 1})
        ratio = tiled["peak_rss_mb"] / single["peak_rss_mb"]
        print(json.dumps({"method": method, "single": single, "tiled": tiled, "ratio": ratio}), flush=True)


def native(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder), np.random.default_rng(0)
        for i in range(10):
            pixels, mask = weave(Cloth("twill"), (3000, 4000), i), None
            if i >= 8:
                painted = paint(pixels, ON_STRIP[i - 8], 24, rng)
                pixels, mask = painted.image, painted.mask
            where = ("train/good", "test/good", f"test/{ON_STRIP[i % 2]}")[(i >= 6) + (i >= 8)]
            _write(root / where / f"{i}.png", pixels)
            if mask is not None:
                _write(root / where.replace("test", "ground_truth") / f"{i}_mask.png", mask.astype(np.uint8) * 255)
        for method in (given.methods or "patchcore,padim").split(","):
            print(json.dumps(apart("twelve_megapixels", folder, method)), flush=True)


def _write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def source(given: argparse.Namespace) -> None:
    done: dict[tuple[str, str, str], dict[str, float]] = {}
    if given.out is not None and given.out.is_file():
        for line in given.out.read_text().splitlines():
            cell = json.loads(line)
            done[cell["data"], cell["method"], cell["way"]] = cell["figures"]
    roots = [root for root in (given.mvtec, given.visa) if root is not None]
    methods = (given.methods or ",".join(SOURCE)).split(",")
    for root in roots:
        for (name, dataset), method, way in itertools.product(load_datasets(root).items(), methods, WAYS):
            cell = (f"{root.name}/{name}", method, way)
            if cell not in done:
                size, tiling = WAYS[way]
                settings = {**RESNET, "weights": given.weights, **SOURCE[method], "size": size}
                if given.epochs is not None and "epochs" in inspect.signature(METHODS[method].__init__).parameters:
                    settings["epochs"] = given.epochs
                if "batch" in inspect.signature(METHODS[method].__init__).parameters:
                    settings["batch"] = 32
                detector = build(method, None, settings, tiling)
                detector.fit(dataset.train, calibrate=0, seed=42, memory_gb=given.memory_gb)
                metrics = evaluate(detector.predict(dataset.test))
                done[cell] = {key: metrics[key] for key in ("image_auroc", "aupro_30", "aupro_05")}
                line = json.dumps({**dict(zip(("data", "method", "way"), cell, strict=True)), "figures": done[cell]})
                print(line, flush=True)
                if given.out is not None:
                    with given.out.open("a") as file:
                        file.write(line + "\n")
    for root, method, way in itertools.product(roots, methods, WAYS):
        own = [f for (data, *rest), f in done.items() if rest == [method, way] and data.startswith(f"{root.name}/")]
        means = {key: float(np.mean([f[key] for f in own])) for key in own[0]}
        print(json.dumps({"mean of": root.name, "categories": len(own), "method": method, "way": way, **means}))


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        what, *arguments = json.loads(sys.argv[2])
        parts: dict[str, Callable[..., Any]] = {
            "timed": timed,
            "trained": trained,
            "twelve_megapixels": twelve_megapixels,
        }
        print(json.dumps(parts[what](*arguments)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["peer", "profile", "memory", "native", "source"], nargs="?", default="source")
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--methods", help="separated by commas")
    parser.add_argument("--peer-python")
    parser.add_argument("--mvtec", type=Path)
    parser.add_argument("--visa", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--epochs", type=int, help="epochs of the methods that train; by default their own")
    parser.add_argument("--memory-gb", type=float, default=8.0)
    given = parser.parse_args()
    if given.what == "source" and given.mvtec is None and given.visa is None:
        parser.error("name the folder of MVTec AD (--mvtec), of VisA (--visa), or both")
    run = {"peer": peer, "profile": profile, "memory": memory, "native": native, "source": source}
    run[given.what](given)


if __name__ == "__main__":
    main()
