"""The messages of a JetStream stream, as they come, in order: one consumer for all who want them.

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

from aima_core.logs import logger

BUS_AWAY = (TimeoutError, nats.errors.Error, nats.js.errors.Error, OSError)
_HEARTBEAT = 1.0  # seconds between signs of life of a consumer that has nothing to tell
_SILENCE = 2.5  # seconds without any after which the consumer counts as lost
_RETRY = 0.5  # seconds


class Feed:
    """One stream. `take(seq, message)` gets each message; `anew()` is told when the stream was made anew.

    `last` is the number of the newest message; None until the stream has been found.
    """

    def __init__(self, nc: Nats, stream: str, take: Callable[[int, Msg], None], anew: Callable[[], None]) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=5)
        self._stream = stream
        self._take = take
        self._anew = anew
        self._created: datetime | None = None
        self._count = 0  # messages of this consumer
        self._alive = False
        self._lost = asyncio.Event()
        self.last: int | None = None

    async def run(self) -> None:
        """Deliver for ever; stream and bus may come and go."""
        while True:
            try:
                await self._find()
                await self._deliver()
            except BUS_AWAY as error:
                logger.debug("a stream is not there right now", stream=self._stream, error=repr(error))
            await asyncio.sleep(_RETRY)

    async def _find(self) -> None:
        """Learn where the stream begins for us: at what comes from now on, or all of one that was made anew."""
        info = await self._js.stream_info(self._stream)
        if self.last is None:
            self.last = info.state.last_seq
        elif info.created != self._created or self.last > info.state.last_seq:
            self.last = 0
            self._anew()
        self._created = info.created

    async def _deliver(self) -> None:
        """Have a consumer deliver; return when it is lost."""
        inbox = self._nc.new_inbox()
        self._count = 0
        self._lost.clear()
        subscription = await self._nc.subscribe(inbox, cb=self._on_message)
        try:
            await self._js.add_consumer(
                self._stream,
                ConsumerConfig(
                    deliver_subject=inbox,
                    deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                    opt_start_seq=(self.last or 0) + 1,
                    ack_policy=AckPolicy.NONE,
                    idle_heartbeat=_HEARTBEAT,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
            self._alive = True
            while self._alive and not self._lost.is_set():
                self._alive = False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SILENCE):
                        await self._lost.wait()
        finally:  # without anybody subscribed, the server forgets the consumer by itself
            with contextlib.suppress(*BUS_AWAY):
                await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        self._alive = True
        if (message.headers or {}).get("Status"):
            told = (message.headers or {}).get("Nats-Last-Consumer", "")
            if told.isdecimal() and int(told) != self._count:
                self._lost.set()
            return
        numbers = message.metadata.sequence
        if numbers.consumer != self._count + 1:
            self._lost.set()
        if self._lost.is_set():
            return
        self._count, self.last = numbers.consumer, numbers.stream
        self._take(numbers.stream, message)
