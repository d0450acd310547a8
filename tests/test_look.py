"""Looking at layers: the contrast against literal covariances, verdicts on painted defects, page and command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pickglass.app.see.look import colours_of, first_filters, look, strongest_channels
from pickglass.app.see.request import BackboneRequest
from pickglass.cli.main import main
from pickglass.data import paint
from pickglass.data.painting.cloth import Cloth, weave
from pickglass.errors import InputError
from pickglass.features import FeatureExtractor
from pickglass.features.anatomy import visibility
from pickglass.features.anatomy.visibility import (
    Seen,
    contrast,
    stand_out,
    strangeness,
    touched_cells,
    verdict_of,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cell(h: int, w: int, *places: tuple[int, int]) -> Tensor:
    out = torch.zeros(h, w, dtype=torch.bool)
    for y, x in places:
        out[y, x] = True
    return out


# -- cells under a mask ------------------------------------------------------------------------------------------------


def test_touched_cells_by_hand() -> None:
    mask = np.zeros((8, 12), np.bool_)
    mask[3, 5] = True  # far smaller than a cell of 4 x 4
    assert touched_cells(mask, (2, 3)).int().tolist() == [[0, 1, 0], [0, 0, 0]]
    mask[4, 5] = True  # the first row of the cell below
    assert touched_cells(mask, (2, 3)).int().tolist() == [[0, 1, 0], [0, 1, 0]]
    assert touched_cells(mask, (1, 1)).tolist() == [[True]]
    assert touched_cells(mask, (16, 24)).sum() == 2 * 4  # each pixel is 2 x 2 cells


@pytest.mark.parametrize("grid", [(3, 5), (7, 7), (20, 9)])
def test_touched_cells_are_those_that_overlap_a_pixel(grid: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random((11, 13)) < 0.08
    expected = np.zeros(grid, np.bool_)
    for y, x in np.argwhere(mask):
        for i in range(grid[0]):
            for j in range(grid[1]):
                # in integers, so that edges that meet do not overlap
                down = y * grid[0] < (i + 1) * 11 and (y + 1) * grid[0] > i * 11
                expected[i, j] |= down and x * grid[1] < (j + 1) * 13 and (x + 1) * grid[1] > j * 13
    assert (touched_cells(mask, grid).numpy() == expected).all()


def test_touched_cells_in_a_letterbox() -> None:
    mask = np.ones((4, 8), np.bool_)
    assert touched_cells(mask, (4, 4), (0.25, 0.0, 0.75, 1.0)).int().tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


# -- contrast ----------------------------------------------------------------------------------------------------------


def literal_distance(cells: Tensor, asked: Tensor) -> float:
    """Mahalanobis distance with a covariance to which C uncorrelated cells were added."""
    n, c = cells.shape
    mean = cells.mean(0)
    shrunk = c * torch.diag(cells.var(0, correction=0))
    covariance = ((cells - mean).T @ (cells - mean) + shrunk) / (n + c)
    return float(((asked - mean) @ torch.linalg.inv(covariance) @ (asked - mean)).sqrt())


@pytest.mark.parametrize("channels", [3, 60])  # fewer and more than the cells left out, and than the cells themselves
def test_strangeness_is_the_distance_from_the_cells_outside_the_neighbourhood(channels: int) -> None:
    features = noise(channels, 8, 8).double()
    defect = cell(8, 8, (2, 2))
    got = strangeness(Seen(features), defect)
    base = torch.ones(8, 8, dtype=torch.bool)
    base[1:4, 1:4] = False  # a guard band of one cell
    aside = []
    for y, x in base.nonzero().tolist():
        rest = base.clone()
        rest[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = False
        others = features[:, rest].T
        assert got[y, x] == pytest.approx(literal_distance(others, features[:, y, x])), (y, x)
        aside.append(literal_distance(others, features[:, 2, 2]))
    assert got[2, 2] == pytest.approx(np.mean(aside))


def test_sd_is_that_of_other_places() -> None:
    features = noise(4, 16, 16)
    defect = cell(16, 16, (5, 5), (5, 6))
    features[:, 5, 6] += 4
    middle = torch.zeros(16, 16, dtype=torch.bool)
    middle[1:-1, 1:-1] = True  # without the rim of one cell
    map = strangeness(Seen(features, middle), defect)
    away = middle.clone()
    away[4:7, 4:8] = False
    others = []
    for dy in range(16):
        for dx in range(16):
            here = [((5 + dy) % 16, (x + dx) % 16) for x in (5, 6)]
            inside = [float(map[place]) for place in here if away[place]]
            if inside:  # one of two is half
                others.append(max(inside))
    value = max(float(map[5, 5]), float(map[5, 6]))
    found = contrast(Seen(features), defect)
    assert found.places == len(others)
    assert found.sd == pytest.approx((value - np.mean(others)) / np.std(others, ddof=1))
    assert found.beaten == pytest.approx(np.mean(np.array(others) < value))


@pytest.mark.parametrize(("channels", "side"), [pytest.param(16, 32, marks=pytest.mark.long), (64, 16), (320, 8)])
@pytest.mark.slow
def test_nothing_is_visible_at_random_places(channels: int, side: int) -> None:
    """Neighbouring cells are alike, as in features; with 320 channels on 64 cells, all that is new looks strange."""
    values = []
    for seed in range(20):
        rough = noise(1, channels, side, side, seed=seed)
        smooth = torch.nn.functional.avg_pool2d(rough, 3, 1, 1)[0]
        place = np.random.default_rng(seed).integers(1, side - 1, 2)
        found = contrast(Seen(smooth), cell(side, side, (int(place[0]), int(place[1]))))
        assert found.sd is not None
        values.append(found.sd)
    assert abs(np.mean(values)) < 0.6
    assert np.mean(np.array(values) >= visibility.FAINT) <= 0.1
    assert max(values) < visibility.VISIBLE


def test_the_rim_is_compared_with_the_rim() -> None:
    """Padding makes cells at the rim look strange: that hides no defect in the middle and is none itself."""
    features = noise(6, 16, 16)
    features[:, [0, -1]] += 9
    features[:, 1:-1, [0, -1]] += 9
    assert contrast(Seen(features), cell(16, 16, (0, 6))).verdict == "lost"
    assert contrast(Seen(features), cell(16, 16, (0, 6), (1, 6))).verdict == "lost"  # the stranger of them is on it
    assert contrast(Seen(features + 5 * cell(16, 16, (8, 8))), cell(16, 16, (8, 8))).verdict == "visible"
    assert contrast(Seen(features + 9 * cell(16, 16, (0, 6))), cell(16, 16, (0, 6))).verdict != "lost"


def test_periodic_textures_hide_nothing_and_invent_nothing() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    texture = torch.stack([(y * f).sin() + (x * f).cos() for f in (0.7, 1.1, 1.9, 2.3)]) * 5 + noise(4, 32, 32)
    defect = cell(32, 32, (11, 20))
    assert contrast(Seen(texture), defect).verdict == "lost"
    assert contrast(Seen(texture + 12 * defect), defect).verdict == "visible"  # no more than the texture's own range


def test_contrast_does_not_depend_on_the_scale_of_the_features() -> None:
    features, defect = noise(5, 12, 12), cell(12, 12, (4, 4))
    plain = contrast(Seen(features + 3 * defect), defect).sd
    assert contrast(Seen(1e3 * (features + 3 * defect) + 7), defect).sd == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_grids_without_surroundings_are_unclear(side: int) -> None:
    found = contrast(Seen(noise(8, side, side)), cell(side, side, (0, 0)))
    assert (found.sd, found.verdict) == (None, "unclear")
    assert found.map.shape == (side, side)


def test_a_defect_on_all_of_the_image_is_unclear() -> None:
    assert contrast(Seen(noise(3, 8, 8)), torch.ones(8, 8, dtype=torch.bool)).verdict == "unclear"


def test_blank_surroundings() -> None:
    blank, defect = torch.full((3, 16, 16), 0.7), cell(16, 16, (8, 8))
    assert contrast(Seen(blank), defect).verdict == "lost"
    assert contrast(Seen(blank + 0.1 * defect), defect).verdict == "visible"


def test_cells_that_do_not_count_change_nothing() -> None:
    features, defect = noise(4, 16, 16), cell(16, 16, (4, 4))
    keep = torch.ones(16, 16, dtype=torch.bool)
    keep[12:] = False
    other = features.clone()
    other[:, 12:] = 1e6
    assert contrast(Seen(features, keep), defect).sd == pytest.approx(contrast(Seen(other, keep), defect).sd)


def test_good_images_serve_where_the_image_has_no_surroundings() -> None:
    good = [Seen(noise(4, 4, 4, seed=seed)) for seed in range(1, 25)]
    image, everywhere = noise(4, 4, 4), torch.ones(4, 4, dtype=torch.bool)
    assert contrast(Seen(image), everywhere).verdict == "unclear"
    assert contrast(Seen(image), everywhere, good).verdict == "lost"
    assert contrast(Seen(image), everywhere, good[:8]).verdict == "unclear"  # 4 images, though 64 shifts
    assert contrast(Seen(image + 6), everywhere, good).verdict == "visible"
    with pytest.raises(InputError, match="expected two or more"):
        contrast(Seen(image), everywhere, good[:1])


def test_an_untouched_grid_is_refused() -> None:
    with pytest.raises(InputError, match="touches no cell"):
        contrast(Seen(noise(2, 4, 4)), torch.zeros(4, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("sd", "beaten", "verdict"),
    [
        (None, None, "unclear"),
        (-1.0, 0.2, "lost"),
        (1.9, 0.97, "lost"),
        (1.6, 1.0, "faint"),  # more than any other place, though these differ a lot
        (2.0, 0.95, "faint"),
        (4.0, 1.0, "visible"),
    ],
)
def test_words(sd: float | None, beaten: float | None, verdict: str) -> None:
    assert verdict_of(sd, beaten) == verdict


def test_what_stands_out_without_a_defect() -> None:
    map = stand_out(Seen(noise(4, 16, 16) + 9 * cell(16, 16, (3, 7))))
    assert int(map.argmax()) == 3 * 16 + 7
    for part in (map[1:-1, 1:-1].flatten(), torch.cat([map[0], map[-1], map[1:-1, 0], map[1:-1, -1]])):
        assert float(part.mean()) == pytest.approx(0, abs=1e-5)
        assert float(part.std()) == pytest.approx(1, abs=1e-5)


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_strongest_channels() -> None:
    features, defect, everywhere = noise(5, 8, 8), cell(8, 8, (3, 3)), torch.ones(8, 8, dtype=torch.bool)
    features[4] *= 10
    features[2, 3, 3] = -9
    assert next(c.place for c in strongest_channels(features, defect, everywhere, 2)) == 2
    (first, *_) = strongest_channels(features, None, everywhere, 2)
    assert (first.place, first.strength) == (4, None)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 1, 1), (5, 6, 9), (90, 4, 4)])
def test_principal_colours(shape: tuple[int, int, int]) -> None:
    features = noise(*shape)
    colours = colours_of(features, torch.ones(shape[1:], dtype=torch.bool))
    assert colours.shape == (*shape[1:], 3)
    assert (colours == colours_of(3 * features + 1, torch.ones(shape[1:], dtype=torch.bool))).mean() > 0.98
    if shape[0] == 1:
        order = np.argsort(features[0].flatten().numpy())
        assert (np.diff(colours[..., 0].flatten()[order].astype(int)) >= 0).all()


def test_first_filters_share_one_scale() -> None:
    extractor = FeatureExtractor("resnet18", ["layer1"], "random")
    filters = first_filters(extractor)
    assert len(filters) == 64
    assert filters[0].shape == (7, 7, 3)
    spread = [f.std() for f in filters]
    assert spread[0] > spread[-1]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cloth")
    painted = paint(weave(Cloth("twill"), (128, 128), 3), "hole", 14, np.random.default_rng(0), 1.5)
    Image.fromarray(painted.image).save(folder / "part.png")
    Image.fromarray(painted.mask).save(folder / "mask.png")
    (folder / "box.txt").write_text(",".join(str(n) for n in painted.box))
    (folder / "good").mkdir()
    for i in range(3):
        Image.fromarray(weave(Cloth("twill"), (128, 128), 10 + i)).save(folder / "good" / f"{i}.png")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pickglass", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_json_and_page(
    cloth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    where = ["--mask", str(cloth / "mask.png"), "--size", "128", "-o", str(page)]
    assert run(monkeypatch, "look", str(cloth / "part.png"), *where, "--json") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(result) == {"backbone", "weights", "size", "layers", "page"}
    layers = [layer for layer in result["layers"] if layer["contrast_sd"] is not None]
    assert len(layers) >= 3
    assert [layer["layer"] for layer in result["layers"]] == [f"stage{i}" for i in range(1, 8)]
    assert [layer["stride"] for layer in result["layers"]] == [2, 4, 8, 16, 16, 32, 32]
    assert "visible" in {layer["verdict"] for layer in result["layers"][:3]}
    assert all((layer["contrast_sd"] >= visibility.VISIBLE) == (layer["verdict"] == "visible") for layer in layers)
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    for layer in result["layers"]:
        assert f"{layer['layer']}, {layer['grid'][0]}x{layer['grid'][1]}" in text
    assert "32 filters of 3x3 px" in text
    assert "places of this image stand" in text


def test_a_box_does_as_a_mask(cloth: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    box = (cloth / "box.txt").read_text()
    arguments = ["look", str(cloth / "part.png"), "--layers", "stage5", "--size", "128"]
    assert run(monkeypatch, *arguments, "--box", box, "--good", str(cloth / "good")) == 0
    shown = capsys.readouterr().out
    assert "stage5" in shown
    assert "sd)" in shown
    assert run(monkeypatch, *arguments) == 0
    assert "sd)" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": [120, 0, 9, 4]}, "128 pixels wide and 128 high"),
        ({"box": [0, 0, 0, 4]}, "expected x, y, width, height"),
        ({"good": "good"}, "give its mask or box too"),
        ({"mask": "mask.png", "box": [0, 0, 4, 4]}, "give one of them"),
        ({"mask": "empty.png"}, "the mask is empty"),
        ({"page": "page.png"}, "ends in .html"),
    ],
)
def test_bad_input_is_named(cloth: Path, options: dict[str, Any], message: str) -> None:
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(cloth / "empty.png")
    given = {key: cloth / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        look(cloth / "part.png", request=BackboneRequest(weights="random"), **given)


def test_elongated_images_and_random_weights_and_no_defect(tmp_path: Path) -> None:
    Image.fromarray(weave(Cloth("plain"), (32, 200), 1)).save(tmp_path / "strip.png")
    page = tmp_path / "page.html"
    found = look(
        tmp_path / "strip.png", page, BackboneRequest("resnet18", ["layer1", "layer4"], "random", size="native")
    )
    assert found["size"] == [32, 224]
    assert [layer["grid"] for layer in found["layers"]] == [[8, 56], [1, 7]]
    assert {layer["verdict"] for layer in found["layers"]} == {None}
    assert "of the highest variance" in page.read_text()
