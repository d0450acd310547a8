"""Outlines become pixels by one rule: a pixel belongs to a shape where its centre lies inside.

Coordinates are pixels from the top left corner of the image: x to the right, y down. The pixel in row i and column j is
the square from (j, i) to (j + 1, i + 1), and its centre is (j + 0.5, i + 0.5). A ring of corners is filled by the
even-odd rule; a centre exactly on a left or upper edge is inside, on a right or lower edge outside, so shapes that
share an edge share no pixel. A ring so thin that it holds no centre marks the pixels that its outline passes through,
sampled every half pixel: no annotated defect vanishes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill_ellipse", "fill_ring", "fill_runs"]

_AT_ONCE = 4_000_000  # crossings of edges and rows that are held in memory


def fill_ring(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    """Mark in ``mask`` (H, W) the pixels inside a ring of corners, float (n, 2) of x and y, closed by itself."""
    height, width = mask.shape
    left, top = (max(math.floor(low), 0) for low in points.min(0))
    right = min(math.ceil(points[:, 0].max()), width)
    bottom = min(math.ceil(points[:, 1].max()), height)
    if left < right and top < bottom:
        inside = _even_odd(points - (left, top), bottom - top, right - left)
        if inside.any():
            mask[top:bottom, left:right] |= inside
            return
    _mark_outline(mask, points)


def _even_odd(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    # Rows whose centre lies between the ends of an edge: from the upper end, itself included, to the lower end.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    end = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    crossed = end - first  # (n,)
    odd = np.zeros(0, np.int64)  # where a row goes in or out: positions in (height, width + 1), sorted
    whole = np.cumsum(crossed)
    for part in np.split(np.arange(len(points)), np.searchsorted(whole, np.arange(_AT_ONCE, whole[-1], _AT_ONCE))):
        edge = np.repeat(part, crossed[part])  # (crossings,)
        before = np.repeat(np.cumsum(crossed[part]) - crossed[part], crossed[part])
        row = first[edge] + np.arange(len(edge)) - before
        x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1[edge] - x0[edge]) / (y1[edge] - y0[edge]))
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)  # the first whose centre is not left of it
        places, counts = np.unique(row * (width + 1) + column, return_counts=True)
        odd = np.setxor1d(odd, places[counts % 2 == 1], assume_unique=True)
    lengths = np.diff(odd, prepend=0, append=height * (width + 1))
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return inside.reshape(height, width + 1)[:, :width]


def _mark_outline(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    height, width = mask.shape
    step = np.roll(points, -1, axis=0) - points  # (n, 2)
    steps = np.ceil(2 * np.abs(step).max(1)).astype(np.int64) + 1
    edge = np.repeat(np.arange(len(points)), steps)
    share = (np.arange(len(edge)) - np.repeat(np.cumsum(steps) - steps, steps)) / steps[edge]
    x, y = np.floor(points[edge] + share[:, None] * step[edge]).astype(np.int64).T
    mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] = True


def fill_ellipse(
    mask: NDArray[np.bool_], centre: tuple[float, float], semi_axes: tuple[float, float], degrees: float
) -> None:
    """Mark in ``mask`` (H, W) the pixels whose centres lie in an ellipse or on its edge; at least that of its centre.

    Args:
        mask: what is marked; the part of the ellipse outside it is left out.
        centre: x, y.
        semi_axes: lengths in pixels, first along x where ``degrees`` is 0.
        degrees: turns the first axis from x towards y, which is clockwise on the screen.
    """
    height, width = mask.shape
    (x, y), (a, b) = centre, semi_axes
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    reach_x, reach_y = math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)
    left, right = math.floor(max(x - reach_x, 0)), math.ceil(min(x + reach_x, width))
    top, bottom = math.floor(max(y - reach_y, 0)), math.ceil(min(y + reach_y, height))
    dx = np.arange(left, right)[None, :] + 0.5 - x  # (1, columns)
    dy = np.arange(top, bottom)[:, None] + 0.5 - y  # (rows, 1)
    along, across = (dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b  # (rows, columns)
    inside = along**2 + across**2 <= 1
    mask[top:bottom, left:right] |= inside
    if not inside.any():
        mask[min(max(math.floor(y), 0), height - 1), min(max(math.floor(x), 0), width - 1)] = True


def fill_runs(mask: NDArray[np.bool_], counts: NDArray[np.int64], by_columns: bool) -> None:
    """Mark in ``mask`` (H, W) the runs of pixels that ``counts`` gives: not marked, marked, not marked, and so on.

    The pixels are counted down the columns, from left to right, or along the rows, from top to bottom.
    """
    lines = mask.T if by_columns else mask
    ends = np.cumsum(counts)
    starts, ends = (ends - counts)[1::2], ends[1::2]
    if not len(starts):
        return
    length = lines.shape[1]
    first, last = int(starts[0]) // length, -(-int(ends[-1]) // length)
    edges = np.stack([starts, ends], 1).ravel() - first * length
    used = np.diff(edges, prepend=0, append=(last - first) * length)
    marked = np.repeat(np.arange(len(used)) % 2 == 1, used)
    lines[first:last] |= marked.reshape(last - first, length)
