"""Are promises about false alarms kept? By simulation with known truth, and on real good images.

    python -m bench run coverage [--repeats 4000] [--fits 12] [--real DATA]

Simulation: calibration sets are drawn from distributions whose false-alarm rate above any threshold is known exactly.
For ``tolerance``: the share of sets whose promise is broken, to be at most 1 - confidence plus three Monte-Carlo
standard errors; for ``marginal``: the mean rate, to be at most the stated one; ``grouped``: images in groups of one to
nine that score nearly alike, groups counted once; ``shift``: the share of shifts with more flagged parts than told;
``any`` and ``area``: maps of which level and texture vary. ``ties`` are scores with 40 values.

``--fits`` K: are the thresholds of a fit kept, for which each image was judged as if left out? K times, 30 and 60
pieces of a woven cloth are learned and others of it judged; per detector the share of these that is flagged, to be at
most ``stated``: the bound of :func:`pickglass.calibration.promises.left_out_bound`, which is proven for a bank of all
patches (``ratio=1``) and only measured for the others; ``about`` is the rate that the sentence names.

``--real`` DATA (e.g. magnetic_tile, with groups.csv): PatchCore is fitted on half of the groups of the good training
images, the other half calibrates, and the good test images, whose groups occur in neither, are counted against the
beta-binomial. This single split is the evidence. Below it, many random splits by group of all images that were not
fitted: they overlap, so they only describe.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.harness import Case, Suite
from pickglass.calibration import Evidence, Wish, flagged_curve, promised
from pickglass.calibration.promises import group_maxima, shift_bound

ALPHA, CONFIDENCE, SHIFT = 0.05, 0.9, 500


def image_limit(evidence: Evidence, wish: Wish) -> float:
    """The image threshold of the promise."""
    limit = promised(evidence, wish).image_threshold
    if limit is None:
        raise SystemExit(f"{wish}: {len(evidence.scores)} images carry no image threshold, raise --n")
    return limit


def pixel_limit(evidence: Evidence, wish: Wish) -> float:
    """The pixel threshold of the promise."""
    limit = promised(evidence, wish).pixel_threshold
    if limit is None:
        raise SystemExit(f"{wish}: {len(evidence.scores)} images carry no pixel threshold, raise --n")
    return limit


def verdict(observed: float, error: float, stated: float) -> dict[str, Any]:
    return {
        "observed": round(observed, 5),
        "stated": stated,
        "standard_error": round(error, 5),
        "kept": bool(observed <= stated + 3 * error),
    }


def share(broken: list[bool], stated: float) -> dict[str, Any]:
    error = math.sqrt(stated * (1 - stated) / len(broken))
    return verdict(float(np.mean(broken)), error, stated)


def mean(rates: list[float], stated: float) -> dict[str, Any]:
    return verdict(float(np.mean(rates)), float(np.std(rates)) / math.sqrt(len(rates)), stated)


def images(rng: np.random.Generator, repeats: int, n: int, steps: int | None) -> dict[str, Any]:
    """Uniform scores, or uniform over ``steps`` values."""
    tolerance, marginal = Wish("tolerance", ALPHA, CONFIDENCE), Wish("marginal", ALPHA)
    broken, over, rates = [], [], []
    for _ in range(repeats):
        draws = rng.random(n)
        scores = (draws if steps is None else np.floor(draws * steps)).tolist()

        def rate(limit: float) -> float:
            return 1 - limit if steps is None else 1 - (math.floor(limit) + 1) / steps

        sure = promised(Evidence(scores, scores), tolerance)
        if sure.image_threshold is None or sure.r is None:
            raise SystemExit(f"{n} images carry no promise, raise --n")
        true = rate(sure.image_threshold)
        broken.append(true > ALPHA)
        over.append(rng.binomial(SHIFT, true) > shift_bound(n, sure.r, SHIFT, CONFIDENCE))
        rates.append(rate(image_limit(Evidence(scores, scores), marginal)))
    stated = round(1 - CONFIDENCE, 6)
    return {"tolerance": share(broken, stated), "shift": share(over, stated), "marginal": mean(rates, ALPHA)}


def grouped(rng: np.random.Generator, repeats: int, n: int) -> dict[str, Any]:
    """The true rate is that of images: a part drawn at random, one of its images, level plus a little of its own."""
    broken: list[bool] = []
    naive: list[bool] = []
    wish = Wish("tolerance", ALPHA, CONFIDENCE)
    for _ in range(repeats):
        sizes = rng.integers(1, 10, n)
        scores = (np.repeat(rng.normal(size=n), sizes) + 0.1 * rng.normal(size=sizes.sum())).tolist()
        names = [str(g) for g in np.repeat(np.arange(n), sizes)]
        for groups, breaks in ((names, broken), ((), naive)):
            limit = image_limit(Evidence(scores, scores, groups), wish)
            breaks.append(stats.norm.sf(limit, scale=math.sqrt(1.01)) > ALPHA)
    stated = round(1 - CONFIDENCE, 6)
    return {"grouped": share(broken, stated), "the same images counted one by one (wrong)": share(naive, stated)}


def pixels(rng: np.random.Generator, repeats: int, n: int) -> dict[str, Any]:
    """Maps of 8 x 8: a level in 0..1 an image plus uniform noise a pixel; one fresh image judges each set."""
    hits, areas, broken = [], [], []
    for _ in range(repeats):
        maps = rng.random((n + 1, 1, 1)) + rng.random((n + 1, 8, 8))
        peaks = maps.max(axis=(1, 2)).tolist()
        given = Evidence(peaks[:n], peaks[:n], curves=np.array([flagged_curve(m) for m in maps[:n]]))
        hits.append(peaks[n] > pixel_limit(given, Wish("marginal", 2 * ALPHA, pixel="any")))
        areas.append(float((maps[n] > pixel_limit(given, Wish("marginal", 2 * ALPHA, pixel="area"))).mean()))
        limit = pixel_limit(given, Wish("tolerance", ALPHA, CONFIDENCE, "any"))
        # P(level + max of 64 > limit), by the level
        level = np.linspace(0, 1, 2001)
        broken.append(float(np.trapezoid(1 - np.clip(limit - level, 0, 1) ** 64, level)) > ALPHA)
    stated = round((1 - CONFIDENCE) / 2, 6)
    return {"any, marginal": share(hits, ALPHA), "area": mean(areas, ALPHA), "any, tolerance": share(broken, stated)}


def left_out(fits: int, seed: int) -> dict[str, Any]:
    """The thresholds of fits on pieces of a cloth, against other pieces of it."""
    from pickglass.calibration.promises import average_bound, left_out_bound
    from pickglass.data.painting.cloth import Cloth, weave
    from pickglass.methods import Detector, PaDiM, PatchCore

    side, fresh = 96, 100
    detectors: dict[str, Callable[[], Detector]] = {
        "patchcore": lambda: PatchCore(size=side),
        "patchcore, all patches": lambda: PatchCore(size=side, ratio=1, place_scale=False),
        "padim": lambda: PaDiM(size=side, dims=25),
    }
    result: dict[str, Any] = {}
    for n in (30, 60):
        rates: dict[str, list[float]] = {name: [] for name in detectors}
        ranks: dict[str, int] = {}
        for k in range(fits):
            rng = np.random.default_rng([seed, k])
            cloth = weave(Cloth("twill"), (10 * side, 17 * side), seed + k)
            tiles = cloth.reshape(10, side, 17, side, -1).swapaxes(1, 2).reshape(170, side, side, -1)
            order = rng.permutation(170)
            good, coming = [tiles[i] for i in order[:n]], [tiles[i] for i in order[n : n + fresh]]
            for name, make in detectors.items():
                detector = make().fit(good, engine="torch")
                known = detector.calibration
                if known is None or known.image_threshold is None or known.r is None or known.source != "left out":
                    raise SystemExit(f"{name} set no threshold from images left out")
                ranks[name] = known.r
                rates[name].append(float((detector.predict(coming).scores > known.image_threshold).mean()))
        for name, found in rates.items():
            about = {"about": round(average_bound(n, ranks[name]), 4)}
            result[f"{name}, {n} images"] = {**mean(found, round(left_out_bound(n, ranks[name]), 4)), **about}
    return result


def real(folder: Path, repeats: int, size: int, seed: int) -> dict[str, Any]:
    from pickglass.data import Table, load_dataset, split_roles
    from pickglass.methods import PatchCore

    dataset = load_dataset(folder)
    split = split_roles(dataset.train, validate=0, calibrate=0.5, seed=seed)
    detector = PatchCore(size=size).fit(split.role("fit"), calibrate=0)

    def units(table: Table) -> np.ndarray[Any, Any]:
        found = detector.predict(table)
        return group_maxima(found.scores.tolist(), [row.group for row in found.rows])

    held, test = units(split.role("calibrate")), units(dataset.test.where(lambda row: row.label == 0))
    result: dict[str, Any] = {"data": dataset.name, "calibration_groups": len(held), "test_groups": len(test)}
    result["test groups flagged at r"] = {r: counted(held, test, r) for r in (0, 1, 2, 4)}
    pool, rng = np.concatenate([held, test]), np.random.default_rng(seed)
    half, flagged = len(pool) // 2, []
    for _ in range(repeats):
        mixed = rng.permutation(pool)
        flagged.append(int((mixed[half:] > np.sort(mixed[:half])[-1]).sum()))
    law = stats.betabinom(len(pool) - half, 1, half)
    result["random splits, r = 0, descriptive"] = {
        "mean": round(float(np.mean(flagged)), 3),
        "beta_binomial_mean": round(float(law.mean()), 3),
        "share_above_its_95_per_cent_point": round(float(np.mean(np.array(flagged) > law.ppf(0.95))), 4),
    }
    return result


def counted(held: np.ndarray[Any, Any], test: np.ndarray[Any, Any], r: int) -> dict[str, Any]:
    n, count = len(held), int((test > held[len(held) - 1 - r]).sum())
    law = stats.betabinom(len(test), r + 1, n - r)
    return {
        "flagged": count,
        "expected": round(float(law.mean()), 2),
        "interval_95": [int(law.ppf(0.025)), int(law.ppf(0.975))],
        "p_at_least": round(float(law.sf(count - 1)), 4),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--real", type=Path, metavar="DATA", help="data set with good images, and groups if any")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fits", type=int, default=0, help="fits on cloth for the thresholds of images left out")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    parts: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
        "continuous": lambda rng: images(rng, given.repeats, given.n, None),
        "ties": lambda rng: images(rng, given.repeats, given.n, 40),
        "groups": lambda rng: grouped(rng, given.repeats, given.n),
        "pixels": lambda rng: pixels(rng, given.repeats // 4, given.n),
    }
    settings = {"false_alarm": ALPHA, "confidence": CONFIDENCE, "shift": SHIFT}
    for i, (name, part) in enumerate(parts.items()):
        key = {"part": name, "n": given.n, "repeats": given.repeats, "seed": given.seed}
        rng = np.random.default_rng([given.seed, i])
        yield Case(key, lambda part=part, rng=rng: {**settings, **part(rng)})  # type: ignore[misc]
    if given.fits:
        key = {"part": "left out", "fits": given.fits, "seed": given.seed}
        yield Case(key, partial(left_out, given.fits, given.seed))
    if given.real is not None:
        key = {"part": "real", "data": given.real.name, "repeats": given.repeats, "seed": given.seed}
        yield Case(key, partial(real, given.real, given.repeats, given.size, given.seed))


SUITE = Suite(cases, arguments)
