"""What the gateway counts, in Prometheus's text format at `/metrics`."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """Counters of one gateway. Labels are routes and statuses, never what stands in a path or a body."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "aima_http_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "aima_http_request_seconds",
            "Seconds until a request had ended.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._labelled = cache(self._requests.labels)  # to find them anew costs ten times what counting does
        self._timed = cache(self._seconds.labels)
        self.streams = Gauge("aima_http_streams", "Event streams that are open.", ("kind",), registry=self._registry)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/metrics", self.show, methods=["GET"])]

    def seen(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended; status 0 is one whose client went away unanswered."""
        route = getattr(scope.get("route"), "path", "none")
        self._labelled(route, _method(scope["method"]), status or 499).inc()
        self._timed(route).observe(seconds)

    async def show(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Tell all of it."""
        return Response(generate_latest(self._registry), media_type=_FORMAT)


def _method(given: str) -> str:
    """Return the method, if it is one: a label must not be the client's to choose."""
    return given if given in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
