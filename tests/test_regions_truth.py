"""The region labelling that AUPRO and the boxes rest on, against a flood fill done literally and against SciPy's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from scipy.ndimage import find_objects, gaussian_filter, generate_binary_structure, label, maximum

from pickglass.metrics.labelling import connected_regions, connected_runs
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
    rough = [rng.random(rng.integers(1, 9, 2)) > rng.random() for _ in range(100)]
    fields = [gaussian_filter(rng.normal(size=rng.integers(2, 200, 2)), rng.uniform(0.5, 4)) > 0 for _ in range(12)]
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


def spiral(side: int) -> np.ndarray:
    """One line, a pixel wide, that winds from the corner to the middle."""
    mask = np.zeros((side, side), bool)
    top, left, bottom, right = 0, 0, side - 1, side - 1
    while top <= bottom and left <= right:
        mask[top, max(left - 1, 0) : right + 1] = mask[top : bottom + 1, right] = mask[bottom, left : right + 1] = True
        mask[top + 2 : bottom + 1, left] = True
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    return mask


def every_kind() -> Iterator[np.ndarray]:
    codes = np.arange(2**12).reshape(64, 64)
    each = np.stack([codes >> i & 1 for i in range(12)], axis=-1).reshape(64, 64, 3, 4).astype(bool)
    yield np.pad(each, ((0, 0), (0, 0), (0, 1), (0, 1))).transpose(0, 2, 1, 3).reshape(256, 320)  # all of 3 x 4
    for height, width in ((1, 6), (6, 1), (2, 3)):
        for code in range(2 ** (height * width)):
            yield np.array([code >> i & 1 for i in range(height * width)], bool).reshape(height, width)
    for shape in ((0, 0), (0, 5), (5, 0), (1, 1)):
        yield np.ones(shape, bool)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.02, 0.1, 0.3, 0.4, 0.5, 0.6, 0.9, 1.0):
        yield rng.random((120, 250)) < share
        yield (rng.random((250, 120)) < share).T  # not in the order of memory
        yield (rng.random((160, 160)) < share)[::-2, ::3]
    for sigma in (1, 3, 9):
        yield gaussian_filter(rng.normal(size=(200, 300)), sigma) > 0
    yield spiral(101)
    yield spiral(101).T
    yield spiral(100)[::-1] | spiral(100)
    yield np.indices((200, 201)).sum(axis=0) % 2 == 0  # each pixel touches the next at a corner
    comb = np.indices((150, 301))[1] % 2 == 0
    yield comb
    comb[-1] = True
    yield comb  # trees that only the last row joins
    yield np.kron(comb, np.ones((1, 40), bool))  # with few ends of runs


@pytest.mark.parametrize("connectivity", [4, 8])
def test_labels_areas_boxes_and_peaks_are_scipys_bit_for_bit(connectivity: Literal[4, 8]) -> None:
    structure = generate_binary_structure(2, 2 if connectivity == 8 else 1)
    rng = np.random.default_rng(1)
    for mask in every_kind():
        expected, n = label(np.ascontiguousarray(mask), structure)
        labels, areas = connected_regions(mask, connectivity)
        assert labels.dtype == expected.dtype
        assert np.array_equal(labels, expected)
        assert areas.tolist() == np.bincount(expected.ravel(), minlength=n + 1)[1:].tolist()
        runs = connected_runs(mask, connectivity)
        places = find_objects(expected) if n else []
        boxes = [[x.start, y.start, x.stop - x.start, y.stop - y.start] for y, x in places]
        assert (runs.n, runs.boxes().tolist(), runs.areas().tolist()) == (n, boxes, areas.tolist())
        values = rng.standard_normal(mask.shape, dtype=np.float32)
        peaks = maximum(values, expected, np.arange(1, n + 1)) if n else []
        assert runs.highest(values[mask]).tolist() == list(peaks)
