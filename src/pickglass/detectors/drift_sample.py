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
from pickglass.detectors.compute import Progress, silent
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.tiling import TileParts
from pickglass.errors import Failure
from pickglass.features.batch import Batch
from pickglass.nn.maps import kept_cells

__all__ = ["Described", "describe", "tile_parts"]


class Described(NamedTuple):
    """Images in the order given, but for the failures; ``peaks`` (n,) are the highest values of their maps."""

    sample: Sample
    peaks: list[float]
    failures: list[Failure]


def describe(
    loader: FeatureLoader,
    judge: Callable[[Batch], tuple[Tensor, Tensor]],
    table: Table,
    settings: str,
    progress: Progress = silent,
) -> Described:
    """Judge images and describe them.

    Args:
        loader: reads the rows.
        judge: a reading -> image scores (B,) and maps (B, h, w).
        table: rows.
        settings: digest of what the scores depend on.
        progress: called as images are judged.
    """
    facts, scores, peaks, features, failures = [], [], [], [], []
    groups: list[str | None] = []
    done = 0
    for loaded in loader.batches(table):
        failures += [Failure(item.row.path, item.error) for item in loaded.items if item.error is not None]
        if loaded.batch is not None:
            values = [item.value for item in loaded.sound if item.value is not None]
            facts += [image_facts(value.image, value.keep) for value in values]
            found, maps = judge(loaded.batch)
            scores += found.tolist()
            peaks += maps.flatten(1).max(1).values.tolist()
            groups += [item.row.group for item in loaded.sound]
            features.append(_pooled(loaded.batch.levels, loaded.batch.keep, len(values)))
        done += len(loaded.items)
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
    loader: FeatureLoader, score: Callable[[Batch], tuple[Tensor, Tensor]], table: Table
) -> Iterator[tuple[np.ndarray, TileParts]]:
    """How the map of each sound image is put together: its canvas (3, H, W) in [0, 1] and its parts, with B = 1.

    Args:
        loader: reads the rows in tiles.
        score: a reading -> scores (B, P) and maps (B, P, h, w) of the heads.
        table: rows; broken images are left out.
    """
    tiles = loader.tiles
    if tiles is None:
        raise RuntimeError("without tiles there are no parts")
    for loaded in loader.batches(table):
        if loaded.batch is None:
            continue
        keep = None if loaded.batch.keep is None else tiles.unfold(loaded.batch.keep)
        scores, maps = map(tiles.unfold, score(loaded.batch))
        parts = tiles.parts(scores, maps, keep)
        for i, item in enumerate(loaded.sound):
            if item.value is not None:
                yield item.value.image, TileParts(*(part[i : i + 1] for part in parts))
