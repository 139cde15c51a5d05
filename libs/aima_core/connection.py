"""nats-py with its gaps closed: headers that are none, requests that are none, and those that are turned away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any

from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from aima_core import call as calls
from aima_core.bus_user import BusUser
from aima_core.errors import Forbidden
from aima_core.logs import logger

_DENIED = re.compile(r'permissions violation for publish to "(.+)"')  # nats-py tells it in small letters


class Connection(Nats):
    """A connection to the bus, as a user where there is one."""

    def __init__(self, user: BusUser | None = None) -> None:
        super().__init__()
        self.user = user
        self.refused = False
        """Whether the server has not taken us for the user."""
        self._permitted: set[str] = set()
        self._denials: dict[str, asyncio.Future[None]] = {}

    async def on_error(self, error: Exception) -> None:
        """Take note of what the server says beside the replies."""
        logger.debug("bus", error=repr(error))
        text = str(error)
        self.refused = self.refused or "Authorization Violation" in text
        if (denied := _DENIED.search(text)) and not (denial := self._denial(denied.group(1))).done():
            denial.set_result(None)

    async def unless_denied(self, subject: str, answer: Coroutine[Any, Any, Msg]) -> Msg:
        """Return the answer to what is published on a subject; raise Forbidden when the server turns it away.

        The server tells that to the connection, not in a reply: whoever only waits for one waits in vain.
        """
        if self.user is None or subject in self._permitted:
            return await answer
        waiting, denial = asyncio.ensure_future(answer), self._denial(subject.lower())
        try:
            await asyncio.wait((waiting, denial), return_when=asyncio.FIRST_COMPLETED)
            if denial.done():
                raise Forbidden(
                    f"the bus does not let the user {self.user.name} ask {subject}", reason="BUS_USER", subject=subject
                )
            self._permitted.add(subject)
            return await waiting
        finally:
            waiting.cancel()

    def _denial(self, subject: str) -> asyncio.Future[None]:
        return self._denials.setdefault(subject, asyncio.get_running_loop().create_future())

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        """Return the headers; over bytes that are none the reading task would end and leave the process deaf."""
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return {calls.MALFORMED: "true"}

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        """Return the message; None drops what came as a request and is none."""
        subscription = self._subs.get(sid)
        if subscription and _takes_requests(subscription.subject) and not _is_request(headers, reply):
            return None
        return super()._build_message(sid, subject, reply, data, headers)  # type: ignore[no-any-return]


def _takes_requests(subject: str) -> bool:
    return subject.startswith(("aima.", "$SRV.")) and not subject.startswith("aima.events.")


def _is_request(headers: dict[str, str] | None, reply: bytes) -> bool:
    """Whether somebody asks, and wants the answer where answers go.

    JetStream sends to whatever subject a user names, and a domain answers to whatever subject a user names: the user
    could so borrow their right to publish there (decision 0013).
    """
    return "Status" not in (headers or {}) and not reply.startswith((b"aima.", b"$"))
