"""Any surface can have these defects: scratch, hole, stain, crack, dent, and two that change slowly: shade, streak."""

from __future__ import annotations

import math

import numpy as np

from pickglass.data.painting.shapes import (
    Drawn,
    Fields,
    Grid,
    Scene,
    Source,
    clouds,
    edge,
    jagged,
    nearest,
    outline,
    polar,
    smooth,
    turned,
)
from pickglass.data.painting.thread_defects import frayed_hole, woven

__all__ = ["crack", "dent", "hole", "scratch", "shade", "stain", "streak"]


def scratch(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A scratch is a thin, slightly bent, tapering groove: one flank catches the light, the other lies in the shade."""
    bend, t = rng.normal(0, 0.07), np.linspace(-0.5, 0.5, 24)
    line = turned(np.stack([bend * (1 - 4 * t**2) + 0.006 * smooth(rng, 24), t], axis=1), rng)
    thickness, bright = rng.uniform(0.008, 0.02), rng.random() < 0.6
    if scene.slimness is not None:
        thickness = scene.slimness / 2
    pressure = np.sqrt(np.clip(1 - (2 * t) ** 2, 0, None)) * (1 + 0.25 * smooth(rng, 24))
    depth = 1 + 0.25 * smooth(rng, 24)

    def render(grid: Grid) -> Fields:
        half = np.clip(pressure, 0.35, None) * max(thickness, 0.55 * grid.pixel)
        distance, where, side = nearest(grid, line, half)
        core = edge(distance, grid.pixel)
        breadth = min(1.1, 0.12 / grid.pixel) * grid.pixel
        flank = np.clip(1 - np.abs(distance - 0.8 * breadth) / breadth, 0, 1)
        tone = np.where(side > 0, 1.0, 0.75) * np.interp(where, np.arange(24), depth) * (1 if bright else -1)
        shade = -0.4 if bright else 0.4
        return Fields(0.9 * core, 1.2 * tone, shade * flank * (side > 0) * (1 - core))

    return Drawn(scene.middle, render)


def hole(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A hole is a dark pit with an irregular rim, darker towards the light's side, and a bright lip on the far side.

    In cloth it is a tear with broken yarn at its rim, from 8 px on.
    """
    pitch = woven(scene) if scene.size_px >= 8 and scene.slimness is None else None
    if pitch is not None:
        return frayed_hole(rng, scene, pitch)
    rim, light_from = outline(rng, roughness=0.07, first=2), rng.uniform(0, 2 * math.pi)
    stretch, tilt = rng.uniform(0.8, 1.0), rng.uniform(0, math.pi)
    across = 1.0  # of a pixel: a slim hole is squeezed in one direction, and its edge must not be
    if scene.slimness is not None:
        stretch = across = scene.slimness

    def render(grid: Grid) -> Fields:
        lip = min(0.08, 1.5 * grid.pixel)
        radius, angle = polar(grid, tilt, stretch)
        depth = (0.5 - lip) * rim(angle) - radius  # above 0 inside
        cover = edge(-depth, grid.pixel / across)
        towards = np.cos(angle - light_from)
        tone = -1.25 + 0.3 * towards * radius / 0.5
        ring = np.exp(-((depth / lip) ** 2)) * (depth > -1.3 * lip) * (1 - cover)
        return Fields(0.92 * cover, tone, 0.7 * ring * (0.55 + 0.45 * towards))

    return Drawn(scene.middle, render)


def stain(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A stain is a soft irregular blot through which the texture shows, a little darker where it dried at its rim."""
    blot = outline(rng, roughness=0.16, first=2)
    stretch, tilt, rim = rng.uniform(0.6, 1.0), rng.uniform(0, math.pi), rng.uniform(0.0, 0.4)
    stretch = scene.slimness or stretch
    cloudy = clouds(rng)

    def render(grid: Grid) -> Fields:
        radius, angle = polar(grid, tilt, stretch)
        inside = np.clip(1 - radius / (0.5 * blot(angle)), 0, 1)  # 1 in the middle, 0 outside
        soft = inside / 0.35
        body = np.where(soft < 1, soft**2 * (3 - 2 * soft), 1.0)
        dried = rim * np.exp(-(((inside - 0.18) / 0.1) ** 2)) * (inside > 0)
        light = -0.36 * body * np.clip(0.8 + 0.35 * cloudy(grid), 0.35, None) * (1 + dried)
        return Fields(np.zeros_like(light), np.zeros_like(light), light)

    return Drawn(scene.middle, render)


def crack(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A crack is a jagged dark line, widest in the middle, with thinner branches."""
    trunk = jagged(rng, np.array([0.0, -0.5]), np.array([0.0, 0.5]), 0.17)
    lines, widths = [trunk], [1 - 0.75 * np.abs(np.linspace(-1, 1, len(trunk))) ** 1.5]
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(trunk) // 5, 4 * len(trunk) // 5))
        ahead = trunk[min(start + 3, len(trunk) - 1)] - trunk[start]
        course = math.atan2(ahead[0], ahead[1]) + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        end = trunk[start] + rng.uniform(0.12, 0.3) * np.array([math.sin(course), math.cos(course)])
        lines.append(jagged(rng, trunk[start], end, 0.2)[::2])
        widths.append(np.linspace(0.6, 0.2, len(lines[-1])) * widths[0][start])
    thickness = rng.uniform(0.010, 0.018) if scene.slimness is None else scene.slimness / 2
    ends = np.cumsum([len(line) for line in lines])[:-1]
    lines = np.split(turned(np.concatenate(lines), rng), ends)

    def render(grid: Grid) -> Fields:
        cover = np.zeros_like(grid.x)
        for line, width in zip(lines, widths, strict=True):
            distance, _, _ = nearest(grid, line, np.clip(width * thickness, 0.3 * grid.pixel, None))
            cover = np.maximum(cover, edge(distance, grid.pixel))
        wide = np.clip(cover * 1.2, 0, 1)
        return Fields(0.92 * wide, np.full_like(cover, -1.15), np.zeros_like(cover))

    return Drawn(scene.middle, render)


def dent(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A dent is a shallow dip: bright towards the light, dark away from it, and the texture in it is squeezed."""
    light_from, tilt, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0, math.pi), rng.uniform(0.75, 1.0)
    stretch = scene.slimness or stretch
    rim = outline(rng, roughness=0.05, first=2)

    def render(grid: Grid) -> Fields:
        radius, angle = polar(grid, tilt, stretch)
        r = np.clip(radius / (0.5 * rim(angle)), 0, 1)  # 0 in the middle, 1 at the rim
        slope = r * (1 - r**2) / 0.385  # of a dip of depth (1 - r^2)^2, at most 1
        away = np.cos(angle - light_from)
        light = 0.85 * slope * away - 0.12 * (1 - r**2) ** 2
        inward = 0.1 * slope / grid.pixel  # px
        source = Source((r < 1).astype(float), inward * np.sin(angle), inward * np.cos(angle))
        return Fields(np.zeros_like(light), np.zeros_like(light), light, source)

    return Drawn(scene.middle, render)


def shade(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A shade is brighter or darker than the ground around it and has no edge: uneven coating, a damp place."""
    return _faded(rng, scene, rng.uniform(0.7, 1.0))


def streak(rng: np.random.Generator, scene: Scene) -> Drawn:
    """A streak is a long shade: a wiper's trace, a roller's mark, uneven dye."""
    return _faded(rng, scene, rng.uniform(0.15, 0.3))


def _faded(rng: np.random.Generator, scene: Scene, stretch: float) -> Drawn:
    """Draw a change of brightness that is strongest in the middle and fades to nothing at the rim."""
    tilt, sign = rng.uniform(0, math.pi), rng.choice([-1.0, 1.0])
    stretch = scene.slimness or stretch

    def render(grid: Grid) -> Fields:
        radius, _ = polar(grid, tilt, stretch)
        light = sign * 0.25 * (1 + np.cos(2 * math.pi * np.clip(radius, 0, 0.5)))
        return Fields(np.zeros_like(light), np.zeros_like(light), light)

    return Drawn(scene.middle, render)
