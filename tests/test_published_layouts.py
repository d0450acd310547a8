"""Every published layout on a small tree: rows, masks, groups, account; near misses, in which nothing is misread."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.layouts import TREES, image, mask, save

from pickglass.data import Account, Dataset, Row, load_dataset, load_datasets
from pickglass.errors import DataError

NEEDS = {"Kaputt": "pyarrow"}


class Expected(NamedTuple):
    """What the first data set of a tree holds."""

    layout: str
    rows: dict[tuple[str, int | None], int]
    masks: int = 0
    boxes: int = 0
    groups: int = 0
    unused: tuple[str, ...] = ()
    warned: int = 0
    private: int = 0


PLAIN = {("train", 0): 8, ("test", 0): 3, ("test", 1): 3}
WITH_VALIDATION = {**PLAIN, ("validate", 0): 2}
EXPECTED = {
    "MVTec AD": Expected("mvtec", PLAIN, masks=3, unused=("license.txt", "readme.txt")),
    "MVTec AD 2": Expected("mvtec_ad_2", {**WITH_VALIDATION, ("test", 1): 6}, masks=6, groups=6, private=8),
    "MVTec LOCO AD": Expected("loco", {**WITH_VALIDATION, ("test", 1): 6}, masks=6),
    "MVTec 3D-AD": Expected("mvtec_3d", WITH_VALIDATION, masks=6, unused=("calibration/", "/xyz/")),
    "VisA": Expected("visa", PLAIN, masks=3, unused=("image_anno.csv", "2cls_fewshot.csv")),
    "VisA, converted": Expected("mvtec", PLAIN, masks=3),
    "Real-IAD": Expected("realiad", {("train", 0): 8, ("test", 0): 2, ("test", 1): 4}, masks=4, groups=7),
    "BTAD": Expected("mvtec", PLAIN, masks=3),
    "MPDD": Expected("mvtec", PLAIN, masks=3),
    "KolektorSDD": Expected("kolektor", {("train", 0): 13, ("test", 0): 3, ("test", 1): 2}, masks=2, groups=6),
    "KolektorSDD2": Expected("kolektor2", PLAIN, masks=3, unused=("train/10008.png", "train/10009.png"), warned=2),
    "AITEX": Expected("aitex", {("train", 0): 5, ("test", 0): 1, ("test", 1): 1}, masks=1),
    "DAGM 2007": Expected(
        "dagm",
        {("train", 0): 6, ("test", 0): 6, ("test", 1): 2},
        masks=2,
        unused=("Train/0582.PNG", "Train/0583.PNG"),
        warned=2,
    ),
    "DAGM 2007, older": Expected("dagm_ellipses", {("train", 0): 6, ("test", 0): 2, ("test", 1): 3}, masks=3),
    "AutoVI": Expected("mvtec", PLAIN, masks=3),
    "VAD": Expected("vad", PLAIN, unused=("train/bad/",), warned=2),
    "BMAD": Expected("mvtec", WITH_VALIDATION, masks=8, unused=("valid/Ungood/",), warned=4),
    "Kaputt": Expected(
        "kaputt",
        {("train", 0): 6, ("validate", 0): 2, ("test", 0): 4, ("test", 1): 2},
        groups=9,
        unused=("query-image/", "reference-", "query-crop/"),
        warned=3,
    ),
    "Severstal": Expected(
        "severstal",
        {("train", 0): 5, ("test", 0): 1, ("test", 1): 2},
        masks=2,
        unused=("sample_submission.csv",),
        private=3,
    ),
    "DeepPCB": Expected(
        "deeppcb",
        {("train", 0): 4, ("test", 0): 1, ("test", 1): 5},
        boxes=5,
        groups=5,
        unused=("trainval.txt", "test.txt"),
    ),
    "NEU-DET": Expected("annotated", {("test", 1): 6}, boxes=6),
    "3CAD": Expected("mvtec", PLAIN, masks=3),
    "labelme": Expected("annotated", {("train", 0): 5, ("test", 0): 1, ("test", 1): 2}, masks=2),
    "COCO": Expected("annotated", {("train", 0): 5, ("test", 0): 1, ("test", 1): 2, ("test", None): 1}, masks=2),
    "YOLO": Expected(
        "annotated", {("train", 0): 6, ("validate", 0): 2, ("test", 1): 3}, boxes=3, unused=("data.yaml",)
    ),
    "a table": Expected("table", {("train", 0): 6, ("test", 0): 2, ("test", 1): 2}, masks=2),
    "folders": Expected("folder", {("train", 0): 6, ("test", 0): 2, ("test", 1): 3}, masks=3),
}


def drawn(name: str, root: Path) -> Path:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]} (pip install pickglass[parquet])")
    return TREES[name](root)


def test_every_tree_is_expected() -> None:
    assert EXPECTED.keys() == TREES.keys()


# golden: which parts KolektorSDD keeps for the test is drawn, and they have two or three images
SPLIT = {"KolektorSDD": pytest.mark.golden}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SPLIT.get(name, ())) for name in TREES])
def test_a_published_layout_is_read(tmp_path: Path, name: str) -> None:
    want = EXPECTED[name]
    sets = load_datasets(drawn(name, tmp_path))
    dataset = next(iter(sets.values()))
    table = dataset.table
    assert dataset.layout == want.layout
    assert dict(Counter((row.role, row.label) for row in table)) == want.rows
    assert sum(row.has_mask for row in table) == want.masks
    assert sum(bool(row.boxes) and not row.has_mask for row in table) == want.boxes
    assert len({row.group for row in table} - {None}) == want.groups
    assert len(dataset.private) == want.private
    for row in table:
        pixels = row.image()
        if row.label is not None:
            assert is_defective(pixels) == bool(row.label), row
        if row.has_mask:
            truth = row.truth(pixels.shape[:2])
            assert truth is not None
            assert truth.any() == bool(row.label), row
    paths = [unused.path for unused in dataset.account.unused]
    assert all(any(part in path for part in want.unused) for path in paths), paths
    assert all(any(part in path for path in paths) for part in want.unused), paths
    assert sum(unused.warn for unused in dataset.account.unused) == want.warned
    assert (dataset.account.warning("data") is not None) == (want.warned > 0)
    adds_up(dataset)


def is_defective(pixels: np.ndarray) -> bool:
    """Tell whether an image of ``bench.layouts`` has its dark spot, also after JPEG."""
    return bool(np.median(np.sort(pixels.ravel())[:30]) < 70)


def adds_up(dataset: Dataset) -> None:
    account = dataset.account
    assert sum(account.used.values()) + len(account.unused) == account.files
    root = Path(dataset.root)
    if root.is_dir():
        assert account.files == sum(path.is_file() for path in root.rglob("*"))
    assert Account.from_json(account.to_json()).to_json() == account.to_json()


# -- near misses ------------------------------------------------------------------------------------------------------


def upper_suffixes(root: Path) -> None:
    for path in [p for p in root.rglob("*") if p.suffix in (".png", ".jpg", ".bmp", ".PNG")]:
        path.rename(path.with_suffix(path.suffix.swapcase()))


def rename_folders(**names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for path in sorted(root.rglob("*"), reverse=True):
            if path.is_dir() and path.name in names:
                path.rename(path.with_name(names[path.name]))

    return change


def without_masks(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and path.name in ("ground_truth", "Label", "label", "gt", "masks", "Masks", "labels"):
            shutil.rmtree(path)


def masks_beside_images(root: Path) -> None:
    """``ground_truth/TYPE/STEM_mask.png`` moves to ``test/TYPE/masks``, the images to ``test/TYPE/images``."""
    for kind in sorted(root.glob("ground_truth/*")):
        images = [p for p in (root / "test" / kind.name).iterdir() if p.is_file()]
        kind.rename(root / "test" / kind.name / "masks")
        (root / "test" / kind.name / "images").mkdir()
        for path in images:
            path.rename(path.parent / "images" / path.name)


def extra_level(root: Path) -> None:
    """Images of each folder lie one folder deeper."""
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        files = [
            path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in (".png", ".jpg", ".bmp")
        ]
        if files:
            (folder / "monday").mkdir()
            for path in files:
                path.rename(folder / "monday" / path.name)


def masks_named(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for path in [p for p in root.rglob("*_mask.png") if "ground_truth" in p.parts]:
            path.rename(path.with_name(pattern.format(path.stem.removesuffix("_mask")) + path.suffix))

    return change


def without_annotations(root: Path) -> None:
    for path in [p for p in root.rglob("*") if p.suffix in (".json", ".xml", ".txt", ".csv")]:
        path.unlink()


def broken_annotations(root: Path) -> None:
    for path in [p for p in root.rglob("*") if p.suffix in (".json", ".xml", ".txt", ".csv")]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MISSES: dict[str, Callable[[Path], None]] = {
    "upper-case suffixes": upper_suffixes,
    "renamed masks": rename_folders(ground_truth="GroundTruth", masks="Mask", gt="GT", label="Labels"),
    "renamed to something else": rename_folders(ground_truth="truth", masks="spots", Label="marks", labels="notes"),
    "renamed splits": rename_folders(train="Training", test="Testing", validation="val"),
    "unknown good": rename_folders(good="fine", ok="fine", OK="fine", NODefect_images="fine"),
    "unknown splits": rename_folders(train="first", test="second", Train="first", Test="second"),
    "no masks": without_masks,
    "masks inside the image folder": masks_beside_images,
    "an extra level": extra_level,
    "_gt": masks_named("{}_gt"),
    "mask_": masks_named("mask_{}"),
    "no annotations": without_annotations,
    "broken annotations": broken_annotations,
}


@pytest.mark.slow  # together
@pytest.mark.parametrize("miss", MISSES)
@pytest.mark.parametrize("name", TREES)
def test_a_near_miss_is_never_misread(tmp_path: Path, name: str, miss: str) -> None:
    """Refused, or no mask is an image, no defective image good, no file forgotten."""
    if (name, miss) == ("labelme", "no annotations"):
        pytest.skip("loose images by themselves are all good by definition")
    root = drawn(name, tmp_path)
    MISSES[miss](root if root.is_dir() else root.parent)
    try:
        sets = load_datasets(root)
    except DataError as error:
        text = str(error)
        assert text
        return
    for dataset in sets.values():
        adds_up(dataset)
        for row in (*dataset.table, *dataset.private):
            if not Path(row.path).is_file():
                continue
            pixels = row.image()
            assert len(np.unique(pixels)) > 2 or "xyz" in row.path, f"{row.path} is a mask"
            assert not (row.label == 0 and is_defective(pixels)), f"{row.path} is defective"


# -- what is plainly meant is read ------------------------------------------------------------------------------------


def masks_of(root: Path) -> tuple[int, int]:
    table = load_dataset(root).table
    return sum(row.has_mask for row in table), sum(row.label == 1 for row in table)


@pytest.mark.parametrize(
    "pattern", ["{}_gt", "{}_GT", "{}_label", "{}_MASK", "{}.mask", "mask_{}", "{}_groundtruth", "{}-mask", "{}_mask1"]
)
def test_masks_named_as_people_name_them(tmp_path: Path, pattern: str) -> None:
    root = TREES["MVTec AD"](tmp_path)
    masks_named(pattern)(root)
    assert masks_of(root) == (3, 3)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("GroundTruth", "broken_large"),
        ("gt", "broken_large"),
        ("Masks", "broken_large"),
        ("ground_truth", "Broken_Large"),
    ],
)
def test_mask_folders_named_as_people_name_them(tmp_path: Path, folder: str, kind: str) -> None:
    root = TREES["MVTec AD"](tmp_path)
    (root / "ground_truth/broken_large").rename(root / "ground_truth" / kind)
    (root / "ground_truth").rename(root / folder)
    assert masks_of(root) == (3, 3)


def test_masks_in_folders_of_the_split_or_in_none(tmp_path: Path) -> None:
    for name in ("split", "flat", "inside"):
        root = TREES["MVTec AD"](tmp_path / name)
        if name == "split":
            (root / "masks/test").mkdir(parents=True)
            (root / "ground_truth/broken_large").rename(root / "masks/test/broken_large")
            (root / "ground_truth").rmdir()
        elif name == "flat":
            for path in (root / "test/broken_large").iterdir():
                path.rename(path.with_name(f"b{path.name}"))
            for path in (root / "ground_truth/broken_large").iterdir():
                path.rename(root / "ground_truth" / f"b{path.name}")
        else:
            masks_beside_images(root)
        assert masks_of(root) == (3, 3), name


def test_names_in_either_form_of_unicode(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"good/{i}.png", image(i))
    save(tmp_path / "bad" / (unicodedata.normalize("NFC", "größe") + ".png"), image(9, True))
    save(tmp_path / "masks/bad" / (unicodedata.normalize("NFD", "größe") + ".png"), mask(9))
    assert masks_of(tmp_path) == (1, 1)


def test_masks_that_belong_to_no_image_are_named(tmp_path: Path) -> None:
    root = TREES["MVTec AD"](tmp_path)
    for path in list((root / "ground_truth/broken_large").iterdir()):
        path.rename(path.with_name(f"other{path.name}"))
    account = load_dataset(root).account
    assert [unused.path for unused in account.unused if unused.warn] == [
        f"ground_truth/broken_large/other{i:03}_mask.png" for i in range(3)
    ]
    warning = account.warning("bottle")
    assert warning is not None
    assert "3 files of bottle look like data and are not used" in warning
    assert "masks that belong to no image; expected STEM_mask.png" in warning


@pytest.mark.parametrize(
    ("images", "masks", "why"),
    [
        (["a.png", "a.jpg"], ["a_mask.png"], "may belong to a.jpg, a.png"),
        (["a.png"], ["a_mask.png", "a.png"], "one of 2 masks of a.png"),
        (["a.png"], ["a_mask.png", "a_gt.png"], "one of 2 masks of a.png"),
    ],
)
def test_a_mask_is_never_guessed(tmp_path: Path, images: list[str], masks: list[str], why: str) -> None:
    save(tmp_path / "train/good/0.png", image(0))
    for name in images:
        save(tmp_path / "test/bad" / name, image(9, True))
    for name in masks:
        save(tmp_path / "ground_truth/bad" / name, mask(9))
    dataset = load_dataset(tmp_path)
    assert not any(row.has_mask for row in dataset.table)
    assert {unused.path for unused in dataset.account.unused} == {f"ground_truth/bad/{name}" for name in masks}
    assert all(why in unused.reason for unused in dataset.account.unused)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_that_holds_masks_under_another_name_is_refused(tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        save(tmp_path / f"good/{i}{suffix}", image(i))
        save(tmp_path / f"bad/photo/{i}{suffix}", image(10 + i, True))
        save(tmp_path / f"bad/lbl/{i}.png", mask(10 + i))
    with pytest.raises(DataError, match=r"bad/lbl holds images of two values, e\.g\. 0\.png, which look like masks"):
        load_dataset(tmp_path)


def test_a_broken_image_keeps_no_folder_from_being_looked_into(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"good/{i}.png", image(i))
        save(tmp_path / f"bad/photo/{i}.png", image(10 + i, True))
        save(tmp_path / f"bad/lbl/{i}.png", mask(10 + i))
    for name in ("good/0.png", "bad/lbl/0.png", "bad/photo/1.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="bad/lbl holds images of two values"):
        load_dataset(tmp_path)


def test_images_of_a_camera_that_saw_nothing_stay_images(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"train/good/{i}.png", image(i))
        save(tmp_path / f"test/good/g{i}.png", image(20 + i))
        save(tmp_path / f"test/bad/b{i}.png", np.zeros((24, 32), np.uint8))
    assert [row.label for row in load_dataset(tmp_path).test] == [1, 1, 1, 0, 0, 0]


def test_a_mask_saved_as_jpeg_beside_its_image_is_a_mask(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / f"train/good/{i}.png", image(i))
        save(tmp_path / f"test/bad/{i}.png", image(10 + i, True))
        big = np.kron(mask(10 + i), np.ones((8, 8), np.uint8))
        save(tmp_path / f"test/bad/{i}.jpg", big)
    rows = [row for row in load_dataset(tmp_path).table if row.label == 1]
    assert [(Path(row.path).name, Path(str(row.mask)).name) for row in rows] == [("0.png", "0.jpg"), ("1.png", "1.jpg")]


def test_a_mask_that_may_belong_to_images_of_several_folders_is_named(tmp_path: Path) -> None:
    root = classes(tmp_path, "good", "good", "ng", "bad")
    save(root / "ground_truth/0.png", mask(2))
    dataset = load_dataset(root)
    assert not any(row.has_mask for row in dataset.table)
    (unused,) = dataset.account.unused
    assert (unused.path, unused.warn) == ("ground_truth/0.png", True)
    assert "in several folders" in unused.reason


def test_masks_beside_training_images(tmp_path: Path) -> None:
    root = classes(tmp_path, "good", "good", "ng")
    save(root / "train/good/0_mask.png", mask(0, marked=False))
    assert len(load_dataset(root).train) == 4
    save(root / "train/good/0_mask.png", mask(0))
    with pytest.raises(
        DataError, match=r"0\.png lies among the good images, but its mask .*0_mask\.png marks a defect"
    ):
        load_dataset(root)
    for path in (root / "train/good").iterdir():
        path.rename(root / "train" / path.name)
    with pytest.raises(DataError, match="holds images and masks, so not all of its images are good"):
        load_dataset(root)


def test_two_valued_files_beside_photographs_are_masks(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / f"train/good/{i}.png", image(i))
        save(tmp_path / f"test/bad/{i}.jpg", image(10 + i, True))
        save(tmp_path / f"test/bad/{i}.png", mask(10 + i))
    save(tmp_path / "test/bad/2.jpg", image(12, True))
    save(tmp_path / "test/bad/2.png", image(12, True))  # the same photograph in two formats is no mask
    rows = [row for row in load_dataset(tmp_path).table if row.label == 1]
    assert [(Path(row.path).name, row.mask and Path(str(row.mask)).name) for row in rows] == [
        ("0.jpg", "0.png"),
        ("1.jpg", "1.png"),
        ("2.jpg", None),
        ("2.png", None),
    ]


# -- annotations ------------------------------------------------------------------------------------------------------


def annotated_folders(root: Path) -> Path:
    TREES["labelme"](root / "drawn")
    for i in range(8):
        for suffix in (".png", ".json"):
            place = root / ("bad" if i >= 6 else "good") / f"{i}{suffix}"
            place.parent.mkdir(exist_ok=True)
            (root / f"drawn/{i}{suffix}").rename(place)
    (root / "drawn").rmdir()
    return root


def test_outlines_beside_images_in_folders_are_their_masks(tmp_path: Path) -> None:
    dataset = load_dataset(annotated_folders(tmp_path))
    assert (dataset.layout, masks_of(tmp_path)) == ("folder", (2, 2))
    assert dataset.account.used["files of annotations"] == 8


def test_annotations_that_contradict_the_folder_are_refused(tmp_path: Path) -> None:
    root = annotated_folders(tmp_path)
    for suffix in (".png", ".json"):
        (root / f"bad/7{suffix}").rename(root / f"good/7{suffix}")
    with pytest.raises(DataError, match=r"7\.png: lies among the good images, but .*7\.json says that it is defective"):
        load_dataset(root)


def test_annotations_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    root = annotated_folders(tmp_path)
    (root / "good/0.json").write_text("{")
    (root / "good/1.json").write_text("[]")
    with pytest.raises(DataError, match=r"annotations cannot be read, 2 of 8") as caught:
        load_dataset(root)
    assert [Path(failure.path).name for failure in caught.value.failures] == ["0.json", "1.json"]


def test_images_that_no_annotation_names_teach_nothing(tmp_path: Path) -> None:
    rows = load_dataset(TREES["COCO"](tmp_path)).table
    (unknown,) = [row for row in rows if row.label is None]
    assert (Path(unknown.path).name, unknown.role) == ("unnamed.png", "test")


def test_loose_images_beside_a_table_are_not_all_good(tmp_path: Path) -> None:
    save(tmp_path / "a.png", image(0))
    (tmp_path / "labels.csv").write_text("path,label\na.png,1\n")
    with pytest.raises(DataError, match=r"holds images beside labels\.csv.*name the table in place of the folder"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["labels.txt", "annotations.json", "Defects.xml", "t.parquet", "t.xlsx"])
def test_loose_images_beside_a_list_are_not_all_good(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.png", image(0))
    (tmp_path / "readme.txt").touch()
    assert len(load_dataset(tmp_path).train) == 1
    (tmp_path / name).write_text("1")
    with pytest.raises(DataError, match=r"which may say which of them are good|cannot be read|not JSON|not XML"):
        load_dataset(tmp_path)


def test_a_folder_of_defective_images_does_not_teach(tmp_path: Path) -> None:
    save(tmp_path / "NG/a.png", image(0, True))
    with pytest.raises(DataError, match="has a name that means defective parts"):
        load_dataset(tmp_path / "NG")


def test_boxes_are_no_truth_of_pixels(tmp_path: Path) -> None:
    row = next(row for row in load_dataset(TREES["DeepPCB"](tmp_path)).table if row.label == 1)
    assert (row.boxes, row.has_mask, row.truth((24, 32))) == (((4.0, 4.0, 6.0, 5.0),), False, None)


# -- which names mean good --------------------------------------------------------------------------------------------


def classes(root: Path, train: str, *test: str) -> Path:
    for i in range(4):
        save(root / f"train/{train}/{i}.png", image(i))
    for name in test:
        save(root / f"test/{name}/0.png", image(len(name), name != test[0]))
    return root


@pytest.mark.parametrize(
    "name", ["pass", "OK", "Normal", "no_defect", "NODefect_images", "defect-free", "good parts", "OK_2"]
)
def test_names_that_mean_good(tmp_path: Path, name: str) -> None:
    table = load_dataset(classes(tmp_path, name, name, "ng")).table
    assert dict(Counter((row.role, row.label) for row in table)) == {("train", 0): 4, ("test", 0): 1, ("test", 1): 1}


def test_a_split_whose_names_do_not_say_what_is_good_is_refused(tmp_path: Path) -> None:
    root = classes(tmp_path, "good", "fine", "scratch")
    with pytest.raises(DataError, match=r"holds the folders fine, scratch, and no name says .*--good NAME"):
        load_dataset(root)
    table = load_dataset(root, good=["fine"]).table
    assert {(Path(row.path).parent.name, row.label) for row in table} == {("good", 0), ("fine", 0), ("scratch", 1)}
    with pytest.raises(DataError, match=r"train holds the folders fine, and no name says"):
        load_dataset(classes(tmp_path / "other", "fine", "good", "ng"))


def test_test_images_that_are_all_defective(tmp_path: Path) -> None:
    root = classes(tmp_path, "good", "bad", "NG")
    assert {row.label for row in load_dataset(root).test} == {1}
    masked = classes(tmp_path / "other", "good", "scratch")
    save(masked / "ground_truth/scratch/0.png", mask(7))
    assert {row.label for row in load_dataset(masked).test} == {1}


# -- unknown layouts --------------------------------------------------------------------------------------------------


def test_a_mask_of_no_image_leaves_the_others_of_dagm_unknown(tmp_path: Path) -> None:
    root = drawn("DAGM 2007", tmp_path)
    for file in root.rglob("Labels.txt"):
        file.unlink()
    (mask_file, *_) = sorted((root / "Test" / "Label").iterdir())
    hidden = root / "Test" / mask_file.name.replace("_label", "")
    hidden.rename(hidden.with_name("renamed.PNG"))
    labels = {Path(row.path).name: row.label for row in load_dataset(root).test}
    assert labels["renamed.PNG"] is None  # it is defective
    assert 0 not in labels.values()


def test_a_table_beside_images_is_named_as_what_to_read(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"img/{i}.png", image(i))
    (tmp_path / "labels.csv").write_text("path,label\nimg/0.png,0\n")
    with pytest.raises(DataError, match=r"If labels\.csv lists the images, name the table"):
        load_dataset(tmp_path)


def test_an_unknown_layout_is_shown_with_the_nearest(tmp_path: Path) -> None:
    for kind in ("crack", "dent"):
        save(tmp_path / f"lot7/{kind}/0.png", image(0))
    save(tmp_path / "ground_truth/crack/0_mask.png", mask(0))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    text = str(caught.value)
    assert "is not a data set in a known layout" in text
    assert "  lot7/\n    crack/  1 .png\n    dent/  1 .png" in text
    assert "mvtec:" in text
    assert "'pickglass info --layouts' lists all" in text
    assert len(text.splitlines()) < 25


def test_parts_of_a_data_set_are_not_called_data_sets(tmp_path: Path) -> None:
    for names in (["Train", "Test"], ["images", "labels"], ["passt", "nicht"]):
        root = tmp_path / names[0]
        for name in names:
            save(root / name / "0.png", image(0))
        with pytest.raises(DataError) as caught:
            load_dataset(root)
        assert "holds 2 data sets" not in str(caught.value), names


def test_files_beside_data_sets_are_accounted_for(tmp_path: Path) -> None:
    for name in ("bottle", "cable"):
        TREES["MVTec AD"](tmp_path / name)
        (tmp_path / name / "bottle").rename(tmp_path / f"{name}_")
        (tmp_path / name).rmdir()
    save(tmp_path / "stray.png", image(0))
    sets = load_datasets(tmp_path)
    assert list(sets) == ["bottle_", "cable_"]
    assert [(unused.path, unused.warn) for unused in sets.beside.unused] == [("stray.png", True)]


# -- the walk ---------------------------------------------------------------------------------------------------------


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = TREES["MVTec AD"](tmp_path)
    store = tmp_path / "store"
    (root / "train/good").rename(store)
    (root / "train/good").symlink_to(store)
    (root / "test/good/loop").symlink_to(root / "test")
    (root / "test/good/above").symlink_to(tmp_path)
    (root / "test/good/self").symlink_to(root / "test/good/self")
    (root / "train/zagain").symlink_to(store)
    dataset = load_dataset(root)
    assert dict(Counter((row.role, row.label) for row in dataset.table)) == {
        ("train", 0): 8,
        ("test", 0): 3,
        ("test", 1): 3,
    }
    reasons = {unused.path: unused.reason for unused in dataset.account.unused}
    assert "listed already" in reasons["test/good/loop"]
    assert "a folder above" in reasons["test/good/above"]
    assert any("listed already" in reasons.get(name, "") for name in ("train/zagain", "train/good"))
    assert "test/good/self" in reasons


def test_hidden_files_are_counted(tmp_path: Path) -> None:
    root = TREES["MVTec AD"](tmp_path)
    save(root / "train/good/@eaDir/0.png", image(0))
    (root / "train/good/._000.png").write_bytes(b"junk")
    (root / "Thumbs.db").touch()
    dataset = load_dataset(root)
    assert (len(dataset.train), dataset.account.hidden) == (8, 3)


def test_two_folders_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    root = TREES["DAGM 2007"](tmp_path)
    (root / "Train/label").mkdir()
    if len(list(root.glob("Train/[Ll]abel"))) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    save(root / "Train/label/0001_label.PNG", mask(1))
    with pytest.raises(DataError, match="expected one of them"):
        load_dataset(root)


# -- single layouts ---------------------------------------------------------------------------------------------------


def row_of(dataset: Dataset, name: str) -> Row:
    (row,) = [row for row in dataset.table if row.path.endswith(name)]
    return row


def test_a_scene_under_several_lights_is_one_group(tmp_path: Path) -> None:
    dataset = load_dataset(TREES["MVTec AD 2"](tmp_path))
    assert row_of(dataset, "bad/001_regular.png").group == row_of(dataset, "bad/001_overexposed.png").group == "bad/001"


def test_real_iad_without_its_split_is_divided_by_part(tmp_path: Path) -> None:
    root = TREES["Real-IAD"](tmp_path)
    shutil.rmtree(tmp_path / "realiad_jsons")
    dataset = load_dataset(root)
    assert dataset.drawn
    assert dict(Counter((row.role, row.label) for row in dataset.table)) == {
        ("train", 0): 8,
        ("test", 0): 2,
        ("test", 1): 4,
    }
    assert all(row.has_mask for row in dataset.table if row.label == 1)
    assert not {row.group for row in dataset.train} & {row.group for row in dataset.test}


def test_a_view_of_a_defective_part_without_a_mask_is_unlabelled(tmp_path: Path) -> None:
    root = TREES["Real-IAD"](tmp_path)
    shutil.rmtree(tmp_path / "realiad_jsons")
    next(root.glob("NG/*/*/*.png")).unlink()
    assert sorted((row.label is None, row.has_mask) for row in load_dataset(root).table if row.label != 0) == [
        (False, True),
        (False, True),
        (False, True),
        (True, False),
    ]


def test_real_iad_with_masks_named_so(tmp_path: Path) -> None:
    root = TREES["Real-IAD"](tmp_path)
    shutil.rmtree(tmp_path / "realiad_jsons")
    for path in list(root.glob("NG/*/*/*.png")):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert masks_of(root) == (4, 4)


def test_the_training_part_of_kolektorsdd2_alone(tmp_path: Path) -> None:
    dataset = load_dataset(TREES["KolektorSDD2"](tmp_path) / "train")
    assert dict(Counter((row.role, row.label) for row in dataset.table)) == {
        ("train", 0): 6,
        ("test", 0): 2,
        ("test", 1): 2,
    }


def test_folders_of_images_and_masks(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / f"images/{i}.jpg", image(i, i > 7))
        save(tmp_path / f"masks/{i}.png", mask(i, i > 7))
    dataset = load_dataset(tmp_path)
    assert (dataset.layout, masks_of(tmp_path)) == ("kolektor2", (2, 2))
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        shutil.copytree(tmp_path / "images", tmp_path / split / "images")
        shutil.copytree(tmp_path / "masks", tmp_path / split / "masks")
    shutil.rmtree(tmp_path / "images")
    shutil.rmtree(tmp_path / "masks")
    dataset = load_dataset(tmp_path)
    assert dict(Counter((row.role, row.label) for row in dataset.table)) == {
        ("train", 0): 8,
        ("test", 0): 8,
        ("test", 1): 2,
    }
    assert len(dataset.account.unused) == 2


def test_a_table_of_severstal_that_is_cut_short(tmp_path: Path) -> None:
    root = TREES["Severstal"](tmp_path)
    text = (root / "train.csv").read_text()
    for cut in (text[: text.rindex(",")], text.splitlines()[0]):
        (root / "train.csv").write_text(cut)
        with pytest.raises(DataError, match=r"may be cut short|names no defect"):
            load_dataset(root)


def test_a_data_set_one_folder_deeper_is_named(tmp_path: Path) -> None:
    root = TREES["MVTec AD"](tmp_path)
    with pytest.raises(DataError, match=rf"is not a data set itself but holds one, {root}: name that folder"):
        load_dataset(tmp_path)
    assert list(load_datasets(tmp_path)) == ["bottle"]


def test_images_without_labels_are_not_good(tmp_path: Path) -> None:
    root = TREES["labelme"](tmp_path)
    for i in range(6):
        (root / f"{i}.json").unlink()
    with pytest.raises(DataError, match=r"no good image for training .6 images have no label, and nothing says"):
        load_dataset(root)


def test_dagm_lists_and_masks_that_contradict_each_other(tmp_path: Path) -> None:
    root = TREES["DAGM 2007"](tmp_path)
    save(root / "Test/Label/0001_label.PNG", mask(1))
    with pytest.raises(DataError, match=r"0001\.PNG has a mask.*Labels\.txt says that it is good"):
        load_dataset(root)


def test_the_test_part_by_itself_finds_its_masks(tmp_path: Path) -> None:
    root = TREES["MVTec AD"](tmp_path)
    assert masks_of(root / "test") == (3, 3)
    shutil.rmtree(root / "train")
    assert [row.label for row in load_dataset(root, training=False).table].count(1) == 3
    with pytest.raises(DataError, match="no good image for training"):
        load_dataset(root)
