"""Evaluate a prediction: join it to the truth by row, and compute every metric at the original resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from pickglass.app.pages.charts import Curves
from pickglass.app.results import Counts, Metrics
from pickglass.app.testing.truth import LOCO_LIMIT, Pixels, read_pixels, read_truth
from pickglass.calibration import Calibration
from pickglass.data import Row, Table, as_table
from pickglass.errors import InputError, MissingExtra
from pickglass.metrics import (
    OK_LEVELS,
    CountTables,
    PixelResult,
    Roc,
    SaturatedResult,
    bootstrap,
    image_summary,
    rates_at,
    roc_curve,
)
from pickglass.metrics.catalogue import WITH_THRESHOLD, WITHOUT_THRESHOLD
from pickglass.result import Prediction

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation", "counts_of", "evaluate", "rates_of"]

_FEW_GROUPS = 20


@dataclass(frozen=True)
class Evaluation(Mapping[str, Any]):
    """The metrics of a prediction; reads like a dict of the overall ones.

    Attributes:
        overall: metrics over all labelled images.
        by_type: per defect type, that type and all good images.
        roc: image ROC curve, None unless both classes are present.
        pixels: PRO curve and counts, None without masks.
        saturated: sPRO curve and counts, None without saturation areas.
        aupimo: AUPIMO of each defective image that has a mask, by path, empty without masks or good images.
        notes: what a reader of the numbers has to know.
    """

    overall: Metrics
    by_type: dict[str, Metrics]
    roc: Roc | None
    pixels: PixelResult | None
    saturated: SaturatedResult | None
    aupimo: dict[str, float]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return cast("dict[str, Any]", self.overall)[name]

    def __iter__(self) -> Any:
        return iter(self.overall)

    def __len__(self) -> int:
        return len(self.overall)

    def curves(self) -> Curves:
        """Return the ROC, PRO and sPRO curves as arrays, which can be plotted."""
        none = np.empty(0)
        roc, pixels, saturated = self.roc, self.pixels, self.saturated
        return Curves(
            roc_fpr=none if roc is None else roc.fpr,
            roc_tpr=none if roc is None else roc.tpr,
            pro_fpr=none if pixels is None else pixels.fpr,
            pro=none if pixels is None else pixels.pro,
            pro_limit=0.3,
            spro_fpr=none if saturated is None else saturated.fpr,
            spro=none if saturated is None else saturated.spro,
            spro_limit=LOCO_LIMIT,
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with all images in the first row, and one row for each type of defect.

        The columns are ``defect`` (None for all images), ``n`` and the metrics by their keys. Where there are
        intervals, ``KEY_low`` and ``KEY_high`` follow a metric. What is absent is NaN.

        Raises:
            MissingExtra: pandas is not installed.

        Example:
            ``print(pg.evaluate(found).to_pandas().to_latex(index=False, float_format="%.3f"))``
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise MissingExtra.needed("Evaluation.to_pandas", error) from error
        sets = [self.overall, *self.by_type.values()]
        columns = {
            "defect": pd.Series([None, *self.by_type], dtype=object),
            "n": pd.Series([each["n"] for each in sets]),
        }
        for key in (*WITHOUT_THRESHOLD, *WITH_THRESHOLD):
            columns[key] = pd.Series([cast("dict[str, Any]", each)[key] for each in sets], dtype=float)
            intervals = [(each["intervals"] or {}).get(key) for each in sets]
            for side, name in enumerate(("low", "high")) if any(intervals) else ():
                values = [None if interval is None else interval[side] for interval in intervals]
                columns[f"{key}_{name}"] = pd.Series(values, dtype=float)
        return pd.DataFrame(columns)


def evaluate(prediction: Prediction, truth: Any = None, *, repeats: int = 0, seed: int = 0) -> Evaluation:
    """Compute all metrics of a prediction, on images and on pixels.

    These are image AUROC, average precision, F1-max, pixel AUROC, AUPRO at FPR limits 0.3 and 0.05, AUPIMO, AU-sPRO at
    0.05 where rows have ``saturation``, and the rates at the thresholds of the prediction's calibration.

    Pixel metrics follow MVTec AD's definition: regions of 8-connected defect pixels, the false-positive rate over all
    good pixels of all images (good images count), masks and maps at the original size, linear interpolation at the
    limit. AUPIMO's false-positive rate is that of good images alone. AU-sPRO follows MVTec LOCO AD: the regions are
    those of the data set, and count as found once their saturation area is. Pixels outside the region of interest
    do not count in any of them. Maps are enlarged one at a time.

    Args:
        prediction: what ``detector.predict`` returned.
        truth: rows with labels and masks (a data set, a table), joined by path; None: the prediction's own rows.
        repeats: replicates of the bootstrap over groups, e.g. 1000, which gives each metric its 95 % interval
            (AUPIMO and AU-sPRO excepted, whose pixels would have to be sorted anew); 0: no intervals. Maps are then
            enlarged twice.
        seed: decides the draws of the bootstrap.

    Returns:
        The :class:`Evaluation`; images without a label are left out, and so are defective images without a mask from
        the pixel metrics (a note says how many).

    Raises:
        InputError: a path of the prediction is not in ``truth``, or no image has a label.
        ImageError: the mask of a good image marks defects.

    Example:
        ``evaluate(detector.predict(bottle.test), repeats=1000)["intervals"]["image_auroc"]``
    """
    rows = prediction.rows if truth is None else _joined(prediction, as_table(truth))
    labelled = [i for i, row in enumerate(rows) if row.label is not None]
    if not labelled:
        raise InputError(
            f"none of the {len(rows)} images has a label: expected test rows that are known to be good or defective"
        )
    judged = [rows[i] for i in labelled]
    images = _Images(np.array([row.label for row in judged]), prediction.scores[labelled], prediction.calibration)
    pixels, notes = read_pixels(prediction, rows, labelled, quantiles=repeats > 0)
    if len(labelled) < len(rows):
        notes.append(f"{len(rows) - len(labelled)} images have no label and are left out of all metrics.")
    if images.calibration is not None and images.calibration.unsure_threshold is not None:
        notes.append(
            "An unsure image, between the model's two thresholds, is neither a false alarm nor missed, and counts as "
            "not flagged in F1."
        )
    if pixels is not None and pixels.finest > 1e-5:
        notes.append(
            f"AUPIMO: {1 / pixels.finest:,.0f} pixels of good images cannot resolve a false-positive rate of 1e-5; "
            "below one pixel the recall at no false positive stands."
        )
    kinds = sorted({row.defect for row in judged if row.label == 1 and row.defect is not None})
    sets: dict[str | None, npt.NDArray[np.int64]]
    sets = {None: np.ones(len(judged), dtype=np.int64)}  # per set of images which of them belong to it, (N,) 0 or 1
    sets |= {kind: np.array([int(row.label == 0 or row.defect == kind) for row in judged]) for kind in kinds}
    traced = {kind: None if pixels is None else pixels.trace(kind) for kind in sets}
    saturated = {kind: None if pixels is None else pixels.trace_saturated(kind) for kind in sets}
    found = {kind: _metrics(images, pixels, traced[kind], saturated[kind], members) for kind, members in sets.items()}
    if repeats:
        groups = [row.group for row in judged]
        tables = None if pixels is None else _count_tables(prediction, rows, pixels)
        for kind, members in sets.items():
            found[kind]["intervals"] = _intervals(images, pixels, tables, members, groups, repeats, seed)
        n = len({row.unit for row in judged})
        few = f" Under {_FEW_GROUPS} groups such intervals are too narrow." if n < _FEW_GROUPS else ""
        notes.append(f"Intervals: 95 %, percentile bootstrap, {repeats} draws of {n} groups of images.{few}")
    overall = found.pop(None)
    both = 0 < images.labels.sum() < len(labelled)
    return Evaluation(
        overall=overall,
        by_type={str(kind): metrics for kind, metrics in found.items()},
        roc=roc_curve(images.labels, images.scores) if both else None,
        pixels=traced[None],
        saturated=saturated[None],
        aupimo={} if pixels is None else {judged[i].path: v for i, v in enumerate(pixels.aupimo) if not np.isnan(v)},
        notes=tuple(notes),
    )


class _Images(NamedTuple):
    """Labels and scores (N,) of the labelled images, and the thresholds."""

    labels: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    calibration: Calibration | None

    def figures(self, weight: npt.NDArray[np.int64]) -> dict[str, float]:
        """Compute the image metrics as if image i counted ``weight[i]`` times."""
        drawn = np.repeat(np.arange(len(self.labels)), weight)
        labels, scores = self.labels[drawn], self.scores[drawn]
        return image_summary(labels, scores) | rates_of(self.calibration, labels, scores)


def rates_of(
    calibration: Calibration | None, labels: npt.NDArray[Any], scores: npt.NDArray[np.floating]
) -> dict[str, float]:
    """Compute the rates (see :class:`pickglass.metrics.Rates`) of images at a model's thresholds, none without them."""
    if calibration is None or calibration.image_threshold is None:
        return {}
    return rates_at(labels, scores, calibration.image_threshold, calibration.unsure_threshold)._asdict()


def counts_of(labels: npt.NDArray[Any], figures: Mapping[str, float]) -> Counts:
    """Count the images behind the rates among some figures of images with these labels."""
    n_defective = int(labels.sum())
    n_good = len(labels) - n_defective

    def counted(rate: str, of: int) -> int | None:
        share = figures.get(rate, math.nan)
        return None if math.isnan(share) else round(share * of)

    return {
        "n_good": n_good,
        "n_defective": n_defective,
        "false_alarms": counted("false_alarm_rate", n_good),
        "missed": counted("miss_rate", n_defective),
        "unsure_good": counted("unsure_good_rate", n_good),
        "unsure_defective": counted("unsure_defective_rate", n_defective),
    }


def _joined(prediction: Prediction, truth: Table) -> Table:
    by_path = {row.path: row for row in truth}
    unknown = [row.path for row in prediction.rows if row.path not in by_path]
    if unknown:
        raise InputError(f"{len(unknown)} predicted images are not in the truth, e.g. {unknown[0]!r}: paths must agree")
    return Table([by_path[row.path] for row in prediction.rows])


def _metrics(
    images: _Images,
    pixels: Pixels | None,
    traced: PixelResult | None,
    saturated: SaturatedResult | None,
    members: npt.NDArray[np.int64],
) -> Metrics:
    figures = images.figures(members)
    if pixels is not None and traced is not None:
        scores = pixels.aupimo[(members == 1) & ~np.isnan(pixels.aupimo)]
        figures |= {
            "pixel_auroc": traced.pixel_auroc,
            "aupro_30": traced.aupro[0.3],
            "aupro_05": traced.aupro[0.05],
            "aupimo": float(scores.mean()) if len(scores) else float("nan"),
            "pixel_f1": pixels.f1(members),
        }
    if saturated is not None:
        figures["au_spro_05"] = saturated.au_spro[LOCO_LIMIT]

    def known(name: str) -> float | None:
        value = figures.get(name, float("nan"))
        return None if math.isnan(value) else float(value)

    return {
        "n": int(members.sum()),
        **counts_of(images.labels[members == 1], figures),
        "image_auroc": known("image_auroc"),
        "average_precision": known("average_precision"),
        "f1_max": known("f1_max"),
        "pixel_auroc": known("pixel_auroc"),
        "aupro_30": known("aupro_30"),
        "aupro_05": known("aupro_05"),
        "aupimo": known("aupimo"),
        "au_spro_05": known("au_spro_05"),
        "f1": known("f1"),
        "false_alarm_rate": known("false_alarm_rate"),
        "miss_rate": known("miss_rate"),
        "unsure_good_rate": known("unsure_good_rate"),
        "unsure_defective_rate": known("unsure_defective_rate"),
        "pixel_f1": known("pixel_f1"),
        "intervals": None,
    }


def _count_tables(prediction: Prediction, rows: Sequence[Row], pixels: Pixels) -> CountTables:
    """Count pixels in a second pass, since the grid of thresholds comes from the first."""
    tables = CountTables(pixels.curves.ok_quantiles(OK_LEVELS))
    for i in pixels.source.tolist():
        mask = read_truth(rows[i], prediction.found[i].size).mask
        tables.update(prediction.map(i), mask, prediction.found[i].inside())
    return tables


def _intervals(
    images: _Images,
    pixels: Pixels | None,
    tables: CountTables | None,
    members: npt.NDArray[np.int64],
    groups: Sequence[str | None],
    repeats: int,
    seed: int,
) -> dict[str, list[float]]:
    """Compute the 95 % intervals of one set of images; a metric that no replicate defines is left out."""

    def figures(weight: npt.NDArray[np.int64]) -> dict[str, float]:
        weight = weight * members
        result = images.figures(weight)
        if pixels is not None and tables is not None:
            drawn = weight[pixels.place]
            result |= {
                "pixel_auroc": tables.pixel_auroc(drawn),
                "aupro_30": tables.aupro(drawn, 0.3),
                "aupro_05": tables.aupro(drawn, 0.05),
                "pixel_f1": pixels.f1(weight),
            }
        return result

    names = list(figures(members))
    found = bootstrap(lambda weight: list(figures(weight).values()), groups, repeats=repeats, seed=seed)
    return {
        name: [float(low), float(high)]
        for name, low, high, used in zip(names, found.low, found.high, found.used, strict=True)
        if used
    }
