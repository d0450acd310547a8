"""Single models, the tiled ensemble and native tiling, side by side: one JSON line a cell, resumable.

python -m bench.tiled_table cloth FOLDER
    weaves a data set of 1024 x 1024 px: 24 good pieces to learn from, 8 good ones to judge, and for each size of 4, 8,
    16 and 32 px of longest extent seven with a painted defect, one of each kind. The size is the defect type, so the
    figures by type say from which size on a way of looking sees a defect.
python -m bench.tiled_table run OUT DATA... [--methods patchcore,padim] [--ways ...] [--preset quick] [--roi MASK]
    fits and judges each cell (data set, method, way) in a process of its own and adds a line to OUT/cells.jsonl; scores
    and maps go to OUT/*.npz. What is there already is left alone, so a killed run goes on.
python -m bench.tiled_table table OUT
    prints Markdown. Times and memory of cells that were measured beside other work are in brackets.
python -m bench.tiled_table page OUT DATA OUT.html [--methods patchcore,padim] [--images 8]
    pictures: the defects that the ways disagree about most and the good images with the highest values, the maps of all
    ways side by side, each in units of the highest value of its own good test images.

Ways: ``single 256`` and ``single 512`` squeeze the image; ``ensemble`` squeezes it to 512 px and has nine heads for
tiles of 256 every 128; ``shared`` has one head for the nine; ``native`` does not scale and has one head for tiles of
256 px side by side. A hit is a defect region in which the map exceeds every value of the good test images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.pieces import ON_CLOTH
from pickglass.app.fit import build
from pickglass.app.pages.build import PAGE_ERRORS, environment
from pickglass.app.pages.side_by_side import SameImage, Seen, draw_same, kind_of
from pickglass.app.testing.evaluate import evaluate
from pickglass.data import Row, load_dataset, paint, read_mask, with_roi
from pickglass.data.files import written_whole
from pickglass.data.painting.cloth import Cloth, weave
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
SIZES = (4, 8, 16, 32)  # px
PIECE = 1024  # px
BUSY = 1.5  # load average from which on times are put in brackets


# -- the cloth ---------------------------------------------------------------------------------------------------------


def cloth(folder: Path) -> None:
    """The folder in MVTec AD layout."""
    own, rng = Cloth("twill"), np.random.default_rng(0)

    def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            Image.fromarray(pixels).save(temporary)

    for i in range(24):
        write(folder / "train" / "good" / f"{i:02d}.png", weave(own, (PIECE, PIECE), i))
    for i in range(8):
        write(folder / "test" / "good" / f"{i:02d}.png", weave(own, (PIECE, PIECE), 100 + i))
    for n, (size, kind) in enumerate(itertools.product(SIZES, ON_CLOTH)):
        painted = paint(weave(own, (PIECE, PIECE), 200 + n), kind, size, rng)
        marked = np.where(painted.mask, np.uint8(255), np.uint8(0))
        write(folder / "test" / f"{size:02d}px" / f"{kind}.png", painted.image)
        write(folder / "ground_truth" / f"{size:02d}px" / f"{kind}_mask.png", marked)


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
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "file_mb": size / 1e6,
        "load": os.getloadavg()[0],
        **{key: metrics[key] for key in ("image_auroc", "aupro_30", "aupro_05")},
        "by_type": {
            kind: {key: own[key] for key in ("image_auroc", "aupro_30", "aupro_05")}
            for kind, own in metrics.by_type.items()
        },
        **hits(list(prediction)),
        "scores": {found.row.path: (found.score, found.row.label) for found in prediction},
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


def run(given: argparse.Namespace) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "cells.jsonl"
    done = {(c["data"], c["method"], c["way"]) for c in read(given.out) if "error" not in c}
    changes = {key: json.loads(value) for key, value in (text.split("=", 1) for text in given.set)}
    for data, method, way in itertools.product(given.data, given.methods.split(","), given.ways or WAYS):
        name = data.name if given.roi is None else f"{data.name}, {given.roi.stem}"
        if (name, method, way) in done:
            continue
        npz = given.out / f"{name.replace(', ', '-')}-{method}-{named(way)}.npz"
        preset = given.preset if given.preset in METHODS[method].presets else None
        roi = None if given.roi is None else str(given.roi)
        job = json.dumps([str(data), method, way, preset, changes, roi, str(npz)])
        out = subprocess.run([sys.executable, __file__, "cell", job], capture_output=True, text=True)
        failed = {"error": (out.stderr.strip().splitlines() or [f"ended with {out.returncode}"])[-1]}
        result = failed if out.returncode else json.loads(out.stdout.strip().splitlines()[-1])
        about = {"data": name, "method": method, "way": way, "preset": preset, "changes": changes}
        with lines.open("a") as file:
            file.write(json.dumps({**about, **result}) + "\n")
        print(json.dumps({**about, **{k: v for k, v in result.items() if k != "scores"}}), flush=True)


def named(way: str) -> str:
    """A way as a part of a file name."""
    return way.replace(" ", "_").replace("/", "-")


def read(out: Path) -> list[dict[str, Any]]:
    """The cells; of one that was tried again, the last."""
    lines = out / "cells.jsonl"
    cells = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    return list({(c["data"], c["method"], c["way"]): c for c in cells}.values())


# -- tables ------------------------------------------------------------------------------------------------------------


def table(given: argparse.Namespace) -> None:
    cells = read(given.out)
    for data in dict.fromkeys(c["data"] for c in cells):
        own = [c for c in cells if c["data"] == data]
        kinds = list(dict.fromkeys(kind for c in own for kind in c.get("by_type", {})))
        kinds = kinds if len(kinds) > 1 else []
        heads = ["method", "way", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", *(f"{kind}" for kind in kinds), "hits"]
        heads += ["fit s", "images/s", "peak MB", "file MB"]
        print(f"\n{data}; by type AUPRO@0.05\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for c in own:
            if "error" in c:
                print(f"| {c['method']} | {c['way']} | {c['error']} |{' |' * (len(heads) - 3)}")
                continue
            figures = [c["image_auroc"], c["aupro_30"], c["aupro_05"], *(c["by_type"][k]["aupro_05"] for k in kinds)]
            texts = ["–" if f is None else f"{f:.3f}" for f in figures]
            costs = [f"{c['fit_s']:.1f}", f"{c['images_per_s']:.2f}", f"{c['peak_rss_mb']:,}"]
            costs = [f"({text})" for text in costs] if c["load"] > BUSY else costs
            texts += [f"{c['hits']} of {c['regions']}", *costs, f"{c['file_mb']:.0f}"]
            print(f"| {c['method']} | {c['way']} | {' | '.join(texts)} |")


# -- pictures ----------------------------------------------------------------------------------------------------------


class Saved:
    """The maps of a cell at the original size, in units of the highest value of its good images."""

    def __init__(self, file: Path, good: set[str]) -> None:
        self.stored = np.load(file)
        paths = self.stored["paths"].tolist()
        self.at = {Path(path).parts[-2:]: i for i, path in enumerate(paths)}  # the data set may have moved
        self.highest = 1.0
        self.highest = max(float(self.map(path).max()) for path in good)

    def map(self, path: str) -> np.ndarray[Any, Any]:
        i = self.at[Path(path).parts[-2:]]
        size, window = (tuple(self.stored[name][i].tolist()) for name in ("sizes", "windows"))
        return Found(Row(path), 0.0, self.stored[f"map{i}"], size, window).full_map() / self.highest

    def peak(self, row: Row) -> float:
        """The highest value of the map on the defect, or on the whole of a good image."""
        full = self.map(row.path)
        mask = None if row.mask is None else read_mask(row.mask, (full.shape[0], full.shape[1]))
        return float((full if mask is None or not mask.any() else full[mask]).max())


PAGE = """
{% extends "base.html.j2" %}
{% block content %}
<p>Colours run from half the highest value of the good test images to twice it; so do the numbers, which are the peak on
the defect, or of the good image. Above 1: told apart from every good image.</p>
{% for method, images in methods %}
<section><h2>{{ method }}</h2>
{% with many = true %}{% include "side_by_side.html.j2" %}{% endwith %}
</section>
{% endfor %}
{% endblock %}
"""


def page(given: argparse.Namespace) -> None:
    data, target = given.data
    rows = list(load_dataset(data).test)
    good = {row.path for row in rows if row.label == 0}
    methods = []
    for method in given.methods.split(","):
        files = {way: given.out / f"{data.name}-{method}-{named(way)}.npz" for way in given.ways or WAYS}
        saved = {way: Saved(file, good) for way, file in files.items() if file.is_file()}
        peaks = {row.path: {way: own.peak(row) for way, own in saved.items()} for row in rows}
        bad = [row for row in rows if row.label == 1 and row.mask is not None]
        bad.sort(key=lambda row: min(peaks[row.path].values()) - max(peaks[row.path].values()))
        noisy = sorted((row for row in rows if row.label == 0), key=lambda row: -max(peaks[row.path].values()))
        # those that the ways disagree about most and least, and the good images that alarm
        chosen = {row.path: row for row in [*bad[: given.images], *bad[-2:], *noisy[:2]]}
        methods.append((method, [drawn(row, saved, peaks[row.path]) for row in chosen.values()]))
    values = {"title": f"{data.name}: single models and tiles", "methods": methods}
    with written_whole(target) as temporary:
        temporary.write_text(environment().from_string(PAGE).render(values), encoding="utf-8", errors=PAGE_ERRORS)


def drawn(row: Row, saved: dict[str, Saved], peaks: dict[str, float]) -> SameImage:
    """An image and its maps in all ways."""
    image = row.image()
    mask = row.truth((image.shape[0], image.shape[1]))
    seen = [Seen(f"{way}: {peaks[way]:.2f}", own.map(row.path), (0.5, 2.0)) for way, own in saved.items()]
    return draw_same("/".join(Path(row.path).parts[-2:]), kind_of(row.label, row.defect), image, mask, seen)


def main() -> None:
    if sys.argv[1:2] == ["cell"]:
        print(json.dumps(cell(*json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cloth", "run", "table", "page"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--methods", default="patchcore,padim")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS))
    parser.add_argument("--preset")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--roi", type=Path, help="mask of what counts; its name becomes part of the data set's")
    parser.add_argument("--images", type=int, default=8)
    given = parser.parse_args()
    {"cloth": lambda g: cloth(g.out), "run": run, "table": table, "page": page}[given.what](given)


if __name__ == "__main__":
    main()
