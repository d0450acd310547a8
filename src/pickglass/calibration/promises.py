"""From scores of good images to thresholds. Scores stay raw; a verdict is a score compared with a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Calibration", "Verdict", "highest_score"]

Verdict = Literal["good", "bad"]


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they rest on.

    Attributes:
        promise: how they were set; ``highest`` is the highest score of the calibration images.
        image_threshold: an image is bad if its score exceeds it; None: no verdicts.
        pixel_threshold: a pixel is part of the predicted mask if its map value exceeds it.
        scores: image scores of the calibration images, kept so that another promise can be made later.
        peaks: highest map value of each calibration image.
        stale: something that changes scores was changed afterwards.
    """

    promise: str
    image_threshold: float | None
    pixel_threshold: float | None
    scores: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()
    stale: bool = False

    def verdict(self, score: float) -> Verdict | None:
        """``bad`` if the score exceeds the image threshold; None without a threshold."""
        if self.image_threshold is None:
            return None
        return "bad" if score > self.image_threshold else "good"

    def to_json(self) -> dict[str, Any]:
        """As a plain dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "scores": tuple(data["scores"]), "peaks": tuple(data["peaks"])})


def highest_score(scores: Sequence[float], peaks: Sequence[float]) -> Calibration:
    """Thresholds at the highest score and the highest map value of good images that were not fitted.

    With n such images the chance that the next good one exceeds the threshold is 1 / (n + 1) on average, over
    calibration sets and exchangeable images. Without images there is no threshold.
    """
    return Calibration(
        promise="highest",
        image_threshold=max(scores, default=None),
        pixel_threshold=max(peaks, default=None),
        scores=tuple(scores),
        peaks=tuple(peaks),
    )
