"""A model learns from marks: good ones are learned, bad ones guard it, and whatever is missing is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from pickglass.app.marking.images import MarkedImages, digest_of
from pickglass.app.marking.store import Mark, MarkStore
from pickglass.app.marking.table import write_table
from pickglass.app.update import update
from pickglass.cli.main import main
from pickglass.data import DataSource
from pickglass.errors import DataError, InputError
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

SIDE = 64
QUICK = ComputeOptions(engine="torch", workers=1)


def write(folder: Path, images: np.ndarray[Any, Any]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the images that it was fitted on, brighter good parts, and parts with a hole."""
    root = tmp_path_factory.mktemp("lab")
    write(root / "fitted", textures(12, SIDE))
    new = textures(6, SIDE, seed=5).astype(int)
    new[:, : SIDE // 2] += 60
    write(root / "bright", new.clip(0, 255).astype(np.uint8))
    holes = textures(3, SIDE, seed=7).copy()
    holes[:, 20:44, 20:44] = 0
    write(root / "holes", holes)
    pg.PatchCore(size=SIDE, ratio=0.1).fit(sorted((root / "fitted").iterdir()), engine="torch").save(
        root / "m.safetensors"
    )
    return root


@pytest.fixture
def shop(lab: Path, tmp_path: Path) -> Path:
    """A copy of the lab, and marks of its images in ``marks.csv``."""
    shutil.copytree(lab, tmp_path, dirs_exist_ok=True)
    with MarkStore(":memory:") as store:
        for folder, word in (("bright", "good"), ("holes", "bad")):
            for path in sorted((tmp_path / folder).iterdir()):
                store.add(Mark(str(path), digest_of(path), word))  # type: ignore[arg-type]
        path = next((tmp_path / "fitted").iterdir())
        store.add(Mark(str(path), digest_of(path), "unsure"))
        write_table(store, tmp_path / "marks.csv")
    return tmp_path


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``pickglass`` and returns its exit code and what it printed, with the words one blank apart."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pickglass", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), " ".join(out.split()), " ".join(err.split())

    return run


def test_marked_good_images_are_learned_and_bad_ones_known(shop: Path) -> None:
    model = shop / "m.safetensors"
    before = pg.load(model)
    result = update(
        model, None, shop / "new.safetensors", marks=MarkedImages(DataSource(shop / "marks.csv")), compute=QUICK
    )
    assert result["marks"] == {"good": 6, "bad": 3, "unsure": 1, "disputed": [], "moved": [], "learned_bad": []}
    assert (result["learned"], len(result["bad"])) == (6, 3)
    after = pg.load(shop / "new.safetensors")
    bright = sorted((shop / "bright").iterdir())
    assert (after.predict(bright, engine="torch").scores < before.predict(bright, engine="torch").scores).all()
    with MarkStore(shop / "page.sqlite") as store:
        for path in bright:
            store.add(Mark(str(path), digest_of(path), "good"))
    same = update(
        model, None, shop / "other.safetensors", marks=MarkedImages(DataSource(shop / "page.sqlite")), compute=QUICK
    )
    assert same["model_id"] == result["model_id"]  # the page's own file says the same


def test_an_image_that_is_not_what_was_marked_is_named(shop: Path, command: Command) -> None:
    model, marks = shop / "m.safetensors", shop / "marks.csv"
    before = (shop / "m.safetensors").read_bytes()
    (shop / "bright" / "01.png").write_bytes((shop / "bright" / "02.png").read_bytes())
    (shop / "moved").mkdir()
    (shop / "holes" / "00.png").rename(shop / "moved" / "hole.png")
    code, _, told = command("update", model, "--marks", marks, "--engine", "torch")
    assert code == 2
    assert "2 of 10 marked images are not there as they were marked" in told
    assert "01.png: its content is another than when it was marked" in told
    assert "00.png: there is no such file any more" in told
    assert (shop / "m.safetensors").read_bytes() == before
    lines = (shop / "marks.csv").read_text().splitlines()
    (shop / "marks.csv").write_text("\n".join(line for line in lines if "bright/01.png" not in line))
    arguments = ["update", model, "--marks", marks, "--root", shop / "moved", "--engine", "torch", "--json"]
    code, out, _ = command(*arguments)
    assert code == 0
    used = json.loads(out)["marks"]
    assert used["moved"] == [{"path": str(shop / "holes" / "00.png"), "now": str(shop / "moved" / "hole.png")}]
    assert (used["good"], used["bad"]) == (5, 3)


def test_paths_may_be_relative_to_the_table(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = shop / "marks.csv"
    table.write_text(table.read_text().replace(f"{shop}/", ""))
    elsewhere = shop / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert len(MarkedImages(DataSource(Path("..") / "marks.csv")).load().good) == 6


def test_what_was_learned_and_is_marked_bad_is_told(shop: Path, command: Command) -> None:
    wrong = sorted((shop / "fitted").iterdir())[3]
    with MarkStore(shop / "page.sqlite") as store:
        store.add(Mark(str(wrong), digest_of(wrong), "bad"))
        for path in sorted((shop / "bright").iterdir()):
            store.add(Mark(str(path), digest_of(path), "good"), seen=0)
        first = store.current()[1]
        store.add(replace(first, mark="bad", user="Bob", time=""), seen=0)
    arguments = ["update", shop / "m.safetensors", "--marks", shop / "page.sqlite", "--engine", "torch"]
    code, told, _ = command(*arguments, "-o", shop / "new.safetensors")
    assert code == 0
    assert f"marked bad, but learned as good by an earlier fit: {wrong}. No update takes that back" in told
    assert f"unsure, for people have marked them differently: {shop / 'bright' / '00.png'}" in told
    assert "marks: 5 good, 1 bad, 1 unsure, which are left alone" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected files or folders of good images, or marks"),
        (["--root", "moved"], "it needs --marks"),
        (["--marks", "none.csv"], "no such file or folder"),
        (["--marks", "none.sqlite"], "no such file of marks"),
    ],
)
def test_an_update_of_nothing_says_what_it_takes(
    shop: Path, arguments: list[str], message: str, command: Command
) -> None:
    code, _, told = command("update", shop / "m.safetensors", *arguments)
    assert code == 2
    assert message in told


def test_marks_without_a_good_image_teach_nothing(shop: Path) -> None:
    (shop / "marks.csv").write_text(
        "\n".join(line for line in (shop / "marks.csv").read_text().splitlines() if ",good," not in line)
    )
    with pytest.raises(DataError, match="no image is marked good: 3 are bad and 1 unsure"):
        update(shop / "m.safetensors", None, marks=MarkedImages(DataSource(shop / "marks.csv")), compute=QUICK)
    with pytest.raises(InputError, match="no new image"):
        update(shop / "m.safetensors", None)
