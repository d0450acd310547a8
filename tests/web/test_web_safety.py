"""Who may ask: hosts, origins, tokens, sizes; and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import product
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page
from serving import Settings, client_of, live
from starlette.types import Message, Receive, Scope, Send

from pickglass.errors import InputError
from pickglass.web import safety
from pickglass.web.safety import HEADERS, Guard
from pickglass.web.settings import ServeSettings

TOKEN = "a-token-of-some-length"


def test_every_answer_has_the_headers(shared: TestClient) -> None:
    for path in ("/", "/static/common.js", "/static/page.css", "/nowhere", "/static/../server.py"):
        answer = shared.get(path)
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": ""}, 421),
        ({"host": "[::1"}, 421),
        ({"host": "127.0.0.1@evil.example"}, 421),
        ({"host": "2130706433"}, 421),
        ({"host": "localhost:8000", "origin": "http://localhost:3000"}, 403),
        ({"origin": "http://127.0.0.1@evil.example"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "file://127.0.0.1"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),  # another port of this machine
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),  # a link
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
    ],
)
def test_other_sites_are_refused(shared: TestClient, headers: dict[str, str], status: int) -> None:
    assert shared.get("/", headers=headers).status_code == status


def test_a_form_of_another_site_is_refused(shared: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert shared.post("/api/session", headers=link).status_code == 403
    assert shared.post("/api/session").status_code == 200


@pytest.mark.parametrize("name", ["host", "origin", "authorization", "sec-fetch-site"])
def test_a_header_that_comes_twice_is_refused(shared: TestClient, name: str) -> None:
    value = {"host": "127.0.0.1", "origin": "http://127.0.0.1"}.get(name, "same-origin")
    answer = shared.get("/", headers=[(name, value), (name, "evil.example")])
    assert answer.status_code == 400
    assert "more than once" in answer.json()["error"]


ODD_PATHS = ("/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd",
             "/static/..%5cserver.py", "/static/%00", "/static/", "//etc/passwd", "/nowhere")  # fmt: skip


def test_no_path_leads_out(settings: Settings) -> None:
    with client_of(settings(token=TOKEN)) as client:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        for path in ODD_PATHS:
            answer = client.get(path, headers=bearer)
            assert (answer.status_code, list(answer.json())) == (404, ["error"]), path
        for path in ("/login/../models", "/static/../models", "/health/../models", "/health//models"):  # past the token
            assert client.get(path).status_code in (401, 404), path


def test_other_methods_are_refused(shared: TestClient) -> None:
    for method in ("DELETE", "TRACE", "PUT", "GET"):
        answer = shared.request(method, "/inspect")
        assert (answer.status_code, list(answer.json())) == (405, ["error"]), method


def test_sentences_tell_no_folder(client: TestClient) -> None:
    state = client.app.app.state.pickglass  # type: ignore[attr-defined]
    model = state.settings.models[0]
    assert state.public(f"{model}: damaged") == f"{model.name}: damaged"
    assert state.public(f"{str(model.parent)!r} is gone") == "'models' is gone"
    assert state.public("no such file: '/srv/line/a.png', D:\\parts\\b.png") == "no such file: 'a.png', b.png"
    assert state.public("GET /models, and/or /api/review/images") == "GET /models, and/or /api/review/images"


def test_a_token_is_asked_for(settings: Settings) -> None:
    with client_of(settings(token=TOKEN, host="0.0.0.0")) as client:
        assert client.get("/").status_code == 401
        assert client.get("/login").status_code == 200
        sent = client.get("/", headers={"accept": "text/html,*/*"}, follow_redirects=False)
        assert (sent.status_code, sent.headers["location"]) == (303, "/login")
        assert client.post("/inspect", headers={"accept": "text/html"}).status_code == 401
        assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/", headers={"authorization": "Bearer something-else-entirely"}).status_code == 401
        assert client.post("/api/session").status_code == 401
        assert client.post("/api/session", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/").status_code == 200  # by the cookie
        assert client.post("/api/session").status_code == 401  # which changes nothing


@pytest.mark.parametrize("length", [None, b"0", b"3"])
def test_who_listens_beside_an_answer_does_not_delay_it(
    exported_model: Path, monkeypatch: pytest.MonkeyPatch, length: bytes | None
) -> None:
    """An answer that is a file listens for the client to go away: each of a page's files came five seconds late."""
    monkeypatch.setattr(safety, "_DRAIN_SECONDS", 3600)
    waiting = [{"type": "http.request", "body": b"abc" if length == b"3" else b"", "more_body": False}]

    async def receive() -> Message:
        await asyncio.sleep(0)
        if waiting:
            return waiting.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            while True:
                await receive()

        beside = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        beside.cancel()

    async def sent(message: Message) -> None:
        pass

    headers = [(b"host", b"127.0.0.1"), *([] if length is None else [(b"content-length", length)])]
    scope = {"type": "http", "method": "GET", "path": "/static/page.css", "headers": headers}

    async def asked() -> None:
        await asyncio.wait_for(Guard(answers, ServeSettings((exported_model,)))(scope, receive, sent), 30)

    with ThreadPoolExecutor(1) as pool:  # this thread may have the loop of a browser
        pool.submit(lambda: asyncio.run(asked())).result()


def test_a_body_that_is_not_wanted_is_read_before_the_answer(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety, "_SECONDS", 0.1)
    with live(settings(token=TOKEN)) as address:
        port = int(address.rpartition(":")[2])
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}, 415)):
            connection.request("POST", "/inspect", bytes(12 * 2**20), headers)
            answer = connection.getresponse()
            assert answer.status == status
            assert json.loads(answer.read())["error"]
        bodies = [("/inspect", "image/png"), ("/api/explain", "image/png"), ("/api/see", "image/png")]
        bodies += [
            ("/api/marks/images", "image/png"),
            ("/api/marks", "application/json"),
            ("/api/marks/table", "text/csv"),
        ]
        for (path, kind), stays in product(bodies, (True, False)):  # amid its body
            with socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
                lines = (
                    f"POST {path} HTTP/1.1",
                    "Host: 127.0.0.1",
                    f"Authorization: Bearer {TOKEN}",
                    f"Content-Type: {kind}",
                    "Content-Length: 999",
                )
                slow.sendall("\r\n".join((*lines, "", "abc")).encode())
                if stays:
                    assert slow.recv(99).startswith(b"HTTP/1.1 408 ")
        for _ in range(2):
            connection.request("GET", "/health")
            assert json.loads(connection.getresponse().read()) == {"status": "ok"}
        connection.close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(("changed", "reason"), [({"host": "0.0.0.0"}, "token"), ({"token": "short"}, "at least 16")])
def test_settings_that_are_not_safe_are_refused(settings: Settings, changed: dict[str, str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        settings(**changed)


@pytest.mark.slow
def test_the_frame_in_a_browser(settings: Settings, page: Page) -> None:
    with live(settings(token=TOKEN)) as address:
        page.goto(address + "/login")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(address + "/")
        for name in ("Inspect", "Review", "Teach", "See"):
            page.get_by_role("link", name=name, exact=True).click()
            assert page.get_by_role("heading", level=1).inner_text() == name


def test_style_and_scripts_come_from_files() -> None:
    folder = Path(__file__).parents[2] / "src" / "pickglass" / "web" / "templates"
    for template in folder.glob("*.j2"):
        text = template.read_text()
        assert "style=" not in text, template
        assert "onclick=" not in text, template
        assert "<style" not in text, template
