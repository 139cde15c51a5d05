"""What happens, told to all who listen: `GET /api/v2/events`, server-sent events from the stream AIMA_EVENTS.

One consumer feeds a ring of the newest events while anybody listens; a client is a position in the stream and nothing
more. It takes what is behind its position from the ring while it is there, and otherwise in small pages from JetStream,
as fast as it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import NamedTuple

from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.bus.directory import UnitInfo
from aima_core.call import timestamp
from aima_core.errors import Unavailable
from aima_core.process.relay import STREAM, ensure_stream
from services.gateway.entrance import bodies
from services.gateway.entrance.access import Policy
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.metrics import Metrics
from services.gateway.entrance.paths import fixed_path
from services.gateway.events import event_filter, sse
from services.gateway.events.event_filter import EventFilter
from services.gateway.events.feed import BUS_AWAY, GRACE, Feed, numbers
from services.gateway.events.frames import EventFrame, frame_for, read

_KEPT = 2048  # events in the ring
_KEPT_BYTES = 16 * 2**20  # and what they may take together; as much again where some are told without their caller
_PAGE = 64  # events that are handed to a client, or read for it, at once
_READERS = 8  # pages that are read at the same time: what many slow clients may take of memory together
_AWAY = 1.0  # seconds until a page is tried again
_WOKEN = 40  # clients that are woken before other work gets its turn
_READING = UnitInfo(name="gateway.events", kind="query", risk="low")  # what reading events counts as


class StreamPosition(NamedTuple):
    """How far a client has come: the number in the stream, and which stream, as one made anew counts from 1 again."""

    life: int
    seq: int


class EventTail:
    """The newest events, and the way to older ones."""

    def __init__(self, nc: Nats, grace: float = GRACE) -> None:
        self._js = nc.jetstream(timeout=5)
        self._ring: deque[EventFrame] = deque()
        self._bytes = 0
        self._floor: int | None = None  # the ring holds all that is behind this number; None: nothing is known yet
        self._feed = Feed(nc, STREAM, self._take, self._forget, grace)
        self._reading = asyncio.Semaphore(_READERS)
        self._waiting: set[asyncio.Future[None]] = set()
        self._news = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Keep up with the stream whenever somebody listens, for ever."""
        await self._make_stream()
        await self._feed.run()

    async def wake(self) -> None:
        """Wake whoever waits for news, for ever; some at a time, as ten thousand at once would hold up all others."""
        while True:
            await self._news.wait()
            self._news.clear()
            woken = list(self._waiting)
            for start in range(0, len(woken), _WOKEN):
                for waiter in woken[start : start + _WOKEN]:
                    if not waiter.done():
                        waiter.set_result(None)
                await asyncio.sleep(0)

    def close(self) -> None:
        """End the streams of all clients."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def position(self, asked: EventFilter) -> StreamPosition:
        """Return where a client begins. Raises Unavailable while JetStream is away.

        A number beyond the end of the stream is one of a stream that is no more, as numbers only grow: all of the one
        in its place is news. Once that one has grown beyond the number, nothing tells it from one of its own.
        """
        with self._feed:
            last = await self._feed.found()
            life = self._feed.life
            try:
                return StreamPosition(life, await self._beginning(asked, last))
            except BUS_AWAY as error:
                raise Unavailable("events cannot be read right now", reason="NO_JETSTREAM", retry_after=1) from error

    async def _beginning(self, asked: EventFilter, last: int) -> int:
        """Return the number behind which a client begins; `last` is the newest that the feed has come to."""
        if asked.after is not None:
            beyond = asked.after > last and asked.after > (await self._js.stream_info(STREAM)).state.last_seq
            return 0 if beyond else asked.after
        if asked.since is None:
            return last
        config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=timestamp(asked.since))  # type: ignore[arg-type]
        first = await self._read(config, asked.subject(), 1)
        return first[0][0] - 1 if first else last

    async def follow(
        self, place: StreamPosition, asked: EventFilter, seen: Callable[[EventFrame], bytes]
    ) -> AsyncGenerator[bytes]:
        """Yield the events behind a place that are asked for, as frames, until the gateway closes.

        `seen` returns the frame of an event that a client gets; an empty one is none.
        """
        life, position = place
        with self._feed:
            while not self._closed:
                if life != self._feed.life:
                    life, position = self._feed.life, 0
                found = self._newer(position)
                if found is None:
                    try:
                        found, position = await self._page(position, asked.subject())
                    except BUS_AWAY:
                        await asyncio.sleep(_AWAY)
                        continue
                elif found:
                    position = found[-1].seq
                else:
                    await self._wait()
                    continue
                if chosen := b"".join(seen(t) for t in found if asked.fits(t.domain, t.kind, t.stream)):
                    yield chosen

    # --- the newest -----------------------------------------------------------------------------------------

    def _take(self, seq: int, message: Msg) -> None:
        if self._floor is None:
            self._floor = seq - 1
        if told := read(seq, message.subject, message.data):
            self._ring.append(told)
            self._bytes += len(told.frame)
        while len(self._ring) > _KEPT or self._bytes > _KEPT_BYTES:
            gone = self._ring.popleft()
            self._bytes -= len(gone.frame)
            self._floor = gone.seq
        self._news.set()

    def _forget(self) -> None:
        self._ring.clear()
        self._bytes, self._floor = 0, None
        self._news.set()

    def _newer(self, position: int) -> list[EventFrame] | None:
        """Return the next events behind a position; None when they are not in the ring any more."""
        if position >= self._feed.last:
            return []
        if self._floor is None or position < self._floor:
            return None
        found: deque[EventFrame] = deque(maxlen=_PAGE)
        for told in reversed(self._ring):
            if told.seq <= position:
                break
            found.appendleft(told)
        return list(found)

    async def _wait(self) -> None:
        """Return when there is news."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    # --- older ones -----------------------------------------------------------------------------------------

    async def _page(self, position: int, subject: str) -> tuple[list[EventFrame], int]:
        """Return the next events with a subject behind a position, and the position behind them."""
        upto = self._feed.last
        config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=position + 1)
        found = await self._read(config, subject, _PAGE)
        told = [each for seq, message in found if (each := read(seq, message.subject, message.data))]
        passed = found[-1][0] if found else position
        return told, passed if len(found) == _PAGE else max(passed, upto)

    async def _read(self, config: ConsumerConfig, subject: str, most: int) -> list[tuple[int, Msg]]:
        """Return the first messages that a consumer of this kind has; it lives for this one page."""
        config.ack_policy, config.filter_subject = AckPolicy.NONE, subject
        config.mem_storage, config.num_replicas, config.inactive_threshold = True, 1, 30
        async with self._reading:
            made = await self._js.add_consumer(STREAM, config)
            try:
                if not made.num_pending:
                    return []
                subscription = await self._js.pull_subscribe_bind(made.name, STREAM)
                try:
                    messages = await subscription.fetch(min(most, made.num_pending), timeout=5)
                finally:
                    await subscription.unsubscribe()
            finally:
                with contextlib.suppress(*BUS_AWAY):
                    await self._js.delete_consumer(STREAM, made.name)
        return [(numbers(message)[0], message) for message in messages]

    async def _make_stream(self) -> None:
        """Have the stream there even if nothing has ever happened."""
        while True:
            try:
                await ensure_stream(self._js)
                return
            except BUS_AWAY:
                await asyncio.sleep(_AWAY)


class EventStream:
    """The door to it."""

    def __init__(self, tail: EventTail, policy: Policy, metrics: Metrics) -> None:
        self._tail = tail
        self._policy = policy
        self._open = metrics.streams.labels("events")

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [fixed_path("/api/v2/events", {"GET": self.follow})]

    async def follow(self, request: Request) -> Response:
        """Tell the events that a client asks for, as far as it may see them."""
        caller = caller_of(request.state)
        who = caller.principal
        if not who.known:
            self._policy.permit(who, _READING)
        asked = event_filter.read(bodies.query_of(request), request.headers.get("last-event-id", ""), time.time())
        place = await self._tail.position(asked)
        events = self._tail.follow(place, asked, partial(frame_for, who, self._policy))
        return await sse.answer(self._counted(events), caller.valid)

    async def _counted(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        with self._open.track_inprogress():
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
