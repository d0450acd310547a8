"""A candidate is judged by how well it finds painted defects, how sure that is, and what it costs on this machine.

Letters: N images judged, T thresholds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pickglass.app.advise.candidates import Candidate
from pickglass.app.advise.painted import Judged, PaintedSet
from pickglass.app.jobs.peak import peak_mb, reset_peak
from pickglass.data import Table, resize_map
from pickglass.errors import DataError, InputError
from pickglass.features.engine import device_name
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.shared import SharedFeatures
from pickglass.methods import Combined, Detector, find_method
from pickglass.metrics import CountTables
from pickglass.metrics.intervals import group_weights
from pickglass.result import Prediction
from pickglass.runtime.compute import ComputeOptions

__all__ = [
    "LIMIT",
    "PLAIN",
    "Cost",
    "Score",
    "averaged",
    "detector_of",
    "difference",
    "judge",
    "measure_cost",
    "one_at_a_time",
    "scored",
    "settings_of",
    "window_map",
]

LIMIT = 0.05
"""The false-positive rate up to which AUPRO is taken."""

_LEVELS = np.concatenate([np.linspace(0, 0.06, 240), [0.1, 0.3, 1.0]])  # (T,)
_REPEATS = 200
_FEW = 4  # images that teach a detector whose cost is measured
_TIMED = 5  # calls
_TAIL = 0.998  # quantile of good maps by which several methods are brought to one scale
PLAIN: Mapping[str, Any] = {"place_scale": False, "level_shift": False}
"""Settings of a detector that is judged by maps of one scale; what fit learns of places and levels takes its time."""

Found = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Score:
    """The score of one candidate on the painted defects.

    Attributes:
        aupro, auroc: value, and the ends of its 95 % interval.
        tables: counts of pixels, from which AUPRO of reweighted images is had.
        labels, scores: of the images, (N,).
        maps: one (h, w) an image, over the canvas.
    """

    aupro: tuple[float, float, float]
    auroc: tuple[float, float, float]
    tables: CountTables
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    maps: tuple[NDArray[np.float32], ...] = field(repr=False)

    def of_weights(self, weight: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute AUPRO and image AUROC as if image i counted ``weight[i]`` times."""
        bad, good = self.labels == 1, self.labels == 0
        higher, alike = (compare(self.scores[bad][:, None], self.scores[good]) for compare in (np.greater, np.equal))
        pairs = weight[bad].sum() * weight[good].sum()
        outranked = weight[bad] @ (higher + 0.5 * alike) @ weight[good]
        return np.array([self.tables.aupro(weight, LIMIT), outranked / pairs if pairs else np.nan])


@dataclass(frozen=True)
class Cost:
    """The cost of judging one image on this machine.

    Attributes:
        seconds: median time from the pixels in memory to score and map.
        model_mb: size of the model file, backbone included, in MB.
        peak_mb: peak memory of the whole process, in MB; None where the system does not say.
    """

    seconds: float
    model_mb: float
    peak_mb: float | None


def settings_of(candidate: Candidate, n_images: int) -> dict[str, Any]:
    """Return the method's settings for the comparison; PatchCore is sub-sampled so that no candidate takes long."""
    h, w = (n / candidate.stride for n in (candidate.tile or candidate.size))
    return {
        **_of_methods(candidate, lambda method: method.quick_settings(n_images, round(h * w))),
        "backbone": candidate.backbone,
        "layers": candidate.layers,
        "size": candidate.size,
    }


def _of_methods(candidate: Candidate, settings: Callable[[type[Detector]], Mapping[str, Any]]) -> dict[str, Any]:
    """Return settings of the candidate's method, or of each of several, as ``METHOD.SETTING``."""
    names = candidate.methods
    return {
        setting if len(names) == 1 else f"{name}.{setting}": value
        for name in names
        for setting, value in settings(find_method(name)).items()
    }


def detector_of(candidate: Candidate, n_images: int, changes: Mapping[str, Any] | None = None) -> Detector:
    """Make the unfitted detector of a candidate; ``changes`` may hold ``fusion``."""
    settings = {**settings_of(candidate, n_images), **(changes or {})}
    names = candidate.methods
    detector = find_method(names[0]).configured(settings) if len(names) == 1 else Combined.of(names, None, settings)
    if candidate.tile is None:
        return detector
    return detector.tiled(tile=candidate.tile, stride=candidate.tile)


def one_at_a_time(compute: ComputeOptions) -> ComputeOptions:
    """Read images one by one on a CPU: what is computed of one stays in its cache, and none is judged for nothing."""
    return replace(compute, batch=1) if device_name(compute.device) == "cpu" else compute


def judge(
    candidate: Candidate,
    data: PaintedSet,
    shared: SharedFeatures | None,
    compute: ComputeOptions,
    *,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    memory_gb: float = 2.0,
) -> Score:
    """Fit the candidate on the images that teach and judge it on the others; several methods one by one.

    Args:
        candidate: what to judge.
        data: made for its size.
        shared: the features of its backbone and size; None: it reads the images itself.
        compute: where to compute.
        changes: settings of the method that differ, e.g. ``{"smoothing": 0.0}``.
        seed: seeds the fit and the bootstrap.
        memory_gb: for the fit.
    """
    if len(candidate.methods) > 1:
        alone = [replace(candidate, method=method) for method in candidate.methods]
        parts = [judge(one, data, shared, compute, changes=changes, seed=seed, memory_gb=memory_gb) for one in alone]
        return averaged(parts, data, seed)
    taught = data.fit[candidate.size]
    detector = detector_of(candidate, len(taught), changes)
    if shared is not None:
        detector.shared_features = shared
        detector.extractor = shared.view_of(detector.read_layers)
    detector.fit(taught, validate=0.0, calibrate=0.0, seed=seed, memory_gb=memory_gb, **compute.arguments())
    prediction = detector.predict(data.test[candidate.size], **compute.arguments())
    return scored(prediction, data, seed)


def scored(prediction: Prediction, data: PaintedSet, seed: int = 0) -> Score:
    """Compute AUPRO@0.05 in the windows and image AUROC, with bootstrap intervals by group."""
    if len(prediction) != len(data.judged):
        raise DataError(f"only {len(prediction)} of {len(data.judged)} images could be judged:", prediction.failed)
    return _scored(prediction.scores, tuple(prediction.maps), data, seed)


def averaged(parts: Sequence[Score], data: PaintedSet, seed: int = 0) -> Score:
    """Score what several methods say together, from what each said alone; no image is judged anew.

    Maps and image scores are brought to one scale and averaged as :class:`pickglass.methods.Combined` does, with the
    scale of the good images that were held back.

    Args:
        parts: scores of methods that judged the same images, their maps on one grid.
        data: what they judged.
        seed: seeds the bootstrap.

    Raises:
        InputError: the good maps of one are all alike.
    """
    good = [(i, one) for i, one in enumerate(data.judged) if one.mask is None]
    units = []
    for part in parts:
        ground = np.concatenate([window_map(part.maps[i], one)[one.keep] for i, one in good])
        usual, tail = np.quantile(ground, (0.5, _TAIL))
        if not tail > usual:
            raise InputError("its maps of good images are all alike, so it cannot be brought to a scale with others")
        units.append((np.float32(usual), np.float32(tail - usual)))
    scores, *maps = (
        np.mean([(values - usual) / unit for values, (usual, unit) in zip(of_parts, units, strict=True)], axis=0)
        for of_parts in zip(*((part.scores, *part.maps) for part in parts), strict=True)
    )
    return _scored(scores, tuple(maps), data, seed)


def _scored(scores: NDArray[np.float32], maps: tuple[NDArray[np.float32], ...], data: PaintedSet, seed: int) -> Score:
    windows = [window_map(m, one) for m, one in zip(maps, data.judged, strict=True)]
    good = np.concatenate(
        [
            values[one.keep if one.mask is None else one.keep & ~one.mask]
            for values, one in zip(windows, data.judged, strict=True)
        ]
    )
    tables = CountTables(np.quantile(good, 1 - _LEVELS, method="higher"))
    for values, one in zip(windows, data.judged, strict=True):
        tables.update(values, one.mask, one.keep)
    labels = np.array([int(one.mask is not None) for one in data.judged])
    score = Score((0.0,) * 3, (0.0,) * 3, tables, labels, scores, maps)
    aupro, image = _interval(score.of_weights, data, seed)
    return Score(aupro, image, tables, labels, scores, maps)


def window_map(values: NDArray[np.float32], one: Judged) -> NDArray[np.float32]:
    """Cut a map of the whole canvas to the window of an image, at the original pixels, (h, w)."""
    (height, width), (top, left, h, w) = one.image, one.window
    return resize_map(values, (h, w), (top / height, left / width, (top + h) / height, (left + w) / width))


def difference(new: Score, old: Score, data: PaintedSet, seed: int = 0) -> Found:
    """Compute how much better a score is than another, paired by image.

    Returns:
        ``aupro`` and ``auroc`` -> difference and the two ends of its 95 % interval.
    """
    aupro, image = _interval(lambda weight: new.of_weights(weight) - old.of_weights(weight), data, seed)
    return {"aupro": aupro, "auroc": image}


def _interval(
    metric: Callable[[NDArray[np.int64]], NDArray[np.float64]], data: PaintedSet, seed: int
) -> list[tuple[float, float, float]]:
    """Compute values with 95 % intervals over other images and other kinds of defects than those painted.

    Groups of images are drawn with replacement, and so are the kinds: where they disagree, the interval is wide.
    """
    kinds = sorted({kind for kind in data.kinds if kind is not None})
    rng = np.random.default_rng([seed, 3])
    weights = group_weights(data.groups, _REPEATS, seed)  # (repeats, N)
    values = []
    for weight in weights:
        drawn = dict(
            zip(kinds, np.bincount(rng.integers(0, max(1, len(kinds)), len(kinds)), minlength=len(kinds)), strict=True)
        )
        often = np.array([1 if kind is None else drawn[kind] for kind in data.kinds])
        values.append(metric(weight * often))
    every = np.ones(len(data.groups), np.int64)
    low, high = np.nanquantile(np.array(values), (0.025, 0.975), axis=0)  # (K,) each
    return [(float(v), float(a), float(b)) for v, a, b in zip(metric(every), low, high, strict=True)]


def measure_cost(
    candidate: Candidate,
    data: PaintedSet,
    n_images: int,
    compute: ComputeOptions,
    extractor: FeatureExtractor | None = None,
) -> Cost:
    """Measure what a detector fitted on so many images costs: time of one image a call, file, memory.

    It is fitted on a few of the images that teach, with a bank as large as that of all images would be.

    Args:
        candidate, data, compute: as for :func:`judge`.
        n_images: how many images the model will learn.
        extractor: reads the candidate's layers and no others; None: one is built.
    """
    taught, one = data.fit[candidate.size][:_FEW], data.test[candidate.size][0]
    h, w = (n // candidate.stride for n in (candidate.tile or candidate.size))
    sized = _of_methods(candidate, lambda method: method.settings_of_size(len(taught), n_images, h * w))
    detector = detector_of(candidate, len(taught), {**PLAIN, **sized})
    detector.extractor = extractor
    # several methods are brought to one scale by an image that they have not learned
    beside = Table([replace(one, role="validate")] if len(candidate.methods) > 1 else [])
    detector.fit(taught + beside, validate=0.0, calibrate=0.0, memory_gb=2.0, **compute.arguments())
    detector.predict([one], **compute.arguments())  # whatever is set up at the first call
    reset_peak()
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        detector.predict([one], **compute.arguments())
        seconds.append(time.perf_counter() - began)
    peak = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        size = detector.save(Path(folder) / "model.safetensors").stat().st_size
    return Cost(median(seconds), size / 1e6, peak)
