"""Several methods, one pass: each judges the same features, and what they say is brought to one scale and averaged.

The backbone runs once an image; the cache of a training, the tiles, the region of interest, the thresholds, the model
file and the exported graph are one. Each part learns and judges as it does alone: its image score, and what is usual at
each place and each level of its map (``place_scale``, ``level_shift``), are its own. Then

    z_k = (map_k - a_k) / b_k,    map = sum over k of w_k z_k,    score = sum over k of v_k (score_k - a_k) / b_k

where a_k is the median of part k's good maps, and a_k + b_k the level that their highest 0.2 % exceed, all of them
pooled: what is usual becomes 0, and the highest that good parts show 1, whatever a method's unit is. Those maps are of
images that the part did not learn, or was judged without.

The weights w of the maps and v of the image scores may differ, for the method that outlines best need not rank best. By
default all are equal: weights that were chosen on painted defects did worse or no better on real ones, and so did
those chosen on ten known defects (``docs/combined.md``, ``bench/combined.py``).

Averages of detectors are common practice; the linear scale by quantiles of good maps is that of EfficientAD (Batzner et
al., WACV 2024, section 3.4), with the tail at the share of the map that makes the image score.

Letters: B images, P positions, K parts, h x w cells of the finest map, N images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pickglass.data import Table
from pickglass.detectors.detector import Detector, judged_by_each
from pickglass.detectors.method import FitContext, Form, Judged, Method
from pickglass.detectors.plugins import find_method
from pickglass.errors import DataError, InputError, UnknownName, shortened
from pickglass.features.batch import Batch
from pickglass.features.extractor import layer_list
from pickglass.methods.fastflow import FastFlow
from pickglass.methods.patchcore import PatchCore
from pickglass.nn.maps import cells_of, to_grid
from pickglass.nn.training.loop import Phase
from pickglass.runtime.compute import Shape

__all__ = ["Combined"]

Part = str | Mapping[str, Any]
Answer = tuple[Tensor, Tensor, Tensor | None]

_SHARED = ("backbone", "weights", "size")  # one of each for all parts
_HANDED = ("smoothing", "top_share", "place_scale", "level_shift")  # None: as each part has it
_TAIL = 0.998  # quantile of good maps that becomes 1
_CELLS = 1_000_000  # of good maps, of which the quantiles are


class Combined(Detector):
    """Several methods that share one backbone pass.

    Args:
        parts: the methods: their names, ``"patchcore+padim"``, or a sequence of names and of mappings with ``method``
            and its own settings, ``[{"method": "padim", "dims": 50}, "patchcore"]``. Backbone, weights and size are
            those of the combination. With ``scale`` a part reads the image smaller or larger, 0.5 at half its sides:
            the backbone then runs once at each scale.
        backbone, weights, size: see :class:`pickglass.Detector`.
        layers: the layers that all parts read. None: each reads its own, and the backbone computes those of all.
        smoothing, top_share, place_scale, level_shift: as there, for all parts; None: as each part has it.
        map_weights: the weight of each part's map, none below 0; None: all the same.
        score_weights: the weight of each part's image score, likewise.

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.Combined("patchcore+padim", size=64).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (16, 16)
    """

    method = "combined"
    presets: ClassVar = {
        # a bank of fine cells, and a flow of a few minutes, which reads the image at half its sides
        "quick": {
            "size": "area:512",
            "parts": ("patchcore", {"method": "fastflow", "scale": 0.5, **FastFlow.presets["quick"]}),
        },
    }

    def __init__(
        self,
        parts: str | Sequence[Part] = "patchcore+fastflow",
        *,
        backbone: str | nn.Module = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:256",
        smoothing: float | None = None,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        map_weights: Sequence[float] | None = None,
        score_weights: Sequence[float] | None = None,
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
        self.parts = parts
        self.map_weights = map_weights
        self.score_weights = score_weights
        self.heads = nn.ModuleList(self._made(part) for part in _described(parts))
        self.register_buffer("scale", None)  # (K, 2) a and b of each part
        self.scale: Tensor | None
        self._learn_all: tuple[str, ...] = ()  # of the fit that is under way
        own = list(self.components.values())
        self.reads = tuple(dict.fromkeys(name for part in own for name in part.reads))
        self.trains = any(part.trains for part in own)
        self.validates = any(part.validates for part in own)
        self.leaves_out_known = all(part.leaves_out_known for part in own)
        self.fewest_images = max(part.fewest_images for part in own)
        self.validate_share = max(part.validate_share for part in own)

    @classmethod
    def of(cls, names: Sequence[str], preset: str | None = None, settings: Mapping[str, Any] | None = None) -> Combined:
        """Make a combination of methods by their names.

        Args:
            names: the methods.
            preset: a preset that each of them has, e.g. ``"quick"``; the first that names a size, backbone or weights
                does so for all.
            settings: changes to the combination and, as ``METHOD.SETTING``, to its parts, e.g. ``{"padim.dims": 50}``;
                they win over the preset.

        Raises:
            UnknownName: a method, preset or setting that does not exist.
        """
        shared: dict[str, Any] = {}
        own = dict(settings or {})
        parts = []
        for name in names:
            known = find_method(name).presets
            if preset is not None and preset not in known:
                raise UnknownName(f"preset of {name}", preset, known)
            part = dict(known[preset]) if preset is not None else {}
            shared = {key: part.pop(key) for key in _SHARED if key in part} | shared
            part |= {key.removeprefix(f"{name}."): value for key, value in own.items() if key.startswith(f"{name}.")}
            parts.append({"method": name, **part})
        rest = {key: value for key, value in own.items() if key.partition(".")[0] not in names}
        return cls.configured({**shared, **rest, "parts": tuple(parts)})

    @classmethod
    def of_levels(cls, detector: Detector) -> Combined:
        """Make a combination in which a detector's method learns and judges each layer by itself.

        PatchCore then has a bank for each layer, and the maps are averaged on one scale. SuperAD (Zhang et al. 2025,
        arXiv 2505.19750) averages distances to the banks of several blocks as they are.

        Args:
            detector: gives the settings; it is not fitted.

        Raises:
            InputError: it reads one layer, no layers, or several methods or fused layers.
        """
        settings = detector.configuration()
        if "features" not in detector.reads or isinstance(detector, Combined) or "fusion" in settings:
            raise InputError(
                f"{detector.title} cannot be separated into layers: expected one method that reads the layers of a "
                "backbone as they are, e.g. patchcore"
            )
        layers = detector.read_layers
        if len(layers) < 2:
            raise InputError(f"{detector.title} reads one layer, {layers[0]}: name two or more to separate them")
        whole = {name: settings.pop(name) for name in (*_SHARED, "tiling", "adaptation") if name in settings}
        return cls.configured(
            {**whole, "parts": [{"method": detector.method, **settings, "layers": [layer]} for layer in layers]}
        )

    def _made(self, settings: Mapping[str, Any]) -> Detector:
        """Make one of the methods as it is to be beside the others."""
        own = dict(settings)
        cls = find_method(own.pop("method"))
        if issubclass(cls, Combined):
            raise InputError(f"parts: {settings!r} is a combination itself: name its methods beside the others")
        scale = own.pop("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1 / 16 <= scale <= 4:
            raise InputError(f"parts: scale={shortened(scale)} of {cls.method}: expected a number from 1/16 to 4")
        if scale != 1 and "images" in cls.reads:
            raise InputError(
                f"parts: {cls.method} reads the image itself beside the features, so it has no scale of its own: "
                "leave it out, or change the size of the combination"
            )
        for name in (*_SHARED, "tiling", "fusion", "adaptation"):
            if name in own:
                raise InputError(
                    f"parts: {cls.method} has {name}={own[name]!r} of its own, but all parts share one: give it to "
                    "the combination"
                )
        part = cls.configured(own | self._for_all())
        part.own_scale = float(scale)
        return part

    def _for_all(self) -> dict[str, Any]:
        """Return the settings that all parts have alike."""
        settings = {name: getattr(self, name) for name in _SHARED}
        settings |= {name: getattr(self, name) for name in _HANDED if getattr(self, name) is not None}
        return settings | ({"layers": self.layers} if self.layers else {})

    def configuration(self) -> dict[str, Any]:
        """Return all settings; once fitted, each part names the layers that it reads, also where nobody named any."""
        settings = super().configuration()
        settings["layers"] = self.layers
        if self.extractor is not None and not self.layers:
            own = zip(_described(self.parts), self.components.values(), strict=True)
            settings["parts"] = [{**described, "layers": list(part.read_layers)} for described, part in own]
        return settings

    def __getstate__(self) -> dict[str, Any]:
        """Copies get parts of their own, whose tensors can be replaced."""
        state = super().__getstate__()
        state["_modules"]["heads"] = nn.ModuleList(copy(part) for part in self.heads)
        return state

    @property
    def components(self) -> Mapping[str, Detector]:
        """The parts by the name of their method, numbered from the second of the same on."""
        found: dict[str, Detector] = {}
        for part in self.heads:
            if not isinstance(part, Detector):
                raise RuntimeError("a part is no detector")
            same = sum(type(other) is type(part) for other in found.values())
            found[part.method if not same else f"{part.method} {same + 1}"] = part
        return found

    @property
    def title(self) -> str:
        """The names of the methods, e.g. ``PatchCore + PaDiM``."""
        return " + ".join(part.title for part in self.components.values())

    @property
    def read_layers(self) -> tuple[str, ...]:
        """The layers that the backbone computes: those that any part reads."""
        if self.layers:
            return layer_list(self.layers)
        several = sorted((part.read_layers for part in self.components.values()), key=len, reverse=True)
        return tuple(dict.fromkeys(itertools.chain(*several)))

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of all parts; fused layers have those of the fusion."""
        own = {part.own_scale for part in self.components.values()}
        return super().scales if self.fusing is not None else tuple(sorted(own, reverse=True))

    @property
    def uses_validation(self) -> bool:
        """Whether a part learns anything from validation images."""
        return any(part.uses_validation for part in self.components.values())

    @property
    def quarter_turns(self) -> tuple[int, ...]:
        """The quarter turns in which each image is learned."""
        return next(iter(self.components.values())).quarter_turns

    @property
    def brightnesses(self) -> tuple[float, ...]:
        """The factors of brightness in which each image is learned."""
        return next(iter(self.components.values())).brightnesses

    @property
    def scores_stay(self) -> bool:
        """Whether a threshold stays of use in an update: where that of each part does."""
        return all(part.scores_stay for part in self.components.values())

    def work_units(self, n_images: int) -> float:
        """Each part trains on what the backbone computed once."""
        return sum(part.work_units(n_images) for part in self.components.values())

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take the quick settings of the two default methods."""
        parts = tuple({"method": one.method, **one.quick_settings(n_images, cells)} for one in (PatchCore, FastFlow))
        return {"parts": parts}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Lay out each part, and let it read of the shared features what it needs."""
        self._check()
        layers = self.read_layers
        for part in self.components.values():
            part.layers = part.read_layers  # before it gets the extractor of all, which reads those of all
            # extractor and tiles are no modules of the part: their tensors are held, moved and saved once
            part.__dict__.update(self._for_all(), extractor=self.extractor, tiles=self.tiles)
            part._preprocess = self._preprocess
            part.tiling, part.fusing = self.tiling, self.fusing
            whole = self.fusing is not None or "features" not in self.reads
            first = self.scales.index(part.own_scale) * len(layers)  # levels come scale after scale
            part.own_levels = None if whole else tuple(first + layers.index(name) for name in part.read_layers)
            part.build(self._shapes_of(part, shapes), positions, seed)

    @staticmethod
    def learns(name: str) -> bool:
        """Say of a tensor of a part what the part itself would say."""
        return Detector.learns(name.split(".", 2)[2] if name.startswith("heads.") else name)

    def learned_forms(self, shapes: list[Shape], positions: int) -> dict[str, Form]:
        """Return the forms of each part's tensors, and of the scale of all."""
        found = {"scale": Form((len(self.heads), 2))}
        for i, part in enumerate(self.components.values()):
            own = part.learned_forms(self._shapes_of(part, shapes), positions)
            found |= {f"heads.{i}.{name}": form for name, form in own.items()}
        return found

    def check_learned(self, shapes: list[Shape]) -> None:
        """Let each part check its own."""
        for part in self.components.values():
            part.check_learned(self._shapes_of(part, shapes))

    def _check(self) -> None:
        own = list(self.components.values())
        if self.fusing is not None and any(part.own_scale != 1 for part in own):
            raise InputError("layers are fused for all parts alike: give the scales to the fusion, and none to a part")
        if self.fusing is not None and not self.layers:
            raise InputError("layers are fused for all parts alike: give those that all of them read (layers)")
        if self.tiling is not None and self.tiling.normalise == "position":
            raise InputError(
                "tiling.normalise='position' divides all parts by one number, but each has a unit of its own: use "
                "normalise='joined'; the parts are brought to one scale anyway"
            )
        turns = {part.quarter_turns for part in own}
        if len(turns) > 1 or (self.trains and turns != {(0,)}):
            raise InputError(
                f"rotations: the parts see images together, but in the turns {sorted(turns)}: give all parts the same, "
                "or rotations=1 where one of them trains"
            )
        factors = {part.brightnesses for part in own}
        if len(factors) > 1 or (self.trains and factors != {(1.0,)}):
            raise InputError(
                f"brightness: the parts see images together, but in the factors {sorted(factors)}: give all parts the "
                "same, or none where one of them trains"
            )
        for name in ("map_weights", "score_weights"):
            given = getattr(self, name)
            if given is not None and not _are_weights(given, len(own)):
                raise InputError(
                    f"{name}={shortened(given)}: expected {len(own)} numbers, one for each of "
                    f"{', '.join(self.components)}, none below 0 and not all 0"
                )

    @staticmethod
    def _shapes_of(part: Detector, shapes: list[Shape]) -> list[Shape]:
        return shapes if part.own_levels is None else [shapes[i] for i in part.own_levels]

    def _contexts(self, context: FitContext) -> Iterator[tuple[Detector, FitContext]]:
        """Give each part a context with its own levels and its share of the memory."""
        for name, part in self.components.items():
            shapes = self._shapes_of(part, context.shapes)
            own = replace(context, shapes=shapes, memory_gb=context.memory_gb / len(self.heads))
            if name in context.learn_all:
                own = replace(own, n_images=len(context.units_of_all), units=context.units_of_all)
            yield part, own

    def begin_fit(self, context: FitContext) -> None:
        """Let each part allocate."""
        self._learn_all = context.learn_all
        for part, own in self._contexts(context):
            part.begin_fit(own)

    def begin_update(self, context: FitContext) -> None:
        """Let each part get ready; the scale and the weights stay.

        Raises:
            InputError: some parts train and others count, so they would have to be shown different images; or a part
                cannot be updated.
        """
        trained = {part.trains for part in self.components.values()}
        if len(trained) > 1:
            raise InputError(
                f"{' and '.join(self.components)} cannot be updated together: a method that trains is shown old images "
                "again, and one that counts must not be. Fit anew on the old and the new images"
            )
        for part, own in self._contexts(context):
            part.begin_update(own)

    def observe(self, batch: Batch) -> None:
        """Show each part the batch."""
        for part in self.components.values():
            part.observe(part.own(batch))

    def observe_further(self, batch: Batch) -> None:
        """Show the images for validation to the parts that learn them, too."""
        for name in self._learn_all:
            part = self.components[name]
            part.observe(part.own(batch))

    @property
    def learns_defects(self) -> bool:
        """Whether a part learns from known defects."""
        return any(part.learns_defects for part in self.components.values())

    def observe_defects(self, batch: Batch, truth: Tensor | None) -> None:
        """Show the batch to the parts that learn from known defects."""
        for part in self.components.values():
            part.observe_defects(part.own(batch), truth)

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return the phases of all parts, one part after the other."""
        return [self._phase(name, part, phase) for name, part in self.components.items() for phase in part.phases()]

    @staticmethod
    def _phase(name: str, part: Detector, phase: Phase[Batch]) -> Phase[Batch]:
        loss, measure = phase.loss, phase.measure
        return replace(
            phase,
            name=f"{phase.name} of {name}",
            loss=lambda batch: loss(part.own(batch)),
            measure=None if measure is None else lambda batch: measure(part.own(batch)),
        )

    def observe_validation(self, batch: Batch) -> None:
        """Show the batch to the parts that want to see it."""
        for part in self.components.values():
            if part.validates:
                part.observe_validation(part.own(batch))

    def end_fit(self) -> dict[str, Any]:
        """Let each part finish."""
        return {name: part.end_fit() for name, part in self.components.items()}

    def predicted_mb(self, context: FitContext) -> float:
        """Predict the megabytes of all parts."""
        return sum(part.predicted_mb(own) for part, own in self._contexts(context))

    def head_state(self) -> dict[str, Tensor]:
        """Return what the parts have learned."""
        return {
            f"heads.{i}.{name}": tensor
            for i, part in enumerate(self.components.values())
            for name, tensor in part.head_state().items()
        }

    def stacked(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """Join a tensor of a part as that part does."""
        _, number, own = name.split(".", 2)
        return list(self.components.values())[int(number)].stacked(own, parts)

    # -- one scale -----------------------------------------------------------------------------------------------------

    def learn_mixing(
        self,
        known: Mapping[Method, Judged],
        judge: Callable[[Sequence[Method], Table], Mapping[Method, Judged]],
        rows: Table,
    ) -> dict[str, Any]:
        """Bring the parts to one scale by good maps.

        Raises:
            DataError: good maps of a part are all alike, or a part has seen no good image but those that it learned.
        """
        own = self.components
        missing = [part for part in own.values() if part not in known]
        if missing and not len(rows):
            raise DataError(
                f"{' and '.join(part.title for part in missing)} learned all good images, and on those a map does not "
                "say how high good parts come: let calibrate or validate hold some back, or give more images"
            )
        judged = {**known, **(judge(missing, rows) if missing else {})}
        scale = [_scale(name, judged[part]) for name, part in own.items()]
        self.scale = torch.tensor(scale, device=self.network.mean.device)
        return {"scale": {name: {"usual": usual, "tail": tail} for name, (usual, tail) in zip(own, scale, strict=True)}}

    def mixed(self, judged: Sequence[Judged]) -> Judged:
        """Mix what the parts say of the same images."""
        answers = [(one.scores, one.maps, one.inside) for one in judged]
        scores, maps, inside = self._mixed(answers)
        counting = judged[0].inside if inside is None else inside
        return Judged(judged[0].rows, judged[0].units, scores, maps, counting)

    # -- judging -------------------------------------------------------------------------------------------------------

    def judged(self, batch: Batch, units: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mix what each part says of the whole images, compared with what is usual for it."""
        return self._mixed([part.judged(batch, units) for part in self.components.values()])

    @torch.no_grad()
    def judged_in_parts(self, parts: Iterable[Batch]) -> Answer:
        """Mix what each part says of one image of very many tiles."""
        return self._mixed(judged_by_each(list(self.components.values()), parts))

    def _mixed(self, answers: Sequence[Answer]) -> Answer:
        scores, maps, inside = self._standardised(answers)  # (B, K), (B, K, h, w)
        of_maps, of_scores = (self._shares(w).to(maps) for w in (self.map_weights, self.score_weights))  # (K,) each
        whole = (maps * of_maps[:, None, None]).sum(1)  # (B, h, w)
        if inside is not None:
            lowest = whole.masked_fill(~inside, torch.inf).flatten(1).min(1).values[:, None, None]
            whole = torch.where(inside, whole, lowest)
        return (scores * of_scores).sum(1), whole, inside

    def _standardised(self, answers: Sequence[Answer]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring scores and maps of the parts to one scale, and the maps to the finest grid: (B, K), (B, K, h, w)."""
        grids = [cells_of(maps) for _, maps, _ in answers]
        finest = max(range(len(grids)), key=lambda k: math.prod(grids[k]))
        if self.scale is None:
            raise self.unfitted()
        usual, tail = self.scale.to(answers[0][0].device).unbind(1)  # (K,) each
        scores = (torch.stack([s for s, _, _ in answers], dim=1) - usual) / tail
        maps = torch.cat([to_grid(m[:, None], grids[finest]) for _, m, _ in answers], dim=1)  # (B, K, h, w)
        return scores, (maps - usual[:, None, None]) / tail[:, None, None], answers[finest][2]

    def _shares(self, weights: Sequence[float] | None) -> Tensor:
        """Return weights that add up to one, (K,)."""
        given = torch.tensor([1.0] * len(self.heads) if weights is None else [float(w) for w in weights])
        return given / given.sum()

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mix scores (B, P) and maps (B, P, h, w) position by position, before the tiles are joined.

        Images are judged by :meth:`judged`, which joins the tiles of each part first, so that what is usual at each
        place is compared with part by part. This is for pictures of the tiles.
        """
        return self._of_positions([part.score(part.own(batch)) for part in self.components.values()])

    def leaves_out(self, units: Sequence[int]) -> bool:
        """Say yes where each part can leave these images out."""
        return all(
            type(part).score_left_out is not Method.score_left_out and part.leaves_out(units)
            for part in self.components.values()
        )

    def score_left_out(self, batch: Batch, units: Tensor) -> tuple[Tensor, Tensor]:
        """Mix what each part says position by position where the units are left out."""
        return self._of_positions([part.score_left_out(part.own(batch), units) for part in self.components.values()])

    def _of_positions(self, answers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        b = len(answers[0][0])
        flat = [(scores.flatten(), maps.flatten(0, 1), None) for scores, maps in answers]  # (B P,), (B P, h, w)
        scores, maps, _ = self._mixed(flat)
        return scores.unflatten(0, (b, -1)), maps.unflatten(0, (b, -1))

    def forget_images(self) -> None:
        """Let each part drop what leaving images out took."""
        for part in self.components.values():
            part.forget_images()

    def component_maps(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the map of each part on the common scale, (B, P, h, w)."""
        answers = [part.score(part.own(batch)) for part in self.components.values()]
        b = len(answers[0][0])
        _, maps, _ = self._standardised([(scores.flatten(), m.flatten(0, 1), None) for scores, m in answers])
        return {name: maps[:, k].unflatten(0, (b, -1)) for k, name in enumerate(self.components)}

    def joined_parts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the map of each part as it enters the average, (B, h, w)."""
        _, maps, _ = self._standardised([part.judged(batch) for part in self.components.values()])
        return {name: maps[:, k] for k, name in enumerate(self.components)}


# -- one scale ---------------------------------------------------------------------------------------------------------


def _described(parts: str | Sequence[Part]) -> list[Mapping[str, Any]]:
    """Return the settings of each part, with the name of its method under ``method``."""
    given = [name.strip() for name in parts.split("+")] if isinstance(parts, str) else parts
    described = [{"method": part} if isinstance(part, str) else part for part in _listed(given)]
    if not all(isinstance(part, Mapping) and isinstance(part.get("method"), str) for part in described):
        raise InputError(
            f"parts={shortened(parts)}: expected names of methods, 'patchcore+fastflow', or a list of names and of "
            "mappings with a name and settings, [{'method': 'padim', 'dims': 50}, 'patchcore']"
        )
    if len(described) < 2:
        raise InputError(f"parts={shortened(parts)}: expected two methods or more, e.g. 'patchcore+fastflow'")
    return described


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]


def _are_weights(given: Any, n: int) -> bool:
    numbers = [float(x) for x in _listed(given) if isinstance(x, (int, float))]
    return len(numbers) == len(_listed(given)) == n and min(numbers) >= 0 and 0 < sum(numbers) < math.inf


def _scale(name: str, judged: Judged) -> list[float]:
    """Return the median of good maps, and how far above it the level lies that their highest 0.2 % exceed."""
    values = judged.maps[judged.inside].double().numpy()
    values = values[:: max(1, len(values) // _CELLS)]
    usual, tail = np.quantile(values, (0.5, _TAIL))
    if not (np.isfinite([usual, tail]).all() and tail > usual):
        raise DataError(
            f"the maps of {name} on {len(judged.maps)} good images cannot be brought to a scale: their median is "
            f"{usual:g}, and the highest 0.2 % exceed {tail:g}. They may be images that it has learned: give more good "
            "images, or leave calibrate and validate out"
        )
    return [float(usual), float(tail - usual)]
