"""All methods on one data set by one scorer, per defect type, with paired bootstraps by group.

    python -m bench run methods DATA OUT [--methods patchcore,padim,...] [--seeds 0 1 2] [--preset quick]
        [--set key=value ...] [--against patchcore] [--repeats 1000] [--own-size] [--engine bfloat16]

Fits each method on all training images (``calibrate=0``) for each seed and saves OUT/METHOD-SEED.npz: scores (N,),
maps (N, h, w), paths (N,), seconds and CPU seconds of the fit, images a second. A method has the preset ``--preset``,
if it has one of that name, or one of its own: ``stfpm:default``. What is there already is left alone. Then a record a
method, also of other .npz files in OUT, such as the peer's: figures per type, the mean of the types and of the three
thin ones, averaged over seeds, and the difference to another method with its 95 % interval.

With ``--engine`` the backbone runs in it, files are named METHOD_ENGINE-SEED.npz, and each method is compared with
itself without it, which has to be in OUT.

DATA is a data set whose images already have the size of the maps to be judged (bench/tools/squeeze.py), or with
``--own-size`` any: each map is enlarged to its image and judged there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Case, Record, Suite, differences, markdown, only_set
from bench.harness.scorer import SIZE, Weight, nested, paired_figures, read_tool
from pickglass.app.fit import build
from pickglass.data import load_dataset
from pickglass.data.files import written_whole
from pickglass.methods import METHODS


def fit(given: argparse.Namespace) -> None:
    dataset = load_dataset(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    for asked in given.methods.split(","):
        method, _, own = asked.partition(":")
        preset = own or given.preset
        known = all(preset in METHODS[name].presets for name in method.split("+"))
        if own and not known and own != "default":
            raise SystemExit(f"{asked}: there is no such preset")
        for seed in given.seeds:
            name = asked.replace(":", "_") + (f"_{given.engine}" if given.engine != "auto" else "")
            target = given.out / f"{name}-{seed}.npz"
            if target.exists():
                continue
            detector = build(method, preset if known else None, settings)
            began, cpu_began = time.perf_counter(), time.process_time()
            detector.fit(dataset.train, calibrate=0, seed=seed, engine=given.engine)
            fit_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
            detector.predict(dataset.test[:1])
            began = time.perf_counter()
            found = detector.predict(dataset.test)
            images_per_s = len(found) / (time.perf_counter() - began)
            with written_whole(target) as temporary:
                np.savez_compressed(
                    temporary,
                    scores=found.scores,
                    maps=np.stack(found.maps),
                    paths=np.array([row.path for row in found.rows]),
                    fit_s=fit_s,
                    cpu_s=cpu_s,
                    images_per_s=images_per_s,
                )


def mean_times(files: list[Path]) -> dict[str, float]:
    """Mean seconds and CPU seconds of a fit, and images a second, over a method's files; a peer's files state none."""
    found: dict[str, list[float]] = {}
    for file in files:
        with np.load(file) as stored:
            for key in ("fit_s", "cpu_s", "images_per_s"):
                if key in stored:
                    found.setdefault(key, []).append(float(stored[key]))
    return {key: float(np.mean(values)) for key, values in found.items()}


def figures(name: str, against: str, given: argparse.Namespace) -> dict[str, Any]:
    """One method, and what it is better or worse by than the other one."""
    rows = list(load_dataset(given.data).test)
    groups = [row.group for row in rows]

    def tools(method: str) -> list[Any]:
        size = None if given.own_size else SIZE
        return [read_tool(file, rows, given.smallest, size) for file in files_of(given.out)[method]]

    def mean(own: list[Any], weight: Weight) -> dict[tuple[str, str], float]:
        runs = [tool.figures(weight) for tool in own]
        return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}

    own, once = tools(name), np.ones(len(rows), int)
    spread = float(np.std([tool.figures(once)["mean of types", "image_auroc"] for tool in own]))
    result: dict[str, Any] = {"seeds": len(own), "spread": round(spread, 4), "figures": nested(mean(own, once))}
    result |= mean_times(files_of(given.out)[name])
    if name != against and against in files_of(given.out):
        other = tools(against)
        result["minus"] = paired_figures(partial(mean, own), partial(mean, other), groups, given.repeats)
    return result


def files_of(out: Path) -> dict[str, list[Path]]:
    """Method -> a file a seed."""
    files: dict[str, list[Path]] = {}
    for file in sorted(out.glob("*-*.npz")):
        files.setdefault(file.stem.rsplit("-", 1)[0], []).append(file)
    return files


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--against", default="patchcore")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--own-size", action="store_true", help="judge each image at its own size, not at 256 x 256 px")
    parser.add_argument("--smallest", type=int, default=1, help="leave out regions below this many pixels")


def with_engine(parser: argparse.ArgumentParser) -> None:
    arguments(parser)
    parser.add_argument("--engine", default="auto", choices=("auto", *ENGINES))


def cases(given: argparse.Namespace) -> Iterator[Case]:
    fit(given)
    asked = {"data": given.data.name, "repeats": given.repeats, "smallest": given.smallest}
    for name in files_of(given.out):
        plain, _, engine = name.rpartition("_")
        if engine not in ENGINES:
            plain, engine = given.against, "auto"
        if engine == given.engine:
            own = {**asked, "against": plain, "method": name} | ({"engine": engine} if engine != "auto" else {})
            yield Case(own, partial(figures, name, plain, given))


def table(rows: list[Record], metric: str) -> str:
    heads = list(dict.fromkeys(kind for row in rows for kind in row["figures"]))
    lines = []
    for row in rows:
        cells = [f"{row['figures'][k][metric]:.3f}" if k in row["figures"] else "–" for k in heads]
        lines.append([row["method"], row["seeds"], *cells])
    return markdown(["method", "seeds", *heads], lines)


def table_of_all(rows: list[Record]) -> str:
    """Each method over all test images: its figures, how it differs from the other one, and what it costs."""
    alone = [row for row in rows if "engine" not in row]
    if not alone:
        return ""
    heads = ["method", "seeds", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", f"minus {title_of(alone[0]['against'])}"]
    lines = []
    for row in sorted(alone, key=lambda row: -row["figures"]["all"]["image_auroc"]):
        cells = [f"{row['figures']['all'][metric]:.3f}" for metric in METRICS]
        minus = differences(row["minus"]["all"][metric] for metric in METRICS) if "minus" in row else ""
        cost = [f"{row['cpu_s']:.0f}" if "cpu_s" in row else ""]
        lines.append([title_of(row["method"]), row["seeds"], *cells, minus, *cost])
    return markdown([*heads, "fit, CPU s"], lines)


def table_of_engines(rows: list[Record]) -> str:
    """Each method with its backbone in another engine: its figures, and how they differ from those without it."""
    heads = ["data", "method", "seeds", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", "minus the same in float32"]
    lines = []
    for row in sorted((row for row in rows if "engine" in row), key=lambda row: (row["data"], row["against"])):
        cells = [f"{row['figures']['all'][metric]:.3f}" for metric in METRICS]
        minus = differences(row["minus"]["all"][metric] for metric in METRICS)
        lines.append([row["data"], title_of(row["against"]), row["seeds"], *cells, minus])
    return markdown(heads, lines)


def title_of(stem: str) -> str:
    """The method and its preset as a file is named: ``fastflow_quick``."""
    name = next(name for name in sorted(METHODS, key=len, reverse=True) if stem == name or stem.startswith(f"{name}_"))
    preset = stem[len(name) + 1 :]
    return METHODS[name].__name__ + (f", `{preset}`" if preset not in ("", "default") else "")


METRICS = ("image_auroc", "aupro_30", "aupro_05")
ENGINES = ("openvino", "bfloat16", "torch")
OF_TYPES = {metric: partial(table, metric=metric) for metric in METRICS}
SUITE = Suite(cases, with_engine, {"": table_of_all, "engines": table_of_engines, **OF_TYPES})
