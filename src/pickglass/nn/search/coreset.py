"""A coreset is chosen greedily, exactly and in blocks: the same points as one by one, in a fraction of the passes.

The greedy choice (Gonzalez 1985; PatchCore, Roth et al. 2022, algorithm 1) takes again and again the point that is
farthest from all points taken so far. Done literally, each of the M picks reads all N points, and memory traffic,
not arithmetic, sets the time. Here one pass over the points serves many picks:

1. Candidates are the K points farthest from the centres so far; T is the largest distance outside them.
2. The greedy steps run inside the candidates, whose mutual distances are one small matrix. The first pick is the
   global arg-max and needs no condition; a later one counts only while its distance exceeds T by more than the
   rounding bound, for then no outside point can be farther: distances only shrink. Equality ends the pass.
3. One matrix product updates all N points, candidates included, against the picks of this pass.

Letters: N points, C dimensions, M chosen, K candidates, p picks of one pass. All distances are squared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pickglass.errors import InputError
from pickglass.nn.maps import exact_float32, rounding_bound

__all__ = ["Coreset", "greedy_coreset", "random_projection"]

_CANDIDATES = 1024
_PICKS = 512  # of one pass: bounds the update's buffer
_BUFFER = 1 << 19  # floats of one update block: small enough to stay in a core's cache


@dataclass(frozen=True)
class Coreset:
    """A coreset is what :func:`greedy_coreset` chose, and how.

    Attributes:
        indices: (M',) rows of the points in the order of choice, int64 on the CPU. M' < M only if all that was left
            were duplicates of chosen points.
        radius: distance (not squared) of the farthest point from its nearest chosen one.
        passes: how often all points were read.
        close_calls: picks whose runner-up lay within the rounding bound: there, and only there, another order of
            float32 operations may pick the runner-up first.
    """

    indices: Tensor
    radius: float
    passes: int
    close_calls: int


def random_projection(points: Tensor, dims: int, seed: int) -> Tensor:
    """Project (N, C) points to (N, dims) by a Gaussian matrix that keeps distances in expectation.

    Johnson-Lindenstrauss; Roth et al. 2022, section 3.2, use it to make the selection cheaper. Where it would not at
    least halve the dimensions there is little to gain, and the points come back as they are.
    """
    channels = points.shape[1]
    if channels < 2 * dims:
        return points
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(channels, dims, generator=generator) / dims**0.5
    with exact_float32():
        return torch.mm(points, matrix.to(points))  # (N, C) -> (N, dims)


def greedy_coreset(
    points: Tensor,
    size: int,
    *,
    first: int | None = None,
    candidates: int = _CANDIDATES,
    progress: Callable[[int, int], None] | None = None,
) -> Coreset:
    """Choose ``size`` of the points, each the farthest from those before it.

    Args:
        points: (N, C) floating, CPU or GPU; left untouched. Computed in float32 (float64 stays float64).
        size: M, 1 to N.
        first: index of the first pick; by default the point farthest from the most central one.
        candidates: K; changes the time, never the result.
        progress: called with (chosen, size) after each pass.

    Returns:
        The :class:`Coreset`. Ties go to the lowest index. Memory: one copy of the points and about 10 MB.

    Raises:
        InputError: points not (N, C), not finite, or ``size`` out of range.
    """
    _validate(points, size, first, candidates)
    with exact_float32():
        return _select(*_centred(points), size, first, candidates, progress)


def _validate(points: Tensor, size: int, first: int | None, candidates: int) -> None:
    if points.ndim != 2 or not points.is_floating_point() or points.numel() == 0:
        raise InputError(f"points of shape {tuple(points.shape)}, {points.dtype}: expected a floating (N, C) matrix")
    if not 1 <= size <= len(points):
        raise InputError(f"coreset size {size!r}: expected 1 to {len(points)}, the number of points")
    if first is not None and not 0 <= first < len(points):
        raise InputError(f"first={first!r}: expected an index from 0 to {len(points) - 1}")
    if candidates < 1:
        raise InputError(f"candidates={candidates!r}: expected at least 1")
    if not bool(torch.isfinite(points.sum(0)).all()):
        raise InputError("the points are not finite: look for NaN or infinity in the features")


def _centred(points: Tensor) -> tuple[Tensor, Tensor]:
    """Move the most central point to the origin, where |x|^2 + |y|^2 - 2 x.y cancels least.

    A point of the set rather than the mean: integers stay integers, so ties stay ties.
    """
    x = points.to(torch.float64 if points.dtype == torch.float64 else torch.float32)
    middle = x[int(((x - x.mean(0)) ** 2).sum(1).argmin())]
    x = x - middle
    return x, (x * x).sum(1)


def _select(
    x: Tensor, norms: Tensor, size: int, first: int | None, k: int, progress: Callable[[int, int], None] | None
) -> Coreset:
    bound = rounding_bound(x.shape[1], x.dtype) * 4 * float(norms.max())  # of |x|^2 + |y|^2 - 2 x.y
    start = int(norms.argmax()) if first is None else first
    distance = torch.full_like(norms, torch.inf)  # (N,) to the nearest chosen point
    chosen = [start]
    _update(distance, x, norms, [start])
    passes, close_calls = 1, 0
    while len(chosen) < size:
        inside, outside = _farthest(distance, min(k, len(x)))  # (K,), T
        most = min(_PICKS, size - len(chosen))
        picks, close = _greedy_inside(distance[inside], x[inside], norms[inside], outside, bound, most)
        if not picks:
            break  # only duplicates of chosen points are left
        new = inside[picks].tolist()
        chosen += new
        close_calls += close
        _update(distance, x, norms, new)
        passes += 1
        if progress is not None:
            progress(len(chosen), size)
    radius = float(distance.max().clamp(min=0)) ** 0.5
    return Coreset(torch.tensor(chosen, dtype=torch.int64), radius, passes, close_calls)


def _farthest(distance: Tensor, k: int) -> tuple[Tensor, float]:
    """Find the k largest distances, ties by lowest index: their indices in order, and the largest of the others."""
    least = distance.topk(k, sorted=False).values.min()
    above = distance > least
    inside = above.nonzero()[:, 0]
    equal = (distance == least).nonzero()[:, 0]
    room = k - len(inside)
    inside = torch.cat([inside, equal[:room]]).sort().values  # (k,)
    if len(equal) > room:
        return inside, float(least)
    rest = distance.masked_fill(distance >= least, -torch.inf)
    return inside, float(rest.max())


def _greedy_inside(
    distance: Tensor, x: Tensor, norms: Tensor, outside: float, bound: float, most: int
) -> tuple[list[int], int]:
    """Take greedy steps among the candidates; on the CPU, for each step needs its result at once."""
    mutual = torch.addmm(norms[:, None] + norms[None, :], x, x.T, alpha=-2)  # (K, K)
    table: np.ndarray = mutual.clamp_(min=0).cpu().numpy()
    d: np.ndarray = distance.cpu().numpy().copy()
    picks: list[int] = []
    close = 0
    while len(picks) < most:
        best = int(d.argmax())  # numpy: the first of equals
        value = float(d[best])
        if value <= bound or (picks and value <= outside + bound):
            break
        d[best] = -np.inf
        close += max(float(d.max()), outside) >= value - bound
        np.minimum(d, table[best], out=d)
        picks.append(best)
    return picks, close


def _update(distance: Tensor, x: Tensor, norms: Tensor, new: list[int]) -> None:
    """Lower each point's distance to the new centres, block by block; the centres themselves leave the game."""
    centres = x[new]
    offset = norms[new][:, None]  # (p, 1)
    rows = max(1, _BUFFER // len(new)) if x.device.type == "cpu" else max(1, (1 << 26) // len(new))
    buffer = x.new_empty(len(new) * min(rows, len(x)))
    for lo in range(0, len(x), rows):
        block = x[lo : lo + rows]
        product = buffer[: len(new) * len(block)].view(len(new), len(block))
        torch.addmm(offset, centres, block.T, alpha=-2, out=product)  # (p, rows)
        nearest = product.amin(0).add_(norms[lo : lo + rows]).clamp_(min=0)  # (rows,)
        torch.minimum(distance[lo : lo + rows], nearest, out=distance[lo : lo + rows])
    distance[new] = -torch.inf
