"""A defect is still there in a layer if it stands out from what surrounds it; the contrast says by how much.

How strange a cell is: its Mahalanobis distance from the cells of the surroundings, those outside a guard band around
the defect. Mean and covariance are theirs; the covariance is shrunk towards its diagonal, as if C more cells without
any correlation had been seen, C being the number of channels. For a cell of the surroundings itself they are taken
without it and its neighbourhood: with more channels than cells, a cell that is part of the covariance looks at home
and any other looks strange, whatever it shows. The defect is measured by each of these covariances in turn, and the
mean counts, so that as many cells went into its distance as into any other.

Cells at the rim, a band as wide as the guard band, see the padding beyond the image and look strange in every layer.
So the middle is compared with the middle, and a defect that lies on the rim alone with the rim; what a larger defect
shows on the rim does not count.

What ``sd`` means: the defect's value is the distance of its strangest cell. The same is read off at all other places
of the surroundings, with the same outline. The contrast is the value of the defect less the mean of these, over their
standard deviation. So it is in units of what places without a defect show, it rises with the defect and not with the
number of its cells, and a layer in which nothing is left of the defect gives about 0 whatever its texture.

Letters: C channels and h x w cells of a layer, H x W pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from pickglass.errors import InputError

__all__ = [
    "FAINT",
    "VISIBLE",
    "Contrast",
    "Seen",
    "Verdict",
    "contrast",
    "stand_out",
    "strangeness",
    "touched_cells",
    "verdict_of",
]

Verdict = Literal["visible", "faint", "lost", "unclear"]

# Of 352 random places of good cloth, photographs, hazelnuts and tiles, in four layers of efficientnet_lite0, 4 in 100
# reach the first and 1 in 150 the second; of painted defects of 4 to 40 px there, at full contrast, 42 and 31 in 100.
FAINT, VISIBLE = 2.0, 4.0  # sd
# Where a part lies on a background, places differ so much that few standard deviations are more than any place shows.
# This makes no more random places faint: 3 in 100 of 256 with it and without.
_RARE = 0.99  # share of other places that stand out less
_GUARD = 1 / 16  # of the grid's shorter side
_ZONED = 7  # cells: on a smaller grid the middle is too small to compare anything in
_BLOCKS = 16  # a side: on a finer grid, several cells share one covariance that leaves all of them out
_FEWEST = 10  # other places: a standard deviation from fewer says nothing
_SHIFTS = 32  # a side
_CEILING = 999.0  # sd, for surroundings that are all alike


class Seen(NamedTuple):
    """One image in one layer has features (C, h, w), and cells (h, w) bool that count; None: all."""

    features: Tensor
    keep: Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """The contrast is what is left of a defect in a layer.

    Attributes:
        sd: contrast in standard deviations; None where fewer than ten other places have different strangest cells.
        verdict: see :func:`verdict_of`.
        places: other places that were compared with; where they are too few, those that differ.
        beaten: share of them that stand out less than the defect, 0 to 1; None if there are too few.
        map: (h, w) how much each single cell stands out, in standard deviations of the single cells around;
            in the middle and on the rim of the grid apart.
    """

    sd: float | None
    verdict: Verdict
    places: int
    beaten: float | None
    map: Tensor


def touched_cells(
    mask: NDArray[np.bool_], grid: tuple[int, int], window: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> Tensor:
    """Find the cells (h, w) bool that share any area with a pixel of a mask (H, W).

    Args:
        mask: (H, W) bool of the image; a pixel may be larger than a cell.
        grid: h and w.
        window: top, left, bottom, right of the image on the network's input, as shares of it.

    >>> touched_cells(np.eye(4, dtype=bool)[:, ::-1], (2, 2)).int().tolist()
    [[0, 1], [1, 0]]
    """
    down = _overlap(mask.shape[0], grid[0], window[0], window[2])
    right = _overlap(mask.shape[1], grid[1], window[1], window[3])
    return torch.from_numpy(down @ mask.astype(np.float32) @ right.T) > 0  # (h, w)


def verdict_of(sd: float | None, beaten: float | None) -> Verdict:
    """Say in a word what a contrast means.

    Args:
        sd: contrast in standard deviations.
        beaten: share of the other places that stand out less.

    Returns:
        ``visible`` from 4 sd; ``faint`` from 2 sd, or where fewer than 1 in 100 other places stand out as much; else
        ``lost``; ``unclear`` where there is nothing to compare with.
    """
    if sd is None or beaten is None:
        return "unclear"
    return "visible" if sd >= VISIBLE else "faint" if sd >= FAINT or beaten > _RARE else "lost"


def contrast(image: Seen, defect: Tensor, good: Sequence[Seen] = ()) -> Contrast:
    """Measure how much a defect stands out in a layer.

    Args:
        image: the image with the defect.
        defect: (h, w) bool, the cells that the defect touches; see :func:`touched_cells`.
        good: images without a defect in the same layer, two or more. Then mean and covariance are those of every
            second one and the other places are in the rest of them; without, the surroundings serve for both.

    Raises:
        InputError: no cell is touched, or a single good image.

    >>> texture = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> cell = torch.zeros(16, 16, dtype=torch.bool)
    >>> cell[8, 8] = True
    >>> contrast(Seen(texture + 20 * cell), cell).verdict, contrast(Seen(texture), cell).verdict
    ('visible', 'lost')
    """
    if not bool(defect.any()):
        raise InputError("the defect touches no cell: give a mask with at least one pixel inside the image")
    if len(good) == 1:
        raise InputError("one good image: expected two or more, for half of them are compared with the other half")
    picture = torch.zeros(defect.shape, dtype=torch.float64)
    value, values, different = None, picture[:0, 0], 0
    for zone in _zones((defect.shape[0], defect.shape[1])):
        distances, others = _compared(_within(image, zone), defect, [_within(seen, zone) for seen in good])
        picture[zone] = _standardised(distances, torch.cat([map[counts] for map, counts in others]))[zone]
        if value is None and bool((defect & zone).any()):
            value = distances[defect & zone].max()
            elsewhere = [_elsewhere(map, counts, defect & zone) for map, counts in others]
            values = torch.cat([highest for highest, _ in elsewhere])
            # where the outline covers most of the grid, every shift finds the same cell
            different = sum(len(at.unique()) for _, at in elsewhere)
    if value is None or different < _FEWEST:
        return Contrast(None, "unclear", different, None, picture.float())
    sd, beaten = float(_standardised(value, values)), float((values < value).double().mean())
    return Contrast(sd, verdict_of(sd, beaten), len(values), beaten, picture.float())


def stand_out(image: Seen) -> Tensor:
    """Measure how much each cell of an image stands out from the others, as :attr:`Contrast.map` does: (h, w)."""
    _, h, w = image.features.shape
    picture = torch.zeros(h, w, dtype=torch.float64)
    for zone in _zones((h, w)):
        distances = strangeness(_within(image, zone))
        picture[zone] = _standardised(distances, distances[_counted(_within(image, zone))])[zone]
    return picture.float()


def strangeness(image: Seen, defect: Tensor | None = None) -> Tensor:
    """Measure the Mahalanobis distance (h, w) of every cell from the others; see the head of this file.

    Args:
        image: features and the cells that count.
        defect: (h, w) bool; it and a band around it are no part of the others. None: every cell may be.
    """
    channels, h, w = image.features.shape
    base = _surroundings(image, defect)
    n = int(base.sum())
    if n < 2:
        return torch.zeros(h, w, dtype=torch.float64)
    cells = _cells(image)
    cells -= cells[base.flatten()].mean(dim=0)
    sums = _Sums.of(cells[base.flatten()])
    table = cells.view(h, w, channels)
    out = sums.distances(cells).view(h, w)
    aside = _counted(image) & ~base
    seen_aside: list[Tensor] = []
    step = math.ceil(max(h, w) / _BLOCKS)
    reach = _reach((h, w), 1 if defect is None else int(defect.sum()), step)
    for top in range(0, h, step):
        for left in range(0, w, step):
            block = (slice(top, top + step), slice(left, left + step))
            if not bool(base[block].any()):
                continue
            near = (
                slice(max(0, top - reach), top + step + reach),
                slice(max(0, left - reach), left + step + reach),
            )
            rest = base.clone()
            rest[near] = False
            # whichever costs less: to take the near cells out, or to begin with what is left
            others = _Sums.of(table[rest]) if channels > n else sums.without(table[near][base[near]])
            out[block].masked_scatter_(base[block], others.distances(table[block][base[block]]))
            seen_aside.append(others.distances(table[aside]))
    out[aside] = torch.stack(seen_aside).mean(dim=0)
    return out


def _compared(image: Seen, defect: Tensor, good: Sequence[Seen]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Measure the strangeness (h, w) of an image, and of what it is compared with, with the cells that count there."""
    if not good:
        distances = strangeness(image, defect)
        return distances, [(distances, _surroundings(image, defect))]
    reference = _Sums.of(torch.cat([_cells(seen)[_counted(seen).flatten()] for seen in good[::2]]))
    distances, *others = (reference.distances(_cells(seen)).view(defect.shape) for seen in (image, *good[1::2]))
    return distances, [(map, _counted(seen)) for map, seen in zip(others, good[1::2], strict=True)]


@dataclass(frozen=True)
class _Sums:
    """The sums give mean and shrunk covariance of cells; the cells are kept where they are fewer than channels."""

    count: int
    total: Tensor  # (C,)
    scatter: Tensor | None  # (C, C), sum of x x^T; None: the cells are there
    cells: Tensor | None  # (n, C)

    @classmethod
    def of(cls, cells: Tensor) -> _Sums:
        """Sum cells (n, C)."""
        few = len(cells) < cells.shape[1]
        return cls(len(cells), cells.sum(dim=0), None if few else cells.T @ cells, cells if few else None)

    def without(self, cells: Tensor) -> _Sums:
        """Take some of the cells (k, C) out again; only where the scatter is there."""
        scatter = None if self.scatter is None else self.scatter - cells.T @ cells
        return _Sums(self.count - len(cells), self.total - cells.sum(dim=0), scatter, None)

    def distances(self, queries: Tensor) -> Tensor:
        """Measure the distances (m,) of other cells (m, C); 0 if nothing is left to compare with."""
        if self.count < 1:
            return torch.zeros(len(queries), dtype=queries.dtype)
        channels = queries.shape[1]
        mean = self.total / self.count
        moved = queries - mean  # (m, C)
        if self.scatter is not None:
            scatter = self.scatter - self.count * mean[:, None] * mean
            ridge = channels * _floored(scatter.diagonal() / self.count, mean)
            factor = torch.linalg.cholesky(scatter + torch.diag(ridge))
            square = _solved(factor, moved.T).square().sum(dim=0)
        else:
            centred = queries[:0] if self.cells is None else self.cells - mean  # (n, C)
            root = (channels * _floored(centred.square().mean(dim=0), mean)).sqrt()
            scaled, scaled_queries = centred / root, moved / root
            # (R + Z^T Z)^-1 by Woodbury's identity, through the smaller matrix
            factor = torch.linalg.cholesky(torch.eye(len(scaled), dtype=queries.dtype) + scaled @ scaled.T)
            explained = _solved(factor, scaled @ scaled_queries.T).square().sum(dim=0)
            square = scaled_queries.square().sum(dim=1) - explained
        return ((self.count + channels) * square.clamp(min=0)).sqrt()


def _floored(variance: Tensor, mean: Tensor) -> Tensor:
    """Raise variances (C,) that are so small that a channel silent elsewhere, or rounding, would count without end."""
    return variance.clamp(min=max(0.01 * float(variance.mean()), 1e-10 * float(mean.square().mean()), 1e-20))


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(factor, right, upper=False)
    return solution


def _elsewhere(map: Tensor, counts: Tensor, defect: Tensor) -> tuple[Tensor, Tensor]:
    """Read a map (h, w) under the defect's outline at every other place: the highest values and their cells.

    The outline is shifted around the rims of the grid; where some of it falls on cells that do not count, the rest
    stands for it if that is at least half.
    """
    h, w = map.shape
    rows, columns = (part[:, None] for part in defect.nonzero(as_tuple=True))  # (t, 1)
    down, right = (torch.arange(0, n, math.ceil(n / _SHIFTS)) for n in (h, w))
    shifts = torch.cartesian_prod(down, right).T  # (2, S)
    at = (rows + shifts[0]) % h * w + (columns + shifts[1]) % w  # (t, S)
    inside = counts.flatten()[at]
    values, first = map.flatten()[at].masked_fill(~inside, -torch.inf).max(dim=0)  # (S,)
    enough = 2 * inside.sum(dim=0) >= len(rows)
    return values[enough], at.gather(0, first[None])[0][enough]


def _standardised(values: Tensor, others: Tensor) -> Tensor:
    if len(others) < 2:
        return torch.zeros_like(values)
    mean, spread = others.mean(), others.std()
    return ((values - mean) / spread.clamp(min=1e-12 + 1e-6 * float(mean.abs()))).clamp(-_CEILING, _CEILING)


def _surroundings(image: Seen, defect: Tensor | None) -> Tensor:
    counts = _counted(image)
    if defect is None:
        return counts
    guard = _guard((defect.shape[0], defect.shape[1]))
    near = max_pool2d(defect[None, None].float(), 2 * guard + 1, stride=1, padding=guard)[0, 0] > 0  # (h, w)
    return counts & ~near


def _zones(grid: tuple[int, int]) -> list[Tensor]:
    """Divide a grid into middle and rim, (h, w) bool each; a small one stays whole."""
    middle = torch.zeros(grid, dtype=torch.bool)
    rim = _guard(grid)
    middle[rim:-rim, rim:-rim] = True
    return [torch.ones_like(middle)] if min(grid) < _ZONED else [middle, ~middle]


def _within(image: Seen, zone: Tensor) -> Seen:
    return Seen(image.features, _counted(image) & zone)


def _guard(grid: tuple[int, int]) -> int:
    return max(1, round(min(grid) * _GUARD))


def _reach(grid: tuple[int, int], touched: int, step: int) -> int:
    """Count the cells around a block that are left out with it: as many as around the defect, at most half the grid."""
    reach = _guard(grid) + round((math.sqrt(touched) - 1) / 2)
    return max(1, min(reach, int((math.sqrt(grid[0] * grid[1] / 2) - step) / 2)))


def _counted(image: Seen) -> Tensor:
    return torch.ones(image.features.shape[1:], dtype=torch.bool) if image.keep is None else image.keep


def _cells(image: Seen) -> Tensor:
    return image.features.double().flatten(1).T  # (h w, C)


def _overlap(pixels: int, cells: int, start: float, end: float) -> NDArray[np.float32]:
    """Tell whether cell i and pixel j overlap, (cells, pixels) of 0 and 1."""
    edges = (start + (end - start) * np.arange(pixels + 1) / pixels) * cells
    i: NDArray[Any] = np.arange(cells)[:, None]
    # rounding must not let a pixel that ends where a cell begins touch it
    return ((edges[None, 1:] > i + 1e-6) & (edges[None, :-1] < i + 1 - 1e-6)).astype(np.float32)
