"""A tiled ensemble has one head per tile position, one frozen backbone, and is one model.

Rolih, Ameln, Vaidya, Akcay: "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient
Tiled Ensemble", CVPR workshops 2024.

A method knows nothing of this: it sees levels (B, P, C, h, w). Here images are cut before the backbone and the maps of
the positions are joined after the head.

Where we depart, and why
- One model with a position axis instead of one model, one copy of the backbone and one pass over the data per tile.
- Overlapping maps are blended by raised cosines. ``join="average"`` is the authors' mean, and ``"seams"`` that mean
  with their Gaussian of sigma 2 pixels in a strip of a tenth of a tile around the seams.
- The image score is the mean of the highest share of the joined map, or the largest tile score where a detector has
  ``top_share=0``; ``image_score="mean"`` is the authors', which thins out a defect in one tile by the number of tiles.
- Positions may share heads: a texture looks alike everywhere, and a head per position then wastes data and space.

Letters: B images, T tile positions, P heads, m positions a head, C channels, h x w cells of a tile, H x W pixels of the
canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.data.images.tiles import Blend, Tiling, joining_matrix, seams
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.nn.maps import area_means, cells_of, kept_cells, smooth

__all__ = ["TileOptions", "TileParts", "TileSettings", "Tiles"]

_SEAM_SIGMA = 2.0  # pixels, and
_SEAM_WIDTH = 0.1  # of a tile: the authors' seam smoothing


class TileOptions(TypedDict, total=False):
    """The fields of :class:`TileSettings` that have defaults, as keyword arguments."""

    heads: Literal["position"] | int
    join: Literal["cosine", "average", "seams"]
    image_score: Literal["max", "top_k", "mean"]
    top_k: int
    normalise: Literal["joined", "position"]
    edges: Literal["shift", "pad"]
    thumbnail: bool
    at_once: int | None
    max_file_mb: float


@dataclass(frozen=True)
class TileSettings:
    """The settings of a tiling: how the canvas is cut, and how scores and maps are joined.

    Attributes:
        tile: (height, width) of a tile in pixels.
        stride: from one tile to the next, down and across.
        heads: ``"position"``, a head for each (the paper); or a number: 1 serves all tiles, k are shared by positions
            with similar features.
        join: how overlapping maps become one: ``"cosine"`` blends, ``"average"``, or ``"seams"``, the authors'.
        image_score: the ``"max"`` of the tiles' scores, the mean of the largest ``"top_k"``, or the ``"mean"``; the
            maximum gives way to the detector's ``top_share``.
        top_k: how many of them.
        normalise: ``"joined"`` takes scores and maps as they are; ``"position"`` first divides those of each position
            by the median score of the validation images there.
        edges: where the stride does not come out even, ``"shift"`` the last tile back or ``"pad"`` the canvas.
        thumbnail: also look at the whole canvas, shrunk to a tile: one more position, for large and logical defects.
        at_once: positions that are learned together; None: all, or as many as the memory budget has room for.
        max_file_mb: a fit that would make a larger model file is refused before it starts.
    """

    tile: tuple[int, int]
    stride: tuple[int, int]
    heads: Literal["position"] | int = "position"
    join: Literal["cosine", "average", "seams"] = "cosine"
    image_score: Literal["max", "top_k", "mean"] = "max"
    top_k: int = 3
    normalise: Literal["joined", "position"] = "joined"
    edges: Literal["shift", "pad"] = "shift"
    thumbnail: bool = False
    at_once: int | None = None
    max_file_mb: float = 4000.0

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "join": ("cosine", "average", "seams"),
            "image_score": ("max", "top_k", "mean"),
            "normalise": ("joined", "position"),
            "edges": ("shift", "pad"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.heads != "position" and not (isinstance(self.heads, int) and self.heads >= 1):
            raise InputError(f"heads={self.heads!r}: expected 'position' or a number of heads, e.g. 1")
        if self.top_k < 1 or (self.at_once is not None and self.at_once < 1):
            raise InputError(f"top_k={self.top_k!r}, at_once={self.at_once!r}: expected at least 1")
        if not self.max_file_mb > 0:
            raise InputError(f"max_file_mb={self.max_file_mb!r}: expected megabytes above 0, e.g. 4000")
        if self.thumbnail and self.normalise != "position":
            raise InputError("thumbnail=True compares maps of two resolutions: it needs normalise='position'")
        if self.thumbnail and self.heads != "position":
            raise InputError(f"thumbnail=True needs a head of its own, but heads={self.heads!r}: use heads='position'")

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict from which :meth:`from_json` makes equal settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TileSettings:
        """Make the settings that :meth:`to_json` described."""
        return cls(**{**data, "tile": tuple(data["tile"]), "stride": tuple(data["stride"])})


class TileParts(NamedTuple):
    """The parts show how the maps of images were put together.

    Attributes:
        scores: (B, T) of the positions, on their scales; -inf where nothing counts.
        maps: (B, T, h, w) of the positions, on their scales.
        averaged: (B, h', w') the mean where tiles overlap, before any blending or smoothing of seams.
        joined: (B, h', w') as the settings join them.
    """

    scores: Tensor
    maps: Tensor
    averaged: Tensor
    joined: Tensor


class Tiles(nn.Module):
    """The tiles of one canvas cut images, give positions their heads, and join maps and scores.

    Args:
        settings: how the canvas is cut and joined.
        canvas: (H, W) pixels of the network's input.

    ``head_of`` (T,) is the head of each position; ``scale`` (T,) what the scores and maps of a position are divided by.
    """

    def __init__(self, settings: TileSettings, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.settings = settings
        self.canvas = canvas
        self.tiling = Tiling.over(canvas, settings.tile, settings.stride, settings.edges)
        self.n = self.tiling.n + settings.thumbnail
        self.heads = self.n if settings.heads == "position" else settings.heads
        if self.heads > self.n:
            raise InputError(f"heads={self.heads} for {self.n} tiles: expected at most {self.n}, or 'position'")
        self.head_of: Tensor
        self.scale: Tensor
        self.register_buffer("head_of", torch.arange(self.n) % self.heads)
        self.register_buffer("scale", torch.ones(self.n))
        self._matrices: dict[tuple[int, int, str, str], tuple[Tensor, Tensor]] = {}

    # -- before the head -----------------------------------------------------------------------------------------------

    def cut(self, images: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """Cut a canvas (B, c, H, W) into the tiles of these positions, all by default: (B, T, c, h, w)."""
        boxes = self.tiling.boxes
        wanted = range(self.n) if positions is None else positions
        tiles = []
        for p in wanted:
            if p == len(boxes):  # the thumbnail
                tiles.append(area_means(images, self.settings.tile))
                continue
            x, y, w, h = boxes[p]
            tile = images[:, :, y : y + h, x : x + w]
            below, right = h - tile.shape[2], w - tile.shape[3]  # what lies beyond the canvas: its edge pixels
            if below:
                tile = torch.cat([tile, tile[:, :, -1:].expand(-1, -1, below, -1)], dim=2)
            if right:
                tile = torch.cat([tile, tile[:, :, :, -1:].expand(-1, -1, -1, right)], dim=3)
            tiles.append(tile)
        return torch.stack(tiles, dim=1)

    def cut_keep(
        self, keep: Tensor | None, batch: int, device: torch.device, positions: Sequence[int] | None = None
    ) -> Tensor | None:
        """Cut what counts, (B, H, W) bool, into tiles (B, T, h, w); None: everything counts."""
        padded = self.tiling.extent != self.canvas
        if keep is None and not padded:
            return None
        if keep is None:
            keep = torch.ones(1, 1, 1, dtype=torch.bool, device=device).expand(batch, *self.canvas)
        parts = []
        for p in range(self.n) if positions is None else positions:
            if p == self.tiling.n:
                small = area_means(keep[:, None].float(), self.settings.tile)[:, 0]
                parts.append(small >= 0.5)
                continue
            x, y, w, h = self.tiling.boxes[p]
            part = keep[:, y : y + h, x : x + w]
            parts.append(F.pad(part, (0, w - part.shape[2], 0, h - part.shape[1])))  # what is padded does not count
        return torch.stack(parts, dim=1)

    def fold(self, batch: Batch) -> Batch:
        """Give positions (B, T, ...) to heads (B m, P, ...); those that share a head follow each other in its batch."""
        if self.heads == self.n:
            return batch
        table, real = self._members()
        places = table.flatten()  # (P m,)

        def folded(x: Tensor) -> Tensor:
            split = x[:, places].unflatten(1, tuple(table.shape))  # (B, P, m, ...)
            heads: Tensor = split.transpose(1, 2).flatten(0, 1)  # (B m, P, ...)
            return heads

        keep = None if batch.keep is None else folded(batch.keep)
        if not bool(real.all()):  # heads with fewer positions see some again, which then do not count
            size = self.settings.tile if batch.images is None else cells_of(batch.images)
            b = batch.levels[0].shape[0] if batch.levels else batch.images.shape[0]  # type: ignore[union-attr]
            once = real.T.repeat(b, 1)[..., None, None].expand(-1, -1, *size)  # (B m, P, h, w)
            keep = once if keep is None else keep & once
        images = None if batch.images is None else folded(batch.images)
        return Batch(tuple(folded(level) for level in batch.levels), images, keep)

    def unfold(self, values: Tensor) -> Tensor:
        """Bring what heads give, (B m, P, ...), back to positions (B, T, ...)."""
        if self.heads == self.n:
            return values
        table, real = self._members()
        m = self.per_head
        split = values.unflatten(0, (-1, m)).transpose(1, 2).flatten(1, 2)  # (B, P m, ...)
        places, own = table.flatten().tolist(), real.flatten().tolist()
        at = {p: i for i, (p, is_own) in enumerate(zip(places, own, strict=True)) if is_own}
        unfolded: Tensor = split[:, torch.tensor([at[p] for p in range(self.n)], device=values.device)]
        return unfolded

    def _members(self) -> tuple[Tensor, Tensor]:
        """Return the positions of each head, (P, m), and which of them are not mere filling, (P, m) bool."""
        heads, device = self.head_of.tolist(), self.head_of.device
        own = [[p for p, head in enumerate(heads) if head == wanted] for wanted in range(self.heads)]
        m = max(map(len, own))
        table = torch.tensor([o + o[-1:] * (m - len(o)) for o in own], device=device)
        return table, torch.tensor([[i < len(o) for i in range(m)] for o in own], device=device)

    def seat_of(self, tile: int) -> tuple[int, int]:
        """Return the place of a tile among those that share its head, and that head."""
        head = int(self.head_of[tile])
        return self._members()[0][head].tolist().index(tile), head

    def tile_of(self, head: int, member: int) -> int:
        """Return the position that a head sees in this place among those that share it."""
        return int(self._members()[0][head, member])

    @property
    def per_head(self) -> int:
        """The largest number m of positions that share a head."""
        heads = self.head_of.tolist()
        return max(map(heads.count, heads))

    def assign(self, described: np.ndarray, seed: int) -> None:
        """Share the heads among the positions by how similar they look: (T, d) mean features -> ``head_of``."""
        if self.heads in (1, self.n):
            return
        from scipy.cluster.vq import kmeans2

        _, labels = kmeans2(described.astype(np.float64), self.heads, minit="++", seed=np.random.default_rng(seed))
        for head in range(self.heads):  # k-means may leave a head without positions
            if not (labels == head).any():
                labels[np.argmax(np.bincount(labels, minlength=self.heads)[labels])] = head
        self.head_of = torch.from_numpy(labels.astype(np.int64)).to(self.head_of.device)

    # -- after the head ------------------------------------------------------------------------------------------------

    def joined(self, scores: Tensor, maps: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Join scores (B, T) and maps (B, T, h, w) of the positions to scores (B,) and maps (B, h', w') of the images.

        Args:
            scores, maps: of the positions.
            keep: (B, T, H, W) bool, what counts in each tile.

        Returns:
            Scores, maps, and which cells of the maps count, (B, h', w') bool; None: all.
        """
        cells = kept_cells(keep, cells_of(maps))
        scores, maps = self._scaled(scores, maps, cells)
        whole = self._join(maps[:, : self.tiling.n])
        if self.settings.thumbnail:
            thumb = F.interpolate(maps[:, -1:], size=cells_of(whole), mode="bilinear", align_corners=False)[:, 0]
            whole = torch.maximum(whole, thumb)
        inside: Tensor | None = None
        if cells is not None:
            inside = self._join(cells[:, : self.tiling.n].to(whole)) >= 0.5  # (B, h', w')
            lowest = whole.masked_fill(~inside, torch.inf).flatten(1).min(1).values[:, None, None]
            whole = torch.where(inside, whole, lowest)
        return self._image_score(scores), whole, inside

    def parts(self, scores: Tensor, maps: Tensor, keep: Tensor | None) -> TileParts:
        """Join maps as :meth:`joined` does, and return the steps on the way, for pictures."""
        cells = kept_cells(keep, cells_of(maps))
        whole = self.joined(scores, maps, keep)[1]
        scores, maps = self._scaled(scores, maps, cells)
        return TileParts(scores, maps, self._blended(maps[:, : self.tiling.n], "average"), whole)

    def _scaled(self, scores: Tensor, maps: Tensor, cells: Tensor | None) -> tuple[Tensor, Tensor]:
        """Bring scores (B, T) and maps to their positions' scales; a tile in which no cell counts has score -inf."""
        if cells is not None:
            scores = scores.masked_fill(~cells.flatten(2).any(2), -torch.inf)
        if self.settings.normalise == "position":
            return scores / self.scale, maps / self.scale[:, None, None]
        return scores, maps

    def _image_score(self, scores: Tensor) -> Tensor:
        if self.settings.image_score == "max":
            return scores.max(1).values
        counting = scores > -torch.inf
        if self.settings.image_score == "top_k":
            scores = scores.topk(min(self.settings.top_k, self.n), dim=1).values
            counting = scores > -torch.inf
        return scores.masked_fill(~counting, 0).sum(1) / counting.sum(1).clamp(min=1)

    def _join(self, maps: Tensor) -> Tensor:
        """Join maps (B, T, h, w) to (B, h', w') as the settings say."""
        joined = self._blended(maps, "cosine" if self.settings.join == "cosine" else "average")
        if self.settings.join != "seams" or self.tiling.n == 1:
            return joined
        return self._over_seams(joined)

    def _blended(self, maps: Tensor, blend: Blend) -> Tensor:
        """Blend maps (B, T, h, w) to (B, h', w'): across, then down, each one product."""
        rows, columns = len(self.tiling.tops), len(self.tiling.lefts)
        down, across = self._joining(cells_of(maps), blend, maps)
        grid = maps.unflatten(1, (rows, columns)).permute(0, 1, 3, 2, 4).flatten(3)  # (B, rows, h, columns w)
        lines = grid @ across  # (B, rows, h, w')
        joined: Tensor = (lines.flatten(1, 2).transpose(1, 2) @ down).transpose(1, 2)  # (B, h', w')
        return joined

    def _joining(self, cells: tuple[int, int], blend: Blend, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (*cells, blend, str(like.device))
        if key not in self._matrices:
            tiling = self.tiling
            # over the canvas alone: of what was padded beyond it nothing is joined
            pair = (
                joining_matrix(tiling.tops, tiling.tile[0], self.canvas[0], cells[0], blend),
                joining_matrix(tiling.lefts, tiling.tile[1], self.canvas[1], cells[1], blend),
            )
            self._matrices[key] = tuple(torch.from_numpy(m).to(like) for m in pair)  # type: ignore[assignment]
        return self._matrices[key]

    def _over_seams(self, joined: Tensor) -> Tensor:
        """Smooth the seams as the authors do, on the grid of the map."""
        tiling, (h, w) = self.tiling, cells_of(joined)
        sigma = [_SEAM_SIGMA * n / side for n, side in zip((h, w), self.canvas, strict=True)]
        near = [
            torch.from_numpy(seams(starts, tile, length, n, _SEAM_WIDTH * tile)).to(joined.device)
            for starts, tile, length, n in (
                (tiling.tops, tiling.tile[0], self.canvas[0], h),
                (tiling.lefts, tiling.tile[1], self.canvas[1], w),
            )
        ]
        return torch.where(near[0][:, None] | near[1], smooth(joined, sigma), joined)
