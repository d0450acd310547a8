"""The same images as several detectors see them: what the pages of a comparison and of a study have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import NamedTuple

from pickglass.app.pages.images import (
    Array,
    Badge,
    Picture,
    display,
    draw_contours,
    heat,
    jpeg,
    mark_peak,
    own_range,
    picture_size,
    shape_of,
    shrink_max,
    thumbnail,
)

__all__ = ["SameImage", "Seen", "draw_same", "kind_of", "unreadable", "wrong_verdict"]

SIDE = 256  # px, longest side of a picture


@dataclass(frozen=True)
class Seen:
    """One image as one detector sees it.

    Attributes:
        caption: name of the detector, and what it says.
        map: ``(H, W)`` anomaly map at the original size; None where there is nothing to show.
        scale: ``(low, high)`` anomaly values at the two ends of the colours.
        badge: its verdict, where that is wrong.
    """

    caption: str
    map: Array | None
    scale: tuple[float, float] = (0.0, 1.0)
    badge: Badge | None = None


class SameImage(NamedTuple):
    """One image for the page: its name, its kind, how it is laid out, its pictures, or why there are none."""

    name: str
    kind: str
    shape: str
    pictures: Sequence[Picture]
    error: str = ""


def draw_same(path: str, kind: str, image: Array, mask: Array | None, seen: Sequence[Seen]) -> SameImage:
    """Draw an image, and over it what each detector sees; the ground truth is outlined on all of them.

    Args:
        path: path of the image.
        kind: what the image shows, for people.
        image: as :func:`pickglass.data.read_image` returns it.
        mask: ``(H, W)`` bool, the ground truth; None where there is none.
        seen: one entry a detector.
    """
    size = picture_size(image.shape[0], image.shape[1], SIDE)
    small = thumbnail(display(image), size)  # (h, w, 3)
    truth = None if mask is None else shrink_max(mask, size)
    pictures = [jpeg("original", "original", draw_contours(small, truth=truth))]
    for one in seen:
        if one.map is None:
            pictures.append(Picture("", one.caption, None, size))
        else:
            values = shrink_max(one.map, size)
            coloured = mark_peak(draw_contours(heat(small, values, one.scale), truth=truth), values)
            own = mark_peak(draw_contours(heat(small, values, own_range(values)), truth=truth), values)
            picture = jpeg("", one.caption, coloured, one.badge)
            pictures.append(replace(picture, own=jpeg("", "", own).source))
    return SameImage(PurePath(path).name or path, kind, shape_of(*image.shape[:2]), pictures)


def unreadable(path: str, kind: str, error: str) -> SameImage:
    """Return an image that cannot be shown, with the reason."""
    return SameImage(PurePath(path).name or path, kind, "", (), error)


def kind_of(label: int | None, defect: str | None) -> str:
    """Return what an image is known to be, in a word."""
    return "good" if label == 0 else defect or ("defective" if label else "unknown")


def wrong_verdict(label: int | None, bad: bool | None) -> Badge | None:
    """Return a badge for a verdict that contradicts the label; None where it is right or nobody knows."""
    if label is None or bad is None or bad == bool(label):
        return None
    return Badge("wrong", "false alarm" if bad else "missed")
