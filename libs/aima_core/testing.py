"""Helpers for tests: given/when/then for the pure functions, and real domain processes on a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic

from nats.aio.client import Client as Nats

from aima_core.bus.client import Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import OPERATOR, bus_user
from aima_core.call import Call
from aima_core.domain import Domain, S
from aima_core.process.domain_process import DomainProcess
from aima_core.settings import Settings, load
from aima_core.units import Command, Event

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z, the time of every call in tests


def call(request_id: str = "request-1", *, at: float = NOON) -> Call:
    """Return a call with fixed ids and time."""
    return Call(request_id=request_id, at=at, node="test")


class Given(Generic[S]):
    """The world after some events. `when` decides a command in this world."""

    def __init__(self, domain: Domain[S], events: Iterable[Event] = ()) -> None:
        self.domain = domain
        self.world: dict[str, S] = {}
        for event in events:
            self.fold(event)

    def fold(self, event: Event) -> None:
        """Apply one more event to the world."""
        state = self.domain.evolve(self.world.get(event.stream), event)
        if state is None:
            self.world.pop(event.stream, None)
        else:
            self.world[event.stream] = state

    def when(self, command: Command[Any], *, at: float = NOON, request_id: str = "request-1") -> list[Event]:
        """Return the events that the command decides."""
        return self.domain.decide(self.world, command, call(request_id, at=at))

    def then(self, command: Command[Any], *, at: float = NOON, request_id: str = "request-1") -> list[Event]:
        """Decide the command and apply its events to the world. Returns the events."""
        events = self.when(command, at=at, request_id=request_id)
        for event in events:
            self.fold(event)
        return events


def settings_for(
    folder: Path,
    url: str,
    *domains: Domain[Any],
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return settings that use only `folder` and `url`, and no settings of the user."""
    sections = {domain.name: domain.settings for domain in domains}
    variables = {"AIMA_DATA": str(folder), "AIMA_NODE": "test", "AIMA_NATS_URL": url, **(environ or {})}
    return load(sections, environ=variables)


@contextlib.asynccontextmanager
async def serving(*domains: Domain[Any], settings: Settings) -> AsyncIterator[Client]:
    """Serve domains inside the test's own process, and yield a client of the bus."""
    stop = asyncio.Event()
    ready = [asyncio.Event() for _ in domains]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(DomainProcess(domain, settings).serve(stop, event.set))
            for domain, event in zip(domains, ready, strict=True)
        ]
        for task, event in zip(tasks, ready, strict=True):
            waiter = asyncio.create_task(event.wait())
            await asyncio.wait((waiter, task), return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        nc: Nats = await connect(settings.nats.url, "test", user=bus_user(settings, OPERATOR))
        try:
            yield Client(nc)
        finally:
            await nc.close()
            stop.set()


async def until(fact: Callable[[], Any], *, within: float = 20.0, every: float = 0.02) -> Any:
    """Call the (possibly async) function until its result is true and return that result.

    Calls the function every `every` seconds. Raises AssertionError after `within` seconds.
    """
    deadline = asyncio.get_running_loop().time() + within
    while True:
        result = fact()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"still false after {within:g} s: {getattr(fact, '__name__', fact)}")
        await asyncio.sleep(every)
