"""Follows a peer: handles each of the peer's events exactly once and in order. The domain's own log stores the cursor.

The live copies of events on the bus only wake the follower. The follower reads the events from the peer's log
(`<domain>.log`). So a lost message, a restarted server or a deleted JetStream stream causes no gap (decision 0005).
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

_PAGE = 500  # events that one request reads
_POLL_INTERVAL = 5.0  # seconds until the peer's log is read even if no event wakes the follower
_RETRY = 0.5  # seconds
_PAGE_TIMEOUT = 2.0  # seconds; short, because a page takes milliseconds, and a restarted peer must be read again soon


class Follower(Generic[S]):
    """Follows one peer: another domain, whose events cause commands of the follower's domain."""

    def __init__(self, nc: Nats, domain: Domain[S], peer: str, writer: Writer[S]) -> None:
        self._nc = nc
        self._client = Client(nc)
        self._domain = domain
        self._peer = peer
        self._writer = writer
        self._codec = Codec(domain.follows[peer])
        self._event_types = {event.unit for event in domain.follows[peer]}
        self._wake = asyncio.Event()
        self._advanced = asyncio.Event()
        self._limit = _PAGE
        self._source = ""  # the peer and its log's id; a new log has no cursor and is read from its beginning

    async def run(self) -> None:
        """Follow the peer until cancelled."""
        subscription = await self._nc.subscribe(f"aima.events.{self._peer}.>", cb=self._on_event)
        try:
            await self._follow()
        finally:  # `run` is called again after a failure, and must not have two subscriptions then
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _follow(self) -> None:
        while True:
            try:
                self._wake.clear()
                while await self._handle_page():
                    pass
                async with asyncio.timeout(_POLL_INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                continue
            except PayloadTooLarge:
                if self._limit == 1:
                    raise
                self._limit //= 2  # large events need smaller pages
            except AimaError as error:
                # an unavailable peer comes back; any other error needs attention
                log = logger.debug if isinstance(error, Unavailable | Timeout) else logger.warning
                log("the peer's log cannot be read; trying again", peer=self._peer, error=error.message)
                await asyncio.sleep(_RETRY)

    async def catch_up(self) -> None:
        """Wait until this domain has handled every event that the peer has recorded so far.

        A caller may know an event from the peer before the follower has read it. Raises Unavailable if the peer is
        silent.
        """
        answer = await self._client.ask(f"{self._peer}.log", {"limit": 1}, timeout=2)
        source, position = f"{self._peer}/{answer.data['log']}", answer.data["position"]
        self._wake.set()
        while self._writer.cursors.get(source, 0) < position:
            self._advanced.clear()
            await self._advanced.wait()

    async def _on_event(self, _: Msg) -> None:
        self._wake.set()

    async def _handle_page(self) -> bool:
        """Handle one page of the peer's log. Returns whether the log may have more pages."""
        after = self._writer.cursors.get(self._source, 0)
        request = {"after": after, "limit": self._limit}
        answer = await self._client.ask(f"{self._peer}.log", request, timeout=_PAGE_TIMEOUT)
        source = f"{self._peer}/{answer.data['log']}"
        if source != self._source:
            self._source = source
            return True
        events: list[dict[str, Any]] = answer.data["events"]
        cursor = after
        for row in events:
            if row["type"] in self._event_types:
                await self._handle(row)
                cursor = row["position"]
        if events and events[-1]["position"] != cursor:
            await self._writer.advance(self._source, events[-1]["position"])
        self._advanced.set()
        return len(events) == self._limit

    async def _handle(self, row: dict[str, Any]) -> None:
        """Run the commands that `react` returns for an event, and advance the cursor."""
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
            calls.fresh(self._writer.node, record.id),
            correlation_id=row["correlation_id"],
            principal=row["principal"],
            trace=calls.child_of(row["trace"]),
        )
        commands = list(self._domain.react(record))
        for command in commands[:-1]:
            await self._writer.run(command, call)
        if commands:  # the last command commits the cursor; after a crash, the others run again, harmlessly
            await self._writer.run(commands[-1], call, cursor=(self._source, record.position))
        else:
            await self._writer.advance(self._source, record.position)
