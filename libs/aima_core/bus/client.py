"""The client side of the bus: ask a unit, take its parts and its answer.

`Client` speaks in names and dicts (doors, command line); `Peers` speaks in typed units (domains among themselves).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from aima_core import call as calls
from aima_core.bus.connection import Connection, call_off, check_size
from aima_core.call import Call, current_call
from aima_core.errors import (
    AimaError,
    InternalError,
    PayloadTooLarge,
    Timeout,
    Unavailable,
    UnitNotFound,
    from_body,
)
from aima_core.units import Out, Unit

_GRACE = 0.5  # seconds that a caller waits beyond the deadline it sent, so that the callee's own error arrives
_QUIET = 5.0  # seconds without a part after which it is time to see whether somebody is still at it
_ABSENT = 2  # times in a row that nobody is, until it is believed
_LOOK = 0.5  # seconds for a domain to say that it is there, and what it has

_SUCCESS = b'{"success":true,'  # how an envelope of ours begins that holds an answer

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # how decoding JSON fails

_encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, frozen=True):
    """A reply envelope without its wrapping."""

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
    """Asks units by name."""

    def __init__(self, nc: Nats) -> None:
        self.nc = nc

    async def ask(
        self, unit: str, data: Mapping[str, Any] | bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer of one unit; raise the error that it replied with.

        Raises UnitNotFound or Unavailable at once when nobody serves it, Timeout after `timeout` seconds.
        """
        return opened(await self.reply(unit, data, timeout=timeout, headers=headers))

    async def envelope(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the answer of one unit in its envelope, as it came; raises what `ask` raises."""
        reply = await self.reply(unit, data, timeout=timeout, headers=headers)
        if not reply.startswith(_SUCCESS):
            opened(reply)
        return reply

    async def reply(
        self, unit: str, data: Mapping[str, Any] | bytes, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return what comes back from one unit, an answer or a refusal; raises what the bus itself refuses with."""
        payload, subject = _payload(data), f"aima.{unit}"
        sent = {calls.TIMEOUT: f"{timeout:.3f}", **(headers or {})}
        with _told(unit, timeout):
            try:
                asked = self.nc.request(subject, payload, timeout=timeout + _GRACE, headers=sent)
                message = await self._answer(subject, asked)
            except nats.errors.NoRespondersError:
                raise await self._nobody(unit) from None
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
        """Yield the parts of an answer as they come, last of all the Answer itself. Leaving early cancels the work.

        Raises what `ask` raises, also when the process that has sent parts is gone before it has answered. Who sets
        `leave` still gets what had been sent by the time that the server knows, and then the end.
        """
        payload, subject, inbox = _payload(data), f"aima.{unit}", self.nc.new_inbox()
        sent = {calls.TIMEOUT: f"{timeout:.3f}", calls.PARTS: "true", **(headers or {})}
        until = time.monotonic() + timeout + _GRACE
        with _told(unit, timeout):
            subscription = await self.nc.subscribe(inbox)
        leaving = asyncio.create_task(_drained(subscription, leave)) if leave else None

        async def following(control: str = "") -> Msg:
            absent = 0  # how often the server has said that the process is not there: it may be coming back as we did
            with _told(unit, timeout):
                while True:
                    left = max(until - time.monotonic(), 0.01)
                    coming = subscription.next_msg(timeout=min(left, _QUIET) if control else left)
                    try:
                        message = await or_cancelled(coming, leaving)
                    except nats.errors.TimeoutError:
                        if not control or left <= _QUIET:
                            raise
                        if self.nc.is_connected:
                            await self.nc.publish(control, reply=inbox)
                        continue
                    if not (control and _is_nobody(message)):
                        return message
                    absent += 1
                    if absent == _ABSENT:
                        return message

        async def first() -> Msg:
            with _told(unit, timeout):
                await self.nc.publish(subject, payload, reply=inbox, headers=sent)
            return await following()

        try:
            message = await self._answer(subject, first())
            while calls.SEQ in (message.headers or {}) and calls.FINAL not in (message.headers or {}):
                yield msgspec.json.decode(message.data)
                message = await following(message.reply)
            if _is_nobody(message):
                raise await self._nobody(unit)
            yield opened(message.data)
        except _Left:
            return
        finally:
            if leaving:
                leaving.cancel()
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def discover(self, domain: str = "", *, wait: float = 0.3) -> list[dict[str, Any]]:
        """Return the `$SRV.INFO` of every process that answers; ends `wait` seconds after the last that did.

        With a domain, of the first of its processes that answers. Raises Unavailable when there is no bus.
        """
        found: list[dict[str, Any]] = []
        inbox = self.nc.new_inbox()
        with _no_bus():
            subscription = await self.nc.subscribe(inbox)
            try:
                await self.nc.publish(f"$SRV.INFO.{domain}".rstrip("."), b"", reply=inbox)
                while not (domain and found):
                    message = await subscription.next_msg(timeout=wait)
                    if message.data:
                        found.append(msgspec.json.decode(message.data))
            except (TimeoutError, nats.errors.TimeoutError):
                pass
            finally:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()
        return found

    async def _answer(self, subject: str, answer: Coroutine[Any, Any, Msg]) -> Msg:
        return await or_cancelled(self.nc.unless_denied(subject, answer) if isinstance(self.nc, Connection) else answer)

    async def _nobody(self, unit: str) -> AimaError:
        """Tell a unit that does not exist from a domain that is not running, or has only just come back."""
        domain = unit.partition(".")[0]
        with contextlib.suppress(TimeoutError, nats.errors.Error, msgspec.MsgspecError):
            await self.nc.request(f"$SRV.PING.{domain}", b"", timeout=_LOOK)  # who is down shall not wait for INFO
            info = await self.nc.request(f"$SRV.INFO.{domain}", b"", timeout=_LOOK)
            if f"aima.{unit}" not in {each.subject for each in _decode_info(info.data).endpoints}:
                return UnitNotFound(f"there is no unit {unit}", unit=unit)
        return Unavailable(
            f"the {domain} domain does not answer; ask again", reason="DOMAIN_DOWN", domain=domain, unit=unit
        )


def _is_nobody(message: Msg) -> bool:
    """Whether it is the server's, which says that nobody listens."""
    return (message.headers or {}).get("Status") == "503"


class _Left(Exception):
    """A stream is at its end because its caller has left it."""


async def _drained(subscription: Subscription, leave: asyncio.Event) -> None:
    """Unsubscribe when it is time to leave; return when all that had been sent by then has been taken."""
    await leave.wait()
    with contextlib.suppress(nats.errors.Error, TimeoutError):
        await subscription.drain()  # type: ignore[no-untyped-call]


async def or_cancelled(coming: Coroutine[Any, Any, Msg], leaving: asyncio.Task[None] | None = None) -> Msg:
    """Return the message that is coming; raise _Left when the leaving has ended without it.

    In a task of its own, because `wait_for` before Python 3.12 forgets a cancellation in the moment of an answer:
    somebody's Ctrl-C, a deadline, or that a client has gone.
    """
    waiting = asyncio.ensure_future(coming)
    try:
        await asyncio.wait((waiting, leaving) if leaving else (waiting,), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise _Left
        return await waiting
    finally:
        await call_off(waiting)


@contextlib.contextmanager
def _no_bus() -> Iterator[None]:
    """Raise what goes wrong with the bus as Unavailable."""
    try:
        yield
    except (nats.errors.Error, OSError) as error:
        raise Unavailable(f"the bus does not answer: {error}", reason="NO_NATS") from error


@contextlib.contextmanager
def _told(unit: str, timeout: float) -> Iterator[None]:
    """Raise what goes wrong with the bus while a unit is asked as an error of ours."""
    with _no_bus():
        try:
            yield
        except (TimeoutError, nats.errors.TimeoutError):
            raise Timeout(f"{unit} did not answer within {timeout:g} s", unit=unit, timeout=timeout) from None
        except nats.errors.MaxPayloadError:
            raise PayloadTooLarge(f"the input of {unit} is larger than the bus carries", unit=unit) from None


def _payload(data: Mapping[str, Any] | bytes) -> bytes:
    payload = data if isinstance(data, bytes) else _encode(data)
    check_size(payload)  # encoded anew, `1e15` is five times as long as it came
    return payload


def opened(data: bytes) -> Answer:
    """Return the answer that an envelope holds; raise the error that it holds instead."""
    try:
        envelope = _decode(data)
        if envelope.success:
            return Answer(envelope.data, envelope.meta)
        error = from_body(envelope.error or {})
    except (*UNREADABLE, TypeError, ValueError) as broken:
        raise InternalError("the reply is not an envelope of ours") from broken
    raise error


class Peers:
    """Typed calls to other domains, on behalf of the call that is being handled."""

    def __init__(self, nc: Nats, node: str) -> None:
        self.client = Client(nc)
        self._node = node

    async def call(self, unit: Unit[Out], *, key: str = "", timeout: float | None = None) -> Out:
        """Ask a peer; `key` makes asking again harmless. The deadline is the nearer of the caller's and the unit's."""
        parent = current_call.get() or calls.fresh(self._node)
        seconds = _remaining(parent, timeout or unit.spec.timeout)
        answer = await self.client.ask(
            unit.spec.name,
            unit.model_dump_json(exclude_unset=True).encode(),
            timeout=seconds,
            headers=calls.to_headers(parent, timeout=seconds, idempotency_key=key),
        )
        return unit.output.model_validate(answer.data)  # type: ignore[return-value]  # output is the Out of this unit


def _remaining(parent: Call, timeout: float) -> float:
    if parent.deadline is None:
        return timeout
    left = parent.deadline - time.time()
    if left <= 0:
        raise Timeout("the deadline of the request has passed")
    return min(left, timeout)
