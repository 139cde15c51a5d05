"""One domain as a running process: log, writer, endpoints, effects, followers, and the copies for the outside."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic

import msgspec
import uvloop
from nats.aio.client import Client as Nats

from aima_core import VERSION
from aima_core.bus.client import Peers
from aima_core.bus.connection import connect
from aima_core.bus.credentials import bus_user
from aima_core.bus.endpoints import Endpoints
from aima_core.bus.outcomes import Outcome, ReplyStream, encode_view
from aima_core.call import Call, current_call, fresh
from aima_core.domain import Context, Domain, S
from aima_core.errors import AimaError, Conflict, Unavailable, from_body
from aima_core.process.effects import Effects, end
from aima_core.process.follower import Follower
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

_DRAIN = 25.0  # seconds that running requests get when the process is asked to end; a supervisor kills it after 30
_RESTART = 1.0  # seconds before a background task that failed runs anew
_COLLECTED = (10_000, 10, 10)  # objects between collections; with Python's 700 they take a tenth of a busy process
_WHOLE = 1_000_000  # events: all there are of what one command led to
_REMEMBERED = 1000  # answers of flows kept in memory for repeated keys: they may hold content, so never on disk


class DomainProcess(Generic[S]):
    """Serves one domain until told to stop."""

    def __init__(self, domain: Domain[S], settings: Settings) -> None:
        self._domain = domain
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []
        self._flow_answers: dict[str, tuple[bytes, asyncio.Task[bytes]]] = {}

    async def serve(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Open everything, call `ready` when requests are answered, run until `stop`, drain, close.

        Raises Unavailable when the connection to the bus ended for good before: only a new process gets another.
        """
        domain, settings, lost = self._domain, self._settings, False

        def closed() -> None:
            nonlocal lost
            lost = not stop.is_set()
            stop.set()

        log = await self._open_log()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(log.close)
            self._runner = runner = Writer(domain, log, settings.node)
            await runner.open()
            stack.push_async_callback(runner.close)
            nc = await self._connect(closed)
            stack.push_async_callback(nc.close)
            self._followers = {peer: Follower(nc, domain, peer, runner) for peer in domain.follows}
            self._outside = outside = domain.outside(self._context(Peers(nc, settings.node), log))
            await outside.open()
            stack.push_async_callback(outside.close)
            self._resources = ResourceBucket(nc, domain, outside.answer)
            relay = Relay(nc, log, settings.node)
            runner.listeners += [relay.on_commit, self._resources.on_commit]
            effects = Effects(domain, runner, outside)
            stack.push_async_callback(effects.close)
            stack.push_async_callback(self._end_tasks)
            endpoints = Endpoints(nc, domain, self._units(), self._handle, settings.node)
            await endpoints.open(VERSION)
            effects.start()
            for work in (
                relay.run,
                lambda: self._resources.run(runner.streams),
                *(f.run for f in self._followers.values()),
                *outside.background(),
            ):
                self._tasks.append(asyncio.create_task(_for_ever(work)))
            logger.info("serving", position=runner.position)
            ready()
            await stop.wait()
            logger.info("draining")
            await endpoints.close(0 if lost else _DRAIN)  # without a bus nobody is answered
        logger.info("closed")
        if lost:
            raise Unavailable("the connection to the bus was closed for good", reason="NO_NATS")

    async def _open_log(self) -> Log:
        domain, folder = self._domain, self._settings.data / self._domain.name
        return await Log.open(folder, domain.name, Codec(domain.events, domain.upcasters))

    async def _connect(self, closed: Callable[[], None]) -> Nats:
        settings, name = self._settings, self._domain.name
        return await connect(settings.nats.url, f"aima-{name}", user=bus_user(settings, name), closed=closed)

    def _context(self, peers: Peers, log: Log) -> Context[S]:
        runner, settings = self._runner, self._settings

        async def record(command: Command[Any]) -> Sequence[Recorded]:
            parent = current_call.get()
            call = fresh(settings.node, parent=parent)
            return (await runner.run(command, call)).records

        return Context(
            node=settings.node,
            folder=settings.data / self._domain.name,
            settings=settings.of(self._domain.name),
            world=runner.committed,
            peers=peers,
            read=Reader(log, self._domain.evolve),
            record=record,
            caught_up=lambda peer: self._followers[peer].catch_up(),
            news=lambda: runner.watch(()),
        )

    def _units(self) -> tuple[type[Unit[Any]], ...]:
        uri = self._domain.resources[0].uri.replace("{id}", "x") if self._domain.resources else "asms://none"
        return (*self._domain.units, *units_of(self._domain.name, uri, self._domain.log_risk))

    async def _end_tasks(self) -> None:
        await end([*self._tasks, *(task for _, task in self._flow_answers.values())])

    # --- one request ----------------------------------------------------------------------------------------

    async def _handle(self, unit: Unit[Any], call: Call, replies: ReplyStream) -> Outcome:
        if isinstance(unit, LogQuery):
            return Outcome(encode_page(await self._log_page(unit)))
        if isinstance(unit, ReadQuery):
            view = await self._resources.read(unit.uri)
            return Outcome(encode_view(Read(uri=unit.uri, data=view.model_dump(mode="json"))))
        if isinstance(unit, Query):
            return Outcome(encode_view(await self._outside.answer(unit)), position=self._runner.position)
        if not isinstance(unit, Command):
            raise TypeError(unit)
        if isinstance(unit, self._outside.flows):
            return Outcome(await self._flow(unit, call, replies))
        self._runner.expect(unit, call)  # before the world is looked at; once more when deciding
        if call.idempotency_key and not call.dry_run:
            return await self._once(unit, call, replies)
        command = await self._outside.prepare(unit, call)
        if call.dry_run:
            planned = self._runner.plan(command, call)
            return Outcome(msgspec.json.encode(planned), version=planned.version)
        decision = await self._runner.run(command, call)
        data = await self._settle(command, decision.records, decision.streams, replies)
        return Outcome(data, decision.version, decision.position)

    async def _settle(
        self, command: Command[Any], records: Sequence[Recorded], streams: Sequence[str], replies: ReplyStream
    ) -> bytes:
        """Return the command's answer once what it set off has come to an end; events on the way are parts."""
        # most answers are there at once: only one that is not needs a watch (nothing can be missed: there is no await)
        if (view := self._runner.answer(command, [record.event for record in records])) is not None:
            return encode_view(view)
        with self._runner.watch(streams) as news:
            return await self._settled(command, records, news, replies)

    async def _settled(
        self, command: Command[Any], records: Sequence[Recorded], news: asyncio.Queue[Any], replies: ReplyStream
    ) -> bytes:
        events = [record.event for record in records]
        last = records[-1].position if records else 0
        while (view := self._runner.answer(command, events)) is None:
            for record in await news.get():
                if record.position > last:  # what was read from the log may come as news too
                    events.append(record.event)
                    await replies.send(record.wire())
        return encode_view(view)

    async def _once(self, unit: Command[Any], call: Call, replies: ReplyStream) -> Outcome:
        """Decide a keyed request at its first coming; give every later one the reply of the first."""
        request, key, runner = _fingerprint(unit), call.idempotency_key, self._runner
        async with runner.keyed(key):
            kept = await runner.log.reply(key)
            if kept is not None and kept.request != request:
                raise Conflict("this idempotency key was used for another request", reason="KEY_REUSED", key=key)
            if kept is not None and kept.reply is not None:
                # before the world is looked at: what was prepared for the first request may be gone by now
                return msgspec.json.decode(kept.reply, type=_Kept).outcome()
            command = await self._outside.prepare(unit, call)
            if kept is None:
                decision = await runner.run(command, call, request=request)
                first, last = decision.position - len(decision.records) + 1, decision.position
                kept = StoredReply(key, request, first, last)
        records = await runner.log.events(kept.first - 1, until=kept.last, limit=_WHOLE)
        own = runner.stream_of(command)
        streams = tuple(dict.fromkeys([own] if own else []) | dict.fromkeys(record.stream for record in records))
        version = records[-1].version if records else None
        with runner.watch(streams) as news:  # before the log is read: nothing falls between the two
            since = [r for s in streams for r in await runner.log.events(kept.last, stream=s, limit=_WHOLE)]
            since.sort(key=lambda record: record.position)
            try:
                data = await self._settled(command, [*records, *since], news, replies)
            except AimaError as error:  # what it came to: asked again, it has come to the same
                final = _Kept(version=version, position=kept.last, error=error.body())
            else:
                final = _Kept(version=version, position=kept.last, data=msgspec.Raw(data))
        await runner.keep_reply(StoredReply(key, request, kept.first, kept.last, msgspec.json.encode(final)))
        return final.outcome()

    async def _flow(self, command: Command[Any], call: Call, replies: ReplyStream) -> bytes:
        """Run a flow; a repeated key joins the first run or gets its answer, for as long as this process lives."""
        if call.dry_run:
            planned = self._runner.plan(await self._outside.prepare(command, call), call)
            return msgspec.json.encode(planned)
        if not call.idempotency_key:
            return encode_view(await self._outside.flow(command, call, replies))
        request = _fingerprint(command)
        known = self._flow_answers.get(call.idempotency_key)
        if known is None:
            while len(self._flow_answers) >= _REMEMBERED:
                self._flow_answers.pop(next(iter(self._flow_answers)))
            task = asyncio.create_task(self._run_flow(command, call, replies))
            known = self._flow_answers[call.idempotency_key] = (request, task)
        if known[0] != request:
            raise Conflict(
                "this idempotency key was used for another request", reason="KEY_REUSED", key=call.idempotency_key
            )
        return await asyncio.shield(known[1])

    async def _run_flow(self, command: Command[Any], call: Call, replies: ReplyStream) -> bytes:
        try:
            return encode_view(await self._outside.flow(command, call, replies))
        except BaseException:
            self._flow_answers.pop(call.idempotency_key, None)  # nothing came of it: the key may be tried again
            raise

    async def _log_page(self, query: LogQuery) -> LogPage:
        log = self._runner.log
        records = await log.events(query.after, limit=query.limit, stream=query.stream)
        return LogPage(
            log=log.ident, position=self._runner.committed_position, events=[record.wire() for record in records]
        )


class _Kept(msgspec.Struct):
    """A reply as it is kept beside its key."""

    version: int | None
    position: int | None
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None

    def outcome(self) -> Outcome:
        if self.error is not None:
            raise from_body(self.error)
        return Outcome(bytes(self.data), self.version, self.position)


def encode_page(page: LogPage) -> bytes:
    """Return a log page as JSON; msgspec, because its events are structs of ours."""
    return msgspec.json.encode({"log": page.log, "position": page.position, "events": page.events})


def _fingerprint(command: Command[Any]) -> bytes:
    return hashlib.sha256(f"{command.spec.name}\0{command.model_dump_json()}".encode()).digest()


async def _for_ever(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run background work for the life of the process; a failure is logged and the work begun anew."""
    while True:
        try:
            await work()
            return
        except AimaError as error:
            logger.warning("background work failed", error=error.message)
        except Exception:
            logger.error("background work broke", exc_info=True)
        await asyncio.sleep(_RESTART)


def run(domain: Domain[Any], settings: Settings, ready: Callable[[], None] = lambda: None, lifeline: int = -1) -> None:
    """Run the process until SIGTERM or SIGINT, or until the other end of `lifeline` is closed."""

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if lifeline >= 0:
            loop.add_reader(lifeline, stop.set)
        await DomainProcess(domain, settings).serve(stop, ready)

    gc.set_threshold(*_COLLECTED)
    uvloop.run(main())
