"""A promise about false alarms has a threshold that keeps it, and a sentence that says what it is worth."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

from pickglass.calibration.promises import (
    UNSURE,
    Calibration,
    Evidence,
    area_threshold,
    average_bound,
    average_needs,
    average_rank,
    group_maxima,
    percent,
    rounded_up,
    shift_bound,
    tolerance_bound,
    tolerance_needs,
    tolerance_rank,
)
from pickglass.errors import InputError, PromiseUnreachable

__all__ = ["PixelPromise", "Promise", "Wish", "promised"]

Promise = Literal["tolerance", "marginal", "estimate"]
PixelPromise = Literal["any", "area"]

_LEAST = 1e-6  # a smaller share of good parts would take millions of images


@dataclass(frozen=True)
class Wish:
    """A user wishes for this promise.

    Attributes:
        promise: ``tolerance``, ``marginal`` or ``estimate``.
        false_alarm: share of good parts that may be flagged, at least a millionth, below 1.
        confidence: that this calibration set keeps the promise, likewise; ``tolerance`` only, and for ``shift``.
        pixel: None; ``any``: the same share may have any pixel above the pixel threshold; ``area``: that share of a
            good part's pixels may lie above it, on average.
        shift: how many good parts a shift sees; None: unknown.
        unsure: share of good parts that may be unsure, beside those that may be flagged, in (0, 1); None: no image is
            unsure. The same kind of promise is made about all that are not called good: ``false_alarm`` and ``unsure``
            together.

    With ``pixel`` two promises are made, each at half of the error (Bonferroni), so that they hold together: half of
    ``1 - confidence`` for ``tolerance``, half of ``false_alarm`` for the promises that hold on average.
    """

    promise: Promise = "tolerance"
    false_alarm: float = 0.01
    confidence: float = 0.95
    pixel: PixelPromise | None = None
    shift: int | None = None
    unsure: float | None = None

    def __post_init__(self) -> None:
        for name, usual in (("false_alarm", 0.05), ("confidence", 0.95)):
            if not _LEAST <= getattr(self, name) < 1:
                raise InputError(
                    f"{name}={getattr(self, name)!r}: expected a share of at least {_LEAST:f} and below 1, e.g. {usual}"
                )
        if self.promise not in ("tolerance", "marginal", "estimate"):
            raise InputError(f"promise={self.promise!r}: expected 'tolerance', 'marginal' or 'estimate'")
        if self.pixel not in (None, "any", "area"):
            raise InputError(f"pixel={self.pixel!r}: expected 'any', 'area' or None")
        if self.shift is not None and (self.shift < 1 or self.promise == "estimate"):
            raise InputError(
                f"shift={self.shift!r} with promise={self.promise!r}: expected at least one part, and a promise that "
                "says something about a shift: 'tolerance' or 'marginal'"
            )
        if self.unsure is not None and not (self.unsure >= _LEAST and self.false_alarm + self.unsure < 1):
            raise InputError(
                f"unsure={self.unsure!r} with false_alarm={self.false_alarm!r}: expected a share of at least "
                f"{_LEAST:f}, and less than 1 with that of the false alarms, e.g. 0.05"
            )

    @property
    def sure(self) -> float:
        """Each of the promises has this confidence."""
        return self.confidence if self.pixel is None else (1 + self.confidence) / 2

    @property
    def average(self) -> float:
        """Each of the promises that hold on average may use up this share."""
        return self.false_alarm if self.pixel is None else self.false_alarm / 2

    def rank(self, n: int, more: float = 0.0) -> int | None:
        """Return how many of n units may exceed a threshold; None: the promise cannot be made.

        Args:
            n: number of units.
            more: the threshold is that of a share which is larger by this, as that of unsure is.
        """
        if self.promise == "tolerance":
            return tolerance_rank(n, self.false_alarm + more, self.sure)
        return average_rank(n, self.average + more)

    def fills(self, n: int) -> bool:
        """Tell whether some of n units lie between the two thresholds; True where no second one is wished."""
        bad, more = self.rank(n), self.rank(n, self.unsure or 0.0)
        return self.unsure is None or (bad is not None and more is not None and bad < more)

    def needs(self, have: int = 0) -> int:
        """Return the least number of units, ``have`` or more, with which all that is wished can be promised."""
        image = tolerance_needs(self.false_alarm, self.sure) if self.promise == "tolerance" else 1
        average = self.promise != "tolerance" or self.pixel == "area"
        least = max(have, image, average_needs(self.average) if average else 1)
        if self.fills(least):
            return least
        enough = 2 * least
        while not self.fills(enough):
            enough *= 2
        return bisect_left(range(enough), True, lo=enough // 2, key=self.fills)

    def bound(self, n: int, r: int) -> float:
        """Return the share of good parts that a threshold flags which r of n units exceed."""
        return tolerance_bound(n, r, self.sure) if self.promise == "tolerance" else average_bound(n, r)


def promised(evidence: Evidence, wish: Wish) -> Calibration:
    """Set thresholds that keep the wished promise, and state in a sentence what was achieved.

    Where images have groups, a group counts once, with its highest score and its highest map value; its flagged share
    is that of its worst image at each threshold.

    Raises:
        PromiseUnreachable: there are too few images; says how many are missing, and what these can promise.
        InputError: equal scores leave nothing between the thresholds of bad and of unsure.
    """
    scores, peaks = group_maxima(evidence.scores, evidence.groups), group_maxima(evidence.peaks, evidence.groups)
    n = len(scores)
    r = wish.rank(n)
    if evidence.learned and wish.promise != "estimate":
        raise _unreachable(evidence, wish, 0)
    if r is None or n < wish.needs(n):
        raise _unreachable(evidence, wish, n)
    pixel = float(peaks[-1])
    if wish.pixel == "any":
        pixel = float(peaks[n - 1 - r])
    elif wish.pixel == "area":
        if evidence.curves is None:
            raise InputError("the promise 'area' needs the maps of the calibration images: give Evidence.curves")
        limit = area_threshold(group_maxima(evidence.curves, evidence.groups), wish.average)
        if limit is None:
            raise _unreachable(evidence, wish, n)
        pixel = limit
    image, more = float(scores[n - 1 - r]), None if wish.unsure is None else wish.rank(n, wish.unsure)
    lower = None if more is None else float(scores[n - 1 - more])
    if lower is not None and lower >= image:
        raise InputError(
            f"unsure={wish.unsure!r}: good images have the score {image:.6g} many times, so that none lies between the "
            "thresholds of bad and of unsure: look whether images occur twice, or ask for a wider band"
        )
    return evidence.record(
        wish.promise,
        image,
        pixel,
        r=r,
        pixel_promise=wish.pixel or "highest",
        false_alarm_bound=None if wish.promise == "estimate" else wish.bound(n, r),
        confidence=wish.confidence if wish.promise == "tolerance" else None,
        sentence=_sentence(evidence, wish, n, r) + ("" if more is None else _unsure(wish, n, more)),
        unsure_threshold=lower,
        unsure_bound=None if more is None or wish.promise == "estimate" else wish.bound(n, more),
    )


# -- in words ---------------------------------------------------------------------------------------------------------


def _sentence(evidence: Evidence, wish: Wish, n: int, r: int) -> str:
    share = percent(wish.bound(n, r))
    surely = f"{100 * wish.confidence:g} %"
    flagged = {
        "tolerance": f"at most {share} of good parts will be flagged",
        "marginal": f"on average over calibration sets at most {share} of good parts will be flagged",
        "estimate": f"about {share} of good parts will be flagged",
    }[wish.promise]
    parts = [flagged + _pixels(wish, share)]
    if wish.promise == "tolerance":
        parts.append(f"with {surely} confidence" + (" in both together" if wish.pixel == "any" else ""))
    elif wish.promise == "marginal":
        parts.append("without a confidence for this one")
    else:
        parts.append(
            "an estimate and no promise (judging by all refitted models would keep the bound of leave-one-out, "
            f"{percent(2 * wish.bound(n, r))}; this does not)"
        )
    if wish.pixel is not None:
        parts.append("each made at half the error")
    parts.append(f"from {_count(evidence, n)}")
    parts.append("if coming parts are like these" + (f" and {evidence.proviso}" if evidence.proviso else ""))
    words = ", ".join(parts)
    if wish.shift is not None:
        most = shift_bound(n, r, wish.shift, wish.sure)
        words += f"; in a shift of {wish.shift:,} at most {most:,}"
        words += f" (in {100 * wish.sure:g} % of calibration sets and shifts)" if wish.promise == "marginal" else ""
    return words


def _unsure(wish: Wish, n: int, r: int) -> str:
    share, surely = percent(wish.bound(n, r)), f"{100 * wish.confidence:g} %"
    words = {
        "tolerance": f"at most {share}, with {surely} confidence of its own",
        "marginal": f"on average at most {share}",
        "estimate": f"about {share}",
    }[wish.promise]
    shift = "" if wish.shift is None else f", in such a shift at most {shift_bound(n, r, wish.shift, wish.sure):,}"
    return f"{UNSURE}{words}{shift}"


def _pixels(wish: Wish, share: str) -> str:
    if wish.pixel == "any":
        return f" and {share} will have any pixel above the pixel threshold"
    if wish.pixel == "area":
        return f" and on average at most {percent(wish.average)} of their pixels lie above the pixel threshold"
    return ""


def _count(evidence: Evidence, n: int) -> str:
    kind = {
        "folds": "training images judged by refitted models",
        "left out": "training images each judged as if left out",
    }.get(evidence.source, "calibration images")
    where = " held back at the fit" if evidence.source == "held back" else ""
    if evidence.grouped:
        return f"{n} groups of {len(evidence.scores)} {kind}{where} (a group counts once, with its highest score)"
    return f"{n} {kind}{where}"


def _unreachable(evidence: Evidence, wish: Wish, n: int) -> PromiseUnreachable:
    needed, possible = wish.needs(n), n >= replace(wish, unsure=None).needs()
    what = "groups of calibration images" if evidence.grouped else "calibration images"
    asked = f"a false-alarm rate of {percent(wish.false_alarm)}" + (
        f" with {100 * wish.confidence:g} % confidence" if wish.promise == "tolerance" else " on average"
    )
    asked += f" together with the pixel promise {wish.pixel!r}" if wish.pixel else ""
    asked += "" if wish.unsure is None else f", and {percent(wish.unsure)} more for unsure,"
    remedy = "add good images that were not fitted, or fit anew with a higher --calibrate"
    r = wish.rank(n)
    if possible and r is not None and wish.unsure is not None:
        flagged = wish.false_alarm if wish.promise == "tolerance" else wish.average
        least_unsure = wish.bound(n, r + 1) - flagged
        if wish.false_alarm + least_unsure < 1:
            remedy += f"; these {n} allow {percent(least_unsure)} for unsure (--unsure {rounded_up(least_unsure):g})"
    elif n:
        split = 1 if wish.pixel is None else 2
        least = [1.0 * wish.bound(n, 0) * (1 if wish.promise == "tolerance" else split)]
        least += [split * average_bound(n, 0)] if wish.pixel == "area" else []
        if max(least) < 1:
            remedy += f"; these {n} can promise {percent(max(least))} (--false-alarm {rounded_up(max(least)):g})"
    if wish.promise != "estimate":
        remedy += "; --promise estimate judges the training images as if left out, without a guarantee"
    return PromiseUnreachable(asked, what, needed, n, remedy)
