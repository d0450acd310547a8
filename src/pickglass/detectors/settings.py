"""The settings of a detector, and the sizes and shapes that follow from them.

A detector is made from plain settings and can be made again from them: from its constructor, from a preset, from the
header of a model file, or with a change such as tiles. Nothing is computed here before ``fit``.

Letters: B images, P positions, C channels, h x w cells of a layer, H x W pixels of the network's input.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn
from typing_extensions import Unpack

from pickglass.calibration import Calibration, Change
from pickglass.calibration.drift import Sample
from pickglass.data import Preprocess, parse_size
from pickglass.detectors.naming import Namer
from pickglass.detectors.renamed_settings import with_new_names
from pickglass.detectors.tiling import TileOptions, Tiles, TileSettings
from pickglass.errors import InputError, NotFitted, UnknownName
from pickglass.features.backbones.registry import USUAL_STRIDES, as_backbone
from pickglass.features.extractor import FeatureExtractor, layer_list, usual_layers
from pickglass.nn.maps import cells_of, smooth
from pickglass.runtime.compute import Shape
from pickglass.runtime.provenance import Provenance

if TYPE_CHECKING:
    from pickglass.features.research.adaptation import AdaptationOptions, AdaptationSettings
    from pickglass.features.research.fusion import Fusion, FusionKind, FusionOptions, FusionSettings

__all__ = ["Configured", "settings_digest"]

Self = TypeVar("Self", bound="Configured")


_MOST_SMOOTHING = 1000
_TOP_SHARE = 0.002  # on painted defects shares up to 0.01 differ little, see docs/evidence.md


class Configured(nn.Module):
    """A detector as its settings describe it; :class:`pickglass.Detector` adds fitting and judging.

    Args:
        backbone: name of the frozen network; see :func:`pickglass.backbone_names`. Also a torch module of your own, or
            :class:`pickglass.OwnBackbone` around one, with its normalisation.
        layers: the layers to read, finest first, a sequence or ``"layer1+layer2"``; see :func:`pickglass.layer_names`.
            None: those that the backbone states for the strides of the method, see
            :func:`pickglass.features.extractor.usual_layers`.
        weights: the backbone's weights: ``"default"``, ``"random"`` or a file.
        size: how an image comes to the network's input, in pixels: ``"area:512"`` keeps the aspect on about that
            area, 256 or (height, width) squeezes it, ``"letterbox:256"``, ``"shorter:256"`` and ``"native"`` scale each
            image as a whole; see ``pickglass.data.images.geometry``.
        smoothing: sigma of the Gaussian over the map in input pixels; None is half the finest stride, 0 is none.
        top_share: the image score is the mean of the map's highest values, over this share of what counts of it; 0: the
            method's own score, as in its paper. None: 0.002, or the method's own where another setting asks for it
            (``top_k``, ``reweight``, ``image_score``).
        place_scale: standardise each cell of the map by the mean and spread of good images there, for parts that
            always lie alike. None: where the place explains at least 0.3 of the variance of good maps, and at least 10
            of them are known; never with the method's own score.
        level_shift: take out of the image score how far scores go along with the level of the whole map where images
            show one good part in several lights (groups); the map stays. A level beyond those of nine tenths of the
            good images counts as the nearest of theirs. None: where the level explains at least 0.05 of the variance
            of the scores of one part, at least 10 of which are shown several times, and images were judged as if left
            out (PatchCore, PaDiM, Subspace); never with the method's own score.

    Attributes:
        method: the name by which the command line and model files know the method.
        reads: what a method wants of a batch: ``"features"``, ``"images"`` or both.
        strides: pixels of the input a cell, of the layers to read where none is named, finest first.
        validate_share: share of the training images that the method wants for validation.
        fewest_images: with fewer images to fit the method learns nothing that means anything.
        presets: settings by name, for :meth:`from_preset`.
        extractor: the frozen backbone; None before the fit.
        roi: (H, W) bool on the canvas, the region of interest of images that have none of their own; None: everything.
        tiling: how the canvas is cut into tiles; None: it is read whole.
        tiles: the tiles of the canvas; None before the fit and without tiling.
        own_scale: size of the image at which it is read beside other methods, 1 as it is.
        fusing, fusion: how layers are fused, and what fuses them; None: they are read as they are.
        adapting: how the backbone is fine-tuned before the fit; None: it is left as it is.
        calibration: the thresholds; None before the fit.
        reference: the good images that ``drift`` compares new ones with; None unless a
            :class:`pickglass.DriftSample` watched the fit.
        namer: names the types of defects; None until ``pickglass label`` taught it.
        provenance: where the model came from.
        history: the fit and what changed the thresholds or the names of defects since then, oldest first; it begins
            later in models of an older pickglass.
    """

    method: ClassVar[str]
    reads: tuple[str, ...] = ("features",)
    strides: ClassVar[tuple[int, ...]] = USUAL_STRIDES
    validate_share: float = 0.0
    fewest_images: int = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

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
        super().__init__()
        self.backbone = as_backbone(backbone)
        self.layers = layers
        self.weights = weights
        self.size = size
        self.smoothing = smoothing
        self.top_share = top_share
        self.place_scale = place_scale
        self.level_shift = level_shift
        self.register_buffer("roi", None)
        self.register_buffer("place_gain", None)  # (h, w) of the joined map
        self.register_buffer("place_shift", None)
        self.register_buffer("level_line", None)  # (4,) slope, usual, lowest and highest level
        self.roi: Tensor | None
        self.place_gain: Tensor | None
        self.place_shift: Tensor | None
        self.level_line: Tensor | None
        self.extractor: FeatureExtractor | None = None
        self.tiling: TileSettings | None = None
        self.tiles: Tiles | None = None
        self.adapting: AdaptationSettings | None = None
        self.own_scale = 1.0
        self.fusing: FusionSettings | None = None
        self.fusion: Fusion | None = None
        self.calibration: Calibration | None = None
        self.reference: Sample | None = None
        self.namer: Namer | None = None
        self.provenance = Provenance()
        self.history: tuple[Change, ...] = ()
        self._file_id: tuple[str, str] | None = None  # id that the file gave, digest of the settings at that time
        self._preprocess: Preprocess | None = None

    # -- making a detector from settings -------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls: type[Self], name: str, **changes: Any) -> Self:
        """Make a detector with the settings of a preset, e.g. ``PatchCore.from_preset("paper", size=320)``.

        Raises:
            UnknownName: the method has no preset of this name.
        """
        if name not in cls.presets:
            raise UnknownName(f"preset of {cls.__name__}", name, cls.presets)
        return cls.configured(cls.preset_with(name, changes))

    @classmethod
    def preset_with(cls, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a preset with changes; its layers are those of its backbone, and go with that."""
        settings = {**cls.presets[name], **changes}
        if "backbone" in changes and "layers" not in changes:
            settings.pop("layers", None)
        return settings

    @classmethod
    def configured(cls: type[Self], settings: Mapping[str, Any]) -> Self:
        """Make a detector from a dict of settings, as :meth:`configuration` returns it.

        Raises:
            UnknownName: a setting that the method does not have.
        """
        settings = with_new_names(cls.__init__, settings)
        parameters = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        arguments = {name: value for name, value in settings.items() if name not in ("tiling", "fusion", "adaptation")}
        for name in arguments:
            if name not in parameters:
                raise UnknownName(f"setting of {cls.__name__}", name, parameters)
        detector = cls(**arguments)
        if settings.get("tiling") is not None:
            detector.tiling = TileSettings.from_json(settings["tiling"])
        if settings.get("fusion") is not None:
            from pickglass.features.research.fusion import FusionSettings

            detector.fusing = FusionSettings.from_json(settings["fusion"])
        if settings.get("adaptation") is not None:
            from pickglass.features.research.adaptation import AdaptationSettings

            detector.adapting = AdaptationSettings.from_json(settings["adaptation"])
        return detector

    def configuration(self) -> dict[str, Any]:
        """Return all settings as the constructor takes them, with ``tiling``, ``fusion``, ``adaptation`` if set.

        Once fitted they name the layers that are read, also where nobody named any.
        """
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        settings = {name: getattr(self, name) for name in names}
        if self.extractor is not None and self.extractor.backbone == self.backbone:
            settings["layers"] = self.layers or self.extractor.layers
        extras = {"tiling": self.tiling, "fusion": self.fusing, "adaptation": self.adapting}
        return settings | {name: extra.to_json() for name, extra in extras.items() if extra is not None}

    def settings_digest(self) -> str:
        """Return a short digest of all settings, by which a change after the fit is noticed."""
        return settings_digest(self.configuration())

    def tiled(
        self: Self,
        size: int | str | tuple[int, int] | None = None,
        tile: int | tuple[int, int] = 256,
        stride: int | tuple[int, int] | None = None,
        **settings: Unpack[TileOptions],
    ) -> Self:
        """Make an unfitted detector with these settings that looks at tiles, with a method of its own per position.

        Args:
            size: size of the canvas that is cut into tiles, e.g. 512 or ``"native"``; None: the detector's size.
            tile: side, or (height, width), of a tile in pixels; what the network sees at once.
            stride: pixels from one tile to the next; None: half a tile.
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
        """Make an unfitted detector with these settings whose method reads the layers fused into one.

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
        from pickglass.features.research.fusion import FusionSettings

        fusion = FusionSettings.from_json({"kind": kind, **settings}).to_json()
        return self.configured({**self.configuration(), "fusion": fusion})

    def adapted(self: Self, stages: Sequence[str], **settings: Unpack[AdaptationOptions]) -> Self:
        """Make an unfitted detector with these settings whose backbone is first fine-tuned on the good images.

        Painted defects are the negatives, and others judge it on images held back for validation: the network stays as
        it was unless it got better. What happened is in ``provenance.adaptation``.

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
        from pickglass.features.research.adaptation import AdaptationSettings

        adaptation = AdaptationSettings(layer_list(stages), **settings).to_json()
        return self.configured({**self.configuration(), "adaptation": adaptation})

    @property
    def own_score(self) -> bool:
        """Whether a setting asks for an image score that the share of the map cannot give."""
        return self.tiling is not None and self.tiling.image_score != "max"

    @property
    def scored_share(self) -> float:
        """The share of the map whose highest values make the image score; 0: the score is the method's own.

        Raises:
            InputError: it is no share, or another setting asks for another score.
        """
        if self.top_share is None:
            return 0.0 if self.own_score else _TOP_SHARE
        if not 0 <= self.top_share <= 1:
            raise InputError(f"top_share={self.top_share!r}: expected a share of the map such as 0.002, or 0")
        if self.top_share and self.own_score:
            raise InputError(
                f"top_share={self.top_share:g} and another setting (top_k, reweight or image_score) each ask for an "
                "image score of their own: leave top_share out, or that setting"
            )
        return self.top_share

    def check_smoothing(self) -> None:
        """Check the setting ``smoothing``.

        Raises:
            InputError: it is negative, or so large that nothing of a map would be left.
        """
        if self.smoothing is not None and not 0 <= self.smoothing <= _MOST_SMOOTHING:
            raise InputError(
                f"smoothing={self.smoothing!r}: expected a standard deviation in pixels of the input, from 0 to "
                f"{_MOST_SMOOTHING}, or None"
            )

    @property
    def places_matter(self) -> bool | None:
        """Whether places are scaled; None: the good images decide.

        Raises:
            InputError: asked for together with the method's own score, which knows no places.
        """
        return self._of_the_map("place_scale")

    @property
    def level_matters(self) -> bool | None:
        """Whether the level of the whole map is taken out of the score; None: the good images decide.

        Raises:
            InputError: asked for together with the method's own score, which knows no level.
        """
        return self._of_the_map("level_shift")

    def _of_the_map(self, name: str) -> bool | None:
        """Return a setting that changes the map, and by it the image score."""
        asked: bool | None = getattr(self, name)
        if self.scored_share:
            return asked
        if asked:
            raise InputError(
                f"{name}=True compares with good maps, and the image score is not taken from the map here: leave "
                f"{name} out, or what asks for the method's own score (top_share=0, top_k, reweight, image_score)"
            )
        return False

    @property
    def falls_with_images(self) -> bool:
        """Whether scores never rise with more images to learn from."""
        return False

    @property
    def scores_stay(self) -> bool:
        """Whether parts get no higher and much the same scores once further images are learned."""
        return False

    @property
    def title(self) -> str:
        """The name of the method in headings is that of its class, e.g. ``PatchCore``."""
        return type(self).__name__

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.configuration().items())
        return f"{type(self).__name__}({settings})"

    # -- sizes and shapes ----------------------------------------------------------------------------------------------

    @property
    def input_size(self) -> tuple[int, int]:
        """The size (H, W) of the canvas that images are fitted on, the network's input.

        Raises:
            NotFitted: the training images have a say in it, and there were none yet.
        """
        if self._preprocess is not None:
            return self._preprocess.size
        geometry, size, side = parse_size(self.size)
        if geometry == "area" or (size is None and side is None):
            raise NotFitted(f"size={self.size!r} is settled by the training images: call .fit(good_images) first")
        return size or (side, side)  # type: ignore[return-value]

    @property
    def seen_size(self) -> tuple[int, int]:
        """The size (H, W) of what the network sees at once: of a tile, or of the whole canvas."""
        return self.tiling.tile if self.tiling else self.input_size

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the network's input.

        Raises:
            NotFitted: the detector was neither fitted nor loaded.
        """
        if self._preprocess is None:
            raise self.unfitted()
        return self._preprocess

    @property
    def network(self) -> FeatureExtractor:
        """The frozen backbone.

        Raises:
            NotFitted: the detector was neither fitted nor loaded.
        """
        if self.extractor is None:
            raise self.unfitted()
        return self.extractor

    def unfitted(self) -> NotFitted:
        """Return the error that an unfitted detector raises when it is used; it names the remedy."""
        return NotFitted(
            f"this {type(self).__name__} is not fitted yet: call .fit(good_images) first, "
            f"or load a model with pickglass.load('MODEL.safetensors')"
        )

    @property
    def uses_validation(self) -> bool:
        """Whether the method, with its settings, learns anything from validation images."""
        return self.validate_share > 0

    @property
    def wanted_validation(self) -> float:
        """The share of the training images that is held back for validation unless the user says otherwise."""
        scaled = self.tiling is not None and self.tiling.normalise == "position"
        own = self.validate_share if self.uses_validation else 0.0
        return max(own, 0.1) if scaled or self.adapting is not None else own

    @property
    def read_layers(self) -> tuple[str, ...]:
        """The names of the layers that are read, also where the setting names none."""
        if self.layers is not None:
            return layer_list(self.layers)
        known = self.extractor is not None and self.extractor.backbone == self.backbone
        return self.network.layers if known else usual_layers(self.backbone, self.strides)

    @property
    def scales(self) -> tuple[float, ...]:
        """The factors by which the input is scaled, at each of which the backbone runs."""
        return (self.own_scale,) if self.fusing is None else self.fusing.scales

    def level_shapes(self) -> list[Shape]:
        """Return (C, h, w) of each level that the method reads of one position."""
        if "features" not in self.reads:
            return [(3, *self.seen_size)]
        return self.backbone_shapes() if self.fusion is None else self.fusion.shapes

    def backbone_shapes(self) -> list[Shape]:
        """Return (C, h, w) of each scale and layer of one position, before any fusion."""
        return self.network.shapes(self.seen_size)

    def level_names(self) -> list[str]:
        """Return the names of the levels that the method reads; layers fused into one are ``layer1+layer2``."""
        layers = self.read_layers
        names = [name if scale == 1 else f"{name} at {scale:g}" for scale in self.scales for name in layers]
        return names if self.fusing is None or self.fusing.levels == "all" else ["+".join(names)]

    def smoothed(self, maps: Tensor, keep: Tensor | None = None) -> Tensor:
        """Smooth maps (B, P, h, w) by the Gaussian of the setting ``smoothing``.

        Args:
            maps: (B, P, h, w).
            keep: (B, P, h, w) bool; a cell where it is False lends nothing to its neighbours. None: all cells count.

        The setting counts pixels of the image as the method reads it.
        """
        stride = [side / cells for side, cells in zip(self.seen_size, cells_of(maps), strict=True)]
        sigma = min(stride) / 2 if self.smoothing is None else self.smoothing / self.own_scale
        return smooth(maps, [sigma / s for s in stride], keep)


def settings_digest(configuration: Mapping[str, Any]) -> str:
    """Return a short digest of a detector's settings; lists and tuples count as the same."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]
