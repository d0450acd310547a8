"""What a user calls: Detector = Preprocess + frozen extractor + head + joining + calibration.

Letters: B images, P positions, H x W pixels of the network's input, h x w cells of the map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from pickglass.calibration import Calibration, highest_score, settings_digest
from pickglass.calibration.drift import Sample
from pickglass.data import Preprocess, Table, as_table, fingerprint, split_roles
from pickglass.data.tables.rows import image_digest
from pickglass.detectors.compute import ComputeArguments, ComputeOptions, Progress, device_name, silent
from pickglass.detectors.contamination import CleanCheck, Cleanliness, find_suspicious
from pickglass.detectors.drift_sample import describe, tile_parts
from pickglass.detectors.fitting import adapt_backbone, learn, learn_fusion
from pickglass.detectors.loading import FeatureLoader, read
from pickglass.detectors.method import FitContext, Method
from pickglass.detectors.modelfile import assign, write_model
from pickglass.detectors.naming import Namer, found_regions, unfolded
from pickglass.detectors.provenance import as_taught, common_roi, regions_of
from pickglass.detectors.tiling import TileParts, Tiles
from pickglass.detectors.training_data import common_pitch, known_preprocess, training_table
from pickglass.errors import DataError, Failure, InputError, ModelFileError
from pickglass.features.backbones.weights import WeightsInfo
from pickglass.features.batch import Batch
from pickglass.features.engine import BackboneEngine, EngineName, has_bfloat16
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.research.fusion import Fusion
from pickglass.nn.maps import kept_cells
from pickglass.result import Found, Named, Prediction

__all__ = ["Detector"]

Self = TypeVar("Self", bound="Detector")


class Detector(Method):
    """A head with everything around it: fitting, judging, the threshold and the model file.

    The arguments are those of :class:`pickglass.detectors.method.Method` and of the method.
    """

    def __init__(
        self,
        *,
        backbone: str,
        layers: Sequence[str],
        weights: str,
        size: int | str | tuple[int, int],
        smoothing: float | None,
    ) -> None:
        super().__init__(backbone=backbone, layers=layers, weights=weights, size=size, smoothing=smoothing)
        self.calibration: Calibration | None = None
        self.reference: Sample | None = None
        self.provenance: dict[str, Any] = {}
        self.namer: Namer | None = None
        self._engine: BackboneEngine | None = None
        # a study has many detectors read from one backbone pass
        self.make_engine: Callable[[FeatureExtractor, str, EngineName], BackboneEngine] = BackboneEngine

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(
        self: Self,
        data: Any,
        *,
        validate: float | None = None,
        calibrate: float = 0.1,
        seed: int = 0,
        memory_gb: float = 4.0,
        checkpoint: str | Path | None = None,
        drop_suspicious: bool = False,
        progress: Progress | None = None,
        **running: Unpack[ComputeArguments],
    ) -> Self:
        """Learn from good images, then set the thresholds on good images that were held back.

        Args:
            data: rows, a data set (its test rows are left alone), paths, arrays or PIL images; good parts only.
            validate: share of the images for validation; None: what the method wants.
            calibrate: share of the images for the thresholds; 0 gives all to fit, and the model has no verdicts.
            seed: of the split and of everything else drawn at random.
            memory_gb: budget for what the method holds.
            checkpoint: file that a method that trains writes every few minutes; where it exists already, the fit goes
                on from it as if it had never been interrupted. Delete it once the model is saved.
            drop_suspicious: first leave out the images that look like none of the others, for they may be defective;
                otherwise they are only named, in ``provenance["suspicious"]``.
            progress: called with (stage, done, total).
            running: ``device``, ``engine`` ("auto", "openvino", "bfloat16", "torch"; "auto" is bfloat16 for a model
                fitted so), ``batch`` 8, ``workers`` 2, ``max_pixels``; see
                :class:`pickglass.detectors.compute.ComputeOptions`.

        Returns:
            self, with ``calibration`` and ``provenance`` set.

        Raises:
            DataError: broken images (all are listed), a defective image among them, or none at all.
        """
        began = time.perf_counter()
        options = ComputeOptions(**running)
        table, sizes, ready = training_table(data, options, known_preprocess(self.size, self.backbone), memory_gb / 4)
        table = split_roles(table, self.wanted_validation if validate is None else validate, calibrate, seed)
        extractor = self._forget(table, sizes, seed)
        loader = self._loader(options)
        loader.ready = ready
        clean: Cleanliness | None = None
        if drop_suspicious:
            clean = find_suspicious(table, loader, progress or silent)
            table = clean.without(table)
        counts = {role: len(table.role(role)) for role in ("fit", "validate", "calibrate")}
        if counts["fit"] == 0:
            raise DataError(f"no good image is left to fit ({counts}): lower validate or calibrate, or add images")
        data_sha256, regions = fingerprint(table), regions_of(table)
        check = CleanCheck(counts["fit"], references=2048) if "features" in self.reads and clean is None else None
        loader, told = self._learn_features(loader, table, seed, progress or silent)
        seen = counts["fit"] * len(self.quarter_turns)
        run = FitContext(
            seen, self.level_shapes(), 1, seed, memory_gb, progress or silent, n_validate=counts["validate"]
        )
        fitting = f"{self.method} {self.configuration()} {seed} {data_sha256} {regions}"
        file, observe = None if checkpoint is None else Path(checkpoint), None if check is None else check.observe
        details = learn(self, loader, table, run, file, fitting, observe)
        self.eval()
        if check is not None and check.rows:
            clean = check.finish()
        self.provenance = {
            **{f"n_{role}": n for role, n in counts.items()},
            "seed": seed,
            "data_sha256": data_sha256,
            "fitted_images": [image_digest(row)[:16] for row in table.role("fit", "validate")],
            "pixel_mm": common_pitch(table),
            **regions,
            "backbone_weights": extractor.weights.to_json() if extractor.weights else None,
            **told,
            "device": loader.engine.device,
            "engine": loader.engine.name,
            "suspicious": [] if clean is None else [s._asdict() for s in clean.suspicious],
            "details": details,
            "versions": {"pickglass": version("pickglass"), "torch": torch.__version__},
            "fitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self._calibrate(table.role("calibrate"), loader)
        self.provenance["fit_s"] = time.perf_counter() - began
        return self

    def _forget(self, table: Table, sizes: Mapping[str, tuple[int, int]], seed: int) -> FeatureExtractor:
        """Begin anew: a backbone, and a canvas for images of these sizes."""
        self.calibration = self.namer = self.fusion = None
        self.provenance = {}
        asked = (self.backbone, self.layers, self.weights, seed, self.scales)
        if self.extractor is None or not self.extractor.is_still(*asked):  # else the engine is ready, too
            self.extractor = FeatureExtractor(*asked)
        self._preprocess = Preprocess.for_images(self.size, self.extractor.interpolation, sizes.values())
        roi = common_roi(table, sizes, self._preprocess)
        self.roi = None if roi is None else torch.from_numpy(roi)
        self.tiles = None if self.tiling is None else Tiles(self.tiling, self.input_size)
        return self.extractor

    def _learn_features(
        self, loader: FeatureLoader, table: Table, seed: int, progress: Progress
    ) -> tuple[FeatureLoader, dict[str, Any]]:
        """Adapt the backbone and learn the fusion, if wanted: the reader to go on with, and what to tell."""
        told: dict[str, Any] = {}
        if self.adapting is not None:
            told["adaptation"] = adapt_backbone(self.adapting, loader, table, seed, progress)
            self._engine, ready = None, loader.ready  # the engine may hold the network as it was
            loader = self._loader(loader.running)
            loader.ready = ready
        if self.fusing is not None:
            fusion = Fusion(self.fusing, self.backbone_shapes(), seed)
            learn_fusion(fusion, loader, table, progress)
            self.fusion = loader.fusion = fusion
        return loader, told

    def _loader(self, running: ComputeOptions) -> FeatureLoader:
        """Move to the device and make the engine ready, unless it is."""
        device = device_name(running.device)
        self.to(device)
        known, name = self._engine, running.engine
        if name == "auto" and self.provenance.get("engine") == "bfloat16" and device == "cpu" and has_bfloat16():
            name = "bfloat16"  # its scores and thresholds are of features in that precision
        if known is None or (known.extractor, known.device, known.wanted) != (self.extractor, device, name):
            known = self._engine = self.make_engine(self._fitted(), device, name)
        roi = None if self.roi is None else self.roi.cpu().numpy()
        return FeatureLoader(known, self.preprocess, self.reads, roi, running, self.tiles, fusion=self.fusion)

    def _calibrate(self, table: Table, loader: FeatureLoader) -> None:
        """The threshold and the images to compare coming ones with, from good images that are read last."""
        settings = settings_digest(self.configuration())
        sample, peaks, _ = describe(loader, self.judge, table, settings)
        self.reference = sample if len(sample) else None
        self.calibration = highest_score(sample.scores.tolist(), peaks, [row.group for row in table], settings)

    def describe(
        self, data: Any, *, progress: Progress | None = None, **running: Unpack[ComputeArguments]
    ) -> tuple[Sample, list[Failure]]:
        """Scores, plain facts and pooled features of images, for :func:`pickglass.calibration.drift.find_drift`."""
        loader = self._loader(ComputeOptions(**running))
        table = as_taught(as_table(data, role="test"), self.provenance)
        settings = settings_digest(self.configuration())
        sample, _, failures = describe(loader, self.judge, table, settings, progress or silent)
        return sample, failures

    def current_calibration(self) -> Calibration | None:
        """The calibration, marked stale if a setting was changed since it was made."""
        return None if self.calibration is None else self.calibration.against(self.configuration())

    # -- predict -------------------------------------------------------------------------------------------------------

    def predict(
        self, data: Any, *, progress: Progress | None = None, **running: Unpack[ComputeArguments]
    ) -> Prediction:
        """Scores and maps of images; arguments as in :meth:`fit`. A broken image is named and the rest are kept."""
        items = list(self.stream(data, progress=progress, **running))
        return Prediction(
            tuple(item for item in items if isinstance(item, Found)),
            tuple(item for item in items if isinstance(item, Failure)),
            self.current_calibration(),
        )

    def stream(
        self, data: Any, *, progress: Progress | None = None, **running: Unpack[ComputeArguments]
    ) -> Iterator[Found | Failure]:
        """As :meth:`predict`, one image after the other, in order, holding one batch at a time."""
        self._fitted()
        loader = self._loader(ComputeOptions(**running))
        table = as_taught(as_table(data, role="test"), self.provenance)
        for done, item in enumerate(self._stream(table, loader), start=1):
            if progress is not None:
                progress("judging images", done, len(table))
            yield item

    def _stream(self, table: Table, loader: FeatureLoader) -> Iterator[Found | Failure]:
        for loaded in loader.batches(table):
            results: Iterator[tuple[float, Any, Named | None]] = iter(())
            if loaded.batch is not None:
                scores, maps = self.judge(loaded.batch)
                arrays = maps.cpu().numpy()
                results = iter(zip(scores.tolist(), arrays, self._named(loaded.batch, scores, arrays), strict=True))
            for item in loaded.items:
                if item.error is not None:
                    yield Failure(item.row.path, item.error)
                    continue
                score, map_, named = next(results)
                yield Found(
                    item.row,
                    score,
                    np.ascontiguousarray(map_, dtype=np.float32),
                    item.size,
                    loader.preprocess.window(item.size),
                    loader.roi,
                    item.row.pixel_mm or self.provenance.get("pixel_mm"),
                    named,
                )

    def tile_parts(self, data: Any, **running: Unpack[ComputeArguments]) -> Iterator[tuple[np.ndarray, TileParts]]:
        """How the map of each image is put together: its canvas (3, H, W) in [0, 1] and its parts, with B = 1.

        Arguments as in :meth:`fit`; broken images are left out.

        Raises:
            InputError: the detector is not tiled.
        """
        self._fitted()
        if self.tiles is None:
            raise InputError(f"this {type(self).__name__} is not tiled: make it with .tiled(size, tile, stride)")
        table = as_taught(as_table(data, role="test"), self.provenance)
        return tile_parts(self._loader(ComputeOptions(**running)), self.score, table)

    def regions(self, maps: np.ndarray) -> Tensor:
        """The region of the highest peak of each map (B, h, w) at the pixel threshold, (B, H, W) in 0..1."""
        limit = self.calibration.pixel_threshold if self.calibration else None
        return found_regions(maps, limit, self.input_size)

    def _named(self, batch: Batch, scores: Tensor, maps: np.ndarray) -> list[Named | None]:
        """The types of the defects, None for parts that are judged good."""
        known = self.calibration
        bad = [i for i, score in enumerate(scores.tolist()) if known is None or known.verdict(score) != "good"]
        if self.namer is None or not bad:
            return [None] * len(scores)
        levels, shares = unfolded(batch, self.tiles, self.regions(maps))
        names = dict(zip(bad, self.namer.names([level[bad] for level in levels], shares[bad]), strict=True))
        return [names.get(i) for i in range(len(scores))]

    # -- the graph -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A reading -> image scores (B,) and joined maps (B, h, w); cells that do not count get the lowest that do."""
        return self._joined(*self.score(batch), batch.keep)

    def _joined(self, scores: Tensor, maps: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.tiles is not None:
            keep = None if kept is None else self.tiles.unfold(kept)
            return self.tiles.joined(self.tiles.unfold(scores), self.tiles.unfold(maps), keep)
        keep = kept_cells(kept, (maps.shape[2], maps.shape[3]))
        if keep is not None:
            lowest = maps.masked_fill(~keep, torch.inf).flatten(2).min(2).values  # (B, P)
            maps = torch.where(keep, maps, lowest[..., None, None])
        return scores[:, 0], maps[:, 0]

    @torch.no_grad()
    def parts_of(self, found: Found) -> dict[str, np.ndarray]:
        """What the map of a judged image is made of, by name, (H, W) float32 each at its original size.

        Empty for most methods; EfficientAD tells ``"local"`` and ``"global"`` apart.

        Raises:
            DataError: the image can no longer be read.
        """
        if type(self).component_maps is Method.component_maps:
            return {}
        (loaded,) = self._loader(ComputeOptions()).batches(Table([found.row]))
        if loaded.batch is None:
            raise DataError("the image can no longer be read:", [Failure(found.row.path, loaded.items[0].error or "")])
        keep, parts = loaded.batch.keep, self.component_maps(loaded.batch)
        joined = {name: self._joined(maps.flatten(2).max(2).values, maps, keep)[1] for name, maps in parts.items()}
        return {name: found._replace(map=map_[0].float().cpu().numpy()).full_map() for name, map_ in joined.items()}

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The exported graph: (B, 3, H, W) RGB in [0, 1] -> image scores (B,) and maps (B, h, w).

        ``keep`` (B, H, W) bool says which pixels of the canvas count; None: those of the model's region of interest.
        """
        if keep is None and self.roi is not None:
            keep = self.roi.expand(len(images), -1, -1)
        return self.judge(read(images, keep, self._fitted(), self.reads, self.tiles, fusion=self.fusion))

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
        known = {} if self.reference is None else self.reference.tensors()
        reference = {f"reference.{name}": torch.from_numpy(np.array(value)) for name, value in known.items()}
        naming: dict[str, Tensor] = {}
        if self.namer is not None:
            header["naming"] = self.namer.to_json()
            naming = {f"naming.{name}": tensor for name, tensor in self.namer.tensors.items()}
        return write_model(path, header, {**body, **head, **reference, **naming})

    @classmethod
    def restored(cls: type[Self], header: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> Self:
        """The detector that a model file describes; ``source`` names the file in messages."""
        detector = cls.configured(header["configuration"])
        detector.extractor = FeatureExtractor(detector.backbone, detector.layers, None, scales=detector.scales)
        if header["provenance"].get("backbone_weights"):
            detector.extractor.expect(WeightsInfo.from_json(header["provenance"]["backbone_weights"]))
        detector._preprocess = Preprocess.from_json(header["preprocess"])
        if detector.tiling is not None:
            detector.tiles = Tiles(detector.tiling, detector.input_size)
        if detector.fusing is not None:
            detector.fusion = Fusion(detector.fusing, detector.backbone_shapes())
        detector.build(detector.level_shapes(), detector.tiles.heads if detector.tiles else 1, seed=0)
        missing = [name for name in detector.extractor.state_dict(prefix="backbone.") if name not in tensors]
        if missing:
            raise ModelFileError(f"{source}: lacks {len(missing)} tensors, e.g. {missing[0]!r}: fit the model anew")
        known = {name[10:]: t.numpy() for name, t in tensors.items() if name.startswith("reference.")}
        detector.reference = Sample.from_tensors(known, source) if known else None
        if header.get("naming") is not None:
            naming = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("naming.")}
            detector.namer = Namer.from_file(header["naming"], naming)
        for name, tensor in tensors.items():
            if name.startswith(("reference.", "naming.")):
                continue
            part, _, rest = name.partition(".")
            if not assign(detector, f"extractor.{rest}" if part == "backbone" else rest, tensor):
                raise ModelFileError(f"{source}: tensor {name!r} has no place in {cls.__name__}: fit the model anew")
        if header["calibration"] is not None:
            detector.calibration = Calibration.from_json(header["calibration"])
        detector.provenance = dict(header["provenance"])
        return detector.eval()
