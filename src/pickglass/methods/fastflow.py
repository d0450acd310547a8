"""FastFlow: bend the features of good images into a normal distribution; what stays far from its centre is anomalous.

Yu, Zheng, Wang, Li, Wu, Zhao, Wu: "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing
Flows", arXiv 2111.07677, 2021. Each level of the backbone gets a layer norm with an affine of its own per channel and
cell, then a flow of 8 affine coupling steps whose sub-networks are convolutions, 3x3 and 1x1 in turn, so that the grid
is kept. Training maximises the likelihood of good features: loss = mean over images of the sum over channels and cells
of 0.5 z^2 - log |det|, summed over the levels, not divided by the dimension. A cell's anomaly is its mean z^2 over
the channels; levels are brought to one grid and averaged; the image score is the largest cell.

Where we depart, and why
- The map stays in the log domain, 0.5 mean z^2. The usual map, the mean over levels of -exp(-0.5 mean z^2), ranks the
  cells of one level alike, but in float32 a level stops to matter beside another from mean z^2 of about 35 on, and is
  0 from 207 on: strong anomalies tie. It weighs the levels in another way, too: no level can add more than 1.
- By default the epoch with the lowest loss on held-back good images is kept, so that training for too long costs time
  and nothing else. The paper keeps the last epoch: ``paper`` does so too; give it all images with ``validate=0``.
- By default there are 100 epochs of batches of 8: what counts is the number of steps, and so 200 images get 2,000.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's maximum is
  ``top_share=0``.
- The paper leaves open what is inside a step. Ours: a fixed random permutation of the channels, half of them kept,
  log-scales within -2..2 by a hyperbolic tangent, sub-network outputs times 0.1, no learned scale between the steps.
  The flows of the paper's 256 px models then have 4.65 M (ResNet-18; paper 4.9 M) and 41.31 M parameters (Wide
  ResNet-50; paper 41.3 M), the layer norms another 0.92 and 3.67 M, which the paper's second figure leaves no room for.
- The volume change of the layer norm's affine counts in log |det|. The re-implementations leave it out: then the loss
  falls for as long as the affine shrinks, by a learning rate a step, the last epoch always looks best, and after about
  a thousand steps painted defects were found worse than at the start.

The layer norm ties a model to its input size. Cells outside the region of interest count neither in the loss nor in
the score, but the layer norm and the convolutions do see them.

Letters: B images, P positions, C channels, h x w cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.features.engine import PerPositionEngine
from pickglass.nn.maps import cells_of, highest, kept_cells, to_grid
from pickglass.nn.networks.coupling import CouplingFlow, fastflow_steps, nll
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.loop import Phase, Plan
from pickglass.runtime.compute import Shape

__all__ = ["FastFlow"]


class FastFlow(Detector):
    """FastFlow (Yu et al. 2021).

    Args:
        backbone, layers, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
            The first layer sets the grid.
        steps: coupling steps per level (paper: 8).
        kernels: kernels of the sub-networks: ``"alternating"`` 3x3 and 1x1, or ``"3x3"`` (paper: for ResNet-18).
        hidden_ratio: hidden channels of a sub-network per channel it reads (paper: 1.0).
        clamp: bound of the log-scales, above 0.
        epochs: passes over the images (paper: 500).
        batch: images of a training step (paper: 32).
        lr: learning rate of Adam (paper: 1e-3).
        weight_decay: L2 penalty (paper: 1e-5).
        pick: ``"best"`` keeps the epoch with the lowest validation loss, ``"last"`` the last (paper).

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.FastFlow(size=64, epochs=2).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (16, 16)
    """

    method = "fastflow"
    strides = (4, 8, 16)
    reads = ("features",)
    validate_share = 0.1
    presets: ClassVar = {
        "paper": {
            "backbone": "wide_resnet50_2",
            "layers": ("layer1", "layer2", "layer3"),
            "size": 256,
            "smoothing": 0.0,
            "epochs": 500,
            "batch": 32,
            "pick": "last",
            "top_share": 0.0,
        },
        # about three minutes of one core for 200 images of 256 pixels: 160 of them 50 times, some 40 a second
        "quick": {"layers": ("stage3", "stage5"), "epochs": 50, "batch": 4},
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
        steps: int = 8,
        kernels: Literal["alternating", "3x3"] = "alternating",
        hidden_ratio: float = 1.0,
        clamp: float = 2.0,
        epochs: int = 100,
        batch: int = 8,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        pick: Literal["best", "last"] = "best",
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
        self.steps = steps
        self.kernels = kernels
        self.hidden_ratio = hidden_ratio
        self.clamp = clamp
        self.epochs = epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.pick = pick
        self.flows: Stacked | None = None
        self._engine_of_positions = PerPositionEngine("FastFlow's flows")

    @property
    def uses_validation(self) -> bool:
        """Whether validation images choose the epoch."""
        return self.pick == "best"

    def work_units(self, n_images: int) -> float:
        """Each epoch looks at each image once."""
        return float(self.epochs * n_images)

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take fewer coupling steps and a few epochs of small batches."""
        return {"steps": 4, "epochs": 10, "batch": 4}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Make a layer norm and a flow for each level."""
        self._check(shapes)
        self.flows = Stacked(lambda: self._network(shapes), positions, seed)

    def _network(self, shapes: list[Shape]) -> _Flows:
        sides = [3, 1] if self.kernels == "alternating" else [3, 3]
        return _Flows(shapes, [sides[i % 2] for i in range(self.steps)], self.hidden_ratio, self.clamp)

    def _check(self, shapes: list[Shape]) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps!r}: expected at least 1")
        for name in ("hidden_ratio", "clamp"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r}: expected a number above 0")
        if self.kernels not in ("alternating", "3x3"):
            raise InputError(f"kernels={self.kernels!r}: expected 'alternating' (3x3 and 1x1 in turn) or '3x3'")
        for layer, (channels, _, _) in zip(self.level_names(), shapes, strict=True):
            if channels < 2:
                raise InputError(f"layer {layer!r} has {channels} channel; a flow needs 2 to split: choose another")

    def begin_fit(self, context: FitContext) -> None:
        """Gather nothing: everything is learned in the one phase."""

    def begin_update(self, context: FitContext) -> None:
        """Allocate nothing: the flows are trained on from where they are."""

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return one phase: the flows of all levels are trained together."""
        plan = Plan(epochs=self.epochs, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, pick=self.pick)
        return [Phase("flow", self._flows(), self.loss, plan)]

    def loss(self, batch: Batch) -> Tensor:
        """Compute the negative log-likelihood in nats per image, without its constant, levels summed: (P,)."""
        total = batch.levels[0].new_zeros(())
        for z, log_det in self._flows()(*batch.levels):
            grid = (z.shape[3], z.shape[4])
            total = total + grid[0] * grid[1] * nll(z, log_det, kept_cells(batch.keep, grid))
        return total

    def end_fit(self) -> dict[str, Any]:
        """Count the learned parameters."""
        learned = [p[0].numel() for p in self._flows().parameters()]  # of one position
        return {"parameters": sum(learned)}

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by 0.5 z^2, its mean over the channels, then the levels: scores (B, P), maps (B, P, h, w)."""
        maps = torch.stack(self._parts(batch)).mean(0)  # (B, P, h, w)
        keep = kept_cells(batch.keep, cells_of(maps))
        return highest(maps, keep), self.smoothed(maps, keep)

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Return 0.5 z^2 of each level, its mean over the channels; the map is their mean."""
        return dict(zip(self.level_names(), self._parts(batch), strict=True))

    def _parts(self, batch: Batch) -> list[Tensor]:
        grid, network = cells_of(batch.levels[0]), _Parts(self._flows())
        parts = self._engine_of_positions.run(batch.engine, network, *batch.levels)
        return [to_grid(part, grid) for part in parts]  # (B, P, h, w)

    def _flows(self) -> Stacked:
        if self.flows is None:
            raise self.unfitted()
        return self.flows


class _Parts(nn.Module):
    """What judges, as one graph: levels (B, P, C, h, w) -> the mean over the channels of 0.5 z^2, (B, P, h, w) each."""

    def __init__(self, flows: Stacked) -> None:
        super().__init__()
        self.flows = flows

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        return tuple(0.5 * z.square().mean(2) for z, _ in self.flows(*levels))


# -- the network of one position ---------------------------------------------------------------------------------------


class _Flows(nn.Module):
    """The network of one position: a flow for each level."""

    def __init__(self, shapes: list[Shape], kernels: Sequence[int], hidden_ratio: float, clamp: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_LevelFlow(shape, kernels, hidden_ratio, clamp) for shape in shapes)

    def forward(self, *levels: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Per level (B, C, h, w) -> per level z (B, C, h, w) and log |det| by cell (B, h, w)."""
        return tuple(flow(x) for flow, x in zip(self.levels, levels, strict=True))


class _LevelFlow(nn.Module):
    """Layer norm over (C, h, w) with an affine per channel and cell, then the coupling steps."""

    def __init__(self, shape: Shape, kernels: Sequence[int], hidden_ratio: float, clamp: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape)
        self.flow = CouplingFlow(fastflow_steps(shape[0], kernels, hidden_ratio, clamp))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.flow(self.norm(x))
        return z, log_det + self.norm.weight.abs().log().sum(0)  # what the affine stretches: (B, h, w)
