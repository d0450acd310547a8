"""The layer explorer: fields and cells against brute force, tiles, letterboxes, and what stays visible."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pickglass as pg
from pickglass.app.see.explorer import LayerExplorer
from pickglass.app.see.request import BackboneRequest
from pickglass.data import paint
from pickglass.errors import InputError, UnknownName
from pickglass.features.anatomy.gradient_field import effective_fields, field_of_cell
from pickglass.testing import textures

REQUEST = BackboneRequest("efficientnet_lite0", ["stage2", "stage3", "stage5"], size=64)
GRIDS = [(16, 16), (8, 8), (4, 4)]


@pytest.fixture(scope="module")
def explorer() -> LayerExplorer:
    return LayerExplorer(REQUEST, textures(1, 128)[0])


def test_layers_are_described_and_drawn(explorer: LayerExplorer) -> None:
    result = explorer.explore()
    assert [(layer["layer"], layer["grid"], layer["stride"]) for layer in result["layers"]] == [
        ("stage2", [16, 16], 4),
        ("stage3", [8, 8], 8),
        ("stage5", [4, 4], 16),
    ]
    assert (result["size"], result["seen"], result["input"]) == ([128, 128], [0, 0, 128, 128], [64, 64])
    assert all(layer["verdict"] is None for layer in result["layers"])
    for layer in result["layers"]:
        for kind in ("colours", "map"):
            picture = Image.open(io.BytesIO(explorer.picture(layer["layer"], kind)))  # type: ignore[arg-type]
            assert picture.size == tuple(layer["grid"][::-1])
    with pytest.raises(UnknownName, match="unknown layer 'stage9'"):
        explorer.picture("stage9", "colours")
    with pytest.raises(UnknownName, match="unknown kind of picture 'x'"):
        explorer.picture("stage2", "x")  # type: ignore[arg-type]


def test_a_defect_is_visible_where_it_is_and_nothing_is_elsewhere() -> None:
    painted = paint(textures(1, 256)[0], "hole", 40, np.random.default_rng(1), contrast=3.0)
    rows, columns = np.nonzero(painted.mask)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    explorer = LayerExplorer(BackboneRequest(layers=["stage2", "stage3"], size=256), painted.image)
    plain = explorer.picture("stage3", "map")
    assert [layer["verdict"] for layer in explorer.explore(box=box)["layers"]] == ["visible", "visible"]
    assert explorer.picture("stage3", "map") != plain  # measured against the surroundings of the defect
    with pytest.raises(InputError, match="inside the image"):
        explorer.explore(box=[250, 250, 20, 20])


def test_a_field_is_the_cell_under_the_pixel_and_what_reaches_it(explorer: LayerExplorer) -> None:
    for x, y in ((3, 5), (64, 64), (127, 100)):
        for field in explorer.fields(x, y):
            for box in (field["cell"], field["theoretical"], field["effective"]):
                assert box is not None
                left, top, width, height = box
                assert left <= x < left + width
                assert top <= y < top + height
                assert 0 <= left < left + width <= 128
                assert 0 <= top < top + height <= 128
            cell, effective, theoretical = field["cell"], field["effective"], field["theoretical"]
            assert cell[2] * cell[3] == (128 // {"stage2": 16, "stage3": 8, "stage5": 4}[field["layer"]]) ** 2
            assert effective[2] <= theoretical[2]  # type: ignore[index]
    with pytest.raises(InputError, match="which is 128 pixels wide"):
        explorer.fields(128, 0)


def test_what_a_cell_sees_is_what_changes_it(explorer: LayerExplorer) -> None:
    """Pixels far outside of a theoretical field change nothing; those of the effective one do."""
    extractor, image = explorer._extractor, explorer._input
    (field, *_) = field_of_cell(extractor, image, GRIDS, (0.3, 0.7))
    assert field.cell == (4, 11)
    with torch.no_grad():
        before = extractor(image)[0][0, :, 4, 11].mean()
        side = explorer._theoretical[0]
        assert isinstance(side, int)
        y, x = (int(centre) for centre in field.centre)
        changed = image.clone()
        inside = np.zeros((64, 64), np.bool_)
        inside[max(0, y - side) : y + side, max(0, x - side) : x + side] = True
        changed[:, :, ~torch.from_numpy(inside)] = 0.5
        assert float(extractor(changed)[0][0, :, 4, 11].mean()) == pytest.approx(float(before), abs=1e-5)
        assert field.side is not None
        near = image.clone()
        near[:, :, y - field.side // 2 : y + field.side // 2, x - field.side // 2 : x + field.side // 2] = 0.5
        assert abs(float(extractor(near)[0][0, :, 4, 11].mean() - before)) > 1e-4


def test_the_centre_is_what_layers_measures(explorer: LayerExplorer) -> None:
    cells = field_of_cell(explorer._extractor, explorer._input, GRIDS, (0.5, 0.5))
    assert [field.side for field in cells] == effective_fields(explorer._extractor, [explorer._input])


def test_a_tiled_model_shows_the_tile_around_a_place() -> None:
    images = textures(5, 128)[:, :64]
    tiled = pg.PatchCore().tiled(size=(64, 128), tile=64, stride=64).fit(images, calibrate=0, engine="torch")
    right = LayerExplorer(tiled, images[0], place=(100, 10))
    result = right.explore()
    assert (result["seen"], result["input"], result["frame"]) == ([64, 0, 64, 64], [64, 64], [64.0, 0.0, 64.0, 64.0])
    assert [layer["layer"] for layer in result["layers"]] == ["stage3", "stage5"]
    for field in right.fields(100, 10):
        assert field["cell"][0] >= 64
    with pytest.raises(InputError, match="outside of the tile"):
        right.fields(10, 10)
    with pytest.raises(InputError, match="outside of the tile"):
        right.explore(box=[0, 0, 5, 5])
    with pytest.raises(InputError, match="place x 200"):
        LayerExplorer(tiled, images[0], place=(200, 10))


def test_a_letterbox_is_taken_off() -> None:
    wide = np.ascontiguousarray(textures(1, 128)[0][:64])
    explorer = LayerExplorer(BackboneRequest(layers=["stage2"], size="letterbox:64"), wide)
    result = explorer.explore()
    assert (result["input"], result["seen"], result["frame"]) == ([64, 64], [0, 0, 128, 64], [0.0, -32.0, 128.0, 128.0])
    (field,) = explorer.fields(64, 32)
    assert field["cell"] == [64, 32, 8, 8]
    several: Any = textures(2, 64)
    with pytest.raises(InputError, match="2 images: expected one"):
        LayerExplorer(REQUEST, several)


def test_each_scale_has_its_layers() -> None:
    images = textures(5, 64)
    fused = pg.PatchCore(size=64).fused("pyramid", levels="all", scales=[1, 0.5])
    explorer = LayerExplorer(fused.fit(images, calibrate=0, engine="torch"), images[0])
    layers = explorer.explore()["layers"]
    assert [layer["layer"] for layer in layers] == ["stage3", "stage5", "stage3 at 0.5", "stage5 at 0.5"]
    assert [layer["grid"] for layer in layers] == [[8, 8], [4, 4], [4, 4], [2, 2]]
    once, _, twice, _ = (layer["rf_theoretical"] for layer in layers)
    assert twice == 2 * once  # type: ignore[operator]
    assert [field["cell"][2] for field in explorer.fields(30, 30)] == [8, 16, 16, 32]
