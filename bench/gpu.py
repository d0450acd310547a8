"""Does a GPU compute what the CPU does, for every method, and how fast is it?

    python -m bench run gpu DATA [--images 48] [--size 256] [--methods patchcore,padim,...] [--device cuda]
        [--passes 200] [--peer-python PYTHON]

Each method is fitted twice with one seed, on the CPU and on the device: by its quick preset, those that train for a few
epochs (EfficientAD: the paper's small form, 50 steps). The model of the device is saved and loaded. ``moved``: the
largest difference between scores (and cells of maps) of that model on the device and on the CPU, as a share of the
largest one; the aim is 1e-3 (1e-2 for methods that train and normalise maps). ``fits``: the rank correlation of the two
models' scores, which differ where a training rounds differently. ``reloaded``: the loaded file answers as before.
``rounded``: as ``moved``, between the device in bfloat16 (``--engine bfloat16``), where it has that, and in float32.
``ms``: of one image from its canvas to its map, in memory, as EfficientAD's paper times it (a warm-up, then the mean),
with the copy to the device and back, in float32 and, on a GPU, in float16 by autocast. With ``--peer-python`` the
peer's PatchCore, PaDiM and EfficientAD-S are timed likewise beside ours, on the same device, with the same backbone,
and a bank and dimensions as large as ours.

With ``--device cpu`` it checks itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import pickglass as pg
from bench.harness import Case, Record, Suite, add_peer, markdown, only_set, run_peer
from pickglass.app.fit import build
from pickglass.data import Table
from pickglass.features.engine import has_bfloat16
from pickglass.methods import METHODS
from pickglass.result import Prediction

FEW: dict[str, dict[str, Any]] = {
    "efficientad": {"backbone": "pdn_small", "steps": 50},
    "fastflow": {"epochs": 3, "batch": 4},
    "stfpm": {"epochs": 3},
    "reverse_distillation": {"epochs": 3},
    "asymmetric_student_teacher": {"student_hidden": 128, "teacher_epochs": 3, "student_epochs": 3, "batch": 4},
    "supersimplenet": {"epochs": 3},
}
PEER = Path(__file__).parent / "peer" / "run_latency.py"
PEERS = ("patchcore", "padim", "efficientad")


def apart(one: Prediction, other: Prediction) -> dict[str, float]:
    """The largest differences of scores and of cells, as shares of the largest ones."""
    maps, others = np.stack(one.maps), np.stack(other.maps)
    return {
        "score": float(np.abs(one.scores - other.scores).max() / np.abs(one.scores).max()),
        "map": float(np.abs(maps - others).max() / np.abs(maps).max()),
    }


def milliseconds(detector: pg.Detector, device: str, passes: int, half: bool) -> float:
    """The mean of one image, from a canvas in memory to a map in memory."""
    image = torch.rand(1, 3, *detector.input_size, generator=torch.Generator().manual_seed(0))
    detector.to(device)
    with torch.no_grad(), torch.autocast("cuda", torch.float16) if half else nullcontext():
        for n in range(passes + passes // 4):
            if n == passes // 4:
                began = time.perf_counter()
            detector(image.to(device))[1].float().cpu()
    return 1000 * (time.perf_counter() - began) / passes


def timed(detector: pg.Detector, device: str, passes: int) -> dict[str, float]:
    found = {
        f"{device}, float32": milliseconds(detector, device, passes if device != "cpu" else passes // 10 + 1, False)
    }
    if device == "cuda":
        found["cuda, float16"] = milliseconds(detector, device, passes, True)
    return found


def peer_times(method: str, detector: pg.Detector, given: argparse.Namespace) -> dict[str, float]:
    """The peer's model of the same size, as :func:`milliseconds` times ours."""
    asked: list[object] = [method, "--device", given.device, "--size", given.size, "--passes", given.passes]
    if isinstance(detector, pg.PatchCore):
        asked += ["--bank", 512 if detector.bank is None else detector.bank.shape[1]]
    if isinstance(detector, pg.PaDiM):
        kept = detector.channels if detector.channels is not None else detector.projection
        asked += ["--dims", 100 if kept is None else kept.shape[-1]]
    return run_peer(given.peer_python, *asked, script=PEER)


def measured(method: str, given: argparse.Namespace) -> dict[str, Any]:
    """Fit on both, compare, save, load, and time."""
    dataset = pg.load_dataset(given.data)
    good, test = Table(list(dataset.train)[: given.images]), Table(list(dataset.test)[: given.images])
    preset = "quick" if "quick" in METHODS[method].presets and method not in FEW else None
    settings = {**FEW.get(method, {}), "size": given.size}
    models, seconds = {}, {}
    for device in dict.fromkeys(("cpu", given.device)):
        began = time.perf_counter()
        models[device] = build(method, preset, settings).fit(good, device=device, seed=0, engine="torch")
        seconds[device] = time.perf_counter() - began
    there = models[given.device]
    on_device = there.predict(test, device=given.device, engine="torch")
    moved = apart(on_device, there.predict(test, device="cpu", engine="torch"))
    with tempfile.TemporaryDirectory() as folder:
        loaded = pg.load(there.save(Path(folder) / "model.safetensors"))
    if not isinstance(loaded, pg.Detector):
        raise TypeError(f"expected the detector that was saved, got {type(loaded).__name__}")
    rounded = {}
    if has_bfloat16(given.device):
        rounded = apart(on_device, there.predict(test, device=given.device, engine="bfloat16"))
    reloaded = apart(on_device, loaded.predict(test, device=given.device, engine="torch"))
    here = models["cpu"].predict(test, device="cpu", engine="torch")
    return {
        "device": given.device if given.device == "cpu" else torch.cuda.get_device_name(),
        "fit_s": seconds,
        "moved": moved,
        "rounded": rounded,
        "reloaded": reloaded,
        "fits": float(spearmanr(on_device.scores, here.scores).statistic),
        "ms": {name: ms for device in models for name, ms in timed(loaded, device, given.passes).items()},
        "peer_ms": peer_times(method, loaded, given) if given.peer_python and method in PEERS else {},
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    only_set(parser)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--methods", default=",".join(name for name in METHODS if name != "combined"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--passes", type=int, default=200)
    add_peer(parser)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: --device cpu checks the script itself")
    for method in given.methods.split(","):
        yield Case({"method": method, "on": given.device, "size": given.size}, partial(measured, method, given))


def table(rows: list[Record]) -> str:
    """How far the device is from the CPU, and how long an image takes on each."""
    heads = ["method", "scores apart", "maps apart", "both fits", "CPU", "GPU", "GPU, float16", "peer", "peer, float16"]
    heads += ["scores apart in bfloat16"] if any(row.get("rounded") for row in rows) else []
    lines = []
    for row in rows:
        times = [row["ms"].get("cpu, float32")]
        times += [row[of].get(f"cuda, {precision}") for of in ("ms", "peer_ms") for precision in ("float32", "float16")]
        cells = [None if ms is None else f"{ms:.1f} ms" for ms in times]
        rounded = [f"{row['rounded']['score']:.1e}"] if row.get("rounded") else []
        moved = [f"{row['moved'][what]:.1e}" for what in ("score", "map")]
        lines.append([row["method"], *moved, f"{row['fits']:.3f}", *cells, *rounded])
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table})
