"""EfficientAD: a student learns what a fast teacher says of good images, an autoencoder how such images are composed.

Batzner, Heckler, König: "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024.
The teacher T is a PDN, distilled from a large network and frozen (:mod:`pickglass.nn.networks.pdn`); its channels are
brought to mean 0 and deviation 1 over the good images. The student S has the teacher's form and twice its channels.

- Its first half learns T, only where it is wrong most: L_hard is the mean of the elements of (T - S)^2 at or above
  their 0.999 quantile (section 3.2). A penalty, the mean of S^2 on natural images, keeps it from learning the teacher
  for good.
- The autoencoder A learns T from the whole image through 64 numbers: L_AE, the mean of (T - A)^2. S's second half
  learns A, blur and all: L_STAE, the mean of (A - S')^2 (section 3.3). All three see the same jittered image.
- The local map is the mean over channels of (T - S)^2, the global map that of (A - S')^2. Each is scaled so that its
  0.9 and 0.995 quantiles on held-back good images become 0 and 0.1; the anomaly map is the mean of both, and its
  maximum the image score (section 3.4).

Where we depart, and why
- The image is continued by its own reflection, so the map reaches its borders. Mirrored patches are harder to predict:
  with one scale for all, four in five good images would have their maximum there. So each of the four rings of cells
  that see them has quantiles of its own, if held-back images show it often enough. ``frame="zero"`` is the paper's:
  no padding, and a frame of zeros, in which no defect is ever found.
- Batches of any size: quantile and means are each image's own, then the mean over the batch. The paper takes one.
- The teacher's statistics come from one pass: two passes over each batch, batches merged exactly (Chan et al. 1983).
- Penalty images are made on the spot unless a folder is named; the paper draws from ImageNet.
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's maximum is
  ``top_share=0``.
- The default is 5,000 steps, not 70,000, for nobody has a day on a CPU.
- Where descriptions differ: (T - S)^2 and the penalty are means over elements; 0.999 is the quantile's order.

Letters: B images, P positions, C = 384 channels, h x w cells, H x W pixels, N elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.data.painting.natural import natural_images, natural_photos
from pickglass.detectors.detector import Detector
from pickglass.detectors.method import FitContext
from pickglass.errors import DataError, InputError
from pickglass.features.batch import Batch
from pickglass.features.engine import PerPositionEngine
from pickglass.nn.maps import (
    ChannelMoments,
    RingQuantiles,
    batch_mean,
    cells_of,
    hardest_mean,
    highest,
    kept_cells,
    kept_mean,
    resampled_to,
    rings,
)
from pickglass.nn.networks.pdn import AE_SIDE, CHANNELS, FRAME, STRIDE, Autoencoder, PDNName, Student
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.loop import Draws, Phase, Plan
from pickglass.runtime.compute import Shape

__all__ = ["EfficientAD", "jitter"]

_MODELS: dict[str, PDNName] = {"pdn_tiny": "tiny", "pdn_small": "small", "pdn_medium": "medium"}
_LOST = FRAME // STRIDE  # cells at each border without padding
_SMALLEST = 64  # pixels
_NATURAL = 200  # pictures made for the penalty ...
_PHOTOS = 1000  # ... or photographs read
_LOW, _HIGH, _SCALE = 0.9, 0.995, 0.1  # quantiles that become 0 and a tenth
_FEWEST = 400  # cells of a ring, for quantiles of its own
_SEEN = (AE_SIDE, AE_SIDE)  # by the autoencoder
_LOCAL, _GLOBAL = slice(0, CHANNELS), slice(CHANNELS, 2 * CHANNELS)  # channels of the student


class EfficientAD(Detector):
    """EfficientAD (Batzner et al. 2024).

    Args:
        backbone: the form of teacher and student: ``"pdn_small"`` and ``"pdn_medium"`` are the paper's, ``"pdn_tiny"``
            is ours, with half the inner channels, for lines without a GPU.
        layers: the teacher's output, ``("teacher",)``.
        weights: the teacher's: ``"default"`` (shipped, of tiny and small), a file of ``pickglass distill``, or a
            published checkpoint of the same form.
        size: see :class:`pickglass.Detector`; at least 64 pixels a side.
        smoothing, top_share: as there (paper: 0). place_scale, level_shift: as there.
        natural: images for the penalty: ``"generated"``, a folder of photographs, or ``"none"``.
        frame: how the border is judged: ``"reflect"`` continues the image, ``"zero"`` (paper) leaves a frame of 16
            pixels unjudged.
        steps: training steps (paper: 70,000).
        batch: images of a step (paper: 1).
        lr: learning rate of Adam (paper: 1e-4); a tenth of it after 95 % of the steps.
        weight_decay: L2 penalty (paper: 1e-5).
        hard: order of the quantile from which an element counts in the student's loss (paper: 0.999).

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> detector = pg.EfficientAD(backbone="pdn_tiny", size=64, steps=2).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (16, 16)
    """

    method = "efficientad"
    reads = ("features", "images")
    validate_share = 0.1
    presets: ClassVar = {
        "paper": {"backbone": "pdn_small", "size": 256, "frame": "zero", "steps": 70_000, "top_share": 0.0},
        # some five minutes of two cores at 256 pixels
        "quick": {"backbone": "pdn_tiny", "steps": 500, "lr": 5e-4},
    }

    def __init__(
        self,
        *,
        backbone: str | nn.Module = "pdn_small",
        layers: Sequence[str] | None = None,
        weights: str = "default",
        size: int | str | tuple[int, int] = "area:256",
        smoothing: float | None = 0.0,
        top_share: float | None = None,
        place_scale: bool | None = None,
        level_shift: bool | None = None,
        natural: str = "generated",
        frame: Literal["reflect", "zero"] = "reflect",
        steps: int = 5000,
        batch: int = 1,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        hard: float = 0.999,
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
        self.natural = natural
        self.frame = frame
        self.steps = steps
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.hard = hard
        self.student: Stacked | None = None
        self.autoencoder: Stacked | None = None
        for name in ("mean", "std", "quantiles"):  # of the teacher (P, C); of the two maps (P, 2, R, 2)
            self.register_buffer(name, None)
        self.mean: Tensor
        self.std: Tensor
        self.quantiles: Tensor
        self._engine_of_positions: PerPositionEngine
        self._moments: ChannelMoments | None = None
        self._pictures: Tensor | None = None  # (N, 3, H, W) uint8
        self._held_back: RingQuantiles | None = None
        self._draws = Draws()

    def work_units(self, n_images: int) -> float:
        """Each step looks at a batch of images, however many there are."""
        return float(self.steps * self.batch)

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take the smallest networks and a few steps."""
        return {"backbone": "pdn_tiny", "steps": 4}

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Make the student and the autoencoder."""
        model = self._check(shapes)
        reflects = self.frame == "reflect"
        unjudged = 0 if reflects else 2 * _LOST
        grid = (shapes[0][1] - unjudged, shapes[0][2] - unjudged)
        frame = FRAME if reflects else 0
        self.student = Stacked(lambda: Student(model, frame), positions, seed)
        self.autoencoder = Stacked(lambda: Autoencoder(grid), positions, seed)
        self._engine_of_positions = PerPositionEngine("EfficientAD's student and autoencoder")
        self.mean, self.std = torch.zeros(positions, CHANNELS), torch.ones(positions, CHANNELS)
        n_rings = _LOST + 1 if reflects else 1
        self.quantiles = torch.tensor([0.0, 1.0]).repeat(positions, 2, n_rings, 1)  # low and high of local and global

    def _check(self, shapes: list[Shape]) -> PDNName:
        if self.backbone not in _MODELS or len(shapes) != 1 or self.fusing is not None:
            raise InputError(
                f"backbone={self.backbone!r}, layers={self.level_names()!r}: EfficientAD's teacher is the output of "
                f"a patch description network: backbone one of {', '.join(_MODELS)}, layers=['teacher'], not fused"
            )
        h, w = self.seen_size
        if min(h, w) < _SMALLEST:
            raise InputError(f"images of {h}x{w} pixels: EfficientAD needs at least {_SMALLEST} a side")
        if self.frame not in ("reflect", "zero"):
            raise InputError(f"frame={self.frame!r}: expected 'reflect' or 'zero'")
        if not 0 <= self.hard < 1:
            raise InputError(f"hard={self.hard!r}: expected the order of a quantile, from 0 to below 1, e.g. 0.999")
        return _MODELS[self.backbone]

    def begin_fit(self, context: FitContext) -> None:
        """Make or read the natural images of the penalty."""
        if not context.n_validate:
            raise InputError(
                "EfficientAD scales its maps on good images that are held back: give validate, e.g. 0.1, or more images"
            )
        self._moments, self._pictures = ChannelMoments(), None
        self._held_back = RingQuantiles(context.positions, self.quantiles.shape[2], _FEWEST)
        if self.natural == "generated":
            n = max(1, min(_NATURAL, self.steps * self.batch))
            self._pictures = torch.from_numpy(natural_images(n, self.seen_size, context.seed)).permute(
                0, 3, 1, 2
            )  # (N, 3, H, W)
        elif self.natural != "none":
            photos = natural_photos(self.natural, self.seen_size, _PHOTOS, context.seed)  # (N, H, W, 3)
            self._pictures = torch.from_numpy(photos).permute(0, 3, 1, 2)

    def begin_update(self, context: FitContext) -> None:
        """Get ready as for a fit; the teacher's channels keep the scale in which the student has learned them."""
        self.begin_fit(context)

    def observe(self, batch: Batch) -> None:
        """Add a batch to the mean and deviation of the teacher's channels."""
        if self._moments is None:
            raise RuntimeError("observe before begin_fit")
        teacher = self._inside(batch.levels[0])
        self._moments.add(teacher, self._kept(batch))
        self.mean, self.std = (m.to(self.mean) for m in self._moments.mean_and_std())

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return one phase: student and autoencoder are trained together."""
        student, autoencoder = self._networks()
        both = nn.ModuleDict({"student": student, "autoencoder": autoencoder})
        plan = Plan(
            steps=self.steps, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, milestone=0.95, gamma=0.1
        )
        return [Phase("student and autoencoder", both, self.loss, plan, draws=self._draws)]

    def loss(self, batch: Batch) -> Tensor:
        """Compute L_hard + penalty + L_AE + L_STAE: (P,)."""
        student, autoencoder = self._networks()
        images, keep = self._images(batch), self._kept(batch)
        t = _normalised(self._inside(batch.levels[0]), self.mean, self.std)  # (B, P, C, h, w)
        s = student(self._prepared(images), _LOCAL)
        loss = batch_mean(hardest_mean((t - s).square(), self.hard, keep), keep)
        if self._pictures is not None:
            chosen = torch.randint(len(self._pictures), (len(images),), generator=self._draws.on("cpu"))
            drawn = self._pictures[chosen]  # (B, 3, H, W)
            pictures = (drawn.to(images) / 255)[:, None].expand(-1, images.shape[1], -1, -1, -1)
            loss = loss + student(self._prepared(pictures), _LOCAL).square().mean((0, 2, 3, 4))
        jittered = jitter(images, self._draws)
        with torch.no_grad():
            t = _normalised(self._inside(self._teacher(jittered)), self.mean, self.std)
        x = self._prepared(jittered)
        a = autoencoder(resampled_to(x, _SEEN), self._draws if autoencoder.training else None)
        s = student(x, _GLOBAL)
        for squares in ((t - a).square(), (a - s).square()):
            loss = loss + batch_mean(kept_mean(squares.mean(2), keep), keep)
        return loss

    def observe_validation(self, batch: Batch) -> None:
        """Keep the maps of held-back images for their quantiles."""
        if self._held_back is None:
            raise RuntimeError("observe_validation before begin_fit")
        self._held_back.add(torch.stack(self._branches(batch)), self._kept(batch))

    def end_fit(self) -> dict[str, Any]:
        """Set the quantiles that scale the maps, and tell what was learned."""
        if self._held_back is None:
            raise RuntimeError("end_fit before begin_fit")
        self._held_back.fill(self.quantiles, (_LOW, _HIGH))
        if not bool((self.quantiles[..., 1] > self.quantiles[..., 0]).all()):
            raise DataError(
                f"EfficientAD cannot scale its maps: their {_LOW} and {_HIGH} quantiles on the held-back good images, "
                f"{self.quantiles[0].tolist()}, are not all apart. These images may be blank, or nearly so: give "
                "images that show the part"
            )
        pictures = 0 if self._pictures is None else len(self._pictures)
        self._held_back = self._pictures = self._moments = None
        student, autoencoder = (sum(x[0].numel() for x in net.parameters()) for net in self._networks())
        return {
            "student_parameters": student,
            "autoencoder_parameters": autoencoder,
            "natural": self.natural,
            "natural_images": pictures,
            "quantiles": self.quantiles.tolist(),
        }

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by the mean of both maps: scores (B, P), maps (B, P, h, w)."""
        parts = self.component_maps(batch)
        maps = (parts["local"] + parts["global"]) / 2
        keep = kept_cells(batch.keep, cells_of(maps))
        return highest(maps, keep), self.smoothed(maps, keep)

    def component_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Return the local and the global map, scaled, (B, P, h, w) each."""
        named = dict(zip(("local", "global"), self._branches(batch), strict=True))
        quantiles = self.quantiles.reshape(len(self.quantiles), 2, -1, 2)  # older files have (P, 2, 2): no rings
        ring = rings(named["local"], quantiles.shape[2])  # (h, w)
        for i, name in enumerate(named):
            low, high = quantiles[:, i, ring].unbind(3)  # (P, h, w) each
            named[name] = _SCALE * (named[name] - low) / (high - low)
            if self.frame == "zero":
                named[name] = F.pad(named[name], (_LOST,) * 4)
        return named

    def _branches(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the mean over channels of (T - S)^2 and of (A - S')^2, (B, P, h, w) each."""
        network = _Distances(*self._networks(), self.mean, self.std)
        inputs = self._prepared(self._images(batch)), self._inside(batch.levels[0])
        local, whole = self._engine_of_positions.run(batch.engine, network, *inputs)
        return local, whole

    def _images(self, batch: Batch) -> Tensor:
        if batch.images is None:
            raise RuntimeError("EfficientAD reads images too")
        return batch.images

    def _prepared(self, images: Tensor) -> Tensor:
        """Normalise images (B, P, 3, H, W) as the teacher's backbone does."""
        extractor = self.network
        return (images - extractor.mean) / extractor.std

    def _teacher(self, images: Tensor) -> Tensor:
        """Run the teacher on images in [0, 1]: (B, P, 3, H, W) -> (B, P, C, h, w)."""
        level: Tensor = self.network(images.flatten(0, 1))[0].unflatten(0, images.shape[:2])
        return level

    def _inside(self, cells: Tensor) -> Tensor:
        """Leave out the cells whose field leaves the image, where these are not judged."""
        return cells if self.frame == "reflect" else cells[..., _LOST:-_LOST, _LOST:-_LOST]

    def _kept(self, batch: Batch) -> Tensor | None:
        """Return which cells count, (B, P, h, w) bool; None: all."""
        level = batch.levels[0]
        keep = kept_cells(batch.keep, (level.shape[3], level.shape[4]))
        return None if keep is None else self._inside(keep)

    def _networks(self) -> tuple[Stacked, Stacked]:
        if self.student is None or self.autoencoder is None:
            raise self.unfitted()
        return self.student, self.autoencoder


class _Distances(nn.Module):
    """Everything that judges beside the teacher, as one graph.

    Args:
        student, autoencoder: of P positions.
        mean, std: of the teacher's channels, (P, C).
    """

    def __init__(self, student: Stacked, autoencoder: Stacked, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.student = student
        self.autoencoder = autoencoder
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, P, 3, H, W), teacher (B, P, C, h, w) -> local and global map, (B, P, h, w) each."""
        t = _normalised(teacher, self.mean, self.std)
        s = self.student(x, slice(None))  # (B, P, 2 C, h, w)
        a = self.autoencoder(resampled_to(x, _SEEN))
        return (t - s[:, :, _LOCAL]).square().mean(2), (a - s[:, :, _GLOBAL]).square().mean(2)


# -- losses ------------------------------------------------------------------------------------------------------------


def jitter(images: Tensor, draws: Draws) -> Tensor:
    """Multiply brightness, contrast or saturation of each image by 0.8 to 1.2: (B, P, 3, H, W) in [0, 1]."""
    shape, generator = (*images.shape[:2], 1, 1, 1), draws.on(images.device)
    kind = torch.randint(3, shape, device=images.device, generator=generator)
    factor = 0.8 + 0.4 * torch.rand(shape, device=images.device, generator=generator)
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(3, 1, 1)
    grey = (images * luma).sum(2, keepdim=True)  # (B, P, 1, H, W)
    flat = torch.where(kind == 0, torch.zeros_like(grey), grey.mean((3, 4), keepdim=True))
    towards = torch.where(kind == 2, grey, flat)
    return (factor * images + (1 - factor) * towards).clamp(0, 1)


def _normalised(teacher: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise the teacher's channels (B, P, C, h, w) by their statistics, (P, C) each."""
    return (teacher - mean[..., None, None]) / std[..., None, None]
