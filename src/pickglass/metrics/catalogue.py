"""Every figure that the library reports about a model, once: its name, its direction and why it can be missing.

Tables on pages and on the terminal take their heads from here, and :meth:`Metric.text` writes their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["METRICS", "WITHOUT_THRESHOLD", "WITH_THRESHOLD", "Metric", "shown"]

_NEEDS_LABELS = "needs good and bad images with labels"
_NEEDS_MASKS = "needs ground truth masks"
_NEEDS_AREAS = "needs saturation areas, as MVTec LOCO has them"
_NEEDS_TIME = "not measured"


@dataclass(frozen=True)
class Metric:
    """One figure about a model.

    Attributes:
        key: its name in results and in ``--json``.
        label: its name for people.
        short: the same where a table is narrow, at most ten letters.
        higher_is_better: whether a higher value is a better model.
        what: what it is, in one sentence.
        missing: why it can be missing.
        share: whether it lies between 0 and 1.
        digits: decimals that are worth reading.
        rare: whether few data sets have it, so that tables leave it out where no value is.
        remark: a warning that belongs beside the value; empty where there is none.
        counts: names of the two numbers whose ratio it is, the part and the whole; empty where there are none.
    """

    key: str
    label: str
    short: str
    higher_is_better: bool
    what: str
    missing: str
    share: bool = True
    digits: int = 3
    rare: bool = False
    remark: str = ""
    counts: tuple[str, str] | tuple[()] = ()

    def cell(self, values: Mapping[str, object]) -> str | None:
        """Return what a table shows of these values: two counts where they are known, otherwise the value as text.

        A share hides how few images it rests on, so that counts are shown wherever they are known.

        >>> METRICS["miss_rate"].cell({"miss_rate": 2 / 3, "missed": 6, "n_defective": 9})
        '6 of 9'
        >>> METRICS["miss_rate"].cell({"miss_rate": 2 / 3})
        '0.667'
        """
        known = [values.get(name) for name in self.counts]
        if known and None not in known:
            return f"{known[0]} of {known[1]}"
        return self.text(values.get(self.key))

    def text(self, value: object) -> str | None:
        """Return the value as a table shows it, None where it is missing.

        A share that is not perfect is never rounded to perfect.

        >>> auroc, missed = METRICS["image_auroc"], METRICS["miss_rate"]
        >>> auroc.text(0.98765), auroc.text(0.99996), auroc.text(1.0), auroc.text(float("nan"))
        ('0.988', '>0.999', '1.000', None)
        >>> missed.text(0.00004), missed.text(0.0)
        ('<0.001', '0.000')
        """
        if value is None or not math.isfinite(number := float(str(value))):
            return None
        text, least = f"{number:.{self.digits}f}", 10.0**-self.digits
        if self.share and self.higher_is_better and float(text) == 1 and number < 1:
            return f">{1 - least:.{self.digits}f}"
        if self.share and not self.higher_is_better and float(text) == 0 and number > 0:
            return f"<{least:.{self.digits}f}"
        return text

    def better(self, values: Iterable[float]) -> float | None:
        """Return the best of some values, None if there are none."""
        return (max if self.higher_is_better else min)(values, default=None)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.key: metric
        for metric in (
            Metric(
                "image_auroc",
                "image AUROC",
                "AUROC",
                True,
                "The chance that a defective image scores higher than a good one.",
                _NEEDS_LABELS,
            ),
            Metric(
                "average_precision",
                "average precision",
                "AP",
                True,
                "The mean share of defective images among those that score highest, over all numbers of images.",
                _NEEDS_LABELS,
            ),
            Metric(
                "f1_max",
                "F1-max",
                "F1-max",
                True,
                "The F1 of the images at the threshold that makes it highest on these very images.",
                _NEEDS_LABELS,
                remark="optimistic: threshold chosen on test labels",
            ),
            Metric(
                "pixel_auroc",
                "pixel AUROC",
                "px AUROC",
                True,
                "The chance that a defective pixel has a higher map value than a good one.",
                _NEEDS_MASKS,
            ),
            Metric(
                "aupro_30",
                "AUPRO@0.3",
                "PRO@0.3",
                True,
                "The mean share of each defect region that is found, over false-positive rates of pixels up to 0.3.",
                _NEEDS_MASKS,
            ),
            Metric(
                "aupro_05",
                "AUPRO@0.05",
                "PRO@0.05",
                True,
                "The mean share of each defect region that is found, over false-positive rates of pixels up to 0.05.",
                _NEEDS_MASKS,
            ),
            Metric(
                "aupimo",
                "AUPIMO",
                "AUPIMO",
                True,
                "The mean share of each image's defect that is found while good images have almost no false positive.",
                _NEEDS_MASKS,
            ),
            Metric(
                "au_spro_05",
                "AU-sPRO@0.05",
                "sPRO@0.05",
                True,
                "As AUPRO@0.05, but a defect counts as found once its saturation area is covered.",
                _NEEDS_AREAS,
                rare=True,
            ),
            Metric(
                "f1",
                "F1",
                "F1",
                True,
                "The F1 of the images at the model's own threshold; an unsure one is not flagged.",
                "needs a threshold, and good and bad images",
            ),
            Metric(
                "false_alarm_rate",
                "false alarms",
                "alarms",
                False,
                "The share of good images that the model calls bad at its own threshold.",
                "needs a threshold and good images",
                counts=("false_alarms", "n_good"),
            ),
            Metric(
                "miss_rate",
                "missed",
                "missed",
                False,
                "The share of defective images that the model calls good at its own threshold.",
                "needs a threshold and bad images",
                counts=("missed", "n_defective"),
            ),
            Metric(
                "unsure_good_rate",
                "good unsure",
                "good uns.",
                False,
                "The share of good images between the model's two thresholds, which are no false alarms.",
                "needs two thresholds and good images",
                rare=True,
                counts=("unsure_good", "n_good"),
            ),
            Metric(
                "unsure_defective_rate",
                "bad unsure",
                "bad uns.",
                False,
                "The share of defective images between the model's two thresholds, which are not missed.",
                "needs two thresholds and bad images",
                rare=True,
                counts=("unsure_defective", "n_defective"),
            ),
            Metric(
                "pixel_f1",
                "pixel F1",
                "px F1",
                True,
                "The F1 of the pixels at the model's own pixel threshold.",
                "needs a pixel threshold and ground truth masks",
            ),
            Metric(
                "images_per_s",
                "images/s",
                "images/s",
                True,
                "How many images the model judges in a second on this machine.",
                _NEEDS_TIME,
                share=False,
                digits=1,
            ),
            Metric(
                "fit_s",
                "fit, s",
                "fit s",
                False,
                "How many seconds the fit took.",
                _NEEDS_TIME,
                share=False,
                digits=1,
            ),
            Metric(
                "predict_s",
                "test, s",
                "test s",
                False,
                "How many seconds it took to judge the test images.",
                _NEEDS_TIME,
                share=False,
                digits=1,
            ),
            Metric(
                "peak_mb",
                "peak, MB",
                "peak MB",
                False,
                "How much memory the whole process held at most, in megabytes.",
                _NEEDS_TIME,
                share=False,
                digits=0,
            ),
        )
    }
)
"""Key -> metric, in the order in which tables show them."""

WITHOUT_THRESHOLD = (
    "image_auroc",
    "average_precision",
    "f1_max",
    "pixel_auroc",
    "aupro_30",
    "aupro_05",
    "aupimo",
    "au_spro_05",
)
"""The metrics of scores and maps, which depend on no threshold of the model."""

WITH_THRESHOLD = ("f1", "false_alarm_rate", "miss_rate", "unsure_good_rate", "unsure_defective_rate", "pixel_f1")
"""The metrics of verdicts and predicted masks, at the model's own thresholds."""


def shown(keys: Sequence[str], sets: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics of these keys that a table over these sets shows: a rare one only where a set has it."""
    known = {key for values in sets for key in keys if METRICS[key].text(values.get(key)) is not None}
    return [METRICS[key] for key in keys if not METRICS[key].rare or key in known]
