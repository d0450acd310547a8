"""Who may ask, and how much: hosts, origins, token, size of a request, and the headers of each answer.

A page of another site must not use the server of a person who visits it. Such a request names a foreign ``Origin``, or
another ``Sec-Fetch-Site`` than its own, or, after DNS rebinding, a foreign ``Host``; all three are refused before
anything else is looked at, save that a link may lead here. With a token, requests carry it as
``Authorization: Bearer TOKEN``; a cookie (HttpOnly, SameSite=Strict) counts only for pages and pictures that are read,
so that nothing can be changed by a cookie. A browser without either is sent to the page that asks for the token.

Written as plain ASGI, so that bodies and streams pass through without a copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections import Counter
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pickglass.errors import shortened
from pickglass.web.settings import ServeSettings, is_loopback

__all__ = ["COOKIE", "HEADERS", "Guard", "session_of", "too_long", "without_paths"]

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
    "cache-control": "no-cache",
}
"""Every answer carries them. A page that brings a policy of its own, such as a report, keeps it."""

_ONCE = ("host", "origin", "authorization", "content-length", "sec-fetch-site")  # which of two would count?
_FOLDERS = re.compile(r"(?<![\w./\\])(?!/api/)(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":;,()]+[/\\])+")

_OPEN = ("/login", "/static/", "/health")  # without a token: the way in, its style and script, and the probe
_READ_ONLY = ("GET", "HEAD")
_SECONDS = 60.0  # in which a body must have come
_DRAIN_BYTES, _DRAIN_SECONDS = 16 * 2**20, 5.0  # what is read of a body that nobody wants


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
        body = _Body(receive, self.settings.max_bytes, any(_announces(*header) for header in scope["headers"]))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain(scope)
                have = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *_encoded(HEADERS.items(), have)]
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await _answer(with_headers, *refused, opens_page=_opens_page(scope))
            return
        await self.app(scope, body.receive, with_headers)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and sentence for a request that may not pass, None for one that may."""
        listed = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        twice = [name for name, n in Counter(name for name, _ in listed).items() if n > 1 and name in _ONCE]
        if twice:
            return 400, f"the header {twice[0]!r} came more than once, expected it once"
        headers = dict(listed)
        host = headers.get("host", "")
        if not self._own_host(host):
            return 421, f"this server does not answer for the host {shortened(host)}"
        if not _own_page(scope["method"], host, headers):
            return 403, "requests of pages of other sites are refused"
        if not self._has_token(scope, headers):
            return 401, "a token is needed: open /login in a browser, or send 'Authorization: Bearer TOKEN'"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return 400, f"Content-Length {shortened(length)}: expected a number of bytes"
        if int(length) > self.settings.max_bytes:
            return 413, too_long(self.settings.max_bytes)
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


class _Body:
    """The body of a request is read within its length and time, and read to its end before an answer begins.

    Who sends a body and is answered amid it gets no answer but a broken connection, for what was not read breaks it.
    One at a time waits for the next part: an answer that is a file listens beside for the client to go away, and of two
    that wait for the last part the second would wait in vain.
    """

    def __init__(self, receive: Receive, most: int, comes: bool) -> None:
        self._receive, self._most = receive, most
        self._taken, self._ended = 0, not comes
        self._turn = asyncio.Lock()
        self._until = asyncio.get_running_loop().time() + _SECONDS

    async def receive(self) -> Message:
        """Return the next part.

        Raises:
            HTTPException: 413, the body did not say how long it is, and goes on beyond the limit; 408, it took too
                long.
        """
        async with self._turn:
            if not self._ended:
                return await self._part()
        return await self._receive()  # what comes now is that the client went away

    async def _part(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), self._until - asyncio.get_running_loop().time())
        except asyncio.TimeoutError:
            self._ended = True  # nobody waits for the rest
            raise HTTPException(408, f"the request did not come within {_SECONDS:g} seconds") from None
        self._taken += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._taken > self._most:
            raise HTTPException(413, too_long(self._most))
        return message

    async def drain(self, scope: Scope) -> None:
        """Read what is left of the body, unless it is long, slow, or not sent before it is asked for."""
        if self._taken == 0 and any(name == b"expect" for name, _ in scope["headers"]):
            return
        try:
            await asyncio.wait_for(self._rest(), _DRAIN_SECONDS)
        except asyncio.TimeoutError:
            return

    async def _rest(self) -> None:
        left = _DRAIN_BYTES
        while left > 0:
            async with self._turn:
                if self._ended:
                    return
                message = await self._receive()
                left -= len(message.get("body", b""))
                self._ended = not message.get("more_body", False)


def _announces(name: bytes, value: bytes) -> bool:
    """Whether a header says that a body comes."""
    return name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")


def too_long(most: int) -> str:
    """Say that a body is longer than so many bytes."""
    return f"the request is longer than {most / 2**20:g} MB"


def session_of(token: str) -> str:
    """Return what the cookie holds: a digest, so that the cookie does not give the token away."""
    return hmac.new(token.encode(), b"pickglass page", hashlib.sha256).hexdigest()


def without_paths(sentence: str, folders: Iterable[Path]) -> str:
    """Return a sentence in which files are named without their folders: where they lie is nobody's business.

    Args:
        sentence: for people.
        folders: those that may occur, with spaces or relative; any other is known by its beginning with a slash.

    >>> without_paths("'/srv/line 3/bottle.onnx' is damaged, as is /tmp/x/y.png", [Path("/srv/line 3")])
    "'bottle.onnx' is damaged, as is y.png"
    """
    known = {str(path) for folder in folders for path in (folder, folder.resolve())} - {".", "/"}
    for path in sorted(known, key=len, reverse=True):
        for mark in "/\\":
            sentence = sentence.replace(path + mark, "")
        sentence = re.sub(rf"(?<![\w./\\-]){re.escape(path)}(?![\w./\\-])", Path(path).name, sentence)
    return _FOLDERS.sub("", sentence)


def _own_page(method: str, host: str, headers: dict[str, str]) -> bool:
    """Say whether a request may come from where it says: from a page of this server, from no page, or by a link."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return False
    if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
        return True
    link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
    return link and method in _READ_ONLY


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


def _opens_page(scope: Scope) -> bool:
    """Say whether a browser wants to show the answer as a page."""
    accepted = next((value for name, value in scope["headers"] if name == b"accept"), b"")
    return scope["method"] == "GET" and b"text/html" in accepted


async def _answer(send: Send, status: int, sentence: str, opens_page: bool) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401 and opens_page:
        status = 303
        headers.append((b"location", b"/login"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
