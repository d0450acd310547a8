"""Painted defects with exact masks: scratch, hole, stain, crack, made from the statistics of the image they lie on.

A kind draws its shape once, in units of its own size, and can then be rendered at any scale. A rendered defect is
three fields over the pixels: how far the surface is replaced (``cover``), by which level (``tone``), and how much
light is added to or taken from what shows through (``light``). Levels are in units of a strength that follows the
local contrast, so that a defect is as strong on quiet metal as it is on rough cloth. A new kind is one function
and one line in :data:`KINDS`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pickglass.errors import InputError, UnknownName

__all__ = ["KINDS", "Fields", "Grid", "Kind", "Painted", "paint"]

Kind = Literal["scratch", "hole", "stain", "crack"]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Painted:
    """An image with a defect.

    Attributes:
        image: a copy, ``(H, W)`` or ``(H, W, 3)`` uint8.
        mask: bool ``(H, W)``: exactly the pixels that differ from the original by a grey level or more in any channel.
        box: x, y, width, height of the mask in pixels.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]


class Fields(NamedTuple):
    """A rendered defect, each field ``(h, w)``."""

    cover: Floats  # 0..1: the surface is replaced by
    tone: Floats  # a level, relative to the local mean, in units of the strength
    light: Floats  # added to what shows through, in units of the strength


class Grid(NamedTuple):
    """Pixel centres relative to the middle of the defect, in units of its size, and one pixel in that unit."""

    y: Floats
    x: Floats
    pixel: float


Render: TypeAlias = Callable[[Grid], Fields]


def paint(
    image: NDArray[np.uint8],
    kind: Kind,
    size_px: float,
    rng: np.random.Generator,
    contrast: float = 1.0,
) -> Painted:
    """Paint one defect at a random place.

    Args:
        image: ``(H, W)`` or ``(H, W, 3)`` uint8; not changed.
        kind: a name in :data:`KINDS`.
        size_px: longest extent of the defect in pixels, at least 4, reached within a pixel or two.
        rng: decides place and shape.
        contrast: 1 is clearly visible against the texture around; 0.3 is hard to see.

    Raises:
        UnknownName: no such kind.
        InputError: another dtype or shape, a size that does not fit into the image, a contrast not above 0, or no
            change of a grey level because the contrast is too low.

    >>> plate = np.full((64, 64), 128, np.uint8)
    >>> painted = paint(plate, "hole", 12, np.random.default_rng(0))
    >>> bool((painted.mask == (painted.image != plate)).all())
    True
    """
    _check(image, kind, size_px, contrast)
    render = KINDS[kind](rng)
    height, width = image.shape[:2]
    reach = size_px / 2 + 1
    middle = (rng.uniform(reach, height - reach), rng.uniform(reach, width - reach))
    scale, best, miss = float(size_px), None, math.inf
    for _ in range(6):  # how far a soft edge reaches depends on the texture: render, measure, rescale
        changed, corner = _rendered(image, render, middle, scale, size_px, contrast)
        rows, columns = changed.shape[:2]
        part = image[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
        differs = (changed != part).reshape(rows, columns, -1).any(axis=2)  # (h, w)
        extent = _extent(differs)
        if abs(extent - size_px) < miss:
            best, miss = (changed, differs, corner), abs(extent - size_px)
        if miss <= 0.5:
            break
        scale *= min(max(size_px / max(extent, 1.0), 0.5), 2.0)
    if best is None or not best[1].any():
        raise InputError(f"contrast={contrast!r} changes no pixel by a grey level: raise it")
    return _pasted(image, *best)


def _check(image: NDArray[Any], kind: str, size_px: float, contrast: float) -> None:
    if kind not in KINDS:
        raise UnknownName("kind of defect", kind, KINDS)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"image of {image.dtype} {image.shape}, expected uint8 (H, W) or (H, W, 3)")
    limit = min(image.shape[:2]) - 2
    if not 4 <= size_px <= limit:
        raise InputError(f"size_px={size_px!r}: expected 4 to {limit}, the shorter side of the image less 2")
    if not 0 < contrast < math.inf:
        raise InputError(f"contrast={contrast!r}: expected a number above 0, e.g. 1.0")


def _rendered(
    image: NDArray[np.uint8],
    render: Render,
    middle: tuple[float, float],
    scale: float,
    size_px: float,
    contrast: float,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The part of the image around the defect with the defect on it, and where its first pixel lies."""
    height, width = image.shape[:2]
    reach = 0.75 * max(size_px, scale) + 4
    top, left = max(0, int(middle[0] - reach)), max(0, int(middle[1] - reach))
    part = image[top : min(height, int(middle[0] + reach) + 1), left : min(width, int(middle[1] + reach) + 1)]
    rows, columns = part.shape[:2]
    y = (np.arange(rows) + top + 0.5 - middle[0]) / scale
    x = (np.arange(columns) + left + 0.5 - middle[1]) / scale
    across, down = np.meshgrid(x, y)  # (h, w) each
    cover, tone, light = (field[..., None] for field in render(Grid(down, across, 1 / scale)))  # (h, w, 1) each
    surface = part.reshape(rows, columns, -1).astype(float)  # (h, w, 1 or 3)
    mean = surface.mean(axis=(0, 1))  # (1 or 3,)
    spread = surface.mean(axis=2).std()
    strength = contrast * min(max(3.0 * spread, 40.0), 110.0)
    dark_room, bright_room = mean.mean(), 255 - mean.mean()
    room, other = (bright_room, dark_room) if (cover * tone + light).sum() > 0 else (dark_room, bright_room)
    if room < min(0.6 * strength, other):  # too dark to darken or too bright to brighten: the other way round
        tone, light = -tone, -light
    # Dark keeps the hue of the surface; a highlight is white.
    tint = mean / max(mean.mean(), 1.0)
    tone, light = (np.where(field < 0, field * tint, field) * strength for field in (tone, light))
    out = cover * (mean + tone) + (1 - cover) * surface + light
    return out.round().clip(0, 255).astype(np.uint8).reshape(part.shape), (top, left)


def _pasted(
    image: NDArray[np.uint8],
    changed: NDArray[np.uint8],
    differs: NDArray[np.bool_],
    corner: tuple[int, int],
) -> Painted:
    at = (slice(corner[0], corner[0] + differs.shape[0]), slice(corner[1], corner[1] + differs.shape[1]))
    out, mask = image.copy(), np.zeros(image.shape[:2], np.bool_)
    out[at], mask[at] = changed, differs
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
    return Painted(out, mask, box)


def _extent(mask: NDArray[np.bool_]) -> float:
    """Largest distance across the mask in any of 32 directions, from outer edge to outer edge of the pixels."""
    points = np.argwhere(mask)  # (n, 2)
    if not len(points):
        return 0.0
    angles = np.arange(32) * math.pi / 32
    along = points @ np.stack([np.sin(angles), np.cos(angles)])  # (n, 32)
    return float(np.ptp(along, axis=0).max()) + 1.0


# -- shapes -----------------------------------------------------------------------------------------------------------


def _scratch(rng: np.random.Generator) -> Render:
    """A thin, slightly bent, tapering groove: one flank catches the light, the other lies in the shade."""
    bend, t = rng.normal(0, 0.07), np.linspace(-0.5, 0.5, 24)
    line = _turned(np.stack([bend * (1 - 4 * t**2) + 0.006 * _smooth(rng, 24), t], axis=1), rng)
    thickness, bright = rng.uniform(0.008, 0.02), rng.random() < 0.6
    pressure = np.sqrt(np.clip(1 - (2 * t) ** 2, 0, None)) * (1 + 0.25 * _smooth(rng, 24))
    depth = 1 + 0.25 * _smooth(rng, 24)

    def render(grid: Grid) -> Fields:
        half = np.clip(pressure, 0.35, None) * max(thickness, 0.55 * grid.pixel)
        distance, where, side = _nearest(grid, line, half)
        core = _edge(distance, grid.pixel)
        breadth = min(1.1, 0.12 / grid.pixel) * grid.pixel
        flank = np.clip(1 - np.abs(distance - 0.8 * breadth) / breadth, 0, 1)
        tone = np.where(side > 0, 1.0, 0.75) * np.interp(where, np.arange(24), depth) * (1 if bright else -1)
        shade = -0.4 if bright else 0.4
        return Fields(0.9 * core, 1.2 * tone, shade * flank * (side > 0) * (1 - core))

    return render


def _hole(rng: np.random.Generator) -> Render:
    """A dark pit with an irregular rim, darker towards the light's side, and a bright lip on the far side."""
    outline, light_from = _outline(rng, roughness=0.07, first=2), rng.uniform(0, 2 * math.pi)
    stretch, tilt = rng.uniform(0.8, 1.0), rng.uniform(0, math.pi)

    def render(grid: Grid) -> Fields:
        lip = min(0.08, 1.5 * grid.pixel)
        radius, angle = _polar(grid, tilt, stretch)
        depth = (0.5 - lip) * outline(angle) - radius  # above 0 inside
        cover = _edge(-depth, grid.pixel)
        towards = np.cos(angle - light_from)
        tone = -1.25 + 0.3 * towards * radius / 0.5
        ring = np.exp(-((depth / lip) ** 2)) * (depth > -1.3 * lip) * (1 - cover)
        return Fields(0.92 * cover, tone, 0.7 * ring * (0.55 + 0.45 * towards))

    return render


def _stain(rng: np.random.Generator) -> Render:
    """A soft irregular blot through which the texture shows, a little darker where it dried at its rim."""
    outline = _outline(rng, roughness=0.16, first=2)
    stretch, tilt, rim = rng.uniform(0.6, 1.0), rng.uniform(0, math.pi), rng.uniform(0.0, 0.4)
    clouds = _clouds(rng)

    def render(grid: Grid) -> Fields:
        radius, angle = _polar(grid, tilt, stretch)
        inside = np.clip(1 - radius / (0.5 * outline(angle)), 0, 1)  # 1 in the middle, 0 outside
        soft = inside / 0.35
        body = np.where(soft < 1, soft**2 * (3 - 2 * soft), 1.0)
        dried = rim * np.exp(-(((inside - 0.18) / 0.1) ** 2)) * (inside > 0)
        light = -0.36 * body * np.clip(0.8 + 0.35 * clouds(grid), 0.35, None) * (1 + dried)
        return Fields(np.zeros_like(light), np.zeros_like(light), light)

    return render


def _crack(rng: np.random.Generator) -> Render:
    """A jagged dark line, widest in the middle, with thinner branches."""
    trunk = _jagged(rng, np.array([0.0, -0.5]), np.array([0.0, 0.5]), 0.17)
    lines, widths = [trunk], [1 - 0.75 * np.abs(np.linspace(-1, 1, len(trunk))) ** 1.5]
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(trunk) // 5, 4 * len(trunk) // 5))
        ahead = trunk[min(start + 3, len(trunk) - 1)] - trunk[start]
        course = math.atan2(ahead[0], ahead[1]) + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        end = trunk[start] + rng.uniform(0.12, 0.3) * np.array([math.sin(course), math.cos(course)])
        lines.append(_jagged(rng, trunk[start], end, 0.2)[::2])
        widths.append(np.linspace(0.6, 0.2, len(lines[-1])) * widths[0][start])
    thickness = rng.uniform(0.010, 0.018)
    ends = np.cumsum([len(line) for line in lines])[:-1]
    lines = np.split(_turned(np.concatenate(lines), rng), ends)

    def render(grid: Grid) -> Fields:
        cover = np.zeros_like(grid.x)
        for line, width in zip(lines, widths, strict=True):
            distance, _, _ = _nearest(grid, line, np.clip(width * thickness, 0.3 * grid.pixel, None))
            cover = np.maximum(cover, _edge(distance, grid.pixel))
        wide = np.clip(cover * 1.2, 0, 1)
        return Fields(0.92 * wide, np.full_like(cover, -1.15), np.zeros_like(cover))

    return render


KINDS: dict[str, Callable[[np.random.Generator], Render]] = {
    "scratch": _scratch,
    "hole": _hole,
    "stain": _stain,
    "crack": _crack,
}


# -- geometry ---------------------------------------------------------------------------------------------------------


def _edge(distance: Floats, pixel: float) -> Floats:
    """1 inside (below 0), 0 outside, a ramp of a pixel and a half between: an anti-aliased edge."""
    return np.clip(0.5 - distance / (1.5 * pixel), 0, 1)


def _rotation(angle: float) -> Floats:
    turn: Floats = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn


def _turned(line: Floats, rng: np.random.Generator) -> Floats:
    """The line at a random angle, about the middle of its box."""
    line = line @ _rotation(rng.uniform(0, 2 * math.pi))
    middle: Floats = (line.max(axis=0) + line.min(axis=0)) / 2
    return line - middle


def _polar(grid: Grid, tilt: float, stretch: float) -> tuple[Floats, Floats]:
    """Radius and angle of each pixel, as of an ellipse of half-axes 1 and ``stretch`` turned by ``tilt``."""
    along = grid.x * math.cos(tilt) + grid.y * math.sin(tilt)
    across = (grid.y * math.cos(tilt) - grid.x * math.sin(tilt)) / stretch
    return np.hypot(along, across), np.arctan2(grid.y, grid.x)


def _outline(rng: np.random.Generator, roughness: float, first: int) -> Callable[[Floats], Floats]:
    """A closed curve around 1 as a function of the angle: a few waves whose height falls with their number."""
    numbers = np.arange(first, first + 6)
    heights = roughness * rng.normal(0, 1, 6) * first / numbers
    phases = rng.uniform(0, 2 * math.pi, 6)

    def radius(angle: Floats) -> Floats:
        waves = (h * np.cos(n * angle + p) for n, h, p in zip(numbers, heights, phases, strict=True))
        total: Floats = np.clip(1 + sum(waves), 0.5, 1.5)
        return total

    return radius


def _clouds(rng: np.random.Generator) -> Callable[[Grid], Floats]:
    """A smooth random field around 0 with features of a fifth to a half of the defect."""
    waves = rng.normal(0, 1, (8, 2)) * 9
    phases = rng.uniform(0, 2 * math.pi, 8)

    def field(grid: Grid) -> Floats:
        terms = [np.cos(w[0] * grid.y + w[1] * grid.x + p) for w, p in zip(waves, phases, strict=True)]
        total: Floats = np.sum(terms, axis=0) / 2
        return total

    return field


def _smooth(rng: np.random.Generator, n: int) -> Floats:
    """n values around 0, each near its neighbours."""
    smooth: Floats = np.convolve(rng.normal(0, 1, n + 8), np.hanning(11)[1:-1] / 2.2, mode="valid")
    return smooth


def _jagged(rng: np.random.Generator, start: Floats, end: Floats, roughness: float) -> Floats:
    """A broken line ``(33, 2)`` from start to end: its middles are moved aside again and again, each time by less."""
    line = np.stack([start, end])
    side = np.array([end[1] - start[1], start[0] - end[0]])
    for _ in range(5):
        middles = (line[:-1] + line[1:]) / 2 + rng.normal(0, roughness, (len(line) - 1, 1)) * side
        line = np.insert(line, np.arange(1, len(line)), middles, axis=0)
        roughness *= 0.6
    return line


def _nearest(grid: Grid, line: Floats, half: Floats) -> tuple[Floats, Floats, Floats]:
    """For each pixel: distance to the edge of a line of half-widths ``half``; where along it; on which side of it."""
    distance, where, side = np.full(grid.x.shape, np.inf), np.zeros(grid.x.shape), np.zeros(grid.x.shape)
    margin = float(half.max()) + 4 * grid.pixel
    for i, (a, b) in enumerate(itertools.pairwise(line)):
        low, high = np.minimum(a, b) - margin, np.maximum(a, b) + margin
        rows = slice(*np.searchsorted(grid.y[:, 0], [low[0], high[0]]))
        columns = slice(*np.searchsorted(grid.x[0], [low[1], high[1]]))
        y, x = grid.y[rows, columns] - a[0], grid.x[rows, columns] - a[1]
        dy, dx = b - a
        t = np.clip((y * dy + x * dx) / max(dy * dy + dx * dx, 1e-12), 0, 1)
        far = np.hypot(y - t * dy, x - t * dx) - (half[i] + t * (half[i + 1] - half[i]))
        closer = far < distance[rows, columns]
        distance[rows, columns][closer] = far[closer]
        where[rows, columns][closer] = (i + t)[closer]
        side[rows, columns][closer] = (x * dy - y * dx)[closer]
    return distance, where, side
