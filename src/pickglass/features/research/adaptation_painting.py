"""Painted defects stand for real ones while a backbone is adapted: some kinds to train on, others to judge by.

Letters: N images, H x W pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pickglass.data import paint
from pickglass.data.painting.defects import Kind
from pickglass.errors import InputError

__all__ = ["Good", "PaintedImages", "judged_images", "paint_image", "stack_images"]

TRAINED_ON: tuple[Kind, ...] = ("scratch", "stain", "dent", "slub", "foreign_fibre")
JUDGED_BY: tuple[Kind, ...] = ("hole", "crack", "knot", "broken_pick", "missing_end")

_JUDGED = 24  # painted images
_SMALLEST = 4  # px that paint takes


class Good(NamedTuple):
    """Good images as the network sees them, on the CPU: (N, 3, H, W) RGB in [0, 1], and what counts, (N, H, W) bool."""

    images: Tensor
    keep: Tensor | None


class PaintedImages(NamedTuple):
    """Good images with painted defects.

    Attributes:
        images: (N, 3, H, W) RGB in [0, 1].
        painted: (N, H, W) bool, True where a defect changed a pixel that counts.
        keep: (N, H, W) bool, what counts; None: all.
    """

    images: Tensor
    painted: Tensor
    keep: Tensor | None

    def to(self, device: str) -> PaintedImages:
        """Copy the images to another device."""
        return PaintedImages(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]


def judged_images(good: Good, seed: int) -> PaintedImages:
    """Paint images to judge by: each good image as often as needed, with the kinds in turn.

    Raises:
        InputError: no defect can be painted on any of them.
    """
    painted = []
    for i in range(_JUDGED):
        rng = np.random.default_rng((seed, 1, i))
        painted.append(paint_image(good, i % len(good.images), JUDGED_BY[i % len(JUDGED_BY)], rng))
    judged = stack_images(painted)
    if not bool(judged.painted.any()):
        raise InputError("no defect can be painted on the held-back images: are they all of one colour, or too small?")
    return judged


def paint_image(good: Good, i: int, kind: Kind, rng: np.random.Generator) -> PaintedImages:
    """Paint a defect of random size and contrast on image i; where none can be painted, the image stays good.

    Returns:
        One image, N = 1.
    """
    image, keep = good.images[i].clone(), None if good.keep is None else good.keep[i]
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()  # (H, W, 3)
    largest = max(_SMALLEST, min(pixels.shape[:2]) / 4)
    size = float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(largest))))
    drawn = float(rng.uniform(0.3, 1.0))
    mask = torch.zeros(image.shape[1:], dtype=torch.bool)
    for contrast in (drawn, 1.0, 2.0):  # too weak a one may change nothing
        try:
            defect = paint(np.ascontiguousarray(pixels), kind, size, rng, contrast)
        except InputError:
            continue
        changed = torch.from_numpy(defect.mask)
        image[:, changed] = torch.from_numpy(defect.image).permute(2, 0, 1)[:, changed].float() / 255
        mask = changed if keep is None else changed & keep
        break
    return PaintedImages(image[None], mask[None], None if keep is None else keep[None])


def stack_images(parts: Sequence[PaintedImages]) -> PaintedImages:
    """Join several sets of painted images."""
    images, masks, keeps = zip(*parts, strict=True)
    return PaintedImages(torch.cat(images), torch.cat(masks), None if keeps[0] is None else torch.cat(keeps))
