"""The server: one application a process, made of a router for each subject.

``create_app`` puts it together; tests call it, too. Each router lives in a file of its own and gets the
:class:`~pickglass.web.state.State` as a parameter. An error of pickglass becomes an answer of status 400 (an argument
or image cannot be used) or 404 (a name that does not exist) with ``{"error": SENTENCE}``; any other error is a 500
without details.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from pickglass.errors import InputError, PickglassError, UnknownName
from pickglass.web import explain, pages
from pickglass.web.safety import Guard
from pickglass.web.settings import ServeSettings
from pickglass.web.state import State

__all__ = ["create_app", "serve", "serve_on"]

_LOG = logging.getLogger("pickglass.web")


def create_app(settings: ServeSettings) -> Guard:
    """Make the application; models are loaded, and a broken one is an error right here.

    Returns:
        The guard, outermost, so that each answer carries its headers; the FastAPI application is its ``app``.

    Raises:
        InputError: no model, or a folder that cannot be made.
        ModelFileError: a model cannot be read.
    """
    state = State(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.close()

    app = FastAPI(title="pickglass", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.pickglass = state
    app.add_exception_handler(PickglassError, _known)
    app.add_exception_handler(Exception, _unknown)
    for router in (pages.router, explain.router):
        app.include_router(router)
    app.router.routes.append(pages.static_files())
    return Guard(app, settings)


@contextmanager
def serve_on(settings: ServeSettings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give the address of a bound socket and the function that serves on it; leaving the block ends the server.

    Raises:
        InputError: the address cannot be had; also as :func:`create_app`.
    """
    app = create_app(settings)
    config = uvicorn.Config(app, log_level="warning", server_header=False, access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"port {settings.port} of {settings.host} cannot be had ({error.strerror}): end what listens there, or "
            "name another one with --port"
        ) from error
    host, port = listening.getsockname()[:2]
    try:
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", lambda: server.run([listening])
    finally:
        server.should_exit = True


def serve(settings: ServeSettings, ready: Callable[[str], None] | None = None) -> None:
    """Listen until a signal ends it.

    Args:
        settings: models, address, limits.
        ready: called with the page's address once it can be opened.
    """
    with serve_on(settings) as (address, run):
        if ready is not None:
            ready(address)
        run()


async def _known(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, UnknownName) else 400)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)
