"""Serves `/health` and `/api/v2/health`.

`/health` answers while the gateway runs. `/api/v2/health` checks the gateway's dependencies: the bus, JetStream and the
domains.
"""

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

_FRESH = 1.0  # seconds that JetStream's state is cached; requests for it need no key and have no rate limit
_TIMEOUT = 1.0  # seconds for JetStream to answer

Dependencies = dict[str, bool]


class HealthApi:
    """Checks the bus, JetStream, and every domain that was ever on the bus."""

    def __init__(self, nc: Nats, directory: Directory) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=_TIMEOUT)
        self._directory = directory
        self._checked_at = 0.0
        self._jetstream = False

    def routes(self) -> list[Route]:
        return [fixed_path("/health", {"GET": self.alive}), fixed_path("/api/v2/health", {"GET": self.health})]

    async def alive(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Return 200, which shows that the process serves requests."""
        return json({"status": "ok"})

    async def health(self, request: Request) -> Response:
        """Return the state of each dependency. With `ready=true`, return 503 if a dependency is missing."""
        ready = _ready(bodies.query_of(request))
        dependencies = await self._check()
        missing = [name for name, ok in dependencies.items() if not ok]
        states = {name: "ok" if ok else "missing" for name, ok in dependencies.items()}
        if ready and missing:
            raise Unavailable(
                f"the gateway is not ready; missing: {', '.join(missing)}",
                reason="NOT_READY",
                missing=missing,
                dependencies=states,
            )
        return json({"status": "degraded" if missing else "ok", "dependencies": states, "missing": missing})

    async def _check(self) -> Dependencies:
        domains = domains_here(self._directory)
        return {"bus": self._nc.is_connected, "jetstream": await self._has_jetstream(), **domains}

    async def _has_jetstream(self) -> bool:
        if not self._nc.is_connected:
            return False
        if time.monotonic() - self._checked_at > _FRESH:
            try:
                await self._js.account_info()
                self._jetstream = True
            except BUS_AWAY:
                self._jetstream = False
            self._checked_at = time.monotonic()
        return self._jetstream


def domains_here(directory: Directory) -> Dependencies:
    """Return every domain that was ever on the bus, and whether the domain is on the bus now."""
    missing = directory.away()
    return {name: name not in missing for name in sorted({*directory.domains, *missing})}


def _ready(pairs: list[tuple[str, str]]) -> bool:
    ready = False
    for name, text in pairs:
        if name != "ready" or text not in ("true", "false", ""):
            field = {"field": name[:100], "expected": "ready=true or ready=false"}
            raise ValidationFailed(f"{name[:100]}: expected ready=true or ready=false", fields=[field])
        ready = text == "true"
    return ready
