"""Regressions by scikit-learn learn the names of defects from few examples, and are tried by group.

Letters: n examples, B images, K types, D dimensions of the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.errors import InputError, MissingExtra
from pickglass.nn.pooling import Pooling

__all__ = ["Crossed", "Regression", "cross_validated", "probability_threshold", "regression"]

_Float = npt.NDArray[np.float64]

_STRENGTHS = (1.0, 10.0, 100.0)  # C of the regression, on examples with a mean squared norm of 1
_FOLDS = 5
_LEAST_NAMED = 5  # names that a threshold has to rest on


class Regression(NamedTuple):
    """A fitted regression: weight (K, D), bias (K,), mean (D,), scale (D,) or (1,)."""

    weight: _Float
    bias: _Float
    mean: _Float
    scale: _Float

    def standard(self, features: _Float) -> _Float:
        """Shift and scale features (B, D) so that over the examples the mean is 0 and the mean squared norm 1."""
        return (features - self.mean) / self.scale

    def probabilities(self, features: _Float) -> _Float:
        """Return the probability of each type, (B, K), for features (B, D)."""
        logits = self.standard(features) @ self.weight.T + self.bias
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: _Float = exp / exp.sum(axis=1, keepdims=True)
        return found


class Crossed(NamedTuple):
    """A cross-validation by group.

    Attributes:
        strength: the C with the least loss.
        probabilities: (n, K) of each example, by the regression fitted without its group.
        folds: how many there were.
    """

    strength: float
    probabilities: _Float
    folds: int


def cross_validated(
    marked: _Float, seen: _Float, y: npt.NDArray[np.int64], groups: Sequence[str], pooling: Pooling, seed: int
) -> Crossed:
    """Choose the strength and name every example without its group, learning from both kinds of regions.

    Args:
        marked: (n, D), features of the regions that are marked.
        seen: (n, D), of those that the detector finds; these are named.
        y: (n,) types, 0 to K - 1, each of two groups at least.
        groups: n names of parts.
        pooling: how the features were pooled.
        seed: seeds the folds.
    """
    _sklearn()
    from sklearn.model_selection import StratifiedGroupKFold

    n, kinds = len(y), int(y.max()) + 1
    folds = min(_FOLDS, *(len({g for g, label in zip(groups, y, strict=True) if label == k}) for k in range(kinds)))
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(marked, y, groups)
    found = {strength: np.zeros((n, kinds)) for strength in _STRENGTHS}
    for train, test in splits:
        both = np.concatenate([marked[train], seen[train]])
        tried = regression(both, np.tile(y[train], 2), kinds, _STRENGTHS, pooling)
        for strength, fitted in zip(_STRENGTHS, tried, strict=True):
            found[strength][test] = fitted.probabilities(seen[test])
    losses = {s: -np.log(p[np.arange(n), y].clip(1e-12)).mean() for s, p in found.items()}
    best = min(losses, key=losses.__getitem__)
    return Crossed(best, found[best], folds)


def probability_threshold(probabilities: _Float, right: npt.NDArray[np.bool_], sure: float) -> float:
    """Return the least probability from which at least the share ``sure`` of the (n,) tried names is right.

    Raises:
        InputError: there is none with at least five names.
    """
    order = np.argsort(-probabilities, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(probabilities[order]) != 0, True)  # equal probabilities are named together
    good = np.flatnonzero((share >= sure) & last & (np.arange(1, len(order) + 1) >= min(_LEAST_NAMED, len(order))))
    if len(good) == 0:
        raise InputError(
            f"the examples do not tell the types apart: in cross-validation by group {right.mean():.0%} of the names "
            f"were right, and from no probability on {sure:.0%}: give more examples, another pooling or other layers, "
            "join types that look alike, or ask for less (sure)"
        )
    return float(probabilities[order[good[-1]]])


def regression(
    x: _Float, y: npt.NDArray[np.int64], kinds: int, strengths: Sequence[float], pooling: Pooling
) -> list[Regression]:
    """Fit multinomial logistic regressions with an L2 penalty, one a strength, to examples (n, D) of types 0 to K - 1.

    They are solved in the n dimensions where the examples lie rather than in D: the penalty keeps the weights in the
    span of the examples, so that this is exact.
    """
    _sklearn()
    from sklearn.linear_model import LogisticRegression

    mean, spread = x.mean(axis=0), x.std(axis=0)
    if pooling == "bilinear":  # the norm is 1 already: scaling each pair on its own would raise the rare ones
        spread = np.sqrt(np.square(spread).mean(keepdims=True))
    scale = np.where(spread > 1e-12 * max(1.0, float(spread.max())), spread, 1.0) * math.sqrt(x.shape[1])
    u, s, v = np.linalg.svd((x - mean) / scale, full_matrices=False)
    rank = max(1, int((s > 1e-9 * s[0]).sum()))
    found = []
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=2000).fit(u[:, :rank] * s[:rank], y)
        weight, bias = np.zeros((kinds, x.shape[1])), np.full(kinds, -np.inf)
        coefficients, intercepts = model.coef_ @ v[:rank], model.intercept_
        if len(model.classes_) == 2:  # one row for two types
            coefficients, intercepts = np.stack([0 * coefficients[0], coefficients[0]]), np.array([0.0, intercepts[0]])
        weight[model.classes_], bias[model.classes_] = coefficients, intercepts
        found.append(Regression(weight, bias, mean, scale))
    return found


def _sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtra.needed("learning to name defects", error) from error
