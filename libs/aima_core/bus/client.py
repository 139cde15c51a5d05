"""Sends requests to units over the bus and receives their answers, with or without parts.

`Client` takes unit names and dicts. `peers.py` takes typed units.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from aima_core import call as calls
from aima_core.bus import discovery
from aima_core.bus.connection import Connection, cancel_and_wait
from aima_core.bus.discovery import Process, is_no_responders
from aima_core.bus.payloads import check_size
from aima_core.errors import (
    AimaError,
    InternalError,
    PayloadTooLarge,
    Timeout,
    Unavailable,
    UnitNotFound,
    from_body,
)

_GRACE = 0.5  # seconds that a caller waits after its deadline, because the domain's own Timeout may still arrive
_QUIET = 5.0  # seconds without a part after which the client pings the process that serves the stream
_MISSED_PINGS = 2  # unanswered pings in a row after which a stream counts as dead; one may mean a reconnect
_PING_TIMEOUT = 0.5  # seconds that a domain has to answer a ping or to list its units

_SUCCESS = b'{"success":true,'  # every successful envelope begins with these bytes

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The exceptions that decoding JSON from outside raises."""

_encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, frozen=True):
    """The answer of a unit: `data` and `meta` of a successful reply envelope."""

    data: Any
    meta: dict[str, Any]


class _Envelope(msgspec.Struct):
    success: bool
    data: Any = None
    error: dict[str, Any] | None = None
    meta: dict[str, Any] = {}


class _Endpoint(msgspec.Struct):
    subject: str


class _Info(msgspec.Struct):
    endpoints: list[_Endpoint]


_decode = msgspec.json.Decoder(_Envelope).decode
_decode_info = msgspec.json.Decoder(_Info).decode


class Client:
    """Sends requests to units by name. Timeouts are in seconds."""

    def __init__(self, nc: Nats) -> None:
        self.nc = nc

    async def ask(
        self, unit: str, data: Mapping[str, Any] | bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return a unit's answer. Raises the error in the unit's reply.

        Also raises UnitNotFound or Unavailable at once if no process serves the unit, Timeout after `timeout` seconds,
        PayloadTooLarge if the input is too large, and Forbidden if the user of the bus may not send to the unit.
        """
        return opened(await self.reply(unit, data, timeout=timeout, headers=headers))

    async def envelope(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the envelope of a unit's answer as undecoded bytes. Raises the same errors as `ask`."""
        reply = await self.reply(unit, data, timeout=timeout, headers=headers)
        if not reply.startswith(_SUCCESS):
            opened(reply)  # raises the error in the envelope
        return reply

    async def reply(
        self, unit: str, data: Mapping[str, Any] | bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return a unit's reply undecoded, even if the reply is an error. Raises only errors of the bus itself."""
        payload, subject = _payload(data), f"aima.{unit}"
        all_headers = {calls.TIMEOUT: f"{timeout:.3f}", **(headers or {})}
        with _request_errors(unit, timeout):
            try:
                request = self.nc.request(subject, payload, timeout=timeout + _GRACE, headers=all_headers)
                message = await self._wait(subject, request)
            except nats.errors.NoRespondersError:
                raise await self._no_responders(unit) from None
        reply: bytes = message.data
        return reply

    async def stream(
        self,
        unit: str,
        data: Mapping[str, Any],
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        leave: asyncio.Event | None = None,
    ) -> AsyncGenerator[Any | Answer, None]:
        """Yield the parts of an answer as they arrive, then the Answer. Closing the generator cancels the work.

        Raises the same errors as `ask`, and Unavailable if the process ends after some parts. To stop early without
        losing parts, set the event `leave`. The generator then yields the parts that were already sent, and ends
        without an Answer.
        """
        payload, subject, inbox = _payload(data), f"aima.{unit}", self.nc.new_inbox()
        all_headers = {calls.TIMEOUT: f"{timeout:.3f}", calls.PARTS: "true", **(headers or {})}
        deadline = time.monotonic() + timeout + _GRACE
        with _request_errors(unit, timeout):
            subscription = await self.nc.subscribe(inbox)
        draining = asyncio.create_task(_drain_on(leave, subscription)) if leave else None

        async def next_message(control: str = "") -> Msg:
            """Return the next message. While no message arrives, pings the `control` subject of the serving process."""
            missed_pings = 0
            with _request_errors(unit, timeout):
                while True:
                    remaining = max(deadline - time.monotonic(), 0.01)
                    incoming = subscription.next_msg(timeout=min(remaining, _QUIET) if control else remaining)
                    try:
                        message = await wait_for_message(incoming, draining)
                    except nats.errors.TimeoutError:
                        if not control or remaining <= _QUIET:
                            raise
                        if self.nc.is_connected:
                            await self.nc.publish(control, reply=inbox)
                        continue
                    if not (control and is_no_responders(message)):
                        return message
                    missed_pings += 1
                    if missed_pings == _MISSED_PINGS:
                        return message

        async def first_message() -> Msg:
            with _request_errors(unit, timeout):
                await self.nc.publish(subject, payload, reply=inbox, headers=all_headers)
            return await next_message()

        try:
            message = await self._wait(subject, first_message())
            while calls.SEQ in (message.headers or {}) and calls.FINAL not in (message.headers or {}):
                yield msgspec.json.decode(message.data)
                message = await next_message(message.reply)
            if is_no_responders(message):
                raise await self._no_responders(unit)
            yield opened(message.data)
        except _Drained:
            return
        finally:
            if draining:
                draining.cancel()
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def discover(
        self, domain: str = "", *, wait: float = 0.3, known: Collection[Process] = ()
    ) -> list[dict[str, Any]]:
        """Return the `$SRV.INFO` of every process on the bus. Stops `wait` seconds after the last answer.

        `known` has the domain and node of each process that answered an earlier call. Once all of them have answered,
        the wait is only twice the time that they took, but at least 50 ms. A new process answers about as fast.

        With `domain`, returns only the first answer of this domain. Raises Unavailable if the bus does not answer.
        """
        with _bus_errors():
            return await discovery.infos(self.nc, domain, wait, known)

    async def _wait(self, subject: str, reply: Coroutine[Any, Any, Msg]) -> Msg:
        """Send a request to a subject and return the reply. Raises Forbidden if the server denies the request."""
        if isinstance(self.nc, Connection):
            reply = self.nc.reply_unless_denied(subject, reply)
        return await wait_for_message(reply)

    async def _no_responders(self, unit: str) -> AimaError:
        """Return the error for a unit that no process serves.

        The error is UnitNotFound if the unit's domain runs and does not list the unit, and otherwise Unavailable. If
        the domain lists the unit, the domain has started just after the request.
        """
        domain = unit.partition(".")[0]
        with contextlib.suppress(TimeoutError, nats.errors.Error, msgspec.MsgspecError):
            # the ping comes first, because it fails at once if the domain is down; INFO would wait
            await self.nc.request(f"$SRV.PING.{domain}", b"", timeout=_PING_TIMEOUT)
            info = await self.nc.request(f"$SRV.INFO.{domain}", b"", timeout=_PING_TIMEOUT)
            if f"aima.{unit}" not in {endpoint.subject for endpoint in _decode_info(info.data).endpoints}:
                return UnitNotFound(f"there is no unit {unit}", unit=unit)
        return Unavailable(
            f"the {domain} domain does not answer; it may be restarting; try again",
            reason="DOMAIN_DOWN",
            domain=domain,
            unit=unit,
        )


def _is_no_responders(message: Msg) -> bool:
    """Whether the message is the server's report that no process listens on the subject."""
    return (message.headers or {}).get("Status") == "503"


class _Drained(Exception):
    """The caller has left the stream, and every part that was sent before has arrived."""


async def _drain_on(leave: asyncio.Event, subscription: Subscription) -> None:
    """Unsubscribe when `leave` is set. Returns when every message that was sent before has arrived."""
    await leave.wait()
    with contextlib.suppress(nats.errors.Error, TimeoutError):
        await subscription.drain()  # type: ignore[no-untyped-call]


async def wait_for_message(incoming: Coroutine[Any, Any, Msg], draining: asyncio.Task[None] | None = None) -> Msg:
    """Return the incoming message. Raises _Drained if `draining` ends first.

    The wait is a task of its own, because `asyncio.wait_for` before Python 3.12 can lose a cancellation. The
    cancellation is lost if it comes at the same moment as the message.
    """
    waiting = asyncio.ensure_future(incoming)
    try:
        await asyncio.wait((waiting, draining) if draining else (waiting,), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise _Drained
        return await waiting
    finally:
        await cancel_and_wait(waiting)


@contextlib.contextmanager
def _bus_errors() -> Iterator[None]:
    """Raise every error of the connection as Unavailable."""
    try:
        yield
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"the bus does not answer: {error}", reason="NO_NATS") from error


@contextlib.contextmanager
def _request_errors(unit: str, timeout: float) -> Iterator[None]:
    """Raise every error of the connection during a request as an AimaError."""
    with _bus_errors():
        try:
            yield
        except (TimeoutError, nats.errors.TimeoutError):
            raise Timeout(f"{unit} did not answer within {timeout:g} s", unit=unit, timeout=timeout) from None
        except nats.errors.MaxPayloadError:
            raise PayloadTooLarge(f"the input of {unit} is larger than the bus allows", unit=unit) from None


def _payload(data: Mapping[str, Any] | bytes) -> bytes:
    payload = data if isinstance(data, bytes) else _encode(data)
    check_size(payload)  # a door's own check may pass, because encoding again makes `1e15` five times as long
    return payload


def opened(data: bytes) -> Answer:
    """Return the answer in an envelope. Raises the error if the envelope has one."""
    try:
        envelope = _decode(data)
        if envelope.success:
            return Answer(envelope.data, envelope.meta)
        error = from_body(envelope.error or {})
    except (*UNREADABLE, TypeError, ValueError) as decode_error:
        raise InternalError("the reply is not a valid envelope") from decode_error
    raise error
