"""Images that look like none of the others of their set stand out by their distance from other groups.

Pure arithmetic on features that were read already. A cell of an image is strange if nothing like it occurs in images
of *other* groups, so that five pictures of one dented part do not vouch for each other. How strange cells are depends
on where they lie (edges, loose parts) and on the image (a coarse texture): both are allowed for.

Letters: N images, S cells of an image, C channels, G groups, R reference cells of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pickglass.nn.maps import exact_float32

__all__ = ["group_distances", "modified_z", "principal", "standing_out"]

_QUERIES = 512  # of one block
_SAMPLE = 20_000  # cells that the axes are taken from
_LEAST_DEVIATION = 0.05
_SPOT = 0.01  # of the cells of an image
_NOTHING = 0.1  # of the mean distance: no cell counts as nearer


def principal(cells: Tensor, dims: int, seed: int) -> Tensor:
    """Project cells (N, S, C) on their first principal axes: (N, S, dims), or C where that is not more.

    Distances shrink by what lies outside the axes, which for backbone features is little, and cost less to compute.
    """
    n, s, c = cells.shape
    if c <= dims:
        return cells
    generator = torch.Generator().manual_seed(seed)
    flat = cells.flatten(0, 1)  # (N S, C)
    sample = flat[torch.randperm(n * s, generator=generator)[:_SAMPLE].to(flat.device)].double()
    sample = sample - sample.mean(0)
    axes = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -dims:].to(flat)  # (C, dims)
    with exact_float32():
        return torch.mm(flat, axes).view(n, s, dims)


def group_distances(
    cells: Tensor, groups: Tensor, keep: Tensor | None, nearest: int, seed: int, references: int = 16_384
) -> Tensor:
    """Measure how far each cell is from images of other groups: the mean over the nearest groups, (N, S).

    Several groups rather than one, because a defect that occurs twice must not vouch for itself.

    Args:
        cells: (N, S, C) float32.
        groups: (N,) int64, 0 to G - 1, G at least 2; where G - 1 is less than ``nearest``, that many groups count.
        keep: (N, S) bool, cells that count; None: all. Others get NaN, and nothing is compared with them.
        nearest: number of groups.
        seed: draws the reference cells.
        references: cells of all images together that others are compared with, as many of each image; the time is
            linear in their number and in that of the images.
    """
    n, s, _ = cells.shape
    reference, owner = _references(cells, groups, keep, seed, references)  # (M, C), (M,)
    middle = reference.mean(0)
    reference = reference - middle
    norms = reference.square().sum(1)  # (M,)
    number = int(groups.max()) + 1
    counts = torch.bincount(owner, minlength=number).tolist()
    few = min(nearest, sum(count > 0 for count in counts) - 1)
    queries = cells.flatten(0, 1) - middle  # (N S, C)
    group_of_cell = groups.repeat_interleave(s)  # (N S,)
    result = torch.empty(n * s, dtype=cells.dtype, device=cells.device)
    with exact_float32():
        for lo in range(0, n * s, _QUERIES):
            x = queries[lo : lo + _QUERIES]
            squared = torch.addmm(norms, x, reference.T, alpha=-2)  # (Q, M), |y|^2 - 2 x.y
            closest = _group_minima(squared, counts)  # (Q, G)
            closest.scatter_(1, group_of_cell[lo : lo + _QUERIES, None], torch.inf)
            closest = closest.topk(few, dim=1, largest=False).values + x.square().sum(1, keepdim=True)
            result[lo : lo + _QUERIES] = closest.clamp(min=0).sqrt().mean(1)
    distances = result.view(n, s)
    if keep is not None:
        distances[~keep] = torch.nan
    return distances


def _references(cells: Tensor, groups: Tensor, keep: Tensor | None, seed: int, most: int) -> tuple[Tensor, Tensor]:
    """Draw the cells to compare with (M, C), evenly from all images, in the order of their groups (M,)."""
    n, s, _ = cells.shape
    share = min(s, max(1, most // n))
    order = torch.rand(n, s, generator=torch.Generator().manual_seed(seed))
    if keep is not None:
        order[~keep.cpu()] = 2.0  # last
    drawn = order.argsort(1)[:, :share].to(cells.device)  # (N, R)
    by_group = groups.argsort(stable=True)
    drawn, owner = drawn[by_group], groups[by_group].repeat_interleave(share)
    picked = cells[by_group].gather(1, drawn[..., None].expand(-1, -1, cells.shape[2])).flatten(0, 1)  # (N R, C)
    if keep is None:
        return picked, owner
    counted = keep[by_group].gather(1, drawn).flatten()  # (N R,)
    return picked[counted], owner[counted]


def _group_minima(values: Tensor, counts: list[int]) -> Tensor:
    """Take the smallest of each run of columns, (Q, M) -> (Q, G); infinite where a run is empty."""
    if len(set(counts)) == 1:
        return values.view(len(values), len(counts), counts[0]).amin(2)
    empty = values.new_full((len(values),), torch.inf)
    return torch.stack([part.amin(1) if part.shape[1] else empty for part in values.split(counts, dim=1)], dim=1)


def standing_out(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how far each image stands out, by its strangest spot and as a whole, from distances (N, S) of its cells.

    The spot: of the logarithms, what is usual at a cell's place, the median over all images, is taken off, then the
    median of the image (two steps of Tukey's median polish, 1977), so that a spot is as many times farther than usual
    on a calm image as on a coarse texture; the mean of the highest hundredth (3 of 256 cells), because one cell is
    strange by chance. The whole: the median distance.

    Returns:
        Spots and wholes, (N,) each, 0 or more, the spot as a factor. NaN cells do not count; an image without any other
        gets 0 and, as a spot, 1.
    """
    least = (_NOTHING * distances.nanmean()).nan_to_num(nan=0.0).clamp(min=torch.finfo(torch.float32).tiny)
    logs = distances.clamp(min=least).log()  # below, where all images are black, it is rounding that differs
    rest = logs - logs.nanmedian(0).values
    rest = rest - rest.nanmedian(1, keepdim=True).values
    spot = rest.nan_to_num(nan=0.0).topk(math.ceil(_SPOT * rest.shape[1]), dim=1).values.mean(1).exp()
    return spot, distances.nanmedian(1).values.nan_to_num(nan=0.0)


def modified_z(values: Tensor) -> Tensor:
    """Count the standard deviations above the median, (N,), by the median absolute deviation (Iglewicz, Hoaglin 1993).

    The authors recommend to look at values beyond 3.5; a fifth of outliers moves it little. Taken of the logarithms
    of values (N,) that are 0 or more, for such values are skewed. Where they scarcely differ, the standard deviation
    counts as 5 %.
    """
    logs = values.double().clamp(min=torch.finfo(torch.float32).tiny).log()
    above = logs - logs.quantile(0.5)
    deviation = 1.4826 * above.abs().quantile(0.5)
    return (above / deviation.clamp(min=_LEAST_DEVIATION)).float()
