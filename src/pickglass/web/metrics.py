"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pickglass.web.models import Models

__all__ = ["Counted", "Metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counts of one server, in a registry of its own.

    Attributes:
        requests: answers by route and status.
        seconds: from the first byte of a request to the end of its answer, by route.
        images: judged images by model and verdict: ``failed`` for those that cannot be read, ``none`` without a
            threshold.
        waiting: requests that have a place in the line.
        refused: requests that found no place.
    """

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("pickglass_requests", "Answers.", ["method", "route", "status"], registry=own)
        self.seconds = Histogram(
            "pickglass_request_seconds", "Seconds of a request.", ["route"], registry=own, buckets=_SECONDS
        )
        self.images = Counter("pickglass_images", "Judged images.", ["model", "verdict"], registry=own)
        self.waiting = Gauge("pickglass_waiting", "Requests that wait for a model.", registry=own)
        self.refused = Counter("pickglass_refused", "Requests that found no place.", registry=own)
        self._about = Gauge("pickglass_model_info", "The served models.", ["model", "id", "version"], registry=own)
        self._replaced = Gauge("pickglass_model_replaced", "Models that took over.", ["model"], registry=own)

    def text(self, models: Models) -> bytes:
        """Return all of it, and what the served models are now."""
        self._about.clear()
        for served in models:
            now = served.now
            self._about.labels(served.name, now.id, str(now.version)).set(1)
            self._replaced.labels(served.name).set(served.replaced)
        return generate_latest(self._registry)


class Counted:
    """Each answer is counted, by its route and not by its address, of which there are endless many."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on a request, and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            route: Any = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(_method(scope["method"]), route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)


def _method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
