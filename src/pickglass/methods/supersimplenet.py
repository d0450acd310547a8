"""SuperSimpleNet: two small heads learn to tell features of good images from the same features with noise in places.

Rolih, Fucka, Skocaj: "SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast and Reliable Surface
Defect Detection", ICPR 2024 (arXiv 2408.03143). Two levels of a frozen backbone are brought to a grid twice as fine as
the finer one's, joined, and averaged over 3x3 cells; a 1x1 convolution, the adaptor, leads into the space in which all
else happens. In training each image counts twice. On half of these copies Gaussian noise is added to the adapted
features where Perlin noise exceeds a threshold, and there the target is defect. A segmentation head (1x1 convolution
with batch norm, then one channel) gives the anomaly map; a classification head (5x5 convolution over features and map,
then mean and maximum of both) gives the image score.

- Loss of the map: the truncated L1, mean over good cells of max(0, m + 0.5) plus mean over defective cells of
  max(0, 0.5 - m), and the focal loss with gamma 4. Loss of the image score: the focal loss.
- With good images alone the gradient of the image score stops before the map; with defects it does not.
- With known defects their masks are targets, too. Where a mask marks a real defect no noise is added.
- AdamW, the adaptor at half the rate of the heads; rates fall to 0.4 after 80 % and again after 90 % of the steps.

Where we depart, and why
- Channels are standardised by the good images, and noise is in units of their deviations: the paper's 0.015 belongs to
  the activations of one Wide ResNet-50, and means little on another network. ``standardise=False`` is the paper's.
- An epoch is one pass over the good images; each step draws ``known_share`` as many known defects as it has good
  images, so that one teaches as often as fifty. The authors' epochs are passes over the known defects, with as many
  good images drawn beside them.
- A defect of which only the image is known teaches the image score, and by its gradient the map; its cells are no
  targets. The paper has masks for all.
- Neither are gradients clipped nor known defects mirrored and turned; the authors do both where they have labels.
- The authors' code has a leaky ReLU in the segmentation head, and so have we.
- The heads are as much narrower than the paper's as the backbone: two thirds of the channels, and ``classes`` 32
  instead of 128.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's classification head
  is ``top_share=0``.

Cells outside the region of interest are neither targets nor pooled; the convolutions do see them.

Letters: B images, P positions, C channels of all levels, K drawn defects, h x w cells of the upscaled grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.features.cache import FeatureCache
from pickglass.nn.maps import ChannelMoments, batch_mean, kept_cells, neighbourhood_mean, to_grid
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.loop import Draws, Phase, Plan
from pickglass.runtime.compute import Shape

__all__ = ["SuperSimpleNet", "perlin_noise"]

_MARGIN = 0.5  # of the truncated L1: cells beyond it on the right side cost nothing
_GAMMA = 4.0  # of the focal loss
_THRESHOLD, _THRESHOLD_WITH_KNOWN = 0.2, 0.6  # of Perlin noise
_OCTAVES = 6  # Perlin noise has 1, 2, 4 ... 32 cells a side


class SuperSimpleNet(Detector):
    """SuperSimpleNet (Rolih et al. 2024); it can learn from known defects, too.

    Args:
        backbone, layers, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
            The first layer sets the grid.
        upscale: by how much finer than the first layer's the grid is (paper: 2).
        patch: side of the neighbourhood that is averaged, in cells of that grid, odd (paper: 3).
        standardise: divide each channel by its deviation on good images, after its mean is taken off; the paper does
            not.
        noise: standard deviation of the noise, in the units of the features (paper: 0.015); or the lowest and the
            highest one, between which each copy of an image draws its own.
        perlin_threshold: noise is added where Perlin noise exceeds it; the higher, the smaller the places. None: 0.2,
            and 0.6 with known defects (paper; without them 0.6 on VisA).
        hidden: channels inside the segmentation head; None: two thirds of those that it reads (paper: 1024 of 1536).
        classes: channels inside the classification head (paper: 128).
        known_share: known defects of a step per good image, above 0 (paper: 1); without known defects it says nothing.
        epochs: passes over the images (paper: 300).
        batch: good images of a training step (paper: 32).
        lr: learning rate of the heads (paper: 2e-4); the adaptor has half of it.
        weight_decay: AdamW's (paper: 1e-5).

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.SuperSimpleNet(size=64, epochs=2).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (16, 16)
    """

    method = "supersimplenet"
    fewest_images = 2
    presets: ClassVar = {
        "paper": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer2", "layer3"),
            "size": 256,
            "smoothing": 4.0,
            "standardise": False,
            "noise": 0.015,
            "hidden": 1024,
            "classes": 128,
            "known_share": 1.0,
            "epochs": 300,
            "batch": 32,
            "lr": 2e-4,
            "top_share": 0.0,
        },
        # about a minute of one core for 200 images of 256 pixels
        "quick": {"upscale": 1, "epochs": 10, "classes": 16},
    }

    def __init__(
        self,
        *,
        backbone: str | nn.Module = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:256",
        smoothing: float | None = None,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        upscale: int = 2,
        patch: int = 3,
        standardise: bool = True,
        noise: float | tuple[float, float] = 0.4,
        perlin_threshold: float | None = None,
        hidden: int | None = None,
        classes: int = 32,
        known_share: float = 0.5,
        epochs: int = 25,
        batch: int = 8,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
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
        self.upscale = upscale
        self.patch = patch
        self.standardise = standardise
        self.noise = noise
        self.perlin_threshold = perlin_threshold
        self.hidden = hidden
        self.classes = classes
        self.known_share = known_share
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.heads: Stacked | None = None
        self._moments: list[ChannelMoments] = []
        self._known: _KnownDefects | None = None
        self._draws = Draws()

    def work_units(self, n_images: int) -> float:
        """Each epoch looks at each image once."""
        return float(self.epochs * n_images)

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take a few epochs of small batches."""
        return {"epochs": 10, "batch": 4, "classes": 8}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Make the adaptor and both heads."""
        self._check()
        self.heads = Stacked(lambda: self._network(shapes), positions, seed)

    def _network(self, shapes: list[Shape]) -> _Heads:
        channels = [c for c, _, _ in shapes]
        grid = (self.upscale * shapes[0][1], self.upscale * shapes[0][2])
        hidden = max(1, round(2 * sum(channels) / 3)) if self.hidden is None else self.hidden
        noise = (self.noise, self.noise) if isinstance(self.noise, (int, float)) else (self.noise[0], self.noise[1])
        return _Heads(channels, grid, self.patch, noise, hidden, self.classes)

    def _check(self) -> None:
        for name in ("upscale", "patch", "classes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: expected at least 1")
        if self.patch % 2 == 0:
            raise InputError(f"patch={self.patch!r}: expected an odd number of cells, e.g. 3")
        if self.hidden is not None and self.hidden < 1:
            raise InputError(f"hidden={self.hidden!r}: expected a number of channels from 1, or None")
        sizes = [self.noise] if isinstance(self.noise, (int, float)) else list(self.noise)
        if len(sizes) not in (1, 2) or not 0 < sizes[0] <= sizes[-1]:
            raise InputError(
                f"noise={self.noise!r}: expected a number above 0, or the lowest and the highest of several"
            )
        if not self.known_share > 0:
            raise InputError(f"known_share={self.known_share!r}: expected a number above 0")
        if self.perlin_threshold is not None and not -1 < self.perlin_threshold < 1:
            raise InputError(
                f"perlin_threshold={self.perlin_threshold!r}: expected a number above -1 and below 1, e.g. 0.2"
            )

    def begin_fit(self, context: FitContext) -> None:
        """Get ready to keep known defects."""
        self._begin(context)

    def begin_update(self, context: FitContext) -> None:
        """Allocate nothing: the heads are trained on from where they are, with features scaled as they were."""
        self._begin(context)

    def _begin(self, context: FitContext) -> None:
        self._moments = []
        self._known = _KnownDefects(context.n_defects, context.memory_gb / 8) if context.n_defects else None

    def observe(self, batch: Batch) -> None:
        """Add up how the channels vary."""
        if not self.standardise:
            return
        self._moments = self._moments or [ChannelMoments() for _ in batch.levels]
        for moments, level in zip(self._moments, batch.levels, strict=True):
            moments.add(level, kept_cells(batch.keep, (level.shape[3], level.shape[4])))

    def observe_defects(self, batch: Batch, truth: Tensor | None) -> None:
        """Keep known defects, from which each step draws some."""
        if self._known is None:
            raise RuntimeError("no defects were announced")
        self._known.add(batch, truth, self._tree().grid)

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return one phase: adaptor and heads are trained together."""
        heads = self._heads()
        if self._moments:
            moments = [m.mean_and_std() for m in self._moments]
            for name, values in zip(("mean", "std"), zip(*moments, strict=True), strict=True):
                buffer = getattr(heads.tree, name)
                joined = torch.cat(values, dim=-1).to(buffer)  # (P, C)
                buffer.copy_(joined.expand_as(buffer))
        plan = Plan(
            epochs=self.epochs,
            batch=self.batch,
            optimiser="adamw",
            lr=self.lr,
            lr_factors={"tree.adaptor": 0.5},
            weight_decay=self.weight_decay,
            milestone=(0.8, 0.9),
            gamma=0.4,
        )
        return [Phase("heads", heads, self.loss, plan, draws=self._draws)]

    def loss(self, batch: Batch) -> Tensor:
        """Compute the truncated L1 and the focal loss of the map, and the focal loss of the image score: (P,)."""
        heads = self._heads()
        grid = self._tree().grid
        images, positions = batch.levels[0].shape[:2]
        levels, keep = batch.levels, kept_cells(batch.keep, grid)
        counts = (
            torch.ones(images, positions, *grid, dtype=torch.bool, device=levels[0].device) if keep is None else keep
        )
        truth = torch.zeros_like(counts)
        unmarked = truth.new_zeros(images)  # defects of which only the image is known
        if self._known is not None:
            known = self._known.drawn(max(1, round(self.known_share * images)), levels[0].device, self._draws)
            levels = tuple(torch.cat(pair) for pair in zip(levels, known.levels, strict=True))
            counts, truth = torch.cat([counts, known.counts]), torch.cat([truth, known.truth])
            unmarked = torch.cat([unmarked, known.unmarked])
        counts, truth = torch.cat([counts, counts]), torch.cat([truth, truth])  # each image counts twice
        unmarked = torch.cat([unmarked, unmarked])[:, None, None, None]

        noisy = torch.stack([self._places(grid) for _ in range(truth[:, :, 0, 0].numel())]).view(truth.shape)
        noisy = noisy.to(truth.device) & counts & ~truth & ~unmarked
        target = truth | noisy
        whole = keep is None and (self._known is None or self._known.whole)
        maps, scores = heads(levels, (noisy, self._draws), None if whole else counts, self._known is None)
        bad = target.flatten(2).any(2) | unmarked[:, :, 0, 0]  # (B, P)
        marked = counts & ~unmarked
        maps, scores = maps.float(), scores.float()
        return (
            _mean(F.relu(_MARGIN + maps), marked & ~target)
            + _mean(F.relu(_MARGIN - maps), marked & target)
            + _mean(_focal(maps, target), marked)
            + batch_mean(_focal(scores, bad), counts)
        )

    def _places(self, grid: tuple[int, int]) -> Tensor:
        """Draw where noise is added to an image, (h, w) bool: nowhere in half of all cases."""
        generator = self._draws.on("cpu")
        if float(torch.rand((), generator=generator)) < 0.5:
            return torch.zeros(grid, dtype=torch.bool)
        usual = _THRESHOLD if self._known is None else _THRESHOLD_WITH_KNOWN
        return perlin_noise(grid, generator) > (usual if self.perlin_threshold is None else self.perlin_threshold)

    def end_fit(self) -> dict[str, Any]:
        """Let go of the known defects, and count the learned parameters."""
        if self._known is not None:
            self._known.close()
            self._known = None
        self._moments = []
        return {"parameters": sum(p[0].numel() for p in self._heads().parameters())}

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by the classification head, (B, P), and the segmentation head, maps (B, P, h, w); both are logits."""
        heads = self._heads()
        keep = kept_cells(batch.keep, self._tree().grid)
        maps, scores = heads(batch.levels, None, keep, True)
        if keep is not None:
            scores = scores.masked_fill(~keep.flatten(2).any(2), -torch.inf)
        return scores, self.smoothed(maps, keep)

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Return how far the map would move if a level were as it is on average on good images."""
        heads = self._heads()
        maps, _ = heads(batch.levels, None, None, True)
        means = self._tree().mean.split(self._tree().channels, dim=1)  # (P, C) each
        moved = {}
        for k, name in enumerate(self.level_names()):
            usual = means[k][None, :, :, None, None].expand_as(batch.levels[k])
            others, _ = heads((*batch.levels[:k], usual, *batch.levels[k + 1 :]), None, None, True)
            moved[name] = (maps - others).abs()
        return moved

    def _heads(self) -> Stacked:
        if self.heads is None:
            raise self.unfitted()
        return self.heads

    def _tree(self) -> _Heads:
        return cast("_Heads", self._heads().tree)


# -- the network of one position ---------------------------------------------------------------------------------------


class _Heads(nn.Module):
    """The network of one position: features on a finer grid, the adaptor, and the two heads."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        grid: tuple[int, int],
        patch: int,
        noise: tuple[float, float],
        hidden: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.grid, self.patch, self.noise = grid, patch, noise
        self.channels = list(channels)
        n = sum(channels)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.adaptor = nn.Conv2d(n, n, 1)
        self.segment = nn.Sequential(
            nn.Conv2d(n, hidden, 1), nn.BatchNorm2d(hidden), nn.LeakyReLU(0.2), nn.Conv2d(hidden, 1, 1, bias=False)
        )
        self.classify = nn.Sequential(nn.Conv2d(n + 1, classes, 5, padding=2), nn.BatchNorm2d(classes), nn.ReLU())
        self.decide = nn.Linear(2 * classes + 2, 1)
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_normal_(part.weight)

    def forward(
        self, levels: tuple[Tensor, ...], added: tuple[Tensor, Draws] | None, keep: Tensor | None, stop: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute the map (B, h, w) and the image score (B,); in training both of two copies (2 B, ...).

        Args:
            levels: (B, C, h_k, w_k) each.
            added: (2 B, h, w) bool, where noise is added to which copy, and what it is drawn from; None: it is not
                training.
            keep: (B, h, w) or (2 B, h, w) bool, the cells that count for the image score; None: all.
            stop: the gradient of the image score ends before the map.
        """
        x: Tensor = self.adaptor(self._read(levels))  # (B, C, h, w)
        if added is not None:
            noisy, draws = added
            generator = draws.on(x.device)
            noise = x.new_zeros(*noisy.shape, x.shape[1])  # (2 B, h, w, C)
            low, high = self.noise
            size = low * (high / low) ** torch.rand(len(noisy), 1, 1, 1, device=x.device, generator=generator)
            drawn = torch.randn(int(noisy.sum()), x.shape[1], device=x.device, generator=generator)
            noise[noisy] = (size.expand(*noisy.shape, 1)[noisy] * drawn).to(x)
            x = torch.cat([x, x]) + noise.permute(0, 3, 1, 2)
        map_ = self.segment(x)  # (B, 1, h, w)
        seen = map_.detach() if stop else map_
        found = self.classify(torch.cat([x, seen], dim=1))
        if keep is None:
            pooled = [found.mean((2, 3)), found.amax((2, 3)), seen.mean((2, 3)), seen.amax((2, 3))]
        else:
            inside = keep[:, None].to(found)
            cells = inside.sum((2, 3)).clamp(min=1)
            lowest = seen.detach().amin((2, 3), keepdim=True)
            pooled = [
                (found * inside).sum((2, 3)) / cells,
                (found * inside).amax((2, 3)),  # a ReLU leaves nothing below 0
                (seen * inside).sum((2, 3)) / cells,
                torch.where(keep[:, None], seen, lowest).amax((2, 3)),
            ]
        score: Tensor = self.decide(torch.cat(pooled, dim=1))
        return map_[:, 0], score[:, 0]

    def _read(self, levels: tuple[Tensor, ...]) -> Tensor:
        """Standardise the levels, bring them to the grid, join them, and average each cell's neighbourhood."""
        means, stds = self.mean.split(self.channels), self.std.split(self.channels)
        scaled = [
            to_grid((level - mean[:, None, None]) / std[:, None, None], self.grid)
            for level, mean, std in zip(levels, means, stds, strict=True)
        ]
        return neighbourhood_mean(torch.cat(scaled, dim=1), self.patch)


# -- places, losses, known defects -------------------------------------------------------------------------------------


def perlin_noise(grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw Perlin noise on a grid, (h, w) within -1..1, from a generator of the CPU.

    A lattice of 1, 2, 4 ... 32 cells a side, drawn for each side, has a random direction at each corner; a point is
    given the products of its offsets with the directions of its four corners, blended smoothly (Perlin 1985, 2002).
    """
    lattice = [2 ** int(torch.randint(_OCTAVES, (), generator=generator)) for _ in grid]
    angle = 2 * torch.pi * torch.rand(lattice[0] + 1, lattice[1] + 1, generator=generator)
    axes = [(torch.arange(n) + 0.5) * (cells / n) for n, cells in zip(grid, lattice, strict=True)]
    row, column = (axis.long() for axis in axes)  # the corner above and to the left
    y, x = (axis - axis.floor() for axis in axes)
    total = torch.zeros(grid)
    for down in (0, 1):
        for right in (0, 1):
            direction = angle[row + down][:, column + right]  # (h, w)
            product = (y - down)[:, None] * direction.sin() + (x - right)[None] * direction.cos()
            weight = (_blend(y) if down else 1 - _blend(y))[:, None] * (_blend(x) if right else 1 - _blend(x))[None]
            total += weight * product
    return 2**0.5 * total


def _blend(t: Tensor) -> Tensor:
    """Rise from 0 to 1 with slope and curvature 0 at both ends."""
    return t**3 * (10 - 15 * t + 6 * t**2)


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the focal loss of each element (Lin et al. 2017): -(1 - p)^gamma log p, p of what is right."""
    right = torch.where(target, logits, -logits)
    return torch.sigmoid(-right) ** _GAMMA * F.softplus(-right)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Average (B, P, h, w) over the cells of all images where ``where``: (P,); 0 where there is none."""
    return torch.where(where, values, 0).sum((0, 2, 3)) / where.sum((0, 2, 3)).clamp(min=1)


class _Drawn(NamedTuple):
    """Known defects that a step draws.

    Attributes:
        levels: (K, P, C, h_k, w_k) each.
        counts: (K, P, h, w) bool, the cells that count.
        truth: (K, P, h, w) bool, the cells that a mask marks.
        unmarked: (K,) bool, without a mask.
    """

    levels: tuple[Tensor, ...]
    counts: Tensor
    truth: Tensor
    unmarked: Tensor


class _KnownDefects:
    """The features of known defects are kept as those of good images are, with where their defects are.

    Args:
        n: how many will be added.
        memory_gb: what their features may take of the memory.
    """

    def __init__(self, n: int, memory_gb: float) -> None:
        self._features = FeatureCache(n, memory_gb)
        self._cells: list[_Drawn] = []  # without levels, batch by batch

    def add(self, batch: Batch, truth: Tensor | None, grid: tuple[int, int]) -> None:
        """Take in a batch, with its masks (B, P, H, W) bool on the canvas or None."""
        self._features.add(batch)
        shape = (*batch.levels[0].shape[:2], *grid)
        counts, marked = kept_cells(batch.keep, grid), kept_cells(truth, grid)
        inside = torch.ones(shape, dtype=torch.bool) if counts is None else counts.cpu()
        cells = torch.zeros(shape, dtype=torch.bool) if marked is None else marked.cpu() & inside
        self._cells.append(_Drawn((), inside, cells, torch.full((shape[0],), marked is None)))

    @property
    def whole(self) -> bool:
        """Whether all cells of all defects count."""
        return all(bool(part.counts.all()) for part in self._cells)

    def drawn(self, n: int, device: torch.device, draws: Draws) -> _Drawn:
        """Draw n of them, each as likely as any other."""
        self._cells = [_Drawn((), *map(torch.cat, list(zip(*self._cells, strict=True))[1:]))]
        (known,) = self._cells
        chosen = torch.randint(len(known.unmarked), (n,), generator=draws.on("cpu"))
        levels = self._features.read(chosen.tolist()).levels
        return _Drawn(tuple(level.to(device) for level in levels), *(part[chosen].to(device) for part in known[1:]))

    def close(self) -> None:
        """Forget them."""
        self._features.close()
