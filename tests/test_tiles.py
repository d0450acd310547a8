"""Tiles cover every pixel; joined maps have no seams."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis.strategies import integers, lists, tuples

from pickglass.data.images.tiles import Tiling, joining_matrix, seams
from pickglass.errors import InputError


@pytest.mark.parametrize("edges", ["shift", "pad"])
@given(stride=tuples(integers(1, 8), integers(1, 16)), canvas=tuples(integers(8, 60), integers(16, 60)))
@example(stride=(8, 16), canvas=(8, 16))
def test_every_pixel_is_covered_and_no_tile_is_superfluous(
    edges: str, canvas: tuple[int, int], stride: tuple[int, int]
) -> None:
    tiling = Tiling.over(canvas, (8, 16), stride, edges)  # type: ignore[arg-type]
    count = np.zeros(tiling.extent, int)
    for x, y, w, h in tiling.boxes:
        assert (w, h) == (16, 8)
        count[y : y + h, x : x + w] += 1
    assert count.min() >= 1
    assert tiling.n == len(set(tiling.boxes))
    for axis in range(2):
        needed = -(-(canvas[axis] - (8, 16)[axis]) // stride[axis]) + 1
        assert len((tiling.tops, tiling.lefts)[axis]) == needed
    if edges == "shift":
        assert tiling.extent == canvas
    assert tiling.boxes == sorted(tiling.boxes, key=lambda b: (b[1], b[0]))  # reading order


@pytest.mark.parametrize(
    ("tile", "stride", "message"),
    [((9, 9), (4, 4), "lower tile"), ((4, 4), (5, 4), "left out"), ((4, 4), (0, 4), "stride")],
)
def test_tiles_that_cannot_be_laid_name_the_remedy(
    tile: tuple[int, int], stride: tuple[int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Tiling.over((8, 8), tile, stride)
    with pytest.raises(InputError, match="shift"):
        Tiling.over((8, 8), (4, 4), (4, 4), "wrap")  # type: ignore[arg-type]


@pytest.mark.parametrize("blend", ["cosine", "average"])
@given(steps=lists(integers(1, 16), max_size=4))
def test_equal_maps_join_without_a_seam(blend: str, steps: list[int]) -> None:
    starts = tuple(accumulate(steps, initial=0))  # tiles of 16 that touch or overlap
    matrix = joining_matrix(starts, 16, starts[-1] + 16, 4, blend)  # type: ignore[arg-type]
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-6)
    assert (matrix >= 0).all()


def test_one_tile_is_the_map_itself() -> None:
    np.testing.assert_array_equal(joining_matrix((0,), 64, 64, 8, "cosine"), np.eye(8, dtype=np.float32))


def test_what_one_tile_covers_is_copied_and_the_overlap_is_blended() -> None:
    matrix = joining_matrix((0, 8), 16, 24, 4, "cosine").reshape(
        2, 4, 6
    )  # cells of 4 pixels; pixels 8 to 16 are shared
    a, b = np.zeros(4, np.float32), np.ones(4, np.float32)
    joined = a @ matrix[0] + b @ matrix[1]
    np.testing.assert_allclose(joined[[0, 1, 4, 5]], [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(joined[2], np.sin(np.pi / 8) ** 2, atol=1e-6)  # a quarter into the overlap
    np.testing.assert_allclose(joined[2] + joined[3], 1, atol=1e-6)


def test_a_ramp_stays_a_ramp_where_cells_do_not_line_up() -> None:
    """Tiles that were shifted by half a cell interpolate; a straight slope survives it inside."""
    starts, size = (0, 6), 4.0
    matrix = joining_matrix(starts, 16, 22, 4, "cosine")
    ramp = np.concatenate([start + size * (np.arange(4) + 0.5) for start in starts])
    joined = ramp @ matrix
    centre = (np.arange(len(joined)) + 0.5) * 22 / len(joined)
    np.testing.assert_allclose(joined[1:-1], centre[1:-1], atol=1e-4)


def test_seams_lie_around_the_edges_inside() -> None:
    assert np.flatnonzero(seams((0, 8), 8, 16, 16, 1.0)).tolist() == [7, 8]
    assert not seams((0,), 16, 16, 16, 2.0).any()
