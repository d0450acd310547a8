"""What a test says in plain words: a verdict that a manager can sign, and what to try next.

Both follow from the result alone. A next step is named only where the test shows the reason for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from pickglass.app.results import Metrics, NextStep
from pickglass.calibration import Calibration, Wish
from pickglass.calibration.distributions import beta_quantile, binomial_cdf
from pickglass.calibration.promises import percent
from pickglass.errors import ImageError
from pickglass.metrics.labelling import connected_runs
from pickglass.result import Found, Prediction

__all__ = ["next_steps", "verdict_of"]

_FEW = 30  # images, below which the share of mistakes is hardly known
_CELLS = 2.0  # of the map along a defect, below which it hardly shows
_APART = 0.9  # image AUROC, from which on a better place for the threshold is worth looking for
_RARE = 0.05  # chance, below which more false alarms than expected are no accident
_NAMED = 3  # images that a step names


def verdict_of(metrics: Metrics, calibration: Calibration | None) -> str:
    """Say in one sentence how many defects were missed, how many good parts flagged, and what was promised.

    Args:
        metrics: those over all images.
        calibration: the thresholds that judged.
    """
    good, defective = metrics["n_good"], metrics["n_defective"]
    if not good + defective:
        return "Nobody knows which of these images are good, so no mistake can be counted."
    if calibration is None or calibration.image_threshold is None:
        return f"No verdicts on {good} good and {defective} defective images: the model has no threshold."
    missed, flagged = metrics["missed"], metrics["false_alarms"]
    said = [
        "no defective image to judge" if missed is None else f"missed {missed} of {_images(defective, 'defective')}",
        "no good image to judge" if flagged is None else f"flagged {flagged} of {_images(good, 'good')}",
    ]
    words = ", ".join(said)
    unsure = [
        f"{n} of {_images(of, kind)}"
        for n, of, kind in (
            (metrics["unsure_defective"], defective, "defective"),
            (metrics["unsure_good"], good, "good"),
        )
        if n is not None
    ]
    if unsure:
        words += f", left {' and '.join(unsure)} for a person to look at"
    return f"{words[0].upper()}{words[1:]}; {_promise(calibration)}."


def _promise(calibration: Calibration) -> str:
    bound = calibration.false_alarm_bound
    if calibration.promise == "estimate":
        return f"expected, not promised: {calibration.sentence.split(', ')[0]}"
    if bound is None:
        return "the threshold promises no rate of false alarms"
    if calibration.confidence is None:
        return f"promised: on average at most {percent(bound)} of good parts flagged"
    return (
        f"promised: at most {percent(bound)} of good parts flagged, with {100 * calibration.confidence:g} % confidence"
    )


def _images(n: int, kind: str) -> str:
    return f"{n} {kind} image{'' if n == 1 else 's'}"


# -- what to try next --------------------------------------------------------------------------------------------------


class _Size(NamedTuple):
    """The largest defect of an image: its longest side and its area in pixels, and cells of the map along it."""

    length: int
    area: int
    cell: float  # side in pixels of the image


def next_steps(
    prediction: Prediction,
    metrics: Metrics,
    suspicious: Sequence[Mapping[str, Any]] = (),
    model: str = "MODEL",
    data: str = "DATA",
) -> list[NextStep]:
    """Say what to try next, the most telling first; at least one step.

    Args:
        prediction: what the model found.
        metrics: those over all images.
        suspicious: images that were learned though they looked like none of the others, each with its ``path``.
        model, data: what to write in commands.
    """
    model, data = shlex.quote(model), shlex.quote(data)
    steps = [
        *_vanishing(prediction, data),
        *_more_flagged(prediction.calibration, metrics, model),
        *_misplaced(prediction, metrics, model),
        *_overlapping(prediction, metrics, model),
        *_contaminated(suspicious),
        *_few_calibrated(prediction.calibration, model),
        *_few_judged(metrics),
    ]
    if any(step["command"] and "advise" in step["command"] for step in steps):  # one cause is enough for a miss
        steps = [step for step in steps if "explain" not in (step["command"] or "")]
    commands = [step["command"] for step in steps]
    if sum("pickglass threshold" in (command or "") for command in commands) > 1:  # the first says it
        _, again = [i for i, command in enumerate(commands) if "pickglass threshold" in (command or "")]
        steps[again] = _step(steps[again]["text"])
    return steps or [_step("Nothing stands out here. Judge parts of another day or lot before you rely on it.")]


def _step(text: str, command: str | None = None) -> NextStep:
    return {"text": text, "command": command}


def _vanishing(prediction: Prediction, data: str) -> Iterator[NextStep]:
    """Missed defects are so small that the map has hardly a cell for them."""
    sizes = [size for i in _missed(prediction) if (size := _size(prediction.found[i])) is not None]
    small = [size for size in sizes if size.area**0.5 < _CELLS * size.cell]
    if small:
        length, cell = round(median(size.length for size in small)), median(size.cell for size in small)
        covered = max(1, round(median(size.area / size.cell**2 for size in small)))
        yield _step(
            f"{len(small)} of {len(sizes)} missed defects with a mask are about {length} px long and cover about "
            f"{covered} value{'s' * (covered != 1)} of the map, one for each {cell:.0f} x {cell:.0f} px, which may be "
            "too few. Ask which size and layers see them.",
            f"pickglass advise {data} --defect-px {max(4, length)}",
        )


def _more_flagged(calibration: Calibration | None, metrics: Metrics, model: str) -> Iterator[NextStep]:
    """More good images are flagged than the threshold lets one expect."""
    flagged, n = metrics["false_alarms"], metrics["n_good"]
    if calibration is None or not flagged or calibration.promise not in ("tolerance", "marginal", "estimate"):
        return
    expected = calibration.false_alarm_bound
    if expected is None:
        expected = ((calibration.r or 0) + 1) / (calibration.n + 1)
    if 1 - binomial_cdf(flagged - 1, n, expected) < _RARE:
        yield _step(
            f"{flagged} of {_images(n, 'good')} are flagged, where the threshold lets one expect {percent(expected)}: "
            "they differ from those that were learned, or are not all good. Look at them, then ask what has changed.",
            f"pickglass drift {model} FOLDER_OF_GOOD_IMAGES",
        )


def _misplaced(prediction: Prediction, metrics: Metrics, model: str) -> Iterator[NextStep]:
    """Scores tell good from bad, but the threshold lies elsewhere."""
    auroc, missed, flagged = metrics["image_auroc"], metrics["missed"], metrics["false_alarms"]
    if auroc is None or auroc < _APART or missed is None or flagged is None or not missed + flagged:
        return
    known = [found for found in prediction if found.row.label is not None]
    labels = np.array([found.row.label for found in known])
    scores = np.array([found.score for found in known])
    good, bad = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    places = np.unique(scores)
    missing = np.searchsorted(bad, places, "right")
    flagging = len(good) - np.searchsorted(good, places, "right")
    best = int(np.lexsort((missing, missing + flagging))[0])
    fewest = (int(missing[best]), int(flagging[best]), float(places[best]))
    if fewest[0] + fewest[1] < missed + flagged:
        rate = 0.1 if fewest[0] < missed else 0.01
        yield _step(
            f"A threshold of {fewest[2]:.4g} would have missed {fewest[0]} and flagged {fewest[1]} of these images. It "
            f"is chosen on them and so looks too good: set one with fresh good images, and allow {percent(rate)} of "
            "false alarms.",
            f"pickglass threshold {model} FOLDER_OF_GOOD_IMAGES --false-alarm {rate:g}",
        )


def _overlapping(prediction: Prediction, metrics: Metrics, model: str) -> Iterator[NextStep]:
    """Scores of good and bad images overlap, so that no threshold helps."""
    auroc = metrics["image_auroc"]
    if auroc is None or auroc >= _APART:
        return
    defective = [found for found in prediction if found.row.label == 1]
    lowest = min(defective, key=lambda found: found.score).row.path
    yield _step(
        f"Scores of good and of defective images overlap (image AUROC {auroc:.2f}), so another threshold trades one "
        "mistake for the other. See what the model looks at in the defect that scores lowest.",
        f"pickglass explain {model} {shlex.quote(lowest)} -o why.html",
    )


def _contaminated(suspicious: Sequence[Mapping[str, Any]]) -> Iterator[NextStep]:
    if suspicious:
        names = [PurePath(str(one["path"])).name for one in suspicious]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        many = len(names) > 1
        yield _step(
            f"{', '.join(names[:_NAMED])}{more} looked like none of the other images that were learned. If "
            f"{'they are' if many else 'it is'} not good, the model takes such parts for good: fit without "
            f"{'them' if many else 'it'}.",
            "pickglass fit FOLDER --drop-suspicious",
        )


def _few_calibrated(calibration: Calibration | None, model: str) -> Iterator[NextStep]:
    if calibration is None:
        yield _step(
            "The model has no threshold: give it good images that were not learned.",
            f"pickglass threshold {model} FOLDER_OF_GOOD_IMAGES --false-alarm 0.05",
        )
        return
    five, one = Wish(false_alarm=0.05).needs(), Wish(false_alarm=0.01).needs()
    if calibration.n < five:
        yield _step(
            f"The threshold rests on {_images(calibration.n, 'good')}. To promise at most 5 % false alarms with 95 % "
            f"confidence takes {five} that were not learned, at most 1 % takes {one}.",
            f"pickglass threshold {model} FOLDER_OF_GOOD_IMAGES --false-alarm 0.05",
        )


def _few_judged(metrics: Metrics) -> Iterator[NextStep]:
    """So few images were judged that the shares say little: the interval of Clopper and Pearson (1934)."""
    for wrong, n, kind, word in (
        (metrics["missed"], metrics["n_defective"], "defective", "missed"),
        (metrics["false_alarms"], metrics["n_good"], "good", "flagged"),
    ):
        if wrong is not None and n < _FEW:
            low = beta_quantile(0.025, wrong, n - wrong + 1) if wrong else 0.0
            high = beta_quantile(0.975, wrong + 1, n - wrong) if wrong < n else 1.0
            yield _step(
                f"{wrong} of {_images(n, kind)} {word} can mean anything from {100 * low:.0f} to {100 * high:.0f} % of "
                f"{kind} parts (95 % interval): judge more of them."
            )


def _missed(prediction: Prediction) -> list[int]:
    return [i for i, found in enumerate(prediction) if found.row.label == 1 and prediction.verdict(i) == "good"]


def _size(found: Found) -> _Size | None:
    """Measure the largest defect of an image; None without a mask."""
    try:
        mask = found.row.truth(found.size)
    except ImageError:  # it was there when it was judged; the report names it
        return None
    if mask is None or not mask.any():
        return None
    regions = connected_runs(mask)
    largest = int(regions.areas().argmax())
    top, left, bottom, right = found.window
    cells = (bottom - top) * found.map.shape[0] * (right - left) * found.map.shape[1]
    return _Size(
        int(regions.boxes()[largest, 2:].max()),
        int(regions.areas()[largest]),
        float((found.size[0] * found.size[1] / cells) ** 0.5),
    )
