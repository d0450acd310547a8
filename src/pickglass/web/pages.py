"""The pages themselves: templates filled once, style and scripts as files of their own, a way in with a token."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from starlette.routing import BaseRoute, Mount

from pickglass.app.pages.images import HEAT_COLOURS
from pickglass.errors import UnknownName
from pickglass.web.safety import COOKIE, session_of
from pickglass.web.state import State, TheState

__all__ = ["PAGES", "router", "static_files"]

_FOLDER = Path(__file__).parent
_SHARED = _FOLDER.parent / "app" / "pages" / "page.css"

PAGES = {
    "/": ("inspect", "Inspect"),
    "/review": ("review", "Review"),
    "/teach": ("teach", "Teach"),
    "/see": ("see", "See"),
}
"""Address of each page: its template and script, and what the navigation calls it."""

_ALONE = (
    "sandbox allow-scripts allow-downloads allow-modals; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The policy of a page that is one file: of the site's origin it has nothing."""

router = APIRouter(include_in_schema=False)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(state: State, template: str, title: str, address: str) -> str:
    values: dict[str, Any] = {
        "title": title,
        "page": template,
        "address": address,
        "pages": [(where, name) for where, (_, name) in PAGES.items()],
        "models": [served.name for served in state.models],
        "has_data": state.settings.data is not None,
        "has_watch": state.settings.watch is not None,
        "has_token": state.settings.token is not None,
        "written": [page.stem for page in state.settings.pages],
    }
    return _templates().get_template(f"{template}.html.j2").render(values)


@router.get("/")
def inspect_page(state: TheState) -> HTMLResponse:
    """Return the page on which images are judged."""
    return HTMLResponse(_page(state, "inspect", "Inspect", "/"))


@router.get("/review")
def review_page(state: TheState) -> HTMLResponse:
    """Return the page on which a data set is looked through and thresholds are set."""
    return HTMLResponse(_page(state, "review", "Review", "/review"))


@router.get("/teach")
def teach_page(state: TheState) -> HTMLResponse:
    """Return the page on which people's marks become an update of the model."""
    return HTMLResponse(_page(state, "teach", "Teach", "/teach"))


@router.get("/see")
def see_page(state: TheState) -> HTMLResponse:
    """Return the page that shows what the model's layers see."""
    return HTMLResponse(_page(state, "see", "See", "/see"))


@router.get("/see/pages/{number}")
def written_page(number: int, state: TheState) -> FileResponse:
    """Return a page that pickglass wrote. Its script runs, and reaches nothing of this server or of any other."""
    pages = state.settings.pages
    if not 0 <= number < len(pages):
        raise UnknownName("page", number, [], f"there are {len(pages)}, numbered from 0 on")
    return FileResponse(pages[number], media_type="text/html", headers={"content-security-policy": _ALONE})


@router.get("/login")
def login_page(state: TheState) -> HTMLResponse:
    """Return the page that asks for the token."""
    return HTMLResponse(_page(state, "login", "Sign in", "/login"))


@router.post("/api/session")
def session(state: TheState, request: Request) -> JSONResponse:
    """Give a browser that showed the token the cookie with which pages and pictures are read."""
    answer = JSONResponse({"ok": True})
    if state.settings.token is not None:
        secure = request.url.scheme == "https"  # behind a proxy on this machine that says so
        answer.set_cookie(COOKIE, session_of(state.settings.token), httponly=True, samesite="strict", secure=secure)
    return answer


@router.get("/static/page.css")
def shared_style() -> Response:
    """Return the style sheet that reports have, too."""
    return Response(_SHARED.read_bytes(), media_type="text/css")


@router.get("/static/heat.png")
def heat_colours() -> Response:
    """Return the colours of heat maps side by side, the lowest value on the left, as reports have them."""
    buffer = io.BytesIO()
    Image.fromarray(HEAT_COLOURS[None]).save(buffer, "PNG")  # (1, 256, 3)
    return Response(buffer.getvalue(), media_type="image/png", headers={"cache-control": "no-cache"})


class _Static(StaticFiles):
    """Files of the package; a path that no file system knows is as absent as any other."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return the file of a path and what the system says of it; None: there is no such file."""
        return ("", None) if "\0" in path else super().lookup_path(path)  # older versions of Starlette fail over NUL


def static_files() -> BaseRoute:
    """Return the route of scripts and style sheets, which are files of the package and nothing else."""
    return Mount("/static", _Static(directory=_FOLDER / "static"), name="static")
