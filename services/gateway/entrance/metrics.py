"""What the gateway counts, for `/metrics`."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class Metrics:
    """Counters of one gateway. Labels are routes and statuses, never what stands in a path or a body."""

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
            "Seconds until a request had ended.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._labelled = cache(self._requests.labels)  # to find them anew costs ten times what counting does
        self._timed = cache(self._seconds.labels)
        self.streams = Gauge("aima_http_streams", "Event streams that are open.", ("kind",), registry=self.registry)

    def seen(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended; status 0 is one whose client went away unanswered."""
        route = getattr(scope.get("route"), "path", "none")
        self._labelled(route, _method(scope["method"]), status or 499).inc()
        self._timed(route).observe(seconds)


def _method(given: str) -> str:
    """Return the method, if it is one: a label must not be the client's to choose."""
    return given if given in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
