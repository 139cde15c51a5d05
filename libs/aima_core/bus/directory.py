"""Keeps a directory of the units on the bus, with everything that a door needs to offer these units.

Each process describes its units in `$SRV.INFO` (NATS's ADR-32). The directory pings all processes every second and
reads the description of each new process. So the directory knows an added domain within seconds. `find` searches for an
unknown unit at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from aima_core.bus.client import Client
from aima_core.errors import UnitNotFound
from aima_core.risk import RISKS
from aima_core.structured_logs import logger
from aima_core.suggestions import did_you_mean, nearest

_PING_INTERVAL = 1.0  # seconds
_AWAY_AFTER = 3.5  # seconds of silence after which a process counts as away
_FORGOTTEN_AFTER = 3600.0  # seconds of silence after which the units of a process are no longer offered
_INFO_TIMEOUT = 2.0  # seconds that a process has to describe itself
_LOOK_INTERVAL = 0.5  # minimum seconds between two searches for unknown names

_decode = msgspec.json.decode


class UnitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One unit as its domain describes it.

    `input` and `output` are JSON Schemas; `timeout` is in seconds. `options` are the headers that the unit honours.
    """

    name: str
    kind: str
    risk: str
    description: str = ""
    input: dict[str, Any] = {}
    output: dict[str, Any] = {}
    examples: list[dict[str, Any]] = []
    events: list[str] = []
    errors: list[str] = []
    timeout: float = 30.0
    idempotent: bool = False
    destructive: bool = False
    options: list[str] = []

    @property
    def domain(self) -> str:
        """The part of the name before the dot: `service` in `service.start`."""
        return self.name.partition(".")[0]

    @property
    def action(self) -> str:
        """The part of the name after the dot: `start` in `service.start`."""
        return self.name.partition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of the description."""
        return self.description.partition("\n")[0]

    def patience(self, data: Mapping[str, Any]) -> float:
        """Return how many seconds a call without a deadline may take: the unit's timeout, or 5 s more than the input's.

        The longer of the two counts. An input without the field `timeout` has only the unit's timeout.
        """
        own = data.get("timeout")
        return max(self.timeout, own + 5.0 if isinstance(own, int | float) and not isinstance(own, bool) else 0.0)


class ResourceInfo(msgspec.Struct, frozen=True):
    """An address that can be read and watched, or a template of addresses, such as `asms://service/{id}`."""

    uri: str
    about: str
    domain: str


class DomainInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a domain, as it describes itself. Every new process has a new `id`."""

    id: str
    name: str
    version: str
    about: str
    node: str
    units: dict[str, UnitInfo]
    resources: list[ResourceInfo]


def read_info(info: Mapping[str, Any]) -> DomainInfo:
    """Return the process that a `$SRV.INFO` describes.

    Omits endpoints that are not units of the process's domain, and endpoints and resources with an invalid description.
    """
    metadata: Mapping[str, str] = info.get("metadata") or {}
    node = metadata.get("node", "")
    units = {}
    for endpoint in info.get("endpoints", ()):
        subject: str = endpoint.get("subject", "")
        if subject.startswith(f"aima.{info['name']}.") and subject.count(".") == 2:
            with contextlib.suppress(msgspec.MsgspecError, ValueError):
                name = subject.removeprefix("aima.")
                units[name] = _unit(name, endpoint.get("metadata") or {})
    resources: list[ResourceInfo] = []
    with contextlib.suppress(msgspec.MsgspecError, ValueError):
        rows = _decode(metadata.get("resources", "[]"), type=list[dict[str, str]])
        resources = [ResourceInfo(row["uri"], row.get("about", ""), info["name"]) for row in rows if "uri" in row]
    return DomainInfo(
        id=info["id"],
        name=info["name"],
        version=info.get("version", ""),
        about=info.get("description", ""),
        node=node,
        units=units,
        resources=resources,
    )


def _unit(name: str, metadata: Mapping[str, str]) -> UnitInfo:
    risk = metadata.get("risk", "")
    return UnitInfo(
        name=name,
        kind=metadata.get("kind", "command"),
        risk=risk if risk in RISKS else "high",  # if the process does not state the risk, it counts as high
        description=metadata.get("description", ""),
        input=_decode(metadata.get("input", "{}"), type=dict[str, Any]),
        output=_decode(metadata.get("output", "{}"), type=dict[str, Any]),
        examples=_decode(metadata.get("examples", "[]"), type=list[dict[str, Any]]),
        events=[event for event in metadata.get("events", "").split(",") if event],
        errors=[code for code in metadata.get("errors", "").split(",") if code],
        timeout=float(metadata.get("timeout", 30)),
        idempotent=metadata.get("idempotent") == "true",
        destructive=metadata.get("destructive", "true" if risk not in ("low", "medium") else "false") == "true",
        options=[option for option in metadata.get("options", "").split(",") if option],
    )


class Directory:
    """The units on the bus. `version` grows with each change of `domains`, `units` and `resources`."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc
        self._client = Client(nc)
        self._processes: dict[str, DomainInfo] = {}
        self._last_seen: dict[str, float] = {}
        # processes whose last two descriptions were equal; a starting process may describe only some of its units
        self._complete: set[str] = set()
        self._info_requests: set[asyncio.Task[None]] = set()
        self._inbox = ""
        self._looked_at = 0.0
        self._changed = asyncio.Event()
        self.version = 0
        self.units: Mapping[str, UnitInfo] = {}
        self.resources: tuple[ResourceInfo, ...] = ()
        self.domains: Mapping[str, DomainInfo] = {}

    async def open(self) -> None:
        """Read the descriptions of all processes for the first time."""
        self._inbox = self._nc.new_inbox()
        await self._nc.subscribe(self._inbox, cb=self._on_pong)
        await self._nc.flush()
        self._add([read_info(info) for info in await self._client.discover()])

    async def run(self) -> None:
        """Keep the directory up to date until cancelled. Continues when the bus comes back."""
        while True:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._nc.publish("$SRV.PING", b"", reply=self._inbox)
            await asyncio.sleep(_PING_INTERVAL)
            self._forget_silent()

    async def close(self) -> None:
        """Cancel the requests for descriptions that are under way."""
        for task in self._info_requests:
            task.cancel()
        await asyncio.gather(*self._info_requests, return_exceptions=True)

    async def find(self, name: str) -> UnitInfo:
        """Return a unit. Searches the bus again for an unknown name. Raises UnitNotFound with similar names."""
        if name not in self.units and time.monotonic() - self._looked_at > _LOOK_INTERVAL:
            await self.look()
        try:
            return self.units[name]
        except KeyError:
            raise unknown(name, self.units) from None

    async def look(self) -> None:
        """Read the descriptions of all processes again."""
        self._looked_at = time.monotonic()
        self._add([read_info(info) for info in await self._client.discover(wait=0.1)])

    def resource_of(self, uri: str) -> ResourceInfo | None:
        """Return the resource that an address belongs to, or None for an unknown address."""
        uri_parts = uri.split("/")
        for resource in self.resources:
            template_parts = resource.uri.split("/")
            if len(template_parts) == len(uri_parts) and all(
                bool(part) if template.startswith("{") else template == part
                for template, part in zip(template_parts, uri_parts, strict=True)
            ):
                return resource
        return None

    def away(self) -> list[str]:
        """Return the known domains that have answered no ping for 3.5 s."""
        limit = time.monotonic() - _AWAY_AFTER
        answering = {self._processes[ident].name for ident, at in self._last_seen.items() if at > limit}
        return sorted({info.name for info in self._processes.values()} - answering)

    async def changed(self, version: int) -> None:
        """Wait until `self.version` differs from `version`."""
        while self.version == version:
            self._changed.clear()
            await self._changed.wait()

    async def _on_pong(self, message: Msg) -> None:
        try:
            pong = _decode(message.data, type=dict[str, Any])
            ident, name = str(pong["id"]), str(pong["name"])
        except (msgspec.MsgspecError, KeyError):
            return
        if ident in self._complete:
            self._last_seen[ident] = time.monotonic()
        else:
            task = asyncio.create_task(self._request_info(name, ident))
            self._info_requests.add(task)
            task.add_done_callback(self._info_requests.discard)

    async def _request_info(self, name: str, ident: str) -> None:
        try:
            message = await self._nc.request(f"$SRV.INFO.{name}.{ident}", b"", timeout=_INFO_TIMEOUT)
            info = read_info(_decode(message.data))
        except (TimeoutError, nats.errors.Error, msgspec.MsgspecError, KeyError) as error:
            logger.debug("a process does not describe itself", name=name, error=repr(error))
            return
        self._add([info])

    def _add(self, infos: Iterable[DomainInfo]) -> None:
        now = time.monotonic()
        for info in infos:
            # a restarted process replaces its silent predecessor, which has the same domain and node
            for ident, other in list(self._processes.items()):
                if (other.name, other.node) == (info.name, info.node) and self._last_seen[ident] < now - _AWAY_AFTER:
                    self._remove(ident)
            if self._processes.get(info.id) == info:
                self._complete.add(info.id)
            self._processes[info.id], self._last_seen[info.id] = info, now
        self._update()

    def _forget_silent(self) -> None:
        limit = time.monotonic() - _FORGOTTEN_AFTER
        silent = [ident for ident, at in self._last_seen.items() if at < limit]
        for ident in silent:
            self._remove(ident)
        if silent:
            self._update()

    def _remove(self, ident: str) -> None:
        del self._processes[ident], self._last_seen[ident]
        self._complete.discard(ident)

    def _update(self) -> None:
        """Set `domains`, `units` and `resources` from the known processes. If they have changed, `version` grows."""
        domains = {info.name: info for info in self._processes.values()}  # the newest process of a domain comes last
        if domains == self.domains:
            return
        self.domains = dict(sorted(domains.items()))
        self.units = {name: unit for info in self.domains.values() for name, unit in sorted(info.units.items())}
        self.resources = tuple(resource for info in self.domains.values() for resource in info.resources)
        self.version += 1
        self._changed.set()


def unknown(name: str, known: Iterable[str]) -> UnitNotFound:
    """Return the error for an unknown unit. The error suggests similar names of known units."""
    near = nearest(name, known)
    return UnitNotFound(f"there is no unit {name}{did_you_mean(near)}", unit=name, near=near)
