"""Several methods in one pass against the best single one: figures, paired intervals by group, and how weights do.

    python -m bench run combined figures OUT DATA/magnetic_tile [--seeds 0 1 2] [--size area:512] [--repeats 500]
        [--parts patchcore padim fastflow] [--scale 0.5] [--set patchcore.level_shift=true ...]
    python -m bench run combined weights OUT DATA/magnetic_tile [--seeds 0 1 2] [--size area:512]
    python -m bench run combined speed OUT DATA/magnetic_tile [--size area:512]

``figures`` learns all training images, for each seed: PatchCore and PaDiM alone as ``fit`` makes them by default, and
the ``--parts`` together on ``--size``: those of ``QUICK`` by that preset, the others as by default; at 512 px, where a
step has four times the cells, FastFlow trains for 12 epochs of batches of 2, and PaDiM reads the layers of the others.
With ``--scale`` PatchCore reads the image as it is and every other part at this scale, with its settings of 256 px.
It keeps what each part says, OUT/NAME-SEED.npz, so that every average of them follows without another fit: a part
learns the same whoever stands beside it (PatchCore and PaDiM together would hold no image back). What is there is left
alone. Then a row a combination with equal weights, and where FastFlow is in it one whose image score is FastFlow's:
image AUROC, AUPRO@0.3 and @0.05, the mean over seeds, and the difference to FastFlow alone and to PatchCore alone at
its own size with their 95 % intervals; groups are drawn.

``weights`` fits likewise and says what weights in quarters bring that were chosen on painted defects (on the good
images that were held back for the thresholds), or on ten known defects with the good images of the same draw (ten
draws by group; only the other groups are judged), beside equal ones.

``speed`` fits with one epoch: images a second in one run, each model in turn, three times 64 images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import pickglass as pg
from bench.defaults import as_train, painted
from bench.harness import Case, Record, Suite, differences, markdown, middle, only_set, turns
from bench.harness.scorer import Tool, paired
from pickglass.app.advise.request import KINDS_PAINTED
from pickglass.app.fit import build
from pickglass.data import Row, Table, load_dataset, resize_map, split_roles
from pickglass.data.files import written_whole
from pickglass.methods import METHODS
from pickglass.metrics import OK_LEVELS, CountTables, PixelCurves
from pickglass.runtime.compute import ComputeOptions

PARTS = ("patchcore", "padim", "fastflow")
QUICK = ("fastflow", "asymmetric_student_teacher", "reverse_distillation", "supersimplenet")
ALONE = ("patchcore", "padim")  # at their own default size and with all images
STEPS, KNOWN, DRAWS, SOME = 4, 10, 10, 64
METRICS = ("image_auroc", "aupro_30", "aupro_05")
AGAINST = ("fastflow", "patchcore alone")
Weights = tuple[float, ...]
Arrays = dict[str, npt.NDArray[Any]]


# -- fit ---------------------------------------------------------------------------------------------------------------


def settings_of(name: str, size: str, scale: float = 1.0) -> dict[str, Any]:
    """The settings of the models that join several parts, or of FastFlow."""
    parts = name.split("+")
    own: dict[str, dict[str, Any]] = {part: dict(METHODS[part].presets["quick"]) for part in parts if part in QUICK}
    if scale != 1:
        own |= {part: {**own.get(part, {}), "scale": scale} for part in parts if part != "patchcore"}
    elif size != "area:256":  # four times the cells: as many minutes as at 256 px take as many steps on fewer images
        if "fastflow" in own:
            own["fastflow"] |= {"epochs": 12, "batch": 2}
        if "padim" in parts:
            own["padim"] = {"layers": pg.FastFlow.presets["quick"]["layers"]}
    prefix = "{}." if len(parts) > 1 else ""
    settings = {f"{prefix.format(part)}{key}": value for part in own for key, value in own[part].items()}
    return {"size": size, **settings}


def learned(name: str, good: Table, seed: int, given: argparse.Namespace) -> tuple[pg.Detector, float]:
    changed = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    detector = build(name, None, {} if name in ALONE else settings_of(name, given.size, given.scale) | changed)
    began = time.process_time()
    detector.fit(good, seed=seed, memory_gb=2.0)
    return detector, time.process_time() - began


def keep(target: Path, fitted: tuple[pg.Detector, float], good: Table, test: Table, seed: int) -> None:
    """Save what each part says of the test images, and of painted ones."""
    detector, cpu_s = fitted
    held = split_roles(good, detector.wanted_validation, 0.1, seed).role("calibrate")
    sets = {"test": test}
    if isinstance(detector, pg.Combined):
        sets["painted"] = painted_on(held, seed)
    arrays: Arrays = {"cpu_s": np.array(cpu_s)}
    for kind, rows in sets.items():
        arrays[f"{kind}_scores"], arrays[f"{kind}_maps"] = said_of(detector, rows)
    with written_whole(target) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # numpy 2.3 has an option of its own there


@torch.no_grad()
def said_of(detector: pg.Detector, rows: Table) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What each part says, (K, N) and (K, N, h, w), on their common scale."""
    if not isinstance(detector, pg.Combined):
        found = detector.predict(rows)
        return found.scores[None], np.stack(found.maps)[None]
    scores, maps = [], []
    for loaded in detector.loader(ComputeOptions()).batches(rows):
        if loaded.batch is None or loaded.failures:
            raise SystemExit(f"cannot be read: {loaded.failures}")
        batch = loaded.batch
        own = detector._standardised([part.judged(batch) for part in detector.components.values()])
        scores.append(own[0].T.numpy())
        maps.append(own[1].transpose(0, 1).numpy())
    return np.concatenate(scores, 1), np.concatenate(maps, 1)


def painted_on(held: Table, seed: int) -> Table:
    rows = [Row(row.path, "test", 0, group=row.group, pixels=row.image()) for row in held]
    return painted(Table(rows), KINDS_PAINTED, seed)


# -- figures -----------------------------------------------------------------------------------------------------------


def truth_of(row: Row) -> tuple[tuple[int, int], npt.NDArray[np.bool_] | None]:
    """The size of the image, and the mask of its defect; None: it is good."""
    image = row.image()
    size = (image.shape[0], image.shape[1])
    if row.label != 1:
        return size, None
    return size, row.mask > 0 if isinstance(row.mask, np.ndarray) else row.truth(size)


class Said:
    """What the parts said of images, and how any average of it is to be judged."""

    def __init__(self, arrays: Arrays, kind: str, rows: Table) -> None:
        self.scores, self.maps = arrays[f"{kind}_scores"], arrays[f"{kind}_maps"]
        self.truth, self.labels = [truth_of(row) for row in rows], np.array([row.label for row in rows])
        self.types = np.array([row.defect or "good" for row in rows])
        self.known: dict[Weights, Tool] = {}

    def __call__(self, *weights: float) -> Tool:
        if weights not in self.known:
            share = np.array(weights, np.float32) / np.float32(sum(weights))
            mixed = np.tensordot(share, self.maps, 1).astype(np.float32)  # (N, h, w)
            maps = [resize_map(map_, size) for map_, (size, _) in zip(mixed, self.truth, strict=True)]
            curves = PixelCurves()
            for map_, (_, mask) in zip(maps, self.truth, strict=True):
                curves.update(map_, mask)
            tables = CountTables(curves.ok_quantiles(OK_LEVELS))
            for map_, (_, mask) in zip(maps, self.truth, strict=True):
                tables.update(map_, mask)
            self.known[weights] = Tool(share @ self.scores, tables, self.labels, self.types)
        return self.known[weights]


def load(out: Path, name: str, seed: int) -> Arrays:
    with np.load(out / f"{name}-{seed}.npz", allow_pickle=False) as stored:
        return dict(stored)


def figures(out: Path, test: Table, seeds: Sequence[int], repeats: int, parts: Sequence[str]) -> dict[str, Any]:
    """A row a combination, the mean over seeds."""
    all_of_them = "+".join(parts)
    together = [Said(load(out, all_of_them, seed), "test", test) for seed in seeds]
    models: dict[str, list[Tool]] = {
        f"{name} alone": [Said(load(out, name, seed), "test", test)(1) for seed in seeds] for name in ALONE
    }
    places = range(len(parts))
    for chosen in itertools.chain.from_iterable(itertools.combinations(places, n + 1) for n in places):
        share = tuple(float(k in chosen) for k in places)
        models["+".join(parts[k] for k in chosen)] = [said(*share) for said in together]
        if len(chosen) > 1 and "fastflow" in (parts[k] for k in chosen):
            flow = tuple(float(name == "fastflow") for name in parts)
            scored = [said(*share)._replace(scores=said(*flow).scores) for said in together]
            models["+".join(parts[k] for k in chosen) + ", images ranked by fastflow"] = scored
    cpu = {f"{name} alone": np.mean([load(out, name, seed)["cpu_s"] for seed in seeds]) for name in ALONE}
    cpu[all_of_them] = np.mean([load(out, all_of_them, seed)["cpu_s"] for seed in seeds])
    groups = [row.group for row in test]

    def mean(tools: list[Tool], weight: npt.NDArray[np.int64]) -> list[float]:
        judged = [tool.judge(weight) for tool in tools]
        return [float(np.mean([one[m] for one in judged])) for m in METRICS]

    once = np.ones(len(groups), np.int64)
    rows = []
    for name, tools in models.items():
        row: dict[str, Any] = {"methods": name, "figures": mean(tools, once), "cpu_s": cpu.get(name)}
        for other in AGAINST:
            if name != other and other in models:
                row[f"minus {other}"] = paired(partial(mean, tools), partial(mean, models[other]), groups, repeats)
        rows.append(row)
    return {"rows": rows}


def table(records: list[Record]) -> str:
    heads = ["methods", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", *(f"minus {other}" for other in AGAINST)]
    lines = []
    for row in (row for record in records if record["part"] == "figures" for row in record["rows"]):
        cells = [row["methods"], *(f"{value:.3f}" for value in row["figures"])]
        cells += [differences(row.get(f"minus {other}", [])) for other in AGAINST]
        lines.append([*cells, "" if row["cpu_s"] is None else f"{row['cpu_s']:.0f}"])
    return markdown([*heads, "fit, CPU s"], lines)


# -- weights -----------------------------------------------------------------------------------------------------------


def weights(out: Path, good: Table, test: Table, seeds: Sequence[int]) -> dict[str, Any]:
    """How equal weights, painted and known ones do, for two and for three parts."""
    rows = []
    units = np.array([row.unit for row in test])
    labels = np.array([row.label for row in test])
    for parts in ((0, 2), (0, 1, 2)):
        steps = (w for w in itertools.product(range(STEPS + 1), repeat=3) if sum(w) == STEPS)
        grid: list[Weights] = [
            tuple(map(float, w)) for w in steps if all(w[k] == 0 for k in range(3) if k not in parts)
        ]
        equal = tuple(float(k in parts) for k in range(3))
        worth: dict[str, list[list[float]]] = {"equal": [], "painted": [], f"{KNOWN} known": []}
        picked: list[tuple[Weights, Weights]] = []
        for seed in seeds:
            arrays = load(out, "+".join(PARTS), seed)
            said = Said(arrays, "test", test)
            held = split_roles(good, 0.1, 0.1, seed).role("calibrate")
            on_painted = Said(arrays, "painted", painted_on(held, seed))
            paint = best(on_painted, grid, np.ones(len(on_painted.labels), np.int64))
            picked.append(paint)
            rng = np.random.default_rng(seed)
            for _ in range(DRAWS):
                known = draw(rng, units, labels)
                rest = (~known).astype(np.int64)
                chosen = {"equal": (equal, equal), "painted": paint, f"{KNOWN} known": best(said, grid, known * 1)}
                for name, (of_scores, of_maps) in chosen.items():
                    score, map_ = said(*of_scores).judge(rest), said(*of_maps).judge(rest)
                    worth[name].append([score["image_auroc"], (map_["aupro_30"] + map_["aupro_05"]) / 2])
        for name, values in worth.items():
            auroc, pro = np.mean(values, axis=0)
            which = "; ".join(f"{shown(s)}, {shown(m)}" for s, m in picked) if name == "painted" else ""
            rows.append(["+".join(PARTS[k] for k in parts), name, f"{auroc:.3f}", f"{pro:.3f}", which])
    return {"rows": rows}


def table_of_weights(records: list[Record]) -> str:
    heads = ["parts", "weights", "image AUROC", "mean AUPRO", "chosen for scores, maps"]
    return markdown(heads, [row for record in records if record["part"] == "weights" for row in record["rows"]])


def shown(weights: Weights) -> str:
    return "/".join(f"{w:g}" for w in weights)


def draw(rng: np.random.Generator, units: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which images are known: whole groups at random until there are ten defects and a good image among them."""
    known = np.zeros(len(units), np.bool_)
    for unit in rng.permutation(np.unique(units)):
        known |= units == unit
        if labels[known].sum() >= KNOWN and not labels[known].all():
            break
    return known


def best(said: Said, grid: Sequence[Weights], weight: npt.NDArray[np.int64]) -> tuple[Weights, Weights]:
    """The weights of the scores with the highest image AUROC, those of the maps with the highest mean AUPRO."""
    judged = {w: said(*w).judge(weight) for w in grid}
    return (
        max(grid, key=lambda w: judged[w]["image_auroc"]),
        max(grid, key=lambda w: judged[w]["aupro_30"] + judged[w]["aupro_05"]),
    )


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(good: Table, test: Table, size: str) -> dict[str, float]:
    """Images a second, the median of three turns through all models."""
    models = {}
    for name in (*ALONE, "fastflow", "patchcore+fastflow", "+".join(PARTS)):
        own = {} if name in ALONE else settings_of(name, size)
        own |= {key: 1 for key in own if key.endswith("epochs")}
        models[name] = build(name, None, own).fit(good, memory_gb=2.0)
    for detector in models.values():
        detector.predict(test[:1])
    calls = {name: partial(detector.predict, test[:SOME]) for name, detector in models.items()}
    return {name: SOME / middle(values) for name, values in turns(calls, 3, warm_up=0).items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("do", choices=("figures", "weights", "speed"))
    parser.add_argument("out", type=Path, help="folder for what each part says")
    only_set(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", choices=("area:256", "area:512"), default="area:512")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="scale of the image that every part but PatchCore reads"
    )
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the combination, key=value")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--parts", nargs="+", choices=[name for name in METHODS if name != "combined"], default=PARTS)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    given.out.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(given.data)
    good, test = as_train(dataset.train), dataset.test
    key = {"set": given.data.name, "size": given.size}
    if given.do == "speed":
        yield Case({"part": "speed", **key}, partial(speed, good, test, given.size))
        return
    for seed, name in itertools.product(given.seeds, (*ALONE, "+".join(given.parts))):
        target = given.out / f"{name}-{seed}.npz"
        if not target.exists():
            keep(target, learned(name, good, seed, given), good, test, seed)
    key["seeds"] = given.seeds
    if given.do == "figures":
        make = partial(figures, given.out, test, given.seeds, given.repeats, given.parts)
        yield Case({"part": "figures", **key, "parts": list(given.parts), "scale": given.scale}, make)
    else:
        yield Case({"part": "weights", **key}, partial(weights, given.out, good, test, given.seeds))


SUITE = Suite(cases, arguments, {"": table, "weights": table_of_weights})
