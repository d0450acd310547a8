"""Rows, tables, and the split into roles: whole groups, a fixed seed, the shares asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pickglass.data.tables.rows import Dataset, Row, Table, fingerprint, group_by, split_roles
from pickglass.errors import DataError, InputError


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


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("groups", [3, 7, 40])
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
