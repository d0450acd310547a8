"""PaDiM against the peer, in one run on one machine: fit, predict, and peak memory for two numbers of images.

    python -m bench run padim [DATA] --peer-python PY [--memory 50 245]

DATA is a folder in MVTec AD layout; without one, ``--images`` made-up textures of ``--pixels`` are written as PNG, four
of them with a painted hole as the defective ones. Both tools get the same folder (the training images stand in its
test folder too, so that prediction is timed on more than a few), EfficientNet-Lite0 with the same weights, the same
three layers, 100 channels and 256 px, and 16 images at once. Neither imports nor the building of the network are
counted: ours fits twice, and the second goes on with the network and the engine of the first, as the peer's timer
begins once its network is built. That set-up is ``set_up_s``. Of three predictions the median counts. Where the CPU has
bfloat16, ours is measured with the backbone in that precision, too.
Memory is the peak resident set of a process of its own that fits that many of the images and judges all test images; on
folders with fewer images it is left out. Without a peer only our figures are measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import pickglass as pg
from bench.harness import (
    Case,
    Record,
    Suite,
    add_peer,
    apart,
    engines,
    in_precision,
    markdown,
    rate,
    run_peer,
    seconds,
    shared_folder,
)
from bench.harness.processes import peak_mb
from pickglass.data import paint
from pickglass.features import FeatureExtractor
from pickglass.features.engine import BackboneEngine
from pickglass.methods.padim import PaDiM
from pickglass.runtime.compute import EngineName
from pickglass.testing import textures

LAYERS = {"stage2": "blocks.1", "stage3": "blocks.2", "stage5": "blocks.4"}  # ours: the peer's
DIMS, SIZE, BATCH = 100, 256, 16

Figures = dict[str, Any]


def made_up(out: Path, images: int, pixels: int) -> Path:
    """A data set of textures: the defective images show a hole."""
    rng = np.random.default_rng(0)
    for i in range(images):
        write(out / "train" / "good" / f"{i:04d}.png", textures(1, pixels, seed=i)[0])
    for i in range(4):
        image = textures(1, pixels, seed=images + i)[0]
        write(out / "test" / "good" / f"{i}.png", image)
        painted = paint(image, "hole", pixels / 10, rng, contrast=2.0)
        write(out / "test" / "hole" / f"{i}.png", painted.image)
        write(out / "ground_truth" / "hole" / f"{i}_mask.png", painted.mask.astype(np.uint8) * 255)
    return out


def write(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def detector() -> PaDiM:
    return PaDiM(layers=list(LAYERS), dims=DIMS, size=SIZE)


def ours(folder: Path, engine: EngineName) -> Figures:
    data = pg.load_dataset(folder)
    image = torch.from_numpy(textures(1, SIZE)[0]).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)

    def set_up() -> None:
        BackboneEngine(FeatureExtractor("efficientnet_lite0", list(LAYERS)), "cpu", engine)(image)

    set_up()  # imports
    set_up_s = seconds(set_up)
    found = detector()
    for _ in range(2):
        fit_s = seconds(lambda: found.fit(data, calibrate=0, batch=BATCH, engine=engine))
    speed = rate(len(data.test), lambda: found.predict(data.test, batch=BATCH, engine=engine))
    return {"fit_s": fit_s, "set_up_s": set_up_s, "images_per_s": speed, **found.provenance.details}


def own_peak(folder: str) -> int:
    """Fit and predict, one image's result at a time, and return the peak in MB; for a process of its own."""
    data = pg.load_dataset(folder)
    found = detector().fit(data, calibrate=0, batch=BATCH)
    for _ in found.stream(data.test, batch=BATCH):
        pass
    return peak_mb()


def peer(folder: Path, python: Path) -> Figures:
    arguments = ["--method", "padim", "--size", SIZE, "--batch", BATCH, "--n-features", DIMS]
    return run_peer(python, folder, *arguments, "--layers", *LAYERS.values())


def compare(data: Path, scratch: Path, given: argparse.Namespace) -> Figures:
    folder = shared_folder(data, scratch / "all" / data.name)
    images = len(list((folder / "train").rglob("*.*")))
    result: Figures = {"n_images": images, "rss_mb": {}}
    result["ours"] = {engine: ours(folder, engine) for engine in engines()}
    if given.peer_python:
        other = result["peer"] = peer(folder, given.peer_python)
        result["times_faster"] = {
            engine: {"fit": other["fit_s"] / own["fit_s"], "predict": own["images_per_s"] / other["images_per_s"]}
            for engine, own in result["ours"].items()
        }
    for n in (n for n in given.memory if n <= images):
        few = shared_folder(data, scratch / str(n) / data.name, n)
        result["rss_mb"][n] = {"ours": apart(own_peak, few)}
        if given.peer_python:
            result["rss_mb"][n]["peer"] = peer(few, given.peer_python)["peak_rss_mb"]
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--memory", type=int, nargs="*", default=[50, 245], help="images of the memory runs")
    add_peer(parser)


def measured(given: argparse.Namespace) -> Figures:
    with tempfile.TemporaryDirectory() as scratch:
        data = given.data or made_up(Path(scratch) / "textures", given.images, given.pixels)
        return compare(data, Path(scratch), given)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    made = {"data": "textures", "images": given.images, "pixels": given.pixels}
    yield Case(made if given.data is None else {"data": given.data.name}, lambda: measured(given))


def table(rows: list[Record]) -> str:
    """Both sides where the peer was there."""
    lines = []
    for row in (row for row in rows if "peer" in row):
        data = f"{row['images']} PNG of {row['pixels']} px" if "pixels" in row else f"{row['n_images']} {row['data']}"
        for engine, own in row["ours"].items():
            for what, key, unit in (("fit", "fit_s", "s"), ("predict", "images_per_s", "images/s")):
                both = [f"{side[key]:.1f} {unit}" for side in (row["peer"], own)]
                times = f"{row['times_faster'][engine][what]:.1f}"
                lines.append([f"PaDiM {what}, {data}{in_precision(engine)}", *both, times])
    return markdown(["what", "peer", "pickglass", "times faster"], lines)


SUITE = Suite(cases, arguments, {"": table})
