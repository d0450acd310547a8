"""Layouts on miniature trees and on the real sets; whatever the user has as a table; checks and descriptions."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pickglass.data.images import read_mask
from pickglass.data.layouts import LAYOUTS, as_table, check_images, describe, load_dataset
from pickglass.data.tables import Dataset, Row, Table
from pickglass.errors import DataError, InputError, UnknownName

REAL = Path(os.environ.get("PICKGLASS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the real images (PICKGLASS_TEST_DATA)")


def put(root: Path, *names: str, size: tuple[int, int] = (6, 8), value: int = 100) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, value, np.uint8)).save(path)


def mvtec(root: Path) -> Path:
    put(root, *(f"train/good/{i:03}.png" for i in range(5)), "test/good/000.png", "test/hole/000.png")
    put(root, "test/hole/001.png", "test/cut/000.jpg", "test/cut/001.png")
    put(root, "ground_truth/hole/000_mask.png", "ground_truth/hole/001.png", "ground_truth/cut/000_mask.png", value=255)
    return root


def facts(table: Table, root: Path) -> list[tuple[Any, ...]]:
    def short(path: str | None) -> str | None:
        return None if path is None else Path(path).relative_to(root).as_posix()

    return [(short(row.path), row.role, row.label, row.defect, short(row.mask)) for row in table]


def counts(table: Table) -> dict[tuple[str, int | None], int]:
    return dict(Counter((row.role, row.label) for row in table))


# -- MVTec AD ---------------------------------------------------------------------------------------------------------


def test_mvtec_layout(tmp_path: Path) -> None:
    dataset = load_dataset(mvtec(tmp_path / "bottle"))
    assert (dataset.name, dataset.layout, dataset.root) == ("bottle", "mvtec", str(tmp_path / "bottle"))
    assert facts(dataset.table, tmp_path / "bottle") == [
        *((f"train/good/{i:03}.png", "train", 0, None, None) for i in range(5)),
        ("test/cut/000.jpg", "test", 1, "cut", "ground_truth/cut/000_mask.png"),
        ("test/cut/001.png", "test", 1, "cut", None),
        ("test/good/000.png", "test", 0, None, None),
        ("test/hole/000.png", "test", 1, "hole", "ground_truth/hole/000_mask.png"),
        ("test/hole/001.png", "test", 1, "hole", "ground_truth/hole/001.png"),
    ]


def test_folder_names_of_good_parts_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, "train/OK/a.PNG", "test/Normal/a.png", "test/ko/a.png")
    assert counts(load_dataset(tmp_path).table) == {("train", 0): 1, ("test", 0): 1, ("test", 1): 1}


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    put(root, "train/good/.hidden.png", "train/good/.cache/a.png")
    (root / "train/good/notes.txt").write_text("notes")
    (root / "Thumbs.db").write_text("")
    assert len(load_dataset(root).train) == 5


def test_defective_images_in_train_are_refused(tmp_path: Path) -> None:
    put(mvtec(tmp_path), "train/hole/a.png")
    with pytest.raises(DataError, match=r"train.*hole.*move"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("made", ["train/good/readme.txt", "train/readme.txt"])
def test_no_good_image_for_training(tmp_path: Path, made: str) -> None:
    put(tmp_path, "test/good/a.png", "test/hole/a.png")
    (tmp_path / made).parent.mkdir(parents=True)
    (tmp_path / made).touch()
    with pytest.raises(DataError, match=r"(?s)no good image for training.*train/good.*found test/, train/"):
        load_dataset(tmp_path)


# -- plain folders ----------------------------------------------------------------------------------------------------


def test_only_images(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a.jpg", "c.TIF", "d.bmp", "e.webp")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "folder"
    assert [Path(row.path).name for row in dataset.table] == ["a.jpg", "b.png", "c.TIF", "d.bmp", "e.webp"]
    assert counts(dataset.table) == {("train", 0): 5}


def test_good_and_bad_folders_keep_a_fixed_share_of_good_images_for_the_test(tmp_path: Path) -> None:
    put(tmp_path, *(f"good/{i:02}.png" for i in range(20)), "hole/a.png", "hole/b.png", "dent/a.png")
    put(tmp_path, "masks/hole/a.png", "masks/dent/a_mask.png", value=255)
    dataset = load_dataset(tmp_path)
    assert counts(dataset.table) == {("train", 0): 16, ("test", 0): 4, ("test", 1): 3}
    assert [fact[2:] for fact in facts(dataset.test, tmp_path) if fact[2] == 1] == [
        (1, "dent", "masks/dent/a_mask.png"),
        (1, "hole", "masks/hole/a.png"),
        (1, "hole", None),
    ]
    assert list(load_dataset(tmp_path).table) == list(dataset.table)


def test_good_folder_alone_is_all_for_training(tmp_path: Path) -> None:
    put(tmp_path, "good/monday/a.png", "good/tuesday/a.png")
    assert counts(load_dataset(tmp_path).table) == {("train", 0): 2}


def test_masks_follow_sub_folders(tmp_path: Path) -> None:
    put(tmp_path, "good/a.png", "good/b.png", "hole/x/a.png", "hole/y/a.png", "ground_truth/hole/y/a_mask.png")
    bad = [row for row in load_dataset(tmp_path).table if row.label == 1]
    assert [row.mask is None for row in bad] == [True, False]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["good/a.png", "hole/a.png", "stray.png"], r"stray\.png beside its folders"),
        (["good/a.png", "test/hole/a.png", "test/good/a.png"], "counts as a defect type but holds good"),
        (["hole/a.png", "dent/a.png"], r"(?s)not a data set, expected.*mvtec:.*folder:.*found dent/, hole/"),
        (["a.png", "hole/a.png"], "not a data set"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path)


# -- what is no data set ----------------------------------------------------------------------------------------------


def test_roots_that_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    for name, words in [("missing", "does not exist"), ("file.txt", "is a file"), ("empty", "found an empty folder")]:
        with pytest.raises(DataError, match=rf"(?s){words}") as caught:
            load_dataset(tmp_path / name)
        assert all(layout.tree in str(caught.value) for layout in LAYOUTS.values())


def test_several_data_sets_are_listed(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    mvtec(tmp_path / "cable")
    put(tmp_path, "photos/a.png")
    with pytest.raises(DataError, match=r"holds 2 data sets.*name one.*bottle\. Found: bottle, cable"):
        load_dataset(tmp_path)


def test_layout_by_name(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    assert load_dataset(root, "mvtec").layout == "mvtec"
    assert load_dataset(root / "test", "folder").layout == "folder"
    with pytest.raises(UnknownName, match=r"unknown layout 'mvtek'.*mvtec"):
        load_dataset(root, "mvtek")
    with pytest.raises(DataError, match="not a data set") as caught:
        load_dataset(root / "test", "mvtec")
    assert LAYOUTS["folder"].tree not in str(caught.value)


# -- groups.csv -------------------------------------------------------------------------------------------------------


def test_groups(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    lines = ["path,split,label,group", "train/good/000.png,train,good,part1", "train\\good\\001.png,train,good,part1"]
    (root / "groups.csv").write_text("\ufeff" + "\n".join([*lines, "test/hole/000.png,test,hole,part2"]), "utf-8")
    groups = {Path(row.path).relative_to(root).as_posix(): row.group for row in load_dataset(root).table}
    assert {path: group for path, group in groups.items() if group} == {
        "train/good/000.png": "part1",
        "train/good/001.png": "part1",
        "test/hole/000.png": "part2",
    }


def test_good_images_held_out_for_the_test_are_whole_groups(tmp_path: Path) -> None:
    names = [f"good/{i:02}.png" for i in range(30)]
    put(tmp_path, *names, "bad/a.png")
    (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(f"{n},g{i // 3}" for i, n in enumerate(names)))
    table = load_dataset(tmp_path).table
    held = {row.group for row in table.role("test") if row.label == 0}
    assert len(held) == 2
    assert not held & {row.group for row in table.role("train")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,group\nnope.png,a\ntrain/good/000.png,a\nalso.png,b", r"names 2 images.*also\.png, nope\.png"),
        ("file,group\nx,y", r"columns \['file', 'group'\], expected path and group"),
        ("", "columns None"),
        ("path,group\ntrain/good/000.png,a\ntrain/good/000.png,b", "in two groups, 'a' and 'b'"),
        (b"path,group\n\xff\xfe,a", "not a CSV file in UTF-8"),
        ('path,group\n"a"b,c', "not a CSV file"),
    ],
)
def test_broken_groups(tmp_path: Path, text: str | bytes, words: str) -> None:
    (mvtec(tmp_path) / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path)


# -- as_table ---------------------------------------------------------------------------------------------------------


def test_rows_tables_and_datasets_are_taken_as_they_are(tmp_path: Path) -> None:
    dataset = load_dataset(mvtec(tmp_path))
    assert list(as_table(dataset)) == list(dataset.table)
    assert list(as_table(dataset.test, role="train")) == list(dataset.test)
    row = Row("x.png", "validate", 1)
    assert list(as_table(row)) == [row]


def test_paths(tmp_path: Path) -> None:
    put(tmp_path, "b/a.png", "a.png", "masks/a.png", ".x/a.png")
    assert [row.path for row in as_table(tmp_path)] == [str(tmp_path / "a.png"), str(tmp_path / "b" / "a.png")]
    found = as_table([str(tmp_path / "a.png"), tmp_path / "missing.png"])
    assert [(Path(row.path).name, row.role, row.label) for row in found] == [
        ("a.png", "test", None),
        ("missing.png", "test", None),
    ]
    assert [(row.role, row.label) for row in as_table(tmp_path / "a.png", role="train")] == [("train", 0)]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none holds no image.*\.png"):
        as_table(tmp_path / "none")


def test_a_data_set_is_not_swallowed_whole_for_training(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    with pytest.raises(DataError, match=r"load_dataset\(.*\)\.train"):
        as_table(root, role="train")
    assert len(as_table(root)) == 10
    assert len(as_table(root / "train", role="train")) == 5


@pytest.mark.parametrize(
    ("shape", "images"),
    [((4, 5), 1), ((4, 5, 1), 1), ((4, 5, 3), 1), ((4, 5, 4), 1), ((7, 4, 5), 7), ((7, 4, 5, 3), 7), ((1, 4, 5, 1), 1)],
)
def test_arrays(shape: tuple[int, ...], images: int) -> None:
    table = as_table(np.zeros(shape, np.uint8))
    assert [row.path for row in table] == [f"array:{i}" for i in range(images)]
    assert all(row.pixels is not None and row.pixels.shape[:2] == (4, 5) for row in table)
    assert check_images(table) == ()


def test_mixtures(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    image = Image.fromarray(np.zeros((3, 4, 3), np.uint8))
    mixed = [image, tmp_path / "a.png", np.zeros((2, 3, 5), np.uint8), Row("r.png"), (np.ones((2, 2)),)]
    assert [Path(row.path).name for row in as_table(iter(mixed))] == [
        *("array:0", "a.png", "array:1", "array:2", "r.png", "array:3")
    ]
    assert list(as_table([])) == []


@pytest.mark.parametrize("data", [5, None, b"a.png", {"a": 1}, [1], np.zeros(3), np.zeros((1, 1, 1, 1, 1))])
def test_what_is_no_image(data: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        as_table(data)


# -- check_images and describe ----------------------------------------------------------------------------------------


def test_check_images_returns_all_failures(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    (root / "train/good/001.png").write_bytes(b"")
    (root / "test/hole/000.png").write_text("text")
    (root / "ground_truth/cut/000_mask.png").write_text("text")
    put(root, "ground_truth/hole/001.png", size=(3, 3))
    failures = {Path(f.path).relative_to(root).as_posix(): f.error for f in check_images(load_dataset(root).table)}
    assert failures.keys() == {
        *("train/good/001.png", "test/hole/000.png", "ground_truth/cut/000_mask.png", "ground_truth/hole/001.png")
    }
    assert "0 bytes" in failures["train/good/001.png"]
    assert "3x3" in failures["ground_truth/hole/001.png"]
    assert "6x8" in failures["ground_truth/hole/001.png"]
    assert len(check_images(load_dataset(root).table, max_pixels=10)) == 10


def test_describe(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    put(root, "train/good/004.png", size=(20, 10))
    (root / "train/good/000.png").write_bytes(b"")
    found = json.loads(json.dumps(describe(load_dataset(root))))
    assert found.pop("failed") == [
        {"path": str(root / "train/good/000.png"), "error": "the file is empty (0 bytes)"},
    ]
    assert found == {
        "name": root.name,
        "root": str(root),
        "layout": "mvtec",
        "images": 10,
        "roles": {"train": 5, "test": 5},
        "types": {"good": 6, "cut": 2, "hole": 2},
        "masks": 3,
        "groups": 0,
        "sizes": {"smallest": [6, 8], "largest": [20, 10], "commonest": {"6x8": 8, "20x10": 1}},
        "modes": {"8-bit grey": 9},
    }


def test_describe_of_images_in_memory() -> None:
    table = as_table([np.zeros((4, 5, 3), np.uint16), np.zeros((4, 5), np.float32)])
    found = describe(Dataset("memory", "", "", table))
    assert found["modes"] == {"16-bit colour": 1, "32-bit grey": 1}
    assert found["types"] == {"unknown": 2}
    assert describe(Dataset("none", "", "", Table()))["sizes"]["smallest"] is None


# -- real sets --------------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("name", "train", "good", "bad", "groups"),
    [
        ("mvtec_hazelnut_reduced", 50, 2, 8, 0),
        ("mvtec_transistor_reduced", 50, 2, 8, 0),
        ("magnetic_tile", 245, 64, 120, 148),
        ("aitex_fabric04", 15, 5, 10, 0),
    ],
)
def test_real_sets(name: str, train: int, good: int, bad: int, groups: int) -> None:
    dataset = load_dataset(REAL / name)
    assert counts(dataset.table) == {("train", 0): train, ("test", 0): good, ("test", 1): bad}
    assert all(row.mask for row in dataset.table if row.label == 1)
    assert describe(dataset)["groups"] == groups
    assert describe(dataset)["failed"] == []
    assert not {row.group for row in dataset.train} & {row.group for row in dataset.test} - {None}
    assert check_images(dataset.table[::10]) == ()


@real
def test_real_masks_hold_a_defect() -> None:
    for row in load_dataset(REAL / "mvtec_hazelnut_reduced").test:
        if row.mask is not None:
            assert 0 < read_mask(row.mask, (256, 256)).mean() < 0.5


@real
def test_real_root_holds_several_sets() -> None:
    with pytest.raises(DataError, match="magnetic_tile"):
        load_dataset(REAL)
