"""Follows the events of another domain, each exactly once, in order, from a cursor in our own log.

The live copy on the bus only wakes us: what is missing is asked of the peer's log itself (`<domain>.log`), so
that a lost message, a restarted server or an emptied stream cannot make a gap (decision 0005).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Generic

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from aima_core import call as calls
from aima_core.bus.client import Client
from aima_core.domain import Domain, S
from aima_core.errors import AimaError, PayloadTooLarge, Timeout, Unavailable
from aima_core.process.writer import Writer
from aima_core.store.records import Codec, Meta, Recorded
from aima_core.structured_logs import logger

_PAGE = 500  # events asked for at once
_LOOK = 5.0  # seconds; a look at the peer's log even when nothing woke us
_RETRY = 0.5  # seconds
_ASK = 2.0  # seconds for a page, which takes milliseconds: a peer that dies over it is asked again


class Follower(Generic[S]):
    """Our side of one peer."""

    def __init__(self, nc: Nats, domain: Domain[S], peer: str, runner: Writer[S]) -> None:
        self._nc = nc
        self._client = Client(nc)
        self._domain = domain
        self._peer = peer
        self._runner = runner
        self._codec = Codec(domain.follows[peer])
        self._wanted = {event.unit for event in domain.follows[peer]}
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._limit = _PAGE
        self._source = ""  # peer and the id of its log: a log that was begun anew is followed from its beginning

    async def run(self) -> None:
        """Follow for ever."""
        subscription = await self._nc.subscribe(f"aima.events.{self._peer}.>", cb=self._on_event)
        try:
            await self._follow()
        finally:  # run anew after a failure, it would otherwise be subscribed twice
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _follow(self) -> None:
        while True:
            try:
                self._wake.clear()
                while await self._page():
                    pass
                async with asyncio.timeout(_LOOK):
                    await self._wake.wait()
            except TimeoutError:
                continue
            except PayloadTooLarge:
                if self._limit == 1:
                    raise
                self._limit //= 2  # events as large as that come in smaller pages
            except AimaError as error:
                # a peer that is away comes back; anything else is for somebody to look at
                tell = logger.debug if isinstance(error, Unavailable | Timeout) else logger.warning
                tell("peer not followed right now", peer=self._peer, error=error.message)
                await asyncio.sleep(_RETRY)

    async def catch_up(self) -> None:
        """Return when everything that the peer had recorded until now has been taken in.

        For a request that finds nothing where the caller has just been told by the peer that there is something.
        """
        answer = await self._client.ask(f"{self._peer}.log", {"limit": 1}, timeout=2)
        source, position = f"{self._peer}/{answer.data['log']}", answer.data["position"]
        self._wake.set()
        while self._runner.cursors.get(source, 0) < position:
            self._moved.clear()
            await self._moved.wait()

    async def _on_event(self, _: Msg) -> None:
        self._wake.set()

    async def _page(self) -> bool:
        """Take in one page of the peer's log; True when there may be more."""
        after = self._runner.cursors.get(self._source, 0)
        answer = await self._client.ask(f"{self._peer}.log", {"after": after, "limit": self._limit}, timeout=_ASK)
        source = f"{self._peer}/{answer.data['log']}"
        if source != self._source:
            self._source = source
            return True
        events: list[dict[str, Any]] = answer.data["events"]
        passed = after
        for row in events:
            if row["type"] in self._wanted:
                await self._take(row)
                passed = row["position"]
        if events and events[-1]["position"] != passed:
            await self._runner.advance(self._source, events[-1]["position"])
        self._moved.set()
        return len(events) == self._limit

    async def _take(self, row: dict[str, Any]) -> None:
        record = Recorded(
            row["position"],
            row["stream"],
            row["version"],
            calls.unix(row["recorded_at"]),
            Meta(node=row["node"], correlation_id=row["correlation_id"]),
            self._codec.decode(row["type"], msgspec.json.encode(row["data"])),
            row["id"],
        )
        call = msgspec.structs.replace(
            calls.fresh(self._runner.node, record.id),
            correlation_id=row["correlation_id"],
            principal=row["principal"],
            trace=calls.child_of(row["trace"]),
        )
        commands = list(self._domain.react(record))
        for command in commands[:-1]:
            await self._runner.run(command, call)
        if commands:  # with the last of them goes the cursor: the ones before are harmless to repeat
            await self._runner.run(commands[-1], call, cursor=(self._source, record.position))
        else:
            await self._runner.advance(self._source, record.position)
