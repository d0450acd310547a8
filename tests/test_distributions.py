"""The distributions behind promises and drift, against SciPy and against sums of decimals of fifty digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import special

from pickglass.calibration.distributions import beta_quantile, binomial_cdf, t_quantile
from pickglass.calibration.promises import shift_bound, tolerance_bound, tolerance_needs, tolerance_rank

SIZES = (1, 2, 3, 7, 20, 99, 299, 1000, 10_000, 100_000)
LEVELS = (1e-9, 1e-6, 0.001, 0.05, 0.3, 0.4999, 0.5001, 0.7, 0.86, 0.95, 0.999, 1 - 1e-6, 1 - 1e-9)
SCIPYS = LEVELS[2:-2]  # SciPy 1.11 knows the quantiles of a beta; beyond these levels it gives 1 for 0.19
RATES = (1e-6, 1e-5, 0.001, 0.01, 0.05, 0.3, 0.5, 0.9)
CLOSE = 5e-6  # SciPy 1.11 is off by 7e-7 at 100,000 trials, 1.17 by 5e-10: what is exact has a test of its own


def near_the_mean(n: int, p: float) -> list[int]:
    middle, spread = n * p, math.sqrt(n * p * (1 - p))
    ks = {0, 1, n // 2, n - 1, *(round(middle + z * spread) for z in (-8, -3, -1, 0, 1, 3, 8))}
    return sorted(k for k in ks if 0 <= k < n)


def exact_binomial(n: int, p: float) -> Iterator[float]:
    """At most 0, 1, 2 ... successes."""
    with localcontext() as context:
        context.prec = 50
        odds = Decimal(p) / (1 - Decimal(p))
        chance = total = (1 - Decimal(p)) ** n
        for k in range(n):
            yield float(total)
            chance *= odds * (n - k) / (k + 1)
            total += chance


@pytest.mark.parametrize("n", [1, 2, 7, 60, 3000, 100_000])
def test_the_binomial_is_a_sum(n: int) -> None:
    for p in (1e-6, 0.0006317624255059473, 0.01, 0.3, 0.5):
        ks = near_the_mean(n, p)[:-1] or [0]
        for k, expected in enumerate(itertools.islice(exact_binomial(n, p), ks[-1] + 1)):
            if k in ks and expected > 1e-290:
                assert binomial_cdf(k, n, p) == pytest.approx(expected, rel=1e-11)
    assert (binomial_cdf(-1, n, 0.3), binomial_cdf(n, n, 0.3)) == (0, 1)


def test_the_binomial_is_scipys() -> None:
    for n in SIZES:
        for p in RATES:
            for k in near_the_mean(n, p):
                if (expected := special.bdtr(k, n, p)) > 1e-290:
                    assert binomial_cdf(k, n, p) == pytest.approx(expected, rel=CLOSE)


def test_quantiles_of_the_beta_are_scipys() -> None:
    for n in SIZES:
        for r in sorted({0, 1, 5, n // 100, n // 2, n - 1} & set(range(n))):
            for p in LEVELS:
                value = beta_quantile(p, r + 1, n - r)
                if p in SCIPYS:
                    assert value == pytest.approx(special.betaincinv(r + 1, n - r, p), rel=CLOSE)
                if value < 0.9:  # closer to 1 its rounding shows
                    assert binomial_cdf(r, n, value) == pytest.approx(1 - p, rel=1e-10)
        for p in LEVELS:  # the highest of n: 1 - (1 - x)^n = p
            assert beta_quantile(p, 1, n) == pytest.approx(-math.expm1(math.log1p(-p) / n), rel=1e-11)


def test_quantiles_of_t_are_scipys() -> None:
    for free in (1, 2, 3, 5, 10, 100, 10_000, 100_000):
        assert t_quantile(0.5, free) == 0
        for p in LEVELS:
            assert t_quantile(p, free) == pytest.approx(special.stdtrit(free, p), rel=CLOSE)
    for p in LEVELS:  # with one degree of freedom it is Cauchy's, with two it has a formula too
        tail = min(p, 1 - p)
        assert t_quantile(p, 1) == pytest.approx(math.copysign(1 / math.tan(math.pi * tail), p - 0.5), rel=1e-10)
        assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-10)


def test_levels_beyond_all_use_still_have_an_answer() -> None:
    for p in (5e-324, 1e-300, 1e-30, 1 - 2**-53):
        for a, b in ((1, 1), (1, 100_000), (100_000, 1), (0.5, 0.5), (50, 3)):
            assert 0 < beta_quantile(p, a, b) <= 1


def rank_by_scipy(n: int, false_alarm: float, confidence: float) -> int | None:
    broken = special.bdtr(np.arange(n, dtype=np.float64), n, false_alarm)
    admissible = int(np.searchsorted(broken, 1 - confidence, side="right"))
    return admissible - 1 if admissible else None


def test_ranks_and_bounds_of_promises_are_those_that_scipy_gave() -> None:
    rng = np.random.default_rng(0)
    for n in (*SIZES, *(10 ** rng.uniform(0, 5, 10)).astype(int).tolist()):
        for rate in (1e-6, 1e-4, 0.003, 0.01, 0.05, 0.3):
            for confidence in (1e-9, 0.5001, 0.86, 0.95, 0.999, 1 - 1e-9):
                rank = tolerance_rank(n, rate, confidence)
                assert rank == rank_by_scipy(n, rate, confidence)
                if rank is not None and confidence in SCIPYS:
                    bound = special.betaincinv(rank + 1, n - rank, confidence)
                    assert tolerance_bound(n, rank, confidence) == pytest.approx(bound, rel=CLOSE)


def shift_by_scipy(n: int, r: int, shift: int, level: float) -> int:
    k = np.arange(shift + 1, dtype=np.float64)
    log_choose = special.gammaln(shift + 1) - special.gammaln(k + 1) - special.gammaln(shift - k + 1)
    log_mass = log_choose + special.betaln(k + r + 1, shift - k + n - r) - special.betaln(r + 1, n - r)
    return min(int(np.searchsorted(np.cumsum(np.exp(log_mass)), level)), shift)


def test_bounds_of_a_shift_are_those_that_scipy_gave() -> None:
    for n, r in ((1, 0), (20, 0), (212, 3), (212, 211), (5000, 40), (100_000, 999)):
        for shift in (0, 1, 50, 2000, 50_000):
            for level in (0.05, 0.5, 0.9, 0.95, 0.999):
                assert shift_bound(n, r, shift, level) == shift_by_scipy(n, r, shift, level)


def test_needs_of_rare_false_alarms() -> None:
    for rate, confidence in ((3e-5, 0.95), (1e-4, 0.999), (0.5, 1e-9)):
        needed = tolerance_needs(rate, confidence)
        assert (1 - rate) ** needed <= 1 - confidence
        assert needed == 1 or (1 - rate) ** (needed - 1) > 1 - confidence
