"""Puts several simultaneous requests to one unit into one message, which is called a batch.

With the header `Aima-Batch: true`, the payload is a list of requests `{"data": {...}, "headers": {...}}`. The reply is
the list of the requests' envelopes, in the same order. The domain sends it when all requests are answered. If the
payload is not a list of requests, the whole batch is refused. If a request has an invalid input, only that request is
refused. Only units with `batches=True` accept batches. Their requests are small, frequent and answered at once.
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

_MOST_ITEMS = 256  # requests in a message
_MESSAGE_HEADERS = {calls.BATCH, calls.TIMEOUT}  # the only AIMA headers that the message itself may have


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """One request of a batch, on the wire."""

    data: msgspec.Raw = msgspec.Raw(b"{}")
    headers: dict[str, str] = {}


class BatchItem:
    """One request of a batch. It is handled like a message of its own. `answer` stores its reply envelope."""

    reply = ""  # no inbox, because a request in a batch cannot send parts

    def __init__(self, data: bytes, headers: dict[str, str]) -> None:
        self.data = data
        self.headers = headers
        self.answer = b"null"


_decode = msgspec.json.Decoder(list[_Request]).decode
_decode_replies = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def items_of(payload: bytes, headers: Mapping[str, str]) -> list[BatchItem]:
    """Return the requests in a batch. Raises InvalidRequest if the headers or the payload of the batch are invalid."""
    for name in headers:
        if name.startswith("Aima-") and name not in _MESSAGE_HEADERS:
            raise InvalidRequest(
                f"in a batch, {name} must be a header of a single request, not of the message",
                reason="HEADER_OF_ITEMS",
                header=name,
            )
    try:
        requests = _decode(payload)
    except (*UNREADABLE, ValueError) as error:
        raise InvalidRequest(f"the payload is not a list of requests: {error}", reason="NOT_DECODABLE") from None
    if len(requests) > _MOST_ITEMS:
        raise InvalidRequest(
            f"the batch has {len(requests)} requests; the limit is {_MOST_ITEMS}", reason="TOO_MANY_ITEMS"
        )
    return [BatchItem(bytes(request.data), request.headers) for request in requests]


def replies_of(items: Sequence[BatchItem]) -> bytes:
    """Return the payload of the reply to a batch."""
    return b"[%b]" % b",".join(item.answer for item in items)


class Batcher:
    """Collects requests to one unit and sends them as batches.

    Requests that are made in the same turn of the event loop go in one message. With `wait`, a batch waits for more
    requests, until `wait` seconds after its first request or until `send` is called.

    `ahead` is another Batcher. Its requests must be decided before this Batcher's requests, so it sends first whenever
    this Batcher sends. Both send even a single request as a batch. So both messages take the same path through the
    process, and their events are committed together.
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
        self._scheduled_send: asyncio.Handle | None = None
        self._requests: set[asyncio.Task[None]] = set()

    def ask(self, data: Mapping[str, Any], headers: Mapping[str, str]) -> asyncio.Future[Answer]:
        """Add a request and return a future of its answer. The future raises the same errors as `Client.ask`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        timeout = {calls.TIMEOUT: f"{self._timeout:.3f}"}
        self._waiting.append((_Request(msgspec.Raw(_encode(data)), {**timeout, **headers}), answer))
        if len(self._waiting) == _MOST_ITEMS:
            self.send()
        elif self._scheduled_send is None:
            self._scheduled_send = loop.call_later(self._wait, self.send) if self._wait else loop.call_soon(self.send)
        return answer

    def send(self) -> None:
        """Send the waiting requests now."""
        if self._ahead:
            self._ahead.send()
        if self._scheduled_send:
            self._scheduled_send.cancel()
            self._scheduled_send = None
        if self._waiting:
            request = asyncio.create_task(self._send(self._waiting))
            self._waiting = []
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)

    async def _send(self, waiting: Sequence[tuple[_Request, asyncio.Future[Answer]]]) -> None:
        """Send a batch and resolve the future of each request. A failure resolves every future with an error."""
        try:
            replies = await self._replies([request for request, _ in waiting])
        except AimaError as error:
            replies = [error] * len(waiting)
        except Exception:
            logger.error("a batch failed unexpectedly", unit=self._unit, exc_info=True)
            replies = [InternalError("internal error")] * len(waiting)
        for reply, (_, answer) in zip(replies, waiting, strict=True):
            if answer.done():  # the caller has cancelled the request
                continue
            try:
                answer.set_result(opened(reply) if isinstance(reply, bytes) else _raise_copy(reply))
            except AimaError as error:
                answer.set_exception(error)

    async def _replies(self, requests: Sequence[_Request]) -> Sequence[bytes | AimaError]:
        """Return the reply envelope of each request, in the order of the requests."""
        headers = {calls.BATCH: "true"}
        reply = await self._client.reply(self._unit, _encode(requests), timeout=self._timeout, headers=headers)
        if not reply.startswith(b"["):
            opened(reply)  # raises the error if the whole batch was refused
        try:
            replies = [bytes(each) for each in _decode_replies(reply)]
        except UNREADABLE:
            replies = []
        if len(replies) != len(requests):
            raise InternalError("the reply to a batch does not hold one answer per request")
        return replies


def _raise_copy(error: AimaError) -> Answer:
    """Raise a copy of an error. Each waiting caller needs its own copy, because raising changes the traceback."""
    raise from_body(error.body())
