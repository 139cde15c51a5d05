"""Several requests to one unit in one message: what many callers ask at the same moment costs one passage.

The header `Aima-Batch: true` says that the payload is a list of `{"data": {...}, "headers": {...}}`, each a request
as it would be in a message of its own. The reply is the list of their envelopes, once the last of them is there. For
units that say so (`batches`): small ones that are asked often and answer at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from aima_core import call as calls
from aima_core.bus.client import UNREADABLE, Answer, Client, opened
from aima_core.errors import AimaError, InternalError, InvalidRequest, from_body
from aima_core.structured_logs import logger

_MOST = 256  # requests in a message
_OF_THE_MESSAGE = {calls.BATCH, calls.TIMEOUT}  # headers of ours that a batch itself may have


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """One of them on the wire."""

    data: msgspec.Raw = msgspec.Raw(b"{}")
    headers: dict[str, str] = {}


class BatchItem:
    """One request of a batch, to whoever serves it like a message; what it is answered with stays in `answer`."""

    reply = ""  # parts have nowhere to go

    def __init__(self, data: bytes, headers: dict[str, str]) -> None:
        self.data = data
        self.headers = headers
        self.answer = b"null"


_decode = msgspec.json.Decoder(list[_Request]).decode
_decode_replies = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def items_of(payload: bytes, headers: Mapping[str, str]) -> list[BatchItem]:
    """Return the requests that a message holds; raise InvalidRequest for one that holds none, or too many."""
    for name in headers:
        if name.startswith("Aima-") and name not in _OF_THE_MESSAGE:
            raise InvalidRequest(f"in a batch {name} is each request's own", reason="HEADER_OF_ITEMS", header=name)
    try:
        requests = _decode(payload)
    except (*UNREADABLE, ValueError) as error:
        raise InvalidRequest(f"the payload is not a batch: {error}", reason="NOT_DECODABLE") from None
    if len(requests) > _MOST:
        raise InvalidRequest(f"{len(requests)} requests in a batch; at most {_MOST} are taken", reason="TOO_MANY_ITEMS")
    return [BatchItem(bytes(request.data), request.headers) for request in requests]


def replies_of(items: Sequence[BatchItem]) -> bytes:
    """Return the payload that answers them."""
    return b"[%b]" % b",".join(item.answer for item in items)


class Batcher:
    """Asks one unit on behalf of many: what is asked in the same turn of the event loop goes in one message.

    With `wait` it is what is asked within so many seconds of the first, or until somebody calls `send`. What waits in
    `ahead` goes whenever these go, in the same packet, and is decided before them: each is a batch, be it of one, so
    that they take the same way, and what is decided together is committed together.
    """

    def __init__(
        self, client: Client, unit: str, *, timeout: float, wait: float = 0.0, ahead: Batcher | None = None
    ) -> None:
        self._client = client
        self._unit = unit
        self._timeout = timeout
        self._wait = wait
        self._ahead = ahead
        self._waiting: list[tuple[_Request, asyncio.Future[Answer]]] = []
        self._due: asyncio.Handle | None = None
        self._asking: set[asyncio.Task[None]] = set()

    def ask(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> asyncio.Future[Answer]:
        """Return what will be the unit's answer, or what `Client.ask` raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        timeout = {calls.TIMEOUT: f"{self._timeout:.3f}"}
        self._waiting.append((_Request(msgspec.Raw(_encode(data)), {**timeout, **headers}), answer))
        if len(self._waiting) == _MOST:
            self.send()
        elif self._due is None:
            self._due = loop.call_later(self._wait, self.send) if self._wait else loop.call_soon(self.send)
        return answer

    def send(self) -> None:
        """Ask now what waits to be asked."""
        if self._ahead:
            self._ahead.send()
        if self._due:
            self._due.cancel()
            self._due = None
        if self._waiting:
            asking = asyncio.create_task(self._ask(self._waiting))
            self._waiting = []
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

    async def _ask(self, waiting: Sequence[tuple[_Request, asyncio.Future[Answer]]]) -> None:
        """Ask, and tell each what it is answered; whatever happens, nobody is left waiting."""
        try:
            replies = await self._replies([request for request, _ in waiting])
        except AimaError as error:
            replies = [error] * len(waiting)
        except Exception:
            logger.error("a batch broke", unit=self._unit, exc_info=True)
            replies = [InternalError("internal error")] * len(waiting)
        for reply, (_, answer) in zip(replies, waiting, strict=True):
            if answer.done():  # cancelled: whoever asked has gone
                continue
            try:
                answer.set_result(opened(reply) if isinstance(reply, bytes) else _raised(reply))
            except AimaError as error:
                answer.set_exception(error)

    async def _replies(self, requests: Sequence[_Request]) -> Sequence[bytes | AimaError]:
        """Return the envelopes, as many as there are requests."""
        headers = {calls.BATCH: "true"}
        reply = await self._client.reply(self._unit, _encode(requests), timeout=self._timeout, headers=headers)
        if not reply.startswith(b"["):
            opened(reply)  # raises why all of them are refused
        try:
            replies = [bytes(each) for each in _decode_replies(reply)]
        except UNREADABLE:
            replies = []
        if len(replies) != len(requests):
            raise InternalError("a batch is not answered item by item")
        return replies


def _raised(error: AimaError) -> Answer:
    """Raise an error of its own for each who gets it: raising marks an exception."""
    raise from_body(error.body())
