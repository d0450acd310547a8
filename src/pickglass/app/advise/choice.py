"""An advice ranks the candidates, says which to take and why, and what it cannot promise.

The best of many on few images owes part of its figure to luck. So the first of the ranking is not simply taken, but
the candidate whose gain over the default of ``fit`` is surest: the one with the highest lower end of the gain's
95 % interval, paired by group. Where none of them lies above 0, the default of ``fit`` is the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pickglass.app.advise.candidates import Candidate
from pickglass.app.advise.painted import PaintedSet
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import LIMIT, Cost, Score, difference
from pickglass.app.results import RuledOut

__all__ = ["Advice", "Baseline", "Rated", "by_contrast", "limits_of", "slow"]

_FOUND = 0.3  # AUPRO@0.05 below which a defect is not separated from good ground
_FAINT = 0.5
_NEXT = 5  # of the ranking that are compared with the choice


@dataclass(frozen=True)
class Rated:
    """A candidate with its score, its latency and its gain over the default of ``fit``.

    Attributes:
        candidate, score: what, and how well it finds painted defects.
        latency_ms: milliseconds for one image; without a ``cost`` an estimate.
        cost: None: not measured.
        gain: in AUPRO@0.05 over the default of fit, with its interval; None: there is none, or no comparison.
    """

    candidate: Candidate
    score: Score
    latency_ms: float
    cost: Cost | None = None
    gain: tuple[float, float, float] | None = None


class Baseline(NamedTuple):
    """The configuration that ``fit`` uses by default.

    Candidates are compared with it, even where the geometric rules would exclude it.
    """

    candidate: Candidate
    score: Score


@dataclass(frozen=True)
class Advice:
    """Everything that the advisor found out.

    Attributes:
        rated: all candidates that geometry leaves.
        ruled_out: what it does not leave.
        data: what they were judged by.
        image: (H, W) of the images.
        request: the defect to be seen.
        baseline: the candidates are compared with it; None: with nothing.
    """

    rated: tuple[Rated, ...]
    ruled_out: tuple[RuledOut, ...]
    data: PaintedSet
    image: tuple[int, int]
    request: AdviseRequest
    baseline: Baseline | None

    @property
    def ranking(self) -> list[Rated]:
        """The candidates by AUPRO@0.05, those that are too slow last."""
        return sorted(self.rated, key=lambda one: (slow(one, self.request.latency_ms), -one.score.aupro[0]))

    @property
    def choice(self) -> Rated | None:
        """The candidate to take, among those that are fast enough; None where none is."""
        fast = [one for one in self.ranking if not slow(one, self.request.latency_ms)]
        surest = max((one for one in fast if one.gain), key=_surely, default=None)
        if surest is not None and _surely(surest) > 0:
            return surest
        usual = [one for one in fast if self.baseline is not None and one.candidate == self.baseline.candidate]
        return next(iter(usual or fast), None)

    @property
    def why(self) -> str:
        """The reason for the choice, in a sentence."""
        choice = self.choice
        if choice is None:
            return "nothing here is fast enough" if self.rated else "geometry rules out everything"
        if self.baseline is None:
            return "the best on painted defects"
        usual = f"{self.baseline.candidate.name}, AUPRO@0.05 {self.baseline.score.aupro[0]:.2f}"
        if choice.candidate == self.baseline.candidate:
            return f"nothing finds more than the default of fit ({usual}) beyond doubt"
        if choice.gain is None or choice.gain[1] <= 0:
            return f"the best that can see the defect, not surely better than the default of fit ({usual})"
        gain = "{:+.2f}, 95 % {:+.2f} to {:+.2f}".format(*choice.gain)
        return f"the surest gain over the default of fit ({usual}): {gain}"


def slow(one: Rated, latency_ms: float | None) -> bool:
    """Tell whether a candidate takes longer than an image may."""
    return latency_ms is not None and one.latency_ms > latency_ms


def _surely(one: Rated) -> float:
    return -np.inf if one.gain is None else one.gain[1]


def by_contrast(score: Score, data: PaintedSet) -> dict[str, float]:
    """Return contrast -> AUPRO@0.05 of the defects of that contrast, with all good images."""
    return {
        f"{contrast:g}": score.tables.aupro(
            np.array([int(one.contrast in (None, contrast)) for one in data.judged]), LIMIT
        )
        for contrast in sorted({one.contrast for one in data.judged if one.contrast is not None}, reverse=True)
    }


def limits_of(advice: Advice) -> tuple[str, ...]:
    """Say in sentences what the advice cannot promise."""
    ranking, data, defect_px = advice.ranking, advice.data, advice.request.defect_px
    say = [
        f"Defects were painted; real ones may be fainter or of other kinds ({', '.join(_kinds(data))} were painted)."
    ]
    if not ranking:
        return (
            f"No setting here separates defects of {defect_px:g} px: geometry rules all of them out. Image it at twice "
            "the magnification, or name a backbone with finer layers (--backbones).",
        )
    best = advice.choice or ranking[0]
    value = best.score.aupro[0]
    highest, low, high = ranking[0].score.aupro
    if highest < _FOUND:
        say.insert(0, f"No setting here separates defects of {defect_px:g} px (best AUPRO@0.05 {highest:.2f}, 95 % "
                      f"{low:.2f} to {high:.2f}): image it at twice the magnification, or tile 2x2.")  # fmt: skip
    else:
        for contrast, own in by_contrast(best.score, data).items():
            if own < _FAINT * value:
                say.append(
                    f"Faint defects are missed: at contrast {contrast} AUPRO@0.05 is {own:.2f}, over all {value:.2f}."
                )
    if slow(best, advice.request.latency_ms):
        say.insert(0, f"Nothing here judges an image within {advice.request.latency_ms:g} ms; the fastest takes "
                      f"{min(one.latency_ms for one in ranking):.0f} ms.")  # fmt: skip
    others = [one for one in ranking if one is not best][:_NEXT]
    close = [one for one in others if difference(best.score, one.score, data.groups)["aupro"][1] <= 0]
    if close:
        painted = sum(one.mask is not None for one in data.judged)
        say.append(
            f"{len(close)} of {len(others)} others are as good within the noise of {painted} painted defects: take the "
            "cheaper one if cost matters."
        )
    few = len(set(data.groups))
    if few < 20:
        say.append(f"The intervals come from {few} groups of images; under 20 they are too narrow.")
    return tuple(say)


def _kinds(data: PaintedSet) -> list[str]:
    return sorted({one.kind for one in data.judged if one.kind is not None})
