"""What is told of images beside their scores and maps: plain facts and pooled features, for ``drift``; and how the map
of a tiled detector was put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pickglass.calibration.drift import Sample, image_facts
from pickglass.data import Table
from pickglass.errors import Failure
from pickglass.features.reading import Reading
from pickglass.methods.running import Progress, Reader, silent
from pickglass.methods.tiling import TileParts
from pickglass.nn.maps import kept_cells

__all__ = ["Described", "describe", "tile_parts"]


class Described(NamedTuple):
    """Images in the order given, but for the failures; ``peaks`` (n,) are the highest values of their maps."""

    sample: Sample
    peaks: list[float]
    failures: list[Failure]


def describe(
    reader: Reader,
    judge: Callable[[Reading], tuple[Tensor, Tensor]],
    table: Table,
    settings: str,
    progress: Progress = silent,
) -> Described:
    """Judge images and describe them.

    Args:
        reader: reads the rows.
        judge: a reading -> image scores (B,) and maps (B, h, w).
        table: rows.
        settings: digest of what the scores depend on.
        progress: called as images are judged.
    """
    facts, scores, peaks, features, failures = [], [], [], [], []
    groups: list[str | None] = []
    done = 0
    for batch in reader.batches(table):
        failures += [Failure(item.row.path, item.error) for item in batch.items if item.error is not None]
        if batch.reading is not None:
            values = [item.value for item in batch.sound if item.value is not None]
            facts += [image_facts(value.image, value.keep) for value in values]
            found, maps = judge(batch.reading)
            scores += found.tolist()
            peaks += maps.flatten(1).max(1).values.tolist()
            groups += [item.row.group for item in batch.sound]
            features.append(_pooled(batch.reading.levels, batch.reading.keep, len(values)))
        done += len(batch.items)
        progress("judging images", done, len(table))
    pooled = np.concatenate(features) if features else np.zeros((0, 0), np.float32)
    return Described(Sample.of(facts, scores, pooled, groups, settings), peaks, failures)


@torch.no_grad()
def _pooled(levels: Sequence[Tensor], keep: Tensor | None, n: int) -> np.ndarray:
    """(B, P, C, h, w) a level -> (n, d): the mean of each channel over the cells that count, all tiles alike.

    Tiles that share a head follow each other in its batch: B = n times as many as share one.
    """
    parts = [torch.zeros(n, 0)]
    for level in levels:
        cells = kept_cells(keep, (level.shape[3], level.shape[4]))  # (B, P, h, w)
        weights = torch.ones_like(level[:, :, 0]) if cells is None else cells.to(level.dtype)
        summed = (level * weights[:, :, None]).sum(dim=(3, 4)).reshape(n, -1, level.shape[2]).sum(dim=1)  # (n, C)
        parts.append((summed / weights.reshape(n, -1).sum(dim=1).clamp(min=1)[:, None]).cpu())
    return torch.cat(parts, dim=1).numpy()


@torch.no_grad()
def tile_parts(
    reader: Reader, score: Callable[[Reading], tuple[Tensor, Tensor]], table: Table
) -> Iterator[tuple[np.ndarray, TileParts]]:
    """How the map of each sound image is put together: its canvas (3, H, W) in [0, 1] and its parts, with B = 1.

    Args:
        reader: reads the rows in tiles.
        score: a reading -> scores (B, P) and maps (B, P, h, w) of the heads.
        table: rows; broken images are left out.
    """
    tiles = reader.tiles
    if tiles is None:
        raise RuntimeError("without tiles there are no parts")
    for batch in reader.batches(table):
        if batch.reading is None:
            continue
        keep = None if batch.reading.keep is None else tiles.unfold(batch.reading.keep)
        scores, maps = map(tiles.unfold, score(batch.reading))
        parts = tiles.parts(scores, maps, keep)
        for i, item in enumerate(batch.sound):
            if item.value is not None:
                yield item.value.image, TileParts(*(part[i : i + 1] for part in parts))
