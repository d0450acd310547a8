"""PaDiM against the peer, in one run on one machine: fit, predict, and peak memory for two numbers of images.

    python -m bench.padim [DATA] --peer-python PY --peer-script SCRIPT [--memory 50 245]

DATA is a folder in MVTec AD layout; without one, ``--images`` made-up textures of ``--pixels`` are written as PNG, four
of them with a painted hole as the defective ones. Both tools get the same folder (the training images stand in its
test folder too, so that prediction is timed on more than a few), EfficientNet-Lite0 with the same weights, the same
three layers, 100 channels and 256 px, and 16 images at once. Neither imports nor the building of the network are
counted: ours fits twice, and the second goes on with the network and the engine of the first, as the peer's timer
begins once its network is built. That set-up is ``set_up_s``. Of three predictions the median counts.
Memory is the peak resident set of a process of its own that fits that many of the images and judges all test images; on
folders with fewer images it is left out. Without a peer only our figures are printed. Prints one JSON line.
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
import torch
from PIL import Image

import pickglass as pg
from pickglass.data import paint
from pickglass.features import FeatureExtractor
from pickglass.features.engine import BackboneEngine
from pickglass.methods.padim import PaDiM
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


def shared_folder(data: Path, out: Path, most: int | None = None) -> Path:
    """Symbolic links in MVTec AD layout: train, or its first ``most`` images; test = test and these."""
    seen = 0
    for source in sorted(data.rglob("*.*")):
        inside = source.relative_to(data)
        if not source.is_file() or inside.parts[0] not in ("train", "test", "ground_truth"):
            continue
        if inside.parts[0] == "train":
            seen += 1
            if most is not None and seen > most:
                continue
            link(source, out / "test" / "good" / f"train_{inside.name}")
        link(source, out / inside)
    return out


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def detector() -> PaDiM:
    return PaDiM(layers=list(LAYERS), dims=DIMS, size=SIZE)


def ours(folder: Path) -> Figures:
    data = pg.load_dataset(folder)
    BackboneEngine(FeatureExtractor("efficientnet_lite0", list(LAYERS)), "cpu")(
        torch.zeros(1, 3, SIZE, SIZE)
    )  # imports
    start = time.perf_counter()
    BackboneEngine(FeatureExtractor("efficientnet_lite0", list(LAYERS)), "cpu")(torch.zeros(1, 3, SIZE, SIZE))
    set_up_s = time.perf_counter() - start
    found = detector()
    for _ in range(2):
        start = time.perf_counter()
        found.fit(data, calibrate=0, batch=BATCH)
        fit_s = time.perf_counter() - start
    speeds = []
    for _ in range(3):
        start = time.perf_counter()
        found.predict(data.test, batch=BATCH)
        speeds.append(len(data.test) / (time.perf_counter() - start))
    return {"fit_s": fit_s, "set_up_s": set_up_s, "images_per_s": sorted(speeds)[1], **found.provenance.details}


def own_peak(folder: Path) -> int:
    """Peak resident set in MB of a fresh process that runs :func:`once`."""
    command = [sys.executable, __file__, str(folder), "--once"]
    return int(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)["rss_mb"])


def once(folder: Path) -> None:
    """Fit and predict, one image's result at a time, and print the peak."""
    data = pg.load_dataset(folder)
    found = detector().fit(data, calibrate=0, batch=BATCH)
    for _ in found.stream(data.test, batch=BATCH):
        pass
    print(json.dumps({"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def peer(folder: Path, python: str, script: str) -> Figures:
    command = [python, script, str(folder), "--method", "padim", "--size", str(SIZE), "--batch", str(BATCH)]
    command += ["--n-features", str(DIMS), "--layers", *LAYERS.values()]
    with tempfile.TemporaryDirectory() as scratch:
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=scratch).stdout
    figures: Figures = json.loads([line for line in out.splitlines() if line.startswith("{")][-1])
    return figures


def compare(data: Path, scratch: Path, given: argparse.Namespace) -> Figures:
    folder = shared_folder(data, scratch / "all" / data.name)
    images = len(list((folder / "train").rglob("*.*")))
    result: Figures = {"data": data.name, "images": images, "ours": ours(folder), "rss_mb": {}}
    if given.peer_python:
        result["peer"] = peer(folder, given.peer_python, given.peer_script)
        result["times_faster"] = {
            "fit": result["peer"]["fit_s"] / result["ours"]["fit_s"],
            "predict": result["ours"]["images_per_s"] / result["peer"]["images_per_s"],
        }
    for n in (n for n in given.memory if n <= images):
        few = shared_folder(data, scratch / str(n) / data.name, n)
        result["rss_mb"][n] = {"ours": own_peak(few)}
        if given.peer_python:
            result["rss_mb"][n]["peer"] = peer(few, given.peer_python, given.peer_script)["peak_rss_mb"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--memory", type=int, nargs="*", default=[50, 245], help="images of the memory runs")
    parser.add_argument("--peer-python", help="python of an environment with anomalib 2.7")
    parser.add_argument("--peer-script", help="runs the peer on a folder and prints one JSON line")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        once(given.data)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = given.data or made_up(Path(scratch) / "textures", given.images, given.pixels)
        print(json.dumps(compare(data, Path(scratch), given)))


if __name__ == "__main__":
    main()
