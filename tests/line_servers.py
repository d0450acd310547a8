"""Servers for the tests of `pickglass watch`: a web server that obeys, and a small MQTT broker (3.1.1, QoS 1)."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """What a web server was sent; ``answer`` is called with each message and gives the status, 0 for none at all."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.answer: Callable[[dict[str, Any]], int] = lambda message: 200
        self.url = ""

    def of_images(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["kind"] == "image"]


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Content-Type"] == "application/json"
            web.tokens.add(self.headers["Authorization"])
            web.messages.append(message)
            status = web.answer(message)
            if status:
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", web.url)
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}/parts"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Broker:
    """A broker keeps what was published: (topic, message, QoS).

    ``deaf`` acknowledges nothing; ``refuses`` answers a connection as if user and password were wrong.
    """

    def __init__(self, port: int = 0) -> None:
        self.published: list[tuple[str, dict[str, Any], int]] = []
        self.users: list[tuple[bytes, bytes]] = []
        self.deaf = self.refuses = False
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for one in (self._server, *self._clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of_images(self, topic: str) -> list[dict[str, Any]]:
        return [message for at, message, _ in self.published if at == topic]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._clients.append(client)
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        try:
            while (first := stream.read(1)) and self._answer(client, first[0], stream.read(_length(stream))):
                pass
        except (OSError, ValueError, IndexError):  # the other end is gone, or speaks another language
            pass
        finally:
            stream.close()
            client.close()

    def _answer(self, client: socket.socket, first: int, body: bytes) -> bool:
        kind, qos = first >> 4, first >> 1 & 3
        if kind == 1:  # CONNECT
            if body[7] & 0x80:
                texts = _texts(body[10:])
                self.users.append((texts[-2], texts[-1]))
            client.sendall(bytes([0x20, 2, 0, 5 if self.refuses else 0]))
        elif kind == 3:  # PUBLISH
            size = struct.unpack(">H", body[:2])[0]
            topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
            self.published.append((topic, json.loads(rest[2 * bool(qos) :]), qos))
            if qos and not self.deaf:
                client.sendall(bytes([0x40, 2]) + rest[:2])
        elif kind == 12:  # PINGREQ
            client.sendall(bytes([0xD0, 0]))
        return kind != 14  # DISCONNECT


def _length(stream: Any) -> int:
    value, shift = 0, 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _texts(body: bytes) -> list[bytes]:
    texts = []
    while body:
        size = struct.unpack(">H", body[:2])[0]
        texts.append(body[2 : 2 + size])
        body = body[2 + size :]
    return texts
