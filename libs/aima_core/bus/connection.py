"""Connects to the bus with nats-py, and closes four gaps of nats-py.

`Connection` does four things that nats-py does not:

- It reports a permission error to the request that caused the error.
- It refuses a message that is too large before the server closes the connection.
- On subjects that serve requests, it drops messages that are not requests.
- It survives malformed data.
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
from aima_core.bus.call_options import set_twice_in
from aima_core.bus.credentials import BusUser
from aima_core.errors import Forbidden, Unauthorized, Unavailable
from aima_core.structured_logs import logger

_CONNECT_TIMEOUT = 2  # seconds for one attempt
_RECONNECT = 0.2  # seconds between attempts to reconnect

_VIOLATION = "permissions violation"
_STALE = "stale connection"
_DENIED = re.compile(r'permissions violation for publish to "(.+)"')  # nats-py converts the server's text to lower case


class Connection(Nats):
    """A connection to the bus, with a user or without."""

    def __init__(self, user: BusUser | None = None) -> None:
        super().__init__()
        self.user = user
        self.refused = False
        """Whether the server has refused the user's name or password."""
        self._denials: dict[str, set[asyncio.Future[None]]] = {}

    async def on_error(self, error: Exception) -> None:
        """Handle an error that the server reports without a reply, such as a denied publish."""
        logger.debug("error on the bus connection", error=repr(error))
        text = str(error)
        self.refused = self.refused or "Authorization Violation" in text
        if denied := _DENIED.search(text):
            for denial in self._denials.pop(denied.group(1), ()):
                denial.set_result(None)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish a message. Raises MaxPayloadError if payload and headers together exceed the server's limit.

        nats-py checks only the payload, but the server closes the connection if the sum exceeds the limit.
        """
        if headers and len(payload) + _size(headers) > self.max_payload:
            raise nats.errors.MaxPayloadError
        await super().publish(subject, payload, reply, headers)

    async def flush(self, timeout: int = 10) -> None:
        """Wait until the server has received every message that was published before.

        nats-py's own flush is too early: it sends its ping ahead of messages that still wait in the buffer.
        """
        if not self.is_closed:
            await self._flush_pending(force_flush=True)
        await super().flush(timeout)

    async def reply_unless_denied(self, subject: str, reply: Coroutine[Any, Any, Msg]) -> Msg:
        """Send a request and return the reply. Raises Forbidden if the user may not publish to the subject.

        The server sends no reply to a denied request. It reports the denial to the connection, so nats-py's own request
        would wait for its timeout.
        """
        if self.user is None:
            return await reply
        waiting, denial = asyncio.ensure_future(reply), asyncio.get_running_loop().create_future()
        denials = self._denials.setdefault(subject.lower(), set())
        denials.add(denial)
        try:
            await asyncio.wait((waiting, denial), return_when=asyncio.FIRST_COMPLETED)
            if denial.done():
                raise Forbidden(
                    f"the bus user {self.user.name} may not send to {subject}", reason="BUS_USER", subject=subject
                )
            return await waiting
        finally:
            denials.discard(denial)
            if not denials and self._denials.get(subject.lower()) is denials:
                del self._denials[subject.lower()]
            await cancel_and_wait(waiting)

    async def _process_err(self, err_msg: str) -> None:
        """Reconnect after an error from the server. nats-py itself would close the connection for good."""
        if _VIOLATION in err_msg or _STALE in err_msg:
            await super()._process_err(err_msg)
            return
        logger.warning("the NATS server closed the connection", error=err_msg)
        error = nats.errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_pong(self) -> None:
        """Ignore the pong of a cancelled flush. nats-py's reading task would fail on this pong and end."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _read_loop(self) -> None:
        """Read until the connection ends. Reconnects if reading fails. nats-py itself would stop reading."""
        await super()._read_loop()
        this = asyncio.current_task()
        if self.is_connected and not (this and this.cancelling()):
            await self._process_op_err(nats.errors.Error("nats: received data that cannot be read"))

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        """Return the headers. Bytes that are not headers become the header `Aima-Malformed`.

        nats-py's reading task would end on such bytes, and the process would receive no more messages. nats-py keeps
        only the last value of a name, so an option with two different values becomes `Aima-Malformed`, too.
        """
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except (ValueError, IndexError):
            return {calls.MALFORMED: "true"}
        lines = bytes(headers).count(b"\r\n") - 2 if parsed else 0  # without the first line and the empty last one
        if parsed and lines > len(parsed) and set_twice_in(bytes(headers)):
            return {calls.MALFORMED: "true"}
        return parsed

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        """Return the message, or None to drop it.

        A message is dropped if its subject is not text, or if it is not a request on a subject that serves requests.
        """
        subscription = self._subs.get(sid)
        if subscription and _takes_requests(subscription.subject) and not _is_request(headers, reply):
            return None
        try:
            return super()._build_message(sid, subject, reply, data, headers)  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            return None


async def cancel_and_wait(work: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end, so the task cannot outlive the objects that it uses."""
    if not work.done():
        work.cancel()
        await asyncio.wait((work,))
    if not work.cancelled():
        work.exception()  # marks the exception as retrieved; otherwise, asyncio would log it


async def connect(
    url: str,
    name: str,
    *,
    user: BusUser | None = None,
    wait: float = 10.0,
    back: float | None = None,
    closed: Callable[[], None] = lambda: None,
) -> Nats:
    """Connect to the bus, with or without a user. Tries for `wait` seconds.

    A connection that is lost later is retried for `back` seconds, or without end if `back` is None. `closed` is called
    when the connection has ended for good. Raises Unavailable if no server answers, and Unauthorized if the server
    refuses the user or requires a user.
    """
    deadline = time.monotonic() + wait
    client = Connection(user)

    async def on_disconnect() -> None:
        if not client.is_closed:
            logger.warning("lost the connection to the bus; reconnecting")

    async def on_close() -> None:
        closed()

    while True:
        try:
            # connect needs a timeout: with endless reconnects, nats-py also tries the first connect without end
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.1)):
                await client.connect(
                    url,
                    name=name,
                    connect_timeout=_CONNECT_TIMEOUT,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1 if back is None else round(back / _RECONNECT),
                    reconnect_time_wait=_RECONNECT,  # type: ignore[arg-type]  # accepts fractions of a second
                    ping_interval=10,
                    max_outstanding_pings=2,
                    pending_size=32 * 1024 * 1024,
                    error_cb=client.on_error,
                    disconnected_cb=on_disconnect,
                    reconnected_cb=_on_reconnect,
                    closed_cb=on_close,
                    user=user.name if user else None,
                    password=user.password if user else None,
                    inbox_prefix=user.inbox if user else DEFAULT_INBOX_PREFIX,
                )
            return client
        except (TimeoutError, OSError, nats.errors.Error) as error:
            if time.monotonic() >= deadline:
                if client.refused:
                    cause = f"refuses the password of user {user.name}" if user else "requires a user and a password"
                    message = f"the NATS server {cause}; see docs/bus-users.md"
                    raise Unauthorized(message, reason="BUS_USER") from error
                raise Unavailable(f"no NATS server answers at {url}", reason="NO_NATS", url=url) from error
            await asyncio.sleep(0.1)


async def _on_reconnect() -> None:
    logger.info("reconnected to the bus")


def _size(headers: Mapping[str, str]) -> int:
    """Return the number of bytes of headers on the wire: a version line, a line per header, and an empty line."""
    lines = (f"{name.strip()}: {value.strip()}" for name, value in headers.items())
    return len("NATS/1.0\r\n\r\n") + sum(len(line.encode()) + 2 for line in lines)


def _takes_requests(subject: str) -> bool:
    return subject.startswith(("aima.", "$SRV.")) and not subject.startswith("aima.events.")


def _is_request(headers: dict[str, str] | None, reply: bytes) -> bool:
    """Whether a message is a request. A request is not a status message and has no reply subject under `aima.` or `$`.

    JetStream delivers messages to any subject that a user names, and a domain replies to any other reply subject. So
    without this check, a user could publish to a subject that is closed to the user (decision 0013).
    """
    return "Status" not in (headers or {}) and not reply.startswith((b"aima.", b"$"))
