"""Annotated shapes are polygons, run lengths, ellipses and boxes; each has a type and an upright box around it.

Coordinates are pixels from the top left corner of the image, see :mod:`pickglass.data.annotations.raster`. A shape
checks itself when it is made, and against the size of its image in ``within``; what is wrong is a DataError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pickglass.data.annotations.raster import fill_ellipse, fill_ring, fill_runs
from pickglass.errors import DataError

__all__ = ["DEFECT", "Bounds", "Box", "Ellipse", "Polygon", "RunLengths", "Shape", "is_rectangle"]

Points: TypeAlias = NDArray[np.float64]
Bounds: TypeAlias = tuple[float, float, float, float]

DEFECT = "defect"
"""The type of a shape that has no name."""

_SKEW = 0.02  # of the diagonal, by which rounding may put the corners of a rectangle askew
_MAX_SIDE = 1_000_000  # pixels
_FARTHEST = 1e9  # pixels; what is computed of coordinates up to here does not overflow
_ROUNDING = 1.0  # pixels by which a tool's rounding may put a corner outside the image


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """A polygon is the union of one or several rings of corners, each float (n, 2) of x and y, n at least 3.

    Attributes:
        type: name of the defect type.
        rings: the corners in turn; a ring is closed from its last corner to its first.
        bounds: the upright box around the shape: x, y, width, height.
    """

    type: str
    rings: tuple[Points, ...]
    bounds: Bounds = field(init=False)

    def __post_init__(self) -> None:
        lows, highs = [], []
        for ring in self.rings:
            if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
                raise DataError(f"a polygon of {len(ring)} corners, expected at least 3: draw it again or delete it")
            lows.append(ring.min(0).tolist())
            highs.append(ring.max(0).tolist())
        if not lows:
            raise DataError("a polygon without corners: draw it again or delete it")
        (x0, y0), (x1, y1) = map(min, zip(*lows, strict=True)), map(max, zip(*highs, strict=True))
        _check_finite("polygon", x0, y0, x1, y1, *(value for low in lows for value in low))
        object.__setattr__(self, "bounds", (x0, y0, x1 - x0, y1 - y0))

    def within(self, size: tuple[int, int]) -> Polygon:
        """Return the shape in an image of ``size`` (H, W): corners up to a pixel outside are moved to the edge.

        Raises:
            DataError: corners further outside.
        """
        x, y, width, height = self.bounds
        outside = max(-x, -y, x + width - size[1], y + height - size[0])
        if outside <= 0:
            return self
        if outside > _ROUNDING:
            raise _outside("polygon", self.bounds, size)
        return Polygon(self.type, tuple(np.clip(ring, 0, (size[1], size[0])) for ring in self.rings))

    def draw(self, mask: NDArray[np.bool_]) -> None:
        """Mark the shape in ``mask``, bool (H, W)."""
        for ring in self.rings:
            fill_ring(mask, ring)


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths:
    """Run lengths tell the pixels of a window: how many are not marked, marked, not marked, and so on.

    Attributes:
        type: name of the defect type.
        counts: the lengths in turn, int (n,), the first one not marked (0 where the first pixel is marked).
        window: (height, width) that the lengths fill.
        by_columns: the pixels are counted down the columns, from left to right, as COCO does; else along the rows.
        left, top: where the window lies in the image.
    """

    type: str
    counts: NDArray[np.int64]
    window: tuple[int, int]
    by_columns: bool = True
    left: int = 0
    top: int = 0

    def __post_init__(self) -> None:
        if not all(0 < side <= _MAX_SIDE for side in self.window):
            raise DataError(f"run lengths for a mask of {self.window[0]}x{self.window[1]} (height x width)")
        pixels = self.window[0] * self.window[1]
        lengths: list[int] = self.counts.tolist()
        if min(lengths, default=0) < 0 or sum(lengths) != pixels:
            raise DataError(
                f"run lengths of {sum(lengths)} pixels, the smallest {min(lengths, default=0)}, for a mask of "
                f"{self.window[0]}x{self.window[1]} = {pixels} pixels (height x width): export the mask again"
            )
        if not any(lengths[1::2]):
            raise DataError("run lengths that mark no pixel: draw the shape again or delete it")

    @classmethod
    def from_pairs(cls, text: str, size: tuple[int, int], type: str = DEFECT) -> RunLengths:
        """Read pairs of start and length, counted from 1 down the columns, as Severstal's tables have them.

        Args:
            text: e.g. ``"3 2 10 4"``: pixels 3 and 4, and 10 to 13.
            size: (H, W) of the image.
            type: name of the defect type.

        Raises:
            DataError: no whole numbers, an odd count of them, runs that overlap, run backwards or leave the image.

        >>> RunLengths.from_pairs("1 2 6 1", (3, 2)).counts.tolist()
        [0, 2, 3, 1]
        """
        words = text.split()
        if not words or len(words) % 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise DataError(f"run lengths {text[:60]!r}: expected pairs of start and length, e.g. '3 2 10 4'")
        numbers = [int(word[:19]) for word in words]
        pixels = size[0] * size[1]
        counts, at = [], 0
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            if start - 1 < at or length < 1 or start - 1 + length > pixels:
                raise DataError(
                    f"run lengths: the run {start} {length} overlaps another, is out of order or leaves an image of "
                    f"{size[0]}x{size[1]} = {pixels} pixels (height x width)"
                )
            counts += [start - 1 - at, length]
            at = start - 1 + length
        return cls(type, np.array([*counts, pixels - at] if at < pixels else counts, np.int64), size)

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], type: str = DEFECT, left: int = 0, top: int = 0) -> RunLengths:
        """Keep a mask, bool (h, w), whose upper left pixel lies at (left, top) of the image, as run lengths."""
        flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
        counts = np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)
        return cls(type, counts.astype(np.int64), (mask.shape[0], mask.shape[1]), False, left, top)

    @property
    def bounds(self) -> Bounds:
        """The upright box around the shape: x, y, width, height."""
        ends = np.cumsum(self.counts)[1::2]
        marked = self.counts[1::2] > 0
        ends = ends[marked]
        starts = ends - self.counts[1::2][marked]
        length = self.window[0] if self.by_columns else self.window[1]
        first, last = int(starts[0]) // length, (int(ends[-1]) - 1) // length
        low, high = starts % length, (ends - 1) % length
        whole = bool((starts // length != (ends - 1) // length).any())  # a run goes on in the next line
        lowest, highest = (0, length - 1) if whole else (int(low.min()), int(high.max()))
        if self.by_columns:
            x, y, width, height = first, lowest, last - first + 1, highest - lowest + 1
        else:
            x, y, width, height = lowest, first, highest - lowest + 1, last - first + 1
        return float(self.left + x), float(self.top + y), float(width), float(height)

    def within(self, size: tuple[int, int]) -> RunLengths:
        """Return the shape in an image of ``size`` (H, W): a row or column of pixels outside is cut off.

        Raises:
            DataError: its window is further outside.
        """
        height, width = self.window
        outside = max(-self.left, -self.top, self.left + width - size[1], self.top + height - size[0])
        if outside <= 0:
            return self
        if outside > _ROUNDING:
            raise _outside("mask", (self.left, self.top, width, height), size)
        pixels = np.zeros(self.window, np.bool_)
        fill_runs(pixels, self.counts, self.by_columns)
        left, top = max(-self.left, 0), max(-self.top, 0)
        inside = pixels[top : size[0] - self.top, left : size[1] - self.left]
        return RunLengths.from_mask(inside, self.type, self.left + left, self.top + top)

    def draw(self, mask: NDArray[np.bool_]) -> None:
        """Mark the shape in ``mask``, bool (H, W)."""
        window = mask[self.top : self.top + self.window[0], self.left : self.left + self.window[1]]
        fill_runs(window, self.counts, self.by_columns)


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse has a centre, two semi-axes, and degrees that turn the first of them from x towards y (clockwise).

    Its centre lies in the image; what reaches over the edge is not drawn.
    """

    type: str
    x: float
    y: float
    semi_x: float
    semi_y: float
    degrees: float = 0.0

    def __post_init__(self) -> None:
        _check_finite("ellipse", self.x, self.y, self.semi_x, self.semi_y, self.degrees)
        if min(self.semi_x, self.semi_y) <= 0:
            raise DataError(f"an ellipse with the semi-axes {self.semi_x} and {self.semi_y}: expected both above 0")

    @property
    def bounds(self) -> Bounds:
        """The upright box around the shape: x, y, width, height."""
        cos, sin = _turn(self.degrees)
        half_x = math.hypot(self.semi_x * cos, self.semi_y * sin)
        half_y = math.hypot(self.semi_x * sin, self.semi_y * cos)
        return self.x - half_x, self.y - half_y, 2 * half_x, 2 * half_y

    def within(self, size: tuple[int, int]) -> Ellipse:
        """Return the shape itself if its centre lies in an image of ``size`` (H, W), or up to a pixel outside.

        Raises:
            DataError: it does not.
        """
        _check_centre("ellipse", self.x, self.y, size, self.bounds)
        return self

    def draw(self, mask: NDArray[np.bool_]) -> None:
        """Mark the shape in ``mask``, bool (H, W)."""
        fill_ellipse(mask, (self.x, self.y), (self.semi_x, self.semi_y), self.degrees)


@dataclass(frozen=True, slots=True)
class Box:
    """A box says where a defect is, not which pixels it has; it is truth for images and hits, never for pixels.

    Attributes:
        type: name of the defect type.
        x, y: the upper left corner before it is turned.
        width, height: both above 0.
        degrees: turns the box about its centre from x towards y (clockwise).
    """

    type: str
    x: float
    y: float
    width: float
    height: float
    degrees: float = 0.0

    def __post_init__(self) -> None:
        _check_finite("box", self.x, self.y, self.width, self.height, self.degrees)
        if min(self.width, self.height) <= 0:
            raise DataError(
                f"a box of width {self.width:g} and height {self.height:g}: expected both above 0, draw it again or "
                "delete it"
            )

    @classmethod
    def from_corners(cls, type: str, corners: Points) -> Box:
        """Make a turned box of its corners in turn, float (4, 2) of x and y.

        Raises:
            DataError: they are not the corners of a rectangle, see :func:`is_rectangle`.
        """
        if not is_rectangle(corners):
            raise DataError(f"a turned box with the corners {corners.tolist()!s:.120}, which are no rectangle's")
        x, y = corners.mean(0).tolist()
        side, other = corners[1] - corners[0], corners[2] - corners[1]
        width, height = math.hypot(*side), math.hypot(*other)
        degrees = math.degrees(math.atan2(side[1], side[0]))
        if round(degrees, 3) % 90 == 0:  # upright
            (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
            return cls(type, x0, y0, x1 - x0, y1 - y0)
        return cls(type, x - width / 2, y - height / 2, width, height, degrees)

    @property
    def bounds(self) -> Bounds:
        """The upright box around the shape: x, y, width, height."""
        if self.degrees == 0:
            return self.x, self.y, self.width, self.height
        cos, sin = map(abs, _turn(self.degrees))
        width, height = self.width * cos + self.height * sin, self.width * sin + self.height * cos
        return self.x + (self.width - width) / 2, self.y + (self.height - height) / 2, width, height

    def within(self, size: tuple[int, int]) -> Box:
        """Return the box in an image of ``size`` (H, W): edges up to a pixel outside are moved to the image's edge.

        The corners of a turned box may lie outside, its centre may not.

        Raises:
            DataError: further outside.
        """
        if self.degrees != 0:
            _check_centre("turned box", self.x + self.width / 2, self.y + self.height / 2, size, self.bounds)
            return self
        right, bottom = self.x + self.width, self.y + self.height
        if self.x >= 0 and self.y >= 0 and right <= size[1] and bottom <= size[0]:
            return self
        outside = max(-self.x, -self.y, right - size[1], bottom - size[0])
        left, top = max(self.x, 0.0), max(self.y, 0.0)
        width, height = min(right, size[1]) - left, min(bottom, size[0]) - top
        if outside > _ROUNDING or min(width, height) <= 0:
            raise _outside("box", self.bounds, size)
        return replace(self, x=left, y=top, width=width, height=height)


Shape: TypeAlias = Polygon | RunLengths | Ellipse | Box


def is_rectangle(corners: Points) -> bool:
    """Say whether four corners, float (4, 2), are a rectangle's: diagonals alike within 2 % of their length."""
    if corners.shape != (4, 2) or not (np.abs(corners) <= _FARTHEST).all():
        return False
    first, second = corners[2] - corners[0], corners[3] - corners[1]
    lengths = math.hypot(*first), math.hypot(*second)
    middles = math.hypot(*(corners[0] + corners[2] - corners[1] - corners[3])) / 2
    return max(abs(lengths[0] - lengths[1]), middles) <= _SKEW * max(lengths)


def _turn(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _check_finite(name: str, *numbers: float) -> None:
    if not all(abs(number) <= _FARTHEST for number in numbers):  # NaN is not, either
        raise DataError(f"a coordinate of the {name} is beyond any image or no number: draw it again or delete it")


def _check_centre(name: str, x: float, y: float, size: tuple[int, int], bounds: Bounds) -> None:
    if not (-_ROUNDING <= x <= size[1] + _ROUNDING and -_ROUNDING <= y <= size[0] + _ROUNDING):
        raise _outside(name, bounds, size)


def _outside(name: str, bounds: Bounds, size: tuple[int, int]) -> DataError:
    x, y, width, height = bounds
    return DataError(
        f"a {name} at x {x:g} to {x + width:g}, y {y:g} to {y + height:g} leaves its image of {size[0]}x{size[1]} "
        "(height x width): was the image resized or turned? Export the annotations for the image as it is"
    )
