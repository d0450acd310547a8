"""Servers for tests: in this process with a client, or on a port of loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi.testclient import TestClient

from pickglass.web.server import create_app, serve_on
from pickglass.web.settings import ServeSettings

__all__ = ["Settings", "client_of", "live"]

Settings = Callable[..., ServeSettings]


@contextmanager
def client_of(settings: ServeSettings, **headers: str) -> Iterator[TestClient]:
    """Give a client of an application in this process."""
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def live(settings: ServeSettings) -> Iterator[str]:
    """Give the address of a server that listens on loopback in a thread."""
    with serve_on(settings) as (address, run):
        server = threading.Thread(target=run, daemon=True)
        server.start()
        yield address
    server.join(20)
    assert not server.is_alive()
