"""AST: a flow cannot help but answer strangely to strange features, and a plain network cannot follow it there.

Rudolph, Wehrbein, Rosenhahn, Wandt: "Asymmetric Student-Teacher Networks for Industrial Anomaly Detection", WACV 2023.
The teacher is a RealNVP on the features of one layer, conditioned on a sinusoidal code of the position, and trained on
good images for likelihood: loss = mean over cells of 0.5 sum over channels of z^2 - log |det|. The student, a
convolutional network of another kind that reads the features and the code, then learns to give the same z. Being
bijective, the teacher must answer differently to what it has not seen; the student was never told how. The squared
distance of the two, mean over the channels, is the anomaly map.

- Teacher: 4 coupling blocks, each moving both halves of the channels after a fixed random permutation; sub-networks of
  two convolutions (hidden 64, kernels 3, 3, 3, 5, replicated borders) times a learned number that starts at 0, so
  that the untrained teacher is the identity; log-scales within -1.9..1.9 by an arc tangent. As in the authors' code
  its output is limited to -1e6..1e6, which only a feature far outside of training reaches.
- Student: 3x3 convolution, 4 residual blocks (2 x convolution, batch norm, leaky ReLU), 3x3 convolution.
- Image score: the maximum over the map or its mean; the authors report both, and they are different numbers.

Where we depart, and why
- The paper trains on RGB and 3D data, and masks the background by means of the depth; here are RGB features only. A
  region of interest is honoured: only its cells count in the losses and scores; convolutions and batch norm see all.
- By default the weights with the lowest loss on held-back good images are kept, in both phases; ``paper`` keeps the
  last (give it all images with ``validate=0``).
- The image score is the mean over the highest 0.2 % of the joined map (``top_share``); the paper's maximum is
  ``top_share=0``.
- The factor of the arc tangent is 2/pi; the authors' code has 0.636.
- The default learning rate is 1e-3, five times the paper's: with few images it gets to a clearly higher likelihood of
  held-back ones in the same epochs.
- The default student has 256 channels where the paper's has 1024: a 16th of the products, for a backbone whose
  features have 112 channels instead of 304.

Letters: B images, P positions, C channels, D channels of the position code, h x w cells of the layer.
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
from pickglass.nn.maps import batch_mean, cells_of, highest, kept_cells, kept_mean
from pickglass.nn.networks.coupling import CouplingFlow, nll, realnvp_steps
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.loop import Phase, Plan
from pickglass.runtime.compute import Shape

__all__ = ["AsymmetricStudentTeacher", "position_code"]

_KERNELS = (3, 3, 3, 5)  # of the teacher's blocks
_HIDDEN = 64  # channels of the teacher's sub-networks
_CLAMP = 1.9  # bound of the teacher's log-scales
_BLOCKS = 4  # residual blocks of the student
_LIMIT = 1e6  # of the teacher's output


class AsymmetricStudentTeacher(Detector):
    """Asymmetric student-teacher networks (Rudolph et al. 2023).

    Args:
        backbone, weights, size, smoothing, top_share, place_scale, level_shift: see
            :class:`pickglass.Detector`.
        layers: exactly one layer.
        student_hidden: channels of the student's residual blocks (paper: 1024).
        code: channels of the position code, a multiple of 4 (paper: 32); 0 is none.
        teacher_epochs, student_epochs: passes over the images of the two phases (paper: 72 each).
        batch: images of a training step (paper: 8); an incomplete batch at an epoch's end is left out.
        lr: learning rate of Adam (paper: 2e-4).
        weight_decay: L2 penalty (paper: 1e-5).
        image_score: ``"max"`` or ``"mean"`` of the unsmoothed map over the cells that count. The maximum suits small
            defects; the mean suits defects that change much of the image.
        pick: ``"best"`` keeps the epoch with the lowest validation loss, ``"last"`` the last (paper).

    Example:
        >>> import numpy as np, pickglass as pg
        >>> good = np.random.default_rng(0).integers(90, 110, (12, 64, 64, 3), dtype=np.uint8)
        >>> tiny = {"teacher_epochs": 2, "student_epochs": 2, "student_hidden": 16}
        >>> detector = pg.AsymmetricStudentTeacher(size=64, **tiny).fit(good)
        >>> detector.predict(good[:2]).maps[0].shape
        (4, 4)
    """

    method = "asymmetric_student_teacher"
    strides = (16,)
    reads = ("features",)
    validate_share = 0.1
    presets: ClassVar = {
        "paper": {
            "backbone": "efficientnet_b5",
            "layers": ("features.6.8",),
            "size": 768,
            "smoothing": 0.0,
            "student_hidden": 1024,
            "teacher_epochs": 72,
            "student_epochs": 72,
            "lr": 2e-4,
            "pick": "last",
            "top_share": 0.0,
        },
        # about two and a half minutes of one core for 200 images of 256 pixels: 160 of them 40 times, some 45 a second
        "quick": {"student_hidden": 128, "teacher_epochs": 20, "student_epochs": 20, "batch": 4},
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
        student_hidden: int = 256,
        code: int = 32,
        teacher_epochs: int = 72,
        student_epochs: int = 72,
        batch: int = 8,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        image_score: Literal["max", "mean"] = "max",
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
        self.student_hidden = student_hidden
        self.code = code
        self.teacher_epochs = teacher_epochs
        self.student_epochs = student_epochs
        self.batch = batch
        self.lr = lr
        self.weight_decay = weight_decay
        self.image_score = image_score
        self.pick = pick
        self.teacher: Stacked | None = None
        self.student: Stacked | None = None
        self._engine_of_positions = PerPositionEngine("AST's teacher and student")

    @property
    def uses_validation(self) -> bool:
        """Whether validation images choose the epochs."""
        return self.pick == "best"

    def work_units(self, n_images: int) -> float:
        """Each epoch of either phase looks at each image once."""
        return float((self.teacher_epochs + self.student_epochs) * n_images)

    @classmethod
    def quick_settings(cls, n_images: int, cells: int) -> dict[str, Any]:
        """Take a narrow student and a few epochs of small batches."""
        return {"student_hidden": 32, "teacher_epochs": 8, "student_epochs": 8, "batch": 4}

    @property
    def own_score(self) -> bool:
        """Whether the image score is the mean of the map."""
        return super().own_score or self.image_score != "max"

    # -- learning ------------------------------------------------------------------------------------------------------

    def build(self, shapes: list[Shape], positions: int, seed: int) -> None:
        """Make the teacher and the student."""
        self._check(shapes)
        c, d = shapes[0][0], self.code
        self.teacher = Stacked(lambda: CouplingFlow(realnvp_steps(c, d, _KERNELS, _HIDDEN, _CLAMP)), positions, seed)
        self.student = Stacked(lambda: _Student(c, d, self.student_hidden), positions, seed)

    def _check(self, shapes: list[Shape]) -> None:
        if len(shapes) != 1:
            raise InputError(
                f"layers={self.level_names()!r}: AST reads exactly one layer, for instance "
                f"layers=[{self.level_names()[-1]!r}], or several fused into one"
            )
        if shapes[0][0] < 2:
            name = self.level_names()[0]
            raise InputError(f"layer {name!r} has one channel; a flow needs 2 to split: choose another layer")
        for name in ("student_hidden", "teacher_epochs", "student_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: expected at least 1")
        if self.code < 0 or self.code % 4:
            raise InputError(f"code={self.code!r}: expected a multiple of 4 (sine and cosine of two axes), or 0")
        if self.image_score not in ("max", "mean"):
            raise InputError(f"image_score={self.image_score!r}: expected 'max' or 'mean'")

    def begin_fit(self, context: FitContext) -> None:
        """Gather nothing: everything is learned in the two phases."""

    def begin_update(self, context: FitContext) -> None:
        """Allocate nothing: the teacher is trained on, then the student, from where they are."""

    def phases(self) -> Sequence[Phase[Batch]]:
        """Return two phases: the teacher is trained first, then the student learns to follow it."""
        teacher, student = self._networks()
        return [
            Phase("teacher", teacher, self.teacher_loss, self._plan(self.teacher_epochs)),
            Phase("student", student, self.student_loss, self._plan(self.student_epochs)),
        ]

    def _plan(self, epochs: int) -> Plan:
        return Plan(
            epochs=epochs,
            batch=self.batch,
            lr=self.lr,
            weight_decay=self.weight_decay,
            drop_last=True,
            pick=self.pick,
        )

    def teacher_loss(self, batch: Batch) -> Tensor:
        """Compute the negative log-likelihood of the batch in nats per cell, without its constant: (P,)."""
        teacher, _ = self._networks()
        x = batch.levels[0]
        z, log_det = teacher(*self._inputs(x))
        return nll(z, log_det, kept_cells(batch.keep, (x.shape[3], x.shape[4])))

    def student_loss(self, batch: Batch) -> Tensor:
        """Compute the mean squared distance to the teacher over channels, kept cells and images: (P,)."""
        x = batch.levels[0]
        distance = self._distance(batch)  # (B, P, h, w)
        keep = kept_cells(batch.keep, (x.shape[3], x.shape[4]))
        return batch_mean(kept_mean(distance, keep), keep)

    def end_fit(self) -> dict[str, Any]:
        """Count the learned parameters."""
        teacher, student = (sum(p[0].numel() for p in net.parameters()) for net in self._networks())
        return {"teacher_parameters": teacher, "student_parameters": student}

    # -- judging -------------------------------------------------------------------------------------------------------

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Score by the squared distance of student and teacher: scores (B, P), maps (B, P, h, w)."""
        x = batch.levels[0]
        maps = self._distance(batch)
        keep = kept_cells(batch.keep, cells_of(x))
        scores = highest(maps, keep) if self.image_score == "max" else kept_mean(maps, keep)
        return scores, self.smoothed(maps, keep)

    def level_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Return the map of the one level that is read."""
        return {self.level_names()[0]: self._distance(batch)}

    def _distance(self, batch: Batch) -> Tensor:
        """Compute the mean over the channels of (z_teacher - z_student)^2: (B, P, h, w)."""
        network, inputs = _Distance(*self._networks()), self._inputs(batch.levels[0])
        return self._engine_of_positions.run(batch.engine, network, *inputs)[0]

    def _inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the features (B, P, C, h, w) and, unless there is none, their position code (B, P, D, h, w)."""
        if not self.code:
            return (x,)
        code = position_code(self.code, *cells_of(x)).to(x)
        return x, code.expand(x.shape[0], x.shape[1], *code.shape)

    def _networks(self) -> tuple[Stacked, Stacked]:
        if self.teacher is None or self.student is None:
            raise self.unfitted()
        return self.teacher, self.student


def position_code(channels: int, h: int, w: int) -> Tensor:
    """Return sines and cosines of the column and the row of each cell, (channels, h, w).

    The first half of the channels tells columns, the second half rows. Wavelengths run geometrically from 2 pi
    cells towards 10,000 times that, sine and cosine in turn (Vaswani et al. 2017, section 3.5, once per axis).
    ``channels`` is a multiple of 4.
    """
    rates = 10_000.0 ** -(torch.arange(0, channels // 2, 2) / (channels // 2))  # (channels / 4,)

    def axis(length: int) -> Tensor:
        angles = rates[:, None] * torch.arange(length)  # (channels / 4, length)
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)  # (channels / 2, length)

    columns = axis(w)[:, None, :].expand(-1, h, -1)
    rows = axis(h)[:, :, None].expand(-1, -1, w)
    return torch.cat([columns, rows])


class _Distance(nn.Module):
    """What judges, as one graph: features and position code (B, P, C, h, w) -> (z_teacher - z_student)^2, (B, P, h, w).

    The mean over the channels, in a tuple.
    """

    def __init__(self, teacher: Stacked, student: Stacked) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        with torch.no_grad():  # the teacher is as it is, also while the student learns
            z_t: Tensor = self.teacher(*inputs)[0].clamp(-_LIMIT, _LIMIT)
        z_s: Tensor = self.student(torch.cat(inputs, dim=2))
        return ((z_t - z_s).square().mean(2),)


# -- the student of one position ---------------------------------------------------------------------------------------


class _Student(nn.Module):
    """The student of one position: (B, C + D, h, w) -> (B, C, h, w).

    A 3x3 convolution, residual blocks, and another 3x3 convolution.
    """

    def __init__(self, channels: int, code: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels + code, hidden, 3, padding=1),
            nn.LeakyReLU(),
            *(_Residual(hidden) for _ in range(_BLOCKS)),
            nn.Conv2d(hidden, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class _Residual(nn.Module):
    """A residual block adds to x what two convolutions, each with batch norm and leaky ReLU, make of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out
