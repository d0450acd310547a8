"""Masks as people save them: which pixels they mark, and that soft edges are cut at half and told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.data import Dataset, Row, Table, find_problems, read_mask
from pickglass.data.images.masks import Marks, marks_of, read_marks
from pickglass.errors import ImageError

YY, XX = np.mgrid[:96, :128]
SPOT = (YY - 40) ** 2 + (XX - 70) ** 2 < 12**2
WHITE = (SPOT * 255).astype(np.uint8)
SIZE = (96, 128)


def saved(image: Any, path: Path, **options: Any) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    return image


def transparent(image: Image.Image, index: int) -> Image.Image:
    image.info["transparency"] = index
    return image


def rgba(colour: Any, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.broadcast_to(np.array(colour, np.uint8), (*SIZE, 3)), alpha])


PLAIN = {
    "0 and 1": SPOT.astype(np.uint8),
    "0 and 255": WHITE,
    "one bit": Image.fromarray(SPOT),
    "16 bits": WHITE.astype(np.uint16) * 257,
    "16 bits, 0 and 1": SPOT.astype(np.uint16),
    "red": np.dstack([WHITE, 0 * WHITE, 0 * WHITE]),
    "a dark blue": np.dstack([0 * WHITE, 0 * WHITE, WHITE // 8]),
    "grey in three channels": np.dstack([WHITE] * 3),
    "opaque": rgba((0, 0, 0), 0 * WHITE + 255) | np.dstack([WHITE] * 3 + [0 * WHITE]),
    "alpha alone, on black": rgba((0, 0, 0), WHITE),
    "alpha alone, on white": rgba((255, 255, 255), WHITE),
    "grey with alpha": Image.merge("LA", [Image.fromarray(0 * WHITE), Image.fromarray(WHITE)]),
    "palette, 0 is black": palette(SPOT, (0, 0, 0), (128, 0, 0)),
    "palette, 1 is black": palette(~SPOT, (255, 0, 0), (0, 0, 0)),
    "palette without black": palette(SPOT, (10, 20, 30), (255, 0, 0)),
    "palette without black, 0 is not used": palette(5 + SPOT, *[(9 * i, 255 - i, 0) for i in range(1, 9)]),
    "palette with a transparent background": transparent(palette(~SPOT, (255, 0, 0), (255, 255, 255)), 1),
    "palette of black alone": palette(SPOT, (0, 0, 0), (0, 0, 0)),
    "palette of greys": palette(SPOT, (0, 0, 0), (1, 1, 1)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_not_background_is_marked(tmp_path: Path, name: str) -> None:
    marks = read_marks(saved(PLAIN[name], tmp_path / "mask.png"), SIZE)
    assert not marks.soft
    np.testing.assert_array_equal(marks.pixels, SPOT)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16])
def test_numbers_of_regions_in_tiff_are_marked(tmp_path: Path, dtype: Any) -> None:
    labels = np.where(SPOT, 1 + (XX > 70), 0).astype(dtype)
    assert read_marks(saved(labels, tmp_path / "mask.tif"), SIZE).pixels.tolist() == SPOT.tolist()


@pytest.mark.parametrize("dtype", [bool, np.int64, np.int8, np.uint32, np.float64, np.float16, ">u2"])
def test_arrays_of_any_number(dtype: Any) -> None:
    for array in (SPOT.astype(dtype), SPOT.astype(dtype)[..., None], np.asfortranarray(SPOT.astype(dtype))):
        np.testing.assert_array_equal(read_mask(array, SIZE), SPOT)


@pytest.mark.parametrize("array", [np.full(SIZE, -1), np.full(SIZE, np.nan), np.full(SIZE, np.inf), SPOT[None], "text"])
def test_arrays_that_are_no_masks(array: Any) -> None:
    with pytest.raises(ImageError, match="mask"):
        read_mask(np.array([["text"]]) if isinstance(array, str) else array, SIZE)


def test_a_mask_whose_background_is_not_known_is_refused_or_named(tmp_path: Path) -> None:
    colours = np.where(SPOT[..., None], np.array([255, 0, 0], np.uint8), np.array([255, 255, 255], np.uint8))
    with pytest.raises(ImageError, match="several colours and none is black: make black what is not marked"):
        read_mask(saved(colours, tmp_path / "mask.png"), SIZE)
    assert read_marks(WHITE // 2 + 100, SIZE).no_background
    for one in (np.full(SIZE, 255, np.uint8), np.full((*SIZE, 3), (255, 0, 0), np.uint8)):
        assert read_marks(saved(one, tmp_path / "mask.png"), SIZE).no_background is False
        assert read_mask(tmp_path / "mask.png", SIZE).all()


# -- soft edges -------------------------------------------------------------------------------------------------------


def resized(factor: int, way: Image.Resampling) -> np.ndarray:
    small = Image.fromarray(WHITE).resize((128 // factor, 96 // factor), way)
    return np.asarray(small.resize((128, 96), way))


def drawn_finer(times: int) -> np.ndarray:
    y, x = np.mgrid[: 96 * times, : 128 * times] / times
    fine = (y - 40) ** 2 + (x - 70) ** 2 < 12**2
    return (fine.reshape(96, times, 128, times).mean(axis=(1, 3)) * 255).astype(np.uint8)


SOFT = {
    "JPEG 50": ("jpg", WHITE, {"quality": 50}),
    "JPEG 95": ("jpg", WHITE, {"quality": 95}),
    "JPEG in red": ("jpg", np.dstack([WHITE, 0 * WHITE, 0 * WHITE]), {"quality": 90}),
    "JPEG of grey marks": ("jpg", WHITE // 2 + SPOT, {"quality": 85}),
    "lossy WebP": ("webp", np.dstack([WHITE] * 3), {"quality": 60}),
    "TIFF with JPEG in it": ("tif", WHITE, {"compression": "jpeg"}),
    "bicubic": ("png", resized(2, Image.Resampling.BICUBIC), {}),
    "bilinear": ("png", resized(2, Image.Resampling.BILINEAR), {}),
    "antialiased with 4 samples": ("png", drawn_finer(2), {}),
    "antialiased with 16 samples": ("png", drawn_finer(4), {}),
    "in three channels": ("png", np.dstack([drawn_finer(4)] * 3), {}),
    "in 16 bits": ("png", drawn_finer(4).astype(np.uint16) * 257, {}),
    "in floats": ("tif", drawn_finer(4).astype(np.float32) / 255, {}),
    "in alpha": ("png", rgba((0, 0, 0), drawn_finer(4)), {}),
    "in a palette of greys": ("png", Image.fromarray(drawn_finer(4)).convert("P"), {}),
    "of a pale mask": ("png", drawn_finer(4) // 2, {}),
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_edges_are_cut_at_half_and_told(tmp_path: Path, name: str) -> None:
    suffix, image, options = SOFT[name]
    marks = read_marks(saved(image, tmp_path / f"mask.{suffix}", **options), SIZE)
    assert marks.soft
    assert np.count_nonzero(marks.pixels ^ SPOT) < 0.06 * SPOT.sum()  # above 0, JPEG alone would mark twice as much


def test_a_png_made_of_a_jpeg_is_soft_too(tmp_path: Path) -> None:
    with Image.open(saved(WHITE, tmp_path / "mask.jpg", quality=60)) as image:
        marks = read_marks(saved(image, tmp_path / "mask.png"), SIZE)
    assert marks.soft
    assert abs(marks.pixels.sum() - SPOT.sum()) < 0.05 * SPOT.sum()


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_a_png_made_of_a_jpeg_of_boxes_is_soft_too(quality: int) -> None:
    boxes = (YY > 11) & (YY < 57) & (XX > 13) & (XX < 91)  # their noise lies in bands, which touch nothing brighter
    Image.fromarray((boxes * 255).astype(np.uint8)).save(buffer := io.BytesIO(), "JPEG", quality=quality)
    marks = marks_of(np.asarray(Image.open(buffer)))
    assert marks.soft
    np.testing.assert_array_equal(marks.pixels, boxes)


def test_a_jpeg_of_nothing_marks_nothing(tmp_path: Path) -> None:
    faint = np.random.default_rng(0).integers(0, 9, SIZE).astype(np.uint8)
    marks = read_marks(saved(faint, tmp_path / "mask.jpg"), SIZE)
    assert not marks.pixels.any()
    assert marks.soft
    assert read_marks(saved(0 * faint, tmp_path / "mask.jpg"), SIZE).soft is False


LABELS = {
    "1, 2, 3": np.where(SPOT, 1 + XX % 3, 0),
    "1 and 32, touching": np.where(SPOT, np.where(XX < 70, 1, 32), 0),
    "types in greys that touch": np.where(SPOT, np.where(XX < 70, 85, 255), 0),
    "types in greys apart": np.where(SPOT, np.where(YY < 38, 60, np.where(YY > 42, 240, 0)), 0),
    "a thin line in a low grey": np.where(YY == 5, 60, 0) + np.where(YY > 90, 255, 0),
    "a void of 255": np.where(SPOT, 3, 0) + np.where(XX > 120, 255, 0),
    "regions numbered to 200": np.where(SPOT, 120 + 10 * (YY // 8), 0),
}


@pytest.mark.parametrize("name", LABELS)
def test_numbers_of_types_and_regions_are_no_soft_edges(tmp_path: Path, name: str) -> None:
    labels = LABELS[name].astype(np.uint8)
    for suffix, options in (("png", {}), ("bmp", {}), ("webp", {"lossless": True})):
        image = np.dstack([labels] * 3) if suffix == "webp" else labels
        marks = read_marks(saved(image, tmp_path / f"mask.{suffix}", **options), SIZE)
        assert not marks.soft
        np.testing.assert_array_equal(marks.pixels, labels > 0)


def test_whole_numbers_of_floats_are_numbers_of_regions_too() -> None:
    thin = np.where(XX % 4 == 0, 1.0, np.where(XX % 4 == 1, 3.0, 0.0)) * SPOT
    assert read_marks(thin, SIZE).soft is False
    np.testing.assert_array_equal(read_mask(thin.astype(np.float32), SIZE), thin > 0)


def test_types_in_colours_of_a_palette_are_no_soft_edges(tmp_path: Path) -> None:
    image = palette(np.where(SPOT, 1 + (XX + YY) % 2, 0), (0, 0, 0), (40, 0, 0), (0, 255, 0))
    marks = read_marks(saved(image, tmp_path / "mask.png"), SIZE)
    assert marks == Marks(marks.pixels, False)
    np.testing.assert_array_equal(marks.pixels, SPOT)


def test_a_mask_too_small_to_tell_is_taken_as_it_is() -> None:
    assert marks_of(np.array([[0, 1, 255], [0, 0, 128]], np.uint8)).pixels.sum() == 3


# -- files, sizes, several --------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"96x128.*48x64: make the mask as large as the image"):
        read_mask(saved(WHITE, tmp_path / "mask.png"), (48, 64))


def test_masks_of_several_files_are_their_union(tmp_path: Path) -> None:
    paths = (str(tmp_path / "a.png"), str(tmp_path / "b.jpg"))
    saved((WHITE * (XX < 70)).astype(np.uint8), Path(paths[0]))
    saved((WHITE * (XX >= 70)).astype(np.uint8), Path(paths[1]), quality=95)
    marks = read_marks(paths, SIZE)
    assert marks.soft
    assert np.count_nonzero(marks.pixels ^ SPOT) < 10
    saved(np.zeros((2, 2), np.uint8), Path(paths[1]))
    with pytest.raises(ImageError, match=r"b\.jpg: the mask is 2x2"):
        read_mask(paths, SIZE)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
def test_broken_masks_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"mask\.png: "):
        read_mask(tmp_path / "mask.png", SIZE)


def test_info_names_soft_and_inverted_masks(tmp_path: Path) -> None:
    image = saved(np.random.default_rng(0).integers(0, 255, SIZE).astype(np.uint8), tmp_path / "image.png")
    masks = {
        "soft.jpg": (WHITE, {}),
        "inverted.png": (255 - WHITE, {}),
        "no background.png": (WHITE // 2 + 100, {}),
        "plain.png": (WHITE, {}),
    }
    rows = [
        Row(str(image), "test", 1, mask=str(saved(mask, tmp_path / name, **options)))
        for name, (mask, options) in masks.items()
    ]
    rows.append(Row(str(image), "test", 1, mask=drawn_finer(4)))
    small = Row(str(saved(WHITE[:50], tmp_path / "small.png")), "test", 1, mask=str(tmp_path / "plain.png"))
    found = find_problems(Dataset("d", "", "", Table([*rows, small])))
    assert len(found["masks_unusable"]) == 1  # one mask of two images, of which one has another size
    assert found["masks_soft"] == [str(tmp_path / "soft.jpg"), f"mask of {image}"]
    assert found["masks_mark_most"] == [
        f"{tmp_path / 'inverted.png'}: 96%",
        f"{tmp_path / 'no background.png'}: 100%",
    ]


def test_the_evaluation_says_that_masks_were_soft() -> None:
    def notes(*masks: Any) -> tuple[str, ...]:
        maps = np.random.default_rng(0).random((3, *SIZE), np.float32)
        prediction = pg.Prediction.from_arrays([0.1, 0.8, 0.9], maps, [0, 1, 1], [0 * WHITE, *masks])
        return pg.evaluate(prediction).notes

    told = "Masks with soft edges or the noise of JPEG (1) are cut at half of their highest value."
    with pytest.warns(UserWarning, match=r"soft edges or the noise of JPEG \(1\)"):
        assert told in notes(WHITE, drawn_finer(4))
    assert told not in notes(WHITE, SPOT)


def test_a_mask_that_is_read_from_a_stream_of_frames_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(WHITE), Image.fromarray(255 - WHITE)]
    frames[0].save(buffer := io.BytesIO(), "TIFF", save_all=True, append_images=frames[1:])
    (tmp_path / "mask.tif").write_bytes(buffer.getvalue())
    with pytest.raises(ImageError, match="2 frames"):
        read_mask(tmp_path / "mask.tif", SIZE)
