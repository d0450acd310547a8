"""Nearest neighbours in a bank are found exactly: in blocked float32, or certified bfloat16 where that is faster.

Both return the true nearest distance. The bfloat16 search computes coarse distances from rounded vectors, knows by
how much each can be wrong, and looks again, in float32, at every bank point that could still be the nearest. Where
that is too many it falls back to float32 for those queries and says how many they were.

Letters: N queries, M bank points, C dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pickglass.nn.maps import exact_float32, has_fast_bfloat16, rounding_bound

__all__ = ["NORM_PARTS", "BankIndex", "Searched", "nearest_of_each", "nearest_of_two_owners", "nearest_plain"]

NORM_PARTS = 3
"""Rows of an exported bank that hold the points' norms, last of all."""

_QUERIES = 1024  # of one block ...
_POINTS = 2048  # ... times bank points, in groups ...
_AMONG = 32  # ... of so many
_PRODUCTS = 2**26  # of all banks at once
_GROUP = 64  # bank points of which an exported graph first finds the minimum alone
_WIDE = 512  # channels from which the coarse product saves more than certifying it costs
_PATIENCE, _MOST_FALLBACKS = 10_000, 0.1
_MOST_SHARE = 0.02  # of the bank a query may have as possible nearest points before float32 is the cheaper way


def nearest_plain(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest in operations that every exporter knows, fast in those that run such graphs.

    Runtimes find a minimum at once and its place slowly. So the bank is cut into groups of 64 points: the minimum of
    each group, the group with the least of these, and the place of the least among its 64 values, which are at hand.
    The winner is measured directly: its length is exact, also where both are nearly the same.

    One product gives |y|^2 - 2 x.y. The norm comes in three parts of eight bits each, so that storing it in float16, or
    multiplying in bfloat16 or TF32, loses none of it.

    Args:
        queries: (..., N, C).
        bank: (..., M, C), same leading axes.

    Returns:
        Distances (..., N) and indices (..., N); of equal computed values the lowest index counts.
    """
    m = int(bank.shape[-2])  # while a graph is traced, a size is a tensor
    middle = bank.mean(-2, keepdim=True)
    points, x = bank - middle, queries - middle  # products of small numbers lose fewer digits
    groups = -(-m // _GROUP)
    size = -(-m // groups)  # g points of a group; the last point comes again until the last group is full
    y = points.index_select(-2, torch.arange(groups * size, device=bank.device).clamp(max=m - 1))  # (..., G g, C)
    columns = torch.cat([-2 * y, *_parts((y * y).sum(-1, keepdim=True))], dim=-1)  # (..., G g, C + 3)
    factors = columns.unflatten(-2, (groups, size)).transpose(-1, -2)  # (..., G, C + 3, g)
    rows = torch.cat([x, x.new_ones((*x.shape[:-1], NORM_PARTS))], dim=-1)  # (..., N, C + 3)
    squared = rows.unsqueeze(-3) @ factors  # (..., G, N, g), without |x|^2
    group = squared.amin(-1).argmin(-2)  # (..., N)
    place = group[..., None, :, None].expand_as(squared[..., :1, :, :])
    index = (group * size + squared.gather(-3, place).squeeze(-3).argmin(-1)).clamp(max=m - 1)  # (..., N)
    rows_of_all = points.reshape(-1, points.shape[-1])  # (... M, C); a lookup is what all runtimes do fastest
    first = torch.arange(0, rows_of_all.shape[0], m, device=bank.device).view(*bank.shape[:-2], 1)
    nearest = F.embedding(index + first, rows_of_all)  # (..., N, C)
    difference = x - nearest
    return (difference * difference).sum(-1).sqrt(), index


def _parts(norms: Tensor) -> list[Tensor]:
    """Write numbers from 0 on as the sums of three that have eight bits each."""
    parts = []
    for _ in range(NORM_PARTS - 1):
        far = norms * (2**16 + 1)  # as far away as leaves eight bits of the difference (Veltkamp 1968)
        parts.append(far - (far - norms))
        norms = norms - parts[-1]
    return [*parts, norms]


def nearest_of_each(queries: Tensor, bank: Tensor) -> Tensor:
    """Measure queries (P, N, C) against the nearest point of their own bank (P, M, C), all in one product: (P, N).

    For a GPU, which would wait between the banks. On a CPU one :class:`BankIndex` after the other is as fast with
    banks of 460 points, and a fifth faster with 4,000: their products stay in the cache.
    """
    middle = bank.mean(1, keepdim=True)
    points, x = bank - middle, queries - middle
    norms = points.square().sum(2)[:, None]  # (P, 1, M)
    block = max(1, _PRODUCTS // (bank.shape[0] * bank.shape[1]))
    distances = []
    with exact_float32():
        for part in x.split(block, dim=1):
            index = torch.baddbmm(norms, part, points.transpose(1, 2), alpha=-2).argmin(2)  # (P, n)
            nearest = points.gather(1, index[..., None].expand(-1, -1, points.shape[2]))  # (P, n, C)
            distances.append((part - nearest).norm(dim=2))
    return torch.cat(distances, dim=1)


def nearest_of_two_owners(queries: Tensor, bank: Tensor, owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the owner of each query's nearest bank point, its distance, and that of the nearest of any other owner.

    Args:
        queries: (N, C).
        bank: (M, C).
        owners: (M,) a number for each bank point.

    Returns:
        (N,) owners, (N,) distances, and (N,) those of others, infinite where there is no other owner.
    """
    middle = bank.mean(0)
    points, x = bank - middle, queries - middle
    norms = points.square().sum(1)  # (M,)
    nearest, firsts, seconds = [], [], []
    with exact_float32():
        for part in x.split(max(1, _PRODUCTS // 4 // len(points))):
            squared = torch.addmm(norms, part, points.T, alpha=-2)  # (n, M), without |x|^2
            length = part.square().sum(1)  # (n,)
            first, index = squared.min(1)
            owner = owners[index]  # (n,)
            second = squared.masked_fill_(owner[:, None] == owners, torch.inf).amin(1)
            nearest.append(owner)
            firsts.append((first + length).clamp(min=0).sqrt())
            seconds.append((second + length).clamp(min=0).sqrt())
    return torch.cat(nearest), torch.cat(firsts), torch.cat(seconds)


@dataclass
class Searched:
    """A search gives distances (N,), float32, indices (N,), int64, and how many queries fell back to float32."""

    distances: Tensor
    indices: Tensor
    fallbacks: int


class BankIndex:
    """A bank is made ready once for many searches.

    Args:
        bank: (M, C) float32, CPU or GPU.
        source: what the bank was taken from, so that the owner can tell whether this index is still current.
        bfloat16: search coarsely in bfloat16 and certify; None: where the CPU has it and the vectors are wide enough
            (512 channels) for that to be faster. Given up for float32 once more than a tenth of at least 10,000 queries
            fell back.
    """

    def __init__(self, bank: Tensor, source: Tensor | None = None, bfloat16: bool | None = None) -> None:
        self.bank = bank.float()
        self.source = source
        self.queries = self.fallbacks = 0
        self.middle = self.bank.mean(0)
        centred = self.bank - self.middle  # distances stay, products cancel less
        self.columns = torch.cat([centred, (centred * centred).sum(1, keepdim=True)], dim=1)  # (M, C + 1)
        self.centred, self.norms = self.columns[:, :-1], self.columns[:, -1]  # (M, C), (M,)
        on_cpu = bank.device.type == "cpu"
        wide = bank.shape[1] >= _WIDE
        self.coarse = (on_cpu and wide and has_fast_bfloat16()) if bfloat16 is None else bfloat16
        if self.coarse:
            rounded = self.centred.bfloat16()
            self.rounded = rounded.T.contiguous()  # (C, M)
            self.residual = float((self.centred - rounded.float()).norm(dim=1).max())  # max |y - y'|
            self.reach = float(rounded.float().norm(dim=1).max())  # max |y'|

    def distances(self, queries: Tensor) -> Tensor:
        """Measure the distance (N,) of the (N, C) queries to their nearest bank points."""
        return self.search(queries).distances

    def search(self, queries: Tensor) -> Searched:
        """Find the nearest bank point of each query (N, C); of equal computed values the lowest index counts."""
        x = queries.float() - self.middle
        index = torch.empty(len(x), dtype=torch.int64, device=x.device)
        before = self.fallbacks
        buffer = self._buffer(x[:_QUERIES])
        with exact_float32():
            for lo in range(0, len(x), _QUERIES):
                block = x[lo : lo + _QUERIES]
                if self.coarse:
                    nearest, missed = self._certified(block, buffer)
                    self.fallbacks += missed
                    self.queries += len(block)
                    self.coarse = self.queries < _PATIENCE or self.fallbacks < _MOST_FALLBACKS * self.queries
                else:
                    nearest = self._blocked(block, buffer)
                index[lo : lo + _QUERIES] = nearest
        # the expanded square cancels for close points: measure the winner again, directly
        distance = (x - self.centred[index]).norm(dim=1)
        return Searched(distance, index, self.fallbacks - before)

    def _buffer(self, x: Tensor) -> Tensor:
        """Return room for the products of these queries with a block of the bank."""
        points = min(_POINTS, -(-len(self.centred) // _AMONG) * _AMONG)
        return x.new_empty(points * len(x) if x.device.type == "cpu" else 0)

    def _blocked(self, x: Tensor, buffer: Tensor) -> Tensor:
        """Find the index of the nearest by |y|^2 - 2 x.y, bank block by bank block; one product adds the norms, too.

        A minimum takes a tenth of its product's time, the place of it several times as long as the minimum. So minima
        of groups are taken, and a place is looked for only in the group that has the least, where that is new.
        """
        factors = torch.cat([-2 * x, x.new_ones(len(x), 1)], dim=1).T  # (C + 1, n)
        if x.device.type != "cpu":
            return (self.columns @ factors).argmin(0)
        n, m = len(x), len(self.columns)
        queries = np.arange(n)
        best = np.full(n, np.inf, dtype=np.float32)
        index = np.zeros(n, dtype=np.int64)
        for lo in range(0, m, _POINTS):
            points = self.columns[lo : lo + _POINTS]
            groups = -(-len(points) // _AMONG)
            product = buffer[: groups * _AMONG * n].view(groups, _AMONG, n)
            flat = product.view(-1, n)
            torch.mm(points, factors, out=flat[: len(points)])
            flat[len(points) :] = torch.inf  # the last group may be short
            lows: np.ndarray = product.amin(1).numpy()  # (groups, n)
            group = lows.argmin(0)  # (n,), of equals the first
            low = lows[group, queries]
            better = (low < best).nonzero()[0]  # (k,)
            among = product.numpy()[group[better], :, better]  # (k, points of a group)
            index[better] = lo + group[better] * _AMONG + among.argmin(1)
            best[better] = low[better]
        return torch.from_numpy(index)

    def _certified(self, x: Tensor, buffer: Tensor) -> tuple[Tensor, int]:
        """Find the nearest by coarse products and a bound on their error; the second value counts the fallbacks.

        x.y - x'.y' = (x - x').y' + x.(y - y'), so by Cauchy-Schwarz |x.y - x'.y'| <= |x - x'| |y'| + |x| |y - y'|.
        The bfloat16 product rounds its result once more, by at most 2^-8 of it, after accumulating in float32.
        """
        rounded = x.bfloat16()
        coarse = (rounded @ self.rounded).float()  # (n, M), x'.y'
        length = rounded.float().norm(dim=1)  # |x'|
        error = (x - rounded.float()).norm(dim=1) * self.reach + x.norm(dim=1) * self.residual
        error += length * self.reach * (2.0**-8 + 2 * rounding_bound(x.shape[1]))
        squared = torch.add(self.norms, coarse, alpha=-2)  # |y|^2 - 2 x'.y'
        least = squared.amin(1)  # no point's true value lies below its coarse one minus 2 error
        possible = squared <= (least + 4 * error)[:, None]  # (n, M)
        many = possible.sum(1) > max(8.0, _MOST_SHARE * len(self.norms))
        index = torch.zeros(len(x), dtype=torch.int64)
        if bool(many.any()):
            index[many] = self._blocked(x[many], buffer)
            possible[many] = False
        row, point = possible.nonzero(as_tuple=True)  # (pairs,)
        exact = (x[row] - self.centred[point]).square().sum(1)  # (pairs,)
        best = torch.full((len(x),), torch.inf).scatter_reduce(0, row, exact, "amin")
        winner = exact == best[row]
        lowest = torch.full((len(x),), len(self.norms)).scatter_reduce(0, row[winner], point[winner], "amin")
        return torch.where(many, index, lowest), int(many.sum())
