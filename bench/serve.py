"""What does `pickglass serve` cost beside the bare model, and does it lose a request, grow, or break?

    python -m bench run serve MODEL IMAGES [--clients 8] [--requests 200] [--connections 500] [--soak 1000]

MODEL is an exported file, IMAGES a folder of images. The server is a process of its own on a port of loopback, the
clients are threads of this one on the same cores. ``bare``: images/s from the files to scores and maps by
``pg.load(MODEL).stream``, as many images as all requests, before the server starts. ``load``: each of the clients sends
its requests one after the other on one connection; ``lost`` counts answers other than 200, ``share`` is the throughput
over that of the bare model. ``connections``: so many connections are open at once, and each sends one image at the same
moment; who gets a 503 waits as long as Retry-After says and sends it again; ``refused`` counts these answers. ``soak``:
images one after the other; ``mb`` is the memory of the server after each tenth. ``killed``: the server is ended by
kill -9 amid requests, the model file and the folder are as before, and a new server on the same port answers after
``back_s`` seconds. ``bad``: wrong requests, and what they are answered, by hand over a socket.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pickglass as pg
from bench.harness import Case, Suite
from pickglass.data import IMAGE_SUFFIXES
from pickglass.errors import Failure

TOKEN = "a-token-for-the-bench"
TYPES = {".jpg": "jpeg", ".tif": "tiff"}

Figures = dict[str, Any]
Sent = tuple[bytes, str]


def images_in(folder: Path) -> list[Sent]:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise SystemExit(f"{folder} holds no image")
    kinds = [TYPES.get(path.suffix.lower(), path.suffix[1:].lower()) for path in paths]
    return [(path.read_bytes(), f"image/{kind}") for path, kind in zip(paths, kinds, strict=True)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def server(model: Path, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "pickglass", "serve", str(model), "--port", str(port), "--folder", str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "PICKGLASS_TOKEN": TOKEN}, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                connection = HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                connection.getresponse().read()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit("the server does not start") from None
                time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def ask(connection: HTTPConnection, image: Sent) -> tuple[int, bytes, float]:
    """Send an image; return status, body, and seconds of Retry-After."""
    content, kind = image
    connection.request("POST", "/inspect", content, {"Content-Type": kind, "Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    return answer.status, answer.read(), float(answer.getheader("Retry-After") or 0)


def bare(model: Path, images: Sequence[Sent], n: int) -> float:
    """Return the images/s of the model alone."""
    loaded = pg.load(model)
    list(loaded.stream([content for content, _ in images[:40]]))  # and chooses the runtime
    rows = [images[i % len(images)][0] for i in range(n)]
    began = time.perf_counter()
    done = sum(found.full_map().size > 0 for found in loaded.stream(iter(rows)) if not isinstance(found, Failure))
    assert done == n
    return n / (time.perf_counter() - began)


def load(port: int, images: Sequence[Sent], clients: int, requests: int) -> Figures:
    seconds: list[float] = []
    lost: list[int] = []

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        for i in range(requests):
            began = time.perf_counter()
            status, body, _ = ask(connection, images[(number * requests + i) % len(images)])
            seconds.append(time.perf_counter() - began)
            if status != 200 or json.loads(body)["score"] is None:
                lost.append(status)
        connection.close()

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    took = time.perf_counter() - began
    ordered = sorted(seconds)
    return {
        "requests": len(seconds),
        "lost": len(lost),
        "images_per_s": len(seconds) / took,
        "p50_ms": 1000 * statistics.median(ordered),
        "p95_ms": 1000 * ordered[int(0.95 * len(ordered))],
    }


def connections(port: int, images: Sequence[Sent], n: int) -> Figures:
    together = threading.Barrier(n)
    refused, answered, errors = [0] * n, [0] * n, [0] * n

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        connection.connect()
        together.wait(60)
        for _ in range(600):
            try:
                status, _, pause = ask(connection, images[number % len(images)])
            except (OSError, HTTPException):
                errors[number] += 1
                return
            if status != 503:
                answered[number] = status
                return
            refused[number] += 1
            time.sleep(pause)

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "connections": n,
        "answered": answered.count(200),
        "refused": sum(refused),
        "errors": sum(errors),
        "seconds": time.perf_counter() - began,
    }


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def soak(process: subprocess.Popen[bytes], port: int, images: Sequence[Sent], n: int) -> Figures:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    mb = []
    for i in range(n):
        status, _, _ = ask(connection, images[i % len(images)])
        assert status == 200
        if (i + 1) % max(1, n // 10) == 0:
            mb.append(round(memory_mb(process), 1))
    return {"images": n, "mb": mb}


def contents(*paths: Path) -> dict[str, str]:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    open_ones = ("-wal", "-shm")  # of SQLite
    kept = [file for file in files if file.is_file() and not file.name.endswith(open_ones)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in kept}


def killed(model: Path, folder: Path, images: Sequence[Sent]) -> Figures:
    """Kill a server amid requests; what it leaves, and how long the next one takes."""
    port = free_port()
    before = contents(model, folder)

    def client(number: int) -> int:
        connection, done = HTTPConnection("127.0.0.1", port, timeout=30), 0
        try:
            while True:
                done += ask(connection, images[number])[0] == 200
        except (OSError, HTTPException):
            return done

    with server(model, folder, port) as process, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(client, number) for number in range(4)]
        time.sleep(2)
        process.send_signal(signal.SIGKILL)
        answered = sum(one.result() for one in asking)
        process.wait()
    same = contents(model, folder) == before
    began = time.perf_counter()
    with server(model, folder, port):
        back = time.perf_counter() - began
        status, _, _ = ask(HTTPConnection("127.0.0.1", port, timeout=30), images[0])
    return {"answered_before": answered, "files_as_before": same, "back_s": back, "status": status}


def by_hand(port: int, text: bytes) -> str:
    """Send bytes as they are, and return the line of the status and the sentence of the answer."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(text)
            while part := connection.recv(65536):
                answer += part
        except OSError as error:
            return f"{type(error).__name__} after {answer[:40]!r}"
    head, _, body = answer.partition(b"\r\n\r\n")
    line = head.split(b"\r\n")[0].decode("latin-1")
    try:
        return f"{line}: {json.loads(body)['error']}"
    except (ValueError, KeyError, TypeError):
        return f"{line}: {body[:80].decode('latin-1')}"


def bad(port: int, images: Sequence[Sent]) -> dict[str, str]:
    def request(line: str, *headers: str, body: bytes = b"", token: bool = True, host: str = "127.0.0.1") -> bytes:
        lines = [f"{line} HTTP/1.1", *([f"Host: {host}"] if host else []), "Connection: close", *headers]
        lines += [f"Authorization: Bearer {TOKEN}"] if token else []
        lines += [f"Content-Length: {len(body)}"] if not any("ength" in h or "chunked" in h for h in headers) else []
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

    content, kind = images[0]
    typed = f"Content-Type: {kind}"
    cases = {
        "no token": request("GET /models", token=False),
        "a wrong token": request("GET /models", "Authorization: Bearer wrong-token-of-16", token=False),
        "two tokens": request("GET /models", "Authorization: Bearer wrong-token-of-16"),
        "a cookie that is none": request("GET /models", "Cookie: pickglass=00", token=False),
        "a page of another site": request("POST /inspect", "Origin: http://evil.example", typed, body=content),
        "no origin": request("POST /inspect", "Origin: null", typed, body=content),
        "an image tag of another site": request("GET /models", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        "no host": request("GET /health", host=""),
        "two hosts": request("GET /health", "Host: evil.example"),
        "a path that leads out": request("GET /static/../../settings.py"),
        "the same, encoded": request("GET /static/%2e%2e/%2e%2e/settings.py"),
        "a NUL in the path": request("GET /static/a%00.css"),
        "another method": request("DELETE /inspect"),
        "TRACE": request("TRACE /inspect"),
        "no such page": request("GET /admin"),
        "no such model": request("POST /inspect?model=../../etc/passwd", typed, body=content),
        "another type": request("POST /inspect", "Content-Type: text/html", body=b"<script>"),
        "no image": request("POST /inspect", typed, body=b"MZ" + bytes(100)),
        "half an image": request("POST /inspect", typed, body=content[: len(content) // 2]),
        "an empty body": request("POST /inspect", typed),
        "a body of a gigabyte": request("POST /inspect", typed, f"Content-Length: {2**30}"),
        "a length that is none": request("POST /inspect", typed, "Content-Length: -5"),
        "two lengths": request("POST /inspect", typed, "Content-Length: 5", "Content-Length: 7", body=b"12345"),
        "length and chunks": request(
            "POST /inspect", typed, "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"
        ),
        "chunks that are none": request("POST /inspect", typed, "Transfer-Encoding: chunked", body=b"zz\r\n"),
        "a header of 100 kB": request("GET /models", "X: " + "x" * 100_000),
        "a web socket": request("GET /models", "Upgrade: websocket", "Connection: Upgrade"),
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }
    return {name: by_hand(port, text) for name, text in cases.items()}


def measured(chosen: argparse.Namespace) -> Figures:
    images = images_in(chosen.images)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        if chosen.requests:
            figures["bare_images_per_s"] = bare(chosen.model, images, chosen.clients * chosen.requests)
        with server(chosen.model, folder, port) as process:
            stages: list[tuple[str, int, Callable[[], Any]]] = [
                ("load", chosen.requests, lambda: load(port, images, chosen.clients, chosen.requests)),
                ("connections", chosen.connections, lambda: connections(port, images, chosen.connections)),
                ("soak", chosen.soak, lambda: soak(process, port, images, chosen.soak)),
                ("bad", 1, lambda: bad(port, images)),
            ]
            for stage, wanted, run in stages:
                if wanted:
                    figures[stage] = run()
        if chosen.requests:
            figures["load"]["share"] = figures["load"]["images_per_s"] / figures["bare_images_per_s"]
        figures["killed"] = killed(chosen.model, folder, images)
    return figures


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--soak", type=int, default=1000)


def cases(given: argparse.Namespace) -> Iterator[Case]:
    key = {"model": given.model.name, "images": given.images.name, "clients": given.clients}
    yield Case(key, lambda: measured(given))


SUITE = Suite(cases, arguments, weights=())  # they are in the model
