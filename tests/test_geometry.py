"""Fitting images on the canvas and maps back on images; regions of interest; millimetres."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis.strategies import integers, sampled_from, tuples
from PIL import Image

import pickglass as pg
from pickglass.data import (
    MARGINS,
    Prepared,
    Preprocess,
    Row,
    Table,
    parse_size,
    read_image,
    resize_map,
    with_pixel_mm,
    with_roi,
)
from pickglass.data.images.geometry import canvas_of_area, stacked, unit_values
from pickglass.errors import DataError, ImageError, InputError
from pickglass.runtime.provenance import Regions
from pickglass.testing import textures


def random_image(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    """The same for the same shape, whichever tests ran before."""
    return np.random.default_rng(shape).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# -- Preprocess -------------------------------------------------------------------------------------------------------


def test_preprocess_keeps_an_image_that_fits() -> None:
    image = random_image(6, 5, 3)
    found = Preprocess((6, 5))(image)
    np.testing.assert_array_equal(found, (image.astype(np.float32) / np.float32(255)).transpose(2, 0, 1))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert not np.shares_memory(found, image)
    floats = np.random.default_rng(0).random((6, 5, 3), np.float32)
    np.testing.assert_array_equal(Preprocess((6, 5))(floats), floats.transpose(2, 0, 1))


@pytest.mark.parametrize("geometry", ["squeeze", "letterbox", "native"])
@pytest.mark.parametrize("colour", [False, True])
def test_a_canvas_of_bytes_shows_what_that_of_floats_does(geometry: Any, colour: bool) -> None:
    image = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    image = np.dstack([image, image[::-1], image.T]) if colour else image
    prepare = Preprocess((20, 24), geometry=geometry)
    canvas = prepare.canvas(Image.fromarray(image))
    assert canvas.dtype == np.uint8
    np.testing.assert_array_equal(unit_values(canvas), prepare(image))
    deep = image.astype(np.uint16) * 257
    np.testing.assert_array_equal(prepare.canvas(deep), prepare(deep))
    both = stacked([Prepared(canvas, None), Prepared(prepare.canvas(deep), None)])
    np.testing.assert_array_equal(both, np.stack([prepare(image), prepare(deep)]))
    assert stacked([Prepared(canvas, None)] * 2).dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@given(interpolation=sampled_from(["bilinear", "bicubic"]), size=tuples(integers(1, 70), integers(1, 70)))
@example(interpolation="bilinear", size=(13, 17))  # as it is
@settings(max_examples=10)
def test_preprocess_treats_grey_as_three_equal_channels(dtype: Any, size: Any, interpolation: Any) -> None:
    grey = random_image(13, 17, dtype=np.uint16)
    grey = (
        (grey / 65535).astype(np.float32)
        if dtype == np.float32
        else (grey >> (8 if dtype == np.uint8 else 0)).astype(dtype)
    )
    before = grey.copy()
    prepare = Preprocess(size, interpolation)
    found = prepare(grey)
    np.testing.assert_array_equal(found, prepare(np.dstack([grey] * 3)))
    np.testing.assert_array_equal(grey, before)
    assert found.shape == (3, *size)
    assert found.flags.c_contiguous
    assert found.min() >= 0
    assert found.max() <= 1


def test_preprocess_of_8_bits_is_pillows_resize() -> None:
    image = random_image(50, 40, 3)
    expected = np.asarray(Image.fromarray(image).resize((16, 24), Image.Resampling.BICUBIC)) / np.float32(255)
    np.testing.assert_array_equal(Preprocess((24, 16), "bicubic")(image), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(300, 17), (17, 300)])
def test_rows_are_resized_before_columns_whatever_pillow_would_do(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    across = Image.fromarray(image).resize((8, size[0]), Image.Resampling.BILINEAR)
    expected = np.asarray(across.resize((8, 32), Image.Resampling.BILINEAR))
    got = Preprocess((32, 8))(image) * 255
    np.testing.assert_array_equal(np.rint(got).astype(np.uint8).transpose(1, 2, 0), expected)


def test_preprocess_uses_all_16_bits() -> None:
    image = np.full((8, 8), 300, np.uint16)
    image[4:] = 301
    assert len(np.unique(Preprocess((8, 8))(image))) == 2
    np.testing.assert_allclose(Preprocess((3, 3))(image)[0, 0], 300 / 65535, rtol=1e-5)
    coarse = Preprocess((5, 6))(random_image(20, 20, dtype=np.uint8).astype(np.uint16) * 257)
    assert coarse.shape == (3, 5, 6)


def test_preprocess_of_one_pixel() -> None:
    np.testing.assert_array_equal(Preprocess((4, 4))(np.array([[51]], np.uint8)), np.full((3, 4, 4), np.float32(0.2)))


def test_preprocess_is_described_and_checked() -> None:
    prepare = Preprocess((256, 128), "bicubic")
    assert Preprocess.from_json(prepare.to_json()) == prepare
    assert prepare.to_json() == {"size": [256, 128], "interpolation": "bicubic", "geometry": "squeeze", "side": None}
    with pytest.raises(InputError, match="size"):
        Preprocess((0, 5))
    with pytest.raises(InputError, match="nearest"):
        Preprocess((5, 5), "nearest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Preprocess"):
        Preprocess.from_json({"size": [5, 5]})
    for size in ([True, 5], ["5", 5], [5], 5):
        with pytest.raises(InputError, match="size of Preprocess is"):
            Preprocess.from_json({**prepare.to_json(), "size": size})


# -- resize_map -------------------------------------------------------------------------------------------------------


@given(grid=tuples(integers(1, 33), integers(1, 33)), size=tuples(integers(1, 300), integers(1, 300)))
@example(grid=(1, 1), size=(1024, 1024))
@example(grid=(1, 7), size=(1, 1))
def test_resize_map_equals_torch(grid: tuple[int, int], size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    map = np.random.default_rng(grid).standard_normal(grid).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(map)[None, None], size, mode="bilinear")[0, 0].numpy()
    found = resize_map(map, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


# -- the four geometries ----------------------------------------------------------------------------------------------


def bump(size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """A bright square of 9 pixels around a place."""
    image = np.full(size, 100, np.uint8)
    image[at[0] - 4 : at[0] + 5, at[1] - 4 : at[1] + 5] = 250
    return image


@pytest.mark.parametrize(
    "size", [256, "256x128", (128, 256), "letterbox:256", "letterbox:96x256", "shorter:128", "native"]
)
def test_a_place_on_the_canvas_comes_back_to_where_it_was(size: int | str | tuple[int, int]) -> None:
    for image in ((200, 320), (320, 200), (256, 256)):
        at = (image[0] // 4, 2 * image[1] // 3)
        prepare = Preprocess.for_images(size, "bilinear", [image])
        canvas = prepare(bump(image, at))[0]
        assert canvas.shape == prepare.size
        found = resize_map(canvas, image, prepare.window(image))
        y, x = np.nonzero(found > 0.5 * (found.max() + np.median(found)))
        assert (y.mean(), x.mean()) == pytest.approx(at, abs=1.0), image
        assert found.shape == image


def test_letterbox_keeps_the_aspect_and_marks_what_is_filled() -> None:
    prepare = Preprocess.for_images("letterbox:64", "bilinear", [(100, 200)])
    assert prepare.placement((100, 200)) == (16, 0, 32, 64)
    keep = prepare.kept((100, 200))
    assert keep is not None
    assert keep[16:48].all()
    assert keep.sum() == 32 * 64
    assert prepare.kept((50, 50)) is None
    filled = prepare(np.tile(np.arange(200, dtype=np.uint8), (100, 1)))
    assert (filled[0, :16] == filled[0, 16]).all()  # by the edge, not by black


def test_the_canvas_of_native_holds_every_training_image_in_steps_of_32() -> None:
    prepare = Preprocess.for_images("native", "bilinear", [(100, 200), (130, 90)])
    assert prepare.size == (160, 224)
    with pytest.raises(ImageError, match=r"300x200 pixels .* do not fit on the model's canvas of 160x224"):
        prepare.placement((300, 200))
    assert Preprocess.for_images("shorter:64", "bilinear", [(100, 200)]).size == (64, 128)


@pytest.mark.parametrize("size", [0, (256,), "letterbox", "shorter:1x2", "256x256x3", "native:3", -5, "tall:5"])
def test_a_size_that_means_nothing_names_what_is_expected(size: object) -> None:
    with pytest.raises(InputError, match="letterbox:256"):
        parse_size(size)  # type: ignore[arg-type]


def test_sixteen_bits_survive_the_letterbox() -> None:
    image = np.array([[0, 300], [600, 65535]], np.uint16)
    placed = Preprocess((2, 4), geometry="letterbox")(image)
    np.testing.assert_allclose(placed[0, :, 1:3], image / 65535, rtol=1e-6)


# -- regions of interest ----------------------------------------------------------------------------------------------


def test_white_margins_lie_outside_and_white_inside_does_not() -> None:
    image = np.full((8, 20), 90, np.uint8)
    image[:, :3] = 255
    image[:, 18:] = 252
    image[:, 10] = 255
    inside = Row("array:0", roi=MARGINS).region(image)
    assert inside is not None
    assert (np.flatnonzero(inside.all(axis=0)) == np.arange(3, 18)).all()
    assert Row("array:0", roi=MARGINS).region(np.full((4, 4), 90, np.uint8)) is None


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_masks_of_a_folder_find_their_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "masks" / f"{name}.png", np.ones((4, 4), np.uint8))
    table = with_roi(Table([Row("x/a.jpg"), Row("x/b.bmp")]), tmp_path / "masks")
    assert [Path(row.roi_name or "").name for row in table] == ["a.png", "b.png"]
    with pytest.raises(DataError, match=r"no mask for 1 of 2 images, e.g. x/c.png"):
        with_roi(Table([Row("x/a.png"), Row("x/c.png")]), tmp_path / "masks")
    with pytest.raises(DataError, match="1 images share a name"):
        with_roi(Table([Row("x/a.png"), Row("y/a.png")]), tmp_path / "masks")
    with pytest.raises(InputError, match="no such file or folder"):
        with_roi(table, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(np.zeros((4, 4), np.uint8), "empty"), (np.ones((4, 5), np.uint8), "4x5")],
)
def test_a_region_that_cannot_be_used_is_named(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    row = Row("array:0", roi=str(save(tmp_path / "roi.png", pixels)))
    with pytest.raises(ImageError, match=message):
        row.region(np.zeros((4, 4), np.uint8))


def half(side: int) -> np.ndarray:
    """The left half of a square."""
    mask = np.zeros((side, side), np.uint8)
    mask[:, : side // 2] = 255
    return mask


def test_a_region_in_memory_is_one_from_a_file(tmp_path: Path) -> None:
    roi = half(64)
    file = str(save(tmp_path / "roi.png", roi))
    rows = [Row(f"array:{i}", "train", 0, pixels=image) for i, image in enumerate(textures(8, 64))]
    settings = {"size": 64, "ratio": 0.1, "backbone": "resnet18", "weights": "random", "layers": ("layer1",)}
    scores, regions = [], []
    for region in (file, roi, roi > 0):
        detector = pg.PatchCore(**settings).fit(Table([replace(row, roi=region) for row in rows]), engine="torch")  # type: ignore[arg-type]
        scores.append(detector.predict(textures(3, 64, seed=5), engine="torch").scores)
        regions.append(detector.provenance.regions)
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])
    assert [r.regions for r in regions] == ["one"] * 3
    assert regions[1].regions_sha256 == regions[2].regions_sha256
    each = [replace(row, roi=roi.copy()) for row in rows]
    assert Regions.of(Table(each)).regions == "each"
    assert Regions.of(Table([replace(each[0], roi=MARGINS), rows[1]])).regions == "none"
    with pytest.raises(ImageError, match="region of array:0: the region of interest is empty"):
        replace(rows[0], roi=0 * roi).region(rows[0].image())
    assert each[0] != each[1]
    assert len({each[0], replace(each[0])}) == 1


@pytest.mark.slow
def test_background_changes_no_score_and_no_metric(tmp_path: Path) -> None:
    """A model with a region of interest neither sees nor counts what lies outside."""
    good = textures(14, 96)
    roi = save(tmp_path / "roi.png", half(96))
    table = with_roi(Table([Row(f"array:{i}", "train", 0, pixels=image) for i, image in enumerate(good)]), roi)
    detector = pg.PatchCore(size=96, ratio=0.05, backbone="resnet18", weights="random", layers=("layer1",)).fit(
        table, engine="torch"
    )
    fresh = textures(2, 96, seed=5)
    spoilt = fresh.copy()
    spoilt[:, 30:60, 75:90] = 255  # far outside: the network's field must not reach it
    clean, dirty = detector.predict(fresh, engine="torch"), detector.predict(spoilt, engine="torch")
    np.testing.assert_allclose(clean.scores, dirty.scores, rtol=1e-4)
    assert dirty.map(0)[:, 60:].max() <= dirty.map(0)[:, :48].max()
    whole = pg.PatchCore(size=96, ratio=0.05, backbone="resnet18", weights="random", layers=("layer1",)).fit(
        good, engine="torch"
    )
    assert (whole.predict(spoilt, engine="torch").scores > 1.1 * whole.predict(fresh, engine="torch").scores).all()
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert (loaded.predict(spoilt, engine="torch").scores == dirty.scores).all()
    inside = dirty.found[0].inside()
    assert inside is not None
    assert inside[:, :46].all()
    assert not inside[:, 50:].any()
    mask = np.zeros((96, 96), np.uint8)
    mask[30:60, 75:90] = 255  # a defect outside the region is none for the metrics
    mask[5:15, 5:15] = 255
    test = [Row("array:0", "test", 0, pixels=fresh[0])]
    test.append(Row("array:1", "test", 1, "spot", str(save(tmp_path / "mask.png", mask)), pixels=spoilt[1]))
    evaluation = pg.evaluate(detector.predict(Table(test), engine="torch"), repeats=20)
    assert evaluation.pixels is not None
    assert evaluation.pixels.n_regions == 1
    assert evaluation.pixels.n_ok_pixels < 2 * 96 * 50


# -- millimetres and tables -------------------------------------------------------------------------------------------


def test_a_table_names_regions_and_pixel_pitch(tmp_path: Path) -> None:
    save(tmp_path / "a.png", textures(1, 32)[0])
    save(tmp_path / "roi.png", half(32))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "roi", "pixel_mm"], ["a.png", "good", "roi.png", "0.05"]])
    dataset = pg.load_dataset(tmp_path / "rows.csv")
    assert (dataset.table[0].roi, dataset.table[0].pixel_mm) == (str(tmp_path / "roi.png"), 0.05)
    (tmp_path / "rows.csv").write_text("path,label,pixel_mm\na.png,good,wide\n")
    with pytest.raises(DataError, match="pixel_mm 'wide'"):
        pg.load_dataset(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="millimetres"):
        with_pixel_mm(dataset.table, -1.0)


def test_the_model_remembers_the_pixel_pitch() -> None:
    table = with_pixel_mm(Table([Row(f"array:{i}", "train", 0, pixels=p) for i, p in enumerate(textures(12, 64))]), 0.1)
    detector = pg.PatchCore(size=64, ratio=0.05).fit(table, engine="torch")
    assert detector.predict(textures(1, 64), engine="torch").found[0].pixel_mm == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("size", ["letterbox:64", "shorter:64", "native"])
def test_a_fitted_model_of_each_geometry_answers_in_original_pixels(tmp_path: Path, size: str) -> None:
    good = [image[:60] for image in textures(12, 90)]
    detector = pg.PatchCore(size=size, ratio=0.05).fit(good, engine="torch")
    found = detector.predict(good[:2], engine="torch")
    assert found.map(0).shape == (60, 90)
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert (loaded.predict(good[:2], engine="torch").scores == found.scores).all()
    if size == "native":
        failed = detector.predict([textures(1, 200)[0], good[0]], engine="torch")
        assert len(failed.failed) == 1
        assert "canvas of 64x96" in failed.failed[0].error
        assert len(failed) == 1


def test_aitex_strips_are_cut_at_their_white_margins(tmp_path: Path) -> None:
    strip = np.full((16, 64), 120, np.uint8)
    strip[:, :10] = 255
    for i in range(5):
        save(tmp_path / "NODefect_images" / "2306881-210020u" / f"{i:04}_000_04.png", strip)
    save(tmp_path / "Defect_images" / "0100_002_04.png", strip)
    rows = pg.load_dataset(tmp_path).table
    inside = [row.region(read_image(row.path)) for row in rows]
    assert all(mask is not None and mask.sum() == 16 * 54 for mask in inside)


# -- the default: the usual aspect, on an area that pays ---------------------------------------------------------------


@given(tuples(integers(20, 5000), integers(20, 5000)), sampled_from([256, 384, 512]))
def test_the_canvas_of_an_area_has_the_aspect_and_no_extreme_scale(image: tuple[int, int], side: int) -> None:
    height, width = canvas_of_area(side, [image])
    assert height % 32 == width % 32 == 0
    scale = (height * width / (image[0] * image[1])) ** 0.5
    if min(height, width) >= 96:  # steps of 32 pixels then change neither by more than a sixth
        assert height / width == pytest.approx(image[0] / image[1], rel=0.36)
        assert 1 / 3 / 1.2 <= scale <= 2 * 1.2
    assert min(height, width) >= min(256, min(image)) - 16
    if 1 / 3 <= side / (image[0] * image[1]) ** 0.5 <= 2 and min(height, width) > 272:
        assert height * width == pytest.approx(side**2, rel=0.25)


def test_the_canvas_of_an_area_is_that_of_the_usual_image() -> None:
    assert canvas_of_area(512, [(500, 1260)] * 5 + [(3000, 300)]) == (320, 800)
    assert canvas_of_area(256, [(500, 1260)]) == (256, 640)  # the shorter side keeps 256 pixels
    assert canvas_of_area(512, [(256, 4096)]) == (256, 4096)
    assert canvas_of_area(512, [(256, 256)]) == (512, 512)  # enlarged twice,
    assert canvas_of_area(512, [(128, 128)]) == (256, 256)  # and no more
    assert canvas_of_area(256, [(1248, 1248)]) == (416, 416)  # shrunk to about a third, and no less


@pytest.mark.slow
def test_fit_keeps_the_aspect_unless_a_size_is_given(tmp_path: Path) -> None:
    good = np.concatenate([textures(8, 96), textures(8, 96, seed=1)], axis=2)  # (8, 96, 192, 3)
    detector = pg.PatchCore().fit(good, engine="torch")
    assert detector.input_size == (192, 384)
    assert pg.load(detector.save(tmp_path / "m.safetensors")).input_size == (192, 384)
    assert detector.predict(good[:1], engine="torch").map(0).shape == (96, 192)
    assert pg.PatchCore(size=64).fit(good, engine="torch").input_size == (64, 64)
