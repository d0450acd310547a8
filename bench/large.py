"""Images far larger than a network's input: seconds an image, in each precision, and the peak of memory.

    python -m bench run large strips FABRIC04 [--model FILE]  # PatchCore, 4096 x 256 px, the bank about 19,000
    python -m bench run large pieces [--methods patchcore,padim]  # woven pieces of 4000 x 3000 px, 12 megapixels
    python -m bench run large memory [--sides 3000x4000 9000x12000]  # peak of memory of one image, by its size

``strips``: stage2 and stage3, unscaled, one head for overlapping tiles 256/128; the bank is chosen from a sample of the
patches, so that making it takes seconds. ``pieces``: tiles of 256 px side by side, one head, 2 to learn from and 1 to
judge. Each is judged in turn in ``float32``; for PatchCore with a ``scan`` of the bank in bfloat16 before the distances
are measured in float32, as it does by itself; and with the ``backbone`` in bfloat16 as well (``--engine bfloat16``, the
last two where the CPU has it). ``s`` is the median of the repeats, ``cpu_s`` that of the processor time, and
``difference`` the largest of the maps from those in float32, as a share of the map's largest value. ``memory``: the
peak of a process that learns from one image and judges it, its libraries included: all tiles at once (``at_once``, up
to 20 megapixels) and 64 at a time (``parts``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from PIL import Image

import pickglass as pg
from bench.harness import Case, Record, Suite, apart, markdown, middle, peak_mb
from pickglass.data import load_dataset
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.detectors import loading
from pickglass.nn.maps import has_fast_bfloat16
from pickglass.nn.search.neighbours import BankIndex
from pickglass.runtime.compute import EngineName

_LARGEST_AT_ONCE = 20_000_000  # pixels; more may take more memory than a machine has


class Way(NamedTuple):
    """How images are judged: whether the bank is scanned in bfloat16, and what runs the backbone."""

    scans: bool
    engine: EngineName


def ways(method: type) -> dict[str, Way]:
    found = {"float32": Way(False, "openvino")}
    if not has_fast_bfloat16():
        return found
    if method is pg.PatchCore:
        found["scan"] = Way(True, "openvino")
    return found | {"backbone": Way(True, "bfloat16")}


def judged(detector: Any, asked: list[Any], repeat: int) -> dict[str, Any]:
    """Judge images in each way, in turn."""
    bank = detector.bank if isinstance(detector, pg.PatchCore) else None
    asked_ways = ways(type(detector))
    banks = {} if bank is None else {way: bank.clone() for way in asked_ways}
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in asked_ways}
    maps: dict[str, list[np.ndarray[Any, Any]]] = {}
    for turn in range(repeat + 1):  # the first warms up
        for name, way in asked_ways.items():
            with patch("pickglass.methods.patchcore.BankIndex", partial(BankIndex, bfloat16=way.scans)):
                if name in banks:
                    detector.bank = banks[name]  # another bank makes another index
                detector.predict(asked[:1], engine=way.engine)  # another engine is made anew
                began, cpu = time.perf_counter(), time.process_time()
                found = list(detector.predict(asked, engine=way.engine))
                if turn:
                    took[name].append((time.perf_counter() - began, time.process_time() - cpu))
            maps[name] = [one.map for one in found]
    exact = maps.pop("float32")
    return {
        "s": {name: round(middle([s for s, _ in own]) / len(asked), 3) for name, own in took.items()},
        "cpu_s": {name: round(middle([s for _, s in own]) / len(asked), 3) for name, own in took.items()},
        "difference": {
            name: max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(exact, own, strict=True))
            for name, own in maps.items()
        },
    }


def strips(data: str, model: str | None, repeat: int) -> dict[str, Any]:
    dataset = load_dataset(data)
    detector: Any
    if model is None:
        plain = pg.PatchCore(layers=("stage2", "stage3"), sample=64, ratio=0.64)
        detector = plain.tiled(size="native", tile=256, stride=128, heads=1)
        detector.fit(dataset.train, calibrate=0)
    else:
        detector = pg.load(model)
    return {"bank": detector.bank.shape[1], **judged(detector, list(dataset.test)[:2], repeat)}


def pieces(method: str, repeat: int) -> dict[str, Any]:
    woven = [weave(Cloth("twill"), (3000, 4000), i) for i in range(3)]
    plain = pg.PatchCore() if method == "patchcore" else pg.PaDiM()
    detector = plain.tiled(size="native", tile=256, stride=256, heads=1).fit(woven[:2], calibrate=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.png"
        Image.fromarray(woven[2]).save(path)
        return {"bank": detector.provenance.details.get("bank"), **judged(detector, [path], repeat)}


def one_image(height: int, width: int, at_once: bool) -> dict[str, Any]:
    """Learn from one image and judge another like it."""
    piece = weave(Cloth("twill"), (1000, 1000), 0)
    times = (-(-height // 1000), -(-width // 1000), 1)[: piece.ndim]
    whole = np.tile(piece, times)[:height, :width]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.png"
        Image.fromarray(whole).save(path, compress_level=1)
        del whole
        detector = pg.PatchCore(sample=16, ratio=0.1).tiled(size=(height, width), tile=256, stride=256, heads=1)
        with patch.object(loading, "_TILES_AT_ONCE", 10**9 if at_once else loading._TILES_AT_ONCE):
            began = time.perf_counter()
            detector.fit([path], calibrate=0, workers=1)
            fit_mb, fit_s = peak_mb(), time.perf_counter() - began
            began = time.perf_counter()
            detector.predict([path], workers=1)
    return {"fit_mb": fit_mb, "mb": peak_mb(), "fit_s": round(fit_s, 1), "s": round(time.perf_counter() - began, 1)}


def memory(height: int, width: int) -> dict[str, Any]:
    result: dict[str, Any] = {"parts": apart(one_image, height, width, False)}
    if height * width <= _LARGEST_AT_ONCE:
        result["at_once"] = apart(one_image, height, width, True)
    return result


def table(rows: list[Record]) -> str:
    lines = []
    for row in (row for row in rows if row["part"] != "memory"):
        what = f"strips of {row['data']}" if row["part"] == "strips" else f"12 megapixels, {row['method']}"
        bank = "" if row["bank"] is None else f"{row['bank']:,}"
        lines.append([what, bank, *(row["s"].get(way, "") for way in ("float32", "scan", "backbone"))])
    heads = ["s an image, float32", "a scan in bfloat16", "the backbone in bfloat16, too"]
    return markdown(["what", "bank points", *heads], lines)


def table_of_memory(rows: list[Record]) -> str:
    lines = []
    for row in (row for row in rows if row["part"] == "memory"):
        height, width = map(int, row["pixels"].split("x"))
        whole = row.get("at_once")
        megapixels = f"{width:,} x {height:,} px, {height * width / 1e6:.0f} megapixels"
        lines.append([megapixels, "" if whole is None else f"{whole['mb']:,}", f"{row['parts']['mb']:,}"])
    return markdown(["image", "all tiles at once, MB", "64 tiles at a time, MB"], lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=["strips", "pieces", "memory"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, help="a model that was made before, for strips; None: it is made first")
    parser.add_argument("--methods", default="patchcore,padim", help="separated by commas")
    parser.add_argument("--sides", nargs="+", default=["3000x4000", "9000x12000"], help="height x width, in pixels")
    parser.add_argument("--repeat", type=int, default=3)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    if (given.part == "strips") != (given.data is not None):
        raise SystemExit("name the data set of strips, and none for the other parts")
    if given.part == "strips":
        yield Case(
            {"part": "strips", "data": given.data.name}, partial(apart, strips, given.data, given.model, given.repeat)
        )
    elif given.part == "pieces":
        for method in given.methods.split(","):
            yield Case({"part": "pieces", "method": method}, partial(apart, pieces, method, given.repeat))
    else:
        for side in given.sides:
            yield Case({"part": "memory", "pixels": side}, partial(memory, *map(int, side.split("x"))))


SUITE = Suite(cases, arguments, {"": table, "memory": table_of_memory})
