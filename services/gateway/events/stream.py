"""`GET /api/v2/events`: the events of the JetStream stream AIMA_EVENTS, as server-sent events.

While clients are connected, one consumer fills a ring buffer with the newest events. Each client has only a position
in the stream. The client gets the events after its position from the ring. If the ring has dropped these events, the
client gets them from JetStream in small pages. Each client reads at its own speed.
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
_KEPT_BYTES = 16 * 2**20  # bytes of all frames in the ring; hidden frames are not counted and can double them
_PAGE = 64  # the most events that are read for a client, or sent to a client, at once
_READERS = 8  # pages that are read at the same time; the limit bounds the memory for many slow clients
_AWAY = 1.0  # seconds until a failed read of a page is tried again
_WOKEN = 40  # clients that are woken before other tasks may run
_READING = UnitInfo(name="gateway.events", kind="query", risk="low")  # reading events needs the same right as this unit


class StreamPosition(NamedTuple):
    """A client's position: an event's number in the stream, and the stream's `life`.

    `life` counts how often the stream was recreated; a recreated stream numbers its events from 1 again.
    """

    life: int
    seq: int


class EventTail:
    """The newest events in a ring buffer, and pages of older ones from JetStream."""

    def __init__(self, nc: Nats, grace: float = GRACE) -> None:
        self._js = nc.jetstream(timeout=5)
        self._ring: deque[EventFrame] = deque()
        self._bytes = 0
        self._floor: int | None = None  # the ring has every event after this number; None before the first event
        self._feed = Feed(nc, STREAM, self._take, self._forget, grace)
        self._reading = asyncio.Semaphore(_READERS)
        self._waiting: set[asyncio.Future[None]] = set()
        self._new_events = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Follow the stream whenever clients are connected. Runs until cancelled."""
        await self._make_stream()
        await self._feed.run()

    async def wake(self) -> None:
        """Wake the waiting clients after new events, in small groups: 10,000 at once would delay other tasks."""
        while True:
            await self._new_events.wait()
            self._new_events.clear()
            waiting = list(self._waiting)
            for start in range(0, len(waiting), _WOKEN):
                for waiter in waiting[start : start + _WOKEN]:
                    if not waiter.done():
                        waiter.set_result(None)
                await asyncio.sleep(0)

    def close(self) -> None:
        """End the streams of all clients."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def position(self, selection: EventFilter) -> StreamPosition:
        """Return a client's first position. Raises Unavailable if JetStream does not answer.

        A number beyond the end of the stream belongs to an earlier stream, which was deleted. The client then gets the
        whole new stream. Once the new stream has grown beyond the number, the gateway cannot detect the deletion, and
        the client gets only the events after the number.
        """
        with self._feed:
            last = await self._feed.newest()
            life = self._feed.life
            try:
                return StreamPosition(life, await self._beginning(selection, last))
            except BUS_AWAY as error:
                raise Unavailable(
                    "events cannot be read, because JetStream does not answer; try again",
                    reason="NO_JETSTREAM",
                    retry_after=1,
                ) from error

    async def _beginning(self, selection: EventFilter, last: int) -> int:
        """Return the number of the event before a client's first event. `last` is the feed's newest number."""
        if selection.after is not None:
            beyond = selection.after > last and selection.after > (await self._js.stream_info(STREAM)).state.last_seq
            return 0 if beyond else selection.after
        if selection.since is None:
            return last
        config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=timestamp(selection.since))  # type: ignore[arg-type]
        messages = await self._read(config, selection.subject(), 1)
        return messages[0][0] - 1 if messages else last

    async def follow(
        self, start: StreamPosition, selection: EventFilter, frame_of: Callable[[EventFrame], bytes]
    ) -> AsyncGenerator[bytes]:
        """Yield the selected events after a position, as frames, until the gateway closes.

        `frame_of` returns the frame of an event for the client, or b"" if the client may not see the event.
        """
        life, position = start
        with self._feed:
            while not self._closed:
                if life != self._feed.life:
                    life, position = self._feed.life, 0
                events = self._newer(position)
                if events is None:
                    try:
                        events, position = await self._page(position, selection.subject())
                    except BUS_AWAY:
                        await asyncio.sleep(_AWAY)
                        continue
                elif events:
                    position = events[-1].seq
                else:
                    await self._wait()
                    continue
                if frames := b"".join(
                    frame_of(event) for event in events if selection.fits(event.domain, event.kind, event.stream)
                ):
                    yield frames

    # --- the newest events ----------------------------------------------------------------------------------

    def _take(self, seq: int, message: Msg) -> None:
        if self._floor is None:
            self._floor = seq - 1
        if event := read(seq, message.subject, message.data):
            self._ring.append(event)
            self._bytes += len(event.frame)
        while len(self._ring) > _KEPT or self._bytes > _KEPT_BYTES:
            dropped = self._ring.popleft()
            self._bytes -= len(dropped.frame)
            self._floor = dropped.seq
        self._new_events.set()

    def _forget(self) -> None:
        self._ring.clear()
        self._bytes, self._floor = 0, None
        self._new_events.set()

    def _newer(self, position: int) -> list[EventFrame] | None:
        """Return the next events after a position from the ring. Returns None if the ring has dropped them."""
        if position >= self._feed.last:
            return []
        if self._floor is None or position < self._floor:
            return None
        events: deque[EventFrame] = deque(maxlen=_PAGE)
        for event in reversed(self._ring):
            if event.seq <= position:
                break
            events.appendleft(event)
        return list(events)

    async def _wait(self) -> None:
        """Wait until the stream has new events."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    # --- older events ---------------------------------------------------------------------------------------

    async def _page(self, position: int, subject: str) -> tuple[list[EventFrame], int]:
        """Read the next events after a position that match a subject. Returns the events and the new position."""
        newest = self._feed.last
        config = ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=position + 1)
        messages = await self._read(config, subject, _PAGE)
        events = [event for seq, message in messages if (event := read(seq, message.subject, message.data))]
        last_read = messages[-1][0] if messages else position
        return events, last_read if len(messages) == _PAGE else max(last_read, newest)

    async def _read(self, config: ConsumerConfig, subject: str, limit: int) -> list[tuple[int, Msg]]:
        """Create a consumer, read its first `limit` messages, and delete the consumer."""
        config.ack_policy, config.filter_subject = AckPolicy.NONE, subject
        config.mem_storage, config.num_replicas, config.inactive_threshold = True, 1, 30
        async with self._reading:
            consumer = await self._js.add_consumer(STREAM, config)
            try:
                if not consumer.num_pending:
                    return []
                subscription = await self._js.pull_subscribe_bind(consumer.name, STREAM)
                try:
                    messages = await subscription.fetch(min(limit, consumer.num_pending), timeout=5)
                finally:
                    await subscription.unsubscribe()
            finally:
                with contextlib.suppress(*BUS_AWAY):
                    await self._js.delete_consumer(STREAM, consumer.name)
        return [(numbers(message)[0], message) for message in messages]

    async def _make_stream(self) -> None:
        """Create the stream unless a domain has already created it. Retries while JetStream does not answer."""
        while True:
            try:
                await ensure_stream(self._js)
                return
            except BUS_AWAY:
                await asyncio.sleep(_AWAY)


class EventStream:
    """The route of the event stream."""

    def __init__(self, tail: EventTail, policy: Policy, metrics: Metrics) -> None:
        self._tail = tail
        self._policy = policy
        self._open = metrics.streams.labels("events")

    def routes(self) -> list[Route]:
        return [fixed_path("/api/v2/events", {"GET": self.follow})]

    async def follow(self, request: Request) -> Response:
        """Send the events that the client selects and may see."""
        caller = caller_of(request.state)
        principal = caller.principal
        if not principal.known:
            self._policy.permit(principal, _READING)
        selection = event_filter.read(bodies.query_of(request), request.headers.get("last-event-id", ""), time.time())
        start = await self._tail.position(selection)
        events = self._tail.follow(start, selection, partial(frame_for, principal, self._policy))
        return await sse.answer(self._counted(events), caller.valid)

    async def _counted(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        with self._open.track_inprogress():
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
