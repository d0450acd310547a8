"""Use case: distil any backbone into a patch description network, the teacher of EfficientAD, on any photographs.

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

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pickglass.app.results import DistillResult
from pickglass.data import Table, as_table, decode, fingerprint
from pickglass.data.files import output_path, written_whole
from pickglass.data.images.decoder import Array
from pickglass.detectors.compute import Progress
from pickglass.detectors.loading import silent
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.backbones.weights import read_state
from pickglass.features.engine import BackboneEngine, EngineName, device_name
from pickglass.features.extractor import FeatureExtractor
from pickglass.nn.maps import ChannelMoments, neighbourhood_mean, pool_channels, to_grid
from pickglass.nn.networks.pdn import CHANNELS, FIELD, FRAME, PDN, STRIDE, PDNName
from pickglass.nn.training.loop import EpochRecord, Phase, Plan, train_all

__all__ = ["distill"]

HELD_OUT = 0.05  # share of the photographs
_SCALES = (0.8, 2.0)  # pixels of the photograph a pixel of the crop, where the photograph is large enough
_GREY = 0.1  # share of the crops without colour, as in the authors' code
_STATISTICS = 500  # crops that tell the channels' mean and deviation
_AT_ONCE = 8  # crops
_STATE = ".training.safetensors"  # in place of the teacher's suffix

Photo = NDArray[np.uint8]  # (H, W, 3)


def distill(
    photos: Path,
    out: Path,
    *,
    backbone: str,
    layers: Sequence[str],
    model: PDNName = "small",
    weights: str = "default",
    steps: int = 2000,
    batch: int = 8,
    crop: int = 128,
    lr: float = 1e-3,
    start: Path | None = None,
    limit: int | None = None,
    backbone_licence: str = "",
    photos_licence: str = "",
    seed: int = 0,
    device: str = "auto",
    engine: EngineName = "auto",
    workers: int = 2,
    max_pixels: int = 250_000_000,
    progress: Progress | None = None,
    callback: Callable[[EpochRecord, DistillResult], object] | None = None,
) -> DistillResult:
    """Train a teacher and write it, after each pass over the photographs anew.

    A killed run goes on where it was when it is started again: its state is in ``NAME.training.safetensors`` beside
    the teacher, every two minutes, and is deleted at the end.

    Args:
        photos: folder of photographs of anything; one in twenty is held out.
        out: file to write, .safetensors: half precision, with a card in its header.
        backbone, layers, weights: whose features are learned; layers of a stride of 4, 8, 16 ... pixels, finest first.
        model: ``"tiny"``, ``"small"`` or ``"medium"``.
        steps: of training.
        batch: crops of a step.
        crop: side of a crop as the PDN sees it, in pixels, a multiple of 32 from 64.
        lr: highest learning rate of Adam.
        start: teacher to start from, of the same size or a narrower one, which is widened without changing its
            answers (Net2Net: Chen, Goodfellow, Shlens, ICLR 2016); None: random weights.
        limit: how many of the photographs to use; None: all.
        backbone_licence, photos_licence: what the card says of them.
        seed: of everything drawn at random.
        device, engine, workers, max_pixels: see :class:`pickglass.detectors.compute.ComputeOptions`.
        progress: called with (stage, done, total).
        callback: called after each pass with the training's record and the teacher so far.

    Raises:
        DataError: fewer than two photographs, or broken ones.
        InputError: a setting out of its range, or layers whose stride does not fit.
    """
    target, told = output_path(out, ".safetensors"), progress or silent
    table = as_table(photos, role="train")[:limit]
    held, fit = _split(_decoded(table, workers, max_pixels, told), seed)
    where = device_name(device)
    source = _Source(FeatureExtractor(backbone, layers, weights, seed), where, engine, crop)
    source.learn_statistics(fit, seed, told)
    pdn = _new_pdn(model, seed, start).to(where).to(memory_format=torch.channels_last)
    result: DistillResult = {
        "teacher": str(target),
        "model": model,
        "backbone": backbone,
        "layers": list(source.extractor.layers),
        "photos": len(table),
        "held_out": len(held),
        "step": 0,
        "steps": steps,
        "seconds": 0.0,
        "explained_variance": {},
    }
    card = {
        **{k: result[k] for k in ("model", "backbone", "layers", "photos", "held_out", "steps")},
        **{"batch": batch, "crop": crop, "lr": lr, "seed": seed, "photos_sha256": fingerprint(table)},
        **{"backbone_licence": backbone_licence, "photos_licence": photos_licence, **_origin(source.extractor, start)},
    }

    def write(step: int, seconds: float) -> None:
        result["explained_variance"] = _explained(pdn, source, held)
        result["step"], result["seconds"] = step, seconds
        _write(target, pdn, {**card, **{k: result[k] for k in ("step", "seconds", "explained_variance")}})

    def tell(record: EpochRecord) -> None:
        write(record.step, record.seconds)  # nothing is drawn here, so the training goes on bit-equal
        if callback is not None:
            callback(record, result)

    plan = Plan(steps=steps, batch=batch, lr=lr, weight_decay=1e-5, cosine=True, drop_last=True)
    seconds = _train(pdn, source, fit, plan, seed, progress, tell, target, json.dumps(card))
    if result["step"] < steps:  # it was killed after the last step
        write(steps, seconds)
    target.with_suffix(_STATE).unlink(missing_ok=True)
    return result


def _train(
    pdn: PDN,
    source: _Source,
    fit: Sequence[Photo],
    plan: Plan,
    seed: int,
    progress: Progress | None,
    tell: Callable[[EpochRecord], None],
    target: Path,
    fingerprint: str,
) -> float:
    """Train the PDN in place; the seconds that it took."""
    histories = train_all(
        [Phase("teacher", pdn, lambda pair: F.mse_loss(pdn(pair.seen), pair.wanted)[None], plan)],
        lambda indices: source.pair([fit[i] for i in indices]),
        len(fit),
        seed=seed,
        device=source.device,
        progress=progress,
        callback=tell,
        checkpoint=target.with_suffix(_STATE),
        fingerprint=fingerprint,
    )
    return histories[0].seconds


def _origin(extractor: FeatureExtractor, start: Path | None) -> dict[str, Any]:
    return {
        "backbone_weights": extractor.weights.to_json() if extractor.weights else None,
        "start_sha256": None if start is None else hashlib.sha256(start.read_bytes()).hexdigest(),
        "versions": {"pickglass": version("pickglass"), "torch": torch.__version__},
    }


def _split(photos: list[Photo], seed: int) -> tuple[list[Photo], list[Photo]]:
    """Held-out photographs, and those to learn from."""
    if len(photos) < 2:
        raise DataError(f"{len(photos)} photograph: expected at least two, for one in twenty is held out")
    order = random.Random(seed).sample(range(len(photos)), len(photos))
    n = max(1, round(HELD_OUT * len(photos)))
    return [photos[i] for i in order[:n]], [photos[i] for i in order[n:]]


def _decoded(table: Table, workers: int, max_pixels: int, progress: Progress) -> list[Photo]:
    """All photographs, 8-bit RGB: decoding them at each pass would cost more than the training."""
    found: list[Photo] = []
    broken: list[Failure] = []
    for n, item in enumerate(decode(table, lambda image, _: _rgb(image), workers, max_pixels=max_pixels), start=1):
        if item.value is None:
            broken.append(Failure(item.row.path, item.error or ""))
        else:
            found.append(item.value)
        progress("reading photographs", n, len(table))
    if broken:
        raise DataError(f"{len(broken)} of {len(table)} photographs cannot be read:", broken)
    return found


def _rgb(image: Array) -> Photo:
    if image.dtype != np.uint8:
        top = 65535 if image.dtype == np.uint16 else 1
        image = (image.astype(np.float32) * (255 / top)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image)


def _new_pdn(model: PDNName, seed: int, start: Path | None) -> PDN:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pdn = PDN(model)
        for conv in pdn.children():
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    if start is not None:
        _widen(pdn, read_state(start), start)
    return pdn


@torch.no_grad()
def _widen(pdn: PDN, state: Mapping[str, Tensor], source: Path) -> None:
    """Give a PDN the answers of a narrower one: its channels come first, and hear nothing of the new ones."""
    own = pdn.state_dict()
    fits = own.keys() == state.keys() and all(
        s.ndim == o.ndim and all(a <= b for a, b in zip(s.shape, o.shape, strict=True)) and s.shape[2:] == o.shape[2:]
        for s, o in ((state[name], own[name]) for name in own)
    )
    if not fits:
        raise InputError(f"{source}: no teacher of the same layers, as wide or narrower: leave out start")
    for name, narrow in state.items():
        wide, n = own[name], len(narrow)
        if wide.ndim == 4:
            wide[:n] = 0
            wide[:n, : narrow.shape[1]] = narrow
        else:
            wide[:n] = narrow


# -- what is to be learned ---------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    seen: Tensor  # (B, 3, S', S') normalised, the PDN's input
    wanted: Tensor  # (B, 384, h, w)


@dataclass
class _Source:
    """The backbone as a teacher: from photographs to pairs of what the PDN sees and what it should answer."""

    extractor: FeatureExtractor
    device: str
    engine: EngineName
    crop: int

    def __post_init__(self) -> None:
        if self.crop < 64 or self.crop % 32:
            raise InputError(f"crop={self.crop!r}: expected a multiple of 32 from 64, in pixels")
        self.run = BackboneEngine(self.extractor, self.device, self.engine)
        self.mean, self.std = torch.zeros(()), torch.ones(())
        probe = FeatureExtractor("pdn_tiny", ["teacher"], None)
        self.pdn_mean, self.pdn_std = probe.mean, probe.std
        shapes = self.extractor.shapes((256, 256))
        stride = 256 // shapes[0][1]
        if stride < STRIDE or stride % STRIDE or 256 % shapes[0][1]:
            raise InputError(
                f"layer {self.extractor.layers[0]!r} of {self.extractor.backbone} has cells of {256 / shapes[0][1]:g} "
                f"pixels: the finest layer comes first, and its cells must be a multiple of {STRIDE} pixels, e.g. 8"
            )
        self.zoom = stride // STRIDE  # pixels of the backbone's image a pixel of the PDN's
        centre = _centre(self.extractor, self.zoom * self.crop, stride)
        moved = round((centre + 0.5) / self.zoom - 0.5)  # pixels of the PDN
        ahead, self.start = divmod(moved, STRIDE)  # cells, pixels
        self.first = FRAME // STRIDE - ahead  # cell of the backbone that the PDN's first cell answers for
        self.cells = (self.crop - self.start - FIELD) // STRIDE + 1
        if self.first < 0 or self.first + self.cells > self.crop // STRIDE:
            raise InputError(f"{self.extractor.layers[0]!r} sees {moved} pixels beside its cell: choose another layer")

    def features(self, crops: Tensor) -> Tensor:
        """Crops as the backbone sees them, (B, 3, zoom S, zoom S) in [0, 1] -> (B, 384, S / 4, S / 4)."""
        levels = self.run(crops)
        grid = (self.crop // STRIDE,) * 2
        alike = [to_grid(pool_channels(neighbourhood_mean(level, 3), CHANNELS), grid) for level in levels]
        return pool_channels(torch.cat(alike, dim=1), CHANNELS)

    def learn_statistics(self, photos: Sequence[Photo], seed: int, progress: Progress) -> None:
        """Mean and deviation of each channel over one crop of each of some photographs."""
        moments = ChannelMoments()
        photos = photos[:_STATISTICS]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for at in range(0, len(photos), _AT_ONCE):
                crops = torch.stack([self._cut(photo) for photo in photos[at : at + _AT_ONCE]])
                moments.add(self.features(crops)[:, None])
                progress("measuring channels", at + len(crops), len(photos))
        self.mean, self.std = (m.float().view(1, -1, 1, 1).to(self.device) for m in moments.mean_and_std())

    def pair(self, photos: Sequence[Photo]) -> _Pair:
        """One random crop of each, drawn from torch's default generator."""
        return self._pair(torch.stack([self._cut(photo) for photo in photos]))

    def central_pair(self, photos: Sequence[Photo]) -> _Pair:
        """The middle of each, half its shorter side, nothing drawn."""
        return self._pair(torch.stack([self._region(p, min(p.shape[:2]) // 2, 0.5, 0.5) for p in photos]))

    @torch.no_grad()
    def _pair(self, crops: Tensor) -> _Pair:
        wanted = (self.features(crops) - self.mean) / self.std
        begin, end = self.first, self.first + self.cells
        small = (F.avg_pool2d(crops, self.zoom) - self.pdn_mean) / self.pdn_std  # (B, 3, S, S)
        length = FIELD + STRIDE * (self.cells - 1)
        seen = small[:, :, self.start : self.start + length, self.start : self.start + length]
        seen = seen.to(self.device).contiguous(memory_format=torch.channels_last)
        return _Pair(seen, wanted[:, :, begin:end, begin:end])

    def _cut(self, photo: Photo) -> Tensor:
        """A square at a random scale and place, at times flipped or grey: (3, zoom S, zoom S) in [0, 1]."""
        scale, top, left, flip, grey = torch.rand(5).tolist()
        small, large = (min(s * self.crop, *photo.shape[:2]) for s in _SCALES)
        part = self._region(photo, round(small * (large / small) ** scale), top, left)
        part = part.flip(2) if flip < 0.5 else part
        luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (part * luma).sum(0, keepdim=True).expand(3, -1, -1) if grey < _GREY else part

    def _region(self, photo: Photo, side: int, top: float, left: float) -> Tensor:
        """A square of ``side`` pixels, at shares of the free room, at the backbone's size."""
        y, x = (int(share * (n - side + 1) * 0.999999) for share, n in zip((top, left), photo.shape[:2], strict=True))
        part = torch.from_numpy(photo[y : y + side, x : x + side]).permute(2, 0, 1)[None].float() / 255  # (1, 3, n, n)
        wanted = self.zoom * self.crop
        resized = F.interpolate(part, size=(wanted, wanted), mode="bilinear", align_corners=False, antialias=True)
        return resized[0]


def _centre(extractor: FeatureExtractor, side: int, stride: int) -> float:
    """How many pixels further down and right than the first pixel of its cell the finest layer looks.

    The centre of mass of the squared gradient of the middle cell on noise, mean of the two axes. With symmetric
    padding it is 0; the PDN's own is 0 as well.
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


# -- what came of it ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def _explained(pdn: PDN, source: _Source, held: Sequence[Photo]) -> dict[str, float]:
    """Share of each channel's variance on held-out photographs that the PDN explains: mean and quantiles."""
    error, total, squares = (torch.zeros(CHANNELS, dtype=torch.float64, device=source.device) for _ in range(3))
    cells = 0
    for at in range(0, len(held), _AT_ONCE):
        pair = source.central_pair(held[at : at + _AT_ONCE])
        wanted = pair.wanted.double()
        error += (pdn(pair.seen).double() - wanted).square().sum((0, 2, 3))  # (384,)
        total += wanted.sum((0, 2, 3))
        squares += wanted.square().sum((0, 2, 3))
        cells += wanted.numel() // CHANNELS
    shares = (1 - error / (squares - total.square() / cells).clamp(min=1e-12)).cpu()
    points = torch.quantile(shares, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)).tolist()
    named = dict(zip(("min", "q25", "median", "q75", "max"), points, strict=True))
    return {"mean": float(shares.mean()), **named}


def _write(target: Path, pdn: PDN, card: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in pdn.state_dict().items()}
    made = {**card, "made": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    with written_whole(target) as temporary:
        save_file(tensors, temporary, metadata={"pickglass_teacher": json.dumps(made)})
