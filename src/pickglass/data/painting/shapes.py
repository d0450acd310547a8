"""Painted defects are made of fields that each kind fills in, and of curves and outlines that it draws with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pickglass.errors import MissingExtra

__all__ = [
    "Drawn",
    "Fields",
    "Floats",
    "Grid",
    "Render",
    "Scene",
    "Source",
    "clouds",
    "edge",
    "jagged",
    "ndimage",
    "nearest",
    "outline",
    "polar",
    "rotation",
    "smooth",
    "turned",
]

Floats: TypeAlias = NDArray[np.float64]


def ndimage() -> Any:
    """Load SciPy's filters, with which images are painted; a machine that only judges images has none of them.

    Raises:
        MissingExtra: SciPy is not installed.
    """
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtra.needed("painting images", error) from error
    return ndimage


class Scene(NamedTuple):
    """A scene says where a defect is asked for."""

    image: NDArray[np.uint8]  # (H, W) or (H, W, 3)
    size_px: float
    middle: tuple[float, float]  # y, x: drawn at random
    width_px: float | None = None  # of the line, or across the blob; None: as the kind has it

    @property
    def slimness(self) -> float | None:
        """Width over length; None where no width is asked for."""
        return None if self.width_px is None else self.width_px / self.size_px


class Grid(NamedTuple):
    """A grid holds pixel centres relative to the defect's middle, in units of its size, and a pixel in that unit."""

    y: Floats
    x: Floats
    pixel: float


class Source(NamedTuple):
    """A source names surface to take from elsewhere in the image, each field ``(h, w)``."""

    weight: Floats  # 0..1: how far it replaces what lies here
    down: Floats  # from how many pixels below
    right: Floats  # and to the right


class Fields(NamedTuple):
    """A rendered defect is made of these fields, each ``(h, w)``."""

    cover: Floats  # 0..1: the surface is replaced by
    tone: Floats  # a level, relative to the local mean, in units of the strength
    light: Floats  # added to what shows through, in units of the strength
    source: Source | None = None  # done first: threads pushed aside, a part that lies elsewhere
    hued: bool = False  # bright tones have the hue of the surface too: the same material, not a highlight


Render: TypeAlias = Callable[[Grid], Fields]


class Drawn(NamedTuple):
    """A drawn shape can be rendered at any scale; its middle (y, x) is the scene's, or the place where it fits."""

    middle: tuple[float, float]
    render: Render


def edge(distance: Floats, pixel: float) -> Floats:
    """Return an anti-aliased edge: 1 inside (below 0), 0 outside, a ramp of a pixel and a half between."""
    return np.clip(0.5 - distance / (1.5 * pixel), 0, 1)


def rotation(angle: float) -> Floats:
    """Return the (2, 2) matrix that turns points by an angle."""
    turn: Floats = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn


def turned(line: Floats, rng: np.random.Generator) -> Floats:
    """Turn a line by a random angle about the middle of its box."""
    line = line @ rotation(rng.uniform(0, 2 * math.pi))
    middle: Floats = (line.max(axis=0) + line.min(axis=0)) / 2
    return line - middle


def polar(grid: Grid, tilt: float, stretch: float) -> tuple[Floats, Floats]:
    """Return each pixel's radius and angle in an ellipse of half-axes 1 and ``stretch`` that is turned by ``tilt``."""
    along = grid.x * math.cos(tilt) + grid.y * math.sin(tilt)
    across = (grid.y * math.cos(tilt) - grid.x * math.sin(tilt)) / stretch
    return np.hypot(along, across), np.arctan2(grid.y, grid.x)


def outline(rng: np.random.Generator, roughness: float, first: int) -> Callable[[Floats], Floats]:
    """Draw a closed curve around 1 as a function of the angle: a few waves whose height falls with their number."""
    numbers = np.arange(first, first + 6)
    heights = roughness * rng.normal(0, 1, 6) * first / numbers
    phases = rng.uniform(0, 2 * math.pi, 6)

    def radius(angle: Floats) -> Floats:
        waves = (h * np.cos(n * angle + p) for n, h, p in zip(numbers, heights, phases, strict=True))
        total: Floats = np.clip(1 + sum(waves), 0.5, 1.5)
        return total

    return radius


def clouds(rng: np.random.Generator) -> Callable[[Grid], Floats]:
    """Draw a smooth random field around 0 with features of a fifth to a half of the defect."""
    waves = rng.normal(0, 1, (8, 2)) * 9
    phases = rng.uniform(0, 2 * math.pi, 8)

    def field(grid: Grid) -> Floats:
        terms = [np.cos(w[0] * grid.y + w[1] * grid.x + p) for w, p in zip(waves, phases, strict=True)]
        total: Floats = np.sum(terms, axis=0) / 2
        return total

    return field


def smooth(rng: np.random.Generator, n: int) -> Floats:
    """Draw n values around 0, each near its neighbours."""
    smooth: Floats = np.convolve(rng.normal(0, 1, n + 8), np.hanning(11)[1:-1] / 2.2, mode="valid")
    return smooth


def jagged(rng: np.random.Generator, start: Floats, end: Floats, roughness: float) -> Floats:
    """Draw a broken line ``(33, 2)`` from start to end: its middles move aside again and again, each time by less."""
    line = np.stack([start, end])
    side = np.array([end[1] - start[1], start[0] - end[0]])
    for _ in range(5):
        middles = (line[:-1] + line[1:]) / 2 + rng.normal(0, roughness, (len(line) - 1, 1)) * side
        line = np.insert(line, np.arange(1, len(line)), middles, axis=0)
        roughness *= 0.6
    return line


def nearest(grid: Grid, line: Floats, half: Floats) -> tuple[Floats, Floats, Floats]:
    """Find each pixel's distance to the edge of a line of half-widths ``half``, its place along it, and its side."""
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
