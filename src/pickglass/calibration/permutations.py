"""Permutations tell exactly, for any number of units, whether two samples may come from one distribution.

If reference and new units are exchangeable, each way to call m of all n + m units "new" is as likely as the one that
came. The p-value is the share of these ways whose statistic is at least the observed one; where there are too many,
the share among random ones with the observed one counted (Phipson and Smyth 2010, "Permutation p-values should never
be zero"). P(p <= level) <= level then holds exactly, with any statistic that sees the pooled units first and the
labels after.

``scipy.stats.permutation_test`` gives the same p-values where all labellings are tried (a test holds that). It is not
used because it draws labellings anew for each statistic, which takes three to four times as long, and counts as ties
only what agrees within 1e-14, which is less than the rounding of an energy distance.

Letters: n reference units, m new ones, N = n + m pooled with the new ones last, B labellings, d dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "Statistic",
    "cliffs_delta",
    "cramer_von_mises",
    "energy",
    "holm",
    "permutation_p_values",
    "smallest_p_value",
    "whitened",
]

FloatArray = npt.NDArray[np.float64]

Statistic = Callable[[FloatArray], FloatArray]
"""Labellings (B, N), 1 for new and 0 for reference, each with m ones -> (B,), higher = farther apart."""

_AT_ONCE = 500  # labellings
_TIE = 1e-9  # what statistics may differ by and count as equal, so that rounding never makes a p-value smaller


def permutation_p_values(
    statistics: Sequence[Statistic], n: int, m: int, labellings: int, rng: np.random.Generator
) -> list[float]:
    """Compute the p-value of each statistic, all under the same labellings.

    Args:
        statistics: values of N = n + m pooled units, of which the last m are new.
        n: reference units.
        m: new units.
        labellings: all possible ones are tried up to this number, beyond it as many random ones.
        rng: draws the random ones.

    >>> apart = cramer_von_mises(np.array([1.0, 2.0, 3.0, 7.0, 8.0]))  # one of the two most extreme of 10 labellings
    >>> permutation_p_values([apart], 3, 2, 1000, np.random.default_rng(0))
    [0.2]
    """
    actual = np.zeros((1, n + m))
    actual[:, n:] = 1
    observed = [statistic(actual)[0] for statistic in statistics]
    if math.comb(n + m, m) <= labellings:
        source, total, counts = _all(n + m, m), 0, [0] * len(statistics)
    else:
        source, total, counts = _random(actual[0], labellings - 1, rng), 1, [1] * len(statistics)
    for labels in source:
        total += len(labels)
        for k, statistic in enumerate(statistics):
            counts[k] += int((statistic(labels) >= observed[k] - _TIE).sum())
    return [count / total for count in counts]


def _all(units: int, m: int) -> Iterator[FloatArray]:
    choices = itertools.combinations(range(units), m)
    while chunk := list(itertools.islice(choices, _AT_ONCE)):
        labels = np.zeros((len(chunk), units))
        np.put_along_axis(labels, np.array(chunk), 1.0, axis=1)
        yield labels


def _random(actual: FloatArray, count: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    for start in range(0, count, _AT_ONCE):
        yield rng.permuted(np.tile(actual, (min(_AT_ONCE, count - start), 1)), axis=1)


def smallest_p_value(n: int, m: int) -> float:
    """Return the least that a permutation p-value of n against m units can be.

    The statistics here see both directions, so that new values all above and all below the others count the same.

    >>> smallest_p_value(5, 3) * 56
    2.0
    """
    return min(1.0, 2 / math.comb(n + m, m))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being several (Holm 1979).

    Those <= level are rejected, and with a chance of at most level any of them wrongly.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, k in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = highest
    return adjusted


# -- statistics -------------------------------------------------------------------------------------------------------


def cramer_von_mises(values: npt.ArrayLike) -> Statistic:
    """Sum the squared difference of the two distribution functions over the pooled values (N,); ties are no harm.

    Sees a change of level and one of spread alike (Anderson 1962, without its constant).
    """
    x = np.asarray(values, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    last = np.searchsorted(x[order], x[order], side="right") - 1  # (N,) the end of each run of ties

    def statistic(labels: FloatArray) -> FloatArray:
        m = labels[0].sum()
        new = labels[:, order].cumsum(axis=1)[:, last]  # (B, N) new units up to each value
        difference = new / m - (last + 1 - new) / (len(x) - m)
        squared: FloatArray = (difference**2).sum(axis=1)
        return squared

    return statistic


def energy(points: FloatArray) -> Statistic:
    """Compute the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of points (N, d) (Szekely and Rizzo 2004).

    Zero in expectation only if the two distributions are equal.
    """
    square = (points**2).sum(axis=1)
    distances = np.sqrt(np.maximum(square[:, None] + square - 2 * points @ points.T, 0))  # (N, N)
    np.fill_diagonal(distances, 0)
    each, whole = distances.sum(axis=1), distances.sum()

    def statistic(labels: FloatArray) -> FloatArray:
        m = labels[0].sum()
        n = len(points) - m
        from_new = labels @ each  # (B,) sum over new units and all others
        within_new = np.einsum("bi,bi->b", labels @ distances, labels)
        within_reference = whole - 2 * from_new + within_new
        distance: FloatArray = 2 * (from_new - within_new) / (n * m) - within_new / m**2 - within_reference / n**2
        return distance

    return statistic


def whitened(vectors: npt.ArrayLike, most: int) -> FloatArray:
    """Whiten pooled vectors (N, d): (N, k) in their main directions, with unit variance, k <= most and k <= N / 2.

    Uses the pooled units without their labels, as an exact test must. Each channel has been divided by its standard
    deviation before; what hardly varies (below a thousandth of the mean deviation: rounding) is held down.
    """
    x = np.asarray(vectors, dtype=np.float64)
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    left, sizes, _ = np.linalg.svd(x / (spread + 1e-3 * spread.mean() + 1e-12), full_matrices=False)
    k = min(most, len(x) // 2, int((sizes > 1e-6 * max(sizes[0], 1e-6)).sum()))
    directions: FloatArray = left[:, :k] * math.sqrt(len(x))
    return directions


def cliffs_delta(reference: FloatArray, new: FloatArray) -> float:
    """Compute P(new > reference) - P(new < reference), -1 to 1: how far new values lie above the reference.

    >>> cliffs_delta(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.75
    """
    return float(np.sign(new[:, None] - reference).mean())
