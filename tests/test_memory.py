"""Images in memory as people have them: arrays, tensors, PIL images, bytes, loaders. A broken one loses no other."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import pickglass as pg
from pickglass.app.predict import predict
from pickglass.data import Dataset, Row, Table, as_rows, as_table, decode, fingerprint
from pickglass.errors import DataError, Failure, ImageError, InputError, shortened
from pickglass.testing import textures

H, W = 20, 30
COLOUR = np.random.default_rng(3).integers(0, 256, (H, W, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    Image.fromarray(image).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def closed_file() -> io.BytesIO:
    file = io.BytesIO(encoded(COLOUR))
    file.close()
    return file


def closed_image() -> Image.Image:
    image = opened(encoded(COLOUR))
    image.close()
    return image


def read(data: Any, **options: Any) -> list[np.ndarray | str]:
    """The images that rows hold, or why they are broken."""
    return [
        item.value if item.error is None else item.error  # type: ignore[misc]
        for item in decode(as_table(data, **options), lambda image, _: image)
    ]


# -- one broken image among others ------------------------------------------------------------------------------------

CUT = encoded(COLOUR, "JPEG", quality=95)[:-200]
FRAMES = encoded(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(COLOUR[::-1].copy())])
BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "PIL image, cut short": (lambda: opened(CUT), "cut short"),
    "PIL image, closed": (closed_image, r"was closed before it was read: pass a copy made before, image.copy\(\)"),
    "PIL image of frames": (lambda: opened(FRAMES), "2 frames, expected one: pass copies of the frames"),
    "PIL image of 32 bits": (lambda: Image.new("I", (3, 3)), "32-bit"),
    "open file, cut short": (lambda: io.BytesIO(CUT), "cut short"),
    "open file, empty": (lambda: io.BytesIO(b""), "0 bytes"),
    "open file, closed": (closed_file, "the open file cannot be read: .*closed"),
    "open file of text": (lambda: io.StringIO("text"), "open as text, expected a binary file"),
    "bytes, cut short": (lambda: CUT, "cut short"),
    "bytes of no image": (lambda: b"\x00" * 100_000, "not an image"),
    "None": (lambda: None, "cv2.imread"),
    "array with its channels first": (lambda: COLOUR.transpose(2, 0, 1), r"channels last, .transpose\(1, 2, 0\)"),
    "array of too many channels": (lambda: np.zeros((H, W, 7), np.uint8), "shape"),
    "array of one axis": (lambda: np.zeros(7, np.uint8), "shape"),
    "array of five axes": (lambda: np.zeros((1, 1, 1, 1, 1)), "shape"),
    "array of nothing": (lambda: np.zeros((0, 5), np.uint8), "shape"),
    "array with NaN": (lambda: np.where(GREY > 9, GREY / 255, np.nan), r"of its 600 float values are NaN"),
    "array with infinity": (lambda: np.full((H, W), np.inf), "600 of its 600 float values are NaN or infinite"),
    "floats up to 255": (lambda: GREY.astype(np.float32), "expected 0..1: divide by the value of white: 255"),
    "floats up to 65535": (lambda: GREY * 257.0, "expected 0..1: divide by the value of white: 65535"),
    "normalised floats": (lambda: GREY / 128 - 1, "expected 0..1: leave out what normalises"),
    "normalised tensor": (lambda: torch.randn(3, H, W), "expected 0..1: leave out what normalises"),
    "whole numbers": (lambda: GREY.astype(np.int64), r"int64.*\.astype\(np.uint8\)"),
    "numbers with a sign": (lambda: GREY.astype(np.int8), r"int8.*\.astype\(np.uint8\)"),
    "complex numbers": (lambda: GREY.astype(complex), "complex"),
    "masked array": (lambda: np.ma.masked_less(GREY, 9), r"fill it, e.g. image.filled\(0\)"),
    "path that is too long": (lambda: "x" * 5000, "cannot be opened: File name too long"),
    "path with a NUL": (lambda: "a\0b", "embedded null"),
    "path of nothing": (lambda: "", "an empty path"),
    "device": (lambda: "/dev/zero", "not a regular file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_image_loses_no_other(name: str) -> None:
    make, words = BROKEN[name]
    for data in ([GREY, make(), GREY], iter((GREY, make(), GREY))):
        first, broken, last = read(data)
        assert isinstance(first, np.ndarray)
        assert isinstance(last, np.ndarray)
        with pytest.raises(ImageError, match=words):
            raise ImageError("x", str(broken))
        assert len(str(broken)) < 400
        assert "\n" not in str(broken)


def test_broken_images_are_failures_of_predict_and_named_by_fit(detector: pg.PatchCore) -> None:
    good = list(textures(4, 64, seed=1))
    found = detector.predict([good[0], opened(CUT), None, io.BytesIO(CUT), b"none", good[1], np.zeros((H, W, 7))])
    assert [row.path for row in found.rows] == ["array:0", "array:5"]
    assert [failure.path for failure in found.failed] == ["array:1", "array:2", "array:3", "array:4", "array:6"]
    with pytest.raises(DataError, match="2 of 6 training images cannot be read") as caught:
        pg.PatchCore(size=64).fit([*good, opened(CUT), None])
    assert [failure.path for failure in caught.value.failures] == ["array:4", "array:5"]


@pytest.fixture(scope="module")
def detector() -> pg.PatchCore:
    settings = {"backbone": "resnet18", "layers": ["layer1"], "weights": "random", "size": 64, "ratio": 0.05}
    return pg.PatchCore(**settings).fit(textures(6, 64), engine="torch")  # type: ignore[arg-type]


# -- arrays and tensors -----------------------------------------------------------------------------------------------

FLOATS = (COLOUR / 255).astype(np.float32)
ARRAYS = {
    "reversed": COLOUR[::-1, ::-1],
    "columns first in memory": np.asfortranarray(COLOUR),
    "not contiguous": np.repeat(COLOUR, 2, axis=1)[:, ::2],
    "read-only": np.frombuffer(COLOUR.tobytes(), np.uint8).reshape(COLOUR.shape),
    "other byte order": COLOUR.astype(">u2"),
    "floats": FLOATS,
    "floats of other byte order": FLOATS.astype(">f4"),
    "floats of 64 bits": COLOUR / 255,
    "array of objects": np.array([None, COLOUR], object)[1:],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_however_they_lie_in_memory(name: str) -> None:
    array = ARRAYS[name]
    (found,) = read(array)
    assert isinstance(found, np.ndarray)
    assert found.dtype.isnative
    expected = np.stack(list(array)) if array.dtype == object else array
    np.testing.assert_allclose(found, expected.reshape(H, W, 3), rtol=1e-6)


TENSORS: dict[str, tuple[torch.Tensor, list[tuple[int, ...]]]] = {
    "C, H, W": (torch.rand(3, 6, 5), [(6, 5, 3)]),
    "1, H, W": (torch.rand(1, 6, 5), [(6, 5)]),
    "H, W": (torch.rand(6, 5), [(6, 5)]),
    "N, C, H, W": (torch.rand(2, 3, 6, 5), [(6, 5, 3)] * 2),
    "N, 1, H, W": (torch.rand(2, 1, 6, 5), [(6, 5)] * 2),
    "N, H, W, C": (torch.rand(2, 6, 5, 3), [(6, 5, 3)] * 2),
    "H, W, C": (torch.rand(6, 5, 3), [(6, 5, 3)]),
    "both may be channels": (torch.rand(3, 6, 3), [(6, 3, 3)]),
    "N, H, W": (torch.rand(7, 6, 8), [(6, 8)] * 7),
    "channels last in memory": (torch.rand(2, 3, 6, 5).to(memory_format=torch.channels_last), [(6, 5, 3)] * 2),
    "with a gradient": (torch.rand(3, 6, 5, requires_grad=True), [(6, 5, 3)]),
    "bfloat16": (torch.rand(3, 6, 5).to(torch.bfloat16), [(6, 5, 3)]),
    "uint8": (torch.zeros(3, 6, 5, dtype=torch.uint8), [(6, 5, 3)]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_have_their_channels_first_wherever_they_can(name: str) -> None:
    tensor, shapes = TENSORS[name]
    found = read(tensor)
    assert [image.shape for image in found if isinstance(image, np.ndarray)] == shapes
    if name == "C, H, W":
        np.testing.assert_array_equal(found[0], tensor.permute(1, 2, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 60, 50), (4, 60, 50), (2, 3, 60, 50), (2, 4, 60, 50)])
def test_arrays_with_their_channels_first_are_refused_with_the_remedy(shape: tuple[int, ...]) -> None:
    remedy = "transpose(1, 2, 0)" if len(shape) == 3 else "transpose(0, 2, 3, 1)"
    with pytest.raises(InputError) as caught:
        as_table(np.zeros(shape, np.uint8))
    assert f"pass images.{remedy}" in str(caught.value)
    assert len(as_table(list(np.zeros((3, 60, 50), np.uint8)))) == 3  # the remedy for three grey images


def test_a_wrong_number_of_channels_is_no_stack_of_grey_images() -> None:
    for bands in (2, 5, 12):
        (found,) = read(np.zeros((60, 50, bands), np.uint8))
        assert f"shape (60, 50, {bands})" in str(found)


def test_blue_green_red_as_opencv_gives_it() -> None:
    bgr, alpha = COLOUR[..., ::-1], np.dstack([COLOUR[..., ::-1], GREY])
    tensor = torch.from_numpy(bgr.copy()).permute(2, 0, 1)
    png = encoded(COLOUR)
    found = read([bgr, alpha, tensor, bgr[None], png, opened(png), io.BytesIO(png)], channels="bgr")
    assert len(found) == 7
    for image in found:
        np.testing.assert_array_equal(image, COLOUR)
    assert "channels='bgr' and an image of shape (20, 30)" in str(read([COLOUR, GREY], channels="bgr")[1])
    with pytest.raises(InputError, match="channels='BGR': expected 'rgb', or 'bgr'"):
        as_table(COLOUR, channels="BGR")  # type: ignore[arg-type]


def test_a_detector_takes_blue_green_red(detector: pg.PatchCore) -> None:
    images = [np.dstack([image[..., 0] // 3, image[..., 1], image[..., 2]]) for image in textures(3, 64, seed=5)]
    bgr = [image[..., ::-1] for image in images]
    expected = detector.predict(images).scores
    assert detector.predict(bgr).scores != pytest.approx(expected, rel=1e-3)
    assert np.array_equal(detector.predict(bgr, channels="bgr").scores, expected)
    settings: dict[str, Any] = {"backbone": "resnet18", "layers": ["layer1"], "weights": "random", "size": 64}
    one, other = (
        pg.PatchCore(**settings).fit(data, calibrate=0, engine="torch", channels=channels)
        for data, channels in ((images, "rgb"), (bgr, "bgr"))
    )
    assert one.provenance.data_sha256 == other.provenance.data_sha256


# -- PIL images, bytes, files -----------------------------------------------------------------------------------------


def test_encoded_bytes_are_read_as_an_image(detector: pg.PatchCore) -> None:
    png = encoded(COLOUR)
    for content in (png, bytearray(png), memoryview(png), [png], io.BytesIO(png), [io.BytesIO(png)]):
        np.testing.assert_array_equal(read(content)[0], COLOUR)
    assert len(detector.predict([png, encoded(COLOUR, "JPEG")])) == 2


def test_opened_images_are_decoded_when_they_are_read_and_not_kept(tmp_path: Path) -> None:
    images = []
    for i in range(4):
        Image.fromarray(COLOUR).save(tmp_path / f"{i}.png")
        images.append(Image.open(tmp_path / f"{i}.png"))
    table = as_table([*images, images[0], Image.fromarray(COLOUR)])
    for item in decode(table, lambda image, _: image, workers=4):
        np.testing.assert_array_equal(item.value, COLOUR)
    assert all(image.tile for image in images)  # what Pillow has decoded, has none
    images[0].load()
    np.testing.assert_array_equal(read(images[0])[0], COLOUR)
    for image in images:
        image.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
def test_images_that_were_loaded_are_read_though_their_file_is_closed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(encoded(COLOUR, kind))
    with Image.open(tmp_path / "a") as image:
        before = read(image)[0]
        image.load()
        copied = image.copy()
    for closed in (copied,) if kind == "GIF" else (copied, image):  # of a closed GIF nobody knows the frames
        np.testing.assert_array_equal(read([closed, closed])[1], before)


def test_what_was_asked_of_an_opened_image_is_kept() -> None:
    image = opened(encoded(np.repeat(COLOUR, 8, axis=0), "JPEG"))
    image.draft("L", (W // 2, 4 * H))
    size = image.size
    (found,) = read(image)
    assert isinstance(found, np.ndarray)
    assert found.shape == size[::-1]


def test_frames_can_be_passed_as_copies() -> None:
    found = read([frame.copy() for frame in ImageSequence.Iterator(opened(FRAMES))])
    np.testing.assert_array_equal(found[0], COLOUR)
    np.testing.assert_array_equal(found[1], COLOUR[::-1])


def test_rows_of_images_in_memory_are_told_apart_by_their_content() -> None:
    png = encoded(COLOUR)
    table = as_table([COLOUR, opened(png), png, opened(CUT)], "train")
    assert len(table.unseen_by([fingerprint(table[:1])[:16]])) == 4
    assert fingerprint(table[:1]) == fingerprint(table[1:2]) != fingerprint(table[2:3])


@pytest.mark.parametrize("white", [np.float32(1), np.uint16(65535)])
def test_deep_images_are_drawn_from_their_darkest_to_their_brightest_value(
    detector: pg.PatchCore, tmp_path: Path, white: Any
) -> None:
    grey = (textures(1, 64)[0][..., 0] / 255 * 0.2 + 0.1) * float(white)
    Image.fromarray(grey.astype(white.dtype)).save(tmp_path / "a.tif")
    calm = copy.deepcopy(detector)
    assert calm.calibration is not None
    calm.calibration = replace(calm.calibration, pixel_threshold=1e6)  # so that no heat hides the picture
    predict(calm, [tmp_path / "a.tif"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "0001-a.heat.png") as drawn:
        pixels = np.asarray(drawn)
    assert pixels.max() > 245
    assert pixels.min() < 10


# -- loaders, data sets, generators -----------------------------------------------------------------------------------


class Photographs:
    """A data set of torch: no iterator of its own."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(COLOUR), self.labels[index]


def test_loaders_and_data_sets_of_torch() -> None:
    tensors = torch.rand(5, 3, H, W)
    with_labels = torch.utils.data.TensorDataset(tensors, torch.zeros(5, dtype=torch.int64))
    for data in (
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tensors), batch_size=2),
        torch.utils.data.DataLoader(with_labels, batch_size=2),
        torch.utils.data.DataLoader(with_labels, batch_size=None),
        with_labels,
    ):
        found = read(data)
        assert len(found) == 5
        np.testing.assert_array_equal(found[4], tensors[4].permute(1, 2, 0))  # type: ignore[arg-type]
    assert len(read(Photographs([0, 1, 0]))) == 3


def test_images_of_several_labels_are_not_learned_as_good() -> None:
    assert [row.label for row in as_table(Photographs([1, 1]), "train")] == [0, 0]
    with pytest.raises(InputError, match=r"labels \[0, 1\], and which of them means good is not known"):
        as_table(Photographs([0, 0, 1]), "train")
    with pytest.raises(InputError, match="a tuple of 3 with numbers in it, expected an image, or a pair"):
        as_table([(COLOUR, GREY, 1)])


def test_a_generator_is_read_as_it_is_needed(detector: pg.PatchCore) -> None:
    taken = []

    def camera() -> Iterator[np.ndarray]:
        for i, image in enumerate(textures(40, 64, seed=2)):
            taken.append(i)
            yield image

    told: list[tuple[str, int, int]] = []
    stream = detector.stream(camera(), batch=2, workers=1, progress=lambda *at: told.append(at))
    assert isinstance(next(stream), pg.result.Found)
    assert len(taken) <= 8
    rest = list(stream)
    assert len(rest) == 39
    assert len(taken) == 40
    assert told[-1] == ("judging images", 40, 40)
    assert not any(isinstance(item, Failure) for item in rest)
    rows = as_rows(camera())
    taken.clear()
    assert next(rows).path == "array:0"
    assert taken == [0]


class Column:
    """What a column of pandas is to a reader; pandas itself is not needed for it."""

    iloc, ndim, shape = None, 1, (2,)

    def __iter__(self) -> Iterator[str]:
        return iter(("a.png", "b.png"))

    def __array__(self) -> np.ndarray:
        return np.array(list(self), object)


class Frame(Column):
    """A table of pandas, over whose columns one would iterate."""

    columns, ndim, shape = ("path", "label"), 2, (2, 2)  # type: ignore[assignment]


def test_paths_in_a_column_of_pandas_and_tables_of_it() -> None:
    assert [row.path for row in as_table(Column())] == ["a.png", "b.png"]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a Frame, .*data\['path'\]"):
        as_table(Frame())  # type: ignore[arg-type]


def test_two_of_a_kind_are_no_image_and_label() -> None:
    for data in (
        list(np.array(["a.png", "b.png"])),
        np.array(["a.png", "b.png"]),
        ("a.png", np.str_("b.png")),
        [GREY, GREY],
        (GREY, np.zeros(3)),
        [torch.rand(3, 4, 4), torch.rand(4, 4)],
        [encoded(GREY), encoded(GREY)],
        [None, GREY],
        [GREY, None],
    ):
        assert len(as_table(data)) == 2


def test_mixed_sizes_and_kinds_in_one_list() -> None:
    png = encoded(COLOUR)
    data = [COLOUR, GREY[:5], [FLOATS, (GREY[:, :7] > 9,)], torch.rand(2, 3, 4, 5), png, np.array(["none.png"])]
    found = read(data)
    assert [image.shape for image in found if isinstance(image, np.ndarray)] == [
        *((20, 30, 3), (5, 30), (20, 30, 3), (20, 7), (4, 5, 3), (4, 5, 3), (20, 30, 3))
    ]
    assert found[-1] == "no such file"


# -- messages ---------------------------------------------------------------------------------------------------------

HUGE = np.random.default_rng(0).random((300, 300))
NO_IMAGES: dict[str, Any] = {
    "dict": {f"image {i}": HUGE for i in range(1000)},
    "list of dicts": [{"image": HUGE, "label": 1}],
    "nested lists of numbers": HUGE.tolist(),
    "nested lists of colours": COLOUR.tolist(),
    "number": 5,
    "None": None,
    "object": object(),
    "class": dict,
    "range": range(3),
    "bool": True,
    "function": test_mixed_sizes_and_kinds_in_one_list,
    "array of one axis": np.zeros(100_000),
    "array of five axes": np.zeros((1, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_holds_no_images_is_refused_in_a_short_message(name: str) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        as_table(NO_IMAGES[name])
    assert len(str(caught.value)) < 400


def test_values_in_messages_are_short() -> None:
    for value in (HUGE, HUGE.tolist(), "x" * 10_000, b"x" * 10_000, {"x" * 999: HUGE}, Table([Row("x" * 9999)] * 99)):
        assert len(shortened(value)) <= 100
    assert shortened(torch.rand(2, 3)) == "Tensor of shape (2, 3)"
    assert shortened("a.png") == "'a.png'"
    assert (
        shortened((HUGE, b"xyz", np.int64(5), None)) == f"(ndarray of shape (300, 300), 3 bytes, {np.int64(5)!r}, None)"
    )
    long = ImageError("x" * 5000, "no such file")
    assert len(str(long)) < 400
    assert long.path == "x" * 5000
    assert len(str(DataError("broken:", [Failure("x" * 5000, "no such file")]))) < 400


def test_no_message_repeats_an_endless_word(tmp_path: Path) -> None:
    word = "x" * 10_000
    for call in (
        lambda: Row("a.png", role=word),  # type: ignore[arg-type]
        lambda: pg.load_dataset(word),
        lambda: pg.load(word),
        lambda: predict(pg.PatchCore(), [word]),
        lambda: pg.data.with_roi(Table([Row("a.png")]), word),
        lambda: pg.PatchCore(size=word).fit([GREY]),
        lambda: pg.PatchCore(size=HUGE).fit([GREY]),  # type: ignore[arg-type]
        lambda: pg.data.read_image(word),
        lambda: pg.data.read_mask(word, (3, 3)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize("error", [ImageError("a.png", "cut"), DataError("two:", [Failure("a.png", "cut")])])
def test_errors_cross_processes_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    row = Row("a", pixels=ImageError("a", "cut"))
    assert str(pickle.loads(pickle.dumps(row)).pixels) == "a: cut"


def test_data_sets_and_rows_stay_as_they_are() -> None:
    row = Row("a.png", "validate", 0, pixels=GREY)
    dataset = Dataset("d", "", "", Table([row]))
    assert list(as_rows(dataset)) == list(as_rows([row])) == list(as_rows(row)) == [row]
    assert as_table(row, channels="bgr")[0].pixels is GREY
