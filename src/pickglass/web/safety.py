"""Who may ask, and how much: hosts, origins, token, size of a request, and the headers of each answer.

A page of another site must not use the server of a person who visits it. Such a request names a foreign ``Origin``, or
``Sec-Fetch-Site: cross-site``, or, after DNS rebinding, a foreign ``Host``; all three are refused before anything else
is looked at. With a token, requests carry it as ``Authorization: Bearer TOKEN``; a cookie (HttpOnly, SameSite=Strict)
counts only for pages and pictures that are read, so that nothing can be changed by a cookie.

Written as plain ASGI, so that bodies and streams pass through without a copy.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pickglass.web.settings import ServeSettings, is_loopback

__all__ = ["COOKIE", "HEADERS", "Guard", "session_of"]

COOKIE = "pickglass"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
"""Every answer carries them. A page that brings a policy of its own, such as a report, keeps it."""

_OPEN = ("/login", "/static/", "/health")  # without a token: the way in, its style and script, and the probe
_READ_ONLY = ("GET", "HEAD")


class Guard:
    """Each request passes this guard first: host, origin, token, size."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not pass, and hand on the others."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks in web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.settings.max_bytes:
                raise _TooLong
            return message

        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                have = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_encoded(HEADERS.items(), have)]
            await send(message)

        try:
            await self.app(scope, limited, with_headers)
        except _TooLong:
            if not started:
                await _answer(send, 413, self._too_long())

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and sentence for a request that may not pass, None for one that may."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._own_host(host):
            return 421, f"this server does not answer for the host {host!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "requests of pages of other sites are refused"
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "requests of pages of other sites are refused"
        if not self._has_token(scope, headers):
            return 401, "a token is needed: open /login in a browser, or send 'Authorization: Bearer TOKEN'"
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.settings.max_bytes:
            return 413, self._too_long()
        return None

    def _own_host(self, host: str) -> bool:
        """Without a token the server is for this machine alone, and goes by no other name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return self.settings.token is not None or is_loopback(name)

    def _has_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        token = self.settings.token
        path: str = scope["path"]
        if token is None or any(path == way or (way[-1] == "/" and path.startswith(way)) for way in _OPEN):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _equal(given, token)
        if scope["method"] in _READ_ONLY:
            return _equal(_cookie(headers.get("cookie", "")), session_of(token))
        return False

    def _too_long(self) -> str:
        return f"the request is longer than {self.settings.max_bytes / 2**20:g} MB"


def session_of(token: str) -> str:
    """Return what the cookie holds: a digest, so that the cookie does not give the token away."""
    return hmac.new(token.encode(), b"pickglass page", hashlib.sha256).hexdigest()


class _TooLong(Exception):
    """A body goes on beyond the limit."""


def _equal(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _encoded(headers: Iterable[tuple[str, str]], have: set[bytes]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers if name.encode() not in have]


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, *_encoded(HEADERS.items(), set())]}
    )
    await send({"type": "http.response.body", "body": body})
