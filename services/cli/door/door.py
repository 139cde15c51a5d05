"""The `Door`: how commands reach units, over the bus or over HTTP to a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aima_core.errors import Unavailable

if TYPE_CHECKING:
    from aima_core.bus.client import Answer
    from aima_core.bus.directory import DomainInfo, UnitInfo

CONNECT = 2.0  # seconds to connect to the bus


@dataclass(frozen=True)
class DoorAddress:
    """The address of a door: a gateway at `url` with `api_key`; without `url`, the bus in the settings.

    `wait`: seconds to wait for the bus.
    """

    url: str = ""
    api_key: str = ""
    config: Path | None = None
    wait: float = CONNECT


class Door(Protocol):
    """Access to the units. Every method raises Unavailable if the bus or the gateway does not answer."""

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        """Return the serving domains by name, with their units; with a name, only that domain."""

    async def describe(self, unit: str) -> UnitInfo:
        """Return a unit's description. Raises UnitNotFound with suggestions, or Unavailable if its domain is down."""

    def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        """Yield the parts of an answer as they arrive, then the Answer. Leaving early cancels the work."""

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer; raise the error in the unit's reply."""


def down(domain: str, unit: str = "") -> Unavailable:
    """Return the error for a domain that does not run."""
    about = {"unit": unit} if unit else {}
    return Unavailable(f"the {domain} domain does not answer", reason="DOMAIN_DOWN", domain=domain, **about)
