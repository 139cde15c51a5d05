"""One machine with all domains on it: each a real process on the simulated bus, disk, programs and clock."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context as Variables
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from aima_core.domain import Domain
from aima_core.errors import AimaError, InternalError
from aima_core.process.domain_process import DomainProcess
from aima_core.settings import LogSettings, NatsSettings, Settings
from aima_core.store.log import Log
from aima_core.store.records import Codec
from aima_core.testing import NOON
from services.engine.domain import ENGINE
from services.engine.host import Host
from services.engine.outside.adapter import EngineOutside
from services.inference.domain import INFERENCE
from services.resource.domain import RESOURCE
from services.resource.outside.adapter import ResourceOutside
from services.service.domain import SERVICE
from tests.simulation.bus import Bus, Connection
from tests.simulation.callers import Callers
from tests.simulation.clock import VirtualLoop
from tests.simulation.disk import Disk, SimulatedSqlite
from tests.simulation.ledger import Ledger
from tests.simulation.life import LIFE, Life
from tests.simulation.models import DEVICES, MANIFESTS, MODELS, NODE
from tests.simulation.programs import Machine, SimulatedPackage, SimulatedRuntime

PORTS = range(9000, 9040)
_STORY = 150  # lines of the story of a run that are kept
_OUTSIDE = "of itself"  # who did something that no domain's process did

Outsides = Mapping[str, Callable[..., Any]]
"""What replaces the `outside` of a domain, by its name: a fault that is planted."""


class _Log(Log):
    async def close(self) -> None:
        await self.file.close()


class _Process(DomainProcess[Any]):
    """A domain's process; only its log's file and its connection are other ones."""

    def __init__(self, domain: Domain[Any], settings: Settings, site: Site, life: Life) -> None:
        super().__init__(domain, settings)
        self._site, self._life = site, life

    async def _open_log(self) -> Log:
        file, domain = SimulatedSqlite(self._site.disk, self._life), self._domain
        return await _Log.over(file, domain.name, Codec(domain.events, domain.upcasters), -1)

    async def _connect(self, closed: Callable[[], None]) -> Any:
        return self._site.connections[self._life]


@dataclass(eq=False)
class Running:
    """A process that runs. Setting `stop` ends it in order."""

    life: Life
    stop: asyncio.Event
    ready: asyncio.Event
    serving: asyncio.Task[None]


class Site:
    """The machine. `faulty`: messages are lost and processes die by themselves."""

    def __init__(self, loop: VirtualLoop, outsides: Outsides | None = None) -> None:
        self.loop, self.rng = loop, loop.rng
        self.machine, self.bus = Machine(loop), Bus(loop)
        self.disk = Disk(self._dies_after_commit)
        self.deadly = 0.0
        """The share of commits after which their process dies."""
        self.connections: dict[Life, Connection] = {}
        self.running: dict[str, Running] = {}
        self.errors: list[str] = []
        """What no simulated trouble explains."""
        self.story: deque[tuple[float, str, object]] = deque(maxlen=_STORY)
        self._burying: set[asyncio.Task[None]] = set()
        changed = self._outsides() | dict(outsides or {})
        self.domains = {
            domain.name: replace(domain, outside=partial(changed[domain.name])) if domain.name in changed else domain
            for domain in (DEVICES, MODELS, RESOURCE, ENGINE, SERVICE, INFERENCE)
        }
        self.ledgers = {name: Ledger(domain, self.disk, self.tell) for name, domain in self.domains.items()}
        self.settings = Settings(
            Path("/simulated"),
            NODE,
            NatsSettings(),
            LogSettings(),
            self._sections(),
            Path("/simulated/config.toml"),
            {},
        )
        self.callers = Callers(self)

    def _outsides(self) -> dict[str, Callable[..., Any]]:
        return {
            "engine": partial(EngineOutside, host=self.host),
            "resource": partial(ResourceOutside, read=self.machine.facts),
        }

    def _sections(self) -> dict[str, Any]:
        sections = {name: domain.settings() for name, domain in self.domains.items()}
        sections["engine"] = ENGINE.settings(port_min=PORTS[0], port_max=PORTS[-1])
        sections["service"] = SERVICE.settings(calm=20)
        return sections

    def host(self, *_: Path) -> Host:
        """Return what the engine domain's process finds on the machine."""
        life = LIFE.get()
        assert life
        return Host(
            runtime=SimulatedRuntime(self.machine, life),
            boot=str(self.machine.boot),
            manifests=MANIFESTS,
            package=lambda _, manifest: SimulatedPackage(self.machine, manifest),  # type: ignore[arg-type, return-value]
            free_ports=self.machine.free_ports,
            healthy=self.machine.healthy,
            served_model=self.machine.served_model,
        )

    # --- processes --------------------------------------------------------------------------------------------

    def is_up(self, name: str) -> bool:
        """Tell whether a domain's process runs; it may still be starting, or ending in order."""
        found = self.running.get(name)
        return found is not None and not found.life.dead and not found.serving.done()

    def start(self, name: str) -> Running:
        """Start a domain's process."""
        self.tell("start of", name)
        life = Life(name, lambda: self._died(life))
        self.connections[life] = Connection(self.bus, life)
        stop, ready, variables = asyncio.Event(), asyncio.Event(), Variables()
        variables.run(LIFE.set, life)
        process = _Process(self.domains[name], self.settings, self, life)
        serving = self.loop.create_task(process.serve(stop, ready.set), name=f"{name} process", context=variables)
        serving.add_done_callback(lambda task: self._ended(life, task))
        self.running[name] = Running(life, stop, ready, serving)
        return self.running[name]

    async def begin(self) -> None:
        """Start all that do not run, and return when they serve."""
        for name in self.domains:
            if not self.is_up(name):
                await self.start(name).ready.wait()

    def kill(self, name: str) -> None:
        """Kill a domain's process."""
        if self.is_up(name):
            self.running[name].life.kill()

    def stop(self, name: str) -> None:
        """Ask a domain's process to end in order."""
        if self.is_up(name):
            self.tell("stop of", name)
            self.running[name].stop.set()

    def reboot(self) -> None:
        """Let the machine lose all that is not on its disk."""
        for name in self.domains:
            self.kill(name)
        self.machine.reboot()

    def _dies_after_commit(self, life: Life) -> bool:
        return self.deadly > 0 and not life.dead and self.rng.random() < self.deadly

    def _died(self, life: Life) -> None:
        self.tell("death of", life.name)
        self.connections.pop(life).drop()
        burying = self.loop.create_task(life.buried(), context=Variables())
        self._burying.add(burying)
        burying.add_done_callback(self._burying.discard)

    def _ended(self, life: Life, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()) and not life.dead:
            self.errors.append(f"the {life.name} process ended: {error!r}")

    # --- looking ----------------------------------------------------------------------------------------------

    def states(self, name: str) -> Mapping[str, Any]:
        """Return what is, as a domain's log tells it."""
        return self.ledgers[name].states

    def look(self) -> None:
        """Read on in all logs."""
        for ledger in self.ledgers.values():
            ledger.read()

    def tell(self, what: str, about: object) -> None:
        """Take something into the story of the run."""
        self.story.append((self.loop.wall(), what, about))

    def told(self) -> str:
        """Return the last that has happened, one thing a line."""
        return "\n".join(f"{now - NOON:10.3f} {what} {_text(about)}" for now, what, about in self.story)


class Complaints(logging.Handler):
    """Takes what the product logs as an error: only a bug does that. What the dead say does not count."""

    def __init__(self, site: Site) -> None:
        super().__init__(logging.ERROR)
        self._site = site

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        life = LIFE.get()
        if not (life and life.dead):
            told = logging.Formatter().format(record)
            self._site.errors.append(f"{told} {getattr(record, 'fields', '')}")


def is_fault(error: AimaError) -> bool:
    """Tell of what a caller was answered whether it is never right."""
    return isinstance(error, InternalError)


def _text(about: object) -> str:
    if isinstance(about, msgspec.Struct):
        fields = {name: value for name, value in msgspec.structs.asdict(about).items() if value or value == 0}
        return f"{type(about).__name__} {str(fields)[:200]}"
    return str(about)
