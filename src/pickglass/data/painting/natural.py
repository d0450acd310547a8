"""Pictures with the statistics of natural images are made here, for a student that must not learn to imitate them.

Three ingredients, cut and mixed at random: leaves that cover each other, their sizes following a power law (the dead
leaves model: Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001), textures whose amplitude falls as
1/f (Field, "Relations between the statistics of natural images and the response properties of cortical cells", 1987),
and cuttings of ten photographs that come with pickglass (``photographs/``, free of copyright).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pickglass.data.images.decoder import Array, decode_all
from pickglass.data.images.geometry import Preprocess
from pickglass.data.tables.rows import Row, Table
from pickglass.data.tables.sources import as_table
from pickglass.errors import InputError, UnknownName

__all__ = ["PHOTOGRAPHS", "natural_images", "natural_photos", "photograph"]

Picture: TypeAlias = NDArray[np.uint8]  # (H, W, 3)
Floats: TypeAlias = NDArray[np.float32]

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon", "rocket")
"""What :func:`photograph` knows; see ``photographs/README.md`` for what they show and who took them."""

_GREY = 0.3  # share without colour, as the paper's penalty images
_LEAVES = (20, 150)  # of a picture
_RADII = (0.02, 0.4)  # of a leaf, as a share of the picture's shorter side; density r^-3
_SLOPES = (0.8, 1.6)  # exponents of 1/f


def natural_images(n: int, size: tuple[int, int], seed: int = 0) -> Picture:
    """Make pictures, (n, H, W, 3) uint8, the same for the same arguments.

    Args:
        n: how many; picture i is the same whatever n is.
        size: (H, W) in pixels, from 16.
        seed: seeds everything that is drawn.

    Raises:
        InputError: n below 1, or a side below 16 pixels.

    Example:
        >>> natural_images(2, (64, 48)).shape
        (2, 64, 48, 3)
    """
    if n < 1 or min(size) < 16:
        raise InputError(f"natural_images({n}, {size}): expected at least one picture, of at least 16 pixels a side")
    return np.stack([_picture(np.random.default_rng([seed, i]), size) for i in range(n)])


def natural_photos(folder: str | Path, size: tuple[int, int], limit: int, seed: int = 0) -> Picture:
    """Read photographs as the paper prepares them: resized to twice the size, cut to the middle, some without colour.

    Args:
        folder: with images of anything but the parts to be inspected.
        size: (H, W) in pixels.
        limit: at most so many, drawn at random.
        seed: seeds what is drawn.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        DataError: broken photographs, or none.
    """
    rng = np.random.default_rng(seed)
    table = as_table(folder, role="train")
    chosen = sorted(rng.permutation(len(table))[:limit].tolist())
    double = Preprocess.for_images((2 * size[0], 2 * size[1]), "bilinear", [])
    top, left = size[0] // 2, size[1] // 2

    def middle(image: Array, _: Row) -> Picture:
        whole = double(image)[:, top : top + size[0], left : left + size[1]]  # (3, H, W) in [0, 1]
        pixels: Picture = (255 * whole).round().astype(np.uint8).transpose(1, 2, 0)
        return pixels

    chosen_rows = Table([table[i] for i in chosen])
    return np.stack([_maybe_grey(rng, photo) for _, photo in decode_all(chosen_rows, middle, what="photographs")])


def photograph(name: str) -> NDArray[np.uint8]:
    """Read one of the ten :data:`PHOTOGRAPHS`, (H, W) grey or (H, W, 3) uint8, 300 to 512 pixels high.

    Raises:
        UnknownName: there is no photograph of that name.

    >>> photograph("brick").shape
    (512, 512)
    """
    if name not in PHOTOGRAPHS:
        raise UnknownName("photograph", name, PHOTOGRAPHS)
    return np.asarray(Image.open(Path(__file__).with_name("photographs") / f"{name}.png"))


def _picture(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    ground = _cutting(rng, size) if rng.random() < 0.6 else _texture(rng, size)
    if rng.random() < 0.6:
        ground = _leaves(rng, ground)
    return _maybe_grey(rng, ground.clip(0, 255).astype(np.uint8))


def _maybe_grey(rng: np.random.Generator, picture: Picture) -> Picture:
    if rng.random() >= _GREY:
        return picture
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # (H, W)
    return np.repeat(luma.round().astype(np.uint8)[..., None], 3, axis=2)


def _leaves(rng: np.random.Generator, ground: Floats) -> Floats:
    """Lay ellipses and rectangles over each other, each of one colour, shaded, or cut from something else."""
    h, w = ground.shape[:2]
    stuff = [_texture(rng, (h, w)), _cutting(rng, (h, w))]
    low, high = (share * min(h, w) for share in _RADII)
    result: Floats = ground.copy()
    for _ in range(int(rng.integers(*_LEAVES))):
        radius = (low**-2 - rng.random() * (low**-2 - high**-2)) ** -0.5  # density r^-3 between the two
        y, x = rng.random() * h, rng.random() * w
        reach = 1.5 * radius
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        bottom, right = min(h, int(y + reach) + 2), min(w, int(x + reach) + 2)
        rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
        turn, flat = rng.random() * np.pi, rng.uniform(0.4, 1)
        u = (np.cos(turn) * (columns - x) + np.sin(turn) * (rows - y)) / radius
        v = (np.cos(turn) * (rows - y) - np.sin(turn) * (columns - x)) / (flat * radius)
        distance = np.maximum(abs(u), abs(v)) if rng.random() < 0.3 else np.hypot(u, v)
        cover = ((1 - distance) * flat * radius + 0.5).clip(0, 1)[..., None]  # soft over one pixel
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        choice = rng.random()
        fill: Floats = colour + np.zeros_like(cover)
        if choice < 0.3:
            fill = colour + (rng.uniform(-60, 60) * u)[..., None]
        elif choice < 0.7:
            fill = 0.5 * colour + 0.5 * stuff[int(rng.integers(2))][top:bottom, left:right]
        part = result[top:bottom, left:right]
        result[top:bottom, left:right] = part + cover * (fill - part)
    return result


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Make a texture of random phases under 1/f, at times along a random direction, in two colours, (H, W, 3)."""
    h, w = size
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
    turn, stretch = rng.random() * np.pi, rng.choice([1.0, 1.0, 3.0])
    f = np.hypot(np.cos(turn) * fx + np.sin(turn) * fy, stretch * (np.cos(turn) * fy - np.sin(turn) * fx))
    f[0, 0] = np.inf
    spectrum = rng.normal(size=f.shape) + 1j * rng.normal(size=f.shape)
    field = np.fft.irfft2(spectrum * f ** -rng.uniform(*_SLOPES), s=size)  # (H, W)
    share = (0.5 + 0.25 * field / field.std()).clip(0, 1)[..., None]
    dark, light = rng.uniform(0, 140, 3), rng.uniform(100, 255, 3)
    mixed: Floats = (dark + share * (light - dark)).astype(np.float32)
    return mixed


def _cutting(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Cut a part of a photograph at a random scale, at times flipped, (H, W, 3)."""
    photo = _photo(PHOTOGRAPHS[int(rng.integers(len(PHOTOGRAPHS)))])
    h, w = photo.shape[:2]
    largest = min(h / size[0], w / size[1])
    scale = largest * rng.uniform(0.3, 1)  # of the photograph a pixel of the picture
    height, width = scale * size[0], scale * size[1]
    top, left = rng.random() * (h - height), rng.random() * (w - width)
    box = (left, top, left + width, top + height)
    resized = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
    cut: Floats = np.asarray(resized).astype(np.float32)
    return cut[:, ::-1] if rng.random() < 0.5 else cut


@cache
def _photo(name: str) -> Picture:
    photo = photograph(name)
    return np.repeat(photo[..., None], 3, axis=2) if photo.ndim == 2 else photo
