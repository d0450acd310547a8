"""What a killed process hid is removed by the next, what a living one uses stays, and two writers do not mix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from bench.faults import forced, full, mounted, read_only, vanished
from bench.kills import COMMANDS, Materials, measured

from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.app.watch import journal
from pickglass.app.watch.journal import Journal
from pickglass.data import files
from pickglass.data.files import alone, remove_leftovers, replace_folder, scratch_folder, written_whole
from pickglass.errors import InputError
from pickglass.runtime.model_header import read_model_header

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def child(work: Callable[[], object], ready: Path) -> int:
    """Fork a process that works; returns once it has made the file ``ready``."""
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            work()
        os._exit(0)
    while not ready.exists():
        time.sleep(0.005)
    return pid


def killed_child(work: Callable[[], object], ready: Path) -> None:
    pid = child(work, ready)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ready.unlink()


def holds(target: Path, ready: Path) -> None:
    with alone(target), written_whole(target) as temporary:
        temporary.write_text("half")
        ready.touch()
        time.sleep(60)


@pytest.fixture(autouse=True)
def _nothing_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target, ready = tmp_path / "out" / "m.txt", tmp_path / "ready"
    target.parent.mkdir()
    target.write_text("old")
    killed_child(lambda: holds(target, ready), ready)
    assert len(list(target.parent.iterdir())) == 3  # the file, the folder and the lock
    assert target.read_text() == "old"
    with alone(target), written_whole(target) as temporary:
        temporary.write_text("new")
    assert [path.name for path in target.parent.iterdir()] == ["m.txt"]
    assert target.read_text() == "new"


def test_what_a_living_process_uses_stays_and_another_is_refused(tmp_path: Path) -> None:
    target, ready = tmp_path / "out" / "m.txt", tmp_path / "ready"
    target.parent.mkdir()
    pid = child(lambda: holds(target, ready), ready)
    try:
        remove_leftovers(target.parent)
        assert len(list(target.parent.iterdir())) == 2
        with (
            pytest.raises(InputError, match=rf"m\.txt: another process \(id {pid}\) is writing it"),
            alone(target, 0.1),
        ):
            pass
        with written_whole(target.parent / "other.txt") as temporary:
            temporary.write_text("of another command")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    remove_leftovers(target.parent)
    assert [path.name for path in target.parent.iterdir()] == ["other.txt"]


def test_one_waits_for_another_that_ends(tmp_path: Path) -> None:
    target, ready = tmp_path / "m.txt", tmp_path / "ready"

    def work() -> None:
        with alone(target):
            ready.touch()
            time.sleep(0.2)

    pid = child(work, ready)
    with alone(target, 30):
        assert os.waitpid(pid, 0) == (pid, 0)
    ready.unlink()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_to_be_replaced_comes_back(tmp_path: Path) -> None:
    target, ready = tmp_path / "set", tmp_path / "ready"
    target.mkdir()
    (target / "old").touch()

    def work() -> None:
        with scratch_folder(tmp_path) as scratch:
            new = scratch / "new"
            new.mkdir()
            rename = Path.rename

            def stops(self: Path, to: Path) -> Path:
                if self == new:
                    ready.touch()
                    time.sleep(60)
                return rename(self, to)

            Path.rename = stops  # type: ignore[method-assign, assignment]
            replace_folder(new, target, scratch)

    killed_child(work, ready)
    assert not target.exists()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(kinds[os.path.isdir(f"/proc/self/fd/{n}")]), sync(n))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("name"), replace(self, to))[1])
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert done == ["file", "name", "folder"]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time, os, pathlib\n"
        "from pickglass.app.jobs.executors import LocalExecutor\n"
        "def work(task):\n"
        "    pathlib.Path(task).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "    yield 1\n"
        "if __name__ == '__main__':\n"
        "    tasks = [sys.argv[1]]\n"
        "    list(LocalExecutor(2).run(work, lambda: tasks.pop() if tasks else None))\n"
    )
    (tmp_path / "s.py").write_text(script)
    told = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, str(tmp_path / "s.py"), str(told)])
    while not (told.exists() and told.read_text()):
        time.sleep(0.02)
    process.kill()
    process.wait()
    worker = int(told.read_text())
    for _ in range(500):
        try:
            if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker goes on by itself")


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return Materials(tmp_path_factory.mktemp("kills") / "made")


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_command_is_given_again(given: Materials) -> None:
    figures = measured(given, "convert", 4, 0)
    assert figures.sound, figures
    assert figures.kills >= 2


def test_a_journal_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        journal.uuid.uuid4 = lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, attr-defined]
        Journal(tmp_path / "j.sqlite", tmp_path)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    Journal(tmp_path / "j.sqlite", tmp_path).close()


@pytest.mark.slow
@pytest.mark.long
def test_a_full_disk_a_read_only_one_and_a_vanished_image(given: Materials) -> None:
    command = forced(COMMANDS["predict"])
    code, fault = vanished(given, command)
    assert fault is None
    assert code in (1, 2)  # 2: the folder was listed, and the image gone before its header was read
    probe = given.folder / "probe"
    probe.mkdir()
    try:
        with mounted(probe, 100):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    for code, fault in (full(given, command, 8), read_only(given, command)):
        assert (code, fault) == (2, None)


def test_two_thresholds_at_once_are_both_kept(given: Materials, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes(given.model("m.safetensors").read_bytes())
    before = read_model_header(model)["version"]
    pids = []
    for value in (1.0, 2.0, 3.0):
        pid = os.fork()
        if not pid:
            code = 1
            with suppress(BaseException):
                threshold(model, None, ThresholdRequest("fixed", value=value))
                code = 0
            os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    header = read_model_header(model)
    assert header["version"] == before + 3
    assert len({change["image_threshold"] for change in header["history"][-3:]}) == 3
