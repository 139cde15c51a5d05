"""How the gateway is: `/health` says that it serves, `/api/v2/health` whether what it needs does."""

from __future__ import annotations

import time

from nats.aio.client import Client as Nats
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.bus.directory import Directory
from aima_core.errors import Unavailable, ValidationFailed
from services.gateway.entrance import bodies
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.paths import fixed_path
from services.gateway.events.feed import BUS_AWAY

_FRESH = 1.0  # seconds that an answer is used again: anybody may ask as often as they like
_PATIENCE = 1.0  # seconds for JetStream to answer

Dependencies = dict[str, bool]


class HealthApi:
    """Looks at the bus, JetStream, and every domain that has been seen."""

    def __init__(self, nc: Nats, directory: Directory) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=_PATIENCE)
        self._directory = directory
        self._at = 0.0
        self._jetstream = False

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [fixed_path("/health", {"GET": self.alive}), fixed_path("/api/v2/health", {"GET": self.health})]

    async def alive(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Say that the process serves."""
        return json({"status": "ok"})

    async def health(self, request: Request) -> Response:
        """Tell how each dependency is; with `ready=true`, 503 when one is missing."""
        ready = _ready(bodies.query_of(request))
        found = await self._look()
        missing = [name for name, here in found.items() if not here]
        told = {name: "ok" if here else "missing" for name, here in found.items()}
        if ready and missing:
            raise Unavailable(
                f"not ready: {', '.join(missing)} missing", reason="NOT_READY", missing=missing, dependencies=told
            )
        return json({"status": "degraded" if missing else "ok", "dependencies": told, "missing": missing})

    async def _look(self) -> Dependencies:
        domains = domains_here(self._directory)
        return {"bus": self._nc.is_connected, "jetstream": await self._has_jetstream(), **domains}

    async def _has_jetstream(self) -> bool:
        if not self._nc.is_connected:
            return False
        if time.monotonic() - self._at > _FRESH:
            try:
                await self._js.account_info()
                self._jetstream = True
            except BUS_AWAY:
                self._jetstream = False
            self._at = time.monotonic()
        return self._jetstream


def domains_here(directory: Directory) -> Dependencies:
    """Return of each domain that has been seen whether it answers now."""
    away = directory.away()
    return {name: name not in away for name in sorted({*directory.domains, *away})}


def _ready(pairs: list[tuple[str, str]]) -> bool:
    ready = False
    for name, text in pairs:
        if name != "ready" or text not in ("true", "false", ""):
            told = {"field": name[:100], "expected": "ready=true or ready=false"}
            raise ValidationFailed(f"{name[:100]}: expected ready=true or ready=false", fields=[told])
        ready = text == "true"
    return ready
