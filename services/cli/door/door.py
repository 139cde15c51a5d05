"""A `Door` is a way to the units: over the bus, or over HTTP to a gateway, which may be far away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aima_core.bus.client import Answer
from aima_core.bus.directory import DomainInfo, UnitInfo
from aima_core.errors import Timeout, Unavailable

CONNECT = 2.0  # seconds


@dataclass(frozen=True)
class DoorAddress:
    """How far a command reaches: to the gateway at `url` with its key, or without one to the bus of the settings.

    `wait` is how long the bus may take to answer at all, in seconds.
    """

    url: str = ""
    api_key: str = ""
    config: Path | None = None
    wait: float = CONNECT


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
