"""A generator weaves cloth: plain, twill and satin, as a line camera over a loom sees them.

The threads are laid out one by one: every end (warp, vertical) and every pick (weft, horizontal) has its own place,
its own thickness along its length and its own brightness; the weave says which of the two lies on top at a crossing,
and the height of both decides what is seen between crossings. Tension bends the grid of threads slowly. Fibres stand
out from the yarn; then come light, lens and sensor. The settings describe the roll and the camera; the seed chooses
the piece of the roll.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pickglass.data.painting.shapes import ndimage
from pickglass.errors import InputError, UnknownName

__all__ = ["WEAVES", "Cloth", "Weave", "weave"]

Weave = Literal["plain", "twill", "satin"]
Floats: TypeAlias = NDArray[np.float32]


class _Repeat(NamedTuple):
    """Entry (step * i - j) modulo its length says what is on top where end i and pick j cross: 1 the end, -1 pick."""

    step: int
    order: tuple[int, ...]


WEAVES: dict[str, _Repeat] = {
    "plain": _Repeat(1, (1, -1)),
    "twill": _Repeat(1, (1, 1, -1)),  # 2/1, the warp shows more
    "satin": _Repeat(2, (1, 1, 1, 1, -1)),  # five ends, move of two
}


@dataclass(frozen=True)
class Cloth:
    """A cloth and the camera over it are set by these values.

    Attributes:
        weave: ``"plain"``, ``"twill"`` (2/1) or ``"satin"`` (of five).
        warp_px: distance between ends, the vertical threads, in pixels; at least 2, fractions allowed.
        weft_px: distance between picks, the horizontal threads, in pixels; at least 2, fractions allowed.
        warp: level of the warp's fully lit crown, 0..255, or (red, green, blue).
        weft: the same of the weft. The image is grey if both are single levels.
        irregularity: standard deviation of a thread's thickness along its length, relative; strongest over long
            stretches (1/f). A tenth is ordinary ring-spun yarn.
        hairiness: fibres that stand out, per crossing of threads.
        tension: standard deviation of how far the threads stray from a straight grid, in pixels, over stretches of
            80 to 800 pixels.
        lighting: how much darker the darkest place is than the brightest, relative, the same in every picture.
        blur: standard deviation of the lens' blur, in pixels.
        noise: standard deviation of the sensor's noise, in grey levels.

    >>> Cloth("satin", warp_px=3.2).weft_px
    5.0
    """

    weave: Weave = "twill"
    warp_px: float = 4.0
    weft_px: float = 5.0
    warp: int | tuple[int, int, int] = 235
    weft: int | tuple[int, int, int] = 160
    irregularity: float = 0.1
    hairiness: float = 0.1
    tension: float = 1.0
    lighting: float = 0.1
    blur: float = 0.8
    noise: float = 2.0


def weave(cloth: Cloth, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Weave a piece of the cloth.

    Args:
        cloth: what to weave.
        size: height and width in pixels.
        seed: chooses the piece: another seed looks like another place on the same roll.

    Returns:
        ``(H, W)`` uint8, or ``(H, W, 3)`` if one of the two yarns has a colour.

    Raises:
        UnknownName: no such weave.
        InputError: a size below 1, a pitch below 2, a level outside 0..255, or another setting below 0.
        MissingExtra: SciPy is not installed.

    >>> weave(Cloth("plain", warp_px=4.3), (256, 4096), seed=7).shape
    (256, 4096)
    """
    _check(cloth, size)
    gaussian_filter = ndimage().gaussian_filter
    rng = np.random.default_rng(seed)
    crowns = _threads(cloth, size, rng)  # (2, H, W): how much light comes from warp and from weft
    warp, weft = np.atleast_1d(cloth.warp), np.atleast_1d(cloth.weft)
    channels = max(len(warp), len(weft))
    fibres = 0.35 * _fibres(cloth, size, rng)  # (H, W)
    light, out = _lighting(cloth, size), np.empty((*size, channels), np.uint8)
    for channel, (over, under) in enumerate(np.broadcast(*np.broadcast_arrays(warp, weft))):
        level = crowns[0] * np.float32(over) + crowns[1] * np.float32(under)
        level += fibres * (max(over, under) - level)
        picture = gaussian_filter(level * light, cloth.blur) if cloth.blur else level * light
        picture += np.float32(cloth.noise) * rng.standard_normal(size, np.float32)
        out[..., channel] = picture.round().clip(0, 255)
    return out[..., 0] if channels == 1 else out


def _check(cloth: Cloth, size: tuple[int, int]) -> None:
    if cloth.weave not in WEAVES:
        raise UnknownName("weave", cloth.weave, WEAVES)
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size={size!r}: expected (height, width) of at least one pixel")
    for name in ("warp_px", "weft_px"):
        if not 2 <= getattr(cloth, name) < math.inf:
            raise InputError(f"{name}={getattr(cloth, name)!r}: expected at least 2 pixels from thread to thread")
    for name in ("warp", "weft"):
        level = np.atleast_1d(getattr(cloth, name))
        if level.shape not in ((1,), (3,)) or level.min() < 0 or level.max() > 255:
            raise InputError(f"{name}={getattr(cloth, name)!r}: expected a level in 0..255 or three of them")
    for name in ("irregularity", "hairiness", "tension", "lighting", "blur", "noise"):
        if not 0 <= getattr(cloth, name) < math.inf:
            raise InputError(f"{name}={getattr(cloth, name)!r}: expected a number of at least 0")


def _threads(cloth: Cloth, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Return the light that comes from warp and from weft, 0..1, (2, H, W)."""
    height, width = size
    stray = [_Waves(cloth.tension, rng) for _ in range(2)]
    offset = rng.uniform(0, 60, 2)
    # Threads finer than five samples would beat with the pixels.
    fine = [int(np.clip(math.ceil(5 / pitch), 1, 3)) for pitch in (cloth.weft_px, cloth.warp_px)]
    reach = 8 + 5 * cloth.tension
    n_ends = int((width + 2 * reach) / cloth.warp_px) + 64
    n_picks = int((height + 2 * reach) / cloth.weft_px) + 64
    ends, picks = _yarn(n_ends, height, cloth, rng), _yarn(n_picks, width, cloth, rng)
    float_gain = 1 + 0.5 * cloth.irregularity * rng.standard_normal((n_ends, n_picks), np.float32)
    aside = [np.float32(0.5 * cloth.irregularity) * rng.standard_normal(n, np.float32) for n in (n_ends, n_picks)]
    x = ((np.arange(width * fine[1], dtype=np.float32) + 0.5) / np.float32(fine[1]))[None]
    out = np.empty((2, height, width), np.float32)
    for top in range(0, height, 32):  # a few rows at a time stay in the processor's cache
        rows = min(32, height - top)
        y = (top + (np.arange(rows * fine[0], dtype=np.float32) + 0.5) / np.float32(fine[0]))[:, None]
        u = (x + stray[0](y, x) + reach) / np.float32(cloth.warp_px) + np.float32(offset[0])
        v = (y + stray[1](y, x) + reach) / np.float32(cloth.weft_px) + np.float32(offset[1])
        end, pick = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)  # (rows, columns)
        a, b = u - end - np.float32(0.5), v - pick - np.float32(0.5)  # -0.5..0.5 across the thread
        end_at, pick_at = end % n_ends, pick % n_picks
        thick_end = ends.ravel()[end_at * height + y.astype(np.int32)]
        thick_pick = picks.ravel()[pick_at * width + x.astype(np.int32)]
        lit = _lit(cloth.weave, end, pick, (a, b), (a + aside[0][end_at], b + aside[1][pick_at]), thick_end, thick_pick)
        lit *= float_gain.ravel()[end_at * n_picks + pick_at]
        out[:, top : top + rows] = lit.reshape(2, rows, fine[0], width, fine[1]).mean(axis=(2, 4))
    return out


def _lit(
    name: str,
    end: NDArray[np.int32],
    pick: NDArray[np.int32],
    phase: tuple[Floats, Floats],
    across: tuple[Floats, Floats],
    thick_end: Floats,
    thick_pick: Floats,
) -> Floats:
    """Return the light from the thread on top, in the plane of its kind, and 0 in the other's, (2, h, w)."""
    step, order = WEAVES[name]
    table, n = np.array(order, np.float32), len(order)
    entry = (step * end - pick) % n
    here = table[entry]
    # Halfway between two crossings a thread is at the mean of their heights, and level at each crossing.
    bend = [2 * p * p for p in phase]
    end_up = here + (table[np.where(phase[1] > 0, entry - 1, entry + 1) % n] - here) * bend[1]
    pick_up = -here - (table[np.where(phase[0] > 0, entry + step, entry - step) % n] - here) * bend[0]
    ridge_end = np.sqrt(np.maximum(1 - (across[0] / (0.5 * thick_end)) ** 2, 0))
    ridge_pick = np.sqrt(np.maximum(1 - (across[1] / (0.5 * thick_pick)) ** 2, 0))
    over = 0.7 * end_up + ridge_end + 0.4 * (thick_end - thick_pick) > 0.7 * pick_up + ridge_pick
    ridge, up = np.where(over, ridge_end, ridge_pick), np.where(over, end_up, pick_up)
    light = (0.28 + 0.5 * ridge) * (0.74 + 0.26 * up) * (0.5 + 0.5 * np.where(over, thick_end, thick_pick))
    lit: Floats = np.stack([light * over, light * ~over])
    return lit


def _yarn(n: int, length: int, cloth: Cloth, rng: np.random.Generator) -> Floats:
    """Draw the thickness of n threads along their length, about 1, varying as 1/f, (n, length)."""
    frequency = np.fft.rfftfreq(2 * length)
    shape = np.zeros(len(frequency))
    # Real yarn has hardly any variation shorter than a fibre's visible length, nor any longer than its own spool.
    shape[1:] = np.maximum(frequency[1:], 1 / 2000) ** -0.5 / (1 + (frequency[1:] * 12) ** 2)
    spectrum = rng.standard_normal((n, len(shape), 2), np.float32).view(np.complex64)[..., 0] * shape.astype(np.float32)
    rough = np.fft.irfft(spectrum, axis=1)[:, :length].astype(np.float32)
    expected = math.sqrt(2 * float((shape**2).sum())) / (2 * length) * math.sqrt(2)
    difference = 0.5 * rng.standard_normal((n, 1), np.float32)  # threads also differ from each other
    thickness: Floats = 1 + np.float32(cloth.irregularity) * (rough / np.float32(expected) + difference)
    return thickness.clip(0.35, 1.9)


class _Waves:
    """A smooth displacement moves the points of the plane, by a stated standard deviation in pixels."""

    def __init__(self, strength: float, rng: np.random.Generator, n: int = 4) -> None:
        self.height = np.float32(strength * 2 / math.sqrt(n))
        self.numbers = (2 * np.pi / np.exp(rng.uniform(math.log(80), math.log(800), (2, n)))).astype(np.float32)
        self.phases = rng.uniform(0, 2 * np.pi, (2, n)).astype(np.float32)

    def __call__(self, y: Floats, x: Floats) -> Floats:
        down = np.cos(y * self.numbers[0] + self.phases[0])  # (h, n)
        across = np.cos(x.T * self.numbers[1] + self.phases[1])  # (w, n)
        total: Floats = self.height * (down @ across.T)
        return total


def _fibres(cloth: Cloth, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Draw how far single fibres hide the threads, 0..1, (H, W)."""
    height, width = size
    pitch = min(cloth.warp_px, cloth.weft_px)
    n = rng.poisson(cloth.hairiness * height * width / (cloth.warp_px * cloth.weft_px))
    steps = max(6, int(3 * pitch))  # half a pixel each
    course = rng.uniform(0, 2 * np.pi, (n, 1)) + np.cumsum(rng.normal(0, 0.15, (n, steps)), axis=1)
    y = rng.uniform(0, height, (n, 1)) + np.cumsum(0.5 * np.sin(course), axis=1)
    x = rng.uniform(0, width, (n, 1)) + np.cumsum(0.5 * np.cos(course), axis=1)
    weight = np.broadcast_to(0.5 * rng.uniform(0.2, 1, (n, 1)), y.shape)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    cells = y[inside].astype(np.int64) * width + x[inside].astype(np.int64)
    hidden: Floats = np.bincount(cells, weight[inside], height * width).reshape(size).clip(0, 1).astype(np.float32)
    return hidden


def _lighting(cloth: Cloth, size: tuple[int, int]) -> Floats:
    """Return the lighting: a slope to the right and a fall towards the rims, the highest value 1, (H, W)."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    light = 0.5 * x[None] - 0.35 * x[None] ** 2 - 0.15 * y[:, None] ** 2
    span = float(np.ptp(light)) or 1.0
    out: Floats = 1 - np.float32(cloth.lighting) * (light.max() - light) / np.float32(span)
    return out
