"""Geometry alone rules out layers that are too coarse, too short-sighted or too small to see a defect.

The rules are about the defect as the network sees it, in pixels of its input. Their numbers come from
``docs/vanishing.md``, where painted defects were followed through every layer:

- a defect of less than half a **stride** covers at most a quarter of one cell, and AUPRO@0.05 falls to 0.15 or below;
- of two fused layers the finer has to pass that rule; the coarser one drowns the finer below a quarter of its stride;
- a **grid** so fine that the defect spans 16 cells, or four on a map of over 20,000, only costs more;
- a receptive **field** of less than a quarter of the defect sees its inside, not that it is a defect;
- a **grid** of fewer than four cells a side says that something is wrong, not where.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

from pickglass.data import Preprocess
from pickglass.features.anatomy.facts import LayerFacts, layer_facts
from pickglass.features.extractor import FeatureExtractor, shown_layers

__all__ = [
    "TOGETHER",
    "TOO_SMALL",
    "Candidate",
    "Options",
    "candidates",
    "input_sizes",
    "shared_names",
    "size_text",
    "usual_input",
]

Size = tuple[int, int]

TOGETHER = "patchcore+padim"
"""Methods that judge together: both learn in one pass, and their averaged map outlines better than each alone."""

_SIDES = (96, 128, 192, 256, 384, 512, 768, 1024)  # px: of a square with as many pixels as the input
_USUAL = "area:512"  # the size of PatchCore, by which `fit` reads by default
_LEAST_PIXELS = 0.25  # times those of the usual input,
_MOST_PIXELS = 2.0  # and at most so many ...
TOO_SMALL = 8.0  # ... unless the defect is smaller than that there, px
_ALIKE = 1.25  # times the pixels: closer sizes show the same
_ENLARGED = 2.0  # more pixels than that a pixel show nothing new
_IDEAL = 24.0  # px of the input: the middle layers see that well, and larger inputs cost more
_STEP = 32
_SMALLEST_GRID = 4
_CELLS_ACROSS = 16
_FINE = 4  # cells across that are enough where the map is so large that it costs much:
_MANY_CELLS = 20_000


@dataclass(frozen=True)
class Candidate:
    """One way to look at an image: backbone, layers, size, method and tiles.

    Attributes:
        backbone, layers: of the detector; the layers finest first.
        size: (H, W) of the network's input, or of the canvas where it is tiled.
        defect: extent of the defect on it in pixels.
        stride: stride of the finest layer, in pixels of the input.
        share: multiply-adds up to the deepest of its layers as a share of those to the backbone's deepest.
        method: name of the method, or of several that judge together, ``patchcore+padim``.
        tile: (H, W) of a tile, laid side by side; None: not tiled.
    """

    backbone: str
    layers: tuple[str, ...]
    size: Size
    defect: float
    stride: int
    share: float
    method: str = "patchcore"
    tile: Size | None = None

    @property
    def methods(self) -> list[str]:
        """The names of its methods, one or several."""
        return self.method.split("+")

    @property
    def name(self) -> str:
        """The candidate in words, for tables and messages."""
        tiled = "" if self.tile is None else f", tiles of {size_text(self.tile)}"
        return f"{self.method}, {self.backbone} {'+'.join(self.layers)} at {size_text(self.size)}{tiled}"


@dataclass(frozen=True)
class Options:
    """The candidates of a backbone that geometry leaves, and those that it rules out as (layers, size, why)."""

    kept: tuple[Candidate, ...]
    ruled_out: tuple[tuple[str, Size, str], ...]


def size_text(size: Size) -> str:
    """Write a size as ``--size`` takes it: ``256`` or ``128x1024``."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def usual_input(sizes: Iterable[Size]) -> Size:
    """Return the input (H, W) at which ``fit`` reads images of these sizes (H, W) by default."""
    return Preprocess.for_images(_USUAL, "bicubic", sizes).size


def input_sizes(
    image: Size, defect_px: float, usual: Size, most: int = 2
) -> tuple[list[tuple[Size, float]], list[tuple[Size, str]]]:
    """List the usual size of the input, and those that show the defect at about 24 pixels, for images of (H, W).

    The aspect of the images is kept to multiples of 32 pixels. More than twice the pixels of the usual size are for
    defects under 8 pixels there. Returns (size, enlargement) of each, smallest first, and those ruled out, with the
    sentence why.
    """
    enlarged = _enlargement(usual, image)
    ways: list[tuple[Size, float]] = []
    out: list[tuple[Size, str]] = []
    for side in _SIDES:
        size, scale = _fitting(image, side)
        pixels = math.prod(size) / math.prod(usual)
        if 1 / _ALIKE < pixels < _ALIKE:
            continue
        if pixels < _LEAST_PIXELS * 0.99:
            out.append((size, f"under a quarter of the pixels of {size_text(usual)}, which fit reads by default: too "
                              f"little is left of the image"))  # fmt: skip
            continue
        if scale > _ENLARGED * 1.01:
            out.append((size, f"enlarges an image of {size_text(image)} px {scale:.1f} times: beyond twice it shows "
                              f"nothing new"))  # fmt: skip
        elif pixels > _MOST_PIXELS * 1.01 and defect_px * enlarged >= TOO_SMALL:
            out.append((size, f"{pixels:.1f} times the pixels of {size_text(usual)}, which fit reads by default, and "
                              f"the defect has {defect_px * enlarged:.1f} px there already"))  # fmt: skip
        else:
            ways.append((size, scale))
    ranked = sorted(ways, key=lambda way: abs(math.log(way[1] * defect_px / _IDEAL)))
    for size, scale in ranked[most - 1 :]:
        seen = defect_px * scale
        finer = "too small to be sure of" if seen < _IDEAL else "larger than needed, at a higher cost"
        out.append((size, f"a defect of {defect_px:g} px is {seen:.1f} px there, {finer}: other sizes show it better"))
    return sorted([(usual, enlarged), *ranked[: most - 1]]), sorted(out)


def _fitting(image: Size, side: int) -> tuple[Size, float]:
    """Return a size of about side x side pixels with the aspect of the image, and by how much that enlarges it."""
    height = side * math.sqrt(image[0] / image[1])
    width = side * math.sqrt(image[1] / image[0])
    size = (max(_STEP, round(height / _STEP) * _STEP), max(_STEP, round(width / _STEP) * _STEP))
    return size, _enlargement(size, image)


def _enlargement(size: Size, image: Size) -> float:
    return min(size[0] / image[0], size[1] / image[1])


def candidates(backbone: str, sizes: Sequence[tuple[Size, float]], defect_px: float) -> Options:
    """Sort by geometry every named layer and every fusion of two that lie one or two apart, at every size.

    Args:
        backbone: name; its weights are not read.
        sizes: (size, enlargement) of :func:`input_sizes`.
        defect_px: longest extent of the defect in pixels of the original image.
    """
    base = _facts(backbone)
    kept: list[Candidate] = []
    out: list[tuple[str, Size, str]] = []
    for given, shown in sizes:
        size = _whole_patches(backbone, given)
        scale = shown * min(size[0] / given[0], size[1] / given[1])
        facts = [fact._replace(grid=_grid(size, fact.stride)) for fact in base]
        seen = defect_px * scale
        whole = max(fact.macs for fact in facts)
        for chosen in _sets(facts):
            layers = tuple(fact.layer for fact in chosen)
            why = _why_not(chosen, seen, scale)
            if why is not None:
                out.append((f"{backbone} {'+'.join(layers)}", size, why))
                continue
            share = max(fact.macs for fact in chosen) / whole
            kept.append(Candidate(backbone, layers, size, seen, min(chosen[0].stride), share))
    return Options(tuple(kept), tuple(out))


def shared_names(backbone: str, other: str) -> bool:
    """Tell whether two backbones name their layers alike, so that what one saw best can be tried with the other."""
    return shown_layers(backbone) == shown_layers(other)


@lru_cache(maxsize=32)
def _network(backbone: str) -> FeatureExtractor:
    return FeatureExtractor(backbone, shown_layers(backbone), weights=None)


@lru_cache(maxsize=32)
def _facts(backbone: str) -> tuple[LayerFacts, ...]:
    """Return the facts about the named layers; strides and fields hold at any size."""
    network = _network(backbone)
    return tuple(layer_facts(network, network.fitting((256, 256))))


def _whole_patches(backbone: str, size: Size) -> Size:
    """Return the nearest size that the network reads, which a transformer cuts into patches."""
    return _network(backbone).fitting(size)


def _grid(size: Size, stride: Size) -> Size:
    return -(-size[0] // stride[0]), -(-size[1] // stride[1])


def _sets(facts: Sequence[LayerFacts]) -> list[tuple[LayerFacts, ...]]:
    single: list[tuple[LayerFacts, ...]] = [(fact,) for fact in facts]
    pairs: list[tuple[LayerFacts, ...]] = [
        (facts[i], facts[j])
        for i, j in combinations(range(len(facts)), 2)
        if j - i <= 2 and facts[i].grid != facts[j].grid
    ]
    if len(facts) > 2 and len({fact.grid for fact in facts}) == 1:  # blocks of a transformer, read as fit reads them
        pairs = [tuple(facts[:-1])]
    return [*single, *pairs]


def _why_not(chosen: Sequence[LayerFacts], seen: float, scale: float) -> str | None:
    """Say why layers cannot see a defect of ``seen`` pixels of the input; None where nothing rules them out."""
    fine, coarse = chosen[0], chosen[-1]
    stride = max(fine.stride)
    here: Literal["", " there"] = "" if scale == 1 else " there"
    if min(fine.grid) < _SMALLEST_GRID:
        return f"grid: {fine.layer} has {fine.grid[0]}x{fine.grid[1]} cells, too few to say where a defect is"
    if seen < stride / 2:
        part = 100 * (seen / stride) ** 2
        return (
            f"stride: a cell of {fine.layer} is {stride} px wide, the defect {seen:.1f} px{here}: it fills "
            f"{part:.0f} % of one cell at most"
        )
    across = seen / stride
    if across >= _CELLS_ACROSS or (across >= _FINE and math.prod(fine.grid) > _MANY_CELLS):
        return (
            f"grid: the defect spans {across:.0f} cells of {fine.layer}{here}, on a map of "
            f"{fine.grid[0]}x{fine.grid[1]}: finer than it needs, and coarser layers cost less"
        )
    if len(chosen) > 1 and seen < max(coarse.stride) / 4:
        return (
            f"stride: {coarse.layer} has cells of {max(coarse.stride)} px, over four times the defect's {seen:.1f} px"
            f"{here}; fused, it drowns what {fine.layer} sees"
        )
    if isinstance(coarse.theoretical, int) and coarse.theoretical < seen / 4:
        return (
            f"field: a cell of {coarse.layer} sees {coarse.theoretical} px, under a quarter of the defect's "
            f"{seen:.0f} px{here}: it sees the inside of the defect and cannot tell it from other ground"
        )
    return None
