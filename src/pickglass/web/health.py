"""Whether the server lives, ``GET /health``, and what it has counted, ``GET /metrics``."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from pickglass.web.state import TheState

__all__ = ["Health"]

router = APIRouter(tags=["server"])


class Health(TypedDict):
    """The server judges images: ``status`` is ``ok``."""

    status: str


@router.get("/health")
def health(state: TheState) -> Health:
    """Say whether images are judged; it needs no token, and tells nothing else."""
    if not state.line.alive:
        raise HTTPException(503, "images are no longer judged: start the server anew")
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(state: TheState) -> Response:
    """Return the counts of requests, images and verdicts, and the served models, as Prometheus reads them."""
    return Response(state.metrics.text(state.models), media_type=CONTENT_TYPE_LATEST)
