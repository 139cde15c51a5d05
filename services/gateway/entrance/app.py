"""Assembles the ASGI application. A request passes CORS, then the gate, then the first route that matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.entrance.access import Policy
from services.gateway.entrance.error_bodies import no_such_path
from services.gateway.entrance.gate import Gate
from services.gateway.entrance.metrics import Metrics
from services.gateway.entrance.rate_limits import RateLimiter
from services.gateway.settings import GatewaySettings
from services.gateway.state import Key

_EXPOSED = ["Aima-Request-Id", "Retry-After", "Location", "Mcp-Session-Id"]


def assemble(
    routes: Sequence[BaseRoute],
    settings: GatewaySettings,
    policy: Policy,
    keys: Mapping[str, Key],
    limiter: RateLimiter,
    hosts: frozenset[str] | None,
    metrics: Metrics,
) -> ASGIApp:
    """Return the application. CORS comes before the gate, because browsers send preflight requests without a key."""
    router = Router(routes, default=_not_found, redirect_slashes=False)
    app: ASGIApp = Gate(router, policy, keys, limiter, hosts, frozenset(settings.cors_origins), metrics.count)
    if settings.cors_origins:
        app = CORSMiddleware(
            app, settings.cors_origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED
        )
    return app


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 (ASGI's signature)
    raise no_such_path(scope["path"])
