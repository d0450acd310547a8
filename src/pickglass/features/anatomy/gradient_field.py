"""The receptive field of a layer, what one of its cells sees, is measured on gradients.

By gradient, as the supplementary material of Heckler, König and Bergmann, "Exploring the Importance of Pretrained
Feature Extractors for Unsupervised Anomaly Detection and Localization" (CVPR workshops 2023), section 1, has it: the
part of an empty image that reaches the centre cell. Effective: the part of the user's own images that holds most of
that cell's squared gradient, after Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks" (NeurIPS 2016). The theoretical field is in :mod:`pickglass.features.anatomy.theoretical_field`.

Letters: B images, S side of the empty image, H x W pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pickglass.errors import InputError
from pickglass.features.anatomy.facts import layer_facts
from pickglass.features.extractor import FeatureExtractor

__all__ = [
    "CellField",
    "GradientField",
    "centred_box",
    "effective_fields",
    "field_of_cell",
    "gradient_fields",
    "relative_field",
]

SIDE = 1024  # px, of the empty image (supplementary, section 1)
THRESHOLD = 1e-2  # of the largest norm: weaker gradients are none (same place)
BORDER = 16  # px: the "small area around the image border" whose padding artefacts are ignored; its width is ours
_STEP = 128  # px
_COSTLY = 100e9  # multiply-adds: networks that take more of them are measured on a small image first
_SMALL = 256  # px, side of that
ENERGY = 0.95  # share of the squared gradient that the effective field holds
_CENTRE = (0.5, 0.5)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GradientField:
    """A gradient field is the receptive field of one layer, measured on its gradient.

    Attributes:
        size: longer side of the box around the pixels that count, in pixels.
        at_least: the box touches the ignored border, so the field may be larger.
        image: on what it was measured: ``"zero"``, or ``"noise"`` where the gradient on an empty image vanishes.
        box: x, y, width, height in the image.
        gradient: (S, S) norm over RGB as a share of its maximum, 0 below the threshold and on the border.
    """

    size: int
    at_least: bool
    image: Literal["zero", "noise"]
    box: tuple[int, int, int, int]
    gradient: Tensor


class CellField(NamedTuple):
    """A cell has its row and column, its centre (y, x) in pixels, and the side of its field, None if nothing passes."""

    cell: tuple[int, int]
    centre: tuple[float, float]
    side: int | None


def gradient_fields(
    extractor: FeatureExtractor, side: int = SIDE, seed: int = 0, progress: Progress | None = None
) -> list[GradientField]:
    """Measure the receptive field of each layer by its gradient, in the order of the extractor's layers.

    The image is zero after normalisation. Random weights without biases pass no gradient there, for every value sits
    at the kink of its ReLU; then it is drawn from a standard normal distribution. A network for which this takes long
    is measured on the middle of the image first, and on more of it where a field reaches the border of that.

    Args:
        extractor: with its weights.
        side: side of the image in pixels, more than 64, and than the field; for patches, a multiple of theirs.
        seed: decides the noise.
        progress: called with (stage, done, total).

    Raises:
        InputError: the side is too small, or a layer passes no gradient on noise either.
    """
    if side <= 4 * BORDER:
        raise InputError(
            f"side={side}: expected more than {4 * BORDER} pixels, for {BORDER} at each border are ignored"
        )
    patch = extractor.cells.patch
    seen = 128 // patch * patch
    facts = layer_facts(extractor, (seen, seen))  # whatever gives no map is refused at once
    device = next(extractor.buffers()).device
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    fields: dict[int, GradientField] = {}  # of each layer, by its place
    full = [_window(fact.theoretical, side) for fact in facts]
    costly = sum(fact.macs * (w / seen) ** 2 for fact, w in zip(facts, full, strict=True)) > _COSTLY
    small = 16 * patch if extractor.cells.prefix is not None else _SMALL
    waiting = {i: min(window, small) if costly else window for i, window in enumerate(full)}
    while waiting:
        window = min(waiting.values())
        now = [i for i, w in waiting.items() if w == window]
        start = (side - window) // 2
        for kind in ("zero", "noise"):
            image = noise[:, :, start : start + window, start : start + window]
            image = image if kind == "noise" else torch.zeros_like(image)
            for i, gradient in _gradients(extractor, image.to(device), [i for i in now if waiting.get(i) == window]):
                norm = gradient[0].norm(dim=0).cpu()  # (window, window)
                if not (float(norm.max()) > 0 and bool(torch.isfinite(norm).all())):
                    continue
                if window < full[i] and _field(norm, "zero").at_least:
                    waiting[i] = min(full[i], 2 * window)
                    continue
                fields[i] = _field(pad(norm, (start, side - window - start) * 2), "zero" if kind == "zero" else "noise")
                waiting.pop(i)
                if progress is not None:
                    progress("measuring receptive fields", len(fields), len(facts))
        for i in now:
            if waiting.get(i) == window:  # neither image passes a gradient
                waiting.pop(i)
    if len(fields) < len(facts):
        dead = [fact.layer for i, fact in enumerate(facts) if i not in fields]
        raise InputError(f"{', '.join(dead)} of {extractor.backbone} pass no gradient: do the weights belong to it?")
    return [fields[i] for i in range(len(facts))]


def _window(theoretical: int | Literal["global"] | None, side: int) -> int:
    """Choose the side of the middle of the image that decides the gradient: outside the theoretical field is none.

    A multiple of twice the largest stride in use, 64, so that the cells of window and image lie alike, and so much
    larger than the field that no cell it is made of touches the window's border.
    """
    if not isinstance(theoretical, int) or side % _STEP:
        return side
    return min(side, -(-(theoretical + _STEP // 2) // _STEP) * _STEP)


def effective_fields(extractor: FeatureExtractor, images: Iterable[Tensor]) -> list[int]:
    """Measure the side in pixels of each layer's effective receptive field on the user's own images.

    The smallest square around the centre cell that holds 95 % of its channel mean's squared gradient, summed over
    colours and images. It cannot exceed the images.

    Args:
        extractor: with its weights.
        images: batches (B, 3, H, W) in [0, 1], all of one size.

    Raises:
        InputError: no image, or a layer passes no gradient on any of them.
    """
    energy: list[Tensor] = []
    for batch in images:
        parts = _energies(extractor, batch, len(extractor.layers), _CENTRE)
        energy = [a + b for a, b in zip(energy, parts, strict=True)] if energy else parts  # (H, W) each
    if not energy:
        raise InputError("no image was given: the effective receptive field is measured on images")
    size = (energy[0].shape[0], energy[0].shape[1])
    fields = []
    for layer, total, (_, h, w) in zip(extractor.layers, energy, extractor.shapes(size), strict=True):
        if float(total.sum()) <= 0:
            raise InputError(f"{layer} of {extractor.backbone} passes no gradient on these images: use other weights")
        centre = ((h // 2 + 0.5) * size[0] / h - 0.5, (w // 2 + 0.5) * size[1] / w - 0.5)
        fields.append(centred_box(total.cpu(), centre, ENERGY))
    return fields


def field_of_cell(
    extractor: FeatureExtractor, image: Tensor, grids: Sequence[tuple[int, int]], place: tuple[float, float]
) -> list[CellField]:
    """Measure what the cell of each layer over a place sees of this very image, as :func:`effective_fields` does.

    Args:
        extractor: with its weights.
        image: (1, 3, H, W) in [0, 1].
        grids: (h, w) of each layer on such an image, where the image is read at several scales at each of them.
        place: down and across, as shares of the image, 0 to below 1.
    """
    size = (image.shape[2], image.shape[3])
    fields = []
    for energy, (h, w) in zip(_energies(extractor, image, len(grids), place), grids, strict=True):
        cell = (int(place[0] * h), int(place[1] * w))
        centre = ((cell[0] + 0.5) * size[0] / h, (cell[1] + 0.5) * size[1] / w)
        seen = float(energy.sum()) > 0
        side = centred_box(energy.cpu(), (centre[0] - 0.5, centre[1] - 0.5), ENERGY) if seen else None
        fields.append(CellField(cell, centre, side))
    return fields


def _energies(extractor: FeatureExtractor, batch: Tensor, n: int, place: tuple[float, float]) -> list[Tensor]:
    """Return the squared gradient (H, W) of the first n levels at a place, summed over images in [0, 1] and colours."""
    normalised = (batch.to(extractor.mean.device) - extractor.mean) / extractor.std
    # the gradient by pixels in [0, 1]
    return [
        (g / extractor.std).square().sum(dim=(0, 1))
        for _, g in _gradients(extractor, normalised, list(range(n)), place)
    ]


def centred_box(energy: Tensor, centre: tuple[float, float], share: float) -> int:
    """Find the side in pixels of the smallest square around ``centre`` with a ``share`` of the ``energy``.

    Args:
        energy: (H, W), 0 or more.
        centre: row and column.
        share: 0 to 1.

    >>> import torch
    >>> centred_box(torch.tensor([[1.0, 1, 1], [1, 92, 1], [1, 1, 1]]), (1, 1), 0.9)
    1
    """
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in energy.shape)
    distance = torch.maximum((rows[:, None] - centre[0]).abs(), (columns - centre[1]).abs()).flatten()  # (H * W,)
    order = distance.argsort(stable=True)
    inside = energy.double().flatten()[order].cumsum(0)
    needed = int(torch.searchsorted(inside, share * float(inside[-1])))
    return math.ceil(2 * float(distance[order[min(needed, len(order) - 1)]]) + 1)


def relative_field(field: float, size: tuple[int, int]) -> float:
    """Divide a field in pixels by the longer side of the network's input: the relative receptive field (RRF)."""
    return field / max(size)


def _gradients(
    extractor: FeatureExtractor, normalised: Tensor, layers: list[int], place: tuple[float, float] = _CENTRE
) -> Iterable[tuple[int, Tensor]]:
    """Yield each layer's number, and the gradient (B, 3, H, W) of the channel mean of its cell at a place, by image."""
    if not layers:
        return
    image = normalised.clone().requires_grad_(True)
    with torch.enable_grad():
        levels = extractor.read(image)
        for i in layers:
            level = levels[i]
            cell = level[:, :, int(place[0] * level.shape[2]), int(place[1] * level.shape[3])]  # (B, C)
            total = cell.mean(dim=1).sum()  # images do not mix
            (gradient,) = torch.autograd.grad(total, image, retain_graph=i != layers[-1])
            yield i, gradient


def _field(norm: Tensor, image: Literal["zero", "noise"]) -> GradientField:
    share = norm / norm.max()
    share[share < THRESHOLD] = 0
    inner = torch.zeros_like(share)
    inside = slice(BORDER, len(share) - BORDER)
    inner[inside, inside] = share[inside, inside]
    rows, columns = inner.any(dim=1).nonzero().flatten(), inner.any(dim=0).nonzero().flatten()
    if len(rows) == 0:  # all of it on the border
        return GradientField(len(share), True, image, (0, 0, len(share), len(share)), inner)
    top, bottom, left, right = (int(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
    touches = min(top, left) <= BORDER or max(bottom, right) >= len(share) - BORDER - 1
    width, height = right - left + 1, bottom - top + 1
    return GradientField(max(width, height), touches, image, (left, top, width, height), inner)
