"""Is a defect still there in a layer? Its contrast against what surrounds it, in standard deviations.

How strange a cell is: its Mahalanobis distance from the cells of the surroundings, those outside a guard band around
the defect. Mean and covariance are theirs; the covariance is shrunk towards its diagonal, as if C more cells without
any correlation had been seen, C being the number of channels. For a cell of the surroundings itself they are taken
without it and its neighbourhood: with more channels than cells, a cell that is part of the covariance looks at home
and any other looks strange, whatever it shows.

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

FAINT, VISIBLE = 2.5, 5.0  # sd
_GUARD = 1 / 16  # of the grid's shorter side
_BLOCKS = 32  # a side: cells of a finer grid are left out of the covariance several at once
_FEWEST = 10  # other places: a standard deviation from fewer says nothing
_SHIFTS = 32  # a side
_CEILING = 999.0  # sd, for surroundings that are all alike


class Seen(NamedTuple):
    """One image in one layer: features (C, h, w), and which cells (h, w) bool count; None: all."""

    features: Tensor
    keep: Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """What is left of a defect in a layer.

    Attributes:
        sd: contrast in standard deviations; None where there are fewer than ten other places.
        verdict: see :func:`verdict_of`.
        places: other places that were compared with.
        beaten: share of them that stand out less than the defect, 0 to 1; None if there are too few.
        map: (h, w) how much each single cell stands out, in standard deviations of the single cells around.
    """

    sd: float | None
    verdict: Verdict
    places: int
    beaten: float | None
    map: Tensor


def touched_cells(
    mask: NDArray[np.bool_], grid: tuple[int, int], window: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> Tensor:
    """Cells (h, w) bool that share any area with a pixel of a mask (H, W); a pixel may be larger than a cell.

    Args:
        mask: of the image.
        grid: h and w.
        window: top, left, bottom, right of the image on the network's input, as shares of it.

    >>> touched_cells(np.eye(4, dtype=bool)[:, ::-1], (2, 2)).int().tolist()
    [[0, 1], [1, 0]]
    """
    down = _overlap(mask.shape[0], grid[0], window[0], window[2])
    right = _overlap(mask.shape[1], grid[1], window[1], window[3])
    return torch.from_numpy(down @ mask.astype(np.float32) @ right.T) > 0  # (h, w)


def verdict_of(sd: float | None) -> Verdict:
    """``visible`` from 5 sd, ``faint`` from 2.5, else ``lost``; ``unclear`` where there is nothing to compare with."""
    if sd is None:
        return "unclear"
    return "visible" if sd >= VISIBLE else "faint" if sd >= FAINT else "lost"


def contrast(image: Seen, defect: Tensor, good: Sequence[Seen] = ()) -> Contrast:
    """How much a defect stands out in a layer.

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
    if good:
        reference = _Reference.of(torch.cat([_cells(one)[_kept(one).flatten()] for one in good[::2]]))
        shape = image.features.shape[1:]
        own = reference.distances(_cells(image)).view(shape)
        others = [(reference.distances(_cells(one)).view(shape), _kept(one)) for one in good[1::2]]
    else:
        own = strangeness(image, defect)
        others = [(own, _surroundings(image, defect))]
    values = torch.cat([_elsewhere(map, counts, defect) for map, counts in others])
    single = torch.cat([map[counts] for map, counts in others])
    picture = _standardised(own, single) if len(single) > 1 else torch.zeros_like(own)
    if len(values) < _FEWEST:
        return Contrast(None, "unclear", len(values), None, picture.float())
    value = own[defect].max()
    sd = float(_standardised(value, values))
    return Contrast(sd, verdict_of(sd), len(values), float((values < value).double().mean()), picture.float())


def stand_out(image: Seen) -> Tensor:
    """How much each cell (h, w) of an image stands out from the others, in standard deviations over all cells."""
    map = strangeness(image)
    counts = _kept(image)
    return (_standardised(map, map[counts]) if int(counts.sum()) > 1 else torch.zeros_like(map)).float()


def strangeness(image: Seen, defect: Tensor | None = None) -> Tensor:
    """Mahalanobis distance (h, w) of every cell from the others; see the head of this file.

    Args:
        image: features and the cells that count.
        defect: (h, w) bool; it and a band around it are no part of the others. None: every cell may be.
    """
    _, h, w = image.features.shape
    base = _surroundings(image, defect)
    cells = _cells(image)
    if int(base.sum()) < 2:
        return torch.zeros(h, w, dtype=torch.float64)
    reference = _Reference.of(cells[base.flatten()])
    white = reference.whitened(cells).view(h, w, -1)
    out = reference.distances(cells).view(h, w)
    step = math.ceil(max(h, w) / _BLOCKS)
    reach = _reach((h, w), 1 if defect is None else int(defect.sum()), step)
    for top in range(0, h, step):
        for left in range(0, w, step):
            block = (slice(top, top + step), slice(left, left + step))
            near = (
                slice(max(0, top - reach), top + step + reach),
                slice(max(0, left - reach), left + step + reach),
            )
            if bool(base[block].any()):
                without = _distances_without(white[near][base[near]], white[block][base[block]], reference.cells)
                out[block].masked_scatter_(base[block], without)
    return out


class _Reference(NamedTuple):
    """Mean and covariance of some cells, and the C that stand for the shrinkage: the covariance is ``factor`` times
    its transpose, over ``cells`` + C."""

    mean: Tensor  # (C,)
    factor: Tensor  # (C, C)
    cells: int

    @classmethod
    def of(cls, cells: Tensor) -> _Reference:
        """Of cells (n, C)."""
        mean = cells.mean(dim=0)
        centred = cells - mean
        variance = centred.square().mean(dim=0)  # (C,)
        # a channel that is silent everywhere else is no infinite evidence, nor is the rounding of a blank image
        least = max(0.01 * float(variance.mean()), 1e-10 * float(cells.square().mean()), 1e-30)
        ridge = torch.diag(cells.shape[1] * variance.clamp(min=least))
        return cls(mean, torch.linalg.cholesky(centred.T @ centred + ridge), len(cells))

    def whitened(self, cells: Tensor) -> Tensor:
        """Cells (m, C) -> (m, C), in which the distance is the length, times the root of ``cells`` + C."""
        return _solved(self.factor, (cells - self.mean).T).T

    def distances(self, cells: Tensor) -> Tensor:
        """Of cells (m, C) that are no part of the reference: (m,)."""
        length: Tensor = self.whitened(cells).norm(dim=1)
        return math.sqrt(self.cells + cells.shape[1]) * length


def _distances_without(left_out: Tensor, asked: Tensor, count: int) -> Tensor:
    """Distances (m,) of whitened cells (m, C) from the reference without some of its cells (k, C).

    Without the rows Z of sum s, the mean moves by -s / (n - k) and the scatter loses Z^T Z + s s^T / (n - k); the
    inverse follows by Woodbury's identity, or directly where that is the smaller matrix.
    """
    rest = count - len(left_out)
    if rest < 1:
        return torch.zeros(len(asked), dtype=asked.dtype)
    total = left_out.sum(dim=0)  # (C,)
    lost = torch.cat([left_out, total[None] / rest**0.5])  # (k + 1, C)
    moved = asked + total / rest  # (m, C)
    if len(lost) < lost.shape[1]:
        inside = torch.linalg.cholesky(torch.eye(len(lost), dtype=lost.dtype) - lost @ lost.T)
        gain = _solved(inside, lost @ moved.T)  # (k + 1, m)
        square = moved.square().sum(dim=1) + gain.square().sum(dim=0)
    else:
        inside = torch.linalg.cholesky(torch.eye(lost.shape[1], dtype=lost.dtype) - lost.T @ lost)
        square = _solved(inside, moved.T).square().sum(dim=0)
    return ((rest + asked.shape[1]) * square).sqrt()


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve_triangular(factor, right, upper=False)
    return solution


def _elsewhere(map: Tensor, counts: Tensor, defect: Tensor) -> Tensor:
    """The highest value of a map (h, w) under the defect's outline at every other place: (places,).

    The outline is shifted around the rims of the grid; where some of it falls on cells that do not count, the rest
    stands for it if that is at least half.
    """
    h, w = map.shape
    rows, columns = (part[:, None] for part in defect.nonzero(as_tuple=True))  # (t, 1)
    down, right = (torch.arange(0, n, math.ceil(n / _SHIFTS)) for n in (h, w))
    shifts = torch.cartesian_prod(down, right).T  # (2, S)
    at = (rows + shifts[0]) % h * w + (columns + shifts[1]) % w  # (t, S)
    inside = counts.flatten()[at]
    values: Tensor = map.flatten()[at].masked_fill(~inside, -torch.inf).amax(dim=0)  # (S,)
    return values[2 * inside.sum(dim=0) >= len(rows)]


def _standardised(values: Tensor, others: Tensor) -> Tensor:
    mean, spread = others.mean(), others.std()
    return ((values - mean) / spread.clamp(min=1e-12 + 1e-6 * float(mean.abs()))).clamp(-_CEILING, _CEILING)


def _surroundings(image: Seen, defect: Tensor | None) -> Tensor:
    kept = _kept(image)
    if defect is None:
        return kept
    guard = _guard((defect.shape[0], defect.shape[1]))
    near = max_pool2d(defect[None, None].float(), 2 * guard + 1, stride=1, padding=guard)[0, 0] > 0  # (h, w)
    return kept & ~near


def _guard(grid: tuple[int, int]) -> int:
    return max(1, round(min(grid) * _GUARD))


def _reach(grid: tuple[int, int], touched: int, step: int) -> int:
    """Cells around a block that are left out with it: as many as around the defect, at most half of the grid."""
    reach = _guard(grid) + round((math.sqrt(touched) - 1) / 2)
    return max(1, min(reach, int((math.sqrt(grid[0] * grid[1] / 2) - step) / 2)))


def _kept(image: Seen) -> Tensor:
    return torch.ones(image.features.shape[1:], dtype=torch.bool) if image.keep is None else image.keep


def _cells(image: Seen) -> Tensor:
    return image.features.double().flatten(1).T  # (h w, C)


def _overlap(pixels: int, cells: int, start: float, end: float) -> NDArray[np.float32]:
    """Whether cell i and pixel j overlap, (cells, pixels) of 0 and 1."""
    edges = (start + (end - start) * np.arange(pixels + 1) / pixels) * cells
    i: NDArray[Any] = np.arange(cells)[:, None]
    # rounding must not let a pixel that ends where a cell begins touch it
    return ((edges[None, 1:] > i + 1e-6) & (edges[None, :-1] < i + 1 - 1e-6)).astype(np.float32)
