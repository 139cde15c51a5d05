"""A NATS server in memory: what is published arrives in order, a little later, or now and then never.

Only the server and its client are simulated. Endpoints, requests, followers and relays above them are the real ones.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import nats.errors
import nats.js.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from tests.simulation.clock import VirtualLoop
from tests.simulation.life import Life

Callback = Callable[[Msg], Awaitable[None]]

_EVENTS = "aima.events."
_APART = 1e-6  # seconds between two messages: timers of the same moment have no order
_LAGS = (0.0002, 0.0002, 0.0005, 0.003)  # seconds of a message on its way
_LONG_LAG, _SELDOM = 0.5, 0.005  # seconds that one takes now and then, and how often


class Bus:
    """The server. `loss` is the share of messages that never arrive; `last` has the newest event of each domain."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.loss = 0.0
        self.last: dict[str, bytes] = {}
        self._stored: set[str] = set()
        self._numbers = itertools.count(1)
        self._subscriptions: dict[str, list[Subscription]] = {}

    def number(self) -> int:
        """Return a number that nobody has been given."""
        return next(self._numbers)

    def lag(self) -> float:
        """Return the seconds that a message takes."""
        rng = self.loop.rng
        return rng.random() * _LONG_LAG if rng.random() < _SELDOM else rng.choice(_LAGS)

    def lost(self) -> bool:
        """Tell of a message whether it never arrives."""
        return self.loss > 0 and self.loop.rng.random() < self.loss

    def add(self, subscription: Subscription) -> None:
        """Let what is published on a subject come to a subscription; it may end in `*` or `>`."""
        self._subscriptions.setdefault(subscription.subject, []).append(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Undo `add`; nothing happens when it is undone already."""
        left = [other for other in self._subscriptions.get(subscription.subject, ()) if other is not subscription]
        if left:
            self._subscriptions[subscription.subject] = left
        else:
            self._subscriptions.pop(subscription.subject, None)

    def route(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> None:
        """Give a message to whoever has subscribed; say so if nobody has and the sender waits for a reply."""
        receivers = self._receivers(subject)
        for receiver in receivers:
            receiver.take(Msg(cast(Nats, receiver.connection), subject, reply, data, headers))
        if reply and not receivers:
            self._receive(reply, b"", {"Status": "503"})

    def store(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> None:
        """Keep an event unless it is there already; the live copy and the acknowledgement may be lost."""
        ident = (headers or {})["Nats-Msg-Id"]
        if ident not in self._stored:
            self._stored.add(ident)
            self.last[subject.split(".")[2]] = data
        if not self.lost():
            self.route(subject, data, "", headers)
        if not self.lost():
            self._receive(reply, b'{"stream":"AIMA_EVENTS","seq":1}', None)

    def _receive(self, subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        for receiver in self._receivers(subject):
            receiver.take(Msg(cast(Nats, receiver.connection), subject, "", data, headers))

    def _receivers(self, subject: str) -> list[Subscription]:
        tokens = subject.split(".")
        heads = [".".join(tokens[:length]) for length in range(1, len(tokens))]
        patterns = [subject, f"{heads[-1]}.*", *(f"{head}.>" for head in heads)] if heads else [subject]
        return [one for pattern in patterns for one in self._subscriptions.get(pattern, ())]


class Subscription:
    """What comes on one subject of one connection. Its callback runs for one message after another."""

    def __init__(self, connection: Connection, subject: str, callback: Callback | None) -> None:
        self.connection, self.subject = connection, subject
        self._callback = callback
        self._waiting: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self.task = asyncio.create_task(self._work(), name=f"subscription {subject}") if callback else None

    def take(self, message: Msg) -> None:
        """Put a message behind those that wait."""
        self._waiting.append(message)
        self._arrived.set()

    async def next_msg(self, timeout: float) -> Msg:
        """Return the next message. Raises nats.errors.TimeoutError."""
        try:
            async with asyncio.timeout(timeout):
                while not self._waiting:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        return self._waiting.popleft()

    async def unsubscribe(self) -> None:
        """Take no more."""
        self.connection.leave(self)

    async def drain(self) -> None:
        """Take no more."""
        self.connection.leave(self)

    async def _work(self) -> None:
        assert self._callback
        while True:
            while self._waiting:
                await self._callback(self._waiting.popleft())
            self._arrived.clear()
            await self._arrived.wait()


class Connection:
    """What nats-py's client is to the code above it; of a process, or of a caller outside."""

    is_connected = True

    def __init__(self, bus: Bus, life: Life | None = None) -> None:
        self.bus, self.life = bus, life
        self.stats = {"reconnects": 0}
        self._nuid = SimpleNamespace(next=lambda: str(bus.number()).encode())  # nats.micro names its service by it
        self._subscriptions: dict[Subscription, None] = {}
        self._sent_until = 0.0

    async def subscribe(self, subject: str, queue: str = "", cb: Callback | None = None) -> Subscription:
        """Return a subscription."""
        self._check()
        subscription = Subscription(self, subject, cb)
        self._subscriptions[subscription] = None
        self.bus.add(subscription)
        return subscription

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message on its way; what a connection publishes arrives in that order."""
        self._check()
        bus, loop = self.bus, self.bus.loop
        self._sent_until = max(self._sent_until + _APART, loop.now + bus.lag())
        if subject.startswith(_EVENTS):
            loop.call_at(self._sent_until, bus.store, subject, payload, reply, headers)
        elif not bus.lost():
            loop.call_at(self._sent_until, bus.route, subject, payload, reply, headers)

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 0.5, headers: dict[str, str] | None = None
    ) -> Msg:
        """Return the reply. Raises nats.errors.NoRespondersError, nats.errors.TimeoutError."""
        inbox = await self.subscribe(self.new_inbox())
        try:
            await self.publish(subject, payload, inbox.subject, headers)
            message = await inbox.next_msg(timeout)
        finally:
            self.leave(inbox)
        if (message.headers or {}).get("Status") == "503":
            raise nats.errors.NoRespondersError
        return message

    def new_inbox(self) -> str:
        """Return a subject that is nobody else's."""
        return f"_INBOX.{self.bus.number()}"

    async def flush(self, timeout: int = 10) -> None:
        """Return when the server has had all that was published."""
        self._check()
        await asyncio.sleep(max(self._sent_until - self.bus.loop.now, 0))

    def jetstream(self, timeout: float = 5) -> JetStream:
        """Return the store of events."""
        return JetStream(self.bus)

    def leave(self, subscription: Subscription) -> None:
        """End a subscription."""
        self.bus.remove(subscription)
        self._subscriptions.pop(subscription, None)
        if subscription.task:
            subscription.task.cancel()

    async def close(self) -> None:
        """End the connection."""
        self.drop()

    def drop(self) -> None:
        """End all subscriptions, as the server does when a connection is gone."""
        for subscription in list(self._subscriptions):
            self.leave(subscription)

    def _check(self) -> None:
        if self.life:
            self.life.check()


class JetStream:
    """The stream of all events, which keeps the last of each domain. The bucket of resources never comes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def stream_info(self, name: str) -> None:
        """The stream is there."""

    async def get_last_msg(self, stream: str, subject: str) -> Any:
        """Return the newest event of a domain. Raises NotFoundError."""
        last = self._bus.last.get(subject.split(".")[2])
        if last is None:
            raise nats.js.errors.NotFoundError
        return SimpleNamespace(data=last)

    async def key_value(self, bucket: str) -> Any:
        """Wait for ever: the copy of the resources is no part of the simulation."""
        await asyncio.Event().wait()
