"""`Door`: the interface through which commands call units, over the bus or over HTTP to a gateway."""

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
    """The address of a door: the gateway at `url`; if `url` is empty, the bus in the settings.

    `api_key`: the key for the gateway. `config`: the settings file. `wait`: seconds to wait for the bus.
    """

    url: str = ""
    api_key: str = ""
    config: Path | None = None
    wait: float = CONNECT


class Door(Protocol):
    """Access to the units. Every method raises Unavailable if the bus or the gateway does not answer."""

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        """Return the running domains by name, with their units. If `name` is set, return only this domain."""

    async def describe(self, unit: str) -> UnitInfo:
        """Return a unit's description. Raises UnitNotFound with suggestions, or Unavailable if its domain is down."""

    def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        """Yield the parts of an answer as they arrive, then the Answer. Closing the iterator early cancels the call."""

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the unit's answer. If the reply is an error, raise this error."""


def down(domain: str, unit: str = "") -> Unavailable:
    """Return the error for a domain that does not run."""
    about = {"unit": unit} if unit else {}
    return Unavailable(f"the {domain} domain does not answer", reason="DOMAIN_DOWN", domain=domain, **about)
