"""Handles the requests of a domain: one request from its resolved input to its checked reply.

1  names in the input are replaced by ids                      (Domain.resolve)
2  a repeated idempotency key gets the reply of the first request
3  the expected version is compared with the stream's version
4  a command is prepared, decided and answered, or runs as a flow; a query is answered
5  the reply's type is checked, and the reply gets the versions of the streams that it shows
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic

import msgspec

from aima_core.bus.outcomes import Outcome, ReplyStream, encode_view
from aima_core.call import Call
from aima_core.domain import Domain, Outside, S
from aima_core.errors import AimaError
from aima_core.process.contract import Contract
from aima_core.process.idempotency import FinalReply, FlowAnswers, fingerprint, key_reused
from aima_core.process.stream_states import no_stream
from aima_core.process.writer import Writer
from aima_core.standard_units import LogPage, LogQuery, Read, ReadQuery
from aima_core.store.records import Recorded, StoredReply
from aima_core.stream_fields import version_of
from aima_core.units import Command, Query, Unit, View

_NO_LIMIT = 1_000_000  # events; more than any command leads to


class RequestHandler(Generic[S]):
    """Handles the requests of one domain. `read` returns the content of a resource by its address."""

    def __init__(
        self,
        domain: Domain[S],
        writer: Writer[S],
        outside: Outside[S],
        contract: Contract[S],
        read: Callable[[str], Awaitable[View]],
    ) -> None:
        self._domain = domain
        self._contract = contract
        self._writer = writer
        self._states = writer.states
        self._outside = outside
        self._read = read
        self.flow_answers = FlowAnswers()

    async def handle(self, request: Unit[Any], call: Call, replies: ReplyStream) -> Outcome:
        """Run one request. Raises TypeError if the domain replies with another type than the unit declares."""
        if isinstance(request, Query) and call.expected_version is not None:
            raise no_stream(request)
        if isinstance(request, LogQuery):
            return Outcome(_encode_page(await self._log_page(request)))
        if isinstance(request, ReadQuery):
            view = await self._read(request.uri)
            return Outcome(encode_view(Read(uri=request.uri, data=view.model_dump(mode="json"))))
        if isinstance(request, Query):
            view = await self._contract.answer(self._contract.resolve(request))
            return Outcome(encode_view(view), version=version_of(view), position=self._states.position)
        if not isinstance(request, Command):
            raise TypeError(request)
        command = self._contract.resolve(request)
        if (
            call.expected_version is not None
            and command.spec.stream is None
            and isinstance(command, self._outside.flows)
        ):
            raise no_stream(request)
        if call.dry_run:
            self._states.check_version(command, call)
            plan = self._states.plan(await self._outside.prepare(command, call), call)
            return Outcome(msgspec.json.encode(plan), version=plan.version)
        if isinstance(command, self._outside.flows):
            return await self._flow(request, command, call, replies)
        if call.idempotency_key:
            return await self._run_once(request, command, call, replies)
        self._states.check_version(command, call)  # before `prepare` does any work; deciding checks again
        prepared = await self._outside.prepare(command, call)
        decision = await self._writer.run(prepared, call)
        # most replies are known at once and need no watch; there is no await before `watch`, so no event is missed
        position = decision.position
        if (outcome := self._reply(command, prepared, decision.records, position)) is not None:
            return outcome
        with self._writer.watchers.watch(decision.streams) as commits:
            return await self._wait(command, prepared, decision.records, position, commits, replies)

    # --- commands -------------------------------------------------------------------------------------------

    def _reply(
        self, command: Command[Any], prepared: Command[Any], records: Sequence[Recorded], position: int
    ) -> Outcome | None:
        """Return the reply to a decided command from the committed states, or None while the result is open."""
        view = self._domain.reply(self._states.committed, prepared, [record.event for record in records])
        return None if view is None else self._outcome(command, view, records, position)

    def _outcome(
        self, command: Command[Any], view: View, records: Sequence[Recorded] = (), position: int | None = None
    ) -> Outcome:
        view, version = self._contract.reply(command, view, records)
        return Outcome(encode_view(view), version, position)

    async def _wait(
        self,
        command: Command[Any],
        prepared: Command[Any],
        records: Sequence[Recorded],
        position: int,
        commits: asyncio.Queue[Sequence[Recorded]],
        replies: ReplyStream,
    ) -> Outcome:
        """Return the reply once the result is known. Until then, sends each new event as a part."""
        records = list(records)
        last = records[-1].position if records else 0
        while (outcome := self._reply(command, prepared, records, position)) is None:
            for record in await commits.get():
                if record.position > last:  # an event that was read from the log may also be in the queue
                    records.append(record)
                    await replies.send(record.wire())
        return outcome

    async def _run_once(
        self, request: Command[Any], command: Command[Any], call: Call, replies: ReplyStream
    ) -> Outcome:
        """Run a request with an idempotency key. A repeated request gets the reply of the first request."""
        sent, key, writer = fingerprint(request), call.idempotency_key, self._writer
        async with writer.key_lock(key):
            stored = await writer.log.reply(key)
            if stored is not None and stored.request != sent:
                raise key_reused(key)
            if stored is not None and stored.reply is not None:
                # does not call `prepare`, which may fail now if facts of the first request no longer exist
                return msgspec.json.decode(stored.reply, type=FinalReply).outcome()
            if stored is None:
                self._states.check_version(command, call)
            prepared = await self._outside.prepare(command, call)
            if stored is None:
                decision = await writer.run(prepared, call, request=sent)
                first, last = decision.position - len(decision.records) + 1, decision.position
                stored = StoredReply(key, sent, first, last)
        records = await writer.log.events(stored.first - 1, until=stored.last, limit=_NO_LIMIT)
        own = self._states.stream_of(prepared)
        streams = tuple(dict.fromkeys([own] if own else []) | dict.fromkeys(record.stream for record in records))
        with writer.watchers.watch(
            streams
        ) as commits:  # watch before reading the log, so that no event is missed between them
            later = [r for s in streams for r in await writer.log.events(stored.last, stream=s, limit=_NO_LIMIT)]
            later.sort(key=lambda record: record.position)
            try:
                outcome = await self._wait(command, prepared, [*records, *later], stored.last, commits, replies)
            except AimaError as error:  # is the result of the request, so it is stored and repeated like an answer
                final = FinalReply(version=None, position=stored.last, error=error.body())
            else:
                final = FinalReply(outcome.version, stored.last, msgspec.Raw(outcome.data))
        await writer.store_reply(StoredReply(key, sent, stored.first, stored.last, msgspec.json.encode(final)))
        return final.outcome()

    async def _flow(self, request: Command[Any], command: Command[Any], call: Call, replies: ReplyStream) -> Outcome:
        """Run a flow. A repeated idempotency key gets the answer of the first run while this process lives."""

        async def run() -> Outcome:
            self._states.check_version(command, call)
            return self._outcome(command, await self._outside.flow(command, call, replies))

        if not call.idempotency_key:
            return await run()
        return await self.flow_answers.get(call.idempotency_key, fingerprint(request), run)

    async def _log_page(self, query: LogQuery) -> LogPage:
        log = self._writer.log
        records = await log.events(query.after, limit=query.limit, stream=query.stream)
        return LogPage(
            log=log.ident, position=self._states.committed_position, events=[record.wire() for record in records]
        )


def _encode_page(page: LogPage) -> bytes:
    """Return a log page as JSON. Uses msgspec, because pydantic cannot encode the events in it."""
    return msgspec.json.encode({"log": page.log, "position": page.position, "events": page.events})
