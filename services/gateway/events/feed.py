"""The messages of a JetStream stream, as they come, in order: one consumer for all who want them, while anybody does.

The consumer is the gateway's own and lives in the server's memory. Heartbeats tell when it, its stream or the bus has
gone; then it is made anew behind the last message that came, so that none is missing and none comes twice.
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
GRACE = 5.0  # seconds that a feed goes on when nobody wants it: clients whose connection broke come back
_PATIENCE = 2.0  # seconds until who comes hears that the stream is not there
_HEARTBEAT = 1.0  # seconds between signs of life of a consumer that has nothing to tell
_SILENCE = 2.5  # seconds without any after which the consumer counts as lost
_RETRY = 0.5  # seconds
_TOKENS = 9  # of the reply subject of a message, in its older form


class Feed:
    """One stream, delivered while somebody wants it: from when the first comes until a grace after the last has left.

        with feed:
            newest = await feed.found()  # whatever is stored behind this number is delivered until the block ends

    `take(seq, message)` gets each message. `forget()` is told when what comes next does not continue what came: at the
    beginning, at the end, and when the stream was made anew, which `life` counts. `last` is the number of the newest
    message; 0 until the stream has been found.
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
        self._leaving: asyncio.TimerHandle | None = None
        self._found = asyncio.Event()
        self._created: datetime | None = None
        self._count = 0  # messages of this consumer
        self._alive = False
        self._over = asyncio.Event()  # this consumer is lost, or nobody wants it
        self.last = 0
        self.life = 0

    def __enter__(self) -> None:
        self._users += 1
        if self._leaving:
            self._leaving.cancel()
        self._wanted.set()

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            self._leaving = asyncio.get_running_loop().call_later(self._grace, self._leave)

    async def found(self) -> int:
        """Return the number of the newest message. Raises Unavailable while JetStream is away."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._found.wait()
        except TimeoutError:
            raise Unavailable(
                "nothing can be followed right now: JetStream is away", reason="NO_JETSTREAM", retry_after=1
            ) from None
        return self.last

    async def run(self) -> None:
        """Deliver whenever somebody wants it, for ever; stream and bus may come and go."""
        while True:
            await self._wanted.wait()
            while self._wanted.is_set():
                try:
                    await self._find()
                    await self._deliver()
                except BUS_AWAY as error:
                    logger.debug("a stream is not there right now", stream=self._stream, error=repr(error))
                    await asyncio.sleep(_RETRY)
            # nothing is awaited from the last look at `_wanted` on: whoever came before goes on where it was, and
            # whoever comes after waits until the stream is found again
            self._found.clear()
            self.last = 0
            self._forget()

    def _leave(self) -> None:
        self._wanted.clear()
        self._over.set()

    async def _find(self) -> None:
        """Learn where the stream begins for us: at what comes from now on, or all of one that was made anew."""
        info = await self._js.stream_info(self._stream)
        anew = self._created not in (None, info.created) or self.last > info.state.last_seq
        if anew:
            self.life += 1
        if anew or not self._found.is_set():
            self.last = 0 if self._found.is_set() else info.state.last_seq
            self._forget()
        self._created = info.created
        self._found.set()

    async def _deliver(self) -> None:
        """Have a consumer deliver; return when it is lost, or when nobody wants it any more."""
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
        finally:  # with nobody subscribed, the server soon forgets the consumer by itself
            with contextlib.suppress(*BUS_AWAY):
                await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        self._alive = True
        if message.headers and message.headers.get("Status"):
            told = message.headers.get("Nats-Last-Consumer", "")
            if told.isdecimal() and int(told) != self._count:
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
    """Return a message's number in its stream, and its number among those of its consumer.

    They are two tokens of its reply subject, `$JS.ACK...` of ADR-15. `message.metadata` of nats-py reads them too, but
    makes a date of another one on the way, at six times the cost.
    """
    tokens = message.reply.split(".")
    place = 5 if len(tokens) == _TOKENS else 7  # newer servers name a domain and an account before the stream
    return int(tokens[place]), int(tokens[place + 1])
