"""PatchCore: remember what good patches look like; a patch is as anomalous as it is far from all of them.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
Equation numbers are the paper's. A patch feature is the mean over a neighbourhood of backbone features, mid-level
layers brought to one grid (eq. 1-3); the bank M keeps a greedy coreset of all of them (algorithm 1, eq. 5), chosen on
a random projection; the distance to the nearest m* in M is the anomaly map, its maximum s* the image score (eq. 6),
optionally reweighted by how populated the surroundings of m* are (eq. 7).

Where we depart, and why
- The selection starts at the point farthest from the most central one, not at random: a fit needs no luck. It is the
  exact greedy of algorithm 1; the authors' code starts from ten random points and the mean distance to them.
- Channels are pooled to a fixed dimension only if ``dims`` is set (the authors: 1024, in two steps). Distances then
  cost what the backbone gives, and the small default backbone has 152 channels.
- The map is smoothed on its own grid by a discrete Gaussian of the same variance, before it is enlarged: the same
  blur to within the interpolation, at a 64th of the pixels. ``paper``: sigma 4 pixels.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's maximum s* is
  ``top_share=0``.
- Unless ``ratio`` is given, the bank keeps 1 % of the patches, but no more than 4,000.
- Levels can be standardised (``standardise``): each is divided by its overall standard deviation on good images.
- Squared distances are expanded in float32 around the bank's mean; the winner's distance is measured directly.
- Patches that the memory does not hold are taken in blocks: of each a greedy coreset stays, four times as large as the
  bank is to be, and the bank is chosen from these (on composing the greedy of parts: Malkomes et al., "Fast Distributed
  k-Center Clustering with Outliers on Massive Data", NIPS 2015). Nothing is then farther from it than the two radii
  together; on real features the farthest patch was at most 9 % farther than from the bank of all patches.
- A bank can learn further images: the greedy chooses anew from the bank and their patches.

Letters: B images, P positions, C channels, h x w cells of the first level, N patches seen, M patches kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext, Form, Neighbour
from pickglass.detectors.renamed_settings import renamed_settings
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.maps import cells_of, kept_cells, neighbourhood_mean, patch_vectors, pool_channels, to_grid
from pickglass.nn.search.coreset import Coreset, greedy_coreset, random_projection
from pickglass.nn.search.neighbours import BankIndex, nearest_of_each, nearest_of_two_owners, nearest_plain
from pickglass.runtime.compute import Shape

__all__ = ["PatchCore"]

_RATIO, _MOST = 0.01, 4000  # the default share of the patches, and how many patches it is at most
_LEAST = 0.1  # patches of the bank, per patch of one image
_SAMPLE = 65_536  # patches among which those are chosen that stand in for the members of an image
_BLOCK_KEEPS = 4  # patches that stay of a block, per patch of the bank; with 1 the farthest patch is 12 % farther
_NO_UNIT = -1  # of patches that no left-out image takes along
_UNKNOWN = -1  # image and spot of members that an older pickglass kept
_QUICK_BANK = 400  # patches of the bank of a quick fit ...
_QUICK_REACH = 20_000  # ... and of those that it is chosen from


class PatchCore(Detector):
    """PatchCore (Roth et al. 2022).

    Args:
        backbone, layers, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
            The first layer sets the grid.
        ratio: share of all patches that the bank keeps, above 0 to 1 (paper: 0.25, 0.1 and 0.01); of fewer than ten
            images as many as 0.01 would keep of ten. None: 0.01, but no more than 4,000 patches, so that four times the
            pixels cost four times the time and not sixteen.
        sample: patches of each image, drawn at random, that the bank is chosen from; 0: all. For quick comparisons.
        patch: side of the neighbourhood that is averaged, in cells, odd (paper: 3).
        projection: dimensions of the random projection that the coreset is chosen in (authors' code: 128); 0 is none,
            and so is any that would not at least halve the channels.
        dims: pool each level's patch vectors, then all together, to this many channels (authors' code: 1024); None
            keeps the backbone's.
        standardise: divide each level by its standard deviation, so that none outweighs the others by its scale.
        rotations: in how many turns each image is learned: 1 as it is, 2 half turns, 4 quarter turns (of a square
            input). For parts that lie anyhow and are few. Not in the paper.
        brightness: factors of brightness at which each image is learned once more, e.g. ``(0.7, 1.3)``. For few images
            and a changing light (SuperADD, 2026, arXiv 2605.14808).
        position_weight: weight of the place in the image, so that what is good in one place need not be so in another:
            two patches as far apart as the image is wide and high then differ by so many times the features' standard
            deviation; 0 is off, the paper's. For parts that always lie alike.
        reweight: b, neighbours of m* in eq. 7; 0 is off, as in the authors' code.
        top_k: image score = mean of the k largest distances (paper: 1, the maximum).
        max_bank_mb: a fit that would need a larger bank is refused before it starts.

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.PatchCore(size=64).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (8, 8)
    """

    method = "patchcore"
    presets: ClassVar = {
        "paper": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer2", "layer3"),
            "size": 224,
            "ratio": 0.1,
            "dims": 1024,
            "smoothing": 4.0,
            "top_share": 0.0,
        },
        "quick": {"size": "area:256"},
    }

    @renamed_settings(position="position_weight")
    def __init__(
        self,
        *,
        backbone: str | nn.Module = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:512",
        smoothing: float | None = None,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        ratio: float | None = None,
        sample: int = 0,
        patch: int = 3,
        projection: int = 128,
        dims: int | None = None,
        standardise: bool = False,
        rotations: int = 1,
        brightness: Sequence[float] = (),
        position_weight: float = 0.0,
        reweight: int = 0,
        top_k: int = 1,
        max_bank_mb: float = 1000.0,
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
        self.ratio = ratio
        self.sample = sample
        self.patch = patch
        self.projection = projection
        self.dims = dims
        self.standardise = standardise
        self.rotations = rotations
        self.brightness = tuple(brightness) if isinstance(brightness, list) else brightness  # a file has lists
        self.position_weight = position_weight
        self.reweight = reweight
        self.top_k = top_k
        self.max_bank_mb = max_bank_mb
        self.register_buffer("bank", None)  # (P, M, C)
        self.register_buffer("scale", None)  # (P, C)
        self.register_buffer("origins", None)  # (P, M, 2) image and spot that each member was cut from, see _origins_of
        # during the fit, to leave images out:
        self.register_buffer("owners", None)  # (P, M) unit of the image that each member was cut from
        self.register_buffer("stand_ins", None)  # (P, F, C) what fills the bank where a unit is left out
        self.register_buffer("stand_in_for", None)  # (P, F) that unit
        self.bank: Tensor | None
        self.scale: Tensor | None
        self.origins: Tensor | None
        self.owners: Tensor | None
        self.stand_ins: Tensor | None
        self.stand_in_for: Tensor | None
        self._indices: list[BankIndex] = []

    @property
    def own_score(self) -> bool:
        """Whether the image score is that of eq. 7, or a mean of several distances."""
        return super().own_score or self.top_k > 1 or self.reweight > 0

    @property
    def quarter_turns(self) -> tuple[int, ...]:
        """The quarter turns in which each image is learned."""
        return tuple(range(0, 4, 4 // self.rotations)) if self.rotations in (2, 4) else (0,)

    @property
    def brightnesses(self) -> tuple[float, ...]:
        """The factors of brightness at which each image is learned: as it is first."""
        return (1.0, *self.brightness) if _are_factors(self.brightness) else (1.0,)

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take a small bank, chosen from a sample of each image's patches."""
        sample = max(1, min(cells, _QUICK_REACH // n_images))
        return {"sample": sample, "ratio": min(1.0, _QUICK_BANK / (n_images * sample))}

    @classmethod
    def settings_of_size(cls, taught: int, n_images: int, cells: int) -> dict[str, Any]:
        """Take as many patches as the default bank of so many images has, without choosing among them."""
        members = cls()._bank_size(n_images * cells, n_images)
        return {"sample": min(cells, math.ceil(members / taught)), "ratio": 1.0}

    @classmethod
    def tunable(cls) -> Mapping[str, Sequence[Any]]:
        """Offer turned copies, the weight of the place, and how many patches make the image score."""
        return {"rotations": (2, 4), "position_weight": (0.5, 2.0), "top_k": (3, 10)}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Forget an earlier bank; the size of the next one is known when all images were seen."""
        self.bank = self.scale = self.origins = self.owners = self.stand_ins = self.stand_in_for = None
        self._indices = []

    def learned_forms(self, shapes: list[Shape], positions: int) -> dict[str, Form]:
        """Return the forms of the bank and of what a file keeps beside it."""
        p, c = positions, self._wide(shapes)
        return {"bank": Form((p, None, c)), "scale": Form((p, c)), "origins": Form((p, None, 2), torch.int32)}

    def _wide(self, shapes: Sequence[Shape]) -> int:
        """Return how many channels a member of the bank has."""
        return (self.dims or sum(c for c, _, _ in shapes)) + (2 if self.position_weight else 0)

    def begin_fit(self, context: FitContext) -> None:
        """Check the settings, predict the bank's size, and set up the working set."""
        self._check()
        if self.rotations == 4 and self.input_size[0] != self.input_size[1]:
            raise InputError(
                f"rotations=4 turns the input by quarters, but it is {self.input_size[0]}x{self.input_size[1]} pixels: "
                "use a square size, or rotations=2"
            )
        self._begin(context, 0)

    def begin_update(self, context: FitContext) -> None:
        """Begin with the members of the bank, beside which the patches of the further images come.

        The bank may grow to the same share of all patches that a fit on all images would keep, and without a ``ratio``
        to 4,000: then old members give way to new ones. It never becomes smaller.
        """
        bank = self._bank()
        self._begin(context, bank.shape[1])
        known = bank if self.scale is None else bank / self.scale[:, None]
        self._patches.append(known)
        unknown = torch.full((*known.shape[:2], 2), _UNKNOWN, dtype=torch.int32)
        self._origins.append(unknown if self.origins is None else self.origins.cpu())
        self._held = known.shape[1]

    def _begin(self, context: FitContext, members: int) -> None:
        """Predict the bank's size, and set up the working set; ``members`` of the bank are known already."""
        self._width = self._wide(context.shapes)
        _, h, w = context.shapes[0]
        each, images = min(self.sample, h * w) or h * w, context.before + context.n_images
        n = context.n_images * each
        self._keep = max(members, self._bank_size(images * each, images))
        bank_mb = context.groups * self.predicted_mb(context)
        if bank_mb > self.max_bank_mb:
            fitting = self._keep / (images * each) * self.max_bank_mb / bank_mb
            raise InputError(
                f"the bank would take {bank_mb:,.0f} MB ({self._keep:,} of {images * each:,} patches), more than "
                f"max_bank_mb={self.max_bank_mb:g}: lower ratio to {fitting:.2g}, or raise max_bank_mb"
            )
        # a selection holds the patches, their projection and its centred copy
        per_patch = 4 * 3 * self._width * context.positions
        self._room = int(context.memory_gb * 1e9 / per_patch)  # patches a position may hold
        needed = min(members + n, 4 * self._keep)
        if self._room < needed:
            enough = 1.1 * needed * per_patch / 1e9
            raise InputError(
                f"memory_gb={context.memory_gb:g} holds {self._room:,} patches, but choosing a bank of "
                f"{self._keep:,} takes {needed:,}: raise memory_gb to {enough:.2g} or lower ratio"
            )
        self._context = context
        # channels of each level in a patch feature
        self._splits = [self.dims] if self.dims else [c for c, _, _ in context.shapes]
        self._patches: list[Tensor] = []  # each (P, n, C)
        self._origins: list[Tensor] = []  # each (P, n, 2), image and spot of each patch
        self._cores: list[tuple[Tensor, Tensor]] = []  # what stays of earlier blocks: patches and origins
        self._drawn: _Drawn | None = None  # some of the patches of earlier blocks
        self._seen = self._held = self._reductions = self._images = 0
        self._reach = 0.0  # no patch of an earlier block is farther than this from what stays
        self._generator = torch.Generator().manual_seed(context.seed)
        self._sums = torch.zeros(2, context.positions, self._width, dtype=torch.float64)  # of x and of x^2

    def predicted_mb(self, context: FitContext) -> float:
        """Predict the megabytes of the banks."""
        _, h, w = context.shapes[0]
        width = self.dims or sum(c for c, _, _ in context.shapes)
        images = context.before + context.n_images
        members = self._bank_size(images * h * w, images)
        return context.positions * members * 4 * (width + 2) / 1e6

    def _bank_size(self, patches: int, images: int) -> int:
        """Return how many of so many patches the bank keeps; a tenth of one image's patches at least."""
        share = max(_RATIO if self.ratio is None else self.ratio, min(1.0, _LEAST / images))
        size = math.ceil(share * patches)
        return min(size, _MOST) if self.ratio is None else size

    def _check(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError(f"ratio={self.ratio!r}: expected a share above 0 up to 1, e.g. 0.01")
        if self.patch < 1 or self.patch % 2 == 0:
            raise InputError(f"patch={self.patch!r}: expected an odd number of cells, e.g. 3")
        if self.rotations not in (1, 2, 4):
            raise InputError(f"rotations={self.rotations!r}: expected 1, 2 (half turns) or 4 (quarter turns)")
        if not _are_factors(self.brightness):
            raise InputError(f"brightness={self.brightness!r}: expected factors from 0.1 to 10, e.g. (0.7, 1.3)")
        if not (math.isfinite(self.position_weight) and self.position_weight >= 0):
            raise InputError(
                f"position_weight={self.position_weight!r}: expected 0 (off) or a positive weight, e.g. 0.5"
            )
        for name in ("sample", "projection", "reweight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)!r}: expected 0 (off) or a positive number")
        if self.reweight and self.top_k > 1:
            raise InputError(f"reweight={self.reweight} belongs to the maximum (eq. 7): set top_k=1 or reweight=0")
        if self.standardise and self.dims is not None:
            raise InputError("standardise=True needs the levels apart, but dims pools them together: set one of them")
        if self.top_k < 1 or (self.dims is not None and self.dims < 1):
            raise InputError(f"top_k={self.top_k!r}, dims={self.dims!r}: expected at least 1")

    def observe(self, batch: Batch) -> None:
        """Collect the patch features of a batch; past the memory budget, keep a coreset of them."""
        features = self._patch_features(batch.levels)  # (B, P, C, h, w)
        b, grid = len(features), cells_of(features)
        patches = features.permute(1, 0, 3, 4, 2).flatten(1, 3)  # (P, B h w, C)
        origins = self._origins_of(b, grid).expand(len(patches), -1, -1)  # (P, B h w, 2)
        keep = kept_cells(batch.keep, grid)
        if keep is not None:
            counting = keep.transpose(0, 1).flatten(1)  # (P, B h w)
            patches, origins = _only(patches, counting), _only(origins, counting.cpu())  # (P, n, C), (P, n, 2)
        if self.sample and patches.shape[1] > self.sample * b:
            drawn = torch.randperm(patches.shape[1], generator=self._generator)[: self.sample * b]
            patches = patches[:, drawn.to(patches.device)]  # (P, n, C)
            origins = origins[:, drawn]
        exact = patches.double()
        self._sums += torch.stack([exact.sum(1), (exact * exact).sum(1)]).cpu()
        self._patches.append(patches)
        self._origins.append(origins)
        self._images += b
        self._seen += patches.shape[1]
        self._held += patches.shape[1]
        if self._held + sum(core.shape[1] for core, _ in self._cores) > self._room:
            self._make_room()

    def _make_room(self) -> None:
        """Reduce the collected patches to a coreset of them; where these are many, reduce them together."""
        points, origins = torch.cat(self._patches, dim=1), torch.cat(self._origins, dim=1)  # (P, n, C), (P, n, 2)
        self._drawn = _Drawn.some_of(points, origins, self._generator, self._drawn)
        size = min(_BLOCK_KEEPS * self._keep, self._room // 4)
        core = self._select(points, origins, size, "making room")
        self._cores.append((core.patches, core.origins))
        self._reach = max(self._reach, core.radius)
        self._patches, self._origins, self._held = [], [], 0
        self._reductions += 1
        if sum(core.shape[1] for core, _ in self._cores) > self._room // 2:
            points, origins = self._joined_cores()
            core = self._select(points, origins, size, "making room")
            self._cores = [(core.patches, core.origins)]
            self._reach += core.radius

    def _joined_cores(self) -> tuple[Tensor, Tensor]:
        """Put together what stays of all blocks: patches (P, n, C) and their origins (P, n, 2)."""
        patches, origins = zip(*self._cores, strict=True)
        return torch.cat(patches, dim=1), torch.cat(origins, dim=1)

    def end_fit(self) -> dict[str, Any]:
        """Choose the bank (algorithm 1)."""
        context = self._context
        drawn = self._drawn
        if self._patches:  # the last block may just have been reduced
            points, origins = torch.cat(self._patches, dim=1), torch.cat(self._origins, dim=1)  # (P, n, C), (P, n, 2)
            self._patches, self._origins = [], []
            drawn = _Drawn.some_of(points, origins, self._generator, drawn)
            self._cores.append((points, origins))
        if drawn is None:
            raise RuntimeError("end_fit before any image was observed")
        points, origins = self._cores[0] if len(self._cores) == 1 else self._joined_cores()
        self._cores, self._drawn = [], None
        images = context.before + context.n_images
        size = self._bank_size(round(self._seen * images / context.n_images), images)
        if context.before:
            size = max(size, self._bank().shape[1])
        chosen = self._select(points, origins, size, "choosing the bank")
        del points
        scale = self._level_scales()
        self.scale = None if scale is None else scale.to(chosen.patches)
        self.bank, self.origins = self._scaled(chosen.patches), chosen.origins.to(chosen.patches.device)
        self.owners = self._units_of(chosen.origins)
        self.stand_ins, self.stand_in_for = self._stand_ins(
            self.bank, self.owners, self._scaled(drawn.patches), self._units_of(drawn.origins)
        )
        details = {
            "patches": self._seen,
            "bank": self.bank.shape[1],
            "channels": self.bank.shape[2],
            "radius": self._reach + chosen.radius,
            "passes": sum(c.passes for c in chosen.coresets),
            "close_calls": sum(c.close_calls for c in chosen.coresets),
            "reductions": self._reductions,
        }
        del self._context, self._generator  # neither can be copied to another process
        return details

    def _origins_of(self, n: int, grid: tuple[int, int]) -> Tensor:
        """Return where each patch of the next n images that are observed comes from, (n h w, 2): image and spot.

        Images are counted from 0 on in the order in which they are learned, those of an update after those before it.
        A spot is (turn m + tile) h w + cell: the place in ``quarter_turns``, that among the m tiles that share the
        head, and the cell of the turned tile.
        """
        context, m = self._context, self._context.per_image
        factors = len(self.brightnesses)
        views = len(self.quarter_turns) * factors
        seen, each = torch.arange(self._images, self._images + n), max(1, context.n_images // views)
        turn, row = seen // (each * factors), seen % each
        image = self._known_before() + row // m
        spots = (turn * m + row % m)[:, None] * math.prod(grid) + torch.arange(math.prod(grid))  # (n, h w)
        return torch.stack([image[:, None].expand_as(spots), spots], dim=2).flatten(0, 1).int()

    def _known_before(self) -> int:
        """Count the images that were learned before an update."""
        return self._context.before // (len(self.quarter_turns) * len(self.brightnesses) * self._context.per_image)

    def _units_of(self, origins: Tensor) -> Tensor:
        """Return the unit (P, n) of the image of each patch, by its origin (P, n, 2)."""
        new = origins[..., 0] - self._known_before()
        # shared heads see several tiles an image, and nothing is left out there
        known = self._context.units
        units = torch.tensor(known, dtype=torch.int32)[new.clamp(min=0)] if known else torch.zeros_like(new)
        return units.masked_fill(new < 0, _NO_UNIT)

    def _select(self, points: Tensor, origins: Tensor, size: int, stage: str) -> _Chosen:
        """Choose a greedy coreset of patches (P, n, C) with origins (P, n, 2), each position on its own."""
        scale = self._level_scales()
        banks, places, coresets = [], [], []
        for position, patches in enumerate(points):
            compared = patches if scale is None else patches * scale[position].to(patches)
            low = random_projection(compared, self.projection or patches.shape[1], self._context.seed)
            done = position * size
            coresets.append(
                greedy_coreset(
                    low,
                    min(size, len(patches)),
                    progress=lambda n, m, done=done: self._context.progress(stage, done + n, len(points) * m),  # type: ignore[misc]
                )
            )
            chosen = coresets[-1].indices
            banks.append(patches[None, chosen.to(patches.device)])
            places.append(origins[None, position, chosen.cpu()])
        # where duplicates ended a selection early, repeating a member changes no distance
        return _Chosen(self.stacked("bank", banks), self.stacked("origins", places), coresets)

    def _stand_ins(self, bank: Tensor, owners: Tensor, points: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Choose what fills the bank where a unit is left out: (P, F, C), and the unit (P, F) that each is for.

        A bank without the members of an image has holes that a selection without the image would have filled first, and
        judges it too severely. So the greedy goes on without the image: patches of others (of a sample of them) that
        lie in the holes are chosen, the farthest first, until none is farther than the whole bank leaves its patches.

        Args:
            bank, owners: the bank (P, M, C), and the unit (P, M) that each member is of.
            points, units: patches to choose from, (P, n, C), and their units (P, n).
        """
        fillings, lefts = [], []
        for members, owner, patches, unit in zip(bank, owners.to(bank.device), points, units, strict=True):
            nearest, first, second = nearest_of_two_owners(patches, members, owner)  # (n,) each
            chosen, left = [members[:1]], [torch.full_like(owner[:1], _NO_UNIT)]  # so that there is one at least
            for out in owner[owner != _NO_UNIT].unique():
                holes = (nearest == out) & (unit.to(bank.device) != out)
                x, distance = patches[holes], second[holes]
                while len(x) and distance.max() > first.max():
                    farthest = distance.argmax()
                    chosen.append(x[farthest][None])
                    left.append(out[None])
                    distance = torch.minimum(distance, (x - x[farthest]).norm(dim=1))
            fillings.append(torch.cat(chosen)[None])
            lefts.append(torch.cat(left)[None])
        return self.stacked("stand_ins", fillings), self.stacked("stand_in_for", lefts)

    def stacked(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        """Join banks of different lengths, too: a member repeated changes no distance."""
        if name not in ("bank", "origins", "owners", "stand_ins", "stand_in_for"):
            return super().stacked(name, parts)
        longest = max(part.shape[1] for part in parts)
        last = [part[:, -1:].expand(-1, longest - part.shape[1], *part.shape[2:]) for part in parts]
        return torch.cat([torch.cat(pair, dim=1) for pair in zip(parts, last, strict=True)])

    def _level_scales(self) -> Tensor | None:
        """Return the factor of each channel, (P, C), in an update that of the fit; None where features are not scaled.

        Where levels are standardised it is 1 / standard deviation of the level, all its channels together; for the
        place it is the weight in units of the features' standard deviation.
        """
        if self._context.before or not (self.standardise or self.position_weight):
            return self.scale
        mean, square = (self._sums / self._seen).split(1)
        variance = (square - mean * mean)[0].clamp(min=0)[:, : sum(self._splits)]  # (P, C of the levels)
        tiny = torch.finfo(torch.float32).tiny
        scales = torch.ones_like(variance)
        if self.standardise:
            levels = [v.sum(1, keepdim=True).expand_as(v) for v in variance.split(self._splits, dim=1)]
            scales = torch.cat(levels, dim=1).clamp(min=tiny).rsqrt()
        if self.position_weight:
            spread = (variance * scales.square()).sum(1, keepdim=True).sqrt()  # (P, 1)
            scales = torch.cat([scales, (self.position_weight * spread).expand(-1, 2) / math.sqrt(2)], dim=1)
        return scales.float()

    def _scaled(self, patches: Tensor) -> Tensor:
        """Apply the scales to patches (P, n, C)."""
        return patches if self.scale is None else patches * self.scale[:, None]

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by the distance of each patch to the bank (eq. 6): scores (B, P), maps (B, P, h, w)."""
        return self._scored(batch, lambda queries: self._distances(queries, batch.engine is None))

    def leaves_out(self, units: Sequence[int]) -> bool:
        """Say yes where there are two units or more; the neighbours of eq. 7 would be those of the whole bank."""
        return len(set(units)) > 1 and not self.reweight

    @property
    def falls_with_images(self) -> bool:
        """Whether more images never raise a score: a bank of all patches has nearer ones, a coreset maybe others."""
        return self.ratio == 1 and not self.sample and self.scale is None

    @property
    def scores_stay(self) -> bool:
        """Whether a threshold stays of use in an update: the bank still covers what it covered, to its radius."""
        return True

    def score_left_out(self, batch: Batch, units: Tensor) -> tuple[Tensor, Tensor]:
        """Score by the distance to the bank without the members of the image's unit, and with what stands in.

        One index serves the batch: it holds the members that come from none of its images. Members that come from its
        other images are few, and each image searches them directly.
        """
        bank, owners = self._bank(), self.owners
        if owners is None or self.stand_ins is None or self.stand_in_for is None:
            raise self.unfitted()
        own, only, stand_ins = owners.to(bank.device), self.stand_in_for.to(bank.device), self.stand_ins

        def distances(queries: Tensor) -> Tensor:
            found = torch.empty(queries.shape[:2], device=queries.device)  # (P, B h w)
            for p, vectors in enumerate(queries):
                around = torch.isin(own[p], units.to(own))  # (M,)
                found[p] = _distances_to(bank[p][~around], vectors)
                for unit, part, out in zip(units, vectors.chunk(len(units)), found[p].chunk(len(units)), strict=True):
                    few = torch.cat([bank[p][around & (own[p] != unit)], stand_ins[p][only[p] == unit]])
                    if len(few) or not bool(around.all()):
                        out.copy_(torch.minimum(out, _distances_to(few, part)))
                    else:  # where nobody else has a patch, nothing counts
                        out.copy_(_distances_to(bank[p], part))
            return found

        return self._scored(batch, distances)

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Split the squared distance to the nearest member among the levels, whose channels stand side by side in it.

        None where channels are pooled over the levels (``dims``): then each one is of several.
        """
        if self.dims is not None:
            return {}
        bank, features = self._bank(), self._patch_features(batch.levels)  # (B, P, C, h, w)
        b, (h, w) = features.shape[0], cells_of(features)
        queries = self._scaled(features.permute(1, 0, 3, 4, 2).flatten(1, 3))  # (P, B h w, C)
        nearest = torch.stack(
            [members[BankIndex(members).search(own).indices] for members, own in zip(bank, queries, strict=True)]
        )
        squared = (queries - nearest).square().unflatten(1, (b, h, w)).permute(1, 0, 4, 2, 3)  # (B, P, C, h, w)
        widths = [level.shape[2] for level in batch.levels]
        names = self.level_names()
        if self.position_weight:
            widths, names = [*widths, 2], [*names, "place"]
        return {name: part.sum(2) for name, part in zip(names, squared.split(widths, dim=2), strict=True)}

    def neighbours(self, batch: Batch, place: tuple[int, int, int, int], n: int) -> list[Neighbour]:
        """Find the members that are nearest to a cell, of each training image the nearest one."""
        b, p, row, column = place
        bank, features = self._bank()[p], self._patch_features(batch.levels)[b : b + 1, p : p + 1]
        query = self._scaled(features[:, :, :, row, column].expand(len(self._bank()), -1, -1))[p]  # (1, C)
        distances, order = (bank - query).norm(dim=1).sort(stable=True)  # (M,)
        origins = None if self.origins is None else self.origins[p, order].tolist()
        found: dict[int, Neighbour] = {}
        for i, distance in enumerate(distances.tolist()):
            image, spot = (_UNKNOWN, _UNKNOWN) if origins is None else origins[i]
            found.setdefault(-1 - i if image == _UNKNOWN else image, Neighbour(distance, image, spot))
            if len(found) == n:
                break
        return list(found.values())

    def forget_images(self) -> None:
        """Drop which image each member of the bank came from, and what stands in for it."""
        self.owners = self.stand_ins = self.stand_in_for = None

    def _scored(self, batch: Batch, distances: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Score a batch by the distances of its queries (P, n, C) -> (P, n)."""
        features = self._patch_features(batch.levels)  # (B, P, C, h, w)
        b, p, (h, w) = features.shape[0], features.shape[1], cells_of(features)
        queries = self._scaled(features.permute(1, 0, 3, 4, 2).flatten(1, 3))  # (P, B h w, C)
        distance = distances(queries)  # (P, B h w)
        maps = distance.view(p, b, h, w).transpose(0, 1)  # (B, P, h, w)
        keep = kept_cells(batch.keep, (h, w))
        counting = maps if keep is None else maps.masked_fill(~keep, 0)  # no distance is below 0
        if self.reweight:
            scores = self._reweighted(queries.unflatten(1, (b, h * w)), counting.transpose(0, 1).flatten(2))
        else:
            scores = counting.flatten(2).topk(min(self.top_k, h * w), dim=2).values.mean(2)  # (B, P)
        return scores, self.smoothed(maps, keep)

    def _patch_features(self, levels: Sequence[Tensor]) -> Tensor:
        """Compute locally aware patch features (eq. 1-3) on the first level's grid."""
        p = int(levels[0].shape[1])
        grid = cells_of(levels[0])
        parts = []
        for level in levels:
            x = level.flatten(0, 1)  # (B P, c, h_l, w_l)
            if self.dims is None:
                x = neighbourhood_mean(x, self.patch)
            else:
                x = pool_channels(patch_vectors(x, self.patch), self.dims)  # (B P, dims, h_l, w_l)
            parts.append(to_grid(x, grid))
        features = torch.cat(parts, dim=1)  # (B P, C, h, w)
        if self.dims is not None:
            features = pool_channels(features, self.dims)
        if self.position_weight:
            places = [(torch.arange(n, device=features.device) + 0.5) / n for n in grid]
            rows, columns = torch.meshgrid(*places, indexing="ij")
            both = torch.stack([rows, columns]).to(features)  # (2, h, w)
            features = torch.cat([features, both.expand(features.shape[0], -1, -1, -1)], dim=1)  # (B P, C, h, w)
        unfolded: Tensor = features.unflatten(0, (-1, p))  # (B, P, C, h, w)
        return unfolded

    def _distances(self, queries: Tensor, exported: bool) -> Tensor:
        """Compute the distance of each query to its nearest bank member, (P, n, C) -> (P, n).

        ``exported``: this may be the exported graph.
        """
        bank = self._bank()
        if exported and (torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling()):
            return nearest_plain(queries, bank)[0]
        if len(bank) > 1 and bank.device.type != "cpu":
            return nearest_of_each(queries, bank)
        indices = self._indices  # other threads may put equal ones in their place
        if not indices or indices[0].source is not bank:
            indices = self._indices = [BankIndex(members, bank) for members in bank]
        return torch.stack([index.distances(vectors) for index, vectors in zip(indices, queries, strict=True)])

    def _reweighted(self, queries: Tensor, distance: Tensor) -> Tensor:
        """Eq. 7: s = (1 - exp |m_test - m*| / sum over m in N_b(m*) of exp |m_test - m|) s*; (B, P)."""
        bank = self._bank()
        c = bank.shape[2]
        s_star, at = distance.max(2)  # (P, B)
        m_test = queries.gather(2, at[..., None, None].expand(-1, -1, 1, c))[:, :, 0]  # (P, B, C)
        nearest = nearest_plain(m_test, bank)[1]  # (P, B)
        m_star = bank.gather(1, nearest[..., None].expand(-1, -1, c))  # (P, B, C)
        around = torch.cdist(m_star, bank).topk(min(self.reweight, bank.shape[1]), dim=2, largest=False).indices
        rows = torch.arange(len(around), device=around.device)[:, None, None]
        d = (m_test[:, :, None] - bank[rows, around]).norm(dim=3)  # (P, B, b), m* itself among the b
        # exp of differences: the distances themselves overflow
        total = (d - s_star[..., None]).exp().sum(2)
        weight: Tensor = 1 - torch.ones_like(total) / total  # 1 / total would be an operation that TensorRT lacks
        return (weight * s_star).transpose(0, 1)

    def _bank(self) -> Tensor:
        if self.bank is None:
            raise self.unfitted()
        return self.bank


def _are_factors(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and all(isinstance(x, (int, float)) and 0.1 <= x <= 10 for x in given)


class _Chosen(NamedTuple):
    """A coreset of each position: patches (P, M, C), their origins (P, M, 2), and how they were chosen."""

    patches: Tensor
    origins: Tensor
    coresets: list[Coreset]

    @property
    def radius(self) -> float:
        """No patch is farther than this from those that were chosen."""
        return max(coreset.radius for coreset in self.coresets)


class _Drawn(NamedTuple):
    """Patches (P, n, C) drawn from a stream, their origins (P, n, 2), and the random numbers (n,) that decided."""

    patches: Tensor
    origins: Tensor
    numbers: Tensor

    @classmethod
    def some_of(cls, patches: Tensor, origins: Tensor, generator: torch.Generator, before: _Drawn | None) -> _Drawn:
        """Draw at most 65,536 of all patches so far: of more those with the lowest numbers, by which none is favoured.

        Args:
            patches, origins: patches that come now, (P, n, C), and where they are from (P, n, 2).
            generator: draws the numbers.
            before: what was drawn until now; None: these are the first.
        """
        if before is None and patches.shape[1] <= _SAMPLE:
            return cls(patches, origins, torch.rand(patches.shape[1], generator=generator))
        numbers = torch.rand(patches.shape[1], generator=generator)
        lowest = numbers.argsort()[:_SAMPLE]  # no more can stay
        drawn = cls(patches[:, lowest.to(patches.device)], origins[:, lowest], numbers[lowest])
        if before is not None:
            both = cls(
                *(torch.cat(pair, dim=-1 if pair[0].ndim < 3 else 1) for pair in zip(before, drawn, strict=True))
            )
            lowest = both.numbers.argsort()[:_SAMPLE]
            drawn = cls(both.patches[:, lowest.to(patches.device)], both.origins[:, lowest], both.numbers[lowest])
        return drawn


def _distances_to(points: Tensor, queries: Tensor) -> Tensor:
    """Measure the distance (n,) of the queries (n, C) to the nearest of some points (m, C); infinite where m is 0."""
    if not len(points) or not len(queries):
        return queries.new_full((len(queries),), torch.inf)
    return BankIndex(points).distances(queries)


def _only(patches: Tensor, keep: Tensor) -> Tensor:
    """Pick the patches (P, n, C), or their origins (P, n, 2), that count, by (P, n) bool.

    Positions with fewer of them repeat one, which changes no distance. A position of which nothing counts keeps one
    patch; it is never asked for a score.
    """
    picked = [p[k] if bool(k.any()) else p[:1] for p, k in zip(patches, keep, strict=True)]
    longest = max(len(p) for p in picked)
    return torch.stack([torch.cat([p, p[-1:].expand(longest - len(p), *p.shape[1:])]) for p in picked])
