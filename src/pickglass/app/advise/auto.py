"""``preset="auto"`` takes the advisor's choice, and then each other part that helps on painted defects.

A part is taken only where the 95 % interval of its gain, paired by image, lies above 0, and where it does not take from
the other figure beyond doubt, from the image score for the sake of the map or the other way round. Every part leaves a
row, those too that did nothing. Nothing here knows a real defect, and images that are held back for the thresholds are
not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pickglass.app.advise.advise import find_advice
from pickglass.app.advise.candidates import TOGETHER, Candidate, size_text
from pickglass.app.advise.choice import Advice, limits_of
from pickglass.app.advise.painted import PaintedSet
from pickglass.app.advise.request import AdviseRequest
from pickglass.app.advise.scoring import Score, difference, judge, one_at_a_time
from pickglass.app.advise.within_foreground import judged_within, look_for_part
from pickglass.app.results import AblationRow
from pickglass.data import Table
from pickglass.errors import InputError
from pickglass.features.foreground import Foreground
from pickglass.features.shared import SharedFeatures
from pickglass.methods import find_method
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["AutoChoice", "auto_choice", "usual_defect"]

_USUAL_SHARE = 1 / 32  # of the shorter side of the images, where nobody says how large defects are
_SCALINGS = ("standardise", "whiten")
_METRICS = {"aupro": "aupro_05", "auroc": "image_auroc"}


@dataclass(frozen=True)
class AutoChoice:
    """The detector that ``preset="auto"`` chose, as arguments of :func:`pickglass.app.fit.build`, and why.

    ``foreground`` is None where all of the image is looked at, or the region of interest that it had already.
    """

    method: str
    settings: dict[str, Any]
    tiling: dict[str, Any] | None
    fusion: dict[str, Any] | None
    ablation: tuple[AblationRow, ...]
    defect_px: float
    foreground: Foreground | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what the provenance of a model keeps of the choice."""
        rows = {row["part"]: {k: v for k, v in row.items() if k != "part"} for row in self.ablation}
        return {"defect_px": self.defect_px, "ablation": rows}


@dataclass(frozen=True)
class _Part:
    """One part of a detector to vary: name -> changes of the settings; ``why_not`` says why it cannot be tried."""

    name: str
    variants: Mapping[str, Mapping[str, Any]]
    metric: str = "aupro"
    why_not: str | None = None


def usual_defect(image: tuple[int, int]) -> float:
    """Return the extent of a defect where nobody states one: a thirty-second of the shorter side, at least 4 pixels."""
    return float(max(4, round(min(image) * _USUAL_SHARE)))


def auto_choice(
    table: Table,
    request: AdviseRequest,
    *,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> AutoChoice:
    """Choose a detector for good images as the advisor does, then try part by part whether more helps.

    Args:
        table: good images that may be used for choosing, without those for the thresholds.
        request: the defect to be seen.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        InputError: geometry rules out everything.
    """
    run = one_at_a_time(compute or ComputeOptions())
    advice = find_advice(table, request, costs=False, compute=run, progress=progress)
    # the advisor's look at a few images says where to paint; a mask that a model keeps takes all of them
    found = look_for_part(table, request.seed, run, progress) if all(row.roi is None for row in table) else None
    return _parts_tried(advice, found, run, progress)


def _parts_tried(
    advice: Advice,
    found: Foreground | None,
    compute: ComputeOptions,
    progress: Progress | None,
) -> AutoChoice:
    seed, defect_px = advice.request.seed, advice.request.defect_px
    best = advice.choice or (advice.ranking[0] if advice.ranking else None)
    if best is None:
        raise InputError(f"preset 'auto' with defects of {defect_px:g} px: {limits_of(advice)[0]}")
    chosen = best.candidate
    data = advice.data
    images = 4 * len(data.fit[chosen.size]) + len(data.test[chosen.size])
    rows: list[AblationRow] = []
    changes: dict[str, Any] = {}
    with SharedFeatures(chosen.backbone, "default", seed, chosen.layers, images, 2.0) as features:
        shared = features if chosen.tile is None else None

        def judged(own: Mapping[str, Any], on: PaintedSet, candidate: Candidate = chosen) -> Score:
            return judge(candidate, on, shared, compute, changes=own, seed=seed)

        rows.append(_features(chosen, best.score, advice))
        rows.append(_resolution(chosen, best.score, advice))
        row, within = _foreground(found, data, lambda on: judged({}, on), seed)
        rows.append(row)
        data = within or data
        now = judged({}, data)
        both = _second_method(chosen)
        tried = {TOGETHER: judged({}, data, replace(chosen, method=TOGETHER))} if both.variants else {}
        row, taken = _decided(both, tried, now, data, seed)
        rows.append(row)
        if taken is not None:
            chosen, now = replace(chosen, method=taken), tried[taken]
        parts = _parts(chosen)
        for n, part in enumerate(parts, start=1):
            tried = {name: judged({**changes, **own}, data, chosen) for name, own in part.variants.items()}
            row, taken = _decided(part, tried, now, data, seed)
            rows.append(row)
            if taken is not None:
                changes.update(part.variants[taken])
                now = tried[taken]
            if progress is not None:
                progress("trying parts", n, len(parts))
    fusion = changes.pop("fusion", None)
    settings = {"backbone": chosen.backbone, "layers": chosen.layers, "size": chosen.size, **changes}
    tiling = None if chosen.tile is None else {"tile": chosen.tile, "stride": chosen.tile}
    taken_mask = found if within is not None else None
    return AutoChoice(chosen.method, settings, tiling, fusion, tuple(rows), defect_px, taken_mask)


def _foreground(
    found: Foreground | None, data: PaintedSet, judged: Callable[[PaintedSet], Score], seed: int
) -> tuple[AblationRow, PaintedSet | None]:
    """Try the foreground as region of interest; return its row and, if it is taken, the images within it."""
    name, metric = "foreground mask", _METRICS["aupro"]
    if found is None:
        return _row(name, [], None, metric, None, False, "a region of interest is given"), None
    if found.mask is None:
        return _row(name, [], None, metric, None, False, f"self-check: {found.why_not}"), None
    without, within = judged_within(data, found.mask)
    if all(one.mask is None for one in without.judged):
        return _row(name, [], None, metric, None, False, "no painted defect lies on the foreground"), None
    tried = {f"{found.share:.0%} of the image": judged(within)}
    row, taken = _decided(_Part(name, {}), tried, judged(without), without, seed)
    return row, None if taken is None else within


def _second_method(chosen: Candidate) -> _Part:
    """Return the second method as a part to try, the one that judges beside the chosen one in the same pass."""
    own = TOGETHER.split("+")
    if chosen.method in own:
        return _Part("second method", {TOGETHER: {}})
    why_not = (
        "the advisor chose both" if chosen.method == TOGETHER else f"{chosen.method} is none of {' and '.join(own)}"
    )
    return _Part("second method", {}, why_not=why_not)


def _parts(chosen: Candidate) -> list[_Part]:
    """List the other parts to try, in this order; each adds to the parts that were taken before."""
    tunable = {} if len(chosen.methods) > 1 else find_method(chosen.method).tunable()

    def part(name: str, setting: str, labels: Callable[[Any], str], metric: str = "aupro") -> _Part:
        values = tunable.get(setting, ())
        why_not = None if values else f"not a setting of {chosen.method}"
        return _Part(name, {labels(value): {setting: value} for value in values}, metric, why_not)

    turns = part("rotated copies", "rotations", lambda n: {2: "half turns", 4: "quarter turns"}[n])
    if chosen.size[0] != chosen.size[1]:
        turns = replace(turns, variants={name: own for name, own in turns.variants.items() if own["rotations"] != 4})
    return [
        _Part("scaling", {kind: {"fusion": {"kind": "concat", "normalise": kind}} for kind in _SCALINGS}),
        _Part("smoothing", {f"{sigma:g} px": {"smoothing": sigma} for sigma in _sigmas(chosen)}),
        turns,
        part("position", "position_weight", lambda weight: f"weight {weight:g}"),
        part("image score", "top_k", lambda k: f"mean of {k}", "auroc"),
    ]


def _sigmas(chosen: Candidate) -> list[float]:
    """List the sigmas to try, in pixels of the input: none, a stride, two strides; the default is half a stride."""
    return [0.0, float(chosen.stride), 2.0 * chosen.stride]


def _decided(
    part: _Part, tried: Mapping[str, Score], now: Score, data: PaintedSet, seed: int
) -> tuple[AblationRow, str | None]:
    """Return the row of a part and its best variant, None unless it is better beyond doubt."""
    if not tried:
        return _row(part.name, [], None, _METRICS[part.metric], None, False, part.why_not or "nothing to try"), None
    gained = {name: difference(score, now, data, seed) for name, score in tried.items()}
    gains = {name: found[part.metric] for name, found in gained.items()}
    best = max(gains, key=lambda name: gains[name][0])
    (other,) = (name for name in _METRICS if name != part.metric)
    loses = gained[best][other][2] < 0
    taken = gains[best][1] > 0 and not loses
    why = "better on painted defects" if taken else "no gain beyond its interval"
    if gains[best][1] > 0 and loses:
        why = f"better, but {_METRICS[other]} falls by {-gained[best][other][0]:.3f} beyond doubt"
    return _row(part.name, list(tried), best, _METRICS[part.metric], gains[best], taken, why), best if taken else None


def _features(chosen: Candidate, score: Score, advice: Advice) -> AblationRow:
    names = [one.candidate.name for one in advice.ranking[:3]]
    gain = difference(score, advice.baseline.score, advice.data)["aupro"]
    return _row("features", ["the default of fit", *names], chosen.name, "aupro_05", gain, True, advice.why)


def _resolution(chosen: Candidate, score: Score, advice: Advice) -> AblationRow:
    """Compare the choice with the same layers at other sizes, of which the advisor took the best already."""
    others = [
        one
        for one in advice.ranking
        if replace(one.candidate, size=chosen.size, defect=chosen.defect) == chosen and one.candidate != chosen
    ]
    if not others:
        return _row("resolution", [], size_text(chosen.size), "aupro_05", None, False, "no other size is left")
    second = max(others, key=lambda one: one.score.aupro[0])
    gain = difference(score, second.score, advice.data)["aupro"]
    tried = [size_text(one.candidate.size) for one in others]
    return _row("resolution", tried, size_text(chosen.size), "aupro_05", gain, True, "against the next best size")


def _row(
    part: str,
    tried: list[str],
    best: str | None,
    metric: str,
    gain: tuple[float, float, float] | None,
    taken: bool,
    why: str,
) -> AblationRow:
    return {
        "part": part,
        "tried": tried,
        "best": best,
        "metric": metric,
        "gain": None if gain is None else gain[0],
        "interval": None if gain is None else list(gain[1:]),
        "taken": taken,
        "why": why,
    }
