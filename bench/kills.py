"""Is anything lost, mixed or left behind when commands are ended by kill -9, and the same command is given again?

    python -m bench run kills [--commands COMMAND ...] [--kills 50] [--seed 0] [-o bench/results/kills.jsonl]

Every command runs in a folder of its own, on images of 32 to 64 pixels, as a process that is forked from
this one, in which everything is imported already. First without interruption, twice: what these two leave must be
equal, but for times. Then it is killed ``--kills`` times, one half at random moments of its duration, the other half
just before one of its steps that change the disk (a file is opened to write, renamed, deleted ...), which Python
reports to this program; checkpoints of a training are written every quarter of a second in place of every two minutes.
Then the same command runs to its end. ``equal``: it leaves what an uninterrupted run leaves; ``refused``: the
killed command had written its result, which is whole, and the second refuses to overwrite it. ``left``: files that an
uninterrupted run does not leave, in the folder or in that for temporary files. ``twice``: the same command is started
twice at once. ``serve`` is killed while images are sent to it and marked; each mark that it had acknowledged must be
there when it is started again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bench import harness
from bench.harness import Record, markdown

__all__ = ["COMMANDS", "Command", "Ended", "Materials", "killed", "run", "uninterrupted"]

LONGEST = 600  # seconds of one command, on a machine that others use too
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
TIMES = {
    "fit_s",
    "time",
    "made",
    "finished",
    "seconds",
    "total_s",
    "predict_s",
    "backbone_s",
    "peak_mb",
    "judged_s",
    "fitted",
}
TIMES |= {"versions", "sha256", "fetched", "teach_s", "beat", "owner", "mtime_ns", "id", "bytes"}
SETTINGS = {"batch": 4, "epochs": 2, "teacher_epochs": 2, "student_epochs": 2, "natural": "none"}


# -- processes ---------------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """A command has ended: its exit code (-9: killed), seconds, what it printed, and the changes of the disk."""

    code: int
    seconds: float
    output: str
    changes: int


def run(
    argv: list[str], folder: Path, *, before: int | None = None, after: float | None = None, setup: str = ""
) -> Ended:
    """Run a command of pickglass in a forked process, and kill it before a change of the disk or after some seconds.

    Args:
        argv: arguments of ``pickglass``.
        folder: where it runs; its temporary files go into ``tmp`` there.
        before: number of the change, from 0.
        after: seconds.
        setup: Python to run in the process first.
    """
    return waited(started(argv, folder, before, setup), after)


class Started(NamedTuple):
    """A process was started, at this time."""

    pid: int
    began: float
    log: Path


def started(argv: list[str], folder: Path, before: int | None = None, setup: str = "") -> Started:
    """Fork a process that runs a command."""
    handle, log = tempfile.mkstemp(dir=folder.parent, prefix="log-")
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.perf_counter()
    pid = os.fork()
    if not pid:
        _child(argv, folder, before, handle, setup)
    os.close(handle)
    return Started(pid, began, Path(log))


def waited(process: Started, after: float | None = None) -> Ended:
    """Wait for a process, and kill it and those that it started after so many seconds."""
    until = process.began + (LONGEST if after is None else after)
    status: int | None = None
    while status is None:
        pid, code = os.waitpid(process.pid, os.WNOHANG)
        if pid:
            status = code
        elif time.perf_counter() >= until:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _, status = os.waitpid(process.pid, 0)
        else:
            time.sleep(0.002)
    seconds = time.perf_counter() - process.began
    with suppress(ProcessLookupError):  # workers that it started
        os.killpg(process.pid, signal.SIGKILL)
    output, _, changes = process.log.read_text("utf-8", "replace").rpartition("changes: ")
    process.log.unlink()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return Ended(code, seconds, output + changes, -1)
    return Ended(code, seconds, output, int(changes))


def _child(argv: list[str], folder: Path, before: int | None, log: int, setup: str) -> None:
    os.setsid()
    os.chdir(folder)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    (folder / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder / "tmp")
    tempfile.tempdir = None
    count = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            name, _, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not writes or ".pyc" in str(name) or str(name).startswith(("/proc", "/dev")):
                return
        elif event not in CHANGES:
            return
        if count == before:
            os.killpg(0, signal.SIGKILL)  # also what it was forked from
        count += 1

    sys.addaudithook(watch)
    code = 70
    try:
        exec(setup, {})
        from pickglass.cli.main import main

        sys.argv = ["pickglass", *argv]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(2, f"changes: {count}".encode())
        os._exit(code)


# -- what a command leaves ---------------------------------------------------------------------------------------------


def steady(value: Any) -> Any:
    """Leave out times and identities, of which no two runs have the same, also of JSON in texts."""
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            return steady(json.loads(value))
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in TIMES}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """Return what a file says, but for times."""
    if path.suffix == ".safetensors" and path.stat().st_size > 1000:
        from safetensors import safe_open

        with safe_open(str(path), framework="np") as file:
            header = {key: steady(json.loads(text)) for key, text in (file.metadata() or {}).items()}
            tensors = {name: digest(file.get_tensor(name).tobytes()) for name in file.keys()}  # noqa: SIM118
        return header, tensors
    if path.suffix == ".onnx" and path.stat().st_size > 1000:
        from pickglass.errors import ModelFileError
        from pickglass.runtime.export_file import read_export

        try:
            header, _ = read_export(path)  # it compares the checksum of the graph
        except ModelFileError:  # what a library left
            return digest(path.read_bytes())
        return steady(header)
    if path.suffix == ".sqlite":
        return _database(path)
    if path.suffix == ".jsonl":
        return sorted(json.dumps(steady(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines())
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return steady(list(csv.DictReader(file)))
    if path.suffix == ".json":
        return steady(json.loads(path.read_text()))
    if path.suffix == ".html" and path.stat().st_size > 1000:  # it says how long things took
        text = path.read_text("utf-8")
        return text.count("<"), text.rstrip().endswith("</html>")
    return digest(path.read_bytes())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _database(path: Path) -> Any:
    tables: dict[str, Any] = {}
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = [dict(row) for row in database.execute(f"SELECT * FROM {name}")]
            if name not in ("about", "outputs"):  # identities and folders of the run
                tables[name] = sorted(repr(sorted(steady(row).items())) for row in rows)
    return tables


def left(folder: Path) -> dict[str, Any]:
    """Return what lies in a folder: names of files, and what they say."""
    return {
        str(path.relative_to(folder)): content(path) if not path.is_symlink() else os.readlink(path)
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    } | {
        f"{path.relative_to(folder)}/": None
        for path in folder.rglob("*")
        if path.is_dir() and (path.name.startswith(".") or path.parent.name == "tmp")
    }


# -- commands ----------------------------------------------------------------------------------------------------------


class Materials:
    """Images and models, made once; commands read them, or copies of them.

    Args:
        folder: where to make them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.web: Web | None = None
        self._models: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        _images(self.data / "train" / "good", 8, 0)
        _images(self.data / "test" / "good", 4, 1)
        _images(self.data / "test" / "hole", 4, 2, defect=True)
        _images(folder / "more", 5, 3)
        for name in ("a", "b"):
            shutil.copytree(self.data, folder / "root" / name)
        photos = folder / "photos"
        photos.mkdir()
        from pickglass.data.painting.natural import natural_images

        for i, picture in enumerate(natural_images(6, (96, 120))):
            Image.fromarray(picture).save(photos / f"{i}.png")

    def placed(self, text: str) -> str:
        """Put the place of images or of a model into an argument."""
        name, _, rest = text.removeprefix("{").partition("}")
        if not text.startswith("{"):
            return text
        place = self.model(name) if "." in name else self.folder / name
        return f"{place}{rest}"

    def model(self, name: str) -> Path:
        """Fit or export a model once."""
        if name not in self._models:
            target = self.folder / name
            settings = (
                ["--size", "96", "--calibrate", "0"]
                if name.startswith("deep")
                else ["--layers", "stage2", "--size", "32"]
            )
            argv = ["fit", str(self.data), "-o", name, *settings, "--engine", "torch"]
            if target.suffix == ".onnx":
                argv = ["export", str(self.model("m.safetensors")), "-o", name]
            ended = run(argv, self.folder)
            if ended.code:
                raise SystemExit(f"{' '.join(argv)}: {ended.output}")
            shutil.rmtree(self.folder / "tmp", ignore_errors=True)
            self._models[name] = target
        return self._models[name]


def _images(folder: Path, n: int, seed: int, defect: bool = False) -> None:
    from pickglass.testing import textures

    folder.mkdir(parents=True)
    for i, pixels in enumerate(textures(n, 64, seed=seed)):
        image = np.ascontiguousarray(pixels)
        if defect:
            image[20:44, 20:44] = 0
        Image.fromarray(image).save(folder / f"{i}.png")


@dataclass(frozen=True)
class Command:
    """A command of pickglass.

    Attributes:
        text: its arguments; in braces the images and models of :class:`Materials`.
        begin: puts into its folder what it changes.
        setup: Python that its process runs first.
        changes: how often its workers change the disk; each change may be the one that ends it.
    """

    text: str
    begin: Callable[[Materials, Path], object] = lambda given, folder: None
    setup: Callable[[Materials], str] = lambda given: CHECKPOINTS
    changes: int = 0

    def argv(self, given: Materials) -> list[str]:
        """Return the arguments with the places of images and models."""
        return [given.placed(part) for part in self.text.split()]


CHECKPOINTS = """
import multiprocessing, pickglass.app.jobs.executors as jobs, pickglass.nn.training.loop as loop
loop.train_all.__kwdefaults__["checkpoint_s"] = 0.25
jobs.get_context = lambda _: multiprocessing.get_context("fork")  # workers need not import everything anew
"""


def _settings(method: str) -> str:
    from pickglass.methods import METHODS

    quick = METHODS[method].quick_settings(12, 64)
    quick |= {name: value for name, value in SETTINGS.items() if name in quick}
    if method == "efficientad":
        quick["steps"] = 4
    return " ".join(f"--set {name}={_text(value)}" for name, value in quick.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _copied(given: Materials, folder: Path, model: str) -> None:
    shutil.copyfile(given.model(model), folder / model)


def _arrived(given: Materials, folder: Path) -> None:
    shutil.copytree(given.data / "test" / "good", folder / "incoming")
    for i, path in enumerate(sorted((given.data / "test" / "hole").iterdir())):
        shutil.copyfile(path, folder / "incoming" / f"hole{i}.png")


def _from_here(given: Materials) -> str:
    """Let weights come from this process instead of the net."""
    if given.web is None:
        given.web = Web()
    return (
        "import os, urllib.request as r; os.environ['PICKGLASS_WEIGHTS'] = 'weights'; ask = r.urlopen\n"
        f"r.urlopen = lambda q, timeout: ask(r.Request({given.web.url!r}, headers=dict(q.header_items())), timeout=30)"
    )


class Web(ThreadingHTTPServer):
    """Serves one megabyte in half a second, and parts of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Say nothing: who asked was killed."""


class _Answer(BaseHTTPRequestHandler):
    BODY = bytes(range(256)) * 8192

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start >= len(self.BODY):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.BODY) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        for at in range(start, len(self.BODY), 1 << 17):
            self.wfile.write(self.BODY[at : at + (1 << 17)])
            time.sleep(0.03)


LEARNING = (
    "stfpm",
    "reverse_distillation",
    "fastflow",
    "asymmetric_student_teacher",
    "efficientad",
    "supersimplenet",
)
FIT = "fit {data} -o m.safetensors --engine torch --method"
TINY = "--set epochs=2 --set steps=2"

COMMANDS: dict[str, Command] = {
    "fit patchcore": Command(f"{FIT} patchcore --layers stage2 --size 32"),
    "fit padim": Command(f"{FIT} padim --layers stage2 --size 32 --set dims=8"),
    "fit subspace": Command(f"{FIT} subspace --layers stage2 --size 32"),
    **{f"fit {method}": Command(f"{FIT} {method} --size 64 {_settings(method)}") for method in LEARNING},
    "fit combined": Command(
        f"{FIT} patchcore+fastflow --size 64 --set fastflow.epochs=2 --set fastflow.steps=2",
    ),
    "fit in groups": Command(f"{FIT} fastflow --size 64 --tile 32 {TINY} --memory-gb 0.02"),
    "fit of many": Command(f"fit {{root}} -o models --engine torch --method fastflow --size 64 {TINY}", changes=13),
    "study": Command(
        "study {data} -o s.sqlite --methods patchcore,padim --sizes 32,64 --layers stage2 --csv s.csv --report s.html "
        "--engine torch"
    ),
    "distill": Command(
        "distill {photos} -o t.safetensors --backbone resnet18 --layers layer2+layer3 --weights random --model tiny "
        "--steps 8 --batch 2 --crop 64 --engine torch"
    ),
    "export": Command("export {m.safetensors} -o m.onnx"),
    "export int8": Command("export {deep.safetensors} -o m.onnx --precision int8 --data {data} --max-loss 1"),
    "update": Command(
        "update m.safetensors {more} -o n.safetensors --engine torch", partial(_copied, model="m.safetensors")
    ),
    "convert": Command("convert {data} -o set --as mvtec"),
    "predict": Command("predict {m.safetensors} {data}/test -o out --engine torch"),
    "test": Command("test {m.safetensors} {data} -o r.html --save r.npz --engine torch"),
    "watch": Command(
        "watch {m.onnx} incoming --once --sort sorted --jsonl out.jsonl --csv out.csv --settle 0 --engine onnxruntime",
        _arrived,
    ),
    "weights get": Command("weights get resnet50:swav", setup=_from_here),
}


# -- trials ------------------------------------------------------------------------------------------------------------


@contextmanager
def a_folder(given: Materials, command: Command) -> Iterator[Path]:
    """Give a folder as the command finds it."""
    with tempfile.TemporaryDirectory(dir=given.folder) as outer:
        folder = Path(outer) / "run"
        folder.mkdir()
        command.begin(given, folder)
        (folder / "tmp").mkdir()
        yield folder


def uninterrupted(given: Materials, command: Command) -> tuple[Ended, dict[str, Any]]:
    """Run a command to its end, and return what it leaves."""
    with a_folder(given, command) as folder:
        ended = run(command.argv(given), folder, setup=command.setup(given))
        if ended.code:
            raise SystemExit(f"{' '.join(command.argv(given))} ends with {ended.code}: {ended.output[-2000:]}")
        return ended, left(folder)


def compared(found: Mapping[str, Any], wanted: Mapping[str, Any], ended: Ended) -> str:
    """Say what comes of a killed command and the next: equal, refused, or what is wrong."""
    extra = sorted(set(found) - set(wanted))
    if extra:
        return f"left: {extra} ({ended.output.strip()[-200:]})"
    if dict(found) != dict(wanted):
        names = [name for name in wanted if found.get(name) != wanted[name]]
        return f"other content: {names} ({ended.output.strip()[-300:]})"
    if ended.code == 2 and "exists already" in ended.output:
        return "refused"
    return "equal" if ended.code == 0 else f"ends with {ended.code}: {ended.output.strip()[-300:]}"


def killed(
    given: Materials, command: Command, wanted: Mapping[str, Any], before: int | None = None, after: float | None = None
) -> tuple[bool, str]:
    """Kill a command, run it again, and compare; returns whether it lived long enough to be killed, and what came."""
    with a_folder(given, command) as folder:
        argv, setup = command.argv(given), command.setup(given)
        first = run(argv, folder, before=before, after=after, setup=setup)
        second = run(argv, folder, setup=setup)
        return first.code == -signal.SIGKILL, compared(left(folder), wanted, second)


def twice(given: Materials, command: Command, wanted: Mapping[str, Any]) -> str:
    """Run the same command twice at once; the second waits, refuses, or does the same."""
    with a_folder(given, command) as folder:
        argv, setup = command.argv(given), command.setup(given)
        both = [waited(process) for process in [started(argv, folder, setup=setup) for _ in range(2)]]
        codes = sorted(ended.code for ended in both)
        worse = next((ended for ended in both if ended.code), both[0])
        outcome = compared(left(folder), wanted, worse)
        if outcome.startswith("ends") and codes[0] == 0 and ("another process" in worse.output or codes[1] == 1):
            return f"one refuses: {worse.output.strip().splitlines()[-1][:160]}"
        return outcome


# -- the page ----------------------------------------------------------------------------------------------------------


def served(given: Materials, kills: int, seed: int) -> dict[str, Any]:
    """Kill ``serve`` amid requests that mark and judge images; what was acknowledged must be there afterwards."""
    rng = random.Random(seed)
    outcomes: dict[str, int] = {}
    lost = marked = hit = 0
    images = [path.read_bytes() for path in sorted((given.folder / "more").iterdir())]
    for after in [rng.uniform(0.1, 2.5) for _ in range(kills)]:
        with _page(given) as (folder, argv, port):
            process = started(argv, folder)
            acknowledged: set[str] = set()
            asking = threading.Thread(target=_asks, args=(port, images, acknowledged, process.began + after))
            asking.start()
            hit += waited(process, after).code == -signal.SIGKILL
            asking.join()
            process = started(argv, folder)
            known = _marks(port)
            os.kill(process.pid, signal.SIGINT)
            ended = waited(process)
            missing = acknowledged - known
            marked += len(acknowledged)
            lost += len(missing)
            extra = [str(p.relative_to(folder)) for p in folder.rglob(".*") if "tmp-" in p.name]
            extra += [str(p.relative_to(folder)) for p in (folder / "tmp").iterdir()]
            what = f"lost {len(missing)}" if missing else f"left {extra}" if extra else "equal"
            if ended.code:
                what = f"ends with {ended.code}: {ended.output[-300:]}"
            outcomes[what] = outcomes.get(what, 0) + 1
    return {"kills": hit, "outcomes": outcomes, "marked": marked, "lost": lost, "twice": _served_twice(given)}


@contextmanager
def _page(given: Materials) -> Iterator[tuple[Path, list[str], int]]:
    """Give a folder, the arguments of ``serve`` and a free port."""
    with tempfile.TemporaryDirectory(dir=given.folder) as outer:
        folder = Path(outer) / "run"
        (folder / "tmp").mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = int(listening.getsockname()[1])
        argv = ["serve", str(given.model("m.onnx")), "--port", str(port), "--folder", "state", "--data"]
        yield folder, [*argv, str(given.data), "--engine", "onnxruntime"], port


def _served_twice(given: Materials) -> str:
    """Start ``serve`` while it runs in the same folder, at another port; it refuses, and the first goes on."""
    with _page(given) as (folder, argv, port):
        first = started(argv, folder)
        _marks(port)  # waits until it answers
        at = argv.index("--port") + 1
        second = started([*argv[:at], str(port + 1), *argv[at + 1 :]], folder)
        ended = waited(second, 20)
        _marks(port)
        os.kill(first.pid, signal.SIGINT)
        if waited(first).code:
            return "the first ended"
        return f"one refuses: {ended.output.strip().splitlines()[-1][:160]}" if ended.code == 2 else "both serve"


def _asks(port: int, images: list[bytes], acknowledged: set[str], until: float) -> None:
    number = 0
    while time.perf_counter() < until + 0.2:
        try:
            content = images[number % len(images)] + str(number).encode()  # trailing bytes: another image each time
            kept = _ask(port, f"/api/marks/images?name={number}.png", content, "application/octet-stream")
            said = {"image": {"place": "kept", "name": kept["name"]}, "mark": "bad" if number % 2 else "good"}
            _ask(port, "/api/marks", json.dumps(said).encode(), "application/json")
            acknowledged.add(kept["sha256"])
            number += 1
        except (OSError, ValueError):
            time.sleep(0.02)


def _marks(port: int) -> set[str]:
    for _ in range(1000):
        try:
            return {mark["sha256"] for mark in _ask(port, "/api/marks", None, "")["marks"]}
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.02)
    return set()


def _ask(port: int, path: str, body: bytes | None, kind: str) -> Any:
    headers = {"Content-Type": kind} if body is not None else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


# -- all of it ---------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What came of the kills of one command."""

    command: str
    seconds: float = 0.0
    changes: int = 0
    kills: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    twice: str = ""

    @property
    def sound(self) -> bool:
        return set(self.outcomes) <= {"equal", "refused"} and self.twice.startswith(("equal", "refused", "one refuses"))


def measured(given: Materials, name: str, kills: int, seed: int) -> Figures:
    command = COMMANDS[name]
    ended, wanted = uninterrupted(given, command)
    _, again = uninterrupted(given, command)
    changes = max(ended.changes, command.changes)
    figures = Figures(name, round(ended.seconds, 2), changes)
    if again != wanted:
        figures.outcomes["two uninterrupted runs differ"] = 1
        names = [key for key in wanted if again.get(key) != wanted[key]]
        print(f"{name}: two uninterrupted runs differ in {names}", file=sys.stderr, flush=True)
        return figures
    rng = random.Random(f"{seed} {name}")
    steps = [rng.randrange(changes) for _ in range(kills // 2)]
    if changes <= kills // 2:
        steps = [i % changes for i in range(kills // 2)]
    moments = [rng.uniform(0, ended.seconds) for _ in range(kills - len(steps))]
    trials: list[dict[str, Any]] = [{"before": step} for step in steps] + [{"after": moment} for moment in moments]
    for trial in trials:
        hit, outcome = killed(given, command, wanted, **trial)
        figures.kills += hit
        figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
        if outcome not in ("equal", "refused"):
            print(f"{name}: {trial}: {outcome}", file=sys.stderr, flush=True)
    figures.twice = twice(given, command, wanted)
    return figures


def warm() -> None:
    """Import what commands import, so that a forked process need not."""
    import importlib

    for name in (
        "torch", "timm", "openvino", "onnx", "onnxruntime", "onnxruntime.quantization", "scipy.stats", "fastapi",
        "uvicorn", "pickglass.cli.main", "pickglass.app.fit", "pickglass.app.fit_many", "pickglass.app.study.study",
        "pickglass.app.distill", "pickglass.app.export", "pickglass.app.update", "pickglass.app.threshold",
        "pickglass.app.convert", "pickglass.app.predict", "pickglass.app.testing.test", "pickglass.app.watch.watch",
        "pickglass.app.weights", "pickglass.web.server", "pickglass.app.pages.report", "pickglass.app.pages.study",
        "pickglass.runtime.session", "pickglass.features.foreground", "pickglass.detectors.certificate",
    ):  # fmt: skip
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--commands", nargs="+", choices=[*COMMANDS, "serve"], default=[*COMMANDS, "serve"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)


def figures(given: Materials, name: str, kills: int, seed: int) -> dict[str, Any]:
    """Measure one command."""
    if name == "serve":
        return served(given, kills, seed)
    return vars(measured(given, name, kills, seed))


def cases(asked: argparse.Namespace) -> Iterator[harness.Case]:
    os.environ["OMP_NUM_THREADS"] = "1"
    warm()
    with tempfile.TemporaryDirectory() as made:
        given = Materials(Path(made))
        for name in asked.commands:
            yield harness.Case({"command": name}, partial(figures, given, name, asked.kills, asked.seed))


def table(rows: list[Record]) -> str:
    """Write a line for each command: how often it was killed, and what came of it."""
    cells = []
    for row in rows:
        equal, refused = (row["outcomes"].get(what, 0) for what in ("equal", "refused"))
        tries = sum(row["outcomes"].values())
        cells.append(
            [
                f"`{row['command']}`",
                *map(str, (tries, row["kills"], equal, refused, tries - equal - refused)),
                row["twice"].partition(":")[0],
            ]
        )
    return markdown(["command", "tries", "killed", "equal", "refused", "lost or left", "twice at once"], cells)


SUITE = harness.Suite(cases, arguments, {"": table})
