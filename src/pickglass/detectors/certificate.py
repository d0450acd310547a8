"""A certificate says how far an exported file answers differently from torch, in each runtime.

Good images, and each of them once more with a painted defect, go through torch and through the file, so that both sides
of the threshold are covered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pickglass.calibration import Calibration
from pickglass.data import Row, Table, paint
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.natural import natural_images
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.method import Method
from pickglass.detectors.onnx_graph import InputForm, MapForm, forward_as
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.engine import BackboneEngine
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.session import RuntimeName, open_session

__all__ = ["MAP_TOLERANCE", "SCORE_TOLERANCE", "Certificate", "RuntimeFigures", "certify", "generated"]

SCORE_TOLERANCE = 1e-4  # of a score, see RuntimeFigures
MAP_TOLERANCE = 1e-3  # of the range of all maps

_WANTED = 100  # good images
_AT_ONCE = 4
_KINDS: tuple[Kind, ...] = ("scratch", "hole", "stain")


@dataclass(frozen=True)
class RuntimeFigures:
    """What one runtime made of the images, compared with torch.

    Attributes:
        score_difference: largest difference of a score, divided by that score or by the range of all scores, whichever
            is larger: a score of nearly 0 has no relative error worth the name.
        map_difference: largest difference of a cell, divided by the range of all maps.
        features_difference: the same of the features that drift compares; 0 where the file computes none.
        flips: verdicts that differ though the score is farther from the threshold than the tolerance.
        at_threshold: verdicts that differ because the score lies on the threshold but for rounding, as that of the
            image which set it does.
        rank_correlation: Spearman's, of the scores; None where all scores are equal.
        version: the runtime's.
    """

    score_difference: float
    map_difference: float
    features_difference: float
    flips: int
    at_threshold: int
    rank_correlation: float | None
    version: str

    @property
    def within(self) -> bool:
        """Whether the file may be kept."""
        alike = max(self.map_difference, self.features_difference) <= MAP_TOLERANCE
        return self.score_difference <= SCORE_TOLERANCE and alike and not self.flips


@dataclass(frozen=True)
class Certificate:
    """The certificate of an exported file.

    Attributes:
        images: ``"given"``, or ``"generated"``: pictures that come with pickglass, which say nothing of the product.
        good, painted: number of images as they are, and with a painted defect.
        bad: how many of all torch judges bad; None without a threshold.
        runtimes: figures by the runtime's name.
        torch: the version of torch.
    """

    images: Literal["given", "generated"]
    good: int
    painted: int
    bad: int | None
    runtimes: dict[str, RuntimeFigures]
    torch: str

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict, with the tolerances."""
        return {**asdict(self), "score_tolerance": SCORE_TOLERANCE, "map_tolerance": MAP_TOLERANCE}

    def check(self) -> None:
        """Refuse a file that answers differently.

        Raises:
            InputError: with the figures.
        """
        for name, figures in self.runtimes.items():
            if not figures.within:
                raise InputError(
                    f"the file was not kept, for in {name} it answers differently from torch: scores by up to "
                    f"{figures.score_difference:.1e} (allowed {SCORE_TOLERANCE:.0e}), maps by up to "
                    f"{figures.map_difference:.1e} of their range (allowed {MAP_TOLERANCE:.0e}), {figures.flips} "
                    f"verdicts of {self.good + self.painted} flipped. Try another version of {name}, and report it"
                )


def certify(
    detector: Method,
    content: bytes,
    table: Table | None,
    batch: int | None,
    input_form: InputForm,
    map_form: MapForm,
    takes_keep: bool,
    progress: Progress,
) -> Certificate:
    """Compare an exported file with the detector it was made of.

    Args:
        detector: fitted, on the CPU, in eval mode.
        content: the file's bytes.
        table: good images, of which up to a hundred are used; None: pictures are generated.
        batch, input_form, map_form, takes_keep: how the file was made.
        progress: called with (stage, done, total).

    Raises:
        DataError: an image cannot be read, or there is none.
        MissingExtra: onnxruntime or openvino is not installed.
    """
    rows = generated(detector.input_size, _WANTED) if table is None else _spread(table)
    if not rows:
        raise DataError("no good image for the certificate: name a folder with good images, at best a hundred")
    names: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    runs = {name: open_session(name, content, torch.get_num_threads()) for name in names}
    figures = {name: _Compared() for name in runs}
    good = painted = 0
    for images, keep, is_painted in _canvases(detector, rows, batch or _AT_ONCE):
        n = len(images)
        inputs: dict[str, NDArray[Any]] = {"image": images if input_form == "float32" else _bytes(images)}
        if takes_keep:
            inputs["keep"] = keep
        if batch is not None:  # a file for so many images takes no fewer: the last ones come again
            inputs = {name: np.concatenate([x, *[x[-1:]] * (batch - n)]) for name, x in inputs.items()}
        with torch.no_grad():
            tensors = [torch.from_numpy(x[:n]) for x in inputs.values()]
            answer = [x.numpy() for x in forward_as(detector, input_form, map_form, *tensors)]
        for name, session in runs.items():
            figures[name].add(answer, [part[:n] for part in session.run(inputs) if part is not None])
        good, painted = (good, painted + n) if is_painted else (good + n, painted)
        progress("certifying", good + painted, 2 * len(rows))
    judged = figures["onnxruntime"].expected
    calibration = detector.calibration
    limit = None if calibration is None else calibration.image_threshold
    return Certificate(
        "generated" if table is None else "given",
        good,
        painted,
        None if limit is None else int(np.sum(~(judged <= limit))),
        {name: compared.figures(calibration, runs[name].version) for name, compared in figures.items()},
        torch.__version__,
    )


def generated(canvas: tuple[int, int], n: int) -> list[Row]:
    """Return rows of generated pictures of the canvas's size."""
    size = (max(16, canvas[0]), max(16, canvas[1]))
    pictures = natural_images(n, size)
    return [Row(f"generated:{i}", "test", 0, pixels=picture) for i, picture in enumerate(pictures)]


def _spread(table: Table) -> list[Row]:
    rows = [row for row in table if row.label != 1]
    return rows if len(rows) <= _WANTED else [rows[i * len(rows) // _WANTED] for i in range(_WANTED)]


def _canvases(
    detector: Method, rows: list[Row], at_once: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_], bool]]:
    """Yield canvases (B, 3, H, W) in [0, 1], what counts, (B, H, W) bool, and whether defects are painted on them."""
    options = ComputeOptions(device="cpu", engine="torch", batch=at_once)
    roi = None if detector.roi is None else detector.roi.numpy()
    engine = BackboneEngine(detector.network, "cpu", "torch")
    loader = FeatureLoader(engine, detector.preprocess, detector.reads, roi, options, detector.tiles).plain()
    rng = np.random.default_rng(0)
    done = 0
    for loaded in loader.batches(rows):
        if loaded.failures:
            failures = [Failure(path, error) for path, error in loaded.failures]
            raise DataError(f"{len(failures)} images for the certificate cannot be read:", failures)
        values = [item.value for item in loaded.sound if item.value is not None]
        whole = np.ones(detector.input_size, np.bool_)
        images = np.stack([value.image for value in values])
        keep = np.stack([whole if value.keep is None else value.keep for value in values])
        yield images, keep, False
        drawn = [_painted(image, _KINDS[(done + i) % len(_KINDS)], rng) for i, image in enumerate(images)]
        sound = [i for i, image in enumerate(drawn) if image is not None]
        if sound:
            yield np.stack([image for image in drawn if image is not None]), keep[sound], True
        done += len(images)


def _painted(image: NDArray[np.float32], kind: Kind, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """Paint a defect on a canvas (3, H, W); None where none can be seen on it, as on one that is black all over."""
    pixels = np.ascontiguousarray(_bytes(image[None])[0])
    try:
        changed = paint(pixels, kind, max(4.0, min(pixels.shape[:2]) / 6), rng, contrast=3.0).image
    except InputError:
        return None
    unit: NDArray[np.float32] = np.divide(changed.transpose(2, 0, 1), np.float32(255), dtype=np.float32)
    return np.ascontiguousarray(unit)


def _bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return canvases (B, 3, H, W) in [0, 1] as (B, H, W, 3) in 0..255; of images with 8 bits nothing is lost."""
    return np.ascontiguousarray(np.rint(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8))


class _Compared:
    """The answers of torch and of one runtime, as far as the figures need them."""

    def __init__(self) -> None:
        self._scores: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
        self._maps, self._features = _Apart(), _Apart()

    def add(self, expected: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> None:
        for kept, answer in zip(self._scores, (expected, got), strict=True):
            kept.append(answer[0])
        self._maps.add(expected[1], got[1])
        for mine, other in zip(expected[2:], got[2:], strict=True):
            self._features.add(mine, other)

    @property
    def expected(self) -> NDArray[np.float64]:
        return np.concatenate(self._scores[0]).astype(np.float64)

    def figures(self, calibration: Calibration | None, version: str) -> RuntimeFigures:
        expected, got = self.expected, np.concatenate(self._scores[1]).astype(np.float64)
        scale = np.maximum(np.abs(expected), np.ptp(expected)).clip(min=1e-12)
        shares = np.where(np.isfinite(got), np.abs(got - expected) / scale, np.inf)
        flips = at_threshold = 0
        if calibration is not None and calibration.image_threshold is not None:
            limits = [calibration.image_threshold]
            limits += [] if calibration.unsure_threshold is None else [calibration.unsure_threshold]
            differs = np.array(
                [calibration.verdict(a) != calibration.verdict(b) for a, b in zip(expected, got, strict=True)]
            )
            near = np.min([np.abs(expected - limit) for limit in limits], axis=0) <= SCORE_TOLERANCE * scale
            flips, at_threshold = int((differs & ~near).sum()), int((differs & near).sum())
        varied = len(expected) > 1 and np.ptp(expected) > 0 and np.isfinite(got).all() and np.ptp(got) > 0
        return RuntimeFigures(
            float(shares.max()),
            self._maps.share(),
            self._features.share(),
            flips,
            at_threshold,
            min(1.0, float(spearmanr(expected, got).statistic)) if varied else None,
            version,
        )


class _Apart:
    """How far the values of arrays lie apart, of the range of what is expected."""

    def __init__(self) -> None:
        self._most, self._lowest, self._highest = 0.0, math.inf, -math.inf

    def add(self, expected: NDArray[Any], got: NDArray[Any]) -> None:
        alike = got.shape == expected.shape and bool(np.isfinite(got).all())
        self._most = max(self._most, float(np.abs(got - expected).max()) if alike else math.inf)
        self._lowest = min(self._lowest, float(expected.min()))
        self._highest = max(self._highest, float(expected.max()))

    def share(self) -> float:
        return self._most / max(self._highest - self._lowest, 1e-12)
