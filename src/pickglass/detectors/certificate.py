"""A certificate says how far an exported file answers differently from torch, in each runtime.

Good images, and each of them once more with a painted defect, go through torch and through the file, so that both sides
of the threshold are covered. A file in float16 or int8 may differ more. Where the user names labelled images, it is
compared on them as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pickglass.calibration import Calibration
from pickglass.calibration.transfer import found_among, other_scores, transferred
from pickglass.data import Row, Table, paint
from pickglass.data.painting.defects import Kind
from pickglass.data.painting.natural import natural_images
from pickglass.detectors.accuracy import Comparison
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.method import Method
from pickglass.detectors.onnx_graph import InputForm, MapForm, forward_as
from pickglass.detectors.precision import Inputs, Precision
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.engine import BackboneEngine
from pickglass.metrics.catalogue import METRICS
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.session import RuntimeName, open_session

__all__ = [
    "TOLERANCES",
    "Canvases",
    "Certificate",
    "Claim",
    "RuntimeFigures",
    "Tolerance",
    "certify",
    "evenly",
    "generated",
    "inputs_of",
]


class Tolerance(NamedTuple):
    """A file may differ so far from torch.

    Attributes:
        score: share of a score, see :class:`RuntimeFigures`.
        map: share of the range of all maps.
        flips: share of all verdicts that may differ.
    """

    score: float
    map: float
    flips: float


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-4, 1e-3, 0.0),
    "float16": Tolerance(1e-2, 1e-2, 0.0),
    "int8": Tolerance(0.1, 0.1, 0.02),
}

_WANTED = 100  # good images
_AT_ONCE = 4
_LABELS = {key: METRICS[key].label for key in ("image_auroc", "aupro_30")}
_KINDS: tuple[Kind, ...] = ("scratch", "hole", "stain")


@dataclass(frozen=True)
class RuntimeFigures:
    """What one runtime made of the images, compared with torch.

    Attributes:
        score_difference: largest difference of a score, divided by that score or by the range of all scores, whichever
            is larger: a score of nearly 0 has no relative error worth the name.
        map_difference: largest difference of a cell, divided by the range of all maps.
        features_difference: the same of the features that drift compares; 0 where the file computes none.
        flips: verdicts that differ, but for those at the threshold.
        at_threshold: verdicts that differ because the score lies on the threshold but for rounding (the tolerance of
            float32, and of float16 for such a file), as that of the image which set it does.
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

    def within(self, tolerance: Tolerance, images: int) -> bool:
        """Say whether the file may be kept, of which so many images were judged."""
        alike = max(self.map_difference, self.features_difference) <= tolerance.map
        return self.score_difference <= tolerance.score and alike and self.flips <= tolerance.flips * images


class Claim(NamedTuple):
    """What a file claims to be, and what it is to be held to.

    Attributes:
        precision: what the file's weights are stored in.
        fresh: good images that the model was not fitted on and that set no range of an int8 file: those among them that
            set the model's thresholds set the file's.
        test: labelled images, on which the loss is measured; None: it is not.
        max_loss: the largest loss of image AUROC and of AUPRO with which the file is kept.
    """

    precision: Precision
    fresh: tuple[Row, ...]
    test: Table | None
    max_loss: float


@dataclass(frozen=True)
class Certificate:
    """The certificate of an exported file.

    Attributes:
        images: ``"given"``, or ``"generated"``: pictures that come with pickglass, which say nothing of the product.
        good, painted: number of images as they are, and with a painted defect.
        bad: how many of all torch judges bad; None without a threshold.
        runtimes: figures by the runtime's name.
        torch: the version of torch.
        precision: what the file's weights are stored in.
        thresholds: ``"torch"``: the model's own; ``"file"``: set anew by the file's scores of the calibration images.
        accuracy: image AUROC and AUPRO of torch and of the file on labelled images, see
            :func:`pickglass.detectors.accuracy.compared`; None where none were given.
    """

    images: Literal["given", "generated"]
    good: int
    painted: int
    bad: int | None
    runtimes: dict[str, RuntimeFigures]
    torch: str
    precision: Precision = "float32"
    thresholds: Literal["torch", "file"] = "torch"
    accuracy: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict, with the tolerances."""
        tolerance = TOLERANCES[self.precision]
        return {**asdict(self), **{f"{name}_tolerance": value for name, value in tolerance._asdict().items()}}

    def check(self) -> None:
        """Refuse a file that answers differently.

        Raises:
            InputError: with the figures.
        """
        refusal = self.refusal()
        if refusal is not None:
            raise InputError(refusal)

    def refusal(self) -> str | None:
        """Say why the file is not kept, None where it is."""
        tolerance, images = TOLERANCES[self.precision], self.good + self.painted
        remedy = {
            "float32": "Try another version of {name}, and report it",
            "float16": "Export it with precision float32",
            "int8": "Export it with precision float16, or give more good images like those of the line",
        }[self.precision]
        for name, figures in self.runtimes.items():
            if not figures.within(tolerance, images):
                return (
                    f"the file was not kept, for in {name} it answers differently from torch: scores by up to "
                    f"{figures.score_difference:.1e} (allowed {tolerance.score:.0e}), maps by up to "
                    f"{figures.map_difference:.1e} of their range (allowed {tolerance.map:.0e}), {figures.flips} "
                    f"verdicts of {images} flipped (allowed {int(tolerance.flips * images)}). "
                    f"{remedy.format(name=name)}"
                )
        accuracy = self.accuracy
        if accuracy is not None and max(accuracy["loss"].values()) > accuracy["max_loss"]:
            lost = " and ".join(f"{_LABELS[key]} {value:.4f}" for key, value in accuracy["loss"].items())
            return (
                f"the file was not kept, for on {accuracy['images']} labelled images it loses {lost} against torch, "
                f"and {accuracy['max_loss']:g} is allowed. Export it in a higher precision, or allow more (max_loss)"
            )
        return None


def certify(
    detector: Method,
    content: bytes,
    table: Table | None,
    batch: int | None,
    input_form: InputForm,
    map_form: MapForm,
    takes_keep: bool,
    claim: Claim,
    progress: Progress,
) -> tuple[Certificate, Calibration | None]:
    """Compare an exported file with the detector it was made of.

    Args:
        detector: fitted, on the CPU, in eval mode.
        content: the file's bytes.
        table: good images, of which up to a hundred are used, ``claim.fresh`` first; None: pictures are generated.
        batch, input_form, map_form, takes_keep: how the file was made.
        claim: the file's precision, and how its loss is measured.
        progress: called with (stage, done, total).

    Returns:
        The certificate, and the thresholds of the file: the detector's, or, in float16 or int8, those that follow from
        the file's own scores of the images that set them, where these are among the given ones.

    Raises:
        DataError: an image cannot be read, or there is none.
        MissingExtra: onnxruntime or openvino is not installed.
    """
    fresh = list(claim.fresh)
    rows = generated(detector.input_size, _WANTED) if table is None else _spread(table, fresh)
    if not rows:
        raise DataError("no good image for the certificate: name a folder with good images, at best a hundred")
    names: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
    runs = {name: open_session(name, content, torch.get_num_threads()) for name in names}

    def read(rows: Sequence[Row], painted: bool) -> Iterator[tuple[Canvases, Inputs]]:
        return inputs_of(detector, rows, batch, input_form, takes_keep, painted)

    def asked(inputs: Inputs, n: int) -> list[NDArray[Any]]:
        with torch.no_grad():
            tensors = [torch.from_numpy(x[:n]) for x in inputs.values()]
            return [x.numpy() for x in forward_as(detector, input_form, map_form, *tensors)]

    calibration = own = detector.calibration
    if calibration is not None and claim.precision != "float32":
        judged = _Both()
        for canvases, inputs in read(fresh if calibration.source in ("held back", "given") else [], False):
            answer = runs["onnxruntime"].run(inputs)
            judged.add(canvases.rows, asked(inputs, canvases.n)[0], answer.score, answer.map)
            progress("setting the thresholds", len(judged.names), len(fresh))
        own = judged.calibration(calibration, claim.precision)
    figures = {name: _Compared() for name in runs}
    good = painted = 0
    for canvases, inputs in read(rows, True):
        n = canvases.n
        expected = asked(inputs, n)
        for name, session in runs.items():
            figures[name].add(expected, [part[:n] for part in session.run(inputs) if part is not None])
        good, painted = (good, painted + n) if canvases.painted else (good + n, painted)
        progress("certifying", good + painted, 2 * len(rows))
    accuracy = None
    if claim.test is not None:
        comparison, done = Comparison(detector.preprocess, None if detector.roi is None else detector.roi.numpy()), 0
        for canvases, inputs in read(claim.test, False):
            n = canvases.n
            by_torch = asked(inputs, n)
            answers: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {"torch": (by_torch[0], by_torch[1])}
            for name, session in runs.items():
                answer = session.run(inputs)
                answers[name] = answer.score, answer.map
            comparison.add(canvases.rows, canvases.sizes, answers)
            done += n
            progress("comparing on labelled images", done, len(claim.test))
        accuracy = comparison.figures(claim.max_loss)
    scores = figures["onnxruntime"].expected
    limit = None if calibration is None else calibration.image_threshold
    tolerance = TOLERANCES["float32" if claim.precision == "int8" else claim.precision].score
    certificate = Certificate(
        "generated" if table is None else "given",
        good,
        painted,
        None if limit is None else int(np.sum(~(scores <= limit))),
        {name: compared.figures(calibration, own, runs[name].version, tolerance) for name, compared in figures.items()},
        torch.__version__,
        claim.precision,
        "torch" if own is None or calibration is None or own.scores == calibration.scores else "file",
        accuracy,
    )
    return certificate, own


def generated(canvas: tuple[int, int], n: int) -> list[Row]:
    """Return rows of generated pictures of the canvas's size."""
    size = (max(16, canvas[0]), max(16, canvas[1]))
    pictures = natural_images(n, size)
    return [Row(f"generated:{i}", "test", 0, pixels=picture) for i, picture in enumerate(pictures)]


def _spread(table: Table, first: list[Row]) -> list[Row]:
    """Choose up to a hundred good images, evenly: those that come first, then others."""
    known = set(first)
    rest = [row for row in table if row.label != 1 and row not in known]
    return [*evenly(first, _WANTED), *evenly(rest, max(0, _WANTED - len(first)))]


def evenly(rows: list[Row], most: int) -> list[Row]:
    """Choose so many rows at most, from first to last at equal distances."""
    return rows if len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


class Canvases(NamedTuple):
    """A few images on the canvas.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        keep: (B, H, W) bool, what counts.
        rows, sizes: the images, and their original sizes.
        painted: defects are painted on them.
    """

    images: NDArray[np.float32]
    keep: NDArray[np.bool_]
    rows: list[Row]
    sizes: list[tuple[int, int]]
    painted: bool

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.images)


def inputs_of(
    detector: Method,
    rows: Sequence[Row],
    batch: int | None,
    input_form: InputForm,
    takes_keep: bool,
    painted: bool = False,
    seed: int = 0,
) -> Iterator[tuple[Canvases, Inputs]]:
    """Yield images, each batch once more with painted defects if so asked, and what a file takes of them.

    Args:
        detector: says how images come onto the canvas.
        rows: images.
        batch, input_form, takes_keep: how the file was made; a file for so many images takes no fewer, so the last ones
            come again.
        painted: whether they come with defects, too.
        seed: decides which defects are painted, and where.

    Raises:
        DataError: an image cannot be read.
    """
    for canvases in _canvases(detector, rows, batch or _AT_ONCE, painted, seed):
        inputs: dict[str, NDArray[Any]] = {
            "image": canvases.images if input_form == "float32" else _bytes(canvases.images)
        }
        if takes_keep:
            inputs["keep"] = canvases.keep
        if batch is not None:
            inputs = {name: np.concatenate([x, *[x[-1:]] * (batch - canvases.n)]) for name, x in inputs.items()}
        yield canvases, inputs


def _canvases(detector: Method, rows: Sequence[Row], at_once: int, painted: bool, seed: int) -> Iterator[Canvases]:
    options = ComputeOptions(device="cpu", engine="torch", batch=at_once)
    roi = None if detector.roi is None else detector.roi.numpy()
    engine = BackboneEngine(detector.network, "cpu", "torch")
    loader = FeatureLoader(engine, detector.preprocess, detector.reads, roi, options, detector.tiles).plain()
    rng = np.random.default_rng(seed)
    done = 0
    for loaded in loader.batches(rows):
        if loaded.failures:
            failures = [Failure(path, error) for path, error in loaded.failures]
            raise DataError(f"{len(failures)} images for the certificate cannot be read:", failures)
        values = [item.value for item in loaded.sound if item.value is not None]
        whole = np.ones(detector.input_size, np.bool_)
        images = np.stack([value.unit for value in values])
        keep = np.stack([whole if value.keep is None else value.keep for value in values])
        plain = Canvases(images, keep, [item.row for item in loaded.sound], [item.size for item in loaded.sound], False)
        yield plain
        drawn = [_painted(image, _KINDS[(done + i) % len(_KINDS)], rng) for i, image in enumerate(images)]
        sound = [i for i, image in enumerate(drawn) if image is not None] if painted else []
        if sound:
            with_defects = np.stack([image for image in drawn if image is not None])
            yield plain._replace(images=with_defects, keep=keep[sound], painted=True)
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


class _Both:
    """The scores of good images by torch and by a file, from which the file's thresholds follow."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._torch: list[float] = []
        self._scores: list[float] = []
        self._peaks: list[float] = []

    def add(self, rows: Sequence[Row], by_torch: NDArray[Any], scores: NDArray[Any], maps: NDArray[Any]) -> None:
        """Add images with torch's scores (B,) and the file's scores (B, ...) and maps (B, h, w)."""
        n = len(rows)
        self.names += [PurePath(row.path).name for row in rows]
        self._torch += by_torch.tolist()
        self._scores += scores[:n].tolist()
        self._peaks += maps[:n].reshape(n, -1).max(1).tolist()

    def calibration(self, calibration: Calibration, precision: Precision) -> Calibration:
        """Set the thresholds anew if all images that set them are among these; otherwise they stay and promise less."""
        places = found_among(calibration, self._torch)
        if places is None:
            return other_scores(calibration, precision)
        scores, peaks = ([values[i] for i in places] for values in (self._scores, self._peaks))
        return transferred(calibration, scores, peaks, [self.names[i] for i in places], precision)


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

    def figures(
        self, calibration: Calibration | None, own: Calibration | None, version: str, near: float
    ) -> RuntimeFigures:
        """Compare torch's verdicts by its thresholds with the file's by its own; scores ``near`` one are told apart."""
        expected, got = self.expected, np.concatenate(self._scores[1]).astype(np.float64)
        scale = np.maximum(np.abs(expected), np.ptp(expected)).clip(min=1e-12)
        shares = np.where(np.isfinite(got), np.abs(got - expected) / scale, np.inf)
        flips = at_threshold = 0
        if calibration is not None and own is not None and calibration.image_threshold is not None:
            limits = [calibration.image_threshold]
            limits += [] if calibration.unsure_threshold is None else [calibration.unsure_threshold]
            differs = np.array([calibration.verdict(a) != own.verdict(b) for a, b in zip(expected, got, strict=True)])
            close = np.min([np.abs(expected - limit) for limit in limits], axis=0) <= near * scale
            flips, at_threshold = int((differs & ~close).sum()), int((differs & close).sum())
        varied = len(expected) > 1 and np.ptp(expected) > 0 and np.isfinite(got).all() and np.ptp(got) > 0
        return RuntimeFigures(
            float(shares.max()),
            self._maps.share(),
            self._features.share(),
            flips,
            at_threshold,
            min(1.0, float(np.corrcoef(_ranks(expected), _ranks(got))[0, 1])) if varied else None,
            version,
        )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each of the values (N,) its place in rising order, equal ones the mean of their places.

    Their correlation is Spearman's. SciPy has it too, in a module that takes a second to load.
    """
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


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
