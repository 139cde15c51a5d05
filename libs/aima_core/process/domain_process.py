"""Runs one domain as a process: assembles its parts, handles its requests, and stops it in order.

The parts: the log, the writer, the endpoints on the bus, the effects, the followers of other domains, and the copies of
events and resources on JetStream.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic

import msgspec
import uvloop
from nats.aio.client import Client as Nats

from aima_core import VERSION
from aima_core.bus.connection import connect
from aima_core.bus.credentials import bus_user
from aima_core.bus.endpoints import Endpoints
from aima_core.bus.outcomes import Outcome, ReplyStream, encode_view
from aima_core.bus.peers import Peers
from aima_core.call import Call, current_call, fresh
from aima_core.domain import Context, Domain, S
from aima_core.errors import AimaError, Unavailable
from aima_core.process.effects import Effects, end
from aima_core.process.follower import Follower
from aima_core.process.idempotency import FinalReply, FlowAnswers, fingerprint, key_reused
from aima_core.process.relay import Relay
from aima_core.process.resource_bucket import ResourceBucket
from aima_core.process.writer import Writer
from aima_core.settings import Settings
from aima_core.standard_units import LogPage, LogQuery, Read, ReadQuery, units_of
from aima_core.store.log import Log
from aima_core.store.reader import Reader
from aima_core.store.records import Codec, Recorded, StoredReply
from aima_core.structured_logs import logger
from aima_core.units import Command, Query, Unit

_DRAIN = 25.0  # seconds that requests get to finish when the process stops; the supervisor kills the process after 30 s
_RESTART = 1.0  # seconds until failed background work starts again
# thresholds of the garbage collector; Python's default of 700 costs a tenth of a busy process's time
_GC_THRESHOLDS = (10_000, 10, 10)
_NO_LIMIT = 1_000_000  # events; no command causes as many


class DomainProcess(Generic[S]):
    """Serves one domain on the bus."""

    def __init__(self, domain: Domain[S], settings: Settings) -> None:
        self._domain = domain
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self._flow_answers = FlowAnswers()

    async def serve(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Open all parts, call `ready` when requests are answered, run until `stop`, drain, and close all parts.

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
            self._outside = outside = domain.outside(self._context(Peers(nc, settings.node), log))
            await outside.open()
            stack.push_async_callback(outside.close)
            self._resources = ResourceBucket(nc, domain, outside.answer)
            relay = Relay(nc, log, settings.node)
            writer.listeners += [relay.on_commit, self._resources.on_commit]
            effects = Effects(domain, writer, outside)
            stack.push_async_callback(effects.close)
            stack.push_async_callback(self._cancel_tasks)
            endpoints = Endpoints(nc, domain, self._units(), self._handle, settings.node)
            await endpoints.open(VERSION)
            effects.start()
            for work in (
                relay.run,
                lambda: self._resources.run(writer.streams),
                *(follower.run for follower in self._followers.values()),
                *outside.background(),
            ):
                self._tasks.append(asyncio.create_task(_run_with_restarts(work)))
            logger.info("serving", position=writer.position)
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
            world=writer.committed,
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
        await end([*self._tasks, *self._flow_answers.tasks()])

    # --- one request ----------------------------------------------------------------------------------------

    async def _handle(self, unit: Unit[Any], call: Call, replies: ReplyStream) -> Outcome:
        if isinstance(unit, LogQuery):
            return Outcome(encode_page(await self._log_page(unit)))
        if isinstance(unit, ReadQuery):
            view = await self._resources.read(unit.uri)
            return Outcome(encode_view(Read(uri=unit.uri, data=view.model_dump(mode="json"))))
        if isinstance(unit, Query):
            return Outcome(encode_view(await self._outside.answer(unit)), position=self._writer.position)
        if not isinstance(unit, Command):
            raise TypeError(unit)
        if isinstance(unit, self._outside.flows):
            return Outcome(await self._flow(unit, call, replies))
        self._writer.check_version(unit, call)  # checks before `prepare` does any work; deciding checks again
        if call.idempotency_key and not call.dry_run:
            return await self._run_once(unit, call, replies)
        command = await self._outside.prepare(unit, call)
        if call.dry_run:
            plan = self._writer.plan(command, call)
            return Outcome(msgspec.json.encode(plan), version=plan.version)
        decision = await self._writer.run(command, call)
        data = await self._answer(command, decision.records, decision.streams, replies)
        return Outcome(data, decision.version, decision.position)

    async def _answer(
        self, command: Command[Any], records: Sequence[Recorded], streams: Sequence[str], replies: ReplyStream
    ) -> bytes:
        """Return the command's answer when its result is known. Until then, sends each new event as a part."""
        # most answers are known at once and need no watch; no await comes before the watch, so no event is missed
        if (view := self._writer.answer(command, [record.event for record in records])) is not None:
            return encode_view(view)
        with self._writer.watchers.watch(streams) as commits:
            return await self._wait_for_answer(command, records, commits, replies)

    async def _wait_for_answer(
        self, command: Command[Any], records: Sequence[Recorded], commits: asyncio.Queue[Any], replies: ReplyStream
    ) -> bytes:
        events = [record.event for record in records]
        last = records[-1].position if records else 0
        while (view := self._writer.answer(command, events)) is None:
            for record in await commits.get():
                if record.position > last:  # the queue may also contain an event that was read from the log
                    events.append(record.event)
                    await replies.send(record.wire())
        return encode_view(view)

    async def _run_once(self, unit: Command[Any], call: Call, replies: ReplyStream) -> Outcome:
        """Run a request with an idempotency key. A repeated request gets the reply of the first request."""
        request, key, writer = fingerprint(unit), call.idempotency_key, self._writer
        async with writer.key_lock(key):
            stored = await writer.log.reply(key)
            if stored is not None and stored.request != request:
                raise key_reused(key)
            if stored is not None and stored.reply is not None:
                # comes before `prepare`, which may fail now because facts of the first request no longer exist
                return msgspec.json.decode(stored.reply, type=FinalReply).outcome()
            command = await self._outside.prepare(unit, call)
            if stored is None:
                decision = await writer.run(command, call, request=request)
                first, last = decision.position - len(decision.records) + 1, decision.position
                stored = StoredReply(key, request, first, last)
        records = await writer.log.events(stored.first - 1, until=stored.last, limit=_NO_LIMIT)
        own = writer.stream_of(command)
        streams = tuple(dict.fromkeys([own] if own else []) | dict.fromkeys(record.stream for record in records))
        version = records[-1].version if records else None
        with writer.watchers.watch(
            streams
        ) as commits:  # the watch starts before the log is read, so no event in between is missed
            later = [r for s in streams for r in await writer.log.events(stored.last, stream=s, limit=_NO_LIMIT)]
            later.sort(key=lambda record: record.position)
            try:
                data = await self._wait_for_answer(command, [*records, *later], commits, replies)
            except AimaError as error:  # the error is the result, so it is stored and repeated like an answer
                final = FinalReply(version=version, position=stored.last, error=error.body())
            else:
                final = FinalReply(version=version, position=stored.last, data=msgspec.Raw(data))
        await writer.store_reply(StoredReply(key, request, stored.first, stored.last, msgspec.json.encode(final)))
        return final.outcome()

    async def _flow(self, command: Command[Any], call: Call, replies: ReplyStream) -> bytes:
        """Run a flow. A repeated idempotency key joins the first run or gets its answer, while this process runs."""
        key = call.idempotency_key
        if call.dry_run:
            plan = self._writer.plan(await self._outside.prepare(command, call), call)
            return msgspec.json.encode(plan)
        if not key:
            return encode_view(await self._outside.flow(command, call, replies))

        async def run() -> bytes:
            return encode_view(await self._outside.flow(command, call, replies))

        return await self._flow_answers.get(key, fingerprint(command), run)

    async def _log_page(self, query: LogQuery) -> LogPage:
        log = self._writer.log
        records = await log.events(query.after, limit=query.limit, stream=query.stream)
        return LogPage(
            log=log.ident, position=self._writer.committed_position, events=[record.wire() for record in records]
        )


def encode_page(page: LogPage) -> bytes:
    """Return a log page as JSON. Uses msgspec, because pydantic cannot encode the events in it."""
    return msgspec.json.encode({"log": page.log, "position": page.position, "events": page.events})


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
