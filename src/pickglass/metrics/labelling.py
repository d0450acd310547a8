"""A mask consists of connected regions.

A row of the mask is a list of runs: stretches of pixels without a gap. Runs of neighbouring rows that touch belong to
one region. Each run hooks to the first one above that it touches, which makes trees; the touching runs that are left
join trees, again and again by the smallest number that a tree touches, until nothing changes. All steps are over whole
arrays: pointer jumping after Shiloach and Vishkin ("An O(log n) parallel connectivity algorithm", Journal of Algorithms
1982), hooking to the least neighbour after Liu and Tarjan ("Simple concurrent connected components algorithms", ACM
Transactions on Parallel Computing 2022), who bound the rounds by log^2 n.

In numpy, so that a machine that only judges images needs no SciPy, which has a labelling of its own: the labels are
the same (a test holds that), and ``bench/labelling.py`` measures both. Not by connected-components-3d: for boolean 2-D
masks its release 4.1.1 was seen to number regions with gaps and to label pixels outside the mask.

Letters: H x W pixels, K runs, n regions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Runs", "connected_regions", "connected_runs"]

Integers = npt.NDArray[np.intp]

_BLOCK = 8192  # runs whose pointers fit a near cache
_DENSE = 16  # pixels for each end of a run: below it, a table of all pixels is quicker than searching


class Runs(NamedTuple):
    """The pixels of a mask are K horizontal runs in the order in which one reads, each part of one region.

    Attributes:
        row: (K,) of each run.
        left, right: (K,) its first column, and the one after its last.
        region: (K,) its region, 0 to n - 1, numbered in the order of their first pixels.
        n: number of regions.
    """

    row: Integers
    left: Integers
    right: Integers
    region: Integers
    n: int

    def areas(self) -> Integers:
        """Count the pixels of each region, (n,)."""
        areas: Integers = np.bincount(self.region, self.right - self.left, minlength=self.n).astype(np.intp)
        return areas

    def boxes(self) -> Integers:
        """Return the [x, y, w, h] of each region, (n, 4)."""
        lowest, beyond = np.full((2, self.n), np.iinfo(np.intp).max), np.zeros((2, self.n), np.intp)
        for side, (first, end) in enumerate(((self.left, self.right), (self.row, self.row + 1))):
            np.minimum.at(lowest[side], self.region, first)
            np.maximum.at(beyond[side], self.region, end)
        boxes: Integers = np.concatenate([lowest, beyond - lowest]).T
        return boxes

    def per_pixel(self) -> Integers:
        """Return the region of each pixel of the mask, in the order of ``image[mask]``."""
        return np.repeat(self.region, self.right - self.left)

    def highest(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Find the highest value in each region, (n,); the values of its pixels are in the order of ``image[mask]``."""
        peaks = np.full(self.n, -np.inf, values.dtype)
        if self.n:
            lengths = self.right - self.left
            np.maximum.at(peaks, self.region, np.maximum.reduceat(values, np.cumsum(lengths) - lengths))
        return peaks


def connected_regions(
    mask: npt.NDArray[np.bool_], connectivity: Literal[4, 8] = 8
) -> tuple[npt.NDArray[np.int32], Integers]:
    """Label the regions of a (H, W) mask.

    Args:
        mask: bool (H, W).
        connectivity: 8: pixels that touch at a corner are one region; 4: at an edge only.

    Returns:
        Labels (H, W), 0 outside and 1 to n inside, and the n areas in pixels.

    Example:
        >>> labels, areas = connected_regions(np.eye(3, dtype=bool), connectivity=4)
        >>> labels.tolist(), areas.tolist()
        ([[1, 0, 0], [0, 2, 0], [0, 0, 3]], [1, 1, 1])
    """
    runs = connected_runs(mask, connectivity)
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = runs.per_pixel() + 1
    return labels, runs.areas()


def connected_runs(mask: npt.NDArray[np.bool_], connectivity: Literal[4, 8] = 8) -> Runs:
    """Cut a (H, W) mask into runs, and say to which region each belongs; the arguments are as above.

    Example:
        >>> connected_runs(np.array([[True, False, True], [False, True, False]])).region.tolist()
        [0, 0, 0]
    """
    height, width = mask.shape[0], mask.shape[1] + 1  # a column without pixels ends the runs of each row
    padded = np.zeros(1 + height * width, np.bool_)
    padded[1:].reshape(height, width)[:, :-1] = mask
    changes = padded[1:] != padded[:-1]
    ends = np.flatnonzero(changes)
    starts, stops = ends[::2], ends[1::2]  # places in the rows laid end to end, each with its column of padding

    up_to = _counter(changes, ends)
    reach = 1 if connectivity == 8 else 0
    first = up_to(starts - width - reach) // 2  # the first run that ends beyond this one's start, in the row above
    beyond = (up_to(stops - width + reach - 1) + 1) // 2  # the one after the last that starts before its end
    root = np.where(beyond > first, first, np.arange(len(starts)))
    _jump(root)
    is_root = root == np.arange(len(root))
    tree = (np.cumsum(is_root) - 1)[root]

    more = np.maximum(beyond - first - 1, 0)  # runs above that it touches, besides the first
    place = np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more)
    one, other = np.repeat(tree, more), tree[np.repeat(first + 1, more) + place]
    joined = np.arange(int(is_root.sum()))
    while (apart := one != other).any():
        one, other = one[apart], other[apart]
        np.minimum.at(joined, np.maximum(one, other), np.minimum(one, other))
        _jump(joined)
        one, other = joined[one], joined[other]
    is_first = joined == np.arange(len(joined))  # a root is the first run of its tree, and so of its region
    region = (np.cumsum(is_first) - 1)[joined][tree]
    row = starts // width
    return Runs(row, starts - row * width, stops - row * width, region, int(is_first.sum()))


def _jump(parents: Integers) -> None:
    """Replace each parent, which is never behind its child, by the root of its tree.

    Block by block: what lies in front is done by then, so that paths are short and near in memory.
    """
    for start in range(0, len(parents), _BLOCK):
        block = parents[start : start + _BLOCK]
        while not np.array_equal(above := parents[block], block):
            block[:] = above


def _counter(changes: npt.NDArray[np.bool_], ends: Integers) -> Callable[[Integers], Integers]:
    """Return what counts the ends of runs up to and with each of some places, which may be negative."""
    if len(ends) * _DENSE <= len(changes):
        return lambda places: np.searchsorted(ends, places, side="right")
    table = np.zeros(len(changes) + 1, np.int32)
    np.cumsum(changes, out=table[1:])
    return lambda places: table[np.maximum(places + 1, 0)].astype(np.intp)
