"""Which units are on the bus right now, and all that a door needs to offer them: read from `$SRV.INFO` (ADR-32).

Kept up to date by pinging: whoever answers with an id not seen yet is asked for its units, so that a domain which
somebody adds is known within seconds, and at once to whoever asks for it by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from aima_core.bus.client import Client
from aima_core.errors import UnitNotFound
from aima_core.structured_logs import logger
from aima_core.suggestions import did_you_mean, nearest
from aima_core.units import Risk

_LOOK = 1.0  # seconds between pings
_MISSED = 3.5  # seconds of silence after which a process counts as away
_FORGOTTEN = 3600.0  # seconds of silence after which its units are no longer offered
_ASK = 2.0  # seconds for a process to describe itself
_FRESH = 0.5  # seconds in which a look for an unknown name is not repeated
_RISKS = get_args(Risk)

_decode = msgspec.json.decode


class UnitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One unit as its domain describes it. `input` and `output` are JSON Schemas; `timeout` in seconds."""

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

    @property
    def domain(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]

    @property
    def action(self) -> str:
        """The part of the name behind the dot."""
        return self.name.partition(".")[2]

    @property
    def summary(self) -> str:
        """The first line of the description."""
        return self.description.partition("\n")[0]

    def patience(self, data: Mapping[str, Any]) -> float:
        """Return the seconds that a call without a deadline may take: an input's own `timeout` counts."""
        own = data.get("timeout")
        return max(self.timeout, own + 5.0 if isinstance(own, int | float) and not isinstance(own, bool) else 0.0)


class ResourceInfo(msgspec.Struct, frozen=True):
    """An address that can be read and watched, or a template of such: `asms://service/{id}`."""

    uri: str
    about: str
    domain: str


class DomainInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a domain, as it describes itself; `id` is another in each of its lives."""

    id: str
    name: str
    version: str
    about: str
    node: str
    units: dict[str, UnitInfo]
    resources: list[ResourceInfo]


def read_info(info: Mapping[str, Any]) -> DomainInfo:
    """Return what a `$SRV.INFO` says; endpoints that are no units of its own, or say too little, are left out."""
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
        told = _decode(metadata.get("resources", "[]"), type=list[dict[str, str]])
        resources = [ResourceInfo(each["uri"], each.get("about", ""), info["name"]) for each in told if "uri" in each]
    return DomainInfo(
        id=info["id"],
        name=info["name"],
        version=info.get("version", ""),
        about=info.get("description", ""),
        node=node,
        units=units,
        resources=resources,
    )


def _unit(name: str, about: Mapping[str, str]) -> UnitInfo:
    risk = about.get("risk", "")
    return UnitInfo(
        name=name,
        kind=about.get("kind", "command"),
        risk=risk if risk in _RISKS else "high",  # who says nothing of it is not trusted with little
        description=about.get("description", ""),
        input=_decode(about.get("input", "{}"), type=dict[str, Any]),
        output=_decode(about.get("output", "{}"), type=dict[str, Any]),
        examples=_decode(about.get("examples", "[]"), type=list[dict[str, Any]]),
        events=[event for event in about.get("events", "").split(",") if event],
        errors=[code for code in about.get("errors", "").split(",") if code],
        timeout=float(about.get("timeout", 30)),
    )


class Directory:
    """The units on a bus. `version` grows whenever what is offered changes."""

    def __init__(self, nc: Nats) -> None:
        self._nc = nc
        self._client = Client(nc)
        self._processes: dict[str, DomainInfo] = {}
        self._seen: dict[str, float] = {}
        self._whole: set[str] = set()  # processes that have said the same twice: one that begins answers half of it
        self._asking: set[asyncio.Task[None]] = set()
        self._inbox = ""
        self._looked_at = 0.0
        self._changed = asyncio.Event()
        self.version = 0
        self.units: Mapping[str, UnitInfo] = {}
        self.resources: tuple[ResourceInfo, ...] = ()
        self.domains: Mapping[str, DomainInfo] = {}

    async def open(self) -> None:
        """Take a first look; returns when it has been taken."""
        self._inbox = self._nc.new_inbox()
        await self._nc.subscribe(self._inbox, cb=self._on_pong)
        await self._nc.flush()
        self._take([read_info(info) for info in await self._client.discover()])

    async def run(self) -> None:
        """Keep looking for ever; the bus may come and go."""
        while True:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._nc.publish("$SRV.PING", b"", reply=self._inbox)
            await asyncio.sleep(_LOOK)
            self._forget()

    async def close(self) -> None:
        """Ask nobody any more."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def find(self, name: str) -> UnitInfo:
        """Return a unit, looking anew for one that is not known; raise UnitNotFound with the nearest names."""
        if name not in self.units and time.monotonic() - self._looked_at > _FRESH:
            await self.look()
        try:
            return self.units[name]
        except KeyError:
            raise unknown(name, self.units) from None

    async def look(self) -> None:
        """Ask everybody anew."""
        self._looked_at = time.monotonic()
        self._take([read_info(info) for info in await self._client.discover(wait=0.1)])

    def resource_of(self, uri: str) -> ResourceInfo | None:
        """Return what an address is one of."""
        wanted = uri.split("/")
        for resource in self.resources:
            parts = resource.uri.split("/")
            if len(parts) == len(wanted) and all(
                bool(given) if part.startswith("{") else part == given
                for part, given in zip(parts, wanted, strict=True)
            ):
                return resource
        return None

    def away(self) -> list[str]:
        """Return the domains that are known and do not answer now."""
        late = time.monotonic() - _MISSED
        here = {self._processes[ident].name for ident, at in self._seen.items() if at > late}
        return sorted({info.name for info in self._processes.values()} - here)

    async def changed(self, version: int) -> None:
        """Return as soon as the version is another than this one."""
        while self.version == version:
            self._changed.clear()
            await self._changed.wait()

    async def _on_pong(self, message: Msg) -> None:
        try:
            pong = _decode(message.data, type=dict[str, Any])
            ident, name = str(pong["id"]), str(pong["name"])
        except (msgspec.MsgspecError, KeyError):
            return
        if ident in self._whole:
            self._seen[ident] = time.monotonic()
        else:
            task = asyncio.create_task(self._ask(name, ident))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, name: str, ident: str) -> None:
        try:
            message = await self._nc.request(f"$SRV.INFO.{name}.{ident}", b"", timeout=_ASK)
            found = read_info(_decode(message.data))
        except (TimeoutError, nats.errors.Error, msgspec.MsgspecError, KeyError) as error:
            logger.debug("a process does not describe itself", name=name, error=repr(error))
            return
        self._take([found])

    def _take(self, found: Iterable[DomainInfo]) -> None:
        now = time.monotonic()
        for info in found:
            # a process that is started again takes the place of the one that it was
            for other, known in list(self._processes.items()):
                if (known.name, known.node) == (info.name, info.node) and self._seen[other] < now - _MISSED:
                    del self._processes[other], self._seen[other]
                    self._whole.discard(other)
            if self._processes.get(info.id) == info:
                self._whole.add(info.id)
            self._processes[info.id], self._seen[info.id] = info, now
        self._offer()

    def _forget(self) -> None:
        gone = [ident for ident, at in self._seen.items() if at < time.monotonic() - _FORGOTTEN]
        for ident in gone:
            del self._processes[ident], self._seen[ident]
            self._whole.discard(ident)
        if gone:
            self._offer()

    def _offer(self) -> None:
        """Make known what there is, if it is something else than before."""
        domains = {info.name: info for info in self._processes.values()}  # the newest come last
        if domains == self.domains:
            return
        self.domains = dict(sorted(domains.items()))
        self.units = {name: unit for info in self.domains.values() for name, unit in sorted(info.units.items())}
        self.resources = tuple(resource for info in self.domains.values() for resource in info.resources)
        self.version += 1
        self._changed.set()


def unknown(name: str, known: Iterable[str]) -> UnitNotFound:
    """Return the refusal of a name that no unit has, with the nearest that there are."""
    near = nearest(name, known)
    return UnitNotFound(f"there is no unit {name}{did_you_mean(near)}", unit=name, near=near)
