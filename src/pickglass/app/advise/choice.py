"""An advice ranks the candidates, says which to take and why, and what it cannot promise.

The best of many on few images owes part of its figure to luck, and painted defects are not real ones. So the first of
the ranking is not simply taken, but the candidate whose gain over the default of ``fit`` is surest: the one with the
highest lower end of the gain's 95 % interval, which counts other images, other kinds of defects, and how far painted
and real gains have differed so far. Where none of them lies above 0, the default of ``fit`` is the choice. Of what is
as good within the noise, fused levels are taken before single ones: what one level misses the other may see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pickglass.app.advise.candidates import Candidate
from pickglass.app.advise.painted import PaintedSet
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import LIMIT, Cost, Score, difference
from pickglass.app.advise.transfer import agreement
from pickglass.app.results import RuledOut
from pickglass.data.painting.defects import Kind
from pickglass.features.foreground import Foreground
from pickglass.methods import METHODS, Combined

__all__ = ["Advice", "Baseline", "Rated", "by_contrast", "limits_of", "slow", "surest"]

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
        gain: in AUPRO@0.05 over the default of fit, with its interval, see :mod:`pickglass.app.advise.transfer`; None:
            there is none, or no comparison.
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
        baseline: the candidates are compared with it.
        half: kind of defect -> the contrast at which the baseline finds half of one; None: not even at contrast 1.
        foreground: where the part lies; None: nobody looked, for a region of interest was given.
    """

    rated: tuple[Rated, ...]
    ruled_out: tuple[RuledOut, ...]
    data: PaintedSet
    image: tuple[int, int]
    request: AdviseRequest
    baseline: Baseline
    half: Mapping[Kind, float | None]
    foreground: Foreground | None = None

    @property
    def ranking(self) -> list[Rated]:
        """The candidates by AUPRO@0.05, those that are too slow last."""
        return sorted(self.rated, key=lambda one: (slow(one, self.request.latency_ms), -one.score.aupro[0]))

    @property
    def choice(self) -> Rated | None:
        """The candidate to take, among those that are fast enough; None where none is."""
        fast = [one for one in self.ranking if not slow(one, self.request.latency_ms)]

        def worse(fused: int, single: int) -> bool:
            found = difference(fast[fused].score, fast[single].score, self.data, self.request.seed)
            return found["aupro"][2] < 0

        chosen = surest([_surely(one) for one in fast], [len(one.candidate.layers) > 1 for one in fast], worse)
        if chosen is not None:
            return fast[chosen]
        usual = [one for one in fast if one.candidate == self.baseline.candidate]
        return next(iter(usual or fast), None)

    @property
    def why(self) -> str:
        """The reason for the choice, in a sentence."""
        choice = self.choice
        if choice is None:
            return "nothing here is fast enough" if self.rated else "geometry rules out everything"
        usual = f"{self.baseline.candidate.name}, AUPRO@0.05 {self.baseline.score.aupro[0]:.2f}"
        if choice.candidate == self.baseline.candidate:
            return f"nothing finds more than the default of fit ({usual}) beyond doubt"
        if choice.gain is None or choice.gain[1] <= 0:
            return f"the best that is fast enough, not surely better than the default of fit ({usual})"
        gain = "{:+.2f}, 95 % {:+.2f} to {:+.2f}".format(*choice.gain)
        first = max((one for one in self.rated if not slow(one, self.request.latency_ms)), key=_surely)
        also = "" if first is choice else f"; {first.candidate.name} is no better beyond doubt, and one level alone"
        return f"the surest gain over the default of fit ({usual}): {gain}{also}"


def surest(lows: Sequence[float], fused: Sequence[bool], worse: Callable[[int, int], bool]) -> int | None:
    """Choose among candidates the one whose gain is surest, or the surest of fused levels, where it may be as good.

    Args:
        lows: the lower end of the gain's interval, one for each candidate.
        fused: whether it reads several levels.
        worse: given the numbers of two, tells whether the first is worse beyond doubt.

    Returns:
        Its number; None where no gain is sure.
    """
    sure = [i for i, low in enumerate(lows) if low > 0]
    if not sure:
        return None
    best = max(sure, key=lambda i: lows[i])
    both = max((i for i in sure if fused[i]), key=lambda i: lows[i], default=best)
    return best if both == best or fused[best] or worse(both, best) else both


def slow(one: Rated, latency_ms: float | None) -> bool:
    """Tell whether a candidate takes longer than an image may."""
    return latency_ms is not None and one.latency_ms > latency_ms


def _surely(one: Rated) -> float:
    return -np.inf if one.gain is None else one.gain[1]


def by_contrast(score: Score, data: PaintedSet) -> dict[str, float]:
    """Return factor -> AUPRO@0.05 of the defects painted so many times as strong as half seen, with all good images."""
    return {
        f"{factor:g}": score.tables.aupro(np.array([int(one.factor in (None, factor)) for one in data.judged]), LIMIT)
        for factor in sorted({one.factor for one in data.judged if one.factor is not None}, reverse=True)
    }


def limits_of(advice: Advice) -> tuple[str, ...]:
    """Say in sentences what the advice cannot promise."""
    ranking, data, request = advice.ranking, advice.data, advice.request
    say = [*_painted(advice), agreement()]
    if not any(one.candidate.defect for one in ranking):
        say.insert(0, f"Geometry rules out every setting for defects of {request.defect}, the default of fit too: "
                      "image it at twice the magnification, or name a backbone with finer layers "
                      "(--backbones).")  # fmt: skip
    best = advice.choice or ranking[0]
    value = best.score.aupro[0]
    highest, low, high = ranking[0].score.aupro
    if highest < _FOUND:
        say.insert(0, f"No setting here separates such defects of {request.defect} (best AUPRO@0.05 {highest:.2f}, "
                      f"95 % {low:.2f} to {high:.2f}): image it at twice the magnification, or tile 2x2.")  # fmt: skip
    else:
        for factor, own in by_contrast(best.score, data).items():
            if own < _FAINT * value:
                say.append(
                    f"Faint defects are missed: at {factor} times the contrast that is half seen AUPRO@0.05 is "
                    f"{own:.2f}, over all {value:.2f}."
                )
    if slow(best, request.latency_ms):
        say.insert(0, f"Nothing here judges an image within {request.latency_ms:g} ms; the fastest takes "
                      f"{min(one.latency_ms for one in ranking):.0f} ms.")  # fmt: skip
    others = [one for one in ranking if one is not best][:_NEXT]
    close = [one for one in others if difference(best.score, one.score, data)["aupro"][1] <= 0]
    if close:
        painted = sum(one.mask is not None for one in data.judged)
        say.append(
            f"{len(close)} of {len(others)} others are as good within the noise of {painted} painted defects: take the "
            "cheaper one if cost matters."
        )
    trained = [name for name, method in METHODS.items() if method.trains and method is not Combined]
    say.append(
        f"Not tried, for they train for minutes to hours: {', '.join(trained)}, and these together with others. "
        "'pickglass study' compares them on known defects."
    )
    few = len(set(data.groups))
    if few < 20:
        say.append(f"The intervals come from {few} groups of images; under 20 they are too narrow.")
    return tuple(say)


def _painted(advice: Advice) -> list[str]:
    """Say what was painted, how strongly, how softly and where."""
    brush = advice.data.brush
    half = [f"{kind} {'over 1' if value is None else f'{value:.2g}'}" for kind, value in advice.half.items()]
    say = [
        "Defects were painted; real ones may be of other kinds. Each kind was painted around the contrast at which the "
        f"default of fit finds half of it, 1 being clearly visible: {', '.join(half)}."
    ]
    if brush is not None:
        why = "as the images' own edges" if brush.measured else "for the images show no edge that says more"
        say.append(f"Their edges are as soft as a spread of {brush.spread_px:.2g} px, {why}.")
    found = advice.foreground
    if found is not None and found.mask is not None:
        say.append(
            f"They were painted on the part alone, which lies on {found.share:.0%} of the image; '--roi auto' keeps "
            "fit from looking elsewhere."
        )
    elif found is not None:
        say.append(
            f"They were painted anywhere, for no part was told from a background ({found.why_not}): if the images show "
            "background, give the part as --roi."
        )
    return say
