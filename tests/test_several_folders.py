"""Several folders in one command: one data set, nothing counted twice, and parts of two folders never taken for one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pickglass as pg
from pickglass.app.predict import predict
from pickglass.cli.main import main
from pickglass.data import DataSource, fingerprint, tables_at
from pickglass.errors import DataError, InputError
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

MONDAY, TUESDAY = 7, 5


def drawn(folder: Path, n: int, seed: int, name: str = "part{:d}_1.png") -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(textures(n, 48, seed=seed)):
        Image.fromarray(image).save(folder / name.format(i))


@pytest.fixture
def days(tmp_path: Path) -> tuple[Path, Path]:
    """A plain folder and a tree of MVTec's, whose parts have the same names."""
    drawn(tmp_path / "monday", MONDAY, 1)
    drawn(tmp_path / "tuesday" / "train" / "good", TUESDAY, 2)
    drawn(tmp_path / "tuesday" / "test" / "good", 2, 3)
    drawn(tmp_path / "tuesday" / "test" / "hole", 2, 4)
    return tmp_path / "monday", tmp_path / "tuesday"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_folders_of_any_layout_make_one_data_set_with_their_roles(days: tuple[Path, Path]) -> None:
    monday, tuesday = days
    joined = DataSource(monday, more=(tuesday,)).load()
    alone = [DataSource(day).load() for day in days]
    assert (joined.name, joined.layout) == ("monday + tuesday", "folder + mvtec")
    assert list(joined.table) == [row for one in alone for row in one.table]
    assert (len(joined.train), len(joined.test)) == (MONDAY + TUESDAY, 4)
    assert joined.account.files == sum(one.account.files for one in alone)
    other_way = DataSource(tuesday, more=(monday,)).load()
    assert fingerprint(other_way.table) == fingerprint(joined.table)


def test_a_part_of_one_folder_is_not_that_of_another(days: tuple[Path, Path]) -> None:
    monday, tuesday = days
    alone = DataSource(monday, group_by=r"part(\d)").load().train
    joined = DataSource(monday, group_by=r"part(\d)", more=(tuesday,)).load().train
    assert len({row.group for row in alone}) == MONDAY
    assert len({row.unit for row in joined}) == MONDAY + TUESDAY
    assert all(row.group is not None for row in joined)


def test_files_that_are_not_used_are_named_with_their_folder(days: tuple[Path, Path]) -> None:
    monday, tuesday = days
    (tuesday / "train" / "notes.txt").write_text("odd")
    joined = DataSource(monday, more=(tuesday,)).load()
    assert [file.path for file in joined.account.unused] == [str(tuesday / "train" / "notes.txt")]
    assert joined.account.files == sum(joined.account.used.values()) + 1


def test_a_folder_that_comes_twice_is_named(days: tuple[Path, Path], tmp_path: Path) -> None:
    monday, tuesday = days
    link = tmp_path / "link"
    link.symlink_to(monday, target_is_directory=True)
    for again in (monday, link, f"{monday}/", tuesday / ".." / "monday"):
        with pytest.raises(InputError, match=rf"{MONDAY} images are named twice, by .*monday.* and by "):
            tables_at([monday, again])
        with pytest.raises(InputError, match=rf"{MONDAY} images are named twice, by "):
            DataSource(monday, more=(again,)).load()
    with pytest.raises(InputError, match="1 image is named twice"):
        tables_at([monday, monday / "part0_1.png"])
    with pytest.raises(InputError, match="expected a single one here"):
        DataSource(monday, more=(tuesday,)).load_all()
    with pytest.raises(DataError, match="no such file or folder: nowhere"):
        tables_at([monday, tmp_path / "nowhere"])


def test_a_link_beside_its_image_is_no_second_naming(days: tuple[Path, Path]) -> None:
    monday, tuesday = days
    os.symlink("part0_1.png", monday / "latest.png")
    assert len(tables_at([monday, tuesday / "test"])) == MONDAY + 1 + 4


@pytest.mark.slow
def test_one_model_is_fitted_calibrated_and_asked_with_several_folders(
    days: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monday, tuesday = days
    model = tmp_path / "m.safetensors"
    quick: list[Any] = ["--engine", "torch", "--json"]
    settings = ["--size", 48, "--set", "ratio=0.1"]
    code, out, err = run(monkeypatch, capsys, "fit", monday, tuesday, "-o", model, *settings, *quick)
    assert (code, json.loads(out)["n_fit"]) == (0, MONDAY + TUESDAY), err
    assert pg.load(model).provenance.data == "monday + tuesday"
    setter = json.loads(out)["threshold_sentence"].split(" sets it")[0].split("; ")[-1]
    assert setter.rsplit("/", 1)[0] in ("monday", "good"), "part0_1.png alone may be that of either day"

    # the images of the fit, named the other way round, have their scores in the model
    words = ["--promise", "estimate", "--false-alarm", 0.2]
    code, out, err = run(monkeypatch, capsys, "threshold", model, tuesday, monday, *words, *quick)
    assert (code, json.loads(out)["n_calibrate"]) == (0, MONDAY + TUESDAY), err

    drawn(tmp_path / "wednesday", 4, 8)
    drawn(tmp_path / "thursday", 3, 9)
    fresh = [tmp_path / "wednesday", tmp_path / "thursday"]
    words = ["--promise", "marginal", "--false-alarm", 0.2]
    code, out, err = run(monkeypatch, capsys, "threshold", model, *fresh, *words, *quick)
    assert (code, json.loads(out)["n_calibrate"]) == (0, 7), err

    code, out, err = run(monkeypatch, capsys, "predict", model, *reversed(fresh), tuesday / "test", *quick)
    assert code == 0, err
    folders = [Path(item["path"]).parts[len(tmp_path.parts)] for item in json.loads(out)["results"]]
    assert folders == ["thursday"] * 3 + ["wednesday"] * 4 + ["tuesday"] * 4

    for command in ("fit", "threshold", "predict", "drift"):
        output = ["-o", tmp_path / "n.safetensors"] if command == "fit" else []
        first = [] if command == "fit" else [model]
        code, out, err = run(monkeypatch, capsys, command, *first, fresh[0], fresh[0], *output, *quick)
        assert (code, out) == (2, "")
        assert err.startswith("error: 4 images are named twice, by ")
        assert len(err) < 500 + 3 * len(str(fresh[0]))
    code, _, err = run(monkeypatch, capsys, "fit", monday, tuesday, "-o", tmp_path / "models", *quick)
    assert code == 2
    assert "expected a name that ends in .safetensors" in err


def test_one_broken_image_in_several_folders_loses_no_other(days: tuple[Path, Path], tmp_path: Path) -> None:
    monday, tuesday = days
    detector = pg.PatchCore(size=48, ratio=0.1).fit(monday, engine="torch")
    (tuesday / "test" / "good" / "part0_1.png").write_bytes(b"no image")
    result = predict(detector, [tuesday / "test", monday], tmp_path / "out", compute=ComputeOptions(engine="torch"))
    assert (len(result["results"]), len(result["failed"])) == (3 + MONDAY, 1)
    with (tmp_path / "out" / "results.csv").open() as file:
        assert len(file.readlines()) == 1 + 4 + MONDAY
