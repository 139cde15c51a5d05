"""The gateway's own counters for `/metrics`."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """The counters of one gateway. A label must not be a value from a path or body: such values are unlimited."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "aima_http_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "aima_http_request_seconds",
            "Duration of requests in seconds, to the end of the response.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._counter = cache(self._requests.labels)  # finding the labels costs ten times as much as counting
        self._timer = cache(self._seconds.labels)
        self.streams = Gauge("aima_http_streams", "Number of open event streams.", ("kind",), registry=self.registry)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an ended request. If the client left before the response, `status` is 0 and counts as 499."""
        route = getattr(scope.get("route"), "path", "none")
        self._counter(route, _method(scope["method"]), status or 499).inc()
        self._timer(route).observe(seconds)


def _method(method: str) -> str:
    """Return a standard method, or "other": a client must not be able to create labels."""
    return method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
