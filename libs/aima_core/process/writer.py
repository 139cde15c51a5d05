"""The single writer of a domain: decides commands one after another and commits their events in groups.

`stream_states.py` decides, and this file commits. A decision is synchronous, so two decisions never overlap. Only a
commit awaits. Commands that are decided while a transaction is being written go into the next transaction. A caller
gets its result only after the commit. If a commit fails, the states in memory become equal to those of the log again.
If the disk or the file is the cause, every waiting caller gets the error. Otherwise, each command is tried again alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Generic
from weakref import WeakValueDictionary

import msgspec

from aima_core.call import Call
from aima_core.domain import Domain, S
from aima_core.errors import AimaError, InternalError, Unavailable
from aima_core.process.stream_states import StreamStates
from aima_core.process.watchers import Watchers
from aima_core.store import replay
from aima_core.store.log import Log
from aima_core.store.records import Batch, Recorded, StoredReply
from aima_core.structured_logs import logger
from aima_core.units import Command

_SNAPSHOT_EVERY = 10_000  # events; replaying 10,000 events takes about 20 ms

Listener = Callable[[Sequence[Recorded], Mapping[str, Any]], None]
"""A function that is called after every commit, with the events and the new states. None means that a state ended."""


class Decision(msgspec.Struct, frozen=True):
    """The committed result of a command. Later events of `streams` may complete the command's answer."""

    records: list[Recorded]
    streams: tuple[str, ...]
    version: int
    position: int


class _GroupFailed(Unavailable):
    """The commit of a group of commands failed. Each command is tried again in a group of its own."""


class _Pending(Generic[S]):
    """The decided events that are not committed yet, and the callers that wait for them."""

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
        self.states: StreamStates[S] = StreamStates(domain, log)
        self.cursors: dict[str, int] = {}
        self.listeners: list[Listener] = []
        self.watchers = Watchers()
        self._snapshot_position = 0
        self._pending: _Pending[S] = _Pending()
        self._wake = asyncio.Event()
        self._retry_lock = asyncio.Lock()
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._flusher: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Load the states from the log, rebuild outdated read tables, and start to commit."""
        await self._load()
        await replay.build_tables(self.domain, self.log)
        self.cursors = await self.log.cursors()
        self._flusher = asyncio.create_task(self._flush(), name=f"{self.domain.name} writer")

    async def close(self) -> None:
        """Commit the pending events and write a snapshot. Does not close the log."""
        if self._flusher:
            with contextlib.suppress(Exception):  # the callers that wait for the commit have got the error
                await self._written()
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher
        await self._snapshot()

    async def rebuild(self) -> int:
        """Delete the snapshot and the read tables, and build both again. Returns the number of events in the log."""
        await self.log.save_snapshot("", 0, ())
        await self._load()
        await replay.build_tables(self.domain, self.log, force=True)
        await self._snapshot()
        return self.states.committed_position

    async def _load(self) -> None:
        folded = await replay.load(self.domain, self.log)
        self.states.load(folded)
        self._snapshot_position = folded.snapshot

    # --- commands -------------------------------------------------------------------------------------------

    async def run(
        self, command: Command[Any], call: Call, *, cursor: tuple[str, int] | None = None, request: bytes = b""
    ) -> Decision:
        """Decide the command, and return when its events are committed. Raises the errors of `decide`.

        `cursor` is a follower's source and position. `request` is the fingerprint of a request with an idempotency key.
        Both are written in the same transaction as the events.
        """
        try:
            return await self._run(command, call, cursor, request)
        except _GroupFailed:
            pass
        async with self._retry_lock:  # one retry at a time, so that only the failing command's caller gets the error
            while True:
                try:
                    return await self._run(command, call, cursor, request)
                except _GroupFailed:
                    continue  # the group also had a new command, which may have caused the failure

    async def _run(self, command: Command[Any], call: Call, cursor: tuple[str, int] | None, request: bytes) -> Decision:
        states = self.states
        streams, events = states.decide(command, call)
        records, changed, statements = states.apply(events, call)
        if not (records or cursor or request):
            # there may be nothing to do because of events that are still being written, and their commit may fail
            if states.position != states.committed_position:
                await self._written()
            return Decision([], streams, states.decided_versions.get(streams[0], 0) if streams else 0, states.position)
        pending = self._pending
        pending.batch.records += records
        pending.batch.statements += statements
        if cursor:
            pending.batch.cursors[cursor[0]] = cursor[1]
        if request:
            first = records[0].position if records else states.position + 1
            pending.batch.replies.append(StoredReply(call.idempotency_key, request, first, states.position))
        pending.states |= changed
        for record in records:
            pending.versions[record.stream] = record.version
        version = records[0].version if records else 0
        for record in records:
            if record.stream == streams[0]:
                version = record.version
        position = states.position
        await self._written()
        return Decision(records, streams, version, position)

    async def advance(self, source: str, position: int) -> None:
        """Store a follower's position after events that led to no command."""
        self._pending.batch.cursors[source] = position
        await self._written()

    @contextlib.asynccontextmanager
    async def key_lock(self, key: str) -> AsyncIterator[None]:
        """Hold the lock of an idempotency key, so two requests with this key cannot both count as the first."""
        lock = self._key_locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    async def store_reply(self, reply: StoredReply) -> None:
        """Store the reply of a request with an idempotency key. Returns when the reply is committed."""
        self._pending.batch.replies.append(reply)
        await self._written()

    async def _written(self) -> None:
        """Wait until the pending events are committed. Cancelling the wait does not cancel the commit."""
        done = asyncio.get_running_loop().create_future()  # one per caller, so cancelling one caller affects no other
        self._pending.waiting.append(done)
        self._wake.set()
        await done

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
            if self.states.committed_position - self._snapshot_position >= _SNAPSHOT_EVERY:
                await self._snapshot()

    def _commit(self, pending: _Pending[S]) -> None:
        records = pending.batch.records
        position = records[-1].position if records else self.states.committed_position
        self.states.commit(pending.states, pending.versions, position)
        self.cursors |= pending.batch.cursors
        for done in pending.waiting:
            if not done.done():
                done.set_result(None)
        self.watchers.notify(records)
        for listener in self.listeners:
            try:
                listener(records, pending.states)
            except Exception:  # a bug in a function of the domain must not end the writer
                logger.error("a commit listener failed unexpectedly", exc_info=True)

    def _roll_back(self, failed: _Pending[S], error: Exception) -> None:
        later, self._pending = self._pending, _Pending()
        self.states.roll_back([*failed.states, *later.states])
        logger.error("commit failed", error=repr(error), events=len(failed.batch.records))
        caller_error: Exception = InternalError("the log could not be written")
        if isinstance(error, AimaError):
            caller_error = error  # the disk or the file is the cause, not one of the commands
        elif len(failed.waiting) + len(later.waiting) > 1:
            caller_error = _GroupFailed("the commit failed; trying again", reason="GROUP_BROKE")
        for done in (*failed.waiting, *later.waiting):
            if not done.done():
                done.set_exception(caller_error)
                done.exception()  # marks the error as retrieved; otherwise, asyncio logs it if the caller is gone

    async def _snapshot(self) -> None:
        states, position = self.states, self.states.committed_position
        if position == self._snapshot_position:
            return
        try:
            await replay.save(self.domain, self.log, dict(states.committed), states.committed_versions, position)
        except Exception as error:  # a snapshot only makes the next start faster, so the writer continues without it
            logger.warning("a snapshot could not be written", error=repr(error))
            return
        self._snapshot_position = position
