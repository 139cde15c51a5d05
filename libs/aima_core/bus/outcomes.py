"""Sends a domain's answer to its caller: the parts during the work, and the outcome at its end."""

from __future__ import annotations

from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats

from aima_core import call as calls
from aima_core.errors import PayloadTooLarge
from aima_core.units import View

encode = msgspec.json.Encoder(enc_hook=lambda value: value.model_dump(mode="json")).encode
"""Encode an answer as JSON. The answer may contain views."""


class Outcome(msgspec.Struct, frozen=True):
    """The result of a request: its data as JSON, and the version and log position for the envelope's `meta`."""

    data: bytes
    version: int | None = None
    position: int | None = None


class ReplyStream:
    """Sends the parts of one request to the caller. The request is cancelled if the caller no longer listens."""

    def __init__(self, nc: Nats, inbox: str, control: str, requested: bool) -> None:
        self._nc = nc
        self._inbox = inbox
        self._control = control
        self._seq = 0
        self.requested = requested and bool(inbox)

    async def send(self, part: Any) -> None:
        """Send one part with its number. Does nothing if the caller did not request parts.

        Raises PayloadTooLarge if the part is larger than the bus allows.
        """
        if not self.requested:
            return
        self._seq += 1
        headers = {calls.SEQ: str(self._seq)}
        try:
            # the server uses the reply subject to report that nobody listens on the caller's inbox (Endpoints)
            await self._nc.publish(self._inbox, encode(part), reply=self._control, headers=headers)
        except nats.errors.MaxPayloadError:
            raise PayloadTooLarge("a part of the answer is larger than the bus allows") from None

    def final_headers(self) -> dict[str, str]:
        """Return the headers of the final reply, which follows the last part."""
        return {calls.SEQ: str(self._seq + 1), calls.FINAL: "true"}


def encode_view(view: View) -> bytes:
    """Return a unit's answer as JSON."""
    return view.model_dump_json().encode()
