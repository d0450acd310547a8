"""Scores of good images become thresholds. Scores stay raw; a verdict is a score compared with a threshold.

Three promises about the good parts that will be flagged, never mixed: ``tolerance`` holds with a stated confidence for
this very calibration set, ``marginal`` (split conformal) only on average over calibration sets, and ``estimate`` (from
scores of images judged by refitted models, or as if left out) is no promise at all.

An image is flagged if its score *exceeds* T, the (r + 1)-th largest of n calibration scores. For exchangeable scores
without ties the true false-alarm rate is then Beta(r + 1, n - r) over calibration sets (Vovk 2012, "Conditional
validity of inductive conformal predictors"; tolerance limits: Wilks 1941). Ties only lower it, for a score equal to T
is not flagged: the promises stay on the safe side for discrete scores.

A second, lower threshold U makes a third verdict, for a person to look at: a score up to U is good, one that exceeds U
and not T is unsure, one that exceeds T is bad. What is said of U is what is said of T, for the share of good parts that
are not called good.

Letters: n calibration units (images, or groups of them), r of them may exceed T, a false-alarm rate, K shares.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pickglass.calibration.distributions import beta_quantile, binomial_cdf
from pickglass.calibration.scale import PValue, Tail, fit_tail, p_value
from pickglass.data.stored import from_stored
from pickglass.errors import InputError

__all__ = [
    "FALSE_ALARM",
    "SHARES",
    "UNSURE",
    "Calibration",
    "Change",
    "Evidence",
    "Source",
    "Verdict",
    "area_threshold",
    "average_bound",
    "average_needs",
    "average_rank",
    "best_f1",
    "fixed_value",
    "flagged_curve",
    "group_maxima",
    "left_out_bound",
    "percent",
    "rounded_up",
    "set_by_hand",
    "shift_bound",
    "tolerance_bound",
    "tolerance_needs",
    "tolerance_rank",
    "usual_threshold",
    "without_unsure",
]

FloatArray = npt.NDArray[np.float64]

SHARES: FloatArray = np.append(0.0, np.geomspace(1e-7, 1.0, 816))
"""(K,) shares of an image's pixels at which a map is summarised, two per cent apart."""

Verdict = Literal["good", "unsure", "bad"]
"""``unsure`` lies between two thresholds; a model with one threshold never says it."""

Source = Literal["held back", "given", "folds", "left out", "updated"]
"""Where scores come from: images held back at the fit, images given later, training images judged by refits, training
images each judged as if it had been left out of the fit, and those of an update beside those before."""

FALSE_ALARM = 0.05
"""The share of good parts that the threshold of a fit flags, where it has the images for it."""

_NAMED = 3  # images above the threshold that the sentence names
_FEW = 10  # images with fewer of which a threshold is said to be worth little


@dataclass(frozen=True)
class Evidence:
    """Good images that were not fitted are the evidence that a threshold rests on.

    Attributes:
        scores: (N,) image scores.
        peaks: (N,) highest map value of each image.
        groups: (N,) name of the part or roll, None for an image that stands alone; empty: all do.
        source: where the scores come from.
        curves: (N, K) of :func:`pickglass.calibration.promises.flagged_curve`, only needed for the promise ``area``.
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

    @property
    def learned(self) -> bool:
        """The images taught the model, and were judged by refits or as if left out."""
        return self.source in ("folds", "left out")

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
        promise: how they were set: ``tolerance``, ``marginal``, ``estimate``, ``f1`` or ``fixed``; ``highest`` in
            older models (the highest score of the calibration images) and where there is none.
        image_threshold: an image is bad (flagged) if its score exceeds it; None: no verdicts.
        pixel_threshold: a pixel is part of the predicted mask if its map value exceeds it.
        scores: image scores of the calibration images, kept so that another promise can be made later.
        peaks: highest map value of each calibration image.
        stale: something that changes scores was changed afterwards.
        groups: the group of each calibration image; empty: none has a group.
        source: where the scores come from.
        pixel_promise: ``highest`` or ``fixed`` (no promise), ``any`` or ``area``.
        false_alarm_bound: the share of good parts that is flagged at most, as achieved; None: nothing is promised.
        confidence: how sure the bound is; None: it holds on average over calibration sets, or there is none.
        n: what counts: calibration images, or groups of them where they have groups.
        r: how many of these may exceed the threshold.
        sentence: the promise in words.
        settings: digest of the detector's settings at the time; empty: not known.
        unsure_threshold: an image is unsure if its score exceeds it, but not the image threshold above it; None: no
            image is unsure.
        unsure_bound: the share of good parts that is unsure or bad at most, as achieved; None: nothing is promised.
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
    unsure_threshold: float | None = None
    unsure_bound: float | None = None

    def verdict(self, score: float) -> Verdict | None:
        """Return ``bad`` for a score that exceeds the image threshold, otherwise ``good``; None without a threshold.

        With a threshold of unsure, a score that exceeds that and not the image threshold is ``unsure``. A score that
        equals a threshold does not exceed it. One that is not finite (NaN, infinity) measured nothing, so it never says
        that a part is good.

        >>> both = Calibration("fixed", 2.0, None, unsure_threshold=1.0)
        >>> [both.verdict(score) for score in (1.0, 1.5, 2.0, 2.5, float("nan"))]
        ['good', 'unsure', 'unsure', 'bad', 'bad']
        """
        if self.image_threshold is None:
            return None
        if not (math.isfinite(score) and score <= self.image_threshold):  # also where the threshold is no number
            return "bad"
        return "good" if self.unsure_threshold is None or score <= self.unsure_threshold else "unsure"

    def p_value(self, score: float) -> PValue | None:
        """Say how rare the score is among good parts; None without calibration images.

        >>> usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p_value(2.0)
        PValue(p=0.5, log10=0.3010299956639812, extrapolated=False)
        """
        if not self.scores:
            return None
        return p_value(score, self.unit_scores, self.tail)

    @cached_property
    def unit_scores(self) -> FloatArray:
        """The highest score of each part or single image, rising (n,). Every p-value needs them, so they are kept."""
        return group_maxima(self.scores, self.groups)

    @cached_property
    def tail(self) -> Tail | None:
        """The tail of the scores, for p-values beyond the highest; None where there are too few, or all are equal."""
        return fit_tail(self.unit_scores)

    def against(self, settings: str) -> Calibration:
        """Return this calibration, stale if the detector has another digest of its settings by now."""
        return self if self.settings in ("", settings) else replace(self, stale=True)

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as a plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Make the calibration that :meth:`to_json` described."""
        # older files also hold the tail, which follows from the scores
        return from_stored(cls, {name: value for name, value in data.items() if name != "tail"})


@dataclass(frozen=True)
class Change:
    """A model was fitted, or its thresholds or its names of defects were changed; all changes are its history.

    Attributes:
        time: date and time (UTC).
        command: what changed it: ``fit``, ``threshold``, ``label``, ``update``, or ``set_thresholds`` in Python.
        image_threshold, pixel_threshold: its thresholds since then, None where it has none.
        image_threshold_before, pixel_threshold_before: those until then.
        promise: how the thresholds were set, as in :class:`Calibration`; None without any.
        n: number of good images, or of groups of them, that the thresholds rest on.
        unsure_threshold, unsure_threshold_before: the threshold of unsure since then and until then, likewise; older
            files do not have them.
        learned: number of images that an update learned.
    """

    time: str
    command: str
    image_threshold: float | None
    pixel_threshold: float | None
    image_threshold_before: float | None
    pixel_threshold_before: float | None
    promise: str | None
    n: int
    unsure_threshold: float | None = None
    unsure_threshold_before: float | None = None
    learned: int = 0

    @classmethod
    def between(cls, command: str, before: Calibration | None, after: Calibration | None) -> Change:
        """Record a change that a command makes now."""
        return cls(
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command,
            None if after is None else after.image_threshold,
            None if after is None else after.pixel_threshold,
            None if before is None else before.image_threshold,
            None if before is None else before.pixel_threshold,
            None if after is None else after.promise,
            0 if after is None else after.n,
            None if after is None else after.unsure_threshold,
            None if before is None else before.unsure_threshold,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Change:
        """Make the change that a header describes; anything else is an InputError."""
        return from_stored(cls, data)

    @staticmethod
    def version(history: Sequence[Change]) -> int:
        """Return the version of a model with this history: 1 as it was fitted, and one more with each change."""
        return 1 + sum(change.command != "fit" for change in history)


def usual_threshold(
    scores: Sequence[float],
    peaks: Sequence[float],
    groups: Sequence[str | None] = (),
    settings: str = "",
    names: Sequence[str] = (),
    source: Source = "held back",
    *,
    monotone: bool = False,
) -> Calibration:
    """Set the thresholds of a fit: about 5 % of good parts are flagged, or as few as the images can tell.

    Of n good images, the highest r may lie above, r the largest number with (r + 1) / (n + 1) <= 5 %; below 19 images
    the threshold is the highest score. Of images that were held back, (r + 1) / (n + 1) holds on average over
    calibration sets (split conformal). Of training images that were each judged as if left out it is an estimate;
    where leaving images out never lowers a score (``monotone``), at most (2 r + 1) / (n + 1) are flagged on average
    (see :func:`pickglass.calibration.promises.left_out_bound`).

    One image that is no good one, a reject in the wrong folder, must not set the threshold unseen: the sentence names
    the image that sets it and those above.

    Args:
        scores: (N,) image scores.
        peaks: (N,) highest map value of each image.
        groups: (N,) part or roll of each image, None for its own; empty: all stand alone.
        settings: digest of the settings of the detector, by which a later change is noticed.
        names: (N,) what to call the images; empty: the sentence names none.
        source: ``held back`` or ``left out``.
        monotone: leaving an image out of the fit never lowers the score of another.

    >>> found = usual_threshold([1.0, 5.0, 2.0], [1.0, 5.0, 2.0], names=["a.png", "b.png", "c.png"])
    >>> found.sentence[:96]
    'on average at most 25 % of good parts will be flagged, from 3 good images held back at the fit; '
    """
    evidence = Evidence(scores, peaks, groups, source, settings=settings)
    units, highest = group_maxima(scores, groups), group_maxima(peaks, groups)
    n = len(units)
    if n == 0:
        return evidence.record("highest", None, None)
    r = average_rank(n, FALSE_ALARM) or 0
    limit = float(units[n - 1 - r])
    rate = average_bound(n, r)
    bound = rate if source == "held back" else left_out_bound(n, r) if monotone else None
    return evidence.record(
        "marginal" if bound is not None else "estimate",
        limit,
        float(highest[n - 1 - r]),
        r=r,
        false_alarm_bound=bound,
        sentence=f"{_rate(rate, bound)}, from {_images(evidence, n)}"
        f"{_setting(scores, names, limit, units, r)}{_worth(n)}",
    )


def _rate(rate: float, bound: float | None) -> str:
    if bound is None:
        return f"about {percent(rate)} of good parts will be flagged, an estimate without a promise"
    if bound == rate:
        return f"on average at most {percent(bound)} of good parts will be flagged"
    return f"about {percent(rate)} of good parts will be flagged, on average at most {percent(bound)}"


def _images(evidence: Evidence, n: int) -> str:
    number = len(evidence.scores)
    images = f"{number} good image{'' if number == 1 else 's'}"
    if n < number:
        images = f"{n} groups of {images}"
    return (
        f"{images} {'held back at the fit' if evidence.source == 'held back' else 'judged as if left out of the fit'}"
    )


def _setting(
    scores: Sequence[float], names: Sequence[str], limit: float, units: npt.NDArray[np.float64], r: int
) -> str:
    """Name the image that sets the threshold, what it would be without it, and the images above."""
    if len(names) != len(scores) or len(units) < 2:
        return ""
    setter = names[list(scores).index(limit)]
    words = f"; {setter} sets it"
    if len(units) > r + 1:
        words += f" (without it: {units[len(units) - 2 - r]:.4g})"
    above = [
        name for _, name in sorted(((s, n) for s, n in zip(scores, names, strict=True) if s > limit), reverse=True)
    ]
    if above:
        more = f" and {len(above) - _NAMED} more" if len(above) > _NAMED else ""
        words += f"; above it {'lies' if len(above) == 1 else 'lie'} {', '.join(above[:_NAMED])}{more}"
    return words


def _worth(n: int) -> str:
    if n >= _FEW:
        return ""
    return f"; {n} image{' says' if n == 1 else 's say'} little about how good parts differ, 20 or more say much more"


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
    judged = evidence.record("fixed", None, max(evidence.peaks, default=None))
    return set_by_hand(judged, image=value)


def set_by_hand(
    calibration: Calibration, image: float | None = None, pixel: float | None = None, unsure: float | None = None
) -> Calibration:
    """Replace thresholds by numbers that somebody chose; the sentence says how many good images exceed them.

    Args:
        calibration: the thresholds until now, with the good images that they rest on; these stay.
        image: threshold of the image score; None: that of now, with its promise.
        pixel: threshold of the map; None: that of now, which loses a promise that was made together with the image's.
        unsure: threshold of unsure, below that of the image score; None: that of now, with its promise, if there is
            one.

    Raises:
        InputError: no number is given, one that is not finite, or a threshold of unsure that is not below that of the
            image score.

    >>> before = usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    >>> set_by_hand(before, image=2.5).sentence
    'a fixed value; 1 of 3 good images exceed it, and no false-alarm rate is promised'
    """
    given = [value for value in (image, pixel, unsure) if value is not None]
    if not given or not all(map(math.isfinite, given)):
        raise InputError(
            f"thresholds image={image!r}, pixel={pixel!r}, unsure={unsure!r}: expected a finite number for one or more"
        )
    upper = calibration.image_threshold if image is None else image
    lower = calibration.unsure_threshold if unsure is None else unsure
    if lower is not None and (upper is None or lower >= upper):
        raise InputError(
            f"thresholds image={upper!r}, unsure={lower!r}: expected unsure below image, for an image is unsure "
            "between the two; set both, or set them anew with good images"
        )
    changed = calibration
    said, band, pixels = _sentence_parts(calibration.sentence)
    said = said or ("no image threshold" if upper is None else _UNSTATED)
    if image is not None:
        above, known = _exceeding(calibration.scores, calibration.groups, image)
        said = f"a fixed value; {known} exceed it, and no false-alarm rate is promised"
        changed = replace(
            changed,
            promise="fixed",
            image_threshold=float(image),
            r=above,
            false_alarm_bound=None,
            confidence=None,
            pixel_promise="highest" if changed.pixel_promise == "highest" else "fixed",
        )
    if unsure is not None:
        _, known = _exceeding(calibration.scores, calibration.groups, unsure)
        band = f"{UNSURE}{known}, by a fixed value that promises nothing"
        changed = replace(changed, unsure_threshold=float(unsure), unsure_bound=None)
    if pixel is not None:
        _, known = _exceeding(calibration.peaks, calibration.groups, pixel)
        was = calibration.pixel_threshold
        until = f"set in place of {was:.6g}" if was is not None and was != pixel else "set by hand"
        pixels = f"{_PIXELS_BY_HAND}{until}, promises nothing: {known} have a pixel above it"
        changed = replace(changed, pixel_threshold=float(pixel), pixel_promise="fixed")
    return replace(changed, sentence=f"{said}{band}{pixels}")


def without_unsure(calibration: Calibration) -> Calibration:
    """Return the thresholds without that of unsure: what was unsure is good from now on.

    >>> both = set_by_hand(usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), unsure=1.5)
    >>> without_unsure(both) == usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    True
    """
    said, _, pixels = _sentence_parts(calibration.sentence)
    return replace(calibration, unsure_threshold=None, unsure_bound=None, sentence=f"{said}{pixels}")


UNSURE = "; flagged or unsure: "
"""With this the part of a sentence begins that is about the threshold of unsure."""

_UNSTATED = "the highest score of good images that were held back, with no stated false-alarm rate"

_PIXELS_BY_HAND = "; the pixel threshold, a fixed value "


def _sentence_parts(sentence: str) -> tuple[str, str, str]:
    """Divide a sentence into what it says of flagged, of unsure and of pixels by hand."""
    whole, mark, pixels = sentence.partition(_PIXELS_BY_HAND)
    said, between, band = whole.partition(UNSURE)
    return said, f"{between}{band}", f"{mark}{pixels}"


def _exceeding(values: Sequence[float], groups: Sequence[str | None], limit: float) -> tuple[int, str]:
    """Count the good units above a threshold, also in words."""
    units = group_maxima(values, groups)
    if not len(units):
        return 0, "it is not known how many good images"
    above = int((units > limit).sum())
    grouped = any(group is not None for group in groups)
    return above, f"{above} of {len(units)} good {'groups of images' if grouped else 'images'}"


def percent(share: float) -> str:
    """Write a share in per cent, three digits, rounded up: a bound must not look lower than it is.

    >>> percent(1 / 41)
    '2.44 %'
    """
    return f"{float(f'{100 * rounded_up(share):.12g}'):g} %"


def rounded_up(share: float) -> float:
    """Round a share up to three digits."""
    if share <= 0:
        return 0.0
    digits = 2 - math.floor(math.log10(share))
    return float(round(math.ceil(share * 10**digits * (1 - 1e-12)) / 10**digits, max(digits, 0)))


# -- order statistics: which rank keeps a promise, what it amounts to, how many images it takes ----------------------


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
    # P(Beta(r + 1, n - r) > a) = P(Binomial(n, a) <= r), which rises in r; bisected, for n may be millions
    admissible = bisect_right(range(n), 1 - confidence, key=lambda r: binomial_cdf(r, n, false_alarm))
    return admissible - 1 if admissible else None


def tolerance_bound(n: int, r: int, confidence: float) -> float:
    """Compute the rate that is exceeded with a chance of just 1 - confidence: the quantile of Beta(r + 1, n - r).

    >>> round(tolerance_bound(299, 0, 0.95), 5)
    0.00997
    """
    return 1.0 if r >= n else beta_quantile(confidence, r + 1, n - r)


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


def left_out_bound(n: int, r: int) -> float:
    """Bound the rate, on average, where each of n units was judged as if it had been left out of the fit.

    Let s_i be the score of a model that was fitted without unit i. Suppose that leaving a unit out never lowers the
    score of another part: s(x) <= s_i(x). A part that is flagged has s(x) above n - r of the s_i(x_i), hence
    s_i(x) > s_i(x_i) for n - r of the units. Take the part for one more unit among n + 1 exchangeable ones, and let
    each pair play a match that is won by the higher score under the model fitted without both. A flagged unit loses
    at most r of its n matches. Of k such units each loses to others of them, (k - 1) / 2 times on average, so
    k <= 2 r + 1: the argument of jackknife+ (Barber, Candes, Ramdas and Tibshirani, "Predictive inference with the
    jackknife+", Annals of Statistics 2021, theorem 1), which without that supposition asks for n models at each part.

    >>> left_out_bound(39, 0), left_out_bound(39, 1)
    (0.025, 0.075)
    """
    return min(1.0, (2 * r + 1) / (n + 1))


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
    if r >= n:
        return shift
    k = np.arange(shift, dtype=np.float64)
    ratios = (shift - k) / (k + 1) * (k + r + 1) / (shift - k - 1 + n - r)  # of the chance of k + 1 to that of k
    log_mass = np.append(0.0, np.cumsum(np.log(ratios)))
    chances = np.cumsum(np.exp(log_mass - log_mass.max()))
    return int(np.searchsorted(chances, level * chances[-1]))


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
