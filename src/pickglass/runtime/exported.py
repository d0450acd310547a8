"""An exported model judges images as the detector does that it was made of, without torch.

Letters: B images, H x W pixels of the canvas, h x w cells of the map, d features.
"""

from __future__ import annotations

import base64
import importlib.util
import math
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from pickglass.calibration import Calibration, Change
from pickglass.calibration.drift import ImageFacts, Sample, image_facts
from pickglass.calibration.promises import set_by_hand
from pickglass.data import Channels, Decoded, Prepared, Preprocess, Row, as_table, known_names
from pickglass.data.files import output_path
from pickglass.data.images.decoder import Picture, decode_pictures
from pickglass.data.images.geometry import stacked, unit_values
from pickglass.errors import Failure, InputError, ModelFileError, shortened
from pickglass.result import BoolArray, Found, Prediction, without_number
from pickglass.runtime.compute import PIXELS_AT_ONCE, ComputeArguments, ComputeOptions, Progress
from pickglass.runtime.export_file import read_export, write_export
from pickglass.runtime.graph import check_graph
from pickglass.runtime.model_header import history_of, reading
from pickglass.runtime.outliers import OutlierScores
from pickglass.runtime.provenance import Provenance
from pickglass.runtime.session import Answer, RuntimeName, Session, open_session, usable_cores, usual_threads

__all__ = ["ExportedModel", "array_from_json", "array_to_json"]

_MANY = 128  # images; for fewer, measuring the runtimes, with some seventy, takes longer than it can save
_LARGEST_BATCH = 100_000  # that a file may ask for
_MEASURED = 3  # runs of each runtime, of which the median counts


class _Form(NamedTuple):
    """How a graph is run: in which runtime, where, and whether each thread has an image of its own."""

    name: RuntimeName
    device: str
    wide: bool


class ExportedModel(OutlierScores):
    """A file that ``pickglass export`` wrote judges images in onnxruntime or OpenVINO, and needs no torch.

    Images are decoded and fitted on the canvas by the same code as in the lab, so that the graph gets the same numbers;
    how far its answers may differ is in ``certificate``.

    **Runtimes.** With ``engine="auto"`` onnxruntime runs the graph. Where OpenVINO is installed and there are at least
    128 images to judge, or nobody knows how many, both are timed once on this machine, and the faster one is taken;
    ``runtime`` says which and why. ``"onnxruntime"`` and ``"openvino"`` choose one. From 128 images on, a CPU's threads
    share each batch, or each has an image of its own, whichever is faster here.

    **Callers.** Any number of threads may call the model at once. Copies and pickles open sessions of their own.

    Args:
        path: a file that ends in .onnx.
        threads: that compute at once; None: as many as ``OMP_NUM_THREADS`` says, or else as the runtime likes.

    Attributes:
        method: name of the method, e.g. ``"patchcore"``.
        title: the same for headings, e.g. ``"PatchCore"``.
        preprocess: fits images on the canvas.
        calibration: the thresholds, None without any.
        provenance: where the model comes from.
        history: the fit and each later change of thresholds.
        reference: the sample that drift compares with, None where the file has none.
        certificate: how far the file answers differently from torch.
        header: all that the file says of itself, see :mod:`pickglass.runtime.export_file`.

    Raises:
        ModelFileError: missing, damaged, no export of pickglass, or one of another format version.

    Example:
        ``pg.load("bottle.onnx").predict("part.png").verdict(0)``
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads={threads!r}: expected at least 1, or None")
        self.source = str(path)
        self.threads = threads
        self.header, self._content = read_export(path)
        try:
            check_graph(self._content)
        except ValueError as error:
            raise ModelFileError(
                f"{path}: 'pickglass export' writes no such graph ({error}): do not use the file, and export the model "
                "anew"
            ) from error
        header = self.header
        with reading(path, "export the model anew"):
            self.method = str(header["method"])
            self.title = str(header["title"])
            self.preprocess = Preprocess.from_json(header["preprocess"])
            self.provenance = Provenance.from_json(header["provenance"])
            stored = header["calibration"]
            self.calibration = None if stored is None else Calibration.from_json(stored)
            self.history = tuple(Change.from_json(change) for change in header["history"])
            self.certificate = cast("dict[str, Any]", header["certificate"])
            self.roi: BoolArray | None = None if header.get("roi") is None else _mask(header["roi"])
            arrays = header.get("drift_reference")
            self.reference = None if arrays is None else Sample.from_tensors(_arrays(arrays), self.source)
            self.canvas = self.preprocess.size
            self.batch: int | None = header["batch"]
            self.input_form = str(header["input"])
            self.takes_keep = bool(header["keep"])
            is_batch = self.batch is None or (type(self.batch) is int and 1 <= self.batch <= _LARGEST_BATCH)
            if not isinstance(header["keep"], bool):
                raise InputError(f"keep={shortened(header['keep'])}: expected whether it takes regions of interest")
            if not is_batch or not isinstance(self.certificate, dict) or self.input_form not in ("float32", "uint8"):
                raise InputError(
                    f"batch={shortened(self.batch)}, input={self.input_form!r} or a certificate of another kind"
                )
        self._lock = threading.Lock()
        self._sessions: dict[_Form, Session] = {}
        self._milliseconds: dict[_Form, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_sessions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"ExportedModel({self.source!r}, method={self.method!r}, canvas={self.canvas})"

    # -- predict -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        data: Any,
        *,
        channels: Channels = "rgb",
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Prediction:
        """Judge images as :meth:`pickglass.Detector.predict` does.

        Args:
            data: rows, paths, arrays, tensors, PIL images, encoded bytes, or an iterable of them; see
                :func:`pickglass.data.as_table`.
            channels: order of the colours in arrays and tensors: ``"rgb"``, or ``"bgr"`` as OpenCV gives them.
            progress: called with (stage, done, total).
            compute: ``engine`` ("auto", "onnxruntime", "openvino"), ``device`` ("auto" is the CPU; "cuda" with
                onnxruntime-gpu), ``batch`` 8, ``workers`` 2, ``max_pixels``.
        """
        items = list(self.stream(data, channels=channels, progress=progress, **compute))
        return Prediction(
            tuple(item for item in items if isinstance(item, Found)),
            tuple(item for item in items if isinstance(item, Failure)),
            self.calibration,
        )

    def stream(
        self,
        data: Any,
        *,
        channels: Channels = "rgb",
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Iterator[Found | Failure]:
        """Judge images as :meth:`predict` does, one after the other, in order, holding one batch at a time."""
        for judged in self._judged(self.provenance.rows_to_judge(data, channels), ComputeOptions(**compute), progress):
            yield judged.found

    def describe(
        self, data: Any, *, progress: Progress | None = None, **compute: Unpack[ComputeArguments]
    ) -> tuple[Sample, list[Failure]]:
        """Judge images and return what ``drift`` asks of them, and those that cannot be read.

        Arguments as in :meth:`predict`.

        Raises:
            InputError: the file does not compute what drift compares.
        """
        if "features" not in self.header.get("outputs", ()):
            raise InputError(
                f"{self.source} does not compute what drift compares: it was exported of a model without a sample for "
                "drift. Fit with 'pickglass fit', or with observers=[pickglass.DriftSample()], and export again"
            )
        table = self.provenance.within_regions(as_table(data, role="test"))
        facts: list[ImageFacts] = []
        scores: list[float] = []
        features: list[NDArray[np.float32]] = []
        groups: list[str | None] = []
        names: list[str] = []
        failures: list[Failure] = []
        for judged in self._judged(table, ComputeOptions(**compute), progress):
            if isinstance(judged.found, Failure) or judged.value is None or judged.features is None:
                failures += [judged.found] if isinstance(judged.found, Failure) else []
                continue
            facts.append(image_facts(judged.value.image, judged.value.keep))
            scores.append(judged.found.score)
            features.append(judged.features)
            groups.append(judged.found.row.group)
            names.append(judged.found.row.path)
        pooled = np.stack(features) if features else np.zeros((0, 0), np.float32)
        return Sample.of(facts, scores, pooled, groups, self.settings_digest(), known_names(names)), failures

    def parts_of(self, found: Found) -> dict[str, NDArray[np.float32]]:
        """Return no maps: an exported file computes the joined map alone."""
        return {}

    def warm_up(self, **compute: Unpack[ComputeArguments]) -> float:
        """Open the session and run it once, so that the first part on the line does not wait; return the seconds."""
        began = time.perf_counter()
        options = ComputeOptions(**compute)
        self.session(options, None).run(self._example(self.batch or min(options.batch, 1)))
        return time.perf_counter() - began

    # -- the runtimes --------------------------------------------------------------------------------------------------

    @property
    def runtime(self) -> str:
        """Say which runtime judged last, and what was measured."""
        names = list(dict.fromkeys(form.name for form in self._sessions))
        if not names:
            return "none yet"
        if not self._milliseconds:
            return names[-1]
        best: dict[RuntimeName, float] = {}
        for form, value in self._milliseconds.items():
            best[form.name] = min(value, best.get(form.name, value))
        times = ", ".join(f"{name} {value:.3g}" for name, value in best.items())
        return f"{min(best, key=best.__getitem__)} (ms an image here: {times})"

    def session(self, options: ComputeOptions, n: int | None) -> Session:
        """Return the session to judge n images with, None: nobody knows how many.

        Where many are to be judged, each runtime that may be taken is measured: with batches, and, on a CPU, with an
        image for each of its threads. The first is faster for a method that reads large tensors for every call, as
        PaDiM its Gaussians, the second for one whose intermediate results would fill the caches.
        """
        device = "cpu" if options.device == "auto" else options.device
        many = n is None or n >= _MANY
        names: list[RuntimeName] = ["onnxruntime"]
        if options.engine != "auto":
            names = [cast("RuntimeName", options.engine)]
        elif device == "cpu" and importlib.util.find_spec("openvino") is not None and (many or self._milliseconds):
            names.append("openvino")
        forms = [_Form(name, device, False) for name in names]
        if many and n is not None and device == "cpu" and self.batch in (None, 1) and self._cores() > 1:
            forms += [form._replace(wide=True) for form in forms]
        if len(forms) > 1:
            before = set(self._sessions)
            for form in forms if many else ():
                self._measure(form, self._at_once(options))
            known = [form for form in forms if form in self._milliseconds]
            forms = [min(known, key=self._milliseconds.__getitem__)] if known else forms
            with self._lock:
                for form in set(self._sessions) - before - set(forms[:1]):
                    del self._sessions[form]
        return self._open(forms[0])

    def _measure(self, form: _Form, size: int) -> None:
        if form not in self._milliseconds:
            inputs = self._example(1 if form.wide else size)
            milliseconds = 1000 * _seconds_each(self._open(form), inputs, size)
            with self._lock:
                self._milliseconds[form] = milliseconds

    def _at_once(self, options: ComputeOptions) -> int:
        return self.batch or max(1, min(options.batch, PIXELS_AT_ONCE // math.prod(self.canvas)))

    def _cores(self) -> int:
        return self.threads or usual_threads() or usable_cores()

    def _open(self, form: _Form) -> Session:
        with self._lock:
            session = self._sessions.get(form)
            if session is None:
                threads = usual_threads() if self.threads is None else self.threads
                session = open_session(form.name, self._content, threads, form.device, self.source, wide=form.wide)
                self._sessions[form] = session
        return session

    def _example(self, n: int) -> dict[str, NDArray[Any]]:
        """Return inputs of n images of noise: some methods are quicker where nothing is seen."""
        noise = np.random.default_rng(0).random((n, 3, *self.canvas), np.float32)
        return self.inputs([Prepared(image, None) for image in noise])

    def inputs(self, values: Sequence[Prepared]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the graph; one for a fixed number of images gets the last one again and again."""
        values = [*values, *[values[-1]] * ((self.batch or len(values)) - len(values))]
        images = stacked(values)  # (B, 3, H, W)
        if self.input_form == "float32":
            images = unit_values(images)
        else:
            bytes_ = images if images.dtype == np.uint8 else np.rint(images * 255).astype(np.uint8)
            images = np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1))
        inputs: dict[str, NDArray[Any]] = {"image": images}
        if self.takes_keep:
            whole = np.ones(self.canvas, np.bool_)
            inputs["keep"] = np.stack([whole if value.keep is None else value.keep for value in values])
        return inputs

    # -- images --------------------------------------------------------------------------------------------------------

    def _prepare(self, image: Picture, row: Row) -> Prepared:
        if row.roi is not None and not self.takes_keep:
            raise InputError(
                f"{self.source} was exported without an input for regions of interest, and {row.path} comes with one: "
                "export the model with --keep (keep=True), or leave the region out"
            )
        return self.preprocess.prepared(image, row, self.roi)

    def _judged(self, rows: Iterable[Row], options: ComputeOptions, progress: Progress | None) -> Iterator[_Judged]:
        for name in ("batch", "workers", "max_pixels"):
            if getattr(options, name) < 1:
                raise InputError(f"{name}={getattr(options, name)!r}: expected at least 1")
        total = len(rows) if isinstance(rows, Sized) else None
        session, size, done = self.session(options, total), self._at_once(options), 0
        ahead = max(2 * size, options.workers)
        decoded = decode_pictures(rows, self._prepare, options.workers, ahead, options.max_pixels)

        def answered(batch: list[Decoded[Row, Prepared]]) -> Answer | None:
            values = [item.value for item in batch if item.value is not None]
            return session.run(self.inputs(values)) if values else None

        for batch, answer in session.each(answered, _batches(decoded, 1 if session.at_once > 1 else size)):
            place = 0
            for item in batch:
                done += 1
                if progress is not None:
                    progress("judging images", done, done if total is None else total)
                if item.value is None or answer is None:
                    yield _Judged(Failure(item.row.path, item.error or "it cannot be read"), None, None)
                    continue
                yield self._one(item, answer, place)
                place += 1

    def _one(self, item: Decoded[Row, Prepared], answer: Answer, place: int) -> _Judged:
        score = float(answer.score[place])
        if not math.isfinite(score):
            return _Judged(without_number(item.row.path, score), None, None)
        found = Found(
            item.row,
            score,
            np.ascontiguousarray(answer.map[place], np.float32),
            item.size,
            self.preprocess.window(item.size),
            self.roi,
            item.row.pixel_mm or self.provenance.pixel_mm,
        )
        return _Judged(found, item.value, None if answer.features is None else answer.features[place])

    # -- thresholds and the file ---------------------------------------------------------------------------------------

    def model_id(self) -> str:
        """Return the digest of what decides scores and maps; the model that was exported has the same."""
        return str(self.header["id"])

    @property
    def model_version(self) -> int:
        """The version is 1 after the fit and rises by one when thresholds are changed."""
        return Change.version(self.history)

    def configuration(self) -> dict[str, Any]:
        """Return the settings of the detector that was exported."""
        return dict(self.header["configuration"])

    def settings_digest(self) -> str:
        """Return the digest of the settings of the detector that was exported."""
        return str(self.header["settings"])

    def current_calibration(self) -> Calibration | None:
        """Return the calibration; settings of an exported model cannot be changed after it was set."""
        return self.calibration

    def set_thresholds(
        self, image: float | None = None, pixel: float | None = None, unsure: float | None = None
    ) -> Calibration:
        """Set thresholds by hand, as :meth:`pickglass.Detector.set_thresholds` does; :meth:`save` keeps them."""
        now = self.calibration or Calibration("fixed", None, None, settings=self.settings_digest())
        if now.stale:
            raise InputError("settings were changed after the threshold was set: set it anew on good images first")
        new = set_by_hand(now, image, pixel, unsure)
        self.history += (Change.between("set_thresholds", self.calibration, new),)
        self.calibration = new
        return new

    def save(self, path: str | Path) -> Path:
        """Write the file with its thresholds of now, whole or not at all; the graph stays as it is.

        Raises:
            InputError: the name does not end in .onnx, or the place cannot be written.
        """
        target = output_path(path, ".onnx")
        calibration = None if self.calibration is None else self.calibration.to_json()
        header = {k: v for k, v in self.header.items() if k not in ("format", "sha256")}
        write_export(target, self._content, {**header, "calibration": calibration, **history_of(self.history)})
        return target


class _Judged(NamedTuple):
    """An image was judged: the result, what the graph got, and its features (d,)."""

    found: Found | Failure
    value: Prepared | None
    features: NDArray[np.float32] | None


def _batches(items: Iterable[Decoded[Row, Prepared]], size: int) -> Iterator[list[Decoded[Row, Prepared]]]:
    batch: list[Decoded[Row, Prepared]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _seconds_each(session: Session, inputs: Mapping[str, NDArray[Any]], size: int) -> float:
    """Return the seconds of an image: of the median of a few batches of that size, or of images side by side."""
    calls = 4 * session.at_once if session.at_once > 1 else 1

    def once() -> float:
        began = time.perf_counter()
        for _ in session.each(session.run, [inputs] * calls):
            pass
        return time.perf_counter() - began

    once()  # each thread allocates, and threads of another session may still be waiting for its next call, spinning
    seconds = sorted(once() for _ in range(_MEASURED))
    return seconds[_MEASURED // 2] / (size if calls == 1 else calls)


# -- arrays in the header ----------------------------------------------------------------------------------------------


def array_to_json(array: NDArray[Any]) -> dict[str, Any]:
    """Return an array as JSON holds it: little-endian, deflated, in base64."""
    little = array.astype(array.dtype.newbyteorder("<"))
    content = base64.b64encode(zlib.compress(little.tobytes())).decode()
    return {"dtype": little.dtype.str, "shape": list(array.shape), "deflated": content}


def array_from_json(stored: Mapping[str, Any]) -> NDArray[Any]:
    """Return the array that :func:`array_to_json` described.

    Raises:
        ValueError: it is damaged.
    """
    dtype, shape = np.dtype(str(stored["dtype"])), tuple(max(0, int(n)) for n in stored["shape"])
    size = math.prod(shape) * dtype.itemsize
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(stored["deflated"], validate=True), size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if dtype.kind not in "biuf" or len(content) != size:
        raise ValueError(f"{len(content)} bytes for an array of {dtype} and shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _arrays(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    return {name: array_from_json(array) for name, array in stored.items()}


def _mask(stored: Mapping[str, Any]) -> BoolArray:
    mask: BoolArray = array_from_json(stored).astype(np.bool_)
    return mask
