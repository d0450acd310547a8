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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

from pickglass.features.anatomy.facts import LayerFacts, layer_facts
from pickglass.features.extractor import FeatureExtractor, shown_layers

__all__ = ["USUAL_SIDE", "Candidate", "Options", "candidates", "input_sizes", "size_text"]

Size = tuple[int, int]

_SIDES = (96, 128, 192, 256, 384, 512, 768, 1024)  # px: of a square with as many pixels as the input
USUAL_SIDE = 512  # px: of a square with as many pixels as `fit` reads by default, PatchCore's "area:512"
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
        method: name of the method.
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


def input_sizes(
    image: Size, defect_px: float, most: int = 3
) -> tuple[list[tuple[Size, float]], list[tuple[Size, str]]]:
    """List the sizes of the input that show the defect at about 24 pixels, and the usual one, for images of (H, W).

    The aspect of the images is kept to multiples of 32 pixels. Returns (size, enlargement) of each, smallest first,
    and those ruled out, with the sentence why.
    """
    ways: list[tuple[Size, float]] = []
    out: list[tuple[Size, str]] = []
    for side in _SIDES:
        size, scale = _fitting(image, side)
        if scale > _ENLARGED * 1.01:
            out.append((size, f"enlarges an image of {size_text(image)} px {scale:.1f} times: beyond twice it shows "
                              f"nothing new"))  # fmt: skip
        else:
            ways.append((size, scale))
    if not ways:
        ways, out = [(out[0][0], _fitting(image, _SIDES[0])[1])], out[1:]
    usual = min(ways, key=lambda way: abs(math.log(math.sqrt(math.prod(way[0])) / USUAL_SIDE)))
    ranked = sorted(ways, key=lambda way: (way != usual, abs(math.log(way[1] * defect_px / _IDEAL))))
    for size, scale in ranked[most:]:
        seen = defect_px * scale
        finer = "too small to be sure of" if seen < _IDEAL else "larger than needed, at a higher cost"
        out.append((size, f"a defect of {defect_px:g} px is {seen:.1f} px there, {finer}: other sizes show it better"))
    return sorted(ranked[:most]), sorted(out)


def _fitting(image: Size, side: int) -> tuple[Size, float]:
    """Return a size of about side x side pixels with the aspect of the image, and by how much that enlarges it."""
    aspect = image[0] / image[1]
    if 0.8 <= aspect <= 1.25:  # nearly square images are squeezed, as everybody does
        size = (side, side)
    else:
        height = side * math.sqrt(aspect)
        size = (max(_STEP, round(height / _STEP) * _STEP), max(_STEP, round(height / aspect / _STEP) * _STEP))
    return size, min(size[0] / image[0], size[1] / image[1])


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
    for size, scale in sizes:
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


@lru_cache(maxsize=32)
def _facts(backbone: str) -> tuple[LayerFacts, ...]:
    """Return the facts about the named layers; strides and fields hold at any size."""
    extractor = FeatureExtractor(backbone, shown_layers(backbone), weights=None)
    return tuple(layer_facts(extractor, extractor.fitting((256, 256))))


def _grid(size: Size, stride: Size) -> Size:
    return -(-size[0] // stride[0]), -(-size[1] // stride[1])


def _sets(facts: Sequence[LayerFacts]) -> list[tuple[LayerFacts, ...]]:
    single: list[tuple[LayerFacts, ...]] = [(fact,) for fact in facts]
    pairs = [
        (facts[i], facts[j])
        for i, j in combinations(range(len(facts)), 2)
        if j - i <= 2 and facts[i].grid != facts[j].grid
    ]
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
