"""Delivers the messages of a JetStream stream in order. All users of the feed share one consumer.

The consumer exists while the feed has users. It is ephemeral: the NATS server keeps it in memory. Its heartbeats stop
if the consumer, the stream or the bus is gone. A new consumer then starts after the last received message, so each
message arrives exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

import nats.errors
import nats.js.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from aima_core.errors import Unavailable
from aima_core.structured_logs import logger

BUS_AWAY = (TimeoutError, nats.errors.Error, nats.js.errors.Error, OSError)
GRACE = 5.0  # seconds that a feed continues without users, because clients often reconnect
_FIND_TIMEOUT = 2.0  # seconds that a new user waits for the stream
_HEARTBEAT = 1.0  # seconds between the heartbeats of an idle consumer
_SILENCE = 2.5  # seconds without a message or heartbeat until the consumer counts as lost
_RETRY = 0.5  # seconds between attempts while JetStream does not answer
_TOKENS = 9  # tokens of a message's reply subject in its older form


class Feed:
    """Delivers a stream while the feed has users, and for `grace` seconds after the last user left.

        with feed:
            newest = await feed.newest()  # every message after this number is delivered until the block ends

    The feed calls `take(seq, message)` for each message. The feed calls `forget()` when earlier messages no longer
    count: at the start, at the end, and when the stream was recreated. `life` counts how often the stream was
    recreated. `last` is the number of the newest message, and 0 until the feed has found the stream.
    """

    def __init__(
        self,
        nc: Nats,
        stream: str,
        take: Callable[[int, Msg], None],
        forget: Callable[[], None],
        grace: float = GRACE,
    ) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=5)
        self._stream = stream
        self._take = take
        self._forget = forget
        self._grace = grace
        self._users = 0
        self._wanted = asyncio.Event()
        self._stopping: asyncio.TimerHandle | None = None
        self._found = asyncio.Event()
        self._created: datetime | None = None
        self._count = 0  # messages of this consumer
        self._alive = False
        self._over = asyncio.Event()  # set when this consumer is lost or has no users
        self.last = 0
        self.life = 0

    def __enter__(self) -> None:
        self._users += 1
        if self._stopping:
            self._stopping.cancel()
        self._wanted.set()

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._stopping = asyncio.get_running_loop().call_later(self._grace, self._stop)

    async def newest(self) -> int:
        """Return the number of the newest message. Raises Unavailable if JetStream does not answer."""
        try:
            async with asyncio.timeout(_FIND_TIMEOUT):
                await self._found.wait()
        except TimeoutError:
            raise Unavailable(
                "events and resources cannot be followed, because JetStream does not answer; try again",
                reason="NO_JETSTREAM",
                retry_after=1,
            ) from None
        return self.last

    async def run(self) -> None:
        """Deliver whenever the feed has users. Runs until cancelled, even while the stream or the bus is gone."""
        while True:
            await self._wanted.wait()
            while self._wanted.is_set():
                try:
                    await self._find()
                    await self._deliver()
                except BUS_AWAY as error:
                    logger.debug("a JetStream stream does not answer", stream=self._stream, error=repr(error))
                    await asyncio.sleep(_RETRY)
            # Nothing awaits between the last check of `_wanted` and here, so no user can come in between. A user who
            # comes later waits until the feed has found the stream again.
            self._found.clear()
            self.last = 0
            self._forget()

    def _stop(self) -> None:
        self._wanted.clear()
        self._over.set()

    async def _find(self) -> None:
        """Set the first message to deliver: the next new message, or message 1 if the stream was recreated."""
        info = await self._js.stream_info(self._stream)
        recreated = self._created not in (None, info.created) or self.last > info.state.last_seq
        if recreated:
            self.life += 1
        if recreated or not self._found.is_set():
            self.last = 0 if self._found.is_set() else info.state.last_seq
            self._forget()
        self._created = info.created
        self._found.set()

    async def _deliver(self) -> None:
        """Deliver through a new consumer. Returns when the consumer is lost or the feed has no users."""
        inbox = self._nc.new_inbox()
        self._count = 0
        self._over.clear()
        subscription = await self._nc.subscribe(inbox, cb=self._on_message)
        try:
            await self._js.add_consumer(
                self._stream,
                ConsumerConfig(
                    deliver_subject=inbox,
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=self.last + 1,
                    ack_policy=AckPolicy.NONE,
                    idle_heartbeat=_HEARTBEAT,
                    mem_storage=True,
                    num_replicas=1,
                    inactive_threshold=_SILENCE,
                ),
            )
            self._alive = True
            while self._wanted.is_set() and self._alive and not self._over.is_set():
                self._alive = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SILENCE):
                        await self._over.wait()
        finally:  # the server soon deletes a consumer without a subscription
            with contextlib.suppress(*BUS_AWAY):
                await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        self._alive = True
        if message.headers and message.headers.get("Status"):
            delivered = message.headers.get("Nats-Last-Consumer", "")
            if delivered.isdecimal() and int(delivered) != self._count:
                self._over.set()
            return
        seq, count = numbers(message)
        if count != self._count + 1:
            self._over.set()
        if self._over.is_set():
            return
        self._count, self.last = count, seq
        self._take(seq, message)


def numbers(message: Msg) -> tuple[int, int]:
    """Return a message's number in its stream and its number in its consumer.

    Both numbers are tokens of the reply subject `$JS.ACK...` (NATS's ADR-15). nats-py's `message.metadata` costs six
    times as much, because it also parses the date.
    """
    tokens = message.reply.split(".")
    place = 5 if len(tokens) == _TOKENS else 7  # newer servers put a domain and an account before the stream
    return int(tokens[place]), int(tokens[place + 1])
