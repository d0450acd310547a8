"""A patch description network (PDN) learns the features of any backbone: the teacher of EfficientAD.

Batzner et al., WACV 2024, section 3.1 and its appendix on the pretraining: the PDN learns, by squared distance, the
backbone's features of the same image shown twice as large, so that the backbone's stride of 8 pixels is the PDN's of
4; features are pooled to 384 channels as PatchCore pools them, and each channel is brought to mean 0 and standard
deviation 1.

Where we depart, and why
- Each photograph gives a crop at a random place, scale and flip at each visit instead of itself at one size: so a
  thousand photographs last for longer.
- The PDN is not padded: it answers for the middle of the crop, whose rim only the backbone sees.
- The PDN looks where the backbone looks: padding "same" as TensorFlow does it moves a layer by some pixels, which is
  measured and made up for.
- The learning rate rises to ten times the paper's and falls along a cosine: for hundreds of steps, not 60,000.

Letters: B crops, S pixels of the PDN's crop, h x w cells.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pickglass.data import Table, decode_all
from pickglass.data.images.decoder import Array
from pickglass.errors import DataError, InputError
from pickglass.features.backbones.weights import read_state
from pickglass.features.engine import BackboneEngine
from pickglass.features.extractor import FeatureExtractor
from pickglass.nn.maps import ChannelMoments, DrawnFrom, neighbourhood_mean, pool_channels, to_grid
from pickglass.nn.networks.pdn import CHANNELS, FIELD, FRAME, PDN, STRIDE, PDNName
from pickglass.nn.training.loop import Draws, EpochRecord, Phase, Plan, train_all
from pickglass.runtime.compute import EngineName

__all__ = [
    "BackboneTeacher",
    "DistillSettings",
    "Pair",
    "eight_bit_rgb",
    "explained_variance",
    "hold_out",
    "new_pdn",
    "pixel_offset",
    "read_photographs",
    "train_pdn",
]

HELD_OUT = 0.05  # share of the photographs
_SCALES = (0.8, 2.0)  # pixels of the photograph a pixel of the crop, where the photograph is large enough
_GREY = 0.1  # share of the crops without colour, as in the authors' code
_STATISTICS = 500  # crops from which the channels' mean and deviation are measured
_AT_ONCE = 8  # crops

Photo = NDArray[np.uint8]  # (H, W, 3)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DistillSettings:
    """A distillation is set by the backbone to learn from, the size of the PDN, and the training.

    Attributes:
        backbone, layers, weights: the backbone's features that are learned; layers with cells of 4, 8, 16 ... pixels,
            finest first.
        model: size of the PDN: ``"tiny"``, ``"small"`` or ``"medium"``.
        steps: number of training steps.
        batch: crops of a step.
        crop: side of a crop as the PDN sees it, in pixels, a multiple of 32 from 64.
        lr: highest learning rate of Adam.
        start: teacher to start from, of the same size or a narrower one, which is widened without changing its
            answers (Net2Net: Chen, Goodfellow, Shlens, ICLR 2016); None: random weights.
        seed: seeds everything that is drawn at random.
    """

    backbone: str
    layers: Sequence[str]
    weights: str = "default"
    model: PDNName = "small"
    steps: int = 2000
    batch: int = 8
    crop: int = 128
    lr: float = 1e-3
    start: Path | None = None
    seed: int = 0


# -- photographs -------------------------------------------------------------------------------------------------------


def read_photographs(table: Table, workers: int, max_pixels: int, progress: Progress | None = None) -> list[Photo]:
    """Decode all photographs at once: to decode them at each pass would cost more than the training.

    Args:
        table: rows with the photographs.
        workers, max_pixels: as of :func:`pickglass.data.decode_all`.
        progress: called with (stage, done, total).

    Returns:
        8-bit RGB, (H, W, 3) each.

    Raises:
        DataError: photographs that cannot be read, all listed.
    """
    decoded = decode_all(
        table,
        lambda image, _: eight_bit_rgb(image),
        workers,
        max_pixels,
        what="photographs",
        progress=progress,
        stage="reading photographs",
    )
    return [photo for _, photo in decoded]


def eight_bit_rgb(image: Array) -> Photo:
    """Turn an image, grey or 16 bit as well, into 8-bit colour (H, W, 3)."""
    if image.dtype != np.uint8:
        top = 65535 if image.dtype == np.uint16 else 1
        image = (image.astype(np.float32) * (255 / top)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image)


def hold_out(photos: Sequence[Photo], seed: int) -> tuple[list[Photo], list[Photo]]:
    """Hold out one photograph in twenty, drawn at random; the others are learned from.

    Returns:
        The held-out photographs, and the others.

    Raises:
        DataError: fewer than two photographs.
    """
    if len(photos) < 2:
        raise DataError(f"{len(photos)} photograph: expected at least two, for one in twenty is held out")
    order = random.Random(seed).sample(range(len(photos)), len(photos))
    n = max(1, round(HELD_OUT * len(photos)))
    return [photos[i] for i in order[:n]], [photos[i] for i in order[n:]]


# -- what is to be learned ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A pair is what the PDN sees of some crops, and what it should answer.

    Attributes:
        seen: (B, 3, S', S') normalised, the PDN's input.
        wanted: (B, 384, h, w), the backbone's features, each channel with mean 0 and deviation 1.
    """

    seen: Tensor
    wanted: Tensor


class BackboneTeacher:
    """A backbone teaches a PDN: photographs become pairs of what the PDN sees and what it should answer.

    Args:
        extractor: the backbone and its layers, finest first.
        device: e.g. ``"cpu"``.
        engine: as of :class:`pickglass.features.engine.BackboneEngine`.
        crop: S, a multiple of 32 from 64.

    Raises:
        InputError: a crop of another size, or a finest layer whose cells do not fit the PDN's.
    """

    def __init__(self, extractor: FeatureExtractor, device: str, engine: EngineName, crop: int) -> None:
        if crop < 64 or crop % 32:
            raise InputError(f"crop={crop!r}: expected a multiple of 32 from 64, in pixels")
        self.extractor = extractor
        self.device = device
        self.crop = crop
        self.run = BackboneEngine(extractor, device, engine)
        self.mean, self.std = torch.zeros(()), torch.ones(())  # (1, 384, 1, 1) once they are learned
        pdn = FeatureExtractor("pdn_tiny", ["teacher"], None)
        self.pdn_mean, self.pdn_std = pdn.mean, pdn.std

        cells = extractor.shapes((256, 256))[0][1]
        stride = 256 // cells
        if stride < STRIDE or stride % STRIDE or 256 % cells:
            raise InputError(
                f"layer {extractor.layers[0]!r} of {extractor.backbone} has cells of {256 / cells:g} pixels: the "
                f"finest layer comes first, and its cells must be a multiple of {STRIDE} pixels, e.g. 8"
            )
        self.zoom = stride // STRIDE  # pixels of the backbone's image a pixel of the PDN's

        offset = pixel_offset(extractor, self.zoom * crop, stride)
        moved = round((offset + 0.5) / self.zoom - 0.5)  # pixels of the PDN
        ahead, self.start = divmod(moved, STRIDE)  # cells, pixels
        self.first = FRAME // STRIDE - ahead  # cell of the backbone that the PDN's first cell answers for
        self.cells = (crop - self.start - FIELD) // STRIDE + 1
        if self.first < 0 or self.first + self.cells > crop // STRIDE:
            raise InputError(f"{extractor.layers[0]!r} sees {moved} pixels beside its cell: choose another layer")

    def features(self, crops: Tensor) -> Tensor:
        """Describe crops as the backbone sees them, (B, 3, zoom S, zoom S) in [0, 1], by (B, 384, S / 4, S / 4)."""
        levels = self.run(crops)
        grid = (self.crop // STRIDE,) * 2
        alike = [to_grid(pool_channels(neighbourhood_mean(level, 3), CHANNELS), grid) for level in levels]
        return pool_channels(torch.cat(alike, dim=1), CHANNELS)

    def learn_statistics(self, photos: Sequence[Photo], seed: int, progress: Progress | None = None) -> None:
        """Measure the mean and deviation of each channel over one crop of each of some photographs."""
        moments = ChannelMoments()
        photos, draws = photos[:_STATISTICS], Draws(seed)
        for at in range(0, len(photos), _AT_ONCE):
            crops = self.random_crops(photos[at : at + _AT_ONCE], draws)
            moments.add(self.features(crops)[:, None])
            if progress is not None:
                progress("measuring channels", at + len(crops), len(photos))
        self.mean, self.std = (m.float().view(1, -1, 1, 1).to(self.device) for m in moments.mean_and_std())

    def random_crops(self, photos: Sequence[Photo], draws: Draws) -> Tensor:
        """Cut one crop of each photograph at random: (B, 3, zoom S, zoom S)."""
        return torch.stack([self._random_crop(photo, draws.on("cpu")) for photo in photos])

    def central_crops(self, photos: Sequence[Photo]) -> Tensor:
        """Cut the middle of each photograph, half its shorter side, nothing drawn: (B, 3, zoom S, zoom S)."""
        return torch.stack([self._region(photo, min(photo.shape[:2]) // 2, 0.5, 0.5) for photo in photos])

    @torch.no_grad()
    def pair(self, crops: Tensor) -> Pair:
        """Make a pair to learn from of crops as the backbone sees them, (B, 3, zoom S, zoom S) in [0, 1]."""
        wanted = (self.features(crops) - self.mean) / self.std
        begin, end = self.first, self.first + self.cells
        small = (F.avg_pool2d(crops, self.zoom) - self.pdn_mean) / self.pdn_std  # (B, 3, S, S)
        length = FIELD + STRIDE * (self.cells - 1)
        seen = small[:, :, self.start : self.start + length, self.start : self.start + length]
        seen = seen.to(self.device).contiguous(memory_format=torch.channels_last)
        return Pair(seen, wanted[:, :, begin:end, begin:end])

    def _random_crop(self, photo: Photo, generator: torch.Generator) -> Tensor:
        """Cut a square at a random scale and place, at times flipped or grey: (3, zoom S, zoom S) in [0, 1]."""
        scale, top, left, flip, grey = torch.rand(5, generator=generator).tolist()
        small, large = (min(s * self.crop, *photo.shape[:2]) for s in _SCALES)
        part = self._region(photo, round(small * (large / small) ** scale), top, left)
        part = part.flip(2) if flip < 0.5 else part
        luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (part * luma).sum(0, keepdim=True).expand(3, -1, -1) if grey < _GREY else part

    def _region(self, photo: Photo, side: int, top: float, left: float) -> Tensor:
        """Cut a square of ``side`` pixels, at shares of the free room, and resize it: (3, zoom S, zoom S)."""
        y, x = (int(share * (n - side + 1) * 0.999999) for share, n in zip((top, left), photo.shape[:2], strict=True))
        part = torch.from_numpy(photo[y : y + side, x : x + side]).permute(2, 0, 1)[None].float() / 255  # (1, 3, n, n)
        wanted = self.zoom * self.crop
        resized = F.interpolate(part, size=(wanted, wanted), mode="bilinear", align_corners=False, antialias=True)
        return resized[0]


def pixel_offset(extractor: FeatureExtractor, side: int, stride: int) -> float:
    """Measure how many pixels further down and right than the first pixel of its cell the finest layer looks.

    The centre of mass of the squared gradient of the middle cell on noise, mean of the two axes. With symmetric
    padding it is 0; the PDN's own is 0 as well.

    Args:
        extractor: the backbone.
        side: side of the image, in pixels.
        stride: stride of the finest layer, in pixels.
    """
    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    image = image.to(extractor.mean.device).requires_grad_()
    cell = side // stride // 2
    with torch.enable_grad():
        level = extractor(image)[0]
        (gradient,) = torch.autograd.grad(level[:, :, cell, cell].square().sum(), image)
    energy = gradient.square().sum((0, 1)).cpu().double()  # (side, side)
    pixels = torch.arange(side, dtype=torch.float64)
    centres = [float((energy.sum(axis) * pixels).sum() / energy.sum()) for axis in (1, 0)]
    return sum(centres) / 2 - cell * stride


# -- the network that learns -------------------------------------------------------------------------------------------


def new_pdn(model: PDNName, seed: int, start: Path | None = None) -> PDN:
    """Make a PDN of random weights, or with the answers of a narrower one.

    Args:
        model: ``"tiny"``, ``"small"`` or ``"medium"``.
        seed: seeds the random weights.
        start: file of a teacher that is as wide or narrower; None: random weights alone.

    Raises:
        InputError: the teacher to start from has other layers or is wider.
    """
    with DrawnFrom(seed):
        pdn = PDN(model)
        for conv in pdn.children():
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    if start is not None:
        _widen(pdn, read_state(start), start)
    return pdn


@torch.no_grad()
def _widen(pdn: PDN, state: Mapping[str, Tensor], source: Path) -> None:
    """Give the PDN the answers of a narrower one, whose channels come first and hear nothing of the new ones."""
    targets = pdn.state_dict()
    fits = targets.keys() == state.keys() and all(
        s.ndim == t.ndim and all(a <= b for a, b in zip(s.shape, t.shape, strict=True)) and s.shape[2:] == t.shape[2:]
        for s, t in ((state[name], targets[name]) for name in targets)
    )
    if not fits:
        raise InputError(f"{source}: no teacher of the same layers, as wide or narrower: leave out start")
    for name, narrow in state.items():
        wide, n = targets[name], len(narrow)
        if wide.ndim == 4:
            wide[:n] = 0
            wide[:n, : narrow.shape[1]] = narrow
        else:
            wide[:n] = narrow


def train_pdn(
    pdn: PDN,
    teacher: BackboneTeacher,
    photos: Sequence[Photo],
    settings: DistillSettings,
    *,
    checkpoint: Path,
    fingerprint: str,
    progress: Progress | None = None,
    callback: Callable[[EpochRecord], object] | None = None,
) -> float:
    """Train the PDN in place; a killed training goes on bit-equal from its checkpoint.

    Args:
        pdn: on the teacher's device.
        teacher: with its statistics.
        photos: to learn from.
        settings: how it is trained.
        checkpoint, fingerprint, progress, callback: as of :func:`pickglass.nn.training.loop.train_all`.

    Returns:
        The seconds that it took, killed runs included.
    """
    plan = Plan(
        steps=settings.steps, batch=settings.batch, lr=settings.lr, weight_decay=1e-5, cosine=True, drop_last=True
    )
    draws = Draws()
    histories = train_all(
        [Phase("teacher", pdn, lambda pair: F.mse_loss(pdn(pair.seen), pair.wanted)[None], plan, draws=draws)],
        lambda indices: teacher.pair(teacher.random_crops([photos[i] for i in indices], draws)),
        len(photos),
        seed=settings.seed,
        device=teacher.device,
        progress=progress,
        callback=callback,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
    )
    return histories[0].seconds


@torch.no_grad()
def explained_variance(pdn: PDN, teacher: BackboneTeacher, photos: Sequence[Photo]) -> dict[str, float]:
    """Measure the share of each channel's variance that the PDN explains on photographs it did not learn from.

    Returns:
        ``mean``, ``min``, ``q25``, ``median``, ``q75`` and ``max`` over the channels; 1 is all of it.
    """
    error, total, squares = (torch.zeros(CHANNELS, dtype=torch.float64, device=teacher.device) for _ in range(3))
    cells = 0
    for at in range(0, len(photos), _AT_ONCE):
        pair = teacher.pair(teacher.central_crops(photos[at : at + _AT_ONCE]))
        wanted = pair.wanted.double()
        error += (pdn(pair.seen).double() - wanted).square().sum((0, 2, 3))  # (384,)
        total += wanted.sum((0, 2, 3))
        squares += wanted.square().sum((0, 2, 3))
        cells += wanted.numel() // CHANNELS
    shares = (1 - error / (squares - total.square() / cells).clamp(min=1e-12)).cpu()
    points = torch.quantile(shares, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)).tolist()
    named = dict(zip(("min", "q25", "median", "q75", "max"), points, strict=True))
    return {"mean": float(shares.mean()), **named}
