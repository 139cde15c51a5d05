"""Copies the log to JetStream, in order, for everybody outside: subjects `aima.events.<domain>.<event>.<stream id>`.

Woken by the commit. Each message carries its event's id as Nats-Msg-Id, and on start the relay looks at the last
message it left in the stream, so that after a crash nothing is missing and nothing is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.api import StorageType, StreamConfig
from nats.js.client import JetStreamContext

from aima_core.store.log import Log
from aima_core.store.records import Recorded
from aima_core.structured_logs import logger
from aima_core.units import token

STREAM = "AIMA_EVENTS"
SUBJECTS = "aima.events.>"
_WINDOW = 64  # publishes awaiting their acknowledgement; larger ones gain nothing
_PAGE = 256  # events read from the log at once when behind
_PAUSE = 0.005  # seconds between publishes: what happens meanwhile goes together, and wakes everybody once
_LOOK = 5.0  # seconds; a look at the connection even when nothing happens
_RETRY = 0.5  # seconds
_ACK_TIMEOUT = 5.0  # seconds

_encode = msgspec.json.Encoder().encode


def subject(record: Recorded) -> str:
    """Return the subject of an event; a stream id becomes one token of it."""
    return f"aima.events.{record.event.unit}.{token(record.stream.partition('/')[2])}"


async def ensure_stream(js: JetStreamContext) -> None:
    """Create the stream of all events unless it is there."""
    try:
        await js.stream_info(STREAM)
    except nats.js.errors.NotFoundError:
        with contextlib.suppress(nats.js.errors.BadRequestError):  # another domain was quicker
            await js.add_stream(StreamConfig(name=STREAM, subjects=[SUBJECTS], storage=StorageType.FILE))


class Relay:
    """One domain's copy on its way out."""

    def __init__(self, nc: Nats, log: Log, node: str) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=_ACK_TIMEOUT)
        self._inbox = nc.new_inbox()
        self._listening = False
        self._window = 0  # which window is out; a late acknowledgement of an earlier one counts for nothing
        self._awaited = 0
        self._refused = b""
        self._acknowledged = asyncio.Event()
        self._log = log
        self._node = node
        self._ready: deque[Recorded] = deque(maxlen=4 * _PAGE)
        self._behind = True  # there may be events in the log that nobody has handed over
        self._wake = asyncio.Event()

    def on_commit(self, records: Sequence[Recorded], _: Mapping[str, Any]) -> None:
        """Take over what has just been committed; a listener of the runner."""
        if records:
            self._ready.extend(records)
            self._wake.set()

    async def run(self) -> None:
        """Publish for ever; the bus may come and go."""
        position: int | None = None
        reconnects = self._nc.stats["reconnects"]
        while True:
            try:
                if reconnects != self._nc.stats["reconnects"]:  # the server may have lost the end of the stream
                    reconnects, position, self._behind = self._nc.stats["reconnects"], None, True
                if position is None:
                    if not self._listening:
                        await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_acknowledgement)
                        self._listening = True
                    await ensure_stream(self._js)
                    position = await self._last_published()
                records = await self._next(position)
                if reconnects == self._nc.stats["reconnects"]:
                    position = await self._publish(records, position)
                    await asyncio.sleep(_PAUSE)
            except (TimeoutError, nats.errors.Error, nats.js.errors.Error, OSError) as error:
                logger.warning("events wait for JetStream", error=repr(error))
                position = None  # look again how far the stream has come: the last acknowledgements may be lost
                self._behind = True
                await asyncio.sleep(_RETRY)

    async def _next(self, position: int) -> list[Recorded]:
        """Return the events behind a position: those just committed, or a page of the log; none after a while."""
        while True:
            self._wake.clear()
            while self._ready and self._ready[0].position <= position:
                self._ready.popleft()
            if self._ready and self._ready[0].position == position + 1:
                records = list(self._ready)
                self._ready.clear()
                return records
            if self._ready or self._behind:
                if page := await self._log.events(position, limit=_PAGE):
                    return page
                self._behind = False
            try:
                async with asyncio.timeout(_LOOK):
                    await self._wake.wait()
            except TimeoutError:
                return []

    async def _publish(self, records: Sequence[Recorded], position: int) -> int:
        for start in range(0, len(records), _WINDOW):
            window = records[start : start + _WINDOW]
            self._window += 1
            self._awaited, self._refused = len(window), b""
            self._acknowledged.clear()
            reply = f"{self._inbox}.{self._window}"
            for record in window:
                await self._nc.publish(
                    subject(record), _encode(record.wire()), reply=reply, headers={"Nats-Msg-Id": record.id}
                )
            await asyncio.wait_for(self._acknowledged.wait(), _ACK_TIMEOUT)
            if self._refused:
                raise nats.js.errors.APIError(description=self._refused.decode(errors="replace"))
            position = window[-1].position
        return position

    async def _on_acknowledgement(self, message: Msg) -> None:
        """Count; nats-py's own way keeps a future, a semaphore and a token for each, at four times the cost."""
        if message.subject.rpartition(".")[2] != str(self._window):
            return
        if not message.data or b'"error"' in message.data:
            self._refused = message.data or b"nobody stores events"
        self._awaited -= 1
        if self._awaited == 0 or self._refused:
            self._acknowledged.set()

    async def _last_published(self) -> int:
        """Return the position of the newest event of this very log in the stream; 0 when it holds none."""
        try:
            message = await self._js.get_last_msg(STREAM, f"aima.events.{self._log.domain}.>")
        except nats.js.errors.NotFoundError:
            return 0
        last = msgspec.json.decode(message.data or b"{}")
        ident, _, position = str(last.get("id", "")).rpartition("-")
        # another node's event came last: publish all again, the stream drops what it has by its message ids
        return int(position) if ident == self._log.ident else 0
