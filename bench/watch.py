"""Does `pickglass watch` lose an image, or judge one twice, when it is killed; and what does a full folder cost?

    python -m bench run watch [--frames 100000] [--kills 2] [--sort] [--webhook] [--listing 100000] [--folder FOLDER]

Frames of 32 x 32 pixels are written to a folder, half of them before the start and the others while it runs.
``pickglass watch`` judges them with a small PatchCore in torch, and is ended by kill -9 when it has judged one, two ...
of equal parts; it is started again each time. Afterwards the JSON lines, the CSV file, with ``--sort`` the folders of
the verdicts, and with ``--webhook`` what a web server in this process was sent are compared with what was written.

``listing`` tells what looking for new files costs in a folder of so many judged ones: the first look of a start, which
asks the journal of each file, and a later one, in seconds of CPU and by the clock. ``--frames 0`` does that alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from bench.harness import Case, Suite
from pickglass.app.watch.arrivals import Arrivals
from pickglass.app.watch.journal import Entry, Identity, Journal
from pickglass.methods import PatchCore
from pickglass.testing import textures

KINDS = 64  # different frames


def encoded() -> list[bytes]:
    """Frames as PNG files; every eighth has a defect."""
    files = []
    for i, pixels in enumerate(textures(KINDS, 32, seed=1)):
        if i % 8 == 0:
            pixels = pixels.copy()
            pixels[8:24, 8:24] = 0
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, format="png")
        files.append(buffer.getvalue())
    return files


def write(folder: Path, numbers: range) -> None:
    """Write frames as a careful writer does: under a hidden name first."""
    files = encoded()
    for number in numbers:
        hidden = folder / f".{number:07d}.part"
        hidden.write_bytes(files[number % KINDS])
        hidden.rename(folder / f"{number:07d}.png")


@contextmanager
def server(counted: Counter[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            counted[json.loads(self.rfile.read(int(self.headers["Content-Length"])))["id"]] += 1
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}/"
    served.shutdown()


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def listing(root: Path, files: int) -> dict[str, float]:
    """Time the first look at a folder of judged files, and a later one."""
    folder = root / "full"
    folder.mkdir()
    write(folder, range(files))
    journal = Journal(root / "full.sqlite", folder)
    with os.scandir(folder) as entries:
        stats = [(entry.name, entry.stat()) for entry in entries]
    journal.record([Entry(Identity(name, stat.st_size, stat.st_mtime_ns), {}, None) for name, stat in stats])
    arrivals = Arrivals(folder, journal.knows, 0.5, 10.0)
    seconds = []
    for _ in range(4):
        time.sleep(arrivals.wait)
        clock, cpu = time.perf_counter(), time.process_time()
        arrivals.scan()
        seconds.append((time.process_time() - cpu, time.perf_counter() - clock))
    new = len(arrivals) + arrivals.waited_for
    journal.close()
    (first_cpu, first), (later_cpu, later) = seconds[0], min(seconds[1:])
    return {
        "files": files,
        "first_cpu_s": first_cpu,
        "first_s": first,
        "later_cpu_s": later_cpu,
        "later_s": later,
        "new": new,
    }


def run(root: Path, frames: int, kills: int, sort: bool, webhook: bool) -> dict[str, Any]:
    folder, out, table, journal = root / "incoming", root / "o.jsonl", root / "o.csv", root / "j.sqlite"
    folder.mkdir()
    model = PatchCore(size=32, layers=["stage2"], ratio=0.02).fit(textures(40, 32), engine="torch")
    model.save(root / "m.safetensors")
    write(folder, range(frames // 2))
    command = [
        sys.executable,
        "-m",
        "pickglass",
        "watch",
        str(root / "m.safetensors"),
        str(folder),
        "--engine",
        "torch",
    ]
    command += ["--jsonl", str(out), "--csv", str(table), "--journal", str(journal), "--settle", "0.1", "--json"]
    command += ["--sort", str(root / "sorted")] if sort else []
    sent: Counter[str] = Counter()
    began = time.perf_counter()
    killed_at = []
    with server(sent) as url:
        command += ["--webhook", url] if webhook else []
        writer = threading.Thread(target=write, args=(folder, range(frames // 2, frames)))
        writer.start()
        for part in range(1, kills + 1):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while lines_in(out) < frames * part // (kills + 1):
                    assert process.poll() is None, "the command ended"
                    time.sleep(0.2)
                process.send_signal(signal.SIGKILL)
                process.wait()
            killed_at.append(lines_in(out))
        writer.join()
        done = subprocess.run([*command, "--once"], stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
    told = [json.loads(line) for line in out.read_bytes().splitlines()]
    names = Counter(Path(item["path"]).name for item in told)
    with table.open(newline="", encoding="utf-8") as text:
        in_table = Counter(Path(row["path"]).name for row in csv.DictReader(text))
    written = {f"{number:07d}.png" for number in range(frames)}
    result: dict[str, Any] = {
        "kills_after": killed_at,
        "exit_code": done.returncode,
        "seconds": round(seconds, 1),
        "images_per_s": round(frames / seconds, 1),
        "told": len(told),
        "lost": len(written - names.keys()),
        "twice": sum(count - 1 for count in names.values()),
        "numbers_in_order": [item["number"] for item in told] == list(range(1, frames + 1)),
        "states": Counter(item["state"] for item in told),
        "verdicts": Counter(item["verdict"] for item in told),
        "csv_is_the_same": in_table == names,
        "journal_bytes_an_image": round(sum(f.stat().st_size for f in root.glob("j.sqlite*")) / frames),
    }
    if sort:
        sorted_names = Counter(path.name for path in (root / "sorted").rglob("*.png"))
        result["sorted_is_the_same"] = sorted_names == names and not any(os.scandir(folder))
    if webhook:
        ids = {item["id"] for item in told}
        result["told_by_webhook"] = {"lost": len(ids - sent.keys()), "sent_again": sum(sent.values()) - len(sent)}
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--sort", action="store_true")
    parser.add_argument("--webhook", action="store_true")
    parser.add_argument("--listing", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")


def cases(given: argparse.Namespace) -> Iterator[Case]:
    def within(work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            return work(Path(temporary))

    if given.frames:
        key = {"part": "kills", "frames": given.frames, "kills": given.kills, "sort": given.sort}
        more = (given.frames, given.kills, given.sort, given.webhook)
        yield Case({**key, "webhook": given.webhook}, lambda: within(lambda root: run(root, *more)))
    if given.listing:
        key = {"part": "listing", "files": given.listing}
        yield Case(key, lambda: within(lambda root: {k: round(v, 3) for k, v in listing(root, given.listing).items()}))


SUITE = Suite(cases, arguments)
