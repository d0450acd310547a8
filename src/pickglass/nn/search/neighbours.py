"""Nearest neighbours in a bank are found exactly: in float32, or by a scan in bfloat16 and a look.

The scan computes bounds of all squared distances in bfloat16, along the few directions in which the bank mostly
spreads, keeps the least of each group of bank points, and knows by how much it can be wrong. The look measures, in
float32, the groups that can hold the nearest point, and no others. So the distance is the same as in float32 alone.
Where too many groups are possible, the query is searched in float32; the search says how many these were.

Letters: N queries, M bank points, C dimensions, G groups of bank points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pickglass.nn.maps import exact_float32, has_amx, has_fast_bfloat16, rounding_bound

__all__ = ["NORM_PARTS", "BankIndex", "Searched", "nearest_of_each", "nearest_of_two_owners", "nearest_plain"]

NORM_PARTS = 3
"""Rows of an exported bank that hold the points' norms, last of all."""

_QUERIES = 512  # of one block ...
_POINTS = 1024  # ... times bank points, which a core keeps near itself, in groups ...
_AMONG = 32  # ... of so many
_TILE = 16  # channels of a scan come in multiples of so many
_MAIN_SHARE = 0.9  # of the variance, which the directions of a scan hold
_SAMPLE, _TURNS = 1024, 3  # points, and steps of the power method, that find the direction in which a group is halved
_LOWS = 2**22  # values that a scan keeps: one for each group and query
_FETCHED = 2**19  # floats of points and queries that are fetched together
_PRODUCTS = 2**26  # of all banks at once
_GROUP = 64  # bank points of which an exported graph first finds the minimum alone
_LARGE = 1500  # bank points from which a scan in bfloat16 saves more than a look costs
_PATIENCE, _MOST_FALLBACKS = 10_000, 0.1
# so many possible groups of a query, and such a share of all groups, beyond which float32 is the cheaper way
_FEW, _MOST_SHARE = 8, 0.25


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

    On a CPU that multiplies bfloat16 a search scans and looks (see above); on others it takes the products in float32,
    block by block. On a GPU one product in float32 gives all distances at once.

    Args:
        bank: (M, C) float32, CPU or GPU.
        source: what the bank was taken from, so that the owner can tell whether this index is still current.
        bfloat16: scan in bfloat16; None: where the CPU multiplies it natively and the bank is large enough (1,500
            points) for a look to cost less than the scan saves. Given up for float32 once more than a tenth of at least
            10,000 queries fell back.
    """

    def __init__(self, bank: Tensor, source: Tensor | None = None, bfloat16: bool | None = None) -> None:
        self.bank = bank.float()
        self.source = source
        self.queries = self.fallbacks = 0
        self.middle = self.bank.mean(0)
        self.centred = self.bank - self.middle  # (M, C); distances stay, products cancel less
        on_cpu, large = bank.device.type == "cpu", len(bank) >= _LARGE
        scans = (on_cpu and large and has_fast_bfloat16()) if bfloat16 is None else bfloat16
        # a scan rules out groups, the more of them the closer their points lie together
        self._group(_close_together(self.centred) if scans else torch.arange(len(bank), device=bank.device))
        with exact_float32():
            self.scan = _Scan(self.grouped[..., :-1].flatten(0, 1)) if scans else None

    def _group(self, order: Tensor) -> None:
        """Put the points into groups in this order (M,)."""
        groups = -(-len(order) // _AMONG)
        place = torch.arange(groups * _AMONG, device=order.device).clamp(max=len(order) - 1)  # the last point fills up
        self.order = order.index_select(0, place)  # (G g,), the point at each place
        points = self.centred.index_select(0, self.order)
        columns = torch.cat([points, points.square().sum(1, keepdim=True)], dim=1)  # (G g, C + 1)
        self.grouped = columns.unflatten(0, (groups, _AMONG))  # (G, g, C + 1)

    def distances(self, queries: Tensor) -> Tensor:
        """Measure the distance (N,) of the (N, C) queries to their nearest bank points."""
        return self.search(queries).distances

    def search(self, queries: Tensor) -> Searched:
        """Find the nearest bank point of each query (N, C).

        Of equal computed values the lowest index counts, but for queries that fell back, where any of them may.
        """
        x = queries.float() - self.middle
        before = self.fallbacks
        with exact_float32():
            index = self._multiplied(x) if self.scan is None else self._scanned(x, self.scan)
        # expanded squares cancel for close points: the winner is measured directly
        distance = (x - self.centred.index_select(0, index)).norm(dim=1)
        return Searched(distance, index, self.fallbacks - before)

    def _multiplied(self, x: Tensor) -> Tensor:
        """Find the index of the nearest by |y|^2 - 2 x.y, bank block by bank block; one product adds the norms, too.

        A minimum takes a tenth of its product's time, the place of it several times as long as the minimum. So minima
        of groups are taken, and a place is looked for only in the group that has the least, where that is new.
        """
        columns = self.grouped.flatten(0, 1)  # (G g, C + 1)
        room = x.new_empty(0 if x.device.type != "cpu" else min(_POINTS, len(columns)) * min(_QUERIES, len(x)))
        index = torch.empty(len(x), dtype=torch.int64, device=x.device)
        for lo in range(0, len(x), _QUERIES):
            block = x[lo : lo + _QUERIES]
            factors = torch.cat([-2 * block, block.new_ones(len(block), 1)], dim=1).T  # (C + 1, n)
            if x.device.type == "cpu":
                index[lo : lo + _QUERIES] = torch.from_numpy(_in_blocks(columns, factors, room))
            else:
                index[lo : lo + _QUERIES] = (columns @ factors).argmin(0)
        return self.order.index_select(0, index)

    def _scanned(self, x: Tensor, scan: _Scan) -> Tensor:
        """Find the index of the nearest by a scan and two looks, as many queries at a time as there is room for.

        The first look is at the groups with the least value of the scan. How far away the nearest is there says which
        others can hold a nearer one: these are the second look.
        """
        index = torch.zeros(len(x), dtype=torch.int64)
        at_once = max(_QUERIES, _LOWS // len(self.grouped))
        room = scan.room(min(at_once, len(x)))
        for lo in range(0, len(x), at_once):
            part = x[lo : lo + at_once]
            scanned = scan.lows(part, room)
            lows = scanned.lows.numpy()  # (G, n)
            least: np.ndarray = scanned.lows.amin(0).numpy()  # (n,)
            distance, nearest = self._look(part, *np.divmod(np.flatnonzero(lows == least), len(part)))
            possible: np.ndarray = lows <= scan.limits(scanned, distance).numpy()
            possible &= lows > least
            if np.count_nonzero(possible) > _FEW * len(part):
                many = np.add.reduce(possible, axis=0, dtype=np.int32) > max(_FEW, _MOST_SHARE * len(possible))
                possible[:, many] = False
                (fallen,) = torch.from_numpy(many).nonzero(as_tuple=True)
                nearest[fallen] = self._multiplied(part[fallen])
                distance[fallen] = 0
                self.fallbacks += len(fallen)
            further, other = self._look(part, *np.divmod(np.flatnonzero(possible), len(part)))
            better = (further < distance) | ((further == distance) & (other < nearest))
            nearest = torch.where(better, other, nearest)
            index[lo : lo + at_once] = nearest.clamp_(max=len(self.centred) - 1)
        self.queries += len(x)
        if self.queries >= _PATIENCE and self.fallbacks >= _MOST_FALLBACKS * self.queries:
            self.scan = None
            self._group(torch.arange(len(self.centred)))
        return index

    def _look(self, x: Tensor, group: np.ndarray, query: np.ndarray) -> tuple[Tensor, Tensor]:
        """Measure pairs of a group and a query (n, C), ordered by group, in float32.

        Queries of one group are measured together, T at a time, by a product; so a group's points are fetched once for
        T queries. The nearest of each group is measured directly before groups are compared.

        Returns:
            The distance (n,) of the nearest and its index (n,). A query without any pair, or without numbers, has an
            infinite distance and an index beyond the bank.
        """
        counts = np.bincount(group, minlength=len(self.grouped))
        t = int(np.clip(2 ** np.round(np.log2(max(1.0, counts.sum() / max(1, np.count_nonzero(counts))))), 8, 64))
        blocks = -(-counts // t)  # (G,) blocks of T queries; the last of a group is filled up
        rank = np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
        slot = torch.from_numpy((np.cumsum(blocks) - blocks)[group] * t + rank)
        own = torch.from_numpy(np.repeat(np.arange(len(counts)), blocks))  # (blocks,) the group of each
        asked = torch.from_numpy(query)
        filled = torch.zeros(len(own) * t, dtype=torch.int64)
        filled[slot] = asked
        distances, indices = x.new_empty(len(filled)), torch.empty_like(filled)
        c = x.shape[1]
        step = max(1, _FETCHED // ((_AMONG + t) * c))
        for lo in range(0, len(own), step):
            groups, slots = own[lo : lo + step], slice(lo * t, (lo + step) * t)
            vectors = x.index_select(0, filled[slots])  # (k T, C)
            points = self.grouped.index_select(0, groups)  # (k, g, C + 1)
            products = torch.baddbmm(
                points[:, None, :, c], vectors.unflatten(0, (-1, t)), points[..., :c].transpose(1, 2), alpha=-2
            )  # (k, T, g), |y|^2 - 2 x.y
            place = (groups[:, None] * _AMONG + products.argmin(2)).flatten()
            nearest = self.order.index_select(0, place)
            distances[slots] = vectors.sub_(self.centred.index_select(0, nearest)).norm(dim=1)
            indices[slots] = nearest
        distance, point = distances[slot], indices[slot]  # (pairs,)
        best = x.new_full((len(x),), torch.inf).scatter_reduce(0, asked, distance, "amin")
        winner = distance == best[asked]
        beyond = torch.full((len(x),), len(self.centred))
        return best, beyond.scatter_reduce(0, asked[winner], point[winner], "amin")


def _in_blocks(columns: Tensor, factors: Tensor, room: Tensor) -> np.ndarray:
    """Find which row (M, C) of ``columns`` has the least product with each of the factors (C, n): (n,)."""
    n = factors.shape[1]
    queries = np.arange(n)
    best = np.full(n, np.inf, dtype=np.float32)
    index = np.zeros(n, dtype=np.int64)
    for lo in range(0, len(columns), _POINTS):
        points = columns[lo : lo + _POINTS]
        product = room[: len(points) * n].view(-1, _AMONG, n)  # (groups, g, n)
        torch.mm(points, factors, out=product.view(-1, n))
        lows: np.ndarray = product.amin(1).numpy()  # (groups, n)
        group = lows.argmin(0)  # (n,), of equals the first
        low = lows[group, queries]
        better = (low < best).nonzero()[0]  # (k,)
        among = product.numpy()[group[better], :, better]  # (k, g)
        index[better] = lo + group[better] * _AMONG + among.argmin(1)
        best[better] = low[better]
    return index


def _close_together(points: Tensor) -> Tensor:
    """Order points (M, C) so that each group in turn lies close together: (M,) indices, rising within a group.

    The points are halved along the direction in which they spread most, again and again.
    """
    waiting, done = [torch.arange(len(points))], []
    while waiting:
        own = waiting.pop()
        if len(own) <= _AMONG:
            done.append(own.sort().values)
            continue
        part = points.index_select(0, own)
        some = part[:: max(1, len(own) // _SAMPLE)]
        some = some - some.mean(0)
        direction = some[some.square().sum(1).argmax()]
        for _ in range(_TURNS):
            direction = F.normalize(some.T @ (some @ direction), dim=0)
        own = own.index_select(0, (part @ direction).argsort(stable=True))
        half = -(-len(own) // (2 * _AMONG)) * _AMONG
        waiting += [own[half:], own[:half]]  # the first half is next
    return torch.cat(done)


def _main_directions(points: Tensor) -> Tensor | None:
    """Find the directions (C, k) in which points (M, C) around 0 mostly spread; None: a scan is not to use them.

    They hold nine tenths of the variance, and as many more as a scan multiplies along for nothing. They are of use
    where a scan of them has at most two thirds of the products, and where products are most of what it costs. With AMX
    they are a small part, and the further looks would not be paid for (an estimate: it was not measured there).
    """
    if has_amx():
        return None
    channels = points.shape[1]
    exact = points.double()
    variances, directions = torch.linalg.eigh(exact.T @ exact)  # rising
    shares = variances.flip(0).clamp(min=0).cumsum(0) / variances.clamp(min=0).sum()
    needed = int((shares < _MAIN_SHARE).sum()) + 1
    width = _width(needed + 1)
    if 3 * width > 2 * _width(channels):
        return None
    main: Tensor = directions.flip(1)[:, : width - 1 - 2 * NORM_PARTS].float().contiguous()
    return main


def _width(channels: int) -> int:
    """Return how many channels a scan of so many multiplies along, with the parts of the norms."""
    return -(-(channels + 2 * NORM_PARTS) // _TILE) * _TILE


class _Room(NamedTuple):
    """Memory that the parts of a scan use one after the other, for memory that is touched first costs time.

    Attributes:
        lows: (G n,) int16, what the scan keeps.
        products: a block of products, bfloat16.
        columns: (n, K) bfloat16, queries as the bank's rows are multiplied by them.
    """

    lows: Tensor
    products: Tensor
    columns: Tensor


class _Scanned(NamedTuple):
    """What a scan says of n queries.

    Attributes:
        lows: (G, n) the least value of each group, bfloat16 read as integers of 16 bits, which lie in the same order,
            for no value is below zero.
        slacks: (n,) by how much the sums are off.
        errors: (n,) how far queries and points lie from what was multiplied.
    """

    lows: Tensor
    slacks: Tensor
    errors: Tensor


class _Scan:
    """A scan computes bounds of all squared distances in bfloat16, and says which groups can hold a nearer point.

    **Fewer channels.** Where few directions V (C, k) hold most of the points' variance, a vector x is scanned as
    f(x) = (V^T x, |x - V V^T x|), which has k + 1 channels: |f(x) - f(y)|^2 <= (1 + eta) |x - y|^2, with eta the length
    of V^T V - 1, for lengths differ by no more than what is left over of x - y. So f never says that a point is farther
    away than it is, and what it leaves out costs a look, no mistake. Where it would save little, f(x) is x.

    **Rounding.** f(x) and f(y) are rounded to x' and y'; one product of (x', 1, |x'|^2) and (-2 y', |y'|^2, 1) gives
    their squared distance D. It cancels before it is rounded, for products are summed in float32, and norms are written
    in three parts that bfloat16 holds exactly. The sum is off by at most ``slack``, a bound on the sum of so many
    products (Higham 2002) times (|x'| + |y'|)^2; this is added to it, so that no value is below zero. Then the value v
    is rounded, by at most u of it: D lies between (1 - u) v - 2 slack and (1 + u) v. By the triangle inequality
    |f(x) - f(y)| lies within e = |f(x) - x'| + max |f(y) - y'| of D's root. So only a point with
    (1 - u) v <= (sqrt(1 + eta) d + e)^2 + 2 slack can be as near as d.

    Args:
        points: (G g, C) float32, of a centred bank, group by group.
    """

    def __init__(self, points: Tensor) -> None:
        self.directions = _main_directions(points)
        # d, to which points are compared, is the length of a difference in float32
        self.stretch, self.drift = 1 + 2 * rounding_bound(points.shape[1]), 0.0
        reduced = points
        if self.directions is not None:
            exact = self.directions.double()
            self.stretch += float((exact.T @ exact - torch.eye(exact.shape[1], dtype=exact.dtype)).norm())
            # products with V and V^T, then the length of what is left over: each off by its bound times |x|
            self.drift = 4 * rounding_bound(points.shape[1]) * (1 + float(exact.norm()))
            reduced = self._reduced(points)
        lengths = points.norm(dim=1)
        rounded = reduced.bfloat16().float()
        norms = rounded.square().sum(1, keepdim=True)
        self.channels = reduced.shape[1]
        width = _width(self.channels)
        ones = torch.ones(len(points), NORM_PARTS)
        nothing = torch.zeros(len(points), width - self.channels - 2 * NORM_PARTS)
        rows = torch.cat([-2 * rounded, *_parts(norms), ones, nothing], dim=1).bfloat16()  # (G g, K)
        self.blocks = rows.split(_POINTS)
        self.groups = len(points) // _AMONG
        self.reach = float(norms.max().sqrt())  # max |y'|
        self.residual = float(((reduced - rounded).norm(dim=1) + self.drift * lengths).max())  # max |f(y) - y'|
        self.rounding = torch.finfo(torch.bfloat16).eps
        self.bound = 2 * rounding_bound(width)  # norms are sums, too

    def _reduced(self, x: Tensor) -> Tensor:
        """Compute f(x) of vectors (n, C): (n, k + 1)."""
        if self.directions is None:
            return x
        along = x @ self.directions  # (n, k)
        left = torch.addmm(x, along, self.directions.T, alpha=-1).norm(dim=1, keepdim=True)
        return torch.cat([along, left], dim=1)

    def room(self, queries: int) -> _Room:
        """Reserve memory for a scan of so many queries."""
        n = min(_QUERIES, queries)
        columns = torch.zeros(n, self.blocks[0].shape[1], dtype=torch.bfloat16)
        columns[:, self.channels : self.channels + NORM_PARTS] = 1
        products = torch.empty(len(self.blocks[0]) * n, dtype=torch.bfloat16)
        return _Room(torch.empty(self.groups * queries, dtype=torch.int16), products, columns)

    def lows(self, x: Tensor, room: _Room) -> _Scanned:
        """Scan queries (n, C)."""
        lows = room.lows[: self.groups * len(x)].view(self.groups, len(x))
        slacks, errors = torch.empty(len(x)), torch.empty(len(x))
        blocks: list[tuple[Tensor, Tensor, Tensor]] = []  # bank points, their products, and these in groups
        for lo, part in zip(range(0, len(x), _QUERIES), x.split(_QUERIES), strict=True):
            n = len(part)
            if not blocks or blocks[0][1].shape[1] != n:
                products = [room.products[: len(points) * n].view(len(points), n) for points in self.blocks]
                grouped = [product.view(torch.int16).unflatten(0, (-1, _AMONG)) for product in products]
                blocks = list(zip(self.blocks, products, grouped, strict=True))
            slacks[lo : lo + n], errors[lo : lo + n] = self._prepare(part, room.columns)
            factors, own = room.columns[:n].T, lows[:, lo : lo + n].split(_POINTS // _AMONG)
            for (points, product, values), low in zip(blocks, own, strict=True):
                torch.mm(points, factors, out=product)
                torch.amin(values, 1, out=low)
        return _Scanned(lows, slacks, errors)

    def limits(self, scanned: _Scanned, distance: Tensor) -> Tensor:
        """Say up to which value (n,) a group may hold a point as near as this distance (n,), read as the lows are."""
        radius = distance * self.stretch**0.5 + scanned.errors
        # one part in 100,000 is more than these few steps are off by
        limits = (radius.square() + 2 * scanned.slacks) * ((1 + 1e-5) / (1 - self.rounding))
        cut_off: Tensor = (limits.view(torch.int32) >> 16).short()  # to bfloat16
        return cut_off

    def _prepare(self, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Write queries (n, C) into the columns; return the slack and the error e of each, (n,)."""
        reduced = self._reduced(x)
        columns = columns[: len(x)]
        own = columns[:, : self.channels]
        own.copy_(reduced)
        rounded = own.float()
        errors = (reduced - rounded).norm(dim=1) + self.residual
        if self.drift:
            errors += self.drift * x.norm(dim=1)
        norms = rounded.square_().sum(1, keepdim=True)
        slack = self.bound * (norms.sqrt() + self.reach).square()
        first = self.channels + NORM_PARTS
        columns[:, first : first + NORM_PARTS] = torch.cat(_parts(norms + slack), dim=1)
        return slack[:, 0], errors
