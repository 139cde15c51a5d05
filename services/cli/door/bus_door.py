"""The door over the bus: the bus in the settings or, if there is none, the bus that `aima up` runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aima_core.bus.address import published_url
from aima_core.bus.client import Answer, Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import OPERATOR, bus_user
from aima_core.bus.directory import DomainInfo, UnitInfo, read_info, unknown
from aima_core.errors import Unavailable
from services.cli import domains
from services.cli.door import client_settings, known_processes
from services.cli.door.client_settings import ClientSettings
from services.cli.door.door import CONNECT, down
from services.cli.supervisor.folder_lock import runs

_BUSY = 5.0  # seconds for a domain on the bus to describe itself, even if it is busy
_POLL = 0.05  # seconds between two checks whether a starting bus is ready


@contextlib.asynccontextmanager
async def bus(config: Path | None = None, *, wait: float = CONNECT, back: float | None = None) -> AsyncIterator[Client]:
    """Yield a client of the bus in the settings, or of the bus that `aima up` runs.

    `wait`: seconds to wait for the bus. `back`: seconds to reconnect after a lost connection; None: without end. Raises
    Unavailable if neither bus exists. Never tries the default port, whose server may belong to another program.
    """
    async with open_bus(config, wait=wait, back=back) as door:
        yield door.client


@contextlib.asynccontextmanager
async def open_bus(
    config: Path | None = None, *, wait: float = CONNECT, back: float | None = None
) -> AsyncIterator[BusDoor]:
    """Connect as `bus` does, but yield the bus as a door."""
    loaded = await _await_bus(config, wait)
    try:
        nc = await connect(loaded.nats.url, "aima-cli", user=bus_user(loaded, OPERATOR), wait=wait, back=back)
    except Unavailable as error:
        raise Unavailable(f"{error.message}; start AIMA with `aima up`", **error.details) from error
    try:
        yield BusDoor(Client(nc), loaded)
    finally:
        await nc.close()


async def _await_bus(config: Path | None, wait: float) -> ClientSettings:
    """Return the settings once they contain the address of a bus; wait up to `wait` seconds for a starting bus."""
    until = time.monotonic() + wait
    while True:
        loaded = client_settings.read(config)
        if has_bus(loaded):
            return loaded
        alive = runs(loaded.data)
        if not alive or time.monotonic() > until:
            problem = (
                f"AIMA on {loaded.data} has no bus yet, or its lock file cannot be read; try again"
                if alive
                else f"AIMA does not run on {loaded.data}; start it with `aima up`"
            )
            raise Unavailable(
                f"{problem}, or set nats.url to use another bus",
                reason="NOT_UP",
                data=str(loaded.data),
            )
        await asyncio.sleep(_POLL)


def has_bus(loaded: ClientSettings) -> bool:
    """Whether the user configured a bus, or a running supervisor published one in the data folder."""
    return loaded.nats.chosen or (bool(published_url(loaded.data)) and runs(loaded.data))


class BusDoor:
    """The bus as a `Door`."""

    def __init__(self, client: Client, settings: ClientSettings | None = None) -> None:
        """`settings`: the client's settings. They allow a listing to end once all known processes have answered."""
        self.client = client
        self._settings = settings

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        known = known_processes.recall(self._settings) if self._settings and not name else ()
        wait = {"wait": _BUSY} if name else {}  # for an absent domain, the bus reports at once that nobody listens
        loaded = [read_info(info) for info in await self.client.discover(name, known=known, **wait)]
        if self._settings and not name:
            known_processes.remember(self._settings, [(info.name, info.node) for info in loaded])
        return {info.name: info for info in sorted(loaded, key=lambda info: info.name)}

    async def describe(self, unit: str) -> UnitInfo:
        """Ask the unit's own domain for the description. If this domain does not know the unit, ask all domains."""
        domain = unit.partition(".")[0]
        loaded = await self.domains(domain)
        if domain in loaded and unit in loaded[domain].units:
            return loaded[domain].units[unit]
        loaded = await self.domains()
        if domain not in loaded and domain in domains.names():
            raise down(domain, unit)
        if domain in loaded and unit in loaded[domain].units:
            return loaded[domain].units[unit]  # the domain has just started, or was too busy for the first request
        raise unknown(unit, [name for info in loaded.values() for name in info.units])

    def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        return self.client.stream(unit, data, timeout=timeout, headers=headers)

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return await self.client.ask(unit, data, timeout=timeout, headers=headers)
