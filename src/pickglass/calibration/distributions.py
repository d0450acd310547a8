"""The binomial, beta and t distributions, for promises and drift, without SciPy.

All three are the regularised incomplete beta function I_x(a, b), by its continued fraction (NIST Digital Library of
Mathematical Functions, https://dlmf.nist.gov, 8.17.22) where that converges quickly, and by its symmetry (8.17.4)
elsewhere. What stands before the fraction is written with deviances and the remainders of Stirling's series, since
logarithms of gamma functions cancel for large a and b (Loader, "Fast and accurate computation of binomial
probabilities", 2000). Quantiles are Newton's in the log-odds of x: there the logarithm of a beta's tail is concave, so
that its steps come from one side and never run away. ``tests/test_distributions.py`` holds them against SciPy.
"""

from __future__ import annotations

import math

__all__ = ["beta_quantile", "binomial_cdf", "t_quantile"]

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)  # DLMF 5.11.1, enough from 10 on
_LEAST = -700.0  # log-odds of the smallest x


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Compute the chance of at most k successes in n trials, each with the chance p.

    >>> round(binomial_cdf(1, 2, 0.5), 12)
    0.75
    """
    if k <= 0:
        return float((1 - p) ** n) if k == 0 else 0.0
    return 1.0 if k >= n else math.exp(_log_beta(n - k, k + 1, 1 - p, p)[0])


def beta_quantile(p: float, a: float, b: float) -> float:
    """Compute the value below which a share p of a beta distribution lies, 0 < p < 1.

    >>> round(beta_quantile(0.5, 2.0, 2.0), 12)
    0.5
    """
    return 1 / (1 + math.exp(-_log_odds(p, a, b)))


def t_quantile(p: float, free: float) -> float:
    """Compute the value below which a share p of Student's t distribution lies, 0 < p < 1.

    Args:
        p: the share.
        free: degrees of freedom.

    >>> round(t_quantile(0.975, 10), 4)
    2.2281
    """
    if p == 0.5:
        return 0.0
    # t^2 / (free + t^2) is Beta(1 / 2, free / 2), and its odds are t^2 / free; a far tail is that of the other beta
    tail = 2 * min(p, 1 - p)
    log_odds = -_log_odds(tail, free / 2, 0.5) if tail < 0.5 else _log_odds(1 - tail, 0.5, free / 2)
    return math.copysign(math.sqrt(free * math.exp(log_odds)), p - 0.5)


def _log_odds(p: float, a: float, b: float) -> float:
    """Find u = log(x / (1 - x)) for which I_x(a, b) = p."""
    if p > 0.5:  # 1 - p is exact
        return -_log_odds(1 - p, b, a)
    u, before = math.log(a / b), math.inf
    while abs(u - before) > 1e-9:  # what the next step would change is below the rounding of u
        far = math.exp(-abs(u))
        near = 1 / (1 + far)
        log_below, log_slope = _log_beta(a, b, *((far * near, near) if u < 0 else (near, far * near)))
        step = (log_below - math.log(p)) * math.exp(log_below - log_slope)
        before, u = u, max(u - step, _LEAST)
    return u


def _log_beta(a: float, b: float, x: float, y: float) -> tuple[float, float]:
    """Compute the logarithms of I_x(a, b), y = 1 - x, and of its derivative by the log-odds of x, x^a y^b / B(a, b)."""
    log_slope = 0.5 * math.log(a / (a + b) * b / (2 * math.pi)) - _deviance(a, b, x, y)
    log_slope += _remainder(a + b) - _remainder(a) - _remainder(b)
    if x <= (a + 1) / (a + b + 2):
        return log_slope + math.log(_fraction(a, b, x) / a), log_slope
    return math.log1p(-math.exp(log_slope) * _fraction(b, a, y) / b), log_slope


def _deviance(a: float, b: float, x: float, y: float) -> float:
    """Compute a log(a / (n x)) + b log(b / (n y)), n = a + b, which is small where x is near a / n."""
    off = a * y - b * x  # a - n x
    return sum(
        -of * (math.log((a + b) * share / of) if (a + b) * share < of / 2 else math.log1p(-by / of))
        for of, share, by in ((a, x, off), (b, y, -off))
    )


def _remainder(z: float) -> float:
    """Compute log(gamma(z)) less the leading terms of Stirling's series."""
    if z < 10:
        return math.lgamma(z) - ((z - 0.5) * math.log(z) - z + 0.5 * math.log(2 * math.pi))
    return sum(term / z ** (2 * i + 1) for i, term in enumerate(_STIRLING))


def _fraction(a: float, b: float, x: float) -> float:
    """Compute the continued fraction of DLMF 8.17.22 by Lentz's algorithm (Applied Optics 1976)."""
    value, above, below = 1.0, 1.0, 0.0  # so far; ratio of the last two numerators, and that of denominators, inverted
    m, factor = 0, 0.0
    while abs(factor - 1) > 1e-15:
        for term in (
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
            (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2)),
        ):
            above, below = 1 + term / above, 1 / (1 + term * below)
            factor = above * below
            value *= factor
        m += 1
    return 1 / value
