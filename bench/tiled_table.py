"""Single models, the tiled ensemble and native tiling, side by side.

    python -m bench run tiled_table OUT DATA... [--methods patchcore,padim] [--ways ...] [--preset quick] [--roi MASK]

Fits and judges each cell (data set, method, way) in a process of its own; scores and maps go to OUT/*.npz, of which
bench/tools/tiled_page.py makes a page. bench/tools/cloth.py weaves a data set for it.

Ways: ``single 256`` and ``single 512`` squeeze the image; ``ensemble`` squeezes it to 512 px and has nine heads for
tiles of 256 every 128; ``shared`` has one head for the nine; ``native`` does not scale and has one head for tiles of
256 px side by side. A hit is a defect region in which the map exceeds every value of the good test images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Case, Record, Suite, apart_or_error, markdown, peak_mb
from pickglass.app.fit import build
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import load_dataset, read_mask, with_roi
from pickglass.data.files import written_whole
from pickglass.methods import METHODS
from pickglass.metrics.labelling import connected_regions
from pickglass.result import Found

Way = tuple[dict[str, Any], dict[str, Any] | None]
WAYS: dict[str, Way] = {
    "single 256": ({"size": 256}, None),
    "single 512": ({"size": 512}, None),
    "ensemble 512/256/128": ({}, {"size": 512, "tile": 256, "stride": 128}),
    "shared 512/256/128": ({}, {"size": 512, "tile": 256, "stride": 128, "heads": 1}),
    "native 256/256": ({}, {"size": "native", "tile": 256, "stride": 256, "heads": 1}),
}
BUSY = 1.5  # load average from which on times are put in brackets


# -- cells -------------------------------------------------------------------------------------------------------------


def cell(
    data: str, method: str, way: str, preset: str | None, changes: dict[str, Any], roi: str | None, npz: str
) -> dict[str, Any]:
    dataset = load_dataset(data)
    train, test = with_roi(dataset.train, roi), with_roi(dataset.test, roi)
    settings, tiling = WAYS[way]
    detector = build(method, preset, {**changes, **settings}, tiling)
    began = time.perf_counter()
    detector.fit(train, calibrate=0)
    fit_s = time.perf_counter() - began
    detector.predict(test[:1])  # sets the engine up
    began = time.perf_counter()
    prediction = detector.predict(test)
    predict_s = time.perf_counter() - began
    metrics = evaluate(prediction)
    size = detector.save(f"{npz}.safetensors").stat().st_size
    Path(f"{npz}.safetensors").unlink()
    arrays = {f"map{i}": found.map for i, found in enumerate(prediction)}
    windows, sizes = ([getattr(f, n) for f in prediction] for n in ("window", "size"))
    with written_whole(Path(npz)) as temporary:
        np.savez_compressed(
            temporary,
            scores=prediction.scores,
            paths=np.array([row.path for row in prediction.rows]),
            windows=np.array(windows),
            sizes=np.array(sizes),
            allow_pickle=False,
            **arrays,
        )
    return {
        "fit_s": fit_s,
        "images_per_s": len(prediction) / predict_s,
        "peak_rss_mb": peak_mb(),
        "file_mb": size / 1e6,
        "load": os.getloadavg()[0],
        **{key: metrics[key] for key in ("image_auroc", "aupro_30", "aupro_05")},
        "by_type": {
            kind: {key: own[key] for key in ("image_auroc", "aupro_30", "aupro_05")}
            for kind, own in metrics.by_type.items()
        },
        **hits(list(prediction)),
    }


def hits(found: list[Found]) -> dict[str, Any]:
    """Regions whose peak exceeds every value of the good images, in all and by type."""
    highest = max((float(one.full_map().max()) for one in found if one.row.label == 0), default=float("inf"))
    by_type: dict[str, list[int]] = {}
    for one in found:
        if one.row.mask is None:
            continue
        labels, areas = connected_regions(read_mask(one.row.mask, one.size))
        full, own = one.full_map(), by_type.setdefault(str(one.row.defect), [0, 0])
        own[0] += sum(float(full[labels == i + 1].max()) > highest for i in range(len(areas)))
        own[1] += len(areas)
    return {
        "hits": sum(n for n, _ in by_type.values()),
        "regions": sum(n for _, n in by_type.values()),
        "hits_by_type": by_type,
    }


def named(way: str) -> str:
    """A way as a part of a file name."""
    return way.replace(" ", "_").replace("/", "-")


# -- tables ------------------------------------------------------------------------------------------------------------


def table(rows: list[Record]) -> str:
    """A table a data set. Times and memory that were measured beside other work are in brackets."""
    tables = []
    for data in dict.fromkeys(c["data"] for c in rows):
        own = [c for c in rows if c["data"] == data]
        kinds = list(dict.fromkeys(kind for c in own for kind in c.get("by_type", {})))
        kinds = kinds if len(kinds) > 1 else []
        heads = ["method", "way", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", *kinds, "hits"]
        heads += ["fit s", "images/s", "peak MB", "file MB"]
        lines = []
        for c in own:
            if "error" in c:
                lines.append([c["method"], c["way"], c["error"], *[""] * (len(heads) - 3)])
                continue
            figures = [c["image_auroc"], c["aupro_30"], c["aupro_05"], *(c["by_type"][k]["aupro_05"] for k in kinds)]
            texts = ["–" if f is None else f"{f:.3f}" for f in figures]
            costs = [f"{c['fit_s']:.1f}", f"{c['images_per_s']:.2f}", f"{c['peak_rss_mb']:,}"]
            costs = [f"({text})" for text in costs] if c["load"] > BUSY else costs
            texts += [f"{c['hits']} of {c['regions']}", *costs, f"{c['file_mb']:.0f}"]
            lines.append([c["method"], c["way"], *texts])
        tables.append(f"{data}; by type AUPRO@0.05\n\n{markdown(heads, lines)}")
    return "\n\n".join(tables)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder for scores and maps, which bench/tools/tiled_page.py shows")
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--methods", default="patchcore,padim")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS))
    parser.add_argument("--preset")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--roi", type=Path, help="mask of what counts; its name becomes part of the data set's")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    given.out.mkdir(parents=True, exist_ok=True)
    changes = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    for data, method, way in itertools.product(given.data, given.methods.split(","), given.ways or WAYS):
        name = data.name if given.roi is None else f"{data.name}, {given.roi.stem}"
        preset = given.preset if given.preset in METHODS[method].presets else None
        npz = given.out / f"{name.replace(', ', '-')}-{method}-{named(way)}.npz"
        key = {"data": name, "method": method, "way": way, "preset": preset, "changes": changes}
        # one that the memory does not hold ends its own cell alone
        yield Case(key, partial(apart_or_error, cell, data, method, way, preset, changes, given.roi, npz))


SUITE = Suite(cases, arguments, {"": table})
