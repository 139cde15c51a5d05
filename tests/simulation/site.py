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
from aima_core.process.domain_process import DomainProcess
from aima_core.settings import LogSettings, NatsSettings, Settings
from aima_core.store.log import Log
from aima_core.store.records import Codec
from aima_core.testing import NOON
from services.engine.domain import ENGINE
from services.engine.outside.engine_host import Host
from services.engine.settings import EngineSettings
from services.inference.domain import INFERENCE
from services.resource.domain import RESOURCE
from services.service.domain import SERVICE
from services.service.settings import ServiceSettings
from tests.simulation.bus import Bus, Connection
from tests.simulation.callers import Callers
from tests.simulation.clock import VirtualLoop
from tests.simulation.disk import Disk, SimulatedSqlite
from tests.simulation.engines import engine_client
from tests.simulation.ledger import Ledger
from tests.simulation.life import LIFE, Life
from tests.simulation.models import DEVICES, MANIFESTS, MODELS, NODE
from tests.simulation.programs import Machine, SimulatedPackage, SimulatedRuntime

PORTS = range(9000, 9040)
_RESTARTS = (0.05, 0.5, 3.0, 10.0)  # seconds until a process that has ended is started again
_STORY = 150  # lines of the story of a run that are kept

DOMAINS: tuple[Domain[Any], ...] = (DEVICES, MODELS, RESOURCE, ENGINE, SERVICE, INFERENCE)
"""In the order of their start."""


class _Log(Log):
    async def close(self) -> None:
        await self.file.close()


class _Process(DomainProcess[Any]):
    """A domain's process; only its log's file and its connection are other ones."""

    @property
    def memory(self) -> Mapping[str, Any]:
        """What the process believes is committed."""
        return self._writer.states.committed

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
    process: _Process
    stop: asyncio.Event
    ready: asyncio.Event
    serving: asyncio.Task[None]


class Site:
    """The machine, what runs on it, and what has happened there."""

    def __init__(self, loop: VirtualLoop, *changed: Domain[Any]) -> None:
        """`changed` take the place of the domains of their names."""
        self.loop, self.rng = loop, loop.rng
        self.machine, self.bus = Machine(loop), Bus(loop)
        self.disk = Disk(self._committed)
        self.steps = 0
        self.check: Callable[[Site], None] = Site.look
        """What must be true after every commit; raises AssertionError."""
        self.deadly = 0.0
        """The share of commits after which their process dies."""
        self.connections: dict[Life, Connection] = {}
        self.running: dict[str, Running] = {}
        self.errors: list[str] = []
        self.without_service: set[str] = set()  # instances that were heard of before their service existed
        """What no simulated trouble explains."""
        self.story: deque[tuple[float, str, object]] = deque(maxlen=_STORY)
        self._burying: set[asyncio.Task[None]] = set()
        others = {domain.name: domain for domain in changed}
        self.domains = {domain.name: self._here(others.get(domain.name, domain)) for domain in DOMAINS}
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
        loop.set_exception_handler(self._unhandled)

    def _here(self, domain: Domain[Any]) -> Domain[Any]:
        """Return a domain with this machine below its Outside."""
        given: dict[str, Any] = {
            "engine": {"host": self.host},
            "resource": {"read": self.machine.facts},
            "inference": {"client": lambda: engine_client(self.machine)},
        }
        return replace(domain, outside=partial(domain.outside, **given.get(domain.name, {})))

    def _sections(self) -> dict[str, Any]:
        sections = {name: domain.settings() for name, domain in self.domains.items()}
        sections["engine"] = EngineSettings(port_min=PORTS[0], port_max=PORTS[-1])
        sections["service"] = ServiceSettings(calm=20)
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
        process = self.running.get(name)
        return process is not None and not process.life.dead and not process.serving.done()

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
        self.running[name] = Running(life, process, stop, ready, serving)
        return self.running[name]

    async def begin(self) -> None:
        """Start all that do not run, and return when they serve."""
        for name in self.domains:
            process = self.running[name] if self.is_up(name) else self.start(name)
            ready = self.loop.create_task(process.ready.wait())
            await asyncio.wait((ready, process.serving), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()

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

    def _committed(self, life: Life) -> None:
        if not self.errors:
            try:
                self.check(self)
            except AssertionError as error:  # what runs here is the product's: it must not swallow it
                self.errors.append(f"{error}")
        if self.deadly and self.rng.random() < self.deadly:
            life.kill()

    def _died(self, life: Life) -> None:
        self.tell("death of", life.name)
        self.connections.pop(life).drop()
        burying = self.loop.create_task(life.buried(), context=Variables())
        self._burying.add(burying)
        burying.add_done_callback(self._burying.discard)

    def _again(self, name: str) -> None:
        if not self.is_up(name):
            self.start(name)

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(
            f"{context['message']}: {context.get('exception')!r} of {context.get('future') or context.get('task')}"
        )

    def _ended(self, life: Life, serving: asyncio.Task[None]) -> None:
        """Start the process again after a while, as `aima up` does."""
        again = partial(self._again, life.name)
        self.loop.call_later(self.rng.choice(_RESTARTS), again, context=Variables())
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

    def transcript(self) -> str:
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
            complaint = logging.Formatter().format(record)
            self._site.errors.append(f"{complaint} {getattr(record, 'fields', '')}")


def _text(about: object) -> str:
    if isinstance(about, msgspec.Struct):
        fields = {name: value for name, value in msgspec.structs.asdict(about).items() if value or value == 0}
        return f"{type(about).__name__} {str(fields)[:200]}"
    return str(about)
