"""After an update the thresholds rest on the new images and on what is known of parts as they were before.

The images of the fit are not at hand, and coming parts may be like them, like the new ones, or a mixture in shares that
nobody knows. So the two kinds are never pooled: 200 old images would hide that half of 20 new ones are flagged. Each
kind has a threshold of its own, and the higher one is taken. Of parts of either kind, and so of every mixture, it flags
no more than the kind's own threshold would; no correction for two promises is needed, for a part is of one kind.

- New images: each was held back from the update, or judged as if it had been left out of it. The (r + 1)-th highest of
  their n scores flags (r + 1) / (n + 1), on average over such sets if they were held back (split conformal), as an
  estimate if left out. r is the largest for which that is at most 5 %, or the share that the threshold until now
  flags, if that is less; with few images r is 0.
- Earlier images that are given, and that the model never learned or that can be judged as if left out: likewise,
  judged by the updated model.
- Otherwise the scores that the model keeps are those of the model before. A bank that has only learned more judges
  parts as they were no more severely, exactly so if it keeps all patches: then the old threshold flags no more of them
  than before, and the new one is not below it. Where the model was trained on, the old scores say nothing any more; and
  a Gaussian's distances fall as its images come to outnumber its channels, so that its old threshold would hide
  defects (of 31 known bad magnetic tiles that PaDiM found with 54 images, 5 with 84). There the sentence says that
  nothing is known of parts as they were.

Letters: n units (images, or groups of them), r of them may exceed a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pickglass.calibration.promises import (
    FALSE_ALARM,
    Calibration,
    Evidence,
    average_bound,
    average_rank,
    group_maxima,
    left_out_bound,
    percent,
)

__all__ = ["renewed"]

_FEW = 20  # images with fewer of which a threshold is said to be worth little


def renewed(
    before: Calibration | None,
    new: Evidence,
    earlier: Evidence | None,
    *,
    comparable: bool,
    monotone: bool = False,
    names: Sequence[str] = (),
) -> Calibration:
    """Set the thresholds of an updated model; see the head of this file.

    Args:
        before: the thresholds until now; None where there were none.
        new: good images of the update, held back from it (``given``) or judged as if left out (``left out``).
        earlier: good images that the model never learned, judged by the updated model; None: there are none.
        comparable: the updated model judges parts as they were no more severely than the model before did.
        monotone: that is certain, and leaving an image out never lowers the score of another.
        names: what to call the new images.

    >>> from pickglass.calibration import usual_threshold
    >>> held = usual_threshold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    >>> renewed(held, Evidence([2.0, 5.0], [2.0, 5.0]), None, comparable=True).image_threshold
    5.0
    """
    share = _share(before)
    kinds = [_Kind(new, share, monotone)]
    kept = None
    if earlier is not None:
        kinds.append(_Kind(earlier, share, monotone))
    elif comparable and before is not None and before.image_threshold is not None:
        kept = before
    limits = [kind.image for kind in kinds] + ([kept.image_threshold] if kept else [])
    pixels = [kind.pixel for kind in kinds]
    if kept is not None and kept.pixel_threshold is not None:
        pixels.append(kept.pixel_threshold)
    image = max(limit for limit in limits if limit is not None)
    bounds = [kind.bound for kind in kinds]
    if kept is not None:
        bounds.append(kept.false_alarm_bound if monotone else None)
    bound = None if None in bounds else max(b for b in bounds if b is not None)
    every = [kind.evidence for kind in kinds]
    if kept is not None:
        every.append(Evidence(kept.scores, kept.peaks, kept.groups or (None,) * len(kept.scores)))
    pooled = Evidence(
        [score for evidence in every for score in evidence.scores],
        [peak for evidence in every for peak in evidence.peaks],
        [group for evidence in every for group in evidence.groups or (None,) * len(evidence.scores)],
        "updated",
        settings=new.settings,
    )
    pooled = pooled if pooled.grouped else replace(pooled, groups=())
    return pooled.record(
        "marginal" if bound is not None else "estimate",
        image,
        max(pixels),
        r=int((group_maxima(pooled.scores, pooled.groups) > image).sum()),
        false_alarm_bound=bound,
        sentence=_sentence(kinds, before, kept, image, names),
    )


def _share(before: Calibration | None) -> float:
    """Return the share of good parts that a threshold may flag: as much as the one until now, and never above 5 %."""
    if before is None or before.r is None or before.promise not in ("tolerance", "marginal", "estimate"):
        return FALSE_ALARM
    flagged = before.false_alarm_bound
    return min(FALSE_ALARM, average_bound(before.n, before.r) if flagged is None else flagged)


class _Kind:
    """One kind of parts has a threshold of its own.

    Args:
        evidence: good images of this kind.
        share: what the threshold may flag, if there are images enough.
        monotone: as in :func:`renewed`.
    """

    def __init__(self, evidence: Evidence, share: float, monotone: bool) -> None:
        scores, peaks = (group_maxima(v, evidence.groups) for v in (evidence.scores, evidence.peaks))
        self.evidence, self.n = evidence, len(scores)
        r = average_rank(self.n, share) or 0
        self.image, self.pixel = float(scores[self.n - 1 - r]), float(peaks[self.n - 1 - r])
        self.rate = average_bound(self.n, r)
        self.left_out = evidence.source == "left out"
        self.bound = left_out_bound(self.n, r) if self.left_out and monotone else None if self.left_out else self.rate

    def words(self, which: str) -> str:
        """Say what the threshold flags of parts like these; ``which``: what to call them."""
        groups = self.n != len(self.evidence.scores)
        count = f"{self.n} {'group' if groups else 'image'}{'' if self.n == 1 else 's'}{' of images' if groups else ''}"
        how = "each judged as if left out of the update" if self.left_out else "that it did not learn"
        rate = "about " + percent(self.rate) if self.bound is None else "on average at most " + percent(self.bound)
        said = ", an estimate without a promise" if self.bound is None else ""
        return f"{rate} of good parts like the {which} ones will be flagged{said}, from {count} {how}"


def _sentence(
    kinds: Sequence[_Kind], before: Calibration | None, kept: Calibration | None, image: float, names: Sequence[str]
) -> str:
    new = kinds[0]
    parts = [new.words("new")]
    if len(kinds) > 1:
        parts.append(kinds[1].words("earlier"))
    elif kept is not None:
        bound = kept.false_alarm_bound
        said = f", at most {percent(bound)}" if bound is not None else ""
        parts.append(
            f"parts as they were are flagged as until now{said}, if the update judges them no more severely: the "
            f"threshold is not below the {kept.image_threshold:.4g} of then, and no image of then was judged anew"
        )
    elif before is not None and before.image_threshold is not None:
        parts.append(
            "nothing is known of parts as they were, for scores have changed: name good images of them with --with"
        )
    if image == new.image and len(names) == len(new.evidence.scores) and new.n > 1:
        parts.append(f"{names[list(new.evidence.scores).index(image)]} sets it")
    if before is not None and before.unsure_threshold is not None:
        parts.append("no image is unsure any more, until 'pickglass threshold' sets a band again (--unsure)")
    if new.n < _FEW:
        parts.append(f"{new.n} new image{' says' if new.n == 1 else 's say'} little, {_FEW} or more say much more")
    return "; ".join(parts)
