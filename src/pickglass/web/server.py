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
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from pickglass.errors import InputError, PickglassError, UnknownName, shortened
from pickglass.web import explain, health, inspect, marks, pages, review, teach
from pickglass.web.metrics import Counted
from pickglass.web.safety import Guard
from pickglass.web.settings import ServeSettings
from pickglass.web.state import State, state_of

__all__ = ["Problem", "create_app", "serve", "serve_on"]

_LOG = logging.getLogger("pickglass.web")

_KEEP_ALIVE = 65  # seconds for which a connection is kept; longer than a client is told to wait by Retry-After
_PATIENCE = 10  # seconds in which requests are answered once the server is to end
_LONGEST = 400  # characters of what is said of wrong arguments
_PROBLEMS: dict[int | str, str] = {
    400: "What came cannot be used.",
    401: "A token is needed.",
    403: "The request is of a page of another site.",
    404: "There is no such thing.",
    408: "The body did not come in time.",
    409: "Somebody else has changed it meanwhile: look at it again.",
    413: "The body is too long.",
    415: "The body is of another type.",
    421: "The server does not answer for this host.",
    422: "An argument is missing, or of another kind.",
    500: "Something went wrong here.",
    503: "Too many images are waiting: come back after Retry-After seconds.",
}


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

    app = FastAPI(
        title="pickglass",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        responses={status: {"model": Problem, "description": meaning} for status, meaning in _PROBLEMS.items()},
    )
    app.state.pickglass = state
    app.add_middleware(Counted, metrics=state.metrics)
    app.add_exception_handler(PickglassError, _known)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unknown)
    for subject in (pages, inspect, health, review, marks, teach, explain):
        app.include_router(subject.router)
    app.router.routes.append(pages.static_files())
    return Guard(app, settings)


@contextmanager
def serve_on(settings: ServeSettings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give the address of a bound socket and the function that serves on it; leaving the block ends the server.

    Raises:
        InputError: the address cannot be had; also as :func:`create_app`.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"port {settings.port} of {settings.host} cannot be had ({error.strerror}): end what listens there, or "
            "name another one with --port"
        ) from error
    try:
        app = create_app(settings)
    except BaseException:
        listening.close()
        raise
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_PATIENCE,
    )
    server = uvicorn.Server(config)
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
        with suppress(KeyboardInterrupt):  # uvicorn ends in order, then raises the signal again
            run()


class Problem(TypedDict):
    """Something went wrong: what came, what was expected, and what to do."""

    error: str


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _gone(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the connection ended before the request did"}, 400)  # which nobody reads


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = [f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": shortened("; ".join(wrong), _LONGEST)}, 422)


async def _known(request: Request, error: Exception) -> JSONResponse:
    sentence = state_of(request).public(str(error))
    return JSONResponse({"error": sentence}, 404 if isinstance(error, UnknownName) else 400)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %r failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "something went wrong here; the server's log says what"}, 500)
