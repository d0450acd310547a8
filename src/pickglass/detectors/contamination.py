"""The contamination check names training images that look like none of the others, whatever method learns from them.

The frozen backbone reads the whole canvas, and each cell of an image is compared with cells of images of other
groups (:mod:`pickglass.nn.outliers`): its mean distance to the three nearest groups. An image is suspicious if a spot
of it stands out, or all of it lies far from the others. A rare but good image is named as well: whoever knows the
part has to look. And silence proves nothing: where good images differ among themselves as much as defects differ from
them (magnetic_tile), two thirds of the defects are not named.

The settings were chosen on painted defects in sets of good images (bench/contamination.py --painted). That a spot is
measured in logarithms and over several cells was found on the real defects of magnetic_tile, and confirmed on painted
ones. Memories of a random tenth (MeDS, Memory-Distilled Selection, ICML 2026) find no more. Mutual scoring (MuSc, Li et
al., ICLR 2024) finds fewer as the paper scores images, and more with the spots of this check over neighbourhoods of
three sizes; that was not confirmed on painted defects and is not used (docs/evidence.md: --compare of the bench).

Letters: N images, B of a batch, P positions, C channels, h x w cells of a level, S cells kept of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pickglass.data import Row, Table, image_digest
from pickglass.detectors.fitting import FitObserver
from pickglass.detectors.loading import FeatureLoader, LoadedBatch, silent
from pickglass.detectors.method import Method
from pickglass.errors import DataError
from pickglass.features.batch import Batch
from pickglass.nn.maps import kept_cells
from pickglass.nn.outliers import group_distances, modified_z, principal, standing_out
from pickglass.nn.search.coreset import random_projection
from pickglass.runtime.compute import Progress

__all__ = ["CleanCheck", "Cleanliness", "ImageComparison", "Suspicion", "find_suspicious"]

_NEAREST = 3  # groups; a defect that occurs two or three times still finds nobody to vouch for it
_LIMIT = 3.5  # modified z-score, Iglewicz and Hoaglin's; two thirds of the false alarms at 3 fall away
_FEWEST_IMAGES, _FEWEST_GROUPS = 8, 4
_CELLS, _MOST_CELLS = 256, 1024  # above the first a grid is halved once, above the second until it fits
_QUERIES = 64  # cells of all images for each reference: the warning of a fit is not to take as long as the fit
_WIDTH = 256  # channels a level keeps
_AXES = 64
_SHOWN = 5


class Suspicion(NamedTuple):
    """An image that looks like none of the others.

    Attributes:
        path: the path of its row.
        score: how many standard deviations it lies above the usual, more than 3.5.
        whole: whether the image as a whole is strange (another product, out of focus) rather than a spot of it.
    """

    path: str
    score: float
    whole: bool


@dataclass(frozen=True)
class Cleanliness:
    """Which of the training images look like none of the others.

    Attributes:
        suspicious: the images whose score is above 3.5, the strangest first.
        scores: the scores of all images, in the order in which they were seen; all 0 where there are fewer than 8.
        groups: how many groups were compared. Where the rows make fewer than 4, each image is a group of its own.
    """

    suspicious: tuple[Suspicion, ...]
    scores: tuple[float, ...]
    groups: int

    def message(self) -> str:
        """Return the warning for the user; empty if no image is suspicious."""
        if not self.suspicious:
            return ""
        shown = ", ".join(
            f"{s.path} ({'all of it' if s.whole else 'a spot'}, {s.score:.1f} standard deviations above the usual)"
            for s in self.suspicious[:_SHOWN]
        )
        more = f" and {len(self.suspicious) - _SHOWN} more" if len(self.suspicious) > _SHOWN else ""
        return (
            f"{len(self.suspicious)} of {len(self.scores)} training images look like none of the others: "
            f"{shown}{more}. Look at them: if they are defective, take them out or leave them out with "
            "CleanCheck(drop=True) (--drop-suspicious)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a model remembers: plain numbers and names."""
        return {
            "suspicious": [s._asdict() for s in self.suspicious],
            "n_images": len(self.scores),
            "groups": self.groups,
        }

    def without(self, table: Table) -> Table:
        """Return the rows that are not suspicious."""
        named = {s.path for s in self.suspicious}
        return table.where(lambda row: row.path not in named)


class CleanCheck(FitObserver):
    """The check watches a fit for images that look like none of the others, and names them or leaves them out.

    It looks at the images that are learned from and at those that set the threshold.

    Named images are in ``detector.provenance.suspicious``. Naming costs little, for the check looks at the features
    that the method reads anyway, if it reads any; leaving out reads all images once more before the fit.

    Args:
        drop: leave the suspicious images out of the fit.

    Attributes:
        cleanliness: the outcome; None before the fit, and where the method reads no features.

    Example:
        ``PatchCore().fit(bottle.train, observers=[CleanCheck(drop=True)])``
    """

    def __init__(self, drop: bool = False) -> None:
        self.drop = drop
        self.cleanliness: Cleanliness | None = None
        self._comparison: ImageComparison | None = None
        self._left_out: tuple[str, ...] = ()

    def prepared(self, table: Table, loader: FeatureLoader, progress: Progress) -> Table:
        """Leave out the images that look like none of the others, if so asked."""
        self.cleanliness, self._left_out = None, ()
        if not self.drop:
            self._comparison = ImageComparison(
                len(table.role("fit")) + len(table.role("calibrate")),
                references=2048,  # the warning is to cost little
            )
            return table
        self.cleanliness = find_suspicious(table, loader, progress)
        clean = self.cleanliness.without(table)
        kept = set(clean)
        self._left_out = tuple(image_digest(row)[:16] for row in table if row not in kept)
        return clean

    def taught(self, rows: Sequence[Row], batch: Batch) -> None:
        """Keep a few features of these images."""
        if self._comparison is not None and batch.levels:
            self._comparison.observe(rows, batch)

    def judged(self, loaded: LoadedBatch, scores: Tensor) -> None:
        """Keep a few features of the images for the threshold: one reject among them sets it above all rejects."""
        rows = [item.row for item in loaded.sound]
        if any(row.role == "fit" for row in rows):  # they were seen when they were learned
            return
        if self._comparison is not None and self._comparison.rows and loaded.batch is not None and loaded.batch.levels:
            self._comparison.observe(rows, loaded.batch)

    def fitted(self, method: Method) -> None:
        """Compare the images and name the suspicious ones in the model's provenance."""
        if self._comparison is not None and self._comparison.rows:
            self.cleanliness = self._comparison.finish()
        self._comparison = None
        if self.cleanliness is not None:
            known = method.provenance  # of an update: what an earlier check found stays
            suspicious = (*known.suspicious, *(s._asdict() for s in self.cleanliness.suspicious))
            left_out = (*(known.left_out or ()), *self._left_out) or None
            method.provenance = replace(known, suspicious=suspicious, left_out=left_out)


class ImageComparison:
    """A comparison keeps a few features of each image that passes by, and says at the end which are suspicious.

    Args:
        n_images: how many will pass.
        memory_gb: what may be held; many images are looked at more coarsely.
        references: number of cells of all images together that each cell is compared with.
    """

    def __init__(self, n_images: int, memory_gb: float = 1.0, references: int = 16_384) -> None:
        self.n_images = n_images
        self.memory_gb = memory_gb
        self.references = references
        self.rows: list[Row] = []
        self._cells: list[list[Tensor]] = []  # per batch and level (B, S, C)
        self._keep: list[Tensor | None] = []  # per batch (B, S)
        self._grid: tuple[int, int] | None = None

    def observe(self, rows: Sequence[Row], batch: Batch) -> None:
        """Keep a few features of the images of a batch."""
        levels = batch.levels
        if self._grid is None:
            self._grid = self._chosen(levels)
        cells = []
        for seed, level in enumerate(levels):
            pooled = F.adaptive_avg_pool2d(level.flatten(0, 1).cpu(), self._grid)  # (B P, C, gh, gw)
            flat = pooled.flatten(2).transpose(1, 2).unflatten(0, level.shape[:2]).flatten(1, 2)  # (B, S, C)
            cells.append(random_projection(flat.flatten(0, 1), _WIDTH, seed).unflatten(0, flat.shape[:2]))
        keep = kept_cells(batch.keep, self._grid)  # (B, P, gh, gw)
        self._cells.append(cells)
        self._keep.append(None if keep is None else keep.flatten(1).cpu())
        self.rows += rows

    def _chosen(self, levels: Sequence[Tensor]) -> tuple[int, int]:
        """Choose the finest grid of cells (h, w) that time and memory allow."""
        _, p, _, h, w = levels[0].shape
        width = sum(c if c < 2 * _WIDTH else _WIDTH for c in (level.shape[2] for level in levels))
        room = self.memory_gb * 1e9 / (4 * width * max(self.n_images, 1))  # cells an image may have
        most = min(_MOST_CELLS, room, _QUERIES * self.references / max(self.n_images, 1))
        if p * h * w > _CELLS:
            h, w = -(-h // 2), -(-w // 2)
        while h * w > 1 and p * h * w > most:
            h, w = -(-h // 2), -(-w // 2)
        return h, w

    def finish(self) -> Cleanliness:
        """Compare the images, and say which look like none of the others."""
        n = len(self.rows)
        names = [row.group if row.group is not None else f"image {i}" for i, row in enumerate(self.rows)]
        if len(set(names)) < _FEWEST_GROUPS:
            names = [str(i) for i in range(n)]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        if n < _FEWEST_IMAGES:
            return Cleanliness((), (0.0,) * n, len(number))
        keep = self._kept()
        cells = torch.cat([self._standardised(level, keep) for level in range(len(self._cells[0]))], dim=2)  # (N, S, C)
        groups = torch.tensor([number[name] for name in names])
        distances = group_distances(
            principal(cells, _AXES, seed=0), groups, keep, _NEAREST, seed=0, references=self.references
        )  # (N, S)
        spot, whole = (modified_z(values) for values in standing_out(distances))
        scores = torch.maximum(spot, whole).tolist()
        rated = zip(self.rows, scores, (whole > spot).tolist(), strict=True)
        found = [Suspicion(row.path, score, all_of_it) for row, score, all_of_it in rated if score > _LIMIT]
        return Cleanliness(tuple(sorted(found, key=lambda s: -s.score)), tuple(scores), len(number))

    def _kept(self) -> Tensor | None:
        """Return which cells count, (N, S) bool; None: all."""
        if all(keep is None for keep in self._keep):
            return None
        pairs = zip(self._keep, self._cells, strict=True)
        return torch.cat([torch.ones(c[0].shape[:2], dtype=torch.bool) if k is None else k for k, c in pairs])

    def _standardised(self, level: int, keep: Tensor | None) -> Tensor:
        """Divide a level of all images (N, S, C) by its overall standard deviation, so that none outweighs another."""
        cells = torch.cat([loaded[level] for loaded in self._cells])
        counted = cells.flatten(0, 1) if keep is None else cells[keep]  # (n, C)
        spread = counted.var(0, correction=0).sum().sqrt()
        return cells / spread.clamp(min=torch.finfo(torch.float32).tiny)


def find_suspicious(table: Table, loader: FeatureLoader, progress: Progress = silent) -> Cleanliness:
    """Read all images once and say which look like none of the others.

    Args:
        table: good images, whatever their roles; rows of one group are not compared with each other.
        loader: the loader of a detector; the levels of its backbone are read from the whole canvas, whatever its
            head reads.
        progress: called with (stage, done, total).

    Raises:
        DataError: images that cannot be read.
    """
    whole = copy(loader)  # the canvas in one piece, its levels as the backbone gives them
    whole.reads, whole.tiles, whole.positions, whole.fusion, whole.turn = ("features",), None, None, None, 0
    comparison = ImageComparison(len(table))
    for loaded in whole.batches(table):
        if loaded.failures or loaded.batch is None:
            raise DataError(f"{len(loaded.failures)} training images cannot be read:", loaded.failures)
        comparison.observe([item.row for item in loaded.items], loaded.batch)
        progress("looking for strange images", len(comparison.rows), len(table))
    return comparison.finish()
