"""``info``: what is wrong with a data set, told before anything is trained, on trees with one fault each."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pickglass.app.info import info
from pickglass.cli.main import app
from pickglass.data import LAYOUTS, Dataset, DataSource, Row, Table, as_table, find_problems, load_dataset
from pickglass.errors import DataError, InputError


def texture(seed: int, *shape: int, low: int = 90, high: int = 140) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape or (48, 64)).astype(np.uint8)


def put(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """12 good images for training, 2 good and 2 defective test images with masks."""
    root = tmp_path / "part"
    for i in range(12):
        put(root / f"train/good/{i:02}.png", texture(i))
    for i in range(2):
        put(root / f"test/good/{i}.png", texture(100 + i))
        put(root / f"test/hole/{i}.png", texture(200 + i))
        put(root / f"ground_truth/hole/{i}_mask.png", np.eye(48, 64, dtype=np.uint8))
    return root


def problems(root: Path) -> dict[str, list[str]]:
    found = find_problems(load_dataset(root))
    return {name: [text.replace(f"{root}{os.sep}", "") for text in texts] for name, texts in found.items()}


def test_a_sound_data_set_has_no_problem(sound: Path) -> None:
    about = info(sound)["about"]
    assert about["problems"] == {}
    assert (about["layout"], about["images"], about["types"]) == ("mvtec", 16, {"good": 14, "hole": 2})


def test_several_data_sets_are_each_told(sound: Path) -> None:
    put(sound.parent / "other/train/good/0.png", texture(0))
    about = info(sound.parent)["about"]
    assert {name: entry["images"] for name, entry in about.items()} == {"other": 1, "part": 16}
    with pytest.raises(DataError, match="no such file or folder: missing"):
        info(sound / "missing")
    assert info(DataSource(sound, group_by=r"\d+"))["about"]["groups"] == 14
    assert len(info(sound, max_pixels=100)["about"]["problems"]["unreadable"]) == 16


def test_files_that_cannot_be_used(sound: Path) -> None:
    (sound / "train/good/00.png").write_bytes(b"")
    (sound / "ground_truth/hole/0_mask.png").write_text("text")
    put(sound / "ground_truth/hole/1_mask.png", texture(0, 5, 5))
    found = problems(sound)
    assert found.keys() == {"unreadable", "masks_unusable"}
    assert found["unreadable"] == ["train/good/00.png: the file is empty (0 bytes)"]
    assert ["5x5" in text for text in found["masks_unusable"]] == [False, True]


def test_masks_that_say_nothing_or_too_much(sound: Path) -> None:
    put(sound / "ground_truth/hole/0_mask.png", np.zeros((48, 64), np.uint8))
    (sound / "ground_truth/hole/1_mask.png").unlink()
    assert problems(sound) == {"masks_empty": ["test/hole/0.png"], "no_mask": ["test/hole/1.png"]}
    marked = Row(str(sound / "test/good/0.png"), "test", 0, mask=str(sound / "train/good/00.png"))
    assert list(find_problems(Dataset("d", "", "", Table([marked])))) == ["good_with_mask"]
    size, empty = (48, 64), np.zeros((48, 64), bool)
    in_memory = [
        replace(marked, mask=np.eye(*size) > 0),
        replace(marked, path=str(sound / "test/hole/0.png"), label=1, mask=empty),
        replace(marked, path=str(sound / "test/hole/1.png"), label=1, mask=empty.T),
    ]
    found = find_problems(Dataset("d", "", "", Table(in_memory)))
    assert {name: len(found[name]) for name in ("good_with_mask", "masks_empty", "masks_unusable")} == {
        "good_with_mask": 1,
        "masks_empty": 1,
        "masks_unusable": 1,
    }


@pytest.mark.parametrize(
    ("source", "copy", "problem"),
    [
        ("train/good/00.png", "train/good/99.png", "duplicates"),
        ("test/hole/0.png", "test/dent/0.png", "duplicates"),
        ("train/good/00.png", "test/good/9.png", "in_two_roles"),
        ("train/good/00.png", "test/hole/0.png", "defective_equals_good"),
        ("test/good/0.png", "test/hole/0.png", "defective_equals_good"),
        ("test/hole/0.png", "test/good/0.png", "defective_equals_good"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".bmp"])  # the pixels count, not the bytes
def test_the_same_picture_twice(sound: Path, source: str, copy: str, problem: str, suffix: str) -> None:
    (sound / copy).unlink(missing_ok=True)
    path = Path(copy).with_suffix(suffix).as_posix()
    put(sound / path, np.asarray(Image.open(sound / source)))
    found = problems(sound)
    found.pop("no_mask", None)
    (told,) = found.pop(problem)
    assert set(told.split(" = ")) == {source, path}
    assert found == {}


def test_groups_in_training_and_test(sound: Path) -> None:
    (sound / "groups.csv").write_text("path,group\ntrain/good/00.png,a\ntrain/good/01.png,b\ntest/good/0.png,a\n")
    assert problems(sound) == {"group_in_two_roles": ["a"]}


OTHER_SET_UPS: dict[str, tuple[Any, str]] = {
    "darker": (texture(0) // 2, "brightness"),
    "inverted": (255 - texture(0), "brightness"),
    "flatter": (texture(0, low=110, high=118), "contrast"),
    "blurred": (np.asarray(Image.fromarray(texture(0)).resize((6, 4)).resize((64, 48))), "sharpness across"),
    "smeared down": (np.repeat(texture(0, 6, 64), 8, axis=0), "sharpness down"),
    "larger": (texture(0, 96, 128), "height 96"),
    "other aspect": (texture(0, 48, 90), "width 90"),
    "colour": (np.dstack([texture(0)] * 3), "8-bit colour, training 8-bit grey"),
    "16 bits": (texture(0).astype(np.uint16) * 257, "16-bit grey"),
}


@pytest.mark.parametrize("name", OTHER_SET_UPS)
@pytest.mark.parametrize("kind", ["good", "hole"])
def test_another_product_or_set_up_is_told(sound: Path, name: str, kind: str) -> None:
    image, words = OTHER_SET_UPS[name]
    put(sound / f"test/{kind}/0.png", image)
    if kind == "hole":
        put(sound / "ground_truth/hole/0_mask.png", np.ones(image.shape[:2], np.uint8))
    found = problems(sound)
    (told,) = found.pop("unlike_training" if kind == "good" else "defective_unlike_training")
    assert told.startswith(f"test/{kind}/0.png: ")
    assert words in told
    assert found == {}


def test_tinted_light_is_told(tmp_path: Path) -> None:
    for i in range(9):
        put(tmp_path / f"train/good/{i}.png", texture(i, 48, 64, 3))
    put(tmp_path / "test/good/0.png", np.clip(texture(50, 48, 64, 3) + np.array([12, 0, -12]), 0, 255).astype(np.uint8))
    put(tmp_path / "test/good/1.png", texture(51, 48, 64, 3))
    (told,) = problems(tmp_path)["unlike_training"]
    assert told.startswith("test/good/0.png: ")
    assert "yellow against blue" in told


def test_few_training_images_say_nothing(sound: Path) -> None:
    put(sound / "test/good/0.png", texture(0) // 2)
    for i in range(5, 12):
        (sound / f"train/good/{i:02}.png").unlink()
    assert problems(sound) == {}


def test_training_images_of_two_kinds_are_told(sound: Path) -> None:
    for i in range(4):
        put(sound / f"train/good/{i:02}.png", texture(i, low=60, high=110))
    (told,) = problems(sound)["training_in_two_kinds"]
    numbers = re.fullmatch(
        r"brightness is at most (\S+) in 4 training images and at least (\S+) in 8.*", told, flags=re.DOTALL
    )
    assert numbers is not None, told
    assert [float(number) for number in numbers.groups()] == pytest.approx([0.333, 0.449], abs=0.004)


def test_training_images_spread_evenly_are_of_one_kind(sound: Path) -> None:
    for i in range(12):
        put(sound / f"train/good/{i:02}.png", texture(i, low=60 + 8 * i, high=110 + 8 * i))
    assert problems(sound) == {}


def test_images_in_memory_and_tiny_ones() -> None:
    train = as_table([np.zeros((1, 1), np.uint8)] * 8, "train")
    found = find_problems(Dataset("memory", "", "", train + as_table(np.ones((1, 1), np.float32))))
    assert [len(texts) for texts in found.values()] == [7, 1]
    assert list(found) == ["duplicates", "unlike_training"]


def test_the_account_is_shown_and_warned_of(sound: Path) -> None:
    put(sound / "ground_truth/hole/7_mask.png", np.eye(48, 64, dtype=np.uint8))
    (sound / "notes.txt").write_text("notes")
    shown = CliRunner().invoke(app, ["info", str(sound)])
    assert shown.exit_code == 0
    assert "18 of 20 files are used: 12 good images for training, 2 good images for the test, " in shown.stdout
    assert "  ground_truth/hole/7_mask.png: masks that belong to no image; expected STEM_mask.png" in shown.stdout
    assert "  notes.txt: files of other kinds" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["info", str(sound), "--json"]).stdout)["about"]["account"]
    assert (told["files"], [group["files"] for group in told["unused"]]) == (
        20,
        [["ground_truth/hole/7_mask.png"], ["notes.txt"]],
    )
    with pytest.warns(UserWarning, match=r"a file of .* looks like data and is not used, e\.g\. .*7_mask\.png"):
        DataSource(sound).load()


def test_a_folder_without_an_image_that_can_be_used_fails(sound: Path) -> None:
    for path in sound.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="holds no image that can be used") as caught:
        info(sound)
    assert len(caught.value.failures) == 16


def test_layouts_are_listed_with_their_trees() -> None:
    shown = CliRunner().invoke(app, ["info", "--layouts"])
    assert shown.exit_code == 0
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.sets}" in shown.stdout
        assert layout.tree.split("  ")[-1] in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["info", "--layouts", "--json"]).stdout)
    assert list(told) == list(LAYOUTS)
    assert isinstance(CliRunner().invoke(app, ["info"]).exception, InputError)


@pytest.mark.slow
def test_real_sets_have_no_problem_but_one(real_data: Path) -> None:
    for name in ("mvtec_hazelnut_reduced", "mvtec_transistor_reduced"):
        assert info(real_data / name)["about"]["problems"] == {}
    cloth = info(real_data / "aitex_fabric04")["about"]["problems"]  # one fabric code, three thread densities
    assert list(cloth) == ["training_in_two_kinds"]
    assert "sharpness down" in cloth["training_in_two_kinds"][0]


def test_another_real_product_is_told(real_data: Path) -> None:
    train = load_dataset(real_data / "mvtec_hazelnut_reduced").train
    test = load_dataset(real_data / "mvtec_transistor_reduced").test
    found = find_problems(Dataset("mixed", "", "", train + test))
    assert {name: len(texts) for name, texts in found.items()} == {
        "unlike_training": 2,
        "defective_unlike_training": 8,
    }
