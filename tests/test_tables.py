"""Rows, tables, and the split into roles: whole groups, a fixed seed, the shares asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import integers
from PIL import Image

from pickglass.data.images.decoder import decode_all
from pickglass.data.tables.rows import Dataset, Row, Table, fingerprint, group_by, image_digest, split_roles
from pickglass.errors import DataError, ImageError, InputError


def good(count: int, groups: int | None = None) -> Table:
    return Table(
        [Row(f"{i}.png", "train", 0, group=None if groups is None else f"g{i % groups}") for i in range(count)]
    )


def counts(table: Table) -> dict[str, int]:
    return dict(Counter(row.role for row in table))


def test_row_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(InputError, match="'training' is none of train, fit"):
        Row("a.png", "training")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="label 2"):
        Row("a.png", label=2)


def test_rows_compare_without_their_pixels() -> None:
    assert Row("array:0", pixels=np.zeros((2, 2))) == Row("array:0", pixels=np.ones((2, 2)))


def test_table_is_a_sequence_that_filters() -> None:
    table = good(4) + Table([Row("bad.png", "test", 1, "hole")])
    assert len(table) == 5
    assert table[4].defect == "hole"
    assert isinstance(table[1:3], Table)
    assert [row.path for row in table[1:3]] == ["1.png", "2.png"]
    assert [row.path for row in table.role("test")] == ["bad.png"]
    assert len(table.where(lambda row: row.label == 0)) == 4
    assert repr(table) == "Table(5 rows)"


def test_dataset_train_is_everything_but_test() -> None:
    table = Table([Row("a", "train"), Row("b", "validate"), Row("c", "test"), Row("d", "calibrate")])
    dataset = Dataset("name", "root", "folder", table)
    assert [row.path for row in dataset.train] == ["a", "b", "d"]
    assert [row.path for row in dataset.test] == ["c"]


def test_split_honours_the_shares_and_keeps_the_order() -> None:
    table = good(100) + Table([Row("t.png", "test", 1)])
    split = split_roles(table, validate=0.1, calibrate=0.2, seed=0)
    assert counts(split) == {"fit": 70, "validate": 10, "calibrate": 20, "test": 1}
    assert [row.path for row in split] == [row.path for row in table]
    assert counts(split_roles(table, 0, 0, 0)) == {"fit": 100, "test": 1}


def test_split_is_decided_by_the_seed() -> None:
    assert list(split_roles(good(50), 0.1, 0.1, 3)) == list(split_roles(good(50), 0.1, 0.1, 3))
    assert list(split_roles(good(50), 0.1, 0.1, 3)) != list(split_roles(good(50), 0.1, 0.1, 4))


@given(groups=integers(3, 60), seed=integers(0, 2**32 - 1))
def test_split_never_parts_a_group(groups: int, seed: int) -> None:
    split = split_roles(good(120, groups), validate=0.15, calibrate=0.15, seed=seed)
    roles: dict[str | None, set[str]] = {}
    for row in split:
        roles.setdefault(row.group, set()).add(row.role)
    assert all(len(found) == 1 for found in roles.values())
    assert set(counts(split)) == {"fit", "validate", "calibrate"}
    largest = 120 // groups + 1
    assert 18 <= counts(split)["calibrate"] <= 18 + largest
    assert 18 <= counts(split)["validate"] <= 18 + largest


def test_a_group_is_not_confused_with_a_path_of_the_same_name() -> None:
    table = Table([Row("a", "train", 0), *(Row(f"b{i}", "train", 0, group="a") for i in range(9))])
    splits = [split_roles(table, 0, 0.1, seed) for seed in range(20)]
    assert {split[0].role == split[1].role for split in splits} == {False}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {"fit": 1}),
        (2, {"fit": 1, "calibrate": 1}),
        (3, {"fit": 1, "calibrate": 1, "validate": 1}),
        (5, {"fit": 3, "calibrate": 1, "validate": 1}),
    ],
)
def test_split_of_small_sets_always_leaves_something_to_fit(count: int, expected: dict[str, int]) -> None:
    assert counts(split_roles(good(count), 0.1, 0.1, 0)) == expected


def test_one_group_is_all_for_fit() -> None:
    assert counts(split_roles(good(8, groups=1), 0.1, 0.1, 0)) == {"fit": 8}


def test_existing_roles_are_kept() -> None:
    table = good(20) + Table([Row("v.png", "validate", 0)])
    split = split_roles(table, validate=0.5, calibrate=0.1, seed=0)
    assert counts(split) == {"fit": 18, "calibrate": 2, "validate": 1}
    assert split[20].role == "validate"


@pytest.mark.parametrize(("validate", "calibrate"), [(-0.1, 0.1), (0.1, 1.0), (0.5, 0.5), (float("nan"), 0)])
def test_impossible_shares(validate: float, calibrate: float) -> None:
    with pytest.raises(InputError, match=r"validate|calibrate"):
        split_roles(good(10), validate, calibrate, 0)


# -- groups from file names -------------------------------------------------------------------------------------------


def test_group_by_searches_the_file_name_only() -> None:
    table = Table([Row("roll9/a_12.png"), Row("roll9/b_13.png", group="old")])
    assert [row.group for row in group_by(table, r"_(\d)(\d)")] == ["1", "1"]
    assert [row.group for row in group_by(table, "[ab]")] == ["a", "b"]
    with pytest.raises(DataError, match=r"2 of 2 file names give no group by 'roll', e\.g\. a_12\.png, b_13\.png"):
        group_by(table, "roll")
    with pytest.raises(DataError, match="1 of 2"):
        group_by(table, "b")
    with pytest.raises(DataError, match="2 of 2"):  # a match of nothing is no group
        group_by(table, "a(x*)|b")
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        group_by(table, "(")


def test_masks_of_a_row() -> None:
    assert [Row("a", mask=mask).masks for mask in (None, "m", ("m", "n"))] == [(), ("m",), ("m", "n")]


def test_fingerprint_takes_groups_that_are_not_utf_8() -> None:
    table = Table([Row("a", group="r\udcff", pixels=np.zeros((2, 2), np.uint8))])
    assert fingerprint(table) != fingerprint(group_by(table, "a"))


def test_a_row_names_its_part() -> None:
    assert Row("a.png").unit == "a.png"
    assert Row("a.png", group="roll 7").unit == Row("b.png", group="roll 7").unit != "roll 7"


def test_a_row_reads_its_image_and_its_mask(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name, column in (("left", 0), ("right", 3)):
        Image.fromarray(255 * (np.arange(12).reshape(3, 4) % 4 == column).astype(np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    masks = (str(tmp_path / "left.png"), str(tmp_path / "right.png"))
    row = Row(str(tmp_path / "a.png"), mask=masks)
    assert np.array_equal(row.image(), pixels)
    assert Row("array:0", pixels=pixels).image() is pixels
    truth = row.truth((3, 4))
    assert truth is not None
    assert truth.tolist() == [[True, False, False, True]] * 3
    assert Row("a.png").truth((3, 4)) is None
    with pytest.raises(ImageError, match="more than the limit of 11"):
        row.image(max_pixels=11)
    with pytest.raises(ImageError, match="the mask is 3x4"):
        row.truth((4, 3))


def test_decode_all_hands_over_every_image_and_then_names_all_broken_ones() -> None:
    rows = [Row(f"array:{i}", pixels=np.full((2, 2), i, np.uint8)) for i in range(4)]
    table = Table([rows[0], Row("missing.png"), *rows[1:3], Row("absent.png"), rows[3]])
    read, seen = [], []

    def read_all() -> None:
        images = decode_all(table, lambda image, _: int(image.sum()), what="photographs", progress=note, stage="s")
        for row, value in images:
            read.append((row.path, value))

    def note(*at: object) -> None:
        seen.append(at)

    with pytest.raises(DataError, match="2 of 6 photographs cannot be read") as caught:
        read_all()
    assert read == [("array:0", 0), ("array:1", 4), ("array:2", 8), ("array:3", 12)]
    assert seen == [("s", n, 6) for n in range(1, 7)]
    assert [failure.path for failure in caught.value.failures] == ["missing.png", "absent.png"]


def test_unseen_rows_are_neither_fitted_nor_of_a_fitted_group() -> None:
    def row(name: str, level: int, group: str | None = None) -> Row:
        return Row(name, group=group, pixels=np.full((2, 2), level, np.uint8))

    table = Table([row("a", 1, "x"), row("b", 2, "x"), row("c", 3), row("d", 4), row("e", 3, "y"), Row("gone.png")])
    fitted = [image_digest(table[0])[:16], image_digest(table[2])[:16]]
    # b shares a group with a; e shows the pixels of c
    assert [left.path for left in table.unseen_by(fitted)] == ["d", "gone.png"]
    assert table.unseen_by([]).rows == table.rows
