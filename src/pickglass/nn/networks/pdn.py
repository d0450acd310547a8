"""EfficientAD has two networks, the patch description network (PDN) and the autoencoder.

Batzner, Heckler, König: "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024,
section 3.1 and 3.3 and the tables of its appendix. A PDN is four convolutions (M: six) and two poolings: stride 4, and
each output sees a patch of 33 x 33 pixels and nothing else. The autoencoder squeezes a whole image of 256 x 256 pixels
into 64 numbers, so it knows the image at large and no detail.

Letters: B images, C channels, H x W pixels, h x w cells.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.errors import UnknownName
from pickglass.nn.training.plan import Draws

__all__ = ["AE_SIDE", "CHANNELS", "FIELD", "FRAME", "PDN", "STRIDE", "Autoencoder", "PDNName", "Student", "pdn_layers"]

PDNName = Literal["tiny", "small", "medium"]

CHANNELS = 384  # of a teacher's output
FIELD, STRIDE = 33, 4  # pixels
FRAME = 16  # pixels that a cell sees beyond its centre, and so what is lost at each border without padding
AE_SIDE = 256  # pixels of the autoencoder's input

_BOTTLENECK = 64
_DROPOUT = 0.2
_GROWTH = (3, 8, 15, 32, 63, 127)  # sides of the decoder's maps before each of its convolutions


class _Conv(NamedTuple):
    """A convolution has a pooling by two behind it or not; between all of them is a ReLU."""

    into: int
    out: int
    kernel: int
    pool: bool = False


def pdn_layers(model: PDNName, out: int = CHANNELS) -> list[_Conv]:
    """List the convolutions of a PDN, first to last.

    ``small`` and ``medium`` are the paper's. ``tiny`` is ours, for lines without a GPU: ``small`` with half the inner
    channels, so a quarter of the work between them, and the same outputs.

    Args:
        model: ``"tiny"``, ``"small"`` or ``"medium"``.
        out: channels of the output: a student has twice the teacher's.
    """
    if model not in get_args(PDNName):
        raise UnknownName("PDN", model, get_args(PDNName))
    if model == "medium":
        return [
            _Conv(3, 256, 4, pool=True),
            _Conv(256, 512, 4, pool=True),
            _Conv(512, 512, 1),
            _Conv(512, 512, 3),
            _Conv(512, out, 4),
            _Conv(out, out, 1),
        ]
    first, inner = (64, 128) if model == "tiny" else (128, 256)
    return [
        _Conv(3, first, 4, pool=True),
        _Conv(first, inner, 4, pool=True),
        _Conv(inner, inner, 3),
        _Conv(inner, out, 4),
    ]


class PDN(nn.Module):
    """A patch description network (PDN) has the convolutions ``conv1``, ``conv2``, ...

    Args:
        model: ``"tiny"``, ``"small"`` or ``"medium"``.
        out: channels of the output.
        frame: pixels by which the image is continued at each border by its own reflection; with :data:`FRAME` the
            output covers the whole image, with 0 each side loses four cells.

    Example:
        >>> import torch
        >>> tuple(PDN("tiny")(torch.zeros(1, 3, 256, 256)).shape)
        (1, 384, 56, 56)
    """

    def __init__(self, model: PDNName, out: int = CHANNELS, frame: int = 0) -> None:
        super().__init__()
        self.frame = frame
        self.plan = pdn_layers(model, out)
        for i, layer in enumerate(self.plan, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(layer.into, layer.out, layer.kernel))

    @property
    def last(self) -> nn.Conv2d:
        """Return the last convolution."""
        conv = self.get_submodule(f"conv{len(self.plan)}")
        assert isinstance(conv, nn.Conv2d)
        return conv

    def inner(self, x: Tensor) -> Tensor:
        """Run the network up to what the last convolution reads."""
        if self.frame:
            x = F.pad(x, (self.frame,) * 4, mode="reflect")  # (B, 3, H + 2 frame, W + 2 frame)
        x = x.contiguous(memory_format=torch.channels_last)  # a step takes three quarters of the time on a CPU
        for i, layer in enumerate(self.plan[:-1], start=1):
            x = F.relu(self.get_submodule(f"conv{i}")(x))  # (B, C, h - kernel + 1, w - kernel + 1)
            x = F.avg_pool2d(x, 2) if layer.pool else x  # half of each side
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Describe images (B, 3, H, W), normalised, by features (B, C, h, w)."""
        out: Tensor = self.last(self.inner(x))
        return out


class Student(PDN):
    """The student is a PDN of twice the channels; where only some are asked for, the others are not computed.

    Its first 384 channels answer to the teacher, the others to the autoencoder.
    """

    def __init__(self, model: PDNName, frame: int = 0) -> None:
        super().__init__(model, 2 * CHANNELS, frame)

    def forward(self, x: Tensor, part: slice = slice(None)) -> Tensor:
        """Describe images (B, 3, H, W), normalised, by the channels of ``part``, (B, C, h, w)."""
        return F.conv2d(self.inner(x), self.last.weight[part], None if self.last.bias is None else self.last.bias[part])


class Autoencoder(nn.Module):
    """The autoencoder describes the image at large: (B, 3, 256, 256), normalised -> (B, 384, h, w) on any grid.

    Args:
        grid: (h, w) of the output, the student's.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        steps: list[nn.Module] = []
        for into, out in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64)):
            steps += [nn.Conv2d(into, out, 4, stride=2, padding=1), nn.ReLU()]
        steps.append(nn.Conv2d(64, _BOTTLENECK, 8))
        self.encoder = nn.Sequential(*steps)
        self.decoder = nn.ModuleList(nn.Conv2d(64, 64, 4, padding=2) for _ in _GROWTH)
        self.last = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, CHANNELS, 3, padding=1))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Describe images (B, 3, 256, 256) by features (B, 384, h, w); with ``draws`` as in training, with dropout."""
        x = self.encoder(x)  # (B, 64, 1, 1)
        for side, conv in zip(_GROWTH, self.decoder, strict=True):
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)  # (B, 64, side, side)
            x = F.relu(conv(x))  # (B, 64, side + 1, side + 1)
            x = x if draws is None else draws.dropout(x, _DROPOUT)
        out: Tensor = self.last(F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False))
        return out  # (B, 384, h, w)
