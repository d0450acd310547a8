"""``convert``: every layout becomes MVTec AD's or a table with the same images, labels, roles, masks and groups."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.layouts import TREES, image, save

from pickglass.app.convert import FORMS, convert
from pickglass.cli.main import app
from pickglass.data import Dataset, Row, load_dataset, load_datasets
from pickglass.errors import DataError, InputError

NEEDS = {"Kaputt": "pyarrow"}


def facts(dataset: Dataset) -> Counter[Any]:
    """What is told of each image, by its pixels, as names change."""
    return Counter(
        (
            row.image().tobytes(),
            "train" if row.role in ("fit", "calibrate") else row.role,
            row.label,
            row.group,
            _truth(row) if row.label == 1 else None,
        )
        for row in dataset.table
    )


def types(dataset: Dataset) -> set[str]:
    return {row.defect or "defect" for row in dataset.table if row.label == 1}


def _truth(row: Row) -> bytes | None:
    truth = row.truth(row.image().shape[:2])
    return None if truth is None else truth.tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TREES)
def test_nothing_is_lost_or_misplaced(tmp_path: Path, name: str, form: Any) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    (tmp_path / "data").mkdir()
    root = TREES[name](tmp_path / "data")
    sets = load_datasets(root)
    result = convert(root, tmp_path / "new", form)
    assert len(result["sets"]) == len(sets)
    for one, dataset in zip(result["sets"], sets.values(), strict=True):
        again = load_dataset(one["path"], training=False, good=["good"])
        assert facts(again) == facts(dataset)
        assert types(again) == types(dataset)
        assert one["images"] == len(dataset.table)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_are_links_and_the_data_stays(tmp_path: Path) -> None:
    root = TREES["folders"](tmp_path / "data")
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    result = convert(root, tmp_path / "new")
    assert result["sets"][0]["links"] == {"hard links": 14}
    assert os.path.samefile(tmp_path / "new/test/hole/0.png", root / "hole/0.png")
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before


def test_other_disks_get_symbolic_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = TREES["folders"](tmp_path / "data")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert convert(root, tmp_path / "a")["sets"][0]["links"] == {"symbolic links": 14}
    monkeypatch.setattr(os, "symlink", refuse)
    assert convert(root, tmp_path / "b")["sets"][0]["links"] == {"copies": 14}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = TREES["folders"](tmp_path / "data")
    convert(root, tmp_path / "new")
    with pytest.raises(InputError, match=r"exists already: .*--force"):
        convert(root, tmp_path / "new")
    (tmp_path / "new/test/hole/0.png").unlink()
    convert(root, tmp_path / "new", force=True)
    assert (tmp_path / "new/test/hole/0.png").is_file()
    save(tmp_path / "mine/a.png", image(0))
    with pytest.raises(InputError, match="was not written by 'pickglass convert'"):
        convert(root, tmp_path / "mine", force=True)
    for place in (root, root / "new", tmp_path):
        with pytest.raises(InputError, match=r"the data itself, or lies in it or above it|was not written by"):
            convert(root, place, force=True)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    root = TREES["labelme"](tmp_path / "data")
    Image.new("L", (5, 5)).save(root / "7.png")  # its outline leaves the image
    with pytest.raises(DataError, match=r"masks of .* cannot be drawn"):
        convert(root, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for day in ("mon", "tue"):
        for i in range(2):
            save(tmp_path / f"data/good/{day}/{i}.png", image(i + (day == "tue")))
    convert(tmp_path / "data", tmp_path / "new")
    names = sorted(path.name for path in (tmp_path / "new/train/good").iterdir())
    assert len(names) == 4
    assert {"0.png", "tue_0.png"} <= set(names)


@pytest.mark.parametrize("kind", ["masks", "images", "val", "a/b", "label"])
def test_types_of_defects_with_awkward_names(tmp_path: Path, kind: str) -> None:
    lines = ["path,role,label,defect"]
    for i in range(4):
        save(tmp_path / f"data/{i}.png", image(i, i == 3))
        lines.append(f"{i}.png,{'test' if i > 1 else 'train'},{int(i == 3)},{kind if i == 3 else ''}")
    (tmp_path / "data/t.csv").write_text("\n".join(lines))
    convert(tmp_path / "data/t.csv", tmp_path / "new")
    again = load_dataset(tmp_path / "new")
    assert [row.label for row in again.test] == [1, 0] or [row.label for row in again.test] == [0, 1]


def test_the_command(tmp_path: Path) -> None:
    root = TREES["DeepPCB"](tmp_path / "data")
    shown = CliRunner().invoke(app, ["convert", str(root), "-o", str(tmp_path / "new")])
    assert shown.exit_code == 0, shown.output
    assert "5 images have boxes, which are left out." in shown.output
    assert "15 of 17 files are used" in shown.output
    told = CliRunner().invoke(app, ["convert", str(root), "-o", str(tmp_path / "t"), "--as", "table", "--json"])
    assert json.loads(told.stdout)["sets"][0]["path"] == str(tmp_path / "t/table.csv")
