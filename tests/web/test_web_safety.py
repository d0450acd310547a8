"""Who may ask: hosts, origins, tokens, sizes; and what every answer carries."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page
from serving import Settings, client_of, live

from pickglass.errors import InputError
from pickglass.web.safety import HEADERS

TOKEN = "a-token-of-some-length"


def test_every_answer_has_the_headers(client: TestClient) -> None:
    for path in ("/", "/static/common.js", "/static/page.css", "/nowhere", "/static/../server.py"):
        answer = client.get(path)
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
    ],
)
def test_other_sites_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/", headers=headers).status_code == status


def test_a_token_is_asked_for(settings: Settings) -> None:
    with client_of(settings(token=TOKEN, host="0.0.0.0")) as client:
        assert client.get("/").status_code == 401
        assert client.get("/login").status_code == 200
        assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/", headers={"authorization": "Bearer something-else-entirely"}).status_code == 401
        assert client.post("/api/session").status_code == 401
        assert client.post("/api/session", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/").status_code == 200  # by the cookie
        assert client.post("/api/session").status_code == 401  # which changes nothing


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
