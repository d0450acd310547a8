"""Order statistics of good images say which rank keeps a promise, what it amounts to, and how many images it takes.

An image is flagged if its score *exceeds* T, the (r + 1)-th largest of n calibration scores. For exchangeable scores
without ties the true false-alarm rate is then Beta(r + 1, n - r) over calibration sets (Vovk 2012, "Conditional
validity of inductive conformal predictors"; tolerance limits: Wilks 1941). Ties only lower it, for a score equal to T
is not flagged: the promises stay on the safe side for discrete scores.

Letters: n calibration units (images, or groups of them), r of them may exceed T, a false-alarm rate, K shares.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError

__all__ = [
    "SHARES",
    "area_threshold",
    "average_bound",
    "average_needs",
    "average_rank",
    "flagged_curve",
    "group_maxima",
    "shift_bound",
    "tolerance_bound",
    "tolerance_needs",
    "tolerance_rank",
]

FloatArray = npt.NDArray[np.float64]

SHARES: FloatArray = np.append(0.0, np.geomspace(1e-7, 1.0, 816))
"""(K,) shares of an image's pixels at which a map is summarised, two per cent apart."""


def group_maxima(values: Sequence[float] | FloatArray, groups: Sequence[Hashable | None] = ()) -> FloatArray:
    """Return the highest value of each group, rising; entries without a group (None) stand for themselves.

    Images of one part are not exchangeable with those of others one by one, but the parts are. A part counts once,
    with its highest value: the share of parts of which *any* image is flagged is bounded, and so is the share of
    images.

    Args:
        values: (N,), or (N, K) of which each column is taken on its own; the rows of the result are then unsorted.
        groups: (N,), or empty: no groups.

    >>> group_maxima([3.0, 1.0, 2.0], ["a", "b", "a"]).tolist()
    [1.0, 3.0]
    """
    table: FloatArray = np.asarray(values, dtype=np.float64)
    if groups and len(groups) != len(table):
        raise InputError(f"{len(groups)} groups for {len(table)} values: expected one a value, or none at all")
    if groups:
        members: dict[Hashable, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault((i,) if group is None else (group, "group"), []).append(i)
        table = np.array([table[rows].max(axis=0) for rows in members.values()])
    return np.sort(table) if table.ndim == 1 else table


# -- with confidence --------------------------------------------------------------------------------------------------


def tolerance_rank(n: int, false_alarm: float, confidence: float) -> int | None:
    """Find the largest r for which P(rate > false_alarm) <= 1 - confidence over calibration sets; None: not even 0.

    >>> tolerance_rank(299, 0.01, 0.95), tolerance_rank(298, 0.01, 0.95), tolerance_rank(473, 0.01, 0.95)
    (0, None, 1)
    """
    from scipy.special import bdtr

    # P(Beta(r + 1, n - r) > a) = P(Binomial(n, a) <= r)
    broken: FloatArray = bdtr(np.arange(n, dtype=np.float64), n, false_alarm)  # (n,) rising in r
    admissible = int(np.searchsorted(broken, 1 - confidence, side="right"))
    return admissible - 1 if admissible else None


def tolerance_bound(n: int, r: int, confidence: float) -> float:
    """Compute the rate that is exceeded with a chance of just 1 - confidence: the quantile of Beta(r + 1, n - r).

    >>> round(tolerance_bound(299, 0, 0.95), 5)
    0.00997
    """
    from scipy.special import betaincinv

    return 1.0 if r >= n else float(betaincinv(r + 1, n - r, confidence))


def tolerance_needs(false_alarm: float, confidence: float) -> int:
    """Count the units that a promise with r = 0 takes: the least n with (1 - false_alarm)^n <= 1 - confidence."""
    n = max(1, math.ceil(math.log1p(-confidence) / math.log1p(-false_alarm)) - 1)
    while tolerance_rank(n, false_alarm, confidence) is None:
        n += 1
    return n


# -- on average -------------------------------------------------------------------------------------------------------


def average_rank(n: int, false_alarm: float) -> int | None:
    """Find the largest r with (r + 1) / (n + 1) <= false_alarm (split conformal); None: not even 0."""
    r = math.floor(false_alarm * (n + 1) + 1e-9) - 1  # 0.07 * 100 is a little more than 7, 0.29 * 100 a little less
    return r if r >= 0 else None


def average_bound(n: int, r: int) -> float:
    """Compute the rate on average over calibration sets: the mean of Beta(r + 1, n - r)."""
    return (r + 1) / (n + 1)


def average_needs(false_alarm: float) -> int:
    """Count the units that a promise on average takes with r = 0."""
    return max(1, math.ceil(1 / false_alarm - 1e-9) - 1)


# -- a shift ----------------------------------------------------------------------------------------------------------


def shift_bound(n: int, r: int, shift: int, level: float) -> int:
    """Count the most of the next ``shift`` good parts that are flagged, at this level over calibration sets and shifts.

    The count is beta-binomial: binomial with a rate that is itself Beta(r + 1, n - r).

    >>> shift_bound(212, 0, 2000, 0.95)
    29
    """
    from scipy.special import betaln, gammaln

    if r >= n:
        return shift
    k = np.arange(shift + 1, dtype=np.float64)
    log_choose = gammaln(shift + 1) - gammaln(k + 1) - gammaln(shift - k + 1)
    log_mass = log_choose + betaln(k + r + 1, shift - k + n - r) - betaln(r + 1, n - r)
    return min(int(np.searchsorted(np.cumsum(np.exp(log_mass)), level)), shift)


# -- area -------------------------------------------------------------------------------------------------------------


def flagged_curve(full_map: npt.NDArray[np.floating]) -> FloatArray:
    """Find how high a threshold has to be so that at most each share of a map exceeds it.

    Args:
        full_map: (H, W), at the size at which masks are made.

    Returns:
        (K,) falling: above value k lies at most the share ``SHARES[k]`` of the pixels; the last is minus infinity.
    """
    falling = np.sort(full_map, axis=None)[::-1].astype(np.float64)  # (H W,)
    ranks = np.floor(SHARES * falling.size).astype(np.int64)
    return np.append(falling[ranks[:-1]], -math.inf)


def area_threshold(curves: FloatArray, false_alarm: float) -> float | None:
    """Find the least T at which (sum of flagged shares + 1) / (n + 1) <= false_alarm: conformal risk control.

    The expected flagged share of the next good unit is then at most ``false_alarm``, on average over calibration sets
    (Angelopoulos et al. 2022, "Conformal Risk Control", theorem 1, with losses between 0 and 1).

    Args:
        curves: (n, K) of :func:`flagged_curve`, or their maxima over groups.

    Returns:
        None where the units are too few.
    """
    n = len(curves)
    if n == 0 or false_alarm * (n + 1) + 1e-9 < 1:
        return None
    # Just below curves[i, k] the share of unit i steps up from SHARES[k] to the next.
    values = curves[:, :-1].ravel()
    order = np.argsort(-values, kind="stable")
    falling, risen = values[order], np.cumsum(np.tile(np.diff(SHARES), n)[order])
    # At T = falling[i] only strictly higher steps have been taken.
    first = np.searchsorted(-falling, -falling, side="left")
    share = np.where(first > 0, risen[np.maximum(first - 1, 0)], 0.0)
    allowed = np.flatnonzero(share + 1 <= false_alarm * (n + 1) + 1e-9)
    return float(falling[allowed[-1]])
