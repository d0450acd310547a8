"""SuperSimpleNet without and with known defects, beside PatchCore and FastFlow: figures with paired intervals by group.

    python -m bench run supersimplenet OUT --data DATA [--case magnetic_tile] [--seeds 0 1 2] [--size area:256]
        [--models patchcore fastflow ssn-0 ssn-1 ssn-5 ssn-10] [--set epochs=6 fastflow.epochs=60 ...]
        [--preset quick] [--repeats 500]

Of each type of defect ten known ones are drawn by the seed, of ten groups; ``ssn-N`` is shown the first N of each. No
model is judged by these ten, nor by any other image of their groups, so that all are judged by the same images, and
more known defects are more of the same ones. ``ssn-labels-N`` is shown them without their masks, ``patchcore-N`` and
``fastflow-N`` too (they set what is unsure, and nothing else). ``both-N`` is SuperSimpleNet with them and PatchCore in
one model; ``three-N`` PatchCore, and FastFlow and SuperSimpleNet at half the sides (ask for ``--size area:512``), each
with its settings of ``--preset``. Each model has its default settings but for the size;
FastFlow and SuperSimpleNet have those of ``--preset``, changed by ``--set`` (SuperSimpleNet where no method is named).

Kept is OUT/MODEL-SIZE-SEED.npz: scores (N,) by the highest 0.2 % of the map, ``own`` (N,) by the method (of
SuperSimpleNet the classification head), maps, paths, seconds and CPU seconds of the fit, images a second. What is there
is left alone. One backbone pass serves all models of a size. A record a model: the mean over the seeds that it has, and
its differences to PatchCore and to SuperSimpleNet without known defects on the seeds that both have.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pickglass as pg
from bench.combined import truth_of
from bench.defaults import as_train
from bench.harness import Case, Record, Suite, differences, markdown
from bench.harness.scorer import Tool, paired
from pickglass.data import Row, Table, load_dataset, resize_map
from pickglass.data.files import written_whole
from pickglass.features.shared import SharedFeatures
from pickglass.methods import METHODS
from pickglass.metrics import OK_LEVELS, CountTables, PixelCurves, auroc, resampled

NAMES = {
    "ssn": "supersimplenet",
    "patchcore": "patchcore",
    "fastflow": "fastflow",
    "both": "combined",
    "three": "combined",
}
MODELS = ("patchcore", "fastflow", "ssn-0", "ssn-1", "ssn-5", "ssn-10")
MOST = 10  # known defects of a type
LAYERS = ("stage3", "stage4", "stage5")
AGAINST = ("patchcore", "ssn-0")
METRICS = ("image_auroc", "own_auroc", "aupro_30", "aupro_05")


def drawn(test: Table, seed: int) -> dict[str, list[Row]]:
    """The ten known defects of each type, in the order in which they are shown."""
    rng = np.random.default_rng(seed)
    known: dict[str, list[Row]] = {}
    for kind in sorted({row.defect for row in test if row.defect is not None}):
        of_group: dict[str, list[Row]] = {}
        for row in test:
            if row.defect == kind:
                of_group.setdefault(row.unit, []).append(row)
        units = list(of_group)
        known[kind] = [of_group[units[i]][0] for i in rng.permutation(len(units))[:MOST]]
    return known


def judged_rows(test: Table, seed: int) -> npt.NDArray[np.bool_]:
    """Which test images are judged: those of no group that holds one of the ten."""
    units = {row.unit for rows in drawn(test, seed).values() for row in rows}
    return np.array([row.unit not in units for row in test])


# -- fit ---------------------------------------------------------------------------------------------------------------


def fit(given: argparse.Namespace, good: Table, test: Table) -> None:
    changed: dict[str, dict[str, Any]] = {}
    for key, value in (text.split("=", 1) for text in given.set):
        name, _, setting = key.rpartition(".")
        changed.setdefault(name or "ssn", {})[setting] = json.loads(value)
    with SharedFeatures("efficientnet_lite0", "default", 0, LAYERS, len(good) + len(test), given.memory_gb) as shared:
        for seed in given.seeds:
            for model in given.models:
                target = given.out / f"{model}-{given.size.replace(':', '')}-{seed}.npz"
                if not target.exists():
                    keep(target, model, given, changed, (good, test), seed, shared)


def keep(
    target: Path,
    model: str,
    given: argparse.Namespace,
    changed: dict[str, dict[str, Any]],
    images: tuple[Table, Table],
    seed: int,
    shared: SharedFeatures,
) -> None:
    good, test = images
    kind, *rest = model.split("-")
    n = int(rest[-1]) if rest else 0
    method = METHODS[NAMES[kind]]
    learning = METHODS["supersimplenet"] if method is pg.Combined else method
    preset = dict(learning.presets.get(given.preset, {})) if kind != "patchcore" else {}
    if "backbone" in preset:  # all are judged on one
        preset = {key: value for key, value in preset.items() if key not in ("backbone", "layers")}
    settings: dict[str, Any] = {**preset, "size": given.size, **changed.get(kind, {})}
    if method is pg.Combined:
        part = {"method": learning.method, **preset, **changed.get("ssn", {})}
        flow = {"method": "fastflow", **pg.FastFlow.presets.get(given.preset, {}), **changed.get("fastflow", {})}
        parts = (part, "patchcore") if kind == "both" else ("patchcore", *({**p, "scale": 0.5} for p in (flow, part)))
        settings = {"parts": parts, "size": given.size, **changed.get(kind, {})}
    detector = method.configured(settings)
    if kind != "three":  # it runs the backbone at two scales
        detector.shared_features = shared
    rows = [row for known in drawn(test, seed).values() for row in known[:n]]
    defects = Table([replace(row, mask=None) if "labels" in rest else row for row in rows])
    began, cpu = time.perf_counter(), time.process_time()
    detector.fit(good, seed=seed, defects=defects if n else None, memory_gb=given.memory_gb, calibrate=None)
    fit_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    detector.predict(test[:1])
    began = time.perf_counter()
    found = detector.predict(test)
    images_per_s = len(found) / (time.perf_counter() - began)
    own = own_scores(detector, test)
    with written_whole(target) as temporary:
        np.savez_compressed(
            temporary,
            scores=found.scores,
            own=own,
            maps=np.stack(found.maps).astype(np.float16),
            paths=np.array([row.path for row in test]),
            fit_s=fit_s,
            cpu_s=cpu_s,
            images_per_s=images_per_s,
        )
    known_rows = judged_rows(test, seed)
    tool = judged_by(np.asarray(found.scores), np.stack(found.maps), test)
    figures = tool.figures(known_rows.astype(np.int64))
    labels = np.array([row.label for row in test])
    line = {
        "model": model,
        "size": given.size,
        "seed": seed,
        "settings": changed.get(kind, {}),
        "preset": given.preset,
        **{metric: round(figures["all", metric], 4) for metric in ("image_auroc", "aupro_30", "aupro_05")},
        "own_auroc": round(float(resampled(auroc, labels, own)(known_rows.astype(np.int64))), 4),
        "by_type": {k: round(v, 3) for (k, m), v in figures.items() if m == "image_auroc" and k != "all"},
        "judged": int(known_rows.sum()),
        "known": len(defects),
        "fit_s": round(fit_s, 1),
        "cpu_s": round(cpu_s, 1),
        "images_per_s": round(images_per_s, 1),
    }
    (target.with_suffix(".json")).write_text(json.dumps(line))


def own_scores(detector: pg.Detector, test: Table) -> npt.NDArray[Any]:
    """What the method itself says of the images, in place of the highest values of the map."""
    share, gain, shift, line = detector.top_share, detector.place_gain, detector.place_shift, detector.level_line
    detector.top_share, detector.place_gain, detector.place_shift, detector.level_line = 0.0, None, None, None
    scores = detector.predict(test).scores
    detector.top_share, detector.place_gain, detector.place_shift, detector.level_line = share, gain, shift, line
    return np.asarray(scores)


# -- figures -----------------------------------------------------------------------------------------------------------


def judged_by(scores: npt.NDArray[Any], maps: npt.NDArray[Any], test: Table) -> Tool:
    truth = [truth_of(row) for row in test]
    curves = PixelCurves()
    for map_, (size, mask) in zip(maps, truth, strict=True):
        curves.update(resize_map(map_.astype(np.float32), size), mask)
    tables = CountTables(curves.ok_quantiles(OK_LEVELS))
    for map_, (size, mask) in zip(maps, truth, strict=True):
        tables.update(resize_map(map_.astype(np.float32), size), mask)
    labels = np.array([row.label for row in test])
    return Tool(scores, tables, labels, np.array([row.defect or "good" for row in test]))


Run = tuple[Tool, npt.NDArray[Any], dict[str, Any]]


def runs_of(out: Path, model: str, size: str, test: Table) -> dict[int, Run]:
    """Seed -> what a model says, what the method itself says, and the line of its fit."""
    runs: dict[int, Run] = {}
    for file in sorted(out.glob(f"{model}-{size.replace(':', '')}-*.npz")):
        with np.load(file, allow_pickle=False) as stored:
            tool, own = judged_by(stored["scores"], stored["maps"], test), stored["own"]
        runs[int(file.stem.rsplit("-", 1)[1])] = tool, own, json.loads(file.with_suffix(".json").read_text())
    return runs


def figures(model: str, given: argparse.Namespace) -> dict[str, Any]:
    """One model: the mean over its seeds, and the differences on the seeds that both have."""
    test = load_dataset(given.data / given.case).test
    labels, groups = np.array([row.label for row in test]), [row.group for row in test]
    runs = {name: runs_of(given.out, name, given.size, test) for name in dict.fromkeys((model, *AGAINST))}
    judged = {seed: judged_rows(test, seed).astype(np.int64) for of in runs.values() for seed in of}

    def mean(name: str, seeds: Sequence[int], weight: npt.NDArray[np.int64]) -> list[float]:
        values = []
        for seed in seeds:
            tool, own, _ = runs[name][seed]
            counted = weight * judged[seed]
            found = {**tool.judge(counted), "own_auroc": float(resampled(auroc, labels, own)(counted))}
            values.append([found[metric] for metric in METRICS])
        return [float(value) for value in np.mean(values, axis=0)]

    own = runs[model]
    result: dict[str, Any] = {
        "figures": mean(model, list(own), np.ones(len(test), np.int64)),
        "runs": [line for _, _, line in own.values()],
    }
    for other in AGAINST:
        shared = [seed for seed in own if seed in runs[other]]
        if other != model and shared:
            ours, theirs = partial(mean, model, shared), partial(mean, other, shared)
            result[f"minus {other}"] = paired(ours, theirs, groups, given.repeats)
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--case", default="magnetic_tile")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", default="area:256")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--memory-gb", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=500)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    given.out.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(given.data / given.case)
    fit(given, as_train(dataset.train), dataset.test)
    for model in given.models:
        key = {"case": given.case, "size": given.size, "model": model, "seeds": given.seeds, "repeats": given.repeats}
        yield Case(key, partial(figures, model, given))


def table(rows: list[Record]) -> str:
    heads = ["model", "preset", "seeds", "image AUROC", "of its own score", "AUPRO@0.3", "AUPRO@0.05"]
    lines = []
    for row in rows:
        asked = row["measured"]["arguments"]
        preset = "" if row["model"] == "patchcore" else ", ".join([asked["preset"], *asked["set"]])
        cells = [plain(row["model"]), preset, len(row["runs"]), *(f"{value:.3f}" for value in row["figures"])]
        cells += [differences(row.get(f"minus {other}", [])) for other in AGAINST]
        cpu, speed = (np.mean([run[key] for run in row["runs"]]) for key in ("cpu_s", "images_per_s"))
        lines.append([*cells, f"{cpu:.0f}", f"{speed:.0f}"])
    return markdown([*heads, *(f"minus {plain(other)}" for other in AGAINST), "fit, CPU s", "images/s"], lines)


def plain(model: str) -> str:
    """Say a model's name as a reader knows it."""
    kind, _, rest = model.partition("-")
    known = f" without masks, {rest.removeprefix('labels-')}" if rest.startswith("labels-") else f", {rest}"
    defects = "known defect" if rest.rpartition("-")[2] == "1" else "known defects"
    joined = {
        "both": "SuperSimpleNet + PatchCore",
        "three": "PatchCore + FastFlow and SuperSimpleNet at half the sides",
    }
    name = joined.get(kind) or METHODS[NAMES[kind]].__name__
    return f"{name}{known} {defects} of each type" if rest not in ("", "0") else name


SUITE = Suite(cases, arguments, {"": table})
