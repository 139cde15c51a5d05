"""Several requests to one unit in one message: what many callers ask at the same moment costs one passage.

The header `Aima-Batch: true` says that the payload is a list of `{"data": {...}, "headers": {...}}`, each a request
as it would be in a message of its own. The reply is the list of their envelopes, once the last of them is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aima_core import call as calls
from aima_core.bus import Answer, Client, opened
from aima_core.errors import AimaError, InternalError, InvalidRequest

_MOST = 256  # requests in a message


class Item(msgspec.Struct):
    """One of the requests. To whoever serves it a message, but for the reply, which is kept in `answer`."""

    data: msgspec.Raw = msgspec.Raw(b"{}")
    headers: dict[str, str] = {}
    reply: str = ""  # none: parts have nowhere to go
    answer: bytes = b""


_decode = msgspec.json.Decoder(list[Item]).decode
_decode_replies = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def items_of(payload: bytes) -> list[Item]:
    """Return the requests that a message holds; raise InvalidRequest for one that holds none, or too many."""
    try:
        items = _decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the payload is not a batch: {error}", reason="NOT_DECODABLE") from None
    if len(items) > _MOST:
        raise InvalidRequest(f"{len(items)} requests in a batch; at most {_MOST} are taken", reason="TOO_MANY_ITEMS")
    return items


def replies_of(items: Sequence[Item]) -> bytes:
    """Return the payload that answers them."""
    return b"[%b]" % b",".join(item.answer or b"null" for item in items)


class Together:
    """Asks one unit on behalf of many: what is asked in the same turn of the event loop goes in one message.

    With `wait` it is what is asked within so many seconds of the first, or until somebody calls `send`.
    """

    def __init__(self, client: Client, unit: str, *, timeout: float, wait: float = 0.0) -> None:
        self._client = client
        self._unit = unit
        self._timeout = timeout
        self._wait = wait
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._due: asyncio.Handle | None = None
        self._asking: set[asyncio.Task[None]] = set()

    async def ask(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        """Return the unit's answer; raises what `Client.ask` raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        timeout = {calls.TIMEOUT: f"{self._timeout:.3f}"}
        self._waiting.append((Item(msgspec.Raw(_encode(data)), {**timeout, **headers}), answer))
        if len(self._waiting) == _MOST:
            self.send()
        elif self._due is None:
            self._due = loop.call_later(self._wait, self.send) if self._wait else loop.call_soon(self.send)
        return await answer

    def send(self) -> None:
        """Ask now what waits to be asked."""
        if self._due:
            self._due.cancel()
            self._due = None
        if self._waiting:
            asking = asyncio.create_task(self._ask(self._waiting))
            self._waiting = []
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

    async def _ask(self, waiting: Sequence[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            replies = await self._replies([item for item, _ in waiting])
        except AimaError as error:
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(error)
            return
        for reply, (_, answer) in zip(replies, waiting, strict=True):
            if answer.done():  # cancelled: whoever asked has gone
                continue
            try:
                answer.set_result(opened(reply))
            except AimaError as error:
                answer.set_exception(error)

    async def _replies(self, items: Sequence[Item]) -> Sequence[bytes]:
        """Return the envelopes, as many as there are items. One alone goes as an ordinary message."""
        ask, timeout = self._client.reply, self._timeout
        if len(items) == 1:
            return [await ask(self._unit, bytes(items[0].data), timeout=timeout, headers=items[0].headers)]
        payload = _encode([{"data": item.data, "headers": item.headers} for item in items])
        reply = await ask(self._unit, payload, timeout=timeout, headers={calls.BATCH: "true"})
        if not reply.startswith(b"["):
            opened(reply)  # raises why all of them are refused
        try:
            replies = [bytes(each) for each in _decode_replies(reply)]
        except msgspec.DecodeError:
            replies = []
        if len(replies) != len(items):
            raise InternalError("a batch is not answered item by item")
        return replies
