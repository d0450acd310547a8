"""Fusion compared: single layers, every kind, several scales and adapted stages, by one scorer on the same images.

    python -m bench run fusion OUT --set DATA/magnetic_tile [--n 100] [--only WORD] [--methods patchcore padim]
    python -m bench run fusion OUT --cloth twill [--n 60] [--repeats 300]

Fits every variant with PatchCore (1 % of the patches) and PaDiM (100 channels) on the same good images, all at 256 px,
and saves OUT/METHOD--VARIANT.npz: scores (N,) and maps (N, h, w). What is there is left alone, so a killed run goes on.
Then a record a method: AUPRO@0.3, AUPRO@0.05 and image AUROC, each the mean over the types (DATA) or sizes (cloth) of
defects, and their differences to ``concat`` with 95 % intervals, bootstrapped in pairs by group.

DATA is squeezed to 256 x 256 first (bench/tools/squeeze.py). Of its training images ``--n`` are taken, evenly spread;
a tenth of them is held back for validation in every variant, though only adaptation needs it. Cloth: ``n`` woven
pieces of 128 px to learn from; judged are 24 others, as they are and with painted defects of 8, 16 and 32 px.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.harness import Case, Record, Suite, markdown
from bench.harness.textures import judged, pieces
from pickglass.data import Row, Table, load_dataset, read_image, read_mask, resize_map
from pickglass.data.files import written_whole
from pickglass.features.shared import SharedFeatures
from pickglass.methods import METHODS, Detector
from pickglass.metrics import OK_LEVELS, CountTables, PixelCurves, auroc, bootstrap, resampled

BACKBONE, SIZE = "efficientnet_lite0", 256
BASE = "concat"
SIZES = (8, 16, 32)  # px, of the defects on cloth
STAGES = ("stage2", "stage3", "stage4", "stage5")
PAIR = "stage3+stage5"
METRICS = ("AUPRO@0.3", "AUPRO@0.05", "image AUROC")


def variants() -> dict[str, Callable[[Detector], Detector]]:
    """What becomes of a detector that reads stage3 and stage5; single layers are read by themselves."""
    made: dict[str, Callable[[Detector], Detector]] = {BASE: lambda d: d.fused("concat")}
    for stage in STAGES:
        made[stage] = lambda d, stage=stage: d.configured({**d.configuration(), "layers": (stage,)})  # type: ignore[misc]
    kinds = {"concat": {}, "pyramid": {"dims": 128}, "bilinear": {"dims": 256}, "attention": {}}
    for kind, options in kinds.items():
        for normalise in ("none", "standardise", "whiten"):
            name = kind if normalise == "none" else f"{kind}, {normalise}d".replace("whitend", "whitened")
            made[name] = lambda d, k=kind, n=normalise, o=options: d.fused(k, normalise=n, **o)  # type: ignore[misc]
    scales = (1.0, 0.5)
    made["concat, scales 1 + 0.5"] = lambda d: d.fused("concat", scales=scales)
    made["pyramid, scales 1 + 0.5"] = lambda d: d.fused("pyramid", dims=128, normalise="standardise", scales=scales)
    made["concat, adapted"] = lambda d: d.fused("concat").adapted("stage3+stage4+stage5", epochs=4, images=48)
    return made


class Judged(NamedTuple):
    """Test images in order: rows, masks, the type or size that each belongs to ("good"), groups."""

    rows: list[Row]
    masks: list[Any]
    types: np.ndarray[Any, Any]
    groups: list[str | None]


def images_of(given: argparse.Namespace) -> tuple[Table, Judged]:
    if given.cloth:
        train, held_out = pieces(given.cloth, None, max(given.n, 24))
        found = [item for item in judged(given.cloth, held_out[:24]) if item.size in (0, *SIZES)]
        taught = [
            Row(f"good {i}", role="train", pixels=piece.image, group=piece.group)
            for i, piece in enumerate(train[: given.n])
        ]
        rows = [Row(f"test {i}", role="test", pixels=item.image, group=item.group) for i, item in enumerate(found)]
        types = np.array([f"{item.size} px" if item.size else "good" for item in found])
        return Table(taught), Judged(rows, [item.mask for item in found], types, [item.group for item in found])
    dataset = load_dataset(given.set)
    good = list(dataset.train)
    n = min(given.n, len(good))
    test = list(dataset.test)
    sizes = [read_image(row.path).shape[:2] for row in test]
    masks = [None if row.mask is None else read_mask(row.mask, size) for row, size in zip(test, sizes, strict=True)]
    types = np.array([row.defect or "good" for row in test])
    return Table([good[i * len(good) // n] for i in range(n)]), Judged(test, masks, types, [r.group for r in test])


def fit(given: argparse.Namespace) -> None:
    train, test = images_of(given)
    given.out.mkdir(parents=True, exist_ok=True)
    n = len(train) + len(test.rows)
    with SharedFeatures(BACKBONE, "default", 0, STAGES, n, 2.0) as shared:
        for name, change in variants().items():
            for method in given.methods:
                target = given.out / f"{method}--{name}.npz"
                if target.exists() or (given.only and given.only not in name):
                    continue
                settings = {"backbone": BACKBONE, "layers": PAIR, "size": SIZE}
                settings |= {"ratio": 0.01} if method == "patchcore" else {"dims": 100}
                detector = change(METHODS[method].configured(settings))
                detector.shared_features = shared
                detector.fit(train, validate=0.1, calibrate=0, seed=0)
                found = detector.predict(Table(test.rows))
                with written_whole(target) as temporary:
                    np.savez_compressed(temporary, scores=found.scores, maps=np.stack(found.maps))


class Tool:
    """One variant's figures as a function of weights."""

    def __init__(self, file: Path, test: Judged) -> None:
        with np.load(file, allow_pickle=False) as stored:
            saved = dict(stored)
        maps = [
            resize_map(found, (mask.shape if mask is not None else _side(test)))
            for found, mask in zip(saved["maps"], test.masks, strict=True)
        ]
        curves = PixelCurves()
        for found, mask in zip(maps, test.masks, strict=True):
            curves.update(found, mask)
        self.tables = CountTables(curves.ok_quantiles(OK_LEVELS))
        for found, mask in zip(maps, test.masks, strict=True):
            self.tables.update(found, mask)
        self.types = test.types
        self.auroc = resampled(auroc, (test.types != "good").astype(int), saved["scores"])

    def figures(self, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """AUPRO@0.3, AUPRO@0.05 and image AUROC, means over the types: (3,)."""
        found = []
        for kind in sorted(set(self.types) - {"good"}):
            own = weight * ((self.types == kind) | (self.types == "good"))
            found.append([self.tables.aupro(own, 0.3), self.tables.aupro(own, 0.05), self.auroc(own)])
        return np.mean(found, axis=0)  # type: ignore[no-any-return]


def _side(test: Judged) -> tuple[int, int]:
    height, width = next(mask.shape for mask in test.masks if mask is not None)
    return height, width


def figures(method: str, given: argparse.Namespace) -> dict[str, Any]:
    _, test = images_of(given)
    files = {name: given.out / f"{method}--{name}.npz" for name in variants()}
    tools = {name: Tool(file, test) for name, file in files.items() if file.exists()}
    names = list(tools)
    if BASE not in tools:
        raise SystemExit(f"{given.out} lacks {method}--{BASE}.npz: run it without --only first")

    def all_of(weight: np.ndarray[Any, Any], tools: dict[str, Tool] = tools) -> np.ndarray[Any, Any]:
        figures = np.stack([tool.figures(weight) for tool in tools.values()])  # (V, 3)
        return np.stack([figures, figures - figures[list(tools).index(BASE)]]).reshape(-1)

    found = bootstrap(all_of, test.groups, repeats=given.repeats)
    values, differences = found.value.reshape(2, len(names), 3)
    low, high = (ends.reshape(2, len(names), 3)[1] for ends in (found.low, found.high))
    rows = {
        name: {"figures": values[i].tolist(), "minus": np.stack([differences, low, high], 2)[i].tolist()}
        for i, name in enumerate(names)
    }
    return {"rows": rows}


def table(records: list[Record]) -> str:
    """A table a method and set of images."""
    heads = ["layers", *(head for metric in METRICS for head in (metric, f"minus {BASE}"))]
    tables = []
    for record in records:
        lines = []
        for name, row in record["rows"].items():
            cells = [name]
            for value, (difference, low, high) in zip(row["figures"], row["minus"], strict=True):
                span = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
                cells += [f"{value:.3f}", "" if name == BASE else span]
            lines.append(cells)
        tables.append(f"{record['set']}, {record['method']}\n\n{markdown(heads, lines)}")
    return "\n\n".join(tables)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--set", type=Path, metavar="DATA")
    images.add_argument("--cloth", choices=["plain", "twill", "satin"])
    parser.add_argument("--n", type=int, default=100, help="good images to learn from")
    parser.add_argument("--methods", nargs="+", default=["patchcore", "padim"], choices=["patchcore", "padim"])
    parser.add_argument("--only", help="variants whose name holds this word")
    parser.add_argument("--repeats", type=int, default=300)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    fit(given)
    for method in given.methods:
        key = {"set": given.cloth or given.set.name, "method": method, "n": given.n, "repeats": given.repeats}
        yield Case(key, partial(figures, method, given))


SUITE = Suite(cases, arguments, {"": table})
