"""Connections to the bus: nats-py with its gaps closed.

Those are: what the server turns away, what is too large for it, what is no request of ours, what cannot be read.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import nats.errors
from nats.aio.client import DEFAULT_INBOX_PREFIX
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from aima_core import call as calls
from aima_core.bus.credentials import BusUser
from aima_core.errors import Forbidden, PayloadTooLarge, Unauthorized, Unavailable
from aima_core.structured_logs import logger

LARGEST_PAYLOAD = 8 * 1024 * 1024  # bytes of an input; the bus carries twice that, so that refusing is ours to do

_CONNECT_TIMEOUT = 2  # seconds for one attempt
_RECONNECT = 0.2  # seconds between attempts to come back

_VIOLATION = "permissions violation"
_STALE = "stale connection"
_DENIED = re.compile(r'permissions violation for publish to "(.+)"')  # nats-py tells it in small letters


class Connection(Nats):
    """A connection to the bus, as a user where there is one."""

    def __init__(self, user: BusUser | None = None) -> None:
        super().__init__()
        self.user = user
        self.refused = False
        """Whether the server has not taken us for the user."""
        self._denials: dict[str, set[asyncio.Future[None]]] = {}

    async def on_error(self, error: Exception) -> None:
        """Take note of what the server says beside the replies."""
        logger.debug("bus", error=repr(error))
        text = str(error)
        self.refused = self.refused or "Authorization Violation" in text
        if denied := _DENIED.search(text):
            for denial in self._denials.pop(denied.group(1), ()):
                denial.set_result(None)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish; raises MaxPayloadError for what is too large with its headers, over which the server hangs up."""
        if headers and len(payload) + _size(headers) > self.max_payload:  # nats-py counts the payload only
            raise nats.errors.MaxPayloadError
        await super().publish(subject, payload, reply, headers)

    async def flush(self, timeout: int = 10) -> None:
        """Return when the server has all that was sent until now; nats-py's ping would overtake what still waits."""
        if not self.is_closed:
            await self._flush_pending(force_flush=True)
        await super().flush(timeout)

    async def unless_denied(self, subject: str, answer: Coroutine[Any, Any, Msg]) -> Msg:
        """Return the answer to what is published on a subject; raise Forbidden when the server turns it away.

        The server tells that to the connection, not in a reply: whoever only waits for one waits in vain.
        """
        if self.user is None:
            return await answer
        waiting, denial = asyncio.ensure_future(answer), asyncio.get_running_loop().create_future()
        denials = self._denials.setdefault(subject.lower(), set())
        denials.add(denial)
        try:
            await asyncio.wait((waiting, denial), return_when=asyncio.FIRST_COMPLETED)
            if denial.done():
                raise Forbidden(
                    f"the bus does not let the user {self.user.name} ask {subject}", reason="BUS_USER", subject=subject
                )
            return await waiting
        finally:
            denials.discard(denial)
            if not denials and self._denials.get(subject.lower()) is denials:
                del self._denials[subject.lower()]
            await call_off(waiting)

    async def _process_err(self, err_msg: str) -> None:
        """Come back after an error of the server's, over which nats-py would close for ever."""
        if _VIOLATION in err_msg or _STALE in err_msg:
            await super()._process_err(err_msg)
            return
        logger.warning("the bus hangs up", error=err_msg)
        error = nats.errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_pong(self) -> None:
        """Take a pong, also one for a flush that was called off, over which the reading task would end."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _read_loop(self) -> None:
        """Read until the connection ends; come back after anything else over which nats-py would just stop reading."""
        await super()._read_loop()
        this = asyncio.current_task()
        if self.is_connected and not (this and this.cancelling()):
            await self._process_op_err(nats.errors.Error("nats: what came could not be read"))

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        """Return the headers; over bytes that are none the reading task would end and leave the process deaf."""
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return {calls.MALFORMED: "true"}

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        """Return the message; None drops what came as a request and is none, or from where no text leads back."""
        subscription = self._subs.get(sid)
        if subscription and _takes_requests(subscription.subject) and not _is_request(headers, reply):
            return None
        try:
            return super()._build_message(sid, subject, reply, data, headers)  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            return None


async def call_off(work: asyncio.Future[Any]) -> None:
    """Cancel what need not be done any more, and return when it has ended: it might outlive what it uses."""
    if not work.done():
        work.cancel()
        await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # seen: nobody is interested


async def connect(
    url: str,
    name: str,
    *,
    user: BusUser | None = None,
    wait: float = 10.0,
    back: float | None = None,
    closed: Callable[[], None] = lambda: None,
) -> Nats:
    """Connect, as a user where there is one; keep trying for `wait` seconds.

    A connection that is lost later is tried for `back` seconds, without it for ever. `closed` is called when the
    connection has ended for good, whoever ended it. Raises Unavailable when nobody answers, Unauthorized when the
    server does not take us for the user.
    """
    until = time.monotonic() + wait
    client = Connection(user)

    async def disconnected() -> None:
        if not client.is_closed:
            logger.warning("the bus is gone; reconnecting")

    async def gone() -> None:
        closed()

    while True:
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0.1)):  # told to reconnect for ever, it tries so
                await client.connect(
                    url,
                    name=name,
                    connect_timeout=_CONNECT_TIMEOUT,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1 if back is None else round(back / _RECONNECT),
                    reconnect_time_wait=_RECONNECT,  # type: ignore[arg-type]  # it takes fractions
                    ping_interval=10,
                    max_outstanding_pings=2,
                    pending_size=32 * 1024 * 1024,
                    error_cb=client.on_error,
                    disconnected_cb=disconnected,
                    reconnected_cb=_on_reconnect,
                    closed_cb=gone,
                    user=user.name if user else None,
                    password=user.password if user else None,
                    inbox_prefix=user.inbox if user else DEFAULT_INBOX_PREFIX,
                )
            return client
        except (TimeoutError, OSError, nats.errors.Error) as error:
            if time.monotonic() >= until:
                if client.refused:
                    who = f"does not take the password of {user.name}" if user else "wants to know who connects"
                    raise Unauthorized(f"the bus {who}; docs/bus-users.md", reason="BUS_USER") from error
                raise Unavailable(f"no NATS server answers at {url}", reason="NO_NATS", url=url) from error
            await asyncio.sleep(0.1)


async def _on_reconnect() -> None:
    logger.info("the bus is back")


def check_size(data: bytes) -> None:
    """Raise PayloadTooLarge for an input that no domain takes."""
    if len(data) > LARGEST_PAYLOAD:
        raise PayloadTooLarge(
            f"the input is {len(data)} bytes; at most {LARGEST_PAYLOAD} are taken",
            size=len(data),
            limit=LARGEST_PAYLOAD,
        )


def _size(headers: Mapping[str, str]) -> int:
    """Return the bytes that headers take on the wire: a first line, one for each, an empty one."""
    lines = (f"{name.strip()}: {value.strip()}" for name, value in headers.items())
    return len("NATS/1.0\r\n\r\n") + sum(len(line.encode()) + 2 for line in lines)


def _takes_requests(subject: str) -> bool:
    return subject.startswith(("aima.", "$SRV.")) and not subject.startswith("aima.events.")


def _is_request(headers: dict[str, str] | None, reply: bytes) -> bool:
    """Whether somebody asks, and wants the answer where answers go.

    JetStream sends to whatever subject a user names, and a domain answers to whatever subject a user names: the user
    could so borrow their right to publish there (decision 0013).
    """
    return "Status" not in (headers or {}) and not reply.startswith((b"aima.", b"$"))
