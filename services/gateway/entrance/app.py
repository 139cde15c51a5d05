"""The routes of all doors, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.entrance.access import Policy
from services.gateway.entrance.error_bodies import HttpRefusal
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
    rates: RateLimiter,
    hosts: frozenset[str] | None,
    metrics: Metrics,
) -> ASGIApp:
    """Return the application: the gate around the routes, and around both what browsers ask beforehand."""
    router = Router(routes, default=_nothing, redirect_slashes=False)
    app: ASGIApp = Gate(router, policy, keys, rates, hosts, frozenset(settings.cors_origins), metrics.seen)
    if settings.cors_origins:
        app = CORSMiddleware(
            app, settings.cors_origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED
        )
    return app


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 (ASGI's signature)
    path = scope["path"]
    raise HttpRefusal(404, f"there is nothing at {path}; /openapi.json lists what there is", "NO_SUCH_PATH")
