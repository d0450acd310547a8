"""Annotation files: what each format says, what is drawn, what is refused; nothing is dropped or guessed."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import os
import pickle
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pickglass.data.annotations import (
    Annotation,
    Box,
    Ellipse,
    Polygon,
    RunLengths,
    find_collections,
    means_good,
    pair_names,
    raster,
    read_collection,
    read_sidecar,
    sniff,
)
from pickglass.data.annotations.coco import counts_of_text
from pickglass.errors import DataError, ImageError, PickglassError

SIZE = (40, 50)  # (H, W) of all images here
SQUARE = [[10, 5], [20, 5], [20, 15], [10, 15]]  # columns 10 to 19, rows 5 to 14
FLAT = [number for corner in SQUARE for number in corner]


def square() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[5:15, 10:20] = True
    return mask


# -- drawing: a pixel belongs to a shape where its centre lies inside -------------------------------------------------


def inside(x: float, y: float, ring: list[list[float]]) -> bool:
    """Even-odd by the crossings of a ray to the left, one edge after the other."""
    odd = False
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            odd = not odd
    return odd


def drawn(*shapes: Polygon | RunLengths | Ellipse, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = Annotation("defective", ("a",), shapes).mask(size)
    assert mask is not None
    return mask


def random_ring(rng: np.random.Generator, halves: bool) -> np.ndarray:
    ring = rng.uniform(0, 1, (rng.integers(3, 9), 2)) * (SIZE[1], SIZE[0])
    return np.round(2 * ring) / 2 if halves else ring


@pytest.mark.parametrize("seed", range(30))
def test_polygons_equal_the_rule_pixel_by_pixel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings cross themselves; corners on edges and centres of pixels try the ties."""
    if seed >= 15:
        monkeypatch.setattr(raster, "_AT_ONCE", 7)  # in many parts, as polygons of a million corners are
    ring = random_ring(np.random.default_rng(seed), seed % 2 == 0)
    expected = [[inside(j + 0.5, i + 0.5, ring.tolist()) for j in range(SIZE[1])] for i in range(SIZE[0])]
    assert np.any(expected)
    np.testing.assert_array_equal(drawn(Polygon("a", (ring,))), expected)


@pytest.mark.parametrize("seed", range(10))
def test_polygons_equal_pillow_but_for_the_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * math.pi, 8))
    ring = np.stack([25 + 20 * np.cos(angles), 20 + 15 * np.sin(angles)], 1)
    image = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(image).polygon([tuple(corner - 0.5) for corner in ring], fill=1)
    other = np.array(image)
    differ = drawn(Polygon("a", (ring,))) != other
    for y, x in np.argwhere(differ):
        assert distance(x + 0.5, y + 0.5, ring) < 1.5  # Pillow marks what the outline touches, too


def distance(x: float, y: float, ring: np.ndarray) -> float:
    """From a point to the nearest edge of a ring."""
    start, step = ring, np.roll(ring, -1, axis=0) - ring
    share = np.clip(((np.array([x, y]) - start) * step).sum(1) / (step**2).sum(1), 0, 1)
    return float(np.hypot(*(start + share[:, None] * step - (x, y)).T).min())


def test_whole_squares_and_shared_edges() -> None:
    left = Polygon("a", (np.array([[0.0, 0], [3, 0], [3, 4], [0, 4]]),))
    right = Polygon("a", (np.array([[3.0, 0], [5, 1], [5, 4], [3, 4]]),))
    assert drawn(left).sum() == 12
    assert drawn(left, right).sum() == drawn(left).sum() + drawn(right).sum()
    assert drawn(Polygon("a", (np.array(SQUARE, float),))).tolist() == square().tolist()


def test_a_ring_within_a_polygon_joins_it_and_a_crossing_ring_has_a_hole() -> None:
    outer, inner = np.array([[0.0, 0], [9, 0], [9, 9], [0, 9]]), np.array([[3.0, 3], [6, 3], [6, 6], [3, 6]])
    assert drawn(Polygon("a", (outer, inner))).sum() == 81  # the union, as COCO has it
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    assert drawn(Polygon("a", (keyhole,))).sum() == 81 - 9  # even-odd within one ring


def test_a_thin_scratch_does_not_vanish() -> None:
    """A hairline between two rows of centres, and one on a slope."""
    flat = drawn(Polygon("a", (np.array([[2.0, 7.6], [30, 7.6], [30, 7.9], [2, 7.9]]),)))
    assert flat.sum() == 29  # columns 2 to 29, and 30, whose left edge it touches
    assert flat[7, 2:31].all()
    point = drawn(Polygon("a", (np.array([[4.1, 4.1], [4.2, 4.1], [4.2, 4.2]]),)))
    assert np.argwhere(point).tolist() == [[4, 4]]
    corner = drawn(Polygon("a", (np.array([[50.0, 40], [50, 40], [50, 40]]),)))
    assert np.argwhere(corner).tolist() == [[39, 49]]


@pytest.mark.parametrize("seed", range(10))
def test_ellipses_equal_their_equation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, a, b, degrees = rng.uniform((0, 0, 1, 1, -180), (50, 40, 30, 10, 180))
    angle = math.radians(degrees)
    expected = np.zeros(SIZE, bool)
    for i in range(SIZE[0]):
        for j in range(SIZE[1]):
            along = complex(j + 0.5 - x, i + 0.5 - y) * complex(math.cos(angle), -math.sin(angle))
            expected[i, j] = (along.real / a) ** 2 + (along.imag / b) ** 2 <= 1
    shape = Ellipse("a", x, y, a, b, degrees)
    np.testing.assert_array_equal(drawn(shape), expected)
    whole = drawn(Ellipse("a", x + 50, y + 40, a, b, degrees), size=(120, 150))
    rows, columns = np.nonzero(whole)
    left, top, width, height = shape.bounds
    assert -1 < columns.min() - (left + 50) <= 1.5
    assert -1.5 <= columns.max() + 1 - (left + 50 + width) < 1
    assert -1 < rows.min() - (top + 40) <= 1.5
    assert -1.5 <= rows.max() + 1 - (top + 40 + height) < 1


def test_a_small_ellipse_marks_the_pixel_of_its_centre() -> None:
    assert np.argwhere(drawn(Ellipse("a", 7.1, 3.9, 0.2, 0.1))).tolist() == [[3, 7]]
    assert np.argwhere(drawn(Ellipse("a", 50.4, 40.4, 0.2, 0.1))).tolist() == [[39, 49]]


# -- run lengths ------------------------------------------------------------------------------------------------------


def run_lengths(flat: np.ndarray) -> list[int]:
    """Lengths of the runs of False, True, False ..., the first of False."""
    counts, value, length = [], False, 0
    for pixel in flat.tolist():
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return [*counts, length]


def compressed(counts: list[int]) -> str:
    """COCO's text: from the fourth number on, the difference to the one before the last; 5 bits a character, low first.

    A number ends with the first character after which only copies of the sign bit are left.
    """
    text = ""
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        while True:
            five, number = number % 32, number // 32  # floor division keeps the sign
            ends = number == (-1 if five >= 16 else 0)
            text += chr(48 + five + (0 if ends else 32))
            if ends:
                break
    return text


def random_masks() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(3)
    for i in range(20):
        shape = tuple(rng.integers(1, 40, 2))
        mask = rng.random(shape) < (0.02, 0.5, 0.98)[i % 3]
        mask[tuple(rng.integers(0, shape))] = True
        yield mask
    large = np.zeros((700, 900), bool)
    large[100:650, 30:800] = True
    yield large
    yield ~large
    yield np.ones((3, 4), bool)


def test_run_lengths_are_read_back_as_they_were_written() -> None:
    for mask in random_masks():
        height, width = mask.shape
        counts = run_lengths(mask.T.ravel())
        text = compressed(counts)
        assert counts_of_text(text).tolist() == counts
        by_columns = RunLengths("a", np.array(counts), (height, width))
        by_rows = RunLengths("a", np.array(run_lengths(mask.ravel())), (height, width), by_columns=False)
        starts = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel().astype(int)])) == 1)
        lengths = counts[1::2]
        pairs = " ".join(f"{start + 1} {length}" for start, length in zip(starts, lengths, strict=True))
        rows, columns = np.nonzero(mask)
        box = columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
        for shape in (by_columns, by_rows, RunLengths.from_mask(mask), RunLengths.from_pairs(pairs, (height, width))):
            np.testing.assert_array_equal(drawn(shape, size=(height, width)), mask)
            assert shape.bounds == box
        moved = RunLengths.from_mask(mask, "a", left=4, top=2)
        assert drawn(moved, size=(height + 5, width + 5))[2 : 2 + height, 4 : 4 + width].tolist() == mask.tolist()
        assert drawn(moved, size=(height + 5, width + 5)).sum() == mask.sum()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected pairs"),
        ("3 2 9", "expected pairs"),
        ("3 -2", "expected pairs"),
        ("3.0 2", "expected pairs"),
        ("0 2", "overlaps"),
        ("3 0", "overlaps"),
        ("3 4 5 1", "overlaps"),
        ("9 1 3 1", "out of order"),
        ("20 2", "leaves an image of 4x5 = 20 pixels"),
        ("3 99999999999999999999999", "leaves an image"),
    ],
)
def test_pairs_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RunLengths.from_pairs(text, (4, 5))


# -- the formats: the same four images in each ------------------------------------------------------------------------


def labelme(shapes: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    document = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "..\\a.png", "imageData": None}
    return {**document, "imageHeight": SIZE[0], "imageWidth": SIZE[1], **more}


def labelme_shape(kind: str, points: list[list[float]], label: Any = "dent", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def png_text(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


COCO: dict[str, Any] = {
    "info": {"year": 2024},
    "images": [
        {"id": 1, "file_name": "outlined.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 2, "file_name": "boxed.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 3, "file_name": "labelled.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 4, "file_name": "good.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 5, "file_name": "runs.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 6, "file_name": "said good.png", "height": SIZE[0], "width": SIZE[1]},
    ],
    "categories": [{"id": 7, "name": "dent"}, {"id": 8, "name": "Good"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [FLAT], "bbox": [10, 5, 10, 10]},
        {"id": 2, "image_id": 2, "category_id": 7, "segmentation": [], "bbox": [10, 5, 10, 10], "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 7},
        {
            "id": 4,
            "image_id": 5,
            "category_id": 7,
            "iscrowd": 1,
            "segmentation": {"size": list(SIZE), "counts": run_lengths(square().T.ravel())},
        },
        {
            "id": 5,
            "image_id": 5,
            "category_id": 7,
            "segmentation": {"size": list(SIZE), "counts": compressed(run_lengths(square().T.ravel()))},
        },
        {"id": 6, "image_id": 6, "category_id": 8},
    ],
}

CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>dent</name></label></labels></task></meta>
  <image id="0" name="outlined.png" width="50" height="40">
    <polygon label="dent" source="manual" occluded="0" points="10.00,5.00;20.00,5.00;20.00,15.00;10.00,15.00"
      z_order="0"><attribute name="depth">2</attribute></polygon>
  </image>
  <image id="1" name="boxed.png" width="50" height="40">
    <box label="dent" xtl="10.00" ytl="5.00" xbr="20.00" ybr="15.00" z_order="0"></box>
  </image>
  <image id="2" name="labelled.png" width="50" height="40"><tag label="dent" source="manual"></tag></image>
  <image id="3" name="good.png" width="50" height="40"></image>
  <image id="4" name="runs.png" width="50" height="40">
    <mask label="dent" rle="{", ".join(map(str, run_lengths(square()[3:16, 8:22].ravel())))}" left="8" top="3"
      width="14" height="13" z_order="0"></mask>
  </image>
  <image id="5" name="said good.png" width="50" height="40"><tag label="Good" source="manual"></tag></image>
</annotations>
"""


def datumaro_item(name: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    image = {"path": f"{name}.png", "size": list(SIZE)}
    return {"id": name, "annotations": list(annotations), "attr": {"frame": 0}, "image": image}


DATUMARO = {
    "info": {},
    "categories": {"label": {"labels": [{"name": "dent", "parent": ""}, {"name": "Good"}], "attributes": []}},
    "items": [
        datumaro_item("outlined", {"id": 0, "type": "polygon", "label_id": 0, "points": FLAT, "group": 1}),
        datumaro_item("boxed", {"id": 0, "type": "bbox", "label_id": 0, "bbox": [10, 5, 10, 10], "attributes": {}}),
        datumaro_item("labelled", {"id": 0, "type": "label", "label_id": 0}, {"type": "caption", "caption": "a dent"}),
        datumaro_item("good"),
        datumaro_item(
            "runs",
            {
                "type": "mask",
                "label_id": 0,
                "rle": {"counts": compressed(run_lengths(square().T.ravel())), "size": list(SIZE)},
            },
        ),
        datumaro_item("said good", {"id": 0, "type": "label", "label_id": 1}),
    ],
}


def via_entry(name: str, regions: Any, **attributes: Any) -> dict[str, Any]:
    return {name + "123": {"filename": name, "size": 123, "regions": regions, "file_attributes": attributes}}


def via_region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes or {"type": "dent"}}


XS, YS = [x for x, _ in SQUARE], [y for _, y in SQUARE]
VIA_ENTRIES: dict[str, Any] = {
    **via_entry(
        "outlined.png", [via_region({"name": "polygon", "all_points_x": XS, "all_points_y": YS}, surface="dent")]
    ),
    **via_entry("boxed.png", {"0": via_region({"name": "rect", "x": 10, "y": 5, "width": 10, "height": 10})}),
    **via_entry("labelled.png", [], defect="dent", caption="", public_domain="no", image_url=""),
    **via_entry("good.png", [], caption=""),
    **via_entry("said good.png", {}, type={"Good": True, "dent": False}),
}
VIA = {"_via_settings": {"ui": {}}, "_via_img_metadata": VIA_ENTRIES, "_via_attributes": {"region": {}, "file": {}}}

COLLECTIONS = {
    "coco.json": json.dumps(COCO),
    "cvat.xml": CVAT,
    "datumaro.json": json.dumps(DATUMARO),
    "via.json": json.dumps(VIA_ENTRIES),
    "via_project.json": json.dumps(VIA),
}


def written(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_say_the_same(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, COLLECTIONS[name])
    found = read_collection(path)
    assert {key: value.status for key, value in found.items() if key != "runs.png"} == {
        "outlined.png": "defective",
        "boxed.png": "defective",
        "labelled.png": "defective",
        "good.png": "good",
        "said good.png": "good",
    }
    stated = None if "via" in name else SIZE
    assert all(entry.size == stated and entry.source == path for entry in found.values())
    assert all(entry.types == (("dent",) if entry.status == "defective" else ()) for entry in found.values())
    for key in {"outlined.png", "runs.png"} & set(found):
        np.testing.assert_array_equal(found[key].mask(SIZE), square())
        assert found[key].boxes[0] == [10, 5, 10, 10]
        assert found[key].has_mask
    assert isinstance(found["boxed.png"].shapes[0], Box)
    assert found["boxed.png"].boxes == [[10, 5, 10, 10]]
    for key in ("boxed.png", "labelled.png"):
        assert found[key].mask(SIZE) is None
        assert not found[key].has_mask
    assert found["labelled.png"].boxes == []
    for key in ("good.png", "said good.png"):
        mask = found[key].mask(SIZE)
        assert mask is not None
        assert mask.shape == SIZE
        assert not mask.any()
    if stated:
        with pytest.raises(ImageError, match=r"for an image of 40x50 .* but the image is 50x40.*turned by 90"):
            found["good.png"].mask((50, 40))


SIDECARS: dict[str, dict[str, Any]] = {
    "labelme": {
        "outlined.json": labelme([labelme_shape("polygon", SQUARE)]),
        "boxed.json": labelme([labelme_shape("rectangle", [[20, 15], [10, 5]])]),
        "good.json": labelme([]),
        "good too.json": labelme([labelme_shape("polygon", SQUARE, "OK")]),
    },
    "voc": {
        "outlined.xml": "<annotation><size><width>50</width><height>40</height></size><object><name>dent</name>"
        "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>20</xmax><ymax>15</ymax></bndbox><polygon><x1>10</x1><y1>5</y1>"
        "<x2>20</x2><y2>5</y2><x3>20</x3><y3>15</y3><x4>10</x4><y4>15</y4></polygon></object></annotation>",
        "boxed.xml": "<?xml version='1.0'?><!-- <annotations> --><annotation verified='yes'><folder>x</folder>"
        "<filename>other.jpg</filename><size><width>50</width><height>40</height><depth>1</depth></size>"
        "<segmented>0</segmented><object><name>dent</name><pose>Unspecified</pose><difficult>0</difficult>"
        "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>",
        "good.xml": "<annotation><size><width>0</width><height>0</height></size></annotation>",
        "good too.xml": "<annotation><object><name>normal</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object></annotation>",
    },
    "yolo": {
        "outlined.txt": "0 0.2 0.125 0.4 0.125 0.4 0.375 0.2 0.375 0.1 0.2\n",
        "boxed.txt": "0 0.3 0.25 0.2 0.25\r\n\r\n",
        "good.txt": "",
        "good too.txt": "1 0.5 0.5 0.1 0.1",
        "classes.txt": "dent\ngood\n",
    },
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_sidecars_say_the_same(tmp_path: Path, kind: str) -> None:
    paths = {name.rpartition(".")[0]: written(tmp_path, name, text) for name, text in SIDECARS[kind].items()}
    found = {name: read_sidecar(path, SIZE) for name, path in paths.items() if name != "classes"}
    assert {name: entry.status for name, entry in found.items()} == {
        "outlined": "defective",
        "boxed": "defective",
        "good": "good",
        "good too": "good",
    }
    assert all(entry.types == (("dent",) if entry.status == "defective" else ()) for entry in found.values())
    assert all(sniff(path) == kind for name, path in paths.items() if name != "classes")
    mask = found["outlined"].mask(SIZE)
    assert mask is not None
    if kind == "yolo":
        assert mask[5:15, 10:20].all()
    else:
        np.testing.assert_array_equal(mask, square())
    assert found["boxed"].mask(SIZE) is None
    np.testing.assert_allclose(found["boxed"].boxes, [[10, 5, 10, 10]])
    for name in ("good", "good too"):
        mask = found[name].mask(SIZE)
        assert mask is not None
        assert not mask.any()


def test_a_size_that_is_not_the_images_is_refused(tmp_path: Path) -> None:
    for name, text in ((n, t) for k in ("labelme", "voc") for n, t in SIDECARS[k].items() if n.startswith("boxed")):
        path = written(tmp_path, name, text)
        assert read_sidecar(path, None).size == SIZE
        with pytest.raises(ImageError, match=r"for an image of 40x50 .* but the image is 80x100: annotate") as caught:
            read_sidecar(path, (80, 100))
        assert caught.value.path == path


def test_labelme_shapes(tmp_path: Path) -> None:
    def shape(*args: Any, **more: Any) -> Any:
        (found,) = read_sidecar(written(tmp_path, "a.json", labelme([labelme_shape(*args, **more)])), SIZE).shapes
        return found

    circle = shape("circle", [[20, 10], [23, 14]])
    assert circle.bounds == (15, 5, 10, 10)
    mask = square()[5:15, 10:20]
    mask[2, 3] = False
    runs = shape("mask", [[10, 5], [19, 14]], mask=png_text(mask))
    np.testing.assert_array_equal(drawn(runs)[5:15, 10:20], mask)
    assert drawn(runs).sum() == mask.sum()
    fraction = shape("mask", [[9.6, 5.4], [18.9, 14.8]], mask=png_text(mask))  # corners that labelme rounds
    np.testing.assert_array_equal(drawn(fraction), drawn(runs))
    np.testing.assert_array_equal(
        shape("oriented_rectangle", [[20, 5], [25, 10], [20, 15], [15, 10]]).bounds,
        shape("rotation", [[20, 5], [25, 10], [20, 15], [15, 10]]).bounds,
    )
    turned = shape("rotation", [[20, 5], [25, 10], [20, 15], [15, 10]])
    assert turned.degrees == pytest.approx(45)
    assert turned.bounds == pytest.approx((15, 5, 10, 10))
    assert shape("rectangle", SQUARE).bounds == (10, 5, 10, 10)
    assert shape(None, SQUARE, label="").type == "defect"
    assert shape("polygon", SQUARE, label=3).type == "3"


@pytest.mark.parametrize(
    ("flags", "status", "types"),
    [
        ({}, "good", ()),
        ({"good": True}, "good", ()),
        ({"good": True, "bad": False}, "good", ()),
        ({"good": False, "dent": True, "crack": True}, "defective", ("dent", "crack")),
        ({"dent": False}, "good", ()),
        ({"good": False, "dent": False}, "unknown", ()),
    ],
)
def test_labelme_flags_label_the_image(tmp_path: Path, flags: dict[str, bool], status: str, types: tuple[str]) -> None:
    found = read_sidecar(written(tmp_path, "a.json", labelme([], flags=flags)), SIZE)
    assert (found.status, found.types) == (status, types)
    assert (found.mask(SIZE) is None) == (status != "good")


def test_what_is_said_twice_must_agree(tmp_path: Path) -> None:
    shapes = [labelme_shape("polygon", SQUARE), labelme_shape("polygon", SQUARE, "no defect")]
    assert len(read_sidecar(written(tmp_path, "a.json", labelme(shapes)), SIZE).shapes) == 1
    path = written(tmp_path, "a.json", labelme(shapes, flags={"good": True}))
    with pytest.raises(ImageError, match=r"labelled 'good' and has defects \(dent\)"):
        read_sidecar(path, SIZE)
    path = written(tmp_path, "a.json", labelme([], flags={"good": True, "dent": True}))
    with pytest.raises(ImageError, match=r"labelled 'good' and has defects \(dent\)"):
        read_sidecar(path, SIZE)


def test_which_names_mean_good_is_the_callers(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", labelme([labelme_shape("polygon", SQUARE, "iO")]))
    assert read_sidecar(path, SIZE).types == ("iO",)
    assert read_sidecar(path, SIZE, good={"IO"}).status == "good"
    collection = written(tmp_path, "c.json", COCO)
    assert read_collection(collection, good={"dent"})["outlined.png"].status == "good"
    assert read_collection(collection, good={"dent"})["said good.png"].types == ("Good",)
    assert [name for name in ("OK ", "Defect-Free", "no defects", "goods", "ok2") if means_good(name)] == [
        "OK ",
        "Defect-Free",
        "no defects",
    ]


def test_annotations_are_copied_and_sent_to_other_processes(tmp_path: Path) -> None:
    shapes = (*read_collection(written(tmp_path, "c.json", COCO))["outlined.png"].shapes, Ellipse("a", 9, 9, 3, 2, 10))
    said = Annotation("defective", ("a",), (*shapes, RunLengths.from_mask(square())))
    for twin in (pickle.loads(pickle.dumps(said)), copy.deepcopy(said)):
        assert twin.boxes == said.boxes
        np.testing.assert_array_equal(twin.mask(SIZE), said.mask(SIZE))


def test_a_defect_without_an_outline_hides_the_mask_of_all(tmp_path: Path) -> None:
    shapes = [labelme_shape("polygon", SQUARE), labelme_shape("rectangle", [[1, 1], [4, 4]], "pit")]
    found = read_sidecar(written(tmp_path, "a.json", labelme(shapes)), SIZE)
    assert found.types == ("dent", "pit")
    assert found.mask(SIZE) is None
    assert found.boxes == [[10, 5, 10, 10], [1, 1, 3, 3]]


def test_turned_boxes(tmp_path: Path) -> None:
    cvat = '<annotations><image name="a.png" width="50" height="40"><box label="dent" xtl="15" ytl="16" xbr="25" '
    path = written(tmp_path, "a.xml", cvat + 'ybr="20" rotation="90"/></image></annotations>')
    (box,) = read_collection(path)["a.png"].boxes
    assert box == pytest.approx([18, 13, 4, 10])
    voc = "<annotation><object><type>robndbox</type><name>dent</name><robndbox><cx>20</cx><cy>18</cy><w>10</w><h>4</h>"
    path = written(tmp_path, "b.xml", f"{voc}<angle>{math.pi / 2}</angle></robndbox></object></annotation>")
    (box,) = read_sidecar(path, SIZE).boxes
    assert box == pytest.approx([18, 13, 4, 10])
    corners = np.array([[20, 10], [26, 18], [22, 21], [16, 13]]) / (SIZE[1], SIZE[0])  # sides of 10 and 5
    path = written(tmp_path, "c.txt", "0 " + " ".join(f"{share:.6f}" for share in corners.ravel()))
    (shape,) = read_sidecar(path, SIZE).shapes
    assert isinstance(shape, Box)
    assert (shape.width, shape.height) == pytest.approx((10, 5), abs=1e-3)
    assert shape.bounds == pytest.approx((16, 10, 10, 11), abs=1e-3)


def test_ellipses_of_each_format(tmp_path: Path) -> None:
    expected = drawn(Ellipse("a", 25, 20, 10, 5, 30))
    cvat = '<annotations><image name="a.png" width="50" height="40"><ellipse label="dent" cx="25" cy="20" rx="10" '
    path = written(tmp_path, "a.xml", cvat + 'ry="5" rotation="30"/></image></annotations>')
    np.testing.assert_array_equal(read_collection(path)["a.png"].mask(SIZE), expected)
    shape = {"name": "ellipse", "cx": 25, "cy": 20, "rx": 10, "ry": 5, "theta": math.radians(30)}
    path = written(tmp_path, "v.json", via_entry("a.png", [via_region(shape)]))
    np.testing.assert_array_equal(read_collection(path)["a.png"].mask(SIZE), expected)
    circle = {"name": "circle", "cx": 25, "cy": 20, "r": 4}
    path = written(tmp_path, "v.json", via_entry("a.png", [via_region(circle)]))
    np.testing.assert_array_equal(read_collection(path)["a.png"].mask(SIZE), drawn(Ellipse("a", 25, 20, 4, 4)))
    entry = {"type": "ellipse", "label_id": 0, "points": [15, 15, 35, 25], "attributes": {"rotation": 30}}
    path = written(tmp_path, "d.json", {**DATUMARO, "items": [datumaro_item("a", entry)]})
    np.testing.assert_array_equal(read_collection(path)["a.png"].mask(SIZE), expected)


# -- YOLO's classes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "dent\ncrack\n"),
        ("obj.names", "dent\ncrack"),
        ("data.yaml", "train: ../train/images\nnc: 2\nnames: ['dent', \"crack\"]\n"),
        ("data.yaml", "names: [dent, crack]  # two\nnc: 2\n"),
        ("data.yml", "names: [\n  dent,\n  crack,\n]\n"),
        ("dataset.yaml", "path: x\nnames:\n  0: dent  # a comment\n  1: 'crack'\nroboflow:\n  license: none\n"),
        ("data.yaml", "names:\n- dent\n- crack\nnc: 2\n"),
        ("data.yaml", "names: {0: dent, 1: crack}\n"),
        ("data.yaml", "names:\n\n  1: crack\n  0: dent\n"),
    ],
)
def test_yolo_finds_the_names_of_classes(tmp_path: Path, file: str, text: str) -> None:
    path = written(tmp_path, "labels/train/line 1/a.txt", "1 0.5 0.5 0.1 0.1\n0 0.2 0.2 0.1 0.1\n")
    assert read_sidecar(path, SIZE).types == ("class 1", "class 0")
    written(tmp_path, "docker/data.yaml", "services: {}\n")
    written(tmp_path, file, text)
    assert read_sidecar(path, SIZE).types == ("crack", "dent")
    near = written(tmp_path, "labels/classes.txt", "pit\nscratch\nstain")
    assert read_sidecar(path, SIZE).types == ("scratch", "pit")  # the nearest
    written(tmp_path, "labels/data.yaml", "services: {}\n")
    assert read_sidecar(path, SIZE).types == ("scratch", "pit")
    written(tmp_path, "labels/data.yaml", "names: [pit, other]\n")
    with pytest.raises(ImageError, match="name the classes differently"):
        read_sidecar(path, SIZE)
    os.remove(near)
    assert read_sidecar(path, SIZE).types == ("other", "pit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [dent\n", "not closed"),
        ("names: classes.txt\n", "expected a list"),
        ("names: []\n", "is empty"),
        ("names:\n  0: dent\n  0: pit\n", "named twice"),
        ("names:\n  - {a: b}\n", "no name of a class"),
        ("names: [dent]\nkpt_shape: [17, 3]\n", "key points"),
        ("names: [dent]\n", "class 1 has no name: the classes are dent"),
        (b"names: [d\xe9nt]\n", "not a text in UTF-8"),
    ],
)
def test_yolo_classes_that_cannot_be_read(tmp_path: Path, text: Any, message: str) -> None:
    written(tmp_path, "data.yaml", text)
    with pytest.raises(ImageError, match=message):
        read_sidecar(written(tmp_path, "a.txt", "1 0.5 0.5 0.1 0.1"), SIZE)


# -- what cannot be used ----------------------------------------------------------------------------------------------


def coco_with(annotation: dict[str, Any], **image: Any) -> dict[str, Any]:
    entry = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1], **image}
    whole = {"id": 1, "image_id": 1, "category_id": 7, **annotation}
    return {"images": [entry], "categories": [{"id": 7, "name": "dent"}], "annotations": [whole]}


def cvat_with(inner: str) -> str:
    return f'<annotations><image name="a.png" width="50" height="40">{inner}</image></annotations>'


def voc_with(inner: str) -> str:
    return f"<annotation><size><width>50</width><height>40</height></size>{inner}</annotation>"


def voc_box(*edges: Any) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{name}>{edge}</{name}>" for name, edge in zip(names, edges, strict=True))
    return voc_with(f"<object><name>dent</name><bndbox>{inner}</bndbox></object>")


SIDE_ERRORS: list[tuple[str, Any, str]] = [
    ("a.json", "", "no annotation that pickglass knows"),
    ("a.json", "{}", "no annotation that pickglass knows"),
    ("a.json", '{"exposure": 3}', "no annotation that pickglass knows"),
    ("a.xml", "", "no annotation that pickglass knows"),
    ("a.xml", "<camera/>", "no annotation that pickglass knows"),
    ("a.json", '{"shapes": [}', r"not JSON: .* in line 1, column 13"),
    ("a.json", '{"shapes": [],\n "shapes": []}', "key 'shapes' twice"),
    ("a.json", '{"shapes": []} {}', "Extra data"),
    ("a.json", '{"shapes": ' + "[" * 100_000, "not JSON"),
    ("a.json", labelme([labelme_shape("polygon", [[1, 1], [math.nan, 5], [7, 9]])]), "NaN in JSON"),
    ("a.json", json.dumps(labelme([])).replace('"shapes": []', '"shapes": [1e999]'), "expected an object"),
    (
        "a.json",
        json.dumps(labelme([labelme_shape("polygon", [[1, 1], [2, 5], [7, 97]])])).replace("97", "1e999"),
        "fin",
    ),
    ("a.json", b'{"shapes": [], "\xff": 1}', "not JSON"),
    ("a.json", {"imageData": "x", "imageHeight": 40, "imageWidth": 50}, "'shapes' is None"),
    ("a.json", labelme([labelme_shape("polygon", SQUARE[:2])]), "polygon of 2 corners, expected at least 3"),
    ("a.json", labelme([labelme_shape("polygon", [[1, 2, 3]])]), "has 3 numbers, expected 2"),
    ("a.json", labelme([labelme_shape("polygon", [[1, "2"], [3, 4], [5, 6]])]), "is '2', expected a number"),
    ("a.json", labelme([labelme_shape("polygon", [[1, True], [3, 4], [5, 6]])]), "is True, expected a number"),
    ("a.json", labelme([labelme_shape("polygon", [*SQUARE, [51.5, 3]])]), "leaves its image of 40x50"),
    ("a.json", labelme([labelme_shape("rectangle", [[-3, 2], [5, 5]])]), "leaves its image of 40x50"),
    ("a.json", labelme([labelme_shape("rectangle", [[3, 2], [3, 5]])]), "box of width 0"),
    ("a.json", labelme([labelme_shape("rectangle", SQUARE[:3])]), "'rectangle' of 3 points"),
    ("a.json", labelme([labelme_shape("rotation", [[1, 1], [9, 1], [9, 9], [4, 9]])]), "no rectangle's"),
    ("a.json", labelme([labelme_shape("circle", [[3, 2], [3, 2]])]), "ellipse with the semi-axes 0"),
    ("a.json", labelme([labelme_shape("circle", [[70, 2], [3, 2]])]), "leaves its image"),
    ("a.json", labelme([labelme_shape("linestrip", SQUARE)]), "'linestrip' is neither an outline nor a box"),
    ("a.json", labelme([labelme_shape("point", SQUARE[:1])]), "'point' is neither an outline nor a box"),
    ("a.json", labelme([labelme_shape("cuboid", SQUARE)]), "shape_type 'cuboid'"),
    ("a.json", labelme([labelme_shape("mask", SQUARE[:2], mask="%%")]), "not base64"),
    ("a.json", labelme([labelme_shape("mask", SQUARE[:2], mask="abcd")]), "not an image"),
    ("a.json", labelme([labelme_shape("mask", SQUARE[:2])]), "'mask' is None"),
    (
        "a.json",
        labelme([labelme_shape("mask", [[1, 1], [4, 3]], mask=png_text(np.ones((2, 2))))]),
        r"shape \(2, 2\), but its corners",
    ),
    (
        "a.json",
        labelme([labelme_shape("mask", [[1, 1], [2, 2]], mask=png_text(np.zeros((2, 2))))]),
        "mark no pixel",
    ),
    (
        "a.json",
        labelme([labelme_shape("mask", [[50, 1], [51, 2]], mask=png_text(np.ones((2, 2))))]),
        "leaves its image",
    ),
    ("a.json", labelme([], flags={"good": 1}), "flag 'good' is 1"),
    ("a.json", labelme([labelme_shape("polygon", SQUARE, "__ignore__")]), "is to be ignored"),
    ("a.json", labelme([], imageHeight=0), "an image of 0x50"),
    ("a.json", labelme([], imageHeight=40.5), "expected a whole number"),
    ("a.json", labelme([], imageHeight=None), "height is None"),
    ("a.json", COCO, "a file with 6 images has the stem of one image"),
    ("a.json", coco_with({}, height=41), "for an image of 41x50"),
    ("a.xml", voc_box(10, 5, 10, 15), "box of width 0"),
    ("a.xml", voc_box(10, 5, 9, 15), "box of width -1"),
    ("a.xml", voc_box(10, 5, "nan", 15), "bndbox xmax is 'nan', expected a number"),
    ("a.xml", voc_box(10, 5, "", 15), "bndbox xmax is '', expected a number"),
    ("a.xml", voc_box(10, 5, 20, 45), "leaves its image"),
    ("a.xml", voc_with("<object><name>dent</name></object>"), "object 1: 'dent' has no bndbox"),
    ("a.xml", voc_with("<object><polygon><x1>1</x1><y2>2</y2></polygon></object>"), "expected x1, y1, x2"),
    ("a.xml", voc_with("<outputs><object><name>a</name></object></outputs>"), "'object' elsewhere"),
    ("a.xml", voc_with("<bndbox><xmin>1</xmin></bndbox>"), "'bndbox' elsewhere"),
    ("a.xml", voc_box(10, 5, 20, 15).replace("<annotation>", '<annotation xmlns="http://x.y">'), "elsewhere"),
    ("a.xml", voc_box(10, 5, 20, 15).replace("object", "Object"), "'object' elsewhere"),
    ("a.xml", voc_box(10, 5, 20, 15)[:-5], "not XML"),
    ("a.xml", "<!DOCTYPE annotation>" + voc_with(""), "declares a document type"),
    ("a.xml", "<?xml version='1.0' encoding='nonsense'?>" + voc_with(""), "not XML"),
    ("a.txt", "a scratch on the left", "line 1: .* has 5 values|the class 'a'"),
    ("a.txt", "dent", "line 1: 'dent' has 1 values"),
    ("a.txt", "0 0.5 0.5 0.1", "has 4 values"),
    ("a.txt", "0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1 0.93", "line 2: .*a prediction with its confidence"),
    ("a.txt", "0 0.5 0.5 nan 0.1", "expected a number"),
    ("a.txt", "-1 0.5 0.5 0.1 0.1", "the class '-1'"),
    ("a.txt", "0.5 0.5 0.5 0.1 0.1", "the class '0.5'"),
    ("a.txt", "0 20 15 5 5", "0 to 1, no pixels"),
    ("a.txt", "0 0.99 0.5 0.3 0.1", "leaves its image"),
    ("a.txt", "0 0.5 0.5 0 0.1", "box of width 0"),
    ("a.txt", b"\xff\xfe0\x000\x00", "not a text in UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "message"), SIDE_ERRORS, ids=range(len(SIDE_ERRORS)))
def test_a_sidecar_that_cannot_be_used_is_an_error(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(ImageError, match=message) as caught:
        read_sidecar(path, SIZE)
    assert caught.value.path == path
    assert len(caught.value.reason) < 800 if "knows" in message else len(caught.value.reason) < 500


FEW = np.array([20, 3, 1977])  # of 2000 pixels
COLLECTION_ERRORS: list[tuple[str, Any, str]] = [
    ("a.json", labelme([]), "an annotation of one image"),
    ("a.json", {"images": [], "categories": []}, "'annotations' is None"),
    ("a.json", {**COCO, "images": [*COCO["images"], COCO["images"][0]]}, "no other image has"),
    ("a.json", {**COCO, "images": [*COCO["images"], {"id": 9, "file_name": "good.png"}]}, "lists the image twice"),
    ("a.json", {**COCO, "images": [*COCO["images"], {"id": 9, "file_name": ".\\good.png"}]}, "lists the image twice"),
    ("a.json", {**COCO, "images": COCO["images"][1:]}, "annotation 1: image_id 1 is the id of no image"),
    ("a.json", coco_with({"image_id": "1"}), "image_id '1' is the id of no image"),
    ("a.json", coco_with({"image_id": [1]}), r"image_id \[1\] is the id of no image"),
    ("a.json", coco_with({"category_id": 3}), r"category_id 3 is the id of no category: expected one of \[7\]"),
    ("a.json", coco_with({"category_id": None}), "category_id None"),
    ("a.json", coco_with({"ignore": 1}), "to be ignored"),
    ("a.json", coco_with({"segments_info": []}), "panoptic"),
    ("a.json", coco_with({"bbox": [1, 2, 3, 4, 30]}), "has 5 numbers, expected 4"),
    ("a.json", coco_with({"bbox": [1, 2, 3, 0]}), "height 0"),
    ("a.json", coco_with({"bbox": False}), "is False, expected a list"),
    ("a.json", coco_with({"segmentation": ""}), "is '', expected a list"),
    ("a.json", coco_with({"segmentation": {}}), r"'size' \[height, width\] is None"),
    ("a.json", coco_with({"bbox": [45, 2, 9, 4]}), "leaves its image"),
    ("a.json", coco_with({"segmentation": [[1, 2, 3, 4]]}), "polygon of 2 corners"),
    ("a.json", coco_with({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}), "expected numbers"),
    ("a.json", coco_with({"segmentation": [[1, 2], [3, 4], [5, 6]]}), "polygon of 1 corners"),
    ("a.json", coco_with({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}), "expected numbers"),
    ("a.json", coco_with({"segmentation": [[1, 2, 3, [4], 5, 6]]}), "expected numbers"),
    ("a.json", coco_with({"segmentation": [[1, 2, 3, "4", 5, 6]]}), "expected numbers"),
    ("a.json", coco_with({"segmentation": [1, 2, 3, 4, 5, 6]}), "is 1, expected a list"),
    ("a.json", coco_with({"segmentation": "abc"}), "is 'abc', expected a list"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": [5, 3]}}), "run lengths of 8 pixels"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": [2000]}}), "mark no pixel"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": [2003, -3]}}), "the smallest -3"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": [2.0, 1998]}}), "expected whole numbers"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": [2**64]}}), "expected whole numbers"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": [2**62, 2**62]}}), "run lengths of 92"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": None}}), "'counts' is None"),
    (
        "a.json",
        coco_with({"segmentation": {"size": [50, 40], "counts": FEW.tolist()}}),
        "elsewhere in the file is 40x50",
    ),
    ("a.json", coco_with({"segmentation": {"size": [1e9, 1e9], "counts": [0, 9]}}), "1000000000x1000000000"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": "a b"}}), "damaged or cut short"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": ""}}), "damaged or cut short"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": "0oooooooo0"}}), "more than six characters"),
    ("a.json", coco_with({"segmentation": {"size": [40, 50], "counts": compressed([2000])[:-1]}}), "cut short"),
    ("a.json", {**COCO, "categories": [*COCO["categories"], {"id": 7, "name": "pit"}]}, "that no other has"),
    ("a.xml", cvat_with('<polyline label="dent" points="1,2;3,4;5,6"/>'), "'polyline' is neither an outline nor a box"),
    ("a.xml", cvat_with('<points label="dent" points="1,2"/>'), "'points' is neither an outline nor a box"),
    ("a.xml", cvat_with('<skeleton label="dent"/>'), "'skeleton' is neither an outline nor a box"),
    ("a.xml", cvat_with('<polygon label="dent" points="1,2;3,4"/>'), "polygon of 2 corners"),
    ("a.xml", cvat_with('<polygon label="dent" points="1,2;3,4;5"/>'), "expected 'x,y;x,y"),
    ("a.xml", cvat_with('<polygon label="dent" points="1,2;3,4;5,inf"/>'), "expected a number"),
    ("a.xml", cvat_with('<polygon label="dent"/>'), "the points None"),
    ("a.xml", cvat_with('<box label="dent" xtl="1" ytl="2" xbr="3"/>'), "box ybr is None"),
    (
        "a.xml",
        cvat_with('<mask label="d" rle="1,2" left="0" top="0" width="2" height="2"/>'),
        "run lengths of 3 pixels",
    ),
    ("a.xml", cvat_with('<mask label="d" rle="1,x" left="0" top="0" width="2" height="2"/>'), "expected whole numbers"),
    ("a.xml", cvat_with('<mask label="d" rle="0,4" left="50" top="0" width="2" height="2"/>'), "leaves its image"),
    ("a.xml", cvat_with('<mask label="d" rle="0,4" left="0" top="0.5" width="2" height="2"/>'), "expected whole"),
    ("a.xml", cvat_with("").replace('name="a.png"', ""), "the image's name is None"),
    ("a.xml", cvat_with("").replace('width="50"', ""), "image width is None"),
    ("a.xml", cvat_with("")[:-14] + '<track id="0" label="dent"/></annotations>', "track: export the task as"),
    ("a.xml", cvat_with("").replace("<annotations>", '<annotations xmlns="http://x.y">'), "export the task as"),
    ("a.xml", "<!DOCTYPE annotations [<!ENTITY a 'b'>]>" + cvat_with("&a;"), "declares a document type"),
    (
        "a.json",
        {**DATUMARO, "items": [datumaro_item("a", {"type": "polyline", "label_id": 0})]},
        "'polyline' is neither",
    ),
    ("a.json", {**DATUMARO, "items": [datumaro_item("a", {"type": "label", "label_id": 2})]}, "there are 2"),
    ("a.json", {**DATUMARO, "items": [datumaro_item("a", {"type": "label", "label_id": -1})]}, "there are 2"),
    ("a.json", {**DATUMARO, "items": [datumaro_item("a"), datumaro_item("a")]}, "lists the image twice"),
    ("a.json", {**DATUMARO, "items": [{"id": "a"}]}, "'annotations' is None"),
    ("a.json", {**DATUMARO, "items": None}, "'items' is None"),
    ("a.json", {**DATUMARO, "items": [datumaro_item("a", {"type": "polygon", "label_id": 0, "points": [1]})]}, "1 num"),
    ("a.json", via_entry("a.png", None), "'regions' is None"),
    ("a.json", {"a.png1": {"filename": "a.png", "regions": [], "file_attributes": 0}}, "'file_attributes' is 0"),
    ("a.json", via_entry("a.png", [via_region({"name": "polyline"})]), "'polyline' is neither"),
    ("a.json", via_entry("a.png", [via_region({"name": "rect"}, depth="2", side="left")]), "name no single type"),
    ("a.json", via_entry("a.png", [via_region({"name": "rect"}, type={"a": True, "b": True})]), "name no single type"),
    (
        "a.json",
        via_entry("a.png", [via_region({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]})]),
        "3 values of x and 2 of y",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), COLLECTION_ERRORS, ids=range(len(COLLECTION_ERRORS)))
def test_a_collection_that_cannot_be_used_is_an_error(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_collection(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500 + len(path)


def test_all_faults_of_a_collection_are_named_in_one_run(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(40)]
    annotations = [{"image_id": i, "category_id": 7, "segmentation": [[1, 2]]} for i in range(30)]
    path = written(tmp_path, "a.json", {**COCO, "images": images, "annotations": annotations})
    with pytest.raises(DataError, match=r"30 entries cannot be used: The first 20:") as caught:
        read_collection(path)
    assert [failure.path for failure in caught.value.failures] == [f"{i}.png" for i in range(30)]
    assert str(caught.value).count("\n") == 20


def test_entities_do_not_expand(tmp_path: Path) -> None:
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(12))
    text = f"<!DOCTYPE annotation [{bomb}]><annotation><object><name>&e11;</name></object></annotation>"
    for data in (text.encode(), text.encode("utf-16")):
        with pytest.raises(ImageError, match="declares a document type"):
            read_sidecar(written(tmp_path, "a.xml", data), SIZE)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    os.mkfifo(tmp_path / "b.json")
    for name, message in (("a.json", "is a folder"), ("b.json", "not a regular file"), ("c.json", "no such file")):
        with pytest.raises(ImageError, match=message):
            read_sidecar(str(tmp_path / name), None)
        with pytest.raises(DataError, match=message):
            read_collection(str(tmp_path / name))
        with pytest.raises(DataError, match=message):
            sniff(str(tmp_path / name))


def test_rounding_is_moved_to_the_edge_of_the_image(tmp_path: Path) -> None:
    shapes = [
        labelme_shape("polygon", [[-0.6, 3], [50.9, 3], [50.9, 41], [-0.6, 41]]),
        labelme_shape("rectangle", [[-1, -1], [51, 41]]),
    ]
    shapes.append(labelme_shape("mask", [[49, -1], [50, 0]], mask=png_text(np.array([[1, 0], [1, 0]]))))
    polygon, box, runs = read_sidecar(written(tmp_path, "a.json", labelme(shapes)), SIZE).shapes
    assert isinstance(polygon, Polygon)
    assert polygon.bounds == (0, 3, 50, 37)
    assert drawn(polygon).sum() == 37 * 50
    assert box.bounds == (0, 0, 50, 40)
    assert isinstance(runs, RunLengths)
    assert np.argwhere(drawn(runs)).tolist() == [[0, 49]]


def test_sizes_that_no_file_states_are_checked_when_the_image_is_known(tmp_path: Path) -> None:
    document = labelme([labelme_shape("polygon", SQUARE)], imageHeight=None, imageWidth=None)
    path = written(tmp_path, "a.json", document)
    with pytest.raises(ImageError, match="leaves its image of 10x10"):
        read_sidecar(path, (10, 10))
    found = read_sidecar(path, None)
    assert found.size is None
    assert found.mask(SIZE) is not None
    with pytest.raises(ImageError, match="leaves its image of 10x10"):
        found.mask((10, 10))
    runs = coco_with({"segmentation": {"size": list(SIZE), "counts": FEW.tolist()}}, height=None, width=None)
    (entry,) = read_collection(written(tmp_path, "c.json", runs)).values()
    assert entry.size == SIZE  # run lengths state it
    yolo = written(tmp_path, "y.txt", "0 0.5 0.5 0.1 0.1")
    with pytest.raises(ImageError, match=r"pass image_size \(H, W\)"):
        read_sidecar(yolo, None)
    assert read_sidecar(written(tmp_path, "z.txt", "\n"), None).status == "good"


def test_one_image_in_a_collection_is_a_sidecar(tmp_path: Path) -> None:
    assert read_sidecar(written(tmp_path, "a.json", coco_with({"bbox": [1, 2, 3, 4]})), SIZE).types == ("dent",)
    assert read_sidecar(written(tmp_path, "a.xml", cvat_with("")), SIZE).status == "good"


def test_a_mere_list_of_images_says_nothing_of_them(tmp_path: Path) -> None:
    document = {**COCO, "annotations": []}
    assert read_collection(written(tmp_path, "a.json", document))["good.png"].status == "good"
    found = read_collection(written(tmp_path, "a.json", {**document, "categories": []}))["good.png"]
    assert (found.status, found.mask(SIZE)) == ("unknown", None)


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({}, "good"),
        ({"caption": "a part", "public_domain": "no"}, "good"),
        ({"quality": ""}, "good"),
        ({"quality": "ok"}, "good"),
        ({"Status": "NG"}, "defective"),
        ({"operator": "Bo"}, "unknown"),
        ({"check": {"scratched": True}}, "unknown"),
    ],
)
def test_attributes_of_a_file_in_via(tmp_path: Path, attributes: dict[str, Any], status: str) -> None:
    path = written(tmp_path, "a.json", via_entry("a.png", [], **attributes))
    assert read_collection(path)["a.png"].status == status
    region = via_region({"name": "rect", "x": 1, "y": 1, "width": 5, "height": 5})
    if status != "good" or "ok" not in attributes.values():
        path = written(tmp_path, "a.json", via_entry("a.png", [region], **attributes))
        assert read_collection(path)["a.png"].status == "defective"


def test_coco_without_categories(tmp_path: Path) -> None:
    document = coco_with({"bbox": [1, 2, 3, 4], "category_id": None})
    del document["categories"]
    assert read_collection(written(tmp_path, "a.json", document))["a.png"].types == ("defect",)


# -- telling files apart, pairing names -------------------------------------------------------------------------------


def test_formats_are_told_by_their_content(tmp_path: Path) -> None:
    for name, text in COLLECTIONS.items():
        assert sniff(written(tmp_path, name, text)) == name.partition(".")[0].removesuffix("_project")
    many = {"annotations": COCO["annotations"][:1] * 3000, "images": COCO["images"], "categories": COCO["categories"]}
    assert sniff(written(tmp_path, "m.json", many)) == "coco"
    last = {**labelme([]), "flags": {}}
    ordered = {"imageData": "A" * 500_000, **{key: last[key] for key in ("imagePath", "shapes")}}
    assert sniff(written(tmp_path, "l.json", ordered)) == "labelme"
    for name, text in (
        ("notes.txt", "the part is scratched"),
        ("train.txt", "./images/a.png\n./images/b.png"),
        ("classes.txt", "dent\ngood"),
        ("camera.json", {"exposure": 3}),
        ("list.json", "[1, 2]"),
        ("empty.json", ""),
        ("a.svg.xml", "<svg/>"),
    ):
        assert sniff(written(tmp_path, name, text)) is None
    assert sniff(written(tmp_path, "bom.json", b"\xef\xbb\xbf" + json.dumps(COCO).encode())) == "coco"
    wide = written(tmp_path, "wide.json", json.dumps(COCO).encode("utf-16"))
    assert sniff(wide) == "coco"
    assert len(read_collection(wide)) == 6


def test_collections_are_found_among_other_files(tmp_path: Path) -> None:
    names = [written(tmp_path, name, text) for name, text in COLLECTIONS.items()]
    others = [
        written(tmp_path, "a.json", labelme([])),
        written(tmp_path, "a.xml", voc_with("")),
        written(tmp_path, "a.txt", ""),
        written(tmp_path, "camera.json", {"exposure": 3}),
    ]
    damaged = [
        written(tmp_path, "_annotations.coco.json", "\0" * 9),
        written(tmp_path, "annotations.xml", "<"),
        written(tmp_path, "instances_default.json", ""),
    ]
    assert find_collections([*names, *others, *damaged, str(tmp_path / "a.png")]) == [*names, *damaged]
    for path in damaged:
        with pytest.raises(DataError, match="no annotation that pickglass knows"):
            read_collection(path)


def test_names_are_paired_with_images() -> None:
    umlaut = "Kühler.png"
    images = [f"/d/images/train/{n}" for n in ("a.png", "b.png")] + ["/d/images/test/a.png", f"/d/{umlaut}", "/d/c.JPG"]
    names = ["train/a.png", "C:\\work\\b.png", "test\\a.png", unicodedata.normalize("NFD", umlaut), "c", "absent.png"]
    assert pair_names(names, images) == {
        "/d/images/train/a.png": names[0],
        "/d/images/train/b.png": names[1],
        "/d/images/test/a.png": names[2],
        f"/d/{umlaut}": names[3],
        "/d/c.JPG": "c",
    }
    assert pair_names(["./x/a.png", "y/a.png"], ["x/a.png"]) == {"x/a.png": "./x/a.png"}
    assert pair_names(["y/a.png", "a.png"], ["x/a.png"]) == {"x/a.png": "a.png"}
    assert pair_names(["part.1"], ["x/part.1.png", "x/part.png"]) == {"x/part.1.png": "part.1"}
    assert pair_names(["a.png"], ["a.png.png", "A.png"]) == {}
    with pytest.raises(DataError, match=r"'a\.png' fits 2 images"):
        pair_names(["a.png"], images)
    with pytest.raises(DataError, match="both fit"):
        pair_names(["x/a.png", "y/a.png"], ["z/a.png"])


# -- files damaged at random: an annotation or an error of pickglass --------------------------------------------------

SAMPLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    **{name: (text, read_collection) for name, text in COLLECTIONS.items()},
    "labelme.json": (
        json.dumps(
            labelme(
                [
                    labelme_shape("polygon", SQUARE),
                    labelme_shape("circle", [[20, 10], [23, 14]]),
                    labelme_shape("rectangle", SQUARE[::2], "good"),
                    labelme_shape("mask", [[10, 5], [13, 8]], mask=png_text(np.eye(4))),
                ],
                flags={"ok": False},
            )
        ),
        lambda path: read_sidecar(path, SIZE),
    ),
    "voc.xml": (SIDECARS["voc"]["outlined.xml"], lambda path: read_sidecar(path, SIZE)),
    "yolo.txt": ("0 0.2 0.1 0.4 0.1 0.4 0.3\n1 0.3 0.3 0.2 0.2\n", lambda path: read_sidecar(path, SIZE)),
}
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 0.5, 1e-320, 1e308, -1e308, 2**31, 2**70, "", "x", "0", "nan", "\ud800", "\0"),
    *([], {}, [[]], [None], [1, 2, 3], [[1e308, -1e308]] * 4, {"a": 1}, "0" * 50, [40, 50], "P0", [0, 2000]),
)


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 5, 40)))
    middle = rng.choice((b"", rng.randbytes(b - a), data[a:b] * 2, b"9" * (b - a), b'"', b"-", b"e9", b"}", b"<a>"))
    return data[:a] + middle + data[b:] if rng.random() < 0.8 else data[:a]


def value_changed(text: str, rng: random.Random) -> str:
    """Put a strange value in the place of one in JSON, or of a number or word between quotes, tags or spaces."""
    if not text.startswith("{"):
        spots = [i for i in range(len(text) - 1) if text[i] in '" >,;' and text[i + 1].isalnum()]
        at = rng.choice(spots)
        end = next((i for i in range(at + 1, len(text)) if text[i] in '"< ,;\n'), len(text))
        return text[: at + 1] + str(rng.choice(STRANGE[:19])) + text[end:]
    document = json.loads(text)
    spots: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], (dict, list)):
                collect(node[key])

    collect(document)
    node, key = rng.choice(spots)
    if rng.random() < 0.15:
        del node[key]
    else:
        node[key] = rng.choice(STRANGE)
    return json.dumps(document)


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    text, read = SAMPLES[name]
    rng = random.Random(name)
    refused = 0
    for i in range(200):
        if i % 3 == 0:
            data = bytes_changed(text.encode(), rng)
        else:
            data = value_changed(text, rng).encode("utf-8", "surrogatepass")
        path = written(tmp_path, name, data)
        try:
            found = read(path)
            for entry in [found] if isinstance(found, Annotation) else found.values():
                assert entry.boxes is not None
                assert entry.has_mask == (entry.mask(SIZE) is not None)
        except PickglassError:
            refused += 1
    assert 40 < refused < 200
