"""The one writer of a domain: decides commands one after another in memory, commits them in groups.

Deciding is synchronous, so the event loop itself keeps decisions apart; only the commit waits. Whatever was
decided while the previous transaction was being written goes into the next one. A caller hears nothing before
its commit. When a commit fails, memory goes back to what the log holds and every waiting caller gets the error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic
from weakref import WeakValueDictionary

import msgspec

from aima_core.call import Call
from aima_core.domain import Domain, S
from aima_core.errors import AimaError, Conflict, InternalError, PayloadTooLarge, Unavailable
from aima_core.store import replay
from aima_core.store.log import Log
from aima_core.store.records import Batch, Meta, Planned, Recorded, Statement, StoredReply
from aima_core.structured_logs import logger
from aima_core.units import Command, Event, View

_SNAPSHOT_EVERY = 10_000  # events; replaying that many takes about 20 ms
_LARGEST_EVENT = 512 * 1024  # bytes of JSON; every bus carries it, to JetStream and to followers
_ALL = "*"  # no stream has this name: a stream's has a slash

Listener = Callable[[Sequence[Recorded], Mapping[str, Any]], None]
"""Told of every commit: its events, and the states it left (None where a stream has no state any more)."""


class Decision(msgspec.Struct, frozen=True):
    """What a command came to. `streams` are those whose news may settle it."""

    records: list[Recorded]
    streams: tuple[str, ...]
    version: int
    position: int


class _GroupBroke(Unavailable):
    """The commit failed on something in it: each command of the group is tried again by itself."""


class _Pending(Generic[S]):
    """What is decided and not yet committed."""

    def __init__(self) -> None:
        self.batch = Batch()
        self.states: dict[str, S | None] = {}
        self.versions: dict[str, int] = {}
        self.waiting: list[asyncio.Future[None]] = []


class Writer(Generic[S]):
    """Runs the commands of one domain."""

    def __init__(self, domain: Domain[S], log: Log, node: str) -> None:
        self.domain = domain
        self.log = log
        self.node = node
        self.committed: dict[str, S] = {}
        self.position = 0
        self.cursors: dict[str, int] = {}
        self.listeners: list[Listener] = []
        self._world: dict[str, S] = {}
        self._versions: dict[str, int] = {}
        self._committed_versions: dict[str, int] = {}
        self._committed_position = 0
        self._snapshot_position = 0
        self._pending: _Pending[S] = _Pending()
        self._wake = asyncio.Event()
        self._watchers: dict[str, dict[asyncio.Queue[Sequence[Recorded]], None]] = {}  # in the order of their coming
        self._alone = asyncio.Lock()
        self._keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._flusher: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Fold the log into memory, bring the read tables up to this release, begin to write."""
        await self._load()
        await replay.build_tables(self.domain, self.log)
        self.cursors = await self.log.cursors()
        self._flusher = asyncio.create_task(self._flush(), name=f"{self.domain.name} writer")

    async def close(self) -> None:
        """Write what is pending and a snapshot; then the log may be closed."""
        if self._flusher:
            with contextlib.suppress(Exception):  # who waited for the commit has been told
                await self._written()
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        await self._snapshot()

    async def rebuild(self) -> int:
        """Throw away snapshot and read tables, make both again from the log; return how many events it holds."""
        await self.log.save_snapshot("", 0, ())
        await self._load()
        await replay.build_tables(self.domain, self.log, anew=True)
        await self._snapshot()
        return self._committed_position

    async def _load(self) -> None:
        found = await replay.load(self.domain, self.log)
        self._world, self.committed = found.world, dict(found.world)
        self._versions, self._committed_versions = found.versions, dict(found.versions)
        self.position = self._committed_position = found.position
        self._snapshot_position = found.snapshot

    # --- commands -------------------------------------------------------------------------------------------

    def plan(self, command: Command[Any], call: Call) -> Planned:
        """Decide without recording: the events, the effects they would cause, the version they were decided at."""
        streams, events = self._decide(command, call)
        effects: list[dict[str, Any]] = []
        for stream in dict.fromkeys(event.stream for event in events):
            state = self._world.get(stream)
            before = set(self.domain.todo(state)) if state is not None else set()
            for event in events:
                if event.stream == stream:
                    state = self.domain.evolve(state, event)
            after = self.domain.todo(state) if state is not None else ()
            effects += [
                {"effect": type(effect).__name__, **msgspec.to_builtins(effect)}
                for effect in after
                if effect not in before
            ]
        return Planned(
            [{"type": event.unit, "stream": event.stream, "data": msgspec.to_builtins(event)} for event in events],
            effects,
            self._versions.get(streams[0], 0) if streams else 0,
        )

    async def run(
        self, command: Command[Any], call: Call, *, cursor: tuple[str, int] | None = None, request: bytes = b""
    ) -> Decision:
        """Decide the command and return when what was decided is committed; raise what `decide` raises.

        `cursor` is a follower's position, `request` the fingerprint of a keyed request: both go into the same
        transaction as the events.
        """
        try:
            return await self._run(command, call, cursor, request)
        except _GroupBroke:
            pass
        async with self._alone:  # so that what is wrong with one command is told to its caller alone
            while True:
                try:
                    return await self._run(command, call, cursor, request)
                except _GroupBroke:
                    continue  # on a newcomer that joined it

    async def _run(self, command: Command[Any], call: Call, cursor: tuple[str, int] | None, request: bytes) -> Decision:
        streams, events = self._decide(command, call)
        records, states, statements = self._apply(events, call)
        if not (records or cursor or request):
            # "it is so already" may rest on events that are still being written: they might come to nothing
            if self.position != self._committed_position:
                await self._written()
            return Decision([], streams, self._versions.get(streams[0], 0) if streams else 0, self.position)
        pending = self._pending
        pending.batch.records += records
        pending.batch.statements += statements
        if cursor:
            pending.batch.cursors[cursor[0]] = cursor[1]
        if request:
            first = records[0].position if records else self.position + 1
            pending.batch.replies.append(StoredReply(call.idempotency_key, request, first, self.position))
        pending.states |= states
        for record in records:
            pending.versions[record.stream] = record.version
        version = records[0].version if records else 0
        for record in records:
            if record.stream == streams[0]:
                version = record.version
        position = self.position
        await self._written()
        return Decision(records, streams, version, position)

    async def advance(self, source: str, position: int) -> None:
        """Remember a follower's position when what it saw called for no command."""
        self._pending.batch.cursors[source] = position
        await self._written()

    @contextlib.asynccontextmanager
    async def keyed(self, key: str) -> AsyncIterator[None]:
        """Let one request with this idempotency key be looked up and decided at a time."""
        lock = self._keys.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    async def keep_reply(self, reply: StoredReply) -> None:
        """Keep the answer of a keyed request."""
        self._pending.batch.replies.append(reply)
        await self._written()

    @contextlib.contextmanager
    def watch(self, streams: Sequence[str]) -> Iterator[asyncio.Queue[Sequence[Recorded]]]:
        """Give a queue of the events that are committed to any of the streams from now on; of all, if none is named."""
        queue: asyncio.Queue[Sequence[Recorded]] = asyncio.Queue()
        streams = streams or (_ALL,)
        for stream in streams:
            self._watchers.setdefault(stream, {})[queue] = None
        try:
            yield queue
        finally:
            for stream in streams:
                self._watchers[stream].pop(queue, None)
                if not self._watchers[stream]:
                    del self._watchers[stream]

    @property
    def committed_position(self) -> int:
        """Position of the newest event that is in the log; `position` counts those being written too."""
        return self._committed_position

    @property
    def streams(self) -> Iterable[str]:
        """Every stream that ever had an event, also those that have no state any more."""
        return self._committed_versions

    def stream_of(self, command: Command[Any]) -> str | None:
        """Return the stream that a command is about; None for one that begins a stream."""
        field = command.spec.stream
        return f"{self.domain.name}/{getattr(command, field)}" if field else None

    def answer(self, command: Command[Any], events: Sequence[Event]) -> View | None:
        """Return the command's answer on what is committed, None while it is not settled."""
        return self.domain.reply(self.committed, command, events)

    # --- deciding -------------------------------------------------------------------------------------------

    def _decide(self, command: Command[Any], call: Call) -> tuple[tuple[str, ...], list[Event]]:
        own = self.stream_of(command)
        if own is not None:
            self._expect(own, call)
        events = self.domain.decide(self._world, command, call)
        streams = tuple(dict.fromkeys(event.stream for event in events))
        if own is None and streams:
            self._expect(streams[0], call)
        return (own, *(s for s in streams if s != own)) if own else streams, events

    def expect(self, command: Command[Any], call: Call) -> None:
        """Refuse a command about a stream that is not at the version its caller expects."""
        if own := self.stream_of(command):
            self._expect(own, call)

    def _expect(self, stream: str, call: Call) -> None:
        actual = self._versions.get(stream, 0)
        if call.expected_version is not None and call.expected_version != actual:
            raise Conflict(
                f"{stream} is at version {actual}, not {call.expected_version}",
                reason="VERSION_CONFLICT",
                stream=stream,
                expected_version=call.expected_version,
                version=actual,
            )

    def _apply(
        self, events: Sequence[Event], call: Call
    ) -> tuple[list[Recorded], dict[str, S | None], list[Statement]]:
        """Number the events, fold them, project them; nothing in memory moves until all of that has worked."""
        meta = Meta.of(call)
        records: list[Recorded] = []
        states: dict[str, S | None] = {}
        versions: dict[str, int] = {}
        statements: list[Statement] = []
        for offset, event in enumerate(events, 1):
            stream, position = event.stream, self.position + offset
            if (size := len(self.log.codec.encode(event))) > _LARGEST_EVENT:
                raise PayloadTooLarge(
                    f"this would record an event of {size} bytes; at most {_LARGEST_EVENT} are kept",
                    size=size,
                    limit=_LARGEST_EVENT,
                )
            version = versions.get(stream, self._versions.get(stream, 0)) + 1
            record = Recorded(position, stream, version, call.at, meta, event, self.log.event_id(position))
            before = states[stream] if stream in states else self._world.get(stream)
            states[stream] = self.domain.evolve(before, event)
            versions[stream] = version
            statements += self.domain.project(record)
            records.append(record)
        _merge(self._world, states)
        self._versions |= versions
        self.position += len(records)
        return records, states, statements

    async def _written(self) -> None:
        """Wait until what is pending is committed. A caller that gives up leaves the commit to the others."""
        done = asyncio.get_running_loop().create_future()
        self._pending.waiting.append(done)
        self._wake.set()
        await done  # its own future: cancelling it cancels nothing else

    # --- committing -----------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending.waiting:
                pending, self._pending = self._pending, _Pending()
                try:
                    await self.log.append(pending.batch)
                except Exception as error:
                    self._roll_back(pending, error)
                else:
                    self._commit(pending)
            if self._committed_position - self._snapshot_position >= _SNAPSHOT_EVERY:
                await self._snapshot()

    def _commit(self, pending: _Pending[S]) -> None:
        _merge(self.committed, pending.states)
        self._committed_versions |= pending.versions
        self.cursors |= pending.batch.cursors
        records = pending.batch.records
        if records:
            self._committed_position = records[-1].position
        for done in pending.waiting:
            if not done.done():
                done.set_result(None)
        by_queue: dict[asyncio.Queue[Sequence[Recorded]], list[Recorded]] = {}
        for record in records:
            for queue in self._watchers.get(record.stream, {}) | self._watchers.get(_ALL, {}):
                by_queue.setdefault(queue, []).append(record)
        for queue, news in by_queue.items():
            queue.put_nowait(news)
        for listener in self.listeners:
            try:
                listener(records, pending.states)
            except Exception:  # a bug in one domain function must not end the writer
                logger.error("a listener broke", exc_info=True)

    def _roll_back(self, failed: _Pending[S], error: Exception) -> None:
        later, self._pending = self._pending, _Pending()
        for pending in (failed, later):
            for stream in pending.states:
                _merge(self._world, {stream: self.committed.get(stream)})
            for stream in pending.versions:
                self._versions[stream] = self._committed_versions.get(stream, 0)
        self.position = self._committed_position
        logger.error("commit failed", error=repr(error), events=len(failed.batch.records))
        shown: Exception = InternalError("the log could not be written")
        if isinstance(error, AimaError):
            shown = error  # the disk, the file: no fault of any command
        elif len(failed.waiting) + len(later.waiting) > 1:
            shown = _GroupBroke("the commit failed; trying again", reason="GROUP_BROKE")
        for done in (*failed.waiting, *later.waiting):
            if not done.done():
                done.set_exception(shown)
                done.exception()  # seen: a caller may have left

    async def _snapshot(self) -> None:
        if self._committed_position == self._snapshot_position:
            return
        position = self._committed_position
        try:
            await replay.save(self.domain, self.log, dict(self.committed), self._committed_versions, position)
        except Exception as error:  # it only saves time at the next start; the writer goes on without it
            logger.warning("no snapshot", error=repr(error))
            return
        self._snapshot_position = position


def _merge(world: dict[str, S], states: Mapping[str, S | None]) -> None:
    for stream, state in states.items():
        if state is None:
            world.pop(stream, None)
        else:
            world[stream] = state
