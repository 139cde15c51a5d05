"""The way to the units: over the bus, or over HTTP to a gateway, which may be far away. Both are a `Door`.

A command that only the bus can serve takes `bus`; all others take `open_door`, and do not know which one it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aima_core.bus.client import Answer, Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import OPERATOR, bus_user
from aima_core.bus.directory import DomainInfo, UnitInfo, read_info, unknown
from aima_core.errors import Timeout, Unavailable
from aima_core.settings import URL_FILE, Settings, load
from services.cli import domains
from services.cli.supervisor.folder_lock import runs

_CONNECT = 2.0  # seconds
_BACK = 5.0  # seconds for a bus that goes away in the middle of an answer to come back
_LOOK = 0.05  # seconds between looks for a bus that is being started


@dataclass(frozen=True)
class Reach:
    """How far a command reaches: to the gateway at `url` with its key, or without one to the bus of the settings.

    `wait` is how long the bus may take to answer at all, in seconds.
    """

    url: str = ""
    api_key: str = ""
    config: Path | None = None
    wait: float = _CONNECT


class Door(Protocol):
    """A way to the units. Every method raises Unavailable when nobody is behind it."""

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        """Return the domains that serve, by name, with their units; with a name only that one, if it does."""

    async def describe(self, unit: str) -> UnitInfo:
        """Return one unit; raise UnitNotFound with the nearest names, or Unavailable when its domain is down."""

    def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        """Yield the parts of an answer as they come, last of all the Answer. Leaving early cancels the work."""

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer; raise the error that the unit replied with."""


@contextlib.asynccontextmanager
async def open_door(reach: Reach) -> AsyncIterator[Door]:
    """Open the door that the command line names; closed again at the end."""
    if reach.url:
        from services.cli.door.http_door import http_door  # an HTTP client takes long to import, and is rarely wanted

        async with http_door(reach.url, reach.api_key) as door:
            yield door
        return
    async with bus(reach.config, wait=reach.wait, back=_BACK) as client:
        yield BusDoor(client)


@contextlib.asynccontextmanager
async def bus(
    config: Path | None = None, *, wait: float = _CONNECT, back: float | None = None
) -> AsyncIterator[Client]:
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


def down(domain: str, unit: str = "") -> Unavailable:
    """Return the refusal of what a domain that there is, but that does not run, would have answered."""
    about = {"unit": unit} if unit else {}
    return Unavailable(f"the {domain} domain does not answer", reason="DOMAIN_DOWN", domain=domain, **about)


async def last(parts: AsyncIterator[Any | Answer], unit: str) -> Answer:
    """Return the answer that the parts end with."""
    async for part in parts:
        if isinstance(part, Answer):
            return part
    raise Timeout(f"{unit} did not answer", unit=unit)
