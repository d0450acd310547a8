"""The tiled ensemble: against the peer's pipeline, what a fit holds in memory, and the source's protocol.

bench/tiled_table.py compares it with single models.

``python -m bench run tiled_ensemble peer DATA --peer-python PYTHON``
    fit and evaluate a PaDiM ensemble (ResNet-18 with random weights, 512/256/128, nine heads) and, in the same run, the
    peer's (bench/peer/run_tiled.py): seconds, ratios, peak memory. Evaluating is predicting, joining and the metrics.
``python -m bench run tiled_ensemble memory DATA [--methods stfpm,fastflow,...]``
    peak memory of one epoch of a single 256 px model and, in groups of one position, of nine tiles of 256 px on a
    canvas of 512 px, each in a process of its own, and their ratio (goal: at most 1.3).
``python -m bench run tiled_ensemble native [--methods patchcore,padim]``
    woven pieces of 4000 x 3000 px, 12 megapixels, unscaled, one head for tiles of 256 px side by side: 6 good ones
    to learn from, 4 of other seeds to judge, two of them with a defect of 24 px. Seconds, peak memory, and whether the
    highest value of the map lies on the defect.
``python -m bench run tiled_ensemble source ROOT... [--methods padim,...]``
    the source's protocol (Rolih et al. 2024) for whoever has data and weights: single 256, single 512 and the ensemble
    512/256/128; ResNet-18, batches of 32, seed 42, five methods; scores averaged over the tiles, seams smoothed. ROOT
    holds the categories of MVTec AD or VisA; the table has the mean over them.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness import Case, Record, Suite, add_peer, apart, engines, markdown, peak_mb, run_peer
from pickglass.app.fit import build
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import Dataset, load_dataset, load_datasets, paint, read_mask
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.data.painting.defects import Kind
from pickglass.features.backbones.registry import find_backbone
from pickglass.methods import METHODS
from pickglass.runtime.compute import EngineName

PEER = Path(__file__).with_name("peer") / "run_tiled.py"
FIGURES = ("image_auroc", "aupro_30", "aupro_05")
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
    return {"fit_s": fit_s, "evaluate_s": evaluate_s, "peak_rss_mb": peak_mb(), "image_auroc": metrics["image_auroc"]}


def trained(data: str, method: str, tiling: dict[str, Any] | None) -> dict[str, Any]:
    """One epoch of a method at 256 px, or tiled."""
    epochs = {name: 1 for name in inspect.signature(METHODS[method].__init__).parameters if name.endswith("epochs")}
    detector = build(method, "quick", {**epochs, "size": 256}, tiling)
    detector.fit(load_dataset(data).train, calibrate=0)
    return {"peak_rss_mb": peak_mb()}


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
        "fit_s_per_image": fit_s / len(dataset.train),
        "predict_s_per_image": predict_s / len(found),
        "peak_rss_mb": peak_mb(),
        "scores": {one.row.defect or f"good {i}": one.score for i, one in enumerate(found)},
        "highest_on_defect": on_defect,
    }


# -- parts -------------------------------------------------------------------------------------------------------------


def against_the_peer(data: Path, python: Path | None) -> dict[str, Any]:
    result: dict[str, Any] = {"ours": {engine: apart(timed, data, engine) for engine in engines()}}
    if python is not None:
        theirs = run_peer(python, data.resolve(), "out", script=PEER)
        ratios = {e: {k: theirs[k] / own[k] for k in ("fit_s", "evaluate_s")} for e, own in result["ours"].items()}
        result |= {"peer": theirs, "times_faster": ratios}
    return result


def memory(data: Path, method: str) -> dict[str, Any]:
    single = apart(trained, data, method, None)
    tiled = apart(trained, data, method, {**TILES, "at_once": 1})
    return {"single": single, "tiled": tiled, "ratio": tiled["peak_rss_mb"] / single["peak_rss_mb"]}


def native(method: str) -> dict[str, Any]:
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
        result: dict[str, Any] = apart(twelve_megapixels, folder, method)
        return result


def _write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def source_cell(dataset: Dataset, method: str, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """One category in one of the source's ways."""
    size, tiling = WAYS[way]
    settings = {**RESNET, "weights": given.weights, **SOURCE[method], "size": size}
    known = inspect.signature(METHODS[method].__init__).parameters
    if given.epochs is not None and "epochs" in known:
        settings["epochs"] = given.epochs
    if "batch" in known:
        settings["batch"] = 32
    detector = build(method, None, settings, tiling)
    detector.fit(dataset.train, calibrate=0, seed=42, memory_gb=given.memory_gb)
    metrics = evaluate(detector.predict(dataset.test))
    return {"figures": {key: metrics[key] for key in FIGURES}}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=["peer", "memory", "native", "source"])
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--methods", help="separated by commas")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--epochs", type=int, help="epochs of the methods that train; by default their own")
    parser.add_argument("--memory-gb", type=float, default=8.0)
    add_peer(parser)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    if (len(given.data) == 1) != (given.part in ("peer", "memory")) and (given.part != "source" or not given.data):
        raise SystemExit("name one data set (peer, memory), none (native), or folders of categories (source)")
    usual = {"memory": TRAINED, "native": "patchcore,padim", "source": ",".join(SOURCE)}
    methods = (given.methods or usual.get(given.part, "")).split(",")
    key = {"part": given.part}
    if given.part == "peer":
        found = partial(against_the_peer, given.data[0], given.peer_python)
        yield Case({**key, "data": given.data[0].name, "method": "padim"}, found)
    elif given.part == "memory":
        for method in methods:
            found = partial(memory, given.data[0], method)
            yield Case({**key, "data": given.data[0].name, "method": method}, found)
    elif given.part == "native":
        for method in methods:
            yield Case({**key, "method": method}, partial(native, method))
    else:
        for root in given.data:
            for (name, dataset), method, way in itertools.product(load_datasets(root).items(), methods, WAYS):
                cell = {"data": root.name, "category": name, "method": method, "way": way, "weights": given.weights}
                yield Case({**key, **cell}, partial(source_cell, dataset, method, way, given))


def table_of_source(rows: list[Record]) -> str:
    """The mean of each method and way over the categories."""
    groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for row in (row for row in rows if row["part"] == "source"):
        groups.setdefault((row["data"], row["method"], row["way"]), []).append(row["figures"])
    lines = []
    for key, own in groups.items():
        lines.append([*key, len(own), *(f"{np.mean([figures[name] for figures in own]):.3f}" for name in FIGURES)])
    return markdown(["data", "method", "way", "categories", "image AUROC", "AUPRO@0.3", "AUPRO@0.05"], lines)


def table_of_peer(rows: list[Record]) -> str:
    """Seconds of both sides, ours in each precision of the backbone."""
    lines = []
    for row in (row for row in rows if row["part"] == "peer" and "peer" in row):
        for engine, own in row["ours"].items():
            precision = "float32" if engine == "openvino" else engine
            for what in ("fit_s", "evaluate_s"):
                name = "fit" if what == "fit_s" else "predict, join and score"
                times = f"{row['times_faster'][engine][what]:.1f}"
                lines.append([f"{name}, {precision}", f"{row['peer'][what]:.1f} s", f"{own[what]:.1f} s", times])
    return markdown(["what", "peer", "pickglass", "times faster"], lines)


SUITE = Suite(cases, arguments, {"peer": table_of_peer, "source": table_of_source})
