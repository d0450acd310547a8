"""``pickglass watch``: each image is judged and told once, whatever happens in between."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pickglass as pg
from line_servers import Broker, web_server
from pickglass.app.judgements import IMAGES
from pickglass.app.predict import predict
from pickglass.app.results import WatchedImage, WatchHeartbeat, WatchResult
from pickglass.app.watch import senders
from pickglass.app.watch.arrivals import Arrivals
from pickglass.app.watch.journal import Entry, Identity, Journal
from pickglass.app.watch.watch import WatchRequest, watch
from pickglass.cli.main import main
from pickglass.errors import InputError, MissingExtra
from pickglass.methods import load as load_detector
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

QUICK = ComputeOptions(engine="torch")
ONNX = ComputeOptions(engine="onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = pg.PatchCore(size=32, ratio=0.05, layers=["stage2"]).fit(textures(12, 32), engine="torch")
    return fitted.save(tmp_path_factory.mktemp("watch") / "m.safetensors")


@pytest.fixture(scope="module")
def light(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model for processes of their own: exported, it starts without torch, in a second."""
    path = tmp_path_factory.mktemp("watch") / "m.onnx"
    load_detector(model).export(path, textures(2, 32))
    return path


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


PIXELS = textures(8, 32, seed=4)
BAD = PIXELS[0].copy()
BAD[8:24, 8:24] = 0


def put(folder: Path, name: str, pixels: np.ndarray = PIXELS[0], at: float = 0.0) -> Path:
    """A file that was written whole, ``at`` seconds after a fixed time."""
    path = folder / name
    Image.fromarray(pixels).save(path)
    os.utime(path, (1_700_000_000 + at, 1_700_000_000 + at))
    return path


def request(model: Path, folder: Path, **given: Any) -> WatchRequest:
    return replace(WatchRequest(model, folder, once=True, settle=0.0, give_up=0.0, compute=QUICK), **given)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return list(csv.DictReader(text))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def running(wanted: WatchRequest, **given: Any) -> Iterator[list[WatchResult]]:
    """The loop in a thread; it is stopped at the end, and its result is then in the list."""
    stop, result, problem = threading.Event(), list[WatchResult](), list[BaseException]()

    def run() -> None:
        try:
            result.append(watch(replace(wanted, once=False), stop=stop, **given))
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        stop.set()
        thread.join()
        if problem:
            raise problem[0]


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


# -- what is judged, and how it is told --------------------------------------------------------------------------------


def test_results_are_those_of_predict_in_the_order_of_writing(model: Path, incoming: Path, tmp_path: Path) -> None:
    later, first = put(incoming, "a.png", PIXELS[1], at=2), put(incoming, "b.png", BAD, at=1)
    twin = put(incoming, "c.png", PIXELS[2], at=2)
    (incoming / "broken.png").write_bytes(first.read_bytes()[:100])
    os.utime(incoming / "broken.png", (1_800_000_000, 1_800_000_000))
    for name in ("notes.txt", ".part.png"):
        (incoming / name).write_bytes(first.read_bytes())
    (incoming / "folder.png").mkdir()
    result = watch(request(model, incoming, jsonl=tmp_path / "o.jsonl", csv=tmp_path / "o.csv"))
    assert (result["judged"], result["failed"], result["last"]) == (3, 1, 4)
    told = lines(tmp_path / "o.jsonl")
    assert [item["path"] for item in told] == [str(path) for path in (first, later, twin, incoming / "broken.png")]
    assert [item["number"] for item in told] == [1, 2, 3, 4]
    assert len({item["id"] for item in told}) == 4
    for item in told:
        assert set(item) == set(WatchedImage.__annotations__)
    expected = predict(model, [first, later, twin], compute=QUICK)
    for item, other in zip(told, expected["results"], strict=False):
        same = {**other, "time": item["time"]}
        for name in ("score", "p_value", "p_value_log10"):  # a rounding off, among others or alone
            assert item[name] == pytest.approx(same.pop(name), rel=1e-3)
        same["defects"] = item["defects"]
        assert {**item, **same} == item
        assert [defect["box"] for defect in item["defects"]] == [defect["box"] for defect in other["defects"]]
        assert (item["threshold"], item["model_id"]) == (expected["threshold"], expected["model_id"])
        assert (item["state"], item["error"], item["sorted_to"]) == ("judged", None, None)
    assert [item["verdict"] for item in told] == ["bad", "good", "good", None]
    assert (told[3]["state"], told[3]["score"], told[3]["defects"]) == ("failed", None, [])
    assert "cut short" in told[3]["error"] or "truncated" in told[3]["error"]
    table = rows(tmp_path / "o.csv")
    assert list(table[0]) == list(IMAGES)
    for row, item in zip(table, told, strict=True):
        assert row == {name: "" if item[name] is None else str(item[name]) for name in IMAGES}


def test_a_file_is_judged_once_across_restarts_and_a_name_that_is_used_again_is_new(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.jsonl"
    path = put(incoming, "a.png", at=1)
    wanted = request(model, incoming, jsonl=out)
    assert [watch(wanted)["judged"] for _ in range(3)] == [1, 0, 0]
    put(incoming, "a.png", BAD, at=2)  # the same size or not: the time is another
    assert watch(wanted)["judged"] == 1
    os.rename(path, incoming / "b.png")
    assert watch(wanted)["judged"] == 1
    put(incoming, "a.png", BAD, at=2)  # a copy of what was judged, with its time: the same file
    assert watch(wanted)["judged"] == 0
    assert [(item["number"], Path(item["path"]).name) for item in lines(out)] == [
        (1, "a.png"),
        (2, "a.png"),
        (3, "b.png"),
    ]


def test_a_name_is_used_again_while_the_loop_runs(model: Path, incoming: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    put(incoming, "a.png", at=1)
    with running(request(model, incoming, jsonl=out)) as result:
        until(lambda: out.exists() and len(lines(out)) == 1, "the first image")
        put(incoming, "a.png", BAD, at=2)
        until(lambda: len(lines(out)) == 2, "the second of this name")
        time.sleep(0.1)
    assert result[0]["judged"] == 2


def test_sorted_files_never_overwrite_and_what_comes_back_is_judged_anew(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    sort, out = tmp_path / "sorted", tmp_path / "o.jsonl"
    wanted = request(model, incoming, sort=sort, jsonl=out)
    (sort / "good").mkdir(parents=True)
    (sort / "good" / "a.png").write_bytes(b"of somebody else")
    for round_ in range(2):
        put(incoming, "a.png", at=1)  # each time the same name, size and time
        put(incoming, "b.png", BAD, at=2)
        (incoming / "c.png").write_bytes(b"no image")
        assert watch(wanted)["judged"] == 2, round_
    told = lines(out)
    assert files_in(incoming) == []
    assert files_in(sort) == [
        "bad/b-5.png", "bad/b.png", "failed/c-6.png", "failed/c.png", "good/a-1.png", "good/a-4.png", "good/a.png",
    ]  # fmt: skip
    assert (sort / "good" / "a.png").read_bytes() == b"of somebody else"
    assert [item["sorted_to"] for item in told[:3]] == [
        str(sort / "good" / "a-1.png"), str(sort / "bad" / "b.png"), str(sort / "failed" / "c.png"),
    ]  # fmt: skip
    for item in told:
        assert Path(item["sorted_to"]).is_file()


def test_sorting_works_without_hard_links_and_to_another_file_system(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    sort = tmp_path / "sorted"
    put(incoming, "a.png", at=1)
    watch(request(model, incoming, sort=sort))
    os_stat = os.stat

    def other_device(path: Any, *given: Any, **more: Any) -> Any:
        found = os_stat(path, *given, **more)
        if str(path).startswith(f"{sort}{os.sep}"):
            return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]), {"st_mtime_ns": found.st_mtime_ns})
        return found

    put(incoming, "a.png", at=1)
    monkeypatch.setattr(os, "stat", other_device)
    watch(request(model, incoming, sort=sort))
    monkeypatch.undo()
    assert files_in(sort) == ["good/a-2.png", "good/a.png"]
    assert files_in(incoming) == []
    assert {os.stat(sort / "good" / name).st_mtime for name in ("a.png", "a-2.png")} == {1_700_000_001}


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_read_and_their_pixels_sorted_and_one_that_leads_nowhere_holds_nothing_up(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    put(tmp_path / "store", "a.png", at=1)
    (incoming / "a.png").symlink_to(Path("..") / "store" / "a.png")
    (incoming / "b.png").symlink_to("b.png")
    (incoming / "c.png").symlink_to("nowhere.png")
    put(incoming, "d.png", at=2)
    said = list[str]()
    with running(request(model, incoming, sort=tmp_path / "sorted", jsonl=tmp_path / "o.jsonl"), say=said.append):
        until(lambda: (tmp_path / "o.jsonl").exists() and len(lines(tmp_path / "o.jsonl")) == 2, "the images")
    assert sorted(os.listdir(incoming)) == ["b.png", "c.png"]
    assert (tmp_path / "sorted" / "good" / "a.png").read_bytes() == (tmp_path / "store" / "a.png").read_bytes()
    assert not (tmp_path / "sorted" / "good" / "a.png").is_symlink()
    assert len(said) == 1
    assert "b.png cannot be looked at" in said[0]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom folders can refuse")
def test_a_file_that_cannot_be_moved_is_told_of_and_moved_later(model: Path, incoming: Path, tmp_path: Path) -> None:
    check_moved_later(model, incoming, tmp_path, lambda folder, refuse: folder.chmod(0o500 if refuse else 0o700))


def test_a_file_whose_folder_is_in_the_way_is_told_of_and_moved_later(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    def block(folder: Path, refuse: bool) -> None:
        if refuse:
            folder.rmdir()
            folder.write_bytes(b"a file where the folder should be")
        else:
            folder.unlink()

    check_moved_later(model, incoming, tmp_path, block)


def check_moved_later(model: Path, incoming: Path, tmp_path: Path, block: Callable[[Path, bool], None]) -> None:
    sort, out = tmp_path / "sorted", tmp_path / "o.jsonl"
    (sort / "good").mkdir(parents=True)
    block(sort / "good", True)
    put(incoming, "a.png", at=1)
    wanted, said = request(model, incoming, sort=sort, jsonl=out), list[str]()
    assert len(watch(wanted, say=said.append)["errors"]) == 1
    assert len(said) == 1
    assert "cannot be moved" in said[0]
    assert (files_in(incoming), lines(out)[0]["sorted_to"]) == (["a.png"], None)
    assert watch(wanted)["judged"] == 0  # it is in the folder, and was judged
    block(sort / "good", False)
    watch(wanted)
    assert (files_in(incoming), files_in(sort), len(lines(out))) == ([], ["good/a.png"], 1)


def test_a_share_that_is_gone_between_judging_and_moving_brings_no_image_twice(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(incoming, "a.png", at=1)
    wanted, said = request(model, incoming, sort=tmp_path / "sorted", jsonl=tmp_path / "o.jsonl"), list[str]()
    record = Journal.record

    def unmounted(self: Journal, entries: Any) -> None:
        record(self, entries)
        incoming.rename(tmp_path / "away")
        incoming.mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", unmounted)
        watch(wanted, say=said.append)
    assert "went away before it could be moved" in said[0]
    incoming.rmdir()
    (tmp_path / "away").rename(incoming)
    put(incoming, "b.png", at=2)
    assert watch(wanted)["judged"] == 1
    assert [Path(item["path"]).name for item in lines(tmp_path / "o.jsonl")] == ["a.png", "b.png"]
    assert (files_in(incoming), files_in(tmp_path / "sorted")) == (["a.png"], ["good/b.png"])


# -- files that are not ready ------------------------------------------------------------------------------------------


def test_a_file_that_is_being_written_is_waited_for_and_holds_nothing_up(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.jsonl"
    content = put(tmp_path, "whole.png").read_bytes()
    slow = incoming / "a.png"
    slow.write_bytes(content[:50])
    put(incoming, "b.png", at=1)
    with running(request(model, incoming, jsonl=out, give_up=60.0)) as result:
        until(lambda: out.exists() and len(lines(out)) == 1, "the whole image")
        time.sleep(0.3)  # the other is tried meanwhile
        slow.write_bytes(content[:500])
        time.sleep(0.2)
        slow.write_bytes(content)
        until(lambda: len(lines(out)) == 2, "the image that was written slowly")
    assert [(item["state"], Path(item["path"]).name) for item in lines(out)] == [
        ("judged", "b.png"),
        ("judged", "a.png"),
    ]
    assert result[0]["failed"] == 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_ready_once_it_stays_as_it_is(incoming: Path) -> None:
    clock = Clock()
    arrivals = Arrivals(incoming, lambda file: False, settle=1.0, give_up=5.0, clock=clock)
    path = put(incoming, "a.png", at=1)
    for step, expected in enumerate([0, 0, 0, 1]):
        arrivals.scan()
        assert len(arrivals) == expected, step
        if step == 0:
            put(incoming, "a.png", BAD, at=2)
        clock.now += 0.6
    arrival = arrivals.take()
    assert arrival is not None
    assert arrival.file == Identity("a.png", path.stat().st_size, path.stat().st_mtime_ns)
    assert not arrivals.unreadable(arrival)  # unchanged for 1.2 s
    assert (len(arrivals), arrivals.waited_for) == (0, 1)
    clock.now += 5.0
    arrivals.scan()
    again = arrivals.take()
    assert again is not None
    assert again.tries == 1
    assert arrivals.unreadable(again)
    arrivals.done(again)
    clock.now += 5.0
    arrivals.scan()
    assert arrivals.is_empty(since=clock.now)


def test_a_file_that_changes_after_it_failed_is_a_new_image(model: Path, incoming: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    (incoming / "a.png").write_bytes(b"")
    wanted = request(model, incoming, jsonl=out)
    assert watch(wanted)["failed"] == 1
    assert watch(wanted)["failed"] == 0
    put(incoming, "a.png", at=1)
    assert watch(wanted)["judged"] == 1
    assert [item["state"] for item in lines(out)] == ["failed", "judged"]


def test_looking_again_and_again_costs_little_and_misses_no_name(
    incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, looks = Clock(), list[str]()
    journal: set[Identity] = set()
    for i in range(50):
        (incoming / f"{i:02d}.png").write_bytes(b"x")
    monkeypatch.setattr("pickglass.app.watch.arrivals._LOOKED_AT", 10)
    arrivals = Arrivals(incoming, journal.__contains__, settle=0.0, give_up=0.0, clock=clock)
    arrivals.scan()
    while (arrival := arrivals.take()) is not None:
        journal.add(arrival.file)
        arrivals.done(arrival)
    os_stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **given: (looks.append(str(path)), os_stat(path, **given))[1])
    (incoming / "49.png").write_bytes(b"another")
    scans = 0
    while not len(arrivals) and scans < 8:
        scans += 1
        clock.now += 10
        looks.clear()
        arrivals.scan()
        assert len(looks) <= 10
    assert scans <= 6  # a round of five, of which one may have begun
    fresh = Arrivals(incoming, journal.__contains__, settle=0.0, give_up=0.0, clock=clock)  # a restart
    fresh.scan()
    assert len(fresh) == 1


def test_the_folder_is_listed_for_a_tenth_of_the_time_at_most(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    listed = list[float]()

    def slow(path: Any) -> Any:
        listed.append(clock.now)
        clock.now += 2.0
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", slow)
    arrivals = Arrivals(incoming, lambda file: False, settle=0.0, give_up=0.0, clock=clock)
    for _ in range(1000):
        arrivals.scan()
        clock.now += 0.1
    assert np.diff(listed).min() >= 20.0


def test_a_folder_that_is_gone_for_a_while_ends_nothing(model: Path, incoming: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "o.jsonl", list[str]()
    put(incoming, "a.png", at=1)
    with running(request(model, incoming, jsonl=out), say=said.append):
        until(lambda: out.exists() and len(lines(out)) == 1, "the first image")
        incoming.rename(tmp_path / "away")
        until(lambda: any("cannot be listed" in sentence for sentence in said), "the error")
        (tmp_path / "away").rename(incoming)
        put(incoming, "b.png", at=2)
        until(lambda: len(lines(out)) == 2, "the second image")
    assert len(said) == 1


# -- kills -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing in pickglass catches it."""


def kill_points(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Raise before or after the step with this number; return the steps that were made.

    A step is a transaction of the journal, a link, an unlink, or the writing of a file, of which a kill leaves a part.
    """
    steps = list[str]()

    def step(what: str) -> None:
        steps.append(what)
        if len(steps) - 1 == at:
            raise Killed(what)

    def wrapped(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*given: Any, **more: Any) -> Any:
            step(f"before {name}")
            result = original(*given, **more)
            step(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, call)

    for name in ("record", "moved", "told"):
        wrapped(Journal, name)
    wrapped(os, "link")
    wrapped(Path, "unlink")
    fsync = os.fsync

    def torn(number: int) -> None:
        if len(steps) == at and stat.S_ISREG(os.fstat(number).st_mode):
            os.ftruncate(number, max(0, os.fstat(number).st_size - 7))
        step("before fsync")
        fsync(number)

    monkeypatch.setattr(os, "fsync", torn)
    return steps


def check_nothing_lost(folder: Path, tmp_path: Path, names: list[str]) -> None:
    told = lines(tmp_path / "o.jsonl")
    assert [Path(item["path"]).name for item in told] == names
    assert [item["number"] for item in told] == list(range(1, len(names) + 1))
    assert [row["path"] for row in rows(tmp_path / "o.csv")] == [item["path"] for item in told]
    assert files_in(folder) == []
    assert files_in(tmp_path / "sorted") == sorted(
        str(Path(item["sorted_to"]).relative_to(tmp_path / "sorted")) for item in told
    )
    assert len(files_in(tmp_path / "sorted")) == len(names)


@pytest.mark.slow
def test_a_kill_between_any_two_steps_loses_nothing_and_tells_nothing_twice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = pg.load(model)
    monkeypatch.setattr("pickglass.app.watch.model.load", lambda path: detector)  # the same one, without its seconds
    names = ["a.png", "b.png", "c.png", "d.png"]
    seen = set[str]()
    for at in range(1000):
        root = tmp_path / str(at)
        folder = root / "in"
        folder.mkdir(parents=True)
        for i, name in enumerate(names):
            put(folder, name, BAD if i == 1 else PIXELS[i], at=i)
        (folder / "d.png").write_bytes(b"broken")
        wanted = request(model, folder, sort=root / "sorted", jsonl=root / "o.jsonl", csv=root / "o.csv")
        with monkeypatch.context() as patch:
            steps = kill_points(patch, at)
            try:
                watch(wanted)
            except Killed as kill:
                seen.add(str(kill))
            else:
                break
        watch(wanted)
        check_nothing_lost(folder, root, names)
    assert at == len(steps) > 30
    assert len(seen) == 11  # before and after each kind of step, and before what is written is safe


def frames(folder: Path, numbers: range) -> None:
    """Frames of which each has its own name and time, written whole."""
    for number in numbers:
        path = put(folder, f".{number:04d}.png", BAD if number % 7 == 0 else PIXELS[1 + number % 2], at=number)
        path.rename(folder / f"{number:04d}.png")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_two_kills_among_a_few_hundred_frames(light: Path, tmp_path: Path) -> None:
    """The command is killed while frames arrive."""
    folder = tmp_path / "in"
    folder.mkdir()
    out, n = tmp_path / "o.jsonl", 300
    with web_server() as web:
        outputs = {"sort": tmp_path / "sorted", "jsonl": out, "csv": tmp_path / "o.csv", "webhook": web.url}
        told_to = [part for name, value in outputs.items() for part in (f"--{name}", value)]
        writer = threading.Thread(target=frames, args=(folder, range(n)))
        writer.start()
        for enough in (n // 3, 2 * n // 3):
            child = started(light, folder, "--give-up", 5, *told_to)
            until(lambda enough=enough: out.exists() and out.read_bytes().count(b"\n") >= enough, "frames")
            child.kill()
            assert child.wait(60) == -signal.SIGKILL
        writer.join()
        watch(replace(request(light, folder, give_up=5.0, compute=ONNX), **outputs))  # type: ignore[arg-type]
        told = {message["id"]: message for message in web.of_images()}
    names = [f"{number:04d}.png" for number in range(n)]
    assert sorted(Path(item["path"]).name for item in lines(out)) == names
    check_nothing_lost(folder, tmp_path, [Path(item["path"]).name for item in lines(out)])
    assert sorted(told.values(), key=lambda message: message["number"]) == lines(out)  # at least once, and alike
    assert {Path(item["path"]).name for item in lines(out) if item["verdict"] == "bad"} == set(names[::7])


def started(*arguments: object, **streams: Any) -> subprocess.Popen[bytes]:
    """Start the command in a process of its own."""
    line = [sys.executable, "-m", "pickglass", "watch", *map(str, arguments), "--settle", "0"]
    return subprocess.Popen(line, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams})


def test_what_somebody_else_wrote_into_a_file_is_never_cut_off(model: Path, incoming: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text("of somebody else\n")
    wanted = request(model, incoming, jsonl=out)
    with pytest.raises(InputError, match="exists already"):
        watch(wanted)
    out.unlink()
    put(incoming, "a.png", at=1)
    watch(wanted)
    before = out.read_bytes()
    out.write_bytes(before + b"a note\n")
    with pytest.raises(InputError, match="changed by somebody else"):
        watch(wanted)
    assert out.read_bytes() == before + b"a note\n"
    out.unlink()  # moved away, as logs are
    put(incoming, "b.png", at=2)
    watch(wanted)
    assert [item["number"] for item in lines(out)] == [2]


def test_an_output_that_comes_later_begins_then_and_one_that_pauses_is_made_up_for(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.csv"
    for number, given in enumerate([{"jsonl": first}, {"csv": second}, {"jsonl": first, "csv": second}]):
        put(incoming, f"{number}.png", at=number)
        watch(request(model, incoming, **given))
    assert [item["number"] for item in lines(first)] == [1, 2, 3]
    assert [Path(row["path"]).name for row in rows(second)] == ["1.png", "2.png"]


@pytest.mark.slow
def test_a_journal_has_one_process_and_one_folder(model: Path, incoming: Path, tmp_path: Path) -> None:
    journal = tmp_path / "j.sqlite"
    with running(request(model, incoming, journal=journal)):
        until(journal.exists, "the journal")
        time.sleep(0.2)
        with pytest.raises(InputError, match="another 'pickglass watch' has it"):
            Journal(journal, incoming)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match=r"the journal of .*incoming"):
        watch(request(model, other, journal=journal))
    study = sqlite3.connect(tmp_path / "study.sqlite")
    study.executescript("CREATE TABLE about (key); PRAGMA user_version = 1;")
    study.close()
    before = (tmp_path / "study.sqlite").read_bytes()
    with pytest.raises(InputError, match="no journal"):
        watch(request(model, incoming, journal=tmp_path / "study.sqlite"))
    assert (tmp_path / "study.sqlite").read_bytes() == before
    text = tmp_path / "notes.txt"
    text.write_text("no journal" * 1000)
    with pytest.raises(InputError, match="not a database"):
        watch(request(model, incoming, journal=text))
    assert text.read_text() == "no journal" * 1000


def test_the_journal_takes_no_file_twice(incoming: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite", incoming)
    entry = Entry(Identity("a.png", 1, 2), {}, None)
    journal.record([entry])
    with pytest.raises(InputError, match="UNIQUE"):
        journal.record([Entry(Identity("b.png", 1, 2), {}, None), entry])
    assert journal.last() == 1  # all or none
    journal.close()


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are tried again at once."""
    monkeypatch.setattr(senders.Sender.__init__, "__defaults__", (0.01,))


@pytest.mark.usefixtures("hasty")
def test_a_webhook_gets_each_image_in_order_however_often_it_fails(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICKGLASS_WEBHOOK_TOKEN", "secret")
    for i in range(5):
        put(incoming, f"{i}.png", at=i)
    answers = iter([500, 0, 429])
    with web_server() as web:
        web.answer = lambda message: next(answers, 204) if message["number"] == 3 else 200
        with running(request(model, incoming, jsonl=tmp_path / "o.jsonl", webhook=f"{web.url}?key=1")):
            until(lambda: len(web.messages) == 8, "all messages")
        assert [message["number"] for message in web.messages] == [1, 2, 3, 3, 3, 3, 4, 5]
        assert [message for i, message in enumerate(web.messages) if i not in (3, 4, 5)] == lines(tmp_path / "o.jsonl")
        assert web.tokens == {"Bearer secret"}


@pytest.mark.usefixtures("hasty")
def test_a_message_that_is_refused_is_written_down_and_holds_nothing_up(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    for i in range(3):
        put(incoming, f"{i}.png", at=i)
    with web_server() as web:
        web.answer = lambda message: {1: 400, 2: 307}.get(message["number"], 200)
        with running(request(model, incoming, webhook=web.url)) as result:
            until(lambda: len(web.messages) == 7, "all messages")
    assert [message["number"] for message in web.messages] == [1, 1, 1, 2, 2, 2, 3]
    assert list(result[0]["refused"].values()) == [2]
    assert list(result[0]["behind"].values()) == [0]
    journal = sqlite3.connect(tmp_path / "incoming.watch.sqlite")
    refused = journal.execute("SELECT number, error FROM refused").fetchall()
    journal.close()
    assert [(number, error.split(": ")[-1].split()[1]) for number, error in refused] == [(1, "400"), (2, "307")]


def test_a_dead_server_holds_nothing_up_and_is_told_at_the_next_start(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    said = list[str]()
    for i in range(3):
        put(incoming, f"{i}.png", at=i)
    with web_server() as web:
        url = web.url
    result = watch(request(model, incoming, webhook=url, jsonl=tmp_path / "o.jsonl"), say=said.append)
    assert len(lines(tmp_path / "o.jsonl")) == 3
    assert result["behind"][f"webhook:{url}"] == 3
    assert len(said) == 1
    assert "does not answer" in said[0]
    port = int(url.split(":")[2].split("/")[0])
    with Broker(port) as deaf:  # something listens that speaks another language
        assert watch(request(model, incoming, webhook=url))["behind"][f"webhook:{url}"] == 3
        assert deaf.published == []


@pytest.mark.slow
def test_an_end_waits_for_servers_that_take_messages_but_not_if_it_was_asked_for(
    model: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pickglass.app.watch.watch._PATIENCE", 1.0)
    for i in range(60):
        put(incoming, f"{i:02d}.png", at=i)
    stop = threading.Event()

    def slow(message: dict[str, Any]) -> int:
        time.sleep(0.05)
        if message["number"] == 25:  # more than a second after the first
            stop.set()
        return 200

    with web_server() as web:
        web.answer = slow
        result = watch(request(model, incoming, webhook=web.url), stop=stop)
        told = {message["number"] for message in web.messages}
        assert 25 <= len(told) < 60
        assert next(iter(result["behind"].values())) in (60 - len(told), 61 - len(told))  # an answer that came too late
        web.answer = lambda message: 200
        assert list(watch(request(model, incoming, webhook=web.url))["behind"].values()) == [0]
        assert {message["number"] for message in web.messages} == set(range(1, 61))


@pytest.mark.usefixtures("hasty")
def test_a_broker_gets_each_image_and_each_heartbeat(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICKGLASS_MQTT_USER", "line")
    monkeypatch.setenv("PICKGLASS_MQTT_PASSWORD", "secret")
    for i in range(3):
        put(incoming, f"{i}.png", at=i)
    with Broker() as broker:
        wanted = request(
            model, incoming, mqtt=f"127.0.0.1:{broker.port}/line1/parts", jsonl=tmp_path / "o.jsonl", heartbeat=0.05
        )
        with running(wanted):
            until(lambda: len(broker.of_images("line1/parts/heartbeat")) >= 2, "heartbeats")
            until(lambda: len(broker.of_images("line1/parts")) == 3, "images")
        assert broker.of_images("line1/parts") == lines(tmp_path / "o.jsonl")
        assert {qos for _, _, qos in broker.published} == {1}
        assert broker.users == [(b"line", b"secret")]
        assert broker.of_images("line1/parts/heartbeat")[-1]["judged"] == 3
        port = broker.port
    put(incoming, "3.png", at=3)
    result = watch(wanted)  # the broker is gone
    assert list(result["behind"].values()) == [0, 1]
    with Broker(port) as broker:  # and comes back
        watch(wanted)
        assert [message["number"] for message in broker.of_images("line1/parts")] == [4]


@pytest.mark.usefixtures("hasty")
def test_a_broker_that_acknowledges_nothing_or_refuses_us_is_an_error_and_loses_nothing(
    model: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "_TIMEOUT", 0.2)
    put(incoming, "a.png", at=1)
    with Broker() as broker:
        wanted = request(model, incoming, mqtt=f"127.0.0.1:{broker.port}/parts")
        broker.deaf = True
        result = watch(wanted)
        assert list(result["behind"].values()) == [1]
        assert "did not acknowledge" in result["errors"][0]
        broker.deaf, broker.refuses = False, True
        assert "is refused" in watch(wanted)["errors"][0]
        broker.refuses = False
        assert list(watch(wanted)["behind"].values()) == [0]
        assert {message["number"] for message in broker.of_images("parts")} == {1}


@pytest.mark.parametrize(
    "given",
    [
        {"webhook": "server:80/parts"},
        {"webhook": "ftp://server/parts"},
        {"webhook": "http://user:secret@server/parts"},
        {"mqtt": "broker"},
        {"mqtt": "broker:1883"},
        {"mqtt": "broker:port/parts"},
        {"mqtt": "http://broker/parts"},
        {"mqtt": "broker/line/#"},
        {"mqtt": "mqtt://user:secret@broker/parts"},
        {"jsonl": Path("o.txt"), "csv": Path("o.txt")},
        {"queue": 0},
        {"settle": -1.0},
        {"give_up": float("nan")},
        {"heartbeat": 0.0},
        {"camera": "0"},
        {"folder": Path("nowhere")},
        {"jsonl": Path("nowhere/o.jsonl")},
        {"journal": Path("nowhere/j.sqlite")},
    ],
)
def test_what_cannot_be_carried_out_is_said_before_anything_is_made(
    model: Path, incoming: Path, tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        watch(replace(request(model, incoming), **given))
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert next(iter(given)) in str(error.value).lower().replace("-", "_") or "journal" in given or "jsonl" in given
    assert given.get("jsonl") == Path("nowhere/o.jsonl") or files_in(tmp_path) == []


def test_the_watched_folder_is_not_one_that_files_are_sorted_to(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    put(folder, "a.png")
    with pytest.raises(InputError, match="--sort"):
        watch(request(model, folder, sort=tmp_path))
    assert files_in(folder) == ["a.png"]


# -- late, heartbeats, models ------------------------------------------------------------------------------------------


def test_images_that_wait_are_judged_or_skipped_as_asked(model: Path, incoming: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    for i in range(12):
        put(incoming, f"{i:02d}.png", at=i)
    result = watch(request(model, incoming, jsonl=out, sort=tmp_path / "sorted", when_late="skip", queue=4))
    assert (result["judged"], result["skipped"]) == (4, 8)
    told = lines(out)
    assert [(Path(item["path"]).name, item["state"]) for item in told] == [
        (f"{i:02d}.png", "skipped" if i < 8 else "judged") for i in range(12)
    ]
    assert all(item["verdict"] is None and "--queue" in item["error"] for item in told[:8])
    assert len(files_in(tmp_path / "sorted" / "skipped")) == 8
    for i in range(12):
        put(incoming, f"{i:02d}.png", at=i)
    assert watch(request(model, incoming, jsonl=out, sort=tmp_path / "sorted", queue=4))["judged"] == 12


def test_a_heartbeat_says_how_the_line_is(model: Path, incoming: Path, tmp_path: Path) -> None:
    put(incoming, "a.png", at=1)
    put(incoming, "b.png", BAD, at=2)
    (incoming / "c.png").write_bytes(b"cut")
    (incoming / "notes.txt").write_bytes(b"")
    file = tmp_path / "incoming.watch.heartbeat.json"
    with running(request(model, incoming, heartbeat=0.02, give_up=60.0, jsonl=tmp_path / "o.jsonl")):
        until(lambda: file.exists() and json.loads(file.read_bytes())["judged"] == 2, "the images")
        until(lambda: json.loads(file.read_bytes())["waited_for"] == 1, "the file that is waited for")
        beat = json.loads(file.read_bytes())
        until(lambda: json.loads(file.read_bytes())["time"] > beat["time"], "the next one")
        beat = json.loads(file.read_bytes())
    assert set(beat) == set(WatchHeartbeat.__annotations__)
    assert (beat["kind"], beat["verdicts"], beat["ignored"]) == ("heartbeat", {"good": 1, "bad": 1}, 1)
    assert (beat["late"], beat["errors"], list(beat["behind"].values())) == (False, [], [0])


@pytest.mark.slow
def test_a_model_that_is_replaced_takes_over_and_a_broken_one_does_not(
    model: Path, incoming: Path, tmp_path: Path
) -> None:
    out, said, used = tmp_path / "o.jsonl", list[str](), tmp_path / "m.safetensors"
    shutil.copy(model, used)
    with running(request(used, incoming, jsonl=out, sort=tmp_path / "sorted"), say=said.append) as result:
        put(incoming, "a.png", at=1)
        until(lambda: out.exists() and len(lines(out)) == 1, "the first image")
        used.write_bytes(model.read_bytes()[:1000])
        until(lambda: any("cannot be used" in sentence for sentence in said), "the broken file")
        put(incoming, "b.png", at=2)
        until(lambda: len(lines(out)) == 2, "the second image")
        changed = pg.load(model)
        changed.calibration = None
        changed.save(tmp_path / "without.safetensors").replace(used)
        until(lambda: any("has no threshold" in sentence for sentence in said), "the file without a threshold")
        changed = pg.load(model)
        changed.set_thresholds(image=0.0)
        changed.save(tmp_path / "new.safetensors").replace(used)
        until(lambda: any("judges from now on" in sentence for sentence in said), "the new model")
        put(incoming, "c.png", at=3)
        until(lambda: len(lines(out)) == 3, "the third image")
    assert [(item["verdict"], item["model_version"], item["threshold"] == 0) for item in lines(out)] == [
        ("good", 1, False), ("good", 1, False), ("bad", 2, True),
    ]  # fmt: skip
    assert result[0]["errors"] == []


def test_an_image_at_which_the_model_breaks_fails_alone(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        put(incoming, f"{i}.png", BAD if i == 3 else PIXELS[1], at=i)
    stream = pg.Detector.stream

    def breaks(self: pg.Detector, data: Any, **more: Any) -> Any:
        if any((row.pixels == BAD).all() for row in data if row.pixels.shape == BAD.shape):
            raise RuntimeError("out of memory")
        return stream(self, data, **more)

    monkeypatch.setattr(pg.Detector, "stream", breaks)
    watch(request(model, incoming, jsonl=tmp_path / "o.jsonl"))
    told = lines(tmp_path / "o.jsonl")
    assert [item["state"] for item in told] == ["judged"] * 3 + ["failed"] + ["judged"] * 2
    assert "RuntimeError: out of memory" in told[3]["error"]
    for i in range(6):
        put(incoming, f"{i}.png", BAD, at=10 + i)
    with pytest.raises(RuntimeError, match="out of memory"):  # then it is not the images
        watch(request(model, incoming, jsonl=tmp_path / "o.jsonl"))
    assert len(lines(tmp_path / "o.jsonl")) <= 8


# -- the camera --------------------------------------------------------------------------------------------------------


def test_a_camera_without_opencv_names_what_to_install(
    model: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match="pip install opencv-python-headless"):
        watch(request(model, incoming, once=False, camera="0"))


class Film:
    """As much of OpenCV's ``VideoCapture`` as is used: frames in BGR, and a hiccup."""

    def __init__(self, source: int | str) -> None:
        self.frames = [*PIXELS[:3], None, *PIXELS[3:6]]
        self.source, self.at = source, 0

    def isOpened(self) -> bool:
        return self.source != 9

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.at += 1
        frame = self.frames[self.at - 1] if self.at <= len(self.frames) else None
        return frame is not None, None if frame is None else frame[..., ::-1]

    def release(self) -> None:
        pass


def test_frames_of_a_camera_are_stored_and_judged_as_they_are(
    model: Path, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", type("cv2", (), {"VideoCapture": Film}))
    out, said = tmp_path / "o.jsonl", list[str]()
    with pytest.raises(InputError, match="--camera '9' does not open"):
        watch(request(model, incoming, once=False, camera="9"))
    wanted = request(model, incoming, jsonl=out, camera="0", settle=None, queue=2)
    with running(wanted, say=said.append):
        until(lambda: out.exists() and len(lines(out)) >= 6, "the frames")
    for item, pixels in zip(lines(out)[:6], PIXELS[:6], strict=True):  # then the film begins anew
        assert Path(item["path"]).name.startswith("camera0-")
        assert (np.asarray(Image.open(item["path"])) == pixels).all()
        assert item["state"] == "judged"
    assert not [name for name in files_in(incoming) if name.startswith(".")]


def test_a_video_is_watched_to_its_end(model: Path, incoming: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    video = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for pixels in PIXELS:
        writer.write(np.ascontiguousarray(pixels[..., ::-1]))
    writer.release()
    result = watch(request(model, incoming, once=False, camera=str(video), settle=None))
    assert result["judged"] == len(files_in(incoming)) == 8


# -- the command -------------------------------------------------------------------------------------------------------


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    given = ["pickglass", "watch", *map(str, arguments), "--engine", "torch", "--settle", "0", "--give-up", "0"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_prints_lines_for_people_or_for_programs(
    model: Path, incoming: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    put(incoming, "a.png", at=1)
    put(incoming, "b.png", BAD, at=2)
    assert run_command(monkeypatch, model, incoming, "--once", "--json") == 0
    printed = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [item["kind"] for item in printed] == ["image", "image", "end"]
    assert set(printed[2]) == set(WatchResult.__annotations__)
    (incoming / "c.png").write_bytes(b"cut")
    put(incoming, "d.png", at=3)
    assert run_command(monkeypatch, model, incoming, "--once") == 1  # an image failed
    first, second, last = capfd.readouterr().out.splitlines()
    words = first.split() + second.split()
    assert {"good", "failed", str(incoming / "c.png") + ":"} <= set(words)
    assert last.startswith("1 images judged: 1 good, 1 failed; journal ")
    assert run_command(monkeypatch, model, incoming, "--once", "--json") == 0  # told at the next start with --json
    assert [json.loads(line).get("number") for line in capfd.readouterr().out.splitlines()] == [3, 4, None]
    assert run_command(monkeypatch, incoming, model, "--once") == 2
    assert "swapped" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="signals end processes there")
def test_a_signal_ends_it_cleanly(light: Path, incoming: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "o.jsonl"
    frames(incoming, range(40))
    child = started(light, incoming, "--jsonl", out)
    until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 1, "the first image")
    child.send_signal(number)
    assert child.wait(60) == 0
    before = len(lines(out))
    watch(request(light, incoming, jsonl=out, compute=ONNX))
    assert before <= len(lines(out)) == 40
    assert len({item["path"] for item in lines(out)}) == 40


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it(light: Path, incoming: Path) -> None:
    put(incoming, "a.png", at=1)
    with started(light, incoming, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert json.loads(child.stdout.readline())["number"] == 1
        child.stdout.close()
        put(incoming, "b.png", at=2)
        assert b"the next start goes on from there" in child.stderr.read()
        assert child.wait(60) == 2


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_names_that_are_no_text_are_names_all_the_same(model: Path, incoming: Path, tmp_path: Path) -> None:
    path = put(incoming, "a.png", at=1)
    os.rename(path, os.path.join(os.fsencode(incoming), b"\xff.png"))
    out = tmp_path / "o.csv"
    result = watch(request(model, incoming, sort=tmp_path / "sorted", jsonl=tmp_path / "o.jsonl", csv=out))
    assert result["judged"] == 1
    assert os.listdir(os.fsencode(tmp_path / "sorted" / "good")) == [b"\xff.png"]
    assert os.fsencode(lines(tmp_path / "o.jsonl")[0]["path"]).endswith(b"\xff.png")
    assert os.fsencode(rows(out)[0]["path"]).endswith(b"\xff.png")
