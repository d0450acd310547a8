"""How far painted and real defects have agreed so far, and what follows for how much a painted gain is worth.

On data sets with real defects every candidate was judged by painted defects and by the real ones (``python -m
bench run regret``). The rows below are what came out; ``python -m bench table regret:transfer`` prints them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["MEASURED", "Agreement", "agreement", "spread", "widened"]

Gain = tuple[float, float, float]

_SURE = 1.96  # standard deviations on either side that hold 95 %


class Agreement(NamedTuple):
    """How painted and real defects of one data set agreed.

    Attributes:
        name: what the data set is called.
        candidates: how many were judged by both.
        correlation: how far the ranks agree that painted and real defects gave them, -1 to 1.
        spread: root mean square of the difference between painted and real gain over the default, in AUPRO@0.05.
    """

    name: str
    candidates: int
    correlation: float
    spread: float


MEASURED: tuple[Agreement, ...] = (
    Agreement("hazelnut", 9, -0.38, 0.095),
    Agreement("transistor", 9, -0.05, 0.111),
    Agreement("magnetic tiles", 8, 0.55, 0.071),
    Agreement("AITEX fabric 04", 9, 0.08, 0.098),
)


def spread(without: str | None = None) -> float:
    """Return by how much a real gain has differed from the painted one, over sets; one set may be left out."""
    sets = [one.spread for one in MEASURED if one.name != without]
    return math.sqrt(sum(value**2 for value in sets) / len(sets))


def widened(gain: Gain, by: float) -> Gain:
    """Count a spread into the interval of a gain: (value, low, high)."""
    value, low, high = gain
    reach = _SURE * by
    return value, value - math.hypot(value - low, reach), value + math.hypot(high - value, reach)


def agreement() -> str:
    """Say in a sentence how far painted and real defects have agreed."""
    ranks = ", ".join(f"{one.name} {one.correlation:+.2f}" for one in MEASURED)
    return (
        f"So far painted and real defects agreed this far on {len(MEASURED)} data sets: rank correlation of the "
        f"candidates {ranks}; a real gain differed from the painted one by {spread():.2f} AUPRO@0.05, which the "
        "interval of a gain counts in."
    )
