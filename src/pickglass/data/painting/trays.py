"""A generator fills trays with parts, of which one can be missing, surplus or misplaced.

Equal parts lie in rows on a matt ground, each a little off its place and turned a little, under one lamp. The settings
describe the line; the seed fills another tray.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pickglass.data.painting.shapes import ndimage
from pickglass.errors import InputError, UnknownName

__all__ = ["PARTS", "PartName", "Tray", "fill"]

PartName = Literal["pin", "washer", "nut", "bolt"]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Tray:
    """A tray of equal parts and the camera over it are set by these values.

    Attributes:
        part: ``"pin"`` (a round rod), ``"washer"``, ``"nut"`` or ``"bolt"``.
        part_px: longest extent of a part, in pixels; at least 4.
        pitch_px: distance between neighbours in both directions, in pixels; above 1.2 times ``part_px``.
        ground: level of the tray, 0..255, or (red, green, blue).
        metal: level of a part that faces the lamp, 0..255, or (red, green, blue). The image is grey if both are levels.
        stray_px: standard deviation of a part's place, in pixels.
        turn_deg: standard deviation of a part's angle, in degrees.
        lighting: how much darker the darkest place is than the brightest, relative, the same in every picture.
        noise: standard deviation of the sensor's noise, in grey levels.
    """

    part: PartName = "bolt"
    part_px: float = 32.0
    pitch_px: float = 52.0
    ground: int | tuple[int, int, int] = 70
    metal: int | tuple[int, int, int] = 215
    stray_px: float = 0.8
    turn_deg: float = 3.0
    lighting: float = 0.1
    noise: float = 2.0


def fill(tray: Tray, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Fill a tray.

    Args:
        tray: what lies how.
        size: height and width in pixels; rows and columns of parts are centred, none is cut.
        seed: another seed is another tray of the same line.

    Returns:
        ``(H, W)`` uint8, or ``(H, W, 3)`` if ground or metal has a colour.

    Raises:
        UnknownName: no such part.
        InputError: parts below 4 pixels or too dense, a size without room for one, or a level outside 0..255.
        MissingExtra: SciPy is not installed.

    >>> fill(Tray("washer", part_px=24, pitch_px=40), (128, 160)).shape
    (128, 160)
    """
    _check(tray, size)
    gaussian_filter = ndimage().gaussian_filter
    rng = np.random.default_rng(seed)
    cover, shade, shadow = (np.zeros(size) for _ in range(3))
    starts = [(n - (n // tray.pitch_px - 1) * tray.pitch_px) / 2 for n in size]
    for y0 in np.arange(starts[0], size[0] - tray.pitch_px / 2 + 0.5, tray.pitch_px):
        for x0 in np.arange(starts[1], size[1] - tray.pitch_px / 2 + 0.5, tray.pitch_px):
            middle = np.array([y0, x0]) + np.clip(rng.normal(0, tray.stray_px, 2), -0.08 * tray.pitch_px, None)
            _lay(tray, middle, math.radians(rng.normal(0, tray.turn_deg)), rng, (cover, shade, shadow))
    grain = gaussian_filter(rng.normal(0, 1, size), 0.8)
    grain += 1.5 * gaussian_filter(rng.normal(0, 1, size), 3)
    y, x = (np.linspace(-1, 1, n) for n in size)
    light = 1 - tray.lighting * (1.5 - x[None] - 0.5 * y[:, None]) / 3
    ground, metal = np.atleast_1d(tray.ground), np.atleast_1d(tray.metal)
    channels = max(len(ground), len(metal))
    out = np.empty((*size, channels), np.uint8)
    for channel, (under, over) in enumerate(np.broadcast(*np.broadcast_arrays(ground, metal))):
        level = under * (1 + 0.06 * grain) * (1 - 0.55 * shadow * (1 - cover))
        level += cover * (over * shade - level)
        picture = gaussian_filter(level * light, 0.6) + rng.normal(0, tray.noise, size)
        out[..., channel] = picture.round().clip(0, 255)
    return out[..., 0] if channels == 1 else out


def _check(tray: Tray, size: tuple[int, int]) -> None:
    if tray.part not in PARTS:
        raise UnknownName("part", tray.part, PARTS)
    if not 4 <= tray.part_px < math.inf:
        raise InputError(f"part_px={tray.part_px!r}: expected at least 4 pixels")
    if not 1.2 * tray.part_px < tray.pitch_px < math.inf:
        raise InputError(f"pitch_px={tray.pitch_px!r}: expected more than {1.2 * tray.part_px:g}, 1.2 times part_px")
    if min(size) < tray.pitch_px:
        raise InputError(f"size={size!r}: expected at least {tray.pitch_px:g}, the pitch of the parts")
    for name in ("ground", "metal"):
        level = np.atleast_1d(getattr(tray, name))
        if level.shape not in ((1,), (3,)) or level.min() < 0 or level.max() > 255:
            raise InputError(f"{name}={getattr(tray, name)!r}: expected a level in 0..255 or three of them")
    for name in ("stray_px", "turn_deg", "lighting", "noise"):
        if not 0 <= getattr(tray, name) < math.inf:
            raise InputError(f"{name}={getattr(tray, name)!r}: expected a number of at least 0")


def _lay(
    tray: Tray, middle: Floats, angle: float, rng: np.random.Generator, planes: tuple[Floats, Floats, Floats]
) -> None:
    """Draw one part and its shadow into cover, shade and shadow."""
    reach = 0.6 * tray.part_px + 4
    corner = np.maximum(middle - reach, 0).astype(int)
    box = tuple(slice(c, int(m + reach) + 1) for c, m in zip(corner, middle, strict=True))
    rows, columns = np.indices(planes[0][box].shape)
    y, x = rows + corner[0] + 0.5 - middle[0], columns + corner[1] + 0.5 - middle[1]
    u = (y * math.cos(angle) - x * math.sin(angle)) / tray.part_px
    v = (x * math.cos(angle) + y * math.sin(angle)) / tray.part_px
    inside, height = PARTS[tray.part](u, v)  # in units of the part: distance to its edge, above 0 inside; height
    cover = np.clip(0.5 + inside * tray.part_px, 0, 1)
    slope = np.gradient(height * tray.part_px)  # down, right
    shade = np.clip(0.72 - 0.22 * np.clip(slope[0] + slope[1], -1.2, 1.2) + 0.03 * rng.normal(), 0.2, 1.1)
    fallen, _ = PARTS[tray.part](u - 1 / tray.part_px, v - 1 / tray.part_px)
    planes[2][box] = np.maximum(planes[2][box], np.clip(0.5 + (fallen * tray.part_px + 0.7) / 2, 0, 1))
    planes[1][box] = np.where(cover > planes[0][box], shade, planes[1][box])
    planes[0][box] = np.maximum(planes[0][box], cover)


def _pin(u: Floats, v: Floats) -> tuple[Floats, Floats]:
    along = np.maximum(np.abs(u) - 0.38, 0)
    inside = 0.12 - np.hypot(along, v)
    return inside, np.sqrt(np.clip(0.0144 - v**2, 0, None))


def _washer(u: Floats, v: Floats) -> tuple[Floats, Floats]:
    radius = np.hypot(u, v)
    inside = np.minimum(0.5 - radius, radius - 0.24)
    return inside, np.clip(inside, 0, 0.04)


def _hexagon(u: Floats, v: Floats) -> Floats:
    turns = np.arange(3) * math.pi / 3
    inside: Floats = 0.433 - np.max([np.abs(u * math.cos(t) + v * math.sin(t)) for t in turns], axis=0)
    return inside


def _nut(u: Floats, v: Floats) -> tuple[Floats, Floats]:
    inside = np.minimum(_hexagon(u, v), np.hypot(u, v) - 0.23)
    return inside, np.clip(inside, 0, 0.06)


def _bolt(u: Floats, v: Floats) -> tuple[Floats, Floats]:
    head = np.minimum(0.25 - np.abs(v), np.minimum(u + 0.5, -0.26 - u))
    shaft = np.minimum(0.12 - np.abs(v), np.minimum(0.5 - u, u + 0.3))
    thread = 0.02 * np.cos(2 * math.pi * u / 0.075) * (u > -0.1)
    inside = np.maximum(head, shaft)
    return inside, np.where(head > shaft, np.clip(head, 0, 0.05), np.sqrt(np.clip(0.0144 - v**2, 0, None)) + thread)


PARTS: dict[str, Callable[[Floats, Floats], tuple[Floats, Floats]]] = {
    "pin": _pin,
    "washer": _washer,
    "nut": _nut,
    "bolt": _bolt,
}
