"""Woven cloth has these defects: broken pick, missing end, slub, knot, foreign fibre, and a hole that frays.

They follow the threads: horizontal or vertical, as wide as the distance between threads where the image shows one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    clouds,
    edge,
    nearest,
    outline,
    polar,
    smooth,
    turned,
)

__all__ = [
    "broken_pick",
    "foreign_fibre",
    "frayed_hole",
    "knot",
    "missing_end",
    "slub",
    "thread_pitch",
    "woven",
]

_CLEAR = 60  # times the median power: white noise stays below, cloth of 4 px and more is at 90 to 1,000
_FINE = 9  # px


def thread_pitch(scene: Scene, axis: int) -> float:
    """Measure the distance in pixels between horizontal (axis 0) or vertical (axis 1) threads around the place.

    Without a clear period of 2 to 12 pixels: a sixteenth of the defect, within 2 to 6.
    """
    return _clear_period(scene, axis) or min(max(scene.size_px / 16, 2.0), 6.0)


def _clear_period(scene: Scene, axis: int) -> float | None:
    """Measure the period in pixels, 2 to 12, of horizontal (axis 0) or vertical (axis 1) threads around the place.

    The means of whole rows keep what all picks have in common and lose the diagonals of the weave.
    """
    # Far along the profile for a fine spectrum; near along the threads, which do not run straight.
    reach = (64, 24) if axis == 0 else (24, 64)
    near = [slice(max(0, int(m) - r), int(m) + r) for m, r in zip(scene.middle, reach, strict=True)]
    part = scene.image[near[0], near[1]].astype(float)
    grey = part if part.ndim == 2 else part.mean(axis=2)
    profile = grey.mean(axis=1 - axis)  # (n,)
    if len(profile) < 24:
        return None
    place = np.linspace(-1, 1, len(profile))
    profile = profile - np.polynomial.Polynomial.fit(place, profile, 2)(place)
    power = np.abs(np.fft.rfft(profile * np.hanning(len(profile)), 1024)) ** 2
    power *= np.arange(513) ** 2  # bright and dark stretches of cloth rise as 1/f^2 and would hide the threads
    frequencies = np.arange(1024 // 12, 1024 // 2)
    peak = int(frequencies[power[frequencies].argmax()])
    return 1024 / peak if power[peak] > _CLEAR * np.median(power[frequencies]) and power[peak] > 1e-9 else None


def woven(scene: Scene) -> tuple[float, float] | None:
    """Measure the distances between horizontal and between vertical threads if the place looks like cloth, else None.

    Threads show a clear period both ways. A satin, or a real cloth, may show it one way only; then it must be below 9
    pixels, for brickwork and gratings have coarser ones.
    """
    down, right = _clear_period(scene, 0), _clear_period(scene, 1)
    if down and right:
        return down, right
    period = down or right
    return (period, period) if period and period < _FINE else None


def broken_pick(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A broken pick is a horizontal thread gone over a length: its neighbours close in, a torn tip may stick out."""
    return _gap(rng, scene, axis=0, tips=rng.random(2) < 0.6, dark=rng.random() < 0.75)


def missing_end(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A missing end is a vertical thread that is not there: a straight, even line from end to end."""
    return _gap(rng, scene, axis=1, tips=np.zeros(2, np.bool_), dark=rng.random() < 0.75)


def _gap(rng: np.random.Generator, scene: Scene, *, axis: int, tips: NDArray[np.bool_], dark: bool) -> Drawn:
    pitch = thread_pitch(scene, axis)
    depth, wander = rng.uniform(0.65, 0.9), 0.12 * smooth(rng, 24)
    uneven, tip_side = 1 + 0.2 * smooth(rng, 24), rng.choice([-1.0, 1.0], 2)

    def render(grid: Grid) -> Fields:
        along, across = (grid.x, grid.y) if axis == 0 else (grid.y, grid.x)
        width = min(max(pitch, 1.5) * grid.pixel, 0.4)  # of the missing thread
        zone = min(1.7 * width, 0.45)
        position = (along + 0.5) * 23
        off = across - width * np.interp(position, np.arange(24), wander)
        inside = edge(np.abs(along) - 0.5 + 0.5 * grid.pixel, grid.pixel)
        near = np.clip(1 - np.abs(off) / zone, 0, 1)
        closing = np.sign(off) * 0.5 * width * near / grid.pixel  # px
        line = np.exp(-((off / (0.5 * width)) ** 2)) * (near > 0)
        light = (-depth if dark else depth) * line * np.interp(position, np.arange(24), uneven)
        for end, side, torn in zip((-0.5, 0.5), tip_side, tips, strict=True):
            if torn and grid.pixel < 0.1:  # a tip needs pixels to be drawn with
                distance = np.hypot((along - end * (1 - 1.4 * width)) / 1.3, off - side * 0.55 * width)
                light = light + (0.9 if dark else -0.9) * np.clip(1.4 - distance / (0.35 * width), 0, 1)
        weight = inside * (near > 0)
        down, right = (closing, np.zeros_like(closing)) if axis == 0 else (np.zeros_like(closing), closing)
        zero = np.zeros_like(light)
        return Fields(zero, zero, light * inside, Source(weight, down, right))

    return Drawn(scene.middle, render)


def slub(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A slub is a length of thread that is too thick: a bright spindle that bulges under the threads that cross it."""
    axis = int(rng.random() < 0.35)
    pitch, crossing = thread_pitch(scene, axis), thread_pitch(scene, 1 - axis)
    thick, phase = rng.uniform(0.55, 0.85), rng.uniform(0, 2 * math.pi)
    wander, fat, strands = 0.25 * smooth(rng, 24), 1 + 0.18 * smooth(rng, 24), clouds(rng)

    def render(grid: Grid) -> Fields:
        along, across = (grid.x, grid.y) if axis == 0 else (grid.y, grid.x)
        most = min(max(thick * pitch * grid.pixel, 0.07, 0.8 * grid.pixel), 0.24)  # half the thickness
        position = (along + 0.5) * 23
        spindle = np.clip(1 - np.abs(2 * along) ** 1.8, 0, 1)
        half = most * np.maximum(spindle * np.interp(position, np.arange(24), fat), 0.25)
        off = across - 0.4 * most * np.interp(position, np.arange(24), wander)
        ends = edge(np.abs(along) - 0.5 + 0.5 * grid.pixel, grid.pixel)
        body = edge(np.abs(off) - half, grid.pixel) * ends
        u = np.clip(off / half, -1, 1)
        crossed = 0.5 + 0.5 * np.cos(2 * math.pi * along / (crossing * grid.pixel) + phase)
        cover = body * (0.88 - (0.3 * crossed if crossing * 3 * grid.pixel < 1 else 0.0))
        stretched = Grid(3 * off, 1.2 * along, grid.pixel)
        tone = 0.0 + 0.95 * np.sqrt(1 - u**2) - 0.3 * u + 0.1 * strands(stretched)
        beside = np.clip(1 - np.abs(np.abs(off) - half) / (0.8 * most), 0, 1) * (np.abs(off) > half) * ends
        light = -0.45 * beside * (off > 0) * (1 - body)
        push = -np.sign(off) * 0.3 * most * beside / grid.pixel  # px
        down, right = (push, np.zeros_like(push)) if axis == 0 else (np.zeros_like(push), push)
        return Fields(cover, tone, light, Source((beside > 0) * ends, down, right), hued=True)

    return Drawn(scene.middle, render)


def knot(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A knot is a hard round lump that throws a shadow, with the two cut ends of the tied thread."""
    lump, axis, light_from = outline(rng, roughness=0.1, first=2), rng.random() < 0.5, rng.uniform(0, 2 * math.pi)
    t = np.linspace(0, 1, 12)
    tails = []
    for sign in (-1, 1):
        tail = np.stack([0.12 * smooth(rng, 12) * t, sign * 0.5 * t], axis=1)  # y, x
        tails.append(tail[:, ::-1] if axis else tail)
    strands = clouds(rng)

    def render(grid: Grid) -> Fields:
        size = min(max(0.2, 2.6 * grid.pixel), 0.46)
        radius, angle = polar(grid, 0.0, 1.0)
        r = radius / (size * lump(angle))
        ball = edge((r - 1) * size, grid.pixel)
        height = np.sqrt(np.clip(1 - r**2, 0, 1))
        wraps = np.cos(2 * math.pi * (grid.y + (0.5 if axis else 2.0) * grid.x) / (0.55 * size) + 2 * strands(grid))
        facing = np.clip(r, 0, 1) * np.cos(angle - light_from)
        tone = 0.75 * height - 0.05 + 0.6 * facing + 0.22 * wraps * (size > 4 * grid.pixel)
        shade = np.clip(1.5 - r, 0, 0.5) * 2 * np.clip(-np.cos(angle - light_from), 0, 1) * (1 - ball)
        cover = 0.92 * ball
        if size < 0.46:
            for tail in tails:
                distance, where, _ = nearest(grid, tail, np.full(12, max(0.02, 0.5 * grid.pixel)))
                yarn = 0.8 * edge(distance, grid.pixel) * (1 - ball)
                tone = np.where(yarn > cover, 0.75 - 0.02 * where, tone)
                cover = np.maximum(cover, yarn)
        return Fields(cover, tone, -0.6 * shade * (1 - cover), hued=True)

    return Drawn(scene.middle, render)


def foreign_fibre(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A foreign fibre is a long curled hair on top of the threads, brighter or darker than all, with a thin shadow."""
    n, dark = 40, rng.random() < 0.5
    course = np.cumsum(0.17 * smooth(rng, n) + rng.normal(0, 0.04))
    steps: Floats = np.stack([np.sin(course), np.cos(course)], axis=1)
    line = turned(np.cumsum(steps, axis=0), rng)
    turns = np.arange(16) * math.pi / 16
    line = line / np.ptp(line @ np.stack([np.sin(turns), np.cos(turns)]), axis=0).max()
    fade, thin = 1 + 0.15 * smooth(rng, n), rng.uniform(0.004, 0.010)

    def render(grid: Grid) -> Fields:
        half = np.full(n, max(thin, 0.4 * grid.pixel))
        distance, where, side = nearest(grid, line, half)
        cover = edge(distance, grid.pixel)
        shadow = np.clip(1 - np.abs(distance - grid.pixel) / (1.2 * grid.pixel), 0, 1) * (side > 0) * (1 - cover)
        tone = 1.4 * np.interp(where, np.arange(n), fade) * (-1 if dark else 1)
        reach = min(1.0, 0.15 / grid.pixel)  # none where the hair is a few pixels long
        return Fields(0.9 * cover, tone, -0.3 * shadow * reach)

    return Drawn(scene.middle, render)


class _YarnEnd(NamedTuple):
    """A broken thread leaves an end at the rim of a hole; lengths are in units of the hole."""

    line: Floats  # (n, 2): y, x from the rim to the tip
    half: Floats  # (n,): half its thickness
    level: float


def frayed_hole(rng: np.random.Generator, scene: Scene, pitch: tuple[float, float]) -> Drawn:
    """A frayed hole is a tear in cloth: broken ends of yarn and single fibres reach into a dark, uneven opening.

    Args:
        rng: decides the shape.
        scene: where.
        pitch: distance in pixels between horizontal and between vertical threads.
    """
    rim, stretch, tilt = outline(rng, roughness=0.11, first=3), rng.uniform(0.75, 1.0), rng.uniform(0, math.pi)

    def depth(grid: Grid) -> Floats:
        radius, angle = polar(grid, tilt, stretch)
        return (0.5 - 0.5 * grid.pixel) * rim(angle) - radius  # above 0 inside

    ends = [end for axis in (0, 1) for end in _yarn_ends(rng, depth, axis, pitch[axis] / scene.size_px, scene.size_px)]

    def render(grid: Grid) -> Fields:
        inside = depth(grid)
        opening = edge(-inside, grid.pixel)
        tone = np.full_like(inside, -1.25)
        for end in ends:
            half = np.maximum(end.half, 0.4 * grid.pixel)
            distance, where, _ = nearest(grid, end.line, half)
            yarn = edge(distance, grid.pixel) * opening
            body = np.clip(-distance / float(half.max()), 0, 1)  # brightest along the middle, darker towards the tip
            level = end.level * (0.55 + 0.45 * body) - 0.25 * where / (len(end.line) - 1)
            tone = tone + 0.9 * yarn * (level - tone)
        return Fields(0.94 * opening, tone, np.zeros_like(tone), hued=True)

    return Drawn(scene.middle, render)


def _yarn_ends(
    rng: np.random.Generator, depth: Callable[[Grid], Floats], axis: int, step: float, size_px: float
) -> list[_YarnEnd]:
    """Draw the ends of horizontal (axis 0) or vertical threads, ``step`` apart, on both sides of the opening."""
    ends = []
    t = np.linspace(0, 1, 7)
    for place in np.arange(rng.uniform(-0.5, -0.5 + step), 0.5, step):
        along = np.linspace(-0.6, 0.6, 121)
        across = np.full_like(along, place)
        y, x = (across, along) if axis == 0 else (along, across)
        torn = along[depth(Grid(y[:, None], x[:, None], 1 / size_px))[:, 0] > 0]
        for side in (-1, 1):
            reach = min(0.05 + rng.exponential(0.09), 0.32)
            if not len(torn) or rng.random() < max(0.25, 4 / size_px):  # torn off at the rim
                continue
            start = torn.min() if side < 0 else torn.max()
            reach = min(max(reach, 1.5 / size_px), 0.45 * float(np.ptp(torn)))
            sway, level = rng.normal(0, 0.35) * reach, rng.uniform(0.05, 0.5)
            thick = min(0.3 * step, 0.08)
            for fibre in range(1 + int(rng.integers(0, 3)) * (size_px >= 16)):
                far = reach * (1 if fibre == 0 else rng.uniform(1.1, 1.7))
                bent = sway + (0 if fibre == 0 else rng.normal(0, 0.4) * far)
                line = np.stack([place + bent * t**2, start - side * (far * t - 0.5 / size_px)], axis=1)  # (7, 2)
                half = thick * (1 - 0.65 * t**2) if fibre == 0 else np.zeros(7)
                ends.append(_YarnEnd(line if axis == 0 else line[:, ::-1], half, level if fibre == 0 else 0.6 * level))
    return ends
