"""What a method writes: a head, its settings, and what it may lean on.

A head knows neither files nor tiles. It reads a :class:`Batch` of features ``(B, P, C, h, w)``, one level per chosen
layer, or of images, and answers with scores ``(B, P)`` and maps ``(B, P, h, w)``; **every learned tensor leads with the
position axis P**. Plain use is P = 1.

Letters: B images, P positions, C channels, h x w cells of the finest layer, H x W pixels of the network's input.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pickglass.data import Preprocess, parse_size
from pickglass.detectors.compute import Progress, Shape
from pickglass.detectors.modelfile import assign
from pickglass.detectors.renamed_settings import with_new_names
from pickglass.detectors.tiling import TileOptions, Tiles, TileSettings
from pickglass.errors import InputError, NotFitted, UnknownName
from pickglass.features.batch import Batch
from pickglass.features.extractor import FeatureExtractor, layer_list
from pickglass.features.research.adaptation import AdaptationOptions, AdaptationSettings
from pickglass.features.research.fusion import Fusion, FusionKind, FusionOptions, FusionSettings
from pickglass.nn.maps import smooth
from pickglass.nn.training.loop import Phase

__all__ = ["FitContext", "Method"]

Self = TypeVar("Self", bound="Method")


@dataclass(frozen=True)
class FitContext:
    """What a head may need to know while it learns.

    Attributes:
        n_images: how many images ``observe`` will see in all.
        shapes: (C, h, w) of each level.
        positions: P.
        seed: of everything drawn at random.
        memory_gb: what may be held at once.
        progress: to report to.
        groups: of positions that are learned one after the other, none larger than this one; the model holds them all.
        n_validate: how many images ``observe_validation`` will see in all, of one position.
    """

    n_images: int
    shapes: list[Shape]
    positions: int
    seed: int
    memory_gb: float
    progress: Progress
    groups: int = 1
    n_validate: int = 0


class Method(nn.Module, ABC):
    """A method sets the class attributes and writes start and score, and of build, update, phases, adjust and finish
    what it needs.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        layers: the layers to read, finest first, a sequence or ``"layer1+layer2"``; see :func:`pickglass.layer_names`.
        weights: of the backbone: ``"default"``, ``"random"`` or a file.
        size: how an image comes to the network's input, in pixels: 256 or (height, width) squeezes it,
            ``"letterbox:256"``, ``"shorter:256"`` and ``"native"`` keep its aspect; see
            ``pickglass.data.images.geometry``.
        smoothing: sigma of the Gaussian over the map in input pixels; None is half the finest stride, 0 is none.
    """

    method: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ("features",)
    """What of a :class:`Batch` the head wants: ``"features"``, ``"images"``."""
    validate_share: ClassVar[float] = 0.0
    """Share of the training images that the method wants for validation, unless it learns without them."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        *,
        backbone: str,
        layers: Sequence[str],
        weights: str,
        size: int | str | tuple[int, int],
        smoothing: float | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layers = layers
        self.weights = weights
        self.size = size
        self.smoothing = smoothing
        self.register_buffer("roi", None)  # (H, W) bool of the canvas
        self.roi: Tensor | None
        self.extractor: FeatureExtractor | None = None
        self.tiling: TileSettings | None = None
        self.tiles: Tiles | None = None
        self.adapting: AdaptationSettings | None = None
        self.fusing: FusionSettings | None = None
        self.fusion: Fusion | None = None
        self._preprocess: Preprocess | None = None

    # -- the head: what a method writes --------------------------------------------------------------------------------

    @property
    def quarter_turns(self) -> tuple[int, ...]:
        """Quarter turns in which ``observe`` sees each image, of a statistical method; (0,): as it is."""
        return (0,)

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Make the networks to be learned, for levels of these shapes; also before a model file fills them."""

    @abstractmethod
    def begin_fit(self, run: FitContext) -> None:
        """Before the first image: check the settings against the shapes and allocate."""

    def observe(self, batch: Batch) -> None:
        """Take in a batch of good images; each image comes once, in each of the ``quarter_turns``."""

    def phases(self) -> Sequence[Phase[Batch]]:
        """What to train, in this order, over and over the same readings; nothing for a statistical method."""
        return ()

    def observe_validation(self, batch: Batch) -> None:
        """Take in a batch of good images that nothing was learned from; each image comes once."""

    def end_fit(self) -> dict[str, Any]:
        """After the last image; returns what is worth telling the user."""
        return {}

    @abstractmethod
    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Raw scores (B, P) and maps (B, P, h, w) of a batch; higher = more anomalous."""

    def component_maps(self, batch: Batch) -> Mapping[str, Tensor]:
        """What the map is made of, by name, (B, P, h, w) each, for a method that tells several things apart."""
        return {}

    def smoothed(self, maps: Tensor, keep: Tensor | None = None) -> Tensor:
        """Maps (B, P, h, w) after the Gaussian of the setting ``smoothing``; what is not kept lends nothing."""
        seen = self.tiling.tile if self.tiling else self.input_size
        stride = [side / cells for side, cells in zip(seen, maps.shape[2:], strict=True)]
        sigma = min(stride) / 2 if self.smoothing is None else self.smoothing
        return smooth(maps, [sigma / s for s in stride], keep)

    @property
    def uses_validation(self) -> bool:
        """Whether anything is learned from validation images; a method that keeps its last epoch needs none."""
        return self.validate_share > 0

    # -- what others may ask of a method -------------------------------------------------------------------------------

    def work_units(self, n_images: int) -> float:
        """How many images the training looks at in all, each as often as it is looked at, when it learns from so many.

        A study estimates its time from this. The one pass that reads features is not counted: a statistical method,
        which needs no more, has 0.
        """
        return 0.0

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Settings that make a fit quick at the cost of some quality: to compare many candidates, and for tests.

        Args:
            n_images: how many images it will learn from.
            cells: h w, the cells of the first layer in an image or, where the detector is tiled, in a tile.
        """
        return {}

    @classmethod
    def tunable(cls) -> Mapping[str, Sequence[Any]]:
        """Settings that ``--preset auto`` tries, each with the values that it tries in place of the default."""
        return {}

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
        settings = with_new_names(cls.__init__, settings)
        known = inspect.signature(cls.__init__).parameters
        own = {name: value for name, value in settings.items() if name not in ("tiling", "fusion", "adaptation")}
        for name in own:
            if name not in known or name == "self":
                raise UnknownName(f"setting of {cls.__name__}", name, [k for k in known if k != "self"])
        detector = cls(**own)
        if settings.get("tiling") is not None:
            detector.tiling = TileSettings.from_json(settings["tiling"])
        if settings.get("fusion") is not None:
            detector.fusing = FusionSettings.from_json(settings["fusion"])
        if settings.get("adaptation") is not None:
            detector.adapting = AdaptationSettings.from_json(settings["adaptation"])
        return detector

    def configuration(self) -> dict[str, Any]:
        """All settings, as the constructor takes them; also ``tiling``, ``fusion``, ``adaptation`` if there are."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        tiling = {} if self.tiling is None else {"tiling": self.tiling.to_json()}
        fusion = {} if self.fusing is None else {"fusion": self.fusing.to_json()}
        adaptation = {} if self.adapting is None else {"adaptation": self.adapting.to_json()}
        return {name: getattr(self, name) for name in names} | tiling | fusion | adaptation

    def tiled(
        self: Self,
        size: int | str | tuple[int, int] | None = None,
        tile: int | tuple[int, int] = 256,
        stride: int | tuple[int, int] | None = None,
        **settings: Unpack[TileOptions],
    ) -> Self:
        """An unfitted detector with these settings that looks at tiles, each position with a head of its own.

        Args:
            size: of the canvas that is cut into tiles, e.g. 512 or ``"native"``; None: the detector's size.
            tile: side, or (height, width), of a tile in pixels; what the network sees at once.
            stride: from one tile to the next; None: half a tile.
            settings: ``heads``, ``join``, ``image_score``, ...; see :class:`pickglass.detectors.tiling.TileSettings`.

        Example:
            ``PatchCore().tiled(size=512, tile=256, stride=128).fit(bottle.train)``
        """
        side = (tile, tile) if isinstance(tile, int) else tile
        step = (
            (side[0] // 2, side[1] // 2) if stride is None else (stride, stride) if isinstance(stride, int) else stride
        )
        changed = {**self.configuration(), **({} if size is None else {"size": size})}
        changed["tiling"] = TileSettings(side, step, **settings).to_json()
        return self.configured(changed)

    def fused(self: Self, kind: FusionKind, **settings: Unpack[FusionOptions]) -> Self:
        """An unfitted detector with these settings whose head reads the layers fused.

        Args:
            kind: ``"concat"``, ``"pyramid"``, ``"bilinear"`` or ``"attention"``.
            settings: ``normalise``, ``dims``, ``scales``, ...; see
                :class:`pickglass.features.research.fusion.FusionSettings`.

        Raises:
            InputError: the method reads no features of the backbone.

        Example:
            ``PatchCore(layers="stage2+stage5").fused("pyramid", normalise="whiten").fit(bottle.train)``
        """
        if "features" not in self.reads:
            raise InputError(f"{type(self).__name__} reads images, not features: there is nothing to fuse")
        fusion = FusionSettings.from_json({"kind": kind, **settings}).to_json()
        return self.configured({**self.configuration(), "fusion": fusion})

    def adapted(self: Self, stages: Sequence[str], **settings: Unpack[AdaptationOptions]) -> Self:
        """An unfitted detector with these settings whose backbone is first fine-tuned on the good images.

        Painted defects are the negatives, and others judge it on images held back for validation: the network stays as
        it was unless it got better. What happened is in ``provenance["adaptation"]``.

        Args:
            stages: layers, whose weights from the layer before on are trained; a sequence or ``"stage3+stage4"``.
            settings: ``epochs``, ``lr``, ``pull``, ``images``; see
                :class:`pickglass.features.research.adaptation.AdaptationSettings`.

        Raises:
            InputError: the method reads no features of the backbone.

        Example:
            ``PatchCore().adapted("stage3+stage4").fit(bottle.train)``
        """
        if "features" not in self.reads:
            raise InputError(f"{type(self).__name__} reads images, not features: there is no backbone to adapt")
        adaptation = AdaptationSettings(layer_list(stages), **settings).to_json()
        return self.configured({**self.configuration(), "adaptation": adaptation})

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.configuration().items())
        return f"{type(self).__name__}({settings})"

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the network's input, the canvas that images are fitted on."""
        if self._preprocess is not None:
            return self._preprocess.size
        _, size, side = parse_size(self.size)
        if size is None and side is None:
            raise NotFitted(f"size={self.size!r} is settled by the training images: call .fit(good_images) first")
        return size or (side, side)  # type: ignore[return-value]

    @property
    def preprocess(self) -> Preprocess:
        """From an image to the network's input."""
        if self._preprocess is None:
            raise self._unfitted()
        return self._preprocess

    def _fitted(self) -> FeatureExtractor:
        if self.extractor is None:
            raise self._unfitted()
        return self.extractor

    def _unfitted(self) -> NotFitted:
        return NotFitted(
            f"this {type(self).__name__} is not fitted yet: call .fit(good_images) first, "
            f"or load a model with pickglass.load('MODEL.safetensors')"
        )

    @property
    def wanted_validation(self) -> float:
        """Share of train to hold back for validation."""
        scaled = self.tiling is not None and self.tiling.normalise == "position"
        own = self.validate_share if self.uses_validation else 0.0
        return max(own, 0.1) if scaled or self.adapting is not None else own

    def level_shapes(self) -> list[Shape]:
        """(C, h, w) of each level that the head reads of one position."""
        seen = self.tiling.tile if self.tiling else self.input_size
        if "features" not in self.reads:
            return [(3, *seen)]
        return self.backbone_shapes() if self.fusion is None else self.fusion.shapes

    def backbone_shapes(self) -> list[Shape]:
        """(C, h, w) of each scale and layer of one position, before any fusion."""
        return self._fitted().shapes(self.tiling.tile if self.tiling else self.input_size)

    def level_names(self) -> list[str]:
        """Of the levels that the head reads, for messages; layers fused into one are ``layer1+layer2``."""
        layers = layer_list(self.layers)
        names = [name if scale == 1 else f"{name} at {scale:g}" for scale in self.scales for name in layers]
        return names if self.fusing is None or self.fusing.levels == "all" else ["+".join(names)]

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the input, at each of which the backbone runs."""
        return (1.0,) if self.fusing is None else self.fusing.scales

    # -- positions that are learned in groups --------------------------------------------------------------------------

    @property
    def trains(self) -> bool:
        """Whether the method trains over many epochs rather than seeing each image once."""
        return type(self).phases is not Method.phases

    def clone(self: Self) -> Self:
        """An unfitted detector with the same settings that reads the same backbone."""
        own = self.configured(self.configuration())
        own.extractor, own._preprocess, own.fusion = self.extractor, self._preprocess, self.fusion
        return own

    def head_state(self) -> dict[str, Tensor]:
        """The head's tensors, each with the position axis in front."""
        apart = ("extractor.", "tiles.", "fusion.", "roi")
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(apart)}

    def predicted_mb(self, run: FitContext) -> float:
        """What the learned tensors of these positions will take in the model file, told before the first image."""
        own = self.clone()
        own.build(run.shapes, 1, run.seed)
        return run.positions * sum(t.numel() * t.element_size() for t in own.head_state().values()) / 1e6

    def stacked(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """One tensor of the positions of several groups."""
        return torch.cat(list(parts))

    def load_head_state(self, learned: Mapping[str, Tensor]) -> None:
        """Fill the head with such tensors."""
        for name, tensor in learned.items():
            if not assign(self, name, tensor):
                raise RuntimeError(f"{type(self).__name__} has no place for {name!r}")
