"""Copies a domain's log to JetStream in order, with the subjects `aima.events.<domain>.<event>.<stream id>`.

Every commit wakes the relay. After a start, the relay continues after the last event in the JetStream stream. Each
message has its event's id in the header Nats-Msg-Id, and JetStream drops a message with a known id. So a crash neither
loses nor duplicates events.
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
_WINDOW = (
    64  # messages that are published before the relay waits for their acknowledgements; a larger window is not faster
)
_PAGE = 256  # events that the relay reads from the log at once if it has to catch up
_PAUSE = 0.005  # seconds between publishes; events of the pause are published together and wake followers once
_CHECK_INTERVAL = 5.0  # seconds until the connection is checked even without new events
_RETRY = 0.5  # seconds
_ACK_TIMEOUT = 5.0  # seconds

_encode = msgspec.json.Encoder().encode


def subject(record: Recorded) -> str:
    """Return the subject of an event. The last token is the id of the event's stream."""
    return f"aima.events.{record.event.unit}.{token(record.stream.partition('/')[2])}"


async def ensure_stream(js: JetStreamContext) -> None:
    """Create the JetStream stream for the events of all domains, unless it exists."""
    try:
        await js.stream_info(STREAM)
    except nats.js.errors.NotFoundError:
        with contextlib.suppress(nats.js.errors.BadRequestError):  # another domain has just created the stream
            await js.add_stream(StreamConfig(name=STREAM, subjects=[SUBJECTS], storage=StorageType.FILE))


class Relay:
    """Publishes the events of one domain's log."""

    def __init__(self, nc: Nats, log: Log, node: str) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=_ACK_TIMEOUT)
        self._inbox = nc.new_inbox()
        self._listening = False
        self._window = 0  # number of the current window; a late acknowledgement of an earlier window is ignored
        self._unacknowledged = 0
        self._refusal = b""
        self._acknowledged = asyncio.Event()
        self._log = log
        self._node = node
        self._committed: deque[Recorded] = deque(maxlen=4 * _PAGE)
        self._behind = True  # whether the log may have unpublished events that are not in `_committed`
        self._wake = asyncio.Event()

    def on_commit(self, records: Sequence[Recorded], _: Mapping[str, Any]) -> None:
        """Queue the committed events. The writer calls this listener after each commit."""
        if records:
            self._committed.extend(records)
            self._wake.set()

    async def run(self) -> None:
        """Publish events until cancelled. Continues when the bus comes back."""
        position: int | None = None
        reconnects = self._nc.stats["reconnects"]
        while True:
            try:
                if reconnects != self._nc.stats["reconnects"]:  # the server may have lost the newest events in a crash
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
                logger.warning("cannot publish events to JetStream; trying again", error=repr(error))
                position = None  # reads the last published event again, because acknowledgements may be lost
                self._behind = True
                await asyncio.sleep(_RETRY)

    async def _next(self, position: int) -> list[Recorded]:
        """Return the events after a position: committed events in the queue, or a page of the log.

        Returns an empty list if 5 s pass without a new event.
        """
        while True:
            self._wake.clear()
            while self._committed and self._committed[0].position <= position:
                self._committed.popleft()
            if self._committed and self._committed[0].position == position + 1:
                records = list(self._committed)
                self._committed.clear()
                return records
            if self._committed or self._behind:
                if page := await self._log.events(position, limit=_PAGE):
                    return page
                self._behind = False
            try:
                async with asyncio.timeout(_CHECK_INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                return []

    async def _publish(self, records: Sequence[Recorded], position: int) -> int:
        """Publish the events in windows. Returns the position of the last acknowledged event."""
        for start in range(0, len(records), _WINDOW):
            window = records[start : start + _WINDOW]
            self._window += 1
            self._unacknowledged, self._refusal = len(window), b""
            self._acknowledged.clear()
            reply = f"{self._inbox}.{self._window}"
            for record in window:
                await self._nc.publish(
                    subject(record), _encode(record.wire()), reply=reply, headers={"Nats-Msg-Id": record.id}
                )
            await asyncio.wait_for(self._acknowledged.wait(), _ACK_TIMEOUT)
            if self._refusal:
                raise nats.js.errors.APIError(description=self._refusal.decode(errors="replace"))
            position = window[-1].position
        return position

    async def _on_acknowledgement(self, message: Msg) -> None:
        """Count the acknowledgements of a window. Publishing with nats-py's own method costs four times as much."""
        if message.subject.rpartition(".")[2] != str(self._window):
            return
        if not message.data or b'"error"' in message.data:
            self._refusal = message.data or b"no JetStream stream stores events"
        self._unacknowledged -= 1
        if self._unacknowledged == 0 or self._refusal:
            self._acknowledged.set()

    async def _last_published(self) -> int:
        """Return the position of the domain's newest event in the JetStream stream.

        Returns 0 if the stream has no event of the domain, or if the newest event is from another log.
        """
        try:
            message = await self._js.get_last_msg(STREAM, f"aima.events.{self._log.domain}.>")
        except nats.js.errors.NotFoundError:
            return 0
        last = msgspec.json.decode(message.data or b"{}")
        ident, _, position = str(last.get("id", "")).rpartition("-")
        # if another node's log has the newest event, all events are published again, and JetStream drops duplicates
        return int(position) if ident == self._log.ident else 0
