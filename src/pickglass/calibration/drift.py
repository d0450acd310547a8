"""A two-sample test with a stated level says whether images have changed since calibration, and what moved.

New images are compared with the good ones that were held back at the fit, for only those are exchangeable with new
good ones: images that were fitted score lower. Six questions are asked, five of a head that reads no features:

===========  ==================================================================  =======================================
what         of each image                                                       statistic
===========  ==================================================================  =======================================
score        the image score                                                     Cramer-von Mises
brightness   mean of grey, 0 to 1                                                Cramer-von Mises
contrast     standard deviation of grey                                          Cramer-von Mises
sharpness    mean absolute Laplacian of grey over contrast                       Cramer-von Mises
position     grey on 16 x 16 cells, free of brightness and contrast              energy distance, 16 main directions
features     mean of each channel over the cells                                 energy distance, 16 main directions
===========  ==================================================================  =======================================

The score is not asked of a reference with images that were judged before the model was updated: theirs are NaN. Each
gets a permutation p-value, exact at any number of images, and Holm's correction divides the level among them: if
nothing has changed, the chance of any alarm is at most the level (over reference sets and new images together; checks
against one and the same reference are not independent of each other). Images are seen as the network gets them.

Letters: n images, N pooled ones, d channels, H x W pixels of the network's input.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pickglass.calibration.distributions import t_quantile
from pickglass.calibration.permutations import (
    FloatArray,
    Statistic,
    cliffs_delta,
    cramer_von_mises,
    energy,
    holm,
    permutation_p_values,
    smallest_p_value,
    whitened,
)
from pickglass.data.images.geometry import Pixels, unit_values
from pickglass.errors import InputError, ModelFileError, PromiseUnreachable

__all__ = ["FACTS", "Change", "Drift", "ImageFacts", "Sample", "already_known", "find_drift", "image_facts", "units"]

FACTS = ("brightness", "contrast", "sharpness")
"""The columns of ``Sample.facts``."""

_CELLS = 16  # of the position grid, a side
_DIRECTIONS = 16  # of position and features: at 20 against 20 images 8 missed slight blur, 24 gained nothing
_STRIP = 1 << 22  # pixels of an image whose facts are measured at once
_MOST = 300  # units a side: as many tell a third of a standard deviation, and time grows with their square


class ImageFacts(NamedTuple):
    """The pixels of an image give ``facts`` (3,) and a ``layout`` (256,) with zero mean and unit norm."""

    facts: FloatArray
    layout: npt.NDArray[np.float32]


def image_facts(image: Pixels, keep: npt.NDArray[np.bool_] | None = None) -> ImageFacts:
    """Measure brightness, contrast, sharpness and layout of an image as the network gets it.

    An image of many megapixels is read in strips, so that it is never held in float64 as a whole.

    Args:
        image: (3, H, W), uint8 or in [0, 1].
        keep: (H, W), False where nothing is judged; None: everything counts.
    """
    height, width = image.shape[1:]
    if keep is not None and not keep.any():
        keep = None
    strips = [(top, min(top + max(1, _STRIP // width), height)) for top in range(0, height, max(1, _STRIP // width))]

    def strip(top: int, bottom: int) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """The grey values of these rows, (h, W), and which of them count."""
        grey: FloatArray = unit_values(image[:, top:bottom]).mean(axis=0, dtype=np.float64)
        return grey, np.ones(grey.shape, np.bool_) if keep is None else keep[top:bottom]

    n = height * width if keep is None else int(keep.sum())
    brightness = sum(float(grey[inside].sum()) for grey, inside in (strip(*rows) for rows in strips)) / n
    squares = edges = 0.0
    n_edges = 0
    layout = np.zeros((_CELLS, _CELLS))
    rows, columns = _averaging(height), _averaging(width)
    for top, bottom in strips:
        first, last = max(0, top - 1), min(height, bottom + 1)  # with the neighbours of its first and last row
        grey, inside = strip(first, last)
        grey = np.where(inside, grey, brightness)
        own = slice(top - first, bottom - first)
        squares += float(np.square(grey[own][inside[own]] - brightness).sum())
        laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
        within = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        edges += float(np.abs(laplacian[within]).sum())
        n_edges += int(within.sum())
        layout += rows[:, top:bottom] @ grey[own] @ columns.T
    contrast, edges = math.sqrt(squares / n), edges / max(n_edges, 1)
    layout -= layout.mean()
    layout /= max(float(np.linalg.norm(layout)), 1e-12)
    flat = contrast < 1e-6
    facts = np.array([brightness, contrast, 0.0 if flat else edges / contrast])
    return ImageFacts(facts, (layout.ravel() * (not flat)).astype(np.float32))


def _averaging(pixels: int) -> FloatArray:
    """Return the matrix (16, pixels) that averages over each cell; a pixel that straddles two cells is shared out."""
    ends = np.arange(_CELLS + 1) * pixels / _CELLS
    pixel = np.arange(pixels)
    overlap = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    weights: FloatArray = np.clip(overlap, 0, None) * (_CELLS / pixels)
    return weights


@dataclass(frozen=True)
class Sample:
    """A sample holds what drift is judged by, for n images; that of the held-back images is part of the model.

    Attributes:
        scores: (n,) raw image scores; NaN of images that the model judged before it was updated.
        facts: (n, 3) of :func:`image_facts`.
        layouts: (n, 256) likewise.
        features: (n, d) mean of each channel over the cells; d = 0 where the head reads no features.
        groups: (n,) a number for the name of each image's group, 0 for none.
        names: (n,) text, the name of each image, "" where it is not known.
        settings: :func:`pickglass.calibration.settings_digest` of the detector that gave the scores.
    """

    scores: FloatArray
    facts: FloatArray
    layouts: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    groups: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]
    settings: str = ""

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of(
        cls,
        images: Iterable[ImageFacts],
        scores: Sequence[float],
        features: npt.NDArray[np.float32],
        groups: Sequence[str | None],
        settings: str = "",
        names: Sequence[str] | None = None,
    ) -> Sample:
        """Make the sample of some images; ``groups`` are their names, None for an image that stands alone."""
        measured = list(images)
        n = len(measured)
        return cls(
            np.array(scores, np.float64),
            np.array([image.facts for image in measured]).reshape(n, len(FACTS)),
            np.array([image.layout for image in measured], np.float32).reshape(n, _CELLS**2),
            np.asarray(features, np.float32).reshape(n, -1) if measured else np.zeros((0, 0), np.float32),
            np.array([_number(name) for name in groups], np.int64),
            np.array([""] * n if names is None else names, np.str_),
            settings,
        )

    def take(self, which: npt.ArrayLike) -> Sample:
        """Return the sample of some of the images, by index or mask."""
        index = np.asarray(which)
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in _FIELDS}
        return replace(self, **columns)

    def without_scores(self) -> Sample:
        """Return the sample without its scores, which are those of the model before it was updated."""
        return replace(self, scores=np.full_like(self.scores, np.nan))

    def joined(self, new: Sample) -> Sample:
        """Return the sample with new images; where an image, or one of its group, is among these, the new one stays."""
        if self.features.shape[1:] != new.features.shape[1:]:
            return new
        old = self.take(~already_known(new, self))
        columns: dict[str, Any] = {name: np.concatenate([getattr(old, name), getattr(new, name)]) for name in _FIELDS}
        return replace(new, **columns)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the sample as arrays for a model file."""
        settings = np.frombuffer(self.settings.encode(), np.uint8)
        names = np.frombuffer(json.dumps(self.names.tolist()).encode(), np.uint8)
        return {**{name: getattr(self, name) for name in _NUMBERS}, "settings": settings, "names": names}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], source: str = "the model") -> Sample:
        """Make the sample that :meth:`tensors` described; anything else is a ModelFileError."""
        dimensions = {"scores": 1, "facts": 2, "layouts": 2, "features": 2, "groups": 1, "settings": 1}
        tensors = dict(tensors)
        stored = tensors.pop("names", None)  # older files have none
        if set(tensors) != set(dimensions) or any(tensors[name].ndim != dims for name, dims in dimensions.items()):
            raise ModelFileError(f"{source}: its reference for drift is damaged, {sorted(tensors)}: fit the model anew")
        n = len(tensors["scores"])
        names = [""] * n if stored is None else json.loads(bytes(stored.astype(np.uint8)))
        if len({len(names), *(len(tensors[name]) for name in _NUMBERS)}) > 1:
            raise ModelFileError(f"{source}: its reference for drift has arrays of unequal length: fit the model anew")
        settings = bytes(tensors["settings"].astype(np.uint8)).decode()
        columns: dict[str, Any] = {name: tensors[name] for name in _NUMBERS}
        return cls(**columns, names=np.array(names, np.str_), settings=settings)


_NUMBERS = ("scores", "facts", "layouts", "features", "groups")
_FIELDS = (*_NUMBERS, "names")


def _number(name: str | None) -> int:
    return 0 if name is None else int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") + 1


def already_known(reference: Sample, new: Sample) -> npt.NDArray[np.bool_]:
    """Mark the new images that are in the reference, or show one of its groups, (n,) bool: they prove nothing."""
    # three figures that agree: the same pixels
    in_reference = {tuple(facts) for facts in reference.facts.round(9).tolist()}
    same: npt.NDArray[np.bool_]
    same = np.array([tuple(facts) in in_reference for facts in new.facts.round(9).tolist()], np.bool_)
    same |= np.isin(new.groups, reference.groups) & (new.groups != 0)
    return same


def units(sample: Sample, rng: np.random.Generator) -> Sample:
    """Draw one image of each group, and take all that stand alone; at most 300.

    Images of one part are not independent, parts are; averages would tell parts with many images from others.
    """
    order = rng.permutation(len(sample))
    names = np.where(sample.groups[order] == 0, -1 - order, sample.groups[order])
    _, first = np.unique(names, return_index=True)
    return sample.take(order[np.sort(first)[:_MOST]])


# -- the test ---------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One property of the images may have changed.

    Attributes:
        what: ``score``, ``brightness``, ``contrast``, ``sharpness``, ``position`` or ``features``.
        before: median over the reference. Of position it is the correlation with the mean reference image, -1 to 1; of
            features how far they lie from their mean there, in standard deviations (root mean square over channels).
        now: median over the new images.
        delta: Cliff's delta of these values, -1 (all new ones below) to 1 (all above).
        difference: ``now - before`` in standard deviations of the reference; None where it has none.
        p: p-value, adjusted for the number of properties: compare it with the level.
        moved: whether it reaches the level.
    """

    what: str
    before: float
    now: float
    delta: float
    difference: float | None
    p: float
    moved: bool


class Drift(NamedTuple):
    """The comparison of two samples has this outcome.

    Attributes:
        changes: a property each, in the order of the table at the head of this file.
        level: the chance of any false alarm.
        n_reference: reference images that counted, one of each group.
        n_new: new images that counted, likewise.
        smallest_p: the least that an adjusted p-value can be with these numbers.
        detectable: the change of one property, in standard deviations, that is found four times in five.
        displacement: how far the mean image has moved down and right, as shares of height and width; None unless the
            position has changed.
    """

    changes: tuple[Change, ...]
    level: float
    n_reference: int
    n_new: int
    smallest_p: float
    detectable: float
    displacement: tuple[float, float] | None

    @property
    def found(self) -> bool:
        """Something has changed, at the level."""
        return any(change.moved for change in self.changes)


def find_drift(reference: Sample, new: Sample, level: float = 0.05, seed: int = 0, labellings: int = 5000) -> Drift:
    """Compare new images with those of the reference.

    Args:
        reference: good images that were not fitted.
        new: images to be tested; none of them in the reference, see :func:`already_known`.
        level: chance of an alarm, of whatever property, where nothing has changed; 0.001 to 0.5.
        seed: draws the labellings, and which image speaks for its group.
        labellings: how many the permutation test draws at most, or ten times as many as the level calls for.

    Raises:
        InputError: a level out of range, or features of unequal length.
        PromiseUnreachable: so few images that no p-value could reach the level.
    """
    if not 0.001 <= level <= 0.5:
        raise InputError(f"level={level!r}: expected the chance of a false alarm, from 0.001 to 0.5, e.g. 0.05")
    if reference.features.shape[1:] != new.features.shape[1:]:
        shapes = f"{reference.features.shape[1:]} and {new.features.shape[1:]}"
        raise InputError(f"features of unequal length, {shapes}: give both samples from one detector")
    rng = np.random.default_rng(seed)
    reference, new = units(reference, rng), units(new, rng)
    n, m = len(reference), len(new)
    questions = len(FACTS) + 1 + _scored(reference) + bool(reference.features.shape[1])
    smallest = questions * smallest_p_value(n, m)
    if n < 2 or smallest > level:
        raise _too_few(n, m, level, questions)
    properties, statistics = _questions(reference, new)
    labellings = max(labellings, math.ceil(10 * questions / level))
    adjusted = holm(permutation_p_values(statistics, n, m, labellings, rng))
    changes = tuple(
        _change(what, values[:n], values[n:], p, level) for (what, values), p in zip(properties, adjusted, strict=True)
    )
    moved = {change.what for change in changes if change.moved}
    return Drift(
        changes,
        level,
        n,
        m,
        max(smallest, questions / labellings),
        _detectable(n, m, level / questions),
        _displacement(reference.layouts, new.layouts) if "position" in moved else None,
    )


def _scored(reference: Sample) -> bool:
    """Whether all scores of the reference are those of the model as it is."""
    return bool(np.isfinite(reference.scores).all())


def _questions(reference: Sample, new: Sample) -> tuple[list[tuple[str, FloatArray]], list[Statistic]]:
    """Return each property's value for each pooled image, by which its change is described, and its statistic."""
    n = len(reference)
    scalars = {"score": np.concatenate([reference.scores, new.scores])} if _scored(reference) else {}
    scalars |= {what: np.concatenate([reference.facts[:, k], new.facts[:, k]]) for k, what in enumerate(FACTS)}
    described = list(scalars.items())
    statistics = [cramer_von_mises(values) for values in scalars.values()]
    layouts = np.concatenate([reference.layouts, new.layouts]).astype(np.float64)  # (N, 256)
    centres = _centres(layouts, n)
    lengths = np.maximum(np.linalg.norm(centres, axis=1), 1e-12)
    described.append(("position", (layouts * centres).sum(axis=1) / lengths))
    statistics.append(energy(whitened(layouts, _DIRECTIONS)))
    if reference.features.shape[1]:
        features = np.concatenate([reference.features, new.features]).astype(np.float64)  # (N, d)
        spread = features[:n].std(axis=0)
        off = (features - _centres(features, n)) / (spread + 1e-3 * spread.mean() + 1e-12)
        described.append(("features", np.sqrt((off**2).mean(axis=1))))
        statistics.append(energy(whitened(features, _DIRECTIONS)))
    return described, statistics


def _centres(points: FloatArray, n: int) -> FloatArray:
    """Return what each point is compared with, (N, d): the mean of the reference, its first n, without itself."""
    total = points[:n].sum(axis=0)
    centres: FloatArray = np.concatenate([(total - points[:n]) / (n - 1), np.tile(total / n, (len(points) - n, 1))])
    return centres


def _change(what: str, reference: FloatArray, new: FloatArray, p: float, level: float) -> Change:
    before, now, spread = float(np.median(reference)), float(np.median(new)), float(reference.std())
    difference = (now - before) / spread if spread > 0 else None
    return Change(what, before, now, cliffs_delta(reference, new), difference, p, p <= level)


def _too_few(n: int, m: int, level: float, questions: int) -> PromiseUnreachable:
    what = "images (of each group one counts)"
    best = questions * smallest_p_value(n, m)
    asked = f"a drift test at level {level:g} (with {n} reference and {m} new images no p-value is below {best:.2g})"
    if n < 2:
        remedy = "give good images that were not fitted as the reference, or fit with a larger share for calibrate"
        return PromiseUnreachable(asked, f"reference {what}", 2, n, remedy)
    needed = next(k for k in itertools.count(m + 1) if questions * smallest_p_value(n, k) <= level)
    remedy = "give more new images, or more good images that were not fitted as the reference"
    return PromiseUnreachable(asked, f"new {what}", needed, m, remedy)


def _detectable(n: int, m: int, level: float) -> float:
    """Use the t-test with normal values; 0.86 in place of 0.8 makes up for the ranks (tests/test_drift.py)."""
    free = n + m - 2
    return (t_quantile(1 - level / 2, free) + t_quantile(0.86, free)) * math.sqrt(1 / n + 1 / m)


def _displacement(reference: npt.NDArray[np.float32], new: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Find the shift at which the mean images correlate best over the cells that both cover, as shares of the sides."""
    mean, moved = (layouts.mean(axis=0, dtype=np.float64).reshape(_CELLS, _CELLS) for layouts in (reference, new))
    size = 2 * _CELLS  # padded, or what leaves at the bottom would come in at the top
    whole = np.ones_like(mean)

    def sums(a: FloatArray, b: FloatArray) -> FloatArray:  # (size, size) over the overlap at each lag
        product = np.conj(np.fft.fft2(a, (size, size))) * np.fft.fft2(b, (size, size))
        return np.asarray(np.fft.ifft2(product).real)

    cells = np.maximum(sums(whole, whole), 0.5)
    here, there = sums(mean, whole) / cells, sums(whole, moved) / cells
    variances = (sums(mean**2, whole) / cells - here**2) * (sums(whole, moved**2) / cells - there**2)
    correlation = (sums(mean, moved) / cells - here * there) / np.sqrt(np.maximum(variances, 1e-18))
    lags = (np.arange(size) + _CELLS) % size - _CELLS
    near = np.abs(lags) <= _CELLS // 3  # beyond, too few cells overlap
    inside = np.where(near[:, None] & near, correlation, -np.inf)
    best = np.unravel_index(int(inside.argmax()), correlation.shape)
    y, x = int(best[0]), int(best[1])
    return _peak(int(lags[y]), correlation[:, x], y), _peak(int(lags[x]), correlation[y], x)


def _peak(lag: int, values: FloatArray, highest: int) -> float:
    """Fit a parabola through the highest value and its two neighbours, and return its peak in shares of the side."""
    below, top, above = (float(values[(highest + step) % len(values)]) for step in (-1, 0, 1))
    bend = below - 2 * top + above
    between = min(0.5, max(-0.5, 0.5 * (below - above) / bend)) if bend < 0 else 0.0
    return (lag + between) / _CELLS
