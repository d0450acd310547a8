"""Layouts on miniature trees and on the real sets; whatever the user has as a table; checks and descriptions."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pickglass.data import (
    LAYOUTS,
    Saturation,
    as_table,
    describe,
    find_problems,
    load_dataset,
    load_datasets,
    read_mask,
    read_regions,
)
from pickglass.data.tables.rows import Dataset, Row, Table
from pickglass.errors import DataError, ImageError, InputError, MissingExtra, UnknownName

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
    def short(path: Any) -> Any:
        if isinstance(path, tuple):
            return tuple(short(part) for part in path)
        return None if path is None else Path(path).relative_to(root).as_posix()

    return [(short(row.path), row.role, row.label, row.defect, short(row.mask)) for row in table]


def counts(table: Table) -> dict[tuple[str, int | None], int]:
    return dict(Counter((row.role, row.label) for row in table))


def unusable(table: Table) -> dict[str, str]:
    """Every image and mask that cannot be used, and why."""
    problems = find_problems(Dataset("all", "", "table", table))
    sentences = [*problems.get("unreadable", []), *problems.get("masks_unusable", [])]
    return dict(sentence.split(": ", 1) for sentence in sentences)


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
    with pytest.raises(
        DataError, match=r"(?s)no good image for training.*train/good.*Found:.*  test/\n    good/  1 \.png"
    ):
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
        (
            ["good/a.png", "test/hole/a.png", "test/good/a.png"],
            r"holds good beside test: move its images to train/good",
        ),
        (
            ["hole/a.png", "dent/a.png"],
            r"(?s)not a data set.*None of its folders, dent, hole, has a name that means good",
        ),
        (["a.png", "hole/a.png"], "not a data set"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path)


# -- BTAD, MVTec LOCO, VisA, AITEX, KolektorSDD ----------------------------------------------------------------------


def test_btad(tmp_path: Path) -> None:
    put(tmp_path, "train/ok/0000.bmp", "test/ok/0001.bmp", "test/ko/0002.bmp")
    put(tmp_path, "ground_truth/ko/0002.png", value=255)
    assert facts(load_dataset(tmp_path).table, tmp_path) == [
        ("train/ok/0000.bmp", "train", 0, None, None),
        ("test/ko/0002.bmp", "test", 1, "ko", "ground_truth/ko/0002.png"),
        ("test/ok/0001.bmp", "test", 0, None, None),
    ]


CONFIG = [
    {"defect_name": "missing", "pixel_value": 200, "saturation_threshold": 5, "relative_saturation": False},
    {"defect_name": "dirt", "pixel_value": 201, "saturation_threshold": 0.5, "relative_saturation": True},
]


def loco(root: Path) -> Path:
    put(root, "train/good/000.png", "validation/good/000.png", "test/good/000.png")
    put(root, "test/logical_anomalies/000.png", "test/structural_anomalies/000.png")
    put(root, "ground_truth/structural_anomalies/000/000.png", value=0)
    for name, rows, value in [("000", slice(0, 2), 200), ("001", slice(1, 4), 201)]:
        mask = np.zeros((6, 8), np.uint8)
        mask[rows] = value
        folder = root / "ground_truth/logical_anomalies/000"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{name}.png")
    (root / "defects_config.json").write_text(json.dumps(CONFIG))
    return root


def test_loco(tmp_path: Path) -> None:
    dataset = load_dataset(loco(tmp_path / "screw_bag"))
    masks = tuple(f"ground_truth/logical_anomalies/000/{i:03}.png" for i in range(2))
    assert dataset.layout == "loco"
    assert facts(dataset.table, tmp_path / "screw_bag") == [
        ("train/good/000.png", "train", 0, None, None),
        ("validation/good/000.png", "validate", 0, None, None),
        ("test/good/000.png", "test", 0, None, None),
        ("test/logical_anomalies/000.png", "test", 1, "logical_anomalies", masks),
        (
            "test/structural_anomalies/000.png",
            *("test", 1, "structural_anomalies", "ground_truth/structural_anomalies/000/000.png"),
        ),
    ]
    row = dataset.test[1]
    union = read_mask(row.mask or "", (6, 8))
    assert union[:4].all()
    assert not union[4:].any()
    regions = read_regions(row, (6, 8))
    assert [region.saturation for region in regions] == [
        Saturation(200, "missing", 5.0, False),
        Saturation(201, "dirt", 0.5, True),
    ]
    assert [region.mask.sum() for region in regions] == [16, 24]
    assert read_regions(dataset.test[2], (6, 8)) == []
    assert unusable(dataset.table) == {}
    put(tmp_path / "screw_bag", masks[1], size=(3, 3))
    assert [Path(path).name for path in unusable(dataset.table)] == ["001.png"]


def test_loco_values_that_the_config_does_not_name(tmp_path: Path) -> None:
    root = loco(tmp_path)
    (root / "defects_config.json").write_text(json.dumps(CONFIG[1:]))
    with pytest.raises(ImageError, match=r"000\.png: holds the value 200, but .* names only 201"):
        read_regions(load_dataset(root).test[1], (6, 8))
    (root / "defects_config.json").unlink()
    with pytest.raises(ImageError, match=r"names only \(none\)"):
        read_regions(load_dataset(root).test[1], (6, 8))


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '[{"defect_name": "x"}]', '[{"pixel_value": "x"}]'])
def test_broken_defects_config(tmp_path: Path, text: str) -> None:
    (loco(tmp_path) / "defects_config.json").write_text(text)
    with pytest.raises(DataError, match=r"defects_config\.json cannot be read .*pixel_value"):
        load_dataset(tmp_path)


def visa(root: Path) -> Path:
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1", "absent"):
        lines += [f"{name},{split},normal,{name}/Data/Images/Normal/{split}.JPG," for split in ("train", "test")]
        lines += [f"{name},test,anomaly,{name}/Data/Images/Anomaly/000.JPG,{name}/Data/Masks/Anomaly/000.png"]
    for name in ("candle", "pcb1"):
        put(root, *(f"{name}/Data/Images/Normal/{split}.JPG" for split in ("train", "test")))
        put(root, f"{name}/Data/Images/Anomaly/000.JPG")
        put(root, f"{name}/Data/Masks/Anomaly/000.png", value=1)
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines))
    return root


def test_visa(tmp_path: Path) -> None:
    root = visa(tmp_path / "VisA")
    found = load_datasets(root)
    assert list(found) == ["candle", "pcb1"]
    assert facts(found["candle"].table, root) == [
        ("candle/Data/Images/Normal/train.JPG", "train", 0, None, None),
        ("candle/Data/Images/Normal/test.JPG", "test", 0, None, None),
        ("candle/Data/Images/Anomaly/000.JPG", "test", 1, "anomaly", "candle/Data/Masks/Anomaly/000.png"),
    ]
    assert read_mask(found["candle"].test[1].mask or "", (6, 8)).all()
    one = load_dataset(root / "pcb1")
    assert (one.name, one.layout, list(one.table)) == ("pcb1", "visa", list(found["pcb1"].table))
    with pytest.raises(DataError, match=r"holds 2 data sets.*Found: candle, pcb1"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("candle,train,anomaly,a.JPG,", "line 11: a.JPG is an anomaly in train"),
        ("candle,dev,normal,a.JPG,", "line 11: split 'dev'"),
        ("candle,test,odd,a.JPG,", "label 'odd'"),
        ("candle,test", "label ''"),
    ],
)
def test_broken_visa_split(tmp_path: Path, line: str, words: str) -> None:
    file = visa(tmp_path) / "split_csv/1cls.csv"
    file.write_text(file.read_text() + "\n" + line)
    with pytest.raises(DataError, match=words):
        load_datasets(tmp_path)


def aitex(root: Path) -> Path:
    put(root, *(f"NODefect_images/2306881-210020u/{i:04}_000_00.png" for i in range(10)))
    put(root, *(f"NODefect_images/2311694-1930c7u/{i:04}_000_04.png" for i in range(20, 26)))
    put(root, "Defect_images/0040_019_04.png", "Defect_images/0041_099_00.png", "Defect_images/0042_025_08.png")
    put(root, "Mask_images/0040_019_04_mask1.png", "Mask_images/0040_019_04_mask2.png", value=255)
    put(root, "Mask_images/0041_099_00_mask.png", value=255)
    return root


def test_aitex(tmp_path: Path) -> None:
    root = aitex(tmp_path / "AITEX")
    found = load_datasets(root)
    assert {name: counts(dataset.table) for name, dataset in found.items()} == {
        "00": {("train", 0): 8, ("test", 0): 2, ("test", 1): 1},
        "04": {("train", 0): 5, ("test", 0): 1, ("test", 1): 1},
        "08": {("test", 1): 1},
    }
    assert [fact for name in found for fact in facts(found[name].test, root) if fact[2]] == [
        ("Defect_images/0041_099_00.png", "test", 1, "099", "Mask_images/0041_099_00_mask.png"),
        (
            "Defect_images/0040_019_04.png",
            *("test", 1, "fuzzy ball"),
            ("Mask_images/0040_019_04_mask1.png", "Mask_images/0040_019_04_mask2.png"),
        ),
        ("Defect_images/0042_025_08.png", "test", 1, "warp ball", None),
    ]
    one = load_dataset(root / "NODefect_images" / "2311694-1930c7u")
    assert (one.name, list(one.table)) == ("04", list(found["04"].table))
    with pytest.raises(DataError, match=r"holds 3 data sets.*Found: 00, 04, 08"):
        load_dataset(root)
    put(root, "Defect_images/strange.png")
    with pytest.raises(DataError, match=r"strange\.png: expected a name such as"):
        load_datasets(root)


def test_kolektor(tmp_path: Path) -> None:
    for part in range(12):
        put(tmp_path, f"kos{part:02}/Part0.jpg", f"kos{part:02}/Part1.jpg")
        put(tmp_path, f"kos{part:02}/Part0_label.bmp", value=0)
        put(tmp_path, f"kos{part:02}/Part1_label.bmp", value=255 if part == 3 else 0)
    (tmp_path / "kos05/Part0_label.bmp").write_bytes(b"BM")
    (tmp_path / "kos06/Part0_label.bmp").unlink()
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "kolektor"
    found = counts(dataset.table)  # which of the good parts are drawn to test hangs on the seed
    assert found.pop(("train", 0)) + found.pop(("test", 0)) == 21
    assert found == {("test", 1): 1, ("test", None): 2}
    assert {row.group for row in dataset.table} == {f"kos{part:02}" for part in range(12)}
    (bad,) = (fact for fact in facts(dataset.table, tmp_path) if fact[2] == 1)
    assert bad == ("kos03/Part1.jpg", "test", 1, "defect", "kos03/Part1_label.bmp")
    assert [Path(path).name for path in unusable(dataset.table)] == ["Part0_label.bmp"]
    good = [row for row in dataset.table if row.label == 0]
    assert not {row.group for row in good if row.role == "test"} & {row.group for row in good if row.role == "train"}


# -- tables -----------------------------------------------------------------------------------------------------------


def test_csv_table_with_roles(tmp_path: Path) -> None:
    file = tmp_path / "lot7.csv"
    file.write_text(
        "path,split,label,defect,mask,group\n"
        "a/0.png,train,good,,,r1\na/1.png,val,0,,,r1\na/2.png,test,ok,,,\n"
        "b/0.png,test,1,hole,m/0.png; m/1.png,r2\nb/1.png,test,dent,,m/2.png,r2\nb/2.png,test,,,,\n"
    )
    dataset = load_dataset(file)
    assert (dataset.name, dataset.layout, dataset.root) == ("lot7", "table", str(file))
    assert facts(dataset.table, tmp_path) == [
        ("a/0.png", "train", 0, None, None),
        ("a/1.png", "validate", 0, None, None),
        ("a/2.png", "test", 0, None, None),
        ("b/0.png", "test", 1, "hole", ("m/0.png", "m/1.png")),
        ("b/1.png", "test", 1, "dent", "m/2.png"),
        ("b/2.png", "test", None, None, None),
    ]
    assert [row.group for row in dataset.table] == ["r1", "r1", None, "r2", "r2", None]


def test_csv_table_without_roles_keeps_good_images_for_the_test(tmp_path: Path) -> None:
    lines = [f"{i}.png,good" for i in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, "x.png,hole"]))
    assert counts(load_dataset(tmp_path / "t.csv").table) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na,0", "expected path"),
        ("path,label\n,0", "row 1: the column path is empty"),
        ("path,label\na.png,0\na.png,0", "names 1 images twice"),
        ("path,label,role\na.png,hole,train\nb.png,ok,test", "row 1: a.png is defective but its role is train"),
        ("path,label,role\na.png,0,dev", "role 'dev', expected one of train"),
        ("path,label,defect\na.png,good,hole", "label 'good' but defect 'hole'"),
        ("path,label\na.png,hole", "the column label holds hole, and none of them means good"),
        ("path,label\n", "no good image for training"),
    ],
)
def test_broken_csv_tables(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path / "t.csv")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(MissingExtra, match=r"pip install \"pickglass\[parquet\]\", or save the table as CSV"):
        load_dataset(tmp_path / "t.parquet")


def test_parquet_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (pip install pickglass[parquet])")
    from pyarrow import parquet

    columns = {"path": ["a.png", "b.png"], "role": ["train", "test"], "label": [0.0, None], "group": [7, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    (a, b) = load_dataset(tmp_path / "t.parquet").table
    assert (a.role, a.label, a.group, b.role, b.label, b.group) == ("train", 0, "7", "test", None, None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a Parquet file"):
        load_dataset(tmp_path / "t.parquet")


# -- what is no data set ----------------------------------------------------------------------------------------------


def test_roots_that_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(
        DataError, match=r"missing: no such file or folder: missing in .*, which holds empty/, file\.txt"
    ):
        load_dataset(tmp_path / "missing")
    for name, words in [("file.txt", "is a file"), ("empty", "is an empty folder")]:
        with pytest.raises(DataError, match=rf"(?s){words}") as caught:
            load_dataset(tmp_path / name)
        assert any(layout.tree in str(caught.value) for layout in LAYOUTS.values())


def test_several_data_sets_are_listed(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    mvtec(tmp_path / "cable")
    put(tmp_path, "photos/a.png")
    with pytest.raises(
        DataError, match=r"holds 3 data sets.*load_datasets\(.*\['bottle'\]\. Found: bottle, cable, photos"
    ):
        load_dataset(tmp_path)
    found = load_datasets(tmp_path)
    assert {name: (d.name, d.layout, len(d.table)) for name, d in found.items()} == {
        "bottle": ("bottle", "mvtec", 10),
        "cable": ("cable", "mvtec", 10),
        "photos": ("photos", "folder", 1),
    }
    assert list(load_datasets(tmp_path / "cable")) == ["cable"]
    assert list(load_datasets(tmp_path, "mvtec")) == ["bottle", "cable"]
    with pytest.raises(DataError, match="not a data set"):
        load_datasets(tmp_path / "bottle" / "test" / "hole", "mvtec")


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


def test_groups_from_file_names_go_before_others(tmp_path: Path) -> None:
    put(tmp_path, *(f"good/roll{i // 5}_{i % 5}.png" for i in range(20)), "bad/roll9_0.png")
    (tmp_path / "groups.csv").write_text("path,group\ngood/roll0_0.png,other")
    table = load_dataset(tmp_path, group_by=r"roll\d").table
    assert {row.group for row in table} == {"roll0", "roll1", "roll2", "roll3", "roll9"}
    held = {row.group for row in table.role("test") if row.label == 0}
    assert len(held) == 1
    assert not held & {row.group for row in table.role("train")}
    with pytest.raises(DataError, match=r"21 of 21 file names give no group by 'part', e\.g\. "):
        load_dataset(tmp_path, group_by="part")


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
        ("", r"columns \[\]"),
        ("path,group\ntrain/good/000.png,a\ntrain/good/000.png,b", "in two groups, 'a' and 'b'"),
        (b"path,group\n\xff\xfe,a", "not a text file in UTF-8"),
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


def test_files_named_as_masks_are_no_images_and_are_told(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "a_mask.png", "masks/a.png")
    with pytest.warns(UserWarning, match=r"1 files of .* are not taken for images.*: a_mask\.png"):
        assert [Path(row.path).name for row in as_table(tmp_path)] == ["a.png"]


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
    assert unusable(table) == {}


def test_mixtures(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    image = Image.fromarray(np.zeros((3, 4, 3), np.uint8))
    mixed = [image, tmp_path / "a.png", np.zeros((2, 3, 5), np.uint8), Row("r.png"), (np.ones((2, 2)),)]
    assert [Path(row.path).name for row in as_table(iter(mixed))] == [
        *("array:0", "a.png", "array:1", "array:2", "r.png", "array:3")
    ]
    assert list(as_table([])) == []
    with (tmp_path / "a.png").open("rb") as file:
        opened = as_table([file, io.BytesIO((tmp_path / "a.png").read_bytes())])
    assert [row.image().shape for row in opened] == [(6, 8), (6, 8)]


@pytest.mark.parametrize("data", [5, None, {"a": 1}, [1], np.zeros(3), np.zeros((1, 1, 1, 1, 1))])
def test_what_is_no_image(data: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        as_table(data)


# -- problems and descriptions ---------------------------------------------------------------------------------------


def test_every_image_and_mask_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    (root / "train/good/001.png").write_bytes(b"")
    (root / "test/hole/000.png").write_text("text")
    (root / "ground_truth/cut/000_mask.png").write_text("text")
    put(root, "ground_truth/hole/001.png", size=(3, 3))
    failures = {
        Path(path).relative_to(root).as_posix(): why for path, why in unusable(load_dataset(root).table).items()
    }
    assert failures.keys() == {
        *("train/good/001.png", "test/hole/000.png", "ground_truth/cut/000_mask.png", "ground_truth/hole/001.png")
    }
    assert "0 bytes" in failures["train/good/001.png"]
    assert "3x3" in failures["ground_truth/hole/001.png"]
    assert "6x8" in failures["ground_truth/hole/001.png"]
    assert len(find_problems(load_dataset(root), max_pixels=10)["unreadable"]) == 10


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
        "boxes": 0,
        "groups": 0,
        "sizes": {"smallest": [6, 8], "largest": [20, 10], "commonest": {"6x8": 8, "20x10": 1}},
        "modes": {"8-bit grey": 9},
        "account": {
            "files": 13,
            "used": {
                "masks": 3,
                "defective images for the test": 4,
                "good images for the test": 1,
                "good images for training": 5,
            },
            "unused": [],
            "hidden": 0,
            "outside": [],
        },
        "private": 0,
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
    assert unusable(dataset.table[::10]) == {}


@real
def test_real_masks_hold_a_defect() -> None:
    for row in load_dataset(REAL / "mvtec_hazelnut_reduced").test:
        if row.mask is not None:
            assert 0 < read_mask(row.mask, (256, 256)).mean() < 0.5


@real
def test_real_root_holds_several_sets() -> None:
    with pytest.raises(DataError, match="magnetic_tile"):
        load_dataset(REAL)
    assert {"aitex_fabric04", "magnetic_tile", "mvtec_hazelnut_reduced"} <= set(load_datasets(REAL))


@real
def test_a_list_of_groups_with_labels_is_a_table() -> None:
    dataset = load_dataset(REAL / "magnetic_tile" / "groups.csv")
    folder = load_dataset(REAL / "magnetic_tile")
    assert counts(dataset.table) == counts(folder.table)
    assert {(r.path, r.defect, r.group) for r in dataset.table} == {(r.path, r.defect, r.group) for r in folder.table}


# -- tables as people export them -------------------------------------------------------------------------------------


def labelled(root: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> dict[str, int | None]:
    """Label of each image that a table names."""
    (root / name).write_bytes(text.encode(encoding))
    return {Path(row.path).name: row.label for row in load_dataset(root / name, training=False).table}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("0.0", "1.0"),
        ("pass", "fail"),
        ("OK", "NG"),
        ("good", "scratch"),
        ("Normal", "ANOMALY"),
        ("0", "1"),
        ("ok", "1"),
    ],
)
def test_labels_of_tables(tmp_path: Path, good: str, bad: str) -> None:
    assert labelled(tmp_path, f"path,label\na.png,{good}\nb.png,{bad}\n") == {"a.png": 0, "b.png": 1}


@pytest.mark.parametrize("head", ["anomaly", "is_anomaly", "Anomaly"])
@pytest.mark.parametrize(("good", "bad"), [("False", "True"), ("no", "yes"), ("0", "1")])
def test_yes_and_no_where_they_mean_defective(tmp_path: Path, head: str, good: str, bad: str) -> None:
    assert labelled(tmp_path, f"image,{head}\na.png,{good}\nb.png,{bad}\n") == {"a.png": 0, "b.png": 1}


@pytest.mark.parametrize("words", [("True", "False"), ("yes", "no"), ("TRUE", "FALSE")])
def test_yes_and_no_that_may_mean_either_are_refused(tmp_path: Path, words: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="which may mean good or defective: write 0 for good and 1 for defective"):
        labelled(tmp_path, f"path,label\na.png,{words[0]}\nb.png,{words[1]}\n")


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "nan"])
def test_numbers_that_are_no_label_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=f"holds '{value}', expected 0 for good and 1 for defective"):
        labelled(tmp_path, f"path,label\na.png,0\nb.png,{value}\n")


@pytest.mark.parametrize(
    "head", ["path,label,split", "Image;Class;Set", "FILENAME\tTarget\tPartition", ",file,label,split"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_separators_and_encodings(tmp_path: Path, head: str, encoding: str) -> None:
    separator = next(sign for sign in ";\t," if sign in head)
    lines = [["ä.png", "ok", "train"], ["b.png", "Riss", "test"]]
    text = "\r\n".join([head, *(separator.join([*["7"] * head.startswith(","), *line]) for line in lines)])
    assert labelled(tmp_path, text, encoding=encoding) == {"ä.png": 0, "b.png": 1}
    with pytest.raises(DataError, match="save it anew as 'CSV UTF-8'"):
        labelled(tmp_path, text, encoding="cp1252")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,file,label\na,b,0", None),
        ("image,file,label\na,b,0", "has the columns image and file: rename the right one to path"),
        ("path,label,Label\na,0,0", "has the column 'label' twice"),
        ("path,label\na,0,1", r"line 2: 3 values for 2 columns: put a value that holds ',' in quotes"),
        ("path,defect\na,0\nb,1\nc,dent", None),
    ],
)
def test_columns_that_contradict_each_other(tmp_path: Path, text: str, words: str | None) -> None:
    if words is None:
        assert set(labelled(tmp_path, text).values()) <= {0, 1}
        return
    with pytest.raises(DataError, match=words):
        labelled(tmp_path, text)


def test_names_that_mean_good_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.png,fein\nb.png,Riss\n")
    with pytest.raises(DataError, match="none of them means good"):
        load_dataset(tmp_path / "t.csv")
    rows = load_dataset(tmp_path / "t.csv", good=["Fein"], training=False).table
    assert [(row.label, row.defect) for row in rows] == [(0, None), (1, "Riss")]


def test_paths_as_windows_writes_them(tmp_path: Path) -> None:
    put(tmp_path, "a/b.png")
    assert labelled(tmp_path, "path,label\na\\b.png,0\n") == {"b.png": 0}
