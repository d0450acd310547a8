"""The region labelling that AUPRO and the boxes rest on, against a flood fill done literally."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pickglass.metrics.labelling import connected_regions
from pickglass.result import find_defects


def flood(mask: np.ndarray, connectivity: int) -> list[set[tuple[int, int]]]:
    """Regions as sets of pixels, one pixel after the other."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if abs(y) + abs(x) in (1, 2 if connectivity == 8 else 1)]
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            edge += near
        regions.append(region)
    return regions


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    rough = [rng.random(rng.integers(1, 9, 2)) > rng.random() for _ in range(200)]
    fields = [gaussian_filter(rng.normal(size=rng.integers(2, 200, 2)), rng.uniform(0.5, 4)) > 0 for _ in range(30)]
    return rough + fields


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.slow
def test_regions_are_those_of_a_flood_fill(connectivity: Literal[4, 8]) -> None:
    for mask in masks():
        labels, areas = connected_regions(mask, connectivity)
        ours = [{(int(y), int(x)) for y, x in np.argwhere(labels == i + 1)} for i in range(len(areas))]
        assert sorted(map(sorted, ours)) == sorted(map(sorted, flood(mask, connectivity)))
        assert areas.tolist() == [len(region) for region in ours]
        assert not labels[~mask].any()


def test_no_region_and_nothing_but_region() -> None:
    assert connected_regions(np.zeros((3, 4), bool))[1].tolist() == []
    assert connected_regions(np.ones((3, 4), bool))[1].tolist() == [12]


def test_boxes_of_every_region() -> None:
    for mask in masks():
        found = find_defects(mask.astype(np.float32), 0.5)
        boxes = []
        for region in flood(mask, 8):
            (top, left), (bottom, right) = np.min(list(region), axis=0), np.max(list(region), axis=0)
            boxes.append(([int(left), int(top), int(right - left + 1), int(bottom - top + 1)], len(region)))
        assert sorted((d.box, d.area) for d in found) == sorted(boxes)
