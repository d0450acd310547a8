"""Does ``preset="auto"`` find more small defects on generated cloth than the default of fit, and by which part?

    python -m bench run auto [--weaves plain twill satin] [--seeds 1] [--defect-px 8]
    python -m bench run auto --data DATA --sets magnetic_tile ...

For each weave and seed: 40 good pieces of 256 x 256 pixels teach; auto chooses on them and defects of the kinds of a
loom that it paints itself. Judged are 24 pieces of another cloth of the same making, as they are and with defects of
4 to 8 px of other seeds. Compared, paired by piece: auto against the default and against ``paper``, PatchCore's, on
EfficientNet-Lite0 where the weights of its WideResNet-50 are missing. AUPRO@0.05, 95 % bootstrap intervals.

With ``--sets``, data sets with real defects in the folder DATA: auto is told the median extent of the real regions,
learns from the good training images, and is judged on the real test images beside the default, paired by group.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bench.harness import Case, Record, Suite, add_data, interval, markdown
from bench.regret import SETS, real_extent, real_set
from pickglass.app.advise.auto import AutoChoice, auto_choice
from pickglass.app.advise.painted import Judged, PaintedSet
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import Score, difference, scored
from pickglass.app.advise.within_foreground import trusted_mask
from pickglass.app.fit import build
from pickglass.data import Row, Table, load_dataset, paint, usual_size, with_roi
from pickglass.data.painting.cloth import Cloth, Weave, weave
from pickglass.data.painting.defects import Kind
from pickglass.errors import WeightsMissing
from pickglass.methods import Detector

KINDS: tuple[Kind, ...] = ("broken_pick", "missing_end", "slub", "knot", "foreign_fibre", "hole", "stain")
CONTRASTS = (1.0, 0.6, 0.3)
SIDE = 256
ON_LITE = {"backbone": "efficientnet_lite0", "layers": ("stage3", "stage5")}


def pieces(kind: Weave, n: int, seed: int) -> list[np.ndarray]:
    """Pieces of one cloth that do not overlap."""
    across = 8
    whole = weave(Cloth(kind), (SIDE * -(-n // across), SIDE * across), seed)
    cut = [
        np.ascontiguousarray(whole[y : y + SIDE, x : x + SIDE])
        for y in range(0, whole.shape[0], SIDE)
        for x in range(0, whole.shape[1], SIDE)
    ]
    return cut[:n]


def compare(kind: Weave, seed: int, defect_px: float) -> dict[str, Any]:
    """One cloth."""
    began = time.perf_counter()
    train = Table([Row(f"good:{i}", "train", 0, pixels=image) for i, image in enumerate(pieces(kind, 40, 2 * seed))])
    choice = auto_choice(train, AdviseRequest(defect_px, kinds=KINDS, seed=seed))
    data = held_out(kind, seed, defect_px)
    (tested,) = data.test.values()

    def result(detector: Detector) -> Score:
        detector.fit(train, calibrate=0.0, seed=seed)
        return scored(detector.predict(tested), data)

    auto = result(build(choice.method, None, choice.settings, choice.tiling, choice.fusion))
    default = result(build())
    return answer(defect_px, choice, result, auto, default, data, began)


def on_real(root: Path, seed: int) -> dict[str, Any]:
    """One data set with real defects."""
    began = time.perf_counter()
    dataset = load_dataset(root)
    defect_px = float(np.clip(real_extent(dataset.test)[0], 4, min(usual_size(dataset.train)) / 2))
    choice = auto_choice(dataset.train, AdviseRequest(defect_px, seed=seed))
    data = real_set(dataset.train, dataset.test, set(), seed)
    masked = dataset.train
    if choice.foreground is not None:
        masked = with_roi(masked, trusted_mask(choice.foreground))

    def result(detector: Detector, train: Table = dataset.train) -> Score:
        detector.fit(train, calibrate=0.0, seed=seed)
        return scored(detector.predict(dataset.test), data)

    auto = result(build(choice.method, None, choice.settings, choice.tiling, choice.fusion), masked)
    return answer(defect_px, choice, result, auto, result(build()), data, began)


def answer(
    defect_px: float,
    choice: AutoChoice,
    result: Callable[[Detector], Score],
    auto: Score,
    default: Score,
    data: PaintedSet,
    began: float,
) -> dict[str, Any]:
    """The row of a cloth or data set."""
    try:
        paper, whose = result(build(preset="paper")), "WideResNet-50"
    except WeightsMissing:
        paper, whose = result(build(preset="paper", settings=dict(ON_LITE))), "EfficientNet-Lite0"
    found = {name: (s, difference(auto, s, data)) for name, s in (("default", default), ("paper", paper))}
    return {
        "defect_px": defect_px,
        "paper_backbone": whose,
        "auto": auto.aupro,
        **{name: score.aupro for name, (score, _) in found.items()},
        **{f"gain_{name}": gain["aupro"] for name, (_, gain) in found.items()},
        "ablation": list(choice.ablation),
        "seconds": time.perf_counter() - began,
    }


def held_out(kind: Weave, seed: int, defect_px: float) -> PaintedSet:
    """Pieces of another cloth, as they are and painted."""
    rng = np.random.default_rng([7, seed])
    good = pieces(kind, 24, 2 * seed + 1)
    everything = np.ones((SIDE, SIDE), np.bool_)
    window = (0, 0, SIDE, SIDE)
    images = [Judged(f"piece:{i}", f"{i}", (SIDE, SIDE), window, None, everything, g) for i, g in enumerate(good)]
    for n in range(2 * len(good)):
        i, what = n % len(good), KINDS[n % len(KINDS)]
        size = float(rng.uniform(4, defect_px))
        done = paint(good[i], what, size, rng, CONTRASTS[(n // len(KINDS)) % 3])
        one = Judged(f"piece:{i}#{n}", f"{i}", (SIDE, SIDE), window, done.mask, everything, done.image, what)
        images.append(one)
    rows = Table([Row(one.path, "test", int(one.mask is not None), pixels=one.pixels) for one in images])
    return PaintedSet(tuple(images), {}, {(SIDE, SIDE): rows})


def table(rows: Sequence[Record], real: bool) -> str:
    """What auto reached on cloth, or on data sets with real defects."""
    cells = []
    for row in rows:
        if (row["weave"] not in get_args(Weave)) == real:
            features, _, *steps = row["ablation"]  # and the resolution, which is part of the features
            taken = [features["best"], *(f"{one['part']}: {one['best']}" for one in steps if one["taken"])]
            figures = [_interval(row[name]) for name in ("auto", "default")]
            gains = [_interval(row[f"gain_{name}"], "+") for name in ("default", "paper")]
            about, paper = [_called(row), f"{row['defect_px']:g} px"], f"{row['paper'][0]:.3f}"
            cells.append([*about, *figures, gains[0], paper, gains[1], "; ".join(taken)])
    heads = ["set" if real else "cloth", "defect", "auto", "default", "gain over it", "paper", "gain over it"]
    return markdown([*heads, "parts taken"], cells)


def parts(rows: Sequence[Record]) -> str:
    """What each part brought on the defects that auto painted itself; in bold what it kept."""
    names = list(dict.fromkeys(part["part"] for row in rows for part in row["ablation"]))
    cells: list[list[str]] = []
    for name in names:
        own = [part for row in rows for part in row["ablation"] if part["part"] == name]
        cells.append([name, *(_told(part) for part in own)])
    return markdown(["part", *(_called(row) for row in rows)], cells)


def _interval(found: Sequence[float], sign: str = "") -> str:
    value, low, high = found
    return interval(value, low, high, sign=sign)


def _called(row: Record) -> str:
    return str(SETS.get(row["weave"], row["weave"]))


def _told(part: Record) -> str:
    """The best variant of a part with its gain, or why there is none."""
    if part["gain"] is None:
        return str(part["why"])
    if part["part"] == "features" and part["gain"] == 0:
        return "the default"
    score = ", image AUROC" if part["metric"] == "image_auroc" else ""
    text = f"{part['best']} {_interval([part['gain'], *part['interval']], '+')}{score}"
    return f"**{text}**" if part["taken"] else text


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weaves", nargs="+", default=get_args(Weave), choices=get_args(Weave))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--defect-px", type=float, default=8.0)
    add_data(parser)
    parser.add_argument("--sets", nargs="*", default=[], help="data sets to judge on instead of cloth")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for name in given.sets:
        yield Case({"weave": name, "seed": 0}, partial(on_real, Path(given.data) / name, 0))
    for kind, seed in itertools.product([] if given.sets else given.weaves, range(given.seeds)):
        yield Case({"weave": kind, "seed": seed}, partial(compare, kind, seed, given.defect_px))


SUITE = Suite(
    cases, arguments, {"cloth": partial(table, real=False), "real": partial(table, real=True), "parts": parts}
)
