"""The contrast from which on a defect is found: each is painted at one place again and again, fainter or stronger.

A search by halves over a few contrasts tells for each place where finding it begins; no place is painted at a contrast
that can say nothing new. Painted are the same shape and place each time.

Letters: T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pickglass.app.advise.painted import Brush, Judged, as_input, decoded, judged_image
from pickglass.app.advise.scoring import LIMIT, window_map
from pickglass.data import Preprocess, Row, Table
from pickglass.data.painting.defects import Kind
from pickglass.errors import InputError
from pickglass.methods import Detector
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["CONTRASTS", "Place", "Seen", "first_seen", "half_contrasts"]

CONTRASTS = (0.0625, 0.125, 0.25, 0.5, 1.0)
"""From hardly a change to clearly visible."""

_HALF = 0.5  # of a defect
_PLACES = 2  # of each kind
_LEVELS = 26  # false-positive rates up to the limit


@dataclass(frozen=True)
class Place:
    """A defect at its place: painted on this image, always alike."""

    image: int
    turn: int
    kind: Kind


Seen = Callable[[Sequence[tuple[Place, float]]], Sequence[bool]]
"""Given places with a contrast each, say which of the defects are found."""


def first_seen(places: Sequence[Place], seen: Seen, contrasts: Sequence[float] = CONTRASTS) -> list[float | None]:
    """Find for each place the contrast from which on its defect is found.

    Returns:
        The geometric mean of the last contrast at which it was missed and the first at which it was found: below the
        lowest where it was found even there; None where it is missed at the highest.
    """
    low, high = [0] * len(places), [len(contrasts)] * len(places)  # found from one of contrasts[low] to [high] on
    while True:
        at = {i: (low[i] + high[i]) // 2 for i in range(len(places)) if low[i] < high[i]}
        if not at:
            break
        found = seen([(places[i], contrasts[middle]) for i, middle in at.items()])
        for (i, middle), one in zip(at.items(), found, strict=True):
            if one:
                high[i] = middle
            else:
                low[i] = middle + 1
    step = math.sqrt(contrasts[1] / contrasts[0])
    return [None if n == len(contrasts) else contrasts[n] / step for n in low]


def half_contrasts(
    detector: Detector,
    held: Table,
    prepare: Preprocess,
    brush: Brush,
    kinds: Sequence[Kind],
    compute: ComputeOptions,
    progress: Progress | None = None,
) -> dict[Kind, float | None]:
    """Find for each kind the contrast at which a detector finds half of a defect.

    Half of it: half of its pixels, on average over the thresholds at which up to 5 % of good ground is flagged too.

    Args:
        detector: fitted on inputs that ``prepare`` made.
        held: good images that it has not learned.
        prepare: squeezes images to the input.
        brush: what to paint with.
        kinds, compute: of the defects, and where to compute.
        progress: called with (stage, done, total).

    Returns:
        kind -> contrast, a mean over two places; None where it finds less than half at contrast 1 in both, and no entry
        where the kind cannot be painted.
    """
    n = max(1, min(len(held), _PLACES * len(kinds)))
    images = list(decoded(held[:n], compute, None, "reading images"))
    rng = np.random.default_rng([brush.seed, 2])
    good = [judged_image(row, pixels, None, rng) for row, pixels in images]
    rows = Table([as_input(prepare, row, pixels, "test") for row, pixels in images])
    maps = detector.predict(rows, **compute.arguments()).maps
    ground = np.concatenate([window_map(values, one)[one.keep] for values, one in zip(maps, good, strict=True)])
    thresholds = np.quantile(ground, 1 - np.linspace(0, LIMIT, _LEVELS))  # (T,)
    places = [Place(i % n, i, kinds[i % len(kinds)]) for i in range(_PLACES * len(kinds))]
    painted: set[Place] = set()
    rounds = 0

    def seen(asked: Sequence[tuple[Place, float]]) -> list[bool]:
        nonlocal rounds
        found = [False] * len(asked)
        shown: list[tuple[int, Judged, Row]] = []
        for number, (place, contrast) in enumerate(asked):
            row, pixels = images[place.image]
            try:
                image, mask = brush.paint(row, pixels, place.turn, place.kind, contrast)
            except InputError:  # it changes nothing there: nobody finds that
                continue
            painted.add(place)
            one = judged_image(row, image, mask, rng, before=pixels)
            shown.append((number, one, as_input(prepare, row, image, "test", f"{row.path}#{number}")))
        if shown:
            judged = detector.predict(Table([row for _, _, row in shown]), **compute.arguments())
            for (number, one, _), values in zip(shown, judged.maps, strict=True):
                found[number] = _share(window_map(values, one), one.mask, thresholds) >= _HALF
        rounds += 1
        if progress is not None:
            progress("finding the contrasts that matter", rounds, 3)
        return found

    first = first_seen(places, seen)
    told: dict[Kind, float | None] = {}
    for kind in kinds:
        own = [value for place, value in zip(places, first, strict=True) if place.kind == kind and place in painted]
        if own:
            told[kind] = _mean(own)
    return told


def _share(values: NDArray[np.float32], mask: NDArray[np.bool_] | None, thresholds: NDArray[np.float64]) -> float:
    """Return which share of a defect reaches a threshold, on average over the thresholds."""
    inside = np.sort(values[mask])
    above = len(inside) - np.searchsorted(inside, thresholds)  # (T,)
    return float(above.mean() / len(inside))


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the geometric mean; what was not found counts as a step beyond contrast 1, all of them as None."""
    if all(value is None for value in values):
        return None
    beyond = CONTRASTS[-1] * math.sqrt(CONTRASTS[1] / CONTRASTS[0])
    return math.exp(sum(math.log(beyond if value is None else value) for value in values) / len(values))
