"""Reverse Distillation: a decoder rebuilds the teacher's levels from one narrow embedding of all of them.

Deng, Li: "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022. Equation numbers are the
paper's. The levels f_E of the teacher are brought to the deepest one's grid and fused; a residual stage, a further one
of the encoder's kind, embeds them at half that grid. The student, a mirrored decoder, restores the levels f_D from the
embedding alone, which has learned to hold what is normal. The anomaly map M of a level is the cosine distance of
f_E and f_D at every cell (eq. 1); the levels' maps are enlarged, summed and smoothed (eq. 3), and the maximum of the
smoothed map is the image score.

Where we depart, and why
- Training takes one cosine distance of the whole flattened level, as the authors' code does and the published results
  need; eq. 2, the mean of eq. 1 over the cells, trains something else and is reported to end lower.
- The fusion ends in the paper's 1x1 convolution, which the authors' code makes and never uses. The decoder mirrors the
  encoder, 6, 4 and 3 blocks from the deepest level up; the authors' code has 3, 4 and 6: ``blocks=(6, 4, 3, 3)``.
- Any backbone, any number of levels at any grids: between two grids lie as many halvings or doublings as come nearest,
  then a bilinear resize to the exact size. Levels that do not end in a ReLU need the linear layer of ``width``.
- Maps are enlarged to the first level's grid, not to the image, with half-pixel centres (authors: corners aligned).
- The map weighs each cell of a level by |f_E|^2 / (|f_E|^2 + u^2), u the usual length of the level's features
  (``length_weights``; ``paper`` does not). The direction of a short feature is mostly noise, and the loss, one cosine
  of the whole level, hardly asks for it.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's maximum is
  ``top_share=0``.
- The weights of the epoch with the lowest validation loss are kept (``pick``), since at this learning rate the running
  statistics of batch normalisation lag behind and single epochs go astray; ``paper``: those of the last.

Letters: B images, P positions, C channels, h x w cells of a level, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.features.engine import PerPositionEngine
from pickglass.nn.maps import UsualLengths, batch_mean, cells_of, highest, kept_cells, length_weights, to_grid
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.loop import Phase, Plan
from pickglass.runtime.compute import Shape

__all__ = ["ReverseDistillation"]

BlockName = Literal["basic", "bottleneck"]
Change = Literal["halve", "keep", "double"]


class ReverseDistillation(Detector):
    """Reverse distillation from a one-class embedding (Deng and Li 2022).

    Args:
        backbone, layers, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
            Layers from the finest to the coarsest. Paper: WideResNet-50, layer1 to layer3, smoothing 4 pixels.
        block: residual block of embedding and decoder: ``"basic"`` (two 3x3 convolutions) or ``"bottleneck"`` (1x1,
            3x3, 1x1, half as wide inside, as in WideResNet-50; paper).
        blocks: how many of them in each stage: a number, or one for each layer and last for the embedding (paper:
            3, 4, 6 and 3, as in the encoder).
        width: channels of the decoder's stages, as a multiple of the levels'; each stage then has a linear 1x1
            convolution to its level. None: as wide as the levels, without it (paper; for levels that end in a ReLU).
        epochs: how often every image is seen (paper: 200).
        batch: images of a training step (paper: 16).
        lr: learning rate of Adam (paper: 5e-3).
        betas: Adam's betas (paper: 0.5 and 0.999).
        length_weights: a cell counts by the length of the teacher's feature there (paper: False).
        pick: ``"best"`` keeps the epoch with the lowest validation loss, ``"last"`` the last one (paper).

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.ReverseDistillation(size=64, epochs=1).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (16, 16)
    """

    method = "reverse_distillation"
    strides = (4, 8, 16)
    validate_share = 0.1
    presets: ClassVar = {
        "paper": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer1", "layer2", "layer3"),
            "size": 256,
            "smoothing": 4.0,
            "block": "bottleneck",
            "blocks": (3, 4, 6, 3),
            "width": None,
            "epochs": 200,
            "batch": 16,
            "lr": 5e-3,
            "length_weights": False,
            "pick": "last",
            "top_share": 0.0,
        },
        # about two minutes of two cores for 200 images of 256 pixels: 160 of them 40 times, 0.6 GMAC each
        "quick": {"epochs": 40},
    }

    def __init__(
        self,
        *,
        backbone: str | nn.Module = "efficientnet_lite0",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:256",
        smoothing: float | None = 4.0,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        block: BlockName = "basic",
        blocks: int | Sequence[int] = 1,
        width: float | None = 1.0,
        epochs: int = 100,
        batch: int = 16,
        lr: float = 5e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        length_weights: bool = True,
        pick: Literal["last", "best"] = "best",
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
        self.block = block
        self.blocks = blocks
        self.width = width
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.betas = betas
        self.length_weights = length_weights
        self.pick = pick
        self.student: Stacked | None = None
        self.register_buffer("usual", None)  # (P, K) length of a teacher's feature at each level
        self.usual: Tensor | None
        self._lengths = UsualLengths()
        self._engine_of_positions = PerPositionEngine("Reverse Distillation's embedding and decoder")

    @property
    def uses_validation(self) -> bool:
        """Whether validation images choose the epoch."""
        return self.pick == "best"

    def work_units(self, n_images: int) -> float:
        """Each epoch looks at each image once."""
        return float(self.epochs * n_images)

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take a few epochs of small batches."""
        return {"epochs": 8, "batch": 4}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Make embedding and decoder to measure for the levels."""
        blocks = self._check(shapes)
        self.student = Stacked(lambda: _Student(shapes, blocks, self.block, self.width), positions, seed)
        self.usual = torch.zeros(positions, len(shapes)) if self.length_weights else None

    def _check(self, shapes: list[Shape]) -> list[int]:
        """Raise for settings that cannot be; return the number of blocks of each stage."""
        blocks = [self.blocks] * (len(shapes) + 1) if isinstance(self.blocks, int) else list(self.blocks)
        if len(blocks) != len(shapes) + 1 or min(blocks) < 1:
            raise InputError(
                f"blocks={self.blocks!r}: expected a number from 1 on, or {len(shapes) + 1} of them: one for each "
                f"of the {len(shapes)} layers and one for the embedding"
            )
        if self.block not in get_args(BlockName):
            raise InputError(f"block={self.block!r}: expected one of {', '.join(get_args(BlockName))}")
        if self.width is not None and self.width <= 0:
            raise InputError(f"width={self.width!r}: expected a positive multiple of the channels, e.g. 1, or None")
        grids = [(h, w) for _, h, w in shapes]
        if any(a[0] < b[0] or a[1] < b[1] for a, b in pairwise(grids)):
            found = ", ".join(f"{layer} {h}x{w}" for layer, (h, w) in zip(self.level_names(), grids, strict=True))
            raise InputError(
                f"layers must go from the finest grid to the coarsest, but these are {found}: reorder them"
            )
        return blocks

    def begin_fit(self, context: FitContext) -> None:
        """Begin to measure lengths; the networks were built for these levels."""
        self._lengths = UsualLengths()

    def begin_update(self, context: FitContext) -> None:
        """Allocate nothing: embedding and decoder are trained on, lengths are compared with those of the fit."""

    def observe(self, batch: Batch) -> None:
        """Add a batch to the usual length of the teacher's features."""
        if self.usual is not None:
            self._lengths.add(batch.levels, batch.keep)
            self.usual = self._lengths.lengths().to(self.usual)

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return one phase: embedding and decoder are trained together."""
        plan = Plan(
            epochs=self.epochs, batch=self.batch, lr=self.lr, betas=(self.betas[0], self.betas[1]), pick=self.pick
        )
        return [Phase("decoder", self._student(), self._loss, plan)]

    def _loss(self, batch: Batch) -> Tensor:
        """Compute the cosine distance of the flattened levels, summed, and its mean over the images: (P,)."""
        total = batch.levels[0].new_zeros(batch.levels[0].shape[:2])  # (B, P)
        for f_e, f_d in self._pairs(batch):
            keep = kept_cells(batch.keep, (f_e.shape[3], f_e.shape[4]))
            if keep is not None:
                f_e, f_d = f_e * keep[:, :, None], f_d * keep[:, :, None]
            total = total + 1 - F.cosine_similarity(f_e.flatten(2), f_d.flatten(2), dim=2)
        return batch_mean(total, batch.keep)  # (P,)

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by eq. 1 and 3, 0 to 2 from each level: maps (B, P, h, w) are smoothed, scores (B, P) their maxima."""
        grid = cells_of(batch.levels[0])
        keep = kept_cells(batch.keep, grid)
        maps = self.smoothed(torch.stack(self._distances(batch)).sum(0), keep)  # (B, P, h, w)
        return highest(maps, keep), maps

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighed cosine distances of the levels, whose sum the map is."""
        return dict(zip(self.level_names(), self._distances(batch), strict=True))

    def _distances(self, batch: Batch) -> list[Tensor]:
        """Compute the cosine distance of each level, weighed, on the first one's grid, (B, P, h, w) each."""
        grid, distances = cells_of(batch.levels[0]), []
        for k, (f_e, f_d) in enumerate(self._pairs(batch)):
            m = 1 - F.cosine_similarity(f_e, f_d, dim=2)  # (B, P, h_k, w_k)
            weighed = m if self.usual is None else m * length_weights(f_e, self.usual[:, k])
            distances.append(to_grid(weighed, grid))
        return distances

    def _pairs(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return f_E and f_D of each level, both (B, P, C, h, w)."""
        restored = self._engine_of_positions.run(batch.engine, self._student(), *batch.levels)
        # half precision would leave little of the difference of two numbers near 1
        return [(f_e.float(), f_d.float()) for f_e, f_d in zip(batch.levels, restored, strict=True)]

    def _student(self) -> Stacked:
        if self.student is None:
            raise self.unfitted()
        return self.student


# -- the networks of one position --------------------------------------------------------------------------------------


class _Student(nn.Module):
    """The network of one position, embedding and mirrored decoder: K levels (B, C, h, w) -> K levels."""

    def __init__(self, shapes: list[Shape], blocks: Sequence[int], block: BlockName, width: float | None) -> None:
        super().__init__()
        channels = [c for c, _, _ in shapes]
        self.grids = [(h, w) for _, h, w in shapes]
        inner = channels if width is None else [max(2, round(width * c)) for c in channels]
        deepest = inner[-1]
        self.fusions = nn.ModuleList(
            _fusion([channels[k], *inner[k + 1 :]], self.grids[k:]) for k in range(len(shapes) - 1)
        )
        fused = len(self.fusions) * deepest + channels[-1]
        self.compress = nn.Sequential(_conv(fused, deepest, 1), nn.BatchNorm2d(deepest), nn.ReLU())
        self.embed = _stage(block, blocks[-1], deepest, 2 * deepest, ["halve"])
        below = [(math.ceil(h / 2), math.ceil(w / 2)) for h, w in self.grids[-1:]]
        steps = [_steps(fine, coarse) for fine, coarse in zip(self.grids, [*self.grids[1:], *below], strict=True)]
        inputs = [*inner[1:], 2 * deepest]
        self.stages = nn.ModuleList(
            _stage(block, n, c_in, c, ["double"] * step)
            for n, c_in, c, step in zip(blocks, inputs, inner, steps, strict=False)
        )
        self.heads = nn.ModuleList(
            nn.Identity() if width is None else nn.Conv2d(i, c, 1) for i, c in zip(inner, channels, strict=True)
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        aligned = [
            to_grid(f(x), self.grids[-1]) for f, x in zip(self.fusions, levels, strict=False)
        ]  # (B, C, h_K, w_K)
        x = self.embed(self.compress(torch.cat([*aligned, levels[-1]], dim=1)))  # (B, 2 C_K, h_K / 2, w_K / 2)
        restored = []
        for k in reversed(range(len(levels))):
            x = to_grid(self.stages[k](x), self.grids[k])  # (B, C, h_k, w_k)
            restored.append(self.heads[k](x))
        return tuple(reversed(restored))


def _fusion(channels: Sequence[int], grids: Sequence[tuple[int, int]]) -> nn.Sequential:
    """Bring a level to the deepest one's grid by 3x3 convolutions of stride 2, widened at each level on the way."""
    parts: list[nn.Module] = []
    for k, (fine, coarse) in enumerate(pairwise(grids)):
        c_in, c = channels[k], channels[k + 1]
        for change in ["halve"] * _steps(fine, coarse) or ["keep"]:
            parts += [_resizing(c_in, c, change), nn.BatchNorm2d(c), nn.ReLU()]  # type: ignore[arg-type]
            c_in = c
    return nn.Sequential(*parts)


def _steps(fine: tuple[int, int], coarse: tuple[int, int]) -> int:
    """Return how many halvings come nearest between two grids."""
    return round(math.log2(max(f / c for f, c in zip(fine, coarse, strict=True))))


def _stage(block: BlockName, blocks: int, c_in: int, c: int, changes: Sequence[Change]) -> nn.Sequential:
    """Make residual blocks, at least ``blocks`` of them; the first ones change the grid."""
    todo: list[Change] = [*changes, *["keep"] * (blocks - len(changes))]  # type: ignore[list-item]
    return nn.Sequential(*(_Block(block, c if i else c_in, c, change) for i, change in enumerate(todo)))


class _Block(nn.Module):
    """A residual block of ResNet that halves, keeps or doubles the grid."""

    def __init__(self, block: BlockName, c_in: int, c: int, change: Change) -> None:
        super().__init__()
        if block == "basic":
            steps = [_resizing(c_in, c, change), _conv(c, c, 3)]
            widths = [c, c]
        else:
            inner = max(1, c // 2)
            steps = [_conv(c_in, inner, 1), _resizing(inner, inner, change), _conv(inner, c, 1)]
            widths = [inner, inner, c]
        parts: list[nn.Module] = []
        for step, own in zip(steps, widths, strict=True):
            parts += [step, nn.BatchNorm2d(own), nn.ReLU()]
        self.body = nn.Sequential(*parts[:-1])  # the last ReLU follows the sum
        self.skip: nn.Module = nn.Identity()
        if change != "keep" or c_in != c:
            resize = (
                _resizing(c_in, c, change) if change == "double" else _conv(c_in, c, 1, 2 if change == "halve" else 1)
            )
            self.skip = nn.Sequential(resize, nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def _conv(c_in: int, c: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(c_in, c, kernel, stride, padding=kernel // 2, bias=False)


def _resizing(c_in: int, c: int, change: Change) -> nn.Module:
    """Make a 3x3 convolution, at stride 2 to halve, or a 2x2 transposed convolution to double."""
    if change == "double":
        return nn.ConvTranspose2d(c_in, c, 2, 2, bias=False)
    return _conv(c_in, c, 3, 2 if change == "halve" else 1)
