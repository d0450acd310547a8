"""The detector that users call: preprocessing, a frozen backbone, a method, the joining of maps, and thresholds.

Letters: B images, P positions, H x W pixels of the network's input, h x w cells of the map.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pickglass.calibration import Calibration, Change
from pickglass.calibration.promises import set_by_hand
from pickglass.data import Channels, Prepared, Row, Table, as_table, fingerprint, image_digest, known_names
from pickglass.detectors.fitting import (
    FitObserver,
    FitPlan,
    adapt_backbone,
    defect_rows,
    drawn_to_leave_out,
    fit_and_validated,
    learn_fusion,
    learning_all,
    left_out_rows,
    prepare,
    teach,
)
from pickglass.detectors.fitting import (
    calibrate as calibrated,
)
from pickglass.detectors.loading import FeatureLoader, LoadedBatch, canvas_batch, silent
from pickglass.detectors.method import Judged, Method
from pickglass.detectors.modelfile import model_id, save
from pickglass.detectors.naming import OnTiles, found_regions, on_tiles
from pickglass.detectors.tiling import TileParts
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.batch import Batch
from pickglass.features.engine import (
    BackboneEngine,
    device_name,
    has_bfloat16,
    settle_after_fork,
)
from pickglass.features.shared import SharedFeatures
from pickglass.nn.maps import ProcessLock, cells_of, kept_cells, mean_of_highest, quiet_level
from pickglass.nn.pooling import channel_means
from pickglass.result import Found, Named, Prediction, without_number
from pickglass.runtime.compute import ComputeArguments, ComputeOptions, Progress
from pickglass.runtime.outliers import OutlierScores
from pickglass.runtime.provenance import Provenance, Regions

if TYPE_CHECKING:
    from pickglass.detectors.onnx_graph import InputForm, MapForm
    from pickglass.detectors.precision import Precision

__all__ = ["Detector", "judged_by_each"]

Self = TypeVar("Self", bound="Detector")


class Detector(Method, OutlierScores):
    """A detector learns from good images, judges others, and is saved as one file.

    The arguments are those of :class:`pickglass.detectors.settings.Configured` and of the method; the hooks that a
    method of your own fills in are those of :class:`pickglass.detectors.method.Method`.

    **Callers.** A fitted detector may be called from any number of threads at once, e.g. one a camera: they get the
    scores that one thread gets, and share one compiled network, which the first of them makes. Only ``fit``, ``to`` and
    changes of attributes need the detector for themselves. ``copy.copy``, ``copy.deepcopy`` and ``pickle`` (so also
    spawned processes, joblib and Ray) take everything along but what was compiled, which is made anew at the first
    call. A process that was forked after pickglass was imported works, too: it compiles anew, and torch computes with
    one thread there, because torch's thread pool does not survive a fork; start processes by spawn, or load the model
    in each, where that is too slow. A detector on a GPU cannot be used after a fork: CUDA refuses it.

    Attributes:
        shared_features: features of one backbone pass that many detectors read, as a study does; None: the detector
            runs the backbone itself.
        own_levels: the numbers of the levels that it reads, of a batch that others read, too; None: all.
    """

    def __init__(
        self,
        *,
        backbone: str | nn.Module,
        layers: Sequence[str] | None,
        weights: str,
        size: int | str | tuple[int, int],
        smoothing: float | None,
        top_share: float | None = 0.0,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            layers=layers,
            weights=weights,
            size=size,
            smoothing=smoothing,
            top_share=top_share,
            place_scale=place_scale,
            level_shift=level_shift,
        )
        self.shared_features: SharedFeatures | None = None
        self.own_levels: tuple[int, ...] | None = None
        self._engine: BackboneEngine | None = None
        self._lock = ProcessLock()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take everything along but the engine; tensors can be replaced in either."""
        own = {name: dict(self.__dict__[name]) for name in ("_parameters", "_buffers", "_modules")}
        return {**self.__dict__, **own, "_engine": None, "shared_features": None, "_lock": ProcessLock()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.train(self.training)  # a deep copy of a graph forgets that it judges, and would normalise each batch

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(
        self: Self,
        data: Any,
        *,
        validate: float | None = None,
        calibrate: float | None = None,
        seed: int = 0,
        memory_gb: float = 4.0,
        checkpoint: str | Path | None = None,
        channels: Channels = "rgb",
        defects: Any = None,
        observers: Sequence[FitObserver] = (),
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Self:
        """Learn from good images, then set the thresholds on good images that the method has not learned.

        Args:
            data: rows, a data set (its test rows are left alone), paths, arrays, tensors, PIL images or an iterable of
                them; good parts only. See :func:`pickglass.data.as_table`.
            validate: share of the images for validation; None: what the method wants.
            calibrate: share of the images that is held back for the thresholds; 0: none, and the model has no verdicts.
                None: all images are fitted, and each is judged as if it had been left out, where the method can do that
                (PatchCore, PaDiM, Subspace); otherwise 0.1.
            seed: by which the images are divided and everything else is drawn.
            memory_gb: budget for what the method holds.
            checkpoint: file that a method that trains writes every few minutes; where it exists already, the fit goes
                on from it as if it had never been interrupted. Where tiles are taught in groups, each has a file, with
                a number after the name. Delete them once the model is saved.
            channels: order of the colours in arrays and tensors: ``"rgb"``, or ``"bgr"`` as OpenCV gives them.
            defects: images of bad parts, as for :func:`pickglass.data.as_defects`, beside the rows of the role
                ``validate`` that are labelled defective. A method that can (SuperSimpleNet) learns from them; for any
                other they set the threshold of ``unsure``. They never set the threshold itself.
            observers: what else watches the fit: :class:`pickglass.CleanCheck` names images that look like none of the
                others, or leaves them out; :class:`pickglass.DriftSample` keeps what ``pickglass drift`` compares with.
            progress: called with (stage, done, total).
            compute: ``device``, ``engine`` ("auto", "openvino", "bfloat16", "torch"; "auto" is bfloat16 for a model
                fitted so), ``batch`` 8, ``workers`` 2, ``max_pixels``; see
                :class:`pickglass.runtime.compute.ComputeOptions`.

        Returns:
            self, with ``calibration`` and ``provenance`` set.

        Raises:
            DataError: broken images (all are listed), a defective image among them, none at all, or images from which
                the method learned nothing that could judge others.
        """
        began = time.perf_counter()
        share = self.wanted_validation if validate is None else validate
        file = None if checkpoint is None else Path(checkpoint)
        if channels != "rgb" and defects is not None:
            defects = as_table(defects, "test", channels)
        known = defect_rows(data, defects)
        plan = FitPlan(share, calibrate, seed, memory_gb, file, tuple(observers), progress or silent, defects=known)
        self.calibration, self.namer, self.reference, self.provenance = None, None, None, Provenance()
        self.history, self._file_id = (), None
        for part in self.components.values():
            part.place_gain = part.place_shift = part.level_line = None
        data = data if channels == "rgb" else as_table(data, "train", channels)
        images = prepare(self, data, plan, ComputeOptions(**compute))
        loader = self.loader(ComputeOptions(**compute))
        loader.ready, table = images.ready, images.table
        for observer in plan.observers:
            table = observer.prepared(table, loader, plan.progress)
        self.provenance = self._origin(table, plan)
        loader = self._with_research(loader, table, plan)
        fitting = f"{self.method} {self.configuration()} {seed} {self.provenance.data_sha256} {self.provenance.regions}"
        fitting += f" {fingerprint(known)}" if known else ""
        if judged := left_out_rows(self, images.leaves_out, table):
            loader.wanted = frozenset(row.path for row in drawn_to_leave_out(judged, seed)[0])
            loader.room = memory_gb / 4 * 1e9 - sum(item.value.nbytes for item in loader.ready.values() if item.value)
        details = teach(self, loader, table, plan, fitting)
        self.eval()
        self.calibration, usual = calibrated(self, loader, replace(images, table=table), plan)
        if type(self).score_left_out is not Method.score_left_out:  # also where this fit held images back instead
            self.forget_images()
        details = {**details, **usual}
        if known:
            from pickglass.detectors.known_defects import settled

            self.calibration, of_defects = settled(self, loader, plan)
            self.provenance = replace(self.provenance, known_defects=of_defects)
        seconds = time.perf_counter() - began
        engine = loader.engine
        self.provenance = replace(
            self.provenance, details=details, device=engine.device, engine=engine.name, fit_s=seconds
        )
        self.history = (Change.between("fit", None, self.calibration),)
        for observer in plan.observers:
            observer.fitted(self)
        return self

    def update(
        self: Self,
        data: Any,
        *,
        earlier: Any = None,
        calibrate: float | None = None,
        seed: int = 0,
        memory_gb: float = 4.0,
        channels: Channels = "rgb",
        observers: Sequence[FitObserver] = (),
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Self:
        """Learn further good images on top of what was learned, and set the thresholds anew with them.

        Images that were learned before are not learned twice, and those that the fit left out as suspicious stay out.
        What becomes of the thresholds is in :mod:`pickglass.calibration.renewal`, of the rest in ``docs/update.md``.

        Args:
            data: new good images, as for :meth:`fit`.
            earlier: good images from before, likewise. A method that trains trains again on those that it has learned,
                so that it does not forget them. Those that were never learned say how such parts are judged now.
            calibrate: share of the new images that is held back for the thresholds, above 0. None: each is judged as if
                it had been left out, where the method can do that (PatchCore, PaDiM, Subspace); otherwise 0.25.
            seed, memory_gb, channels, observers, progress, compute: as in :meth:`fit`.

        Returns:
            self; an update that fails leaves it as it was.

        Raises:
            InputError: the method, or this model of it, cannot be updated; or settings were changed after the fit.
            DataError: broken images (all are listed), a defective one among them, or too few new ones.
        """
        from pickglass.detectors.updating import update

        if calibrate is not None and not 0 < calibrate < 1:
            raise InputError(
                f"calibrate={calibrate!r}: expected a share of the new images above 0 and below 1, e.g. 0.25: without "
                "images that were not learned the thresholds cannot be set"
            )
        calibration = self.current_calibration()
        if calibration is not None and calibration.stale:
            raise InputError(
                "settings were changed after the fit, and what was learned is of the settings then: set them back, or "
                "fit anew on the old and the new images"
            )
        self.preprocess  # noqa: B018  (an unfitted detector says so before images are read)
        plan = FitPlan(
            self.wanted_validation, calibrate, seed, memory_gb, observers=tuple(observers), progress=progress or silent
        )
        if channels != "rgb":
            data = as_table(data, "train", channels)
            earlier = None if earlier is None else as_table(earlier, "train", channels)
        twin = copy(self)
        twin._engine = self._engine  # copies go without
        update(twin, twin.loader(ComputeOptions(**compute)), data, earlier, plan)
        self.__dict__.update({name: value for name, value in vars(twin).items() if name != "_lock"})
        return self

    def _origin(self, table: Table, plan: FitPlan) -> Provenance:
        """Record what is known of a fit's images and network before anything is learned."""
        counts = {role: len(table.role(role)) for role in ("fit", "validate", "calibrate")}
        if counts["fit"] == 0:
            raise DataError(f"no good image is left to fit ({counts}): lower validate or calibrate, or add images")
        pitches = {row.pixel_mm for row in table}
        weights = self.network.weights
        digests = [image_digest(row) for row in table]
        learned = fit_and_validated(table) if learning_all(self, table) else table.role("fit")
        return Provenance(
            n_fit=counts["fit"],
            n_validate=counts["validate"],
            n_calibrate=counts["calibrate"],
            seed=plan.seed,
            data_sha256=fingerprint(table, digests),
            fitted_images=tuple(
                digest[:16] for row, digest in zip(table, digests, strict=True) if row.role in ("fit", "validate")
            ),
            image_names=tuple(known_names([row.path for row in learned])),
            pixel_mm=pitches.pop() if len(pitches) == 1 else None,
            regions=Regions.of(table) if any(row.roi is not None for row in table) else Regions(),
            backbone_weights=None if weights is None else weights.to_json(),
            versions={"pickglass": version("pickglass"), "torch": torch.__version__},
            fitted=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _with_research(self, loader: FeatureLoader, table: Table, plan: FitPlan) -> FeatureLoader:
        """Fine-tune the backbone and learn the fusion, where asked for; return the loader to go on with."""
        if self.adapting is not None:
            adaptation = adapt_backbone(self.adapting, loader, table, plan)
            weights = self.network.weights
            known = None if weights is None else weights.to_json()
            self.provenance = replace(self.provenance, adaptation=adaptation, backbone_weights=known)
            self._engine, ready = None, loader.ready  # the engine may hold the network as it was
            loader = self.loader(loader.compute)
            loader.ready = ready
        if self.fusing is not None:
            from pickglass.features.research.fusion import Fusion

            fusion = Fusion(self.fusing, self.backbone_shapes(), plan.seed)
            learn_fusion(fusion, loader, table, plan.progress)
            self.fusion = loader.fusion = fusion
        return loader

    def loader(self, compute: ComputeOptions) -> FeatureLoader:
        """Return what reads images as this detector does; the detector moves to the device, its engine is made ready.

        Raises:
            NotFitted: there is no backbone yet.
            InputError: the device or the engine cannot be used on this machine.
        """
        settle_after_fork()
        with self._lock:
            return self._loader(compute)

    def _loader(self, compute: ComputeOptions) -> FeatureLoader:
        device = device_name(compute.device)
        where = torch.empty(0, device=device).device
        if any(tensor.device != where for tensor in self.state_dict().values()):
            self.to(device)
        name = compute.engine
        if name == "auto" and self.provenance.engine == "bfloat16" and has_bfloat16(device):
            name = "bfloat16"  # its scores and thresholds are of features in that precision
        engine = self._engine
        if engine is None or (engine.extractor, engine.device, engine.wanted) != (self.network, device, name):
            make = BackboneEngine if self.shared_features is None else self.shared_features.engine
            engine = self._engine = make(self.network, device, name)
        roi = None if self.roi is None else self.roi.cpu().numpy()
        return FeatureLoader(engine, self.preprocess, self.reads, roi, compute, self.tiles, self.fusion)

    # -- predict -------------------------------------------------------------------------------------------------------

    def predict(
        self,
        data: Any,
        *,
        channels: Channels = "rgb",
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Prediction:
        """Judge images: their scores and maps. A broken image is named and the rest are kept.

        An image whose score is not finite counts as failed, with the reason: it is never taken for a good one.

        Args:
            data: rows, paths, arrays, tensors, PIL images, encoded bytes, or an iterable of them, e.g. a DataLoader;
                see :func:`pickglass.data.as_table`.
            channels: order of the colours in arrays and tensors: ``"rgb"``, or ``"bgr"`` as OpenCV gives them.
            progress: called with (stage, done, total).
            compute: as in :meth:`fit`.
        """
        items = list(self.stream(data, channels=channels, progress=progress, **compute))
        return Prediction(
            tuple(item for item in items if isinstance(item, Found)),
            tuple(item for item in items if isinstance(item, Failure)),
            self.current_calibration(),
        )

    def stream(
        self,
        data: Any,
        *,
        channels: Channels = "rgb",
        progress: Progress | None = None,
        **compute: Unpack[ComputeArguments],
    ) -> Iterator[Found | Failure]:
        """Judge images as :meth:`predict` does, one after the other, in order, holding one batch at a time.

        A generator or a DataLoader is read as images are needed, a few ahead; nobody knows its length, so ``progress``
        is told that all images are those judged so far.
        """
        rows = self._rows(data, channels)
        loader = self.loader(ComputeOptions(**compute))
        done = 0
        for loaded in loader.batches(rows, features=not loader.in_parts):
            for item in self._found(loaded, loader):
                done += 1
                if progress is not None:
                    progress("judging images", done, len(rows) if isinstance(rows, Sequence) else done)
                yield item

    def _rows(self, data: Any, channels: Channels = "rgb") -> Iterable[Row]:
        """Return the rows to judge, with the regions of interest that the model was taught to look at."""
        self.network  # noqa: B018  (an unfitted detector says so before the data is read)
        if isinstance(data, Table) and self.provenance.regions == Regions():
            return data.rows
        return self.provenance.rows_to_judge(data, channels)

    def _found(self, loaded: LoadedBatch, loader: FeatureLoader) -> Iterator[Found | Failure]:
        """Judge a batch: one result for each row, in order."""
        results: Iterator[tuple[float, Any, Named | None]] = iter(())
        if loaded.batch is not None:
            scores, maps = self.judge(loaded.batch)
            arrays, batch = maps.cpu().numpy(), loaded.batch
            names = self._names(scores, arrays, lambda bad, regions: [on_tiles(batch, self.tiles, bad, regions)])
            results = iter(zip(scores.tolist(), arrays, names, strict=True))
        elif loaded.sound:
            results = (self._from_parts(loader, value) for value in loaded.values)
        for item in loaded.items:
            if item.error is not None:
                yield Failure(item.row.path, item.error)
                continue
            score, map_, named = next(results)
            if not math.isfinite(score):
                yield without_number(item.row.path, score)
                continue
            yield Found(
                item.row,
                score,
                np.ascontiguousarray(map_, dtype=np.float32),
                item.size,
                loader.preprocess.window(item.size),
                loader.roi,
                item.row.pixel_mm or self.provenance.pixel_mm,
                named,
            )

    def _names(
        self, scores: Tensor, maps: np.ndarray, features: Callable[[list[int], Tensor], Iterable[OnTiles]]
    ) -> list[Named | None]:
        """Name the types of the defects; None for parts that are judged good, and where no types were taught.

        Args:
            scores: (B,) of the images.
            maps: (B, h, w).
            features: called with which images are bad, b of them, and their regions (b, H, W).
        """
        calibration = self.calibration
        if self.namer is None:
            return [None] * len(scores)
        bad = [
            i for i, score in enumerate(scores.tolist()) if calibration is None or calibration.verdict(score) != "good"
        ]
        if not bad:
            return [None] * len(scores)
        names = dict(zip(bad, self.namer.names(features(bad, self.regions(maps[bad]))), strict=True))
        return [names.get(i) for i in range(len(scores))]

    def current_calibration(self) -> Calibration | None:
        """Return the calibration, marked stale if a setting was changed since it was made."""
        calibration = self.calibration
        if calibration is None or calibration.settings in ("", self.settings_digest()):
            return calibration
        return replace(calibration, stale=True)

    def set_thresholds(
        self, image: float | None = None, pixel: float | None = None, unsure: float | None = None
    ) -> Calibration:
        """Set thresholds by hand; what they say about false alarms follows from the good images that the model keeps.

        Args:
            image: an image is bad if its score exceeds it; None: as it is.
            pixel: a pixel is part of a defect if its map value exceeds it; None: as it is.
            unsure: an image is unsure if its score exceeds this and not ``image``, which is above it; None: as it is.

        Returns:
            The new calibration; its ``sentence`` says how many good images exceed the thresholds.

        Raises:
            InputError: no number, one that is not finite, ``unsure`` is not below ``image``, or settings were changed
                since the thresholds were set.
        """
        now = self.current_calibration() or Calibration("fixed", None, None, settings=self.settings_digest())
        if now.stale:
            raise InputError("settings were changed after the threshold was set: set it anew on good images first")
        new = set_by_hand(now, image, pixel, unsure)
        self.history += (Change.between("set_thresholds", self.calibration, new),)
        self.calibration = new
        return new

    def regions(self, maps: np.ndarray) -> Tensor:
        """Return where the highest peak of each map (B, h, w) is above the pixel threshold, (B, H, W) uint8, 0 or 1."""
        limit = self.calibration.pixel_threshold if self.calibration else None
        return found_regions(maps, limit, self.input_size)

    # -- the graph -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return image scores (B,) and joined maps (B, h, w); cells that do not count get the lowest that do."""
        scores, whole, _ = self.judged(batch)
        return scores, whole

    def judged(self, batch: Batch, units: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return image scores (B,), joined maps (B, h, w) and what counts of them; see the hook of the same name."""
        own = self.own(batch)
        answer = self.score(own) if units is None else self.score_left_out(own, units)
        return self._joined(*answer, own.keep)

    @torch.no_grad()
    def judged_in_parts(self, parts: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Judge one image of very many tiles, a few at a time; see the hook of the same name."""
        (answer,) = judged_by_each([self], parts)
        return answer

    def _from_parts(self, loader: FeatureLoader, value: Prepared) -> tuple[float, np.ndarray, Named | None]:
        """Judge an image of very many tiles; its features are read once more where its defect is named."""
        score, whole, _ = self.judged_in_parts(loader.parts_of(value))
        maps = whole.cpu().numpy()
        (named,) = self._names(score, maps, lambda _, regions: loader.region_parts(value, regions[0]))
        return float(score), maps[0], named

    def own(self, batch: Batch) -> Batch:
        """Return what it reads of a batch that others read, too."""
        if self.own_levels is None:
            return batch
        return batch._replace(levels=tuple(batch.levels[i] for i in self.own_levels))

    @property
    def components(self) -> Mapping[str, Method]:
        """The detector itself, by the name of its method."""
        return {self.method: self}

    def learn_mixing(
        self,
        known: Mapping[Method, Judged],
        judge: Callable[[Sequence[Method], Table], Mapping[Method, Judged]],
        rows: Table,
    ) -> dict[str, Any]:
        """Learn nothing: one method needs no mixing."""
        return {}

    def mixed(self, judged: Sequence[Judged]) -> Judged:
        """Return what the one method says."""
        return judged[0]

    def _joined(
        self, scores: Tensor, maps: Tensor, kept: Tensor | None, compared: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return image scores (B,), joined maps (B, h, w), compared with what is usual if so asked, and what counts."""
        if self.tiles is not None:
            keep = None if kept is None else self.tiles.unfold(kept)
            scores, whole, inside = self.tiles.joined(self.tiles.unfold(scores), self.tiles.unfold(maps), keep)
        else:
            cells = kept_cells(kept, cells_of(maps))
            scores, whole, inside = scores[:, 0], maps[:, 0], None if cells is None else cells[:, 0]
        if compared and self.place_gain is not None and self.place_shift is not None:
            whole = whole * self.place_gain + self.place_shift
        if inside is not None:
            lowest = whole.masked_fill(~inside, torch.inf).flatten(1).min(1).values  # (B,)
            whole = torch.where(inside, whole, lowest[:, None, None])
        if share := self.scored_share:
            scores = mean_of_highest(whole, share, inside)
        if compared and self.level_line is not None:
            slope, usual, lowest, highest = self.level_line.unbind()
            level = torch.minimum(torch.maximum(quiet_level(whole, inside), lowest), highest)  # (B,)
            scores = scores - slope * (level - usual)
        return scores, whole, inside

    def forward(self, images: Tensor, keep: Tensor | None = None, features: bool = False) -> tuple[Tensor, ...]:
        """Compute the exported graph: (B, 3, H, W) RGB in [0, 1] -> image scores (B,) and maps (B, h, w).

        Args:
            images: canvases.
            keep: (B, H, W) bool, which pixels of the canvas count; None: those of the model's region of interest.
            features: also return what drift compares, (B, d): each channel, averaged over the cells that count.
        """
        if keep is None and self.roi is not None:
            keep = self.roi.expand(images.shape[0], *self.roi.shape[-2:])
        batch = canvas_batch(images, keep, self.network, self.reads, self.tiles, fusion=self.fusion)
        answer = self.judge(batch)
        return (*answer, channel_means(batch.levels, batch.keep, int(images.shape[0]))) if features else answer

    # -- what a map is made of -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def parts_of(self, found: Found) -> dict[str, np.ndarray]:
        """Return the maps that the map of a judged image is made of, by name, (H, W) float32 at its original size.

        Empty for most methods; EfficientAD tells ``"local"`` and ``"global"`` apart, and a combination its methods.

        Raises:
            DataError: the image can no longer be read.
        """
        if type(self).component_maps is Method.component_maps:
            return {}
        (loaded,) = self.loader(ComputeOptions()).batches([found.row])
        if loaded.batch is None:
            raise DataError("the image can no longer be read:", loaded.failures)
        joined = self.joined_parts(loaded.batch)
        return {name: found._replace(map=map_[0].float().cpu().numpy()).full_map() for name, map_ in joined.items()}

    def joined_parts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the ``component_maps`` of a batch by name, joined over the positions, (B, h, w) each."""
        return {
            name: self._joined(maps.flatten(2).max(2).values, maps, batch.keep, compared=False)[1]
            for name, maps in self.component_maps(batch).items()
        }

    @torch.no_grad()
    def tile_parts(self, data: Any, **compute: Unpack[ComputeArguments]) -> Iterator[tuple[np.ndarray, TileParts]]:
        """Yield how the map of each image is put together: its canvas (3, H, W) in [0, 1] and its parts, with B = 1.

        Arguments as in :meth:`predict`; broken images are left out.

        Raises:
            InputError: the detector is not tiled.
        """
        rows, tiles = self._rows(data), self.tiles
        if tiles is None:
            raise InputError(f"this {type(self).__name__} is not tiled: make it with .tiled(size, tile, stride)")
        for loaded in self.loader(ComputeOptions(**compute)).batches(rows):
            if loaded.batch is None:
                continue
            keep = None if loaded.batch.keep is None else tiles.unfold(loaded.batch.keep)
            scores, maps = map(tiles.unfold, self.score(loaded.batch))
            parts = tiles.parts(scores, maps, keep)
            for i, item in enumerate(loaded.sound):
                if item.value is not None:
                    yield item.value.unit, TileParts(*(part[i : i + 1] for part in parts))

    # -- file ----------------------------------------------------------------------------------------------------------

    def model_id(self) -> str:
        """Return a short digest of what decides scores and maps: network, method, settings and what was learned.

        Thresholds are no part of it: two models with one id give every image the same score.

        Raises:
            NotFitted: nothing was learned yet.
        """
        return model_id(self)

    @property
    def model_version(self) -> int:
        """The version is 1 after the fit and rises by one when thresholds or names of defects are changed."""
        return Change.version(self.history)

    def save(self, path: str | Path) -> Path:
        """Write the model, backbone included, as one .safetensors file, whole or not at all.

        Raises:
            NotFitted: there is nothing to save yet.
            InputError: the name does not end in .safetensors, or the place cannot be written.
        """
        return save(self, path)

    def export(
        self,
        path: str | Path,
        data: Any = None,
        *,
        batch: int | None = None,
        input: InputForm = "float32",
        map: MapForm = "grid",
        keep: bool = False,
        precision: Precision = "float32",
        test: Any = None,
        max_loss: float = 0.01,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Write the model as one ONNX file with a certificate that it answers as torch does, or not at all.

        See ``docs/export.md`` for what goes in and comes out.

        Args:
            path: ends in .onnx.
            data: good images for the certificate, as for :meth:`predict`, at best a hundred; None: generated pictures.
                An int8 file takes the ranges of its numbers from them. Where those that set the thresholds are among
                them (held back at the fit, or given later), they set those of a file in float16 or int8 anew.
            batch: how many images the file takes at once; None: any number.
            input: ``"float32"``, (B, 3, H, W) RGB in [0, 1], or ``"uint8"``, (B, H, W, 3) RGB.
            map: ``"grid"``, the map on the model's grid, or ``"full"``, enlarged to the canvas.
            keep: the graph takes a region of interest with each image, also where the model needs none.
            precision: ``"float32"``; ``"float16"``: weights and banks are stored so, in half the size; ``"int8"``:
                convolutions are quantised as well.
            test: labelled images, on which image AUROC and AUPRO of torch and of the file are compared; None: neither
                is measured.
            max_loss: the file is refused where it loses more of one of them.
            progress: called with (stage, done, total).

        Returns:
            The certificate, as in the file.

        Raises:
            NotFitted: there is nothing to export yet.
            InputError: the name does not end in .onnx, the model cannot be exported so, or the file would answer
                differently.
            DataError: an image for the certificate cannot be read.
            MissingExtra: onnx, onnxruntime or openvino is not installed.
        """
        from pickglass.detectors.export import export

        return export(
            self,
            path,
            data,
            batch=batch,
            input_form=input,
            map_form=map,
            keep=keep,
            precision=precision,
            test=test,
            max_loss=max_loss,
            progress=progress,
        )


def judged_by_each(methods: Sequence[Detector], parts: Iterable[Batch]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Judge one image of very many tiles, a few at a time, by each of several methods that read the same parts.

    Returns:
        A method: what its ``judged`` says of the whole image, with B = 1.
    """
    answers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in methods]
    kept: list[Tensor] = []
    for part in parts:
        for method, own in zip(methods, answers, strict=True):
            own.append(method.score(method.own(part)))  # (T', 1) and (T', 1, h, w)
        if part.keep is not None:
            kept.append(part.keep)
    keep = torch.cat(kept) if kept else None
    joined = []
    for method, own in zip(methods, answers, strict=True):
        scores, maps = (torch.cat(tiles) for tiles in zip(*own, strict=True))
        joined.append(method._joined(scores, maps, keep))
    return joined
