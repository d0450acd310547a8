"""Thresholds go over to a model in another precision: each keeps its rank among the calibration images.

A threshold of a promise is the k-th largest score of the calibration images, and the promise rests on k alone. A model
in another precision gives the same images other scores; the k-th largest of those keeps the same promise for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from pickglass.calibration.promises import Calibration, group_maxima, set_by_hand, usual_threshold

__all__ = ["found_among", "other_scores", "transferred"]


def found_among(calibration: Calibration, scores: Sequence[float], tolerance: float = 1e-3) -> list[int] | None:
    """Find the images that set the thresholds among others, by their scores.

    Args:
        calibration: keeps the scores of its images.
        scores: (M,) of candidates by the same model, computed anew.
        tolerance: by which the scores of an image may differ, of the score or the range of all.

    Returns:
        The place among the candidates of each calibration image, (N,); None where one is not found.
    """
    known, values = np.array(calibration.scores), np.array(scores)
    if len(known) == 0 or len(values) < len(known):
        return None
    room = tolerance * np.maximum(np.abs(known), np.ptp(known))
    free, places = np.ones(len(values), bool), np.empty(len(known), int)
    for i in np.argsort(known):  # in rising order the lowest that fits is the right one, if any assignment fits
        fits = np.flatnonzero(free & (np.abs(values - known[i]) <= room[i]))
        if len(fits) == 0:
            return None
        places[i] = fits[np.argmin(values[fits])]
        free[places[i]] = False
    return [int(place) for place in places]


def transferred(
    calibration: Calibration, scores: Sequence[float], peaks: Sequence[float], names: Sequence[str], precision: str
) -> Calibration:
    """Set the thresholds for a model in another precision, which gave the calibration images these scores.

    Args:
        calibration: the thresholds of the model as it was fitted.
        scores, peaks: (N,) image scores and highest map values of its images now, in its order.
        names: (N,) what to call the images.
        precision: that of the model which gave them, for the sentence.

    Returns:
        The thresholds with the promise that they had. A number that somebody chose stays, and is compared with the new
        scores; so does a pixel threshold of the promise ``area``, which the sentence then says.
    """
    old = calibration
    usual = usual_threshold(old.scores, old.peaks, old.groups, old.settings, source=old.source)
    if replace(usual, sentence=old.sentence, stale=old.stale) == old:
        again = usual_threshold(scores, peaks, old.groups, old.settings, names, old.source)
        return replace(again, stale=old.stale)
    now = replace(old, scores=tuple(scores), peaks=tuple(peaks))
    changes: dict[str, float] = {}
    for name in _thresholds(old):
        if _by_hand(old, name):
            continue
        before, after = (old.peaks, peaks) if name.startswith("pixel") else (old.scores, scores)
        ranked = _ranked(getattr(old, name), before, after, old.groups)
        if ranked is None:
            return other_scores(old, precision)
        changes[name] = ranked
    now = replace(now, **changes)  # type: ignore[arg-type]
    image = now.image_threshold if _by_hand(old, "image_threshold") else None
    pixel = now.pixel_threshold if _by_hand(old, "pixel_threshold") else None
    return now if image is None and pixel is None else set_by_hand(now, image, pixel)


def other_scores(calibration: Calibration, precision: str) -> Calibration:
    """Keep the thresholds of a model in float32 for one in another precision, which promises nothing of that one."""
    promised = calibration.promise in ("tolerance", "marginal")
    bounds = {field.name: None for field in fields(calibration) if field.name.endswith("_bound")}
    return replace(
        calibration,
        **bounds,  # type: ignore[arg-type]
        promise="estimate" if promised else calibration.promise,
        confidence=None,
        sentence=f"{calibration.sentence or 'the highest score of good images'}; this is said of the model in float32, "
        f"and this file gives other scores in {precision}, so that it promises nothing",
    )


def _thresholds(calibration: Calibration) -> list[str]:
    """Return the names of the thresholds that are set."""
    names = [field.name for field in fields(calibration) if field.name.endswith("_threshold")]
    return [name for name in names if getattr(calibration, name) is not None]


def _by_hand(calibration: Calibration, name: str) -> bool:
    """Say whether somebody chose the number, which then stays; of the promise ``area`` it is no rank, and stays too."""
    if name == "pixel_threshold":
        return calibration.pixel_promise in ("fixed", "area")
    return calibration.promise == "fixed"


def _ranked(limit: float, old: Sequence[float], new: Sequence[float], groups: Sequence[str | None]) -> float | None:
    """Return the new value of the rank that a threshold has among the old ones; None where it is none of them."""
    places = np.flatnonzero(group_maxima(old, groups) == limit)
    return None if not len(places) else float(group_maxima(new, groups)[places[-1]])
