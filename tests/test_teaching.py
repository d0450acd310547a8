"""A model learns from marks: good ones are learned, bad ones guard it, and whatever is missing is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from made_jobs import ready_job
from pickglass.app.marking.images import MarkedImages, digest_of
from pickglass.app.marking.store import Mark, MarkStore
from pickglass.app.marking.table import read_table, write_table
from pickglass.app.marking.teach import Job, Teaching, lab_model_of, locked
from pickglass.app.update import update
from pickglass.cli.main import main
from pickglass.data import DataSource, Preprocess
from pickglass.errors import DataError, InputError, UnknownName
from pickglass.runtime.compute import ComputeOptions
from pickglass.runtime.export_file import write_export
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
    assert result["marks"] == {
        "good": 6,
        "bad": 3,
        "unsure": 1,
        "disputed": [],
        "moved": [],
        "kept_out": [],
        "learned_bad": [],
    }
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


def test_what_is_marked_bad_is_not_learned_from_a_folder_of_good_images(shop: Path, command: Command) -> None:
    lot = shop / "lot"
    shutil.copytree(shop / "bright", lot)
    for path in sorted((shop / "holes").iterdir()):
        shutil.copy(path, lot / f"hole{path.name}")
    extra = textures(1, SIDE, seed=11)
    Image.fromarray(extra[0]).save(lot / "extra.png")
    arguments = ["update", shop / "m.safetensors", lot, "--marks", shop / "marks.csv", "--engine", "torch"]
    code, told, _ = command(*arguments, "--bad", shop / "holes", "--json", "-o", shop / "new.safetensors")
    assert code == 0
    result = json.loads(told)
    assert result["marks"]["kept_out"] == [str(lot / f"hole0{i}.png") for i in range(3)]
    assert result["learned"] == 7  # six that are marked, once each, and the one of which no mark says anything
    assert len(result["bad"]) == 3
    code, _, told = command(*arguments, "--bad", shop / "bright")
    assert code == 2
    assert "6 known bad images are marked good" in told


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


# -- jobs: an update in a process of its own, and a decision -----------------------------------------------------------


@pytest.fixture
def teaching(tmp_path: Path) -> Iterator[Teaching]:
    with MarkStore(tmp_path / "marks.sqlite") as store:
        made = Teaching(tmp_path / "teach", store, QUICK)
        yield made
        made.close()


def pair(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    served, lab = folder / "m.onnx", folder / "m.safetensors"
    served.write_bytes(b"graph")
    lab.write_bytes(b"tensors")
    return served, lab


def contents(*paths: Path) -> list[bytes]:
    return [path.read_bytes() for path in paths]


OLD, NEW = [b"graph", b"tensors"], [b"new graph", b"new tensors"]


def test_a_decision_is_made_once_and_logged(teaching: Teaching, tmp_path: Path) -> None:
    served, lab = pair(tmp_path / "models")
    name = ready_job(teaching.folder, served, lab)
    assert teaching.get(name).state == "ready"
    other = Teaching(teaching.folder, teaching.store)  # another server on the same folder
    taken = other.take(name, "Bob")
    assert taken.state == "taken"
    assert taken.decided is not None
    assert taken.decided["user"] == "Bob"
    assert contents(served, lab) == NEW
    (entry,) = teaching.store.audit()
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.what, entry.model, entry.user, entry.job) == ("take", "m.onnx", "Bob", name)
    assert (entry.before["id"], entry.after["id"]) == ("a", "b")
    for decide in (teaching.take, teaching.leave):
        with pytest.raises(InputError, match="was taken already"):
            decide(name, "Ann")
    assert sorted(path.name for path in served.parent.iterdir()) == ["m.onnx", "m.safetensors"]
    assert not list((teaching.folder / name).glob("candidate*"))


def test_an_update_can_be_left(teaching: Teaching, tmp_path: Path) -> None:
    served, lab = pair(tmp_path / "models")
    name = ready_job(teaching.folder, served, lab)
    assert teaching.leave(name, "Ann").state == "left"
    assert contents(served, lab) == OLD
    assert [entry.what for entry in teaching.store.audit()] == ["leave"]


def test_a_model_that_changed_meanwhile_is_not_replaced(teaching: Teaching, tmp_path: Path) -> None:
    served, lab = pair(tmp_path / "models")
    name = ready_job(teaching.folder, served, lab)
    served.write_bytes(b"graph with another threshold")
    with pytest.raises(InputError, match=r"m\.onnx was changed after the update began"):
        teaching.take(name)
    assert contents(served, lab) == [b"graph with another threshold", b"tensors"]
    assert teaching.get(name).state == "ready"
    assert teaching.store.audit() == []


def test_lost_bad_images_are_looked_at_first(teaching: Teaching, tmp_path: Path) -> None:
    served, lab = pair(tmp_path / "models")
    name = ready_job(teaching.folder, served, lab, lost=2)
    with pytest.raises(InputError, match="2 known bad images that the model finds now would be missed"):
        teaching.take(name)
    assert contents(served, lab) == OLD
    assert teaching.take(name, lost_is_known=True).state == "taken"
    assert teaching.store.audit()[0].note == "3 images learned, 2 known bad ones lost"


KILLED = """
import os, signal, sys
from pathlib import Path
from pickglass.app.marking.store import MarkStore
from pickglass.app.marking.teach import Teaching
store = MarkStore(sys.argv[1])
teaching = Teaching(Path(sys.argv[2]), store)
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
before, replace, count = sys.argv[4], Path.replace, [0]
if before == "log":
    store.log = die
else:
    def counted(path, target):
        count[0] += 1
        return die() if count[0] > int(before) else replace(path, target)
    Path.replace = counted
teaching.take(sys.argv[3], "Ann")
"""


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
@pytest.mark.parametrize(("moment", "state"), [("log", "ready"), ("0", "taken"), ("1", "taken")])
def test_a_kill_in_the_middle_of_a_decision_loses_nothing(
    teaching: Teaching, tmp_path: Path, moment: str, state: str
) -> None:
    served, lab = pair(tmp_path / "models")
    name = ready_job(teaching.folder, served, lab)
    arguments = [str(teaching.store.path), str(teaching.folder), name, moment]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments]).returncode == -signal.SIGKILL
    assert all(now in both for now, *both in zip(contents(served, lab), OLD, NEW, strict=True))
    again = Teaching(teaching.folder, teaching.store)
    assert again.get(name).state == state
    assert contents(served, lab) == (OLD if state == "ready" else NEW)
    assert len(teaching.store.audit()) == (state == "taken")
    if state == "ready":
        assert again.take(name).state == "taken"
        assert contents(served, lab) == NEW


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_killed_update_has_changed_nothing(teaching: Teaching, shop: Path) -> None:
    before = (shop / "m.safetensors").read_bytes()
    teaching.store.bring(read_table(shop / "marks.csv"))
    job = teaching.start(shop / "m.safetensors", "Ann")
    assert job.state == "running"
    with pytest.raises(InputError, match="is being updated already"):
        teaching.start(shop / "m.safetensors")
    alive = teaching.folder / job.id / "alive"
    until = time.monotonic() + 60
    while not locked(alive) and time.monotonic() < until:
        time.sleep(0.01)
    other = Teaching(teaching.folder, teaching.store)  # the server was killed and started again
    assert other.get(job.id).state == "running"
    with pytest.raises(InputError, match="started by another server"):
        other.stop(job.id)
    teaching._processes[job.id].kill()
    teaching._processes[job.id].wait()
    for one in (teaching, other):
        ended = one.get(job.id)
        assert ended.state == "ended"
        assert ended.error is not None
        assert "the model is as it was" in ended.error
        with pytest.raises(InputError, match="has no result"):
            one.take(job.id)
    assert (shop / "m.safetensors").read_bytes() == before
    stopped = teaching.stop(teaching.start(shop / "m.safetensors").id)
    assert stopped.state == "ended"


def finished(teaching: Teaching, job: Job) -> Job:
    until = time.monotonic() + 300
    while job.state == "running" and time.monotonic() < until:
        time.sleep(0.05)
        job = teaching.get(job.id)
    return job


@pytest.mark.slow
def test_an_update_runs_aside_and_waits_for_a_decision(teaching: Teaching, shop: Path) -> None:
    model = shop / "m.safetensors"
    before = model.read_bytes()
    teaching.store.bring(read_table(shop / "marks.csv"))
    job = finished(teaching, teaching.start(model, "Ann"))
    assert job.state == "ready", job.error
    assert job.stage is not None
    assert job.done == job.total > 0
    assert model.read_bytes() == before
    assert job.result is not None
    images = job.result["images"]
    assert [one["mark"] for one in images] == ["good"] * 6 + ["bad"] * 3 + ["unsure"]
    assert {one["sha256"] for one in images} == {mark.digest for mark in teaching.store.current()}
    assert str(shop) not in json.dumps(images)
    assert {one["judged"] for one in images} == {"left out", "bad", "unsure"}
    assert (job.result["before"]["version"], job.result["after"]["version"]) == (1, 2)
    teaching.take(job.id, "Bob", lost_is_known=True)
    now = pg.load(model)
    assert (now.model_id(), now.model_version) == (job.result["after"]["id"], 2)
    assert [change.command for change in now.history] == ["fit", "update"]


def test_a_job_says_at_once_what_it_lacks(teaching: Teaching, shop: Path) -> None:
    model = shop / "m.safetensors"
    with pytest.raises(InputError, match="none of 0 marked images is marked good"):
        teaching.start(model)
    teaching.store.bring(read_table(shop / "marks.csv"))
    (shop / "bright" / "01.png").unlink()
    with pytest.raises(DataError, match="1 of 10 marked images are not there") as caught:
        teaching.start(model)
    assert [Path(one.path).name for one in caught.value.failures] == ["01.png"]
    with pytest.raises(UnknownName):
        teaching.get("../../etc")
    assert list(teaching.jobs()) == []


def test_an_exported_model_needs_its_model_file(tmp_path: Path) -> None:
    plain = {
        **{"method": "patchcore", "configuration": {}, "calibration": None, "provenance": {}},
        "preprocess": Preprocess((64, 64)).to_json(),
    }

    def exported(name: str, **more: Any) -> Path:
        header = {"version": 1, "history": [], "settings": "", "certificate": None, **plain}
        write_export(tmp_path / name, b"", {"id": "abc", **header, **more})
        return tmp_path / name

    def model_file(name: str, identity: str) -> None:
        text = json.dumps({"format": 2, "id": identity, **plain})
        text = json.dumps({"__metadata__": {"pickglass": text}})
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text.encode())

    with pytest.raises(InputError, match="cannot learn: put the model file that it was exported of beside it"):
        lab_model_of(exported("m.onnx"))
    model_file("m.safetensors", "other")
    with pytest.raises(InputError, match=r"is not the model file that m\.onnx was exported of \(id other, not abc\)"):
        lab_model_of(tmp_path / "m.onnx")
    model_file("m.safetensors", "abc")
    assert lab_model_of(tmp_path / "m.onnx") == tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="int8"):
        lab_model_of(exported("m.onnx", precision="int8"))
