"""Runs one domain as a process: opens its parts, handles its requests, and closes the parts in order.

The parts are the log, the writer, the endpoints on the bus, the effects, the followers of other domains, and the copies
of events and resources on JetStream.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic

import uvloop
from nats.aio.client import Client as Nats

from aima_core import VERSION
from aima_core.bus.connection import connect
from aima_core.bus.credentials import bus_user
from aima_core.bus.endpoints import Endpoints
from aima_core.bus.peers import Peers
from aima_core.call import current_call, fresh
from aima_core.domain import Context, Domain, S
from aima_core.errors import AimaError, Unavailable
from aima_core.process.contract import Contract
from aima_core.process.effects import Effects, end
from aima_core.process.follower import Follower
from aima_core.process.relay import Relay
from aima_core.process.requests import RequestHandler
from aima_core.process.resource_bucket import ResourceBucket
from aima_core.process.writer import Writer
from aima_core.settings import Settings
from aima_core.standard_units import units_of
from aima_core.store.log import Log
from aima_core.store.reader import Reader
from aima_core.store.records import Codec, Recorded
from aima_core.structured_logs import logger
from aima_core.units import Command, Unit

_DRAIN = 25.0  # seconds that requests get to finish when the process stops; the supervisor kills the process after 30 s
_RESTART = 1.0  # seconds until failed background work starts again
# thresholds of the garbage collector; Python's default of 700 costs a tenth of a busy process's time
_GC_THRESHOLDS = (10_000, 10, 10)


class DomainProcess(Generic[S]):
    """Serves one domain on the bus."""

    def __init__(self, domain: Domain[S], settings: Settings) -> None:
        self._domain = domain
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Open all parts, serve requests until `stop` is set, finish the requests under way, and close all parts.

        Calls `ready` as soon as the process answers requests.
        Raises Unavailable if the connection to the bus ends for good before `stop`. The supervisor then starts a new
        process, which connects again.
        """
        domain, settings, bus_lost = self._domain, self._settings, False

        def on_bus_closed() -> None:
            nonlocal bus_lost
            bus_lost = not stop.is_set()
            stop.set()

        log = await self._open_log()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(log.close)
            self._writer = writer = Writer(domain, log, settings.node)
            await writer.open()
            stack.push_async_callback(writer.close)
            nc = await self._connect(on_bus_closed)
            stack.push_async_callback(nc.close)
            self._followers = {peer: Follower(nc, domain, peer, writer) for peer in domain.follows}
            outside = domain.outside(self._context(Peers(nc, settings.node), log))
            await outside.open()
            stack.push_async_callback(outside.close)
            contract = Contract(domain, writer.states, outside)
            resources = ResourceBucket(nc, domain, contract)
            self._handler = handler = RequestHandler(domain, writer, outside, contract, resources.read)
            relay = Relay(nc, log, settings.node)
            writer.listeners += [relay.on_commit, resources.on_commit]
            effects = Effects(domain, writer, outside)
            stack.push_async_callback(effects.close)
            stack.push_async_callback(self._cancel_tasks)
            endpoints = Endpoints(nc, domain, self._units(), handler.handle, settings.node)
            await endpoints.open(VERSION)
            effects.start()
            for work in (
                relay.run,
                lambda: resources.run(writer.states.committed_versions),
                *(follower.run for follower in self._followers.values()),
                *outside.background(),
            ):
                self._tasks.append(asyncio.create_task(_run_with_restarts(work)))
            logger.info("serving", position=writer.states.position)
            ready()
            await stop.wait()
            logger.info("draining")
            await endpoints.close(0 if bus_lost else _DRAIN)  # without a bus, no reply can be sent
        logger.info("closed")
        if bus_lost:
            raise Unavailable("the connection to the bus was closed for good", reason="NO_NATS")

    async def _open_log(self) -> Log:
        domain, folder = self._domain, self._settings.data / self._domain.name
        return await Log.open(folder, domain.name, Codec(domain.events, domain.upcasters))

    async def _connect(self, closed: Callable[[], None]) -> Nats:
        settings, name = self._settings, self._domain.name
        return await connect(settings.nats.url, f"aima-{name}", user=bus_user(settings, name), closed=closed)

    def _context(self, peers: Peers, log: Log) -> Context[S]:
        writer, settings = self._writer, self._settings

        async def record(command: Command[Any]) -> Sequence[Recorded]:
            parent = current_call.get()
            call = fresh(settings.node, parent=parent)
            return (await writer.run(command, call)).records

        return Context(
            node=settings.node,
            folder=settings.data / self._domain.name,
            settings=settings.of(self._domain.name),
            world=writer.states.committed,
            peers=peers,
            read=Reader(log, self._domain.evolve),
            record=record,
            caught_up=lambda peer: self._followers[peer].catch_up(),
            news=lambda: writer.watchers.watch(()),
        )

    def _units(self) -> tuple[type[Unit[Any]], ...]:
        example_uri = self._domain.resources[0].uri.replace("{id}", "x") if self._domain.resources else "asms://none"
        return (*self._domain.units, *units_of(self._domain.name, example_uri, self._domain.log_risk))

    async def _cancel_tasks(self) -> None:
        await end([*self._tasks, *self._handler.flow_answers.tasks()])


async def _run_with_restarts(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run background work until it returns. Logs each failure and starts the work again."""
    while True:
        try:
            await work()
            return
        except AimaError as error:
            logger.warning("background work failed; restarting", error=error.message)
        except Exception:
            logger.error("background work failed unexpectedly; restarting", exc_info=True)
        await asyncio.sleep(_RESTART)


def run(domain: Domain[Any], settings: Settings, ready: Callable[[], None] = lambda: None, lifeline: int = -1) -> None:
    """Run the process until SIGTERM or SIGINT, or until the other end of the pipe `lifeline` is closed."""

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if lifeline >= 0:
            loop.add_reader(lifeline, stop.set)
        await DomainProcess(domain, settings).serve(stop, ready)

    gc.set_threshold(*_GC_THRESHOLDS)
    uvloop.run(main())
