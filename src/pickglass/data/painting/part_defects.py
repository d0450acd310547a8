"""Trays and assemblies have these defects: a part that is missing, one too many, one that lies wrong.

Where the image shows parts on a plain ground, whole parts of the stated size are taken, copied or turned; elsewhere a
piece of the surface itself is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pickglass.data.painting.shapes import (
    Drawn,
    Fields,
    Floats,
    Grid,
    Scene,
    Source,
    edge,
    ndimage,
    outline,
    polar,
    rotation,
)

__all__ = ["Part", "Parts", "find_parts", "misplaced_part", "missing_part", "surplus_part"]

_RIM = 1  # px: the soft edge belongs to a part


class Part(NamedTuple):
    """A part lies on a plain ground."""

    middle: tuple[float, float]  # y, x of its box
    extent: float  # px, longest, with its rim
    slim: bool  # it can be seen to be turned


class Parts(NamedTuple):
    """An image holds these parts; one that touches the image's edge has the extent 0."""

    found: list[Part]
    labels: NDArray[np.int32]  # (H, W): 0 is ground, 1 + index of the part, with its rim and shadow
    body: NDArray[np.bool_]  # (H, W): parts without either


def find_parts(image: NDArray[np.uint8]) -> Parts:
    """The image (H, W) or (H, W, 3) is searched for parts that stand out from a plain ground; there may be none."""
    filters = ndimage()
    levels = image.reshape(*image.shape[:2], -1).astype(np.float32)
    away = np.abs(levels - np.median(levels, axis=(0, 1))).max(axis=2)
    away = filters.gaussian_filter(away, 0.7)
    cut, separated = _otsu(away)
    if separated < 0.72 or not 0.002 < (away > cut).mean() < 0.45 or cut < 8:
        return Parts([], np.zeros(away.shape, np.int32), np.zeros(away.shape, np.bool_))
    solid = away > 0.4 * cut  # the shadow belongs to the part
    grown = filters.binary_fill_holes(filters.binary_dilation(solid, iterations=_RIM))
    body = away > cut
    labels, _ = filters.label(grown, np.ones((3, 3)))
    parts = []
    for i, box in enumerate(filters.find_objects(labels), start=1):
        at_edge = any(s.start == 0 or s.stop == n for s, n in zip(box, away.shape, strict=True))
        points = np.argwhere(labels[box] == i)
        turns = np.arange(16) * math.pi / 16
        spans = np.ptp(points @ np.stack([np.sin(turns), np.cos(turns)]), axis=0) + 1
        speck = not body[box][labels[box] == i].any()
        if at_edge or speck:
            parts.append(Part((0.0, 0.0), 0.0, False))  # keeps the numbers in step; no size fits it
        else:
            middle = ((box[0].start + box[0].stop) / 2, (box[1].start + box[1].stop) / 2)
            # Spans of a few pixels jump; moments do not.
            shortest, longest = np.linalg.eigvalsh(np.cov(points.T, ddof=0) + np.eye(2) / 12)
            parts.append(Part(middle, float(spans.max()), bool(longest > 1.4**2 * shortest)))
    return Parts(parts, labels.astype(np.int32), body)


def _otsu(values: NDArray[np.float32]) -> tuple[float, float]:
    """Find the threshold that separates two classes best, and the share of the variance between them."""
    counts, edges = np.histogram(values, bins=128)
    middles, n = (edges[1:] + edges[:-1]) / 2, counts.sum()
    below, mass = np.cumsum(counts), np.cumsum(counts * middles)
    above = np.maximum(n - below, 1e-9)
    between = np.maximum(below, 1e-9) * above / n**2 * (mass / np.maximum(below, 1) - (mass[-1] - mass) / above) ** 2
    variance = float((counts * (middles - mass[-1] / n) ** 2).sum() / n)
    best = int(between.argmax())
    return float(edges[best + 1]), float(between[best]) / variance if variance > 0 else 0.0


def missing_part(rng: np.random.Generator, scene: Scene) -> Drawn:
    """Show the ground where a part of this size lay; a larger part loses a piece, without parts a print is left."""
    parts = find_parts(scene.image)
    fitting = [i for i, part in enumerate(parts.found) if abs(part.extent - scene.size_px) <= 2]
    if fitting:
        i = fitting[rng.integers(len(fitting))]
        middle, footprint = parts.found[i].middle, (parts.labels == i + 1).astype(float)
        ground = _ground(parts.labels > 0)

        def gone(grid: Grid) -> Fields:
            weight = _sampled(footprint, grid, middle)
            zero = np.zeros_like(weight)
            return Fields(zero, zero, zero, _from(ground, grid, middle, weight))

        return Drawn(middle, gone)
    middle = _on_a_part(rng, scene, parts, scene.size_px)
    shape, tilt = outline(rng, roughness=0.06, first=2), rng.uniform(0, math.pi)
    jump, solid = _elsewhere(rng, scene), (parts.labels > 0).astype(float)
    ground = _ground(parts.labels > 0)

    def part_of_it_gone(grid: Grid) -> Fields:
        radius, angle = polar(grid, tilt, 0.8)
        depth = 0.5 * shape(angle) - radius
        inside = edge(-depth, grid.pixel)
        zero = np.zeros_like(inside)
        if middle != scene.middle:  # on a part
            weight = inside * _sampled(solid, grid, middle)
            return Fields(zero, zero, zero, _from(ground, grid, middle, weight))
        rim = np.clip(1 - np.abs(depth - grid.pixel) / (1.5 * grid.pixel), 0, 1) * inside
        return Fields(zero, zero, -0.5 * inside - 0.25 * rim * np.sin(angle), _jumped(jump, inside))

    return Drawn(middle, part_of_it_gone)


def surplus_part(rng: np.random.Generator, scene: Scene) -> Drawn:
    """Lay a turned copy of a part where none should be; without parts, a piece of the surface lies on the surface."""
    parts = find_parts(scene.image)
    whole = [i for i, part in enumerate(parts.found) if part.extent > 0]
    if whole:
        i = min(whole, key=lambda k: abs(parts.found[k].extent - scene.size_px))
        donor, footprint = parts.found[i], (parts.labels == i + 1).astype(float)
        middle = _free_place(rng, scene, parts.labels)
        turn = rotation(rng.uniform(0, 2 * math.pi))

        def copied(grid: Grid) -> Fields:
            # In units of the donor: the copy is as large as asked.
            y, x = (donor.extent * (grid.y * a + grid.x * b) for a, b in turn)
            weight = _lookup(footprint, y + donor.middle[0], x + donor.middle[1])
            down = y - grid.y / grid.pixel + donor.middle[0] - middle[0]
            right = x - grid.x / grid.pixel + donor.middle[1] - middle[1]
            zero = np.zeros_like(weight)
            return Fields(zero, zero, zero, Source(weight, down, right))

        return Drawn(middle, copied)
    return _piece(rng, scene, 0.0, None)


def misplaced_part(rng: np.random.Generator, scene: Scene) -> Drawn:
    """Shift and turn a part so that its old and new place together have the size; without parts, a piece of surface.

    A part as long as the size is only turned. A round one, which no turn would show, must be shorter; it is out of its
    seat, whose empty print shows, and lies aslant, so that one side is bright and the other dark.
    """
    parts, size = find_parts(scene.image), scene.size_px
    fitting = [p for p in parts.found if 0 < p.extent <= size + (1 if p.slim else -max(1.5, 0.06 * size))]
    if not fitting:
        there = scene._replace(middle=_on_a_part(rng, scene, parts, size - 2))
        angle, within = rng.uniform(0.5, 1.2), None if there == scene else (parts.labels > 0).astype(float)
        return _piece(rng, there, angle, within, shift=0.0 if there == scene else 0.4 * size)
    largest = max(p.extent for p in fitting)
    fitting = [p for p in fitting if p.extent > 0.85 * largest]
    part = fitting[rng.integers(len(fitting))]
    footprint = (parts.labels == 1 + parts.found.index(part)).astype(float)
    ground = _ground(parts.labels > 0)
    turn = rotation(rng.uniform(0.4, 0.9) * rng.choice([-1, 1]) if part.slim else 0.0)
    course = _course(rng, scene, part)
    half = 0.5 * max(size - part.extent, 0.0) * course
    middle = (part.middle[0] + float(half[0]), part.middle[1] + float(half[1]))

    def moved(grid: Grid) -> Fields:
        far = max(1 / grid.pixel - part.extent, 0.0) * course  # px; the scale of the grid decides
        y, x = grid.y / grid.pixel + half[0], grid.x / grid.pixel + half[1]  # from the part's old place
        old = _lookup(footprint, y + part.middle[0], x + part.middle[1])
        dy, dx = y - far[0], x - far[1]
        there = [dy * a + dx * b for a, b in turn]
        new = _lookup(footprint, there[0] + part.middle[0], there[1] + part.middle[1])
        bare = _from(ground, grid, middle, old)
        down = np.where(new > 0.5, there[0] - y, bare.down)
        right = np.where(new > 0.5, there[1] - x, bare.right)
        zero = np.zeros_like(old)
        light = zero if part.slim else _unseated(old, new, dy * course[0] + dx * course[1], part.extent)
        return Fields(zero, zero, light, Source(np.maximum(old, new), down, right))

    return Drawn(middle, moved)


def _unseated(old: Floats, new: Floats, ahead: Floats, extent: float) -> Floats:
    """Light a round part out of its seat: the seat is dark, darkest where the part hangs over it, and the part aslant.

    Args:
        old: 0..1, where it lay.
        new: 0..1, where it lies.
        ahead: pixels from its new middle, in the direction in which it moved.
        extent: the part's extent in pixels.
    """
    seat = old * (1 - new)
    under = np.clip(1 + (ahead + 0.5 * extent) / (0.35 * extent), 0, 1)
    slope = np.clip(2 * ahead / extent, -1, 1)
    light: Floats = -seat * (0.3 + 0.2 * under) + 0.35 * new * slope
    return light


def _course(rng: np.random.Generator, scene: Scene, part: Part) -> Floats:
    """Draw the direction (down, right) of a shift that keeps the part in the image, or the last of a few tries."""
    for angle in rng.uniform(0, 2 * math.pi, 32):
        course = np.array([math.sin(angle), math.cos(angle)])
        place = np.array(part.middle) + max(scene.size_px - part.extent, 0.0) * course
        if (np.minimum(place, np.array(scene.image.shape[:2]) - place) > part.extent / 2).all():
            break
    return course


def _piece(rng: np.random.Generator, scene: Scene, turn: float, within: Floats | None, *, shift: float = 0.0) -> Drawn:
    """Lay a round piece of the surface on it: from elsewhere, or turned in its place; its edge throws a shadow.

    A turned one comes from ``shift`` pixels away. Nothing is changed beyond ``within``, ``(H, W)``: 0..1.
    """
    shape, tilt, light_from = outline(rng, 0.08, 3), rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    jump, turned_by = _elsewhere(rng, scene), rotation(turn)

    def render(grid: Grid) -> Fields:
        radius, angle = polar(grid, tilt, 0.85)
        lip = min(0.12, 1.5 * grid.pixel)
        depth = (0.5 - lip) * shape(angle) - radius
        inside = edge(-depth, grid.pixel)
        towards = np.cos(angle - light_from)
        rim = np.clip(1 - np.abs(depth - 0.5 * lip) / lip, 0, 1)
        shadow = np.clip(1 + depth / (1.3 * lip), 0, 1) * (1 - inside)
        light = (0.12 + 0.45 * rim * towards) * inside - 0.7 * shadow * (0.6 - 0.4 * towards)
        if within is not None:
            share = _sampled(within, grid, scene.middle)
            light, inside = light * share, inside * share
        if turn:
            y, x = ((grid.y * a + grid.x * b) / grid.pixel for a, b in turned_by)
            down, right = shift * math.sin(light_from), shift * math.cos(light_from)
            source = Source(inside, y - grid.y / grid.pixel + down, x - grid.x / grid.pixel + right)
        else:
            source = _jumped(jump, inside)
        return Fields(np.zeros_like(light), np.zeros_like(light), light, source)

    return Drawn(scene.middle, render)


def _on_a_part(rng: np.random.Generator, scene: Scene, parts: Parts, longest: float) -> tuple[float, float]:
    """Find a place on a part above this extent; without such a part, the place that the scene asks for."""
    large = [1 + i for i, part in enumerate(parts.found) if part.extent > longest]
    places = np.argwhere(np.isin(parts.labels, large) & parts.body) + 0.5
    if not len(places):
        return scene.middle
    y, x = places[rng.integers(len(places))]
    return float(y), float(x)


def _elsewhere(rng: np.random.Generator, scene: Scene) -> tuple[float, float]:
    """Draw how far down and right another place of the same size lies, the most distant of a few."""
    reach = scene.size_px / 2 + 1
    height, width = scene.image.shape[:2]
    places = rng.uniform((reach, reach), (height - reach, width - reach), (8, 2)) - scene.middle
    down, right = places[np.hypot(*places.T).argmax()].round()
    return float(down), float(right)


def _jumped(jump: tuple[float, float], weight: Floats) -> Source:
    return Source(weight, np.full_like(weight, jump[0]), np.full_like(weight, jump[1]))


def _ground(solid: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Find how far down and right of each pixel of a part its mirror image in the ground lies, ``(H, W)`` each."""
    nearest = ndimage().distance_transform_edt(solid, return_distances=False, return_indices=True)  # (2, H, W)
    places = np.indices(solid.shape)
    across = nearest - places
    mirrored = places + 2 * across
    limit = np.array(solid.shape)[:, None, None] - 1
    inside = mirrored.clip(0, limit)
    bad = solid[inside[0], inside[1]] | (mirrored != inside).any(axis=0)  # another part, or beyond the edge
    jump = np.where(bad, across, 2 * across).astype(float)
    return jump[0], jump[1]


def _from(ground: tuple[Floats, Floats], grid: Grid, middle: tuple[float, float], weight: Floats) -> Source:
    rows, columns = (np.floor(g / grid.pixel + m).astype(int) for g, m in zip((grid.y, grid.x), middle, strict=True))
    return Source(weight, ground[0][rows, columns], ground[1][rows, columns])


def _sampled(field: Floats, grid: Grid, middle: tuple[float, float]) -> Floats:
    return _lookup(field, grid.y / grid.pixel + middle[0], grid.x / grid.pixel + middle[1])


def _lookup(field: Floats, y: Floats, x: Floats) -> Floats:
    """Read the field at pixel coordinates (the first pixel's centre is 0.5), 0 outside."""
    values: Floats = ndimage().map_coordinates(field, (y - 0.5, x - 0.5), order=1, mode="constant")
    return values


def _free_place(rng: np.random.Generator, scene: Scene, labels: NDArray[np.int32]) -> tuple[float, float]:
    """Find a place on the ground with room for the size, or the one with most room."""
    reach = int(scene.size_px / 2 + 2)
    room = ndimage().distance_transform_edt(labels == 0)[reach:-reach, reach:-reach]
    if not room.size:
        return scene.middle
    free = np.argwhere(room >= min(scene.size_px / 2 + 1, float(room.max())))
    y, x = free[rng.integers(len(free))] + reach + 0.5
    return float(y), float(x)
