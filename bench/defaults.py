"""What `fit` does by default, with and without taking out the level of the map: seeds, intervals, seconds.

    python -m bench run defaults --data DATA [--cases magnetic_tile painted:magnetic_tile ...] [--seeds 0 1 2]

A case is a data set in the folder DATA; ``cloth`` or ``textures``, those of ``bench.harness.pieces``; or ``painted:``
and a data set or a generated ground (a weave, a part of a tray, a photograph; ``+light`` with a brightness of its own
for each image; ``@4+light`` with four shots of each part). Painted: a third of the good training images is held back by
group, and on at most 32 of them a defect of each of 8, 16, 32 and 64 px is painted; those images, as they are and
painted, are the test set, so that the good and the bad ones show the same parts in the same light. No test image has a
say in it: the choice was made on these.

One line a case, seed and method: the share of the variance of the scores of one part that the level explains; for
``with``, the default, and ``without``, the same fit with the level left in (both the same where it is left in anyway):
all metrics, the rates at the threshold of the fit, the rate of misses where 5 % of the good test images are flagged,
CPU seconds of the fit; the 95 % intervals of the differences by a paired bootstrap over groups. The table shows the
difference in bold where its interval leaves out 0.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import pickglass as pg
from bench.harness import Case, Suite, add_data, markdown
from bench.harness import interval as span
from bench.harness.pieces import ON_CLOTH, write_cloth, write_textures
from bench.harness.textures import PHOTOS
from pickglass.app.advise.painted import CONTRASTS
from pickglass.app.advise.request import KINDS_PAINTED
from pickglass.calibration import usual_threshold
from pickglass.data import Row, Table, load_dataset, paint, split_roles
from pickglass.data.painting.cloth import Cloth, Weave, weave
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.disturbances import disturb
from pickglass.data.painting.natural import photograph
from pickglass.data.painting.trays import PARTS, Tray, fill
from pickglass.detectors.fitting import FitObserver
from pickglass.detectors.loading import LoadedBatch
from pickglass.errors import InputError
from pickglass.methods import find_method
from pickglass.metrics import auroc, bootstrap, resampled
from pickglass.nn.maps import mean_of_highest

REAL = ("magnetic_tile", "aitex_fabric04", "mvtec_hazelnut_reduced", "mvtec_transistor_reduced", "cloth", "textures")
PAINTED = tuple(f"painted:{name}" for name in ("magnetic_tile", "twill@4+light", "satin@4+light", "bolt@4+light"))
DEFECTS = (8, 16, 32, 64)  # px
MOST_PAINTED = 32  # images
LEARNED, IMAGES = 40, 60  # of a generated ground
FLAGGED = 0.05
Array8 = npt.NDArray[np.uint8]
Key = dict[str, Any]


# -- images ------------------------------------------------------------------------------------------------------------


def images(case: str, data: Path | None, scratch: Path, seed: int) -> tuple[Table, Table]:
    """Return what is learned and what is judged."""
    kind, _, name = case.rpartition(":")
    if kind == "painted":
        good, held, kinds = halves(name, data, seed)
        return good, painted(held, kinds, seed)
    if case == "cloth":
        dataset = load_dataset(write_cloth(scratch, seed))
    elif case == "textures":
        dataset = load_dataset(write_textures(scratch, seed))
    elif data is None:
        raise SystemExit(f"{case} needs --data")
    else:
        dataset = load_dataset(data / case)
    return as_train(dataset.train), Table([replace(row, pixels=row.image()) for row in dataset.test])


def as_train(rows: Table) -> Table:
    return Table([replace(row, role="train") for row in rows])


def halves(name: str, data: Path | None, seed: int) -> tuple[Table, Table, tuple[Kind, ...]]:
    """Return the images that are learned, those held back, and what can be painted on them."""
    ground, _, light = name.partition("+")
    ground, _, shots = ground.partition("@")
    n = int(shots or 1)
    rng = np.random.default_rng([seed, 7])
    if ground in get_args(Weave):
        pictures = [weave(Cloth(ground), (192, 192), 1000 * seed + i) for i in range(IMAGES // n)]  # type: ignore[arg-type]
    elif ground in PARTS:
        pictures = [fill(Tray(ground), (256, 384), 1000 * seed + i) for i in range(IMAGES // n)]  # type: ignore[arg-type]
    elif ground in PHOTOS:
        photo = photograph(ground)
        corners = rng.integers(0, (photo.shape[0] - 128, photo.shape[1] - 128), (IMAGES // n, 2))
        pictures = [photo[y : y + 128, x : x + 128] for y, x in corners.tolist()]
    elif data is None:
        raise SystemExit(f"{name} needs --data")
    else:
        divided = split_roles(as_train(load_dataset(data / ground).train), 0.0, 1 / 3, seed)
        held = [replace(row, role="test", pixels=row.image()) for row in divided if row.role == "calibrate"]
        return as_train(divided.where(lambda row: row.role == "fit")), Table(held), KINDS_PAINTED
    made: list[Row] = []
    for i, picture in enumerate(pictures):
        for shot in range(n):
            shown = disturb(picture, "brightness", float(rng.uniform(0, 0.4)), rng) if light else picture
            made.append(Row(f"{i}.{shot}.png", "train", 0, group=str(i) if n > 1 else None, pixels=shown))
    learned = LEARNED // n * n
    held = [replace(row, role="test") for row in made[learned:]]
    return Table(made[:learned]), Table(held), ON_CLOTH if ground in get_args(Weave) else KINDS_PAINTED


def painted(held: Table, kinds: tuple[Kind, ...], seed: int) -> Table:
    """Return some of the images as they are, and with a defect of each size."""
    rows: list[Row] = []
    for i in np.random.default_rng([seed, 5]).permutation(len(held))[:MOST_PAINTED].tolist():
        row, pixels = held[i], held[i].image()
        if pixels.dtype != np.uint8:
            pixels = (pixels // 257).astype(np.uint8)
        rows.append(replace(row, group=row.unit))
        for j, extent in enumerate(DEFECTS):
            kind, contrast = kinds[(i + j) % len(kinds)], CONTRASTS[(i + j) // 2 % len(CONTRASTS)]
            try:
                made = paint(pixels, kind, extent, np.random.default_rng([seed, i, extent]), contrast)
            except InputError:  # no room for it
                continue
            mask: Array8 = made.mask.astype(np.uint8) * 255
            path = f"{row.path}#{extent}"
            rows.append(Row(path, "test", 1, f"{extent} px", group=row.unit, mask=mask, pixels=made.image))
    return Table(rows)


# -- figures -----------------------------------------------------------------------------------------------------------


class AsLeftOut(FitObserver):
    """Keeps the scores of the judged good images, with the level in them."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.groups: list[str | None] = []

    def judged(self, loaded: LoadedBatch, scores: Tensor) -> None:
        self.scores += scores.tolist()
        self.groups += [item.row.group for item in loaded.sound]


def measure(method: str, good: Table, test: Table, seed: int, repeats: int) -> dict[str, Any]:
    detector, left_out = find_method(method).configured({}), AsLeftOut()
    began = time.process_time()
    detector.fit(good, seed=seed, observers=[left_out])
    seconds = time.process_time() - began
    found = plain = detector.predict(test)
    level = detector.provenance.details.get("level")
    used = detector.level_line is not None
    if used:
        if detector.place_gain is not None:
            raise SystemExit("places are scaled, too: what the level does cannot be told apart here")
        scores = mean_of_highest(torch.from_numpy(np.stack(found.maps)), detector.scored_share).tolist()
        usual = usual_threshold(left_out.scores, left_out.scores, left_out.groups)
        kept = tuple(one._replace(score=score) for one, score in zip(found.found, scores, strict=True))
        plain = pg.Prediction(kept, (), usual)
    labels = np.array([row.label for row in found.rows])
    groups = [row.unit for row in found.rows]

    def difference(metric: Callable[[Any, Any], float]) -> list[float]:
        ours, theirs = (resampled(metric, labels, p.scores) for p in (found, plain))
        return interval(lambda weight: ours(weight) - theirs(weight), groups, repeats, seed)

    def rates(label: int) -> list[float]:
        wrong = [errors(p, label).astype(float) for p in (found, plain)]
        return interval(
            lambda weight: float(weight @ (wrong[0] - wrong[1]) / max(1, (weight * (labels == label)).sum())),
            groups,
            repeats,
            seed,
        )

    # by type of defect nothing is asked
    rows = Table([replace(row, defect=None) for row in test])
    figures = pg.evaluate(found, rows, repeats=repeats, seed=seed).overall
    known = {name: value for name, value in figures.items() if isinstance(value, (int, float, dict))}
    return {
        "explained": None if level is None else level["explained"],
        "slope": None if level is None else level["slope"],
        "used": used,
        "units": len({row.unit for row in good}),
        "fit_cpu_s": seconds,
        "with": known | by_image(found),
        "without": known | by_image(plain),  # the maps are the same
        "difference": {
            "image_auroc": difference(auroc),
            "missed_at_5": difference(missed_at),
            "false_alarm_rate": rates(0),
            "miss_rate": rates(1),
        },
    }


def by_image(found: pg.Prediction) -> dict[str, float]:
    labels = np.array([row.label for row in found.rows])
    wrong = (errors(found, label).sum() / max(1, (labels == label).sum()) for label in (0, 1))
    result = dict(zip(("false_alarm_rate", "miss_rate"), map(float, wrong), strict=True))
    return result | {"image_auroc": auroc(labels, found.scores), "missed_at_5": missed_at(labels, found.scores)}


def errors(found: pg.Prediction, label: int) -> npt.NDArray[np.bool_]:
    """Which images of this label are judged wrongly, (N,)."""
    limit = None if found.calibration is None else found.calibration.image_threshold
    labels = np.array([row.label for row in found.rows])
    bad = np.zeros(len(labels), np.bool_) if limit is None else found.scores > limit
    wrong: npt.NDArray[np.bool_] = (labels == label) & (bad != bool(label))
    return wrong


def missed_at(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """The share of bad images below the threshold that flags 5 % of the good ones; nan without either."""
    good, bad = scores[labels == 0], scores[labels == 1]
    if not good.size or not bad.size:
        return float("nan")
    return float((bad <= np.quantile(good, 1 - FLAGGED)).mean())


def interval(
    metric: Callable[[npt.NDArray[np.int64]], float], groups: list[str], repeats: int, seed: int
) -> list[float]:
    """Value, lower and upper end."""
    found = bootstrap(metric, groups, repeats=repeats, seed=seed)
    return [float(found.value[0]), float(found.low[0]), float(found.high[0])]


# -- table -------------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case, method, seed | explained | image AUROC | AUPRO@0.3 | AUPRO@0.05 | flagged | missed | missed at 5 % "
        "| fit, CPU s |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        explained = "–" if row["explained"] is None else f"{row['explained']:.2f}"
        cells = [f"{row['case']} {row['method']} {row['seed']}", explained + ("" if row["used"] else ", left in")]
        cells.append(change(row, "image_auroc", 3))
        for name in ("aupro_30", "aupro_05"):
            cells.append(interval_of(row, name))
        cells += [change(row, name, 2) for name in ("false_alarm_rate", "miss_rate", "missed_at_5")]
        cells.append(f"{row['fit_cpu_s']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval_of(row: Key, name: str) -> str:
    known, nan = row["with"], float("nan")
    return span(known.get(name, nan), *known["intervals"].get(name, (nan, nan)))


def change(row: dict[str, Any], name: str, digits: int) -> str:
    """Without -> with, and the interval of the difference; the one figure with its own interval where both are one."""
    before, after = row["without"].get(name), row["with"].get(name)
    if before is None or after is None:
        return "–"
    if not row["used"]:
        own = row["with"]["intervals"].get(name)
        return f"{after:.{digits}f}" + ("" if own is None else f" [{own[0]:.{digits}f}, {own[1]:.{digits}f}]")
    _, low, high = row["difference"][name]
    text = f"{before:.{digits}f} -> {after:.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--cases", nargs="+", default=[*REAL, *PAINTED])
    parser.add_argument("--methods", nargs="+", default=["patchcore"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=500)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for seed, case, method in itertools.product(given.seeds, given.cases, given.methods):
        key = {"case": case, "method": method, "seed": seed}
        yield Case(key, partial(measured, case, method, given.data, seed, given.repeats))


def measured(case: str, method: str, data: str | None, seed: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        good, test = images(case, None if data is None else Path(data), Path(scratch), seed)
        return measure(method, good, test, seed, repeats)


def table_of_defaults(rows: list[Key]) -> str:
    """What fit does by default, the level taken out where that helps; the documentation's columns."""
    lines = []
    for row in rows:
        cells = [f"{row['case'].removeprefix('mvtec_').removesuffix('_reduced')} {row['seed']}"]
        cells.append(change(row, "image_auroc", 3))
        for name in ("aupro_30", "aupro_05"):
            cells.append(interval_of(row, name))
        lines.append([*cells, *(change(row, name, 2) for name in ("false_alarm_rate", "miss_rate"))])
    heads = ["set, seed", "image AUROC", "AUPRO@0.3", "AUPRO@0.05", "flagged", "missed"]
    return markdown(heads, lines)


SUITE = Suite(cases, arguments, {"": table, "fit": table_of_defaults})
