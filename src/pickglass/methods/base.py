"""The contract: Detector = Preprocess + frozen extractor + head + joining + calibration.

A method's file writes the head, which knows neither files nor tiles. It reads levels ``(B, P, C, h, w)``, one per
chosen layer, and answers with scores ``(B, P)`` and maps ``(B, P, h, w)``; **every learned tensor leads with the
position axis P**. Plain use is P = 1.

Letters: B images, P positions, C channels, h x w cells of the finest layer, H x W pixels of the network's input.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pickglass.calibration import Calibration, highest_score, settings_digest
from pickglass.data import MAX_PIXELS, Dataset, Preprocess, Table, as_table, check_images, fingerprint, split_roles
from pickglass.data.tables import image_digest
from pickglass.errors import DataError, Failure, InputError, ModelFileError, NotFitted, UnknownName
from pickglass.features.engine import Engine, EngineName
from pickglass.features.extractor import FeatureExtractor
from pickglass.methods.modelfile import assign, write_model
from pickglass.methods.running import Progress, Run, Running, Shape, batches, device_name, silent
from pickglass.nn.maps import smooth
from pickglass.result import Found, Prediction

__all__ = ["Detector"]

Self = TypeVar("Self", bound="Detector")


class Detector(nn.Module, ABC):
    """Base of all methods. A method sets the class attributes and writes the head: start, update, finish, score.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        layers: the layers to read, finest first; see :func:`pickglass.layer_names`.
        weights: of the backbone: ``"default"``, ``"random"`` or a file.
        size: input of the network in pixels, a side or (height, width); images are squeezed to it.
        smoothing: sigma of the Gaussian over the map in input pixels; None is half the finest stride, 0 is none.
    """

    method: ClassVar[str]
    reads: ClassVar[Literal["features", "images"]] = "features"
    validate_share: ClassVar[float] = 0.0
    """Share of train that the method wants for validation."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        *,
        backbone: str,
        layers: Sequence[str],
        weights: str,
        size: int | tuple[int, int],
        smoothing: float | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers
        self.weights = weights
        self.size = size
        self.smoothing = smoothing
        self.extractor: FeatureExtractor | None = None
        self.calibration: Calibration | None = None
        self.provenance: dict[str, Any] = {}
        self._engine: Engine | None = None

    # -- the head: what a method writes --------------------------------------------------------------------------------

    @abstractmethod
    def start(self, run: Run) -> None:
        """Before the first image: check the settings against the shapes and allocate."""

    @abstractmethod
    def update(self, levels: Sequence[Tensor]) -> None:
        """Take in a batch of good images: per level (B, P, C, h, w). Each image comes once."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """After the last image; returns what is worth telling the user."""

    @abstractmethod
    def score(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Raw scores (B, P) and maps (B, P, h, w) of a batch; higher = more anomalous."""

    # -- configuration -------------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls: type[Self], name: str, **changes: Any) -> Self:
        """A detector with the settings of a preset, e.g. ``PatchCore.from_preset("paper", size=320)``."""
        if name not in cls.presets:
            raise UnknownName(f"preset of {cls.__name__}", name, cls.presets)
        return cls.configured({**cls.presets[name], **changes})

    @classmethod
    def configured(cls: type[Self], settings: Mapping[str, Any]) -> Self:
        """A detector from a dict of settings.

        Raises:
            UnknownName: a setting that the method does not have.
        """
        known = inspect.signature(cls.__init__).parameters
        for name in settings:
            if name not in known or name == "self":
                raise UnknownName(f"setting of {cls.__name__}", name, [k for k in known if k != "self"])
        return cls(**settings)

    def configuration(self) -> dict[str, Any]:
        """All settings, as the constructor takes them."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.configuration().items())
        return f"{type(self).__name__}({settings})"

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the network's input."""
        size = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
        if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise InputError(f"size={self.size!r}: expected pixels, e.g. 256 or (256, 512) for height and width")
        return size

    @property
    def preprocess(self) -> Preprocess:
        """From an image to the network's input."""
        return Preprocess(self.input_size, self._fitted().interpolation)

    def _fitted(self) -> FeatureExtractor:
        if self.extractor is None:
            raise self._unfitted()
        return self.extractor

    def _unfitted(self) -> NotFitted:
        return NotFitted(
            f"this {type(self).__name__} is not fitted yet: call .fit(good_images) first, "
            f"or load a model with pickglass.load('MODEL.safetensors')"
        )

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(
        self: Self,
        data: Any,
        *,
        validate: float | None = None,
        calibrate: float = 0.1,
        seed: int = 0,
        device: str = "auto",
        engine: EngineName = "auto",
        batch: int = 8,
        workers: int = 2,
        memory_gb: float = 4.0,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from good images, then set the thresholds on good images that were held back.

        Args:
            data: rows, a data set (its test rows are left alone), paths, arrays or PIL images; good parts only.
            validate: share of the images for validation; None: what the method wants.
            calibrate: share of the images for the thresholds; 0 gives all to fit, and the model has no verdicts.
            seed: of the split and of everything else drawn at random.
            device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``.
            engine: what runs the backbone; see :class:`pickglass.features.Engine`.
            batch: images at once.
            workers: threads that decode images.
            memory_gb: budget for what the method holds.
            max_pixels: images with more are refused.
            progress: called with (stage, done, total).

        Returns:
            self, with ``calibration`` and ``provenance`` set.

        Raises:
            DataError: broken images (all are listed), a defective image among them, or none at all.
        """
        began = time.perf_counter()
        report = progress or silent
        running = Running(device, engine, batch, workers, max_pixels)
        table = self._training_table(data, running)
        table = split_roles(table, self.validate_share if validate is None else validate, calibrate, seed)
        counts = {role: len(table.role(role)) for role in ("fit", "validate", "calibrate")}
        if counts["fit"] == 0:
            raise DataError(f"no good image is left to fit ({counts}): lower validate or calibrate, or add images")
        self.calibration = None
        self.extractor = FeatureExtractor(self.backbone, self.layers, self.weights, seed)
        shapes = self._level_shapes()
        own_engine = self._set_up(running)
        self.start(Run(counts["fit"], shapes, 1, seed, memory_gb, report))
        done = 0
        for _, images in batches(table.role("fit"), self.preprocess, running):
            if images is not None:
                self.update(self._read(images))
                done += len(images)
                report("reading features", done, counts["fit"])
        details = self.finish()
        self.eval()
        self.calibration = self._calibrate(table.role("calibrate"), running)
        self.provenance = {
            **{f"n_{role}": n for role, n in counts.items()},
            "seed": seed,
            "data_sha256": fingerprint(table),
            "fitted_images": [image_digest(row)[:16] for row in table.role("fit", "validate")],
            "backbone_weights": self.extractor.weights.to_json() if self.extractor.weights else None,
            "device": own_engine.device,
            "engine": own_engine.name,
            "details": details,
            "versions": {"pickglass": version("pickglass"), "torch": torch.__version__},
            "fitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "fit_s": time.perf_counter() - began,
        }
        return self

    def _training_table(self, data: Any, running: Running) -> Table:
        table = data.train if isinstance(data, Dataset) else as_table(data, role="train")
        table = table.where(lambda row: row.role != "test")
        # a validation split may hold labelled defects, for thresholds that need them; nothing is fitted on those
        table = table.where(lambda row: row.label != 1 or row.role != "validate")
        defective = [Failure(row.path, f"defective ({row.defect})") for row in table if row.label == 1]
        if defective:
            raise DataError(f"{len(defective)} training images are marked defective; fit takes good ones:", defective)
        if not table:
            raise DataError("there is no good image to learn from: expected rows of another role than 'test'")
        failures = check_images(table, running.max_pixels, running.workers)
        if failures:
            raise DataError(f"{len(failures)} of {len(table)} training images cannot be read:", failures)
        return table

    def _level_shapes(self) -> list[Shape]:
        if self.reads == "images":
            return [(3, *self.input_size)]
        return self._fitted().shapes(self.input_size)

    def _set_up(self, running: Running) -> Engine:
        """Move to the device and make the engine ready, unless it is."""
        device = device_name(running.device)
        self.to(device)
        engine = self._engine
        if engine is None or (engine.extractor, engine.device, engine.wanted) != (
            self.extractor,
            device,
            running.engine,
        ):
            engine = self._engine = Engine(self._fitted(), device, running.engine)
        return engine

    def _calibrate(self, table: Table, running: Running) -> Calibration:
        found = [item for item in self._stream(table, running) if isinstance(item, Found)]
        return highest_score(
            [f.score for f in found],
            [float(f.map.max()) for f in found],
            [f.row.group for f in found],
            settings_digest(self.configuration()),
        )

    def current_calibration(self) -> Calibration | None:
        """The calibration, marked stale if a setting was changed since it was made."""
        return None if self.calibration is None else self.calibration.against(self.configuration())

    # -- predict -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        data: Any,
        *,
        device: str = "auto",
        engine: EngineName = "auto",
        batch: int = 8,
        workers: int = 2,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Prediction:
        """Scores and maps of images; arguments as in :meth:`fit`. A broken image is named and the rest are kept."""
        found: list[Found] = []
        failed: list[Failure] = []
        for item in self.stream(
            data, device=device, engine=engine, batch=batch, workers=workers, max_pixels=max_pixels, progress=progress
        ):
            if isinstance(item, Found):
                found.append(item)
            else:
                failed.append(item)
        return Prediction.collect(found, failed, self.current_calibration())

    def stream(
        self,
        data: Any,
        *,
        device: str = "auto",
        engine: EngineName = "auto",
        batch: int = 8,
        workers: int = 2,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> Iterator[Found | Failure]:
        """As :meth:`predict`, one image after the other, in order, holding one batch at a time."""
        self._fitted()
        running = Running(device, engine, batch, workers, max_pixels)
        table = as_table(data, role="test")
        self._set_up(running)
        for done, item in enumerate(self._stream(table, running), start=1):
            if progress is not None:
                progress("judging images", done, len(table))
            yield item

    def _stream(self, table: Table, running: Running) -> Iterator[Found | Failure]:
        for items, images in batches(table, self.preprocess, running):
            good: Iterator[tuple[float, Any]] = iter(())
            if images is not None:
                scores, maps = self.judge(self._read(images))
                good = iter(zip(scores.tolist(), maps.cpu().numpy(), strict=True))
            for item in items:
                if item.error is not None:
                    yield Failure(item.row.path, item.error)
                else:
                    score, map_ = next(good)
                    yield Found(item.row, score, np.ascontiguousarray(map_, dtype=np.float32), item.size)

    # -- the graph -----------------------------------------------------------------------------------------------------

    def _read(self, images: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) in [0, 1] -> what the head reads, per level (B, P, C, h, w), through the engine."""
        if self._engine is None:
            raise RuntimeError("fit and stream set up the engine first")
        levels = (images.to(self._engine.device),) if self.reads == "images" else self._engine(images)
        return [level[:, None] for level in levels]

    @torch.no_grad()
    def judge(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels (B, P, C, h, w) -> image scores (B,) and joined, smoothed maps (B, h, w)."""
        scores, maps = self.score(levels)
        return scores[:, 0], self._smoothed(maps[:, 0])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The exported graph: (B, 3, H, W) RGB in [0, 1] -> image scores (B,) and maps (B, h, w)."""
        extractor = self._fitted()
        levels = (images,) if self.reads == "images" else extractor(images)
        return self.judge([level[:, None] for level in levels])

    def _smoothed(self, maps: Tensor) -> Tensor:
        stride = [side / cells for side, cells in zip(self.input_size, maps.shape[1:], strict=True)]
        sigma = min(stride) / 2 if self.smoothing is None else self.smoothing
        return smooth(maps, [sigma / s for s in stride])

    # -- file ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the model, backbone included, as one .safetensors file, whole or not at all.

        Raises:
            NotFitted: there is nothing to save yet.
            InputError: the name does not end in .safetensors, or the place cannot be written.
        """
        body = self._fitted().state_dict(prefix="backbone.")
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("extractor.")}
        head = {f"head.{name}": tensor for name, tensor in own.items()}
        header = {
            "method": self.method,
            "configuration": self.configuration(),
            "preprocess": self.preprocess.to_json(),
            "calibration": self.calibration.to_json() if self.calibration else None,
            "provenance": self.provenance,
        }
        return write_model(path, header, {**body, **head})

    @classmethod
    def restored(cls: type[Self], header: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> Self:
        """The detector that a model file describes; ``source`` names the file in messages."""
        detector = cls.configured(header["configuration"])
        detector.extractor = FeatureExtractor(detector.backbone, detector.layers, weights=None)
        missing = [name for name in detector.extractor.state_dict(prefix="backbone.") if name not in tensors]
        if missing:
            raise ModelFileError(f"{source}: lacks {len(missing)} tensors, e.g. {missing[0]!r}: fit the model anew")
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if not assign(detector, f"extractor.{rest}" if part == "backbone" else rest, tensor):
                raise ModelFileError(f"{source}: tensor {name!r} has no place in {cls.__name__}: fit the model anew")
        if header["calibration"] is not None:
            detector.calibration = Calibration.from_json(header["calibration"])
        detector.provenance = dict(header["provenance"])
        return detector.eval()
