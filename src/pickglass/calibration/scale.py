"""A p-value and its -log10 say how rare a score is among good parts, for people to read beside the raw score.

Within the calibration scores the p-value is empirical: at the k-th largest of n it is k / (n + 1), the mean chance
that the next good part scores at least as high, and linear between. Above the highest it goes on with a generalised
Pareto tail (Pickands 1975) over the top tenth, at least ten, of the scores, and is marked as extrapolated: its order
of magnitude may help to rank findings, but no guarantee rests on it. The shape comes from probability-weighted
moments (Hosking & Wallis 1987), is pulled towards 0.5 with the weight of ten scores, as in Pareto-smoothed importance
sampling (Vehtari et al. 2024, appendix), since a tail that is taken too light claims too much, and is never below 0:
the tail has no end, and no score is off the scale.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["PValue", "Tail", "fit_tail", "p_value"]

FloatArray = npt.NDArray[np.float64]

_LEAST = 3  # scores from which a tail is fitted at all
_PRIOR = 10  # scores that the usual shape weighs as much as


class Tail(NamedTuple):
    """A tail gives the chance to exceed ``start + x``, given ``start``: (1 + shape x / scale)^(-1 / shape)."""

    start: float
    scale: float
    shape: float

    def log_chance(self, value: float) -> float:
        """Return the natural logarithm of that chance at ``value``, which is at least ``start``."""
        x = (value - self.start) / self.scale
        return -math.log1p(self.shape * x) / self.shape if self.shape > 0 else -x


class PValue(NamedTuple):
    """A score is this rare among good parts.

    Attributes:
        p: the chance that a good part scores as high, 0 to 1; it may underflow to 0 where ``log10`` still tells.
        log10: -log10(p), without an upper end.
        extrapolated: the score lies outside the calibration scores; the figure rests on a fitted tail.
    """

    p: float
    log10: float
    extrapolated: bool


def fit_tail(scores: FloatArray) -> Tail | None:
    """Fit a tail to the top of scores (n,), rising; None for fewer than three, or where the top has no spread."""
    n = len(scores)
    if n < _LEAST:
        return None
    k = min(n - 1, max(10, math.ceil(n / 10)))
    start = float(scores[-k - 1])
    excess = scores[-k:] - start  # (k,) rising
    mean = float(excess.mean())
    if mean <= 0:
        return None
    weights = 1 - (np.arange(1, k + 1) - 0.35) / k  # chance of exceeding the j-th smallest
    moment = float((weights * excess).mean())
    shape = 2 - mean / (mean - 2 * moment) if mean > 2 * moment else 0.0
    shape = max(0.0, (k * shape + _PRIOR * 0.5) / (k + _PRIOR))
    return Tail(start, mean * (1 - shape), shape)


def p_value(score: float, scores: FloatArray, tail: Tail | None) -> PValue:
    """Compute the p-value of a score; it falls as the score rises, strictly so outside the scores if there is a tail.

    Args:
        score: raw score.
        scores: (n,) of good units, rising, at least one.
        tail: from :func:`fit_tail`; without it the p-value stays at that of the highest score, still marked.
    """
    n, highest, lowest = len(scores), float(scores[-1]), float(scores[0])
    if score > highest:
        last = n - int(np.searchsorted(scores, highest))  # ties at the top
        log = math.log(last / (n + 1))
        if tail is not None:
            log += tail.log_chance(score) - tail.log_chance(highest)
        return PValue(math.exp(log), -log / math.log(10), True)
    if score < lowest:
        # towards 1, at the pace of the lower half of the scores
        pace = float(scores[(n - 1) // 2] + scores[n // 2]) / 2 - lowest  # the median, of scores that rise
        p = 1 - math.exp((score - lowest) / pace) / (n + 1) if pace > 0 else n / (n + 1)
        return PValue(p, abs(math.log10(p)), True)
    at = int(np.searchsorted(scores, score))  # at a tie all of its scores count
    p = (n - at) / (n + 1)
    if scores[at] != score:
        below = int(np.searchsorted(scores, scores[at - 1]))
        p = float(np.interp(score, scores[at - 1 : at + 1], [(n - below) / (n + 1), p]))
    return PValue(p, abs(math.log10(p)), False)
