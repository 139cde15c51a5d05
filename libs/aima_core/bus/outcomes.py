"""What goes back to whoever has asked: parts while the work is under way, what it comes to at the end."""

from __future__ import annotations

from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats

from aima_core import call as calls
from aima_core.errors import PayloadTooLarge
from aima_core.units import View

encode = msgspec.json.Encoder(enc_hook=lambda value: value.model_dump(mode="json")).encode
"""Return JSON of anything that is answered, views in it included."""


class Outcome(msgspec.Struct, frozen=True):
    """What a handled request comes to: its data, already encoded, and what meta says beside."""

    data: bytes
    version: int | None = None
    position: int | None = None


class ReplyStream:
    """Where the parts of one request go. A part that nobody is subscribed to cancels the request."""

    def __init__(self, nc: Nats, inbox: str, control: str, requested: bool) -> None:
        self._nc = nc
        self._inbox = inbox
        self._control = control
        self._seq = 0
        self.requested = requested and bool(inbox)

    async def send(self, part: Any) -> None:
        """Send one part, numbered; nothing when the caller did not ask for parts.

        Raises PayloadTooLarge for one that the bus does not carry.
        """
        if not self.requested:
            return
        self._seq += 1
        headers = {calls.SEQ: str(self._seq)}
        try:
            # with a reply subject the server itself reports when the caller's inbox has gone
            await self._nc.publish(self._inbox, encode(part), reply=self._control, headers=headers)
        except nats.errors.MaxPayloadError:
            raise PayloadTooLarge("a part of the answer is larger than the bus carries") from None

    def final_headers(self) -> dict[str, str]:
        """Return what marks the reply that ends the parts."""
        return {calls.SEQ: str(self._seq + 1), calls.FINAL: "true"}


def encode_view(view: View) -> bytes:
    """Return a unit's answer as JSON."""
    return view.model_dump_json().encode()
