"""The units over the bus that the settings name, or that `aima up` runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aima_core.bus.client import Answer, Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import OPERATOR, bus_user
from aima_core.bus.directory import DomainInfo, UnitInfo, read_info, unknown
from aima_core.errors import Unavailable
from aima_core.settings import URL_FILE, Settings, load
from services.cli import domains
from services.cli.door.door import CONNECT, down
from services.cli.supervisor.folder_lock import runs

_LOOK = 0.05  # seconds between looks for a bus that is being started


@contextlib.asynccontextmanager
async def bus(config: Path | None = None, *, wait: float = CONNECT, back: float | None = None) -> AsyncIterator[Client]:
    """Connect to the bus that the settings name, or that `aima up` runs; `back` is that of `connection.connect`.

    Raises Unavailable when there is none of either: whatever else listens on the usual port may be somebody else's.
    """
    found = await _named(config, wait)
    try:
        nc = await connect(found.nats.url, "aima-cli", user=bus_user(found, OPERATOR), wait=wait, back=back)
    except Unavailable as error:
        raise Unavailable(f"{error.message}; `aima up` starts one", **error.details) from error
    try:
        yield Client(nc)
    finally:
        await nc.close()


async def _named(config: Path | None, wait: float) -> Settings:
    """Return settings with the address of a bus of ours; one that is just being started gets so many seconds."""
    until = time.monotonic() + wait
    while True:
        found = settings(config)
        if has_bus(found):
            return found
        alive = runs(found.data)
        if not alive or time.monotonic() > until:
            state = "begins to run, or may not be looked at," if alive else "does not run"
            raise Unavailable(
                f"AIMA {state} on {found.data}; `aima up` starts it, nats.url names a bus elsewhere",
                reason="NOT_UP",
                data=str(found.data),
            )
        await asyncio.sleep(_LOOK)


def has_bus(found: Settings) -> bool:
    """Whether somebody has named the bus: the user, or the supervisor of the data folder, which lives."""
    told = found.origins.get("nats.url")
    return told is not None and (told != str(found.data / URL_FILE) or runs(found.data))


def settings(config: Path | None = None) -> Settings:
    """Return the settings that a client needs; the domains' own sections are theirs to check."""
    return load({}, path=config, partial=True)


class BusDoor:
    """The bus itself."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        """Return who answers to `$SRV.INFO`."""
        found = [read_info(info) for info in await self._client.discover(name)]
        return {info.name: info for info in sorted(found, key=lambda info: info.name)}

    async def describe(self, unit: str) -> UnitInfo:
        """Ask the unit's domain for it, and only when that does not have it all the others."""
        domain = unit.partition(".")[0]
        found = await self.domains(domain)
        if domain in found and unit in found[domain].units:
            return found[domain].units[unit]
        found = await self.domains()
        if domain not in found and domain in domains.names():
            raise down(domain, unit)
        raise unknown(unit, [name for info in found.values() for name in info.units])

    def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        """Yield the parts and the answer."""
        return self._client.stream(unit, data, timeout=timeout, headers=headers)

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer."""
        return await self._client.ask(unit, data, timeout=timeout, headers=headers)
