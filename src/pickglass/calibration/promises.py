"""Scores of good images become thresholds. Scores stay raw; a verdict is a score compared with a threshold.

Three promises about the good parts that will be flagged, never mixed: ``tolerance`` holds with a stated confidence for
this very calibration set, ``marginal`` (split conformal) only on average over calibration sets, and ``estimate`` (from
scores of images judged by refitted models) is no promise at all. :mod:`pickglass.calibration.ranks` has the theory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pickglass.calibration.ranks import group_maxima
from pickglass.calibration.scale import PValue, Tail, fit_tail, p_value

__all__ = ["Calibration", "Evidence", "Source", "Verdict", "best_f1", "fixed_value", "highest_score"]

Verdict = Literal["good", "bad"]

Source = Literal["held back", "given", "folds"]
"""Where scores come from: images held back at the fit, images given later, training images judged by refits."""


@dataclass(frozen=True)
class Evidence:
    """Good images that were not fitted are the evidence that a threshold rests on.

    Attributes:
        scores: (N,) image scores.
        peaks: (N,) highest map value of each image.
        groups: (N,) name of the part or roll, None for an image that stands alone; empty: all do.
        source: where the scores come from.
        curves: (N, K) of :func:`pickglass.calibration.ranks.flagged_curve`, only needed for the promise ``area``.
        settings: digest of the settings of the detector.
        proviso: a condition that could not be checked; the sentence states it.
    """

    scores: Sequence[float]
    peaks: Sequence[float]
    groups: Sequence[str | None] = ()
    source: Source = "given"
    curves: npt.NDArray[np.float64] | None = None
    settings: str = ""
    proviso: str = ""

    @property
    def grouped(self) -> bool:
        """Some image belongs to a group."""
        return any(group is not None for group in self.groups)

    def record(self, promise: str, image: float | None, pixel: float | None, **more: Any) -> Calibration:
        """Make the calibration that rests on these images."""
        named = [group for group in self.groups if group is not None]
        return Calibration(
            promise=promise,
            image_threshold=image,
            pixel_threshold=pixel,
            scores=tuple(self.scores),
            peaks=tuple(self.peaks),
            groups=tuple(self.groups),
            source=self.source,
            settings=self.settings,
            n=len(self.scores) - len(named) + len(set(named)),
            **more,
        )


@dataclass(frozen=True)
class Calibration:
    """A calibration is the thresholds and what they rest on: the one record that a model file keeps.

    Attributes:
        promise: how they were set: ``highest`` (the highest score of the calibration images), ``tolerance``,
            ``marginal``, ``estimate``, ``f1`` or ``fixed``.
        image_threshold: an image is bad if its score exceeds it; None: no verdicts.
        pixel_threshold: a pixel is part of the predicted mask if its map value exceeds it.
        scores: image scores of the calibration images, kept so that another promise can be made later.
        peaks: highest map value of each calibration image.
        stale: something that changes scores was changed afterwards.
        groups: the group of each calibration image; empty: none has a group.
        source: where the scores come from.
        pixel_promise: ``highest`` (no promise), ``any`` or ``area``.
        false_alarm_bound: the share of good parts that is flagged at most, as achieved; None: nothing is promised.
        confidence: how sure the bound is; None: it holds on average over calibration sets, or there is none.
        n: what counts: calibration images, or groups of them where they have groups.
        r: how many of these may exceed the threshold.
        sentence: the promise in words.
        settings: digest of the detector's settings at the time; empty: not known.
    """

    promise: str
    image_threshold: float | None
    pixel_threshold: float | None
    scores: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()
    stale: bool = False
    groups: tuple[str | None, ...] = ()
    source: Source = "held back"
    pixel_promise: str = "highest"
    false_alarm_bound: float | None = None
    confidence: float | None = None
    n: int = 0
    r: int | None = None
    sentence: str = ""
    settings: str = ""

    def verdict(self, score: float) -> Verdict | None:
        """Return ``good`` for a score up to the image threshold, otherwise ``bad``; None without a threshold.

        A score that is not finite (NaN, infinity) measured nothing, so it never says that a part is good.
        """
        if self.image_threshold is None:
            return None
        return "good" if math.isfinite(score) and score <= self.image_threshold else "bad"

    def p_value(self, score: float) -> PValue | None:
        """Say how rare the score is among good parts; None without calibration images.

        >>> highest_score([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p_value(2.0)
        PValue(p=0.5, log10=0.3010299956639812, extrapolated=False)
        """
        if not self.scores:
            return None
        return p_value(score, group_maxima(self.scores, self.groups), self.tail)

    @cached_property
    def tail(self) -> Tail | None:
        """The tail of the scores, for p-values beyond the highest; None where there are too few, or all are equal."""
        return fit_tail(group_maxima(self.scores, self.groups))

    def against(self, settings: str) -> Calibration:
        """Return this calibration, stale if the detector has another digest of its settings by now."""
        return self if self.settings in ("", settings) else replace(self, stale=True)

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as a plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Make the calibration that :meth:`to_json` described."""
        sequences = {name: tuple(data.get(name, ())) for name in ("scores", "peaks", "groups")}
        # older files also hold the tail, which follows from the scores
        stored = {name: value for name, value in data.items() if name != "tail"}
        return cls(**{**stored, **sequences})


def highest_score(
    scores: Sequence[float],
    peaks: Sequence[float],
    groups: Sequence[str | None] = (),
    settings: str = "",
    names: Sequence[str] = (),
) -> Calibration:
    """Set thresholds at the highest score and the highest map value of good images that were not fitted.

    With n such images the chance that the next good one exceeds the threshold is 1 / (n + 1) on average, over
    calibration sets and exchangeable images. Without images there is no threshold. One image that is no good one, a
    reject in the wrong folder, sets a threshold under which every reject passes; so the sentence names the image that
    sets it, and says what the threshold would be without it.

    Args:
        scores: (N,) image scores.
        peaks: (N,) highest map value of each image.
        groups: (N,) part or roll of each image, None for its own; empty: all stand alone.
        settings: digest of the settings of the detector, by which a later change is noticed.
        names: (N,) what to call the images; empty: the sentence names none.

    >>> highest_score([1.0, 5.0, 2.0], [1.0, 5.0, 2.0], names=["a.png", "b.png", "c.png"]).sentence
    'the score of b.png, the highest of 3 good images held back at the fit (the next: 2); no false-alarm rate is stated'
    """
    evidence = Evidence(scores, peaks, groups, "held back", settings=settings)
    what = f"{len(scores)} good image{'' if len(scores) == 1 else 's'} held back at the fit"
    if len(names) == len(scores) > 1:
        first, second = sorted(range(len(scores)), key=lambda i: -scores[i])[:2]
        words = f"the score of {names[first]}, the highest of {what} (the next: {scores[second]:.4g})"
    else:
        words = f"the highest score of {what}"
    return evidence.record(
        "highest",
        max(scores, default=None),
        max(peaks, default=None),
        r=0 if len(scores) else None,
        sentence=f"{words}; no false-alarm rate is stated",
    )


def best_f1(evidence: Evidence, labels: Sequence[int], scores: Sequence[float]) -> Calibration:
    """Set the image threshold with the best F1 on labelled images of the role ``validate``.

    Args:
        evidence: the good ones among them.
        labels: (M,) 0 good, 1 defective, both present.
        scores: (M,) of the same images.
    """
    from pickglass.metrics import f1_max

    best = f1_max(labels, scores)  # flags from its threshold on; a verdict flags above
    below = [score for score in scores if score < best.threshold]
    limit = (max(below) + best.threshold) / 2 if below else float(np.nextafter(best.threshold, -np.inf))
    words = (
        f"F1 is highest, {best.f1:.3f}, at this threshold on {labels.count(0)} good and {labels.count(1)} defective "
        "images for validation, on which it was chosen; no false-alarm rate is promised"
    )
    return evidence.record("f1", limit, max(evidence.peaks, default=None), sentence=words)


def fixed_value(evidence: Evidence, value: float) -> Calibration:
    """Record a threshold that somebody set, and how many of the good images exceed it."""
    units = group_maxima(evidence.scores, evidence.groups)
    above, what = int((units > value).sum()), "groups of images" if evidence.grouped else "images"
    words = f"a fixed value; {above} of {len(units)} good {what} exceed it, and no false-alarm rate is promised"
    return evidence.record("fixed", float(value), max(evidence.peaks, default=None), r=above, sentence=words)
